"""Networks that turn images into the features and logits that scores are made of.

Numbers from different extractors never compare.  Each one therefore has a name and a
`digest` of its weights, and both are stored with everything computed from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from models.digits.networks import DigitsClassifier

Images = NDArray[np.uint8]

URL_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
DIGITS_WEIGHTS = Path(__file__).parents[1] / "models" / "digits" / "classifier.safetensors"


class Extracted(NamedTuple):
    """What an extractor saw, float32; all but the features may be lacking.

    `features` [N, F] are for FID and KID, `logits` [N, K] for the Inception score, `spatial`
    [N, S] for sFID.  `manifold` [N, M] are for precision and recall where these use other
    features than FID does.  `text` [N, F] are features of the samples' prompts, for the CLIP score.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None
    spatial: NDArray[np.float32] | None = None
    manifold: NDArray[np.float32] | None = None
    text: NDArray[np.float32] | None = None


class Extractor(Protocol):
    """Images uint8 [N, H, W, C] -> features and logits; `digest` identifies the weights.

    `knows_labels` says that logit k is for the label k that samples are made for.  The images may
    be any sequence with `shape` and `dtype` whose slices are such arrays.  `batch_size` images are
    seen at a time.
    """

    name: str
    batch_size: int
    num_features: int
    digest: str
    knows_labels: bool

    def __call__(self, images: Images, batch_size: int = ...) -> Extracted: ...


class DigitsExtractor:
    """The embedded digits classifier: 64 features, 10 logits.

    Takes uint8 [N, 28, 28, 1], or the same grey image in three channels.  Raises
    FileNotFoundError without its weights, ValueError for any other images.
    """

    name = "digits"
    batch_size = 500
    num_features = 64
    knows_labels = True

    def __init__(self, weights: Path = DIGITS_WEIGHTS, device: str = "cpu"):
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights} is missing: make it with `python -m scripts.train classifier`"
            )
        self.net = DigitsClassifier()
        try:
            self.net.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError):
            raise ValueError(
                f"{weights} does not hold the digits classifier or is damaged: make it with "
                "`python -m scripts.train classifier`"
            ) from None
        self.net.eval().to(device)
        self.device = device
        self.digest = _digest(self.net)

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        if images.shape[1:3] != (28, 28):
            raise ValueError(f"digits features need 28 x 28 images, got {images.shape[1:]}")
        if images.shape[3] == 3 and not (images == images[..., :1]).all():
            raise ValueError("digits features need grey images, got colours")
        return _extract(self._forward, images[..., :1], batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(x.float() / 127.5 - 1)
        return {"features": features, "logits": logits}


class PixelExtractor:
    """The pixels themselves, in [-1, 1]: what samplers work on, for comparison with theory.

    Takes images of one size, which need not be 28 x 28.
    """

    name = "pixels"
    batch_size = 500
    num_features = 0  # as many as the images have; FID itself refuses too few samples
    knows_labels = False

    def __init__(self, device: str = "cpu"):
        self.device = device
        self.digest = hashlib.sha256(b"pixels / 127.5 - 1, row by row").hexdigest()

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        return _extract(self._forward, images, batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.permute(0, 2, 3, 1).flatten(1).float() / 127.5 - 1}


class InceptionExtractor:
    """torch-fidelity's port of the original FID Inception, in one pass over the images.

    - `features`: the 2048 pool features;
    - `logits`: 1008, without the bias, as the Inception score does everywhere;
    - `spatial`: the first 7 channels of mixed_6/conv (17 x 17 pixels, flattened in the order
      row, column, channel, as guided-diffusion's evaluator does): 2023, for sFID.

    Without `weights`, the 96 MB file is downloaded once into torch.hub's cache.  Raises
    FileNotFoundError when the file is missing or cannot be downloaded, ValueError when it is
    damaged.
    """

    name = "inception"
    batch_size = 50
    num_features = 2048
    knows_labels = False  # its 1008 classes are in another order than ImageNet's 1000

    def __init__(self, weights: Path | None = None, device: str = "cpu"):
        # Imported here because it takes more than a second, which digits need not pay.
        from torch_fidelity import feature_extractor_inceptionv3 as source

        self.net = _torch_fidelity_network(
            source.FeatureExtractorInceptionV3,
            "inception",
            ["2048", "logits_unbiased"],
            weights,
            source.URL_INCEPTION_V3,
        ).to(device)
        # TensorFlow's mixed_6/conv is the 1x1 branch of Mixed_6d, after batch norm and ReLU.
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self.device = device
        self.digest = _digest(self.net)

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1)

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        return _extract(self.forward, images, batch_size, self.device, self.name)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(x.expand(-1, 3, -1, -1))
        return {"features": features, "logits": logits, "spatial": self._spatial}


class TorchFidelityExtractor:
    """What torch-fidelity's metrics use by default: Inception, and VGG16 for precision, recall.

    `manifold` are the 4096 features of VGG16's second fully connected layer after ReLU.
    Without weights files, both are downloaded once.  Raises as `InceptionExtractor`.
    """

    name = "torch_fidelity"
    batch_size = 50
    num_features = 2048
    knows_labels = False

    def __init__(self, weights: Path | None = None, vgg16: Path | None = None, device: str = "cpu"):
        from torch_fidelity import feature_extractor_vgg16 as source

        self.inception = InceptionExtractor(weights, device)
        self.vgg16 = _torch_fidelity_network(
            source.FeatureExtractorVGG16, "vgg16", ["fc2_relu"], vgg16, URL_VGG16
        ).to(device)
        self.device = device
        both = self.inception.digest + _digest(self.vgg16)
        self.digest = hashlib.sha256(both.encode()).hexdigest()

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        return _extract(self._forward, images, batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.inception.forward(x)
        (manifold,) = self.vgg16(x.expand(-1, 3, -1, -1))
        return {"features": seen["features"], "logits": seen["logits"], "manifold": manifold}


CLEAN_MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")


class CleanExtractor:
    """clean-fid's features (Parmar et al. 2022): 2048, in one of its three modes.

    `clean` resizes with an antialiased bicubic filter, `legacy_pytorch` and `legacy_tensorflow`
    as the libraries of that name used to.  Without `weights`, clean-fid downloads its network
    once.  Raises FileNotFoundError when that fails, ValueError for another mode.
    """

    batch_size = 50
    num_features = 2048
    knows_labels = False

    def __init__(self, mode: str, weights: Path | None = None, device: str = "cpu"):
        if mode not in CLEAN_MODES:
            raise ValueError(f"unknown clean-fid mode {mode!r}: choose {', '.join(CLEAN_MODES)}")
        from cleanfid.inception_pytorch import InceptionV3
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.name = mode
        self.resize = build_resizer(mode)
        source = f"{CLEAN_FILE} elsewhere and pass its path as metrics.weights"
        if mode == "legacy_pytorch":
            source = "pt_inception-2015-12-05-6726825d.pth into torch.hub's cache (hub/checkpoints)"
            if weights is not None:
                raise ValueError(
                    "legacy_pytorch takes no metrics.weights: leave it null, and if there is no "
                    f"network put {source}"
                )
        try:
            if mode == "legacy_pytorch":
                self.net: nn.Module = InceptionV3(output_blocks=[3], resize_input=False)
            else:
                folder = "/tmp" if weights is None else _folder_of(weights)
                self.net = InceptionV3W(
                    folder, download=weights is None, resize_inside=mode == "legacy_tensorflow"
                )
        except OSError as error:
            raise FileNotFoundError(
                f"cannot load clean-fid's Inception ({error}): fetch {source}"
            ) from None
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(
                f"clean-fid's Inception is damaged ({reason}): remove it and fetch {source}"
            ) from None
        self.net = self.net.to(device).eval()
        self.device = device
        self.digest = _digest(self.net)

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        return _extract(self._forward, images, batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        pictures = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([self.resize(picture) for picture in pictures])
        x = torch.from_numpy(resized).permute(0, 3, 1, 2).float().to(self.device)
        if self.name == "legacy_pytorch":
            return {"features": self.net(x / 255)[0].flatten(1)}
        return {"features": self.net(x)}


CLEAN_FILE = "inception-2015-12-05.pt"


def _folder_of(weights: Path) -> str:
    """clean-fid takes the folder of its file, and no other name."""
    if weights.name != CLEAN_FILE or not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing or not named {CLEAN_FILE}")
    return str(weights.parent)


class ClipExtractor:
    """A CLIP model of open-clip-torch: features of images and of texts, each of length 1.

    `model` is a name of open_clip or a JSON file like those of its model_configs; `pretrained` one
    of that model's tags, fetched once into `cache_dir` (null: the hub's cache), or a file of weights.
    Images are prepared as the model's own transform does, at its image size.  Raises ValueError
    for an unknown model or tag, or weights that do not fit, FileNotFoundError when they cannot be
    had.
    """

    batch_size = 64
    knows_labels = False

    def __init__(
        self, model: str, pretrained: str, cache_dir: Path | None = None, device: str = "cpu"
    ):
        import open_clip

        name = model
        if model.endswith(".json"):
            if not Path(model).is_file():
                raise FileNotFoundError(f"no model config at {model}: give one of open_clip's form")
            open_clip.add_model_config(Path(model))
            name = Path(model).stem
        local = Path(pretrained).is_file()
        if open_clip.get_model_config(name) is None:
            raise ValueError(
                f"open_clip knows no model {name!r}: choose one of open_clip.list_models(), or a "
                "JSON file as metrics.model"
            )
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not local and pretrained not in tags:
            raise ValueError(
                f"no weights {pretrained!r} of {name}: metrics.pretrained is a file, or one of "
                f"{', '.join(tags) or 'no known tags'}"
            )
        try:
            net, _, self.prepare = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, cache_dir=cache_dir and str(cache_dir)
            )
        except Exception as error:  # whatever a download or a damaged file raises
            reason = str(error).strip().partition("\n")[0][:200]
            if local:
                raise ValueError(
                    f"{pretrained} is damaged or not of {name} ({reason}): fetch it again"
                ) from None
            raise FileNotFoundError(
                f"cannot load {name} {pretrained} ({reason}): fetch its file elsewhere and pass its "
                "path as metrics.pretrained"
            ) from None
        self.net = net.to(device).eval()
        self.tokenize = open_clip.get_tokenizer(name)
        size = self.net.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        tag = Path(pretrained).stem if local else pretrained
        self.facts = {"model": name, "pretrained": tag, "image_size": size}
        self.name = re.sub(r"[^\w.-]", "-", f"clip-{name}-{tag}-{size}")
        self.num_features = int(open_clip.get_model_config(name)["embed_dim"])
        self.device = device
        self.digest = _digest(self.net)

    def __call__(self, images: Images, batch_size: int = batch_size) -> Extracted:
        _check_images(images)
        return _extract(self._forward, images, batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> dict[str, Tensor]:
        pictures = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        prepared = torch.stack([self.prepare(Image.fromarray(picture)) for picture in pictures])
        return {"features": self.net.encode_image(prepared.to(self.device), normalize=True)}

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Features float32 [N, F] of texts, cut off where the model's context ends."""
        starts = range(0, len(prompts), batch_size)
        parts = []
        for i in tqdm(starts, desc=f"{self.name} texts", unit="batch", delay=3, leave=False):
            tokens = self.tokenize(list(prompts[i : i + batch_size])).to(self.device)
            parts.append(self.net.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts)


def _torch_fidelity_network(
    network: Callable[..., Any], name: str, features: list[str], weights: Path | None, source: str
) -> Any:
    """One of torch-fidelity's networks.  Its own loading would execute code from a local file."""
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights} is missing: `python -m scripts.download {name}` fetches {source}"
            )
        try:
            torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(f"{weights} is damaged ({reason}): fetch {source} again") from None
    try:
        return network(name, features, feature_extractor_weights_path=weights, verbose=False)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load the weights ({error}): fetch {source} elsewhere and pass its path as "
            "weights"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{weights} does not fit the network ({reason}): use {source}") from None


EXTRACTORS = ("digits", "pixels", "inception", "torch_fidelity", *CLEAN_MODES, "clip")


def extractor_named(
    name: str,
    weights: Path | None = None,
    device: str = "cpu",
    *,
    vgg16_weights: Path | None = None,
    clip: dict[str, Any] | None = None,
) -> Extractor:
    """The extractor of that name; ValueError with the known ones for another.

    `clip` are the options of `ClipExtractor`.
    """
    if name == "digits":
        return DigitsExtractor(weights or DIGITS_WEIGHTS, device)
    if name == "pixels":
        return PixelExtractor(device)
    if name == "inception":
        return InceptionExtractor(weights, device)
    if name == "torch_fidelity":
        return TorchFidelityExtractor(weights, vgg16_weights, device)
    if name in CLEAN_MODES:
        return CleanExtractor(name, weights, device)
    if name == "clip":
        return ClipExtractor(**(clip or {}), device=device)
    raise ValueError(f"unknown extractor {name!r}: choose one of {', '.join(EXTRACTORS)}")


def _check_images(images: Images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "images must be uint8 [N, H, W, C] with 1 or 3 channels, "
            f"got {images.dtype} {list(images.shape)}"
        )


@torch.inference_mode()
def _extract(
    forward: Callable[[Tensor], dict[str, Tensor]],
    images: Images,
    batch_size: int,
    device: str,
    name: str,
) -> Extracted:
    """Apply `forward` to batches of uint8 [B, C, H, W]; a progress bar appears after 3 s.

    The images may be a memory map: only a batch of them is ever read into memory.
    """
    if len(images) == 0:
        raise ValueError("no images to extract features from")
    seen: dict[str, NDArray[np.float32]] = {}
    starts = range(0, len(images), batch_size)
    for i in tqdm(starts, desc=f"{name} features", unit="batch", delay=3, leave=False):
        batch = torch.from_numpy(np.array(images[i : i + batch_size])).permute(0, 3, 1, 2)
        for key, value in forward(batch.to(device)).items():
            if key not in seen:
                seen[key] = np.empty((len(images), value.shape[1]), np.float32)
            seen[key][i : i + len(batch)] = value.float().cpu().numpy()
    return Extracted(**seen)


def _digest(net: nn.Module) -> str:
    """SHA-256 over names and values of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
