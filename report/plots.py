"""Plots of tables, by matplotlib."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, on any machine
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter

from eval.score import Score
from eval.scoring import METRICS
from eval.table import Table, cutoff
from report.escape import in_figure
from report.paper import Paper
from report.words import metric_title

CUTOFF_LABEL = "cutoff (0: Skipped-Step, 1000: DDIM)"


def plot_table(
    path: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> None:
    """Score against steps, one panel a metric; then the paper's, where it has that metric."""
    beside = paper if paper and paper.is_of(table.records[0]) else None
    below = None if beside else paper
    theirs = [m for m in metrics if below and any(_published(below, m).values())]
    count = len(metrics) + len(theirs)
    across = min(4, count)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(3.8 * across, 3.1 * down), squeeze=False)
    panels = list(axes.flat)
    for ax in panels[count:]:
        ax.axis("off")
    for ax, metric in zip(panels, metrics, strict=False):
        _plot_metric(ax, table, metric, beside)
    panels[0].legend(fontsize=7)
    for ax, metric in zip(panels[len(metrics) :], theirs, strict=False):
        assert below is not None
        for name, points in _published(below, metric).items():
            ax.plot(*zip(*points, strict=True), marker="o", ms=3, label=in_figure(name))
        _style(ax, f"paper: {METRICS[metric].title} on {below['dataset']}", metric, _xs(points))
        ax.set_facecolor("whitesmoke")
    save_figure(figure, path, title)


def _published(paper: Paper, metric: str) -> dict[str, list[tuple[int, float]]]:
    """The paper's points (steps, score) of each row, where it states the steps."""
    return {
        row["name"]: [(c["steps"], c[metric]) for c in row["cells"] if metric in c and c["steps"]]
        for row in paper["rows"]
    }


def _plot_metric(ax: Any, table: Table, metric: str, beside: Paper | None) -> None:
    """One panel: every sampler, the floor, and the paper's points for each."""
    columns = table.columns
    for i, row in enumerate(table.rows):
        for part, label in _of_one_size(table, row):
            points = _there((s, table.value(row, s, metric)) for s in part)
            ax.errorbar(
                _xs(points),
                [v.value for _, v in points],
                [v.half for _, v in points],
                color=f"C{i}",
                marker="o",
                ms=3,
                capsize=2,
                label=label and in_figure(label),
            )
        if beside:
            published = [beside.value(row, s, metric) for s in columns]
            values = [np.nan if v is None else v for v in published]
            ax.plot(
                columns, values, color=f"C{i}", ls="--", lw=0.8, label=in_figure(f"{row}, paper")
            )
    for part, label in _of_one_size(table, "real"):
        floor = _there((s, table.floor(s, metric)) for s in part)
        if floor:
            ax.plot(_xs(floor), [f.value for _, f in floor], "k:", label=label)
    _style(ax, metric_title(metric, table.records[0]["extractor"]), metric, columns)
    ax.set_xticks(columns, [f"{s}\nN={table.n(s)}" for s in columns])


def _of_one_size(table: Table, label: str) -> list[tuple[list[int], str | None]]:
    """Runs of columns with the same N, which one line may join; only the first is labelled."""
    parts = [list(part) for _, part in groupby(table.columns, key=table.n)]
    return [(part, None if i else label) for i, part in enumerate(parts)]


def _there(points: Iterable[tuple[Any, Score | None]]) -> list[tuple[Any, Score]]:
    return [(x, score) for x, score in points if score is not None]


def _xs(points: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [x for x, _ in points]


def _style(ax: Any, title: str, metric: str, steps: Sequence[int]) -> None:
    ax.set_title(in_figure(title), fontsize=8)
    ax.set_xscale("log")
    ax.set_xticks(steps, [str(s) for s in steps])
    ax.minorticks_off()
    ax.set_xlabel("network calls", fontsize=8)
    if metric == "fid":
        ax.set_yscale("log")
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis(
                LogFormatter(minor_thresholds=(1.5, 0.5))
            )  # between decades only where there is room
    ax.tick_params(labelsize=7, which="both")
    ax.grid(alpha=0.3, which="both", lw=0.4)


def plot_cutoffs(
    path: Path, title: str, table: Table, metrics: Sequence[str], paper: Paper | None
) -> None:
    """As the paper's figure 4: one panel a step count, first metric left axis, second right."""
    columns = sorted(table.columns)
    figure, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.4), squeeze=False)
    extractor = table.records[0]["extractor"]
    for ax, steps in zip(axes[0], columns, strict=True):
        sides = zip(metrics[:2], ("tab:orange", "tab:blue"), (ax, ax.twinx()), strict=False)
        for metric, colour, side in sides:
            cells = table.column(steps)
            points = _there((cutoff(c), table.value(c["row"], steps, metric)) for c in cells)
            t = np.array(_xs(points))
            y = np.array([v.value for _, v in points])
            half = np.array([v.half for _, v in points])
            side.plot(t, y, marker="o", ms=3, color=colour)
            side.fill_between(t, y - half, y + half, color=colour, alpha=0.2, lw=0)
            side.set_ylabel(in_figure(metric_title(metric, extractor)), color=colour, fontsize=8)
            side.tick_params(labelsize=7)
        if paper and "optimal_cutoffs" in paper.data:
            ax.axvspan(*paper["optimal_cutoffs"], color="k", alpha=0.06, lw=0)
        ax.set_title(f"{steps} steps (N={table.n(steps)})", fontsize=9)
        ax.set_xlabel(CUTOFF_LABEL, fontsize=8)
        ax.grid(alpha=0.3)
    save_figure(figure, path, title)


def save_figure(figure: Any, path: Path, title: str, bottom: float = 0.0) -> None:
    """Write a figure whole and the same for the same data, and close it.

    `bottom` is the share of its height that is kept free for a legend.
    """
    figure.suptitle(in_figure(title), fontsize=10)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    # A fixed "Software" field, or the file would change with matplotlib's version.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
