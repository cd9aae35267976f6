"""Frechet distances between Gaussians that are fitted to features (FID).

N samples have features of F numbers.  The reference stays fixed, since every sampler of a table is
compared with the same one: standard errors answer "how far would this score move with another set
of N samples?".  Memory is bounded: only blocks of rows are ever converted to float64.  `device` is
the torch device that the long part of the work runs on.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.enough import check_fid_size
from eval.infinity import USUAL, Subsets, check_infinity_size, extrapolated, subset_sizes
from eval.score import (
    Array,
    Floats,
    Score,
    Spread,
    blocks,
    check_sizes,
    influences,
    resamples,
    spread_score,
)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Gaussian fitted to n feature vectors: mean [F], cov [F, F] (divisor n - 1), float64."""

    mean: Array
    cov: Array
    n: int


class _Moments(NamedTuple):
    """The same as tensors on the device that computes with them."""

    mean: Tensor
    cov: Tensor


def statistics(
    features: Floats, counts: NDArray[np.int64] | None = None, *, device: str = "cpu"
) -> Statistics:
    """Mean and covariance of features [N, F]; row i counts `counts[i]` times (default once).

    Accumulated in float64 whatever the dtype of the features.  Raises ValueError unless
    the features are a matrix of at least two finite rows.
    """
    _check_matrix(features)
    mean, cov = _moments(torch.from_numpy(features).to(device), counts)
    n = len(features) if counts is None else int(counts.sum())
    return Statistics(mean.cpu().numpy(), cov.cpu().numpy(), n)


def _moments(x: Tensor, counts: NDArray[np.int64] | None = None) -> _Moments:
    w = torch.ones(len(x)) if counts is None else torch.from_numpy(counts)
    w = w.to(x.device, torch.float64)
    n, size = w.sum(), x.shape[1]
    total = torch.zeros(size, dtype=torch.float64, device=x.device)
    outer = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    for rows in blocks(len(x)):
        total += w[rows] @ x[rows].double()
    mean = total / n
    if not mean.isfinite().all():
        raise ValueError("features contain NaN or infinity: the samples or extractor are broken")
    for rows in blocks(len(x)):
        centred = x[rows].double() - mean
        outer += (centred * w[rows, None]).T @ centred
    return _Moments(mean, outer / (n - 1))


def _on(device: str, s: Statistics) -> _Moments:
    return _Moments(torch.from_numpy(s.mean).to(device), torch.from_numpy(s.cov).to(device))


def frechet_distance(a: Statistics, b: Statistics, *, device: str = "cpu") -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982; FID).

    Raises ValueError when the feature sizes differ, or when n <= F on either side: such a
    covariance has rank n - 1 at most, and the distance says more about n than about images.
    """
    check_sizes(len(a.mean), len(b.mean))
    check_fid_size(min(a.n, b.n), len(a.mean))
    reference = _on(device, b)
    return _distance(_on(device, a), reference, _root(reference.cov))


def fid(
    features: Floats,
    reference: Statistics,
    *,
    se: str = "bootstrap",
    allow_few: bool = False,
    bootstrap: int = 100,
    seed: int = 0,
    strata: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> Score:
    """Frechet distance of samples [N, F] to a reference (Heusel et al. 2017) with its error.

    se: that of the samples' influences on the distance, for the price of one more distance, is
    what `se="delta"` gives: what 50,000 x 2048 features can afford.  Near a perfect score it errs
    upwards, by a factor of up to 1.4.  `se="bootstrap"` mends this by what `bootstrap` resampled sets
    add beyond first order (`eval.score`); of resampled sets nothing else is used, since their own
    upward bias is about twice that of the samples.  `bootstrap=0` skips it: se is NaN.

    Raises ValueError for another `se`, and as `frechet_distance` unless `allow_few` (for a
    trial run with n <= F).
    """
    if se not in ("bootstrap", "delta"):
        raise ValueError(f"unknown fid_se {se!r}: choose bootstrap or delta")
    _check_matrix(features)
    check_sizes(features.shape[1], len(reference.mean))
    if not allow_few:
        check_fid_size(len(features), features.shape[1])
        check_fid_size(reference.n, features.shape[1], "real images")
    x, b = torch.from_numpy(features).to(device), _on(device, reference)
    a, root = _moments(x), _root(b.cov)  # factored once for all resamples
    few = _spectrum_of_few(x, a, root) if len(x) <= len(a.mean) else None
    value = _distance(a, b, root, few)
    first = influences(_influence(x, a, b, root, few), strata)
    if se == "delta":
        return spread_score(value, Spread(first))
    if bootstrap == 0:
        return Score(value, float("nan"))
    second = [
        _distance(_moments(x, counts), b, root) - (counts - 1) @ first
        for counts in resamples(len(features), bootstrap, seed, strata)
    ]
    return spread_score(value, Spread(first, np.array(second)))


def fid_infinity(
    features: Floats,
    reference: Statistics,
    whole: Score,
    *,
    subsets: Subsets = USUAL,
    allow_few: bool = False,
    device: str = "cpu",
) -> Score:
    """The Frechet distance in the limit of many samples (Chong & Forsyth 2020; `eval.infinity`).

    `whole` is the `fid` of the same features [N, F].  Only the samples' bias goes: the reference's
    stays.  Raises ValueError for too few samples unless `allow_few` (for a trial run).
    """
    n, size = features.shape
    if not allow_few:
        check_infinity_size("fid_infinity", n, size)
    x, b = torch.from_numpy(features).to(device), _on(device, reference)
    root = _root(b.cov)
    influence = n * influences(_influence(x, _moments(x), b, root), subsets.strata)

    def of(rows: NDArray[np.int64]) -> float:
        return _distance(_moments(x[torch.from_numpy(rows).to(device)]), b, root)

    sizes = subset_sizes(n, size, allow_few=allow_few)
    return extrapolated(whole, of, influence, sizes, subsets)


def diagonal_fid(
    features: Floats, reference: Statistics, strata: NDArray[np.int64] | None = None
) -> Score:
    """Frechet distance in the eigenbasis of the reference's covariance, of the diagonals alone.

    sum_i (m_i - r_i)^2 + (sqrt(v_i) - sqrt(c_i))^2 over principal components, with mean m_i and
    variance v_i of the samples and r_i, c_i of the reference.  Only 2 F numbers are estimated, so
    that few samples do; and it is `sampling.gaussian.gaussian_frechet` where that theory holds.
    se: from the samples' influences.  Raises ValueError when the feature sizes differ.
    """
    check_sizes(features.shape[1], len(reference.mean))
    c, basis = np.linalg.eigh(reference.cov)
    c = c.clip(min=0)
    y = (features.astype(np.float64) - reference.mean) @ basis
    shift, v = y.mean(0), y.var(0, ddof=1)
    value = (shift**2).sum() + ((np.sqrt(v) - np.sqrt(c)) ** 2).sum()
    slope = 1 - np.sqrt(np.divide(c, v, out=np.ones_like(v), where=v > 0))
    influence = 2 * y @ shift + (y - shift) ** 2 @ slope
    return spread_score(value, Spread(influences(influence, strata)))


class _Spectrum(NamedTuple):
    """Eigenvalues [K], ascending, and vectors [F, K] of R^T S_a R, where R R^T = S_b."""

    values: Tensor
    vectors: Tensor


def _spectrum_of_few(x: Tensor, a: _Moments, root_b: Tensor) -> _Spectrum:
    """What is not null of it where N <= F, from the N by N matrix of the same eigenvalues: in trial runs
    2048 features take a fraction of the time."""
    y = (x.double() - a.mean) @ root_b / (len(x) - 1) ** 0.5
    values, left = torch.linalg.eigh(y @ y.T)
    positive = values > values[-1] * y.shape[1] * np.finfo(np.float64).eps
    return _Spectrum(values[positive], y.T @ left[:, positive] / values[positive].sqrt())


def _influence(
    x: Tensor, a: _Moments, b: _Moments, root_b: Tensor, few: _Spectrum | None = None
) -> Array:
    """[N]: each sample's influence on the Frechet distance (infinitesimal jackknife).

    With R R^T = S_b, the derivative of the distance by S_a is G = I - R (R^T S_a R)^(-1/2) R^T,
    by m_a it is 2 (m_a - m_b); a sample's influence is linear in its deviation and in the
    deviation's outer product.  Null directions, where the root has no derivative, are left out.
    """
    eigenvalues, vectors = few or torch.linalg.eigh(root_b.T @ a.cov @ root_b)
    positive = eigenvalues > eigenvalues[-1] * len(eigenvalues) * np.finfo(np.float64).eps
    half = (root_b @ vectors[:, positive]) / eigenvalues[positive] ** 0.25
    slope = 2 * (a.mean - b.mean)
    influence = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in blocks(len(x)):
        centred = x[rows].double() - a.mean
        outer = centred.square().sum(1) - (centred @ half).square().sum(1)
        influence[rows] = centred @ slope + outer
    return influence.cpu().numpy()


def _distance(a: _Moments, b: _Moments, root_b: Tensor, few: _Spectrum | None = None) -> float:
    """The Frechet distance, given R with R R^T = S_b.

    S_a S_b is similar to the symmetric R^T S_a R, so that real eigenvalues of a symmetric
    matrix replace a general matrix square root.
    """
    eigenvalues = few.values if few else torch.linalg.eigvalsh(root_b.T @ a.cov @ root_b)
    trace = eigenvalues.clamp(min=0).sqrt().sum()
    difference = a.mean - b.mean
    distance = difference @ difference + a.cov.trace() + b.cov.trace() - 2 * trace
    return max(float(distance), 0.0)  # rounding may leave -1e-14


def _root(cov: Tensor) -> Tensor:
    """R with R R^T = cov: the Cholesky factor, or eigenvectors where cov is singular."""
    root, failed = torch.linalg.cholesky_ex(cov)
    if failed:
        eigenvalues, vectors = torch.linalg.eigh(cov)
        root = vectors * eigenvalues.clamp(min=0).sqrt()
    return root


def _check_matrix(features: Floats) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"statistics need features [N, F] of at least 2 images, got {list(features.shape)}: give more"
        )
