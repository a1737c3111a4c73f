"""Descriptions read back: from the forms that are stored to values."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lthlab import analyses  # noqa: F401  # so that its kind is known
from lthlab.errors import nearest
from lthlab.nodes import KINDS, canonical, key_of
from lthlab.parts import Data, Level, Net, Part, Recipe
from lthlab.values import Value

_KEY = re.compile(r"[0-9a-f]{32}")
_PARTS: dict[str, type[Part]] = {"net": Net, "data": Data, "recipe": Recipe}
_VALUES = frozenset({"of", "mask", "run", "layer_counts_of", "init", "body"})


def input_keys(form: Mapping[str, Any]) -> list[str]:
    """List the keys of the stored values that a form names, in its order."""
    found: list[str] = []
    for name, item in form.items():
        for part in item if isinstance(item, list) else [item]:
            if isinstance(part, Mapping):
                found += input_keys(part)
            elif name in _VALUES and isinstance(part, str) and _KEY.fullmatch(part):
                found.append(part)
    return found


def parse(form: Mapping[str, Any], fetch: Callable[[str], Mapping[str, Any]]) -> Value:
    """Build the value that a form describes.

    Parameters
    ----------
    form : mapping
        As returned by `Value.form`.
    fetch : callable
        Gives the form that belongs to a key.

    Raises
    ------
    ValueError
        If the form is of an unknown kind, or was written by another revision of it or for other data.
    """
    known: dict[str, Value] = {}
    forms: dict[str, Mapping[str, Any]] = {}

    def decode(item: Any, name: str) -> Any:
        if isinstance(item, Mapping) and "kind" in item:
            return build(item)
        if isinstance(item, Mapping) and "level" in item:
            return Level(item["level"], item.get("rate", "0.2"))
        if name in _PARTS and isinstance(item, Mapping):
            return _PARTS[name](**{k: v for k, v in item.items() if k != "fingerprint"})
        if name in _VALUES and isinstance(item, str) and _KEY.fullmatch(item):
            return known[item]
        if isinstance(item, list):
            return tuple(decode(part, name) for part in item)
        return item

    def build(node: Mapping[str, Any]) -> Value:
        kind = KINDS.get(node["kind"])
        if kind is None:
            raise ValueError(f"kind '{node['kind']}' is not known; {nearest(node['kind'], KINDS)}")
        if node.get("revision", 1) != kind.revision:
            raise ValueError(f"{kind.__name__} of revision {node.get('revision', 1)}; this version has {kind.revision}")
        fields = {k: decode(v, k) for k, v in node.items() if k not in ("kind", "revision")}
        value = kind(**fields)
        if value.key != key_of(canonical(node)):
            raise ValueError(f"{value!r} was described otherwise, as {canonical(node)}")
        return value

    waiting = input_keys(form)
    while waiting:  # chains are deeper than Python lets functions call themselves
        key = waiting[-1]
        if key not in forms:
            forms[key] = fetch(key)
        missing = [other for other in input_keys(forms[key]) if other not in known]
        if key not in known and not missing:
            known[key] = build(forms[key])
        if key in known:
            waiting.pop()
        waiting += missing
    return build(form)
