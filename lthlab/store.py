"""Where results live: every part is committed whole, the first commit of it stands, every read is checked.

A store is a folder::

    <key>/description.json      canonical form of the value; the key is its hash
    <key>/0, <key>/1, …         parts of the result: a run may be continued, each continuation adds a part
    <key>/<part>/manifest.json  size and checksum of each file of the part, and a free record
    studies/<name>.json         table of the roles of a study
    timings.jsonl               how long past trainings took
    .work/                      what is not finished: staged parts, checkpoints, progress
    .claims/                    lock files of the values that somebody computes

Nothing in it is ever unpickled. What is wrong on disk is reported as `Damaged` and never used; computing it
again after `Store.discard` is the cure. What the system refuses is a `StoreError`.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
import safetensors.numpy
from filelock import BaseFileLock
from numpy.typing import NDArray
from safetensors import SafetensorError

from lthlab.disk import KEY, NUMBER, Damaged, Disk, digest, sealed
from lthlab.files import Files, StoreError, change, open_plain, refused

MANIFEST = "manifest.json"
DESCRIPTION = "description.json"

_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_NONCE = "[0-9a-f]{16}"
_LONGEST_HEADER = 1 << 24
_LONGEST_TIMINGS = 1 << 20

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """One committed part of a result.

    Attributes
    ----------
    number : int
        0 for the first part, 1 for its first continuation, …
    record : dict
        What the caller of `Store.commit` noted beside the files.
    files : dict of str to dict
        `size` in bytes and `blake2b` checksum of each file.
    path : pathlib.Path
        Folder of the part.
    """

    number: int
    record: dict[str, Any]
    files: dict[str, dict[str, Any]]
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the checkpoint of a group without reading it.

    Attributes
    ----------
    members : tuple of str
        Keys of the runs in the group, in their order.
    iteration : int
        Iteration that they have reached.
    """

    members: tuple[str, ...]
    iteration: int


class Claim:
    """The sole right to compute a value, held until released or until the process ends.

    It saves work only: a commit is correct without it.
    """

    def __init__(self, key: str, lock: BaseFileLock, path: Path, files: Files) -> None:
        self.key = key
        self._lock = lock
        self._path = path
        self._files = files

    def touch(self) -> None:
        """Give a sign of life: `Store.claim_age` counts from here."""
        if self._lock.is_locked:
            change(self._files.touch, self._path)

    def release(self) -> None:
        """Give the claim back; a second time does nothing."""
        if self._lock.is_locked:
            try:
                change(self._files.remove, self._path)
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Store(Disk):
    """Results of values, by key.

    Reading never writes, so a store on a read-only disk can be read. Every method that takes a key, a part or
    a name raises ValueError if it is malformed, before it touches the disk.

    Parameters
    ----------
    root : path
        Folder of the store; made when first written to.
    files : Files, optional
        The operations that change the disk.
    """

    def __init__(self, root: str | os.PathLike[str], files: Files | None = None) -> None:
        super().__init__(root, files)
        self._claims = self.root / ".claims"
        self._studies = self.root / "studies"

    def check_writable(self) -> None:
        """Raise StoreError, naming path, reason and free space, unless the store can be written to."""
        if not self.root.is_dir():
            change(self.files.mkdir, self.root)
            change(self.files.sync_dir, self.root.parent)
        for folder in (self._work, self._claims, self._studies):
            self._folder(folder)
        probe = self._work / "probe"
        self._replace(probe, bytes(4096), "probe")
        change(self.files.remove, probe)

    # Results

    def describe(self, text: str) -> str:
        """Store the canonical text of a description, if it is not there, and return its key.

        It does not wait for the disk: a description lost in a power failure is stored when next asked for.
        """
        data = text.encode()
        key = hashlib.sha256(data).hexdigest()[:32]
        path = self.root / key / DESCRIPTION
        with suppress(Damaged):
            if self._bytes(path) == data:
                return key
        self._replace(path, data, key, sync=False)
        return key

    def description(self, key: str) -> Any:
        """Read a description; raises Damaged if there is none or the key is not its hash."""
        path = self.root / _key(key) / DESCRIPTION
        data = self._bytes(path)
        if hashlib.sha256(data).hexdigest()[:32] != key:
            raise self._damaged(path, "does not match its key")
        return self._json(data, path)

    def commit(self, key: str, part: int, files: Mapping[str, bytes], record: Mapping[str, Any]) -> bool:
        """Commit a part of a result, whole or not at all.

        Parameters
        ----------
        key : str
            Key of the value.
        part : int
            Number of the part; all before it must be committed.
        files : mapping of str to bytes
            Content of each file; `manifest.json` is reserved.
        record : mapping
            What is to be noted beside them; must be JSON, so without NaN and infinity.

        Returns
        -------
        bool
            True if this commit stands, False if another of the same part was first, which then stands.

        Raises
        ------
        ValueError
            If parts before this one are missing.
        StoreError
            If the system refuses; then nothing of it is visible.
        """
        folder = self.root / _key(key)
        if MANIFEST in map(_name, files):
            raise ValueError(f"{MANIFEST!r} is written by the store and cannot be a file of a part")
        entries = {n: {"size": len(files[n]), "blake2b": digest(files[n])} for n in sorted(files)}
        manifest = sealed({"key": key, "part": part, "record": dict(record), "files": entries})
        target = folder / str(part)

        def publish(staged: Path) -> None:
            change(self.files.mkdir, staged)
            for name, data in {**files, MANIFEST: manifest}.items():
                change(self.files.write, staged / name, data)
            change(self.files.sync_dir, staged)
            self._folder(folder)
            change(self.files.sync_dir, self.root)
            change(self.files.rename, staged, target)

        numbers = self._numbers(key)
        if part not in numbers and [*numbers, part] != list(range(len(numbers) + 1)):
            raise ValueError(f"{folder}: part {part} cannot be committed, the next one is {len(numbers)}")
        stands = part not in numbers
        if stands:
            try:
                self._aside(key, publish)
            except StoreError:
                if not os.path.lexists(target):
                    raise
                stands = False
        change(self.files.sync_dir, folder)
        return stands

    def has(self, key: str) -> bool:
        """Whether a part of the result is committed; it may be damaged."""
        return bool(self._numbers(_key(key)))

    def keys(self) -> list[str]:
        """Keys of which a part is committed, sorted."""
        return [key for key in self._matches(self.root, f"({KEY})") if self._numbers(key)]

    def parts(self, key: str) -> list[Part]:
        """Parts of a result in order, [] if none is committed; raises Damaged if a manifest is wrong or missing."""
        return [self._part(key, number) for number in range(len(self._numbers(_key(key))))]

    def names(self, key: str) -> list[str]:
        """Names of the files of all parts, sorted; raises Damaged if a manifest is wrong or missing."""
        return sorted({name for part in self.parts(key) for name in part.files})

    def read(self, key: str, name: str, part: int | None = None) -> bytes:
        """Read a file of a result, checking its size and checksum.

        Parameters
        ----------
        key : str
            Key of the value.
        name : str
            Name of the file.
        part : int, optional
            Part to read it from; the last that has a file of this name by default.

        Raises
        ------
        LookupError
            If there is no such file.
        Damaged
            If the file or a manifest is not what was written.
        """
        return self._find(key, name, part)[1]

    def read_json(self, key: str, name: str, part: int | None = None) -> Any:
        """Read a file of a result as JSON; raises what `read` raises."""
        found, data = self._find(key, name, part)
        return self._json(data, found.path / name)

    def read_tensors(self, key: str, name: str, part: int | None = None) -> dict[str, NDArray[np.generic]]:
        """Read a file of a result as safetensors; raises what `read` raises."""
        found, data = self._find(key, name, part)
        try:
            return safetensors.numpy.load(data)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(found.path / name, f"is not safetensors: {error}") from error

    def discard(self, key: str, part: int = 0) -> None:
        """Remove a part and the parts after it, the last one first.

        Others may meanwhile have put a good part in place of a damaged one: claim the value and read again,
        then discard.
        """
        folder = self.root / _key(key)
        if folder.is_symlink():
            change(self.files.remove, folder)
            return
        for number in reversed(self._numbers(key)):
            if number >= part:
                self._retire(folder / str(number))
        if folder.is_dir():
            change(self.files.sync_dir, folder)

    def verify(self, key: str) -> list[Damaged]:
        """Check all of a result; lists what is missing, what is changed and what should not be there."""
        folder = self.root / _key(key)
        found: list[Damaged] = []

        def attempt(check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
            try:
                return check(*args, **kwargs)
            except Damaged as damaged:
                found.append(damaged)
                return None

        attempt(self.description, key)
        numbers = self._numbers(key)
        expected = {folder: {DESCRIPTION, *map(str, numbers)}}
        for number in sorted({*numbers, *range(len(numbers))}):
            if part := attempt(self._part, key, number):
                expected[part.path] = {MANIFEST, *part.files}
                for name in part.files:
                    attempt(self._checked, part, name)
        for place, names in expected.items():
            extra = [place / name for name in self._entries(place) if name not in names]
            found += [self._damaged(path, "is no part of a result") for path in extra]
        return found

    # Studies

    def write_study(self, name: str, table: Any) -> None:
        """Store the table of a study (JSON), in place of the one it had."""
        data = sealed({"study": _name(name), "table": table})
        self._replace(self._studies / f"{name}.json", data, "study")

    def study(self, name: str) -> Any:
        """Read the table of a study; raises LookupError if there is none, Damaged if it was changed."""
        path = self._studies / f"{_name(name)}.json"
        if not os.path.lexists(path):
            raise LookupError(f"{self._studies}: no study {name!r}; {_known(name, self.studies())}")
        body = self._unsealed(path, self._bytes(path))
        if body.get("study") != name:
            raise self._damaged(path, f"is the table of study {body.get('study')!r}")
        return body.get("table")

    def studies(self) -> list[str]:
        """Names of the studies that have a table, sorted."""
        return sorted(self._matches(self._studies, rf"({_NAME})\.json"))

    # Timings

    def append_timing(self, line: str) -> None:
        """Append a line on how long something took; it does not wait for the disk."""
        self._append(self.root / "timings.jsonl", line)

    def timings(self) -> list[str]:
        """Lines on how long past trainings took, the latest last; of a long file only the end."""
        path = self.root / "timings.jsonl"
        try:
            with open(path, "rb", opener=open_plain) as file:
                start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_TIMINGS)
                file.seek(start)
                lines = file.read().decode(errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refused(error, path) from error
        return lines[1:] if start else lines

    # Claims

    def claim(self, key: str) -> Claim | None:
        """Claim a value or a group without waiting; None if somebody else, or this process, has the claim.

        What an owner that died had staged is removed.
        """
        path = self._claims / f"{_key(key)}.lock"
        self._folder(self._claims)
        lock = change(self.files.lock, path)
        if lock is None:
            return None
        try:
            change(self.files.touch, path)
            for name in self._matches(self._work, rf"({key}\.{_NONCE})"):
                self._retire(self._work / name)
        except BaseException:
            lock.release()
            raise
        return Claim(key, lock, path, self.files)

    def claimed(self, key: str) -> bool:
        """Whether somebody, or this process, has the claim; only reads and keeps nobody waiting."""
        try:
            with open(self._claims / f"{_key(key)}.lock", "rb", opener=open_plain) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def claim_age(self, key: str) -> float | None:
        """Seconds since the owner of a claim last gave a sign of life; None if nobody has the claim."""
        if not self.claimed(key):
            return None
        with suppress(FileNotFoundError):
            return max(0.0, time.time() - (self._claims / f"{key}.lock").stat().st_mtime)
        return None

    # Work that is not finished

    def write_checkpoint(self, group: str, payload: bytes, members: Sequence[str], iteration: int) -> None:
        """Store the checkpoint of a group of runs, in place of the one it had.

        Parameters
        ----------
        group : str
            Identifier of the group, of the form of a key.
        payload : bytes
            State of the group.
        members : sequence of str
            Keys of the runs in the group, in their order.
        iteration : int
            Iteration that they have reached.
        """
        body = {"group": _key(group), "members": [_key(member) for member in members], "iteration": iteration}
        header = sealed({**body, "size": len(payload), "blake2b": digest(payload)})
        self._replace(self._work / f"{group}.checkpoint", b"\n".join((header, payload)), group)

    def read_checkpoint(self, group: str) -> bytes:
        """Read the checkpoint of a group; raises Damaged if there is none or it was changed."""
        entry, payload = self._checkpoint(_key(group))
        self._compare(self._work / f"{group}.checkpoint", payload, entry)
        return payload

    def checkpoints(self) -> dict[str, Checkpoint]:
        """What is known of each group that has a checkpoint.

        One that is damaged or of another format is removed with a warning in the log.
        """
        found = {}
        for group in self._matches(self._work, rf"({KEY})\.checkpoint"):
            try:
                header = self._checkpoint(group, _LONGEST_HEADER)[0]
                found[group] = Checkpoint(tuple(header["members"]), header["iteration"])
            except (Damaged, StoreError) as error:
                path = self._work / f"{group}.checkpoint"
                if isinstance(error, StoreError) and error.errno != errno.ENOTSUP:
                    raise
                if os.path.lexists(path):
                    _log.warning("%s; the checkpoint is removed, its runs start again", error)
                    self._retire(path)
        return found

    def remove_checkpoint(self, group: str) -> None:
        """Remove the checkpoint of a group, if there is one."""
        change(self.files.remove, self._work / f"{_key(group)}.checkpoint")

    def append_progress(self, group: str, line: str) -> None:
        """Append a line to the progress of a group; it does not wait for the disk."""
        self._append(self._work / f"{_key(group)}.progress", line)

    def progress(self) -> dict[str, list[str]]:
        """Lines of progress of each group; a last line that is not complete is left out."""
        found = {}
        for group in self._matches(self._work, rf"({KEY})\.progress"):
            with suppress(Damaged):
                text = self._bytes(self._work / f"{group}.progress").decode(errors="replace")
                found[group] = text.split("\n")[:-1]
        return found

    def remove_progress(self, group: str) -> None:
        """Remove the progress of a group, if there is any."""
        change(self.files.remove, self._work / f"{_key(group)}.progress")

    def sweep(self, keep: Collection[str] = ()) -> None:
        """Remove what owners that died left: lock files and everything in `.work` that nobody has a claim to.

        A checkpoint and progress belong to whoever has a claim to the group or to one of its members.

        Parameters
        ----------
        keep : collection of str
            Groups whose checkpoints and progress stay all the same.
        """
        stay = {f"{_key(group)}.{kind}" for group in keep for kind in ("checkpoint", "progress")}
        members = {group: checkpoint.members for group, checkpoint in self.checkpoints().items()}
        for group in self._matches(self._work, rf"({KEY})\.(?:checkpoint|progress)"):
            if any(map(self.claimed, (group, *members.get(group, ())))):
                stay |= {f"{group}.checkpoint", f"{group}.progress"}
        locks = self._matches(self._claims, rf"({KEY})\.lock")
        for key in sorted({*locks, *self._matches(self._work, rf"({KEY})\.{_NONCE}")}):
            if claim := self.claim(key):
                claim.release()
        stay.update(self._matches(self._work, rf"({KEY}\.{_NONCE})"))
        for name in self._entries(self._work):
            if name not in stay:
                self._retire(self._work / name)

    def _append(self, path: Path, line: str) -> None:
        if "\n" in line:
            raise ValueError(f"{path.name}: a line must not hold a line break: {line!r}")
        self._folder(path.parent)
        change(self.files.append, path, line.encode() + b"\n")

    # Reading

    def _numbers(self, key: str) -> list[int]:
        return sorted(map(int, self._matches(self.root / key, f"({NUMBER})")))

    def _part(self, key: str, number: int) -> Part:
        folder = self.root / key / str(number)
        path = folder / MANIFEST
        body = self._unsealed(path, self._bytes(path))
        if (body.get("key"), body.get("part")) != (key, number):
            raise self._damaged(path, f"is the manifest of part {body.get('part')!r} of {body.get('key')!r}")
        try:
            files = {_name(n): {"size": e["size"], "blake2b": e["blake2b"]} for n, e in body["files"].items()}
            return Part(number, dict(body["record"]), files, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(path, f"is not a manifest: {error!r}") from error

    def _find(self, key: str, name: str, number: int | None) -> tuple[Part, bytes]:
        _name(name)
        parts = [part for part in self.parts(key) if number in (None, part.number)]
        for part in reversed(parts):
            if name in part.files:
                return part, self._checked(part, name)
        where = self.root / key / ("" if number is None else str(number))
        names = sorted({name for part in parts for name in part.files})
        raise LookupError(f"{where}: no file {name!r}; {_known(name, names)}")

    def _checked(self, part: Part, name: str) -> bytes:
        data = self._bytes(part.path / name)
        self._compare(part.path / name, data, part.files[name])
        return data

    def _compare(self, path: Path, data: bytes, entry: Mapping[str, Any]) -> None:
        if len(data) != entry["size"]:
            raise self._damaged(path, f"has {len(data)} bytes, {entry['size']} were written")
        if digest(data) != entry["blake2b"]:
            raise self._damaged(path, "does not match its checksum")

    def _checkpoint(self, group: str, limit: int = -1) -> tuple[dict[str, Any], bytes]:
        path = self._work / f"{group}.checkpoint"
        header, _, payload = self._bytes(path, limit).partition(b"\n")
        body = self._unsealed(path, header)
        if body.get("group") != group or not {"members", "iteration", "size", "blake2b"} <= body.keys():
            raise self._damaged(path, f"is not the checkpoint of group {group}")
        return body, payload


def tensor_bytes(tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write arrays as safetensors; equal arrays and metadata give equal bytes.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Arrays of any shape, contiguous or not.
    metadata : mapping of str to str, optional
        Text for the header of the file.
    """
    data = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    if not metadata:
        return data
    # safetensors itself writes metadata in an order that changes from process to process.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _key(key: str) -> str:
    if not isinstance(key, str) or not re.fullmatch(KEY, key):
        raise ValueError(f"{key!r} is not a key: 32 characters out of 0-9 and a-f are")
    return key


def _name(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise ValueError(f"{name!r} is not a name: letters, digits and then also '_', '.', '-' are")
    return name


def _known(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    hint = f", the nearest is {near[0]!r}" if near else ""
    return f"there are {', '.join(known)}{hint}" if known else "there are none"
