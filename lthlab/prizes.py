"""Verdicts of a study as HTML: what tickets win in every panel, what decided, and what would change it."""

import html
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lthlab import results, strokes, verdicts
from lthlab.contrasts import MASKS
from lthlab.markup import Html, download, found_out, level_of, ruled, signed, slug
from lthlab.sections import Verdicts
from lthlab.verdicts import MARKS, READINGS, Condition, Verdict

WORDS = {
    "①": "sparse enough",
    "②": "beats SDT",
    "③": "beats RR",
    "④": "dense, same lr",
    "⑤": "dense, best lr",
}
"""Ma's conditions in few words; the last two are about accuracy similar to that of dense networks."""
_SHORT = 30
_WIDE = 36
_CLASSES = {
    "insufficient evidence": "insufficient", "jackpot": "yes", "secondary prize": "yes", "none": "no",
    "supports": "yes", "contradicts": "no", "undecided": "boundary", "no evidence": "insufficient",
    "inside": "yes", "outside": "no", "not comparable": "insufficient", "not yet run": "insufficient",
}  # fmt: skip
"""Classes of the style sheet by state."""
_QUESTIONS = {
    "jackpot": "Jackpot\nat any level",
    "secondary prize": "Secondary prize\nat any level",
    "prefers small lr": "Prefers small lr\nbelow η* − from η*",
    "prefers IMP": "Prefers IMP\nIMP − OMP masks",
}
_SYMBOLS = {"yes": "✓", "no": "×", "boundary": "△", "insufficient evidence": "?"}


@dataclass(frozen=True)
class Judged:
    """A panel and what its tickets win.

    Attributes
    ----------
    panel : str
        Its name, with the kind of tickets where a panel has several.
    frame : DataFrame
        Its trainings.
    verdicts : tuple of Verdict
        In the study's reading, then in the other; tickets, then rewinding ones.
    problem : str
        Why it cannot be judged; '' if it can.
    """

    panel: str
    frame: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    problem: str = ""

    @property
    def tickets(self) -> list[str]:
        """Kinds of tickets that are judged."""
        return list(dict.fromkeys(found.rules.ticket for found in self.verdicts))

    def of(self, ticket: str, reading: str) -> list[Verdict]:
        """Choose the verdicts on a kind of ticket in a reading."""
        return [found for found in self.verdicts if (found.rules.ticket, found.rules.reading) == (ticket, reading)]


def judge(rules: Verdicts, frame: pd.DataFrame) -> list[Judged]:
    """Judge the tickets of a study in both readings, panel by panel.

    Tickets of one kind on masks of one method that differ otherwise, in the step at which weights were ranked, say, are
    judged apart, each as a panel. Tickets that are transferred to other data are not judged.

    Parameters
    ----------
    rules : lthlab.sections.Verdicts
        The section `verdicts` of the study.
    frame : DataFrame
        Its tidy frame.
    """
    trained = frame[(frame["what"] == "train") & (frame["ticket"] != "search")]
    return [
        _judged(rules, name + words, own, tickets)
        for name, rows in results.panels(trained)
        for words, own, tickets in _forms(rows)
    ]


def _judged(rules: Verdicts, name: str, rows: pd.DataFrame, tickets: Sequence[str]) -> Judged:
    options = rules.model_dump()
    readings = sorted(READINGS, key=lambda reading: reading != options["reading"])
    try:
        judged = [
            verdict
            for ticket in tickets
            for reading in readings
            for verdict in verdicts.judge(rows, ticket=ticket, **options | {"reading": reading})
        ]
    except ValueError as error:
        return Judged(name, rows, (), str(error))
    return Judged(name, rows, tuple(judged), "" if tickets else "the study has neither LT nor WR")


def _forms(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Split a panel where tickets of one kind on masks of one method differ: words, rows, and which tickets these are.

    What does not differ stays together, so that methods can be compared.
    """
    rows = rows.reset_index(drop=True)
    masks, by = ([name for name in names if name in rows] for names in (MASKS, results.VARIANT))
    texts = rows[["method", *by]].map(str)
    told = {ticket: texts[rows["ticket"] == ticket] for ticket in ("LT", "WR")}
    tickets = [ticket for ticket, found in told.items() if len(found)]
    several = [ticket for ticket in tickets if told[ticket].drop_duplicates()["method"].duplicated().any()]
    if len(several) < len(tickets) or not tickets:
        yield "", rows, [ticket for ticket in tickets if ticket not in several]
    for ticket in several:
        words = strokes.variants(rows.loc[told[ticket].index])
        for _, same in told[ticket].groupby(by, sort=False):
            first, methods = same.iloc[0], same["method"].unique()
            alike = (texts[masks] == first[masks]).all(axis=1) & rows["method"].isin(methods)
            chosen = rows.index.isin(same.index) | (alike & (rows["ticket"] == "RR"))
            name = f"{ticket} on {' and '.join(methods)} masks"
            about = next(filter(None, words[same.index]), "")
            name += f" ({about})" if about else ""
            yield f", {name}", rows[chosen | rows["ticket"].isin(["SDT", "dense"])], [ticket]


def finding(judged: Sequence[Judged]) -> Html:
    """Say in a sentence per panel what the tickets win."""
    return found_out([_sentence(panel) for panel in judged] or ["Nothing was trained."])


def _sentence(judged: Judged) -> str:
    if not judged.verdicts:
        return f"{judged.panel}: cannot be judged: {judged.problem}."
    rules = judged.verdicts[0].rules
    own = judged.of(rules.ticket, rules.reading)
    words = [_award(method, [v for v in own if v.method == method]) for method in dict.fromkeys(v.method for v in own)]
    return f"{judged.panel}, {rules.ticket}: {'; '.join(words)} (tolerance {_tolerance(rules)})."


def _award(method: str, found: Sequence[Verdict]) -> str:
    counts = {verdict: sum(v.verdict == verdict for v in found) for verdict in dict.fromkeys(v.verdict for v in found)}
    prize = next((name for name in ("jackpot", "secondary prize") if name in counts), None)
    others = ", ".join(f"{name} at {count}" for name, count in counts.items() if name != prize)
    others += f" of {len(found)} levels" if others else ""
    if prize is None:
        return (
            f"no prize on {method} masks: {_failing(found)}"
            if set(counts) == {"none"}
            else f"no certain prize on {method} masks ({others})"
        )
    last = max((v for v in found if v.verdict == prize), key=lambda verdict: verdict.sparsity)
    gap = last["③"]
    text = f"{prize} on {method} masks at {counts[prize]} of {len(found)} levels, the sparsest {level_of(vars(last))}"
    text += f", where the best {last.rules.ticket} minus the best RR is {_points(gap)} points"
    text += f" (n = {min(cell.n for cell in gap.cells)} replicates)"
    return text + (f"; {others}" if others else "")


def _failing(found: Sequence[Verdict]) -> str:
    """Name the conditions that fail at every level, or where there is none, at how many each fails."""
    failed = {mark: [v for v in found if v[mark].state == "no"] for mark in MARKS[:4]}  # ⑤ may fail for some prize
    always = [mark for mark, own in failed.items() if len(own) == len(found)]
    if not always:
        counts = ", ".join(f"{mark} at {len(own)}" for mark, own in failed.items() if own)
        return f"{counts} of {len(found)} levels fail"
    return " and ".join(f"{mark} fails at every level ({_shortfall(mark, found)})" for mark in always)


def _shortfall(mark: str, found: Sequence[Verdict]) -> str:
    """The range of what was found for a condition over levels, with the epochs where these are too few."""
    values = [v[mark].estimate for v in found]
    if mark != "①":
        ends = dict.fromkeys(signed(value, 1) for value in (min(values), max(values)))
        return f"{WORDS[mark]}: {' to '.join(ends)} points, needed {_needed(found[0][mark])}"
    ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
    return ", ".join(filter(None, (f"{' to '.join(ends)} % pruned", _too_few(found[0]))))


def _too_few(found: Verdict) -> str:
    """The epochs of the tickets where they are fewer than suffice."""
    epochs, wanted = found["①"].epochs, found.rules.epochs
    return f"{epochs} of {wanted} epochs" if epochs and wanted and epochs < wanted else ""


def _tolerance(rules: verdicts.Rules) -> str:
    return f"{rules.tolerance:g} points ({rules.source})"


def _epochs(rules: verdicts.Rules) -> str:
    known = verdicts.CRITERIA.get(rules.data)
    source = known.source if known and known.epochs == rules.epochs else "set"
    return f"{rules.epochs} epochs ({source})" if rules.epochs else "an unknown number of epochs"


def rules(judged: Sequence[Judged]) -> Html:
    """Say by which thresholds the panels are judged, and where these are from."""
    items = []
    for panel in judged:
        if not panel.verdicts:
            items.append(f"{panel.panel}: cannot be judged: {panel.problem}.")
            continue
        own = panel.verdicts[0].rules
        items.append(
            f"{panel.panel}: similar accuracy is within {_tolerance(own)}; a clear gap exceeds {own.gap:g} points "
            f"to RR, {own.sdt_gap:g} to SDT; sparsity of at least {own.min_sparsity:g} and {_epochs(own)} suffice; "
            f"{100 * own.confidence:g} % intervals of {own.draws} draws; reading '{own.reading}'."
        )
    return Html(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>")


def table(judged: Sequence[Judged]) -> Html:
    """Show the verdict of every method and level with the states of Ma's conditions, panel by panel."""
    return _each(judged, _table)


def _table(judged: Judged, ticket: str, reading: str) -> str:
    first, others = judged.of(ticket, reading), judged.of(ticket, _other(reading))
    rows = []
    for found, again in zip(first, others, strict=True):
        rows.append(_row(found, ""))
        if _states(found) != _states(again):
            rows.append(_row(again, f"\nif {again.rules.reading}"))
    differ = len(rows) - len(first)
    heads = ["Masks", "Level", "Verdict", *(f"{mark}\n{WORDS[mark]}" for mark in MARKS)]
    note = f"differs in {differ} row{'s' * (differ > 1)}, shown below" if differ else "gives the same"
    text = f"{ticket}: verdicts and conditions with the differences in points and their intervals. "
    text += f"The reading '{_other(reading)}' {note}."
    everything = verdicts.table([*first, *others])
    csv = download(
        everything, f"verdicts_{ticket}_{slug(judged.panel)}.csv", f"All numbers of these {len(first)} verdicts (CSV)"
    )
    return grid(heads, rows, text, f"Verdicts on {ticket}, {judged.panel}") + csv


def _row(found: Verdict, note: str) -> list[tuple[str, str]]:
    level = f"{found.level}\n{_left(found)} left" if found.level is not None else f"{_left(found)} left"
    means = "" if found.by_means == found.verdict else f"\nby means: {found.by_means}"
    cells = [("", found.method), ("", level), (found.verdict, f"{found.verdict}{means}{note}")]
    return cells + [(c.state, f"{c.state}\n{_difference(found, c, 1)}{_lacking(c)}") for c in found.conditions]


def reasons(judged: Sequence[Judged]) -> Html:
    """Show for each condition the cells that decided it, the interval, the threshold and what would change it."""
    return _each(judged, _reasons)


def _reasons(judged: Judged, ticket: str, reading: str) -> str:
    own = judged.of(ticket, reading)
    parts = []
    for method in dict.fromkeys(found.method for found in own):
        chosen = [found for found in own if found.method == method]
        rows = [
            [
                ("", f"{_left(found)} left" if found.level is None else f"{found.level}"),
                ("", f"{condition.mark} {WORDS[condition.mark]}"),
                (condition.state, condition.state),
                ("", _difference(found, condition, 2)),
                ("", _needed(condition)),
                ("", "\n".join(("", *map(str, condition.cells)))),
                ("", f"\n{condition.change}"),
            ]
            for found in chosen
            for condition in found.conditions
        ]
        heads = ["Level", "Condition", "State", "Difference (points)", "Needed", "Decided by", "What would change it"]
        label = f"What decided for {ticket} on {method} masks"
        table = grid(heads, rows, "", f"{label}, {judged.panel}")
        parts.append(f"<details><summary>{html.escape(label)}</summary>{table}</details>")
    items = "".join(f"<li>{html.escape(text)}</li>" for text in _warnings(own))
    return "".join(parts) + (f'<div class="warning">Doubtful for {ticket}:<ul>{items}</ul></div>' if items else "")


def _warnings(found: Sequence[Verdict]) -> Iterator[str]:
    """Warnings with the masks and levels that they are about; those on one learning rate are one."""
    marks: dict[str, set[str]] = {}
    places: dict[str, dict[str, list[str]]] = {}
    for verdict in found:
        level = f"{_left(verdict)} left" if verdict.level is None else str(verdict.level)
        for text in verdict.warnings:
            decided, _, place = text.rpartition(" decided by ")
            marks.setdefault(place, set()).update(decided)
            levels = places.setdefault(place, {}).setdefault(verdict.method, [])
            levels += [level] if level not in levels else []
    for text, methods in places.items():
        where = "; ".join(f"{method}, level {', '.join(levels)}" for method, levels in methods.items())
        decided = "".join(sorted(marks[text]))
        yield f"{decided + ' decided by ' if decided else ''}{text} ({where})"


def largest(judged: Sequence[Judged]) -> Html:
    """Show the largest level at which each condition and each prize holds, panel by panel."""
    return _each(judged, _largest)


def _largest(judged: Judged, ticket: str, reading: str) -> str:
    found = verdicts.largest([*judged.of(ticket, reading), *judged.of(ticket, _other(reading))])
    rows: dict[tuple[str, ...], list[str]] = {}
    for (method, how), cells in found.groupby(["method", "reading"], sort=False):
        held = {row["holds"]: row for row in cells.to_dict("records")}
        marks = [*MARKS, "jackpot", "secondary prize"]
        rows.setdefault((str(method), *(_level(held[mark]) for mark in marks)), []).append(str(how))
    heads = ["Masks", "Reading", *(f"{mark}\n{WORDS[mark]}" for mark in MARKS), "Jackpot", "Secondary prize"]
    label = f"Largest level at which each condition holds for {ticket}, {judged.panel}"
    lines = [
        [("", method), ("", how[0] if len(how) == 1 else "both"), *(("", text) for text in texts)]
        for (method, *texts), how in rows.items()
    ]
    return grid(heads, lines, f"{ticket}: largest level, and share of the prunable weights left there.", label)


def overview(judged: Sequence[Judged]) -> Html:
    """Sum up what tickets win and prefer in a table like Ma's Table 3, one row per network and data set."""
    rows, lines = [], []
    for panel in judged:
        for ticket in panel.tickets:
            found = verdicts.overview(panel.frame, panel.of(ticket, panel.verdicts[0].rules.reading))
            lines.append(found.assign(panel=panel.panel, ticket=ticket))
            answers = {name: own.to_dict("records") for name, own in found.groupby("question", sort=False)}
            place = f"{broken(panel.panel)}\n{ticket}, preferences at {_share(found['sparsity'].iloc[-1])} left"
            rows.append([("", place), *(_answer(answers[name]) for name in _QUESTIONS)])
    heads = ["Network and data", *_QUESTIONS.values()]
    text = "In the form of Ma's Table 3: ✓ yes, × no, △ boundary, ? insufficient evidence; differences in points."
    shown = grid(heads, rows, text, "Summary of all panels, as Ma's Table 3") if rows else ""
    csv = download(pd.concat(lines), "table_3.csv", "All numbers of this summary (CSV)") if rows else ""
    left_out = [f"{panel.panel}: cannot be judged: {panel.problem}." for panel in judged if panel.problem]
    return Html(shown + csv + "".join(f'<p class="warning">{html.escape(words)}</p>' for words in left_out))


def _answer(rows: Sequence[dict[Any, Any]]) -> tuple[str, str]:
    """A cell of Table 3: the state for the first method, then in small what it rests on, and the other methods."""
    lines: list[str] = []
    for row in rows:
        known, prize = not math.isnan(row["estimate"]), not row["question"].startswith("prefers")
        parts = ["" if pd.isna(row["method"]) else f"{row['method']} masks"]
        parts.append(f"{_share(row['sparsity'])} left" if prize and row["state"] != "no" else "")
        parts.append(_interval(row["estimate"], row["low"], row["high"], 1) if known else "")
        parts.append(
            f"n = {row['n']}" if known else "" if pd.isna(row["missing"]) else broken(f"not known: {row['missing']}")
        )
        words = f"{_SYMBOLS[row['state']]} {row['state']}"
        lines += [f"{parts[0]}: {words}", *parts[1:]] if lines else [words, *parts]
    return rows[0]["state"], "\n".join(filter(None, lines))


# --- parts --------------------------------------------------------------------------------------------------------


def _each(judged: Sequence[Judged], show: Callable[[Judged, str, str], str]) -> Html:
    parts = []
    for panel in judged:
        parts.append(f"<h3>{html.escape(panel.panel)}</h3>")
        if panel.problem:
            parts.append(f'<p class="warning">{html.escape(f"Cannot be judged: {panel.problem}.")}</p>')
        for ticket in panel.tickets:
            reading = next(v.rules.reading for v in panel.verdicts if v.rules.ticket == ticket)
            parts.append(show(panel, ticket, reading))
    return Html("".join(parts))


def grid(heads: Iterable[str], rows: Iterable[Sequence[tuple[str, str]]], caption: str, label: str) -> str:
    """Write a table of cells that are a state and a text, whose lines after the first are small.

    Parameters
    ----------
    heads : iterable of str
        Texts of the columns.
    rows : iterable
        Cells: a state, which gives the colour ('' has none), and a text.
    caption, label : str
        Text above the table, and its name for readers who do not see it.
    """
    parts = [html.escape(text).partition("\n") for text in heads]
    body = (f"<tr>{''.join(_cell(state, text) for state, text in row)}</tr>" for row in rows)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return ruled((first + _small(rest) for first, _, rest in parts), body, label, above=above)


def broken(text: str) -> str:
    """Break a long text into lines that keep a table narrow, and the name of a panel after its network."""
    parts = text.replace(" on ", "\non ", 1).split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, _WIDE, break_long_words=False))


def _cell(state: str, text: str) -> str:
    first, _, rest = html.escape(text).partition("\n")
    if not state:
        return f"<td>{first}{_small(rest)}</td>"
    return f'<td class="{_CLASSES.get(state, state)}"><strong>{first.replace(" ", "<br>")}</strong>{_small(rest)}</td>'


def _small(text: str) -> str:
    return "".join(f"<br><small>{line}</small>" for line in text.split("\n") if line)


def _other(reading: str) -> str:
    return next(other for other in READINGS if other != reading)


def _states(found: Verdict) -> tuple[str, ...]:
    return (found.verdict, *(condition.state for condition in found.conditions))


def _interval(estimate: float, low: float, high: float, decimals: int = 2) -> str:
    mean, *ends = (signed(value, decimals) for value in (estimate, low, high))
    return mean if math.isnan(low) else f"{mean} [{', '.join(ends)}]"


def _points(condition: Condition, decimals: int = 1) -> str:
    known = not math.isnan(condition.estimate)
    return _interval(condition.estimate, condition.low, condition.high, decimals) if known else "not known"


def _difference(found: Verdict, condition: Condition, decimals: int) -> str:
    if condition.mark != "①":
        return _points(condition, decimals)
    return "\n".join(filter(None, (f"{condition.estimate:.3g} % pruned", _too_few(found))))


def _lacking(condition: Condition) -> str:
    """Name what a condition lacks where that is short; the tables below list all of it."""
    if not condition.missing:
        return ""
    short = len(condition.missing) == 1 and len(condition.missing[0]) <= _SHORT
    return "\n" + (condition.missing[0] if short else "what is lacking is listed\nunder “What decided”")


def _needed(condition: Condition) -> str:
    if condition.mark == "①":
        return f"at least {condition.threshold:g} % pruned"
    words = "more than" if condition.mark in ("②", "③") else "at least"
    return f"{words} {condition.threshold:+g}".replace("-", "−")


def _left(found: Verdict) -> str:
    return _share(found.sparsity)


def _share(sparsity: float) -> str:
    """Share of the prunable weights that is left."""
    return f"{100 * (1 - sparsity):.3g} %"


def _level(row: dict[Any, Any]) -> str:
    if pd.isna(row["sparsity"]):
        return "at none"
    left = f"{100 * (1 - row['sparsity']):.3g} % left"
    return left if pd.isna(row["level"]) else f"{row['level']}\n{left}"
