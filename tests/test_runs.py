"""A training as a prefix: stopped, continued, and trained again for a state that was not kept."""

import json

import helpers
import pytest
import safetensors.numpy

from lthlab import derive, lab
from lthlab.lanes import Lane
from lthlab.parts import Data, Level
from lthlab.plan import Need
from lthlab.runs import Run
from lthlab.store import tensor_bytes
from lthlab.tickets import Protocol, rewound
from lthlab.values import At, Magnitude, Train

AUGMENTED = Data(name="digits", train_size=200, val_size=50, augment="crop_flip")
RUNS = {
    "sgd": helpers.train(epochs=20, lr_schedule="cosine"),
    "adam": helpers.train(dataset=AUGMENTED, epochs=8, optimizer="adam", lr=0.01),
    "resnet": helpers.train(helpers.narrow(3), AUGMENTED, epochs=8, lr_schedule="step", milestones=("3ep",)),
}
STEPS = {
    "sgd": ("0ep", "3ep", "5ep", "30it", "20ep", "best_val", "best_test"),
    "adam": ("0ep", "3ep", "5ep", "14it", "8ep", "best_val", "best_test"),
}
STEPS["resnet"] = STEPS["adam"]


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """A store in which each run was trained in one go and all steps were kept."""
    store = helpers.store(tmp_path_factory.mktemp("once") / "runs")
    lab.compute([At(run, step) for name, run in RUNS.items() for step in STEPS[name]], store)
    assert all(len(Run(run, store).parts) == 1 for run in RUNS.values())
    return store


def assert_same(run, steps, store, reference):
    ours, expected = Run(run, store), Run(run, reference)
    assert ours.metrics() == expected.metrics()
    assert [row["epoch"] for row in ours.metrics()] == list(range(run.recipe.epochs + 1))
    for step in steps:
        assert helpers.equal(derive.state(At(run, step), store), derive.state(At(run, step), reference)), step


STOPS = [
    ("sgd", ["5ep"]),
    ("sgd", ["30it"]),
    ("sgd", ["0ep", "1it", "3ep", "30it", "19ep"]),
    ("adam", ["5ep"]),
    ("adam", ["14it", "15it"]),
    ("resnet", ["0ep", "5ep"]),
    ("resnet", ["14it"]),
]


@pytest.mark.parametrize("name, stops", STOPS, ids=str)
def test_a_run_that_stopped_goes_on(name, stops, store, at_once):
    run, steps = RUNS[name], [*(s for s in stops if s in STEPS[name]), "last"]
    for stop in stops:
        assert lab.compute([At(run, stop)], store).trained == 1
        assert Run(run, store).reached == run.iteration(stop)
        assert not Run(run, store).complete
    assert lab.compute([At(run, step) for step in steps], store).trained == 1
    found = Run(run, store)
    starts = [run.iteration(stop) for stop in stops]
    assert [(p.record["from"], p.record["until"]) for p in found.parts] == list(
        zip([0, *starts], [*starts, run.end], strict=True)
    )
    assert found.complete
    assert_same(run, steps, store, at_once)
    before = helpers.bits(store.root)
    assert lab.compute([run, *(At(run, step) for step in steps)], store).trained == 0
    assert helpers.bits(store.root) == before


def test_a_state_that_is_kept_is_kept_once(store):
    run = RUNS["sgd"]
    for asked in (["0ep"], ["0ep", "5ep"], ["5ep", "last"], ["3ep", "5ep"]):
        lab.compute([At(run, step) for step in asked], store)
    names = [name for part in Run(run, store).parts for name in part.files if name.endswith("ep.safetensors")]
    assert sorted(names) == ["0ep.safetensors", "20ep.safetensors", "3ep.safetensors", "5ep.safetensors"]


@pytest.mark.parametrize("step", ["0ep", "3ep", "30it", "best_val", "best_test"])
@pytest.mark.parametrize("stop", [None, "5ep"])
def test_a_state_that_was_not_kept_is_trained_again(step, stop, store, at_once):
    run = RUNS["sgd"]
    lab.compute([run] if stop is None else [At(run, stop)], store)
    lab.compute([At(run, "last")], store)
    assert lab.compute([At(run, step)], store).trained == 1
    assert_same(run, [step, "last"], store, at_once)
    record = Run(run, store).parts[-1].record
    start, until = 0, 80
    if stop is not None and not step.startswith("best"):
        start, until = (20, 80) if step == "30it" else (0, 20)
    assert (record["kind"], record["from"], record["until"]) == ("train", start, until)
    assert lab.compute([At(run, step), run], store).trained == 0


@pytest.mark.parametrize("step", ["best_val", "best_test"])
@pytest.mark.parametrize("name, stop", [("sgd", "19ep"), ("adam", "1ep"), ("resnet", "14it")])
def test_best_needs_the_whole_run(name, stop, step, store, at_once):
    run = RUNS[name]
    lab.compute([At(run, stop)], store)
    assert not Run(run, store).has(step)
    before_the_stop = best_epoch(run, step, at_once) * run.steps_per_epoch <= run.iteration(stop)
    summary = lab.compute([At(run, step)], store)
    assert summary.trained == 1 + before_the_stop and len(Run(run, store).parts) == 2 + before_the_stop
    assert_same(run, [step], store, at_once)
    assert lab.compute([At(run, step)], store).trained == 0


def best_epoch(run, step, store):
    accuracies = [row[f"{step.removeprefix('best_')}_accuracy"] for row in Run(run, store).metrics()]
    return accuracies.index(max(accuracies))


def test_a_diverged_run_has_no_best(store):
    run = helpers.train(epochs=4, lr=1e30)
    mask = Magnitude(At(run, "best_test"), Level(1))
    for _ in range(2):
        summary = lab.compute([mask], store)
        assert (summary.diverged, summary.blocked) == ([run], [mask])
    assert not Run(run, store).has("best_test") and not store.has(mask.key)


def test_a_repeated_step_goes_to_the_next_kept_one(store):
    run = RUNS["sgd"]
    lab.compute([At(run, "5ep"), At(run, "30it"), At(run, "10ep"), run], store)
    found = Run(run, store)
    for steps, expected in (
        ({"2ep"}, (0, 20)),
        ({"21it"}, (0, 30)),
        ({"21it", "8ep"}, (0, 40)),
        ({"11ep"}, (0, 80)),
        ({"best_test"}, (0, 80)),
        ({"5ep"}, (80, 80)),
    ):
        assert found.span(Need(80, frozenset(steps))) == expected


def test_what_a_run_lacks(store):
    run = RUNS["sgd"]
    assert Run(run, store).lacks(Need(0, frozenset())) and Run(run, store).reached == 0
    lab.compute([At(run, "5ep")], store)
    found = Run(run, store)
    assert not found.lacks(Need(20, frozenset({"5ep"}))) and not found.lacks(Need(12, frozenset()))
    assert found.lacks(Need(21, frozenset())) and found.lacks(Need(20, frozenset({"4ep"})))
    with pytest.raises(LookupError, match=f"{run.key}.*the state at 4ep is not kept"):
        found.read("4ep")


def test_carried_buffers_are_those_of_the_stop(store):
    run = RUNS["adam"]
    lab.compute([At(run, "14it")], store)
    found = Run(run, store)
    state, carry = found.carried(14)
    assert found.carried(0) is None and found.carried(12) is None
    training = helpers.run([helpers.job(run)], helpers.load(AUGMENTED, thin=1), until=14)
    assert helpers.equal(derive.as_tensors(state), training.group.state(0))
    assert helpers.equal(derive.as_tensors(carry), training.carry(0))
    assert carry["counts"].tolist() == [14, 128, carry["counts"][2]]


# --- bits that cannot be repeated -----------------------------------------------------------------------------


def perturbed(monkeypatch):
    """Make every later step a little different."""
    update = Lane.update

    def other(self, rates):
        update(self, rates)
        self.weights.mul_(1 + 1e-6)

    monkeypatch.setattr(Lane, "update", other)


def tampered(run, store, change):
    """Commit the first part of a run anew, with another content."""
    part = Run(run, store).parts[0]
    files = {name: store.read(run.key, name) for name in part.files}
    record = dict(part.record)
    change(files, record)
    store.discard(run.key)
    assert store.commit(run.key, 0, files, record)


def another_state(name):
    def change(files, record):
        arrays = {n: a.copy() for n, a in safetensors.numpy.load(files[name]).items()}
        arrays["fc2.bias"][7] += 2**-20
        files[name] = tensor_bytes(arrays)

    return change


def another_row(files, record):
    rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    rows[2]["train_loss"] += 1e-12
    files["metrics.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()


def another_digest(files, record):
    record["digest"] = record["digest"][::-1]


def chain():
    """A run, the mask that ranks it, and a ticket trained under it."""
    run = helpers.train(epochs=4)
    mask = Magnitude(At(run, "last"), Level(3))
    ticket = Train(run.net, run.data, run.recipe, At(run, "0ep"), 0, mask)
    return run, mask, ticket


DISAGREEMENTS = {
    "metrics of epoch 2": another_row,
    "weights at 4ep": another_state("4ep.safetensors"),
    "weights at 0ep": another_state("0ep.safetensors"),
}


@pytest.mark.parametrize("reason", [*DISAGREEMENTS, "weights at 4ep came out", "engine"])
@pytest.mark.parametrize("step", ["2ep", "5it"])
def test_a_run_that_comes_out_differently_is_stale_with_all_that_stands_on_it(reason, step, store, monkeypatch):
    run, mask, ticket = chain()
    lab.compute([ticket], store)
    if reason in DISAGREEMENTS:
        tampered(run, store, DISAGREEMENTS[reason])
    elif reason == "engine":
        perturbed(monkeypatch)
    else:
        tampered(run, store, another_digest)
    before = helpers.bits(store.root)
    asked = [ticket, At(run, step)]
    summary = lab.compute(asked, store)
    assert (summary.trained, summary.diverged, summary.blocked) == (1, [], [])
    assert set(summary.stale) == {run, mask, ticket}
    found = Run(run, store)
    assert "came out differently" in found.stale and (reason == "engine" or reason in found.stale)
    after = helpers.bits(store.root)
    assert {name: content for name, content in after.items() if name in before} == before
    assert not any(name.endswith((f"{step}.safetensors", "1/metrics.jsonl")) for name in after)
    with pytest.raises(LookupError, match=f"{run.key}.* is stale: .* came out differently.*{store.root}"):
        derive.state(At(run, "4ep"), store)
    again = lab.compute(asked, store)
    assert again.trained == 0 and set(again.stale) == {run, mask, ticket}
    assert helpers.bits(store.root) == after


def test_what_is_new_is_not_built_on_a_stale_run(store, monkeypatch):
    run, mask, _ = chain()
    lab.compute([mask], store)
    perturbed(monkeypatch)
    other = Magnitude(At(run, "1ep"), Level(2))
    other_ticket = Train(run.net, run.data, run.recipe, At(run, "0ep"), 0, other)
    summary = lab.compute([other_ticket], store)
    assert set(summary.stale) == {run, other, other_ticket}
    assert not store.has(other.key) and not store.has(other_ticket.key)


def test_a_stale_run_is_trained_anew_once_it_is_removed(store, monkeypatch):
    run, _, ticket = chain()
    lab.compute([ticket], store)
    reference = helpers.bits(store.root)
    with monkeypatch.context() as patch:
        perturbed(patch)
        lab.compute([At(run, "2ep")], store)
    assert Run(run, store).stale
    store.discard(run.key)
    assert lab.compute([ticket], store).stale == []
    assert helpers.bits(store.root) == reference


def test_another_network_start_is_noticed_too(store):
    """A run that resumes is compared from its own start."""
    protocol = Protocol(helpers.LENET, helpers.DIGITS, 0)
    trunk = helpers.train(epochs=4)
    value = rewound(protocol, trunk.recipe, trunk, Magnitude(At(trunk, "last"), Level(1)), "2ep", "resume")
    lab.compute([value, At(value, "last")], store)
    assert Run(value, store).span(Need(16, frozenset({"3ep"}))) == (8, 16)
    tampered(value, store, another_state("4ep.safetensors"))
    summary = lab.compute([At(value, "3ep")], store)
    assert summary.stale == [value]
