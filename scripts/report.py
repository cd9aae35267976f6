"""Write results/report.html: one page of all results that needs neither server nor network.

python -m scripts.report
python -m scripts.report --results runs/mine --out mine.html
"""

from pathlib import Path

from eval.endings import parser
from experiments.endings import reported
from files.places import ROOT
from report.page import write_page


def main() -> None:
    command = parser(__doc__)
    text = "the folder of results (results)"
    command.add_argument("--results", type=Path, default=ROOT / "results", help=text)
    command.add_argument("--out", type=Path, help="the page (report.html in that folder)")
    args = command.parse_args()
    out = args.out or args.results / "report.html"
    size = write_page(args.results, out)
    print(f"written: {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    reported(main)
