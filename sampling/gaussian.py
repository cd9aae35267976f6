"""What a sampler does to Gaussian data: closed form, no sampling.

For x_0 ~ N(mean, C) the posterior mean of x_0 given x_t is affine, so that every row of a plan is a
linear map of (x_t, x0 of the row before), and the output is Gaussian.  In the eigenbasis of C the
coordinates are independent: a plan's discretisation error is a function of one eigenvalue.

With the exact score that is all the error there is.  `score_error` adds a network's: a score that is
everywhere too steep by that fraction, (1 + score_error) times the exact one.
"""

from typing import NamedTuple

import numpy as np

from .plan import Plan
from .schedule import Array


class GaussianOutput(NamedTuple):
    """Of each eigenvalue of the data's covariance: what the plan's output has.

    `variance` [F] is its variance; `gain` [F] is what a unit of the data's mean becomes (1 would be
    right; the start at pure noise forgets sqrt(alpha_bar_T) of it).
    """

    variance: Array
    gain: Array


def gaussian_output(plan: Plan, eigenvalues: Array, score_error: float = 0.0) -> GaussianOutput:
    """Variance and mean of a plan's samples for Gaussian data [F].

    No clipping.  A learned variance is taken at its lower bound.  Raises ValueError for a negative
    eigenvalue, and for an erring score where no signal is left: there it says nothing of x0.
    """
    c = np.asarray(eigenvalues, dtype=np.float64)
    if (c < 0).any():
        raise ValueError("eigenvalues of a covariance must not be negative")
    if score_error and any(row.alpha_bar == 0 for row in plan.rows()):
        raise ValueError("score_error needs a schedule that keeps some signal at T")
    one, zero = np.ones_like(c), np.zeros_like(c)
    # Second moments of (x_t, x0 of the row before) about their mean, and that mean for mean = 1.
    xx, xp, pp = one, zero, zero
    x_mean, p_mean = zero, zero
    for row in plan.rows():
        a = row.alpha_bar
        # x0 = mean + m (x_t - sqrt(a) mean), by Tweedie's formula from the score
        wrong = score_error * (1 - a) / np.sqrt(a) if score_error else 0.0
        m = (np.sqrt(a) * c - wrong) / (a * c + 1 - a)
        k = row.x + row.x0 * m
        b = row.x0_previous
        x0_mean = 1 + m * (x_mean - np.sqrt(a))
        x_mean, p_mean = row.x * x_mean + row.x0 * x0_mean + b * p_mean, x0_mean
        xx, xp, pp = (
            k**2 * xx + 2 * k * b * xp + b**2 * pp + row.noise**2,
            m * (k * xx + b * xp),
            m**2 * xx,
        )
    return GaussianOutput(xx, x_mean)


def gaussian_frechet(
    plan: Plan, eigenvalues: Array, mean: Array | None = None, score_error: float = 0.0
) -> float:
    """Frechet distance between a plan's samples of N(mean, C) and the data themselves.

    `eigenvalues` [F] are C's, `mean` [F] is in its eigenbasis (default 0).
    """
    c = np.asarray(eigenvalues, dtype=np.float64)
    output = gaussian_output(plan, c, score_error)
    spread = ((np.sqrt(output.variance) - np.sqrt(c)) ** 2).sum()
    shift = 0.0 if mean is None else (((output.gain - 1) * mean) ** 2).sum()
    return float(spread + shift)
