"""Forward passes and trajectories recorded from the original code (tests/golden), on any device.

In float32 the tolerances are those that were stated with the recordings.  A half precision rounds
every weight and every activation of the torso to a unit u = 2^-11 (fp16) or 2^-8 (bf16), and a chain
of some tens of roundings moves the output by a few u of its size, at random: so its tolerance is a
multiple of u for the root mean square of the error relative to that of the recorded output.  On a
CPU the forward passes err by 1 to 14 u in both precisions (STDiT2 by 2.4 u), the trajectories by up
to 7 u; twice that is allowed and a little more, since other hardware adds up in another order.
Where a network is wrong, it errs by its output's own size, hundreds of u.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.check.outcome import Finding, rounded
from files.places import ROOT
from models.adm.networks import AttentionBlock, Classifier, UNet
from models.backbone import ImageNetwork
from models.opensora.stdit2 import STDiT2
from models.weights import dtype_named
from sampling import Gradient, Schedule, ddim, ddpm, iterate, timesteps
from sampling.denoise import Clip, Network, NetworkDenoiser, Reading
from sampling.plan import Plan

GOLDEN = ROOT / "tests" / "golden"
UNITS = {"fp16": 2.0**-11, "bf16": 2.0**-8}
FORWARD_UNITS, STDIT2_UNITS, TRAJECTORY_UNITS = 32, 8, 16
STDIT2_TOLERANCE = 2e-5  # recorded: float32 against float64 2.4e-6; a mistake costs 1e-4 to 5
STDIT2_OPTIONS = ["hidden_size", "depth", "num_heads", "patch_size", "in_channels", "mlp_ratio"]
STDIT2_OPTIONS += ["pred_sigma", "caption_channels", "model_max_length", "qk_norm", "input_sq_size"]
VARIANCE = {"LEARNED_RANGE": "learned", "FIXED_SMALL": "fixed_small", "FIXED_LARGE": "fixed_large"}

Tensors = dict[str, Tensor]


@cache
def golden_json(name: str) -> Any:
    """A sheet of tests/golden.  Raises OSError without the folder, which a clone has."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@cache
def golden_tensors(name: str) -> Tensors:
    """The tensors of a sheet, on the CPU: not to be changed."""
    return load_file(GOLDEN / f"{name}.safetensors")


# --- the tiny networks --------------------------------------------------------------------------


def golden_config(name: str) -> tuple[str, dict[str, Any]]:
    """Kind and network options of one tiny ADM network."""
    config = dict(golden_json("unet_forward")["models"][name]["config"])
    kind = config.pop("kind")
    if kind == "classifier":
        assert config.pop("pool") == "attention"
        config["num_labels"] = config.pop("out_channels")
    else:
        del config["image_size"], config["num_heads_upsample"]
    return kind, config


def golden_network(name: str, tensors: Tensors) -> UNet | Classifier:
    """One tiny ADM network with its weights in `unet_forward`, in which int8 means value / 256."""
    kind, config = golden_config(name)
    net = Classifier(**config) if kind == "classifier" else UNet(**config)
    prefix = f"{name}/sd/"
    net.load_state_dict(
        {
            key.removeprefix(prefix): value.float() / 256 if value.dtype == torch.int8 else value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    )
    if name == "plain" and isinstance(net, UNet):
        # Recorded with more heads on the way up, which no published model has.
        for block in net.output_blocks.modules():
            if isinstance(block, AttentionBlock):
                block.heads = 4
    return net.eval()


def golden_stdit2(config: str) -> STDiT2:
    """One of the recorded tiny networks of Open-Sora."""
    stated = golden_json("opensora_stdit2_forward")["configs"][config]
    options = {key: stated[key] for key in STDIT2_OPTIONS}
    net = STDiT2(**{**options, "patch_size": tuple(options["patch_size"])})
    net.load_state_dict(_part("opensora_stdit2_forward", f"{config}/param/"))
    return net.eval()


def stdit2_arguments(case: str) -> Tensors:
    """What STDiT2 was given; `x_mask` is left out where it masks nothing."""
    given = _part("opensora_stdit2_forward", f"{case}/in/")
    if "x_mask" in given and given["x_mask"].all():
        del given["x_mask"]
    return given


def stdit2_cases() -> list[str]:
    """The recorded cases but those that go on from frames that are there already (`x_mask`)."""
    cases = golden_json("opensora_stdit2_forward")["cases"]
    return [case for case in cases if "x_mask" not in stdit2_arguments(case)]


def _part(name: str, prefix: str) -> Tensors:
    tensors = golden_tensors(name)
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


# --- forward passes -----------------------------------------------------------------------------


def adm_forwards(device: torch.device, precision: str) -> Finding:
    """The tiny ADM networks on every recorded input."""
    worst = _Worst()
    for name, sheet in golden_json("unet_forward")["models"].items():
        net = golden_network(name, golden_tensors("unet_forward")).to(device)
        net.set_torso(dtype_named(precision))
        for case in sheet["cases"]:
            if case == "b_small_x" and precision != "fp32":
                continue  # its first norms divide by almost nothing: rounding grows to 180 u
            given = _part("unet_forward", f"{name}/{case}/")
            with torch.no_grad():
                out = net(*(given[key].to(device) for key in "xty" if key in given)).cpu()
            for error, tolerance in _adm_errors(name, case, precision, out, given):
                worst.add(f"{name}/{case}", error, tolerance)
    return worst.finding()


def adm_tolerance(name: str, case: str) -> float:
    """The stated tolerance of a float32 forward pass, for every number of the output."""
    if name == "clf":
        return 1e-5
    return 3e-3 if case == "b_small_x" else 5e-4


def _adm_errors(
    name: str, case: str, precision: str, out: Tensor, given: Tensors
) -> Iterator[tuple[float, float]]:
    """(error, tolerance): against the recorded output, and the one in half precision if there is."""
    if precision == "fp32":
        yield largest(out, given["out"]), adm_tolerance(name, case)
        return
    yield relative(out, given["out"]), FORWARD_UNITS * UNITS[precision]
    if precision == "fp16" and "out_fp16_torso" in given:  # the sheet's tolerances, on any hardware
        yield largest(out, given["out_fp16_torso"]), 1e-3 if name == "clf" else 0.1


def stdit2_forwards(device: torch.device, precision: str) -> Finding:
    """Open-Sora's tiny networks on every recorded input.

    A half precision also rounds what the network is told (bf16 the timestep by up to 2, as in the
    original), which moves the output by far more than its own roundings: it is compared with the
    float32 network of the CPU, which is held to the recording first, on inputs rounded alike.
    """
    dtype, worst = dtype_named(precision), _Worst()
    for case in stdit2_cases():
        net, given = golden_stdit2(case[0]), stdit2_arguments(case)
        recorded = golden_tensors("opensora_stdit2_forward")[f"{case}/out"]
        on_device = {key: value.to(device) for key, value in given.items()}
        with torch.no_grad():
            if precision == "fp32":
                out = net.to(device)(**on_device).cpu()
                worst.add(case, largest(out, recorded), STDIT2_TOLERANCE)
                continue
            worst.add(case, largest(net(**given), recorded), STDIT2_TOLERANCE)
            alike = net(
                **{k: v if k == "mask" else v.to(dtype).to(v.dtype) for k, v in given.items()}
            )
            out = net.to(device, dtype)(**on_device).cpu()
        worst.add(case, relative(out, alike), STDIT2_UNITS * UNITS[precision])
    return worst.finding()


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite where a number is none."""
    return float((ours - theirs).abs().max().nan_to_num(math.inf))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The root mean square of the difference, relative to that of theirs."""
    size = theirs.square().mean().sqrt()
    return float(((ours - theirs).square().mean().sqrt() / size).nan_to_num(math.inf))


class _Worst:
    """Of errors with their tolerances the one that comes nearest to it, or is farthest beyond."""

    def __init__(self) -> None:
        self.count, self.share, self.at = 0, -1.0, ("", 0.0, 0.0)

    def add(self, name: str, error: float, tolerance: float) -> None:
        self.count += 1
        if error / tolerance > self.share:
            self.share, self.at = error / tolerance, (name, error, tolerance)

    def finding(self) -> Finding:
        name, error, tolerance = self.at
        said = (
            f"{self.count} comparisons, the worst {error:.1e} of {tolerance:.1e} allowed ({name})"
        )
        numbers = {"error": rounded(error), "tolerance": rounded(tolerance), "count": self.count}
        return Finding(0 <= self.share <= 1, said, numbers)


# --- trajectories -------------------------------------------------------------------------------


class Recorded:
    """The recorded x_T and noise, handed out by row."""

    def __init__(
        self, family: str, plan: Plan, dtype: torch.dtype, device: torch.device | str = "cpu"
    ):
        tensors = golden_tensors("trajectories")
        self.x_T = tensors[f"{family}/x_T"].to(device, dtype)
        noise = tensors[f"{family}/noise"].to(device, dtype)
        self.by_t = {row.t: z for row, z in zip(plan.rows(), noise, strict=False)}

    def start(self) -> Tensor:
        return self.x_T

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        return self.by_t[t]


def recorded_runs() -> dict[str, dict[str, Any]]:
    """The recorded sampling runs by their ids."""
    return {run["id"]: run for run in golden_json("trajectories")["runs"]}


def analytic(name: str, schedule: Schedule) -> Network:
    """The two closed-form networks that recorded runs used instead of a network."""

    def network(x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor]:
        a = schedule.abar(int(t))
        v = 0.5 * math.sin(t / 100) + 0.25 * x
        if name == "analytic_std":
            return math.sqrt(1 - a) * x, v
        mu, s = 0.3, 0.5
        return (x - math.sqrt(a) * mu) * (math.sqrt(1 - a) / (a * s**2 + 1 - a)), v

    return network


def recorded_plan(run: dict[str, Any], schedule: Schedule) -> Plan:
    """The plan of a recorded run."""
    spec = run["respacing"]
    spacing = "ddim" if spec.startswith("ddim") else "even"
    grid = timesteps(1000, int(spec.removeprefix("ddim")), spacing)
    if run["sampler"] == "ddim":
        return ddim(schedule, grid, eta=run["eta"])
    return ddpm(schedule, grid, variance=VARIANCE[run["model_var_type"]])


def replay(
    run: dict[str, Any],
    net: UNet | Classifier,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """x_T and x after every row of a recorded run [rows + 1, ...], on the CPU.

    `net` is the network of the runs that used one, on `device`.
    """
    schedule = Schedule.named(run["noise_schedule"])
    plan, of_unet = recorded_plan(run, schedule), run["model"] == "unet"
    noise = Recorded("unet" if of_unet else "analytic", plan, dtype, device)
    network: Network = ImageNetwork(net) if of_unet else analytic(run["model"], schedule)
    gradient: Gradient | None = None
    if run["cond_fn"]:
        gradient = lambda x, t: 0.4 * (0.25 - x) * (1 + t / 999)  # noqa: E731
    y = golden_tensors("trajectories")["unet/y"].to(device) if of_unet else None
    reading = Reading(limit=Clip() if run["clip_denoised"] else None)
    denoiser = NetworkDenoiser(network, schedule, reading, y, gradient)
    with torch.no_grad():
        states = iterate(denoiser, plan, noise)
        return torch.stack([noise.start(), *(state.x for state in states)]).cpu()


def trajectory_tolerance(run: dict[str, Any], recorded: Tensor) -> Tensor:
    """The stated tolerance of every step [rows + 1] in float32."""
    size = recorded.abs().flatten(1).amax(1)
    if run["model"] != "unet":
        return torch.full_like(size, 1e-5 if run["noise_schedule"] == "linear" else 1e-3)
    return torch.full_like(size, 1e-3) if run["clip_denoised"] else 2e-5 * size.clamp(min=1)


def trajectories(device: torch.device, precision: str, every: int = 1) -> Finding:
    """Every step of every recorded run, or of one in `every`.

    In a half precision of the runs that used a network: the solver's state is float32 in all.
    """
    net = golden_network("t64", golden_tensors("unet_forward")).to(device)
    net.set_torso(dtype_named(precision))
    worst, runs = _Worst(), recorded_runs()
    half = precision != "fp32"
    wanted: Sequence[str] = [id for id in runs if not half or runs[id]["model"] == "unet"]
    for id in wanted[::every]:
        recorded = golden_tensors("trajectories")[f"{id}/x"]
        ours = replay(runs[id], net, device=device)
        if half:
            errors = torch.tensor([relative(a, b) for a, b in zip(ours, recorded, strict=True)])
            tolerances = torch.full_like(errors, TRAJECTORY_UNITS * UNITS[precision])
        else:
            errors = (ours - recorded).abs().flatten(1).amax(1).nan_to_num(math.inf)
            tolerances = trajectory_tolerance(runs[id], recorded)
        step = int((errors / tolerances).argmax())
        worst.add(f"{id} step {step}", float(errors[step]), float(tolerances[step]))
    return worst.finding()
