"""Compact results: they lose no number, go on where they were cut off, and what is damaged or in the way is refused."""

import io
import json
import re
import tarfile
from collections import Counter

import helpers
import pandas as pd
import pytest

from lthlab import cli, compact, lab, results, spec
from lthlab.disk import digest
from lthlab.errors import InputError
from lthlab.store import Store

STUDY = """\
name: little
net: lenet_300_100
data: {name: digits, train_size: 200, val_size: 50}
replicates: 2
find: {epochs: 4, batch_size: 64, lr: [0.02, 0.1], weight_decay: 1.0e-3}
prune:
  levels: [1, 2]
  gradual: {start: 1ep, end: 3ep}
tickets:
  LT: {methods: [IMP, OMP]}
  RR: {methods: [OMP]}
  WR: {methods: [IMP], rewind: 1ep}
  GMP:
  RT: {methods: [IMP], scope: global}
measures:
  correlation_indicator: {p: 0.1, of: [dense, LT]}
  weight_std: {at: [0ep, 4ep]}
"""


class Stop:
    """Asks to stop once so many epochs are trained."""

    def __init__(self, epochs):
        self.left = epochs

    def begin(self, *numbers):
        pass

    def advance(self, epochs, trainings):
        self.left -= epochs

    def stop(self):
        return self.left <= 0


@pytest.fixture(scope="module")
def config():
    return spec.parse(STUDY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    """A store with all of the study, and its export."""
    store = helpers.store(tmp_path_factory.mktemp("whole") / "runs")
    lab.compute_study(config, store, "cpu")
    folder = tmp_path_factory.mktemp("export") / "little"
    return store, folder, compact.export("little", store, folder)


@pytest.fixture
def other(tmp_path):
    return helpers.store(tmp_path / "other")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def committed(store):
    """Bits of all files but those of states, which need not be carried."""
    found = helpers.bits(store.root)
    return {name: bits for name, bits in found.items() if re.search(r"(metrics|frame|path)\.jsonl|mask\.safe", name)}


def measured(store):
    frame = results.load(store, "little")
    return frame, results.measured(store, frame[frame["what"] == "weight_std"])


def test_a_round_trip_changes_no_number(whole, other, config):
    store, folder, written = whole
    assert set(contents(folder)) == {"study.json", "results.tar.xz"}
    assert written.bytes == sum(map(len, contents(folder).values())) and written.states == written.checkpoints == 0
    taken = compact.take(folder, other)
    assert (taken.values, taken.parts, taken.bytes) == (written.values, written.parts, written.bytes)
    assert taken.values == len(store.keys())
    for mine, theirs in zip(measured(store), measured(other), strict=True):
        pd.testing.assert_frame_equal(mine, theirs)
    assert committed(other) == committed(store)
    assert [problem for key in Store.keys(other) for problem in other.verify(key)] == []


def test_nothing_is_trained_again_and_a_second_export_has_the_same_bytes(whole, other, config, tmp_path):
    _, folder, _ = whole
    compact.take(folder, other)
    before = helpers.bits(other.root)
    summary = lab.compute_study(config, other, "cpu")
    assert summary.trained == 0 and not summary.stale
    assert helpers.bits(other.root) == before
    compact.export("little", other, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_initial_states_are_drawn_again_and_others_left_out(whole, other):
    store, folder, _ = whole
    compact.take(folder, other)
    of = {
        name: {p for p in helpers.bits(s.root) if p.endswith("ep.safetensors")}
        for name, s in (("a", store), ("b", other))
    }
    assert {path.rsplit("/")[-1] for path in of["a"]} >= {"0ep.safetensors", "1ep.safetensors", "4ep.safetensors"}
    assert of["b"] == {path for path in of["a"] if path.endswith("/0ep.safetensors")}
    bits, mine = helpers.bits(other.root), helpers.bits(store.root)
    assert all(bits[path] == mine[path] for path in of["b"])


def test_what_is_done_is_taken_in_again_without_harm(whole, config):
    store, folder, _ = whole
    before = helpers.bits(store.root)
    taken = compact.take(folder, store)
    assert (taken.values, taken.parts) == (0, 0)
    assert helpers.bits(store.root) == before


@pytest.mark.parametrize("stage", ["find_tickets", "stopped", "stopped without its checkpoint"])
def test_a_part_goes_on_in_another_store_to_the_same_bits(stage, whole, other, config, tmp_path):
    first, folder = helpers.store(tmp_path / "first"), tmp_path / "export"
    if stage == "find_tickets":
        lab.compute_study(config, first, "cpu", configuration="find_tickets")
    else:
        with pytest.raises(lab.Stopped):
            lab.compute_study(config, first, "cpu", watcher=Stop(40))
    written = compact.export("little", first, folder)
    assert written.checkpoints == (stage != "find_tickets")
    if stage == "find_tickets":
        with tarfile.open(folder / "results.tar.xz") as archive:
            states = [name.rsplit("/")[-1] for name in archive.getnames() if name.endswith("ep.safetensors")]
        assert Counter(states) == {"1ep.safetensors": 4, "4ep.safetensors": 4}, "of WR to start from, and to measure"
        assert written.states == 8
    if stage == "stopped without its checkpoint":
        (folder / "checkpoints.tar").unlink()
    taken = compact.take(folder, other)
    assert taken.checkpoints == len(other.checkpoints()) == (stage == "stopped")
    again = tmp_path / "again"
    compact.export("little", other, again)
    assert contents(again)["results.tar.xz"] == contents(folder)["results.tar.xz"]
    summary = lab.compute_study(config, other, "cpu")
    assert 0 < summary.trained < summary.trainings and not summary.stale
    assert committed(other) == committed(whole[0])


def test_only_what_nobody_needs_any_more_is_left_out(whole, other, tmp_path):
    """A further mask of a state that was left out takes the training again, to the same bits."""
    compact.take(whole[1], other)
    more = spec.parse(STUDY.replace("levels: [1, 2]", "levels: [1, 2, 3]"))
    summary = lab.compute_study(more, other, "cpu")
    assert summary.trained > 0 and not summary.stale
    mine, theirs = committed(whole[0]), committed(other)
    assert {path: theirs[path] for path in mine} == mine


def test_a_study_that_was_run_with_more_stays_as_it_is(whole, other):
    more = spec.parse(STUDY.replace("levels: [1, 2]", "levels: [1, 2, 3]"))
    lab.compute_study(more, other, "cpu", configuration="find_tickets")
    table = other.study("little")
    compact.take(whole[1], other)
    assert other.study("little") == table


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.fixture
def copy(whole, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in contents(whole[1]).items():
        (folder / name).write_bytes(content)
    return folder


def refused(folder, store):
    before = helpers.bits(store.root)
    with pytest.raises(InputError) as error:
        compact.take(folder, store)
    assert helpers.bits(store.root) == before
    return str(error.value)


def test_damage_is_refused_before_anything_is_written(copy, other):
    helpers.flip(copy / "results.tar.xz")
    assert refused(copy, other) == f"{copy / 'results.tar.xz'} is not what was exported: its checksum does not match"
    (copy / "results.tar.xz").unlink()
    assert refused(copy, other) == f"{copy / 'results.tar.xz'}: no such file"
    (copy / "study.json").write_text("{}")
    assert refused(copy, other) == f"{copy / 'study.json'} cannot be read: it has not what an export has"
    (copy / "study.json").unlink()
    assert refused(copy, other).startswith(f"{copy / 'study.json'}: no such file; allowed: a folder that")


def rewritten(folder, change):
    """Change the members of the archive, and make the checksums fit."""
    with tarfile.open(folder / "results.tar.xz") as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in change(files).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    whole = json.loads((folder / "study.json").read_text())
    whole["files"]["results.tar.xz"] = {"size": len(packed.getvalue()), "blake2b": digest(packed.getvalue())}
    (folder / "study.json").write_text(json.dumps(whole))
    (folder / "results.tar.xz").write_bytes(packed.getvalue())


def test_members_that_no_export_has_are_refused(copy, other):
    rewritten(copy, lambda files: files | {"../escaped": b""})
    assert "member '../escaped' is not known" in refused(copy, other)


def test_members_that_were_changed_are_refused(copy, other):
    def change(files):
        name = next(name for name in files if name.endswith("metrics.jsonl"))
        return files | {name: files[name].replace(b"0.", b"1.", 1)}

    rewritten(copy, change)
    assert "metrics.jsonl does not match its checksum" in refused(copy, other)


def test_a_changed_description_is_refused(copy, other):
    def change(files):
        name = next(name for name in files if name.endswith("description.json"))
        return files | {name: files[name] + b" "}

    rewritten(copy, change)
    assert "the description of" in refused(copy, other)


def test_other_results_of_the_same_values_are_refused(copy, whole, other):
    """As those of a GPU would be; what is in the store stays."""

    def change(files):
        name = next(name for name in files if name.endswith("metrics.jsonl"))
        record = name.replace("metrics.jsonl", "record.json")
        entries = json.loads(files[record])
        content = files[name].replace(b"0.", b"1.", 1)
        entries["files"]["metrics.jsonl"] |= {"blake2b": digest(content)}
        return files | {name: content, record: json.dumps(entries).encode()}

    compact.take(whole[1], other)
    rewritten(copy, change)
    assert re.search(r"metrics\.jsonl has other bits; allowed: another store", refused(copy, other))


def test_studies_that_differ_are_told_apart(copy, whole, other, config, tmp_path):
    other.write_study("little", {"document": {}, "roles": [{"key": "0" * 32}]})
    assert "has no value of that in" in refused(copy, other)
    lab.compute_study(
        spec.parse(STUDY.replace("name: little", "name: small")), other, "cpu", configuration="find_tickets"
    )
    with pytest.raises(InputError, match="has the results of study 'little'; allowed: another folder"):
        compact.export("small", other, copy)
    with pytest.raises(InputError, match=r"study 'litle' is not in .*did you mean 'little'"):
        compact.export("litle", other, copy)


def test_another_format_is_named(copy, other):
    text = (copy / "study.json").read_text()
    (copy / "study.json").write_text(text.replace("lthlab results 1", "lthlab results 2"))
    assert "format 'lthlab results 2' is not known; this version reads 'lthlab results 1'" in refused(copy, other)


# --- on the command line ----------------------------------------------------------------------------------------


def test_commands_say_what_they_did(whole, tmp_path, capsys):
    store, folder, written = whole
    code = cli.main(["results", "export", "little", str(tmp_path / "x"), "--runs", str(store.root)])
    values = f"{written.values} values, {written.parts} parts"
    assert (code, capsys.readouterr().out) == (
        0,
        f"little: {values}, written to {tmp_path / 'x'} ({written.bytes / 1e6:.2f} MB)\n",
    )
    assert contents(tmp_path / "x") == contents(folder)
    assert cli.main(["results", "import", str(folder), "--runs", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, **vars(written)}
    assert Store(tmp_path / "new").studies() == ["little"]
    assert cli.main(["results", "import", str(tmp_path / "none")]) == 2
    assert "no such file; allowed: a folder that `lthlab results export` wrote" in capsys.readouterr().err
