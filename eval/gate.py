"""The protocol gate: do we score a published sample batch as its authors do?"""

from collections.abc import Mapping
from typing import NamedTuple

from eval.records import Record, score

# How far two faithful evaluations of the same files may lie apart.  Published scores are rounded
# (FID to 0.005, precision and recall to 0.005); another port of Inception moves FID by about 0.001
# and IS by 1e-3 of it; the original's half-precision distances move precision and recall by 0.003.
ABSOLUTE = {"fid": 0.05, "sfid": 0.05, "precision": 0.01, "recall": 0.01}
RELATIVE = {"is": 0.005}


class Check(NamedTuple):
    """One score of ours beside the published one, and how far apart they may be."""

    metric: str
    ours: float
    published: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.ours - self.published) <= self.tolerance


def gate(record: Record, published: Mapping[str, float]) -> list[Check]:
    """Every published score beside the record's.  Raises ValueError if the record lacks one."""
    checks = []
    for metric, value in published.items():
        ours = score(record, metric)
        if ours is None:
            raise ValueError(f"the gate needs {metric}: leave metrics.scores as it is")
        tolerance = ABSOLUTE.get(metric, RELATIVE.get(metric, 0) * abs(value))
        checks.append(Check(metric, ours.value, float(value), tolerance))
    return checks
