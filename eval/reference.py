"""Reference sets: what samples are compared with, in one content-addressed file each."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.extractors import Extracted, Extractor, Images
from eval.files import write_atomic
from eval.metrics import Score, Statistics, evaluate, statistics


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """Features [n, F] and logits [n, K] of real images, with their Gaussian `statistics`.

    The features are kept because KID, precision and recall need them; the statistics are
    stored beside them because they may describe a larger set (as guided-diffusion's do).
    `extractor` and `weights` are the extractor's name and the digest of its weights.
    """

    name: str
    extractor: str
    weights: str
    statistics: Statistics
    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    @property
    def n(self) -> int:
        """Number of images behind `features`."""
        return len(self.features)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the arrays, the extractor's name and its weights; not over `name`."""
        digest = hashlib.sha256(f"{self.extractor} {self.weights}".encode())
        for key, array in self._arrays().items():
            digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Reference({self.name}, {self.extractor}, n={self.n}, {self.digest[:12]})"

    def save(self, folder: Path) -> Path:
        """Write `<name>-<extractor>-<digest>.npz` whole, through a temporary name."""
        path = folder / f"{self.name}-{self.extractor}-{self.digest[:12]}.npz"
        texts = {"name": self.name, "extractor": self.extractor, "weights": self.weights}
        arrays: dict[str, Any] = {"digest": self.digest, **texts, **self._arrays()}
        write_atomic(path, lambda p: np.savez(p, allow_pickle=False, **arrays))
        return path

    @staticmethod
    def load(path: Path) -> Reference:
        """Read a file of `save`.  Raises ValueError if its content is not what was written."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            reference = _from_arrays(arrays)
            intact = reference.digest == arrays["digest"].item()
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError):
            intact = False
        if not intact:
            raise ValueError(f"{path} is damaged: delete it and build the reference again")
        return reference

    def _arrays(self) -> dict[str, NDArray[Any]]:
        s = self.statistics
        return {
            "features": self.features,
            "logits": self.logits,
            "mean": s.mean,
            "cov": s.cov,
            "statistics_n": np.array(s.n, dtype=np.int64),
        }

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"reference name {self.name!r} must do as part of a file name")


def build_reference(name: str, images: Images, extractor: Extractor) -> Reference:
    """The reference made of images uint8 [N, H, W, C].  Raises ValueError as the extractor."""
    features, logits = extractor(images)
    return Reference(name, extractor.name, extractor.digest, statistics(features), features, logits)


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
    drawn = Extracted(real.features[rows], real.logits[rows])
    strata = None if labels is None else labels[rows]
    return evaluate(drawn, reference, metrics=metrics, seed=seed, strata=strata, **options)


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Reference:
    return Reference(
        name=arrays["name"].item(),
        extractor=arrays["extractor"].item(),
        weights=arrays["weights"].item(),
        statistics=Statistics(arrays["mean"], arrays["cov"], int(arrays["statistics_n"])),
        features=arrays["features"],
        logits=arrays["logits"],
    )
