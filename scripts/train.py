"""Train a small model on images, or the classifier of its scores; what was begun is continued.

    python -m scripts.train model=digits                     # the embedded model: an hour
    python -m scripts.train model=digits what=classifier     # a minute
    python -m scripts.train model=cifar10                    # minutes on a GPU
    python -m scripts.train model=cifar10 training.unet.steps=50 training.unet.batch=16

configs/training says how each is trained.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("train", __doc__)

from pathlib import Path
from typing import Any

from eval.extractors import extractor_named
from eval.reference import build_reference
from experiments.config import (
    Config,
    function_of,
    plain,
    reference_source,
    run_command,
)
from experiments.devices import pick_device
from models.trainer import (
    ClassifierRecipe,
    Recipe,
    Saving,
    TrainingSet,
    UNetTraining,
    accuracy,
    save_weights,
    train_classifier,
)
from models.weights import has_bf16
from sampling.options import check_choice, check_options


def main(cfg: Config) -> None:
    check_choice("what", cfg.what, ("unet", "classifier"))
    device, recipe = pick_device(cfg.device), "unet" if cfg.what == "unet" else "classifier_recipe"
    if cfg.training[recipe].precision == "bf16" and not has_bf16(device):
        print(f"bf16 is slow on this device: training.{recipe}.precision=fp32 is faster")
    train = unet if cfg.what == "unet" else classifier
    train(cfg, device, Path(cfg.out))


def training_set(cfg: Config, split: str, device: Any) -> TrainingSet:
    images, labels = function_of(cfg.training.images, cfg.trusted)(split=split)
    return TrainingSet.of(images, labels, device)


def unet(cfg: Config, device: Any, out: Path) -> None:
    """Train from where the folder is."""
    training, saving = plain(cfg.training), plain(cfg.training.saving)
    changes = plain(cfg.model).get("net") or {}
    if "dropout" in changes:
        raise ValueError(
            "the dropout of training is training.unet.dropout: leave model.net.dropout out"
        )
    network = function_of(cfg.training.network, cfg.trusted)
    check_options("training.unet", training["unet"], Recipe.__dataclass_fields__)
    work = UNetTraining(
        lambda dropout: network(**changes, dropout=dropout),
        Recipe(**training["unet"]),
        Saving(out, **{**saving, "keep": tuple(saving["keep"])}),
        device,
    )
    work.resume()
    if cfg.compile:
        work.compile()
    steps = work.recipe.steps
    last = min(steps, cfg.stop_after or steps)
    work.run(training_set(cfg, "train", device), training_set(cfg, "held_out", device), last)
    if last == steps:
        print(
            f"done: sample it with model={cfg.model.name} model.checkpoint={out}/unet-{steps}.safetensors"
        )


def classifier(cfg: Config, device: Any, out: Path) -> None:
    """Train the classifier, and store the features of the real images that it sees."""
    training, source = cfg.training, reference_source(cfg)
    assert source is not None
    of_training, of_scores = training.images.get("source"), cfg.reference.images.get("source")
    if of_scores not in (None, of_training):
        raise ValueError(
            f"the classifier would see images of source={of_training} and score those of "
            f"source={of_scores}: give reference.images.source={of_training}, too"
        )
    real = source.images().images  # what is missing is missed before the work
    net = train_classifier(
        function_of(training.classifier, cfg.trusted),
        function_of(training.augment, cfg.trusted),
        training_set(cfg, "train", device),
        ClassifierRecipe(**plain(training.classifier_recipe)),
    )
    path = out / "classifier.safetensors"
    save_weights(net.state_dict(), path)
    held_out = training_set(cfg, "held_out", device)
    share, n = accuracy(net, held_out), len(held_out.images)
    print(f"{path}: {100 * share:.2f}% of {n} held-out images are recognised")
    extractor = extractor_named(cfg.metrics.extractor, str(device), weights=str(path))
    stored = [build_reference(source.name, real, extractor)]
    if source.store_floor and source.floor:
        images, labels = source.floor()
        stored.append(build_reference(source.floor_name, images, extractor, labels=labels))
    for reference in stored:
        print(f"reference: {reference.save(out)}")
    print(f"metrics.weights={path} reference.folder={out} score with it")


if __name__ == "__main__":
    run_command(main, "train")
