"""Networks of torch-fidelity, clean-fid, open-clip and timm, made of files that cannot run code here.

Left to themselves these libraries unpickle or run what lies in torch.hub's cache or in /tmp, where
anybody may have put it.  Here a published file lies in the folder of downloads, is opened once and
compared with its published hash; tensors are read from those very bytes, and TorchScript, which is a
program, is run from nothing else.
"""

import difflib
import hashlib
import io
import math
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
from models.weights import (
    Misfit,
    check_fit,
    read_weights,
    reason,
    shapes_of,
    state_digest,
    tensors_in,
)

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
DINOV2 = Published(
    "dinov2",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
)
# ViT-L/14: the published one has no registers, and positions for 37 x 37 patches of 14 pixels (518).
DINOV2_LAYOUT = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
DINOV2_GRID, DINOV2_PATCH, DINOV2_SIZE = 37, 14, 224


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


def dinov2_network(weights: File) -> tuple[Any, str]:
    """DINOv2's ViT-L/14, images [B, 3, 224, 224] -> class token after the last norm [B, 1024]; its digest.

    torch-fidelity has torch.hub fetch and run the network's code; here its layers are timm's, of the
    same names.  The digest is of the file's tensors.  Raises ValueError for those that do not fit.
    """
    vit = timm_library().models.vision_transformer.VisionTransformer
    with torch.device("meta"):
        net = vit(DINOV2_SIZE, DINOV2_PATCH, num_classes=0, init_values=1.0, **DINOV2_LAYOUT)
    path, tensors = DINOV2.tensors(weights)
    tensors.pop("mask_token", None)  # of its training
    shapes = shapes_of(net.state_dict())
    shapes["pos_embed"] = [1, DINOV2_GRID**2 + 1, DINOV2_LAYOUT["embed_dim"]]
    try:
        check_fit(shapes, tensors, path)
    except Misfit as error:
        raise ValueError(f"{error.difference}: use {DINOV2.url}") from None
    digest = state_digest(tensors)
    positions = dinov2_positions(tensors.pop("pos_embed").float(), DINOV2_SIZE // DINOV2_PATCH)
    state = {key: value.float() for key, value in tensors.items()}
    net.load_state_dict({**state, "pos_embed": positions}, assign=True)
    return net.eval().requires_grad_(False), digest


def dinov2_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings [1, 1 + G * G, D], class token first, for grid x grid patches.

    As DINOv2's own `interpolate_pos_encoding`: bicubic without antialiasing, by the factor
    (grid + 0.1) / G rather than to a size, which shifts the points.  timm and transformers do otherwise.
    """
    side = math.isqrt(positions.shape[1] - 1)
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factor = (grid + 0.1) / side
    patches = nn.functional.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def timm_library() -> Any:
    """timm, or ValueError with how to get it."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f"this extractor needs {error.name}: pip install timm") from None
    return timm


def timm_network(model: str, weights: File) -> Any:
    """A network of timm, images -> pooled features, with weights of a file or those of its hub.

    timm's own loader may unpickle files, or leave tensors as they were drawn where a file lacks them:
    here every one comes from the file, in timm's own layout; a classifier in it is left out.  Raises
    ValueError for an unknown model or a file that does not fit, FileNotFoundError without the file.
    """
    timm = timm_library()
    try:
        if not timm.is_model(model):
            raise RuntimeError(f"timm {timm.__version__} has no {model.partition('.')[0]}")
        config = timm.models.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        names = timm.list_models(pretrained=True) + timm.list_models()
        near = difflib.get_close_matches(model, names, 3) or ["resnet50.a1_in1k"]
        raise ValueError(
            f"no network timm/{model} ({error}): give one of timm.list_models(pretrained=True), as "
            f"timm/{' or timm/'.join(near)}"
        ) from None
    net = timm.create_model(model, pretrained=False, num_classes=0)
    path = _timm_file(model, config) if weights is None else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give metrics.weights=FILE.safetensors")
    tensors = read_weights(path, "fetch it again")
    heads = (
        config.classifier if isinstance(config.classifier, tuple | list) else [config.classifier]
    )
    heads = [f"{head}." for head in heads if head]
    expected = net.state_dict()
    tensors = {
        key: value
        for key, value in tensors.items()
        if key in expected or not key.startswith(tuple(heads))
    }
    try:
        check_fit(shapes_of(expected), tensors, path)
    except Misfit as error:
        raise ValueError(
            f"{error.difference}: give a file of timm/{model} in timm's own layout, as "
            "model.safetensors of its hub is, or metrics.weights=null for that"
        ) from None
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def _timm_file(model: str, config: Any) -> Path:
    """model.safetensors of timm's hub, fetched once into the hub's own cache."""
    from models.hub import hub_file

    if not config.hf_hub_id:
        raise FileNotFoundError(
            f"timm's hub has no weights of timm/{model}: give metrics.weights=FILE.safetensors, or "
            "one of timm.list_models(pretrained=True)"
        )
    return hub_file(config.hf_hub_id, "model.safetensors", None, "metrics.weights")


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
