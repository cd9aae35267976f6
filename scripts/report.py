"""Write results/report.html: one page of all results that needs neither server nor network.

python -m scripts.report
python -m scripts.report --results runs/mine --out mine.html
"""

import argparse
from pathlib import Path

from experiments.endings import reported
from files.places import ROOT
from report.page import write_page


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, help="default: report.html in that folder")
    args = parser.parse_args()
    out = args.out or args.results / "report.html"
    size = write_page(args.results, out)
    print(f"written: {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    reported(main)
