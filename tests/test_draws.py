import itertools

import numpy as np
import pytest

from lthlab.draws import PURPOSES, Stream


def test_numbers_are_pinned():
    """Every stored result rests on these: other numbers here are other results everywhere."""
    words = [0x33D74C1705F6A181, 0x7A797E00C38AD826, 0xC3C74FEDF0649D2D]
    assert Stream(3, "order", 7, 1).bits(3).tolist() == words
    assert Stream(0, "init").bits(2).tolist() == [15003734204198539638, 13859618513508960101]
    assert Stream(3, "order", 7).permutation(8).tolist() == [5, 2, 4, 1, 3, 7, 0, 6]
    uniform = [0.8133540609793564, 0.7513314251083365, 0.6716490436969984]
    assert Stream(0, "init").uniform(3).tolist() == uniform
    normal = [-1.8219439321972581, -0.46347907114527886, -0.2156044461932712, 0.19391743094518157]
    assert Stream(0, "init").normal(5)[:4] == pytest.approx(normal, rel=1e-14)


@pytest.mark.parametrize("skipped", [0, 1, 3, 4, 5, 24 * 1000, 10**6 + 3])
def test_what_is_skipped_is_left_out(skipped):
    assert (
        Stream(3, "order", 7, 1).skip(skipped).bits(9).tolist()
        == Stream(3, "order", 7, 1).bits(skipped + 9)[-9:].tolist()
    )


def test_purposes_have_numbers_of_their_own():
    names = ("init", "order", "augmentation", "permutation", "labels", "mixup", "landscape")
    assert {name: number for number, name in enumerate(names, start=1)} == PURPOSES
    with pytest.raises(KeyError, match="initt"):
        Stream(0, "initt")


def test_streams_share_no_words():
    keys = list(itertools.product(range(3), PURPOSES, range(3), range(3)))
    words = np.concatenate([Stream(*key).bits(200) for key in keys])
    assert len(np.unique(words)) == len(keys) * 200


@pytest.mark.parametrize("other", [(1, "init", 0, 0), (0, "order", 0, 0), (0, "init", 1, 0), (0, "init", 0, 1)])
def test_streams_are_independent(other):
    n = 100_000
    a, b = Stream(0, "init").uniform(n), Stream(*other).uniform(n)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_a_stream_goes_on_where_it_was():
    stream = Stream(2, "labels", 5)
    parts = [stream.bits(n) for n in (1, 3, 6)]
    assert np.array_equal(np.concatenate(parts), Stream(2, "labels", 5).bits(10))


def test_uniform_numbers_fill_the_interval_evenly():
    n = 200_000
    numbers = Stream(1, "augmentation").uniform(n)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.array_equal(numbers * 2.0**53, np.rint(numbers * 2.0**53))
    counts = np.bincount((numbers * 100).astype(int), minlength=100)
    chi_squared = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 99 - 4 * np.sqrt(2 * 99) < chi_squared < 99 + 4 * np.sqrt(2 * 99)


@pytest.mark.parametrize("n", [200_000, 200_001])
def test_normal_numbers_have_normal_moments(n):
    numbers = Stream(1, "init").normal(n)
    assert numbers.shape == (n,)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((numbers**power).mean() - moment) < 4 * np.sqrt(variance / n)
    assert np.corrcoef(numbers[: n // 2], numbers[-(n // 2) :])[0, 1] == pytest.approx(0, abs=0.013)


@pytest.mark.parametrize("n", [0, 1, 2, 1297])
def test_permutations_hold_every_number_once(n):
    permutation = Stream(0, "order").permutation(n)
    assert permutation.dtype == np.int64
    assert np.array_equal(np.sort(permutation), np.arange(n))


def test_permutations_are_equally_likely():
    stream = Stream(0, "permutation")
    counts = {p: 0 for p in itertools.permutations(range(4))}
    for _ in range(4800):
        counts[tuple(stream.permutation(4).tolist())] += 1
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 23 + 4 * np.sqrt(2 * 23)
