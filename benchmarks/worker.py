"""Processes of their own that take turns: each waits, blocked on its input, until it is asked.

Run as `python -m benchmarks.worker MODULE:FUNCTION SETTINGS`. The function gets the settings, a JSON object, and
returns what is called with each line of input, again an object; its answers go out as lines of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.record import Row

_ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A process that answers calls.

    Parameters
    ----------
    function : str
        'module:function' of this package.
    environment : mapping of str to str or None, optional
        Variables in which the process differs from this one; None removes one.
    settings
        Passed to the function.
    """

    def __init__(self, function: str, environment: Mapping[str, str | None] | None = None, **settings: Any) -> None:
        self.function = function
        variables: dict[str, str | None] = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", function, json.dumps(settings)],
            cwd=_ROOT,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **arguments: Any) -> Any:
        """Ask, and wait for the answer.

        Raises
        ------
        RuntimeError
            If the process ended instead; it has said why on the error stream.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of {self.function} ended with code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.terminate()
        self._process.communicate()


def rows(benchmark: str, chosen: list[str], quick: bool) -> Callable[[], Row | None]:
    """For a process that measures one benchmark: each call yields the next row, None after the last."""
    found = import_module(f"benchmarks.{benchmark}").measure(chosen, quick)
    return lambda: next(found, None)


def serve(function: str, settings: str) -> None:
    """Answer the lines of the input until it ends; what is printed meanwhile goes to the error stream."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        module, _, name = function.partition(":")
        act = getattr(import_module(f"benchmarks.{module}"), name)(**json.loads(settings))
        for line in sys.stdin:
            print(json.dumps(act(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
