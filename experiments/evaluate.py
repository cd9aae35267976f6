"""Evaluating samples: a protocol and a reference in, a stored record out."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import yaml
from numpy.typing import NDArray
from omegaconf import DictConfig

from eval.extractors import ClipExtractor, Extracted, extractor_named
from eval.metrics import Score
from eval.preprocessing import Preprocessed, Preprocessing
from eval.records import Record, load_records, make_record, protocol, save_records
from eval.reference import PublishedStatistics, Reference, build_reference, read_adm_statistics
from eval.scoring import check_metrics, evaluate, real_floor
from experiments.config import CONFIGS, plain
from experiments.folder import read_manifest
from experiments.workers import agree, connected, gather, worker
from files.images import Samples, load_samples
from files.places import ROOT
from files.prompts import read_prompts
from files.whole import file_sha256


class Evaluator:
    """One protocol (extractor, reference, metric options) applied to many sets of samples."""

    def __init__(self, metrics: DictConfig, reference: DictConfig, device: str):
        files = {
            key: metrics[key] and Path(metrics[key])
            for key in ("weights", "vgg16_weights")
            if key in metrics
        }
        self.name: str = metrics.name
        self.scores = check_metrics(plain(metrics.scores))
        self.options = _checked_options(plain(metrics.options))
        clip = {key: metrics[key] for key in ("model", "pretrained", "cache_dir") if key in metrics}
        self.extractor = extractor_named(metrics.extractor, device=device, clip=clip, **files)
        self._reference_config = reference
        self.preprocessing = None
        if reference.get("preprocess"):
            self.preprocessing = Preprocessing(reference.preprocess, reference.size)
        self._floors: dict[tuple[int, bool], dict[str, Score]] = {}

    @cached_property
    def batch(self) -> Path | None:
        """The file of a reference batch, if the reference is one; FileNotFoundError without it."""
        config = self._reference_config
        path = Path(config.batch) if config.get("batch") else None
        if path and not path.is_file():
            fetch = f"fetch it with `python -m scripts.download {config.name}` or from {config.url}"
            raise FileNotFoundError(f"{path} is missing: {config.get('remedy') or fetch}")
        return path

    @cached_property
    def published(self) -> PublishedStatistics | None:
        """The statistics in the reference batch, which are of ADM's Inception and no other."""
        if not self._reference_config.get("statistics_n") or self.extractor.name != "inception":
            return None
        assert self.batch is not None
        return read_adm_statistics(self.batch, self._reference_config.statistics_n)

    @cached_property
    def reference(self) -> Reference | None:
        """The stored reference made with this extractor, or a new one built from its images.

        None if the config is that of no reference.

        One that is built from a published batch is stored beside it, since it takes a pass over
        10,000 images; it stands for that very file and extractor alone.
        """
        config = self._reference_config
        if config.name == "none":
            return None
        source = file_sha256(self.batch) if self.batch else ""
        folder = config.folder and ROOT / config.folder
        if self.batch and config.images.get("path") != config.batch:
            folder = None  # other images than the batch's: their features stand for no file
        if folder:
            for path in sorted(folder.glob(f"{config.name}-{self.extractor.name}-*")):
                reference = Reference.load(path)
                same = (reference.weights, reference.source) == (self.extractor.digest, source)
                n = config.get("statistics_n") if self.published else None
                if same and n in (None, reference.statistics.n):
                    return reference
        real = Samples(*hydra.utils.instantiate(config.images))
        reference = build_reference(
            config.name, real.images, self.extractor, published=self.published, source=source
        )
        if self.batch and folder:
            reference.save(folder)
        return reference

    @cached_property
    def _real(self) -> tuple[Extracted, NDArray[np.int64] | None] | None:
        """Features and labels of the real images that are not in the reference."""
        config = self._reference_config.floor
        if not config:
            return None
        real = Samples(*hydra.utils.instantiate(config))
        return self.extractor(real.images), real.labels

    def floor(self, n: int, balanced: bool) -> dict[str, Score] | None:
        """The real-vs-real floor for n samples; None where there are too few real images."""
        if self._real is None or self.reference is None or n > len(self._real[0].features):
            return None
        if (n, balanced) not in self._floors:
            real, labels = self._real
            self._floors[n, balanced] = real_floor(
                real,
                self.reference,
                n,
                metrics=self.scores,
                labels=labels if balanced else None,
                **self.options,
            )
        return self._floors[n, balanced]

    def check_reference(self) -> None:
        """Raise FileNotFoundError or ValueError if the reference's file is missing or unfit."""
        _ = self.batch, self.published

    def check_size(self, n: int) -> None:
        """Raise ValueError if n samples are too few for the scores, before they are made."""
        size, subset = self.extractor.num_features, self.options.get("kid_subset_size", 0)
        if "fid" in self.scores and n <= size and not self.options.get("allow_few"):
            raise ValueError(
                f"FID with {size} features needs more than {size} samples, got {n}: raise "
                "num_samples (or, for a trial run, set metrics.options.allow_few=true)"
            )
        if "kid" in self.scores and n < subset:
            raise ValueError(
                f"KID draws subsets of {subset}, got {n} samples: raise num_samples or lower "
                "metrics.options.kid_subset_size"
            )

    def record(
        self,
        path: Path,
        out: Path,
        *,
        num_samples: int | None = None,
        use_labels: bool = True,
        prompts: Path | None = None,
    ) -> Record:
        """Evaluate the samples at `path` and store the record at `out`.

        `prompts` are a file of those that the samples were made for, if that is not beside them.
        Under torchrun each process extracts the features of its part of the images and the first
        one computes the scores, from the same features in the same order as one process would.

        A record that is there already is returned instead if it says just what a new one would;
        only a run's folder, whose manifest tells what its samples are, can be so trusted.
        """
        if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
            raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
        first = not connected() or worker()[0] == 0
        stored = None
        if first:
            stored = self.stored(
                path, out, num_samples=num_samples, use_labels=use_labels, prompts=prompts
            )
        stored = agree(stored)
        if stored:
            return stored
        samples = load_samples(path)
        if num_samples is not None and num_samples > len(samples.images):
            raise ValueError(f"{path} has {len(samples.images)} samples, not {num_samples}")
        n = num_samples or len(samples.images)
        if first:
            _ = self.reference  # refuse a missing one before the long work
        extracted = self._extract(samples.images[:n])
        record = None
        if extracted is not None:
            record = self._scored(path, extracted, samples.labels, n, use_labels, prompts)
            save_records(out, record)
        agreed = agree(record)
        assert agreed is not None
        return agreed

    def stored(
        self,
        path: Path,
        out: Path,
        *,
        num_samples: int | None = None,
        use_labels: bool = True,
        prompts: Path | None = None,
    ) -> Record | None:
        """The record at `out` if it says just what a new one of these samples would, or None."""
        manifest = read_manifest(path) if path.is_dir() else None
        n = num_samples or (manifest or {}).get("num_samples")
        if manifest and manifest["complete"] and n is not None and out.is_file():
            stored: Record = load_records(out)
            if protocol(stored) == self._protocol(n, manifest, use_labels, prompts):
                return stored
        return None

    def _extract(self, images: NDArray[np.uint8]) -> Extracted | None:
        """Features of all images; of connected processes the first one has them, others None.

        Each takes whole batches, so that every batch is what it would be in one process.
        """
        rank, world = worker() if connected() else (0, 1)
        size = self.extractor.batch_size
        share = math.ceil(len(images) / size / world) * size
        mine: Any = images[rank * share : (rank + 1) * share]
        if self.preprocessing:
            mine = Preprocessed(mine, self.preprocessing)
        parts = gather(self.extractor(mine) if len(mine) else None)
        if parts is None:
            return None
        columns = zip(*[part for part in parts if part is not None], strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return Extracted(*joined)

    def _scored(
        self,
        path: Path,
        extracted: Extracted,
        all_labels: NDArray[np.int64] | None,
        n: int,
        use_labels: bool,
        prompts: Path | None,
    ) -> Record:
        manifest = read_manifest(path) if path.is_dir() else None
        balanced = manifest is not None and manifest["config"]["label"] == "balanced"
        labels = None if all_labels is None else all_labels[:n]
        scores = evaluate(
            extracted._replace(text=self._text(path, prompts, all_labels, n)),
            self.reference,
            labels=labels if self._agrees(use_labels) else None,
            metrics=self.scores,
            strata=labels if balanced else None,
            **self.options,
        )
        return make_record(
            scores,
            self.floor(n, balanced),
            protocol=self.name,
            n=n,
            extractor=self.extractor,
            reference=self.reference,
            options=self.options,
            cell=_cell(manifest),
            run=_run(manifest),
            more=self._more(prompts),
        )

    def _agrees(self, use_labels: bool) -> bool:
        """Whether label agreement is among the scores, if the samples have labels."""
        return use_labels and self.extractor.knows_labels

    def _text(
        self, path: Path, prompts: Path | None, labels: NDArray[np.int64] | None, n: int
    ) -> NDArray[np.float32] | None:
        """Features of the n prompts if the scores need them; labels of a run are their indices."""
        if "clip_score" not in self.scores:
            return None
        if not isinstance(self.extractor, ClipExtractor):
            raise ValueError("clip_score needs metrics=clip")
        beside = (path if path.is_dir() else path.parent) / "prompts.txt"
        known = read_prompts(prompts or beside)
        rows = labels[:n] if beside.is_file() and labels is not None else np.arange(n)
        if rows.max() >= len(known):
            raise ValueError(
                f"{prompts or beside} has {len(known)} prompts, but sample {rows.argmax()} is of "
                f"prompt {rows.max()}: give prompts=FILE with all of them"
            )
        wanted, places = np.unique(rows, return_inverse=True)
        return self.extractor.encode_text([known[i] for i in wanted])[places]

    def _more(self, prompts: Path | None) -> dict[str, Any]:
        """What belongs to the protocol of some: kept out of all other records."""
        more: dict[str, Any] = {}
        if self.preprocessing:
            more["preprocess"] = {"name": self.preprocessing.name, "size": self.preprocessing.size}
        if isinstance(self.extractor, ClipExtractor):
            more["clip"] = self.extractor.facts
            if prompts:  # others than those of the samples' own manifest
                more["prompts"] = file_sha256(prompts)[:12]
        return more

    def _protocol(
        self, n: int, manifest: dict[str, Any], use_labels: bool, prompts: Path | None
    ) -> Record:
        names = {*self.scores, *(("label_agreement",) if self._agrees(use_labels) else ())}
        blank = dict.fromkeys(names, Score(0.0, 0.0))
        record = make_record(
            blank,
            None,
            protocol=self.name,
            n=n,
            extractor=self.extractor,
            reference=self.reference,
            options=self.options,
            cell=_cell(manifest),
            more=self._more(prompts),
        )
        return protocol(json.loads(json.dumps(record)))


def _cell(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """How the samples were made: the part of the manifest that identifies them."""
    return manifest and {key: manifest[key] for key in ("config", "plan", "nfe")}


def _run(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What making them took, and with what."""
    if manifest is None or manifest.get("seconds") is None:
        return None
    per_sample = manifest["seconds"] / manifest["num_samples"]
    return {"seconds_per_sample": round(per_sample, 5), "versions": manifest["versions"]}


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The metrics' options unchanged; ValueError for an unknown one or a bad value."""
    least = {
        "k": 1,
        "kid_subset_size": 2,
        "is_splits": 1,
        "is_chunk_size": 1,
        "is_shuffle_seed": 0,
        "bootstrap": 0,
        "seed": 0,
    }
    choices: dict[str, tuple[Any, ...]] = {
        "fid_se": ("bootstrap", "delta"),
        "allow_few": (True, False),
    }
    for name, value in options.items():
        if name not in (*least, *choices):
            known = ", ".join([*least, *choices])
            raise ValueError(f"unknown metrics.options.{name}: choose among {known}")
        if name in choices and value not in choices[name]:
            known = " or ".join(str(choice).lower() for choice in choices[name])
            raise ValueError(f"metrics.options.{name} must be {known}, got {value!r}")
        if name in least and (type(value) is not int or value < least[name]):
            raise ValueError(
                f"metrics.options.{name} must be an integer of at least {least[name]}, got {value!r}"
            )
    return options


def reference_of(batch: str) -> str | None:
    """The reference under configs/reference that a published sample batch belongs to, or None."""
    for path in sorted(Path(CONFIGS, "reference").glob("*.yaml")):
        if batch in (yaml.safe_load(path.read_text()).get("published") or {}):
            return path.stem
    return None


def changed_protocol(options: DictConfig) -> str | None:
    """The first option in which a score's value, not its error, departs from metrics=adm."""
    stated = yaml.safe_load(Path(CONFIGS, "metrics", "adm.yaml").read_text())["options"]
    return next((key for key in ("k", "is_chunk_size") if options.get(key) != stated[key]), None)
