"""The process that executes a notebook's cells: started so that it ends with its parent, attended, and ended."""

import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lthlab.jobs import PARAMETERS, Job, Status

TICK_S = 0.2
GRACE_S = 14.0
INTERRUPT_S = 1.5
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip

STOPPED = "Stopped"
"""Type of the error by which a cell says that it was asked to stop, and saved its work."""

SPIN = {"GOMP_SPINCOUNT": "1000"}
"""Threads that wait for each other at full speed starve one another where other programs run too. A short spin costs
nothing where they do not. It counts only if it is set before torch is imported."""

# Words in the file LTHLAB_STOP: end within the grace time; end now; no sign of life was seen, end now.
STOP, NOW, HUNG = "stop", "now", "hung"
ASKED: dict[str, Status] = {STOP: "stopped", NOW: "stopped", HUNG: "hung"}

WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(os.environ["JPY_PARENT_PID"]):
    sys.exit("the parent has ended")
"""
"""Begin of a script that is killed when its parent ends, however that ends; JPY_PARENT_PID names the parent."""

# The kernel polls for the death of its parent, but not while a cell holds the interpreter's lock.
_KERNEL = f"""{WITH_PARENT}
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


def temporary() -> Path:
    """Make a folder on this machine with a short name, since names of sockets have at most 104 characters."""
    return Path(tempfile.mkdtemp(prefix="lthlab-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None))


def cores() -> int:
    """Count the cores that this process may use: what it is bound to, and the share of its control group."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        share, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        bound = min(bound, max(1, int(share) // int(period)))
    return bound


@dataclass(frozen=True)
class Task:
    """What a worker is sent: a job, the text of its notebook and of its parameters, and how to execute it.

    Attributes
    ----------
    folder : Path
        Of this attempt, for the executed notebook and the files `stop`, `alive` and `worker`.
    environment : dict or None
        Of the calling process, if the worker is its child; the worker's own otherwise.
    again : bool
        Whether this is not the job's first attempt.
    grace_s : float
        Seconds from a stop to the interruption of a cell.
    """

    job: Job
    notebook: str
    parameters: str
    folder: Path
    environment: dict[str, str] | None
    again: bool
    grace_s: float

    @property
    def alive(self) -> Path:
        """The file whose change is a sign of life."""
        return self.folder / "alive"

    @property
    def executed(self) -> Path:
        """The notebook as far as it is executed."""
        return self.folder / "notebook.ipynb"

    def ask(self, word: str) -> None:
        """Put a word into the stop file."""
        part = self.folder / "stop.part"
        part.write_text(word)
        part.replace(self.folder / "stop")

    def asked(self) -> str:
        """The word in the stop file, empty if there is none; `NOW` if nobody waits for the outcome any more."""
        try:
            return (self.folder / "stop").read_text()
        except FileNotFoundError:
            return "" if self.folder.exists() else NOW


class Kernel:
    """The process that executes the cells of one job, and its children, which are in one process group.

    Parameters
    ----------
    task : Task
        What it executes.
    log : file
        Where what it writes past the notebook goes.

    Attributes
    ----------
    pressed : bool
        Whether it was interrupted or killed because the stop file asked for it.
    """

    def __init__(self, task: Task, log: Any) -> None:
        child = task.environment is not None
        self.folder = Path(tempfile.mkdtemp(prefix="k", dir=task.folder.parent)) if child else temporary()
        self.process: Any = None
        self.log = log
        self.pressed = False
        self.environment = {
            **(os.environ if task.environment is None else task.environment),
            **task.job.environment,
            **dict.fromkeys(THREAD_VARIABLES, str(task.job.cores)),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "LTHLAB_STOP": str(task.folder / "stop"),
            "LTHLAB_ALIVE": str(task.alive),
        }

    def manager(self) -> type:
        """Make the class by which nbclient starts and ends this kernel."""
        from jupyter_client.manager import AsyncKernelManager

        kernel = self

        class Manager(AsyncKernelManager):
            def __init__(self, **keywords: Any) -> None:
                sockets = {"transport": "ipc", "connection_file": str(kernel.folder / "kernel.json")}
                super().__init__(**keywords, **sockets, shutdown_wait_time=2.0)

            def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
                return [sys.executable, "-c", _KERNEL, "-f", self.connection_file, *(extra_arguments or [])]

            async def start_kernel(self, **keywords: Any) -> None:  # type: ignore[override]
                streams = {"stdout": kernel.log, "stderr": kernel.log}
                await self._async_start_kernel(**keywords, **streams, env=kernel.environment)
                kernel.process = getattr(self.provisioner, "process", None)

        return Manager

    def attend(self, task: Task, current: Sequence[int], finished: threading.Event) -> None:
        """Be the sign of life until the first cell, and end the process as the stop file asks.

        That is: kill it at once, or interrupt it after the grace time.
        """
        asked_at = math.inf
        while not finished.wait(TICK_S):
            word, now = task.asked(), time.monotonic()
            if not current and not word:
                with suppress(FileNotFoundError):
                    task.alive.touch()
            if word:
                asked_at = min(asked_at, now)
            if word in (NOW, HUNG):
                self.pressed = True
                self.send(signal.SIGKILL)
            elif now > asked_at + task.grace_s and not self.pressed:
                self.pressed = True
                self.send(signal.SIGINT)

    def send(self, number: int) -> None:
        """Send a signal to the process and its children, if it runs."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Kill what is left, also children of a kernel that has ended."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def fate(self) -> str:
        """Say how the process ended."""
        code = None if self.process is None else self.process.poll()
        if code is None or code >= 0:
            return "the kernel ended" + (f" with exit code {code}" if code is not None else "")
        return f"the kernel was ended by {signal.Signals(-code).name}" + " (out of memory?)" * (-code == signal.SIGKILL)


def place(notebook: str, executed: int, line: int | None = None) -> tuple[int, str, int | None]:
    """Number, text and line of a cell of a notebook, from 1.

    Parameters
    ----------
    notebook : str
        Text of the notebook before its execution.
    executed : int
        Index of the cell in the executed notebook, which has one more below the parameters.
    line : int, optional
        Line in the cell; without it the first line of code is given, without its number.
    """
    cells = json.loads(notebook)["cells"]
    tagged = next(index for index, cell in enumerate(cells) if PARAMETERS in cell["metadata"].get("tags", []))
    index = executed - (executed > tagged)
    lines = "".join(cells[index]["source"]).splitlines()
    if line is None or line > len(lines):
        code = (text for text in lines if text.strip() and not text.lstrip().startswith("#"))
        return index + 1, next(code, "").strip(), None
    return index + 1, lines[line - 1].strip(), line


def line_of(traceback: Sequence[str], count: int) -> int | None:
    """The line of a cell that an error of IPython names last."""
    found = re.findall(rf"Cell In\s?\[{count}\], line (\d+)", plain("\n".join(traceback)))
    return int(found[-1]) if found else None


def plain(text: str) -> str:
    """A text without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def last_line(text: str) -> str:
    """The last line of a text, empty if it has none."""
    return (plain(text).strip().splitlines() or [""])[-1].strip()
