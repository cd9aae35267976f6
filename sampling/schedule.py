"""Noise schedules: alpha_bar over the network's own timesteps 0..T-1, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .options import check_choice

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete forward process q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I).

    `alpha_bar` has shape [T] and is indexed by the network's timestep, 0..T-1.  Index -1
    is where every plan ends, and `final` is alpha_bar there: 1, the clean image.  Stable
    Diffusion's own samplers end at alpha_bar of timestep 0 instead, a little noise away from
    it (`set_alpha_to_one=False` in diffusers).
    """

    alpha_bar: Array
    name: str = "betas"
    final: float = 1.0

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

    @property
    def T(self) -> int:
        return len(self.alpha_bar)

    def abar(self, t: int) -> float:
        """alpha_bar at timestep t, `final` at t = -1.  IndexError elsewhere."""
        if not -1 <= t < self.T:
            raise IndexError(f"timestep {t} is not in -1..{self.T - 1}")
        return self.final if t == -1 else float(self.alpha_bar[t])

    @property
    def sigma(self) -> Array:
        """Noise-to-signal ratio sqrt((1 - abar) / abar), [T]: the sigma of EDM, increasing in t.

        Infinite where there is no signal at all (`zero_terminal_snr`).
        """
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - self.alpha_bar) / self.alpha_bar)

    @property
    def log_snr(self) -> Array:
        """Log signal-to-noise ratio log(abar / (1 - abar)), [T], decreasing."""
        return -2 * np.log(self.sigma)

    def first_t_at_sigma(self, sigma: float) -> int:
        """Smallest timestep whose noise level is >= sigma (T if there is none)."""
        return int(np.searchsorted(self.sigma, sigma))

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
