"""The parts of a report that are HTML: figures with captions, findings, provenance, limits."""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pydantic import BaseModel

from lthlab import plots, results
from lthlab.parts import NETS, Net, Recipe
from lthlab.spec import Config, Panel
from lthlab.store import Store

_SIZE = (3.5, 3.1)
_GRID = "display:grid;gap:0.8rem;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr))"
_FLOW = "display:flex;flex-wrap:wrap;gap:0.1rem 1.3rem;list-style:none;margin:0.5rem 0;padding:0"


class Html(str):
    """HTML that notebooks show."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML of {len(self)} characters>"


def figure(draw: Callable[..., Any], frame: pd.DataFrame, panels: str, about: str = "") -> Html:
    """Draw a frame in panels, with legend, caption, alternative texts, and the numbers behind it.

    Parameters
    ----------
    draw : callable
        Function of `lthlab.plots` that draws rows on Axes.
    frame : DataFrame
        Rows to draw.
    panels : str
        Column with one panel per value; with 'level', dense networks (level 0) are in every panel.
    about : str, optional
        First sentence of the caption.

    Returns
    -------
    Html
        A `<figure>` with SVG images, a table of means and intervals, and the rows as a CSV file.

    Raises
    ------
    ValueError
        As `draw` does.
    """
    from matplotlib.figure import Figure

    drawn = []
    for title, rows in _panels(frame, panels):
        ax = Figure(figsize=_SIZE, layout="constrained").subplots()
        draw(rows, ax=ax)
        ax.set_title(title, fontsize=10)
        drawn.append(ax)
    low, high = min(ax.get_ylim()[0] for ax in drawn), max(ax.get_ylim()[1] for ax in drawn)
    names: dict[str, Any] = {}
    for ax in drawn:
        ax.set_ylim(low, high)
        names |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    size = plots.sample_size(frame)
    images = "".join(_image(_svg(ax.figure), f"{plots.describe(ax)} {size}.") for ax in drawn)
    entries = "".join(f"<li>{_swatch(handle)}{html.escape(label)}</li>" for label, handle in names.items())
    # Four panels stand in two columns; a notebook has no style sheet of ours, so the elements have their own.
    even, width = ("even", "47rem") if len(drawn) in (2, 4) else ("", "none")
    columns = [name for name in plots.CELL if name in frame] + ["kept", "replicate", "value", "status", "key"]
    rows = frame[[name for name in dict.fromkeys(columns) if name in frame]]
    data = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    return Html(
        f'<figure><div class="panels {even}" style="{_GRID};max-width:{width}">{images}</div>'
        f'<ul class="legend" style="{_FLOW}">{entries}</ul>'
        f"<figcaption>{html.escape(' '.join(filter(None, (about, plots.caption(frame)))))}</figcaption>"
        f"<details><summary>The numbers</summary>{_table(_numbers(frame), 'Means and intervals')}"
        f'<p><a download="{draw.__name__}.csv" href="data:text/csv;base64,{data}">'
        f"All {len(rows)} values, one row per replicate (CSV)</a></p></details></figure>"
    )


def finding(frame: pd.DataFrame, first: str = "LT", second: str = "RR", method: str = "IMP") -> Html:
    """Say what came out for two tickets at the sparsest level, whatever it is.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with ladder levels.
    first, second : str, optional
        Tickets to compare, replicate by replicate.
    method : str, optional
        Whose masks.
    """
    trained = frame[(frame["method"] == method) & (frame["what"] == "train")]
    by = ["find_lr", "eval_lr", "level", "sparsity"]
    pairs = results.differences(trained, first, second, by)
    if pairs.empty:
        return Html(f'<p class="finding">No pair of {first} and {second} on {method} masks is done.</p>')
    pairs = pairs[pairs["level"] == pairs["level"].max()]
    rows = results.summarise(pairs, by).to_dict("records")
    where = [f"{row['eval_lr']:g}" for row in rows]
    if any(row["find_lr"] != row["eval_lr"] for row in rows):
        where = [f"{row['eval_lr']:g} (mask found at {row['find_lr']:g})" for row in rows]
    unseen = [place for place, row in zip(where, rows, strict=True) if row["low"] <= 0 <= row["high"]]
    text = (
        f"At level {rows[0]['level']}, where {100 * (1 - rows[0]['sparsity']):.3g} % of the prunable weights remain, "
        f"{first} minus {second} on {method} masks was "
        + _listed([f"{_points(row)} at learning rate {place}" for place, row in zip(where, rows, strict=True)])
        + " (percentage points of test accuracy; mean of paired differences, "
        + ("95 % t interval, " if rows[0]["n"] > 1 else "")
        + f"{plots.sample_size(pairs.assign(method=method))})."
    )
    if unseen:
        text += f" At {_listed(unseen)} we did not see a difference on these masks."
    return Html(f'<p class="finding"><strong>What came out.</strong> {html.escape(text)}</p>')


def provenance(config: Config, store: Store, frame: pd.DataFrame, study: str) -> Html:
    """Say what a page is made of and how to make it again.

    Parameters
    ----------
    config : Config
        The study.
    store : Store
        Where its results are.
    frame : DataFrame
        Its tidy frame.
    study : str
        Its file, as named in the notebook.
    """
    panel = config.panels[0]
    trainings = frame[frame["what"] == "train"]
    keys = trainings["key"].unique()
    parts = [(key, part) for key in keys if store.has(key) for part in store.parts(key)]
    trained = [(key, part.number) for key, part in parts if part.record["kind"] == "train"]
    made = [json.loads(store.read(key, "provenance.json", number)) for key, number in trained]
    facts = panel.data.facts
    shape = " × ".join(map(str, facts.shape))
    file = re.sub(r"^([.][.]?/)+", "", study)
    days = sorted({item["date"][:10] for item in made})
    seconds = sum(item["seconds"] / item["replicas"] for item in made)
    seeds = "0" if panel.replicates == 1 else f"0 to {panel.replicates - 1}"
    versions = [f"{name} {_distinct(made, name)}" for name in ("lthlab", "torch", "numpy", "python")]
    machine = f"{_distinct(made, 'device')} ({_distinct(made, 'processor')}), {_distinct(made, 'threads')}"
    fingerprint = hashlib.sha256("".join(sorted(set(frame["key"]))).encode()).hexdigest()[:32]
    lines = {
        "Study": f"{config.name}: {config.title}",
        "Make it again": f"lthlab compute {file}, then run the notebook",
        "Trainings": f"{len(keys)}, and {len(trainings) - len(keys)} more roles that share one of them",
        "Replicates": f"{panel.replicates}; the seeds are the numbers of the replicates, {seeds}",
        "Network": f"{_fields(panel.net)}; prunable set: {panel.protocol.prunable}",
        "Data": f"{_fields(panel.data)}; {panel.data.images} training and {facts.test} test images of {shape}, "
        f"{facts.classes} classes; fingerprint {facts.fingerprint}",
        "Pruning": _ladder(panel),
        "Tickets": "; ".join(f"{name}: {_fields(options)}" for name, options in panel.tickets if options is not None),
        "Finding masks": _recipes([find for find, _ in panel.recipes]),
        "Training tickets": _recipes([evaluate for _, evaluate in panel.recipes]),
        "Protocol": _fields(panel.protocol),
        "Versions": ", ".join(versions),
        "Machine": f"{machine} threads; {seconds:.0f} s of training in all",
        "Dates": f"trained {_span(days)}; page made {datetime.now(UTC).date()}",
        "Results": f"fingerprint {fingerprint} of the keys of all {frame['key'].nunique()} values",
    }
    cells = "".join(f'<tr><th scope="row">{name}</th><td>{html.escape(text)}</td></tr>' for name, text in lines.items())
    return Html(f'<table class="facts"><tbody>{cells}</tbody></table>')


def limits(config: Config, frame: pd.DataFrame) -> Html:
    """Say what a study leaves open: size of the test set, replicates, recipes, and what is missing.

    Parameters
    ----------
    config : Config
        The study.
    frame : DataFrame
        Its tidy frame.
    """
    panel = config.panels[0]
    test = panel.data.facts.test
    choice = {
        "last": "nothing was chosen on test images",
        "best_val": "the validation images chose it",
        "best_test": "the test images chose it, which flatters",
    }
    counts = results.count_statuses(frame)
    items = [
        f"{test} test images: one image is {100 / test:.2g} percentage points, "
        "and accuracies come in steps of that size.",
        f"Intervals rest on {plots.sample_size(frame)}. They cover initial weights and order of the images, "
        "not another draw of training and test images.",
        f"One network ({panel.net.name}), one data set ({panel.data.name}), "
        f"{len(set(panel.recipes))} recipes; learning rates are given, not tuned.",
        f"Reported epoch: {panel.protocol.report}; {choice[panel.protocol.report]}.",
        "Rows by status: " + ", ".join(f"{number} {status}" for status, number in counts.items() if number) + ".",
    ]
    unfinished = frame[frame["status"] != "done"]
    shown = ["what", "ticket", "method", "level", "find_lr", "eval_lr", "replicate", "status", "note"]
    rows = _table(unfinished[shown], "What is not done") if len(unfinished) else "<p>Nothing is missing or failed.</p>"
    return Html(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>{rows}")


def _panels(frame: pd.DataFrame, by: str) -> Iterator[tuple[str, pd.DataFrame]]:
    everywhere = (frame["level"] == 0) if by == "level" else pd.Series(False, frame.index)
    for value in sorted(frame.loc[~everywhere, by].dropna().unique()):
        rows = frame[everywhere | (frame[by] == value)]
        name = {"eval_lr": "learning rate", "find_lr": "mask found at learning rate"}.get(by, by)
        left = f" ({100 * (1 - rows['sparsity'].max()):.3g} % of the weights)" if by == "level" else ""
        yield f"{name} {value:g}{left}", rows


def _svg(drawing: Any) -> bytes:
    """Draw as SVG; equal drawings give equal bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lthlab"}):
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _image(svg: bytes, alternative: str) -> str:
    role = "" if alternative else ' role="presentation"'
    data = base64.b64encode(svg).decode()
    return f'<img alt="{html.escape(alternative)}"{role} src="data:image/svg+xml;base64,{data}">'


def _swatch(handle: Any) -> str:
    """Draw a legend's line and marker, which words beside them explain."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(0.42, 0.16))
    drawing.legend([handle], [""], loc="center", frameon=False, borderpad=0, handletextpad=0, handlelength=2.6)
    return _image(_svg(drawing), "")


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Means and intervals as readers see them: accuracies in %, what is the same everywhere left out."""
    by = [name for name in (*plots.CELL, "kept") if name in frame and (name == "level" or frame[name].nunique() > 1)]
    table = results.summarise(frame, by)
    if "chance" in frame and frame["chance"].notna().any():
        table["chance"] = results.summarise(frame.assign(value=frame["chance"]), by)["mean"]
    measured = "metric" in frame and (frame["metric"] != "test_accuracy").any()
    for name in ("mean", "sd", "low", "high", "chance"):
        if name in table:
            table[name] = [f"{value:.3f}" if measured else f"{100 * value:.2f}" for value in table[name]]
    if "sparsity" in table:
        table["sparsity"] = table["sparsity"].round(4)
    if "kept" in table:
        table["kept"] = table["kept"].astype("Int64")
    return table.rename(columns={} if measured else {"mean": "mean (%)"})


def _table(frame: pd.DataFrame, label: str) -> str:
    text = frame.astype(object).where(frame.notna(), "").to_html(index=False, border=0, classes="rows")
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{text}</div>'


def _points(row: dict[Any, Any]) -> str:
    mean, low, high = (f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("mean", "low", "high"))
    return mean if row["n"] < 2 else f"{mean} [{low}, {high}]"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _span(words: Sequence[str]) -> str:
    return words[0] if len(set(words)) == 1 else f"{words[0]} to {words[-1]}"


def _distinct(items: Sequence[dict[str, Any]], name: str) -> str:
    return ", ".join(sorted({str(item[name]) for item in items}))


def _fields(part: BaseModel) -> str:
    """Write a part's fields, those at their defaults too where they say how an experiment was done."""
    fields = part.model_dump(mode="json")
    unused = {"width", "shortcut"} if isinstance(part, Net) and not NETS[part.name] else set()
    shown = {name: value for name, value in fields.items() if name not in {"name", *unused} and value is not None}
    words = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in shown.items()]
    return ", ".join([*([fields["name"]] if "name" in fields else []), *words])


def _text(value: object) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def _ladder(panel: Panel) -> str:
    words = [f"to sparsity {sparsity}" for sparsity in panel.sparsities]
    if panel.levels:
        levels = ", ".join(str(level.k) for level in panel.levels)
        words.insert(0, f"levels {levels} of the ladder 1 − (1 − {panel.levels[0].rate})^level")
    return ", ".join(words)


def _recipes(recipes: Sequence[Recipe]) -> str:
    """Write recipes with all values of each field that had a part in them."""
    idle = [_idle(recipe) for recipe in recipes]
    dumps = [recipe.model_dump(mode="json") for recipe in recipes]
    chosen = {name: list(dict.fromkeys(_text(dump[name]) for dump in dumps)) for name in dumps[0]}
    names = [name for name in chosen if not all(name in fields for fields in idle)]
    return ", ".join(f"{name.replace('_', ' ')} {' / '.join(chosen[name])}" for name in names)


def _idle(recipe: Recipe) -> set[str]:
    """Fields that change nothing beside the others."""
    return {"betas" if recipe.optimizer == "sgd" else "momentum"} | (
        {"milestones", "gamma"} if recipe.lr_schedule != "step" else set()
    )
