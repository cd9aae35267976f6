"""Scores of generated images, as functions of extracted features, each with a standard error.

Everything here is numpy in, a `Score` out; images and networks live in `eval.extractors`.
N samples and M reference images have features of F numbers and logits over K classes.

The standard errors answer "how far would this score move with another set of N samples?".
The reference stays fixed, since every sampler of a table is compared with the same one.
They match the true spread where scores differ clearly and err upwards near
a perfect score: by up to 1.7 for FID and KID, whose first-order term vanishes there (with
`fid`'s se="delta" they fall short there instead).
Memory is bounded: nothing of size N x M is ever held, only tiles of it.
`device` is the torch device that the long part of the work runs on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.enough import check_fid_size, check_kid_size, check_neighbours, check_splits
from eval.neighbours import covered, float32_products

Floats = NDArray[np.floating[Any]]  # float32 or float64
Array = NDArray[np.float64]

BLOCK = 4096  # rows converted to float64 at a time
KID_GROUPS = 100  # groups of samples that the KID bootstrap resamples
JACKKNIFE_GROUPS = 10  # groups of samples that recall's jackknife leaves out in turn


class Score(NamedTuple):
    """A value and its standard error; the 95% interval is value +- half."""

    value: float
    se: float

    @property
    def half(self) -> float:
        """Half the width of the 95% interval: 1.96 standard errors."""
        return 1.96 * self.se


# --- Frechet distance -----------------------------------------------------------------


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
    for rows in _blocks(len(x)):
        total += w[rows] @ x[rows].double()
    mean = total / n
    if not mean.isfinite().all():
        raise ValueError("features contain NaN or infinity: the samples or extractor are broken")
    for rows in _blocks(len(x)):
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
    _check_sizes(len(a.mean), len(b.mean))
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

    `se="bootstrap"`: resampled sets are scored against the same reference.  They have about
    twice the upward bias of the samples themselves, so only their spread is used, never their
    mean or their percentiles.  `bootstrap=0` skips this: se is NaN.

    `se="delta"`: the spread of the samples' influence on the distance, for the price of one
    more distance: what 50,000 x 2048 features can afford.  It agrees with the bootstrap where
    the distance is large against its bias, and falls short of it near 0.

    Raises ValueError for another `se`, and as `frechet_distance` unless `allow_few` (for a
    trial run with n <= F).
    """
    if se not in ("bootstrap", "delta"):
        raise ValueError(f"unknown fid_se {se!r}: choose bootstrap or delta")
    _check_matrix(features)
    _check_sizes(features.shape[1], len(reference.mean))
    if not allow_few:
        check_fid_size(len(features), features.shape[1])
        check_fid_size(reference.n, features.shape[1], "real images")
    x, b = torch.from_numpy(features).to(device), _on(device, reference)
    a, root = _moments(x), _root(b.cov)  # factored once for all resamples
    value = _distance(a, b, root)
    if se == "delta":
        return Score(value, _influence_se(_influence(x, a, b, root), strata))
    spread = [
        _distance(_moments(x, counts), b, root)
        for counts in _resamples(len(features), bootstrap, seed, strata)
    ]
    return Score(value, _std(spread))


def diagonal_fid(
    features: Floats, reference: Statistics, strata: NDArray[np.int64] | None = None
) -> Score:
    """Frechet distance in the eigenbasis of the reference's covariance, of the diagonals alone.

    sum_i (m_i - r_i)^2 + (sqrt(v_i) - sqrt(c_i))^2 over principal components, with mean m_i and
    variance v_i of the samples and r_i, c_i of the reference.  Only 2 F numbers are estimated, so
    that few samples do; and it is `sampling.gaussian.gaussian_frechet` where that theory holds.
    se: the delta method.  Raises ValueError when the feature sizes differ.
    """
    _check_sizes(features.shape[1], len(reference.mean))
    c, basis = np.linalg.eigh(reference.cov)
    c = c.clip(min=0)
    y = (features.astype(np.float64) - reference.mean) @ basis
    shift, v = y.mean(0), y.var(0, ddof=1)
    value = (shift**2).sum() + ((np.sqrt(v) - np.sqrt(c)) ** 2).sum()
    slope = 1 - np.sqrt(np.divide(c, v, out=np.ones_like(v), where=v > 0))
    influence = 2 * y @ shift + (y - shift) ** 2 @ slope
    return Score(float(value), _influence_se(influence, strata))


def _influence_se(influence: Array, strata: NDArray[np.int64] | None) -> float:
    """Standard error of what is linear in the samples to first order, from their influences."""
    n = len(influence)
    groups = np.zeros(n, np.int64) if strata is None else strata
    parts = [influence[groups == group] for group in np.unique(groups)]
    return float(np.sqrt(sum(len(p) * p.var(ddof=min(1, len(p) - 1)) for p in parts)) / n)


def _influence(x: Tensor, a: _Moments, b: _Moments, root_b: Tensor) -> Array:
    """[N]: each sample's influence on the Frechet distance (infinitesimal jackknife).

    With R R^T = S_b, the derivative of the distance by S_a is G = I - R (R^T S_a R)^(-1/2) R^T,
    by m_a it is 2 (m_a - m_b); a sample's influence is linear in its deviation and in the
    deviation's outer product.  Null directions, where the root has no derivative, are left out.
    """
    eigenvalues, vectors = torch.linalg.eigh(root_b.T @ a.cov @ root_b)
    positive = eigenvalues > eigenvalues[-1] * len(eigenvalues) * np.finfo(np.float64).eps
    half = (root_b @ vectors[:, positive]) / eigenvalues[positive] ** 0.25
    slope = 2 * (a.mean - b.mean)
    influence = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in _blocks(len(x)):
        centred = x[rows].double() - a.mean
        outer = centred.square().sum(1) - (centred @ half).square().sum(1)
        influence[rows] = centred @ slope + outer
    return influence.cpu().numpy()


def _distance(a: _Moments, b: _Moments, root_b: Tensor) -> float:
    """The Frechet distance, given R with R R^T = S_b.

    S_a S_b is similar to the symmetric R^T S_a R, so that real eigenvalues of a symmetric
    matrix replace a general matrix square root.
    """
    eigenvalues = torch.linalg.eigvalsh(root_b.T @ a.cov @ root_b)
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


def _check_sizes(samples: int, reference: int) -> None:
    if samples != reference:
        raise ValueError(
            f"the reference has {reference} features, the samples {samples}: "
            "use the reference made with the same extractor"
        )


# --- Inception score ------------------------------------------------------------------


def inception_score(
    logits: Floats,
    *,
    splits: int = 1,
    chunk_size: int | None = None,
    shuffle_seed: int | None = None,
    bootstrap: int = 100,
    seed: int = 0,
    strata: NDArray[np.int64] | None = None,
) -> Score:
    """exp(E_x KL(p(y|x) || p(y))) (Salimans et al. 2016) of logits [N, K].

    The score depends on how many samples share one p(y), so conventions do not mix:

    - default: all samples at once (least biased);
    - `splits=10, shuffle_seed=2020`: torch-fidelity, mean over ten equal parts;
    - `chunk_size=5000`: guided-diffusion's evaluator, mean over consecutive chunks, where a
      short last chunk counts as much as the others.

    se: bootstrap within every part; parts are independent.  `bootstrap=0` skips it (NaN).
    Raises ValueError when both or impossible divisions are asked for.
    """
    n = len(logits)
    check_splits(n, splits, chunk_size)
    order = np.arange(n)
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(n)
    edges = [i * n // splits for i in range(splits + 1)]
    if chunk_size is not None:
        edges = [*range(0, n, chunk_size), n]
    parts = [
        _inception_scores(
            logits[order[a:b]], bootstrap, seed + i, None if strata is None else strata[order[a:b]]
        )
        for i, (a, b) in enumerate(pairwise(edges))
    ]
    se = np.linalg.norm([_std(scores[1:]) for scores in parts]) / len(parts)
    return Score(float(np.mean([scores[0] for scores in parts])), float(se))


def _inception_scores(
    logits: Floats, bootstrap: int, seed: int, strata: NDArray[np.int64] | None
) -> Array:
    """[1 + bootstrap]: the score of all rows, then of each resample of them.

    log IS = E_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y), where both expectations are
    linear in the rows' counts.
    """
    n, k = logits.shape
    counts = np.stack([np.ones(n, np.int64), *_resamples(n, bootstrap, seed, strata)])
    marginal, negative_entropy = np.zeros((len(counts), k)), np.zeros(len(counts))
    for rows in _blocks(n):
        w = torch.from_numpy(counts[:, rows]).double()
        p = torch.from_numpy(logits[rows]).double().softmax(dim=1)
        marginal += (w @ p).numpy() / n
        negative_entropy += (w @ torch.xlogy(p, p).sum(1)).numpy() / n
    q = torch.from_numpy(marginal)
    scores: Array = np.exp(negative_entropy - torch.xlogy(q, q).sum(1).numpy())
    return scores


# --- Kernel distance ------------------------------------------------------------------


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
    It may fall slightly below 0.  se combines the bootstrap over samples (in 100 random
    groups, whose kernel sums are computed once; pairs of a sample with itself left out)
    with the error of drawing finitely many subsets.  `bootstrap=0` skips it (NaN).
    On a GPU only the bootstrap runs there: torch-fidelity's value is NumPy's everywhere.
    Raises ValueError for fewer than `subset_size` samples or reference images.
    """
    _check_sizes(features.shape[1], reference_features.shape[1])
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
    x, y = (torch.from_numpy(z).to(device) for z in (features, reference_features))
    spread = _kid_resampled(x, y, bootstrap, seed, strata)
    mean, std = result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]
    return Score(mean, float(np.hypot(_std(spread), std / np.sqrt(subsets))))


def _kid_resampled(
    x: Tensor, y: Tensor, bootstrap: int, seed: int, strata: NDArray[np.int64] | None = None
) -> Array:
    """[bootstrap]: KID up to a constant, with groups of samples drawn with replacement."""
    if bootstrap == 0:
        return np.empty(0)
    rng = np.random.default_rng(seed)
    groups = _groups(len(x), KID_GROUPS, rng, strata)
    g, sizes = len(groups), np.array([len(rows) for rows in groups])
    within, cross = _kernel_sums(x[np.concatenate(groups)], y, sizes)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    w = rng.multinomial(g, np.full(g, 1 / g), size=bootstrap)
    mean_within = ((w @ within) * w).sum(1) / ((w @ pairs) * w).sum(1)
    mean_cross = (w @ cross) / (w @ sizes) / len(y)
    return np.asarray(mean_within - 2 * mean_cross)


def _kernel_sums(x: Tensor, y: Tensor, sizes: NDArray[np.int64]) -> tuple[Array, Array]:
    """Sums of the kernel over pairs of different samples [G, G], and of samples with y [G].

    The groups of x adjoin and have these sizes.
    """
    g, ends = len(sizes), np.cumsum(sizes)
    group = torch.from_numpy(np.repeat(np.arange(g), sizes)).to(x.device)
    below = torch.zeros(g, g, dtype=torch.float64, device=x.device)
    cross = torch.zeros(g, dtype=torch.float64, device=x.device)
    with float32_products():
        for i, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist(), strict=True)):
            a = x[end - size : end]
            below[i].index_add_(0, group[:end], _column_sums(a, x[:end]))
            own = a.double().square().sum(1) / x.shape[1] + 1
            below[i, i] -= (own**3).sum()
            cross[i] = _column_sums(a, y).sum()
    within = below + below.tril(-1).T
    return within.cpu().numpy(), cross.cpu().numpy()


def _column_sums(a: Tensor, b: Tensor) -> Tensor:
    """[len(b)]: sums of the kernel over a, in float64."""
    parts = []
    for rows in _blocks(len(b)):
        similarity = a @ b[rows].T / a.shape[1] + 1
        cubes = similarity * similarity * similarity  # many times faster than ** 3
        parts.append(cubes.sum(0, dtype=torch.float64))
    return torch.cat(parts)


# --- Precision and recall -------------------------------------------------------------


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
    bootstrap of the hits would give).  se of recall: jackknife that leaves out one of ten
    random groups of samples at a time and recomputes the radii; a bootstrap cannot serve,
    since a sample drawn twice has a neighbour at distance 0.  That se errs upwards by about a
    quarter (a jackknife's bias; Efron & Stein 1981) and, from ten groups, varies by as much.

    Raises ValueError unless both sets have more than k points of the same size.
    """
    _check_sizes(features.shape[1], reference_features.shape[1])
    if type(k) is not int or k < 1:
        raise ValueError(f"precision and recall need an integer k of at least 1, got {k!r}")
    check_neighbours(len(features), k)
    check_neighbours(len(reference_features), k, "reference images")
    groups = _groups(len(features), JACKKNIFE_GROUPS, np.random.default_rng(0))
    order = np.empty(len(features), np.int64)
    for g, rows in enumerate(groups):
        order[g :: len(groups)] = rows  # point i is now in group i mod G
    x, y = (torch.from_numpy(z).to(device) for z in (features[order], reference_features))
    hits, recalled = covered(x, y, k, len(groups))
    return _proportion(hits.cpu().numpy()), _jackknife(recalled.double().mean(dim=1).cpu().numpy())


def _jackknife(values: Array) -> Score:
    """From [all, without group 1, ..., without group G]: delete-a-group jackknife."""
    left_out = values[1:]
    g = len(left_out)
    return Score(float(values[0]), float(np.sqrt((g - 1) * left_out.var())))


# --- Label agreement ------------------------------------------------------------------


def label_agreement(logits: Floats, labels: NDArray[np.int64]) -> Score:
    """Share of samples that the classifier sees as the class they were made for; binomial se.

    logits [N, K], labels [N] in 0..K-1.  Raises ValueError when their lengths differ.
    """
    if labels.shape != (len(logits),):
        raise ValueError(f"{len(logits)} samples but labels of shape {labels.shape}")
    if labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {labels.max()}, and the classifier knows {logits.shape[1]} classes: these "
            "are labels of something else, evaluate with labels=off"
        )
    return _proportion(logits.argmax(axis=1) == labels)


def _proportion(hits: NDArray[np.bool_]) -> Score:
    """Share of hits with the binomial standard error.

    Two hits and two misses are added for the error alone (Agresti & Coull 1998): otherwise
    N hits out of N would claim certainty.
    """
    n = len(hits) + 4
    p = (hits.sum() + 2) / n
    return Score(float(hits.mean()), float(np.sqrt(p * (1 - p) / n)))


# --- CLIP score -----------------------------------------------------------------------


def clip_score(images: Floats, texts: Floats) -> Score:
    """Mean of max(100 cos(image, its text), 0) (Hessel et al. 2021, there with 2.5 for 100).

    Features [N, F] of N images and of their prompts, each of length 1.  se: the spread of the
    samples over the square root of N.  Raises ValueError unless there are as many of both.
    """
    if images.shape != texts.shape:
        raise ValueError(f"{len(images)} images but {len(texts)} prompts")
    cosines = (images.astype(np.float64) * texts).sum(axis=1)
    values = np.maximum(100 * cosines, 0)
    return Score(float(values.mean()), _std(values) / float(np.sqrt(len(values))))


# --- Resampling and blocks ------------------------------------------------------------


def _resamples(
    n: int, times: int, seed: int, strata: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """How often each of n rows is drawn when n are drawn with replacement; [n], `times` times.

    With strata, each stratum is resampled by itself and keeps its size.
    """
    rng = np.random.default_rng(seed)
    strata = np.zeros(n, np.int64) if strata is None else strata
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    for _ in range(times):
        counts = np.empty(n, np.int64)
        for rows in members:
            counts[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        yield counts


def _groups(
    n: int, groups: int, rng: np.random.Generator, strata: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """0..n-1 in random groups of nearly equal size: files may be sorted by class.

    With strata, groups are as many as the smallest stratum has rows at most, and each has
    nearly the same share of every stratum.
    """
    order = rng.permutation(n)
    if strata is not None:
        shuffled = strata[order]
        rank = np.empty(n, np.int64)  # of a row within its stratum
        for stratum in np.unique(strata):
            rows = np.flatnonzero(shuffled == stratum)
            rank[rows] = np.arange(len(rows))
        order = order[np.argsort(rank, kind="stable")]
        groups = min(groups, int(np.unique(strata, return_counts=True)[1].min()))
    return np.array_split(order, min(groups, n))


def _std(values: Sequence[float] | Array) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _blocks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))
