"""Benchmarks: the command measures, keeps rows and writes the page; the script for GPUs goes on after a stop."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import catalogue, gpu, growth, record, rounds
from benchmarks.__main__ import main
from benchmarks.page import page
from benchmarks.worker import Worker
from lthlab.datasets import DATASETS
from lthlab.engine import Training
from lthlab.machine import leaks

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
FIGURES = {figure.name: figure for benchmark in catalogue.BENCHMARKS for figure in benchmark.figures}
TARGETS = {
    "resnet20_fp32_vs_dataloader": (1.4, None), "resnet20_bf16_vs_dataloader": (1.9, None),
    "engine_single_vs_plain_loop_lenet_digits": (0.95, None), "engine_single_vs_plain_loop_resnet20_32": (0.95, None),
    "lenet_group16_vs_sequential": (3.0, None), "resnet20_digits_group8_vs_sequential": (1.6, None),
    "lenet_imp_nine_chains_seconds": (None, 15), "threshold_25m_seconds": (None, 0.35),
    "correlation_25m_seconds": (None, 2),
    "surface_51_fixed_seconds": (None, 60), "surface_25_recompute_seconds": (None, 60),
}  # fmt: skip


@pytest.fixture(autouse=True)
def known_data():
    """Forget the synthetic data sets that a benchmark adds."""
    known = dict(DATASETS)
    yield
    for name in DATASETS.keys() - known.keys():
        del DATASETS[name]


def a_row(name, value=2.0, **fields):
    """Make a row of a figure as it would have been measured."""
    unit = FIGURES[name].unit if name in FIGURES else "s"
    return record.row(name, unit, [value] * (value is not None), "a machine") | fields


def cells(text, name):
    """Cells of a figure's line in a page's table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- catalogue and page ---------------------------------------------------------------------------------------


def test_figures_have_names_of_their_own_and_the_targets_that_were_set():
    assert len(FIGURES) == sum(len(benchmark.figures) for benchmark in catalogue.BENCHMARKS)
    found = {name: (FIGURES[name].at_least, FIGURES[name].at_most) for name in TARGETS}
    assert found == TARGETS
    groups = [figure for figure in FIGURES.values() if figure.name.endswith("_vs_sequential")]
    assert len(groups) == 15 and min(figure.at_least for figure in groups) == 0.95
    for size in (1, 2, 4, 8, 16, 32):
        assert any(name.startswith(f"gpu_resnet20_seconds_per_epoch_group{size}_batch128_") for name in FIGURES)


@pytest.mark.parametrize("benchmark", [benchmark.name for benchmark in catalogue.BENCHMARKS])
def test_every_benchmark_has_its_function(benchmark):
    assert callable(importlib.import_module(f"benchmarks.{benchmark}").measure)


def test_a_name_chooses_a_benchmark_or_figures_that_begin_so():
    assert catalogue.choose(None).keys() == {benchmark.name for benchmark in catalogue.BENCHMARKS}
    assert list(catalogue.choose("groups")) == ["groups"] and len(catalogue.choose("groups")["groups"]) == 16
    assert catalogue.choose("threshold_25m_seconds") == {"thresholds": ["threshold_25m_seconds"]}
    found = catalogue.choose("resnet20_")
    assert found["groups"] == ["resnet20_digits_group8_vs_sequential", "resnet20_32_group2_vs_sequential"]
    assert "resnet20_fp32_vs_dataloader" in found["dataloader"] and "gpu" not in found


def test_page_says_what_was_measured_whether_targets_are_met_and_what_was_not_measured():
    met, missed = a_row("lenet_group16_vs_sequential", 3.0), a_row("threshold_25m_seconds", 0.36)
    text = page({row["name"]: row for row in (met, missed)})
    assert cells(text, met["name"])[2:] == ["3× [3, 3]", "≥ 3", "yes", "1"]
    assert cells(text, missed["name"])[2:] == ["0.36 s [0.36, 0.36]", "≤ 0.35", "no", "1"]
    assert cells(text, "resnet20_digits_group8_vs_sequential")[2:] == ["not measured", "≥ 1.6", "", ""]
    assert f"Measured on {met['date']}: a machine." in text and "growth.svg" not in text
    assert all(f"`make bench NAME={benchmark.name}`" in text for benchmark in catalogue.BENCHMARKS)


def test_page_of_figures_from_several_days_says_which_are_from_when():
    old = a_row("lenet_28_group16_vs_sequential", date="2026-01-02")
    new = a_row("lenet_32_group16_vs_sequential", date="2026-01-03")
    text = page({row["name"]: row for row in (old, new)})
    assert f"Measured on 2026-01-02: a machine: `{old['name']}`." in text
    assert f"Measured on 2026-01-03: a machine: `{new['name']}`." in text


def test_page_of_a_gpu():
    name = "gpu_resnet20_seconds_per_epoch_group{}_batch64_bf16_sequential"
    rows = [a_row(name.format(8), 0.26), a_row(name.format(16), 0.31), a_row(name.format(32), None)]
    text = page({row["name"]: row for row in rows})
    assert f"Fastest at batch 64, aim ≤ 0.25 s on an H200: 0.26 s [0.26, 0.26], `{name.format(8)}`; met: no." in text
    lines = text[text.index("resnet20, seconds per epoch and replica (`gpu_resnet20_") :].splitlines()
    row = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[4:10]}
    assert (
        "resnet20, memory of the group in MiB (`gpu_resnet20_peak_mebibytes_group{1,2,4,8,16,32}_batch{64,128}_{bf16,"
        in text
    )
    assert text.count("): not measured.\n") == 2 * len(catalogue.GPU_NETS) - 1
    assert "vgg16, memory of the group in MiB (`gpu_vgg16_peak_mebibytes_group{1,4}_batch{64}_" in text
    assert row == {"1": "not measured", "2": "not measured", "4": "not measured", "8": "0.26", "16": "0.31",
                   "32": "out of memory"}  # fmt: skip
    assert "Fastest at batch 64, aim ≤ 0.25 s on an H200: not measured." in page({})


def test_the_page_that_is_kept_shows_the_rows_that_are_kept():
    rows = record.read(ROOT / "benchmarks" / "results.json")
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text == page(rows)
    assert leaks(text) == []
    assert set(rows) <= set(FIGURES) | {name for name in rows if name.startswith("gpu_")}


# --- rows and rounds ------------------------------------------------------------------------------------------


def test_a_row_has_median_and_spread():
    row = record.row("x", "s", [3.0, 1.0, 2.0, 9.0], "a machine")
    assert tuple(row) == record.FIELDS
    assert (row["value"], row["n"], row["spread"]) == (2.5, 4, {"min": 1.0, "max": 9.0})
    assert record.row("x", "s", [], "a machine")["value"] is None


def test_ratios_are_of_the_same_round():
    assert record.ratios([8.0, 9.0, 1.0], [4.0, 3.0, 1.0]) == [2.0, 3.0, 1.0]


def test_rounds_go_to_and_fro_and_the_first_only_warm_up():
    order = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    measured = rounds.interleave(sides, rounds=2, warm=1)
    assert "".join(order) == "cbaabccba"
    assert measured == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}


@pytest.mark.parametrize("content", ["{}", '[{"name": "x"}]', "[1]"])
def test_other_files_are_not_taken_for_rows(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json: "):
        record.read(tmp_path / "results.json")


def test_machine_is_told_in_words_without_names_or_paths():
    text = record.machine(2, "a GPU")
    assert text.startswith("a GPU, ") and f"torch {torch.__version__.partition('+')[0]}" in text
    assert text.endswith(", 2 threads") and leaks(text) == []


# --- processes that take turns --------------------------------------------------------------------------------


def test_a_process_that_ends_is_an_error_and_leaves_none_behind():
    with Worker("nothing:here") as worker, pytest.raises(RuntimeError, match="nothing:here ended with code 1"):
        worker()


def test_a_process_has_the_environment_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **rest: seen.append(env))
    Worker("some:function", {"GOMP_SPINCOUNT": None, "MORE": "1"})
    assert "GOMP_SPINCOUNT" not in seen[0] and seen[0]["MORE"] == "1" and "PATH" in seen[0]


# --- the command ----------------------------------------------------------------------------------------------


def test_command_measures_replaces_rows_of_the_same_name_and_writes_the_page(tmp_path, capsys):
    old = [a_row("threshold_270k_seconds", 999.0), a_row("threshold_25m_seconds", 0.3, date="2026-01-02")]
    record.write(tmp_path / "results.json", old)
    assert main(["threshold_270k", "--quick", "--to", str(tmp_path)]) == 0
    rows, printed = record.read(tmp_path / "results.json"), capsys.readouterr().out
    assert len(rows) == 6 and rows["threshold_25m_seconds"] == old[1]
    for name in [name for name in rows if "270k" in name]:
        row = rows[name]
        assert tuple(row) == record.FIELDS and row["unit"] == "s" and row["n"] == 2
        assert 0 < row["spread"]["min"] <= row["value"] <= row["spread"]["max"] < 100
        assert row["machine"].startswith(record.machine(2).partition(", torch ")[0])
        assert f"{name}: {row['value']} s, n = 2" in printed
    assert (tmp_path / "performance.md").read_text() == page(rows)
    assert not (tmp_path / "growth.svg").exists()


def test_command_refuses_a_name_that_is_not_known_and_says_the_nearest(tmp_path, capsys):
    assert main(["lenet_grop16_vs_sequential", "--to", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("NAME=lenet_grop16_vs_sequential: neither a benchmark nor the beginning of")
    assert message.endswith("did you mean 'lenet_group16_vs_sequential'?\n")
    assert "allowed: chains, conv4_digits_group8_vs_sequential, " in message


def test_figures_of_tiny_sizes_cannot_replace_real_ones(capsys):
    with pytest.raises(SystemExit) as end:
        main(["threshold_270k", "--quick"])
    assert end.value.code == 2 and "give --to FOLDER" in capsys.readouterr().err


def test_a_benchmark_that_fails_fails_the_command_but_not_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "benchmarks.__main__.choose", lambda name: {"nothing": ["a"], "thresholds": ["threshold_270k_ties_seconds"]}
    )
    assert main(["--quick", "--to", str(tmp_path)]) == 1
    assert "the process of worker:rows ended with code 1" in capsys.readouterr().err
    assert list(record.read(tmp_path / "results.json")) == ["threshold_270k_ties_seconds"]


def test_rows_of_another_machine_are_taken_over(tmp_path, capsys):
    name = "gpu_resnet20_seconds_per_epoch_group8_batch64_bf16_sequential"
    record.write(tmp_path / "results.json", [a_row("threshold_25m_seconds"), a_row(name, 1.0)])
    record.write(tmp_path / "gpu.json", [a_row(name, 0.2)])
    assert main(["--take", str(tmp_path / "gpu.json"), "--to", str(tmp_path)]) == 0
    rows = record.read(tmp_path / "results.json")
    assert len(rows) == 2 and rows[name]["value"] == 0.2
    assert "an H200: 0.2 s [0.2, 0.2], " in (tmp_path / "performance.md").read_text()
    assert main(["--take", str(tmp_path / "none.json"), "--to", str(tmp_path)]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


# --- each benchmark, with tiny sizes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "benchmark, names",
    [
        ("single", ["engine_single_vs_plain_loop_lenet_digits", "engine_single_vs_plain_loop_resnet20_32"]),
        (
            "groups",
            [
                "lenet_group16_vs_sequential",
                "lenet_group16_vs_plain_loop",
                "resnet8_width8_digits_group9_vs_sequential",
                "lenet_28_group16_vs_sequential",
            ],
        ),
        ("thresholds", ["threshold_25m_ties_seconds", "threshold_25m_masked_seconds"]),
        ("correlation", ["correlation_25m_seconds", "correlation_25m_masked_seconds"]),
        ("surfaces", ["surface_51_fixed_seconds", "surface_25_recompute_seconds"]),
        ("growth", ["growth_images_1250_mebibytes", "growth_images_1250_seconds"]),
    ],
)
def test_benchmarks_yield_the_figures_that_are_chosen(benchmark, names):
    rows = list(importlib.import_module(f"benchmarks.{benchmark}").measure(names, quick=True))
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert all(row["unit"] == FIGURES[row["name"]].unit and row["value"] > 0 for row in rows)


def test_the_baseline_with_a_dataloader_takes_turns_with_the_engine():
    dataloader = importlib.import_module("benchmarks.dataloader")
    rows = {row["name"]: row for row in dataloader.measure(["resnet20_fp32_vs_dataloader"], quick=True)}
    assert set(rows) == {
        "resnet20_fp32_vs_dataloader", "resnet20_fp32_images_per_second",
        "dataloader_workers0_images_per_second", "dataloader_workers2_images_per_second",
    }  # fmt: skip
    assert all(row["n"] == 2 and row["value"] > 0 for row in rows.values())


def test_a_study_is_computed_by_the_command_and_its_process_measured():
    study = importlib.import_module("benchmarks.studies").imp(1, 1, 1, [0.05])
    with Worker("studies:compute") as worker:
        found = worker(study=study)
    assert 0 < found["seconds"] < found["command_seconds"] < 200 and found["mebibytes"] > 50


def test_growth_is_drawn_as_far_as_it_is_measured(tmp_path):
    rows = {
        name: a_row(name, number * 10.0)
        for number in (1, 8)
        for name in (f"growth_levels_{number}_seconds", f"growth_levels_{number}_mebibytes")
    }
    growth.draw(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for label in ("wall time in s", "peak memory in MiB", "replicates of a study", "levels of IMP", "training images"):
        assert f"<!-- {label} -->" in text
    growth.draw(rows, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text and leaks(text) == []
    assert "![Wall time" in page(rows)


# --- the script for GPUs --------------------------------------------------------------------------------------


def test_the_most_telling_groups_come_first():
    found = gpu.groups(list(catalogue.GPU_NETS))
    assert [(g.replicas, g.batch, g.precision, g.form) for g in found[:2]] == [
        (8, 64, "bf16", "sequential"), (16, 64, "bf16", "sequential"),
    ]  # fmt: skip
    assert len(set(found)) == len(found) == 48 + 24 + 3 * 8
    assert {group.figure(what) for group in found for what in gpu.MEASURED} == {
        n for n in FIGURES if n.startswith("gpu_")
    }


BARE = """
import sys

missing = {
    "PIL", "dask", "filelock", "matplotlib", "papermill", "rich", "scipy", "seaborn", "sklearn", "torchvision", "tqdm",
}

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Bare, sys.meta_path)
from benchmarks import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


def test_script_for_gpus_runs_where_little_is_installed_and_goes_on(tmp_path):
    path = tmp_path / "gpu.json"
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--quick", "--results", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = record.read(path)
    measured = [
        group.figure(what) for group in gpu.groups(list(catalogue.GPU_NETS), quick=True) for what in gpu.MEASURED
    ]
    closer = ["seconds_per_whole_epoch", *(f"step_{what}" for what in gpu.PROFILED)]
    assert len(measured) == 40 and set(measured) < set(rows) and len(rows) == 40 + 2 * len(closer)
    for net in catalogue.GPU_NETS.keys() - {*catalogue.LARGE}:
        assert all(any(name.startswith(f"gpu_{net}_{what}_group") for name in rows) for what in closer)
        assert "aten::" in (tmp_path / f"gpu_{net}_batch16_profile.txt").read_text()
    assert all(row["value"] > 0 for name, row in rows.items() if "launches" not in name)

    kept = {name: row for name, row in rows.items() if name != measured[3]}
    record.write(path, [row | {"date": "2026-01-02"} for row in kept.values()])
    assert gpu.main([*command[3:], "--networks", "resnet20"]) == 0
    again = record.read(path)
    today = {name for name, row in again.items() if row["date"] != "2026-01-02"}
    assert {name for name in today if "_whole_" not in name and "_step_" not in name} == {measured[2], measured[3]}


def test_time_in_which_several_kernels_run_counts_once():
    assert gpu.busy([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75), (6.0, 6.5)]) == 4.5


def test_script_for_gpus_ends_in_time(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--minutes", "0", "--results", str(path)]) == 0
    assert "the time is up; the same command goes on from here" in capsys.readouterr().out and not path.exists()


def test_lack_of_memory_is_a_result_and_other_failures_are_not(tmp_path, monkeypatch, capsys):
    """A group of two does not fit; a stacked one fails."""

    def advance(self, until, stop=None):
        if len(self.jobs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.group.form == "stacked":
            raise ValueError("stacked is broken")
        return trained(self, until, stop)

    trained = Training.advance
    monkeypatch.setattr(gpu, "profile", lambda training, table: {})
    monkeypatch.setattr(Training, "advance", advance)
    path = tmp_path / "gpu.json"
    command = ["--device", "cpu", "--quick", "--networks", "lenet_300_100", "--results", str(path)]
    assert gpu.main(command) == 1
    assert "ValueError: stacked is broken" in capsys.readouterr().err
    rows = record.read(path)
    values = {name: row["value"] for name, row in rows.items() if "seconds_per_epoch" in name}
    name = "gpu_lenet_300_100_seconds_per_epoch_group{}_batch16_bf16_{}"
    assert values.pop(name.format(1, "sequential")) > 0
    assert values == {name.format(2, form): None for form in gpu.FORMS}
    assert rows[name.format(2, "stacked")]["n"] == 0 and json.loads(path.read_text())


def test_script_for_gpus_refuses_networks_and_devices_that_are_not_there(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--networks", "resnet21", "--results", str(tmp_path / "x")]) == 2
    assert "--networks: 'resnet21' is not measured" in capsys.readouterr().err
    assert gpu.main(["--device", "cpu", "--only", "gpu_resnet20_s_", "--results", str(tmp_path / "x")]) == 2
    assert (
        "--only gpu_resnet20_s_: no figure of resnet20,lenet_300_100,resnet18,vgg16,mobilenet_v1 begins so"
        in capsys.readouterr().err
    )
    assert gpu.main(["--device", "cpus", "--results", str(tmp_path / "x")]) == 2
    assert "did you mean 'cpu'?" in capsys.readouterr().err
