"""Sample a pretrained diffusion model.

    python sample.py model=digits sampler=mix steps=50 num_samples=500 out=runs/mix
    python sample.py model=digits sampler=dpmpp spacing=log_snr steps=10 label=7 format=png
    python sample.py -m sampler=ddim,mix steps=10,25     # all combinations, one after the other

Writes samples.npz, grid.png and manifest.json into out=DIR (default: under runs/).  Running
the same command again continues, or does nothing when all is there.  Under torchrun or srun the
processes share the shards.
"""

from experiments.answers import answer

if __name__ == "__main__":  # before torch is imported, which takes seconds
    answer("sample", __doc__)

from pathlib import Path

from experiments.cells import Model
from experiments.config import Config, load_backbone, plain, run_command, settings_of, tracker_of
from experiments.generate import generate_all
from experiments.workers import first_process, say, share
from files.whole import write_text


def main(cfg: Config) -> None:
    if cfg.format not in ("npz", "png"):
        raise ValueError(f"unknown format {cfg.format!r}: choose npz or png")
    if not isinstance(cfg.show_plan, bool) and not str(cfg.show_plan).endswith(".json"):
        raise ValueError(f"show_plan is true, false or a FILE.json to write, got {cfg.show_plan!r}")
    rank, world = share(cfg.part, cfg.parts)
    tracker = tracker_of(cfg, cfg.model.name)
    backbone = load_backbone(cfg)
    settings = settings_of(cfg, backbone, plain(cfg.spacing), cfg.names)
    cell = settings.cell(
        cfg.sampler.name, plain(cfg.sampler), cfg.steps, num_samples(cfg, backbone), cfg.out
    )
    if cfg.show_plan is True:
        say(str(cell.plan))
    elif cfg.show_plan and rank == 0:
        write_text(Path(cfg.show_plan), cell.plan.to_json())
        print(f"plan: {cfg.show_plan}")
    watch = tracker.sampling if rank == 0 else None
    complete = generate_all([cell], backbone, (rank, world), watch)
    if not first_process():
        return
    if not complete:
        print(f"this process is done; others still sample into {cell.folder}")
        return
    tracker.sampled([cell])
    if cfg.format == "png":
        cell.media.export_png(cell.folder)
    twice = " (two evaluations a call)" if backbone.evaluations_per_call == 2 else ""
    n = cell.size.num_samples
    print(f"{n} samples, {len(cell.plan)} network calls each{twice}: {cell.folder}")


def num_samples(cfg: Config, backbone: Model) -> int:
    """The number asked for, else one a prompt, or 64 where there are none."""
    if cfg.num_samples is not None:
        n: int = cfg.num_samples
        return n
    return len(backbone.prompts) if backbone.prompts and cfg.label is None else 64


if __name__ == "__main__":
    run_command(main, "sample")  # as @hydra.main, by which the shell knows what it can complete
