"""How far the tables and figures are, read from their folders.

    python -m scripts.status            # make status
    python -m scripts.status --runs DIR

reproduce.py leaves a plan of its cells in runs/plans; their shards tell the rest, wherever and by
whomever they are made.  `running` means that a shard came lately.
"""

import json
import os
from pathlib import Path

from experiments.config import parser, reported
from experiments.progress import PLANS, file_clock, table


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--runs", type=Path, default=Path(), help="the folder above runs/ (default: here)"
    )
    os.chdir(options.parse_args().runs)
    plans = sorted(PLANS.glob("*.json"))
    if not plans:
        raise FileNotFoundError(
            "no tables were begun here: start one with make table1 MODEL=digits"
        )
    now = file_clock(PLANS)
    print("\n\n".join(table(json.loads(plan.read_text()), now) for plan in plans))


if __name__ == "__main__":
    reported(main)
