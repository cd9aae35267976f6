"""How fast networks are on a device: by precision, mode and batch size, the most telling first.

Every measurement has to fit in what is left of the time; what does not, fails or lacks memory is
named, and ends nothing.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from experiments.check.machine import Speed, mode_named
from experiments.check.outcome import Skip, lacking, one_line, rounded
from experiments.check.subjects import BUILDERS, Mode, Subject
from models.memory import ran_out

EAGER, CHANNELS_LAST = Mode(), Mode(channels_last=True)
GROUPS = 3  # of calls: the median of their times counts
GAIN = 1.03  # a doubling of the batch that brings less than that is the last
FLEETING = 2.0  # seconds; of measurements that take less one in vain is forgiven, it may be noise
LARGEST = {"digits": 4096}  # batch sizes; 128 for the others
COMPILATION = 60.0  # seconds that a compilation may take, which cannot be broken off


class Step(NamedTuple):
    """One network to build and time.

    `best` means that batch size alone which was the fastest of the same model before.
    """

    model: str
    precision: str
    mode: Mode = EAGER
    best: bool = False

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision} {mode_named(*self.mode)}"


def steps_of(device: torch.device) -> list[Step]:
    """What is worth knowing on this device, the most telling first."""
    return _cpu_steps() if device.type == "cpu" else _gpu_steps()


def _gpu_steps() -> list[Step]:
    """As the configs have them, then faster, then in other precisions, then compiled."""
    tables = {"adm_imagenet": "fp16", "sd21": "fp16", "opensora11": "bf16"}
    others = {"inception": "fp32", "sd21_vae": "fp16", "adm_imagenet64": "fp16"}
    convolutions = ("adm_imagenet", "sd21", "adm_imagenet64")
    return [
        *(Step(model, precision) for model, precision in tables.items()),
        *(Step("digits", precision, CHANNELS_LAST) for precision in ("fp32", "bf16")),
        *(Step(model, precision) for model, precision in others.items()),
        *(Step(model, "fp16", CHANNELS_LAST, best=True) for model in convolutions),
        *(Step(model, "fp16", Mode(True, graphed=True), best=True) for model in convolutions),
        Step("opensora11", "bf16", Mode(graphed=True), best=True),
        Step("digits", "bf16", Mode(True, graphed=True), best=True),
        Step("digits", "bf16", Mode(True, True), best=True),
        Step("adm_imagenet", "fp16", Mode(True, True), best=True),
        Step("adm_imagenet128", "fp16"),
        *(Step(model, "bf16", best=True) for model in ("adm_imagenet", "sd21", "digits")),
        Step("opensora11", "bf16", Mode(compiled=True), best=True),
        Step("sd21", "fp16", Mode(True, True), best=True),
        Step("adm_imagenet64", "fp16", Mode(True, True), best=True),
        Step("inception", "fp32", CHANNELS_LAST, best=True),
        *(Step(model, "fp32", best=True) for model in (*tables, "adm_imagenet64")),
    ]


def _cpu_steps() -> list[Step]:
    models = ("adm_imagenet64", "opensora11", "sd21", "sd21_vae")
    return [
        *(Step("digits", precision, CHANNELS_LAST) for precision in ("fp32", "bf16")),
        Step("inception", "fp32"),
        *(Step(model, "fp32") for model in models),
        *(Step("digits", precision, best=True) for precision in ("fp32", "bf16")),
        *(Step(model, "bf16", best=True) for model in models),
        *(Step(model, "fp32", CHANNELS_LAST, best=True) for model in ("inception", "sd21")),
        *(Step("digits", p, Mode(True, True), best=True) for p in ("fp32", "bf16")),
    ]


class Budget:
    """So many seconds from now on."""

    def __init__(self, seconds: float):
        self.end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()


class Bench:
    """Times networks and hands every speed to `keep`, what was skipped and why to `skip`."""

    def __init__(
        self,
        device: torch.device,
        budget: Budget,
        keep: Callable[[Speed], None],
        skip: Callable[[str], None],
    ):
        self.device, self.budget, self.keep, self.skip = device, budget, keep, skip
        self.best: dict[str, Speed] = {}

    def run(self, steps: Sequence[Step]) -> None:
        """Every step that the time is enough for; a failure skips its step alone."""
        for step in steps:
            try:
                with released(self.device, step.mode):
                    self._step(step)
            except Exception as error:
                why = "out of memory" if ran_out(error) else lacking(error) or one_line(error)
                self.skip(f"{step.name}: {why}")

    def _step(self, step: Step) -> None:
        known = self.best.get(step.model)
        if step.best and known is None:
            raise Skip("its first measurement was skipped")
        least = COMPILATION if step.mode.compiled else 1.0
        if step.best and known is not None:
            least = max(least, seconds_to_measure(known, known.batch))
        if self.budget.left < least:
            raise Skip("no time left")
        small = self.device.type == "cpu"
        subject = BUILDERS[step.model](step.precision, step.mode, self.device, small)
        if step.best and known is not None:
            self._at(step, subject, known.batch)
        else:
            self._doubling(step, subject)

    def _doubling(self, step: Step, subject: Subject) -> None:
        """Batch sizes 1, 2, 4, ... as long as that pays, in time and memory."""
        batch, in_vain = 1, 0
        fastest: Speed | None = None
        while batch <= LARGEST.get(step.model, 128):
            if fastest and seconds_to_measure(fastest, batch) > self.budget.left:
                self.skip(f"{step.name}, batch {batch}: no time left")
                return
            try:
                speed = self._at(step, subject, batch)
            except Exception as error:
                if batch == 1 or not ran_out(error):
                    raise
                self.skip(f"{step.name}, batch {batch}: out of memory")
                return
            if fastest is None or fastest.seconds > GAIN * speed.seconds:
                fastest, in_vain = speed, 0
            else:
                in_vain += 1
            batch *= 2
            if in_vain > (seconds_to_measure(speed, batch) < FLEETING):
                return

    def _at(self, step: Step, subject: Subject, batch: int) -> Speed:
        """Measure one batch size, and keep it."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with torch.no_grad():
            call = subject.call(batch)
            seconds = seconds_a_call(graphed(call) if step.mode.graphed else call, self.device)
        speed = Speed(
            model=subject.name,
            parameters=subject.parameters,
            shape=subject.shape,
            precision=step.precision,
            mode=mode_named(*step.mode),
            batch=batch,
            seconds=rounded(seconds / batch),
            memory=torch.cuda.max_memory_allocated(self.device) if cuda else None,
            evaluations=subject.evaluations,
        )
        self.keep(speed)
        fastest = self.best.get(step.model)
        if not step.best and (fastest is None or speed.seconds < fastest.seconds):
            self.best[step.model] = speed
        return speed


def seconds_to_measure(known: Speed, batch: int) -> float:
    """What `seconds_a_call` takes at least, by the speed at another batch size or in another mode."""
    return known.seconds * batch * (GROUPS + 2)


def seconds_a_call(call: Callable[[], Any], device: torch.device, least: float = 0.25) -> float:
    """Seconds of one call, the median of three groups that take `least` seconds together.

    The first call is not counted: kernels are compiled, loaded and chosen in it.  Within a group
    the host does not wait for the device, as sampling does not.
    """

    def seconds(calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    seconds(1)
    calls = max(1, round(least / GROUPS / seconds(1)))
    return statistics.median(seconds(calls) for _ in range(GROUPS))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph: its kernels are launched at once.  Needs a GPU."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is chosen and allocated once must not be captured
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@contextmanager
def released(device: torch.device, mode: Mode) -> Iterator[None]:
    """What was built and compiled within is gone afterwards, memory on the device included."""
    try:
        yield
    finally:
        if mode.compiled:
            torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
