"""What all our schedulers for diffusers pipelines do: run the rows of a plan.

The arithmetic is that of `run.py`.  `step` takes no `eta`, because pipelines pass eta = 0 to every
scheduler that does, which would silently turn Mix into DDIM.

What `from_config` makes of another class's config, or refuses, is in `inherit.py`; which noise
levels are visited in `levels.py`, and `flow.py` for flow matching.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .denoise import Denoised
from .flow import FlowMatching
from .inherit import flow_options, inherited, reading_of
from .levels import Asked, Betas, Levels, place
from .options import check_options, plain
from .output import StepOutput
from .plan import Plan, Row, eps_scale_of, scale_eps
from .run import History, Memory, Noise, moved
from .schedule import Level


class Stepping(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler that runs the rows of a plan; see `SkippedStepScheduler`.

    A step is a `jump`: the row that calls the network, and the rows after it that do not.
    """

    _compatibles = [  # noqa: RUF012
        scheduler.name
        for scheduler in KarrasDiffusionSchedulers
        if scheduler.name != "EDMEulerScheduler"
    ]
    config: Any  # what __init__ was given, by name and by attribute
    order = 1
    init_noise_sigma = 1.0  # x_T is standard normal

    # Where z comes from instead of torch's generator, e.g. a `SampleNoise`, whose samples do not
    # depend on the batch they are in: `pipe(prompts, latents=noise.start())` after setting it.
    noise: Noise | None = None

    _unread: Mapping[str, Any] = {}  # options that decide nothing in this class
    _eta: float | None = None  # DDIM's eta that the plan follows throughout, if there is one

    def _make_plan(self, levels: Levels) -> Plan:
        raise NotImplementedError

    def _scaled_plan(self, levels: Levels) -> Plan:
        """`eps_scale` stays in its column, for rows to come look back at x0 as it was read."""
        scale = eps_scale_of(self.config.eps_scale)
        if scale and self.config.flow_matching:
            raise ValueError("eps_scale divides an eps, which flow matching has not: leave it out")
        plan = self._make_plan(levels)
        return scale_eps(plan, *scale, limited=True) if scale else plan

    def _setup(self) -> None:
        """The rest of every __init__: the config is registered already."""
        self.register_to_config(**{k: plain(v) for k, v in self.config.items() if k[0] != "_"})
        self._follow_config()
        self._scaled_plan(self._path.trial)  # refuse bad options now
        self.num_inference_steps: int | None = None
        self._show(self._path.times, self._path.sigmas)
        self._levels: Levels | None = None
        self._plan: Plan | None = None
        self._jumps: list[list[Row]] = []
        self._memory = Memory(0, False)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._history: History = ()

    def _follow_config(self) -> None:
        """What is made of the config, once more after `register_to_config`, which makes a new one."""
        self._path: Any = (FlowMatching if self.config.flow_matching else Betas)(self.config)
        self._table = self._path.table.float()  # alpha and sigma, of timesteps or of places
        self._by_place = isinstance(self._path, FlowMatching)
        if isinstance(self._path, Betas):
            self.alphas_cumprod = torch.from_numpy(self._path.schedule.alpha_bar).float()
        self._inverted = isinstance(self._path, FlowMatching) and self._path.inverted
        self._reading, self._read_by = reading_of(self.config), self.config

    def _show(self, times: list[float], sigmas: Tensor | None, device: Any = None) -> None:
        """What pipelines read."""
        dtype = torch.int64 if isinstance(times[0], int) else torch.float32
        self._times, self.timesteps = times, torch.tensor(times, dtype=dtype, device=device)
        self._grid = self.timesteps
        if sigmas is not None:
            self.sigmas = sigmas.to(device=device)

    @property
    def plan(self) -> Plan:
        """The table of coefficients since `set_timesteps`: `print(scheduler.plan)` shows it.

        A row adds noise where its `noise` is not 0, so it also shows where Mix switches.
        Raises ValueError before `set_timesteps`.
        """
        if self._plan is None:
            raise ValueError("run set_timesteps first: it makes the plan")
        return self._plan

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """This scheduler with another one's config, whose meaning is kept (see `inherit.py`).

        `kwargs` override entries.  Raises ValueError for one that this class does not know, since
        a misspelt cutoff would else be silently ignored, and for a config that it cannot honour.
        """
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        placing = flow_options(config or {})
        if not return_unused_kwargs:
            check_options(cls.__name__, kwargs, sorted({*known, *placing}))
        stated = {k: kwargs[k] for k in {*kwargs} & {*known, *placing}}
        config = inherited(config or {}, {**cls._unread, **stated})
        if "plan" not in known:  # diffusers would print all of it, as an option without a meaning
            config.pop("plan", None)
        kwargs = {k: v for k, v in kwargs.items() if k in known or k not in placing}
        made: Any = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        if scheduler.config.flow_matching:  # whose options are none of __init__
            scheduler._setup()
        return made

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def step_index(self) -> int | None:
        """Rows done so far, counted from the beginning of the plan; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The row that the first `step` is of: pipelines that start in the middle call this."""
        self._begin_index = begin_index
        if self._jumps and self._memory.length:
            self._begin_at(begin_index)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample unchanged: the network takes x_t itself."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Make the plan: `num_inference_steps` by the config's spacing, or an explicit grid.

        `timesteps` decrease strictly within 0..T-1.  `sigmas` are noise levels
        sqrt((1 - abar) / abar), decreasing, each taken to the timestep whose log sigma is
        nearest; a last 0 is the end of the plan and no step.  Raises ValueError unless exactly one
        of the three is given and makes a grid.

        For flow matching they, and `mu`, mean what they mean to the class that places the levels.
        """
        if self._path.config is not self.config:
            self._follow_config()
        asked = Asked(num_inference_steps, timesteps, sigmas, mu)
        self._plan, self._levels = self._planned(asked)
        self._jumps, self._memory = _jumps(self._plan), Memory.of([self._plan])
        self.num_inference_steps = len(self._jumps)
        self._show(self._levels.times, self._levels.sigmas, device)
        if self._by_place:
            levels = [(row.alpha, row.sigma) for row, *_ in self._jumps]
            self._table = torch.tensor([*levels, self._levels.schedule.end], dtype=torch.float32).T
        self._step_index = self._begin_index = None
        self._history = ()

    def _planned(self, asked: Asked) -> tuple[Plan, Levels]:
        """The plan of what `set_timesteps` was asked for, and the levels that the pipeline is told."""
        levels = self._path.levels(asked)
        return self._scaled_plan(levels), levels

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **foreign: Any,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """One jump: x_s from x_t [B, C, ...] and the network's output at `timestep`.

        Of an output with twice the channels of x the second half is a learned variance, which is
        used where the plan has a place for it.  z is `variance_noise` if given, else from `self.noise` if set, else from
        `generator`.  Half precision is computed in float32; nothing waits for the device.
        `foreign` is what `DDIMPipeline` passes unasked: an eta of 0, which is not followed.

        Returns `prev_sample` and `pred_original_sample` (x0 after clipping), or a tuple of both.
        Raises ValueError before `set_timesteps`, for a timestep that is not on
        its grid, noise of another shape than x, both `generator` and `variance_noise`, and one
        `variance_noise` for a jump that draws twice.
        """
        if generator is not None and variance_noise is not None:
            raise ValueError("give generator or variance_noise, not both")
        if foreign:
            self._check_foreign(foreign)
        position = self._position(timestep)
        if self._memory.length and position != self._step_index:
            self._begin_at(position)
        jump = self._jumps[position]
        if variance_noise is not None and sum(row.noise != 0 for row in jump) > 1:
            raise ValueError(
                f"the plan draws noise twice after timestep {jump[0].t:g}, and variance_noise is one: "
                "give generator, or set scheduler.noise"
            )
        x, seen = self._read(jump[0], model_output, sample)
        x0, history = seen.x0, self._history
        for row in jump:
            z = None
            if row.noise:
                z = self._noise(row, sample, generator, variance_noise).to(x.device, x.dtype)
            x, history = moved(row, x, seen if row.calls else None, history, self._memory, z)
        self._step_index = position + 1
        self._history = history if position + 1 < len(self._jumps) else ()
        prev_sample, x0 = x.to(sample.dtype), x0.to(sample.dtype)
        if not return_dict:
            return prev_sample, x0
        return StepOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def posterior(
        self, model_output: Tensor, timestep: int | float | Tensor, sample: Tensor
    ) -> tuple[Tensor, float]:
        """The normal distribution that `step` draws x_s from: its mean and standard deviation.

        The mean [B, C, ...] is in float32 at least and keeps the gradient of `model_output`; the
        standard deviation, the same for all pixels, is 0 in a jump that adds no noise.  With
        `torch.distributions.Normal(mean, std).log_prob(prev_sample)` it is what reinforcement
        learning needs.  Nothing changes in the scheduler.  Raises ValueError as `step` does, for a
        row that looks back at one which was not the last `step`, and for a learned variance, which
        has a standard deviation for every pixel.
        """
        position = self._position(timestep)
        jump = self._jumps[position]
        if position != self._step_index and looks_before(jump, 0):
            raise ValueError(
                f"the row at timestep {jump[0].t:g} looks back at the row before: call posterior right "
                "before the step of the same timestep"
            )
        if any(row.noise and not math.isnan(row.noise_high) for row in jump):
            raise ValueError(
                f"the row at timestep {jump[0].t:g} has a learned variance, and posterior gives one for "
                "all pixels: make the plan with variance=fixed_small"
            )
        x, seen = self._read(jump[0], model_output, sample)
        variance, history = 0.0, self._history
        for row in jump:
            known = seen if row.calls else None
            x, history = moved(row._replace(noise=0.0), x, known, history, self._memory)
            variance = variance * row.x**2 + row.noise**2
        return x, jump[0].noise if len(jump) == 1 else variance**0.5

    def _read(self, row: Row, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Denoised]:
        """x_t and what the network says of it, in the precision of the computation."""
        working = sample.dtype if sample.dtype == torch.float64 else torch.float32
        x = sample if sample.dtype == working else sample.to(working)
        output = model_output if model_output.dtype == working else model_output.to(working)
        v = None
        if output.shape != x.shape and output.shape[1] == 2 * x.shape[1]:
            output, v = output.chunk(2, dim=1)
        if self._read_by is not self.config:
            self._reading, self._read_by = reading_of(self.config), self.config
        if self._inverted:
            output = -output
        x0 = self._reading.x0(output, x, Level(row.alpha, row.sigma), row.eps_scale)
        return x, Denoised(x0, v)

    def _noise(
        self,
        row: Row,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        variance_noise: Tensor | None,
    ) -> Tensor:
        """z of a row.  Raises ValueError unless there is one for every sample."""
        z, whose = variance_noise, "variance_noise"
        if z is None and self.noise is not None:
            # A noise of the user's own may know the timestep alone.
            at: Any = self.noise.at
            known = len(inspect.signature(at).parameters)
            z, whose = at(*(row.t, row.s, row.visit)[:known]), "scheduler.noise"
        if z is None:
            if isinstance(generator, list) and len(generator) not in (1, len(sample)):
                many = f"{len(generator)} generators for {len(sample)} samples"
                raise ValueError(f"{many}: give one, or one for each")
            return randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        if z.shape != sample.shape:
            raise ValueError(
                f"{whose} has shape {[*z.shape]}, but the pipeline steps {[*sample.shape]} at once: "
                "give SampleNoise an id for each of them (a frame or a second image of a prompt "
                "counts; DiT doubles its batch for guidance and takes the ids twice, [0, 1, 0, 1])"
            )
        return z

    def _check_foreign(self, options: Mapping[str, Any]) -> None:
        """Refuse options of other schedulers' `step` that ask for something else than is done."""
        if options.get("per_token_timesteps") is not None:
            raise ValueError(
                "per_token_timesteps step every token from a noise level of its own, which is not "
                "done here: keep the scheduler that the pipeline came with"
            )
        known = ("eta", "use_clipped_model_output", "per_token_timesteps")
        check_options(f"{type(self).__name__}.step", options, known)
        if (eta := options.get("eta")) and eta != self._eta:
            raise ValueError(
                f"{type(self).__name__} does not follow eta={eta}, since its plan says how much "
                "noise a row adds: leave eta out, or take MixScheduler with eta_head and eta_tail"
            )

    def _begin_at(self, position: int) -> None:
        """Let the next step be a first one, which has no row before to look back at."""
        assert self._levels is not None
        rest = self._scaled_plan(self._levels._replace(nodes=self._levels.nodes[position:]))
        jumps, first = _jumps(self.plan), _jumps(rest)[: self._memory.length]
        jumps[position : position + len(first)] = first
        self._jumps = jumps
        self._history = ()

    def _position(self, timestep: int | float | Tensor) -> int:
        """The row of a timestep, without asking the device for its value.

        Pipelines pass elements of `self.timesteps`, and these are told by their place in memory.
        """
        if not self._jumps:
            raise ValueError("run set_timesteps before step")
        if isinstance(timestep, Tensor):
            if _same_memory(timestep, self._grid):
                return int(timestep.storage_offset())
            if timestep.device.type != "cpu" and self._step_index is not None:
                return self._following(self._step_index)
            if timestep.device.type != "cpu" and self._begin_index is not None:
                return self._following(self._begin_index)
        return self._place(timestep)

    def _place(self, timestep: int | float | Tensor) -> int:
        """Where a timestep stands among all; the row that is due, if it may be that."""
        due = self._step_index or self._begin_index or 0
        return place(self._times, timestep, due, self.config.num_train_timesteps)

    def _following(self, position: int) -> int:
        if position >= len(self._jumps):
            raise ValueError("all steps are done: run set_timesteps before the next sample")
        return position

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """q(x_t | x_0): alpha_t x0 + sigma_t noise; timesteps [B]."""
        signal, std = self._levels_at(timesteps, original_samples)
        return signal * original_samples + std * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` by the name and in the order that pipelines of flow matching have for it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha_t noise - sigma_t x0, what a v_prediction network learns; noise - x0 for flows."""
        if self.config.flow_matching:
            return noise - sample
        signal, std = self._levels_at(timesteps, sample)
        return signal * noise - std * sample

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        index = self._places(timesteps) if self._by_place else timesteps
        self._table = self._table.to(like.device)  # stays there for the next call
        levels = self._table[:, index.to(like.device)].to(like.dtype)
        return levels.reshape(2, -1, *[1] * (like.ndim - 1))

    def _places(self, timesteps: Tensor) -> Tensor:
        """The jumps of timesteps [B]: where the pipeline is, once it has said so."""
        if self._begin_index is None:
            places = [self._place(t) for t in timesteps.reshape(-1).cpu()]
        else:
            due = self._begin_index if self._step_index is None else self._step_index
            places = [due] * timesteps.numel()
        return torch.tensor(places)

    @property
    def shift(self) -> float:
        """The static shift of FlowMatchEuler's noise levels."""
        return float(self._path.shift)

    def set_shift(self, shift: float) -> None:
        """Another static shift, from the next `set_timesteps` on, as FlowMatchEuler has it.

        Raises ValueError where another class places the levels.
        """
        if not hasattr(self._path, "shift"):
            raise ValueError("only FlowMatchEuler's levels have a static shift: leave it out")
        self._path.set_shift(shift)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.device == b.device
        and a.numel() == 1
        and a.dtype == b.dtype
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )


def _jumps(plan: Plan) -> list[list[Row]]:
    """The rows by network calls, without those before the first one."""
    jumps: list[list[Row]] = []
    for row in plan.rows():
        if row.calls:
            jumps.append([row])
        elif jumps:
            jumps[-1].append(row)
    return jumps


def looks_before(jump: Sequence[Row], done: int) -> bool:
    """Whether a jump looks back farther than at the `done` calls before it."""
    first, *others = (max(len(row.x0), len(row.eps)) - 1 for row in jump)
    return first > done or any(back > done + 1 for back in others)
