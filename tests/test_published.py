"""The papers' numbers and claims as data: every row is read into what it means, and nothing unknown passes."""

from collections import Counter

import pytest

from lthlab import evidence, predicates, published
from lthlab.errors import InputError
from lthlab.published import Conditions

NUMBERS, CLAIMS = published.numbers(), published.claims()


def test_every_number_is_there_and_in_its_range():
    assert len(NUMBERS) == 316 and len(set(NUMBERS)) == 316
    assert Counter(number.seed for number in NUMBERS) == {"ma2021": 90, "early2020": 226}
    kinds = Counter(number.quantity for number in NUMBERS)
    assert kinds["ticket validation accuracy"] == 143 + 18 + 21 and kinds["parameters"] == 9
    assert sum(count for name, count in kinds.items() if name.endswith("test accuracy")) == 9 + 16
    ranges = {"%": (50, 100), "% train accuracy": (0, 100), "fraction": (0, 1), "million": (0.1, 30), "pp": (-2, 2)}
    for number in NUMBERS:
        if number.unit == "verdict":
            assert number.value in published.STATES
        else:
            low, high = ranges.get(number.unit, (0, 1))
            assert low <= number.value <= high
            assert number.rounding in (0.05, 0.005, 0.0005, 0.00005)


def test_conditions_are_typed():
    words = "find_lr=0.01 eval_lr=0.005 sparsity=0.914"
    assert published.conditions(words) == Conditions(find_lr=0.01, eval_lr=0.005, sparsity=0.914)
    assert published.conditions("window=25-75 pruning=gradual") == Conditions(window=(25, 75), pruning="gradual")
    told = published.conditions("method=gradual + early ticket sparsity=0.8 epochs=150+200")
    assert told == Conditions(method="gradual + early ticket", sparsity=0.8, search_epochs=150, epochs=200)
    assert published.conditions("lr=0.005 sparsity=unstated") == Conditions(lr=0.005, unstated=True)
    assert published.conditions("epoch=120 pruning=4-step gradual").pruning == "4-step gradual"


@pytest.mark.parametrize(
    "text, says",
    [
        ("find_rl=0.1", "condition 'find_rl' is not known; "),
        ("lr=fast", "condition lr 'fast' is not a number"),
        ("epochs=1.5", "condition epochs '1.5' is not a number"),
        ("pruning=slow", "condition pruning 'slow' is not known"),
        ("window=25", "is not a number"),
        ("at the end", "is not understood; allowed: words such as lr=0.1"),
    ],
)
def test_what_is_not_understood_is_refused(text, says):
    with pytest.raises(InputError, match=says):
        published.conditions(text)


def test_recipes_of_numbers_are_presets_and_of_the_length_that_the_numbers_say():
    with_recipe = [number for number in NUMBERS if number.recipe]
    assert {number.recipe for number in with_recipe} == set(published.ORIGINS)
    assert [number.quantity for number in NUMBERS if not number.recipe] == ["parameters"] * 9
    for number in with_recipe:
        paper = published.panel(number)
        ((find, evaluate),) = paper.recipes
        assert find == evaluate and paper.data.name == number.data
        assert (paper.net.name, paper.net.width) == (number.net.name, number.net.width)
        if number.conditions.epochs and not number.conditions.method:
            assert find.epochs == number.conditions.epochs


def test_what_differs_between_a_paper_and_its_code_is_known():
    dense = next(number for number in NUMBERS if number.quantity == "dense test accuracy")
    paper, code = published.panel(dense), published.panel(dense, code=True)
    assert (paper.recipes[0][0].weight_decay, code.recipes[0][0].weight_decay) == (5e-4, 1e-4)  # C1
    assert (paper.protocol.report, code.protocol.report) == ("last", "best_test")  # C7
    vgg = next(number for number in NUMBERS if number.network == "vgg16" and number.recipe)
    assert published.panel(vgg).recipes[0][0].warmup == "75ep"


def test_claims_are_sentences_with_known_questions():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) >= 60
    assert set(Counter(claim.seed for claim in CLAIMS)) == set(published.PAPERS)
    for claim in CLAIMS:
        assert claim.claim.endswith(".") and claim.claim[0].isupper() and claim.where
        assert claim.predicate in {*predicates.PREDICATES, "redundancy"}
        assert set(claim.settings) <= set(predicates.SETTINGS)
        assert claim.settings.get("table", "trained") in evidence.TABLES


def test_a_wrong_row_is_refused(tmp_path, monkeypatch):
    for name in ("paper_values.csv", "paper_claims.csv"):
        (tmp_path / name).write_text((published._FOLDER / name).read_text())
    monkeypatch.setattr(published, "_FOLDER", tmp_path)
    read = published.numbers.__wrapped__, published.claims.__wrapped__
    assert (read[0](), read[1]()) == (NUMBERS, CLAIMS)
    for number, name, old, new, says in (
        (0, "paper_values.csv", ",verdict,ma-cifar", ",verdicts,ma-cifar", "unit 'verdicts' is not known"),
        (0, "paper_values.csv", "boundary,verdict", "nearly,verdict", "value 'nearly' is not known"),
        (0, "paper_values.csv", "early-cifar", "early-cifra", "recipe 'early-cifra' is not known"),
        (1, "paper_claims.csv", ",more,", ",mroe,", "expected 'mroe' is not known; did you mean|'mroe'"),
        (1, "paper_claims.csv", '""first"": ', '""first"" ', "ma-dense-lr: settings: .*; allowed: a JSON object"),
    ):
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=says):
            read[number]()
        (tmp_path / name).write_text(text)
