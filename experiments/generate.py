"""DOC"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from experiments.cells import Job, Size, video_names
from experiments.folder import (
    Shard,
    _claim,
    _finish,
    _order,
    _read_shard,
    _stamp,
    _sweep,
    _write_videos,
    is_complete,
)
from experiments.workers import worker
from files.prompts import _write_prompts
from files.whole import write_atomic
from models.backbone import Backbone
from sampling import SampleNoise, count_calls, run_tree, sample_labels
from sampling.adapters import Sampler


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
