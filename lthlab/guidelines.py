"""Ma's guideline (section 3.2) against what a store holds: what each panel shows, and states by rules that are said.

A panel is judged at the largest sparsity that all its methods have. With ε the loss of accuracy that counts as
similar on its data set, an advantage is *there* if its whole interval is above zero, *absent* if the interval reaches
at most ε, and *open* else. No correction is made for the number of panels.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lthlab import plots, results, verdicts
from lthlab.markup import Html, download, drawing, found_out, signed
from lthlab.parts import NETS
from lthlab.prizes import Judged, broken, grid, judge
from lthlab.sections import Verdicts
from lthlab.store import Store

STATEMENTS = {
    1: "On small data sets, IMP is better than OMP in networks with residual connections; without these it has no "
    "advantage.",
    2: "On small data sets, tickets prefer small learning rates in networks with residual connections; without these "
    "they do not.",
    3: "The more redundant a network is, the larger is the sparsity up to which it has tickets.",
    4: "Where large learning rates are preferred, the initial weights make no difference.",
}
"""What Ma's guideline says, in our words."""
WITH, WITHOUT = "with residual connections", "without residual connections"
SHOWS = ("supports", "contradicts", "undecided", "no evidence")
SMALL = 75_000
"""Most training images of a small data set: CIFAR's 50,000 are few to Ma, Tiny-ImageNet's 100,000 are not (3.1)."""
FEWEST = 5
"""Panels without which a rank correlation has neither interval nor state."""
_NOTES = {
    1: "In Ma's own Table 3, ResNet-18 on CIFAR-10 does not prefer IMP, though it has residual connections.",
    3: "Ma's section 3.1 counts VGG-16 among the networks with secondary prizes at sparsities from 0.945; Table 3 and "
    "the same section say that it has none.",
}
_PLAIN = re.compile(r"lenet_300_100|(vgg|conv)\d+|mobilenet_v1")


def others(store: Store, study: str) -> list[Judged]:
    """Judge the panels of all other studies in a store that can be judged, each by its own section `verdicts`.

    Parameters
    ----------
    store : Store
        Where they are.
    study : str
        The study that is left out.
    """
    found: list[Judged] = []
    for name in store.studies():
        frame = pd.DataFrame() if name == study else results.load(store, name)
        if len(frame):
            rules = store.study(name).get("document", {}).get("verdicts", {})
            found += [panel for panel in judge(Verdicts.model_validate(rules), frame) if panel.verdicts]
    return found


def connections(network: str, shortcut: str | None) -> str | None:
    """Tell whether a network has residual connections: `WITH`, `WITHOUT`, or None where that is not known.

    Parameters
    ----------
    network : str
        Its name.
    shortcut : str or None
        'A', 'B' or 'none', of networks that have such a field; None also where it was not noted.
    """
    if "shortcut" in NETS.get(network, ()):
        return {"A": WITH, "B": WITH, "none": WITHOUT}.get(str(shortcut))
    if re.fullmatch(r"resnet\d+", network):
        return WITH
    return WITHOUT if _PLAIN.fullmatch(network) else None


def evidence(judged: Sequence[Judged]) -> pd.DataFrame:
    """Collect what panels show about each statement.

    Parameters
    ----------
    judged : sequence of Judged
        Panels, from `lthlab.prizes.judge`. Of panels with the same trainings the first counts; tickets on masks of
        weights that were ranked before the end, or with imposed counts per layer, do not, since Ma has none.

    Returns
    -------
    DataFrame
        One row per statement and panel: statement (1 to 4), study, panel, connections (`WITH` or `WITHOUT`), shows (one
        of `SHOWS`), estimate, low and high in points, n (replicates), method, sparsity, tolerance in points, note. For
        statement 3, redundancy is the number of parameters of the dense network per training image, and sparsity the
        largest with a ticket (① to ④ hold for LT in the study's reading), 0 where it is certain that there is none
        at any sparsity at which ① allows one;
        by_means is what the means alone say.
    """
    rows: list[dict[str, Any]] = []
    seen: list[set[str]] = []
    for panel in judged:
        keys = set(panel.frame.get("key", ()))
        if not _usual(panel.frame) or (keys and any(keys <= others for others in seen)):
            continue
        seen.append(keys)
        rows += _shown(panel)
    columns = [
        "statement", "study", "panel", "connections", "shows", "estimate", "low", "high", "n", "method", "sparsity",
        "tolerance", "redundancy", "by_means", "note",
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=columns).astype({"n": "Int64"})


def _usual(frame: pd.DataFrame) -> bool:
    """Whether masks are those of weights at the end of training, ranked as usual."""
    masked = frame[frame["ticket"] == "LT"]
    if "layer_counts" in masked and masked["layer_counts"].notna().any():
        return False
    if not {"prune_at", "find_epochs"} <= set(masked):
        return True
    at = masked.dropna(subset="prune_at")
    whole = at["prune_at"] == at["find_epochs"].map("{:.0f}ep".format)
    return bool((whole | at["prune_at"].str.startswith("best")).all())


def _shown(panel: Judged) -> list[dict[str, Any]]:
    """What a panel shows about the four statements."""
    first = panel.frame.iloc[0]
    about: dict[str, Any] = {"study": first.get("study"), "panel": panel.panel}
    about["connections"] = connections(str(first.get("network")), first.get("shortcut"))
    if "LT" not in panel.tickets:
        nothing = {"shows": "no evidence", "note": panel.problem or "there are no LT"}
        return [{"statement": number} | about | nothing for number in STATEMENTS]
    found = panel.of("LT", panel.verdicts[0].rules.reading)
    tolerance = found[0].rules.tolerance
    about["tolerance"] = tolerance
    answers = verdicts.overview(panel.frame, found)
    small = answers[answers["question"] == "prefers small lr"].sort_values("method", key=lambda names: names != "IMP")
    imp, lr = answers[answers["question"] == "prefers IMP"].to_dict("records")[0], small.to_dict("records")[0]
    parts = {
        1: _advantage(about, imp, first),
        2: _advantage(about, lr, first),
        3: _redundant(panel, found),
        4: _alike(panel.frame, lr, tolerance),
    }
    return [{"statement": number} | about | part for number, part in parts.items()]


def _advantage(about: dict[str, Any], row: dict[Any, Any], first: "pd.Series[Any]") -> dict[str, Any]:
    """Whether an advantage is there where the guideline says so, and only there."""
    shown = {name: row[name] for name in ("estimate", "low", "high", "n", "method", "sparsity")}
    images = first.get("train_size", math.nan)
    if images > SMALL:
        note = f"no small data set: {images:.0f} training images"
    elif about["connections"] is None:
        note = "it is not known whether the network has residual connections"
    elif pd.isna(row["low"]):
        note = f"not known: {row['missing']}"
    else:
        there = True if row["low"] > 0 else False if row["high"] <= about["tolerance"] else None
        expected = about["connections"] == WITH
        return shown | {"shows": "undecided" if there is None else SHOWS[there != expected]}
    return shown | {"shows": "no evidence", "note": note}


def _redundant(panel: Judged, found: Sequence[verdicts.Verdict]) -> dict[str, Any]:
    """Largest sparsity with a ticket, and parameters per training image."""
    dense = panel.frame[panel.frame["ticket"] == "dense"]
    sizes = [dense[name].max() if name in dense else math.nan for name in ("parameters", "train_size")]
    row = {"redundancy": sizes[0] / sizes[1], "n": dense["replicate"].nunique()}
    eligible = [verdict for verdict in found if verdict["①"].state != "no"]
    if not eligible:
        note = f"nothing was looked for: ① asks for {found[-1]['①'].change}"
        return row | {"shows": "no evidence", "note": note}
    states = {verdict.sparsity: set[str]() for verdict in eligible}
    for verdict in eligible:
        states[verdict.sparsity].add(verdict.ticket)
    won = [sparsity for sparsity, own in states.items() if "yes" in own]
    open_ = [sparsity for sparsity, own in states.items() if "yes" not in own and own != {"no"}]
    by_means = [verdict.sparsity for verdict in found if verdict.by_means in ("jackpot", "secondary prize")]
    row["by_means"] = max(by_means, default=0.0)
    if math.isnan(row["redundancy"]):
        return row | {"shows": "no evidence", "note": "numbers of parameters or of training images are not known"}
    if not won and open_:
        note = f"no certain ticket; open at {len(open_)} of {len(states)} sparsities"
        return row | {"shows": "no evidence", "note": note}
    last, notes = max(won, default=0.0), []
    if last == max(states):
        notes.append("the largest sparsity that was judged")
    if beyond := [sparsity for sparsity in open_ if sparsity > last]:
        notes.append(f"open at {len(beyond)} larger")
    note = "; ".join(notes) if won else "certainly none"
    return row | {"sparsity": last, "shows": "bears", "note": note}


def _alike(frame: pd.DataFrame, row: dict[Any, Any], tolerance: float) -> dict[str, Any]:
    """LT minus RR at the large learning rate where both together do best, if tickets prefer large learning rates."""
    place = {"method": row["method"], "sparsity": row["sparsity"]}
    if row["state"] != "no":
        words = {
            "yes": "small learning rates are preferred",
            "boundary": "open which learning rates are preferred",
        }
        return place | {"shows": "no evidence", "note": words.get(row["state"], f"not known: {row['missing']}")}
    by = [name for name in ("find_lr", "eval_lr") if name in frame]
    own = frame[(frame["method"] == row["method"]) & np.isclose(frame["sparsity"], row["sparsity"])]
    own = own[own["ticket"].isin(["LT", "RR"]) & (own["eval_lr"] >= row["dense_lr"])]
    pairs = results.differences(own.assign(what="train"), "LT", "RR", by)
    if pairs.empty:
        return place | {"shows": "no evidence", "note": "lacks pairs of LT and RR"}
    cells = results.summarise(pairs, by)
    means = own.groupby([*by, "ticket"])["value"].mean().unstack("ticket").sum(axis=1)
    cell = cells.to_dict("records")[cells.set_index(by).index.map(means).argmax()]
    estimate, low, high = (100 * cell[name] for name in ("mean", "low", "high"))
    outside = low > tolerance or high < -tolerance
    shows = "supports" if -tolerance <= low and high <= tolerance else "contradicts" if outside else "undecided"
    note = f"at learning rate {cell['eval_lr']:g}" + ("; one replicate gives no interval" if cell["n"] < 2 else "")
    return place | {"estimate": estimate, "low": low, "high": high, "n": int(cell["n"]), "shows": shows, "note": note}


def state(shows: Iterable[str]) -> str:
    """Sum up what panels show.

    'supported' or 'contradicted' if panels do so and none says the opposite, 'mixed' if some do either; 'undecided' if
    none does; 'no evidence' without any panel that bears on it.
    """
    found = set(shows)
    if {"supports", "contradicts"} <= found:
        return "mixed"
    words = {"supports": "supported", "contradicts": "contradicted", "undecided": "undecided"}
    return next((words[name] for name in words if name in found), "no evidence")


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Give each statement, and each half of the first two, its state.

    A statement of two halves is 'supported' if both are, 'supported in part' if one is and the other is not
    contradicted; else what `state` makes of all its panels. Statement 3 is 'supported' or 'contradicted' if the rank
    correlation of redundancy and largest sparsity is above or below zero with p ≤ 0.05 (permutation test, two-sided;
    at least `FEWEST` panels), else 'undecided'.

    Parameters
    ----------
    found : DataFrame
        From `evidence`.

    Returns
    -------
    DataFrame
        statement, half (`WITH`, `WITHOUT` or 'all'), state, panels (that bear on it), and their numbers by what they
        show; for statement 3 correlation (Spearman's), low, high (95 %, Fieller et al. 1957) and p.
    """
    rows = []
    for number in STATEMENTS:
        own = found[found["statement"] == number]
        halves = [(half, own[own["connections"] == half]) for half in (WITH, WITHOUT)] if number < 3 else []
        parts = [_row(number, half, part["shows"]) for half, part in halves]
        whole = _row(number, "all", own["shows"])
        if number == 3:
            whole |= _ranked(own[own["shows"] == "bears"])
        elif parts and "contradicts" not in set(own["shows"]):
            supported = sum(part["state"] == "supported" for part in parts)
            whole["state"] = ("supported in part", "supported")[supported - 1] if supported else whole["state"]
        rows += [whole, *parts]
    columns = ["statement", "half", "state", "panels", *SHOWS, "correlation", "low", "high", "p"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _row(number: int, half: str, shows: "pd.Series[str]") -> dict[str, Any]:
    counts: dict[str, Any] = {name: int((shows == name).sum()) for name in SHOWS}
    panels = len(shows) - counts["no evidence"]
    return {"statement": number, "half": half, "state": state(shows), "panels": panels} | counts


def _ranked(points: pd.DataFrame) -> dict[str, Any]:
    """Rank correlation of redundancy and largest sparsity, its interval, p and what follows."""
    from scipy import stats

    n = len(points)
    x, y = (points[name].to_numpy(float) for name in ("redundancy", "sparsity"))
    if n < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return {"state": "undecided" if n else "no evidence"}
    rho = float(stats.spearmanr(x, y).statistic)
    if n < FEWEST:
        return {"state": "undecided", "correlation": rho}
    test = stats.permutation_test(
        (x,), lambda order: stats.spearmanr(order, y).statistic, permutation_type="pairings", random_state=0
    )
    row: dict[str, Any] = {"correlation": rho, "p": float(test.pvalue), "state": "undecided"}
    if abs(rho) < 1:
        reach = stats.norm.ppf(0.975) * math.sqrt(1.06 / (n - 3))
        row |= {"low": math.tanh(math.atanh(rho) - reach), "high": math.tanh(math.atanh(rho) + reach)}
    return row | ({"state": "supported" if rho > 0 else "contradicted"} if row["p"] <= 0.05 else {})


# --- as HTML ------------------------------------------------------------------------------------------------------


def finding(found: pd.DataFrame) -> Html:
    """Say of each statement whether what is in the store supports it."""
    table = summary(found)
    sentences = []
    for number, text in STATEMENTS.items():
        whole, *halves = table[table["statement"] == number].to_dict("records")
        words = _correlated(whole) if number == 3 else "; ".join(_counted(part) for part in halves or [whole])
        sentences.append(f"{number}. {text} {whole['state'].capitalize()}: {words}.")
    return found_out(sentences)


def _counted(row: dict[Any, Any]) -> str:
    half = "" if row["half"] == "all" else f"{row['half']} "
    if not row["panels"]:
        return f"{half}no panel bears on it"
    counts = ", ".join(f"{row[name]} {word}" for name, word in zip(SHOWS[:3], ("for", "against", "open"), strict=True))
    return f"{half}{row['panels']} panel{'s' * (row['panels'] > 1)} ({counts})"


def _correlated(row: dict[Any, Any]) -> str:
    n = row["panels"]
    if pd.isna(row["correlation"]):
        return f"{n} panels, too few or too alike for a rank correlation" if n else "no panel bears on it"
    text = f"rank correlation of parameters per training image and largest sparsity {signed(row['correlation'], 2)}"
    if pd.isna(row["p"]):
        return f"{text}, of {n} panels; fewer than {FEWEST} give no interval"
    ends = "" if pd.isna(row["low"]) else f" [{signed(row['low'], 2)}, {signed(row['high'], 2)}]"
    return f"{text}{ends} (n = {n} panels, p = {row['p']:.2g} by permutation)"


def table(found: pd.DataFrame) -> Html:
    """Show for each statement what every panel shows, with intervals, and what is absent."""
    parts = [_table(found, number) for number in STATEMENTS]
    return Html("".join(parts) + download(found, "guideline.csv", f"All {len(found)} rows of these tables (CSV)"))


def _table(found: pd.DataFrame, number: int) -> str:
    third = number == 3
    heads = ["Network and data", "Largest sparsity", "Parameters per image", ""]
    heads = heads if third else ["Network and data", "Shows", "Difference (points)", "Where"]
    rows = []
    for row in found[found["statement"] == number].to_dict("records"):
        known = "residual connections not known" if pd.isna(row["connections"]) else row["connections"]
        name = "\n".join((broken(row["panel"]), known, f"study {row['study']}"))
        left = "" if pd.isna(row["sparsity"]) else f"{100 * (1 - row['sparsity']):.3g} % left"
        place = [] if third else ["" if pd.isna(row["method"]) else f"{row['method']} masks", left]
        state = (row["shows"], row["shows"])
        if row["shows"] == "bears":
            state = ("", f"{100 * row['sparsity']:.3g} %" if row["sparsity"] else "none")
        note = "" if pd.isna(row["note"]) else broken(row["note"])
        size = "" if pd.isna(row["redundancy"]) else f"{row['redundancy']:.3g}"
        words = size if third else _difference(row)
        where = "\n".join(filter(None, (*place, note)))
        rows.append([("", name), state, ("", words), ("", where)])
    text = " ".join(filter(None, (f"{number}. {STATEMENTS[number]}", _NOTES.get(number, ""))))
    return grid(heads, rows, text, f"What panels show about statement {number} of Ma's guideline")


def _difference(row: dict[Any, Any]) -> str:
    if pd.isna(row["estimate"]):
        return ""
    ends = "" if pd.isna(row["low"]) else f" [{signed(row['low'], 1)}, {signed(row['high'], 1)}]"
    return f"{signed(row['estimate'], 1)}{ends}\nn = {row['n']}"


def figure(found: pd.DataFrame) -> Html:
    """Draw the largest sparsity with a ticket against the redundancy of networks, with caption, and in words."""
    from matplotlib.figure import Figure

    points = found[(found["statement"] == 3) & found["redundancy"].notna() & found["by_means"].notna()]
    absent = int((found["statement"] == 3).sum()) - len(points)
    if points.empty:
        return Html('<p class="nothing">There is no panel of known size in which a ticket was looked for.</p>')
    certain = points["shows"] == "bears"
    points = points.assign(certain=certain, sparsity=points["sparsity"].where(certain, points["by_means"]))
    sample = " to ".join(dict.fromkeys(str(n) for n in (points["n"].min(), points["n"].max())))
    places = [
        f"{row['panel']} at {row['redundancy']:.3g}: {100 * row['sparsity']:.3g} %" + " by means" * (not row["certain"])
        for row in points.to_dict("records")
    ]
    alternative = "Largest sparsity with a ticket against parameters per training image: " + "; ".join(places)
    words = (
        "Largest sparsity at which LT is a ticket (a jackpot or a secondary prize) against the parameters of the dense "
        f"network per training image; 0 where there is none. One point per panel, {len(points)} in all (n = {sample} "
        f"replicates): filled where the answer is certain ({certain.sum()}), open where it is that of the means alone, "
        f"which decides nothing ({(~certain).sum()}); {absent} of unknown size, or in which no ticket was "
        "looked for, are left out. No point can lie above "
        "the sparsest level that was judged."
    )
    ax = Figure(figsize=(6.2, 3.2), layout="constrained").subplots()
    plots.sparsity_by_redundancy(points, ax).legend(frameon=False, loc="best")
    shown = drawing(ax, f"{alternative} (n = {sample} replicates).")
    return Html(f'<figure style="max-width:38rem">{shown}<figcaption>{html.escape(words)}</figcaption></figure>')
