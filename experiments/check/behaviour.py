"""Whether the embedded model behaves here as it does elsewhere: samples, waiting, memory, batches."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.check.golden import golden_network, golden_tensors
from experiments.check.machine import module_of
from experiments.check.outcome import Finding, Skip, rounded
from models.adm.guidance import ClassifierGuidance
from models.adm.networks import Classifier
from models.backbone import Backbone, ImageNetwork
from models.digits import load
from sampling import SampleNoise, Schedule, ddim, ddpm, run, run_tree, sample_labels, skipped
from sampling import timesteps as grid_of
from sampling.denoise import Clip, NetworkDenoiser, Reading
from sampling.plan import Plan

SEED = 0
# (largest, share): how far a pixel may be off in grey levels of 255, and how many may be off at all.
# Float32 moves a pixel by some 1e-4 of a grey level, which shows only where that crosses the boundary
# between two levels: on a CPU in 1 pixel of 10,000.
SAME = (1, 0.01)
# The mean difference in grey levels, four times what a CPU shows (0.04 and 0.3): rounding moves the
# details of a sample, and that in proportion to the unit of the precision.
HALF_MEAN = {"fp16": 0.15, "bf16": 1.2}


def plans_of(schedule: Schedule, steps: int) -> list[Plan]:
    """Without noise, with it, and with a learned variance."""
    grid = grid_of(schedule, steps)
    return [ddim(schedule, grid), skipped(schedule, grid), ddpm(schedule, grid)]


def samples(
    backbone: Backbone,
    plans: Sequence[Plan],
    ids: Sequence[int],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.uint8]:
    """Samples `ids` of every plan, uint8 [plans, N, H, W, C], so many at a time."""
    parts = []
    for first in range(0, len(ids), batch_size):
        batch = ids[first : first + batch_size]
        denoiser = backbone.given(sample_labels(SEED, batch, backbone.num_classes or 1))
        noise = SampleNoise(SEED, batch, backbone.shape, device=backbone.device, dtype=dtype)
        parts.append([backbone.decode(x) for x in run_tree(denoiser, plans, noise).samples])
    return np.stack([np.concatenate(part) for part in zip(*parts, strict=True)])


def compared(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> dict[str, float]:
    """By how many grey levels two sets of images differ, and in what share of the pixels."""
    off = np.abs(ours.astype(np.int16) - theirs)
    return {
        "largest": float(off.max()),
        "share": rounded((off > 0).mean()),
        "mean": rounded(off.mean()),
        "pixels": float(off.size),
    }


def alike(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> Finding:
    """Whether two sets of images are the same as far as the last bits of a float allow."""
    numbers = compared(ours, theirs)
    said = (
        f"{numbers['largest']:.0f} grey levels at most ({SAME[0]} allowed), in "
        f"{numbers['share']:.2%} of {numbers['pixels']:,.0f} pixels ({SAME[1]:.0%} allowed)"
    )
    return Finding(numbers["largest"] <= SAME[0] and numbers["share"] <= SAME[1], said, numbers)


# --- the same samples as the CPU's --------------------------------------------------------------


class Reference:
    """What the CPU samples in double precision, against which every precision here is held."""

    def __init__(self, count: int, steps: int):
        self.ids, self.steps = range(count), steps
        backbone = load()
        net = module_of(backbone)
        assert net is not None
        net.double()
        self.images = samples(backbone, self._plans(backbone), self.ids, count, dtype=torch.float64)

    def _plans(self, backbone: Backbone) -> list[Plan]:
        return plans_of(backbone.schedule, self.steps)

    def finding(self, backbone: Backbone, precision: str) -> Finding:
        """The embedded model's samples of DDIM, Skipped-Step and DDPM against the reference."""
        ours = samples(backbone, self._plans(backbone), self.ids, len(self.ids))
        if precision == "fp32":
            return alike(ours, self.images)
        numbers, allowed = compared(ours, self.images), HALF_MEAN[precision]
        said = (
            f"{numbers['mean']:.2f} grey levels in the mean ({allowed:g} allowed), "
            f"{numbers['largest']:.0f} at most, {numbers['share']:.0%} of the pixels differ"
        )
        return Finding(numbers["mean"] <= allowed, said, numbers)


# --- seeds ---------------------------------------------------------------------------------------


def batches(device: torch.device, count: int, steps: int) -> Finding:
    """Samples one at a time, in threes, all at once: the same noise to the last bit, pixels alike."""
    backbone, ids = load(device=device), range(count)
    whole = SampleNoise(SEED, ids, backbone.shape, device=device)
    for size in (1, 3):
        for first in range(0, count, size):
            part = SampleNoise(SEED, ids[first : first + size], backbone.shape, device=device)
            for ours, theirs in ((part.start(), whole.start()), (part.at(500), whole.at(500))):
                if not torch.equal(ours, theirs[first : first + size]):
                    return Finding(False, f"the noise of sample {first} depends on its batch")
    plans = plans_of(backbone.schedule, steps)
    one, three, all_at_once = (samples(backbone, plans, ids, size) for size in (1, 3, count))
    worst = max(
        (alike(one, all_at_once), alike(three, all_at_once)),
        key=lambda finding: (not finding.ok, (finding.numbers or {})["share"]),
    )
    return worst._replace(said=f"noise equal, of pixels {worst.said}")


# --- no waiting for the device -------------------------------------------------------------------


@contextmanager
def no_waiting() -> Iterator[None]:
    """CUDA raises wherever the host would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def asynchronous(device: torch.device) -> Finding:
    """Three plans and classifier guidance through the loop, in which the host must never wait.

    On a CPU with tensors that have no values (`meta`): whatever asked for one would raise.  There it
    goes unnoticed if memory is copied in a way that waits.
    """
    cuda = device.type == "cuda"
    if not cuda:
        device = torch.device("meta")
    loops = [*_plain_loops(device), _guided_loop(device)]
    calls = 0
    for loop in loops:
        if cuda:
            loop()  # kernels are loaded and tuned for: that may wait
            with no_waiting():
                loop()
        else:
            loop()
        calls += 1
    how = "under CUDA's sync debug mode" if cuda else "on tensors without values; CUDA says more"
    return Finding(True, f"{calls} loops ran through {how}", {"loops": calls})


def _plain_loops(device: torch.device) -> list[Callable[[], Tensor]]:
    """DDIM, Skipped-Step and DDPM with a learned variance on the embedded model."""
    backbone = load(device=device) if device.type != "meta" else _without_values()
    labels = torch.arange(8) % 10
    denoiser = backbone.given(labels.to(device))
    noise = SampleNoise(SEED, range(8), backbone.shape, device=device)
    return [partial(run, denoiser, plan, noise) for plan in plans_of(backbone.schedule, 10)]


def _without_values() -> Backbone:
    backbone = load()
    net = module_of(backbone)
    assert net is not None
    net.to("meta")
    return replace(backbone, device=torch.device("meta"))


def _guided_loop(device: torch.device) -> Callable[[], Tensor]:
    """Skipped-Step with the gradient of a classifier, on the tiny recorded networks."""
    tensors = golden_tensors("unet_forward")
    net, classifier = (golden_network(name, tensors).to(device) for name in ("t64", "clf"))
    assert isinstance(classifier, Classifier)
    y = (torch.arange(4) % 10).to(device)
    gradient = ClassifierGuidance(classifier, 1.0, "recorded").gradient(y)
    schedule = Schedule.linear()
    denoiser = NetworkDenoiser(ImageNetwork(net), schedule, Reading(limit=Clip()), y, gradient)
    noise = SampleNoise(SEED, range(4), (3, 16, 16), device=device)
    plan = skipped(schedule, grid_of(schedule, 10))
    return partial(run, denoiser, plan, noise)


# --- too little memory ---------------------------------------------------------------------------


def halving(device: torch.device, count: int = 4096) -> Finding:
    """A batch that does not fit is halved, and the samples are those of the whole batch."""
    if device.type != "cuda":
        raise Skip("needs a GPU")
    backbone, plan = load(device=device), skipped(Schedule.linear(), [999, 500])
    peak = {}
    for size in (count // 2, count):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        samples(backbone, [plan], range(size), size)
        peak[size] = torch.cuda.max_memory_allocated(device)
    middle = (peak[count // 2] + peak[count]) / 2
    return halved(backbone, plan, count, lambda: memory_limit(device, middle))


@contextmanager
def memory_limit(device: torch.device, limit: float) -> Iterator[None]:
    """So many bytes for this process on the device, of which what is cached is given back first."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def halved(
    backbone: Backbone, plan: Plan, count: int, limited: Callable[[], AbstractContextManager[None]]
) -> Finding:
    """`generate` with and without the limit: that it halved, and made the same samples."""
    from experiments.cells import Cell, Size
    from experiments.generate import generate
    from files.images import load_samples

    size = Size(count, batch_size=count, shard_size=count)
    config = {"label": None, "seed": SEED}
    with TemporaryDirectory() as scratch:
        free, tight = (Cell(plan, Path(scratch, name), config, size) for name in ("free", "tight"))
        said = io.StringIO()
        with redirect_stdout(said):
            generate([free], backbone)
            with limited():
                generate([tight], backbone)
        times = said.getvalue().count("out of memory with batch_size")
        images = [load_samples(cell.folder).images for cell in (tight, free)]
        finding = alike(*(np.array(image) for image in images))
    numbers = {**(finding.numbers or {}), "halvings": float(times)}
    if times == 0:
        return Finding(False, "the batch fitted although it should not", numbers)
    return Finding(finding.ok, f"halved {times} times from {count}; {finding.said}", numbers)
