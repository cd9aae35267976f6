"""Any plan as a scheduler for diffusers pipelines: what a file of `show_plan=FILE.json` says.

from skipped_step.schedulers import PlanScheduler

pipe.scheduler = PlanScheduler.from_json("plan.json", like=pipe.scheduler)
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

# diffusers finds how to load our classes by this name in this module: do not rename it.
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .flow import FlowMatching
from .inherit import schedule_of
from .levels import Asked, Levels, numbers
from .plan import Plan, read_plan
from .samplers import check_schedule
from .schedule import Array
from .stepping import Stepping, looks_before

__all__ = ["PlanScheduler", "SchedulerMixin"]

LIKE = "PlanScheduler.from_json(path, like=pipe.scheduler)"
# The noise schedules that go by a name, in the options of a scheduler; the second is Stable Diffusion's.
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
)


class PlanScheduler(Stepping):
    """The rows of a plan, whatever made it: as many steps as it has network calls, at its own levels.

    `plan` is its JSON, as `Plan.to_json` writes it; `from_json` reads it from a file.  The other options
    are those of `SkippedStepScheduler`, of which the model's noise schedule, `prediction_type`,
    clipping and `eps_scale` count here, and the grid (`timestep_spacing`, `steps_offset`,
    `drops_last_node`, `set_alpha_to_one`) is the plan's own.  Rows may look back at several calls, go up
    (Restart, churn), lie between timesteps and use a learned variance.  A pipeline may begin in the
    middle where no later row looks back beyond that.

    Raises ValueError for what is no plan, one of another noise schedule, and one that adds noise before
    its first network call.
    """

    _unread = {"timestep_spacing": None}  # noqa: RUF012

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
        plan: str | None = None,
    ):
        self._setup()
        self.init_noise_sigma = self._stored.start

    @classmethod
    def from_json(cls, source: str | Path, like: Any = None, **options: Any) -> "PlanScheduler":
        """The plan in a file, or in text that is its JSON, for the model that `like` is a scheduler of.

        `like`, a scheduler or its config, says the noise schedule, what the network predicts and what
        is clipped, as `from_config` of our other schedulers takes it; `options` override it.  Without
        it the network predicts epsilon and nothing is clipped, unless `options` say so, and the noise
        schedule is that of linear, Stable Diffusion's scaled_linear and squaredcos_cap_v2 that the plan
        is of.  Raises ValueError for what is no plan, and for one of another noise schedule.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        plan = Plan.from_json(str(source)) if is_text else read_plan(source)
        like = getattr(like, "scheduler", like)  # of a pipeline
        config = {} if like is None else getattr(like, "config", like)
        if like is None and not {"beta_schedule", "trained_betas", "flow_matching"} & {*options}:
            options = {**_schedule_by_name(plan, options), **options}
        made: PlanScheduler = cls.from_config(config, **options, plan=plan.to_json())
        return made

    def _follow_config(self) -> None:
        super()._follow_config()
        if not isinstance(self.config.plan, str):
            raise ValueError(f"PlanScheduler needs a plan: {LIKE} reads it")
        self._stored = Plan.from_json(self.config.plan)
        self._check_start(self._stored)
        try:
            check_schedule(self._stored, self._path.trial.schedule)
        except ValueError as error:
            raise ValueError(
                f"{error}: take the pipeline's own, as {LIKE}, or make the plan with its model, as "
                "`python sample.py model=diffusers model.id=... show_plan=FILE.json`"
            ) from None

    def _check_start(self, plan: Plan) -> None:
        if not next(plan.rows()).calls:
            raise ValueError(
                f"{plan.name} adds noise before its first network call, where no pipeline asks its "
                "scheduler: make it with a grid that begins at the last timestep, as spacing=trailing"
            )

    def _make_plan(self, levels: Levels) -> Plan:
        return self._stored

    def _planned(self, asked: Asked) -> tuple[Plan, Levels]:
        plan = self._scaled_plan(self._path.trial)
        times = plan.t[plan.calls]
        if isinstance(self._path, FlowMatching):
            levels = self._path.levels(asked)
            self._check_asked(asked, len(levels.nodes), times)
            return plan, self._told(levels, times)
        self._check_asked(asked, asked.steps, times)
        self._by_place = bool((times % 1).any())
        return plan, Levels(self._path.schedule, np.empty(0, np.int64), _whole(times))

    def _check_asked(self, asked: Asked, steps: int | None, times: Array) -> None:
        """Raise ValueError for another number of steps, and for a grid of betas, than the plan's."""
        if not isinstance(self._path, FlowMatching):  # whose pipelines pass them unasked
            if asked.sigmas is not None or asked.mu is not None:
                raise ValueError("the noise levels are the plan's own: leave sigmas and mu out")
            if asked.timesteps is not None:
                if not np.array_equal(numbers("timesteps", asked.timesteps), times):
                    raise ValueError("the timesteps are the plan's own: leave timesteps out")
                steps = len(times) if steps is None else steps
        if steps != len(times):
            raise ValueError(
                f"the plan makes {len(times)} network calls, and {steps} steps were asked for: set "
                f"num_inference_steps={len(times)}, or make another plan"
            )

    def _told(self, levels: Levels, times: Array) -> Levels:
        """What a pipeline of flow matching is told at `times`: its own levels, linear in between."""
        T = float(self.config.num_train_timesteps)
        ends = (T, 0.0) if self._path.inverted else (0.0, T)

        def told(theirs: list[float], unit: float) -> Array:
            known = {0.0: ends[0] * unit, T: ends[1] * unit}
            known |= dict(zip(levels.schedule.times.tolist(), theirs[::-1], strict=True))
            path = sorted(known)
            return np.interp(times, path, [known[t] for t in path])

        sigmas = levels.sigmas
        if sigmas is not None:
            ours = torch.from_numpy(told(sigmas[:-1].tolist(), 1 / T)).to(sigmas)
            sigmas = torch.cat([ours, sigmas[-1:]])
        return levels._replace(times=_whole(told(levels.times, 1.0)), sigmas=sigmas)

    def _begin_at(self, position: int) -> None:
        for done, jump in enumerate(self._jumps[position:]):
            if looks_before(jump, done):
                raise ValueError(
                    f"the plan cannot begin at its step {position + 1}, since step {position + 1 + done} "
                    "looks back at calls before: use strength=1, or a plan of order 1"
                )
        self._history = ()


def _schedule_by_name(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """The noise schedule that a plan is of."""
    defaults = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    for schedule in SCHEDULES:
        with suppress(ValueError):
            check_schedule(plan, schedule_of({**defaults, **schedule, **options}))
            return schedule
    raise ValueError(
        f"the plan is of none of the noise schedules that go by a name: say whose it is, as {LIKE}"
    )


def _whole(times: Array) -> list[float]:
    """Integers where all times are."""
    return [t if (times % 1).any() else int(t) for t in times.tolist()]
