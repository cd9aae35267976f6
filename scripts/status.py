"""How far the tables and figures are, read from their folders.

    python -m scripts.status            # make status
    python -m scripts.status --runs DIR

reproduce.py leaves a plan of its cells in runs/plans; their shards tell the rest, wherever and by
whomever they are made.  `running` means that a shard came lately; `done`, that samples and scores are
there and can be loaded.  Of files above 64 MB this is judged by sizes and headers; --verify reads
every byte of them.
"""

import os
from pathlib import Path

from eval.endings import parser
from experiments.endings import reported
from experiments.progress import PLANS, file_clock, read_plan, table
from files.whole import Damaged


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=Path, default=Path(), help="the folder above runs/ (here)")
    options.add_argument("--verify", action="store_true", help="read every byte of the samples")
    words = options.parse_args()
    os.chdir(words.runs)
    plans = sorted(PLANS.glob("*.json"))
    if not plans:
        raise FileNotFoundError(
            "no tables were begun here: start one with make table1 MODEL=digits"
        )
    now = file_clock(PLANS)
    print("\n\n".join(_shown(path, now, words.verify) for path in plans))


def _shown(path: Path, now: float, verify: bool) -> str:
    try:
        return table(read_plan(path), now, verify)
    except (OSError, Damaged) as error:  # the others are as good as they were
        return str(error)


if __name__ == "__main__":
    reported(main)
