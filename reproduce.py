"""Regenerate a table or figure of the paper.

    python reproduce.py experiment=table1_small          # on digits, minutes on two cores
    python reproduce.py experiment=table1_small dry=true # what it would do and cost
    python reproduce.py experiment=compare model=digits samplers=[ddim,mix,dpmpp] steps=[10,25] num_samples=500

Samples what is missing, evaluates what is missing, and renders Markdown, CSV, LaTeX and PNG
into out=DIR (default results/<model>/<experiment>), the paper's numbers beside ours where the
model is the paper's and below ours where it is another.  A dry run prints what would be done
and what it would cost.  Under torchrun or srun the processes share the work; docs/scaling.md tells
how several commands share it.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("reproduce", __doc__)

from experiments.config import Config, run_command
from experiments.dry_run import dry_run
from experiments.experiment import perform, stored_results
from files.places import ROOT
from report.paper import Paper
from report.render import render


def main(cfg: Config) -> None:
    if cfg.dry:
        for line in dry_run(cfg):
            print(line, flush=True)
        return
    if cfg.experiment.get("paper"):
        Paper.load(ROOT / cfg.experiment.paper)  # refused now rather than after all sampling
    results = stored_results(cfg) if cfg.render_only else perform(cfg)
    if results is not None:
        print(render(*results))
        print(f"written: {results.out}")


if __name__ == "__main__":
    run_command(main, "reproduce")  # as @hydra.main, by which the shell knows what it can complete
