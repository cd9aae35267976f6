"""Build the page in which the digits model runs on the visitor's own machine, into build/play.

python -m scripts.play
python -m scripts.play --out site/play
python -m scripts.play --export

It is a folder of static files: the sources of docs/play, the model's weights, the plans that
Python makes and, fetched once by npm, the runtime that reads the network.  Any server of files will
do: python -m http.server --directory build/play.  --export makes docs/play/network.onnx anew, which
a change of the network's code asks for.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from eval.endings import parser
from experiments.endings import reported
from files.places import ROOT, downloads
from files.whole import write_atomic, write_text
from models import digits
from models.digits.data import HERE as DIGITS
from models.digits.networks import unet
from models.weights import load_weights
from report.styles import MARKERS, SAMPLERS
from sampling import Plan
from sampling.borrowed import sampler_at

SOURCES = ROOT / "docs" / "play"
PAGE = ("index.html", "style.css", "play.js", "worker.js", "sampler.js", "noise.js", "LICENSES.txt")
GRAPH, WEIGHTS = "network.onnx", "unet-6500.safetensors"
INDEX = "play.json"
REMAKE = "make it anew with `python -m scripts.play --export`"

# The runtime: one thread, SIMD, no WebGPU.  The hash is that of npm's own record.
RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"

OURS = {*PAGE, GRAPH, WEIGHTS, SCRIPT, WASM, INDEX, "plans"}
STEPS = (5, 10, 15, 20, 25, 50, 100)


@dataclass(frozen=True)
class Choice:
    """A sampler of the page: its plans come from Python, or are spliced of two others there.

    `title` is a name of report.styles, which says how it looks; `plan` is what Python calls that splice,
    CUTOFF in place of the number.
    """

    title: str
    note: str
    head: str | None = None
    tail: str | None = None
    plan: str | None = None


CHOICES = {
    "mix": Choice("Mix", "", "skipped", "ddim", "mix(cutoff=CUTOFF)"),
    "ddim": Choice("DDIM", "No fresh noise in any row."),
    "skipped": Choice("Skipped-Step", "Fresh noise in every row but the last."),
    "mixpp": Choice("Mix++", "", "sde_dpmpp", "dpmpp", "mixpp(lo=CUTOFF, orders 2 and 2)"),
    "dpmpp": Choice("DPM-Solver++(2M)", "No fresh noise; looks one call back."),
    "sde_dpmpp": Choice("SDE-DPM-Solver++(2M)", "Fresh noise, and looks one call back."),
    "unipc": Choice("UniPC", "No fresh noise; corrects the row before."),
    "ddpm": Choice("DDPM", "Fresh noise, as much as the network has learnt."),
}


def page_plans() -> dict[str, Plan]:
    """File name -> every plan that the page does not splice itself, on the even grid."""
    schedule = digits.load().schedule
    return {
        f"{name}-{steps}.json": sampler_at(name, schedule, steps, "even")
        for name, choice in CHOICES.items()
        for steps in (() if choice.head else STEPS)
    }


def build(out: Path) -> int:
    """Write the folder whole, in place of one of ours; the bytes that a visitor may load.

    Raises ValueError if something else is there, or the graph is not of these weights;
    FileNotFoundError or ValueError if the runtime cannot be had.
    """
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= OURS):
        raise ValueError(f"{out} holds other files than this page: choose another --out DIR")
    runtime = runtime_files()
    check_graph((SOURCES / GRAPH).read_bytes(), (DIGITS / WEIGHTS).read_bytes())
    shutil.rmtree(out, ignore_errors=True)
    (out / "plans").mkdir(parents=True)
    for name in (*PAGE, GRAPH):
        shutil.copy(SOURCES / name, out / name)
    shutil.copy(DIGITS / WEIGHTS, out / WEIGHTS)
    for name, content in runtime.items():
        (out / name).write_bytes(content)
    for name, plan in page_plans().items():
        write_text(out / "plans" / name, plan.to_json())
    write_text(out / INDEX, json.dumps(_index(out), indent=1) + "\n")
    return _size(out)


def _index(out: Path) -> dict[str, Any]:
    """What the page has to know of the folder."""
    files = {"runtime": WASM, "graph": GRAPH, "weights": WEIGHTS}
    return {
        "files": files,
        "bytes": sum((out / name).stat().st_size for name in files.values()),
        "all_bytes": _size(out),
        "steps": STEPS,
        "samplers": {
            name: {key: value for key, value in vars(choice).items() if value is not None}
            | {"look": _look(choice.title)}
            for name, choice in CHOICES.items()
        },
    }


def _look(title: str) -> dict[str, Any]:
    """A sampler's colour, line and marker, as in every figure."""
    style = SAMPLERS[title]
    mark = MARKERS[style.marker]
    return {"light": style.colour, "dark": style.dark, "dash": style.dash, "mark": mark}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- the runtime ---------------------------------------------------------------------------------


def runtime_files() -> dict[str, bytes]:
    """Name -> content of the two files of onnxruntime-web, which npm fetches into downloads/.

    Raises FileNotFoundError where npm is not there or brings nothing, ValueError for other bytes than
    those that were published.
    """
    place = downloads() / f"{RUNTIME}-{VERSION}.tgz"
    if not place.exists():
        _fetch(place)
    digest = base64.b64encode(hashlib.sha512(place.read_bytes()).digest()).decode()
    if digest != INTEGRITY:
        raise ValueError(f"{place} is damaged or another file: remove it and run this again")
    with tarfile.open(place) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in (SCRIPT, WASM)}
        return {name: member.read() for name, member in members.items() if member}


def _fetch(place: Path) -> None:
    npm = shutil.which("npm")
    by_hand = f"`npm pack {RUNTIME}@{VERSION}` on a machine with a network and copy what it writes to {place}"
    if npm is None:
        raise FileNotFoundError(f"npm is not here: install Node.js, or run {by_hand}")

    place.parent.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--ignore-scripts", f"{RUNTIME}@{VERSION}"]
    with TemporaryDirectory(prefix=".part-", dir=place.parent) as folder:
        if subprocess.run(command, capture_output=True, cwd=folder, check=False).returncode:
            raise FileNotFoundError(
                f"npm cannot fetch {RUNTIME}: check the network, or run {by_hand}"
            )
        (Path(folder) / place.name).replace(place)


# --- the network ---------------------------------------------------------------------------------


def layout(weights: bytes) -> tuple[dict[str, tuple[int, int]], str]:
    """Where each tensor of a safetensors file begins and how long it is; a digest of that."""
    end = 8 + int.from_bytes(weights[:8], "little")
    head = json.loads(weights[8:end])
    places = {
        name: (end + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in sorted(head.items())
        if name != "__metadata__"
    }
    return places, f"layout:{hashlib.sha256(json.dumps(places).encode()).hexdigest()}"


def check_graph(graph: bytes, weights: bytes) -> None:
    """Raise ValueError unless the graph looks for its weights where this file has them."""
    if layout(weights)[1].encode() not in graph:
        raise ValueError(f"{GRAPH} is of weights that lie otherwise than in {WEIGHTS}: {REMAKE}")


def exported(weights: Path = DIGITS / WEIGHTS) -> bytes:
    """The U-Net as an ONNX graph that holds no weights: it names their places in the weights' file.

    x [n, 1, 28, 28], t [n] float32, y [n] int64 -> out [n, 2, 28, 28]: eps, then v.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError:
        raise ValueError("--export needs onnx and onnxscript: pip install -e '.[play]'") from None
    net, any_number = unet().eval(), {0: torch.export.Dim.DYNAMIC}
    load_weights(net, weights, "cpu")
    example = (torch.zeros(4, 1, 28, 28), torch.full((4,), 500.0), torch.arange(4))
    program = torch.onnx.export(
        net,
        example,
        input_names=["x", "t", "y"],
        output_names=["out"],
        dynamic_shapes=(any_number, any_number, any_number),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    places, digest = layout(weights.read_bytes())
    for tensor in model.graph.initializer:
        if tensor.name in places:
            _move_out(tensor, weights.name, places[tensor.name], onnx.TensorProto.EXTERNAL)
    del model.graph.value_info[:]  # shapes, which the runtime infers
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # where in the source it comes from
        part.ClearField("doc_string")
    model.doc_string, model.producer_version = digest, ""
    return bytes(model.SerializeToString(deterministic=True))


def _move_out(tensor: Any, location: str, place: tuple[int, int], external: int) -> None:
    """Replace a tensor's values by where they are in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = external
    said: Mapping[str, object] = {"location": location, "offset": place[0], "length": place[1]}
    for key, value in said.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def main() -> None:
    command = parser(__doc__)
    text = "the folder to build (build/play)"
    command.add_argument("--out", type=Path, default=ROOT / "build" / "play", help=text)
    text = f"make docs/play/{GRAPH} anew instead"
    command.add_argument("--export", action="store_true", help=text)
    args = command.parse_args()
    if args.export:
        graph = exported()
        write_atomic(SOURCES / GRAPH, lambda temporary: temporary.write_bytes(graph))
        print(f"written: {SOURCES / GRAPH} ({len(graph) / 1e3:.0f} kB, without weights)")
        return
    size = build(args.out)
    print(f"written: {args.out} ({size / 1e6:.1f} MB)")
    print(f"look at it: python -m http.server --directory {args.out}, then http://localhost:8000")


if __name__ == "__main__":
    reported(main)
