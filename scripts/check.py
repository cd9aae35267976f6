"""Is this machine right, and how fast is it?  To be run before trusting it with days.

    python -m scripts.check             # make check: 3 minutes on a CPU, 8 on a GPU at most
    python -m scripts.check --short     # correctness and one speed, half a minute on a CPU

First correctness: recorded forward passes and trajectories in three precisions, the embedded
model's samples against the CPU's, no waiting for the device, too little memory, seeds.  Then the
speed of networks of the published sizes with random weights (on a CPU of smaller ones), and what
the tables take at these speeds.  All of it goes to results/machines/<device>.json, which
`dry=true` reads; a short check writes no file unless --out says where.  What a part needs and is
not there is named.  The exit status is 1 if a check failed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from eval.endings import parser
from experiments.check import behaviour, golden
from experiments.check.hours import hours, sentence
from experiments.check.machine import MACHINES, Machine, Speed
from experiments.check.outcome import Finding, Outcome, Skip, lacking, one_line, perform
from experiments.check.throughput import Bench, Budget, steps_of
from experiments.devices import pick_device
from models.digits import load
from models.weights import PRECISIONS

MINUTES = {"cpu": 3.0, "cuda": 8.0}
SHORT_SECONDS = 4.0  # for the speed of the first network alone
OF_A_CPU = "fp16 is slow on a CPU, where nothing samples in it"


def checks(device: torch.device, short: bool) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Every check of correctness by its name, the quickest to tell first."""
    slow = device.type == "cpu"
    every = 3 if short else 1
    for precision in PRECISIONS:
        yield f"ADM forward {precision}", partial(golden.adm_forwards, device, precision)
        yield f"STDiT2 forward {precision}", partial(golden.stdit2_forwards, device, precision)
    for precision in PRECISIONS:
        part = partial(golden.trajectories, device, precision, every)
        yield f"trajectories {precision}", part
    count, steps = (4, 10) if short else (8, 10) if slow else (32, 25)
    reference: list[behaviour.Reference] = []

    def same(precision: str) -> Finding:
        if slow and precision == "fp16":
            raise Skip(OF_A_CPU)
        if not reference:
            reference.append(behaviour.Reference(count, steps))
        return reference[0].finding(load(precision=precision, device=device), precision)

    for precision in PRECISIONS:
        yield f"samples as the CPU's {precision}", partial(same, precision)
    yield "seeds and batches", partial(behaviour.batches, device, 8, 4 if short else 10)
    yield "no waiting in the loop", partial(behaviour.asynchronous, device)
    yield "too little memory", partial(behaviour.halving, device)


class Report:
    """What is printed and kept of a check, as it comes."""

    def __init__(self, machine: Machine, device: torch.device):
        self.machine, self.device = machine, device

    def checked(self, outcome: Outcome) -> None:
        self.machine.checks.append(outcome)
        self._say(str(outcome))

    def timed(self, speed: Speed) -> None:
        self.machine.speeds.append(speed)
        self._say(f"      {speed}")

    def skipped(self, what: str) -> None:
        self.machine.skipped.append(what)
        self._say(f"skipped: {what}")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self.machine.save()

    def hours(self) -> None:
        """What the tables take, of those whose networks were timed."""
        try:
            for entry in hours(self.machine.speeds, self.device):
                if isinstance(entry, str):
                    self.skipped(entry)
                else:
                    self.machine.hours.append(entry)
                    self._say(f"      {sentence(entry)}")
        except Exception as error:
            self.skipped(f"hours of tables: {lacking(error) or one_line(error)}")


def check(device: torch.device, short: bool, out: Path | None, minutes: float) -> int:
    """Check and time one device; the number of checks that failed."""
    start = time.perf_counter()
    budget = Budget(60 * minutes)
    machine = Machine(device, out, "short" if short else "full")
    report = Report(machine, device)
    facts = machine.facts
    print(f"{facts['device']}, torch {facts['torch']}, Python {facts['python']}", flush=True)
    for name, made in checks(device, short):
        report.checked(perform(name, made))
    if device.type == "cpu":
        print("speeds, on a CPU of smaller networks but for digits and Inception:", flush=True)
    steps = steps_of(device)
    bench = Bench(device, Budget(SHORT_SECONDS) if short else budget, report.timed, report.skipped)
    bench.run(steps[:1] if short else steps)
    report.hours()
    machine.complete = True
    machine.save()
    failed = sum(outcome.status == "FAIL" for outcome in machine.checks)
    passed = sum(outcome.status == "PASS" for outcome in machine.checks)
    print(
        f"{passed} checks passed, {failed} failed, {len(machine.checks) - passed - failed} skipped; "
        f"{len(machine.speeds)} speeds; {time.perf_counter() - start:.0f} s"
        + (f"; written: {machine.path}" if machine.path else "")
    )
    return failed


def main() -> int:
    command = parser(__doc__)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (auto)")
    command.add_argument("--short", action="store_true", help="check correctness, and one speed")
    command.add_argument("--out", type=Path, help=f"the folder of the record ({MACHINES})")
    command.add_argument(
        "--minutes", type=float, help="how long all of it may take (3; on a GPU 8)"
    )
    args = command.parse_args()
    try:
        device = pick_device(args.device)
        out = args.out if args.short else args.out or MACHINES
        minutes = args.minutes or MINUTES.get(device.type, 3.0)
        return int(check(device, args.short, out, minutes) > 0)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
