"""diffusers' schedulers as plans: recorded runs, every class stepped in float64, what is refused.

`samplers_diffusers.npz` holds 6-step runs of diffusers 0.42.1 on a mixture of Gaussians, its files
run with every float32 cast changed to float64.  Besides it holds samples of `network` below, limited
to -1..1, by the adapter around diffusers' schedulers that was here before the plans.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import tabulate_sweep
import torch
from conftest import ROOT, bound
from golden_samplers import TOLERANCE, Run, difference, tabulated
from seeded import SeededNoise, network
from tabulate_sweep import CASES as SCHEDULERS
from tabulate_sweep import difference as of_both

from sampling import Schedule, ddim, dpmpp, run, run_tree, skipped, timesteps
from sampling.borrowed import BORROWED, num_nodes, sampler_at, sampler_named
from sampling.tabulate import tabulate

# diffusers hands torch's tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning", "ignore::FutureWarning"
)

with np.load(ROOT / "tests" / "golden" / "samplers_diffusers.npz") as file:
    GOLDEN = dict(file)
CASES = json.loads(str(GOLDEN["cases"]))
MIXTURE = {key: np.array(value) for key, value in json.loads(str(GOLDEN["mixture"])).items()}
LINEAR = Schedule.linear()


# --- recorded runs --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sorted({case["sampler"] for case in CASES}))
def test_recorded_runs_step_by_step(sampler):
    """`python tests/golden_samplers.py FOLDER` compares those of other step counts, too."""
    for case in CASES:
        if case["sampler"] == sampler:
            names = ("xs", "calls_alpha", "calls_sigma", "noise")
            keys = {name: f"{case['id']}/{name}" for name in names}
            fields = {name: GOLDEN[key] for name, key in keys.items() if key in GOLDEN}
            recorded = Run({"source": "diffusers", **case}, fields, MIXTURE)
            assert difference(recorded, tabulated(case)) <= TOLERANCE, case


# --- every class, stepped in float64 --------------------------------------------------------


@pytest.mark.parametrize("i", range(len(SCHEDULERS)), ids=map(str, SCHEDULERS))
def test_equals_the_scheduler_in_float64(i):
    """`python tests/tabulate_sweep.py` does it for every N in 2..100."""
    equal = 0
    for n in (2, 4 + i % 15):
        outcome = of_both(SCHEDULERS[i], n)
        equal += isinstance(outcome, float)
        assert isinstance(outcome, str) or outcome <= TOLERANCE, n
    assert equal or "bh1" in str(SCHEDULERS[i])


def test_a_sweep_notices_another_plan(monkeypatch):
    case = SCHEDULERS[0]
    wrong = dataclasses.replace(tabulate(diffusers.DDIMScheduler(clip_sample=False), 5), start=1.01)
    monkeypatch.setattr(tabulate_sweep, "tabulate", lambda *_, **__: wrong)
    assert of_both(case, 5) > 1e-3
    monkeypatch.setattr(tabulate_sweep, "tabulate", refuse)
    with pytest.raises(AssertionError, match="at 5 steps: no"):
        of_both(case, 5)


def refuse(*_, **__):
    raise ValueError("no")


MULTISTEP, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
# Class, options, the farthest look back at x0 and at eps from 10 steps on.
HISTORY = [
    (diffusers.DDIMScheduler, {"clip_sample": False}, (0, 0)),
    (diffusers.EulerDiscreteScheduler, {}, (0, 0)),
    (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, (0, 0)),
    (diffusers.HeunDiscreteScheduler, {}, (0, 1)),
    (diffusers.KDPM2DiscreteScheduler, {}, (0, 1)),
    (diffusers.LMSDiscreteScheduler, {}, (0, 3)),
    (diffusers.PNDMScheduler, {"skip_prk_steps": True}, (1, 3)),
    (diffusers.DEISMultistepScheduler, {"solver_order": 3}, (0, 2)),
    (diffusers.DPMSolverSinglestepScheduler, {}, (0, 1)),
    (MULTISTEP, {"solver_order": 3}, (2, 0)),
    (MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, (0, 1)),
    (MULTISTEP, FLOW, (1, 0)),
    (UNIPC, {"solver_order": 1}, (1, 0)),
    (UNIPC, {"solver_order": 2}, (2, 0)),
    (UNIPC, {"solver_order": 3}, (3, 0)),
    (UNIPC, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, (2, 0)),
    (diffusers.SASolverScheduler, {"tau_func": lambda t: 0}, (2, 0)),
]


@pytest.mark.parametrize(("cls", "options", "history"), HISTORY)
def test_the_history_is_the_shortest(cls, options, history):
    plan = tabulate(cls(**options), 10)
    assert (plan.x0.shape[1] - 1, plan.eps.shape[1] - 1) == history


def test_the_long_warm_up_of_pndm():
    plan = tabulate(diffusers.PNDMScheduler(), 10)
    assert (len(plan), plan.look_back) == (19, 12)


def test_a_scheduler_that_is_set_is_taken_as_it_is_and_left_alone():
    scheduler = UNIPC()
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone(), scheduler.sigmas.clone()
    plan = tabulate(scheduler)
    assert plan.t.tolist() == scheduler.timesteps.tolist()
    assert torch.equal(before[0], scheduler.timesteps) and torch.equal(before[1], scheduler.sigmas)
    assert scheduler.betas.dtype == torch.float32 and scheduler.model_outputs == [None, None]
    assert torch.zeros(1).dtype == torch.float32


REFUSED = {
    "thresholding": (MULTISTEP(thresholding=True), "is not linear: switch off its clip_sample"),
    "clipping": (diffusers.DDIMScheduler(), "is not linear: switch off its clip_sample"),
    "no prediction": (diffusers.CMStochasticIterativeScheduler(), "does not say what its network"),
    "upwards": (diffusers.DDIMInverseScheduler(), "does not go from noise to an image"),
    "more inputs": (diffusers.CogVideoXDPMScheduler(), "missing 2 required positional arguments"),
    "inpainting": (diffusers.RePaintScheduler(), "RePaintScheduler cannot be stepped"),
    "predictor alone": (diffusers.SASolverScheduler(corrector_order=0), "SASolver.*Assertion"),
    "infinite": (UNIPC(solver_type="bh1"), "UniPCMultistepScheduler itself is not finite for 10"),
    "learned": (
        diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range"),
        "DDPMScheduler cannot be stepped",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plan_is_refused(case):
    scheduler, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tabulate(scheduler, 10)


def test_a_grid_that_goes_on_below_timestep_0_is_refused():
    """By rounding, diffusers' trailing spacing makes 62 timesteps of 61, and the last is -1."""
    trailing = {"timestep_spacing": "trailing"}
    for scheduler in (diffusers.DDIMScheduler(clip_sample=False, **trailing), UNIPC(**trailing)):
        with pytest.raises(ValueError, match="asks its network for timestep -1, by rounding: take"):
            tabulate(scheduler, 61)
        assert [len(tabulate(scheduler, n)) for n in (60, 62)] == [60, 62]


def test_a_call_at_timestep_0_s_own_level_is_one_at_timestep_0():
    """KDPM2's ancestral kind finds that level by differences that cancel, 3e-9 too low."""
    for steps in (3, 4):
        options = {"scheduler": "KDPM2AncestralDiscreteScheduler"}
        grid = timesteps(LINEAR, num_nodes({"name": "diffusers", **options}, steps))
        assert sampler_named("diffusers", LINEAR, grid, **options).t.tolist() == [999, 0, 0]


def test_timesteps_that_their_number_does_not_tell():
    with pytest.raises(ValueError, match="say for how many steps UniPC"):
        tabulate(UNIPC())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match="pass the arguments of its set_timesteps"):
        tabulate(scheduler)
    plan = tabulate(scheduler, 3, grid={"sigmas": [1.0, 0.5, 0.1]})
    assert np.allclose(plan.sigma, [1.0, 0.5, 0.1], rtol=1e-15)


# --- on our grids ---------------------------------------------------------------------------


def test_samples_of_the_adapter_before():
    for i, case in enumerate(json.loads(str(GOLDEN["adapters"]))):
        name, options = case["sampler"], case["options"]
        grid = timesteps(LINEAR, num_nodes({"name": name}, case["steps"]), "even")
        plan = sampler_named(name, LINEAR, grid, **options)
        assert plan.name == case["plan"]
        x = run(bound(network, clip=True), plan, SeededNoise())
        assert np.abs(x.numpy() - GOLDEN[f"adapter-{i}"]).max() < 1e-11, case


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
def test_one_step_methods_are_our_builders(spacing):
    """DDIM's own t - T // n, DDPM and Euler on any grid of ours."""
    for n in (1, 7, 24):
        grid = timesteps(LINEAR, n, spacing)
        for scheduler, step, ours in (
            ("DDIMScheduler", {}, ddim(LINEAR, grid)),
            ("DDIMScheduler", {"eta": 0.3}, ddim(LINEAR, grid, eta=0.3)),
            ("DDPMScheduler", {}, skipped(LINEAR, grid)),
            ("DPMSolverMultistepScheduler", {}, dpmpp(LINEAR, grid)),
        ):
            plan = sampler_named("diffusers", LINEAR, grid, scheduler=scheduler, step=step)
            assert plan.t.tolist() == grid.tolist() and plan.s.tolist() == [*grid[1:], -1]
            x, expected = (run(bound(network), p, SeededNoise()) for p in (plan, ours))
            assert (x - expected).abs().max() <= 1e-9 * expected.abs().max(), (n, scheduler)


def test_nfe_is_what_the_network_sees():
    for name in BORROWED:
        for steps in (1, 2, 5, 10):
            plan = sampler_named(name, LINEAR, timesteps(LINEAR, num_nodes({"name": name}, steps)))
            calls = []
            tree = run_tree(
                bound(lambda x, t, c: calls.append(t) or network(x, t)),  # noqa: B023  (used at once)
                [plan],
                SeededNoise(),
            )
            assert torch.isfinite(tree.samples[0]).all(), (name, steps)
            assert len(calls) == len(plan) == tree.nfe[0]
            assert len(plan) in (steps, steps - 1)


def test_clipping_and_guidance_reach_the_network_s_x0():
    """Data that are a point at 2 cannot be reached when x0 is limited to 1."""

    def point(x, t, condition):
        a = LINEAR.alpha_bar[int(t)]
        return (x - np.sqrt(a) * 2.0) / np.sqrt(1 - a), None

    for name in BORROWED:
        plan = sampler_named(name, LINEAR, timesteps(LINEAR, 20, "even"))
        free = run(bound(point), plan, SeededNoise())
        assert free.mean().item() == pytest.approx(2, abs=0.01), name
        clipped = run(bound(point, clip=True), plan, SeededNoise())
        assert clipped.mean().item() == pytest.approx(1, abs=0.01), name
        pull = bound(point, gradient=lambda x, t: torch.ones_like(x))
        assert run(pull, plan, SeededNoise()).mean().item() > free.mean().item()


def test_an_end_that_is_not_clean():
    """Stable Diffusion's: the last row keeps the noise of timestep 0."""
    a = Schedule.named("scaled_linear").alpha_bar
    schedule = Schedule(a, "sd", final=float(a[0]))
    grid = timesteps(schedule, 10, "leading+1")
    expected = run(bound(network, schedule), ddim(schedule, grid), SeededNoise())
    for scheduler in ("DDIMScheduler", "EulerDiscreteScheduler"):
        plan = sampler_named("diffusers", schedule, grid, scheduler=scheduler)
        plan = replace(plan, start=1.0)  # Euler's is sigma_max, not (1 + sigma_max^2)^(1/2)
        x = run(bound(network, schedule), plan, SeededNoise())
        assert (x - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_mistakes():
    grid = timesteps(LINEAR, 8, "even")
    with pytest.raises(ValueError, match=r"unknown sampler 'unipcc': choose one of .*unipc"):
        sampler_named("unipcc", LINEAR, grid)
    with pytest.raises(ValueError, match="sampler deis has no option 'eta'"):
        sampler_named("deis", LINEAR, grid, eta=1)
    with pytest.raises(ValueError, match="keeps some signal"):
        sampler_named("heun", LINEAR.zero_terminal_snr(), grid)
    for scheduler, options, message in (
        ("Heun", {}, r"unknown scheduler 'Heun': choose one of .*HeunDiscreteScheduler"),
        ("EDMEulerScheduler", {}, "cannot be put on the noise levels of linear"),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True},
            "has no option 'use_karras_sigmas'",
        ),
        ("EulerDiscreteScheduler", {"order": 3}, "has no option 'order'"),
        ("LCMScheduler", {}, "LCMScheduler cannot be set to 8 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler_named("diffusers", LINEAR, grid, scheduler=scheduler, **options)


@pytest.mark.parametrize("spacing", ["even", "linspace", "log_snr", "karras"])
@pytest.mark.parametrize("steps", [3, 4, 5])
def test_a_jump_of_huge_weights_is_linear_all_the_same(steps, spacing):
    """A cosine schedule begins at sigma / alpha = 20,000: rounding is not what is not linear."""
    plan = sampler_at("heun", Schedule.cosine(1000), steps, spacing)
    assert len(plan) <= steps and np.isfinite(plan.x0).all()
    assert steps > 4 or np.abs(plan.x0).max() > 1e6


@pytest.mark.parametrize("name", [n for n in dir(diffusers) if n.endswith("Scheduler")])
def test_a_class_of_diffusers_is_a_plan_or_refused_with_what_to_do(name):
    for steps in (1, 5):
        try:
            plan = sampler_at("diffusers", LINEAR, steps, scheduler=name)
        except ValueError as error:
            says = str(error)
            assert "\n" not in says and name in says
            assert any(
                word in says for word in (": choose", ": take", ": try", ": set", "pip install")
            )
        else:
            assert np.isfinite(plan.x0).all()
