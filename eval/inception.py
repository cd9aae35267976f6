"""The Inception score, as a function of a classifier's logits."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from eval.enough import check_splits
from eval.infinity import USUAL, Subsets, check_infinity_size, extrapolated, subset_sizes
from eval.score import Array, Floats, Score, Spread, blocks, influences, spread_score


def inception_score(
    logits: Floats,
    *,
    splits: int = 1,
    chunk_size: int | None = None,
    shuffle_seed: int | None = None,
    strata: NDArray[np.int64] | None = None,
) -> Score:
    """exp(E_x KL(p(y|x) || p(y))) (Salimans et al. 2016) of logits [N, K].

    The score depends on how many samples share one p(y), so conventions do not mix:

    - default: all samples at once (least biased);
    - `splits=10, shuffle_seed=2020`: torch-fidelity, mean over ten equal parts;
    - `chunk_size=5000`: guided-diffusion's evaluator, mean over consecutive chunks, where a
      short last chunk counts as much as the others.

    se: from the samples' influences; with `strata` [N], each sample is compared with its own stratum
    of its part.  Raises ValueError when both or impossible divisions are asked for.
    """
    n = len(logits)
    check_splits(n, splits, chunk_size)
    order = np.arange(n)
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(n)
    edges = [i * n // splits for i in range(splits + 1)]
    if chunk_size is not None:
        edges = [*range(0, n, chunk_size), n]
    values, first = [], np.empty(n)
    for start, end in pairwise(edges):
        rows = order[start:end]
        value, derivatives = _part(logits, rows)
        values.append(value)
        first[rows] = influences(derivatives, None if strata is None else strata[rows])
    return spread_score(float(np.mean(values)), Spread(first / len(values)))


def is_infinity(logits: Floats, *, subsets: Subsets = USUAL, allow_few: bool = False) -> Score:
    """The Inception score in the limit of many samples (Chong & Forsyth 2020; `eval.infinity`).

    logits [N, K]; the score of all of a subset at once.  Raises ValueError for too few samples
    unless `allow_few` (for a trial run).
    """
    n, classes = logits.shape
    if not allow_few:
        check_infinity_size("is_infinity", n, classes, "classes")
    value, derivatives = _part(logits, np.arange(n))
    first = influences(derivatives, subsets.strata)
    sizes = subset_sizes(n, classes, allow_few=allow_few)
    whole = spread_score(value, Spread(first))
    return extrapolated(whole, lambda rows: _part(logits, rows)[0], n * first, sizes, subsets)


def _part(logits: Floats, rows: NDArray[np.int64]) -> tuple[float, Array]:
    """The score of some rows, and its derivative by the weight of each, times their number.

    log IS = E_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y), whose derivative is the divergence
    KL(p(y|x) || p(y)) of each row, up to a constant.
    """
    n, k = len(rows), logits.shape[1]
    marginal = torch.zeros(k, dtype=torch.float64)
    for some in blocks(n):
        marginal += torch.from_numpy(logits[rows[some]]).double().softmax(dim=1).sum(0) / n
    divergences = np.empty(n)
    for some in blocks(n):
        p = torch.from_numpy(logits[rows[some]]).double().softmax(dim=1)
        divergences[some] = (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).numpy()
    score = float(np.exp(divergences.mean()))
    return score, score * divergences
