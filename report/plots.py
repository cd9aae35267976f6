"""Plots of tables, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, on any machine
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import ScalarFormatter

from eval.metrics import Score
from eval.records import score
from eval.scoring import METRIC_NAMES
from eval.table import Cell, _column, _columns, _floor, _rows, _sizes, cutoff
from report.paper import is_the_papers, paper_value
from report.words import metric_title


def _plot_table(
    path: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """Score against steps, one panel a metric; then the paper's, where it has that metric."""
    rows, columns, sizes = _rows(cells), _columns(cells), _sizes(cells)
    beside = is_the_papers(paper, cells[0].record)
    theirs = [
        m
        for m in metrics
        if paper
        and not beside
        and any(m in c and c["steps"] for r in paper["rows"] for c in r["cells"])
    ]
    count = len(metrics) + len(theirs)
    across = min(4, count)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(3.8 * across, 3.1 * down), squeeze=False)
    panels = list(axes.flat)
    for ax in panels[count:]:
        ax.axis("off")
    for ax, metric in zip(panels, metrics, strict=False):
        for row in rows:
            colour = f"C{rows.index(row)}"
            for part, label in _of_one_size(columns, sizes, row):
                known = _known([(s, _column(cells, s, metric).get(row)) for s in part])
                ax.errorbar([s for s, _ in known], [v.value for _, v in known],
                            [1.96 * v.se for _, v in known],
                            color=colour, marker="o", ms=3, capsize=2, label=label)  # fmt: skip
            if beside:
                published = [(s, paper_value(paper, row, s, metric)) for s in columns]
                ax.plot([s for s, _ in published], [np.nan if v is None else v for _, v in published],
                        color=colour, ls="--", lw=0.8, label=f"{row}, paper")  # fmt: skip
        for part, label in _of_one_size(columns, sizes, "real"):
            floor = _known([(s, _floor(cells, s, metric)) for s in part])
            if floor:
                ax.plot([s for s, _ in floor], [f.value for _, f in floor], "k:", label=label)
        _style(ax, metric_title(metric, cells[0].record["extractor"]), metric, columns)
        ax.set_xticks(columns, [f"{s}\nN={sizes[s]}" for s in columns])
    panels[0].legend(fontsize=7)
    for ax, metric in zip(panels[len(metrics) :], theirs, strict=False):
        assert paper is not None
        for row in paper["rows"]:
            known_cells = [c for c in row["cells"] if metric in c]
            steps = [c["steps"] for c in known_cells]
            ax.plot(steps, [c[metric] for c in known_cells], marker="o", ms=3, label=row["name"])
        _style(ax, f"paper: {METRIC_NAMES[metric]} on {paper['dataset']}", metric, steps)
        ax.set_facecolor("whitesmoke")
    save_figure(figure, path, title)


def _of_one_size(
    columns: Sequence[int], sizes: dict[int, int], label: str
) -> list[tuple[list[int], str | None]]:
    """Runs of columns with the same N, which one line may join; only the first is labelled."""
    parts = [list(part) for _, part in groupby(columns, key=sizes.__getitem__)]
    return [(part, None if i else label) for i, part in enumerate(parts)]


def _known(points: list[tuple[int, Score | None]]) -> list[tuple[int, Score]]:
    return [(x, score) for x, score in points if score is not None]


def _style(ax: Any, title: str, metric: str, steps: Sequence[int]) -> None:
    ax.set_title(title, fontsize=8)
    ax.set_xscale("log")
    ax.set_xticks(steps, [str(s) for s in steps])
    ax.minorticks_off()
    ax.set_xlabel("network calls", fontsize=8)
    if metric == "fid":
        ax.set_yscale("log")
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis(ScalarFormatter())
    ax.tick_params(labelsize=7, which="both")
    ax.grid(alpha=0.3, which="both", lw=0.4)


def save_figure(figure: Any, path: Path, title: str, bottom: float = 0.0) -> None:
    """Write a figure whole and the same for the same data, and close it.

    `bottom` is the share of its height that is kept free for a legend.
    """
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    # A fixed "Software" field, or the file would change with matplotlib's version.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _plot_cutoffs(
    path: Path,
    title: str,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    paper: dict[str, Any] | None,
) -> None:
    """As the paper's figure 4: one panel a step count, first metric left axis, second right."""
    columns = sorted(_columns(cells))
    figure, axes = plt.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.4), squeeze=False)
    colours = ("tab:orange", "tab:blue")
    for ax, steps in zip(axes[0], columns, strict=True):
        mine = sorted((c for c in cells if c.steps == steps), key=cutoff)
        for metric, colour, side in zip(metrics[:2], colours, (ax, ax.twinx()), strict=False):
            points = [(cutoff(c), score(c.record, metric)) for c in mine]
            known = [(t, v) for t, v in points if v is not None]
            t = np.array([t for t, _ in known])
            y, half = (
                np.array(v) for v in zip(*((v.value, 1.96 * v.se) for _, v in known), strict=True)
            )
            side.plot(t, y, marker="o", ms=3, color=colour)
            side.fill_between(t, y - half, y + half, color=colour, alpha=0.2, lw=0)
            side.set_ylabel(
                metric_title(metric, mine[0].record["extractor"]), color=colour, fontsize=8
            )
            side.tick_params(labelsize=7)
        if paper:
            ax.axvspan(*paper["optimal_cutoffs"], color="k", alpha=0.06, lw=0)
        ax.set_title(f"{steps} steps (N={mine[0].record['n']})", fontsize=9)
        ax.set_xlabel("cutoff (0: Skipped-Step, 1000: DDIM)", fontsize=8)
        ax.grid(alpha=0.3)
    save_figure(figure, path, title)
