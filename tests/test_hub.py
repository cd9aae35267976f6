"""Pipelines from the hub: its own client against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import tiny_pipelines as tiny
from conftest import ROOT

COMMIT = "4e63672c03103b6c636b8fb4119ba982469b2955"
ID = "somebody/tiny"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with one repository; `cut` are files whose first transfer breaks off in the middle."""
    folder = tiny.stable_diffusion(tmp_path_factory.mktemp("hub"))
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["v2-1_512-ema-pruned.ckpt"] = b"nobody needs this one"
    cut, served = {"unet/diffusion_pytorch_model.safetensors"}, []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{ID}/tree/"):
                entries = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ]
                return self.send(json.dumps(entries).encode(), body)
            if path.startswith(f"/api/models/{ID}"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": ID, "modelId": ID, "sha": COMMIT, "siblings": siblings}
                info |= {"private": False, "tags": [], "downloads": 0}
                return self.send(json.dumps(info).encode(), body)
            name = path.partition("/resolve/")[2].partition("/")[2]
            if not path.startswith(f"/{ID}/resolve/") or name not in files:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if ID in path else "RepoNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send(files[name], body, name)

        def send(self, content, body, name=None):
            start = 0
            if name and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            if name:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            rest = content[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if not body:
                return
            if name:
                served.append((name, start))
            if name in cut:
                cut.discard(name)
                self.wfile.write(rest[: len(rest) // 2])
                self.close_connection = True
                return
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", served
    server.shutdown()
    server.server_close()


def call(hub, tmp_path, *words, **more):
    """A command with that hub, and no proxy or cache of the machine's."""
    env = {**os.environ, "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home")}
    env |= {
        "SKIPPED_STEP_DOWNLOADS": str(tmp_path / "downloads"),
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )


def test_download_resume_and_sample_offline(hub, tmp_path):
    fetch = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts.download import composed, _of_model\n"
        f"print(_of_model(composed('sample', 'model=sd', 'model.id={ID}'))[0].get())"
    )
    done = call(hub, tmp_path, "-c", fetch)
    assert done.returncode == 0, done.stderr
    assert COMMIT in done.stdout
    # The transfer that broke off was tried again, and what no pipeline needs was left there.
    parts = [start for name, start in hub[1] if name == "unet/diffusion_pytorch_model.safetensors"]
    assert len(parts) == 2
    assert "v2-1_512-ema-pruned.ckpt" not in [name for name, _ in hub[1]]
    before = len(hub[1])
    # After what is there, in the same process, what is not.
    words = f"-m model=sd model.id={ID},stabilityai/gone model.precision=fp32 steps=2".split()
    done = call(hub, tmp_path, f"{ROOT}/sample.py", *words, "prompts=[a cat]", HF_HUB_OFFLINE="1")
    assert len(list(tmp_path.glob("runs/sd/*/samples.npz"))) == 1
    assert len(hub[1]) == before
    refuses_what_is_gone(done)


def refuses_what_is_gone(done):
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot load stabilityai/gone (") and "unofficial mirrors" in last


def test_what_the_hub_does_not_have(hub, tmp_path):
    words = [str(ROOT / "sample.py"), "model=sd", "model.id=stabilityai/gone", "prompts=[a cat]"]
    refuses_what_is_gone(call(hub, tmp_path, *words, HF_HUB_OFFLINE="0"))
