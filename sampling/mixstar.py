"""Mix*: how much noise a row adds is a function of its noise level; the samplers before are points."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .builders import DPMSolver, Grid, Timesteps, ddim, skipped, without_leaps
from .options import checked, plain
from .plan import Plan
from .schedule import Array, Schedule


@checked
def mixstar(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    knots: Sequence[Sequence[float]] = ((-4.0, 1.0), (0.0, 0.5), (4.0, 0.0)),
    orders: Sequence[int] = (2,),
    switches: Sequence[float] = (),
    lower_order_final: bool | None = None,
    solver_type: str = "midpoint",
    leap: float | None = None,
) -> Plan:
    """Mix*: every row with its own share of noise, between DDIM's (0) and Skipped-Step's (1).

    With r = (alpha_t sigma_s) / (alpha_s sigma_t) and the share lambda of the row, at order 1

        x_s = alpha_s x0 + sigma_s R eps + sigma_s sqrt(1 - R^2) z,        R = r^(lambda^2),

    which keeps the marginals for every lambda.  Above, x0 is extrapolated as `DPMSolver` does, with
    H = (1 + lambda^2) h: the SDE of SA-Solver (Xue et al. 2023) with tau = lambda.

    `knots` are (log-SNR, lambda), from much noise to little, log-SNR being 2 log(alpha / sigma) at t:
    lambda is linear between them and constant beyond.  Those at one log-SNR are a jump, which
    comes after it: a row just there has the first one's.  `orders` are those of the solver, in that direction
    too, each of them up to its log-SNR of `switches`, one less.  Rows that step more than `leap` times
    as far in log-SNR as the row before are of order 1.  `lower_order_final`, `solver_type`: see `dpmpp`.

    - DDIM and DPM-Solver++ have a share of 0, Skipped-Step and SDE-DPM-Solver++ of 1 everywhere;
    - Mix of cutoff c has the knots (c, 1), (c, 0), and order 1;
    - Mix++ has (hi, 0), (hi, 1), (lo, 1), (lo, 0), its orders between them, and a leap of 2 on paths
      other than diffusion's.

    Raises ValueError for knots or switches that do not go from much noise to little within the
    schedule, for a share that is not in 0..1, for another number of switches, and for another order.
    """
    grid = Grid.of(schedule, timesteps)
    log_snr = schedule.log_snr[grid.index]
    _check_knots(schedule, knots)
    _check_orders(schedule, orders, switches)
    if leap is not None and not leap > 0:
        raise ValueError(f"leap must be above 0, got {leap:g}: 2 is usual, null is none")
    share = _share(knots, log_snr)
    order = np.array(orders)[np.searchsorted(switches, log_snr)]
    first = _first_order(grid, share, ddim(schedule, timesteps), skipped(schedule, timesteps))
    plan = DPMSolver("mixstar", grid, 1 + share**2, solver_type).plan(
        first, order, lower_order_final
    )
    if leap is not None:
        plan = without_leaps(plan, grid, leap)
    return replace(plan, name=_name(knots, orders, switches, solver_type, leap))


def _share(knots: Sequence[Sequence[float]], log_snr: Array) -> Array:
    """lambda where the log-SNR is that, [nodes]."""
    at, values = np.array(knots, dtype=np.float64).T
    after = np.searchsorted(at, log_snr)  # the first one at it, or beyond
    low, high = (after - 1).clip(0), after.clip(None, len(at) - 1)
    width = at[high] - at[low]
    part = np.divide(log_snr - at[low], width, out=np.zeros_like(width), where=width > 0)
    share: Array = (1 - part) * values[low] + part * values[high]
    return share


def _first_order(grid: Grid, share: Array, none: Plan, full: Plan) -> Plan:
    """Rows of order 1; those of the ends are DDIM's and Skipped-Step's own, to the last bit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(grid.log_snr)  # -log r; infinite where there is no signal, or no noise
        power = share**2
        between = {
            "x": grid.sigma_s * np.exp(-power * h) / grid.sigma_t,
            "x0": grid.alpha_s * -np.expm1(-(1 + power) * h),
            "noise": grid.sigma_s * np.sqrt(-np.expm1(-2 * power * h)),
        }
    columns: dict[str, Array] = {}
    for name, values in between.items():
        zero, one = (getattr(plan, name).reshape(len(share), -1)[:, 0] for plan in (none, full))
        columns[name] = np.select([share == 0, share == 1], [zero, one], values)
    return grid.plan("mixstar", **columns)


def _check_knots(schedule: Schedule, knots: Sequence[Sequence[float]]) -> None:
    if len(knots) == 0 or any(len(knot) != 2 for knot in knots):
        raise ValueError(
            "knots must be one or more of two numbers, log-SNR and share, as [[-4,1],[0,0.5],[4,0]], "
            f"got {plain(knots)}"
        )
    for share in (knot[1] for knot in knots):
        if not 0 <= share <= 1:
            raise ValueError(
                f"a share of knots must be in 0..1, got {share:g}: 0 adds no noise, 1 is Skipped-Step"
            )
    _check_levels(schedule, "knots", [knot[0] for knot in knots])


def _check_orders(schedule: Schedule, orders: Sequence[int], switches: Sequence[float]) -> None:
    if len(orders) == 0 or any(order not in (1, 2, 3) for order in orders):
        raise ValueError(f"orders of mixstar must be 1, 2 or 3, as [2], got {plain(orders)}")
    if len(switches) != len(orders) - 1:
        raise ValueError(
            "switches are the log-SNRs between orders, one less than these: there are "
            f"{len(orders)} orders and {len(switches)} switches"
        )
    _check_levels(schedule, "switches", switches)


def _check_levels(schedule: Schedule, what: str, levels: Sequence[float]) -> None:
    """Raise ValueError unless these log-SNRs go from much noise to little within the schedule."""
    low, high = float(schedule.log_snr[-1]), float(schedule.log_snr[0])
    if schedule.straight is not None:  # whose levels are those of a run, and its end of every run
        alpha, sigma = schedule.end
        high = 2 * math.log(alpha / sigma) if sigma else math.inf
    for level in levels:
        if not low <= level <= high or math.isinf(level):
            # Rounded inwards, so that what is said is taken.
            lowest = f"{math.ceil(low * 100) / 100:g}" if math.isfinite(low) else "-inf"
            highest = f"{math.floor(high * 100) / 100:g}" if math.isfinite(high) else "inf"
            raise ValueError(
                f"{what} are at a log-SNR, 2 log(alpha / sigma), which is between {lowest} and "
                f"{highest} on this noise schedule, got {level:g}"
            )
    if list(levels) != sorted(levels):
        raise ValueError(
            f"{what} go from much noise to little: put their log-SNRs in the order "
            f"{plain(sorted(levels))}"
        )


def _name(
    knots: Sequence[Sequence[float]],
    orders: Sequence[int],
    switches: Sequence[float],
    solver_type: str,
    leap: float | None,
) -> str:
    shares = ", ".join(f"{share:g} at {level:g}" for level, share in knots)
    said = " then ".join(map(str, orders))
    if len(switches):
        said += " from " + ", ".join(f"{level:g}" for level in switches)
    more = "" if solver_type == "midpoint" else f", {solver_type}"
    more += "" if leap is None else f", leap {leap:g}"
    return f"mixstar(share {shares}; order {said}{more})"
