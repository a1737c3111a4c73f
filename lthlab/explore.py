"""A tidy frame to look around in: widgets that choose rows, and a figure and a table that follow."""

import html
from typing import Any

import pandas as pd

from lthlab import markup, plots, reports, results, strokes

_X = ("sparsity", "eval_lr", "find_lr", "level", "kept", "parameters", "search_epochs", "p", "images", "replicate")
_HUES = {"ticket and mask": ("ticket", "method"), "ticket": ("ticket",), "method": ("method",), "level": ("sparsity",)}
_HUES |= {"eval_lr": ("eval_lr",), "find_lr": ("find_lr",)}
_FILTERS = {"ticket": "Tickets", "method": "Masks", "sparsity": "Levels", "eval_lr": "Learning rate"}
_FILTERS |= {"find_lr": "Mask found at", "prune_at": "Ranked at", "reading": "Reading", "p": "p", "images": "Images"}
_FILTERS |= {"measured_at": "Measured at"}
_LATEST = ("sparsity", "prune_at", "measured_at")

_APART = "border-collapse:separate;border-spacing:0.9em 0"  # widgets have no cell padding


def show(frame: pd.DataFrame) -> "Explorer":
    """Look around in a tidy frame with widgets.

    Parameters
    ----------
    frame : DataFrame
        From `lthlab.results.load`, of one study or several.

    Raises
    ------
    ValueError
        If nothing in the frame is done.
    """
    return Explorer(frame)


class Explorer:
    """Widgets over a tidy frame; a notebook shows it.

    Where a selection would mix what is not a replicate of the same, the figure says what differs.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame; masks, steps of a search and what is not done are left out.

    Attributes
    ----------
    choices : dict
        Dropdowns 'study', 'panel', 'what', 'x' and 'hue' (one line per value).
    filters : dict
        Multiple selections 'ticket', 'method', 'sparsity', 'eval_lr', 'find_lr', 'prune_at', and of measures 'reading',
        'p', 'images' and 'measured_at'; what has none of it, such as dense networks a mask, is always in.
    figure, table : ipywidgets.HTML
        Means with intervals.
    rows : DataFrame
        What is shown.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        import ipywidgets

        self.frame = frame[(frame["status"] == "done") & (frame["ticket"] != "search") & (frame["what"] != "mask")]
        if self.frame.empty:
            raise ValueError(f"nothing to explore: none of {len(frame)} rows is done")
        self.rows = self._panel = self.frame
        wide: dict[str, Any] = {"layout": {"width": "20rem"}, "style": {"description_width": "7rem"}}
        names = {"study": "Study", "panel": "Panel", "what": "What", "x": "x axis", "hue": "Lines"}
        self.choices = {name: ipywidgets.Dropdown(description=text, **wide) for name, text in names.items()}
        self.filters = {
            name: ipywidgets.SelectMultiple(description=text, rows=6, **wide) for name, text in _FILTERS.items()
        }
        self.figure, self.table = ipywidgets.HTML(), ipywidgets.HTML()
        flow = {"flex_flow": "row wrap"}
        selections = [ipywidgets.HBox(list(group.values()), layout=flow) for group in (self.choices, self.filters)]
        self.box = ipywidgets.VBox([*selections, self.figure, self.table])
        self._busy = False
        for name, widget in (self.choices | self.filters).items():
            widget.observe(lambda change, name=name: self._changed(name), names="value")
        self._changed(None)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)

    def _changed(self, name: str | None) -> None:
        """Offer what is left to choose after a change, then show what is chosen."""
        if self._busy:  # changes that this method makes itself
            return
        self._busy = True
        try:
            order = [None, *self.choices]
            if name in order:
                for later in order[order.index(name) + 1 :]:
                    self._offer(str(later))
                self._offer_filters()
            self._show()
        finally:
            self._busy = False

    def _offer(self, name: str) -> None:
        widget, frame = self.choices[name], self.frame
        if name == "study":
            options = list(frame["study"].unique())
        elif name == "panel":
            self._panels = dict(results.panels(frame[frame["study"] == self.choices["study"].value]))
            options = list(self._panels)
        elif name == "what":
            self._panel = self._panels[self.choices["panel"].value]
            options = sorted(self._panel["what"].unique(), key=lambda what: (what != "train", what))
        elif name == "x":
            self._of = self._panel[self._panel["what"] == self.choices["what"].value]
            options = [column for column in _X if column in self._of and self._of[column].nunique() > 1]
            options = options or ["sparsity"]
        else:
            options = [hue for hue, columns in _HUES.items() if self._of[list(columns)].notna().any(axis=None)]
        before = widget.value
        widget.options = options
        widget.value = before if before in options else options[0]

    def _offer_filters(self) -> None:
        """Select everything of what is drawn along an axis or as lines, and one value of the rest."""
        drawn = {self.choices["x"].value, *_HUES[self.choices["hue"].value]}
        drawn |= {"sparsity"} if drawn & {"level", "kept", "parameters"} else set()
        same = (self._of["find_lr"] == self._of["eval_lr"]).all()
        rows = self._of[self._of["ticket"] != "dense"]
        rows = self._of if rows.empty else rows
        for name, widget in self.filters.items():
            values = sorted(self._of[name].dropna().unique(), key=_rank)
            if name == "sparsity":
                values = [value for value in values if value > 0] or values
            widget.options = [(self._label(name, value), value) for value in values]
            there = [value for value in values if (rows[name] == value).any()]
            one = there[-1:] if name in _LATEST else there[:1]
            widget.value = tuple(values if name in drawn or (name == "find_lr" and same) else one)
            rows = rows[rows[name].isna() | rows[name].isin(widget.value)]
            widget.layout.display = "none" if len(values) < 2 or (name == "find_lr" and same) else ""

    def _label(self, name: str, value: Any) -> str:
        if name != "sparsity":
            return f"{value:g}" if isinstance(value, float) else str(value)
        level = self._of.loc[self._of["sparsity"] == value, "level"].iloc[0]
        left = f"{100 * (1 - value):.3g} % left"
        return left if pd.isna(level) else f"level {level:g} ({left})"

    def _show(self) -> None:
        from matplotlib.figure import Figure

        keep = pd.Series(True, self._of.index)
        for name, widget in self.filters.items():
            lacks = self._of[name].isna() | ((name == "sparsity") & (self._of["level"] == 0))
            keep &= lacks | self._of[name].isin(widget.value)
        self.rows = self._of[keep]
        ax = Figure(figsize=(7.2, 3.8), layout="constrained").subplots()
        try:
            plots.means(self.rows, self.choices["x"].value, self.choices["hue"].value, ax=ax)
        except ValueError as problem:
            self.figure.value, self.table.value = f"<p>{html.escape(str(problem))}</p>", ""
            return
        ax.set_title(self.choices["panel"].value, fontsize=10)
        plots.legend(ax)
        self.figure.value = markup.drawing(ax) + f"<p>{html.escape(plots.caption(self.rows))}</p>"
        table = reports.numbers(self.rows, "Means and intervals")
        self.table.value = table.replace("<table ", f'<table style="{_APART}" ')


def _rank(value: Any) -> tuple[int, Any]:
    """Put tickets and readings in their usual order, dense networks last, and steps by number, iterations first."""
    if isinstance(value, str) and value[:1].isdigit():
        return 0, (value.endswith("ep"), int(value[:-2]))
    order = (*strokes.TICKETS[1:], *strokes.METHODS, "own")
    return (order.index(value) if value in order else len(order), value) if isinstance(value, str) else (0, value)
