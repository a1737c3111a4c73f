"""Analyses as values: what is measured of which states and masks, with which settings."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

from lthlab.nodes import Value, choice
from lthlab.parts import POLICIES, plain_decimal
from lthlab.values import At, Magnitude, Mask, MaskOf

_IMAGES = {"images": "500", "split": "train"}
_EVALUATED = _IMAGES | {"batchnorm": "recompute"}
MEASURES: dict[str, dict[str, str]] = {
    "correlation_indicator": {"p": "0.1", "prunable": "all_but_head"},
    "weight_std": {"prunable": "all_but_head"},
    "hamming": {},
    "training_accuracy": {},
    "loss_surface": _EVALUATED | {"plane": "random", "points": "25", "span": "1", "parameters": "weights", "seed": "0"},
    "sharpness": _EVALUATED | {"radius": "0.1", "directions": "10", "seed": "0"},
    "hessian_eigenvalue": _IMAGES | {"iterations": "100", "tolerance": "0.001"},
    "loss_barrier": _EVALUATED | {"points": "11"},
}
"""Known measures, each with its settings and their defaults. Settings of several:

p : share of each layer's weights that counts as large, in (0, 1].
prunable : prunable set, one of `lthlab.parts.POLICIES`.
images, split : how many images of the 'train' or 'test' images the loss is a mean over, not augmented.
batchnorm : 'fixed', running statistics as they are (of a plane, those at its centre), or 'recompute', those that the
    weights of each point have on the images (Li et al. 2018 leave them fixed).
plane : 'random', filter-normalised directions (Li et al. 2018, section 4), or 'pca' of a trajectory (section 7).
points : number on each side of the plane, or on the line.
span : half the side of a random plane, in norms of the filters.
parameters : 'weights' only, or 'all', biases and BatchNorm's too.
seed : which random directions.
radius, directions : distance in norms of the filters, and number of directions.
iterations, tolerance : most iterations, and relative error at which they end.
"""

_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?)"
_WHOLE = (r"[1-9][0-9]*", "whole numbers from 1")
_POSITIVE = (rf"(?!0(?:\.0*)?$){_NUMBER}", "numbers above 0")
_RULES: dict[str, tuple[str, str]] = {
    "p": (r"0\.[0-9]+|1", "numbers above 0 up to 1"),
    "images": _WHOLE,
    "points": (r"[3-9]|[1-9][0-9]+", "whole numbers from 3"),
    "span": _POSITIVE,
    "seed": (r"0|[1-9][0-9]*", "whole numbers from 0"),
    "radius": _POSITIVE,
    "directions": _WHOLE,
    "iterations": _WHOLE,
    "tolerance": _POSITIVE,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "prunable": tuple(POLICIES),
    "split": ("train", "test"),
    "batchnorm": ("fixed", "recompute"),
    "plane": ("random", "pca"),
    "parameters": ("weights", "all"),
}
FEWEST_SNAPSHOTS = 3
"""States that span a plane."""


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Value):
    """A named analysis of weights and masks.

    Parameters
    ----------
    name : str
        One of `MEASURES`.
    of : tuple of At or Mask
        What is measured: two states ('correlation_indicator', 'loss_barrier'), rising steps of one training
        ('weight_std'; 'loss_surface' of a plane 'pca', the last its centre), one state (others), or masks ('hamming').
    settings : mapping or tuple of pairs, optional
        Settings by name, text or numbers; those not given have the values in `MEASURES`.
    mask : Mask, optional
        Of the correlation indicator: restrict to the weights that this mask keeps, instead of the mask that the
        trainings have.

    Raises
    ------
    ValueError
        For an unknown measure or setting, or if `of` is not what the measure is about.
    """

    stored: ClassVar[bool] = True
    name: str
    of: tuple[Value, ...]
    settings: tuple[tuple[str, str], ...] = ()
    mask: Mask | None = None

    def _check(self) -> None:
        choice(self.name, tuple(MEASURES), "measure")
        given, known = dict(self.settings), MEASURES[self.name]
        for name in given:
            choice(name, tuple(known), "setting")
        settings = {name: _setting(value, name) for name, value in (known | given).items()}
        for name, value in settings.items():
            if name in _CHOICES:
                choice(value, _CHOICES[name], name)
            elif not re.fullmatch(_RULES[name][0], value):
                raise ValueError(f"{name} {value!r} is not allowed; allowed: {_RULES[name][1]}")
        if settings.get("plane") == "pca":  # its directions are neither drawn nor scaled
            settings |= {name: known[name] for name in ("span", "seed")}
        self._set(of=tuple(self.of), settings=tuple(sorted(settings.items())))
        if self.mask is not None and self.name != "correlation_indicator":
            raise ValueError(f"{self.name} takes no mask; that of its states counts")
        _OF[self.name](self)

    @property
    def setting(self) -> dict[str, str]:
        """Settings by name, those at their defaults too."""
        return dict(self.settings)

    @property
    def evaluated(self) -> int:
        """Number of images that networks are evaluated on, at the most; one that slopes go through counts six times."""
        settings = self.setting
        if self.name == "training_accuracy":
            return sum(at.run.data.images for at in self.of if isinstance(at, At))
        points = {
            "loss_surface": int(settings.get("points", 0)) ** 2 + 2 * len(self.of),
            "sharpness": 1 + 2 * int(settings.get("directions", 0)),
            "hessian_eigenvalue": 6 * int(settings.get("iterations", 0)),
            "loss_barrier": int(settings.get("points", 0)),
        }.get(self.name, 0)
        return points * int(settings.get("images", 0)) * (2 if settings.get("batchnorm") == "recompute" else 1)

    def form(self) -> dict[str, Any]:
        form = super().form()
        form["settings"] = [list(pair) for pair in self.settings if pair not in MEASURES[self.name].items()]
        return form if form["settings"] else {name: item for name, item in form.items() if name != "settings"}


def _setting(value: object, name: str) -> str:
    """Write a setting as text, equal numbers alike."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"setting {name} {value!r} is not allowed; allowed: text and numbers")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return str(value)
    if not number.is_finite():
        raise ValueError(f"setting {name} {value!r} is not allowed; allowed: text and finite numbers")
    return plain_decimal(number)


# --- what measures are of ---------------------------------------------------------------------------------------


def _states(measure: Measure, fewest: int, most: int | None, words: str) -> tuple[At, ...]:
    states = tuple(item for item in measure.of if isinstance(item, At))
    if len(states) != len(measure.of) or not fewest <= len(states) <= (most or len(states)):
        raise ValueError(f"{measure.name} is of {words}, not of {measure.of!r}")
    return states


def _two(measure: Measure) -> None:
    _states(measure, 2, 2, "two states of trainings")


def _ends(measure: Measure) -> None:
    first, second = _states(measure, 2, 2, "two states of trainings")
    if (first.run.net, first.run.data) != (second.run.net, second.run.data):
        raise ValueError(f"{measure.name} is of two states of one network on the same data, not of {measure.of!r}")


def _one(measure: Measure) -> None:
    _states(measure, 1, 1, "one state of a training")


def _rising(measure: Measure, fewest: int) -> None:
    words = f"{fewest} or more states of one training, in order"
    states = _states(measure, fewest, None, words)
    steps = [at.run.iteration(at.step) for at in states if not at.step.startswith("best")]
    if len({at.run for at in states}) > 1 or len(steps) < len(states) or steps != sorted(set(steps)):
        raise ValueError(f"{measure.name} is of {words}, not of {', '.join(at.step for at in states)}")


def _surface(measure: Measure) -> None:
    if measure.setting["plane"] == "random":
        _states(measure, 1, 1, "one state of a training where its plane is 'random'")
    else:
        _rising(measure, FEWEST_SNAPSHOTS)


def _masks(measure: Measure) -> None:
    masks = [mask for mask in measure.of if isinstance(mask, Magnitude | MaskOf)]
    if len(masks) < max(len(measure.of), 2):
        raise ValueError(f"hamming is of two or more masks of ranked weights, not of {measure.of!r}")
    first, steps = masks[0], [mask.moments[0].step for mask in masks]
    if twice := [step for step in steps if steps.count(step) > 1]:
        raise ValueError(f"hamming of two masks of step {twice[0]}; allowed: one of each step")
    for mask in masks:
        if (mask.net, mask.policy) != (first.net, first.policy) or not mask.fits(first.source.data):
            raise ValueError(
                f"hamming of {first!r} and {mask!r}, which have other layers; allowed: masks of one network"
            )


_OF: Mapping[str, Callable[[Measure], None]] = {
    "correlation_indicator": _two,
    "weight_std": lambda measure: _rising(measure, 1),
    "hamming": _masks,
    "training_accuracy": _one,
    "loss_surface": _surface,
    "sharpness": _one,
    "hessian_eigenvalue": _one,
    "loss_barrier": _ends,
}
