"""The live view: what it counts, how far it says things are, and that it fits a terminal."""

import io
import json
import os
import time

import pytest
from rich.console import Console

from lthlab import results, watch
from lthlab.jobs import Event, Outcome
from lthlab.store import Store
from lthlab.watch import Board, Lines, Screen, follow, picture, shown

FIND, EVALUATE = "find_tickets.lenet_300_100.digits", "evaluate_tickets.lenet_300_100.digits"
LONG = "evaluate_tickets.resnet20.digits.find_lr-0.05.eval_lr-0.1.replicate-3"
GROUP = "f" * 32


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def key(number):
    return f"{number:032x}"


def role(configuration, number, what="train", epochs=20):
    return {"key": key(number), "configuration": configuration, "what": what, "eval_epochs": epochs}


@pytest.fixture
def store(tmp_path):
    """A store with the table of a study: 3 trainings and a mask in one configuration, 2 and 1 in others."""
    made = Store(tmp_path)
    roles = [role(FIND, 1), role(FIND, 2), role(FIND, 3), role(FIND, 4, "mask")]
    roles += [role(EVALUATE, 1), role(EVALUATE, 5), role(LONG, 6, epochs=160)]
    made.write_study("demo", {"reports": ["winning_tickets"], "roles": roles})
    return made


@pytest.fixture
def training(store):
    """Say how far a group of trainings is, as one that is on its way."""
    claims = [store.claim(GROUP)]

    def tell(epoch, *numbers, epochs=20, **fields):
        runs = {key(number): fields or {"loss": 0.5, "accuracy": 0.75} for number in numbers}
        line = {"time": time.time(), "pid": os.getpid(), "iteration": 4 * epoch, "end": 4 * epochs}
        store.append_progress(GROUP, json.dumps(line | {"epoch": epoch, "epochs": epochs, "runs": runs}))

    yield tell
    for claim in claims:
        claim.release()


def commit(store, number):
    record = {"kind": "train", "from": 0, "until": 80, "end": 80, "keep": [], "diverged": None, "inputs": {}}
    store.commit(key(number), 0, {"metrics.jsonl": b""}, record)


def outcome(name, status="done", **fields):
    return Event("ended", name, outcome=Outcome(name, status, **fields))


def test_counts_follow_the_jobs(store):
    board = Board("demo", store, done=[FIND])
    assert list(board.counts()) == ["find_tickets", "evaluate_tickets", "reports"]
    assert board.counts()["find_tickets"] == {"done": 1, "running": 0, "failed": 0, "left": 0}
    board.tell(Event("started", EVALUATE))
    board.tell(Event("retried", EVALUATE, "no sign of life"))
    board.tell(Event("started", LONG))
    assert board.counts()["evaluate_tickets"] == {"done": 0, "running": 2, "failed": 0, "left": 0}
    board.tell(Event("stopping", text="SIGTERM"))
    for name, status in ((EVALUATE, "died"), (LONG, "stopped"), ("winning_tickets", "skipped")):
        board.tell(outcome(name, status))
    assert board.counts()["evaluate_tickets"] == {"done": 0, "running": 0, "failed": 1, "left": 1}
    assert board.counts()["reports"]["left"] == 1


def test_only_what_is_asked_for_is_shown(store):
    board = Board("demo", store, names=[EVALUATE])
    assert board.counts() == {"evaluate_tickets": {"done": 0, "running": 0, "failed": 0, "left": 1}}


def test_how_far_a_configuration_is(store, training):
    clock = Clock()
    board = Board("demo", store, now=clock)
    board.tell(Event("started", FIND))
    board.look()
    [row] = board.rows
    assert (row.name, row.words()) == (FIND, ("", "", "", ""))
    training(4, 1, 2, loss=0.25, accuracy=0.5)
    clock.seconds += 8
    board.look()
    [row] = board.rows
    assert (row.epoch, row.epochs, row.loss, row.accuracy) == (4, 20, 0.25, 0.5)
    assert row.left_s == pytest.approx(52)  # 8 of 60 epochs in 8 seconds
    commit(store, 1)
    commit(store, 2)
    training(10, 3, diverged=3)
    clock.seconds += 12
    board.look()
    [row] = board.rows
    assert (row.loss, row.accuracy, row.left_s) == (None, None, pytest.approx(10 * 20 / 50))
    assert row.words() == ("10/20", "", "", "0:00:04")
    board.tell(Event("started", LONG))
    board.look()
    clock.seconds += 60  # a kernel that starts slowly
    board.look()
    training(40, 6, epochs=160)
    clock.seconds += 4
    board.look()
    assert [row.left_s for row in board.rows if row.name == LONG] == [pytest.approx(12)]
    board.tell(outcome(LONG))
    board.tell(outcome(FIND))
    board.look()
    assert board.rows == []


def test_a_shared_training_counts_where_it_is_needed(store, training):
    board = Board("demo", store, now=Clock())
    board.tell(Event("started", EVALUATE))
    board.tell(Event("started", LONG))
    training(3, 1, 2)
    board.look()
    assert [(row.name, row.epoch) for row in board.rows] == [(EVALUATE, 3), (LONG, 0)]


def test_a_group_that_nobody_trains_is_not_shown(store, training):
    training(3, 1)
    store.sweep(keep=[GROUP])
    board = Board("demo", store)
    board.tell(Event("started", FIND))
    claim = store.claim(key(1))
    board.look()
    assert board.rows[0].epoch == 3
    claim.release()


def test_lines_where_there_is_no_terminal(store, training):
    stream, clock = io.StringIO(), Clock()
    board = Board("demo", store, done=[EVALUATE], now=clock)
    with shown(board, stream) as view:
        assert isinstance(view, Lines)
        view.tell(Event("started", FIND))
        training(4, 1, 2, 3)
        clock.seconds += 61
        view.tick()
        view.tick()
        view.tell(outcome(FIND, "failed", seconds=61.4, error="ValueError", message="no"))
        view.tell(Event("stopping", text="SIGTERM"))
        view.tell(outcome(LONG, "stopped", message="SIGTERM"))
        view.tell(outcome("winning_tickets", "skipped", message="needs 'a', which is failed"))
    assert stream.getvalue().splitlines() == [
        f"0:00:00 {FIND} started",
        "0:01:01 find_tickets: 1 running",
        "0:01:01 evaluate_tickets: 1 done, 1 left",
        "0:01:01 reports: 1 left",
        f"0:01:01 {FIND} epoch 4/20, loss 0.5000, accuracy 75.0 %",
        f"0:01:01 {FIND} failed after 0:01:01: ValueError: no",
        "0:01:01 stopping: SIGTERM",
        "0:01:01 winning_tickets skipped: needs 'a', which is failed",
    ]


def test_the_picture_fits_80_columns(store, training):
    console = Console(record=True, width=80, file=io.StringIO())
    clock = Clock()
    board = Board("demo", store, now=clock)
    board.tell(Event("started", LONG))
    board.tell(Event("started", FIND))
    board.tell(outcome(EVALUATE, "failed"))
    board.look()
    training(120, 6, epochs=160, loss=12.5, accuracy=1.0)
    clock.seconds += 7384
    board.look()
    console.print(picture(board, "a note that is far too long for one line " * 3))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    # Versions of rich space columns differently.
    assert [" ".join(line.split()) for line in lines] == [
        "demo, 2:03:04 done running failed left",
        "find_tickets 0 1 0 0",
        "evaluate_tickets 0 1 1 0",
        "reports 0 0 0 1",
        "",
        "running epoch loss accuracy time left",
        "lenet_300_100.digits",
        "resnet20.digits.f…r-0.1.replicate-3 120/160 12.5000 100.0 % 0:41:01",
        "a note that is far too long for one line a note that is far too long for one li…",
    ]


def test_a_screen_stays_in_its_place(store):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    clock = Clock()
    board = Board("demo", store, now=clock)
    with Screen(board, console) as view:
        shown = len(console.file.getvalue())
        view.tick()
        assert len(console.file.getvalue()) > shown
        shown = len(console.file.getvalue())
        view.tick()
        assert len(console.file.getvalue()) == shown
        view.tell(Event("retried", FIND, "no sign of life for 3600 s"))
        view.tick()
        assert "no sign of life for 3600 s; tried once more" in console.file.getvalue()
        view.tell(Event("stopping", text="SIGINT"))
        view.tick()
        assert "SIGINT: stopping at the next step" in console.file.getvalue()
        assert "\x1b[2J" not in console.file.getvalue()


def test_many_running_configurations_are_cut_short(tmp_path):
    store = Store(tmp_path)
    names = [f"find_tickets.a.{number}" for number in range(20)]
    store.write_study("many", {"reports": [], "roles": [role(name, n) for n, name in enumerate(names)]})
    board = Board("many", store)
    for name in names:
        board.tell(Event("started", name))
    board.look()
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(picture(board))
    assert "and 8 more" in console.export_text()
    assert len(console.export_text().splitlines()) < 24


# --- from another terminal ------------------------------------------------------------------------------------


def test_a_survey_reads_the_store(store, training, tmp_path, monkeypatch):
    found = {key(number): "missing" for number in range(1, 7)}
    monkeypatch.setattr(results, "statuses", lambda store, keys: {name: found[name] for name in keys})
    folder = tmp_path / "notebooks"
    folder.mkdir()
    board = Board("demo", store)
    board.survey(folder)
    assert set(board.states.values()) == {"left"}
    training(4, 1, 2)
    board.survey(folder)
    assert board.states == {FIND: "running", EVALUATE: "running", LONG: "left", "winning_tickets": "left"}
    assert {row.name for row in board.rows} == {FIND, EVALUATE}
    found |= dict.fromkeys(list(found)[:5], "done")
    (folder / f"{LONG}.failed.ipynb").write_text("")
    board.survey(folder)
    assert board.states == {FIND: "done", EVALUATE: "done", LONG: "failed", "winning_tickets": "left"}
    found[key(6)] = "blocked"
    for name, changed in ((LONG, 100), ("winning_tickets", 50)):
        (folder / f"{name}.ipynb").write_text("")
        os.utime(folder / f"{name}.ipynb", (changed, changed))
    board.survey(folder)
    assert (board.states[LONG], board.states["winning_tickets"]) == ("failed", "left")
    (folder / f"{LONG}.failed.ipynb").unlink()
    board.survey(folder)
    assert (board.states[LONG], board.states["winning_tickets"]) == ("done", "left")
    os.utime(folder / "winning_tickets.ipynb", (150, 150))
    board.survey(folder)
    assert set(board.states.values()) == {"done"}


def test_what_somebody_executes_is_running_before_it_trains_and_between(store, tmp_path):
    board = Board("demo", store)
    with store.claim(watch.mark("demo", LONG)), store.claim(watch.mark("demo", "winning_tickets")):
        assert watch.at_work("demo", store) == [LONG, "winning_tickets"]
        board.survey(tmp_path)
    assert [name for name, state in board.states.items() if state == "running"] == [LONG, "winning_tickets"]
    with store.claim(key(1)):
        assert watch.at_work("demo", store) == [FIND]
    assert watch.at_work("demo", store) == []


def test_the_first_picture_of_what_is_done_shows_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "statuses", lambda store, keys: dict.fromkeys(keys, "done"))
    console, frames = Console(file=io.StringIO(), force_terminal=True, width=80), []
    monkeypatch.setattr(watch, "shown", lambda board, stream: Screen(board, console))
    monkeypatch.setattr(Screen, "show", lambda self: frames.append(dict(self.board.states)))
    follow(Board("demo", store), tmp_path / "none", io.StringIO())
    assert [frame[FIND] for frame in frames] == ["done"] * len(frames)


@pytest.mark.parametrize("notebooks", [True, False])
def test_following_ends_when_all_is_done(store, tmp_path, monkeypatch, notebooks):
    found, looks = {key(number): "missing" for number in range(1, 7)}, []

    def statuses(store, keys):
        looks.append(len(keys))
        if len(looks) == 4:
            found.update(dict.fromkeys(found, "done"))
        if len(looks) == 7 and notebooks:
            (folder / "winning_tickets.ipynb").write_text("")
        return {name: found[name] for name in keys}

    monkeypatch.setattr(results, "statuses", statuses)
    monkeypatch.setattr(watch, "FOLLOW_S", 0)
    folder = tmp_path / "notebooks"
    if notebooks:
        folder.mkdir()
    stream = io.StringIO()
    follow(Board("demo", store), folder, stream)
    assert len(looks) == 3 * (3 if notebooks else 2)
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert lines[:3] == ["find_tickets: 1 left", "evaluate_tickets: 2 left", "reports: 1 left"]
    assert lines[-3:-1] == ["find_tickets: 1 done", "evaluate_tickets: 2 done"]
    assert lines[-1] == ("reports: 1 done" if notebooks else "reports: 1 left")
