"""What a study will take: counts that are those of computing it, hours from past trainings, and bytes."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch

from lthlab import datasets, devices, estimates, lab, parts, provenance, sections, sizes, spec, stages, tickets
from lthlab.errors import InputError
from lthlab.estimates import Work, device_name, forecast
from lthlab.parts import Data, Level, Net
from lthlab.runs import epochs
from lthlab.store import Store
from lthlab.values import Narrow, Train, ancestors

STUDY = """
name: small
net: lenet_300_100
data: {name: digits, train_size: 100}
replicates: 2
find: {epochs: 2, batch_size: 50, lr: [0.05, 0.1]}
prune: {levels: [1, 2]}
tickets: {LT: {methods: [IMP, OMP]}, RR: {methods: [OMP]}, WR: {methods: [OMP], rewind: 1ep}}
measures: {correlation_indicator: {p: 0.1}}
panel_by: [find.lr]
"""


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


class Watcher:
    def __init__(self, stop_at=math.inf):
        self.begun, self.asked, self.stop_at = None, 0, stop_at

    def begin(self, *numbers):
        self.begun = numbers

    def advance(self, epochs, trainings):
        pass

    def stop(self):
        self.asked += 1
        return self.asked >= self.stop_at


# --- counts ---------------------------------------------------------------------------------------------------


def test_the_whole_is_what_compute_then_does(store):
    config = spec.parse(STUDY)
    for stop_at in (1, 2, 150, 300, math.inf, math.inf):
        expected, watcher = forecast(config, store).whole, Watcher(stop_at)
        try:
            summary = lab.compute_study(config, store, watcher=watcher)
            assert (expected.left, summary.trainings) == (summary.trained, expected.trainings)
            assert expected.shared == summary.shared
        except lab.Stopped as stopped:
            summary, after = stopped.summary, forecast(config, store).whole
            assert (after.left, after.epochs) == (stopped.left, stopped.epochs)
        if watcher.begun:
            assert watcher.begun == (expected.trainings, expected.done, expected.shared, expected.epochs)
    nothing = forecast(config, store)
    assert all(work.left == work.epochs == work.hours == work.bytes == 0 for work in nothing.configurations)
    assert nothing.whole.done == nothing.whole.trainings > 0 and not nothing.whole.guessed


def test_each_configuration_is_what_compute_then_does(store):
    config = spec.parse(STUDY)
    before = forecast(config, store)
    names = [work.name for work in before.configurations]
    assert names == [
        f"{stage}.lenet_300_100.digits.find_lr-{lr}" for stage in sections.STAGES for lr in ("0.05", "0.1")
    ]
    for name, work in zip(names, before.configurations, strict=True):
        summary = lab.compute_study(config, store, configuration=name)
        assert (summary.trainings, summary.shared, summary.trained) == (work.trainings, work.shared, work.left)
        now = {other.name: other for other in forecast(config, store).configurations}[name]
        assert (now.done, now.left) == (work.trainings, 0)
    assert sum(work.left for work in before.configurations) == before.whole.left
    assert sum(work.epochs for work in before.configurations) == before.whole.epochs
    assert any(work.left < work.trainings for work in before.configurations)


def test_what_cannot_be_had_is_not_left(store):
    config = spec.parse(STUDY.replace("lr: [0.05, 0.1]", "lr: [0.05, 1.0e+6]"))
    assert forecast(config, store).whole.blocked == 0
    summary = lab.compute_study(config, store)
    found = forecast(config, store).whole
    blocked = [value for value in summary.blocked if isinstance(value, lab.Train)]
    assert summary.diverged and found.left == 0 and found.blocked == len(blocked) > 0
    assert found.done == found.trainings - found.blocked and found.bytes == 0
    labelled = tickets.expand(config)
    rows = stages.by_stage(config, labelled, forecast(labelled, store))
    assert sum(row["done"] for row in rows) == found.done


def test_what_is_damaged_is_left(store):
    config = spec.parse(STUDY)
    summary = lab.compute_study(config, store)
    run = next(item.value for item in tickets.expand(config) if item.role["ticket"] == "RR")
    helpers.flip(store.root / run.key / "0" / "manifest.json")
    assert forecast(config, store).whole.left == 1
    assert lab.compute_study(config, store).trained == 1 and summary.trained > 1


def test_an_expansion_will_do_and_reading_writes_nothing(tmp_path):
    config = spec.parse(STUDY)
    assert forecast(tickets.expand(config), Store(tmp_path / "no")) == forecast(config, Store(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_facts_are_plain(store):
    found = forecast(spec.parse(STUDY), store)
    facts = json.loads(json.dumps(found.facts()))
    assert facts["trainings"] == found.whole.trainings and facts["device"] == found.device
    assert [Work(**piece) for piece in facts["configurations"]] == list(found.configurations)


# --- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["lenet_300_100", "{name: resnet8, width: 8}"])
def test_bytes_are_about_those_that_are_written(net, store):
    config = spec.parse(STUDY.replace("net: lenet_300_100", f"net: {net}"))
    expected = forecast(config, store).whole.bytes
    lab.compute_study(config, store)
    values = ancestors(item.value for item in tickets.expand(config))
    files = (path for value in values for path in (store.root / value.key).rglob("*"))
    written = sum(path.stat().st_size for path in files if path.is_file())
    assert expected == pytest.approx(written, rel=0.15)


# --- hours ----------------------------------------------------------------------------------------------------

LENET = {"network": "lenet_300_100", "widths": "300-100", "data": "digits", "batch_size": 50, "precision": "fp32"}


def note(store, seconds, replicas, shape=LENET, steps=10, **fields):
    here = {**provenance.machine(), "device": "cpu", "threads": 1, "form": "stacked", "bytes": 1, "images": 100}
    store.append_timing(
        json.dumps(here | dict(shape) | {"replicas": replicas, "steps": steps, "seconds": seconds} | fields)
    )


def train(**fields):
    return helpers.train(batch_size=50, **fields)


def rate(store, replicas, value=None, device="cpu"):
    return estimates._Rates(store, device).of(estimates._shape(value or train()), replicas)


def test_a_group_is_noted_when_it_is_committed(store):
    lab.compute([train(replicate=r, epochs=3) for r in range(2)], store)
    (line,) = map(json.loads, store.timings())
    assert line.items() >= (LENET | provenance.machine()).items()
    assert (line["replicas"], line["steps"], line["epochs"], line["images"]) == (2, 12, 3.0, 200)
    assert (line["device"], line["form"], line["threads"]) == ("cpu", "stacked", 1)
    assert 0 < line["seconds"] < 60 and line["bytes"] > 500
    assert rate(store, 2) == (pytest.approx(line["seconds"] / 24), True)


def test_what_a_stopped_group_took_is_noted_for_its_own_steps(store):
    with pytest.raises(lab.Stopped):
        lab.compute([train(epochs=3)], store, watcher=Watcher(8))
    assert store.timings() == []
    left = lab.Outlook([train(epochs=3)], store).left()
    lab.compute([train(epochs=3)], store)
    (line,) = map(json.loads, store.timings())
    ((start, until),) = left.values()
    assert 0 < line["steps"] == until - start < 12 and epochs(left) == math.ceil(line["steps"] / 4)


def test_hours_are_those_of_groups(store):
    """15 replicas per wave and configuration: as one group, which the rate of groups of 16 fits best."""
    tickets = "tickets: {LT: {methods: [IMP]}}"
    study = re.sub("tickets: .*", tickets, STUDY.replace("replicates: 2", "replicates: 15"))
    config = spec.parse(study.replace("lr: [0.05, 0.1]", "lr: 0.1"))
    note(store, 1.0, 1)
    note(store, 4.0, 16)
    find, evaluate = forecast(config, store, "cpu").configurations
    each = 15 * 4 * 4.0 / (10 * 16)
    assert (find.left, evaluate.left, find.guessed, evaluate.guessed) == (30, 15, False, False)
    assert find.hours * 3600 == pytest.approx(2 * each) and evaluate.hours * 3600 == pytest.approx(each)


def test_measures_of_losses_take_a_third_of_a_step_for_as_many_images(store):
    surface = "loss_surface: {points: 9, planes: pca, snapshots: 3, images: 80, replicates: 2, batchnorm: fixed}"
    sharpness = "sharpness: {directions: 4, images: 500}"
    note(store, 1.0, 1)
    plain = re.sub("replicates: 2|tickets: .*|panel_by: .*|measures: .*", "", STUDY) + "replicates: 2\n"
    without, with_both = (
        forecast(spec.parse(f"{plain}{more}"), store, "cpu").whole
        for more in ("", f"measures: {{{surface}, {sharpness}}}")
    )
    images = 4 * (80 * (9**2 + 2 * 3) + 100 * 2 * (1 + 2 * 4))  # of 500 there are 100, seen twice by 'recompute'
    assert (with_both.hours - without.hours) * 3600 == pytest.approx(images / 50 / 3 * 1.0 / 10)
    assert with_both.bytes > without.bytes + 4 * 9**2 * 50


def test_hours_on_a_gpu_are_those_of_larger_groups(store):
    """30 replicas are one group there; on a CPU they are one of 24 and one of 6."""
    study = re.sub("tickets: .*", "tickets: {LT: {methods: [OMP]}}", STUDY.replace("replicates: 2", "replicates: 30"))
    config = spec.parse(study.replace("lr: [0.05, 0.1]", "lr: 0.1"))
    for device in ("cpu", "cuda"):
        for seconds, replicas in ((1.0, 6), (2.0, 24), (5.0, 30)):
            note(store, seconds, replicas, device=device)
        find = forecast(config, store, device).configurations[0]
        assert (find.left, find.guessed) == (30, False)
        assert find.hours * 3600 == pytest.approx(4 / 10 * (5.0 if device == "cuda" else 3.0))


def test_devices_that_share_each_training_have_no_groups(store):
    assert rate(store, 1, device="cpu,cpu") == rate(store, 1, device="cpu") != rate(store, 1, device="cuda:0,cuda:1")
    config = spec.parse(STUDY.replace("lr: [0.05, 0.1]", "lr: 0.1"))
    for seconds, replicas, device in ((1.0, 1, "cpu"), (3.0, 1, "cpu,cpu"), (1.0, 2, "cpu,cpu")):
        note(store, seconds, replicas, device=device)
    find = forecast(config, store, "cpu,cpu").configurations[0]
    assert not find.guessed and find.hours * 3600 == pytest.approx(find.left * 4 * 3.0 / 10)


def test_the_latest_groups_of_the_nearest_size_count(store):
    for seconds in [*[100.0] * 20, *[2.0] * 4, 4.0, *[6.0] * 4]:
        note(store, seconds, 8)
    note(store, 9.0, 2)
    assert rate(store, 8) == (pytest.approx(4.0 / 80), True)
    assert rate(store, 5)[0] == rate(store, 24)[0] == rate(store, 8)[0]
    assert rate(store, 3)[0] == rate(store, 1)[0] == pytest.approx(9.0 / 20)


@pytest.mark.parametrize(
    "fields",
    [
        {"processor": "another"},
        {"cores": 1000},
        {"device": "NVIDIA H200"},
        {"widths": "30-10"},
        {"batch_size": 51},
        {"precision": "fp64"},
        {"network": "resnet8"},
        {"image": "3-8-8"},
    ],
)
def test_other_machines_and_shapes_say_nothing(fields, store):
    note(store, 5.0, 1, **fields)
    assert not rate(store, 1)[1]
    note(store, 5.0, 1)
    assert rate(store, 1) == (0.5, True)


def test_trainings_on_other_images_of_a_set_are_a_shape_of_their_own(store):
    padded = helpers.train(dataset=Data(name="digits", size=32), batch_size=50)
    note(store, 5.0, 1, image="1-8-8")
    assert rate(store, 1) == (0.5, True) and not rate(store, 1, padded)[1]
    note(store, 7.0, 1, image="1-32-32")
    assert rate(store, 1, padded) == (0.7, True)
    small, large = (estimates._shape(helpers.train(helpers.narrow(), Data(name="digits", size=n))) for n in (None, 32))
    assert small.stacked and not large.stacked and large.guess(True) > 10 * small.guess(True)


def test_guesses_are_corrected_by_how_wrong_they_were(store):
    guess, measured = rate(store, 4)
    assert not measured and 1e-5 < guess < 1e-2
    other = helpers.train(batch_size=25)
    wrong = estimates._shape(other).guess(True)
    note(store, 3 * wrong * 10, 1, batch_size=25)
    assert rate(store, 4) == (pytest.approx(3 * guess), False)
    assert forecast(spec.parse(STUDY), store, "cpu").whole.guessed
    note(store, 1.0, 4)
    assert not forecast(spec.parse(STUDY), store, "cpu").whole.guessed


def test_guesses_grow_with_the_work():
    small, large = (estimates._shape(helpers.train(helpers.narrow(width))) for width in (8, 32))
    assert large.guess(True) > 5 * small.guess(True)
    assert small.guess(True) > small.guess(False)
    assert estimates._shape(helpers.train(helpers.narrow(8), batch_size=128)).guess(True) > 1.5 * small.guess(True)


@pytest.mark.parametrize("line", [
    "", "half", '{"network": "lenet_300_100"', "[]", "3", "null", "{}",
    *(json.dumps(LENET | provenance.machine() | {"device": "cpu", "replicas": 1, "steps": 1, "seconds": 1} | wrong)
      for wrong in ({"steps": 0}, {"replicas": "2"}, {"replicas": -1, "steps": -1}, {"replicas": 0}, {"seconds": None},
                    {"seconds": -1}, {"widths": [300]}, {"widths": "a-b"}, {"data": "nowhere"}, {"batch_size": "x"},
                    {"network": 3})),
    json.dumps(LENET | provenance.machine() | {"device": "cpu", "replicas": 1, "steps": 1, "seconds": math.nan}),
])  # fmt: skip
def test_broken_lines_are_passed_over(line, store):
    store.append_timing(line)
    note(store, 5.0, 1)
    store.append_timing(line)
    assert rate(store, 1) == (0.5, True)


def test_slots():
    assert estimates._makespan([3.0, 1.0, 1.0, 1.0], 1) == 6.0
    assert estimates._makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert estimates._makespan([1.0, 1.0, 3.0], 2) == 4.0
    assert estimates._makespan([], 3) == 0.0
    assert estimates._makespan([1.0, 2.0], 10**12) == 2.0


def test_stages_run_one_after_the_other(store):
    note(store, 1.0, 2)
    found = [forecast(spec.parse(STUDY), store, "cpu", slots).whole.hours for slots in (1, 2, 8)]
    pieces = [work.hours for work in forecast(spec.parse(STUDY), store, "cpu").configurations]
    assert found[0] == pytest.approx(sum(pieces))
    assert found[1] == found[2] == pytest.approx(max(pieces[:2]) + max(pieces[2:]))


# --- shapes and devices ---------------------------------------------------------------------------------------


def test_groups_are_as_large_as_those_that_train(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "large", helpers.CIFAR)
    for name in parts.NETS:
        for data in (Data(name="digits"), Data(name="large")):
            value = helpers.train(Net(name=name, **({"stem": "imagenet"} if name == "resnet18" else {})), data)
            if name.startswith(("vgg", "mobilenet", "resnet18")) and data.name == "digits":
                continue  # for which they are too small
            expected = devices.capacity(value, torch.device("cpu"))
            assert estimates._shape(value).capacity(on_cpu=True) == expected, (name, data.name)
            assert estimates._shape(value).capacity(on_cpu=False) == devices.fitting(value, 10**13)


def test_a_narrow_network_is_a_shape_of_its_own():
    net = helpers.narrow(8)
    value = helpers.train(Narrow(net, Level(4)))
    shape, own = estimates._shape(value), estimates._shape(helpers.train(net))
    assert shape.network == own.network == "resnet8"
    assert shape.widths == sizes.text(sizes.narrow(net, value.data, Level(4)).widths) != own.widths


def test_names_of_devices(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(estimates, "_GPUS", tmp_path)
    assert [device_name(name) for name in ("auto", "cpu", "cuda:1")] == ["cpu", "cpu", "cuda:1"]
    for number, model in enumerate(("NVIDIA H200", "NVIDIA L4")):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 16\nBus Location: \t 0000:0{number}:00.0\n"
        )
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.11.0"})
    assert [device_name(name) for name in ("cuda", "cuda:1", "cpu", "auto")] == [
        "NVIDIA H200", "NVIDIA L4", "cpu", "NVIDIA H200",
    ]  # fmt: skip
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.11.0+cpu"})
    assert device_name("auto") == "cpu"
    assert [device_name(names) for names in ("cuda:1,cuda:0", "cpu,cpu")] == ["NVIDIA L4,NVIDIA H200", "cpu,cpu"]
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.11.0"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_name("auto") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cuda1", "cpu:0", ""])
def test_devices_of_no_known_name_are_refused(name, store):
    with pytest.raises(InputError, match="is not known; allowed: auto, cpu"):
        forecast(spec.parse(STUDY), store, name)


# --- speed ----------------------------------------------------------------------------------------------------

LARGE = """
import sys, time
from lthlab import estimates, spec
from lthlab.store import Store

rates = ", ".join(f"0.{number:03}" for number in range(1, 51))
config = spec.parse(
    "{name: large, net: lenet_300_100, data: digits, replicates: 10, panel_by: [find.lr, replicate], "
    f"find: {{epochs: 20, batch_size: 64, lr: [{rates}]}}, prune: {{levels: [2, 4]}}, "
    "tickets: {LT: {methods: [IMP, OMP]}, RR: {methods: [IMP, OMP]}}}"
)
found = estimates.forecast(config, Store(sys.argv[1]))
assert len(found.configurations) == 1000 and found.whole.left == 5500
assert "torch" not in sys.modules and "pandas" not in sys.modules
print(time.process_time())
"""


def test_a_thousand_configurations_take_two_seconds_from_the_start_of_the_process(tmp_path):
    times = []
    for _ in range(2):
        command = [sys.executable, "-c", LARGE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    assert min(times) < 2, times


# --- notebooks ----------------------------------------------------------------------------------------------


def test_notebooks_take_time_beyond_their_trainings(store):
    config = spec.parse(STUDY)
    names = {piece.name: piece.name.partition(".")[0] for piece in forecast(config, store).configurations}
    names |= {"winning_tickets": "winning_tickets"}
    train = next(
        value for value in ancestors(item.value for item in tickets.expand(config)) if isinstance(value, Train)
    )

    def seconds(**options):
        more = forecast(config, store, notebooks=names, **options).whole.hours - forecast(config, store).whole.hours
        return round(3600 * more, 3)

    assert seconds() == 5 * len(names) + 2 == 27
    assert seconds(executed=list(names)) == 27, "trainings are left"
    before = len(store.timings())
    estimates.record(store, train, 1, 4, 3.0, {"device": "cpu"})
    estimates.note_notebook(store, "find_tickets", 13.0, before)
    estimates.note_notebook(store, "find_tickets", 2.0, before)  # others trained meanwhile
    assert seconds() == 5 * 10 + 2, "of any notebook as long as the own one is not known"
    estimates.note_notebook(store, "winning_tickets", 3.0, before + 2)
    assert seconds() == 2 * 10 + 2 * 6.5 + 3 + 2
    assert forecast(config, store, notebooks=names).reports == pytest.approx(3 / 3600)
    lab.compute_study(config, store, "cpu")
    assert seconds(executed=list(names)[:3]) == 6.5 + 3 + 2


# --- stops ----------------------------------------------------------------------------------------------------


def test_the_margin_of_a_stop_follows_from_past_ones(store, monkeypatch):
    assert [estimates.margin(store, "run", limit) for limit in (6, 20, 500, 1e5)] == [3, 6, 11, 16]
    assert [estimates.margin(store, "compute", limit) for limit in (2, 20)] == [1, 2]
    for seconds in (4.0, 8.0, 2.0):
        estimates.note_stop(store, "run", seconds)
    store.append_timing('{"stop": "run", "processor": "none", "cores": 1, "seconds": 99}')
    store.append_timing('{"stop": "run"')
    assert [estimates.margin(store, "run", limit) for limit in (20, 500)] == [10, 13]
    assert estimates.margin(store, "compute", 20) == 2
    for _ in range(estimates.LATEST):
        estimates.note_stop(store, "run", 1.0)
    assert estimates.margin(store, "run", 500) == 2.5
