"""Reports: figures in words, findings that say what came out, limits, and provenance."""

import base64
import csv
import io
import re
from types import SimpleNamespace

import pytest
import test_plots
from test_pages import Elements

from lthlab import lab, plots, reports, results, spec
from lthlab.store import Store


def test_a_figure_has_panels_words_numbers_and_data():
    frame = test_plots.tidy()
    shown = reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr", "What it is.")
    elements = Elements(shown)
    panels = [image for image in elements.of("img") if image["alt"]]
    assert [image["alt"].partition(".  ")[0].split(" Line")[0] for image in panels] == [
        "learning rate 0.01.", "learning rate 0.2.",
    ]  # fmt: skip
    assert all("n = 4 replicates." in image["alt"] for image in panels)
    swatches = [image for image in elements.of("img") if not image["alt"]]
    assert all(image["role"] == "presentation" for image in swatches) and len(swatches) == 6
    assert "What it is. Points are means over n = 4 replicates" in elements.text
    (link,) = [link for link in elements.of("a") if "download" in link]
    assert link["download"] == "accuracy_by_sparsity.csv"
    kind, _, data = link["href"].partition(",")
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))
    assert kind == "data:text/csv;base64" and [float(row["value"]) for row in rows] == list(frame["value"])
    table = _table(shown)
    summary = results.summarise(frame, ["ticket", "method", "level", "eval_lr"])
    assert sorted(float(row["mean (%)"]) for row in table) == sorted(round(100 * m, 2) for m in summary["mean"])
    assert {row["n"] for row in table} == {"4"}


def _table(shown: str) -> list[dict]:
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", shown, re.DOTALL)]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_dense_networks_are_in_the_panel_of_every_level():
    shown = reports.figure(plots.accuracy_by_lr, test_plots.tidy(), "level")
    panels = [image["alt"] for image in Elements(shown).of("img") if image["alt"]]
    assert [text.partition(".  ")[0].split(" (")[0] for text in panels] == ["level 4", "level 8", "level 12"]
    assert all(" dense " in text and "LT on IMP masks" in text for text in panels)


def test_panels_share_one_scale(monkeypatch):
    limits = []
    monkeypatch.setattr(reports, "_svg", lambda drawing: limits.extend(ax.get_ylim() for ax in drawing.axes) or b"")
    frame = test_plots.tidy()
    frame["value"] = frame["value"].where(frame["eval_lr"] == 0.2, frame["value"] / 3)
    reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr")
    assert len(limits) == 2 and len(set(limits)) == 1


def test_equal_rows_give_equal_figures():
    first, second = (reports.figure(plots.correlation_by_lr, test_plots.tidy("x"), "level") for _ in range(2))
    assert first == second and repr(first) != first and first._repr_html_() == first


@pytest.mark.parametrize(
    "shift, said", [(0.1, "+10.0 [+7.1, +12.9]"), (-0.1, "−10.0 [−12.9, −7.1]"), (0.0, "we did not see a difference")]
)
def test_the_finding_is_what_came_out(shift, said):
    frame = test_plots.tidy()
    noise = dict(zip(range(4), [0.01, -0.01, 0.02, -0.02], strict=True))
    values = [0.8 + (shift + noise[r]) * (t == "LT") for t, r in zip(frame["ticket"], frame["replicate"], strict=True)]
    text = reports.finding(frame.assign(value=values))
    assert "At level 12, where 6.87 % of the prunable weights remain, LT minus RR on IMP masks was" in text
    assert said in text and "n = 4 replicates" in text and ("did not see" in text) == (shift == 0)
    assert reports.finding(frame.assign(status="missing")).startswith('<p class="finding">No pair of LT and RR on IMP')


def test_limits_name_what_is_missing():
    config = SimpleNamespace(
        data=SimpleNamespace(name="d", facts=SimpleNamespace(test=500)), net=SimpleNamespace(name="n<m"),
        recipes=(1, 2), protocol=SimpleNamespace(report="last"),
    )  # fmt: skip
    frame = test_plots.tidy().assign(note=None)
    text = reports.limits(config, frame)
    assert "one image is 0.2 percentage points" in text and "n = 4 replicates" in text and "n&lt;m" in text
    assert f"{len(frame)} done" in text and "Nothing is missing or failed" in text
    frame.loc[3, ["status", "note"]] = "diverged", "loss not finite in epoch 2 <b>"
    text = reports.limits(config, frame)
    assert f"{len(frame) - 1} done, 1 diverged" in text and "Nothing is missing" not in text
    assert "loss not finite in epoch 2 &lt;b&gt;" in text


def test_provenance_says_how_to_make_it_again(tmp_path):
    study = tmp_path / "small.yaml"
    study.write_text(
        "name: small\ntitle: A < B\nnet: lenet_300_100\ndata: digits\nreplicates: 2\n"
        "find: {epochs: 1, batch_size: 64, lr: 0.1}\n"
    )
    config, store = spec.read(study), Store(tmp_path / "runs")
    lab.compute_study(config, store, "cpu")
    text = reports.provenance(config, store, results.load(store, "small"), "../params/small.yaml")
    for words in (
        "small: A &lt; B", "lthlab compute params/small.yaml", "the seeds are the numbers of the replicates, 0 to 1",
        config.data.facts.fingerprint, "lr 0.1", "cpu", "prunable set: all_but_head", "torch 2.",
    ):  # fmt: skip
        assert words in text
    assert "gamma" not in text and "betas" not in text
