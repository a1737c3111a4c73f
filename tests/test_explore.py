"""Looking around: the figure and the table follow the widgets, and every offer can be drawn."""

import itertools
import re

import helpers
import pandas as pd
import pytest
from test_pages import Elements

from lthlab import explore, results, spec

TEXT = """
name: {name}
net: [lenet_300_100, {{name: resnet8, width: 4}}]
data: digits
replicates: 2
find: {{epochs: 2, batch_size: 64, lr: [0.1, 0.2]}}
{evaluate}
prune: {{levels: [1, 2]}}
tickets: {{LT: {{}}, RR: {{}}, WR: {{methods: IMP, rewind: 1ep}}, SDT: {{}}, RT: {{methods: IMP}}}}
measures: {{correlation_indicator: {{}}}}
"""


def study(name="one", evaluate=""):
    return helpers.frame_of(spec.parse(TEXT.format(name=name, evaluate=evaluate)))


@pytest.fixture
def shown():
    return explore.show(pd.concat([study(), study("two", "eval: {lr: [0.3, 0.4]}")], ignore_index=True))


def selections(shown):
    return {name: widget.value for name, widget in (shown.choices | shown.filters).items()}


def drawn(shown) -> str:
    """The alternative text of the figure."""
    (image,) = Elements(shown.figure.value).of("img")
    return image["alt"]


def test_something_is_shown_at_once(shown):
    assert selections(shown) == {
        "study": "one", "panel": "lenet_300_100 on digits", "what": "train", "x": "sparsity", "hue": "ticket and mask",
        "ticket": ("LT", "WR", "RR", "RT", "SDT", "dense"), "method": ("IMP", "OMP"), "sparsity": (0.2, 0.36),
        "eval_lr": (0.1,), "find_lr": (0.1, 0.2), "prune_at": ("2ep",), "reading": (), "p": (), "images": (),
        "measured_at": (),
    }  # fmt: skip
    assert drawn(shown).startswith("lenet_300_100 on digits. Line chart of test accuracy (%) against prunable weights")
    assert "n = 2 replicates" in shown.figure.value
    assert set(shown.rows["eval_lr"]) == {0.1} and set(shown.rows["study"]) == {"one"}


def test_the_table_has_the_means_of_what_is_drawn(shown):
    shown.choices["x"].value = "eval_lr"
    shown.choices["hue"].value = "level"
    assert set(shown.rows["ticket"]) == {"LT"} and set(shown.rows["method"]) == {"IMP"}
    wanted = results.summarise(shown.rows, ["level", "eval_lr"]).to_dict("records")
    lines = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall("<tr>.*?</tr>", shown.table.value, re.DOTALL)]
    heads = re.findall("<th>(.*?)</th>", shown.table.value)
    found = [dict(zip(heads, line, strict=True)) for line in lines if line]
    assert [(row["level"], row["eval_lr"], row["n"]) for row in found] == [
        (str(row["level"]), str(row["eval_lr"]), "2") for row in wanted
    ]
    assert [row["mean (%)"] for row in found] == [f"{100 * row['mean']:.2f}" for row in wanted]
    assert "level 1" in drawn(shown) and "level 2" in drawn(shown)


def test_filters_choose_rows_and_what_has_no_mask_stays(shown):
    shown.choices["x"].value = "eval_lr"
    assert shown.filters["sparsity"].value == (0.36,)
    shown.filters["ticket"].value = ("LT", "dense")
    shown.filters["method"].value = ("OMP",)
    assert set(zip(shown.rows["ticket"], shown.rows["method"].fillna(""), strict=True)) == {
        ("LT", "OMP"),
        ("dense", ""),
    }
    assert "LT on OMP masks" in drawn(shown) and "RR" not in drawn(shown)
    labels = [label for label, _ in shown.filters["sparsity"].options]
    assert labels == ["level 1 (80 % left)", "level 2 (64 % left)"]


def test_another_study_offers_its_own(shown):
    assert shown.filters["find_lr"].layout.display == "none"
    shown.choices["study"].value = "two"
    assert set(shown.rows["study"]) == {"two"}
    assert [value for _, value in shown.filters["eval_lr"].options] == [0.1, 0.2, 0.3, 0.4]
    assert shown.filters["find_lr"].layout.display == "" and shown.filters["find_lr"].value == (0.1,)


def test_another_panel_keeps_the_rest(shown):
    shown.choices["hue"].value = "ticket"
    shown.choices["panel"].value = "resnet8 (width 4) on digits"
    assert shown.choices["hue"].value == "ticket" and set(shown.rows["network"]) == {"resnet8"}
    assert drawn(shown).startswith("resnet8 (width 4) on digits. ")


def test_what_would_be_mixed_is_said_in_place_of_the_figure(shown):
    shown.filters["eval_lr"].value = (0.1, 0.2)
    assert re.search("several rows for one point .* they differ in: .*eval_lr", shown.figure.value)
    assert shown.table.value == "" and "<img" not in shown.figure.value
    shown.filters["eval_lr"].value = ()
    assert shown.figure.value.startswith("<p>nothing to draw")
    shown.filters["eval_lr"].value = (0.2,)
    assert "Line chart" in drawn(shown)


def test_whatever_is_offered_first_can_be_drawn(shown, monkeypatch):
    monkeypatch.setattr(explore.markup, "svg", lambda drawing: b"")  # drawing to a file takes most of the time
    seen = 0
    for name in ("one", "two"):
        shown.choices["study"].value = name
        for what in shown.choices["what"].options:
            shown.choices["what"].value = what
            for x, hue in itertools.product(shown.choices["x"].options, ("ticket and mask", "level")):
                shown.choices["x"].value = x
                shown.choices["hue"].value = hue
                assert "Line chart" in drawn(shown), selections(shown)
                seen += 1
    assert seen > 40


def test_readings_steps_and_p_of_a_measure_are_chosen_one_at_a_time():
    text = (
        TEXT.replace("levels: [1, 2]", "levels: [1, 2], at: [1ep, last]")
        .replace("rewind: 1ep", "rewind: 1it")
        .replace(
            "correlation_indicator: {{}}",
            "correlation_indicator: {{partner: [permuted, dense, own], p: [0.5, 0.1], at: [1it, last]}}",
        )
    )
    shown = explore.show(helpers.frame_of(spec.parse(text.format(name="one", evaluate=""))))
    shown.choices["what"].value = "correlation_indicator"
    chosen = {name: shown.filters[name].value for name in ("reading", "p", "measured_at", "prune_at")}
    assert chosen == {"reading": ("own",), "p": (0.1,), "measured_at": ("2ep",), "prune_at": ("2ep",)}
    assert "Line chart" in drawn(shown)
    shown.choices["x"].value = "p"
    assert shown.filters["p"].value == (0.1, 0.5) and "Line chart" in drawn(shown)


def test_a_notebook_shows_the_widgets(shown):
    bundle = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_nothing_to_explore_is_refused():
    with pytest.raises(ValueError, match="nothing to explore: none of 200 rows is done"):
        explore.show(study().assign(status="missing")[:200])
