"""Finding against evaluating hyperparameters: frames with known answers, and a small study that is computed."""

import itertools
import re

import helpers
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lthlab import decoupling, lab, pairings, plan, plots, reports, results, spec, tickets
from lthlab.derive import state
from lthlab.errors import InputError
from lthlab.values import At, Train

RATES = (0.02, 0.1, 0.5)
NOISE = np.array([0.010, -0.004, 0.002, -0.008])
PLAIN = {
    "study": "s", "panel": "n.d", "network": "n", "data": "d", "train_size": 100, "what": "train", "ticket": "LT",
    "method": "OMP", "prune_at": "8ep", "layer_counts": None, "scope": None, "rewind": "0ep", "schedule": "restart",
    "pruning": None, "level": 5, "sparsity": 0.67232, "find_epochs": 8, "eval_epochs": 8, "find_batch_size": 50,
    "eval_batch_size": 50, "find_milestones": ["4ep"], "eval_milestones": ["4ep"], "metric": "test_accuracy",
    "epoch": 8.0, "status": "done", "search_epochs": 8, "kept": 10,
}  # fmt: skip


def runs(test, validation=None, noise=NOISE, **fields):
    """Rows of one cell: a mean on test images plus noise by replicate, and one on validation images."""
    validation = test if validation is None else validation
    row = PLAIN | fields
    return [
        row | {"replicate": r, "value": test + e, "validation": validation + e, "key": f"{sorted(row.items())!s} {r}"}
        for r, e in enumerate(noise)
    ]


def dense(test, lr, **fields):
    """Rows of unpruned networks, once for each finding rate as in a study's frame."""
    plain = {"ticket": "dense", "method": None, "prune_at": None, "level": 0, "sparsity": 0.0, "eval_lr": lr}
    return [
        row | {"find_lr": find, "key": f"dense {lr} {row['replicate']}"}
        for find in RATES
        for row in runs(test, **plain | fields)
    ]


def grid(table, validation=None, rates=RATES, **fields):
    """Rows of a table of finding (rows) against evaluating rates."""
    validation = table if validation is None else validation
    rows = [
        runs(table[i][j], validation[i][j], find_lr=find, eval_lr=evaluate, **fields)
        for (i, find), (j, evaluate) in itertools.product(enumerate(rates), enumerate(rates))
    ]
    return pd.DataFrame(sum(rows, []))


FLAT = [[0.80, 0.81, 0.70], [0.79, 0.82, 0.71], [0.60, 0.72, 0.75]]


# --- cells ----------------------------------------------------------------------------------------------------


def test_cells_are_means_over_replicates_with_what_is_coupled():
    frame = grid(FLAT)
    frame.loc[(frame["find_lr"] == 0.5) & (frame["eval_lr"] == 0.1) & (frame["replicate"] > 0), "status"] = "missing"
    frame.loc[(frame["find_lr"] == 0.5) & (frame["eval_lr"] == 0.02), "status"] = "diverged"
    found = decoupling.cells(frame, "lr").set_index(["find", "eval"])
    assert len(found) == 9 and list(found.index[found["coupled"]]) == [(lr, lr) for lr in RATES]
    cell = found.loc[0.1, 0.02]
    low, high = stats.t.interval(0.95, 3, 0.79 + NOISE.mean(), stats.sem(NOISE))
    assert (cell["n"], cell["replicates"]) == (4, 4)
    assert cell[["mean", "low", "high"]].tolist() == pytest.approx([0.79 + NOISE.mean(), low, high])
    assert found.loc[0.5, 0.1][["n", "replicates"]].tolist() == [1, 4] and np.isnan(found.loc[0.5, 0.1]["low"])
    assert found.loc[0.5, 0.02]["n"] == 0 and np.isnan(found.loc[0.5, 0.02]["mean"])


def test_cells_keep_other_fields_equal():
    rows = [grid(FLAT, find_batch_size=a, eval_batch_size=b) for a, b in ((50, 50), (50, 100), (100, 100))]
    frame = pd.concat(rows, ignore_index=True)
    assert decoupling.hyperparameters(frame) == ["batch_size", "lr"]
    found = decoupling.cells(frame, "lr")
    both = "batch size 50 to find, batch size 100 to evaluate"
    assert found.groupby("context", sort=False).size().to_dict() == {"batch size 50": 9, both: 9, "batch size 100": 9}
    assert not found.loc[found["context"] == both, "coupled"].any() and found["coupled"].sum() == 6


def test_masks_of_the_best_epoch_stand_back_where_there_are_those_of_the_end():
    end = pd.concat([grid(FLAT), pd.DataFrame(sum([dense(0.85, lr) for lr in RATES], []))], ignore_index=True)
    best = grid(FLAT).assign(prune_at="best_val", value=0.9)
    both = pd.concat([end, best.assign(key="b" + best["key"])], ignore_index=True)
    for choose in (decoupling.envelopes, decoupling.curves):
        assert sorted(choose(both)["key"]) == sorted(choose(end)["key"])
    alone = decoupling.envelopes(best)
    assert alone["cells"].max() == 9 and alone["value"].eq(0.9).all()


def test_validation_accuracy_is_asked_for_where_a_cell_has_to_be_chosen_and_only_there():
    one = grid(FLAT).query("find_lr == 0.1 and eval_lr == 0.1").assign(validation=np.nan)
    assert "with the hyperparameters that its ticket is trained with" in pairings.finding(one)
    unpruned = pd.DataFrame(sum([dense(0.85, lr) for lr in RATES], [])).assign(validation=np.nan)
    waiting = pd.concat([grid(FLAT).assign(status="missing", value=np.nan, validation=np.nan), unpruned])
    with pytest.raises(InputError, match="no validation accuracy"):
        decoupling.envelopes(waiting.reset_index(drop=True))


@pytest.mark.parametrize(
    "name, words",
    [("rl", r"'rl' does not vary in this frame; allowed: lr"), ("epochs", r"'epochs' does not vary .*; allowed: lr")],
)
def test_a_hyperparameter_that_does_not_vary_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        decoupling.cells(grid(FLAT), name)


# --- envelopes ------------------------------------------------------------------------------------------------


def gain(frame):
    (row,) = decoupling.gains(decoupling.envelopes(frame)).query("sparsity > 0").to_dict("records")
    return row


def test_a_decoupled_cell_that_is_better_leads_by_its_paired_difference():
    frame = grid(FLAT)
    better = (frame["find_lr"] == 0.02) & (frame["eval_lr"] == 0.1)
    frame.loc[better, "value"] = 0.84 + np.array([0.012, -0.005, 0.001, -0.006])
    frame.loc[better, "validation"] = 0.9
    row = gain(frame)
    difference = 0.02 + np.array([0.002, -0.001, -0.001, 0.002])
    interval = stats.t.interval(0.95, 3, difference.mean(), stats.sem(difference))
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([difference.mean(), *interval])
    assert (row["decoupled_find"], row["decoupled_eval"], row["decoupled_cells"]) == ("lr 0.02", "lr 0.1", 9)
    assert (row["coupled_find"], row["coupled_eval"], row["coupled_cells"]) == ("lr 0.1", "lr 0.1", 3)
    assert row["coupled_mean"] == pytest.approx(0.82 + NOISE.mean()) and row["n"] == 4 and not row["same"]


def test_the_choice_is_made_on_validation_images_and_reported_on_test_images():
    validation = [[0.7, 0.9, 0.7], [0.7, 0.7, 0.7], [0.7, 0.7, 0.8]]
    row = gain(grid(FLAT, validation))
    assert (row["decoupled_find"], row["decoupled_eval"]) == ("lr 0.02", "lr 0.1")
    assert (row["coupled_find"], row["coupled_eval"]) == ("lr 0.5", "lr 0.5")
    assert row["mean"] == pytest.approx(0.81 - 0.75)


def test_a_lead_by_selection_alone_is_not_seen_on_test_images():
    random = np.random.default_rng(0)
    frames = [grid(np.full((3, 3), 0.8), level=k, sparsity=1 - 0.9**k) for k in range(1, 41)]
    frame = pd.concat(frames, ignore_index=True)
    test, validation = random.normal(0.8, 0.02, (2, len(frame)))
    by_test = frame.assign(value=test, validation=test)
    leads = [
        decoupling.gains(decoupling.envelopes(f))["mean"] for f in (by_test, by_test.assign(validation=validation))
    ]
    assert stats.ttest_1samp(leads[0], 0).pvalue < 1e-6 and leads[0].mean() > 0.004
    assert stats.ttest_1samp(leads[1], 0).pvalue > 0.05 and abs(leads[1].mean()) < 0.003


def test_of_equal_cells_a_coupled_one_is_taken():
    validation = [[0.7, 0.9, 0.7], [0.9, 0.9, 0.7], [0.7, 0.7, 0.9]]
    row = gain(grid(FLAT, validation))
    assert row["same"] and row["mean"] == 0 and (row["decoupled_find"], row["decoupled_eval"]) == ("lr 0.1", "lr 0.1")
    assert (row["decoupled_tied"], row["coupled_tied"]) == (3, 1)


def test_cells_that_lack_replicates_do_not_compete_and_are_counted():
    frame = grid(FLAT)
    frame.loc[(frame["find_lr"] == 0.1) & (frame["eval_lr"] == 0.1) & (frame["replicate"] == 2), "status"] = "diverged"
    row = gain(frame)
    assert (row["decoupled_find"], row["decoupled_eval"], row["coupled_find"]) == ("lr 0.02", "lr 0.1", "lr 0.02")
    assert [row[f"{side}_cells"] for side in ("coupled", "decoupled")] == [2, 8]
    assert [row[f"{side}_left_out"] for side in ("coupled", "decoupled")] == [1, 1]
    frame.loc[frame["find_lr"] == frame["eval_lr"], "status"] = "missing"
    row = gain(frame)
    assert row["n"] == 0 and np.isnan(row["mean"]) and (row["coupled_cells"], row["coupled_left_out"]) == (0, 3)
    assert "no coupled cell has all replicates" in pairings.finding(frame)
    assert "none whole" in pairings.envelopes(frame)


def test_a_single_hyperparameter_is_decoupled_while_others_are_coupled():
    frames = []
    for (a, b), lift in zip(((50, 50), (50, 100), (100, 50), (100, 100)), (0.0, 0.1, 0.0, 0.01), strict=True):
        frames.append(grid(np.array(FLAT) + lift, find_batch_size=a, eval_batch_size=b))
    found = decoupling.gains(decoupling.envelopes(pd.concat(frames, ignore_index=True)))
    chosen = {(row["hyperparameter"], row["context"]): row for row in found.to_dict("records")}
    assert {place: row["decoupled_cells"] for place, row in chosen.items()} == {
        ("lr", "batch size 50"): 9, ("lr", "batch size 100"): 9, ("batch_size", "lr 0.02"): 4,
        ("batch_size", "lr 0.1"): 4, ("batch_size", "lr 0.5"): 4, (decoupling.EVERYTHING, ""): 36,
    }  # fmt: skip
    everything = chosen[decoupling.EVERYTHING, ""]
    assert (everything["decoupled_find"], everything["decoupled_eval"]) == (
        "batch size 50, lr 0.1", "batch size 100, lr 0.1",
    )  # fmt: skip
    assert everything["coupled_cells"] == 6 and everything["mean"] == pytest.approx(0.09)
    assert chosen["lr", "batch size 50"]["mean"] == 0


def test_envelopes_need_validation_images():
    frame = grid(FLAT).assign(validation=None)
    with pytest.raises(InputError, match=r"n\.d: no validation accuracy, .*; set data\.val_size above 0"):
        decoupling.envelopes(frame)
    assert "set data.val_size above 0" in pairings.finding(frame)
    assert "set data.val_size above 0" in pairings.envelopes(frame)


def test_the_finding_prints_how_many_cells_each_maximum_was_taken_over():
    better = [[0.80, 0.86, 0.70], *FLAT[1:]]
    text = pairings.finding(grid(better))
    assert "the best of 9 cells (found with lr 0.02, evaluated with lr 0.1) minus the best of 3 coupled ones" in text
    assert "is +4.0 [+4.0, +4.0] test points" in text and "we saw a difference at 1 of 1 levels" in text
    assert "the best of 9 cells is a coupled one (lr 0.1); we saw a difference at none of 1 levels" in pairings.finding(
        grid(FLAT)
    )


# --- curves ---------------------------------------------------------------------------------------------------


def curved():
    random = {"ticket": "RT", "scope": "global"}
    unpruned = [dense(0.9 + lr / 10, lr) for lr in RATES]
    return pd.concat([grid(FLAT), grid(np.array(FLAT) - 0.1, **random), pd.DataFrame(sum(unpruned, []))])


@pytest.mark.parametrize("fixed, other", [("eval", "find"), ("find", "eval")])
def test_curves_begin_with_the_unpruned_network_that_is_trained_as_their_tickets(fixed, other):
    found = decoupling.curves(curved(), fixed)
    word = {"eval": "evaluated", "find": "found"}
    assert list(found["facet"].unique()) == [f"{word[fixed]} with lr {lr:g}, OMP masks" for lr in RATES]
    for _, rows in found.groupby("facet"):
        lines = rows.drop_duplicates("order").set_index("order")["series"].to_dict()
        assert lines == dict(enumerate([*(f"{word[other]} with lr {lr:g}" for lr in RATES), "global random"]))
    means = found.groupby(["series", "find", "eval", "sparsity"])["value"].mean()
    assert found.groupby(["series", "facet", "sparsity"])["replicate"].nunique().eq(4).all()
    assert found.groupby(["series", "facet"])["sparsity"].nunique().eq(2).all()
    for (series, find, evaluate, sparsity), mean in means.items():
        i, j = RATES.index(find), RATES.index(evaluate)
        random = series == "global random"
        assert not random or find == evaluate
        expected = 0.9 + evaluate / 10 if sparsity == 0 else FLAT[i][j] - 0.1 * random
        assert mean == pytest.approx(expected + NOISE.mean())


def test_variants_of_tickets_are_drawn_each_by_itself():
    kinds = {"": {}, ", WR 2ep": {"ticket": "WR", "rewind": "2ep"}, ", LRR": {"ticket": "LRR", "rewind": "ranked"}}
    several = [grid(np.array(FLAT) - n / 10, **fields) for n, fields in enumerate(kinds.values())]
    frame = pd.concat([*several, pd.DataFrame(sum([dense(0.9, lr) for lr in RATES], []))])
    found = decoupling.curves(frame)
    assert list(found["facet"].unique()) == [
        f"evaluated with lr {lr:g}, OMP masks{kind}" for kind in kinds for lr in RATES
    ]
    means = found[found["sparsity"] > 0].groupby("facet", sort=False)["value"].mean()
    assert means.to_numpy() == pytest.approx(
        [np.mean(FLAT, axis=0)[i] - n / 10 + NOISE.mean() for n in range(3) for i in range(3)]
    )
    assert set(decoupling.envelopes(frame)["facet"]) == {f"OMP masks{kind}" for kind in kinds}
    assert "OMP masks, WR 2ep, level" in pairings.finding(frame) and "OMP masks, LRR, level" in pairings.finding(frame)
    shown = re.sub("<[^>]+>", " ", pairings.crossings(frame))
    assert shown.count("◆") == 1 + 3 * 3 and "nan" not in shown and " WR 2ep " in shown


def test_cells_that_are_not_there_are_left_blank():
    frame = curved()
    coupled = frame[(frame["find_lr"] == frame["eval_lr"]) | (frame["ticket"] == "dense")]
    shown = re.sub("<[^>]+>", " ", pairings.crossings(coupled))
    assert (shown.count("◆"), "nan" in shown, shown.count("trained with lr")) == (1 + 3, False, 3)
    one = frame[(frame["find_lr"] == RATES[0]) | (frame["ticket"] == "dense")]
    assert pairings.crossings(one).count("</tr>") == 2  # a line of heads, and that of the one value that finds


def test_curves_are_drawn_with_the_numbers_of_every_line():
    found = decoupling.curves(curved())
    rows = found[found["facet"] == found["facet"].iloc[0]]
    ax = plots.series_by_sparsity(rows)
    drawn = {item.get_label(): item.lines[0].get_ydata(orig=False) for item in ax.containers}
    assert drawn["found with lr 0.1"] == pytest.approx(100 * (np.array([0.902, 0.79]) + NOISE.mean()))
    assert len({item.lines[0].get_color() for item in ax.containers}) == len(drawn) == 4
    shown = reports.figure(plots.series_by_sparsity, found, "facet", "Lines.", "by_find")
    assert shown.count("<figure>") == 1 and shown.count("evaluated with lr 0.5") >= 2
    assert 'download="by_find_n_on_d.csv"' in shown


# --- swapped layer counts -------------------------------------------------------------------------------------


def swapped():
    """Two finding rates, a(ranked, counts): (.02, .02) 0.90, (.5, .5) 0.80, (.5, .02) 0.87, (.02, .5) 0.84."""
    noise = np.random.default_rng(1).normal(0, 0.004, (4, 6))
    plain = {"eval_lr": 0.1}
    cells = [
        runs(0.90, noise=noise[0], find_lr=0.02, **plain),
        runs(0.80, noise=noise[1], find_lr=0.5, **plain),
        runs(0.87, noise=noise[2], find_lr=0.5, layer_counts="lr 0.02", **plain),
        runs(0.84, noise=noise[3], find_lr=0.02, layer_counts="lr 0.5", **plain),
    ]
    total = 0.1 + noise[0] - noise[1]
    counts = (0.07 + noise[2] - noise[1] + 0.06 + noise[0] - noise[3]) / 2
    return cells, total, counts


def test_what_follows_the_layer_counts_is_told_from_what_follows_the_ranks():
    cells, total, counts = swapped()
    rows = decoupling.swaps(pd.DataFrame(sum(cells, [])))
    assert set(rows["facet"]) == {"lr 0.02 against lr 0.5, evaluated with lr 0.1, OMP masks"}
    lines = rows.drop_duplicates("order").set_index("order")["series"].to_dict()
    assert lines == {
        0: "lr 0.5 ranked, counts of lr 0.02", 1: "lr 0.02 ranked, counts of lr 0.5", 2: "lr 0.02 ranked, own counts",
        3: "lr 0.5 ranked, own counts",
    }  # fmt: skip
    found = decoupling.effects(rows).set_index("effect")
    assert list(found.index) == ["total", "counts", "ranks", "share"] and set(found["ways"]) == {2}
    for name, values in {"total": total, "counts": counts, "ranks": total - counts}.items():
        interval = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
        assert found.loc[name, ["mean", "low", "high"]].tolist() == pytest.approx([values.mean(), *interval])
    share = found.loc["share"]
    assert share["mean"] == pytest.approx(counts.mean() / total.mean())
    for end in (share["low"], share["high"]):  # Fieller: the ratios that a t test of counts - ratio · total keeps
        assert stats.ttest_1samp(counts - end * total, 0).pvalue == pytest.approx(0.05)


def test_one_swap_is_enough_and_a_total_that_may_be_zero_has_no_share():
    cells, total, _ = swapped()
    one = decoupling.effects(decoupling.swaps(pd.DataFrame(sum(cells[:3], [])))).set_index("effect")
    assert set(one["ways"]) == {1} and one.loc["counts", "mean"] == pytest.approx(
        np.mean([row["value"] for row in cells[2]]) - np.mean([row["value"] for row in cells[1]])
    )
    frame = pd.DataFrame(sum(cells, []))
    own = (frame["find_lr"] == 0.02) & frame["layer_counts"].isna()
    frame.loc[own, "value"] -= total + np.array([0.01, -0.01] * 3)
    found = decoupling.effects(decoupling.swaps(frame)).set_index("effect")
    assert found.loc["total", "low"] < 0 < found.loc["total", "high"] and np.isnan(found.loc["share", "mean"])
    assert "not known" in pairings.swaps(frame)


def test_without_imposed_counts_or_several_steps_it_is_said():
    assert decoupling.swaps(grid(FLAT)).empty and "prune.layer_counts" in pairings.swaps(grid(FLAT))
    assert decoupling.early(grid(FLAT)).empty and "prune.at" in pairings.early(grid(FLAT))


# --- early pruning --------------------------------------------------------------------------------------------


def test_early_masks_are_compared_with_those_of_the_last_step_and_their_cost():
    plain = {"find_lr": 0.5, "eval_lr": 0.1}
    late = np.array([0.001, 0.002, -0.003, 0.0])
    cells = [
        runs(0.80, **plain),
        runs(0.83, noise=NOISE + late, prune_at="3ep", search_epochs=3, **plain),
        runs(0.70, prune_at="1it", search_epochs=1, **plain),
        runs(0.99, prune_at="best_val", **plain),
        dense(0.9, 0.1),
    ]
    rows = decoupling.early(pd.DataFrame(sum(cells, [])))
    lines = rows.drop_duplicates("order").set_index("order")["series"].to_dict()
    assert lines == {0: "pruned at 1it", 1: "pruned at 3ep", 2: "pruned at 8ep (the end)"}
    assert rows.dropna(subset=["epochs"]).groupby("order")["epochs"].first().tolist() == [0.5, 3, 8]
    assert rows[rows["sparsity"] == 0].groupby("series")["value"].mean().eq(0.9 + NOISE.mean()).all()
    first, second = decoupling.against_end(rows).to_dict("records")
    assert [row["mean"] for row in (first, second)] == pytest.approx([-0.1, 0.03])
    interval = stats.t.interval(0.95, 3, 0.03, stats.sem(late))
    assert [second["low"], second["high"]] == pytest.approx(interval)
    assert (first["search_epochs"], second["search_epochs"], second["end_epochs"]) == (1, 3, 8)


# --- studies --------------------------------------------------------------------------------------------------

STUDY = """
name: decoupling
net: lenet_300_100
data: {{name: digits, train_size: 120, val_size: 60}}
replicates: 2
find: {{epochs: 3, batch_size: 60, lr: [0.05, 0.3]}}
eval: {{lr: {evaluate}}}
prune: {{levels: [2, 4], at: {at}, {more}}}
tickets: {{LT: {{methods: [IMP, OMP]}}}}
"""


def study(evaluate="[0.05, 0.3]", at="last", more=""):
    return spec.parse(STUDY.format(evaluate=evaluate, at=at, more=more))


def test_of_a_training_that_is_ranked_early_only_that_much_is_trained():
    labelled = tickets.expand(study(evaluate="0.1", at="[1ep, 2ep]"))
    found = plan.needs(item.value for item in labelled)
    trunks = [run for run in found if run.mask == Train(run.net, run.data, run.recipe, run.init, run.order).mask]
    reached = {
        run.recipe.lr: {found[r].until // r.steps_per_epoch for r in trunks if r.recipe == run.recipe} for run in trunks
    }
    assert reached == {0.05: {2}, 0.3: {2}, 0.1: {3}}
    assert all(found[run].keep >= {"1ep", "2ep"} for run in trunks if run.recipe.lr != 0.1)


def test_masks_at_several_steps_leave_the_training_as_it_is(tmp_path):
    stores = []
    for name, at in (("plain", "last"), ("pseudo", "[1ep, 2ep, last]")):
        store = helpers.store(tmp_path / name)
        labelled = [
            i for i in tickets.expand(study("0.05", at)) if i.role["replicate"] == 0 and i.role["find_lr"] == 0.3
        ]
        ranked = [item.value for item in labelled if item.role["method"] == "OMP"]
        lab.compute(ranked, store, "cpu")
        stores.append((store, {item.of.run for item in ranked if hasattr(item, "of")}))
    (plain, (trunk,)), (pseudo, (other,)) = stores
    assert trunk == other
    assert helpers.equal(state(At(trunk, "last"), plain), state(At(trunk, "last"), pseudo))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    config = study(at="[1ep, last]", more="layer_counts: {lr: [0.05, 0.3]}")
    store = helpers.store(tmp_path_factory.mktemp("store"))
    lab.compute_study(config, store, "cpu")
    return results.load(store, config)


def test_the_envelopes_of_a_study_are_what_its_rows_say(computed):
    found = decoupling.gains(decoupling.envelopes(computed)).query("sparsity > 0")
    assert len(found) == 4 and set(found["n"]) == {2} and set(found["decoupled_cells"]) == {4}
    regular = computed[(computed["ticket"] == "LT") & (computed["prune_at"] == "3ep") & computed["layer_counts"].isna()]
    for row in found.to_dict("records"):
        own = regular[(regular["method"] == row["method"]) & (regular["level"] == row["level"])]
        means = own.groupby(["find_lr", "eval_lr"])[["validation", "value"]].mean()
        coupled = means[[find == evaluate for find, evaluate in means.index]]
        best = means["validation"].max()
        tied = means[means["validation"] > best - 1e-9]
        chosen = coupled[coupled["validation"] > best - 1e-9] if best - coupled["validation"].max() < 1e-9 else tied
        assert row["decoupled_mean"] == pytest.approx(chosen["value"].iloc[0])
        winner = coupled[coupled["validation"] > coupled["validation"].max() - 1e-9]
        assert row["coupled_mean"] == pytest.approx(winner["value"].iloc[0])


def test_a_study_with_all_of_it_is_shown(computed):
    assert set(decoupling.effects(decoupling.swaps(computed))["ways"]) == {2}
    steps = decoupling.against_end(decoupling.early(computed))
    assert set(zip(steps["method"], steps["level"], steps["search_epochs"], steps["end_epochs"], strict=True)) == {
        ("OMP", 2, 1, 3), ("OMP", 4, 1, 3), ("IMP", 2, 2, 6), ("IMP", 4, 4, 12),
    }  # fmt: skip
    for show in (pairings.envelopes, pairings.swaps, pairings.early):
        shown = show(computed)
        assert "<figure>" in shown and "n = 2 replicates" in shown
        assert not re.search("nan|None", re.sub("<[^>]+>", " ", shown))
    assert re.sub("<[^>]+>", " ", pairings.crossings(computed)).count("◆") == 1 + 2 * 2
