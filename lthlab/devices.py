"""What trainings may use of a device: which there is, its arithmetic, its memory, and how large a group may be."""

import ctypes
import functools
import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthlab import nets, replicas
from lthlab.errors import InputError, nearest
from lthlab.lanes import MOMENTS, evaluation_batch, normalised_once
from lthlab.parts import Data, Net, device_names
from lthlab.values import Narrow, Train

ALLOCATOR = "LTHLAB_ALLOCATOR"
"""Variable of the environment; 'system' leaves the allocator of the CPU's memory as it is."""

_CUBLAS, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # what cuBLAS needs to repeat its bits
_QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS", "32"  # streams that a GPU can tell apart, read when CUDA starts; 8 by default
_OWN_CHOICE = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_OTHERS = ("jemalloc", "tcmalloc", "mimalloc")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, from malloc.h

_LARGEST, _SHARE, _SLACK = 32, 0.8, 1.25
_ALIVE = 3  # maps alive beside those that are saved: a gradient, the one it becomes, and that of a shortcut
_CONTEXT, _STREAM = 1 << 30, 64 << 20  # bytes of CUDA and its libraries' code; of the matrix library for each stream
_WIDTHS = {"bf16": 2, "fp32": 4, "fp64": 8}
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "STATUS_ALLOC_FAILED")


def device_named(name: str) -> torch.device:
    """Find a device; 'auto' is the first GPU, or the CPU where there is none.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ["auto", "cpu", *["cuda"] * torch.cuda.is_available()]
    allowed += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if name not in allowed:
        raise InputError(f"device '{name}' is not here; {nearest(name, allowed)}")
    return torch.device(name)


def devices_named(names: str) -> list[torch.device]:
    """Find a device, or several that share each training; see `lthlab.parts.device_names`, which raises too."""
    return [device_named(name) for name in (device_names(names) if "," in names else [names])]


# --- arithmetic -----------------------------------------------------------------------------------------------


@contextmanager
def settings(device: torch.device, deterministic: bool = False) -> Iterator[None]:
    """Compute within as results ask for, whatever was set before; what was set before is restored.

    fp32 is IEEE fp32: no TF32 in matrix products and convolutions; where torch's old names of that setting were used
    before, such as `torch.set_float32_matmul_precision`, reading them within may be an error of torch.

    On a GPU, cuDNN times its kernels and takes the fastest, unless `deterministic`: then only kernels are used that
    repeat their bits, and an operation that has none is an error, as it is where
    `torch.use_deterministic_algorithms` was switched on before. On a CPU bits repeat in any case, and the allocator
    keeps large blocks (see `allocator`).

    What lasts for the rest of the process: what the allocator was told, and the variables CUBLAS_WORKSPACE_CONFIG and
    CUDA_DEVICE_MAX_CONNECTIONS (unless it is set), which CUDA and its libraries read when they start.

    Parameters
    ----------
    device : torch.device
        Where to compute.
    deterministic : bool, optional
        Whether the same computation has to give the same bits on a GPU too.

    Raises
    ------
    InputError
        If it is too late to be deterministic, since CUDA was started without CUBLAS_WORKSPACE_CONFIG; or if the
        variable LTHLAB_ALLOCATOR has a value that it cannot have.
    """
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    chosen: list[tuple[Any, str, object]] = [(part, "fp32_precision", "ieee") for part in parts]
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    if device.type == "cpu":
        _keep_large_blocks()
        deterministic = False
    else:
        chosen.append((backends.cudnn, "benchmark", not deterministic))
        os.environ.setdefault(*_QUEUES)
    if deterministic:
        _repeat_products()
        chosen += [(backends.cudnn, "deterministic", True)]
        chosen += [(torch.utils.deterministic, "fill_uninitialized_memory", False)]  # costs time, changes nothing
    former = [(part, name, getattr(part, name)) for part, name, _ in chosen]
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for part, name, value in chosen:
            setattr(part, name, value)
        if deterministic:
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        for part, name, value in former:
            setattr(part, name, value)
        if deterministic:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)


def repeats(device: torch.device) -> bool:
    """Whether, within `settings`, a replica's bits can be repeated and do not depend on its group."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()


def _repeat_products() -> None:
    """Have cuBLAS repeat its bits, if it is not too late for that."""
    if os.environ.get(_CUBLAS) in _WORKSPACES:
        return
    if torch.cuda.is_initialized():
        found = f"it is '{os.environ[_CUBLAS]}'" if _CUBLAS in os.environ else "it is not set"
        raise InputError(
            f"deterministic: this process uses CUDA already, and {_CUBLAS} has to be set before; {found}, allowed: "
            f"{', '.join(_WORKSPACES)}. Compute in a new process, or set it before this one starts"
        )
    os.environ[_CUBLAS] = _WORKSPACES[0]


# --- memory ---------------------------------------------------------------------------------------------------


def allocator() -> str:
    """Say which allocator the CPU's memory comes from, and whether `settings` has it keep large blocks.

    glibc gives every block of some size back to the system when it is freed, and maps and clears new pages for the
    next one: for the activations of convolutions that happens at every step. `settings` tells it not to, for the rest
    of the process; then freed memory is used again and stays with the process until its end. It does not where the
    variables MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ or GLIBC_TUNABLES are set, where LTHLAB_ALLOCATOR is 'system',
    and where the allocator is another one (musl, macOS, or preloaded jemalloc, tcmalloc or mimalloc).

    Raises
    ------
    InputError
        If LTHLAB_ALLOCATOR has another value.
    """
    return _allocator()[0]


def _allocator() -> tuple[str, bool]:
    """Name of the allocator, and whether it may be told to keep large blocks."""
    asked = os.environ.get(ALLOCATOR, "")
    if asked not in ("", "system"):
        raise InputError(f"{ALLOCATOR} is '{asked}'; {nearest(asked, ['system'])}, or leave it out")
    for name in _OTHERS:
        if name in os.environ.get("LD_PRELOAD", ""):
            return name, False
    library = None
    with suppress(AttributeError, OSError, ValueError):  # another system, or another C library
        library = os.confstr("CS_GNU_LIBC_VERSION")
    if not library:
        return "the system's", False
    for name in (ALLOCATOR, *_OWN_CHOICE):
        if os.environ.get(name):
            return f"{library}, as it is: {name} is set", False
    return f"{library}, keeps large blocks", True


def _keep_large_blocks() -> None:
    if _allocator()[1]:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def memory(device: torch.device) -> int:
    """Count the bytes of memory that a device has in all; for the CPU, those of the machine."""
    if device.type == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_memory() -> None:
    """Let go of memory that nothing uses any more, so that other sizes of tensors fit into it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def lacked_memory(error: BaseException | None) -> bool:
    """Whether an error is one of a device that has too little memory, or came of one."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


# --- size of groups -------------------------------------------------------------------------------------------


def capacity(train: Train, device: torch.device) -> int:
    """Largest number of replicas that train together, by a fixed rule.

    On a CPU 24 where they are stacked and 8 where they run one after the other. On a GPU as by `fitting`, for all the
    memory that it has: what others use of it at the moment must not change how groups are cut.
    """
    if device.type == "cpu":
        return 24 if replicas.form_of(train.net, train.data) == "stacked" else 8
    return fitting(train, memory(device))


def fitting(train: Train, total: int) -> int:
    """Largest group that fits into the memory of a GPU: a power of two, at most 32, and one where none fits.

    A group may fill 80 % of the memory, so that the driver, a desktop and fragments have the rest. Counted are, in all,
    1 GiB for CUDA itself, and all images: bytes, but numbers where they are normalised once. For each replica:

    - what a forward pass saves for its backward pass, counted exactly on torch's `meta` device, and three times the
      largest tensor of it for gradients on their way; once more for the smaller batch at the end of an epoch, if there
      is one, since steps that are not captured yet cannot use the memory of those that are;
    - three such tensors of as many images as are evaluated at a time;
    - a quarter on top of these: the allocator rounds blocks up by as much as 2 MB, and convolutions need workspace;
    - weights, and as much for each of: gradients, once more as they are computed, moments of the optimizer, decay, and
      scratch; and for its stream 32 MiB of workspace for the matrix library in each of two threads, that of the forward
      pass and autograd's;
    - two batches of bytes, where images are streamed; they are not counted otherwise.

    With bf16, what is saved is half of that in fp32; weights stay fp32, and there is a copy of them in bf16.

    Parameters
    ----------
    train : Train
        One of the group.
    total : int
        Bytes of memory of the GPU.
    """
    number = max(1, int((_SHARE * total - _CONTEXT - _images(train)) / _replica(train)))
    return min(_LARGEST, 1 << number.bit_length() - 1)


def _images(train: Train) -> int:
    """Bytes that images take on a GPU, whatever the number of replicas."""
    data, width = train.data, max(_WIDTHS[train.recipe.precision], 4)
    if data.source.streamed:
        return 0
    pixels = math.prod(data.facts.shape)
    parts = [(data.val_size * pixels, "none"), (data.facts.test * pixels, "none")]
    parts += [] if data.streamed else [(data.images * pixels, data.augment)]
    return sum(numbers * (width if normalised_once(numbers, augment) else 1) for numbers, augment in parts)


def _replica(train: Train) -> float:
    """Bytes that one replica takes on a GPU; see `fitting`."""
    width, images, size = _WIDTHS[train.recipe.precision], train.data.images, train.recipe.batch_size
    passes = [_saved(train.net, train.data, batch) for batch in {min(size, images), images % size} - {0}]
    pair = _saved(train.net, train.data, 2)  # for BatchNorm, a single image may have too few numbers
    evaluated = evaluation_batch(train.data.facts.shape)
    numbers = sum(found.all + _ALIVE * found.largest for found in passes) + _ALIVE * evaluated * pair.largest // 2
    copies = 5 + MOMENTS[train.recipe.optimizer]
    weights = pair.weights * (copies * max(width, 4) + width * (width < 4))
    streamed = 2 * size * math.prod(train.data.facts.shape) * train.data.streamed
    return _SLACK * width * numbers + weights + streamed + _STREAM


class _Saved(NamedTuple):
    """Numbers that a forward pass saves for its backward pass, in all and in the largest tensor; weights beside."""

    all: int
    largest: int
    weights: int


@functools.cache
def _saved(net: Net | Narrow, data: Data, batch: int) -> _Saved:
    network = nets.build(net, data, 1, "meta").train()
    weights = list(network.parameters())
    own = {tensor.untyped_storage()._cdata for tensor in (*weights, *network.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage  # kept, lest another one gets its place and number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network(torch.zeros(batch, *data.facts.shape, device="meta"))
        F.cross_entropy(logits, torch.zeros(batch, dtype=torch.int64, device="meta"))
    sizes = [storage.nbytes() // 4 for number, storage in found.items() if number not in own]
    return _Saved(sum(sizes), max(sizes), sum(weight.numel() for weight in weights))
