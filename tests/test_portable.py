"""Tickets as files: nothing is lost, plain torch loads them, and what is not one is refused with the reason."""

import errno
import json
import os
import re
import struct
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lthlab import cli, derive, forms, lab, nets, portable
from lthlab.analyses import Measure
from lthlab.errors import InputError
from lthlab.parts import Data, Level, Net
from lthlab.runs import Run
from lthlab.store import tensor_bytes
from lthlab.tickets import Protocol, dense, imp
from lthlab.values import At, Fresh, Gradual, Graft, Magnitude, Narrow, Permuted, Train

DOC = (Path(__file__).parent.parent / "docs" / "tickets.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
RESNET = helpers.narrow(4)
OTHER = Data(name="digits", classes=[7, 8, 9], train_size=128)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A store with tickets of a LeNet and a ResNet: of IMP, rewound, transferred and random."""
    store = helpers.store(tmp_path_factory.mktemp("tickets") / "runs")
    recipe = helpers.recipe()
    found = {}
    for net in (helpers.LENET, RESNET):
        protocol = Protocol(net, helpers.DIGITS, 3)
        trunk = dense(protocol, recipe)
        run, mask = imp(protocol, recipe, 2, rewind="1ep", schedule="restart")[-1]
        name = net.name
        found[f"{name} dense"] = trunk
        found[f"{name} mask"] = mask
        found[f"{name} rewound"] = Train(net, helpers.DIGITS, recipe, At(trunk, "1ep"), 3, mask)
        found[f"{name} graft"] = Train(net, OTHER, recipe, Graft(At(trunk, "1ep"), Fresh(5)), 5, mask)
        found[f"{name} random"] = Train(net, helpers.DIGITS, recipe, Fresh(4), 4, Permuted(mask, "global", 1))
    first = found["lenet_300_100 dense"]
    found["one shot"] = Magnitude(At(first, "last"), "0.625")
    found["measure"] = Measure("correlation_indicator", (At(first, "0ep"), At(first, "last")))
    lab.compute([*found.values(), *(At(value, "0ep") for value in found.values() if isinstance(value, Train))], store)
    return store, found


@pytest.fixture
def file(values, tmp_path):
    """A whole file of a LeNet's ticket."""
    store, found = values
    path = tmp_path / "ticket.safetensors"
    portable.write(path, portable.ticket(found["lenet_300_100 rewound"].key, store))
    return path


def same(first, second):
    return list(first) == list(second) and helpers.equal(first, second)


# --- nothing is lost ------------------------------------------------------------------------------------------

KINDS = [f"{net} {what}" for net in ("lenet_300_100", "resnet8") for what in ("rewound", "graft", "random")]


@pytest.mark.parametrize("name", KINDS)
def test_a_training_comes_back_bit_for_bit(name, values, tmp_path):
    store, found = values
    value, path = found[name], tmp_path / "ticket.safetensors"
    assert portable.write(path, portable.ticket(value.key, store)) is True
    ticket = portable.read(path)
    assert same(ticket.weights, derive.state(At(value, "0ep"), store))
    assert same(ticket.mask, derive.mask(value.mask, store))
    facts = ticket.facts
    kept = sum(int(layer.sum()) for layer in ticket.mask.values())
    total = sum(layer.numel() for layer in ticket.mask.values())
    assert (facts.kept, facts.total) == (kept, total) and (total - kept) == round(0.36 * total)
    assert (facts.method, facts.level, facts.policy) == ("IMP", 2, "all_but_head")
    assert facts.permuted == ("global" if name.endswith("random") else None)
    assert facts.metrics == Run(value, store).metrics()[-1] and facts.metrics["epoch"] == 2
    assert (facts.network, facts.classes, facts.order) == (value.net, value.data.facts.classes, value.order)
    assert facts.recipe == value.recipe.model_dump(mode="json")
    assert (facts.key, facts.mask) == (value.key, value.mask.key)
    again = forms.parse(facts.descriptions[facts.key], facts.descriptions.__getitem__)
    assert again == value
    assert all(name in facts.descriptions for name in (value.mask.key, facts.mask))


@pytest.mark.parametrize("net", [helpers.LENET, RESNET], ids=["lenet", "resnet"])
def test_a_mask_comes_with_the_first_weights_of_its_chain(net, values, tmp_path):
    store, found = values
    path = tmp_path / "ticket.safetensors"
    portable.write(path, portable.ticket(found[f"{net.name} mask"].key, store))
    ticket, fresh = portable.read(path), nets.fresh(net, helpers.DIGITS, 3)
    mask = derive.mask(found[f"{net.name} mask"], store)
    assert same(ticket.mask, mask) and ticket.facts.metrics is None
    assert same(ticket.weights, {n: w.masked_fill(~mask[n], 0) if n in mask else w for n, w in fresh.items()})
    assert ticket.facts.weights == {"kind": "Fresh", "replicate": 3}


def test_a_mask_of_one_shot(values):
    store, found = values
    facts = portable.ticket(found["one shot"].key[:12], store).facts
    assert (facts.method, facts.level, facts.permuted) == ("OMP", None, None)
    assert facts.layers["fc1.weight"][1] == 64 * 300 and facts.total - facts.kept == (64 * 300 + 300 * 100) * 5 // 8
    assert str(facts) == ("ticket of lenet_300_100 on 'digits' (val size 50): OMP, 37.5 % of 49,200 weights kept")


def test_what_images_are_normalised_by(values):
    store, found = values
    facts = portable.ticket(found["resnet8 rewound"].key, store).facts
    assert facts.mean == pytest.approx((4.886878373168851,)) and facts.std == pytest.approx((6.014557028580646,))
    assert (facts.shape, facts.data["fingerprint"]) == ((1, 8, 8), "988bfb497fd200f239bee36699206e13")


def test_equal_tickets_have_equal_bytes_and_nothing_is_replaced(values, file):
    store, found = values
    before, same = file.read_bytes(), portable.ticket(found["lenet_300_100 rewound"].key, store)
    other = portable.ticket(found["lenet_300_100 mask"].key, store)
    assert portable.write(file, same) is False
    with pytest.raises(InputError, match=f"{file} is there already, with other content, and is not replaced"):
        portable.write(file, other)
    with pytest.raises(InputError, match="nowhere/x: there is no folder nowhere"):
        portable.write(Path("nowhere/x"), same)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_a_full_disk_leaves_nothing_half_written(values, tmp_path, monkeypatch):
    store, found = values
    ticket = portable.ticket(found["lenet_300_100 rewound"].key, store)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        portable.write(tmp_path / "ticket.safetensors", ticket)
    assert os.listdir(tmp_path) == []


# --- plain torch ----------------------------------------------------------------------------------------------


def run(snippet, folder, **names):
    """Execute a snippet of the documentation, beside the file that it reads."""
    known = dict(names)
    exec(snippet.replace('"ticket.safetensors"', repr(str(folder / "ticket.safetensors"))), known)
    return known


def test_the_snippet_loads_a_ticket_into_the_resnet18_of_torchvision(tmp_path):
    store = helpers.store(tmp_path / "runs")
    net, colour = Net(name="resnet18", stem="imagenet"), Data(name="digits", channels=3, size=32)
    mask = Magnitude(At(Train(net, colour, helpers.recipe(epochs=1), Fresh(0), 0), "0ep"), Level(5))
    lab.compute([mask], store)
    portable.write(tmp_path / "ticket.safetensors", portable.ticket(mask.key, store))
    assert len([line for line in SNIPPETS[0].splitlines() if line and not line.startswith("import")]) == 5
    known = run(SNIPPETS[0], tmp_path)
    network, masks, kept = known["network"].eval(), known["masks"], derive.mask(mask, store)
    assert type(network).__module__.startswith("torchvision")
    assert masks.keys() == kept.keys() and all(torch.equal(masks[name].bool(), kept[name]) for name in kept)
    ours = run(SNIPPETS[-1], tmp_path)["network"].eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), ours(x), rtol=1e-4, atol=1e-4)


def test_the_snippets_load_a_lenet_and_keep_its_pruned_weights_at_zero(values, tmp_path):
    store, found = values
    value = found["lenet_300_100 rewound"]
    portable.write(tmp_path / "ticket.safetensors", portable.ticket(value.key, store))
    network = run(SNIPPETS[1], tmp_path)["network"]
    first = "network = torchvision.models.resnet18(num_classes=10)\n"
    assert first in SNIPPETS[0]
    known = run(SNIPPETS[0].replace(first, ""), tmp_path, network=network)
    dataset = helpers.load()
    batches = [(dataset.train_x[i : i + 50] / 16.0, dataset.train_y[i : i + 50]) for i in range(0, 200, 50)]
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    run(SNIPPETS[2], tmp_path, torch=torch, batches=batches, network=network, masks=known["masks"])
    for name, kept in derive.mask(value.mask, store).items():
        weight = network.get_parameter(name)
        assert not weight[~kept].any() and (weight != before[name])[kept].float().mean() > 0.5
    facts = run(SNIPPETS[3], tmp_path)["facts"]
    assert facts["key"] == value.key and facts["layers"]["fc1.weight"][1] == 64 * 300


# --- what is no ticket ----------------------------------------------------------------------------------------


def change(path, arrays=None, facts=None, drop=(), seal=True):
    """Write a file anew with other arrays or facts; `seal` makes its checksum fit."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    told = {n: json.loads(t) for n, t in json.loads(content[8 : 8 + size])["__metadata__"].items()}
    held = load_file(path) | (arrays or {})
    told |= facts or {}
    for name in drop:
        held.pop(name, None)
        told.pop(name, None)
    if seal:
        told.pop("checksum", None)
        told["checksum"] = portable._checksum(told, held)
    path.write_bytes(tensor_bytes(held, {name: json.dumps(fact) for name, fact in told.items()}))


def held(path, name):
    return load_file(path)[name].copy()


def revived(path):
    weight, bits = held(path, "fc2.weight"), held(path, "mask.fc2.weight")
    weight.ravel()[np.flatnonzero(np.unpackbits(bits)[: weight.size] == 0)[:2]] = 1.0
    change(path, {"fc2.weight": weight})


def without_finite(path):
    change(path, {"fc3.bias": np.full(10, np.nan, np.float32)})


def with_head(path, **facts):
    layers = portable.read(path).facts.model_dump(mode="json")["layers"] | {"fc3.weight": [1000, 1000]}
    total = sum(size for _, size in layers.values())
    kept = sum(count for count, _ in layers.values())
    packed = np.packbits(np.ones(1000, bool))
    change(path, {"mask.fc3.weight": packed}, {"layers": layers, "total": total, "kept": kept} | facts)


def with_spare_bits(path):
    change(path, {"mask.fc2.weight": np.append(held(path, "mask.fc2.weight"), np.uint8(1))})


def miscounted(path):
    layers = portable.read(path).facts.model_dump(mode="json")["layers"]
    layers["fc1.weight"][0] += 1
    layers["fc2.weight"][0] -= 1
    change(path, facts={"layers": layers})


def forged(path):
    descriptions = portable.read(path).facts.model_dump(mode="json")["descriptions"]
    key = next(iter(descriptions))
    descriptions[key]["recipe"]["lr"] = 1.0
    change(path, facts={"descriptions": descriptions})


WIDE = {"name": "resnet20", "width": 10**9, "shortcut": "B", "init": "he_fan_out"}
WRONG = {
    "another type": (
        lambda p: change(p, {"fc1.bias": np.zeros(300)}),
        r"'fc1.bias' is \('F64', \(300,\)\); allowed: \('F32', \(300,\)\)",
    ),
    "another shape": (
        lambda p: change(p, {"fc1.bias": np.zeros(299, np.float32)}),
        r"'fc1.bias' is .*299.*allowed: .*300",
    ),
    "a name too many": (lambda p: change(p, {"fc4.bias": np.zeros(1)}), "'lenet_300_100' has no 'fc4.bias'"),
    "a mask too many": (lambda p: change(p, {"mask.fc4.weight": np.zeros(1, np.uint8)}), "has no 'mask.fc4.weight'"),
    "a name too few": (lambda p: change(p, drop=["fc2.bias"]), "'fc2.bias' is missing"),
    "a mask too few": (lambda p: change(p, drop=["mask.fc2.weight"]), "'mask.fc2.weight' is missing"),
    "a mask not packed": (
        lambda p: change(p, {"mask.fc2.weight": np.ones((100, 300), np.uint8)}),
        r"'mask.fc2.weight' is .*100, 300.*3750",
    ),
    "a mask of another size": (with_spare_bits, r"3751.*allowed: \('U8', \(3750,\)\)"),
    "a mask on the head": (with_head, "the mask covers 'fc3.weight', which 'all_but_head' leaves out"),
    "pruned but not zero": (revived, "'fc2.weight' has 2 weights that are not zero though they are pruned"),
    "not finite": (without_finite, "'fc3.bias' has values that are not finite"),
    "miscounted": (miscounted, r"'mask.fc1.weight' keeps \d+ weights, and layers says \d+"),
    "kept": (lambda p: change(p, facts={"kept": 5}), "kept is 5, and the layers sum to"),
    "total": (lambda p: change(p, facts={"total": 5}), "total is 5, and the layers sum to 49200"),
    "another network": (lambda p: change(p, facts={"network": {"name": "resnet20"}}), "'conv1.weight' is missing"),
    "a huge network": (
        lambda p: change(p, facts={"network": WIDE}),
        "no 'resnet20' for images .* can be built",
    ),
    "huge images": (
        lambda p: change(p, facts={"shape": [4096] * 3}),
        r"'fc1.weight' is .*allowed: .*\(300, 68719476736\)",
    ),
    "an unknown network": (
        lambda p: change(p, facts={"network": {"name": "resnet21"}}),
        "network.name: network 'resnet21' is not known; allowed",
    ),
    "a policy": (lambda p: change(p, facts={"policy": "ma_resnet20"}), "policy: .* is for ResNets"),
    "another policy": (lambda p: change(p, facts={"policy": "all"}), "the mask lacks 'fc3.weight', which 'all' prunes"),
    "a fact too many": (lambda p: change(p, facts={"evil": 1}), "evil: unknown field"),
    "a fact too few": (lambda p: change(p, drop=["shape"]), "shape: missing"),
    "a fact of another type": (lambda p: change(p, facts={"classes": "10"}), "classes: '10' is not allowed"),
    "a name with codes for terminals": (
        lambda p: change(p, facts={"data": {"name": "digits\x1b[2J"}}),
        r"data: name 'digits\\x1b\[2J' is not allowed; allowed: text of up to 500",
    ),
    "no name": (lambda p: change(p, facts={"data": {}}), "data: name None is not allowed"),
    "a long view": (lambda p: change(p, facts={"view": "x" * 10**6}), "view 'xxx.* is not allowed; allowed: text"),
    "another format": (
        lambda p: change(p, facts={"format": "lthlab ticket 2"}),
        'format "lthlab ticket 2"; allowed: "lthlab ticket 1"',
    ),
    "no format": (lambda p: change(p, drop=["format"]), "is no ticket that this version reads: format none"),
    "a forged description": (forged, "the description of [0-9a-f]{32} is not that of its key"),
    "no description": (lambda p: change(p, facts={"key": "0" * 32}), "key '0{32}' has no description"),
    "a weight": (lambda p: change(p, {"fc3.bias": held(p, "fc3.bias") + 1}, seal=False), "does not match its checksum"),
    "a metric": (
        lambda p: change(p, facts={"metrics": {"test_accuracy": 1.0}}, seal=False),
        "does not match its checksum",
    ),
    "no checksum": (lambda p: change(p, drop=["checksum"], seal=False), "does not match its checksum"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "is no whole safetensors file"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is no whole safetensors file"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"0"), "is no whole safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "is no whole safetensors file"),
    "a huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "is no whole safetensors file"),
    "a pickle": (lambda p: torch.save({"fc1.weight": torch.zeros(1)}, p), "is no whole safetensors file"),
    "gone": (lambda p: p.unlink(), "there is no such file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "there is no such file"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "there is no such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_ticket_is_refused_with_the_reason(name, file):
    spoil, says = WRONG[name]
    spoil(file)
    with pytest.raises(InputError, match=says) as caught:
        portable.read(file)
    assert str(caught.value).startswith(str(file)) and len(str(caught.value)) < 3000


def test_a_header_of_nested_lists_is_refused(file):
    content = tensor_bytes(load_file(file), {"format": json.dumps(portable.FORMAT), "view": "[" * 10**6})
    file.write_bytes(content)
    with pytest.raises(InputError, match="its header is not JSON"):
        portable.read(file)


def test_shapes_that_the_file_cannot_hold_are_refused(file):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match="is no whole safetensors file"):
        portable.read(file)


def test_bits_behind_the_last_weight_are_refused(tmp_path):
    """The first layer of a ResNet of one channel has nine weights, so its mask ends within a byte."""
    store, odd = helpers.store(tmp_path / "runs"), helpers.narrow(1)
    mask = Magnitude(At(Train(odd, helpers.DIGITS, helpers.recipe(epochs=1), Fresh(0), 0), "0ep"), "0.5")
    lab.compute([mask], store)
    path = tmp_path / "ticket.safetensors"
    portable.write(path, portable.ticket(mask.key, store))
    bits = held(path, "mask.conv1.weight")
    assert bits.shape == (2,) and portable.read(path).facts.layers["conv1.weight"][1] == 9
    bits[1] |= 1
    change(path, {"mask.conv1.weight": bits})
    with pytest.raises(InputError, match="'mask.conv1.weight' has bits behind the last of its 9 weights"):
        portable.read(path)


def test_a_mask_of_filters_may_cover_any_parameter(file):
    with_head(file, granularity="filter")
    assert portable.read(file).mask["fc3.weight"].all()


# --- what is not exported -------------------------------------------------------------------------------------


def test_what_has_no_ticket_is_refused(values, tmp_path):
    store, found = values
    for name, says in (("lenet_300_100 dense", "has no mask, so it is no ticket"), ("measure", "has no mask")):
        with pytest.raises(InputError, match=rf"{re.escape(repr(found[name]))} {says}.*allowed: masks, and trainings"):
            portable.ticket(found[name].key, store)
    with pytest.raises(InputError, match="KEY 'zz' begins no key"):
        portable.ticket("zz", store)
    with pytest.raises(InputError, match="KEY '' begins"):
        portable.ticket("", store)
    firsts = [key[0] for key in store.keys()]  # noqa: SIM118
    twice = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(InputError, match=f"KEY '{twice}' begins {firsts.count(twice)} keys, such as"):
        portable.ticket(twice, store)


def narrow(run):
    return Train(Narrow(RESNET, "0.5"), run.data, run.recipe, Fresh(0), 0)


def pruning(run):
    return Train(run.net, run.data, run.recipe, Fresh(0), 0, pruning=Gradual("1it", "1ep", "1it", "0.5"))


@pytest.mark.parametrize(
    "make, says",
    [
        (narrow, "has no mask"),
        (lambda run: Magnitude(At(narrow(run), "0ep"), "0.5"), "is of a narrow network"),
        (pruning, "prunes on its way and begins without its mask; allowed: that mask"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(make, says, values):
    _, found = values
    value = make(found["lenet_300_100 dense"])
    with pytest.raises(InputError, match=says):
        portable._under(value)


@pytest.mark.parametrize("what", ["rewound", "mask"])
def test_what_is_stale_is_not_exported(what, values, tmp_path):
    _, found = values
    store, value = helpers.store(tmp_path / "runs"), found[f"resnet8 {what}"]
    lab.compute([value], store)
    store.commit(value.key, len(store.parts(value.key)), {}, {"kind": "stale", "reason": "it came out otherwise"})
    with pytest.raises(InputError, match=rf"\({value.key}\) cannot be exported: it is stale; `lthlab status` says why"):
        portable.ticket(value.key, store)


def test_weights_that_the_store_has_lost_are_named(values, tmp_path):
    store = helpers.store(tmp_path / "runs")
    _, found = values
    value = found["lenet_300_100 rewound"]
    lab.compute([value], store)
    store.discard(found["lenet_300_100 dense"].key)
    with pytest.raises(InputError, match=rf"Train\({value.key}\) cannot be exported: .* the state at 1ep is not kept"):
        portable.ticket(value.key, store)


# --- the command line -----------------------------------------------------------------------------------------


def command(capsys, *arguments):
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_export_and_import(values, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, found = values
    value = found["resnet8 rewound"]
    export = ["ticket", "export", value.key[:10], "ticket.safetensors", "--runs", store.root]
    code, out, _ = command(capsys, *export)
    says = "ticket of resnet8 on 'digits' (val size 50): IMP, level 2, 64 % of"
    assert code == 0 and out.startswith(f"ticket.safetensors: {says}")
    code, out, _ = command(capsys, *export, "--json")
    told = json.loads(out)
    assert (code, told["schema"], told["written"], told["facts"]["key"]) == (0, 1, False, value.key)
    for _ in range(2):
        code, out, _ = command(capsys, "ticket", "import", "ticket.safetensors", "--runs", "elsewhere")
        assert code == 0 and out.startswith(f"ticket.safetensors is whole: {says}")
    (copy,) = Path("elsewhere/tickets").iterdir()
    assert copy.read_bytes() == Path("ticket.safetensors").read_bytes() and str(copy) in out
    helpers.flip(copy)
    code, out, _ = command(capsys, "ticket", "import", "ticket.safetensors", "--runs", "elsewhere", "--json")
    assert (code, json.loads(out)["copy"]) == (0, str(copy.absolute())) and portable.read(copy).facts.key == value.key


def test_bad_input_on_the_command_line(values, tmp_path, capsys, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    store, found = values
    before, other = file.read_bytes(), found["resnet8 mask"].key
    for arguments, says in (
        (["export", other, file, "--runs", store.root], "is there already, with other content"),
        (["export", other, "x/y.safetensors", "--runs", store.root], "there is no folder x"),
        (["export", "none", "new"], "KEY 'none' begins no key in "),
        (["import", "new"], "new: there is no such file"),
        (["imprt", "new"], "did you mean 'import'"),
    ):
        code, out, err = command(capsys, "ticket", *arguments)
        assert (code, out) == (2, "") and says in err
    file.write_bytes(before[:-1])
    assert command(capsys, "ticket", "import", file, "--runs", "elsewhere")[0] == 2
    assert file.read_bytes() == before[:-1] and os.listdir(tmp_path) == [file.name]
