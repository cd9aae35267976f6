"""Draw README's picture, docs/front.png, from the study's records and the embedded model.

python -m scripts.front
"""

from eval.endings import parser
from experiments.endings import reported
from files.places import ROOT
from report.study_front import draw


def main() -> None:
    parser(__doc__).parse_args()
    path = ROOT / "docs" / "front.png"
    draw(path, ROOT / "results" / "digits" / "study" / "records.json")
    print(f"written: {path}")


if __name__ == "__main__":
    reported(main)
