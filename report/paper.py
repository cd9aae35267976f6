"""The paper's own numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.records import Record


class Printed(float):
    """A number with the digits that it is printed with: 12.10 says more than 12.1."""

    digits: str

    def __new__(cls, value: float, digits: str) -> Printed:
        number = super().__new__(cls, value)
        number.digits = digits
        return number

    def __str__(self) -> str:
        return self.digits


class _Loader(yaml.SafeLoader):
    """YAML whose numbers keep their digits."""

    def printed(self, node: yaml.ScalarNode) -> Printed:
        return Printed(self.construct_yaml_float(node), node.value)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.printed)


@dataclass(frozen=True)
class Paper:
    """A file of results/paper."""

    data: dict[str, Any]

    @staticmethod
    def load(path: Path) -> Paper:
        """Raises ValueError for a file that is none."""
        try:
            paper = Paper(yaml.load(path.read_text(encoding="utf-8"), _Loader))
            _ = paper["source"], paper["dataset"], paper.has("fid")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ValueError(
                f"experiment.paper: {path} has no numbers of a paper ({error}): write them as in "
                "results/paper/table1.yaml, or set experiment.paper=null"
            ) from None
        return paper

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def value(self, row: str, steps: int | None, metric: str) -> float | None:
        """The number of a row, named as there or as in our tables, or None."""
        number = self._number(row, steps, metric)
        return None if number is None else float(number)

    def printed(self, row: str, steps: int | None, metric: str) -> str | None:
        """As `value`, with the digits that are printed."""
        number = self._number(row, steps, metric)
        return None if number is None else str(number)

    def _number(self, row: str, steps: int | None, metric: str) -> Any:
        for entry in self.data.get("rows", ()):
            if row in (entry["name"], entry.get("ours")):
                for cell in entry["cells"]:
                    # Table 4 does not state its steps (null).
                    if cell["steps"] in (steps, None) and metric in cell:
                        return cell[metric]
        return None

    def has(self, metric: str) -> bool:
        return any(metric in cell for row in self.data.get("rows", ()) for cell in row["cells"])

    def is_of(self, record: Record) -> bool:
        """Whether the record is of the paper's model, made and scored as the paper's numbers.

        The paper mentions no classifier guidance, and clean-fid's FID is another by design.
        """
        config = record["cell"]["config"]
        if self.data.get("backbone") != config["model"]["name"]:
            return False
        if self.data.get("pipeline") not in (None, config["model"].get("id")):
            return False
        return "guidance" not in config and record["protocol"] != "clean"
