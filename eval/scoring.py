"""All metrics by name, and the scores of a set of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.extractors import Extracted
from eval.metrics import (
    Score,
    clip_score,
    diagonal_fid,
    fid,
    inception_score,
    kid,
    label_agreement,
    precision_recall,
)
from eval.reference import Reference

METRIC_NAMES = {
    "is": "IS",
    "fid": "FID",
    "sfid": "sFID",
    "diagonal_fid": "Diagonal FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "label_agreement": "Label agreement",
    "clip_score": "CLIP score",
    "total": "Total score",
    "quality": "Quality score",
    "semantic": "Semantic score",
}


LOWER_IS_BETTER = ("fid", "sfid", "diagonal_fid", "kid")


DIGITS = {
    "is": 2,
    "fid": 2,
    "sfid": 2,
    "diagonal_fid": 2,
    "kid": 4,
    "clip_score": 2,
    "total": 2,
    "quality": 2,
    "semantic": 2,
}  # decimals shown; 3 for the others


METRICS = (
    "is",
    "fid",
    "sfid",
    "diagonal_fid",
    "kid",
    "precision",
    "recall",
    "label_agreement",
    "clip_score",
)


def check_metrics(metrics: Sequence[str]) -> Sequence[str]:
    """The names unchanged; ValueError with the known ones if any is unknown."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}: choose among {', '.join(METRICS)}")
    return metrics


def evaluate(
    extracted: Extracted,
    reference: Reference | None,
    labels: NDArray[np.int64] | None = None,
    metrics: Sequence[str] = ("is", "fid", "kid", "precision", "recall"),
    *,
    k: int = 3,
    kid_subset_size: int = 1000,
    is_splits: int = 1,
    is_chunk_size: int | None = None,
    is_shuffle_seed: int | None = None,
    fid_se: str = "bootstrap",
    allow_few: bool = False,
    bootstrap: int = 100,
    seed: int = 0,
    strata: NDArray[np.int64] | None = None,
) -> dict[str, Score]:
    """The scores asked for, by name and in the order asked for.

    With `labels` [N], `label_agreement` is always among them.  `strata` [N] are the labels of
    samples whose class counts were fixed by design rather than drawn: their standard errors
    then leave the class counts fixed, too.  The other options are those of the metrics.

    Raises ValueError for an unknown metric, for one whose features the extractor does not give or
    that needs a reference where there is none, for label agreement without labels, and as each
    metric does.
    """
    check_metrics(metrics)
    if labels is None and "label_agreement" in metrics:
        raise ValueError("label_agreement needs the labels that the samples were made for")
    names = list(dict.fromkeys([*metrics, *(() if labels is None else ("label_agreement",))]))
    x = extracted
    resampling: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "strata": strata}
    frechet: dict[str, Any] = {"se": fid_se, "allow_few": allow_few, **resampling}

    def real(metric: str) -> Reference:
        if reference is None:
            raise ValueError(
                f"{metric} compares with real images: give a reference, or leave {metric} out of "
                "metrics.scores"
            )
        return reference

    @cache
    def both() -> tuple[Score, Score]:
        y = real("precision")
        if x.manifold is None or y.manifold is None:
            return precision_recall(x.features, y.features, k=k)
        return precision_recall(x.manifold, y.manifold, k=k)

    def given(value: Any, metric: str) -> Any:
        if value is None:
            raise ValueError(
                f"{metric} needs what the extractor or the reference{'' if reference is None else ' ' + reference.name} "
                f"lacks: leave {metric} out of metrics.scores or use another metrics="
            )
        return value

    compute: dict[str, Callable[[], Score]] = {
        "is": lambda: inception_score(
            given(x.logits, "is"),
            splits=is_splits,
            chunk_size=is_chunk_size,
            shuffle_seed=is_shuffle_seed,
            **resampling,
        ),
        "fid": lambda: fid(x.features, real("fid").statistics, **frechet),
        "sfid": lambda: fid(
            given(x.spatial, "sfid"), given(real("sfid").spatial, "sfid"), **frechet
        ),
        "diagonal_fid": lambda: diagonal_fid(x.features, real("diagonal_fid").statistics, strata),
        "kid": lambda: kid(
            x.features, real("kid").features, subset_size=kid_subset_size, **resampling
        ),
        "precision": lambda: both()[0],
        "recall": lambda: both()[1],
        "label_agreement": lambda: label_agreement(
            given(x.logits, "label_agreement"), given(labels, "label_agreement")
        ),
        "clip_score": lambda: clip_score(x.features, given(x.text, "clip_score")),
    }
    return {name: compute[name]() for name in names}


def real_floor(
    real: Extracted,
    reference: Reference,
    n: int,
    metrics: Sequence[str] = ("is", "fid", "kid", "precision", "recall"),
    seed: int = 0,
    labels: NDArray[np.int64] | None = None,
    **options: Any,
) -> dict[str, Score]:
    """What a perfect sampler would score with n samples: n real images in place of samples.

    `real` holds images that are not in the reference; n of them are drawn without
    replacement.  With their `labels` the draw is balanced over classes, to go with balanced
    samples.  `options` go to `evaluate`.  Raises ValueError if there are too few.
    """
    rng = np.random.default_rng(seed)
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
    return evaluate(drawn, reference, metrics=metrics, seed=seed, strata=strata, **options)
