"""Experiments as values: keys that do not move, forms, and what is refused."""

import dataclasses
import os
import random
import subprocess
import sys
import textwrap
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lthlab import datasets, parts, tickets
from lthlab.analyses import Measure
from lthlab.forms import parse
from lthlab.nodes import KINDS, canonical, key_of
from lthlab.parts import Data, Level, Net, Recipe, pruned_count
from lthlab.store import Store
from lthlab.values import (
    At,
    Dense,
    Explicit,
    Fresh,
    Gradual,
    Graft,
    Magnitude,
    MaskOf,
    Narrow,
    Permuted,
    Train,
    ancestors,
)

RESNET, LENET, DIGITS = Net(name="resnet20"), Net(name="lenet_300_100"), Data(name="digits")
RECIPE = Recipe(epochs=160, batch_size=64, lr=0.1, lr_schedule="step", milestones=("80ep", "120ep"), warmup="500it")
STEPS = 21


def train(**fields):
    return Train(**{"net": RESNET, "data": DIGITS, "recipe": RECIPE, "init": Fresh(0), "order": 0} | fields)


TRUNK = train()
END = At(TRUNK, "last")
MASK = Magnitude(END, Level(3))


# --- pinned keys ----------------------------------------------------------------------------------------------

PRUNING = train(pruning=Gradual("10ep", "100ep", "5ep", "0.9"))
PINNED = {
    "Fresh": (Fresh(0), "37e166216eb65a43a16c7c023c986804"),
    "Fresh, draw 1": (Fresh(3, draw=1), "5f2199b0637c6a3b8cb8da867edf500b"),
    "Dense": (Dense(), "f13ce5ac215f74a7f8fd54aecdd1f7c8"),
    "Train": (TRUNK, "f8c53f641b150316019c8737dee1b101"),
    "Train, network of one's own width": (
        train(net=Net(name="resnet20", width=32, shortcut="A")),
        "ee8fc5a42f7b7ada54f98322835a76d5",
    ),
    "Train, part of the images": (
        train(data=Data(name="digits", train_size=1000, val_size=100, augment="crop_flip", random_labels=0)),
        "8982e8053cf322df1eec7ce63884c11b",
    ),
    "Train, Adam": (
        train(recipe=Recipe(epochs=3, batch_size=8, lr=1e-3, optimizer="adam", betas=(0.8, 0.99), precision="bf16")),
        "b1591a2d5db97c23d5a2cf9b3c203689",
    ),
    "Train, decay of weights": (
        train(recipe=Recipe(epochs=3, batch_size=8, lr=1, weight_decay=1e-4, decay_on="weights", lr_schedule="cosine")),
        "b05c2ec5bc90b059588aa4cf4d4435ce",
    ),
    "Train, BatchNorm per process": (
        train(recipe=RECIPE.model_copy(update={"batchnorm": "per_process", "processes": 2})),
        "83c0c118a2dc2ade439bf66c74f2f14a",
    ),
    "At, last": (END, "e633f3d56b81f8805fe7851db46cd970"),
    "At, iterations": (At(TRUNK, "500it"), "8fd0260ad6f0184da0949c6a94397e99"),
    "At, best": (At(TRUNK, "best_test"), "c85d708ddf0c9a9bdcdc1cd92f923cfd"),
    "Magnitude, global": (MASK, "6c2f50e276beb9bfa58099297b9f971c"),
    "Magnitude, per layer": (Magnitude(END, "0.5", "ma_resnet20", "layer"), "95c8e998959e8c3d599d6f52de904b55"),
    "Magnitude, of all": (Magnitude(END, Level(3, "0.1"), denominator="all"), "0990538690342142cc8b87358434ce27"),
    "Magnitude, layer counts of": (
        Magnitude(At(TRUNK, "8ep"), layer_counts_of=MASK),
        "f03152e4080d1bdd3f193ae8694db59a",
    ),
    "Magnitude, filter": (Magnitude(END, "0.3", granularity="filter", norm="l2"), "355808ab6d2937f2176a4692ea05b843"),
    "Magnitude, floor": (Magnitude(END, "0.9", floor="0.01"), "58560fad33e2cd07cb542b0fd27fc947"),
    "Permuted": (Permuted(MASK), "aaa066bc393ce48aa5fe27e038023cb6"),
    "Permuted, global": (Permuted(MASK, "global", 7), "7356d376cf1e6f2055180e4de57914f2"),
    "Train, restart": (train(init=At(TRUNK, "8ep"), mask=MASK), "057354543c5fc3d08e2a6c24278e637a"),
    "Train, resume": (train(init=At(TRUNK, "8ep"), mask=MASK, schedule="resume"), "ec080c47271aebafecfa32a4b743a67b"),
    "Train, BatchNorm reset": (
        train(init=At(TRUNK, "8ep"), mask=MASK, batchnorm="reset"),
        "2dfc3d0e7447d3b139631e5669f8c8e7",
    ),
    "Train, gradual": (PRUNING, "825b1e376d6a4f07f32270146ac055a0"),
    "Train, explicit": (
        train(pruning=Explicit((("1ep", "0.2"), ("30it", Level(2))))),
        "a46e040a74fe99cf82018dc169241e3a",
    ),
    "Gradual": (
        Gradual("10ep", "100ep", "50it", Level(9), "0.1", "linear", "all", "layer"),
        "964fe722b1c6e007f5298b59b83b68a9",
    ),
    "Explicit": (Explicit((("1ep", "0.2"), ("2ep", "0.5")), scope="layer"), "b9a4e49801167e8d8784ae5be1753622"),
    "MaskOf": (MaskOf(PRUNING, "20ep"), "49884ff14994bd03e84868dc55be55cb"),
    "Narrow": (Narrow(RESNET, Level(5)), "3fe4515fc2f758ea4dfe2cb0f8a7ec9d"),
    "Narrow, of all": (Narrow(RESNET, "0.75", denominator="all"), "fc62de64cec762eace2c78c688baea08"),
    "Train, narrow": (train(net=Narrow(RESNET, "0.75", "all")), "8bd14717e2147225302a1693274e49e8"),
    "Graft": (Graft(At(TRUNK, "8ep"), Fresh(0, 2)), "f5cc9ab576983413d1a2131b16d5c2ba"),
    "Train, graft": (train(init=Graft(END, Fresh(0))), "23e7dd03ca0c337c5b1c327a061a3050"),
    "Measure": (Measure("correlation_indicator", (At(TRUNK, "0ep"), END)), "4533f5f9019df41b83bcb4cca2c7a93f"),
    "Measure, settings": (
        Measure("correlation_indicator", (At(TRUNK, "0ep"), END), {"p": 0.2, "prunable": "all"}, mask=MASK),
        "9a1a0fc25094efec9fd48884c1e2ce5d",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_key(name):
    """Nothing may move these keys: whoever has results would lose them.

    A field that is added has a default without effect and leaves them as they are. A change of code that alters
    results raises the revision of its kind of value instead; the keys in question are then written anew here,
    and the CHANGELOG lists the change under Results.
    """
    value, key = PINNED[name]
    assert value.key == key, canonical(value.form())


def test_every_kind_is_pinned():
    kinds = {type(value).__name__ for value, _ in PINNED.values()}
    assert kinds == set(KINDS) - {"Mask"}


def test_keys_do_not_depend_on_hash_seed_or_locale():
    script = textwrap.dedent("""
        import sys
        sys.path[:0] = sys.argv[1:]
        import test_values
        print(" ".join(value.key for value, _ in test_values.PINNED.values()))
    """)
    here = os.path.dirname(__file__)
    for seed, locale in (("1", "C"), ("12345", "tr_TR.UTF-8")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "LANG": locale}
        command = [sys.executable, "-c", script, here, os.path.dirname(here)]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert printed.split() == [value.key for value, _ in PINNED.values()]


def test_keys_need_only_plain_json_and_sha256():
    assert Fresh(3, 1).form() == {"kind": "Fresh", "replicate": 3, "draw": 1}
    assert canonical(Fresh(3, 1).form()) == '{"draw":1,"kind":"Fresh","replicate":3}'
    assert Fresh(3, 1).key == key_of('{"draw":1,"kind":"Fresh","replicate":3}')
    assert key_of("") == "e3b0c44298fc1c149afbf4c8996fb924"


# --- what moves a key and what does not -----------------------------------------------------------------------


def stepped(*milestones, **fields):
    return Recipe(**RECIPE.model_dump() | {"milestones": milestones} | fields)


def divided(processes):
    return stepped("80ep", "120ep", batchnorm="per_process", processes=processes)


AT8 = {"init": At(TRUNK, "8ep"), "mask": MASK}
ENDS = (At(TRUNK, "0ep"), END)

SAME = {
    "last is 160ep": (END, At(TRUNK, "160ep")),
    "last in iterations": (END, At(TRUNK, f"{160 * STEPS}it")),
    "8ep in iterations": (At(TRUNK, "8ep"), At(TRUNK, f"{8 * STEPS}it")),
    "lr 1 is 1.0": (train(recipe=stepped("80ep", lr=1)), train(recipe=stepped("80ep", lr=1.0))),
    "milestones in iterations": (train(recipe=stepped("80ep")), train(recipe=stepped(f"{80 * STEPS}it"))),
    "order of milestones": (train(recipe=stepped("80ep", "90ep")), train(recipe=stepped("90ep", "80ep"))),
    "warmup in iterations": (train(recipe=stepped("80ep", warmup="0it")), train(recipe=stepped("80ep", warmup="0ep"))),
    "processes without BatchNorm": (train(net=LENET, recipe=divided(4)), train(net=LENET)),
    "processes without BatchNorm, narrow": (
        train(net=Narrow(LENET, "0.5"), recipe=divided(4)),
        train(net=Narrow(LENET, "0.5")),
    ),
    "one process": (train(recipe=divided(1)), TRUNK),
    "no part of a step": (train(recipe=stepped("80ep", warmup="42it")), train(recipe=stepped("80ep", warmup="2ep"))),
    "width 16": (train(net=Net(name="resnet20", width=16, shortcut="B")), TRUNK),
    "all images": (train(data=Data(name="digits", train_size=1297)), TRUNK),
    "dense mask": (train(mask=Dense()), TRUNK),
    "restart": (train(schedule="restart"), TRUNK),
    "fresh BatchNorm": (train(batchnorm="reset"), TRUNK),
    "resume at 0ep": (train(init=At(TRUNK, "0ep"), schedule="resume"), train(init=At(TRUNK, "0ep"))),
    "resume in iterations": (
        train(**AT8, schedule="resume"),
        train(init=At(TRUNK, f"{8 * STEPS}it"), mask=MASK, schedule="resume"),
    ),
    "sparsity 0.50": (Magnitude(END, "0.50"), Magnitude(END, 0.5)),
    "level with its rate": (Magnitude(END, Level(3, "0.20")), MASK),
    "norm of weights": (Magnitude(END, Level(3), norm="l2"), MASK),
    "denominator of layers": (
        Magnitude(END, "0.5", scope="layer", denominator="all"),
        Magnitude(END, "0.5", scope="layer"),
    ),
    "scope of layer counts": (
        Magnitude(END, layer_counts_of=MASK, scope="layer", denominator="all"),
        Magnitude(END, layer_counts_of=MASK),
    ),
    "defaults of Magnitude": (
        Magnitude(END, Level(3), "all_but_head", "global", "prunable", None, "weight", "l1"),
        MASK,
    ),
    "defaults of Narrow": (Narrow(RESNET, 0.5), Narrow(RESNET, "0.50", "all_but_head", "prunable")),
    "defaults of Permuted": (Permuted(MASK), Permuted(MASK, "layer", 0)),
    "defaults of Gradual": (
        Gradual("1ep", "9ep", "1ep", "0.9"),
        Gradual("1ep", "9ep", "1ep", 0.9, 0, "cubic", "all_but_head", "global"),
    ),
    "gradual in iterations": (
        train(pruning=Gradual("1ep", "9ep", "1ep", "0.9")),
        train(pruning=Gradual(f"{STEPS}it", f"{9 * STEPS}it", f"{STEPS}it", "0.9")),
    ),
    "explicit in iterations": (
        train(pruning=Explicit((("1ep", "0.2"), ("2ep", 0.5)))),
        train(pruning=Explicit([(f"{STEPS}it", 0.2), (f"{2 * STEPS}it", "0.50")])),
    ),
    "no floor": (Gradual("1ep", "9ep", "1ep", "0.9", floor=0), Gradual("1ep", "9ep", "1ep", "0.9")),
    "floor 0.10": (Explicit((("1ep", 0.2),), floor="0.10"), Explicit((("1ep", 0.2),), floor=0.1)),
    "mask at the end": (MaskOf(PRUNING), MaskOf(PRUNING, "160ep")),
    "settings as mapping": (
        Measure("correlation_indicator", ENDS, {"p": 0.2, "prunable": "all"}),
        Measure("correlation_indicator", list(ENDS), (("prunable", "all"), ("p", "0.20"))),
    ),
    "defaults of settings": (
        Measure("correlation_indicator", ENDS, {"p": "1e-1", "prunable": "all_but_head"}),
        Measure("correlation_indicator", ENDS),
    ),
    "settings 1 and 1.0": (
        Measure("correlation_indicator", ENDS, {"p": 1}),
        Measure("correlation_indicator", ENDS, {"p": 1.0}),
    ),
}
DIFFERENT = {
    "replicate": (Fresh(0), Fresh(1)),
    "draw": (Fresh(0), Fresh(0, 1)),
    "order": (TRUNK, train(order=1)),
    "step": (END, At(TRUNK, "159ep")),
    "best": (END, At(TRUNK, "best_test")),
    "level": (MASK, Magnitude(END, Level(4))),
    "rate": (MASK, Magnitude(END, Level(3, "0.1"))),
    "resume": (train(**AT8), train(**AT8, schedule="resume")),
    "BatchNorm": (train(**AT8), train(**AT8, batchnorm="reset")),
    "BatchNorm per process": (TRUNK, train(recipe=divided(2))),
    "number of processes": (train(recipe=divided(2)), train(recipe=divided(3))),
    "milestones": (TRUNK, train(recipe=stepped("80ep", "121ep"))),
    "order of points": (Measure("correlation_indicator", ENDS), Measure("correlation_indicator", ENDS[::-1])),
    "floor": (Gradual("1ep", "9ep", "1ep", "0.9"), Gradual("1ep", "9ep", "1ep", "0.9", floor="0.01")),
    "denominator of a narrow network": (Narrow(RESNET, "0.5"), Narrow(RESNET, "0.5", denominator="all")),
    "norm of filters": (
        Magnitude(END, Level(3), granularity="filter"),
        Magnitude(END, Level(3), granularity="filter", norm="l2"),
    ),
    "mask of a measure": (Measure("correlation_indicator", ENDS), Measure("correlation_indicator", ENDS, mask=Dense())),
}


@pytest.mark.parametrize("name", SAME)
def test_one_experiment_has_one_key(name):
    one, other = SAME[name]
    assert one.form() == other.form()
    assert one.key == other.key
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_experiments_have_different_keys(name):
    one, other = DIFFERENT[name]
    assert one != other
    assert one.key != other.key


def test_all_pinned_values_differ():
    assert len({value for value, _ in PINNED.values()}) == len(PINNED)


@pytest.fixture
def kinds():
    """Forget the kinds of values that a test defines."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


@pytest.mark.parametrize("name", PINNED)
def test_a_field_added_with_a_default_moves_no_key(name, kinds):
    value = PINNED[name][0]
    fields = [("added", "str | None", dataclasses.field(default=None))]
    options = {"frozen": True, "eq": False, "repr": False}
    longer = dataclasses.make_dataclass(type(value).__name__, fields, bases=(type(value),), **options)
    given_fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    assert longer(**given_fields).key == value.key
    assert longer(**given_fields, added="x").key != value.key


@pytest.mark.parametrize("part", [RESNET, DIGITS, RECIPE])
def test_a_field_added_to_a_part_moves_no_key(part, monkeypatch):
    monkeypatch.setitem(parts.NETS, "resnet20", parts.NETS["resnet20"] | {"added": "no"})

    class Longer(type(part)):
        added: str = "no"

    fields = part.model_dump(exclude_unset=True)
    assert Longer(**fields).form() == part.form()
    assert Longer(**fields, added="yes").form() != part.form()


def test_a_raised_revision_moves_the_key_and_all_that_stands_on_it(monkeypatch):
    before = [TRUNK, END, MASK, train(**AT8), Measure("correlation_indicator", ENDS)]
    monkeypatch.setattr(Train, "revision", 2)
    trunk = train()
    end = At(trunk, "last")
    mask = Magnitude(end, Level(3))
    ends = (At(trunk, "0ep"), end)
    after = [trunk, end, mask, train(init=At(trunk, "8ep"), mask=mask), Measure("correlation_indicator", ends)]
    assert trunk.form()["revision"] == 2
    assert [a.key == b.key for a, b in zip(before, after, strict=True)] == [False] * 5
    assert Fresh(0).key == PINNED["Fresh"][1]


def test_other_data_under_the_same_name_move_the_key(monkeypatch):
    facts = dataclasses.replace(datasets.DATASETS["digits"], fingerprint="0" * 32)
    monkeypatch.setitem(datasets.DATASETS, "digits", facts)
    assert train().key != TRUNK.key


def test_values_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRUNK.order = 1


def test_a_value_is_shown_by_kind_and_key():
    assert repr(MASK) == f"Magnitude({MASK.key})"
    assert MASK.key != MASK


# --- large graphs ---------------------------------------------------------------------------------------------

RULES = tickets.Protocol(RESNET, DIGITS, 0, "ma_resnet20")
TRUNK200 = train(recipe=Recipe(epochs=200, batch_size=128, lr=0.1))


def chain(rewind="0ep", schedule="restart", levels=30):
    return [value for pair in tickets.imp(RULES, RECIPE, levels, rewind=rewind, schedule=schedule) for value in pair]


def learning_rate_rewinding(levels=30):
    """Prune again and again, going on from the last weights with the schedule restarted (Renda et al.)."""
    run, found = TRUNK, []
    for k in range(1, levels + 1):
        mask = Magnitude(At(run, "last"), Level(k))
        run = train(init=At(run, "last"), mask=mask)
        found += [mask, run]
    return found


def early_tickets():
    """Masks of 11 epochs s, each trained from the weights of 13 epochs v, of one trunk (Sooner Fig. 1)."""
    masks = [Magnitude(At(TRUNK200, f"{s}ep"), "0.8") for s in range(0, 201, 20)]
    return [train(init=At(TRUNK200, f"{v}ep"), mask=m) for m in masks for v in (0, 1, 2, 4, 8, *range(10, 90, 10))]


def once(fetch):
    """Let each description be fetched once: a graph that is walked along every path has no end."""
    fetched = set()

    def checked(key):
        assert key not in fetched
        fetched.add(key)
        return fetch(key)

    return checked


def work(folder):
    """Build, compare, hash, print, store and read back."""
    began = time.perf_counter()
    found = [*chain(), *chain("8ep", "resume"), *learning_rate_rewinding(), *early_tickets()]
    again = [*chain(), *chain("8ep", "resume"), *learning_rate_rewinding(), *early_tickets()]
    assert found == again
    assert set(found) == set(again)
    assert len({repr(value) for value in found}) == len(set(found))
    store = Store(folder)
    everything = ancestors(found)
    for value in everything:
        store.describe(canonical(value.form()))
    for value in (found[-1], found[59], found[119], found[179], *found[180::13]):
        assert parse(store.description(value.key), once(store.description)) == value
    return time.perf_counter() - began, found, everything


def test_large_graphs_take_less_than_a_second(tmp_path):
    for short in (chain(levels=8), chain("8ep", levels=8), learning_rate_rewinding(8)):
        assert max(len(canonical(value.form())) for value in short) < 1500
    seconds, found, everything = min((work(tmp_path / str(i)) for i in range(4)), key=lambda result: result[0])
    assert seconds < 1
    assert len(found) == 3 * 60 + 143
    assert max(len(canonical(value.form())) for value in everything) < 4096


def test_every_pinned_value_is_read_back_from_the_store(tmp_path):
    store = Store(tmp_path)
    for value, _ in PINNED.values():
        for item in (*ancestors([value]), value):
            assert store.describe(canonical(item.form())) == item.key
        read = parse(store.description(value.key), store.description)
        assert (type(read), read, read.form()) == (type(value), value, value.form())


def test_descriptions_hold_keys_not_values():
    for short in (chain("8ep", levels=9), learning_rate_rewinding(9)):
        lengths = [len(canonical(value.form())) for value in short]
        assert max(lengths[4:8]) == max(lengths[14:18])


# --- reading back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Magnitud", "Trian", "x"])
def test_parse_refuses_an_unknown_kind(kind):
    with pytest.raises(ValueError, match=f"kind '{kind}' is not known; allowed: At, ") as caught:
        parse({"kind": kind}, dict)
    assert kind == "x" or "did you mean" in str(caught.value)


def test_parse_refuses_another_revision():
    with pytest.raises(ValueError, match="Fresh of revision 2; this version has 1"):
        parse({"kind": "Fresh", "replicate": 0, "revision": 2}, dict)


def test_parse_refuses_what_now_would_have_another_key(monkeypatch):
    form = TRUNK.form()
    facts = dataclasses.replace(datasets.DATASETS["digits"], fingerprint="0" * 32)
    monkeypatch.setitem(datasets.DATASETS, "digits", facts)
    with pytest.raises(ValueError, match="was described otherwise"):
        parse(form, dict)


def test_parse_reads_shared_inputs_once():
    found = chain("8ep", levels=9)
    forms = {value.key: value.form() for value in ancestors(found)}
    assert len(forms) == 18
    assert parse(found[-1].form(), once(forms.__getitem__)) == found[-1]


# --- structure ------------------------------------------------------------------------------------------------


def test_imp_chain():
    rounds = tickets.imp(RULES, RECIPE, 4)
    assert rounds[0][0] == tickets.dense(RULES, RECIPE)
    for k, (run, mask) in enumerate(rounds, start=1):
        assert mask == Magnitude(At(run, "last"), Level(k), "ma_resnet20")
        if k > 1:
            assert run.mask == rounds[k - 2][1]
            assert run.init == At(rounds[0][0], "0ep")


@given(st.integers(1, 30), st.sampled_from(["0.2", "0.1", "0.5"]))
@settings(max_examples=20)
def test_imp_and_omp_at_a_level_prune_the_same_number(k, rate):
    iterative = tickets.imp(RULES, RECIPE, k, rate)[-1][1]
    at_once = tickets.omp(RULES, RECIPE, Level(k, rate))
    assert iterative.sparsity == at_once.sparsity
    total = 269_824
    assert pruned_count(iterative.sparsity, total) == int((1 - (1 - Fraction(rate)) ** k) * total + Fraction(1, 2))


def test_ancestors_come_inputs_first_and_once():
    found = chain("8ep", "resume", levels=10)
    for _ in range(3):
        random.shuffle(found)
        listed = ancestors(found)
        assert len(listed) == len(set(listed)) == 20
        position = {value: n for n, value in enumerate(listed)}
        assert all(position[item] < position[value] for value in listed for item in value.inputs)


def test_inputs_and_moments():
    ticket = train(init=Graft(At(TRUNK, "8ep"), Fresh(0)), mask=Permuted(MASK))
    assert set(ticket.inputs) == {TRUNK, Permuted(MASK)}
    assert ticket.moments == (At(TRUNK, "8ep"),)
    assert Permuted(MASK).inputs == (MASK,)
    assert Magnitude(END, layer_counts_of=MASK).inputs == (TRUNK, MASK)
    assert Measure("correlation_indicator", ENDS, mask=MASK).inputs == (TRUNK, MASK)
    assert Measure("correlation_indicator", ENDS).moments == ENDS
    assert Fresh(0).inputs == Dense().inputs == ()


def test_resume_begins_at_its_step():
    resumed = train(**AT8, schedule="resume")
    assert (resumed.start, resumed.end) == (8 * STEPS, 160 * STEPS)
    assert (train(**AT8).start, train(**AT8).end) == (0, 160 * STEPS)
    assert At(resumed, "last").step == "160ep"
    assert At(resumed, "8ep").step == "8ep"
    assert resumed.step_text(8 * STEPS + 1) == f"{8 * STEPS + 1}it"


# --- what is refused ------------------------------------------------------------------------------------------

SHORT = train(recipe=Recipe(epochs=4, batch_size=64, lr=0.1))
SMALL_BATCH = Recipe(epochs=4, batch_size=32, lr=0.1)
REFUSED = {
    "replicate": (lambda: Fresh(-1), "replicate -1 is not allowed; allowed: whole numbers from 0"),
    "replicate, float": (lambda: Fresh(1.0), "replicate 1.0 is not allowed"),
    "replicate, bool": (lambda: Fresh(True), "replicate True is not allowed"),
    "draw": (lambda: Fresh(0, "1"), "draw '1' is not allowed"),
    "order": (lambda: train(order=-1), "order -1 is not allowed"),
    "step, spelling": (lambda: At(TRUNK, "8 epochs"), "step '8 epochs' is not understood; allowed: '8ep', '500it', "),
    "step, behind": (lambda: At(TRUNK, "161ep"), "step 161ep is outside the training; allowed: 0ep to 160ep"),
    "step, behind by one": (lambda: At(TRUNK, "3361it"), "step 3361it is outside the training"),
    "step, before": (
        lambda: At(train(**AT8, schedule="resume"), "7ep"),
        "step 7ep is outside the training; allowed: 8ep to 160ep",
    ),
    "step, validation": (lambda: At(TRUNK, "best_val"), "step best_val needs validation images"),
    "neither": (lambda: Magnitude(END), "Magnitude takes either a sparsity or layer_counts_of"),
    "both": (lambda: Magnitude(END, "0.5", layer_counts_of=MASK), "Magnitude takes either a sparsity or"),
    "sparsity 1": (lambda: Magnitude(END, 1), "sparsity 1 is not allowed; allowed: numbers from 0"),
    "sparsity, text": (lambda: Magnitude(END, "most"), "sparsity 'most' is not allowed"),
    "prunable": (lambda: Magnitude(END, "0.5", "all_but_hed"), "prunable 'all_but_hed' .*did you mean 'all_but_head'"),
    "scope": (lambda: Magnitude(END, "0.5", scope="globl"), "scope 'globl' .*allowed: global, layer; did you mean 'gl"),
    "denominator": (lambda: Magnitude(END, "0.5", denominator="al"), "denominator 'al' .*allowed: all, prunable"),
    "granularity": (lambda: Magnitude(END, "0.5", granularity="filters"), "granularity 'filters' .*mean 'filter'"),
    "norm": (lambda: Magnitude(END, "0.5", norm="L3"), "norm 'L3' .*allowed: l1, l2"),
    "permuted scope": (lambda: Permuted(MASK, "layers"), "scope 'layers' .*did you mean 'layer'"),
    "permuted seed": (lambda: Permuted(MASK, seed=-2), "seed -2 is not allowed"),
    "permuted nothing": (lambda: Permuted(Dense()), "a dense mask has nothing to permute"),
    "mask of a plain training": (lambda: MaskOf(TRUNK), "does not prune on its way"),
    "mask, step": (lambda: MaskOf(PRUNING, "161ep"), "step 161ep is outside the training"),
    "narrow sparsity": (lambda: Narrow(RESNET, 1.0), "sparsity 1.0 is not allowed"),
    "narrow denominator": (
        lambda: Narrow(RESNET, "0.5", denominator="al"),
        "denominator 'al' .*allowed: all, prunable",
    ),
    "narrow prunable": (lambda: Narrow(RESNET, "0.5", "none"), "prunable 'none' is not allowed"),
    "gradual start": (lambda: Gradual("last", "9ep", "1ep", "0.9"), "'last' is not a number of epochs"),
    "gradual every": (lambda: Gradual("1ep", "9ep", "0it", "0.9"), "every '0it' is not allowed"),
    "gradual shape": (lambda: Gradual("1ep", "9ep", "1ep", "0.9", shape="cube"), "shape 'cube' .*mean 'cubic'"),
    "gradual scope": (lambda: Gradual("1ep", "9ep", "1ep", "0.9", scope="x"), "scope 'x' is not allowed"),
    "gradual prunable": (lambda: Gradual("1ep", "9ep", "1ep", "0.9", prunable="x"), "prunable 'x' is not allowed"),
    "gradual sparsity": (lambda: Gradual("1ep", "9ep", "1ep", 1), "sparsity 1 is not allowed"),
    "gradual falls": (lambda: Gradual("1ep", "9ep", "1ep", "0.2", "0.3"), "sparsity 0.2 is below the initial one"),
    "gradual backwards": (
        lambda: train(pruning=Gradual("9ep", "9ep", "1ep", "0.9")),
        "pruning from 9ep to 9ep: the end is not behind the start",
    ),
    "gradual behind": (
        lambda: train(pruning=Gradual("1ep", "161ep", "1ep", "0.9")),
        "pruning end 161ep is outside the tr",
    ),
    "gradual before": (
        lambda: train(**AT8, schedule="resume", pruning=Gradual("7ep", "9ep", "1ep", "0.9")),
        "pruning start 7ep is outside the training; allowed: 8ep to 160ep",
    ),
    "gradual floor": (lambda: Gradual("1ep", "9ep", "1ep", "0.9", floor=1), "floor 1 is not allowed; allowed: numbers"),
    "gradual floor above": (
        lambda: Gradual("1ep", "9ep", "1ep", "0.9", floor=0.2),
        "floor 0.2 is more than is kept in all; allowed: 0 to 0.1",
    ),
    "explicit, empty": (lambda: Explicit(()), r"points \(\) are not allowed; allowed: one \(step, "),
    "explicit falls": (
        lambda: Explicit((("1ep", 0.5), ("2ep", 0.4))),
        "points: sparsity '0.4' at 2ep falls; allowed: '0.5' or more",
    ),
    "floor within layers": (
        lambda: Explicit((("1ep", 0.2),), scope="layer", floor=0.1),
        "floor 0.1 with scope 'layer'; allowed: scope 'global'",
    ),
    "explicit floor above": (
        lambda: Explicit((("1ep", 0.5), ("2ep", 0.75)), floor="0.251"),
        "floor '0.251' is more than is kept in all; allowed: 0 to 0.25",
    ),
    "explicit step": (lambda: Explicit((("first", 0.5),)), "'first' is not a number of epochs"),
    "explicit prunable": (lambda: Explicit((("1ep", 0.5),), "x"), "prunable 'x' is not allowed"),
    "explicit scope": (lambda: Explicit((("1ep", 0.5),), scope="x"), "scope 'x' is not allowed"),
    "explicit backwards": (
        lambda: train(pruning=Explicit((("1ep", 0.4), ("21it", 0.5)))),
        "points: the steps 1ep, 21it do not rise",
    ),
    "explicit behind": (lambda: train(pruning=Explicit((("161ep", 0.4),))), "pruning point 161ep is outside the"),
    "schedule": (lambda: train(schedule="resumed"), "schedule 'resumed' .*did you mean 'resume'"),
    "batchnorm": (lambda: train(batchnorm="rest"), "batchnorm 'rest' .*did you mean 'reset'"),
    "batch": (
        lambda: train(recipe=Recipe(epochs=1, batch_size=1298, lr=0.1)),
        "batch_size 1298 is larger than the 1297",
    ),
    "processes": (
        lambda: train(recipe=divided(18)),
        "processes: 18 cannot share the last batch of an epoch, which has 17 of the 1297 images; allowed: 1 to 17",
    ),
    "milestone": (
        lambda: train(recipe=Recipe(epochs=2, batch_size=64, lr=0.1, lr_schedule="step", milestones=("42it",))),
        "milestones: 42it is not before the end; allowed: below 2ep, 42it",
    ),
    "other network": (lambda: train(net=LENET, mask=MASK), "is for another network"),
    "narrow network": (lambda: train(net=Narrow(RESNET, "0.5"), mask=MASK), "is for another network"),
    "resume fresh": (lambda: train(schedule="resume"), "'resume' needs weights of a fixed step of another training"),
    "resume best": (lambda: train(init=At(TRUNK, "best_test"), schedule="resume"), "'resume' needs weights of a fixed"),
    "resume at the end": (lambda: train(init=END, schedule="resume"), "at 160ep: nothing is left of 160ep"),
    "resume behind": (
        lambda: train(recipe=SHORT.recipe, init=At(TRUNK, "8ep"), schedule="resume"),
        "nothing is left of 4ep",
    ),
    "resume within an epoch": (
        lambda: train(recipe=SMALL_BATCH, init=At(SHORT, "30it"), schedule="resume"),
        "at 30it between trainings whose epochs differ in length",
    ),
    "measure": (lambda: Measure("correlation", ENDS), "measure 'correlation' .*did you mean 'correlation_indicator'"),
    "setting": (lambda: Measure("correlation_indicator", ENDS, {"prunabel": "all"}), "setting 'prunabel' .*'prunable'"),
    "setting, type": (lambda: Measure("correlation_indicator", ENDS, {"p": True}), "setting p True is not allowed"),
    "setting, list": (
        lambda: Measure("correlation_indicator", ENDS, {"p": [0.1]}),
        r"setting p \[0.1\] is not allowed",
    ),
    "setting, nan": (lambda: Measure("correlation_indicator", ENDS, {"p": float("nan")}), "setting p nan is not"),
    "setting, range": (lambda: Measure("correlation_indicator", ENDS, {"p": 1.5}), "p '1.5' is not allowed"),
    "setting, zero": (lambda: Measure("correlation_indicator", ENDS, {"p": 0.0}), "p '0' is not allowed"),
    "setting, policy": (lambda: Measure("correlation_indicator", ENDS, {"prunable": "x"}), "prunable 'x' is not"),
    "of one": (lambda: Measure("correlation_indicator", (END,)), "is of two states of trainings"),
    "of masks": (lambda: Measure("correlation_indicator", (END, MASK)), "is of two states of trainings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_resume_between_epochs_of_other_length_counts_in_epochs():
    resumed = train(recipe=SMALL_BATCH, init=At(SHORT, "42it"), schedule="resume")
    assert resumed.start == 2 * resumed.steps_per_epoch == 2 * 41


def test_masks_of_one_chain_cover_the_same_weights():
    mask = Magnitude(END, Level(1), prunable="all")
    ticket = At(train(init=At(TRUNK, "0ep"), mask=mask), "last")
    with pytest.raises(ValueError, match=r"prunable 'all_but_head' under a ranked training's mask that covers 'all'"):
        Magnitude(ticket, Level(2))
    with pytest.raises(ValueError, match=r"under a layer_counts_of that covers 'all'; allowed: the same"):
        Magnitude(END, layer_counts_of=mask)
    with pytest.raises(ValueError, match=r"under a layer_counts_of that covers 'None'"):
        Magnitude(END, layer_counts_of=Dense())
    assert Magnitude(ticket, Level(2), prunable="all").policy == Permuted(mask).policy == "all"


def test_weights_fit_the_network_that_they_train():
    other = Train(LENET, DIGITS, RECIPE, Fresh(0), 0)
    with pytest.raises(ValueError, match=r"weights of Train\(.*\) are for another network than"):
        train(init=At(other, "last"))
    with pytest.raises(ValueError, match=r"pruning of 'all_but_head' under a mask that covers 'all'"):
        train(mask=Magnitude(END, Level(1), prunable="all"), pruning=Gradual("10ep", "100ep", "5ep", "0.9"))


def test_a_chain_of_any_length_is_read_back():
    protocol = tickets.Protocol(LENET, DIGITS, 0)
    chain = tickets.imp(protocol, RECIPE, 600, rate="0.01")
    forms = {value.key: value.form() for pair in chain for value in pair}
    assert parse(chain[-1][1].form(), forms.__getitem__) == chain[-1][1]
