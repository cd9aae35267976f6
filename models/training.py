"""Training a diffusion model with learned variance: its losses, averages and learning rate."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sampling import Schedule

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, y) -> eps and v as channels


class Objective:
    """The training losses of a diffusion model with learned variance, as functions of x0.

    `simple` is improved DDPM's hybrid: |eps error|^2 plus a variational bound that trains
    only the variance (eps detached).  `skipped_step` weighs |eps error|^2 by the paper's
    equation 4 for a random jump t -> t - m, divided by the mean of that weight over all
    (t, m) so that both losses have the same scale.
    """

    def __init__(self, schedule: Schedule, loss: str, device: torch.device | str = "cpu"):
        abar = schedule.alpha_bar
        before = np.append(1.0, abar[:-1])
        beta = 1 - abar / before
        posterior = beta * (1 - before) / (1 - abar)
        posterior[0] = posterior[1]  # the last step has no noise: guided-diffusion's clipping
        self.T = schedule.T
        self.abar = torch.from_numpy(abar).to(device)
        self.log_beta = torch.from_numpy(np.log(beta)).float().to(device)
        self.log_posterior = torch.from_numpy(np.log(posterior)).float().to(device)
        # posterior mean = c0 x0 + ct x_t, so an eps error e moves it by c0 sqrt(1-abar)/sqrt(abar) e
        c0 = torch.from_numpy(beta * np.sqrt(before) / (1 - abar)).float()
        self.eps_to_mean = (c0 * torch.from_numpy(np.sqrt((1 - abar) / abar)).float()).to(device)
        self.jump_weight = self._jump_weights() if loss == "skipped_step" else None

    def _jump_weights(self) -> Tensor:
        """Equation 4's coefficient for every (t, s), [T, T + 1] with s + 1 as column; mean 1.

        sigma_t^2 is the posterior variance of the jump (Theorem 2), as in Algorithm 2; the
        jump to the clean image, whose variance is 0, uses that of the jump to s = 0.
        """
        a_t = self.abar.double()[:, None]
        a_s = torch.cat([self.abar.new_ones(1), self.abar])[None]
        floor = self.abar.double()[0]
        variance = (a_s - a_t) * (1 - a_s.clamp(max=floor)) / (a_s * (1 - a_t))
        weight = (a_s - a_t) ** 2 / (2 * variance * a_t * a_s * (1 - a_t))
        weight = torch.where(a_s > a_t, weight, 0.0)
        jumps = torch.arange(1, self.T + 1, device=weight.device)[:, None]  # t's number of jumps
        mean = (weight.sum(1, keepdim=True) / jumps).mean()
        return (weight / mean).float()

    def __call__(self, net: Predict, x0: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimise, mean squared eps error per image [B])."""
        b, device = len(x0), x0.device
        t = torch.randint(self.T, (b,), device=device)
        noise = torch.randn_like(x0)
        a = self.abar[t].float()[:, None, None, None]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        eps, v = net(x_t, t, y).chunk(2, dim=1)
        error = (eps - noise).square().flatten(1).mean(1)
        weight: Tensor | float = 1.0
        if self.jump_weight is not None:
            s = (torch.rand(b, device=device) * (t + 1)).long()  # column s + 1 is uniform on 0..t
            weight = self.jump_weight[t, s]
        bound = self.bound(x0, (eps - noise).detach(), v, t)
        return (weight * error).mean() + self.T / 1000 * bound.mean(), error.detach()

    def bound(self, x0: Tensor, eps_error: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Bits per dimension of the step t -> t-1, [B]; only v receives a gradient."""

        def at(table: Tensor) -> Tensor:
            return table[t][:, None, None, None]

        frac = (v + 1) / 2
        low = at(self.log_posterior)
        log_var = frac * at(self.log_beta) + (1 - frac) * low
        delta = at(self.eps_to_mean) * eps_error
        kl = 0.5 * (log_var - low - 1 + (low - log_var).exp() + delta.square() * (-log_var).exp())
        # t = 0: likelihood of the 8-bit pixel under N(x0 + delta, var); true value x0
        scale = (-0.5 * log_var).exp()
        cdf = torch.special.ndtr
        upper = torch.where(x0 > 0.999, torch.ones_like(x0), cdf((1 / 255 + delta) * scale))
        lower = torch.where(x0 < -0.999, torch.zeros_like(x0), cdf((-1 / 255 + delta) * scale))
        nll = -(upper - lower).clamp(min=1e-12).log()
        first = (t == 0)[:, None, None, None]
        return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


class Ema:
    """Exponential moving average of parameters; the rate ramps up over the first steps."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self._state = net.state_dict()  # the parameters themselves, which change in place

    def update(self, step: int) -> None:
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._state.values()), rate)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
