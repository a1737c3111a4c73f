"""docs/performance.md: what results.json holds, beside its targets."""

from collections.abc import Callable, Iterable, Mapping

from benchmarks.catalogue import (
    BENCHMARKS,
    FORMS,
    GPU_NETS,
    GROWTH,
    PRECISIONS,
    Benchmark,
    Figure,
    gpu_name,
    group_sizes,
)
from benchmarks.record import Row

NOT_MEASURED = "not measured"
_GPU_TARGET_S = 0.25
_INTRODUCTION = """# Performance

`make bench` measures what stands here, `make bench NAME=resnet20` the figures whose names begin so; both write
`benchmarks/results.json` and, from it, this page. Each value is the median of n measurements, with the least and the
largest in brackets. Ratios are of measurements of the same round; in each round all sides take their turn, the order
goes to and fro, and rounds before those that count warm up. A ratio above 1 says that ours is faster."""


def page(rows: Mapping[str, Row], benchmarks: Iterable[Benchmark] = BENCHMARKS) -> str:
    """Write the page.

    Parameters
    ----------
    rows : mapping of str to dict
        Rows by name, as `benchmarks.record.read` gives them.
    """
    parts = [_INTRODUCTION]
    for benchmark in benchmarks:
        parts += [f"## {benchmark.title}", benchmark.text, f"`make bench NAME={benchmark.name}`"]
        parts += _LAYOUTS.get(benchmark.name, _table)(benchmark, rows)
        parts += _places(benchmark, rows)
    return "\n\n".join(parts) + "\n"


def _table(benchmark: Benchmark, rows: Mapping[str, Row]) -> list[str]:
    lines = []
    for figure in benchmark.figures:
        found = rows.get(figure.name)
        n = f"{found['n']}" if found else ""
        lines.append([f"`{figure.name}`", figure.what, _value(found), *_verdict(figure, found), n])
    return [_grid(["", "", "value", "target", "met", "n"], lines)]


_GPU_QUANTITIES = {"seconds_per_epoch": "seconds per epoch and replica", "peak_mebibytes": "memory of the group in MiB"}


def _gpu(benchmark: Benchmark, rows: Mapping[str, Row]) -> list[str]:
    parts = []
    for net, batches in GPU_NETS.items():
        kinds = [(batch, precision, form) for batch in batches for precision in PRECISIONS for form in FORMS]
        heads = ["replicas", *(f"batch {batch}, {precision}, {form}" for batch, precision, form in kinds)]
        for what, words in _GPU_QUANTITIES.items():
            lines = [
                [str(size), *(_value(rows.get(gpu_name(net, what, size, *kind)), unit=False) for kind in kinds)]
                for size in group_sizes(net)
            ]
            sets = [",".join(map(str, numbers)) for numbers in (group_sizes(net), batches, PRECISIONS, FORMS)]
            names = "gpu_{}_{}_group{{{}}}_batch{{{}}}_{{{}}}_{{{}}}".format(net, what, *sets)
            measured = any(cell != NOT_MEASURED for line in lines for cell in line[1:])
            parts.append(f"{net}, {words} (`{names}`)" + (":" if measured else f": {NOT_MEASURED}."))
            parts += [_grid(heads, lines)] * measured
        if net == "resnet20":
            parts.append(_gpu_target(rows))
    known = {figure.name for figure in benchmark.figures}
    further = [found for name, found in rows.items() if name.startswith("gpu_") and name not in known]
    if further:
        lines = [[f"`{found['name']}`", _value(found), str(found["n"])] for found in further]
        parts += ["Steps of the fastest groups, and whole epochs of them:", _grid(["", "value", "n"], lines)]
    return parts


def _gpu_target(rows: Mapping[str, Row]) -> str:
    beginnings = tuple(f"gpu_resnet20_seconds_per_epoch_group{size}_batch64_" for size in group_sizes("resnet20"))
    done = [found for name, found in rows.items() if name.startswith(beginnings) and found["value"] is not None]
    figure = Figure("", "s", "", at_most=_GPU_TARGET_S)
    best = min(done, key=lambda found: found["value"], default=None)
    target, met = _verdict(figure, best)
    where = f", `{best['name']}`; met: {met}" if best else ""
    return f"Fastest at batch 64, aim {target} s on an H200: {_value(best)}{where}."


def _growth(benchmark: Benchmark, rows: Mapping[str, Row]) -> list[str]:
    parts = []
    if any(figure.name in rows for figure in benchmark.figures):
        parts.append("![Wall time and peak memory against replicates, levels and training images](growth.svg)")
    for axis, (numbers, words) in GROWTH.items():
        lines = []
        for number in numbers:
            found = [rows.get(f"growth_{axis}_{number}_{what}") for what in ("seconds", "mebibytes")]
            lines.append([f"{number:,}", *map(_value, found), *(str(item["n"]) for item in found[:1] if item)])
        parts.append(_grid([words, "wall time", "peak memory", "n"], lines))
    return parts


_LAYOUTS: dict[str, Callable[[Benchmark, Mapping[str, Row]], list[str]]] = {"gpu": _gpu, "growth": _growth}


def _value(found: Mapping[str, object] | None, unit: bool = True) -> str:
    if found is None:
        return NOT_MEASURED
    if found["value"] is None:
        return "out of memory"
    text = _number(found["value"])
    if unit:
        text += "×" if found["unit"] == "times" else f" {found['unit']}"
    spread = found["spread"]
    return f"{text} [{_number(spread['min'])}, {_number(spread['max'])}]" if isinstance(spread, dict) and unit else text


def _number(value: object) -> str:
    assert isinstance(value, int | float)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(figure: Figure, found: Mapping[str, object] | None) -> list[str]:
    """Target of a figure, and whether it is met."""
    if figure.at_least is None and figure.at_most is None:
        return ["", ""]
    target = f"≥ {figure.at_least:g}" if figure.at_least is not None else f"≤ {figure.at_most:g}"
    if found is None:
        return [target, ""]
    value = found["value"]
    if not isinstance(value, int | float):
        return [target, "no"]
    met = value >= figure.at_least if figure.at_least is not None else value <= (figure.at_most or 0)
    return [target, "yes" if met else "no"]


def _grid(heads: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(heads)
    return "\n".join(
        "| " + " | ".join(cells + [""] * (len(heads) - len(cells))) + " |" for cells in [heads, rule, *lines]
    )


def _places(benchmark: Benchmark, rows: Mapping[str, Row]) -> list[str]:
    """Where and when the figures of a benchmark were measured."""
    prefix = "gpu_" if benchmark.name == "gpu" else None
    names = {figure.name for figure in benchmark.figures}
    found = [row for name, row in rows.items() if name in names or (prefix and name.startswith(prefix))]
    by_place: dict[tuple[str, str], list[str]] = {}
    for row in found:
        by_place.setdefault((row["date"], row["machine"]), []).append(row["name"])
    if len(by_place) == 1:
        return [f"Measured on {date}: {machine}." for date, machine in by_place]
    return [
        f"Measured on {date}: {machine}: {', '.join(f'`{name}`' for name in of)}."
        for (date, machine), of in by_place.items()
    ]
