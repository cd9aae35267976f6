"""The protocol gate: do we score a published sample batch as others do?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eval.records import Record, score
from eval.scoring import Options

ANY = range(1, 10**9)


@dataclass(frozen=True)
class Gate:
    """How far two faithful evaluations of the same files by one protocol may lie apart.

    `absolute` in units of the score, and `relative` to it.  `options` are those on which scores depend,
    not only their errors, as the published ones were made.  `reference_n`: with how many reference
    images a score compares with the published one.
    """

    absolute: Mapping[str, float]
    relative: Mapping[str, float]
    options: Mapping[str, Any]
    reference_n: Mapping[str, range] = field(default_factory=dict)

    def tolerance(self, metric: str, published: float) -> float:
        return self.absolute.get(metric, 0.0) + self.relative.get(metric, 0.0) * abs(published)

    def obstacle(self, metric: str, record: Record) -> str | None:
        """Why a score cannot be judged against this record's reference; None if it can."""
        wanted = self.reference_n.get(metric, ANY)
        if record["reference_n"] in wanted:
            return None
        more = "" if len(wanted) == 1 else " or more"
        return (
            f"needs a reference of {wanted[0]:,}{more} images, this has {record['reference_n']:,}"
        )


# adm: published scores are rounded (FID to 0.005, precision and recall to 0.005); another port of
# Inception moves FID by about 0.001 and IS by 1e-3 of it; the original's half-precision distances move
# precision and recall by 0.003.
#
# dinov2: dgm-eval drew 50,000 images of the training set, and 10,000 of these and of the samples for
# the neighbours; which is not known.  With other draws a share of 10,000 varies by 0.004 to 0.005, and
# a difference of two by 0.007: 0.02 is three of these, and density varies about half as much again.  KD
# is the mean of 100 subsets, whose draw moves it by some percent, rounded to 0.005.  FD's bias is about
# 4.3e5 / n on either side (from its published limit), 9 at 50,000 images and 43 at 10,000: with another
# number of them it tells nothing.  At 50,000, 1% is room for other draws and another port of the network.
_OF_10000 = range(10_000, ANY.stop)
GATES = {
    "adm": Gate(
        absolute={"fid": 0.05, "sfid": 0.05, "precision": 0.01, "recall": 0.01},
        relative={"is": 0.005},
        options={"k": 3, "ties": "in", "prdc_size": None, "is_chunk_size": 5000},
    ),
    "dinov2": Gate(
        absolute={
            "precision": 0.02,
            "recall": 0.02,
            "density": 0.03,
            "coverage": 0.02,
            "kid": 0.01,
        },
        relative={"fid": 0.01, "kid": 0.03},
        options={"k": 5, "ties": "out", "prdc_size": 10_000, "kid_subset_size": 1000},
        reference_n={
            "fid": range(50_000, 50_001),
            **dict.fromkeys(("precision", "recall", "density", "coverage"), _OF_10000),
        },
    ),
}


class Check(NamedTuple):
    """One score of ours beside the published one, and how far apart they may be.

    `obstacle`: why they do not compare, if they do not.
    """

    metric: str
    ours: float
    published: float
    tolerance: float
    obstacle: str | None = None

    @property
    def passed(self) -> bool | None:
        """None where there is no verdict."""
        return None if self.obstacle else abs(self.ours - self.published) <= self.tolerance


def changed_option(protocol: str, options: Options) -> str | None:
    """What the first option should be that is not as the published scores were made with."""
    for name, value in GATES[protocol].options.items():
        if getattr(options, name) != value:
            return f"metrics.options.{name}={'null' if value is None else value}"
    return None


def gate(record: Record, published: Mapping[str, float]) -> list[Check]:
    """Every published score beside the record's.

    Raises ValueError if the record lacks one that could be judged.
    """
    rules, checks = GATES[record["protocol"]], []
    for metric, value in published.items():
        ours, obstacle = score(record, metric), rules.obstacle(metric, record)
        if ours is None:
            raise ValueError(f"the gate needs {metric}: leave metrics.scores as it is")
        tolerance = rules.tolerance(metric, value)
        checks.append(Check(metric, ours.value, float(value), tolerance, obstacle))
    return checks
