"""Flow matching, x = (1 - sigma) x0 + sigma eps, in our schedulers: SD3, FLUX, Wan, LTX, ...

The noise levels are those of the class that the pipeline came with, because that class itself
makes them: shifts, static or by resolution, Karras's sigmas, a stretched end and all.  Ours put
their plans on them.  A plan's t is T * sigma (T = `num_train_timesteps`, 1000), and so are
cutoffs, also where the network is told something else: UniPC and DPM-Solver++ tell it whole
numbers, Mochi (`invert_sigmas`) T - t.
"""

import inspect
from typing import Any

import diffusers.schedulers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .inherit import FLOW_SOURCES
from .levels import Asked, Levels, numbers
from .options import check_choice, plain
from .schedule import Schedule

# FlowMatchEuler reads these two where its config has them, though they are no options of it.
LIMITS = ("sigma_min", "sigma_max")
FAILURES = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


class FlowMatching:
    """The levels of a model of flow matching, by the config of one of our schedulers.

    `config.flow_matching` names the class of diffusers that places them.  Raises ValueError for a
    class that is not known, and for a `prediction_type` other than flow_prediction.
    """

    def __init__(self, config: Any) -> None:
        self.name = config.flow_matching
        check_choice("flow_matching", self.name, FLOW_SOURCES)
        if config.prediction_type != "flow_prediction":
            raise ValueError(
                f"flow_matching={self.name!r} needs prediction_type='flow_prediction', not "
                f"{config.prediction_type!r}: from_config of the pipeline's own config says so"
            )
        self.config = config
        self.source = self._made()
        self.inverted = bool(self.source.config.get("invert_sigmas"))

    def _made(self) -> Any:
        """The scheduler that places the levels.  Heun's are Euler's."""
        name = self.name.replace("FlowMatchHeun", "FlowMatchEuler")
        kept = FLOW_SOURCES[self.name].kept
        options = {key: self.config[key] for key in kept if key in self.config}
        options |= {"use_flow_sigmas": True} if "use_flow_sigmas" in kept else {}
        try:
            source = getattr(diffusers.schedulers, name)(**options)
        except (*FAILURES, ImportError) as error:
            raise ValueError(f"{self.name} itself refuses its config: {error}") from error
        if "FlowMatch" in name:
            source.register_to_config(**{k: self.config[k] for k in LIMITS if k in self.config})
        return source

    @property
    def shift(self) -> float:
        return float(self.source.shift)

    def set_shift(self, shift: float) -> None:
        self.source.set_shift(shift)

    @property
    def times(self) -> list[float]:
        times: list[float] = self.source.timesteps.tolist()
        return times

    @property
    def sigmas(self) -> Tensor:
        """As the class has them before `set_timesteps`; the solvers', which are of betas, are t / T."""
        solver = "use_flow_sigmas" in self.source.config
        t_over_T = self.source.timesteps / self.config.num_train_timesteps
        sigmas: Tensor = t_over_T if solver else self.source.sigmas
        return sigmas

    @property
    def table(self) -> Tensor:
        """alpha and sigma of all training timesteps, [2, T]."""
        sigma = self.sigmas.double()
        return torch.stack([1 - sigma, sigma])

    @property
    def trial(self) -> Levels:
        """A run of three steps, on a scheduler of its own."""
        mu = 1.0 if self.source.config.get("use_dynamic_shifting") else None
        return self._levels(self._made(), Asked(3, None, None, mu))

    def levels(self, asked: Asked) -> Levels:
        """Raises ValueError where the class itself does not take what is asked, or no path follows."""
        return self._levels(self.source, asked)

    def _levels(self, source: Any, asked: Asked) -> Levels:
        self._set(source, asked)
        sigma = source.sigmas.double().cpu().numpy()
        if self.inverted:
            sigma = 1 - sigma
        if not _is_path(sigma):
            shown = ", ".join(f"{s:.4g}" for s in sigma[:3]) + f", ..., {sigma[-2]:.4g}"
            raise ValueError(
                f"{self.name} places noise levels at {shown}, which do not fall strictly from at "
                "most 1 to above 0: take more steps, or sigmas (without a 0 at the end, which it adds), or "
                "keep the scheduler that the pipeline came with"
            )
        unit = float(self.config.num_train_timesteps)
        schedule = Schedule.flow(sigma[:-1], float(sigma[-1]), unit=unit)
        times: list[float] = source.timesteps.tolist()
        return Levels(schedule, np.arange(schedule.T)[::-1], times, source.sigmas)

    def _set(self, source: Any, asked: Asked) -> None:
        """The class's own `set_timesteps`."""
        known = inspect.signature(source.set_timesteps).parameters
        lists = {"sigmas": asked.sigmas, "timesteps": asked.timesteps}
        words: dict[str, Any] = {
            key: numbers(key, given).astype(np.float64)
            for key, given in lists.items()
            if given is not None
        }
        words |= {"mu": asked.mu} if asked.mu is not None else {}
        if (steps := plain(asked.steps)) is not None:
            if not isinstance(steps, int) or steps < 1:
                raise ValueError(
                    f"num_inference_steps, an integer, must be at least 1, got {steps!r}"
                )
            words["num_inference_steps"] = steps
        if strange := sorted({*words} - {*known}):
            raise ValueError(f"{self.name}'s set_timesteps takes no {strange[0]}: leave it out")
        if not {*words} - {"mu"}:
            raise ValueError("give num_inference_steps, or sigmas of your own")
        try:
            source.set_timesteps(**words)
        except FAILURES as error:
            why = str(error).splitlines()[:1] or ["use_dynamic_shifting must be set for a mu"]
            raise ValueError(f"{self.name} cannot be set to these steps: {why[0]}") from error


def _is_path(sigma: NDArray[np.float64]) -> bool:
    return len(sigma) > 1 and bool((np.diff(sigma) < 0).all()) and sigma[0] <= 1 and sigma[-1] >= 0
