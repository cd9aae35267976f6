"""Downloads over real sockets from a local server that misbehaves on demand."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.error import HTTPError

import numpy as np
import pytest
from conftest import ROOT

from files import fetch as module
from files.fetch import fetch, recorded_sha256

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
HTML = b"<!DOCTYPE html><title>Quota exceeded</title>"
NAME = "weights.pt"
# A port of this machine where nobody listens: touching the network fails the test.
NOWHERE = "http://127.0.0.1:1/weights.pt"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIGEST = digest(CONTENT)


@dataclass
class Reply:
    """How the server treats one request; by default as it should."""

    status: int | None = None  # this error instead of the file
    cut: int | None = None  # close the connection after so many bytes
    reset: bool = False  # close it with RST instead of FIN
    ranges: bool = True  # heed Range
    if_range: bool = True  # heed If-Range
    shift: int = 0  # a lie in the start of Content-Range
    total: str | None = None  # another total in Content-Range
    bare: bool = False  # a 206 without ETag or Last-Modified
    chunked: bool = False  # no Content-Length
    gate: threading.Event | None = None  # before the end, wait for it
    location: str | None = None  # redirect there


class Server(ThreadingHTTPServer):
    """Serves `content` at every path, with `replies` for the first requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.headers = {"ETag": '"one"'}
        self.replies: list[Reply] = []
        self.ranges: list[str | None] = []  # the Range header of every request
        self.if_ranges: list[str | None] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{NAME}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the game


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, self.close_connection = self.server, True
        wanted, if_range = self.headers["Range"], self.headers["If-Range"]
        server.ranges.append(wanted)
        server.if_ranges.append(if_range)
        reply = server.replies.pop(0) if server.replies else Reply()
        if reply.status or reply.location:
            place = {"Location": reply.location} if reply.location else {}
            return self.answer(reply.status or 302, place)
        content, start = server.content, 0
        validators = [*server.headers.values(), None]
        if wanted and reply.ranges and (if_range in validators or not reply.if_range):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {} if reply.bare else dict(server.headers)
        if start:
            first, total = start + reply.shift, reply.total or len(content)
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{total}"
        body = content[start:]
        headers |= {"Transfer-Encoding": "chunked"} if reply.chunked else {}
        self.answer(206 if start else 200, headers, None if reply.chunked else len(body))
        self.send(body[: reply.cut], reply)

    def answer(self, status, headers, length=0):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, body, reply):
        whole = reply.cut is None
        self.server.sent += len(body)
        if reply.chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if whole else b"")
        half = len(body) // 2 if reply.gate else len(body)
        self.wfile.write(body[:half])
        if reply.gate:
            reply.gate.wait(20)
            self.wfile.write(body[half:])
        if reply.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "new" / NAME


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def names(path: Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()}


def refused(error: type[Exception], message: str, url: str, path: Path, **options) -> Exception:
    """The error that a download ends with."""
    with pytest.raises(error, match=message) as caught:
        fetch(url, path, **options)
    return caught.value


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not condition():
        time.sleep(0.01)


def leave_part(server: Server, path: Path, **reply) -> None:
    """What a call leaves that is killed after 100,000 bytes: a part and its lock's file."""
    server.replies = [Reply(cut=100_000, **reply), Reply(status=503)]
    refused(ConnectionError, "503", server.url, path, attempts=1)
    assert beside(path, ".part").read_bytes() == server.content[:100_000]
    beside(path, ".part.lock").touch()
    server.ranges.clear()
    server.if_ranges.clear()


REST = "bytes=100000-"  # what is missing then


def assert_complete(path: Path, content: bytes = CONTENT) -> None:
    assert path.read_bytes() == content
    assert beside(path, ".sha256").read_text() == f"{digest(content)}  {NAME}\n"
    assert names(path) == {NAME, f"{NAME}.sha256"}  # neither .part nor lock nor sidecar


def complete(server: Server, path: Path, content: bytes = CONTENT, **options) -> None:
    assert fetch(server.url, path, **options) == digest(content)
    assert_complete(path, content)


def no_html(file: Path) -> None:
    if file.read_bytes().startswith(b"<!DOCTYPE"):
        raise ValueError("it is an HTML page")


@pytest.mark.parametrize(
    ("content", "sha256"),
    [(CONTENT, None), (CONTENT, DIGEST), (CONTENT, DIGEST.upper()), (b"", None)],
)
def test_plain_download(server, path, content, sha256):
    """The check sees the suffix, by which readers tell formats, before the file is there."""

    def check(file: Path) -> None:
        seen.append((file.suffix, file.read_bytes(), path.exists()))

    server.content, seen = content, []
    complete(server, path, content, sha256=sha256, check=check)
    assert seen == [(".pt", content, False)] and not path.is_symlink()
    assert recorded_sha256(path) == digest(content)
    assert server.ranges == [None]
    if shutil.which("sha256sum"):  # which reads the record
        subprocess.run(["sha256sum", "-c", f"{NAME}.sha256"], cwd=path.parent, check=True)


def test_progress_counts_bytes_from_where_it_resumes(server, path, monkeypatch):
    bars, tqdm = [], module.tqdm
    leave_part(server, path)
    monkeypatch.setattr(module, "tqdm", lambda **how: bars.append(tqdm(**how)) or bars[-1])
    fetch(server.url, path)
    fetch(server.url, path)  # nothing is transferred, so no bar
    (bar,) = bars
    assert (bar.desc.rstrip(": "), bar.unit, bar.unit_divisor) == (NAME, "B", 1024)
    assert (bar.initial, bar.n, bar.total) == (100_000, 300_000, 300_000)


def test_a_connection_cut_again_and_again_succeeds_while_it_progresses(server, path):
    server.replies = [Reply(cut=20_000) for _ in range(10)]
    complete(server, path, attempts=1)
    assert server.ranges == [None, *(f"bytes={n}-" for n in range(20_000, 200_001, 20_000))]
    assert server.if_ranges[1:] == ['"one"'] * 10
    assert server.sent == len(CONTENT)


def test_broken_chunks_reset_connections_and_silence_are_retried(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    gate = threading.Event()
    server.replies = [Reply(chunked=True, cut=100_000), Reply(cut=100_000, reset=True)]
    server.replies += [Reply(gate=gate), Reply(status=500)]
    try:
        complete(server, path, sha256=DIGEST)
    finally:
        gate.set()
    assert len(server.ranges) == 5 and server.ranges[:2] == [None, REST]
    assert int(server.ranges[3][6:-1]) >= 200_000  # what came before the silence is kept


def test_too_few_bytes_for_the_content_length_are_no_file(server, path):
    server.replies = [Reply(cut=299_999), *[Reply(status=500)] * 3]
    refused(ConnectionError, "run the same command to continue", server.url, path, attempts=3)
    assert not path.exists() and beside(path, ".part").stat().st_size == 299_999
    complete(server, path)
    assert server.ranges[-1] == "bytes=299999-"


def test_server_errors_are_retried_and_finally_reported_in_a_line(server, path):
    server.replies = [Reply(status=500), Reply(status=503)]
    complete(server, path, attempts=3)
    server.replies, server.ranges, other = [Reply(status=502)] * 9, [], path.with_name("other.pt")
    message = r"502; run the same command to continue$"
    assert "\n" not in str(refused(ConnectionError, message, server.url, other, attempts=3))
    assert len(server.ranges) == 3
    message = "Connection refused; run the same command"
    refused(ConnectionError, message, NOWHERE, other, attempts=2)
    assert_complete(path)  # and nothing of the other


def test_waiting_doubles_only_while_nothing_comes(server, path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(module, "BACKOFF", 1.0)
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append)
    )
    server.replies = [*[Reply(status=500)] * 3, Reply(cut=10), Reply(status=500)]
    fetch(server.url, path)
    assert waits == [2, 4, 8, 1, 2]


def test_a_server_that_starts_over_and_is_cut_is_given_up(server, path):
    server.replies = [Reply(cut=n, ranges=False) for n in (50_000, 20_000) * 25]
    refused(ConnectionError, "cut at 20000 of 300000", server.url, path, attempts=3)
    assert len(server.ranges) == 4  # the first brought something, three more did not


REFUSALS = dict.fromkeys((404, 410), FileNotFoundError) | dict.fromkeys((401, 403), PermissionError)
REFUSALS |= dict.fromkeys((400, 416, 204), OSError)


@pytest.mark.parametrize("status", REFUSALS)
def test_refusals_are_not_retried(server, path, status):
    server.replies = [Reply(status=status)]
    error = refused(REFUSALS[status], f"{status}.*; pass a local copy", server.url, path)
    assert server.url in str(error) and not isinstance(error, ConnectionError)
    assert error.errno is None  # for an errno the commands add remedies for local files
    assert len(server.ranges) == 1
    assert names(path) == set()


def test_a_refusal_keeps_what_is_there(server, path):
    leave_part(server, path)
    server.replies = [Reply(status=403)]
    refused(PermissionError, "403", server.url, path)
    complete(server, path)
    assert server.ranges == [REST] * 2


DATE = "Thu, 01 Jul 2021 00:00:00 GMT"
CONTINUED = {
    "by size, without a validator": ({}, [], None),
    "by date, as a weak ETag never matches": ({"ETag": 'W/"1"', "Last-Modified": DATE}, [], DATE),
    "without repeating the validator": ({"ETag": '"1"'}, [Reply(bare=True)], '"1"'),
    "after a redirect": ({"ETag": '"1"'}, [Reply(location="/elsewhere")], '"1"'),
}


@pytest.mark.parametrize(("headers", "replies", "if_range"), CONTINUED.values(), ids=CONTINUED)
def test_a_part_is_continued(server, path, headers, replies, if_range):
    server.headers = headers
    leave_part(server, path)
    server.replies = replies.copy()
    complete(server, path)
    assert set(server.ranges) == {REST}
    assert set(server.if_ranges) == {if_range}


# What was left, what the server has then (content, headers), how it answers, and what is asked.
ONE, TWO = {"ETag": '"one"'}, {"ETag": '"two"'}
STARTS_OVER = {
    "no ranges": (ONE, False, CONTENT, ONE, Reply(ranges=False), [REST]),
    "changed": (ONE, False, OTHER, TWO, Reply(cut=150_000), [REST, "bytes=150000-"]),
    "the rest of another file": (ONE, False, OTHER, TWO, Reply(if_range=False), [REST, None]),
    "another total": (ONE, False, OTHER + b"more", ONE, Reply(), [REST, None]),
    "another range": (ONE, False, CONTENT, ONE, Reply(shift=1), [REST, None]),
    "no total": (ONE, False, CONTENT, ONE, Reply(total="*"), [REST, None]),
    "shorter: 416": (ONE, False, CONTENT[:50_000], ONE, Reply(), [REST, None]),
    "no validator, another size": ({}, False, OTHER + b"more", {}, Reply(), [REST, None]),
    "no validator, unknown size": ({}, True, OTHER, {}, Reply(), [REST, None]),
    "no validator, never a size": ({}, True, CONTENT, {}, Reply(total="*"), [REST, None]),
    "never a size": (ONE, True, CONTENT, ONE, Reply(total="*"), [REST, None]),
}


@pytest.mark.parametrize("case", STARTS_OVER.values(), ids=STARTS_OVER)
def test_a_part_that_does_not_fit_starts_over_and_says_so(server, path, capsys, case):
    server.headers, chunked, content, headers, reply, ranges = case
    etags = (server.headers.get("ETag"), headers.get("ETag"))
    leave_part(server, path, chunked=chunked)
    capsys.readouterr()
    server.content, server.headers, server.replies = content, headers, [reply]
    complete(server, path, content, attempts=1)
    assert server.ranges == ranges
    asked = zip(etags, ranges, strict=False)
    assert server.if_ranges == [etag if wanted else None for etag, wanted in asked]
    assert "starting over" in capsys.readouterr().out


def test_without_a_validator_the_hash_finds_a_joint_of_two_files(server, path):
    server.headers = {}
    leave_part(server, path)
    server.content = OTHER
    joint = digest(CONTENT[:100_000] + OTHER[100_000:])
    refused(ValueError, joint, server.url, path, sha256=digest(OTHER))
    complete(server, path, OTHER, sha256=digest(OTHER))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sha256": DIGEST}, f"{DIGEST}, got {digest(HTML)}"), ({"check": no_html}, "an HTML page")],
)
def test_an_html_page_is_not_the_file(server, path, options, message):
    server.content = HTML
    refused(ValueError, f"{message}.*pass a local copy", server.url, path, **options)
    assert names(path) == set()
    server.content = CONTENT
    complete(server, path, **options)


@pytest.mark.parametrize("replies", [[], [Reply(status=416)]], ids=["says size", "does not"])
def test_a_complete_part_is_not_downloaded_again(server, path, replies):
    def interrupt(file: Path) -> None:
        assert file.read_bytes() == CONTENT  # all is there
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, path, check=interrupt)
    assert names(path) == {f"{NAME}.part", f"{NAME}.part.json"}
    server.replies = replies.copy()
    complete(server, path)
    assert server.ranges == [None, "bytes=300000-"]
    assert server.sent == len(CONTENT)


def test_links_that_killed_processes_left_are_removed(server, path):
    """Who was killed while it verified leaves the name under which it did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".part-999999-{NAME}").symlink_to(f"{NAME}.part")
    mine = path.with_name(f".part-1-{NAME}.txt")
    mine.touch()
    assert fetch(server.url, path) == DIGEST
    assert names(path) == {NAME, f"{NAME}.sha256", mine.name}


@pytest.mark.parametrize("sidecar", ["another url", "absent", "damaged", "not an object"])
def test_a_part_of_unknown_origin_is_not_adopted(server, path, capsys, sidecar):
    leave_part(server, path)
    file = beside(path, ".part.json")
    origin = json.loads(file.read_text()) | {"url": server.url + "?v=2"}
    texts = {"another url": json.dumps(origin), "damaged": '{"url', "not an object": "[]"}
    file.unlink() if sidecar == "absent" else file.write_text(texts[sidecar])
    complete(server, path)
    assert server.ranges == [None]
    assert "starting over" in capsys.readouterr().out


def run_fetch(server: Server, path: Path) -> subprocess.Popen[str]:
    code = f"from files.fetch import *; print(fetch({server.url!r}, Path({str(path)!r})))"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores SIGINT, and so would all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_keeps_what_is_there_and_only_the_rest_is_requested(server, path):
    gate = threading.Event()
    server.replies = [Reply(gate=gate)]
    process, part = run_fetch(server, path), beside(path, ".part")
    wait_until(lambda: part.exists() and part.stat().st_size > 100_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    gate.set()
    assert "KeyboardInterrupt" in err
    size = part.stat().st_size
    assert 100_000 < size <= 150_000 and not path.exists()
    complete(server, path)
    assert server.ranges == [None, f"bytes={size}-"]


def test_two_processes_download_once(server, path):
    gate = threading.Event()
    server.replies = [Reply(gate=gate)]
    processes = [run_fetch(server, path) for _ in range(2)]
    # Whichever is second says that it waits; the first is held at the gate until then.
    readers = [ThreadPoolExecutor(1).submit(p.stdout.readline) for p in processes]
    wait_until(lambda: any(reader.done() for reader in readers))
    gate.set()
    said = {reader.result(20) for reader in readers}
    ends = [p.communicate(timeout=20) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], ends
    waits = f"another process downloads {path}: waiting for it"
    assert said == {f"{waits}\n", f"{DIGEST}\n"}
    assert_complete(path)
    assert server.ranges == [None]


def test_many_at_once_download_once(server, path):
    """Waiters get locks of removed lock files; every one must find the file complete all the same."""
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: fetch(server.url, path), range(8)))
    assert results == [DIGEST] * 8
    assert_complete(path)
    assert server.ranges == [None]


def test_the_lock_of_a_removed_file_excludes_nobody(path):
    """Two at a time never hold the lock, although it is removed at every release."""
    path.parent.mkdir()
    inside, most = [], []

    def hold(_):
        with module._lock(path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(60)))
    assert most == [1] * 60
    assert names(path) == set()


@pytest.mark.parametrize(("part", "missing"), [(0, "293kB"), (100_000, "195kB")])
def test_too_small_a_disk_is_found_before_writing(server, path, monkeypatch, part, missing):
    if part:
        leave_part(server, path)
    free = SimpleNamespace(free=len(CONTENT) - part - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    error = refused(OSError, f"needs {missing} more .* {missing} are free", server.url, path)
    assert error.errno == errno.ENOSPC
    assert beside(path, ".part").exists() == bool(part)
    assert len(server.ranges) == 1  # a full disk is not retried
    free.free += 1
    complete(server, path)
    assert server.ranges == [REST if part else None] * 2


def test_a_disk_that_fills_up_keeps_what_is_there(server, path):
    """A file-size limit stands for the full disk: the write fails with OSError."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (123_456, limits[1]))
    try:
        error = refused(OSError, "large", server.url, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert error.errno == errno.EFBIG
    assert beside(path, ".part").read_bytes() == CONTENT[:123_456]
    assert len(server.ranges) == 1  # a full disk is not retried
    complete(server, path)
    assert server.ranges[1:] == ["bytes=123456-"]


def existing(path: Path, content: bytes = CONTENT) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


@pytest.mark.parametrize("sha256", [None, DIGEST])
def test_a_hash_recorded_once_is_checked_from_then_on(path, sha256):
    existing(path)
    assert fetch(NOWHERE, path, sha256=sha256) == DIGEST  # without the network
    assert_complete(path)
    fetch(NOWHERE, path)
    path.write_bytes(OTHER)
    refused(ValueError, f"expected SHA-256 {DIGEST}", NOWHERE, path)


@pytest.mark.parametrize(
    ("content", "sha256", "text"),
    [(OTHER, DIGEST, f"{DIGEST}, got {digest(OTHER)}"), (HTML, None, "an HTML")],
)
def test_an_existing_file_that_is_another_is_refused_and_kept(path, content, sha256, text):
    existing(path, content)
    message = f"remove it and download again.*{text}"
    refused(ValueError, message, NOWHERE, path, sha256=sha256, check=no_html)
    assert path.read_bytes() == content  # a user's file is not ours to remove
    assert recorded_sha256(path) is None


def test_an_existing_file_in_a_read_only_folder_will_do(path, monkeypatch):
    refuse = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
    existing(path)
    monkeypatch.setattr(module, "write_text", refuse)
    monkeypatch.setattr(module, "_lock", refuse)
    assert fetch(NOWHERE, path) == DIGEST


def test_a_file_downloaded_again_must_be_the_recorded_one(server, path):
    fetch(server.url, path)
    path.unlink()
    server.content = OTHER
    message = rf"{DIGEST}, got .* remove .*\.sha256 before"
    refused(ValueError, message, server.url, path)
    assert names(path) == {f"{NAME}.sha256"}
    beside(path, ".sha256").unlink()
    complete(server, path, OTHER)


@pytest.mark.parametrize(
    "record", [b"", b"abc  x\n", b"0" * 64 + b"\n", b"0" * 65 + b"  x\n", b"\0\xff"]
)
def test_a_malformed_record_is_refused(path, record):
    existing(path)
    beside(path, ".sha256").write_bytes(record)
    with pytest.raises(ValueError, match=r"\.sha256 is not in the format of sha256sum"):
        recorded_sha256(path)
    refused(ValueError, "restore or remove it", NOWHERE, path)


@pytest.mark.parametrize("text", ["{}  {}\n", "{} *{}\n", "{}  {}"])
def test_records_of_sha256sum_are_read(path, text):
    path.parent.mkdir()
    beside(path, ".sha256").write_text(text.format(DIGEST.upper(), NAME))
    assert recorded_sha256(path) == DIGEST


def test_mistyped_words_are_found_before_the_download(server, path):
    for url in ("file:///etc/passwd", "ftp://host/x", "weights.pt", "http:///x"):
        refused(ValueError, "only http", url, path)
    for url in ("a file", "[::1", ":99999/x", ":abc/x"):
        url = f"http://127.0.0.1/{url}" if url[0] == "a" else f"http://{url}"
        refused(ValueError, "no address .*: correct it", url, path)
    refused(ValueError, "64 hexadecimal digits", server.url, path, sha256="abc")
    assert server.ranges == []


# --- hostile servers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["file://{secret}", "ftp://127.0.0.1:1/x", "data:,hello", "jar:http://x", "unix:/x"]
)
def test_redirects_to_other_schemes_are_not_followed(server, tmp_path, target):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    server.replies = [Reply(location=target.format(secret=secret))]
    with pytest.raises(OSError, match=r"redirects to .* which is not followed: pass a local copy"):
        fetch(server.url, tmp_path / "a" / NAME, sha256=DIGEST)
    assert len(server.ranges) == 1 and not (tmp_path / "a" / NAME).exists()


def test_no_way_back_from_https_to_http():
    request = module.Request("https://example.org/a")
    with pytest.raises(HTTPError):
        module._SameScheme().redirect_request(request, None, 302, "", {}, "http://example.org/b")
    again = module._SameScheme().redirect_request(request, None, 302, "", {}, "https://x.org/b")
    assert again.full_url == "https://x.org/b"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, status):
    server.replies = [Reply(status=status)] * 3
    assert fetch(server.url, tmp_path / NAME, sha256=DIGEST) == DIGEST
    assert len(server.ranges) == 4


def test_later_is_when_the_server_says(monkeypatch):
    def later(after):
        headers = {"Retry-After": after} if after else {}
        return module._refusal("u", SimpleNamespace(code=429, headers=headers)).wait

    assert [later(a) for a in ("7", " 8 ", "Wed, 21 Oct 2015 07:28:00 GMT", None)] == [7, 8, 0, 0]
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    errors = [module._Later("busy", 7.0), module._Later("busy", 1e9), None]

    def transfer(url, path):
        if error := errors.pop(0):
            raise error

    monkeypatch.setattr(module, "_transfer", transfer)
    module._download("http://x", Path("/nowhere/at/all"), 5)
    assert waited == [7.0, module.PATIENCE]


class Dripping:
    """Sends `first` and then one byte at a time without end."""

    def __init__(self, first: bytes):
        self.socket, self.first, self.asked = socket.create_server(("127.0.0.1", 0)), first, 0
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/{NAME}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self.drip, args=(connection,), daemon=True).start()

    def drip(self, connection):
        try:
            connection.sendall(self.first)
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", b"HTTP/1.1"]
)
def test_a_drip_without_end_is_given_up(tmp_path, monkeypatch, first):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    dripping = Dripping(first)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"bytes in|no answer within"):
        fetch(dripping.url, tmp_path / NAME, sha256=DIGEST, attempts=3)
    assert time.monotonic() - start < 10 and dripping.asked == 3
    dripping.socket.close()


def test_links_beside_the_file_are_not_followed(server, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / f"{NAME}.part.lock").symlink_to(precious)
    with pytest.raises(ValueError, match="is a link, not a lock of ours: remove it"):
        fetch(server.url, tmp_path / NAME, sha256=DIGEST)
    assert precious.read_bytes() == b"mine"


def test_a_password_is_not_printed(tmp_path):
    with pytest.raises(ValueError, match=r"127\.0\.0\.1 with a user's name or password") as caught:
        fetch("http://user:secretpw@127.0.0.1:1/x", tmp_path / NAME)
    assert "secretpw" not in str(caught.value)


@pytest.mark.parametrize("content", [HTML, b"\n <html>error</html>", b""])
def test_a_page_in_place_of_the_file_is_noticed_without_hash_and_check(server, tmp_path, content):
    server.content = content
    with pytest.raises(ValueError, match=r"is not the file it should be: it is (a web page|empty)"):
        fetch(server.url, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "facts",
    [
        {"validator": ["x"], "size": 300_000},
        {"validator": "x\r\nEvil: 1", "size": 300_000},
        {"validator": None, "size": "many"},
        {"url": 1, "validator": None, "size": None},
        [1],
        "text",
    ],
    ids=str,
)
def test_what_is_noted_of_a_part_may_be_spoilt(server, tmp_path, facts):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:100])
    facts = {"url": server.url, **facts} if isinstance(facts, dict) else facts
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(facts))
    assert fetch(server.url, tmp_path / NAME, sha256=DIGEST) == DIGEST
    assert server.if_ranges == [None]
