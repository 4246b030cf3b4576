"""Pictures of reports, for notebooks, pages and papers (extra `notebook`).

```python
from langgraph_deadline import collect_runs
from langgraph_deadline.notebook import timeline

with collect_runs() as runs:
    graph.invoke(inputs)
timeline(runs[0]).to_html("run.html")  # as runs[0].to_html(...) does
```

Nothing here touches `pyplot`: no display is needed, and your figures are left alone.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from . import _page
from ._charts import summary_scene
from ._page import Theme, checked_theme
from ._scene import DARK, LIGHT, Box, Item, Line, Mark, Scene, Words
from ._timeline import timeline_scene
from .report import RunReport
from .summary import Summary, summarize

__all__ = ("Picture", "page", "summary", "timeline")

MOST_RUNS = 50
"""Timelines on a page of many runs."""


@dataclass(frozen=True)
class Picture:
    """A picture of one or many runs; shows itself in notebooks."""

    title: str
    text: str
    """What it shows, in words."""

    scene: Scene | None
    """What is drawn; `None` if there is nothing to draw."""

    theme: Theme = "auto"
    more: tuple[Picture, ...] = ()
    """Pictures that stand below it on a page."""

    def to_html(self, path: str | Path | None = None) -> str:
        """Return a page that works offline; write it to `path`.

        Raises:
            OSError: If it cannot be written there.
        """
        html = _page.page(self.title, self._body(), self.theme)
        if path is not None:
            Path(path).write_text(html, encoding="utf-8")
        return html

    def to_png(self, path: str | Path | None = None) -> bytes:
        """Return the picture as a PNG, light unless its theme is dark.

        Pictures below it are left out.

        Raises:
            OSError: If it cannot be written to `path`.
            ValueError: If there is nothing to draw.
        """
        if self.scene is None:
            msg = f"there is nothing to draw: {' '.join(self.text.split())}"
            raise ValueError(msg)
        png = _png(self.scene, DARK if self.theme == "dark" else LIGHT)
        if path is not None:
            Path(path).write_bytes(png)
        return png

    def fragment(self) -> str:
        """Return HTML to put into a page; its ids are new each time."""
        return _page.style(self.theme) + self._body()

    def _repr_html_(self) -> str:
        return self.fragment()

    def _body(self) -> str:
        return "\n".join(map(_figure, (self, *self.more)))


def _figure(picture: Picture) -> str:
    """Return a picture in HTML, without those below it."""
    if picture.scene is None:
        return _page.sentence(picture.text, picture.theme)
    token = f"lgd-{uuid4().hex[:12]}"
    svg = _page.inline(_svg(picture.scene), token, picture.title, picture.text)
    return _page.figure(svg, picture.text, picture.theme)


def timeline(report: RunReport, *, theme: str = "auto") -> Picture:
    """Return the timeline of a run: one row a step, the deadline as a line.

    Args:
        report: The run's report.
        theme: `auto` (what the notebook or the system prefers), `light` or `dark`.

    Raises:
        ValueError: If there is no such theme.
    """
    title = f"Timeline of a run of {report.name}"
    scene = timeline_scene(report) if report.steps else None
    return Picture(title, str(report), scene, checked_theme(theme))


def summary(runs: Summary | Iterable[RunReport], *, theme: str = "auto") -> Picture:
    """Return a summary of many runs: latencies, what was cut, where budgets go.

    Args:
        runs: Their reports, or their summary. Where steps ran at the same time, only
            the reports tell how they share it.
        theme: `auto` (what the notebook or the system prefers), `light` or `dark`.

    Raises:
        ValueError: If there is no such theme.
    """
    reports = [] if isinstance(runs, Summary) else list(runs)
    summed = runs if isinstance(runs, Summary) else summarize(reports)
    number = "1 run" if summed.runs == 1 else f"{summed.runs:,} runs"
    scene = summary_scene(summed, reports) if summed.steps else None
    return Picture(f"Summary of {number}", str(summed), scene, checked_theme(theme))


def page(runs: Iterable[RunReport], *, theme: str = "auto") -> Picture:
    """Return the summary of `runs` with their timelines below it.

    Of more than 50 runs, those that did not complete are shown first, then the longest.

    Args:
        runs: Their reports.
        theme: `auto` (what the notebook or the system prefers), `light` or `dark`.

    Raises:
        ValueError: If there is no such theme.
    """
    reports = list(runs)
    if len(reports) == 1:
        return timeline(reports[0], theme=theme)
    shown = sorted(reports, key=lambda r: (r.outcome == "completed", -r.elapsed))
    shown = shown[:MOST_RUNS]
    below = [timeline(r, theme=theme) for r in reports if any(r is s for s in shown)]
    top = summary(reports, theme=theme)
    if len(reports) > len(shown):
        left = len(reports) - len(shown)
        said = (
            f"{left:,} more runs are left out below: shown are those that did not "
            "complete, then the longest."
        )
        below.insert(0, Picture(top.title, said, None, top.theme))
    return Picture(top.title, top.text, top.scene, top.theme, tuple(below))


# Drawing.

_NONE = "none"
_FAMILY = ["DejaVu Sans"]  # comes with matplotlib; browsers use their own

_SHAPES = {
    "cross": "x",
    "diamond": "D",
    "triangle": "v",
    "circle": "o",
    "bar": "|",
    "arrow": ">",
}
_DASHES: Mapping[str, Any] = {
    "solid": "solid",
    "dashed": (0, (4, 2.5)),
    "dotted": (0, (1, 1.2)),
}

# Matplotlib is not made for several threads, and how it writes text into an SVG can
# only be said in its global settings: one picture at a time.
_drawing = threading.Lock()


def _png(scene: Scene, colours: Mapping[str, str]) -> bytes:
    written = io.BytesIO()
    with _drawing:
        figure = _drawn(scene, colours, dpi=144)
        FigureCanvasAgg(figure)
        _save(figure, written, "png", {"Software": None})
    return written.getvalue()


def _svg(scene: Scene) -> str:
    """Return `scene` in the light palette, text as text."""
    written = io.StringIO()
    none: dict[str, Any] = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with _drawing:
        before = mpl.rcParams["svg.fonttype"]
        mpl.rcParams["svg.fonttype"] = "none"
        try:
            figure = _drawn(scene, LIGHT, dpi=72)
            FigureCanvasSVG(figure)
            _save(figure, written, "svg", none)
        finally:
            mpl.rcParams["svg.fonttype"] = before
    return written.getvalue()


def _save(figure: Figure, to: IO[Any], kind: str, metadata: dict[str, Any]) -> None:
    # All that the user's own settings would decide otherwise is said.
    figure.savefig(
        to,
        format=kind,
        dpi="figure",
        facecolor="auto",
        edgecolor="none",
        transparent=False,
        bbox_inches=Bbox.from_bounds(0.0, 0.0, *figure.get_size_inches()),
        metadata=metadata,
    )


def _drawn(scene: Scene, colours: Mapping[str, str], dpi: float) -> Figure:
    figure = Figure(
        figsize=(scene.width / 72, scene.height / 72),
        dpi=dpi,
        facecolor=colours["background"],
    )
    figure.set_layout_engine("none")  # whatever the user's own settings say
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0.0, scene.width)
    axes.set_ylim(scene.height, 0.0)
    for order, item in enumerate(scene.items):
        for artist in _artists(axes, item, colours):
            artist.set(zorder=order, clip_on=False)
    return figure


def _artists(axes: Axes, item: Item, colours: Mapping[str, str]) -> list[Artist]:
    match item:
        case Box():
            return _box(axes, item, colours)
        case Line():
            return [
                *axes.plot(
                    [item.x, item.to_x],
                    [item.y, item.to_y],
                    color=colours[item.ink],
                    linewidth=item.width,
                    linestyle=_DASHES[item.dash],
                    dash_capstyle="butt",
                    solid_capstyle="butt",
                    marker="",
                )
            ]
        case Mark():
            return [
                *axes.plot(
                    [item.x],
                    [item.y],
                    linestyle="none",
                    marker=_SHAPES[item.shape],
                    markersize=item.size,
                    markeredgecolor=colours[item.ink],
                    markeredgewidth=item.size / 4 if item.shape == "cross" else 1.4,
                    markerfacecolor=_NONE if item.fill is None else colours[item.fill],
                )
            ]
        case Words():
            weight = "bold" if item.bold else "normal"
            return [
                axes.text(
                    item.x,
                    item.y,
                    item.text,
                    color=colours[item.ink],
                    font=FontProperties(family=_FAMILY, size=item.size, weight=weight),
                    horizontalalignment=item.align,
                    verticalalignment="baseline",
                    parse_math=False,
                    usetex=False,
                )
            ]


def _box(axes: Axes, item: Box, colours: Mapping[str, str]) -> list[Artist]:
    # In two parts: a pattern has the colour of the edge, which frames it thinly.
    rectangle = partial(Rectangle, (item.x, item.y), item.width, item.height)
    fill = _NONE if item.fill is None else colours[item.fill]
    parts = [rectangle(facecolor=fill, edgecolor=_NONE)]
    if item.edge is not None:
        edge = colours[item.edge]
        hatch = item.hatch or None
        parts.append(
            rectangle(facecolor=_NONE, edgecolor=edge, linewidth=0.8, hatch=hatch)
        )
    return [axes.add_patch(part) for part in parts]
