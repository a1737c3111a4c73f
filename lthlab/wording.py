"""Errors of pydantic in plain words: where, what, what is allowed, and the nearest match."""

import re
from typing import Any

from pydantic import BaseModel

from lthlab.errors import nearest
from lthlab.trees import Place

_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_pattern_mismatch": "up to 64 letters, digits, '_' and '-', the first a letter or digit",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "one value or more",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}
_BOUNDS = {"greater_than": "above {gt:g}", "greater_than_equal": "{ge:g} or more", "less_than": "below {lt:g}"}
_FIELD = re.compile(r"([a-z_]+): (.*)")


def explain(error: Any, whole: type[BaseModel]) -> list[tuple[Place, str]]:
    """Word one of pydantic's errors: where, what, what is allowed, the nearest match."""
    if error["type"] == "value_error":
        return fielded(tuple(error["loc"]), str(error["ctx"]["error"]))
    return [_worded(error, whole)]


def _worded(error: Any, whole: type[BaseModel]) -> tuple[Place, str]:
    place, kind, context = tuple(error["loc"]), error["type"], error.get("ctx", {})
    value = shown(error["input"])
    if kind == "extra_forbidden":
        model = _model_at(place[:-1], whole)
        fields = model.model_fields if model else {}
        return place, f"unknown field; {nearest(place[-1], fields) if fields else 'none is allowed here'}"
    if kind == "missing":
        return place, "missing"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        return place, f"{value} is not allowed; {nearest(error['input'], options)}"
    if kind in _BOUNDS or kind == "less_than_equal":
        bound = _BOUNDS.get(kind, "{le:.10g} or less").format(**context)
        return place, f"{value} is not allowed; allowed: {bound}"
    if kind in _WORDS:
        return place, f"{value} is not allowed; allowed: {_WORDS[kind]}"
    return place, f"{value} is not allowed: {error['msg']}"


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def fielded(place: Place, message: str) -> list[tuple[Place, str]]:
    """Split lines of the form 'field: message'."""
    lines = [(_FIELD.fullmatch(line), line) for line in message.split("\n")]
    return [((*place, inner[1]), inner[2]) if inner else (place, line) for inner, line in lines]


def _model_at(place: Place, whole: type[BaseModel]) -> type[BaseModel] | None:
    """Find the model that the fields at a place belong to."""
    model: type[BaseModel] | None = whole
    for item in place:
        info = model.model_fields.get(str(item)) if model else None
        if info is None:
            return None
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return model
