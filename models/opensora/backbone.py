"""Open-Sora 1.1 as a `Backbone`: text to video."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from files.whole import file_sha256
from models.backbone import Backbone
from models.opensora.stdit2 import STDiT2
from models.opensora.text import TextCache
from models.weights import dtype_named, load_weights
from sampling import Schedule

FPS_OF_IMAGES = 120  # what the network is told of a single frame
FRAME_INTERVAL = 3  # of the training's frames every third: 24 a second are saved as 8
WEIGHTS = "model.safetensors"


def load(
    id: str,
    prompts: Sequence[str],
    text_encoder: str,
    vae: str,
    text_cache: str,
    revision: str | None = None,
    num_frames: int = 16,
    height: int = 240,
    width: int = 426,
    fps: int = 24,
    aspect_ratio: float | None = None,
    guidance_scale: float = 7.0,
    guided_channels: int | None = 3,
    precision: str = "bf16",
    bit_rate: int = 1_024_000,
    untrained: bool = False,
    encode: bool = True,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Open-Sora 1.1, ready to sample `prompts`.

    `id` is a hub id or a folder with config.json and model.safetensors.  `guidance_scale` s is applied as shipped: u + s (c - u) to the first
    `guided_channels` of eps (None: to all); the other channels and the variance are those with
    prompt.  `precision` is that of network and VAE; the text encoder is float32.  Videos are
    `num_frames` frames of about `height` x `width` pixels, rounded down to the VAE's grid.  The
    network is told the size, `fps` (three times that of the file) and `aspect_ratio`, by default
    height / width as in the original.
    `untrained` fills the network with random numbers, to measure its speed without the weights;
    without `encode` texts are zeros, to measure it without the text encoder.

    Raises FileNotFoundError or ValueError, with the remedy, for what is missing or makes no video.
    """
    _check_size(num_frames, height, width, fps, aspect_ratio)
    dtype = dtype_named(precision)
    cache = TextCache(Path(text_cache), text_encoder)
    encode = encode and not untrained
    if encode:
        cache.fill(prompts, device)  # before the network is in memory
    net, sha256 = load_stdit2(id, revision, dtype, device, untrained)
    decoder, vae_sha256 = load_vae(vae, dtype, device, untrained)
    known = tuple(prompts)
    info = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "ar": aspect_ratio or height / width,
    }
    info["fps"] = FPS_OF_IMAGES if num_frames == 1 else fps
    guided = guidance_scale != 1
    denoiser = VideoDenoiser(net, guidance_scale, guided_channels)

    def embed(labels: Tensor) -> dict[str, Tensor]:
        if not encode:
            y = torch.zeros(len(labels), 1, *net.y_embedder.y_embedding.shape)
            mask = torch.ones(len(labels), y.shape[2], dtype=torch.int64)
        else:
            y, mask = cache.batch([known[i] for i in labels.tolist()])
        return condition(net, y, mask, info, guided, device)

    return Backbone(
        denoiser=denoiser,
        schedule=Schedule.linear(),
        shape=(4, num_frames, height // 8, width // 8),
        num_classes=len(known),
        clip=False,
        sha256=hashlib.sha256((sha256 + vae_sha256).encode()).hexdigest()
        if not untrained
        else sha256,
        decode=lambda latents: decode(decoder, latents, dtype),
        prompts=known,
        embed=embed,
        evaluations_per_call=2 if guided else 1,
        image_size=(num_frames, height // 8 * 8, width // 8 * 8, 3),
        fps=fps // FRAME_INTERVAL,
        bit_rate=bit_rate,
        memory=lambda batch: peak_memory(
            net, batch * (2 if guided else 1), num_frames, height, width
        ),
    )


VAE_WEIGHTS = 83_653_863


def peak_memory(net: STDiT2, batch: int, num_frames: int, height: int, width: int) -> float:
    """Bytes on the device while sampling `batch` latents at once, estimated from the largest tensors.

    Weights, and the larger of a block's activations (12 times its tokens: residual, normed and
    modulated, the MLP's hidden layer twice) and of four frames in the VAE's widest layers.
    Attention is taken to run without its matrix in memory.
    """
    size = net.y_embedder.y_embedding.element_size()
    weights = sum(value.numel() for value in net.state_dict().values()) + VAE_WEIGHTS
    patch = net.patch_size
    grid = (num_frames, height // 8, width // 8)
    tokens = math.prod(-(-n // p) for n, p in zip(grid, patch, strict=True))
    block = 12 * batch * tokens * net.hidden_size
    decoding = 4 * 4 * 256 * height * width
    return float(size * (weights + max(block, decoding)))


def _check_size(
    num_frames: int, height: int, width: int, fps: int, aspect_ratio: float | None
) -> None:
    sizes = {"num_frames": (num_frames, 1), "height": (height, 16), "width": (width, 16)}
    for name, (value, least) in sizes.items():
        if type(value) is not int or value < least:
            raise ValueError(f"model.{name} must be an integer of at least {least}, got {value!r}")
    if type(fps) is not int or fps < FRAME_INTERVAL or fps % FRAME_INTERVAL:
        raise ValueError(f"model.fps must be a multiple of {FRAME_INTERVAL}, got {fps!r}")
    number = type(aspect_ratio) in (int, float)
    if aspect_ratio is not None and not (number and aspect_ratio > 0):
        raise ValueError(
            f"model.aspect_ratio must be a positive number or null, got {aspect_ratio!r}"
        )


class VideoDenoiser:
    """STDiT2 with Open-Sora's guidance as a `Denoiser`."""

    def __init__(self, net: nn.Module, scale: float, guided_channels: int | None):
        self.net, self.scale, self.guided_channels = net, scale, guided_channels

    def __call__(self, x: Tensor, t: float, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([x, x]) if self.scale != 1 else x
        steps = torch.full((len(inputs),), int(t), device=x.device)
        output = self.net(inputs, steps, **condition)
        if self.scale != 1:
            given, without = output.chunk(2)
            n = x.shape[1] if self.guided_channels is None else self.guided_channels
            led = without[:, :n] + self.scale * (given[:, :n] - without[:, :n])
            output = torch.cat([led, given[:, n:]], dim=1)
        eps, v = output.to(x.dtype).chunk(2, dim=1)
        return eps, v


def condition(
    net: STDiT2,
    y: Tensor,
    mask: Tensor,
    info: dict[str, float],
    guided: bool,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """What STDiT2 takes besides x and t: texts first, then as often the learned empty caption.

    The empty caption is cut to the length of the prompt by the same mask, as in the original.
    """
    dtype = net.y_embedder.y_embedding.dtype
    y = y.to(device, dtype)
    if guided:
        y = torch.cat([y, net.y_embedder.y_embedding[None, None].expand(len(y), 1, -1, -1)])
    numbers = {key: torch.tensor([float(v)], device=device).to(dtype) for key, v in info.items()}
    return {"y": y, "mask": mask.to(device), **numbers}


@torch.no_grad()
def decode(
    vae: Any, latents: Tensor, dtype: torch.dtype, micro_batch: int = 4
) -> NDArray[np.uint8]:
    """Latents [B, 4, T, h, w] -> videos uint8 [B, T, H, W, 3], a few frames at a time."""
    frames = latents.to(dtype).transpose(1, 2).flatten(0, 1) / 0.18215
    parts = [vae.decode(part, return_dict=False)[0] for part in frames.split(micro_batch)]
    videos = to_uint8(torch.cat(parts))
    return videos.reshape(len(latents), -1, *videos.shape[1:])


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded in the tensor's dtype as the original."""
    x = (frames.clamp(-1, 1) + 1) / 2
    x = (x * 255 + 0.5).clamp(0, 255).permute(0, 2, 3, 1)
    return x.to("cpu", torch.uint8).numpy()


def load_stdit2(
    id: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device | str,
    untrained: bool,
) -> tuple[STDiT2, str]:
    """(network in eval mode, SHA-256 of its file); random numbers if `untrained`."""
    options = {} if untrained and not Path(id).is_dir() else network_options(id, revision)
    with torch.device("meta"):
        net = STDiT2(**options).to(dtype)
    if untrained:
        net = net.to_empty(device=device)
        for tensor in net.state_dict().values():
            nn.init.normal_(tensor, std=0.02)
        return net.eval().requires_grad_(False), "untrained"
    path = find(id, WEIGHTS, revision, "model.id")
    load_weights(net, path, device, f"fetch {id} again")
    return net.eval().requires_grad_(False), file_sha256(path)


def network_options(id: str, revision: str | None) -> dict[str, Any]:
    """The options of STDiT2 that config.json states; what else it holds changes no number."""
    path = find(id, "config.json", revision, "model.id")
    try:
        stated = json.loads(path.read_text())
        options = {key: stated[key] for key in signature(STDiT2).parameters if key in stated}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no model config ({error}): fetch {id} again") from None
    if "patch_size" in options:
        options["patch_size"] = tuple(options["patch_size"])
    return options


def load_vae(
    id: str, dtype: torch.dtype, device: torch.device | str, untrained: bool
) -> tuple[Any, str]:
    """(AutoencoderKL, SHA-256 of its file): Stable Diffusion's image VAE."""
    from diffusers import AutoencoderKL

    if untrained:
        return None, ""
    try:
        vae = AutoencoderKL.from_pretrained(id, dtype=dtype)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"cannot load the VAE {id} ({reason}): check the network, or give another hub id or a "
            "local folder as model.vae=..."
        ) from None
    digest = hashlib.sha256()
    for key, value in sorted(vae.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return vae.to(device).eval(), digest.hexdigest()


def find(id: str, name: str, revision: str | None, option: str) -> Path:
    """A file of a local folder or of a hub repository, fetched once."""
    from huggingface_hub import hf_hub_download

    if Path(id).is_dir():
        if not (Path(id) / name).is_file():
            raise FileNotFoundError(f"{id} has no {name}: give a folder that has it as {option}")
        return Path(id) / name
    try:
        return Path(hf_hub_download(id, name, revision=revision))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"cannot load {id} ({reason}): check the network, or give another hub id or a local "
            f"folder as {option}=..."
        ) from None
