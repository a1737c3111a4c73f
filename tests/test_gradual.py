"""Pruning on the way of a training: curves and counts, masks in the store, the same bits whatever happens."""

from dataclasses import replace
from fractions import Fraction

import helpers
import pytest
import torch

from lthlab import data, derive, engine, estimates, gradual, lab, masks, nets
from lthlab.analyses import Measure
from lthlab.engine import Training
from lthlab.errors import InputError
from lthlab.parts import Data, Level
from lthlab.plan import Need
from lthlab.runs import Run
from lthlab.store import Store
from lthlab.values import At, Explicit, Fresh, Gradual, Magnitude, MaskOf, Permuted, Train
from lthlab.weights import correlation_indicator

FORMS = ("stacked", "sequential")
CUBIC = Gradual("1it", "7it", "2it", "0.9")
EXPLICIT = Explicit((("2it", "0.3"), ("1ep", "0.5"), ("2ep", "0.95")))
LINEAR = Gradual("0ep", "6it", "3it", Level(3), "0.1", "linear", scope="layer")
SCHEDULES = (CUBIC, EXPLICIT, LINEAR)
SIZES = {"fc1.weight": 300 * 64, "fc2.weight": 300 * 100}
TOTAL = sum(SIZES.values())
STEPS = ("0ep", "1it", "2it", "3it", "1ep", "5it", "6it", "7it", "2ep")


def train(schedule=CUBIC, net=helpers.LENET, replicate=0, mask=None, **fields):
    value = helpers.train(net, replicate=replicate, **fields)
    return replace(value, pruning=schedule, **({} if mask is None else {"mask": mask}))


def unpacked(packed):
    return masks.unpack({name: part.numpy() for name, part in packed.items()})


def shares(value):
    return list(gradual.sparsities(value).values())


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


@pytest.fixture(scope="module")
def dataset():
    return helpers.load()


def stored(value, store):
    """The mask of a training at every step, as computed by itself."""
    return {step: derive.mask(MaskOf(value, step), store) for step in STEPS}


# --- curves and counts ----------------------------------------------------------------------------------------


def test_the_curve_is_eq_6_at_every_step():
    """0.8 within four intervals; the cubes are those that a reader of Sooner eq. 6 finds by hand."""
    value = train(Gradual("2ep", "10ep", "2ep", "0.8"), epochs=12)
    found = gradual.sparsities(value)
    assert list(found) == [8, 16, 24, 32, 40]
    assert [float(share) for share in found.values()] == [0, 0.4625, 0.7, 0.7875, 0.8]
    value = train(Gradual("1ep", "7ep", "2ep", "0.8", initial="0.4"), epochs=12)
    assert shares(value) == [Fraction(2, 5), Fraction(92, 135), Fraction(106, 135), Fraction(4, 5)]
    found = gradual.sparsities(train(Gradual("3ep", "90ep", "1it", "0.97", initial="0.2"), epochs=100))
    assert list(found) == list(range(12, 361))
    for t, share in found.items():
        assert float(share) == pytest.approx(0.97 + (0.2 - 0.97) * (1 - (t - 12) / 348) ** 3, rel=1e-14)


def test_the_linear_curve_is_a_line():
    value = train(Gradual("0ep", "8it", "2it", "0.8", initial="0.4", shape="linear"))
    assert shares(value) == [Fraction(n, 10) for n in (4, 5, 6, 7, 8)]


def test_the_end_is_exact_where_the_interval_does_not_divide_the_window():
    found = gradual.sparsities(train(Gradual("1it", "8it", "3it", Level(6))))
    assert list(found) == [1, 4, 7, 8] and found[8] == 1 - Fraction(4, 5) ** 6
    assert found[7] == found[8] * (1 - Fraction(1, 7) ** 3)
    found = gradual.sparsities(train(Gradual("1it", "3it", "1ep", "0.3")))
    assert found == {1: 0, 3: Fraction(3, 10)}


def test_counts_are_half_up_of_the_original_number():
    value = train(Explicit((("1ep", "0.5"),)))
    assert gradual.counts(value, Fraction(1, 2 * TOTAL)) == {gradual.TOGETHER: 1}
    assert gradual.counts(value, Fraction(1, 2 * TOTAL) - Fraction(1, 10**9)) == {gradual.TOGETHER: 0}
    value = train(Explicit((("1ep", "0.5"),), scope="layer"))
    assert gradual.counts(value, Fraction(1, 10**4)) == {"fc1.weight": 2, "fc2.weight": 3}
    assert gradual.counts(value, Fraction(125, 10**6)) == {"fc1.weight": 2, "fc2.weight": 4}


def test_four_steps_of_sooner_table_1(store):
    """40, 60, 70 and 80 % after epochs 120 to 240, here of a fortieth of their length, on random labels."""
    listed = {"3ep": 0.4, "4ep": 0.6, "5ep": 0.7, "6ep": 0.8}
    random = Data(name="digits", train_size=200, random_labels=0)
    gradual = replace(helpers.train(dataset=random, epochs=6), pruning=Explicit(tuple(listed.items())))
    asked = [MaskOf(gradual, step) for step in listed]
    memorised = [Train(gradual.net, random, gradual.recipe, At(gradual, mask.step), 0, mask) for mask in asked]
    lab.compute(memorised, store)
    kept = {mask.step: masks.kept(derive.mask(mask, store)) for mask in asked}
    assert kept == {step: TOTAL - round(TOTAL * share) for step, share in listed.items()}
    for value, mask in zip(memorised, asked, strict=True):
        assert Run(value, store).complete and value.init.step == mask.step


# --- masks ----------------------------------------------------------------------------------------------------


def test_masks_in_the_store_shrink_as_the_curve_says(store):
    """Before the start nothing is pruned; at a step of the curve, after pruning; between two, as after the first."""
    value = train()
    lab.compute([MaskOf(value, step) for step in STEPS], store)
    found, whole = stored(value, store), {}
    at = {1: 0.0, 3: 0.9 * (1 - (2 / 3) ** 3), 5: 0.9 * (1 - (1 / 3) ** 3), 7: 0.9}
    for step, mask in found.items():
        passed = [share for t, share in at.items() if t <= value.iteration(step)]
        assert TOTAL - masks.kept(mask) == int((passed or [0.0])[-1] * TOTAL + 0.5), step
        assert {name: layer.numel() for name, layer in mask.items()} == SIZES
        assert not whole or masks.nested(mask, whole)
        state = derive.state(At(value, step), store)
        assert not any(state[name][~kept].any() for name, kept in mask.items())
        whole = mask
        (part,) = store.parts(MaskOf(value, step).key)
        layers = {name: int(kept.sum()) for name, kept in mask.items()}
        record = {"kind": "mask", "kept": sum(layers.values()), "total": TOTAL, "layers": layers, "collapsed": []}
        assert {name: part.record[name] for name in record} == record
        assert set(part.record["inputs"]) == {f"{value.key}/{step}.safetensors", f"{value.key}/{step}.mask.safetensors"}


def test_masks_within_layers_prune_the_same_share_of_each(store):
    value = train(LINEAR)
    lab.compute([MaskOf(value, step) for step in STEPS], store)
    end = Fraction(61, 125)
    for t, share in ((0, Fraction(1, 10)), (3, (Fraction(1, 10) + end) / 2), (6, end)):
        found = masks.pruned_per_layer(derive.mask(MaskOf(value, value.step_text(t)), store))
        assert found == {name: int(share * size + Fraction(1, 2)) for name, size in SIZES.items()}


def test_a_mask_is_not_read_from_zeros(dataset):
    """Weights that are zero by themselves are kept as far as they are not due, even before those that are pruned."""
    value = train(Explicit((("0ep", "0.25"), ("1it", "0.3"))))
    job = helpers.job(value, {}, {"0ep", "1it"})
    first = {name: torch.ones_like(job.state[name], dtype=torch.bool) for name in SIZES}
    first["fc1.weight"].view(-1)[-12300:] = False
    job.state["fc1.weight"].zero_()
    job = replace(job, mask=first)
    progress = helpers.run([job], dataset, until=1).progress[0]
    found, later = (unpacked(progress.masks[step]) for step in ("0ep", "1it"))
    assert all(torch.equal(found[name], kept) for name, kept in first.items())
    assert not progress.snapshots["0ep"]["fc1.weight"].any()
    assert TOTAL - masks.kept(later) == 0.3 * TOTAL and masks.nested(later, first)


def test_a_training_that_prunes_goes_on_from_its_own_mask(store):
    trunk = helpers.train()
    half = Magnitude(At(trunk, "0ep"), "0.5")
    value = train(Gradual("1it", "5it", "2it", "0.8", initial="0.5"), mask=half)
    lab.compute([MaskOf(value, step) for step in STEPS], store)
    found, before = stored(value, store), derive.mask(half, store)
    for step in ("0ep", "1it", "2it"):
        assert all(torch.equal(found[step][name], before[name]) for name in before)
    assert masks.nested(found["5it"], before) and masks.kept(found["5it"]) == TOTAL - int(0.8 * TOTAL)


def test_what_is_made_from_a_training_that_prunes_goes_by_its_mask_there(store):
    value = train()
    ranked, permuted = Magnitude(At(value, "3it"), "0.75"), Permuted(MaskOf(value), "global", 3)
    ticket = Train(value.net, value.data, value.recipe, At(value, "0ep"), 0, MaskOf(value))
    measure = Measure("correlation_indicator", (At(value, "3it"), At(value, "1ep")))
    summary = lab.compute([ranked, permuted, ticket, measure, MaskOf(value, "3it"), At(ticket, "last")], store)
    assert not (summary.failed or summary.blocked or summary.diverged)
    outer, inner = derive.mask(MaskOf(value, "3it"), store), derive.mask(ranked, store)
    assert masks.nested(inner, outer) and masks.kept(inner) == TOTAL // 4
    assert masks.kept(derive.mask(permuted, store)) == TOTAL // 10
    final = derive.state(At(ticket, "last"), store)
    assert not any(final[name][~kept].any() for name, kept in derive.mask(MaskOf(value), store).items())
    theta, theta_prime = ({n: w for n, w in derive.state(at, store).items() if n in SIZES} for at in measure.of)
    (part,) = store.parts(measure.key)
    assert part.record["value"] == correlation_indicator(theta, theta_prime, 0.1, (outer, outer)).value
    whole = {name: torch.ones_like(kept) for name, kept in outer.items()}
    assert part.record["value"] != correlation_indicator(theta, theta_prime, 0.1, (whole, whole)).value


def test_a_layer_that_collapses_is_recorded(store, monkeypatch):
    """A layer begins with weights so small that pruning of all layers together takes all of it."""

    def small(*names, fresh=nets.fresh):
        state = fresh(*names)
        return state | {"fc1.weight": state["fc1.weight"] * 1e-6}

    monkeypatch.setattr(nets, "fresh", small)
    mask = MaskOf(train(Explicit((("1ep", "0.95"),)), lr=1e-9), "1ep")
    lab.compute([mask], store)
    (part,) = store.parts(mask.key)
    expected = {"kept": 2460, "layers": {"fc1.weight": 0, "fc2.weight": 2460}, "collapsed": ["fc1.weight"]}
    assert {name: part.record[name] for name in expected} == expected


def test_a_layer_keeps_its_floor_and_the_total_stays_exact(store, monkeypatch):
    """Of a layer of small weights the largest remain, half up of its share; the others' smallest go in their place."""

    def small(*names, fresh=nets.fresh):
        state = fresh(*names)
        return state | {"fc1.weight": state["fc1.weight"] * 1e-6}

    monkeypatch.setattr(nets, "fresh", small)
    value = train(Gradual("1it", "7it", "2it", "0.95", floor="0.00125"), lr=1e-9)
    lab.compute([MaskOf(value, step) for step in ("3it", "7it", "last")], store)
    early, found = (derive.mask(MaskOf(value, step), store) for step in ("3it", "7it"))
    assert {name: int(kept.sum()) for name, kept in found.items()} == {"fc1.weight": 24, "fc2.weight": 2460 - 24}
    assert masks.nested(found, early) and masks.kept(early) == TOTAL - int(0.95 * (1 - (2 / 3) ** 3) * TOTAL + 0.5)
    sizes = small(value.net, value.data, 0)["fc1.weight"].abs().flatten()
    assert found["fc1.weight"].flatten().nonzero().flatten().tolist() == sorted(sizes.topk(24).indices.tolist())


def test_a_floor_that_a_mask_has_passed_holds_what_is_left(dataset):
    value = train(Explicit((("0ep", "0.5"), ("1it", "0.9")), floor="0.1"))
    job = helpers.job(value, {}, {"0ep", "1it"})
    first = {name: torch.ones_like(job.state[name], dtype=torch.bool) for name in SIZES}
    first["fc1.weight"].view(-1)[7:] = False
    progress = helpers.run([replace(job, mask=first)], dataset, until=1).progress[0]
    later = unpacked(progress.masks["1it"])
    assert int(later["fc1.weight"].sum()) == 7 and masks.kept(later) == 4920


# --- optimizer and prefix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "lr": 0.01}], ids=str)
@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
def test_the_optimizer_forgets_what_is_pruned_and_nothing_else(net, fields, form, dataset):
    """At the first step that prunes, all else has the bits of a training that does not prune; its past has, too."""
    values = [train(Explicit((("3it", "0.6"),)), net, r, **fields) for r in range(2)]
    keep = {"0ep", "2it", "3it"}
    pruned = helpers.run([helpers.job(v, None, keep) for v in values], dataset, until=3, form=form)
    plain = helpers.run(
        [helpers.job(replace(v, pruning=None), None, keep) for v in values], dataset, until=3, form=form
    )
    for number, progress in enumerate(pruned.progress):
        mask = unpacked(progress.masks["3it"])
        pairs = [(pruned.group.state(number), plain.group.state(number)), (pruned.carry(number), plain.carry(number))]
        for ours, theirs in pairs:
            for name, tensor in theirs.items():
                layer = name.removeprefix("moment0.").removeprefix("moment1.")
                expected = tensor * mask[layer] if layer in mask else tensor
                assert torch.equal(ours[name], expected), name
        assert all(pairs[1][1][f"moment0.{layer}"][~kept].any() for layer, kept in mask.items())
        assert progress.metrics == plain.progress[number].metrics
        for step in ("0ep", "2it"):
            assert helpers.equal(progress.snapshots[step], plain.progress[number].snapshots[step])
            assert all(kept.all() for kept in unpacked(progress.masks[step]).values())


def test_metrics_before_the_start_are_those_without_pruning(store):
    plain = helpers.train(epochs=4)
    value = replace(plain, pruning=Gradual("9it", "3ep", "1it", "0.99"))
    lab.compute([plain, value], store)
    ours, theirs = Run(value, store).metrics(), Run(plain, store).metrics()
    assert ours[:3] == theirs[:3] and ours[3] != theirs[3]


def test_an_epoch_that_ends_with_pruning_is_evaluated_after_it(store):
    plain = helpers.train(epochs=2)
    value = replace(plain, pruning=Explicit((("1ep", "0.97"), ("2ep", "0.99"))))
    lab.compute([plain, value, At(value, "best_val"), At(value, "1ep")], store)
    ours, theirs = Run(value, store).metrics(), Run(plain, store).metrics()
    for name in ("train_loss", "train_accuracy"):
        assert ours[1][name] == theirs[1][name]
    state = derive.state(At(value, "1ep"), store)
    assert sum(int((state[name] == 0).sum()) for name in SIZES) == int(0.97 * TOTAL)
    network, dataset = helpers.plain(value.net, value.data.facts).eval(), data.load(value.data, None)
    network.load_state_dict(state)
    with torch.no_grad():
        right = network(data.normalise(dataset.test_x, dataset, torch.float32)).argmax(1) == dataset.test_y
    assert ours[1]["test_accuracy"] == pytest.approx(right.double().mean().item()) != theirs[1]["test_accuracy"]


# --- the same bits whatever happens ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "lr": 0.01}], ids=str)
@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
def test_a_replica_does_not_depend_on_its_group_nor_on_what_is_kept_nor_on_interruptions(net, fields, form, dataset):
    """Unlike schedules in one group, whose checkpoint is restored after every step, against each alone at once."""
    values = [train(schedule, net, r, **fields) for r, schedule in enumerate(SCHEDULES)]
    jobs = [helpers.job(v, None, {*STEPS, "best_val"}) for v in values]
    bare = [replace(job, state={}) for job in jobs]
    training = Training(jobs, dataset, form=form)
    for stop in range(1, 9):
        while training.iteration < stop:
            training.advance(stop)
        training = Training.restore(bare, dataset, *training.checkpoint(), form=form)
    for number, job in enumerate(jobs):
        alone = helpers.run([replace(job, keep=frozenset({"5it"}))], dataset, form=form)
        assert helpers.equal(training.group.state(number), alone.group.state(0))
        assert helpers.equal(training.carry(number), alone.carry(0))
        ours, theirs = training.progress[number], alone.progress[0]
        assert ours.metrics == theirs.metrics and ours.masks.keys() == ours.snapshots.keys() == job.keep
        assert helpers.equal(ours.snapshots["5it"], theirs.snapshots["5it"])
        assert helpers.equal(ours.masks["5it"], theirs.masks["5it"])
        assert any(name.startswith("mask.") for name in alone.carry(0))


class StopsAt:
    def __init__(self, at):
        self.at, self.asked = at, 0

    def begin(self, trainings, done, shared, left): ...
    def advance(self, done, trainings): ...
    def stop(self):
        self.asked += 1
        return self.asked >= self.at


def test_stopped_wherever_it_asks_it_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "APART", 1)
    values = [train(schedule, replicate=r) for r, schedule in enumerate(SCHEDULES)]
    asked = [*(MaskOf(v, step) for v in values for step in ("3it", "last")), *values, At(values[0], "best_val")]
    reference, never = helpers.store(tmp_path / "reference"), StopsAt(10**9)
    assert lab.compute(asked, reference, watcher=never).trained == 3
    expected, groups = helpers.bits(reference.root), {Run(v, reference).parts[0].record["until"] for v in values}
    assert groups == {8} and never.asked > 10
    for at in range(1, never.asked + 1, 2):
        store = helpers.store(tmp_path / str(at))
        with pytest.raises(lab.Stopped):
            lab.compute(asked, store, watcher=StopsAt(at))
        lab.compute(asked, store)
        assert helpers.bits(store.root) == expected, at


def test_trainings_that_prune_unlike_train_as_one_group_without_those_that_do_not(store, monkeypatch):
    made, begin = [], Training.__init__
    monkeypatch.setattr(
        Training, "__init__", lambda self, jobs, *a, **k: made.append(jobs) or begin(self, jobs, *a, **k)
    )
    values = [train(schedule, replicate=r) for r, schedule in enumerate(SCHEDULES)]
    plain = helpers.train(replicate=5)
    lab.compute([*values, plain], store)
    assert sorted([[job.train for job in jobs] for jobs in made], key=len) == [[plain], values]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cubic", "explicit", "linear"])
def test_a_run_that_stopped_goes_on_with_its_mask(schedule, store, tmp_path):
    value, once = train(schedule), helpers.store(tmp_path / "once")
    lab.compute([At(value, step) for step in (*STEPS, "best_val")], once)
    for step in ("1it", "2it", "1ep", "7it"):
        assert lab.compute([MaskOf(value, step)], store).trained == 1
        assert Run(value, store).reached == value.iteration(step)
    lab.compute([value], store)
    assert [part.record["from"] for part in Run(value, store).parts] == [0, 1, 2, 4, 7]
    lab.compute([MaskOf(value, step) for step in STEPS], once)
    for step in ("1it", "2it", "1ep", "7it"):
        ours, theirs = (derive.mask(MaskOf(value, step), s) for s in (store, once))
        assert all(torch.equal(ours[name], theirs[name]) for name in SIZES)
        assert helpers.equal(derive.state(At(value, step), store), derive.state(At(value, step), once))
    assert Run(value, store).metrics() == Run(value, once).metrics()
    assert Run(value, store).parts[-1].record["digest"] == Run(value, once).parts[-1].record["digest"]


def test_a_mask_that_was_not_kept_is_trained_again_and_admitted_by_its_bits(store, tmp_path, monkeypatch):
    value = train()
    lab.compute([MaskOf(value, "5it")], store)
    lab.compute([value], store)
    assert Run(value, store).span(Need(8, frozenset({"3it"}))) == (0, 5)
    assert lab.compute([MaskOf(value, "3it")], store).trained == 1
    assert Run(value, store).stale is None
    other = helpers.store(tmp_path / "other")
    lab.compute([MaskOf(value, "3it"), value], other)
    ours, theirs = (derive.mask(MaskOf(value, "3it"), s) for s in (store, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in SIZES)
    before = helpers.bits(store.root)
    assert lab.compute([MaskOf(value, "3it"), At(value, "3it"), value], store).trained == 0
    assert helpers.bits(store.root) == before
    whole = gradual.Pruner.prune
    monkeypatch.setattr(
        gradual.Pruner, "prune", lambda self, at, weights: whole(self, at, {n: -w + 0.5 for n, w in weights.items()})
    )
    mask = MaskOf(value, "1it")
    assert lab.compute([mask], store).stale == [value, mask]


def test_the_mask_at_the_best_epoch_is_that_of_its_state(store):
    value = train(Gradual("1it", "3ep", "1ep", "0.98"), epochs=5)
    lab.compute([MaskOf(value, "best_test"), *(MaskOf(value, f"{epoch}ep") for epoch in range(1, 6))], store)
    accuracies = [row["test_accuracy"] for row in Run(value, store).metrics()][1:]
    best = 1 + accuracies.index(max(accuracies))
    ours, theirs = (derive.mask(MaskOf(value, step), store) for step in ("best_test", f"{best}ep"))
    assert all(torch.equal(ours[name], theirs[name]) for name in SIZES)


# --- divergence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_replica_that_diverges_before_it_prunes_stops_alone(form, dataset):
    values = [train(schedule, replicate=r, lr=lr) for r, (schedule, lr) in enumerate(
        ((CUBIC, 0.05), (Explicit((("3it", "0.5"), ("6it", "0.7"))), 1e30), (EXPLICIT, 0.1))
    )]  # fmt: skip
    jobs = [helpers.job(value, None, {"2ep"}) for value in values]
    together = helpers.run(jobs, dataset, form=form)
    assert [progress.diverged for progress in together.progress] == [None, 1, None]
    lost = together.progress[1]
    assert [row.get("diverged") for row in lost.metrics] == [None, True] and not lost.masks
    for number in (0, 2):
        alone = helpers.run([jobs[number]], dataset, form=form)
        assert helpers.equal(together.group.state(number), alone.group.state(0))
        assert helpers.equal(together.progress[number].masks["2ep"], alone.progress[0].masks["2ep"])


def test_the_mask_of_a_training_that_diverged_is_blocked(store):
    value = train(Explicit((("0ep", "0.1"), ("5it", "0.5"))), lr=1e30)
    early, late = MaskOf(value, "0ep"), MaskOf(value)
    ticket = Train(value.net, value.data, value.recipe, Fresh(0), 0, late)
    summary = lab.compute([early, late, ticket], store)
    assert (summary.diverged, summary.blocked) == ([value], [late, ticket])
    assert masks.kept(derive.mask(early, store)) == TOTAL - TOTAL // 10


# --- forecasts ------------------------------------------------------------------------------------------------


def test_forecasts_count_masks(store):
    value, plain = train(), helpers.train()
    asked = {run: [At(run, step) for step in STEPS] for run in (value, plain)}
    sizes = {run: estimates._train_bytes(run, len(states), (0, 8)) for run, states in asked.items()}
    lab.compute([*asked[value], *asked[plain]], store)
    for run, size in sizes.items():
        total = sum(entry["size"] for part in store.parts(run.key) for entry in part.files.values())
        assert size == pytest.approx(total, rel=0.1)
    assert sizes[value] > sizes[plain]


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path):
    def compute(*values):
        with pytest.raises(ValueError) as caught:
            lab.compute(values, Store(tmp_path / "runs"))
        assert isinstance(caught.value, InputError) and not (tmp_path / "runs").exists()
        return str(caught.value)

    return compute


def test_pruning_to_less_than_its_mask_has_pruned_is_refused(refused):
    trunk = helpers.train()
    half = Magnitude(At(trunk, "last"), "0.5")
    value = train(CUBIC, mask=half)
    text = f"pruning of {value!r} at 1it to 0 weights of all layers together; allowed: 24600 or more, which its mask"
    assert text in refused(value)
    late = train(Explicit((("1it", "0.4999"), ("2ep", "0.9"))), mask=Permuted(half, "global"))
    assert f"pruning of {late!r} at 1it to 24595 weights" in refused(late)
    layered = train(Explicit((("1it", "0.4"),), scope="layer"), mask=Magnitude(At(trunk, "0ep"), "0.5", scope="layer"))
    assert "to 7680 weights of fc1.weight; allowed: 9600 or more" in refused(layered)
    other = train(Explicit((("1it", "0.89"),)), mask=MaskOf(train(), "last"))
    assert "allowed: 44280 or more" in refused(other)
    assert refused(value, late).count("\n") == 1


def test_pruning_under_a_mask_of_unknown_counts_is_refused(refused):
    trunk = helpers.train()
    within = Explicit((("1it", "0.9"),), scope="layer")
    for schedule, mask, allowed in (
        (within, Magnitude(At(trunk, "last"), "0.5"), "a mask within layers, or none"),
        (
            within,
            Permuted(Magnitude(At(trunk, "last"), "0.5", scope="layer"), "global"),
            "a mask within layers, or none",
        ),
        (CUBIC, MaskOf(train(), "best_val"), "a mask of single weights, at a fixed step, or none"),
    ):
        value = train(schedule, mask=mask)
        expected = f"under {mask!r}, whose counts are not known beforehand; allowed: {allowed}"
        assert expected in refused(value)


def test_a_mask_that_grows_that_of_a_training_that_prunes_is_refused(refused):
    value = Magnitude(At(train(), "last"), "0.8")
    assert f"{value!r} prunes 39360 of {TOTAL} prunable weights; allowed: 44280 to {TOTAL}" in refused(value)
    with pytest.raises(ValueError, match="prunable 'all' under a ranked training's mask that covers 'all_but_head'"):
        Magnitude(At(train(), "last"), "0.95", prunable="all")


def test_a_state_whose_mask_is_not_kept_is_named(store):
    value = train()
    lab.compute([value], store)
    with pytest.raises(LookupError, match=f"{value.key}.*3it"):
        derive.mask_at(At(value, "3it"), store)
