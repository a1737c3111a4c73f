"""Random numbers as a function of (replicate, purpose, epoch): counter-based, drawn on the CPU."""

import numpy as np
from numpy.typing import NDArray

PURPOSES = {"init": 1, "order": 2, "augmentation": 3, "permutation": 4, "labels": 5, "mixup": 6, "landscape": 7}
"""What random numbers are drawn for; no two purposes share a stream."""


class Stream:
    """A sequence of random numbers that depends on its arguments alone.

    Only raw bits are taken from NumPy, whose bit generators are fixed for good (NEP 19); what its
    `Generator` methods make of them may change between releases.

    Parameters
    ----------
    replicate : int
        Number of the replicate, at least 0.
    purpose : str
        One of `PURPOSES`.
    epoch : int, optional
        Epoch that the numbers are for.
    draw : int, optional
        Which of several independent draws; 1 is the random reinitialisation of a replicate.
    """

    def __init__(self, replicate: int, purpose: str, epoch: int = 0, draw: int = 0) -> None:
        self._bits = np.random.Philox(key=[replicate, PURPOSES[purpose]], counter=[0, 0, epoch, draw])

    def bits(self, n: int) -> NDArray[np.uint64]:
        """Draw `n` words of 64 random bits."""
        return self._bits.random_raw(n).astype(np.uint64, copy=False)

    def skip(self, n: int) -> "Stream":
        """Leave out `n` words, at the beginning of the stream; returns the stream."""
        self._bits.advance(n // 4)  # the counter counts blocks of four words
        self._bits.random_raw(n % 4)
        return self

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Draw `n` numbers from [0, 1), multiples of 2**-53."""
        return (self.bits(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, n: int) -> NDArray[np.float64]:
        """Draw `n` standard normal numbers (Box and Muller).

        Logarithm and cosine differ between processors in their last bits; rounded to fp32, as weights are, the
        numbers came out the same on all that were tried.
        """
        half = -(-n // 2)
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Draw a permutation of 0 … n-1."""
        return np.argsort(self.bits(n), kind="stable")
