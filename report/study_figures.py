"""The study's figures: fresh.png, quality.png, rivals.png, why.png and dial.png."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from eval.score import Score
from eval.table import Table, cutoff
from report.axes import Panel, legends, new_figure, save_figure
from report.plots import cutoff_axis, finish, plot_metric
from report.study import Study
from report.study_theory import ERRORS, Theory, lowest, percent
from report.styles import SAMPLERS, in_groups, ordinal, styles_of
from report.words import metric_title

FRESH = ("Mix*", "Mix++ 166..624", "SDE-DPM-Solver++(2M)", "DPM-Solver++(2M)", "Mix", "DDIM")
BARS = "Bars: 95% intervals; dotted: as many real images in place of samples."


def draw(folder: Path, study: Study, theory: Theory) -> None:
    _draw_fresh(folder / "fresh.png", study.fresh.table)
    _draw_quality(folder / "quality.png", study)
    _draw_rivals(folder / "rivals.png", study)
    _draw_why(folder / "why.png", study, theory)
    _draw_dial(folder / "dial.png", study)


def _draw_fresh(path: Path, table: Table) -> None:
    """FID, precision and recall on the seed that chose nothing, each sampler on its best grid."""
    styles = styles_of(row for row in FRESH if row in table.rows)
    panels = new_figure(3, 3)
    for panel, metric in zip(panels, ("fid", "precision", "recall"), strict=True):
        plot_metric(panel, table, metric, styles)
        finish(panel, table, metric)
    legends(panels, 3, one=True)
    title = "Mix* and others on digits, each on the grid that is its best"
    save_figure(panels[0].axes.figure, path, title, BARS)


def _groups(study: Study) -> list[list[str]]:
    """The rows of its tables by figure and panel: the best known first."""
    tables = (study.even, study.log_snr, study.exact)
    return in_groups(list(dict.fromkeys(row for table in tables for row in table.rows)))


def _curves(panel: Panel, table: Table, metric: str, study: Study, rows: Sequence[str]) -> None:
    """The rows that the table has, in styles that all figures of the study share."""
    styles = styles_of(row for group in _groups(study) for row in group)
    plot_metric(panel, table, metric, {r: styles[r] for r in rows if r in table.rows})
    finish(panel, table, metric)


def _draw_quality(path: Path, study: Study) -> None:
    """FID for both spacings and the exact denoiser; IS, precision and recall for the even one."""
    drawn = [
        (study.even, "fid", "even spacing"),
        (study.log_snr, "fid", "uniform in log-SNR"),
        (study.exact, "fid", "exact denoiser, even spacing"),
        *((study.even, metric, "even spacing") for metric in ("is", "precision", "recall")),
    ]
    panels = new_figure(len(drawn), 3)
    for panel, (table, metric, title) in zip(panels, drawn, strict=True):
        _curves(panel, table, metric, study, _groups(study)[0])
        panel.axes.set_title(title, fontsize=9)
    legends(panels, 3, one=True)
    save_figure(panels[0].axes.figure, path, "The best known samplers on digits", BARS)


def _draw_rivals(path: Path, study: Study) -> None:
    """FID of the other samplers, with Mix to compare: a row of panels for each few."""
    tables = {
        "even spacing": study.even,
        "uniform in log-SNR": study.log_snr,
        "exact denoiser, even spacing": study.exact,
    }
    groups = _groups(study)[1:] or _groups(study)
    panels = new_figure(3 * len(groups), 3)
    places = [(group, title) for title in tables for group in groups]
    by_table = [panel for i in range(3) for panel in panels[i::3]]
    for panel, (group, title) in zip(by_table, places, strict=True):
        _curves(panel, tables[title], "fid", study, group)
        panel.axes.set_title(title, fontsize=9)
    legends(panels, 3, one=True)
    title = "All other samplers on digits, and Mix to compare"
    save_figure(panels[0].axes.figure, path, title, BARS)


def _draw_why(path: Path, study: Study, theory: Theory) -> None:
    """The closed form beside the measurement, and against the cutoff with an erring score."""
    left, right = panels = new_figure(2, 2, (5.2, 4.2))
    table, steps = study.pixels, sorted(study.pixels.columns)
    rows = [r for r in ("DDIM", "Skipped-Step", "Mix", "DPM-Solver++(2M)") if r in table.rows]
    closed: dict[str, Any] = {"lw": 2.5, "alpha": 0.35}
    for row in rows:
        values = theory.of_row(table, row)
        left.axes.plot(steps, values, color=SAMPLERS[row].colour, **closed)
        left.curves += [Score(value, math.nan) for value in values if value is not None]
    _curves(left, table, "diagonal_fid", study, rows)
    left.explain("closed form for Gaussian data", Line2D([], [], color="k", **closed))
    left.axes.set_title("Frechet distance of pixels: measured and closed form", fontsize=9)
    for error, style in zip(ERRORS, ordinal(len(ERRORS)), strict=True):
        by = theory.by_cutoff(25, error)
        scores = [(at, Score(value, math.nan)) for at, value in by.items()]
        right.curve(scores, style, f"score error {percent(error)}")
        right.axes.plot([lowest(by)], [by[lowest(by)]], **_ring(style.colour))
    _cutoffs(right, "Frechet distance by the closed form, lower is better")
    right.explain("the best cutoff", Line2D([], [], **_ring("k")))
    right.axes.set_title("Closed form at 25 steps", fontsize=9)
    legends(panels, 2, one=False)
    save_figure(left.axes.figure, path, "A sampler's own error", BARS)


def _ring(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "ms": 10, "mfc": "none", "ls": "none"}


def _draw_dial(path: Path, study: Study) -> None:
    """FID against Mix's cutoff for every network."""
    panels = new_figure(2, 2, (5.2, 4.0))
    for panel, steps in zip(panels, (25, 10), strict=True):
        styles = ordinal(len(study.dial))
        for (name, table), style in zip(study.dial.items(), styles, strict=True):
            points = [(cutoff(r), table.value(r["row"], steps, "fid")) for r in table.dial(steps)]
            panel.curve(points, style, _network(name))
        exact = study.dial["exact"]
        panel.floor([(0, exact.floor(steps, "fid"))])
        _cutoffs(panel, metric_title("fid", exact.records[0]["extractor"]))
        title = f"{steps} network calls (N = {exact.n(steps):,})"
        panel.axes.set_title(title, fontsize=9)
    legends(panels, 2, one=True)
    title = "The best cutoff of Mix moves with the network: digits, even spacing"
    save_figure(panels[0].axes.figure, path, title, BARS)


def _network(checkpoint: str) -> str:
    steps = checkpoint.removeprefix("unet-")
    return f"network after {int(steps):,} steps" if steps.isdigit() else f"{checkpoint} denoiser"


def _cutoffs(panel: Panel, label: str) -> None:
    cutoff_axis(panel.axes)
    panel.finish(label, lower_is_better=True)
