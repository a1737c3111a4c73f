"""Data sets in the forms that they are distributed in, and class folders of images, read without unpickling."""

import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lthlab.catalog import KNOWN, PARTS, Array, Arrays, remedy
from lthlab.datasets import DATASETS
from lthlab.errors import InputError, nearest
from lthlab.images import array
from lthlab.images import decode as open_image

DEVKIT = "ILSVRC2012_devkit_t12"
SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """The images of a set that is a folder of them.

    Attributes
    ----------
    root : Path
        The folder.
    names : dict of str to list of str
        For train and test, paths of the images below it.
    labels : dict of str to list of int
        Their classes.
    classes : tuple of str
        Names of the classes.
    """

    root: Path
    names: dict[str, list[str]]
    labels: dict[str, list[int]]
    classes: tuple[str, ...]


def read(name: str, folder: Path) -> tuple[Arrays | Listing, str]:
    """Read a data set from a folder that has its official files, or class folders.

    Parameters
    ----------
    name : str
        A known set, or any other, which then has class folders `train/<class>` and `test/<class>` or `val/<class>`.
    folder : Path
        Where to look.

    Returns
    -------
    tuple
        Decoded arrays or a list of images, and what they were read from. Labels of arrays are in range.

    Raises
    ------
    InputError
        If there is neither, or a file is missing, cannot be read, or has labels that the set does not.
    """
    for files, reader in OFFICIAL.get(name, ()):
        for inside in (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())):
            if any((inside / file).exists() for file in files):
                return reader(name, inside), files[0]
    if any(_subfolders(folder / "train")):
        return class_folders(name, folder), "class folders"
    official = " or ".join(files[0] for files, _ in OFFICIAL.get(name, ()))
    text = f"{folder} has neither {official} nor" if official else f"{folder} does not have"
    also = f"; {remedy(name)}" if name in KNOWN else ""
    raise InputError(f"{text} class folders of images, train/<class>/ and test/<class>/ or val/<class>/{also}")


def _in_range(labels: Array, classes: int, path: Path) -> Array:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise InputError(f"{path} has the label {wrong[0]}; allowed: 0 to {classes - 1}")
    return labels.astype(np.int64)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read ({type(error).__name__}: {error})")


# --- images ---------------------------------------------------------------------------------------------------


def decode(path: Path, channels: int, size: int | None = None) -> Array:
    """Decode an image.

    Parameters
    ----------
    path : Path
        A file in any format that Pillow reads, of 8 bits a channel at most.
    channels : int
        1 for grey or 3 for red, green and blue; transparency is dropped.
    size : int, optional
        The largest square in the middle is resized to so many pixels (bilinear, antialiased); as it is by default.

    Returns
    -------
    array
        uint8 [channels, height, width].

    Raises
    ------
    InputError
        If it cannot be read; names the file.
    """
    from PIL import Image, ImageOps

    try:
        image = open_image(path, channels)
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(array(image, channels))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def header(path: Path) -> tuple[int, int, int]:
    """Read channels, 1 or 3, height and width of an image without decoding it; raises as `decode` does."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return 1 if image.mode in ("1", "L", "LA", "La") else 3, image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


# --- class folders --------------------------------------------------------------------------------------------


def class_folders(name: str, folder: Path) -> Listing:
    """List the images of `train/<class>/` and of `test/<class>/` or `val/<class>/`.

    Classes of a known set are numbered in its official order, whatever the folders' letter case and punctuation;
    those of any other by their sorted names.

    Raises
    ------
    InputError
        If a class is missing in a part, not known, or there twice.
    """
    held = next((folder / part for part in ("test", "val") if any(_subfolders(folder / part))), None)
    if held is None:
        also = f"; {remedy(name)}" if name in KNOWN else ""
        raise InputError(f"{folder} has neither test/<class>/ nor val/<class>/, the test images{also}")
    classes = _classes(name, folder / "train")
    train = _labelled(name, folder / "train", classes)
    return _listing(folder, classes, train=train, test=_labelled(name, held, classes))


def _listing(root: Path, classes: tuple[str, ...], **images: list[tuple[Path, int]]) -> Listing:
    names = {part: [path.relative_to(root).as_posix() for path, _ in images[part]] for part in PARTS}
    return Listing(root.resolve(), names, {part: [label for _, label in images[part]] for part in PARTS}, classes)


def _subfolders(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def _classes(name: str, folder: Path) -> tuple[str, ...]:
    if name in KNOWN and KNOWN[name].classes:
        return KNOWN[name].classes
    found = tuple(path.name for path in _subfolders(folder))
    most = DATASETS[name].classes if name in KNOWN else len(found)
    if len(found) != most or most < 2:
        allowed = str(most) if name in KNOWN else "2 and more"
        raise InputError(f"{folder} has {len(found)} class folders; allowed: {allowed}")
    return found


def _labelled(name: str, folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """List the images below each class folder with the number of the class."""
    plain = _plain if name in KNOWN else str
    numbers = {plain(text): number for number, text in enumerate(classes)}
    for alias, text in (KNOWN[name].aliases if name in KNOWN else {}).items():
        numbers[plain(alias)] = numbers[plain(text)]
    found: dict[int, Path] = {}
    for path in _subfolders(folder):
        number = numbers.get(plain(path.name))
        if number is None:
            raise InputError(f"{path} is no class of '{name}'; {nearest(path.name, classes)}")
        if number in found:
            raise InputError(f"{path} and {found[number].name} are both class '{classes[number]}'")
        found[number] = path
    images = {number: _images(path) for number, path in sorted(found.items())}
    empty = [text for number, text in enumerate(classes) if not images.get(number)]
    if empty:
        more = f" and {len(empty) - SHOWN} more" * (len(empty) > SHOWN)
        raise InputError(f"{folder} has no images of class {', '.join(empty[:SHOWN])}{more}")
    return [(path, number) for number, paths in images.items() for path in paths]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _images(folder: Path) -> list[Path]:
    """List the images of a class folder, or of its folder `images`, where Tiny-ImageNet has them."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    for inside in _subfolders(folder):
        if inside.name != "images":
            raise InputError(f"{inside} is a folder in a class folder; allowed: images there, or in a folder 'images'")
    found = (path for inside in (folder, folder / "images") for path in inside.glob("[!.]*"))
    return sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())


def _flat(folder: Path, wanted: Iterable[tuple[str, int]], source: Path) -> list[tuple[Path, int]]:
    """List images that a file names, with their labels; all must be there."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    images = [(folder / name, label) for name, label in wanted]
    missing = [path for path, _ in images if path.name not in there]
    if missing:
        raise InputError(f"{missing[0]} is missing, and {len(missing) - 1} more of the images that {source} names")
    return images


def _lines(path: Path, columns: int) -> list[list[str]]:
    """Read the columns of a text file, separated by white space."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, start=1):
        if len(row) < columns:
            raise InputError(f"{path}, line {number}: {' '.join(row)!r} has fewer than {columns} columns")
    return rows


def _number(text: str, most: int, path: Path, least: int = 0) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise InputError(f"{path} has the label {text!r}; allowed: {least} to {most}")
    return int(text)


# --- official forms -------------------------------------------------------------------------------------------


def _mnist(name: str, folder: Path) -> Arrays:
    from torchvision.datasets import mnist

    arrays: Arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (folder / f"{prefix}-{text}-ubyte" for text in ("images-idx3", "labels-idx1"))
        arrays[f"{part}_x"] = _idx(images, mnist.read_image_file)[:, None]
        arrays[f"{part}_y"] = _in_range(_idx(labels, mnist.read_label_file), 10, labels)
    return arrays


def _idx(path: Path, reader: Callable[[str], object]) -> Array:
    """Read an idx file, unpacked or as .gz; torchvision's readers take unpacked ones only."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        if path.exists():
            return np.asarray(reader(str(path)))
        with tempfile.NamedTemporaryFile() as plain, gzip.open(packed) as file:
            shutil.copyfileobj(file, plain)
            plain.flush()
            return np.asarray(reader(plain.name))
    except (OSError, EOFError, zlib.error, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _unreadable(path if path.exists() else packed, error) from error


def _svhn(name: str, folder: Path) -> Arrays:
    arrays: Arrays = {}
    for part in PARTS:
        path = folder / f"{part}_32x32.mat"
        found = _mat(path)
        if not {"X", "y"} <= found.keys() or found["X"].ndim != 4 or found["X"].dtype != np.uint8:
            raise InputError(f"{path} does not have images X, uint8 [32, 32, 3, N], and labels y")
        labels = found["y"].ravel().astype(np.int64)
        if not set(labels.tolist()) <= set(range(1, 11)):
            raise InputError(f"{path} has labels from {labels.min()} to {labels.max()}; allowed: 1 to 10")
        arrays[f"{part}_x"], arrays[f"{part}_y"] = found["X"].transpose(3, 2, 0, 1), labels % 10
    return arrays


def _mat(path: Path, **options: bool) -> Mapping[str, Array]:
    from scipy.io import loadmat

    try:
        found: Mapping[str, Array] = loadmat(path, **options)
        return found
    except Exception as error:  # its readers raise whatever a damaged file leads them to
        raise _unreadable(path, error) from error


def _cifar10(name: str, folder: Path) -> Arrays:
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar(folder, "cifar-10-binary.tar.gz", {"train": batches, "test": ["test_batch.bin"]}, 1, 10)


def _cifar100(name: str, folder: Path) -> Arrays:
    return _cifar(folder, "cifar-100-binary.tar.gz", {"train": ["train.bin"], "test": ["test.bin"]}, 2, 100)


def _cifar(folder: Path, archive: str, members: Mapping[str, list[str]], labels: int, classes: int) -> Arrays:
    """Read records of label bytes, the last of which counts, and 3072 bytes of pixels (Krizhevsky 2009)."""
    wanted = [member for names in members.values() for member in names]
    packed = folder / archive
    if packed.exists():
        found = _members(packed, wanted)
    else:
        packed = folder
        found = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
    arrays: Arrays = {}
    for part, names in members.items():
        pieces = []
        for name in names:
            if name not in found:
                raise InputError(f"{packed} lacks {name}; it has {', '.join(found) or 'none of the files'}")
            if len(found[name]) % (labels + 3072):
                size = f"{len(found[name]):,} bytes, no multiple of {labels + 3072:,}"
                raise InputError(f"{packed / name} has {size}: it is not whole")
            records = np.frombuffer(found[name], np.uint8).reshape(-1, labels + 3072)
            _in_range(records[:, labels - 1], classes, packed / name)
            pieces.append(records)
        records = np.concatenate(pieces)
        arrays[f"{part}_x"] = records[:, labels:].reshape(-1, 3, 32, 32)
        arrays[f"{part}_y"] = records[:, labels - 1].astype(np.int64)
    return arrays


def _members(path: Path, wanted: list[str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _unreadable(path, error) from error
    return found


def _tiny_imagenet(name: str, folder: Path) -> Listing:
    classes = _classes(name, folder / "train")
    source = folder / "val" / "val_annotations.txt"
    numbers = {text: number for number, text in enumerate(classes)}
    wanted = []
    for image, wnid, *_ in _lines(source, 2):
        if wnid not in numbers:
            raise InputError(f"{source} has the class '{wnid}' for {image}; {nearest(wnid, classes)}")
        wanted.append((image, numbers[wnid]))
    train = _labelled(name, folder / "train", classes)
    return _listing(folder, classes, train=train, test=_flat(folder / "val" / "images", wanted, source))


def _imagenet(name: str, folder: Path) -> Listing:
    """Read class folders for training, and validation images in one folder, whose classes the devkit has."""
    classes = _classes(name, folder / "train")
    devkit = folder / DEVKIT / "data"
    source = devkit / "ILSVRC2012_validation_ground_truth.txt"
    wnids = _wnids(devkit / "meta.mat")
    strange = sorted(set(wnids.values()) - set(classes))
    if strange:
        raise InputError(f"{devkit / 'meta.mat'} has the class '{strange[0]}', which {folder / 'train'} lacks")
    labels = [classes.index(wnids[_number(text, len(wnids), source, 1)]) for (text, *_) in _lines(source, 1)]
    wanted = [(f"ILSVRC2012_val_{number:08}.JPEG", label) for number, label in enumerate(labels, start=1)]
    train = _labelled(name, folder / "train", classes)
    return _listing(folder, classes, train=train, test=_flat(folder / "val", wanted, source))


def _wnids(path: Path) -> dict[int, str]:
    """Read which WordNet class each number of the devkit stands for; numbers of leaves are 1, 2, …."""
    found = _mat(path, squeeze_me=True)
    try:
        synsets: Any = found["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in leaves}
        if sorted(wnids) != list(range(1, len(wnids) + 1)):
            raise ValueError("the numbers of its classes are not 1, 2, …")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return wnids


def _places365(name: str, folder: Path) -> Listing:
    """Read the list files, which name an image and its class in a line."""
    images: dict[str, list[tuple[Path, int]]] = {}
    number = DATASETS[name].classes
    for part, text, place in (
        ("train", "places365_train_standard.txt", "data_256_standard"),
        ("test", "places365_val.txt", "val_256"),
    ):
        source = folder / text
        wanted = [(path.lstrip("/"), _number(label, number - 1, source)) for path, label, *_ in _lines(source, 2)]
        images[part] = _nested(folder / place, wanted, source)
    source = folder / "categories_places365.txt"
    names = {_number(label, number - 1, source): text for text, label, *_ in _lines(source, 2)}
    if len(names) != number:
        raise InputError(f"{source} names {len(names)} classes; allowed: {number}")
    classes = tuple(text for _, text in sorted(names.items()))
    return _listing(folder, classes, **images)


def _nested(folder: Path, wanted: list[tuple[str, int]], source: Path) -> list[tuple[Path, int]]:
    """List images that a file names by paths with folders; all must be there."""
    by_folder: dict[str, list[tuple[str, int]]] = {}
    for path, label in wanted:
        by_folder.setdefault(path.rpartition("/")[0], []).append((path.rpartition("/")[2], label))
    return [image for inner, group in by_folder.items() for image in _flat(folder / inner, group, source)]


OFFICIAL: dict[str, list[tuple[tuple[str, ...], Callable[[str, Path], Arrays | Listing]]]] = {
    "mnist": [(("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"), _mnist)],
    "fashion_mnist": [(("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"), _mnist)],
    "svhn": [(("train_32x32.mat",), _svhn)],
    "cifar10": [(("cifar-10-binary.tar.gz", "data_batch_1.bin"), _cifar10)],
    "cifar100": [(("cifar-100-binary.tar.gz", "train.bin"), _cifar100)],
    "tiny_imagenet": [(("val/val_annotations.txt",), _tiny_imagenet)],
    "imagenet": [((DEVKIT,), _imagenet)],
    "places365": [(("places365_train_standard.txt",), _places365)],
}
"""How known sets are distributed: names of files of which one shows that they are there, and the reader."""
