"""The real process killed anywhere: the same command again ends with the same bits and leaves nothing over."""

import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import helpers
import pytest
import torch

from lthlab import engine, lab, progress
from lthlab.engine import Training
from lthlab.files import Files
from lthlab.parts import Data
from lthlab.store import Store
from lthlab.tickets import Protocol, imp
from lthlab.values import At

DATA = Data(name="digits", train_size=100)
LIMIT = 60  # seconds after which a child is given up


@pytest.fixture(scope="module")
def processes():
    """Children that start in milliseconds, from a process that has imported everything and used no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lthlab.lab", "pytest"])
    return context


def chain(levels, replicates, epochs):
    recipe = helpers.recipe(epochs=epochs, batch_size=50)
    rounds = [imp(Protocol(helpers.LENET, DATA, r), recipe, levels) for r in range(replicates)]
    return [value for pairs in rounds for run, mask in pairs for value in (run, At(run, "1ep"), mask)]


CHAINS = {"small": (2, 1, 2), "whole": (3, 2, 3)}


# --- what runs in a child -------------------------------------------------------------------------------------


def compute(root, name, files=None):
    torch.set_num_threads(1)
    return lab.compute(chain(*CHAINS[name]), Store(root, files), "cpu", checkpoint_seconds=0)


class Deadly(Files):
    """Kills its own process before the operation with number `at`; if `torn`, half-way through that write."""

    def __init__(self, at, torn):
        self.at, self.torn, self.count = at, torn, 0


def _dies(name):
    operation = getattr(Files, name)

    def run(self, path, *args, **kwargs):
        writes = name in ("write", "append")
        if self.count == self.at and (writes or not self.torn):
            if self.torn:
                operation(self, path, args[0][: len(args[0]) // 2], *args[1:], **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += writes or not self.torn
        return operation(self, path, *args, **kwargs)

    return run


OPERATIONS = [name for name in vars(Files) if not name.startswith("_")]
for _name in OPERATIONS:
    setattr(Deadly, _name, _dies(_name))


def die_at(root, at, torn, counted):
    files = Deadly(at, torn)
    compute(root, "small", files)
    Path(counted).write_text(str(files.count))


PAUSE = 0.004
PHASES = ("training", "mask", "snapshot", "commit")


def slowly(root, log):
    """Compute with a pause at every step and file operation, and write to `log` which phase begins and ends."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def phase(name, function):
        def run(*args, **kwargs):
            os.write(out, f"+{name}\n".encode())
            time.sleep(PAUSE)
            result = function(*args, **kwargs)
            time.sleep(PAUSE)
            os.write(out, f"-{name}\n".encode())
            return result

        return run

    class Slow(Files):
        pass

    def slow(operation):
        def run(*args, **kwargs):
            time.sleep(PAUSE / 4)
            return operation(*args, **kwargs)

        return run

    for name in OPERATIONS:
        setattr(Slow, name, slow(getattr(Files, name)))
    engine.APART = 1  # each step by itself
    Training._steps = phase("training", Training._steps)
    lab.derive = phase("mask", lab.derive)
    Store.write_checkpoint = phase("snapshot", Store.write_checkpoint)
    Store.commit = phase("commit", Store.commit)
    compute(root, "whole", Slow())


def politely(root, log, pause):
    """Compute with a pause at every step, and write to `log` how it was stopped."""
    torch.set_num_threads(1)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    step = Training._steps

    def slow(self, *to):
        stopped = step(self, *to)
        os.write(out, f"step {self.iteration}\n".encode())
        time.sleep(pause)
        return stopped

    engine.APART, Training._steps = 1, slow
    with progress.stopping() as wish:
        try:
            lab.compute(chain(*CHAINS["whole"]), Store(root), "cpu", watcher=progress.Bar(wish))
        except lab.Stopped as stopped:
            os.write(out, f"{wish.reason} {stopped.left} {stopped.epochs}\n".encode())


def compete(root, log):
    """Compute beside others, and write to `log` what was committed."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    commit = Store.commit

    def logged(self, key, part, files, record):
        stands = commit(self, key, part, files, record)
        os.write(out, f"{key} {part} {stands}\n".encode())
        time.sleep(PAUSE)
        return stands

    Store.commit = logged
    summary = compute(root, "whole")
    os.write(out, f"trained {summary.trained} {summary.trainings}\n".encode())


# --- what is asserted about it --------------------------------------------------------------------------------


def run(processes, target, *args):
    """Run a function in a child to its end; returns its exit code."""
    process = processes.Process(target=target, args=args, daemon=True)
    process.start()
    process.join(LIMIT)
    assert process.exitcode is not None, f"{target.__name__}{args} hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The bits of stores that nothing happened to."""
    found = {}
    for name in CHAINS:
        store = helpers.store(tmp_path_factory.mktemp(name) / "runs")
        compute(store.root, name)
        found[name] = helpers.bits(store.root)
    return found


def assert_whole(root, expected):
    """Nothing is missing, nothing is different and nothing is left over."""
    found = helpers.bits(root)
    assert not [name for name in found if name.startswith((".work/", ".claims/"))]
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    names = {path for path in found if not re.match(r"[0-9a-f]{32}(/|$)", path)}
    assert names == {".work", ".claims", "studies", "data", "data/digits.safetensors"}


def test_an_undisturbed_store_can_be_told_from_another(undisturbed, tmp_path):
    expected = undisturbed["small"]
    store = helpers.store(tmp_path / "runs")
    compute(store.root, "small")
    assert_whole(store.root, expected)
    for change in (
        lambda: (store.root / ".claims" / "left").touch(),
        lambda: (store.root / ".work" / "left").touch(),
        lambda: (store.root / "stray").touch(),
        lambda: helpers.flip(next(store.root.rglob("mask.safetensors"))),
        lambda: next(store.root.rglob("metrics.jsonl")).unlink(),
        lambda: helpers.flip(next(store.root.rglob("description.json"))),
    ):
        before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
        change()
        with pytest.raises(AssertionError):
            assert_whole(store.root, expected)
        for path in store.root.rglob("*"):
            if path.is_file() and path not in before:
                path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
    assert_whole(store.root, expected)


@pytest.mark.parametrize("torn", [False, True], ids=["before", "within"])
def test_killed_at_every_file_operation(torn, processes, undisturbed, tmp_path):
    counted, at = tmp_path / "count", 0
    while not counted.exists():
        store = helpers.store(tmp_path / str(at))
        code = run(processes, die_at, str(store.root), at, torn, str(counted))
        assert code == (0 if counted.exists() else -signal.SIGKILL)
        compute(store.root, "small")
        assert_whole(store.root, undisturbed["small"])
        at += 1
    assert at == int(counted.read_text()) + 1 and at > (15 if torn else 60)


def phase_at_death(log):
    """What the child was doing: the innermost phase that began and did not end."""
    stack = []
    for line in log.read_text().splitlines():
        stack.append(line[1:]) if line[0] == "+" else stack.pop()
    return stack[-1] if stack else None


def test_killed_at_random_moments(processes, undisturbed, tmp_path):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed of the moments: {seed}")
    moments, hit, tried = random.Random(seed), Counter(), 0
    store = None
    while hit.total() < 20 or min(hit[phase] for phase in PHASES) < 4:
        assert tried < 100, f"seed {seed}: {hit}"
        wanted = min(PHASES, key=lambda phase: (hit[phase], moments.random()))
        times = moments.randint(1, {"training": 18, "mask": 6, "snapshot": 6, "commit": 12}[wanted])
        delay = moments.uniform(0, 3 * PAUSE)
        store, log = store or helpers.store(tmp_path / f"runs{tried}"), tmp_path / f"log{tried}"
        tried += 1
        log.touch()
        process = processes.Process(target=slowly, args=(str(store.root), str(log)), daemon=True)
        process.start()
        until = time.monotonic() + LIMIT
        while log.read_text().count(f"+{wanted}\n") < times and process.exitcode is None:
            assert time.monotonic() < until, "the child hangs"
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join(LIMIT)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            hit[phase_at_death(log) or "between"] += 1
        if moments.random() < 0.3 and process.exitcode:
            continue  # the same store is interrupted once more
        compute(store.root, "whole")
        assert_whole(store.root, undisturbed["whole"])
        store = None
    print(dict(hit))
    if store is not None:
        compute(store.root, "whole")
        assert_whole(store.root, undisturbed["whole"])


def test_two_processes_share_the_work(processes, undisturbed, tmp_path):
    store, logs = helpers.store(tmp_path / "runs"), [tmp_path / "first", tmp_path / "second"]
    children = [processes.Process(target=compete, args=(str(store.root), str(log)), daemon=True) for log in logs]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT)
        assert child.exitcode == 0
    assert_whole(store.root, undisturbed["whole"])
    lines = [line.split() for log in logs for line in log.read_text().splitlines()]
    commits = Counter((key, part, stands) for key, part, stands in lines if key != "trained")
    manifests = [Path(name).parts for name in undisturbed["whole"] if name.endswith("manifest.json")]
    assert commits == {(key, part, "True"): 1 for key, part, _ in manifests}
    assert sum(int(trained) for word, trained, _ in lines if word == "trained") == 6


def test_what_is_in_a_checkpoint_is_not_trained_again(processes, undisturbed, tmp_path):
    store, log = helpers.store(tmp_path / "runs"), tmp_path / "log"
    process = processes.Process(target=slowly, args=(str(store.root), str(log)), daemon=True)
    process.start()
    until = time.monotonic() + LIMIT
    while not (log.exists() and log.read_text().count("-snapshot\n") >= 2):
        assert time.monotonic() < until
        time.sleep(0.001)
    process.kill()
    process.join(LIMIT)
    steps = []
    step = Training._steps

    def record(self, *to):
        steps.append(self.iteration)
        return step(self, *to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "APART", 1)
        patch.setattr(Training, "_steps", record)
        compute(store.root, "whole")
    assert 0 < len(steps) <= 18 - 4
    assert_whole(store.root, undisturbed["whole"])


def started(processes, store, log, pause, steps):
    """A child that computes politely and has done some steps."""
    process = processes.Process(target=politely, args=(str(store.root), str(log), pause), daemon=True)
    process.start()
    until = time.monotonic() + LIMIT
    while not (log.exists() and log.read_text().count("step") >= steps):
        assert time.monotonic() < until, "the child hangs"
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("number, reason", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_leads_out_with_all_that_was_trained(number, reason, processes, undisturbed, tmp_path, monkeypatch):
    store, log = helpers.store(tmp_path / "runs"), tmp_path / "log"
    process = started(processes, store, log, 0.1, 3)
    began = time.monotonic()
    os.kill(process.pid, number)
    process.join(LIMIT)
    assert process.exitcode == 0 and time.monotonic() - began < 3
    *steps, last = log.read_text().splitlines()
    assert last == f"{reason} 6 {6 * 3 - 2 * (len(steps) // 2)}" and 3 <= len(steps) < 12
    assert list((store.root / ".claims").iterdir()) == [] and len(store.checkpoints()) == 1
    more, step = [], Training._steps
    monkeypatch.setattr(engine, "APART", 1)
    monkeypatch.setattr(Training, "_steps", lambda self, *to: more.append(1) or step(self, *to))
    compute(store.root, "whole")
    assert len(steps) + len(more) == 18
    assert_whole(store.root, undisturbed["whole"])


def test_a_second_signal_ends_at_once(processes, undisturbed, tmp_path):
    store, log = helpers.store(tmp_path / "runs"), tmp_path / "log"
    process = started(processes, store, log, 30, 1)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert process.exitcode is None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGTERM and time.monotonic() - began < 3
    compute(store.root, "whole")
    assert_whole(store.root, undisturbed["whole"])
