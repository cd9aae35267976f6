"""Networks that turn images into the features and logits that scores are made of.

`extractor_named` makes them by name.  Nothing here needs Hydra, diffusers or the models of this
repository: the classifiers of these are imported when they are asked for.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from eval import networks
from eval.features import Extracted, Extractor, Images, pictures
from eval.networks import CLEAN_MODES, File
from eval.own import TIMM, TimmExtractor, function_extractor
from eval.preprocessing import NetworkInput
from models.weights import state_digest

__all__ = ["Extracted", "Extractor", "Images"]  # of eval.features, for those who look here


class PixelExtractor(Extractor):
    """The pixels themselves, in [-1, 1]: what samplers work on, for comparison with theory.

    Takes images of one size, which need not be 28 x 28.
    """

    name = "pixels"
    batch_size = 500
    num_features = 0  # as many as the images have; FID itself refuses too few samples

    def __init__(self, device: str = "cpu"):
        super().__init__(hashlib.sha256(b"pixels / 127.5 - 1, row by row").hexdigest(), device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.permute(0, 2, 3, 1).flatten(1).float() / 127.5 - 1}


class InceptionExtractor(Extractor):
    """torch-fidelity's port of the original FID Inception, in one pass over the images.

    - `features`: the 2048 pool features;
    - `logits`: 1008, without the bias, as the Inception score does everywhere, and in another
      order than ImageNet's 1000 labels;
    - `spatial`: the first 7 channels of mixed_6/conv (17 x 17 pixels, flattened in the order
      row, column, channel, as guided-diffusion's evaluator does): 2023, for sFID.

    Without `weights`, the published file of 96 MB is fetched once into the folder of downloads.
    Raises FileNotFoundError when the file is missing or cannot be fetched, ValueError when it is
    damaged.
    """

    name = "inception"
    num_logits = 1008

    def __init__(self, weights: File = None, device: str = "cpu"):
        # Imported here because it takes more than a second, which digits need not pay.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.net = networks.torch_fidelity_network(
            FeatureExtractorInceptionV3,
            ["2048", "logits_unbiased"],
            networks.INCEPTION,
            weights,
        ).to(device)
        # TensorFlow's mixed_6/conv is the 1x1 branch of Mixed_6d, after batch norm and ReLU.
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        super().__init__(state_digest(self.net.state_dict()), device)

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(x.expand(-1, 3, -1, -1))
        return {"features": features, "logits": logits, "spatial": self._spatial}


class TorchFidelityExtractor(Extractor):
    """What torch-fidelity's metrics use by default: Inception, and VGG16 for precision, recall.

    `manifold` are the 4096 features of VGG16's second fully connected layer after ReLU.
    Without weights files, both are fetched once.  Raises as `InceptionExtractor`.
    """

    name = "torch_fidelity"
    num_logits = 1008

    def __init__(self, weights: File = None, vgg16_weights: File = None, device: str = "cpu"):
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

        self.inception = InceptionExtractor(weights, device)
        self.vgg16 = networks.torch_fidelity_network(
            FeatureExtractorVGG16, ["fc2_relu"], networks.VGG16, vgg16_weights
        ).to(device)
        both = self.inception.digest + state_digest(self.vgg16.state_dict())
        super().__init__(hashlib.sha256(both.encode()).hexdigest(), device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.inception.forward(x)
        (manifold,) = self.vgg16(x.expand(-1, 3, -1, -1))
        return {"features": seen["features"], "logits": seen["logits"], "manifold": manifold}


class CleanExtractor(Extractor):
    """clean-fid's features (Parmar et al. 2022): 2048, in one of its three modes.

    `clean` resizes with an antialiased bicubic filter, `legacy_pytorch` and `legacy_tensorflow`
    as the libraries of that name used to.  Without `weights`, the published network is fetched
    once; that of all modes but `legacy_pytorch` is a program, and no other is run.  Raises
    FileNotFoundError when it cannot be had, ValueError for another mode or file.
    """

    def __init__(self, mode: str, weights: File = None, device: str = "cpu"):
        if mode not in CLEAN_MODES:
            raise ValueError(f"unknown clean-fid mode {mode!r}: choose {', '.join(CLEAN_MODES)}")
        from cleanfid.resize import build_resizer

        self.name = mode
        self.resize = build_resizer(mode)
        self.net = networks.clean_network(mode, weights).to(device).eval()
        super().__init__(state_digest(self.net.state_dict()), device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        resized = np.stack([self.resize(picture) for picture in pictures(x)])
        x = torch.from_numpy(resized).permute(0, 3, 1, 2).float().to(self.device)
        if self.name == "legacy_pytorch":
            return {"features": self.net(x / 255)[0].flatten(1)}
        return {"features": self.net(x)}


class DinoExtractor(Extractor):
    """DINOv2's ViT-L/14 as dgm-eval has it (Stein et al. 2023): its class token, 1024 numbers.

    Images are stretched to 224 x 224 by Pillow's bicubic filter, and nothing is normalised afterwards.
    Neither torch-fidelity's `dinov2-vit-l-14` (bilinear) nor EDM2's (not rounded) compares.  Without
    `weights`, the published file of 1.2 GB is fetched once.  Raises as `InceptionExtractor`.
    """

    name = "dinov2"

    def __init__(self, weights: File = None, device: str = "cpu"):
        net, digest = networks.dinov2_network(weights)
        self.net: Any = net.to(device)
        self.num_features = self.net.num_features
        self.input = NetworkInput(networks.DINOV2_SIZE)
        self.facts = {"model": "dinov2_vitl14", **self.input.facts}
        super().__init__(digest, device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.net(self.input(pictures(x)).to(self.device))}


class ClipExtractor(Extractor):
    """A CLIP model of open-clip-torch: features of images and of texts, each of length 1.

    `model` is a name of open_clip or a JSON file like those of its model_configs; `pretrained` one
    of that model's tags, fetched once into `cache_dir` (null: the hub's cache), or a file of weights.
    Images are prepared as the model's own transform does, at its image size.  Raises ValueError
    for an unknown model or tag, or weights that do not fit, FileNotFoundError when they cannot be
    had.
    """

    batch_size = 64

    def __init__(self, model: str, pretrained: str, cache_dir: File = None, device: str = "cpu"):
        import open_clip

        model = networks.clip_model(model)
        net, self.prepare = networks.clip_network(model, pretrained, cache_dir)
        self.net = net.to(device).eval()
        self.tokenize = open_clip.get_tokenizer(model)
        size = self.net.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        tag = Path(pretrained).stem if Path(pretrained).is_file() else pretrained
        self.facts = {"model": model, "pretrained": tag, "image_size": size}
        self.name = re.sub(r"[^\w.-]", "-", f"clip-{model}-{tag}-{size}")
        self.num_features = int(open_clip.get_model_config(model)["embed_dim"])
        super().__init__(state_digest(self.net.state_dict()), device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        prepared = torch.stack([self.prepare(Image.fromarray(picture)) for picture in pictures(x)])
        return {"features": self.net.encode_image(prepared.to(self.device), normalize=True)}

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Features float32 [N, F] of texts, cut off where the model's context ends."""
        parts = []

        def encode(part: slice) -> None:
            tokens = self.tokenize(list(prompts[part])).to(self.device)
            parts.append(self.net.encode_text(tokens, normalize=True).float().cpu().numpy())

        self._in_batches(len(prompts), batch_size, encode, "texts")
        return np.concatenate(parts)


def _classifier(name: str, weights: File = None, device: str = "cpu") -> Extractor:
    """The classifier of a model of this repository, which the wheel is without."""
    from eval.classifiers import CLASSIFIERS

    return CLASSIFIERS[name](weights, device)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "digits": partial(_classifier, "digits"),
    "cifar10": partial(_classifier, "cifar10"),
    "pixels": PixelExtractor,
    "inception": InceptionExtractor,
    "torch_fidelity": TorchFidelityExtractor,
    **{mode: partial(CleanExtractor, mode) for mode in CLEAN_MODES},
    "dinov2": DinoExtractor,
    "clip": ClipExtractor,
}


# Every maker there is, for what options may be.
MAKERS: tuple[Callable[..., Extractor], ...] = (
    *EXTRACTORS.values(),
    TimmExtractor,
    function_extractor,
)
# Files of weights that a protocol names, and an extractor that is put in its place has no use for.
LEFT_OUT = ("weights", "vgg16_weights")


def extractor_named(
    name: str, device: str = "cpu", batch_size: int | None = None, **options: Any
) -> Extractor:
    """The extractor of that name, timm/NETWORK or MODULE:FUNCTION, with those of the options that it takes.

    A file of weights that only others take is left out: metrics=torch_fidelity names VGG16's, and
    metrics.extractor=inception has no use for them.  Raises ValueError for an unknown name or an
    option that it does not take, and as the extractor does.
    """
    maker = _maker(name)
    every = set().union(*map(_parameters, MAKERS))
    if unknown := sorted(set(options) - every):
        raise ValueError(f"no extractor takes metrics.{unknown[0]}: remove it")
    taken = _parameters(maker)
    options = {key: value for key, value in options.items() if value is not None or key in taken}
    others = sorted(set(options) - taken - set(LEFT_OUT))
    if others:
        raise ValueError(
            f"the extractor {name} takes no metrics.{others[0]}: leave it out, or choose another"
        )
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ValueError(f"metrics.batch_size must be an integer of at least 1, got {batch_size!r}")
    extractor = maker(device=device, **{k: v for k, v in options.items() if k in taken})
    if batch_size:
        extractor.batch_size = batch_size
    return extractor


def _maker(name: str) -> Callable[..., Extractor]:
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    if name.startswith(TIMM):
        return partial(TimmExtractor, name.removeprefix(TIMM))
    if ":" in name:
        return partial(function_extractor, name)
    raise ValueError(
        f"unknown extractor {name!r}: choose one of {', '.join(EXTRACTORS)}, timm/NETWORK or "
        "MODULE:FUNCTION as metrics.extractor"
    )


def _parameters(extractor: Callable[..., Extractor]) -> set[str]:
    return set(inspect.signature(extractor).parameters) - {"device"}
