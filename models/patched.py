"""Small ADM U-Nets on patches of pixels: the networks that are embedded or trained here."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from files.media import Images
from files.whole import file_sha256
from models.adm.networks import Options, UNet
from models.backbone import Backbone, ImageNetwork, optimized, to_uint8
from models.weights import dtype_named, load_weights
from sampling import Schedule
from sampling.options import check_options, check_types, kinds_of

# Images: with fewer a thread spends its time on calls, of which Python makes one at a time.
SLICE = 16


class PatchUNet(nn.Module):
    """An ADM U-Net that sees `patch` x `patch` pixels as channels of one position.

    Pixel-unshuffling only permutes pixels, so the diffusion is unchanged, while a CPU does
    far less memory traffic per call.  Where the U-Net's down-sampling needs it, the image is
    padded with zeros inside the network and the output cropped.

    forward: x [B, channels, H, W], t [B], y [B] -> [B, 2 * channels, H, W], eps, then variance
    values.
    """

    def __init__(self, patch: int, channels: int = 1, **unet_options: Any):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.multiple = patch * 2 ** (len(unet_options["channel_mult"]) - 1)
        self.unet = UNet(in_channels=channels * patch**2, **unet_options)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        right, bottom = -width % self.multiple, -height % self.multiple
        x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        out = self.unet(F.pixel_unshuffle(x, self.patch), t, y)
        out = torch.cat([F.pixel_shuffle(half, self.patch) for half in out.chunk(2, 1)], 1)
        return out[..., bottom // 2 : bottom // 2 + height, right // 2 : right // 2 + width]


class InThreads(nn.Module):
    """A network that looks at slices of its batch in threads of one core each.

    Images are so small here that the cores, sharing every single operation, would mostly wait for
    each other: the more so where another program is busy on one of them.
    """

    def __init__(self, net: nn.Module, threads: int):
        super().__init__()
        self.net, self.threads = net, threads
        # One thread for an operation settles it for threads to come, too, which shall have what
        # they had: it is set back when all of ours are there.
        self.pool = ThreadPoolExecutor(threads, "network", _one_thread_an_operation)
        all_there = Barrier(threads)
        list(self.pool.map(lambda _: all_there.wait(), range(threads)))
        torch.set_num_threads(threads)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        count = min(self.threads, math.ceil(len(x) / SLICE))
        if count == 1:  # a small batch: let all threads work at each operation
            return self.net(x, t, y)
        slices = [part.chunk(count) for part in (x, t, y)]
        return torch.cat(list(self.pool.map(self.net, *slices)))


def _one_thread_an_operation() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # settles it for this thread: torch looks once a thread, when first asked


def patched_unet(embedded: Mapping[str, Any], changes: Mapping[str, Any]) -> PatchUNet:
    """The network of the embedded options, some of them changed.

    Raises ValueError for an unknown option, and for values that make no network.
    """
    check_options("model.net", changes, net_kinds())
    check_types("model.net.", changes, net_kinds())
    try:
        return PatchUNet(**{**embedded, **changes})
    except Exception as error:  # whatever torch says of such numbers
        raise ValueError(
            f"model.net={dict(changes)} makes no network ({error}): change it"
        ) from None


def net_kinds() -> dict[str, Any]:
    """The options of such a network, and what each may be."""
    kinds = {"patch": int, "channels": int} | kinds_of(Options)
    del kinds["in_channels"]  # follows from these two
    return kinds


def weights_file(folder: Path, checkpoint: str, remedy: str) -> Path:
    """`checkpoint` is a name of `folder`, or a path; either may do without .safetensors.

    Raises FileNotFoundError with the remedy.
    """
    for path in (
        folder / f"{checkpoint}.safetensors",
        Path(checkpoint),
        Path(f"{checkpoint}.safetensors"),
    ):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no checkpoint {checkpoint!r}: {remedy}")


def patched_backbone(
    net: PatchUNet,
    path: Path,
    image_size: int,
    *,
    clip: bool = True,
    precision: str = "fp32",
    channels_last: bool | None = None,
    compile: bool = False,
    device: torch.device | str = "cpu",
) -> Backbone:
    """`net` with the weights of a file, ready to sample images of `image_size` x `image_size`.

    T = 1000, linear schedule.  `precision` is that of the U-Net's torso (see `UNet.set_torso`);
    what goes in and comes out, and so the solver's state, stays float32.  `channels_last` is that
    layout of memory; None takes it on a CPU, where it is faster for these networks.  Raises ValueError (with
    the remedy) for an unknown precision and for a file that is damaged or does not fit.
    """
    net.unet.set_torso(dtype_named(precision))
    load_weights(net, path, device)
    on_cpu, threads = torch.device(device).type == "cpu", torch.get_num_threads()
    channels_last = on_cpu if channels_last is None else channels_last
    network = optimized(net.eval().requires_grad_(False), channels_last, compile)
    if on_cpu and threads > 1 and not compile:
        network = InThreads(network, threads)
    return Backbone(
        network=ImageNetwork(network),
        schedule=Schedule.linear(),
        shape=(net.channels, image_size, image_size),
        num_classes=net.unet.num_classes,
        clip=clip,
        sha256=file_sha256(path),
        decode=to_uint8,
        media=Images((image_size, image_size, net.channels)),
        device=torch.device(device),
    )
