"""Results of a study in a few small files, which a store takes back.

`study.json` names the study, and has sizes and checksums of the other files. `results.tar.xz` holds its table, and what
the store has of its values and of all that they are made from: descriptions, records, metrics, masks, tables of
measures, provenance. Of states it has those alone that something is still to be made from; initial states are drawn
again. `checkpoints.tar` has the groups in training, if there are any. Equal results give equal bytes. Nothing in the
files is ever unpickled, or unpacked by its own name.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lthlab import derive, forms, spec, tickets
from lthlab.catalog import replacing
from lthlab.disk import KEY, NUMBER, digest
from lthlab.errors import InputError, nearest
from lthlab.nodes import canonical, key_of
from lthlab.runs import Outlook
from lthlab.store import Part, Store, tensor_bytes
from lthlab.values import At, Fresh, Graft, Train, Value

FORMAT = "lthlab results 1"
STUDY, RESULTS, CHECKPOINTS = "study.json", "results.tar.xz", "checkpoints.tar"
_TABLE, _RECORD, _HEADER, _PAYLOAD = "table.json", "record.json", "header.json", "payload"
_PATH = re.compile(rf"({KEY})/(?:({NUMBER})/)?([A-Za-z0-9][A-Za-z0-9_.-]*)")
_CARRIED = ("carry.safetensors", "state.safetensors")
_STATE = ".safetensors"


@dataclass(frozen=True)
class Carried:
    """What was exported or imported.

    Attributes
    ----------
    study : str
        Name of the study.
    values, parts : int
        Values that have results, and parts of them; on import, those that were not in the store yet.
    states : int
        States of trainings among them that are kept for what is still to be made.
    checkpoints : int
        Groups in training.
    bytes : int
        Size of all files.
    """

    study: str
    values: int
    parts: int
    states: int
    checkpoints: int
    bytes: int


# --- from a store ---------------------------------------------------------------------------------------------


def export(study: str, store: Store, folder: Path) -> Carried:
    """Write the results of a study, finished or not, in place of those that the folder had of it.

    Parameters
    ----------
    study : str
        Its name, as in the store.
    store : Store
        Where results are.
    folder : Path
        Where to write; made if it is missing.

    Returns
    -------
    Carried

    Raises
    ------
    InputError
        If the store has no such study, or the folder has results of another one.
    Damaged
        If something in the store is.
    """
    if study not in store.studies():
        raise InputError(f"study '{study}' is not in {store.root}; {nearest(study, store.studies())}")
    if (folder / STUDY).exists() and (other := _contents(folder)["study"]) != study:
        raise InputError(f"{folder} has the results of study '{other}'; allowed: another folder")
    table = store.study(study)
    labelled = tickets.expand(spec.resolved(table["document"], table["sets"]))
    look = Outlook([item.value for item in labelled], store).now()
    files = {_TABLE: json.dumps(table).encode()}
    values = parts = states = 0
    for value in look.values:
        files[f"{value.key}/description.json"] = canonical(value.form()).encode()
        found = store.parts(value.key)
        values, parts = values + bool(found), parts + len(found)
        for part in found:
            kept, drawn = _kept(value, part, look, store)
            entries = {name: part.files[name] for name in (*kept, *drawn)}
            record = {"record": part.record, "files": dict(sorted(entries.items()))}
            files[f"{value.key}/{part.number}/{_RECORD}"] = json.dumps(record).encode()
            for name in kept:
                files[f"{value.key}/{part.number}/{name}"] = store.read(value.key, name, part.number)
            states += sum(isinstance(value, Train) and name.endswith(_STATE) for name in kept)
    trains = {value.key for value in look.needs}
    training: dict[str, bytes] = {}
    groups = {name: found for name, found in store.checkpoints().items() if trains.issuperset(found.members)}
    for group, checkpoint in sorted(groups.items()):
        header = {"members": checkpoint.members, "iteration": checkpoint.iteration}
        training[f"{group}/{_HEADER}"] = json.dumps(header).encode()
        training[f"{group}/{_PAYLOAD}"] = store.read_checkpoint(group)
    packed = {RESULTS: _packed(files, "w:xz")} | ({CHECKPOINTS: _packed(training, "w")} if training else {})
    entries = {name: {"size": len(content), "blake2b": digest(content)} for name, content in packed.items()}
    whole = {"format": FORMAT, "study": study, "title": table["title"], "files": entries}
    packed[STUDY] = (json.dumps(whole, indent=1) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINTS).unlink(missing_ok=True)
    for name, content in packed.items():  # the table with the checksums comes last
        with replacing(folder / name) as aside:
            aside.write_bytes(content)
    return Carried(study, values, parts, states, len(groups), sum(map(len, packed.values())))


def _kept(value: Value, part: Part, look: Outlook, store: Store) -> tuple[list[str], list[str]]:
    """Choose the files of a part that are exported, and those that can be drawn again."""
    if not isinstance(value, Train):
        return list(part.files), []
    wanted = {f"{step}{end}" for step in look.wanted(value).keep for end in (_STATE, f"{derive.MASK}{_STATE}")}
    wanted |= {*_CARRIED} if look.missing(value) else set()
    drawn = [name for name in part.files if name == _first(value) and _draws(value, part.files[name], store)]
    kept = [name for name in part.files if name not in drawn and (name in wanted or not name.endswith(_STATE))]
    return kept, drawn


def _first(train: Train) -> str:
    """Name of the file that has the state which a training begins with."""
    return f"{train.step_text(train.start)}{_STATE}"


def _draws(train: Train, entry: Mapping[str, Any], store: Store) -> bool:
    """Whether the state that a training begins with, as it is stored, follows from random numbers and masks alone."""
    init: Any = train.init
    while not isinstance(init, Fresh):
        at = init.body if isinstance(init, Graft) else init
        if not isinstance(at, At) or at.run.iteration(at.step) != at.run.start:
            return False
        init = at.run.init
    with suppress(LookupError):
        return digest(_begin(train, store)) == entry["blake2b"]
    return False


def _begin(train: Train, store: Store) -> bytes:
    """Make the state that a training begins with, as it is stored."""
    state, mask = derive.initial(train, store), derive.mask(train.mask, store) or {}
    found = {n: tensor.masked_fill(~mask[n], 0) if n in mask else tensor for n, tensor in state.items()}
    return tensor_bytes({name: tensor.contiguous().numpy() for name, tensor in found.items()})


def _packed(files: Mapping[str, bytes], mode: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


# --- into a store ---------------------------------------------------------------------------------------------


def take(folder: Path, store: Store) -> Carried:
    """Put exported results into a store, so that every report reads them, and a later run continues them.

    What the store has already stays as it is, the study as it was run there last too. Nothing is written before all is
    checked.

    Parameters
    ----------
    folder : Path
        As `export` wrote it.
    store : Store
        Where to put them.

    Returns
    -------
    Carried

    Raises
    ------
    InputError
        If the files are not what was exported, or the store has other results of the same values, or a study of the
        same name that has none of these values.
    """
    whole = _contents(folder)
    study, size = whole["study"], (folder / STUDY).stat().st_size
    packed = {}
    for name, entry in whole["files"].items():
        if name not in (RESULTS, CHECKPOINTS):
            raise InputError(f"{folder / STUDY}: file '{name}' is not known; {nearest(name, (RESULTS, CHECKPOINTS))}")
        if name == CHECKPOINTS and not (folder / name).exists():
            continue  # they need not be carried along: what they hold is trained again
        packed[name] = _read(folder / name, entry)
        size += entry["size"]
    archive = _archive(folder / RESULTS, packed[RESULTS])
    known = store.study(study) if study in store.studies() else archive.table
    if not _keys(known) & _keys(archive.table):
        other = f"study '{study}' in {store.root} has no value of that in {folder}"
        raise InputError(f"{other}; allowed: another store")
    new = {key: _new(key, records, store) for key, records in archive.records.items()}
    store.check_writable()
    for text in archive.texts.values():
        store.describe(text.decode())
    added = states = 0
    for key, numbers in new.items():
        for number in numbers:
            entries, record = (archive.records[key][number][name] for name in ("files", "record"))
            files = archive.parts[key][number]
            states += sum(record["kind"] == "train" and name.endswith(_STATE) for name in files)
            if record["kind"] == "train" and entries.keys() - files.keys():
                files |= _drawn(_value(key, archive.texts), entries, store)
            store.commit(key, number, files, record)
            added += 1
    groups = _checkpoints(folder / CHECKPOINTS, packed[CHECKPOINTS]) if CHECKPOINTS in packed else {}
    there = store.checkpoints()
    for group, (header, payload) in groups.items():
        if group not in there or there[group].iteration < header["iteration"]:
            store.write_checkpoint(group, payload, header["members"], header["iteration"])
    store.write_study(study, known)
    return Carried(study, sum(map(bool, new.values())), added, states, len(groups), size)


def _keys(table: Mapping[str, Any]) -> set[str]:
    """Keys of the values of a study."""
    return {role["key"] for role in table["roles"]}


@dataclass(frozen=True)
class _Archive:
    """What an archive of results holds: the study's table; by key the description and, by number, records and files."""

    table: dict[str, Any]
    texts: dict[str, bytes]
    records: dict[str, dict[int, dict[str, Any]]]
    parts: dict[str, dict[int, dict[str, bytes]]]


def _archive(path: Path, content: bytes) -> _Archive:
    """Read an archive of results and check that it is whole."""
    found = _Archive({}, {}, {}, {})
    for key, number, name, file in _unpacked(path, content):
        if key is None:
            found.table.update(json.loads(file))
        elif number is None:
            found.texts[key] = file
        elif name == _RECORD:
            found.records.setdefault(key, {})[number] = json.loads(file)
            found.parts.setdefault(key, {})[number] = {}
        else:
            found.parts[key][number][name] = file
            if digest(file) != found.records[key][number]["files"][name]["blake2b"]:
                raise InputError(f"{path}: {key}/{number}/{name} does not match its checksum")
    for key, text in found.texts.items():
        if key_of(text.decode()) != key:
            raise InputError(f"{path}: the description of {key} does not match it")
    if not found.table:
        raise InputError(f"{path}: member '{_TABLE}' is missing")
    return found


def _contents(folder: Path) -> dict[str, Any]:
    path = folder / STUDY
    try:
        whole = json.loads(path.read_bytes())
        if not isinstance(whole, dict) or not {"format", "study", "files"} <= whole.keys():
            raise ValueError("it has not what an export has")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; allowed: a folder that `lthlab results export` wrote") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if whole["format"] != FORMAT:
        raise InputError(f"{path}: format {whole['format']!r} is not known; this version reads '{FORMAT}'")
    return whole


def _read(path: Path, entry: Mapping[str, Any]) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    content = path.read_bytes()
    if len(content) != entry["size"] or digest(content) != entry["blake2b"]:
        raise InputError(f"{path} is not what was exported: its checksum does not match")
    return content


def _unpacked(path: Path, content: bytes) -> Iterator[tuple[str | None, int | None, str, bytes]]:
    """Read the members of an archive: key, part, name, content; of the table of the study, without key."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive:
            if entry.name == _TABLE and (file := archive.extractfile(entry)) is not None:
                yield None, None, _TABLE, file.read()
                continue
            match, file = _PATH.fullmatch(entry.name), archive.extractfile(entry) if entry.isfile() else None
            if match is None or file is None:
                raise InputError(f"{path}: member '{entry.name}' is not known; allowed: files of results by key")
            yield match[1], None if match[2] is None else int(match[2]), match[3], file.read()


def _checkpoints(path: Path, content: bytes) -> dict[str, tuple[dict[str, Any], bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for group, _, name, part in _unpacked(path, content):
        found.setdefault(str(group), {})[name] = part
    return {group: (json.loads(files[_HEADER]), files[_PAYLOAD]) for group, files in found.items()}


def _new(key: str, records: Mapping[int, Mapping[str, Any]], store: Store) -> list[int]:
    """List the parts that the store lacks; refuses where it has others."""
    there = {part.number: part for part in store.parts(key)}
    for number in records.keys() & there.keys():
        known = there[number].files
        for name, entry in records[number]["files"].items():
            if name != "provenance.json" and name in known and known[name]["blake2b"] != entry["blake2b"]:
                raise InputError(f"{store.root / key / str(number) / name} has other bits; allowed: another store")
    return sorted(records.keys() - there.keys())


def _drawn(value: Value | None, entries: Mapping[str, Any], store: Store) -> dict[str, bytes]:
    """Draw the state that a training begins with again, if that comes to the bits that it had."""
    if isinstance(value, Train) and _first(value) in entries:
        with suppress(LookupError):
            begin = _begin(value, store)
            if digest(begin) == entries[_first(value)]["blake2b"]:
                return {_first(value): begin}
    return {}


def _value(key: str, texts: Mapping[str, bytes]) -> Value | None:
    """Build the value of a key; None if this version knows it no more, so that nothing of it can be drawn again."""
    with suppress(ValueError):
        return forms.parse(json.loads(texts[key]), lambda other: json.loads(texts[other]))
    return None
