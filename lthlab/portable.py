"""Tickets as files of their own: one safetensors file that plain torch loads, written from a store and checked.

A file holds the state that a ticket begins with, under the names of the network's state dict, pruned weights zero; for
each prunable weight its mask as ``mask.<name>``, eight weights a byte in the order of `numpy.packbits`; and in its
header (``__metadata__``) the fields of `Facts` and a checksum, each as JSON. Nothing in it is ever unpickled.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationError
from safetensors import SafetensorError, safe_open

from lthlab import derive, forms, nets, provenance
from lthlab.catalog import replacing
from lthlab.data import scale_of
from lthlab.datasets import DataFacts
from lthlab.disk import digest
from lthlab.errors import InputError
from lthlab.layers import Weights
from lthlab.masks import Mask, kept
from lthlab.nodes import canonical, key_of
from lthlab.parts import NETS, Count, Level, Natural, Net, Side
from lthlab.runs import Outlook, Run
from lthlab.store import Store, tensor_bytes
from lthlab.values import At, Magnitude, Narrow, Permuted, Train, Value, ancestors
from lthlab.values import Mask as MaskValue
from lthlab.wording import explain, shown

FORMAT = "lthlab ticket 1"
PREFIX = "mask."
FOLDER = "tickets"
"""Folder of a store that imported tickets are in."""
_LISTED = 5
_MOST_TEXT = 500
_TYPES = {torch.float32: "F32", torch.int64: "I64"}
_Kind = tuple[str, tuple[int, ...]]


def _whole(net: Net) -> dict[str, Any]:
    """All fields that a network has, those at their defaults too."""
    return {"name": net.name, **{field: getattr(net, field) for field in NETS[net.name]}}


class Facts(BaseModel):
    """What a file says of its ticket.

    Attributes
    ----------
    format : str
        `FORMAT`.
    network : Net
        The network, with all its fields.
    data : dict
        Description of the data set that it trains on, with its fingerprint.
    view : str
        What differs from that set as it is, in words.
    shape : tuple of int
        Channels, height and width of an image as the network sees it.
    classes : int
        Number of classes.
    mean, std : tuple of float
        What each channel is normalised by, in pixel units 0 … 255; empty where the set is not installed.
    policy : str
        Prunable set.
    granularity : {'weight', 'filter'}
        What was pruned.
    layers : dict of str to tuple of int
        Of each tensor that the mask covers, in network order, the number of weights that it keeps, and of all.
    kept, total : int
        Their sums.
    method : {'IMP', 'OMP', 'GMP'}
        How the mask was found, before any permutation: iterative or one-shot magnitude pruning, or on the way.
    permuted : str or None
        Scope in which the positions were permuted at random, 'layer' or 'global'.
    level : int or None
        Level of the sparsity ladder, where the mask has one.
    weights : dict
        Description of where the weights come from: a draw (`Fresh`), a state of another training (`At`), or that
        under a fresh head (`Graft`).
    recipe : dict
        All fields of the recipe of the training that was exported, or of the one that the mask was found in.
    schedule, batchnorm : str
        As in `lthlab.values.Train`.
    order : int
        Replicate whose batches that training has.
    metrics : dict or None
        The last row of its metrics, accuracies in [0, 1]; None for a mask.
    key, mask : str
        Key of what was exported, and of its mask.
    descriptions : dict of str to dict
        All that it is made from, inputs first, by key: what `lthlab.forms.parse` reads.
    versions : dict
        Code and packages that wrote the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["lthlab ticket 1"]
    network: Annotated[Net, PlainSerializer(_whole)]
    data: dict[str, Any]
    view: str
    shape: tuple[Side, Side, Side]
    classes: Count
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: str
    granularity: Literal["weight", "filter"]
    layers: dict[str, tuple[Natural, Count]]
    kept: Natural
    total: Count
    method: Literal["IMP", "OMP", "GMP"]
    permuted: Literal["layer", "global"] | None
    level: Count | None
    weights: dict[str, Any]
    recipe: dict[str, Any]
    schedule: str
    batchnorm: str
    order: Natural
    metrics: dict[str, Any] | None
    key: str
    mask: str
    descriptions: dict[str, dict[str, Any]]
    versions: dict[str, Any]

    @property
    def images(self) -> DataFacts:
        """What networks are built for: `lthlab.nets.build(facts.network, facts.images)`."""
        return DataFacts(self.shape, self.classes, 0, 0)

    def __str__(self) -> str:
        sparse = f"level {self.level}, " if self.level else ""
        how = f"{self.method}, {sparse}{100 * self.kept / self.total:.3g} % of {self.total:,} weights kept"
        moved = f", permuted ({self.permuted})" if self.permuted else ""
        name = f"'{self.data['name']}'" + f" ({self.view})" * bool(self.view)
        return f"ticket of {self.network.name} on {name}: {how}{moved}"


@dataclass(frozen=True, eq=False)
class Ticket:
    """A ticket, as a file has it.

    Attributes
    ----------
    weights : dict of str to Tensor
        State dict of the ordinary network, float32 (numbers of batches int64), pruned weights zero.
    mask : dict of str to Tensor
        bool, True = kept, in network order.
    facts : Facts
        What is known of it.
    """

    weights: Weights
    mask: Mask
    facts: Facts


# --- from a store ---------------------------------------------------------------------------------------------


def ticket(key: str, store: Store) -> Ticket:
    """Make a ticket of what a store holds.

    Parameters
    ----------
    key : str
        Key, or its beginning, of a training under a mask: the state that it begins with. Or of a mask: θ_0 of the
        chain that it was found in, or what that chain began with if that was a graft.
    store : Store
        Where it is.

    Returns
    -------
    Ticket
        Weights as float32, also of a training in fp64.

    Raises
    ------
    InputError
        If there is no such training or mask, it has no mask, it or what it was made from is stale, or what it begins
        with is not in the store.
    Damaged
        If something in the store is.
    """
    key = _only(key, store)
    try:
        value = forms.parse(store.description(key), store.description)
    except ValueError as error:
        raise InputError(f"{key} cannot be read: {error}") from error
    found, mask = _under(value)
    look, begun = Outlook([value], store), found
    if not look.runnable(value):
        raise InputError(f"{value!r} cannot be exported: it is {look.dead[value]}; `lthlab status` says why")
    while not isinstance(value, Train) and isinstance(begun.init, At):
        begun = begun.init.run
    try:
        bits = derive.mask(mask, store)
        state = derive.initial(begun, store)
    except LookupError as error:
        raise InputError(f"{value!r} cannot be exported: {error}") from error
    assert bits is not None
    weights = {n: (w.masked_fill(~bits[n], 0) if n in bits else w) for n, w in state.items()}
    weights = {n: w.float() if w.is_floating_point() else w for n, w in weights.items()}
    rows, seen, ranked = Run(found, store).metrics() if isinstance(value, Train) else [], found.data.facts, mask
    mean, std = scale_of(found.data, found.data.source)
    while isinstance(ranked, Permuted):
        ranked = ranked.mask
    magnitude = ranked if isinstance(ranked, Magnitude) else None
    facts = {
        "format": FORMAT,
        "network": found.net,
        "data": found.data.form(),
        "view": found.data.view,
        "shape": seen.shape,
        "classes": seen.classes,
        "mean": mean,
        "std": std,
        "policy": mask.policy,
        "granularity": magnitude.granularity if magnitude else "weight",
        "layers": {name: (int(layer.count_nonzero()), layer.numel()) for name, layer in bits.items()},
        "kept": kept(bits),
        "total": sum(layer.numel() for layer in bits.values()),
        "method": ("IMP" if magnitude.of.run.mask.stored else "OMP") if magnitude else "GMP",
        "permuted": mask.scope if isinstance(mask, Permuted) else None,
        "level": magnitude.sparsity.k if magnitude and isinstance(magnitude.sparsity, Level) else None,
        "weights": begun.init.form(),
        "recipe": found.recipe.model_dump(mode="json"),
        "schedule": found.schedule,
        "batchnorm": found.batchnorm,
        "order": found.order,
        "metrics": rows[-1] if rows else None,
        "key": key,
        "mask": mask.key,
        "descriptions": {item.key: item.form() for item in ancestors([value])},
        "versions": provenance.code() | provenance.versions(),
    }
    return Ticket(weights, bits, Facts.model_validate(facts))


def _only(key: str, store: Store) -> str:
    """Complete the beginning of a key."""
    known = store.keys()
    found = [each for each in known if each.startswith(key)]
    if len(found) != 1 or not key:
        there = f"begins {len(found)} keys, such as {found[0]} and {found[1]}" if found[1:] else "begins no key"
        raise InputError(f"KEY '{key}' {there} in {store.root}; allowed: one of the {len(known)} there")
    return found[0]


def _under(value: Value) -> tuple[Train, MaskValue]:
    """Find the training that a ticket is of, and its mask."""
    allowed = "allowed: masks, and trainings under one"
    if isinstance(value, Train) and value.pruning is not None:
        raise InputError(f"{value!r} prunes on its way and begins without its mask; allowed: that mask, a MaskOf")
    mask = value.mask if isinstance(value, Train) else value
    source = mask.source if isinstance(mask, MaskValue) else None
    if not isinstance(mask, MaskValue) or source is None:
        raise InputError(f"{value!r} has no mask, so it is no ticket; {allowed}")
    found = value if isinstance(value, Train) else source
    if isinstance(found.net, Narrow):
        raise InputError(f"{value!r} is of a narrow network, whose widths a file cannot name; {allowed}, of a Net")
    return found, mask


# --- files ----------------------------------------------------------------------------------------------------


def write(path: Path, found: Ticket) -> bool:
    """Write a ticket to a file, whole or not at all; equal tickets give equal bytes.

    Returns
    -------
    bool
        False if the file is there already, with this content.

    Raises
    ------
    InputError
        If a file of other content is there, which stays as it is, or no folder to write to.
    """
    arrays = {name: tensor.numpy() for name, tensor in found.weights.items()}
    arrays |= {PREFIX + name: np.packbits(layer.numpy()) for name, layer in found.mask.items()}
    facts = found.facts.model_dump(mode="json")
    facts["checksum"] = _checksum(facts, arrays)
    content = tensor_bytes(arrays, {name: json.dumps(fact) for name, fact in facts.items()})
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.exists():
        if path.is_file() and path.read_bytes() == content:
            return False
        raise InputError(f"{path} is there already, with other content, and is not replaced; allowed: a new file")
    with replacing(path) as aside:
        aside.write_bytes(content)
    return True


def take(path: Path, store: Store) -> tuple[Ticket, Path]:
    """Check a file and copy it into a store, as ``tickets/<checksum>.safetensors``; raises as `read`.

    Returns
    -------
    ticket : Ticket
        What it holds.
    copy : Path
        Where the copy is, which may have been there before.
    """
    read(path)
    content = path.read_bytes()
    copy = store.root / FOLDER / f"{digest(content)[:32]}.safetensors"
    if not copy.is_file() or copy.read_bytes() != content:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as aside:
            aside.write_bytes(content)
    return read(copy), copy


def read(path: str | Path) -> Ticket:
    """Read a ticket from a file and check all of it.

    Sizes are compared with those of the named network before any tensor is read.

    Parameters
    ----------
    path : path
        What `write` wrote; elsewhere and with another version is fine.

    Returns
    -------
    Ticket

    Raises
    ------
    InputError
        With all that is wrong: no ticket, or damaged; names, shapes or types that are not those of the network; a
        mask that covers other weights than its prunable set; counts that are not those of the mask; weights that are
        not finite, or not zero where they are pruned; descriptions that are not those of their keys.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            plain = _plain(path, file.metadata() or {})
            checksum, facts = plain.pop("checksum", None), _facts(path, plain)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            there = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            network = _network(path, facts)
            _refuse(path, _unlike(facts, network, there))
            tensors = {name: file.get_tensor(name) for name in there}
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file: {error}") from error
    weights, mask, problems = (
        {name: tensors[name] for name in network.state_dict()},
        dict[str, torch.Tensor](),
        list[str](),
    )
    for name, (count, size) in facts.layers.items():
        bits = np.unpackbits(tensors[PREFIX + name].numpy())
        mask[name] = torch.from_numpy(bits[:size].astype(bool)).view(weights[name].shape)
        if bits[size:].any():
            problems.append(f"'{PREFIX}{name}' has bits behind the last of its {size} weights")
        if (found := int(bits[:size].sum())) != count:
            problems.append(f"'{PREFIX}{name}' keeps {found} weights, and layers says {count}")
        if revived := int(weights[name][~mask[name]].count_nonzero()):
            problems.append(f"'{name}' has {revived} weights that are not zero though they are pruned")
    problems += [f"'{name}' has values that are not finite" for name, t in weights.items() if not t.isfinite().all()]
    if not problems and checksum != _checksum(plain, {name: tensor.numpy() for name, tensor in tensors.items()}):
        problems = ["what it holds does not match its checksum"]
    _refuse(path, problems)
    return Ticket(weights, mask, facts)


def _checksum(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]) -> str:
    return digest(b"".join([canonical(facts).encode(), *(arrays[name].tobytes() for name in sorted(arrays))]))


def _plain(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read the header as JSON; refuses any but this format."""
    if (named := metadata.get("format", "none")) != json.dumps(FORMAT):
        raise InputError(f'{path} is no ticket that this version reads: format {named[:80]}; allowed: "{FORMAT}"')
    try:
        return {name: json.loads(text) for name, text in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header is not JSON: {error}") from error


def _facts(path: Path, plain: Mapping[str, Any]) -> Facts:
    """Check what can be checked without the network."""
    try:
        facts = Facts.model_validate_json(canonical(plain))
        forged = [key for key, form in facts.descriptions.items() if key_of(canonical(form)) != key]
    except ValidationError as error:
        found = (problem for each in error.errors() for problem in explain(each, Facts))
        raise _wrong(path, (f"{'.'.join(map(str, place))}: {words}" for place, words in found)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header cannot be read: {error}") from error
    problems = [f"the description of {key} is not that of its key" for key in forged]
    problems += [
        f"{what} {key!r} has no description"
        for what, key in (("key", facts.key), ("mask", facts.mask))
        if key not in facts.descriptions
    ]
    for what, said, column in (("kept", facts.kept, 0), ("total", facts.total, 1)):
        if (summed := sum(counts[column] for counts in facts.layers.values())) != said:
            problems.append(f"{what} is {said}, and the layers sum to {summed}")
    for what, text in (("data: name", facts.data.get("name")), ("view", facts.view)):
        if not isinstance(text, str) or not text.isprintable() or len(text) > _MOST_TEXT:
            problems.append(f"{what} {shown(text)} is not allowed; allowed: text of up to {_MOST_TEXT} printable signs")
    _refuse(path, problems)
    return facts


def _network(path: Path, facts: Facts) -> nets.Network:
    """Build the network that a file names, without numbers."""
    try:
        return nets.outline(facts.network, facts.images)
    except (ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"{path}: no '{facts.network.name}' for images {facts.shape} can be built: {said}") from error


def _unlike(facts: Facts, network: nets.Network, there: Mapping[str, _Kind]) -> list[str]:
    """Compare names, types and shapes of what a file holds with the network that it names."""
    state = network.state_dict()
    masks = {name: kind for name, kind in there.items() if name.startswith(PREFIX)}
    weights = {name: kind for name, kind in there.items() if name not in masks}
    if problems := _compared(weights, {n: (_TYPES[t.dtype], tuple(t.shape)) for n, t in state.items()}, facts):
        return problems
    try:
        prunable = nets.prunable(facts.network, facts.images, facts.policy)
    except InputError as error:
        return [f"policy: {error}"]
    policy, allowed = facts.policy, set(prunable)
    if facts.granularity == "filter":
        allowed |= {name for name, _ in network.named_parameters()}
    problems = [f"the mask covers '{n}', which '{policy}' leaves out" for n in facts.layers if n not in allowed]
    problems += [f"the mask lacks '{n}', which '{policy}' prunes" for n in prunable if n not in facts.layers]
    if problems:
        return problems
    sizes = {name: state[name].numel() for name in facts.layers}
    for name, size in sizes.items():
        if (said := facts.layers[name][1]) != size:
            problems.append(f"layers says that '{name}' has {said} weights, and it has {size}")
    packed = {PREFIX + name: ("U8", (-(-size // 8),)) for name, size in sizes.items()}
    return problems + _compared(masks, packed, facts)


def _compared(there: Mapping[str, _Kind], expected: Mapping[str, _Kind], facts: Facts) -> list[str]:
    """Say what is missing, is too much, or has another type or shape."""
    problems = [f"'{name}' is missing" for name in expected if name not in there]
    problems += [f"'{facts.network.name}' has no '{name}'" for name in there if name not in expected]
    both = ((name, there[name], expected[name]) for name in there if name in expected)
    return problems + [f"'{name}' is {found}; allowed: {allowed}" for name, found, allowed in both if found != allowed]


def _refuse(path: Path, problems: Iterable[str]) -> None:
    if problems := list(problems):
        raise _wrong(path, problems)


def _wrong(path: Path, problems: Iterable[str]) -> InputError:
    lines = list(problems)
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return InputError("\n".join(f"{path}: {line}" for line in [*lines[:_LISTED], *more]))
