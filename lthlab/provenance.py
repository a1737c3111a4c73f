"""With what results are computed: versions, and the state of the code."""

import functools
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import lthlab

GIT_S = 2.0
"""Seconds after which git is given up."""
PACKAGES = ("torch", "numpy", "pandas", "safetensors", "scikit-learn")


@functools.cache
def code() -> dict[str, str | bool | None]:
    """Find out which code this process runs; asked once.

    Returns
    -------
    dict
        `lthlab`, its version; `commit`, of the git repository whose tracked file this module is; `clean`, whether no
        tracked file of it was changed. The last two are None where there is no such repository, or no git.
    """
    return {"lthlab": lthlab.__version__, **dict(zip(("commit", "clean"), _checkout(Path(__file__)), strict=True))}


@functools.cache
def versions() -> dict[str, str]:
    """Look up the versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, str | int]:
    """Describe this machine by `processor`, its model as far as the system tells, and the number of its `cores`."""
    model = None
    with suppress(OSError):
        model = re.search("^model name\\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = model[1].strip() if model else platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count() or 1}


def _checkout(path: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository that tracks a file, and whether its tree is clean."""
    folder = path.resolve().parent
    tracked = _git(folder, "ls-files", "--error-unmatch", "--", path.name)
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no") if tracked else None
    if status is None:
        return None, None
    found = re.search("^# branch.oid ([0-9a-f]+)$", status, re.MULTILINE)
    if found is None:  # no commit yet
        return None, None
    return found[1], all(line.startswith("#") for line in status.splitlines())


def _git(folder: Path, *arguments: str) -> str | None:
    """Run git in a folder, not that of the environment; None if it fails, is missing or takes too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # The repository's own settings must not start programs.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
