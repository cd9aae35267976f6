"""What the loop, the noise, shards and several processes cost or bring; and evaluation.

    make bench
    python -m scripts.bench busy                # beside another busy process, which OpenMP must bear
    python -m scripts.bench loop                # against the bare network calls
    python -m scripts.bench coupling            # what Brownian noise brings (docs/brownian.md)
    python -m scripts.bench step                # scheduler.step against diffusers' own
    python -m scripts.bench table               # sampling a column of the digits' table, in fp32 and bf16
    python -m scripts.bench generation          # shards on disk, and two processes against one
    python -m scripts.bench evaluation          # 50,000 x 2048 features against 10,000
    python -m scripts.bench evaluation 50000    # ... against 50,000

Both sides of every comparison are interleaved in one run, and medians are compared, because
timings on a shared machine drift.
"""

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatchEuler
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric

from eval.endings import parser
from eval.frechet import fid, frechet_distance
from eval.frechet import statistics as statistics_of
from eval.manifold import prdc
from eval.score import Floats
from experiments.cells import Cell, Size
from experiments.generate import generate
from files.threads import thread_defaults
from models.backbone import Backbone
from models.cifar10.backbone import load as load_cifar10
from models.digits.backbone import load
from models.weights import has_bf16
from sampling import (
    Noise,
    SampleNoise,
    Schedule,
    count_calls,
    ddim,
    ddpm,
    mix,
    run,
    run_tree,
    sample_labels,
    skipped,
)
from sampling import timesteps as grid_of
from sampling.brownian import BrownianNoise
from sampling.schedulers import MixScheduler, SkippedStepScheduler

BATCH, STEPS, ROUNDS = 64, 25, 11
SIZE = Size(num_samples=4 * BATCH, batch_size=BATCH, shard_size=BATCH)
SCHEDULE, GRID = Schedule.linear(), grid_of(1000, STEPS)
STEP_ROUNDS = 201
LATENTS = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
OPENMP_SPINS = "300000"  # libgomp's own default where neither variable is set


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
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


def busy() -> None:
    """A call of the network on all threads, alone and beside one other busy process.

    Ours and OpenMP's own way of waiting, each in a process of its own: it is read once, at start.
    """
    ours = thread_defaults({})["GOMP_SPINCOUNT"]
    names = {"OpenMP's own": OPENMP_SPINS, f"GOMP_SPINCOUNT={ours}": ours}
    workers = {name: spawn(_call_on_demand, GOMP_SPINCOUNT=spins) for name, spins in names.items()}
    threads = [pipe.recv() for pipe, _ in workers.values()]
    sides = {name: partial(_ask, pipe) for name, (pipe, _) in workers.items()}
    print(f"digits, batch {BATCH}, {threads[0]} threads, median of 7 interleaved rounds")
    _print_calls("with nothing else to do", interleaved(sides, rounds=7))
    _, other = spawn(_keep_busy)
    _print_calls("beside one other busy process", interleaved(sides, rounds=7))
    other.terminate()
    for pipe, worker in workers.values():
        pipe.send(None)
        worker.join()


def _print_calls(title: str, seconds: dict[str, list[float]]) -> None:
    first = next(iter(seconds.values()))
    print(f"  {title}")
    for name, values in seconds.items():
        call = 1000 * statistics.median(values) / BATCH
        print(f"    {name:<22}{call:8.3f} ms an image call   {ratio(values, first)}")


def spawn(target: Callable[[Any], None], **environment: str) -> tuple[Connection, BaseProcess]:
    """A new process that runs `target` at the other end of a pipe, with more in its environment."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there,), daemon=True)
    with patch.dict(os.environ, environment):
        process.start()
    return here, process


def _ask(pipe: Connection) -> None:
    pipe.send(True)
    pipe.recv()


@torch.no_grad()
def _call_on_demand(pipe: Connection) -> None:
    """Say the number of threads; then, as often as asked, call the network once."""
    backbone = undivided()
    x, y = SampleNoise(0, range(BATCH), backbone.shape).start(), sample_labels(0, range(BATCH), 10)
    pipe.send(torch.get_num_threads())
    while pipe.recv():
        backbone.network(x, 500, y)
        pipe.send(True)


def _keep_busy(pipe: Connection) -> None:
    while True:
        pass


@torch.no_grad()
def loop() -> None:
    """The loop and the noise against the bare network calls, and a row of the loop by itself."""
    print(f"{torch.get_num_threads()} threads, median of {ROUNDS} interleaved rounds")
    _loop_of("digits", load(), BATCH)
    _loop_of("cifar10", load_cifar10(), BATCH // 8)
    plan, x = skipped(SCHEDULE, GRID), torch.zeros(1, 1, 4, 4)
    runs = 100

    def empty() -> None:
        for _ in range(runs):
            run(lambda x, t: (x, None), plan, Drawn(x, {}))

    seconds = statistics.median(interleaved({"run": empty})["run"])
    print(f"a network that does nothing: {1e6 * seconds / runs / STEPS:.1f} microseconds a row")


class Drawn(NamedTuple):
    """Noise that was drawn before: the first x, and z by time (x where there is none)."""

    x: Tensor
    z: dict[float, Tensor]

    def start(self) -> Tensor:
        return self.x

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        return self.z.get(t, self.x)


def _loop_of(name: str, backbone: Backbone, batch: int) -> None:
    plan, sizes = skipped(SCHEDULE, GRID), (range(batch), backbone.shape)
    noise, y = SampleNoise(0, *sizes), sample_labels(0, range(batch), 10)
    drawn = Drawn(noise.start(), {t: noise.at(t) for t in plan.t.tolist()})

    def network() -> None:
        for t, x in drawn.z.items():
            backbone.network(x, t, y)

    def draws(noise: Noise) -> None:
        noise.start()
        for row in plan.rows():
            if row.noise:
                noise.at(row.t, row.s, row.visit)

    sides: dict[str, Callable[[], object]] = {
        "network calls alone": network,
        "run, noise drawn before": lambda: run(backbone.given(y), plan, drawn),
        "run": lambda: run(backbone.given(y), plan, noise),
        "noise alone": lambda: draws(noise),
        "Brownian noise alone": lambda: draws(BrownianNoise(0, *sizes, backbone.schedule)),
    }
    seconds = interleaved(sides)
    print(f"{name}, batch {batch}, {STEPS} steps")
    for side, values in seconds.items():
        call = 1000 * statistics.median(values) / batch / STEPS
        share = ratio(values, seconds["network calls alone"])
        print(f"  {side:<24}{call:8.4f} ms an image call   {share} of the network")


@torch.no_grad()
def coupling() -> None:
    """How far apart the same seeds' pictures are at neighbouring step counts, with either noise."""
    backbone, ids = load(), range(BATCH)
    denoiser, counts = backbone.given(sample_labels(0, ids, 10)), (10, 20, 40, 80)
    noises: dict[str, Noise] = {
        "brownian": BrownianNoise(0, ids, backbone.shape, backbone.schedule),
        "per_step": SampleNoise(0, ids, backbone.shape),
    }
    print(f"digits, {BATCH} samples, Skipped-Step: root mean square difference, mean over samples")
    for name, noise in noises.items():
        plans = [skipped(SCHEDULE, grid_of(1000, n)) for n in counts]
        pictures = [run(denoiser, plan, noise) for plan in plans]
        apart = [
            f"{a} and {b}: {(x - y).square().flatten(1).mean(1).sqrt().mean():.3f}"
            for (a, x), (b, y) in pairwise(zip(counts, pictures, strict=True))
        ]
        print(f"  noise={name}   {'   '.join(apart)}")


def step() -> None:
    """`step` of our schedulers and of diffusers' at the same stochasticity, for one latent image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flow: Any = FlowMatchEuler(shift=3.0)
    renoised = FlowMatchEuler(shift=3.0, stochastic_sampling=True)
    betas: Any = DDIMScheduler(clip_sample=False)
    pairs: dict[str, tuple[Any, Any, dict[str, float]]] = {
        "DDIM, eta 0": (MixScheduler.from_config(betas.config, cutoff=1000), betas, {"eta": 0.0}),
        "DDIM, eta 1": (SkippedStepScheduler.from_config(betas.config), betas, {"eta": 1.0}),
        "flow": (MixScheduler.from_config(flow.config, cutoff=1000), flow, {}),
        "flow with noise": (SkippedStepScheduler.from_config(flow.config), renoised, {}),
    }
    print(
        f"1 x 4 x 64 x 64, one thread, median of {STEP_ROUNDS} interleaved rounds of {STEPS} steps"
    )
    for name, (ours, theirs, options) in pairs.items():
        both = [(_run(ours, {}), _run(theirs, options)) for _ in range(STEP_ROUNDS)][1:]
        a, b = zip(*both, strict=True)
        mine, its = (1000 * statistics.median(seconds) / STEPS for seconds in (a, b))
        share = ratio(a, b)
        print(f"  {name:<16}{mine:8.4f} ms against {its:.4f} ms   {share} of diffusers'")
    torch.set_num_threads(threads)


def _run(scheduler: Any, options: Mapping[str, float]) -> float:
    """Seconds of all steps of a run without a network."""
    scheduler.set_timesteps(STEPS)
    x, output = LATENTS
    start = time.perf_counter()
    for t in scheduler.timesteps:
        scheduler.step(output, t, x, **options)
    return time.perf_counter() - start


def undivided() -> Backbone:
    """The digits in fp32 with all threads at each operation, not at slices of the batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    backbone = load()
    torch.set_num_threads(threads)
    return backbone


def table() -> None:
    """The samplers of Table 1 at 10 steps as one tree: as it was in fp32, and as it is."""
    grid = grid_of(1000, 10)
    plans = [ddpm(SCHEDULE, grid), ddim(SCHEDULE, grid), skipped(SCHEDULE, grid)]
    plans.append(mix(SCHEDULE, grid, cutoff=291))
    y = sample_labels(0, range(BATCH), 10)

    def sampled(backbone: Backbone) -> None:
        run_tree(backbone.given(y), plans, SampleNoise(0, range(BATCH), backbone.shape))

    before = "fp32, threads in operations"
    backbones = {before: undivided()} | {
        f"{precision}, threads on slices": load(precision=precision, channels_last=True)
        for precision in ("fp32", "bf16")
    }
    if not has_bf16(torch.device("cpu")):
        print("this CPU has no bf16: experiment=table1_small takes fp32 here")
    seconds = interleaved({name: partial(sampled, b) for name, b in backbones.items()}, rounds=7)
    print(
        f"digits, batch {BATCH}, {torch.get_num_threads()} threads, median of 7 interleaved rounds"
    )
    for name, values in seconds.items():
        call = 1000 * statistics.median(values) / BATCH / count_calls(plans)
        print(f"  {name:<30}{call:8.4f} ms an image call   {ratio(values, seconds[before])}")


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
    pipes, workers = zip(*(spawn(_generate_on_demand) for _ in range(2)), strict=True)
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


def _generate_on_demand(pipe: Connection) -> None:
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
    balls(x[:10_000], y[: references // 5])
    start = time.perf_counter()
    precision, recall, *_ = prdc(x, y)
    print(
        f"precision and recall against {references:,}: {time.perf_counter() - start:.0f} s, "
        f"{precision.value:.4f} and {recall.value:.4f}; peak memory of all this "
        f"{peak_gib():.2f} GiB, {before:.2f} GiB of it before"
    )


def balls(x: Floats, y: Floats) -> None:
    """Precision and recall with the float32 filter against all products in float64."""
    sides = {
        "float64 products": lambda: float64_shares(torch.from_numpy(x), torch.from_numpy(y)),
        "float32 filter (ours)": lambda: [score.value for score in prdc(x, y)[:2]],
    }
    shares = [call() for call in sides.values()]
    seconds = interleaved(sides, rounds=3)
    print(f"precision and recall of {len(x):,} against {len(y):,}, median of 3 interleaved rounds")
    for name, times in seconds.items():
        share = ratio(times, seconds["float64 products"])
        print(f"  {name:<30}{statistics.median(times):8.2f} s   {share}")
    print(f"  the same counts: {shares[0] == shares[1]}")


def float64_shares(x: Tensor, y: Tensor, k: int = 3) -> list[float]:
    """Precision and recall, plainly: every distance in float64, tile by tile, and no errors."""

    def tiles(a: Tensor, b: Tensor) -> Iterator[Tensor]:
        a, b = a.double(), b.double()
        for rows in a.split(2**23 // len(b)):
            tile = torch.addmm(b.square().sum(1)[None], rows, b.T, alpha=-2)
            yield tile.add_(rows.square().sum(1)[:, None]).clamp_(min=0)

    def share(points: Tensor, centres: Tensor) -> float:
        # The nearest point of each is itself.
        near = [tile.topk(k + 1, largest=False).values[:, -1] for tile in tiles(centres, centres)]
        radii = torch.cat(near)
        hits = [(tile <= radii).any(dim=1) for tile in tiles(points, centres)]
        return float(torch.cat(hits).double().mean())

    return [share(x, y), share(y, x)]


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    command = parser(__doc__)
    what = ("busy", "loop", "coupling", "step", "table", "generation", "evaluation")
    command.add_argument("what", nargs="?", choices=what, help="what to measure (all)")
    text = "of evaluation: how many real images (10000)"
    command.add_argument("references", nargs="?", type=int, default=10_000, help=text)
    args = command.parse_args()
    if args.what in (None, "busy"):
        busy()
    if args.what in (None, "loop"):
        loop()
    if args.what in (None, "coupling"):
        coupling()
    if args.what in (None, "step"):
        step()
    if args.what in (None, "table"):
        table()
    if args.what in (None, "generation"):
        generation()
    if args.what in (None, "evaluation"):
        evaluation(args.references)


if __name__ == "__main__":
    main()
