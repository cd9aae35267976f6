"""Skipped-Step, Mix and any plan as schedulers for diffusers pipelines.

    from skipped_step.schedulers import MixScheduler, PlanScheduler

    pipe.scheduler = MixScheduler.from_config(pipe.scheduler.config, cutoff=291)
    pipe.scheduler = PlanScheduler.from_json("plan.json", like=pipe.scheduler)

Thin adapters: the coefficients are those of the plans in `plan.py`; `stepping.py` runs them, and
`plan_scheduler.py` takes them from a file.
"""

from collections.abc import Sequence

# diffusers finds how to load our classes by this name in this module: do not rename it.
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .builders import mix, mixpp, skipped
from .levels import Levels
from .plan import Plan
from .plan_scheduler import PlanScheduler
from .stepping import Stepping

__all__ = [
    "MixPlusPlusScheduler",
    "MixScheduler",
    "PlanScheduler",
    "SchedulerMixin",
    "SkippedStepScheduler",
]

PAPER_CUTOFF = 0.291  # of T: the paper's at 25 steps, where T is 1000


class SkippedStepScheduler(Stepping):
    """Skipped-Step sampling (the paper's Algorithm 2) on any grid: DDIM with eta = 1.

    `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule` (linear, scaled_linear,
    squaredcos_cap_v2), `trained_betas`, `rescale_betas_zero_snr`, `snr_shift_scale` (CogVideoX's):
    the model's noise schedule.  `prediction_type`: epsilon, v_prediction or sample.  `clip_sample`
    limits x0 to +-`clip_sample_range` (pixel models), `thresholding` to the
    `dynamic_thresholding_ratio` quantile of |x0|, at most `sample_max_value`; either way the noise
    is that which goes with the limited x0.  `timestep_spacing`: leading, trailing or linspace as
    diffusers' DDIM, even (the paper's: guided-diffusion's), or any other of `sampling.timesteps`;
    `steps_offset` shifts leading; `drops_last_node` takes leading and linspace of one node more
    without the last one, as DPM-Solver++ and UniPC do.  `set_alpha_to_one`: end at the clean image,
    else at the noise level of timestep 0.  `flow_matching`: the class of diffusers that places the
    noise levels of a flow-matching model, by options of its own, in place of all that (see
    `flow.py`); `from_config` sets it.  `eps_scale`: b or (k, b), the network's eps is divided by
    k t + b before x0 is limited, against exposure bias (see `plan.scale_eps`).

    Raises ValueError for values that make no plan.
    """

    _eta = 1.0

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
        snr_shift_scale: float = 1.0,
        drops_last_node: bool = False,
        flow_matching: str | None = None,
        eps_scale: float | Sequence[float] | None = None,
    ):
        self._setup()

    def _make_plan(self, levels: Levels) -> Plan:
        return skipped(levels.schedule, levels.nodes)


class MixScheduler(Stepping):
    """The paper's Mix: Skipped-Step while t >= cutoff, then DDIM; options as
    `SkippedStepScheduler` and

    the cutoff in one of three units: `cutoff` as a timestep (0: all Skipped-Step, T: all DDIM),
    `cutoff_sigma` as noise level sqrt((1 - abar) / abar), `cutoff_log_snr` as
    log(abar / (1 - abar)).  A timestep means another noise level on another noise schedule.
    Without any it is 0.291 T: timestep 291, the paper's at 25 steps, where T = 1000.
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
        snr_shift_scale: float = 1.0,
        drops_last_node: bool = False,
        flow_matching: str | None = None,
        eps_scale: float | Sequence[float] | None = None,
        cutoff: float | None = None,
        cutoff_sigma: float | None = None,
        cutoff_log_snr: float | None = None,
        eta_head: float = 1.0,
        eta_tail: float = 0.0,
    ):
        self._setup()

    def _make_plan(self, levels: Levels) -> Plan:
        c = self.config
        cutoff = c.cutoff
        if (cutoff, c.cutoff_sigma, c.cutoff_log_snr) == (None, None, None):
            cutoff = PAPER_CUTOFF * c.num_train_timesteps
        cutoff = levels.switch("cutoff", cutoff, c.num_train_timesteps)
        return mix(
            levels.schedule,
            levels.nodes,
            cutoff=cutoff,
            cutoff_sigma=c.cutoff_sigma,
            cutoff_log_snr=c.cutoff_log_snr,
            eta_head=c.eta_head,
            eta_tail=c.eta_tail,
        )


class MixPlusPlusScheduler(Stepping):
    """Mix++: SDE-DPM-Solver++ while lo <= t < hi, DPM-Solver++ elsewhere; options as
    `SkippedStepScheduler` and

    `lo` and `hi`, timesteps in 0..T: the window in which rows add noise; `hi` None is no upper end,
    `lo` None is 0.291 T, as Mix's cutoff.  `orders`: those of the stochastic and of the
    deterministic rows, (1, 1) is Mix.  The first row that a pipeline steps has none to look back at
    and is of order 1, also where it starts in the middle (image to image).
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
        snr_shift_scale: float = 1.0,
        drops_last_node: bool = False,
        flow_matching: str | None = None,
        eps_scale: float | Sequence[float] | None = None,
        lo: float | None = None,
        hi: float | None = None,
        orders: Sequence[int] = (2, 2),
    ):
        self._setup()

    def _make_plan(self, levels: Levels) -> Plan:
        lo, hi, orders = self.config.lo, self.config.hi, self.config.orders
        T = self.config.num_train_timesteps
        lo = PAPER_CUTOFF * T if lo is None else lo
        lo, hi = levels.switch("lo", lo, T), levels.switch("hi", hi, T)
        if not isinstance(orders, list) or len(orders) != 2:
            raise ValueError(
                f"orders are two, of the stochastic and the deterministic rows, got {orders!r}"
            )
        stochastic, deterministic = orders
        return mixpp(
            levels.schedule,
            levels.nodes,
            lo=lo,
            hi=hi,
            stochastic_order=stochastic,
            deterministic_order=deterministic,
        )
