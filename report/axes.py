"""Panels of figures: curves with intervals, scales that flatten nothing, ticks that do not collide."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, on any machine
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from eval.score import Score
from files.whole import printable
from report.escape import in_figure
from report.styles import REAL, Style

REAL_IMAGES, FLOOR = "real images", "\0real"  # in legends, and the key that no row can have
DPI = 130
LONGEST = 48  # letters of a name in a legend
SMALL = 8  # points: ticks and labels
UNKNOWN = Score(math.nan, math.nan)
Points = Iterable[tuple[float, Score | None]]


def one_line(name: str) -> str:
    """A name as one line of at most LONGEST letters."""
    line = " ".join(printable(name).split()) or "(no name)"
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


@dataclass(frozen=True)
class Scale:
    """How values are placed on an axis: "linear", "log", or by asinh, like symlog, about a centre.

    `unit` is the distance from the centre up to which the last is nearly linear.
    """

    name: str
    centre: float = 0.0
    unit: float = 1.0

    @staticmethod
    def fitting(values: Sequence[float], lower_is_better: bool, ideal: float | None) -> "Scale":
        """The scale on which the few that are far away leave room for the rest.

        Scores to be low fall towards 0 (an unbiased KID below), those to be high rise towards
        `ideal`: real images, or the best there is.
        """
        if lower_is_better and min(values) > 0 and (ideal is None or ideal > 0):
            return Scale("log" if max(values) > 4 * min(values) else "linear")
        best = max(values) if ideal is None else ideal
        centre = 0.0 if lower_is_better else best
        away = np.abs(np.array(values) - centre)
        usual = float(np.median(away))
        if usual > 0 and away.max() > (6 if lower_is_better else 12) * usual:
            return Scale("asinh", centre, usual)
        return Scale("linear")

    def forward(self, value: Any) -> Any:
        if self.name == "log":
            with np.errstate(all="ignore"):
                return np.log10(value)
        if self.name == "asinh":
            return np.arcsinh((np.asarray(value) - self.centre) / self.unit)
        return np.asarray(value, np.float64)

    def inverse(self, place: Any) -> Any:
        if self.name == "log":
            return 10.0 ** np.asarray(place)
        if self.name == "asinh":
            return np.sinh(place) * self.unit + self.centre
        return place

    def ticks(self, low: float, high: float, enough: int = 5) -> list[float]:
        """Of asinh: the roundest numbers, none closer to another than a share of the axis."""
        apart = (self.forward(high) - self.forward(low)) / (enough + 2)
        ticks: list[float] = []
        for level in self._rounder_first(low, high):
            for tick in level:
                gaps = np.abs(self.forward(np.array(ticks)) - self.forward(tick))
                if low <= tick <= high and (not ticks or gaps.min() >= apart):
                    ticks.append(tick)
            if len(ticks) >= enough:
                break
        return sorted(ticks)

    def _rounder_first(self, low: float, high: float) -> Iterator[list[float]]:
        """Powers of ten about a centre at 0; multiples of steps that are no small part of the axis."""
        digits = math.ceil(math.log10(max(abs(low), abs(high))))
        powers = range(digits, digits - 9, -1)
        if not self.centre:
            for k in (1, 5, 2):
                yield [0.0, *(sign * k * 10.0**e for e in powers for sign in (1, -1))]
        steps = (k * 10.0**e for e in powers for k in (5, 2, 1))
        for step in takewhile(lambda step: step > (high - low) / 25, steps):
            yield [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def put_on(self, axes: Any, low: float, high: float) -> None:
        """As the y axis, from `low` to `high`."""
        if self.name == "log":
            axes.set_yscale("log")
            wide = high > 300 * low
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=12))
            axes.yaxis.set_minor_locator(LogLocator(subs=tuple(range(1, 10)), numticks=12))
            axes.yaxis.set_minor_formatter(FixedFormatter([]))
        elif self.name == "asinh":
            axes.set_yscale("function", functions=(self.forward, self.inverse))
            axes.yaxis.set_major_locator(FixedLocator(self.ticks(low, high)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


@dataclass
class Panel:
    """Axes with curves, and what a legend has to say of them."""

    axes: Any
    entries: dict[str, tuple[str, Any]] = field(default_factory=dict)  # of a legend: text, handle
    curves: list[Score] = field(default_factory=list)
    floors: list[tuple[float, float]] = field(default_factory=list)

    def curve(self, points: Points, style: Style, label: str, size: float = 4) -> None:
        """A line of scores with 95% intervals, which breaks at those that are no numbers."""
        there = [(x, s if s and math.isfinite(s.value) else UNKNOWN) for x, s in points]
        known = [s for _, s in there if s is not UNKNOWN]
        if not known:
            return
        look = _look(style, size)
        x, scores = zip(*there, strict=True)
        values = [s.value for s in scores]
        drawn = self.axes.errorbar(x, values, _halves(scores), **look, elinewidth=0.8, capsize=2)
        for bar in (*drawn[1], *drawn[2]):  # paler than lines: they cross each other
            bar.set_alpha(0.5)
        self.curves += known
        self.explain(label, Line2D([], [], **look))

    def level(self, score: Score | None, style: Style, label: str) -> None:
        """A score that does not depend on x, as a line across with its 95% interval as a band."""
        if score is None or not math.isfinite(score.value):
            return
        look = {**_look(style), "marker": None}
        self.axes.axhline(score.value, **look)
        half = _halves([score])[0]
        band = (score.value - half, score.value + half)
        self.axes.axhspan(*band, color=style.colour, alpha=0.1, lw=0)
        self.curves.append(score)
        self.explain(label, Line2D([], [], **look))

    def numbers(
        self,
        points: Iterable[tuple[float, float | None]],
        style: Style,
        label: str,
        line: bool = False,
    ) -> None:
        """Numbers of which no error is known: hollow markers, or a line."""
        there = [(x, y) for x, y in points if y is not None]
        if not there:
            return
        hollow = {"linestyle": "none", "mfc": "none", "ms": 6.5, "mew": 1.1}
        look = _look(style) | ({} if line else hollow)
        self.axes.plot(*zip(*there, strict=True), **look)
        self.curves += [Score(y, math.nan) for _, y in there]
        self.explain(label, Line2D([], [], **look))

    def explain(self, label: str, handle: Any) -> None:
        """Have it in the legend."""
        self.entries.setdefault(label, (in_figure(one_line(label)), handle))

    def floor(self, points: Points) -> None:
        """What real images score in place of samples, drawn by `finish`."""
        self.floors += [(x, s.value) for x, s in points if s and math.isfinite(s.value)]
        self.floors.append((math.nan, math.nan))  # no line from these to others

    def finish(self, label: str, lower_is_better: bool) -> None:
        """Scale, range, grid and label of the y axis."""
        axes = self.axes
        axes.tick_params(labelsize=SMALL, which="both")
        axes.grid(alpha=0.3, lw=0.5)
        floors = [y for _, y in self.floors if math.isfinite(y)]
        if not self.curves:
            axes.text(0.5, 0.5, "no scores", ha="center", transform=axes.transAxes, fontsize=SMALL)
            axes.set_yticks([])
            axes.set_ylabel(in_figure(label), fontsize=SMALL)
            return
        values = [s.value for s in self.curves]
        scale = Scale.fitting(values, lower_is_better, floors[0] if floors else None)
        low, high = limits(scale, self.curves, floors)
        scale.put_on(axes, low, high)
        note = {"linear": "", "log": "log scale", "asinh": "symmetric log scale"}[scale.name]
        axes.set_ylabel(in_figure(f"{label}\n{note}".strip()), fontsize=SMALL)
        self._draw_floor(low, high)

    def _draw_floor(self, low: float, high: float) -> None:
        floors = [y for _, y in self.floors if math.isfinite(y)]
        if not floors:
            return
        if any(low <= y <= high for y in floors):
            look = {"lw": 1.4, **REAL.plot()}
            xs = {x for x, _ in self.floors if math.isfinite(x)}
            if len(xs) == 1:  # of one column, or the same everywhere
                self.axes.axhline(floors[0], **look)
            else:
                self.axes.plot(*zip(*self.floors, strict=True), **look)
            self.entries[FLOOR] = REAL_IMAGES, Line2D([], [], **look)
            return
        below = floors[0] < low
        words = f"{REAL_IMAGES}: {floors[0]:.3g} {'↓' if below else '↑'}"
        where = {"x": 0.5, "y": 0.02 if below else 0.98, "va": "bottom" if below else "top"}
        box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "k", "ls": ":", "alpha": 0.9}
        look = {"ha": "center", "fontsize": SMALL - 1, "transform": self.axes.transAxes}
        self.axes.text(s=words, **where, **look, bbox=box)


def _look(style: Style, size: float = 4) -> dict[str, Any]:
    return {"ms": size * (1.4 if style.marker in tuple("*PX") else 1), "lw": 1.3, **style.plot()}


def _halves(scores: Sequence[Score]) -> list[float]:
    """Half the 95% intervals; 0 where they are not known."""
    return [s.half if math.isfinite(s.half) else 0.0 for s in scores]


def limits(scale: Scale, scores: Sequence[Score], floors: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: all scores, and intervals and floors as far as they squash nothing."""
    places = scale.forward(np.array([s.value for s in scores]))
    low, high = float(places.min()), float(places.max())
    halves, values = np.array(_halves(scores)), np.array([s.value for s in scores])
    ends = [scale.forward(values - halves), scale.forward(values + halves)]
    reach = float(np.nanmedian(np.abs(ends[1] - places)))
    span = high - low or reach or 0.1 * abs(low) or 1.0
    marks = scale.forward(np.array(floors))
    near = [place for place in marks if low - 1.25 * span < place < high + 1.25 * span]
    low, high = min([low, *near]), max([high, *near])
    room = max(0.4 * span, 1.2 * reach)  # more of an unusually wide interval is cut off
    bottom = min(low, max(low - room, float(np.nanmin(ends[0]))))
    top = max(high, min(high + room, float(np.nanmax(ends[1]))))
    margin = 0.05 * (top - bottom) or 0.5 * span
    # Floors that are far away are told in words, which need a place.
    below, above = 3 * margin * any(marks < bottom), 3 * margin * any(marks > top)
    return float(scale.inverse(bottom - margin - below)), float(scale.inverse(top + margin + above))


# --- the x axis, legends and files ---------------------------------------------------------------


def new_figure(count: int, across: int, inches: tuple[float, float] = (3.9, 3.0)) -> list[Panel]:
    """So many panels of that size, `across` of them side by side."""
    down = math.ceil(count / across)
    width, height = max(5.0, inches[0] * across), inches[1] * down + 0.8
    size = (width, height)
    _, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for extra in axes.flat[count:]:
        extra.remove()
    return [Panel(axes) for axes in axes.flat[:count]]


def calls_axis(axes: Any, steps: Sequence[int], label: str = "network calls a sample") -> None:
    """Network calls, logarithmic, with a tick at each of the step counts."""
    axes.set_xscale("log")
    ordered = sorted(set(steps))
    axes.set_xlim(ordered[0] / 1.15, ordered[-1] * 1.15)
    axes.set_xticks(ordered, [f"{s:g}" for s in ordered])
    axes.minorticks_off()
    axes.set_xlabel(textwrap.fill(label, 58), fontsize=SMALL)


def legends(panels: Sequence[Panel], across: int, one: bool) -> None:
    """One legend of all panels below them, or one above each of the `across` columns."""
    figure = panels[0].axes.figure
    width = figure.get_size_inches()[0]
    if one:
        _legend(figure, panels, width, loc="outside lower center")
        return
    for column in (panels[i::across] for i in range(across)):
        title = 0.07 if column[0].axes.get_title() else 0.0
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0 + title)}
        _legend(column[0].axes, column, width / across, **above)


def _legend(of: Any, panels: Sequence[Panel], inches: float, **place: Any) -> None:
    entries = {name: handle for panel in panels for name, handle in panel.entries.items()}
    if not entries:
        return
    if FLOOR in entries:  # comes last
        entries[FLOOR] = entries.pop(FLOOR)
    texts, handles = zip(*entries.values(), strict=True)
    widest = max(len(line) for text in texts for line in text.split("\n"))
    columns = max(1, int(inches / (0.65 + 0.063 * widest)))
    lines = math.ceil(len(entries) / columns)
    look: dict[str, Any] = {"fontsize": SMALL, "handlelength": 4, "frameon": False}
    look["ncols"] = math.ceil(len(entries) / lines)  # as many in each line
    of.legend(handles, texts, **place, **look)


def save_figure(figure: Any, path: Path, title: str, note: str = "") -> None:
    """Write a figure whole and the same for the same data, and close it.

    Its layout is "constrained"; `note` stands below the title.
    """
    width = int(14 * figure.get_size_inches()[0])
    lines = [textwrap.fill(printable(text), width) for text in (title, note) if text]
    figure.suptitle(in_figure("\n".join(lines)), fontsize=SMALL + 1)
    figure.set_dpi(DPI)  # letters are not as wide at every one
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or it would change again with the ticks
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axes.axison:
                _thin(axis, horizontal=axis is axes.xaxis)
    # A fixed "Software" field, or the file would change with matplotlib's version.  "tight": whole,
    # however long a name is.
    tight = {"bbox_inches": "tight", "pad_inches": 0.08}
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, **tight)
    plt.close(figure)


def _thin(axis: Any, horizontal: bool) -> None:
    """Leave out the labels of ticks that would touch one that stays; the ends come first."""
    low, high = sorted(axis.get_view_interval())
    labels = dict(zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False))
    shown = {at: text for at, text in labels.items() if low <= at <= high and text.get_text()}
    if len(shown) < 2:
        return
    order = sorted(shown)
    kept: list[float] = []
    for at in (order[0], order[-1], *order[1:-1]):
        if all(_apart(shown[at], shown[other], horizontal) for other in kept):
            kept.append(at)
    if len(kept) < len(shown):
        axis.set_ticks(order, [shown[at].get_text() if at in kept else "" for at in order])


def _apart(one: Any, other: Any, horizontal: bool) -> bool:
    a, b = one.get_window_extent(), other.get_window_extent()
    room = 2.0  # pixels
    if horizontal:
        return bool(a.x1 + room < b.x0 or b.x1 + room < a.x0)
    return bool(a.y1 + room < b.y0 or b.y1 + room < a.y0)
