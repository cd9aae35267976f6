"""Fetch published checkpoints, reference batches, sample batches and the weights of
Inception and other networks that score images.

    make download MODEL=adm_imagenet
    make download MODEL=sd21
    make download MODEL=opensora11
    python -m scripts.download adm_imagenet adm_imagenet_classifier admnet_imagenet256
    python -m scripts.download model=adm model.card=mine.yaml model.checkpoint=mine.pt

A model brings its checkpoint, the reference batch that it is scored against and Inception; it is
named, or described by settings as for sample.py.  Files go to downloads/ or $SKIPPED_STEP_DOWNLOADS,
diffusers pipelines into the hub's own cache ($HF_HOME).  Interrupted downloads continue with the
same command; every file is verified, and none is there before it is whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from eval import networks
from eval.endings import parser
from eval.reference import read_adm_statistics
from experiments.choices import CONFIGS, options_of
from experiments.config import Config, composed
from experiments.endings import reported
from files.fetch import fetch
from files.images import load_samples
from files.places import downloads
from models.adm.cards import Card, card_names, read_card
from models.hub import WITHDRAWN, download_files, download_pipeline


@dataclass(frozen=True)
class Asset:
    """One file: where it comes from and lies, and what tells it from a wrong one."""

    url: str
    path: Path
    sha256: str | None
    check: Callable[[Path], object]

    def get(self) -> str:
        digest = fetch(self.url, self.path, sha256=self.sha256, check=self.check)
        known = (
            "" if self.sha256 else " (no published one is known: it is recorded beside the file)"
        )
        return f"{self.path}  sha256 {digest[:16]}...{known}"


@dataclass(frozen=True)
class HubPipeline:
    """A diffusers pipeline, which the hub's own client fetches, resumes and verifies."""

    id: str
    revision: str | None
    variant: str | None
    hint: str = ""  # where there is none

    def get(self) -> str:
        folder = download_pipeline(self.id, self.revision, self.variant, self.hint)
        return f"{self.id}  {folder}"


@dataclass(frozen=True)
class HubFiles:
    """The files of a hub repository that fit the patterns, fetched as pipelines are."""

    id: str
    revision: str | None
    patterns: tuple[str, ...]

    def get(self) -> str:
        folder = download_files(self.id, self.revision, list(self.patterns))
        return f"{self.id}  {folder}"


Source = Asset | HubPipeline | HubFiles
NETWORKS = ("inception", "vgg16", "clean_inception", "dinov2")  # that score images


def named_assets(name: str) -> list[Source]:
    """The files behind a name.  Raises ValueError with the known names for another."""
    if name in (*models(), "digits"):
        return _of_model(composed("sample", f"model={name}"))
    if name in card_names() or (name.endswith(".yaml") and Path(name).is_file()):
        return [_of_card(read_card(name), downloads())]
    if name in references():
        return [_of_reference(composed("evaluate", f"reference={name}").reference)]
    if name in NETWORKS:
        return [_of_network(getattr(networks, name.upper()))]
    if url := published_batches().get(name):
        return [Asset(url, _place(url), None, load_samples)]
    classifiers = [card for card in card_names() if card not in models()]
    known = [*models(), *classifiers, *references(), *published_batches()]
    raise ValueError(
        f"nothing to download is called {name!r}: choose among {', '.join([*known, *NETWORKS])}"
    )


def _place(url: str) -> Path:
    return downloads() / url.rsplit("/", 1)[-1]


def _of_model(cfg: Config) -> list[Source]:
    if "text_encoder" in cfg.model:
        weights, tokenizer = ("*.json", "*.safetensors"), ("spiece.model", "pytorch_model*.bin")
        return [
            HubFiles(cfg.model.id, cfg.model.revision, ("config.json", "model.safetensors")),
            HubFiles(cfg.model.vae, None, weights),
            HubFiles(cfg.model.text_encoder, None, (*weights, *tokenizer)),
        ]
    if "id" in cfg.model:
        variant = cfg.model.get("variant")
        hint = WITHDRAWN if cfg.model._target_.startswith("models.stable_diffusion.") else ""
        pipeline = HubPipeline(cfg.model.id, cfg.model.revision, variant, hint)
        batch = [_of_reference(cfg.reference)] if cfg.reference.get("statistics_n") else []
        return [pipeline, *batch, _of_network(networks.INCEPTION)]
    if "flags" in cfg.model and cfg.model.card is None:
        raise ValueError(
            "a checkpoint without a card names no place to fetch it from: give the file as "
            "model.checkpoint=..., or its card as model.card=..."
        )
    if "card" not in cfg.model:
        raise ValueError(f"model {cfg.model.name} needs no download: it is part of the repository")
    card = read_card(cfg.model.card)
    checkpoint = Asset(card.url, Path(cfg.model.checkpoint), card.sha256, card.check_file)
    classifier = []
    if cfg.guidance.name == "classifier" and card.classifier:
        classifier = [_of_card(read_card(card.classifier), checkpoint.path.parent)]
    return [checkpoint, *classifier, _of_reference(cfg.reference), _of_network(networks.INCEPTION)]


def _of_card(card: Card, folder: Path) -> Asset:
    return Asset(card.url, folder / card.file_name, card.sha256, card.check_file)


def _of_reference(reference: Config) -> Asset:
    check = partial(read_adm_statistics, n=reference.statistics_n)
    return Asset(reference.url, Path(reference.batch), None, check)


def _of_network(file: networks.Published) -> Asset:
    return Asset(file.url, file.place, file.sha256, lambda path: None)


def models() -> list[str]:
    """The models with something to fetch: those of ADM's cards, and those that name a hub id."""
    hub = {name for name, config in _configs("model").items() if config.get("id", "???") != "???"}
    return [name for name in options_of("model") if name in hub or name in card_names()]


def references() -> list[str]:
    """The published reference batches."""
    return [name for name in options_of("reference") if name.startswith("adm_")]


def published_batches() -> dict[str, str]:
    """Name -> URL of the sample batches whose published scores we know."""
    published = [config.get("published") or {} for config in _configs("reference").values()]
    return {name: entry["url"] for batches in published for name, entry in batches.items()}


def _configs(group: str) -> dict[str, Any]:
    """Name -> what stands in the file, for all of configs/<group>."""
    paths = sorted(Path(CONFIGS, group).glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def main() -> None:
    command = parser(__doc__)
    text = (
        f"a model, card, reference or batch, {', '.join(NETWORKS)}; or settings, as model.id=NAME"
    )
    command.add_argument("names", nargs="+", metavar="NAME", help=text)
    words = command.parse_args().names
    assets = [asset for word in words if "=" not in word for asset in named_assets(word)]
    if settings := [word for word in words if "=" in word]:
        assets += _of_model(composed("reproduce", *settings))  # which has models and references
    for asset in {a.path if isinstance(a, Asset) else a: a for a in assets}.values():
        print(asset.get(), flush=True)


if __name__ == "__main__":
    reported(main)
