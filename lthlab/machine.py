"""What a text gives away about the machine it was made on."""

import base64
import getpass
import html
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_DATA = re.compile(r"data:([\w/+.-]*)(?:;charset=[\w-]+)?;base64,([A-Za-z0-9+/=]+)")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_ROOTS = {"Users", "Volumes", "data", "home", "mnt", "opt", "private", "root", "scratch", "srv", "tmp", "usr", "var"}
_BEFORE = r"(?:(?<=file://)|(?<![\w.~/)}$%-]))"
_AFTER = r"[^\s\"'<>|,;\\]*"
_WINDOWS = re.compile(r"\b[A-Za-z]:[\\/]{1,2}(?:Users|Windows|ProgramData|Program Files)[\\/]" + _AFTER)


def leaks(text: str) -> list[str]:
    r"""Find absolute paths, the user's name and the name of this machine in a text.

    A name that lthlab's own files use as a word, or that is shorter than four letters, cannot be told from ordinary
    text and is not looked for.

    Parameters
    ----------
    text : str
        A page, a table or a notebook as it is on disk: what HTML (`&amp;`) and JSON (``\u00f6``) write otherwise is
        seen, and so is the text within data URIs.

    Returns
    -------
    list of str
        What was found, each once, sorted: a path from its root on, or 'user name …', 'host name …'.
    """
    found: set[str] = set()
    for plain in _readings(text):
        for pattern in _places():
            found |= {match[0].rstrip(".:)") for match in pattern.finditer(plain)}
        found |= {f"user name {name!r}" for name in _users() if re.search(rf"[/\\~]{re.escape(name)}[/\\]", plain)}
        for name in _hosts():
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", plain, re.IGNORECASE):
                found.add(f"host name {name!r}")
    return sorted(found)


def _readings(text: str) -> Iterator[str]:
    """The text as readers see it, and all text that is packed into it."""
    plain = html.unescape(_ESCAPED.sub(lambda match: chr(int(match[1], 16)), _DATA.sub("", text)))
    yield plain
    for kind, data in _DATA.findall(text):
        if kind.startswith("text/") or kind in ("image/svg+xml", "application/json"):
            yield from _readings(base64.b64decode(data + "=" * (-len(data) % 4)).decode("utf-8", errors="replace"))


def _places() -> list[re.Pattern[str]]:
    roots = "|".join(map(re.escape, sorted(_ROOTS | set(os.listdir("/")))))
    known = {Path.cwd(), Path(sys.prefix)}
    with suppress(RuntimeError):
        known.add(Path.home())
    exact = "|".join(re.escape(str(place)) for place in sorted(known) if len(place.parts) > 1)
    patterns = [re.compile(rf"{_BEFORE}/(?:{roots})/{_AFTER}"), _WINDOWS]
    return [*patterns, re.compile(rf"{_BEFORE}(?:{exact})(?![\w-])")] if exact else patterns


def _users() -> list[str]:
    names = set()
    with suppress(KeyError, ImportError, OSError):
        names.add(getpass.getuser())
    with suppress(RuntimeError):
        names.add(Path.home().name)
    return sorted(name for name in names if _telling(name))


def _hosts() -> list[str]:
    full = socket.gethostname()
    return sorted(name for name in {full, full.partition(".")[0]} if _telling(name))


def _telling(name: str) -> bool:
    return len(name) >= 4 and name.lower() not in _ordinary()


@cache
def _ordinary() -> frozenset[str]:
    """Words that lthlab itself uses."""
    files = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".css", ".j2", ".json")]
    text = " ".join(path.read_text(encoding="utf-8") for path in files)
    return frozenset(re.findall(r"[a-z0-9]+", text.lower())) | {"localhost"}
