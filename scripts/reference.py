"""Make a reference of real images, once: features, statistics, sizes and digest in one file.

    python -m scripts.reference DIR --out mine.npz --floor DIR2 metrics=dinov2
    python evaluate.py samples=... reference=stored reference.file=mine.npz metrics=dinov2

IMAGES is a folder of PNG, JPEG or WebP files, a zip of them, or an .npz with arr_0.  Images of several
sizes are brought to one, and later the samples, too, by reference.preprocess=bicubic reference.size=224.
A second set of real images, --floor, or --split of the first at random, is what a perfect sampler
would score: it goes into mine.floor.npz.  Other settings are those of evaluate.py.

Statistics and features of others are read, too: an .npz of guided-diffusion (arr_0 with mu, sigma, mu_s
and sigma_s of --statistics-n images, for metrics=adm), of pytorch-fid (mu and sigma alone) or of dgm-eval (reps).
That metrics=... names the network which made them is for you to know.
The file's format: eval/reference.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.endings import parser
from eval.features import Extracted, Extractor
from eval.preprocessing import Preprocessed, Preprocessing
from eval.reference import (
    PublishedStatistics,
    Reference,
    check_name,
    floor_path,
    foreign_reference,
    is_reference,
    read_adm_statistics,
    reference_of,
    size_words,
)
from experiments.config import composed, evaluator_of, reference_source
from experiments.endings import reported
from files.images import load_samples
from files.npz import array_names
from files.whole import Damaged, check_writable, file_sha256
from files.zips import pictures_of


def extracted(
    path: Path, extractor: Extractor, preprocess: Preprocessing | None
) -> tuple[Extracted, str]:
    """Features of the images at `path`, and the images' size."""
    with pictures_of(path) as place:
        images = load_samples(place, preprocess.image if preprocess else None).images
        shown: Any = Preprocessed(images, preprocess) if preprocess else images
        return extractor(shown), size_words(shown.shape)


def published(path: Path, extractor: Extractor, n: int | None) -> PublishedStatistics | None:
    """Those in one of guided-diffusion's batches, which are of its Inception; ValueError without `n`."""
    is_batch = path.suffix == ".npz" and {"arr_0", "mu", "sigma"} <= set(array_names(path))
    if not is_batch or extractor.name != "inception":
        return None
    if n is None:
        raise ValueError(
            f"{path} holds statistics, but not of how many images: give --statistics-n N, for "
            "ImageNet 1281167"
        )
    return read_adm_statistics(path, n)


def split(seen: Extracted, n: int) -> tuple[Extracted, Extracted]:
    """(the rest, n of them at random)."""
    total = len(seen.features)
    if not 2 <= n <= total - 2:
        raise ValueError(
            f"--split must be between 2 and {total - 2} of the {total} images, got {n}"
        )
    rows = np.random.default_rng(0).permutation(total)
    parts = (np.sort(rows[n:]), np.sort(rows[:n]))
    rest, drawn = (
        Extracted._make(None if part is None else part[rows] for part in seen) for rows in parts
    )
    return rest, drawn


def check_out(out: Path) -> None:
    """Raise ValueError if something else than a reference would be overwritten."""
    if out.suffix != ".npz":
        raise ValueError(f"--out must be an .npz file, got {out}: give --out {out}.npz")
    for path in filter(Path.exists, (out, floor_path(out))):
        try:
            ours = is_reference(path)
        except (Damaged, OSError):
            ours = False
        if not ours:
            raise ValueError(
                f"{path} is there and no reference: choose another --out, or remove it"
            )
    check_writable(out)


class Maker:
    """References of one extractor; `preprocess` brings images to one size."""

    def __init__(self, extractor: Extractor, preprocess: Preprocessing | None):
        self.extractor, self.preprocess = extractor, preprocess

    def of(self, path: Path, name: str, n: int | None = None) -> Reference:
        """The reference of what lies at `path`; `n` is the number of images behind statistics."""
        is_npz = path.is_file() and path.suffix == ".npz"
        theirs = foreign_reference(path, name, self.extractor, n) if is_npz else None
        if theirs:
            return replace(theirs, source=file_sha256(path))
        whole = published(path, self.extractor, n) if is_npz else None
        seen, size = extracted(path, self.extractor, self.preprocess)
        return self._made(path, name, seen, size, whole)

    def split(self, path: Path, name: str, n: int) -> list[Reference]:
        """(of the rest, of n of the images at random)."""
        seen, size = extracted(path, self.extractor, self.preprocess)
        names = (name, f"{name}_floor")
        parts = zip(names, split(seen, n), strict=True)
        return [self._made(path, name, part, size, None) for name, part in parts]

    def _made(
        self,
        path: Path,
        name: str,
        seen: Extracted,
        size: str,
        whole: PublishedStatistics | None,
    ) -> Reference:
        way = self.preprocess
        return replace(
            reference_of(name, self.extractor, seen, whole),
            source=file_sha256(path) if path.is_file() else "",
            size=size,
            preprocess=f"{way.name} {way.size}" if way else "",
        )


def main() -> None:
    command = parser(__doc__)
    command.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="a folder, zip or npz of images, or a file of features",
    )
    command.add_argument("overrides", nargs="*", help="metrics=..., as for evaluate.py")
    command.add_argument("--out", type=Path, required=True, help="the file to write, .npz")
    command.add_argument("--name", help="in records; by default the file's")
    command.add_argument("--floor", type=Path, help="a second, disjoint set of real images")
    command.add_argument(
        "--split", type=int, metavar="N", help="so many of the images are the floor"
    )
    command.add_argument("--statistics-n", type=int, metavar="N", help="images behind mu and sigma")
    args = command.parse_intermixed_args()
    if args.floor and args.split is not None:
        raise ValueError("--floor is a second set and --split makes one: give one of them")
    check_out(args.out)
    name = args.name or args.out.stem
    check_name(name)
    if args.images.is_file() and args.images.suffix == ".npz" and is_reference(args.images):
        raise ValueError(f"{args.images} is a reference already: use it as reference.file")
    real = ("reference=custom", f"reference.images.path={args.images}")
    cfg = composed("evaluate", *real, "samples=none", *args.overrides)
    source = reference_source(cfg)
    maker = Maker(evaluator_of(cfg).extractor, source.preprocess if source else None)
    if args.split is not None:
        made = maker.split(args.images, name, args.split)
    else:
        made = [maker.of(args.images, name, args.statistics_n)]
        made += [maker.of(args.floor, f"{name}_floor")] if args.floor else []
    if len({reference.digest for reference in made}) < len(made):
        raise ValueError(
            f"{args.floor} holds what {args.images} does: give other images as --floor"
        )
    if len(made) == 1:
        floor_path(args.out).unlink(missing_ok=True)  # of another reference
    # The floor first: who sees the reference finds it complete.
    for reference, path in reversed(
        list(zip(made, (args.out, floor_path(args.out)), strict=False))
    ):
        reference.write(path)
        print(
            f"{path}  {reference.n} images {reference.size or 'of unknown size'}, "
            f"{reference.features.shape[1]} features of {reference.extractor} "
            f"({reference.weights[:12]}), digest {reference.digest[:12]}"
        )


if __name__ == "__main__":
    reported(main)
