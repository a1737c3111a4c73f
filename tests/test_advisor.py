"""What pages say of early tickets: advice, what following it cost, heat maps, slopes, gradual pruning."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
import test_early
import test_findings
import test_saturation
from matplotlib.colors import to_rgb
from test_pages import Elements

from lthlab import advisor, early, markup, saturation

NAMED = {"study": "s", "network": "n", "data": "d"}
words = test_findings.words


def signals(**places):
    return test_saturation.signals(**places).assign(**NAMED)


def tickets(accuracy):
    return test_saturation.tickets(accuracy).assign(**NAMED)


def test_advice_is_said_with_its_evidence_and_what_it_costs():
    """Two of three rest from 6 on, known at 9; each replicate then loses 0.2 points and saves 2 of 11."""
    rows = signals(PPR=4, LPR=6, Hamming=8)
    said = words(advisor.advice(rows, tickets(lambda replicate, step: 0.5 + replicate / 10 + step / 1000)))
    assert "n on d, 20 % of the prunable weights left: PPR saturates at epoch 4 on test images (known at 7)" in said
    assert "LPR saturates at epoch 6 (known at 9); Hamming saturates at epoch 8 (known at 11) (n = 4, tol" in said
    assert "2 of 3 have saturated by epoch 6 of 11: pruning there saves 45 % of the epochs of a search." in said
    assert "Who watches knows at epoch 9: that saves 18 %, and −73 % less what PPR took." in said
    assert "get −0.2 [−0.2, −0.2] points (95 % t interval, n = 4) and save 18 % of the epochs." in said
    assert "25 % saved is missed, at most 0.5 points lost is reached." in said
    assert "the other replicates, in hindsight 6 −0.5 [−0.5, −0.5] 4 45 % 45 % reached reached" in said
    assert "its own curves, when they tell 9 −0.2 [−0.2, −0.2] 4 18 % −73 % missed reached" in said


@pytest.mark.parametrize(
    "drop, spread, said",
    [(0.0, 0, "reached"), (0.02, 0, "missed"), (0.0, 0.02, "not certain"), (0.006, 0.0001, "missed")],
)
def test_the_aim_is_judged_by_the_interval(drop, spread, said):
    own = tickets(lambda replicate, step: 0.5 - drop * (step < 11) + spread * (replicate - 1.5) * (step < 11))
    text = words(advisor.advice(signals(PPR=3, LPR=3, Hamming=3), own))
    assert f"25 % saved is reached, at most 0.5 points lost is {said}." in text


def test_a_stop_at_a_rest_is_called_too_early():
    rows = signals(PPR=4, LPR=6, Hamming=8)
    curve = dict(zip(test_saturation.STEPS, test_saturation.twice(8), strict=True))
    rows = rows.assign(value=rows["prune_epoch"].map(curve))
    text = words(advisor.advice(rows, tickets(lambda replicate, step: 0.5)))
    assert re.search(r"knows at epoch [567], too early, for a rest on the way looked like the end", text)


def test_what_is_lacking_is_said():
    own = tickets(lambda replicate, step: 0.5)
    text = words(advisor.advice(signals(PPR=4, Hamming=6), own[own["prune_epoch"] < 11]))
    assert "LPR is missing" in text and "2 of 2 have saturated by epoch 6" in text
    assert "There is no LRR ranked at these steps and at the end, so the advice is not judged." in text
    text = words(advisor.advice(signals(PPR=11, LPR=11, Hamming=4), own))
    assert "PPR still moves at the end on test images" in text
    assert "Fewer than 2 of 3 saturate, so the advice is to prune at the end." in text
    assert "and save 0 % of the epochs" in text
    text = words(advisor.advice(signals(PPR=4).assign(value=0.7), own))
    assert "PPR does not change by more than its noise on test images" in text and "there is no advice" in text
    few = signals(PPR=4, LPR=4).query("prune_epoch < 5")
    assert "LPR has fewer than 6 steps" in words(advisor.advice(few, own))
    nothing = advisor.advice(few[:0], own)
    assert "nothing advises when to prune" in nothing and "<table" not in nothing


def test_cells_are_said_apart():
    rows = pd.concat([signals(PPR=4, LPR=4), signals(PPR=6, LPR=6).assign(sparsity=0.9)])
    rows = pd.concat([rows, signals(PPR=8, LPR=8).assign(find_lr=0.3)])
    text = words(advisor.advice(rows, tickets(lambda replicate, step: 0.5)))
    for name, epoch in (("0.1, 20 %", 4), ("0.1, 10 %", 6), ("0.3, 20 %", 8)):
        assert f"n on d, masks found at {name} of the prunable weights left: PPR saturates at epoch {epoch}" in text
    assert text.count("so the advice is not judged") == 2


def test_the_evidence_is_there_in_numbers():
    rows, own = signals(PPR=4, LPR=6, Hamming=8), tickets(lambda replicate, step: step / 1000)
    page = advisor.evidence(rows, own)
    text = words(page)
    assert "PPR 4 saturates 4 7 4 1 1 0 0.636 0.364" in text
    assert "others step 0 6.0 −0.50 0.455 0.455" in text
    downloads = [link["download"] for link in Elements(page).of("a")]
    assert downloads == ["advice.csv", "followed.csv"]


# --- heat maps ----------------------------------------------------------------------------------------------------


def colours(page):
    """Text, colour and ink of the cells of a heat map."""
    found = re.findall(r'<td style="[^"]*background:(#\w+);color:(#\w+)">([^<]*)</td>', page)
    return {text: (colour, ink) for colour, ink, text in found}


def test_heat_is_darker_the_larger_and_its_numbers_have_contrast():
    grid = pd.DataFrame(
        np.linspace(0, 1, 12).reshape(3, 4), pd.Index(list("abc"), name="v"), pd.Index(range(4), name="s")
    )
    grid.iloc[0, 1] = np.nan
    page = markup.heat(grid, "Numbers & more", (0.0, 1.0), 2)
    found = colours(page)
    assert list(found) == [f"{value:.2f}" for value in grid.to_numpy().ravel() if value == value]
    light = [np.dot(np.power(to_rgb(colour), 2.2), (0.2126, 0.7152, 0.0722)) for colour, _ in found.values()]
    assert light == sorted(light, reverse=True)
    for value, (_, ink) in zip(light, found.values(), strict=True):
        inked = 0.0 if ink == "#000000" else 1.0
        contrast = (max(value, inked) + 0.05) / (min(value, inked) + 0.05)
        assert contrast >= 4.5
    assert 'aria-label="Numbers &amp; more"' in page and page.count('scope="row"') == 3
    assert page.count('scope="col"') == 5 and "v \\ s" in page and page.count("<td") == 12
    beyond = colours(markup.heat(grid, "x", (0.3, 0.6), 2))
    assert beyond["0.00"] == beyond["0.18"] and beyond["1.00"] == beyond["0.73"]


def trained():
    """Accuracies by s (1, 2) and v (0, 2, s): 0.7 + s / 100 + v / 1000, and the same of two replicates."""
    rows = []
    for replicate in (0, 1):
        for s in (1, 2):
            for ticket, rewind, value in (("LT", "0ep", 0), ("WR", "2ep", 2), ("LRR", "ranked", s)):
                rows.append(
                    NAMED | {"panel": "p", "train_size": 96, "find_batch_size": 32, "find_lr": 0.1, "eval_lr": 0.1}
                    | {"what": "train", "method": "OMP", "ticket": ticket, "rewind": rewind, "schedule": "restart"}
                    | {"prune_at": f"{s}ep", "layer_counts": None, "sparsity": 0.8, "replicate": replicate}
                    | {"value": 0.7 + s / 100 + value / 1000, "status": "done", "key": f"{replicate}{s}{ticket}"}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_grid_is_in_the_form_of_the_paper():
    own = trained()
    base = own[own["ticket"] == "LT"].assign(ticket="dense", epoch=lambda rows: rows["prune_at"].str[:1].astype(float))
    page = advisor.grid(early.tickets(own), base.assign(value=0.4, sparsity=0.0))
    found = Elements(page)
    assert "v \\ s" in page and "n on d, 20 % of the prunable weights left: test accuracy (%)" in page
    assert "(n = 2 replicates)" in page
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert cells == ["40.0", "40.0", "71.0", "72.0", "71.2", "72.2", "71.1", "72.2"]
    assert re.findall(r'scope="row"[^>]*>([^<]*)<', page) == ["dense at s", "v = 0", "v = 2", "v = s"]
    assert [link["download"] for link in found.of("a")] == ["grid.csv"]
    shades = colours(page)
    assert shades["40.0"] == shades["71.0"], "the dense network does not stretch the scale"
    assert "no tickets" in advisor.grid(early.tickets(own[:0]))


def hamming():
    pairs = [(1, 2, 0.1), (1, 4, 0.2), (2, 4, 0.05)]
    return pd.DataFrame(
        NAMED | {"panel": "p", "find_lr": 0.1, "sparsity": 0.8, "replicate": replicate, "status": "done"}
        | {"first_epoch": float(first), "second_epoch": float(second), "value": value, "random": 0.32, "maximum": 0.4}
        | {"overlap": 1 - value / 0.4, "key": str(replicate)}
        for replicate in (0, 1) for first, second, value in pairs
    )  # fmt: skip


def test_distances_are_shown_with_what_is_random_and_what_both_keep():
    page = advisor.distances(hamming())
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert cells == ["0.100", "0.200", "", "0.050", "75", "50", "", "88"]
    assert "Independent masks of these densities would differ in 0.320, and no two in more than 0.400." in page
    assert "nothing" in advisor.distances(hamming()[:0])


def test_slopes_are_shown_beside_what_is_predicted():
    page = advisor.slopes(early.spreads(test_early.spreads()))
    text = words(page)
    assert "n on d: change of the spread of weights, mean over layers" in text and "left" not in text
    assert "0 to 1 −15.00 −10.00 1.50 [−4.85, 7.85] 1.50 to 1.50 2" in text
    assert "1 to 2 −17.50 −1.00 17.50" in text
    assert "no prediction" in advisor.slopes(early.spreads(test_early.spreads(predicted=None)))


def test_gradual_pruning_is_shown_beside_one_shot_pruning():
    text = words(advisor.gradual(test_early.memorized()))
    assert "32 2 50 60.5 60.0 −0.5 [−6.9, +5.9] 2" in text and "64 4 80 50.5 65.0 +14.5 [−55.4, +84.4] 2" in text
    assert "nothing" in advisor.gradual(test_early.memorized().query("method != 'GMP'"))


def content(link):
    return io.BytesIO(base64.b64decode(link["href"].partition(",")[2]))


def test_a_csv_says_once_what_a_page_says():
    frame = saturation.advice(signals(PPR=4, LPR=6)).assign(
        view=None, find_epochs=11, source="d", replicate=[0, 1, 2, 3]
    )
    (link,) = Elements(markup.download(frame, "x.csv", "All")).of("a")
    found = pd.read_csv(content(link))
    assert not {"view", "find_epochs", "source"} & set(found) and {"panel", "find_lr", "sparsity", "replicate"} <= set(
        found
    )
    (link,) = Elements(markup.download(frame[:1], "x.csv", "All")).of("a")
    assert {"find_epochs", "source"} <= set(pd.read_csv(content(link)))
