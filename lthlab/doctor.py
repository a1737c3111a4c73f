"""What stands in the way of computing on this machine and in this store; and what a network is made of."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lthlab import catalog
from lthlab.datasets import data_home, data_sets
from lthlab.errors import InputError
from lthlab.files import Files, StoreError
from lthlab.kernels import THREAD_VARIABLES, cores
from lthlab.parts import Data, Net, Recipe
from lthlab.store import Damaged, Store
from lthlab.values import Fresh, Train

PYTHON = (3, 11)
DRIVER = Path("/proc/driver/nvidia/version")
LITTLE_DISK = 1 << 30
NO_DISK = 100 << 20
SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
        What was looked at.
    state : str
        'ok'; 'warning': something does not work, or work would be lost; 'problem': nothing can be computed, or
        results are damaged.
    text : str
        What was found.
    remedy : str
        What to do about it; empty if it is ok.
    """

    what: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


def examine(store: Store) -> Iterator[Finding]:
    """Look at this machine and at a store; nothing is changed, and a store that is not there is not made."""
    yield _python()
    yield from _packages()
    yield from _devices()
    yield from _cores()
    yield _git()
    yield from _data()
    place = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    writable = _writable(store, place)
    yield writable
    if writable.state == "ok":
        yield _disk(place)
        yield _locks(place)
    yield from _results(store)


# --- a network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFacts:
    """A layer of a network.

    Attributes
    ----------
    name, role : str
        Its name in states; 'first', 'body', 'shortcut', 'depthwise' or 'head', which policies go by, or 'BatchNorm'.
    shape : tuple of int
        Of its weights.
    parameters : int
        Number of its weights, biases included.
    prunable : int
        Number of those that the policy lets be pruned.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    parameters: int
    prunable: int


def network(net: Net, data: Data, policy: str) -> list[LayerFacts]:
    """List the layers of a network, and what a policy lets be pruned.

    Parameters
    ----------
    net, data : Net, Data
        The network; the data set whose images and classes it fits.
    policy : str
        One of `lthlab.parts.POLICIES`.

    Raises
    ------
    InputError
        If the images are too small, or the policy does not fit the network.
    """
    from lthlab import layers, nets

    prunable = nets.prunable(net, data, policy)
    return [
        LayerFacts(
            name,
            "BatchNorm" if isinstance(layer, layers.BatchNorm2d) else layer.role,
            tuple(layer.get_parameter("weight").shape),
            sum(parameter.numel() for parameter in layer.parameters()),
            prunable[f"{name}.weight"].numel() if f"{name}.weight" in prunable else 0,
        )
        for name, layer in nets.build(net, data, device="meta").layers()
    ]


# --- this machine ---------------------------------------------------------------------------------------------


def _python() -> Finding:
    text = f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    if sys.version_info < PYTHON:
        return Finding("Python", "problem", text, f"use Python {'.'.join(map(str, PYTHON))} or later")
    return Finding("Python", "ok", text)


def _packages() -> Iterator[Finding]:
    try:
        lines = importlib.metadata.requires("lthlab") or []
    except importlib.metadata.PackageNotFoundError:
        remedy = "in the folder of the package: python -m pip install -e '.[notebooks]'"
        yield Finding("packages", "warning", "lthlab is not installed, so what it needs is not known", remedy)
        return
    needed: dict[str, list[tuple[str, str]]] = {"": [], "notebooks": []}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:; extra == ['\"](\w+)['\"])?", line)
        if match and (match[3] or "") in needed:
            needed[match[3] or ""].append((match[1], match[2]))
    yield _installed("packages to compute", needed[""], "problem", "computing needs them")
    yield _installed("packages for notebooks", needed["notebooks"], "warning", "only run, publish and notebooks do")


def _installed(what: str, needed: list[tuple[str, str]], state: Literal["warning", "problem"], use: str) -> Finding:
    wrong, command = [], []
    for name, lowest in needed:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if _release(version) < _release(lowest):
            wrong.append(f"{name} {version or 'missing'}")
            command.append(f"'{name}>={lowest}'")
    if wrong:
        return Finding(what, state, f"{', '.join(wrong)}; {use}", f"python -m pip install {' '.join(command)}")
    return Finding(what, "ok", f"all {len(needed)} present")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[a-zA-Z+!-]", version)[0])))


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "problem", f"cannot be imported: {error}", "python -m pip install torch")
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding("torch", "ok", f"{torch.__version__}, built for {built}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        facts = torch.cuda.get_device_properties(number)
        able = "TF32 and bf16" if facts.major >= 8 else "neither TF32 nor bf16"
        text = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, {able}"
        known = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
        if any(arch // 10 == facts.major and arch % 10 <= facts.minor for arch in known):
            yield Finding(f"cuda:{number}", "ok", f"{text}; {_groups(facts.total_memory)}")
        else:
            remedy = "use --device cpu, or a torch that is built for it"
            text = f"{text}: this torch has no code for compute capability {facts.major}.{facts.minor}"
            yield Finding(f"cuda:{number}", "problem", text, remedy)
    if not count:
        yield _no_gpu(built, " ".join(str(each.message) for each in caught))
    yield _allocator()


def _groups(memory: int) -> str:
    """How large groups are on a GPU, for one example."""
    from lthlab import devices

    recipe = Recipe(epochs=1, batch_size=128, lr=0.1)
    example = Train(Net(name="resnet20"), Data(name="cifar10"), recipe, Fresh(0), 0)
    return f"groups of at most {devices.fitting(example, memory)} of resnet20 on cifar10, batch size 128"


def _allocator() -> Finding:
    from lthlab import devices

    try:
        return Finding("allocator", "ok", devices.allocator())
    except InputError as error:
        return Finding("allocator", "problem", str(error), f"unset {devices.ALLOCATOR}")


def _no_gpu(built: str, said: str) -> Finding:
    driver = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text()) if DRIVER.exists() else None
    if driver is None:
        return Finding("GPU", "ok", "none here; trainings run on the CPU")
    text = f"there is an NVIDIA driver {driver[0]}, but torch, built for {built}, finds no GPU"
    if said:
        text += f" ({said.splitlines()[0].partition('. ')[0]})"
    remedy = "install a torch built for a CUDA version of this driver, or a newer driver; --device cpu works"
    return Finding("GPU", "warning", text, remedy)


def _cores() -> Iterator[Finding]:
    usable, present = cores(), os.cpu_count() or 1
    of = f" of {present}" if present != usable else ""
    yield Finding("cores", "ok", f"{usable}{of} usable")
    for name in THREAD_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > usable:
            text = f"{name} is {value} with {usable} cores; threads that wait for each other are far slower"
            yield Finding("threads", "warning", text, f"unset {name}")


def _git() -> Finding:
    if shutil.which("git"):
        return Finding("git", "ok", "present")
    return Finding("git", "warning", "missing; results will not say which commit made them", "install git")


def _data() -> Iterator[Finding]:
    there = [name for name in data_sets() if catalog.is_installed(name)]
    sound = []
    for name in there:
        try:
            catalog.installed(name)
            sound.append(name)
        except InputError as error:
            yield Finding("data sets", "warning", str(error), catalog.remedy(name))
    if sound or not there:
        text = f"installed in {data_home()}: {', '.join(sound) or 'none'}; `lthlab data list` shows all there are"
        yield Finding("data sets", "ok", text)


# --- the store ------------------------------------------------------------------------------------------------


def _writable(store: Store, place: Path) -> Finding:
    if place != store.root:
        if place.is_dir() and os.access(place, os.W_OK):
            return Finding("store", "ok", f"{store.root} is not there yet; the first command that computes makes it")
        return Finding("store", "problem", f"{store.root} cannot be made in {place}", "choose another with --runs")
    try:
        store.check_writable()
    except StoreError as error:
        return Finding("store", "problem", str(error), "choose another with --runs, or mend its permissions")
    return Finding("store", "ok", f"{store.root} can be written to")


def _disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free"
    if free >= LITTLE_DISK:
        return Finding("disk", "ok", text)
    return Finding("disk", "problem" if free < NO_DISK else "warning", text, "make room, or choose another --runs")


def _locks(place: Path) -> Finding:
    folder = Path(tempfile.mkdtemp(prefix=".lthlab-", dir=place))
    try:
        first = Files().lock(folder / "lock")
        second = Files().lock(folder / "lock")
        for lock in (first, second):
            if lock is not None:
                lock.release()
    except OSError as error:
        text = f"the file system of {place} has no locks ({error.strerror})"
        return Finding("locks", "problem", text, "choose a store on another file system with --runs")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if first is not None and second is None:
        return Finding("locks", "ok", "work; several processes can share the store")
    text = f"locks of {place} do not exclude each other: processes that share the store repeat each other's work"
    return Finding("locks", "warning", text, "one process at a time, or a store on another file system")


def _results(store: Store) -> Iterator[Finding]:
    keys, wrong = store.keys(), []
    for key in keys:
        wrong += store.verify(key)
    for name in store.studies():
        try:
            store.study(name)
        except Damaged as damage:
            wrong.append(damage)
    if wrong:
        text = "; ".join(map(str, wrong[:SHOWN])) + f"; and {len(wrong) - SHOWN} more" * (len(wrong) > SHOWN)
        remedy = "the command that computed it computes what is damaged again; remove what is no part of a result"
        yield Finding("results", "problem", f"damaged: {text}", remedy)
    elif keys:
        yield Finding("results", "ok", f"{len(keys)} in {len(store.studies())} studies, all checksums right")
