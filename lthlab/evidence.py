"""What studies hold, in the form in which it is compared with papers: one source a study, and tables of its rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from lthlab import results, roles, spec
from lthlab.spec import Config, Panel
from lthlab.store import Store


@dataclass(frozen=True)
class Source:
    """A study with its results.

    Attributes
    ----------
    config : Config
        The study.
    frame : DataFrame
        Its tidy frame, from `lthlab.results.load`.
    store : Store
        Where its results are.
    """

    config: Config
    frame: pd.DataFrame
    store: Store

    @cached_property
    def panels(self) -> dict[str, Panel]:
        """Panels by the names that the column `panel` has for them."""
        return dict(zip(roles.panel_names(self.config.panels), self.config.panels, strict=True))


def load(store: Store, studies: Iterable[str | Config] | None = None) -> list[Source]:
    """Load studies as sources.

    Parameters
    ----------
    store : Store
        Where they are.
    studies : iterable of str or Config, optional
        Names of studies, as they were run last, or studies as they are; all of the store by default.

    Raises
    ------
    LookupError
        If there is no such study.
    """
    found = []
    for study in store.studies() if studies is None else studies:
        frame = results.load(store, study)
        if isinstance(study, str):
            noted = store.study(study)
            study = spec.resolved(noted["document"], noted["sets"])
        found.append(Source(study, frame, store))
    return found
