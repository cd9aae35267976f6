"""`evaluate`, for use from Python: as skipped_step.evaluation.evaluate where the wheel is installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.evaluation import Evaluation, ReferenceSource, floor_digest, stored_source
from eval.preprocessing import PREPROCESSING, Preprocessing
from eval.protocols import protocol_named, published_reference
from eval.records import Record, score
from eval.reference import floor_path, is_reference
from eval.score import Score
from files.images import Samples, load_samples
from files.npz import array_names, array_shapes
from files.places import downloads
from files.zips import pictures_of
from models.devices import pick_device

Images = Path | str | NDArray[np.uint8]
Load = Callable[[Path | str, Preprocessing | None], Samples]


def evaluate(
    samples: Images,
    reference: Path | str,
    protocol: str = "adm",
    *,
    resize: str | None = None,
    num_samples: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Score]:
    """The scores of samples by name, each with its standard error: `scores["fid"].value`, `.se`.

    `samples` are uint8 [N, H, W, C] with 1 or 3 channels, or an .npz that has these as arr_0, or a
    folder or zip of PNG, JPEG or WebP files.  `reference` is one of guided-diffusion's batches (arr_0,
    and mu, sigma, mu_s, sigma_s of the whole data set, which the protocol adm compares with), or an
    .npz, folder or zip of real images.  `protocol` is one of `eval.protocols.PROTOCOLS`: networks,
    metrics and their options as guided-diffusion's evaluator (adm), torch-fidelity, clean-fid or
    dgm-eval (dinov2) have them.  `resize` brings samples and real images to one size:
    "center_lanczos:256", "bicubic:256".  `num_samples` are the first so many.  `settings` are others
    than the protocol's, by name: {"k": 5, "weights": "inception.pth"}.  `device` is that of the network;
    TF32, which rounds convolutions, is off in this process afterwards.

    Weights are fetched once into $SKIPPED_STEP_DOWNLOADS or ~/.cache/skipped-step, and verified.
    Raises FileNotFoundError for what is missing, ValueError for what does not fit: another size than
    the reference's, too few samples, an unknown name.
    """
    how = Settings(protocol, None, resize, num_samples, settings or {}, device)
    try:
        record = evaluated(samples, reference, how)
    except ValueError as error:
        error.args = (spelled(str(error), SPELLINGS),)
        raise
    scores = {name: score(record, name) for name in record["scores"]}
    return {name: value for name, value in scores.items() if value is not None}


# Messages of code that is shared with evaluate.py call settings as that does: what they are in Python.
SPELLINGS = {
    r"reference=custom reference\.preprocess=(\w+) reference\.size=(\d+)": r'resize="\1:\2"',
    r"\bset metrics\.options\.(\w+)=true": r'give settings={"\1": True}',
    r"\bmetrics=(\w+)": r'protocol="\1"',
    r"\bdevice=(\w+)": r'device="\1"',
}


def spelled(text: str, spellings: Mapping[str, str]) -> str:
    """A message with settings as they are given here: pattern -> replacement."""
    for pattern, here in spellings.items():
        text = re.sub(pattern, here, text)
    return text


@dataclass(frozen=True)
class Settings:
    """How samples are evaluated: see `evaluate`.  `floor` are more real images, for the real-vs-real floor."""

    protocol: str = "adm"
    floor: Path | str | None = None
    resize: str | None = None
    num_samples: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"


def evaluated(samples: Images, reference: Path | str, how: Settings) -> Record:
    """The record of the samples; see `evaluate`."""
    metrics = protocol_named(how.protocol, how.settings)
    with ExitStack() as opened:

        def load(path: Path | str, preprocess: Preprocessing | None) -> Samples:
            place = opened.enter_context(pictures_of(Path(path)))
            return load_samples(place, preprocess.image if preprocess else None)

        source = source_of(Path(reference), load, how.floor, how.resize)
        if isinstance(samples, np.ndarray):
            images: Any = _checked(samples)
        else:
            images = load(samples, source.preprocess).images
        n = len(images) if how.num_samples is None else how.num_samples
        if type(n) is not int or not 1 <= n <= len(images):
            raise ValueError(
                f"the number of samples must be between 1 and the {len(images)} that there are, "
                f"got {n!r}"
            )
        evaluation = Evaluation(metrics, source, pick_device(how.device))
        evaluation.check_reference()
        evaluation.check_size(n)
        place = "memory" if isinstance(samples, np.ndarray) else str(samples)
        evaluation.check_images(Path(place), images)
        features = evaluation.extractor(evaluation.prepared(images[:n]))
        return evaluation.scored(features, evaluation.size(images))


def source_of(
    path: Path, load: Load, floor: Path | str | None = None, resize: str | None = None
) -> ReferenceSource:
    """Where the real images at `path`, and those of the floor, come from, which `load` reads.

    Raises FileNotFoundError without any.
    """
    if path.is_file() and path.suffix == ".npz" and is_reference(path):
        return _stored(path, floor, resize)
    published = published_reference(path.name)
    if not path.exists():
        where = f"fetch it from {published[1]['url']}" if published else "give an .npz or a folder"
        raise FileNotFoundError(f"no reference at {path}: {where}")
    if floor is not None and not Path(floor).exists():
        raise FileNotFoundError(f"no floor at {floor}: give an .npz or a folder of real images")
    is_batch = path.suffix == ".npz" and {"mu", "sigma"} <= set(array_names(path))
    n = None
    if is_batch:  # of an unknown one the images at hand are all that is sure
        shapes = array_shapes(path)
        n = published[1]["statistics_n"] if published else shapes.get("arr_0", (0,))[0]
    preprocess = preprocessing(resize)
    return ReferenceSource(
        name=published[0] if published else re.sub(r"[^\w.-]", "-", path.stem) or "reference",
        images=lambda: load(path, preprocess),
        floor=None if floor is None else lambda: load(floor, preprocess),
        batch=path if is_batch else None,
        remedy="",
        statistics_n=n,
        folder=downloads() / "references" if is_batch else None,
        preprocess=preprocess,
        shapes=list,  # sizes are compared when the images are read
        floor_of=None if floor is None else floor_digest({"path": str(floor)}),
    )


def _stored(path: Path, floor: Path | str | None, resize: str | None) -> ReferenceSource:
    """A reference in a file of its own, which says both itself."""
    if floor is not None or resize is not None:
        raise ValueError(
            f"{path} holds features, of images of one size, and its floor lies in "
            f"{floor_path(path)}: leave floor and resize out"
        )
    return stored_source(path.stem, path)


def preprocessing(resize: str | None) -> Preprocessing | None:
    """Of "center_lanczos:256".  Raises ValueError for anything else."""
    if resize is None:
        return None
    name, _, size = resize.partition(":")
    if name not in PREPROCESSING or not size.isdecimal() or int(size) < 1:
        ways = " or ".join(f"{way}:256" for way in PREPROCESSING)
        raise ValueError(
            f"images are resized by a filter to a number of pixels, {ways}, not {resize!r}"
        )
    return Preprocessing(name, int(size))


def _checked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "samples must be uint8 [N, H, W, C] with 1 or 3 channels, got "
            f"{images.dtype} {list(images.shape)}"
        )
    return images
