"""Plans with rows that go up: EDM's churn and Restart, with Euler's or Heun's method down.

Noise levels are sigma / alpha, EDM's sigma, on every path.  Euler's method is DDIM; Heun's adds a
row at the node where it arrives, s = t, which looks back at one eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .builders import Grid, Timesteps, ratio
from .options import check_choice, checked
from .plan import Plan
from .schedule import Schedule, karras_sigmas

METHODS = ("euler", "heun")
MOST_CHURN = 2**0.5 - 1  # Karras et al. (2022), algorithm 2


class Node(NamedTuple):
    """A level that a plan visits: the network's time (-1 is the end), alpha and sigma."""

    t: float
    alpha: float
    sigma: float

    @property
    def noise_level(self) -> float:
        return self.sigma / self.alpha if self.alpha else np.inf


@dataclass
class _Path:
    """The rows of a plan while it is made."""

    schedule: Schedule
    method: str
    rows: list[tuple[Node, Node, list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)

    def node(self, noise_level: float) -> Node:
        return Node(self.schedule.time_at(noise_level), *self.schedule.level_at(noise_level))

    def up(self, a: Node, b: Node, noise_scale: float) -> None:
        """Add the noise that lies between two levels, times `noise_scale`."""
        added = (b.noise_level**2 - a.noise_level**2) ** 0.5
        self.rows.append((a, b, [b.alpha / a.alpha, 0.0, 0.0, b.alpha * added * noise_scale]))

    def down(self, a: Node, b: Node) -> None:
        """Jump by Euler's method, then correct it by Heun's where the network can be called at b."""
        x = b.sigma / a.sigma
        euler = [x, b.alpha - a.alpha * x, 0.0, 0.0]
        if self.method == "euler" or a.alpha == 0 or b.sigma == 0 or not self._callable(b):
            self.rows.append((a, b, euler))
            return
        middle = b if b.t >= 0 else b._replace(t=self.schedule.time_at(b.noise_level))
        half = b.alpha * (b.noise_level - a.noise_level) / 2
        self.rows.append((a, middle, euler))
        self.rows.append((middle, b, [1 + half / b.sigma, -half * b.alpha / b.sigma, -half, 0.0]))

    def _callable(self, b: Node) -> bool:
        """A diffusion's network knows no level below that of timestep 0, where the end may lie."""
        lowest = self.schedule.noise_level[0] * (1 - 1e-12)
        return b.t >= 0 or self.schedule.straight is not None or b.noise_level >= lowest

    def plan(self, name: str, start: float) -> Plan:
        before, after, rows = zip(*self.rows, strict=True)
        t, alpha, sigma = np.array(before).T
        x, x0, eps, noise = np.array(rows).T
        fixed = np.full_like(t, np.nan)
        return Plan(
            name=name,
            t=t,
            s=np.array([node.t for node in after]),
            x=x,
            x0=x0[:, None],
            eps=np.stack([np.zeros_like(eps), eps], axis=1),
            noise=noise,
            noise_high=fixed,
            gradient=ratio(sigma**2, alpha),
            gradient_high=fixed,
            alpha=alpha,
            sigma=sigma,
            start=start,
        )


def _nodes(grid: Grid) -> list[Node]:
    """The grid's, and the end."""
    columns = (grid.t, grid.alpha_t, grid.sigma_t)
    nodes = [Node(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]
    return [*nodes, Node(-1.0, float(grid.alpha_s[-1]), float(grid.sigma_s[-1]))]


@checked
def churn(
    schedule: Schedule,
    timesteps: Timesteps,
    s_churn: float = 0.0,
    s_range: Sequence[float] = (0.0, np.inf),
    s_noise: float = 1.0,
    method: str = "heun",
) -> Plan:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2); s_churn = 0 is Heun's method.

    At nodes whose sigma / alpha lies in `s_range` noise of size `s_noise` raises the level by a
    factor of 1 + min(s_churn / jumps, sqrt(2) - 1), and the network is called there, at a time that
    is interpolated; on a diffusion never above the last timestep.  `method`: euler or heun.
    Raises ValueError for another method, a negative s_churn, or a range that is none.
    """
    if len(s_range) != 2:
        raise ValueError(f"s_range must be two levels, from and to, got {s_range!r}")
    low, high = s_range
    if not s_churn >= 0 or not low <= high:
        raise ValueError(
            f"churn needs s_churn >= 0 and a range, got {s_churn:g}, {low:g}..{high:g}"
        )
    grid = Grid.of(schedule, timesteps)
    path, nodes = _Path(schedule, method), _nodes(grid)
    factor = 1 + min(s_churn / len(grid.t), MOST_CHURN)
    for node, after in pairwise(nodes):
        level = node.noise_level * factor
        if schedule.straight is None:
            level = min(level, float(schedule.noise_level[-1]))
        if low <= node.noise_level <= high and level > node.noise_level:
            raised = path.node(level)
            path.up(node, raised, s_noise)
            node = raised
        path.down(node, after)
    return path.plan(f"churn({s_churn:g}, {low:g}..{high:g}, {method})", grid.start)


@checked
def restart(
    schedule: Schedule,
    timesteps: Timesteps,
    restarts: Sequence[Sequence[float]] = (),
    s_noise: float = 1.0,
    method: str = "heun",
) -> Plan:
    """Restart (Xu et al. 2023): Heun's method that goes back up and comes down again.

    `restarts` are (nodes, times, low, high): having arrived at the grid's node whose sigma / alpha
    is nearest to `low`, the plan adds the noise that lies between it and `high`, times `s_noise`,
    and comes down by `nodes` - 1 jumps of EDM's grid (rho = 7); all that so many `times`.
    Of two that begin at one node the last counts, as in the authors' code.  Raises ValueError for
    another method, fewer than 2 nodes, a `low` nearest to the start or the clean image, or `high` not
    above that node, or above the last timestep of a diffusion.
    """
    if any(len(numbers) != 4 for numbers in restarts):
        raise ValueError(
            f"each of restarts must be four numbers: nodes, times, low, high, got {restarts!r}"
        )
    grid = Grid.of(schedule, timesteps)
    path, nodes = _Path(schedule, method), _nodes(grid)
    levels = np.array([node.noise_level for node in nodes])
    at = {int(np.abs(levels - low).argmin()): (n, k, high) for n, k, low, high in restarts}
    if at and (0 in at or nodes[max(at)].sigma == 0):
        raise ValueError(
            f"no node of this grid is near sigma / alpha = {min(r[2] for r in restarts):g}, where a "
            "restart begins: take more steps, or another spacing"
        )
    for i, (node, after) in enumerate(pairwise(nodes), 1):
        path.down(node, after)
        n, times, high = at.get(i, (2, 0, np.inf))
        if i in at:
            _check_restart(schedule, after, int(n), high)
        for _ in range(int(times)):
            inner = [path.node(v) for v in karras_sigmas(int(n), after.noise_level, high)]
            inner[-1] = after
            path.up(after, inner[0], s_noise)
            for a, b in pairwise(inner):
                path.down(a, b)
    said = "; ".join(f"{n:g} nodes {k:g} times {a:g}..{b:g}" for n, k, a, b in restarts)
    return path.plan(f"restart({said or 'none'}, {method})", grid.start)


def _check_restart(schedule: Schedule, node: Node, n: int, high: float) -> None:
    top = np.inf if schedule.straight is not None else schedule.noise_level[-1]
    if n < 2 or not node.noise_level < high <= top:
        raise ValueError(
            f"a restart needs 2 nodes or more and must go up from its node, to {top:g} at most: got "
            f"{n} nodes from {node.noise_level:g} to {high:g}"
        )
