"""Transferred tickets by source and target (Morcos Figs. 2 to 5): frames with known answers, and a small study."""

import re

import helpers
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from scipy import stats
from test_pages import Elements

from lthlab import data, derive, lab, nets, plots, reports, results, spec, transfer
from lthlab.runs import Run
from lthlab.tickets import expand
from lthlab.values import At, Graft

ONE, TWO = "digits (classes 0-1-2-3-4, 60 images)", "digits (classes 5-6-7-8-9, 60 images)"
LOW, HIGH = "digits (classes 0-1-2-3-4)", "digits (classes 5-6-7-8-9)"
HALVES = """
name: moved
net: {net}
data: {{name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}}
replicates: {replicates}
find: {{epochs: {epochs}, batch_size: 20, lr: 0.05}}
prune: {{levels: {levels}}}
protocol: {{schedule: restart}}
tickets:
  WR: {{methods: IMP, rewind: 1ep}}
  RR: {{methods: IMP}}
  RT: {{methods: IMP, scope: global, weights: fresh}}
panels:
  - targets: {{data: {{name: digits, classes: [5, 6, 7, 8, 9], train_size: 60}}{recipe}}}
  - data: {{classes: [5, 6, 7, 8, 9]}}
    targets: {{data: {{name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}}}}
"""
ADAM = """
  - targets: {data: {name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}, eval: {optimizer: adam, lr: 0.002}}
  - find: {optimizer: adam, lr: 0.002}
    targets: {data: {name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}, eval: {optimizer: sgd, lr: 0.05}}
"""
SMALL = {"net": "lenet_300_100", "replicates": 3, "epochs": 2, "levels": "[1, 2]", "recipe": ""}


@pytest.fixture(autouse=True)
def closed():
    """Close the figures that a test opens."""
    yield
    pyplot.close("all")


def study(more="", **fields):
    return spec.parse(HALVES.format(**SMALL | fields) + more)


def known(more="", **fields):
    """Frame of a study with known accuracies: 0.8 for dense networks, tickets better by what they were found on."""
    frame = helpers.frame_of(study(more, **fields))
    trained = frame["what"] == "train"
    own = (frame["source"] == frame["target"]) & (frame["find_optimizer"] == frame["eval_optimizer"])
    means = {"dense": 0.8, "RT": 0.5, "WR": 0.6, "RR": 0.55, "search": 0.9}
    value = frame["ticket"].map(means) + np.where((frame["ticket"] == "WR") & own, 0.06, 0.0)
    spread = np.where(frame["ticket"] == "WR", np.where(own, 0.004, 0.01), 0.0)
    value = value + spread * (frame["replicate"] - 1) + 0.001 * frame["level"]
    return frame.assign(value=value.where(trained, frame["value"]))


# --- rows -----------------------------------------------------------------------------------------------------


def test_rows_are_the_tickets_of_every_source_one_random_ticket_and_the_dense_network():
    rows = transfer.rows(known())
    cells = rows.groupby(["trained_on", "ticket", "found_on", "level"], dropna=False).size()
    expected = {(to, "WR", by, level): 3 for to in (LOW, HIGH) for by in (LOW, HIGH) for level in (1, 2)}
    expected |= {(to, "RT", None, level): 3 for to in (LOW, HIGH) for level in (1, 2)}
    expected |= {(to, "dense", None, 0): 3 for to in (LOW, HIGH)}
    assert {tuple(None if pd.isna(x) else x for x in key): size for key, size in cells.items()} == expected
    assert set(zip(rows["found_on"].dropna(), rows["source_number"].dropna(), strict=True)) == {(LOW, 0), (HIGH, 1)}


def test_the_random_ticket_is_the_one_of_the_targets_own_mask():
    frame = known()
    rows = transfer.rows(frame).query("ticket == 'RT'")
    by_key = frame[frame["ticket"] == "RT"].set_index("key")
    assert (by_key.loc[rows["key"], "source"] == by_key.loc[rows["key"], "target"]).all()
    alone = frame[(frame["source"] == ONE) & (frame["target"] == TWO)]
    keys = alone.query("ticket == 'RT' and what == 'train'")["key"]
    assert sorted(transfer.rows(alone).query("ticket == 'RT'")["key"]) == sorted(keys)


def test_random_tickets_that_know_the_layers_or_the_weights_are_no_reference():
    frame = known()
    random = frame["ticket"] == "RT"
    for changed in (frame.assign(scope=frame["scope"].where(~random, "layer")),
                    frame.assign(rewind=frame["rewind"].where(~random, "0ep"))):  # fmt: skip
        assert set(transfer.rows(changed)["ticket"]) == {"WR", "dense"}
        assert transfer.differences(transfer.rows(changed), "random").empty


def test_optimizers_tell_sources_and_targets_on_the_same_data_apart():
    rows = transfer.rows(known(ADAM))
    sgd, adam = f"{LOW}, optimizer sgd", f"{LOW}, optimizer adam"
    pairs = rows.query("ticket == 'WR'").groupby(["found_on", "trained_on"]).size()
    places = [(sgd, sgd), (sgd, adam), (adam, sgd), (adam, adam), (HIGH, HIGH), (sgd, HIGH), (HIGH, sgd)]
    assert dict(pairs) == dict.fromkeys(places, 6)


def test_what_was_asked_for_twice_counts_once():
    """The second panel on the same data has the same tickets of its own once more."""
    frame = known("  - replicates: 3\n")
    assert transfer.matrix(transfer.rows(frame))["n"].eq(3).all()


def test_learning_rates_tell_places_apart_where_optimizers_do_not():
    frame = known(recipe=", eval: {lr: [0.01, 0.05]}")
    places = set(transfer.rows(frame)["trained_on"])
    assert places == {LOW, f"{HIGH}, lr 0.01", f"{HIGH}, lr 0.05"}


# --- contrasts ------------------------------------------------------------------------------------------------


def test_the_matrix_has_means_and_intervals_of_every_source_and_target():
    cells = (
        transfer.matrix(transfer.rows(known())).set_index(["trained_on", "ticket", "found_on", "level"]).sort_index()
    )
    moved, own = cells.loc[HIGH, "WR", LOW, 2], cells.loc[HIGH, "WR", HIGH, 2]
    t = stats.t.ppf(0.975, 2)
    assert (moved["n"], moved["mean"], own["mean"]) == (3, pytest.approx(0.602), pytest.approx(0.662))
    assert moved["high"] - moved["mean"] == pytest.approx(t * 0.01 / 3**0.5)
    assert own["mean"] - own["low"] == pytest.approx(t * 0.004 / 3**0.5)


def test_differences_are_paired_by_replicate():
    rows = transfer.rows(known())
    random, own = transfer.differences(rows, "random"), transfer.differences(rows, "own")
    moved = random[(random["trained_on"] == HIGH) & (random["found_on"] == LOW) & (random["level"] == 1)]
    assert dict(zip(moved["replicate"], moved["value"], strict=True)) == pytest.approx({0: 0.09, 1: 0.1, 2: 0.11})
    assert len(random) == 2 * 2 * 2 * 3 and len(own) == 2 * 2 * 3
    assert (own["found_on"] != own["trained_on"]).all()
    values = own[(own["trained_on"] == LOW) & (own["level"] == 2)].set_index("replicate")["value"]
    assert dict(values) == pytest.approx({0: -0.066, 1: -0.06, 2: -0.054})
    with pytest.raises(ValueError, match="reference 'dense' is not allowed; allowed: random, own"):
        transfer.differences(rows, "dense")


def test_pairs_of_which_one_is_missing_do_not_count():
    frame = known()
    gone = (frame["ticket"] == "RT") & (frame["target"] == TWO) & (frame["replicate"] == 0)
    rows = transfer.rows(frame.assign(status=frame["status"].where(~gone, "missing")))
    pairs = transfer.differences(rows, "random")
    assert dict(pairs.groupby("trained_on").size()) == {LOW: 12, HIGH: 8}


def test_profit_counts_levels_whose_interval_is_on_one_side():
    frame = known()
    noisy = (frame["ticket"] == "WR") & (frame["level"] == 2) & (frame["target"] == TWO)
    frame["value"] = frame["value"] + np.where(noisy, 0.3 * (frame["replicate"] - 1), 0)
    found = transfer.profit(transfer.rows(frame)).set_index(["reference", "trained_on", "found_on"]).sort_index()
    assert dict(found["levels"]) == dict.fromkeys(found.index, 2)
    counts = {place: (row["above"], row["below"]) for place, row in found.iterrows()}
    assert counts == {
        ("random", LOW, LOW): (2, 0), ("random", LOW, HIGH): (2, 0),
        ("random", HIGH, HIGH): (1, 0), ("random", HIGH, LOW): (1, 0),
        ("own", LOW, HIGH): (0, 2), ("own", HIGH, LOW): (0, 2),
    }  # fmt: skip
    assert set(found["level"]) == {2} and found["mean"]["own", LOW, HIGH] == pytest.approx(-0.06)


def test_the_finding_counts_transferred_tickets_only():
    text = transfer.finding(transfer.rows(known()))
    assert (
        "lenet_300_100, level 2 (64 % of the prunable weights left), transferred tickets: of 2, 2 do better "
        "and 0 worse than the random ticket of their target (+10.0 points); of 2, 0 do better and 2 worse than the "
        "target&#x27;s own ticket (−6.0 points); n = 3.<br>Better and worse: the whole 95 % t interval"
    ) in text
    own = transfer.rows(known().query("source == target"))
    assert "No transferred ticket is done" in transfer.finding(own)
    assert "No transferred ticket is done" in transfer.finding(transfer.rows(known().query("ticket == 'dense'")))


def test_networks_that_differ_in_shortcuts_or_ranking_are_told_apart():
    """Tickets of the one are not compared with random tickets of the other."""
    for name, values in (("shortcut", ("B", "none")), ("ranking", ("global", "layer"))):
        frame = known().assign(**{name: values[0]})
        worse = frame.assign(value=frame["value"] - np.where(frame["ticket"] == "RT", 0.2, 0.0), key=frame["key"] + "b")
        rows = transfer.rows(pd.concat([frame, worse.assign(**{name: values[1]})], ignore_index=True))
        found = transfer.profit(rows).set_index([name, "reference", "trained_on", "found_on"]).sort_index()
        means = [found["mean"][value, "random", LOW, HIGH] for value in values]
        assert means == pytest.approx([0.1, 0.3])
        assert transfer.finding(rows).count("of 2, 2 do better") == 2
        assert len(re.findall("<table", transfer.tables(rows))) == 4 and values[1] in transfer.gains(rows)
        assert reports.figure(plots.accuracy_by_source, rows, "trained_on").count("<figure>") == 2


def test_tables_have_a_row_for_each_step_and_rewinding():
    late = known().query("ticket == 'WR'").assign(rewind="2ep")
    late = late.assign(value=late["value"] + 0.1, key=late["key"] + "b")
    rows = transfer.rows(pd.concat([known(), late], ignore_index=True))
    shown = transfer.tables(rows)
    assert f"{LOW}, weights of 1ep" in shown and f"{LOW}, weights of 2ep" in shown and "76.2 [" in shown
    early = known().query("ticket in ['WR', 'RT']").assign(prune_at="1ep")
    early = early.assign(key=early["key"] + "b")
    gains = transfer.gains(transfer.rows(pd.concat([known(), early], ignore_index=True)))
    assert gains.count("<td>1ep</td>") == 4 and gains.count("<td>2ep</td>") == 4


def test_one_replicate_gives_no_interval():
    shown = transfer.tables(transfer.rows(known().query("replicate == 0")))
    assert "n = 1" in shown and "nan" not in shown


def test_tables_have_sources_below_each_other_and_targets_side_by_side():
    rows = transfer.rows(known())
    shown = transfer.tables(rows)
    table = re.findall(r"<table.*?</table>", shown, re.DOTALL)
    assert len(table) == 2 and "The other 1 levels" in shown
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in table[0].split("</tr>")]
    assert [[cell.partition(" [")[0] for cell in row] for row in cells if row] == [
        ["found on", LOW, HIGH], [LOW, "66.2", "60.2"], [HIGH, "60.2", "66.2"], ["random ticket", "50.2", "50.2"],
        ["dense network", "80.0", "80.0"],
    ]  # fmt: skip
    gains = transfer.gains(rows)
    assert "2 above, 0 below of 2; +16.0 [" in gains and "0 above, 2 below of 2; −6.0 [" in gains


# --- figures --------------------------------------------------------------------------------------------------


def test_a_drawing_has_a_line_per_source_the_random_ticket_and_the_dense_level():
    rows = transfer.rows(known())
    ax = plots.accuracy_by_source(rows[rows["trained_on"] == LOW])
    lines = {c.get_label(): c.lines[0] for c in ax.containers}
    assert set(lines) == {f"ticket found on {LOW}", f"ticket found on {HIGH}", "random ticket"}
    assert lines[f"ticket found on {LOW}"].get_ydata() == pytest.approx([66.1, 66.2])
    assert lines["random ticket"].get_ydata() == pytest.approx([50.1, 50.2])
    assert "dense, with its interval is at 80" in plots.describe(ax)
    other = plots.accuracy_by_source(rows[rows["trained_on"] == HIGH])
    colours = [{c.get_label(): c.lines[0].get_color() for c in each.containers} for each in (ax, other)]
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 3
    pairs = transfer.differences(rows, "own")
    ax = plots.difference_by_source(pairs[pairs["trained_on"] == LOW])
    assert [c.lines[0].get_ydata() for c in ax.containers] == [pytest.approx([-6, -6])]
    assert ax.get_ylabel() == "minus own (percentage points)"
    with pytest.raises(ValueError, match="several rows for one point"):
        plots.accuracy_by_source(rows)


def test_thirty_levels_have_room_and_are_named():
    levels = "[1, 2, 3, 4, 5, 6, 9, 12, 15, 18, 21, 24, 27, 30]"
    rows = transfer.rows(known(levels=levels, replicates=2))
    ax = plots.accuracy_by_source(rows[rows["trained_on"] == LOW])
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert labels == ["80\n1", "26.2\n6", "6.87\n12", "1.8\n18", "0.472\n24", "0.124\n30"]
    assert ax.containers[0].lines[0].get_xdata()[-1] == pytest.approx(100 * 0.8**30, rel=0.05)


def test_figures_have_a_drawing_per_target_with_the_numbers():
    shown = reports.figure(plots.accuracy_by_source, transfer.rows(known()), "trained_on", "Accuracy.")
    elements = Elements(shown)
    images = [image["alt"] for image in elements.of("img") if image.get("role") != "presentation"]
    assert len(elements.of("figure")) == 1 and len(images) == 2
    assert [f"trained on {place}" in image for place, image in zip((LOW, HIGH), images, strict=True)] == [True, True]
    (link,) = [link for link in elements.of("a") if "download" in link]
    assert link["download"] == "accuracy_by_source_lenet_300_100.csv"
    assert "n = 3 replicates" in shown and "found_on" in shown


# --- a study --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lenet_300_100", "{name: resnet8, width: 4}"])
def computed(request, tmp_path_factory):
    config = study(net=request.param, replicates=2, levels="[1]", recipe=", eval: {epochs: 3, lr: 0.02}")
    store = helpers.store(tmp_path_factory.mktemp("runs"))
    lab.compute_study(config, store, "cpu")
    return config, store


def test_a_transferred_ticket_trains_the_sources_body_under_a_new_head_on_the_targets_batches(computed):
    """Train once more from bits put together here, on the target's images, and compare every epoch."""
    config, store = computed
    moved = [
        item for item in expand(config)
        if item.role["ticket"] == "WR" and (item.role["source"], item.role["target"]) == (ONE, TWO)
    ]  # fmt: skip
    assert len(moved) == 2
    for item in moved:
        ticket = item.value
        assert isinstance(ticket.init, Graft)
        trunk, replicate = ticket.init.body.run, item.role["replicate"]
        assert (trunk.data.text, ticket.data.text, ticket.init.body.step) == (ONE, TWO, "1ep")
        body, mask = derive.state(At(trunk, "1ep"), store), derive.mask(ticket.mask, store)
        head = sorted(set(list(body)[-2:]))
        drawn = nets.fresh(ticket.net, ticket.data, replicate)
        began = {name: drawn[name] if name in head else tensor for name, tensor in body.items()}
        began = {n: torch.where(mask[n], w, 0.0) if n in mask else w for n, w in began.items()}
        assert helpers.equal({n: w for n, w in derive.initial(ticket, store).items() if n not in mask},
                             {n: w for n, w in began.items() if n not in mask})  # fmt: skip
        again = helpers.run([helpers.Job(ticket, began, mask)], data.load(ticket.data, None))
        lab.compute([At(ticket, "last")], store)
        assert helpers.equal(again.group.state(0), derive.state(At(ticket, "last"), store))
        assert (Run(ticket, store).metrics()[-1]["epoch"], ticket.recipe.lr, ticket.order) == (3, 0.02, replicate)


def test_the_report_of_a_computed_study_has_all_cells(computed):
    config, store = computed
    frame = results.load(store, config)
    rows = transfer.rows(frame)
    assert set(rows["status"]) == {"done"}
    cells = transfer.matrix(rows)
    assert len(cells) == 3 * 2 + 2 + 2  # two tickets, a random one and the dense network on either half


def test_tickets_of_imposed_layer_counts_and_of_several_windows_are_compared_with_their_like():
    study = spec.parse(
        """
        name: windows
        net: lenet_300_100
        data: {name: digits, train_size: 120}
        find: {epochs: 4, batch_size: 60, lr: [0.05, 0.3]}
        eval: {lr: [0.05, 0.3]}
        prune:
          levels: [3]
          layer_counts: {lr: 0.05}
          gradual: [{start: 1ep, end: 3ep}, {start: 2ep, end: 4ep}]
        tickets: {LT: {methods: [OMP, GMP]}}
        """
    )
    rows = transfer.rows(helpers.frame_of(study))
    found = transfer.differences(rows, "own")
    assert len(found) == 2 * 3 and not found["key"].duplicated().any() and found["layer_counts"].isna().all()
