"""What gives away where a text was made: paths, user names, host names, also where they are written otherwise."""

import base64
import getpass
import html
import json
import socket
import sys
from pathlib import Path

import pytest

from lthlab import machine
from lthlab.machine import leaks

HERE = "/tmp/x/J. O'Neil & <söhne>/runs"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Let names and folders be the same on every machine."""
    monkeypatch.setattr(getpass, "getuser", lambda: "jörgensen")
    monkeypatch.setattr(socket, "gethostname", lambda: "apollo7.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/h/jörgensen"))
    monkeypatch.setattr(Path, "cwd", lambda: Path("/w/lottery tickets"))


@pytest.mark.parametrize(
    "text, found",
    [
        (f"store at {HERE}", "/tmp/x/J"),
        (f"file://{HERE}", "/tmp/x/J"),
        (f"PosixPath('{HERE}')", "/tmp/x/J"),
        (f"<td>{html.escape(HERE)}</td>", "/tmp/x/J"),
        (json.dumps({"path": HERE}), "/tmp/x/J"),
        ("<td>&#47;tmp&#x2f;x</td>", "/tmp/x"),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3', "/usr/lib/python3.11/json/decoder.py"),
        ("in /w/lottery tickets.", "/w/lottery tickets"),
        ("in '/w/lottery tickets'", "/w/lottery tickets"),
        ("in /h/jörgensen", "/h/jörgensen"),
        (r"C:\Users\me\x", r"C:\Users\me"),
        (f"{sys.prefix} ", sys.prefix),
        ("../../jörgensen/runs", "user name 'jörgensen'"),
        (json.dumps("~jörgensen/runs"), "user name 'jörgensen'"),
        ("on apollo7: done", "host name 'apollo7'"),
        ("at me@Apollo7.example.org", "host name 'apollo7.example.org'"),
        ('<a href="data:text/csv;base64,{}">', "/tmp/x/J"),
        ('{{"text": "<img src=\'data:image/svg+xml;base64,{}\'>"}}', "/tmp/x/J"),
    ],
)
def test_what_gives_a_machine_away_is_found(text, found):
    packed = base64.b64encode(f"a,b\n1,{HERE}".encode()).decode()
    assert found in leaks(text.replace("{}", packed))


@pytest.mark.parametrize(
    "text",
    [
        "runs/studies/demo.json and ../params/demo.yaml, ~/tmp/x, https://a.b/tmp/x, and/or, 1 / 2, n/tmp/x",
        "jörgensen says; apollo, apollo77, apollo7-b; /w/lottery ticketsx /w/lottery",
        "<b></b>/tmp </tmp> $HOME/usr/x {root}/usr/x",
        "data:image/png;base64,/tmp/x/apollo7/AAAA= data:font/woff;base64,/usr/x",
        "[/, /tmp] a:/b",
    ],
)
def test_what_is_ordinary_is_left_alone(text):
    assert leaks(text) == []


def test_names_that_are_words_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/h/notebook"))
    for name in ("notebook", "vm", "localhost", "Network"):
        monkeypatch.setattr(getpass, "getuser", lambda name=name: name)
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        assert leaks(f"../{name}/x: the {name} of ours") == []


def test_a_user_without_a_name_or_home_has_no_name_to_give_away(monkeypatch):
    def nameless():
        raise KeyError("uid not found")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(Path, "home", homeless)
    assert leaks("../jörgensen/x") == [] and leaks("/tmp/x") == ["/tmp/x"]


def test_each_finding_is_said_once():
    assert leaks("/tmp/x /tmp/x (/tmp/x). /srv/b: ") == ["/srv/b", "/tmp/x"]
    assert machine._ordinary() >= {"notebook", "network", "localhost"}
