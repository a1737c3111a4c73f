"""Drawings of loss surfaces and of lines between weights: what is on the Axes is what the rows say."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lthlab import contours


def grid(points=5, loss=lambda x, y: 0.05 + x**2 + y**2, span=1.0):
    """Points of a surface."""
    places = np.linspace(-span, span, points)
    rows = [
        {"i": i, "j": j, "x": x, "y": y, "loss": loss(x, y)} for j, y in enumerate(places) for i, x in enumerate(places)
    ]
    return pd.DataFrame(rows)


def trajectory(epochs=5, **fields):
    steps = np.arange(epochs + 1)
    rows = pd.DataFrame(
        {"epoch": steps.astype(float), "x": 0.9 * (1 - steps / epochs), "y": 0.5 * (1 - steps / epochs)}
    )
    rows["loss"] = rows["x"] ** 2 + 0.1
    return rows.assign(plane_loss=rows["loss"] - 0.02, replicate=0, status="done", key="k", **fields)


def axes():
    return Figure().subplots()


def test_levels_are_round_numbers_between_the_losses_of_all_surfaces():
    both = pd.concat([grid(loss=lambda x, y: 0.03), grid(loss=lambda x, y: 7.0)])
    assert contours.scale(both, trajectory()).levels == (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
    far = pd.concat([grid(loss=lambda x, y: 0.003), grid(loss=lambda x, y: 2e6)])
    assert contours.scale(far, trajectory()).levels == tuple(10.0**k for k in range(-2, 7))
    near = contours.scale(pd.concat([grid(loss=lambda x, y: 2.1), grid(loss=lambda x, y: 2.6)]), trajectory()).levels
    assert len(near) >= 4 and np.ptp(np.diff(near)) < 1e-9 and near[0] > 2.1 and near[-1] < 2.6
    assert len(contours.scale(grid(loss=lambda x, y: 1.0), trajectory()).levels) == 2
    huge = pd.concat([grid(loss=lambda x, y: 1e-9), grid(loss=lambda x, y: 1e30)])
    assert 5 <= len(contours.scale(huge, trajectory()).levels) <= 12


def test_scale_covers_all_axes_and_epochs_and_needs_a_loss():
    both = pd.concat([grid(span=1.0), grid(span=3.0)])
    found = contours.scale(both, trajectory(7))
    assert (found.x, found.y, found.epochs) == ((-3, 3), (-3, 3), 7)
    with pytest.raises(ValueError, match="no point of these surfaces has a finite loss"):
        contours.scale(grid(loss=lambda x, y: np.nan), trajectory())


def test_a_surface_is_filled_by_its_losses_and_has_the_axes_of_all():
    cells = grid(21)
    common = contours.scale(pd.concat([cells, grid(span=2.0)]), trajectory())
    ax = contours.surface(cells.sample(frac=1, random_state=0), trajectory(), axes(), common, "printed")
    assert ax.get_xlim() == (-2, 2) and ax.get_ylim() == (-2, 2)
    (filled,) = [item for item in ax.collections if isinstance(item, matplotlib.contour.QuadContourSet)]
    assert tuple(filled.levels) == common.levels
    assert [text.get_text() for text in ax.texts] == ["printed"]
    for x, y in ((0.0, 0.0), (0.5, -0.5), (0.9, 0.9)):
        place = np.searchsorted(common.levels, 0.05 + x**2 + y**2)
        inside = [number for number, path in enumerate(filled.get_paths()) if path.contains_point((x, y))]
        assert inside[0] == place  # the rings around it contain it too
        assert filled.to_rgba(filled.cvalues)[place] == pytest.approx(common.colours(int(place)))


def test_the_path_is_marked_by_epoch_and_ends_with_a_star():
    path = trajectory(30)
    common = contours.scale(grid(), path)
    ax = contours.surface(grid(), path.sample(frac=1, random_state=0), axes(), common)
    (line,) = ax.lines
    assert line.get_xdata() == pytest.approx(path["x"]) and line.get_ydata() == pytest.approx(path["y"])
    dots, star = (item for item in ax.collections if not isinstance(item, matplotlib.contour.QuadContourSet))
    assert len(dots.get_offsets()) == 11 and star.get_offsets().tolist() == [[0, 0]]
    chosen = [int(np.argmin(np.abs(path["x"] - x))) for x, _ in dots.get_offsets()]
    assert dots.get_facecolors() == pytest.approx(matplotlib.colormaps["YlOrRd"](np.array(chosen) / 30), abs=0.01)
    assert len(contours.markers(30)) == 2 and "its end, epoch 30" in contours.markers(30)


def test_losses_that_are_not_finite_are_above_the_last_level():
    cells = grid(5)
    cells.loc[(cells["i"] == 4) & (cells["j"] == 4), "loss"] = np.nan
    common = contours.scale(cells, trajectory())
    ax = contours.surface(cells, trajectory().tail(1), axes(), common)
    (filled,) = [item for item in ax.collections if isinstance(item, matplotlib.contour.QuadContourSet)]
    assert filled.get_paths()[-1].contains_point((0.99, 0.99))


def test_a_legend_names_every_interval():
    common = contours.scale(grid(loss=lambda x, y: 0.03 + 2 * x**2), trajectory())
    names = list(common.legend())
    assert names[0] == f"loss below {common.levels[0]:g}" and names[-1] == f"{common.levels[-1]:g} or more"
    assert len(names) == len(common.levels) + 1
    colours = [patch.get_facecolor() for patch in common.legend().values()]
    assert len(set(colours)) == len(colours)
    above = [common.colours(common.norm([level * 1.001]))[0] for level in common.levels]
    np.testing.assert_allclose(above, colours[1:])


def test_own_losses_are_told_from_those_of_the_plane():
    path = pd.concat([trajectory(name="dense"), trajectory(name="LT").assign(key="l")])
    ax = contours.along_path(path)
    drawn = {item.get_label(): item for item in ax.containers}
    assert list(drawn) == [f"{name}, {kind}" for name in ("dense", "LT") for kind in (contours.OWN, contours.ON_PLANE)]
    for name, column in ((contours.OWN, "loss"), (contours.ON_PLANE, "plane_loss")):
        assert drawn[f"LT, {name}"].lines[0].get_ydata() == pytest.approx(trajectory()[column])
    assert ax.get_yscale() == "log" and ax.get_legend() is not None


def test_lines_between_weights_are_means_with_intervals():
    from scipy.stats import t

    rows = pd.DataFrame(
        [
            {
                "fraction": f,
                "loss": 1 + f * number,
                "name": "LT",
                "replicate": number,
                "status": "done",
                "key": str(number),
            }
            for f in (0.0, 0.5, 1.0)
            for number in (0, 1, 2)
        ]
    )
    ax = contours.between(rows, axes())
    (item,) = ax.containers
    assert item.lines[0].get_ydata() == pytest.approx([1, 1.5, 2]) and ax.get_xlabel() == "share of the way"
    (bars,) = item.lines[2]
    reach = t.ppf(0.975, 2) * 0.5 / 3**0.5
    assert bars.get_segments()[1][:, 1] == pytest.approx([1.5 - reach, 1.5 + reach])


def test_surfaces_in_words():
    text = contours.describe(grid(), trajectory())
    assert "from 0.05 at (0, 0) to 2.05" in text
    assert "leads from (0.9, 0.5), loss 0.91, to (0, 0), loss 0.1." in text
    assert contours.describe(grid(), trajectory().tail(1)).endswith("the trained weights are at (0, 0).")
