"""Every ticket begins with the weights, the mask and the batches that the papers say, bit for bit."""

import pytest
import torch

from lthlab import data, derive, engine, lab, masks, nets, spec, tickets
from lthlab.store import Store
from lthlab.values import At

STUDY = """
name: study
net: {name: resnet8, width: 4}
data: {name: digits, train_size: 96, classes: [0, 1, 2, 3, 4]}
replicates: 2
find: {epochs: 3, batch_size: 32, lr: 0.1, lr_schedule: step, milestones: [2ep], weight_decay: 1.0e-4}
prune: {levels: [2], at: [2ep, last], gradual: [{start: 1ep, end: 2ep, every: 2it}]}
targets: [{data: {name: digits, train_size: 64, classes: [5, 6, 7]}}]
tickets:
  LT: {methods: [IMP, OMP, GMP]}
  RR: {methods: [IMP, OMP]}
  WR: {methods: [IMP, OMP, GMP], rewind: [1ep, 4it]}
  LRR: {methods: [IMP, OMP]}
  FT: {methods: [IMP, OMP], epochs: 1}
  RT: {methods: [IMP], scope: [layer, global, even], weights: [initial, fresh, 1ep]}
  SDT:
  GMP:
"""


REWINDS = {
    "LT": ["0ep"], "RR": [None], "WR": ["1ep", "4it"], "LRR": ["ranked"], "FT": ["ranked"], "GMP": ["0ep"],
    "SDT": [None], "RT": ["0ep", None, "1ep"],
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of every kind of ticket, of which the states that trainings begin with are computed."""
    store = Store(tmp_path_factory.mktemp("starts") / "runs")
    labelled = [item for item in tickets.expand(spec.parse(STUDY)) if item.role["what"] == "train"]
    starts = [At(item.value, item.value.step_text(item.value.start)) for item in labelled]
    masks_ = {item.value.mask for item in labelled if item.value.mask.stored}
    lab.compute([*starts, *masks_], store, "cpu")
    return labelled, store


def trunk_state(value, step, store):
    """State of the dense training of a ticket's replicate and data."""
    init = getattr(value.init, "body", value.init)
    source = getattr(init, "run", None) or value.mask.source
    while source.mask.stored:
        source = source.mask.source
    return derive.state(At(source, step), store)


def expected(item, store):
    """Weights that a ticket begins with, before its mask, and None for those of the head."""
    role, value = item.role, item.value
    r = role["replicate"]
    if role["ticket"] in ("dense", "SDT"):
        return nets.fresh(value.net, value.data, r, 0)
    if role["rewind"] is None:
        return nets.fresh(value.net, value.data, r, 1)
    if role["rewind"] == "ranked":
        return derive.state(value.mask.of if role["method"] != "GMP" else At(value.mask.run, value.mask.step), store)
    data = value.data if role["source"] == role["target"] else getattr(value.init, "body", value.init).run.data
    if role["rewind"] == "0ep":
        return nets.fresh(value.net, data, r, 0)
    return trunk_state(value, role["rewind"], store)


def test_every_ticket_begins_with_the_weights_that_its_name_says(study):
    labelled, store = study
    kinds = set()
    for item in labelled:
        role, value = item.role, item.value
        found = derive.state(At(value, value.step_text(value.start)), store)
        start = expected(item, store)
        mask = derive.mask(value.mask, store) or {}
        head = nets.fresh(value.net, value.data, role["replicate"], 0)
        for name, tensor in start.items():
            if role["source"] != role["target"] and name.startswith("fc."):
                tensor = start[name] if role["rewind"] is None else head[name]
            tensor = tensor * mask[name] if name in mask else tensor
            assert torch.equal(found[name], tensor), (role["ticket"], role["method"], role["rewind"], name)
        kinds.add((role["ticket"], role["method"], role["scope"], role["rewind"], role["source"] == role["target"]))
        assert role["rewind"] in REWINDS.get(role["ticket"], (None, "0ep", "1ep", "4it", "ranked"))
    assert len(kinds) > 40


def test_masks_are_the_largest_weights_of_the_state_that_was_ranked(study):
    """Count and rank with NumPy, for every mask that a ticket is under, at every step."""
    labelled, store = study
    seen = set()
    for item in labelled:
        mask = item.value.mask
        mask = mask.mask if item.role["ticket"] == "RT" else mask
        if not hasattr(mask, "of") or mask in seen or mask.scope == "layer":
            continue
        seen.add(mask)
        kept = derive.mask(mask, store)
        before = derive.mask(mask.of.run.mask, store) or {name: torch.ones_like(k) for name, k in kept.items()}
        state = derive.state(mask.of, store)
        flat = torch.cat([(state[name].abs() + before[name].float() * 10).flatten() for name in kept]).numpy()
        total = sum(k.numel() for k in kept.values())
        pruned = {1: 0.2, 2: 0.36}[mask.sparsity.k] * total
        chosen = torch.cat([k.flatten() for k in kept.values()]).numpy()
        assert (~chosen).sum() == int(pruned + 0.5)
        assert flat[~chosen].max() <= flat[chosen].min()
    assert len(seen) > 8


def test_every_ticket_meets_the_batches_of_its_replicate_and_epoch(study):
    """Restarted ones from epoch 0; those that resume at epoch t from t, as the trunk did (Ma appendix B)."""
    labelled, store = study
    for item in labelled:
        value = item.value
        assert value.order == item.role["replicate"]
        resumes = item.role["ticket"] in ("WR", "search") and item.role["source"] == item.role["target"]
        epochs = 1 if resumes and item.role["rewind"] in ("1ep", "4it") else 0
        assert value.start // value.steps_per_epoch == epochs
    orders, order = [], engine.order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "order", lambda *place: orders.append(place) or order(*place))
        picked = {(i.role["ticket"], i.role["rewind"], i.role["target"]): i.value for i in labelled}
        for (ticket, *_), value in picked.items():
            orders.clear()
            job = engine.Job(value, derive.initial(value, store), derive.mask(value.mask, store))
            training = engine.Training([job], data.load(value.data, None))
            training.advance(training.iteration)
            training.advance(value.end)
            assert orders == [(value.data.images, value.order, value.start // value.steps_per_epoch)], ticket


def test_permuted_masks_keep_counts_of_layers_or_in_all(study):
    labelled, store = study
    found = set()
    for item in labelled:
        scope, mask = item.role["scope"], item.value.mask
        if scope is None:
            continue
        own, moved = derive.mask(mask.mask, store), derive.mask(mask, store)
        assert masks.kept(own) == masks.kept(moved)
        same = masks.pruned_per_layer(own) == masks.pruned_per_layer(moved)
        assert same == (scope != "global")
        assert masks.hamming(own, moved) > 0
        assert mask.seed == item.role["replicate"]
        found.add(scope)
    assert found == {"layer", "global", "even"}
