"""`make minis` computes every small form and notices what is wrong with one."""

import minis
import pytest
from minis import Limits

from lthlab import spec, studies

BASE = """
net: lenet_300_100
data: {name: cifar10}
find: {epochs: 160, batch_size: 128, lr: 0.1}
"""
MINI = "mini: {data: {name: digits, train_size: 40}, find: {epochs: 1, batch_size: 20}}\n"
PARAMS = studies.find("demo").parent


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}", encoding="utf-8")


def test_a_failing_a_missing_and_a_slow_small_form_are_noticed(tmp_path, capsys):
    folder, into = tmp_path / "params", tmp_path / "minis"
    write(folder, "sound", BASE + MINI)
    write(folder, "on_digits", BASE.replace("cifar10", "digits"))
    (into / "runs").mkdir(parents=True)
    (into / "runs" / "left").touch()
    assert minis.judge(folder, into, [], Limits(one=45, all=90)) == []
    assert not (into / "runs" / "left").exists(), "what was there is still there"
    said = capsys.readouterr().out
    assert " s  sound\n" in said and "on_digits" not in said and "1 small forms" in said

    write(folder, "lacking", BASE)
    write(folder, "broken", BASE + MINI.replace("epochs", "epoch"))
    write(folder, "failing", BASE + MINI.replace("digits", "svhn"))  # is not installed
    wrong = minis.judge(folder, into, ["lacking"], Limits(one=0.01, all=0.01))
    found = {text.split(":")[0].removeprefix(f"{folder}/"): text for text in wrong}
    assert found["lacking"] == "lacking: no mini, though its data is cifar10"
    assert "unknown field" in found["broken"] and "svhn" in found["failing failed"]
    assert [name for name in found if "took" in name] == [
        name for name in found if name.endswith(("01", " s; allowed"))
    ]
    assert sum("took" in text for text in wrong) == 2 and "lacking of the sample was not computed" in wrong
    assert len(wrong) == 6


def test_the_less_of_clock_and_processor_time_counts(monkeypatch):
    found = minis.command("--version")
    assert found.code == 0 and 0 < found.seconds < 30 and found.text
    clock = iter([0.0, 0.001])
    monkeypatch.setattr(minis.time, "monotonic", lambda: next(clock))
    assert minis.command("--version").seconds == pytest.approx(0.001)
    clock = iter([0.0, 1e9])
    assert 0 < minis.command("--version").seconds < 60


@pytest.mark.parametrize("failing", ["", "run", "publish", "no page"])
def test_pages_of_the_sample_that_fail_or_are_not_there_are_noticed(failing, tmp_path, monkeypatch, capsys):
    folder, into = tmp_path / "params", tmp_path / "minis"
    write(folder, "paged", BASE + "prune: {levels: [4]}\nreports: [winning_tickets, explore]\n" + MINI)

    def command(what, path, *options):
        if what == "publish" and failing != "no page":
            made = into / "pages" / "paged"
            made.mkdir(parents=True)
            for name in ("index", "winning_tickets", "explore"):
                (made / f"{name}.html").touch()
        asked.append((what, path.stem, *map(str, options)))
        return minis.Spent(int(what == failing), 10.0, f"said by {what}")

    asked = []
    monkeypatch.setattr(minis, "command", command)
    wrong = minis.judge(folder, into, ["paged"], Limits(one=10, all=30))
    last = "run" if failing == "run" else "publish"
    assert wrong == ([f"pages of paged failed: said by {last}"] if failing else [])
    common = ("paged", "--mini", "--runs", str(into / "runs"))
    assert asked[:2] == [("compute", *common), ("run", *common, "--only", "winning_tickets", "--only", "explore")]
    assert asked[2:] == ([] if failing == "run" else [("publish", *common, "--to", str(into / "pages" / "paged"))])
    assert "pages of paged" in capsys.readouterr().out


def test_the_sample_has_every_report_and_ten_studies():
    small = [spec.read(PARAMS / f"{name}.yaml", mini=True) for name in minis.SAMPLE]
    names = {path.stem for path in PARAMS.glob("*.yaml")} - minis.WITHOUT
    reports = {report for name in names for report in spec.read(PARAMS / f"{name}.yaml").reports}
    assert {report for config in small for report in config.reports} == reports and len(small) == 10
