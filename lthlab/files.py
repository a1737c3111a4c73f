"""The operations that change anything on disk, in one place so that a test can make each of them fail."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StoreError(OSError):
    """The system refused an operation on the store; names the path, the reason and the free space."""


class Files:
    """The operations with which a store changes anything on disk; a test may put its own in their place.

    Each may be repeated after it failed half-way.
    """

    def mkdir(self, path: Path) -> None:
        """Make a folder and the folders above it; one that exists will do."""
        os.makedirs(path, exist_ok=True)

    def write(self, path: Path, data: bytes, sync: bool = True) -> None:
        """Write a file anew and, if `sync`, wait until the disk has it."""
        with open(path, "wb", opener=open_plain) as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())

    def append(self, path: Path, line: bytes) -> None:
        """Append a line to a file, in place of a last line that lacks its end; others that append wait meanwhile."""
        with open(path, "ab+", opener=open_plain) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def touch(self, path: Path) -> None:
        """Set the time of a file's last change to now; one that is gone stays gone."""
        with suppress(FileNotFoundError):
            os.utime(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a folder; fails if the target exists and is not an empty folder."""
        os.rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file, in place of the target."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file or a symbolic link, if it is there."""
        path.unlink(missing_ok=True)

    def rmtree(self, path: Path) -> None:
        """Remove a file or a folder with all it holds, if it is there; symbolic links are not followed."""
        while os.path.lexists(path):
            with suppress(FileNotFoundError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def sync_dir(self, path: Path) -> None:
        """Wait until the disk has the entries of a folder, on file systems that can say so."""
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(folder)

    def lock(self, path: Path) -> BaseFileLock | None:
        """Make a lock file and lock it; None if somebody else has the lock."""
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock


def open_plain(path: str | os.PathLike[str], flags: int) -> int:
    """Opener for `open` that neither follows a symbolic link nor waits at a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def change(operation: Callable[Concatenate[Path, _P], _T], path: Path, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call an operation of `Files`; what the system refuses is raised as StoreError."""
    try:
        return operation(path, *args, **kwargs)
    except OSError as error:
        raise refused(error, path) from error


def refused(error: OSError, path: Path) -> StoreError:
    """Put path, reason and free space into a StoreError."""
    folder = next(folder for folder in (path, *path.parents) if os.path.isdir(folder))
    text = f"{error.strerror or error} ({shutil.disk_usage(folder).free:,} bytes free)"
    return StoreError(error.errno or errno.EIO, text, str(path))
