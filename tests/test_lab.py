"""From values to results: what is in the store, what is shared, what is refused and what is computed again."""

import errno
import json
import logging
import os
import sys
import time

import helpers
import pytest
import safetensors.numpy
import torch

from lthlab import data, derive, devices, engine, lab, masks, nets, spec, tickets, trainer
from lthlab.analyses import Measure
from lthlab.engine import Training
from lthlab.errors import InputError
from lthlab.files import Files
from lthlab.lanes import Lane
from lthlab.parts import Data, Level, pruned_count
from lthlab.runs import Outlook, Run, in_training
from lthlab.store import Store, StoreError
from lthlab.tickets import Protocol, dense, imp, reinitialised, rewound
from lthlab.values import At, Fresh, Magnitude, Permuted, Train
from lthlab.weights import correlation_indicator


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


def protocol(replicate=0, net=helpers.LENET, **fields):
    return Protocol(net, helpers.DIGITS, replicate, **fields)


def snapshots(value, store):
    """Names of the kept states of a training."""
    names = store.names(value.key)
    return [name.removesuffix(".safetensors") for name in names if name.endswith(("p.safetensors", "t.safetensors"))]


# --- what states and masks are --------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(3)], ids=["lenet", "resnet"])
def test_theta_0_is_the_freshly_built_network_bit_for_bit(net, store):
    runs = [dense(protocol(replicate, net), helpers.recipe(epochs=1)) for replicate in range(3)]
    other = Train(net, helpers.DIGITS, helpers.recipe(epochs=1), Fresh(0, draw=1), 0)
    lab.compute([At(run, "0ep") for run in [*runs, other]], store)
    for run in [*runs, other]:
        fresh = nets.fresh(net, "digits", run.init.replicate, run.init.draw)
        found = derive.state(At(run, "0ep"), store)
        assert helpers.equal(found, fresh) and list(found) == list(fresh)
        assert Run(run, store).reached == 0


@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
def test_theta_t_of_the_trunk_is_t_epochs_alone(net, store):
    trunk = dense(protocol(0, net), helpers.recipe(epochs=5))
    neighbours = [dense(protocol(replicate, net), helpers.recipe(epochs=5)) for replicate in (1, 2)]
    lab.compute([*neighbours, trunk, At(trunk, "3ep"), At(trunk, "last")], store)
    alone = helpers.run([helpers.job(trunk)], until=12)
    assert helpers.equal(derive.state(At(trunk, "3ep"), store), alone.group.state(0))
    shorter = dense(protocol(0, net), helpers.recipe(epochs=3))
    lab.compute([At(shorter, "last")], store)
    assert helpers.equal(derive.state(At(trunk, "3ep"), store), derive.state(At(shorter, "last"), store))
    assert Run(trunk, store).metrics()[:4] == Run(shorter, store).metrics()


@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
@pytest.mark.parametrize("batchnorm", ["rewound", "reset"])
def test_tickets_begin_where_they_should(net, batchnorm, store):
    ours, recipe = protocol(1, net, batchnorm=batchnorm), helpers.recipe(epochs=4)
    trunk = dense(ours, recipe)
    mask = ours.magnitude(At(trunk, "last"), Level(3))
    tickets = {
        (step, schedule): rewound(ours, recipe, trunk, mask, step, schedule)
        for step in ("0ep", "2ep", "5it")
        for schedule in ("restart", "resume")
    }
    again = reinitialised(ours, recipe, mask)
    first = {value: At(value, value.step_text(value.start)) for value in [*tickets.values(), again]}
    lab.compute([*first.values(), *(At(trunk, step) for step, _ in tickets)], store)
    pruned = {name: ~kept for name, kept in derive.mask(mask, store).items()}
    assert sum(int(gone.sum()) for gone in pruned.values()) == pruned_count(
        Level(3), sum(gone.numel() for gone in pruned.values())
    )
    for (step, schedule), value in tickets.items():
        assert value.start == (0 if schedule == "restart" else trunk.iteration(step))
        source = derive.state(At(trunk, step), store)
        expected = {n: t.masked_fill(pruned[n], 0) if n in pruned else t for n, t in source.items()}
        if batchnorm == "reset":
            expected = nets.build(net, "digits").reset_batchnorm(expected)
        assert helpers.equal(derive.state(first[value], store), expected)
        if net.name == "resnet8" and step == "2ep" and batchnorm == "rewound":
            assert expected["bn1.num_batches_tracked"] == 8 and expected["bn1.running_mean"].any()
    fresh = nets.fresh(net, "digits", 1, draw=1)
    expected = {n: t.masked_fill(pruned[n], 0) if n in pruned else t for n, t in fresh.items()}
    assert helpers.equal(derive.state(first[again], store), expected)


def test_pruned_weights_are_zero_in_every_snapshot_in_the_store(store):
    recipe = helpers.recipe(epochs=2, weight_decay=0.1)
    asked = []
    for net in (helpers.LENET, helpers.narrow(4)):
        for replicate in range(2):
            rounds = imp(protocol(replicate, net), recipe, 3, rewind="1ep", schedule="resume")
            asked += [At(run, step) for run, _ in rounds for step in ("1ep", "5it", "last", "best_val", "best_test")]
            asked += [rounds[-1][1]]
    lab.compute(asked, store)
    seen = 0
    for at in asked[:-1]:
        mask = isinstance(at, At) and derive.mask(at.run.mask, store)
        if mask:
            state = derive.state(at, store)
            seen += 1
            assert not any(state[name][~kept].any() for name, kept in mask.items())
            assert all(state[name][kept].all() for name, kept in mask.items())
    assert seen == 2 * 2 * 2 * 5


def test_resume_goes_on_with_the_rates_of_the_trunk(store):
    recipe = helpers.recipe(epochs=6, lr_schedule="step", milestones=("2ep", "4ep"), warmup="1ep")
    trunk = dense(protocol(), recipe)
    mask = protocol().magnitude(At(trunk, "last"), Level(1))
    resumed = rewound(protocol(), recipe, trunk, mask, "3ep", "resume")
    restarted = rewound(protocol(), recipe, trunk, mask, "3ep", "restart")
    lab.compute([trunk, resumed, restarted], store)
    rates = {
        value: [(row["epoch"], row.get("lr")) for row in Run(value, store).metrics()]
        for value in (trunk, resumed, restarted)
    }
    assert rates[trunk] == [(0, None), (1, 0.05), (2, 0.05), *[(e, pytest.approx(0.005)) for e in (3, 4)]] + [
        (e, pytest.approx(0.0005)) for e in (5, 6)
    ]
    assert rates[resumed] == [(3, None), *rates[trunk][4:]]
    assert rates[restarted] == rates[trunk]


@pytest.mark.parametrize("chain", ["0ep", "1ep"])
def test_an_imp_chain_prunes_what_it_should(chain, store):
    rounds = imp(protocol(), helpers.recipe(), 3, rewind=chain)
    lab.compute([mask for _, mask in rounds], store)
    previous = None
    for k, (run, mask) in enumerate(rounds, start=1):
        found, weights = derive.mask(mask, store), derive.state(At(run, "last"), store)
        weights = {name: weights[name] for name in found}
        total = 64 * 300 + 300 * 100
        assert masks.kept(found) == total - pruned_count(Level(k), total)
        expected = masks.magnitude(weights, pruned_count(Level(k), total), previous)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        previous = found
        record = store.parts(mask.key)[0].record
        assert record["kept"] == masks.kept(found) and record["layers"].keys() == {"fc1.weight", "fc2.weight"}


def test_a_pruned_weight_stays_pruned_beside_kept_zeros(store, monkeypatch):
    rounds = imp(protocol(), helpers.recipe(), 2)
    lab.compute([mask for _, mask in rounds], store)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in nets.fresh(helpers.LENET, "digits", 0).items()}
    monkeypatch.setattr(derive, "state", lambda at, where: zeros)
    files, record = derive.derive(rounds[1][1], store)
    first, second = derive.mask(rounds[0][1], store), masks.unpack(safetensors.numpy.load(files["mask.safetensors"]))
    assert not any((second[name] & ~first[name]).any() for name in first)
    assert record["kept"] == masks.kept(second) == 49200 - pruned_count(Level(2), 49200)


def test_other_masks(store):
    run = dense(protocol(), helpers.recipe(epochs=1))
    of = At(run, "last")
    base = Magnitude(of, "0.7")
    values = {
        "layer": Magnitude(of, "0.7", scope="layer"),
        "all": Magnitude(of, "0.7", denominator="all"),
        "policy": Magnitude(of, "0.7", prunable="first_last_dense"),
        "counts": Magnitude(At(run, "0ep"), layer_counts_of=base),
        "permuted": Permuted(base, seed=3),
        "global": Permuted(base, scope="global", seed=3),
    }
    lab.compute([base, *values.values()], store)
    found = {name: derive.mask(value, store) for name, value in values.items()}
    source, weights = derive.mask(base, store), derive.state(of, store)
    kept = {name: {n: int(m.sum()) for n, m in mask.items()} for name, mask in found.items()}
    assert kept["layer"] == {"fc1.weight": 19200 - 13440, "fc2.weight": 30000 - 21000}
    parameters = sum(tensor.numel() for tensor in nets.build(helpers.LENET, "digits").parameters())
    assert sum(kept["all"].values()) == 49200 - pruned_count("0.7", parameters)
    assert kept["policy"] == {"fc2.weight": 9000}
    assert kept["counts"] == kept["permuted"] == {name: int(mask.sum()) for name, mask in source.items()}
    assert sum(kept["global"].values()) == masks.kept(source) and kept["global"] != kept["permuted"]
    assert masks.hamming(found["permuted"], source) > 0.2
    theta_0 = nets.fresh(helpers.LENET, "digits", 0)
    expected = masks.per_layer({n: theta_0[n] for n in source}, masks.pruned_per_layer(source))
    assert all(torch.equal(found["counts"][name], expected[name]) for name in source)
    assert weights["fc1.weight"].abs()[source["fc1.weight"]].min() > weights["fc1.weight"].abs().median()
    assert derive.mask(run.mask, store) is None


def test_a_correlation_indicator_is_that_of_the_stored_weights(store):
    run = dense(protocol(), helpers.recipe())
    mask = protocol().magnitude(At(run, "last"), Level(2))
    ticket = rewound(protocol(), run.recipe, run, mask, "0ep", "restart")
    settings = {"p": "0.1", "prunable": "all_but_head"}
    measures = [Measure("correlation_indicator", (At(v, "0ep"), At(v, "last")), settings) for v in (run, ticket)]
    nothing = Measure("correlation_indicator", (At(run, "0ep"), At(run, "last")), settings | {"p": "0.00001"})
    summary = lab.compute([*measures, nothing], store)
    assert (summary.trained, summary.failed) == (2, [nothing])
    assert lab.compute([*measures, nothing], store).failed == [nothing]
    for value, kept in zip(measures, (None, derive.mask(mask, store)), strict=True):
        first, second = (derive.state(at, store) for at in value.of)
        names = ("fc1.weight", "fc2.weight")
        expected = correlation_indicator({n: first[n] for n in names}, {n: second[n] for n in names}, 0.1, kept)
        record = store.parts(value.key)[0].record
        assert (record["value"], record["chance"], record["z"]) == (expected.value, expected.chance, expected.z)
        rows = [json.loads(line) for line in store.read(value.key, "frame.jsonl").splitlines()]
        assert [row["overlap"] for row in rows] == expected.layers["overlap"].tolist()
    assert "no weight is large" in store.parts(nothing.key)[0].record["failed"]


# --- what is trained, and what is not -------------------------------------------------------------------------


class Counter:
    def __init__(self):
        self.begun, self.epochs, self.trainings = [], 0, 0

    def begin(self, *numbers):
        self.begun.append(numbers)

    def advance(self, epochs, trainings):
        self.epochs += epochs
        self.trainings += trainings

    def stop(self):
        return False


def test_a_value_is_computed_once_and_then_shared(store):
    rounds = imp(protocol(), helpers.recipe(), 2)
    run, mask = rounds[1]
    again = rewound(protocol(), helpers.recipe(), rounds[0][0], rounds[0][1], "0ep", "restart")
    assert again == run
    watcher = Counter()
    summary = lab.compute([run, mask, again, rounds[0][0]], store, watcher=watcher)
    assert (summary.trainings, summary.trained, summary.shared) == (2, 2, 1)
    assert watcher.begun == [(2, 0, 1, 4)] and (watcher.epochs, watcher.trainings) == (4, 2)
    watcher = Counter()
    summary = lab.compute([run, mask], store, watcher=watcher)
    assert (summary.trainings, summary.trained, summary.shared) == (2, 0, 0)
    assert watcher.begun == [(2, 2, 0, 0)]
    watcher = Counter()
    assert lab.compute([At(run, "1ep")], store, watcher=watcher).trained == 1
    assert watcher.begun == [(2, 1, 0, 2)] and watcher.epochs == 2


def test_trainings_of_one_shape_train_in_one_group(store, monkeypatch):
    groups = []
    start = Training.__init__

    def record(self, jobs, *args, **kwargs):
        groups.append(sorted(job.train.key for job in jobs))
        start(self, jobs, *args, **kwargs)

    monkeypatch.setattr(Training, "__init__", record)
    chains = [imp(protocol(r), helpers.recipe(lr=lr), 2) for r in range(2) for lr in (0.01, 0.1)]
    lab.compute([mask for chain in chains for _, mask in chain], store)
    assert groups == [sorted(chain[level][0].key for chain in chains) for level in (0, 1)]
    provenance = [store.read_json(chain[0][0].key, "provenance.json") for chain in chains]
    assert sorted(facts["slot"] for facts in provenance) == [0, 1, 2, 3]
    assert {(facts["form"], facts["replicas"], facts["device"]) for facts in provenance} == {("stacked", 4, "cpu")}


def test_groups_are_cut_to_what_fits(store, monkeypatch):
    sizes = []
    start = Training.__init__

    def record(self, jobs, *args, **kwargs):
        sizes.append(len(jobs))
        start(self, jobs, *args, **kwargs)

    monkeypatch.setattr(Training, "__init__", record)
    monkeypatch.setattr(devices, "capacity", lambda train, device: 3)
    runs = [dense(protocol(r), helpers.recipe(epochs=1)) for r in range(7)]
    others = [dense(protocol(r), helpers.recipe(epochs=1, batch_size=32)) for r in range(2)]
    assert lab.compute([*runs, *others], store).trained == 9
    assert sorted(sizes) == [1, 2, 3, 3]


SMALL = (
    "{name: small, net: lenet_300_100, data: {name: digits, train_size: 100}, replicates: 2, "
    "find: {epochs: 1, batch_size: 50, lr: 0.1}, prune: {levels: [1, 2]}, tickets: {LT: {methods: [IMP]}}}"
)


def test_a_study_notes_its_roles(store):
    config = spec.parse(SMALL)
    summary = lab.compute_study(config, store)
    assert (summary.trainings, summary.trained) == (6, 6)
    table = store.study("small")
    assert len(table["roles"]) == len({json.dumps(role) for role in table["roles"]})
    assert {role["key"] for role in table["roles"]} == set(store.keys())
    assert lab.compute_study(config, store).trained == 0


def test_one_configuration_or_stage_of_a_study(store):
    """Only its values are computed, but the table lists all."""
    config = spec.parse(SMALL)
    for wrong, near in {"find_ticket": "find_tickets", "evaluate_tickets.lenet_300_100": "evaluate"}.items():
        with pytest.raises(InputError, match=f"'{wrong}' is not in the study; allowed: .*did you mean '{near}"):
            lab.compute_study(config, store, configuration=wrong)
    assert store.studies() == []
    found = lab.compute_study(config, store, configuration="find_tickets.lenet_300_100.digits")
    assert (found.trainings, found.trained) == (4, 4)
    table = store.study("small")
    assert len(table["roles"]) == len(tickets.expand(config)) and table["document"] == config.document
    assert lab.compute_study(config, store, configuration="find_tickets").trained == 0
    assert lab.compute_study(config, store, configuration="evaluate_tickets").trained == 2
    assert lab.compute_study(config, store).trained == 0


def test_a_stage_keeps_what_a_later_one_asks_for(store, tmp_path):
    """The trunk of weight rewinding is trained once, though only evaluating needs its early state."""
    config = spec.parse(
        SMALL.replace("epochs: 1", "epochs: 2").replace("{LT:", "{WR: {methods: [OMP], rewind: 1ep}, LT:")
    )
    lab.compute_study(config, store, configuration="find_tickets")
    assert lab.compute_study(config, store, configuration="evaluate_tickets").trained == 2 + 4
    at_once = helpers.store(tmp_path / "at_once")
    lab.compute_study(config, at_once)
    assert helpers.bits(store.root) == helpers.bits(at_once.root)


def test_an_interrupted_group_goes_on_as_it_was(store, tmp_path, monkeypatch):
    """Even if the next command asks for more of its kind."""
    runs = [dense(protocol(r), helpers.recipe(epochs=4)) for r in range(3)]
    advance, jobs = Training.advance, []

    def interrupt(self, until, stop):
        if self.iteration == 8:
            raise KeyboardInterrupt
        advance(self, until, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lab.compute(runs[:2], store, checkpoint_seconds=0)
    assert len(store.checkpoints()) == 1 and not any((store.root / ".claims").iterdir())

    def record(self, until, stop):
        jobs.append((self.iteration, [job.train for job in self.jobs]))
        advance(self, until, stop)

    monkeypatch.setattr(Training, "advance", record)
    assert lab.compute(runs, store).trained == 3
    assert [iteration for iteration, group in jobs if group == runs[:2]][0] == 8
    assert [iteration for iteration, group in jobs if group == runs[2:]][0] == 0
    assert len([group for _, group in jobs if group not in (runs[:2], runs[2:])]) == 0
    apart = helpers.store(tmp_path / "apart")
    lab.compute(runs, apart)
    assert helpers.bits(store.root) == helpers.bits(apart.root)


def test_what_another_process_finished_meanwhile_is_not_computed_again(store, monkeypatch):
    run, mask = imp(protocol(), helpers.recipe(), 1)[0]
    claim, found = Store.claim, []

    def late(self, key):
        monkeypatch.setattr(Store, "claim", claim)
        other = Store(store.root)
        lab.compute([run, mask] if store.has(run.key) else [At(run, "last")], other)
        found.append(helpers.bits(store.root))
        monkeypatch.setattr(Store, "claim", late if len(found) == 1 else claim)
        return claim(self, key)

    monkeypatch.setattr(Store, "claim", late)
    assert lab.compute([run, mask], store).trained == 0
    assert len(found) == 2 and found[0].keys() < found[1].keys()
    assert helpers.bits(store.root) == found[1]


def test_a_training_that_never_yields_what_is_asked_for_is_an_error(store, monkeypatch):
    run = dense(protocol(), helpers.recipe())
    monkeypatch.setattr(Training, "_keep", lambda self: None)
    with pytest.raises(RuntimeError, match=f"{run.key}.*from step 0 to 8 to no avail"):
        lab.compute([At(run, "last")], store)
    assert len(store.parts(run.key)) == 1


# --- stopping -------------------------------------------------------------------------------------------------


class StopsAt(Counter):
    """Asks to stop the `at`-th time that it is asked itself, and from then on."""

    def __init__(self, at):
        super().__init__()
        self.at, self.asked = at, 0

    def stop(self):
        self.asked += 1
        return self.asked >= self.at


def test_stopped_wherever_it_asks_it_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    """Before, between and after steps, in the middle of an epoch, and between masks; nothing is trained twice."""
    ours = protocol()
    rounds = imp(ours, helpers.recipe(), 2)
    asked = [value for run, mask in rounds for value in (run, At(run, "5it"), mask)]
    asked.append(Measure("correlation_indicator", (At(rounds[0][0], "0ep"), At(rounds[0][0], "last"))))
    steps, step = [], Training._steps
    monkeypatch.setattr(engine, "APART", 1)
    monkeypatch.setattr(Training, "_steps", lambda self, *to: steps.append(self.iteration) or step(self, *to))
    reference = helpers.store(tmp_path / "reference")
    never = StopsAt(10**9)
    lab.compute(asked, reference, watcher=never)
    expected, times, places = helpers.bits(reference.root), never.asked, set()
    assert len(steps) == 2 * 8 and times > 2 * 8
    for at in range(1, times + 1):
        store = helpers.store(tmp_path / str(at))
        steps.clear()
        watcher = StopsAt(at)
        with pytest.raises(lab.Stopped) as stopped:
            lab.compute(asked, store, watcher=watcher)
        done = len(steps)
        places.add((done, len(store.checkpoints()), sum(store.has(value.key) for value in asked if value.stored)))
        assert list((store.root / ".claims").iterdir()) == [] and store.progress() == {}
        assert stopped.value.summary.trained == watcher.trainings == 2 - stopped.value.left
        assert stopped.value.epochs == 4 - done // 4
        assert f"{stopped.value.left} trainings and {stopped.value.epochs} epochs left" in str(stopped.value)
        again = Counter()
        lab.compute(asked, store, watcher=again)
        assert len(steps) == 2 * 8
        assert again.begun == [(2, 2 - stopped.value.left, 0, stopped.value.epochs)]
        assert again.epochs == stopped.value.epochs and watcher.epochs + again.epochs == 4
        assert helpers.bits(store.root) == expected
    assert {done for done, _, _ in places} == set(range(17))
    assert {results for _, _, results in places} >= {0, 1, 2, 3, 4}
    assert all(saved == (done % 8 > 0) or done in (8, 16) for done, saved, _ in places)


def test_a_stop_while_somebody_else_has_the_claim(store):
    run, mask = imp(protocol(), helpers.recipe(), 1)[0]
    with Store(store.root).claim(run.key), pytest.raises(lab.Stopped) as stopped:
        lab.compute([mask], store, watcher=StopsAt(8))
    assert (stopped.value.left, stopped.value.epochs) == (1, 2)
    lab.compute([run, At(run, "last")], store)
    with Store(store.root).claim(mask.key), pytest.raises(lab.Stopped) as stopped:
        lab.compute([mask], store, watcher=StopsAt(6))
    assert (stopped.value.left, stopped.value.epochs) == (0, 0)


def test_what_a_group_took_before_it_was_stopped_counts(store, monkeypatch):
    run = dense(protocol(), helpers.recipe())
    step = Training._steps
    monkeypatch.setattr(engine, "APART", 1)
    monkeypatch.setattr(Training, "_steps", lambda self, *to: time.sleep(0.1) or step(self, *to))
    with pytest.raises(lab.Stopped):
        lab.compute([run], store, watcher=StopsAt(9))
    monkeypatch.setattr(Training, "_steps", step)
    lab.compute([run], store)
    assert 0.4 < store.read_json(run.key, "provenance.json")["seconds"] < 5


def test_left_counts_nothing_that_cannot_be_had(store):
    """What needs a diverged training is not left."""
    rounds = imp(protocol(), helpers.recipe(lr=1e6), 2)
    good = dense(protocol(), helpers.recipe())
    lab.compute([rounds[-1][1]], store)
    watcher = Counter()
    lab.compute([rounds[-1][1], good], store, watcher=watcher)
    assert watcher.begun == [(3, 2, 0, 2)]


# --- signs of life --------------------------------------------------------------------------------------------


def test_signs_of_life(store, monkeypatch):
    """While a group trains, its claims are young and its progress tells how far it is."""
    monkeypatch.setattr(trainer, "SIGN_S", 0.0)
    runs = [dense(protocol(r), helpers.recipe(lr=lr)) for r, lr in enumerate((0.05, 1e30))]
    step, seen = Training._steps, []
    monkeypatch.setattr(engine, "APART", 1)

    def look(self, *to):
        keys = [run.key for run in runs]
        ages = [store.claim_age(key) for key in keys]
        (group,) = in_training(store)
        seen.append((self.iteration, max(ages), group))
        for path in (store.root / ".claims").iterdir():
            os.utime(path, (time.time() - 100, time.time() - 100))
        return step(self, *to)

    monkeypatch.setattr(Training, "_steps", look)
    lab.compute(runs, store)
    assert [iteration for iteration, _, _ in seen] == list(range(8))
    assert all(age < 50 and group.silent < 50 for _, age, group in seen)
    first, last = seen[0][2], seen[-1][2]
    assert (first.iteration, first.end, first.epoch, first.epochs, first.seconds_left) == (0, 8, 0, 2, None)
    assert (last.iteration, last.epoch, last.pid) == (4, 1, os.getpid()) and 0 <= last.seconds_left < 60
    row = Run(runs[0], store).metrics()[1]
    assert last.runs == {
        runs[0].key: {"loss": pytest.approx(row["train_loss"], rel=1e-3), "accuracy": round(row["test_accuracy"], 5)},
        runs[1].key: {"diverged": 1},
    }
    assert first.runs[runs[0].key].keys() == {"loss", "accuracy"}
    assert in_training(store) == [] and store.claim_age(runs[0].key) is None


def test_a_line_of_progress_within_a_long_epoch(store, monkeypatch):
    monkeypatch.setattr(trainer, "NOTE_S", 0.0)
    lines = []
    append = Store.append_progress
    monkeypatch.setattr(Store, "append_progress", lambda *args: lines.append(json.loads(args[2])) or append(*args))
    lab.compute([dense(protocol(), helpers.recipe())], store)
    assert {line["iteration"] for line in lines} == set(range(9))


def test_what_a_dead_process_left_is_not_in_training(store):
    line = {"time": 0, "pid": 1, "iteration": 4, "end": 8, "epoch": 1, "epochs": 2, "runs": {}}
    store.append_progress("f" * 32, json.dumps(line))
    assert in_training(store) == []
    with store.claim("f" * 32):
        assert [group.iteration for group in in_training(store)] == [4]
        store.append_progress("f" * 32, json.dumps(line | {"pid": 2, "time": 100, "iteration": 4}))
        store.append_progress("f" * 32, json.dumps(line | {"pid": 2, "time": 106, "iteration": 6}))
        assert [group.seconds_left for group in in_training(store)] == [6.0], "only lines of its own process count"
        store.append_progress("f" * 32, "\0\0")
        assert [group.iteration for group in in_training(store)] == [6], "what a power cut spoilt is passed over"


# --- divergence -----------------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_recorded_and_what_needs_it_is_blocked(store, tmp_path):
    chains = {lr: imp(protocol(r), helpers.recipe(lr=lr), 2) for r, lr in enumerate((0.05, 1e6, 0.1, 0.02))}
    lost, lost_mask = chains[1e6][0]
    ticket, mask = chains[1e6][1]
    early = protocol(1).magnitude(At(lost, "0ep"), Level(1))
    asked = [At(run, step) for chain in chains.values() for run, _ in chain for step in ("0ep", "last")]
    summary = lab.compute([*asked, mask, early], store)
    assert summary.diverged == [lost] and summary.stale == []
    assert set(summary.blocked) == {lost_mask, ticket, mask}
    found = Run(lost, store)
    assert found.diverged in (1, 2) and found.complete
    assert found.metrics()[-1] == {"epoch": found.diverged, "diverged": True}
    assert not any(store.has(value.key) for value in (lost_mask, ticket, mask)) and store.has(early.key)
    before = helpers.bits(store.root)
    again = lab.compute([*asked, mask, early], store)
    assert again.trained == 0 and again.diverged == [lost]
    assert set(again.blocked) == {lost_mask, ticket, mask}
    assert helpers.bits(store.root) == before
    apart = helpers.store(tmp_path / "apart")
    for lr, chain in chains.items():
        for run, _ in chain:
            if lr != 1e6:
                lab.compute([At(run, "0ep"), At(run, "last")], apart)
    alone = helpers.bits(apart.root)
    healthy = [run.key for lr, chain in chains.items() if lr != 1e6 for run, _ in chain]
    for key in healthy:
        ours, expected = ({n: c for n, c in b.items() if n.startswith(key)} for b in (before, alone))
        assert ours == expected


def test_a_diverged_record_does_not_depend_on_the_group(store, tmp_path):
    runs = [dense(protocol(r), helpers.recipe(lr=lr, epochs=4)) for r, lr in enumerate((1e30, 0.05))]
    lab.compute([At(run, "last") for run in runs], store)
    alone = helpers.store(tmp_path / "alone")
    lab.compute([At(runs[0], "last")], alone)
    ours, expected = (helpers.bits(s.root) for s in (store, alone))
    assert all(ours[name] == content for name, content in expected.items())


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A finished chain with a run of two parts; (bits, values)."""
    store = helpers.store(tmp_path_factory.mktemp("computed") / "runs")
    rounds = [imp(protocol(r), helpers.recipe(), 2) for r in range(2)]
    asked = [value for chain in rounds for run, mask in chain for value in (run, mask)]
    lab.compute([At(asked[0], "0ep"), At(asked[0], "1ep")], store)
    lab.compute(asked, store)
    return helpers.bits(store.root), {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}, store, asked


def times(store):
    files = (path for path in store.root.rglob("*") if path.is_file() and path.name != "timings.jsonl")
    return {path.relative_to(store.root): path.stat().st_mtime_ns for path in files}


FILES = {
    "a snapshot": (0, "0/0ep.safetensors", 1),
    "the last snapshot": (0, "1/2ep.safetensors", 1),
    "metrics": (0, "1/metrics.jsonl", 1),
    "a stop": (0, "0/carry.safetensors", 1),
    "a manifest": (2, "0/manifest.json", 1),
    "a description": (2, "description.json", 0),
    "a mask": (1, "0/mask.safetensors", 0),
    "provenance": (4, "0/provenance.json", 1),
}


@pytest.mark.parametrize("missing", [False, True], ids=["flipped", "missing"])
@pytest.mark.parametrize("what", FILES)
def test_damage_is_named_and_computed_again(what, missing, computed, tmp_path, caplog):
    bits, files, origin, asked = computed
    store = Store(tmp_path / "runs")
    for path, content in files.items():
        place = store.root / path.relative_to(origin.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    number, name, trained = FILES[what]
    path = store.root / asked[number].key / name
    written = times(store)
    path.unlink() if missing else helpers.flip(path)
    with caplog.at_level(logging.WARNING):
        lab.compute([At(asked[0], "0ep"), At(asked[0], "1ep")], store)
        summary = lab.compute(asked, store)
    assert summary.stale == [] and helpers.bits(store.root) == bits
    if what != "a description":
        assert str(path) in caplog.text and "computed again" in caplog.text
    changed = {place.parts[0] for place, when in times(store).items() if written[place] != when}
    assert changed == {asked[number].key} and summary.trained == trained
    assert lab.compute(asked, store).trained == 0


def test_damage_in_the_midst_of_computing(store, monkeypatch, caplog):
    """A snapshot that is damaged after it was checked is found when it is read."""
    run, mask = imp(protocol(), helpers.recipe(), 1)[0]
    lab.compute([At(run, "last")], store)
    before = helpers.bits(store.root)
    derived = lab.derive

    def spoil(value, where):
        monkeypatch.setattr(lab, "derive", derived)
        helpers.flip(store.root / run.key / "0" / "2ep.safetensors")
        return derived(value, where)

    monkeypatch.setattr(lab, "derive", spoil)
    summary = lab.compute([mask], store)
    assert summary.trained == 1 and store.has(mask.key)
    assert "2ep.safetensors does not match" in caplog.text.replace(":", "")
    after = helpers.bits(store.root)
    assert {name: after[name] for name in before} == before


# --- what a network sees ----------------------------------------------------------------------------------------


def test_trainings_on_parts_of_a_set_and_on_random_labels_are_stored(tmp_path):
    fields = [
        {"part": "a"},
        {"part": "b"},
        {"random_labels": 1},
        {"classes": [0, 1, 2, 3, 4], "size": 12, "channels": 3},
    ]
    described = [Data(name="digits", train_size=100, **each) for each in fields]
    values = [Train(helpers.LENET, each, helpers.recipe(), Fresh(0), 0) for each in described]
    store = helpers.store(tmp_path / "runs")
    lab.compute(values, store, "cpu")
    accuracies = [Run(value, store).metrics()[-1]["test_accuracy"] for value in values]
    assert len({value.key for value in values}) == len(values)
    assert accuracies[2] < 0.3 < 0.5 < min(*accuracies[:2], accuracies[3])


# --- bad input ------------------------------------------------------------------------------------------------


def test_everything_that_cannot_be_computed_is_listed_at_once(tmp_path):
    run = dense(protocol(), helpers.recipe())
    recipe, net, dataset = run.recipe, run.net, run.data
    values = {
        Magnitude(At(run, "last"), "0.99999", denominator="all"): "prunable weights; allowed: 0 to",
        Magnitude(At(run, "last"), "0.999", granularity="filter", scope="global"): "filters; allowed: 0 to",
    }
    ticket = Train(net, dataset, recipe, Fresh(0), 0, next(iter(values)))
    with pytest.raises(ValueError) as error:
        lab.compute([run, *list(values)[1:], ticket], Store(tmp_path / "runs"))
    lines = str(error.value).splitlines()
    for value, reason in values.items():
        assert any(value.key in line and reason in line for line in lines), reason
    assert not (tmp_path / "runs").exists()


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path):
    store = Store(tmp_path / "runs")
    config = spec.parse("{name: small, net: lenet_300_100, data: digits, find: {epochs: 1, batch_size: 50, lr: 0.1}}")
    for device in ("tpu", "cpu:1", "cuda:99", "cuda:one", ""):
        with pytest.raises(ValueError, match=rf"device '{device}' is not here; allowed: auto, cpu"):
            lab.compute([dense(protocol(), helpers.recipe())], store, device)
        with pytest.raises(ValueError, match=f"device '{device}'"):
            lab.compute_study(config, store, device)
    with pytest.raises(ValueError, match="did you mean 'cpu'"):
        devices.device_named("cpus")
    few = dense(protocol(), helpers.recipe(batch_size=199))  # of 200 images
    for names, message in {
        "cpu,tpu": "device 'tpu' is not known; allowed: auto, cpu",
        "cpu,cuda:0": "devices 'cpu,cuda:0' cannot share a training; allowed: ",
        "cuda:98,cuda:99": "device 'cuda:98' is not here; allowed: auto, cpu",
        "cpu,cpu": rf"2 devices cannot share a training: the last batch .* 1 images; allowed: 1 to 1 \(.*{few.key}",
    }.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            lab.compute([few], store, names)
    assert not store.root.exists()


class ReadOnly(Files):
    def write(self, path, data, sync=True):
        raise OSError(errno.EROFS, "Read-only file system", str(path))


class Full(Files):
    def write(self, path, data, sync=True):
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        super().write(path, data, sync)


@pytest.mark.parametrize("files", [ReadOnly, Full])
def test_a_store_that_cannot_be_written_is_refused_before_any_training(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "advance", lambda *args: pytest.fail("trained"))
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(StoreError, match=r"runs.*bytes free|bytes free.*runs"):
        lab.compute([dense(protocol(), helpers.recipe())], Store(tmp_path / "runs", files()))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        lab.compute([dense(protocol(), helpers.recipe())], Store(tmp_path / "file"))


def test_a_state_that_is_not_kept_is_named(store):
    run = dense(protocol(), helpers.recipe())
    lab.compute([run], store)
    with pytest.raises(LookupError, match=f"{run.key}.*the state at 1ep is not kept in {store.root}"):
        derive.state(At(run, "1ep"), store)


def test_digits_come_from_the_cache_where_scikit_learn_is_missing(store, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    run = dense(protocol(), helpers.recipe(epochs=1))
    assert lab.compute([run], store).trained == 1
    with pytest.raises(ImportError, match="sklearn"):
        lab.compute([run], Store(tmp_path / "bare"))


def test_a_checkpoint_of_another_group_stays(store):
    """What belongs to a study that is not asked for now is neither used nor swept away."""
    runs = [dense(protocol(r), helpers.recipe()) for r in range(2)]
    store.write_checkpoint("f" * 32, b"state", [runs[1].key], 4)
    lab.compute([runs[0]], store)
    assert list(store.checkpoints()) == ["f" * 32]
    lab.compute(runs, store)
    assert store.checkpoints() == {}


def test_a_damaged_checkpoint_is_named_and_not_used(store, monkeypatch, caplog):
    value = helpers.train(epochs=3)
    used = []
    restore = Training.restore.__func__

    def counted(cls, *args, **named):
        used.append(1)
        return restore(cls, *args, **named)

    monkeypatch.setattr(Training, "restore", classmethod(counted))

    def stop(self):
        original(self)
        raise KeyboardInterrupt

    original = trainer._Group._checkpoint
    for damage in (False, True):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trainer._Group, "_checkpoint", stop)
            lab.compute([value], store, "cpu", checkpoint_seconds=0)
        (path,) = (store.root / ".work").glob("*.checkpoint")
        if damage:
            helpers.flip(path)
        caplog.clear()
        lab.compute([value], store, "cpu")
        assert (str(path) in caplog.text) == damage
        assert len(used) == 1
        store.discard(value.key)


def test_a_mask_that_prunes_more_than_there_is_is_refused_before_any_training(store):
    protocol = Protocol(helpers.LENET, helpers.DIGITS, 0, denominator="all")
    values = [mask for _, mask in imp(protocol, helpers.recipe(), 20)]
    with pytest.raises(InputError, match=r"prunes \d+ of 49200 prunable weights; allowed: \d+ to 49200"):
        lab.compute(values, store, "cpu")
    assert not store.keys()
    chain = imp(Protocol(helpers.LENET, helpers.DIGITS, 0), helpers.recipe(), 3)
    with pytest.raises(InputError, match=r"prunes 4920 of 49200 prunable weights; allowed: 17712 to 49200"):
        lab.compute([Magnitude(At(chain[2][0], "last"), "0.1")], store, "cpu")


def test_a_derived_result_that_its_inputs_do_not_allow_is_recorded_and_blocks_what_needs_it(store):
    protocol = Protocol(helpers.LENET, helpers.DIGITS, 0)
    (_, first), (run, _) = imp(protocol, helpers.recipe(), 2)
    denser = Magnitude(At(run, "last"), "0.2", scope="layer")  # as many in all, but more in one layer
    ticket = rewound(protocol, helpers.recipe(), dense(protocol, helpers.recipe()), denser, "0ep", "restart")
    summary = lab.compute([ticket], store, "cpu")
    assert summary.failed == [denser]
    (part,) = store.parts(denser.key)
    assert "are pruned already" in part.record["failed"]
    assert part.record["inputs"].keys() == {f"{run.key}/2ep.safetensors"}
    assert summary.blocked == [ticket] and not store.has(ticket.key)
    assert store.has(first.key)


def test_what_was_made_from_other_bits_is_stale(store, monkeypatch):
    """A damaged state comes out differently when trained again: what was made from the old one is not mixed in."""
    run = helpers.train(epochs=2)
    mask = Magnitude(At(run, "last"), Level(1))
    ticket = Train(run.net, run.data, run.recipe, At(run, "0ep"), 0, mask)
    lab.compute([ticket, Permuted(mask)], store, "cpu")
    helpers.flip(store.root / run.key / "0" / "2ep.safetensors")
    with monkeypatch.context() as patch:
        original = Lane.update
        patch.setattr(Lane, "update", lambda self, rates: original(self, rates * 1.001))
        summary = lab.compute([ticket, Permuted(mask)], store, "cpu")
    assert summary.trained == 1 and set(summary.stale) == {mask, ticket, Permuted(mask)}
    again = lab.compute([ticket, Permuted(mask)], store, "cpu")
    assert again.trained == 0 and set(again.stale) == {mask, ticket, Permuted(mask)}


def test_states_before_a_divergence_can_be_asked_for_later(store):
    run = helpers.train(epochs=3, lr=1e6)
    assert lab.compute([run], store, "cpu").diverged == [run]
    mask = Magnitude(At(run, "0ep"), Level(1))
    summary = lab.compute([mask, Magnitude(At(run, "last"), Level(1))], store, "cpu")
    assert store.has(mask.key) and summary.stale == []
    assert summary.blocked == [Magnitude(At(run, "last"), Level(1))]
    assert lab.compute([mask], store, "cpu").trained == 0


def test_off_the_cpu_a_group_has_all_that_the_plan_asks_for(store, monkeypatch):
    values = [helpers.train(replicate=r) for r in range(4)]
    lab.compute(values[:1], store, "cpu")
    sizes = []
    train = trainer.Trainer.train

    def note(self, members, wanted, span):
        sizes.append((len(members), len(wanted)))
        return train(self, members, wanted, span)

    monkeypatch.setattr(trainer.Trainer, "train", note)
    monkeypatch.setattr(devices, "capacity", lambda train, device: 8)
    computation = lab._Computation(values, Outlook(values, store), torch.device("cpu"), 60, None, 0.0)
    computation.device = type("Device", (), {"type": "meta"})()
    computation.run()
    assert sizes == [(4, 3)]
