"""Plans that look back further: iPNDM, DEIS and ER-SDE, on every Gaussian path.

With rho = sigma / alpha and y = x / alpha the probability flow is dy / d rho = eps, so that on any
path

    x_s = alpha_s (x_t / alpha_t + integral of eps d rho from rho_t to rho_s).

iPNDM and DEIS are Adams-Bashforth methods for this integral; at order 1 both are DDIM.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.polynomial.legendre import leggauss

from .builders import Grid, Timesteps, ddim
from .options import check_choice, checked
from .plan import Plan
from .schedule import Array, Schedule

# Adams-Bashforth weights of eps, newest first, for steps of equal length.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
ROOTS, WEIGHTS = leggauss(64)  # of integrals of smooth functions, exact in double precision


@checked
def ipndm(schedule: Schedule, timesteps: Timesteps, order: int = 4) -> Plan:
    """iPNDM (Zhang & Chen 2022): Adams-Bashforth weights of equal steps, whatever the grid.

    The first rows are of order 1, 2, 3.  Raises ValueError unless the order is 1, 2, 3 or 4.
    """
    _check_order("ipndm", order, 4)

    def weights(i: int, most: int, rho: Array) -> Array:
        return np.array(ADAMS_BASHFORTH[min(order, most) - 1])

    return _adams(schedule, timesteps, weights, f"ipndm(order={order})")


@checked
def deis(
    schedule: Schedule,
    timesteps: Timesteps,
    order: int = 3,
    variable: str = "rho",
    lower_order_final: bool = False,
) -> Plan:
    """DEIS (Zhang & Chen 2022): eps of the last `order` calls as a polynomial, integrated exactly.

    `variable`: it is a polynomial in rho ("rho AB"), or in log rho (`log_rho`, as diffusers'
    "logrho"), which is infinite at the clean image: a row that ends there is then of order 1.
    `lower_order_final`: the last rows are of order ..., 3, 2, 1.
    Raises ValueError unless the order is 1, 2, 3 or 4, or for another variable.
    """
    _check_order("deis", order, 4)
    check_choice("variable", variable, ("rho", "log_rho"))

    def weights(i: int, most: int, rho: Array) -> Array:
        jumps = len(rho) - 1
        k = min(order, most, jumps - i if lower_order_final else order)
        if rho[i + 1] == rho[i] or (variable == "log_rho" and rho[i + 1] == 0):
            k = 1
        return _lagrange(rho[i + 1], rho[i::-1][:k], np.log if variable == "log_rho" else None)

    kind = "" if variable == "rho" else f", {variable}"
    return _adams(schedule, timesteps, weights, f"deis(order={order}{kind})")


def _check_order(name: str, order: int, most: int) -> None:
    known = range(1, most + 1)
    if order not in known:
        raise ValueError(f"the order of {name} must be one of {[*known]}, got {order}")


def _adams(
    schedule: Schedule,
    timesteps: Timesteps,
    weights: Callable[[int, int, Array], Array],
    name: str,
) -> Plan:
    """x_s = alpha_s (x_t / alpha_t + (rho_s - rho_t) sum_j w_j eps_(k-j)).

    w = weights(k, most, rho) of at most so many calls: none that was made where there is no signal,
    infinitely far.  Written as DDIM and what changes eps: DDIM does without rho.
    """
    grid, first = Grid.of(schedule, timesteps), ddim(schedule, timesteps)
    with np.errstate(divide="ignore"):
        rho = grid.sigmas / np.append(grid.alpha_t, grid.alpha_s[-1])
    n = len(first.t)
    x, x0, eps = first.x.copy(), first.x0.copy(), np.zeros((n, 4))
    for i in range(1, n):
        w = weights(i, i + int(np.isfinite(rho[0])), rho)
        change = grid.alpha_s[i] * (rho[i + 1] - rho[i]) * w
        own = change[0] - change.sum()
        eps[i, 1 : len(w)] = change[1:]
        x[i] += own / grid.sigma_t[i]
        x0[i, 0] -= own * grid.alpha_t[i] / grid.sigma_t[i]
    return replace(first, name=name, x=x, x0=x0, eps=eps)


def _lagrange(end: float, nodes: Array, variable: Callable[[Array], Array] | None) -> Array:
    """Mean over rho from nodes[0] to `end` of each node's Lagrange polynomial, [nodes].

    They are polynomials in rho, or in variable(rho).
    """
    if len(nodes) == 1:
        return np.ones(1)
    span = end - nodes[0]
    share, weight = (ROOTS + 1) / 2, WEIGHTS / 2  # over 0..1
    if variable is None:
        at, points = nodes[0] + span * share, nodes
    else:  # in log rho, where the polynomials are smooth: d rho = rho d log rho
        length = np.log(end / nodes[0])
        rho = nodes[0] * np.exp(length * share)
        at, points, weight = variable(rho), variable(nodes), weight * rho * length / span
    integrals = [
        (weight * np.prod([(at - q) / (p - q) for q in points if q != p], axis=0)).sum()
        for p in points
    ]
    return np.array(integrals)


# ER-SDE's noise scale functions f (Cui et al. 2023), each as f(x) / x; by the names of its options.
NOISE_SCALES: dict[str, Callable[[Array], Array]] = {
    "ode": np.ones_like,
    "sde": lambda x: x,
    "er_sde_1": lambda x: np.exp(-1 / x) + 10,
    "er_sde_2": lambda x: x**0.5,
    "er_sde_3": lambda x: x**1.5,
    "er_sde_4": lambda x: x**-0.1 * np.log10(1 + 100 * x**1.5),
    "er_sde_5": lambda x: np.exp(x**0.3) + 10,
}


@checked
def er_sde(
    schedule: Schedule, timesteps: Timesteps, order: int = 3, noise_scale: str = "er_sde_5"
) -> Plan:
    """ER-SDE-Solver (Cui et al. 2023) with l = sigma / alpha and r = f(l_s) / f(l_t):

        x_s = alpha_s (r x_t / alpha_t + (1 - r) x0 + (l_s - l_t + f(l_s) I) d
                       + ((l_s - l_t)^2 / 2 + f(l_s) J) dd + sqrt(l_s^2 - l_t^2 r^2) z),

    d and dd being the first and second divided differences of x0 in l, dd with a factor of 2, and I
    and J the integrals of 1 / f and (u - l_t) / f from l_s to l_t, to double precision.

    `noise_scale` is f, one of `NOISE_SCALES`: `er_sde_5`, x (exp(x^0.3) + 10), is the authors'; `sde`
    at order 1 is Skipped-Step, `ode` DDIM.  The first rows are of order 1 and 2; one that ends at
    the clean image is of order 1.
    Raises ValueError unless the order is 1, 2 or 3, or for another noise_scale.
    """
    _check_order("er_sde", order, 3)
    check_choice("noise_scale", noise_scale, NOISE_SCALES)
    grid, g = Grid.of(schedule, timesteps), NOISE_SCALES[noise_scale]
    with np.errstate(divide="ignore", over="ignore"):
        level = grid.sigmas / np.append(grid.alpha_t, grid.alpha_s[-1])
        slope = g(level[:-1])
    after = level[1:]
    f_s = np.array([v * g(np.array(v)) if v else 0.0 for v in after])
    x = grid.alpha_s * f_s / (grid.sigma_t * slope)
    x0 = np.zeros((len(x), 3))
    x0[:, 0] = grid.alpha_s * (1 - f_s / (slope * level[:-1]))
    noise = grid.alpha_s * np.sqrt(np.maximum(after**2 - (f_s / slope) ** 2, 0))
    for i in range(1, len(x)):
        if order == 1 or after[i] == 0 or not np.isfinite(level[i - 1]):
            continue
        one, two = _integrals(g, after[i], level[i])
        h = after[i] - level[i]
        d = np.array([1.0, -1.0, 0.0]) / (level[i] - level[i - 1])
        more = (h + f_s[i] * one) * d
        if order == 3 and i >= 2 and np.isfinite(level[i - 2]):
            before = np.array([0.0, 1.0, -1.0]) / (level[i - 1] - level[i - 2])
            dd = 2 * (d - before) / (level[i] - level[i - 2])
            more += (h**2 / 2 + f_s[i] * two) * dd
        x0[i] += grid.alpha_s[i] * more
    return grid.plan(f"er_sde(order={order}, {noise_scale})", x=x, x0=x0, noise=noise)


def _integrals(g: Callable[[Array], Array], low: float, high: float) -> tuple[float, float]:
    """The integrals of 1 / f and (u - high) / f, f = u g(u), over u from `low` to `high`.

    In log u, where they are smooth.
    """
    length = np.log(high / low)
    u = low * np.exp(length * (ROOTS + 1) / 2)
    weight = WEIGHTS / 2 * length / g(u)
    return float(weight.sum()), float((weight * (u - high)).sum())
