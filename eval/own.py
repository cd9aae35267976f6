"""Extractors of one's own choice: a network of timm, or whatever a function of one's own returns.

All on which their features depend is in their `facts`, and these in their `digest`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from eval import networks
from eval.features import Extractor, pictures
from eval.networks import File
from eval.preprocessing import NetworkInput, check_input_size
from files.whole import file_sha256
from models.imports import imported
from models.weights import reason, state_digest

Numbers = list[float] | None
TIMM = "timm/"  # what the names of its networks begin with
SETTING = "metrics.extractor"
RETURNS = (
    "return a torch module, a function of images uint8 [N, H, W, 3] that returns features [N, F], or an "
    "eval.features.Extractor"
)


class TimmExtractor(Extractor):
    """A network of timm: its pooled features, before any classifier.

    Size, interpolation, the share of the image that is kept (`crop_pct`), mean and standard deviation
    are those of its data config unless they are given; timm's own transform prepares the images.
    Raises ValueError for an unknown network, weights that do not fit or a size that it does not take,
    FileNotFoundError without the weights.
    """

    def __init__(
        self,
        network: str,
        weights: File = None,
        size: int | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        mean: Numbers = None,
        std: Numbers = None,
        device: str = "cpu",
    ):
        self.net = networks.timm_network(network, weights)
        digest = state_digest(self.net.state_dict())
        given = {"interpolation": interpolation, "crop_pct": crop_pct, "mean": mean, "std": std}
        shown = self._shown(network, size, {k: v for k, v in given.items() if v is not None})
        tag = self.net.pretrained_cfg.get("tag") if weights is None else None
        model = f"{network}.{tag}" if tag and "." not in network else network
        self.facts = {"model": f"{TIMM}{model}", **shown}
        self.name = re.sub(r"[^\w.-]", "-", f"timm-{model}")
        self.num_features = self._probed(network, shown["size"])
        self.net.to(device)
        super().__init__(_digest(digest, self.facts), device)

    def _shown(self, network: str, size: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the network is shown, as `facts` tell it; it is set to that size."""
        data = networks.timm_library().data
        check_input_size(size)
        config = data.resolve_data_config({}, model=self.net)
        native = config["input_size"]
        config |= given
        if not 0 < config["crop_pct"] <= 1:
            raise ValueError(
                f"metrics.crop_pct must be above 0 and at most 1, got {config['crop_pct']}"
            )
        config["input_size"] = (3, size, size) if size else native
        # Which checks the rest.
        NetworkInput(native[1], config["interpolation"], config["mean"], config["std"])
        if config["input_size"] != native and hasattr(self.net, "set_input_size"):
            try:
                self.net.set_input_size(img_size=config["input_size"][1:])
            except Exception as error:  # of asserts in there
                raise _no_size(network, size, native, error) from None
        self.transform = data.create_transform(**config)
        names = ("interpolation", "crop_pct", "crop_mode")
        shown = {key: config[key] for key in names if key in config}
        return {
            "size": config["input_size"][1],
            **shown,
            **{key: list(config[key]) for key in ("mean", "std")},
        }

    @torch.inference_mode()
    def _probed(self, network: str, size: int) -> int:
        """The number of features; what the network says of one that it does not take."""
        try:
            seen = self.net(torch.zeros(1, 3, size, size))
        except Exception as error:
            native = self.net.pretrained_cfg["input_size"]
            raise _no_size(network, size, native, error) from None
        if seen.ndim != 2:
            raise ValueError(f"timm/{network} has no pooled features: choose another network")
        return int(seen.shape[1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shown = torch.stack([self.transform(Image.fromarray(p)) for p in pictures(x)])
        return {"features": self.net(shown.to(self.device))}


def _no_size(network: str, size: int | None, native: Sequence[int], error: Exception) -> ValueError:
    return ValueError(
        f"timm/{network} does not take {size} pixels ({reason(error)}): leave metrics.size out, or "
        f"give metrics.size={native[1]}"
    )


def function_extractor(
    function: str,
    weights: File = None,
    size: int | None = None,
    interpolation: str | None = None,
    mean: Numbers = None,
    std: Numbers = None,
    version: str | int | float | None = None,
    device: str = "cpu",
) -> Extractor:
    """The extractor that MODULE:FUNCTION returns, called with `weights` and `device` where it takes these.

    - A torch module gets float32 [B, 3, size, size], (x / 255 - mean) / std for each channel, with
      mean 0 and standard deviation 1 where they are not given, and returns features [B, F].
    - A function gets uint8 [B, size, size, 3] and returns features [B, F], as a tensor or an array; one
      whose first parameter is called `images` need not be returned, but is that function itself.
    - An `Extractor` is taken as it is, with its own name and digest.

    Pictures are stretched to `size` by Pillow, bicubic where no interpolation is given; without a
    size they keep theirs.  Grey ones come in three channels.  Known by: the bytes of the module's
    file and of `weights`, the tensors of a torch module, what it is shown, and `version`, which has
    to say when anything else changes that the function reads or imports.  Raises ValueError or
    FileNotFoundError, with the remedy.
    """
    path = None if weights is None else Path(weights)
    if path and not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give metrics.weights=FILE")
    found = imported(function, SETTING, RETURNS)
    made = found
    if next(iter(inspect.signature(found).parameters), "") != "images":
        made = _called(function, found, {"weights": path, "device": torch.device(device)})
    shown = {"size": size, "interpolation": interpolation, "mean": mean, "std": std}
    if isinstance(made, Extractor):
        _refuse(function, {**shown, "version": version}, "its Extractor says that itself")
        return made
    facts: dict[str, Any] = {
        "function": function,
        "source": _source(found),
        "weights": path and file_sha256(path)[:12],
        "version": version,
    }
    if isinstance(made, nn.Module):
        mean, std = mean or [0.0] * 3, std or [1.0] * 3
        input = NetworkInput(size, interpolation or "bicubic", mean, std)
        return FunctionExtractor(function, _Shown(made, input, device), facts | input.facts, device)
    if not callable(made):
        raise ValueError(f"{function} has returned a {type(made).__name__}: let it {RETURNS}")
    _refuse(function, {"mean": mean, "std": std}, "a function is shown pixels of 8 bits")
    input = NetworkInput(size, interpolation or "bicubic")
    own = {"size": size, "interpolation": input.interpolation}
    return FunctionExtractor(function, lambda x: made(input.resized(x)), facts | own, device)


def _called(function: str, found: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """What it returns, given what it takes."""
    signature = inspect.signature(found)
    words = {key: value for key, value in given.items() if key in signature.parameters}
    try:
        signature.bind(**words)
    except TypeError as error:
        raise ValueError(
            f"{function} cannot be called so ({error}): let it take weights and device or less, or "
            "images alone"
        ) from None
    return found(**words)


def _refuse(function: str, given: Mapping[str, Any], why: str) -> None:
    if stated := [key for key, value in given.items() if value is not None]:
        raise ValueError(f"{function} takes no metrics.{stated[0]}, since {why}: leave it out")


def _source(function: Callable[..., Any]) -> str:
    """Of the file that the function is written in."""
    file = inspect.getsourcefile(inspect.unwrap(function))
    return file_sha256(Path(file))[:12] if file else ""


class _Shown:
    """A torch module behind what it is shown."""

    def __init__(self, net: nn.Module, input: NetworkInput, device: str):
        self.net, self.input, self.device = net.eval().to(device), input, device

    def __call__(self, images: Any) -> Any:
        return self.net(self.input(images).to(self.device))


class FunctionExtractor(Extractor):
    """Features of `see`: uint8 [B, H, W, 3] -> [B, F], a tensor or an array."""

    num_features = 0  # known once it has seen something; FID itself refuses too few samples

    def __init__(
        self, function: str, see: Callable[[Any], Any], facts: Mapping[str, Any], device: str
    ):
        self.function, self.see, self.facts = function, see, facts
        self.name = re.sub(r"[^\w.-]", "-", function)
        weights = state_digest(see.net.state_dict()) if isinstance(see, _Shown) else ""
        super().__init__(_digest(weights, facts), device)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.see(pictures(x))
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) != 2 or shape[0] != len(x):
            got = list(shape) if shape else f"a {type(features).__name__}"
            raise ValueError(
                f"{self.function} has made {got} of {len(x)} images: let it make features [N, F]"
            )
        features = (
            features if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
        )
        if not torch.isfinite(features).all():
            raise ValueError(
                f"{self.function} has made features that are no finite numbers: mend it"
            )
        return {"features": features}


def _digest(weights: str, facts: Mapping[str, Any]) -> str:
    """SHA-256 of weights and of all else on which features depend."""
    return hashlib.sha256(f"{weights} {json.dumps(facts, sort_keys=True)}".encode()).hexdigest()
