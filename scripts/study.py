"""Write docs/study.md and its figures from the records that `make study` leaves.

python -m scripts.study
"""

from eval.endings import parser
from experiments.endings import reported
from files.places import ROOT
from files.whole import write_text
from report.study import Study, text
from report.study_figures import draw
from report.study_theory import Theory


def main() -> None:
    parser(__doc__).parse_args()
    results = ROOT / "results"
    figures = results / "digits" / "study"
    study, theory = Study.load(results), Theory.of_digits()
    write_text(ROOT / "docs" / "study.md", text(study, theory))
    draw(figures, study, theory)
    print(f"written: docs/study.md and figures in {figures}")


if __name__ == "__main__":
    reported(main)
