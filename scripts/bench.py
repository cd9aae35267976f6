"""What the loop, the noise and the tree cost, against the bare network calls.

    make bench

Both sides of every comparison are interleaved in one run, and medians are compared, because
timings on a shared machine drift.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from models.digits import load
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


def interleaved(sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of every side, ROUNDS times in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(ROUNDS):
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
def main() -> None:
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


if __name__ == "__main__":
    main()
