"""What is chosen and compared of the correlation indicator, and its words: against values made by hand."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import test_plots
from matplotlib.figure import Figure
from test_pages import Elements

from lthlab import correlations, plots, reports, results

RATES = (0.01, 0.1, 1.0)
TICKETS = [("dense", None, 0), *itertools.product(("LT", "RR"), ("IMP", "OMP"), (4, 8))]
RECIPE = {"epochs": 12, "batch_size": 50, "milestones": [8]}


def value(ticket, method, level, rate, reading, p, step, replicate) -> float:
    """R_p that falls with the learning rate and, of initial weights, over training; RR is at chance but with its own.

    Replicates differ by less than any of this, those of all networks alike, so that paired differences hardly vary.
    """
    strength = {"own": 0.5, "dense": 0.4, "trained": 0.7, "permuted": 0.3}[reading]
    strength *= (ticket != "RR") or reading == "own"
    fall = -0.1 * np.log10(rate) * (2 if step == "1ep" else 1)
    shift = 0.02 * (method == "OMP") - 0.01 * (level == 8) + (0.05 if ticket == "dense" else 0)
    noise = [0.01, -0.01, 0.0, 0.004][replicate] + 0.001 * ((7 * replicate + len(reading)) % 3) * (ticket == "LT")
    return p + (1 - p) * float(np.clip(strength * fall / 0.2 + shift + noise, 0, 1))


def tidy(readings=("own", "dense", "trained", "permuted"), shares=(0.1, 0.5), steps=("1ep", "12ep")) -> pd.DataFrame:
    rows = []
    for (ticket, method, level), rate, p, step, replicate in itertools.product(TICKETS, RATES, shares, steps, range(4)):
        for reading in readings if ticket != "dense" else ("own",):
            if (ticket, reading) == ("RR", "permuted"):
                continue
            row = {"study": "s", "panel": "n.d", "network": "n", "data": "d", "train_size": 400}
            row |= {"what": "correlation_indicator", "ticket": ticket, "method": method, "level": level}
            row |= {"sparsity": 1 - 0.8**level, "replicate": replicate, "collapsed": None if level == 0 else 0}
            row |= {f"{side}_{name}": entry for side in ("find", "eval") for name, entry in RECIPE.items()}
            row |= {"find_lr": rate, "eval_lr": rate, "reading": reading, "p": p, "measured_at": step}
            row |= {"value": value(ticket, method, level, rate, reading, p, step, replicate), "chance": p, "z": 3.25}
            rows.append(row | {"metric": "correlation_indicator", "status": "done", "key": f"{len(rows):032x}"})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def indicator():
    return correlations.rows(tidy())


def cell(frame, **where):
    rows = frame
    for name, entry in where.items():
        rows = rows[rows[name] == entry]
    return results.summarise(rows, ["ticket"]).to_dict("records")[0]


def told(found) -> str:
    mean, low, high = (f"{found[name]:.2f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


# --- rows -----------------------------------------------------------------------------------------------------


def test_steps_are_counted_by_the_clock_of_the_training_that_they_are_of():
    """'8it' of 400 images: two epochs of the dense training, whose batches have 100 images, and one of the ticket's."""
    frame = tidy(shares=(0.1,), steps=("8it", "last")).assign(find_batch_size=100, find_epochs=24)
    found = correlations.rows(frame)
    epochs = {(row.reading, row.measured_at): row.measured_epoch for row in found[found["ticket"] == "LT"].itertuples()}
    late = {(reading, "last"): 24 for reading in ("dense", "trained", "permuted")} | {("own", "last"): 12}
    assert epochs == late | {(reading, "8it"): 1 if reading == "own" else 2 for reading in correlations.READINGS}
    assert found.index.equals(frame.index)


def test_the_usual_rows_are_those_of_ma_figure_6_or_nearest(indicator):
    found = correlations.usual(indicator)
    assert set(found["p"]) == {0.1} and set(found["measured_at"]) == {"12ep"}
    assert len(found) == len(indicator) / 4
    assert set(correlations.usual(correlations.rows(tidy(shares=(0.001, 0.3))))["p"]) == {0.3}
    assert correlations.usual(indicator[:0]).empty


def test_rows_of_each_panel_at_its_highest_sparsity_and_at_its_extreme_rates(indicator):
    narrow = indicator[(indicator["level"] != 8) & (indicator["eval_lr"] < 1)].assign(network="m")
    both = pd.concat([indicator, narrow])
    found = correlations.sparsest(both)
    assert {(row.network, row.level) for row in found.itertuples()} == {("n", 0), ("n", 8), ("m", 0), ("m", 4)}
    found = correlations.ends(both)
    places = {(row.network, row.eval_lr) for row in found.itertuples()}
    assert places == {("n", 0.01), ("n", 1.0), ("m", 0.01), ("m", 0.1)}


def test_readings_stand_apart_each_beside_the_dense_networks(indicator):
    usual = correlations.sparsest(correlations.usual(indicator))
    found = correlations.by_reading(usual)
    dense = usual[usual["ticket"] == "dense"]
    assert len(found) == len(usual) + 3 * len(dense)
    facets = found["facet"].unique()
    assert [facet.split(", ")[0] for facet in facets] == [
        "initial against own trained weights", "initial against dense trained weights",
        "own against dense trained weights", "initial against dense (mask permuted)",
    ]  # fmt: skip
    for facet, reading in zip(facets, correlations.READINGS, strict=True):
        rows = found[found["facet"] == facet]
        assert set(rows.loc[rows["ticket"] != "dense", "reading"]) == {reading}
        assert (rows["ticket"] == "dense").sum() == len(dense)
    assert len(correlations.by_reading(dense)) == len(dense) and correlations.by_reading(usual[:0]).empty


def test_several_p_and_several_steps_are_chosen_where_there_are_any(indicator):
    found = correlations.over_p(indicator)
    assert set(found["p"]) == {0.1, 0.5} and set(found["measured_at"]) == {"12ep"} and set(found["reading"]) == {"own"}
    found = correlations.over_epochs(indicator)
    assert set(found["measured_epoch"]) == {1, 12} and set(found["p"]) == {0.1} and set(found["reading"]) == {"own"}
    one = correlations.rows(tidy(shares=(0.1,), steps=("last",)))
    assert correlations.over_p(one).empty and correlations.over_epochs(one).empty


def test_layers_are_numbered_in_network_order_also_where_some_are_dropped(indicator):
    rows = correlations.usual(indicator).head(2)
    layers = ["conv1", "conv2", "fc"]
    details = pd.DataFrame(
        [
            {**rows.iloc[0].to_dict(), "layer": name, "n": 9, "k": 1, "value": 1.0, "chance": 1 / 9}
            for name in (layers[0], layers[2])
        ]
        + [
            {**rows.iloc[1].to_dict(), "layer": name, "n": 9, "k": k, "value": v, "chance": v / 9}
            for name, k, v in zip(layers, (1, 0, 1), (0.0, np.nan, 1.0), strict=True)
        ]
    )
    found = correlations.by_layer(details)
    assert [(row.layer, row.number) for row in found.itertuples()] == [
        ("conv1", 1), ("fc", 3), ("conv1", 1), ("fc", 3),
    ]  # fmt: skip
    whole = correlations.added_up(details.assign(overlap=details["k"] * details["value"].fillna(0)))
    assert whole.tolist() == [1.0, 0.5] and list(whole.index) == list(rows["key"])
    assert correlations.added_up(details[:0]).empty
    assert set(found["status"]) == {"done"} and correlations.by_layer(details[:0]).empty


def test_contrasts_are_differences_of_the_same_replicate(indicator):
    usual = correlations.usual(indicator)
    found = correlations.contrasts(usual)
    known = usual.set_index(["ticket", "method", "level", "eval_lr", "reading", "replicate"])["value"].to_dict()
    counts = {}
    for row in found.itertuples():
        place = (row.method, row.level, row.eval_lr)
        if row.ticket == "LT − RR":
            sides = [known[ticket, *place, row.reading, row.replicate] for ticket in ("LT", "RR")]
        elif row.reading == "dense":
            sides = [known[row.ticket, *place, reading, row.replicate] for reading in ("dense", "permuted")]
        else:
            (dense,) = (
                entry
                for (ticket, _, _, rate, _, replicate), entry in known.items()
                if (ticket, rate, replicate) == ("dense", row.eval_lr, row.replicate)
            )
            sides = [known[row.ticket, *place, "own", row.replicate], dense]
        assert row.value == pytest.approx(sides[0] - sides[1])
        counts[row.facet] = counts.get(row.facet, 0) + 1
    cells = 2 * 2 * len(RATES) * 4
    assert counts == {
        "LT − RR, initial against own trained weights": cells,
        "mask − permuted mask, initial against dense trained weights": cells,
        "ticket − dense network, initial against own trained weights": 2 * cells,
    }
    assert correlations.contrasts(usual[usual["ticket"] == "dense"]).empty
    assert correlations.contrasts(usual.assign(status="missing")).empty


def test_contrasts_never_mix_what_is_not_a_replicate(indicator):
    usual = correlations.usual(indicator)
    again = usual[usual["ticket"] == "LT"].assign(value=0.5, key="x", widths="other")
    with pytest.raises(ValueError, match="several values of one replicate in a cell .*; they differ in: widths"):
        correlations.contrasts(pd.concat([usual, again]))


# --- words ----------------------------------------------------------------------------------------------------


def test_the_finding_tells_readings_apart_with_chance_at_both_ends_of_the_grid(indicator):
    lines = finding(indicator)
    usual = correlations.usual(indicator)
    assert lines[0] == (
        "n on d, level 8 (16.8 % of the prunable weights left), IMP masks: Rp with p = 0.1 at learning rate 0.01 and 1 "
        "(chance 0.10; 95 % t interval, n = 4 replicates) was:"
    )
    heads = {
        "own": "Initial against own trained weights", "dense": "Initial against dense trained weights",
        "trained": "Own against dense trained weights",
    }  # fmt: skip
    assert [line.split(":")[0] for line in lines[1:]] == list(heads.values())
    for line, reading in zip(lines[1:], heads, strict=True):
        said = {}
        for ticket in ("dense", "LT", "RR"):
            for name in {reading, "permuted"} if reading == "dense" else {reading}:
                own = usual[(usual["level"].isin([0, 8])) & (usual["method"].fillna("IMP") == "IMP")]
                own = own[(own["reading"] == name) & (own["ticket"] == ticket)]
                if len(own):
                    ends = [told(cell(own, eval_lr=rate)) for rate in (0.01, 1.0)]
                    said[ticket + ", mask permuted," * (name == "permuted")] = " and ".join(ends)
        items = line.split(": ", 1)[1].rstrip(".").split("; ")
        assert {f"{name} {text}" for name, text in said.items()} <= set(items)
        assert len(items) == len(said) + (reading != "trained")
    assert "not done, or not asked for" in correlations.finding(indicator.assign(status="missing"))


def finding(indicator) -> list[str]:
    shown = correlations.finding(indicator).replace("<br>", "\n")
    first, *rest = Elements(shown).text.splitlines()
    return [first.removeprefix("What came out. "), *rest]


def test_the_finding_says_what_selection_does_and_where_no_difference_was_seen(indicator):
    own, dense, _ = finding(indicator)[1:]
    pairs = correlations.contrasts(correlations.usual(indicator))
    pairs = pairs[(pairs["level"] == 8) & (pairs["method"] == "IMP") & (pairs["eval_lr"] == 0.01)]
    selected = pairs[(pairs["contrast"] == correlations.MASKS) & (pairs["ticket"] == "LT")]
    (found,) = results.summarise(selected, ["ticket"]).to_dict("records")
    assert found["low"] > 0 and f"LT, mask − permuted mask, +{found['mean']:.2f} [+{found['low']:.2f}, +" in dense
    assert "LT − RR +0.00 [+0.00, +0.00], not seen and" in own and "RR" not in dense.split("mask permuted")[1]
    one_shot = finding(indicator[indicator["method"] != "IMP"])
    assert ", OMP masks: " in one_shot[0] and len(one_shot) == 4
    alone = finding(correlations.rows(tidy(readings=("own",))))
    assert len(alone) == 2 and "permuted" not in alone[1] and "LT − RR" in alone[1]


def test_the_finding_keeps_masks_of_several_learning_rates_apart():
    frame = test_plots.tidy("correlation_indicator", tickets=[("LT", "IMP"), ("dense", None)])
    frame = frame.assign(reading="own", p=0.1, measured_at="last", z=1.0, panel="n.d", train_size=400)
    frame = frame.assign(**{f"{side}_{name}": RECIPE[name] for side in ("find", "eval") for name in ("epochs",)})
    frame = frame.assign(find_batch_size=50, eval_batch_size=50)
    dense = frame["ticket"] == "dense"
    other = frame.assign(find_lr=0.05, value=frame["value"].where(dense, frame["value"] / 2))
    other["key"] = frame["key"].where(dense, "f" + frame["key"].str[1:])
    frame["find_lr"] = 0.3
    text = correlations.finding(correlations.rows(pd.concat([other, frame], ignore_index=True)))
    for rows, lr in ((other, 0.05), (frame, 0.3)):
        cells = results.summarise(rows[rows["level"] == 12], ["eval_lr"]).to_dict("records")
        first, last = map(told, cells)
        assert f"{first} and {last} on masks found at {lr:g}" in text
    cells = results.summarise(frame[dense], ["eval_lr"]).to_dict("records")
    said = " and ".join(map(told, cells))
    assert f": dense {said}; LT " in text and text.count("masks found") == 2 and "n = 4 replicates" in text


def test_layers_that_masks_cut_through_are_said(indicator):
    assert "None of 1392 comparisons lacks a layer" in correlations.dropped(indicator)
    cut = (indicator["level"] == 8) & (indicator["ticket"] == "RR") & (indicator["replicate"] == 0)
    text = correlations.dropped(indicator.assign(collapsed=indicator["collapsed"].where(~cut, 2)))
    assert f"Of 1392 comparisons, {cut.sum()} lack layers of which the mask keeps nothing" in text
    assert (
        f"n on d, RR on IMP masks, level 8 (16.8 % of the prunable weights left): {cut.sum() // 2} comparisons" in text
    )


def test_tables_show_every_reading_beside_the_dense_network_and_chance(indicator):
    shown = correlations.tables(correlations.usual(indicator))
    assert shown.count("<table") == 2 and "<summary>1 more level<" in shown
    heads = re.findall(r"<th>(.*?)</th>", shown)[:10]
    assert heads[:3] == ["learning rate", "ticket", "masks"] and heads[-3:] == ["dense network", "chance", "n"]
    assert heads[3] == "own: θ₀⊙m and (θ₀⊙m)_T" and len(set(heads)) == 10
    body = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)]
    body = [row for row in body if row]
    assert len(body) == 2 * len(RATES) * 4
    usual = correlations.usual(indicator)
    first = body[0]
    assert first[:3] == ["0.01", "LT", "IMP"] and first[-2:] == ["0.100", "4"]
    for place, reading in enumerate(correlations.READINGS, start=3):
        found = cell(usual, ticket="LT", method="IMP", level=8, eval_lr=0.01, reading=reading)
        assert first[place] == f"{told(found)}, z +3.2"
    assert first[-3] == f"{told(cell(usual, ticket='dense', eval_lr=0.01))}, z +3.2"
    assert "measures no ticket" in correlations.tables(usual[usual["ticket"] == "dense"])


# --- drawings -------------------------------------------------------------------------------------------------


def test_every_figure_of_the_page_is_drawn_with_its_numbers(indicator):
    usual = correlations.sparsest(correlations.usual(indicator))
    sparse = correlations.sparsest(indicator)
    made = {
        "readings": reports.figure(plots.correlation_by_lr, correlations.by_reading(usual), "facet"),
        "epochs": reports.figure(plots.correlation_by_epoch, correlations.over_epochs(sparse), "eval_lr"),
        "p": reports.figure(plots.correlation_by_p, correlations.over_p(sparse), "eval_lr"),
        "differences": reports.figure(
            plots.correlation_difference, correlations.contrasts(usual), "facet", one_scale=False
        ),
    }
    counts = {name: len([i for i in Elements(text).of("img") if i["alt"]]) for name, text in made.items()}
    assert counts == {"readings": 4, "epochs": 3, "p": 3, "differences": 3}
    assert all("n = 4 replicates" in text for text in made.values())
    assert "measured_at" in made["epochs"] and "reading" in made["readings"]


def lines(ax):
    return {item.get_label(): item.lines[0].get_xydata() for item in ax.containers}


def test_values_over_epochs_stand_at_their_epochs_beside_chance(indicator):
    rows = correlations.over_epochs(correlations.sparsest(indicator))
    rows = rows[rows["eval_lr"] == 0.1]
    ax = plots.correlation_by_epoch(rows, Figure().subplots())
    drawn = lines(ax)
    assert set(drawn) == {"dense", *(f"{t} on {m} masks" for t in ("LT", "RR") for m in ("IMP", "OMP"))}
    for label, points in drawn.items():
        ticket, _, method = label.replace(" masks", "").partition(" on ")
        own = rows[(rows["ticket"] == ticket) & (rows["method"].fillna("") == method)]
        np.testing.assert_allclose(points[:, 1], own.groupby("measured_epoch")["value"].mean())
        np.testing.assert_allclose(points[:, 0], [1, 12], atol=0.5)
    assert len({tuple(points[:, 0]) for points in drawn.values()}) == 5
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "12"] and ax.get_xscale() == "linear"
    (chance,) = [line for line in ax.lines if line.get_label() == "chance level"]
    assert set(chance.get_ydata()) == {0.1}


def test_values_over_p_stand_beside_the_chance_of_each(indicator):
    rows = correlations.over_p(correlations.sparsest(indicator))
    ax = plots.correlation_by_p(rows[rows["eval_lr"] == 0.1], Figure().subplots())
    (chance,) = [line for line in ax.lines if line.get_label() == "chance level"]
    assert chance.get_xydata().tolist() == [[0.1, 0.1], [0.5, 0.5]] and ax.get_xscale() == "log"
    assert "chance level rises from 0.1 to 0.5" in plots.describe(ax)
    with pytest.raises(ValueError, match="several rows for one point"):
        plots.correlation_by_p(rows, Figure().subplots())


def test_layers_have_chance_levels_of_their_own(indicator):
    rows = correlations.sparsest(correlations.usual(indicator))
    rows = rows[(rows["eval_lr"] == 0.1) & (rows["reading"] == "own")]
    layers = [
        rows.assign(layer=f"l{n}", number=n, chance=chance, value=rows["value"] / n)
        for n, chance in ((1, 0.3), (2, 0.1), (3, 0.2))
    ]
    ax = plots.correlation_by_layer(pd.concat(layers), Figure().subplots())
    (chance,) = [line for line in ax.lines if line.get_label() == "chance level"]
    np.testing.assert_allclose(chance.get_xydata(), [[1, 0.3], [2, 0.1], [3, 0.2]])
    dense = lines(ax)["dense"]
    mean = rows.loc[rows["ticket"] == "dense", "value"].mean()
    np.testing.assert_allclose(dense[:, 1], [mean, mean / 2, mean / 3])
    assert "chance level goes from 0.3 to 0.2, between 0.1 and 0.3" in plots.describe(ax)


def test_differences_are_drawn_around_zero_each_pair_as_a_dot(indicator):
    rows = correlations.contrasts(correlations.sparsest(correlations.usual(indicator)))
    rows = rows[rows["contrast"] == correlations.MASKS]
    ax = plots.correlation_difference(rows, Figure().subplots())
    dots = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "."])
    np.testing.assert_allclose(np.sort(dots), np.sort(rows["value"]))
    assert ax.get_ylabel() == "difference of Rₚ"
    np.testing.assert_allclose(lines(ax)["LT on IMP masks"][:, 0], RATES, rtol=0.1)
