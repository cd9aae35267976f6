"""Files of weights: read without executing code, checked, loaded straight into a network."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as safetensors_in
from safetensors.torch import load_file
from torch import Tensor, nn

from files.whole import Damaged, check_regular
from sampling.options import check_choice

Net = TypeVar("Net", bound=nn.Module)
Shapes = dict[str, list[int]]

UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype")  # in a config, but not the model's
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Misfit(ValueError):
    """A file's tensors are not a network's: the first `difference`, and all `shapes` of the file."""

    def __init__(self, difference: str, shapes: Shapes):
        super().__init__(f"{difference}; check the model's options")
        self.difference, self.shapes = difference, shapes


def dtype_named(precision: str) -> torch.dtype:
    """The dtype of that name; ValueError with the known names for another."""
    check_choice("precision", precision, PRECISIONS)
    return PRECISIONS[precision]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself, not by a detour that costs more than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    # Older versions of torch do not tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16"))


def load_weights(
    net: nn.Module, path: Path, device: torch.device | str = "cpu", remedy: str = "restore it"
) -> None:
    """Load a .safetensors or a torch .pt file into `net`, which may be on the meta device.

    Every tensor goes straight to `device` in the dtype of the parameter that it fills, one at a
    time from a memory-mapped file: loading into half precision needs half the file's size, and
    no second copy.  Raises ValueError naming the file and the `remedy` if it is damaged, `Misfit`
    with the first key or shape that differs.
    """
    weights = read_weights(path, remedy)
    expected = net.state_dict()
    check_fit(shapes_of(expected), weights, path)
    net.load_state_dict(
        {key: weights[key].to(device, value.dtype) for key, value in expected.items()}, assign=True
    )


def read_weights(path: Path, remedy: str = "restore it") -> dict[str, Tensor]:
    """The named tensors of a .safetensors or torch file; never executes code from it.

    Raises ValueError naming the file and the `remedy` if it is damaged or holds anything else.
    """
    return _tensors(lambda: _read(path), path, remedy)


def tensors_in(content: bytes, path: Path, remedy: str = "restore it") -> dict[str, Tensor]:
    """As `read_weights`, of the bytes that were read from `path`: what was verified is what is used."""
    if path.suffix == ".safetensors":
        return _tensors(lambda: safetensors_in(content), path, remedy)
    return _tensors(lambda: _unpickled(io.BytesIO(content)), path, remedy)


def _read(path: Path) -> Any:
    check_regular(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return _unpickled(path, mmap=True)
    except RuntimeError as error:
        if "_use_new_zipfile_serialization" not in str(error):
            raise
        return _unpickled(path)  # a file in torch's old format cannot be memory-mapped


def _unpickled(source: Path | io.BytesIO, **more: Any) -> Any:
    """What torch saved, if that is tensors and the like.  Stated here, no variable can change it."""
    return torch.load(source, map_location="cpu", weights_only=True, **more)


def _tensors(read: Callable[[], Any], path: Path, remedy: str) -> dict[str, Tensor]:
    try:
        weights = read()
    except (OSError, Damaged):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path} is damaged or no checkpoint ({reason(error)}): {remedy}"
        ) from None
    if not isinstance(weights, dict) or not all(map(_is_plain, weights.values())):
        raise ValueError(f"{path} does not hold a dictionary of plain tensors: {remedy}")
    return weights


def _is_plain(weight: Any) -> bool:
    """Whether that is a tensor of real numbers, all of which are there."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.is_nested:
        return False
    return not (weight.is_meta or weight.is_quantized or weight.is_complex())


def reason(error: Exception) -> str:
    """What an error says, in short; of a file that is not safe not torch's advice to run it."""
    if "weights_only" in str(error):
        return "it holds more than tensors, which is not loaded"
    return " ".join(str(error).split())[:200] or type(error).__name__


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Key -> shape, in order."""
    return {key: list(value.shape) for key, value in weights.items()}


def check_fit(shapes: Shapes, weights: dict[str, Tensor], path: Path) -> None:
    """Raise `Misfit` at the first key or shape in which `weights` differ from `shapes`."""
    for key in [*shapes, *weights]:
        ours, theirs = shapes.get(key), weights.get(key)
        if ours is None or theirs is None or ours != list(theirs.shape):
            want = "no such key" if ours is None else f"shape {ours}"
            have = "no such key" if theirs is None else f"shape {list(theirs.shape)}"
            raise Misfit(
                f"{path} does not fit the network: at {key} the network has {want}, "
                f"the file {have}",
                shapes_of(weights),
            )


def randomize(net: Net, device: torch.device | str) -> Net:
    """A network of random numbers in eval mode, moved from the meta device: for measuring speed."""
    net.to_empty(device=device)
    for tensor in net.state_dict().values():
        nn.init.normal_(tensor, std=0.02)
    return net.eval().requires_grad_(False)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: the names and bytes of its tensors, in the order of the names.

    Unlike a file's hash it does not depend on the format in which the weights came.
    """
    digest = hashlib.sha256()
    hash_state(digest, state)
    return digest.hexdigest()


def hash_state(digest: hashlib._Hash, state: Mapping[str, Tensor]) -> None:
    """Let a digest go on with the names and bytes of a state dict."""
    for key, value in sorted(state.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(key.encode())
        digest.update(flat.view(torch.uint8).numpy().data)  # NumPy knows no bfloat16


def public_config(config: Mapping[str, Any]) -> str:
    """What the config of a library's network says of the network, as text."""
    public = {key: config[key] for key in config if key[0] != "_" and key not in UNIMPORTANT}
    return json.dumps(public, sort_keys=True, default=str)


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config of a library's network."""
    return hashlib.sha256(public_config(config).encode()).hexdigest()
