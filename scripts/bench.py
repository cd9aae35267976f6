"""What the loop, the noise, shards and several processes cost or bring; and evaluation.

    make bench
    python -m scripts.bench loop                # against the bare network calls
    python -m scripts.bench generation          # shards on disk, and two processes against one
    python -m scripts.bench evaluation          # 50,000 x 2048 features against 10,000
    python -m scripts.bench evaluation 50000    # ... against 50,000

Both sides of every comparison are interleaved in one run, and medians are compared, because
timings on a shared machine drift.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric

from eval.metrics import fid, frechet_distance, precision_recall
from eval.metrics import statistics as statistics_of
from experiments.cells import Job, Size
from experiments.generate import generate
from models.digits.backbone import load
from sampling import (
    Plan,
    SampleNoise,
    Schedule,
    count_calls,
    mix,
    run,
    sample_labels,
    skipped,
    timesteps,
)

BATCH, STEPS, ROUNDS = 64, 25, 11


def interleaved(
    sides: dict[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of every side, `rounds` times in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table_lookup_loop(denoiser: Callable[..., tuple[Tensor, Tensor | None]], plan: Plan,
                      noise: SampleNoise, y: Tensor) -> Tensor:  # fmt: skip
    """The usual way, for comparison: coefficients are looked up per step in float64 tables,
    one value an image, and broadcast to the shape of the batch."""
    tables = {name: getattr(plan, name) for name in ("alpha_bar", "x", "x0", "noise")}
    x = noise.start()
    for k, row in enumerate(plan.rows()):
        index = torch.full((len(x),), k)

        def at(name: str, index: Tensor = index, x: Tensor = x) -> Tensor:
            values = torch.from_numpy(tables[name])[index].float()
            return values[:, None, None, None].expand(x.shape)

        eps, _ = denoiser(x, row.t, y)
        x0 = (1 / at("alpha_bar")).sqrt() * x - (1 / at("alpha_bar") - 1).sqrt() * eps
        x0 = x0.clamp(-1, 1)
        nonzero = (index != len(plan) - 1).float()[:, None, None, None]
        x = at("x") * x + at("x0") * x0 + nonzero * at("noise") * noise.at(row.t)
    return x


@torch.no_grad()
def loop() -> None:
    backbone = load()
    plan = skipped(backbone.schedule, timesteps(1000, STEPS))
    ids = range(BATCH)
    noise = SampleNoise(0, ids, backbone.shape)
    y = sample_labels(0, ids, 10)
    inputs = [(noise.at(t), t) for t in plan.t.tolist()]

    def network() -> None:
        for x, t in inputs:
            backbone.denoiser(x, t, y)

    def draws() -> None:
        noise.start()
        for t in plan.t[:-1].tolist():
            noise.at(t)

    seconds = interleaved({
        "network calls alone": network,
        "run": lambda: run(backbone.denoiser, plan, noise, condition=y, clip=True),
        "table-lookup loop": lambda: table_lookup_loop(backbone.denoiser, plan, noise, y),
        "noise alone": draws,
    })  # fmt: skip
    bare = seconds["network calls alone"]
    print(f"digits, batch {BATCH}, {STEPS} steps, {torch.get_num_threads()} threads, "
          f"median of {ROUNDS} interleaved rounds")  # fmt: skip
    for name, values in seconds.items():
        ratios = [v / b for v, b in zip(values, bare, strict=True)]
        low, high = np.quantile(ratios, [0.25, 0.75])
        print(f"  {name:<22}{1000 * statistics.median(values) / BATCH / STEPS:8.4f} ms an image call"
              f"   {100 * statistics.median(ratios):7.2f}% of the network  [{100 * low:.1f}, {100 * high:.1f}]")  # fmt: skip
    tree()


def tree() -> None:
    """Network calls of the cutoff ablation, as one tree and one by one."""
    schedule, grid = Schedule.linear(), timesteps(1000, STEPS)
    plans = [mix(schedule, grid, cutoff=c) for c in [*grid.tolist(), 1000]]
    calls, separate = count_calls(plans), sum(map(len, plans))
    print(f"tree: {len(plans)} cutoffs at {STEPS} steps in {calls} network calls "
          f"instead of {separate}: {calls / separate:.3f}")  # fmt: skip


@torch.no_grad()
def generation() -> None:
    """What `generate` adds to sampling: shards, checks, joining; digits, 25 steps."""
    backbone = load()
    plan = skipped(backbone.schedule, timesteps(1000, STEPS))
    size = Size(num_samples=4 * BATCH, batch_size=BATCH, shard_size=BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch, str(k)) for k in range(1000))

        def bare() -> None:
            for k in range(size.num_shards):
                noise = SampleNoise(0, size.ids(k), backbone.shape)
                y = sample_labels(0, size.ids(k), 10)
                backbone.decode(run(backbone.denoiser, plan, noise, condition=y, clip=True))

        def sharded() -> None:
            generate([Job(plan, next(folders), {"label": None})], backbone, size, seed=0)

        seconds = interleaved({"run": bare, "generate": sharded}, rounds=7)
    ratios = [b / a for a, b in zip(seconds["run"], seconds["generate"], strict=True)]
    low, high = np.quantile(ratios, [0.25, 0.75])
    print(f"sharding, writing and joining {size.num_samples} samples in {size.num_shards} shards: "
          f"{100 * statistics.median(ratios):.1f}% of sampling alone [{100 * low:.1f}, {100 * high:.1f}], "
          f"median of 7 interleaved rounds")  # fmt: skip
    processes(plan)


def processes(plan: Plan) -> None:
    """Two single-threaded processes against one, start-up left out."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(2):
        here, there = context.Pipe()
        workers.append(context.Process(target=_worker, args=(there, plan), daemon=True))
        workers[-1].start()
        pipes.append(here)
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch, str(k)) for k in range(1000))

        def share(world: int) -> None:
            folder = next(folders)
            for rank in range(world):
                pipes[rank].send((folder, rank, world))
            for rank in range(world):
                pipes[rank].recv()

        seconds = interleaved({"one": lambda: share(1), "two": lambda: share(2)}, rounds=5)
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    ratios = [a / b for a, b in zip(seconds["one"], seconds["two"], strict=True)]
    print(f"two single-threaded processes: {statistics.median(ratios):.2f} times as fast as one "
          f"[{min(ratios):.2f}, {max(ratios):.2f}], 5 interleaved rounds, "
          f"{multiprocessing.cpu_count()} cores")  # fmt: skip


def _worker(pipe: Any, plan: Plan) -> None:
    torch.set_num_threads(1)
    backbone = load()
    size = Size(num_samples=4 * BATCH, batch_size=BATCH, shard_size=BATCH)
    while task := pipe.recv():
        folder, rank, world = task
        job = Job(plan, folder, {"label": None})
        generate([job], backbone, size, seed=0, rank=rank, world=world)
        pipe.send(rank)


def evaluation(references: int) -> None:
    """FID two ways, and the time and memory of a 50,000-sample evaluation at 2048 features."""
    rng = np.random.default_rng(0)
    # A spectrum as steep as Inception's, so that covariances are nearly singular as there.
    scale = np.exp(-np.arange(2048) / 250).astype(np.float32)
    x = rng.standard_normal((50_000, 2048), dtype=np.float32) * scale
    y = rng.standard_normal((references, 2048), dtype=np.float32) * scale + 0.01
    before = peak_mib()
    start = time.perf_counter()
    reference = statistics_of(y)
    score = fid(x, reference, se="delta")
    print(f"FID of {len(x):,} x 2048 with its error: {time.perf_counter() - start:.1f} s")
    a, b = statistics_of(x), reference
    sides = {
        "Cholesky (ours)": lambda: frechet_distance(a, b),
        "eigenvalues (torch-fidelity)": lambda: fid_statistics_to_metric(
            {"mu": a.mean, "sigma": a.cov}, {"mu": b.mean, "sigma": b.cov}, verbose=False
        )["frechet_inception_distance"],
    }
    values = {name: call() for name, call in sides.items()}
    seconds = interleaved(sides, rounds=3)
    for name, times in seconds.items():
        print(f"  {name:<30}{statistics.median(times):8.2f} s   {values[name]:.9f}")
    ours, theirs = values.values()
    print(f"  they differ by {abs(ours - theirs) / theirs:.1e} relative; {score.value:.6f} above")
    start = time.perf_counter()
    precision, recall = precision_recall(x, y)
    print(f"precision and recall against {references:,}: {time.perf_counter() - start:.0f} s, "
          f"{precision.value:.4f} and {recall.value:.4f}; peak memory of all this "
          f"{peak_mib() / 1024:.2f} GiB, {before / 1024:.2f} GiB of it before")  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    if what not in ("all", "loop", "generation", "evaluation"):
        sys.exit(
            f"error: unknown benchmark {what!r}: choose loop, generation or evaluation, or none "
            "for all"
        )
    if what in ("all", "loop"):
        loop()
    if what in ("all", "generation"):
        generation()
    if what in ("all", "evaluation"):
        evaluation(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)


if __name__ == "__main__":
    main()
