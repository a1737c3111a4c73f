"""What searches cost, against the papers' own counts; tables and pairs made by hand."""

import pandas as pd
import pytest

from lthlab import costs, spec
from lthlab.tickets import expand

STUDY = """
name: costs
net: resnet20
data: {{name: digits, val_size: 97}}
find: {{epochs: {epochs}, batch_size: 64, lr: 0.1}}
prune: {{{prune}}}
protocol: {{schedule: {schedule}}}
tickets: {{{asked}}}
"""


def spent(asked, epochs=160, prune="levels: [11]", schedule="resume", **columns):
    """Search and training epochs of the tickets that a study asks for."""
    labelled = expand(spec.parse(STUDY.format(asked=asked, epochs=epochs, prune=prune, schedule=schedule)))
    roles = [
        item.role for item in labelled if item.role["what"] == "train" and item.role["ticket"] == asked[:3].strip(":")
    ]
    chosen = [role for role in roles if all(role[name] == value for name, value in columns.items())]
    return {(role["search_epochs"], role["train_epochs"]) for role in chosen}


@pytest.mark.parametrize(
    "asked, more, expected",
    [
        ("LT: {methods: IMP}", {}, (1760, 160)),  # Ma section 1: 11 rounds of 160 epochs
        ("RR: {methods: IMP}", {}, (1760, 160)),
        ("LT: {methods: OMP}", {}, (160, 160)),  # Ma Table 1: one training is ranked
        ("LT: {methods: IMP}", {"epochs": 200, "prune": "levels: [8]"}, (1600, 200)),  # Sooner Table 4: IP of ResNet-20
        ("LT: {methods: IMP}", {"epochs": 90, "prune": "levels: [8]"}, (720, 90)),  # Sooner Table 4: IP of ResNet-50
        ("LRR: {methods: IMP}", {"epochs": 200, "prune": "levels: [8]"}, (1600, 200)),
        (
            "LRR: {methods: GMP}",  # Sooner Table 4: gradual pruning to epoch 150, then 200 epochs
            {"epochs": 200, "prune": "sparsities: [0.8], gradual: {start: 100ep, end: 150ep}"},
            (150, 200),
        ),
        (
            "LRR: {methods: GMP}",  # Sooner Table 4: ResNet-18 and 50
            {"epochs": 90, "prune": "sparsities: [0.8], gradual: {start: 40ep, end: 70ep}"},
            (70, 90),
        ),
        ("LT: {methods: OMP}", {"epochs": 110, "prune": "levels: [8], at: 70ep"}, (70, 110)),  # Lan Fig. 9
        ("WR: {methods: OMP, rewind: 8ep}", {}, (160, 152)),  # Ma appendix B: T - t epochs
        ("WR: {methods: IMP, rewind: 8ep}", {}, (160 + 10 * 152, 152)),
        ("WR: {methods: IMP, rewind: 8ep}", {"schedule": "restart"}, (1760, 160)),
        (  # Sooner Fig. 1: s = 100, v = 5, then v = 180 after s = 20
            "WR: {methods: OMP, rewind: 5ep}",
            {"epochs": 200, "schedule": "restart", "prune": "sparsities: [0.8], at: 100ep"},
            (100, 200),
        ),
        (
            "WR: {methods: OMP, rewind: 180ep}",
            {"epochs": 200, "schedule": "restart", "prune": "sparsities: [0.8], at: 20ep"},
            (180, 200),
        ),
        ("FT: {methods: OMP, epochs: 40}", {}, (160, 40)),
        ("RT: {methods: IMP, scope: layer}", {}, (1760, 160)),
        ("RT: {methods: IMP, scope: global}", {}, (0, 160)),
        ("RT: {methods: IMP, scope: even}", {}, (0, 160)),
        ("RT: {methods: IMP, scope: global, weights: fresh}", {}, (0, 160)),
        ("RT: {methods: IMP, scope: layer, weights: fresh}", {}, (1760, 160)),
        ("RT: {methods: IMP, scope: even, weights: 8ep}", {}, (8, 160)),
        ("SDT: {}", {}, (0, 160)),
    ],
)
def test_search_epochs_are_those_of_the_papers(asked, more, expected):
    assert spent(asked, **more) == {expected}


def test_begun_epochs_count_and_imposed_counts_cost_their_own_search():
    """1,400 digits in batches of 64 are 22 steps, so 23 steps have begun a second epoch."""
    prune = "sparsities: [0.8], at: 23it"
    assert spent("LT: {methods: OMP}", prune=prune) == {(2, 160)}
    prune = "levels: [2], layer_counts: {lr: 0.05}"
    asked = "LT: {methods: [IMP, OMP]}"
    assert spent(asked, prune=prune, method="IMP", layer_counts=None) == {(320, 160)}
    assert spent(asked, prune=prune, method="IMP", layer_counts="lr 0.05") == {(640, 160)}
    assert spent(asked, prune=prune, method="OMP", layer_counts="lr 0.05") == {(320, 160)}


def tidy():
    """Two methods at two levels, with dense and small networks, at two learning rates; three replicates."""
    rows = []
    for ticket, method, level, search, base in (
        ("dense", None, 0, 0, 0.9), ("LT", "OMP", 2, 20, 0.85), ("LT", "IMP", 2, 40, 0.87), ("LT", "OMP", 5, 20, 0.7),
        ("LT", "IMP", 5, 100, 0.8), ("LT", "OMP", 5, 10, 0.6), ("SDT", None, 5, 0, 0.65), ("search", "IMP", 1, 20, 0.9),
    ):  # fmt: skip
        for lr, worse in ((0.1, 0.0), (0.4, 0.05)):
            for replicate in range(3):
                row = {"study": "s", "panel": "p", "network": "n", "data": "d", "what": "train", "ticket": ticket}
                row |= {"method": method, "level": level, "sparsity": 1 - 0.8**level, "find_lr": lr, "eval_lr": lr}
                row |= {"prune_at": f"{search}ep" if method == "OMP" else None, "layer_counts": None}
                row |= {"train_size": 100, "find_batch_size": 50}
                row |= {"search_epochs": search, "train_epochs": 20, "replicate": replicate, "status": "done"}
                rows.append(row | {"value": base - worse + replicate / 100, "key": f"{len(rows):032x}"})
    return pd.DataFrame(rows)


def test_the_learning_rate_is_the_one_at_which_the_dense_network_is_best():
    frame = tidy()
    found = costs.at_dense_best(frame)
    assert set(found["eval_lr"]) == {0.1} and "search" not in set(found["ticket"]) and len(found) == 7 * 3
    dense = frame["ticket"] == "dense"
    frame.loc[dense & (frame["eval_lr"] == 0.4), "value"] += 0.1
    assert set(costs.at_dense_best(frame)["eval_lr"]) == {0.4}
    only = frame[dense | (frame["eval_lr"] == 0.1)]
    assert set(costs.at_dense_best(only)["eval_lr"]) == {0.1}
    crossed = pd.concat([frame, frame[~dense].assign(find_lr=0.2, key="x")])
    assert set(costs.at_dense_best(crossed)["find_lr"]) == {0.4}
    both = pd.concat([tidy(), tidy().query("ticket == 'LT' and eval_lr == 0.4").assign(find_lr=0.1, key="y")])
    assert set(costs.at_dense_best(both)["eval_lr"]) == {0.1}
    undone = frame[~dense]
    assert len(costs.at_dense_best(undone)) == 6 * 2 * 3
    assert costs.at_dense_best(frame[:0]).empty


def test_the_table_has_search_training_and_sum_beside_the_accuracy():
    found = costs.table(costs.at_dense_best(tidy()))
    assert found["panel"].unique().tolist() == ["n on d"] and len(found) == 7 and (found["n"] == 3).all()
    last = found[found["sparsity"] == found["sparsity"].max()]
    told = last[["ticket", "method", "search_epochs", "train_epochs", "epochs"]].fillna("").to_numpy().tolist()
    assert told == [
        ["SDT", "", 0, 20, 20],
        ["LT", "OMP", 10, 20, 30],
        ["LT", "OMP", 20, 20, 40],
        ["LT", "IMP", 100, 20, 120],
    ]
    assert last["mean"].tolist() == pytest.approx([0.66, 0.61, 0.71, 0.81])
    assert costs.table(tidy()[:0]).empty


def test_what_the_dear_search_buys_is_paired_with_the_longest_cheap_one():
    frame = tidy()
    gain = (frame["method"] == "IMP") & (frame["replicate"] == 1)
    frame.loc[gain, "value"] += 0.03
    found = costs.saved(costs.at_dense_best(frame))
    assert found[["level", "dear", "cheap", "n"]].to_numpy().tolist() == [[2, 40, 20, 3], [5, 100, 20, 3]]
    assert found["mean"].tolist() == pytest.approx([0.03, 0.11])
    assert (found["high"] - found["mean"]).tolist() == pytest.approx([4.302653 * 0.03 / 3] * 2)  # sd 0.03/√3, n = 3
    assert costs.saved(frame[frame["method"] != "IMP"]).empty
    best = frame[frame["method"] == "OMP"].assign(prune_at="best_val", value=0.0, key="b" + frame["key"])
    again = costs.saved(costs.at_dense_best(pd.concat([frame, best], ignore_index=True)))
    pd.testing.assert_frame_equal(again, found)
