"""The papers' numbers beside ours: what is compared with what, what is not, and what the interval says."""

import json
import re

import helpers
import numpy as np
import pandas as pd
import pytest

from lthlab import cli, comparison, evidence, ledgers, published, spec
from lthlab.store import Store

DENSE = """
name: dense
presets: [ma_cifar]
net: resnet20
data: cifar10
replicates: 2
find: {lr: [0.01, 0.1]}
tickets: {WR: false}
"""
TABLE_4 = """
name: table_4
presets: [ma_cifar]
net: resnet20
data: cifar10
replicates: 3
find: {lr: 0.01}
eval: {lr: [0.005, 0.01]}
prune: {levels: [8, 11]}
tickets: {WR: false, LT: , RR: }
"""
SOONER = """
name: sooner
presets: [sooner_cifar10]
net: resnet20
data: cifar10
replicates: 3
find: {batch_size: 128}
prune: {at: [20ep, 200ep], gradual: [{start: 25ep, end: 75ep}]}
tickets: {LT: {methods: OMP}, WR: {methods: OMP, rewind: 20ep}, LRR: {methods: OMP}, GMP: }
"""
OFF = np.array([0.001, -0.001, 0.0])


def source(text, value=lambda row: 0.9, status="done"):
    config = spec.parse(text)
    frame = helpers.frame_of(config).assign(validation=None)
    rows = frame.to_dict("records")
    masks = frame["what"] == "mask"
    values = [value(row) + OFF[row["replicate"]] for row in rows]
    return evidence.Source(config, frame.assign(value=values, status=np.where(masks, "missing", status)), None)


def values(*sources):
    found = comparison.values(sources)
    assert list(found) == list(comparison.COLUMNS) and set(found["outcome"]) <= set(comparison.OUTCOMES)
    trained = ~found["quantity"].isin(["parameters", "memorization capacity"])
    return found[trained & (found["outcome"] != "not yet run")].reset_index(drop=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A few of the claims, and no metrics of epochs, which these frames have no store for."""
    few = tuple(
        c for c in published.claims() if c.id in ("ma-small-lr-imp", "ma-large-lr-imp", "mo-transfer-own", "ma-g3")
    )
    monkeypatch.setattr(comparison.published, "claims", lambda: few)
    monkeypatch.setattr(comparison.early, "dense", lambda store, rows: rows.assign(epoch=20.0))


def test_without_any_study_everything_is_not_yet_run_but_counts():
    found = comparison.values([])
    assert len(found) == 316
    assert found["outcome"].value_counts().to_dict() == {
        "not yet run": 299, "not comparable": 8, "inside": 5, "outside": 4,
    }  # fmt: skip
    odd = found[found["outcome"] == "outside"].set_index(["network", "data"])["switches"]
    assert odd["resnet18", "tiny_imagenet"] == "C9: head of 1000 classes (ours has 200)"
    assert comparison.claims([])["outcome"].unique().tolist() == ["not yet run"]


def test_dense_accuracy_is_that_of_the_rate_the_length_and_the_network():
    found = values(source(DENSE, lambda row: 0.92 if row["eval_lr"] == 0.1 else 0.9))
    assert found["condition"].tolist() == ["lr=0.1 epochs=160", "lr=0.01 epochs=160", "lr=0.1 epochs=160"]
    assert found["value"].tolist() == [92.3, 90.3, 92.4]
    assert found["ours"].tolist() == pytest.approx([92, 90, 92])
    assert found["switches"].unique().tolist() == ["C19: 2 runs (paper 3)"]
    assert (found["study"] == "dense").all() and (found["panel"] == "resnet20.cifar10").all()


RATES = "lr: ["
OTHERS = [
    ("net: resnet20", "net: resnet32"),
    ("net: resnet20", "net: {name: resnet20, width: 32}"),
    ("net: resnet20", "net: {name: resnet20, shortcut: none}"),
    ("data: cifar10", "data: cifar100"),
    *(
        ("data: cifar10", f"data: {{name: cifar10, {view}}}")
        for view in ("part: a", "label_noise: 0.1", "train_size: 20000")
    ),
    *(
        (RATES, f"{field}, lr: [")
        for field in (
            "epochs: 161", "milestones: [80ep, 121ep]", "gamma: 0.2", "nesterov: true", "momentum: 0.8",
            "weight_decay: 1.0e-3", "warmup: 5ep", "label_smoothing: 0.1",
        )
    ),
    ("lr: [0.01, 0.1]", "lr: [0.011, 0.11]"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", OTHERS)
def test_what_is_another_experiment_is_not_compared(old, new):
    assert old in DENSE and values(source(DENSE)).shape[0] == 3
    assert values(source(DENSE.replace(old, new))).empty


@pytest.mark.parametrize(
    "old, new, switch",
    [
        ("lr: [", "weight_decay: 1.0e-4, lr: [", "C1: weight decay 0.0001 (paper 0.0005)"),
        ("lr: [", "precision: bf16, lr: [", "precision bf16 (paper fp32)"),
        ("lr: [", "batch_size: 128, lr: [", "batch size 128 (paper 64)"),
        ("tickets:", "protocol: {report: best_test}\ntickets:", "C7: report best_test (paper last)"),
        ("data: cifar10", "data: {name: cifar10, val_size: 5000}", "val size 5000 (paper 0)"),
        ("data: cifar10", "data: {name: cifar10, augment: none}", "augment none (paper crop_flip)"),
        ("net: resnet20", "net: {name: resnet20, shortcut: A}", "shortcut A (paper B)"),
        ("tickets:", "protocol: {prunable: first_last_dense}\ntickets:", None),
    ],
)
def test_switches_that_differ_are_named_and_what_has_no_effect_is_not(old, new, switch):
    found = values(source(DENSE.replace(old, new)))
    assert len(found) == 3
    told = found["switches"].iloc[0].split("; ")
    assert "C19: 2 runs (paper 3)" in told
    assert [text for text in told if not text.startswith("C19")] == ([switch] if switch else [])


def test_every_way_of_ours_is_a_row_the_nearest_first():
    both = DENSE.replace("lr: [", "weight_decay: [1.0e-4, 5.0e-4], lr: [").replace("replicates: 2", "replicates: 3")
    found = values(source(both, lambda row: 0.9 + 0.01 * (row["eval_weight_decay"] == 5e-4)))
    first = found[found["condition"] == "lr=0.01 epochs=160"]
    assert first["switches"].tolist() == ["", "C1: weight decay 0.0001 (paper 0.0005)"]
    assert first["ours"].tolist() == pytest.approx([91, 90])


def test_the_reach_is_that_of_a_mean_of_as_many_runs_with_the_spread_pooled():
    found = values(source(DENSE.replace("replicates: 2", "replicates: 3"))).iloc[0]
    sd, t = 0.1, 2.7764  # percent; two cells of three replicates, four degrees of freedom
    assert found["n"] == 3
    assert found["high"] - found["ours"] == pytest.approx(t * sd / 3**0.5, rel=1e-4)
    assert found["reach_high"] - found["ours"] == pytest.approx(t * sd * (2 / 3) ** 0.5 + 0.05, rel=1e-4)
    assert found["outcome"] == "outside" and found["difference"] == pytest.approx(-2.3)


@pytest.mark.parametrize(
    "ours, outcome", [(0.923, "inside"), (0.9255, "inside"), (0.926, "outside"), (0.92, "outside")]
)
def test_a_number_is_inside_its_reach_or_outside(ours, outcome):
    found = values(source(DENSE.replace("replicates: 2", "replicates: 3"), lambda row: ours))
    assert found["outcome"].iloc[0] == outcome  # 92.3, with a reach of 0.28


def test_one_replicate_gives_no_interval_and_a_wide_one_says_nothing():
    one = values(source(DENSE.replace("replicates: 2", "replicates: 1"), lambda row: 0.9205)).iloc[0]
    assert one["outcome"] == "undecided" and np.isnan(one["low"]) and one["note"] == "one replicate gives no interval"
    same = values(source(DENSE.replace("replicates: 2", "replicates: 1"), lambda row: 0.9219)).iloc[0]
    assert same["outcome"] == "inside"  # 92.29 rounds to 92.3
    wide = values(source(DENSE, lambda row: 0.923 + 0.02 * row["replicate"])).iloc[0]
    assert wide["outcome"] == "undecided" and "too far to tell" in wide["note"]


def test_what_is_asked_for_and_not_done_is_not_yet_run():
    found = comparison.values([source(DENSE, status="missing")])
    row = found[found["quantity"] == "dense test accuracy"].iloc[0]
    assert row["outcome"] == "not yet run" and row["note"] == "asked for, missing" and row["study"] == "dense"


def test_tickets_are_those_of_the_rates_the_method_and_the_sparsity():
    def value(row):
        right = row["ticket"] == "LT" and row["method"] == "IMP" and row["level"] == 11 and row["eval_lr"] == 0.005
        return 0.897 if right else 0.5

    found = values(source(TABLE_4, value))
    imp = found[found["quantity"] == "LT-IMP test accuracy"].set_index("condition")
    assert sorted(imp.index[imp.index.str.contains("find")]) == [
        "find_lr=0.01 eval_lr=0.005 sparsity=0.914", "find_lr=0.01 eval_lr=0.01 sparsity=0.914",
    ]  # fmt: skip
    row = imp.loc["find_lr=0.01 eval_lr=0.005 sparsity=0.914"]
    assert row["outcome"] == "inside" and row["ours"] == pytest.approx(89.7) and row["switches"] == ""


def test_of_tickets_the_prunable_set_differs_too():
    found = values(source(TABLE_4.replace("tickets:", "protocol: {prunable: first_last_dense}\ntickets:")))
    dense = found["quantity"] == "dense test accuracy"
    assert found[~dense & found["condition"].str.contains("find")]["switches"].unique().tolist() == [
        "C2: prunable first_last_dense (paper all_but_head)"
    ]
    assert found[dense]["switches"].unique().tolist() == [""]


def test_a_sparsity_that_the_paper_does_not_state_is_left_open():
    found = values(source(TABLE_4.replace("lr: 0.01}", "lr: 0.005}")))
    row = found[found["condition"].str.contains("unstated")].iloc[0]
    assert row["outcome"] == "undecided" and "C6" in row["note"] and "90.0 at 0.914" in row["note"]


def test_verdicts_are_compared_with_what_the_paper_says():
    text = (
        TABLE_4.replace("lr: 0.01}", "lr: [0.01, 0.1]}")
        .replace("eval: {lr: [0.005, 0.01]}\n", "")
        .replace("RR: ", "RR: , SDT: ")
    )

    def value(row):
        small = row["eval_lr"] == 0.01
        of = {"dense": 0.92 - 0.02 * small, "LT": 0.90, "RR": 0.87, "SDT": 0.87}
        imp = row["method"] == "IMP" and row["ticket"] == "LT"
        return of.get(row["ticket"], 0.9) + 0.005 * imp - 0.01 * (row["ticket"] == "LT" and not small)

    found = values(source(text, value))
    table = found[found["where"] == "Table 3"].set_index("quantity")
    assert table["ours"].to_dict() == {
        "jackpot": "no", "secondary prize": "yes", "prefers small lr": "yes", "prefers IMP": "yes",
    }  # fmt: skip
    assert table["outcome"].unique().tolist() == ["inside"]
    lost = values(source(text, lambda row: value(row) - 0.05 * (row["ticket"] == "LT")))
    assert set(lost[lost["where"] == "Table 3"]["outcome"]) >= {"outside"}


def test_steps_of_sooner_are_those_of_ranking_and_of_rewinding():
    def value(row):
        kinds = {("LT", "200ep"): 0.89, ("WR", "200ep"): 0.91, ("LRR", "20ep"): 0.902, ("LRR", "200ep"): 0.913}
        kinds |= {("WR", "20ep"): 0.902}
        return 0.92 if row["ticket"] == "GMP" else kinds.get((row["ticket"], row["prune_at"]), 0.5)

    found = values(source(SOONER, value))
    tickets = found[found["quantity"] == "ticket validation accuracy"]
    ours = {
        re.sub(" sparsity.*", "", condition): value
        for condition, value in zip(tickets["condition"], tickets["ours"], strict=True)
    }
    assert ours["mask_epoch=200 rewind_epoch=0"] == pytest.approx(89)
    assert ours["mask_epoch=200 rewind_epoch=20"] == pytest.approx(91)
    assert ours["mask_epoch=20"] == pytest.approx(90.2)  # v = s of Table 2
    assert ours["mask_epoch=200 rewind_epoch=200"] == pytest.approx(91.3)
    assert ours["window=25-75"] == pytest.approx(92)
    assert set(tickets["switches"]) == {"batch size 128 (paper: not stated)"}
    whole = values(source(SOONER.replace("tickets:", "protocol: {schedule: resume}\ntickets:"), value))
    rewound = whole[whole["condition"].str.startswith("mask_epoch=200 rewind_epoch=20 ")]
    assert rewound["switches"].tolist() == [
        "batch size 128 (paper: not stated); C8: schedule resume (paper restart)",
    ]  # fmt: skip


def test_distances_of_masks_and_the_fall_of_a_spread_are_read_from_their_measures(monkeypatch):
    rows = {
        "hamming": [{"first_epoch": 100.0, "second_epoch": 120.0, "value": 0.154}],
        "weight_std": [
            {"epoch": epoch, "number": number, "value": value}
            for epoch, value in ((120.0, 0.1900), (121.0, 0.1893), (122.0, 0.1885))
            for number in (9, 10)
        ],
    }  # 782 updates are two epochs of 391

    def measured(store, frame):
        return pd.DataFrame([row | own for row in frame.to_dict("records") for own in rows[row["what"]]])

    monkeypatch.setattr(comparison.results, "measured", measured)
    text = SOONER.replace("at: [20ep, 200ep]", "at: [100ep, 120ep]") + "measures: {hamming: , weight_std: }\n"
    found = values(source(text)).set_index("quantity")
    distance = found.loc["mask Hamming distance"]
    assert (distance["condition"], distance["outcome"]) == ("epoch_a=100 epoch_b=120 sparsity=0.8", "inside")
    fall = found.loc["decrease of W_std of layer 10 over 782 updates"]
    assert fall["ours"] == pytest.approx(0.0015) and fall["outcome"] == "inside"


def test_changes_from_dense_networks_are_of_what_costs_as_much():
    text = SOONER.replace("start: 25ep, end: 75ep", "start: 100ep, end: 150ep")
    text = text.replace("WR: {methods: OMP, rewind: 20ep}", "WR: {methods: [OMP, GMP], rewind: 5ep}")
    found = values(source(text, lambda row: 0.92 if row["ticket"] == "dense" else 0.918))
    row = found[found["unit"] == "pp"].iloc[0]
    assert row["condition"].startswith("method=gradual") and row["ours"] == pytest.approx(-0.2)
    assert row["outcome"] == "inside" and row["n"] == 3


# --- claims -------------------------------------------------------------------------------------------------------


def test_claims_of_several_studies_say_where_they_were_asked():
    digits = """
name: small
net: {name: resnet8, width: 4}
data: digits
replicates: 3
find: {epochs: 20, batch_size: 64, lr: [0.01, 0.1]}
prune: {levels: [4, 8]}
tickets: {LT: , RR: }
"""
    gap = source(digits, lambda row: 0.9 + 0.02 * (row["ticket"] == "LT"))
    rates = TABLE_4.replace("lr: 0.01}", "lr: [0.01, 0.1]}").replace("[0.005, 0.01]", "[0.01, 0.1]")
    ours = source(rates, lambda row: 0.9 - 0.02 * (row["ticket"] == "LT"))
    found = comparison.claims([gap, ours])
    assert list(found) == list(comparison.CLAIM_COLUMNS)
    rows = found[found["id"] == "ma-small-lr-imp"].set_index("study")
    assert rows["outcome"].to_dict() == {"small": "supports", "table_4": "contradicts"}
    assert rows["elsewhere"].to_dict() == {"small": "not on cifar10, not with resnet20", "table_4": ""}
    assert rows["panel"].to_dict() == {
        "small": "resnet8 (width 4) on digits",
        "table_4": "resnet20 (width 16) on cifar10 (augment crop_flip)",
    }
    nothing = found[found["id"] == "mo-transfer-own"]
    assert nothing["outcome"].tolist() == ["not yet run"] and nothing["study"].isna().all()
    asked = comparison.claims([source(digits, status="missing")])
    row = asked[asked["id"] == "ma-small-lr-imp"].iloc[0]
    assert (row["outcome"], row["study"], row["n"]) == ("not yet run", "small", 0)


# --- what is printed ----------------------------------------------------------------------------------------------


@pytest.fixture
def compared():
    """Numbers inside and outside, and a claim that is contradicted."""
    rates = TABLE_4.replace("lr: 0.01}", "lr: [0.01, 0.1]}").replace("[0.005, 0.01]", "[0.01, 0.1]")
    claims = comparison.claims([source(rates, lambda row: 0.9 - 0.02 * (row["ticket"] == "LT"))])
    return comparison.values([source(DENSE, lambda row: 0.92 if row["eval_lr"] == 0.1 else 0.903)]), claims


def test_disagreements_are_printed_first_and_what_is_absent_is_counted(compared):
    text = ledgers.text("dense", *compared)
    places = [text.index(word) for word in (" outside ", "contradicted", " inside ", "left open", "Not yet run")]
    assert places == sorted(places)
    assert "C19: 2 runs (paper 3)" in text and "The Sooner The Better: 218 numbers" in text
    assert "mask_epoch=10" not in text and "mask_epoch=10" in ledgers.text("dense", *compared, whole=True)


def test_a_page_shows_numbers_with_their_intervals(compared):
    whole, claims = compared
    page = "".join(
        part._repr_html_()
        for part in (
            ledgers.finding(whole, claims), ledgers.dense(whole), ledgers.figure(whole),
            *(ledgers.table(whole, outcome) for outcome in ledgers.HEADS),
            *(ledgers.statements(claims, outcome) for outcome in ledgers.CLAIM_HEADS), ledgers.lacking(whole, claims),
        )
    )  # fmt: skip
    plain = re.sub("<[^>]+>", " ", page)
    assert "nan" not in plain and "None" not in plain
    row = whole[whole["condition"] == "lr=0.1 epochs=160"].iloc[0]
    assert f"{row['ours']:.1f} %" in plain and f"[{row['low']:.1f}, {row['high']:.1f}]" in plain
    assert "−2.0 [−" in plain and "n = 2 replicates" in page


def test_the_command_line_compares_what_was_never_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "name: s\nnet: lenet_300_100\ndata: digits\nfind: {epochs: 1, batch_size: 64, lr: 0.1}\n"
    )
    assert cli.main(["compare", "s.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("s, beside what the papers print and claim") and "Ma et al. 2021: 81 numbers" in out
    assert cli.main(["compare", "s.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["numbers"]) == 316 and found["claims"][0]["study"] is None and found["study"] == "s"


def test_frames_of_a_store_are_sources(tmp_path):
    assert evidence.load(Store(tmp_path / "runs")) == []
    with pytest.raises(LookupError, match="study 's'"):
        evidence.load(Store(tmp_path / "runs"), ["s"])
    assert isinstance(comparison.values([]), pd.DataFrame)
