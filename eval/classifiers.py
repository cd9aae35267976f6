"""The classifiers of the models that are trained here, as extractors."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eval.features import Extractor, Images
from eval.networks import File
from models.cifar10.networks import CifarClassifier
from models.digits.networks import DigitsClassifier
from models.weights import state_digest

MODELS = Path(__file__).parents[1] / "models"


class ClassifierExtractor(Extractor):
    """The classifier of a small model that is trained here: 64 features, 10 logits.

    Takes uint8 [N, size, size, channels].  Raises FileNotFoundError without its weights, ValueError
    for any other images.
    """

    batch_size = 500
    num_features = 64
    num_logits = 10
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


CLASSIFIERS = {"digits": DigitsExtractor, "cifar10": CifarExtractor}
