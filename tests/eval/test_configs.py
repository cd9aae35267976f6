"""What configs/metrics and configs/reference decide: every number of a protocol has its source."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import hydra
import numpy as np
import pytest
import timm
from cleanfid.downloads_helper import inception_url
from cleanfid.fid import kernel_distance
from cleanfid.inception_pytorch import FID_WEIGHTS_URL
from conftest import ROOT, golden_json
from torch_fidelity.defaults import DEFAULTS as TORCH_FIDELITY
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchvision.models import VGG16_Weights

from eval import networks
from eval.extractors import extractor_named
from eval.reference import Reference, build_reference
from eval.scoring import METRICS, Options, check_metrics, real_floor
from experiments.config import composed, evaluator_of

# At 2048 features the bootstrap takes minutes.
LARGE = {"fid_se": "delta", "allow_few": False}
THEIRS = {"k": "prc_neighborhood", "is_splits": "isc_splits", "is_shuffle_seed": "rng_seed"}
THEIRS |= {"kid_subset_size": "kid_subset_size", "seed": "rng_seed"}
CLEAN = inspect.signature(kernel_distance).parameters
PROTOCOLS = {  # extractor, scores, options; None: those of the committed tables
    # guided-diffusion's evaluator: radii reach to the third neighbour, IS in chunks of 5,000
    "adm": (
        "inception",
        "fid sfid is precision recall",
        {"k": 3, "is_chunk_size": 5000, "bootstrap": 100, "seed": 0, **LARGE},
    ),
    "torch_fidelity": (
        "torch_fidelity",
        "is fid kid precision recall",
        {name: TORCH_FIDELITY[theirs] for name, theirs in THEIRS.items()}
        | {"bootstrap": 100, **LARGE},
    ),
    "clean": (
        "clean",
        "fid",
        {"kid_subset_size": CLEAN["max_subset_size"].default, "seed": 0, **LARGE},
    ),
    # dgm-eval's nearest_k
    "dinov2": (
        "dinov2",
        "fid fid_infinity kid precision recall density coverage",
        {"k": 5, "ties": "out", "prdc_size": 10_000, "bootstrap": 100, "seed": 0, **LARGE},
    ),
    # no protocol of anybody's: precision and recall as Kynkaanniemi et al. (2019) have them
    "custom": (
        "timm/x",
        "fid precision recall",
        {"k": 3, "bootstrap": 100, "seed": 0, **LARGE},
    ),
    "digits": ("digits", "is fid kid precision recall", None),
    "cifar10": ("cifar10", "is fid kid precision recall", None),
    "pixels": ("pixels", "diagonal_fid", {}),
    "clip": ("clip", "clip_score", {}),
}
# The scores that others print for sample batches which they published: the protocol gate.
PUBLISHED_SCORES = """
# guided-diffusion's issue 75, by its evaluator
admnet_imagenet64 fid=2.6142
# baseline rows of Self-Attention Guidance's README
admnet_imagenet128 fid=5.91 sfid=5.09 precision=0.70 recall=0.65
# guided-diffusion's README; sFID as above
admnet_guided_imagenet128 fid=2.97 sfid=5.09 precision=0.78 recall=0.59
# ADM's paper, table 4
admnet_imagenet256 fid=10.94 sfid=6.02 is=100.98 precision=0.69 recall=0.63
admnet_guided_imagenet256 fid=4.59 sfid=5.25 is=186.70 precision=0.82 recall=0.52
# guided-diffusion's evaluations/README
admnet_guided_upsampled_imagenet256 fid=3.9426 sfid=6.1404 is=215.8370 precision=0.8265 recall=0.5309
# guided-diffusion's README
admnet_guided_imagenet512 fid=7.72 precision=0.87 recall=0.42
admnet_guided_upsampled_imagenet512 fid=3.85 precision=0.84 recall=0.53
admnet_dropout_lsun_bedroom fid=1.90 precision=0.66 recall=0.51
admnet_dropout_lsun_cat fid=5.57 precision=0.63 recall=0.52
admnet_dropout_lsun_horse fid=2.57 precision=0.71 recall=0.55
"""
PUBLISHED = {
    batch: {metric: float(value) for metric, value in (score.split("=") for score in scores)}
    for batch, *scores in map(str.split, PUBLISHED_SCORES.strip().splitlines())
    if batch != "#"
}
BATCHES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
REFERENCE_BATCHES = {  # and how many images their statistics are of
    "adm_imagenet64": ("imagenet/64/VIRTUAL_imagenet64_labeled.npz", 1281167),
    "adm_imagenet128": ("imagenet/128/VIRTUAL_imagenet128_labeled.npz", 1281167),
    "adm_imagenet256": ("imagenet/256/VIRTUAL_imagenet256_labeled.npz", 1281167),
    "adm_imagenet512": ("imagenet/512/VIRTUAL_imagenet512.npz", 1281167),
    "adm_lsun_bedroom256": ("lsun/bedroom/VIRTUAL_lsun_bedroom256.npz", 3033042),
    "adm_lsun_cat256": ("lsun/cat/VIRTUAL_lsun_cat256.npz", 1657266),
    "adm_lsun_horse256": ("lsun/horse/VIRTUAL_lsun_horse256.npz", 2000340),
}


def names(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}


def config(group: str, name: str, *more: str):
    return composed("evaluate", f"{group}={name}", *more)[group]


def records(table: str):
    return json.loads((ROOT / "results" / "digits" / table / "records.json").read_text())


def test_every_config_is_pinned_here():
    assert names("metrics") == set(PROTOCOLS)
    coco = {"coco_center_lanczos256", "coco_bicubic256"}
    small = {"cifar10", "digits"}
    assert names("reference") == {
        *REFERENCE_BATCHES,
        *coco,
        *small,
        "adm",
        "custom",
        "none",
        "stored",
    }
    assert config("reference", "custom", "reference.images.path=x").floor.path is None
    stored = config("reference", "stored", "reference.file=x.npz")
    assert stored == {"name": "stored", "file": "x.npz"}
    none = config("reference", "none")
    assert none.name == "none" and none.floor is None and "images" not in none


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols(name):
    named = ["metrics.extractor=timm/x"] if name == "custom" else []
    cfg = config("metrics", name, *named)
    extractor, scores, options = PROTOCOLS[name]
    assert (cfg.name, cfg.extractor) == (name, extractor)
    assert check_metrics(cfg.scores) == scores.split()
    if options is None:
        options = records("table1")[0]["options"]
    assert cfg.options == options
    Options.of(cfg.options)


def test_weights_are_the_files_that_downloads_fetch():
    adm, theirs = config("metrics", "adm"), config("metrics", "torch_fidelity")
    dinov2 = config("metrics", "dinov2")
    paths = (adm.weights, theirs.weights, theirs.vgg16_weights, dinov2.weights)
    files = (networks.INCEPTION, networks.INCEPTION, networks.VGG16, networks.DINOV2)
    assert [Path(path) for path in paths] == [file.place for file in files]
    # What these libraries would fetch themselves; the names begin the hashes.
    assert (networks.INCEPTION.url, networks.CLEAN_INCEPTION.url) == (
        URL_INCEPTION_V3,
        inception_url,
    )
    assert Path(FID_WEIGHTS_URL).stem.endswith(networks.INCEPTION.sha256[:8])
    assert VGG16_Weights.IMAGENET1K_V1.url == networks.VGG16.url
    assert networks.VGG16.place.stem.endswith(networks.VGG16.sha256[:8])
    cfgs = timm.models.vision_transformer.default_cfgs["vit_large_patch14_dinov2"]
    assert cfgs.default.url == networks.DINOV2.url
    clip = config("metrics", "clip")  # BK-SDM's
    assert (clip.model, clip.pretrained) == ("ViT-g-14", "laion2b_s12b_b42k")


# dgm-eval's figures/leaderboard.png, of ADM, ADMG and ADMG-ADMU on ImageNet at 256 x 256.
LEADERBOARD_SCORES = ("fid", "kid", "precision", "recall", "density", "coverage")
LEADERBOARD = {
    "admnet_imagenet256": (203.45, 0.19, 0.8, 0.85, 0.67, 0.72),
    "admnet_guided_imagenet256": (123.27, 0.09, 0.87, 0.84, 0.8, 0.85),
    "admnet_guided_upsampled_imagenet256": (111.24, 0.08, 0.88, 0.84, 0.86, 0.86),
}


@pytest.mark.parametrize("name", REFERENCE_BATCHES)
def test_reference_batches_and_the_published_scores(name):
    cfg = config("reference", name)
    file, n = REFERENCE_BATCHES[name]
    assert (cfg.name, cfg.url, cfg.statistics_n) == (name, f"{BATCHES}/{file}", n)
    assert cfg.images.path == cfg.batch and cfg.batch.endswith(cfg.url.rpartition("/")[2])
    assert cfg.floor is None
    place = cfg.url.rpartition("/")[0]
    urls = {url for url in golden_json("evaluator_published") if url.startswith(f"{place}/")}
    assert {entry.url for entry in cfg.published.values()} == urls
    for batch, entry in cfg.published.items():
        assert entry.url == f"{place}/{batch}.npz"
        assert entry.scores.get("adm", {}) == PUBLISHED.get(batch, {})
        row = dict(zip(LEADERBOARD_SCORES, LEADERBOARD.get(batch, ()), strict=False))
        assert entry.scores.get("dinov2", {}) == row
        assert set(entry.scores) <= {"adm", "dinov2"}
        assert all(set(scores) <= set(METRICS) for scores in entry.scores.values())


@pytest.mark.parametrize("way", ["center_lanczos", "bicubic"])
def test_coco_is_brought_to_256_pixels(way):
    cfg = config("reference", f"coco_{way}256")
    assert (cfg.name, cfg.preprocess, cfg.size) == (f"coco_{way}256", way, 256)
    assert cfg.images.path == cfg.batch and cfg.batch.endswith(f"coco/val2014-{way}256.npz")
    assert cfg.url == "http://images.cocodataset.org/zips/val2014.zip"
    assert cfg.floor is None


def test_cifar10s_features_are_stored_with_those_of_the_floor():
    """10,000 each, balanced, of this classifier: a table needs no image."""
    cfg = config("reference", "cifar10")
    assert (cfg.name, cfg.folder, cfg.store_floor) == ("cifar10_jpeg", "models/cifar10", True)
    splits = {part: (cfg[part].split, cfg[part].source) for part in ("images", "floor", "held_out")}
    assert splits == {
        "images": ("reference", "jpeg"),
        "floor": ("floor", "jpeg"),
        "held_out": ("held_out", "jpeg"),
    }
    other = config("reference", "cifar10", "reference.images.source=original")
    assert (other.name, other.floor.source) == ("cifar10_original", "original")
    extractor = extractor_named("cifar10")
    for name in (cfg.name, f"{cfg.name}_floor"):
        (path,) = (ROOT / cfg.folder).glob(f"{name}-cifar10-*.npz")
        stored = Reference.load(path)
        assert (stored.n, stored.weights) == (10_000, extractor.digest)
    assert np.bincount(stored.labels).tolist() == [1000] * 10
    evaluator = evaluator_of(
        composed("evaluate", "reference=cifar10", "metrics=cifar10", "samples=x")
    )
    assert evaluator.reference.name == "cifar10_jpeg"
    assert 0 < evaluator.floor(1000, balanced=True)["fid"].value < 10


def test_the_digits_are_those_of_the_committed_tables():
    """The reference by its stored features, the floor by a score that a stored record tells."""
    cfg = config("reference", "digits")
    assert (cfg.name, cfg.folder, cfg.held_out.split) == ("digits", "models/digits", "held_out")
    images, _ = hydra.utils.instantiate(cfg.images)
    real, labels = hydra.utils.instantiate(cfg.floor)
    digest = records("table1")[0]["reference_digest"]
    stored = Reference.load(ROOT / cfg.folder / f"digits-digits-{digest}.npz")
    digits = extractor_named("digits")
    assert digits.digest.startswith(records("table1")[0]["extractor_weights"])
    np.testing.assert_allclose(digits(images).features, stored.features, rtol=1e-3, atol=1e-3)
    record, pixels = records("study_pixels")[0], extractor_named("pixels")
    assert pixels.digest.startswith(record["extractor_weights"])
    reference = build_reference(cfg.name, images, pixels)
    floor = real_floor(pixels(real), reference, record["n"], labels, ["diagonal_fid"])
    expected = record["floor"]["diagonal_fid"]["value"]
    assert floor["diagonal_fid"].value == pytest.approx(expected, rel=1e-6)
