"""Which sampler to use at how many network calls, on a model: the named ones raced with the same noise.

    python -m scripts.advise budget=200000                                        # digits; make advise
    python -m scripts.advise model=adm_imagenet steps=[10,25] budget=2000000
    python -m scripts.advise model=diffusers model.id=DIR reference=none budget=200000

Takes the settings of reproduce.py, and of configs/experiment/advise.yaml.  Writes advice.md, records.json and
the plan of each best sampler into out=DIR, with the lines that use it.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("advise", __doc__)

from pathlib import Path

from experiments.advise import advice_expenses, advise
from experiments.config import Config, model_words, plain, run_command
from experiments.dry_run import dry_contest
from experiments.workers import first_process
from report.advice import write_advice


def main(cfg: Config) -> None:
    if cfg.dry:
        for line in dry_contest(cfg, advice_expenses):
            print(line, flush=True)
        return
    results = advise(cfg)
    if first_process():
        settings = {**plain(cfg.experiment), "model": cfg.model.name, "words": model_words(cfg)}
        print(write_advice(Path(cfg.out), cfg.experiment.title, results, settings))
        print(f"written: {cfg.out}")


if __name__ == "__main__":
    run_command(main, "advise")
