"""Noise that is coupled over step counts: one Brownian path for each sample.

With y = x / alpha and u = alpha^2 / sigma^2, the signal-to-noise ratio, the posterior jump of
Theorem 2 is

    u_s y_s = u_t y_t + (u_s - u_t) x0 + W(u_s) - W(u_t)

for a Brownian motion W in u.  So z = (W(u_s) - W(u_t)) / sqrt(u_s - u_t) is standard normal, those of
disjoint jumps are independent, and the z of a long jump is the sum of those of the short ones that
make it up, each times the root of its share of u_s - u_t: the same path, walked in fewer steps.

W is a function of (seed, i, u) alone.  At the points of a fixed lattice it is a Brownian bridge that
begins at the two ends and parts what lies between again and again.  The value at m of a < m < b is

    W_m = (1 - f) W_a + f W_b + sqrt(f (u_b - u_m)) n,    f = (u_m - u_a) / (u_b - u_a),

n standard normal from a stream of m's own.  So a point costs the draws on its way down that tree,
and the next point of a plan only those where its way is another.  What lies between is halved not by
number but by weight: timesteps that common grids visit weigh more, and lie nearer to the root.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .noise import PER_THREAD, SampleNoise
from .schedule import Schedule
from .timesteps import timesteps

Floats = NDArray[np.float32]

# The lattice of paths that have no timesteps (EDM, flow matching): log(sigma / alpha), in steps that
# are shorter than any of a flow of 1000 steps.
LOG_LEVELS = np.linspace(10.0, -10.0, 2**13 + 1)
# Grids whose timesteps weigh more.  Other lists, other noise: these are part of what a seed means.
COMMON_SPACINGS = ("even", "leading", "leading+1", "trailing")
COMMON_STEPS = (10, 20, 25, 40, 50, 80, 100)
GRID_WEIGHT = 300  # of all of a grid's timesteps; one that no such grid visits weighs 1
# The highest word of Philox's counter in these streams; in those of `SampleNoise` it is 0 or 1.
BRIDGE = 2
CHUNK = 2**16  # normal numbers that are made at once: few enough for a processor's cache


class BrownianNoise:
    """The noise of the samples `ids` under `seed`, coupled over plans with other step counts.

    One tensor [len(ids), *shape] a request: `start()` is the x_T of `SampleNoise`, `at(t, s)` the z
    of the jump from the network's time t to s.  The lattice is that of the timesteps of `schedule`;
    a time between two of them, or of a schedule without any, costs one draw more.

    Where there is no path to walk, z is that of `SampleNoise` and independent of the path: in rows
    that go up (restart, churn) or come by once more (`visit` > 0), to the end without noise, and
    between two times that are neighbours of the same two points of the lattice.

    W is float32, being a sum of few terms no larger than itself.  That makes an error of about 1e-6
    in z, and none in sums of z, which are differences of the same rounded W.  Memory: the values of
    the points on the way to one, at most 16.
    Raises ValueError for a seed or id outside 0..2^64 - 1.
    """

    def __init__(
        self,
        seed: int,
        ids: Sequence[int],
        shape: Sequence[int],
        schedule: Schedule,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.independent = SampleNoise(seed, ids, shape, device=device, dtype=dtype)
        self.schedule = schedule
        a = schedule.alpha_bar[::-1]
        lattice = a / (1 - a) if schedule.straight is None else np.exp(-2 * LOG_LEVELS)
        self._lattice: list[float] = lattice.tolist()  # values of u, increasing
        self._weight = _weight_below(schedule.T if schedule.straight is None else None)
        self._way: dict[float, Floats] = {}  # u -> W(u) on the way to the last point asked for

    def start(self) -> Tensor:
        return self.independent.start()

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        noise, u, v = self.independent, self._u(t), self._u(s)
        if visit or not u < v < np.inf or self._share_a_cell(u, v):
            return noise.at(t, s, visit)
        before, after = self._walk(u), self._walk(v)
        # Pinned memory lets the copy to a GPU overlap with the network.
        z = torch.empty(before.shape, pin_memory=noise.device.type == "cuda")
        np.subtract(after, before, out=z.numpy())
        z.mul_((v - u) ** -0.5)
        z = z.view(len(noise.ids), *noise.shape)
        return z.to(noise.device, noise.dtype, non_blocking=True)

    def _u(self, t: float) -> float:
        """The signal-to-noise ratio at a time of the network; -1 is the end."""
        schedule = self.schedule
        if schedule.straight is None and -1 <= t == int(t) < schedule.T:
            a = schedule.abar(int(t))
            return a / (1 - a) if a < 1 else np.inf
        level = schedule.level(t)
        return (level.alpha / level.sigma) ** 2 if level.sigma else np.inf

    def _share_a_cell(self, u: float, v: float) -> bool:
        """Whether both lie between the same two points of the lattice, or beyond the same end."""
        low, high = (bisect_left(self._lattice, w) for w in (u, v))
        return low == high and v not in self._lattice[high : high + 1]

    def _walk(self, u: float) -> Floats:
        """W(u), [len(ids), numbers of a sample]; draws what is not known of the last walk."""
        way: dict[float, Floats] = {}
        for place, point, around in self._way_to(u):
            if point not in way:
                known = self._way.get(point)
                way[point] = self._between(place, point, around, way) if known is None else known
        self._way = way
        return way[u]

    def _way_to(self, u: float) -> Iterator[tuple[int, float, list[float]]]:
        """The points on the way to u: the number of each one's stream, its u, its neighbours' u.

        The numbers are odd at points of the lattice, even between them and beyond the ends.
        """
        lattice = self._lattice
        a, b = 0, len(lattice) - 1
        yield 1, lattice[a], []
        yield 2 * b + 1, lattice[b], [lattice[a]]
        while b - a > 1 and lattice[a] < u < lattice[b]:
            half = (self._weight[a + 1] + self._weight[b]) // 2
            m = bisect_right(self._weight, half) - 1
            yield 2 * m + 1, lattice[m], [lattice[a], lattice[b]]
            a, b = (m, b) if lattice[m] <= u else (a, m)
        k = bisect_left(lattice, u)
        yield 2 * k, u, lattice[max(k - 1, 0) : k + 1]

    def _between(
        self, place: int, u: float, around: list[float], way: dict[float, Floats]
    ) -> Floats:
        """W(u) given W at its neighbours: at both, at one beyond an end; W begins with 0."""
        noise = self.independent
        rows, numbers = len(noise.ids), math.prod(noise.shape)
        if not around:
            return np.zeros((rows, numbers), np.float32)
        W = np.empty((rows, numbers), np.float32)
        low, high = around[0], around[-1]
        f = (u - low) / (high - low) if low < high else 0.0
        std = (f * (high - u) if low < high else abs(u - low)) ** 0.5
        ends = [(1 - f, way[low]), (f, way[high])][: len(around)]

        def fill(first: int, end: int) -> None:
            normals = _Normals(noise.seed, place)
            step = max(1, CHUNK // max(1, numbers))
            for k in range(first, end, step):
                part = slice(k, min(k + step, end))
                normals.draw(noise.ids[part], std, W[part])
                for weight, value in ends:
                    W[part] += np.float32(weight) * value[part]

        _on_threads(fill, rows, W.size)
        return W


@cache
def _weight_below(T: int | None) -> Sequence[int]:
    """Of every point of the lattice, and of its end: the weight of all points before it."""
    if T is None:
        return range(len(LOG_LEVELS) + 1)
    weights = np.ones(T, np.int64)
    for spacing, steps in product(COMMON_SPACINGS, COMMON_STEPS):
        if steps <= T:
            weights[timesteps(T, steps, spacing)] += GRID_WEIGHT // steps
    below: list[int] = np.append(0, weights[::-1].cumsum()).tolist()
    return below


class _Normals:
    """The normal numbers of one place of the tree, by the method of Box and Muller (1958).

    Both of a pair are made of one 53-bit number, 26 for the radius and 27 for the angle, which
    leaves out what lies beyond 6 standard deviations.  This takes half the time of NumPy's method,
    which counts here: with few steps a jump needs the numbers of several points.
    """

    def __init__(self, seed: int, place: int):
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state
        self._state["state"]["counter"][:] = (0, BRIDGE, 0, place)
        self._key = self._state["state"]["key"]
        self._key[0] = seed

    def draw(self, ids: Sequence[int], std: float, out: Floats) -> None:
        """N(0, std^2) into `out` [len(ids), numbers], each row a function of its id alone."""
        numbers = out.shape[1]
        half = (numbers + 1) // 2
        uniform = np.empty((len(ids), half))
        for i, row in zip(ids, uniform, strict=True):
            self._key[1] = i
            self._philox.state = self._state  # also clears its buffer
            self._generator.random(out=row)
        uniform *= 2.0**26
        whole = np.floor(uniform)
        uniform -= whole
        whole += 1
        angle, radius = uniform.astype(np.float32), whole.astype(np.float32)
        angle *= np.float32(2 * np.pi)
        radius *= np.float32(2.0**-26)  # in (0, 1]
        np.log(radius, out=radius)
        radius *= np.float32(-2 * std**2)
        np.sqrt(radius, out=radius)
        np.multiply(radius, np.cos(angle), out=out[:, :half])
        odd = numbers - half
        np.multiply(radius[:, :odd], np.sin(angle)[:, :odd], out=out[:, half:])


def _on_threads(fill: Callable[[int, int], None], rows: int, numbers: int) -> None:
    """`fill(first, end)` for all rows, on as many threads as so many numbers are worth."""
    threads = max(1, min(torch.get_num_threads(), numbers // PER_THREAD))
    edges = [k * rows // threads for k in range(threads + 1)]
    if threads == 1:
        fill(0, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        for part in [pool.submit(fill, *ab) for ab in pairwise(edges)]:
            part.result()
