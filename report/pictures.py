"""Figures of samples side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from eval.sheets import Pictures
from files.whole import write_atomic
from report.formats import _text
from report.plots import save_figure
from report.words import made_sentence


def write_pictures(folder: Path, title: str, rows: Sequence[Pictures]) -> None:
    """figure.png, one labelled row of pictures a sampler and step count, and figure.md.

    Picture i of every row is sample i of the seed: the same x_T, label and noise.
    """
    rows = sorted(rows, key=lambda pictures: -pictures.steps)
    n = len(rows[0].images)
    lines = [f"# {title}", "", made_sentence(rows[0].config)]
    what = "prompt" if "prompts" in rows[0].config else "label"
    lines += [f"The first {n} samples of the seed, none chosen; picture i of every row has the "
              f"same x_T, {what} and noise.", "", "| Row | Sampler | Network calls |", "|---|---|---|"]  # fmt: skip
    for i, pictures in enumerate(rows, 1):
        sampler = ", ".join(f"{k} {v}" for k, v in pictures.config["sampler"].items())
        lines.append(f"| {i} | {pictures.row} ({sampler}) | {pictures.steps} |")
    write_atomic(folder / "figure.md", _text("\n".join([*lines, ""])))
    write_atomic(folder / "figure.png", lambda p: _draw_pictures(p, title, rows))


PER_LINE = 12  # pictures side by side; a longer row continues on the next line


def _draw_pictures(path: Path, title: str, rows: Sequence[Pictures]) -> None:
    n = len(rows[0].images)
    across, lines = min(n, PER_LINE), math.ceil(n / PER_LINE)
    height, width = rows[0].images.shape[1:3]
    inch = min(1.6 * max(1, width / height), 15 / across)  # a picture's width
    size = (across * inch + 1.4, len(rows) * lines * inch * height / width + 0.6)
    figure, axes = plt.subplots(len(rows) * lines, across, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for pictures, block in zip(rows, axes.reshape(len(rows), -1), strict=True):
        for i, (ax, image) in enumerate(zip(block, pictures.images, strict=False)):
            ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)  # fmt: skip
            if pictures is rows[0] and pictures.titles is not None:
                ax.set_title(textwrap.fill(pictures.titles[i], int(14 * inch)), fontsize=7, pad=2)
        block[0].text(-0.1, 0.5, f"{pictures.row}\n{pictures.steps} steps", fontsize=8,
                      ha="right", va="center", transform=block[0].transAxes)  # fmt: skip
    save_figure(figure, path, title)
