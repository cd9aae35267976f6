"""The record of a machine, results/machines/<device>.json: who it is, what was checked, how fast it is.

The file is written anew after every measurement, so that what was measured stays when the rest is
cut short; `complete` says whether it was.
"""

import json
import platform
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from experiments.check.outcome import Outcome
from files.places import ROOT
from files.whole import write_text
from models.backbone import Backbone
from models.weights import PRECISIONS

MACHINES = ROOT / "results" / "machines"
REMEDY = "measure it again with `python -m scripts.check`"


class Speed(NamedTuple):
    """One measurement: `seconds` of one network call an image, `memory` the peak in bytes.

    The model is one of configs/model, or says which part of it or what smaller size of it was
    timed.  `mode` is "eager", or what was done to the network, joined by "+"; `evaluations` those
    of the network in a call.  No memory on a CPU.
    """

    model: str
    parameters: int
    shape: tuple[int, ...]
    precision: str
    mode: str
    batch: int
    seconds: float
    memory: int | None = None
    evaluations: int = 1

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        memory = "" if self.memory is None else f", {self.memory / 2**30:.2f} GiB"
        return (
            f"{self.model} {size} {self.precision} {self.mode}, batch {self.batch}: "
            f"{1000 * self.seconds:.3g} ms an image call, {1 / self.seconds:,.4g} a second{memory}"
        )


class Machine:
    """The record of a machine as it grows.  Without a file nothing is written."""

    def __init__(self, device: torch.device, folder: Path | None, form: str = "full"):
        self.facts = facts_of(device) | {"form": form}
        self.path = None if folder is None else record_path(folder, device_name(device))
        self.checks: list[Outcome] = []
        self.speeds: list[Speed] = []
        self.skipped: list[str] = []
        self.hours: list[dict[str, Any]] = []
        self.complete = False

    def save(self) -> None:
        """Write the record as far as it is known."""
        if self.path is not None:
            record = {
                **self.facts,
                "complete": self.complete,
                "checks": [outcome._asdict() for outcome in self.checks],
                "speeds": [speed._asdict() for speed in self.speeds],
                "skipped": self.skipped,
                "hours": self.hours,
            }
            write_text(self.path, json.dumps(record, indent=1) + "\n")


def facts_of(device: torch.device) -> dict[str, Any]:
    """What was measured on, and with what."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["memory"] = torch.cuda.get_device_properties(device).total_memory
    return facts


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with the threads that torch uses on it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def cpu_name() -> str:
    """The processor's name: from /proc where there is one, for `platform` knows none on Linux."""
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.M
        )
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def record_path(folder: Path, name: str) -> Path:
    """The file of a device of that name."""
    return folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def read_machine(path: Path) -> dict[str, Any]:
    """A machine's record with its speeds as `Speed`.  Raises ValueError for a file that is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        speeds = [Speed(**{**s, "shape": tuple(s["shape"])}) for s in record["speeds"]]
        _ = record["device"], record["date"], record["complete"]
        _ = [(check["name"], check["status"]) for check in record["checks"]]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {REMEDY}") from None
    return {**record, "speeds": speeds}


def matching_speed(
    speeds: Iterable[Speed], backbone: Backbone, mode: str, batch_size: int
) -> Speed | None:
    """How fast a network of this size and precision was, at the batch size or the next below.

    None where it was not measured, or is steered by another network, which takes time, too.
    """
    if backbone.guidance is not None or (net := module_of(backbone)) is None:
        return None
    wanted = (parameters_of(net), backbone.shape, precision_of(net), backbone.evaluations_per_call)
    fitting = [
        speed
        for speed in speeds
        if (speed.parameters, speed.shape, speed.precision, speed.evaluations) == wanted
        and speed.mode == mode
        and speed.batch <= batch_size
    ]
    return max(fitting, key=lambda speed: speed.batch, default=None)


def module_of(backbone: Backbone) -> nn.Module | None:
    """The network behind a backbone; None if it is a formula."""
    modules = (v for v in vars(backbone.network).values() if isinstance(v, nn.Module))
    return next(modules, None)


def parameters_of(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def precision_of(net: nn.Module) -> str:
    """The precision of most of its numbers, as configs name it."""
    count = dict.fromkeys(PRECISIONS, 0)
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    for p in net.parameters():
        if p.dtype in names:
            count[names[p.dtype]] += p.numel()
    return max(count, key=lambda name: count[name])


def mode_named(channels_last: bool, compiled: bool, graphed: bool = False) -> str:
    """What is done to a network to make it faster, in the words of `Speed.mode`."""
    done = {"channels_last": channels_last, "compiled": compiled, "graphed": graphed}
    return "+".join(name for name, is_done in done.items() if is_done) or "eager"


def mode_of(model: Mapping[str, Any], device: torch.device) -> str:
    """The mode in which a model's config runs: null is channels_last on a CPU."""
    layout = model.get("channels_last", False)
    channels_last = device.type == "cpu" if layout is None else bool(layout)
    return mode_named(channels_last, bool(model.get("compile")))
