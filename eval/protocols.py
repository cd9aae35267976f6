"""Protocols and published sample batches, as configs/metrics and configs/reference state them.

Read without Hydra: what stands in these files is the same for a command of the clone and the wheel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml

from eval.gate import GATES, changed_option
from eval.scoring import Options
from files.places import ROOT

CONFIGS = ROOT / "configs"
PROTOCOLS = ("adm", "dinov2", "torch_fidelity", "clean")
# In a file of weights it stands for the folder of downloads, where extractors themselves look.
DOWNLOADED = "${downloads}/"


def stated(group: str, name: str) -> dict[str, Any]:
    """What stands in configs/<group>/<name>.yaml, nothing resolved."""
    text = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def protocol_named(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """configs/metrics/<name>.yaml with other settings, by name: `metrics.weights`, `metrics.options.k`.

    The prefixes may be left out.  Raises ValueError for an unknown protocol or setting, with those
    that there are.
    """
    known = [one for one in PROTOCOLS if (CONFIGS / "metrics" / f"{one}.yaml").is_file()]
    if name not in known:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(known)}")
    metrics: dict[str, Any] = {
        key: None if str(value).startswith(DOWNLOADED) else value
        for key, value in stated("metrics", name).items()
    }
    options, choices = metrics["options"], [option.name for option in fields(Options)]
    own = sorted(set(metrics) - {"name", "options"})
    for key, value in (settings or {}).items():
        short = key.removeprefix("metrics.").removeprefix("options.")
        if short in choices:
            options[short] = value
        elif short in own:
            metrics[short] = value
        else:
            names = ", ".join([*own, *choices])
            raise ValueError(f"the protocol {name} has no setting {key!r}: choose among {names}")
    return metrics


# --- published sample batches -------------------------------------------------------------------


def published_reference(file: str) -> tuple[str, dict[str, Any]] | None:
    """(name, config) of the published reference batch that is downloaded under this file's name."""
    for path in sorted((CONFIGS / "reference").glob("*.yaml")):
        config = stated("reference", path.stem)
        if str(config.get("url")).rsplit("/", 1)[-1] == file:
            return path.stem, config
    return None


def reference_with(batch: str) -> str | None:
    """The reference under configs/reference that a published sample batch belongs to, or None."""
    for path in sorted((CONFIGS / "reference").glob("*.yaml")):
        if batch in (stated("reference", path.stem).get("published") or {}):
            return path.stem
    return None


@dataclass(frozen=True)
class Judged:
    """A sample batch before the gate: its name, what is `published` of it, and how it was scored."""

    batch: str
    published: Mapping[str, Any] | None
    protocol: str
    options: Options
    whole: bool

    def obstacle(self) -> str | None:
        """Why there is no verdict on a published batch; None if there is one, or it is none."""
        if not self.published:
            home = reference_with(self.batch)
            return home and f"this batch is judged with reference={home}"
        judged = [name for name in GATES if self.published["scores"].get(name)]
        if not judged:
            return f"no published score of {self.batch} is known here"
        if self.protocol not in judged:
            return "it needs " + " or ".join(f"metrics={name}" for name in judged)
        if not self.whole:
            return "it needs the whole batch, num_samples=null"
        changed = changed_option(self.protocol, self.options)
        return changed and f"it needs {changed}"
