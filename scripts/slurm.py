"""Submit a table or figure to SLURM, and come back at once.

    python -m scripts.slurm experiment=table1 parts=8             # make slurm-table1 ARGS=parts=8
    python -m scripts.slurm experiment=table1_small --dry  # what would be submitted

Takes the settings of reproduce.py (python reproduce.py --help); --dry submits nothing.  configs/site/default.yaml says what to ask of the cluster.
Each step count is sampled by an array of `parts` jobs; when it is complete, it is evaluated; when
all are, the table is rendered.  A job that is pre-empted or runs out of time goes on by itself.
What is done is not submitted again, so the same command continues after a failure.
"""

import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.config import composed, config_digest, plain
from experiments.endings import reported
from experiments.experiment import Experiment, perform
from experiments.progress import sampled_and_scored
from report.render import render


class Stage:
    """A call of reproduce.py that SLURM may start again from the beginning, as often as it must."""

    def __init__(self, overrides: list[str]):
        self.overrides = overrides

    def __call__(self) -> None:
        results = perform(composed("reproduce", *self.overrides))
        if results is not None:
            print(render(*results))

    def checkpoint(self) -> Any:
        """What submitit runs next after a pre-emption or a time-out: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __str__(self) -> str:
        return f"reproduce.py {' '.join(self.overrides)}"


class Queue:
    """Submits stages with the site's settings, or says what it would submit."""

    def __init__(self, launcher: dict[str, Any], folder: Path, dry: bool):
        self.launcher = {k: v for k, v in launcher.items() if k != "_target_" and v is not None}
        self.folder, self.dry = folder, dry

    def submit(self, name: str, stages: list[Stage], after: list[str], gpu: bool = True) -> str:
        """One array of jobs that starts when those of `after` have ended well; its id."""
        plural, waits = "s" * (len(stages) > 1), f", after {', '.join(after)}" if after else ""
        print(f"{name}: {len(stages)} job{plural}{waits}")
        if self.dry:
            print("\n".join(f"    {stage}" for stage in stages))
            return f"<{name}>"
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit import AutoExecutor

        options = {**self.launcher, "name": name}
        more = dict(options.pop("additional_parameters", {}))
        if after:
            more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        if not gpu:
            options.pop("gpus_per_node", None)
            options |= {"tasks_per_node": 1}
        del options["submitit_folder"]
        executor = AutoExecutor(
            self.folder / "%j",
            cluster="slurm",
            slurm_max_num_timeout=options.pop("max_num_timeout"),
        )
        unprefixed = {field.name for field in fields(BaseQueueConf)}
        executor.update_parameters(
            **{k if k in unprefixed else f"slurm_{k}": v for k, v in options.items()},
            slurm_additional_parameters=more,
        )
        with executor.batch():
            jobs = [executor.submit(stage) for stage in stages]
        return str(jobs[0].job_id.partition("_")[0])


def submit(overrides: list[str], queue: Queue, after: list[str]) -> list[str]:
    """Submit the three stages of one experiment; returns the ids of its sampling arrays."""
    cfg = composed("reproduce", *overrides)
    if "precision" in cfg.experiment and "precision" in cfg.model:
        # Machines differ in the precision that they are fast in: all jobs take that of this one.
        overrides = [*overrides, f"model.precision={cfg.model.precision}"]
    experiment, name = Experiment.of(cfg), f"{cfg.model.name}-{cfg.experiment.name}"
    done = sampled_and_scored(cfg.model.name, experiment.name, config_digest(cfg))
    sampling, before_rendering = [], []
    for steps in sorted(experiment.steps):
        sampled, scored = done.get(steps, (False, False))
        only, first = [*overrides, f"only={steps}"], list(after)
        if not sampled:
            first = [
                queue.submit(f"{name}-{steps}-sample", _array(only, "sample", cfg.parts), after)
            ]
            sampling += first
        if experiment.scorer == "none":
            before_rendering += first
        elif not scored:
            stages = _array(only, "evaluate", min(cfg.parts, len(experiment.rows)))
            before_rendering.append(queue.submit(f"{name}-{steps}-evaluate", stages, first))
    if experiment.renderer != "none":
        last = Stage([*overrides, "stage=render"])
        queue.submit(f"{name}-render", [last], before_rendering, gpu=False)
    return sampling


def _array(overrides: list[str], stage: str, parts: int) -> list[Stage]:
    return [
        Stage([*overrides, f"stage={stage}", f"part={part}", f"parts={parts}"])
        for part in range(parts)
    ]


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--dry"]
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return
    dry = len(words) < len(sys.argv) - 1
    if not dry and shutil.which("sbatch") is None:
        raise FileNotFoundError("no sbatch here: submit from a login node of a SLURM cluster")
    if reserved := [w for w in words if w.split("=")[0] in ("stage", "only", "part", "dry")]:
        raise ValueError(f"{reserved[0]} is what this script sets by itself: leave it out")
    ours = [w for w in words if w.startswith(("hydra", "parts=", "experiment="))]
    names = next((w for w in ours if w.startswith("experiment=")), "experiment=table1")
    overrides = [w for w in words if w not in ours]
    parts = [w for w in ours if w.startswith("parts=")]
    hydra_words = ["hydra/launcher=slurm", *(w for w in ours if w.startswith("hydra"))]
    after: list[str] = []
    for experiment in names.partition("=")[2].split(","):
        mine = [f"experiment={experiment}", *overrides]
        cfg = composed("reproduce", *mine, *hydra_words, with_hydra=True)
        folder = Path("runs", "slurm", f"{cfg.model.name}-{experiment}").absolute()
        queue = Queue(plain(cfg.hydra.launcher), folder, dry)
        # Experiments of one command may share samples: they come one after another.
        after = submit([*mine, *parts], queue, after) or after
    if not dry:
        print(f"logs: {Path('runs', 'slurm')}; progress: make status; jobs: squeue -u {_user()}")


def _user() -> str:
    return os.environ.get("USER", "$USER")


if __name__ == "__main__":
    reported(main)
