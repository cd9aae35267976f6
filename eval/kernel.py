"""The kernel distance between features (KID)."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.enough import check_kid_size
from eval.neighbours import float32_products
from eval.score import (
    Array,
    Floats,
    Score,
    Spread,
    blocks,
    check_sizes,
    influences,
    random_groups,
    spread_score,
)

KID_GROUPS = 100  # groups of samples that the bootstrap resamples
LEAST_GROUPS = 8  # of fewer, as small strata leave, what resampling adds is mostly noise


def kid(
    features: Floats,
    reference_features: Floats,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    bootstrap: int = 100,
    strata: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> Score:
    """Squared maximum mean discrepancy, kernel (x.y / F + 1)^3 (Binkowski et al. 2018).

    The value is torch-fidelity's: the mean of the unbiased estimator over random subsets.
    It may fall slightly below 0.  se: from the samples' influences on the estimator over all of them,
    less what a bootstrap adds beyond first order (over 100 random groups of samples, whose kernel
    sums are computed once; pairs of a sample with itself left out); and the error of drawing finitely
    many subsets, which is taken for each score's own.  `bootstrap=0` skips it (NaN).
    On a GPU only the bootstrap runs there: torch-fidelity's value is NumPy's everywhere.
    Raises ValueError for fewer than `subset_size` samples or reference images.
    """
    check_sizes(features.shape[1], reference_features.shape[1])
    check_kid_size(len(features), subset_size)
    check_kid_size(len(reference_features), subset_size, "reference images")
    # Imported here because it takes more than a second, which only KID should cost.
    from torch_fidelity import metric_kid

    result = metric_kid.kid_features_to_metric(
        torch.from_numpy(features),
        torch.from_numpy(reference_features),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    mean, std = result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]
    if bootstrap == 0:
        return Score(mean, float("nan"))
    x, y = (torch.from_numpy(z).to(device) for z in (features, reference_features))
    spread = _kid_spread(x, y, bootstrap, seed, strata)
    return spread_score(mean, replace(spread, own=float(std**2 / subsets)))


def _kid_spread(
    x: Tensor, y: Tensor, bootstrap: int, seed: int, strata: NDArray[np.int64] | None
) -> Spread:
    """Of the unbiased estimator over all samples."""
    n, rng = len(x), np.random.default_rng(seed)
    groups = random_groups(n, KID_GROUPS, rng, strata)
    order, sizes = np.concatenate(groups), np.array([len(rows) for rows in groups])
    sums = _kernel_sums(x[order], y, sizes)
    derivatives = np.empty(n)
    derivatives[order] = 2 * sums.own / (n - 1) - 2 * sums.cross / len(y)
    first = influences(derivatives, strata)
    g = len(groups)
    if g < LEAST_GROUPS:
        return Spread(first)
    w = rng.multinomial(g, np.full(g, 1 / g), size=bootstrap)
    resampled = _weighted(w, sums, sizes, len(y))
    return Spread(first, resampled - (w - 1) @ np.array([first[rows].sum() for rows in groups]))


def _weighted(w: NDArray[np.int64], sums: "_Sums", sizes: NDArray[np.int64], m: int) -> Array:
    """[B]: the estimator up to a constant, where group g counts w[b, g] times."""
    starts = np.cumsum(sizes) - sizes
    cross = np.add.reduceat(sums.cross, starts)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    mean_within = ((w @ sums.within) * w).sum(1) / ((w @ pairs) * w).sum(1)
    return np.asarray(mean_within - 2 * (w @ cross) / (w @ sizes) / m)


class _Sums(NamedTuple):
    """Sums of the kernel over pairs of different samples, by groups [G, G] and by sample [N], and
    over pairs of a sample with the reference [N]."""

    within: Array
    own: Array
    cross: Array


def _kernel_sums(x: Tensor, y: Tensor, sizes: NDArray[np.int64]) -> _Sums:
    """The groups of x adjoin and have these sizes.  Each pair is computed once."""
    g, ends = len(sizes), np.cumsum(sizes)
    group = torch.from_numpy(np.repeat(np.arange(g), sizes)).to(x.device)
    below = torch.zeros(g, g, dtype=torch.float64, device=x.device)
    own, cross = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    with float32_products():
        for i, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True)):
            rows = slice(end - size, end)
            a = x[rows]
            by_row, by_column = _sums(a, x[:end])
            itself = (a.double().square().sum(1) / x.shape[1] + 1) ** 3
            below[i].index_add_(0, group[:end], by_column)
            below[i, i] -= itself.sum()
            own[: end - size] += by_column[: end - size]
            own[rows] += by_row - itself
            cross[rows] = _sums(a, y)[0]
    within = below + below.tril(-1).T
    return _Sums(within.cpu().numpy(), own.cpu().numpy(), cross.cpu().numpy())


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """[len(a)] and [len(b)]: sums of the kernel over b and over a, in float64."""
    by_row = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    by_column = []
    for rows in blocks(len(b)):
        similarity = a @ b[rows].T / a.shape[1] + 1
        cubes = similarity * similarity * similarity  # many times faster than ** 3
        by_row += cubes.sum(1, dtype=torch.float64)
        by_column.append(cubes.sum(0, dtype=torch.float64))
    return by_row, torch.cat(by_column)
