"""Reference sets: what samples are compared with, in one content-addressed file each.

The file is an .npz, which NumPy reads without unpickling (float32 features, float64 statistics):

    features [n, F]       of the real images; n is 0 where only statistics are known
    mean [F], cov [F, F]  of the features (divided by n - 1), or of the larger set of statistics_n images
    statistics_n          the number of images behind mean and cov
    logits [n, K], manifold [n, M], labels [n], spatial_mean [S], spatial_cov [S, S]   where there are any
    name, extractor       what it is called, and the extractor's name
    weights               SHA-256 of the extractor's weights and of what else features depend on
    source, size          SHA-256 of the file of images, if it was one; their size, "256 x 256"
    preprocess            how images are brought to that size, "bicubic 256"; absent if they had it
    digest                SHA-256 of extractor, weights and all arrays (`Reference.digest`)

`python -m scripts.reference` writes one, of images, dgm-eval's features or statistics mu and sigma.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.features import Extracted, Extractor, Images
from eval.frechet import Statistics, statistics
from files.npz import array_names, read_npz
from files.whole import reading, write_atomic

# What a file says besides its arrays.
TEXTS = ("name", "extractor", "weights", "source", "size", "preprocess")


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """Features [n, F] and logits [n, K] of real images, with their Gaussian `statistics`.

    The features are kept because KID, precision and recall need them; the statistics are
    stored beside them because they may describe a larger set (as guided-diffusion's do).
    `spatial` are the statistics for sFID, `manifold` the features for precision and recall where
    an extractor has them; `labels` int64 [n] are the images', where these are to be drawn from by
    class (a floor).  `extractor` and `weights` are the extractor's name and the digest of
    its weights; `source` is the SHA-256 of the file that the images came in, if it was one; `size`
    is that of the images, "256 x 256" (width x height), empty in files that did not yet say it;
    `preprocess` how they were brought to it, "bicubic 256", if they were.
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
    preprocess: str = ""

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
        self.write(path)
        return path

    def write(self, path: Path) -> None:
        """Write it under any name."""
        texts = {key: getattr(self, key) for key in TEXTS}
        if not self.preprocess:
            del texts["preprocess"]
        arrays: dict[str, Any] = {"digest": self.digest, **texts, **self._arrays()}
        write_atomic(path, lambda p: np.savez(p, allow_pickle=False, **arrays))

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
        check_name(self.name)


def check_name(name: str) -> None:
    """Raise ValueError for a name that a file's cannot have in it."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"reference name {name!r} must do as part of a file name: give one of letters, digits, _, . "
            "and -"
        )


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
    made = reference_of(name, extractor, seen, published)
    return replace(made, labels=labels, source=source, size=size_words(images.shape))


def reference_of(
    name: str,
    extractor: Extractor,
    seen: Extracted,
    published: PublishedStatistics | None = None,
) -> Reference:
    """The reference made of what the extractor has seen."""
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


def foreign_reference(
    path: Path, name: str, extractor: Extractor, n: int | None = None
) -> Reference | None:
    """A reference of dgm-eval's features (`reps`) or of pytorch-fid's statistics (`mu`, `sigma`).

    None where the file holds images (`arr_0`) or none of these.  That the extractor's network has made
    them is taken on the file's word, and where that tells the network's name, it is compared; `n` is
    the number of images behind statistics.  Raises ValueError, with the remedy, for what does not fit.
    """
    remedy = "restore it or make it again"
    there = array_names(path, remedy)
    if "arr_0" in there or not {"reps", "mu"} & set(there):
        return None
    arrays = read_npz(path, ("reps", "model", "mu", "sigma"), remedy)
    with reading(path, remedy):
        model = str(arrays["model"]) if "model" in arrays else extractor.name
        features = arrays["reps"].astype(np.float32) if "reps" in arrays else None
        whole = None
        if features is None:
            mean, cov = (arrays[key].astype(np.float64) for key in ("mu", "sigma"))
            if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
                raise ValueError(f"mu {mean.shape} and sigma {cov.shape} do not fit")
            features = np.empty((0, len(mean)), np.float32)
            whole = Statistics(mean, cov, n or 0)
        elif features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(f"reps is {list(features.shape)}, no features [N, F]")
    width = extractor.num_features
    if model != extractor.name or width not in (0, features.shape[1]):
        raise ValueError(
            f"{path} holds {features.shape[1]} features of {model}, not {width} of {extractor.name}: "
            "give the metrics= that it was made for"
        )
    if whole and not n:
        raise ValueError(
            f"{path} holds statistics, but not of how many images: give --statistics-n N"
        )
    published = PublishedStatistics(whole, None) if whole else None
    return reference_of(name, extractor, Extracted(features), published)


def floor_path(path: Path) -> Path:
    """Where the second set of real images lies, as a reference, beside the first: x.floor.npz."""
    return path.with_suffix(".floor.npz")


def is_reference(path: Path) -> bool:
    """Whether the file is one of `Reference.write`, by the names of what it holds; `Damaged` if it is."""
    return {"features", "statistics_n", "digest"} <= set(array_names(path))


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
