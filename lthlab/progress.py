"""A progress line in terminals and notebooks."""

import sys

from tqdm.auto import tqdm


class Bar:
    """Shows trainings done, trainings shared and the time left; a `lthlab.lab.Watcher`."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._trainings = self._done = self._shared = 0

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

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _text(self) -> str:
        return f"{self._done} of {self._trainings} trainings done, {self._shared} more shared"
