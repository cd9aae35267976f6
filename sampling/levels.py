"""Which noise levels a run of our schedulers visits: the timesteps of a schedule of betas.

`Betas` and `flow.FlowMatching` are the two kinds: `trial` and `levels` make plans, `table` and
`times` are what a pipeline may ask for before there is one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .inherit import check_zero_snr, schedule_of
from .options import plain
from .schedule import Schedule
from .timesteps import timesteps as grid_of

ROUNDING = 1e-6  # of T: timesteps nearer than this are the same


class Asked(NamedTuple):
    """The arguments of `set_timesteps`."""

    steps: int | None
    timesteps: Sequence[float] | Tensor | None
    sigmas: Sequence[float] | Tensor | None
    mu: float | None


class Levels(NamedTuple):
    """Of one run: the path with the nodes to visit, decreasing, as levels of it.

    `times` [nodes] are what the pipeline is told, integers or floats, `sigmas` [nodes + 1] diffusers'
    own numbers for the levels where pipelines read them (flow matching).
    """

    schedule: Schedule
    nodes: NDArray[np.int64]
    times: list[float]
    sigmas: Tensor | None = None

    def switch(self, name: str, value: Any, T: int) -> Any:
        """A cutoff, None or in 0..T, in the plan's t; ValueError for any other.

        T lies beyond all timesteps: flow matching's first, where there is noise alone, is T itself.
        """
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= T):
            raise ValueError(
                f"{name} must be in 0..{T}, neither negative nor beyond, got {value!r}"
            )
        return np.inf if value == T and self.schedule.straight else value


class Betas:
    """The levels of a network's timesteps, by the config of one of our schedulers."""

    sigmas = None

    def __init__(self, config: Any) -> None:
        if config.rescale_betas_zero_snr:
            check_zero_snr("", config.prediction_type)
        self.config, self.schedule = config, schedule_of(config)
        spacing = self._spacing
        # All timesteps, which every known spacing has: an unknown one is refused now.
        grid_of(self.schedule, None if "," in spacing else self.schedule.T, spacing)

    @property
    def _spacing(self) -> str:
        spacing, offset = str(self.config.timestep_spacing), self.config.steps_offset
        return f"leading+{offset}" if spacing == "leading" and offset else spacing

    @property
    def times(self) -> list[float]:
        return [*range(self.schedule.T)][::-1]

    @property
    def table(self) -> Tensor:
        """alpha and sigma of all timesteps, [2, T]."""
        a = self.schedule.alpha_bar
        return torch.from_numpy(np.sqrt([a, 1 - a]))

    @property
    def trial(self) -> Levels:
        """The shortest run, of one step."""
        return Levels(self.schedule, np.array([self.schedule.T - 1]), self.times[:1])

    def levels(self, asked: Asked) -> Levels:
        """Raises ValueError unless one of steps, timesteps and sigmas is given and makes a grid."""
        given = asked.steps, asked.timesteps, asked.sigmas
        if sum(v is not None for v in given) != 1:
            raise ValueError("give exactly one of num_inference_steps, timesteps and sigmas")
        if asked.mu is not None:
            raise ValueError("mu shifts the noise levels of flow matching, not betas: leave it out")
        if asked.sigmas is not None:
            grid = self._nearest(asked.sigmas)
        elif asked.timesteps is not None:
            grid = _decreasing(numbers("timesteps", asked.timesteps))
            if not np.issubdtype(grid.dtype, np.integer):
                raise ValueError("timesteps must be integers")
        else:
            grid = self._spaced(asked.steps)
        return Levels(self.schedule, grid, grid.tolist())

    def _spaced(self, steps: int | None) -> NDArray[np.int64]:
        """The grid of that many steps by the config's spacing."""
        drops = self.config.drops_last_node
        drops = drops and self.config.timestep_spacing in ("leading", "linspace")
        if drops and steps is not None and steps < self.schedule.T:
            return grid_of(self.schedule, steps + 1, self._spacing)[:-1]
        return grid_of(self.schedule, steps, self._spacing)

    def _nearest(self, sigmas: Sequence[float] | Tensor) -> NDArray[np.int64]:
        """The timesteps whose log sigma is nearest."""
        wanted = _decreasing(numbers("sigmas", sigmas)).astype(np.float64)
        if wanted[-1] == 0:
            wanted = wanted[:-1]
        if len(wanted) == 0 or not (wanted > 0).all():
            raise ValueError("sigmas must be positive, but for a 0 at the end")
        distance = np.abs(np.log(self.schedule.noise_level) - np.log(wanted)[:, None])
        grid = distance.argmin(axis=1)
        if (np.diff(grid) >= 0).any():
            raise ValueError(
                f"several sigmas are nearest to one timestep, {grid.tolist()}: leave some out"
            )
        return grid


def numbers(name: str, values: Sequence[float] | Tensor) -> NDArray[Any]:
    """An explicit list of levels or timesteps as an array [n].  Raises ValueError for none."""
    if isinstance(values, Tensor):
        values = (values.double() if values.is_floating_point() else values).cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # of other lengths, say
        array = np.empty(0)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a list of at least one number, got {plain(values)!r}")
    return array


def _decreasing(grid: NDArray[Any]) -> NDArray[Any]:
    """An explicit grid; the plan checks that it lies within 0..T-1."""
    if not (np.diff(grid) < 0).all():
        raise ValueError(f"a grid must decrease strictly, got {grid.tolist()}")
    return grid


def place(times: Sequence[float], timestep: int | float | Tensor, due: int, T: int) -> int:
    """The row whose time is `timestep`, also one that was rounded: 999 is 1000 in bfloat16.

    Row `due` if it may be that: noise levels of flow matching are no round numbers, and what UniPC
    makes of them may come twice.  Raises ValueError for a time that no row has.
    """
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise ValueError(
            f"step takes one timestep for the whole batch, got {timestep.numel()}: pass t itself, "
            "as scheduler.timesteps has it"
        )
    value = float(timestep)
    half = isinstance(timestep, Tensor) and timestep.dtype in (torch.bfloat16, torch.float16)
    if not half and times[due : due + 1] == [value]:
        return due
    known = torch.tensor(times, dtype=torch.float64)
    if half:
        near = known.to(timestep.dtype).double() == value  # type: ignore[union-attr]
    else:
        near = (known - value).abs() <= ROUNDING * T
    rows = near.nonzero().flatten().tolist()
    if due in rows or len(rows) == 1:
        return due if due in rows else int(rows[0])
    if rows and value in (exact := [times[row] for row in rows]):
        return int(rows[exact.index(value)])
    raise ValueError(f"timestep {value:g} is not on the grid of set_timesteps: {times[:4]}...")
