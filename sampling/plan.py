"""Samplers as tables of numbers.

Every sampler here is the same loop with other coefficients.  A row jumps from timestep t
to its neighbour s on the grid (s = -1 is the end, the clean image unless the schedule says otherwise):

    x_s = x * x_t + x0 * x0_hat + x0_previous * x0_hat_of_the_row_before + noise * z,

where x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), clipped or not, and z ~ N(0, I).
A `Plan` is the table of these coefficients in float64, one row a network call.

In the formulas a = alpha_bar: a_t before the jump, a_s after it.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .options import check_choice, check_options
from .schedule import Array, Schedule

Timesteps = Sequence[int] | NDArray[np.int64]


class Row(NamedTuple):
    """One jump of a plan as plain floats; the fields are those of `Plan`."""

    t: float
    s: float
    x: float
    x0: float
    x0_previous: float
    noise: float
    noise_high: float
    gradient: float
    gradient_high: float
    alpha_bar: float


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler for one schedule and one grid: float64 columns, all of shape [NFE].

    `t`, `s`: timesteps before and after the jump; the last `s` is -1, the clean image.
    `x`, `x0`, `x0_previous`, `noise`: the coefficients of the update above.

    A learned variance interpolates the noise per pixel: with the network's v in [-1, 1],
    coefficient noise^(1-f) * noise_high^f, f = (v + 1) / 2 (interpolation of log variances).
    `noise_high` is NaN where the variance is fixed.

    `gradient` is the classifier-guidance coefficient: x0_hat += gradient * grad log p(y | x_t),
    after clipping.  It shifts eps in DDIM and the mean in ancestral sampling, exactly as
    guided-diffusion does; `gradient_high` is its other bound under a learned variance.

    `alpha_bar` at `t` converts eps to x0_hat.
    """

    name: str
    t: Array
    s: Array
    x: Array
    x0: Array
    x0_previous: Array
    noise: Array
    noise_high: Array
    gradient: Array
    gradient_high: Array
    alpha_bar: Array

    def __post_init__(self) -> None:
        n = len(self.t)
        if n == 0 or any(getattr(self, name).shape != (n,) for name in Row._fields):
            raise ValueError("a plan needs at least one row and columns of equal length")
        if not (self.s < self.t).all() or not np.array_equal(self.t[1:], self.s[:-1]):
            raise ValueError("a plan must jump downwards between neighbouring nodes")
        if self.x0_previous[0] != 0:
            raise ValueError("the first row of a plan has no x0 of a row before")
        if self.s[-1] != -1:
            raise ValueError("a plan must end at the clean image, s = -1")

    def __len__(self) -> int:
        """Rows = network calls (NFE)."""
        return len(self.t)

    def rows(self) -> Iterator[Row]:
        """The rows as plain Python floats, so that the loop never touches the device."""
        columns = (getattr(self, name).tolist() for name in Row._fields)
        return map(Row._make, zip(*columns, strict=True))

    def __repr__(self) -> str:
        return f"Plan({self.name}, NFE={len(self)})"

    def __str__(self) -> str:
        head = f"{self.name}, {len(self)} network calls\n"
        names = [f.name for f in fields(self)[1:7]]
        lines = ["".join(f"{name:>12}" for name in names)]
        for row in self.rows():
            t, s = f"{row.t:g}", "clean" if row.s == -1 else f"{row.s:g}"
            noise = f"{row.noise:.6f}"
            if not math.isnan(row.noise_high):
                noise += f"..{row.noise_high:.6f}"
            numbers = "".join(f"{v:12.6f}" for v in (row.x, row.x0, row.x0_previous))
            lines.append(f"{t:>12}{s:>12}{numbers}    {noise}")
        return head + "\n".join(lines)


def _grid(schedule: Schedule, timesteps: Timesteps) -> tuple[Array, Array, Array, Array]:
    """(t, s, a_t, a_s) of the jumps between neighbouring nodes, down to the end at s = -1."""
    t = np.asarray(timesteps, dtype=np.int64)
    if t.ndim != 1 or len(t) == 0 or (np.diff(t) >= 0).any() or t[-1] < 0 or t[0] >= schedule.T:
        raise ValueError(f"timesteps must decrease strictly within 0..{schedule.T - 1}")
    s = np.append(t[1:], -1)
    a_t = schedule.alpha_bar[t]
    a_s = np.append(a_t[1:], schedule.final)
    return t.astype(np.float64), s.astype(np.float64), a_t, a_s


def _plan(name: str, t: Array, s: Array, a_t: Array, **columns: Array) -> Plan:
    """A plan with defaults: no x0 of the row before, fixed variance, guidance that shifts eps."""
    nan, zero = np.full_like(t, np.nan), np.zeros_like(t)
    defaults = {
        "x0_previous": zero,
        "noise_high": nan,
        "gradient": _ratio(1 - a_t, np.sqrt(a_t)),
        "gradient_high": nan,
    }
    return Plan(name=name, t=t, s=s, alpha_bar=a_t, **{**defaults, **columns})


def _ratio(a: Array, b: Array) -> Array:
    """a / b; infinite where b = 0, i.e. where there is no signal, or nothing of it to change."""
    return np.divide(a, b, out=np.full_like(a, np.inf), where=b != 0)


def _posterior(a_t: Array, a_s: Array) -> tuple[Array, Array, Array]:
    """Theorem 2: q(x_s | x_t, x_0) = N(x * x_t + x0 * x_0, variance); (x, x0, variance)."""
    x = np.sqrt(a_t) * (1 - a_s) / (np.sqrt(a_s) * (1 - a_t))
    x0 = (a_s - a_t) / (np.sqrt(a_s) * (1 - a_t))
    variance = (a_s - a_t) * (1 - a_s) / (a_s * (1 - a_t))
    return x, x0, variance


def skipped(schedule: Schedule, timesteps: Timesteps) -> Plan:
    """Algorithm 2, Skipped-Step sampling: draw x_s from the posterior of Theorem 2."""
    t, s, a_t, a_s = _grid(schedule, timesteps)
    x, x0, variance = _posterior(a_t, a_s)
    return _plan("skipped", t, s, a_t, x=x, x0=x0, noise=np.sqrt(variance))


def ddim(schedule: Schedule, timesteps: Timesteps, eta: float = 0.0) -> Plan:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 0 is deterministic, eta = 1 = `skipped`.

    Raises ValueError unless 0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    t, s, a_t, a_s = _grid(schedule, timesteps)
    noise = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
    x = np.sqrt(np.maximum(1 - a_s - noise**2, 0)) / np.sqrt(1 - a_t)
    x0 = np.sqrt(a_s) - x * np.sqrt(a_t)
    return _plan(f"ddim(eta={eta:g})", t, s, a_t, x=x, x0=x0, noise=noise)


def ddpm(schedule: Schedule, timesteps: Timesteps, variance: str = "learned") -> Plan:
    """Strided ancestral sampling (improved DDPM), with coefficients respaced to the grid.

    `variance`: `fixed_small` is the posterior's, `fixed_large` the respaced beta, `learned`
    interpolates between the two by the network's v.  The mean is the same for all three.
    No noise is added in the last row.  Raises ValueError for another variance.
    """
    check_choice("variance", variance, ("learned", "fixed_small", "fixed_large"))
    t, s, a_t, a_s = _grid(schedule, timesteps)
    x, x0, small = _posterior(a_t, a_s)
    large = 1 - a_t / a_s
    guided = {"learned": small, "fixed_small": small, "fixed_large": large}[variance].copy()
    if variance != "fixed_small" and len(t) > 1:
        # The last row's posterior variance is 0, its logarithm infinite.  The original takes
        # that of the row before; only guidance sees it, since the last row adds no noise.
        guided[-1] = small[-2]
    adds_noise = s >= 0
    low = large if variance == "fixed_large" else small
    columns = {"noise": np.where(adds_noise, np.sqrt(low), 0.0), "gradient": _ratio(guided, x0)}
    if variance == "learned":
        columns["noise_high"] = np.where(adds_noise, np.sqrt(large), np.nan)
        columns["gradient_high"] = _ratio(large, x0)
    return _plan(f"ddpm(variance={variance})", t, s, a_t, x=x, x0=x0, **columns)


def dpmpp(
    schedule: Schedule, timesteps: Timesteps, order: int = 2, lower_order_final: bool | None = None
) -> Plan:
    """DPM-Solver++ (Lu et al. 2022, algorithm 2, "2M" with the midpoint rule); order 1 is DDIM.

    `lower_order_final` makes the last row first order; null as diffusers does: with fewer than 15
    rows, and wherever the end is the clean image, which is infinitely far in log-SNR.
    Raises ValueError unless the order is 1 or 2.
    """
    return _dpmpp("dpmpp", schedule, timesteps, order, lower_order_final)


def sde_dpmpp(
    schedule: Schedule, timesteps: Timesteps, order: int = 2, lower_order_final: bool | None = None
) -> Plan:
    """SDE-DPM-Solver++ (Lu et al. 2022, section 5 and appendix): order 1 is `skipped`, 2 is "2M".

    Options and errors as for `dpmpp`.
    """
    return _dpmpp("sde_dpmpp", schedule, timesteps, order, lower_order_final)


def _dpmpp(
    name: str, schedule: Schedule, timesteps: Timesteps, order: int, lower_order_final: bool | None
) -> Plan:
    """Both of them: with lambda = log(alpha / sigma) and h its step,

        ODE: x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) D
        SDE: x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z

    where D = x0 at order 1, which is DDIM and Skipped-Step, and at order 2
    x0 + (x0 - x0_previous) h / (2 h_previous).
    """
    if order not in (1, 2):
        raise ValueError(f"the order of {name} must be 1 or 2, got {order}")
    first = ddim(schedule, timesteps) if name == "dpmpp" else skipped(schedule, timesteps)
    _, _, a_t, a_s = _grid(schedule, timesteps)
    x0_previous = np.zeros_like(a_t)
    if order == 2:
        # Infinite where there is no signal, or no noise.
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.diff(np.log(a_t / (1 - a_t)) / 2, append=np.log(a_s[-1] / (1 - a_s[-1])) / 2)
            correction = first.x0[1:] * h[1:] / h[:-1] / 2
        if lower_order_final is None:
            lower_order_final = len(a_t) < 15
        if (lower_order_final or a_s[-1] == 1) and len(a_t) > 1:
            correction[-1] = 0.0
        x0_previous[1:] = -correction
    return replace(
        first, name=f"{name}(order={order})", x0=first.x0 - x0_previous, x0_previous=x0_previous
    )


def naive_stride(schedule: Schedule, timesteps: Timesteps) -> Plan:
    """Remark 3's baseline: a subset of timesteps with the *one-step* coefficients kept.

    Row t uses the posterior of t -> t - 1 although the next row is at s.  Biased by
    construction; equal to ancestral sampling only when every timestep is visited.
    """
    t, s, a_t, _ = _grid(schedule, timesteps)
    a_before = np.append(schedule.final, schedule.alpha_bar)[t.astype(np.int64)]
    x, x0, variance = _posterior(a_t, a_before)
    noise = np.where(s >= 0, np.sqrt(variance), 0.0)
    return _plan("naive_stride", t, s, a_t, x=x, x0=x0, noise=noise)


def splice(head: Plan, tail: Plan, cutoff: float) -> Plan:
    """The rows of `head` while t >= cutoff, then those of `tail` with t < cutoff.

    Raises ValueError if the two do not meet, i.e. if the last row taken from `head` does not
    end where the first row taken from `tail` begins.
    """
    above, below = head.t >= cutoff, tail.t < cutoff
    parts = {
        name: np.concatenate([getattr(head, name)[above], getattr(tail, name)[below]])
        for name in Row._fields
    }
    if not np.array_equal(parts["t"][1:], parts["s"][:-1]):
        raise ValueError(
            f"cannot splice {head.name} and {tail.name} at cutoff {cutoff:g}: "
            "the head must end at a timestep of the tail"
        )
    return Plan(name=f"splice({head.name}, {tail.name}, cutoff={cutoff:g})", **parts)


def mix(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    cutoff: float | None = None,
    cutoff_sigma: float | None = None,
    cutoff_log_snr: float | None = None,
    skipped_steps: int | None = None,
    eta_head: float = 1.0,
    eta_tail: float = 0.0,
) -> Plan:
    """The paper's Mix (section 2.3): Skipped-Step while t >= cutoff, then DDIM (eta = 0).

    The switch is given in exactly one unit: `cutoff` as a timestep (0 = Skipped-Step
    throughout, T or more = DDIM throughout), `cutoff_sigma` as noise level
    sqrt((1 - abar) / abar), `cutoff_log_snr` as log(abar / (1 - abar)) (Skipped-Step up to there),
    or `skipped_steps` = k_c as the number of Skipped-Step rows.  `eta_head` and `eta_tail` are
    DDIM's eta of the two parts, should they be others than the paper's.
    Raises ValueError when none or several are given, or one is negative, or k_c > NFE, or an
    eta is not in 0..1.
    """
    given = [v for v in (cutoff, cutoff_sigma, cutoff_log_snr, skipped_steps) if v is not None]
    if len(given) != 1:
        raise ValueError(
            "mix needs exactly one of cutoff, cutoff_sigma, cutoff_log_snr and skipped_steps: set "
            "the others to null"
        )
    if cutoff_log_snr is None and not given[0] >= 0:
        raise ValueError(f"the cutoff of mix must not be negative, got {given[0]}")
    t = list(timesteps)
    if skipped_steps is not None:
        if skipped_steps > len(t):
            raise ValueError(
                f"skipped_steps = {skipped_steps} exceeds the {len(t)} steps of the grid"
            )
        cutoff = t[skipped_steps - 1] if skipped_steps else schedule.T
    elif cutoff_log_snr is not None:
        cutoff = schedule.first_t_at_sigma(math.exp(-cutoff_log_snr / 2))
    elif cutoff_sigma is not None:
        cutoff = schedule.first_t_at_sigma(cutoff_sigma)
    assert cutoff is not None
    # At eta = 1 Algorithm 2's own formula is the more accurate one.
    head, tail = (
        skipped(schedule, timesteps) if eta == 1 else ddim(schedule, timesteps, eta)
        for eta in (eta_head, eta_tail)
    )
    etas = "" if (eta_head, eta_tail) == (1, 0) else f", eta={eta_head:g} then {eta_tail:g}"
    return replace(splice(head, tail, cutoff), name=f"mix(cutoff={cutoff:g}{etas})")


def mixpp(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    lo: float = 291,
    hi: float | None = None,
    stochastic_order: int = 2,
    deterministic_order: int = 2,
    variance: str = "fixed_small",
    x0_variance: Array | None = None,
) -> Plan:
    """Mix++: SDE-DPM-Solver++ while lo <= t < hi, DPM-Solver++ outside of that window.

    The paper's Mix is `lo` = cutoff, `hi` = None (no upper end) and both orders 1, i.e. Skipped-Step
    and DDIM.  A window with two sides is what EDM's study of churn suggests (Karras et al. 2022,
    appendix E).  `variance` of the stochastic rows: `fixed_small` is the posterior's, `learned` is
    the network's between that and the respaced beta, `analytic` adds what is uncertain about x0
    (Bao et al. 2022), which needs `x0_variance` [T], the mean squared error of the network's x0 at
    every timestep.  Raises ValueError for another variance or order, or lo > hi.
    """
    if lo < 0:
        raise ValueError(f"lo must not be negative, got {lo:g}")
    if hi is not None and lo > hi:
        raise ValueError(f"mixpp is stochastic for lo <= t < hi, but lo = {lo:g} > hi = {hi:g}")
    head = sde_dpmpp(schedule, timesteps, stochastic_order)
    head = _with_variance(head, schedule, variance, x0_variance)
    tail = dpmpp(schedule, timesteps, deterministic_order)
    plan = splice(head, tail, lo)
    if hi is not None:
        plan = splice(tail, plan, hi)
    window = f"lo={lo:g}" if hi is None else f"lo={lo:g}, hi={hi:g}"
    more = "" if variance == "fixed_small" else f", {variance} variance"
    orders = f"orders {stochastic_order} and {deterministic_order}"
    return replace(plan, name=f"mixpp({window}, {orders}{more})")


def _with_variance(
    plan: Plan, schedule: Schedule, variance: str, x0_variance: Array | None
) -> Plan:
    """A stochastic plan with another variance in all rows but the last."""
    check_choice("variance", variance, ("fixed_small", "learned", "analytic"))
    inner = plan.s >= 0
    if variance == "learned":
        a_s = np.append(plan.alpha_bar[1:], schedule.final)
        large = np.sqrt(1 - plan.alpha_bar / a_s)
        return replace(plan, noise_high=np.where(inner, large, np.nan))
    if variance == "analytic":
        if x0_variance is None or np.shape(x0_variance) != (schedule.T,):
            raise ValueError(
                f"variance=analytic needs x0_variance, {schedule.T} numbers: measure them with "
                "`python -m scripts.variance`"
            )
        added = (plan.x0 + plan.x0_previous) ** 2 * x0_variance[plan.t.astype(np.int64)]
        return replace(plan, noise=np.where(inner, np.sqrt(plan.noise**2 + added), plan.noise))
    return plan


SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "skipped": skipped,
    "mix": mix,
    "dpmpp": dpmpp,
    "sde_dpmpp": sde_dpmpp,
    "mixpp": mixpp,
    "naive_stride": naive_stride,
}


def named(name: str, schedule: Schedule, timesteps: Timesteps, **options: Any) -> Plan:
    """The plan of that name with the builder's options, as configs and records store them.

    Raises ValueError for an unknown name or option, listing the known ones.
    """
    check_choice("sampler", name, SAMPLERS)
    builder = SAMPLERS[name]
    check_options(f"sampler {name}", options, list(inspect.signature(builder).parameters)[2:])
    return builder(schedule, timesteps, **options)
