"""The progress line, signs of life, and what makes computing stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lthlab import progress
from lthlab.progress import Bar, stopping


@pytest.fixture
def handlers():
    """Handlers of the signals before and after a test are the same."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(name) for name in names]
    yield
    assert [signal.getsignal(name) for name in names] == before


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


# --- stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, reason", [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_noted(number, reason, handlers):
    with stopping() as wish:
        assert not wish() and wish.reason is None
        os.kill(os.getpid(), number)
        assert wish() and wish.reason == reason


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_interrupts(first, handlers):
    with pytest.raises(KeyboardInterrupt), stopping() as wish:
        os.kill(os.getpid(), first)
        assert wish()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_a_second_sigterm_ends_the_process():
    code = (
        "import os, signal\nfrom lthlab.progress import stopping\nwith stopping() as wish:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print(wish.reason, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('lives')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM\n")


def test_a_deadline(handlers, clock):
    with stopping(10) as wish:
        clock[0] += 9.9
        assert not wish() and wish.reason is None
        clock[0] += 0.1
        assert wish() and wish.reason == "time"
        os.kill(os.getpid(), signal.SIGTERM)
        assert wish.reason == "time"


def test_without_a_deadline_time_does_not_matter(handlers, clock):
    with stopping() as wish:
        clock[0] += 1e9
        assert not wish()


def test_handlers_are_put_back_also_after_an_error(handlers):
    with pytest.raises(RuntimeError), stopping():
        raise RuntimeError


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as wish:
            os.kill(os.getpid(), signal.SIGINT)
            assert not wish()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_only_the_time_counts(handlers):
    found = []

    def run():
        with stopping(0) as wish:
            found.append((wish(), wish.reason, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(True, "time", signal.getsignal(signal.SIGTERM))]


# --- the bar --------------------------------------------------------------------------------------------------


def test_a_bar_asks_a_few_times_a_second_and_stays_at_yes(clock):
    answers = [False, False, True]
    asked = []

    def stop():
        asked.append(clock[0])
        return answers[len(asked) - 1]

    bar, found = Bar(stop), []
    for _ in range(1000):
        clock[0] += 0.001
        found.append(bar.stop())
    assert found.index(True) == len(found) - found.count(True) and len(asked) == 3
    assert 0.19 < asked[1] - asked[0] < 0.21
    assert not Bar().stop()


def test_a_bar_obeys_the_stop_file_and_gives_signs_of_life(tmp_path, monkeypatch, clock):
    stop, alive = tmp_path / "stop", tmp_path / "alive"
    assert not Bar(None).stop()
    monkeypatch.setenv("LTHLAB_STOP", str(stop))
    monkeypatch.setenv("LTHLAB_ALIVE", str(alive))
    bar = Bar()
    assert not bar.stop() and alive.exists()
    touched = 0
    for _ in range(50):
        clock[0] += 0.1
        alive.unlink(missing_ok=True)
        assert not bar.stop()
        touched += alive.exists()
    assert 4 <= touched <= 6
    stop.write_text("stop")
    clock[0] += 1
    assert bar.stop()
    stop.unlink()
    assert bar.stop() and not Bar().stop()
    monkeypatch.setenv("LTHLAB_ALIVE", str(tmp_path / "gone" / "alive"))
    assert not Bar().stop()


def test_a_quick_question(monkeypatch):
    bar, count = Bar(lambda: False), 20000
    began = time.perf_counter()
    for _ in range(count):
        bar.stop()
    assert (time.perf_counter() - began) / count < 20e-6


def test_the_line(capsys, monkeypatch):
    bar = Bar(lambda: True)
    bar.begin(3, 1, 2, 4)
    bar.advance(1, 0)
    bar.advance(1, 1)
    assert bar._bar is not None
    assert bar.stop() and bar._bar is None, "the line is closed before the message that follows"
    bar.advance(1, 1)
    bar.begin(3, 3, 2, 0)
    err = capsys.readouterr().err
    assert "1 of 3 trainings done, 2 more shared" in err and err.endswith(
        "3 of 3 trainings done, 2 more shared: nothing to train\n"
    )
    assert progress.LOOK_S <= 0.5
