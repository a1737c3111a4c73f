"""Compute the small forms of the studies in params/ into one store, and make pages of a sample of their reports.

Run as `make minis`. A study on other data than digits that has no small form, one that fails, one that takes too long,
and all together taking too long are failures. What counts as the seconds of a command is its wall clock or the
processor time of its processes, whichever is less: on a quiet machine the former, and where other programs take
turns, no more than it would take alone on one core.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lthlab import spec, trees
from lthlab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = (
    "lan_fig2_lr",
    "ma_fig3_resnet20_cifar10",
    "ma_fig4_5",
    "ma_fig6",
    "morcos_fig1",
    "morcos_fig2",
    "sooner_fig1",
    "sooner_fig2",
    "sooner_fig4",
    "sooner_table2",
)
"""Studies that pages are made of; every notebook that only reads is among their reports."""
WITHOUT = {"own"}
"""Studies of networks and data sets of one's own, which the command line must be told where to find."""


class Limits(NamedTuple):
    """Seconds that one small form may take, and all together with the pages."""

    one: float = 45
    all: float = 25 * 60


class Spent(NamedTuple):
    """What a command took.

    Attributes
    ----------
    code : int
        Exit status.
    seconds : float
        What counts: the wall clock or the processor time, whichever is less.
    text : str
        What it printed.
    """

    code: int
    seconds: float
    text: str


def command(*arguments: str | Path) -> Spent:
    """Run lthlab in the repository."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "lthlab", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return Spent(child.returncode, min(time.monotonic() - began, used.ru_utime + used.ru_stime), text)


def lacking(path: Path) -> str | None:
    """Say what keeps a study from being computed in small; '' if it needs no small form, None if it has one."""
    try:
        config = spec.read(path)
    except InputError as error:
        return str(error)
    if "mini" in trees.load(trees.read(path), str(path))[0].plain:
        return None
    data = {panel.data.name for panel in config.panels} - {"digits"}
    return f"no mini, though its data is {', '.join(sorted(data))}" if data else ""


def judge(folder: Path, into: Path, sample: Collection[str], limits: Limits) -> list[str]:
    """Compute all small forms, make the pages of the sample, and say what is wrong.

    Parameters
    ----------
    folder : Path
        Studies.
    into : Path
        Folder that is removed, then made with the store `runs` and `pages`.
    sample : collection of str
        Studies that pages are made of.
    limits : Limits
        Most seconds.
    """
    shutil.rmtree(into, ignore_errors=True)
    wrong, spent, computed = [], 0.0, set()
    for path in sorted(folder.glob("*.yaml")):
        lack = "" if path.stem in WITHOUT else lacking(path)
        if lack is None:
            found = command("compute", path, "--mini", "--runs", into / "runs")
            spent += found.seconds
            print(f"{found.seconds:6.1f} s  {path.stem}", flush=True)
            if found.code:
                wrong.append(f"{path.stem} failed: {found.text[-1500:]}")
                continue
            computed.add(path.stem)
            if found.seconds > limits.one:
                wrong.append(f"{path.stem} took {found.seconds:.1f} s; allowed: {limits.one:g}")
        elif lack:
            wrong.append(f"{path.stem}: {lack}")
    for name in sample:
        if name not in computed:
            wrong.append(f"{name} of the sample was not computed")
            continue
        path = folder / f"{name}.yaml"
        reports = spec.read(path, mini=True).reports
        common: list[str | Path] = [path, "--mini", "--runs", into / "runs"]
        made = [command("run", *common, *(word for report in reports for word in ("--only", report)))]
        if not made[-1].code:
            made.append(command("publish", *common, "--to", into / "pages" / name))
        seconds = sum(item.seconds for item in made)
        spent += seconds
        print(f"{seconds:6.1f} s  pages of {name}", flush=True)
        pages = {path.stem for path in (into / "pages" / name).glob("*.html")}
        if made[-1].code or not {*reports} <= pages:
            wrong.append(f"pages of {name} failed: {made[-1].text[-1500:]}")
    if spent > limits.all:
        wrong.append(f"all together took {spent:.0f} s; allowed: {limits.all:g}")
    print(f"{spent:6.1f} s  {len(computed)} small forms, and pages of {len(sample)}")
    return wrong


def main() -> int:
    """Judge the studies of the repository."""
    began = time.monotonic()
    wrong = judge(ROOT / "params", ROOT / "build" / "minis", SAMPLE, Limits())
    print(*wrong, sep="\n")
    print(f"minis, {time.monotonic() - began:.0f} s by the clock, {len(wrong)} failures")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
