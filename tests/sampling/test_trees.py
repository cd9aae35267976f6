"""Trees of any plans: histories, detours and diffusers' tables, under both kinds of noise."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from conftest import is_older
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling import (
    BrownianNoise,
    Plan,
    SampleNoise,
    Schedule,
    churn,
    count_calls,
    ddim,
    ddpm,
    deis,
    dpmpp,
    er_sde,
    ipndm,
    mixpp,
    mixstar,
    restart,
    run,
    run_tree,
    scale_eps,
    sde_dpmpp,
    skipped,
    splice,
)
from sampling.borrowed import sampler_named

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning", "ignore::FutureWarning"
)
SHORT = Schedule.linear(T=40)
GRIDS = ([39, 30, 22, 15, 9, 4, 0], [39, 30, 22, 12, 4])  # that begin alike
RESTARTS = ([(3, 2, 0.4, 3.0)], [(3, 3, 0.4, 3.0)], [(3, 2, 0.4, 3.0), (2, 1, 1.5, 6.0)])


def borrowed(name: str, **options):
    return lambda schedule, grid: sampler_named(name, schedule, grid, **options)


BUILDERS = {
    "skipped": skipped,
    "ddim": ddim,
    "ddpm": ddpm,
    **{f"dpmpp {k}": functools.partial(dpmpp, order=k) for k in (2, 3)},
    **{f"sde_dpmpp {k}": functools.partial(sde_dpmpp, order=k) for k in (2, 3)},
    **{f"ipndm {k}": functools.partial(ipndm, order=k) for k in (2, 4)},
    **{f"deis {k}": functools.partial(deis, order=k) for k in (2, 3)},
    **{f"er_sde {k}": functools.partial(er_sde, order=k) for k in (2, 3)},
    "mixpp": functools.partial(mixpp, lo=5, hi=25),
    "mixstar": mixstar,
    "scaled": lambda schedule, grid: scale_eps(dpmpp(schedule, grid, order=3), 1e-3, 1.01),
    "heun": churn,
    **{f"churn {c}": functools.partial(churn, s_churn=c) for c in (1.0, 2.0)},
    **{f"restart {k}": functools.partial(restart, restarts=r) for k, r in enumerate(RESTARTS)},
}
if not is_older:
    BUILDERS |= {
        "unipc": borrowed("unipc"),
        "unipc 3": borrowed("unipc", solver_order=3),
        "diffusers' deis": borrowed("deis"),
        "sa_solver": borrowed("sa_solver"),
        "diffusers' heun": borrowed("heun"),
        "pndm": borrowed("pndm"),
    }


@functools.cache
def plan_of(name: str, grid: int) -> Plan:
    return BUILDERS[name](SHORT, GRIDS[grid])


def some_plan(head: tuple[str, int], tail: tuple[str, int], cutoff: int) -> Plan:
    """A splice of two, or the first alone where they do not fit."""
    with contextlib.suppress(ValueError):
        return splice(plan_of(*head), plan_of(*tail), cutoff)
    return plan_of(*head)


one = st.tuples(st.sampled_from([*BUILDERS]), st.sampled_from([0, 0, 1]))
cutoffs = st.sampled_from([0, 5, 10, 16, 23, 31, 40])


@st.composite
def plan_sets(draw) -> list[Plan]:
    """Plans that begin alike: each head is spliced to several tails, at several cutoffs."""
    heads = draw(st.lists(one, min_size=1, max_size=3))
    parts = st.tuples(st.sampled_from(heads), one, cutoffs)
    return [some_plan(*part) for part in draw(st.lists(parts, min_size=2, max_size=6))]


def beginnings(plans: list[Plan]) -> int:
    """Distinct beginnings that end with a network call: no tree of rows makes fewer."""
    found = set()
    for plan in plans:
        rows = list(plan.rows())
        written = [repr(plan.start), *map(repr, rows)]
        found |= {tuple(written[: k + 2]) for k, row in enumerate(rows) if row.calls}
    return len(found)


NOISES = {
    "per step": SampleNoise(3, range(2), (2,)),
    "brownian": BrownianNoise(3, range(2), (2,), SHORT),
}


def assert_tree_is_run(plans: list[Plan], noise) -> int:
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return torch.tanh(0.7 * x + np.cos(t / 9)), torch.sin(3 * x)

    tree = run_tree(denoiser, plans, noise)
    assert len(calls) == tree.calls == count_calls(plans) == beginnings(plans)
    for plan, nfe, sample in zip(plans, tree.nfe, tree.samples, strict=True):
        calls.clear()
        assert torch.equal(sample, run(denoiser, plan, noise)), plan
        assert len(calls) == nfe == len(plan)
    return tree.calls


@pytest.mark.parametrize("noise", NOISES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(plans=plan_sets())
def test_a_tree_is_every_run_bit_for_bit_and_makes_no_call_twice(noise, plans):
    assert_tree_is_run(plans, NOISES[noise])


@pytest.mark.parametrize("noise", NOISES)
def test_all_of_them_at_once(noise):
    plans = [plan_of(name, grid) for name in BUILDERS for grid in (0, 1)]
    calls = assert_tree_is_run(plans, NOISES[noise])
    assert calls < sum(map(len, plans)) - len(BUILDERS)


def test_restarts_share_what_comes_before_the_last_one():
    """One more time: the way down and two of three turns are common."""
    twice, thrice = plan_of("restart 0", 0), plan_of("restart 1", 0)
    shared = len(twice) + len(thrice) - assert_tree_is_run([twice, thrice], NOISES["brownian"])
    first, pairs = list(twice.rows()), zip(twice.rows(), thrice.rows(), strict=False)
    common = next(k for k, (a, b) in enumerate(pairs) if repr(a) != repr(b))
    assert shared == sum(row.calls for row in first[:common]) > 10
