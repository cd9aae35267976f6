"""Find Mix++'s window for a model, and confirm it on fresh seeds.

    python -m scripts.tune experiment=tune_small steps=10     # on digits; make tune
    python -m scripts.tune model=adm_imagenet steps=25        # make tune MODEL=adm_imagenet

Takes the settings of reproduce.py, and of configs/experiment/tune.yaml.  Writes tuning.md and
records.json into out=DIR, with the line that samples with what was found.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("tune", __doc__)

from pathlib import Path

from experiments.config import Config, plain, run_command
from experiments.tune import tune
from experiments.workers import first_process
from report.tuning import write_tuning


def main(cfg: Config) -> None:
    results = tune(cfg)
    if first_process():
        settings = {**plain(cfg.experiment), "model": cfg.model.name}
        print(write_tuning(Path(cfg.out), cfg.experiment.title, results, settings))
        print(f"written: {cfg.out}")


if __name__ == "__main__":
    run_command(main, "tune")
