"""Evaluating samples: a protocol and a reference in, a stored record out."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.evaluation import Evaluation, Provenance, ReferenceSource, check_sizes
from eval.extractors import ClipExtractor
from eval.features import Extracted
from eval.records import (
    Record,
    check_replaceable,
    load_records,
    protocol,
    save_records,
)
from eval.reference import Reference, size_words
from eval.scoring import check_compared
from experiments.cells import prompts_digest
from experiments.folder import origin, read_manifest
from experiments.workers import agree, connected, first_process, gather, worker
from files.images import Samples, image_shape, load_samples
from files.media import Images, Media
from files.prompts import read_prompts
from files.whole import Damaged, check_writable, file_sha256


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


class Evaluator(Evaluation):
    """One protocol and reference, applied to many sets of samples: runs' cells among them.

    Each leaves a record in a file; under torchrun the processes share the images.
    """

    def check_media(self, media: Media, real: bool = True) -> None:
        """Raise FileNotFoundError or ValueError if there are no real images to compare such samples with,
        or these are unfit, as far as the beginnings of files tell.

        Without `real` there may be none yet.
        """
        if not isinstance(media, Images):
            raise ValueError(
                f"{self.name} scores images, and this model makes videos: set experiment.scorer=none "
                "experiment.renderer=pictures for pictures of them, or experiment.scorer=videos for VBench"
            )
        if self.source is None:
            if real:
                check_compared(self.scores)
            return
        self.check_reference()
        there, here = self._real_sizes(self.source), media.size[:2]
        if all(here) and self.source.preprocess is None:
            for size in filter(None, there):
                check_sizes("the samples", size_words((1, *here)), size)

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

    def count(self, subject: Subject) -> int:
        """How many samples there are to score, by the manifest or the files' beginnings."""
        if subject.num_samples:
            return subject.num_samples
        manifest = subject.manifest
        if manifest and manifest["complete"]:
            n: int = manifest["num_samples"]
            return n
        preprocess = self.source.preprocess if self.source else None
        return image_shape(subject.path, preprocess.image if preprocess else None)[0]

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
            self.check_images(subject.path, samples.images)
        extracted = self._extract(samples.images[:n])
        record = None
        if extracted is not None:
            record = self._scored(subject, extracted, samples, n)
            save_records(subject.out, record)
        record = agree(record)
        assert record is not None
        return record

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
        part = self.prepared(images[rank * share : (rank + 1) * share])
        parts = gather(self.extractor(part) if len(part) else None)
        if parts is None:
            return None
        columns = zip(*[part for part in parts if part is not None], strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return Extracted(*joined)

    def _scored(self, subject: Subject, extracted: Extracted, samples: Samples, n: int) -> Record:
        manifest = subject.manifest
        labels = None if samples.labels is None else samples.labels[:n]
        extracted = extracted._replace(text=self._text(subject, labels, n))
        known = Provenance(
            labels=labels,
            balanced=manifest is not None and manifest["config"]["label"] == "balanced",
            agreement=self._agrees(subject),
            more=self._more(subject),
            cell=manifest and origin(manifest),
            run=_run(manifest),
        )
        return self.scored(extracted, self.size(samples.images), known)

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

    def _more(self, subject: Subject) -> dict[str, str]:
        """What belongs to the protocol: prompts, if they are others than in the samples' manifest."""
        is_clip = isinstance(self.extractor, ClipExtractor)
        return {"prompts": file_sha256(subject.prompts)[:12]} if is_clip and subject.prompts else {}

    def _facts(self, subject: Subject, n: int) -> Record:
        """What a new record of a run's samples would say but for its scores."""
        names = {*self.scores, *(("label_agreement",) if self._agrees(subject) else ())}
        facts = self.protocol(self._more(subject)).facts(
            names, n, subject.manifest and origin(subject.manifest)
        )
        return protocol(json.loads(json.dumps(facts)))


def _run(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What making them took, and with what."""
    if manifest is None or manifest.get("seconds") is None:
        return None
    per_sample = manifest["seconds"] / manifest["num_samples"]
    return {"seconds_per_sample": round(per_sample, 5), "versions": manifest["versions"]}
