"""Configs of every scheduler class of the installed diffusers: honoured as that class does, or refused.

What that class does is seen by running it: its timesteps, noise levels and last level.
"""

from __future__ import annotations

import inspect
import json
import re

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers

from sampling.inherit import FLOW_SOURCES, REFUSED, SOURCES, schedule_of
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLASSES = sorted(
    name
    for name in dir(diffusers.schedulers)
    if name.endswith("Scheduler") and isinstance(getattr(diffusers.schedulers, name), type)
)
STEPS = 10

# Another value than the default, or several, for every option of the classes that are understood.
BETAS = np.linspace(1e-4, 0.01, 1000).tolist()
VARIANTS = {
    "num_train_timesteps": [500],
    "beta_start": [0.002],
    "beta_end": [0.03],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"],
    "trained_betas": [BETAS],
    "prediction_type": ["v_prediction", "sample", "flow_prediction"],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "steps_offset": [1],
    "set_alpha_to_one": [True, False],
    "final_sigmas_type": ["sigma_min"],
    "rescale_betas_zero_snr": [True],
    "snr_shift_scale": [1.0, 4.0],
    "clip_sample": [True, False],
    "clip_sample_range": [2.0],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [2.0],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "use_dynamic_shifting": [True],
    "flow_shift": [3.0],
    "time_shift_type": ["linear"],
    "shift_terminal": [0.02],
    "lambda_min_clipped": [-2.0],
    "sigma_min": [0.1],
    "sigma_max": [5.0],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "variance_type": ["learned_range"],
    "skip_prk_steps": [True],
    "solver_order": [1, 3],
    "predictor_order": [3],
    "corrector_order": [1],
    "solver_type": ["bh1", "heun", "logrho"],
    "algorithm_type": ["sde-dpmsolver++", "noise_prediction"],
    "lower_order_final": [False],
    "euler_at_final": [True],
    "predict_x0": [False],
    "disable_corrector": [[0]],
    "solver_p": [DDIMScheduler()],
    "tau_func": [abs],
}
# What is refused, of all of these; the rest is taken.
GRIDS = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
FLOW = {"use_flow_sigmas", "use_dynamic_shifting"}
LIMITS = {"sigma_min", "sigma_max"}
EPSILON = {"rescale_betas_zero_snr"}  # with the default prediction_type
NOT_TAKEN = {
    "DDIMScheduler": EPSILON,
    "DDIMParallelScheduler": EPSILON,
    "DDPMScheduler": EPSILON | {"beta_schedule"},
    "DDPMParallelScheduler": EPSILON | {"beta_schedule"},
    "CogVideoXDDIMScheduler": EPSILON,
    "CogVideoXDPMScheduler": EPSILON,
    "PNDMScheduler": set(),
    "EulerDiscreteScheduler": EPSILON | GRIDS | LIMITS | {"interpolation_type", "timestep_type"},
    "EulerAncestralDiscreteScheduler": EPSILON,
    "HeunDiscreteScheduler": GRIDS | {"beta_schedule"},
    "LMSDiscreteScheduler": GRIDS,
    "KDPM2DiscreteScheduler": GRIDS,
    "KDPM2AncestralDiscreteScheduler": GRIDS,
    "DPMSolverMultistepScheduler": EPSILON
    | GRIDS
    | FLOW
    | {"use_lu_lambdas", "lambda_min_clipped"},
    "DPMSolverSinglestepScheduler": GRIDS | FLOW | {"lambda_min_clipped"},
    "DEISMultistepScheduler": GRIDS | FLOW,
    "SASolverScheduler": GRIDS | {"use_flow_sigmas", "lambda_min_clipped"},
    "UniPCMultistepScheduler": EPSILON | GRIDS | FLOW | LIMITS,
}


def options_of(cls) -> dict:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD}


def created(cls, **options):
    """The scheduler, or None where that class itself refuses these options."""
    try:
        return cls(**options)
    except (ValueError, NotImplementedError, ImportError, TypeError, AttributeError):
        return None


def levels(source):
    """(timesteps, alpha_bar at each of them and at the end) of a run of the class itself."""
    if isinstance(source, PNDMScheduler):
        source.register_to_config(skip_prk_steps=True)  # calls of the network between its nodes
    source.set_timesteps(STEPS)
    # Heun and KDPM2 go over most levels twice, PNDM over the second.
    t = np.unique(source.timesteps.double().numpy())[::-1]
    t = t[~np.isnan(t)]  # KDPM2Ancestral's, for some betas
    if not hasattr(source, "sigmas"):
        end = getattr(source, "final_alpha_cumprod", torch.tensor(1.0))
        abar = source.alphas_cumprod.double().numpy()[t.astype(int)]
        return t, np.append(abar, float(end))
    sigma = source.sigmas.double().numpy()
    ends_at_the_last = len(sigma) > len(t) and sigma[-1] == sigma[-2]
    sigma = sigma[np.append(True, np.diff(sigma) != 0)]
    return t, 1 / (1 + np.append(sigma, sigma[-1:] if ends_at_the_last else []) ** 2)


def assert_same_levels(ours, source):
    ours.set_timesteps(STEPS)
    t, abar = levels(source)
    if "KDPM2" in type(source).__name__:  # its levels in between are its own
        grid = ours.timesteps.numpy()
        assert np.abs(t[:, None] - grid).min(axis=0).max() <= 0.5
        assert abar[-1] == schedule_of(ours.config).final
        return
    assert len(t) == len(ours.timesteps)
    # Theirs may fall between timesteps, and there ours are the nearest.
    assert np.abs(ours.timesteps.numpy() - t).max() <= 0.5
    schedule = schedule_of(ours.config)
    inside = np.arange(schedule.T)
    with np.errstate(divide="ignore"):
        wanted = 1 / (1 + np.interp(t, inside, np.minimum(schedule.noise_level, 1e6)) ** 2)
    np.testing.assert_allclose(abar[:-1], wanted, rtol=2e-3, atol=1e-6)
    assert abar[-1] == pytest.approx(schedule.final, abs=1e-6)
    np.testing.assert_allclose(ours.plan.alpha, schedule.alpha[ours.timesteps], rtol=1e-12)


def refusal(config, cls=MixScheduler, **more) -> str | None:
    """What from_config says if it refuses: one line."""
    try:
        cls.from_config(config, **more)
    except ValueError as error:
        says = str(error)
    else:
        return None
    assert "\n" not in says
    return says


def test_every_class_of_diffusers_is_known():
    """A new version may bring others: say what they are.  For flow matching see test_flow.py."""
    assert set(CLASSES) == set(SOURCES) | set(FLOW_SOURCES) | set(REFUSED)
    assert not (set(SOURCES) | set(FLOW_SOURCES)) & set(REFUSED)
    assert {s.name for s in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"} <= set(SOURCES)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"DPMSolverSDEScheduler"}))
def test_a_class_that_is_understood(name):
    """Its defaults and another value of every option: the levels of that class, or refused."""
    cls = getattr(diffusers.schedulers, name)
    assert_same_levels(MixScheduler.from_config(cls().config), cls())
    assert set(options_of(cls)) <= set(VARIANTS)
    refused, compared = set(), 0
    for key in options_of(cls):
        for value in VARIANTS[key]:
            slow = "KDPM2" in name and key in ("beta_schedule", "beta_start", "beta_end")
            source = None if slow else created(cls, **{key: value})
            if source is None:
                continue
            says = refusal(source.config)
            stated = {"_class_name": name, **dict(source.config)}
            assert (says is None) == (refusal(stated) is None), key
            if says is None:
                assert_same_levels(MixScheduler.from_config(source.config), source)
                compared += 1
                continue
            refused.add(key)
            assert name in says and key in says
            assert_the_remedy_works(says, source)
    assert refused == NOT_TAKEN[name] | {"prediction_type"}  # of flow matching
    assert compared > 4


def assert_the_remedy_works(says, source):
    if match := re.search(r"timestep_spacing='(\w+)'", says):
        MixScheduler.from_config(source.config, timestep_spacing=match[1]).set_timesteps(STEPS)
    elif "trained_betas=scheduler.betas.tolist()" in says:
        ours = MixScheduler.from_config(source.config, trained_betas=source.betas.tolist())
        assert_same_levels(ours, source)
    elif "goes with prediction_type='flow_prediction'" in says:
        again = {"prediction_type": "flow_prediction"}
        MixScheduler.from_config(source.config, **again).set_timesteps(STEPS)
        ours = MixScheduler.from_config(source.config, use_flow_sigmas=False)
        assert_same_levels(ours, type(source)(**{**source.config, "use_flow_sigmas": False}))
    elif "goes with use_flow_sigmas=True" in says:
        MixScheduler.from_config(source.config, use_flow_sigmas=True).set_timesteps(STEPS)
    elif "'_class_name': 'DPMSolverMultistepScheduler'}" in says:
        config = {**source.config, "_class_name": "DPMSolverMultistepScheduler"}
        again = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        MixScheduler.from_config(config, **again).set_timesteps(STEPS)
    elif "leaves no signal" in says:
        MixScheduler.from_config(source.config, prediction_type="v_prediction")
        MixScheduler.from_config(source.config, rescale_betas_zero_snr=False)
    else:
        assert "keep the scheduler" in says


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(
    "name", sorted(n for n, keys in NOT_TAKEN.items() if "rescale_betas_zero_snr" in keys)
)
def test_zero_terminal_snr_where_the_network_can_do_it(name, prediction):
    cls = getattr(diffusers.schedulers, name)
    options = {"rescale_betas_zero_snr": True, "prediction_type": prediction}
    source = cls(**options, timestep_spacing="trailing")
    assert_same_levels(MixScheduler.from_config(source.config), source)


@ALL
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_class_that_is_refused(cls, name):
    says = refusal({"_class_name": name}, cls)
    assert says is not None and name in says and REFUSED[name] in says
    assert "keep the scheduler" in says or "take the" in says or "use an inpainting" in says
    live = created(getattr(diffusers.schedulers, name))
    if live is not None and len(live.config):
        assert "is of no use here" in refusal(live.config, cls)


def test_distilled_models_and_the_classes_alike_in_their_options():
    """A live scheduler's config does not state its class: it is told by its options."""
    for name in ("LCMScheduler", "TCDScheduler"):
        live = getattr(diffusers.schedulers, name)()
        assert "_class_name" not in live.config
        assert "was distilled to few steps" in refusal(live.config)
        assert f"of a {name}" in refusal({**live.config, "_class_name": name})
    # Made from another one's config, it carries the other's keys, and is what it is.
    again = LCMScheduler.from_config(DDIMScheduler().config)
    assert "was distilled" in refusal(again.config)
    assert refusal(DDIMScheduler.from_config(again.config).config) is None
    assert "IPNDMScheduler" in refusal(IPNDMScheduler().config)


def test_a_config_of_no_known_class():
    says = refusal({"_class_name": "MyScheduler", "beta_start": 0.1})
    assert "the class MyScheduler is not known here" in says
    config = dict(DDIMScheduler(**SD).config)
    assert refusal({**config, "_class_name": "DDIMScheduler"}) is None
    # Plain words without a class are ours, and nothing else is.
    assert MixScheduler.from_config({"beta_end": 0.01, "cutoff": 100}).config.beta_end == 0.01
    assert "what shift means: add the class" in refusal({"shift": 3.0})


def test_stable_diffusion_xl():
    """Its file states a set_alpha_to_one that its class never reads: Euler ends at sigma 0."""
    shipped = {"_class_name": "EulerDiscreteScheduler", **SD, "prediction_type": "epsilon"}
    shipped |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    shipped |= {"timestep_spacing": "leading", "skip_prk_steps": True, "sample_max_value": 1.0}
    for name in ("EulerDiscreteScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"):
        for cls in (SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler):
            ours = cls.from_config({**shipped, "_class_name": name})
            ours.set_timesteps(20)
            x, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            out = ours.step(eps, ours.timesteps[-1], x)
            torch.testing.assert_close(out.prev_sample, out.pred_original_sample)


@ALL
def test_a_leftover_of_any_class_is_of_no_effect(cls):
    """Keys that a class never reads, each with a value that would change something."""
    others = {"set_alpha_to_one": False, "clip_sample": True, "thresholding": True}
    others |= {"steps_offset": 7, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    others |= {"snr_shift_scale": 3.0, "drops_last_node": True, "use_karras_sigmas": True}
    others |= {"final_sigmas_type": "sigma_min", "timestep_type": "continuous"}
    for name in set(NOT_TAKEN):
        source = getattr(diffusers.schedulers, name)
        leftovers = {k: v for k, v in others.items() if k not in options_of(source)}
        plain = cls.from_config({"_class_name": name})
        ours = cls.from_config({"_class_name": name, **leftovers})
        for one in (plain, ours):
            one.set_timesteps(STEPS)
        assert ours.timesteps.tolist() == plain.timesteps.tolist()
        assert np.array_equal(ours.plan.x0, plain.plan.x0)
        for key in ("clip_sample", "thresholding", "set_alpha_to_one"):
            assert ours.config[key] == plain.config[key], (name, key)


def test_cogvideox_has_options_of_clipping_and_does_not_clip():
    source = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours = MixScheduler.from_config(source.config, cutoff=1000)
    x = 5 * torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for one in (source, ours):
        one.set_timesteps(10)
    assert ours.timesteps.tolist() == source.timesteps.tolist()
    for t in source.timesteps:
        got, want = (one.step(x.sin(), t, x)[0] for one in (ours, source))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert ours.step(x.sin(), t, x).pred_original_sample.abs().max() > 2


def test_a_grid_that_the_caller_states():
    """It says which of our grids, whatever the class makes of that name."""
    source = DPMSolverMultistepScheduler(use_karras_sigmas=True, use_lu_lambdas=False)
    ours = MixScheduler.from_config(source.config, timestep_spacing="linspace")
    ours.set_timesteps(10)
    theirs = DDIMScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    inherited = MixScheduler.from_config(DPMSolverMultistepScheduler().config)
    again = MixScheduler.from_config(inherited.config, timestep_spacing="linspace")
    assert inherited.config.drops_last_node and not again.config.drops_last_node
    inherited.set_timesteps(1000)  # all of them, of which none can be left away
    assert len(inherited.timesteps) == 1000
    # The way back has Karras's sigmas again.
    assert DPMSolverMultistepScheduler.from_config(ours.config).config.use_karras_sigmas


def test_karras_sigmas_are_between_timesteps():
    """Why they are refused: some levels of that grid are 2% off those of any timestep."""
    source = DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True)
    source.set_timesteps(20)
    level = schedule_of(MixScheduler(**SD).config).noise_level
    sigma = source.sigmas.numpy()[:-1, None]
    assert np.abs(np.log(level / sigma)).min(axis=1).max() > 0.01


# --- meanings and ways back ---------------------------------------------------------------------

MEANINGS = {
    # What a source with nothing stated means: (spacing, offset, to one, clipped, last node dropped).
    DDIMScheduler: ("leading", 0, True, True, False),
    DDPMScheduler: ("leading", 0, True, True, False),
    PNDMScheduler: ("leading", 0, False, False, False),
    EulerDiscreteScheduler: ("linspace", 0, True, False, False),
    DPMSolverMultistepScheduler: ("linspace", 0, True, False, True),
    UniPCMultistepScheduler: ("linspace", 0, True, False, True),
    DEISMultistepScheduler: ("linspace", 0, False, False, True),
}


def meaning(scheduler):
    c = scheduler.config
    said = c.timestep_spacing, c.steps_offset, c.set_alpha_to_one
    return *said, c.clip_sample, c.drops_last_node


@ALL
@pytest.mark.parametrize("source", MEANINGS)
def test_from_config_of_another_class_keeps_its_meaning(cls, source, tmp_path):
    # All defaults; and from its file, which does not say which values were defaults.
    bare = source()
    bare.save_pretrained(tmp_path)
    for ours in (cls.from_config(bare.config), cls.from_pretrained(tmp_path)):
        assert meaning(ours) == MEANINGS[source]
        assert ours.config.beta_schedule == "linear"
    # A file that states little, as old ones on the hub do.
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": source.__name__}))
    assert meaning(cls.from_pretrained(tmp_path)) == MEANINGS[source]
    # What is stated stays, and is overridden by the caller alone.
    stated = {**SD, "prediction_type": "v_prediction", "steps_offset": 1}
    stated |= {"timestep_spacing": "trailing"}
    ours = cls.from_config(source(**stated).config, timestep_spacing="even")
    assert {key: ours.config[key] for key in stated} == {**stated, "timestep_spacing": "even"}
    # And back: the other class gets its own options again.
    back = source.from_config(ours.config)
    for key, value in source(**stated).config.items():
        if key[0] != "_" and key != "timestep_spacing":
            assert back.config[key] == value, key
    assert cls in ours.compatibles or source in ours.compatibles
    # Through the other class to ours again.
    assert meaning(cls.from_config(source.from_config(cls.from_config(bare.config).config).config))


@ALL
def test_final_sigmas_type_is_the_other_name_of_set_alpha_to_one(cls):
    for source in (DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler):
        for word, to_one in (("sigma_min", False), ("zero", True)):
            config = {"_class_name": source.__name__, "final_sigmas_type": word}
            assert cls.from_config(config).config.set_alpha_to_one is to_one


@ALL
def test_the_config_that_stable_diffusion_ships(cls):
    """PNDM's class in Stable Diffusion 2.1-base's scheduler_config.json, DDIM's keys in it."""
    shipped = {**SD, "_class_name": "PNDMScheduler", "_diffusers_version": "0.8.0"}
    shipped |= {"clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    shipped |= {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    shipped |= {"trained_betas": None}
    for config in (shipped, PNDMScheduler.from_config(shipped).config):
        assert meaning(cls.from_config(config))[1:4] == (1, False, False)
    # Euler, made of it, ends at the clean image all the same.
    assert meaning(cls.from_config(EulerDiscreteScheduler.from_config(shipped).config))[2]
    ours = cls.from_config(shipped)
    ours.set_timesteps(50)
    theirs = DDIMScheduler.from_config(shipped)
    theirs.set_timesteps(50)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == list(range(981, 0, -20))
    assert schedule_of(ours.config).final == pytest.approx(float(theirs.final_alpha_cumprod))


@ALL
def test_compatibles_go_both_ways_in_silence(cls, caplog):
    names = {c.__name__ for c in cls().compatibles}
    assert names == {s.name for s in KarrasDiffusionSchedulers if s.name != "EDMEulerScheduler"}
    for name in names - {"DPMSolverSDEScheduler"}:  # that one needs torchsde
        cls.from_config(getattr(diffusers.schedulers, name)().config)
    assert "not expected" not in caplog.text
    assert "pip install torchsde" in refusal({"_class_name": "DPMSolverSDEScheduler"}, cls)
