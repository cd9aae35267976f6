"""Which timesteps a sampler visits: grids over the network's own indices 0..T-1."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .options import fits
from .schedule import Schedule

SPACINGS = ("even", "linspace", "ddim", "leading", "trailing")
NOISE_SPACINGS = ("log_snr", "karras", "ays_sd", "ays_sdxl")  # these need the noise schedule

# Align Your Steps (Sabour et al. 2024), 10 steps, as published for Stable Diffusion 1.5 and XL.
AYS = {
    "ays_sd": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "ays_sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}
RHO = 7.0  # of Karras et al. (2022)
NUMBER = r"\+(\d+(?:\.\d+)?)"
CURVE = re.compile(rf"karras{NUMBER}(?:{NUMBER}(?:\+(\d+))?)?")  # +rho, +rho+shift, +rho+shift+end


def timesteps(
    T: int | Schedule, steps: int | None = None, spacing: str | Sequence[int] = "even"
) -> NDArray[np.int64]:
    """The visited timesteps in sampling order (decreasing), int64 [steps].

    `T` is the number of the network's timesteps, or its noise schedule, which the last kinds of
    spacing need.

    `spacing` is one of

    - `even`: guided-diffusion's, both end points included, positions accumulated in
      floating point and rounded half to even.  Cutoff 291 of the paper is a node of the
      25-step grid.  (Its one-step grid is t = 0, as in the original.)
    - `ddim`: guided-diffusion's "ddimN", every k-th timestep from 0 with the first integer
      stride k that gives `steps` timesteps; most counts have none.
    - `linspace`: the same in diffusers, where positions are multiplied, not accumulated:
      it rounds otherwise at 278 of the 1000 step counts.
    - `leading`: multiples of T // steps from 0, as diffusers' "leading"; `leading+1` is the same
      one timestep later, where Stable Diffusion's own samplers go ("steps_offset" in diffusers).
      It never moves beyond T - 1, so that with T steps it is just `leading`.
    - `trailing`: from T - 1 downwards in steps of T / steps, as diffusers' "trailing".
    - `log_snr`: uniform in the logarithm of the signal-to-noise ratio, from timestep T - 1 to 0
      (Lu et al. 2022).
    - `karras`: sigma^(1/7) uniform between those of T - 1 and 0 (Karras et al. 2022, eq. 5).
      `karras+5` is the same with rho = 5, where 1 is uniform in sigma and 1000 nearly `log_snr`.
      `karras+5+2` also moves u, which is 1 at T - 1 and 0 at 0, to shift u / (1 + (shift - 1) u) with a
      shift of 2, as flow matching moves its levels: above 1 more timesteps have much noise.
      `karras+5+2+20` ends at timestep 20 and not at 0: what noise is left there goes in one jump.
    - `ays_sd`, `ays_sdxl`: the published 10-step lists of Align Your Steps, by timestep; other counts
      by interpolating log sigma linearly, as its authors advise.
    - sections, e.g. "90,60,60,20,20": T is cut into that many equal parts, from low to high
      t, each visited evenly with its own count (improved DDPM).
    - an explicit list of timesteps, e.g. a published AYS list.

    `log_snr`, `karras` and `ays` take the timesteps nearest in log sigma, moved where two would be
    the same.  For the last two `steps` may be None.  Raises ValueError if `steps` is not in 1..T or
    contradicts the spacing, or if the spacing is unknown or impossible for that count.
    """
    schedule = None
    if isinstance(T, Schedule):
        schedule, T = T, T.T
    if steps is not None and not fits(steps, int):
        raise ValueError(f"steps must be an integer between 1 and T = {T}, got {steps!r}")
    if not isinstance(spacing, str | Sequence | np.ndarray):
        raise ValueError(f"spacing must be a name or a list of timesteps, got {spacing!r}")
    if not isinstance(spacing, str):
        return _explicit(T, steps, spacing)
    if "," in spacing:
        return _sections(T, steps, spacing)
    return _named(T, schedule, steps, spacing)


def _named(T: int, schedule: Schedule | None, steps: int | None, spacing: str) -> NDArray[np.int64]:
    name, _, offset = spacing.partition("+")
    known, curve = SPACINGS + NOISE_SPACINGS, CURVE.fullmatch(spacing)
    if spacing not in known and not curve and not (name == "leading" and offset.isdecimal()):
        raise ValueError(
            f"unknown spacing {spacing!r}: choose one of {', '.join(known)}, leading+1, "
            "karras+5+2+20 (a rho, a shift, the last timestep), sections such as '90,60,60,20,20' or an explicit list of timesteps"
        )
    if steps is None or not 1 <= steps <= T:
        raise ValueError(f"steps must be between 1 and T = {T}, got {steps}")
    if spacing in NOISE_SPACINGS or curve:
        if schedule is None:
            raise ValueError(f"spacing={spacing} needs the noise schedule, not only T")
        return _by_noise(schedule, steps, name, *_rho_shift_and_end(curve, T, steps))
    if spacing == "even":
        return _even(0, T, steps)[::-1].copy()
    if spacing == "ddim":
        return _ddim(T, steps)[::-1].copy()
    if spacing == "linspace":
        return np.linspace(0, T - 1, steps).round()[::-1].astype(np.int64)
    if name == "leading":
        nodes = (np.arange(steps)[::-1] * (T // steps)).astype(np.int64)
        return nodes + min(int(offset or 0), T - 1 - int(nodes[0]))
    # As diffusers computes it, ties and all; it may give one entry too many, which is dropped.
    return np.round(np.arange(T, 0, -T / steps)[:steps]).astype(np.int64) - 1


def _even(start: int, size: int, count: int) -> NDArray[np.int64]:
    """`count` timesteps spread over start..start+size-1, increasing, rounded as the original."""
    if count > size:
        raise ValueError(f"cannot take {count} timesteps out of a section of {size}")
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    position, nodes = 0.0, []
    for _ in range(count):
        nodes.append(start + round(position))
        position += stride  # accumulated, not multiplied: the rounding differs
    return np.array(nodes, dtype=np.int64)


def _rho_shift_and_end(
    curve: re.Match[str] | None, T: int, steps: int | None
) -> tuple[float, float, int]:
    """Raises ValueError beyond what double precision makes a grid of, and for an end without room above."""
    groups = curve.groups() if curve else (None, None, None)
    rho, shift, end = (float(v) if v else d for v, d in zip(groups, (RHO, 1.0, 0), strict=True))
    if not 1 <= rho <= 1000 or not 0.01 <= shift <= 100:
        raise ValueError(
            "spacing=karras+RHO+SHIFT takes a rho of 1 to 1000 and a shift of 0.01 to 100, got "
            f"{rho:g} and {shift:g}: karras+7+1 is karras"
        )
    highest = T - (steps or 1)
    if end > highest:
        raise ValueError(
            f"spacing=karras+RHO+SHIFT+END ends at timestep {end:g}, and {steps} steps have room above for "
            f"ends of 0 to {highest}: lower it, as karras+{rho:g}+{shift:g}+{highest}"
        )
    return rho, shift, int(end)


def _by_noise(
    schedule: Schedule, steps: int, spacing: str, rho: float, shift: float, end: int
) -> NDArray[np.int64]:
    """`steps` timesteps whose noise levels are spaced as the name says."""
    log_sigma = np.log(schedule.noise_level)
    if not np.isfinite(log_sigma).all():
        raise ValueError(f"spacing={spacing} needs a schedule that keeps some signal everywhere")
    u = np.linspace(0, 1, steps)
    high, low = log_sigma[-1], log_sigma[end]
    if spacing == "log_snr":
        wanted = high + u * (low - high)
    elif spacing == "karras":
        u = u if shift == 1 else u / (u + shift * (1 - u))
        first, last = np.exp(high / rho), np.exp(low / rho)
        wanted = rho * np.log(first + u * (last - first))
    else:
        if schedule.T != 1000:
            raise ValueError(f"spacing={spacing} is published for T = 1000, not {schedule.T}")
        published = np.array(AYS[spacing])
        if steps == len(published):
            return published
        wanted = np.interp(u, np.linspace(0, 1, len(published)), log_sigma[published])
    after = np.searchsorted(log_sigma, wanted).clip(1, schedule.T - 1)
    nearer = log_sigma[after] - wanted > wanted - log_sigma[after - 1]
    nodes = after - nearer
    for i in range(steps):  # distinct, and with room for those that follow
        nodes[i] = max(nodes[i], end + steps - 1 - i)
        if i:
            nodes[i] = min(nodes[i], nodes[i - 1] - 1)
    return nodes.astype(np.int64)


def _ddim(T: int, steps: int) -> NDArray[np.int64]:
    for stride in range(1, T):
        if len(range(0, T, stride)) == steps:
            return np.arange(0, T, stride, dtype=np.int64)
    raise ValueError(
        f"spacing=ddim: no integer stride over T = {T} visits exactly {steps} timesteps; "
        "use spacing=even, leading or trailing"
    )


def _sections(T: int, steps: int | None, spacing: str) -> NDArray[np.int64]:
    try:
        counts = [int(part) for part in spacing.split(",")]
    except ValueError:
        raise ValueError(
            f"sections must be integers separated by commas, got {spacing!r}"
        ) from None
    if min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"section counts must be at least 0 and not all 0, got {spacing!r}")
    if steps is not None and steps != sum(counts):
        raise ValueError(
            f"spacing={spacing} has {sum(counts)} steps, but steps={steps} was asked for: "
            "set steps=null"
        )
    size, extra = divmod(T, len(counts))
    nodes, start = [], 0
    for i, count in enumerate(counts):
        width = size + (i < extra)  # the first sections get the remainder
        nodes.append(_even(start, width, count))
        start += width
    return np.concatenate(nodes)[::-1].copy()


def _explicit(T: int, steps: int | None, spacing: Sequence[int]) -> NDArray[np.int64]:
    if not fits(spacing, list[int]):
        raise ValueError("an explicit list of timesteps must hold integers only")
    nodes = np.unique(np.asarray(spacing, dtype=np.int64))
    if len(nodes) == 0 or len(nodes) != len(spacing):
        raise ValueError("an explicit list of timesteps must be non-empty and without repetition")
    if nodes[0] < 0 or nodes[-1] >= T:
        raise ValueError(f"timesteps must lie in 0..{T - 1}, got {nodes[0]}..{nodes[-1]}")
    if steps is not None and steps != len(nodes):
        raise ValueError(
            f"the list has {len(nodes)} timesteps, but steps={steps} was asked for: set steps=null"
        )
    return nodes[::-1].copy()
