"""Evaluating samples: a protocol and a reference in, a stored record out."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from eval.extractors import ClipExtractor, Extracted, extractor_named
from eval.preprocessing import Preprocessed, Preprocessing
from eval.records import (
    Protocol,
    Record,
    check_replaceable,
    load_records,
    make_record,
    protocol,
    save_records,
)
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
from eval.scoring import (
    Options,
    check_compared,
    check_metrics,
    check_size,
    evaluate,
    real_floor,
)
from experiments.cells import prompts_digest
from experiments.folder import origin, read_manifest
from experiments.workers import agree, connected, first_process, gather, worker
from files.images import Samples, load_samples
from files.media import Images, Media
from files.npz import read_npz
from files.prompts import read_prompts
from files.whole import Damaged, check_writable, file_sha256

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


@dataclass(frozen=True)
class Subject:
    """The samples to score, at `path`, and where their record goes.

    `num_samples` are the first so many, None all.  `use_labels` adds label agreement where the
    samples have labels.  `prompts` is a file of those that the samples were made for, if it is not
    beside them.  Raises ValueError for a number that is no positive integer.
    """

    path: Path
    out: Path
    num_samples: int | None = None
    use_labels: bool = True
    prompts: Path | None = None

    def __post_init__(self) -> None:
        n = self.num_samples
        if n is not None and (type(n) is not int or n < 1):
            raise ValueError(f"num_samples must be an integer of at least 1, got {n!r}")

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """That of a run's folder; None for samples that came from elsewhere."""
        return read_manifest(self.path) if self.path.is_dir() else None


class Evaluator:
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
            self._prepared(real.images),
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
        return self.extractor(self._prepared(real.images)), real.labels

    def _prepared(self, images: Any) -> Any:
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

    def check_reference(self, media: Media) -> None:
        """Raise FileNotFoundError or ValueError if there are no real images to compare such samples with,
        or these are unfit, as far as the beginnings of files tell."""
        if not isinstance(media, Images):
            raise ValueError(
                f"{self.name} scores images, and this model makes videos: set experiment.scorer=none "
                "experiment.renderer=pictures for pictures of them, or experiment.scorer=videos for VBench"
            )
        if self.source is None:
            check_compared(self.scores)
            return
        _ = self.batch, self.published
        there, here = self._real_sizes(self.source), media.size[:2]
        if all(here) and self.source.preprocess is None:
            for size in filter(None, there):
                _check_sizes("the samples", size_words((1, *here)), size)

    def _real_sizes(self, source: ReferenceSource) -> list[str]:
        """Of the real images, by the stored reference or the files; old references do not tell."""
        if source.file and self.reference:
            return [self.reference.size]
        if not self.batch:
            stored = self._stored_reference(source, source.name, "")
            if isinstance(stored, Reference):
                return [stored.size]
        shapes = source.shapes()
        if shapes[0][0] < 2:
            raise ValueError(
                f"the reference {source.name} has {shapes[0][0]} image, and its statistics need 2 or more: "
                "give more as reference.images=DIR"
            )
        return [size_words(shape) for shape in shapes]

    def check_size(self, n: int) -> None:
        """Raise ValueError if n samples are too few for the scores, before they are made."""
        check_size(self.scores, n, self.extractor.num_features, self.options)

    # --- records ----------------------------------------------------------------------------------

    def record(self, subject: Subject) -> Record:
        """Evaluate the samples and store the record.

        Under torchrun each process extracts the features of its part of the images and the first
        one computes the scores, from the same features in the same order as one process would.

        A record that is there already is returned instead if it says just what a new one would;
        only a run's folder, whose manifest tells what its samples are, can be so trusted.
        """
        first = first_process()
        if first:
            check_replaceable(subject.out)
        stored = agree(self.stored(subject) if first else None)
        if stored:
            return stored
        if first:
            check_writable(subject.out)
        preprocess = self.source.preprocess if self.source else None
        samples = load_samples(subject.path, preprocess.image if preprocess else None)
        n = subject.num_samples or len(samples.images)
        if n > len(samples.images):
            raise ValueError(
                f"{subject.path} has {len(samples.images)} samples, not {n}: lower num_samples"
            )
        if subject.prompts and "clip_score" not in self.scores:
            raise ValueError("prompts are for the CLIP score, metrics=clip: leave prompts=null")
        if first:  # refuse what is missing before the long work
            self.check_size(n)
            self._check_size(subject, samples)
        extracted = self._extract(samples.images[:n])
        record = None
        if extracted is not None:
            record = self._scored(subject, extracted, samples, n)
            save_records(subject.out, record)
        record = agree(record)
        assert record is not None
        return record

    def _check_size(self, subject: Subject, samples: Samples) -> None:
        """Raise ValueError if samples and reference are known to be of different sizes.

        Networks resize both to their own, and would score them without a word.
        """
        there = self.reference.size if self.reference else ""
        if there:
            _check_sizes(f"the samples in {subject.path}", self._size(samples), there)

    def _size(self, samples: Samples) -> str:
        """Of the samples when they are scored: "256 x 256"."""
        return size_words(self._prepared(samples.images).shape)

    def stored(self, subject: Subject) -> Record | None:
        """The stored record if it says just what a new one of these samples would, or None."""
        manifest = subject.manifest
        if not manifest or not manifest["complete"] or not subject.out.is_file():
            return None
        n = subject.num_samples or manifest["num_samples"]
        try:
            record: Record = load_records(subject.out, "evaluating again")
        except Damaged as error:
            tqdm.write(f"{error}")
            return None
        if protocol(record) != self._facts(subject, n) or self._has_other_floor(record, n):
            return None
        return record

    def _has_other_floor(self, record: Record, n: int) -> bool:
        """Whether a new record would have a floor that this one lacks, or one of other images."""
        if self.source is None or not self.source.has_floor:
            return False
        if record["floor"] is None:
            return self._real is not None and n <= len(self._real[0].features)
        return record.get("floor_of") not in (None, self.source.floor_of)

    def _extract(self, images: NDArray[np.uint8]) -> Extracted | None:
        """Features of all images; of connected processes the first one has them, others None.

        Each takes whole batches, so that every batch is what it would be in one process.
        """
        rank, world = worker() if connected() else (0, 1)
        size = self.extractor.batch_size
        share = math.ceil(len(images) / size / world) * size
        part = self._prepared(images[rank * share : (rank + 1) * share])
        parts = gather(self.extractor(part) if len(part) else None)
        if parts is None:
            return None
        columns = zip(*[part for part in parts if part is not None], strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return Extracted(*joined)

    def _scored(self, subject: Subject, extracted: Extracted, samples: Samples, n: int) -> Record:
        manifest = subject.manifest
        balanced = manifest is not None and manifest["config"]["label"] == "balanced"
        labels = None if samples.labels is None else samples.labels[:n]
        scores = evaluate(
            extracted._replace(text=self._text(subject, labels, n)),
            self.reference,
            labels=labels if self._agrees(subject) else None,
            metrics=self.scores,
            strata=labels if balanced else None,
            options=self.options,
            device=self.device,
        )
        facts = self._protocol(subject).facts(scores, n, manifest and origin(manifest))
        facts |= {"size": self._size(samples)}
        facts |= {"reference_size": self.reference and (self.reference.size or None)}
        record = make_record(facts, scores, self.floor(n, balanced), _run(manifest))
        if record["floor"] and self.source and self.source.floor_of:
            record["floor_of"] = self.source.floor_of
        return record

    def _agrees(self, subject: Subject) -> bool:
        """Whether label agreement is among the scores, if the samples have labels."""
        return subject.use_labels and self.extractor.knows_labels

    def _text(
        self, subject: Subject, labels: NDArray[np.int64] | None, n: int
    ) -> NDArray[np.float32] | None:
        """Features of the n prompts if the scores need them; labels of a run are their indices."""
        if "clip_score" not in self.scores:
            return None
        if not isinstance(self.extractor, ClipExtractor):
            raise ValueError("clip_score needs metrics=clip")
        beside = (subject.path if subject.path.is_dir() else subject.path.parent) / "prompts.txt"
        source = subject.prompts or beside
        prompts = read_prompts(source)
        stated = subject.manifest and subject.manifest["config"].get("prompts")
        if source == beside and stated and prompts_digest(prompts) != stated["sha256"]:
            raise Damaged(
                f"{beside} is damaged (other prompts than the manifest's): the command that sampled "
                "it mends it"
            )
        rows = labels if beside.is_file() and labels is not None else np.arange(n)
        beyond = rows[(rows < 0) | (rows >= len(prompts))]
        if len(beyond):
            raise ValueError(
                f"{source} has {len(prompts)} prompts, but sample {rows.tolist().index(beyond[0])} is "
                f"of prompt {beyond[0]}: give prompts=FILE with all of them"
            )
        distinct, places = np.unique(rows, return_inverse=True)
        return self.extractor.encode_text([prompts[i] for i in distinct])[places]

    def _protocol(self, subject: Subject) -> Protocol:
        more: dict[str, Any] = {}
        preprocess = self.source.preprocess if self.source else None
        if preprocess:
            more["preprocess"] = {"name": preprocess.name, "size": preprocess.size}
        is_clip = isinstance(self.extractor, ClipExtractor)
        if self.extractor.facts:
            more["clip" if is_clip else "network"] = self.extractor.facts
        if is_clip and subject.prompts:  # others than those of the samples' own manifest
            more["prompts"] = file_sha256(subject.prompts)[:12]
        return Protocol(self.name, self.extractor, self.reference, self.stated, more)

    def _facts(self, subject: Subject, n: int) -> Record:
        """What a new record of a run's samples would say but for its scores."""
        names = {*self.scores, *(("label_agreement",) if self._agrees(subject) else ())}
        facts = self._protocol(subject).facts(
            names, n, subject.manifest and origin(subject.manifest)
        )
        return protocol(json.loads(json.dumps(facts)))


def _run(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What making them took, and with what."""
    if manifest is None or manifest.get("seconds") is None:
        return None
    per_sample = manifest["seconds"] / manifest["num_samples"]
    return {"seconds_per_sample": round(per_sample, 5), "versions": manifest["versions"]}


def _check_sizes(samples: str, here: str, there: str) -> None:
    """Raise ValueError unless samples and real images are of one size."""
    if here != there:
        raise ValueError(
            f"{samples} are {here} pixels, the reference's images {there}: no protocol compares these; "
            "give images of one size, or let reference=custom bring both to one "
            f"(reference.preprocess=center_lanczos reference.size={here.partition(' ')[0]})"
        )
