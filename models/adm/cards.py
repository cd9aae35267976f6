"""What is known of the published ADM checkpoints (cards.yaml), and of those of one's own cards."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from models.adm.networks import Classifier, UNet
from models.weights import Shapes, check_fit, read_weights, shapes_of
from sampling import Schedule

PUBLISHED = Path(__file__).with_name("cards.yaml")
KINDS: dict[str, Callable[..., UNet | Classifier]] = {"unet": UNet, "classifier": Classifier}


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The network of a checkpoint and the diffusion that it was trained for.

    `network` are the options of `UNet` or `Classifier` (`kind`) in `models.adm.networks`, `schedule`
    is the name of T = 1000 betas, `classifier` the card of one that guides it.  `sha256` is None
    where it is not known beforehand.
    """

    image_size: int
    network: dict[str, Any]
    kind: str
    sha256: str | None
    schedule: str = "linear"
    classifier: str | None = None

    @property
    def remedy(self) -> str:
        """What to do about a missing or damaged file."""
        raise NotImplementedError

    def misfit(self, shapes: Shapes) -> str:
        """What to do about a file of these shapes, which are not the network's."""
        return "check the model's options"

    @property
    def betas(self) -> Schedule:
        return Schedule.named(self.schedule)

    @property
    def prediction_type(self) -> str:
        """What the network predicts, in the words of `sampling.denoise.implied_x0`."""
        return "epsilon"

    @property
    def time_scale(self) -> float:
        """What the network is told of timestep t, in units of t."""
        return 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """What pixels depend on besides the weights, as `Backbone.facts`."""
        return {}

    @cached_property
    def shapes(self) -> Shapes:
        """Key -> shape, in order, of everything the checkpoint must hold."""
        return shapes_of(self.build().state_dict())

    def build(self) -> UNet | Classifier:
        """The network on the meta device: its shape, without memory."""
        with torch.device("meta"):
            return KINDS[self.kind](**self.network)


@dataclass(frozen=True, kw_only=True)
class Card(Blueprint):
    """What is known of one checkpoint.

    `precision` is that of the U-Net's torso as it was released.  `tensors`, `parameters` and
    `layout` say what the file must hold: `layout` is the SHA-256 of the ordered list of
    [key, shape].  `sha256` is None where its authors publish none.
    """

    name: str
    title: str
    url: str
    licence: str
    tensors: int
    parameters: int
    layout: str
    precision: str = "fp32"
    reference: str | None = None
    notes: tuple[str, ...] = ()
    published: tuple[dict[str, Any], ...] = ()

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        return f"fetch it with `python -m scripts.download {self.name}` or from {self.url}"

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
