"""The networks that are timed, with random weights: of the published sizes, or smaller on a CPU.

A subject makes network calls of any batch size, as sampling makes them: with guidance where the
model's config has it, which evaluates the network twice.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from experiments.check.machine import module_of, parameters_of
from models.backbone import ImageNetwork, optimized
from models.weights import dtype_named, randomize
from sampling.denoise import Network

T = 500.0  # where the network is called; none takes longer elsewhere


class Mode(NamedTuple):
    """What is done to a network to make it faster."""

    channels_last: bool = False
    compiled: bool = False
    graphed: bool = False


class Subject(NamedTuple):
    """A network to time: `call(batch)` returns what makes one call of it."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    call: Callable[[int], Callable[[], Any]]
    evaluations: int = 1


# (precision, mode, device, whether in a size for a CPU) -> what is timed
Builder = Callable[[str, Mode, torch.device, bool], Subject]


def _subject(
    name: str,
    network: Network,
    net: nn.Module,
    shape: tuple[int, ...],
    condition: Callable[[int], Any],
    device: torch.device,
    evaluations: int = 1,
) -> Subject:
    def call(batch: int) -> Callable[[], Any]:
        x, given = torch.randn(batch, *shape, device=device), condition(batch)
        return lambda: network(x, T, given)

    return Subject(name, shape, parameters_of(net), call, evaluations)


# --- images --------------------------------------------------------------------------------------


def digits(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
    """The embedded model, as it is."""
    from models.digits import load

    backbone = load(
        precision=precision, channels_last=mode.channels_last, compile=mode.compiled, device=device
    )
    net = module_of(backbone)
    assert net is not None
    return _subject("digits", backbone.network, net, backbone.shape, _labels(device, 10), device)


def adm(card: str) -> Builder:
    """A published ADM U-Net; for a CPU of 64 channels and for 64 x 64 pixels."""

    def build(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
        from models.adm.backbone import load_network
        from models.adm.cards import read_card

        entry, name = read_card(card), card
        if small:
            entry = replace(entry, network={**entry.network, "num_channels": 64}, image_size=64)
            name = f"{card} with 64 channels"
        net, _ = load_network(entry, None, precision, device)
        parameters = net
        network = ImageNetwork(optimized(net, mode.channels_last, mode.compiled))
        shape = (3, entry.image_size, entry.image_size)
        return _subject(name, network, parameters, shape, _labels(device, 1000), device)

    return build


def _labels(device: torch.device, classes: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: torch.arange(batch, device=device) % classes


def _cast(net: Any, precision: str) -> Any:
    """As any module is: the `to` of diffusers warns of weights that it would keep in float32."""
    nn.Module.to(net, dtype_named(precision))
    return net


# The configs of Stable Diffusion 2.1-base's networks, as far as diffusers' defaults are others.
SD21_UNET = {
    "sample_size": 64,
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 768,
}
SMALL_UNET = {"attention_head_dim": [2, 4, 8, 8], "block_out_channels": [64, 128, 256, 256]}
SMALL_VAE = {"block_out_channels": [32, 64, 128, 128]}
TOKENS, SD_GUIDANCE = 77, 7.5


def sd21(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
    """Stable Diffusion 2.1's U-Net at guidance 7.5; for a CPU a fifth as wide, 256 x 256 pixels."""
    from diffusers import UNet2DConditionModel

    from models.stable_diffusion.backbone import TextNetwork

    options = SD21_UNET | (SMALL_UNET if small else {})
    with torch.device("meta"):
        net = UNet2DConditionModel(**options)
    net = randomize(_cast(net, precision), device)
    network = TextNetwork(optimized(net, mode.channels_last, mode.compiled), SD_GUIDANCE)

    def condition(batch: int) -> dict[str, torch.Tensor]:
        texts = torch.zeros(2 * batch, TOKENS, 1024, device=device, dtype=net.dtype)
        return {"encoder_hidden_states": texts}

    name, size = ("sd21 with 64 channels", 32) if small else ("sd21", 64)
    return _subject(name, network, net, (4, size, size), condition, device, evaluations=2)


def sd21_vae(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
    """The decoder of Stable Diffusion's VAE, an image a call as the pipeline's slicing has it."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        net = AutoencoderKL(**(SD_VAE | (SMALL_VAE if small else {})))
    net = randomize(_cast(net, precision), device)
    net.enable_slicing()
    decoder = net.decoder
    net.decoder = optimized(decoder, mode.channels_last, mode.compiled)
    name, size = ("sd21's VAE with 32 channels", 32) if small else ("sd21's VAE", 64)

    def network(x: torch.Tensor, t: float, condition: Any) -> Any:
        return net.decode(x.to(net.dtype), return_dict=False)[0], None

    return _subject(name, network, net, (4, size, size), lambda batch: None, device)


# --- videos --------------------------------------------------------------------------------------

SMALL_STDIT2 = {"hidden_size": 288, "depth": 8, "num_heads": 4}
STDIT2_GUIDANCE, GUIDED_CHANNELS = 7.0, 3


def opensora11(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
    """STDiT2-XL for 16 frames of 240 x 426 at guidance 7; for a CPU a quarter as wide, 4 frames."""
    from models.opensora.backbone import Video, VideoNetwork, condition
    from models.opensora.stdit2 import STDiT2

    video = Video(4, 120, 213) if small else Video(16, 240, 426)
    options: dict[str, Any] = SMALL_STDIT2 if small else {}
    with torch.device("meta"):
        net = STDiT2(**options).to(dtype_named(precision))
    net = randomize(net, device)
    network = VideoNetwork(optimized(net, False, mode.compiled), STDIT2_GUIDANCE, GUIDED_CHANNELS)
    return _subject(
        "opensora11 with width 288" if small else "opensora11",
        network,
        net,
        (4, video.num_frames, video.height // 8, video.width // 8),
        lambda batch: condition(net, None, [""] * batch, video, True),
        device,
        evaluations=2,
    )


# --- evaluation ----------------------------------------------------------------------------------


def inception(precision: str, mode: Mode, device: torch.device, small: bool) -> Subject:
    """torch-fidelity's Inception on images of 256 x 256 pixels, as FID sees them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:
            """The constructor insists on a file; this one is empty."""

    with TemporaryDirectory() as scratch:
        path = Path(scratch, "none.pth")
        torch.save({}, path)
        net = Untrained(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
    net = net.to(device).eval().requires_grad_(False)
    shape = (3, 256, 256)
    body = optimized(net, mode.channels_last, mode.compiled)

    def call(batch: int) -> Callable[[], Any]:
        images = torch.randint(0, 256, (batch, *shape), device=device, dtype=torch.uint8)
        return lambda: body(images)

    return Subject("inception", shape, parameters_of(net), call)


BUILDERS: dict[str, Builder] = {
    "digits": digits,
    "adm_imagenet": adm("adm_imagenet"),
    "adm_imagenet128": adm("adm_imagenet128"),
    "adm_imagenet64": adm("adm_imagenet64"),
    "sd21": sd21,
    "sd21_vae": sd21_vae,
    "opensora11": opensora11,
    "inception": inception,
}
