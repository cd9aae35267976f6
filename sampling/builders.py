"""The plans of one row's memory: DDIM, Skipped-Step, ancestral DDPM; DPM-Solver++; Mix and Mix++.

On every Gaussian path x_t = alpha_t x_0 + sigma_t eps.  In the formulas a = alpha_bar: a_t before
the jump, a_s after it; r = (alpha_t sigma_s) / (alpha_s sigma_t).  For diffusion, where
alpha^2 + sigma^2 = 1, the papers' own formulas are used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .options import check_choice, checked
from .plan import Plan, splice
from .schedule import Array, Schedule

Timesteps = Sequence[int] | NDArray[np.int64]
LEAP = 2.0


@dataclass(frozen=True, eq=False)
class Grid:
    """The jumps between neighbouring nodes, down to the end at s = -1; every array is [nodes].

    `index` is the level in the schedule, `t` and `s` the network's times; `a`, `alpha`, `sigma`
    at t and at s.
    """

    index: NDArray[np.int64]
    t: Array
    s: Array
    a_t: Array
    a_s: Array
    alpha_t: Array
    alpha_s: Array
    sigma_t: Array
    sigma_s: Array
    diffusion: bool

    @classmethod
    def of(cls, schedule: Schedule, timesteps: Timesteps) -> "Grid":
        """Raises ValueError unless the timesteps decrease strictly within 0..T-1."""
        k = np.asarray(timesteps, dtype=np.int64)
        if k.ndim != 1 or len(k) == 0 or (np.diff(k) >= 0).any() or k[-1] < 0 or k[0] >= schedule.T:
            raise ValueError(f"timesteps must decrease strictly within 0..{schedule.T - 1}")
        end = schedule.end
        t = np.append(schedule.times[k], -1.0)
        a = np.append(schedule.alpha_bar[k], schedule.final)
        alpha = np.append(schedule.alpha[k], end.alpha)
        sigma = np.append(schedule.sigma[k], end.sigma)
        diffusion = schedule.straight is None
        before, after = slice(-1), slice(1, None)
        return cls(
            *(k, t[before], t[after], a[before], a[after]),
            *(alpha[before], alpha[after], sigma[before], sigma[after], diffusion),
        )

    @property
    def log_snr(self) -> Array:
        """lambda = log(alpha / sigma) at the nodes and the end, [nodes + 1]."""
        with np.errstate(divide="ignore"):  # infinite where there is no signal, or no noise
            if self.diffusion:
                a = np.append(self.a_t, self.a_s[-1])
                return np.log(a / (1 - a)) / 2
            alpha, sigma = np.append(self.alpha_t, self.alpha_s[-1]), self.sigmas
            return np.log(alpha / sigma)

    @property
    def start(self) -> float:
        """The size of x_T: 1, but EDM's sigma, whose path never loses the signal."""
        return 1.0 if self.diffusion or self.alpha_t[0] < 1 else float(self.sigma_t[0])

    @property
    def sigmas(self) -> Array:
        return np.append(self.sigma_t, self.sigma_s[-1])

    def plan(self, name: str, **columns: Array) -> Plan:
        """A plan with defaults: no look back, fixed variance, guidance that shifts eps."""
        nan = np.full_like(self.t, np.nan)
        variance = 1 - self.a_t if self.diffusion else self.sigma_t**2
        root = np.sqrt(self.a_t) if self.diffusion else self.alpha_t
        defaults = {
            "eps": np.zeros((len(self.t), 1)),
            "noise": np.zeros_like(self.t),
            "noise_high": nan,
            "gradient": ratio(variance, root),
            "gradient_high": nan,
        }
        columns["x0"] = columns["x0"].reshape(len(self.t), -1)
        levels = {"t": self.t, "s": self.s, "alpha": self.alpha_t, "sigma": self.sigma_t}
        return Plan(name=name, start=self.start, **{**levels, **defaults, **columns})


def ratio(a: Array, b: Array) -> Array:
    """a / b; infinite where b = 0, i.e. where there is no signal, or nothing of it to change."""
    return np.divide(a, b, out=np.full_like(a, np.inf), where=b != 0)


def posterior(grid: Grid) -> tuple[Array, Array, Array]:
    """Theorem 2: q(x_s | x_t, x_0) = N(x * x_t + x0 * x_0, variance); (x, x0, variance).

    On any path: mean alpha_s x_0 + sigma_s r eps, variance sigma_s^2 (1 - r^2).
    """
    if not grid.diffusion:
        r = grid.alpha_t * grid.sigma_s / (grid.alpha_s * grid.sigma_t)
        return (
            grid.sigma_s * r / grid.sigma_t,
            grid.alpha_s * (1 - r**2),
            grid.sigma_s**2 * (1 - r**2),
        )
    a_t, a_s = grid.a_t, grid.a_s
    x = np.sqrt(a_t) * (1 - a_s) / (np.sqrt(a_s) * (1 - a_t))
    x0 = (a_s - a_t) / (np.sqrt(a_s) * (1 - a_t))
    variance = (a_s - a_t) * (1 - a_s) / (a_s * (1 - a_t))
    return x, x0, variance


def respaced_variance(grid: Grid) -> Array:
    """The variance of x_t given x_s in the forward process: the respaced beta."""
    if grid.diffusion:
        return 1 - grid.a_t / grid.a_s
    return grid.sigma_t**2 - (grid.alpha_t / grid.alpha_s * grid.sigma_s) ** 2


def skipped(schedule: Schedule, timesteps: Timesteps) -> Plan:
    """Algorithm 2, Skipped-Step sampling: draw x_s from the posterior of Theorem 2."""
    grid = Grid.of(schedule, timesteps)
    x, x0, variance = posterior(grid)
    return grid.plan("skipped", x=x, x0=x0, noise=np.sqrt(variance))


@checked
def ddim(schedule: Schedule, timesteps: Timesteps, eta: float = 0.0) -> Plan:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 0 is deterministic, eta = 1 = `skipped`.

    Raises ValueError unless 0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    grid = Grid.of(schedule, timesteps)
    if grid.diffusion:
        a_t, a_s = grid.a_t, grid.a_s
        noise = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        x = np.sqrt(np.maximum(1 - a_s - noise**2, 0)) / np.sqrt(1 - a_t)
    else:
        noise = eta * np.sqrt(posterior(grid)[2])
        x = np.sqrt(grid.sigma_s**2 - noise**2) / grid.sigma_t
    x0 = grid.alpha_s - x * grid.alpha_t
    return grid.plan(f"ddim(eta={eta:g})", x=x, x0=x0, noise=noise)


@checked
def ddpm(schedule: Schedule, timesteps: Timesteps, variance: str = "learned") -> Plan:
    """Strided ancestral sampling (improved DDPM), with coefficients respaced to the grid.

    `variance`: `fixed_small` is the posterior's, `fixed_large` the respaced beta, `learned`
    interpolates between the two by the network's v.  The mean is the same for all three.
    No noise is added in the last row.  Raises ValueError for another variance.
    """
    check_choice("variance", variance, ("learned", "fixed_small", "fixed_large"))
    grid = Grid.of(schedule, timesteps)
    x, x0, small = posterior(grid)
    large = respaced_variance(grid)
    guided = {"learned": small, "fixed_small": small, "fixed_large": large}[variance].copy()
    if variance != "fixed_small" and len(x) > 1:
        # The last row's posterior variance is 0, its logarithm infinite.  The original takes
        # that of the row before; only guidance sees it, since the last row adds no noise.
        guided[-1] = small[-2]
    adds_noise = grid.s >= 0
    low = large if variance == "fixed_large" else small
    columns = {"noise": np.where(adds_noise, np.sqrt(low), 0.0), "gradient": ratio(guided, x0)}
    if variance == "learned":
        columns["noise_high"] = np.where(adds_noise, np.sqrt(large), np.nan)
        columns["gradient_high"] = ratio(large, x0)
    return grid.plan(f"ddpm(variance={variance})", x=x, x0=x0, **columns)


@checked
def dpmpp(
    schedule: Schedule,
    timesteps: Timesteps,
    order: int = 2,
    lower_order_final: bool | None = None,
    solver_type: str = "midpoint",
) -> Plan:
    """DPM-Solver++ (Lu et al. 2022, algorithm 2, "2M" and "3M"); order 1 is DDIM.

    `lower_order_final` makes the last row first order, and the one before it second order at most;
    null as diffusers does: with fewer than 15 rows, and the last row wherever the end is the clean
    image, which is infinitely far in log-SNR.  `solver_type`: how rows of order 2 weigh the
    difference of two x0, `midpoint` or `heun`, as diffusers and k-diffusion call them, or
    `polynomial`, of which order 3 has an error of third order (see `DPMSolver`).
    Raises ValueError unless the order is 1, 2 or 3, or for another solver_type.
    """
    solver = DPMSolver("dpmpp", Grid.of(schedule, timesteps), 1, solver_type)
    return solver.plan(ddim(schedule, timesteps), order, lower_order_final)


@checked
def sde_dpmpp(
    schedule: Schedule,
    timesteps: Timesteps,
    order: int = 2,
    lower_order_final: bool | None = None,
    solver_type: str = "midpoint",
) -> Plan:
    """SDE-DPM-Solver++ (Lu et al. 2022, section 5 and appendix): order 1 is `skipped`.

    Options and errors as for `dpmpp`.  Order 3 is k-diffusion's "3M-SDE", which starts with a
    `heun` row.
    """
    solver = DPMSolver("sde_dpmpp", Grid.of(schedule, timesteps), 2, solver_type)
    return solver.plan(skipped(schedule, timesteps), order, lower_order_final)


@dataclass(frozen=True, eq=False)
class DPMSolver:
    """Both of them: with lambda = log(alpha / sigma), h its step and H = h (ODE) or 2 h (SDE), or, of
    a row between the two (`mixstar`), (1 + share^2) h,

        ODE: x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-H) D
        SDE: x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-H) D + sigma_s sqrt(1 - e^-H) z

    where D = x0 at order 1, which is DDIM and Skipped-Step.  The orders above extrapolate x0 as a
    polynomial in lambda, with d = (x0 - x0_previous) / r and r = h_previous / h:

        midpoint: alpha_s (1 - e^-H) d / 2      heun: alpha_s phi_2 d, phi_2 = 1 - (1 - e^-H) / H
        order 3:  alpha_s (phi_2 d1 - phi_3 d2), phi_3 = phi_2 / H - 1/2.

    The published d2 is half of the second derivative, which leaves order 3 an error of second
    order; with `polynomial` it is the whole one, and rows of order 2 are as with heun.
    """

    name: str
    grid: Grid
    power: int | Array  # H / h, of a row each [nodes] or of all
    solver_type: str

    def plan(
        self, first: Plan, order: int | NDArray[np.int64], lower_order_final: bool | None
    ) -> Plan:
        """`first` is the plan of order 1; `order` is of all rows, or of a row each [nodes]."""
        n = len(first.t)
        highest = np.minimum(order, np.arange(1, n + 1))  # as many calls as there were
        for wrong in {*np.broadcast_to(order, n).tolist()} - {1, 2, 3}:
            raise ValueError(f"the order of {self.name} must be 1, 2 or 3, got {wrong}")
        check_choice("solver_type", self.solver_type, ("midpoint", "heun", "polynomial"))
        if lower_order_final is None:
            lower_order_final = n < 15
        if lower_order_final:
            highest[-2:-1] = highest[-2:-1].clip(max=2)
        if lower_order_final or self.grid.sigma_s[-1] == 0:
            highest[-1] = 1
        x0 = np.pad(first.x0, ((0, 0), (0, 2)))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            h = np.diff(self.grid.log_snr)
            second, third = self._second(first, h), self._third(h)
        two, three = highest == 2, highest == 3
        x0[two, 1] = -second[two]
        x0[two, 0] -= x0[two, 1]
        x0[three] += third[three]
        kind = "" if self.solver_type == "midpoint" else f", {self.solver_type}"
        return replace(first, name=f"{self.name}(order={order}{kind})", x0=x0)

    def _second(self, first: Plan, h: Array) -> Array:
        """The weight of x0 - x0_previous in rows of order 2, [nodes]; no meaning in row 0."""
        previous = np.append(np.nan, h[:-1])
        if self.solver_type == "midpoint":
            return first.x0[:, 0] * h / previous / 2
        return self.grid.alpha_s * self._phis(h)[0] * h / previous

    def _third(self, h: Array) -> Array:
        """What order 3 adds to the weights of the last three x0, [nodes, 3]; none in rows 0, 1."""
        before = np.concatenate([[np.nan, np.nan], h])
        one, two = before[1:-1] / h, before[:-2] / h
        phi_2, phi_3 = self._phis(h)
        share = one / (one + two)
        second = phi_3 / (one + two) * (2 if self.solver_type == "polynomial" else 1)
        d_1 = (phi_2 * (1 + share) - second) / one
        d_2 = (second - phi_2 * share) / two
        return self.grid.alpha_s[:, None] * np.stack([d_1, d_2 - d_1, -d_2], axis=1)

    def _phis(self, h: Array) -> tuple[Array, Array]:
        H = self.power * h
        phi_2 = np.where(np.isinf(H), 1, 1 + np.expm1(-H) / H)
        return phi_2, phi_2 / H - 1 / 2


def naive_stride(schedule: Schedule, timesteps: Timesteps) -> Plan:
    """Remark 3's baseline: a subset of timesteps with the *one-step* coefficients kept.

    Row t uses the posterior of t -> t - 1 although the next row is at s.  Biased by
    construction; equal to ancestral sampling only when every timestep is visited.
    """
    grid = Grid.of(schedule, timesteps)
    every = Grid.of(schedule, range(schedule.T - 1, -1, -1))
    rows = schedule.T - 1 - grid.index
    x, x0, variance = (column[rows] for column in posterior(every))
    noise = np.where(grid.s >= 0, np.sqrt(variance), 0.0)
    return grid.plan("naive_stride", x=x, x0=x0, noise=noise)


@checked
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
    throughout, T or more = DDIM throughout; the network's time on other paths), `cutoff_sigma` as
    noise level sigma / alpha = sqrt((1 - abar) / abar), `cutoff_log_snr` as
    log(abar / (1 - abar)) (Skipped-Step up to there),
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
    times = np.append(schedule.times, schedule.T if schedule.straight is None else np.inf)
    if skipped_steps is not None:
        k = list(timesteps)
        if skipped_steps > len(k):
            raise ValueError(
                f"skipped_steps = {skipped_steps} exceeds the {len(k)} steps of the grid"
            )
        cutoff = float(times[k[skipped_steps - 1] if skipped_steps else schedule.T])
    elif cutoff_log_snr is not None:
        cutoff = float(times[schedule.first_t_at_sigma(math.exp(-cutoff_log_snr / 2))])
    elif cutoff_sigma is not None:
        cutoff = float(times[schedule.first_t_at_sigma(cutoff_sigma)])
    assert cutoff is not None
    # At eta = 1 Algorithm 2's own formula is the more accurate one.
    head, tail = (
        skipped(schedule, timesteps) if eta == 1 else ddim(schedule, timesteps, eta)
        for eta in (eta_head, eta_tail)
    )
    etas = "" if (eta_head, eta_tail) == (1, 0) else f", eta={eta_head:g} then {eta_tail:g}"
    return replace(splice(head, tail, cutoff), name=f"mix(cutoff={cutoff:g}{etas})")


@checked
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

    On other paths than diffusion's, rows that leap are of order 1 (see `without_leaps`).
    """
    if not lo >= 0:
        raise ValueError(f"lo must not be negative, got {lo:g}")
    if hi is not None and not lo <= hi:
        raise ValueError(f"mixpp is stochastic for lo <= t < hi, but lo = {lo:g} > hi = {hi:g}")
    head = sde_dpmpp(schedule, timesteps, stochastic_order)
    grid = Grid.of(schedule, timesteps)
    head = _with_variance(head, grid, schedule.T, variance, x0_variance)
    tail = dpmpp(schedule, timesteps, deterministic_order)
    plan = splice(head, tail, lo)
    if hi is not None:
        plan = splice(tail, plan, hi)
    window = f"lo={lo:g}" if hi is None else f"lo={lo:g}, hi={hi:g}"
    plan = plan if grid.diffusion else without_leaps(plan, grid, LEAP)
    more = "" if variance == "fixed_small" else f", {variance} variance"
    orders = f"orders {stochastic_order} and {deterministic_order}"
    return replace(plan, name=f"mixpp({window}, {orders}{more})")


def without_leaps(plan: Plan, grid: Grid, most: float) -> Plan:
    """Order 1 where a step in log-SNR is more than `most` times the one before.

    An extrapolation that goes much farther than what it is taken from overshoots: the last row but
    one of SD3's default levels is 4 times as long, and weighs x0 by 3 and -2.  (Diffusion's own
    grids that end at timestep 0 have such a row, too; their plans stay as they were measured.)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(grid.log_snr)
        leaps = np.append(False, h[1:] > most * h[:-1])
    first = np.pad(plan.x0.sum(axis=1)[:, None], ((0, 0), (0, plan.x0.shape[1] - 1)))
    return replace(plan, x0=np.where(leaps[:, None], first, plan.x0))


def _with_variance(
    plan: Plan, grid: Grid, T: int, variance: str, x0_variance: Array | None
) -> Plan:
    """A stochastic plan with another variance in all rows but the last."""
    check_choice("variance", variance, ("fixed_small", "learned", "analytic"))
    inner = plan.s >= 0
    if variance == "learned":
        large = np.sqrt(respaced_variance(grid))
        return replace(plan, noise_high=np.where(inner, large, np.nan))
    if variance == "analytic":
        if x0_variance is None or np.shape(x0_variance) != (T,):
            raise ValueError(
                f"variance=analytic needs x0_variance, {T} numbers: measure them with "
                "`python -m scripts.variance`"
            )
        added = plan.x0.sum(axis=1) ** 2 * x0_variance[grid.index]
        return replace(plan, noise=np.where(inner, np.sqrt(plan.noise**2 + added), plan.noise))
    return plan
