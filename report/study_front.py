"""docs/front.png, README's picture: Mix and DDIM from the same noise, and quality against network calls."""

import hashlib
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, on any machine
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from numpy.typing import NDArray

from eval.table import Table
from models.digits import load
from report.study import WINDOWS
from report.styles import REAL, styles_of
from sampling import Plan, SampleNoise, ddim, mix, run_tree, timesteps

STEPS = (5, 10, 25)
PAIR = ("DDIM", "Mix")
TUNED = WINDOWS["even"][10]
CURVES = ("DDIM", "Skipped-Step", "Mix", "DPM-Solver++(2M)", TUNED)
NAMES = {TUNED: "Mix++, tuned for 10 calls"}
DIGITS = 8


def sampled() -> NDArray[np.uint8]:
    """Digits [len(STEPS), len(PAIR), DIGITS, 28, 28] of the same noise and labels; seconds on a CPU."""
    model = load()
    plans: list[Plan] = []
    for steps in STEPS:
        grid = timesteps(model.schedule, steps, "even")
        plans += [ddim(model.schedule, grid), mix(model.schedule, grid, cutoff=291)]
    noise = SampleNoise(seed=0, ids=range(DIGITS), shape=model.shape)
    tree = run_tree(model.given(torch.arange(DIGITS)), plans, noise)
    images = np.stack([model.decoded(x)[..., 0] for x in tree.samples])
    return images.reshape(len(STEPS), len(PAIR), DIGITS, *images.shape[2:])


def digest(records: Path) -> str:
    """Of the records whose scores are drawn, which the picture carries with it."""
    return hashlib.sha256(records.read_bytes()).hexdigest()


def draw(path: Path, records: Path) -> None:
    """Write the picture for the records of the study on the even grid."""
    figure = plt.figure(figsize=(10.4, 4.2), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    left, right = sides
    _draw_digits(left, sampled())
    _draw_quality(right.subplots(), Table.load(records))
    right.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    # A fixed "Software" field, or the file would change with matplotlib's version.
    figure.savefig(path, dpi=130, metadata={"Software": None, "Source": digest(records)})
    plt.close(figure)


def _draw_digits(figure: SubFigure, images: NDArray[np.uint8]) -> None:
    styles = styles_of(PAIR)
    parts: Any = figure.subfigures(len(STEPS), 1, hspace=0.06)
    for part, steps, pair in zip(parts, STEPS, images, strict=True):
        part.supylabel(f"{steps} calls", fontsize=10)
        for ax, name, row in zip(part.subplots(len(PAIR), 1), PAIR, pair, strict=True):
            ax.imshow(np.hstack(list(row)), cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_ylabel(name, rotation=0, ha="right", va="center", color=styles[name].colour)


def _draw_quality(ax: Axes, table: Table) -> None:
    columns = sorted(table.columns)
    for row, style in styles_of(CURVES).items():
        scores = [table.score(row, steps, "fid") for steps in columns]
        y = np.array([score.value for score in scores])
        half = np.array([score.half for score in scores])
        ax.plot(columns, y, label=NAMES.get(row, row), ms=5, **style.plot())
        ax.fill_between(columns, y - half, y + half, color=style.colour, alpha=0.15, lw=0)
    floor = [table.floor(steps, "fid") for steps in columns]
    ax.plot(columns, [score.value for score in floor if score], label="real", **REAL.plot())
    ax.set(
        xscale="log", yscale="log", xlabel="network calls", ylabel="FID (digits), lower is better"
    )
    ax.set_xticks(columns, [str(steps) for steps in columns])
    ax.set_yticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
