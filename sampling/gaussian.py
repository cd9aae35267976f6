"""What a sampler does to Gaussian data: closed form, no sampling.

For x_0 ~ N(mean, C) the posterior mean of x_0 given x_t is affine, so that every row of a plan is a
linear map of x_t and of the x of the calls that it looks back at, and the output is Gaussian.  In
the eigenbasis of C the coordinates are independent: a plan's discretisation error is a function of
one eigenvalue.

With the exact score that is all the error there is.  `score_error` adds a network's: a score that is
everywhere too steep by that fraction, (1 + score_error) times the exact one.
"""

from typing import NamedTuple

import numpy as np

from .plan import Plan, Row
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
    if score_error and (plan.alpha[plan.calls] == 0).any():
        raise ValueError("score_error needs a schedule that keeps some signal at T")
    state = _State(c, plan, score_error)
    for row in plan.rows():
        state.advance(row)
    return GaussianOutput(state.cov[0, 0], state.mean[0])


class _State:
    """Mean and covariance of (x, x at the last call, at the one before, ...) of every eigenvalue.

    `mean` [H, F] is for data of mean 1, `cov` [H, H, F]; `score` holds (slope, offset) of x0 and
    of eps as functions of x, for every call.
    """

    def __init__(self, eigenvalues: Array, plan: Plan, score_error: float):
        self.c, self.score_error = eigenvalues, score_error
        size, F = plan.look_back + 1, len(eigenvalues)
        self.mean = np.zeros((size, F))
        self.cov = np.zeros((size, size, F))
        self.cov[0, 0] = plan.start**2
        self.calls: list[tuple[Array, Array, Array, Array]] = []  # newest first

    def advance(self, row: Row) -> None:
        gain = np.zeros_like(self.mean)
        gain[0], shift = row.x, np.zeros_like(self.c)
        now = [self._call(row)] if row.calls else []
        for j, weight in enumerate(row.x0):
            if weight:
                slope, offset, *_ = (now + self.calls)[j if now else j - 1]
                gain[j] += weight * slope
                shift += weight * offset
        for j, weight in enumerate(row.eps):
            if weight:
                *_, slope, offset = (now + self.calls)[j if now else j - 1]
                gain[j] += weight * slope
                shift += weight * offset
        cov, mean, x = self.cov.copy(), self.mean.copy(), np.einsum("if,ijf->jf", gain, self.cov)
        if now:  # every call moves one place back
            cov[1:, 1:], mean[1:] = self.cov[:-1, :-1], self.mean[:-1]
            cov[0, 1:] = cov[1:, 0] = x[:-1]
            self.calls = (now + self.calls)[: len(mean) - 1]
        else:
            cov[0, 1:] = cov[1:, 0] = x[1:]
        cov[0, 0] = (gain * x).sum(axis=0) + row.noise**2
        mean[0] = (gain * self.mean).sum(axis=0) + shift
        self.cov, self.mean = cov, mean

    def _call(self, row: Row) -> tuple[Array, Array, Array, Array]:
        """x0 = mean + m (x_t - alpha mean), by Tweedie's formula from the score; eps from both."""
        alpha, sigma = row.alpha, row.sigma
        wrong = self.score_error * sigma**2 / alpha if self.score_error else 0.0
        m = (alpha * self.c - wrong) / (alpha**2 * self.c + sigma**2)
        offset = 1 - m * alpha
        if row.eps_scale != 1:
            m = m / row.eps_scale + (1 - 1 / row.eps_scale) / alpha
            offset = offset / row.eps_scale
        return m, offset, (1 - alpha * m) / sigma, -alpha * offset / sigma


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
