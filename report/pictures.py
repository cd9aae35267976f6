"""Figures of samples side by side."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from eval.sheets import Pictures
from files.whole import printable, write_atomic, write_text
from report.escape import in_figure
from report.formats import document, grid
from report.plots import save_figure
from report.words import sampling_sentence

PER_LINE = 12  # pictures side by side; a longer row continues on the next line


def write_pictures(out: Path, title: str, pictures: Sequence[Pictures]) -> str:
    """figure.png, one labelled row a sampler and step count, and figure.md; returns the Markdown.

    Picture i of every row is sample i of the seed: the same x_T, label and noise.
    """
    rows = sorted(pictures, key=lambda row: -row.steps)
    text = _markdown(title, rows)
    write_text(out / "figure.md", text)
    write_atomic(out / "figure.png", lambda p: _draw(p, title, rows))
    return text


def _markdown(title: str, rows: Sequence[Pictures]) -> str:
    config = rows[0].config
    what = "prompt" if "prompts" in config else "label"
    about = (
        f"{sampling_sentence(config)}\nThe first {len(rows[0].images)} samples of the seed, none "
        f"chosen; picture i of every row has the same x_T, {what} and noise."
    )
    texts = []
    for i, row in enumerate(rows, 1):
        sampler = ", ".join(f"{k} {v}" for k, v in row.config["sampler"].items())
        texts.append([str(i), f"{row.row} ({sampler})", str(row.steps)])
    return document(
        [f"# {printable(title)}", about, grid(["Row", "Sampler", "Network calls"], texts)]
    )


def _draw(path: Path, title: str, rows: Sequence[Pictures]) -> None:
    n = len(rows[0].images)
    across, lines = min(n, PER_LINE), math.ceil(n / PER_LINE)
    height, width = rows[0].images.shape[1:3]
    inch = min(1.6 * max(1, width / height), 15 / across)  # a picture's width
    size = (across * inch + 1.4, len(rows) * lines * inch * height / width + 0.6)
    figure, axes = plt.subplots(len(rows) * lines, across, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for row, block in zip(rows, axes.reshape(len(rows), -1), strict=True):
        for i, (ax, image) in enumerate(zip(block, row.images, strict=False)):
            shown = image.squeeze(-1) if image.shape[-1] == 1 else image
            ax.imshow(shown, cmap="gray", vmin=0, vmax=255)
            if row is rows[0] and row.titles is not None:
                words = textwrap.fill(row.titles[i], int(14 * inch))
                ax.set_title(in_figure(words), fontsize=7, pad=2)
        name, first = in_figure(f"{row.row}\n{row.steps} steps"), block[0]
        place = {"ha": "right", "va": "center", "transform": first.transAxes}
        first.text(-0.1, 0.5, name, fontsize=8, **place)
    save_figure(figure, path, title)
