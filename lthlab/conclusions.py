"""What studies say of the papers' claims: on the papers' data at their scale, and on digits in small."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lthlab import catalog, comparison, evidence, ledgers, reports, tickets, trees
from lthlab.datasets import DataFacts
from lthlab.errors import InputError
from lthlab.evidence import Source
from lthlab.markup import Html, found_out, listed, ruled, signed
from lthlab.published import PAPERS
from lthlab.runs import Run
from lthlab.store import Store
from lthlab.values import Train, ancestors

IN_SMALL = "digits"
"""Data set of the studies that ask the papers' questions in small."""
WORDS = {"contradicts": "contradicted", "supports": "supported", "undecided": "open"}
"""What outcomes of claims are called, in the order in which they are shown."""
_MOST_SHOWN = 3
_CLAIMS = "verdict claims"
_CLASSES = {"supports": "yes", "contradicts": "no", "undecided": "insufficient"}


@dataclass(frozen=True)
class Gathered:
    """What the studies of a store say.

    Attributes
    ----------
    real, small : list of Source
        Studies on the papers' data, and on digits.
    numbers : DataFrame
        The papers' numbers beside those of `real`, as of `lthlab.comparison.values`.
    claims, on_digits : DataFrame
        What `lthlab.comparison.claims` returns for each.
    pages : dict of str to str
        Address of the pages of a study, by its name.
    left_out : dict of str to str
        Studies of networks or data sets that are not registered here, and what is wrong with each.
    """

    real: list[Source]
    small: list[Source]
    numbers: pd.DataFrame
    claims: pd.DataFrame
    on_digits: pd.DataFrame
    pages: dict[str, str]
    left_out: dict[str, str]


def gather(store: Store) -> Gathered:
    """Ask all studies of a store for the papers' numbers and claims."""
    sources, left_out = list[Source](), dict[str, str]()
    for name in store.studies():
        try:
            sources += evidence.load(store, [name])
        except InputError as error:
            left_out[name] = str(error)
    real, small = scales(sources)
    numbers, claims, on_digits = comparison.values(real), comparison.claims(real), comparison.claims(small)
    return Gathered(real, small, numbers, claims, on_digits, addresses(store.studies()), left_out)


def scales(sources: Iterable[Source]) -> tuple[list[Source], list[Source]]:
    """Tell studies on the papers' data from those on digits.

    Parameters
    ----------
    sources : iterable of Source
        Studies, from `lthlab.evidence.load`.

    Returns
    -------
    real, small : list of Source
    """
    real, small = list[Source](), list[Source]()
    for source in sources:
        digits = all(panel.data.name == IN_SMALL for panel in source.config.panels)
        (small if digits else real).append(source)
    return real, small


def finding(numbers: pd.DataFrame, real: pd.DataFrame, small: pd.DataFrame) -> Html:
    """Say in numbers what came out at each scale, and of dense networks first.

    Parameters
    ----------
    numbers : DataFrame
        What `lthlab.comparison.values` returns for the studies on the papers' data.
    real, small : DataFrame
        What `lthlab.comparison.claims` returns for these, and for those on digits.
    """
    dense = numbers[(numbers["quantity"] == "dense test accuracy") & numbers["difference"].notna()]
    rows = dense.drop_duplicates(["network", "condition", "ours"]).to_dict("records")
    sentences = []
    for words in dict.fromkeys(map(_decay, rows)):
        own = [row["outcome"] for row in rows if _decay(row) == words and row["outcome"] != "undecided"]
        told = f"{words or 'weight decay as the paper states it'}, {own.count('inside')} of {len(own)}"
        sentences.append(
            f"With {told} accuracies of dense networks that the papers print are within the reach of ours."
        )
    sentences += map(_accuracy, rows)
    for name, frame in (("On the papers' data", real), ("On digits, in small", small)):
        asked = frame[frame["outcome"].isin(WORDS)]
        counts = [f"{word} {(asked['outcome'] == outcome).sum()}" for outcome, word in WORDS.items()]
        whole = (
            f"{asked['id'].nunique()} of {frame['id'].nunique()} claims have answers, one for each network and study"
        )
        sentences.append(f"{name}, {whole}: {listed(counts)}.")
    return found_out(sentences)


def _accuracy(row: Mapping[Any, Any]) -> str:
    """Say how accurate a dense network is, beside the paper's."""
    condition = row["condition"].replace("lr=", "learning rate ").replace(" epochs=", ", ") + " epochs"
    what = ", ".join(filter(None, (f"Dense {row['network']} on {row['data']}", condition, _decay(row))))
    paper = f"{row['value']:.1f} % in {row['paper']} ({signed(row['difference'], 1)} points, {row['outcome']})"
    return f"{what}: {row['ours']:.1f} % (n = {row['n']}), {paper}."


def _decay(row: Mapping[Any, Any]) -> str:
    """Name the weight decay, where it is not that of the paper."""
    switches = str(row["switches"]).split("; ")
    return next((text.partition(": ")[2] for text in switches if "weight decay" in text), "")


def runs(sources: Iterable[Source], pages: Mapping[str, str]) -> Html:
    """List what was trained: done of all, epochs, time and device, with the source and fingerprint of the data.

    Parameters
    ----------
    sources : iterable of Source
        Studies.
    pages : mapping of str to str
        Address of the pages of a study, by its name.
    """
    rows, data = list[str](), dict[str, DataFacts]()
    for source in sources:
        config = source.config
        trains = [v for v in ancestors(item.value for item in tickets.expand(config)) if isinstance(v, Train)]
        found = [Run(train, source.store) for train in trains]
        made = reports.made(trains, source.store)
        epochs = sum((run.reached - run.train.start) / run.train.steps_per_epoch for run in found)
        seconds = sum(item["seconds"] / item["replicas"] for item in made)
        machines = listed(sorted({item.get("gpu", item["device"]) for item in made})) if made else "none yet"
        cells = [
            f"{sum(run.complete for run in found)} of {len(trains)}",
            f"{epochs:,.0f}",
            f"{seconds:,.0f}",
            machines,
        ]
        name = html.escape(config.title)
        title = f'<a href="{html.escape(pages[config.name])}">{name}</a>' if config.name in pages else name
        first = f"<td>{title}<br><small>{html.escape(config.name)}</small></td>"
        rows.append(f"<tr>{first}{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
        data |= {panel.data.name: panel.data.facts for panel in config.panels}
    if not rows:
        return Html('<p class="nothing">Nothing was run.</p>')
    notes = [_of_data(name, facts) for name, facts in sorted(data.items())]
    heads = ("Study", "Trainings", "Epochs", "Seconds", "Device")
    return Html(ruled(heads, rows, "What was run", _CLAIMS) + "".join(f"<p>{html.escape(line)}</p>" for line in notes))


def absent(left_out: Mapping[str, str]) -> Html:
    """List the studies that could not be read here.

    Parameters
    ----------
    left_out : mapping of str to str
        What is wrong with each, by its name.
    """
    items = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in left_out.items())
    return Html(f'<p class="warning">Left out:</p><ul>{items}</ul>' if items else "<p>No study is left out.</p>")


def _of_data(name: str, facts: DataFacts) -> str:
    where = f", from {catalog.source(name)}" if catalog.source(name) else ""
    return f"{name}: {facts.train:,} training and {facts.test:,} test images{where}; fingerprint {facts.fingerprint}."


def by_claim(real: pd.DataFrame, small: pd.DataFrame, pages: Mapping[str, str]) -> Html:
    """Show each claim with what studies say of it, those on the papers' data apart from those on digits.

    Parameters
    ----------
    real, small : DataFrame
        What `lthlab.comparison.claims` returns for each.
    pages : mapping of str to str
        Address of the pages of a study, by its name.
    """
    parts = []
    for paper in PAPERS.values():
        claims = real[real["paper"] == paper].drop_duplicates("id")
        rows = []
        for claim in claims.to_dict("records"):
            own = [frame[(frame["id"] == claim["id"]) & frame["outcome"].isin(WORDS)] for frame in (real, small)]
            if any(len(frame) for frame in own):
                what = f"{html.escape(claim['claim'])}<br><small>{html.escape(claim['where'])}</small>"
                cells = "".join(_cell(frame, pages) for frame in own)
                rows.append((_rank(*own), f"<tr><td>{what}</td>{cells}</tr>"))
        ordered = [row for _, row in sorted(rows, key=lambda item: item[0])]
        heads = ("Claim", "On the papers' data", "On digits, in small")
        waiting = f"<p>{len(claims) - len(rows)} of {len(claims)} claims wait for results.</p>"
        parts.append(f"<h3>{html.escape(paper)}</h3>{ruled(heads, ordered, paper, _CLAIMS) if rows else ''}{waiting}")
    return Html("".join(parts))


def _rank(*frames: pd.DataFrame) -> tuple[int, ...]:
    """Disagreements first, those on the papers' data before others."""
    order = list(WORDS)
    return tuple(min((order.index(outcome) for outcome in frame["outcome"]), default=len(order)) for frame in frames)


def _cell(rows: pd.DataFrame, pages: Mapping[str, str]) -> str:
    """Write what studies say of a claim: how many for and against, then each with its effect."""
    if not len(rows):
        return '<td class="nothing">not yet run</td>'
    order = list(WORDS)
    counts = rows["outcome"].value_counts()
    found = [(WORDS[outcome], counts[outcome]) for outcome in order if outcome in counts]
    words = listed([f"{word} ({count})" if len(rows) > 1 else word for word, count in found])
    ordered = rows.sort_values("outcome", key=lambda column: column.map(order.index), kind="stable")
    lines = [_line(row, pages) for row in ordered.to_dict("records")]
    shown = "".join(lines[:_MOST_SHOWN])
    if lines[_MOST_SHOWN:]:
        shown += f"<details><summary>{len(lines) - _MOST_SHOWN} more</summary>{''.join(lines[_MOST_SHOWN:])}</details>"
    state = _CLASSES.get(str(counts.index[0]), "") if len(counts) == 1 else "boundary"
    return f'<td class="{state}"><strong>{words}</strong>{shown}</td>'


def _line(row: Mapping[Any, Any], pages: Mapping[str, str]) -> str:
    place = html.escape(str(row["panel"]))
    if row["study"] in pages:
        place = f'<a href="{html.escape(pages[row["study"]])}">{place}</a>'
    effect = " ".join(filter(None, (row["outcome"], ledgers.effect(row))))
    return f"<br><small>{html.escape(effect)}, n = {row['n']}; {place}; {html.escape(row['words'])}</small>"


def addresses(names: Iterable[str]) -> dict[str, str]:
    """Find the indexes of studies' pages, as a page in the folder `reports` links to them.

    Parameters
    ----------
    names : iterable of str
        Names of studies.
    """
    folder = trees.folder_above("reports") or Path("reports")
    found = {path.parent.name: quote(path.relative_to(folder).as_posix()) for path in folder.glob("*/*/index.html")}
    return {name: found[name] for name in names if name in found}
