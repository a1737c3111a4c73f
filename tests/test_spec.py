"""Reading studies: what is wrong is said at its place, all at once, and nothing in a file is ever run."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lthlab import sections, spec
from lthlab.parts import Level, Recipe
from lthlab.spec import StudyError

DEMO = (Path(__file__).parent / "lenet.yaml").read_text(encoding="utf-8")
SMALL = "name: small\nnet: resnet20\ndata: digits\nfind: {epochs: 4, batch_size: 64, lr: 0.1}\n"
REST = SMALL.partition("find")[0]
GRID = DEMO.replace("  lr: [0.01, 0.05, 0.2]", "  lr:\n  - 0.01\n  - §abc\n  - §0\n  - 0.2")
LT, WR, RP = "LT: {methods: [IMP, OMP]}", "WR: {methods: [IMP], rewind: 1ep}", "{p: 0.1, of: [dense, LT, RR]}"


def problems(text, name="study.yaml"):
    with pytest.raises(StudyError) as caught:
        spec.parse(text, name)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return caught.value.problems


def marked(text):
    """Split text with marks § into the text and the places (line, column) of the marks."""
    places, clean = [], ""
    for piece in re.split("(§)", text):
        if piece == "§":
            places.append((clean.count("\n") + 1, len(clean) - clean.rfind("\n")))
        else:
            clean += piece
    return clean, places


def mutated(old, new):
    assert DEMO.count(old) == 1, old
    return DEMO.replace(old, new)


# --- malformed studies: § marks where a problem must be shown; then field and words (between …) of each --------

MUTATIONS = {
    # misspelt fields, at every level
    "name": ("name: demo", "§nme: demo", [("name", "missing"), ("nme", "did you mean 'name'?")]),
    "net": ("net: lenet_300_100", "§nett: lenet_300_100", [("net", "missing"), ("nett", "did you mean 'net'?")]),
    "replicates": ("replicates: 6", "§replicate: 6", [("replicate", "unknown field; allowed: data, eval, find")]),
    "find": ("find:", "§fnid:", [("find", "missing"), ("fnid", "did you mean 'find'?")]),
    "tickets": ("tickets:", "§ticket:", [("ticket", "did you mean 'tickets'?")]),
    "find.lr": ("  lr: [", "  §rl: [", [("find.rl", "did you mean 'lr'?")]),
    "find.weight_decay": ("  weight_decay", "  §weigth_decay", [("find.weigth_decay", "mean 'weight_decay'?")]),
    "prune.levels": ("  levels:", "  §level:", [("prune.level", "did you mean 'levels'?")]),
    "protocol.prunable": ("  prunable", "  §prunabel", [("protocol.prunabel", "did you mean 'prunable'?")]),
    "tickets.WRR": (
        "WR: {",
        "§WRR: {",
        [("tickets.WRR", "unknown field; allowed: FT, GMP, LRR, LT, PPR, RR, RT, SDT, WR; did you mean 'WR'?")],
    ),
    "LT.method": (LT, "LT: {§method: [IMP, OMP]}", [("tickets.LT.method", "did you mean 'methods'?")]),
    "WR.rewind": (
        WR,
        "§WR: {methods: [IMP], §rewnid: 1ep}",
        [("tickets.WR.rewind", "missing"), ("tickets.WR.rewnid", "did you mean 'rewind'?")],
    ),
    "measure": (
        "correlation_indicator:",
        "§correlation_indicatr:",
        [("measures.correlation_indicatr", "did you mean 'correlation_indicator'?")],
    ),
    "measure.p": ("{p: 0.1", "{§P: 0.1", [("measures.correlation_indicator.P", "did you mean 'p'?")]),
    "net.width": (
        "net: lenet_300_100",
        "net: {name: resnet20, §widht: 8}",
        [("net.widht", "did you mean 'width'?")],
    ),
    "data.val_size": ("data: digits", "data: {name: digits, §valsize: 8}", [("data.valsize", "mean 'val_size'?")]),
    "merge key": ("replicates: 6", "§<<: {replicates: 6}", [("<<", "unknown field")]),
    "number as field": ("replicates: 6", "§6: replicates", [("6", "unknown field")]),
    # wrong types
    "name, number": ("name: demo", "§name: 3", [("name", "3 is not allowed; allowed: text")]),
    "name, space": ("name: demo", "§name: my demo", [("name", "'my demo' is not allowed")]),
    "name, path": ("name: demo", "§name: ../demo", [("name", "'../demo' is not allowed")]),
    "name, unicode": ("name: demo", "§name: дема", [("name", "'дема' is not allowed")]),
    "title, list": (
        "title: Lottery",
        "§title: [a]\n#",
        [("title", "['a'] is not allowed; allowed: text")],
    ),
    "net, number": ("net: lenet_300_100", "§net: 3", [("net", "3 is not allowed; allowed: a mapping")]),
    "net, empty list": ("net: lenet_300_100", "§net: []", [("net", "[] is not allowed; allowed: a mapping")]),
    "replicates, text": ("replicates: 6", "§replicates: six", [("replicates", "'six'…allowed: a whole number")]),
    "replicates, quoted": ("replicates: 6", "§replicates: '6'", [("replicates", "'6'…allowed: a whole number")]),
    "replicates, float": ("replicates: 6", "§replicates: 6.0", [("replicates", "6.0…allowed: a whole number")]),
    "replicates, bool": ("replicates: 6", "§replicates: true", [("replicates", "True…allowed: a whole number")]),
    "replicates, yes": ("replicates: 6", "§replicates: yes", [("replicates", "'yes'…allowed: a whole number")]),
    "replicates, date": ("replicates: 6", "§replicates: 2020-01-01", [("replicates", "'2020-01-01' is not allowed")]),
    "replicates, null": ("replicates: 6", "§replicates:", [("replicates", "None is not allowed")]),
    "replicates, 0": ("replicates: 6", "§replicates: 0", [("replicates", "0 is not allowed; allowed: 1 or more")]),
    "replicates, huge": ("replicates: 6", f"§replicates: {10**30}", [("replicates", f"{10**30}…10000 or less")]),
    "replicates, 5000 digits": (
        "replicates: 6",
        f"§replicates: {'9' * 5000}",
        [("replicates", "9... is not allowed; allowed: a whole number")],
    ),
    "find, list": (
        "find:\n",
        "§find: []\n§x:\n",
        [("find", "[] is not allowed; allowed: a mapping"), ("x", "unknown field")],
    ),
    "tickets, list": (f"  {LT}\n", "  §LT: [IMP, OMP]\n", [("tickets.LT", "allowed: a mapping")]),
    "ticket, yes": (LT, "§LT: true", [("tickets.LT", "True is not allowed; allowed: a mapping")]),
    "momentum, bool": ("momentum: 0.9", "§momentum: true", [("find.momentum", "True…allowed: a number")]),
    "lr, mapping": ("lr: [0.01, 0.05, 0.2]", "§lr: {a: 1}", [("find.lr", "allowed: a number")]),
    "lr, empty": (
        "lr: [0.01, 0.05, 0.2]",
        "§lr: []",
        [("find.lr", "[] is not allowed; allowed: one value or more")],
    ),
    "p, bool": ("{p: 0.1", "{§p: true", [("measures.correlation_indicator.p", "True…allowed: a number")]),
    "rate, text": ("rate: 0.2", "§rate: '0.2'", [("prune.rate", "'0.2'…allowed: a number")]),
    # unknown names
    "network": ("net: lenet_300_100", "§net: lenet_300", [("net.name", "'lenet_300' is not known…'lenet_300_100'")]),
    "network, in a mapping": (
        "net: lenet_300_100",
        "net: {§name: resnet21}",
        [("net.name", "network 'resnet21' is not known; allowed: conv2, conv4, conv6, lenet_300_100")],
    ),
    "images too small": (
        "net: lenet_300_100",
        "§net: vgg11",
        [
            (
                "net",
                "'vgg11' halves images 4 times, and those of 8×8 pixels are too small…allowed: at least 16×16 pixels",
            )
        ],
    ),
    "images too small for a stem": (
        "net: lenet_300_100",
        "§net: {name: resnet18, stem: imagenet}",
        [("net", "'resnet18' with stem 'imagenet' halves images 5 times…8×8 pixels…at least 17×17 pixels")],
    ),
    "scheme": (
        "net: lenet_300_100",
        "net: {name: conv2, §init: glorot}",
        [("net.init", "'glorot' is not allowed…'glorot_normal'")],
    ),
    "shortcut of another network": (
        "net: lenet_300_100",
        "net: {name: resnet18, §shortcut: none}",
        [("net.shortcut", "network 'resnet18' has no such field; allowed: init, name, stem, width")],
    ),
    "field of another network": (
        "net: lenet_300_100",
        "net: {name: lenet_300_100, §width: 8}",
        [("net.width", "network 'lenet_300_100' has no such field")],
    ),
    "data set": ("data: digits", "§data: digit", [("data.name", "'digit' is not known;…did you mean 'digits'?")]),
    "policy": (
        "prunable: all_but_head",
        "§prunable: al_but_head",
        [("protocol.prunable", "'al_but_head' is not known;…did you mean 'all_but_head'?")],
    ),
    "policy of another network": (
        "prunable: all_but_head",
        "§prunable: ma_resnet20",
        [("protocol.prunable", "'ma_resnet20' is for ResNets, not for 'lenet_300_100'")],
    ),
    "rewound_masks": (
        "masks: initial",
        "masks: intial",
        [("protocol.rewound_masks", "'intial'…did you mean 'initial'?")],
    ),
    "ticket": (
        "RR: {",
        "§SDTT: {",
        [("tickets.SDTT", "unknown field; allowed: FT, GMP, LRR, LT, PPR, RR, RT, SDT, WR; did you mean 'SDT'?")],
    ),
    "method": (LT, "LT: {methods: [§imp, OMP]}", [("tickets.LT.methods.0", "'imp'…did you mean 'IMP'?")]),
    "method, alone": (LT, "LT: {§methods: IPM}", [("tickets.LT.methods", "'IPM'…did you mean 'IMP'?")]),
    "measured ticket": ("dense, LT, RR]", "dense, §lt, RR]", [("measures.correlation_indicator.of.1", "mean 'LT'?")]),
    "optimizer": (
        "momentum: 0.9",
        "§optimizer: adamax",
        [("find.optimizer", "'adamax'…allowed: adam, adamw, sgd;…'adam'?")],
    ),
    "schedule": ("momentum: 0.9", "§lr_schedule: cosin", [("find.lr_schedule", "'cosin'…did you mean 'cosine'?")]),
    # numbers out of range
    "sparsity 1": (
        "levels: [4, 8, 12, 16]",
        "levels: [4]\n  sparsities: [0.5, §1.0, 0.9]",
        [("prune.sparsities.1", "1.0 is not allowed; allowed: below 1")],
    ),
    "sparsity below 0": (
        "levels: [4, 8, 12, 16]",
        "levels: [4]\n  §sparsities: -0.1",
        [("prune.sparsities", "-0.1 is not allowed; allowed: 0 or more")],
    ),
    "sparsity, text": (
        "levels: [4, 8, 12, 16]",
        "levels: [4]\n  sparsities: [§half]",
        [("prune.sparsities.0", "'half' is not allowed; allowed: a number")],
    ),
    "sparsity nan": (
        "levels: [4, 8, 12, 16]",
        "levels: [4]\n  sparsities: [§.nan]",
        [("prune.sparsities.0", "nan is not allowed")],
    ),
    "level 0": ("[4, 8, 12, 16]", "[4, 8, §0, 16]", [("prune.levels.2", "0 is not allowed; allowed: 1 or more")]),
    "level -1": ("levels: [4, 8, 12, 16]", "§levels: -1", [("prune.levels", "-1 is not allowed; allowed: 1 or more")]),
    "level 1e9": ("[4, 8, 12, 16]", f"[§{10**9}]", [("prune.levels.0", "allowed: 1000 or less")]),
    "level, float": (
        "[4, 8, 12, 16]",
        "[4, §8.5]",
        [("prune.levels.1", "8.5 is not allowed; allowed: a whole number")],
    ),
    "rate 0": ("rate: 0.2", "§rate: 0", [("prune.rate", "0 is not allowed; allowed: above 0")]),
    "rate 1": ("rate: 0.2", "§rate: 1", [("prune.rate", "1 is not allowed; allowed: below 1")]),
    "lr 0": ("[0.01, 0.05, 0.2]", "[0.01, §0, 0.2]", [("find.lr.1", "0 is not allowed; allowed: above 0")]),
    "lr -0.1": ("[0.01, 0.05, 0.2]", "[§-0.1]", [("find.lr.0", "-0.1 is not allowed; allowed: above 0")]),
    "lr nan": ("[0.01, 0.05, 0.2]", "[0.1, §.nan]", [("find.lr.1", "nan is not allowed")]),
    "lr inf": ("[0.01, 0.05, 0.2]", "[0.1, §1e400]", [("find.lr.1", "inf is not allowed; allowed: a finite number")]),
    "lr, text": ("[0.01, 0.05, 0.2]", "[0.1, §'0.2']", [("find.lr.1", "'0.2' is not allowed; allowed: a number")]),
    "lr, alone": ("lr: [0.01, 0.05, 0.2]", "§lr: big", [("find.lr", "'big' is not allowed; allowed: a number")]),
    "lr, missing": ("  lr: [0.01, 0.05, 0.2]\n", "", [("find.lr", "missing")]),
    "epochs 0": ("  epochs: 20", "  §epochs: 0", [("find.epochs", "0 is not allowed; allowed: 1 or more")]),
    "batch": ("batch_size: 64", "§batch_size: 1298", [("find.batch_size", "1298…training set; allowed: 1 to 1297")]),
    "momentum 1": ("momentum: 0.9", "§momentum: 1", [("find.momentum", "1 is not allowed; allowed: below 1")]),
    "decay": (
        "weight_decay: 1.0e-4",
        "§weight_decay: -1e-4",
        [("find.weight_decay", "-0.0001 is not allowed; allowed: 0")],
    ),
    "p 0": ("{p: 0.1", "{§p: 0", [("measures.correlation_indicator.p", "0 is not allowed; allowed: above 0")]),
    "validation": (
        "data: digits",
        "data: {name: digits, §val_size: 1297}",
        [("data.val_size", "1297 of 1297 images of 'digits'; allowed: 0 to 1296")],
    ),
    "classes twice": (
        "data: digits",
        "data: {name: digits, §classes: [1, 2, 1]}",
        [("data.classes", "1 is given more than once; allowed: each class once")],
    ),
    "classes unknown": (
        "data: digits",
        "data: {name: digits, §classes: [1, 10]}",
        [("data.classes", "'digits' has no class 10; allowed: 0 to 9")],
    ),
    "part": (
        "data: digits",
        "data: {name: digits, §part: c}",
        [("data.part", "'c' is not allowed; allowed: a, b")],
    ),
    "size": ("data: digits", "data: {name: digits, §size: 4}", [("data.size", "4 is less than…8 × 8; allowed: 8 or")]),
    "normalise": (
        "data: digits",
        "data: {name: digits, §normalise: imagenet}",
        [("data.normalise", "'imagenet' is for 3 channels…allowed with: channels 3")],
    ),
    "sizes of a part": (
        "data: digits",
        "data: {name: digits, part: b, §train_size: 649}",
        [("data.train_size", "649 images; allowed: 1 to 648")],
    ),
    # fields that do not fit each other
    "batch larger than a part": (
        "data: digits\n",
        "data: {name: digits, part: a, classes: [0, 1], train_size: 63}\n",
        [("find.batch_size", "64 is larger than the training set; allowed: 1 to 63")],
    ),
    "milestones behind": (
        "momentum: 0.9",
        "lr_schedule: step\n  §milestones: [10ep, 20ep]",
        [("find.milestones", "20ep is not before the end; allowed: below 20ep")],
    ),
    "milestones behind, iterations": (
        "momentum: 0.9",
        "lr_schedule: step\n  §milestones: [419it, 420it]",
        [("find.milestones", "420it is not before the end; allowed: below 20ep, 420it")],
    ),
    "milestones, form": (
        "momentum: 0.9",
        "lr_schedule: step\n  milestones: [[§80]]",
        [("find.milestones.0.0", "80 is not allowed; allowed: text")],
    ),
    "milestones without step": (
        "momentum: 0.9",
        "§milestones: [10ep]",
        [("find.milestones", "given with lr_schedule 'constant'; allowed with: step")],
    ),
    "no milestones": ("  momentum: 0.9", "  lr_schedule: step", [("find.milestones", "missing; allowed with")]),
    "warmup behind": ("momentum: 0.9", "§warmup: 421it", [("find.warmup", "421it is not before the end")]),
    "rewind behind": (
        WR,
        "WR: {methods: [IMP], §rewind: 20ep}",
        [("tickets.WR.rewind", "20ep is not before the end; allowed: below 20ep, 420it")],
    ),
    "rewind behind, iterations": (
        WR,
        "WR: {methods: [IMP], §rewind: 420it}",
        [("tickets.WR.rewind", "420it is not before the end")],
    ),
    "rewind, name": (WR, "WR: {§rewind: last}", [("tickets.WR.rewind", "'last' is not a number of epochs")]),
    "rewind, number": (WR, "WR: {§rewind: 1}", [("tickets.WR.rewind", "1 is not allowed; allowed: text")]),
    "rewind behind eval": (
        WR + "\n",
        "WR: {§rewind: 5ep}\neval: {epochs: 5}\n",
        [("tickets.WR.rewind", "5ep leaves nothing of the 5 epochs of eval; allowed: below 5ep")],
    ),
    "rewind within an epoch": (
        WR + "\n",
        "WR: {§rewind: 30it}\neval: {batch_size: 32}\n",
        [("tickets.WR.rewind", "epochs of find and eval differ in length, 21 and 41 steps")],
    ),
    "eval alone": (
        "prune:",
        "eval: {§warmup: 25ep}\nprune:",
        [("eval.warmup", "25ep is not before the end; allowed: below 20ep")],
    ),
    "eval with find": (
        "  momentum: 0.9\n  weight_decay: 1.0e-4\n",
        "  lr_schedule: step\n  milestones: [[10ep]]\n§eval: {epochs: 5}\n",
        [("eval.milestones", "10ep is not before the end; allowed: below 5ep")],
    ),
    "no levels": ("  levels: [4, 8, 12, 16]\n", "", [("prune.levels", "missing; masks of LT, RR, WR need levels")]),
    "no levels for IMP": (
        "levels: [4, 8, 12, 16]",
        "sparsities: 0.5",
        [("prune.levels", "missing; masks of LT, RR, WR need levels")],
    ),
    "measured but not asked": (
        f"  {LT}\n",
        "",
        [("measures.correlation_indicator.of.1", "'LT' is not among the study's tickets; allowed: RR, WR, dense")],
    ),
    "no validation": (
        "rewound_masks: initial",
        "§report: best_val",
        [("protocol.report", "best_val needs validation images; set data.val_size above 0")],
    ),
    "no validation for masks": (
        "rewound_masks: initial",
        "§masks_from: best_val",
        [("protocol.masks_from", "best_val needs validation images; set data.val_size above 0")],
    ),
    "betas with sgd alone": (
        "  momentum: 0.9\n",
        "  momentum: 0.9\n  §betas: [0.9, 0.99]\n",
        [("find.betas", "[0.9, 0.99] with optimizer 'sgd' alone; allowed with: adam, adamw")],
    ),
    "nesterov with adam": (
        "  momentum: 0.9\n",
        "  optimizer: adam\n  §nesterov: true\n",
        [("find.nesterov", "given with optimizer 'adam'; allowed with: sgd")],
    ),
    "nesterov without momentum": (
        "  momentum: 0.9\n",
        "  momentum: 0.0\n  §nesterov: true\n",
        [("find.nesterov", "given with momentum 0.0; allowed with: momentum above 0")],
    ),
    "negative mixup": (
        "  momentum: 0.9\n",
        "  momentum: 0.9\n  §mixup: -0.2\n",
        [("find.mixup", "-0.2 is not allowed; allowed: 0 or more")],
    ),
    # YAML that is no study
    "twice": ("replicates: 6", "replicates: 6\n§name: other", [("name", "given twice, first in line 8")]),
    "twice, nested": ("  momentum: 0.9", "  §lr: 0.1\n  momentum: 0.9", [("find.lr", "given twice, first in line 16")]),
    "tab": ("replicates: 6", "§\treplicates: 6", [("", "not valid YAML")]),
    "bracket": ("[4, 8, 12, 16]", "[4, 8, 12, 16", [("", "not valid YAML")]),
    "quotation mark": ("name: demo", 'name: "demo', [("", "not valid YAML")]),
    "two documents": ("replicates: 6", "replicates: 6\n§---\nreplicates: 6", [("", "not valid YAML")]),
    "alias": ("replicates: 6", "replicates: &n 6\ntitle2: §*n", [("", "alias *n: not allowed; write the value out")]),
    "undefined alias": ("replicates: 6", "replicates: §*n", [("", "alias *n: not allowed")]),
    "alias of itself": ("replicates: 6", "replicates: &n [§*n]", [("", "alias *n: not allowed")]),
    "tag": ("replicates: 6", "replicates: §!!int '6'", [("", "tag…int: not allowed; write plain values")]),
    "own tag": ("net: lenet_300_100", "net: §!net lenet_300_100", [("", "tag !net: not allowed")]),
    "set": ("replicates: 6", "replicates: §!!set {a}", [("", "tag…set: not allowed")]),
    "complex field": ("replicates: 6", "? §[a, b]\n: 6", [("", "the name of a field must be text")]),
    "control character": ("replicates: 6", "replicates: §\x01", [("", "not valid YAML: special characters")]),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_malformed_study_is_refused_at_its_place(name):
    old, new, expected = MUTATIONS[name]
    text, places = marked(mutated(old, new))
    found = problems(text)
    fields = sorted(field for field, _ in expected)
    assert sorted(problem.field for problem in found) == fields, found
    for field, words in expected:
        [message] = {problem.message for problem in found if problem.field == field}
        assert [part for part in words.split("…") if part not in message] == [], message
    shown = [(problem.line, problem.column) for problem in found]
    assert shown == sorted(shown)
    assert set(places) <= set(shown), found
    for problem in found:
        assert str(problem).startswith(f"study.yaml:{problem.line}:{problem.column}: {problem.field}")


def test_batchnorm_needs_more_than_one_number():
    """Of 1297 images in batches of 48 and of 8, one is left over; ResNet-18 shrinks 8×8 pixels to one."""
    text = mutated("net: lenet_300_100", "net: resnet18").replace("  batch_size: 64", "  §batch_size: [64, 48, 8]")
    text, places = marked(text)
    found = problems(text)
    assert {(problem.field, problem.line) for problem in found} == {("find.batch_size", places[0][0])}
    assert all("one image, of which the last maps of 'resnet18' have one place" in str(problem) for problem in found)
    spec.parse(text.replace("net: resnet18", "net: resnet20"))


def test_the_corpus_is_large():
    assert len(MUTATIONS) >= 60
    assert sum("§" in new for _, new, _ in MUTATIONS.values()) >= 60


def test_missing_fields_are_shown_at_their_section():
    [problem] = problems(DEMO.replace("  lr: [0.01, 0.05, 0.2]\n", ""))
    line = DEMO[: DEMO.index("find:")].count("\n") + 1
    assert (problem.line, problem.column, problem.field) == (line, 1, "find.lr")


def test_items_of_a_list_over_several_lines_are_located():
    text, places = marked(GRID)
    found = problems(text)
    assert [(p.field, p.line, p.column) for p in found] == [
        ("find.lr.1", *places[0]),
        ("find.lr.2", *places[1]),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "None is not allowed; allowed: a mapping"),
        ("# nothing\n", "None is not allowed; allowed: a mapping"),
        ("[]", "allowed: a mapping"),
        ("study", "'study' is not allowed; allowed: a mapping"),
        ("3", "3 is not allowed; allowed: a mapping"),
        ("- name: x\n", "allowed: a mapping"),
        ("[" * 2000, "nested too deep"),
        ("[" * 500 + "]" * 500, "nested too deep"),
        ("{a: " * 500, "nested too deep"),
        ("- " * 500, "nested too deep"),
        ("%YAML 9.9\n---\nname: x\n", ""),
        ("\x00", "not valid YAML"),
        (": : :", ""),
        ("a: b: c", "not valid YAML"),
        ("&a *a", "not valid YAML"),
    ],
)
def test_what_is_no_study_at_all_is_refused(text, words):
    assert words in str(problems(text)[0])


def test_all_errors_are_shown_at_once():
    text = DEMO
    for old, new in (
        ("name: demo", "§name: my demo"),
        ("replicates: 6", "§replicates: 0"),
        ("lr: [0.01, 0.05, 0.2]", "lr: [0.01, §-1, §x]"),
        ("levels: [4, 8, 12, 16]", "levels: [§0]"),
        ("prunable: all_but_head", "§prunable: al"),
        ("RR: {methods: [IMP, OMP]}", "RR: {methods: [§PIM]}"),
        ("{p: 0.1", "{§p: 2"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    text, places = marked(text + "§extra: 1\n§extra: 2\n")
    found = problems(text)
    assert [(problem.line, problem.column) for problem in found] == places
    assert len(places) == 10


def test_errors_of_fields_do_not_hide_those_between_fields():
    text = DEMO.replace("replicates: 6", "§replicas: 6")
    text = text.replace("momentum: 0.9", "lr_schedule: step\n  §milestones: [[10ep], [30ep]]\n  §warmup: 40ep")
    text = text.replace("rewound_masks: initial", "§report: best_val")
    text, places = marked(text)
    assert [(problem.line, problem.column) for problem in problems(text)] == places
    text = DEMO.replace("replicates: 6", "§replicas: 6").replace("rewind: 1ep", "§rewind: 20ep")
    text, places = marked(text)
    assert [(problem.line, problem.column) for problem in problems(text)] == places


def test_a_wrong_section_causes_no_errors_elsewhere():
    text = DEMO.replace("  LT: {", "  LT: {x: 1, ").replace("levels: [4, 8, 12, 16]", "levels: [0]")
    assert [problem.field for problem in problems(text)] == ["prune.levels.0", "tickets.LT.x"]


# --- files ----------------------------------------------------------------------------------------------------


def refused_file(path):
    with pytest.raises(StudyError) as caught:
        spec.read(path)
    [problem] = caught.value.problems
    assert str(problem).startswith(f"{path}:1:1: cannot be read: ")
    return problem.message


def test_missing_file(tmp_path):
    assert "No such file" in refused_file(tmp_path / "none.yaml")


def test_folder(tmp_path):
    assert "directory" in refused_file(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", bytes(range(256)), b"name: \xe4\n"])
def test_binary_file(tmp_path, content):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert "utf-8" in refused_file(path)


@pytest.mark.parametrize("change", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n")])
def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path, change):
    path = tmp_path / "study.yaml"
    path.write_bytes(change(DEMO.encode()))
    assert spec.read(path) == spec.parse(DEMO)


def test_errors_name_the_file_as_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("studies/a.yaml").write_text(DEMO.replace("replicates: 6", "replicates: 0"))
    with pytest.raises(StudyError, match=r"^studies/a\.yaml:12:1: replicates: 0 is not allowed; allowed: 1 or more$"):
        spec.read("studies/a.yaml")


# --- safety ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        "!!python/object/apply:os.system ['touch {canary}']",
        "!!python/object/new:os.system ['touch {canary}']",
        "!!python/object/apply:subprocess.check_call [['touch', '{canary}']]",
        "!!python/object/apply:builtins.open ['{canary}', 'w']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
@pytest.mark.parametrize("old", ["replicates: 6", "name: demo", "net: lenet_300_100"])
def test_no_code_runs_from_yaml(tmp_path, attack, old):
    canary = tmp_path / "canary"
    text = mutated(old, f"{old.partition(':')[0]}: {attack.format(canary=canary)}")
    assert "python" in problems(text)[0].message
    assert not canary.exists()


def test_a_bomb_of_aliases_is_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.perf_counter()
    assert "not allowed" in problems("\n".join(lines))[0].message
    assert time.perf_counter() - began < 2


@given(st.text(max_size=60))
@settings(max_examples=150)
def test_any_text_gives_a_study_or_a_located_error(text):
    for study in (text, DEMO + text, DEMO.replace("replicates: 6", f"replicates: {text}")):
        try:
            spec.parse(study)
        except StudyError as error:
            assert all(problem.line >= 1 and problem.column >= 1 for problem in error.problems)


@given(st.integers(0, len(DEMO) - 1), st.sampled_from("abz09:-[]{},.\"'#&*!|>%@`~ \n\t"))
@settings(max_examples=250)
def test_any_one_changed_character_gives_a_study_or_a_located_error(place, character):
    study = DEMO[:place] + character + DEMO[place + 1 :]
    lines = study.count("\n") + 1
    try:
        spec.parse(study)
    except StudyError as error:
        assert all(1 <= problem.line <= lines + 1 and problem.column >= 1 for problem in error.problems)


# --- what is read ---------------------------------------------------------------------------------------------


def test_demo():
    config = spec.parse(DEMO)
    find = [Recipe(epochs=20, batch_size=64, lr=lr, weight_decay=1e-4) for lr in (0.01, 0.05, 0.2)]
    assert config.panels[0].recipes == tuple((recipe, recipe) for recipe in find)
    assert (config.name, config.title) == ("demo", "Lottery tickets in LeNet-300-100 on handwritten digits")
    assert (config.panels[0].net.name, config.panels[0].data.name, config.panels[0].replicates) == (
        "lenet_300_100",
        "digits",
        6,
    )
    assert config.panels[0].levels == tuple(Level(k) for k in (4, 8, 12, 16))
    assert config.panels[0].sparsities == ()
    assert config.panels[0].tickets.WR.rewind == ["1ep"]
    assert config.panels[0].tickets.WR.methods == ["IMP"]
    assert config.panels[0].protocol.rewound_masks == "initial"
    assert config.panels[0].measures.correlation_indicator.p == [0.1]


def test_only_required_fields():
    config = spec.parse(SMALL)
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1)
    assert config.panels[0].recipes == ((recipe, recipe),)
    assert (config.title, config.panels[0].replicates, config.panels[0].levels) == ("small", 1, ())
    assert config.panels[0].protocol == sections.Protocol()
    assert [ticket for _, ticket in config.panels[0].tickets] == [None] * 9


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "1E-4", "0.0001", ".0001", "+1e-4", "1.e-4"])
def test_floats_are_those_of_yaml_1_2(number):
    config = spec.parse(SMALL.replace("lr: 0.1", f"lr: {number}"))
    assert config.panels[0].recipes[0][0].lr == 1e-4


def test_whole_numbers_are_numbers():
    config = spec.parse(SMALL.replace("lr: 0.1", "lr: 1"))
    assert config.panels[0].recipes[0][0] == Recipe(epochs=4, batch_size=64, lr=1.0)


def test_grids_pair_equal_recipes_and_overrides():
    text = REST + "find: {epochs: [4, 5], batch_size: 64, lr: [0.1, 0.2]}\n"
    found = [
        (find.epochs, find.lr, evaluate.epochs, evaluate.lr) for find, evaluate in spec.parse(text).panels[0].recipes
    ]
    assert found == [(4, 0.1, 4, 0.1), (4, 0.2, 4, 0.2), (5, 0.1, 5, 0.1), (5, 0.2, 5, 0.2)]
    text += "eval: {lr: [0.3, 0.4]}\n"
    found = [
        (find.epochs, find.lr, evaluate.epochs, evaluate.lr) for find, evaluate in spec.parse(text).panels[0].recipes
    ]
    assert found == [(e, lr, e, other) for e in (4, 5) for lr in (0.1, 0.2) for other in (0.3, 0.4)]


def test_recipes_that_differ_in_nothing_are_one():
    text = (
        REST + "find: {epochs: 4, batch_size: 64, lr: 0.1, optimizer: [sgd, adam], betas: [[0.8, 0.9], [0.9, 0.9]]}\n"
    )
    assert [(find.optimizer, find.betas) for find, _ in spec.parse(text).panels[0].recipes] == [
        ("sgd", (0.9, 0.999)),
        ("adam", (0.8, 0.9)),
        ("adam", (0.9, 0.9)),
    ]


def test_a_list_of_milestones_is_one_schedule_and_a_list_of_lists_several():
    text = REST + "find: {epochs: 4, batch_size: 64, lr: 0.1, lr_schedule: step, milestones: %s}\n"
    one = spec.parse(text % "[1ep, 2ep]").panels[0].recipes
    assert [find.milestones for find, _ in one] == [("1ep", "2ep")]
    several = spec.parse(text % "[[1ep], [2ep, 3ep]]").panels[0].recipes
    assert [find.milestones for find, _ in several] == [("1ep",), ("2ep", "3ep")]


def test_levels_and_sparsities_are_sorted_and_single():
    text = SMALL + "prune: {levels: [3, 1, 3], sparsities: [0.50, 0.5, 5e-1, 0.9], rate: 0.20}\ntickets: {LT: }\n"
    config = spec.parse(text)
    assert config.panels[0].levels == (Level(1), Level(3))
    assert config.panels[0].sparsities == ("0.5", "0.9")
    assert spec.parse(text.replace("0.20", "0.1")).panels[0].levels == (Level(1, "0.1"), Level(3, "0.1"))


def test_a_ticket_or_measure_named_with_nothing_behind_it_is_asked_for():
    text = SMALL + "prune: {levels: 1}\ntickets:\n  LT:\n  RR: {}\nmeasures:\n  correlation_indicator:\n"
    config = spec.parse(text)
    assert config.panels[0].tickets.LT == config.panels[0].tickets.RR == sections.Ticket(methods=["IMP", "OMP"])
    assert config.panels[0].tickets.WR is None
    assert config.panels[0].measures.correlation_indicator == sections.Correlation()
    [problem] = problems(text.replace("RR: {}", "WR:").replace("correlation_indicator:", "{}"))
    assert (problem.field, problem.message) == ("tickets.WR.rewind", "missing")


def test_the_latest_possible_steps_are_accepted():
    text = DEMO.replace("rewind: 1ep", "rewind: 419it")
    assert spec.parse(text).panels[0].tickets.WR.rewind == ["419it"]
    text = DEMO.replace("momentum: 0.9", "lr_schedule: step\n  milestones: [19ep, 419it]\n  warmup: 419it")
    assert spec.parse(text).panels[0].recipes[0][0].warmup == "419it"


@pytest.mark.parametrize("rewind", ["1ep", "42it"])
def test_rewinding_by_whole_epochs_is_possible_between_epochs_of_other_length(rewind):
    text = DEMO.replace("rewind: 1ep", f"rewind: {rewind}") + "eval: {batch_size: 32}\n"
    assert spec.parse(text).panels[0].tickets.WR.rewind == [rewind]
    text = text.replace("rewound_masks", "schedule: restart\n  rewound_masks")
    assert spec.parse(text.replace(rewind, "30it")).panels[0].tickets.WR.rewind == ["30it"]


def test_rewinding_is_checked_for_each_recipe():
    text = SMALL.replace("epochs: 4, batch_size: 64", "epochs: %s, batch_size: %s")
    text += "prune: {levels: 1}\ntickets: {WR: {rewind: 30it}}\n"
    assert len(spec.parse(text % ("[2, 4]", "[64, 32]")).panels[0].recipes) == 4
    [problem] = problems(text % ("[1, 4]", "[64, 32]"))
    assert problem.message == "30it is not before the end; allowed: below 1ep, 21it"


def test_a_problem_prints_as_file_line_column_field_message():
    assert str(spec.Problem("a.yaml", 3, 5, "find.lr", "wrong")) == "a.yaml:3:5: find.lr: wrong"
    assert str(spec.Problem("a.yaml", 1, 1, "", "wrong")) == "a.yaml:1:1: wrong"


def test_processes_share_the_smallest_batch_of_an_epoch():
    text = SMALL.replace("lr: 0.1", "lr: 0.1, batchnorm: per_process, §processes: [2, 18]")
    text, places = marked(text)
    (problem,) = problems(text)
    assert [(problem.line, problem.column)] == places
    assert (problem.field, "18 cannot share" in problem.message) == ("find.processes", True)
    text = text.replace("[2, 18]", "2")
    both = spec.parse(text.replace("net: resnet20", "net: [resnet20, lenet_300_100]"))
    assert [panel.recipes[0][0].processes for panel in both.panels] == [2, 1]
