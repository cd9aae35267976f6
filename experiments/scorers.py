"""What turns complete cells into records: a protocol for images, VBench for videos."""

from collections.abc import Sequence

from eval.records import Record
from eval.scoring import check_metrics
from experiments.cells import Cell, Column
from experiments.evaluate import Evaluator, Subject
from experiments.vbench import result_files, run_vbench, vbench_record


class ImageScorer:
    """Scores images by the protocol of the config."""

    def __init__(self, evaluator: Evaluator):
        self.evaluator, self.protocol = evaluator, evaluator.name

    def check(self, metrics: Sequence[str], columns: Sequence[Column]) -> None:
        """Refuse what cannot end well.  FileNotFoundError or ValueError before days of sampling."""
        scores = self.evaluator.scores
        if absent := sorted({*check_metrics(metrics)} - {*scores, "label_agreement"}):
            raise ValueError(
                f"experiment.metrics names {', '.join(absent)}, which metrics.scores lacks: "
                f"set experiment.metrics=[{','.join(scores)}] or another metrics="
            )
        self.evaluator.check_media(columns[0].cells[0].media)
        for column in columns:
            self.evaluator.check_size(column.size.num_samples)

    def score(self, cells: Sequence[Cell], stage: str = "all") -> list[Record]:
        """Evaluate cells, or find that done; only the latter at the stage `render`."""
        return [self._record(cell, stage) for cell in cells]

    def _record(self, cell: Cell, stage: str) -> Record:
        subject = Subject(cell.folder, cell.record(self.protocol), cell.size.num_samples)
        if stage != "render":
            return self.evaluator.record(subject)
        record = self.evaluator.stored(subject)
        if record is None:
            raise FileNotFoundError(
                f"{cell.row} at {cell.steps} steps is not evaluated: run stage=evaluate first"
            )
        return record


class VideoScorer:
    """VBench, which has an environment of its own, scores when asked to; else it must have."""

    protocol = "vbench"

    def check(self, metrics: Sequence[str], columns: Sequence[Column]) -> None:
        """Nothing that could be known before."""

    def score(self, cells: Sequence[Cell], stage: str = "all") -> list[Record]:
        """The records of VBench's results; the stage `evaluate` runs it."""
        folders = [cell.folder for cell in cells]
        if stage == "evaluate":
            run_vbench(folders)
        elif unscored := [folder for folder in folders if not result_files(folder)]:
            names = " ".join(map(str, unscored))
            raise FileNotFoundError(
                f"VBench has not scored {names}: on a GPU, `python -m scripts.vbench run {names}` "
                "does, and then the same command renders the table"
            )
        return [vbench_record(folder) for folder in folders]


Scorer = ImageScorer | VideoScorer


def placed(cells: Sequence[Cell], records: Sequence[Record]) -> list[Record]:
    """Records with their places in a table, as records.json has them."""
    return [
        {"row": cell.row, "steps": cell.steps, **record}
        for cell, record in zip(cells, records, strict=True)
    ]
