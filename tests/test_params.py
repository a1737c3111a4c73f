"""The studies in params/: each reads, says what it rests on and costs, and has a small form that keeps the question."""

import re
from functools import cache
from pathlib import Path

import pytest

from lthlab import plan, spec, tickets
from lthlab.runs import epochs

ROOT = Path(__file__).resolve().parent.parent
OWN = {"own"}
"""Studies that need a module with a network of one's own; `tests/test_notebooks.py` executes them."""
FILES = [path for path in sorted((ROOT / "params").glob("*.yaml")) if path.stem not in OWN]
PAPERS = [path for path in FILES if path.stem.partition("_")[0] in ("ma", "lan", "morcos", "sooner")]
AXES = ("lr", "batch_size", "weight_decay", "optimizer")


def stem(path):
    return path.stem


@cache
def read(path, mini=False):
    return spec.read(path, mini=mini)


def header(path):
    """The text behind each label of a study's opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    text = re.sub(r"\n#  +", " ", "\n".join(comment))
    return dict(re.findall(r"^# (\w+): +(\S.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=stem)
def test_a_study_reads_and_is_named_as_its_file(path):
    config = read(path)
    assert (config.name, bool(config.title)) == (path.stem, True)
    assert config.reports
    assert all((ROOT / "notebooks" / f"{name}.ipynb").is_file() for name in (*config.stages, *config.reports))


@pytest.mark.parametrize("path", FILES, ids=stem)
def test_a_study_opens_with_what_it_rests_on(path):
    labels = [label for label in header(path) if label != "Mini" and (label != "Assumed" or path in PAPERS)]
    assert labels == ["Source", "Expected", *(["Assumed"] if path in PAPERS else []), "Cost", "Command"]
    title = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \S", title) and "params/" + path.name in header(path)["Command"]


@pytest.mark.parametrize("path", PAPERS, ids=stem)
def test_the_cost_of_a_study_is_what_it_plans(path):
    values = [item.value for item in tickets.expand(read(path))]
    needed = plan.needs(values)
    cost = header(path)["Cost"]
    total = epochs({train: (train.start, need.until) for train, need in needed.items()})
    assert cost.startswith(f"{len(needed):,} trainings, {total:,} epochs of "), f"{len(needed):,} and {total:,}: {cost}"
    assert re.search(r"about [\d,.]+ (hours|minutes) of one H100 \(lthlab plan\)", cost) and cost.endswith("not run.")


@pytest.mark.parametrize("path", FILES, ids=stem)
def test_what_takes_other_images_than_digits_has_a_small_form(path):
    data = {data.name for panel in read(path).panels for data in (panel.data, *(to for to, _ in panel.targets))}
    if data == {"digits"} and path not in PAPERS:
        return
    small = read(path, mini=True)
    assert {data.name for panel in small.panels for data in (panel.data, *(to for to, _ in panel.targets))} == {
        "digits"
    }
    assert max(recipe.epochs for panel in small.panels for pair in panel.recipes for recipe in pair) <= 20


def asked(config):
    """What a study asks, apart from how large it is: what a small form must keep."""
    panels = config.panels
    recipes = [(side, {pair[side] for pair in panel.recipes}) for panel in panels for side in (0, 1)]
    axes = {(side, name) for side, some in recipes for name in AXES if len({getattr(r, name) for r in some}) > 1}
    return {
        "tickets": {
            (name, method)
            for panel in panels
            for name, ticket in panel.tickets
            if ticket is not None
            for method in getattr(ticket, "methods", [""])
        },
        "measures": {name for panel in panels for name, measure in panel.measures if measure is not None},
        "axes": axes,
        "rules": {(panel.protocol.scope, panel.protocol.granularity, panel.protocol.schedule) for panel in panels},
        "steps": {len(panel.at) > 1 for panel in panels},
        "counts": {bool(any(panel.counted.values())) for panel in panels},
        "gradual": {bool(panel.gradual) for panel in panels},
        "targets": {bool(panel.targets) for panel in panels},
        "notebooks": {*config.stages, *config.reports},
    }


@pytest.mark.parametrize("path", PAPERS, ids=stem)
def test_a_small_form_keeps_the_question(path):
    """Only what the line 'Mini' of the header names may be missing, or be more."""
    whole, small = asked(read(path)), asked(read(path, mini=True))
    differing = {name for name in whole if whole[name] != small[name]}
    assert differing <= set(re.findall(r"\w+", header(path).get("Mini", ""))), {
        n: (whole[n], small[n]) for n in differing
    }


def test_there_is_a_study_for_every_figure_and_table_that_is_drawn_from_trainings():
    found = {path.stem for path in FILES}
    ma = {
        "ma_fig1",
        "ma_table3",
        "ma_table4",
        "ma_fig4_5",
        "ma_fig6",
        "ma_appendix_a",
        "ma_appendix_d",
        "ma_appendix_f",
    }
    ma |= {f"ma_fig3_{net}_cifar10" for net in ("resnet20", "resnet32", "mobilenet_v1", "resnet18", "vgg16")}
    ma |= {"ma_fig3_resnet50_imagenet"}
    lan = {
        "lan_fig1",
        "lan_fig2_lr",
        "lan_fig2_bs",
        "lan_fig2_wd",
        *(f"lan_fig{number}" for number in (3, 4, 5, 7, 8, 9)),
    }
    lan |= {f"lan_fig6_{field}" for field in ("lr", "bs", "wd")}
    lan |= {f"lan_a{number}" for number in range(1, 10)}
    assert ma | lan <= found
    assert {name for name in found if name.startswith(("ma_", "lan_"))} == ma | lan
