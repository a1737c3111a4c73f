"""Trainings of the engine on synthetic images, of the sizes that benchmarks ask for."""

import time
from dataclasses import replace
from typing import Any

import torch

from lthlab import data, nets
from lthlab.data import Dataset
from lthlab.datasets import DATASETS, DataFacts
from lthlab.engine import Job, Training
from lthlab.parts import Data, Net, Recipe
from lthlab.values import Fresh, Train

SYNTHETIC = {
    "synthetic_16": DataFacts((3, 16, 16), 10, 50_000, 10_000, "16" * 16),
    "synthetic_28": DataFacts((1, 28, 28), 10, 60_000, 10_000, "28" * 16),
    "synthetic_32": DataFacts((3, 32, 32), 10, 50_000, 10_000, "32" * 16),
}
"""Data sets of random images that `describe` knows."""


def describe(name: str, **fields: Any) -> Data:
    """Describe a data set, also a synthetic one; `fields` are those of `lthlab.parts.Data`."""
    if name in SYNTHETIC:
        DATASETS[name] = SYNTHETIC[name]
    return Data(name=name, **fields)


def synthetic(described: Data, test: int = 0) -> Dataset:
    """Make random images and labels of the shape and number that a description says.

    Parameters
    ----------
    described : Data
        Any known data set.
    test : int, optional
        Number of test images; without any, nothing is evaluated.
    """
    generator = torch.Generator().manual_seed(0)
    facts = described.facts

    def images(count: int) -> torch.Tensor:
        return torch.randint(256, (count, *facts.shape), dtype=torch.uint8, generator=generator)

    def labels(count: int) -> torch.Tensor:
        return torch.randint(facts.classes, (count,), generator=generator)

    return Dataset(
        name=described.name,
        fingerprint=str(facts.fingerprint),
        train_x=images(described.images),
        train_y=labels(described.images),
        val_x=images(0),
        val_y=labels(0),
        test_x=images(test),
        test_y=labels(test),
        classes=facts.classes,
        mean=(127.5,) * facts.shape[0],
        std=(73.9,) * facts.shape[0],
    )


def digits() -> tuple[Data, Dataset]:
    """Describe and load the digits, without test images."""
    found = data.load("digits", None)
    return Data(name="digits"), replace(found, test_x=found.test_x[:0], test_y=found.test_y[:0])


def training(
    net: Net,
    described: Data,
    dataset: Dataset,
    replicas: range,
    batch_size: int = 64,
    precision: str = "fp32",
    form: str | None = None,
    device: str = "cpu",
    start: int | None = None,
) -> Training:
    """Begin to train replicas, each with its own seed, for as long as one likes."""
    fields = {"epochs": 10_000, "batch_size": batch_size, "lr": 0.01, "weight_decay": 1e-4, "precision": precision}
    recipe = Recipe.model_validate(fields)
    trains = [Train(net, described, recipe, Fresh(number), number) for number in replicas]
    jobs = [Job(train, nets.fresh(net, described, train.order)) for train in trains]
    return Training(jobs, dataset, device, start, form)


def seconds(training: Training, steps: int) -> float:
    """Train so many steps, and wait until the device has done them; returns the wall time."""
    until = training.iteration + steps
    _wait(training.device)
    began = time.perf_counter()
    while training.iteration < until:
        training.advance(until)
    _wait(training.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
