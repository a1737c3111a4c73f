"""Pages of loss landscapes: figures of surfaces, lines, tables and comparisons, from the rows of measures."""

import re

import numpy as np
import pandas as pd
import pytest
from test_contours import grid, trajectory
from test_pages import Elements
from test_reports import downloaded

from lthlab import losses, results

BASE = {
    "study": "s", "panel": "n.d", "network": "n", "width": None, "shortcut": "B", "data": "d", "view": None,
    "train_size": 100, "ranking": "global", "source": "d", "target": "d", "status": "done", "rewind": "0ep",
    "schedule": "restart", "prune_at": "last", "pruning": None, "layer_counts": None, "scope": None,
}  # fmt: skip
KINDS = (("dense", None, None, 0.0), ("LT", "IMP", 3, 0.488), ("LT", "OMP", 3, 0.488))


def tidy(what, value, replicates=3, lrs=(0.1, 0.2), shortcuts=("B", "none"), **fields):
    """Rows of a measure; `value` is a function of shortcut, lr, method and replicate."""
    rows = [
        BASE
        | {"what": what, "metric": what, "shortcut": shortcut, "panel": f"n.{shortcut}", "ticket": ticket}
        | {"method": method, "level": level or 0, "sparsity": sparsity, "find_lr": lr, "eval_lr": lr}
        | {"replicate": replicate, "key": f"{what}{shortcut}{lr}{ticket}{method}{replicate}", "error": 0.01}
        | {"reading": None, "measured_at": None, "value": value(shortcut, lr, method, replicate)}
        | fields
        for shortcut in shortcuts
        for lr in lrs
        for ticket, method, level, sparsity in KINDS
        for replicate in range(replicates)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["ticket"] == "dense", ["rewind", "prune_at"]] = None
    return frame


def detailed(frame, rows, **about):
    """Rows of details of every row of a frame."""
    whole = [row | about | own for row in frame.to_dict("records") for own in rows(row).to_dict("records")]
    return pd.DataFrame(whole)


def surfaces(plane="pca", **fields):
    frame = tidy("loss_surface", lambda *_: 0.1, replicates=2, **fields)
    about = {"plane": plane, "batchnorm": "recompute", "images": 50, "split": "train", "parameters": "weights"}
    about |= {"points": 5, "explained_1": 0.9, "explained_2": 0.05}
    cells = detailed(frame, lambda row: grid(span=10 * row["eval_lr"]).assign(accuracy=0.5), **about)
    more = {"residual": 0.3, "accuracy": 0.5}
    path = trajectory().assign(step=[f"{e}ep" for e in range(6)], **more).drop(columns=["replicate", "status", "key"])
    return cells, detailed(frame, lambda row: path, **about)


def pictures(shown):
    return [image for image in Elements(shown).of("img") if image["alt"]]


def test_surfaces_stand_beside_each_other_with_one_scale():
    cells, paths = surfaces()
    shown = losses.surfaces(cells, paths, "pca", "What it is.")
    images = pictures(shown)
    assert [image["alt"].split(". ")[0] for image in images][:3] == [
        "n on d; dense, learning rate 0.1",
        "n on d; LT on IMP masks, learning rate 0.1; level 3 (51.2 % of the prunable weights left)",
        "n on d; LT on OMP masks, learning rate 0.1; level 3 (51.2 % of the prunable weights left)",
    ]
    assert len(images) == 12 and shown.count("<figure>") == 1
    text = Elements(shown).text
    for words in (
        "What it is. Loss over the plane of the path of training", "replicate 0.", "50 training images",
        "statistics of BatchNorm computed anew at each point", "one scale of colours and the same axes",
        "loss below 0.1", "5 or more", "its end, epoch 5",
    ):  # fmt: skip
        assert words in text
    points, path = (downloaded(link) for link in Elements(shown).of("a"))
    assert len(points) == 12 * 25 and len(path) == 12 * 6
    assert {row["plane_loss"] for row in path if row["step"] == "0ep"} == {"0.89"}
    assert float(points[0]["loss"]) == pytest.approx(cells["loss"].iloc[0], rel=1e-3)
    assert losses.surfaces(cells, paths, "pca", "What it is.") == shown


def test_small_surfaces_are_drawn_closer_in_the_same_colours():
    cells, paths = surfaces(lrs=(0.1, 0.3))
    shown = losses.surfaces(cells, paths, "pca", closer="eval_lr")
    assert shown.count("<figure>") == 1 and len(pictures(shown)) == 6
    assert all("learning rate 0.1" in image["alt"] for image in pictures(shown))
    legends = [
        re.findall(r"[0-9.]+ to [0-9.]+", Elements(drawn).text)
        for drawn in (shown, losses.surfaces(cells, paths, "pca"))
    ]
    assert legends[0] == legends[1]
    alike, ways = surfaces(lrs=(0.1, 0.15))
    assert "large enough" in losses.surfaces(alike, ways, "pca", closer="eval_lr")


def test_planes_and_settings_of_batchnorm_have_figures_of_their_own():
    (first, way), (second, _) = surfaces(shortcuts=("B",)), surfaces("random", shortcuts=("B",))
    both = pd.concat([first, second.assign(key=second["key"] + "r")])
    for plane, words in (("pca", "the plane of the path of training"), ("random", "a random plane")):
        shown = losses.surfaces(both, way, plane)
        assert shown.count("<figure>") == 1 and f"Loss over {words} through the trained weights" in Elements(shown).text
    fixed = first.assign(batchnorm="fixed", key=first["key"] + "f")
    assert losses.surfaces(pd.concat([both, fixed]), way, "pca").count("<figure>") == 2


def test_ends_of_trajectories():
    _, paths = surfaces()
    found = losses.ends(paths.sample(frac=1, random_state=0))
    assert len(found) == paths["key"].nunique() and set(found["step"]) == {"5ep"}


def test_what_is_not_there_is_said():
    nothing = pd.DataFrame()
    assert "No loss surface over a random plane is done" in losses.surfaces(nothing, nothing, "random")
    assert losses.ends(nothing).empty and "is done" in losses.along_paths(nothing)
    assert "No straight line between weights is done" in losses.between(nothing)
    frame = tidy("sharpness", lambda *_: 0.1)
    assert "No barrier of the loss is done" in losses.numbers(frame, "loss_barrier")
    assert "no two measures to compare" in losses.comparisons(frame[:0])


def test_panels_of_a_surface_are_small():
    cells, paths = surfaces(shortcuts=("B",), lrs=(0.1,))
    images = pictures(losses.surfaces(cells, paths, "pca"))
    assert max(len(image["src"]) for image in images) < 120_000


def test_numbers_are_means_with_intervals_over_replicates():
    frame = tidy("sharpness", lambda shortcut, lr, method, replicate: lr + 0.01 * replicate)
    shown = losses.numbers(frame, "sharpness")
    dense = frame[(frame["eval_lr"] == 0.1) & (frame["ticket"] == "dense") & (frame["shortcut"] == "B")]
    (cell,) = results.summarise(dense, ["ticket"]).to_dict("records")
    assert f"{cell['mean']:.3g} [{cell['low']:.3g}, {cell['high']:.3g}]" in Elements(shown).text
    (link,) = Elements(shown).of("a")
    assert len(downloaded(link)) == 36 and link["download"] == "sharpness.csv"


def test_differences_are_paired_by_replicate():
    """IMP is below OMP by 0.1 ± 0.01, whatever the replicate; nothing else differs on average."""
    noise = {0: 0.0, 1: 5.0, 2: -3.0}
    frame = tidy(
        "sharpness",
        lambda s, lr, m, r: 10 + noise[r] + (m == "OMP") * (0.1 + 0.01 * (r - 1)),
        lrs=(0.1,),
        shortcuts=("B",),
    )
    (row,) = losses.contrasts(frame).to_dict("records")
    assert (row["measure"], row["contrast"], row["n"]) == ("sharpness", "IMP minus OMP masks", 3)
    assert row["mean"] == pytest.approx(-0.1) and row["high"] < 0
    assert row["mean"] - row["low"] == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-5)
    text = Elements(losses.comparisons(frame)).text
    assert "Sharpness. IMP minus OMP masks: seen at 1 of 1, −0.10 [−0.12, −0.075]" in text


def test_learning_rates_and_shortcuts_are_compared_within_their_kind():
    frame = tidy(
        "hessian_eigenvalue", lambda s, lr, m, r: (3.0 if s == "none" else 1.0) + 10 * lr + 0.001 * r * (s == "B")
    )
    found = losses.contrasts(frame)
    kinds = found.groupby("contrast")["mean"]
    assert kinds.size().to_dict() == {
        "IMP minus OMP masks": 4, "learning rate 0.1 minus 0.2": 6, "with minus without shortcuts": 6,
    }  # fmt: skip
    assert kinds.mean().to_dict() == pytest.approx(
        {"IMP minus OMP masks": 0, "learning rate 0.1 minus 0.2": -1, "with minus without shortcuts": -1.999}
    )
    places = found[found["contrast"] == "with minus without shortcuts"]["at"].tolist()
    assert "dense, learning rate 0.1" in places and "LT on IMP masks, learning rate 0.2" in places
    places = found[found["contrast"] == "learning rate 0.1 minus 0.2"]["at"].tolist()
    assert "dense, without shortcuts" in places or "without shortcuts, dense" in places


def test_what_is_not_seen_is_said_and_one_replicate_gives_no_interval():
    frame = tidy("sharpness", lambda s, lr, m, r: float(r) * (-1 if m == "IMP" else 1), lrs=(0.1,), shortcuts=("B",))
    assert "IMP minus OMP masks: we did not see a difference, −2.0" in Elements(losses.comparisons(frame)).text
    one = tidy("sharpness", lambda *_: 1.0, replicates=1, lrs=(0.1,), shortcuts=("B",))
    assert "one replicate gives no interval" in Elements(losses.comparisons(one)).text


def test_lines_have_a_figure_for_each_kind_of_ends():
    parts = [
        tidy("loss_barrier", lambda *_: 0.2, reading="ends"),
        tidy("loss_barrier", lambda *_: 0.1, reading="orders", measured_at="2ep"),
    ]
    frame = pd.concat([parts[0], parts[1].assign(key=parts[1]["key"] + "o")], ignore_index=True)
    about = {"batchnorm": "fixed", "images": 50, "split": "test"}
    points = pd.DataFrame({"fraction": [0.0, 0.5, 1.0], "loss": [2.0, 3.0, 0.1], "accuracy": [0.1, 0.2, 0.9]})
    shown = losses.between(detailed(frame, lambda row: points, **about), "About.")
    text = Elements(shown).text
    assert shown.count("<figure>") == 2 and len(pictures(shown)) == 8
    assert "About. Loss from the first to the last weights. 50 test images; statistics of BatchNorm fixed" in text
    assert "Loss between two orders of the images from 2ep." in text and "n = 3 replicates" in text
    assert "barrier of the loss from the first to the last weights" in set(losses.contrasts(frame)["measure"])
    numbers = Elements(losses.numbers(frame, "loss_barrier")).text
    assert "between two orders of the images from 2ep" in numbers and "from the first to the last weights" in numbers


def test_own_and_plane_losses_along_paths():
    _, paths = surfaces()
    shown = losses.along_paths(paths[paths["replicate"] == 0], "About.")
    assert len(pictures(shown)) == 4 and "dense, own loss" in Elements(shown).text
    (link,) = Elements(shown).of("a")
    assert {"plane_loss", "residual", "network", "name"} <= downloaded(link)[0].keys()
