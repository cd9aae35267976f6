"""What scores and records say, in words."""

import re
from collections.abc import Sequence
from typing import Any

from eval.records import Record
from eval.scoring import METRICS
from eval.table import Table
from eval.words import reference_words
from files.whole import printable


def metric_title(metric: str, extractor: str) -> str:
    """ "FID (digits)": scores of different extractors never share a name."""
    arrow = "lower" if METRICS[metric].lower_is_better else "higher"
    return f"{METRICS[metric].title} ({extractor}), {arrow} is better"


def network_words(checkpoint: str) -> str:
    """What stands behind the name of a checkpoint: "exact denoiser", "network after 1,000 steps of training"."""
    if checkpoint == "exact":
        return "exact denoiser"
    trained = re.fullmatch(r"unet-(\d+)", checkpoint)
    return (
        f"network after {int(trained[1]):,} steps of training" if trained else printable(checkpoint)
    )


def listed(items: Sequence[Any], empty: str = "no") -> str:
    return ", ".join(map(str, items)) or empty


def differences_sentence(table: Table, metric: str) -> str:
    """How it is decided which rows of a column differ, in words."""
    steps, columns = table.paired_columns(metric), sorted(table.columns)
    if not steps:
        return "Differences take samplers for independent."
    rest = "" if steps == columns else f" at {listed(steps)} steps, elsewhere as if independent"
    return (
        "Differences are judged by their own intervals, from the noise that samplers share"
        f"{rest}: most are narrower than two ± make them."
    )


def protocol_sentence(table: Table) -> str:
    """What the numbers are and how a table shows them, in words."""
    record = table.records[0]
    metric = next(iter(record["scores"]))
    floor = (
        " *Real* is the real-vs-real floor: as many real images in place of samples, which is what "
        "a perfect sampler would score. FID and recall depend on N: across columns of different "
        "N, compare with that floor."
    )
    return (
        f"{scored_sentence(record)} "
        "± is the half width of the 95% interval. **Bold**: the best of its column and all that "
        f"cannot be told from it. {differences_sentence(table, metric)}"
        f"{floor if record['floor'] else ''}"
    )


def scored_sentence(record: Record) -> str:
    """How samples were sampled and scored."""
    return f"{sampling_sentence(record['cell']['config'])} {extractor_sentence(record)}"


def extractor_sentence(record: Record) -> str:
    """How samples were scored."""
    return (
        f"Extractor `{record['extractor']}` ({record['extractor_weights']}), "
        f"{reference_words(record)}."
    )


def sampling_sentence(config: dict[str, Any]) -> str:
    """How samples were sampled, from the config in their manifest."""
    model = config["model"]
    checkpoint = model.get("checkpoint") or model.get("id") or model["sha256"][:12]
    precision = f", precision {model['precision']}" if "precision" in model else ""
    return printable(
        f"Model `{model['name']}`, checkpoint `{checkpoint}` "
        f"({model['sha256'][:12]}){precision}{_guidance_words(config)}; "
        f"spacing `{config['spacing']}`, seed {config['seed']}"
        f"{', Brownian noise' if config.get('noise') == 'brownian' else ''}, {_label_words(config)}, "
        f"x0 {'clipped' if model['clip'] else 'not clipped'}."
    )


def _guidance_words(config: dict[str, Any]) -> str:
    guidance, scale = config.get("guidance"), config["model"].get("guidance_scale", 1)
    text = f", {guidance['name']} guidance with scale {guidance['scale']:g}" if guidance else ""
    text += f", classifier-free guidance {scale:g}" if scale not in (None, 1) else ""
    two = config.get("evaluations_per_call") == 2
    return f"{text} (two network evaluations a call)" if two else text


def _label_words(config: dict[str, Any]) -> str:
    label, prompts = config["label"], config.get("prompts")
    if prompts:
        each = "a sample each" if label is None else "in turn"
        return f"{prompts['count']} prompts ({prompts['sha256'][:12]}) {each}"
    return f"labels {'at random' if label is None else label}"
