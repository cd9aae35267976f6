"""Find the numbers of a sampler that are best for a model, and confirm them on fresh seeds.

    python -m scripts.tune experiment=tune_star_small steps=10     # Mix* on digits; make tune
    python -m scripts.tune model=adm_imagenet steps=25             # make tune MODEL=adm_imagenet
    python -m scripts.tune experiment=tune_small steps=10          # Mix++'s window

Takes the settings of reproduce.py, and of configs/experiment/tune_star.yaml or tune.yaml.  Writes tuning.md,
records.json and the winner's plan into out=DIR, with the lines that sample with it.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("tune", __doc__)

from pathlib import Path

from experiments.config import Config, model_words, plain, run_command
from experiments.dry_run import dry_contest
from experiments.tune import tune, tuning_expenses
from experiments.workers import first_process
from report.tuning import write_tuning


def main(cfg: Config) -> None:
    if cfg.dry:
        for line in dry_contest(cfg, tuning_expenses):
            print(line, flush=True)
        return
    results = tune(cfg)
    if first_process():
        settings = {**plain(cfg.experiment), "model": cfg.model.name, "words": model_words(cfg)}
        print(write_tuning(Path(cfg.out), cfg.experiment.title, results, settings))
        print(f"written: {cfg.out}")


if __name__ == "__main__":
    run_command(main, "tune")
