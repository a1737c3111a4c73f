"""The store, with faults before and inside every file operation, damaged bytes, rivals and killed owners."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lthlab.store import Checkpoint, Damaged, Files, Store, StoreError, tensor_bytes

TEXT = json.dumps({"kind": "train", "replicate": 0})
KEY = hashlib.sha256(TEXT.encode()).hexdigest()[:32]
OTHER = "0123456789abcdef" * 2
GROUP = "f" * 32
MEMBERS = Checkpoint((KEY, OTHER), 12)
WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([True, False])}
FIRST = {"metrics.jsonl": b'{"epoch": 1}\n', "last.safetensors": tensor_bytes(WEIGHTS), "empty": b""}
SECOND = {"metrics.jsonl": b'{"epoch": 2}\n', "note.json": b'{"n": [1, null]}'}
OPERATIONS = [name for name in vars(Files) if not name.startswith("_")]


@pytest.fixture
def store(tmp_path):
    """A store with one result of two parts, a study, a checkpoint and progress."""
    return filled(tmp_path / "runs")


def filled(root):
    store = Store(root)
    store.describe(TEXT)
    assert store.commit(KEY, 0, FIRST, {"epochs": 1})
    assert store.commit(KEY, 1, SECOND, {"epochs": 2})
    store.write_study("demo", {"rows": [1]})
    store.write_checkpoint(GROUP, b"state\n\0", [KEY, OTHER], 12)
    store.append_progress(GROUP, "epoch 1")
    return store


def tree(root):
    """Every file under `root` with its bytes, and every folder."""
    paths = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in paths}


def leftovers(store):
    return [name for name in tree(store.root) if name.startswith((".work/", ".claims/"))]


# Faults


class Crash(BaseException):
    """Stands for the death of the process: nothing in the store may catch it to tidy up."""


class Faulty(Files):
    """Counts operations and raises before the one with number `at`, or half-way through it if `torn`."""

    def __init__(self, at=None, error=None, torn=False, lasting=False):
        self.log = []
        self.at, self.error, self.torn, self.lasting = at, error, torn, lasting

    def fail(self, name, path, args):
        if self.torn and name in ("write", "append"):
            with open(path, "ab") as file:
                file.write(args[0][: len(args[0]) // 2])
        if self.torn and name == "rmtree" and path.is_dir():
            for child in sorted(path.iterdir())[:1]:
                child.unlink()
        raise self.error


def operation(name):
    def run(self, path, *args, **kwargs):
        number = len(self.log)
        self.log.append((name, path))
        refuses = name not in ("remove", "rmtree", "lock") if self.lasting else True
        if self.at is not None and (number == self.at or (self.lasting and number > self.at and refuses)):
            self.fail(name, path, args)
        return getattr(Files, name)(self, path, *args, **kwargs)

    return run


for _name in OPERATIONS:
    setattr(Faulty, _name, operation(_name))


def results(store):
    found, keys = {}, store.keys()
    for key in keys:
        for part in store.parts(key):
            found[key, part.number] = part.record, {n: store.read(key, n, part.number) for n in part.files}
        assert all("description" in str(damaged) for damaged in store.verify(key))
    return found


def leave_behind(store):
    """What owners that died leave."""
    store.commit(KEY, 0, FIRST, {})
    store.write_checkpoint(OTHER, b"", [OTHER], 3)
    for name in (f"{KEY}.{'0' * 16}", f"trash.{'0' * 16}"):
        shutil.copytree(store.root / KEY / "0", store.root / ".work" / name)
    (store.root / ".claims").mkdir()
    (store.root / ".claims" / f"{KEY}.lock").touch()


def claim_and_release(store):
    with store.claim(KEY):
        pass


ACTS = {
    "commit": (lambda s: s.describe(TEXT), lambda s: s.commit(KEY, 0, FIRST, {"epochs": 1}), results),
    "commit into nothing": (lambda s: None, lambda s: s.commit(KEY, 0, FIRST, {}), results),
    "continuation": (
        lambda s: s.commit(KEY, 0, FIRST, {}),
        lambda s: s.commit(KEY, 1, SECOND, {"epochs": 2}),
        results,
    ),
    "checkpoint": (
        lambda s: s.write_checkpoint(GROUP, b"old", [KEY], 4),
        lambda s: s.write_checkpoint(GROUP, b"newer", [OTHER, KEY], 8),
        lambda s: (s.checkpoints(), s.read_checkpoint(GROUP)),
    ),
    "study": (
        lambda s: s.write_study("demo", {"rows": [1]}),
        lambda s: s.write_study("demo", {"rows": [1, 2]}),
        lambda s: s.study("demo"),
    ),
    "first study": (
        lambda s: None,
        lambda s: s.write_study("demo", {"rows": [1, 2]}),
        lambda s: [s.study(name) for name in s.studies()],
    ),
    "description": (
        lambda s: None,
        lambda s: s.describe(TEXT),
        lambda s: s.description(KEY) if (s.root / KEY / "description.json").exists() else None,
    ),
    "progress": (
        lambda s: s.append_progress(GROUP, "1"),
        lambda s: s.append_progress(GROUP, "22"),
        lambda s: s.progress()[GROUP][:2],
    ),
    "claim": (lambda s: None, claim_and_release, lambda s: s.claimed(KEY)),
    "sweep": (leave_behind, lambda s: s.sweep(), results),
}
FAULTS = {
    "crash": {"error": Crash()},
    "crash half-way": {"error": Crash(), "torn": True},
    "full": {"error": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "torn": True, "lasting": True},
    "refused": {"error": OSError(errno.EACCES, os.strerror(errno.EACCES))},
    "broken": {"error": OSError(errno.EIO, os.strerror(errno.EIO)), "torn": True},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("act", ACTS)
def test_fault_at_every_operation(act, fault, tmp_path):
    """Old or new state, never a mix; the same call again succeeds; a sweep leaves nothing over."""
    prepare, do, observe = ACTS[act]
    undisturbed = Store(tmp_path / "undisturbed", Faulty())
    prepare(undisturbed)
    old = observe(undisturbed)
    undisturbed.files.log.clear()
    do(undisturbed)
    new, operations = observe(undisturbed), undisturbed.files.log
    assert len(operations) >= {"progress": 1, "claim": 3, "sweep": 7}.get(act, 3)
    finished = {name: data for name, data in tree(undisturbed.root).items() if name[0] != "."}
    for number in range(len(operations)):
        root = tmp_path / str(number)
        prepare(Store(root))
        with pytest.raises((Crash, StoreError)) as caught:
            do(Store(root, Faulty(number, **FAULTS[fault])))
        if caught.type is StoreError:
            assert str(root) in str(caught.value) and "bytes free" in str(caught.value)
            assert caught.value.errno == FAULTS[fault]["error"].errno
            if act not in ("claim", "sweep"):
                staged = set(leftovers(Store(root))) - {f".work/{GROUP}.checkpoint", f".work/{GROUP}.progress"}
                assert staged == set(), "what was staged takes up space"
        del caught
        store = Store(root)
        where = f"operation {number}, {operations[number]}"
        assert observe(store) in (old, new), where
        root.mkdir(exist_ok=True)
        swept = shutil.copytree(root, tmp_path / f"{number}-swept")
        Store(swept).sweep(keep=[GROUP])
        assert {Path(name).name for name in leftovers(Store(swept))} <= {
            f"{GROUP}.checkpoint",
            f"{GROUP}.progress",
        }, where
        assert observe(Store(swept)) in (old, new), where
        do(store)
        assert observe(store) == new, where
        assert {name: data for name, data in tree(root).items() if name[0] != "."} == finished, where
        store.sweep()
        assert leftovers(store) == [], where


def test_half_a_discard_leaves_a_shorter_result(tmp_path):
    """Parts go last first, each at once: what is left is a whole prefix."""
    log = Faulty()
    filled(tmp_path / "undisturbed").discard(KEY)
    store = filled(tmp_path / "logged")
    store.files = log
    store.discard(KEY)
    assert not store.has(KEY) and store.verify(KEY) == []
    seen = set()
    for number in range(len(log.log)):
        store = filled(tmp_path / str(number))
        store.files = Faulty(number, Crash(), torn=True)
        with pytest.raises(Crash):
            store.discard(KEY)
        assert store.verify(KEY) == []
        seen.add(len(store.parts(KEY)))
        store.files = Files()
        store.discard(KEY)
        store.sweep()
        assert not store.has(KEY) and leftovers(store) == []
    assert seen == {0, 1, 2}


class PowerLoss(Files):
    """Remembers what the disk was not told to keep: the bytes of files and the entries of folders."""

    def __init__(self, stop):
        self.stop, self.count = stop, 0
        self.files, self.entries = set(), {}

    def step(self):
        self.count += 1
        if self.count > self.stop:
            raise Crash

    def entry(self, path):
        self.entries.setdefault(path.parent.stat().st_ino, set()).add(path.name)

    def mkdir(self, path):
        self.step()
        super().mkdir(path)
        self.entry(path)

    def write(self, path, data, sync=True):
        self.step()
        super().write(path, data, sync)
        self.entry(path)
        if not sync:
            self.files.add(path.stat().st_ino)

    def rename(self, source, target):
        self.step()
        super().rename(source, target)
        self.entry(target)

    def replace(self, source, target):
        self.step()
        super().replace(source, target)
        self.entry(target)

    def sync_dir(self, path):
        self.step()
        super().sync_dir(path)
        self.entries.pop(path.stat().st_ino, None)

    def lose(self, root, names_too):
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_file() and path.stat().st_ino in self.files:
                path.write_bytes(b"")
            in_result = path.parent.name.isdigit()
            lost = path.name in self.entries.get(path.parent.stat().st_ino, ())
            if lost and (names_too or in_result):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("names_too", [False, True])
def test_power_loss(names_too, tmp_path):
    """Without what the disk was not told to keep, a result is whole or absent, and there once committed."""
    for stop in range(100):
        root = tmp_path / str(stop)
        root.mkdir()
        files = PowerLoss(stop)
        store, finished = Store(root, files), 0
        try:
            store.describe(TEXT)
            for part in range(2):
                store.commit(KEY, part, FIRST, {"part": part})
                finished = part + 1
        except Crash:
            pass
        files.lose(root, names_too)
        whole = results(Store(root))
        assert finished <= len(whole) <= 2
        assert all(found == ({"part": number}, FIRST) for (_, number), found in whole.items())
        if finished == 2:
            return
    raise AssertionError("the commits did not end")


@pytest.mark.parametrize("act", ["checkpoint", "study"])
def test_power_loss_while_something_is_replaced(act, tmp_path):
    """The old one or the new one is there, the new one once the call returned."""
    prepare, do, observe = ACTS[act]
    seen = []
    for stop in range(100):
        store = Store(tmp_path / str(stop))
        prepare(store)
        old, store.files, finished = observe(store), PowerLoss(stop), False
        try:
            do(store)
            finished = True
        except Crash:
            pass
        store.files.lose(store.root, names_too=False)
        seen.append(observe(Store(store.root)) == old)
        if finished:
            assert seen[0] and not seen[-1]
            return
    raise AssertionError("the call did not end")


def test_write_and_sync_dir_reach_the_disk(tmp_path, monkeypatch):
    """`fsync` is called on the file with all its bytes, and on the folder."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: synced.append((os.fstat(f).st_ino, os.fstat(f).st_size)) or real(f))
    Files().write(tmp_path / "a", b"12345")
    assert synced == [((tmp_path / "a").stat().st_ino, 5)]
    Files().sync_dir(tmp_path)
    assert synced[1][0] == tmp_path.stat().st_ino
    Files().write(tmp_path / "b", b"1", sync=False)
    assert len(synced) == 2
    monkeypatch.setattr(os, "fsync", lambda f: (_ for _ in ()).throw(OSError(errno.EINVAL, "no folders")))
    Files().sync_dir(tmp_path)


def test_operations_may_be_repeated(tmp_path):
    files = Files()
    for _ in range(2):
        files.mkdir(tmp_path / "a" / "b")
        files.write(tmp_path / "f", b"1")
    for _ in range(2):
        files.remove(tmp_path / "f")
        files.rmtree(tmp_path / "a")
    files.mkdir(tmp_path / "new")
    files.mkdir(tmp_path / "full" / "x")
    with pytest.raises(OSError) as caught:
        files.rename(tmp_path / "new", tmp_path / "full")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)


def test_every_change_goes_through_files(store):
    """With operations that do nothing, no method changes anything on disk."""

    class Idle(Files):
        pass

    for name in OPERATIONS:
        setattr(Idle, name, lambda self, *args, **kwargs: None)
    shutil.copytree(store.root / KEY / "1", store.root / ".work" / f"{OTHER}.{'0' * 16}")
    before = tree(store.root.parent)
    idle = Store(store.root, Idle())
    idle.check_writable()
    Store(store.root.parent / "absent", Idle()).check_writable()
    idle.describe("{}")
    idle.commit(KEY, 2, FIRST, {})
    idle.discard(KEY)
    idle.write_study("demo", {})
    assert idle.claim(OTHER) is None
    idle.write_checkpoint(GROUP, b"", [], 0)
    idle.remove_checkpoint(GROUP)
    idle.append_progress(GROUP, "x")
    idle.append_timing("x")
    idle.remove_progress(GROUP)
    idle.sweep()
    assert tree(store.root.parent) == before


def test_reading_changes_nothing(store):
    """Not even time stamps; what permissions there are to write are taken away first."""

    class Forbidden(Files):
        pass

    def refuse(self, *args, **kwargs):
        raise AssertionError("a reading method wrote")

    for name in OPERATIONS:
        setattr(Forbidden, name, refuse)
    claim = store.claim(OTHER)
    paths = [store.root, *store.root.rglob("*")]
    before = [(path, path.stat().st_mtime_ns) for path in paths]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    reader = Store(store.root, Forbidden())
    try:
        assert reader.has(KEY) and reader.keys() == [KEY]
        assert reader.description(KEY) == json.loads(TEXT)
        assert reader.describe(TEXT) == KEY
        assert [part.record for part in reader.parts(KEY)] == [{"epochs": 1}, {"epochs": 2}]
        assert reader.verify(KEY) == []
        assert reader.names(KEY) == ["empty", "last.safetensors", "metrics.jsonl", "note.json"]
        assert reader.read(KEY, "empty") == b""
        assert reader.read_json(KEY, "note.json") == {"n": [1, None]}
        assert set(reader.read_tensors(KEY, "last.safetensors")) == {"a", "b"}
        assert reader.studies() == ["demo"] and reader.study("demo") == {"rows": [1]}
        assert reader.checkpoints() == {GROUP: MEMBERS} and reader.progress() == {GROUP: ["epoch 1"]}
        assert reader.read_checkpoint(GROUP) == b"state\n\0"
        assert reader.timings() == []
        assert reader.claimed(OTHER) and not reader.claimed(KEY)
        assert reader.claim_age(OTHER) >= 0 and reader.claim_age(KEY) is None
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert [(path, path.stat().st_mtime_ns) for path in paths] == before
    claim.release()


# Results


def test_parts(store):
    """The last part that has a name answers; a part is asked for by its number."""
    assert store.read(KEY, "metrics.jsonl") == SECOND["metrics.jsonl"]
    assert store.read(KEY, "metrics.jsonl", part=0) == FIRST["metrics.jsonl"]
    assert store.read(KEY, "empty") == b""
    with pytest.raises(LookupError, match=r"no file 'note\.json'; there are empty, last\.safetensors"):
        store.read(KEY, "note.json", part=0)
    with pytest.raises(LookupError, match=r"the nearest is 'metrics\.jsonl'"):
        store.read(KEY, "metric.jsonl")
    with pytest.raises(LookupError, match="there are none"):
        store.read(OTHER, "metrics.jsonl")
    with pytest.raises(ValueError, match="part 3 cannot be committed, the next one is 2"):
        store.commit(KEY, 3, FIRST, {})
    with pytest.raises(ValueError, match="part -1"):
        store.commit(OTHER, -1, FIRST, {})
    with pytest.raises(ValueError, match="part 1 cannot be committed, the next one is 0"):
        store.commit(OTHER, 1, FIRST, {})
    assert not store.commit(KEY, 0, SECOND, {}) and not store.commit(KEY, 1, FIRST, {})
    assert store.read(KEY, "metrics.jsonl") == SECOND["metrics.jsonl"]
    assert not store.has(OTHER) and store.parts(OTHER) == [] and store.keys() == [KEY]
    assert (store.root / KEY / "0" / "manifest.json").read_text().startswith('{"blake2b": ')


def test_order_of_a_commit(store):
    """The manifest is written last, its bytes do not depend on the order of the files; what stands is not staged."""
    store.files = Faulty()
    store.commit(OTHER, 0, FIRST, {})
    written = [path.name for name, path in store.files.log if name == "write"]
    assert written == [*FIRST, "manifest.json"]
    store.files.log.clear()
    store.commit(OTHER, 0, FIRST, {})
    assert store.files.log == [("sync_dir", store.root / OTHER)]
    text = manifest(store, OTHER).read_bytes()
    store.discard(OTHER)
    store.commit(OTHER, 0, dict(reversed(FIRST.items())), {})
    assert manifest(store, OTHER).read_bytes() == text


def test_the_root_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("runs")
    monkeypatch.chdir("/")
    store.describe(TEXT)
    assert (tmp_path / "runs" / KEY).is_dir()


def test_records_and_names_that_are_refused(store):
    for record in ({"loss": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            store.commit(OTHER, 0, FIRST, record)
    with pytest.raises(ValueError, match="manifest"):
        store.commit(OTHER, 0, {"manifest.json": b""}, {})
    assert leftovers(store) == [f".work/{GROUP}.checkpoint", f".work/{GROUP}.progress"]
    assert store.keys() == [KEY]


def test_a_description_before_its_result(tmp_path, monkeypatch):
    """Descriptions of 400 values are written and read in under a second, without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", None)
    store = Store(tmp_path / "runs")
    texts = [json.dumps({"replicate": i, "text": "ä" * 100}) for i in range(400)]
    start = time.perf_counter()
    keys = [store.describe(text) for text in texts]
    assert [store.describe(text) for text in texts] == keys
    assert [store.description(key) for key in keys] == [json.loads(text) for text in texts]
    assert time.perf_counter() - start < 1
    assert len(set(keys)) == 400 and store.keys() == [] and not store.has(keys[0])
    assert keys[0] == hashlib.sha256(texts[0].encode()).hexdigest()[:32]
    with pytest.raises(Damaged, match="is missing"):
        store.description(OTHER)


def test_a_damaged_description_is_written_again(store):
    path = store.root / KEY / "description.json"
    for data in (b"", b"{}", TEXT.encode() + b" "):
        path.write_bytes(data)
        with pytest.raises(Damaged, match="does not match its key"):
            store.description(KEY)
        assert store.describe(TEXT) == KEY and store.description(KEY) == json.loads(TEXT)
    no_json = store.describe("[" * 100_000)
    with pytest.raises(Damaged, match="is not JSON"):
        store.description(no_json)


@given(
    st.dictionaries(
        st.text(string.ascii_letters, min_size=1),
        arrays.arrays(
            st.sampled_from(["bool", "uint8", "int64", "float16", "float32", "float64"]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4),
    st.booleans(),
)
def test_tensors_round_trip(tmp_path_factory, tensors, metadata, transpose):
    """Shapes, types and bits survive, 0-dimensional and transposed arrays included."""
    if transpose:
        tensors = {name: array.T for name, array in tensors.items()}
    store = Store(tmp_path_factory.mktemp("tensors"))
    store.commit(KEY, 0, {"t": tensor_bytes(tensors, metadata)}, {})
    found = store.read_tensors(KEY, "t")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_equal_tensors_give_equal_bytes():
    metadata = {letter: "x" for letter in string.ascii_letters}
    swapped = dict(reversed(WEIGHTS.items())), dict(reversed(metadata.items()))
    assert {tensor_bytes(*args) for args in [(WEIGHTS, metadata), swapped] * 5} == {tensor_bytes(WEIGHTS, metadata)}
    data = tensor_bytes(WEIGHTS, {"a": "ä"})
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and json.loads(data[8 : 8 + length])["__metadata__"] == {"a": "ä"}


# Damage


def damages(data):
    """(What was done, bytes): bits flipped at up to 64 places, cut at 16, emptied, made longer."""
    for place in sorted({round(i * (len(data) - 1) / 63) for i in range(64)} if data else ()):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        yield f"bit {place % 8} of byte {place}", bytes(flipped)
    yield from ((f"cut to {n} bytes", data[:n]) for n in {round(i * len(data) / 16) for i in range(16)} if data)
    yield "longer", data + b"\0"
    yield "longer in front", b" " + data
    yield "same length, zeros", bytes(len(data)) or b"\0"


def read_everything(store):
    store.description(KEY)
    for part in store.parts(KEY):
        for name in part.files:
            store.read(KEY, name, part.number)
    store.study("demo")
    store.read_checkpoint(GROUP)


def test_every_damage_is_found_on_read(store):
    """In every file, with size (for flips), time stamps and mode as they were."""
    paths = [p for p in store.root.rglob("*") if p.is_file() and p.suffix != ".progress"]
    assert len(paths) == 1 + 4 + 3 + 1 + 1
    for path in paths:
        data, before = path.read_bytes(), path.stat()
        for what, damaged in damages(data):
            assert damaged != data
            path.write_bytes(damaged)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            path.chmod(before.st_mode)
            with pytest.raises(Damaged) as caught:
                read_everything(store)
            assert caught.value.path == path, what
            assert str(path) in str(caught.value)
            if KEY in str(path):
                assert [found.path for found in store.verify(KEY)] == [path], what
        path.write_bytes(data)
    read_everything(store)


def test_damaged_names_what_to_discard(store):
    (store.root / KEY / "1" / "note.json").write_bytes(b"{}")
    with pytest.raises(Damaged, match=r"has 2 bytes, 16 were written") as caught:
        store.read(KEY, "note.json")
    assert (caught.value.key, caught.value.part) == (KEY, 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.reason, again.part) == (caught.value.path, caught.value.reason, 1)
    store.discard(caught.value.key, caught.value.part)
    assert [part.number for part in store.parts(KEY)] == [0]
    assert store.commit(KEY, 1, SECOND, {"epochs": 2}) and store.verify(KEY) == []


def manifest(store, key=KEY, part=0):
    return store.root / key / str(part) / "manifest.json"


def sealed(body):
    rest = json.dumps(body)[1:].encode()
    return b'{"blake2b": "' + hashlib.blake2b(rest, digest_size=32).hexdigest().encode() + b'", ' + rest


def test_foreign_manifests(store):
    store.commit(OTHER, 0, FIRST, {"epochs": 1})
    own = manifest(store).read_bytes()
    for foreign, reason in [
        (manifest(store, OTHER).read_bytes(), f"is the manifest of part 0 of '{OTHER}'"),
        (manifest(store, part=1).read_bytes(), f"is the manifest of part 1 of '{KEY}'"),
        (sealed({"format": 1}), "is the manifest of part None of None"),
        (sealed({"format": 1, "key": KEY, "part": 0}), "is not a manifest"),
        (sealed({"format": 1, "key": KEY, "part": 0, "files": [], "record": {}}), "is not a manifest"),
        (
            sealed(
                {
                    "format": 1,
                    "key": KEY,
                    "part": 0,
                    "files": {"../x": {"size": 0, "blake2b": ""}},
                    "record": {},
                }
            ),
            "is not a manifest",
        ),
        (b"", "checksum"),
        (b"{}", "checksum"),
    ]:
        manifest(store).write_bytes(foreign)
        for read in (store.parts, store.names, lambda key: store.read(key, "empty")):
            with pytest.raises(Damaged, match=reason) as caught:
                read(KEY)
            assert (caught.value.key, caught.value.part) == (KEY, 0)
    manifest(store).write_bytes(sealed({"format": 2, "key": KEY}))
    with pytest.raises(StoreError, match="has format 2, this version of lthlab reads 1"):
        store.parts(KEY)
    manifest(store).write_bytes(own)
    shutil.copytree(store.root / OTHER / "0", store.root / KEY / "2")
    with pytest.raises(Damaged, match="is the manifest of part 0"):
        store.parts(KEY)
    shutil.copy(store.root / "studies" / "demo.json", store.root / "studies" / "copy.json")
    with pytest.raises(Damaged, match="is the table of study 'demo'"):
        store.study("copy")
    shutil.copy(store.root / ".work" / f"{GROUP}.checkpoint", store.root / ".work" / f"{OTHER}.checkpoint")
    with pytest.raises(Damaged, match="is not the checkpoint of group"):
        store.read_checkpoint(OTHER)


def test_missing_and_extra_files(store, tmp_path):
    target = store.root / KEY / "0" / "empty"
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    for put, reason in [
        (lambda: None, "is missing"),
        (lambda: target.symlink_to(outside), "is not a plain file"),
        (lambda: target.mkdir(), "is not a plain file"),
    ]:
        target.unlink()
        put()
        with pytest.raises(Damaged, match=reason):
            store.read(KEY, "empty")
        assert [str(found) for found in store.verify(KEY)] == [f"{target}: {reason}"]
        Files().rmtree(target)
        target.write_bytes(b"")
    os.mkfifo(store.root / KEY / "0" / "pipe")
    (store.root / KEY / "1" / "more.json").write_bytes(b"{}")
    (store.root / KEY / "stray").mkdir()
    extra = {store.root / KEY / name for name in ("0/pipe", "1/more.json", "stray")}
    assert {found.path for found in store.verify(KEY)} == extra
    assert all("is no part of a result" in str(found) for found in store.verify(KEY))
    with pytest.raises(LookupError):
        store.read(KEY, "more.json")
    for part in (0, 1):
        manifest(store, part=part).unlink()
    with pytest.raises(Damaged, match="is missing"):
        store.parts(KEY)
    assert store.has(KEY) and not store.commit(KEY, 0, FIRST, {})


def test_a_part_that_is_missing_before_another(store):
    """What stood on it is not used, nor can anything be committed beside it."""
    shutil.rmtree(store.root / KEY / "0")
    with pytest.raises(Damaged, match="is missing") as caught:
        store.parts(KEY)
    assert caught.value.part == 0 and store.has(KEY)
    assert [found.part for found in store.verify(KEY)] == [0]
    for part in (0, 2):
        with pytest.raises(ValueError, match="cannot be committed"):
            store.commit(KEY, part, FIRST, {})
    store.discard(KEY, caught.value.part)
    assert store.commit(KEY, 0, FIRST, {}) and store.verify(KEY) == []


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_never_run(store, tmp_path):
    """Neither in place of any file, nor committed under any name."""
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary))
    pickle.loads(payload)
    canary.unlink()
    for path in [p for p in store.root.rglob("*") if p.is_file() and p.suffix != ".progress"]:
        data = path.read_bytes()
        path.write_bytes(payload)
        with pytest.raises(Damaged):
            read_everything(store)
        path.write_bytes(data)
    names = ["a.pt", "a.npy", "a.npz", "a.pkl", "a.json", "last.safetensors"]
    store.commit(OTHER, 0, dict.fromkeys(names, payload), {})
    for name in names:
        assert store.read(OTHER, name) == payload
        with pytest.raises(Damaged, match="is not JSON"):
            store.read_json(OTHER, name)
        with pytest.raises(Damaged, match="is not safetensors"):
            store.read_tensors(OTHER, name)
    assert not canary.exists()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_readers(tmp_path_factory, data):
    store = Store(tmp_path_factory.mktemp("bytes"))
    header = len(data).to_bytes(8, "little") + data
    store.commit(KEY, 0, {"plain": data, "header": header, "long": b"\xff" * 7 + data}, {})
    for name in ("plain", "header", "long"):
        for read in (store.read_json, store.read_tensors):
            try:
                read(KEY, name)
            except Damaged as damaged:
                assert damaged.path.name == name


# Names


KEY_METHODS = {
    "description": lambda s, key: s.description(key),
    "commit": lambda s, key: s.commit(key, 0, {}, {}),
    "has": lambda s, key: s.has(key),
    "parts": lambda s, key: s.parts(key),
    "names": lambda s, key: s.names(key),
    "read": lambda s, key: s.read(key, "a"),
    "discard": lambda s, key: s.discard(key),
    "verify": lambda s, key: s.verify(key),
    "claim": lambda s, key: s.claim(key),
    "claimed": lambda s, key: s.claimed(key),
    "write_checkpoint": lambda s, key: s.write_checkpoint(key, b"", [], 0),
    "members": lambda s, key: s.write_checkpoint(GROUP, b"", [key], 0),
    "read_checkpoint": lambda s, key: s.read_checkpoint(key),
    "remove_checkpoint": lambda s, key: s.remove_checkpoint(key),
    "append_progress": lambda s, key: s.append_progress(key, ""),
    "remove_progress": lambda s, key: s.remove_progress(key),
    "sweep": lambda s, key: s.sweep([key]),
}
NAME_METHODS = {
    "commit": lambda s, name: s.commit(KEY, 0, {name: b""}, {}),
    "read": lambda s, name: s.read(KEY, name),
    "read_json": lambda s, name: s.read_json(KEY, name),
    "read_tensors": lambda s, name: s.read_tensors(KEY, name),
    "write_study": lambda s, name: s.write_study(name, {}),
    "study": lambda s, name: s.study(name),
}
HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b/..",
    "a\0",
    "a\n",
    " a",
    "-a",
    ".a",
    "ä",
    "a b",
    "a\u202e",
]
NO_KEYS = [
    *HOSTILE,
    KEY[:-1],
    KEY + "0",
    KEY.upper(),
    KEY + "\n",
    f"../{KEY}",
    "g" * 32,
    "٣" * 32,
    None,
    3,
    b"a" * 32,
]


@pytest.mark.parametrize("method", KEY_METHODS)
def test_hostile_keys(method, tmp_path):
    store = Store(tmp_path / "runs")
    for key in NO_KEYS:
        with pytest.raises(ValueError, match="is not a key"):
            KEY_METHODS[method](store, key)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("method", NAME_METHODS)
def test_hostile_names(method, tmp_path):
    store = Store(tmp_path / "runs")
    for name in [*HOSTILE, None, 3, b"a"]:
        with pytest.raises(ValueError, match="is not a name"):
            NAME_METHODS[method](store, name)
    assert tree(tmp_path) == {}


@given(st.text() | st.text(string.ascii_letters + "./_-\n", max_size=5))
def test_names_stay_inside(tmp_path_factory, name):
    """A name is refused, or is one plain file in the folder it belongs in."""
    root = tmp_path_factory.mktemp("names")
    store = Store(root / "runs")
    try:
        store.write_study(name, [name])
    except (ValueError, StoreError):
        return
    assert store.studies() == [name] and store.study(name) == [name]
    assert [p for p in root.rglob("*") if p.is_file()] == [root / "runs" / "studies" / f"{name}.json"]


def test_studies(store):
    store.write_study("demo-2", {"rows": []})
    (store.root / "studies" / ".hidden.json").write_bytes(b"")
    assert store.studies() == ["demo", "demo-2"]
    with pytest.raises(LookupError, match="no study 'demmo'; there are demo, demo-2, the nearest is 'demo'"):
        store.study("demmo")


def test_symbolic_links_are_not_followed_out(store, tmp_path):
    """The store itself may be one; removing takes away links, never what they lead to."""
    linked = tmp_path / "linked"
    linked.symlink_to(store.root)
    assert Store(linked).commit(KEY, 2, FIRST, {}) and store.read(KEY, "empty", 2) == b""
    Store(linked).sweep()
    outside = tmp_path / "outside"
    shutil.copytree(store.root / KEY, outside / KEY)
    before = tree(outside)
    (store.root / OTHER).symlink_to(outside / KEY)
    (store.root / KEY / "3").symlink_to(outside / KEY / "0")
    (store.root / ".work" / f"{KEY}.{'0' * 16}").symlink_to(outside)
    (store.root / ".work" / "stray").mkdir()
    (store.root / ".work" / "stray" / "link").symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        store.commit(OTHER, 3, FIRST, {})
    store.discard(OTHER)
    store.discard(KEY, 3)
    store.sweep()
    assert leftovers(store) == [] and not store.has(OTHER) and len(store.parts(KEY)) == 3
    shutil.rmtree(store.root / ".work")
    (store.root / ".work").symlink_to(outside)
    for act in (store.sweep, store.check_writable, lambda: store.append_progress(GROUP, "")):
        with pytest.raises(StoreError, match=r"\.work"):
            act()
    assert tree(outside) == before


def test_an_unwritable_store_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"File exists \([\d,]+ bytes free\): '.*/file'"):
        Store(tmp_path / "file").check_writable()
    with pytest.raises(StoreError, match=r"bytes free\): '.*/file/runs'"):
        Store(tmp_path / "file" / "runs").check_writable()
    store = Store(tmp_path / "deep" / "runs")
    store.check_writable()
    store.check_writable()
    assert tree(tmp_path / "deep") == {
        "runs": None,
        "runs/.claims": None,
        "runs/.work": None,
        "runs/studies": None,
    }
    assert isinstance(pickle.loads(pickle.dumps(StoreError(28, "no space (0 bytes free)", "x"))), StoreError)


# Work that is not finished


def test_checkpoints(store, caplog):
    store.write_checkpoint(OTHER, bytes(range(256)) * 10, [], 7)
    assert store.checkpoints() == {GROUP: MEMBERS, OTHER: Checkpoint((), 7)}
    assert store.read_checkpoint(OTHER) == bytes(range(256)) * 10
    (store.root / ".work" / f"{OTHER}.checkpoint").write_bytes(b"half")
    with caplog.at_level(logging.WARNING, logger="lthlab.store"):
        assert store.checkpoints() == {GROUP: MEMBERS}
    assert f"{OTHER}.checkpoint: does not match its checksum; the checkpoint is removed" in caplog.text
    assert not (store.root / ".work" / f"{OTHER}.checkpoint").exists()
    store.remove_checkpoint(GROUP)
    store.remove_checkpoint(GROUP)
    assert store.checkpoints() == {}
    with pytest.raises(Damaged, match="is missing"):
        store.read_checkpoint(GROUP)


def test_progress(store):
    """A last line without its end is neither shown nor mixed with the next."""
    path = store.root / ".work" / f"{GROUP}.progress"
    with path.open("ab") as file:
        file.write(b"half a li")
    assert store.progress() == {GROUP: ["epoch 1"]}
    store.append_progress(GROUP, "epoch ä")
    assert store.progress() == {GROUP: ["epoch 1", "epoch ä"]}
    path.write_bytes(b"half")
    store.append_progress(GROUP, "")
    assert store.progress() == {GROUP: [""]}
    with pytest.raises(ValueError, match="line break"):
        store.append_progress(GROUP, "a\nb")
    store.remove_progress(GROUP)
    store.remove_progress(GROUP)
    assert store.progress() == {}


def test_timings(tmp_path, monkeypatch):
    """Lines of several processes are whole; half a line is left out, and of a long file all but its end."""
    store = Store(tmp_path / "runs")
    assert store.timings() == []
    writers = [start(TIMES, store.root, str(number)) for number in range(4)]
    for writer in writers:
        assert writer.wait() == 0
    lines = store.timings()
    assert sorted(lines) == sorted(f"{number} {count} {'x' * 400}" for number in range(4) for count in range(100))
    path = store.root / "timings.jsonl"
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half of what another process ")
        writer = start(TIMES, store.root, "4")
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(1)
        file.write(b"writes\n")
    assert writer.wait() == 0
    lines = store.timings()
    assert lines[400] == "half of what another process writes" and len(lines) == 501
    with path.open("ab") as file:
        file.write(b"half a line of a process that was killed")
    assert store.timings() == lines
    store.append_timing("next")
    assert store.timings() == [*lines, "next"]
    with pytest.raises(ValueError, match="line break"):
        store.append_timing("a\nb")
    monkeypatch.setattr("lthlab.store._LONGEST_TIMINGS", 1000)
    assert store.timings() == [*lines, "next"][-3:]
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="timings.jsonl"):
        store.timings()
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="timings.jsonl"):
        store.append_timing("x")
    assert not (tmp_path / "elsewhere").exists()


def test_sweep_takes_only_what_nobody_has_a_claim_to(store):
    work = store.root / ".work"
    store.write_checkpoint(OTHER, b"", [], 0)
    for name in (f"{KEY}.{'0' * 16}", f"{OTHER}.{'0' * 16}", "trash.1", "study.1"):
        (work / name).mkdir()
    (store.root / ".claims").mkdir()
    (store.root / ".claims" / f"{OTHER}.lock").write_bytes(b"")
    with store.claim(KEY):
        (work / f"{KEY}.{'1' * 16}").mkdir()
        store.sweep()
        live = [
            f".claims/{KEY}.lock",
            f".work/{KEY}.{'1' * 16}",
            f".work/{GROUP}.checkpoint",
            f".work/{GROUP}.progress",
        ]
        assert sorted(leftovers(store)) == sorted(live)
    store.sweep(keep=[GROUP])
    assert leftovers(store) == [f".work/{GROUP}.checkpoint", f".work/{GROUP}.progress"]
    with store.claim(GROUP):
        store.sweep()
        assert store.checkpoints() == {GROUP: MEMBERS}
    store.sweep()
    assert leftovers(store) == []
    Store(store.root.parent / "absent").sweep()
    assert not (store.root.parent / "absent").exists()


def test_a_sweep_in_the_middle_of_a_commit(store):
    """What a rival without a claim loses to a sweep is staged again; half of it is never committed."""

    class Swept(Files):
        sweeps = 0

        def sync_dir(self, path):
            self.sweep(path)
            super().sync_dir(path)

        def replace(self, source, target):
            self.sweep(source)
            super().replace(source, target)

        def sweep(self, path):
            if path.parent.name == ".work" and self.sweeps < 2:
                self.sweeps += 1
                Store(store.root).sweep()

    for act in (
        lambda s: s.commit(OTHER, 0, FIRST, {}),
        lambda s: s.write_study("demo", {"rows": [2]}),
        lambda s: s.write_checkpoint(OTHER, b"x", [], 0),
    ):
        files = Swept()
        act(Store(store.root, files))
        assert files.sweeps == 2
    assert {n: store.read(OTHER, n) for n in store.names(OTHER)} == FIRST
    assert store.study("demo") == {"rows": [2]} and store.read_checkpoint(OTHER) == b"x"
    files.sweeps = -100
    with pytest.raises(StoreError):
        Store(store.root, files).write_study("demo", {"rows": [3]})
    assert store.study("demo") == {"rows": [2]}


# Processes


COMMIT = """
import sys
from lthlab.store import Store
root, me, claims = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
store = Store(root)
keys = sys.argv[4:]
print("ready", flush=True)
sys.stdin.readline()
won = []
for key in keys if int(me) % 2 else keys[::-1]:
    claim = store.claim(key) if claims else None
    for part in range(2):
        if store.commit(key, part, {f"{n}.bin": me.encode() * 5000 for n in range(3)}, {"by": me}):
            won.append(f"{key}/{part}")
    if claim:
        claim.release()
print(*won)
"""
HOLD = """
import sys, time
from lthlab.store import Files, Store
class Slow(Files):
    def sync_dir(self, path):
        print("staged", flush=True)
        time.sleep(600)
store = Store(sys.argv[1], Slow())
claim = store.claim(sys.argv[2])
store.commit(sys.argv[2], 0, {"a": b"half"}, {})
"""

TIMES = """
import sys
from lthlab.store import Store
store = Store(sys.argv[1])
for count in range(100):
    store.append_timing(f"{sys.argv[2]} {count} {'x' * 400}")
"""

OVERLAP = """
import os, sys, time
from lthlab.store import Store
store, inside = Store(sys.argv[1]), sys.argv[1] + "/inside"
print("ready", flush=True)
sys.stdin.readline()
claims, end = 0, time.monotonic() + 1
while time.monotonic() < end:
    if claim := store.claim(sys.argv[2]):
        claims += 1
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        os.unlink(inside)
        claim.release()
print(claims)
"""


def start(script, *args):
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


@pytest.mark.parametrize("claims", [False, True])
def test_first_commit_wins(claims, tmp_path):
    """4 processes commit the same 20 keys: each part is won once, and readers see whole parts only.

    With claims, sweeps go on all the time.
    """
    store = Store(tmp_path / "runs")
    keys = [f"{number:032x}" for number in range(20)]
    writers = [start(COMMIT, store.root, me, claims, *keys) for me in range(4)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    seen = {}
    while any(writer.poll() is None for writer in writers):
        for key in keys:
            for part in store.parts(key):
                by = part.record["by"]
                assert all(store.read(key, name, part.number) == by.encode() * 5000 for name in part.files)
                assert seen.setdefault((key, part.number), by) == by
        if claims:
            store.sweep()
    outputs = [writer.communicate()[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    won = {(name.split("/")[0], int(name[-1])): str(me) for me, names in enumerate(outputs) for name in names}
    assert sum(map(len, outputs)) == len(won) == 40
    for key in keys:
        assert [part.record["by"] for part in store.parts(key)] == [won[key, 0], won[key, 1]]
        assert [str(found) for found in store.verify(key)] == [f"{store.root / key / 'description.json'}: is missing"]
    assert all(won[place] == by for place, by in seen.items())
    store.sweep()
    assert leftovers(store) == []


def test_claims(store):
    rival = Store(store.root)
    assert not store.claimed(KEY)
    claim = store.claim(KEY)
    assert claim and claim.key == KEY
    assert rival.claim(KEY) is None and store.claim(KEY) is None
    assert rival.claimed(KEY) and store.claimed(KEY) and not rival.claimed(OTHER)
    assert store.claimed(KEY)
    claim.release()
    with rival.claim(KEY):
        claim.release()
        assert store.claimed(KEY)
    assert not store.claimed(KEY)
    assert os.listdir(store.root / ".claims") == []
    with pytest.raises(RuntimeError, match="mine"), store.claim(KEY):
        raise RuntimeError("mine")
    assert not store.claimed(KEY)
    path = store.root / ".claims" / f"{KEY}.lock"
    path.touch()
    os.utime(path, (0, 0))
    with store.claim(KEY) as claim:
        assert 0 <= rival.claim_age(KEY) < 5, "a claim begins with a sign of life"
        os.utime(path, (time.time() - 100, time.time() - 100))
        assert rival.claim(KEY) is None and 99 < rival.claim_age(KEY) < 110, "who asks in vain gives no sign"
        claim.touch()
        assert 0 <= rival.claim_age(KEY) < 5
        path.unlink()
        claim.touch()
        assert not path.exists() and rival.claim_age(KEY) is None
    claim.touch()
    assert not path.exists() and rival.claim_age(KEY) is None
    with (store.root / ".claims" / f"{KEY}.lock").open("w") as left:
        fcntl.flock(left, fcntl.LOCK_SH)
        assert not store.claimed(KEY), "others who only ask are no owners"


def test_a_claim_has_one_owner(tmp_path):
    """4 processes claim and release one value for a second: never two at once, though the lock file goes."""
    store = Store(tmp_path)
    rivals = [start(OVERLAP, tmp_path, KEY) for _ in range(4)]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    outputs = [rival.communicate()[0] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0] * 4
    assert sum(map(int, outputs)) > 20
    assert leftovers(store) == []


def test_the_claim_of_a_killed_owner_is_taken_over(store):
    """While it lives nothing of it is touched; once it is killed, all it had is free at once."""
    holder = start(HOLD, store.root, OTHER)
    assert holder.stdout.readline() == "staged\n"
    store.sweep(keep=[GROUP])
    staged = [name for name in leftovers(store) if name.startswith(f".work/{OTHER}.")]
    assert len(staged) == 3 and store.claimed(OTHER) and store.claim(OTHER) is None
    assert store.commit(OTHER, 0, FIRST, {}), "a claim never stands in the way of a commit"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not store.claimed(OTHER)
    with store.claim(OTHER):
        assert not [name for name in leftovers(store) if name.startswith(f".work/{OTHER}.")]
        assert store.commit(OTHER, 1, SECOND, {})
    assert {n: store.read(OTHER, n, 0) for n in FIRST} == FIRST
    assert leftovers(store) == [f".work/{GROUP}.checkpoint", f".work/{GROUP}.progress"]
