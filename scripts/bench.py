"""What the loop, the noise, shards and several processes cost or bring; and evaluation.

    make bench
    python -m scripts.bench loop                # against the bare network calls
    python -m scripts.bench generation          # shards on disk, and two processes against one
    python -m scripts.bench evaluation          # 50,000 x 2048 features against 10,000
    python -m scripts.bench evaluation 50000    # ... against 50,000

Both sides of every comparison are interleaved in one run, and medians are compared, because
timings on a shared machine drift.
"""

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from eval.metrics import fid, frechet_distance, precision_recall
from eval.metrics import statistics as statistics_of
from experiments.cells import Cell, Size
from experiments.config import parser
from experiments.generate import generate
from models.digits.backbone import load
from sampling import SampleNoise, Schedule, run, sample_labels, skipped
from sampling import timesteps as grid_of

BATCH, STEPS, ROUNDS = 64, 25, 11
SIZE = Size(num_samples=4 * BATCH, batch_size=BATCH, shard_size=BATCH)
SCHEDULE, GRID = Schedule.linear(), grid_of(1000, STEPS)


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


def ratio(a: Sequence[float], b: Sequence[float]) -> str:
    """Median and quartiles of a / b in percent."""
    low, middle, high = 100 * np.quantile(np.divide(a, b), [0.25, 0.5, 0.75])
    return f"{middle:.1f}% [{low:.1f}, {high:.1f}]"


@torch.no_grad()
def loop() -> None:
    """The loop and the noise against the bare network calls."""
    backbone, plan = load(), skipped(SCHEDULE, GRID)
    noise, y = SampleNoise(0, range(BATCH), backbone.shape), sample_labels(0, range(BATCH), 10)
    inputs = [(noise.at(t), t) for t in plan.t.tolist()]

    def network() -> None:
        for x, t in inputs:
            backbone.network(x, t, y)

    def draws() -> None:
        noise.start()
        for t in plan.t[:-1].tolist():
            noise.at(t)

    sides: dict[str, Callable[[], object]] = {
        "network calls alone": network,
        "run": lambda: run(backbone.given(y), plan, noise),
        "noise alone": draws,
    }
    seconds = interleaved(sides)
    print(
        f"digits, batch {BATCH}, {STEPS} steps, {torch.get_num_threads()} threads, median of "
        f"{ROUNDS} interleaved rounds"
    )
    for name, values in seconds.items():
        call = 1000 * statistics.median(values) / BATCH / STEPS
        share = ratio(values, seconds["network calls alone"])
        print(f"  {name:<22}{call:8.4f} ms an image call   {share} of the network")


def cell_in(folder: Path) -> Cell:
    return Cell(skipped(SCHEDULE, GRID), folder, {"label": None, "seed": 0}, SIZE)


@torch.no_grad()
def generation() -> None:
    """What `generate` adds to sampling: shards, checks, joining; and two processes for one."""
    backbone, plan = load(), skipped(SCHEDULE, GRID)
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch, str(k)) for k in range(1000))

        def bare() -> None:
            for k in range(SIZE.num_shards):
                denoiser = backbone.given(sample_labels(0, SIZE.ids(k), 10))
                backbone.decode(run(denoiser, plan, SampleNoise(0, SIZE.ids(k), backbone.shape)))

        def sharded() -> None:
            generate([cell_in(next(folders))], backbone)

        seconds = interleaved({"run": bare, "generate": sharded}, rounds=7)
    print(
        f"sharding, writing and joining {SIZE.num_samples} samples in {SIZE.num_shards} shards: "
        f"{ratio(seconds['generate'], seconds['run'])} of sampling alone, median of 7 rounds"
    )
    processes()


def processes() -> None:
    """Two single-threaded processes against one, start-up left out."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(2):
        here, there = context.Pipe()
        workers.append(context.Process(target=_worker, args=(there,), daemon=True))
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
    print(
        f"two single-threaded processes: {ratio(seconds['one'], seconds['two'])} of the speed of "
        f"one, median of 5 rounds, {multiprocessing.cpu_count()} cores"
    )


def _worker(pipe: Any) -> None:
    torch.set_num_threads(1)
    backbone = load()
    while task := pipe.recv():
        folder, rank, world = task
        generate([cell_in(folder)], backbone, rank=rank, world=world)
        pipe.send(rank)


def evaluation(references: int) -> None:
    """FID two ways, and the time and memory of a 50,000-sample evaluation at 2048 features."""
    rng = np.random.default_rng(0)
    # A spectrum as steep as Inception's, so that covariances are nearly singular as there.
    scale = np.exp(-np.arange(2048) / 250).astype(np.float32)
    x = rng.standard_normal((50_000, 2048), dtype=np.float32) * scale
    y = rng.standard_normal((references, 2048), dtype=np.float32) * scale + 0.01
    before = peak_gib()
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
    print(
        f"precision and recall against {references:,}: {time.perf_counter() - start:.0f} s, "
        f"{precision.value:.4f} and {recall.value:.4f}; peak memory of all this "
        f"{peak_gib():.2f} GiB, {before:.2f} GiB of it before"
    )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    command = parser(__doc__)
    what = ("loop", "generation", "evaluation")
    command.add_argument("what", nargs="?", choices=what, help="default: all")
    command.add_argument("references", nargs="?", type=int, default=10_000)
    args = command.parse_args()
    if args.what in (None, "loop"):
        loop()
    if args.what in (None, "generation"):
        generation()
    if args.what in (None, "evaluation"):
        evaluation(args.references)


if __name__ == "__main__":
    main()
