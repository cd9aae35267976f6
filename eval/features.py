"""Images -> features: what an extractor is, whatever network it has.

Numbers from different extractors never compare.  Each one therefore has a name and a
`digest` of its weights, and both are stored with everything computed from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models.memory import Room

Images = NDArray[np.uint8]


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
    configs/metrics/*.yaml (see `extractor_named`).  `facts` is what a record says of the network
    besides: all on which its features depend belongs into them and, but for a fixed protocol's, into
    `digest`.
    """

    name: str
    batch_size = 50
    num_features = 2048
    num_logits: int | None = None  # None: not known before it has seen something
    knows_labels = False
    facts: Mapping[str, Any] = {}

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


def pictures(x: Tensor) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3] of images [B, C, H, W], which may be grey."""
    return np.asarray(x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())
