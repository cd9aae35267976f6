"""Misstate settings of the commands: each ends in one line or works, and no misspelt name is taken.

    OMP_NUM_THREADS=1 python tests/settings_fuzz.py --cases 2000 --seed 1

Every case is a command in this process with one setting changed: its name misspelt, with and without
+ and ++; a value of another kind; a group's file misspelt; or the setting taken away.  Work itself, a
shard, a batch of features, training steps, is not done: a command that gets there was accepted.  What
a message proposes after "did you mean" is typed in its place, too: it ends in one line or works, and
works if it is what was misspelt.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import random
import re
import shlex
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from omegaconf import OmegaConf

import evaluate
import reproduce
import sample
from eval.scoring import Options
from experiments.choices import options_of
from experiments.config import composed, run_command
from files.places import ROOT
from models.adm.networks import Options as Network
from sampling.samplers import SAMPLERS
from scripts import advise, train, tune

MAINS = {
    "sample": sample.main,
    "evaluate": evaluate.main,
    "reproduce": reproduce.main,
    "tune": tune.main,
    "advise": advise.main,
    "train": train.main,
}
FEW = ["metrics.options.kid_subset_size=50", "metrics.options.bootstrap=3", "num_samples=70"]
DIGITS = ["model=digits", "model.checkpoint=unet-1000"]
TABLE = [*DIGITS, *FEW, "experiment.steps=[2]"]
# A command, and settings with which it works.
BASES = [
    *(("sample", [*DIGITS, f"sampler={name}"]) for name in ("mix", "mixpp", "ddim", "unipc")),
    ("sample", [*DIGITS, "sampler=dpmpp", "label=balanced", "guidance=none", "format=png"]),
    ("sample", [*DIGITS, "sampler=diffusers", "logger=wandb", "logger.mode=disabled"]),
    ("evaluate", ["samples=mine.npz", *FEW]),
    ("evaluate", ["samples=mine.npz", "metrics=pixels", "reference=digits"]),
    ("evaluate", ["samples=mine.npz", "reference=custom", "reference.images.path=mine.npz", *FEW]),
    ("reproduce", ["experiment=table1_small", *TABLE, "model.precision=fp32"]),
    ("reproduce", ["experiment=figure4_small", *TABLE]),
    ("reproduce", ["experiment=figure2_small", *DIGITS]),
    ("advise", [*DIGITS, *FEW, "steps=3", "budget=20000", "experiment.rounds=[70]"]),
    ("tune", ["experiment=tune_small", *DIGITS, *FEW, "steps=3", "experiment.tuning_samples=70"]),
    ("train", ["model=digits"]),
    ("train", ["model=digits", "what=classifier"]),
]
VALUES = [
    "7",
    "-1",
    "0",
    "1",
    "2",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "99999999999999999999999",
    "true",
    "null",
    "''",
    "[]",
    "{}",
    "[1,2]",
    "[[1]]",
    "[null]",
    "{a:1}",
    "text",
    "../x",
    "${seed}",
    "${nothing}",
    "${oc.env:HOME}",
    "ünï",
    "'a_b'",
    "\"'7'\"",
    "[a,b]",
    "00",
    "-0.0",
    "???",
    "even",
    "2026-11-26",
    "/dev/null",
    "/proc/x",
    "x,y",
    "[1.5,7]",
    "{name:ddim}",
    "ddim",
    "fid",
    "digits",
    "cpu",
    "cuda:99",
    "meta",
    "%",
    "'%s'",
    "\\",
    "|",
    "balanced",
    "learned",
]


class Reached(BaseException):
    """The command was about to work."""


@dataclass(frozen=True)
class Outcome:
    status: int
    said: str

    @property
    def accepted(self) -> bool:
        return self.status in (0, 1)

    @property
    def fault(self) -> str | None:
        lines = [line for line in self.said.splitlines() if line.strip()]
        if self.status == 70:
            return "a traceback"
        if self.status == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
            return f"{len(lines)} lines"
        return None


def outcome(command: str, words: list[str]) -> Outcome:
    """What the command does, up to its work; status 70 for a traceback."""
    err, status = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [f"{command}.py", *words]),
        mock.patch("experiments.generate._make_shard", side_effect=Reached),
        mock.patch("experiments.evaluate.Evaluator._extract", side_effect=Reached),
        mock.patch("models.trainer.UNetTraining.run", side_effect=Reached),
        mock.patch("scripts.train.train_classifier", side_effect=Reached),
        mock.patch.dict(os.environ),
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            run_command(MAINS[command], command)
        except SystemExit as stop:
            status = int(stop.code or 0)
        except Reached:
            pass
        except BaseException:
            return Outcome(70, traceback.format_exc()[-900:])
    said = re.sub(
        r"^.*\d+%\|.*$|^.*image call.*$", "", err.getvalue().replace("\r", "\n"), flags=re.M
    )
    return Outcome(status, said.strip())


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(name, value as it is typed) of every setting below."""
    for key, value in config.items():
        if key == "hydra" or not re.fullmatch(r"\w+", str(key)):
            continue
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        elif value != "???" and key != "_target_":
            yield f"{path}{key}", typed(value)


def typed(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | list | tuple | dict):
        return json.dumps(value).replace('"', "").replace(" ", "")
    return value if re.fullmatch(r"[\w./+-]+", value) else f"'{value}'"


def settings(command: str, words: list[str]) -> dict[str, str]:
    """Everything that may be set there, by its name; options that no file names, too."""
    cfg = OmegaConf.to_container(composed(command, *words), resolve=True)
    found = dict(leaves(cfg))
    if command != "sample":
        found = defaults("metrics.options.", Options) | found
    else:
        name = cfg["sampler"]["name"]
        found = (defaults("sampler.", SAMPLERS[name]) if name in SAMPLERS else {}) | found
        for ours in ("metrics", "reference"):
            found = {key: value for key, value in found.items() if not key.startswith(ours)}
    if command == "train":
        found |= defaults("model.net.", Network)
        for name in ("dropout", "in_channels"):  # set otherwise
            del found[f"model.net.{name}"]
    hydra = {"hydra.job.chdir": "false", "hydra.run.dir": ".", "hydra.verbose": "false"}
    return found | hydra


def defaults(path: str, function: Any) -> dict[str, str]:
    parameters = inspect.signature(function).parameters.values()
    stated = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {
        f"{path}{name}": typed(value) for name, value in stated.items() if name != "x0_variance"
    }


def misspelt(name: str, rng: random.Random) -> str:
    """One letter more, less or another, in the last part or the first."""
    parts = name.split(".")
    k = rng.choice([0, len(parts) - 1, len(parts) - 1])
    if parts[k] == "hydra":
        k = len(parts) - 1
    word = parts[k]
    i = rng.randrange(len(word))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz_")
    parts[k] = rng.choice(
        [word[:i] + word[i + 1 :], word[:i] + letter + word[i:], word[:i] + letter + word[i + 1 :]]
    )
    return ".".join(parts)


@dataclass
class Fuzz:
    seed: int
    verbose: bool = False

    def __post_init__(self) -> None:
        self.rng, self.faults, self.counts = random.Random(self.seed), [], Counter()
        self.settings = [settings(*base) for base in BASES]

    def run(self, cases: int) -> None:
        for i in range(cases):
            k = self.rng.randrange(len(BASES))
            (command, words), known = BASES[k], self.settings[k]
            words = [*words, f"out=case{i}"]
            what = self.rng.choice(
                [self.name, self.name, self.value, self.value, self.file, self.none]
            )
            what(command, words, known)

    def name(self, command: str, words: list[str], known: dict[str, str]) -> None:
        name, value = self.rng.choice(list(known.items()))
        wrong = misspelt(name, self.rng)
        if wrong in known or not re.fullmatch(r"[A-Za-z_][\w.]*[A-Za-z0-9_]", wrong):
            return
        word = f"{self.rng.choice(['', '+', '++'])}{wrong}={value}"
        said = self.refused("name", command, [*words, word])
        self.suggested(said, command, words, f"{name}={value}")

    def file(self, command: str, words: list[str], known: dict[str, str]) -> None:
        groups = [
            w for w in words if w.split("=")[0] in ("model", "sampler", "experiment", "metrics")
        ]
        if not groups:
            return
        group, value = self.rng.choice(groups).split("=")
        wrong = misspelt(value, self.rng)
        if wrong in options_of(group) or not re.fullmatch(r"\w+", wrong):
            return
        rest = [w for w in words if not w.startswith(f"{group}=")]
        said = self.refused("file", command, [*rest, f"{group}={wrong}"])
        self.suggested(said, command, rest, f"{group}={value}")

    def value(self, command: str, words: list[str], known: dict[str, str]) -> None:
        name, value = self.rng.choice(list(known)), self.rng.choice(VALUES)
        rest = [w for w in words if w.split("=")[0] != name]
        self.one_line("value", command, [*rest, f"{name}={value}"])

    def none(self, command: str, words: list[str], known: dict[str, str]) -> None:
        name = self.rng.choice(list(known))
        rest = [w for w in words if w.split("=")[0] != name]
        self.one_line("none", command, [*rest, f"~{name}"])

    # --- what must be true ----------------------------------------------------------------------

    def one_line(self, kind: str, command: str, words: list[str]) -> Outcome:
        made = outcome(command, words)
        self.counts[kind, "accepted" if made.accepted else "refused"] += 1
        if made.fault:
            self.fault(f"{made.fault}: {made.said}", command, words)
        elif self.verbose and not made.accepted:
            print(f"{words[-1]}  ->  {made.said}", file=sys.__stdout__, flush=True)
        return made

    def refused(self, kind: str, command: str, words: list[str]) -> str:
        made = self.one_line(kind, command, words)
        if made.accepted:
            self.fault("a misspelt setting was taken", command, words)
        return made.said

    def suggested(self, said: str, command: str, words: list[str], meant: str) -> None:
        found = re.search(r"did you mean (.*=.*)\?$", said)
        if not found:
            return
        (word,) = shlex.split(found[1])
        made = self.one_line("suggestion", command, [*words, word])
        if word == meant and not made.accepted:
            self.fault(
                f"was proposed ({said}), and is refused: {made.said}", command, [*words, word]
            )

    def fault(self, what: str, command: str, words: list[str]) -> None:
        self.faults.append(f"{shlex.join([command, *words])}\n    {what}")
        print(self.faults[-1], file=sys.__stdout__, flush=True)


def fuzz(cases: int, seed: int, folder: Path, verbose: bool = False) -> Fuzz:
    """So many cases in a folder of their own."""
    images = np.load(ROOT / "models/digits/mnist10k.npz")["images"][9::110][:90, ..., None]
    np.savez(folder / "mine.npz", arr_0=images)
    with contextlib.chdir(folder):
        work = Fuzz(seed, verbose)
        work.run(cases)
    return work


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = fuzz(args.cases, args.seed, Path(folder), args.verbose)
    print(f"{args.cases} cases, {len(work.faults)} faults; {dict(work.counts)}")
    return bool(work.faults)


if __name__ == "__main__":
    sys.exit(main())
