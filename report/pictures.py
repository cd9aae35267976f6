"""Figures of samples side by side."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine

from eval.sheets import Pictures, shared_words
from files.whole import printable, write_atomic, write_text
from report.axes import one_line, save_figure
from report.escape import in_figure
from report.formats import document, grid, image
from report.words import options_words, sampling_sentence

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
    about = (
        f"{sampling_sentence(rows[0].config)}\nThe first {len(rows[0].images)} samples of the seed, "
        f"none chosen; {shared_words(rows[0].config)}."
    )
    texts = []
    for i, row in enumerate(rows, 1):
        texts.append([str(i), f"{row.row}{options_words(row.config['sampler'])}", str(row.steps)])
    shared = f"{_sentence(shared_words(rows[0].config))} The first of the seed, none chosen."
    parts = [
        f"# {printable(title)}",
        about,
        grid(["Row", "Sampler", "Steps"], texts),
        image("figure.png", "Samples of each sampler at each number of steps", shared),
    ]
    return document(parts)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _draw(path: Path, title: str, rows: Sequence[Pictures]) -> None:
    n = len(rows[0].images)
    across, lines = min(n, PER_LINE), math.ceil(n / PER_LINE)
    height, width = rows[0].images.shape[1:3]
    inch = min(
        1.6 * max(1, width / height), 9 / across
    )  # a picture's width: words stay large beside
    size = (max(5, across * inch + 1.4), len(rows) * lines * (inch * height / width + 0.06) + 0.8)
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    figure, axes = plt.subplots(
        len(rows) * lines, across, figsize=size, squeeze=False, layout=engine
    )
    for ax in axes.flat:
        ax.axis("off")
    for row, block in zip(rows, axes.reshape(len(rows), lines, across), strict=True):
        for i, (ax, picture) in enumerate(zip(block.flat, row.images, strict=False)):
            shown = picture.squeeze(-1) if picture.shape[-1] == 1 else picture
            ax.imshow(shown, cmap="gray", vmin=0, vmax=255)
            if row is rows[0] and row.titles is not None:
                words = textwrap.fill(printable(row.titles[i]), max(4, int(14 * inch)))
                ax.set_title(in_figure(words), fontsize=8, pad=2)
        for i, line in enumerate(block):
            first, last = i * PER_LINE, min((i + 1) * PER_LINE, n) - 1
            which = f"\nsamples {first} to {last}" if lines > 1 else ""
            name = in_figure(textwrap.fill(one_line(row.row), 24))
            look = {"ha": "right", "va": "center", "transform": line[0].transAxes, "fontsize": 10}
            line[0].text(-0.06, 0.5, f"{name}\n{row.steps} steps{which}", **look)
    save_figure(figure, path, title, _sentence(shared_words(rows[0].config)))
