"""Train the embedded digits model and its classifier; resumable, with checkpoints.

python -m scripts.train unet          # the diffusion model
python -m scripts.train classifier    # the feature extractor of the digits scores
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from eval.extractors import DigitsExtractor
from eval.reference import build_reference
from files.whole import write_atomic
from models.digits.data import HERE, load_images, load_reference_images, to_model_range
from models.digits.networks import UNET, DigitsClassifier, PatchUNet
from sampling.schedule import Schedule


class Objective:
    """The training losses of a diffusion model with learned variance, as functions of x0.

    `simple` is improved DDPM's hybrid: |eps error|^2 plus a variational bound that trains
    only the variance (eps detached).  `skipped_step` weighs |eps error|^2 by the paper's
    equation 4 for a random jump t -> t - m, divided by the mean of that weight over all
    (t, m) so that both losses have the same scale.
    """

    def __init__(self, schedule: Schedule, loss: str):
        abar = schedule.alpha_bar
        before = np.append(1.0, abar[:-1])
        beta = 1 - abar / before
        posterior = beta * (1 - before) / (1 - abar)
        posterior[0] = posterior[1]  # the last step has no noise: guided-diffusion's clipping
        self.T = schedule.T
        self.abar = torch.from_numpy(abar)
        self.log_beta = torch.from_numpy(np.log(beta)).float()
        self.log_posterior = torch.from_numpy(np.log(posterior)).float()
        # posterior mean = c0 x0 + ct x_t, so an eps error e moves it by c0 sqrt(1-abar)/sqrt(abar) e
        self.c0 = torch.from_numpy(beta * np.sqrt(before) / (1 - abar)).float()
        self.eps_to_mean = self.c0 * torch.from_numpy(np.sqrt((1 - abar) / abar)).float()
        self.jump_weight = self._jump_weights() if loss == "skipped_step" else None

    def _jump_weights(self) -> Tensor:
        """Equation 4's coefficient for every (t, s), [T, T + 1] with s + 1 as column; mean 1.

        sigma_t^2 is the posterior variance of the jump (Theorem 2), as in Algorithm 2; the
        jump to the clean image, whose variance is 0, uses that of the jump to s = 0.
        """
        a_t = self.abar.double()[:, None]
        a_s = torch.cat([torch.ones(1, dtype=torch.float64), self.abar])[None]
        floor = self.abar.double()[0]
        variance = (a_s - a_t) * (1 - a_s.clamp(max=floor)) / (a_s * (1 - a_t))
        weight = (a_s - a_t) ** 2 / (2 * variance * a_t * a_s * (1 - a_t))
        weight = torch.where(a_s > a_t, weight, 0.0)
        jumps = torch.arange(1, self.T + 1, dtype=torch.float64)[:, None]  # t's number of jumps
        mean = (weight.sum(1, keepdim=True) / jumps).mean()
        return (weight / mean).float()

    def __call__(self, net: nn.Module, x0: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss to minimise, mean squared eps error per image [B], t [B])."""
        b = len(x0)
        t = torch.randint(self.T, (b,))
        noise = torch.randn_like(x0)
        a = self.abar[t].float()[:, None, None, None]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        eps, v = net(x_t, t, y).chunk(2, dim=1)
        error = (eps - noise).square().flatten(1).mean(1)
        weight: Tensor | float = 1.0
        if self.jump_weight is not None:
            s = (torch.rand(b) * (t + 1)).long()  # column s + 1 is uniform on 0..t
            weight = self.jump_weight[t, s]
        bound = self._bound(x0, (eps - noise).detach(), v, t)
        return (weight * error).mean() + self.T / 1000 * bound.mean(), error.detach(), t

    def _bound(self, x0: Tensor, eps_error: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Bits per dimension of the step t -> t-1, [B]; only v receives a gradient."""

        def at(table: Tensor) -> Tensor:
            return table[t][:, None, None, None]

        frac = (v + 1) / 2
        log_var = frac * at(self.log_beta) + (1 - frac) * at(self.log_posterior)
        delta = at(self.eps_to_mean) * eps_error
        kl = 0.5 * (
            log_var - at(self.log_posterior) - 1
            + (at(self.log_posterior) - log_var).exp() + delta.square() * (-log_var).exp()
        )  # fmt: skip
        # t = 0: likelihood of the 8-bit pixel under N(x0 + delta, var); true value x0
        scale = (-0.5 * log_var).exp()
        upper = torch.where(x0 > 0.999, torch.ones_like(x0), _cdf((1 / 255 + delta) * scale))
        lower = torch.where(x0 < -0.999, torch.zeros_like(x0), _cdf((-1 / 255 + delta) * scale))
        nll = -(upper - lower).clamp(min=1e-12).log()
        first = (t == 0)[:, None, None, None]
        return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def _cdf(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


class Ema:
    """Exponential moving average of parameters; the rate ramps up over the first steps."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in net.state_dict().items()}

    def update(self, net: nn.Module, step: int) -> None:
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        names = list(self.values)
        state = net.state_dict()
        torch._foreach_lerp_([self.values[k] for k in names], [state[k] for k in names], rate)


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    write_atomic(path, lambda p: save_file(contiguous, p))


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_data(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images, labels) to train on and (images, labels) held out.

    `mnist10k` is embedded; `mnist60k` is downloaded by torchvision, once, into runs/mnist.
    """
    if name == "mnist10k":
        parts = [load_images("train"), load_images("held_out")]
    else:
        from torchvision.datasets import MNIST

        try:
            sets = [MNIST("runs/mnist", train=train, download=True) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            sys.exit(f"error: cannot download MNIST ({error}): use --data mnist10k")
        parts = [
            (s.data.numpy()[:n], s.targets.numpy()[:n])
            for s, n in zip(sets, (None, 1000), strict=True)
        ]
    (a, b), (c, d) = parts
    return (to_model_range(a), torch.from_numpy(b)), (to_model_range(c), torch.from_numpy(d))


def train_unet(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    (x, y), held = training_data(args.data)
    net = PatchUNet(**json.loads(args.net) if args.net else UNET, dropout=args.dropout)
    net = net.to(memory_format=torch.channels_last)  # about 8% faster on a CPU
    objective = Objective(Schedule.linear(), args.loss)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    ema = Ema(net, args.ema)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.pt"
    free = ("what", "out", "steps", "stop_after", "keep", "log_every", "save_every")
    settings = {name: value for name, value in vars(args).items() if name not in free}
    first, curve, seconds = 0, [], 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, value in settings.items():
            if state["settings"].get(name) != value:
                sys.exit(
                    f"error: {out} holds a training with --{name} {state['settings'].get(name)}, "
                    f"not {value}: choose another --out or remove it"
                )
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        ema.values = state["ema"]
        torch.set_rng_state(state["rng"])
        first, curve, seconds = state["step"], state["curve"], state["seconds"]
        print(f"resuming at step {first}")

    def save(step: int) -> None:
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.values,
                     "rng": torch.get_rng_state(), "step": step, "curve": curve,
            "settings": settings, "seconds": elapsed()}  # fmt: skip
        write_atomic(state_file, lambda p: torch.save(state, p))
        write_atomic(out / "curve.json", lambda p: p.write_text(json.dumps(curve)))

    started = time.perf_counter()

    def elapsed() -> float:
        return seconds + time.perf_counter() - started

    running: list[float] = []
    net.train()
    last = min(args.steps, args.stop_after or args.steps)
    for step in (bar := trange(first, last, initial=first, total=args.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        pick = torch.randint(len(x), (args.batch,))
        loss, error, _ = objective(net, x[pick], y[pick])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update(net, step)
        running.append(error.mean().item())
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            row = {"step": done, "train": float(np.mean(running)), "seconds": round(elapsed())}
            row["held_out"] = held_out_loss(net, ema, objective, held)
            running.clear()
            curve.append(row)
            bar.set_postfix(train=f"{row['train']:.4f}", held_out=f"{row['held_out']:.4f}")
        if done in args.keep or done == args.steps:
            save_weights(ema.values, out / f"unet-{done}.safetensors")
        if done % args.save_every == 0 or done == last:
            save(done)
    if last == args.steps:
        print(f"done: copy {out}/unet-*.safetensors to {HERE} to make them the embedded model")


@torch.no_grad()
def held_out_loss(
    net: nn.Module, ema: Ema, objective: Objective, held: tuple[Tensor, Tensor]
) -> float:
    """Mean squared eps error of the EMA weights on held-out digits, always the same draws."""
    net_state = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    net.load_state_dict(ema.values)
    net.eval()
    torch.manual_seed(0)
    _, error, _ = objective(net, *held)
    net.load_state_dict(net_state)
    net.train()
    torch.set_rng_state(rng)
    return error.mean().item()


def train_classifier(args: argparse.Namespace) -> None:
    """Digits classifier: AdamW, half-cosine learning rate, cross-entropy on distorted digits."""
    torch.manual_seed(args.seed)
    images, labels = load_images("train")
    x, y = to_model_range(images), torch.from_numpy(labels)
    net = DigitsClassifier()
    steps = 20 * len(x) // 128
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in (bar := trange(steps)):
        pick = torch.randint(len(x), (128,))
        _, logits = net(distorted(x[pick]))
        loss = F.cross_entropy(logits, y[pick])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()
    held_images, held_labels = load_images("held_out")
    with torch.no_grad():
        guess = net(to_model_range(held_images))[1].argmax(1).numpy()
    accuracy = float((guess == held_labels).mean())
    out = Path(args.out)
    save_weights(net.state_dict(), out / "classifier.safetensors")
    real, _ = load_reference_images("reference")
    extractor = DigitsExtractor(out / "classifier.safetensors")
    print(f"reference: {build_reference('digits', real, extractor).save(out)}")
    print(f"held-out accuracy {accuracy:.4f} on {len(guess)} digits")
    print(f"copy both files from {out} to {HERE} to make them the embedded extractor")


def distorted(x: Tensor) -> Tensor:
    """Each digit turned by up to 0.2 rad, scaled by up to 10% and moved by up to 2 pixels."""
    u = 2 * torch.rand(4, len(x)) - 1
    angle, scale, move = 0.2 * u[0], 1 + 0.1 * u[1], 2 * u[2:] / 14  # 14 pixels: half a side
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, move[0], sin, cos, move[1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside is background, -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["unet", "classifier"])
    parser.add_argument("--out", default="runs/train_digits")
    parser.add_argument("--data", choices=["mnist10k", "mnist60k"], default="mnist10k")
    parser.add_argument("--net", help="U-Net options as JSON (default: the embedded model's)")
    parser.add_argument("--loss", choices=["simple", "skipped_step"], default="simple")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--stop-after", type=int, help="end early; resume without this option")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument(
        "--keep", type=int, nargs="*", default=[1000, 3000], help="steps whose EMA weights to keep"
    )
    args = parser.parse_args()
    train_unet(args) if args.what == "unet" else train_classifier(args)


if __name__ == "__main__":
    main()
