"""Reports: figures in words, findings that say what came out, limits, and provenance."""

import base64
import csv
import io
import json
import re
from collections import Counter
from types import SimpleNamespace
from xml.etree import ElementTree

import helpers
import numpy as np
import pandas as pd
import pytest
import test_plots
from matplotlib.figure import Figure
from test_pages import Elements

from lthlab import correlations, lab, markup, plots, reports, results, spec
from lthlab.errors import InputError
from lthlab.store import Store

TEXT = """
name: two
net: [lenet_300_100, {name: resnet8, width: 4}]
data: digits
replicates: 2
find: {epochs: 2, batch_size: 64, lr: [0.1, 0.2]}
prune: {levels: [1, 2]}
tickets: {LT: {}, RR: {}, WR: {methods: IMP, rewind: 1ep}, SDT: {}, RT: {methods: IMP}}
"""
STUDY = spec.parse(TEXT)


def test_a_figure_has_facets_words_numbers_and_data():
    frame = test_plots.tidy()
    shown = reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr", "What it is.")
    elements = Elements(shown)
    drawn = [image for image in elements.of("img") if image["alt"]]
    assert [image["alt"].split(" Line")[0] for image in drawn] == [
        "n on d, learning rate 0.01.", "n on d, learning rate 0.2.",
    ]  # fmt: skip
    assert all("n = 4 replicates." in image["alt"] for image in drawn)
    swatches = [image for image in elements.of("img") if not image["alt"]]
    assert all(image["role"] == "presentation" for image in swatches) and len(swatches) == 8
    assert "n on d. What it is. Points are means over n = 4 replicates" in elements.text
    (link,) = [link for link in elements.of("a") if "download" in link]
    assert link["download"] == "accuracy_by_sparsity_n_on_d.csv"
    rows = downloaded(link)
    assert [float(row["value"]) for row in rows] == list(frame["value"])
    table = _table(shown)
    summary = results.summarise(frame, ["ticket", "method", "level", "eval_lr"])
    assert sorted(float(row["mean (%)"]) for row in table) == sorted(round(100 * m, 2) for m in summary["mean"])
    assert {row["n"] for row in table} == {"4"}


def test_numbers_tell_masks_with_imposed_counts_from_those_without():
    """None is a value of what tells tickets of one kind apart, and none of what sets tickets apart from the dense."""
    frame = test_plots.tidy()
    again = frame[frame["ticket"] == "LT"].assign(layer_counts="lr 0.01", value=0.5)
    table = _table(reports.figure(plots.accuracy_by_sparsity, pd.concat([frame, again]), "eval_lr", "It."))
    assert {row["layer_counts"] for row in table if row["mean (%)"] == "50.00"} == {"lr 0.01"}
    assert len(table) == len(frame.drop_duplicates(["ticket", "method", "level", "eval_lr"])) + len(
        again.drop_duplicates(["ticket", "method", "level", "eval_lr"])
    )


def test_findings_are_told_for_every_way_in_which_masks_were_found():
    frame = test_plots.tidy().assign(prune_at=None, layer_counts=None)
    frame.loc[frame["method"].notna(), "prune_at"] = "last"
    early = frame[frame["method"] == "IMP"].assign(prune_at="1ep")
    both = pd.concat([frame, early, early.assign(layer_counts="lr 0.01")], ignore_index=True)
    text = Elements(reports.finding(both)).text
    assert [text.count(words) for words in ("n on d (ranked at last)", "(ranked at 1ep)", "of lr 0.01)")] == [1, 1, 1]
    measured = both.assign(what="correlation_indicator", metric="correlation_indicator", chance=0.1, reading="own")
    measured = measured.assign(p=0.1, measured_epoch=2.0, panel="n.d")
    text = Elements(correlations.finding(measured)).text
    assert [text.count(f"LT ({words}) 0") for words in ("ranked at last", "ranked at 1ep")] == [1, 1]


def downloaded(link: dict) -> list[dict]:
    kind, _, data = link["href"].partition(",")
    assert kind == "data:text/csv;base64"
    return list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))


def test_the_caption_says_where_intervals_are_cut():
    frame = test_plots.tidy().assign(value=lambda rows: 0.9 + rows["value"] / 50)
    assert "are cut" not in reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr")
    frame.loc[frame.index[frame["ticket"] == "SDT"][0], "value"] = 0.3
    assert "Intervals that leave the frame are cut." in reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr")


@pytest.mark.parametrize(
    "value, text", [(-0.04, "+0.0"), (0.0, "+0.0"), (-0.06, "−0.1"), (1.25, "+1.2"), (9.96, "+10.0")]
)
def test_differences_have_a_sign_and_zero_none_below(value, text):
    assert markup.signed(value, 1) == text


def test_every_panel_has_a_figure_that_names_it():
    frame = helpers.frame_of(STUDY)
    trained = frame[(frame["what"] == "train") & (frame["ticket"] != "search")]
    shown = reports.figure(plots.accuracy_by_sparsity, trained, "eval_lr", "What it is.")
    elements = Elements(shown)
    assert len(elements.of("figure")) == 2
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    for caption, name in zip(captions, ("lenet_300_100", "resnet8 (width 4)"), strict=True):
        assert caption.startswith(f"{name} on digits. What it is. Points are means over n = 2 replicates")
    links = [link for link in elements.of("a") if "download" in link]
    for link, name in zip(links, ("lenet_300_100", "resnet8"), strict=True):
        assert {row["network"] for row in downloaded(link)} == {name}
    assert [link["download"] for link in links] == [
        "accuracy_by_sparsity_lenet_300_100_on_digits.csv", "accuracy_by_sparsity_resnet8_width_4_on_digits.csv",
    ]  # fmt: skip
    alternatives = [image["alt"] for image in elements.of("img") if image["alt"]]
    assert [text.split(",")[0] for text in alternatives] == [
        *["lenet_300_100 on digits"] * 2, *["resnet8 (width 4) on digits"] * 2,
    ]  # fmt: skip
    assert all(word in text for text in alternatives for word in ("SDT ", "RT on permuted IMP masks ", "WR on IMP"))


def test_masks_found_at_several_learning_rates_are_not_mixed():
    config = spec.parse(TEXT.replace("prune", "eval: {lr: [0.3, 0.4]}\nprune"))
    frame = helpers.frame_of(config)
    trained = frame[(frame["what"] == "train") & (frame["ticket"] != "search") & (frame["network"] == "resnet8")]
    for draw, facets in ((plots.accuracy_by_sparsity, "eval_lr"), (plots.accuracy_by_lr, "level")):
        titles = [
            i["alt"].split(". ")[0] for i in Elements(reports.figure(draw, trained, facets)).of("img") if i["alt"]
        ]
        assert len(titles) == 4 and all("mask found at 0.1" in t or "mask found at 0.2" in t for t in titles)


def test_what_is_not_done_is_said_in_place_of_a_drawing():
    frame = test_plots.tidy()
    half = frame.assign(
        status=frame["status"].where((frame["eval_lr"] == 0.2) | (frame["ticket"] == "dense"), "failed")
    )
    shown = reports.figure(plots.accuracy_by_sparsity, half, "eval_lr")
    assert len([image for image in Elements(shown).of("img") if image["alt"]]) == 1
    assert "Nothing is done yet at learning rate 0.01." in shown
    nothing = reports.figure(plots.accuracy_by_sparsity, frame.assign(status="missing"), "eval_lr")
    assert nothing == '<p class="nothing">n on d: Nothing is done yet at learning rate 0.01 and learning rate 0.2.</p>'
    assert "nothing to draw" in reports.figure(plots.accuracy_by_lr, frame[:0], "level")


def _table(shown: str) -> list[dict]:
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", shown, re.DOTALL)]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_dense_networks_are_in_the_drawing_of_every_level():
    shown = reports.figure(plots.accuracy_by_lr, test_plots.tidy(), "level")
    panels = [image["alt"] for image in Elements(shown).of("img") if image["alt"]]
    assert [text.split(", ")[1].split(" (")[0] for text in panels] == ["level 4", "level 8", "level 12"]
    assert all(" dense " in text and "LT on IMP masks" in text for text in panels)


def test_panels_share_one_scale(monkeypatch):
    limits = []
    monkeypatch.setattr(reports, "svg", lambda drawing: limits.extend(ax.get_ylim() for ax in drawing.axes) or b"")
    frame = test_plots.tidy()
    frame["value"] = frame["value"].where(frame["eval_lr"] == 0.2, frame["value"] / 3)
    reports.figure(plots.accuracy_by_sparsity, frame, "eval_lr")
    assert len(limits) == 2 and len(set(limits)) == 1


def test_equal_rows_give_equal_figures():
    first, second = (reports.figure(plots.correlation_by_lr, test_plots.tidy("x"), "level") for _ in range(2))
    assert first == second and repr(first) != first and first._repr_html_() == first


@pytest.mark.parametrize(
    "shift, said",
    [
        (0.1, "we saw a difference at 2 of 2 learning rates, +10.0 [+7.1, +12.9] at learning rate 0.01 and +10.0 ["),
        (-0.1, "we saw a difference at 2 of 2 learning rates, −10.0 [−12.9, −7.1] at learning rate 0.01 and −10.0 ["),
        (
            0.0,
            "we did not see a difference at any of 2 learning rates, where it is +0.0 (intervals within −2.9 to +2.9)",
        ),
    ],
)
def test_the_finding_is_what_came_out(shift, said):
    frame = test_plots.tidy()
    noise = dict(zip(range(4), [0.01, -0.01, 0.02, -0.02], strict=True))
    values = [0.8 + (shift + noise[r]) * (t == "LT") for t, r in zip(frame["ticket"], frame["replicate"], strict=True)]
    frame["value"] = values
    text = reports.finding(frame)
    assert "n on d, level 12 (6.87 % of the prunable weights left): LT minus RR on IMP masks (in points, paired" in text
    assert said in text and "n = 4 replicates" in text and ("did not see" in text) == (shift == 0)
    one = reports.finding(frame[frame["eval_lr"] == 0.2])
    assert f"replicates): {signed(shift)} [" in one and ("; we did not see a difference." in one) == (shift == 0)
    alone = reports.finding(frame[frame["replicate"] == 0])
    assert f"n = 1 replicate): {signed(shift + 0.01)} at 2 learning rates; one replicate gives no interval" in alone
    assert "n on d: no pair of LT and RR on IMP masks is done" in reports.finding(frame.assign(status="missing"))
    assert "No pair of LT and RR on IMP masks is done" in reports.finding(frame[frame["ticket"] != "RR"][:0])


def signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def crossed(means: dict) -> pd.DataFrame:
    """LT and RR on masks found at one learning rate and trained at another, by the mean of their difference."""
    rows = [
        test_plots.at_rate(test_plots.tidy()).assign(
            find_lr=find, eval_lr=lr, value=lambda r, m=mean: 0.5 + (m + r["replicate"] / 100) * (r["ticket"] == "LT")
        )
        for (find, lr), mean in means.items()
    ]
    return pd.concat(rows, ignore_index=True).assign(key=lambda rows: [f"{i:032x}" for i in rows.index])


def test_the_finding_names_the_cells_with_a_difference_and_the_range_of_the_others():
    grid = (0.01, 0.1, 0.2)
    means = {(find, lr): -0.015 for find in grid for lr in grid}
    frame = crossed(means | {(0.2, 0.1): -0.2})
    text = reports.finding(pd.concat([frame, frame.assign(network="m")]))
    assert text.count('<p class="finding">') == 1 and text.count("<br>") == 1
    for sentence, name in zip(re.split("<br>", text), ("n on d", "m on d"), strict=True):
        assert f"{name}, level 12" in sentence and sentence.count("mask found") == 1
        assert "we saw a difference at 1 of 9 pairs of learning rates, −18.5 [" in sentence
        assert (
            "at learning rate 0.1 (mask found at 0.2); we did not see one at the other 8, where it is +0.0" in sentence
        )
    many = reports.finding(crossed({place: 0.1 + number / 100 for number, place in enumerate(means)}))
    assert "we saw a difference at 9 of 9 pairs" in many and many.count("mask found") == 4
    assert "; at 5 of these it is smaller, +11.5 to +15.5 (intervals within" in many and "did not see" not in many
    assert many.index("0.01 (mask found at 0.2)") < many.index("0.2 (mask found at 0.2)")


@pytest.mark.parametrize("draw, facets", [(plots.accuracy_by_sparsity, "eval_lr"), (plots.accuracy_by_lr, "level")])
def test_titles_fit_into_their_drawings(draw, facets, monkeypatch):
    def measured(drawing):
        drawing.draw_without_rendering()
        box = drawing.axes[0].title.get_window_extent()
        titles.append(drawing.axes[0].get_title())
        assert box.x0 >= 0 and box.x1 <= drawing.bbox.x1 and box.y1 <= drawing.bbox.y1, titles[-1]
        return b""

    titles: list[str] = []
    monkeypatch.setattr(reports, "svg", lambda drawing: measured(drawing) if drawing.axes else b"")
    frame = crossed({(find, lr): 0.01 for find in (0.025, 0.125) for lr in (0.0125, 0.125)})
    reports.figure(draw, frame[frame["ticket"] != "dense"], facets)
    reports.figure(plots.layer_ratios, test_plots.ratios().assign(find_lr=0.0125), "find_lr")
    assert len(titles) > 4 and "\nmask found at 0.025" in titles[0]


def test_a_study_of_several_recipes_on_masks_of_several_learning_rates_is_told():
    several = TEXT.replace("epochs: 2,", "epochs: [2, 3],").replace(
        "prune", "eval: {epochs: [2, 4], lr: [0.1, 0.3]}\nprune"
    )
    config = spec.parse(several + "measures: {correlation_indicator: {of: [dense, LT, RR]}}\n")
    frame = helpers.frame_of(config)
    panels = len(results.panels(frame[frame["what"] == "train"]))
    assert panels == 8 and reports.finding(frame).count(" of 4 pairs of learning rates") == panels
    assert correlations.finding(correlations.rows(frame)).count(" on masks found at ") == 4 * panels
    assert "n = 2 replicates. They cover" in reports.limits(config, frame)


def test_limits_name_what_is_missing():
    frame = helpers.frame_of(STUDY)
    text = reports.limits(STUDY, frame)
    assert "digits: 500 test images; one image is 0.2 percentage points" in text and "n = 2 replicates" in text
    assert "2 networks (lenet_300_100, resnet8) on one data set (digits)" in text
    assert f"{len(frame)} done" in text and "Nothing is missing or failed" in text
    frame.loc[3, ["status", "note"]] = "diverged", "loss not finite in epoch 2 <b>"
    text = reports.limits(STUDY, frame)
    assert f"{len(frame) - 1} done, 1 diverged" in text and "Nothing is missing" not in text
    assert "loss not finite in epoch 2 &lt;b&gt;" in text


def test_small_networks_are_shown_and_a_wide_gap_is_a_warning():
    frame = helpers.frame_of(STUDY)
    text = reports.small_dense(frame)
    small = results.sizes(frame)
    assert len(small) == 4 and all(widths in text for widths in small["widths"])
    wide = small[small["gap"] > 0.02]
    assert text.count('class="warning"') == len(wide) and "not a number" not in text
    shrunk = frame.assign(parameters=frame["parameters"].where(frame["ticket"] != "SDT", frame["parameters"] // 2))
    shown = reports.small_dense(shrunk)
    assert shown.count('class="warning"') == 4
    assert "resnet8 (width 4) on digits, level 2 (64 % of the prunable weights left): no network of this depth" in shown
    assert "condition ② stays open" in reports.small_dense(frame[frame["ticket"] != "SDT"])


def test_work_says_what_was_trained_and_what_failed():
    summary = SimpleNamespace(trainings=7, trained=3, shared=2, seconds=1.6, diverged=["a<b"], blocked=[], stale=[])
    text = reports.work(summary)
    assert "7 trainings, and 2 more roles" in text and "3 were trained now, in 2 s, 4 were in the store" in text
    assert "1 diverged: " in text and "a&lt;b" in text and "stale" not in text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small study, and its store."""
    config = spec.parse(
        "name: small\ntitle: A < B\nnet: lenet_300_100\ndata: {name: digits, train_size: 128}\nreplicates: 2\n"
        "find: {epochs: 1, batch_size: 64, lr: 0.1}\n", sets=["find.lr=0.2", "replicates=2"],
    )  # fmt: skip
    store = helpers.store(tmp_path_factory.mktemp("runs"))
    lab.compute_study(config, store, "cpu")
    return config, store, results.load(store, "small")


def test_provenance_says_how_to_make_it_again(small):
    config, store, frame = small
    text = reports.provenance(config, store, frame)
    for words in (
        "small: A &lt; B", "lthlab run params/small.yaml --set find.lr=0.2 --set replicates=2", "seeds 0 to 1",
        config.panels[0].data.facts.fingerprint, "lr 0.2", "cpu", "prunable all_but_head", "torch 2.",
        "2, and 0 more roles", "as finding masks", f"All {frame['key'].nunique()} keys", *frame["key"],
    ):  # fmt: skip
        assert words in text, words
    assert not any(word in text for word in ("gamma", "betas", "synchronised", "processes"))
    assert Elements(text).of("table") == [{"class": "facts", "data-trainings": "2"}]


def test_provenance_says_how_everything_was_measured(small):
    config, store, frame = small
    document = config.document | {"measures": {"weight_std": None, "sharpness": {"radius": 0.2}, "hamming": False}}
    asked = spec.resolved(document)
    text = reports.provenance(asked, store, frame)
    words = "weight std; sharpness: of dense, methods IMP / OMP / GMP, images 500, split train, batchnorm recompute, "
    assert f"<td>{words}radius 0.2, directions 10</td>" in text
    assert "Measures" not in reports.provenance(config, store, frame)


def test_keys_of_measures_are_counted_and_named_in_their_files_alone(small):
    config, store, frame = small
    measured = frame.tail(1).assign(what="correlation_indicator", ticket="LT")
    text = reports.provenance(config, store, pd.concat([frame.head(1), measured]))
    assert "1 of 2 keys, those of trainings and masks" in text and measured["key"].iloc[0] not in text


def test_drawings_are_made_smaller_without_a_change_that_is_seen(monkeypatch):
    """Shapes are the same to a hundredth of a point, glyphs at the same places, and what is referred to is there."""
    ax = Figure(figsize=(3.5, 3.1), layout="constrained").subplots()
    plots.accuracy_by_lr(test_plots.at_level(test_plots.tidy()), ax=ax)
    ax.set_title("a < b & c")
    ax.imshow([[0.0, 1.0]], extent=(0.01, 0.2, 60, 70), aspect="auto")
    small = markup.svg(ax.figure)
    monkeypatch.setattr(markup, "_smaller", lambda drawn: drawn)
    whole = markup.svg(ax.figure)
    assert len(small) < 0.75 * len(whole) and markup.svg(ax.figure) == whole
    first, second = (ElementTree.fromstring(drawn) for drawn in (whole, small))
    counts = [Counter(item.tag.rpartition("}")[2] for item in tree.iter()) for tree in (first, second)]
    assert {tag: n for tag, n in counts[0].items() if tag in counts[1]} == counts[1]
    assert set(counts[0]) - set(counts[1]) <= {"metadata", "RDF", "Work", "type", "format"}
    assert re.findall(rb"scale\(.*?\)", small) == re.findall(rb"scale\(.*?\)", whole) != []
    ids = {item.get("id") for item in second.iter()}
    links = [value for item in second.iter() for name, value in item.items() if name.endswith("href")]
    links = [link for link in links if not link.startswith("data:")]
    assert len(links) > 50 and {link.removeprefix("#") for link in links} <= ids
    for kind in ("path", "use", "image"):
        pairs = zip(first.iter(f"{SVG}{kind}"), second.iter(f"{SVG}{kind}"), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(numbers(one), numbers(other), atol=0.0051)


SVG = "{http://www.w3.org/2000/svg}"


def numbers(item) -> list[float]:
    """Numbers of a shape: its points and where it is, a shift to the right being a place."""
    places = [item.get(name, "0") for name in ("x", "y", "width", "height")]
    moved = re.fullmatch(r"translate\(([-\d.]+) 0\)", item.get("transform", ""))
    if moved:
        places[0] = moved[1]
    return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", item.get("d", "") + " " + " ".join(places))]


def test_provenance_refuses_results_of_another_version_of_the_study(small):
    config, store, frame = small
    other = spec.resolved(config.document | {"find": config.document["find"] | {"lr": [0.3]}})
    with pytest.raises(InputError, match="results are of another version of study 'small'"):
        reports.provenance(other, store, frame)


@pytest.mark.parametrize(
    "made, said",
    [
        ({"commit": "abc123", "clean": True}, "commit abc123 (clean)"),
        ({"commit": "abc123", "clean": False}, "commit abc123 (with changes that were not committed)"),
        ({"commit": None, "clean": None}, "commit not recorded"),
        ({}, "commit not recorded"),
    ],
)
def test_provenance_names_the_code_that_made_it(made, said, small, monkeypatch):
    config, store, frame = small
    read = Store.read

    def recorded(self, key, name, part=None):
        content = read(self, key, name, part)
        if name != "provenance.json":
            return content
        rest = {field: value for field, value in json.loads(content).items() if field not in ("commit", "clean")}
        return json.dumps(rest | made).encode()

    monkeypatch.setattr(Store, "read", recorded)
    text = reports.provenance(config, store, frame)
    assert f"; {said}</td>" in text


def test_limits_of_what_a_study_does_not_ask_for():
    text = reports.limits(STUDY, test_plots.tidy().iloc[:0])
    assert "Intervals rest on no replicates" in text and "Rows by status: none." in text
