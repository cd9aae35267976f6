"""All metrics by name, and the scores of a set of samples.

A new metric is a function that returns a `Score` and an entry of `METRICS`: what prints, draws, tunes
or compares scores knows it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.agreement import clip_score, label_agreement
from eval.enough import check_fid_size, check_kid_size, check_neighbours, check_splits
from eval.extractors import Extracted
from eval.frechet import Statistics, diagonal_fid, fid, fid_infinity
from eval.inception import inception_score, is_infinity
from eval.infinity import Subsets, check_infinity_size
from eval.kernel import kid
from eval.manifold import Prdc, prdc
from eval.reference import Reference
from eval.score import Floats, Score, blocks

COMPARES = (
    "compares with real images: give a reference (reference=custom reference.images.path=DIR)"
)
USUAL = ("is", "fid", "kid", "precision", "recall")
NEIGHBOURS = ("precision", "recall", "density", "coverage")


def _integer(default: int | None, least: int) -> Any:
    return field(default=default, metadata={"least": least})


def _choice(default: str | bool, *choices: str | bool) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class Options:
    """metrics.options of configs/metrics/*.yaml: what the metrics' own parameters are set to."""

    k: int = _integer(3, least=1)  # neighbours for precision, recall, density and coverage
    ties: str = _choice("in", "in", "out")  # of precision and recall; out: prdc's and dgm-eval's
    prdc_size: int | None = _integer(None, least=2)  # use so many of both sets at most
    kid_subset_size: int = _integer(1000, least=2)
    is_splits: int = _integer(1, least=1)
    is_chunk_size: int | None = _integer(None, least=1)
    is_shuffle_seed: int | None = _integer(None, least=0)
    bootstrap: int = _integer(100, least=0)  # resampled sets for the standard errors
    seed: int = _integer(0, least=0)
    fid_se: str = _choice("bootstrap", "bootstrap", "delta")
    infinity_shuffles: int = _integer(8, least=2)
    allow_few: bool = _choice(False, True, False)

    def __post_init__(self) -> None:
        """Raises ValueError for a bad value, with what may be chosen."""
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            least, choices = (option.metadata.get(key) for key in ("least", "choices"))
            if value is None and option.default is None:
                continue
            if choices and value not in choices:
                words = " or ".join(str(choice).lower() for choice in choices)
                raise ValueError(f"metrics.options.{name} must be {words}, got {value!r}")
            if least is not None and (type(value) is not int or value < least):
                raise ValueError(
                    f"metrics.options.{name} must be an integer of at least {least}, got {value!r}"
                )

    @staticmethod
    def of(mapping: Mapping[str, Any]) -> Options:
        """Raises ValueError for an unknown option or a bad value, with what may be chosen."""
        known = [option.name for option in fields(Options)]
        if unknown := [name for name in mapping if name not in known]:
            raise ValueError(
                f"unknown metrics.options.{unknown[0]}: choose among {', '.join(known)}"
            )
        return Options(**mapping)


DEFAULTS = Options()


class _Lacking(Exception):
    """What a metric needs is not there."""


@dataclass(frozen=True, eq=False)
class Material:
    """What metrics are computed from, with which options, and on which device."""

    samples: Extracted
    reference: Reference | None
    labels: NDArray[np.int64] | None
    strata: NDArray[np.int64] | None
    options: Options
    device: str

    @property
    def real(self) -> Reference:
        if self.reference is None:
            raise _Lacking(COMPARES)
        return self.reference

    def needed(self, part: Any) -> Any:
        """A part of the samples' or the reference's features, which not every extractor gives."""
        if part is None:
            reference = "" if self.reference is None else f" {self.reference.name}"
            raise _Lacking(
                f"needs what the extractor or the reference{reference} lacks: use another metrics="
            )
        return part

    @property
    def resampling(self) -> dict[str, Any]:
        o = self.options
        return {"bootstrap": o.bootstrap, "seed": o.seed, "strata": self.strata}

    def frechet(self, features: Floats | None, reference: Statistics | None) -> Score:
        x, y, o = self.needed(features), self.needed(reference), self.options
        few, device = o.allow_few, self.device
        return fid(x, y, se=o.fid_se, allow_few=few, device=device, **self.resampling)

    @cached_property  # fid_infinity needs it, too
    def fid(self) -> Score:
        return self.frechet(self.samples.features, self.real.statistics)

    @property
    def subsets(self) -> Subsets:
        o = self.options
        return Subsets(o.infinity_shuffles, o.seed, self.strata)

    @cached_property  # one pass over all distances gives all four
    def prdc(self) -> Prdc:
        return self.strict if self.options.ties == "out" else self._prdc("in")

    @cached_property
    def strict(self) -> Prdc:
        """With no points at a ball's very radius in it, as density and coverage are defined."""
        return self._prdc("out")

    def _prdc(self, ties: str) -> Prdc:
        x, y, o = self.samples, self.real, self.options
        stated: dict[str, Any] = {"k": o.k, "at_most": o.prdc_size, "seed": o.seed}
        stated |= {"ties": ties, "strata": self.strata, "device": self.device}
        if x.manifold is None or y.manifold is None:
            return prdc(x.features, y.features, **stated)
        return prdc(x.manifold, y.manifold, **stated)


def _inception_score(m: Material) -> Score:
    o = m.options
    return inception_score(
        m.needed(m.samples.logits),
        splits=o.is_splits,
        chunk_size=o.is_chunk_size,
        shuffle_seed=o.is_shuffle_seed,
        strata=m.strata,
    )


def _diagonal_fid(m: Material) -> Score:
    return diagonal_fid(m.samples.features, m.real.statistics, m.strata)


def _fid_infinity(m: Material) -> Score:
    x, y, few = m.samples.features, m.real.statistics, m.options.allow_few
    return fid_infinity(x, y, m.fid, subsets=m.subsets, allow_few=few, device=m.device)


def _is_infinity(m: Material) -> Score:
    logits = m.needed(m.samples.logits)
    return is_infinity(logits, subsets=m.subsets, allow_few=m.options.allow_few)


def _kid(m: Material) -> Score:
    x, y, size = m.samples.features, m.real.features, m.options.kid_subset_size
    return kid(x, y, subset_size=size, device=m.device, **m.resampling)


def _label_agreement(m: Material) -> Score:
    return label_agreement(m.needed(m.samples.logits), m.needed(m.labels))


def _clip_score(m: Material) -> Score:
    return clip_score(m.samples.features, m.needed(m.samples.text))


@dataclass(frozen=True)
class Metric:
    """How a score is printed and made; `compute` is None where it is not made from features.

    `compares`: with real images.
    """

    title: str
    lower_is_better: bool
    decimals: int
    compute: Callable[[Material], Score] | None
    compares: bool = False


# In the order in which they are printed.
METRICS: dict[str, Metric] = {
    "is": Metric("IS", False, 2, _inception_score),
    "is_infinity": Metric("IS-infinity", False, 2, _is_infinity),
    "fid": Metric("FID", True, 2, lambda m: m.fid, True),
    "fid_infinity": Metric("FID-infinity", True, 2, _fid_infinity, True),
    "sfid": Metric("sFID", True, 2, lambda m: m.frechet(m.samples.spatial, m.real.spatial), True),
    "diagonal_fid": Metric("Diagonal FID", True, 2, _diagonal_fid, True),
    "kid": Metric("KID", True, 4, _kid, True),
    "precision": Metric("Precision", False, 3, lambda m: m.prdc.precision, True),
    "recall": Metric("Recall", False, 3, lambda m: m.prdc.recall, True),
    "density": Metric("Density", False, 3, lambda m: m.strict.density, True),
    "coverage": Metric("Coverage", False, 3, lambda m: m.strict.coverage, True),
    "label_agreement": Metric("Label agreement", False, 3, _label_agreement),
    "clip_score": Metric("CLIP score", False, 2, _clip_score),
    # VBench's, computed by itself from videos (eval/vbench.py)
    "total": Metric("Total score", False, 2, None),
    "quality": Metric("Quality score", False, 2, None),
    "semantic": Metric("Semantic score", False, 2, None),
}


def check_metrics(metrics: Sequence[str]) -> Sequence[str]:
    """The names unchanged; ValueError with those that can be computed if one cannot."""
    computed = [name for name, metric in METRICS.items() if metric.compute]
    if unknown := sorted(set(metrics) - set(computed)):
        raise ValueError(f"unknown metric {', '.join(unknown)}: choose among {', '.join(computed)}")
    return metrics


def check_compared(metrics: Sequence[str]) -> None:
    """Raise ValueError if one of the metrics compares with real images, of which there are none."""
    if name := next((name for name in metrics if METRICS[name].compares), None):
        raise ValueError(f"{name} {COMPARES}, or leave {name} out of metrics.scores")


def check_size(
    metrics: Sequence[str], n: int, sizes: tuple[int, int | None], options: Options
) -> None:
    """Raise ValueError if n samples are too few for the metrics, before they are made.

    `sizes` are the numbers of the extractor's features and, if these are known, logits.
    """
    num_features, num_logits = sizes
    if n < 2:
        raise ValueError(f"scores and their errors need at least 2 samples, got {n}: sample more")
    if not options.allow_few:
        if {"fid", "fid_infinity"} & set(metrics):
            check_fid_size(n, num_features)
        if "fid_infinity" in metrics:
            check_infinity_size("fid_infinity", n, num_features)
        if "is_infinity" in metrics and num_logits:
            check_infinity_size("is_infinity", n, num_logits, "classes")
    if "kid" in metrics:
        check_kid_size(n, options.kid_subset_size)
    if set(NEIGHBOURS) & set(metrics):
        check_neighbours(n, options.k)
    if "is" in metrics:
        check_splits(n, options.is_splits, options.is_chunk_size)


def check_finite(extracted: Extracted) -> None:
    """Raise ValueError for features that are no numbers: shares of neighbours would be 0 without a word."""
    for part in extracted:
        if part is not None and not all(
            np.isfinite(part[rows]).all() for rows in blocks(len(part))
        ):
            raise ValueError(
                "features contain NaN or infinity: the samples or extractor are broken"
            )


def evaluate(
    extracted: Extracted,
    reference: Reference | None,
    labels: NDArray[np.int64] | None = None,
    metrics: Sequence[str] = USUAL,
    strata: NDArray[np.int64] | None = None,
    options: Options = DEFAULTS,
    device: str = "cpu",
) -> dict[str, Score]:
    """The scores asked for, by name and in the order asked for.

    With `labels` [N], `label_agreement` is always among them.  `strata` [N] are the labels of
    samples whose class counts were fixed by design rather than drawn: their standard errors
    then leave the class counts fixed, too.  The torch `device` changes the last bits at most.

    Raises ValueError for an unknown metric, for one whose features the extractor does not give or
    that needs a reference where there is none, for label agreement without labels, for features or
    scores that are no finite numbers, and as each metric does.
    """
    check_metrics(metrics)
    check_finite(extracted)
    if labels is None and "label_agreement" in metrics:
        raise ValueError("label_agreement needs the labels that the samples were made for")
    names = list(dict.fromkeys([*metrics, *(() if labels is None else ("label_agreement",))]))
    material = Material(extracted, reference, labels, strata, options, device)
    return {name: _computed(name, material) for name in names}


def _computed(name: str, material: Material) -> Score:
    compute = METRICS[name].compute
    assert compute is not None
    try:
        found = compute(material)
    except _Lacking as error:
        raise ValueError(f"{name} {error}, or leave {name} out of metrics.scores") from None
    if not np.isfinite(found.value):
        raise ValueError(
            f"{name} is {found.value} of features as large as these: leave {name} out of metrics.scores"
        )
    return found


def real_floor(
    real: Extracted,
    reference: Reference,
    n: int,
    labels: NDArray[np.int64] | None = None,
    metrics: Sequence[str] = USUAL,
    options: Options = DEFAULTS,
    device: str = "cpu",
) -> dict[str, Score]:
    """What a perfect sampler would score with n samples: n real images in place of samples.

    `real` holds images that are not in the reference; n of them are drawn without
    replacement.  With their `labels` the draw is balanced over classes, to go with balanced
    samples.  Raises ValueError if there are too few.
    """
    rng = np.random.default_rng(options.seed)
    pool = np.zeros(len(real.features), np.int64) if labels is None else labels
    classes = np.unique(pool)
    rows = np.empty(0, np.int64)
    for i, label in enumerate(classes):
        members, wanted = np.flatnonzero(pool == label), len(range(i, n, len(classes)))
        if wanted > len(members):
            raise ValueError(
                f"a floor with {n} samples needs {wanted} real images of a kind, got {len(members)}"
            )
        rows = np.concatenate([rows, rng.choice(members, wanted, replace=False)])
    drawn = Extracted._make(None if part is None else part[rows] for part in real)
    strata = None if labels is None else labels[rows]
    stated: dict[str, Any] = {"metrics": metrics, "options": options, "device": device}
    return evaluate(drawn, reference, strata=strata, **stated)
