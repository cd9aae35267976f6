"""Sample a pretrained diffusion model.

    python sample.py model=digits sampler=mix steps=50 num_samples=64

Writes samples.npz, grid.png and manifest.json into out=DIR (default: under runs/).  Running
the same command again continues, or does nothing when all is there.  Under torchrun or srun the
processes share the shards.
"""

from omegaconf import DictConfig

from experiments.cells import Size, make_job
from experiments.config import load_backbone, pick_device, plain, run_command
from experiments.generate import generate
from experiments.tracking import tracker_named
from experiments.workers import share
from files.images import export_png, load_samples


def main(cfg: DictConfig) -> None:
    if cfg.format not in ("npz", "png"):
        raise ValueError(f"unknown format {cfg.format!r}: choose npz or png")
    rank, world = share(cfg.part, cfg.parts)
    tracker = tracker_named(cfg.logger, cfg.model.name)
    device = pick_device(cfg.device)
    backbone = load_backbone(cfg.model, device, cfg.guidance, cfg.prompts)
    count = cfg.num_samples
    if count is None:
        count = len(backbone.prompts) if backbone.prompts and cfg.label is None else 64
    size = Size(count, cfg.batch_size, cfg.shard_size)
    job = make_job(
        cfg.model,
        backbone,
        plain(cfg.sampler),
        steps=cfg.steps,
        spacing=plain(cfg.spacing),
        seed=cfg.seed,
        label=cfg.label,
        out=cfg.out,
        names=cfg.names,
    )
    if cfg.show_plan:
        print(job.plan)
    complete = generate(
        [job],
        backbone,
        size,
        seed=cfg.seed,
        label=cfg.label,
        device=device,
        rank=rank,
        world=world,
        watch=tracker.sampling if rank == 0 else None,
    )
    if not complete:
        print(f"this process is done; others still sample into {job.folder}")
        return
    tracker.sampled([job])
    if cfg.format == "png" and backbone.fps is None:
        export_png(job.folder, load_samples(job.folder).images)
    twice = " (two evaluations a call)" if backbone.evaluations_per_call == 2 else ""
    print(f"{size.num_samples} samples, {len(job.plan)} network calls each{twice}: {job.folder}")


if __name__ == "__main__":
    run_command(main, "sample")
