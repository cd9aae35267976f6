"""The loop that runs a plan, and the tree that runs many plans sharing their beginnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .plan import Plan, Row


class Denoiser(Protocol):
    """A pretrained network: (x_t [B, ...], timestep t, condition) -> (eps, v).

    `eps` has x's shape (v-prediction and x0-prediction networks give that instead: see the option
    `prediction_type` of `iterate`).  `v` is the learned-variance fraction in about [-1, 1] with
    x's shape, or None where the network has none.  t is the network's own index 0..T-1.
    """

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]: ...


class Noise(Protocol):
    """Where noise comes from; `sampling.noise.SampleNoise` is the reproducible one."""

    def start(self) -> Tensor: ...

    def at(self, t: float) -> Tensor: ...


Gradient = Callable[[Tensor, float], Tensor]


class State(NamedTuple):
    """After a row: x at timestep `row.s`, and the clean image `x0` that the network implied."""

    row: Row
    x: Tensor
    x0: Tensor


def iterate(
    denoiser: Denoiser,
    plan: Plan,
    noise: Noise,
    *,
    condition: Any = None,
    clip: bool = False,
    gradient: Gradient | None = None,
    prediction_type: str = "epsilon",
) -> Iterator[State]:
    """Run a plan and yield the state after every row; `run` without the last word.

    `clip` limits x0 to [-1, 1] (pixel models).  `prediction_type` is what the network predicts
    (see `implied_x0`).  `gradient(x_t, t)` is grad log p(y | x_t) of
    a noise-aware classifier, already multiplied by the guidance scale.  Raises ValueError if
    the plan needs a learned variance and the network has none.
    """
    x, x0 = noise.start(), None
    for row in plan.rows():
        x, x0 = _step(denoiser, row, x, x0, noise, condition, clip, gradient, prediction_type)
        yield State(row, x, x0)


def run(denoiser: Denoiser, plan: Plan, noise: Noise, **options: Any) -> Tensor:
    """Samples [B, ...] of `plan`, starting from `noise.start()`; options as in `iterate`."""
    x = None
    with torch.no_grad():
        for state in iterate(denoiser, plan, noise, **options):
            x = state.x
    assert x is not None
    return x


def implied_x0(
    output: Tensor, x: Tensor, alpha_bar: float, prediction_type: str = "epsilon"
) -> Tensor:
    """The clean image that a network's output at x_t implies.

    `prediction_type` says what the output is, in diffusers' words: `epsilon` is the noise,
    `v_prediction` v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022), `sample` x0
    itself.  Raises ValueError for another.
    """
    a = alpha_bar
    if prediction_type == "epsilon":
        return (x * a**-0.5).sub_(output, alpha=((1 - a) / a) ** 0.5)
    if prediction_type == "v_prediction":
        return (x * a**0.5).sub_(output, alpha=(1 - a) ** 0.5)
    if prediction_type == "sample":
        return output
    raise ValueError(
        f"unknown prediction_type {prediction_type!r}: choose {', '.join(PREDICTION_TYPES)}"
    )


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def advance(
    row: Row,
    x: Tensor,
    x0: Tensor,
    x0_previous: Tensor | None = None,
    z: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    """The update of one row: x_s from x_t, x0 and where the row asks for it z ~ N(0, I)."""
    out = (x * row.x).add_(x0, alpha=row.x0)
    if row.x0_previous and x0_previous is not None:
        out.add_(x0_previous, alpha=row.x0_previous)
    if row.noise:
        assert z is not None
        std = _between(row.noise, row.noise_high, v)
        out.addcmul_(std, z) if isinstance(std, Tensor) else out.add_(z, alpha=std)
    return out


def _step(
    denoiser: Denoiser,
    row: Row,
    x: Tensor,
    x0_previous: Tensor | None,
    noise: Noise,
    condition: Any,
    clip: bool,
    gradient: Gradient | None,
    prediction_type: str,
) -> tuple[Tensor, Tensor]:
    """One row: (x_t, x0 of the row before) -> (x_s, x0)."""
    output, v = denoiser(x, row.t, condition)
    x0 = implied_x0(output, x, row.alpha_bar, prediction_type)
    if clip:
        x0 = x0.clamp(-1, 1)
    if gradient is not None:
        scale = _between(row.gradient, row.gradient_high, v)
        x0 = x0 + scale * gradient(x, row.t)
    z = noise.at(row.t) if row.noise else None
    return advance(row, x, x0, x0_previous, z, v), x0


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

    def run(
        self,
        denoiser: Denoiser,
        noise: Noise,
        *,
        condition: Any = None,
        clip: bool = False,
        gradient: Gradient | None = None,
        prediction_type: str = "epsilon",
    ) -> Tensor: ...


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


def run_tree(
    denoiser: Denoiser,
    plans: Sequence[Plan | Whole],
    noise: Noise,
    *,
    condition: Any = None,
    clip: bool = False,
    gradient: Gradient | None = None,
    prediction_type: str = "epsilon",
) -> Tree:
    """Run several plans, every common prefix of their rows once; options as in `iterate`.

    Plans may differ in length; a sampler that is no table is run by itself.  All see the same noise, so the samples of each plan are
    those that `run` gives, and differences between plans are paired.
    """
    tables = {i: list(plan.rows()) for i, plan in enumerate(plans) if isinstance(plan, Plan)}
    keys = {i: [_key(row) for row in rows] for i, rows in tables.items()}
    samples: dict[int, Tensor] = {}
    calls = 0
    with torch.no_grad():
        for i, plan in enumerate(plans):
            if not isinstance(plan, Plan):
                samples[i] = plan.run(
                    denoiser,
                    noise,
                    condition=condition,
                    clip=clip,
                    gradient=gradient,
                    prediction_type=prediction_type,
                )
                calls += len(plan)
        # Each entry: plans that agree up to here, rows done, x and the x0 of the row before.
        stack: list[tuple[list[int], int, Tensor, Tensor | None]] = []
        if tables:
            stack.append((list(tables), 0, noise.start(), None))
        while stack:
            group, depth, x, x0 = stack.pop()
            branches: dict[bytes, list[int]] = {}
            for i in group:
                if depth == len(tables[i]):
                    samples[i] = x
                else:
                    branches.setdefault(keys[i][depth], []).append(i)
            # Small branches are finished first, so that few states wait on the stack.
            for branch in sorted(branches.values(), key=len, reverse=True):
                row = tables[branch[0]][depth]
                state = _step(
                    denoiser, row, x, x0, noise, condition, clip, gradient, prediction_type
                )
                stack.append((branch, depth + 1, *state))
                calls += 1
    return Tree([samples[i] for i in range(len(plans))], [len(p) for p in plans], calls)
