"""The command `skipped-step evaluate SAMPLES --reference REFERENCE`: scores without Hydra or a clone.

    skipped-step evaluate admnet_imagenet256.npz --reference VIRTUAL_imagenet256_labeled.npz

In a clone it is `python -m eval.command evaluate ...`; docs/evaluation.md says more.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eval.endings import Ending, one_line, reported
from eval.library import Settings, evaluated, spelled
from eval.protocols import PROTOCOLS, Judged, published_reference
from eval.records import Record, check_replaceable, save_records
from eval.scoring import Options
from eval.words import print_record, print_verdict
from files.whole import check_writable

# What messages call settings, which are spelled as evaluate.py has them, and what they are here.
SPELLINGS = {
    r"reference=custom reference\.preprocess=(\w+) reference\.size=(\d+)": r"--resize \1:\2",
    r"\breference=(adm_\w+)": r"the batch of \1 as --reference",
    r"\breference=custom": "--reference",
    r"\bnum_samples=null": r"without --num-samples",
    r"\bmetrics=(\w*)": r"--protocol \1",
    r"\bdevice=(\w+)": r"--device \1",
    r"\bout=(\w+)": r"--out \1",
}
INSTALL = "pip install 'skipped-step[evaluation]'"


def main() -> None:
    """Run the command line.  Raises SystemExit: 1 if the protocol gate says FAIL, 2 for what a user can mend."""
    ending = Ending(
        interrupted="nothing is written; run the same command again",
        less="score fewer samples (--num-samples)",
        place="--out",
        mendable=lambda: (ValueError, OSError, ImportError),
        words=_words,
    )
    reported(lambda: _main(sys.argv[1:]), ending)


def _words(error: BaseException) -> str:
    text = spelled(one_line(error), SPELLINGS)
    return f"{text}: {INSTALL}" if isinstance(error, ImportError) else text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; skipped-step evaluate --help tells what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "skipped-step evaluate",
        description="Score samples against real images by a published protocol, with errors.",
        epilog="A sample batch that ADM's authors published is judged, too: the command ends with PASS, "
        "or with FAIL and exit status 1, or says why there is no verdict.",
    )
    options: dict[str, dict[str, Any]] = {
        "samples": {"type": Path, "help": "an .npz with arr_0, or a folder or zip of images"},
        "settings": {
            "nargs": "*",
            "metavar": "NAME=VALUE",
            "help": "a setting of the protocol, as metrics.weights=FILE or metrics.options.k=5",
        },
        "--reference": {
            "type": Path,
            "required": True,
            "help": "a reference batch of guided-diffusion, or an .npz, folder or zip of real images",
        },
        "--protocol": {"default": "adm", "help": f"{', '.join(PROTOCOLS)} (default: adm)"},
        "--floor": {
            "type": Path,
            "metavar": "IMAGES",
            "help": "other real images, which score what a perfect sampler would",
        },
        "--resize": {
            "metavar": "WAY:PIXELS",
            "help": "bring all images to one size, by center_lanczos:256 or bicubic:256",
        },
        "--num-samples": {"type": int, "metavar": "N", "help": "score the first N samples alone"},
        "--device": {"default": "auto", "help": "cpu, cuda:0, or auto: a GPU if there is one"},
        "--downloads": {
            "type": Path,
            "metavar": "DIR",
            "help": "where published weights lie or are put (default: ~/.cache/skipped-step)",
        },
        "--out": {"type": Path, "metavar": "FILE", "help": "write scores and protocol as JSON"},
    }
    for name, about in options.items():
        parser.add_argument(name, **about)
    return parser


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words after `evaluate`, the one command that there is."""
    if words[:1] not in (["evaluate"], ["-h"], ["--help"]):
        given = f"not {words[0]!r}" if words else "which is missing"
        raise ValueError(f"the command is evaluate, {given}: skipped-step evaluate --help")
    return _parser().parse_intermixed_args(words[1:] if words[0] == "evaluate" else words)


def _setting(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    try:
        if name and equals:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ValueError(f"{word!r} is no setting: write NAME=VALUE, as metrics.options.k=5")


def _main(words: Sequence[str]) -> None:
    args = _parsed(words)
    if args.downloads:
        os.environ["SKIPPED_STEP_DOWNLOADS"] = str(args.downloads)
    if args.out:
        check_replaceable(args.out)
        check_writable(args.out)
    how = Settings(
        protocol=args.protocol,
        floor=args.floor,
        resize=args.resize,
        num_samples=args.num_samples,
        settings=dict(map(_setting, args.settings)),
        device=args.device,
    )
    record = evaluated(args.samples, args.reference, how)
    print_record(record)
    if args.out:
        save_records(args.out, record)
        print(f"record: {args.out}")
    if not print_verdict(record, _judged(args, record), partial(spelled, spellings=SPELLINGS)):
        sys.exit(1)


def _judged(args: argparse.Namespace, record: Record) -> Judged:
    batch, home = args.samples.stem, published_reference(args.reference.name)
    published = (home[1].get("published") or {}).get(batch) if home else None
    whole = args.num_samples is None
    return Judged(batch, published, record["protocol"], Options.of(record["options"]), whole)


if __name__ == "__main__":
    main()
