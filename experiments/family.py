"""Mix* of one step count as points of the unit cube: what the tuner moves in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling import Schedule, timesteps

Array = NDArray[np.float64]

SHARES = 4  # knots of the share of noise
RHO = (1.0, 100.0)  # of the grid, from even in sigma to nearly even in log-SNR
SHIFT = (1 / 3, 3.0)  # of the grid, from little noise to much
LAST = 0.08  # of all timesteps: how early a grid may end
SCALE = (1.0, 1.04)  # of eps, at either end of the schedule
SCALES = ("scale of eps at noise", "scale of eps at data")
LEVELS = 6.0  # knots and switches lie between the log-SNRs of minus and plus so much


@dataclass(frozen=True)
class Family:
    """Mix* with fixed `orders`: its shares of noise, switch, grid and scale of eps as numbers in 0..1.

    - `SHARES` shares at log-SNRs that are evenly spaced, themselves;
    - the switch, where there are two orders;
    - on diffusion's schedules the grid's rho, shift and last timestep (`spacing=karras+RHO+SHIFT+END`): flow
      matching's grids are its model's own;
    - the scale of eps (Ning et al. 2024) at the noisiest timestep and at the first, linear between: where all
      levels keep some signal, since eps that is scaled without any gives no x0.

    All numbers of a sampler are rounded to three digits, as they are printed.
    """

    schedule: Schedule
    steps: int
    orders: tuple[int, ...]

    @cached_property
    def levels(self) -> list[float]:
        """The log-SNRs of the knots, from much noise to little."""
        low, high = self._range
        return [_rounded(level) for level in np.linspace(low, high, SHARES)]

    @property
    def names(self) -> list[str]:
        """What each number stands for."""
        shares = [f"share at {level:g}" for level in self.levels]
        switch = ["switch"] if len(self.orders) > 1 else []
        grid = [] if self.schedule.straight else ["rho", "shift", "last timestep"]
        return [*shares, *switch, *grid, *(SCALES if self._has_signal else ())]

    @property
    def size(self) -> int:
        return len(self.names)

    def usual(self, grid: Sequence[int] | NDArray[np.int64]) -> list[Array]:
        """Where a search begins: no noise, noise everywhere, and noise early; on nearly this grid, eps as it is."""
        by_name = {"switch": 0.5, **self._nearest(tuple(int(t) for t in grid))}
        others = [by_name.get(name, 0.0) for name in self.names[SHARES:]]
        shares = np.zeros(SHARES), np.ones(SHARES), np.linspace(1, 0, SHARES)
        return [np.array([*share, *others]) for share in shares]

    def _nearest(self, grid: tuple[int, ...]) -> dict[str, float]:
        """The rho, shift and last timestep of the grid of ours that is nearest in log-SNR."""
        if self.schedule.straight is not None or len(grid) != self.steps:
            return {"rho": 0.5, "shift": 0.5}
        last = min(1.0, (grid[-1] / (LAST * self.schedule.T)) ** 0.5)
        log_snr, parts = self.schedule.log_snr, np.linspace(0, 1, 21)

        def distance(pair: tuple[float, float]) -> float:
            ours = timesteps(self.schedule, self.steps, self._spacing(*pair, last))
            return float(np.square(log_snr[ours] - log_snr[list(grid)]).sum())

        rho, shift = min(product(parts.tolist(), parts.tolist()), key=distance)
        return {"rho": rho, "shift": shift, "last timestep": last}

    def sampler(self, point: Sequence[float] | Array) -> dict[str, Any]:
        """The options of the point [size], each in 0..1: those of `sampler=mixstar`, and its `spacing`."""
        at = dict(zip(self.names, (float(v) for v in point), strict=True))
        shares = [_rounded(at[f"share at {level:g}"]) for level in self.levels]
        sampler: dict[str, Any] = {
            "name": "mixstar",
            "knots": [list(knot) for knot in zip(self.levels, shares, strict=True)],
            "orders": list(self.orders),
        }
        if "switch" in at:
            low, high = self._range
            sampler["switches"] = [_rounded(low + at["switch"] * (high - low))]
        if self._has_signal:
            sampler["eps_scale"] = self._scale(*(at[name] for name in SCALES))
        if "rho" in at:
            sampler["spacing"] = self._spacing(at["rho"], at["shift"], at["last timestep"])
        return sampler

    def _spacing(self, rho: float, shift: float, last: float) -> str:
        # Squared: most models want an end near 0, and there the steps should be fine.
        end = round(min(LAST * self.schedule.T, self.schedule.T - self.steps) * last**2)
        return f"karras+{_rounded(_between(rho, RHO)):g}+{_rounded(_between(shift, SHIFT)):g}+{end}"

    def _scale(self, noise: float, data: float) -> list[float]:
        """[k, b] of k t + b; seven digits, since t goes to 999."""
        low, high = SCALE
        first = float(self.schedule.times[-1])
        at_noise, at_data = low + noise * (high - low), _rounded(low + data * (high - low), 4)
        return [_rounded((at_noise - at_data) / first, 3), at_data]

    @property
    def _has_signal(self) -> bool:
        return bool(np.isfinite(self.schedule.log_snr).all())

    @property
    def _range(self) -> tuple[float, float]:
        inside = self.schedule.log_snr[np.abs(self.schedule.log_snr) < LEVELS]
        return float(inside.min()), float(inside.max())


def _between(part: float, ends: tuple[float, float]) -> float:
    """The number at this part of the way between two, in logarithms."""
    low, high = np.log(ends)
    return float(np.exp(low + part * (high - low)))


def _rounded(value: float, digits: int = 3) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")
