"""What a scheduler's config says, in the options of ours: right, or refused.

For every class of diffusers that asks its network at the timesteps of a schedule of betas,
`SOURCES` lists the options that are understood, and `FLOW_SOURCES` for those of flow matching,
which place their noise levels themselves (see `flow.py`).  A key that is not in the list must have that
class's default, a key that the class itself never reads is of no effect, and a class that is not
in the list is refused: each by one error that names the class, the key and what to do.

- The noise schedule, `prediction_type`, clipping and thresholding are kept.  A class that knows no
  clipping does none here.
- `timestep_spacing` (with `steps_offset`) names the same grids as in diffusers' DDIM, and the
  solvers that leave the last node away (DPM-Solver++, UniPC, DEIS, SA-Solver) do so here:
  `drops_last_node`.  Where a class's grid falls between timesteps (Euler's linspace), ours is the
  nearest timestep.  Grids by other rules (Karras's sigmas) are refused, unless the caller says
  which grid it shall be.
- The last step ends at the clean image or at the noise level of timestep 0, as that class's does:
  by its `set_alpha_to_one` or `final_sigmas_type`, if it has one of them.  DEIS and SA-Solver end at
  timestep 0's level always, all others at the clean image.
- Solver orders, `variance_type` and the like say how that class steps.  They have no meaning here
  and are carried along, so that the way back loses nothing.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import diffusers.schedulers
import numpy as np
from diffusers.configuration_utils import FrozenDict

from .denoise import Clip, DynamicThreshold, Reading
from .options import check_choice
from .schedule import Schedule

_KEEP = "keep the scheduler that the pipeline came with"
OURS = ("SkippedStepScheduler", "MixScheduler", "MixPlusPlusScheduler", "PlanScheduler")
# The values of options that are known here.
VALUES: dict[str, tuple[str, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "final_sigmas_type": ("zero", "sigma_min"),
}
# Our grid that comes nearest to another rule's, and why else an option is refused.
NEAR = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "log_snr",
    "use_lu_lambdas": "log_snr",
    "interpolation_type": "log_snr",
}
WHY = {
    "timestep_type": "the network is asked at continuous noise levels; ",
    "use_flow_sigmas": "its model is of flow matching, where this class stops before the clean image: "
    "say that it samples as another does, as {**config, '_class_name': "
    "'DPMSolverMultistepScheduler'}, or ",
    "use_dynamic_shifting": "it is of flow matching, which use_flow_sigmas is not set for; ",
    "stochastic_sampling": "that class then draws all noise anew in every row, as models do that "
    "were distilled: pass stochastic_sampling=False if this one was not, or ",
    "final_sigmas_type": "it leaves noise in the image: pass final_sigmas_type='zero', or ",
}

# Our options with their values for a class that has no such option.
ABSENT: dict[str, Any] = {
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "drops_last_node": False,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "flow_matching": None,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
# Options of ours that no class of diffusers has.
SWITCHES = (
    "eps_scale",
    "cutoff",
    "cutoff_sigma",
    "cutoff_log_snr",
    "eta_head",
    "eta_tail",
    "lo",
    "hi",
    "orders",
    "plan",
)

BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)
OWN = (*BETAS, *ABSENT, *SWITCHES)  # options of ours
GRID = ("timestep_spacing", "steps_offset")
CLIP = ("clip_sample", "clip_sample_range")
THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
TO_ONE, ZERO_SNR = "set_alpha_to_one", "rescale_betas_zero_snr"
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
LIMITS = ("sigma_min", "sigma_max")
# Of flow matching, and without effect as long as `use_flow_sigmas` is off.
FLOW = ("flow_shift", "time_shift_type")
ORDERS = ("solver_order", "solver_type", "lower_order_final")
SOLVER = (*FLOW, *ORDERS)


@dataclass(frozen=True)
class Source:
    """The options of a class that are understood.

    `kept` mean the same here.  `own` say how that class steps, or are never read.  `grids` place
    its noise levels, which must be by default unless the caller states `timestep_spacing`.
    `always` are options of ours that the class has no word for.
    """

    kept: tuple[str, ...]
    own: tuple[str, ...] = ()
    grids: tuple[str, ...] = ()
    always: Mapping[str, Any] = field(default_factory=dict)


_DDIM = Source((*BETAS, *GRID, *CLIP, *THRESHOLD, TO_ONE, ZERO_SNR))
_DDPM = Source((*BETAS, *GRID, *CLIP, *THRESHOLD, ZERO_SNR), ("variance_type",))
# CogVideoX's have options of clipping, but do not clip.
_COGVIDEOX = Source(
    (*BETAS, *GRID, TO_ONE, ZERO_SNR, "snr_shift_scale"), (*CLIP, "sample_max_value")
)
_SIGMAS = Source((*BETAS, *GRID), ("noise_sampler_seed",), SIGMAS)
_NO_LAST = {"drops_last_node": True}
_DPMPP = Source(
    (*BETAS, *GRID, *THRESHOLD, ZERO_SNR),
    (*SOLVER, "algorithm_type", "euler_at_final", "variance_type", "final_sigmas_type"),
    (*SIGMAS, "use_lu_lambdas", "lambda_min_clipped"),
    _NO_LAST,
)
_NOISY_END = {**_NO_LAST, "set_alpha_to_one": False}

SOURCES: dict[str, Source] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "CogVideoXDDIMScheduler": _COGVIDEOX,
    "CogVideoXDPMScheduler": _COGVIDEOX,
    "PNDMScheduler": Source((*BETAS, *GRID, TO_ONE), ("skip_prk_steps",)),
    "EulerDiscreteScheduler": Source(
        (*BETAS, *GRID, ZERO_SNR), ("final_sigmas_type",), (*SIGMAS, *LIMITS, "interpolation_type")
    ),
    "EulerAncestralDiscreteScheduler": Source((*BETAS, *GRID, ZERO_SNR)),
    "HeunDiscreteScheduler": Source((*BETAS, *GRID, *CLIP), (), SIGMAS),
    "LMSDiscreteScheduler": _SIGMAS,
    "KDPM2DiscreteScheduler": _SIGMAS,
    "KDPM2AncestralDiscreteScheduler": _SIGMAS,
    "DPMSolverSDEScheduler": _SIGMAS,
    "DPMSolverMultistepScheduler": _DPMPP,
    "DPMSolverSinglestepScheduler": _DPMPP,
    "DEISMultistepScheduler": Source(
        (*BETAS, *GRID, *THRESHOLD), (*SOLVER, "algorithm_type"), SIGMAS, _NOISY_END
    ),
    "SASolverScheduler": Source(
        (*BETAS, *GRID, *THRESHOLD),
        (
            *SOLVER,
            "algorithm_type",
            "predictor_order",
            "corrector_order",
            "tau_func",
            "variance_type",
        ),
        (*SIGMAS, "lambda_min_clipped"),
        _NOISY_END,
    ),
    "UniPCMultistepScheduler": Source(
        (*BETAS, *GRID, *THRESHOLD, ZERO_SNR),
        (
            *SOLVER,
            "predict_x0",
            "disable_corrector",
            "solver_p",
            "shift_terminal",
            "final_sigmas_type",
        ),
        (*SIGMAS, *LIMITS),
        _NO_LAST,
    ),
}

_FLOW_BASE = ("num_train_timesteps", "prediction_type", *THRESHOLD, "use_flow_sigmas", *FLOW)
# Of betas and of grids over them, which have no effect under flow sigmas, and how the class steps.
_FLOW_OWN = (*BETAS, *GRID, ZERO_SNR, *ORDERS, "lambda_min_clipped", "variance_type")
_FLOW_DPMPP = Source(
    (*_FLOW_BASE, "use_dynamic_shifting"), (*_FLOW_OWN, "algorithm_type", "euler_at_final")
)

# By classes that a config of flow matching may be of; what is kept keeps its name.
FLOW_SOURCES: dict[str, Source] = {
    "FlowMatchEulerDiscreteScheduler": Source(
        (
            *("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift"),
            *("base_image_seq_len", "max_image_seq_len", "invert_sigmas", "shift_terminal"),
            *(*SIGMAS, "time_shift_type"),
        )
    ),
    "FlowMatchHeunDiscreteScheduler": Source(("num_train_timesteps", "shift")),
    "DPMSolverMultistepScheduler": _FLOW_DPMPP,
    "DPMSolverSinglestepScheduler": _FLOW_DPMPP,
    "UniPCMultistepScheduler": Source(
        (*_FLOW_BASE, "use_dynamic_shifting", "shift_terminal"),
        (*_FLOW_OWN, *LIMITS, "predict_x0", "disable_corrector", "solver_p"),
    ),
}

FLOW_ENDS_NOISY = ("DEISMultistepScheduler", "SASolverScheduler")
_FLOW_MATCHING = "its model is of flow matching, at noise levels by a rule of its pipeline's own"
_DISTILLED = "its model was distilled to few steps, which another sampler does not take"
_TOKENS = "its model is of discrete tokens, which have no Gaussian noise"
_CONTINUOUS = "its network is asked at continuous noise levels, not at the timesteps of betas"

# Classes of diffusers whose models these samplers are not for, or whose pipelines call otherwise.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "MiniMaxH3Scheduler",
            "HeliosScheduler",
            "RFD4ProteinaScheduler",
        ),
        f"{_FLOW_MATCHING}: {_KEEP}",
    ),
    **dict.fromkeys(
        (
            "LCMScheduler",
            "TCDScheduler",
            "FlowMatchLCMScheduler",
            "HeliosDMDScheduler",
            "PiflowScheduler",
            "FlowMapEulerDiscreteScheduler",
            "CMStochasticIterativeScheduler",
            "ConsistencyDecoderScheduler",
            "SCMScheduler",
        ),
        f"{_DISTILLED}: {_KEEP}, or load the model that it was distilled from",
    ),
    **dict.fromkeys(
        (
            "AmusedScheduler",
            "BlockRefinementScheduler",
            "DiscreteDDIMScheduler",
            "EntropyBoundScheduler",
            "VQDiffusionScheduler",
        ),
        f"{_TOKENS}: {_KEEP}",
    ),
    **dict.fromkeys(
        (
            "EDMEulerScheduler",
            "EDMDPMSolverMultistepScheduler",
            "CosineDPMSolverMultistepScheduler",
            "DDPMWuerstchenScheduler",
            "KarrasVeScheduler",
            "ScoreSdeVeScheduler",
            "ScoreSdeVpScheduler",
            "IPNDMScheduler",
        ),
        f"{_CONTINUOUS}: {_KEEP}",
    ),
    **dict.fromkeys(
        ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"),
        "it goes from images to noise: take the config of the pipeline's own scheduler",
    ),
    "LTXEulerAncestralRFScheduler": "its levels are those of another class: take the config as "
    "{**config, '_class_name': 'FlowMatchEulerDiscreteScheduler'}",
    "RePaintScheduler": "its step takes an image and a mask: use an inpainting pipeline, or the "
    "model's DDPMScheduler config",
    "UnCLIPScheduler": f"its pipelines pass prev_timestep to step, which ours do not take: {_KEEP}",
}


KNOWN = dict.fromkeys((*SOURCES, *FLOW_SOURCES, *REFUSED))
# What has no meaning for flow matching.
NO_FLOW = (
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing"),
    *("steps_offset", "set_alpha_to_one", ZERO_SNR, "snr_shift_scale", "drops_last_node"),
)


def inherited(
    config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A scheduler's config in the options of our schedulers, with its class's defaults explicit.

    diffusers would give a new class its own defaults for all that the old config does not state:
    a pixel model that DDPM clips by default would not be clipped any more.  `overrides` are the
    options that the caller states instead; a `timestep_spacing` of None says that no grid is made
    by the config.  Raises ValueError for what cannot be done as the
    config's class does it (see the module).
    """
    stated = {key: value for key, value in config.items() if key != "_use_default_values"}
    stated |= {k: v for k, v in (overrides or {}).items() if k not in OWN}  # of the config's class
    overrides = {k: v for k, v in (overrides or {}).items() if k in OWN}
    again = {"drops_last_node": False} if overrides.get("timestep_spacing") else {}
    alike = [stated["_class_name"]] if "_class_name" in stated else _classes_of(config)
    if not alike or alike[0] in OURS:
        if flow := stated.get("flow_matching"):
            check_choice("flow_matching", flow, FLOW_SOURCES)
            return _inherited_flow(flow, flow, stated, overrides)
        if not alike:
            _check_unclassed(stated)
        return {**stated, **again}
    name = next((one for one in alike if one in REFUSED), alike[0])  # of classes that look alike
    words = " or ".join(map(str, alike))
    source, defaults = _understood(name, words), options_of(name)
    read = {key: stated.get(key, default) for key, default in defaults.items()}
    if name not in SOURCES or (name in FLOW_SOURCES and read.get("use_flow_sigmas")):
        return _inherited_flow(name, words, stated, overrides)
    for key in read:
        if key not in overrides:
            _check_key(source, f"{words}'s {key}", key, (read[key], defaults[key]), overrides)
    kept = {key: read[key] for key in source.kept if key in read}
    if kept.get(ZERO_SNR) and not {ZERO_SNR, "prediction_type"} & {*overrides}:
        check_zero_snr(f"{words}'s ", kept["prediction_type"])
    explicit = {**stated, **read, **ABSENT, **kept, **source.always, "_class_name": name}
    if "final_sigmas_type" in read:
        explicit["set_alpha_to_one"] = read["final_sigmas_type"] == "zero"
    return {**explicit, **again}


def _inherited_flow(
    name: str, words: str, stated: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The same for flow matching: options keep their names, and `flow_matching` is the class."""
    source, defaults = FLOW_SOURCES[name], options_of(name)
    overrides = {k: v for k, v in overrides.items() if k not in NO_FLOW or v is not None}
    if overrides.get("flow_matching", name) != name:
        raise ValueError(
            f"the config is {words}'s, and flow_matching cannot be another class: leave it out"
        )
    for key in overrides:
        if key in NO_FLOW:
            raise ValueError(
                f"{key} is of noise schedules of betas, and {words} places the levels of flow "
                "matching: leave it out; set_timesteps takes sigmas of your own"
            )
    read = {key: overrides.get(key, stated.get(key, default)) for key, default in defaults.items()}
    for key, value in read.items():
        if key == "prediction_type":
            _check_flow_prediction(words, value)
        elif key not in (*source.kept, *source.own) and (value or defaults[key]):
            says = f"{words}'s {key}={value!r}"
            if key in SIGMAS or key == "use_lu_lambdas":
                raise ValueError(f"{says} is not understood with use_flow_sigmas: pass {key}=False")
            if value != defaults[key]:
                raise ValueError(f"{says} is not understood here: {WHY.get(key, '')}{_KEEP}")
    rest = {key: value for key, value in ABSENT.items() if key not in defaults}
    explicit = {**stated, **read, **rest, "prediction_type": "flow_prediction"}
    return {**explicit, "flow_matching": name, "_class_name": name}


def _check_flow_prediction(words: str, value: str) -> None:
    if value != "flow_prediction":
        raise ValueError(
            f"{words}'s use_flow_sigmas goes with prediction_type='flow_prediction', not "
            f"{value!r}: pass that if the model is of flow matching, else use_flow_sigmas=False, or "
            f"{_KEEP}"
        )


def flow_options(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The options by which a config's class places levels of flow matching: may be overridden."""
    alike = [config["_class_name"]] if "_class_name" in config else _classes_of(config)
    name = config.get("flow_matching") if not alike or alike[0] in OURS else alike[0]
    if name not in FLOW_SOURCES:
        return ()
    return tuple(key for key in options_of(name) if key not in FLOW_SOURCES[name].own)


def _classes_of(config: Mapping[str, Any]) -> list[str]:
    """The classes that a live scheduler's config, which does not state its class, may be of.

    diffusers puts a class's own options first, in its order.  Several classes have the same ones,
    and they are understood or refused alike.
    """
    if "_use_default_values" not in config and not isinstance(config, FrozenDict):
        return []
    keys, options = [*config], {name: [*options_of(name)] for name in KNOWN}
    matching = [name for name, own in options.items() if own and own == keys[: len(own)]]
    longest = max((len(options[name]) for name in matching), default=0)
    return [name for name in matching if len(options[name]) == longest]


@cache
def options_of(name: str) -> dict[str, Any]:
    """The options of a class of diffusers and their defaults; none where it cannot be imported."""
    source = getattr(diffusers.schedulers, name, _Absent)
    parameters = inspect.signature(source.__init__).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default for p in parameters if p.kind not in kinds and p.name != "self"}


class _Absent:
    """In place of a class that the installed diffusers does not have."""

    def __init__(self) -> None: ...


def _understood(name: str, words: str) -> Source:
    """The understood options of a class.  Raises ValueError for any other class."""
    if name in REFUSED:
        which = [one for one in words.split(" or ") if one not in REFUSED]
        if which:  # the same options as those of a class that is refused
            which = [f", or say that it is of the other: {{**config, '_class_name': {which[0]!r}}}"]
        raise ValueError(
            f"the config of a {words} is of no use here: {REFUSED[name]}{''.join(which)}"
        )
    if name not in KNOWN:
        raise ValueError(
            f"the class {name} is not known here: if it samples as a class of diffusers does, say "
            "so, as {**config, '_class_name': 'DDIMScheduler'}"
        )
    if not options_of(name):
        raise ValueError(f"{name}'s options are not known without torchsde: pip install torchsde")
    return SOURCES.get(name) or FLOW_SOURCES[name]


def _check_unclassed(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless a config of no class is in our own words."""
    for key in config:
        if key not in OWN:
            raise ValueError(
                f"a config without _class_name does not say what {key} means: add the class that "
                "it is of, as {**config, '_class_name': 'DDIMScheduler'}"
            )


def _check_key(
    source: Source, whose: str, key: str, values: tuple[Any, Any], overrides: Collection[str]
) -> None:
    """Raise ValueError unless an option's value, of (value, default), is understood."""
    value, default = values
    says = f"{whose}={value!r}"
    if value in VALUES.get(key, [value]):
        if key in (*source.kept, *source.own) or value == default or not (value or default):
            return
        if key not in source.grids:
            raise ValueError(f"{says} is not understood here: {WHY.get(key, '')}{_KEEP}")
        if "timestep_spacing" not in overrides:
            raise ValueError(
                f"{says} places noise levels elsewhere than at its timesteps: say which grid to take "
                f"instead, as timestep_spacing={NEAR.get(key, 'trailing')!r}"
            )
    elif key == "beta_schedule" and "trained_betas" not in overrides:
        raise ValueError(f"{says} is not known here: pass trained_betas=scheduler.betas.tolist()")
    elif value == "flow_prediction" and (name := whose.split("'")[0]) in FLOW_ENDS_NOISY:
        raise ValueError(f"{says} is not understood here: {WHY['use_flow_sigmas']}{_KEEP}")
    elif value == "flow_prediction" and name in FLOW_SOURCES:
        raise ValueError(f"{says} goes with use_flow_sigmas=True: pass that, or {_KEEP}")
    elif key != "beta_schedule":
        raise ValueError(f"{says} is not known here, only {', '.join(VALUES[key])}: {_KEEP}")


def check_zero_snr(whose: str, prediction_type: str) -> None:
    """Raise ValueError for a network that says nothing of the image where there is no signal."""
    if prediction_type == "epsilon":
        raise ValueError(
            f"{whose}rescale_betas_zero_snr leaves no signal at the first timestep, where epsilon "
            "says nothing of the image: it needs prediction_type v_prediction or sample, or "
            "rescale_betas_zero_snr=False"
        )


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
    if schedule.T != T:
        raise ValueError(f"there are {schedule.T} trained_betas for num_train_timesteps={T}")
    shift = config.get("snr_shift_scale", 1.0)
    if not shift > 0:
        raise ValueError(f"snr_shift_scale must be positive, got {shift}")
    if shift != 1:  # CogVideoX's: the signal-to-noise ratio is divided by it
        a = schedule.alpha_bar
        schedule = replace(schedule, alpha_bar=a / (shift + (1 - shift) * a))
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
