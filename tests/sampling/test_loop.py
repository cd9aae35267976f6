"""What a row of the loop costs, counted and not timed: tensor operations and Python's calls.

`python -m scripts.bench loop` measures the seconds.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sampling import (
    Plan,
    Schedule,
    churn,
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
    skipped,
    timesteps,
)
from sampling.plan import COLUMNS

LINEAR = Schedule.linear()
BUILDERS = {
    "ddim": ddim,
    "skipped": skipped,
    "mixpp": mixpp,
    "mixstar": mixstar,
    "dpmpp": dpmpp,
    "ipndm": ipndm,
    "deis": deis,
    "er_sde": er_sde,
    "churn": lambda s, grid: churn(s, grid, s_churn=2.0),
    "restart": lambda s, grid: restart(s, grid, [(3, 2, 0.4, 3.0)]),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)
X = torch.zeros(1, 3)


class Still:
    """Noise that costs nothing."""

    def start(self):
        return X

    def at(self, t, s, visit=0):
        return X


def nothing(x, t):
    return X, None


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def needed(plan: Plan) -> int:
    """One operation a coefficient; two for the eps of a call, in plans that look back at eps."""
    own = plan.calls.sum()
    past = np.count_nonzero(plan.x0[:, 1:]) + np.count_nonzero(plan.eps)
    remembered = 2 * own if plan.eps.shape[1] > 1 else 0
    return int(len(plan.t) + own + past + np.count_nonzero(plan.noise) + remembered)


@every_builder
def test_a_row_costs_one_tensor_operation_a_coefficient(name):
    plan = BUILDERS[name](LINEAR, timesteps(LINEAR, 20))
    with Operations() as of_run:
        run(nothing, plan, Still())
    with Operations() as of_tree:
        run_tree(nothing, [plan], Still())
    assert of_run.count == of_tree.count == needed(plan) + (plan.start != 1)


def test_a_learned_variance_costs_five_more():
    plan = ddpm(LINEAR, timesteps(LINEAR, 20))
    with Operations() as operations:
        run(lambda x, t: (X, X), plan, Still())
    assert operations.count <= needed(plan) + 5 * 19


def calls_of_python(plan: Plan) -> int:
    """Functions entered by one run, Python's and C's."""
    count = 0

    def profile(frame, event, function):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        run(nothing, plan, Still())
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("name", "most"), [("ddim", 13), ("skipped", 17), ("dpmpp", 16), ("ipndm", 20)]
)
def test_a_row_costs_few_calls_of_python(name, most):
    """Measured 11, 15, 14 and 18; 9 more where rows are made anew in every run."""
    few, many = (BUILDERS[name](LINEAR, timesteps(LINEAR, n)) for n in (25, 75))
    for plan in (few, many):
        run(nothing, plan, Still())
    assert (calls_of_python(many) - calls_of_python(few)) / 50 <= most


# --- rows are made once, of columns that stay as they are


@every_builder
def test_rows_are_made_once_and_travel_with_no_copy(name):
    plan = BUILDERS[name](LINEAR, timesteps(LINEAR, 20))
    small = len(pickle.dumps(plan))
    rows = list(plan.rows())
    assert all(a is b for a, b in zip(rows, plan.rows(), strict=True))
    assert len(pickle.dumps(plan)) == small
    others = [pickle.loads(pickle.dumps(plan)), copy.copy(plan), copy.deepcopy(plan)]
    others += [Plan.from_json(plan.to_json()), dataclasses.replace(plan)]
    for other in others:
        assert (other.name, other.start) == (plan.name, plan.start)
        assert repr(list(other.rows())) == repr(rows)
        for column in COLUMNS:
            assert getattr(other, column).tobytes() == getattr(plan, column).tobytes()
    changed = dataclasses.replace(plan, x=plan.x * 2)
    assert [row.x for row in changed.rows()] == [2 * row.x for row in rows]


@every_builder
def test_columns_cannot_be_written_to(name):
    plan = BUILDERS[name](LINEAR, timesteps(LINEAR, 20))
    for same in (plan, pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        for column in COLUMNS:
            with pytest.raises(ValueError, match="read-only"):
                getattr(same, column)[0] = 0
    mine = plan.x.copy()
    other = dataclasses.replace(plan, x=mine)
    mine[0] = 7
    assert other.x[0] == plan.x[0] == next(other.rows()).x
