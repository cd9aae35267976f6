"""Networks of torch-fidelity, clean-fid and open-clip, made of files that cannot run code here.

Left to themselves these libraries unpickle or run what lies in torch.hub's cache or in /tmp, where
anybody may have put it.  Here a published file lies in the folder of downloads, is opened once and
compared with its published hash; tensors are read from those very bytes, and TorchScript, which is a
program, is run from nothing else.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from files.fetch import fetch
from files.places import IS_CLONE, downloads
from models.weights import reason, tensors_in

File = Path | str | None

CLEAN_MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")


@dataclass(frozen=True)
class Published:
    """A file of weights that its authors publish; `name` is that of scripts.download."""

    name: str
    url: str
    sha256: str

    @property
    def place(self) -> Path:
        """Where it lies once it is fetched."""
        return downloads() / self.url.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        if not IS_CLONE:
            return f"without metrics.weights {self.url} is fetched"
        return f"`python -m scripts.download {self.name}` fetches {self.url}"

    def content(self, weights: File = None, program: bool = False) -> tuple[Path, bytes]:
        """(path, bytes) of the file `weights`, by default of the published one, fetched if need be.

        What is by default, has the published name or is a `program` must have the published hash:
        ValueError.  Raises FileNotFoundError, with the remedy, if it is not there and cannot be had.
        """
        path = self.place if weights is None else Path(weights)
        if weights is None and not path.is_file():
            self._fetch()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {self.remedy}")
        content = path.read_bytes()
        known = weights is None or program or path.name == self.place.name
        if known and (sha256 := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ValueError(
                f"{path} is damaged or another file than the published one (its SHA-256 is "
                f"{sha256[:12]}..., not {self.sha256[:12]}...): remove it, and {self.remedy}"
            )
        return path, content

    def _fetch(self) -> None:
        try:
            fetch(self.url, self.place, sha256=self.sha256, attempts=1)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot fetch {self.url} ({error}): fetch it elsewhere, and put it there as "
                f"{self.place}"
            ) from None

    def tensors(self, weights: File = None) -> tuple[Path, dict[str, Tensor]]:
        """(path, tensors) of the file `weights`; raises as `content` and `read_weights`."""
        path, content = self.content(weights)
        return path, tensors_in(content, path, f"fetch {self.url} again")


# Public projects that use these files record the hashes; two begin with what is in the file's name.
INCEPTION = Published(
    "inception",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",  # the same bytes as pytorch-fid's
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
VGG16 = Published(
    "vgg16",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
CLEAN_INCEPTION = Published(
    "clean_inception",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)


def torch_fidelity_network(
    network: Callable[..., Any], features: list[str], published: Published, weights: File
) -> Any:
    """One of torch-fidelity's networks, with the weights of a file or the published ones.

    Its constructor unpickles what it is given, which is what is pickled here: tensors.
    """
    path, tensors = published.tensors(weights)
    pickled = io.BytesIO()
    torch.save(tensors, pickled)
    del tensors
    pickled.seek(0)
    try:
        return network(
            published.name, features, feature_extractor_weights_path=pickled, verbose=False
        )
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the network ({reason(error)}): use {published.url}"
        ) from None


def clean_network(mode: str, weights: File) -> nn.Module:
    """clean-fid's network of a mode: of tensors (legacy_pytorch), or the published program."""
    from cleanfid import inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W

    if mode == "legacy_pytorch":
        path, tensors = INCEPTION.tensors(weights)
        try:
            with _replaced(inception_pytorch, "load_state_dict_from_url", lambda *a, **k: tensors):
                return inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the network ({reason(error)}): use {INCEPTION.url}"
            ) from None
    path, content = CLEAN_INCEPTION.content(weights, program=True)
    # clean-fid takes a folder with a file of its name: one that nobody else can write to.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CLEAN_INCEPTION.place.name).write_bytes(content)
        return InceptionV3W(folder, download=False, resize_inside=mode == "legacy_tensorflow")


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def clip_model(model: str) -> str:
    """The name of a model of open_clip, which knows that of a JSON file from here on."""
    import open_clip

    if model.endswith(".json"):
        if not Path(model).is_file():
            raise FileNotFoundError(f"no model config at {model}: give one of open_clip's form")
        open_clip.add_model_config(Path(model))
        model = Path(model).stem
    if open_clip.get_model_config(model) is None:
        raise ValueError(
            f"open_clip knows no model {model!r}: choose one of open_clip.list_models(), or a "
            "JSON file as metrics.model"
        )
    return model


def clip_network(
    model: str, pretrained: str, cache_dir: File
) -> tuple[Any, Callable[[Image.Image], Tensor]]:
    """A network of open_clip and what prepares images for it."""
    import open_clip

    local = Path(pretrained).is_file()
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not local and pretrained not in tags:
        raise ValueError(
            f"no weights {pretrained!r} of {model}: metrics.pretrained is a file, or one of "
            f"{', '.join(tags) or 'no known tags'}"
        )
    try:
        # It opens a file once, and reads tensors alone as long as `weights_only` says so.
        net, _, prepare = open_clip.create_model_and_transforms(
            model,
            pretrained=pretrained,
            cache_dir=cache_dir and str(cache_dir),
            weights_only=True,
        )
    except Exception as error:  # whatever a download or a damaged file raises
        if local:
            raise ValueError(
                f"{pretrained} is damaged or not of {model} ({reason(error)}): fetch it again"
            ) from None
        raise FileNotFoundError(
            f"cannot load {model} {pretrained} ({reason(error)}): fetch its file elsewhere and "
            "pass its path as metrics.pretrained"
        ) from None
    return net, prepare
