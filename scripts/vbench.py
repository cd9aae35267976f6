"""VBench: its prompts, its own environment, its 16 dimensions, its scores.

    python -m scripts.vbench setup                     # an environment of its own, in downloads/vbench/env
    python -m scripts.vbench prompts                   # prompts.txt (944) and flickering.txt (75)
    python -m scripts.vbench run RUN... [--flickering RUN2...] [--gpus 0,1]   # what is still missing
    python -m scripts.vbench score RUN [--partial]

RUN is the folder of a run of sample.py or reproduce.py with names=prompt.  VBench pins versions that
conflict with ours, and needs a CUDA GPU; only files are exchanged.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from eval.endings import parser
from eval.vbench import DIMENSIONS, aggregate, read_results
from eval.words import format_score
from experiments.endings import reported
from experiments.vbench import INFO, VERSION, result_files, run_vbench
from files.places import downloads
from files.whole import Damaged, reading, write_atomic, write_text

# Wheels of what vbench 0.1.5 pins end with Python 3.11; detectron2 is not on PyPI.
PYTHONS = ("python3.11", "python3.10")
WHEELS = "https://download.pytorch.org/whl/cu121"
PACKAGES = (
    ["torch==2.3.1", "torchvision==0.18.1", "--index-url", WHEELS],
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
            raise OSError("that failed: mend it and run `python -m scripts.vbench setup` again")
    if not args.dry:
        print(f"VBench is in {args.env}; it fetches its networks at its first use")


def suite(path: Path) -> tuple[list[str], list[str]]:
    """(every prompt once, those of temporal flickering) of VBench_full_info.json, in its order.

    Two of the 946 entries repeat a prompt: all videos lie in one folder, so it is sampled once.
    """
    try:
        with reading(path, f"fetch {INFO} again"):
            entries = json.loads(path.read_text(encoding="utf-8"))
            pairs = [(e["prompt_en"].strip(), list(e["dimension"])) for e in entries]
            if not all(prompt.isprintable() for prompt, _ in pairs):
                raise ValueError("a prompt is more than a line")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: run `python -m scripts.vbench setup`, or pass --info {INFO}"
        ) from None
    except Damaged:
        raise ValueError(f"{path} is not VBench's list of prompts: fetch {INFO} again") from None
    flickering = [prompt for prompt, dimensions in pairs if "temporal_flickering" in dimensions]
    return list(dict.fromkeys(p for p, _ in pairs)), list(dict.fromkeys(flickering))


def prompts(args: argparse.Namespace) -> None:
    """Write prompts.txt and flickering.txt, and keep the list that they are from."""
    installed = sorted(args.env.glob(f"lib/*/site-packages/vbench/{INFO}"))
    info: Path = args.info or (installed or [args.env / INFO])[0]
    every, flickering = suite(info)
    for name, texts in (("prompts.txt", every), ("flickering.txt", flickering)):
        write_text(args.out / name, "".join(f"{text}\n" for text in texts))
        print(f"{args.out / name}: {len(texts)} prompts")
    write_atomic(args.out / INFO, lambda p: shutil.copy(info, p))


def run(args: argparse.Namespace) -> None:
    """Run VBench on what has no result yet, and print what there is."""
    run_vbench(
        args.runs,
        args.flickering,
        gpus=args.gpus,
        dimensions=args.dimensions,
        env=args.env,
        info=args.info,
    )
    for folder in args.runs:
        print(folder)
        print_scores(folder, partial=True)


def score(args: argparse.Namespace) -> None:
    print_scores(args.run, args.partial)


def print_scores(folder: Path, partial: bool) -> None:
    """Print the scores of a run; ValueError if a dimension is missing, unless `partial`."""
    results = read_results(result_files(folder))
    for name, value in results.items():
        print(f"  {name:<24}{100 * value.value:7.2f}")
    for name, value in aggregate(results, partial).items():
        print(f"{name:<26}{format_score('total', value)}")
    if missing := [name for name in DIMENSIONS if name not in results]:
        print(f"no total: {', '.join(missing)} missing")


def main() -> None:
    command_line = parser(__doc__)
    commands = command_line.add_subparsers(required=True, metavar="setup | prompts | run | score")
    home = downloads() / "vbench"
    of_env = "the folder of VBench's environment (downloads/vbench/env)"

    def add(call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(call.__name__, help=text)
        command.set_defaults(call=call)
        command.add_argument("--env", type=Path, default=home / "env", help=of_env)
        return command

    command = add(setup, "make VBench's environment")
    command.add_argument("--python", help=f"its Python ({' or '.join(PYTHONS)})")
    command.add_argument("--dry", action="store_true", help="only print the commands")
    command = add(prompts, "write the prompt suite")
    text = "the folder of the prompts (downloads/vbench)"
    command.add_argument("--out", type=Path, default=home, help=text)
    command.add_argument("--info", type=Path, help=f"the file {INFO} (that of the environment)")
    command = add(run, "run VBench on what has no result yet")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of videos")
    text = "for each RUN one of flickering.txt, 25 videos a prompt"
    command.add_argument("--flickering", type=Path, nargs="+", metavar="RUN2", help=text)
    command.add_argument("--gpus", help="such as 0,1,2,3 (those of this process, or 0)")
    command.add_argument("--dimensions", nargs="*", help="which of the 16 (all)")
    command.add_argument(
        "--info", type=Path, default=home / INFO, help=f"the file {INFO} (as prompts left it)"
    )
    command = add(score, "print the scores")
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of videos")
    command.add_argument(
        "--partial", action="store_true", help="print what there is, without total"
    )
    args = command_line.parse_args()
    args.call(args)


if __name__ == "__main__":
    reported(main)
