"""VBench: its prompts, its own environment, its 16 dimensions, its scores.

    python scripts/vbench.py setup                     # an environment of its own, in downloads/vbench/env
    python scripts/vbench.py prompts                   # prompts.txt (944) and flickering.txt (75)
    python scripts/vbench.py run RUN... [--flickering RUN2...] [--gpus 0,1]   # what is still missing
    python scripts/vbench.py score RUN [--partial]

RUN is the folder of a run of sample.py or reproduce.py with names=prompt.  VBench pins versions that
conflict with ours, and needs a CUDA GPU; only files are exchanged.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from eval.files import write_atomic
from eval.records import Record
from eval.report import format_score
from eval.vbench import DIMENSIONS, aggregate, read_results
from scripts.commands import reported
from scripts.download import downloads
from scripts.generate import read_manifest

VERSION = "0.1.5"
INFO = "VBench_full_info.json"
FLICKERING = "flickering.json"  # where the videos for temporal flickering are from
# Wheels of what vbench 0.1.5 pins end with Python 3.11; detectron2 is not on PyPI.
PYTHONS = ("python3.11", "python3.10")
PACKAGES = (
    [
        "torch==2.3.1",
        "torchvision==0.18.1",
        "--index-url",
        "https://download.pytorch.org/whl/cu121",
    ],
    [f"vbench=={VERSION}"],
    ["--no-build-isolation", "detectron2 @ git+https://github.com/facebookresearch/detectron2.git"],
)


def setup(args: argparse.Namespace) -> None:
    """Make the environment, or print the commands."""
    python = args.python or next((p for p in PYTHONS if shutil.which(p)), None)
    if python is None and not args.dry:
        raise ValueError(f"VBench needs {' or '.join(PYTHONS)}: install one or pass --python")
    commands = [[python or PYTHONS[0], "-m", "venv", str(args.env)]]
    commands += [[str(args.env / "bin/python"), "-m", "pip", "install", *p] for p in PACKAGES]
    for command in commands:
        print(" ".join(command), flush=True)
        if not args.dry and subprocess.run(command).returncode:
            raise OSError("that failed: mend it and run `python scripts/vbench.py setup` again")
    if not args.dry:
        print(f"VBench is in {args.env}; it fetches its networks at its first use")


def suite(path: Path) -> tuple[list[str], list[str]]:
    """(every prompt once, those of temporal flickering) of VBench_full_info.json, in its order.

    Two of the 946 entries repeat a prompt: all videos lie in one folder, so it is sampled once.
    """
    try:
        entries = json.loads(path.read_text())
        pairs = [(e["prompt_en"], e["dimension"]) for e in entries]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: run `python scripts/vbench.py setup`, or pass --info {INFO}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not VBench's list of prompts: fetch {INFO} again") from None
    flickering = [prompt for prompt, dimensions in pairs if "temporal_flickering" in dimensions]
    return list(dict.fromkeys(p for p, _ in pairs)), list(dict.fromkeys(flickering))


def prompts(args: argparse.Namespace) -> None:
    installed = sorted(args.env.glob(f"lib/*/site-packages/vbench/{INFO}"))
    info: Path = args.info or (installed or [args.env / INFO])[0]
    every, flickering = suite(info)
    for name, texts in (("prompts.txt", every), ("flickering.txt", flickering)):
        content = "".join(f"{text}\n" for text in texts)
        write_atomic(args.out / name, lambda p, c=content: p.write_text(c, encoding="utf-8"))  # type: ignore[misc]
        print(f"{args.out / name}: {len(texts)} prompts")
    write_atomic(args.out / INFO, lambda p: shutil.copy(info, p))


def result_files(run: Path) -> list[Path]:
    return sorted((run / "vbench").glob("*_eval_results.json"))


def run(args: argparse.Namespace) -> None:
    run_vbench(
        args.runs,
        args.flickering,
        gpus=args.gpus,
        dimensions=args.dimensions,
        env=args.env,
        info=args.info,
    )


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
        raise FileNotFoundError(f"{program} is missing: run `python scripts/vbench.py setup`")
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
    for folder in runs:
        print(folder)
        score(argparse.Namespace(run=folder, partial=True))


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
    scratch = target / f".part-{dimension}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    videos = source / "videos"
    log = target / f"{dimension}.log"
    failed = (
        f"VBench failed on {dimension} (see {log}): mend it and run the same command to continue"
    )
    if source != run:
        words = ["static_filter", "--videos_path", str(videos), "--result_path", str(scratch)]
        if _call([str(program), *words], gpu, log):
            raise OSError(failed)
        videos = scratch / "filtered_videos"
    words = ["evaluate", "--videos_path", str(videos), "--dimension", dimension,
             "--output_path", str(scratch), "--full_json_dir", str(info)]  # fmt: skip
    status = _call([str(program), *words], gpu, log)
    results = sorted(scratch.glob("*_eval_results.json"))
    if status or len(results) != 1 or dimension not in read_results(results):
        raise OSError(failed)
    if dimension == "temporal_flickering":
        facts = {"static_filter": source != run, "flickering_run": source.name}
        write_atomic(target / FLICKERING, lambda p: p.write_text(json.dumps(facts) + "\n"))
    os.replace(results[0], target / f"{dimension}_eval_results.json")
    shutil.rmtree(scratch)


def _call(command: list[str], gpu: str, log: Path) -> int:
    with log.open("a") as file:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.run(command, stdout=file, stderr=file, env=env).returncode


def vbench_record(run: Path) -> Record:
    """The record of a run that VBench has scored; ValueError if dimensions are missing."""
    results = read_results(result_files(run))
    manifest = read_manifest(run)
    assert manifest is not None
    path = run / "vbench" / FLICKERING
    facts = json.loads(path.read_text()) if path.is_file() else {"static_filter": False}
    return {
        "protocol": "vbench",
        "n": manifest["num_samples"],
        "extractor": "vbench",
        "extractor_weights": VERSION,
        "reference": None,
        "reference_n": None,
        "reference_digest": None,
        "metrics": ["quality", "semantic", "total"],
        "options": {"static_filter": facts["static_filter"]},
        "cell": {key: manifest[key] for key in ("config", "plan", "nfe")},
        "run": None,
        "scores": {name: s._asdict() for name, s in aggregate(results).items()},
        "dimensions": {name: s._asdict() for name, s in results.items()},
        "floor": None,
    }


def score(args: argparse.Namespace) -> None:
    results = read_results(result_files(args.run))
    for name, value in results.items():
        print(f"  {name:<24}{100 * value.value:7.2f}")
    for name, value in aggregate(results, args.partial).items():
        print(f"{name:<26}{format_score('total', value)}")
    missing = [name for name in DIMENSIONS if name not in results]
    if missing:
        print(f"no total: {', '.join(missing)} missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="setup | prompts | run | score")
    home = downloads() / "vbench"
    made = commands.add_parser("setup", help="make VBench's environment")
    made.add_argument("--python", help=f"default: {' or '.join(PYTHONS)}")
    made.add_argument("--dry", action="store_true", help="print the commands only")
    listed = commands.add_parser("prompts", help="write the prompt suite")
    listed.add_argument("--out", type=Path, default=home)
    ran = commands.add_parser("run", help="run VBench on what has no result yet")
    ran.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    ran.add_argument("--flickering", type=Path, nargs="+", metavar="RUN2",
                     help="for each RUN one of flickering.txt, 25 videos a prompt")  # fmt: skip
    ran.add_argument("--gpus", help="for instance 0,1,2,3; default: those of this process, or 0")
    ran.add_argument("--dimensions", nargs="*", help="default: all 16")
    scored = commands.add_parser("score", help="print the scores")
    scored.add_argument("run", type=Path)
    scored.add_argument("--partial", action="store_true", help="whatever there is, without total")
    for command, function in ((made, setup), (listed, prompts), (ran, run), (scored, score)):
        command.set_defaults(call=function)
        command.add_argument("--env", type=Path, default=home / "env")
    listed.add_argument("--info", type=Path, help=f"default: {INFO} of the environment")
    ran.add_argument("--info", type=Path, default=home / INFO, help="default: as prompts left it")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    reported(main)
