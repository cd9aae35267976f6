"""How uncertain a network's x0 is: what the analytic variance of Analytic-DPM is made of.

Bao et al. (2022) give the optimal variance of a reverse step with a fixed mean: the posterior's, plus
the mean squared error of x0 times its coefficient squared.  The error is measured once a checkpoint
on real images, clipped as in sampling, and stored under the checkpoint's hash.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from files.places import downloads
from files.whole import file_sha256, write_text
from models.backbone import Backbone
from sampling import SampleNoise

DIGITS = Path(__file__).parent / "digits"


@torch.no_grad()
def measure_x0_variance(
    backbone: Backbone,
    x_0: Tensor,
    labels: Tensor | None,
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """Mean squared error of x0 a number, at each of `timesteps`, over images x_0 [N, C, H, W].

    The noise of image i at timestep t is that of sample i there.
    """
    errors = np.zeros(len(timesteps))
    for first in tqdm(range(0, len(x_0), batch_size), desc="x0 variance", unit="batch"):
        part = slice(first, first + batch_size)
        x = x_0[part].to(backbone.device)
        denoiser = backbone.given(None if labels is None else labels[part])
        ids = range(first, first + len(x))
        noise = SampleNoise(seed, ids, x.shape[1:], device=backbone.device)
        for k, t in enumerate(timesteps):
            a = backbone.schedule.abar(t)
            x_t = a**0.5 * x + (1 - a) ** 0.5 * noise.at(t)
            x0, *_ = denoiser(x_t, float(t))
            errors[k] += float(((x0 - x) ** 2).double().sum())
    return errors / x_0.numel()


def save_x0_variance(
    backbone: Backbone, timesteps: Sequence[int], errors: Sequence[float], n: int
) -> Path:
    """Store measured errors; between the timesteps their logarithm is interpolated."""
    t, logs = np.asarray(timesteps), np.log(np.maximum(errors, 1e-12))
    order = np.argsort(t)
    every = np.exp(np.interp(np.arange(backbone.schedule.T), t[order], logs[order]))
    content: dict[str, Any] = {
        "sha256": backbone.sha256,
        "clip": backbone.clip,
        "images": n,
        "timesteps": len(t),
        "x0_variance": [float(f"{v:.6g}") for v in every],
    }
    embedded = backbone.sha256 in map(file_sha256, DIGITS.glob("unet-*.safetensors"))
    path = (DIGITS if embedded else downloads()) / _name(backbone)
    write_text(path, json.dumps(content) + "\n")
    return path


def stored_x0_variance(backbone: Backbone) -> NDArray[np.float64]:
    """The errors [T] that were measured of a checkpoint.

    Raises FileNotFoundError without them, ValueError for a damaged file.
    """
    for folder in (DIGITS, downloads()):
        path = folder / _name(backbone)
        if path.is_file():
            try:
                return np.array(
                    json.loads(path.read_text(encoding="utf-8"))["x0_variance"], dtype=np.float64
                )
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path} is damaged: remove it and run `python -m scripts.variance`"
                ) from None
    raise FileNotFoundError(
        "variance=analytic needs the network's error on real images: measure it once with "
        "`python -m scripts.variance model=...`"
    )


def _name(backbone: Backbone) -> str:
    return f"x0_variance-{backbone.sha256[:12]}{'' if backbone.clip else '-unclipped'}.json"
