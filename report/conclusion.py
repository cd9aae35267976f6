"""Which sampler at how many network calls: what the page of results says first, from records alone."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.records import COMPARABLE, Record, precision
from eval.scoring import METRICS
from eval.table import VERDICTS, Table, gain
from eval.words import decimals, format_score
from report.styles import sampler_of
from report.words import extractor_sentence, listed, network_words

MIX = "Mix"
RIVALS = ("DDIM", "Skipped-Step")  # what Mix is made of, and the paper compares it with


@dataclass(frozen=True)
class Conclusion:
    """All samplers of one network under one protocol, and the metric by which they are judged.

    `sources` are the names of the tables that it is made of.
    """

    title: str
    table: Table
    metric: str
    sources: tuple[str, ...]

    @property
    def heads(self) -> list[str]:
        title = METRICS[self.metric].title
        versus = [f"{MIX} against {rival}" for rival in self._rivals]
        return ["Steps", "N", f"Best, {title}", "Not told from it", *versus]

    def rows(self) -> list[list[str]]:
        """A line a step count."""
        return [self._row(steps) for steps in self.steps]

    def sentences(self) -> list[str]:
        """Which sampler is best where, and how Mix does against what it is made of."""
        bests = {steps: self.table.best(steps, self.metric) for steps in self.steps}
        leads = [
            f"{row} at {listed([s for s, best in bests.items() if best == row])}"
            for row in dict.fromkeys(bests.values())
        ]
        title = METRICS[self.metric].title
        least = "Lowest" if METRICS[self.metric].lower_is_better else "Highest"
        return [f"{least} {title}: {'; '.join(leads)} steps.", *map(self._against, self._rivals)]

    @property
    def note(self) -> str:
        return (
            f"{extractor_sentence(self.table.records[0])} From {listed(self.sources)}, which say the rest; a sampler on "
            "another grid than the even one names it. Differences are judged by their own intervals "
            "where records tell how scores move with the noise that samplers share, else as of "
            "independent samples."
        )

    @property
    def steps(self) -> list[int]:
        """The step counts, ascending, at which anything has a score."""
        return [s for s in sorted(self.table.columns) if self.table.tied(s, self.metric)]

    @property
    def _rivals(self) -> list[str]:
        return [rival for rival in RIVALS if self._named(MIX) and self._named(rival)]

    def _named(self, sampler: str) -> str | None:
        """The row of a sampler under the paper's settings; None if there is none."""
        return next((row for row in self.table.rows if sampler_of(row) == (sampler, "")), None)

    def _row(self, steps: int) -> list[str]:
        table, metric = self.table, self.metric
        best = table.best(steps, metric)
        tied = table.tied(steps, metric) - {best}
        score = format_score(metric, table.value(best, steps, metric))
        others = listed([row for row in table.rows if row in tied], "none")
        differences = [self._difference(rival, steps)[1] for rival in self._rivals]
        return [str(steps), f"{table.n(steps):,}", f"{best} {score}", others, *differences]

    def _difference(self, rival: str, steps: int) -> tuple[str, str]:
        """The verdict on Mix against a rival, empty where one is not scored; and with its interval."""
        names = (self._named(MIX) or "", self._named(rival) or "")
        ours, theirs = (self.table.value(name, steps, self.metric) for name in names)
        if ours is None or theirs is None:
            return "", "-"
        difference = gain(self.metric, ours, theirs)
        if not math.isfinite(difference.value):
            return "", "-"
        word = difference.words.removesuffix(" than").removesuffix(" from")
        return difference.words, f"{word}, {difference.text(decimals(self.metric))}"

    def _against(self, rival: str) -> str:
        found = {steps: self._difference(rival, steps)[0] for steps in self.steps}
        parts = [
            f"{verdict} {rival} at {listed(at)}"
            for verdict in VERDICTS
            if (at := [steps for steps, word in found.items() if word == verdict])
        ]
        return f"{MIX} is {'; '.join(parts)} steps." if parts else ""


def conclude(tables: Mapping[str, Table]) -> list[Conclusion]:
    """One a network and protocol, those with most records first.

    Of tables that tell of the same sampler at the same step count the first counts.
    """
    alike: dict[str, dict[str, Table]] = {}
    for name, table in tables.items():
        alike.setdefault(_kind(table.records[0]), {})[name] = table
    found = []
    for group in alike.values():
        table = _merged(list(group.values()))
        if metric := _judge(table):
            found.append(Conclusion(_title(table.records[0]), table, metric, tuple(group)))
    found.sort(key=lambda conclusion: -len(conclusion.table.records))
    return [conclusion for conclusion in found if conclusion.steps]


def _kind(record: Record) -> str:
    """What records have in common that may stand in one table."""
    config = record["cell"]["config"]
    model = {k: v for k, v in config["model"].items() if k != "_target_"}
    of = [model, config.get("guidance"), precision(config)]
    return json.dumps([*of, *(record.get(key) for key in COMPARABLE)], sort_keys=True)


def _merged(tables: Sequence[Table]) -> Table:
    """One table of all; rows of another spacing than the even one say so.

    A column is of one number of samples, that of the first table that has it.
    """
    sizes: dict[int, int] = {}
    kept: dict[tuple[str, int], Record] = {}
    for table in tables:
        for record in table.records:
            spacing = record["cell"]["config"]["spacing"]
            row = record["row"] if spacing == "even" else f"{record['row']} ({spacing})"
            if sizes.setdefault(record["steps"], record["n"]) == record["n"]:
                kept.setdefault((row, record["steps"]), {**record, "row": row})
    return Table(list(kept.values()))


def _judge(table: Table) -> str | None:
    """FID where there is any, else the first metric that is."""
    known = [m for m in METRICS if any(m in record["scores"] for record in table.records)]
    return "fid" if "fid" in known else next(iter(known), None)


def _title(record: Record) -> str:
    config = record["cell"]["config"]
    model = config["model"]
    network = model.get("checkpoint") or model.get("id") or "network"
    of = f"{record['extractor']} features"
    return f"{model['name']}, {network_words(str(network))} ({precision(config)}; {of})"
