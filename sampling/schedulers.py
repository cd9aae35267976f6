"""Skipped-Step and Mix as schedulers for diffusers pipelines.

    from skipped_step.schedulers import MixScheduler

    pipe.scheduler = MixScheduler.from_config(pipe.scheduler.config, cutoff=291)

Thin adapters: the coefficients are those of the plans in `plan.py`, the arithmetic is that of
`run.py`.  `step` takes no `eta`, because pipelines pass eta = 0 to every scheduler that does,
which would silently turn Mix into DDIM.

What `from_config` makes of a config of another class (DDIM, DDPM, PNDM, Euler, DPM-Solver++,
UniPC, ...): what that config states or that class has by default is kept, where it means the
same here.

- The noise schedule, `prediction_type`, `rescale_betas_zero_snr`, clipping and thresholding.  A
  class that knows no clipping does none here.
- `timestep_spacing` names diffusers' DDIM grids: `leading` (with `steps_offset`), `trailing`,
  `linspace`; solvers that place theirs otherwise under the same names (DPM-Solver++, UniPC),
  or by Karras sigmas, get DDIM's of that name.
- `set_alpha_to_one` says whether the last step ends at the clean image or at the noise level of
  timestep 0.  DDPM always ends at the clean image; where a class has `final_sigmas_type`
  instead, "zero" is the clean image.
- `variance_type`, solver orders and the like have no meaning here and are carried along, so that
  the way back loses nothing.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

# diffusers finds how to load our classes by this name in this module: do not rename it.
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from .denoise import Clip, Denoised, DynamicThreshold, Reading
from .options import check_options
from .plan import Plan, Row, mix, skipped
from .run import Noise, advance
from .schedule import Schedule
from .timesteps import timesteps as grid_of

PAPER_CUTOFF = 291.0  # the paper's at 25 steps


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule that a diffusers scheduler's config describes, in float64.

    Raises ValueError for a `beta_schedule` that is not linear, scaled_linear or
    squaredcos_cap_v2 (others can be given as `trained_betas`).
    """
    T, name = config["num_train_timesteps"], config["beta_schedule"]
    start, end = config["beta_start"], config["beta_end"]
    if config.get("trained_betas") is not None:
        schedule = Schedule.from_betas(config["trained_betas"], "trained_betas")
    elif name == "linear":
        schedule = Schedule.from_betas(np.linspace(start, end, T), name)
    elif name == "scaled_linear":
        schedule = Schedule.scaled_linear(T, start, end)
    elif name == "squaredcos_cap_v2":
        schedule = Schedule.cosine(T)
    else:
        raise ValueError(
            f"unknown beta_schedule {name!r}: choose linear, scaled_linear, squaredcos_cap_v2, or "
            "give the betas themselves as trained_betas"
        )
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.zero_terminal_snr()
    if not config.get("set_alpha_to_one", True):
        schedule = replace(schedule, final=float(schedule.alpha_bar[0]))
    return schedule


def reading_of(config: Any) -> Reading:
    """How a scheduler's config says to read the network's output."""
    limit: Clip | DynamicThreshold | None = None
    if config.thresholding:
        limit = DynamicThreshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    elif config.clip_sample:
        limit = Clip(config.clip_sample_range)
    return Reading(config.prediction_type, limit)


def inherited(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config with the defaults of the class that it is of made explicit.

    diffusers would give a new class its own defaults for all that the old config does not state:
    a pixel model that DDPM clips by default would not be clipped any more.  Raises ValueError for
    the config of a class without betas (EDM's, flow matching).
    """
    source = getattr(diffusers, str(config.get("_class_name")), None)
    parameters = inspect.signature(source.__init__).parameters.values() if source else ()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    stated = {key: value for key, value in config.items() if key != "_use_default_values"}
    explicit = {**defaults, **stated}
    if stated and not {"beta_start", "trained_betas"} & {*explicit}:
        raise ValueError(
            "this scheduler's config has no noise schedule of betas: the model is of another kind"
        )
    if "set_alpha_to_one" not in explicit and "final_sigmas_type" in explicit:
        explicit["set_alpha_to_one"] = explicit["final_sigmas_type"] == "zero"
    return explicit


class _PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler that runs the rows of a plan; see `SkippedStepScheduler`."""

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

    def _make_plan(self, schedule: Schedule, grid: NDArray[np.int64]) -> Plan:
        raise NotImplementedError

    def _setup(self) -> None:
        """The rest of every __init__: the config is registered already."""
        reading_of(self.config)  # refuse bad options now
        if self.config.rescale_betas_zero_snr and self.config.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr leaves no signal at the first timestep, where epsilon says "
                "nothing of the image: it needs prediction_type v_prediction or sample"
            )
        schedule = schedule_of(self.config)
        self._make_plan(schedule, np.array([schedule.T - 1]))  # these, too
        self.alphas_cumprod = torch.from_numpy(schedule.alpha_bar).float()
        levels = np.sqrt([schedule.alpha_bar, 1 - schedule.alpha_bar])
        self._levels = torch.from_numpy(levels).float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(schedule.T).flip(0)
        self._grid = self.timesteps
        self._rows: list[Row] = []
        self._index: dict[int, int] = {}
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """This scheduler with another one's config, whose meaning is kept (see the module).

        `kwargs` override entries.  Raises ValueError for one that this class does not know, since
        a misspelt cutoff would else be silently ignored.
        """
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        if not return_unused_kwargs:
            check_options(cls.__name__, kwargs, sorted(known))
        return super().from_config(inherited(config or {}), return_unused_kwargs, **kwargs)

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

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample unchanged: the network takes x_t itself."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Make the plan: `num_inference_steps` by the config's spacing, or an explicit grid.

        `timesteps` decrease strictly within 0..T-1.  `sigmas` are noise levels
        sqrt((1 - abar) / abar), decreasing, each taken to the timestep whose log sigma is
        nearest; a last 0 is the end of the plan and no step.  Raises ValueError unless exactly one
        of the three is given and makes a grid.
        """
        if sum(v is not None for v in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError("give exactly one of num_inference_steps, timesteps and sigmas")
        schedule = schedule_of(self.config)
        if sigmas is not None:
            grid = _nearest(schedule, sigmas)
        elif timesteps is not None:
            grid = _decreasing(timesteps)
            if not np.issubdtype(grid.dtype, np.integer):
                raise ValueError("timesteps must be integers")
        else:
            grid = grid_of(schedule, num_inference_steps, self._spacing())
        self._rows = list(self._make_plan(schedule, grid).rows())
        self._index = {int(t): i for i, t in enumerate(grid)}
        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid.tolist(), dtype=torch.int64, device=device)
        self._grid = self.timesteps
        self._step_index = self._begin_index = None

    def _spacing(self) -> str:
        spacing, offset = self.config.timestep_spacing, self.config.steps_offset
        return f"leading+{offset}" if spacing == "leading" and offset else str(spacing)

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One row: x_s from x_t [B, C, ...] and the network's output at `timestep`.

        Of an output with twice the channels of x the second half, a learned variance, is not
        used.  z is `variance_noise` if given, else from `self.noise` if set, else from
        `generator`.  Half precision is computed in float32; nothing waits for the device.

        Returns `prev_sample` and `pred_original_sample` (x0 after clipping), as a tuple without
        `return_dict`.  Raises ValueError before `set_timesteps`, for a timestep that is not on
        its grid, and when both `generator` and `variance_noise` are given.
        """
        if generator is not None and variance_noise is not None:
            raise ValueError("give generator or variance_noise, not both")
        position = self._position(timestep)
        row = self._rows[position]
        self._step_index = position + 1
        working = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(working)
        output = model_output.to(working)
        if output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        x0 = reading_of(self.config).x0(output, x, row.alpha_bar)
        z = None
        if row.noise:
            z = variance_noise
            if z is None and self.noise is not None:
                z = self.noise.at(row.t)
            if z is None:
                z = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
            z = z.to(working)
        prev_sample = advance(row, x, Denoised(x0), z=z).to(sample.dtype)
        x0 = x0.to(sample.dtype)
        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def _position(self, timestep: int | float | Tensor) -> int:
        """The row of a timestep, without asking the device for its value.

        Pipelines pass elements of `self.timesteps`, and these are told by their place in memory.
        """
        if not self._rows:
            raise ValueError("run set_timesteps before step")
        if isinstance(timestep, Tensor):
            if _same_memory(timestep, self._grid):
                return int(timestep.storage_offset())
            if timestep.device.type != "cpu" and self._step_index is not None:
                return self._following(self._step_index)
            if timestep.device.type != "cpu" and self._begin_index is not None:
                return self._following(self._begin_index)
        position = self._index.get(int(timestep))
        if position is None:
            raise ValueError(
                f"timestep {int(timestep)} is not on the grid of set_timesteps: "
                f"{list(self._index)[:4]}..."
            )
        return position

    def _following(self, position: int) -> int:
        if position >= len(self._rows):
            raise ValueError("all steps are done: run set_timesteps before the next sample")
        return position

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """q(x_t | x_0): sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; timesteps int64 [B]."""
        signal, std = self._levels_at(timesteps, original_samples)
        return signal * original_samples + std * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = sqrt(abar_t) noise - sqrt(1 - abar_t) x0, what a v_prediction network learns."""
        signal, std = self._levels_at(timesteps, sample)
        return signal * noise - std * sample

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        self._levels = self._levels.to(like.device)  # stays there for the next call
        levels = self._levels[:, timesteps.to(like.device)].to(like.dtype)
        return levels.reshape(2, -1, *[1] * (like.ndim - 1))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.device == b.device
        and a.numel() == 1
        and a.dtype == b.dtype
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )


def _decreasing(values: Sequence[float] | Tensor) -> NDArray[Any]:
    """An explicit grid as an array; the plan checks that it lies within 0..T-1."""
    grid = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if grid.ndim != 1 or len(grid) == 0 or (np.diff(grid) >= 0).any():
        raise ValueError(f"a grid must decrease strictly, got {grid.tolist()}")
    return grid


def _nearest(schedule: Schedule, sigmas: Sequence[float] | Tensor) -> NDArray[np.int64]:
    """The timesteps whose log sigma is nearest."""
    wanted = _decreasing(sigmas).astype(np.float64)
    if wanted[-1] == 0:
        wanted = wanted[:-1]
    if len(wanted) == 0 or not (wanted > 0).all():
        raise ValueError("sigmas must be positive, but for a 0 at the end")
    distance = np.abs(np.log(schedule.sigma) - np.log(wanted)[:, None])
    grid = distance.argmin(axis=1)
    if (np.diff(grid) >= 0).any():
        raise ValueError(
            f"several sigmas are nearest to one timestep, {grid.tolist()}: leave some out"
        )
    return grid


class SkippedStepScheduler(_PlanScheduler):
    """Skipped-Step sampling (the paper's Algorithm 2) on any grid: DDIM with eta = 1.

    `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule` (linear, scaled_linear,
    squaredcos_cap_v2), `trained_betas`, `rescale_betas_zero_snr`: the model's noise schedule.
    `prediction_type`: epsilon, v_prediction or sample.  `clip_sample` limits x0 to
    +-`clip_sample_range` (pixel models), `thresholding` to the `dynamic_thresholding_ratio`
    quantile of |x0|, at most `sample_max_value`; either way the noise is that which goes with the
    limited x0.  `timestep_spacing`: leading, trailing or linspace as diffusers' DDIM, even (the
    paper's: guided-diffusion's), or any other of `sampling.timesteps`; `steps_offset` shifts
    leading.  `set_alpha_to_one`: end at the clean image, else at the noise level of timestep 0.

    Raises ValueError for values that make no plan.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "even",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ):
        self._setup()

    def _make_plan(self, schedule: Schedule, grid: NDArray[np.int64]) -> Plan:
        return skipped(schedule, grid)


class MixScheduler(_PlanScheduler):
    """The paper's Mix: Skipped-Step while t >= cutoff, then DDIM; options as
    `SkippedStepScheduler` and

    the cutoff in one of three units: `cutoff` as a timestep (0: all Skipped-Step, T: all DDIM),
    `cutoff_sigma` as noise level sqrt((1 - abar) / abar), `cutoff_log_snr` as
    log(abar / (1 - abar)).  A timestep means another noise level on another noise schedule.
    Without any it is timestep 291, the paper's at 25 steps.
    `eta_head` and `eta_tail`: DDIM's eta above and below it.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "even",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        cutoff: float | None = None,
        cutoff_sigma: float | None = None,
        cutoff_log_snr: float | None = None,
        eta_head: float = 1.0,
        eta_tail: float = 0.0,
    ):
        self._setup()

    def _make_plan(self, schedule: Schedule, grid: NDArray[np.int64]) -> Plan:
        c = self.config
        cutoffs = (c.cutoff, c.cutoff_sigma, c.cutoff_log_snr)
        cutoff = PAPER_CUTOFF if cutoffs == (None, None, None) else c.cutoff
        return mix(
            schedule,
            grid,
            cutoff=cutoff,
            cutoff_sigma=c.cutoff_sigma,
            cutoff_log_snr=c.cutoff_log_snr,
            eta_head=c.eta_head,
            eta_tail=c.eta_tail,
        )
