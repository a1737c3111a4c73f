"""All figures that are measured: names, units, targets, and in what words docs/performance.md presents them."""

from dataclasses import dataclass

from lthlab.errors import InputError, nearest


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark yields.

    Attributes
    ----------
    name : str
        Its name in `benchmarks/results.json`.
    unit : str
        'times' for a ratio of speeds, else what is counted.
    what : str
        What it says, in words.
    at_least, at_most : float, optional
        The target.
    """

    name: str
    unit: str
    what: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """Figures that are measured together, by the function `measure` of the module `benchmarks.<name>`.

    Attributes
    ----------
    name, title, text : str
        Name of the module; heading and prose of its section.
    figures : tuple of Figure
        What it yields.
    """

    name: str
    title: str
    text: str
    figures: tuple[Figure, ...]


# --- engine and groups ----------------------------------------------------------------------------------------

_DATALOADER = Benchmark(
    "dataloader",
    "One ResNet-20, against torch with a DataLoader",
    "Images per second of whole training steps at CIFAR size (3 × 32 × 32, batch 128, crop and flip, SGD with "
    "momentum). The baseline is what a user would write: torchvision's PIL transforms, a `DataLoader`, an ordinary "
    "network, `torch.optim.SGD`. It runs in a process of its own without our settings of the allocator, with as many "
    "threads as ours, with 0 and with 2 worker processes, and the faster of the two counts. Processes take turns; the "
    "one that waits is blocked. Ours are whole steps of `lthlab.engine.Training` with one replica.",
    (
        Figure("resnet20_fp32_vs_dataloader", "times", "ours in fp32 / the baseline (aim 1.6)", at_least=1.4),
        Figure("resnet20_bf16_vs_dataloader", "times", "ours in bf16 / the baseline in fp32 (aim 2.5)", at_least=1.9),
        Figure("resnet20_fp32_images_per_second", "images/s", "ours in fp32"),
        Figure("resnet20_bf16_images_per_second", "images/s", "ours in bf16"),
        Figure("dataloader_workers0_images_per_second", "images/s", "the baseline, num_workers=0"),
        Figure("dataloader_workers2_images_per_second", "images/s", "the baseline, num_workers=2"),
    ),
)

_SINGLE = Benchmark(
    "single",
    "One replica, against a bare loop over tensors",
    "What the engine costs beyond the arithmetic: one replica against the shortest loop that does the same steps "
    "(index into a tensor of bytes, normalise, cross-entropy, backward, `torch.optim.SGD`; no augmentation, no "
    "evaluation, no loader), in the same process with the same settings. The loop uses all threads, as torch does by "
    "itself, unless one is said; the engine trains so small a fully connected network on one, and needs no autograd "
    "for it.",
    (
        Figure("engine_single_vs_plain_loop_lenet_digits", "times", "LeNet-300-100 on digits, batch 64", at_least=0.95),
        Figure("engine_single_vs_plain_loop_lenet_digits_one_thread", "times", "the same, the loop on one thread too"),
        Figure("engine_single_vs_plain_loop_resnet20_32", "times", "ResNet-20 at 32 × 32, batch 128", at_least=0.95),
    ),
)

_GROUPS = Benchmark(
    "groups",
    "Groups, against the same trainings one by one",
    "Speed for each replica of a group in the form that the rule chooses, over that of the same trainings one after "
    "the other, each alone in sequential form (small fully connected networks on one thread, which is faster for one "
    "of them). Fp32, batch 64, no augmentation.\n\n"
    "Stacked wins wherever one network leaves the cores idle: fully connected networks, and convolutions of images up "
    "to 16 × 16, where two lanes of stacked replicas, each on a core of its own, beat one network on both. At 32 × 32 "
    "one network fills both cores, and replicas take turns, as do those whose last maps have an odd number of places "
    "(VGG-16 and MobileNet-v1 at 16 × 16), since the bits of a stack would depend on its size.\n\n"
    "The target of `lenet_group16_vs_sequential` is older than steps without autograd, which made a replica alone "
    "about 1.6 times as fast and the group about 1.4 times, so that the ratio falls. Alone, a step takes about "
    "0.28 ms, 0.18 of it for products; three times as fast would leave a group 1.5 ms a step, and the products of each "
    "of its two lanes take 1.4 ms. Against plain torch, which is always the same, the group is measured in the second "
    "line: 16 bare loops, as of the section above, one after the other.",
    (
        Figure("lenet_group16_vs_sequential", "times", "16 × LeNet-300-100 on digits", at_least=3.0),
        Figure("lenet_group16_vs_plain_loop", "times", "the same group / 16 bare loops of plain torch"),
        Figure("resnet20_digits_group8_vs_sequential", "times", "8 × ResNet-20 on digits", at_least=1.6),
        Figure(
            "resnet8_width8_digits_group9_vs_sequential", "times", "9 × ResNet-8 of width 8 on digits", at_least=0.95
        ),
        Figure("resnet8_16_group8_vs_sequential", "times", "8 × ResNet-8 at 16 × 16", at_least=0.95),
        Figure("resnet20_32_group2_vs_sequential", "times", "2 × ResNet-20 at 32 × 32", at_least=0.95),
        Figure(
            "resnet18_width8_16_group8_vs_sequential", "times", "8 × ResNet-18 of width 8 at 16 × 16", at_least=0.95
        ),
        Figure("resnet18_32_group2_vs_sequential", "times", "2 × ResNet-18 at 32 × 32", at_least=0.95),
        Figure("vgg16_16_group2_vs_sequential", "times", "2 × VGG-16 at 16 × 16", at_least=0.95),
        Figure("vgg16_32_group2_vs_sequential", "times", "2 × VGG-16 at 32 × 32", at_least=0.95),
        Figure("mobilenet_v1_16_group2_vs_sequential", "times", "2 × MobileNet-v1 at 16 × 16", at_least=0.95),
        Figure("mobilenet_v1_32_group2_vs_sequential", "times", "2 × MobileNet-v1 at 32 × 32", at_least=0.95),
        Figure("conv4_digits_group8_vs_sequential", "times", "8 × Conv-4 on digits", at_least=0.95),
        Figure("conv6_16_group4_vs_sequential", "times", "4 × Conv-6 at 16 × 16", at_least=0.95),
        Figure("lenet_28_group16_vs_sequential", "times", "16 × LeNet-300-100 at 28 × 28", at_least=0.95),
        Figure("lenet_32_group16_vs_sequential", "times", "16 × LeNet-300-100 at 3 × 32 × 32", at_least=0.95),
    ),
)

# --- studies and masks ----------------------------------------------------------------------------------------

_CHAINS = Benchmark(
    "chains",
    "A study from beginning to end",
    "`lthlab compute` of iterative magnitude pruning of LeNet-300-100 on digits: 3 seeds × 3 learning rates, 10 levels "
    "(the dense one included) of 20 epochs, batch 64, in a new process and a new store each time.",
    (
        Figure("lenet_imp_nine_chains_seconds", "s", "`lthlab.lab.compute_study`, wall time", at_most=15),
        Figure("lenet_imp_nine_chains_command_seconds", "s", "the same with start of the process and imports"),
    ),
)

CASES = {
    "gaussian": "normal",
    "zeros": "80 % exact zeros",
    "masked": "80 % exact zeros, pruned before",
    "ties": "rounded to bf16, so with ties",
}
"""Weights that thresholds are found for."""
SIZES = {"270k": 270_000, "25m": 25_000_000, "100m": 100_000_000}
_MASKS = Benchmark(
    "thresholds",
    "Masks of exact counts",
    "`lthlab.masks.magnitude` on fp32 weights in 20 layers, which prunes a fifth of what is left; the slowest of four "
    "cases counts.",
    tuple(
        figure
        for size, count in SIZES.items()
        for figure in (
            Figure(
                f"threshold_{size}_seconds",
                "s",
                f"{count:,} weights, the slowest case",
                at_most=0.35 if size == "25m" else None,
            ),
            *(Figure(f"threshold_{size}_{case}_seconds", "s", words) for case, words in CASES.items()),
        )
    ),
)

CORRELATED = {
    "dense": "dense, p = 0.1",
    "masked": "16.8 % of the weights left, p = 0.1",
    "pruned_once": "80 % of the weights left, p = 0.1",
    "half": "dense, p = 0.5",
}
"""Networks that R_p is found for."""
_CORRELATION = Benchmark(
    "correlation",
    "The correlation indicator",
    "`lthlab.weights.correlation_indicator` on two networks of the layers of ResNet-50, 25.5 million fp32 weights in "
    "54 layers; the slowest of four cases counts.",
    (
        Figure("correlation_25m_seconds", "s", "the slowest case", at_most=2),
        *(Figure(f"correlation_25m_{case}_seconds", "s", words) for case, words in CORRELATED.items()),
    ),
)

_SURFACES = Benchmark(
    "surfaces",
    "Loss surfaces",
    "`lthlab.landscape.surface` of a random plane about ResNet-20 on 500 digits (8 × 8), fp32: loss and accuracy of "
    "every point of a grid. Each core computes a point by itself, so that its bits do not depend on those beside it. "
    "With `recompute`, BatchNorm's statistics are computed anew at each point, in one more pass over the images.",
    (
        Figure("surface_51_fixed_seconds", "s", "51 × 51 points, BatchNorm fixed", at_most=60),
        Figure("surface_25_recompute_seconds", "s", "25 × 25 points, BatchNorm recomputed", at_most=60),
    ),
)

# --- GPU ------------------------------------------------------------------------------------------------------

GPU_NETS = {
    "resnet20": (64, 128), "lenet_300_100": (64,), "resnet18": (64,), "vgg16": (64,), "mobilenet_v1": (64,)
}  # fmt: skip
"""Networks that are measured on a GPU, with their batch sizes; of 32 × 32 images but for LeNet, which takes digits."""
GROUP_SIZES = (1, 2, 4, 8, 16, 32)
LARGE = ("resnet18", "vgg16", "mobilenet_v1")
"""Networks of which only groups of 1 and 4 are measured, and no step is profiled."""
PRECISIONS = ("bf16", "fp32")
FORMS = ("sequential", "stacked")


def group_sizes(net: str) -> tuple[int, ...]:
    """Sizes of the groups of a network that are measured on a GPU."""
    return (1, 4) if net in LARGE else GROUP_SIZES


def gpu_name(net: str, what: str, replicas: int, batch: int, precision: str, form: str) -> str:
    """Name a figure of a group on a GPU; `what` is 'seconds_per_epoch' or 'peak_mebibytes'."""
    return f"gpu_{net}_{what}_group{replicas}_batch{batch}_{precision}_{form}"


_GPU = Benchmark(
    "gpu",
    "Groups on a GPU",
    "Seconds of an epoch for each replica of a group (50,000 images of 32 × 32 with crop and flip; LeNet: 1,297 "
    "digits), with order, augmentation and evaluation, and the memory that the group took. An epoch of 32 × 32 images "
    "is timed on 6,400 training and 1,280 test images, and multiplied. `python -m benchmarks.gpu --minutes 9` measures "
    "the most telling groups first, writes each figure at once to `build/benchmarks/gpu.json`, and goes on from there "
    "when it is started again; `python -m benchmarks --take FILE` brings its figures here. It needs only torch, numpy, "
    "pandas, safetensors, pydantic and ruamel.yaml.\n\n"
    "An estimate on paper for an H200, in bf16: an epoch of ResNet-20 moves its bytes in 0.04 to 0.07 s, and with the "
    "narrow layers' use of the matrix units takes 0.15 s; a CUDA graph of one replica, whose kernels wait for each "
    "other, 0.5 s at batch 64 and 0.3 s at 128.",
    tuple(
        Figure(gpu_name(net, what, replicas, batch, precision, form), unit, "")
        for net, batches in GPU_NETS.items()
        for what, unit in (("seconds_per_epoch", "s"), ("peak_mebibytes", "MiB"))
        for replicas in group_sizes(net)
        for batch in batches
        for precision in PRECISIONS
        for form in FORMS
    ),
)  # fmt: skip

# --- growth ---------------------------------------------------------------------------------------------------

GROWTH = {
    "replicas": ((1, 2, 4, 8, 16, 24), "replicates, 4 levels of IMP of 5 epochs"),
    "levels": ((1, 2, 4, 8, 16), "levels of IMP of 5 epochs, 4 replicates"),
    "images": ((1250, 2500, 5000, 10000, 20000, 40000), "training images of 28 × 28, 4 replicas, 2 epochs"),
}
"""What grows: through which numbers, and what is computed."""
_GROWTH = Benchmark(
    "growth",
    "Growth of time and memory",
    "Wall time and peak memory (resident set) of LeNet-300-100, batch 64, each point in processes of its own: studies "
    "of digits with 1 to 24 replicates and with 1 to 16 levels by `lthlab compute`, imports included, and groups of 4 "
    "trained on more and more images by the engine.",
    tuple(
        Figure(f"growth_{axis}_{number}_{what}", unit, f"{number:,} {words}")
        for axis, (numbers, words) in GROWTH.items()
        for number in numbers
        for what, unit in (("seconds", "s"), ("mebibytes", "MiB"))
    ),
)

BENCHMARKS = (_DATALOADER, _SINGLE, _GROUPS, _CHAINS, _MASKS, _CORRELATION, _SURFACES, _GPU, _GROWTH)


def choose(name: str | None) -> dict[str, list[str]]:
    """Choose figures by a benchmark's name, or by the name of a figure or its beginning; all by default.

    Returns
    -------
    dict of str to list of str
        Names of figures by benchmark, in the order of the catalogue.

    Raises
    ------
    InputError
        If there is none such.
    """
    chosen = {
        benchmark.name: [
            figure.name
            for figure in benchmark.figures
            if name in (None, benchmark.name) or figure.name.startswith(name)
        ]
        for benchmark in BENCHMARKS
    }
    chosen = {benchmark: names for benchmark, names in chosen.items() if names}
    if not chosen:
        figures = [figure for benchmark in BENCHMARKS for figure in benchmark.figures]
        aimed = [figure.name for figure in figures if (figure.at_least, figure.at_most) != (None, None)]
        gpu = [f"gpu_{net}_seconds_per_epoch" for net in GPU_NETS]
        allowed = nearest(name, [*(benchmark.name for benchmark in BENCHMARKS), *aimed, *gpu])
        raise InputError(f"NAME={name}: neither a benchmark nor the beginning of a figure's name; {allowed}")
    return chosen
