"""Measuring in interleaved rounds, so that a machine that drifts does so for all sides alike."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
PAUSE_S = 0.3
"""Time for other processes' threads and loaders to come to rest before the next turn."""


def interleave(
    sides: Mapping[str, Callable[[], T]], rounds: int, warm: int = 1, pause: float = 0.0
) -> dict[str, list[T]]:
    """Let sides take turns; every other round goes backwards.

    Parameters
    ----------
    sides : mapping of str to callable
        Each does its work once and returns what it measured.
    rounds : int
        Rounds that count.
    warm : int, optional
        Rounds before them, which do not.
    pause : float, optional
        Seconds before each turn.

    Returns
    -------
    dict of str to list
        Measurements of the rounds, by side.
    """
    measured: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(-warm, rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            time.sleep(pause)
            found = sides[name]()
            if number >= 0:
                measured[name].append(found)
    return measured
