"""Models of the Hugging Face hub or from local folders in its layout, and what to do without them."""

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.weights import reason
from sampling.options import closest

WITHDRAWN = (
    "; Stable Diffusion 2.x left the hub in November 2025 and 1.5 in 2024, and the default ids are "
    "unofficial mirrors that may vanish, too"
)


@contextmanager
def remedied(id: str, option: str, what: str = "", hint: str = "") -> Iterator[None]:
    """Whatever loading `id` raises in this context becomes a FileNotFoundError with the remedy.

    `option` is the setting that names the model, `what` says what of it is loaded ("the VAE ").
    """
    try:
        with _silence():
            yield
    except MemoryError:
        raise
    except Exception as error:  # whatever damaged files raise
        why = reason(error)
        if Path(id).is_dir():
            raise FileNotFoundError(
                f"{what}{id} is not complete ({why}): copy or download it again, or give "
                f"another folder as {option}=..."
            ) from None
        raise FileNotFoundError(
            f"cannot load {what}{id} ({why}): check the network, or give another hub id or a "
            f"local folder as {option}=...{hint}"
        ) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Libraries that load say much that is of no use, and log an error before they raise it: what
    matters is said in our one line."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # diffusers passes an argument that huggingface_hub no longer has.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_filled(missing: Collection[str], id: str, option: str, what: str = "") -> None:
    """Raise FileNotFoundError if a loader did not find weights in the files and made them up."""
    if missing:
        first, others = min(missing), f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{what}{id} is not complete (it lacks {first}{others}): copy or download it again, or "
            f"give another folder as {option}=..."
        )


def hub_file(id: str, name: str, revision: str | None, option: str, fetch: bool = True) -> Path:
    """A file of a local folder or of a hub repository, fetched once; not without `fetch`.

    Raises FileNotFoundError, with the remedy, if it is not there and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    _check_id(id)
    if Path(id).is_dir():
        if not (Path(id) / name).is_file():
            raise FileNotFoundError(f"{id} has no {name}: give a folder that has it as {option}")
        return Path(id) / name
    with remedied(id, option):
        return Path(hf_hub_download(id, name, revision=revision, local_files_only=not fetch))


def download_files(id: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch a hub repository's files that fit the patterns into its cache; the folder there.

    Raises FileNotFoundError as `hub_file`.
    """
    from huggingface_hub import snapshot_download

    if Path(id).is_dir():
        return Path(id)
    with remedied(id, "model.id"):
        return Path(snapshot_download(id, revision=revision, allow_patterns=patterns))


def download_pipeline(id: str, revision: str | None, variant: str | None, hint: str = "") -> Path:
    """Fetch what a diffusers pipeline needs from the hub into its cache; the folder there.

    `hint` is told where there is none.  Raises FileNotFoundError as `hub_file`.
    """
    from diffusers import DiffusionPipeline

    check_pipeline_id(id)
    if Path(id).is_dir():
        return Path(id)
    with remedied(id, "model.id", hint=hint):
        return Path(DiffusionPipeline.download(id, revision=revision, variant=variant))


def check_pipeline_id(id: str) -> None:
    """Raise FileNotFoundError unless `id` can be a hub id or is the folder of a pipeline."""
    if Path(id).is_file():
        raise FileNotFoundError(
            f"{id} is a file, and a pipeline is a folder: give the one that has model_index.json as "
            "model.id=...; of one file of weights diffusers makes it, `from_single_file` and then "
            "`save_pretrained`"
        )
    _check_id(id)
    if Path(id).is_dir() and not Path(id, "model_index.json").is_file():
        raise FileNotFoundError(
            f"{id} has no model_index.json: give the folder of a diffusers pipeline"
        )


def _check_id(id: str) -> None:
    malformed = id.count("/") != 1 or id.startswith((".", "~", "/"))
    if not id or (malformed and not Path(id).is_dir()):
        beside = Path(id).parent
        names = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
        guess = closest(Path(id).name, names) if id else None
        raise FileNotFoundError(
            f"there is no folder {id or repr(id)}, and a hub id is OWNER/NAME: "
            f"{f'did you mean {beside / guess}?' if guess else 'give either as model.id=...'}"
        )
