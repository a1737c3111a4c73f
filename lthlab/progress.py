"""A progress line in terminals and notebooks, and how computing is told to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tqdm.auto import tqdm

LOOK_S = 0.2
"""Seconds between two looks at whether to stop."""
ALIVE_S = 1.0
"""Seconds between two signs of life."""


class Bar:
    """Shows trainings done, trainings shared and the time left; a `lthlab.lab.Watcher`.

    In the process of a notebook that `lthlab.batch` executes, it also stops computing once the file named by the
    environment variable LTHLAB_STOP exists, and touches the file named by LTHLAB_ALIVE.

    Parameters
    ----------
    stop : callable, optional
        Whether to stop, such as what `stopping` yields.
    """

    def __init__(self, stop: Callable[[], bool] | None = None) -> None:
        self._bar: tqdm | None = None
        self._trainings = self._done = self._shared = 0
        self._ask = stop
        self._file, self._alive = (os.environ.get(f"LTHLAB_{name}") for name in ("STOP", "ALIVE"))
        self._stopped = False
        self._looked = self._touched = -1.0

    def begin(self, trainings: int, done: int, shared: int, epochs: int) -> None:
        """Open the line, unless nothing is left to train."""
        self.close()
        self._trainings, self._done, self._shared = trainings, done, shared
        if not epochs:
            print(f"{self._text()}: nothing to train", file=sys.stderr)
            return
        interval = 0.2 if sys.stderr.isatty() else 10.0
        form = "{desc} |{bar:24}| {percentage:3.0f} % of epochs, {elapsed} gone, {remaining} left"
        self._bar = tqdm(total=epochs, desc=self._text(), bar_format=form, mininterval=interval, maxinterval=interval)

    def advance(self, epochs: int, trainings: int) -> None:
        """Move on; the line closes with the last training."""
        self._done += trainings
        if self._bar is not None:
            self._bar.update(epochs)
            if trainings:
                self._bar.set_description_str(self._text(), refresh=False)
        if self._done == self._trainings:
            self.close()

    def stop(self) -> bool:
        """Whether to stop; looks a few times a second, and stays at yes."""
        now = time.monotonic()
        if self._stopped or now - self._looked < LOOK_S:
            return self._stopped
        self._looked = now
        if self._alive is not None and now - self._touched >= ALIVE_S:
            self._touched = now
            with suppress(FileNotFoundError):  # the batch has ended
                Path(self._alive).touch()
        asked = self._ask is not None and self._ask()
        self._stopped = asked or (self._file is not None and os.path.exists(self._file))
        if self._stopped:
            self.close()
        return self._stopped

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _text(self) -> str:
        return f"{self._done} of {self._trainings} trainings done, {self._shared} more shared"


class Stopping:
    """Whether to stop, and why; what `stopping` yields.

    Attributes
    ----------
    reason : str or None
        'Ctrl-C', 'SIGTERM' or 'time'; None as long as there is none.
    """

    def __init__(self, deadline: float | None) -> None:
        self.reason: str | None = None
        self._deadline = deadline

    def __call__(self) -> bool:
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "time"
        return self.reason is not None


@contextmanager
def stopping(seconds: float | None = None) -> Iterator[Stopping]:
    """Turn Ctrl-C, SIGTERM and the end of a time into a wish to stop.

    Within, the first of the two signals is only noted, and a second one ends the process as it always does. Outside
    of the main thread, signals are left as they are.

    Parameters
    ----------
    seconds : float, optional
        Time from now after which to stop.

    Yields
    ------
    Stopping
        To be asked.
    """
    wish = Stopping(None if seconds is None else time.monotonic() + seconds)
    before: dict[signal.Signals, object] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())  # type: ignore[arg-type]

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        wish.reason = wish.reason or {signal.SIGINT: "Ctrl-C"}.get(signal.Signals(number), "SIGTERM")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield wish
    finally:
        restore()
