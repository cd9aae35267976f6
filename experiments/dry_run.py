"""What an experiment would do and cost, before it does: cells, network calls, hours, bytes."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from experiments.cells import Job, Size
from experiments.folder import read_manifest
from experiments.generate import batch_labels, run_options
from models.backbone import Backbone
from sampling import SampleNoise, count_calls, run, skipped

Column = tuple[int, Size, dict[str, Job]]  # step count, size, and the job of each row

CALIBRATION_SECONDS = 20.0  # a batch that would take longer is measured by one image


@dataclass(frozen=True)
class Cost:
    """Network calls x images of one column: of every plan by itself, as one tree, and to do."""

    alone: int
    tree: int
    missing: int


def count(jobs: Sequence[Job], size: Size) -> Cost:
    """What sampling these jobs costs in image calls, and what is still missing of it."""
    plans = [job.plan for job in jobs]
    calls = cache(lambda todo: count_calls([plans[i] for i in todo]))
    missing, done = 0, [shards_done(job, size) for job in jobs]
    for k in range(size.num_shards):
        todo = tuple(i for i, shards in enumerate(done) if k not in shards)
        missing += calls(todo) * len(size.ids(k))
    n = size.num_samples
    return Cost(sum(map(len, plans)) * n, calls(tuple(range(len(jobs)))) * n, missing)


def calibrate(backbone: Backbone, batch_size: int, device: torch.device) -> tuple[float, int]:
    """(seconds an image and network call, batch size of the measurement), guidance included.

    After a first call, which only warms up, the batch doubles until it is whole or the next one
    would take too long; the last measurement counts.
    """
    plan = skipped(backbone.schedule, [backbone.schedule.T - 1])

    def seconds(size: int) -> float:
        rule = "balanced" if backbone.num_classes else None
        labels = batch_labels(0, range(size), backbone, rule)
        options = run_options(backbone, labels, device)
        noise = SampleNoise(0, range(size), backbone.shape, device=device)
        start = time.perf_counter()
        x = run(backbone.denoiser, plan, noise, **options)
        x.sum().item()  # wait for the device
        return (time.perf_counter() - start) / size

    seconds(1)
    size, each = 1, seconds(1)
    while size < batch_size and 2 * size * each <= CALIBRATION_SECONDS:
        size = min(2 * size, batch_size)
        seconds(size)  # a new size may be compiled or tuned for
        each = seconds(size)
    return each, size


def report(
    columns: Sequence[Column], backbone: Backbone, batch_size: int, device: torch.device
) -> str:
    """The dry run in lines of text."""
    lines = [f"{'steps':>6}{'samples':>9}  {'calls alone':>14}{'as one tree':>14}"
             f"{'still to do':>14}  cells: shards done"]  # fmt: skip
    total = Cost(0, 0, 0)
    written = missing_bytes = 0.0
    for steps, size, jobs in columns:
        cost = count(list(jobs.values()), size)
        total = Cost(total.alone + cost.alone, total.tree + cost.tree, total.missing + cost.missing)
        done = {row: len(shards_done(job, size)) for row, job in jobs.items()}
        image_bytes = backbone.stored_bytes
        written += image_bytes * size.num_samples * len(jobs)
        missing_bytes += sum(
            image_bytes * size.num_samples * (1 - shards / size.num_shards)
            for shards in done.values()
        )
        cells = ", ".join(f"{row} {n}/{size.num_shards}" for row, n in done.items())
        if not any(done.values()):
            cells = f"none of {size.num_shards} in any of {len(jobs)}"
        lines.append(f"{steps:>6}{size.num_samples:>9,}  {cost.alone:>14,}{cost.tree:>14,}"
                     f"{cost.missing:>14,}  {cells}")  # fmt: skip
    saved = 1 - total.tree / total.alone
    lines.append(f"{sum(len(jobs) for _, _, jobs in columns)} cells, {total.alone:,} image calls, "
                 f"{total.tree:,} as trees that share beginnings ({100 * saved:.0f}% saved), "
                 f"{total.missing:,} still to do")  # fmt: skip
    seconds, measured = calibrate(backbone, batch_size, device)
    what = "random weights" if backbone.sha256 == "untrained" else "the model"
    lines.append(f"calibration: {1000 * seconds:.3g} ms an image call ({what}, batch {measured}, "
                 f"{_device_name(device)})")  # fmt: skip
    lines.append(f"still to do: {_hours(total.missing * seconds)} of one such device, "
                 f"all of it: {_hours(total.tree * seconds)}; several share it evenly")  # fmt: skip
    if backbone.memory is not None:
        lines.append(f"memory while sampling: about {_bytes(backbone.memory(batch_size))} on the "
                     f"device with batch {batch_size} (estimated from the largest tensors)")  # fmt: skip
    free = shutil.disk_usage(_existing_parent(columns[0][2])).free
    lines.append(f"bytes written: {_bytes(written)}, {_bytes(missing_bytes)} of them still to come; "
                 f"free here: {_bytes(free)}")  # fmt: skip
    if missing_bytes > free:
        lines.append("the disk is too small for that: link runs/ to a larger one")
    return "\n".join(lines)


def shards_done(job: Job, size: Size) -> set[int]:
    """The shards whose file exists, and is long enough if the folder is to grow.

    `generate` looks into them, and may find one damaged.
    """
    manifest = read_manifest(job.folder)
    made = manifest["num_samples"] if manifest else 0
    return {k for k in range(size.num_shards) if size.ids(k)[-1] < made and job.shard(k).exists()}


def _existing_parent(jobs: dict[str, Job]) -> Path:
    folder = next(iter(jobs.values())).folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{torch.get_num_threads()} CPU threads"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
