"""Generate many samples: sharded, resumable, atomic, and the same however it is run.

Sample i of a folder is a function of (seed, i) and the folder's config alone.  Shard k holds
the samples k * shard_size .. (k + 1) * shard_size - 1 and is written whole; running the same
command again makes only what is missing, and asking for more samples adds to what is there.
Folders whose plans begin alike are sampled as one tree, so that shared network calls are made once.

Processes that share a folder need not know of each other: whoever samples shard k writes the same
bytes, and nothing depends on a clock.  What differs from run to run (seconds, host, memory) lies
beside each shard, in a .json file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eval.files import UNREADABLE, remove_partial, write_atomic
from models.backbone import Backbone
from sampling import SampleNoise, count_calls, run_tree, sample_labels
from sampling.adapters import Sampler
from scripts.distributed import worker
from scripts.video import read_mp4, write_mp4

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

Shard = dict[str, NDArray[Any]]

LOCK = ".lock-"  # begins the name of the file that a process at work holds

LONGEST_NAME = 220  # bytes of a prompt in a file's name, of which most systems allow 255


@dataclass(frozen=True)
class Job:
    """One folder of samples.  `config` is everything that the pixels depend on."""

    plan: Sampler
    folder: Path
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identifies the config; every shard carries it."""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def shard(self, k: int) -> Path:
        return self.folder / "shards" / f"shard-{k:05d}.npz"

    def facts(self, k: int) -> Path:
        """How shard k was made: the file beside it."""
        return self.shard(k).with_suffix(".json")

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


@dataclass(frozen=True)
class Size:
    """How many samples, and how they are cut up; none of it changes a pixel's meaning."""

    num_samples: int
    batch_size: int = 64
    shard_size: int = 256

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "shard_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be at least 1 and an integer, got {value!r}")

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_samples / self.shard_size)

    def ids(self, k: int) -> range:
        return range(k * self.shard_size, min((k + 1) * self.shard_size, self.num_samples))


def generate(
    jobs: Sequence[Job],
    backbone: Backbone,
    size: Size,
    *,
    seed: int,
    label: int | str | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    watch: Callable[[Sequence[Job], Size, int], None] | None = None,
) -> bool:
    """Make every missing shard of every job, then each job's samples.npz, grid and manifest.

    Returns whether all folders are complete; False when other processes still sample.

    All jobs share model, seed, labels and size, and are run as one tree.  Of `world`
    processes, this one (`rank`) makes the shards rank, rank + world, ...; no communication.
    `watch(jobs, size, k)` is called after shard k of these jobs was written.
    Raises ValueError if a folder holds samples of another config, or samples are not finite.
    """
    # Refuse bad settings before anything is made.
    batch_labels(seed, range(size.num_samples)[-1:], backbone, label)
    SampleNoise(seed, [], backbone.shape)
    for job in jobs:
        if backbone.fps is not None:
            video_names(job, backbone, range(0))
        _claim(job, size)
        if backbone.prompts is not None:
            _write_prompts(job.folder / "prompts.txt", backbone.prompts)
        if is_complete(job, size):
            _sweep(job)
    jobs = [job for job in jobs if not is_complete(job, size)]
    mine = range(rank, size.num_shards, world)
    found = {(k, job.folder): _stamp(job.shard(k)) for k in mine for job in jobs}
    missing = {k: [job for job in jobs if _read_shard(job, k, size) is None] for k in mine}
    missing = {k: todo for k, todo in missing.items() if todo}

    def still_missing(job: Job, k: int) -> bool:
        """Whether no other process has made the shard since."""
        unchanged = _stamp(job.shard(k)) == found[k, job.folder]
        return unchanged or _read_shard(job, k, size) is None

    calls = {k: count_calls([j.plan for j in todo]) * len(size.ids(k)) for k, todo in missing.items()}  # fmt: skip
    batch_size = size.batch_size
    bar = tqdm(total=sum(calls.values()), unit="image call", unit_scale=True, mininterval=0.5,
               disable=not missing or worker()[0] > 0)  # fmt: skip
    with bar, _order(list(missing), jobs, rank, world) as order:
        for k in order:
            bar.set_description(f"shard {k + 1}/{size.num_shards}")
            todo = [job for job in missing[k] if still_missing(job, k)]
            if len(todo) < len(missing[k]):
                saved = calls[k] - count_calls([j.plan for j in todo]) * len(size.ids(k))
                bar.total = (bar.total or 0) - saved
            if not todo:
                continue
            ids = size.ids(k)
            labels = batch_labels(seed, ids, backbone, label)
            batch_size = _make_shard(k, todo, backbone, ids, labels, batch_size, seed, device, bar)
            if watch:
                watch(todo, size, k)
    finished = [_finish(job, size) for job in jobs]
    return all(finished)


@contextmanager
def _order(shards: list[int], jobs: Sequence[Job], rank: int, world: int) -> Iterator[list[int]]:
    """The order in which this process makes its shards.

    If another one, started by the same command, is at work on them, the last come first: the two
    meet in the middle.  Whether there is one, a lock tells, which ends with the process that holds
    it.  Where the file system has no locks, both do all of the work, with the same result.
    """
    if not shards or fcntl is None:
        yield shards
        return
    path = jobs[0].folder / f"{LOCK}{rank}-of-{world}"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{jobs[0].folder} is being sampled by another process: sharing the work")
            yield shards[::-1]
            return
        except OSError:  # no locks here
            pass
        try:
            yield shards
        finally:
            path.unlink(missing_ok=True)


def _make_shard(
    k: int,
    jobs: Sequence[Job],
    backbone: Backbone,
    ids: range,
    labels: Tensor | None,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    bar: tqdm[Any],
) -> int:
    """Sample the ids of shard k for all jobs in one tree and write one file a job.

    Returns the batch size for the next shard: halved as often as the device ran out of memory.
    """
    plans = [job.plan for job in jobs]
    kept: list[list[NDArray[Any]]] = [[] for _ in jobs]
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start, first = time.perf_counter(), 0
    while first < len(ids):
        part = slice(first, first + batch_size)
        noise = SampleNoise(seed, ids[part], backbone.shape, device=device)
        samples = _run_batch(plans, backbone, noise, None if labels is None else labels[part], bar)
        if samples is None:
            batch_size = _halved(batch_size, device)
            continue
        for job, mine, x in zip(jobs, kept, samples, strict=True):
            _check_finite(x, ids[part])
            decoded: NDArray[Any] = backbone.decode(x)
            if backbone.fps is not None:
                decoded = _write_videos(job, backbone, ids[part], decoded)
            mine.append(decoded)
        first += batch_size
    # A job's share of the tree's time, by its NFE.
    seconds = time.perf_counter() - start
    nfe = sum(len(job.plan) for job in jobs)
    for job, mine in zip(jobs, kept, strict=True):
        shard: Shard = {"ids": np.array(ids)}
        shard["arr_0" if backbone.fps is None else "bytes"] = np.concatenate(mine)
        if backbone.fps is not None:
            shard["names"] = np.array(video_names(job, backbone, ids))
        if labels is not None:
            shard["arr_1"] = labels.numpy()
        shard["config"] = np.array(job.digest)
        shard["members"] = np.array(sorted(shard))
        facts = {
            "seconds": round(seconds * len(job.plan) / nfe, 3),
            "samples": len(ids),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
            "memory": torch.cuda.max_memory_allocated(device) if cuda else None,
        }
        write_atomic(job.facts(k), lambda p, f=facts: p.write_text(json.dumps(f) + "\n"))  # type: ignore[misc]
        write_atomic(job.shard(k), lambda p, s=shard: np.savez(p, **s))  # type: ignore[misc]
    return batch_size


def read_facts(job: Job, k: int) -> dict[str, Any] | None:
    """How shard k was made (seconds, samples, worker, device, memory), or None if that is lost."""
    try:
        facts: dict[str, Any] = json.loads(job.facts(k).read_text())
        return facts
    except (OSError, ValueError):
        return None


def video_names(job: Job, backbone: Backbone, ids: Sequence[int]) -> list[str]:
    """File names of videos: 000007.mp4, or with names=prompt `{prompt}-{k}.mp4` as VBench reads.

    k counts the videos of a prompt.  Raises ValueError for prompts that cannot be file names, or
    not two of them.
    """
    if job.config.get("names") != "prompt":
        return [f"{i:06d}.mp4" for i in ids]
    prompts, label = backbone.prompts or (), job.config["label"]
    for j, prompt in enumerate(prompts):
        if "/" in prompt or "\0" in prompt or len(prompt.encode()) > LONGEST_NAME:
            raise ValueError(
                f"prompt {j + 1} cannot be a file name ({prompt[:60]!r}): use names=id"
            )
    if len(set(prompts)) < len(prompts):
        twice = next(p for p in prompts if prompts.count(p) > 1)
        raise ValueError(f"the prompt {twice[:60]!r} is there twice: remove one, or use names=id")
    if label is None:
        return [f"{prompts[i]}-0.mp4" for i in ids]
    if label == "balanced":
        return [f"{prompts[i % len(prompts)]}-{i // len(prompts)}.mp4" for i in ids]
    return [f"{prompts[label]}-{i}.mp4" for i in ids]


def _write_videos(
    job: Job, backbone: Backbone, ids: Sequence[int], videos: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Write videos uint8 [B, T, H, W, 3] into the job's folder; the sizes of the files."""
    sizes = []
    for name, frames in zip(video_names(job, backbone, ids), videos, strict=True):
        path = job.folder / "videos" / name
        write_mp4(path, frames, backbone.fps or 1, backbone.bit_rate)
        sizes.append(path.stat().st_size)
    return np.array(sizes, dtype=np.int64)


def _run_batch(
    plans: Sequence[Sampler],
    backbone: Backbone,
    noise: SampleNoise,
    labels: Tensor | None,
    bar: tqdm[Any],
) -> list[Tensor] | None:
    """The samples of every plan, or None if the device has too little memory for the batch."""
    made = 0

    def counted(x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        nonlocal made
        out = backbone.denoiser(x, t, condition)
        made += len(x)
        bar.update(len(x))
        return out

    try:
        options = run_options(backbone, labels, noise.device)
        return run_tree(counted, plans, noise, **options).samples
    except torch.OutOfMemoryError:
        bar.update(-made)
        return None


def run_options(
    backbone: Backbone, labels: Tensor | None, device: torch.device | str
) -> dict[str, Any]:
    """What `run` and `run_tree` need to know of a model, for samples with these labels [B]."""
    condition = gradient = None
    if labels is not None:
        y = labels.to(device)
        condition = y if backbone.embed is None else backbone.embed(labels)
        gradient = backbone.guidance and backbone.guidance.gradient(y)
    return {
        "condition": condition,
        "clip": backbone.clip,
        "gradient": gradient,
        "prediction_type": backbone.prediction_type,
    }


def _halved(batch_size: int, device: torch.device | str) -> int:
    if batch_size == 1:
        raise ValueError(
            f"{device} has too little memory for a batch of one: use a lower model.precision, "
            "a device with more memory, or free some of it"
        )
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    tqdm.write(f"out of memory with batch_size={batch_size}: going on with {batch_size // 2}")
    return batch_size // 2


def batch_labels(
    seed: int, ids: Sequence[int], backbone: Backbone, label: int | str | None
) -> Tensor | None:
    """Class of each sample, a function of (seed, i) alone; None if the model has no classes.

    `label` is one class for all, "balanced" (class i mod num_classes: equally many of each) or
    None: uniform at random, as guided-diffusion; of a model with prompts, prompt i for sample i.
    Raises ValueError for any other label, and for samples beyond the last prompt.
    """
    num_classes = backbone.num_classes
    if num_classes is None:
        if label is not None:
            raise ValueError("this model is unconditional: leave label=null")
        return None
    if label is None and backbone.prompts is not None:
        if ids and ids[-1] >= num_classes:
            raise ValueError(
                f"sample i is of prompt i, and there are {num_classes} prompts for "
                f"{ids[-1] + 1} samples: lower num_samples, or let the prompts repeat with "
                "label=balanced"
            )
        return torch.tensor(list(ids), dtype=torch.int64)
    if label is None:
        return sample_labels(seed, ids, num_classes)
    if label == "balanced":
        return torch.tensor(list(ids), dtype=torch.int64) % num_classes
    if type(label) is not int or not 0 <= label < num_classes:
        raise ValueError(f"label must be in 0..{num_classes - 1}, balanced or null, got {label}")
    return torch.full((len(ids),), label, dtype=torch.int64)


def _check_finite(x: Tensor, ids: Sequence[int]) -> None:
    bad = [i for i, ok in zip(ids, x.flatten(1).isfinite().all(1).tolist(), strict=True) if not ok]
    if bad:
        raise ValueError(
            f"samples {bad[:8]} are not finite; nothing of this shard was written (in half "
            "precision try model.precision=bf16 or fp32)"
        )


# --- folders -------------------------------------------------------------------------------


def _claim(job: Job, size: Size) -> None:
    """Make the folder ours, or refuse: it may hold only samples of the same config."""
    try:
        old = read_manifest(job.folder)
    except ValueError:  # every shard tells its config, too
        tqdm.write(f"{job.manifest} is damaged: writing it anew")
        old = None
    made = old and (old["complete"] or any((job.folder / "shards").glob("shard-*")))
    if old is None or not made:
        (job.folder / "shards").mkdir(parents=True, exist_ok=True)
        _write_manifest(job, size, {"complete": False})
        return
    ours = json.loads(json.dumps(job.config))
    if old["config"] != ours:
        difference = _first_difference(old["config"], ours)
        raise ValueError(
            f"{job.folder} holds samples of another config ({difference}); "
            "choose another out=DIR or remove that folder"
        )
    if old["shard_size"] != size.shard_size:
        raise ValueError(
            f"{job.folder} was begun with shard_size={old['shard_size']}; continue with that"
        )
    if old["num_samples"] < size.num_samples:
        _write_manifest(job, size, {"complete": False})


def _write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """The prompts beside the samples, line i + 1 for label i, where evaluation looks for them."""
    text = "".join(f"{prompt}\n" for prompt in prompts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's folder, or None if there is none.  ValueError if it is damaged."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        _ = [
            manifest[key]
            for key in ("config", "plan", "nfe", "num_samples", "shard_size", "complete")
        ]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: the command that sampled it mends it") from None
    return manifest


def _write_manifest(job: Job, size: Size, facts: dict[str, Any]) -> None:
    content = {
        "config": job.config,
        "plan": job.plan.name,
        "nfe": len(job.plan),
        "num_samples": size.num_samples,
        "shard_size": size.shard_size,
        **facts,
        "versions": {name: _version(name) for name in ("torch", "numpy", "hydra-core")},
    }
    write_atomic(job.manifest, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return _first_difference(a, b, f"{prefix}{key}.")
        if a != b:
            return f"{prefix}{key} is {a} there, {b} here"
    return "no difference"


def is_complete(job: Job, size: Size) -> bool:
    """Whether the folder holds so many samples, joined; of videos, whether all are there."""
    manifest = read_manifest(job.folder)
    if manifest and manifest["complete"] and manifest.get("videos"):
        return all(_read_shard(job, k, size) is not None for k in range(size.num_shards))
    return (
        manifest is not None
        and manifest["complete"]
        and manifest["num_samples"] >= size.num_samples
        and (job.folder / "samples.npz").is_file()
        and (job.folder / "samples.npz").stat().st_size == manifest["bytes"]
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever another file takes the place of this one; None without one."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_shard(job: Job, k: int, size: Size) -> Shard | None:
    """The arrays of shard k, or None if it is absent, too short, or damaged.

    Raises ValueError for a whole shard of another config.
    """
    path, ids = job.shard(k), size.ids(k)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            shard = {name: file[name] for name in file.files}  # reading checks the CRC
        # A directory of the file may be damaged so that it lists less than there is.
        members = shard.pop("members", None)
        if members is None and "seconds" in shard:  # of a version that wrote no members
            members = np.array(sorted(shard))
        if members is None or members.tolist() != sorted(shard):
            raise KeyError("members")
        if not np.array_equal(shard["ids"][: len(ids)], ids):
            return None  # the folder grows, and this was its last shard
        config = str(shard.pop("config"))
    except UNREADABLE:
        tqdm.write(f"{path} is damaged: sampling it again")
        return None
    if config != job.digest:
        raise ValueError(f"{path} is of another config: choose another out=DIR or remove it")
    if "names" in shard and not _videos_are_whole(job, shard):
        return None
    return {name: array[: len(ids)] if array.ndim else array for name, array in shard.items()}


def _videos_are_whole(job: Job, shard: Shard) -> bool:
    """Whether every video of a shard is there with the size that it was written with."""
    for name, size in zip(shard["names"].tolist(), shard["bytes"].tolist(), strict=True):
        path = job.folder / "videos" / name
        if not path.is_file() or path.stat().st_size != size:
            tqdm.write(f"{path} is missing or damaged: sampling its shard again")
            return False
    return True


def _finish(job: Job, size: Size) -> bool:
    """When every shard is there: samples.npz, grid.png, and a manifest that says complete."""
    if not all(job.shard(k).exists() for k in range(size.num_shards)):
        return False  # other ranks are still at work; the last one to end finishes the folder
    try:
        whole = _read_all(job, size)
    except _ShardMissing:
        return False
    seconds = [(read_facts(job, k) or {}).get("seconds") for k in range(size.num_shards)]
    known = [s for s in seconds if s is not None]
    total = round(sum(known), 3) if len(known) == len(seconds) else None
    facts = {"complete": True, "seconds": total}
    _write_manifest(job, size, {**facts, **whole})
    _sweep(job)
    return True


def _sweep(job: Job) -> None:
    """Remove from a complete folder what killed processes left."""
    for folder in (job.folder, job.folder / "shards", job.folder / "videos"):
        remove_partial(folder)
    for path in job.folder.glob(f"{LOCK}*"):
        path.unlink(missing_ok=True)


def _read_all(job: Job, size: Size) -> dict[str, Any]:
    """Join the shards into samples.npz unless they are videos, and write grid.png.

    Returns what the manifest says of it.  Raises _ShardMissing for a shard that is not whole.
    """
    videos = "names" in next(_shards(job, size))
    facts: dict[str, Any]
    if videos:
        count = sum(int(shard["bytes"].sum()) for shard in _shards(job, size))
        facts = {"videos": True, "bytes": count}
    else:
        write_atomic(job.folder / "samples.npz", lambda p: _join(job, size, p))
        facts = {"bytes": (job.folder / "samples.npz").stat().st_size}
    images = _first_images(job, size, 16 if videos else 64)
    write_atomic(job.folder / "grid.png", lambda p: save_grid(images, p))
    return facts


class _ShardMissing(Exception):
    pass


def _shards(job: Job, size: Size) -> Iterator[Shard]:
    for k in range(size.num_shards):
        shard = _read_shard(job, k, size)
        if shard is None:
            raise _ShardMissing
        yield shard


def _join(job: Job, size: Size, path: Path) -> None:
    """Stream all shards into one .npz, one shard in memory at a time."""
    first = next(_shards(job, size))["arr_0"]
    labels: list[NDArray[np.int64]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (size.num_samples, *first.shape[1:]),
        }
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for shard in _shards(job, size):
                file.write(np.ascontiguousarray(shard["arr_0"]).tobytes())
                if "arr_1" in shard:
                    labels.append(shard["arr_1"])
        if labels:
            with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)


def _first_images(job: Job, size: Size, count: int) -> NDArray[np.uint8]:
    images: list[NDArray[np.uint8]] = []
    for shard in _shards(job, size):
        if "names" in shard:
            names = shard["names"][: count - len(images)].tolist()
            images.extend(middle_frame(job.folder / "videos" / name) for name in names)
        else:
            images.extend(shard["arr_0"][: count - len(images)])
        if len(images) == count:
            break
    return np.stack(images)


def middle_frame(path: Path) -> NDArray[np.uint8]:
    frames = read_mp4(path).frames
    return frames[len(frames) // 2]


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Images uint8 [N, H, W, C] as one PNG, row by row in a square, 2 pixels apart."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 128, np.uint8)
    for i, image in enumerate(images):
        y, x = 2 + (i // columns) * (height + 2), 2 + (i % columns) * (width + 2)
        sheet[y : y + height, x : x + width] = image
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)


def export_png(folder: Path, images: NDArray[np.uint8]) -> None:
    """One PNG a sample, named by its id, in folder/png; those already there are kept."""
    target = folder / "png"
    target.mkdir(exist_ok=True)
    for i, image in enumerate(tqdm(images, desc="png", leave=False, delay=2)):
        path = target / f"{i:06d}.png"
        if not path.exists():
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            write_atomic(path, picture.save)
