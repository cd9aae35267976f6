"""Samplers that look back, go up or correct: on every path, against theory and quadrature."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch

from sampling import (
    Plan,
    SampleNoise,
    Schedule,
    churn,
    count_calls,
    ddim,
    ddpm,
    deis,
    dpmpp,
    er_sde,
    ipndm,
    karras_sigmas,
    restart,
    run,
    run_tree,
    scale_eps,
    sde_dpmpp,
    skipped,
    splice,
    timesteps,
)
from sampling.denoise import Clip, NetworkDenoiser, Reading
from sampling.gaussian import gaussian_output
from sampling.multistep import NOISE_SCALES
from sampling.plan import COLUMNS

LINEAR = Schedule.linear()
PATHS = ("diffusion", "edm", "flow")
every_path = pytest.mark.parametrize("path", PATHS)


def path_at(path: str, ratios: np.ndarray) -> Schedule:
    """A schedule that visits these sigma / alpha, decreasing; the last one is the end."""
    if path == "edm":
        return Schedule.edm(ratios[:-1], end=ratios[-1])
    if path == "flow":
        sigma = ratios / (1 + ratios)
        return Schedule.flow(sigma[:-1], end=sigma[-1])
    a = 1 / (1 + ratios**2)
    return Schedule(a[::-1].copy(), "levels", final=float(a[-1]))


def every_node(schedule: Schedule) -> range:
    """Of `path_at`: timestep 0 of a diffusion is the end."""
    return range(schedule.T - 1, -1 if schedule.straight else 0, -1)


BUILDERS = {
    "ddim": ddim,
    "skipped": skipped,
    **{f"dpmpp({k})": functools.partial(dpmpp, order=k) for k in (2, 3)},
    **{f"sde_dpmpp({k})": functools.partial(sde_dpmpp, order=k) for k in (2, 3)},
    **{f"ipndm({k})": functools.partial(ipndm, order=k) for k in (1, 2, 3, 4)},
    **{f"deis({k})": functools.partial(deis, order=k) for k in (1, 2, 3, 4)},
    "deis(3, log_rho)": functools.partial(deis, order=3, variable="log_rho"),
    **{f"er_sde({k})": functools.partial(er_sde, order=k) for k in (1, 2, 3)},
    "heun": churn,
    "churn": functools.partial(churn, s_churn=2.0),
    "churn(euler)": functools.partial(churn, s_churn=2.0, method="euler"),
    "restart": functools.partial(restart, restarts=[(3, 2, 0.4, 3.0)]),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)


# --- order of convergence


START, COUNTS = 200, (64, 128, 256, 512)  # the first, low-order rows do not matter so far up


def slope(builder, path: str, spaced=np.geomspace, start: float = START, c: float = 0.25) -> float:
    """Of the error of the standard deviation over the number of steps, both logarithmic.

    From the exact marginal at sigma / alpha = `start` to that at 0.1, uniform in log-SNR.
    """
    errors = []
    for n in COUNTS:
        schedule = path_at(path, spaced(start, 0.1, n + 1))
        plan = builder(schedule, every_node(schedule))
        first = np.sqrt(plan.alpha[0] ** 2 * c + plan.sigma[0] ** 2)
        output = gaussian_output(dataclasses.replace(plan, start=first), np.array([c]))
        end = schedule.end
        exact = np.sqrt(end.alpha**2 * c + end.sigma**2)
        errors.append(abs(np.sqrt(output.variance[0]) - exact))
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


FULL = {"lower_order_final": False}
ORDERS = {
    "ddim": (ddim, 1),
    "skipped": (skipped, 1),
    "dpmpp(2)": (functools.partial(dpmpp, **FULL), 2),
    "dpmpp(3)": (functools.partial(dpmpp, order=3, solver_type="polynomial", **FULL), 3),
    "sde_dpmpp(2)": (functools.partial(sde_dpmpp, **FULL), 2),
    **{f"ipndm({k})": (functools.partial(ipndm, order=k), k) for k in (1, 2)},
    **{f"deis({k})": (functools.partial(deis, order=k), k) for k in (1, 2, 3)},
    "deis(2, log_rho)": (functools.partial(deis, order=2, variable="log_rho"), 2),
    **{f"er_sde({k})": (functools.partial(er_sde, order=k), k) for k in (1, 2)},
    "heun": (churn, 2),
    # As published, these are of second order: d2 is half of the second derivative, and d lies half
    # a step aside.  The second-order rest of iPNDM comes from weights of equal steps.
    "dpmpp(3) as published": (functools.partial(dpmpp, order=3, solver_type="heun", **FULL), 2),
    "sde_dpmpp(3)": (functools.partial(sde_dpmpp, order=3, solver_type="heun", **FULL), 2),
    "er_sde(3)": (er_sde, 2),
    "er_sde(3, ode)": (functools.partial(er_sde, noise_scale="ode"), 2),
}


@every_path
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, path):
    builder, order = ORDERS[name]
    assert slope(builder, path) == pytest.approx(order, abs=0.2)


@every_path
def test_ipndm_is_of_third_order_where_steps_are_equal(path):
    """In sigma / alpha, for which its weights are made."""
    third = slope(functools.partial(ipndm, order=3), path, np.linspace, start=20)
    assert third == pytest.approx(3, abs=0.2)  # measured 3.08


# --- invariants of every plan


def some_plan(name: str, path: str, n: int = 9) -> Plan:
    """From much noise to the clean image, or a little noise."""
    if path == "diffusion":
        return BUILDERS[name](LINEAR, timesteps(1000, n))
    schedule = path_at(path, np.append(karras_sigmas(n, 0.01, 50), 0))
    return BUILDERS[name](schedule, every_node(schedule))


@every_path
@every_builder
def test_every_row_keeps_a_constant_image(name, path):
    """x0 = 1 and eps = 0 throughout: rows map alpha_t to alpha_s."""
    plan = some_plan(name, path)
    after = np.append(plan.alpha[1:], 1.0)
    kept = plan.x * plan.alpha + plan.x0.sum(axis=1)
    np.testing.assert_allclose(kept, after, rtol=1e-12)


@every_path
def test_skipped_keeps_the_marginals_on_every_path(path):
    plan = some_plan("skipped", path, 20)
    sigma = np.append(plan.sigma[1:], 0.0)
    np.testing.assert_allclose(plan.x**2 * plan.sigma**2 + plan.noise**2, sigma**2, atol=1e-13)


class Vectors:
    """Unit vectors for the start and each z, so that a linear sampler shows its coefficients."""

    def __init__(self, plan: Plan, size: float):
        self.size, self.index = size, {}
        for row in plan.rows():
            if row.noise:
                self.index[row.t, row.visit] = len(self.index) + 1
        assert len(self.index) == np.count_nonzero(plan.noise)  # no z comes twice

    def _unit(self, i):
        return self.size * torch.eye(1 + len(self.index), dtype=torch.float64)[[i]]

    def start(self):
        return self._unit(0)

    def at(self, t, s, visit=0):
        return self._unit(self.index[t, visit])


@every_path
@every_builder
def test_the_closed_form_is_what_the_loop_computes(name, path):
    plan, c = some_plan(name, path), 0.3
    levels = {row.t: (row.alpha, row.sigma) for row in plan.rows()}

    def denoiser(x, t, mean=0.0):
        alpha, sigma = levels[t]
        m = alpha * c / (alpha**2 * c + sigma**2)
        return mean + m * (x - alpha * mean), None

    output = gaussian_output(plan, np.array([c]))
    weights = run(denoiser, plan, Vectors(plan, 1.0))
    assert (weights**2).sum().item() == pytest.approx(output.variance[0], rel=1e-11)
    of_mean = run(functools.partial(denoiser, mean=1.0), plan, Vectors(plan, 0.0))[0, 0].item()
    assert of_mean == pytest.approx(output.gain[0], rel=1e-11)


@every_builder
def test_plans_with_history_share_their_beginnings_in_a_tree(name):
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return torch.tanh(x), None

    noise = SampleNoise(3, range(2), (5,))
    plans = [some_plan(name, "diffusion"), *(some_plan(k, "diffusion") for k in BUILDERS)]
    tree = run_tree(denoiser, plans, noise)
    assert len(calls) == tree.calls == count_calls(plans) < sum(tree.nfe)
    for plan, sample in zip(plans[:6], tree.samples, strict=False):
        calls.clear()
        assert torch.equal(run(denoiser, plan, noise), sample)
        assert len(calls) == len(plan)


def test_rows_that_go_up_cost_no_call():
    grid = timesteps(1000, 10)
    plain, up = churn(LINEAR, grid), churn(LINEAR, grid, s_churn=2.0)
    assert len(plain) == len(up) == 19 and len(up.t) > len(plain.t) == 19
    # Twice three nodes, i.e. two jumps of two calls.
    assert len(restart(LINEAR, grid, [(3, 2, 0.4, 3.0)])) == 19 + 2 * 4
    assert (up.s > up.t).sum() == len(up.t) - 19
    assert up.t.max() == 999  # no timestep above the last


def test_a_stretch_that_is_gone_up_again_has_noise_of_its_own():
    """Three restarts: three z at one node, and another again for whoever comes down past it."""
    plan = restart(LINEAR, timesteps(LINEAR, 20), [(4, 3, 0.4, 3.0)])
    noisy = np.where(plan.s < plan.t, 0.01, plan.noise)  # on the way down, too
    rows = list(dataclasses.replace(plan, noise=noisy).rows())
    ups = [row for row in rows if row.s > row.t]
    assert len({row.t for row in ups}) == 1
    assert [row.visit for row in ups] == [0, 1, 2]
    low, high = ups[0].t, ups[0].s
    after = rows[rows.index(ups[-1]) + 1 :]
    assert {row.visit for row in after if row.noise and low <= row.t <= high} == {3}
    assert {row.visit for row in after if row.t < low} == {0}
    assert {row.visit for row in rows[: rows.index(ups[0])]} == {0}
    drawn = [(row.t, row.visit) for row in rows if row.noise]
    assert len(drawn) == len(set(drawn))


# --- JSON


@every_path
@every_builder
def test_json_gives_back_every_bit(name, path):
    plan = some_plan(name, path)
    again = Plan.from_json(plan.to_json())
    assert (again.name, again.start) == (plan.name, plan.start)
    for column in COLUMNS:
        assert getattr(again, column).tobytes() == getattr(plan, column).tobytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{", "", "this is no JSON"),
        ('"version": 1', '"version": 2', "this release reads"),
        ('"start"', '"begin"', "unknown or missing: begin, start"),
        ('"sigma"', '"sigma_t"', "unknown or missing: sigma, sigma_t"),
        ('"x0": [', '"x0": 1, "y": [', "unknown or missing: y"),
        ('"s": 499.0', '"s": 400.0', "between neighbouring nodes"),
        ('"s": 499.0', '"s": true', "must be a number"),
        ('"nan"', '"none"', "must be a number"),
        ('"eps": [0.0]', '"eps": []', "must be lists of numbers"),
        ('"noise": 0.0', '"noise": "nan"', "noise of a plan must be finite in row 1"),
        ('"noise": 0.0', '"noise": NaN', "noise of a plan must be finite in row 1"),
        ('"eps": [0.0]', '"eps": ["inf"]', "eps of a plan must be finite in row 1"),
        ('"x": ', '"x": 1, "x": ', "'x' stands twice"),
        ('"x": ', '"x": 1%s, "y": ' % ("0" * 400), "unknown or missing: y"),
        ('"start": 1.0', '"start": 0', "start of a plan must be above 0"),
        ('"start": 1.0', '"start": 1%s' % ("0" * 400), "too large a number"),
        ('"sigma": ', '"sigma": -', "sigma of a plan must be at least 0"),
        ('"noise_high": "nan"', '"noise_high": -1', "noise_high of a plan must be at least 0"),
        ('"noise_high": "nan"', '"noise_high": "inf"', "noise_high of a plan must be at least 0"),
        ('"rows": [', '"rows": [1, ', "a row of a plan must be a JSON object"),
    ],
)
def test_json_that_is_no_plan(old, new, said):
    text = ddim(LINEAR, [999, 499, 0]).to_json()
    assert old in text
    with pytest.raises(ValueError, match=said):
        Plan.from_json(text.replace(old, new, 1))


# --- splices


def test_a_spliced_tail_may_look_back_at_the_same_nodes_alone():
    grid = timesteps(1000, 12)
    for name in ("dpmpp(3)", "ipndm(4)", "er_sde(3)"):
        tail = some_plan(name, "diffusion", 12)
        plan = splice(skipped(LINEAR, grid), tail, 500)
        below = grid < 500
        assert np.array_equal(plan.x0[below], tail.x0[below])
        elsewhere = np.append(timesteps(1000, 40)[timesteps(1000, 40) > 600], grid[grid < 600])
        with pytest.raises(ValueError, match="looks back at calls that the head makes elsewhere"):
            splice(skipped(LINEAR, elsewhere), tail, 500)
        assert len(splice(tail, ddim(LINEAR, grid), 500)) == 12


def test_heuns_correction_stays_with_its_jump():
    grid = timesteps(1000, 10)
    plan = splice(churn(LINEAR, grid), ddim(LINEAR, grid), 500)
    assert len(plan) == 10 + (grid >= 500).sum()
    assert plan.eps[:, 1].nonzero()[0].tolist() == list(range(1, 10, 2))
    assert len(splice(ddim(LINEAR, grid), churn(LINEAR, grid), 500)) == 5 + 9


# --- the scale of eps


def tanh(x, t, condition):
    return torch.tanh(x) + 0.1, torch.sin(x)


@every_builder
@pytest.mark.parametrize(("k", "b"), [(0.0, 1.004), (2e-5, 0.99)])
def test_eps_scale_is_a_rewrite_of_coefficients(name, k, b):
    """The denoiser does the same, with the gradient of a classifier, too."""
    noise = SampleNoise(3, range(2), (5,), dtype=torch.float64)
    plan = some_plan(name, "diffusion")
    for gradient in (None, lambda x, t: torch.cos(x)):
        denoiser = NetworkDenoiser(tanh, LINEAR, gradient=gradient)
        expected = run(denoiser, scale_eps(plan, k, b, limited=True), noise)
        actual = run(denoiser, scale_eps(plan, k, b), noise)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        assert (run(denoiser, plan, noise) - expected).abs().max() > 1e-3


@every_builder
@every_path
def test_eps_scale_in_closed_form(name, path):
    plan, c = some_plan(name, path), np.array([0.04, 0.3, 2.0])
    ours, theirs = (
        gaussian_output(scale_eps(plan, 1e-6, 1.01, limited=limited), c, 0.01)
        for limited in (False, True)
    )
    np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-9)
    np.testing.assert_allclose(ours.gain, theirs.gain, rtol=1e-9)
    assert not np.allclose(gaussian_output(plan, c, 0.01).variance, ours.variance, rtol=1e-4)


@every_builder
def test_an_eps_scale_of_one_changes_no_bit(name):
    plan = some_plan(name, "diffusion")
    for limited in (False, True):
        for column in COLUMNS:
            ours = getattr(scale_eps(plan, 0, 1, limited=limited), column)
            assert ours.tobytes() == getattr(plan, column).tobytes()


@pytest.mark.parametrize("clip", [None, Clip(1.0)])
@pytest.mark.parametrize("steps", [100, 28])
def test_eps_scale_is_that_of_the_authors_code(clip, steps):
    """Ning et al.'s ADM-ES by hand: strided ancestral sampling, scaler_i = start + i k of node i.

    Their k counts nodes, ours timesteps: the nodes of 28 steps are exactly even.
    """
    start, k = 1.0041, 0.0002
    grid = timesteps(1000, steps)
    noise = SampleNoise(1, range(2), (4,), dtype=torch.float64)
    a = np.append(LINEAR.alpha_bar[grid], 1.0)
    x = noise.start()
    for i, t in enumerate(grid.tolist()):
        beta = 1 - a[i] / a[i + 1]
        eps, v = tanh(x, t, None)
        scaler = start + k * (grid[i] * (steps - 1) / 999 if steps == 100 else steps - 1 - i)
        x0 = (1 / a[i]) ** 0.5 * x - (1 / a[i] - 1) ** 0.5 * (eps / scaler)
        x0 = x0 if clip is None else x0.clamp(-1, 1)
        mean = beta * a[i + 1] ** 0.5 / (1 - a[i]) * x0
        mean = mean + (1 - a[i + 1]) * (1 - beta) ** 0.5 / (1 - a[i]) * x
        low = beta * (1 - a[i + 1]) / (1 - a[i])
        f = (v + 1) / 2
        std = torch.exp((f * np.log(beta) + (1 - f) * np.log(low or 1.0)) / 2)
        x = mean + (std * noise.at(t) if i < steps - 1 else 0)
    plan = scale_eps(ddpm(LINEAR, grid), k * (steps - 1) / 999, start, limited=clip is not None)
    ours = run(NetworkDenoiser(tanh, LINEAR, Reading(limit=clip)), plan, noise)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-11)


def test_plans_of_other_scales_share_no_row_of_the_tree():
    plan = ddim(LINEAR, timesteps(1000, 6))
    noise = SampleNoise(3, range(2), (5,), dtype=torch.float64)
    denoiser = NetworkDenoiser(tanh, LINEAR, Reading(limit=Clip(0.7)))
    plans = [plan, *(scale_eps(plan, 0.0, b, limited=True) for b in (1.01, 1.02, 1.01))]
    plans.append(splice(plans[1], plan, 500))
    tree = run_tree(denoiser, plans, noise)
    assert tree.calls == count_calls(plans) == 6 * 3 + 3
    for ours, alone in zip(tree.samples, plans, strict=True):
        assert torch.equal(ours, run(denoiser, alone, noise))
    assert len({tuple(x.flatten().tolist()) for x in tree.samples}) == 4


def test_eps_scale_in_json_and_in_print():
    plan = ddim(LINEAR, [999, 500, 0])
    assert "eps_scale" not in plan.to_json() + str(plan)
    scaled = scale_eps(plan, 1e-5, 1.0, limited=True)
    again = Plan.from_json(scaled.to_json())
    assert again.eps_scale.tolist() == [1.0 + 1e-5 * t for t in (999, 500, 0)]
    assert str(again) == str(scaled) and "1.009990" in str(scaled)
    assert scaled.name == "ddim(eta=0), eps / (1e-05 t + 1)"
    with pytest.raises(ValueError, match="unknown or missing: eps_scale"):
        Plan.from_json(scaled.to_json().replace(', "eps_scale": 1.00999', "", 1))


def test_eps_scale_comes_before_the_limit_of_x0():
    def network(x, t, condition):
        return x * 0 + 1.0, None

    x, level = torch.full((1, 3), 1.2, dtype=torch.float64), LINEAR.level(300)
    denoiser = NetworkDenoiser(network, LINEAR, Reading(limit=Clip(0.4)))
    x0 = (1.2 - level.sigma / 1.25) / level.alpha
    assert x0 > 0.4 and torch.equal(denoiser(x, 300.0, 1.25).x0, torch.full_like(x, 0.4))
    free = dataclasses.replace(denoiser, reading=Reading())
    assert free(x, 300.0, 1.25).x0[0, 0].item() == pytest.approx(x0, rel=1e-12)


@pytest.mark.parametrize("limited", [False, True])
def test_eps_scale_refuses(limited):
    plan = ddim(LINEAR, [999, 0])
    for k, b in ((0.0, 0.0), (-1e-3, 0.9), (0.0, np.nan), (0.0, np.inf)):
        with pytest.raises(ValueError, match="must be positive"):
            scale_eps(plan, k, b, limited=limited)
    with pytest.raises(ValueError, match="keeps some signal"):
        scale_eps(ddim(LINEAR.zero_terminal_snr(), [999, 0]), 0.0, 1.1, limited=limited)


# --- coefficients against quadrature


def quad(f, low: float, high: float) -> float:
    """The integral over low..high, in 60 pieces of equal ratio, each by 20 points."""
    edges, (roots, weights) = np.geomspace(low, high, 61), np.polynomial.legendre.leggauss(20)
    return sum(
        (b - a)
        / 2
        * sum(w * f((a + b + (b - a) * r) / 2) for r, w in zip(roots, weights, strict=True))
        for a, b in itertools.pairwise(edges)
    )


@pytest.mark.parametrize("variable", ["rho", "log_rho"])
def test_deis_integrates_its_polynomials(variable):
    rho = np.array([30.0, 11.0, 4.0, 1.5, 0.3])
    plan = deis(path_at("edm", rho), range(3, -1, -1), order=4, variable=variable)
    f = np.log if variable == "log_rho" else float
    for i in (1, 2, 3):
        nodes = rho[i::-1]
        for j in range(1, i + 1):
            others = [q for q in nodes if q != nodes[j]]

            def basis(u, j=j, nodes=nodes, others=others):
                return np.prod([(f(u) - f(q)) / (f(nodes[j]) - f(q)) for q in others])

            expected = quad(basis, rho[i], rho[i + 1])
            assert plan.eps[i, j] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", NOISE_SCALES)
def test_er_sde_integrates_its_noise_scale(name):
    def f(u):
        return u * NOISE_SCALES[name](np.float64(u))

    level = np.array([30.0, 11.0, 4.0, 0.02])
    plan = er_sde(path_at("edm", level), range(2, -1, -1), order=3, noise_scale=name)
    high, low = level[2], level[3]
    one = quad(lambda u: 1 / f(u), low, high)
    two = quad(lambda u: (u - high) / f(u), low, high)
    d, before = np.array([1, -1, 0]) / (4 - 11), np.array([0, 1, -1]) / (11 - 30)
    x0 = np.array([1 - f(low) / f(high), 0, 0]) + (low - high + f(low) * one) * d
    x0 += ((low - high) ** 2 / 2 + f(low) * two) * 2 * (d - before) / (4 - 30)
    np.testing.assert_allclose(plan.x0[2], x0, rtol=1e-9, atol=1e-12)
    assert plan.x[2] == pytest.approx(f(low) / f(high), rel=1e-12)


def test_order_one_is_known():
    for schedule, grid in ((LINEAR, timesteps(1000, 9)), (path_at("edm", karras_sigmas(9)), None)):
        grid = every_node(schedule) if grid is None else grid
        pairs = [(ipndm, ddim), (deis, ddim), (functools.partial(er_sde, noise_scale="ode"), ddim)]
        pairs += [(functools.partial(er_sde, noise_scale="sde"), skipped)]
        for builder, known in pairs:
            ours, theirs = builder(schedule, grid, order=1), known(schedule, grid)
            for column in ("x", "x0", "eps", "noise"):
                a, b = getattr(ours, column), getattr(theirs, column)
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "start", [LINEAR.zero_terminal_snr(), Schedule.flow(np.linspace(1, 0.1, 8))]
)
@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "restart"])
def test_plans_are_finite_where_no_signal_is_left(name, start):
    grid = timesteps(1000, 8) if start.straight is None else every_node(start)
    plan = BUILDERS[name](start, grid)
    assert all(np.isfinite(getattr(plan, c)).all() for c in ("x", "x0", "eps", "noise"))
    assert gaussian_output(plan, np.array([0.3])).gain[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ipndm(LINEAR, [999, 0], order=5), "order of ipndm must be one of"),
        (lambda: deis(LINEAR, [999, 0], order=0), "order of deis must be one of"),
        (lambda: deis(LINEAR, [999, 0], variable="t"), "unknown variable 't'"),
        (lambda: er_sde(LINEAR, [999, 0], noise_scale="7"), "unknown noise_scale '7'"),
        (lambda: churn(LINEAR, [999, 0], s_churn=-1), "s_churn >= 0"),
        (lambda: churn(LINEAR, [999, 0], method="rk4"), "unknown method 'rk4'"),
        (lambda: restart(LINEAR, [999, 0], [(1, 1, 0.1, 1)]), "2 nodes or more"),
        (lambda: restart(LINEAR, [999, 0], [(3, 1, 0.1, 1e9)]), "at most"),
    ],
)
def test_mistakes(build, said):
    with pytest.raises(ValueError, match=said):
        build()
