"""A whole pipeline of diffusers, run as it is with a plan as its scheduler.

The pipeline's own loop asks its network, guides, and decodes; from us are the coefficients, the
arithmetic of a row and the noise, each sample's own.  There is no denoiser to share calls with, so that
plans are run one after the other.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from files.media import Media
from models.backbone import REMEDY
from models.memory import Room, ran_out
from models.weights import reason
from sampling import Noise, Plan, Schedule
from sampling.flow import FlowMatching
from sampling.levels import Asked, Levels
from sampling.output import StepOutput
from sampling.run import at_first_call
from sampling.schedulers import PlanScheduler, SkippedStepScheduler

OURS = ("models.", "sampling.")
NETWORKS = ("unet", "transformer", "transformer_2")  # what is asked in every step
FINEST = 1000  # steps of the path of flow matching that stands for all, where no run is meant


class Seen(NamedTuple):
    """What a pipeline does, told by its first step: the shape of a sample as `step` gets it, whether
    the network predicts a variance, the noise levels, how many evaluations of the network (of one
    sample, as guidance takes two) a step is, and (height, width) in pixels, zeros where it does not
    tell."""

    shape: tuple[int, ...]
    learned_variance: bool
    levels: Levels
    evaluations: int = 1
    pixels: tuple[int, int] = (0, 0)


class _Stopped(Exception):
    """Ends a pipeline's call once what it does is `seen`."""

    def __init__(self, seen: Seen):
        self.seen = seen


class Looking(SkippedStepScheduler):
    """Ends the pipeline's call in its first step."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any
    ) -> StepOutput:
        """Raises `_Stopped`."""
        assert self._levels is not None
        if len(sample) > 2:  # two of one sample: with and without guidance
            raise ValueError(
                "the pipeline steps the frames of a video apart, where a sample has no noise of its "
                "own: give another pipeline as model.id=..."
            )
        has_variance = model_output.shape[1] == 2 * sample.shape[1]
        raise _Stopped(Seen(tuple(sample.shape[1:]), has_variance, self._levels))


class _Following(PlanScheduler):
    """The plan of a command, row by row, whatever the pipeline asks for; x_T comes from the command, too."""

    init_noise_sigma = 1.0
    each: Noise
    called: Callable[[], object]  # hears of every network call

    def _check_start(self, plan: Plan) -> None: ...

    def _check_asked(self, *asked: Any) -> None: ...

    def _position(self, timestep: Any) -> int:
        return self._step_index or 0

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any
    ) -> Any:
        """As its class, with noise of `each` sample."""
        self.noise = _Repeated(self.each, len(sample))
        out = super().step(model_output, timestep, sample, *args, **more)
        self.called()
        return out


@dataclass(frozen=True)
class _Repeated:
    """The noise of samples whose batch a pipeline doubles for guidance, as DiT's does."""

    noise: Noise
    size: int

    def start(self) -> Tensor:
        return self._whole(self.noise.start())

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        return self._whole(self.noise.at(t, s, visit))

    def _whole(self, z: Tensor) -> Tensor:
        return z.repeat(self.size // len(z), *[1] * (z.ndim - 1))


@dataclass(frozen=True)
class WholePipeline:
    """A pipeline on its `device`, ready to run plans; what a `Backbone` says of itself, it says alike.

    `scheduler` makes one of ours, by its class and options beside the pipeline's config; `schedule` is
    its path: of flow matching a fine one that stands for those of all runs (`schedule_at`).  `call` are the arguments of every
    call.  Without `pipe` it is there to be counted.
    """

    pipe: Any
    scheduler: Callable[..., Any]
    schedule: Schedule
    num_classes: int | None
    clip: bool
    sha256: str
    stored: Media
    device: torch.device
    call: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] | None = None
    encoding: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    guidance: None = None
    evaluations_per_call: int = 1
    memory: None = None
    room: Room = field(default_factory=lambda: Room(REMEDY))
    seen: dict[int, Seen] = field(default_factory=dict)

    @property
    def media(self) -> Media:
        """How samples are `stored`, of the size that the pipeline makes."""
        if self.pipe is None or not all(self._first.pixels):
            return self.stored
        return replace(self.stored, size=(*self.stored.size[:-3], *self._first.pixels, 3))

    @property
    def _first(self) -> Seen:
        """What the pipeline does, whatever the steps."""
        return self.look(next(iter(self.seen), 2))  # in one step some divide by zero

    @property
    def evaluations(self) -> int:
        """Of the network, a call and sample: 2 with guidance."""
        return 1 if self.pipe is None else self._first.evaluations

    @property
    def is_flow(self) -> bool:
        return self.schedule.straight is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, as the pipeline's loop has it."""
        return self._first.shape

    def learned_variance(self) -> bool:
        return self._first.learned_variance

    def schedule_at(self, steps: int | None) -> Schedule:
        """The path of a run of so many steps: of flow matching, as the pipeline itself places it."""
        if not self.is_flow:
            return self.schedule
        if steps is None:
            raise ValueError(
                "a model of flow matching has its levels by the number of steps: set steps=25"
            )
        if self.pipe is None:
            return nominal_levels(self.scheduler(), steps).schedule
        return self.look(steps).levels.schedule

    def look(self, steps: int) -> Seen:
        """What the pipeline does in so many steps, found by its first one."""
        if steps not in self.seen:
            self.pipe.scheduler = self.scheduler()
            try:
                with torch.no_grad(), self._remedied(steps), _evaluations(self.pipe) as rows:
                    self.pipe(**self._words(1, None), num_inference_steps=steps)
            except _Stopped as stopped:
                self.seen[steps] = stopped.seen._replace(
                    evaluations=max(1, sum(rows)), pixels=_pixels(stopped)
                )
            else:
                raise ValueError(
                    f"{type(self.pipe).__name__} never asked its scheduler for a step: no sampler can "
                    f"be put in; {self._remedy}"
                )
        return self.seen[steps]

    @property
    def _remedy(self) -> str:
        """What is left to do where the pipeline does not run."""
        stated = " ".join(
            f"model.call.{key}={v}" for key, v in self.call.items() if key not in self.facts
        )
        if stated:
            return f"correct {stated}, or leave it out"
        return "give another pipeline as model.id=..."

    @contextmanager
    def _remedied(self, steps: int) -> Iterator[None]:
        """What a pipeline raises becomes a ValueError with a remedy; what we raise has its own."""
        try:
            yield
        except _Stopped:
            raise
        except Exception as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if ran_out(error) or frame.f_globals.get("__name__", "").startswith(OURS):
                raise
            raise ValueError(
                f"{type(self.pipe).__name__} does not run in {steps} steps ({reason(error)}): "
                f"{self._remedy}"
            ) from error

    def images(
        self,
        plan: Plan,
        steps: int,
        noise: Noise,
        labels: Tensor | None,
        called: Callable[[int], object] = lambda n: None,
    ) -> NDArray[np.float32]:
        """Samples in 0..1, [B, H, W, C] or [B, T, H, W, C], of prompts or classes `labels` [B].

        `called` hears of every network call of how many samples it was.
        `steps` are those of `schedule_at` that the plan was made with.
        """
        start = at_first_call(plan, noise)
        scheduler = self.scheduler(_Following, plan=plan.to_json())
        scheduler.each, scheduler.called = noise, lambda: called(len(start))
        self.pipe.scheduler = scheduler
        words = self._words(len(start), labels)
        if "latents" in inspect.signature(self.pipe.__call__).parameters:
            words["latents"] = start
        count = steps if self.is_flow else len(plan)
        with torch.no_grad(), self._remedied(count), _drawing(type(self.pipe), start):
            out = self.pipe(**words, num_inference_steps=count)
        images = out.images if hasattr(out, "images") else out.frames
        return np.asarray(images, dtype=np.float32)

    def _words(self, n: int, labels: Tensor | None) -> dict[str, Any]:
        """The arguments of a call for n samples."""
        words: dict[str, Any] = {**self.call, "output_type": "np"}
        places = [0] * n if labels is None else labels.tolist()
        if self.prompts is not None:
            words["prompt"] = [self.prompts[i] for i in places]
            for name, text in words.items():
                if "prompt" in name and isinstance(text, str):
                    words[name] = [text] * n
        elif self.num_classes is not None:
            words["class_labels"] = places
        else:
            words["batch_size"] = n
        known = inspect.signature(self.pipe.__call__).parameters
        # Whatever else is drawn, as by a decoder, is the same in every run.
        if "generator" in known:
            words["generator"] = torch.Generator().manual_seed(0)
        return words


def nominal_levels(scheduler: Looking, steps: int) -> Levels:
    """The levels of flow matching where no pipeline tells what it asks for."""
    path = FlowMatching(scheduler.config)
    mu = 1.0 if path.source.config.get("use_dynamic_shifting") else None
    return path.levels(Asked(steps, None, None, mu))


def _pixels(stopped: _Stopped) -> tuple[int, int]:
    """(height, width) of what the pipeline was about to make, as it named them itself."""
    for frame, _ in traceback.walk_tb(stopped.__traceback__):
        told = frame.f_locals
        if frame.f_globals.get("__name__", "").startswith("diffusers.pipelines."):
            height = told.get("orig_height") or told.get("height")
            width = told.get("orig_width") or told.get("width")
            if isinstance(height, int) and isinstance(width, int):
                return height, width
    return 0, 0


@contextmanager
def _evaluations(pipe: Any) -> Iterator[list[int]]:
    """How many samples the pipeline's networks are asked for, call by call."""
    rows: list[int] = []

    def asked(module: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        given = [*args, words.get("hidden_states"), words.get("sample")]
        first = next((one for one in given if isinstance(one, Tensor)), None)
        rows.append(1 if first is None else len(first))

    networks = [getattr(pipe, name, None) for name in NETWORKS]
    hooks = [
        net.register_forward_pre_hook(asked, with_kwargs=True)
        for net in networks
        if isinstance(net, nn.Module)
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _drawing(cls: type, start: Tensor) -> Iterator[None]:
    """Where the pipeline draws x_T itself, it draws `start`."""
    modules = [sys.modules[c.__module__] for c in cls.__mro__ if c.__module__ in sys.modules]
    modules = [m for m in modules if m.__name__.startswith("diffusers.pipelines.")]
    drawn = {module: getattr(module, "randn_tensor", None) for module in modules}

    def draw(real: Callable[..., Tensor], shape: Any, *args: Any, **more: Any) -> Tensor:
        if tuple(shape) != tuple(start.shape):
            return real(shape, *args, **more)
        return start.to(more.get("device") or start.device, more.get("dtype") or start.dtype)

    try:
        for module, real in drawn.items():
            if real is not None:
                module.randn_tensor = lambda *a, real=real, **k: draw(real, *a, **k)  # type: ignore[attr-defined]
        yield
    finally:
        for module, real in drawn.items():
            if real is not None:
                module.randn_tensor = real  # type: ignore[attr-defined]
