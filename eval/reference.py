"""Reference sets: what samples are compared with, in one content-addressed file each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.features import Extractor, Images
from eval.frechet import Statistics, statistics
from files.npz import read_npz
from files.whole import reading, write_atomic

TEXTS = ("name", "extractor", "weights", "source", "size")  # what a file says besides its arrays


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """Features [n, F] and logits [n, K] of real images, with their Gaussian `statistics`.

    The features are kept because KID, precision and recall need them; the statistics are
    stored beside them because they may describe a larger set (as guided-diffusion's do).
    `spatial` are the statistics for sFID, `manifold` the features for precision and recall where
    an extractor has them; `labels` int64 [n] are the images', where these are to be drawn from by
    class (a floor).  `extractor` and `weights` are the extractor's name and the digest of
    its weights; `source` is the SHA-256 of the file that the images came in, if it was one; `size`
    is that of the images, "256 x 256" (width x height), empty in files that did not yet say it.
    """

    name: str
    extractor: str
    weights: str
    statistics: Statistics
    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    spatial: Statistics | None = None
    manifold: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    source: str = ""
    size: str = ""

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

    def path(self, folder: Path) -> Path:
        """Where `save` puts it."""
        return folder / f"{self.name}-{self.extractor}-{self.digest[:12]}.npz"

    def save(self, folder: Path) -> Path:
        """Write `<name>-<extractor>-<digest>.npz` whole, through a temporary name."""
        path = self.path(folder)
        texts = {key: getattr(self, key) for key in TEXTS}
        arrays: dict[str, Any] = {"digest": self.digest, **texts, **self._arrays()}
        write_atomic(path, lambda p: np.savez(p, allow_pickle=False, **arrays))
        return path

    @staticmethod
    def load(path: Path) -> Reference:
        """Read a file of `save`.  Raises `Damaged` if its content is not what was written."""
        remedy = "delete it and build the reference again"
        arrays = read_npz(path, remedy=remedy)
        with reading(path, remedy):
            reference = _from_arrays(arrays)
            if reference.digest != arrays["digest"].item():
                raise ValueError("its digest is another")
        return reference

    def _arrays(self) -> dict[str, NDArray[Any]]:
        s, spatial = self.statistics, self.spatial
        arrays: dict[str, NDArray[Any] | None] = {
            "features": self.features,
            "logits": self.logits,
            "mean": s.mean,
            "cov": s.cov,
            "statistics_n": np.array(s.n, dtype=np.int64),
            "manifold": self.manifold,
            "labels": self.labels,
            "spatial_mean": None if spatial is None else spatial.mean,
            "spatial_cov": None if spatial is None else spatial.cov,
        }
        return {key: array for key, array in arrays.items() if array is not None}

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"reference name {self.name!r} must do as part of a file name")


def build_reference(
    name: str,
    images: Images,
    extractor: Extractor,
    *,
    published: PublishedStatistics | None = None,
    labels: NDArray[np.int64] | None = None,
    source: str = "",
) -> Reference:
    """The reference made of images uint8 [N, H, W, C].  Raises ValueError as the extractor.

    `published` statistics, if given, take the place of those of the images.
    """
    seen = extractor(images)
    spatial = None if seen.spatial is None else statistics(seen.spatial)
    whole = published or PublishedStatistics(statistics(seen.features), spatial)
    return Reference(
        name,
        extractor.name,
        extractor.digest,
        whole.features,
        seen.features,
        seen.logits,
        spatial=whole.spatial,
        manifold=seen.manifold,
        labels=labels,
        source=source,
        size=size_words(images.shape),
    )


def size_words(shape: Sequence[int]) -> str:
    """ "64 x 48": width and height of images [N, H, W, C]."""
    return f"{shape[2]} x {shape[1]}"


class PublishedStatistics(NamedTuple):
    """Statistics of pool features, and of the spatial ones for sFID."""

    features: Statistics
    spatial: Statistics | None


def read_adm_statistics(path: Path, n: int) -> PublishedStatistics:
    """mu, sigma, mu_s, sigma_s of one of guided-diffusion's reference batches.

    They are over the whole data set of n images, of which the file holds 10,000.  Raises
    ValueError, with the remedy, if the file has none or is damaged.
    """
    keys = ("mu", "sigma", "mu_s", "sigma_s")
    remedy = "download it again"
    arrays = read_npz(path, keys, remedy)
    with reading(path, remedy):
        arrays = {key: array.astype(np.float64) for key, array in arrays.items()}
    if absent := [key for key in keys if key not in arrays]:
        raise ValueError(
            f"{path} has no {', '.join(absent)}: the published reference batches hold "
            "statistics of the whole data set, and scores against its images alone are "
            "other scores; fetch the published file, or use reference=custom for yours"
        )
    return PublishedStatistics(
        Statistics(arrays["mu"], arrays["sigma"], n),
        Statistics(arrays["mu_s"], arrays["sigma_s"], n),
    )


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Reference:
    n = int(arrays["statistics_n"])
    spatial = None
    if "spatial_mean" in arrays:
        spatial = Statistics(arrays["spatial_mean"], arrays["spatial_cov"], n)
    return Reference(
        **{key: arrays[key].item() if key in arrays else "" for key in TEXTS},
        statistics=Statistics(arrays["mean"], arrays["cov"], n),
        features=arrays["features"],
        logits=arrays.get("logits"),
        spatial=spatial,
        manifold=arrays.get("manifold"),
        labels=arrays.get("labels"),
    )
