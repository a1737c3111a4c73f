"""Markdown with formulas, as HTML with MathML."""

import html
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree


class FormulaError(ValueError):
    """A formula that cannot be read; says which and why."""


def to_html(markdown: str, attachments: Mapping[str, Any] | None = None) -> str:
    r"""Convert markdown to HTML as Jupyter shows it, with formulas as MathML.

    Parameters
    ----------
    markdown : str
        Text with formulas in LaTeX between `$` (in the line) or `$$` (on a line of its own), or in an environment
        such as ``\begin{matrix}``.
    attachments : mapping, optional
        Images of a notebook's cell, as in the notebook.

    Returns
    -------
    str
        HTML; other HTML in the text is passed on as it is.

    Raises
    ------
    FormulaError
        If a formula cannot be read.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return to_mathml(body)

        def block_math(self, body: str) -> str:
            formula = to_mathml(body, "block")
            return f'<span class="formula" role="group" aria-label="Formula" tabindex="0">{formula}</span>'

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    renderer = Renderer(escape=False, exclude_anchor_links=True, attachments=dict(attachments or {}))
    return str(MarkdownWithMath(renderer).render(markdown))


def to_mathml(latex: str, display: str = "inline") -> str:
    r"""Convert a formula from LaTeX to MathML.

    Parameters
    ----------
    latex : str
        Formula without the dollar signs around it.
    display : {'inline', 'block'}, optional
        Whether it stands in a line of text or by itself.

    Returns
    -------
    str
        A `<math>` element.

    Raises
    ------
    FormulaError
        If braces do not match, a command is not known, or the formula ends too early. (latex2mathml shows the first two
        as letters.)
    """
    from latex2mathml.converter import convert_to_element

    def refused(reason: str) -> FormulaError:
        return FormulaError(f"formula {latex.strip()!r} cannot be read: {reason}")

    braces = re.sub(r"\\.|[^{}]", "", latex, flags=re.DOTALL)
    while "{}" in braces:
        braces = braces.replace("{}", "")
    if braces:
        raise refused("its braces do not match")
    try:
        formula = convert_to_element(latex, display=display)
    except Exception as error:  # The converter's own kinds have no base in common, and short input is an IndexError.
        raise refused(f"{type(error).__name__} {error}".rstrip()) from error
    for part in formula.iter():
        part.text = html.unescape(part.text or "") or None
        if part.tag != "mtext" and re.match(r"\\[A-Za-z]|&", part.text or ""):
            raise refused(f"'{part.text}' is not known here")
    del formula.attrib["xmlns"]
    return ElementTree.tostring(formula, encoding="unicode")
