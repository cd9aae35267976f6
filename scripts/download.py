"""Fetch published checkpoints, reference batches, sample batches and Inception's weights.

    make download MODEL=adm_imagenet
    make download MODEL=sd21
    make download MODEL=opensora11
    python -m scripts.download adm_imagenet adm_imagenet_classifier admnet_imagenet256
    python -m scripts.download model=adm model.card=mine.yaml model.checkpoint=mine.pt

A model brings its checkpoint, the reference batch that it is scored against and Inception; it
is named, or described by settings as for sample.py.
Files go to downloads/ or $SKIPPED_STEP_DOWNLOADS, diffusers pipelines into the hub's own cache
($HF_HOME).  Interrupted downloads continue with the same
command; every file is verified, and none is there before it is whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from omegaconf import DictConfig

from eval.extractors import URL_VGG16
from eval.reference import read_adm_statistics
from experiments.config import CONFIGS, composed, reported
from files.fetch import fetch
from files.images import load_samples
from files.places import downloads
from models.adm.cards import CARDS, Card, read_card
from models.stable_diffusion.hub import download_files, download_pipeline
from models.weights import read_weights


@dataclass(frozen=True)
class Asset:
    """One file: where it comes from and lies, and what tells it from a wrong one."""

    url: str
    path: Path
    sha256: str | None
    check: Callable[[Path], object]

    def get(self) -> str:
        digest = fetch(self.url, self.path, sha256=self.sha256, check=self.check)
        return f"{self.path}  sha256 {digest[:16]}..."


@dataclass(frozen=True)
class HubPipeline:
    """A diffusers pipeline, which the hub's own client fetches, resumes and verifies."""

    id: str
    revision: str | None
    variant: str | None

    def get(self) -> str:
        return f"{self.id}  {download_pipeline(self.id, self.revision, self.variant)}"


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


def named_assets(name: str) -> list[Source]:
    """The files behind a name.  Raises ValueError with the known names for another."""
    if name in models():
        return _of_model(composed("sample", f"model={name}"))
    if name == "digits":
        raise ValueError("model digits needs no download: it is part of the repository")
    if (CARDS / f"{name}.yaml").is_file() or (name.endswith(".yaml") and Path(name).is_file()):
        return [_of_card(read_card(name), downloads())]
    if name in options("reference") and name.startswith("adm_"):
        return [_of_reference(composed("evaluate", f"reference={name}").reference)]
    if name == "inception":
        return [_inception()]
    if name == "vgg16":
        path = downloads() / URL_VGG16.rsplit("/", 1)[-1]
        return [Asset(URL_VGG16, path, None, read_weights)]
    if name in (batches := published_batches()):
        url = batches[name]
        return [Asset(url, downloads() / url.rsplit("/", 1)[-1], None, load_samples)]
    known = [*models(), *sorted({path.stem for path in CARDS.glob("*_classifier.yaml")})]
    known += [r for r in options("reference") if r.startswith("adm_")]
    raise ValueError(
        f"nothing to download is called {name!r}: choose among {', '.join(known)}, "
        f"{', '.join(batches)}, inception, vgg16"
    )


def _of_model(cfg: DictConfig) -> list[Source]:
    if "text_encoder" in cfg.model:
        weights = ("*.json", "*.safetensors")
        return [
            HubFiles(cfg.model.id, cfg.model.revision, ("config.json", "model.safetensors")),
            HubFiles(cfg.model.vae, None, weights),
            HubFiles(
                cfg.model.text_encoder, None, (*weights, "spiece.model", "pytorch_model*.bin")
            ),
        ]
    if "id" in cfg.model:
        pipeline = HubPipeline(cfg.model.id, cfg.model.revision, cfg.model.variant)
        return [pipeline, _inception()]
    if "card" not in cfg.model:
        raise ValueError(f"model {cfg.model.name} needs no download: it is part of the repository")
    card = read_card(cfg.model.card)
    checkpoint = Asset(card.url, Path(cfg.model.checkpoint), card.sha256, card.check_file)
    classifier = []
    if cfg.guidance.name == "classifier" and card.classifier:
        classifier = [_of_card(read_card(card.classifier), checkpoint.path.parent)]
    return [checkpoint, *classifier, _of_reference(cfg.reference), _inception()]


def _of_card(card: Card, folder: Path) -> Asset:
    return Asset(card.url, folder / card.file_name, card.sha256, card.check_file)


def _of_reference(reference: DictConfig) -> Asset:
    check = partial(read_adm_statistics, n=reference.statistics_n)
    return Asset(reference.url, Path(reference.batch), None, check)


# The first eight digits are in the file's name; public projects that use it record the rest.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def _inception() -> Asset:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    return Asset(url, downloads() / url.rsplit("/", 1)[-1], INCEPTION_SHA256, read_weights)


def models() -> list[str]:
    """The models that have a card of something published; digits needs no download."""
    cards = {path.stem for path in CARDS.iterdir()}
    return [name for name in options("model") if name in cards]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONFIGS, group).glob("*.yaml"))


@cache
def published_batches() -> dict[str, str]:
    """Name -> URL of the sample batches whose published scores we know."""
    found = {}
    for name in options("reference"):
        published = composed("evaluate", f"reference={name}").reference.get("published") or {}
        found.update({batch: entry.url for batch, entry in published.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a model, card, reference or batch, inception, vgg16",
    )
    words = parser.parse_args().names
    settings = [word for word in words if "=" in word]
    found = [asset for word in words if "=" not in word for asset in named_assets(word)]
    if settings:
        found += _of_model(composed("sample", *settings))
    for asset in {a.path if isinstance(a, Asset) else a: a for a in found}.values():
        print(asset.get(), flush=True)


if __name__ == "__main__":
    reported(main)
