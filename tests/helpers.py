"""What tests share: small recipes, plain torch networks, the bits of a store, and frames without trainings."""

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.plain import plain  # noqa: F401 (the networks once more, in plain torch)
from lthlab import data, masks, nets, tickets
from lthlab.datasets import DataFacts
from lthlab.engine import Job, Training
from lthlab.parts import Data, Net, Recipe
from lthlab.store import Store
from lthlab.values import Fresh, Train

torch.set_num_threads(1)  # The networks here are so small that a second thread only gets in the way.

LENET = Net(name="lenet_300_100")
DIGITS = Data(name="digits", train_size=200, val_size=50)
CIFAR = DataFacts((3, 32, 32), 10, 50000, 10000, "c" * 32)


def narrow(width=4, **fields):
    """Describe a ResNet-8 of few channels."""
    return Net(name="resnet8", width=width, **fields)


def recipe(**fields):
    """Describe two epochs of four steps, the last with a smaller batch."""
    return Recipe(**{"epochs": 2, "batch_size": 64, "lr": 0.05, "weight_decay": 1e-3} | fields)


def train(net=LENET, dataset=DIGITS, replicate=0, init=None, **fields):
    """Describe a training of `recipe(**fields)`."""
    return Train(net, dataset, recipe(**fields), init or Fresh(replicate), replicate)


def load(dataset=DIGITS, thin=5):
    """Load what `dataset` describes, with every fifth test image."""
    found = data.load(dataset, None)
    return replace(found, test_x=found.test_x[::thin], test_y=found.test_y[::thin])


def half_mask(net, dataset, replicate):
    """Keep half of the weights, the largest of those that another replicate begins with."""
    weights = nets.fresh(net, dataset, replicate + 100)
    weights = {name: weights[name] for name in nets.prunable(net, dataset, "all_but_head")}
    return masks.magnitude(weights, sum(w.numel() for w in weights.values()) // 2)


def job(value, mask=None, keep=()):
    """Make a job of a training from fresh weights."""
    state = nets.fresh(value.net, value.data, value.init.replicate, value.init.draw)
    return Job(value, state, mask, frozenset(keep))


def run(jobs, dataset=None, until=None, form=None):
    """Train jobs together to the end."""
    training = Training(jobs, dataset or load(jobs[0].train.data), form=form)
    until = until or jobs[0].train.end
    while training.iteration < until:
        training.advance(until)
    return training


def equal(first, second):
    """Tell whether two states have the same bits, by name."""
    same = [name for name in first if first[name].numpy().tobytes() == second[name].numpy().tobytes()]
    return first.keys() == second.keys() and len(same) == len(first)


# --- stores ---------------------------------------------------------------------------------------------------


def bits(root):
    """Every file of a store, and every folder, without what tells when and where a result was computed."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        content = None if path.is_dir() else path.read_bytes()
        if path.name == "manifest.json":
            body = json.loads(content)
            del body["blake2b"], body["files"]["provenance.json"]
            content = json.dumps(body)
        found[name] = "" if path.name == "provenance.json" else content
    found.pop("timings.jsonl", None)
    return found


@functools.cache
def decoded():
    """Decode the digits once; returns the content of the file that a store keeps of them."""
    with tempfile.TemporaryDirectory() as folder:
        data.load("digits", Path(folder))
        return Path(folder, "digits.safetensors").read_bytes()


def store(root):
    """Make a store that has the decoded digits already."""
    (root / "data").mkdir(parents=True)
    (root / "data" / "digits.safetensors").write_bytes(decoded())
    return Store(root)


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# --- frames ---------------------------------------------------------------------------------------------------


def frame_of(config, seed=0):
    """Make the tidy frame of a study of which everything is done, with random outcomes, one per value."""
    random = np.random.default_rng(seed)
    rows = [{"study": config.name, **item.role, "key": item.value.key} for item in tickets.expand(config)]
    frame = pd.DataFrame(rows).assign(status="done", note=None)
    number = frame["key"].factorize()[0]
    kept = random.permutation(len(frame))[number] + 1000
    masks, trained = frame["what"] == "mask", frame["what"] == "train"
    frame["metric"] = frame["what"].replace({"train": "test_accuracy", "mask": "kept"})
    frame["epoch"], frame["chance"] = np.where(trained, 2, None), np.where(trained | masks, None, 0.1)
    frame = frame.astype({"epoch": float, "chance": float})
    values = np.where(masks, kept, random.uniform(0.5, 1, len(frame))[number])
    return frame.assign(kept=kept, collapsed=np.where(frame["level"] > 0, 0, None), value=values)
