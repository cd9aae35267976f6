"""Running VBench on folders of videos, and the records of its scores."""

import os
import queue
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from eval.records import Record, precision
from eval.vbench import DIMENSIONS, aggregate, read_results
from experiments.folder import origin, read_manifest
from files.places import downloads
from files.whole import read_json, write_json

VERSION = "0.1.5"
INFO = "VBench_full_info.json"
FLICKERING = "flickering.json"  # where the videos for temporal flickering are from


def result_files(run: Path) -> list[Path]:
    return sorted((run / "vbench").glob("*_eval_results.json"))


def run_vbench(
    runs: list[Path],
    flickering: list[Path] | None = None,
    *,
    gpus: str | None = None,
    dimensions: list[str] | None = None,
    env: Path | None = None,
    info: Path | None = None,
) -> None:
    """Run VBench on every dimension that has no result yet, one at a time on each GPU.

    `flickering` are for each run one with 25 videos a prompt; `gpus` defaults to those of this
    process.  Raises FileNotFoundError without VBench, ValueError for unfit runs, OSError if it fails.
    """
    home = downloads() / "vbench"
    gpus = gpus or os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
    program = (env or home / "env") / "bin/vbench"
    if not program.is_file():
        raise FileNotFoundError(f"{program} is missing: run `python -m scripts.vbench setup`")
    flickering = flickering or runs
    if len(flickering) != len(runs):
        raise ValueError(f"give as many --flickering folders as runs, {len(runs)}")
    for folder in {*runs, *flickering}:
        _check_run(folder)
    wanted = dimensions or list(DIMENSIONS)
    if unknown := sorted(set(wanted) - set(DIMENSIONS)):
        raise ValueError(f"unknown dimension {', '.join(unknown)}: choose {', '.join(DIMENSIONS)}")
    todo = []
    for folder, other in zip(runs, flickering, strict=True):
        done = read_results(result_files(folder))
        todo += [
            (folder, name, other if name == "temporal_flickering" else folder)
            for name in wanted
            if name not in done
        ]
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus.split(","):
        free.put(gpu)

    def one(task: tuple[Path, str, Path]) -> None:
        gpu = free.get()
        try:
            _evaluate(program, info or home / INFO, gpu, *task)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(gpus.split(","))) as pool:
        for _ in tqdm(pool.map(one, todo), total=len(todo), desc="dimensions", disable=not todo):
            pass


def _check_run(folder: Path) -> None:
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"] or not manifest.get("videos"):
        raise ValueError(f"{folder} is no complete run of videos: sample it to its end first")
    if manifest["config"].get("names") != "prompt":
        raise ValueError(
            f"{folder} was not sampled with names=prompt, by which VBench finds videos"
        )


def _evaluate(program: Path, info: Path, gpu: str, run: Path, dimension: str, source: Path) -> None:
    """One dimension: VBench writes beside, and the result is moved to its place when it is whole.

    Temporal flickering from a run of its own is of the videos that pass VBench's static filter.
    """
    target = run / "vbench"
    scratch, log = target / f".part-{dimension}", target / f"{dimension}.log"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    videos = source / "videos"
    words: list[list[str | Path]] = []
    if source != run:
        words.append(["static_filter", "--videos_path", videos, "--result_path", scratch])
        videos = scratch / "filtered_videos"
    words.append(["evaluate", "--videos_path", videos, "--dimension", dimension])
    words[-1] += ["--output_path", scratch, "--full_json_dir", info]
    done = all(_call([program, *call], gpu, log) for call in words)
    results = sorted(scratch.glob("*_eval_results.json"))
    if not done or len(results) != 1 or dimension not in read_results(results):
        raise OSError(
            f"VBench failed on {dimension} (see {log}): mend it and run the same command to continue"
        )
    if dimension == "temporal_flickering":
        facts = {"static_filter": source != run, "flickering_run": source.name}
        write_json(target / FLICKERING, facts)
    os.replace(results[0], target / f"{dimension}_eval_results.json")
    shutil.rmtree(scratch)


def _call(command: Sequence[str | Path], gpu: str, log: Path) -> bool:
    """Whether the command ended well; what it says goes into the log."""
    with log.open("ab") as file:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        words = [str(word) for word in command]
        return subprocess.run(words, stdout=file, stderr=file, env=env).returncode == 0


def vbench_record(run: Path) -> Record:
    """The record of a run that VBench has scored; ValueError if dimensions are missing."""
    results = read_results(result_files(run))
    manifest = read_manifest(run)
    assert manifest is not None
    path = run / "vbench" / FLICKERING
    facts = {"static_filter": False}
    if path.is_file():
        facts = read_json(path, "remove it and run `python -m scripts.vbench run` again")
    return {
        "protocol": "vbench",
        "n": manifest["num_samples"],
        "extractor": "vbench",
        "extractor_weights": VERSION,
        "reference": None,
        "reference_n": None,
        "reference_digest": None,
        "precision": precision(manifest["config"]),
        "metrics": ["quality", "semantic", "total"],
        "options": {"static_filter": facts["static_filter"]},
        "cell": origin(manifest),
        "run": None,
        "scores": {name: s.stored() for name, s in aggregate(results).items()},
        "dimensions": {name: s.stored() for name, s in results.items()},
        "floor": None,
    }
