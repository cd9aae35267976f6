"""What scores and records say, in words."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from eval.records import Record
from eval.scoring import METRICS
from eval.table import Table, cutoff
from eval.words import reference_words
from files.whole import printable
from report.styles import MOST


def metric_title(metric: str, extractor: str) -> str:
    """ "FID (digits)": scores of different extractors never share a name."""
    arrow = "lower" if METRICS[metric].lower_is_better else "higher"
    return f"{METRICS[metric].title} ({extractor}), {arrow} is better"


def sizes_words(table: Table) -> str:
    """Of how many samples each score is: "N = 500", or "N = 1,000 at 25, 50; N = 200 at 100"."""
    parts = [(n, list(part)) for n, part in groupby(sorted(table.columns), key=table.n)]
    if len(parts) == 1:
        return f"N = {parts[0][0]:,}"
    return "; ".join(f"N = {n:,} at {listed(steps)}" for n, steps in parts)


def curves_note(table: Table, beside: bool) -> str:
    """What a plot of a table shows, in a line below its title."""
    real = "dotted: as many real images in place of samples" if table.records[0]["floor"] else ""
    paper = "hollow: the paper's numbers" if beside else ""
    lines = "lines join scores of the same number of samples N"
    mixed = lines if len({table.n(s) for s in table.columns}) > 1 else ""
    return "; ".join(filter(None, ["Bars: 95% intervals", real, paper, mixed])) + "."


def cutoffs_note(table: Table) -> str:
    """As `curves_note`, of a plot against Mix's cutoff."""
    how = "Mix makes Skipped-Step's steps while t is at least the cutoff, and DDIM's below"
    return f"{how}. {curves_note(table, False)}"


def curves_caption(table: Table, metrics: Sequence[str], beside: bool) -> tuple[str, str]:
    """Title and text of a plot of scores against network calls, to be read without the table."""
    many = "Panels of one metric show a few samplers each, on ranges of their own."
    return f"{_titles(metrics)} against network calls a sample", " ".join(
        [
            curves_note(table, beside),
            "Points of the same number of calls are drawn a little apart.",
            *([many] if len(table.rows) > MOST else []),
            _made_words(table),
        ]
    )


def cutoffs_caption(table: Table, metrics: Sequence[str], shaded: bool) -> tuple[str, str]:
    """As `curves_caption`, of a plot against Mix's cutoff."""
    papers = "Shaded: the range in which the paper has the best cutoffs, on its data."
    rivals = "Lines across: samplers without a cutoff, and their 95% intervals."
    others = any(math.isnan(cutoff(r)) for r in table.records)
    return f"{_titles(metrics)} against Mix's cutoff", " ".join(
        [
            cutoffs_note(table),
            "Cutoff 0 is Skipped-Step, cutoff 1000 is DDIM.",
            *([papers] if shaded else []),
            *([rivals] if others else []),
            _made_words(table),
        ]
    )


def against_cutoffs(table: Table, beside: bool) -> bool:
    """Whether a table is plotted against Mix's cutoff: it has more of them than a panel has curves, each once.

    Not if the samplers without a cutoff are too many for one panel.
    """
    dials = [[cutoff(r) for r in table.dial(steps)] for steps in table.columns]
    once = all(len(set(dial)) == len(dial) for dial in dials)
    others = {r["row"] for r in table.records if math.isnan(cutoff(r))}
    return not beside and once and max(map(len, dials)) > MOST > len(others)


def _titles(metrics: Sequence[str]) -> str:
    return ", ".join(METRICS[metric].title for metric in metrics)


def _made_words(table: Table) -> str:
    record = table.records[0]
    config = record["cell"]["config"]
    return printable(
        f"Model `{config['model']['name']}`, spacing `{config['spacing']}`, seed {config['seed']}; "
        f"scored with `{record['extractor']}`; {sizes_words(table)}."
    )


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


def options_words(sampler: Mapping[str, Any]) -> str:
    """ " (cutoff 291)": all that the config of a sampler has beside its name; empty where it has no more."""
    options = {key.replace("_", " "): value for key, value in sampler.items() if key != "name"}
    words = (f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in options.items())
    return f" ({', '.join(words)})" if options else ""


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
