"""Plots of tables, by matplotlib."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.patches import Patch

from eval.scoring import METRICS
from eval.table import Table, cutoff
from report.axes import Panel, calls_axis, legends, new_figure, one_line, save_figure
from report.escape import in_figure
from report.paper import Paper
from report.styles import SAMPLERS, Style, in_groups, styles_of
from report.words import curves_note, cutoffs_note, metric_title, sizes_words

CUTOFF_LABEL = "cutoff (0: Skipped-Step, 1000: DDIM)"
ACROSS = 4  # panels side by side


def plot_table(
    path: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> None:
    """Score against network calls, one panel a metric; then the paper's, where it has that metric.

    Of many samplers each panel has some (`in_groups`), with a column of panels for each group.
    """
    beside = paper if paper and paper.is_of(table.records[0]) else None
    below = None if beside else paper
    theirs = [m for m in metrics if below and any(published(below, m).values())]
    groups = in_groups(table.rows)
    drawn = [(group, metric) for metric in metrics for group in groups]
    across = len(groups) if len(groups) > 1 else min(ACROSS, len(metrics) + len(theirs))
    panels = new_figure(len(drawn) + len(theirs), across)
    styles = styles_of(table.rows)
    for panel, (group, metric) in zip(panels, drawn, strict=False):
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
    for i, (row, style) in enumerate(styles.items()):
        apart = 1.015 ** (i - (len(styles) - 1) / 2)
        for part in _of_one_size(table):
            calls = [r["cell"]["nfe"] if (r := table.record(row, s)) else s for s in part]
            scores = [table.value(row, s, metric) for s in part]
            panel.curve([(apart * c, s) for c, s in zip(calls, scores, strict=True)], style, row)
    for part in _of_one_size(table):
        panel.floor((s, table.floor(s, metric)) for s in part)


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
    """As the paper's figure 4: a column of panels for each step count, a row for each of two metrics."""
    columns = sorted(table.columns)
    drawn = [(metric, steps) for metric in metrics[:2] for steps in columns]
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
    """A metric against Mix's cutoff, its two ends in the styles of what Mix is there."""
    cells = sorted(table.column(steps), key=cutoff)
    points = [(cutoff(r), table.value(r["row"], steps, metric)) for r in cells]
    panel.curve(points, SAMPLERS["Mix"], "Mix")
    for end, name in ((0, "Skipped-Step"), (1000, "DDIM")):
        panel.curve([(x, s) for x, s in points if x == end], SAMPLERS[name], name, size=6)
    panel.floor([(cutoff(cells[0]), table.floor(steps, metric))])
    cutoff_axis(panel.axes)
    label = metric_title(metric, table.records[0]["extractor"])
    panel.finish(label, METRICS[metric].lower_is_better)


def cutoff_axis(axes: Any) -> None:
    axes.set_xlim(-30, 1030)
    axes.set_xticks(range(0, 1001, 200))
    axes.set_xlabel(CUTOFF_LABEL, fontsize=8)
