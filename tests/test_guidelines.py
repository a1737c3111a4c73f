"""Ma's guideline against panels made by hand: what each shows, and what follows by the rules."""

import csv
import html
import io
import math
import re
from base64 import b64decode

import helpers
import numpy as np
import pandas as pd
import pytest
import test_prizes
import test_verdicts
from scipy import stats
from test_pages import Elements

from lthlab import guidelines, lab, prizes, results, spec, studies, tickets
from lthlab.guidelines import WITH, WITHOUT

LRS = (0.01, 0.1, 1.0)
SPREAD = 0.05


def panel(imp=0.0, small=0.0, rr=0.0, levels=(11,), n=4, omp=True, **columns):
    """Judge a panel by hand: how far IMP is above OMP, small learning rates above large ones, LT above RR, in points.

    Dense networks are best at 0.1. Of LT on IMP masks, the best is at 0.01 or, at 90 points, at 0.1.
    """
    parts = []
    for level in levels:
        lt = {0.01: 90.0 + small, 0.1: 90.0, 1.0: 85.0}
        masks = {"IMP": lt} | ({"OMP": {lr: value - imp for lr, value in lt.items()}} if omp else {})
        for method, means in masks.items():
            for ticket, below in (("LT", 0.0), ("RR", rr)):
                given = {lr: value - below for lr, value in means.items()}
                parts.append(test_verdicts.runs(ticket, given, level, method, SPREAD, n))
        parts.append(test_verdicts.runs("SDT", dict.fromkeys(LRS, 80.0), level, None, SPREAD, n))
    parts.append(test_verdicts.runs("dense", {0.01: 88.0, 0.1: 90.0, 1.0: 86.0}, 0, None, SPREAD, n))
    fields = {"study": "s", "network": "vgg16", "train_size": 50000, "parameters": 100000, "find_lr": 0.1} | columns
    frame = pd.concat(parts, ignore_index=True).assign(**fields)
    frame["find_lr"] = frame["eval_lr"]
    (found,) = prizes.judge(test_prizes.rules_of(), frame)
    return found


def shown(*panels, statement):
    found = guidelines.evidence(panels)
    return found[found["statement"] == statement].reset_index(drop=True)


def test_a_panel_that_looked_for_no_ticket_says_nothing_of_the_largest_sparsity():
    """Where ① fails at every level, as in a short training, that there is no ticket is no evidence."""
    (row,) = shown(panel(levels=(1, 2)), statement=3).to_dict("records")
    assert row["shows"] == "no evidence" and row["note"].startswith("nothing was looked for: ① asks for a sparsity of")
    assert "nothing" in guidelines.figure(guidelines.evidence([panel(levels=(1, 2))]))
    (row,) = shown(panel(levels=(2, 11), rr=0.0), statement=3).to_dict("records")
    assert (row["shows"], row["sparsity"]) == ("bears", 0.0)


@pytest.mark.parametrize(
    ("network", "shortcut", "expected"),
    [
        ("resnet20", "A", WITH), ("resnet20", "B", WITH), ("resnet20", "none", WITHOUT), ("resnet20", None, None),
        ("resnet18", None, WITH), ("resnet50", math.nan, WITH), ("vgg19", None, WITHOUT),
        ("lenet_300_100", None, WITHOUT), ("conv6", None, WITHOUT),
        ("mobilenet_v1", None, WITHOUT), ("own", None, None), ("my_resnet", None, None),
    ],
)  # fmt: skip
def test_networks_are_sorted_by_their_connections(network, shortcut, expected):
    assert guidelines.connections(network, shortcut) == expected


RESIDUAL = {"network": "resnet20", "shortcut": "B"}


@pytest.mark.parametrize(
    ("statement", "difference"),
    [(1, lambda x, **c: panel(imp=x, **c)), (2, lambda x, **c: panel(small=x, **c))],
)
@pytest.mark.parametrize(
    ("points", "network", "shows"),
    [
        (2.0, RESIDUAL, "supports"), (2.0, {}, "contradicts"), (-2.0, RESIDUAL, "contradicts"), (-2.0, {}, "supports"),
        (0.0, RESIDUAL, "contradicts"), (0.0, {}, "supports"),  # clearly within 0.5 points, which are similar
        (0.45, {"spread": True, **RESIDUAL}, "undecided"), (0.45, {"spread": True}, "undecided"),
    ],
)  # fmt: skip
def test_an_advantage_supports_what_says_there_is_one(statement, difference, points, network, shows, monkeypatch):
    fields = dict(network)
    if fields.pop("spread", False):
        monkeypatch.setattr("test_guidelines.SPREAD", 0.5)
    (row,) = shown(difference(points, **fields), statement=statement).to_dict("records")
    assert row["shows"] == shows
    assert row["estimate"] == pytest.approx(points, abs=1e-3) and row["low"] < points < row["high"]
    assert (row["n"], row["sparsity"], row["tolerance"]) == (4, pytest.approx(0.914, abs=1e-3), 0.5)
    assert row["connections"] == (WITH if "shortcut" in fields else WITHOUT)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"train_size": 100_000}, "no small data set: 100000 training images"),
        ({"network": "own"}, "it is not known whether the network has residual connections"),
        ({"omp": False}, "not known: no runs of OMP"),
    ],
)
def test_what_does_not_bear_on_a_statement_says_why(fields, note):
    (row,) = shown(panel(imp=2.0, **fields), statement=1).to_dict("records")
    assert (row["shows"], row["note"]) == ("no evidence", note)


def test_panels_that_cannot_be_judged_stay_visible():
    frame = panel().frame
    (unknown,) = prizes.judge(test_prizes.rules_of(), frame.assign(data="mine"))
    (dense,) = prizes.judge(test_prizes.rules_of(), frame[frame["ticket"] == "dense"])
    found = guidelines.evidence([unknown, dense])
    assert list(found["shows"]) == ["no evidence"] * 8
    assert "no tolerance is known for 'mine'" in found["note"][0] and "neither LT nor WR" in found["note"][4]


def test_the_largest_sparsity_with_a_ticket():
    sizes = {"parameters": 200_000, "train_size": 50_000}
    won = panel(rr=2.0, levels=(8, 11), **sizes)
    lost = panel(rr=0.0, levels=(8, 11), **sizes)
    part = panel(rr=2.0, levels=(8, 11), **sizes)
    worse = (part.frame["level"] == 11) & (part.frame["ticket"] == "LT")
    frame = part.frame.assign(value=np.where(worse, part.frame["value"] - 0.04, part.frame["value"]))
    (part,) = prizes.judge(test_prizes.rules_of(), frame)
    frame = won.frame[won.frame["ticket"] != "SDT"]
    (open_,) = prizes.judge(test_prizes.rules_of(), frame)
    rows = shown(won, part, lost, open_, statement=3)
    assert list(rows["redundancy"]) == [4.0] * 4
    assert rows["sparsity"].tolist()[:3] == pytest.approx([1 - 0.8**11, 1 - 0.8**8, 0])
    assert list(rows["shows"]) == ["bears", "bears", "bears", "no evidence"]
    assert list(rows["note"]) == [
        "the largest sparsity that was judged", "", "certainly none", "no certain ticket; open at 2 of 2 sparsities",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rr", "spread", "shows"),
    [(0.0, 0.05, "supports"), (2.0, 0.05, "contradicts"), (-2.0, 0.05, "contradicts"), (0.3, 0.4, "undecided")],
)
def test_where_large_learning_rates_are_preferred_initial_weights_are_compared(rr, spread, shows, monkeypatch):
    monkeypatch.setattr("test_guidelines.SPREAD", 0.05)
    made = panel(small=-3.0, rr=rr)
    noise = np.random.default_rng(0).normal(0, spread / 100, len(made.frame)) * (made.frame["ticket"] == "RR")
    noise += 0.1 * ((made.frame["ticket"] == "RR") & (made.frame["eval_lr"] == 0.01))  # small ones are not asked
    (made,) = prizes.judge(test_prizes.rules_of(), made.frame.assign(value=made.frame["value"] + noise))
    (row,) = shown(made, statement=4).to_dict("records")
    chosen = made.frame[(made.frame["method"] == "IMP") & (made.frame["eval_lr"] == 0.1)].sort_values("replicate")
    lt, rr_ = (100 * chosen[chosen["ticket"] == ticket]["value"].to_numpy() for ticket in ("LT", "RR"))
    interval = stats.ttest_rel(lt, rr_).confidence_interval()
    assert [row["estimate"], row["low"], row["high"]] == pytest.approx([np.mean(lt - rr_), *interval], abs=1e-6)
    assert (row["shows"], row["note"], row["method"]) == (shows, "at learning rate 0.1", "IMP")


@pytest.mark.parametrize(
    ("small", "note"), [(2.0, "small learning rates are preferred"), (0.0, "open which learning rates are preferred")]
)
def test_where_small_learning_rates_are_preferred_statement_4_does_not_bear(small, note):
    (row,) = shown(panel(small=small), statement=4).to_dict("records")
    assert (row["shows"], row["note"]) == ("no evidence", note)


def test_the_same_trainings_count_once():
    first = panel()
    keyed = [first.frame.assign(key=[f"{i}" for i in range(len(first.frame))], study=name) for name in ("s", "t")]
    judged = [found for frame in keyed for found in prizes.judge(test_prizes.rules_of(), frame)]
    assert len(guidelines.evidence(judged)) == 4 and set(guidelines.evidence(judged)["study"]) == {"s"}
    assert len(guidelines.evidence([judged[0], first])) == 8


def test_masks_that_ma_has_not_do_not_count():
    whole = panel(prune_at="160ep", find_epochs=160)
    early = panel(prune_at="20ep", find_epochs=160)
    imposed = panel(prune_at="160ep", find_epochs=160, layer_counts="lr 0.05")
    best = panel(prune_at="best_val", find_epochs=160)
    assert [len(guidelines.evidence([one])) for one in (whole, early, imposed, best)] == [4, 0, 0, 4]


@pytest.mark.parametrize(
    ("shows", "expected"),
    [
        ([], "no evidence"), (["no evidence"], "no evidence"), (["undecided", "no evidence"], "undecided"),
        (["supports", "undecided"], "supported"), (["contradicts", "undecided"], "contradicted"),
        (["supports", "contradicts"], "mixed"),
    ],
)  # fmt: skip
def test_states_of_several_panels(shows, expected):
    assert guidelines.state(shows) == expected


@pytest.mark.parametrize(
    ("with_", "without", "expected"),
    [
        ("supports", "supports", "supported"), ("supports", "undecided", "supported in part"),
        ("undecided", "supports", "supported in part"), ("supports", "contradicts", "mixed"),
        ("undecided", "contradicts", "contradicted"), ("undecided", "no evidence", "undecided"),
        ("no evidence", "no evidence", "no evidence"),
    ],
)  # fmt: skip
def test_a_statement_of_two_halves(with_, without, expected):
    rows = pd.DataFrame({"statement": 1, "connections": [WITH, WITHOUT], "shows": [with_, without]})
    rows = rows.reindex(columns=[*rows, "redundancy", "sparsity"])
    table = guidelines.summary(rows).set_index(["statement", "half"])
    assert table.loc[(1, "all"), "state"] == expected
    assert table.loc[(1, WITH), with_] == 1 and table.loc[(1, WITH), "panels"] == (with_ != "no evidence")
    assert table.loc[(2, "all"), "state"] == "no evidence"


def points(redundancy, sparsity):
    return pd.DataFrame(
        {"statement": 3, "connections": WITH, "shows": "bears", "redundancy": redundancy, "sparsity": sparsity}
    )


def third(rows):
    table = guidelines.summary(rows)
    return table[table["statement"] == 3].to_dict("records")[0]


def test_rank_correlation_by_hand():
    """Ranks 1 to 6 against 1 2 3 4 6 5: ρ = 1 - 6 · 2 / (6 · 35) = 0.942857; 12 of 720 orders are as extreme."""
    row = third(points([1, 2, 3, 4, 5, 60], [0.1, 0.2, 0.3, 0.4, 0.6, 0.5]))
    assert row["correlation"] == pytest.approx(1 - 12 / 210) and (row["panels"], row["state"]) == (6, "supported")
    reach = 1.959964 * math.sqrt(1.06 / 3)
    ends = [math.tanh(math.atanh(1 - 12 / 210) + side * reach) for side in (-1, 1)]
    assert [row["low"], row["high"]] == pytest.approx(ends, abs=1e-6)
    assert row["p"] == pytest.approx(12 / 720, abs=1e-9)


@pytest.mark.parametrize(
    ("sparsity", "state", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4], "undecided", None),  # too few for an interval
        ([0.1, 0.2, 0.3, 0.4, 0.5], "supported", 2 / 120),  # 2 of 120 orders are as extreme
        ([0.5, 0.4, 0.3, 0.2, 0.1], "contradicted", 2 / 120),
        ([0.3, 0.1, 0.5, 0.2, 0.4], "undecided", 0.683),
        ([0.1, 0.2, 0.3, 0.5, 0.4], "undecided", 10 / 120),  # 10 of 120 orders are as extreme
        ([0.3] * 5, "undecided", None),
    ],
)
def test_the_state_of_the_third_statement(sparsity, state, p):
    row = third(points(np.arange(len(sparsity)) + 1.0, sparsity))
    assert row["state"] == state and (math.isnan(row["p"]) if p is None else row["p"] == pytest.approx(p, abs=1e-3))
    if len(sparsity) == 4:
        assert row["correlation"] == pytest.approx(1.0) and math.isnan(row["low"])
        words = guidelines.finding(points(np.arange(4) + 1.0, sparsity))
        assert "largest sparsity +1.00, of 4 panels; fewer than 5 give no interval" in words


# --- as HTML ------------------------------------------------------------------------------------------------------


def text(shown):
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", shown)).split())


def test_the_page_says_what_panels_show_and_what_is_absent():
    panels = [
        panel(imp=2.0, small=2.0, rr=2.0, **RESIDUAL), panel(small=-3.0, rr=0.0), panel(omp=False, network="conv2"),
    ]  # fmt: skip
    found = guidelines.evidence([*panels, panel(network="own")])
    said = text(guidelines.finding(found))
    assert (
        f"1. {guidelines.STATEMENTS[1]} Supported: with residual connections 1 panel (1 for, 0 against, 0 open)" in said
    )
    assert f"4. {guidelines.STATEMENTS[4]} Supported: 1 panel (1 for, 0 against, 0 open)." in said
    tables = guidelines.table(found)
    rows = test_prizes.cells(tables)
    assert len(rows) == len(found) == 16
    kinds = {
        "supports": "yes",
        "contradicts": "no",
        "undecided": "boundary",
        "no evidence": "insufficient",
        "bears": "",
    }
    shows = found.sort_values("statement", kind="stable")["shows"]
    assert [row[1][0] for row in rows] == [kinds[name] for name in shows]
    assert [row[1][1].split()[0] for row in rows[8:12]] == ["91.4", "none", "none", "none"]
    assert "+2.0 [+1" in text(tables) and "n = 4" in text(tables) and "not known: no runs of OMP" in text(tables)
    assert "ResNet-18 on CIFAR-10 does not prefer IMP" in text(tables) and "VGG-16" in text(tables)
    assert text(tables).count("residual connections not known") == 4
    assert "nan" not in text(tables) + said and "None" not in text(tables)
    (link,) = Elements(tables).of("a")
    numbers = list(csv.DictReader(io.StringIO(b64decode(link["href"].partition(",")[2]).decode())))
    assert link["download"] == "guideline.csv" and [row["shows"] for row in numbers] == list(found["shows"])


def test_the_figure_names_its_points():
    panels = [panel(rr=2.0, **RESIDUAL), panel(rr=0.0)]
    shown = guidelines.figure(guidelines.evidence(panels))
    (image,) = Elements(shown).of("img")
    assert "resnet20 on cifar10 at 2: 91.4 %; vgg16 on cifar10 at 2: 0 % (n = 4 replicates)." in image["alt"]
    assert "2 in all (n = 4 replicates): filled where the answer is certain (2)" in shown
    (image,) = Elements(guidelines.figure(guidelines.evidence([panel(rr=2.0, n=1)]))).of("img")
    assert "vgg16 on cifar10 at 2: 91.4 % by means (n = 1 replicates)." in image["alt"]
    unknown = guidelines.evidence([panel(rr=2.0)]).assign(redundancy=None)
    assert "There is no panel of known size" in guidelines.figure(unknown)


# --- a store ------------------------------------------------------------------------------------------------------

STUDY = """
name: {name}
net: [lenet_300_100, {{name: resnet8, width: 2, shortcut: none}}]
data: {{name: digits, train_size: 64}}
replicates: 2
find: {{epochs: 1, batch_size: 64, lr: {lr}}}
prune: {{levels: [1, 2]}}
tickets: {{LT: {{}}, RR: {{}}}}
verdicts: {{epochs: 1, min_sparsity: {least}, tolerance: 3.0}}
"""


def test_all_studies_of_a_store_bear_on_the_guideline(tmp_path):
    store = helpers.store(tmp_path)
    own, other = (spec.parse(STUDY.format(name=name, lr=lr, least=least)) for name, lr, least in (
        ("own", "[0.05, 0.1]", 0.3), ("other", "[0.05, 0.2]", 0.35),
    ))  # fmt: skip
    for config in (own, other):
        lab.compute_study(config, store, "cpu")
    frame = results.load(store, own)
    assert set(frame["shortcut"].dropna()) == {"none"} and frame["shortcut"].isna().any()
    judged = prizes.judge(own.verdicts, frame)
    found = guidelines.others(store, "own")
    assert {one.verdicts[0].rules.min_sparsity for one in found} == {0.35}
    rows = guidelines.evidence([*judged, *found])
    assert list(rows["study"]) == ["own"] * 8 + ["other"] * 8
    assert set(rows["connections"]) == {WITHOUT} and set(rows["tolerance"]) == {3.0}
    assert "resnet8 (width 2, no shortcuts) on digits" in set(rows["panel"])
    sizes = frame[(frame["ticket"] == "dense") & (frame["what"] == "train")].groupby("network")["parameters"].max() / 64
    assert set(rows["redundancy"].dropna()) == set(sizes)
    again = spec.parse(STUDY.format(name="again", lr="[0.05, 0.1]", least=0.3))
    studies.note(again, tickets.expand(again), store)
    assert len(guidelines.evidence([*judged, *guidelines.others(store, "own")])) == len(rows)
