"""Write results/report.html: one page of all results that needs neither server nor network.

python scripts/report.py
python scripts/report.py --results runs/mine --out mine.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval.files import write_atomic
from eval.page import build_page
from scripts.commands import ROOT, reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, help="default: report.html in that folder")
    args = parser.parse_args()
    out = args.out or args.results / "report.html"
    page = build_page(args.results)
    write_atomic(out, lambda p: p.write_text(page))
    print(f"written: {out} ({len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    reported(main)
