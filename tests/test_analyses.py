"""Analyses as values: what they may be of, which settings they take, and their keys."""

import helpers
import pytest

from lthlab.analyses import MEASURES, Measure
from lthlab.forms import parse
from lthlab.parts import Level
from lthlab.values import At, Fresh, Magnitude, Permuted, Train

RUN = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(epochs=4), Fresh(0), 0)
OTHER = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(epochs=4), Fresh(1), 1)
CONV = Train(helpers.narrow(), helpers.DIGITS, helpers.recipe(epochs=4), Fresh(0), 0)
STEPS = tuple(At(RUN, step) for step in ("0ep", "1ep", "2ep", "last"))
MASKS = tuple(Magnitude(At(RUN, step), Level(2)) for step in ("1ep", "2ep", "last"))
OF = {
    "correlation_indicator": (STEPS[0], STEPS[-1]),
    "weight_std": STEPS,
    "hamming": MASKS,
    "training_accuracy": STEPS[-1:],
    "loss_surface": STEPS[-1:],
    "sharpness": STEPS[-1:],
    "hessian_eigenvalue": STEPS[-1:],
    "loss_barrier": (STEPS[-1], At(OTHER, "last")),
}


@pytest.mark.parametrize("name", MEASURES)
def test_settings_at_their_defaults_stay_out_of_the_form_and_forms_are_read_back(name):
    value = Measure(name, OF[name])
    assert "settings" not in value.form() and value.setting == MEASURES[name]
    known = {item.key: item.form() for item in (RUN, OTHER, *MASKS)}
    assert parse(value.form(), known.__getitem__) == value
    assert Measure(name, OF[name], MEASURES[name]) == value


def test_settings_that_have_no_effect_do_not_move_a_key():
    plane = {"plane": "pca", "span": 2, "seed": 3}
    assert Measure("loss_surface", STEPS, plane) == Measure("loss_surface", STEPS, {"plane": "pca"})
    assert Measure("loss_surface", STEPS[-1:], {"span": 2}) != Measure("loss_surface", STEPS[-1:])


REFUSED = {
    "surface of one snapshot": (
        lambda: Measure("loss_surface", STEPS[-1:], {"plane": "pca"}),
        "loss_surface is of 3 or more states of one training, in order, not of",
    ),
    "surface of two": (
        lambda: Measure("loss_surface", STEPS[:2], {"plane": "pca"}),
        "loss_surface is of 3 or more states of one training, in order, not of",
    ),
    "surface of two trainings": (
        lambda: Measure("loss_surface", (*STEPS[:3], At(OTHER, "last")), {"plane": "pca"}),
        "is of 3 or more states of one training, in order, not of 0ep, 1ep, 2ep, 4ep",
    ),
    "random surface of several": (
        lambda: Measure("loss_surface", STEPS),
        "is of one state of a training where its plane is 'random', not of",
    ),
    "falling steps": (
        lambda: Measure("weight_std", STEPS[::-1]),
        "weight_std is of 1 or more states of one training, in order, not of 4ep, 2ep, 1ep, 0ep",
    ),
    "a step twice": (lambda: Measure("weight_std", (*STEPS, STEPS[-1])), "in order, not of 0ep, 1ep, 2ep, 4ep, 4ep"),
    "best": (lambda: Measure("weight_std", (STEPS[0], At(RUN, "best_test"))), "in order, not of 0ep, best_test"),
    "one mask": (lambda: Measure("hamming", MASKS[:1]), "hamming is of two or more masks of ranked weights, not of"),
    "random masks": (lambda: Measure("hamming", (MASKS[0], Permuted(MASKS[1]))), "two or more masks of ranked weights"),
    "masks of networks": (
        lambda: Measure("hamming", (MASKS[0], Magnitude(At(CONV, "2ep"), Level(2)))),
        "which have other layers; allowed: masks of one network",
    ),
    "masks of one step": (
        lambda: Measure("hamming", (MASKS[0], Magnitude(At(OTHER, "1ep"), Level(2)))),
        "hamming of two masks of step 1ep; allowed: one of each step",
    ),
    "line between networks": (
        lambda: Measure("loss_barrier", (STEPS[-1], At(CONV, "last"))),
        "is of two states of one network on the same data, not of",
    ),
    "points": (
        lambda: Measure("loss_barrier", OF["loss_barrier"], {"points": 2}),
        "points '2' is not allowed; allowed: whole numbers from 3",
    ),
    "span": (
        lambda: Measure("loss_surface", STEPS[-1:], {"span": 0.0}),
        "span '0' is not allowed; allowed: numbers above 0",
    ),
    "batchnorm": (
        lambda: Measure("sharpness", STEPS[-1:], {"batchnorm": "recomputed"}),
        "batchnorm 'recomputed' is not allowed; allowed: fixed, recompute; did you mean 'recompute'",
    ),
    "mask": (
        lambda: Measure("sharpness", STEPS[-1:], mask=MASKS[0]),
        "sharpness takes no mask; that of its states counts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()
