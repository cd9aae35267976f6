"""The command `skipped-step`: evaluation, which the extra `evaluation` makes complete."""

import importlib
import sys


def main() -> None:
    """Run it, or exit with one line and status 2 where what it needs is not installed."""
    try:
        command = importlib.import_module("skipped_step.evaluation.command")
    except ModuleNotFoundError as error:
        if error.name == "files":  # pip install -e: the clone's folders have other names
            sys.exit(
                _refusal("this is a clone: in its folder run `python -m eval.command evaluate`")
            )
        sys.exit(_refusal(f"{error}: pip install 'skipped-step[evaluation]'"))
    command.main()


def _refusal(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2
