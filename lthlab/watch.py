"""What a study in progress looks like, from its store: on a screen that stays in place, or line by line."""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from lthlab.jobs import Event, clock
from lthlab.roles import TRAINED
from lthlab.runs import InTraining, in_training
from lthlab.store import Store

State = Literal["left", "running", "done", "failed"]
STATES: tuple[State, ...] = ("done", "running", "failed", "left")
REPORTS = "reports"
"""The stage of the report notebooks."""

SCREEN_S = 0.5
LINES_S = 60.0
FOLLOW_S = 1.0
MOST_ROWS = 12
LONGEST_NAME = 35


@dataclass(frozen=True)
class Row:
    """How far a configuration in training is.

    Attributes
    ----------
    name : str
        Of the configuration.
    epoch, epochs : int
        Epoch that the group now in training has ended, and its last.
    loss, accuracy : float or None
        Training loss, and test accuracy in [0, 1]; means over the trainings of that group that have not diverged.
    left_s : float or None
        Seconds to the end of the configuration's trainings, at the speed since it began to be watched.
    """

    name: str
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    accuracy: float | None = None
    left_s: float | None = None

    def words(self) -> tuple[str, str, str, str]:
        """Epoch, loss, accuracy and time left; empty as far as they are not known."""
        return (
            f"{self.epoch}/{self.epochs}" if self.epochs else "",
            "" if self.loss is None else f"{self.loss:.4f}",
            "" if self.accuracy is None else f"{100 * self.accuracy:.1f} %",
            "" if self.left_s is None else clock(self.left_s),
        )


def mark(study: str, name: str) -> str:
    """Key of the claim that `lthlab run` has to a configuration or report while it executes the notebook."""
    return hashlib.sha256(f"notebook of {study}: {name}".encode()).hexdigest()[:32]


def at_work(study: str, store: Store) -> list[str]:
    """Name the configurations and reports of a study that somebody computes or executes now."""
    table = store.study(study)
    owners: dict[str, str] = {}
    for role in table["roles"]:
        owners.setdefault(role["key"], role["configuration"])
    names = dict.fromkeys([role["configuration"] for role in table["roles"]] + table["reports"])
    found = {name for name in names if store.claimed(mark(study, name))}
    found |= {name for key, name in owners.items() if store.claimed(key)}
    return [name for name in names if name in found]


class Board:
    """Which configurations and reports of a study are done, running, failed or left.

    Parameters
    ----------
    study : str
        Name of the study, whose table of roles is in the store.
    store : Store
        Where it is computed.
    names : collection of str, optional
        Configurations and reports that are shown; all by default.
    done : collection of str, optional
        Those of them that are done already.
    now : callable, optional
        Seconds of a clock.
    """

    def __init__(
        self,
        study: str,
        store: Store,
        names: Collection[str] | None = None,
        done: Collection[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.store, self.now, self.began = study, store, now, now()
        table = store.study(study)
        epochs: dict[str, dict[str, int]] = {}
        for role in table["roles"]:
            keys = epochs.setdefault(role["configuration"], {})
            keys[role["key"]] = role["eval_epochs"] if role["what"] in TRAINED else 0
        chosen = [name for name in (*epochs, *table["reports"]) if names is None or name in names]
        self.epochs = {name: epochs[name] for name in chosen if name in epochs}
        self.states: dict[str, State] = {name: "done" if name in done else "left" for name in chosen}
        self.rows: list[Row] = []
        self._open = {name: set(keys) for name, keys in self.epochs.items()}
        self._since: dict[str, tuple[float, float]] = {}

    def stage(self, name: str) -> str:
        """The stage of a configuration or report."""
        return name.partition(".")[0] if name in self.epochs else REPORTS

    def counts(self) -> dict[str, dict[State, int]]:
        """Count configurations and reports by stage and state."""
        found: dict[str, dict[State, int]] = {}
        for name, state in self.states.items():
            found.setdefault(self.stage(name), dict.fromkeys(STATES, 0))[state] += 1
        return found

    def tell(self, event: Event) -> None:
        """Note what happens to a job."""
        if event.what == "started":
            self.states[event.name] = "running"
        elif event.outcome is not None:
            ends: dict[str, State] = {"done": "done", "stopped": "left", "skipped": "left"}
            self.states[event.name] = ends.get(event.outcome.status, "failed")

    def look(self) -> None:
        """Read from the store how far the running configurations are."""
        self._read(in_training(self.store))

    def survey(self, folder: Path) -> None:
        """Read all states from the store and from the folder of executed notebooks."""
        from lthlab import results

        groups = in_training(self.store)
        training = {key for group in groups for key in group.runs}
        working = set(at_work(self.study, self.store))
        for name, keys in self._open.items():
            keys -= {key for key, status in results.statuses(self.store, keys).items() if status != "missing"}
            failed = _changed(folder / f"{name}.failed.ipynb") > _changed(folder / f"{name}.ipynb")
            state: State = "left" if keys else "done"
            running = keys & training or name in working
            self.states[name] = "running" if running else "failed" if failed else state
        newest = max((_changed(folder / f"{name}.ipynb") for name in self._open), default=0.0)
        whole = all(self.states[name] == "done" for name in self._open)
        for name in self.states.keys() - self._open.keys():
            executed = _changed(folder / f"{name}.ipynb")
            failed = (folder / f"{name}.failed.ipynb").exists()
            state = "failed" if failed else "done" if whole and executed > newest else "left"
            self.states[name] = "running" if name in working else state
        self._read(groups)

    def _read(self, groups: Sequence[InTraining]) -> None:
        self.rows = [self._row(name, groups) for name, state in self.states.items() if state == "running"]

    def _row(self, name: str, groups: Sequence[InTraining]) -> Row:
        keys = self.epochs.get(name, {})
        left = self._open.setdefault(name, set())
        left -= {key for key in left if self.store.has(key)}
        mine = [group for group in groups if left & group.runs.keys()]
        credit = sum(epochs for key, epochs in keys.items() if key not in left)
        credit += sum(group.epoch * len(left & group.runs.keys()) for group in mine)
        began, before = self._since.setdefault(name, (self.now(), credit))
        if not mine and credit == before:  # while a kernel starts, nothing is known of the speed
            began, before = self._since[name] = self.now(), credit
        gone = credit - before
        rest = (sum(keys.values()) - credit) * (self.now() - began) / gone if gone > 0 else None
        if not mine:
            return Row(name, left_s=rest)
        runs = [mine[-1].runs[key] for key in left & mine[-1].runs.keys()]
        loss, accuracy = (_mean([run[name] for run in runs if name in run]) for name in ("loss", "accuracy"))
        return Row(name, mine[-1].epoch, mine[-1].epochs, loss, accuracy, rest)


class Lines:
    """Tells what happens line by line, and every minute how far the running configurations are."""

    def __init__(self, board: Board, stream: TextIO) -> None:
        self.board, self.stream = board, stream
        self._told = board.now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def tell(self, event: Event) -> None:
        """Tell what happens to a job."""
        self.board.tell(event)
        outcome = event.outcome
        if outcome is None:
            words = f"{event.what}{': ' * bool(event.text)}{event.text}"
        elif outcome.status == "stopped" and not outcome.seconds:
            return
        else:
            seconds = f" after {clock(outcome.seconds)}" if outcome.seconds else ""
            reason = ": ".join(filter(None, [outcome.error, outcome.message]))
            words = f"{outcome.status}{seconds}{': ' * bool(reason)}{reason}"
        self._say(f"{event.name} {words}".strip())

    def tick(self) -> None:
        """Tell how far the running configurations are, if it is time for it."""
        if self.board.now() < self._told + LINES_S:
            return
        self._told = self.board.now()
        self.board.look()
        self.show()

    def show(self) -> None:
        """Tell the counts of all stages, and how far the running configurations are."""
        for stage, counts in self.board.counts().items():
            self._say(f"{stage}: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count))
        for row in self.board.rows:
            names = ("epoch", "loss", "accuracy", "time left")
            words = [f"{name} {word}" for name, word in zip(names, row.words(), strict=True) if word]
            self._say(f"{row.name} " + (", ".join(words) or "between trainings"))

    def _say(self, text: str) -> None:
        print(f"{clock(self.board.now() - self.board.began)} {text}", file=self.stream, flush=True)


class Screen:
    """Shows a board in a terminal, always in the same place.

    Parameters
    ----------
    board : Board
        What is shown.
    console : rich.console.Console
        Where.
    """

    def __init__(self, board: Board, console: Any) -> None:
        from rich.live import Live

        self.board = board
        self._live = Live(console=console, auto_refresh=False)
        self._note = ""
        self._shown = -SCREEN_S

    def __enter__(self) -> Self:
        self._live.start()
        self.show()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.board.look()
        self.show()
        self._live.stop()

    def tell(self, event: Event) -> None:
        """Show what happens to a job."""
        self.board.tell(event)
        if event.what == "stopping":
            self._note = f"{event.text}: stopping at the next step"
        elif event.what == "retried":
            self._note = f"{event.name}: {event.text}; tried once more"
        self._shown = -SCREEN_S

    def tick(self) -> None:
        """Show how far everything is, if it is time for it."""
        now = self.board.now()
        if now >= self._shown + SCREEN_S:
            self.board.look()
            self.show()
            self._shown = now

    def show(self) -> None:
        """Show the board as it is."""
        self._live.update(picture(self.board, self._note), refresh=True)


def picture(board: Board, note: str = "") -> Any:
    """Draw a board for `rich`; it fits 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    stages = Table(box=None, pad_edge=False, header_style="dim")
    stages.add_column(f"{board.study}, {clock(board.now() - board.began)}", min_width=20)
    for state in STATES:
        stages.add_column(state, justify="right", min_width=8)
    colours = {"done": "green", "running": "cyan", "failed": "bold red", "left": ""}
    for stage, counts in board.counts().items():
        cells = [Text(str(count), colours[state] if count else "dim") for state, count in counts.items()]
        stages.add_row(stage, *cells)
    parts: list[Any] = [stages]
    if board.rows:
        running = Table(box=None, pad_edge=False, header_style="dim")
        running.add_column("running", no_wrap=True, min_width=LONGEST_NAME)
        for name, width in (("epoch", 9), ("loss", 8), ("accuracy", 8), ("time left", 9)):
            running.add_column(name, justify="right", no_wrap=True, min_width=width)
        for row in board.rows[:MOST_ROWS]:
            running.add_row(Text(_short(row.name)), *row.words())
        parts += ["", running]
        more = len(board.rows) - MOST_ROWS
        parts += [Text(f"and {more} more", "dim")] * (more > 0)
    if note:
        parts += [Text(note, "yellow", overflow="ellipsis", no_wrap=True)]
    return Group(*parts)


def shown(board: Board, stream: TextIO) -> Lines | Screen:
    """Choose how to show a board: in place in a terminal, line by line elsewhere."""
    if stream.isatty():
        try:
            from rich.console import Console
        except ImportError:
            return Lines(board, stream)
        return Screen(board, Console(file=stream))
    return Lines(board, stream)


def follow(board: Board, folder: Path, stream: TextIO) -> None:
    """Show a study that others compute until all is done, or until Ctrl-C.

    Parameters
    ----------
    board : Board
        The study.
    folder : Path
        Where `lthlab run` puts its executed notebooks. Where there is none, no reports are waited for.
    stream : file
        Where to show it.
    """
    before, took = None, 0.0
    board.survey(folder)
    with shown(board, stream) as view:
        while True:
            if isinstance(view, Screen) or board.states != before:
                view.show()
            before = dict(board.states)
            waited_for = board.states if folder.exists() else board.epochs
            if all(board.states[name] == "done" for name in waited_for):
                return
            time.sleep(max(FOLLOW_S, 3 * took))
            began = board.now()
            board.survey(folder)
            took = board.now() - began


def _short(name: str) -> str:
    """A name without its stage, which is running anyway, and without its middle if it is long."""
    name, half = name.partition(".")[2] or name, (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _mean(numbers: Sequence[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
