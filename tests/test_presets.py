"""The presets against what the papers print: every number that a study is given, and what a preset says of itself."""

import re
from pathlib import Path

import helpers
import pytest

from lthlab import parts, sections, spec, tickets
from lthlab.datasets import DATASETS
from lthlab.parts import Recipe
from lthlab.values import Permuted

FOLDER = Path(__file__).resolve().parent.parent / "params" / "presets"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

STEP = {"lr_schedule": "step", "gamma": 0.1}
# Ma et al. 2021, Table E.1, by column; its 80-120 are milestones, "decay factor 10" is gamma 0.1.
E1 = {
    "cifar": {"epochs": 160, "batch_size": 64, "momentum": 0.9, "weight_decay": 5e-4, "milestones": ("80ep", "120ep")},
    "tiny": {"epochs": 160, "batch_size": 32, "momentum": 0.9, "weight_decay": 5e-4, "milestones": ("80ep", "120ep")},
    "imagenet": {"epochs": 90, "batch_size": 1024, "momentum": 0.875, "weight_decay": 3.05e-5, "warmup": "8ep"},
}
E1["cifar"] |= STEP
E1["tiny"] |= STEP | {"warmup": "20ep"}
E1["imagenet"] |= {"lr_schedule": "cosine"}
CODE = {"warmup": "5ep", "label_smoothing": 0.1, "mixup": 0.2, "decay_on": "weights"}
# Morcos et al. 2019, appendix A.1.
A1 = {"batch_size": 512, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "batchnorm": "per_process", "processes": 2}
VGG19 = {"epochs": 160, "milestones": ("80ep", "120ep"), **STEP}
RESNET50 = {"epochs": 90, "milestones": ("50ep", "65ep", "80ep"), **STEP}
MORCOS = [*range(1, 7), *range(9, 31, 3)]  # every round to the sixth, then every third of 30
# "The Sooner The Better", appendices A.1 and A.2.
SOONER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, **STEP}
LAN = {"epochs": 110, "momentum": 0.9, "weight_decay": 1e-4}

# Presets in their order; recipe that finds; levels; replicates; rewind; rules that are not everyone's.
ROWS = [
    (["ma_cifar"], E1["cifar"], [4, 8, 11, 13, 14], 3, "8ep", {}),
    (["ma_cifar", "ma_cifar_vgg16"], E1["cifar"] | {"warmup": "75ep"}, [4, 8, 11, 13, 14], 3, "8ep", {}),
    (["ma_tiny_imagenet"], E1["tiny"], [4, 8, 11, 13, 14], 3, "8ep", {}),
    (["ma_imagenet"], E1["imagenet"], [4, 8, 11], 3, "5ep", {}),
    (
        ["ma_cifar", "ma_code_cifar"],
        E1["cifar"] | {"weight_decay": 1e-4},
        [4, 8, 11, 13, 14],
        1,
        "8ep",
        {"prunable": "first_last_dense", "report": "best_test", "masks_from": "best_test"},
    ),
    (["ma_imagenet", "ma_code_imagenet"], E1["imagenet"] | CODE, [4, 8, 11], 1, "5ep", {}),
    (
        ["ma_imagenet", "ma_code_imagenet", "ma_code_imagenet_omp"],
        E1["imagenet"] | CODE,
        [4, 8, 11],
        1,
        "5ep",
        {},
    ),
    (
        ["frankle_carbin_cifar10"],
        {"epochs": 78, "batch_size": 128, "weight_decay": 1e-4, "milestones": ("51ep", "64ep"), **STEP},
        [4, 8, 11, 13, 14],
        3,
        None,
        {},
    ),
    (["morcos_cifar", "morcos_vgg19"], A1 | VGG19, MORCOS, 6, "1ep", {"schedule": "restart"}),
    (["morcos_cifar", "morcos_resnet50"], A1 | RESNET50, MORCOS, 6, "1ep", {"schedule": "restart"}),
    (
        ["morcos_cifar", "morcos_imagenet", "morcos_resnet50"],
        A1 | RESNET50 | {"processes": 16},
        MORCOS,
        6,
        "3ep",
        {"schedule": "restart"},
    ),
    (
        ["morcos_cifar", "morcos_vgg19", "morcos_adam"],
        A1 | VGG19 | {"optimizer": "adam", "lr": 0.0003, "betas": (0.9, 0.999)},
        MORCOS,
        6,
        "1ep",
        {"schedule": "restart"},
    ),
    (
        ["sooner_cifar10"],
        SOONER | {"epochs": 200, "milestones": ("120ep", "160ep")},
        [],
        1,
        None,
        {"schedule": "restart", "prunable": "first_last_dense"},
    ),
    (
        ["sooner_imagenet"],
        SOONER | {"epochs": 90, "milestones": ("30ep", "60ep")},
        [],
        1,
        None,
        {"schedule": "restart", "prunable": "first_last_dense"},
    ),
    (["lan"], LAN, [5, 10], 1, "2ep", {"schedule": "restart"}),
    (
        ["lan", "lan_cifar10"],
        LAN | {"batch_size": 256, "milestones": ("55ep", "83ep"), **STEP},
        [2, 4, 5, 6, 8, 10, 12, 14],
        3,
        "2ep",
        {"schedule": "restart"},
    ),
    (["lan", "lan_miniplaces"], LAN, [5, 10], 1, "2ep", {"schedule": "restart"}),
    (["lan", "lan_tiny_imagenet"], LAN, [5, 10], 1, "2ep", {"schedule": "restart"}),
]
RATES = {
    **dict.fromkeys(("lan", "lan_cifar10"), ({0.05, 0.1, 0.2, 0.5}, {0.05, 0.1, 0.2, 0.5})),
    "lan_miniplaces": ({0.02, 0.1, 0.5}, {0.02, 0.1, 0.5}),
    "lan_tiny_imagenet": ({0.05, 0.2, 0.5, 0.8}, {0.5, 0.8}),
}


def config(presets, **find):
    name = "vgg19" if "morcos_vgg19" in presets else "resnet50"
    fields = ", ".join(f"{name}: {value}" for name, value in find.items())
    names = ", ".join(presets)
    text = f"name: s\nnet: {{name: {name}, width: 4}}\ndata: cifar10\npresets: [{names}]\nfind: {{{fields}}}\n"
    return spec.parse(text, str(FOLDER.parent / "s.yaml"))


def parsed(presets, **find):
    [panel] = config(presets, **find).panels
    return panel


@pytest.fixture(autouse=True)
def images(monkeypatch):
    monkeypatch.setitem(DATASETS, "cifar10", helpers.CIFAR)


@pytest.mark.parametrize("presets, fields, levels, replicates, rewind, rules", ROWS, ids=[row[0][-1] for row in ROWS])
def test_numbers_are_those_of_the_paper(presets, fields, levels, replicates, rewind, rules):
    own = {name: value for name, value in (("lr", 0.05), ("batch_size", 128)) if name not in fields}
    several = RATES.get(presets[-1])
    if several:
        del own["lr"]
    panel = parsed(presets, **own)
    finding, evaluating = (set(recipes) for recipes in zip(*panel.recipes, strict=True))
    rates, others = several or ({own.get("lr", fields.get("lr"))},) * 2
    assert finding == {Recipe(**fields | own | {"lr": lr}) for lr in rates}
    change = {"momentum": 0.3, "warmup": "8ep"} if presets[-1] == "ma_code_imagenet_omp" else {}
    assert evaluating == {Recipe(**fields | own | change | {"lr": lr}) for lr in others}
    assert len(panel.recipes) == len(rates) * (len(others) if several else 1)
    assert [level.k for level in panel.levels] == levels and {level.rate for level in panel.levels} <= {"0.2"}
    assert panel.sparsities == (() if levels else ("0.8",))
    assert panel.replicates == replicates
    assert (panel.tickets.WR.rewind if panel.tickets.WR else None) == (rewind and [rewind])
    assert panel.protocol == sections.Protocol(**rules)


NETS = {
    **dict.fromkeys(("ma_imagenet", "sooner_imagenet", "lan_miniplaces"), {"stem": "imagenet"}),
    **dict.fromkeys(("ma_tiny_imagenet", "lan_tiny_imagenet"), {"stem": "tiny_imagenet"}),
    "ma_code_imagenet": {"init": "he_fan_in"},
    "morcos_vgg19": {"init": "glorot_normal", "bias": True},
}
"""What a preset says of networks, on top of what those below say."""


@pytest.mark.parametrize("presets", [row[0] for row in ROWS], ids=lambda presets: presets[-1])
def test_networks_are_those_of_the_paper(presets):
    stated: dict = {}
    for name in presets:
        stated |= NETS.get(name, {})
    net = parsed(presets, batch_size=128, lr=0.1).net
    assert net.form() == {"name": net.name, "width": 4, **stated}


SEEN = {
    "ma_cifar": {"augment": "crop_flip"}, "ma_cifar_vgg16": {"augment": "crop_flip"},
    "ma_code_cifar": {"augment": "crop_flip", "normalise": "reference"}, "ma_tiny_imagenet": {"augment": "crop_flip"},
    "sooner_cifar10": {"augment": "crop_flip"}, "lan_cifar10": {"augment": "crop_flip", "val_size": 5000},
    "frankle_carbin_cifar10": {"augment": "crop_flip"},
    **dict.fromkeys(
        ("ma_imagenet", "ma_code_imagenet", "ma_code_imagenet_omp", "morcos_imagenet", "sooner_imagenet"),
        {"augment": "resized_crop_flip"},
    ),
}  # fmt: skip
"""What networks see of the images, by preset; the other papers say nothing of it."""


@pytest.mark.parametrize("presets", [row[0] for row in ROWS], ids=lambda presets: presets[-1])
def test_what_networks_see_is_that_of_the_paper(presets):
    data = parsed(presets, batch_size=128, lr=0.1).data.model_dump(exclude_defaults=True)
    above = [SEEN[name] for name in presets if name in SEEN]
    assert data == {"name": "cifar10", **(above[-1] if above else {})}


def test_every_preset_is_in_a_row():
    assert {name for presets, *_ in ROWS for name in presets} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_opens_with_what_it_rests_on(name):
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])
    assert re.findall(r"^# (Source|Expected|Assumed|Settles): \S", header, re.MULTILINE) == [
        "Source",
        "Expected",
        "Assumed",
        "Settles",
    ]
    presets = re.search(r"presets: (\[[a-z0-9_, ]+\])", header)
    below = presets[1].strip("[]").split(", ") if presets else [name]
    assert set(below) <= set(NAMES)
    assert name in (FOLDER.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_a_ladder_of_ma_ends_where_the_paper_says():
    """Sparsities of the text, and 11 rounds of 160 epochs as its introduction counts (1760)."""
    panel = parsed(["ma_cifar"], lr=0.01)
    assert [round(float(level.fraction), 3) for level in panel.levels] == [0.59, 0.832, 0.914, 0.945, 0.956]
    assert panel.levels[2].k * panel.recipes[0][0].epochs == 1760
    assert round(float(parsed(["lan"], batch_size=256).levels[0].fraction), 2) == 0.67
    assert round(float(parts.Level(30).fraction), 3) == 0.999


def values(presets, **find):
    return [(item.role, item.value) for item in tickets.expand(config(presets, **find))]


def test_random_tickets_of_morcos_have_new_weights_and_a_mask_permuted_over_all_layers():
    found = values(["morcos_cifar", "morcos_vgg19"])
    leaves = [value for role, value in found if role["ticket"] == "RT" and role["what"] == "train"]
    assert len(leaves) == 6 * len(MORCOS)
    assert all(isinstance(leaf.mask, Permuted) and leaf.mask.scope == "global" for leaf in leaves)
    assert {leaf.init.draw for leaf in leaves} == {1}


def test_the_code_of_ma_ranks_the_best_epoch_on_the_test_set():
    found = values(["ma_cifar", "ma_code_cifar"], lr=0.1)
    masks = [value for role, value in found if role["what"] == "mask"]
    assert masks and {mask.of.step for mask in masks} == {"best_test"}


def test_a_rewound_ticket_of_ma_trains_the_rest_and_one_of_morcos_all():
    for presets, find, epochs in ((["ma_cifar"], {"lr": 0.1}, 152), (["morcos_cifar", "morcos_vgg19"], {}, 160)):
        leaf = next(value for role, value in values(presets, **find) if role["ticket"] == "WR")
        assert (leaf.end - leaf.start) / leaf.steps_per_epoch == epochs
