"""Improved precision and recall: how far two sets of features cover each other's manifolds."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.enough import check_neighbours
from eval.neighbours import covered, parts_covering
from eval.score import Floats, Score, Spread, check_sizes, proportion, spread_score

PARTITIONS = 60  # of the samples into quarters: what a spread over subsamples is made from


def precision_recall(
    features: Floats, reference_features: Floats, *, k: int = 3, device: str = "cpu"
) -> tuple[Score, Score]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of samples against a reference.

    A set's manifold is the union of balls around its points, each reaching to the k-th
    nearest *other* point of the set (<=, so that ties count).  Precision is the share of
    samples inside the reference's manifold, recall the share of the reference inside the
    samples'.  Even a perfect sampler scores below 1, by an amount that depends on N, M and F.

    Decisions are those of float64 distances (`eval.neighbours`): guided-diffusion's evaluator
    rounds distances to half precision, which moves its scores by some 0.003.

    se of precision: the balls are fixed and samples independent, hence binomial (what a
    bootstrap of the hits would give).  se of recall: see `_subsampled`; a bootstrap cannot serve,
    since a sample drawn twice has a neighbour at distance 0.

    Raises ValueError unless both sets have more than k points of the same size.
    """
    check_sizes(features.shape[1], reference_features.shape[1])
    if type(k) is not int or k < 1:
        raise ValueError(f"precision and recall need an integer k of at least 1, got {k!r}")
    check_neighbours(len(features), k)
    check_neighbours(len(reference_features), k, "reference images")
    x, y = (torch.from_numpy(z).to(device) for z in (features, reference_features))
    inside, recalled = covered(x, y, k)
    return proportion(inside.cpu().numpy()), _subsampled(x, y, k, recalled.cpu().numpy())


def _subsampled(x: Tensor, y: Tensor, k: int, recalled: NDArray[np.bool_]) -> Score:
    """Recall with the error that subsamples tell (Politis, Romano & Wolf 1999, chapter 8).

    Two halves of the samples that share none differ in recall by twice the variance at that size, two
    quarters at theirs.  Both together tell by which power of the number of samples it falls, hence
    what it is for all of them: radii shrink as points are added, so that it falls slower than 1/N.
    Of fewer than 8 (k + 1) samples, whose quarters say nothing, the error is a binomial one of N.
    """
    n = len(x)
    if n < 8 * (k + 1):
        return Score(float(recalled.mean()), proportion(recalled[:n]).se)
    parts = parts_covering(x, y, k, torch.from_numpy(_quarters(n)).to(x.device))
    halves, quarters = (shares.cpu().numpy() for shares in parts)
    first = (halves[:, 0] - halves[:, 1]) / np.sqrt(2 * PARTITIONS)
    second = (quarters[:, ::2] - quarters[:, 1::2]) / np.sqrt(4 * PARTITIONS)
    return spread_score(recalled.mean(), Spread(first, quarters=second.ravel()))


def _quarters(n: int) -> NDArray[np.int64]:
    """[PARTITIONS, n]: random quarters 0 to 3 of equal size; 4 for up to three that are over."""
    rng = np.random.default_rng(0)
    of = np.minimum(np.arange(n) // (n // 4), 4)
    return np.stack([of[rng.permutation(n)] for _ in range(PARTITIONS)])
