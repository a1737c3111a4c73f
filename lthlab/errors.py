"""The error for what cannot be had, and the nearest match to a misspelt name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that was asked for cannot be had; says what, where and what is allowed."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """Word what is allowed, and the nearest match to a misspelt name."""
    options = {option.lower(): option for option in sorted(allowed)}
    text = str(name).lower()
    match = difflib.get_close_matches(text, options, n=1, cutoff=0.5)
    match = [option for option in options if len(text) > 3 and option.startswith(text)][:1] or match
    return f"allowed: {', '.join(options.values())}" + (f"; did you mean '{options[match[0]]}'?" if match else "")
