"""What the papers print, as data: numbers with their conditions, claims, and the presets that numbers are of."""

import csv
import json
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from lthlab import spec
from lthlab.errors import InputError, nearest
from lthlab.parts import Net
from lthlab.spec import Panel

PAPERS = {
    "ma2021": "Ma et al. 2021",
    "lan": "Lan et al. 2020",
    "morcos2019": "Morcos et al. 2019",
    "early2020": "The Sooner The Better",
}
"""Papers by the names that the files have for them."""
EXPECTED = ("more", "less", "alike", "yes", "no")
"""What a claim says of its effect: above zero, below zero, within a margin of zero; or of a question, its answer."""
UNITS = ("%", "pp", "fraction", "million", "verdict", "% train accuracy", "weight units")
STATES = ("yes", "no", "boundary")
"""What a paper says of a verdict."""
_FOLDER = Path(__file__).resolve().parent
_NETWORKS: dict[str, dict[str, Any]] = {"resnet32x2": {"name": "resnet32", "width": 32}}
_WORD = re.compile(r"(\w+)=(.*?)(?=\s+\w+=|$)")


@dataclass(frozen=True)
class Origin:
    """Where the recipe of a number stands.

    Attributes
    ----------
    presets : tuple of str
        Presets in `params/presets` that say it.
    runs : int
        Runs that a number is a mean of; 1 where the paper does not say.
    code : tuple of str
        Presets of the paper's own code, which lie on top and differ from the paper.
    unstated : tuple of str
        Fields of the recipe that the paper does not state.
    """

    presets: tuple[str, ...]
    runs: int
    code: tuple[str, ...] = ()
    unstated: tuple[str, ...] = ()


ORIGINS = {
    "ma-cifar": Origin(("ma_cifar",), 3, ("ma_code_cifar",)),
    "ma-cifar vgg16": Origin(("ma_cifar", "ma_cifar_vgg16"), 3, ("ma_code_cifar",)),
    "ma-cifar 78 epochs": Origin(("frankle_carbin_cifar10",), 3),
    "ma-tiny": Origin(("ma_tiny_imagenet",), 3),
    "ma-imagenet": Origin(("ma_imagenet",), 3, ("ma_code_imagenet",)),
    "early-cifar": Origin(("sooner_cifar10",), 1, unstated=("batch_size",)),
    "early-imagenet": Origin(("sooner_imagenet",), 1, unstated=("batch_size",)),
}
"""Recipes by the names in the column `recipe` of the numbers, with the network or length that has one of its own."""


@dataclass(frozen=True)
class Conditions:
    """Under what a number was measured; None where the paper's words for it do not say, or it has no meaning.

    Attributes
    ----------
    lr, find_lr, eval_lr : float or None
        Learning rate of both trainings, of the one that finds masks, of the one of the ticket.
    epochs, search_epochs : int or None
        Length of trainings; what finding the mask took beside.
    epoch, epoch_a, epoch_b : int or None
        When a training, or each of two masks, is looked at.
    sparsity : float or None
        Share pruned, as the paper rounds it.
    unstated : bool
        Whether the sparsity matters and the paper does not give it.
    pruning, method : str or None
        How a mask was made, in the paper's words.
    mask_epoch, rewind_epoch : int or None
        Step at which weights were ranked, and the one that they come from.
    window : tuple of int or None
        First and last epoch of gradual pruning.
    weight_decay, momentum : float or None
        Where a number's own text repeats them.
    """

    lr: float | None = None
    find_lr: float | None = None
    eval_lr: float | None = None
    epochs: int | None = None
    search_epochs: int | None = None
    epoch: int | None = None
    epoch_a: int | None = None
    epoch_b: int | None = None
    sparsity: float | None = None
    unstated: bool = False
    pruning: str | None = None
    method: str | None = None
    mask_epoch: int | None = None
    rewind_epoch: int | None = None
    window: tuple[int, int] | None = None
    weight_decay: float | None = None
    momentum: float | None = None


_TYPES = {item.name: str(item.type) for item in fields(Conditions) if item.name != "unstated"}
_TEXTS = {
    "pruning": ("one-shot", "gradual", "4-step gradual"),
    "method": ("gradual + early ticket", "iterative + winning ticket"),
}


def conditions(text: str) -> Conditions:
    """Read conditions such as 'find_lr=0.01 eval_lr=0.005 sparsity=0.914'.

    Raises
    ------
    InputError
        If a word or its value is not understood.
    """
    found: dict[str, Any] = {}
    if "".join(_WORD.sub("", text).split()):
        raise InputError(f"condition '{text}' is not understood; allowed: words such as lr=0.1, with spaces between")
    for name, value in _WORD.findall(text):
        if name not in _TYPES:
            raise InputError(f"condition '{name}' is not known; {nearest(name, _TYPES)}")
        if (name, value) == ("sparsity", "unstated"):
            found["unstated"] = True
        elif name == "epochs" and "+" in value:
            first, _, second = value.partition("+")
            found |= {"search_epochs": _number(name, first, int), "epochs": _number(name, second, int)}
        elif name == "window":
            start, _, end = value.partition("-")
            found["window"] = (_number(name, start, int), _number(name, end, int))
        elif name in _TEXTS:
            if value not in _TEXTS[name]:
                raise InputError(f"condition {name} '{value}' is not known; {nearest(value, _TEXTS[name])}")
            found[name] = value
        else:
            found[name] = _number(name, value, int if _TYPES[name].startswith("int") else float)
    return Conditions(**found)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"condition {name} '{text}' is not a number") from None


@dataclass(frozen=True)
class Number:
    """A number that a paper prints.

    Attributes
    ----------
    seed, where : str
        Paper, as in `PAPERS`, and figure, table or section.
    network, data : str
        Names as in the file.
    quantity, condition : str
        What it is, and under what, in the file's words.
    conditions : Conditions
        The same, read.
    value : float or str
        The number; of a verdict its state.
    unit : str
        One of `UNITS`.
    rounding : float
        Half a unit of the last decimal that the paper prints of such numbers.
    recipe : str
        Name in `ORIGINS`; '' where none matters.
    """

    seed: str
    where: str
    network: str
    data: str
    quantity: str
    condition: str
    conditions: Conditions
    value: float | str
    unit: str
    rounding: float
    recipe: str

    @property
    def net(self) -> Net:
        """The network."""
        return Net(**_NETWORKS.get(self.network, {"name": self.network}))

    @property
    def origin(self) -> Origin:
        """Where its recipe stands."""
        return ORIGINS[self.recipe]


@cache
def numbers() -> tuple[Number, ...]:
    """Read all numbers, in the order of the file (`paper_values.csv`, taken from the papers' texts, figures, tables).

    Raises
    ------
    InputError
        If something in it is not understood.
    """
    rows = _rows("paper_values.csv")
    decimals: dict[tuple[str, ...], int] = {}
    for row in rows:
        group = row["seed"], row["where"], row["quantity"]
        decimals[group] = max(decimals.get(group, 0), len(row["value"].partition(".")[2]))
    return tuple(_read(row, decimals[row["seed"], row["where"], row["quantity"]]) for row in rows)


def _read(row: dict[str, str], decimals: int) -> Number:
    found = conditions(row["condition"])
    states = STATES if row["unit"] == "verdict" else (row["value"],)
    for name, allowed in (("seed", PAPERS), ("unit", UNITS), ("value", states)):
        if row[name] not in allowed:
            raise InputError(f"paper_values.csv: {name} '{row[name]}' is not known; {nearest(row[name], allowed)}")
    recipe = {"-": "", "early": f"early-{row['dataset'].removesuffix('10')}"}.get(row["recipe"], row["recipe"])
    if recipe == "ma-cifar":
        recipe += " 78 epochs" * (found.epochs == 78) + " vgg16" * (row["network"] == "vgg16")
    if recipe and recipe not in ORIGINS:
        raise InputError(f"paper_values.csv: recipe '{recipe}' is not known; {nearest(recipe, ORIGINS)}")
    value: float | str = row["value"] if row["unit"] == "verdict" else float(row["value"])
    return Number(
        row["seed"], row["where"], row["network"], row["dataset"], row["quantity"], row["condition"], found, value,
        row["unit"], 0.5 * 10.0**-decimals, recipe,
    )  # fmt: skip


def _rows(name: str) -> list[dict[str, str]]:
    with open(_FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def panel(number: Number, code: bool = False) -> Panel:
    """Say how numbers like this one were measured: the presets of its recipe with its network and data.

    Parameters
    ----------
    number : Number
        One with a recipe.
    code : bool, optional
        Whether as the paper's code does it, not as its text says.

    Returns
    -------
    Panel
        With one pair of recipes, whose learning rate is none of the number's. Fields that the paper does not state
        have a value of ours (`Origin.unstated`).
    """
    return _panel(number.recipe, number.network, number.data, code)


@cache
def _panel(recipe: str, network: str, data: str, code: bool) -> Panel:
    origin = ORIGINS[recipe]
    document = {
        "name": "paper",
        "presets": [*origin.presets, *(origin.code if code else ())],
        "net": _NETWORKS.get(network, {"name": network}),
        "data": data,
        "find": {"lr": 0.1, **({"batch_size": 128} if "batch_size" in origin.unstated else {})},
    }
    return spec.parse(json.dumps(document), str(_FOLDER.parent / "params" / "paper.yaml")).panels[0]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that results can support or contradict.

    Attributes
    ----------
    id : str
        Its name, such as 'ma-lr-gap'.
    seed, where : str
        Paper, as in `PAPERS`, and place.
    claim : str
        The claim, in one sentence of ours.
    predicate : str
        Name in `lthlab.predicates.PREDICATES`.
    settings : dict
        What the predicate is told.
    expected : str
        One of `EXPECTED`.
    networks, data : tuple of str
        On which the paper claims it; empty where it does not say.
    """

    id: str
    seed: str
    where: str
    claim: str
    predicate: str
    settings: dict[str, Any]
    expected: str
    networks: tuple[str, ...]
    data: tuple[str, ...]


@cache
def claims() -> tuple[Claim, ...]:
    """Read all claims, in the order of the file (`paper_claims.csv`).

    Raises
    ------
    InputError
        If something in it is not understood.
    """
    found = []
    for row in _rows("paper_claims.csv"):
        for name, allowed in (("seed", PAPERS), ("expected", EXPECTED)):
            if row[name] not in allowed:
                place = f"paper_claims.csv, {row['id']}"
                raise InputError(f"{place}: {name} '{row[name]}' is not known; {nearest(row[name], allowed)}")
        try:
            settings = json.loads(row["settings"])
        except ValueError as error:
            raise InputError(f"paper_claims.csv, {row['id']}: settings: {error}; allowed: a JSON object") from None
        told = {"settings": settings, "networks": tuple(row["networks"].split()), "data": tuple(row["data"].split())}
        found.append(Claim(**{**row, **told}))
    return tuple(found)
