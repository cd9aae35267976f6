"""Which stochastic samplers of flow matching keep the marginals, and where originals err, in numbers.

    python -m scripts.flow    # the tables of docs/flow.md

Closed form, without a network: a sampler is its table of coefficients, and the data are Gaussian
with a standard deviation of 0.5, whose exact velocity is known.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SASolverScheduler,
)
from numpy.typing import NDArray

from eval.endings import parser
from sampling import Plan, Schedule, ddim, mix, mixpp, sde_dpmpp, skipped, tabulate
from sampling.builders import Grid
from sampling.gaussian import gaussian_output

SHIFT, STD, STEPS = 3.0, 0.5, (10, 100, 1000)
EULER: Any = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": SHIFT}
Sampler = Callable[[int], Plan]


def path(n: int) -> tuple[Schedule, range]:
    """The levels of FlowMatchEuler for n steps."""
    EULER.set_timesteps(n)
    return Schedule.flow(EULER.sigmas[:-1].double().numpy()), range(n - 1, -1, -1)


def even(n: int) -> tuple[Schedule, range]:
    """Levels as pipelines with sigmas of their own have them (FLUX): even, and shifted once."""
    return Schedule.flow(np.linspace(1, 1 / n, n), shift=SHIFT), range(n - 1, -1, -1)


def flow_grpo(n: int, noise_level: float = 0.7) -> Plan:
    """Flow-GRPO's SDE (Liu et al. 2025): an Euler-Maruyama step of length dt = s - t < 0,

        x_s = x + (v + b (x + (1 - t) v)) dt + a sqrt(-dt) z,   a^2 = level^2 t / (1 - t), b = a^2 / 2t

    where 1 - t is that of the second node in the first row, which has none.
    """
    grid = Grid.of(*path(n))
    t, dt = grid.sigma_t, grid.sigma_s - grid.sigma_t
    a = noise_level * np.sqrt(t / (1 - np.where(t == 1, t[1], t)))
    b = a**2 / (2 * t)
    velocity = (1 + b * (1 - t)) * dt  # times v = (x - x0) / t
    x, x0 = 1 + b * dt + velocity / t, -velocity / t
    return grid.plan("flow_grpo", x=x, x0=x0, noise=a * np.sqrt(-dt))


def coefficients_preserving(n: int, noise_level: float = 0.7) -> Plan:
    """Flow-CPS (Wang & Yu 2025): the noise of x_s is in part that of x_t, in part new; DDIM's step."""
    grid = Grid.of(*path(n))
    noise = grid.sigma_s * np.sin(noise_level * np.pi / 2)
    x = np.sqrt(grid.sigma_s**2 - noise**2) / grid.sigma_t
    return grid.plan("cps", x=x, x0=grid.alpha_s - x * grid.alpha_t, noise=noise)


def renoising(n: int) -> Plan:
    """FlowMatchEuler with stochastic_sampling=True: the image that the network sees, with new noise."""
    grid = Grid.of(*path(n))
    return grid.plan("renoising", x=np.zeros(n), x0=grid.alpha_s, noise=grid.sigma_s)


def ancestral(n: int) -> Plan:
    """LTXEulerAncestralRFScheduler with eta 1: Euler down to s^2 / t, and noise up to s again."""
    grid = Grid.of(*path(n))
    down = grid.sigma_s**2 / grid.sigma_t
    up = grid.alpha_s / (1 - down)
    x = up * down / grid.sigma_t
    noise = np.sqrt(np.maximum(grid.sigma_s**2 - (up * down) ** 2, 0))
    return grid.plan("ancestral", x=x, x0=up * (1 - down / grid.sigma_t), noise=noise)


def third_order_of_diffusers(n: int) -> Plan:
    options = {**FLOW, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    return tabulate(DPMSolverMultistepScheduler(**options), n)


SAMPLERS: dict[str, Sampler] = {
    "FlowMatchEuler, deterministic": lambda n: ddim(*path(n)),
    "Skipped-Step; DPMSolverMultistep's `sde-dpmsolver++` of order 1": lambda n: skipped(*path(n)),
    "Mix, cutoff 291": lambda n: mix(*path(n), cutoff=291),
    "Mix++, lo 291, orders 2 and 2": lambda n: mixpp(*path(n), lo=291),
    "Mix++, lo 291, orders 2 and 1": lambda n: mixpp(*path(n), lo=291, deterministic_order=1),
    "Mix++, lo 291, orders 2 and 2, at even levels": lambda n: mixpp(*even(n), lo=291),
    "DDIM with eta 0.5": lambda n: ddim(*path(n), eta=0.5),
    "`sde-dpmsolver++` of order 2": lambda n: sde_dpmpp(*path(n), 2),
    "LTXEulerAncestralRF, eta 1": ancestral,
    "Flow-CPS, noise level 0.7": coefficients_preserving,
    "Flow-GRPO's SDE, noise level 0.7": flow_grpo,
    "FlowMatchEuler, `stochastic_sampling=True`": renoising,
}


def defects(plan: Plan) -> tuple[float, float]:
    """The most by which a row misses alpha_s of the image, and sigma_s of the noise.

    Of x_t = alpha_t x0 + sigma_t eps with the true x0 in the place of the network's.
    """
    alpha, sigma = np.append(plan.alpha, 1.0), np.append(plan.sigma, 0.0)
    image = plan.x * alpha[:-1] + plan.x0.sum(axis=1) - alpha[1:]
    noise = np.hypot(plan.x * sigma[:-1], plan.noise) - sigma[1:]
    return float(np.abs(image).max()), float(np.abs(noise).max())


def spread(plan: Plan) -> float:
    """The standard deviation of a plan's samples."""
    return float(np.sqrt(gaussian_output(plan, np.array([STD**2])).variance[0]))


def marginals() -> list[str]:
    head = " | ".join(f"{n} steps" for n in STEPS)
    lines = [f"| sampler | image off by | noise off by | {head} |", "|---" * (3 + len(STEPS)) + "|"]
    for name, sampler in SAMPLERS.items():
        off = " | ".join(f"{v:.3f}" for v in defects(sampler(STEPS[0])))
        spreads = " | ".join(f"{spread(sampler(n)):.3f}" for n in STEPS)
        lines.append(f"| {name} | {off} | {spreads} |")
    return lines


def errors() -> list[str]:
    """What an original does, and what is right."""
    EULER.set_timesteps(25)
    ends: list[Any] = [cls(**FLOW) for cls in (DEISMultistepScheduler, SASolverScheduler)]
    for scheduler in ends:
        scheduler.set_timesteps(25)
    lowest: NDArray[np.float64] = Schedule.flow(np.linspace(1, 0.001, 25), shift=SHIFT).sigma
    lines = ["| | the original | right |", "|---|---|---|"]
    lines.append(
        f"| FlowMatchEuler, shift 3, 25 steps: lowest sigma | {float(EULER.sigmas[-2]):.4f} | "
        f"{lowest[0]:.4f} |"
    )
    lines += [
        f"| {type(one).__name__} with flow sigmas: sigma where it stops | "
        f"{float(one.sigmas[-1]):.4f} | 0 |"
        for one in ends
    ]
    for n in (20, 40, 80):
        theirs = third_order_of_diffusers(n)
        ours = sde_dpmpp(Schedule.flow(theirs.sigma), range(n - 1, -1, -1), 3, None, "heun")
        off = " | ".join(f"{abs(spread(plan) - STD):.4f}" for plan in (theirs, ours))
        lines.append(f"| `sde-dpmsolver++` of order 3, {n} steps: error of the spread | {off} |")
    return lines


def main() -> None:
    parser(__doc__).parse_args()
    print("\n".join([*marginals(), "", *errors()]))


if __name__ == "__main__":
    main()
