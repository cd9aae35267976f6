"""The study's figures: quality.png, why.png and dial.png."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from eval.score import Score
from eval.table import Table, cutoff
from report.plots import CUTOFF_LABEL, save_figure
from report.study import WINDOWS, Study
from report.study_theory import ERRORS, Theory, lowest, percent
from report.words import metric_title

DRAWN = (  # in the order of their colours
    *("DDIM", "Skipped-Step", "Mix", *WINDOWS["even"].values(), WINDOWS["log_snr"][10]),
    *("DPM-Solver++(2M)", "SDE-DPM-Solver++(2M)", "UniPC", "DEIS"),
)


def draw(folder: Path, study: Study, theory: Theory) -> None:
    _draw_quality(folder / "quality.png", study)
    _draw_why(folder / "why.png", study, theory)
    _draw_dial(folder / "dial.png", study)


def _draw_quality(path: Path, study: Study) -> None:
    """FID for both spacings and the exact denoiser; IS, precision and recall for the even one."""
    panels = [
        (study.even, "fid", "even spacing"),
        (study.log_snr, "fid", "uniform in log-SNR"),
        (study.exact, "fid", "exact denoiser, even spacing"),
        *((study.even, metric, "even spacing") for metric in ("is", "precision", "recall")),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6))
    handles = {}
    for ax, (table, metric, title) in zip(axes.flat, panels, strict=True):
        for i, row in enumerate(DRAWN):
            if row in table.rows:
                _curve(ax, table, row, metric, f"C{i}")
        _floor(ax, table, metric)
        _steps_axis(ax, sorted(study.even.columns), fontsize=8)
        if metric == "fid":
            ax.set_yscale("log")
            ax.set_ylim(0.5, 120)
        ax.set_title(f"{metric_title(metric, 'digits')}\n{title}", fontsize=9)
        ax.set_xlabel("network calls", fontsize=8)
        ax.grid(alpha=0.3)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, fontsize=8)
    save_figure(figure, path, "Samplers on digits; bands are 95% intervals", bottom=0.08)


def _draw_why(path: Path, study: Study, theory: Theory) -> None:
    """The closed form beside the measurement, and against the cutoff with an erring score."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    table, steps = study.pixels, sorted(study.pixels.columns)
    for i, row in enumerate(("DDIM", "Skipped-Step", "Mix", "DPM-Solver++(2M)")):
        left.plot(steps, theory.of_row(table, row), color=f"C{i}", ls="--", lw=1)
        _curve(left, table, row, "diagonal_fid", f"C{i}")
    _floor(left, table, "diagonal_fid")
    left.set(yscale="log", xlabel="network calls")
    _steps_axis(left, steps)
    left.set_title("Frechet distance in pixels\ndashed: closed form for Gaussian data", fontsize=9)
    for i, error in enumerate(ERRORS):
        by, label = theory.by_cutoff(25, error), f"score error {percent(error)}"
        right.plot(list(by), list(by.values()), color=f"C{i}", label=label)
        right.plot([lowest(by)], [by[lowest(by)]], "o", color=f"C{i}")
    right.set(yscale="log", xlabel=CUTOFF_LABEL)
    right.set_title("Closed form at 25 steps; dots: the best cutoff", fontsize=9)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    save_figure(figure, path, "A sampler's own error")


def _draw_dial(path: Path, study: Study) -> None:
    """FID against Mix's cutoff for every network."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for ax, steps in zip(axes, (25, 10), strict=True):
        for i, (name, table) in enumerate(study.dial.items()):
            mixes = [r for r in table.column(steps) if not math.isnan(cutoff(r))]
            points = [(cutoff(r), table.score(r["row"], steps, "fid")) for r in mixes]
            _band(ax, sorted(points), f"C{i}", name)
        floor = study.dial["exact"].floor(steps, "fid")
        ax.axhline(floor.value if floor else np.nan, color="k", ls=":", label="real")
        ax.set(yscale="log", xlabel=CUTOFF_LABEL)
        ax.set_title(f"FID (digits) at {steps} steps", fontsize=9)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save_figure(figure, path, "Mix's cutoff along training")


def _curve(ax: Any, table: Table, row: str, metric: str, colour: str) -> None:
    _band(ax, [(s, table.score(row, s, metric)) for s in sorted(table.columns)], colour, row)


def _band(ax: Any, points: Iterable[tuple[float, Score]], colour: str, label: str) -> None:
    """A line with its 95% interval."""
    x, scores = zip(*points, strict=True)
    y, half = np.array([s.value for s in scores]), np.array([s.half for s in scores])
    ax.plot(x, y, color=colour, marker="o", ms=3, lw=1.2, label=label)
    ax.fill_between(x, np.maximum(y - half, 0.05 * y), y + half, color=colour, alpha=0.15, lw=0)


def _floor(ax: Any, table: Table, metric: str) -> None:
    floors = [(s, table.floor(s, metric)) for s in sorted(table.columns)]
    ax.plot(*zip(*((s, f.value) for s, f in floors if f), strict=True), "k:", label="real")


def _steps_axis(ax: Any, steps: Sequence[int], **style: Any) -> None:
    ax.set_xscale("log")
    ax.set_xticks(steps, [str(s) for s in steps], **style)
    ax.minorticks_off()
