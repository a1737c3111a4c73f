"""Figures of early tickets: the numbers that are drawn, and where."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import test_early
import test_saturation
from matplotlib import pyplot
from matplotlib.figure import Figure
from test_plots import expected
from test_profiles import series

from lthlab import early, plots, reports, saturation, timelines

PANEL = {"study": "s", "network": "n", "data": "d", "train_size": 96, "find_batch_size": 32, "find_milestones": ["7ep"]}


@pytest.fixture
def ax():
    return Figure().subplots()


def spreads():
    return early.spreads(test_early.spreads())


def ppr():
    random = np.random.default_rng(0)
    names = ("PPR at 0.01", "PPR at 0.1", "dense, not pruned")
    shared = PANEL | {"panel": "p", "what": "ppr", "metric": "test_accuracy", "ticket": "PPR", "find_lr": 0.1}
    return pd.DataFrame(
        {**shared, "series": name, "order": order, "prune_epoch": float(step), "prune_at": f"{step}ep", "sparsity": 0.8}
        | {
            "value": random.uniform(0.4, 0.9),
            "status": "done",
            "replicate": replicate,
            "key": f"{order}{step}{replicate}",
        }
        for (order, name), step, replicate in itertools.product(enumerate(names), range(1, 13), range(4))
    )


def signals():
    rows = test_saturation.signals(PPR=4, LPR=6, Hamming=8, noise=0.01).assign(**PANEL | {"find_milestones": "['7ep']"})
    return early.scaled(rows, saturation.advice(rows))


def memory():
    return early.memorization(test_early.memorized())


DRAWINGS = {
    "spread_by_epoch": (timelines.spread_by_epoch, spreads, "at_epoch", "layer", 1),
    "ppr_by_epoch": (timelines.ppr_by_epoch, ppr, "prune_epoch", "series", 100),
    "signals_by_epoch": (timelines.signals_by_epoch, signals, "prune_epoch", "series", 1),
    "memorized_by_images": (timelines.memorized_by_images, memory, "images", "series", 100),
}
each = pytest.mark.parametrize("name", DRAWINGS)


@each
def test_means_and_intervals_are_those_of_the_replicates(name, ax):
    draw, make, x, hue, scale = DRAWINGS[name]
    frame = make()
    before = frame.copy(deep=True)
    assert draw(frame, ax=ax) is ax and pyplot.get_fignums() == []
    pd.testing.assert_frame_equal(frame, before)
    lines = series(ax)
    assert len(lines) == frame[hue].nunique() > 1
    for label, line in lines.items():
        own = frame[frame[hue].map(lambda text, label=label: text.removesuffix(".weight") == label.split(": ")[-1])]
        wanted = [expected(values, scale) for _, values in own.groupby(x)["value"]]
        np.testing.assert_allclose(line.get_ydata(orig=False), [mean for mean, _, _ in wanted], atol=1e-12)
        np.testing.assert_allclose(line.get_xdata(orig=False), sorted(own[x].unique()), rtol=0.05, atol=0.07)
        (container,) = [item for item in ax.containers if item.get_label() == label]
        drawn = [sorted(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(drawn, [[low, high] for _, low, high in wanted], atol=1e-12)
    text = plots.describe(ax)
    assert "nan" not in text and all(f"{label} " in text for label in lines)
    looks = {(line.get_marker(), line.get_linestyle(), line.get_color()) for line in lines.values()}
    assert len(looks) == len(lines)


@each
def test_a_figure_of_its_own_has_a_legend(name):
    draw, make, *_ = DRAWINGS[name]
    own = draw(make())
    try:
        assert {text.get_text() for text in own.get_legend().get_texts()} >= set(series(own))
    finally:
        pyplot.close(own.figure)


@each
def test_nothing_done_and_mixtures_are_refused(name, ax):
    draw, make, *_ = DRAWINGS[name]
    with pytest.raises(ValueError, match="^nothing to draw: none of"):
        draw(make().assign(status="missing"), ax=ax)
    with pytest.raises(ValueError, match=r"^several rows for one point \("):
        draw(pd.concat([make(), make().assign(key="other")]), ax=ax)


@each
def test_a_report_shows_it_with_its_numbers(name):
    draw, make, *_ = DRAWINGS[name]
    page = reports.figure(draw, make(), "facet" if name == "signals_by_epoch" else None, "About.")
    assert page.count("<figure>") == 1 and "About." in page and "nan" not in re.sub("<[^>]+>", " ", page)
    assert "after epoch" not in page, "no reported epoch is said of what has none"


def test_strokes_lead_where_equation_5_predicts(ax):
    timelines.spread_by_epoch(spreads(), ax=ax)
    (strokes,) = [item for item in ax.collections if "equation 5" in str(item.get_label())]
    first, second, *others = strokes.get_segments()
    np.testing.assert_allclose(first, [[0, 1.5], [1, 1.35]])
    np.testing.assert_allclose(second, [[1, 1.3], [2, 1.3 * 0.99]])
    assert len(others) == 2
    assert ax.get_yscale() == "log"
    timelines.spread_by_epoch(early.spreads(test_early.spreads(predicted=None)), ax=Figure().subplots())


@pytest.mark.parametrize("name, place", [("ppr_by_epoch", 7), ("signals_by_epoch", 7), ("spread_by_epoch", 2)])
def test_drops_of_the_learning_rate_are_marked(name, place, ax):
    draw, make, *_ = DRAWINGS[name]
    draw(make(), ax=ax)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_color() == "#999999"] == [place]


def test_a_signal_looks_the_same_where_others_are_missing(ax):
    timelines.signals_by_epoch(signals(), ax=ax)
    fewer = Figure().subplots()
    timelines.signals_by_epoch(signals().query("signal != 'PPR'"), ax=fewer)
    for name in ("LPR", "Hamming"):
        looks = [
            (line.get_linestyle(), line.get_marker(), line.get_color(), line.get_markerfacecolor())
            for line in (series(ax)[name], series(fewer)[name])
        ]
        assert looks[0] == looks[1]


def test_rings_are_where_signals_saturate_and_a_line_where_to_prune(ax):
    timelines.signals_by_epoch(signals(), ax=ax)
    rings = {line.get_xdata()[0]: line.get_ydata()[0] for line in ax.lines if line.get_markersize() == 13}
    assert sorted(rings) == [4, 6, 8] and all(abs(height - 1) < 0.1 for height in rings.values())
    (text,) = [text.get_text() for text in ax.texts]
    assert text == "advised: 6"
    still = signals().assign(saturated=np.nan, advised=np.nan)
    bare = Figure().subplots()
    timelines.signals_by_epoch(still, ax=bare)
    assert not bare.texts and not [line for line in bare.lines if line.get_markersize() == 13]


def test_of_many_epochs_of_pruning_five_are_drawn_the_last_among_them(ax):
    rows = test_early.memorized().query("sparsity == 0.8 and method == 'OMP' and prune_at == '1ep'")
    many = pd.concat([rows.assign(prune_at=f"{step}ep", key=rows["key"] + str(step)) for step in range(1, 13)])
    timelines.memorized_by_images(early.memorization(many), ax=ax)
    assert [label.split()[-1] for label in series(ax)] == ["1", "4", "7", "9", "12"]
