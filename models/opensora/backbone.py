"""Open-Sora 1.1 as a `Backbone`: text to video."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from files.media import Videos
from files.whole import file_sha256
from models.backbone import Backbone, guided, times
from models.hub import check_filled, hub_file, remedied
from models.opensora.stdit2 import STDiT2
from models.weights import config_digest, dtype_named, load_weights, randomize, state_digest
from sampling import Schedule

if TYPE_CHECKING:
    from models.opensora.text import TextCache

FPS_OF_IMAGES = 120  # what the network is told of a single frame
FRAME_INTERVAL = 3  # of the training's frames every third: 24 a second are saved as 8
VAE_FACTOR = 0.18215  # latents are the VAE's times this
VAE_PARAMETERS = 83_653_863


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
    fetch: bool = True,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Open-Sora 1.1, ready to sample `prompts`.

    `id` is a hub id or a folder; `precision` is that of network and VAE, the text encoder is
    float32.  Videos are those of `Video`, guidance that of `VideoNetwork`.  To measure speed,
    `untrained` takes random weights, and texts are zeros without `encode`; without `fetch` nothing is
    asked of the hub.  Raises
    FileNotFoundError or ValueError, with the remedy, for what is missing or makes no video.
    """
    video = Video(num_frames, height, width, fps, aspect_ratio)
    dtype = dtype_named(precision)
    texts, is_guided = tuple(prompts), guidance_scale != 1
    cache = None
    if encode and not untrained:
        # Imported here because it takes diffusers and more, which the network itself needs not.
        from models.opensora.text import TextCache

        cache = TextCache(Path(text_cache), text_encoder)
        cache.fill(texts, device)  # before the network is in memory
    net, sha256 = load_stdit2(id, revision, dtype, device, untrained, fetch)
    parts = {}
    if not untrained:
        decoder, vae_sha256 = load_vae(vae, dtype, device, fetch)
        parts = {"vae_config": config_digest(decoder.config)}
        parts |= {"network_config": config_digest(network_options(id, revision, fetch))}
        sha256 = hashlib.sha256((sha256 + vae_sha256).encode()).hexdigest()
    return Backbone(
        network=VideoNetwork(net, guidance_scale, guided_channels),
        schedule=Schedule.linear(),
        shape=(4, num_frames, height // 8, width // 8),
        num_classes=len(texts),
        clip=False,
        sha256=sha256,
        decode=lambda latents: decode(decoder, latents, dtype),
        media=Videos(video.pixels, fps // FRAME_INTERVAL, bit_rate),
        device=torch.device(device),
        prompts=texts,
        embed=lambda labels: condition(
            net, cache, [texts[i] for i in labels.tolist()], video, is_guided
        ),
        evaluations_per_call=1 + is_guided,
        memory=lambda batch: peak_memory(net, (1 + is_guided) * batch, video),
        facts=parts,
        encoding=cache.digest(texts) if cache else None,
    )


@dataclass(frozen=True)
class Video:
    """What a video is meant to be, and what the network is told of it.

    `num_frames` frames of about `height` x `width` pixels, rounded down to the VAE's grid.  `fps`
    is three times that of the file, `aspect_ratio` by default height / width as in the original.
    Raises ValueError, naming the option, for what is no video.
    """

    num_frames: int
    height: int
    width: int
    fps: int = 24
    aspect_ratio: float | None = None

    def __post_init__(self) -> None:
        least = {"num_frames": 1, "height": 16, "width": 16}
        for name, value in asdict(self).items():
            if name in least and (type(value) is not int or value < least[name]):
                raise ValueError(
                    f"model.{name} must be an integer of at least {least[name]}, got {value!r}"
                )
        fps, ratio = self.fps, self.aspect_ratio
        if type(fps) is not int or fps < FRAME_INTERVAL or fps % FRAME_INTERVAL:
            raise ValueError(f"model.fps must be a multiple of {FRAME_INTERVAL}, got {fps!r}")
        if ratio is not None and not (type(ratio) in (int, float) and ratio > 0):
            raise ValueError(f"model.aspect_ratio must be a positive number or null, got {ratio!r}")

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """The shape of the decoded video, (T, H, W, 3): the VAE's grid is 8 pixels."""
        return self.num_frames, self.height // 8 * 8, self.width // 8 * 8, 3

    @property
    def told(self) -> dict[str, float]:
        """What the network is told of it."""
        return {
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "ar": self.aspect_ratio or self.height / self.width,
            "fps": FPS_OF_IMAGES if self.num_frames == 1 else self.fps,
        }


def load_stdit2(
    id: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device | str,
    untrained: bool,
    fetch: bool = True,
) -> tuple[STDiT2, str]:
    """(network in eval mode, SHA-256 of its file); random numbers if `untrained`."""
    options = {} if untrained and not Path(id).is_dir() else network_options(id, revision, fetch)
    with torch.device("meta"):
        net = STDiT2(**options).to(dtype)
    if untrained:
        return randomize(net, device), "untrained"
    path = hub_file(id, "model.safetensors", revision, "model.id", fetch)
    load_weights(net, path, device, f"fetch {id} again")
    return net.eval().requires_grad_(False), file_sha256(path)


def network_options(id: str, revision: str | None, fetch: bool = True) -> dict[str, Any]:
    """The options of STDiT2 that config.json states; what else it holds changes no number."""
    path = hub_file(id, "config.json", revision, "model.id", fetch)
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        options = {key: stated[key] for key in signature(STDiT2).parameters if key in stated}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no model config ({error}): fetch {id} again") from None
    if "patch_size" in options:
        options["patch_size"] = tuple(options["patch_size"])
    return options


def load_vae(
    id: str, dtype: torch.dtype, device: torch.device | str, fetch: bool = True
) -> tuple[Any, str]:
    """(AutoencoderKL, SHA-256 of its weights): Stable Diffusion's image VAE."""
    from diffusers import AutoencoderKL

    with remedied(id, "model.vae", "the VAE "):
        vae, info = AutoencoderKL.from_pretrained(
            id, dtype=dtype, output_loading_info=True, local_files_only=not fetch
        )
    check_filled(info["missing_keys"], id, "model.vae", "the VAE ")
    return vae.to(device).eval(), state_digest(vae.state_dict())


def condition(
    net: STDiT2, cache: "TextCache | None", texts: list[str], video: Video, guided: bool
) -> dict[str, Tensor]:
    """What STDiT2 takes besides x and t: texts first, then as often the learned empty caption.

    The empty caption is cut to the length of the prompt by the same mask, as in the original, which
    also rounds what the network is told of the video to the network's dtype.
    """
    empty = net.y_embedder.y_embedding
    if cache:
        y, mask = cache.batch(texts)
    else:
        y = torch.zeros(len(texts), 1, *empty.shape)
        mask = torch.ones(len(texts), len(empty), dtype=torch.int64)
    y = y.to(empty)
    if guided:
        y = torch.cat([y, empty[None, None].expand(len(y), 1, -1, -1)])
    told = {key: torch.tensor([float(v)]).to(empty) for key, v in video.told.items()}
    return {"y": y, "mask": mask.to(empty.device), **told}


class VideoNetwork:
    """STDiT2 with Open-Sora's guidance as a `Network`; the condition is that of `condition`.

    Guidance of scale s is u + s (c - u) in the first `guided_channels` of eps (None: in all); the
    other channels and the variance are those with prompt.
    """

    def __init__(self, net: nn.Module, scale: float, guided_channels: int | None):
        self.net, self.scale, self.guided_channels = net, scale, guided_channels

    def __call__(self, x: Tensor, t: float, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([x, x]) if self.scale != 1 else x
        steps = times(t, len(inputs), x.device)
        output = self.net(inputs, steps, **condition)
        if self.scale != 1:
            prompted, empty = output.chunk(2)
            n = x.shape[1] if self.guided_channels is None else self.guided_channels
            output = guided(prompted, empty, self.scale, n)
        eps, v = output.to(x.dtype).chunk(2, dim=1)
        return eps, v


@torch.no_grad()
def decode(
    vae: Any, latents: Tensor, dtype: torch.dtype, micro_batch: int = 4
) -> NDArray[np.uint8]:
    """Latents [B, 4, T, h, w] -> videos uint8 [B, T, H, W, 3], a few frames at a time."""
    frames = latents.to(dtype).transpose(1, 2).flatten(0, 1) / VAE_FACTOR
    parts = [vae.decode(part, return_dict=False)[0] for part in frames.split(micro_batch)]
    videos = to_uint8(torch.cat(parts))
    return videos.reshape(len(latents), -1, *videos.shape[1:])


def to_uint8(frames: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded in the tensor's dtype as the original."""
    x = (frames.clamp(-1, 1) + 1) / 2
    x = (x * 255 + 0.5).clamp(0, 255).permute(0, 2, 3, 1)
    return x.to("cpu", torch.uint8).numpy()


def peak_memory(net: STDiT2, batch: int, video: Video) -> float:
    """Bytes on the device while sampling `batch` latents at once, estimated from the largest tensors.

    Weights, and the larger of a block's activations (12 times its tokens: residual, normed and
    modulated, the MLP's hidden layer twice) and of four frames in the VAE's widest layers.
    Attention is taken to run without its matrix in memory.
    """
    size = net.y_embedder.y_embedding.element_size()
    weights = sum(value.numel() for value in net.state_dict().values()) + VAE_PARAMETERS
    grid = (video.num_frames, video.height // 8, video.width // 8)
    tokens = math.prod(-(-n // p) for n, p in zip(grid, net.patch_size, strict=True))
    block = 12 * batch * tokens * net.hidden_size
    decoding = 4 * 4 * 256 * video.height * video.width
    return float(size * (weights + max(block, decoding)))
