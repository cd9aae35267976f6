"""What the tables take on one such device, at the speeds that were measured on it.

Network calls are counted by `dry_run` from the experiments' own configs, as one tree a step count.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from experiments.check.machine import Speed, mode_of
from experiments.check.outcome import Skip, rounded
from files.media import Images
from models.backbone import Backbone, ImageNetwork
from sampling import Schedule

EXPERIMENTS = ("table1", "table2", "table3", "table4", "figure4", "table1_small", "figure4_small")
# The same network but for its labels.
TIMED_AS = {"adm_lsun_bedroom": "adm_imagenet"}
DECODERS = {"sd21": "sd21's VAE", "opensora11": "sd21's VAE"}
# A video's frames in images of 512 x 512: the decoder's time goes with the pixels.
IMAGES_A_SAMPLE = {"opensora11": 16 * 240 * 424 / 512**2}


def hours(speeds: Sequence[Speed], device: torch.device) -> Iterator[dict[str, Any] | str]:
    """Of every table its calls and hours on the device that was timed; where its network was not timed, a line that says so.

    Raises ImportError without Hydra, and Skip where nothing was timed.
    """
    from experiments.config import composed, plain

    if not speeds:
        raise Skip("needs speeds")
    for name in EXPERIMENTS:
        cfg = composed("reproduce", f"experiment={name}")
        model = cfg.model.name
        timed = [s for s in speeds if s.model == TIMED_AS.get(model, model)]
        config = plain(cfg.model)
        mode = mode_of(config, device)
        wanted = (config.get("precision", "fp32"), mode)
        as_configured = [s for s in timed if (s.precision, s.mode) == wanted]
        if not as_configured:
            yield f"hours of {name}: needs the speed of {model} in {' '.join(wanted)}"
            continue
        calls, images = counts(cfg)
        now, best = fastest(as_configured), fastest(timed)
        yield {
            "experiment": name,
            "model": model,
            "image_calls": calls,
            "samples": images,
            "hours": rounded(calls * now.seconds / 3600),
            "as_configured": f"{now.precision} {now.mode}, batch {now.batch}",
            "hours_at_best": rounded(calls * best.seconds / 3600),
            "at_best": f"{best.precision} {best.mode}, batch {best.batch}",
            **_besides(speeds, model, images),
        }


def fastest(speeds: Sequence[Speed]) -> Speed:
    return min(speeds, key=lambda speed: speed.seconds)


def _besides(speeds: Sequence[Speed], model: str, images: int) -> dict[str, float]:
    """Hours of decoding, and of Inception where it scores the images."""
    besides = {}
    decoder = [s for s in speeds if s.model == DECODERS.get(model)]
    if decoder:
        share = IMAGES_A_SAMPLE.get(model, 1.0)
        besides["decoding"] = rounded(images * share * fastest(decoder).seconds / 3600)
    inception = [s for s in speeds if s.model == "inception"]
    if inception and model not in ("digits", "opensora11"):
        besides["features"] = rounded(images * fastest(inception).seconds / 3600)
    return besides


def counts(cfg: Any) -> tuple[int, int]:
    """(network calls x images, images) of a config's experiment, from the beginning."""
    from experiments.cells import Settings
    from experiments.config import plain
    from experiments.dry_run import count
    from experiments.experiment import Experiment

    experiment = Experiment.of(cfg)
    settings = Settings(plain(cfg.model), _planned(), experiment.spacing, cfg.seed, cfg.label)
    columns = experiment.columns(settings)
    images = sum(column.size.num_samples * len(column.cells) for column in columns)
    return sum(count(column).tree for column in columns), images


def _planned() -> Backbone:
    """A model as far as plans ask for it: how many calls they make depends on none of its numbers."""

    def none(*_: Any) -> Any:
        raise NotImplementedError("this model only plans")

    network = ImageNetwork(nn.Identity())
    return Backbone(network, Schedule.linear(), (1, 1, 1), None, True, "none", none, Images())


def sentence(entry: dict[str, Any]) -> str:
    """One line of what a table takes."""
    rest = [f"{entry[key]:g} {key}" for key in ("decoding", "features") if key in entry]
    return (
        f"{entry['experiment']} on {entry['model']}: {entry['image_calls']:,} image calls, "
        f"{entry['hours']:g} hours as configured ({entry['as_configured']}), "
        f"{entry['hours_at_best']:g} at best ({entry['at_best']})"
        + (f"; besides {' and '.join(rest)}" if rest else "")
    )
