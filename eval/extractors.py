"""Networks that turn images into the features and logits that scores are made of.

Numbers from different extractors never compare.  Each one therefore has a name and a
`digest` of its weights, and both are stored with everything computed from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

Images = NDArray[np.uint8]

DIGITS_WEIGHTS = Path(__file__).parents[1] / "models" / "digits" / "classifier.safetensors"


class Extracted(NamedTuple):
    """What an extractor saw: features [N, F] and logits [N, K], float32."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


class Extractor(Protocol):
    """Images uint8 [N, H, W, C] -> features and logits; `digest` identifies the weights."""

    name: str
    num_features: int
    digest: str

    def __call__(self, images: Images, batch_size: int = ...) -> Extracted: ...


class DigitsClassifier(nn.Module):
    """Small CNN: x [B, 1, 28, 28] in [-1, 1] -> (features [B, 64], logits [B, 10]).

    The features follow a smooth nonlinearity and feed the last linear layer directly, as
    Inception's do.  In training, dropout lies between the two.
    """

    def __init__(self, dropout: float = 0.3):
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels in ((1, 16), (16, 32), (32, 64)):
            conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 64), nn.SiLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(self.dropout(features))


class DigitsExtractor:
    """The embedded digits classifier: 64 features, 10 logits.

    Takes uint8 [N, 28, 28, 1], or the same grey image in three channels.  Raises
    FileNotFoundError without its weights, ValueError for any other images.
    """

    name = "digits"
    num_features = 64

    def __init__(self, weights: Path = DIGITS_WEIGHTS, device: str = "cpu"):
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights} is missing: make it with `python scripts/train_digits.py classifier`"
            )
        self.net = DigitsClassifier()
        try:
            self.net.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError):
            raise ValueError(
                f"{weights} does not hold the digits classifier or is damaged: make it with "
                "`python scripts/train_digits.py classifier`"
            ) from None
        self.net.eval().to(device)
        self.device = device
        self.digest = _digest(self.net)

    def __call__(self, images: Images, batch_size: int = 500) -> Extracted:
        _check_images(images)
        if images.shape[1:3] != (28, 28):
            raise ValueError(f"digits features need 28 x 28 images, got {images.shape[1:]}")
        if images.shape[3] == 3 and not (images == images[..., :1]).all():
            raise ValueError("digits features need grey images, got colours")
        return _extract(self._forward, images[..., :1], batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(x.float() / 127.5 - 1)
        return features, logits


class InceptionExtractor:
    """torch-fidelity's port of the original FID Inception: 2048 features, 1008 logits.

    The logits leave out the bias, as the Inception score does everywhere.  Without
    `weights`, the 96 MB file is downloaded once into torch.hub's cache.  Raises
    FileNotFoundError when the file is missing or cannot be downloaded.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, weights: Path | None = None, device: str = "cpu"):
        # Imported here because it takes more than a second, which digits need not pay.
        from torch_fidelity import (
            feature_extractor_inceptionv3 as source,
        )

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights} is missing: get it from {source.URL_INCEPTION_V3}")
        try:
            self.net = source.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=weights,
                verbose=False,
            ).to(device)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot load the Inception weights ({error}): fetch {source.URL_INCEPTION_V3} "
                "elsewhere and pass its path as weights"
            ) from None
        self.device = device
        self.digest = _digest(self.net)

    def __call__(self, images: Images, batch_size: int = 50) -> Extracted:
        _check_images(images)
        return _extract(self._forward, images, batch_size, self.device, self.name)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(x.expand(-1, 3, -1, -1))
        return features, logits


def extractor_named(name: str, weights: Path | None = None, device: str = "cpu") -> Extractor:
    """The extractor `digits` or `inception`; ValueError for another name."""
    if name == "digits":
        return DigitsExtractor(weights or DIGITS_WEIGHTS, device)
    if name == "inception":
        return InceptionExtractor(weights, device)
    raise ValueError(f"unknown extractor {name!r}: choose digits or inception")


def _check_images(images: Images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "images must be uint8 [N, H, W, C] with 1 or 3 channels, "
            f"got {images.dtype} {list(images.shape)}"
        )


@torch.inference_mode()
def _extract(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Images,
    batch_size: int,
    device: str,
    name: str,
) -> Extracted:
    """Apply `forward` to batches of uint8 [B, C, H, W]; a progress bar appears after 3 s."""
    if len(images) == 0:
        raise ValueError("no images to extract features from")
    features, logits = [], []
    starts = range(0, len(images), batch_size)
    for i in tqdm(starts, desc=f"{name} features", unit="batch", delay=3, leave=False):
        batch = torch.from_numpy(images[i : i + batch_size]).permute(0, 3, 1, 2)
        f, g = forward(batch.to(device))
        features.append(f.float().cpu())
        logits.append(g.float().cpu())
    return Extracted(torch.cat(features).numpy(), torch.cat(logits).numpy())


def _digest(net: nn.Module) -> str:
    """SHA-256 over names and values of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
