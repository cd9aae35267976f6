"""What is known of the published ADM checkpoints (cards.yaml), and of those of one's own."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from models.adm.networks import Classifier, UNet
from models.weights import check_fit, read_weights

PUBLISHED = Path(__file__).with_name("cards.yaml")
KINDS: dict[str, Callable[..., UNet | Classifier]] = {"unet": UNet, "classifier": Classifier}


@dataclass(frozen=True)
class Card:
    """What is known of one checkpoint.

    `network` are the options of `UNet` or `Classifier` (`kind`) in `models.adm.networks`, and
    `precision` is that of the U-Net's torso as it was released.  `tensors`, `parameters` and
    `layout` say what the file must hold: `layout` is the SHA-256 of the ordered list of
    [key, shape].  `sha256` is None where its authors publish none.
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
    precision: str = "fp32"
    classifier: str | None = None
    reference: str | None = None
    notes: tuple[str, ...] = ()
    published: tuple[dict[str, Any], ...] = ()

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        return f"fetch it with `python -m scripts.download {self.name}` or from {self.url}"

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


def card_names() -> list[str]:
    """The names of the published checkpoints."""
    return sorted(_published())


def read_card(name: str | Path) -> Card:
    """The published card of that name, or the one in the YAML file of that path.

    Raises FileNotFoundError with the known names, or ValueError for a file that is no complete
    card or whose network has another layout than it says.
    """
    import yaml

    if name in _published():
        return _published()[str(name)]
    path = Path(name)
    if not path.is_file():
        known = ", ".join(card_names())
        raise FileNotFoundError(f"no card {str(name)!r}: choose a YAML file or one of {known}")
    try:
        card = _card(str(path), **yaml.safe_load(path.read_text(encoding="utf-8")))
        tensors, layout = len(card.shapes), layout_digest(card.shapes)
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the card {path} is not complete: {error}") from None
    if (tensors, layout) != (card.tensors, card.layout):
        raise ValueError(
            f"the card {path} contradicts itself: its network has {tensors} tensors with layout "
            f"{layout}, it says {card.tensors} with {card.layout}"
        )
    return card


@cache
def _published() -> dict[str, Card]:
    import yaml  # not above: the networks need no cards

    cards = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["cards"]
    return {name: _card(name, **entries) for name, entries in cards.items()}


def _card(name: str, **entries: Any) -> Card:
    for key in ("notes", "published"):
        entries[key] = tuple(entries.get(key) or ())
    return Card(name=name, **entries)


def layout_digest(shapes: dict[str, list[int]]) -> str:
    """SHA-256 of the ordered list of [key, shape]."""
    return hashlib.sha256(json.dumps(list(shapes.items())).encode()).hexdigest()
