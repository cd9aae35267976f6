"""Generate many samples: sharded, resumable, atomic, and the same however it is run.

Sample i of a folder is a function of (seed, i) and the folder's config alone.  Running the same
command again makes only what is missing, and asking for more samples adds to what is there.
Cells whose plans begin alike are sampled as one tree, so that shared network calls are made once.

Processes that share a folder need not know of each other: whoever samples shard k writes the same
bytes, and nothing depends on a clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.cells import Cell, file_names, labels_of, noise_of
from experiments.folder import (
    claim,
    finish,
    is_complete,
    read_shard,
    stamp,
    sweep,
    write_shard,
)
from experiments.workers import check_rank, worker
from files.media import Shard
from models.backbone import Backbone
from sampling import Noise, Plan, count_calls, run_tree
from sampling.denoise import Denoised

Watch = Callable[[Sequence[Cell], int], None]


def generate(
    cells: Sequence[Cell],
    backbone: Backbone,
    *,
    rank: int = 0,
    world: int = 1,
    watch: Watch | None = None,
) -> bool:
    """Make every missing shard of every cell, then each cell's samples.npz, grid and manifest.

    Returns whether all folders are complete; False when other processes still sample.

    All cells share model, seed, noise, labels and size, and are run as one tree.  Of `world`
    processes, this one (`rank`) makes the shards rank, rank + world, ...; no communication.
    `watch(cells, k)` is called after shard k of these cells was written.  Raises ValueError if a
    folder holds samples of another config, samples are not finite, or there is no such rank.
    """
    size = cells[0].size
    # Refuse bad settings before anything is made.
    check_rank(rank, world)
    labels_of(cells[0], backbone, range(size.num_samples)[-1:])
    noise_of(cells[0], backbone, [])
    for cell in cells:
        file_names(cell, backbone, range(0))
        claim(cell, backbone.prompts)
        if is_complete(cell):
            sweep(cell)
    cells = [cell for cell in cells if not is_complete(cell)]
    if not cells:
        return True
    work = _Work(cells, range(rank, size.num_shards, world))
    batch_size = size.batch_size
    with work.bar as bar:
        for k in work.missing:
            todo = work.still_missing(k)
            if todo:
                batch_size = _make_shard(todo, k, backbone, batch_size, bar)
                if watch:
                    watch(todo, k)
    complete = [finish(cell) for cell in cells]
    return all(complete)


class _Work:
    """The shards that a process has to make, each with the cells that lack it, and its progress."""

    def __init__(self, cells: Sequence[Cell], shards: Sequence[int]):
        self.size = cells[0].size
        self.stamps = {(k, cell.folder): stamp(cell.shard(k)) for k in shards for cell in cells}
        lacking = {k: [cell for cell in cells if read_shard(cell, k) is None] for k in shards}
        self.missing = {k: lack for k, lack in lacking.items() if lack}
        self.bar = tqdm(
            total=sum(self._calls(k, todo) for k, todo in self.missing.items()),
            unit="image call",
            unit_scale=True,
            mininterval=0.5,
            disable=not self.missing or worker()[0] > 0,
        )

    def _calls(self, k: int, cells: Sequence[Cell]) -> int:
        return count_calls([cell.plan for cell in cells]) * len(self.size.ids(k))

    def still_missing(self, k: int) -> list[Cell]:
        """The cells whose shard k no other process has made since this one began."""
        todo = [
            cell
            for cell in self.missing[k]
            if stamp(cell.shard(k)) == self.stamps[k, cell.folder] or read_shard(cell, k) is None
        ]
        spared = self._calls(k, self.missing[k]) - self._calls(k, todo)
        self.bar.total = (self.bar.total or 0) - spared
        self.bar.set_description(f"shard {k + 1}/{self.size.num_shards}")
        return todo


def _make_shard(
    cells: Sequence[Cell], k: int, backbone: Backbone, batch_size: int, bar: tqdm[Any]
) -> int:
    """Sample the ids of shard k for all cells in one tree and write one file a cell.

    Returns the batch size for the next shard: halved as often as the device ran out of memory.
    """
    ids, plans = cells[0].size.ids(k), [cell.plan for cell in cells]
    labels = labels_of(cells[0], backbone, ids)
    parts: list[list[Shard]] = [[] for _ in cells]
    cuda = backbone.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(backbone.device)
    start, first = time.perf_counter(), 0
    while first < len(ids):
        batch = slice(first, first + batch_size)
        noise = noise_of(cells[0], backbone, ids[batch])
        samples = _run_batch(plans, backbone, noise, None if labels is None else labels[batch], bar)
        if samples is None:
            batch_size = _halved(batch_size, backbone.device)
            continue
        for cell, mine, x in zip(cells, parts, samples, strict=True):
            _check_finite(x, ids[batch])
            names = file_names(cell, backbone, ids[batch])
            mine.append(cell.media.store(cell.folder, names, backbone.decode(x)))
        first += batch_size
    seconds = time.perf_counter() - start
    facts = {
        "samples": len(ids),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "device": torch.cuda.get_device_name(backbone.device) if cuda else "cpu",
        "memory": torch.cuda.max_memory_allocated(backbone.device) if cuda else None,
    }
    nfe = sum(map(len, plans))
    for cell, mine in zip(cells, parts, strict=True):
        arrays = {"ids": np.array(ids)}
        arrays |= {name: np.concatenate([part[name] for part in mine]) for name in mine[0]}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        share = len(cell.plan) / nfe  # of the tree's time, by its NFE
        write_shard(cell, k, arrays, {"seconds": round(seconds * share, 3), **facts})
    return batch_size


def _run_batch(
    plans: Sequence[Plan],
    backbone: Backbone,
    noise: Noise,
    labels: Tensor | None,
    bar: tqdm[Any],
) -> list[Tensor] | None:
    """The samples of every plan, or None if the device has too little memory for the batch."""
    calls = 0
    try:
        denoiser = backbone.given(labels)

        def counted(x: Tensor, *told: float) -> Denoised:
            nonlocal calls
            seen = denoiser(x, *told)
            calls += len(x)
            bar.update(len(x))
            return Denoised(*seen)

        return run_tree(counted, plans, noise).samples
    except torch.OutOfMemoryError:
        bar.update(-calls)
        return None


def _halved(batch_size: int, device: torch.device) -> int:
    if batch_size == 1:
        raise ValueError(
            f"{device} has too little memory for a batch of one: use a lower model.precision, "
            "a device with more memory, or free some of it"
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tqdm.write(f"out of memory with batch_size={batch_size}: going on with {batch_size // 2}")
    return batch_size // 2


def _check_finite(x: Tensor, ids: Sequence[int]) -> None:
    bad = [i for i, ok in zip(ids, x.flatten(1).isfinite().all(1).tolist(), strict=True) if not ok]
    if bad:
        raise ValueError(
            f"samples {bad[:8]} are not finite; nothing of this shard was written (in half "
            "precision try model.precision=bf16 or fp32)"
        )
