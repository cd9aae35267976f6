"""A model that a function of the user's own loads: `model=function model.load=my_package.my_module:load`.

The function returns a `Backbone`, or no more than a denoiser of images, its schedule and the shape of
a sample.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from files.media import Images
from models.backbone import Backbone, to_uint8
from models.imports import imported, theirs
from sampling import Schedule
from sampling.options import check_options

RETURNS = "return a models.backbone.Backbone, or (denoiser, schedule, shape)"


def load(
    load: str,
    options: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    version: str | int | float | None = None,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
) -> Backbone:
    """What the function MODULE:FUNCTION returns, called with `options` and, where it takes them, with
    `device` and `precision`.

    Modules are found as in Python started here: in the current directory, too.  `sha256` is that of
    the Backbone, or for a denoiser that of `load`, `options` and `version`: a function's code and what
    it reads are not looked into, so that another `version` has to say that they changed.
    `checkpoint` is a name for tables, no more.  Raises ValueError or FileNotFoundError, with the
    remedy, for what cannot be imported, called so or sampled.
    """
    function = imported(load, "model.load", RETURNS)
    given = {"device": torch.device(device), "precision": precision}
    words = _arguments(load, function, dict(options or {}), given)
    with theirs(load):
        made = function(**words)
    said = json.dumps([load, dict(options or {}), version], sort_keys=True, default=str)
    identity = hashlib.sha256(said.encode()).hexdigest()
    if not isinstance(made, Backbone):
        return _of_denoiser(load, made, identity, device)
    if not made.sha256:
        return replace(made, sha256=identity)
    return made


def _arguments(
    load: str, function: Callable[..., Any], options: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """The options, and what of `given` the function takes.  ValueError unless it can be called so."""
    signature = inspect.signature(function)
    takes = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        check_options(f"model.options of {load}", options, list(takes))
    words = {k: v for k, v in given.items() if k in takes} | options
    try:
        signature.bind(**words)
    except TypeError as error:
        raise ValueError(
            f"{load} cannot be called so ({error}): give what it takes as model.options.NAME=..."
        ) from None
    return words


def _of_denoiser(load: str, made: Any, sha256: str, device: torch.device | str) -> Backbone:
    """A Backbone of (denoiser, schedule, shape), or of (denoiser, schedule, shape, num_classes)."""
    if not isinstance(made, tuple | list) or len(made) not in (3, 4):
        raise ValueError(f"{load} has returned a {type(made).__name__}: let it {RETURNS}")
    denoiser, schedule, shape, num_classes = (*made, None)[:4]
    if not callable(denoiser):
        raise ValueError(
            f"the denoiser of {load} is a {type(denoiser).__name__}: return a function (x_t, t) -> "
            "(x0, v)"
        )
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"the schedule of {load} is a {type(schedule).__name__}: return a sampling.Schedule, as "
            "Schedule.linear() or Schedule.from_betas(betas)"
        )
    sizes = tuple(shape) if isinstance(shape, tuple | list | torch.Size) else ()
    if len(sizes) != 3 or any(type(n) is not int or n < 1 for n in sizes) or sizes[0] not in (1, 3):
        raise ValueError(
            f"the shape of {load} is {shape!r}: return (C, H, W) with 1 or 3 channels, or a Backbone "
            "whose decode makes images of it"
        )
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ValueError(
            f"the number of classes of {load} is {num_classes!r}: return a positive integer or None"
        )
    _check_called(load, denoiser, num_classes is not None)
    return Backbone(
        network=FunctionNetwork(denoiser, num_classes is not None, load),
        schedule=schedule,
        shape=sizes,
        num_classes=num_classes,
        clip=False,  # x0 is the function's own business
        sha256=sha256,
        decode=to_uint8,
        media=Images((*sizes[1:], sizes[0])),
        device=torch.device(device),
        prediction_type="sample",
    )


def _check_called(load: str, denoiser: Callable[..., Any], conditional: bool) -> None:
    """Raise ValueError for a denoiser that takes other arguments than it is given."""
    try:
        signature = inspect.signature(denoiser)
        signature.bind(*"xty"[: 2 + conditional])
    except TypeError:
        given = "(x_t, t, labels)" if conditional else "(x_t, t)"
        more = (
            "take these"
            if conditional
            else "take these, or return the number of classes as a fourth"
        )
        raise ValueError(
            f"the denoiser of {load} is called with {given} and takes {signature}: let it {more}"
        ) from None
    except ValueError:  # of a builtin nobody knows
        return


class FunctionNetwork:
    """A denoiser (x_t, t) -> (x0, v), or with labels (x_t, t, y), as a `Network` that predicts x0."""

    def __init__(self, denoiser: Callable[..., Any], conditional: bool, name: str):
        self.denoiser, self.conditional, self.name = denoiser, conditional, name

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        told = (x.clone(), t, condition)  # what it does to x_t in place is its own business
        with theirs(f"the denoiser of {self.name}"):
            seen = self.denoiser(*told[: 2 + self.conditional])
        if not isinstance(seen, tuple) or len(seen) not in (2, 3):
            raise ValueError(
                f"the denoiser of {self.name} has returned a {type(seen).__name__}: return (x0, v), "
                "and v = None without a learned variance"
            )
        x0, v, *gradient = seen
        if gradient and gradient[0] is not None:
            raise ValueError(
                f"the denoiser of {self.name} has returned a gradient: return a Backbone with guidance"
            )
        return self._checked("x0", x0, x), None if v is None else self._checked("v", v, x)

    def _checked(self, name: str, tensor: Any, x: Tensor) -> Tensor:
        """A tensor of floating point in the shape of x, in its precision.  ValueError for another."""
        shape = list(getattr(tensor, "shape", []))
        if shape != list(x.shape):
            raise ValueError(
                f"{name} of {self.name}'s denoiser has the shape {shape}, not x_t's {list(x.shape)}: "
                "return (x0, v), both in x_t's shape, or v = None"
            )
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"{name} of {self.name}'s denoiser is a {kind}: return a torch.Tensor of floating point, as "
                "x_t is"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"{name} of {self.name}'s denoiser is on {tensor.device}, x_t on {x.device}: let {self.name} "
                "take `device`, and put the network there"
            )
        return tensor
