"""Published ADM checkpoints, and those of one's own, as a `Backbone`."""

from pathlib import Path
from typing import Any

import torch

from files.media import Images
from files.whole import file_sha256, recorded_sha256
from models.adm.cards import Card, read_card
from models.adm.flags import Flags, read_flags
from models.adm.guidance import ClassifierGuidance
from models.backbone import Backbone, ImageNetwork, optimized, to_uint8
from models.weights import (
    Misfit,
    dtype_named,
    load_weights,
    randomize,
    read_weights,
    shapes_of,
)


def load(
    card: str | None,
    checkpoint: str,
    clip: bool = True,
    precision: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    guidance: dict[str, Any] | None = None,
    untrained: bool = False,
    flags: str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """An ADM checkpoint, ready to sample: that of a card, or one with guided-diffusion's flags.

    `precision` is that of the U-Net's torso (see `UNet.set_torso`); the solver's state stays
    float32.  `guidance` is {"scale": s, "checkpoint": path or None} for classifier guidance.
    `untrained` fills the network with random numbers instead, to measure its speed without a
    checkpoint.  Raises FileNotFoundError or ValueError, with the remedy, for a checkpoint that
    is missing, damaged, not the card's, or not the one that was first downloaded.
    """
    path = None if untrained else Path(checkpoint)
    entry = _described(card, flags, Path(checkpoint))
    net, sha256 = load_network(entry, path, precision, device)
    classes, classifier = net.num_classes, None
    if guidance:
        classifier = _guidance(entry, path, guidance, device)
        if classes not in (None, classifier.num_labels):
            raise ValueError(
                f"the classifier knows {classifier.num_labels} classes, the model {classes}"
            )
    channels = net.options.in_channels
    network = ImageNetwork(
        optimized(net, channels_last, compile), net.num_classes is not None, entry.time_scale
    )
    return Backbone(
        network=network,
        schedule=entry.betas,
        shape=(channels, entry.image_size, entry.image_size),
        num_classes=classifier.num_labels if classifier else classes,
        clip=clip,
        sha256=sha256,
        decode=to_uint8,
        media=Images((entry.image_size, entry.image_size, channels)),
        device=torch.device(device),
        guidance=classifier,
        prediction_type=entry.prediction_type,
        facts=entry.facts,
        notes=_notes(entry, precision),
    )


def _notes(entry: Card | Flags, precision: str) -> tuple[str, ...]:
    told = entry.notes(precision) if isinstance(entry, Flags) else []
    return tuple(f"model.flags: {note}" for note in told)


def _described(card: str | None, flags: str | None, path: Path) -> Card | Flags:
    """The card, or the flags: what the checkpoint is known by."""
    if (card is None) == (flags is None):
        given = "neither" if card is None else "both"
        raise ValueError(
            f"model=adm takes a card or flags, got {given}: model.flags='--image_size 64 ...' for a "
            "guided-diffusion checkpoint of one's own, model.card=FILE for one with a card"
        )
    if card is not None:
        entry = read_card(card)
        if entry.kind != "unet":
            raise ValueError(f"the card {card} is of a {entry.kind}, not of a diffusion model")
        return entry
    return read_flags(str(flags), shapes_of(read_weights(path)) if path.is_file() else None)


def load_network(
    card: Card | Flags, path: Path | None, precision: str, device: torch.device | str
) -> tuple[Any, str]:
    """(network in eval mode on `device`, SHA-256 of its file); random numbers without a path."""
    net = card.build()
    net.set_torso(dtype_named(precision))
    if path is None:
        return randomize(net, device), "untrained"
    sha256 = _checked_sha256(card, path)
    try:
        load_weights(net, path, device, card.remedy)
    except Misfit as error:
        raise ValueError(f"{error.difference}; {card.misfit(error.shapes)}") from None
    return net.eval().requires_grad_(False), sha256


def _checked_sha256(card: Card | Flags, path: Path) -> str:
    """The file's SHA-256, if it is the published or first recorded one where there is one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {card.remedy}")
    sha256 = file_sha256(path)
    expected = card.sha256 or recorded_sha256(path)
    if expected not in (None, sha256):
        witness = "its card" if card.sha256 else f"{path}.sha256, written at its first download,"
        raise ValueError(
            f"{path} is not the file it should be: its SHA-256 is {sha256[:12]}..., {witness} says "
            f"{str(expected)[:12]}...; remove it and {card.remedy}"
        )
    return sha256


def _guidance(
    card: Card | Flags, unet: Path | None, options: dict[str, Any], device: torch.device | str
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
