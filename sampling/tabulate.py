"""Any linear scheduler of diffusers as a plan, found without a network.

A scheduler adds up the start x_T, what the network says and the noise that it draws.  So it is
stepped once over *basis vectors* in place of images: one for x_T, one for each clean image x0_k
that the network would imply, one for each z.  What it returns are its coefficients.  From these
follow the shortest rows that repeat it,

    x_(k+1) = x * x_k + sum_j x0[j] * x0_(k-j) + sum_(j >= 1) eps[j] * eps_(k-j) + noise * z_k.

x_k is what `scale_model_input` makes of the scheduler's state: what the network sees.  (EDM's
schedulers scale by what the network is; there x_k is the state itself, and t is sigma.)
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .plan import Plan
from .run import iterate
from .schedule import Array, Level

# Rows repeat the scheduler's coefficients to this, relative to the largest of a state.
TOLERANCE = 1e-12
# The check on random numbers: rounding grows with the number of steps; an option that is not
# linear (thresholding) is off by much more.
LINEAR = 1e-10
# The longest history that is looked for: PNDM with its Runge-Kutta warm-up looks back at 12 calls.
LONGEST = 12

# What the network of a scheduler predicts whose config does not say it.
OUTPUTS = {
    "IPNDMScheduler": "v_prediction",
    "FlowMatchEulerDiscreteScheduler": "flow_prediction",
    "FlowMatchHeunDiscreteScheduler": "flow_prediction",
    "FlowMatchLCMScheduler": "flow_prediction",
    "LTXEulerAncestralRFScheduler": "flow_prediction",
}
# What schedulers raise that need more than they are given, or fail by themselves.
FAILURES = (AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError)


def tabulate(
    scheduler: Any,
    steps: int | None = None,
    *,
    grid: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a diffusers scheduler for `steps` steps, in float64.

    `grid`: further arguments of its `set_timesteps` (`sigmas`, `mu`); `step`: of its `step`
    (`eta`).  Without `steps`, those that it was last set to.  The scheduler itself is not touched.

    Raises ValueError, naming the class and why, for what is no such plan: an update that is not
    linear, noise drawn twice a step, a `step` that asks for more than a network's output.
    """
    with double_precision(type(scheduler)):
        twin = _twin(scheduler)
        _set_timesteps(scheduler, twin, steps, grid or {})
        return as_plan(twin, step or {})


def as_plan(scheduler: Any, options: Mapping[str, Any]) -> Plan:
    """The plan of a scheduler as it is set, with its own timesteps and noise levels.

    To be called within `double_precision`; raises ValueError as `tabulate`.
    """
    name, n = type(scheduler).__name__, len(scheduler.timesteps)
    if n == 0 or scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise ValueError(
            f"{name} does not go from noise to an image ({n} timesteps): choose another scheduler"
        )
    try:
        trace = _trace(copy.deepcopy(scheduler), Basis(n), options)
        random = _trace(copy.deepcopy(scheduler), Random(), options)
    except FAILURES as error:
        raise ValueError(
            f"{name} cannot be stepped by a network's output alone ({first_line(error)}): choose "
            "another scheduler"
        ) from error
    if trace.calls[-1].t < 0:
        last = trace.calls[-1].t
        raise ValueError(
            f"{name} asks its network for timestep {last:g}, by rounding: take one step more or less"
        )
    plan = _shortest(name, trace)
    _check(plan, random)
    return plan


# --- float64 --------------------------------------------------------------------------------


class _Float64(TorchFunctionMode):
    """torch in this thread with float64 wherever float32 is asked for, or comes by default."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        out = func(*args, **kwargs)
        if func in _FACTORIES and isinstance(out, Tensor) and out.dtype == torch.float32:
            return func(*args, **{**kwargs, "dtype": torch.float64})
        return out


_FACTORIES = (torch.tensor, torch.linspace, torch.ones, torch.zeros, torch.full, torch.arange)


class _Drawn(TorchFunctionMode):
    """torch in this thread whose normal noise is `draw()`."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.randn, torch.randn_like):
            return self.draw()
        return func(*args, **(kwargs or {}))


class _NumPy:
    """The module `numpy`, whose float32 is float64."""

    float32 = np.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def double_precision(cls: type) -> Iterator[None]:
    """Schedulers of that class compute in float64: diffusers' round to float32 in many places.

    Their modules see another `numpy` meanwhile; torch is changed for this thread alone.
    """
    modules = {sys.modules[c.__module__] for c in cls.__mro__ if hasattr(c, "step")}
    with _ONE_AT_A_TIME, _Float64():
        changed = [module for module in modules if getattr(module, "np", None) is np]
        try:
            for module in changed:
                vars(module)["np"] = _NumPy()
            yield
        finally:
            for module in changed:
                vars(module)["np"] = np


def _twin(scheduler: Any) -> Any:
    """The scheduler once more from its config, so that its betas are float64."""
    cls = type(scheduler)
    if not hasattr(cls, "from_config"):
        raise ValueError(f"{cls.__name__} has no config from which it could be made again")
    return cls.from_config(scheduler.config)


def _set_timesteps(scheduler: Any, twin: Any, steps: int | None, grid: Mapping[str, Any]) -> None:
    """Set the twin to so many steps, or to those of the scheduler; see `tabulate`."""
    name = type(scheduler).__name__
    n = getattr(scheduler, "num_inference_steps", None) if steps is None else steps
    if n is None:
        raise ValueError(f"say for how many steps {name} is wanted: tabulate(scheduler, steps)")
    set_steps(twin, n, grid)
    if steps is not None:
        return
    mine, its = (np.asarray(s.timesteps.cpu(), dtype=np.float64) for s in (twin, scheduler))
    if mine.shape != its.shape or not np.allclose(mine, its, rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"the timesteps of {name} come from more than their number: pass the arguments "
            "of its set_timesteps to tabulate(scheduler, steps, grid={...})"
        )


def set_steps(scheduler: Any, n: int, grid: Mapping[str, Any] | None = None) -> None:
    """Its `set_timesteps`; raises ValueError, naming the class, where that fails."""
    try:
        scheduler.set_timesteps(n, **(grid or {}))
    except (*FAILURES, ValueError) as error:
        name = type(scheduler).__name__
        raise ValueError(
            f"{name} cannot be set to {n} steps ({first_line(error)}): take other steps, or another "
            "scheduler"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of diffusers' says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


# --- one run --------------------------------------------------------------------------------


class Inputs(Protocol):
    """What a run starts from and meets: images, or basis vectors in their place."""

    def start(self) -> Tensor: ...

    def x0(self, k: int) -> Tensor: ...

    def z(self, k: int) -> Tensor: ...


@dataclass(frozen=True)
class Basis:
    """Unit vectors [1, 1, 1, 1 + 2n]: x_T, the x0 of n calls, the noise of n steps."""

    n: int

    def unit(self, i: int) -> Tensor:
        vector = torch.zeros(1, 1, 1, 1 + 2 * self.n, dtype=torch.float64)
        vector[..., i] = 1
        return vector

    def start(self) -> Tensor:
        return self.unit(0)

    def x0(self, k: int) -> Tensor:
        return self.unit(1 + k)

    def z(self, k: int) -> Tensor:
        return self.unit(1 + self.n + k)


@dataclass(frozen=True)
class Random:
    """Images and noise of random numbers, some of them large, the same at every call."""

    seed: int = 0

    def _draw(self, i: int) -> Tensor:
        numbers = np.random.default_rng([self.seed, i]).normal(scale=3, size=(2, 1, 4, 4))
        return torch.from_numpy(numbers)

    def start(self) -> Tensor:
        return self._draw(0)

    def x0(self, k: int) -> Tensor:
        return self._draw(1 + 2 * k)

    def z(self, k: int) -> Tensor:
        return self._draw(2 + 2 * k)


class Call(NamedTuple):
    """A network call: its timestep, its level, what the network sees; whether noise follows."""

    t: float
    level: Level
    x: Tensor
    noisy: bool


@dataclass
class _Draw:
    """The noise of one step, which may be drawn once."""

    name: str
    z: Tensor
    drawn: bool = False

    def __call__(self) -> Tensor:
        if self.drawn:
            raise ValueError(f"{self.name} draws noise twice a step: that is no plan")
        self.drawn = True
        return self.z


def _trace(scheduler: Any, inputs: Inputs, options: Mapping[str, Any]) -> "Trace":
    """Run the scheduler as a pipeline does."""
    name = type(scheduler).__name__
    x = inputs.start() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    calls = []
    for k, t in enumerate(scheduler.timesteps):
        seen, level = _seen(scheduler, x, t)
        output = _output(scheduler, seen, inputs.x0(k), level, x)
        draw = _Draw(name, inputs.z(k))
        with _Drawn(draw):
            x = scheduler.step(output, t, x, return_dict=False, **options)[0]
        edm = hasattr(scheduler, "precondition_outputs")  # its timesteps are log(sigma) / 4
        calls.append(Call(level.sigma if edm else float(t), level, seen, draw.drawn))
    states = [*(call.x for call in calls), x]
    return Trace(inputs, calls, np.stack([state.flatten().numpy() for state in states]))


@dataclass(frozen=True)
class Trace:
    """A run: `states` [n + 1, numbers], flat, those that its n calls see and its last."""

    inputs: Inputs
    calls: list[Call]
    states: Array

    def __len__(self) -> int:
        return len(self.calls)

    def x0(self, k: int) -> Array:
        return self.inputs.x0(k).flatten().numpy()

    def z(self, k: int) -> Array:
        return self.inputs.z(k).flatten().numpy()

    def eps(self, k: int) -> Array:
        alpha, sigma = self.calls[k].level
        return (self.states[k] - alpha * self.x0(k)) / sigma


def _seen(scheduler: Any, x: Tensor, t: Tensor) -> tuple[Tensor, Level]:
    """(what the network sees of the state x, its level)."""
    seen = x
    if hasattr(scheduler, "scale_model_input"):
        seen = scheduler.scale_model_input(x, t)
    if hasattr(scheduler, "precondition_outputs"):  # EDM: the scaling is the network's business
        return x, Level(1.0, float(scheduler.sigmas[scheduler.step_index]))
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # the family of DPM-Solver
        i = scheduler.step_index or 0
        return seen, Level(*map(float, scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[i])))
    if type(scheduler).__name__ == "IPNDMScheduler":
        i = scheduler.index_for_timestep(t)
        return seen, Level(float(scheduler.alphas[i]), float(scheduler.betas[i]))
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2: every second call is between two nodes
        alpha = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))
        sigmas = torch.cat([scheduler.sigmas, scheduler.sigmas_interpol]).nan_to_num()
        sigma = sigmas[(sigmas - (alpha**-2 - 1) ** 0.5).abs().argmin()]
        return seen, Level(alpha, alpha * float(sigma))
    x0, eps = torch.eye(2, dtype=torch.float64)[:, None, None, None]
    if hasattr(scheduler, "scale_noise"):
        mixed = scheduler.scale_noise(x0, t.reshape(1), eps)
    else:
        mixed = scheduler.add_noise(x0, eps, t.reshape(1))
    if hasattr(scheduler, "scale_model_input"):
        mixed = scheduler.scale_model_input(mixed, t)
    return seen, Level(*mixed.flatten().tolist())


def _output(scheduler: Any, seen: Tensor, x0: Tensor, level: Level, x: Tensor) -> Tensor:
    """What a network says that sees `seen` and implies the clean image x0."""
    name, (alpha, sigma) = type(scheduler).__name__, level
    if hasattr(scheduler, "precondition_outputs"):  # EDM: x0 = c_skip x + c_out F
        s = torch.tensor(sigma, dtype=torch.float64)
        zero, one = torch.zeros_like(s), torch.ones_like(s)
        c_skip = scheduler.precondition_outputs(one, zero, s)
        return (x0 - c_skip * x) / scheduler.precondition_outputs(zero, one, s)
    kind = OUTPUTS.get(name) or scheduler.config.get("prediction_type")
    if kind == "sample":
        return x0
    if sigma == 0 or (kind == "epsilon" and alpha == 0):
        raise ValueError(f"{name} calls the network where nothing is known of its {kind}")
    eps = (seen - alpha * x0) / sigma
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return alpha * eps - sigma * x0
    if kind == "flow_prediction":
        return eps - x0
    raise ValueError(f"{name} does not say what its network predicts (prediction_type={kind!r})")


# --- the shortest history -------------------------------------------------------------------


class _Row(NamedTuple):
    """The coefficients of a row: `x0` of itself and the rows before, `eps` of the rows before.

    `loss` is how much larger its terms are than their sum: by that, rounding grows.
    """

    x: float
    x0: Array
    eps: Array
    noise: float
    loss: float


def _shortest(name: str, trace: Trace) -> Plan:
    """The plan with the shortest history that repeats these states to `TOLERANCE`.

    Among histories of one length, the one whose rows lose the least to rounding.
    """
    if not np.isfinite(trace.states).all():
        raise ValueError(
            f"{name} itself is not finite for {len(trace)} network calls: try other steps"
        )
    for length in range(LONGEST + 1):
        histories = [(length - past_eps, past_eps) for past_eps in range(length + 1)]
        if found := list(filter(None, (_rows(trace, history) for history in histories))):
            return _assembled(name, trace, min(found, key=lambda rows: max(r.loss for r in rows)))
    raise ValueError(f"{name} is no plan whose rows look back at {LONGEST} calls or fewer")


def _rows(trace: Trace, history: tuple[int, int]) -> list[_Row] | None:
    """All rows within a history of so many x0 and eps, each with the fewest that give it."""
    most = range(len(trace))
    if not all(_row(trace, k, history) for k in most):
        return None
    past_x0, past_eps = history
    shorter = sorted(product(range(past_x0 + 1), range(past_eps + 1)), key=sum)
    return [next(filter(None, (_row(trace, k, h) for h in shorter))) for k in most]


def _row(trace: Trace, k: int, history: tuple[int, int]) -> _Row | None:
    """Row k from so many x0 and eps of the rows before, or None where they do not give it."""
    past_x0, past_eps = (min(past, k) for past in history)
    columns = [trace.states[k]]
    columns += [trace.x0(k - j) for j in range(past_x0 + 1)]
    columns += [trace.eps(k - j) for j in range(1, past_eps + 1)]
    columns += [trace.z(k)] * trace.calls[k].noisy
    matrix, target = np.stack(columns, axis=1), trace.states[k + 1]
    size = np.linalg.norm(matrix, axis=0)
    found = np.linalg.lstsq(matrix / size, target, rcond=1e-15)[0]
    loss = np.abs(found).sum() / np.linalg.norm(target)
    found /= size
    if np.abs(matrix @ found - target).max() > TOLERANCE * max(1.0, np.abs(target).max()):
        return None
    x, x0, eps, noise = np.split(found, [1, past_x0 + 2, past_x0 + 2 + past_eps])
    return _Row(x[0], x0, eps, noise.sum(), loss)


def _assembled(name: str, trace: Trace, rows: list[_Row]) -> Plan:
    alpha, sigma = np.array([call.level for call in trace.calls]).T
    t = np.array([call.t for call in trace.calls])
    nan = np.full_like(t, np.nan)
    return Plan(
        name=name,
        t=t,
        s=np.append(t[1:], -1.0),
        x=np.array([row.x for row in rows]),
        x0=_padded([row.x0 for row in rows]),
        eps=_padded([np.append(0.0, row.eps) for row in rows]),
        noise=np.array([row.noise for row in rows]),
        noise_high=nan,
        gradient=np.divide(sigma**2, alpha, out=np.full_like(t, np.inf), where=alpha != 0),
        gradient_high=nan,
        alpha=alpha,
        sigma=sigma,
        start=float(trace.states[0, 0]),
    )


def _padded(rows: list[Array]) -> Array:
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


class _Replay:
    """The clean images and the noise of a trace, in the order in which a plan asks for them."""

    def __init__(self, trace: Trace) -> None:
        self.inputs, self.k = trace.inputs, -1

    def denoiser(self, x: Tensor, t: float) -> tuple[Tensor, None]:
        self.k += 1
        return self.inputs.x0(self.k), None

    def start(self) -> Tensor:
        return self.inputs.start()

    def at(self, *_: float) -> Tensor:
        return self.inputs.z(self.k)


def _check(plan: Plan, trace: Trace) -> None:
    """Raise ValueError unless the plan gives the states of this run of the scheduler.

    Up to the rounding of its own weights: Heun's method in a jump from sigma / alpha = 20,000 (a cosine
    schedule's first) to 0.01 takes differences of 10^6 images.
    """
    weights = max(float(np.abs(column).max()) for column in (plan.x, plan.x0, plan.eps))
    tolerance = max(LINEAR, 10 * np.finfo(np.float64).eps * weights)
    replay = _Replay(trace)
    ours = (state.x for state in iterate(replay.denoiser, plan, replay))
    for mine, theirs in zip(ours, trace.states[1:], strict=True):
        if not np.abs(mine.flatten().numpy() - theirs).max() <= tolerance * np.abs(theirs).max():
            raise ValueError(
                f"{plan.name} is not linear: switch off its clip_sample and thresholding "
                "(the denoiser limits x0), or choose another scheduler"
            )
