"""Reading and writing the files of a store, each checked and written whole."""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lthlab.files import Files, StoreError, change, open_plain, refused

FORMAT = 1
KEY = "[0-9a-f]{32}"
NUMBER = "0|[1-9][0-9]*"

_ATTEMPTS = 3


class Damaged(Exception):
    """Something in the store is not what was written there.

    Attributes
    ----------
    path : pathlib.Path
        The file or folder that is wrong.
    reason : str
        What is wrong with it.
    key : str or None
        Key of the result it belongs to, if any.
    part : int or None
        First part of that result to `Store.discard`, if any.
    """

    def __init__(self, path: Path, reason: str, key: str | None = None, part: int | None = None) -> None:
        super().__init__(path, reason, key, part)
        self.path, self.reason, self.key, self.part = path, reason, key, part

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Disk:
    """A folder whose files are read with every fault named, and changed so that none is ever seen half-written.

    Parameters
    ----------
    root : path
        The folder; made when first written to.
    files : Files, optional
        The operations that change the disk.
    """

    def __init__(self, root: str | os.PathLike[str], files: Files | None = None) -> None:
        self.root = Path(root).absolute()
        self.files = Files() if files is None else files
        self._work = self.root / ".work"

    # Reading

    def _entries(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise refused(error, folder) from error

    def _matches(self, folder: Path, pattern: str) -> list[str]:
        """The first group of `pattern` for each entry of a folder that matches it."""
        return [match[1] for name in self._entries(folder) if (match := re.fullmatch(pattern, name))]

    def _damaged(self, path: Path, reason: str) -> Damaged:
        key, *rest = path.relative_to(self.root).parts
        part = int(rest[0]) if rest and re.fullmatch(NUMBER, rest[0]) else None
        return Damaged(path, reason, key if re.fullmatch(KEY, key) else None, part)

    def _bytes(self, path: Path, limit: int = -1) -> bytes:
        try:
            with open(path, "rb", opener=open_plain) as file:
                return file.read(limit)
        except (FileNotFoundError, NotADirectoryError):
            raise self._damaged(path, "is missing") from None
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP):
                raise self._damaged(path, "is not a plain file") from None
            raise refused(error, path) from error

    def _json(self, data: bytes, path: Path) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, f"is not JSON: {error}") from error

    def _unsealed(self, path: Path, data: bytes) -> dict[str, Any]:
        rest = data[len(_seal(b"")) :]
        if data != _seal(rest) + rest:
            raise self._damaged(path, "does not match its checksum")
        body: dict[str, Any] = self._json(data, path)
        if body.get("format") != FORMAT:
            text = f"has format {body.get('format')!r}, this version of lthlab reads {FORMAT}"
            raise StoreError(errno.ENOTSUP, text, str(path))
        return body

    # Writing

    def _folder(self, path: Path) -> Path:
        if path.is_symlink():
            raise StoreError(errno.ELOOP, "is a symbolic link, which leads out of the store", str(path))
        if not path.is_dir():
            change(self.files.mkdir, path)
        return path

    def _aside(self, owner: str, publish: Callable[[Path], None]) -> None:
        """Call `publish` with a new path in `.work`; again if a sweep elsewhere took away what it wrote."""
        for left in reversed(range(_ATTEMPTS)):
            path = self._folder(self._work) / f"{owner}.{secrets.token_hex(8)}"
            try:
                return publish(path)
            except StoreError as error:
                with suppress(OSError):
                    self.files.rmtree(path)
                if error.errno != errno.ENOENT or not left:
                    raise

    def _replace(self, target: Path, data: bytes, owner: str, sync: bool = True) -> None:
        def publish(aside: Path) -> None:
            change(self.files.write, aside, data, sync)
            self._folder(target.parent)
            change(self.files.replace, aside, target)
            if sync:
                change(self.files.sync_dir, target.parent)

        self._aside(owner, publish)

    def _retire(self, path: Path) -> None:
        """Remove a folder or file; renamed first, so that nobody can publish it when it is half gone."""
        trash = self._folder(self._work) / f"trash.{secrets.token_hex(8)}"
        try:
            change(self.files.rename, path, trash)
        except StoreError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        change(self.files.rmtree, trash)


def digest(data: bytes) -> str:
    """Hash the content of a file."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _seal(rest: bytes) -> bytes:
    return b'{"blake2b": "%s", ' % digest(rest).encode()


def sealed(body: Mapping[str, Any]) -> bytes:
    """Write JSON that begins with the checksum of all that follows it."""
    rest = json.dumps({"format": FORMAT, **body}, allow_nan=False).encode()[1:]
    return _seal(rest) + rest
