"""The papers' numbers and claims beside ours: as HTML, as plain text, and as plain values."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lthlab import comparison, evidence, plots
from lthlab.markup import Html, download, drawing, found_out, listed, signed
from lthlab.prizes import broken, grid
from lthlab.published import PAPERS
from lthlab.spec import Config
from lthlab.store import Store

_DECIMALS = {"%": 1, "% train accuracy": 1, "pp": 2, "fraction": 3, "million": 2, "weight units": 4}
_UNITS = {"%": " %", "pp": " points", "million": " million", "fraction": "", "weight units": "", "verdict": ""}
_MOST_NAMED, _SMALL, _WIDE = 3, 0.5, 30
HEADS = {
    "outside": "Numbers outside the reach of ours",
    "undecided": "Numbers that ours leave open",
    "inside": "Numbers inside the reach of ours",
}
"""What outcomes of numbers are called."""
CLAIM_HEADS = {
    "contradicts": "Claims that are contradicted",
    "undecided": "Claims that are left open",
    "supports": "Claims that are supported",
}
"""What outcomes of claims are called."""


def of(store: Store, config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare one study with the papers.

    Parameters
    ----------
    store : Store
        Where its results are; a study that was never run has none.
    config : Config
        The study.

    Returns
    -------
    tuple of DataFrame
        What `lthlab.comparison.values` and `lthlab.comparison.claims` return.
    """
    sources = evidence.load(store, [config] if config.name in store.studies() else [])
    return comparison.values(sources), comparison.claims(sources)


def plain(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """Write the rows of a frame as plain values, None where there is none."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


# --- in words -----------------------------------------------------------------------------------------------------


def _paper(row: dict[Any, Any]) -> str:
    return f"{row['paper']}, {row['where']}"


def _what(row: dict[Any, Any]) -> str:
    return f"{row['quantity']} {row['condition']}".strip()


def _value(row: dict[Any, Any], name: str, unit: bool = True) -> str:
    value = row[name]
    if value is None or isinstance(value, str) or pd.isna(value):
        return "" if value is None or not isinstance(value, str) else value
    return f"{value:.{_decimals(row)}f}" + (_UNITS[row["unit"]] if unit else "")


def _decimals(row: dict[Any, Any]) -> int:
    return _DECIMALS.get(row["unit"], 2)


def _ours(row: dict[Any, Any]) -> str:
    """Ours with its interval, n, and how far it reaches."""
    text = _value(row, "ours")
    if not pd.isna(row["low"]):
        text += f" [{_value(row, 'low', False)}, {_value(row, 'high', False)}]"
    return f"{text}, n = {row['n']}" if not pd.isna(row["n"]) else text


def _difference(row: dict[Any, Any]) -> str:
    return "" if pd.isna(row["difference"]) else signed(row["difference"], _decimals(row))


def effect(row: Mapping[Any, Any]) -> str:
    """Write the effect of an answer to a claim with its interval and unit, '' where there is none."""
    if pd.isna(row["effect"]):
        return ""
    decimals = 1 if row["unit"] and abs(row["effect"]) >= _SMALL else 2
    ends = "" if pd.isna(row["low"]) else f" [{signed(row['low'], decimals)}, {signed(row['high'], decimals)}]"
    return signed(row["effect"], decimals) + ends + (f" {row['unit']}" if row["unit"] else "")


def _ordered(numbers: pd.DataFrame, outcome: str) -> list[dict[Any, Any]]:
    """Numbers of an outcome: dense networks first and counts of parameters last, then by how far they are apart."""
    own = numbers[numbers["outcome"] == outcome]
    order = 1 - own["quantity"].str.startswith("dense").astype(int) + (own["quantity"] == "parameters")
    apart = -pd.to_numeric(own["difference"]).abs().fillna(-1)
    return own.assign(order=order, apart=apart).sort_values(["order", "apart"], kind="stable").to_dict("records")


def _asked(told: pd.DataFrame, outcome: str) -> list[dict[Any, Any]]:
    return told[told["outcome"] == outcome].to_dict("records")


def finding(numbers: pd.DataFrame, told: pd.DataFrame) -> Html:
    """Say how many numbers and claims agree, disagree and are open, and which numbers are furthest apart.

    Parameters
    ----------
    numbers, told : DataFrame
        What `lthlab.comparison.values` and `lthlab.comparison.claims` return.
    """
    sentences = [_counted(numbers, "comparisons of numbers", ("outside", "undecided", "inside"))]
    far = [row for row in _ordered(numbers, "outside") if row["unit"] in ("%", "pp")][:_MOST_NAMED]
    if far:
        items = [f"{_what(row)} in {_paper(row)}, {_difference(row)} points" for row in far]
        sentences.append(f"Furthest from the papers: {'; '.join(items)}.")
    sentences += _by_switch(numbers)
    sentences.append(_counted(told, "answers to claims", ("contradicts", "undecided", "supports")))
    ids = told[told["outcome"].isin(["contradicts", "undecided", "supports"])]["id"].nunique()
    sentences.append(f"{ids} of {told['id'].nunique()} claims have an answer, one for each network and data set.")
    return found_out(sentences)


def _by_switch(numbers: pd.DataFrame) -> list[str]:
    """Count what is inside and outside with a switch and without it, where numbers were compared both ways."""
    place = ["seed", "where", "network", "data", "quantity", "condition"]
    known = numbers[numbers["outcome"].isin(["inside", "outside"]) & numbers["switches"].notna()]
    sentences = []
    for switch in sorted({text for row in known["switches"] for text in row.split("; ")} - {""}):
        differs = known["switches"].str.split("; ").map(lambda texts, switch=switch: switch in texts)
        both = differs.groupby([known[name] for name in place]).transform("nunique") == 2
        sides = [known[both & (differs == side)]["outcome"] for side in (True, False)]
        if len(sides[0]):
            words = [f"{(side == 'inside').sum()} inside and {(side == 'outside').sum()} outside" for side in sides]
            sentences.append(f"{switch}: with it {words[0]}, without {words[1]}.")
    return sentences


def _counted(frame: pd.DataFrame, what: str, outcomes: Sequence[str]) -> str:
    words = {"contradicts": "contradict", "supports": "support"}
    counts = [(int((frame["outcome"] == name).sum()), words.get(name, name)) for name in outcomes]
    whole = sum(count for count, _ in counts)
    return f"{whole} {what}: {listed([f'{count} {name}' for count, name in counts])}."


# --- HTML ---------------------------------------------------------------------------------------------------------


def dense(numbers: pd.DataFrame) -> Html:
    """Show the accuracies of dense networks, to which all others are relative.

    Parameters
    ----------
    numbers : DataFrame
        What `lthlab.comparison.values` returns.
    """
    own = numbers[numbers["quantity"].isin(["dense test accuracy", "dense validation accuracy"])]
    rows = [row for row in own.to_dict("records") if row["outcome"] in ("outside", "undecided", "inside")]
    return _numbers(rows, "Dense networks, beside the papers'", "No dense network of the papers' recipes is trained.")


def table(numbers: pd.DataFrame, outcome: str) -> Html:
    """Show the numbers of one outcome, those of dense networks first, then the largest differences.

    Parameters
    ----------
    numbers : DataFrame
        What `lthlab.comparison.values` returns.
    outcome : str
        One of `lthlab.comparison.OUTCOMES`.
    """
    return _numbers(_ordered(numbers, outcome), HEADS[outcome], f"There are no {HEADS[outcome].lower()}.")


def _numbers(rows: Sequence[dict[Any, Any]], label: str, nothing: str) -> Html:
    if not rows:
        return Html(f'<p class="nothing">{html.escape(nothing)}</p>')
    cells = []
    for row in [{name: None if pd.isna(item) else item for name, item in row.items()} for row in rows]:
        what = f"{row['quantity']} {row['condition']}, {row['network']} on {row['data']}".replace(" ,", ",")
        theirs = _value(row, "value"), *_wrapped(what), _paper(row)
        ours = _value(row, "ours"), _interval(row), row["study"] or ""
        state = str(row["outcome"])
        verdict = state, _difference(row), *_wrapped(row["note"])
        switches = (row["switches"] or "").split("; ") if row["switches"] else []
        differ = f"{len(switches) or 'none'}", *(line for switch in switches for line in _wrapped(switch))
        texts = ["\n".join(filter(None, lines)) for lines in (theirs, ours, verdict, differ)]
        cells.append([("", texts[0]), ("", texts[1]), (state, texts[2]), ("", texts[3])])
    heads = ["The paper's", "Ours\n95 % interval, reach", "Ours − paper's", "Switches that differ"]
    frame = pd.DataFrame(rows)[list(comparison.COLUMNS)]
    csv = download(frame, f"numbers_{label.split()[1]}.csv", f"All {len(rows)} rows (CSV)")
    return Html(grid(heads, cells, "", label) + csv)


def _interval(row: dict[Any, Any]) -> str:
    if row["n"] is None:
        return ""
    ends = [f"n = {row['n']}"]
    if row["low"] is not None:
        ends.append(f"[{_value(row, 'low', False)}, {_value(row, 'high', False)}]")
        ends.append(f"reach {_value(row, 'reach_low', False)} to {_value(row, 'reach_high', False)}")
    return "\n".join(ends)


def _wrapped(text: Any) -> list[str]:
    return textwrap.wrap(text, _WIDE, break_long_words=False) if text else []


def statements(told: pd.DataFrame, outcome: str) -> Html:
    """Show the answers to claims of one outcome, claim by claim.

    Parameters
    ----------
    told : DataFrame
        What `lthlab.comparison.claims` returns.
    outcome : str
        One of `lthlab.predicates.OUTCOMES`.
    """
    rows = _asked(told, outcome)
    if not rows:
        return Html(f'<p class="nothing">There are no {CLAIM_HEADS[outcome][0].lower()}{CLAIM_HEADS[outcome][1:]}.</p>')
    cells, before = [], None
    for row in rows:
        claim = "\n".join((_paper(row), *_wrapped(row["claim"]))) if row["id"] != before else ""
        study = row["study"] if isinstance(row["study"], str) else ""
        place = "\n".join(filter(None, (broken(row["panel"]), *_wrapped(row["elsewhere"]), study)))
        words = [line for text in row["words"].split("; ") for line in _wrapped(text)]
        size = "\n".join(filter(None, (outcome, effect(row))))
        cells.append([("", claim), (outcome, size), ("", "\n".join((f"n = {row['n']}", *words))), ("", place)])
        before = row["id"]
    csv = download(pd.DataFrame(rows), f"claims_{outcome}.csv", f"All {len(rows)} rows (CSV)")
    return Html(grid(["Claim", "Effect", "What was compared", "Where"], cells, "", CLAIM_HEADS[outcome]) + csv)


def lacking(numbers: pd.DataFrame, told: pd.DataFrame) -> Html:
    """List what is not yet run, folded, and what cannot be compared.

    Parameters
    ----------
    numbers, told : DataFrame
        What `lthlab.comparison.values` and `lthlab.comparison.claims` return.
    """
    parts = []
    for paper, (count, claims) in _not_run(numbers, told).items():
        own = numbers[(numbers["paper"] == paper) & (numbers["outcome"] == "not yet run")]
        lines = [f"{row['where']}, {row['network']} on {row['data']}: {_what(row)}" for row in own.to_dict("records")]
        asked = told[(told["paper"] == paper) & (told["outcome"] == "not yet run") & told["study"].isna()]
        lines += [f"{row['where']}: {row['claim']}" for row in asked.to_dict("records")]
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        words = f"{paper}: {count} numbers and {claims} claims"
        parts.append(f"<details><summary>{html.escape(words)}</summary><ul>{items}</ul></details>")
    odd = numbers[numbers["outcome"] == "not comparable"].drop_duplicates(["paper", "where", "note"])
    notes = [f"{_paper(row)}: {row['note']}." for row in odd.to_dict("records")]
    return Html("".join(parts) + "".join(f"<p>Cannot be compared: {html.escape(note)}</p>" for note in notes))


def _not_run(numbers: pd.DataFrame, told: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Numbers and claims of each paper that no training bears on yet."""
    absent = [frame[(frame["outcome"] == "not yet run")] for frame in (numbers, told[told["study"].isna()])]
    counts = [frame.groupby("paper").size() for frame in absent]
    return {
        paper: (int(counts[0].get(paper, 0)), int(counts[1].get(paper, 0)))
        for paper in PAPERS.values()
        if any(paper in count for count in counts)
    }


def figure(numbers: pd.DataFrame) -> Html:
    """Draw ours against the papers' accuracies, with caption, and in words.

    Parameters
    ----------
    numbers : DataFrame
        What `lthlab.comparison.values` returns.
    """
    from matplotlib.figure import Figure

    own = numbers[(numbers["unit"] == "%") & pd.to_numeric(numbers["ours"], errors="coerce").notna()]
    if own.empty:
        return Html('<p class="nothing">There is no accuracy to draw beside a paper\'s.</p>')
    columns = {name: pd.to_numeric(own[name]) for name in ("value", "ours", "low", "high")}
    kinds = own["quantity"].str.replace(" test accuracy", "").str.replace(" validation accuracy", "")
    rows = own.assign(**columns, kind=kinds)
    n = sorted(set(own["n"]))
    sample = " to ".join(dict.fromkeys((str(n[0]), str(n[-1]))))
    ax = Figure(figsize=(5.2, 4.0), layout="constrained").subplots()
    plots.ours_by_papers(rows, ax).legend(frameon=False, loc="best", fontsize=8)
    words = (
        f"Accuracies of ours against the papers', {len(rows)} points, those with several ways of ours too: means over "
        f"n = {sample} replicates; bars are 95 % intervals of the mean, with a pooled spread; one replicate has none."
    )
    items = [f"{_what(row)} {_value(row, 'value')}, ours {_value(row, 'ours')}" for row in rows.to_dict("records")]
    shown = drawing(ax, f"Ours against the papers': {'; '.join(items[:40])} (n = {sample} replicates).")
    return Html(f'<figure style="max-width:34rem">{shown}<figcaption>{html.escape(words)}</figcaption></figure>')


# --- plain text ---------------------------------------------------------------------------------------------------


def text(name: str, numbers: pd.DataFrame, told: pd.DataFrame, whole: bool = False) -> str:
    """Write a comparison as plain text, disagreements first.

    Parameters
    ----------
    name : str
        Of the study.
    numbers, told : DataFrame
        What `lthlab.comparison.values` and `lthlab.comparison.claims` return.
    whole : bool, optional
        Whether what is not yet run is listed, not only counted.
    """
    lines = [f"{name}, beside what the papers print and claim"]
    for outcome in ("outside", "contradicts", "inside", "supports", "undecided"):
        rows = _ordered(numbers, outcome)
        lines += [f"\n{HEADS.get(outcome)} ({len(rows)})"] * bool(rows)
        lines += [line for row in rows for line in _number_lines(row)]
        answers = _asked(told, outcome)
        lines += [f"\n{CLAIM_HEADS.get(outcome)} ({len(answers)})"] * bool(answers)
        lines += [line for row in answers for line in _claim_lines(row)]
    lines.append("\nNot yet run")
    lines += [
        f"  {paper}: {count} numbers, {claims} claims" for paper, (count, claims) in _not_run(numbers, told).items()
    ]
    if whole:
        absent = numbers[numbers["outcome"].isin(["not yet run", "not comparable"])].to_dict("records")
        lines += [f"  {_paper(row)}: {row['network']} on {row['data']}, {_what(row)}" for row in absent]
        open_ = told[(told["outcome"] == "not yet run") & told["study"].isna()].to_dict("records")
        lines += [f"  {_paper(row)}: {row['claim']}" for row in open_]
    return "\n".join(lines)


def _number_lines(row: dict[Any, Any]) -> list[str]:
    ours = f", ours {_ours(row)}" if _ours(row) else ""
    apart = f" ({_difference(row)})" if _difference(row) else ""
    head = f"  {_paper(row)}, {row['network']} on {row['data']}, {_what(row)}: {_value(row, 'value')}{ours}{apart}"
    more = [f"differs: {row['switches']}" if isinstance(row["switches"], str) and row["switches"] else "", row["note"]]
    return [head, *(f"    {item}" for item in more if isinstance(item, str) and item)]


def _claim_lines(row: dict[Any, Any]) -> list[str]:
    where = row["panel"] + (f" ({row['elsewhere']})" if row["elsewhere"] else "")
    found = ", ".join(filter(None, (effect(row), f"n = {row['n']}", row["words"])))
    return [f"  {_paper(row)}: {row['claim']}", f"    {where}: {found}"]
