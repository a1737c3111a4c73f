"""Findings: studies of both scales are told apart, dense networks come first, and pages are linked."""

import re

import helpers
import pandas as pd
import pytest

from lthlab import comparison, conclusions, evidence, lab, spec

STUDY = """\
name: little
title: Little <tickets>
net: lenet_300_100
data: {name: digits, train_size: 200}
replicates: 2
find: {epochs: 2, batch_size: 64, lr: [0.02, 0.1]}
prune: {levels: [3, 6]}
tickets: {LT: {methods: [IMP, OMP]}, RR: {methods: [IMP]}}
"""


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    store = helpers.store(tmp_path_factory.mktemp("runs"))
    lab.compute_study(spec.parse(STUDY), store, "cpu")
    return conclusions.gather(store)


def a_claim(outcome, effect, study="cifar10_dense", n=2, **fields):
    row = {"id": "a", "seed": "ma2021", "paper": "Ma et al. 2021", "where": "Fig. 1", "claim": "Large is better."}
    row |= {"study": study, "panel": "resnet20 on cifar10", "outcome": outcome, "effect": effect, "low": effect - 1}
    return row | {"high": effect + 1, "n": n, "unit": "points", "elsewhere": "", "words": "0.1 against 0.01"} | fields


def claims(*rows):
    return pd.DataFrame(rows, columns=list(comparison.CLAIM_COLUMNS))


def test_studies_on_digits_are_told_from_those_on_the_papers_data(gathered):
    assert gathered.real == [] and [source.config.name for source in gathered.small] == ["little"]
    assert set(gathered.claims["outcome"]) == {"not yet run"}
    assert {"supports", "contradicts", "undecided"} & set(gathered.on_digits["outcome"])
    real = spec.parse(STUDY.replace("{name: digits, train_size: 200}", "cifar10").replace("lenet_300_100", "resnet20"))
    sources = [evidence.Source(real, pd.DataFrame(), gathered.small[0].store), *gathered.small]
    assert conclusions.scales(sources) == ([sources[0]], gathered.small)


def test_studies_that_cannot_be_read_here_are_left_out_and_named(gathered):
    store = gathered.small[0].store
    table = store.study("little")
    store.write_study("own", table | {"document": table["document"] | {"name": "own", "data": {"name": "odd"}}})
    found = conclusions.gather(store)
    assert [source.config.name for source in found.small] == ["little"] and list(found.left_out) == ["own"]
    assert "own: " in conclusions.absent(found.left_out) and "odd" in conclusions.absent(found.left_out)
    assert conclusions.absent({}) == "<p>No study is left out.</p>"


def test_what_was_run_is_counted(gathered):
    text = conclusions.runs(gathered.small, {"little": "gallery/little/index.html"})
    assert '<a href="gallery/little/index.html">Little &lt;tickets&gt;</a>' in text
    cells = re.findall(r"<td>([^<]*)</td>", text)
    trains = 2 * 2 * (1 + 6 + 2 + 2)
    assert cells[0] == f"{trains} of {trains}" and cells[1] == f"{2 * trains}" and cells[3] == "cpu"
    assert "digits: " in text and "fingerprint" in text
    assert "Nothing was run." in conclusions.runs([], {})


def test_a_claim_stands_beside_what_each_scale_says_of_it():
    real = claims(a_claim("supports", 1.8), a_claim("undecided", 0.1, n=1))
    small = claims(a_claim("contradicts", -0.7, "demo", 6, panel="lenet_300_100 on digits"))
    text = conclusions.by_claim(real, small, {"demo": "gallery/demo/index.html"})
    (row,) = re.findall(r"<tr><td>Large is better.*?</tr>", text)
    claim, on_papers, on_digits = re.findall(r"<td.*?</td>", row)
    assert claim == "<td>Large is better.<br><small>Fig. 1</small></td>"
    assert on_papers.startswith('<td class="boundary"><strong>supported (1) and open (1)</strong>')
    assert "supports +1.8 [+0.8, +2.8] points, n = 2; resnet20 on cifar10; 0.1 against 0.01" in on_papers
    assert on_digits.startswith('<td class="no"><strong>contradicted</strong>')
    assert '<a href="gallery/demo/index.html">lenet_300_100 on digits</a>' in on_digits
    assert "0 of 1 claims wait for results." in text


def test_disagreements_come_first_and_what_is_not_run_says_so():
    none = a_claim("not yet run", 0.0, n=0)
    real = claims(a_claim("supports", 1.0), a_claim("contradicts", -2.0, id="b", claim="Small is better."))
    small = claims(none, none | {"id": "b"})
    text = conclusions.by_claim(real, small, {})
    assert text.index("Small is better.") < text.index("Large is better.")
    assert text.count('<td class="nothing">not yet run</td>') == 2
    assert "1 of 1 claims wait" in conclusions.by_claim(claims(none), claims(none), {})


def a_number(outcome, ours, n, switches, study="cifar10_dense"):
    row = {"seed": "ma2021", "paper": "Ma et al. 2021", "where": "Table 4", "network": "resnet20", "data": "cifar10"}
    row |= {"quantity": "dense test accuracy", "condition": "lr=0.01 epochs=160", "unit": "%", "value": 90.3}
    return row | {
        "outcome": outcome,
        "ours": ours,
        "n": n,
        "difference": ours - 90.3,
        "switches": switches,
        "study": study,
    }


def test_dense_networks_come_first_and_what_weight_decay_does_is_counted():
    numbers = pd.DataFrame(
        [a_number("outside", 91.8, 2, ""), a_number("inside", 90.2, 2, "C1: weight decay 0.0001 (paper 0.0005)")]
    )
    text = conclusions.finding(numbers, claims(a_claim("supports", 1.0)), claims(a_claim("undecided", 0.0)))
    assert text.index("With weight decay as the paper states it, 0 of 1") < text.index("Dense resnet20 on cifar10")
    assert "With weight decay 0.0001 (paper 0.0005), 1 of 1 accuracies of dense networks" in text
    assert "learning rate 0.01, 160 epochs: 91.8 % (n = 2), 90.3 % in Ma et al. 2021 (+1.5 points, outside)." in text
    assert "On the papers&#x27; data, 1 of 1 claims have answers" in text and "supported 1" in text


def test_pages_are_found_beside_the_findings(tmp_path, monkeypatch):
    for name in ("gallery/demo", "cifar10/cifar10_dense"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "index.html").touch()
    monkeypatch.chdir(tmp_path)
    assert conclusions.addresses(["demo", "cifar10_dense", "early"]) == {
        "demo": "gallery/demo/index.html",
        "cifar10_dense": "cifar10/cifar10_dense/index.html",
    }
