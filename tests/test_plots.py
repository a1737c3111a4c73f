"""Figures: the numbers that are drawn, what a reader can tell apart, and the words beside them."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from lthlab import plots, results

LEVELS = (4, 8, 12)
RATES = (0.01, 0.2)
TICKETS = [("LT", "IMP"), ("LT", "OMP"), ("RR", "IMP"), ("RR", "OMP"), ("WR", "IMP"), ("RT", "IMP"), ("SDT", None)]
TICKETS += [("dense", None)]


def tidy(what="train", replicates=4, tickets=TICKETS, seed=0) -> pd.DataFrame:
    """Tidy rows with random values."""
    random = np.random.default_rng(seed)
    rows = []
    for (ticket, method), rate, replicate in itertools.product(tickets, RATES, range(replicates)):
        for level in (0,) if ticket == "dense" else LEVELS:
            row = {"study": "s", "network": "n", "data": "d", "what": what, "ticket": ticket, "method": method}
            row |= {"level": level, "sparsity": 1 - 0.8**level, "find_lr": rate, "eval_lr": rate}
            row |= {
                "replicate": replicate,
                "epoch": 20.0,
                "metric": "test_accuracy" if what == "train" else what,
                "value": random.uniform(0.5, 1),
            }
            rows.append(row | {"chance": random.uniform(0.09, 0.11), "status": "done", "key": f"{len(rows):032x}"})
    return pd.DataFrame(rows)


def at_rate(frame: pd.DataFrame, rate: float = 0.01) -> pd.DataFrame:
    return frame[frame["eval_lr"] == rate]


def at_level(frame: pd.DataFrame, level: int = 8) -> pd.DataFrame:
    return frame[frame["level"].isin([0, level])]


def pairs(replicates=4) -> pd.DataFrame:
    by = ["eval_lr", "method", "level", "sparsity"]
    frame = tidy(replicates=replicates).assign(study="s")
    return at_rate(results.differences(frame, "LT", "RR", by).assign(ticket="LT − RR"))


def ratios(replicates=4) -> pd.DataFrame:
    """Rows of layers at one learning rate."""
    masks = at_rate(tidy(what="mask", replicates=replicates, tickets=[("search", "IMP"), ("search", "OMP")]))
    masks["rewind"] = masks["method"].map({"IMP": "0ep", "OMP": None})
    random = np.random.default_rng(1)
    layers = [masks.assign(layer=f"fc{n}.weight", number=n, metric="pruned share") for n in (1, 2, 3)]
    return pd.concat(layers, ignore_index=True).assign(value=lambda rows: random.uniform(size=len(rows)))


DRAWINGS = {
    "accuracy_by_sparsity": (plots.accuracy_by_sparsity, lambda **options: at_rate(tidy(**options))),
    "accuracy_by_lr": (plots.accuracy_by_lr, lambda **options: at_level(tidy(**options))),
    "difference_by_sparsity": (plots.difference_by_sparsity, pairs),
    "correlation_by_lr": (
        plots.correlation_by_lr,
        lambda **options: at_level(tidy("correlation_indicator", **options)),
    ),
    "correlation_by_sparsity": (
        plots.correlation_by_sparsity,
        lambda **options: at_rate(tidy("correlation_indicator", **options)),
    ),
}
each = pytest.mark.parametrize("draw, make", DRAWINGS.values(), ids=DRAWINGS)


@pytest.fixture
def ax():
    return Figure().subplots()


def series(ax) -> dict[str, ErrorbarContainer]:
    return {c.get_label(): c for c in ax.containers if isinstance(c, ErrorbarContainer)}


def expected(values, scale) -> tuple[float, float, float]:
    mean, error = np.mean(values), scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return scale * mean, scale * low, scale * high


@each
def test_means_and_intervals_are_those_of_the_replicates(draw, make, ax):
    frame = make()
    draw(frame, ax=ax)
    x = "eval_lr" if draw.__name__.endswith("by_lr") else "sparsity"
    scale = 1 if "correlation" in draw.__name__ else 100
    found = series(ax)
    rows = frame if x == "eval_lr" else frame[frame["ticket"] != "dense"]
    labels = set()
    for (ticket, method), own in rows.groupby(["ticket", "method"], dropna=False):
        permuted = "permuted " if ticket == "RT" else ""
        label = ticket if pd.isna(method) else f"{ticket} on {permuted}{method} masks"
        labels.add(label)
        line, _, (bars,) = found[label].lines
        wanted = [expected(cell["value"], scale) for _, cell in own.groupby(x)]
        np.testing.assert_allclose(line.get_ydata(orig=False), [mean for mean, _, _ in wanted])
        drawn = [sorted(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(drawn, [[low, high] for _, low, high in wanted])
        places = sorted(own[x].unique())
        at = places if x == "eval_lr" else [100 * (1 - place) for place in places]
        np.testing.assert_allclose(line.get_xdata(orig=False), at, rtol=0.12)
    assert set(found) == labels


@each
def test_only_what_is_done_counts(draw, make, ax):
    frame = make()
    odd = frame.copy()
    odd["status"] = odd["status"].where(odd["replicate"] > 0, "diverged")
    odd["value"] = odd["value"].where(odd["replicate"] > 0, 7.0)
    draw(odd, ax=ax)
    other = draw(frame[frame["replicate"] > 0], ax=Figure().subplots())
    for label, container in series(ax).items():
        np.testing.assert_array_equal(
            container.lines[0].get_ydata(orig=False), series(other)[label].lines[0].get_ydata(orig=False)
        )


@each
def test_the_frame_stays_as_it_is(draw, make, ax):
    frame = make()
    before = frame.copy(deep=True)
    assert draw(frame, ax=ax) is ax
    pd.testing.assert_frame_equal(frame, before)


@each
def test_a_figure_is_opened_only_where_no_axes_are_given(draw, make, ax):
    draw(make(), ax=ax)
    assert pyplot.get_fignums() == []
    own = draw(make())
    try:
        assert pyplot.get_fignums() == [own.figure.number]
        own.figure.draw_without_rendering()
        legend = own.get_legend()
        assert legend.get_window_extent().x0 >= own.get_window_extent().x1
        names = {text.get_text() for text in legend.get_texts()}
        assert set(series(own)) <= names
    finally:
        pyplot.close(own.figure)


@each
def test_series_differ_without_colour_too(draw, make, ax):
    draw(make(), ax=ax)
    lines = {label: container.lines[0] for label, container in series(ax).items()}
    shapes = {(line.get_marker(), line.get_linestyle(), to_hex(line.get_markerfacecolor())) for line in lines.values()}
    assert len(shapes) == len(lines)
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines.values()}) == len(lines)


def test_a_ticket_has_one_colour_in_all_figures():
    colours = {}
    for draw, make in (DRAWINGS[name] for name in DRAWINGS if not name.startswith("difference")):
        for label, container in series(draw(make(), ax=Figure().subplots())).items():
            colours.setdefault(label.partition(" ")[0], set()).add(to_hex(container.lines[0].get_color()))
    assert {ticket: len(found) for ticket, found in colours.items()} == dict.fromkeys(colours, 1)
    assert len(set.union(*colours.values())) == len(colours) == 6


# Machado et al. 2009: how linear RGB appears without one of the three kinds of cones.
BLIND = {
    "none": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB, in which distances are about as large as they look."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLIND)
def test_colours_of_tickets_are_told_apart_by_colour_blind_readers_and_on_white(kind, ax):
    plots.accuracy_by_lr(at_level(tidy()), ax=ax)
    colours = {label.split()[0]: to_hex(c.lines[0].get_color()) for label, c in series(ax).items()}
    seen = {ticket: lab(np.array(BLIND[kind]) @ linear(colour)) for ticket, colour in colours.items()}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(distances.values()) > 15, min(distances, key=distances.get)
    contrast = {t: 1.05 / (linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05) for t, c in colours.items()}
    assert min(contrast.values()) >= 3, contrast


@each
def test_axes_say_what_and_in_which_unit(draw, make, ax):
    draw(make(), ax=ax)
    units = {
        "accuracy_by_sparsity": ("prunable weights remaining (%)\nand pruning level", "test accuracy (%)"),
        "accuracy_by_lr": ("learning rate", "test accuracy (%)"),
        "difference_by_sparsity": ("prunable weights remaining (%)\nand pruning level", "LT − RR (percentage points)"),
        "correlation_by_lr": ("learning rate", "correlation indicator Rₚ"),
        "correlation_by_sparsity": (
            "prunable weights remaining (%)\nand pruning level",
            "correlation indicator Rₚ",
        ),
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == units[draw.__name__]
    assert ax.get_xscale() == "log"


def test_sparser_networks_are_further_right_and_ticks_name_share_and_level(ax):
    plots.accuracy_by_sparsity(at_rate(tidy()), ax=ax)
    left, right = ax.get_xlim()
    assert left > right
    assert [text.get_text() for text in ax.get_xticklabels()] == ["41\n4", "16.8\n8", "6.87\n12"]
    np.testing.assert_allclose(ax.get_xticks(), [100 * 0.8**level for level in LEVELS])


def test_many_levels_do_not_crowd_the_axis(ax):
    one = at_rate(tidy(replicates=1, tickets=[("LT", "IMP")])).iloc[:1]
    many = pd.concat([one.assign(level=k, sparsity=1 - 0.8**k) for k in range(1, 31)])
    plots.accuracy_by_sparsity(many, ax=ax)
    assert 4 <= len(ax.get_xticks()) <= 7


def test_dense_networks_are_a_level_with_its_interval(ax):
    frame = at_rate(tidy())
    plots.accuracy_by_sparsity(frame, ax=ax)
    mean, low, high = expected(frame.loc[frame["ticket"] == "dense", "value"], 100)
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith("dense")]
    np.testing.assert_allclose(line.get_ydata(orig=False), mean)
    (band,) = ax.patches
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [low, high])


@pytest.mark.parametrize("name", ["correlation_by_lr", "correlation_by_sparsity"])
def test_the_chance_level_is_that_of_the_measures(name, ax):
    draw, make = DRAWINGS[name]
    frame = make()
    draw(frame, ax=ax)
    (line,) = [line for line in ax.lines if line.get_label() == "chance level"]
    np.testing.assert_allclose(line.get_ydata(orig=False), frame["chance"].mean())
    assert ax.get_ylim()[0] == 0


def test_each_pair_is_a_dot(ax):
    frame = pairs()
    plots.difference_by_sparsity(frame, ax=ax)
    dots = np.concatenate([line.get_ydata(orig=False) for line in ax.lines if line.get_marker() == "."])
    np.testing.assert_allclose(np.sort(dots), np.sort(100 * frame["value"]))


def test_one_replicate_has_a_point_and_no_interval(ax):
    frame = at_rate(tidy(replicates=1))
    plots.accuracy_by_sparsity(frame, ax=ax)
    line, _, (bars,) = series(ax)["LT on IMP masks"].lines
    assert np.isfinite(line.get_ydata(orig=False)).all()
    assert not any(np.isfinite(segment).any() for segment in bars.get_segments())
    assert "one replicate gives no interval" in plots.caption(frame)
    assert plots.sample_size(frame) == "n = 1 replicate"


@pytest.mark.parametrize("draw", [plots.accuracy_by_sparsity, plots.accuracy_by_lr])
def test_one_wide_interval_does_not_flatten_the_rest(draw, ax):
    frame = DRAWINGS[draw.__name__][1]().assign(value=lambda rows: 0.9 + rows["value"] / 50)
    draw(frame, ax=ax)
    assert not plots.cut(ax)
    low, high = ax.get_ylim()
    ends = [
        value
        for _, _, (bars,) in (c.lines for c in series(ax).values())
        for s in bars.get_segments()
        for value in s[:, 1]
    ]
    assert low < min(ends) and max(ends) < high < 100.5
    wild = frame[(frame["ticket"] == "SDT")].index[:1]
    odd = draw(frame.assign(value=frame["value"].where(~frame.index.isin(wild), 0.3)), ax=Figure().subplots())
    means = [value for c in series(odd).values() for value in c.lines[0].get_ydata(orig=False)]
    low, high = odd.get_ylim()
    assert plots.cut(odd) and low < min(means) and max(means) < high < 101
    assert low > min(means) - 0.6 * (max(means) - min(means))


@each
def test_nothing_done_is_refused(draw, make, ax):
    frame = make().assign(status="missing")
    with pytest.raises(ValueError, match=rf"^nothing to draw: none of {len(frame)} rows is done$"):
        draw(frame, ax=ax)


def test_rows_of_another_kind_are_refused(ax):
    frame = pd.concat([at_rate(tidy()), at_rate(tidy("mask"))])
    with pytest.raises(ValueError, match="^rows differ in what: mask, train; choose one$"):
        plots.accuracy_by_sparsity(frame, ax=ax)


@pytest.mark.parametrize(
    "draw, differ", [(plots.accuracy_by_sparsity, "find_lr, eval_lr"), (plots.accuracy_by_lr, "level, sparsity")]
)
def test_a_point_never_mixes_what_is_not_a_replicate(draw, differ, ax):
    frame = tidy(tickets=[("LT", "IMP")]).drop(columns="chance")
    with pytest.raises(ValueError, match=rf"several rows for one point \(.*LT.*\); they differ in: {differ}$"):
        draw(frame, ax=ax)


def test_caption_says_n_estimator_interval_and_epoch():
    frame = tidy()
    text = plots.caption(frame)
    assert text == (
        "Points are means over n = 4 replicates; bars are 95 % intervals of the mean (Student's t). "
        "Accuracy on the test set after epoch 20."
    )
    uneven = frame.assign(status=frame["status"].where((frame["ticket"] != "LT") | (frame["replicate"] > 0), "failed"))
    assert plots.sample_size(uneven) == "n = 3 to 4 replicates"
    assert plots.sample_size(frame.assign(status="failed")) == "n = 0 replicates"


def test_description_says_what_range_and_trend(ax):
    frame = at_rate(tidy(tickets=[("LT", "IMP"), ("RR", "IMP"), ("dense", None)]))
    means = {("LT", 4): 0.9, ("LT", 8): 0.85, ("LT", 12): 0.8, ("RR", 4): 0.7, ("RR", 8): 0.6, ("RR", 12): 0.65}
    values = [means.get(place, 0.95) for place in zip(frame["ticket"], frame["level"], strict=True)]
    plots.accuracy_by_sparsity(frame.assign(value=values), ax=ax)
    ax.set_title("learning rate 0.01")
    assert plots.describe(ax) == (
        "learning rate 0.01. Line chart of test accuracy (%) against prunable weights remaining (%); "
        "means range from 60 to 90. LT on IMP masks falls from 90 to 80; "
        "RR on IMP masks goes from 70 to 65, between 60 and 70; dense, with its interval is at 95."
    )


@each
def test_description_names_every_series(draw, make, ax):
    draw(make(), ax=ax)
    text = plots.describe(ax)
    assert all(f"{label} " in text for label in series(ax))
    assert "nan" not in text and "$" not in text


def test_layers_are_drawn_in_network_order_with_their_shares(ax):
    frame = ratios()
    plots.layer_ratios(frame, ax=ax)
    found = series(ax)
    assert list(found) == [
        f"{method} masks, level {level} ({left} % left)"
        for method in ("IMP", "OMP")
        for level, left in ((4, "41"), (8, "16.8"), (12, "6.87"))
    ]
    for (method, level), rows in frame.groupby(["method", "level"]):
        (label,) = [name for name in found if name.startswith(f"{method} masks, level {level} ")]
        line, _, (bars,) = found[label].lines
        wanted = [expected(own["value"], 100) for _, own in rows.groupby("number")]
        np.testing.assert_allclose(line.get_xdata(orig=False), [1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(orig=False), [mean for mean, _, _ in wanted])
        np.testing.assert_allclose([sorted(s[:, 1]) for s in bars.get_segments()], [[lo, hi] for _, lo, hi in wanted])
    lines = [container.lines[0] for container in found.values()]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines)
    assert ax.get_ylim() == (0, 100)


def test_masks_of_a_chain_that_rewinds_are_lines_of_their_own(ax):
    frame = ratios()
    late = frame[frame["method"] == "IMP"].assign(rewind="1ep", value=lambda rows: rows["value"] / 2)
    plots.layer_ratios(pd.concat([frame, late]), ax=ax)
    lines = {label: container.lines[0] for label, container in series(ax).items()}
    looks = {(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines.values()}
    assert len(lines) == len(looks) == 9
    first, second = (
        lines[f"IMP masks{words}, level 8 (16.8 % left)"] for words in (" (weights of 0ep)", " (weights of 1ep)")
    )
    np.testing.assert_allclose(second.get_ydata(orig=False), np.asarray(first.get_ydata(orig=False)) / 2)


def test_of_many_levels_those_are_drawn_that_all_methods_have_the_sparsest_among_them(ax):
    one = ratios(replicates=2)
    one = one[one["level"] == 4]
    many = [one[one["method"] == "IMP"].assign(level=k, sparsity=1 - 0.8**k) for k in range(1, 17)]
    many += [one[one["method"] == "OMP"].assign(level=k, sparsity=1 - 0.8**k) for k in (2, 4, 6, 8, 10, 12, 14)]
    plots.layer_ratios(pd.concat(many), ax=ax)
    assert [label.split("level ")[1].split()[0] for label in series(ax)] == ["2", "6", "10", "14"] * 2


def test_shares_off_the_ladder_are_drawn_by_their_sparsity(ax):
    frame = ratios().query("method == 'OMP'")
    plots.layer_ratios(frame, ax=ax)
    on = [line.lines[0].get_ydata(orig=False).tolist() for line in series(ax).values()]
    other = Figure().subplots()
    plots.layer_ratios(frame.assign(level=np.nan), ax=other)
    off = {label: line.lines[0].get_ydata(orig=False).tolist() for label, line in series(other).items()}
    assert off == dict(zip([f"OMP masks, {left} % left" for left in ("41", "16.8", "6.87")], on, strict=True))


@pytest.mark.parametrize(
    "x, hue, select",
    [
        ("sparsity", "ticket and mask", at_rate),
        ("eval_lr", "ticket and mask", at_level),
        ("level", "eval_lr", lambda frame: frame[(frame["ticket"] == "LT") & (frame["method"] == "OMP")]),
        ("eval_lr", "level", lambda frame: frame[(frame["ticket"] == "RR") & (frame["method"] == "IMP")]),
        ("eval_lr", "ticket", lambda frame: at_level(frame[frame["method"] != "OMP"])),
    ],
)
def test_any_columns_are_drawn_against_each_other(x, hue, select, ax):
    frame = select(tidy())
    plots.means(frame, x, hue, ax=ax)
    by = [["ticket", "method"] if hue == "ticket and mask" else hue]
    groups = list(frame.groupby(*by, dropna=False))
    assert len(series(ax)) == len(groups)
    drawn = sorted(value for c in series(ax).values() for value in c.lines[0].get_ydata(orig=False))
    wanted = sorted(100 * cell["value"].mean() for _, rows in groups for _, cell in rows.groupby(x))
    np.testing.assert_allclose(drawn, wanted)
    assert ax.get_ylabel() == "test accuracy (%)" and len(set(series(ax))) == len(series(ax))


def test_any_columns_never_mix_what_is_not_a_replicate(ax):
    with pytest.raises(ValueError, match=r"several rows for one point \(.*\); they differ in: ticket, method, level"):
        plots.means(tidy(), "eval_lr", "eval_lr", ax=ax)


def test_a_measure_is_drawn_as_it_is(ax):
    frame = at_level(tidy("correlation_indicator"))
    plots.means(frame, "eval_lr", "ticket and mask", ax=ax)
    highest = max(max(c.lines[0].get_ydata(orig=False)) for c in series(ax).values())
    assert highest < 1 and ax.get_ylabel() == "correlation indicator"


def test_redundancy_is_drawn_by_kind_of_connections(ax):
    """Points at their places, sparsity in %; panels whose connections are not known are a series of their own."""
    kinds = ["with residual connections", "without residual connections", None, "without residual connections"]
    frame = pd.DataFrame({"redundancy": [2.0, 30.0, 5.0, 7.0], "sparsity": [0.9, 0.0, 0.5, 0.7], "connections": kinds})
    frame["certain"] = [True, True, True, False]
    plots.sparsity_by_redundancy(frame, ax)
    drawn = {item.get_label(): item.lines[0].get_xydata().tolist() for item in ax.containers}
    assert drawn == {
        "with residual connections": [[2.0, 90.0]],
        "without residual connections": [[30.0, 0.0]],
        "without residual connections, by means": [[7.0, 70.0]],
        "residual connections not known": [[5.0, 50.0]],
    }
    assert ax.get_xscale() == "log" and len({item.lines[0].get_marker() for item in ax.containers}) == 3
    assert all(item.lines[0].get_linestyle() == "None" for item in ax.containers)
    faces = {item.get_label(): item.lines[0].get_markerfacecolor() for item in ax.containers}
    assert [name for name, face in faces.items() if face == "white"] == ["without residual connections, by means"]
