"""Execute the notebooks in place: what they show is what this repository computes, from top to bottom.

    python -m scripts.notebooks                    # all of notebooks/
    python -m scripts.notebooks --out /tmp notebooks/read_a_plan.ipynb

The badge on top and the first cell of code, which installs the repository on Colab, are written anew: their
address is that of pyproject.toml (project.urls).
"""

import os
import time
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

from eval.endings import parser
from experiments.endings import reported
from files.places import ROOT
from files.threads import thread_defaults
from files.whole import write_text

FOLDER = ROOT / "notebooks"
LIMIT = 300_000  # bytes: GitHub shows no large ones
SECONDS = 600  # a cell, at most

BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{account}/blob/main/notebooks/{file})"
)
SETUP = """\
# On Colab this installs the repository; elsewhere it finds the one around the notebook.
# The samplers alone: pip install git+{address}
import os
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("sample.py").is_file():
    !git clone -q --depth 1 {address} skipped-step
    %pip install -q "./skipped-step[commands,models,evaluation]"
    os.chdir("skipped-step")
CLONE = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "sample.py").is_file())
os.chdir(CLONE)
sys.path.insert(0, str(CLONE))"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main() -> None:
    command = parser(__doc__)
    text = "notebooks to execute (all of notebooks/)"
    command.add_argument("notebooks", type=Path, nargs="*", help=text)
    command.add_argument("--out", type=Path, help="the folder to write into (their own)")
    args = command.parse_args()
    # Of the kernels, which are started from here.  The warning is tqdm's, where there is no ipywidgets.
    os.environ.update(thread_defaults(os.environ), PYTHONWARNINGS="ignore:IProgress not found")
    for path in args.notebooks or sorted(FOLDER.glob("*.ipynb")):
        begin = time.monotonic()
        text = executed(path)
        out = (args.out or path.parent) / path.name
        write_text(out, text)
        print(f"{out}: {time.monotonic() - begin:.0f} s, {len(text) / 1000:.0f} kB", flush=True)


def executed(path: Path) -> str:
    """The notebook at a path with what its cells print and draw, run in its own folder.

    Raises ValueError, with the remedy, for a cell that fails and for outputs of more than `LIMIT`.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError:
        raise ValueError(
            "notebooks need nbclient and ipykernel: pip install -e '.[notebooks]'"
        ) from None

    notebook = addressed(nbformat.read(path, as_version=4), path.name)
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        coalesce_streams=True,  # a progress bar is its last state
        extra_arguments=[
            "--IPKernelApp.log_level=40"
        ],  # it warns that its sockets are this machine's
    )
    try:
        client.execute()
    except CellExecutionError as error:
        said = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise ValueError(f"{path} fails with {said}: run it in Jupyter to see where") from None
    # Once more, since the kernel has told its version.
    text: str = nbformat.writes(addressed(notebook, path.name)) + "\n"
    if len(text.encode()) > LIMIT:
        raise ValueError(
            f"{path} has grown to {len(text.encode()) // 1000} kB, of at most {LIMIT // 1000}: make its "
            "pictures smaller"
        )
    return text


def addressed(notebook: Any, file: str) -> Any:
    """The notebook with the badge, the setup cell and the metadata that all have."""
    address = repository()
    account = address.removeprefix("https://github.com/")
    first = notebook.cells[0]
    text = first.source.partition("\n\n")[2] if first.source.startswith("[![") else first.source
    first.source = f"{BADGE.format(account=account, file=file)}\n\n{text}"
    notebook.cells[1].source = SETUP.format(address=address)
    notebook.metadata = deepcopy(METADATA)
    return notebook


def repository() -> str:
    """Where this repository is published."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"])


if __name__ == "__main__":
    reported(main)
