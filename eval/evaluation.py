"""One protocol against one reference: from images to scores with errors."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from eval import scoring
from eval.extractors import ClipExtractor, extractor_named
from eval.features import Extracted
from eval.preprocessing import Preprocessed, Preprocessing
from eval.records import Protocol, Record, make_record
from eval.reference import (
    PublishedStatistics,
    Reference,
    build_reference,
    floor_path,
    is_reference,
    read_adm_statistics,
    size_words,
)
from eval.score import Score
from eval.scoring import Options, check_metrics, check_size, real_floor
from files.images import Samples
from files.npz import read_npz
from files.whole import Damaged, file_sha256

# The rest of configs/metrics is the extractor's.
SCORING = ("name", "extractor", "scores", "options")
# Scores that need no features of real images, but their statistics or less.
OF_STATISTICS = (
    "is",
    "is_infinity",
    "fid",
    "fid_infinity",
    "sfid",
    "diagonal_fid",
    "label_agreement",
)


@dataclass(frozen=True)
class ReferenceSource:
    """Where real images come from.

    `images` and `floor` load the two disjoint sets; `batch` is the file of a published one, with
    the statistics of `statistics_n` images, and `remedy` says how to get it.  Features are stored
    in `folder`, if that is given, and with `store_floor` those of the floor, too: then tables need no
    real images.  `file` is a reference of its own (scripts.reference), with one of the floor beside it
    if there is one: then there are no images.  `preprocess` is how samples are brought to the images'
    size.  `floor_of` tells one floor from another (`floor_digest`).  `shapes` are (N, H, W, C) of `images`
    and of `floor`, where there is one.
    """

    name: str
    images: Callable[[], Samples]
    floor: Callable[[], Samples] | None
    batch: Path | None
    remedy: str
    statistics_n: int | None
    folder: Path | None
    preprocess: Preprocessing | None
    shapes: Callable[[], list[tuple[int, ...]]]
    store_floor: bool = False
    floor_of: str | None = None
    file: Path | None = None

    @property
    def has_floor(self) -> bool:
        return self.floor is not None or (self.file is not None and floor_path(self.file).is_file())

    @property
    def floor_name(self) -> str:
        """What the stored features of the floor are called."""
        return f"{self.name}_floor"


def stored_source(name: str, path: Path) -> ReferenceSource:
    """A reference that lies in a file of its own, with the floor beside it.

    Samples are brought to the size of its images as these were.  Raises FileNotFoundError without the
    file, ValueError for one that is no reference.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no reference at {path}: make it with `python -m scripts.reference IMAGES --out {path}`"
        )
    if not is_reference(path):
        raise ValueError(
            f"{path} is no reference: make one of it with `python -m scripts.reference {path} --out "
            f"{path.with_suffix('.reference.npz')}`"
        )
    stated = read_npz(path, ("preprocess",)).get("preprocess")
    way, _, size = stated.item().partition(" ") if stated is not None else ("", "", "")
    floor = floor_path(path)
    return ReferenceSource(
        name=name,
        images=lambda: _no_images(path),
        floor=None,
        batch=None,
        remedy="",
        statistics_n=None,
        folder=None,
        preprocess=Preprocessing(way, int(size)) if way else None,
        shapes=list,
        floor_of=file_sha256(floor)[:12] if floor.is_file() else None,
        file=path,
    )


def _no_images(path: Path) -> Samples:
    raise ValueError(
        f"{path} holds features and no images: give these as reference=custom reference.images.path=..."
    )


def floor_digest(settings: Mapping[str, Any]) -> str:
    """Of how the floor's images are loaded, and of the file or the names in the folder at `path`."""
    facts: list[Any] = [dict(settings)]
    path = Path(str(settings.get("path") or ""))
    if settings.get("path") and path.is_file():
        facts.append(file_sha256(path))
    elif settings.get("path") and path.is_dir():
        facts.append(sorted((p.name, p.stat().st_size) for p in path.iterdir()))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Provenance:
    """What is known of samples besides their pixels.

    `labels` int64 [N] are those that they were made for; with `balanced` their counts were fixed by
    design, and with `agreement` the extractor's are compared with them.  `more` is what else belongs to
    the protocol, `cell` and `run` say how they were made.
    """

    labels: NDArray[np.int64] | None = None
    balanced: bool = False
    agreement: bool = False
    more: Mapping[str, Any] | None = None
    cell: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None


class Evaluation:
    """One protocol (extractor, reference, metric options) applied to many sets of samples.

    `metrics` is a config of configs/metrics as a plain dictionary.
    """

    def __init__(
        self, metrics: Mapping[str, Any], source: ReferenceSource | None, device: torch.device
    ):
        self.name: str = metrics["name"]
        self.scores = check_metrics(metrics["scores"])
        self.stated: dict[str, Any] = metrics["options"]
        self.options = Options.of(self.stated)
        options = {key: value for key, value in metrics.items() if key not in SCORING}
        self.extractor = extractor_named(metrics["extractor"], str(device), **options)
        # Scores are computed in float64, which a CPU and CUDA have and others lack.
        self.device = str(device) if device.type == "cuda" else "cpu"
        self.source = source
        self._floor = cache(self._real_floor)

    # --- the reference --------------------------------------------------------------------------

    @cached_property
    def batch(self) -> Path | None:
        """The file of a reference batch, if the reference is one; FileNotFoundError without it."""
        path = self.source.batch if self.source else None
        if path and self.source and not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {self.source.remedy}")
        return path

    @cached_property
    def published(self) -> PublishedStatistics | None:
        """The statistics in the reference batch, which are of ADM's Inception and no other."""
        if not self.source or not self.source.statistics_n or self.extractor.name != "inception":
            return None
        assert self.batch is not None
        return read_adm_statistics(self.batch, self.source.statistics_n)

    @cached_property
    def reference(self) -> Reference | None:
        """The stored reference made with this extractor, or a new one built from its images.

        None if there is none to compare with.  One that is built from a published batch is stored
        beside it, since it takes a pass over 10,000 images; it stands for that very file and
        extractor alone.
        """
        if self.source is None:
            return None
        if self.source.file:
            return self._of_file(self.source.file)
        sha256 = file_sha256(self.batch) if self.batch else ""
        stored = self._stored_reference(self.source, self.source.name, sha256)
        if isinstance(stored, Reference):
            return stored
        real = self.source.images()
        reference = build_reference(
            self.source.name,
            self.prepared(real.images),
            self.extractor,
            published=self.published,
            source=sha256,
        )
        folder = self.source.folder
        if stored is not None and not self.batch and not reference.path(folder or Path()).exists():
            raise stored  # what was made here has other last bits, and compares with no record
        if folder and (self.batch or stored is not None):
            reference.save(folder)
        return reference

    def _of_file(self, path: Path) -> Reference:
        """The reference in a file of its own.  Raises ValueError if it is of another extractor."""
        reference = Reference.load(path)
        theirs = (reference.extractor, reference.weights)
        ours = (self.extractor.name, self.extractor.digest)
        if theirs != ours:
            raise ValueError(
                f"{path} was made with the extractor {theirs[0]} ({theirs[1][:12]}), not {ours[0]} "
                f"({ours[1][:12]}): give the metrics= and weights that it was made with, or make it "
                "again (python -m scripts.reference)"
            )
        needing = [name for name in self.scores if name not in OF_STATISTICS]
        if needing and not reference.n:
            raise ValueError(
                f"{path} holds statistics alone: leave {needing[0]} out of metrics.scores, or make "
                "it of images (python -m scripts.reference)"
            )
        return reference

    def _stored_reference(
        self, source: ReferenceSource, name: str, sha256: str
    ) -> Reference | Damaged | None:
        """The one that fits; if there is none, but a damaged one, what is wrong with that."""
        damaged: Damaged | None = None
        if source.folder is None:
            return None
        for path in sorted(source.folder.glob(f"{name}-{self.extractor.name}-*")):
            try:
                reference = Reference.load(path)
            except Damaged as error:
                tqdm.write(f"{error}")
                damaged = error
                continue
            same = (reference.weights, reference.source) == (self.extractor.digest, sha256)
            n = source.statistics_n if self.published else None
            if same and n in (None, reference.statistics.n):
                return reference
        return damaged

    @cached_property
    def _real(self) -> tuple[Extracted, NDArray[np.int64] | None] | None:
        """Features and labels of the real images that are not in the reference."""
        if self.source is None or not self.source.has_floor:
            return None
        if self.source.file:
            held = self._of_file(floor_path(self.source.file))
            return Extracted(held.features, held.logits, manifold=held.manifold), None
        assert self.source.floor is not None
        if self.source.store_floor:
            stored = self._stored_reference(self.source, self.source.floor_name, "")
            if isinstance(stored, Reference):
                return Extracted(stored.features, stored.logits), stored.labels
        real = self.source.floor()
        return self.extractor(self.prepared(real.images)), real.labels

    def prepared(self, images: Any) -> Any:
        """The images at the size of the protocol, whether they are samples or real."""
        preprocess = self.source.preprocess if self.source else None
        return Preprocessed(images, preprocess) if preprocess else images

    def floor(self, n: int, balanced: bool) -> dict[str, Score] | None:
        """The real-vs-real floor for n samples; None where there are too few real images."""
        if self._real is None or self.reference is None or n > len(self._real[0].features):
            return None
        return self._floor(n, balanced)

    def _real_floor(self, n: int, balanced: bool) -> dict[str, Score]:
        assert self._real is not None and self.reference is not None
        real, labels = self._real
        stored = self.source is not None and self.source.file is not None
        return real_floor(
            real,
            self.reference,
            n,
            # Of spatial features a file holds the statistics alone.
            metrics=[name for name in self.scores if not (stored and name == "sfid")],
            labels=labels if balanced else None,
            options=self.options,
            device=self.device,
        )

    # --- what cannot end well is refused before the work ------------------------------------------

    def check_reference(self) -> None:
        """Raise FileNotFoundError or ValueError if the reference's file is missing or unfit."""
        _ = self.batch, self.published
        if self.source and self.source.file:
            _ = self.reference

    def check_size(self, n: int) -> None:
        """Raise ValueError if n samples are too few for the scores, before they are made."""
        sizes = self.extractor.num_features, self.extractor.num_logits
        check_size(self.scores, n, sizes, self.options)

    def check_images(self, path: Path, images: Any) -> None:
        """Raise ValueError if the samples at `path` and the reference's are known to differ in size.

        Networks resize both to their own, and would score them without a word.
        """
        there = self.reference.size if self.reference else ""
        if there:
            check_sizes(f"the samples in {path}", self.size(images), there)

    def size(self, images: Any) -> str:
        """Of the samples when they are scored: "256 x 256"."""
        return size_words(self.prepared(images).shape)

    # --- records ----------------------------------------------------------------------------------

    def protocol(self, more: Mapping[str, Any] | None = None) -> Protocol:
        """How samples are scored; `more` is what belongs to these samples."""
        facts: dict[str, Any] = {}
        preprocess = self.source.preprocess if self.source else None
        if preprocess:
            facts["preprocess"] = {"name": preprocess.name, "size": preprocess.size}
        if self.extractor.facts:
            is_clip = isinstance(self.extractor, ClipExtractor)
            facts["clip" if is_clip else "network"] = self.extractor.facts
        facts |= more or {}
        return Protocol(self.name, self.extractor, self.reference, self.stated, facts)

    def scored(
        self, extracted: Extracted, size: str, provenance: Provenance | None = None
    ) -> Record:
        """The record of samples of that size, whose features these are.

        Raises ValueError as `scoring.evaluate`.
        """
        given = provenance or Provenance()
        n = len(extracted.features)
        scores = scoring.evaluate(
            extracted,
            self.reference,
            labels=given.labels if given.agreement else None,
            metrics=self.scores,
            strata=given.labels if given.balanced else None,
            options=self.options,
            device=self.device,
        )
        facts = self.protocol(given.more).facts(scores, n, given.cell)
        facts |= {"size": size}
        facts |= {"reference_size": self.reference and (self.reference.size or None)}
        record = make_record(facts, scores, self.floor(n, given.balanced), given.run)
        if record["floor"] and self.source and self.source.floor_of:
            record["floor_of"] = self.source.floor_of
        return record


def check_sizes(samples: str, here: str, there: str) -> None:
    """Raise ValueError unless samples and real images are of one size."""
    if here != there:
        raise ValueError(
            f"{samples} are {here} pixels, the reference's images {there}: no protocol compares these; "
            "give images of one size, or bring both to one (reference=custom "
            f"reference.preprocess=center_lanczos reference.size={here.partition(' ')[0]})"
        )
