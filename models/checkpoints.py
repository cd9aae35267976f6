"""Published ADM checkpoints: what each one's card says, and loading it as a `Backbone`.

A card is a YAML file under `models/cards/`: where the checkpoint comes from, the options of its
network, what keys and shapes it must hold, and what its authors say of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from models.adm import Classifier, UNet
from models.backbone import (
    Backbone,
    NetworkDenoiser,
    check_fit,
    dtype_named,
    file_sha256,
    load_weights,
    read_weights,
    recorded_sha256,
    to_uint8,
)
from models.guidance import ClassifierGuidance
from sampling import Schedule

CARDS = Path(__file__).parent / "cards"
KINDS: dict[str, Callable[..., UNet | Classifier]] = {"unet": UNet, "classifier": Classifier}


@dataclass(frozen=True)
class Card:
    """What is known of one checkpoint.

    `network` are the options of `models.adm.UNet` or `Classifier` (`kind`).  `tensors`,
    `parameters` and `layout` say what the file must hold: `layout` is the SHA-256 of the ordered
    list of [key, shape].  `sha256` is None where its authors publish none.
    """

    name: str
    title: str
    kind: str
    url: str
    sha256: str | None
    licence: str
    image_size: int
    network: dict[str, Any]
    tensors: int
    parameters: int
    layout: str
    schedule: str = "linear"
    classifier: str | None = None
    reference: str | None = None
    notes: tuple[str, ...] = ()
    published: tuple[dict[str, Any], ...] = ()

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        return f"fetch it with `python scripts/download.py {self.name}` or from {self.url}"

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Key -> shape, in order, of everything the checkpoint must hold."""
        return {key: list(value.shape) for key, value in self.build().state_dict().items()}

    def build(self) -> UNet | Classifier:
        """The network on the meta device: its shape, without memory."""
        with torch.device("meta"):
            return KINDS[self.kind](**self.network)

    def check_file(self, path: Path) -> None:
        """Raise ValueError unless the file is a checkpoint of exactly this card's layout."""
        weights = read_weights(path, self.remedy)
        check_fit(self.shapes, weights, path)


def layout_digest(shapes: dict[str, list[int]]) -> str:
    """SHA-256 of the ordered list of [key, shape]."""
    return hashlib.sha256(json.dumps(list(shapes.items())).encode()).hexdigest()


def read_card(name: str | Path) -> Card:
    """The card of that name under models/cards, or in the YAML file of that path.

    Raises FileNotFoundError with the known names, or ValueError for a card that is incomplete or
    whose network has another layout than it says.
    """
    path = CARDS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(card_names())
        raise FileNotFoundError(f"no card {str(name)!r}: choose a YAML file or one of {known}")
    try:
        entries: dict[str, Any] = yaml.safe_load(path.read_text())
        for key in ("notes", "published"):
            entries[key] = tuple(entries.get(key) or ())
        card = Card(name=path.stem if path.parent == CARDS else str(path), **entries)
        found = (len(card.shapes), layout_digest(card.shapes))
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the card {path} is not complete: {error}") from None
    if found != (card.tensors, card.layout):
        raise ValueError(
            f"the card {path} contradicts itself: its network has {found[0]} tensors with layout "
            f"{found[1]}, it says {card.tensors} with {card.layout}"
        )
    return card


def card_names() -> list[str]:
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def load(
    card: str,
    checkpoint: str,
    clip: bool = True,
    precision: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    guidance: dict[str, Any] | None = None,
    untrained: bool = False,
    device: torch.device | str = "cpu",
) -> Backbone:
    """An ADM checkpoint, ready to sample.

    `precision` is that of the U-Net's torso (see `UNet.set_torso`); the solver's state stays
    float32.  `guidance` is {"scale": s, "checkpoint": path or None} for classifier guidance.
    `untrained` fills the network with random numbers instead, to measure its speed without a
    checkpoint.  Raises FileNotFoundError or ValueError, with the remedy, for a checkpoint that
    is missing, damaged, not the card's, or not the one that was first downloaded.
    """
    known = read_card(card)
    if known.kind != "unet":
        raise ValueError(f"the card {card} is of a {known.kind}, not of a diffusion model")
    path = None if untrained else Path(checkpoint)
    net, sha256 = load_network(known, path, precision, device)
    conditional = net.num_classes is not None
    guide = None
    if guidance:
        guide = _classifier_guidance(known, path, guidance, device)
        if conditional and guide.num_labels != net.num_classes:
            raise ValueError(
                f"the classifier knows {guide.num_labels} classes, the model {net.num_classes}"
            )
    run: nn.Module = net
    if channels_last:
        run = run.to(memory_format=torch.channels_last)
    if compile:
        run = torch.compile(run)  # type: ignore[assignment]
    return Backbone(
        denoiser=NetworkDenoiser(run, conditional),
        schedule=Schedule.named(known.schedule),
        shape=(3, known.image_size, known.image_size),
        num_classes=guide.num_labels if guide else net.num_classes,
        clip=clip,
        sha256=sha256,
        decode=to_uint8,
        guidance=guide,
    )


def load_network(
    card: Card, path: Path | None, precision: str, device: torch.device | str
) -> tuple[Any, str]:
    """(network in eval mode on `device`, SHA-256 of its file); random weights without a path."""
    dtype = dtype_named(precision)
    net = card.build()
    net.set_torso(dtype)
    if path is None:
        net = net.to_empty(device=device)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.02)
        sha256 = "untrained"
    else:
        sha256 = _checked_sha256(card, path)
        load_weights(net, path, device, card.remedy)
    return net.eval().requires_grad_(False), sha256


def _checked_sha256(card: Card, path: Path) -> str:
    """The file's SHA-256, if it is the published or first recorded one where there is one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {card.remedy}")
    sha256 = file_sha256(path)
    expected = card.sha256 or recorded_sha256(path)
    if expected not in (None, sha256):
        known = "its card" if card.sha256 else f"{path}.sha256, written at its first download,"
        raise ValueError(
            f"{path} is not the file it should be: its SHA-256 is {sha256[:12]}..., {known} says "
            f"{str(expected)[:12]}...; remove it and {card.remedy}"
        )
    return sha256


def _classifier_guidance(
    card: Card, unet: Path | None, options: dict[str, Any], device: torch.device | str
) -> ClassifierGuidance:
    """The published classifier of the card's model; by default from beside the U-Net's file."""
    if card.classifier is None:
        raise ValueError(f"{card.title} has no classifier: use guidance=none")
    classifier = read_card(card.classifier)
    path = None
    if unet is not None:
        path = Path(options.get("checkpoint") or unet.with_name(classifier.file_name))
    net, sha256 = load_network(classifier, path, "fp32", device)
    return ClassifierGuidance(net, options["scale"], sha256, classifier.network)
