"""The parts of a report that are HTML: figures with captions, findings, provenance, limits."""

import hashlib
import html
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pydantic import BaseModel

from lthlab import catalog, plots, pruning, results, roles, sizes, strokes, tickets
from lthlab.errors import InputError
from lthlab.markup import (
    Html,
    download,
    found_out,
    framed,
    image,
    level_of,
    listed,
    points,
    signed,
    slug,
    svg,
    table,
)
from lthlab.parts import NETS, Net, Recipe
from lthlab.spec import Config, Panel
from lthlab.store import Store
from lthlab.values import Train, ancestors

_SIZE = (3.5, 3.1)
_BEHIND = ("widths", "parameters", "kept", "replicate", "value", "status", "key")
_MOST_NAMED = 4


def figure(
    draw: Callable[..., Any],
    frame: pd.DataFrame,
    facets: str | None = None,
    about: str = "",
    name: str = "",
    one_scale: bool = True,
) -> Html:
    """Draw a frame, one figure per panel, with legend, caption, alternative texts, and the numbers behind it.

    Parameters
    ----------
    draw : callable
        Function of `lthlab.plots` that draws rows on Axes.
    frame : DataFrame
        Rows to draw, of one or several networks and data sets.
    facets : str, optional
        Column with one drawing per value; with 'level', dense networks (level 0) are in every drawing. The texts of
        'facet' are titles, in the order of the rows.
    about : str, optional
        First sentence of the caption.
    name : str, optional
        Of the CSV file, where other figures of a page are drawn by the same function.
    one_scale : bool, optional
        Whether all drawings of a panel have the same vertical axis.

    Returns
    -------
    Html
        For each of `lthlab.results.panels` a `<figure>` with SVG images, a table of means and intervals, and the
        rows as a CSV file; a sentence where nothing of it is done.

    Raises
    ------
    ValueError
        As `draw` does.
    """
    if frame.empty:
        return Html('<p class="nothing">There is nothing to draw: the study asks for none of it.</p>')
    name = name or draw.__name__
    found = results.panels(frame)
    return Html("".join(_figure(draw, rows, facets, panel, about, name, one_scale) for panel, rows in found))


def _figure(
    draw: Callable[..., Any],
    frame: pd.DataFrame,
    facets: str | None,
    panel: str,
    about: str,
    name: str,
    one_scale: bool,
) -> str:
    from matplotlib.figure import Figure

    drawn, undone = [], []
    for title, rows in _facets(frame, facets):
        if not (_tickets(rows)["status"] == "done").any():
            undone.append(title)
            continue
        ax = Figure(figsize=_SIZE, layout="constrained").subplots()
        draw(rows, ax=ax)
        ax.set_title(title.replace(", ", ",\n"), fontsize=10)
        drawn.append(ax)
    lacking = f"Nothing is done yet{' at ' * any(undone)}{listed(undone)}." if undone else ""
    if not drawn:
        return f'<p class="nothing">{html.escape(f"{panel}: {lacking}")}</p>'
    low, high = min(ax.get_ylim()[0] for ax in drawn), max(ax.get_ylim()[1] for ax in drawn)
    labelled: dict[str, Any] = {}
    for ax in drawn:
        if one_scale:
            ax.set_ylim(low, high)
        labelled |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    beyond = "Intervals that leave the frame are cut." if any(map(plots.cut, drawn)) else ""
    size = plots.sample_size(frame)
    images = [image(svg(ax.figure), f"{panel}, {plots.describe(ax)} {size}.") for ax in drawn]
    words = " ".join(filter(None, (f"{panel}.", about, plots.caption(frame), beyond, lacking)))
    rows = frame[[name for name in (*plots.CELL, *_BEHIND) if name in frame]]
    csv = download(rows, f"{name}_{slug(panel)}.csv", f"All {len(rows)} values, one row per replicate (CSV)")
    return framed(images, labelled, words, numbers(frame, f"Means and intervals, {panel}") + csv)


def numbers(frame: pd.DataFrame, label: str) -> Html:
    """Show means, intervals and numbers of replicates of a frame in a table, named for readers who do not see it."""
    return table(_numbers(frame), label)


def _facets(frame: pd.DataFrame, by: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split a panel; where tickets of one learning rate stand on masks of several, by these too."""
    for title, rows in _split(frame, by) if by else [("", frame)]:
        masks = rows.groupby("eval_lr")["find_lr"].nunique() if {"eval_lr", "find_lr"} <= set(rows) else pd.Series()
        if not (masks > 1).any():
            yield title, rows
            continue
        for lr in sorted(rows["find_lr"].unique()):
            yield f"{title + ', ' * bool(title)}mask found at {lr:g}", rows[rows["find_lr"] == lr]


def _split(frame: pd.DataFrame, by: str) -> Iterator[tuple[str, pd.DataFrame]]:
    everywhere = (frame["level"] == 0) if by == "level" else pd.Series(False, frame.index)
    columns = ["sparsity", "level"] if by == "level" else [by]
    places = _tickets(frame[~everywhere])[columns].drop_duplicates()
    for _, place in (places if by == "facet" else places.sort_values(columns[0])).iterrows():
        same = (frame[columns].eq(place) | (frame[columns].isna() & place.isna())).all(axis=1)
        name = {"eval_lr": "learning rate", "find_lr": "mask found at learning rate"}.get(by, by)
        value = place[by] if isinstance(place[by], str) else f"{place[by]:g}"
        title = value if by == "facet" else f"{name.replace('_', ' ')} {value}"
        if by == "level":
            left = f"{100 * (1 - place['sparsity']):.3g} % of the {results.unit(frame).removeprefix('prunable ')}"
            title = left if pd.isna(place["level"]) else f"{title} ({left})"
        yield title, frame[everywhere | same]


def _tickets(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of tickets; all where there are none."""
    own = frame[frame["ticket"] != "dense"] if "ticket" in frame else frame
    return frame if own.empty else own


def finding(frame: pd.DataFrame, first: str = "LT", second: str = "RR", method: str = "IMP") -> Html:
    """Say what came out for two tickets at the sparsest level of every panel, whatever it is.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.
    first, second : str, optional
        Tickets to compare, replicate by replicate.
    method : str, optional
        Whose masks.
    """
    trained = frame[(frame["what"] == "train") & (frame["method"] == method) & frame["ticket"].isin([first, second])]
    found = [
        _difference(own, f"{name} ({text})" if text else name, first, second, method)
        for name, rows in results.panels(trained)
        for text, own in rows.groupby(strokes.variants(rows), sort=False)
    ]
    return found_out(found or [f"No pair of {first} and {second} on {method} masks is done."])


def _difference(rows: pd.DataFrame, panel: str, first: str, second: str, method: str) -> str:
    by = ["find_lr", "eval_lr", "level", "sparsity"]
    pairs = results.differences(rows, first, second, by)
    if pairs.empty:
        return f"{panel}: no pair of {first} and {second} on {method} masks is done."
    pairs = pairs[pairs["sparsity"] == pairs["sparsity"].max()]
    cells = results.summarise(pairs, by).sort_values(["eval_lr", "find_lr"]).to_dict("records")
    unit = "in points, paired" + (", 95 % t interval" if any(cell["n"] > 1 for cell in cells) else "")
    return (
        f"{panel}, {level_of(cells[0])}: {first} minus {second} on {method} masks ({unit}, "
        f"{plots.sample_size(pairs.assign(method=method))}): {_seen(cells)}."
    )


def _seen(cells: Sequence[dict[Any, Any]]) -> str:
    """Name the cells with a difference, and say how far the others reach."""
    crossed = any(cell["find_lr"] != cell["eval_lr"] for cell in cells)
    grid = f"{len(cells)} {'pairs of ' * crossed}learning rates"
    places = [
        f"{points(cell)} at learning rate {cell['eval_lr']:g}"
        + (f" (mask found at {cell['find_lr']:g})" if crossed else "")
        for cell in cells
    ]
    seen = [i for i, cell in enumerate(cells) if cell["low"] > 0 or cell["high"] < 0]
    others = [cell for i, cell in enumerate(cells) if i not in seen]
    if all(cell["n"] == 1 for cell in cells):
        text = places[0] if len(cells) == 1 else f"{_reach(cells)} at {grid}"
        return f"{text}; one replicate gives no interval"
    if len(cells) == 1:
        return places[0] + ("" if seen else "; we did not see a difference")
    if not seen:
        return f"we did not see a difference at any of {grid}, where it is {_reach(others)}"
    named = sorted(sorted(seen, key=lambda i: -abs(cells[i]["mean"]))[:_MOST_NAMED])
    text = f"we saw a difference at {len(seen)} of {grid}, {listed([places[i] for i in named])}"
    if hidden := [cells[i] for i in seen if i not in named]:
        text += f"; at {len(hidden)} of these it is smaller, {_reach(hidden)}"
    return text + (f"; we did not see one at the other {len(others)}, where it is {_reach(others)}" if others else "")


def _reach(cells: Sequence[dict[Any, Any]]) -> str:
    """The range of the means of cells, and of their intervals."""
    ends = {side: [100 * cell[side] for cell in cells if not pd.isna(cell[side])] for side in ("mean", "low", "high")}
    means = " to ".join(dict.fromkeys(signed(value, 1) for value in (min(ends["mean"]), max(ends["mean"]))))
    if not ends["low"]:
        return means
    return f"{means} (intervals within {signed(min(ends['low']), 1)} to {signed(max(ends['high']), 1)})"


def work(summary: Any) -> Html:
    """Say what a computation did.

    Parameters
    ----------
    summary : lthlab.lab.Summary
        What `lthlab.lab.compute_study` returns.
    """
    items = [
        f"{summary.trainings} trainings, and {summary.shared} more roles that share one of them: "
        f"{summary.trained} were trained now, in {_duration(summary.seconds)}, "
        f"{summary.trainings - summary.trained} were in the store.",
        *(
            f"{len(values)} {name}: " + ", ".join(map(repr, values[:3])) + (" …" if len(values) > 3 else "")
            for name in ("diverged", "failed", "blocked", "stale")
            if (values := getattr(summary, name, ()))
        ),
    ]
    return Html(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>")


def small_dense(frame: pd.DataFrame) -> Html:
    """Show how small dense networks (SDT) match the size of tickets, with a warning where they do not.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study, with the columns widths and parameters.
    """
    found = results.sizes(frame)
    if found.empty:
        return Html("<p>The study has no small dense networks (SDT): condition ② stays open.</p>")
    names = {"target": "ticket keeps", "parameters": "SDT has", "widths": "widths of SDT"}
    shown = found.assign(
        sparsity=[f"{100 * (1 - sparsity):.3g}" for sparsity in found["sparsity"]],
        gap=[f"{100 * gap:.2f}" for gap in found["gap"]],
    ).astype(dict.fromkeys(("level", "target", "parameters"), "Int64"))
    wide = found[found["gap"] > sizes.TOLERANCE].to_dict("records")
    words = f"no network of this depth has that many parameters, or at most {100 * sizes.TOLERANCE:g} % fewer."
    notes = [f"{row['panel']}, {level_of(row)}: {words}" for row in wide]
    shown = shown.rename(columns=names | {"sparsity": "left (%)", "gap": "gap (%)"})
    return Html(
        table(shown, "Sizes of small networks")
        + "".join(f'<p class="warning">{html.escape(note)}</p>' for note in notes)
    )


def provenance(config: Config, store: Store, frame: pd.DataFrame) -> Html:
    """Say what a page is made of and how to make it again.

    Parameters
    ----------
    config : Config
        The study.
    store : Store
        Where its results are.
    frame : DataFrame
        Its tidy frame.

    Raises
    ------
    InputError
        If the frame is of another version of the study, which was computed meanwhile.
    """
    values = [item.value for item in tickets.expand(config)]
    if not set(frame["key"]) <= {value.key for value in values}:
        other = f"the results are of another version of study '{config.name}', with other settings"
        raise InputError(f"{other}; run this one again")
    uses = frame[frame["what"].isin(roles.TRAINED)]["key"]
    trains = [value for value in ancestors(values) if isinstance(value, Train)]
    origins = made(trains, store)
    days = sorted({item["date"][:10] for item in origins}) or ["never"]
    seconds = sum(item["seconds"] / item["replicas"] for item in origins)
    versions = [f"{name} {_distinct(origins, name)}" for name in ("torch", "numpy", "python")]
    device, processor, threads = (_distinct(origins, name) for name in ("device", "processor", "threads"))
    machine = f"{device} ({processor}), threads: {threads}"
    everything = sorted(set(frame["key"]))
    sets = [word for setting in config.sets for word in ("--set", setting)]
    name, *mini = config.named
    lines = {
        "Study": f"{config.name}: {config.title}",
        "Command": shlex.join(["lthlab", "run", f"params/{name}.yaml", *mini, *sets]),
        "Settings": ", ".join(config.sets) or "as in the file",
        "Trainings": f"{len(trains)}, and {len(uses) - uses.nunique()} more roles that share one of them",
        "Code": f"lthlab {_distinct(origins, 'lthlab')}; {_commits(origins)}",
        "Versions": ", ".join(versions),
        "Device": f"{machine}; {_duration(seconds)} of training in all",
        "Dates": f"trained {_span(days)}; page made {datetime.now(UTC).date()}",
    }
    rows = "".join(_line(name, html.escape(text)) for name, text in lines.items())
    fingerprint = hashlib.sha256("".join(everything).encode()).hexdigest()[:32]
    named = sorted(set(frame["key"][frame["what"].isin([*roles.TRAINED, "mask"])]))
    several = f"{len(named)} of {len(everything)} keys, those of trainings and masks"
    words = several if named != everything else f"All {len(everything)} keys"
    folded = f"<details><summary>{words}</summary><code>{' '.join(named)}</code></details>"
    rows += _line("Keys", f"fingerprint {fingerprint}{folded}")
    for panel in config.panels:
        view = f" ({panel.data.view})" if panel.data.view else ""
        name = f"{_fields(panel.net)} on {panel.data.name}{view}"
        rows += f'<tr><th scope="rowgroup" colspan="2">{html.escape(name)}</th></tr>'
        rows += "".join(_line(name, html.escape(text)) for name, text in _facts(panel).items())
    return Html(f'<table class="facts" data-trainings="{len(trains)}"><tbody>{rows}</tbody></table>')


def made(trains: Iterable[Train], store: Store) -> list[dict[str, Any]]:
    """Read where and with what each part of trainings was computed, as a store holds it."""
    parts = [(train.key, part) for train in trains for part in store.parts(train.key)]
    trained = [(key, part.number) for key, part in parts if part.record["kind"] == "train"]
    return [json.loads(store.read(key, "provenance.json", number)) for key, number in trained]


def _line(name: str, shown: str) -> str:
    return f'<tr><th scope="row">{name}</th><td>{shown}</td></tr>'


def _facts(panel: Panel) -> dict[str, str]:
    facts = panel.data.facts
    shape = " × ".join(map(str, facts.shape))
    seeds = "seed 0" if panel.replicates == 1 else f"seeds 0 to {panel.replicates - 1}, the numbers of the replicates"
    finding, evaluating = (_recipes([pair[side] for pair in panel.recipes]) for side in (0, 1))
    tickets, measures = (
        "; ".join(_named(name, options) for name, options in asked if options is not None)
        for asked in (panel.tickets, panel.measures)
    )
    return {
        "Replicates": f"{panel.replicates}; {seeds}",
        "Data": f"{_fields(panel.data)}; {panel.data.images} training and {facts.test} test images of {shape}, "
        f"{facts.classes} classes; fingerprint {facts.fingerprint}"
        + (f"; from {source}" if (source := catalog.source(panel.data.name)) else ""),
        "Pruning": _ladder(panel),
        "Tickets": tickets,
        "Finding masks": finding,
        "Training tickets": "as finding masks" if evaluating == finding else evaluating,
        **({"Transferred to": _targets(panel)} if panel.targets else {}),
        **({"Measures": measures} if measures else {}),
        "Protocol": _fields(panel.protocol),
    }


def _commits(made: Sequence[dict[str, Any]]) -> str:
    """Say from which commits results are, and whether the working tree had changes that were not committed."""
    trees = {True: "clean", False: "with changes that were not committed", None: "state of the tree not recorded"}
    found = {(item.get("commit"), item.get("clean")) for item in made}
    words = [f"commit {commit} ({trees[clean]})" if commit else "commit not recorded" for commit, clean in found]
    return ", ".join(sorted(words)) or "commit not recorded"


def limits(config: Config, frame: pd.DataFrame) -> Html:
    """Say what a study leaves open: size of the test set, replicates, recipes, collapse, and what is missing.

    Parameters
    ----------
    config : Config
        The study.
    frame : DataFrame
        Its tidy frame.
    """
    choice = {
        "last": "nothing was chosen on test images",
        "best_val": "the validation images chose it",
        "best_test": "the test images chose it, which flatters",
    }
    tests = {panel.data.name: panel.data.facts.test for panel in config.panels}
    networks = list(dict.fromkeys(panel.net.name for panel in config.panels))
    reports = dict.fromkeys(panel.protocol.report for panel in config.panels)
    sizes = dict.fromkeys(plots.sample_size(rows) for _, rows in results.panels(frame))
    counts = results.count_statuses(frame)
    items = [
        *(
            f"{name}: {test} test images; one image is {100 / test:.2g} percentage points, and accuracies come in "
            "steps of that size."
            for name, test in tests.items()
        ),
        f"Intervals rest on {listed(list(sizes)) or 'no replicates'}. They cover initial weights and order of the "
        "images, not another draw of training and test images.",
        f"What holds here, holds for {_count(networks, 'network')} on {_count(list(tests), 'data set')} and "
        f"{sum(len(set(panel.recipes)) for panel in config.panels)} recipes; learning rates are given, not tuned.",
        *(f"Reported epoch: {report}; {choice[report]}." for report in reports),
        *_collapse(frame),
        "Rows by status: " + (", ".join(f"{n} {status}" for status, n in counts.items() if n) or "none") + ".",
    ]
    unfinished = frame[frame["status"] != "done"]
    shown = [
        "network", "data", "what", "ticket", "method", "level", "find_lr", "eval_lr", "replicate", "status", "note",
    ]  # fmt: skip
    rows = table(unfinished[shown], "What is not done") if len(unfinished) else "<p>Nothing is missing or failed.</p>"
    return Html(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>{rows}")


def _collapse(frame: pd.DataFrame) -> list[str]:
    """Say which masks keep nothing of some layer, in a sentence, if there are masks at all."""
    masks = frame[frame["what"] == "mask"].drop_duplicates("key")
    if masks.empty:
        return []
    if (cut := results.collapsed(frame)).empty:
        return ["Every mask keeps something of each layer."]
    same = ["panel", "ticket", "method", "level", "sparsity", "note"]
    counts = cut.groupby(same, dropna=False, sort=False).size().rename("masks").reset_index()
    words = [
        f"{row['panel']}, {row['ticket']} {row['method']}, {level_of(row)}: {row['masks']} that {row['note']}"
        for row in counts.to_dict("records")
    ]
    many = f"{len(cut)} of {len(masks)} masks cut through layers, so that images may not reach the output"
    return [f"{many}: {'; '.join(words)}."]


# --- parts ----------------------------------------------------------------------------------------------------


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Means and intervals as readers see them: accuracies in %, what is the same everywhere left out."""
    by = [name for name in plots.CELL if name in frame and (name == "level" or strokes.varies(frame, name))]
    if {"find_lr", "eval_lr"} <= set(by) and (frame["find_lr"] == frame["eval_lr"]).all():
        by.remove("find_lr")
    cells = frame.groupby(by, dropna=False)
    extras = [name for name in ("widths", "parameters", "kept") if name in frame and frame[name].nunique() > 1]
    by += [name for name in extras if (cells[name].nunique() <= 1).all()]
    table = results.summarise(frame, by)
    if "chance" in frame and frame["chance"].notna().any():
        table["chance"] = results.summarise(frame.assign(value=frame["chance"]), by)["mean"]
    measured = "metric" in frame and not frame["metric"].isin(["test_accuracy", "pruned share"]).all()
    for name in ("mean", "sd", "low", "high", "chance"):
        if name in table:
            table[name] = [f"{value:.3f}" if measured else f"{100 * value:.2f}" for value in table[name]]
    if "sparsity" in table:
        table["sparsity"] = table["sparsity"].round(4)
    whole = [name for name in ("level", "kept", "parameters") if name in table]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    return table.rename(columns={} if measured else {"mean": "mean (%)"})


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} hours"


def _count(names: Sequence[str], what: str) -> str:
    return f"{'one' if len(names) == 1 else len(names)} {what}{'s' * (len(names) > 1)} ({', '.join(names)})"


def _span(words: Sequence[str]) -> str:
    return words[0] if len(set(words)) == 1 else f"{words[0]} to {words[-1]}"


def _distinct(items: Sequence[dict[str, Any]], name: str) -> str:
    return ", ".join(sorted({str(item.get(name, "not recorded")) for item in items})) or "not recorded"


def _fields(part: BaseModel) -> str:
    """Write a part's fields, those at their defaults too where they say how an experiment was done."""
    fields = part.model_dump(mode="json")
    unused = Net.model_fields.keys() - NETS[part.name].keys() if isinstance(part, Net) else set()
    shown = {n: value for n, value in fields.items() if n not in {"name", *unused} and value not in (None, [])}
    words = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in shown.items()]
    return ", ".join([*([fields["name"]] if "name" in fields else []), *words])


def _named(name: str, part: BaseModel) -> str:
    fields = _fields(part)
    return name.replace("_", " ") + (f": {fields}" if fields else "")


def _text(value: object) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def _ladder(panel: Panel) -> str:
    words = [f"to sparsity {sparsity}" for sparsity in panel.sparsities]
    if panel.levels:
        levels = ", ".join(str(level.k) for level in panel.levels)
        words.insert(0, f"levels {levels} of the ladder 1 − (1 − {panel.levels[0].rate})^level")
    if panel.at != (panel.protocol.masks_from,):
        words.append(f"ranked at {listed(panel.at)}")
    imposed = dict.fromkeys(text for counted in panel.counted.values() for text in counted)
    words += [f"also with the layer counts of {text}" for text in imposed]
    words += [f"gradually: {pruning.words(curve)}" for curve in panel.gradual]
    return ", ".join(words)


def _targets(panel: Panel) -> str:
    """Name data sets that tickets are transferred to, with the recipes there."""
    return "; ".join(
        f"{data.text}: {_recipes([recipe for several in recipes.values() for recipe in several])}"
        for data, recipes in panel.targets
    )


def _recipes(recipes: Sequence[Recipe]) -> str:
    """Write recipes with all values of each field that had a part in them."""
    idle = [_idle(recipe) for recipe in recipes]
    dumps = [recipe.model_dump(mode="json") for recipe in recipes]
    chosen = {name: list(dict.fromkeys(_text(dump[name]) for dump in dumps)) for name in dumps[0]}
    names = [name for name in chosen if not all(name in fields for fields in idle)]
    return ", ".join(f"{name.replace('_', ' ')} {' / '.join(chosen[name])}" for name in names)


def _idle(recipe: Recipe) -> set[str]:
    """Fields that change nothing beside the others."""
    return ({"betas"} if recipe.optimizer == "sgd" else {"momentum"}).union(
        (name for name in ("nesterov", "label_smoothing", "mixup") if not getattr(recipe, name)),
        {"milestones", "gamma"} if recipe.lr_schedule != "step" else (),
        {"batchnorm", "processes"} if recipe.batchnorm == "synchronised" else (),
    )
