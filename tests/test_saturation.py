"""Where curves saturate: simulated ones whose saturation is known; advice, and what following it would have cost."""

import numpy as np
import pandas as pd
import pytest

from lthlab import saturation
from lthlab.saturation import advice, evaluate, summary, vote

STEPS = np.arange(12.0)
COUNT = 60


def hinge(at):
    return np.minimum(STEPS, at) / at


def exponential(constant):
    return 1 - np.exp(-STEPS / constant)


def jump(at):
    return (at <= STEPS) * 1.0


def twice(at):
    """Rise at first, rest, and jump, as accuracy does where the learning rate drops."""
    return 0.5 * np.minimum(STEPS, 2) / 2 + 0.5 * jump(at)


SHAPES = {
    "hinge": [(hinge(at), at) for at in range(2, 9)],
    "exponential": [(exponential(constant), None) for constant in (0.5, 1, 1.5, 2, 2.5, 3)],
    "jump": [(jump(at), at) for at in range(2, 9)],
    "twice": [(twice(at), at) for at in range(4, 9)],
}


def entered(curve):
    """Where a curve without noise comes within a tenth of its change of its last value for good."""
    return int(np.flatnonzero(np.abs(curve[-1] - curve) > 0.1 * np.abs(curve[-1] - curve[0]))[-1]) + 1


def found(shape, noise, replicates, sign, seed=0):
    """Steps found minus steps known, of the means of simulated curves with an offset for each replicate."""
    random, errors = np.random.default_rng(seed), []
    for curve, known in SHAPES[shape]:
        known = entered(curve) if known is None else known
        for _ in range(COUNT):
            offsets = random.normal(0, 1, (replicates, 1)) * (replicates > 1)
            curves = sign * curve + offsets + random.normal(0, noise, (replicates, len(curve)))
            errors.append(saturation.saturation(STEPS, curves.mean(axis=0)).step - known)
    return np.array(errors)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("noise", "replicates"), [(0.0, 1), (0.03, 1), (0.03 * 6**0.5, 6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_known_saturation_is_found_within_one_step(shape, noise, replicates, sign):
    errors = found(shape, noise, replicates, sign)
    right = np.mean(np.abs(errors) <= 1)
    assert right >= (0.95 if noise else 1), f"{right:.3f}, errors {np.unique(errors, return_counts=True)}"


@pytest.mark.parametrize(
    ("shape", "noise", "low", "high"),
    [
        ("hinge", 0.05, 0.95, 1),
        ("jump", 0.05, 0.95, 1),
        ("exponential", 0.05, 0.75, 0.95),
        ("hinge", 0.12, 0.55, 0.8),
        ("exponential", 0.12, 0.4, 0.7),
    ],
)
def test_where_it_fails(shape, noise, low, high):
    """What the docstring says of more noise."""
    right = np.mean(np.abs(found(shape, noise, 1, 1)) <= 1)
    assert low <= right <= high, right


@pytest.mark.parametrize("count", [12, 24])
def test_a_curve_that_moves_on_is_said_to(count):
    random, steps = np.random.default_rng(0), np.arange(float(count))
    for curve in (steps, steps**2, -steps, np.maximum(steps - 3, 0)):
        curve = curve / np.ptp(curve)
        said = [
            saturation.saturation(steps, curve + noise * random.standard_normal(count)) for noise in [0] + [0.02] * 40
        ]
        assert said[0].state == "moves on" and np.isnan(said[0].step)
        assert np.mean([each.state == "moves on" for each in said]) >= 0.95


def test_a_curve_without_change_is_said_to_be_so():
    random = np.random.default_rng(0)
    flat = [saturation.saturation(STEPS, random.standard_normal(12)).state for _ in range(400)]
    assert np.mean([state == "no change" for state in flat]) >= 0.98
    same = saturation.saturation(STEPS, np.full(12, 0.7))
    assert same.state == "no change" and same.change == 0 and np.isnan(same.step) and np.isnan(same.known)


def test_by_hand():
    """Rises by 2 a step to 8 at step 40 of steps of ten; a plateau of three values makes it known at 60."""
    steps = [0, 10, 20, 30, 40, 50, 60, 70, 80]
    values = [0, 2, 4, 6, 8, 8, 8, 8, 8]
    said = saturation.saturation(steps, values)
    assert (said.state, said.step, said.change, said.noise) == ("saturates", 40, 8, 0)
    assert (said.known, said.named) == (70, 40)
    down = saturation.saturation(steps, [-value for value in values])
    assert (down.step, down.change) == (40, -8)
    wide = saturation.saturation(steps, values, tolerance=0.3)
    assert (wide.step, wide.known, wide.named) == (30, 60, 30)


def test_what_is_known_needs_only_the_values_until_then():
    random = np.random.default_rng(1)
    for curve in (hinge(3), exponential(1), twice(5)):
        values = curve + 0.02 * random.standard_normal(12)
        known = saturation.saturation(STEPS, values).known
        place = int(known)
        other = np.concatenate([values[: place + 1], random.standard_normal(11 - place)])
        assert saturation.saturation(STEPS, other).known == known
        assert saturation.saturation(STEPS[: place + 1], values[: place + 1]).step <= known
        assert np.isnan(saturation.saturation(STEPS[:place], values[:place]).known)


@pytest.mark.parametrize(("shape", "early"), [("hinge", 0.02), ("exponential", 0.02), ("jump", 0.02)])
def test_one_who_watches_seldom_stops_before_the_plateau(shape, early):
    """Pruning at the step at which one would have known is not more than one step before the true one."""
    random, before = np.random.default_rng(0), []
    for curve, known in SHAPES[shape]:
        known = entered(curve) if known is None else known
        said = [saturation.saturation(STEPS, curve + 0.03 * random.standard_normal(12)).known for _ in range(COUNT)]
        before += [step < known - 1 for step in said]
    assert np.mean(before) <= early


def test_one_who_watches_is_misled_by_a_rest():
    said = saturation.saturation(STEPS, twice(8))
    assert said.step == 8 and said.known < 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1.0]), "2 steps and 1 values: allowed is one value for each step"),
        (([1, 3, 2], [1, 2, 3]), "steps 1, 3, 2 do not rise"),
        (([1, 2], [1, np.nan]), "value nan at step 2: allowed are finite values"),
        (([1, 2], [1, 2], 0), "tolerance of a saturation is 0: allowed is 0 < tolerance < 1"),
        (([1, 2], [1, 2], 1.0), "tolerance of a saturation is 1.0: allowed is 0 < tolerance < 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError) as error:
        saturation.saturation(*arguments)
    assert str(error.value) == message


def test_few_values_say_nothing():
    said = saturation.saturation([1, 2, 3, 4, 5], [0, 1, 1, 1, 1])
    assert said.state == "too few" and np.isnan(said.step)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([3, 9, 5], 5),
        ([3, np.nan, 5], 5),
        ([3, np.nan, np.nan], np.nan),
        ([3, 9], 9),
        ([3, np.nan], np.nan),
        ([4], 4),
        ([np.nan], np.nan),
        ([], np.nan),
    ],
)
def test_most_signals_decide(steps, expected):
    assert vote(steps) == pytest.approx(expected, nan_ok=True)


# --- advice -------------------------------------------------------------------------------------------------------


def signals(replicates=4, noise=0.0, **places):
    """Rows of signals that are hinges at the given steps; probes of PPR take an epoch."""
    random, rows = np.random.default_rng(0), []
    for name, at in places.items():
        for replicate in range(replicates):
            values = hinge(at) * (-1 if name == "Hamming" else 1) + noise * random.standard_normal(12)
            rows += [
                {
                    "panel": "p",
                    "find_lr": 0.1,
                    "sparsity": 0.8,
                    "signal": name,
                    "replicate": replicate,
                    "prune_epoch": step,
                }
                | {"value": value, "end": 11.0, "probe": float(name == "PPR"), "split": "test", "status": "done"}
                for step, value in zip(STEPS, values, strict=True)
            ]
    return pd.DataFrame(rows)


def tickets(accuracy, replicates=4):
    return pd.DataFrame(
        {"panel": "p", "find_lr": 0.1, "sparsity": 0.8, "replicate": replicate, "prune_epoch": step, "status": "done"}
        | {"value": accuracy(replicate, step)}
        for replicate in range(replicates)
        for step in STEPS
    )


def test_advice_by_hand():
    """PPR rests from step 4 on (known at 7), LPR from 6 (9), Hamming from 8 (11); two of three rest from 6 on."""
    said = advice(signals(PPR=4, LPR=6, Hamming=8)).set_index("signal")
    assert list(said.index) == [*saturation.SIGNALS, "vote"]
    assert said["step"].tolist() == [4, 6, 8, 6]
    assert said["known"].tolist() == [7, 9, 11, 9]
    assert (said["state"] == "saturates").all() and (said["n"] == 4).all()
    row = said.loc["vote"]
    assert row["saved_step"] == pytest.approx(5 / 11) and row["saved_known"] == pytest.approx(2 / 11)
    assert row["probe"] == 10 and row["saved_net"] == pytest.approx(-8 / 11), "ten probes, at steps 0 to 9"
    assert said.loc["Hamming", "change"] == -1


def test_signals_that_are_missing_or_do_not_change_have_no_vote():
    two = advice(signals(PPR=4, Hamming=6)).set_index("signal")
    assert two.loc["LPR", "state"] == "missing" and two.loc["LPR", "n"] == 0
    assert two.loc["vote", "step"] == 6
    flat = signals(PPR=4, LPR=5, Hamming=8)
    flat.loc[flat["signal"] == "LPR", "value"] = 0.0
    said = advice(flat).set_index("signal")
    assert said.loc["LPR", "state"] == "no change" and said.loc["vote", "step"] == 8
    restless = signals(PPR=11, LPR=11, Hamming=4)
    said = advice(restless).set_index("signal")
    assert said.loc["vote", "state"] == "moves on" and np.isnan(said.loc["vote", "step"])
    nothing = flat.assign(value=0.0)
    assert advice(nothing).set_index("signal").loc["vote", "state"] == "missing"
    assert advice(nothing.iloc[:0]).empty


def test_replicates_that_lack_a_step_do_not_count():
    rows = signals(PPR=4, LPR=6, Hamming=8)
    rows = rows[~((rows["signal"] == "PPR") & (rows["replicate"] == 2) & (rows["prune_epoch"] == 3))]
    assert advice(rows).set_index("signal")["n"].tolist() == [3, 4, 4, 4]


def test_advice_is_judged_by_tickets_that_took_no_part_in_it():
    """Replicate 0 alone saturates late: the others' advice ignores that, its own does not."""
    rows = signals(PPR=4, LPR=4, Hamming=4)
    late = signals(PPR=8, LPR=8, Hamming=8)
    rows = pd.concat([rows[rows["replicate"] > 0], late[late["replicate"] == 0]], ignore_index=True)
    own = tickets(lambda replicate, step: 0.5 + 0.01 * step + 0.1 * replicate)
    judged = evaluate(rows, own)
    first = judged[judged["replicate"] == 0].set_index(["advisers", "reading"])
    assert first.loc[("others", "step"), "epoch"] == 4 and first.loc[("others", "known"), "epoch"] == 7
    assert first.loc[("own", "known"), "epoch"] == 11
    assert ("own", "step") not in first.index
    assert first.loc[("others", "step"), "value"] == pytest.approx(-0.07)
    assert first.loc[("others", "step"), "saved"] == pytest.approx(7 / 11)
    assert first.loc[("others", "step"), "net"] == pytest.approx(7 / 11), "the replicate itself had no probes"
    third = judged[(judged["replicate"] == 2) & (judged["advisers"] == "own")].iloc[0]
    assert third["epoch"] == 7 and third["net"] == pytest.approx(1 - (7 + 8) / 11)
    told = summary(judged).set_index(["advisers", "reading"])
    assert told.loc[("own", "known"), ["n", "first", "last"]].tolist() == [4, 7, 11]
    assert told.loc[("own", "known"), "mean"] == pytest.approx(-0.04 * 3 / 4)
    values = judged[(judged["advisers"] == "own")]["value"]
    assert told.loc[("own", "known"), "high"] - told.loc[("own", "known"), "mean"] == pytest.approx(
        3.182446 * values.std() / 2, rel=1e-6
    )


def test_without_advice_pruning_is_at_the_end():
    judged = evaluate(signals(PPR=11, LPR=11, Hamming=11), tickets(lambda replicate, step: step / 100))
    assert (judged["epoch"] == 11).all() and (judged["value"] == 0).all() and (judged["saved"] == 0).all()
    assert judged.loc[judged["advisers"] == "own", "net"].tolist() == pytest.approx([-12 / 11] * 4)


def test_tickets_are_taken_at_the_nearest_step_that_has_one():
    own = tickets(lambda replicate, step: step / 100)
    judged = evaluate(signals(PPR=4, LPR=4, Hamming=4), own[own["prune_epoch"].isin([0, 5, 11])])
    assert set(judged.loc[judged["reading"] == "step", "epoch"]) == {5}


@pytest.mark.parametrize("lacking", ["all", "end", "other"])
def test_without_tickets_nothing_is_judged(lacking):
    own = tickets(lambda replicate, step: step / 100)
    own = {"all": own.iloc[:0], "end": own[own["prune_epoch"] < 11], "other": own.assign(sparsity=0.5)}[lacking]
    judged = evaluate(signals(PPR=4), own)
    assert judged.empty and summary(judged).empty
