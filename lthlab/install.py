"""Data sets into the data home: downloaded, imported from a folder, or verified there."""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

import lthlab
from lthlab import catalog, readers
from lthlab.catalog import KNOWN, PARTS, Archive, Array, Arrays, replacing
from lthlab.datasets import DATA_NAME, DATASETS, HOME, DataFacts, data_home
from lthlab.errors import InputError, nearest
from lthlab.kernels import cores
from lthlab.readers import Listing

T = TypeVar("T")
CHUNK = 256
"""Images that a thread decodes at a time."""
IN_MEMORY = 4 * 10**9
"""Bytes of decoded images above which a set is streamed."""
CROP = 224
"""Height and width that streamed images of differing sizes are described with."""
CLOSE = 0.02 / 255
"""How near to the well-known moments those of an import are, in [0, 1]."""
TIMEOUT_S = 60.0


# --- importing ------------------------------------------------------------------------------------------------


def import_set(name: str, folder: Path, size: int | None = None) -> DataFacts:
    """Install a data set from a folder, in place of what is installed under its name.

    Parameters
    ----------
    name : str
        A known set, from its official files or from class folders, or a new name, from class folders.
    folder : Path
        Where it is. Images of a streamed set are read there in training and must stay.
    size : int, optional
        Height and width that images are brought to; of a set of one's own only.

    Returns
    -------
    DataFacts

    Raises
    ------
    InputError
        If the name cannot be used, or the files are not a whole, readable set; nothing is installed then.
    OSError
        If the data home cannot be written.
    """
    if not DATA_NAME.fullmatch(name):
        raise InputError(f"the name '{name}' is not allowed; allowed: small letters, digits and _, a letter first")
    if name in DATASETS and name not in KNOWN:
        raise InputError(f"'{name}' is registered already and needs no import; allowed: another name")
    if size is not None and name in KNOWN:
        raise InputError(f"--size {size}: '{name}' has images of a size of its own; allowed: for sets of another name")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found, source = readers.read(name, folder)
    if isinstance(found, Listing):
        return _install_listing(name, found, source, size)
    return _install_arrays(name, found, source, KNOWN[name].classes)


def _install_arrays(name: str, arrays: Arrays, source: str, classes: Sequence[str]) -> DataFacts:
    _check_counts(name, {part: arrays[f"{part}_y"] for part in PARTS}, source)
    ordered: Arrays = {}
    for part in PARTS:
        x, y = arrays.pop(f"{part}_x"), arrays.pop(f"{part}_y")
        if len(x) != len(y):
            raise InputError(f"{source} has {len(x):,} {part} images and {len(y):,} labels")
        ordered[f"{part}_x"], ordered[f"{part}_y"] = catalog.canonical(x, y)
    images = ordered["train_x"]
    facts = catalog.describe(name, ordered, images.shape[1:], len(classes), catalog.histogram(images))
    _check(name, facts, source)
    if (shape := ordered["test_x"].shape[1:]) != facts.shape:
        raise InputError(f"{source} has test images of shape {shape}; those of '{name}' have {facts.shape}")
    _write(name, facts, ordered, {"source": source, "classes": classes})
    return facts


def _check_counts(name: str, labels: Mapping[str, Array], source: str) -> None:
    """Refuse other numbers of images, in all and of each class, than a known set has."""
    for part, given in labels.items() if name in KNOWN else ():
        known = DATASETS[name]
        whole = getattr(known, part)
        if len(given) != whole:
            raise InputError(f"{source} has {len(given):,} {part} images of '{name}'; allowed: {whole:,}")
        even = (whole // known.classes,) * known.classes if whole % known.classes == 0 else ()
        for number, allowed in enumerate(getattr(known, f"{part}_counts") or even):
            if (count := int((given == number).sum())) != allowed:
                text = f"{source} has {count:,} {part} images of class {number} of '{name}'"
                raise InputError(f"{text}; allowed: {allowed:,}")


def _check(name: str, facts: DataFacts, source: str) -> None:
    """Refuse facts that are not those of a known set."""
    if name not in KNOWN:
        return
    known, mean, std = DATASETS[name], KNOWN[name].mean, KNOWN[name].std
    if facts.shape != known.shape:
        raise InputError(f"{source} has images of shape {facts.shape}; those of '{name}' have {known.shape}")
    found = [np.divide(each, 255) for each in (facts.mean, facts.std)]
    if mean and not (np.allclose(found[0], mean, 0, CLOSE) and np.allclose(found[1], std, 0, CLOSE)):
        text = f"the pixels of {source} have mean {found[0].round(4)} and deviation {found[1].round(4)}"
        raise InputError(f"{text}; those of '{name}' have {mean} and {std}")
    if known.fingerprint not in (None, facts.fingerprint):
        text = f"{source} has other images or labels than '{name}': its fingerprint is {facts.fingerprint}"
        raise InputError(f"{text}; allowed: {known.fingerprint}")


def _install_listing(name: str, found: Listing, source: str, size: int | None) -> DataFacts:
    _check_counts(name, {part: np.array(found.labels[part]) for part in PARTS}, source)
    paths = {part: [found.root / each for each in found.names[part]] for part in PARTS}
    if name in KNOWN and DATASETS[name].streamed:
        return _install_index(name, found, paths, DATASETS[name].shape, source)
    shape, alike = _shape(name, [path for part in PARTS for path in paths[part]], size)
    decoded = sum(map(len, paths.values())) * math.prod(shape)
    if size is not None and decoded > IN_MEMORY:
        raise InputError(f"--size {size}: the images have {decoded:,} bytes; allowed: {IN_MEMORY:,} at most")
    if not alike or decoded > IN_MEMORY:
        return _install_index(name, found, paths, shape, source)
    arrays: Arrays = {}
    for part in PARTS:
        x = np.empty((len(paths[part]), *shape), np.uint8)
        for place, image in enumerate(_mapped(lambda path: readers.decode(path, shape[0], size), paths[part], part)):
            x[place] = image
        arrays[f"{part}_x"], arrays[f"{part}_y"] = x, np.array(found.labels[part])
    return _install_arrays(name, arrays, source, found.classes)


def _shape(name: str, paths: Sequence[Path], size: int | None) -> tuple[tuple[int, int, int], bool]:
    """Find the shape of a set's images, and whether all have it; those of a known set must have its own."""
    first: dict[tuple[int, int], Path] = {}
    channels = 1
    for path, (depth, *sides) in zip(paths, _mapped(readers.header, paths, "headers"), strict=True):
        channels = max(channels, depth)
        first.setdefault((sides[0], sides[1]), path)
    if name in KNOWN:
        known = DATASETS[name].shape
        for (height, width), path in first.items():
            if (height, width) != known[1:]:
                allowed = f"{known[1]} × {known[2]}"
                raise InputError(f"{path} has {height} × {width} pixels; those of '{name}' have {allowed}")
        return known, True
    alike = len(first) == 1 or size is not None
    height, width = (size, size) if size else next(iter(first)) if alike else (CROP, CROP)
    return (channels, height, width), alike


def _install_index(
    name: str, found: Listing, paths: dict[str, list[Path]], shape: tuple[int, int, int], source: str
) -> DataFacts:
    """Install labels, names and digests of images that stay where they are."""
    counts = np.zeros((shape[0], 256), np.int64)
    tensors: Arrays = {}
    names: dict[str, list[str]] = {}

    def look(path: Path) -> tuple[bytes, Array]:
        image = readers.decode(path, shape[0])
        return catalog.digest(image), catalog.histogram(image[None])

    for part in PARTS:
        digests = []
        for digest, pixels in _mapped(look, paths[part], part):
            digests.append(digest)
            counts += pixels if part == "train" else 0
        order = catalog.places(found.labels[part], digests)
        names[part] = [found.names[part][place] for place in order]
        tensors[f"{part}_y"] = np.array([found.labels[part][place] for place in order], np.int64)
        tensors[f"{part}_digest"] = np.frombuffer(b"".join(digests[place] for place in order), np.uint8).reshape(-1, 32)
    facts = catalog.describe(name, tensors, shape, len(found.classes), counts)
    _check(name, facts, source)
    about = {"root": str(found.root), "source": source, "classes": found.classes}
    _write(name, facts, tensors, about, names)
    return facts


def _mapped(function: Callable[[Path], T], paths: Sequence[Path], what: str) -> Iterator[T]:
    """Call a function for each path, on all cores: Pillow and hashing let go of the interpreter."""
    pieces = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    pool = ThreadPoolExecutor(cores())
    try:
        with tqdm(total=len(paths), desc=what, unit=" images", disable=None) as bar:
            for found in pool.map(lambda piece: [function(path) for path in piece], pieces):
                yield from found
                bar.update(len(found))
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    name: str, facts: DataFacts, tensors: Arrays, about: dict[str, Any], names: dict[str, list[str]] | None = None
) -> None:
    """Write the files of a set, each whole; the one that says that it is installed comes last."""
    folder = data_home()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.safetensors") as aside:
        save_file(tensors, aside)
    if names is not None:
        with replacing(folder / f"{name}.names.json") as aside:
            aside.write_text(json.dumps(names))
    versions = {"lthlab": lthlab.__version__, "numpy": np.__version__}
    with contextlib.suppress(ImportError):
        import PIL

        versions["pillow"] = PIL.__version__
    about |= {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions}
    with replacing(folder / f"{name}.json") as aside:
        aside.write_text(json.dumps({"facts": dataclasses.asdict(facts), **about}, indent=1))


# --- fetching -------------------------------------------------------------------------------------------------


def fetch(name: str, tell: Callable[[str], None]) -> DataFacts:
    """Download a known data set and install it; what was downloaded is removed then.

    Parameters
    ----------
    name : str
        One of `lthlab.catalog.KNOWN`.
    tell : callable
        Told size, terms and checksums in words, before anything is downloaded.

    Raises
    ------
    InputError
        If it is not known or cannot be fetched, a folder is in the way, the disk lacks the space, a download fails or
        has another checksum, or as of `import_set`.
    """
    if name not in KNOWN:
        raise InputError(f"data set '{name}' cannot be fetched; {nearest(name, fetchable())}")
    known, home = KNOWN[name], data_home()
    if not known.archives:
        raise InputError(f"data set '{name}' cannot be fetched ({known.terms}): {catalog.remedy(name)}")
    downloads = home / "downloads" / name
    _target(name, downloads)
    size = sum(archive.size for archive in known.archives)
    tell(f"{name}: {known.about}; {size / 1e6:,.1f} MB; {known.terms}")
    for archive in known.archives:
        tell(f"  {archive.url}  {archive.size / 1e6:,.1f} MB  MD5 {archive.md5}")
    downloads.mkdir(parents=True, exist_ok=True)
    needed = _room(name, downloads)
    if (free := shutil.disk_usage(home).free) < needed:
        text = f"{home} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} are needed"
        raise InputError(f"{text}; make room, or name another folder in {HOME}")
    for archive in known.archives:
        download(archive, downloads / archive.name)
    facts = _import_downloads(name, downloads)
    shutil.rmtree(downloads)
    return facts


def _room(name: str, downloads: Path) -> int:
    """Count the bytes that fetching a set takes besides what is downloaded already."""
    known, facts = KNOWN[name], DATASETS[name]
    copies = 3 if known.unpacked else 1  # the archives; small files take whole blocks, so twice as much as in them
    size = copies * sum(archive.size for archive in known.archives)
    for archive in known.archives:
        there = (downloads / archive.name, downloads / f"{archive.name}.part")
        size -= min(archive.size, sum(path.stat().st_size for path in there if path.exists()))
    return size + (0 if facts.streamed else catalog.decoded_size(facts))


def fetchable() -> list[str]:
    """Name the data sets that `fetch` downloads."""
    return sorted(name for name, known in KNOWN.items() if known.archives)


def _import_downloads(name: str, downloads: Path) -> DataFacts:
    known = KNOWN[name]
    if not known.unpacked:
        return import_set(name, downloads)
    aside = downloads / "unpacking"
    for leftover in (aside, downloads / "unpacked"):
        shutil.rmtree(leftover, ignore_errors=True)
    for archive in known.archives:
        _unpack(downloads / archive.name, aside)
    folder = _target(name, downloads)
    aside.replace(folder)
    return import_set(name, folder)


def _target(name: str, downloads: Path) -> Path:
    """Say where archives are unpacked to; images that stay there never replace anything."""
    if not DATASETS[name].streamed:
        return downloads / "unpacked"
    folder = data_home() / name
    if os.path.lexists(folder):
        text = f"{folder} is there already and is not replaced; `lthlab data import {name} {folder}` installs what it"
        raise InputError(f"{text} holds; to fetch it anew, move it away")
    return folder


def _unpack(path: Path, folder: Path) -> None:
    try:
        shutil.unpack_archive(path, folder, **({"filter": "data"} if ".tar" in path.name else {}))  # type: ignore[arg-type]
    except (EOFError, ValueError, shutil.ReadError) as error:
        raise InputError(f"{path} cannot be unpacked ({error})") from error


def download(archive: Archive, path: Path) -> None:
    """Download a file, going on where an earlier download ended; it has its name only if its checksum is right.

    Raises
    ------
    InputError
        If the connection fails, or the checksum is another.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    try:
        _receive(archive, part)
    except urllib.error.HTTPError as error:
        raise InputError(f"{archive.url}: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        there = f"{part} has {part.stat().st_size:,} bytes of it so far" if part.exists() else "nothing was received"
        raise InputError(f"{archive.url}: {error}; {there}; the same command goes on from there") from error
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        part.unlink()
        text = f"{archive.url} has MD5 {found}; allowed: {archive.md5}"
        raise InputError(f"{text}; what was received is removed, the same command begins anew")
    part.replace(path)


def _receive(archive: Archive, part: Path) -> None:
    begin = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it is there
            return
        raise
    with answer:
        begin = begin if answer.status == http.client.PARTIAL_CONTENT else 0
        length = begin + int(answer.headers.get("Content-Length") or archive.size)
        mode = "ab" if begin else "wb"
        with part.open(mode) as file, tqdm(total=length, initial=begin, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        if "Content-Length" in answer.headers and part.stat().st_size < length:
            raise http.client.HTTPException(f"it ended after {part.stat().st_size:,} of {length:,} bytes")


# --- verifying ------------------------------------------------------------------------------------------------


def verify(name: str) -> list[str]:
    """Compare an installed set with its fingerprint, and the images of a streamed one with their digests.

    Returns
    -------
    list of str
        What is wrong with images of a streamed set, in words.

    Raises
    ------
    InputError
        As of `lthlab.catalog.installed`.
    """
    found = catalog.installed(name)

    def look(path: Path) -> str | bytes:
        try:
            return catalog.digest(readers.decode(path, found.facts.shape[0]))
        except InputError as error:
            return str(error)

    wrong = []
    for part, digests in found.digests.items():
        files = found.contents[f"{part}_x"]
        paths = [files.root / name for name in files.names]
        for path, allowed, digest in zip(paths, digests, _mapped(look, paths, "images"), strict=True):
            if digest != allowed.tobytes():
                wrong.append(digest if isinstance(digest, str) else f"{path} is another image than the installed one")
    return wrong
