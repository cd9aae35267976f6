"""How far two sets of features cover each other: precision, recall, density and coverage."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval.enough import check_neighbours
from eval.neighbours import memberships, parts_covering
from eval.score import (
    Array,
    Floats,
    Score,
    Spread,
    check_sizes,
    influences,
    proportion,
    spread_score,
)

PARTITIONS = 60  # of the samples into quarters: what a spread over subsamples is made from


class Prdc(NamedTuple):
    """Four scores of the same balls."""

    precision: Score
    recall: Score
    density: Score
    coverage: Score


def prdc(
    features: Floats,
    reference_features: Floats,
    *,
    k: int = 3,
    ties: str = "in",
    at_most: int | None = None,
    seed: int = 0,
    strata: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> Prdc:
    """Samples [N, F] against a reference [M, F] by the balls around the points of both.

    A ball reaches to the k-th nearest *other* point of its set.  Precision is the share of samples in
    a ball of the reference, recall the share of the reference in a ball of the samples (Kynkaanniemi
    et al. 2019).  Density is the number of the reference's balls that a sample lies in, over k, on
    average; coverage the share of the reference's balls that hold a sample (Naeem et al. 2020).  Even
    a perfect sampler's scores differ from 1, by amounts that depend on N, M and F.

    Points at a ball's very radius are `ties="in"` it as in guided-diffusion's evaluator and
    torch-fidelity, or "out" as in prdc and dgm-eval.  Of both sets `at_most` so many are used, drawn
    by `seed` as dgm-eval does.  Decisions are those of float64 distances (`eval.neighbours`):
    guided-diffusion's evaluator rounds distances to half precision, which moves its scores by some
    0.003, and torch-fidelity's are off by more where features have a large mean.

    se of precision and density: the balls are fixed and samples independent, so that precision is
    binomial (what a bootstrap of the hits would give), and density a mean, of `strata` where given.
    se of recall and coverage: see `_subsampled`; a bootstrap cannot serve, since a sample drawn twice
    has a neighbour at distance 0.

    Raises ValueError unless both sets have more than k points of the same size.
    """
    check_sizes(features.shape[1], reference_features.shape[1])
    if at_most is not None:
        chosen, drawn = _drawn(len(features), len(reference_features), at_most, seed)
        features, reference_features = features[chosen], reference_features[drawn]
        strata = None if strata is None else strata[chosen]
    check_neighbours(len(features), k)
    check_neighbours(len(reference_features), k, "reference images")
    x, y = (torch.from_numpy(z).to(device) for z in (features, reference_features))
    found = memberships(x, y, k, ties)
    balls, reached, covered = (part.cpu().numpy() for part in found[:3])
    recall, coverage = float(covered.mean()), float(reached.mean())
    if len(x) < 8 * (k + 1):
        few = [Score(share, _binomial(share, len(x))) for share in (recall, coverage)]
        return Prdc(proportion(balls > 0), few[0], _density(balls, k, strata), few[1])
    parts = parts_covering(x, y, k, torch.from_numpy(_quarters(len(x))).to(device), found.radii)
    halves, quarters, held = (shares.cpu().numpy() for shares in parts)
    return Prdc(
        proportion(balls > 0),
        _subsampled(recall, halves, quarters),
        _density(balls, k, strata),
        _subsampled(coverage, held),
    )


def _drawn(n: int, m: int, at_most: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the samples and of the reference: as many of both, the reference's drawn first."""
    rng, size = np.random.RandomState(seed), min(at_most, n, m)
    drawn = rng.choice(m, size, replace=False)
    return rng.choice(n, size, replace=False), drawn


def _density(balls: NDArray[np.int64], k: int, strata: NDArray[np.int64] | None) -> Score:
    spread = Spread(influences(balls / k, strata))
    return spread_score(balls.sum() / (k * len(balls)), spread)


def _binomial(share: float, n: int) -> float:
    """The error of a share as if of n hits and misses, two of each added (`score.proportion`)."""
    p = (share * n + 2) / (n + 4)
    return float(np.sqrt(p * (1 - p) / (n + 4)))


def _subsampled(value: float, halves: Array, quarters: Array | None = None) -> Score:
    """A share of the reference with the error that subsamples tell (Politis, Romano & Wolf 1999,
    chapter 8).

    Two halves [R, 2] of the samples that share none differ by twice the variance at that size, two
    quarters [R, 4] at theirs.  Both together tell by which power of the number of samples it falls,
    hence what it is for all of them: radii of recall shrink as points are added, so that it falls
    slower than 1/N.  The balls of coverage are the reference's and stay: it falls as 1/N.
    Of fewer than 8 (k + 1) samples, whose quarters say nothing, the error is a binomial one of N.
    """
    first = (halves[:, 0] - halves[:, 1]) / np.sqrt(2 * PARTITIONS)
    if quarters is None:
        return spread_score(value, Spread(first / np.sqrt(2)))
    second = (quarters[:, ::2] - quarters[:, 1::2]) / np.sqrt(4 * PARTITIONS)
    return spread_score(value, Spread(first, quarters=second.ravel()))


def _quarters(n: int) -> NDArray[np.int64]:
    """[PARTITIONS, n]: random quarters 0 to 3 of equal size; 4 for up to three that are over."""
    rng = np.random.default_rng(0)
    of = np.minimum(np.arange(n) // (n // 4), 4)
    return np.stack([of[rng.permutation(n)] for _ in range(PARTITIONS)])
