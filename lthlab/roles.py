"""What values are for in a study: rows of roles, and names of panels and configurations."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lthlab.nodes import Value
from lthlab.parts import Recipe
from lthlab.sections import STAGES
from lthlab.spec import Panel

ROLE = (
    "what", "ticket", "method", "level", "rate", "sparsity", "prune_at", "pruning", "layer_counts", "scope", "rewind",
    "schedule", "replicate", "search_epochs", "train_epochs", "source", "target", "widths", "parameters", "reading",
    "p", "measured_at", "images",
)  # fmt: skip
"""Columns of a role beside those of the panel and the recipes."""
RANKED = "ranked"
"""What the column `rewind` says of weights that are trained on from where they were ranked."""
TRAINED = ("train", "ppr")
"""What the column `what` says of trainings: those that are reported, and pseudo-pruned and retrained ones."""


@dataclass(frozen=True)
class Labelled:
    """A value in the role that it plays in a study.

    Attributes
    ----------
    value : Train, Mask or Measure
        What is computed.
    role : dict
        Plain values by column of the tidy frame. Of the panel: configuration, panel, network, width, shortcut (None
        where a network has no such field), data, view, train_size, report, ranking ('global' over all layers, or
        'layer'; 'filters, global' or 'filters, layer' of whole ones). what: 'train', 'ppr' (pseudo-pruned and
        retrained), 'mask' or a measure's name. ticket: 'dense', 'search', 'memorization' or one of
        `lthlab.sections.Tickets`. method: 'IMP', 'OMP' or 'GMP'. level, rate, sparsity. prune_at: step at which weights
        were ranked. pruning: schedule of gradual pruning. layer_counts: whose counts per layer are imposed. scope: of a
        random ticket. rewind: step that weights come from, 'ranked' where they are trained on, None where they are
        fresh. schedule: 'restart', 'resume' or 'fine-tune'; of a mask, that of the rounds of its search. replicate.
        search_epochs: epochs of training that mask and weights cost; train_epochs: those of the ticket itself. source,
        target: data that it was found on, and that it is trained on. widths, parameters. reading: what the correlation
        indicator compares, how a plane is spanned ('pca', 'random'), what lies at the ends of a line ('ends' of a
        training, or two 'orders'). p: of the indicator. measured_at: step of the trained weights that it is about, or
        from which two orders are trained. images: number of those with random labels. find_*, eval_*: recipes.
    """

    value: Value
    role: dict[str, Any]

    @property
    def configuration(self) -> str:
        """Name of the configuration that it belongs to."""
        name: str = self.role["configuration"]
        return name

    @property
    def stage(self) -> str:
        """Stage of its configuration."""
        return self.configuration.partition(".")[0]

    @property
    def row(self) -> dict[str, Any]:
        """Its row in a study's table: key and role."""
        return {"key": self.value.key, **self.role}


def panel_names(panels: Sequence[Panel]) -> list[str]:
    """Name panels by network and data set, numbered where these are the same."""
    names: list[str] = []
    for panel in panels:
        name = f"{panel.net.name}.{panel.data.name}"
        again = sum(other == name or other.startswith(f"{name}.") for other in names)
        names.append(f"{name}.{again + 1}" if again else name)
    return names


def recipe_columns(side: str, recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as columns, `side` being 'find' or 'eval'."""
    return {f"{side}_{name}": value for name, value in recipe.model_dump(mode="json").items()}


def configuration(stage: str, panel: str, axes: Sequence[str], find: Recipe, evaluate: Recipe, replicate: int) -> str:
    """Name a configuration: stage, panel, and the values of the axes that matter to the stage."""
    words = [stage, panel]
    for axis in axes:
        side, _, field = axis.partition(".")
        if side == "replicate":
            words.append(f"replicate-{replicate}")
        elif side == "find" or stage != STAGES[0]:
            value = getattr(find if side == "find" else evaluate, field)
            words.append(re.sub(r"[^A-Za-z0-9._]+", "-", f"{side}_{field} {value}").strip("-"))
    name = ".".join(words)
    return name if len(name) <= 90 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
