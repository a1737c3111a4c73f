"""Which code and which versions: what git says of the package's checkout, and what happens without one."""

import getpass
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import helpers
import pytest

import lthlab
from lthlab import lab, provenance
from lthlab.provenance import _checkout

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder, *arguments):
    settings = ["-c", "init.defaultBranch=main", "-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package in it; its module."""
    monkeypatch.delenv("GIT_DIR", raising=False)
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    for name in ("module.py", "other.py"):
        (package / name).write_text("1\n")
    (package.parent / ".gitignore").write_text("runs/\n*.ignored.py\n")
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    return package / "module.py"


@needs_git
def test_the_commit_and_whether_tracked_files_were_changed(checkout):
    commit = git(checkout.parent, "rev-parse", "HEAD").strip()
    assert _checkout(checkout) == (commit, True)
    (checkout.parent / "untracked.py").write_text("1")
    (checkout.parents[1] / "runs").mkdir()
    (checkout.parents[1] / "runs" / "result").write_text("1")
    assert _checkout(checkout) == (commit, True)
    other = checkout.parent / "other.py"
    os.utime(other)
    assert _checkout(checkout) == (commit, True), "a new time is no change"
    other.write_text("2\n")
    assert _checkout(checkout) == (commit, False)
    git(checkout.parent, "add", ".")
    assert _checkout(checkout) == (commit, False)
    git(checkout.parent, "commit", "-m", "second")
    second, clean = _checkout(checkout)
    assert clean and second != commit and len(second) == 40
    git(checkout.parent, "checkout", "--detach", commit)
    assert _checkout(checkout) == (commit, True)
    other.unlink()
    assert _checkout(checkout) == (commit, False)


@needs_git
def test_an_index_is_not_written(checkout):
    os.utime(checkout)
    before = (checkout.parents[1] / ".git" / "index").stat().st_mtime_ns
    assert _checkout(checkout)[1]
    assert (checkout.parents[1] / ".git" / "index").stat().st_mtime_ns == before


@needs_git
def test_a_package_that_the_repository_does_not_track(checkout, tmp_path):
    """Such as one that is installed in an environment inside somebody's repository."""
    installed = checkout.parent / "installed.ignored.py"
    installed.write_text("1")
    assert _checkout(installed) == (None, None)
    alone = tmp_path / "module.py"
    alone.write_text("1")
    assert _checkout(alone) == (None, None)
    git(tmp_path, "init")
    git(tmp_path, "add", "module.py")
    assert _checkout(alone) == (None, None), "no commit yet"


@needs_git
def test_variables_of_git_lead_nowhere_else(checkout, tmp_path, monkeypatch):
    """Git sets them while it runs a hook."""
    expected = _checkout(checkout)
    (tmp_path / "elsewhere").mkdir()
    git(tmp_path / "elsewhere", "init")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert _checkout(checkout) == expected


@needs_git
def test_settings_of_a_repository_start_no_program(checkout, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    git(checkout.parent, "config", "core.fsmonitor", str(hook))
    git(checkout.parent, "status")
    assert (tmp_path / "ran").exists(), "this git would start it"
    (tmp_path / "ran").unlink()
    assert _checkout(checkout)[1]
    assert not (tmp_path / "ran").exists()


def test_without_git(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _checkout(checkout) == (None, None)


@pytest.mark.parametrize("script", ["exit 1", "sleep 30", "printf '\\377\\376'", "echo nonsense"])
def test_a_git_that_fails_or_hangs(script, checkout, tmp_path, monkeypatch):
    fake = tmp_path / "git"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_S", 0.3)
    began = time.monotonic()
    assert _checkout(checkout) == (None, None)
    assert time.monotonic() - began < 2


def test_versions_are_those_that_are_installed():
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    for name in ("torch", "numpy"):
        assert sys.modules[name].__version__.partition("+")[0] == found[name].partition("+")[0]
    assert provenance.code()["lthlab"] == lthlab.__version__


def test_it_is_quick_and_asked_once(checkout, monkeypatch):
    times = []
    for _ in range(5):
        began = time.perf_counter()
        _checkout(checkout)
        provenance.versions.__wrapped__()
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05
    provenance.code()
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("asked again"))
    provenance.code()


def test_it_is_stored_with_every_result_and_names_nobody(tmp_path):
    store = helpers.store(tmp_path / "runs")
    run = helpers.train(epochs=1)
    lab.compute([run], store)
    stored = store.read_json(run.key, "provenance.json")
    expected = provenance.code() | provenance.versions()
    assert {name: stored[name] for name in expected} == expected and {"commit", "clean"} <= stored.keys()
    for word in (str(Path.home()), str(tmp_path), getpass.getuser(), platform.node()):
        assert len(word) < 3 or word not in json.dumps(stored)
