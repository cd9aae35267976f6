"""Write docs/study.md and its figures from the records that `make study` leaves.

python -m scripts.study
"""

from __future__ import annotations

from experiments.config import reported
from files.places import ROOT
from files.whole import write_atomic
from report.study import FIGURES, Study, Theory, draw_dial, draw_quality, draw_why, text


def main() -> None:
    results = ROOT / "results"
    study = Study.load(results)
    theory = Theory.of_digits()
    write_atomic(ROOT / "docs" / "study.md", lambda p: p.write_text(text(study, theory)))
    draw_quality(results / FIGURES / "quality.png", study)
    draw_why(results / FIGURES / "why.png", study, theory)
    draw_dial(results / FIGURES / "dial.png", study)
    print(f"written: docs/study.md and figures in {results / FIGURES}")


if __name__ == "__main__":
    reported(main)
