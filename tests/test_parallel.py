"""One training in several processes: the same numbers, and what happens when one of them ends."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import helpers
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient

from lthlab import data, datasets, kernels, lab, masks, nets, parallel, parts, spec
from lthlab.engine import Training
from lthlab.errors import InputError
from lthlab.jobs import Job
from lthlab.parallel import Member, ProcessEnded, Team
from lthlab.parts import Data, Net
from lthlab.values import Gradual

CPU = torch.device("cpu")
AUGMENTED = Data(name="digits", train_size=201, val_size=50, augment="crop_flip")
UNEVEN = {"precision": "fp64", "batch_size": 63, "momentum": 0.8, "lr": 0.1}  # steps of 63, 63, 63 and 12 images
PER_PROCESS = {"batchnorm": "per_process", "processes": 2}


def close(ours, expected, bound=1e-9):
    """Tell whether two states are equal to `bound` of each tensor's largest number."""
    assert ours.keys() == expected.keys()
    pairs = [(ours[name].double(), tensor.double()) for name, tensor in expected.items()]
    return all((one - other).abs().max() <= bound * max(other.abs().max().item(), 1e-3) for one, other in pairs)


def same_rows(ours, expected):
    """Tell whether metrics are equal: accuracies and counts exactly."""
    assert [row.keys() for row in ours] == [row.keys() for row in expected]
    exact = [(a[k], b[k]) for a, b in zip(ours, expected, strict=True) for k in a if not k.endswith("loss")]
    losses = [(a[k], b[k]) for a, b in zip(ours, expected, strict=True) for k in a if k.endswith("loss")]
    return all(a == b for a, b in exact) and all(a == pytest.approx(b, rel=1e-9) for a, b in losses)


CASES = pytest.mark.parametrize(
    "net, fields",
    [
        (helpers.LENET, {}),
        (helpers.LENET, {"optimizer": "adam", "lr": 0.01, "decay_on": "weights"}),
        (helpers.LENET, {"mixup": 0.4, "label_smoothing": 0.1, "nesterov": True}),
        (helpers.narrow(), PER_PROCESS),
        (helpers.narrow(), PER_PROCESS | {"processes": 4}),
        (helpers.narrow(), {}),
        (Net.model_construct(name="two"), {}),
    ],
    ids=[
        "lenet",
        "lenet-adam",
        "lenet-mixed",
        "resnet-per_process",
        "resnet-two_parts_each",
        "resnet-synchronised",
        "own",
    ],
)


# --- parts of a step ------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 40))
def test_parts_are_those_of_tensor_split(size, each, more):
    count = size * each + more
    parts = torch.arange(count).tensor_split(size * each)
    for rank in range(size):
        found = torch.arange(count)[Member(rank, size, CPU).part(count, size * each)]
        own = parts[rank * each : (rank + 1) * each]
        assert torch.equal(found, torch.cat(own))
        assert [len(part) for part in found.tensor_split(each)] == [len(part) for part in own]


# --- BatchNorm of every process by itself, on one device ------------------------------------------------------


def emulated(job, dataset, processes):
    """Train with plain torch: one network forward for each part of a batch, running statistics of the first."""
    train, recipe = job.train, job.train.recipe
    net = helpers.plain(train.net, train.data.facts).double()
    net.load_state_dict(job.state)
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum)
    for epoch in range(recipe.epochs):
        order = data.order(len(dataset.train_y), train.order, epoch)
        moves = data.crop_flip_draws(len(order), 4, train.order, epoch)
        batches = zip(order.split(recipe.batch_size), moves.split(recipe.batch_size), strict=True)
        for chosen, move in batches:
            images = data.normalise(data.crop_flip(dataset.train_x[chosen], 4, move), dataset, torch.float64)
            optimizer.zero_grad()
            kept = None
            for x, y in zip(
                images.tensor_split(processes), dataset.train_y[chosen].tensor_split(processes), strict=True
            ):
                loss = F.cross_entropy(net(x), y, reduction="sum") / len(chosen)
                loss.backward()
                kept = kept or {name: buffer.clone() for name, buffer in net.named_buffers()}
                if kept is not None:
                    net.load_state_dict(kept, strict=False)
            optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("form", ["stacked", "sequential"])
@pytest.mark.parametrize("processes", [2, 5])
def test_statistics_of_parts_are_those_of_separate_networks(processes, form):
    recipe = UNEVEN | {"weight_decay": 0.0, "batchnorm": "per_process", "processes": processes}
    jobs = [helpers.job(helpers.train(helpers.narrow(), AUGMENTED, replicate, **recipe)) for replicate in range(2)]
    loaded = helpers.load(AUGMENTED)
    training = helpers.run(jobs, loaded, form=form)
    for number, job in enumerate(jobs):
        assert close(training.group.state(number), emulated(job, loaded, processes))
    whole = helpers.run([helpers.job(helpers.train(helpers.narrow(), AUGMENTED, **UNEVEN | {"weight_decay": 0.0}))])
    assert not close(whole.group.state(0), training.group.state(0), 1e-3)


# --- the end of a process -------------------------------------------------------------------------------------


def begun(team):
    """A training on its way."""
    value = helpers.train(dataset=AUGMENTED, epochs=10_000, **UNEVEN)
    training = Training([helpers.job(value)], helpers.load(AUGMENTED), team.device, team=team)
    training.advance(3)
    return training


def test_an_interrupt_reaches_only_the_one_that_leads_and_an_error_is_named():
    failed = "^process 1 of 2, on cpu, ended with exit code 1: AttributeError: .* 'jump'$"
    with pytest.raises(ProcessEnded, match=failed), Team([CPU, CPU]) as team:
        training, (process,) = begun(team), team.processes
        assert os.getpgid(process.pid) != os.getpgid(0) and os.getsid(process.pid) != os.getsid(0)
        with pytest.raises(KeyboardInterrupt):
            training.advance(10_000, lambda: signal.raise_signal(signal.SIGINT))
        training.advance(training.iteration + 2)
        team.tell("jump")
        while True:
            training.advance(10_000)


def test_an_interrupt_does_not_wait_for_a_process_that_hangs():
    with pytest.raises(KeyboardInterrupt), Team([CPU, CPU]) as team:
        training, (process,) = begun(team), team.processes
        training.advance(training.iteration + 1)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        signal.raise_signal(signal.SIGINT)
    assert time.monotonic() - began < 5 and process.returncode == -signal.SIGKILL


def test_a_process_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(parallel, "WITH_PARENT", "import sys; sys.exit('no such luck')\n")
    failed = r"^process [12] of 3, on cpu, ended with exit code 1: no such luck$"
    with pytest.raises(ProcessEnded, match=failed), Team([CPU] * 3) as team:
        begun(team)
    assert team.folder is None


LEADER = """
import subprocess, sys, torch
from lthlab import parallel

class Named(subprocess.Popen):
    def __init__(self, command, **settings):
        super().__init__(command, **settings)
        print(self.pid, command[-1], flush=True)

parallel.subprocess.Popen = Named
parallel.Team([torch.device("cpu")] * 2)._start()
"""


def test_no_process_outlives_the_one_that_leads():
    """Even if it does not listen yet."""
    with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True) as leader:
        pid, _, place = leader.stdout.readline().partition(" ")
        assert alive(int(pid))
        leader.kill()
    deadline = time.monotonic() + 5
    while alive(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shutil.rmtree(json.loads(place)["folder"])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- from a notebook and the command line -----------------------------------------------------------------------

STUDY = """
name: shared
net: {name: resnet8, width: 4}
data: {name: digits, train_size: 200}
replicates: 2
find: {epochs: 2, batch_size: 64, lr: 0.05, precision: fp64, batchnorm: per_process, processes: 2}
prune: {levels: [1]}
tickets: {LT: {methods: [IMP]}}
"""
CELL = """
from lthlab import lab, spec
from lthlab.store import Store
config = spec.read("shared.yaml")
summary = lab.compute_study(config, Store("notebook"), "cpu,cpu")
print(summary.trained, "trained")
"""


def trained(root):
    """Metrics of all trainings of a store, and what its files say of how they were made."""
    metrics, origins = {}, []
    for path in sorted(root.glob("*/0/metrics.jsonl")):
        metrics[path.parts[-3]] = [json.loads(line) for line in path.read_text().splitlines()]
        origins.append(json.loads(path.with_name("provenance.json").read_text()))
    return metrics, origins


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the study gives in one process."""
    store = helpers.store(tmp_path_factory.mktemp("alone"))
    lab.compute_study(spec.parse(STUDY), store, "cpu")
    return trained(store.root)[0]


def test_a_cell_of_a_notebook_computes_in_two_processes(tmp_path, alone):
    (tmp_path / "shared.yaml").write_text(STUDY)
    helpers.store(tmp_path / "notebook")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    job = Job("cell", tmp_path / "cell.ipynb", tmp_path / "out.ipynb", cores=2)
    task = kernels.Task(job, "", "", tmp_path, dict(os.environ), False, 1.0)
    with (tmp_path / "log").open("wb") as log:
        kernel = kernels.Kernel(task, log)
        try:
            client = NotebookClient(book, timeout=120, kernel_manager_class=kernel.manager())
            client.resources = {"metadata": {"path": str(tmp_path)}}
            client.execute()
        finally:
            kernel.end()
    said = "".join(output.get("text", "") for output in book.cells[0].outputs if output.get("name") == "stdout")
    assert said == "4 trained\n"
    metrics, origins = trained(tmp_path / "notebook")
    assert metrics.keys() == alone.keys() and all(same_rows(metrics[key], alone[key]) for key in alone)
    assert [(o["device"], o["form"], o["replicas"]) for o in origins] == [("cpu,cpu", "parallel", 1)] * 4


class Watch:
    """Counts the steps of all lanes; asks to stop after some, or kills the process that is led before one."""

    def __init__(self, monkeypatch, stop=100, kill=100):
        self.steps, self.at = 0, stop
        step = parallel.SharedLane.step

        def counted(lane, size):
            self.steps += 1
            if self.steps == kill:
                lane.member.processes[0].kill()
            step(lane, size)

        monkeypatch.setattr(parallel.SharedLane, "step", counted)

    def begin(self, *counts):
        pass

    def advance(self, *counts):
        pass

    def stop(self):
        return self.steps >= self.at


def test_what_was_stopped_or_killed_goes_on_from_the_command_line(tmp_path, alone, monkeypatch):
    """Stopped after 3 of 8 steps of the first training, killed in step 6 of the third one."""
    config, store = spec.parse(STUDY), helpers.store(tmp_path / "runs")
    with monkeypatch.context() as patch, pytest.raises(lab.Stopped, match="stopped with 4 trainings and 8 epochs left"):
        lab.compute_study(config, store, "cpu,cpu", watcher=Watch(patch, stop=3))
    assert [c.iteration for c in store.checkpoints().values()] == [3]
    killed = "^process 1 of 2, on cpu, ended by SIGKILL$"
    with monkeypatch.context() as patch, pytest.raises(ProcessEnded, match=killed):
        lab.compute_study(config, store, "cpu,cpu", checkpoint_seconds=0, watcher=Watch(patch, kill=5 + 8 + 6))
    assert [c.iteration for c in store.checkpoints().values()] == [4] and len(trained(store.root)[0]) == 2
    assert not torch.distributed.is_initialized()
    (tmp_path / "shared.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "lthlab", "compute", "shared.yaml", "--device", "cpu,cpu", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 2
    metrics = trained(store.root)[0]
    assert metrics.keys() == alone.keys() and all(same_rows(metrics[key], alone[key]) for key in alone)
    assert not store.checkpoints()


def test_a_group_that_was_begun_in_one_process_goes_on_there(tmp_path, monkeypatch):
    store, pair = helpers.store(tmp_path / "runs"), [helpers.train(dataset=AUGMENTED, replicate=r) for r in range(2)]
    watch = Watch(monkeypatch)
    asked = iter([False] * 6)
    watch.stop = lambda: next(asked, True)
    with pytest.raises(lab.Stopped):
        lab.compute(pair, store, "cpu", watcher=watch)
    assert [len(c.members) for c in store.checkpoints().values()] == [2]
    assert lab.compute(pair, store, "cpu,cpu").trained == 2
    _, origins = trained(store.root)
    assert [(o["device"], o["form"], o["replicas"]) for o in origins] == [("cpu", "stacked", 2)] * 2


# --- several GPUs ---------------------------------------------------------------------------------------------

several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
GPUS = [torch.device("cuda:0"), torch.device("cuda:1")]


@pytest.mark.gpu
@several
def test_two_gpus_train_as_one_does(two):
    with Team(GPUS) as team:
        for net, fields in CASES.args[1]:
            check(net, fields, team)


@pytest.mark.gpu
@several
def test_kernels_do_not_wait_for_a_gpu_whose_process_was_killed():
    with pytest.raises(ProcessEnded, match="^process 1 of 2, on cuda:1, ended by SIGKILL$"), Team(GPUS) as team:
        training, (process,) = begun(team), team.processes
        began = time.monotonic()
        training.advance(10_000, process.kill)
        while True:
            training.advance(10_000)
    assert time.monotonic() - began < 60


# --- several processes ----------------------------------------------------------------------------------------


OWN = """
import math
from lthlab import nets

class Two(nets.Network):
    def __init__(self, net, shape, classes, replicas):
        super().__init__(replicas)
        self.fc1 = nets.Linear(replicas, math.prod(shape), 20, "first", "torch")
        self.fc2 = nets.Linear(replicas, 20, classes, "head", "torch")

    def forward(self, x):
        return self.fc2(self.fc1(x.flatten(-3)).relu())

nets.register("two", Two)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Register a network of one's own in a module."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    importlib.import_module("own_networks")
    yield Net(name="two")
    sys.path.remove(str(folder))
    del sys.modules["own_networks"], parts.NETS["two"], nets._BUILDERS["two"]


def test_a_module_may_register_a_network_and_its_data_set(tmp_path, monkeypatch):
    """Whether the process that is led imports it first or is told of the data set first."""
    registers = "from lthlab import data, datasets\ndata.register('both', datasets.DATASETS['digits'])(dict)\n"
    (tmp_path / "own_both.py").write_text(OWN.replace('"two"', '"both"') + registers)
    monkeypatch.syspath_prepend(tmp_path)
    tables = (parts.NETS, nets._BUILDERS, datasets.DATASETS, data._sources)
    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.enter_context(patch.dict(table))
        importlib.import_module("own_both")
        stack.callback(sys.modules.pop, "own_both")
        for names in (["both"], ["lenet_300_100", "both"]):
            with Team([CPU, CPU]) as team:
                for name in names:
                    check(Net(name=name), {}, team, Data(name="both", train_size=201, val_size=50))


@pytest.fixture(scope="module")
def team(two):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with Team([CPU, CPU]) as found:
        yield found
        folder, process = found.folder, found.processes[0]
        assert torch.get_num_threads() == 1  # its part of three
    assert not folder.exists() and process.returncode == 0 and torch.get_num_threads() == 3
    torch.set_num_threads(before)


def train_to(training, until):
    while training.iteration < until:
        training.advance(until)
    return training


def check(net, fields, team, dataset=AUGMENTED):
    """A team gives what one process gives on its first device: metrics, states, and all that a checkpoint has."""
    value = helpers.train(net, dataset, **UNEVEN | fields)
    job = helpers.job(value, helpers.half_mask(net, dataset, 0), {"0ep", "3it", "1ep", "best_val", "2ep"})
    loaded = replace(helpers.load(AUGMENTED), name=dataset.name)
    alone = train_to(Training([job], loaded, team.device, form="sequential"), value.end)
    shared = train_to(Training([job], loaded, team.device, team=team), value.end)
    assert same_rows(shared.progress[0].metrics, alone.progress[0].metrics)
    assert len(shared.progress[0].metrics) == 3
    assert close(shared.group.state(0), alone.group.state(0))
    assert close(shared.carry(0), alone.carry(0))
    assert shared.progress[0].snapshots.keys() == job.keep
    for step, state in alone.progress[0].snapshots.items():
        assert close(shared.progress[0].snapshots[step], state)
    assert (alone.group.form, shared.group.form) == ("sequential", "parallel")


@CASES
def test_two_processes_train_as_one_does(net, fields, team):
    check(net, fields, team)


def test_what_was_stopped_goes_on_in_two_processes_and_in_one(team):
    net, loaded = helpers.narrow(), helpers.load(AUGMENTED)
    value = helpers.train(net, AUGMENTED, **UNEVEN | PER_PROCESS)
    job = helpers.job(value, helpers.half_mask(net, AUGMENTED, 0), {"1ep", "7it"})
    undisturbed = helpers.run([job], loaded, form="sequential")
    training = Training([job], loaded, team=team)
    for number, stop in enumerate((1, 3, 4, 6, 8)):
        asked = iter([False] * (stop - training.iteration - 1))
        training.advance(value.end, lambda asked=asked: next(asked, True))
        assert training.iteration == stop
        again = None if number == 2 else team
        training = Training.restore([job], loaded, *training.checkpoint(), team=again)
    train_to(training, value.end).advance(value.end)
    assert same_rows(training.progress[0].metrics, undisturbed.progress[0].metrics)
    assert close(training.group.state(0), undisturbed.group.state(0))


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "lr": 0.001}], ids=str)
def test_pruning_on_the_way_reaches_all(fields, team):
    """The same masks at every step of the curve, stopped in between, and nothing that was pruned comes back."""
    loaded, keep = helpers.load(AUGMENTED), {"0ep", "3it", "1ep", "7it", "2ep"}
    pruning = Gradual("1it", "7it", "2it", "0.8", initial="0.2")
    value = replace(helpers.train(dataset=AUGMENTED, **UNEVEN | fields), pruning=pruning)
    job = helpers.job(value, None, keep)
    alone = helpers.run([job], loaded, form="sequential")
    training = Training([job], loaded, team=team)
    for stop in (3, 4, 6):
        train_to(training, stop)
        training = Training.restore([job], loaded, *training.checkpoint(), team=team)
    train_to(training, value.end)
    assert close(training.group.state(0), alone.group.state(0))
    ours, theirs = training.progress[0], alone.progress[0]
    assert same_rows(ours.metrics, theirs.metrics) and ours.masks.keys() == theirs.masks.keys() == keep
    for step, mask in theirs.masks.items():
        assert close(ours.masks[step], mask)
        found = masks.unpack({name: part.numpy() for name, part in ours.masks[step].items()})
        assert not any(ours.snapshots[step][name][~kept].any() for name, kept in found.items())


def test_a_data_set_of_ones_own_reaches_all(team, monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "own", datasets.DATASETS["digits"])
    check(helpers.LENET, {}, team, Data(name="own", train_size=201, val_size=50))


def test_images_that_are_streamed_reach_all(team):
    check(helpers.LENET, {}, team, AUGMENTED.model_copy(update={"augment": "resized_crop_flip"}))


def test_images_that_are_streamed_reach_all_in_batches_of_any_size(team):
    streamed = AUGMENTED.model_copy(update={"augment": "resized_crop_flip"})
    loaded = helpers.load(streamed)
    for size in (32, 48, 32):
        job = helpers.job(helpers.train(dataset=streamed, **UNEVEN | {"batch_size": size}))
        alone = helpers.run([job], loaded, form="sequential")
        shared = train_to(Training([job], loaded, CPU, team=team), job.train.end)
        assert close(shared.group.state(0), alone.group.state(0))


def test_there_is_one_team_at_a_time(team):
    with pytest.raises(InputError, match="has a process group of torch.distributed already"), Team([CPU, CPU]) as other:
        begun(other)
    assert team.processes[0].poll() is None


def test_a_team_trains_one_replica_at_a_time(team):
    jobs = [helpers.job(helpers.train(replicate=r)) for r in range(2)]
    with pytest.raises(ValueError, match="2 replicas for a team; allowed: 1"):
        Training(jobs, helpers.load(), team=team)


# --- what cannot be divided -----------------------------------------------------------------------------------


def test_what_devices_cannot_share_is_refused(monkeypatch):
    three = [CPU] * 3
    odd = helpers.train(helpers.narrow(), AUGMENTED, **UNEVEN | PER_PROCESS)
    with pytest.raises(InputError, match=r"3 devices .*BatchNorm has 2 processes; allowed: 1, 2 devices \(Train\("):
        parallel.refuse([odd], three)
    few = helpers.train(dataset=Data(name="digits", train_size=130))
    with pytest.raises(InputError, match=r"last batch of an epoch has 2 images; allowed: 1 to 2 \(Train\("):
        parallel.refuse([few, odd], three)
    parallel.refuse([few, odd], three[:2])
    parallel.refuse([helpers.train(helpers.narrow(), AUGMENTED, **UNEVEN | PER_PROCESS | {"processes": 12})], three)


def test_a_network_of_a_notebook_is_refused(two, monkeypatch):
    value = helpers.train(two)
    parallel.refuse([value], [CPU, CPU])
    monkeypatch.setattr(nets._BUILDERS["two"], "__module__", "__main__")
    with pytest.raises(InputError, match="'two' is registered in this process alone; allowed: networks of a module"):
        parallel.refuse([value], [CPU, CPU])
