"""Nodes of the graph of experiments: fields, forms and keys."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lthlab.errors import nearest
from lthlab.parts import Level, Part

KINDS: dict[str, type["Value"]] = {}

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(form: Mapping[str, Any]) -> str:
    """Write a form as text: JSON with sorted names and no white space."""
    return _JSON.encode(form)


def key_of(text: str) -> str:
    """Hash canonical text to a key of 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False, repr=False)
class Value:
    """A node of the graph of experiments. Equality, hash and text go by key."""

    revision: ClassVar[int] = 1
    stored: ClassVar[bool] = False
    key: str = dataclasses.field(init=False, default="")

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "key", key_of(canonical(self.form())))

    def _check(self) -> None:
        """Refuse what makes no sense and bring equal things to one form."""

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def form(self) -> dict[str, Any]:
        """Return the description: fields not at their defaults, with the keys of stored inputs."""
        form: dict[str, Any] = {"kind": type(self).__name__}
        if self.revision != 1:
            form["revision"] = self.revision
        for name, default in fields(type(self)):
            value = getattr(self, name)
            if value is not default and value != default:
                form[name] = _encode(value)
        return form

    @functools.cached_property
    def inputs(self) -> tuple["Value", ...]:
        """Stored values that this one is made from, nearest first."""
        found: dict[Value, None] = {}
        for item in self._parts():
            found.update(dict.fromkeys((item,) if item.stored else item.inputs))
        return tuple(found)

    @property
    def moment(self) -> Any:
        """State of a training (`lthlab.values.At`) that this is, or is made from without more ado; None for others."""
        return None

    @functools.cached_property
    def moments(self) -> tuple[Any, ...]:
        """States of trainings that this value is directly made from."""
        return tuple(item.moment for item in self._parts() if item.moment is not None)

    def _parts(self) -> Iterator["Value"]:
        """Values among the fields."""
        for name, _ in fields(type(self)):
            value = getattr(self, name)
            yield from (item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key})"


_FIELDS: dict[type, tuple[tuple[str, Any], ...]] = {}


def fields(kind: type[Value]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the fields that describe a value, found once."""
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple((field.name, field.default) for field in dataclasses.fields(kind) if field.name != "key")
    return _FIELDS[kind]


def _encode(value: object) -> Any:
    if isinstance(value, Value):
        return value.key if value.stored else value.form()
    if isinstance(value, Part):
        return value.form()
    if isinstance(value, Level):
        return {"level": value.k} if value.rate == "0.2" else {"level": value.k, "rate": value.rate}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def index(value: object, name: str) -> None:
    """Refuse what is no replicate, seed or other number that counts from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} {value!r} is not allowed; allowed: whole numbers from 0 to 2**63 - 1")


def choice(value: object, allowed: tuple[str, ...], name: str) -> None:
    """Refuse what is none of the allowed, with the nearest match."""
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not allowed; {nearest(value, allowed)}")
