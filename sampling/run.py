"""The loop that runs a plan, and the tree that runs many plans sharing their beginnings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .denoise import Denoised, Denoiser
from .plan import Plan, Row


class Noise(Protocol):
    """Where noise comes from; `sampling.noise.SampleNoise` is the reproducible one."""

    def start(self) -> Tensor: ...

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        """z ~ N(0, I) of the jump t -> s; `visit` is that of `Row`."""
        ...


class State(NamedTuple):
    """After a row: x at `row.s`, and the clean image `x0` that it went towards.

    Rows that make no network call have no x0.
    """

    row: Row
    x: Tensor
    x0: Tensor | None


class Past(NamedTuple):
    """What a row may look back at: a network call's x0, and its eps where a plan needs it."""

    x0: Tensor
    eps: Tensor | None


History = tuple[Past, ...]  # newest first


class Memory(NamedTuple):
    """How many calls are kept for the rows to come, and whether with their eps."""

    length: int
    eps: bool

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> "Memory":
        return cls(max(p.look_back for p in plans), any(p.eps.shape[1] > 1 for p in plans))


def iterate(denoiser: Denoiser, plan: Plan, noise: Noise) -> Iterator[State]:
    """Run a plan from `noise.start()` and yield the state after every row.

    Raises ValueError if the plan needs a learned variance and the denoiser gives none.
    """
    x, memory = _start(plan, noise), Memory.of([plan])
    history: History = ()
    for row in plan.rows():
        x, x0, history = step_row(row, denoiser, x, history, memory, noise)
        yield State(row, x, x0)


def run(denoiser: Denoiser, plan: Plan, noise: Noise) -> Tensor:
    """The samples [B, ...] of `plan`: x after its last row (see `iterate`)."""
    with torch.no_grad():
        for state in iterate(denoiser, plan, noise):
            x = state.x
    return x


def _start(plan: Plan, noise: Noise) -> Tensor:
    x = noise.start()
    return x if plan.start == 1 else x * plan.start


def at_first_call(plan: Plan, noise: Noise) -> Tensor:
    """What the plan shows the network first: x_T, or what rows make of it that only add noise."""
    x = _start(plan, noise)
    for row in plan.rows():
        if row.calls:
            break
        x = advance(row, x, None, (), noise.at(row.t, row.s, row.visit) if row.noise else None)
    return x


def step_row(
    row: Row, denoiser: Denoiser, x: Tensor, history: History, memory: Memory, noise: Noise
) -> tuple[Tensor, Tensor | None, History]:
    """One row: (x_t, the calls before) -> (x_s, x0, the calls up to now)."""
    told = (row.t,) if row.eps_scale == 1 else (row.t, row.eps_scale)
    denoised = guided(row, Denoised(*denoiser(x, *told))) if row.calls else None
    z = noise.at(row.t, row.s, row.visit) if row.noise else None
    out, history = moved(row, x, denoised, history, memory, z)
    return out, None if denoised is None else denoised.x0, history


def moved(
    row: Row,
    x: Tensor,
    denoised: Denoised | None,
    history: History,
    memory: Memory,
    z: Tensor | None = None,
) -> tuple[Tensor, History]:
    """`advance`, and the calls before with this one, as many as are remembered."""
    out = advance(row, x, denoised, history, z)
    if denoised is not None and memory.length:
        x0 = denoised.x0
        eps = x.sub(x0, alpha=row.alpha).div_(row.sigma) if memory.eps else None
        history = (Past(x0, eps), *history[: memory.length - 1])
    return out, history


def guided(row: Row, denoised: Denoised) -> Denoised:
    """x0 moved along the classifier's gradient as far as the row says; as it is without one."""
    x0, v, gradient = denoised
    if gradient is None:
        return denoised
    return Denoised(x0 + _between(row.gradient, row.gradient_high, v) * gradient, v)


def advance(
    row: Row,
    x: Tensor,
    denoised: Denoised | None,
    history: Sequence[Past] = (),
    z: Tensor | None = None,
) -> Tensor:
    """The update of one row: x_s from x_t, x0, the calls before (newest first) and z ~ N(0, I).

    `denoised`, `history` and `z` are needed where the row has a coefficient for them.
    """
    if denoised is not None and row.x and abs(row.x + row.x0[0] - 1) < 1e-15:
        out = torch.lerp(
            denoised.x0, x, row.x
        )  # one pass: DDIM where alpha + sigma = 1, or alpha = 1
    else:
        out = x * row.x
        if denoised is not None:
            out.add_(denoised.x0, alpha=row.x0[0])
    if history:
        for weight, past in zip(row.x0[1:], history, strict=False):
            if weight:
                out.add_(past.x0, alpha=weight)
        for weight, past in zip(row.eps[1:], history, strict=False):
            if weight:
                assert past.eps is not None
                out.add_(past.eps, alpha=weight)
    if row.noise:
        assert z is not None
        std = _between(row.noise, row.noise_high, None if denoised is None else denoised.v)
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


def count_calls(plans: Sequence[Plan]) -> int:
    """Network calls that `run_tree` makes for these plans: their distinct prefixes of rows."""
    trie: dict[tuple[int, str], int] = {}
    calls = 0
    for plan in plans:
        node = trie.setdefault((-1, repr(plan.start)), len(trie))
        for row in plan.rows():
            calls += row.calls and (node, _key(row)) not in trie
            node = trie.setdefault((node, _key(row)), len(trie))
    return calls


def _key(row: Row) -> str:
    """The row's exact numbers, NaN included, for comparison."""
    return repr(row)


class Tree(NamedTuple):
    """What `run_tree` returns: samples and NFE per plan, and the calls really made."""

    samples: list[Tensor]
    nfe: list[int]
    calls: int


def run_tree(denoiser: Denoiser, plans: Sequence[Plan], noise: Noise) -> Tree:
    """Run several plans, every common prefix of their rows once.

    Plans may differ in length.  All see the same noise, so the samples of each plan are those that
    `run` gives, and differences between plans are paired.
    """
    samples: dict[int, Tensor] = {}
    calls = 0
    with torch.no_grad():
        tables = [_Table(plan) for plan in plans]
        # Each entry: plans that agree up to here, rows done, x and the calls before.
        stack: list[tuple[list[int], int, Tensor, History]] = []
        for start in dict.fromkeys(plan.start for plan in plans):
            group = [i for i, plan in enumerate(plans) if plan.start == start]
            stack.append((group, 0, _start(plans[group[0]], noise), ()))
        while stack:
            group, depth, x, history = stack.pop()
            branches: dict[str, list[int]] = {}
            for i in group:
                if depth == len(tables[i].rows):
                    samples[i] = x
                else:
                    branches.setdefault(tables[i].keys[depth], []).append(i)
            # Small branches are finished first, so that few states wait on the stack.
            for branch in sorted(branches.values(), key=len, reverse=True):
                row = tables[branch[0]].rows[depth]
                memory = Memory.of([tables[i].plan for i in branch])
                out, _, past = step_row(row, denoiser, x, history, memory, noise)
                stack.append((branch, depth + 1, out, past))
                calls += row.calls
    return Tree([samples[i] for i in range(len(plans))], [len(p) for p in plans], calls)


class _Table:
    """A plan's rows, and what tells them from others."""

    def __init__(self, plan: Plan):
        self.plan, self.rows = plan, list(plan.rows())
        self.keys = [_key(row) for row in self.rows]
