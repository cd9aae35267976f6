"""Scores of infinitely many samples: those of subsets, extrapolated in 1/n (Chong & Forsyth 2020).

A score of n samples has a bias of about c/n.  A line through the scores of random subsets of several
sizes n, over 1/n, has the score without bias at 0; the reference's own bias stays.

Which subsets are drawn moves the limit: FID-infinity by some 4% when each size is drawn once.  Here
that noise is small.  Several shuffles are averaged; and each subset's score is taken less the mean
influence of its samples (`eval.score`), which is most of what makes it differ from another subset's
and has no mean of its own, so that what is expected of the limit stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.score import Array, Score, shuffled

POINTS = 15  # subsets to a line
USUAL_LEAST = 5000  # the smallest subset of FID_IS_infinity and dgm-eval for 50,000 samples


@dataclass(frozen=True, eq=False)
class Subsets:
    """Which subsets: the first so many of `shuffles` random orders, by `seed`.

    With `strata`, whose sizes were fixed by design, each subset has its share of every stratum.
    """

    shuffles: int = 8
    seed: int = 0
    strata: NDArray[np.int64] | None = None


USUAL = Subsets()


def extrapolated(
    whole: Score,
    score_of: Callable[[NDArray[np.int64]], float],
    influence: Array,
    sizes: Sequence[int],
    subsets: Subsets,
) -> Score:
    """The limit, given the score of all samples and that of any rows.

    `influence` [N]: the derivative of `whole` by each sample's weight, times N, of mean 0 in every
    stratum.  `sizes` ascend to N.  se: the limit moves with the samples as `whole` does, and with the
    shuffles as their limits differ, which are the same rows in every set of N samples: the spread has
    both.
    """
    rng = np.random.default_rng(subsets.seed)
    orders = [shuffled(len(influence), rng, subsets.strata) for _ in range(subsets.shuffles)]
    drawn = [order[:size] for order in orders for size in sizes[:-1]]
    scores = [
        score_of(rows) - influence[rows].mean()
        for rows in tqdm(drawn, desc="subsets", leave=False, delay=2)
    ]
    table = np.reshape(scores, (subsets.shuffles, len(sizes) - 1))
    table = np.column_stack([table, np.full(subsets.shuffles, whole.value)])
    limits = np.array([limit(row, sizes) for row in table])
    if whole.spread is None:
        return Score(float(limits.mean()), float("nan"))
    n = subsets.shuffles
    noise = (limits - limits.mean()) / np.sqrt(
        n * (n - 1)
    )  # its squares sum to the mean's variance
    spread = replace(whole.spread, first=np.concatenate([whole.spread.first, noise]))
    return Score(float(limits.mean()), float(np.sqrt(spread.variance)), spread)


def limit(scores: Sequence[float] | Array, sizes: Sequence[int]) -> float:
    """Where the line through scores over 1/size (ordinary least squares) meets 0."""
    x, y = 1 / np.asarray(sizes, np.float64), np.asarray(scores, np.float64)
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred or 1.0)  # 1: of a trial run, where sizes are all one
    return float(y.mean() - slope * x.mean())


def subset_sizes(n: int, size: int, *, allow_few: bool = False) -> list[int]:
    """From 4 times the number of features or classes, 5,000 or N/10 on, evenly to N.

    The score's bias is a line in 1/n only where n is several times `size`; 5,000 is what everybody
    starts from with 50,000 samples.  `allow_few` starts at N/10 whatever that means.
    """
    least = 2 if allow_few else _least(size)
    return [int(x) for x in np.linspace(min(max(n // 10, least), n), n, POINTS)]


def check_infinity_size(name: str, n: int, size: int, what: str = "features") -> None:
    """Raise ValueError if n samples leave no room for subsets of several sizes."""
    if n < 2 * (least := _least(size)):
        raise ValueError(
            f"{name} with {size} {what} draws subsets of {least} samples and more, and needs twice "
            f"as many, got {n}: sample {2 * least} or more, or leave {name} out of metrics.scores"
        )


def _least(size: int) -> int:
    return max(min(4 * size, USUAL_LEAST), 2 * size)
