"""Alter single bits of every kind of file that a run stores: each is noticed, or changes nothing.

Used by tests/fault_drill.py.  A `Kind` is a file and what reads it: the reader returns what it takes
the file to say, or None (or raises `Damaged`) if it has noticed.  What is noticed is made again, as
the rest of the drill and tests/experiments/test_folders.py show.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.records import load_records
from eval.reference import Reference
from eval.sheets import read_sheets
from experiments.cells import Cell, Size
from experiments.evaluate import Evaluator, Subject
from experiments.folder import finish, is_complete, read_facts, read_manifest, read_shard
from experiments.generate import generate
from experiments.progress import PLANS, read_plan, write_plan
from files.images import load_samples
from files.media import Videos
from files.whole import Damaged
from models.backbone import Backbone
from models.variance import save_x0_variance, stored_x0_variance

MARKS = re.compile(rb"PK\x03\x04|PK\x01\x02|PK\x05\x06|\x93NUMPY")
HEADER = 140  # bytes from a mark on that are taken for a header


@dataclass
class Kind:
    """A file at `path`; `read` tells what is made of it, None if it is to be made again."""

    name: str
    path: Path
    read: Callable[[], Any]

    def bits(self, dice: random.Random) -> Iterator[int]:
        """Every bit of headers and of JSON in some order, mixed with as many others."""
        whole = self.path.read_bytes()
        head = {i for m in MARKS.finditer(whole) for i in range(m.start(), m.start() + HEADER)}
        if self.path.suffix in (".json", ".txt"):
            head = set(range(len(whole)))
        listed = [8 * i + bit for i in head if i < len(whole) for bit in range(8)]
        dice.shuffle(listed)
        for bit in listed:
            yield bit
            yield dice.randrange(8 * len(whole))
        while True:
            yield dice.randrange(8 * len(whole))


def alter(kinds: list[Kind], count: int, dice: random.Random) -> dict[str, Counter[str]]:
    """Flip `count` bits, one at a time, of the files in turn.  SystemExit for one that is unnoticed."""
    results: dict[str, Counter[str]] = {kind.name: Counter() for kind in kinds}
    bits = [kind.bits(dice) for kind in kinds]
    contents = [(kind.path.read_bytes(), said(kind)) for kind in kinds]
    for i in range(count):
        kind, bit = kinds[i % len(kinds)], next(bits[i % len(kinds)])
        whole, expected = contents[i % len(kinds)]
        byte = bytes([whole[bit // 8] ^ 1 << bit % 8])
        kind.path.write_bytes(whole[: bit // 8] + byte + whole[bit // 8 + 1 :])
        told = said(kind)
        outcome = "noticed" if told is None else "harmless" if told == expected else "UNNOTICED"
        results[kind.name][outcome] += 1
        if outcome == "UNNOTICED":
            raise SystemExit(f"bit {bit % 8} of byte {bit // 8} of {kind.path} is not noticed")
        kind.path.write_bytes(whole)
    for kind, (_, expected) in zip(kinds, contents, strict=True):
        if said(kind) != expected:
            raise SystemExit(f"{kind.path} is not what it was")
    return results


def said(kind: Kind) -> str | None:
    try:
        content = kind.read()
    except Damaged as error:
        if not str(error).isprintable():
            raise SystemExit(f"{error} is more than a line") from None
        return None
    return None if content is None else text(content)


def text(content: Any) -> str:
    """Equal for what is equal, arrays included."""
    if isinstance(content, dict):
        return repr({key: text(value) for key, value in content.items()})
    if isinstance(content, np.ndarray):
        return f"{content.dtype} {content.shape} {content.tobytes().hex()}"
    return repr(content)


def kinds_of(folder: Path, cell: Cell, backbone: Backbone, evaluator: Evaluator) -> list[Kind]:
    """A finished run in `folder`, its record, a table's, and all else that is stored beside."""
    generate([cell], backbone)
    subject = Subject(cell.folder, cell.record("digits"), cell.size.num_samples)
    evaluator.record(subject)
    write_plan("digits", "drill", "0" * 64, [replace(cell, row="Mix", steps=5)], "digits")
    reference = evaluator.reference
    assert reference is not None
    reference = replace(reference, features=reference.features[:50], logits=None, name="drill")

    def joined() -> Any:
        return load_samples(cell.folder)._asdict() if is_complete(cell) else None

    def grid() -> bytes:
        finish(cell)  # makes it again
        return (cell.folder / "grid.png").read_bytes()

    def stored() -> Any:
        return evaluator.stored(Subject(subject.path, subject.out, subject.num_samples))

    def referred() -> Any:
        found = Reference.load(path)
        return found.digest, found.name, found.source, found.weights

    path = reference.save(folder)
    kinds = [
        Kind("shard", cell.shard(1), lambda: read_shard(cell, 1)),
        Kind("facts of a shard", cell.facts(0), lambda: read_facts(cell, 0)),
        Kind("samples.npz", cell.folder / "samples.npz", joined),
        Kind("manifest", cell.manifest, lambda: read_manifest(cell.folder)),
        Kind("grid.png", cell.folder / "grid.png", grid),
        Kind("record", subject.out, stored),
        Kind("plan", PLANS / "digits-drill.json", lambda: read_plan(PLANS / "digits-drill.json")),
        Kind("reference", path, referred),
    ]
    return [*kinds, *caches(backbone), *videos(folder, cell)]


def table_kinds(out: Path) -> list[Kind]:
    """What a table's folder has that is read again."""
    return [
        Kind("records.json", out / "records.json", lambda: load_records(out / "records.json")),
        Kind("pictures.json", out / "pictures.json", lambda: read_sheets(out)),
        Kind("pictures", next(out.glob("pictures-*.webp")), lambda: read_sheets(out)),
    ]


def caches(backbone: Backbone) -> list[Kind]:
    """The variance of a network, measured once; of a made-up one."""
    other = replace(backbone, sha256="e" * 64)
    variance = save_x0_variance(other, [0, 500, 999], [1e-4, 1e-2, 1.0], n=7)
    return [Kind("x0 variance", variance, lambda: stored_x0_variance(other))]


def videos(folder: Path, cell: Cell) -> list[Kind]:
    """A shard of videos and a video."""
    from experiments.folder import write_shard

    media = Videos((4, 32, 32, 3), fps=8, bit_rate=100_000)
    filmed = replace(cell, folder=folder / "filmed", media=media, size=Size(2, 2, 2))
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    names = ["000000.mp4", "000001.mp4"]
    arrays = {**media.store(filmed.folder, names, frames), "ids": np.arange(2)}
    write_shard(filmed, 0, arrays, {"seconds": 1.0, "samples": 2, "worker": "a:1"})
    video = filmed.folder / "videos/000001.mp4"
    return [
        Kind("shard of videos", filmed.shard(0), lambda: read_shard(filmed, 0)),
        Kind("video", video, lambda: read_shard(filmed, 0)),
    ]
