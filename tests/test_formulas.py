"""Formulas: what they become, and that what cannot be read is refused."""

import re
from xml.etree import ElementTree

import pytest

from lthlab.formulas import FormulaError, to_html, to_mathml


def words(latex: str) -> str:
    return "".join(ElementTree.fromstring(to_mathml(latex)).itertext())


@pytest.mark.parametrize(
    "latex, shown",
    [
        (r"\theta_0", "θ0"),
        (r"1 - (1 - 0.2)^k", "1−(1−0.2)k"),
        (r"\frac{a}{b} \le \hat{y}", "ab≤y^"),
        (r"m \in \{0, 1\}^d", "m∈{0,1}d"),
        (r"\text{LT & <RR>}", "LT\N{NO-BREAK SPACE}&\N{NO-BREAK SPACE}<RR>"),
        (r"\begin{matrix} a & b \\ c & d \end{matrix}", "abcd"),
        ("a < b > c", "a<b>c"),
        (r"\text{& so}", "&\N{NO-BREAK SPACE}so"),
    ],
)
def test_formulas_become_mathml(latex, shown):
    assert words(latex) == shown


def test_a_formula_by_itself_is_displayed_and_can_scroll():
    page = to_html("Let\n\n$$x$$\n\nand $y$, `$z$`.")
    assert re.search(r'<span class="formula" [^>]*tabindex="0"><math display="block">', page)
    assert '<math display="inline"><mrow><mi>y</mi></mrow></math>' in page and "<code>$z$</code>" in page
    assert to_html("\\begin{matrix}a\\end{matrix}").count('display="block"') == 1


def test_what_is_no_formula_is_markdown():
    assert to_html("# A *b*\n\n5 \\$") == "<h1>A <em>b</em></h1>\n<p>5 $</p>\n"
    image = {"x.png": {"image/png": "AAAA"}}
    assert 'src="data:image/png;base64,AAAA"' in to_html("![words](attachment:x.png)", image)


@pytest.mark.parametrize(
    "latex, reason",
    [
        (r"\frac{a}{b", "braces do not match"),
        ("a}", "braces do not match"),
        (r"\{a}", "braces do not match"),
        ("a_", "MissingSuperScriptOrSubscript"),
        (r"\frac", "Error"),
        (r"\foo{x}", r"'\foo' is not known"),
        ("a & b", "'&' is not known"),
    ],
)
def test_what_cannot_be_read_is_refused(latex, reason):
    with pytest.raises(FormulaError, match=re.escape(f"formula {latex!r} cannot be read: ")) as refusal:
        to_mathml(latex)
    assert reason in str(refusal.value)
