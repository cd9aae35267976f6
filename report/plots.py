"""Plots of tables, by matplotlib."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from matplotlib.patches import Patch

from eval.scoring import METRICS
from eval.table import Table, cutoff
from report.axes import SMALL, Panel, calls_axis, legends, new_figure, one_line, save_figure
from report.escape import in_figure
from report.paper import Paper
from report.styles import SAMPLERS, Style, in_groups, styles_of
from report.words import against_cutoffs, curves_note, cutoffs_note, metric_title, sizes_words

CUTOFF_LABEL = "cutoff (0: Skipped-Step, 1000: DDIM)"
ACROSS = 3  # panels side by side: more could not be read at a page's width


def plot_table(
    path: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> None:
    """Score against network calls, one panel a metric; then the paper's, where it has that metric.

    Of many samplers each panel has some (`in_groups`), with a column of panels for each group; Mix at
    many cutoffs is drawn by `plot_cutoffs`.
    """
    beside = paper if paper and paper.is_of(table.records[0]) else None
    if against_cutoffs(table, beside is not None):
        plot_cutoffs(path, title, table, metrics, None)
        return
    below = None if beside else paper
    theirs = [m for m in metrics if below and any(published(below, m).values())]
    single = len(table.columns) == 1 and not beside
    groups = [table.rows] if single else in_groups(table.rows)
    drawn = [(group, metric) for metric in metrics for group in groups]
    across = len(groups) if len(groups) > 1 else min(ACROSS, len(metrics) + len(theirs))
    inches = (3.9, 3.0)
    if single:  # names below
        longest = max(len(one_line(row)) for row in table.rows)
        inches = (max(3.9, 0.16 * len(table.rows)), 3.0 + 0.065 * longest)
    panels = new_figure(len(drawn) + len(theirs), across, inches)
    styles = styles_of(table.rows)
    for panel, (group, metric) in zip(panels, drawn, strict=False):
        if single:
            _plot_rows(panel, table, metric, styles)
            continue
        plot_metric(panel, table, metric, {row: styles[row] for row in group})
        if beside:
            for row in group:
                points = [(s, beside.value(row, s, metric)) for s in table.columns]
                panel.numbers(points, styles[row], f"{row}, the paper")
        finish(panel, table, metric)
    for panel, metric in zip(panels[len(drawn) :], theirs, strict=False):
        assert below is not None
        _plot_paper(panel, below, metric)
    legends(panels, across, one=len(groups) == 1)
    save_figure(panels[0].axes.figure, path, title, curves_note(table, beside is not None))


def plot_metric(panel: Panel, table: Table, metric: str, styles: dict[str, Style]) -> None:
    """The samplers that have a style, a little apart at each number of calls, and the floor."""
    neighbours = min((b / a for a, b in pairwise(sorted(table.columns))), default=2.0)
    factor = min(1.15, neighbours**0.6) ** (1 / len(styles))
    for i, (row, style) in enumerate(styles.items()):
        apart = factor ** (i - (len(styles) - 1) / 2)
        for part in _of_one_size(table):
            calls = [r["cell"]["nfe"] if (r := table.record(row, s)) else s for s in part]
            scores = [table.value(row, s, metric) for s in part]
            panel.curve([(apart * c, s) for c, s in zip(calls, scores, strict=True)], style, row)
    for part in _of_one_size(table):
        panel.floor((s, table.floor(s, metric)) for s in part)


def _plot_rows(panel: Panel, table: Table, metric: str, styles: dict[str, Style]) -> None:
    """The samplers of a table of one number of calls, side by side, each above its name."""
    (steps,) = table.columns
    for at, (row, style) in enumerate(styles.items()):
        panel.curve([(at, table.value(row, steps, metric))], style, row)
    panel.entries.clear()
    panel.floor([(0, table.floor(steps, metric))])
    panel.axes.set_xlim(-0.5, len(styles) - 0.5)
    names = [in_figure(one_line(row)) for row in styles]
    panel.axes.set_xticks(range(len(styles)), names, rotation=90)
    panel.axes.set_xlabel(f"{steps} network calls a sample ({sizes_words(table)})", fontsize=SMALL)
    panel.finish(
        metric_title(metric, table.records[0]["extractor"]), METRICS[metric].lower_is_better
    )


def finish(panel: Panel, table: Table, metric: str) -> None:
    """The axes of network calls and of a metric."""
    calls_axis(panel.axes, table.columns, f"network calls a sample ({sizes_words(table)})")
    label = metric_title(metric, table.records[0]["extractor"])
    panel.finish(label, METRICS[metric].lower_is_better)


def _of_one_size(table: Table) -> Iterator[list[int]]:
    """Runs of columns with the same N, which one line may join."""
    return (list(part) for _, part in groupby(sorted(table.columns), key=table.n))


def published(paper: Paper, metric: str) -> dict[str, list[tuple[int, float]]]:
    """The paper's points (steps, score) of each row, where it states the steps."""
    return {
        row["name"]: [(c["steps"], c[metric]) for c in row["cells"] if metric in c and c["steps"]]
        for row in paper["rows"]
    }


def _plot_paper(panel: Panel, paper: Paper, metric: str) -> None:
    """The paper's numbers on data of its own: to compare orderings."""
    ours = {row["name"]: row.get("ours", row["name"]) for row in paper["rows"]}
    styles = styles_of(ours.values())
    points = published(paper, metric)
    for name, row in ours.items():
        panel.numbers(points[name], styles[row], name, line=True)
    panel.axes.set_title("the paper's numbers", fontsize=9)
    panel.axes.set_facecolor("whitesmoke")
    calls_axis(panel.axes, [s for some in points.values() for s, _ in some])
    panel.finish(metric_title(metric, paper["dataset"]), METRICS[metric].lower_is_better)


def plot_cutoffs(
    path: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> None:
    """As the paper's figure 4: a column of panels for each step count, a row for each metric."""
    columns = sorted(table.columns)
    drawn = [(metric, steps) for metric in metrics for steps in columns]
    panels = new_figure(len(drawn), len(columns))
    for panel, (metric, steps) in zip(panels, drawn, strict=True):
        if paper and "optimal_cutoffs" in paper.data:
            _shade(panel, paper)
        plot_dial(panel, table, steps, metric)
        panel.axes.set_title(f"{steps} network calls (N = {table.n(steps):,})", fontsize=9)
    legends(panels, len(columns), one=True)
    save_figure(panels[0].axes.figure, path, title, cutoffs_note(table))


def _shade(panel: Panel, paper: Paper) -> None:
    low, high = paper["optimal_cutoffs"]
    look: dict[str, Any] = {"color": "k", "alpha": 0.09, "lw": 0}
    panel.axes.axvspan(low, high, **look)
    data = one_line(paper["dataset"])
    words = f"[{low}, {high}]: where the paper has the best cutoffs ({data})"
    panel.entries["the paper"] = in_figure(textwrap.fill(words, 60)), Patch(**look)


def plot_dial(panel: Panel, table: Table, steps: int, metric: str) -> None:
    """A metric against Mix's cutoff, its two ends in the styles of what Mix is there, rivals as lines across."""
    points = [(cutoff(r), table.value(r["row"], steps, metric)) for r in table.dial(steps)]
    panel.curve(points, SAMPLERS["Mix"], "Mix")
    for end, name in ((0, "Skipped-Step"), (1000, "DDIM")):
        panel.curve([(x, s) for x, s in points if x == end], SAMPLERS[name], name, size=6)
    rivals = [r["row"] for r in table.column(steps) if math.isnan(cutoff(r))]
    for row, style in styles_of(rivals).items():
        panel.level(table.value(row, steps, metric), style, row)
    panel.floor([(0, table.floor(steps, metric))])
    cutoff_axis(panel.axes)
    label = metric_title(metric, table.records[0]["extractor"])
    panel.finish(label, METRICS[metric].lower_is_better)


def cutoff_axis(axes: Any) -> None:
    axes.set_xlim(-30, 1030)
    axes.set_xticks(range(0, 1001, 200))
    axes.set_xlabel(CUTOFF_LABEL, fontsize=8)
