"""Figures of layer-wise ratios and of costs: the numbers that are drawn, and where."""

import itertools

import numpy as np
import pandas as pd
import pytest
import test_costs
import test_ratios
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from test_plots import expected

from lthlab import plots, profiles, ratios


@pytest.fixture
def ax():
    return Figure().subplots()


def series(ax):
    return {c.get_label(): c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)}


def layers(rates=(0.1,), levels=(2, 5, 9), steps=("4ep",), replicates=4):
    """Rows of three layers with random shares."""
    random = np.random.default_rng(0)
    rows = []
    for number, (rate, level, step, replicate) in enumerate(itertools.product(rates, levels, steps, range(replicates))):
        row = {"study": "s", "panel": "p", "network": "n", "data": "d", "train_size": 100, "find_batch_size": 50}
        row |= {"what": "mask", "ticket": "search", "method": "IMP", "level": level, "sparsity": 1 - 0.8**level}
        row |= {"prune_at": step, "find_lr": rate, "eval_lr": rate, "replicate": replicate, "status": "done"}
        for place in (1, 2, 3):
            share = random.uniform(0.2, 0.9)
            rows.append(
                row
                | {"layer": f"l{place}.weight", "number": place, "weights": 100, "kept": round(100 - 100 * share)}
                | {"value": share, "metric": "pruned share", "key": f"{number:032x}"}
            )
    return pd.DataFrame(rows)


def contrasts():
    rows = layers().query("number == 1").drop(columns=["layer", "number", "weights", "kept", "metric"])
    names = enumerate(ratios.CONTRASTS)
    return pd.concat([rows.assign(ticket=name, value=rows["value"] / 10 - place / 50) for place, name in names])


DRAWINGS = {
    "ratio_to_even": (profiles.ratio_to_even, lambda: ratios.to_even(layers())),
    "layers_by_setting": (profiles.layers_by_setting, lambda: ratios.found_with(layers((0.1, 0.3), (5,)))),
    "setting_by_layer": (profiles.setting_by_layer, lambda: ratios.by_setting(layers((0.1, 0.3)), "find_lr")),
    "layers_by_step": (
        profiles.layers_by_step,
        lambda: ratios.by_step(layers(levels=(5,), steps=("1ep", "3it", "4ep"))),
    ),
    "contrasts_by_sparsity": (profiles.contrasts_by_sparsity, contrasts),
}
HUES = {
    "ratio_to_even": ("number", "sparsity", 1),
    "layers_by_setting": ("number", "ticket", 100),
    "setting_by_layer": ("number", "sparsity", 100),
    "layers_by_step": ("prune_epoch", "layer", 100),
    "contrasts_by_sparsity": ("sparsity", "ticket", 100),
}
each = pytest.mark.parametrize("name", DRAWINGS)


@each
def test_means_and_intervals_are_those_of_the_replicates(name, ax):
    draw, make = DRAWINGS[name]
    frame = make()
    before = frame.copy(deep=True)
    assert draw(frame, ax=ax) is ax and pyplot.get_fignums() == []
    pd.testing.assert_frame_equal(frame, before)
    x, hue, scale = HUES[name]
    groups = list(frame.groupby(hue, sort=False))
    if hue in ("sparsity", "layer"):
        groups.sort(key=lambda group: group[1]["sparsity" if hue == "sparsity" else "number"].iloc[0])
    containers = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    assert len(containers) == len(groups) > 1
    for container, (_, own) in zip(containers, groups, strict=True):
        cells = sorted(own.groupby(x)["value"], key=lambda cell: cell[0])
        wanted = [expected(values, scale) for _, values in cells]
        np.testing.assert_allclose(container.lines[0].get_ydata(orig=False), [mean for mean, _, _ in wanted])
        drawn = [sorted(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(drawn, [[low, high] for _, low, high in wanted])
    text = plots.describe(ax)
    assert "nan" not in text and all(f"{label} " in text for label in series(ax))
    looks = {(line.get_marker(), line.get_linestyle()) for line in series(ax).values()}
    assert len(looks) == len(groups)


@each
def test_a_figure_of_its_own_has_a_legend(name):
    draw, make = DRAWINGS[name]
    own = draw(make())
    try:
        assert {text.get_text() for text in own.get_legend().get_texts()} >= set(series(own))
    finally:
        pyplot.close(own.figure)


@each
def test_nothing_done_and_mixtures_are_refused(name, ax):
    draw, make = DRAWINGS[name]
    with pytest.raises(ValueError, match="^nothing to draw: none of"):
        draw(make().assign(status="missing"), ax=ax)
    with pytest.raises(ValueError, match=r"^several rows for one point \("):
        draw(pd.concat([make(), make().assign(key="other")]), ax=ax)


def test_levels_are_blues_that_grow_darker_around_the_line_of_even_pruning(ax):
    profiles.ratio_to_even(ratios.to_even(layers(levels=tuple(range(1, 20)))), ax=ax)
    lines = series(ax)
    assert len(lines) == 7 and list(lines)[-1] == f"{100 * 0.8**19:.3g} % left" and list(lines)[0] == "80 % left"
    light = [sum(to_rgb(line.get_color())) for line in lines.values()]
    assert light == sorted(light, reverse=True) and len(set(light)) == 7
    assert any(np.allclose(line.get_ydata(), 1) for line in ax.lines if str(line.get_label()).startswith("_"))
    assert ax.get_xlabel() == "prunable layer, from the input" and ax.get_ylim()[0] == 0


def test_what_is_subtracted_is_on_the_axis(ax):
    profiles.setting_by_layer(DRAWINGS["setting_by_layer"][1](), ax=ax)
    assert ax.get_ylabel() == "weights pruned,\nlearning rate 0.1 − 0.3 (points)"


def test_steps_are_where_they_are_in_epochs(ax):
    """100 images in batches of 50 are two steps an epoch."""
    profiles.layers_by_step(DRAWINGS["layers_by_step"][1](), ax=ax)
    line = series(ax)["1: l1"]
    assert list(line.get_xdata(orig=False)) == [1, 1.5, 4]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "1.5", "4"]


def test_costs_are_on_a_logarithmic_axis_on_which_nothing_has_a_place(ax):
    frame = test_costs.tidy().assign(metric="test_accuracy")
    rows = frame[(frame["eval_lr"] == 0.1) & frame["level"].isin([0, 5])]
    profiles.accuracy_by_cost(rows, ax=ax)
    lines = series(ax)
    assert set(lines) == {"LT on IMP masks", "LT on OMP masks", "SDT"}
    one_shot = lines["LT on OMP masks"]
    np.testing.assert_allclose(one_shot.get_xdata(orig=False), [10, 20], rtol=0.1)
    np.testing.assert_allclose(one_shot.get_ydata(orig=False), [61, 71])
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "10", "20", "100"]
    place = ax.get_xticks()[0]
    np.testing.assert_allclose(lines["SDT"].get_xdata(orig=False), [place], rtol=0.1)
    (gap,) = [
        line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert place < gap < 10
    (level,) = [line for line in ax.lines if str(line.get_label()).startswith("dense")]
    np.testing.assert_allclose(level.get_ydata(), 91)


def test_random_tickets_that_cost_nothing_are_drawn_once(ax):
    frame = test_costs.tidy().assign(metric="test_accuracy", scope=None)
    rows = frame[(frame["eval_lr"] == 0.1) & (frame["level"] == 5) & (frame["ticket"] != "SDT")]
    free = rows[rows["method"] == "OMP"].assign(ticket="RT", scope="global", search_epochs=0)
    profiles.accuracy_by_cost(pd.concat([rows, free]), ax=ax)
    assert series(ax)["RT on permuted OMP masks"].get_ydata(orig=False).tolist() == pytest.approx([71])


def test_more_lines_than_markers_are_drawn(ax):
    masks = [([8, 20, 2], {"find_lr": 0.01 * (number + 1)}) for number in range(12)]
    profiles.layers_by_setting(ratios.found_with(test_ratios.layers(*masks, sparsity=0.7)), ax)
    assert len(ax.containers) == 12
