"""Streamed images: the same bits as in memory, however many processes read them, and what is said when they cannot."""

import os
import re
import signal
import sys
import time
from dataclasses import replace
from threading import Thread

import helpers
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from lthlab import cli, data, datasets, draws, images, replicas, streams
from lthlab.catalog import Installed
from lthlab.engine import Training
from lthlab.errors import InputError
from lthlab.images import Files
from lthlab.parts import Data
from lthlab.streams import Piece, Reader, ReaderEnded

CPU = torch.device("cpu")
FIELDS = {"train_size": 150, "val_size": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the digits as images in files."""
    found, root = data.load("digits", None), tmp_path_factory.mktemp("digits")
    for part in ("train", "test"):
        for number, (x, y) in enumerate(zip(*(getattr(found, f"{part}_{axis}") for axis in "xy"), strict=True)):
            Image.fromarray(x[0].numpy()).save(root / f"{part}-{y}-{number:04}.png")
    return root


@pytest.fixture
def streamed(folder, monkeypatch):
    """Let the digits in files be installed as a set of their own."""
    names = {
        p: sorted((f.name for f in folder.glob(f"{p}-*")), key=lambda n: n.split("-")[2]) for p in ("train", "test")
    }
    decoded = {f"{part}_x": Files(folder, found) for part, found in names.items()}
    decoded |= {f"{part}_y": np.array([int(n.split("-")[1]) for n in found]) for part, found in names.items()}
    monkeypatch.setitem(datasets.DATASETS, "files", replace(datasets.DATASETS["digits"], streamed=True))
    monkeypatch.setattr(data, "installed", lambda name: Installed(datasets.DATASETS[name], {}, decoded))


def processes(monkeypatch, count):
    monkeypatch.setattr(streams, "processes", lambda device: count)


def jobs(name, epochs=2, **fields):
    """Two replicates, the first at two learning rates."""
    values = [
        helpers.train(dataset=Data(name=name, **FIELDS | fields), replicate=r, lr=lr, epochs=epochs) for r, lr in PAIRS
    ]
    return [helpers.job(value, None, {"1ep", "2ep"}) for value in values]


PAIRS = ((0, 0.05), (1, 0.05), (0, 0.1))


def run(jobs):
    return helpers.run(jobs, data.load(jobs[0].train.data, None))


def outcome(training):
    return [[training.group.state(number) for number in range(3)], [p.metrics for p in training.progress]]


def same(first, second):
    return all(map(helpers.equal, first[0], second[0])) and first[1] == second[1]


@pytest.mark.parametrize(("augment", "count"), [("none", 0), ("crop", 0), ("crop_flip", 0), ("crop_flip", 2)])
def test_streamed_images_train_to_the_same_bits_as_those_in_memory(streamed, monkeypatch, augment, count):
    processes(monkeypatch, count)
    expected = run(jobs("digits", augment=augment))
    found = run(jobs("files", augment=augment))
    assert {"train", "val", "test"} == set(found.group.sources) and len(found.progress[0].metrics) == 3
    assert same(outcome(found), outcome(expected))
    if count:
        ids = [child.pid for child in psutil.Process().children(recursive=True) if "spawn_main" in str(child.cmdline())]
        os.kill(ids[0], signal.SIGINT)  # as an interrupt from the keyboard would reach it
        assert len(ids) >= count and found.group.evaluate(found.group.sources["val"]) is not None
        del found
        wait_for(lambda: not any(map(psutil.pid_exists, ids)) or "spawn_main" not in str(alive(ids)))


def test_lanes_that_have_threads_find_the_images_of_each_step(streamed):
    expected = run(jobs("digits", epochs=8))
    with replicas.threads(2):
        found = run(jobs("files", epochs=8))
    assert len(found.group.lanes) == 2 and same(outcome(found), outcome(expected))


def alive(ids):
    return [psutil.Process(pid).cmdline() for pid in ids if psutil.pid_exists(pid)]


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
def test_what_was_stopped_within_an_epoch_goes_on_with_the_same_images(streamed, augment):
    fields = jobs("files", augment=augment)
    dataset = data.load(fields[0].train.data, None)
    undisturbed = helpers.run(fields, dataset)
    training = Training(fields, dataset)
    for stop in (1, 2, 3, 4):  # even and odd steps, which are filled into the one half and the other
        asked = iter([False] * (stop - training.iteration - 1))
        training.advance(6, lambda asked=asked: next(asked, True))
        assert training.iteration == stop
        training = Training.restore(fields, dataset, *training.checkpoint())
    training.advance(6)
    assert same(outcome(training), outcome(undisturbed))


# --- resized crops --------------------------------------------------------------------------------------------


def plainly(image, replicate, epoch, position):
    """Crop and flip one image by its own numbers, with torchvision's functions."""
    numbers = draws.Stream(replicate, "augmentation", epoch).uniform(24 * (position + 1))[-24:]
    left, top, across, down = images.box(8, 8, numbers)
    size, bilinear = [8, 8], transforms.InterpolationMode.BILINEAR
    picture = functional.resized_crop(Image.fromarray(image[0].numpy()), top, left, down, across, size, bilinear)
    return torch.from_numpy(np.array(functional.hflip(picture) if numbers[22] >= 0.5 else picture))[None]


@pytest.mark.parametrize(("name", "count"), [("digits", 0), ("files", 0), ("digits", 1)])
def test_resized_crops_depend_on_replicate_epoch_and_position(streamed, monkeypatch, name, count):
    processes(monkeypatch, count)
    monkeypatch.setattr(streams, "_PIECE", 50)
    values = jobs(name, augment="resized_crop_flip")
    whole, dataset = data.load(Data(name="digits", **FIELDS), None), data.load(values[0].train.data, None)
    source = streams.sources_of(dataset, [job.train for job in values], torch.float32, CPU)["train"]
    for epoch, step in ((3, 0), (1, 1)):
        orders = {replicate: data.order(150, replicate, epoch) for replicate in (0, 1)}
        places = source.begin(orders, epoch, step)
        for first in range(64 * step, 150, 64):
            positions = range(first, min(first + 64, 150))
            source.feed(len(positions), [])
            for replicate, order in orders.items():
                for at in positions:
                    expected = plainly(whole.train_x[order[at]], replicate, epoch, at)
                    assert source.images[places[replicate][at]].equal(expected)
                    assert source.labels[places[replicate][at]] == whole.train_y[order[at]]


def test_batches_of_two_steps_and_replicates_lie_apart(streamed):
    values = [job.train for job in jobs("files")]
    source = streams.sources_of(data.load(values[0].data, None), values, torch.float32, CPU)["train"]
    places = source.begin({r: data.order(150, r, 0) for r in (0, 1)}, 0, 0)
    steps = [set(places[r][first : first + 64].tolist()) for first in (0, 64) for r in (0, 1)]
    assert len(set.union(*steps)) == sum(map(len, steps)) == len(source.images) == 256
    assert places[0][128:].tolist() == places[0][:22].tolist()
    assert source.images.dtype == torch.uint8


# --- evaluation -----------------------------------------------------------------------------------------------


def test_images_of_any_size_are_evaluated_as_is_usual_on_imagenet(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 57), (90, 33), (14, 14), (16, 16), (300, 16)]):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    usual = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    expected = [usual(Image.open(tmp_path / name)) for name in names]
    expected[2] = functional.pil_to_tensor(Image.open(tmp_path / names[2]))  # has the size already
    found = next(Reader((3, 14, 14), 3, CPU).read([Piece(Files(tmp_path, names).paths(torch.arange(5)))]))
    assert found.equal(torch.stack(expected))


# --- what cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no image"])
def test_an_image_that_cannot_be_read_is_named(streamed, folder, tmp_path, damage):
    source, path = next(folder.iterdir()), tmp_path / "broken.png"
    content = {"empty": b"", "cut": source.read_bytes()[:-30], "no image": b"words" * 100}
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(InputError, match=f"^image {path} cannot be read: .") as caught:
        list(Reader((1, 8, 8), 1, CPU).read([Piece([str(source), str(path)])]))
    assert "\n" not in str(caught.value)


def test_an_image_in_memory_that_cannot_be_read_is_named_by_its_place():
    pieces = [Piece(torch.zeros(4, 5, 8, 8, dtype=torch.uint8), (0, 1, 128))]
    with pytest.raises(InputError, match="^image at position 128 cannot be read: Cannot handle this data type"):
        list(Reader((5, 8, 8), 5, CPU).read(pieces))


def test_pillow_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    study = "name: crops\nnet: lenet_300_100\ndata: {name: digits, train_size: 96, augment: resized_crop_flip}\n"
    study += "replicates: 1\nfind: {epochs: 1, batch_size: 48, lr: 0.1}\nprune: {levels: [1]}\n"
    (tmp_path / "crops.yaml").write_text(study + "tickets: {LT: {methods: [IMP]}}\n")
    helpers.store(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in [*filter(re.compile(r"PIL\b").match, sys.modules), "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["compute", "crops.yaml", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "the package 'PIL' is missing; `lthlab doctor` says what to install\n" in said and "tensor" not in said


def test_a_process_that_ends_is_named_with_what_it_read(tmp_path, monkeypatch):
    processes(monkeypatch, 1)
    pipe = tmp_path / "endless.png"
    os.mkfifo(pipe)  # whoever reads it waits
    reader = Reader((1, 8, 8), 1, CPU)
    reading = reader.read([Piece([str(pipe)])])

    def kill():
        noted = bytes(reader._notes[0].tolist()).rstrip(b"\0").decode()
        if noted:
            os.kill(int(noted.split()[0]), signal.SIGKILL)
        return noted

    killer = Thread(target=wait_for, args=(kill, 60))
    killer.start()
    with pytest.raises(ReaderEnded) as caught:
        next(reading)
    killer.join()
    assert str(caught.value) == f"a process that reads images has ended; it was at {pipe}"


def test_processes_follow_from_device_and_threads(monkeypatch):
    for threads, expected in ((1, 1), (2, 1), (8, 7), (64, 16)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert streams.processes(torch.device("cuda")) == expected
        assert streams.processes(CPU) == 0


# --- on a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["stacked", "sequential"])
def test_on_a_gpu_captured_steps_find_the_images_that_are_streamed(streamed, form):
    found = []
    for name in ("digits", "files"):
        values = jobs(name, augment="crop_flip", epochs=6)
        training = Training(values, data.load(values[0].train.data, None), "cuda", form=form)
        while training.iteration < 18:
            training.advance(18)
        found.append(training)
    for number in range(3):
        first, second = (training.group.state(number) for training in found)
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-5)
