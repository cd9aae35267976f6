"""Figures show what there is, whatever it is: all curves, the floor, labels that can be read."""

from __future__ import annotations

import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from test_escape import NAMES
from test_report import CONFIG, PAPER, record

from eval.score import Score
from eval.sheets import Pictures
from eval.table import Table
from report import study_front
from report.axes import Scale, limits
from report.paper import Paper
from report.pictures import write_pictures
from report.plots import plot_cutoffs, plot_table
from report.styles import MOST, REAL, style_of

STEPS = (5, 8, 10, 15, 20, 25, 50, 100)


def cell(row, steps, fid, floor=True, **more):
    made = record(row, steps, fid, **more)
    made["cell"] = {**made["cell"], "nfe": steps}
    return made if floor else {**made, "floor": None}


def table(rows, steps=STEPS, **more):
    return Table([cell(r, s, 3.0 + i + 10 / s, **more) for i, r in enumerate(rows) for s in steps])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that draws by one of ours and returns the figure as it was saved."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)

    def draw(plot, *args):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot(tmp_path / "figure.png", "A title", *args)
        assert (tmp_path / "figure.png").stat().st_size > 1000
        return figures[-1]

    yield draw
    monkeypatch.undo()
    plt.close("all")


def labels(axis):
    """Boxes of the tick labels that are seen."""
    low, high = sorted(axis.get_view_interval())
    marks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    texts = [text for at, text in marks if low <= at <= high and text.get_text()]
    return [text.get_window_extent() for text in texts]


def collisions(figure):
    """Tick labels that touch another one of the same axes."""
    return [
        (axes, a, b)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for a, b in itertools.combinations(labels(axis), 2)
        if a.overlaps(b)
    ]


def legends(figure):
    return [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]


def curves(axes):
    """Lines by colour, without the floor's."""
    return {c.lines[0].get_color() for c in axes.containers if c.lines[0]}


@pytest.mark.parametrize("steps", [STEPS, range(10, 30), (10, 1000)], ids=str)
def test_ticks_do_not_collide(drawn, steps):
    figure = drawn(plot_table, table(["Mix", "DDIM"], tuple(steps)), ["fid", "is"], None)
    assert collisions(figure) == []
    shown = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert str(steps[0]) in shown and str(steps[-1]) in shown


def test_samplers_of_one_number_of_calls_stand_above_their_names(drawn):
    rows = [*(f"row {i}" for i in range(45)), *NAMES[:10], "x" * 60]
    figure = drawn(plot_table, table(rows, (10,)), ["fid", "is"], None)
    assert collisions(figure) == [] and len(figure.axes) == 2
    for axes in figure.axes:
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert names[:45] == rows[:45] and names[-1] == "x" * 47 + "…" and all(names)
        assert axes.get_xlabel() == "10 network calls a sample (N = 100)"
        assert axes.get_window_extent().height > 250
    (box,) = legends(figure)  # no more than the floor
    assert [text.get_text() for text in box.get_texts()] == ["real images"]


@pytest.mark.parametrize("steps", [STEPS, (20, 25), (10, 25)], ids=str)
def test_samplers_stand_apart_but_nearer_to_their_own_number_of_calls(drawn, steps):
    rows = ["DDPM", "DDIM", "Mix", "Skipped-Step", "Heun", "DEIS"]
    (axes,) = drawn(plot_table, table(rows, steps), ["fid"], None).axes
    x = np.log([np.array(c.lines[0].get_xdata(), float) for c in axes.containers])
    widest = x.max(0) - x.min(0)
    assert (widest > np.log(1.1)).all() and (widest < np.diff(np.log(steps)).min() * 0.7).all()
    low, high = np.log(axes.get_xlim())
    assert low + 0.05 < x.min() and x.max() < high - 0.05  # no marker on the frame


def test_words_can_be_read_at_the_width_of_a_page(drawn):
    figure = drawn(plot_table, table(["Mix", "DDIM"]), ["fid", "is", "kid", "precision"], None)
    (text, *_) = figure.axes[0].get_yticklabels()
    assert text.get_fontsize() * figure.dpi / 72 * 1000 / figure.bbox.width > 9  # of 1000 pixels


def test_mix_at_many_cutoffs_is_drawn_against_them_with_rivals_as_lines(drawn):
    """A table of them has one curve a panel, not one a cutoff."""
    cutoffs = (0, 125, 208, 291, 375, 458, 541, 1000)
    mixes = [cell(f"Mix {c}", s, 3.0 + c, name="mix", cutoff=c) for c in cutoffs for s in (10, 25)]
    rivals = [cell("Heun", s, 7.0 + s, name="heun") for s in (10, 25)]
    figure = drawn(plot_table, Table([*mixes, *rivals]), ["fid", "is", "kid"], None)
    assert len(figure.axes) == 6
    mix = figure.axes[0].containers[0].lines[0]
    assert list(mix.get_xdata()) == list(cutoffs)
    across = [line for line in figure.axes[0].lines if line.get_color() == style_of("Heun").colour]
    assert len(across) == 1 and set(across[0].get_ydata()) == {17.0}
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"Mix", "Skipped-Step", "DDIM", "Heun", "real images"} == set(texts)
    twice = Table([*mixes, cell("Mix 291, scaled", 10, 5.0, name="mix", cutoff=291)])
    assert len(drawn(plot_table, twice, ["fid"], None).axes) == 2  # small multiples of curves
    rivals = [cell(f"rival {i}", 10, 7.0, name="heun") for i in range(MOST)]
    figure = drawn(plot_table, Table([*mixes, *rivals]), ["fid"], None)
    assert all(len(curves(axes)) <= MOST for axes in figure.axes)
    few = Table([r for r in mixes if r["row"] in ("Mix 0", "Mix 291", "Mix 1000")])
    assert len(drawn(plot_table, few, ["fid"], None).axes[0].containers) == 3


def test_what_notices_a_collision():
    figure, axes = plt.subplots()
    axes.set_xticks([0, 0.01, 1], ["one", "two", "three"])
    figure.draw_without_rendering()
    assert len(collisions(figure)) == 1
    plt.close(figure)


@pytest.mark.parametrize(
    "rows", [["Mix"], ["Mix", "DDIM", "Heun"], NAMES, [f"row {i}" for i in range(20)]], ids=len
)
def test_panels_have_six_curves_at_most_and_legends_outside(drawn, rows):
    figure = drawn(plot_table, table(rows, (10, 25)), ["fid", "is"], None)
    assert all(1 <= len(curves(axes)) <= MOST for axes in figure.axes)
    texts = [text.get_text() for box in legends(figure) for text in box.get_texts()]
    assert len([t for t in texts if t != "real images"]) >= len(rows)
    boxes = [box.get_window_extent() for box in legends(figure)]
    assert boxes and collisions(figure) == []
    for box, axes in itertools.product(boxes, figure.axes):
        assert not box.overlaps(axes.get_window_extent())
    whole = figure.bbox
    assert all(box.x0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)


def test_a_sampler_has_its_style_and_axes_say_what_they_are(drawn):
    figure = drawn(plot_table, table(["DDIM", "Mix"]), ["fid", "is"], None)
    fid, inception = figure.axes
    assert [c.lines[0].get_color() for c in fid.containers] == [
        style_of(row).colour for row in ("DDIM", "Mix")
    ]
    assert fid.get_ylabel().startswith("FID (digits), lower is better")
    assert inception.get_ylabel().startswith("IS (digits), higher is better")
    assert fid.get_xlabel() == "network calls a sample (N = 100)"


def test_curves_stand_at_the_calls_that_were_made(drawn):
    """Heun makes 7 calls in a column of 8 steps."""
    heun = [cell("Heun", 8, 3.0), cell("Heun", 25, 3.0)]
    heun[0]["cell"]["nfe"] = 7
    figure = drawn(plot_table, Table(heun), ["fid"], None)
    assert list(figure.axes[0].containers[0].lines[0].get_xdata()) == [7, 25]


def test_scores_that_are_no_numbers_break_the_line_and_nothing_else(drawn):
    values = {"Mix": [math.nan] * 3, "DDIM": [3.0, math.nan, 5.0], "Heun": [2.0, math.inf, 3.0]}
    places = [(r, s, v) for r, vs in values.items() for s, v in zip((10, 25, 50), vs, strict=True)]
    figure = drawn(plot_table, Table([cell(*place) for place in places]), ["fid"], None)
    (axes,) = figure.axes
    assert [c.lines[0].get_color() for c in axes.containers] == [
        style_of(row).colour for row in ("DDIM", "Heun")
    ]
    y = axes.containers[0].lines[0].get_ydata()
    assert np.isnan(y[1]) and np.isfinite(axes.get_ylim()).all()
    nothing = Table([cell("Mix", s, math.nan) for s in (10, 25)])
    figure = drawn(plot_table, nothing, ["fid"], None)
    assert "no scores" in [text.get_text() for text in figure.axes[0].texts]


def test_lines_join_no_scores_of_different_n(drawn):
    sizes = {10: 500, 25: 500, 50: 100}
    rows = Table([cell("Mix", s, 3.0, n=n) for s, n in sizes.items()])
    (axes,) = drawn(plot_table, rows, ["fid"], None).axes
    assert sorted(len(c.lines[0].get_xdata()) for c in axes.containers) == [1, 2]
    assert axes.get_xlabel().replace("\n", " ").endswith("(N = 500 at 10, 25; N = 100 at 50)")


def floor_lines(axes):
    return [line for line in axes.lines if line.get_color() == REAL.colour]


@pytest.mark.parametrize("steps", [(10,), (10, 25)], ids=str)
def test_the_floor_is_drawn_where_it_squashes_nothing_and_told_elsewhere(drawn, steps):
    near = Table([cell("Mix", s, 0.8 + (s / 10) ** 0.5 / 3) for s in steps])
    far = Table([cell("Mix", s, 500.0 + s) for s in steps])
    none = Table([cell("Mix", s, 2.0, floor=False) for s in steps])
    for rows, lines, words in ((near, 1, 0), (far, 0, 1), (none, 0, 0)):
        (axes,) = drawn(plot_table, rows, ["fid"], None).axes
        assert len(floor_lines(axes)) == lines
        assert [t.get_text() for t in axes.texts] == ["real images: 1 ↓"] * words
        assert axes.get_ylim()[0] > 1 or lines or not words


def test_a_rival_flattens_nothing_and_no_panel_the_next(drawn):
    rows = Table(
        [
            cell(r, s, f)
            for r, f in (("Mix", 3.0), ("DDIM", 4.0), ("Heun", 3000.0))
            for s in (10, 25)
        ]
    )
    figure = drawn(plot_table, rows, ["fid", "is"], None)
    for axes in figure.axes:
        low, high = axes.transData.transform([(10, y) for y in axes.get_ylim()])[:, 1]
        y = [c.lines[0].get_ydata()[0] for c in axes.containers[:2]]
        a, b = (axes.transData.transform((10, v))[1] for v in y)
        assert abs(a - b) > 0.02 * (high - low) and axes.get_yscale() != "linear"
    assert figure.axes[0].get_ylim() != figure.axes[1].get_ylim()


@pytest.mark.parametrize(
    ("values", "lower", "ideal", "name"),
    [
        ([3, 4, 5], True, 1, "linear"),
        ([3, 40], True, 1, "log"),
        ([-3, 4, 4, 100], True, -3, "asinh"),  # KID, which is unbiased
        ([-3, 4, 5], True, -3, "linear"),
        ([9.4, 9.5, 9.6, 1.0], False, 9.8, "asinh"),
        ([9.4, 9.5, 9.6], False, None, "linear"),
        ([0, 0, 0], True, 0, "linear"),
    ],
)
def test_scales(values, lower, ideal, name):
    scale = Scale.fitting(values, lower, ideal)
    assert scale.name == name
    places = scale.forward(np.array(values, float))
    assert np.allclose(scale.inverse(places), values)
    low, high = limits(scale, [Score(v, 0.1) for v in values], [1.0])
    assert low < min(values) <= max(values) < high
    ticks = scale.ticks(low, high)
    assert ticks == sorted(ticks) and (name != "asinh" or 4 <= len(ticks) <= 9)


@pytest.mark.parametrize(
    ("scale", "low", "high", "expected"),
    [
        (Scale("asinh", 0.0, 30.0), -10, 250_000, [0, 100, 1000, 10_000, 100_000]),
        (Scale("asinh", 0.0, 10.0), -5, 110, [0, 10, 20, 50, 100]),
        (Scale("asinh", 0.88, 0.05), 0.45, 0.955, [0.5, 0.7, 0.8, 0.85, 0.9, 0.95]),
        (Scale("asinh", 9.86, 0.3), -0.1, 9.95, [0, 5, 8, 9, 9.5]),
    ],
)
def test_ticks_are_round(scale, low, high, expected):
    assert scale.ticks(low, high) == pytest.approx(expected)


def test_a_wide_interval_squashes_no_curve():
    scores = [Score(v, 0.05) for v in (3.0, 3.1, 3.2, 3.3)] + [Score(3.2, 100.0)]
    low, high = limits(Scale("linear"), scores, [])
    assert high - low < 2
    same = [Score(v, 0.5) for v in (3.0, 3.01)]  # here all are wide: they are all seen
    low, high = limits(Scale("linear"), same, [])
    assert low < 3.0 - 0.98 and high > 3.01 + 0.98


def test_figure_4_has_the_floor_and_explains_what_is_grey(drawn):
    cutoffs = {0: 3.0, 291: math.nan, 500: 4.0, 1000: 5.0}
    records = [
        cell(f"cutoff {c}", s, v, name="mix", cutoff=c)
        for c, v in cutoffs.items()
        for s in (25, 50)
    ]
    paper = Paper.load(ROOT / "results/paper/figure4.yaml")
    figure = drawn(plot_cutoffs, Table(records).by_cutoff(), ["fid", "is"], paper)
    assert len(figure.axes) == 4 and all(floor_lines(axes) for axes in figure.axes)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "[100, 400]: where the paper has the best cutoffs (ImageNet)" in texts
    assert {"Mix", "Skipped-Step", "DDIM", "real images"} < set(texts)
    assert figure.axes[0].get_title() == "25 network calls (N = 100)"
    assert collisions(figure) == []


def test_the_papers_numbers_have_our_styles(drawn):
    rows = [{"name": "SD_2.1", "ours": "DDIM", "cells": [{"steps": 25, "fid": 16.75}]}]
    figure = drawn(plot_table, table(["Mix"]), ["fid"], Paper({**PAPER, "rows": rows}))
    paper = figure.axes[1]
    assert paper.lines[0].get_color() == style_of("DDIM").colour
    assert paper.get_ylabel() == "FID (ImageNet), lower is better"
    own = Paper({**PAPER, "backbone": "digits"})
    (axes,) = drawn(plot_table, table(["DDPM"]), ["fid"], own).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1 and hollow[0].get_color() == style_of("DDPM").colour


def test_the_readmes_picture_has_its_legend_outside(drawn, monkeypatch):
    blank = np.zeros((3, 2, 8, 28, 28), np.uint8)
    monkeypatch.setattr(study_front, "sampled", lambda: blank)
    records = ROOT / "results/digits/study/records.json"
    figure = drawn(lambda path, title: study_front.draw(path, records))
    boxes = [box for part in figure.subfigs for box in legends(part)]
    names = [text.get_text() for box in boxes for text in box.get_texts()]
    assert {"Mix", "DDIM", "Skipped-Step", "real"} < set(names)
    for box, axes in itertools.product(boxes, figure.axes):
        assert not box.get_window_extent().overlaps(axes.get_window_extent())


def test_pictures_say_what_their_rows_are_and_share(drawn, tmp_path):
    images = np.zeros((14, 8, 8, 3), np.uint8)
    rows = [Pictures(name, 5, images, None, CONFIG) for name in ("Mix", "x" * 90, NAMES[0])]
    figure = drawn(lambda path, title: write_pictures(path.parent, title, rows))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts[:2] == ["Mix\n5 steps\nsamples 0 to 11", "Mix\n5 steps\nsamples 12 to 13"]
    shared = "Picture i of every row is sample i of seed 0, from the same x_T, label and noise."
    assert figure.get_suptitle().replace("\n", " ").endswith(shared)
    name = figure.axes[24].texts[0].get_text()
    assert "…" in name and max(map(len, name.split("\n"))) < 30
    # On a page of 800 pixels the names have ten of height.
    text = figure.axes[0].texts[0]
    assert text.get_fontsize() * figure.dpi / 72 * 800 / figure.bbox.width >= 10


def test_the_text_of_pictures_names_a_samplers_options_as_people_do(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    samplers = {
        "Mix": {"name": "mix", "cutoff": 291},
        "DDIM": {"name": "ddim", "eta": 0.0},
        "Heun": {"name": "heun"},
        "DDPM": {"name": "ddpm", "variance": "fixed_small"},
    }
    rows = [Pictures(k, 5, images, None, {**CONFIG, "sampler": v}) for k, v in samplers.items()]
    text = write_pictures(tmp_path, "A title", rows)
    named = [line.split(" | ")[1] for line in text.splitlines() if line.endswith("| 5 |")]
    assert named == ["Mix (cutoff 291)", "DDIM (eta 0)", "Heun", "DDPM (variance fixed_small)"]
