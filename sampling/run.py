"""The loop that runs a plan, and the tree that runs many plans sharing their beginnings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .denoise import Denoised, Denoiser
from .plan import Plan, Row


class Noise(Protocol):
    """Where noise comes from; `sampling.noise.SampleNoise` is the reproducible one."""

    def start(self) -> Tensor: ...

    def at(self, t: float) -> Tensor: ...


class State(NamedTuple):
    """After a row: x at timestep `row.s`, and the clean image `x0` that the row went towards."""

    row: Row
    x: Tensor
    x0: Tensor


def iterate(denoiser: Denoiser, plan: Plan, noise: Noise) -> Iterator[State]:
    """Run a plan from `noise.start()` and yield the state after every row.

    Raises ValueError if the plan needs a learned variance and the denoiser gives none.
    """
    x, x0 = noise.start(), None
    for row in plan.rows():
        x, x0 = _step(row, denoiser, x, x0, noise)
        yield State(row, x, x0)


def run(denoiser: Denoiser, plan: Plan, noise: Noise) -> Tensor:
    """The samples [B, ...] of `plan`: x after its last row (see `iterate`)."""
    with torch.no_grad():
        for state in iterate(denoiser, plan, noise):
            x = state.x
    return x


def _step(
    row: Row, denoiser: Denoiser, x: Tensor, previous: Tensor | None, noise: Noise
) -> tuple[Tensor, Tensor]:
    """One row: (x_t, x0 of the row before) -> (x_s, x0)."""
    denoised = guided(row, Denoised(*denoiser(x, row.t)))
    z = noise.at(row.t) if row.noise else None
    return advance(row, x, denoised, previous, z), denoised.x0


def guided(row: Row, denoised: Denoised) -> Denoised:
    """x0 moved along the classifier's gradient as far as the row says; as it is without one."""
    x0, v, gradient = denoised
    if gradient is None:
        return denoised
    return Denoised(x0 + _between(row.gradient, row.gradient_high, v) * gradient, v)


def advance(
    row: Row, x: Tensor, denoised: Denoised, previous: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    """The update of one row: x_s from x_t, x0, the x0 of the row before and z ~ N(0, I).

    `previous` and `z` are needed where the row has a coefficient for them.
    """
    out = (x * row.x).add_(denoised.x0, alpha=row.x0)
    if row.x0_previous and previous is not None:
        out.add_(previous, alpha=row.x0_previous)
    if row.noise:
        assert z is not None
        std = _between(row.noise, row.noise_high, denoised.v)
        out.addcmul_(std, z) if isinstance(std, Tensor) else out.add_(z, alpha=std)
    return out


def _between(low: float, high: float, v: Tensor | None) -> Tensor | float:
    """low^(1-f) high^f with f = (v + 1) / 2, per pixel; just `low` where `high` is NaN."""
    if high != high or low == 0:
        return low
    if v is None:
        raise ValueError(
            "this plan needs a learned variance, but the network predicts none: "
            "use variance=fixed_small or fixed_large"
        )
    return (high / low) ** ((v + 1) / 2) * low


class Whole(Protocol):
    """A sampler that is no table: it can be run beside plans, but shares nothing with them."""

    def __len__(self) -> int: ...

    def run(self, denoiser: Denoiser, noise: Noise) -> Tensor: ...


def count_calls(plans: Sequence[Plan | Whole]) -> int:
    """Network calls that `run_tree` makes for these plans: their distinct prefixes of rows."""
    trie: dict[tuple[int, bytes], int] = {}
    alone = 0
    for plan in plans:
        if not isinstance(plan, Plan):
            alone += len(plan)
            continue
        node = 0
        for row in plan.rows():
            node = trie.setdefault((node, _key(row)), len(trie) + 1)
    return len(trie) + alone


def _key(row: Row) -> bytes:
    """The row's exact bits, NaN included, for comparison."""
    return np.array(row).tobytes()


class Tree(NamedTuple):
    """What `run_tree` returns: samples and NFE per plan, and the calls really made."""

    samples: list[Tensor]
    nfe: list[int]
    calls: int


def run_tree(denoiser: Denoiser, plans: Sequence[Plan | Whole], noise: Noise) -> Tree:
    """Run several plans, every common prefix of their rows once.

    Plans may differ in length; a sampler that is no table is run by itself.  All see the same
    noise, so the samples of each plan are those that `run` gives, and differences between plans
    are paired.
    """
    rows = [list(plan.rows()) if isinstance(plan, Plan) else [] for plan in plans]
    keys = [[_key(row) for row in table] for table in rows]
    samples: dict[int, Tensor] = {}
    calls = 0
    with torch.no_grad():
        for i, plan in enumerate(plans):
            if not isinstance(plan, Plan):
                samples[i] = plan.run(denoiser, noise)
                calls += len(plan)
        # Each entry: plans that agree up to here, rows done, x and the x0 of the row before.
        stack: list[tuple[list[int], int, Tensor, Tensor | None]] = []
        if tables := [i for i in range(len(plans)) if i not in samples]:
            stack.append((tables, 0, noise.start(), None))
        while stack:
            group, depth, x, x0 = stack.pop()
            branches: dict[bytes, list[int]] = {}
            for i in group:
                if depth == len(rows[i]):
                    samples[i] = x
                else:
                    branches.setdefault(keys[i][depth], []).append(i)
            # Small branches are finished first, so that few states wait on the stack.
            for branch in sorted(branches.values(), key=len, reverse=True):
                state = _step(rows[branch[0]][depth], denoiser, x, x0, noise)
                stack.append((branch, depth + 1, *state))
                calls += 1
    return Tree([samples[i] for i in range(len(plans))], [len(p) for p in plans], calls)
