"""A score, its standard error, and how it moves with its samples: so that differences are paired.

Samplers that share their noise make samples that resemble each other pair by pair, and their scores
err together.  The error of a *difference* is then far smaller than two independent errors make it.
A `Spread` keeps what that takes: each part of it belongs to the same samples, or the same resamples,
in every set of N samples, so that the spread of a difference is the difference of the spreads.

Let a score of n samples be theta + L + Q, where L sums an influence g(x_i) of each sample and Q one
of each pair (Hoeffding's decomposition; what is of higher order is left out), with variances V1 and
V2.  The influences that are computed from the samples themselves hold half of Q's derivative, too:
their sum of squares is V1 + 2 V2 on average (as a jackknife's; Efron & Stein 1981), and the variance
over a bootstrap is V1 + 3 V2.  The part of the bootstrap beyond first order has V2, so that
influences less that part estimate V1 + V2, the true variance, also near a perfect score, where V1
vanishes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 or float64
Array = NDArray[np.float64]

BLOCK = 4096  # rows converted to float64 at a time
PIECES = 1000  # sums of influences that a spread keeps: their squares err by 1/sqrt(2 PIECES) in se


def _none() -> Array:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Spread:
    """How a score moves with its samples, in its own units.

    `first`: influences of samples (or of groups of them), or with `quarters` the differences of
    half-samples.  `second`: what resamples add beyond first order.  `quarters`: differences of
    quarter-samples (see `subsampled`).  `own` is a variance that no other score shares.  `draws` names
    the noise and labels that the samples were made from; scores of equal `draws` are paired.
    """

    first: Array
    second: Array = field(default_factory=_none)
    quarters: Array = field(default_factory=_none)
    own: float = 0.0
    draws: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spread) and all(
            np.array_equal(getattr(self, part.name), getattr(other, part.name), equal_nan=False)
            for part in fields(Spread)
        )

    __hash__ = None  # type: ignore[assignment]  # as of anything that holds arrays

    @property
    def variance(self) -> float:
        """The score's variance over sets of as many samples."""
        first = float(self.first @ self.first)
        if len(self.quarters):
            quarters = float(self.quarters @ self.quarters)
            # Variances fall with the number of samples by a power that the subsamples tell.
            falls = np.clip(first / quarters, 0.5, 2) if quarters else 0.5
            return first * float(falls) + self.own
        second = float(self.second.var(ddof=1)) if len(self.second) > 1 else 0.0
        return max(first - second, first / 2) + self.own  # V1 + V2 is half of V1 + 2 V2 or more

    def pairs_with(self, other: Spread) -> bool:
        """Whether both are of samples from the same noise, in the same parts."""
        if self.draws is None or self.draws != other.draws:
            return False
        parts = [(s.first.shape, s.second.shape, s.quarters.shape) for s in (self, other)]
        return parts[0] == parts[1]

    def minus(self, other: Spread) -> Spread:
        """That of the difference of two scores that are paired."""
        return replace(
            self,
            first=self.first - other.first,
            second=self.second - other.second,
            quarters=self.quarters - other.quarters,
            own=self.own + other.own,
        )

    def stored(self) -> dict[str, Any]:
        """For JSON: arrays as `_packed`, to three digits; `draws` is known from the record."""
        arrays = {"first": self.first, "second": self.second, "quarters": self.quarters}
        packed = {name: _packed(array) for name, array in arrays.items() if len(array)}
        return {**packed, "own": self.own}

    @staticmethod
    def of(stored: Mapping[str, Any], draws: str | None) -> Spread:
        """From `stored`.  Raises KeyError, TypeError or ValueError for anything else."""
        arrays = {
            name: _unpacked(stored[name]) if name in stored else _none()
            for name in ("first", "second", "quarters")
        }
        own = stored["own"]
        if type(own) not in (int, float) or not 0 <= own < np.inf:
            raise ValueError("a spread's own variance is no number of at least 0")
        return Spread(**arrays, own=float(own), draws=draws)


class Score(NamedTuple):
    """A value and its standard error; the 95% interval is value +- half."""

    value: float
    se: float
    spread: Spread | None = None

    @property
    def half(self) -> float:
        """Half the width of the 95% interval: 1.96 standard errors."""
        return 1.96 * self.se

    def stored(self) -> dict[str, Any]:
        """For JSON."""
        spread = {} if self.spread is None else {"spread": self.spread.stored()}
        return {"value": self.value, "se": self.se, **spread}

    @staticmethod
    def of(stored: Mapping[str, Any], draws: str | None = None) -> Score:
        """From `stored`.  Raises KeyError, TypeError or ValueError for anything else."""
        spread = Spread.of(stored["spread"], draws) if stored.get("spread") else None
        return Score(stored["value"], stored["se"], spread)


def spread_score(value: float, spread: Spread) -> Score:
    """A score whose standard error is its spread's; both then keep no more than PIECES numbers."""
    se = float(np.sqrt(spread.variance))
    return Score(float(value), se, replace(spread, first=_pieces(spread.first)))


def paired(a: Score, b: Score) -> bool:
    """Whether the error of a - b is known from what both share."""
    return a.spread is not None and b.spread is not None and a.spread.pairs_with(b.spread)


def difference_se(a: Score, b: Score) -> float:
    """Standard error of a - b: of paired scores by what they share, else as if independent."""
    if a.spread is not None and b.spread is not None and a.spread.pairs_with(b.spread):
        return float(np.sqrt(a.spread.minus(b.spread).variance))
    return float(np.hypot(a.se, b.se))


# --- Spreads ----------------------------------------------------------------------------


def influences(values: Array, strata: NDArray[np.int64] | None = None) -> Array:
    """[N]: what each sample adds to a score, of the derivatives `values` [N] by its weight times N.

    Their squares sum to the variance of the score.  With strata, whose sizes were fixed by design,
    each sample is compared with its own stratum.
    """
    n = len(values)
    groups = np.zeros(n, np.int64) if strata is None else shared_strata(strata)
    parts = np.empty(n)
    for group in np.unique(groups):
        rows = groups == group
        size = int(rows.sum())
        correction = np.sqrt(size / max(size - 1, 1))
        parts[rows] = (values[rows] - values[rows].mean()) * correction / n
    return parts


def proportion(hits: NDArray[np.bool_]) -> Score:
    """Share of hits with the binomial standard error.

    Two hits and two misses are added for the error alone (Agresti & Coull 1998): otherwise
    N hits out of N would claim certainty.
    """
    first = influences(hits.astype(np.float64))
    n = len(hits) + 4
    p = (hits.sum() + 2) / n
    variance = float(p * (1 - p) / n)
    own = max(variance - float(first @ first), 0.0)
    return spread_score(hits.mean(), Spread(first, own=own))._replace(se=variance**0.5)


def _pieces(first: Array) -> Array:
    """At most PIECES sums of influences: those of random groups, the same for every set of N."""
    if len(first) <= PIECES:
        return first
    rows = random_groups(len(first), PIECES, np.random.default_rng(0))
    return np.array([first[group].sum() for group in rows])


def _packed(array: Array) -> str:
    """Base64 of the largest magnitude (float32) and the shares of it (float16), little-endian."""
    largest = np.float32(np.abs(array).max())
    shares = array / (float(largest) or 1.0)
    return base64.b64encode(
        largest.astype("<f4").tobytes() + shares.astype("<f2").tobytes()
    ).decode()


def _unpacked(text: str) -> Array:
    content = base64.b64decode(text, validate=True)
    largest = np.frombuffer(content[:4], "<f4").astype(np.float64)
    if len(largest) != 1:
        raise ValueError("a spread is cut off")
    array = np.frombuffer(content[4:], "<f2").astype(np.float64) * largest[0]
    if not np.isfinite(array).all() or not np.isfinite(largest[0]):
        raise ValueError("a spread holds what is no number")
    return array


# --- Resampling and blocks ------------------------------------------------------------


def shared_strata(strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """The strata [N] as integers, where those of a single member are one.

    One member says nothing of how its stratum varies, and would be taken for certain.  Together they
    vary more than each (Cochran 1977, section 5A.12: collapsed strata), so that errors are too large, if
    anything.
    """
    _, of, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    return np.where(sizes[of] == 1, len(sizes), of)


def resamples(
    n: int, times: int, seed: int, strata: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.int64]]:
    """How often each of n rows is drawn when n are drawn with replacement; [n], `times` times.

    With strata, each stratum is resampled by itself and keeps its size.
    """
    rng = np.random.default_rng(seed)
    strata = np.zeros(n, np.int64) if strata is None else shared_strata(strata)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    for _ in range(times):
        counts = np.empty(n, np.int64)
        for rows in members:
            counts[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        yield counts


def random_groups(
    n: int, groups: int, rng: np.random.Generator, strata: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """0..n-1 in random groups of nearly equal size: files may be sorted by class.

    With strata, groups are as many as the smallest stratum has rows at most, and each has
    nearly the same share of every stratum.
    """
    if strata is not None:
        strata = shared_strata(strata)
        groups = min(groups, int(np.unique(strata, return_counts=True)[1].min()))
    order = shuffled(n, rng, strata)
    return np.array_split(order, min(groups, n))


def shuffled(
    n: int, rng: np.random.Generator, strata: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """0..n-1 in random order; with strata (of nearly equal sizes), the first so many have as many of each."""
    order = rng.permutation(n)
    if strata is None:
        return order
    mixed = strata[order]
    rank = np.empty(n, np.int64)  # of a row within its stratum
    for stratum in np.unique(strata):
        rows = np.flatnonzero(mixed == stratum)
        rank[rows] = np.arange(len(rows))
    return order[np.argsort(rank, kind="stable")]


def deviation(values: Sequence[float] | Array) -> float:
    """The standard deviation (divisor n - 1); NaN of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def blocks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))


def check_sizes(samples: int, reference: int) -> None:
    """Raise ValueError unless samples and reference have features of one size."""
    if samples != reference:
        raise ValueError(
            f"the reference has {reference} features, the samples {samples}: "
            "use the reference made with the same extractor"
        )
