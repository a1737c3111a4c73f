"""Tiny data sets in the forms that the real ones are distributed in, written by the tests themselves."""

import gzip
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lthlab import catalog, datasets

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n01443537", "n02099601", "n01629819")


def shrink(monkeypatch, name, train, test, **facts):
    """Let a known set have so few images, of any colours."""
    tiny = replace(
        datasets.DATASETS[name],
        train=train,
        test=test,
        fingerprint=None,
        mean=(),
        std=(),
        train_counts=(),
        test_counts=(),
        **facts,
    )
    monkeypatch.setitem(datasets.DATASETS, name, tiny)
    monkeypatch.setitem(catalog.KNOWN, name, replace(catalog.KNOWN[name], mean=(), std=()))


def images(seed, *shape):
    """Draw random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def labels(seed, count, classes):
    """Draw labels of which each class has some."""
    return np.random.default_rng(seed).permutation(np.arange(count) % classes).astype(np.uint8)


def save(pixels, path, **options):
    """Write an image, [C, H, W], in the form that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path, **options)
    return path


def class_folders(root, sets, names, form="png", test="test"):
    """Write `train/<class>/` and `test/<class>/` of (images, labels)."""
    for part, (x, y) in zip(("train", test), sets, strict=True):
        for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
            save(
                pixels,
                root / part / names[label] / f"{number:04}.{form}",
                **{"lossless": True} if form == "webp" else {},
            )
    return root


def idx(path, array, packed=True):
    """Write an idx file of bytes (LeCun): magic number, dimensions, big-endian."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if packed else data)


def mnist(root, sets, packed=True):
    """Write the four files of MNIST and Fashion-MNIST."""
    for prefix, (x, y) in zip(("train", "t10k"), sets, strict=True):
        idx(root / f"{prefix}-images-idx3-ubyte{'.gz' * packed}", x[:, 0], packed)
        idx(root / f"{prefix}-labels-idx1-ubyte{'.gz' * packed}", y, packed)
    return root


def cifar(root, sets, coarse=False):
    """Write the binary distribution of CIFAR-10, five batches, or of CIFAR-100, with coarse labels."""
    inside, archive = (
        ("cifar-100-binary", "cifar-100-binary.tar.gz")
        if coarse
        else ("cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    )
    records = []
    for x, y in sets:
        fine = np.asarray(y, np.uint8)[:, None]
        both = np.hstack([fine // 5, fine]) if coarse else fine
        records.append(np.hstack([both, x.reshape(len(x), -1)]))
    if coarse:
        files = {"train.bin": records[0], "test.bin": records[1]}
    else:
        files = {f"data_batch_{n}.bin": piece for n, piece in enumerate(np.array_split(records[0], 5), start=1)}
        files["test_batch.bin"] = records[1]
    return tarred(
        root / archive,
        {f"{inside}/{name}": piece.tobytes() for name, piece in files.items()} | {f"{inside}/readme.html": b"<p>"},
    )


def tarred(path, files):
    """Write a tar.gz of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def svhn(root, sets):
    """Write the cropped digits of SVHN as MATLAB files, the digit 0 labelled 10."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for part, (x, y) in zip(("train", "test"), sets, strict=True):
        y = np.where(np.asarray(y) == 0, 10, y).astype(np.uint8)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": y})
    return root


def tiny_imagenet(root, sets, form="JPEG"):
    """Write the tree of Tiny-ImageNet with its lists of boxes and of validation images."""
    names = sorted(WNIDS)
    root = root / "tiny-imagenet-200"
    (x, y), (held, classes) = sets
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        folder = root / "train" / names[label]
        save(pixels, folder / "images" / f"{names[label]}_{number}.{form}", quality=95)
        (folder / f"{names[label]}_boxes.txt").write_text(f"{names[label]}_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for number, (pixels, label) in enumerate(zip(held, classes, strict=True)):
        save(pixels, root / "val" / "images" / f"val_{number}.{form}", quality=95)
        lines.append(f"val_{number}.{form}\t{names[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    save(x[0], root / "test" / "images" / f"test_0.{form}")
    return root


def imagenet(root, sets, flat=True):
    """Write class folders for training, and validation images either so or in one folder with the devkit."""
    from scipy.io import savemat

    names = sorted(WNIDS)
    (x, y), (held, classes) = sets
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        save(pixels, root / "train" / names[label] / f"{names[label]}_{number}.JPEG")
    for number, (pixels, label) in enumerate(zip(held, classes, strict=True), start=1):
        folder = root / "val" if flat else root / "val" / names[label]
        save(pixels, folder / f"ILSVRC2012_val_{number:08}.JPEG")
    if flat:
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
        rows = [(number, wnid, "words", "gloss", 0) for number, wnid in enumerate(WNIDS, start=1)]
        synsets = np.array([*rows, (len(rows) + 1, "n00001740", "entity", "all", 3)], kind)
        savemat(data / "meta.mat", {"synsets": synsets[:, None]})
        numbers = [WNIDS.index(names[label]) + 1 for label in classes]
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    return root


def places365(root, sets, names=("/a/airfield", "/a/alley", "/b/bow_window/indoor")):
    """Write the small images of Places365 with their list files."""
    (x, y), (held, classes) = sets
    (root / "val_256").mkdir(parents=True)
    lines = {"categories_places365": [f"{name} {number}" for number, name in enumerate(names)]}
    lines["places365_train_standard"] = []
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        name = f"{names[label]}/{number:08}.jpg"
        save(pixels, root / "data_256_standard" / name[1:])
        lines["places365_train_standard"].append(f"{name} {label}")
    lines["places365_val"] = []
    for number, (pixels, label) in enumerate(zip(held, classes, strict=True), start=1):
        save(pixels, root / "val_256" / f"Places365_val_{number:08}.jpg")
        lines["places365_val"].append(f"Places365_val_{number:08}.jpg {label}")
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return root


def sets_of(shape, classes, train=24, test=9):
    """Draw training and test images and labels."""
    return [(images(seed, count, *shape), labels(seed, count, classes)) for seed, count in ((1, train), (2, test))]


def expected(sets):
    """What is installed: images and labels by class, then by SHA-256 of the pixels, plainly."""
    import hashlib

    found = []
    for x, y in sets:
        rows = sorted(
            (int(label), hashlib.sha256(bytes(pixels.ravel().tolist())).hexdigest(), number)
            for number, (pixels, label) in enumerate(zip(x, y, strict=True))
        )
        found.append((np.stack([x[number] for *_, number in rows]), [label for label, *_ in rows]))
    return found


def tree(folder):
    """All files of a folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
