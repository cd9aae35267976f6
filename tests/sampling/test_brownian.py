"""One Brownian path a sample: exact laws, exact sums, and nothing but (seed, i, u) that it hangs on."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sampling import Plan, SampleNoise, Schedule, brownian, run, skipped, timesteps
from sampling.brownian import BrownianNoise
from sampling.denoise import Denoised

SHAPE = (2, 3, 3)
LINEAR = Schedule.linear()


def flow(steps: int) -> Schedule:
    return Schedule.flow(np.linspace(1, 1 / steps, steps), shift=3.0)


def edm(steps: int) -> Schedule:
    return Schedule.edm(np.geomspace(80, 0.002, steps))


# Schedules as functions of the step count: diffusion has one, the others one for each.
PATHS = {
    "linear": lambda n: LINEAR,
    "cosine": lambda n: Schedule.cosine(),
    "no signal at T": lambda n: Schedule.scaled_linear().zero_terminal_snr(),
    "flow": flow,
    "edm": edm,
}


def nodes(schedule: Schedule, steps: int) -> list[float]:
    """The network's times of so many steps, decreasing."""
    grid = timesteps(schedule.T, steps)
    return schedule.times[grid].tolist()


def snr(schedule: Schedule, t: float) -> float:
    level = schedule.level(t)
    return (level.alpha / level.sigma) ** 2


def walk(noise: BrownianNoise, times: list[float]) -> torch.Tensor:
    """z of the jumps between neighbouring times, float64 [jumps, all numbers]."""
    jumps = pairwise(times)
    return torch.stack([noise.at(t, s) for t, s in jumps]).flatten(1).double()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [4, 60])
def test_z_are_standard_normal_and_independent_of_each_other_and_of_the_start(path, steps):
    schedule = PATHS[path](steps)
    noise = BrownianNoise(5, range(150), (15, 15), schedule)
    z = walk(noise, nodes(schedule, steps))
    z = torch.cat([noise.start().double().reshape(1, -1), z])
    error = z.shape[1] ** -0.5
    assert (z.mean(1).abs() < 4 * error).all()
    assert ((z.square().mean(1) - 1).abs() < 4.5 * error * 2**0.5).all()
    assert ((z.pow(4).mean(1) - 3).abs() < 4.5 * error * 96**0.5).all()
    correlation = torch.corrcoef(z) - torch.eye(len(z))
    assert correlation.abs().max() < 5 * error
    # Nor do the pixels and samples of one jump, or of neighbouring ones, know of each other.
    pixels = z[:, :-1] * z[:, 1:], z[:-1, 1:] * z[1:, :-1]
    assert all((product.mean(1).abs() < 4.5 * error).all() for product in pixels)


def test_the_jumps_of_every_timestep_are_standard_normal_too():
    """Where float32 has least room: neighbouring timesteps, 1 % apart in noise level."""
    z = walk(BrownianNoise(1, range(40), (40, 40), LINEAR), list(range(999, -1, -1)))
    variance = z.square().mean(1)
    assert ((variance - 1).abs() < 5 * (2 / z.shape[1]) ** 0.5).all()
    following = (z[1:] * z[:-1]).mean(1)
    assert (following.abs() < 5 * z.shape[1] ** -0.5).all()


@pytest.mark.parametrize("path", PATHS)
def test_z_of_a_jump_is_the_normalised_sum_over_the_finer_jumps_of_another_plan(path):
    coarse, fine = PATHS[path](4), PATHS[path](400)
    long = nodes(coarse, 4)
    of_long = walk(BrownianNoise(2, [7, 3], SHAPE, coarse, dtype=torch.float64), long)
    noise = BrownianNoise(2, [7, 3], SHAPE, fine, dtype=torch.float64)
    for z, t, s in zip(of_long, long, long[1:], strict=False):
        short = [t, *(v for v in nodes(fine, 400) if s + 1e-9 < v < t - 1e-9), s]
        u = np.array([snr(fine, v) for v in short])
        roots = torch.from_numpy(np.sqrt(np.diff(u) / (u[-1] - u[0])))
        assert len(roots) > 20
        assert torch.allclose((roots[:, None] * walk(noise, short)).sum(0), z, rtol=0, atol=1e-6)


def test_between_two_timesteps_lies_the_same_path():
    noise = BrownianNoise(2, [7], (50, 50), LINEAR)
    whole, (first, second) = noise.at(500, 420).double(), walk(noise, [500, 460.25, 420])
    u = [snr(LINEAR, t) for t in (500, 460.25, 420)]
    share = (u[1] - u[0]) / (u[2] - u[0])
    assert torch.allclose(
        share**0.5 * first + (1 - share) ** 0.5 * second, whole.flatten(), rtol=0, atol=1e-6
    )
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 / 50


@pytest.mark.parametrize("path", ["linear", "flow"])
@pytest.mark.parametrize("shape", [SHAPE, (5,), (1,), ()])
def test_a_sample_is_a_function_of_seed_and_id_alone(path, shape):
    """Not of the batch, the plan, the order of questions or what was asked before."""
    schedule = PATHS[path](20)
    times, ids = nodes(schedule, 20), [4, 0, 2**63, 9]
    jumps = list(pairwise(times))
    whole = [BrownianNoise(3, ids, shape, schedule).at(t, s) for t, s in jumps]
    for order in (ids, ids[::-1], ids[1:3]):
        noise = BrownianNoise(3, order, shape, schedule)
        for k in np.random.default_rng(0).permutation(len(jumps)):
            z = noise.at(*jumps[k])
            assert torch.equal(z, whole[k][[ids.index(i) for i in order]])
    other = BrownianNoise(4, ids, shape, schedule).at(*jumps[0])
    assert not torch.equal(other, whole[0])


def test_threads_and_chunks_change_nothing(monkeypatch):
    jumps = [(800, 610), (610, 455), (455, 30)]
    ids = range(13)
    whole = [BrownianNoise(3, ids, (37,), LINEAR).at(t, s) for t, s in jumps]
    monkeypatch.setattr(brownian, "PER_THREAD", 50)
    monkeypatch.setattr(brownian, "CHUNK", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    noise = BrownianNoise(3, ids, (37,), LINEAR)
    for z, (t, s) in zip(whole, jumps, strict=True):
        assert torch.equal(noise.at(t, s), z)


def test_the_start_is_that_of_sample_noise_and_the_streams_are_others():
    ids, shape = range(4), (60, 60)
    noise, plain = BrownianNoise(6, ids, shape, LINEAR), SampleNoise(6, ids, shape)
    assert torch.equal(noise.start(), plain.start())
    z = noise.at(999, 0).flatten()
    for t in (0, 1, 2, 499, 998, 999):
        pair = torch.stack([z, plain.at(t).flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / len(z) ** 0.5


@pytest.mark.parametrize(
    ("t", "s", "visit"),
    [(100, 300, 0), (300, 300, 0), (300, 200, 1), (20, -1, 0), (20.75, 20.25, 0)],
    ids=["up", "in place", "again", "to no noise", "between the same timesteps"],
)
def test_where_there_is_no_path_z_is_that_of_sample_noise(t, s, visit):
    noise, plain = BrownianNoise(6, [1, 2], SHAPE, LINEAR), SampleNoise(6, [1, 2], SHAPE)
    assert torch.equal(noise.at(t, s, visit), plain.at(t, s, visit))


def test_the_end_may_be_noisy():
    """Stable Diffusion's own samplers end at timestep 0's noise level: the path ends there too."""
    ended = Schedule(LINEAR.alpha_bar, final=float(LINEAR.alpha_bar[0]))
    noise = BrownianNoise(6, [1], SHAPE, ended)
    assert torch.equal(noise.at(20, -1), BrownianNoise(6, [1], SHAPE, LINEAR).at(20, 0))
    further = Schedule(LINEAR.alpha_bar, final=0.99995)
    z = walk(BrownianNoise(6, range(50), (40, 40), further), [20, 0, -1])
    assert torch.allclose(z.square().mean(1), torch.ones(2, dtype=torch.float64), atol=0.02)


def test_dtype_and_bad_seeds_are_as_in_sample_noise():
    single, double = (
        BrownianNoise(1, [4], SHAPE, LINEAR, dtype=d).at(500, 250)
        for d in (torch.float32, torch.float64)
    )
    assert double.dtype == torch.float64 and torch.equal(single.double(), double)
    assert BrownianNoise(1, [], SHAPE, LINEAR).at(500, 250).shape == (0, *SHAPE)
    for seed, ids in ((-1, [0]), (0, [-1])):
        with pytest.raises(ValueError, match=r"0\.\.2\^64 - 1"):
            BrownianNoise(seed, ids, SHAPE, LINEAR)


def distances(noise_of, path, counts) -> list[float]:
    """Between the samples of neighbouring step counts, of a network that is smooth and not linear."""
    samples = []
    for n in counts:
        schedule = PATHS[path](n)
        plan = skipped(schedule, timesteps(schedule.T, n))
        samples.append(run(lambda x, t: Denoised(torch.tanh(x)), plan, noise_of(schedule)))
    return [float((a - b).square().mean().sqrt()) for a, b in pairwise(samples)]


@pytest.mark.parametrize("path", ["linear", "flow"])
def test_samples_of_more_and_more_steps_converge_to_one(path):
    counts, ids = [10, 20, 40, 80, 160], range(20)
    coupled = distances(lambda schedule: BrownianNoise(0, ids, (8,), schedule), path, counts)
    assert all(b < 0.75 * a for a, b in pairwise(coupled))
    apart = distances(lambda schedule: SampleNoise(0, ids, (8,)), path, counts)
    assert min(apart) > 5 * coupled[-1]


def draws(plan: Plan, schedule: Schedule, monkeypatch) -> float:
    """Normal numbers of one plan, for each pixel and jump."""
    count = 0
    inner = brownian._Normals.draw

    def counted(self, ids, std, out):
        nonlocal count
        count += 1
        inner(self, ids, std, out)

    with monkeypatch.context() as patch:
        patch.setattr(brownian._Normals, "draw", counted)
        noise = BrownianNoise(0, [0], (1,), schedule)
        for row in plan.rows():
            if row.noise:
                noise.at(row.t, row.s)
    return count / len(plan)


@pytest.mark.parametrize("spacing", ["even", "leading", "leading+1", "trailing", "log_snr"])
def test_a_jump_costs_a_few_draws(spacing, monkeypatch):
    """Four on common grids and eight on any of ten steps or more; only one at every timestep."""
    for steps in (10, 13, 20, 25, 40, 50, 80, 100, 999):
        most = 8.0 if spacing == "log_snr" or steps == 13 else 4.0
        plan = skipped(LINEAR, timesteps(LINEAR, steps, spacing))
        assert draws(plan, LINEAR, monkeypatch) <= most
    for schedule in (flow(28), edm(18)):
        plan = skipped(schedule, timesteps(schedule.T, schedule.T))
        assert draws(plan, schedule, monkeypatch) <= 12
