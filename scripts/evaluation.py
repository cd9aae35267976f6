"""Evaluating samples at the edge: configs in, a stored record out."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from eval.extractors import Extracted, extractor_named
from eval.files import Samples, load_samples
from eval.metrics import Score, check_metrics, evaluate
from eval.records import Record, load_records, make_record, protocol, save_records
from eval.reference import Reference, build_reference, real_floor
from scripts.commands import plain
from scripts.generate import read_manifest

BUILT_REFERENCES = Path("runs/references")


class Evaluator:
    """One protocol (extractor, reference, metric options) applied to many sets of samples."""

    def __init__(self, metrics: DictConfig, reference: DictConfig, device: str):
        weights = metrics.weights and Path(metrics.weights)
        self.extractor = extractor_named(metrics.extractor, weights, device)
        self.scores = check_metrics(plain(metrics.scores))
        self.options = plain(metrics.options)
        self._reference_config = reference
        self._floors: dict[tuple[int, bool], dict[str, Score]] = {}

    @cached_property
    def reference(self) -> Reference:
        """The stored reference made with this extractor, or a new one built from its images."""
        config = self._reference_config
        for folder in (Path(config.folder), BUILT_REFERENCES):
            for path in sorted(folder.glob(f"{config.name}-{self.extractor.name}-*.npz")):
                reference = Reference.load(path)
                if reference.weights == self.extractor.digest and config.name != "custom":
                    return reference
        real: Samples = hydra.utils.instantiate(config.images)
        reference = build_reference(config.name, real.images, self.extractor)
        reference.save(BUILT_REFERENCES)
        return reference

    @cached_property
    def _real(self) -> tuple[Extracted, NDArray[np.int64] | None] | None:
        """Features and labels of the real images that are not in the reference."""
        config = self._reference_config.floor
        if not config:
            return None
        real: Samples = hydra.utils.instantiate(config)
        return self.extractor(real.images), real.labels

    def floor(self, n: int, balanced: bool) -> dict[str, Score] | None:
        """The real-vs-real floor for n samples; None where there are too few real images."""
        if self._real is None or n > len(self._real[0].features):
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

    def record(
        self, path: Path, out: Path, *, num_samples: int | None = None, use_labels: bool = True
    ) -> Record:
        """Evaluate the samples at `path`, or return the record at `out` if it already says so."""
        manifest = read_manifest(path) if path.is_dir() else None
        n = num_samples or (manifest or {}).get("num_samples")
        if n is not None and out.is_file():
            stored: Record = load_records(out)
            if protocol(stored) == self._protocol(n, manifest):
                return stored
        samples = load_samples(path)
        if num_samples is not None and num_samples > len(samples.images):
            raise ValueError(f"{path} has {len(samples.images)} samples, not {num_samples}")
        n = num_samples or len(samples.images)
        balanced = manifest is not None and manifest["config"]["label"] == "balanced"
        labels = samples.labels[:n] if use_labels and samples.labels is not None else None
        scores = evaluate(
            self.extractor(samples.images[:n]),
            self.reference,
            labels=labels,
            metrics=self.scores,
            strata=labels if balanced else None,
            **self.options,
        )
        record = make_record(
            scores,
            self.floor(n, balanced),
            n=n,
            reference=self.reference,
            options=self.options,
            cell=_cell(manifest),
        )
        save_records(out, record)
        return record

    def _protocol(self, n: int, manifest: dict[str, Any] | None) -> Record:
        blank = make_record({}, None, n=n, reference=self.reference, options=self.options,
                            cell=_cell(manifest))  # fmt: skip
        return protocol(json.loads(json.dumps(blank)))


def _cell(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the record keeps of the manifest."""
    if manifest is None:
        return None
    return {key: manifest.get(key) for key in ("config", "plan", "nfe", "seconds", "versions")}
