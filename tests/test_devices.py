"""Settings of a device, its allocator, the size of groups, and groups that do not fit into its memory."""

import ctypes
import logging
import multiprocessing
import os
import re
import signal
import sys
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch
import torch.nn.functional as F

from lthlab import datasets, devices, engine, lab, nets, trainer
from lthlab.errors import InputError
from lthlab.lanes import Lane
from lthlab.parts import Data, Net
from lthlab.replicas import Group
from lthlab.store import Store

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lthlab.lab", "pytest"])


def in_a_process(function, *args):
    """Call a function in a process of its own, and return what it returns."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(function, *args).result(60)


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "large", helpers.CIFAR)
    return Data(name="large")


# --- arithmetic -----------------------------------------------------------------------------------------------


def arithmetic():
    backends = torch.backends
    units = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [unit.fp32_precision for unit in units]


def flags():
    cudnn = torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    return [cudnn.benchmark, cudnn.deterministic, *deterministic, filled]


def a_step():
    """A step through a convolution and a matrix product, which ask how exact they have to be."""
    image, kernel = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, requires_grad=True)
    (F.conv2d(image, kernel).flatten(1) @ torch.ones(4, 2)).sum().backward()


def set_by_name(name, value):
    *path, last = name.split(".")
    unit = torch
    for part in path:
        unit = getattr(unit, part)
    unit(value) if last == "()" else setattr(unit, last, value)


def read_by_name(name):
    unit = torch
    for part in name.split("."):
        unit = getattr(unit, part)
    return unit() if callable(unit) else unit


def within_settings(before, after):
    """Arithmetic before, within and after settings; what reads `after` then."""
    warnings.simplefilter("error")
    if before:
        set_by_name(*before)
    found = [arithmetic()]
    with devices.settings(CPU):
        found.append(arithmetic())
        a_step()
    return [*found, arithmetic(), read_by_name(after)]


@pytest.mark.parametrize(
    ("before", "after", "read"),
    [
        (None, "backends.cudnn.allow_tf32", True),
        (("backends.cuda.matmul.allow_tf32", True), "backends.cuda.matmul.allow_tf32", True),
        (("set_float32_matmul_precision.()", "medium"), "get_float32_matmul_precision", "medium"),
        (("backends.cudnn.allow_tf32", False), "backends.cudnn.allow_tf32", False),
        (("backends.cudnn.conv.fp32_precision", "tf32"), "backends.cuda.matmul.allow_tf32", False),
        (("backends.fp32_precision", "tf32"), "backends.fp32_precision", "tf32"),
    ],
)
def test_fp32_is_ieee_whatever_was_set_before(before, after, read):
    """By the old names or the new ones, of which torch allows no mixture; there is no warning either."""
    first, within, last, found = in_a_process(within_settings, before, after)
    assert within == ["ieee"] * 4 != first == last and found == read


def test_settings_are_restored_after_an_error_too():
    before = arithmetic(), flags()
    assert before[0] != ["ieee"] * 4
    with pytest.raises(ZeroDivisionError), devices.settings(GPU):
        assert arithmetic() == ["ieee"] * 4 and flags() == [True, False, False, False, True]
        raise ZeroDivisionError
    assert (arithmetic(), flags()) == before


def test_a_gpu_tells_the_streams_of_a_whole_group_apart(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "4")
    with devices.settings(GPU):
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "4"
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    with devices.settings(CPU):
        assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    with devices.settings(GPU):
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


def test_deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    before = flags()
    with devices.settings(GPU, deterministic=True):
        assert flags() == [False, True, True, False, False]
        assert devices.repeats(GPU)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert flags() == before and not devices.repeats(GPU)
    with devices.settings(CPU, deterministic=True):
        assert flags() == before and devices.repeats(CPU)


def test_deterministic_as_the_user_has_it():
    """Who switched it on for all of the process means trainings too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = flags()
        with devices.settings(GPU):
            assert flags() == [False, True, True, False, False]
        assert flags() == before and before[3]
    finally:
        torch.use_deterministic_algorithms(False)


def test_too_late_to_be_deterministic(monkeypatch, store):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = flags(), arithmetic()
    for value in (None, ":0:0"):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        if value is not None:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        found = "it is not set" if value is None else "it is ':0:0'"
        with pytest.raises(InputError, match=f"uses CUDA already.*{found}, allowed: :4096:8, :16:8. Compute in a new"):
            lab.compute([helpers.train()], store, "auto", deterministic=True)
    assert store.keys() == [] and (flags(), arithmetic()) == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with devices.settings(GPU, deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_who_asks_to_be_deterministic(store, monkeypatch):
    asked = []
    settings = devices.settings
    monkeypatch.setattr(devices, "settings", lambda device, wish: asked.append(wish) or settings(device, wish))
    value = helpers.train(epochs=1)
    for told in (None, "", "0", "1"):
        monkeypatch.delenv("LTHLAB_DETERMINISTIC", raising=False)
        if told is not None:
            monkeypatch.setenv("LTHLAB_DETERMINISTIC", told)
        for wish in (None, True, False):
            lab.compute([value], store, "cpu", deterministic=wish)
    assert asked == [False, True, False] * 3 + [True, True, False]
    assert store.read_json(value.key, "provenance.json")["deterministic"]
    monkeypatch.setenv("LTHLAB_DETERMINISTIC", "yes")
    with pytest.raises(InputError, match="LTHLAB_DETERMINISTIC is 'yes'; allowed: 0, 1"):
        lab.compute([value], store, "cpu")


# --- allocator ------------------------------------------------------------------------------------------------


GLIBC = sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


class Blocks(ctypes.Structure):
    """What mallinfo2 returns."""

    _fields_ = [
        ("arena_ordblks_smblks", ctypes.c_size_t * 3),
        ("hblks", ctypes.c_size_t),
        ("rest", ctypes.c_size_t * 6),
    ]


def blocks_mapped(variables, device):
    """Number of blocks that the system maps for one large tensor; name of the allocator."""
    for name in (devices.ALLOCATOR, "LD_PRELOAD", *devices._OWN_CHOICE):
        os.environ.pop(name, None)
    os.environ |= variables
    count = ctypes.CDLL(None).mallinfo2
    count.restype = Blocks
    with devices.settings(device):
        before = count().hblks
        held = torch.empty(64 << 20, dtype=torch.uint8)
        return count().hblks - before, devices.allocator(), len(held)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("variables", "device", "mapped", "words"),
    [
        ({}, CPU, 0, ", keeps large blocks"),
        ({}, GPU, 1, ", keeps large blocks"),
        ({"LTHLAB_ALLOCATOR": "system"}, CPU, 1, ", as it is: LTHLAB_ALLOCATOR is set"),
        ({"MALLOC_MMAP_MAX_": "70000"}, CPU, 1, ", as it is: MALLOC_MMAP_MAX_ is set"),
        ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, CPU, 1, ", as it is: MALLOC_TRIM_THRESHOLD_ is set"),
        ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, CPU, 1, ", as it is: GLIBC_TUNABLES is set"),
    ],
)
def test_large_blocks_are_kept_where_nothing_speaks_against_it(variables, device, mapped, words):
    found = in_a_process(blocks_mapped, variables, device)
    assert found[:2] == (mapped, os.confstr("CS_GNU_LIBC_VERSION") + words)


@pytest.mark.parametrize("library", ["glibc 2.36", None, ValueError("unrecognized configuration name")])
def test_other_allocators_are_left_alone(library, monkeypatch):
    def confstr(name):
        if isinstance(library, Exception):
            raise library
        return library

    for name in ("LTHLAB_ALLOCATOR", *devices._OWN_CHOICE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "confstr", confstr)
    if library == "glibc 2.36":
        monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libc-tuned.so:/usr/lib/libjemalloc.so.2")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("told to keep large blocks"))
    with devices.settings(CPU):
        assert devices.allocator() == ("jemalloc" if library == "glibc 2.36" else "the system's")


def test_a_misspelt_allocator(monkeypatch, store):
    monkeypatch.setenv("LTHLAB_ALLOCATOR", "sytem")
    with pytest.raises(InputError, match="LTHLAB_ALLOCATOR is 'sytem'; allowed: system; did you mean 'system'"):
        lab.compute([helpers.train()], store, "cpu")
    assert store.keys() == []


# --- size of groups -------------------------------------------------------------------------------------------


def test_devices_by_name(monkeypatch):
    assert devices.device_named("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.device_named("auto") == GPU and devices.device_named("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="'cuda:2' is not here; allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        devices.device_named("cuda:2")


@pytest.mark.parametrize("name", ["lenet_300_100", "resnet8"])
@pytest.mark.parametrize("batch", [1, 7])
def test_what_is_counted_without_computing_is_what_computing_saves(name, batch, large):
    network = nets.build(Net(name=name), large).train()
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    held = {}

    def note(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(network(torch.zeros(batch, 3, 32, 32)), torch.zeros(batch, dtype=torch.int64))
    saved = [tensor.untyped_storage().nbytes() // 4 for place, tensor in held.items() if place not in own]
    counted = devices._saved(Net(name=name), large, batch)
    assert (counted.all, counted.largest) == (sum(saved), max(saved))
    assert counted.weights == sum(parameter.numel() for parameter in network.parameters())


def test_groups_on_a_gpu(large):
    def fitting(gigabytes, net="resnet20", **fields):
        return devices.fitting(helpers.train(Net(name=net), large, **fields), gigabytes * 10**9)

    sizes = [fitting(gigabytes, batch_size=128) for gigabytes in range(1, 200)]
    assert sizes == sorted(sizes) and set(sizes) == {1, 2, 4, 8, 16, 32}
    assert fitting(144, batch_size=128) == fitting(80, batch_size=128) == fitting(16, "lenet_300_100") == 32
    assert 1 == fitting(1) < fitting(8, batch_size=512) < fitting(8, batch_size=64)
    by_precision = [fitting(16, batch_size=128, precision=precision) for precision in ("fp64", "fp32", "bf16")]
    assert by_precision == sorted(set(by_precision))
    assert fitting(16, "resnet110") < fitting(16)
    train = helpers.train(Net(name="resnet20"), large, batch_size=100)
    images = (50_000 + 4 * 10_000) * 3 * 32 * 32  # test images as numbers of fp32, which are few enough
    enough = ((1 << 30) + images + 8 * devices._replica(train)) / 0.8
    assert (devices.fitting(train, enough + 1), devices.fitting(train, enough - 1)) == (8, 4)


@pytest.mark.parametrize(
    ("fields", "kept", "added"),
    [
        ({}, 50_000 + 4 * 10_000, 0),
        ({"augment": "crop_flip"}, 50_000 + 4 * 10_000, 0),
        ({"train_size": 20_000}, 4 * 30_000, 0),
        ({"train_size": 20_000, "augment": "crop_flip"}, 20_000 + 4 * 10_000, 0),
        ({"val_size": 30_000}, 20_000 * 4 + 30_000 + 4 * 10_000, 0),
        ({"augment": "resized_crop_flip"}, 4 * 10_000, 2 * 100),
        ({"part": "b", "classes": [1, 2]}, 4 * (5_000 + 2_000), 0),
    ],
)
def test_images_are_counted_as_bytes_or_as_numbers(large, fields, kept, added):
    train, image = helpers.train(Net(name="resnet20"), Data(name="large", **fields), batch_size=100), 3 * 32 * 32
    assert devices._images(train) == kept * image
    same = Data(name="large", train_size=train.data.images)
    whole = devices._replica(helpers.train(Net(name="resnet20"), same, batch_size=100))
    if "classes" not in fields:
        assert devices._replica(train) == whole + added * image


def test_streamed_images_are_not_counted_whole(large, monkeypatch):
    facts = replace(helpers.CIFAR, shape=(3, 224, 224), train=1_281_167, test=50_000, classes=1000, streamed=True)
    monkeypatch.setitem(datasets.DATASETS, "large", facts)
    train = helpers.train(Net(name="resnet20", width=4), large, batch_size=32)
    assert devices._images(train) == 0 and devices.fitting(train, 80 * 10**9) > 1
    sizes = [devices.evaluation_batch(shape) for shape in ((1, 28, 28), (3, 64, 64), (3, 224, 224), (3, 9000, 9000))]
    assert sizes == [1000, 1000, 222, 1]


def test_the_parts_of_the_count(large):
    def bytes_of(**fields):
        return devices._replica(helpers.train(Net(name="resnet20"), large, **fields))

    saved, weights = devices._saved(Net(name="resnet20"), large, 100), nets.build(Net(name="resnet20"), large)
    weights = sum(parameter.numel() for parameter in weights.parameters())
    map_of_an_image = 16 * 32 * 32
    assert saved.largest == 100 * map_of_an_image
    activations = saved.all + 3 * saved.largest + 3 * 1000 * map_of_an_image
    assert bytes_of(batch_size=100) == 1.25 * 4 * activations + 24 * weights + (64 << 20)
    assert bytes_of(batch_size=100, precision="bf16") == 1.25 * 2 * activations + 26 * weights + (64 << 20)
    assert bytes_of(batch_size=100, precision="fp64") == 1.25 * 8 * activations + 48 * weights + (64 << 20)
    assert bytes_of(batch_size=100, optimizer="adam") - bytes_of(batch_size=100) == 4 * weights
    rest = devices._saved(Net(name="resnet20"), large, 50000 % 128)
    both = devices._saved(Net(name="resnet20"), large, 128)
    steps = both.all + 3 * both.largest + rest.all + 3 * rest.largest
    assert bytes_of(batch_size=128) == 5 * (steps + 3000 * map_of_an_image) + 24 * weights + (64 << 20)


def test_capacity_follows_from_the_device(large, monkeypatch):
    lenet, resnet = helpers.train(), helpers.train(Net(name="resnet20"), large, batch_size=128)
    assert (devices.capacity(lenet, CPU), devices.capacity(resnet, CPU)) == (24, 8)
    found = []
    properties = SimpleNamespace(total_memory=8 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found.append(device) or properties)
    assert devices.capacity(resnet, GPU) == devices.fitting(resnet, 8 * 10**9) == 4
    assert found == [GPU]
    assert devices.memory(CPU) > 10**8


# --- too little memory ----------------------------------------------------------------------------------------


def test_errors_of_too_little_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert devices.lacked_memory(real.value)
    assert devices.lacked_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    for words in ("CUDA error: out of memory", "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
                  "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):  # fmt: skip
        assert devices.lacked_memory(RuntimeError(words))
    with pytest.raises(RuntimeError) as later:
        try:
            raise torch.OutOfMemoryError
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    assert devices.lacked_memory(later.value)
    assert not devices.lacked_memory(RuntimeError("shapes do not fit")) and not devices.lacked_memory(None)
    assert not devices.lacked_memory(ValueError("out of memory"))


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
    """Groups are asked for each step by itself, so that steps can be counted and made to fail."""
    monkeypatch.setattr(engine, "APART", 1)


STEP = Group.take
RUNS = [helpers.train(replicate=r, epochs=2) for r in range(7)]


def small_device(fits, at=0, log=None):
    """Takes steps of groups of `fits` replicas at the most, from the step with number `at` of a group on."""

    def run(self, course):
        self.steps = getattr(self, "steps", -1) + 1
        if self.replicas > fits and self.steps >= at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if log is not None:
            os.write(log, f"{self.replicas}\n".encode())
        return STEP(self, course)

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The bits of a store where all fitted."""
    store = helpers.store(tmp_path_factory.mktemp("undisturbed") / "runs")
    lab.compute(RUNS, store, "cpu")
    return helpers.bits(store.root)


def provenance(store, *names):
    facts = [store.read_json(run.key, "provenance.json") for run in RUNS]
    return [tuple(each.get(name) for name in names) for each in facts]


class Counter:
    def __init__(self, stop_at=10**9):
        self.begun, self.epochs, self.trainings, self.asked, self.stop_at = [], 0, 0, 0, stop_at

    def begin(self, *numbers):
        self.begun.append(numbers)

    def advance(self, epochs, trainings):
        self.epochs += epochs
        self.trainings += trainings

    def stop(self):
        self.asked += 1
        return self.asked >= self.stop_at


@pytest.mark.parametrize("at", [0, 2, 6], ids=["first step", "third step", "second epoch"])
def test_a_group_that_does_not_fit_is_halved(at, store, undisturbed, monkeypatch, caplog):
    monkeypatch.setattr(Group, "take", small_device(2, at))
    watcher = Counter()
    with caplog.at_level(logging.WARNING):
        summary = lab.compute(RUNS, store, "cpu", watcher=watcher)
    assert (summary.trained, watcher.trainings) == (7, 7)
    assert helpers.bits(store.root) == undisturbed
    assert provenance(store, "replicas", "slot", "halved_from") == [
        (2, 0, 7), (2, 1, 7), (2, 0, 7), (2, 1, 7), (2, 0, 7), (2, 1, 7), (1, 0, 7),
    ]  # fmt: skip
    what = r"\(lenet_300_100 on digits, batch size 64, fp32\) does not fit into the memory of cpu \(\d+\.\d GB\)"
    said = [record.getMessage() for record in caplog.records]
    for text, (size, halves) in zip(said, [(7, "4 and 3"), (4, "2 and 2"), (3, "2 and 1")], strict=True):
        assert re.fullmatch(rf"a group of {size} {what}; it trains as {halves} instead", text)
    assert watcher.begun[0] == watcher.begun[1] == (7, 0, 0, 14) and len(watcher.begun) == 4
    assert store.checkpoints() == {} and list((store.root / ".work").iterdir()) == []


def test_what_fits_says_nothing_of_halves(store):
    lab.compute(RUNS, store, "cpu")
    assert provenance(store, "replicas", "halved_from") == [(7, None)] * 7


def test_memory_that_building_a_group_lacks(store, undisturbed, monkeypatch):
    build = Group.__init__

    def lacking(self, trains, *args):
        if len(trains) > 4:
            torch.empty(1 << 50, dtype=torch.uint8)
        build(self, trains, *args)

    monkeypatch.setattr(Group, "__init__", lacking)
    lab.compute(RUNS, store, "cpu")
    assert provenance(store, "replicas", "halved_from") == [(4, 7)] * 4 + [(3, 7)] * 3
    assert helpers.bits(store.root) == undisturbed


def test_nothing_of_a_try_stays_in_memory(store, monkeypatch):
    """Neither the group nor the error holds a tensor when what is not used any more is given back."""
    lanes, alive, start, free = [], [], Lane.__init__, devices.free_memory

    def note(self, *args):
        lanes.append(weakref.ref(self))
        start(self, *args)

    def count():
        free()
        alive.append(sum(lane() is not None for lane in lanes))

    monkeypatch.setattr(Lane, "__init__", note)
    monkeypatch.setattr(devices, "free_memory", count)
    monkeypatch.setattr(Group, "take", small_device(2, 2))
    lab.compute(RUNS, store, "cpu")
    assert alive == [0, 0, 0] and len(lanes) >= 7


def test_stopped_in_a_half_it_goes_on_with_the_same_groups(tmp_path, undisturbed, monkeypatch):
    """Also if there is room for the whole group by then."""
    steps = set()
    for at in (5, 14, 27, 60):
        store = helpers.store(tmp_path / str(at))
        monkeypatch.setattr(Group, "take", small_device(4))
        watcher = Counter(at)
        try:
            lab.compute(RUNS, store, "cpu", watcher=watcher)
            assert provenance(store, "replicas", "halved_from") == [(4, 7)] * 4 + [(3, 7)] * 3
            continue
        except lab.Stopped as stopped:
            left, epochs = stopped.left, stopped.epochs
            assert stopped.summary.trained == watcher.trainings == 7 - left
        members = sorted(len(checkpoint.members) for checkpoint in store.checkpoints().values())
        steps.add(tuple(members))
        monkeypatch.setattr(Group, "take", STEP)
        again = Counter()
        lab.compute(RUNS, store, "cpu", watcher=again)
        assert (again.begun, again.trainings) == ([(7, 7 - left, 0, epochs)], left) and again.epochs == epochs
        assert helpers.bits(store.root) == undisturbed
        expected = [(4, 7)] * 4 + [(3, 7)] * 3 if members else [(7, None)] * 7
        assert provenance(store, "replicas", "halved_from") == expected
    assert steps >= {(), (3, 4), (3,)}


@pytest.mark.parametrize("half", [0, 1], ids=["in the first half", "in the second half"])
def test_killed_in_a_half_it_goes_on_with_the_same_groups(half, store, undisturbed, tmp_path):
    log = tmp_path / "log"
    process = PROCESSES.Process(target=die_in_a_half, args=(str(store.root), str(log), 8 * half + 3), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert log.read_text().split() == ["4"] * (8 if half else 3) + ["3"] * (3 * half)
    found = sorted(len(checkpoint.members) for checkpoint in store.checkpoints().values())
    assert found == ([3] if half else [3, 4])
    lab.compute(RUNS, store, "cpu")
    assert helpers.bits(store.root) == undisturbed
    assert provenance(store, "replicas", "halved_from") == [(4, 7)] * 4 + [(3, 7)] * 3


def die_in_a_half(root, log, steps):
    torch.set_num_threads(1)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step = small_device(4, log=out)

    def run(self, course):
        if Path(log).read_text().count("\n") == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, course)

    engine.APART = 1
    Group.take = run
    lab.compute(RUNS, Store(root), "cpu", checkpoint_seconds=1000)


@pytest.mark.parametrize(("fits", "first"), [(4, [4, 3]), (2, [2, 2, 3])], ids=["of a half", "of a quarter"])
def test_killed_after_a_real_checkpoint(fits, first, store, undisturbed, monkeypatch):
    """The part says what it came from after it went on, too, and what it is half of is not tried again."""
    write = trainer._Group._checkpoint

    def killed(self):
        write(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Group, "take", small_device(fits))
        patch.setattr(trainer._Group, "_checkpoint", killed)
        lab.compute(RUNS, store, "cpu", checkpoint_seconds=0)
    done = max(checkpoint.iteration for checkpoint in store.checkpoints().values())
    assert sorted(len(checkpoint.members) for checkpoint in store.checkpoints().values()) == sorted(first) and done
    steps = []
    monkeypatch.setattr(Group, "take", lambda self, *args: steps.append(self.replicas) or STEP(self, *args))
    lab.compute(RUNS, store, "cpu")
    assert sorted(steps) == sorted([fits] * (8 - done) + [size for size in first[1:] for _ in range(8)])
    assert helpers.bits(store.root) == undisturbed
    assert provenance(store, "replicas", "halved_from") == [(size, 7) for size in first for _ in range(size)]


def test_a_single_training_that_does_not_fit(store, undisturbed, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(Group, "take", small_device(0))
        lab.compute(RUNS[:2], store, "cpu")
    assert re.fullmatch(
        r"a single training \(lenet_300_100 on digits, batch size 64, fp32\) does not fit into the memory of cpu "
        r"\([\d.]+ GB\); it needs a smaller batch_size, precision: bf16, or a device with more memory that is free",
        str(error.value),
    )
    assert sorted(len(checkpoint.members) for checkpoint in store.checkpoints().values()) == [1, 1]
    assert list((store.root / ".claims").iterdir()) == []
    lab.compute(RUNS, store, "cpu")
    assert helpers.bits(store.root) == undisturbed
    assert provenance(store, "replicas", "halved_from")[:2] == [(1, 2)] * 2


@pytest.mark.parametrize("same_process", [True, False])
def test_a_group_with_a_checkpoint_is_not_halved(same_process, store, undisturbed, monkeypatch):
    seconds = 0 if same_process else 1000
    with monkeypatch.context() as patch:
        if not same_process:
            with pytest.raises(lab.Stopped):
                lab.compute(RUNS, store, "cpu", watcher=Counter(15))
        patch.setattr(Group, "take", small_device(4, 5 if same_process else 0))
        before = list(store.checkpoints())
        with pytest.raises(InputError, match="a group of 7 .* does not fit .* any more; its") as error:
            lab.compute(RUNS, store, "cpu", checkpoint_seconds=seconds)
    ((name, checkpoint),) = store.checkpoints().items()
    assert len(checkpoint.members) == 7 and checkpoint.iteration > 0 and before == [name] * (not same_process)
    path = Path(str(error.value).rpartition("by removing ")[2])
    assert path.exists()
    steps = []
    monkeypatch.setattr(Group, "take", lambda self, *args: steps.append(self.replicas) or STEP(self, *args))
    lab.compute(RUNS, store, "cpu")
    assert steps == [7] * (8 - checkpoint.iteration)
    assert helpers.bits(store.root) == undisturbed


def test_an_error_of_another_kind_is_no_lack_of_memory(store, monkeypatch):
    def broken(self, course):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Group, "take", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        lab.compute(RUNS, store, "cpu")
    assert store.checkpoints() == {}


def test_halves_where_bits_depend_on_the_group(store, undisturbed, monkeypatch):
    """What is there already is trained beside, in the same halves, and a half that nothing is wanted of is not."""
    monkeypatch.setattr(devices, "repeats", lambda device: False)
    monkeypatch.setattr(devices, "capacity", lambda train, device: 32)
    monkeypatch.setattr(Group, "take", small_device(2))
    lab.compute(RUNS, store, "cpu")
    assert provenance(store, "replicas", "slot")[2:4] == [(2, 0), (2, 1)]
    for run in (RUNS[1], RUNS[3]):
        store.discard(run.key)
    sizes, halve = [], trainer._Group.halve

    def note(self, wanted):
        halves = halve(self, wanted)
        sizes.append((len(self.members), len(wanted), [len(half) for half in halves]))
        return halves

    with monkeypatch.context() as patch, pytest.raises(lab.Stopped):
        patch.setattr(trainer._Group, "halve", note)
        lab.compute(RUNS, store, "cpu", watcher=Counter(20))
    assert sizes == [(7, 2, [4]), (4, 2, [2, 2])]
    monkeypatch.setattr(Group, "take", small_device(10))
    assert 0 < lab.compute(RUNS, store, "cpu").trained <= 2
    assert provenance(store, "replicas", "slot", "halved_from")[1::2][:2] == [(2, 1, 7)] * 2
    assert helpers.bits(store.root) == undisturbed


# --- on a GPU -------------------------------------------------------------------------------------------------


def compute_deterministic(root, replicates):
    """Train LeNets and small ResNets; returns what the store says of where."""
    nets = (helpers.LENET, helpers.narrow(8))
    values = [helpers.train(net, replicate=r, epochs=4) for net in nets for r in replicates]
    store = Store(root)
    lab.compute(values, store, "cuda", deterministic=True)
    return {value.key: store.read_json(value.key, "provenance.json") for value in values}


@pytest.mark.gpu
def test_deterministic_repeats_its_bits_alone_and_in_a_group(tmp_path):
    found = []
    for number, replicates in enumerate(([0], [0], [1, 0, 2])):
        store = helpers.store(tmp_path / str(number) / "runs")
        facts = in_a_process(compute_deterministic, str(store.root), replicates)
        assert {(each["device"], each["deterministic"]) for each in facts.values()} == {("cuda", True)}
        found.append((facts.keys(), helpers.bits(store.root)))
    keys, expected = found[0]
    for _, bits in found[1:]:
        for name in expected:
            if name.partition("/")[0] in keys:
                assert bits[name] == expected[name], name


def compute_in(root, limit):
    """Train 16 ResNets of whole-set batches in so many bytes of the GPU; returns what the store says of groups."""
    torch.cuda.set_per_process_memory_fraction(limit / devices.memory(GPU))
    net, dataset = Net(name="resnet20"), Data(name="digits")
    values = [helpers.train(net, dataset, r, epochs=4, batch_size=1297) for r in range(16)]
    store = Store(root)
    lab.compute(values, store, "cuda")
    facts = [store.read_json(value.key, "provenance.json") for value in values]
    return [(each.get("replicas"), each.get("halved_from")) for each in facts]


@pytest.mark.gpu
def test_a_group_that_does_not_fit_into_a_gpu_is_halved(tmp_path):
    """Captured steps keep their memory; one such training does not fit into 1 GB, and 16 do not into 4 GB."""
    facts = in_a_process(compute_in, str(helpers.store(tmp_path / "runs").root), 4 * 10**9)
    assert {halved_from for _, halved_from in facts} == {16}
    assert {size for size, _ in facts} <= {1, 2, 4, 8}
