"""Noise schedules: the Gaussian path x_t = alpha_t x_0 + sigma_t eps of a network, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .options import check_choice

Array = NDArray[np.float64]


class Straight(NamedTuple):
    """A path that is linear in the network's time: of EDM (alpha = 1) and of flow matching.

    `sigma` [T] are its noise levels, increasing, `end` the one where plans end (0 is the clean
    image), and the network's time is `unit` * sigma.  alpha = 1 - sigma where it is a `flow`.
    """

    sigma: Array
    end: float
    flow: bool
    unit: float

    def alpha(self, sigma: Array) -> Array:
        return 1 - sigma if self.flow else np.ones_like(sigma)


class Level(NamedTuple):
    """x = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """A path x_t = alpha_t x_0 + sigma_t eps at the levels 0..T-1, from little noise to much.

    Diffusion (alpha^2 + sigma^2 = 1) is told by `alpha_bar` = alpha^2 alone, [T], and level k is
    the network's timestep k.  Other paths are `straight`; there alpha_bar is that of the same
    signal-to-noise ratio, alpha^2 / (alpha^2 + sigma^2), and the network is told `times`.

    Level -1 is where every plan ends, and `final` is alpha_bar there: 1, the clean image.  Stable
    Diffusion's own samplers end at alpha_bar of timestep 0 instead, a little noise away from
    it (`set_alpha_to_one=False` in diffusers).
    """

    alpha_bar: Array
    name: str = "betas"
    final: float = 1.0
    straight: Straight | None = None

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Array, name: str = "betas") -> Schedule:
        """alpha_bar_t = prod_{i <= t} (1 - beta_i).  Raises ValueError unless 0 < beta < 1."""
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a non-empty one-dimensional list within (0, 1)")
        return cls(np.cumprod(1.0 - betas, dtype=np.float64), name)

    @classmethod
    def linear(cls, T: int = 1000) -> Schedule:
        """Ho et al. (2020): beta from 1e-4 to 0.02, both scaled by 1000 / T (ADM, Open-Sora)."""
        scale = 1000 / T
        return cls.from_betas(np.linspace(scale * 1e-4, scale * 0.02, T), "linear")

    @classmethod
    def scaled_linear(cls, T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
        """Linear in sqrt(beta): Stable Diffusion's schedule."""
        return cls.from_betas(np.linspace(start**0.5, end**0.5, T) ** 2, "scaled_linear")

    @classmethod
    def cosine(cls, T: int = 1000) -> Schedule:
        """Nichol & Dhariwal (2021), eq. 17: offset 0.008, betas capped at 0.999."""

        def f(u: Array) -> Array:
            return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

        i = np.arange(T)
        return cls.from_betas(np.minimum(1 - f((i + 1) / T) / f(i / T), 0.999), "cosine")

    @classmethod
    def edm(cls, sigmas: Sequence[float] | Array, end: float = 0.0) -> Schedule:
        """EDM's path x = x_0 + sigma eps (Karras et al. 2022) at the levels `sigmas`, decreasing.

        The network's time is sigma; plans end at sigma = `end`.  Raises ValueError unless the
        levels decrease strictly to above the end.
        """
        return cls._straight("edm", sigmas, end, 1.0)

    @classmethod
    def flow(
        cls,
        sigmas: Sequence[float] | Array,
        end: float = 0.0,
        *,
        shift: float = 1.0,
        unit: float = 1000.0,
    ) -> Schedule:
        """Flow matching's x = (1 - sigma) x_0 + sigma eps at the levels `sigmas`, decreasing.

        `shift` moves them to shift sigma / (1 + (shift - 1) sigma), as SD3 does (Esser et al. 2024,
        eq. 23); `flow_shift` gives it for a resolution.  The network's time is `unit` * sigma.
        Raises ValueError unless the levels decrease strictly within 0..1 to above the end.
        """
        levels = np.asarray(sigmas, dtype=np.float64)
        return cls._straight("flow", shift * levels / (1 + (shift - 1) * levels), end, unit)

    @classmethod
    def _straight(
        cls, name: str, sigmas: Sequence[float] | Array, end: float, unit: float
    ) -> Schedule:
        levels = np.asarray(sigmas, dtype=np.float64)
        decreasing = (
            levels.ndim == 1 and levels.size > 0 and (np.diff(levels, append=end) < 0).all()
        )
        largest = 1.0 if name == "flow" else np.inf
        if not decreasing or not 0 <= end < levels[0] <= largest or levels[0] == np.inf:
            raise ValueError(
                f"the sigmas of {name} must decrease strictly from at most {largest:g} "
                f"to above the end, {end:g}"
            )
        path = Straight(levels[::-1].copy(), end, name == "flow", unit)
        alpha, every = path.alpha(path.sigma), np.append(path.sigma, end)
        alpha_bar = np.append(alpha, path.alpha(every[-1:])) ** 2
        alpha_bar /= alpha_bar + every**2
        return cls(alpha_bar[:-1], name, float(alpha_bar[-1]), path)

    @property
    def T(self) -> int:
        return len(self.alpha_bar)

    def abar(self, t: float) -> float:
        """alpha_bar at level t, `final` at t = -1; between timesteps as `level`.  IndexError elsewhere."""
        if not -1 <= t <= self.T - 1 or -1 < t < 0:
            raise IndexError(f"timestep {t} is not in -1..{self.T - 1}")
        if t != int(t):
            return self.level(t).alpha ** 2
        return self.final if t == -1 else float(self.alpha_bar[int(t)])

    @property
    def alpha(self) -> Array:
        """The signal's coefficient, [T]."""
        straight = self.straight
        return np.sqrt(self.alpha_bar) if straight is None else straight.alpha(straight.sigma)

    @property
    def sigma(self) -> Array:
        """The noise's coefficient, [T]."""
        return np.sqrt(1 - self.alpha_bar) if self.straight is None else self.straight.sigma

    @property
    def end(self) -> Level:
        """Where plans end: (1, 0) is the clean image."""
        if self.straight is None:
            return Level(self.final**0.5, (1 - self.final) ** 0.5)
        return Level(1 - self.straight.end if self.straight.flow else 1.0, self.straight.end)

    @property
    def times(self) -> Array:
        """What the network is told at each level, [T]: its timestep, or unit * sigma."""
        if self.straight is None:
            return np.arange(self.T, dtype=np.float64)
        return self.straight.unit * self.straight.sigma

    def level(self, time: float) -> Level:
        """alpha and sigma at a time of the network; -1 is the end.

        Between the timesteps of a diffusion log(sigma / alpha) is interpolated linearly, and beyond
        the last one it goes on as between the last two.  Raises IndexError for other negatives.
        """
        if time == -1:
            return self.end
        if time < 0:
            raise IndexError(f"time {time:g} is negative, and the end is -1")
        if self.straight is not None:
            sigma = time / self.straight.unit
            return Level(1 - sigma if self.straight.flow else 1.0, sigma)
        if time == int(time) < self.T:
            a = float(self.alpha_bar[int(time)])
            return Level(a**0.5, (1 - a) ** 0.5)
        below = min(int(time), self.T - 2)
        low, high = np.log(self.noise_level[below : below + 2])
        return self.level_at(float(np.exp(low + (time - below) * (high - low))))

    def level_at(self, noise_level: float) -> Level:
        """alpha and sigma where sigma / alpha is that."""
        if self.straight is None:
            alpha = (1 + noise_level**2) ** -0.5
        else:
            alpha = 1 / (1 + noise_level) if self.straight.flow else 1.0
        return Level(alpha, noise_level * alpha)

    def time_at(self, noise_level: float) -> float:
        """The network's time where sigma / alpha is that; the inverse of `level`.

        Raises ValueError below the noise of a diffusion's timestep 0.
        """
        if self.straight is not None:
            return self.straight.unit * self.level_at(noise_level).sigma
        logs = np.log(self.noise_level)
        wanted = float(np.log(noise_level))
        if wanted < logs[0] - 1e-7:  # schedulers find levels by differences that cancel
            raise ValueError(
                f"sigma / alpha = {noise_level:g} lies below that of timestep 0, where the network "
                f"knows none: take {self.noise_level[0]:g} or more"
            )
        wanted = max(wanted, float(logs[0]))
        below = int(np.clip(np.searchsorted(logs, wanted, "right") - 1, 0, self.T - 2))
        time = below + (wanted - logs[below]) / (logs[below + 1] - logs[below])
        return float(round(time)) if abs(time - round(time)) < 1e-9 else float(time)

    @property
    def noise_level(self) -> Array:
        """Noise-to-signal ratio sigma / alpha, [T], increasing: the sigma of EDM.

        Infinite where there is no signal at all (`zero_terminal_snr`).
        """
        with np.errstate(divide="ignore"):
            if self.straight is not None:
                return self.sigma / self.alpha
            return np.sqrt((1 - self.alpha_bar) / self.alpha_bar)

    @property
    def log_snr(self) -> Array:
        """Log signal-to-noise ratio 2 log(alpha / sigma), [T], decreasing."""
        return -2 * np.log(self.noise_level)

    def first_t_at_sigma(self, sigma: float) -> int:
        """Smallest level whose sigma / alpha is >= that `sigma` (T if there is none)."""
        return int(np.searchsorted(self.noise_level, sigma))

    def zero_terminal_snr(self) -> Schedule:
        """This schedule with no signal left at T - 1 (Lin et al. 2024, algorithm 1).

        sqrt(abar) is shifted to end at 0, and scaled so that it begins where it did.
        """
        root = np.sqrt(self.alpha_bar)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return replace(self, alpha_bar=root**2)

    @classmethod
    def named(cls, name: str, T: int = 1000) -> Schedule:
        """The schedule of that name.  Raises ValueError with the known names."""
        known = {"linear": cls.linear, "cosine": cls.cosine, "scaled_linear": cls.scaled_linear}
        check_choice("schedule", name, known)
        return known[name](T)


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Array:
    """EDM's grid (Karras et al. 2022, eq. 5): sigma^(1/rho) uniform, decreasing, [steps].

    Raises ValueError for less than one step, or unless 0 < sigma_min <= sigma_max.
    """
    if steps < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError("karras_sigmas needs steps >= 1 and 0 < sigma_min <= sigma_max")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid: Array = np.linspace(high, low, steps) ** rho
    return grid


def flow_shift(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_mu: float = 0.5,
    max_mu: float = 1.15,
) -> float:
    """The `shift` of flow matching for an image of so many tokens (Esser et al. 2024, FLUX).

    It is exp(mu), mu linear in the tokens: `base_mu` at `base_tokens`, `max_mu` at `max_tokens`.
    """
    mu = base_mu + (max_mu - base_mu) * (tokens - base_tokens) / (max_tokens - base_tokens)
    return float(np.exp(mu))
