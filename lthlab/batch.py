"""Notebook jobs executed by papermill on the workers of Dask; the only module that imports either.

A cell that computes for long may look whether the file named by the environment variable LTHLAB_STOP exists, and
then end at once with its work saved; it may touch the file named by LTHLAB_ALIVE as a sign of life.
"""

import logging
import math
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import dask
import distributed
from distributed.diagnostics.plugin import WorkerPlugin

from lthlab import kernels
from lthlab.files import Files
from lthlab.jobs import PARAMETERS, Event, Job, Outcome, Status, check
from lthlab.kernels import ASKED, HUNG, NOW, STOP, STOPPED, TICK_S, Kernel, Task, last_line

ABANDON_S = 2.0
CLOSE_S = 1.0
CONNECT_S = 8.0
FETCH_S = 30.0
STUCK_S = 10.0
STARTUP_S = 120
LOST_WORKERS = 3
HANGS = 2


def execute(
    jobs: Sequence[Job],
    slots: int | None = None,
    cluster: str | None = None,
    stall_after_s: float | None = None,
    alive: Callable[[Job], object] | None = None,
    on_event: Callable[[Event], None] | None = None,
    deadline: float | None = None,
    grace_s: float = kernels.GRACE_S,
    tick: Callable[[], None] | None = None,
) -> list[Outcome]:
    """Execute notebook jobs, and what does not depend on a job that failed in any case.

    Outputs are written aside and renamed. SIGINT, SIGTERM and the deadline stop the batch: no job begins any more,
    the file LTHLAB_STOP appears for those that run, which end after the cell they are in; after the grace time they
    are interrupted, soon after killed. A second signal kills at once. A notebook whose last cell ends without an
    error is done, so a cell that stops before its work is done must raise an error, one of a type `Stopped`.

    Parameters
    ----------
    jobs : sequence of Job
        In the order in which they begin, as far as their dependences allow.
    slots : int, optional
        Jobs at a time. By default one, and on a cluster as many as its workers have threads.
    cluster : str, optional
        Address of a running Dask scheduler, 'tcp://…', whose workers share this file system. By default worker
        processes on this machine, which listen on the loopback interface only.
    stall_after_s : float, optional
        A job without a sign of life for so many seconds is ended and tried once more; never by default. Signs are
        a cell that begins, a touched file LTHLAB_ALIVE, and `alive`.
    alive : callable, optional
        From a job to anything that changes while the job makes progress.
    on_event : callable, optional
        Told what happens, in the calling thread.
    deadline : float, optional
        Time of `time.monotonic` at which the batch is stopped.
    grace_s : float, optional
        Seconds from a stop to the interruption of cells. All ends at most 6 seconds later.
    tick : callable, optional
        Called about five times a second, in the calling thread.

    Returns
    -------
    list of Outcome
        One for each job, in their order.

    Raises
    ------
    JobError
        Before anything runs, if jobs, their notebooks or their parameters are not sound.
    ValueError
        If `slots` is below 1.
    OSError
        If the scheduler cannot be reached or a folder not be made.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots: {slots}; allowed: 1 and more")
    texts = check(jobs)
    if not jobs:
        return []
    for folder in {job.output.resolve().parent for job in jobs}:
        Files().mkdir(folder)
    environment = dict(os.environ) if cluster is None else None
    with _signals() as caught, _scratch(jobs, cluster) as scratch, _connected(cluster, slots or 1, scratch) as client:
        tell, look = on_event or (lambda event: None), tick or (lambda: None)
        watch = _Watch(stall_after_s, alive, tell, look, deadline, grace_s, caught)
        return _Batch(jobs, texts, client, scratch, slots if cluster else slots or 1, environment, watch).run()


# --- in the calling process -----------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of ending, as far as this thread may."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _scratch(jobs: Sequence[Job], cluster: str | None) -> Iterator[Path]:
    """Make a folder for what passes between this process and the workers."""
    folder = (
        kernels.temporary()
        if cluster is None
        else Path(tempfile.mkdtemp(".batch", ".", jobs[0].output.resolve().parent))
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Undisturbed(WorkerPlugin):
    """Lets the calling process alone answer signals that reach its workers too.

    The handlers do nothing, since children would inherit a signal that is ignored.
    """

    def setup(self, worker: distributed.Worker) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)


@contextmanager
def _connected(cluster: str | None, slots: int, scratch: Path) -> Iterator[distributed.Client]:
    if cluster is not None:
        with distributed.Client(cluster, timeout=CONNECT_S, set_as_default=False) as client:
            yield client
        return
    earlier, environment = multiprocessing.active_children(), set(os.environ)
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }

    def kill_workers() -> None:
        for child in multiprocessing.active_children():
            if child not in earlier:
                child.kill()

    stuck = threading.Timer(CLOSE_S, kill_workers)
    try:
        with (
            dask.config.set(settings),
            distributed.LocalCluster(
                n_workers=slots,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                memory_limit=0,
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,
            ) as local,
            distributed.Client(local, set_as_default=False) as client,
        ):
            client.register_plugin(_Undisturbed())
            try:
                yield client
            finally:
                stuck.start()
    finally:
        stuck.cancel()
        kill_workers()
        for name in set(os.environ) - environment:  # set by Dask for the processes that it starts
            del os.environ[name]


@dataclass(frozen=True)
class _Watch:
    stall_after_s: float | None
    alive: Callable[[Job], object] | None
    tell: Callable[[Event], None]
    tick: Callable[[], None]
    deadline: float | None
    grace_s: float
    caught: list[int]

    def reason(self) -> str | None:
        """Why the batch must stop, if it must."""
        if self.caught:
            return signal.Signals(self.caught[0]).name
        return "deadline" if self.deadline is not None and time.monotonic() >= self.deadline else None


@dataclass
class _Attempt:
    job: Job
    task: Task
    future: Any
    worker: str
    began: float
    sign: object = None
    sign_at: float = 0.0
    word: str = ""
    word_at: float = 0.0

    def ask(self, word: str) -> None:
        """Put a word into the stop file."""
        self.word, self.word_at = word, time.monotonic()
        self.task.ask(word)


class _Batch:
    def __init__(
        self,
        jobs: Sequence[Job],
        texts: Mapping[str, str],
        client: distributed.Client,
        scratch: Path,
        slots: int | None,
        environment: dict[str, str] | None,
        watch: _Watch,
    ) -> None:
        self.order = [job.name for job in jobs]
        self.waiting = [replace(j, notebook=j.notebook.resolve(), output=j.output.resolve()) for j in jobs]
        self.contents = {job.notebook: job.notebook.read_text(encoding="utf-8") for job in self.waiting}
        self.texts, self.client, self.scratch, self.slots, self.environment = texts, client, scratch, slots, environment
        self.watch = watch
        self.running: dict[str, _Attempt] = {}
        self.ended: queue.SimpleQueue[_Attempt] = queue.SimpleQueue()
        self.outcomes: dict[str, Outcome] = {}
        self.attempts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.hung: Counter[str] = Counter()
        self.stopped_at: float | None = None

    def run(self) -> list[Outcome]:
        while self.waiting or self.running:
            self._stop_if_asked()
            self._skip()
            self._submit()
            self._look_for_signs()
            self.watch.tick()
            with suppress(queue.Empty):
                self._end(self.ended.get(timeout=TICK_S))
        return [self.outcomes[name] for name in self.order]

    def _close(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        self.watch.tell(Event("ended", outcome.name, outcome=outcome))

    def _stop_if_asked(self) -> None:
        reason = self.watch.reason()
        if reason is None:
            return
        now = time.monotonic()
        if self.stopped_at is None:
            self.stopped_at = now
            self.watch.tell(Event("stopping", text=reason))
        patience = self.watch.grace_s + kernels.INTERRUPT_S
        word = NOW if len(self.watch.caught) > 1 or now > self.stopped_at + patience else STOP
        for attempt in self.running.values():
            if attempt.word != word:
                attempt.ask(word)
        for job in self.waiting:
            self._close(Outcome(job.name, "stopped", message=reason))
        self.waiting = []
        for attempt in list(self.running.values()):
            if word == NOW and now > attempt.word_at + ABANDON_S:
                attempt.future.cancel()
                self._close_running(attempt, self._outcome(attempt, "stopped", "", reason))

    def _skip(self) -> None:
        for job in list(self.waiting):
            needs = [self.outcomes[name] for name in job.depends_on if name in self.outcomes]
            bad = next((need for need in needs if need.status != "done"), None)
            if bad is not None:
                self.waiting.remove(job)
                self._close(Outcome(job.name, "skipped", message=f"needs '{bad.name}', which is {bad.status}"))

    def _submit(self) -> None:
        ready = [job for job in self.waiting if all(name in self.outcomes for name in job.depends_on)]
        if not ready:
            return
        free = Counter(self.client.nthreads())
        slots = free.total() if self.slots is None else min(free.total(), self.slots)
        free.subtract(attempt.worker for attempt in self.running.values())
        for job in ready[: max(0, slots - len(self.running))]:
            self.waiting.remove(job)
            self.attempts[job.name] += 1
            number = self.attempts[job.name]
            folder = self.scratch / f"{job.name}-{number}"
            folder.mkdir()
            again = number > 1
            texts = self.contents[job.notebook], self.texts[job.name]
            task = Task(job, *texts, folder, self.environment, again, self.watch.grace_s)
            worker = max(free, key=lambda address: free[address])
            free[worker] -= 1
            future = self.client.submit(_run, task, key=str(folder), pure=False, workers=[worker])
            attempt = self.running[job.name] = _Attempt(job, task, future, worker, time.monotonic())
            future.add_done_callback(lambda _, attempt=attempt: self.ended.put(attempt))
            if not again:
                self.watch.tell(Event("started", job.name))

    def _look_for_signs(self) -> None:
        now = time.monotonic()
        for attempt in self.running.values():
            if not attempt.task.alive.exists():
                if now > attempt.began + STUCK_S and attempt.worker not in self.client.nthreads():
                    attempt.future.cancel()
            elif attempt.word == HUNG and now > attempt.word_at + STUCK_S:
                self._give_up(attempt)
            elif self.watch.stall_after_s is not None and not attempt.word:
                sign = attempt.task.alive.stat().st_mtime_ns, self.watch.alive and self.watch.alive(attempt.job)
                if sign != attempt.sign:
                    attempt.sign, attempt.sign_at = sign, now
                elif now > attempt.sign_at + self.watch.stall_after_s:
                    attempt.ask(HUNG)

    def _give_up(self, attempt: _Attempt) -> None:
        """Do without a worker that does not end a kernel."""
        if self.environment is not None:
            with suppress(OSError, ValueError):
                os.kill(int((attempt.task.folder / "worker").read_text()), signal.SIGKILL)
        else:
            attempt.future.cancel()

    def _end(self, attempt: _Attempt) -> None:
        if self.running.get(attempt.job.name) is not attempt:
            return
        name = attempt.job.name
        try:
            outcome = attempt.future.result(timeout=FETCH_S)
            lost = ""
        except (distributed.KilledWorker, distributed.client.FutureCancelledError, TimeoutError):
            attempt.future.cancel()
            lost = "the worker ended"
            outcome = self._outcome(attempt, ASKED.get(attempt.word, "died"), "", lost)
        except Exception as error:  # whatever kept the worker from executing the notebook at all
            outcome = self._outcome(attempt, "failed", type(error).__name__, last_line(str(error)))
        retry = ""
        if outcome.status == "hung":
            self.hung[name] += 1
            retry = f"no sign of life for {self.watch.stall_after_s:g} s" if self.hung[name] < HANGS else ""
        elif outcome.status == "died" and lost:
            self.lost[name] += (attempt.task.folder / "worker").exists()
            retry = lost if self.lost[name] < LOST_WORKERS else ""
        if retry and self.stopped_at is None and self.client.status == "running":
            del self.running[name]
            shutil.rmtree(attempt.task.folder, ignore_errors=True)
            self.waiting.insert(0, attempt.job)
            self.watch.tell(Event("retried", name, retry))
        else:
            self._close_running(attempt, outcome)

    def _close_running(self, attempt: _Attempt, outcome: Outcome) -> None:
        del self.running[attempt.job.name]
        shutil.rmtree(attempt.task.folder, ignore_errors=True)
        self._close(outcome)

    def _outcome(self, attempt: _Attempt, status: Status, error: str, message: str) -> Outcome:
        """Say how an attempt ended whose worker cannot; what it had executed is kept if it failed."""
        job, task = attempt.job, attempt.task
        cell, source, output = None, "", None
        with suppress(OSError, ValueError):
            cell, source, _ = kernels.place(task.notebook, int(task.alive.read_text()))
        if status not in ("done", "stopped") and task.executed.exists():
            output = _keep(task, job.failure)
        seconds = time.monotonic() - attempt.began
        return Outcome(job.name, status, seconds, cell, None, source, error, message, job.log, output)


# --- in a worker ----------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The batch is stopped between two cells."""


def _run(task: Task) -> Outcome:
    """Execute a job's notebook and write it."""
    began = time.monotonic()
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / "worker").write_text(str(os.getpid()))
    with open(task.job.log, "ab" if task.again else "wb", buffering=0) as log:
        outcome = _attempt(task, log)
        if outcome is None:
            log.write(b"The kernel did not start; once more.\n")
            outcome = _attempt(task, log) or Outcome(task.job.name, "died", message="the kernel does not start")
        words = f"{outcome.status} {outcome.error} {outcome.message}".strip()
        log.write(f"{task.job.name}: {words}\n".encode())
    output = None
    if outcome.status == "done":
        output = _keep(task, task.job.output)
        task.job.failure.unlink(missing_ok=True)
    elif outcome.status != "stopped" and task.executed.exists():
        output = _keep(task, task.job.failure)
    return replace(outcome, seconds=time.monotonic() - began, log=task.job.log, output=output)


def _attempt(task: Task, log: Any) -> Outcome | None:
    """Execute the notebook into the task's folder; None if its kernel did not start."""
    import nbclient.exceptions
    import nbformat
    import papermill

    job, kernel, finished = task.job, Kernel(task, log), threading.Event()
    current: list[int] = []

    def begin(cell: Any, cell_index: int) -> None:
        if task.asked():
            raise _Stopped
        current[:] = [cell_index]
        task.alive.write_text(str(cell_index))

    def ended(status: Status, error: str = "", message: str = "", line: int | None = None) -> Outcome:
        number, source, line = kernels.place(task.notebook, current[0], line) if current else (None, "", None)
        if kernel.pressed:
            status, message = ASKED.get(task.asked(), status), ""
        elif error == STOPPED:
            status = "stopped"
        if status in ("stopped", "hung"):
            error, message = "", message or {"hung": "no sign of life"}.get(status, "stopped")
        return Outcome(job.name, status, 0.0, number, line, source, error, message)

    handler = logging.StreamHandler(open(log.fileno(), "w", closefd=False))  # noqa: SIM115
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    logger = logging.getLogger("papermill")
    logger.addHandler(handler)
    logger.propagate = False
    task.alive.touch()
    threading.Thread(target=kernel.attend, args=(task, current, finished), daemon=True).start()
    try:
        result = papermill.execute_notebook(
            nbformat.reads(task.notebook, as_version=4),
            str(task.executed).replace("{", "{{").replace("}", "}}"),
            {PARAMETERS: task.parameters},
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=STARTUP_S,
            execution_timeout=job.cell_timeout_s and math.ceil(job.cell_timeout_s),
            kernel_manager_class=kernel.manager(),
            extra_arguments=["--HistoryManager.enabled=False"],
            resources={"metadata": {"path": str(job.notebook.parent)}},
            iopub_timeout=30,
            on_cell_start=begin,
        )
        if result.metadata.papermill["exception"]:
            return ended("failed", "SystemExit", "a cell ended the kernel's work before the last cell")
        return Outcome(job.name, "done")
    except _Stopped:
        return ended("stopped")
    except papermill.PapermillExecutionError as error:
        log.write(kernels.plain("\n".join(error.traceback)).encode() + b"\n")
        message = last_line(error.evalue)
        return ended("failed", error.ename, message, kernels.line_of(error.traceback, error.exec_count))
    except nbclient.exceptions.CellTimeoutError as error:
        return ended("failed", "CellTimeoutError", " ".join(str(error).splitlines()[:2]))
    except nbclient.exceptions.DeadKernelError:
        return ended("died", "", kernel.fate())
    except (RuntimeError, OSError) as error:
        if current or task.asked():
            return ended("failed" if current else "stopped", type(error).__name__, last_line(str(error)))
        log.write(f"{type(error).__name__}: {error}\n".encode())
        return None
    finally:
        finished.set()
        kernel.end()
        logger.removeHandler(handler)


def _keep(task: Task, path: Path) -> Path:
    """Write the executed notebook aside and put it in place; its metadata name no folders of this machine."""
    import nbformat

    notebook = nbformat.read(task.executed, as_version=4)
    notebook.metadata.papermill["input_path"] = task.job.notebook.name
    notebook.metadata.papermill["output_path"] = task.job.output.name
    files, part = Files(), path.with_name(f".{path.name}.{os.getpid()}.part")
    files.write(part, nbformat.writes(notebook).encode())
    files.replace(part, path)
    files.sync_dir(path.parent)
    return path
