"""Networks that turn images into the features and logits that scores are made of.

Numbers from different extractors never compare.  Each one therefore has a name and a
`digest` of its weights, and both are stored with everything computed from it.
"""

import hashlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from eval import networks
from eval.networks import CLEAN_MODES, File
from models.cifar10.networks import CifarClassifier
from models.digits.networks import DigitsClassifier
from models.memory import Room
from models.weights import state_digest

Images = NDArray[np.uint8]
MODELS = Path(__file__).parents[1] / "models"


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


class Extractor(ABC):
    """Images uint8 [N, H, W, C] -> `Extracted`, `batch_size` images at a time.

    `digest` identifies the weights.  `knows_labels` says that logit k is for the label k that
    samples are made for.  Of the arguments of a subclass, those but `device` are options of
    configs/metrics/*.yaml (see `extractor_named`).
    """

    name: str
    batch_size = 50
    num_features = 2048
    knows_labels = False

    def __init__(self, digest: str, device: str):
        self.digest = digest
        self.device = device
        self.room = Room("use device=cpu, a device with more memory, or free some of it")

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """uint8 [B, C, H, W] on the device -> parts of `Extracted`, [B, ...] each."""

    def checked(self, images: Images) -> Images:
        """What of the images `forward` sees.  Raises ValueError for images that do not do."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                "images must be uint8 [N, H, W, C] with 1 or 3 channels, "
                f"got {images.dtype} {list(images.shape)}"
            )
        if len(images) == 0:
            raise ValueError("no images to extract features from")
        return images

    @torch.inference_mode()
    def __call__(self, images: Images, batch_size: int | None = None) -> Extracted:
        """Features of all images; a progress bar appears after 3 s.

        The images may be a memory map, or any sequence with `shape` and `dtype` whose slices are
        such arrays: only a batch of them is ever read into memory.
        """
        images = self.checked(images)
        seen: dict[str, NDArray[np.float32]] = {}

        def look(part: slice) -> None:
            batch = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2)
            for key, value in self.forward(batch.to(self.device)).items():
                if key not in seen:
                    seen[key] = np.empty((len(images), value.shape[1]), np.float32)
                seen[key][part] = value.float().cpu().numpy()

        self._in_batches(len(images), batch_size or self.batch_size, look, "features")
        return Extracted(**seen)

    def _in_batches(self, n: int, wanted: int, work: Callable[[slice], None], what: str) -> None:
        """Do the work on n things in batches that fit into the memory, with a progress bar."""
        label = f"{self.name} {what}"
        with tqdm(total=n, desc=label, unit_scale=True, delay=3, leave=False) as bar:

            def counted(part: slice) -> int:
                work(part)
                return part.stop - part.start

            for count in self.room.batches(n, wanted, counted, self.device):
                bar.update(count)


class ClassifierExtractor(Extractor):
    """The classifier of a small model that is trained here: 64 features, 10 logits.

    Takes uint8 [N, size, size, channels].  Raises FileNotFoundError without its weights, ValueError
    for any other images.
    """

    batch_size = 500
    num_features = 64
    knows_labels = True
    network: type[nn.Module]
    size: int

    def __init__(self, weights: File = None, device: str = "cpu"):
        path = Path(weights or MODELS / self.name / "classifier.safetensors")
        remedy = f"make it with `python -m scripts.train model={self.name} what=classifier`"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {remedy}")
        net = self.network()
        try:
            net.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError):
            raise ValueError(
                f"{path} does not hold the {self.name} classifier or is damaged: {remedy}"
            ) from None
        self.net = net.eval().to(device)
        super().__init__(state_digest(self.net.state_dict()), device)

    def checked(self, images: Images) -> Images:
        images = super().checked(images)
        if images.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"{self.name} features need {self.size} x {self.size} images, "
                f"got {images.shape[1:]}"
            )
        return images

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(x.float() / 127.5 - 1)
        return {"features": features, "logits": logits}


class DigitsExtractor(ClassifierExtractor):
    """The embedded digits classifier.

    Takes uint8 [N, 28, 28, 1], or the same grey image in three channels.
    """

    name, network, size = "digits", DigitsClassifier, 28

    def checked(self, images: Images) -> Images:
        images = np.asarray(super().checked(images))
        if images.shape[3] == 3 and not (images == images[..., :1]).all():
            raise ValueError("digits features need grey images, got colours")
        return images[..., :1]


class CifarExtractor(ClassifierExtractor):
    """The CIFAR-10 classifier.  Takes uint8 [N, 32, 32, 3], or grey images of that size."""

    name, network, size = "cifar10", CifarClassifier, 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x.expand(-1, 3, -1, -1))


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
        resized = np.stack([self.resize(picture) for picture in _pictures(x)])
        x = torch.from_numpy(resized).permute(0, 3, 1, 2).float().to(self.device)
        if self.name == "legacy_pytorch":
            return {"features": self.net(x / 255)[0].flatten(1)}
        return {"features": self.net(x)}


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
        prepared = torch.stack([self.prepare(Image.fromarray(picture)) for picture in _pictures(x)])
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


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "digits": DigitsExtractor,
    "cifar10": CifarExtractor,
    "pixels": PixelExtractor,
    "inception": InceptionExtractor,
    "torch_fidelity": TorchFidelityExtractor,
    **{mode: partial(CleanExtractor, mode) for mode in CLEAN_MODES},
    "clip": ClipExtractor,
}


def extractor_named(name: str, device: str = "cpu", **options: Any) -> Extractor:
    """The extractor of that name with those of the options that it takes.

    An option that only others take is left out: metrics=torch_fidelity names VGG16's weights, and
    metrics.extractor=inception has no use for them.  Raises ValueError for an unknown name or
    option, and as the extractor does.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}: choose one of {', '.join(EXTRACTORS)}")
    taken = {key: _parameters(extractor) for key, extractor in EXTRACTORS.items()}
    if unknown := sorted(set(options) - set().union(*taken.values())):
        raise ValueError(f"no extractor takes metrics.{unknown[0]}: remove it")
    options = {key: value for key, value in options.items() if key in taken[name]}
    return EXTRACTORS[name](device=device, **options)


def _parameters(extractor: Callable[..., Extractor]) -> set[str]:
    return set(inspect.signature(extractor).parameters) - {"device"}


def _pictures(x: Tensor) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3] of images [B, C, H, W], which may be grey."""
    return np.asarray(x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())
