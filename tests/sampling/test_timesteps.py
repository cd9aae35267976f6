"""Grids: guided-diffusion's recorded ones, diffusers' for every count, and bad input."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from conftest import golden_json
from diffusers import DDIMScheduler

from sampling import SPACINGS, timesteps

GOLDEN = golden_json("schedules")
ENTRIES = {f"{e['num_timesteps']}/{e['section_counts']}": e for e in GOLDEN["space_timesteps"]}
OTHER_RULES = GOLDEN["counts_where_another_grid_rule_differs"]
COUNTS = range(1, 1001)


@functools.cache
def grid(spacing: str, steps: int) -> np.ndarray | None:
    """The grid over 1000 timesteps, None where the spacing has none for that count."""
    try:
        return timesteps(1000, steps, spacing)
    except ValueError:
        assert spacing == "ddim"
        return None


def from_spec(T: int, spec: str) -> np.ndarray:
    """Our name for guided-diffusion's `timestep_respacing`."""
    if spec.startswith("ddim"):
        return timesteps(T, int(spec.removeprefix("ddim")), "ddim")
    if "," in spec:
        return timesteps(T, spacing=spec)
    return timesteps(T, int(spec), "even")


# The original returns an empty grid for the count 0; a sampler with no step is refused here.
REFUSED = [id for id, e in ENTRIES.items() if "error" in e or e["count"] == 0]


@pytest.mark.parametrize("id", [id for id in ENTRIES if id not in REFUSED])
def test_recorded_grids(id):
    entry = ENTRIES[id]
    ours = from_spec(entry["num_timesteps"], entry["section_counts"])
    assert ours.dtype == np.int64
    assert ours[::-1].tolist() == entry["timesteps"]


@pytest.mark.parametrize("id", REFUSED)
def test_recorded_errors(id):
    entry = ENTRIES[id]
    with pytest.raises(ValueError, match=r"timesteps|steps must be between"):
        from_spec(entry["num_timesteps"], entry["section_counts"])


def test_the_record_has_both_kinds():
    assert {"1000/0", "1000/1001", "1000/ddim1", "1000/1000,1"} <= set(REFUSED)
    assert len(ENTRIES) == len(GOLDEN["space_timesteps"]) == 36


@pytest.mark.parametrize(
    ("recorded", "rule"),
    [
        ("np.linspace(0,T-1,N) rounded half-to-even", lambda n: np.round(np.linspace(0, 999, n))),
        ("np.linspace, floor (int())", lambda n: np.linspace(0, 999, n).astype(int)),
        ("round(i*(T-1)/(N-1))", lambda n: [round(i * 999 / (n - 1)) for i in range(n)]),
    ],
)
def test_even_accumulates_its_positions(recorded, rule):
    # Only a sum of strides in floating point, rounded half to even, differs from the simpler
    # rules at exactly the recorded counts.
    expected = OTHER_RULES[recorded]
    differing = [n for n in COUNTS[1:] if list(rule(n)) != grid("even", n)[::-1].tolist()]
    assert len(differing) == expected["num_counts_differing_in_2..1000"]
    assert differing[:20] == expected["first_20"]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_count_gives_that_many_distinct_timesteps_in_range(spacing):
    for n in COUNTS:
        nodes = grid(spacing, n)
        if nodes is None:
            continue
        assert nodes.dtype == np.int64
        assert nodes.shape == (n,)
        assert (nodes[1:] < nodes[:-1]).all()
        assert 0 <= nodes[-1] <= nodes[0] <= 999


def test_even_includes_both_ends_and_is_the_default():
    assert np.array_equal(timesteps(1000, 25), grid("even", 25))
    assert all(grid("even", n)[[0, -1]].tolist() == [999, 0] for n in COUNTS[1:])


def test_ddim_exists_exactly_where_an_integer_stride_does():
    possible = {len(range(0, 1000, stride)) for stride in range(1, 1000)}
    assert {n for n in COUNTS if grid("ddim", n) is not None} == possible
    for n in possible:
        nodes = grid("ddim", n)
        assert nodes[-1] == 0
        # The smallest stride that fits: one less would visit more timesteps.
        stride = int(nodes[-2])
        assert (np.diff(nodes) == -stride).all()
        assert stride == 1 or len(range(0, 1000, stride - 1)) > n


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_count_is_that_of_diffusers(spacing):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    differing, too_long = [], 0
    for n in COUNTS:
        scheduler.set_timesteps(n)
        theirs = scheduler.timesteps.numpy()
        # For 62 counts of "trailing" their list has one timestep too many, a -1, because
        # np.arange overshoots with a fractional step.
        assert len(theirs) == n or (spacing == "trailing" and theirs[n:].tolist() == [-1])
        too_long += len(theirs) != n
        differing += [n] if not np.array_equal(grid(spacing, n), theirs[:n]) else []
    assert differing == []
    assert too_long < 100


def test_291_is_a_node_of_the_even_grid_alone():
    # The paper's cutoff; how we know which grid its authors used.  (At 25 steps diffusers'
    # linspace is the even grid.)
    assert [s for s in SPACINGS if 291 in grid(s, 25)] == ["even", "linspace"]


def test_linspace_is_even_but_for_ties():
    other = [n for n in range(1, 1001) if (grid("linspace", n) != grid("even", n)).any()]
    assert len(other) == 278 and other[:3] == [21, 23, 31]
    for n in other:
        difference = np.abs(grid("linspace", n) - grid("even", n))
        assert difference.max() == 1


@pytest.mark.parametrize("T", [1000, 50])
def test_leading_with_an_offset(T):
    for n in range(1, T + 1):
        offset = timesteps(T, n, "leading+1") - timesteps(T, n, "leading")
        assert (offset == (0 if n == T else 1)).all()
    assert timesteps(1000, 50, "leading+1").tolist() == list(range(981, 0, -20))
    assert timesteps(1000, 999, "leading+500").tolist() == list(range(999, 0, -1))
    for bad in ("leading+", "leading+x", "leading+-1", "even+1"):
        with pytest.raises(ValueError, match="unknown spacing"):
            timesteps(1000, 10, bad)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", [2, 7, 4000])
def test_as_many_steps_as_timesteps_visit_all(spacing, T):
    assert timesteps(T, T, spacing).tolist() == list(range(T))[::-1]


@pytest.mark.parametrize(("spacing", "t"), [("even", 0), ("leading", 0), ("trailing", 999)])
def test_one_step(spacing, t):
    assert timesteps(1000, 1, spacing).tolist() == [t]


# The 10-step list that the authors of Align Your Steps published for Stable Diffusion.
AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


@pytest.mark.parametrize("listed", [AYS, AYS[::-1], AYS[5:] + AYS[:5], tuple(AYS), np.array(AYS)])
@pytest.mark.parametrize("steps", [None, 10])
def test_explicit_lists_are_put_in_sampling_order(listed, steps):
    nodes = timesteps(1000, steps, listed)
    assert nodes.dtype == np.int64
    assert nodes.tolist() == AYS


def test_an_explicit_list_is_copied():
    listed = np.array(AYS)
    timesteps(1000, spacing=listed)[0] = 7
    assert listed.tolist() == AYS


def test_sections_go_from_low_to_high_timesteps_and_larger_parts_come_first():
    nodes = timesteps(1000, 10, "8,2")
    assert (nodes < 500).sum() == 8
    assert nodes[:2].tolist() == [999, 500]
    assert timesteps(10, spacing="0,2").tolist() == [9, 5]  # an empty section is left out
    assert timesteps(10, spacing="2,2,2").tolist() == [9, 7, 6, 4, 3, 0]  # 10 = 4 + 3 + 3


@pytest.mark.parametrize(
    ("steps", "spacing", "remedy"),
    [
        (None, "even", "steps must be between 1 and T = 1000, got None"),
        (0, "even", "steps must be between 1 and T = 1000, got 0"),
        (-1, "trailing", "steps must be between 1 and T = 1000, got -1"),
        (25.0, "even", "steps must be an integer between 1 and T = 1000, got 25.0"),
        ("25", "even", "steps must be an integer between 1 and T = 1000, got '25'"),
        (1001, "leading", "steps must be between 1 and T = 1000, got 1001"),
        (1001, "ddim", "steps must be between 1 and T = 1000, got 1001"),
        (300, "ddim", "exactly 300 timesteps; use spacing=even, leading or trailing"),
        (1, "ddim", "exactly 1 timesteps; use spacing=even, leading or trailing"),
        (
            25,
            "uniform",
            "'uniform': choose one of even, linspace, ddim, leading, trailing, log_snr, karras, ays_sd, ays_sdxl, leading+1, karras+5+2+20 (a rho, a shift, the last timestep), sections such as",
        ),
        (25, "", "choose one of even, linspace, ddim, leading, trailing"),
        (None, "10,x", "sections must be integers separated by commas, got '10,x'"),
        (None, "10,", "sections must be integers separated by commas"),
        (None, "10,-1", "section counts must be at least 0 and not all 0, got '10,-1'"),
        (None, "0,0", "section counts must be at least 0 and not all 0"),
        (None, "10,501", "cannot take 501 timesteps out of a section of 500"),
        (25, "10,10", "spacing=10,10 has 20 steps, but steps=25 was asked for"),
        (None, [], "must be non-empty and without repetition"),
        (None, [5, 5, 3], "must be non-empty and without repetition"),
        (None, [1000, 5], "timesteps must lie in 0..999, got 5..1000"),
        (None, [10, -1], "timesteps must lie in 0..999, got -1..10"),
        (3, AYS, "the list has 10 timesteps, but steps=3 was asked for"),
    ],
)
def test_errors_name_the_remedy(steps, spacing, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        timesteps(1000, steps, spacing)
