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

from experiments.cells import Cell, Model, file_names, labels_of, network_calls, noise_of
from experiments.folder import (
    claim,
    finish,
    is_complete,
    is_damaged,
    read_shard,
    write_shard,
)
from experiments.workers import check_share, connected, first_process, wait_for_all, worker
from files.media import Pixels, Shard
from files.whole import stamp
from models.backbone import Backbone
from sampling import Noise, run_tree
from sampling.denoise import Denoised

Watch = Callable[[Sequence[Cell], int], None]
ROUNDS = 3  # so often is made what vanished meanwhile


def generate(
    cells: Sequence[Cell],
    backbone: Model,
    *,
    rank: int = 0,
    world: int = 1,
    watch: Watch | None = None,
) -> bool:
    """Make every missing shard of every cell, then each cell's samples.npz, grid and manifest.

    Returns whether all folders are complete; False when other processes still sample.

    All cells share model, seed, noise, labels and size, and are run as one tree.  Of `world`
    processes, this one (`rank`) makes the shards rank, rank + world, ...; no communication.  What
    vanishes or is damaged while it works is made again.  `watch(cells, k)` is called after shard k
    of these cells was written.  Raises ValueError if a folder holds samples of another config or
    files that are not ours, or samples are not finite; FileNotFoundError if files keep vanishing.
    """
    check_share(rank, world)
    size = cells[0].size
    # Refuse bad settings before anything is made.
    labels_of(cells[0], backbone, range(size.num_samples)[-1:])
    noise_of(cells[0], backbone, [])
    for cell in cells:
        file_names(cell, backbone, range(0))
    shards: Sequence[int] = range(rank, size.num_shards, world)
    for _ in range(ROUNDS):
        for cell in cells:
            claim(cell, backbone.prompts)
        todo = [cell for cell in cells if not is_complete(cell)]
        if todo:
            _make_missing(_Work(todo, shards, backbone), backbone, watch)
        complete = [finish(cell) for cell in cells]
        if all(complete):
            return True
        shards = _lacking(cells, rank, world)
        if not shards and world > 1:
            return False
    raise FileNotFoundError(
        f"files vanish from {cells[0].folder} while samples are made: see to it that nothing else "
        "removes or changes files there, and run the same command to continue"
    )


def generate_all(
    cells: Sequence[Cell], backbone: Model, part: tuple[int, int], watch: Watch | None
) -> bool:
    """`generate` as the process (rank, world) of `part`, and what others have left when they end.

    Processes that torchrun started learn that all have ended: the first of them then makes what is
    missing nevertheless.  It alone knows the result then; the others return False.
    """
    rank, world = part
    complete = generate(cells, backbone, rank=rank, world=world, watch=watch)
    if not connected():
        return complete
    wait_for_all()
    if not first_process():
        return False
    together = worker()[1]
    if world == together:  # nobody else is at work
        return generate(cells, backbone, watch=watch)
    for share in range(rank, rank + together):
        complete = generate(cells, backbone, rank=share, world=world, watch=watch)
    return complete


def _lacking(cells: Sequence[Cell], rank: int, world: int) -> list[int]:
    """The shards that this process has to make again: of its share, and any that is damaged.

    Another's that is absent may be under way; then whoever ends last looks at all of them.
    """
    shards = range(cells[0].size.num_shards)
    lacking = set()
    for cell in cells:
        if is_complete(cell):
            continue
        lacking |= {k for k in shards[rank::world] if read_shard(cell, k) is None}
        if all(cell.shard(k).exists() for k in shards):
            lacking |= {k for k in shards if is_damaged(cell, k)}
    return sorted(lacking)


def _make_missing(work: _Work, backbone: Model, watch: Watch | None) -> None:
    with work.bar as bar:
        for k in work.missing:
            todo = work.still_missing(k)
            if todo:
                _make_shard(todo, k, backbone, bar)
                if watch:
                    watch(todo, k)


class _Work:
    """The shards that a process has to make, each with the cells that lack it, and its progress."""

    def __init__(self, cells: Sequence[Cell], shards: Sequence[int], model: Model):
        self.model = model
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
        return network_calls(self.model, [c.plan for c in cells]) * len(self.size.ids(k))

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


def _make_shard(cells: Sequence[Cell], k: int, backbone: Model, bar: tqdm[Any]) -> None:
    """Sample the ids of shard k for all cells in one tree and write one file a cell."""
    ids = cells[0].size.ids(k)
    labels = labels_of(cells[0], backbone, ids)
    for cell in cells:
        claim(cell, backbone.prompts)  # the folder may have been removed, or be another by now
    cuda = backbone.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(backbone.device)
    start = time.perf_counter()

    def sampled(batch: slice) -> list[Shard]:
        noise = noise_of(cells[0], backbone, ids[batch])
        mine = None if labels is None else labels[batch]
        pictures = _run_batch(cells, backbone, (noise, mine), ids[batch], bar)
        parts = []
        for cell, images in zip(cells, pictures, strict=True):
            names = file_names(cell, backbone, ids[batch])
            parts.append(cell.media.store(cell.folder, names, images))
        return parts

    wanted = cells[0].size.batch_size
    batches = list(backbone.room.batches(len(ids), wanted, sampled, backbone.device))
    seconds = time.perf_counter() - start
    facts = {
        "samples": len(ids),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "device": torch.cuda.get_device_name(backbone.device) if cuda else "cpu",
        "memory": torch.cuda.max_memory_allocated(backbone.device) if cuda else None,
    }
    nfe = sum(len(cell.plan) for cell in cells)
    for cell, mine in zip(cells, zip(*batches, strict=True), strict=True):
        arrays = {"ids": np.array(ids)}
        arrays |= {name: np.concatenate([part[name] for part in mine]) for name in mine[0]}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        share = len(cell.plan) / nfe  # of the tree's time, by its NFE
        claim(cell, backbone.prompts)
        write_shard(cell, k, arrays, {"seconds": round(seconds * share, 3), **facts})


def _run_batch(
    cells: Sequence[Cell],
    backbone: Model,
    given: tuple[Noise, Tensor | None],
    ids: Sequence[int],
    bar: tqdm[Any],
) -> list[Pixels]:
    """The pictures of every cell by this noise and of these labels, `given`.

    A batch that fails does not count as progress.
    """
    noise, labels = given
    calls = 0

    def called(n: int) -> None:
        nonlocal calls
        calls += n
        bar.update(n)

    try:
        if isinstance(backbone, Backbone):
            return _by_tree(cells, backbone, given, ids, called)
        pictures = []
        for cell in cells:
            images = backbone.images(cell.plan, cell.steps, noise, labels, called)
            _check_finite(torch.from_numpy(images), ids)
            pictures.append((images * 255).round().astype(np.uint8))
        return pictures
    except Exception:
        bar.update(-calls)
        raise


def _by_tree(
    cells: Sequence[Cell],
    backbone: Backbone,
    given: tuple[Noise, Tensor | None],
    ids: Sequence[int],
    called: Callable[[int], None],
) -> list[Pixels]:
    """The pictures of every cell, their common beginnings sampled once."""
    noise, labels = given
    denoiser = backbone.given(labels)

    def counted(x: Tensor, *told: float) -> Denoised:
        seen = denoiser(x, *told)
        called(len(x))
        return Denoised(*seen)

    pictures = []
    for x in run_tree(counted, [cell.plan for cell in cells], noise).samples:
        _check_finite(x, ids)
        pictures.append(backbone.decoded(x))
    return pictures


def _check_finite(x: Tensor, ids: Sequence[int]) -> None:
    bad = [i for i, ok in zip(ids, x.flatten(1).isfinite().all(1).tolist(), strict=True) if not ok]
    if bad:
        raise ValueError(
            f"samples {bad[:8]} are not finite; nothing of this shard was written (in half "
            "precision try model.precision=bf16 or fp32)"
        )
