"""Steps, sparsities, recipes, networks and data: what is accepted, refused and equal."""

import decimal
import itertools
import math
import string
from decimal import Decimal
from fractions import Fraction

import helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lthlab import data, errors, parts, sections
from lthlab.datasets import DATASETS, DataFacts
from lthlab.errors import nearest
from lthlab.parts import (
    NETS,
    Data,
    Level,
    Net,
    Recipe,
    decimal_text,
    duration,
    iterations,
    pruned_count,
    sparsity_fraction,
    step,
    step_text,
)

WEIGHTS = 25_000_000
PLAIN = {"epochs": 20, "batch_size": 64, "lr": 0.1}
STEPPED = PLAIN | {"lr_schedule": "step", "milestones": ("10ep",)}


def recipe(**fields):
    return Recipe(**PLAIN | fields)


# --- levels and counts ----------------------------------------------------------------------------------------


def half_up(number):
    return math.floor(2 * number + 1) // 2


@pytest.mark.parametrize("k", range(1, 31))
def test_level_is_exact_up_to_30_on_25_million_weights(k):
    kept = Fraction(4**k, 5**k)
    assert Level(k).fraction == 1 - kept
    assert pruned_count(Level(k), WEIGHTS) == half_up((1 - kept) * WEIGHTS)
    as_decimal = decimal.Context(prec=60).power(Decimal("0.8"), k) * WEIGHTS
    assert abs(WEIGHTS - pruned_count(Level(k), WEIGHTS) - as_decimal) <= Decimal("0.5")


@pytest.mark.parametrize(
    ("sparsity", "total", "count"),
    [
        ("0.5", 1, 1),
        ("0.5", 3, 2),
        ("0.5", 5, 3),
        ("0.25", 2, 1),
        ("0.245", 2, 0),
        ("0.1", 5, 1),
        ("0.1", 4, 0),
        ("0", 7, 0),
        ("0.999999999", 7, 7),
        (Level(1), 12, 2),
        (Level(2), 12, 4),
        (Level(1, "0.5"), 5, 3),
        (Level(8), 266_200, 221_539),
    ],
)
def test_counts_are_rounded_half_up(sparsity, total, count):
    assert pruned_count(sparsity, total) == count


@given(st.decimals(0, "0.999", places=6, allow_nan=False), st.integers(0, 10**9))
def test_counts_agree_with_decimal_arithmetic(sparsity, total):
    with decimal.localcontext() as context:
        context.prec = 50
        expected = (sparsity * total).to_integral_value(decimal.ROUND_HALF_UP)
    assert pruned_count(decimal_text(sparsity), total) == expected


@given(st.integers(1, 30), st.integers(1, 99), st.integers(1, 10**8))
def test_levels_rise_and_round_by_round_pruning_stays_within_a_weight_of_them(k, percent, total):
    rate = f"0.{percent:02}"
    kept = [total - pruned_count(Level(level, rate), total) for level in range(1, k + 1)]
    assert kept == sorted(kept, reverse=True)
    for before, after in itertools.pairwise(kept):
        assert abs(after - (1 - Fraction(rate)) * before) < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Level(3), Level(3, "0.20")),
        (Level(3), Level(3, 0.2)),
        (Level(3), Level(3, "2e-1")),
        (Level(3, Decimal("0.30")), Level(3, "0.3")),
        (decimal_text("0.50"), "0.5"),
        (decimal_text(0.5), "0.5"),
        (decimal_text("5E-1"), "0.5"),
        (decimal_text(1e-7), "0.0000001"),
        (decimal_text(0), "0"),
        (decimal_text("-0.0"), "0"),
        (decimal_text("0." + "3" * 40 + "0"), "0." + "3" * 40),
    ],
)
def test_equal_sparsities_are_one(one, other):
    assert one == other


def test_text_of_a_sparsity_does_not_depend_on_the_decimal_context():
    with decimal.localcontext() as context:
        context.prec = 3
        assert decimal_text("0.123456789") == "0.123456789"
        assert pruned_count(Level(7), WEIGHTS) == half_up(Level(7).fraction * WEIGHTS)


@pytest.mark.parametrize("k", [0, -1, True, 1.0, "3", None, 1001, 10**30])
def test_level_refuses(k):
    with pytest.raises(ValueError, match=r"level .* is not allowed; allowed: whole numbers from 1 to 1000") as caught:
        Level(k)
    assert repr(k) in str(caught.value)


@pytest.mark.parametrize("rate", [0, "0", 1, 1.2, -0.1, "x", None, True, math.nan, math.inf])
def test_level_refuses_a_rate(rate):
    with pytest.raises(ValueError, match=r"rate .*allowed: "):
        Level(3, rate)


@pytest.mark.parametrize(
    "value", [1, "1", 1.5, -0.1, "", "half", None, True, math.nan, math.inf, "sNaN", "0." + "9" * 40 + "x"]
)
def test_sparsity_refuses(value):
    with pytest.raises(
        ValueError, match=r"sparsity .* is not allowed; allowed: numbers from 0 up to but not"
    ) as caught:
        decimal_text(value)
    assert repr(value) in str(caught.value)


def test_a_sparsity_just_below_one_stays_below_one():
    text = "0." + "9" * 40
    assert decimal_text(text) == text
    assert sparsity_fraction(decimal_text(text)) < 1


# --- steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0ep", "8ep", "500it", "last", "best_val", "best_test"])
def test_step_accepts(text):
    assert step(text) == text


@pytest.mark.parametrize(
    "text", ["8", "08ep", "-1ep", "1.5ep", "8 ep", "ep", "8epo", "Last", "", 8, None, "٣ep", "8ep\n", "9" * 13 + "ep"]
)
def test_step_refuses(text):
    for check in (step, duration):
        with pytest.raises(ValueError, match=r"allowed: '8ep', '500it'") as caught:
            check(text)
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["last", "best_val", "best_test"])
def test_duration_refuses_named_steps(text):
    with pytest.raises(ValueError, match="not a number of epochs or iterations"):
        duration(text)


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_steps_and_iterations_convert_into_each_other(iteration, steps_per_epoch):
    assert iterations(step_text(iteration, steps_per_epoch), steps_per_epoch) == iteration
    assert iterations(f"{iteration}ep", steps_per_epoch) == iteration * steps_per_epoch


# --- recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (recipe(lr=1), recipe(lr=1.0)),
        (recipe(lr=0.1), recipe(lr=1e-1)),
        (recipe(), recipe(momentum=0.9, weight_decay=0.0, decay_on="all", warmup="0ep", milestones=())),
        (recipe(), recipe(betas=(0.8, 0.9))),
        (recipe(optimizer="adam"), recipe(optimizer="adam", momentum=0.5)),
        (recipe(optimizer="adamw"), recipe(optimizer="adamw", momentum=0.5)),
        (recipe(), recipe(nesterov=False, label_smoothing=0.0, mixup=0.0)),
        (recipe(), recipe(label_smoothing=-0.0, mixup=-0.0)),
        (recipe(mixup=1), recipe(mixup=1.0)),
        (recipe(), recipe(gamma=0.5)),
        (recipe(), recipe(decay_on="weights")),
        (recipe(weight_decay=0), recipe(weight_decay=-0.0)),
        (recipe(momentum=0), recipe(momentum=-0.0)),
        (recipe(), Recipe(lr=0.1, batch_size=64, epochs=20)),
        (recipe(), recipe(batchnorm="synchronised", processes=4)),
        (recipe(), recipe(batchnorm="per_process")),
        (recipe(), recipe(batchnorm="per_process", processes=1)),
        (Recipe(**STEPPED), Recipe(**STEPPED | {"milestones": ["10ep"]})),
    ],
)
def test_equal_recipes_have_one_form(one, other):
    assert one == other
    assert hash(one) == hash(other)
    assert str(one.form()) == str(other.form())


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.2},
        {"momentum": 0.8},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"nesterov": True},
        {"label_smoothing": 0.1},
        {"mixup": 0.2},
        {"lr_schedule": "linear"},
        {"weight_decay": 1e-4},
        {"lr_schedule": "cosine"},
        {"warmup": "1ep"},
        {"precision": "bf16"},
        {"epochs": 21},
        {"batch_size": 63},
    ],
)
def test_what_has_an_effect_is_in_the_form(fields):
    assert recipe(**fields).form() != recipe().form()


@pytest.mark.parametrize(
    ("base", "fields"),
    [
        ({"optimizer": "adam"}, {"betas": (0.8, 0.999)}),
        ({"optimizer": "adamw"}, {"betas": (0.8, 0.999)}),
        ({"optimizer": "adam"}, {"optimizer": "adamw"}),
        ({"mixup": 0.2}, {"mixup": 0.3}),
        ({"weight_decay": 1e-4}, {"decay_on": "weights"}),
        ({"processes": 2}, {"batchnorm": "per_process"}),
        ({"batchnorm": "per_process"}, {"processes": 2}),
        ({"batchnorm": "per_process", "processes": 2}, {"processes": 4}),
        (STEPPED, {"gamma": 0.2}),
        (STEPPED, {"milestones": ("11ep",)}),
    ],
)
def test_what_has_an_effect_with_other_fields_is_in_the_form(base, fields):
    assert Recipe(**PLAIN | base | fields).form() != Recipe(**PLAIN | base).form()


@pytest.mark.parametrize(
    ("milestones", "aligned"),
    [
        (("10ep",), ("10ep",)),
        (("210it",), ("10ep",)),
        (("211it", "10ep"), ("10ep", "211it")),
        (("15ep", "10ep"), ("10ep", "15ep")),
    ],
)
def test_milestones_have_one_form_on_a_clock(milestones, aligned):
    assert Recipe(**STEPPED | {"milestones": milestones}).aligned(21).milestones == aligned


def test_warmup_has_one_form_on_a_clock():
    assert recipe(warmup="42it").aligned(21) == recipe(warmup="2ep").aligned(21) == recipe(warmup="2ep")
    assert recipe(warmup="0it").aligned(21) == recipe()
    assert recipe(warmup="43it").aligned(21).warmup == "43it"


@pytest.mark.parametrize(
    ("images", "batch_size", "smallest"), [(1297, 64, 17), (1297, 1297, 1297), (128, 64, 64), (129, 64, 1)]
)
def test_no_more_processes_than_images_in_the_smallest_batch(images, batch_size, smallest):
    dataset, net = Data(name="digits", train_size=images), Net(name="resnet8")
    most = recipe(batch_size=batch_size, batchnorm="per_process", processes=smallest)
    assert most.divided(net, dataset) == most
    more = recipe(batch_size=batch_size, batchnorm="per_process", processes=smallest + 1)
    message = f"processes: {smallest + 1} cannot share .* {smallest} of the {images} images; allowed: 1 to {smallest}$"
    with pytest.raises(ValueError, match=message):
        more.divided(net, dataset)
    assert more.divided(Net(name="lenet_300_100"), dataset) == recipe(batch_size=batch_size)


@pytest.mark.parametrize("fields", [{"lr_schedule": "step", "milestones": ("10ep", "420it")}, {"warmup": "420it"}])
def test_no_milestone_or_warmup_after_the_end_on_a_clock(fields):
    with pytest.raises(ValueError, match="420it is not before the end; allowed: below 20ep, 420it"):
        recipe(**fields).aligned(21)
    recipe(**fields).aligned(22)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "greater than 0"),
        ({"lr": -0.1}, "greater than 0"),
        ({"lr": math.nan}, "finite number"),
        ({"lr": math.inf}, "finite number"),
        ({"lr": "0.1"}, "valid number"),
        ({"lr": True}, "valid number"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"epochs": 2.0}, "valid integer"),
        ({"epochs": True}, "valid integer"),
        ({"epochs": 10**30}, "less than or equal to"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"momentum": 1.0}, "less than 1"),
        ({"momentum": -0.1}, "greater than or equal to 0"),
        ({"betas": (0.9, 1.0)}, "less than 1"),
        ({"betas": (0.9,)}, "Field required"),
        ({"weight_decay": -1e-4}, "greater than or equal to 0"),
        ({"decay_on": "biases"}, "'all' or 'weights'"),
        ({"lr_schedule": "Cosine"}, "'constant', 'step', 'cosine' or 'linear'"),
        ({"lr_schedule": "step"}, "milestones: missing"),
        ({"lr_schedule": "cosine", "milestones": ("1ep",)}, "milestones: given with lr_schedule 'cosine'"),
        ({"milestones": ("1ep",)}, "milestones: given with lr_schedule 'constant'"),
        ({"lr_schedule": "linear", "milestones": ("1ep",)}, "milestones: given with lr_schedule 'linear'"),
        ({"optimizer": "adagrad"}, "'sgd', 'adam' or 'adamw'"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov: given with optimizer 'adam'; allowed with: sgd"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov: given with optimizer 'adamw'; allowed with: sgd"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov: given with momentum 0.0; allowed with: momentum above 0"),
        ({"nesterov": 1}, "valid boolean"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"label_smoothing": -0.1}, "greater than or equal to 0"),
        ({"mixup": -0.2}, "greater than or equal to 0"),
        ({"mixup": math.inf}, "finite number"),
        ({"mixup": True}, "valid number"),
        (
            {"lr_schedule": "step", "milestones": ("20ep",)},
            "milestones: 20ep is not before the end; allowed: below 20ep",
        ),
        ({"lr_schedule": "step", "milestones": ("last",)}, "'last' is not a number of epochs"),
        ({"warmup": "20ep"}, "warmup: 20ep is not before the end"),
        ({"precision": "fp16"}, "'fp32', 'bf16' or 'fp64'"),
        ({"batchnorm": "per_gpu"}, "'synchronised' or 'per_process'"),
        ({"processes": 0}, "greater than or equal to 1"),
        ({"processes": 2.0}, "valid integer"),
        ({"learning_rate": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_recipe_refuses(fields, message):
    with pytest.raises(ValidationError) as caught:
        recipe(**fields)
    assert message in str(caught.value)
    assert next(iter(fields)) in str(caught.value) or "milestones" in str(caught.value)


# --- networks and data ----------------------------------------------------------------------------------------


def test_defaults_explicit_or_implicit_are_one_form():
    assert Net(name="resnet20", width=16, shortcut="B").form() == Net(name="resnet20").form() == {"name": "resnet20"}
    explicit = Data(name="digits", train_size=None, val_size=0, augment="none", random_labels=None)
    assert explicit.form() == Data(name="digits").form()


def test_each_network_has_defaults_of_its_own():
    whole = {"width": 64, "bias": False, "init": "he_fan_out_small_head"}
    assert Net(name="vgg16", **whole) == Net(name="vgg16") and Net(name="vgg16", **whole).form() == {"name": "vgg16"}
    assert Net(name="vgg16", width=16).form() == {"name": "vgg16", "width": 16}
    assert Net(name="mobilenet_v1").width == 32 and Net(name="mobilenet_v1").init == "torch"
    assert Net(name="lenet_300_100", init="he_fan_out").form() == {"name": "lenet_300_100", "init": "he_fan_out"}
    assert Net(name="resnet18", init="torch", stem="imagenet").form().keys() == {"name", "init", "stem"}


def test_all_images_are_one_form():
    assert Data(name="digits", train_size=1297) == Data(name="digits")
    assert Data(name="digits", train_size=1197, val_size=100) == Data(name="digits", val_size=100)
    assert Data(name="digits", train_size=1197).form() != Data(name="digits").form()
    assert Data(name="digits", train_size=1297).images == 1297


def test_what_changes_nothing_is_one_form():
    plain = Data(name="digits")
    same = Data(name="digits", classes=range(10), channels=1, size=8, normalise="own", part=None)
    assert same == plain and same.form() == plain.form() and not same.view
    assert Data(name="digits", classes=[3, 1, 2]) == Data(name="digits", classes=[1, 2, 3])
    assert Data(name="digits", part="a", train_size=649) == Data(name="digits", part="a")


@pytest.mark.parametrize(
    ("fields", "view", "shape", "classes", "images"),
    [
        ({"train_size": 100}, "", (1, 8, 8), 10, 100),
        ({"part": "a"}, "part a", (1, 8, 8), 10, 649),
        ({"part": "b", "val_size": 48}, "part b, val size 48", (1, 8, 8), 10, 600),
        ({"classes": [4, 0, 1]}, "classes 0-1-4", (1, 8, 8), 3, 391),
        ({"channels": 3, "size": 32}, "channels 3, size 32", (3, 32, 32), 10, 1297),
        ({"augment": "crop", "random_labels": 0}, "augment crop, random labels 0", (1, 8, 8), 10, 1297),
    ],
)
def test_facts_are_those_of_what_a_network_sees(fields, view, shape, classes, images):
    found = Data(name="digits", **fields)
    assert (found.view, found.facts.shape, found.facts.classes, found.images) == (view, shape, classes, images)
    assert found.source == DATASETS["digits"]
    assert found.steps_per_epoch(64) == -(-images // 64)


def test_data_enter_by_fingerprint(monkeypatch):
    before = Data(name="digits").form()
    assert before == {"name": "digits", "fingerprint": DATASETS["digits"].fingerprint}
    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"].__class__((1, 8, 8), 10, 1297, 500, "0" * 32))
    assert Data(name="digits").form() != before


def test_the_largest_seed_of_labels_and_size():
    described = Data(name="digits", random_labels=2**63 - 1, size=4096)
    assert described.facts.shape == (1, 4096, 4096)
    assert data.random_labels(3, 10, described.random_labels).shape == (3,)


def test_labels_drawn_with_seed_0_are_not_the_true_labels():
    assert Data(name="digits", random_labels=0).form() != Data(name="digits").form()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "resnet21"}, ["name: network 'resnet21' is not known", "did you mean 'resnet"]),
        ({"name": "LeNet-300-100"}, ["'LeNet-300-100'", "did you mean 'lenet_300_100'?"]),
        ({"name": "lenet"}, ["did you mean 'lenet_300_100'?"]),
        (
            {"name": "lenet_300_100", "width": 16},
            ["width: network 'lenet_300_100' has no such field", "allowed: init, name"],
        ),
        ({"name": "resnet20", "width": 0}, ["greater than or equal to 1"]),
        ({"name": "resnet20", "shortcut": "C"}, ["'A', 'B' or 'none'"]),
        (
            {"name": "resnet18", "shortcut": "A"},
            ["shortcut: network 'resnet18' has no such field", "name, stem, width"],
        ),
        ({"name": "vgg16", "stem": "cifar"}, ["stem: network 'vgg16' has no such field", "bias, init, name, width"]),
        ({"name": "vgg16", "bias": 1}, ["bias", "valid boolean"]),
        (
            {"name": "mobilenet_v1", "stem": "tiny_imagenet"},
            ["stem: 'mobilenet_v1' has no stem 'tiny", "cifar, imagen"],
        ),
        ({"name": "resnet20", "init": "he"}, ["'he_fan_out', 'he_fan_in', 'glorot_normal', 'torch' or"]),
        ({"name": "resnet20", "wdth": 3}, ["wdth"]),
        ({}, ["name", "Field required"]),
    ],
)
def test_net_refuses(fields, words):
    with pytest.raises(ValidationError) as caught:
        Net(**fields)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "digit"}, ["name: data set 'digit' is not known", "allowed: cifar10, ", "did you mean 'digits'?"]),
        ({"name": "digits", "train_size": 1298}, ["train_size: 1298 images; allowed: 1 to 1297"]),
        ({"name": "digits", "train_size": 1198, "val_size": 100}, ["allowed: 1 to 1197"]),
        ({"name": "digits", "train_size": 0}, ["greater than or equal to 1"]),
        ({"name": "digits", "val_size": 1297}, ["val_size: 1297 of 1297 images of 'digits'; allowed: 0 to 1296"]),
        ({"name": "digits", "val_size": -1}, ["greater than or equal to 0"]),
        ({"name": "digits", "augment": "flip"}, ["'none', 'crop', 'crop_flip' or 'resized_crop_flip'"]),
        ({"name": "digits", "random_labels": -1}, ["greater than or equal to 0"]),
        ({"name": "digits", "random_labels": True}, ["valid integer"]),
        ({"name": "digits", "random_labels": 2**63}, ["less than 9223372036854775808"]),
        ({"name": "digits", "size": 4097}, ["less than or equal to 4096"]),
        ({"name": "digits", "part": "c"}, ["part", "'a' or 'b'"]),
        ({"name": "digits", "part": "a", "train_size": 650}, ["train_size: 650 images; allowed: 1 to 649"]),
        ({"name": "digits", "part": "b", "val_size": 648}, ["val_size: 648 of 648 images of part b of 'digits'"]),
        ({"name": "digits", "classes": [4, 10, 12]}, ["classes: 'digits' has no class 10-12; allowed: 0 to 9"]),
        ({"name": "digits", "classes": [4, 2, 4]}, ["classes: 4 is given more than once; allowed: each class once"]),
        ({"name": "digits", "classes": [4]}, ["classes: 1 of the 10 classes of 'digits'; allowed: 2 to 10"]),
        ({"name": "digits", "classes": [-1, 1]}, ["greater than or equal to 0"]),
        ({"name": "digits", "classes": [0, 1], "train_size": 261}, ["train_size: 261 images; allowed: 1 to 260"]),
        ({"name": "digits", "classes": [0, 1], "val_size": 260}, ["260 images of 'digits' with classes 0-1; allowed"]),
        ({"name": "digits", "channels": 2}, ["channels", "1 or 3"]),
        ({"name": "cifar10", "channels": 1}, ["channels: 1, but images of 'cifar10' have 3; allowed: 3"]),
        ({"name": "digits", "size": 7}, ["size: 7 is less than images of 'digits' have, 8 × 8; allowed: 8 or more"]),
        ({"name": "digits", "normalise": "reference"}, ["'digits'; allowed with: cifar10, cifar100"]),
        ({"name": "digits", "normalise": "imagenet"}, ["3 channels, and 'digits' has 1; allowed with: channels 3"]),
        ({"name": "uneven", "classes": [0, 1]}, ["it is not known how many train images each class of 'uneven' has"]),
        ({"name": "uneven", "augment": "resized_crop_flip"}, ["augment: ", "1 or 3 channels, not of 4"]),
    ],
)
def test_data_refuses(fields, words, monkeypatch):
    monkeypatch.setitem(DATASETS, "cifar10", helpers.CIFAR)
    monkeypatch.setitem(DATASETS, "uneven", DataFacts((4, 8, 8), 3, 100, 30, "e" * 32))
    with pytest.raises(ValidationError) as caught:
        Data(**fields)
    assert [word for word in words if word not in str(caught.value)] == []


def test_parts_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().lr = 0.2


# --- misspelt names -------------------------------------------------------------------------------------------


def models():
    """List every group of names that a study's author may misspell."""
    named = ("Study", "Prune", "Protocol", "Correlation", "Rewound", "Tickets", "Measures", "Verdicts", "Random")
    groups = [list(model.model_fields) for model in (*(getattr(sections, name) for name in named), Recipe, Net, Data)]
    return [*groups, list(NETS), list(sections.POLICIES), ["IMP", "OMP"], ["global", "layer"], list(sections.STAGES)]


def typos(name):
    """List all names that differ from `name` by one deleted, doubled, swapped or replaced character."""
    for i, letter in enumerate(name):
        yield name[:i] + name[i + 1 :]
        yield name[:i] + letter + name[i:]
        yield name[:i] + name[i + 1 : i + 2] + letter + name[i + 2 :]
        for other in string.ascii_lowercase + "_":
            yield name[:i] + other + name[i + 1 :]


def test_nearest_match_is_right_for_95_percent_of_single_typos():
    cases = [(name, typo, group) for group in models() for name in group for typo in set(typos(name)) - set(group)]
    wrong = [(name, typo) for name, typo, group in cases if not nearest(typo, group).endswith(f"mean '{name}'?")]
    assert len(cases) > 10_000
    assert len(wrong) / len(cases) < 0.05, wrong[:50]


def test_nearest_lists_what_is_allowed_and_does_not_guess_wildly():
    assert nearest("lt", ["LT", "RR"]) == "allowed: LT, RR; did you mean 'LT'?"
    assert nearest("zzzz", ["LT", "RR"]) == "allowed: LT, RR"
    assert nearest(3, ["LT"]) == "allowed: LT"


# --- devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:3", "cpu,cpu", "cpu,cpu,cpu", "cuda:1,cuda:0,cuda:5"])
def test_names_of_devices(text):
    assert parts.device_names(text) == text.split(",")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cpu:0", "cuda:0 ", "cuda:0,", "cuda:0, cuda:1", "cuda:٣"])
def test_devices_of_no_known_name(text):
    with pytest.raises(errors.InputError, match=r"^device '.*' is not known; allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        parts.device_names(text)


@pytest.mark.parametrize(
    "text", ["cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "auto,auto", "auto,cuda:0", "cuda,cuda"]
)
def test_devices_that_cannot_share_a_training(text):
    with pytest.raises(errors.InputError, match=rf"^devices '{text}' cannot share a training; allowed: different GPUs"):
        parts.device_names(text)
