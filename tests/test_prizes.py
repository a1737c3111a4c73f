"""Verdicts as HTML: the states, numbers and reasons of `verdicts.judge`, panel by panel, in words."""

import csv
import html
import io
import re
from base64 import b64decode

import helpers
import numpy as np
import pandas as pd
import pytest
import test_verdicts
from test_pages import Elements

from lthlab import prizes, spec, verdicts
from lthlab.parts import Data
from lthlab.verdicts import MARKS

STUDY = """
name: judged
net: lenet_300_100
data: digits
replicates: 3
find: {{epochs: 20, batch_size: 64, lr: [0.01, 0.1]}}
prune: {{levels: [11]}}
tickets: {{LT: {{}}, RR: {{}}}}
verdicts: {rules}
"""


TARGET = Data(name="digits", classes=(5, 6, 7, 8, 9)).text


def rules_of(rules="{}"):
    return spec.parse(STUDY.format(rules=rules)).verdicts


def frame(network="a", data="cifar10", **columns):
    """Rows of a ticket that wins a jackpot at two levels and nothing at a third."""
    levels = [
        test_verdicts.simple(level=8), test_verdicts.simple(level=11), test_verdicts.simple(level=14, third=-2.0),
    ]  # fmt: skip
    rows = pd.concat(levels).drop_duplicates(["ticket", "level", "eval_lr", "replicate"])
    return rows.assign(network=network, data=data, study="s", **columns)


def cells(shown: str) -> list[list[tuple[str, str]]]:
    """Class and text of the cells of all rows of a table."""
    rows = [re.findall(r'<td(?: class="(\w+)")?>(.*?)</td>', row) for row in re.findall(r"<tr>.*?</tr>", shown)]
    return [[(kind, html.unescape(re.sub("<[^>]+>", " ", text))) for kind, text in row] for row in rows if row]


def test_the_finding_says_what_is_won_and_how_far():
    text = prizes.finding(prizes.judge(rules_of(), frame()))
    assert text.startswith(
        '<p class="finding"><strong>What came out.</strong> a on cifar10, LT: jackpot on IMP masks at '
    )
    assert "at 2 of 3 levels, the sparsest level 11 (8.59 % of the prunable weights left)" in text
    assert re.search(r"minus the best RR is \+1\.0 \[\+0\.\d, \+1\.\d\] points \(n = 3 replicates\)", text)
    assert "none at 1 of 3 levels" in text and "tolerance 0.5 points (Ma 2.2, E.1)" in text
    lost = prizes.finding(prizes.judge(rules_of(), frame().query("level != 8 and level != 11")))
    assert "no prize on IMP masks: ③ fails at every level (beats RR: −2.0 points, needed more than +0.5) (tol" in lost
    unknown = prizes.finding(prizes.judge(rules_of(), frame().query("ticket != 'SDT'")))
    assert "no certain prize on IMP masks (insufficient evidence at 2, none at 1 of 3 levels)" in unknown


def test_why_there_is_no_prize_is_said():
    short = pd.concat([frame("b", "digits", eval_epochs=2)])
    text = prizes.finding(prizes.judge(rules_of(), short))
    assert "no prize on IMP masks: ① fails at every level (83.2 to 95.6 % pruned, 2 of 20 epochs) (tolerance" in text
    rows = cells(prizes.table(prizes.judge(rules_of(), short)))
    assert all("83.2 % pruned 2 of 20 epochs" in " ".join(row[3][1].split()) for row in rows[:1])
    assert "2 of 20 epochs" in prizes.reasons(prizes.judge(rules_of(), short))
    enough = prizes.finding(prizes.judge(rules_of("{min_sparsity: 0.99}"), frame("b", "digits", eval_epochs=20)))
    assert "① fails at every level (83.2 to 95.6 % pruned) (tolerance" in enough
    both = frame("b", "digits", eval_epochs=20)
    either = prizes.finding(prizes.judge(rules_of("{min_sparsity: 0.93}"), both[both["level"] != 8]))
    assert "no prize on IMP masks: ① at 1, ③ at 1 of 2 levels fail (tolerance" in either


def test_what_a_condition_lacks_is_named_or_where_it_is_listed():
    rows = cells(prizes.table(prizes.judge(rules_of(), frame().query("ticket != 'RR'"))))
    assert all("not known no runs of RR" in " ".join(row[5][1].split()) for row in rows)
    some = frame().query("ticket != 'RR' or eval_lr > 0.01 or replicate > 0")
    judged = prizes.judge(rules_of(), some)
    texts = [" ".join(row[5][1].split()) for row in cells(prizes.table(judged))]
    assert all(text.endswith("what is lacking is listed under “What decided”") for text in texts)
    assert "What decided for LT on IMP masks" in prizes.reasons(judged) and "(not in the frame)" in prizes.reasons(
        judged
    )


def test_the_table_shows_what_judge_finds():
    judged = prizes.judge(rules_of(), frame())
    found = verdicts.judge(frame())
    rows = cells(prizes.table(judged))
    assert len(rows) == len(found) == 3
    for row, verdict in zip(rows, found, strict=True):
        assert [text.split()[0] for _, text in row[:2]] == ["IMP", str(verdict.level)]
        assert row[2] == ({"jackpot": "yes", "none": "no"}[verdict.verdict], f" {verdict.verdict} ")
        for (kind, text), mark in zip(row[3:], MARKS, strict=True):
            condition = verdict[mark]
            assert kind == condition.state.split()[0] and text.split()[0] == kind
            number = f"{condition.estimate:.3g} %" if mark == "①" else f"{condition.estimate:+.1f}".replace("-", "−")
            assert number in text
    (link,) = [link for link in Elements(prizes.table(judged)).of("a")]
    numbers = list(csv.DictReader(io.StringIO(b64decode(link["href"].partition(",")[2]).decode())))
    assert len(numbers) == 6 and {row["reading"] for row in numbers} == set(verdicts.READINGS)
    assert [float(row["③ low"]) for row in numbers[:3]] == [verdict["③"].low for verdict in found]


def test_readings_that_differ_are_both_shown():
    lrs = (0.001, 0.01, 0.1)
    lt, rr = ({lr: mean for lr, mean in zip(lrs, means, strict=True)} for means in ((88, 90, 85), (86, 89, 85)))
    dense = {lr: mean for lr, mean in zip(lrs, (88, 92, 91), strict=True)}
    rows = test_verdicts.frame(lt, rr, dense, test_verdicts.flat(85.0, lrs), network="a", study="s")
    for reading, other in (("literal", "same_lr"), ("same_lr", "literal")):
        judged = prizes.judge(rules_of(f"{{reading: {reading}}}"), rows)
        assert [verdict.rules.reading for verdict in judged[0].verdicts] == [reading, other]
        first, second = cells(prizes.table(judged))
        won = {"literal": "secondary prize", "same_lr": "none"}
        assert " ".join(first[2][1].split()) == won[reading] and f"if {other}" in second[2][1]
        assert " ".join(second[2][1].split()).startswith(won[other])
        assert f"The reading &#x27;{other}&#x27; differs in 1 row," in prizes.table(judged)
        assert [row[1][1] for row in cells(prizes.largest(judged))] == [reading, other]
    same = prizes.judge(rules_of(), frame())
    assert "gives the same" in prizes.table(same) and cells(prizes.largest(same))[0][1][1] == "both"


def test_reasons_name_cells_thresholds_and_what_would_change():
    judged = prizes.judge(rules_of("{gap: 0.7}"), frame())
    text = prizes.reasons(judged)
    rows = cells(text)
    assert len(rows) == 15
    for verdict, mark, row in zip(
        np.repeat(np.array(judged[0].verdicts[:3], dtype=object), 5), MARKS * 3, rows, strict=True
    ):
        condition = verdict[mark]
        assert condition.change in row[6][1]
        assert all(str(cell) in row[5][1] for cell in condition.cells)
    needed = [row[4][1] for row in rows[:5]]
    assert needed == ["at least 60 % pruned", "more than +0.7", "more than +0.7", "at least −0.5", "at least −0.5"]
    assert 'class="warning"' not in text
    edge = frame().query("eval_lr >= 0.1")
    shown = html.unescape(prizes.reasons(prizes.judge(rules_of(), edge)))
    assert "②③④⑤ decided by LT at learning rate 0.1, the smallest of its grid (IMP, level 8, 11, 14)" in shown
    assert shown.count("decided by LT") == 1


def test_largest_levels_and_questions():
    judged = prizes.judge(rules_of(), frame())
    (row,) = cells(prizes.largest(judged))
    last, won = "14 4.4 % left", "11 8.59 % left"
    assert [" ".join(text.split()) for _, text in row[2:]] == [last, last, won, last, last, won, "at none"]
    rows = cells(prizes.overview(judged))
    table = verdicts.overview(frame(), verdicts.judge(frame()))
    ((place, *answers),) = rows
    assert " ".join(place[1].split()) == "a on cifar10 LT, preferences at 4.4 % left"
    assert [kind for kind, _ in answers] == [state.split()[0] for state in table["state"]]
    texts = [" ".join(text.split()) for _, text in answers]
    assert texts[:2] == ["✓ yes IMP masks 8.59 % left", "× no IMP masks"]
    small = table.set_index("question").loc["prefers small lr"]
    ends = [f"{small[name]:+.1f}".replace("-", "−") for name in ("estimate", "low", "high")]
    assert texts[2] == f"× no IMP masks {ends[0]} [{ends[1]}, {ends[2]}] n = 3"
    assert texts[3] == "? insufficient evidence not known: no runs of OMP" and "nan" not in prizes.overview(judged)


def test_panels_are_judged_apart_and_with_their_tolerance():
    both = pd.concat([frame(), frame("b", "digits", eval_epochs=20).assign(value=lambda rows: rows["value"] - 0.1)])
    judged = prizes.judge(rules_of(), both)
    assert [(panel.panel, panel.problem) for panel in judged] == [("a on cifar10", ""), ("b on digits", "")]
    text = prizes.rules(judged)
    assert "a on cifar10: similar accuracy is within 0.5 points (Ma 2.2, E.1)" in text
    assert "b on digits: similar accuracy is within 0.5 points (ours)" in text and "20 epochs (ours) suffice" in text
    assert prizes.table(judged).count("<h3>") == 2
    assert prizes.finding(judged).count("<br>") == 1


def test_settings_of_the_study_are_those_of_the_verdicts():
    rules = "{tolerance: 1.5, gap: 0.1, sdt_gap: 0.2, min_sparsity: 0.9, epochs: 7}"
    own = prizes.judge(rules_of(rules), frame())[0].verdicts[0].rules
    assert (own.tolerance, own.gap, own.sdt_gap, own.min_sparsity, own.epochs) == (1.5, 0.1, 0.2, 0.9, 7)
    text = prizes.rules(prizes.judge(rules_of(rules), frame()))
    assert "within 1.5 points (set)" in text and "7 epochs (set) suffice" in text
    text = prizes.rules(prizes.judge(rules_of("{epochs: 7}"), frame()))
    assert "within 0.5 points (Ma 2.2, E.1)" in text and "7 epochs (set) suffice" in text


def test_rewinding_tickets_are_judged_as_well():
    rows = frame()
    late = rows[rows["ticket"] == "LT"].assign(ticket="WR", rewind="1ep")
    judged = prizes.judge(rules_of(), pd.concat([rows.assign(rewind=None), late]))
    assert [v.rules.ticket for v in judged[0].verdicts[::3]] == ["LT", "LT", "WR", "WR"]
    assert len(cells(prizes.table(judged))) == 6 and "Verdicts on WR" in prizes.table(judged)


def test_tickets_on_masks_that_differ_are_judged_apart():
    """Masks ranked at two epochs: the early ones of OMP win nothing. SDT and dense networks are for both."""
    rows = frame().query("level == 11 or level == 0")
    masked = rows["ticket"].isin(["LT", "RR"])
    omp = rows[masked].assign(method="OMP")
    early = omp.assign(value=omp["value"] - 0.02 * (omp["ticket"] == "LT"), prune_at="20ep")
    both = pd.concat([rows[masked].assign(prune_at="160ep"), omp.assign(prune_at="160ep"), early, rows[~masked]])
    both["method"] = both["method"].where(both["ticket"] != "SDT", None)
    judged = prizes.judge(rules_of(), both.assign(what="train"))
    assert [(panel.panel, panel.tickets, panel.problem) for panel in judged] == [
        ("a on cifar10, LT on IMP and OMP masks (ranked at 160ep)", ["LT"], ""),
        ("a on cifar10, LT on OMP masks (ranked at 20ep)", ["LT"], ""),
    ]
    assert [[(v.method, v.verdict) for v in panel.verdicts[:2]] for panel in judged] == [
        [("IMP", "jackpot"), ("OMP", "jackpot")], [("OMP", "none"), ("OMP", "none")],
    ]  # fmt: skip
    alone = prizes.judge(rules_of(), both[both["prune_at"] != "160ep"])[0]
    assert alone.panel == "a on cifar10" and alone.verdicts == judged[1].verdicts
    answers = cells(prizes.overview(judged))
    assert ["LT on OMP masks (ranked at 20ep)" in " ".join(row[0][1].split()) for row in answers] == [False, True]


def test_rewinding_to_several_steps_is_judged_step_by_step():
    rows = frame()
    late = rows[rows["ticket"] == "LT"].assign(ticket="WR", rewind="1ep", schedule="resume")
    worse = late.assign(rewind="5ep", value=late["value"] - 0.05)
    judged = prizes.judge(rules_of(), pd.concat([rows.assign(rewind=None, schedule="restart"), late, worse]))
    assert [(panel.panel, panel.tickets) for panel in judged] == [
        ("a on cifar10", ["LT"]),
        ("a on cifar10, WR on IMP masks (weights of 1ep)", ["WR"]),
        ("a on cifar10, WR on IMP masks (weights of 5ep)", ["WR"]),
    ]
    assert [[v.verdict for v in panel.verdicts[:3]] for panel in judged] == [["jackpot", "jackpot", "none"]] * 2 + [
        ["none"] * 3
    ]


def test_studies_with_variants_are_judged_whole():
    """Every kind of mask and ticket of the language, on random outcomes: nothing is refused, nothing judged twice."""
    text = STUDY.format(rules="{epochs: 20}").replace("levels: [11]", "levels: [2, 4], at: [5ep, last]")
    text = text.replace("{LT: {}, RR: {}}", "{LT: {}, RR: {}, WR: {methods: IMP, rewind: [1ep, 2ep]}, SDT: }")
    text += "targets: [{data: {name: digits, classes: [5, 6, 7, 8, 9]}}]\n"
    judged = prizes.judge(spec.parse(text).verdicts, helpers.frame_of(spec.parse(text)))
    moved = [panel for panel in judged if f"transferred to {TARGET}" in panel.panel]
    assert {panel.problem.partition(";")[0] for panel in moved} == {"tickets of digits are trained on " + TARGET}
    own = [panel for panel in judged if panel not in moved]
    assert [panel.panel.partition(", ")[2] for panel in own] == [
        "LT on IMP and OMP masks (ranked at 5ep)",
        "LT on IMP and OMP masks (ranked at 20ep)",
        *(f"WR on IMP masks (ranked at {at}, weights of {step})" for at in ("5ep", "20ep") for step in ("1ep", "2ep")),
    ]
    assert [len(panel.verdicts) for panel in own] == [8, 8, 4, 4, 4, 4]
    assert not any(condition.missing for panel in own for found in panel.verdicts for condition in found.conditions)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows.assign(data="my<data>"), "no tolerance is known for 'my<data>'"),
        (lambda rows: rows[rows["ticket"] == "dense"], "the study has neither LT nor WR"),
    ],
)
def test_why_a_panel_cannot_be_judged_is_said_on_the_page(change, said):
    judged = prizes.judge(rules_of(), change(frame()))
    for show in (prizes.finding, prizes.rules, prizes.table, prizes.reasons, prizes.largest, prizes.overview):
        assert html.escape(said) in show(judged), show


def test_an_unfinished_study_is_shown_as_such():
    rows = frame().assign(status="missing", value=np.nan)
    judged = prizes.judge(rules_of(), rows)
    assert {kind for row in cells(prizes.table(judged)) for kind, _ in row[3:]} == {"yes", "insufficient"}
    assert "not known" in prizes.table(judged) and "nan" not in prizes.overview(judged) + prizes.reasons(judged)
