"""A sampler looks alike everywhere, and never like another one, also to the colour-blind."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from conftest import ROOT
from test_escape import NAMES

from eval.records import load_records
from report.styles import (
    COLOURS,
    MARKERS,
    MOST,
    REAL,
    SAMPLERS,
    Style,
    in_groups,
    ordinal,
    sampler_of,
    style_of,
    styles_of,
)

# Machado, Oliveira and Fernandes (2009), severity 1: on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = XYZ @ rgb / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, vision: str = "usual") -> float:
    """CIE76 in Lab: 2.3 is just noticeable side by side."""
    seen = [lab(np.clip(VISION[vision] @ linear(colour), 0, 1)) for colour in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def contrast(one: str, other: str) -> float:
    """WCAG's; 3 is what it wants of graphics."""
    low, high = sorted(XYZ[1] @ linear(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def differ(one: Style, other: Style) -> bool:
    return one.dash != other.dash and one.marker != other.marker


def test_distance_is_that_of_eyes():
    assert distance("#000000", "#ffffff") == pytest.approx(100, abs=0.1)
    assert distance("#b00000", "#6a6a00") > 40 > distance("#b00000", "#6a6a00", "deuteranopia")


@pytest.mark.parametrize("ground", ["colour", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_samplers_differ_to_every_eye(vision, ground):
    """By colour, or else by line and marker both; the eight that meet most often by colour."""
    for (a, one), (b, other) in combinations(SAMPLERS.items(), 2):
        far = distance(getattr(one, ground), getattr(other, ground), vision)
        assert far > 12 or differ(one, other), (a, b, far)
    for a, b in combinations(list(COLOURS.values())[:8], 2):
        assert distance(*((x[0] if ground == "colour" else x[1]) for x in (a, b)), vision) > 18


def test_colours_stand_out_from_their_ground():
    styles = [*SAMPLERS.values(), *(s for n in range(1, 7) for s in ordinal(n))]
    assert all(contrast(style.colour, "#ffffff") > 2.4 for style in styles)
    assert all(contrast(style.dark, "#14171a") > 4 for style in styles)
    assert all(style.marker in MARKERS for style in styles)
    assert all(style.dash != REAL.dash for style in styles)  # "real" alone is dotted


@pytest.mark.parametrize("count", range(2, 8))
def test_things_in_an_order_differ(count):
    styles = ordinal(count)
    assert len(set(styles)) == count
    for one, other in combinations(styles, 2):
        far = min(distance(one.colour, other.colour, vision) for vision in VISION)
        assert far > 10 or differ(one, other)


@pytest.mark.parametrize(
    ("row", "sampler"),
    [
        ("Mix", "Mix"),
        ("Mix (paper)", "Mix"),
        ("Mix 291", "Mix"),
        ("mix (cutoff=291)", "Mix"),
        ("cutoff 291", "Mix"),
        ("cutoff 0", "Skipped-Step"),
        ("Mix 1000", "DDIM"),
        ("sde_dpmpp", "SDE-DPM-Solver++(2M)"),
        ("er_sde", "ER-SDE"),
        ("deis_ab", "DEIS (AB)"),
        ("SA-Solver", "SA-Solver"),
    ],
)
def test_the_same_sampler_under_other_names(row, sampler):
    assert style_of(row) == SAMPLERS[sampler] and sampler_of(row) == (sampler, "")


@pytest.mark.parametrize(
    ("row", "sampler"),
    [
        ("Mix (x)", "Mix"),
        ("Mix++ 166..624", "Mix++"),
        ("Mix++ 0..100", "Mix++"),
        ("DDPM (as shipped)", "DDPM"),
    ],
)
def test_a_variant_has_the_colour_of_its_sampler(row, sampler):
    assert style_of(row).colour == SAMPLERS[sampler].colour
    assert differ(style_of(row), SAMPLERS[sampler])


@pytest.mark.parametrize("ground", ["colour", "dark"])
def test_mix_at_other_cutoffs_has_a_shade_of_its_own_the_darker_the_later(ground):
    looks = [style_of(f"Mix {cutoff}") for cutoff in (42, 208, 375, 541, 708, 999)]
    shades = [getattr(look, ground) for look in looks]
    lightness = [lab(linear(shade))[0] for shade in shades]
    assert len(set(shades)) == 6 and lightness == sorted(lightness, reverse=True)
    grounds = {"colour": ("#ffffff", 2.4), "dark": ("#14171a", 4)}[ground]
    assert all(contrast(shade, grounds[0]) > grounds[1] for shade in shades)
    for one, other in combinations(shades, 2):
        assert min(distance(one, other, vision) for vision in VISION) > 6
    for look, (name, sampler) in product(looks, SAMPLERS.items()):
        far = min(distance(getattr(look, ground), getattr(sampler, ground), v) for v in VISION)
        assert far > 12 or look.dash != sampler.dash or look.marker != sampler.marker, name


def rows_of_results() -> dict[str, list[str]]:
    paths = sorted((ROOT / "results").glob("*/*/records.json"))
    tables = {path.parent.name: load_records(path) for path in paths}
    return {
        name: list(dict.fromkeys(r["row"] for r in records))
        for name, records in tables.items()
        if not name.startswith(("tune", "figure4"))
    }


def test_every_row_of_the_results_looks_alike_in_every_table():
    tables = rows_of_results()
    assert len(tables) > 8
    seen: dict[str, Style] = {}
    for rows in tables.values():
        styles = styles_of(rows)
        assert {row: seen.setdefault(row, style) for row, style in styles.items()} == styles
        assert all(styles[row] == style_of(row) for row in rows if sampler_of(row)[1] == "")
        assert len(set(styles.values())) == len(rows)


def test_no_two_rows_look_alike_whatever_their_names():
    rows = [*NAMES, *SAMPLERS, "real", "Real", "Mix 1", "Mix 2", "Mix (x)"]
    rows += [f"sampler {i}" for i in range(40)]
    styles = styles_of(rows)
    assert list(styles) == rows and len({*styles.values(), REAL}) == len(rows) + 1
    assert {name: styles[name] for name in SAMPLERS} == SAMPLERS  # never give way
    assert styles_of(rows) == styles
    assert len(set(styles_of([f"Mix {i}" for i in range(1, 61)]).values())) == 60
    few = styles_of([f"sampler {i}" for i in range(20)]).values()
    assert not any(a.clashes(b) for a, b in combinations(few, 2))


def test_groups_have_few_rows_each_and_all_of_them():
    study = rows_of_results()["study"]
    for rows in (study, [*study, "Mix*"], [f"row {i}" for i in range(20)], list(NAMES)):
        groups = in_groups(rows)
        assert {row for group in groups for row in group} == set(rows)
        assert all(len(group) <= MOST for group in groups)
        assert all("Mix" in group for group in groups) or "Mix" not in rows
        assert all(sorted(group, key=rows.index) == group for group in groups)
    first = {"DDIM", "Skipped-Step", "Mix", "Mix*", "DPM-Solver++(2M)", "SDE-DPM-Solver++(2M)"}
    assert set(in_groups([*study, "Mix*"])[0]) == first
    assert in_groups(["b", "a"]) == [["b", "a"]]
