"""Downloading files of several GB: resumed after any interruption, verified, whole or not there."""

import errno
import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from tqdm import tqdm

from files.whole import check_space, file_sha256, recorded_sha256, write_text

BACKOFF = 1.0  # seconds before the next try, doubled at each that brings nothing
TIMEOUT = 60.0  # seconds of silence after which a connection counts as cut
SLOWEST = (
    1024  # bytes a second: a connection that brings less in TIMEOUT seconds counts as cut, too
)
PATIENCE = 300.0  # seconds that we wait at most when a server asks us to come back later
CHUNK = 1 << 18
AGAIN = "run the same command to"

Check = Callable[[Path], object] | None


def fetch(
    url: str, path: Path, *, sha256: str | None = None, check: Check = None, attempts: int = 5
) -> str:
    """Download url to path unless it is there; returns its SHA-256 (hex).

    What an interrupted call leaves in `<path>.part` the next one continues; `attempts` connections
    in a row may bring nothing.  The hash is written to `<path>.sha256`, and what is there is
    expected if `sha256` is not given.  `check` gets a file with the content, of path's suffix but
    another name, and raises ValueError if that is not what it should be.

    Raises ValueError for a url that is not http(s) and for content that is not the expected, and
    else an OSError that says what to do: ConnectionError after `attempts`, FileNotFoundError (404,
    410), PermissionError (401, 403), ENOSPC.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:  # of brackets and ports
        raise ValueError(f"{url!r} is no address ({error}): correct it") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"only http:// and https:// addresses can be fetched, got {url!r}")
    if parts.username or parts.password:
        raise ValueError(
            f"an address of {parts.hostname} with a user's name or password is not fetched, since it "
            "would be printed and stored: pass a local copy"
        )
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, got {sha256!r}")
    sha256 = sha256 and sha256.lower()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not path.exists():  # it does by now if another process was faster
                return _fetch_absent(url, path, sha256, check, attempts)
    return _verify_existing(path, sha256, check)


def _fetch_absent(url: str, path: Path, sha256: str | None, check: Check, attempts: int) -> str:
    recorded = None if sha256 else recorded_sha256(path)
    _download(url, path, attempts)
    try:
        digest = _verify_part(path, sha256 or recorded, check)
    except ValueError as error:
        _discard_part(path)
        renewed = f"; if it was renewed there, remove {path}.sha256 before" if recorded else ""
        raise ValueError(
            f"{url} is not the file it should be: {error}; {AGAIN} download it again, or pass "
            f"a local copy{renewed}"
        ) from None
    # In this order whoever sees the file finds its hash, too.
    _record(path, digest)
    os.replace(_beside(path, ".part"), path)
    _discard_part(path)
    return digest


def _verify_part(path: Path, expected: str | None, check: Check) -> str:
    """Verify `<path>.part` under a name that ends as path does, on which some readers insist."""
    pattern = rf"\.part-\d+-{re.escape(path.name)}"
    for left in path.parent.iterdir():  # by killed processes: only one at a time verifies
        if left.is_symlink() and re.fullmatch(pattern, left.name):
            left.unlink(missing_ok=True)
    link = path.with_name(f".part-{os.getpid()}-{path.name}")
    link.symlink_to(path.name + ".part")
    try:
        return _verify(link, expected, check)
    finally:
        link.unlink(missing_ok=True)


def _record(path: Path, digest: str) -> None:
    write_text(_beside(path, ".sha256"), f"{digest}  {path.name}\n")


def _verify(file: Path, expected: str | None, check: Check) -> str:
    """The file's SHA-256; ValueError if it is not the expected, a web page, or `check` objects."""
    if check is None and expected is None:
        _check_content(file)
    if check:
        check(file)
    digest = file_sha256(file)
    if expected not in (None, digest):
        raise ValueError(f"expected SHA-256 {expected}, got {digest}")
    return digest


def _check_content(file: Path) -> None:
    """All that can be said against a file of which nothing is known."""
    with file.open("rb") as content:
        head = content.read(512).lstrip().lower()
    if not head:
        raise ValueError("it is empty")
    if head.startswith((b"<!doctype html", b"<html")):
        raise ValueError("it is a web page")


def _verify_existing(path: Path, sha256: str | None, check: Check) -> str:
    """What nothing is known of is checked and recorded; later its hash has to be that."""
    expected = sha256 or recorded_sha256(path)
    try:
        digest = _verify(path, expected, None if expected else check)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or another file: remove it and download again ({error})"
        ) from None
    if not _beside(path, ".sha256").exists():
        with suppress(OSError):  # a good file in a read-only folder is no reason to stop
            _record(path, digest)
    return digest


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Be the only process that downloads path, after waiting for others that do.

    The lock file is removed by its holder.  Who waited for it then holds the lock of a file that
    has lost its name, which would exclude nobody, and so goes for the one that has the name now.
    """
    lock = _beside(path, ".part.lock")
    while True:
        with _opened(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tqdm.write(f"another process downloads {path}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _opened(lock: Path) -> IO[bytes]:
    """The lock file, of which nothing is cut off; never what a link of its name points to."""
    try:
        return open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "wb")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{lock} is a link, not a lock of ours: remove it") from None


class Origin(NamedTuple):
    """Which bytes a `.part` holds: those of url as it was when validator and size were sent."""

    url: str
    validator: str | None
    size: int | None


def _read_origin(path: Path) -> Origin | None:
    """The origin of `<path>.part`, None if there is none or nobody knows it."""
    try:
        origin = Origin(**json.loads(_beside(path, ".part.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    sane = isinstance(origin.url, str) and isinstance(origin.size, int | None)
    # What is sent to the server, as it came: on one line.
    sane = sane and re.fullmatch(r"[^\x00-\x1f]*", str(origin.validator or "")) is not None
    return (
        origin if sane and isinstance(origin.validator, str | None) and _part_size(path) else None
    )


def _download(url: str, path: Path, attempts: int) -> None:
    """Complete `<path>.part`; ConnectionError if `attempts` connections in a row bring nothing."""
    origin = _read_origin(path)
    if origin is None or origin.url != url:
        if _part_size(path):
            tqdm.write(f"{path}.part is not of {url}: starting over")
        _discard_part(path)
    failures, longest = 0, _part_size(path)
    while True:
        try:
            return _transfer(url, path)
        except ConnectionError as error:
            # Measured by the longest so far: a server that cannot continue and is cut at the same
            # place every time brings bytes, too, but would keep us for ever.
            gained = _part_size(path) > longest and not isinstance(error, _Slow)
            failures = 0 if gained else failures + 1
            longest = max(longest, _part_size(path))
            if failures >= attempts:
                raise ConnectionError(f"{url}: {error}; {AGAIN} continue") from None
            tqdm.write(f"{path.name}: {error}; trying again")
            wait = min(getattr(error, "wait", 0.0), PATIENCE)
        time.sleep(max(wait, BACKOFF * 2**failures))


def _transfer(url: str, path: Path) -> None:
    """One connection; ConnectionError if `<path>.part` is not complete after it."""
    origin, size = _read_origin(path), _part_size(path)
    with _request(url, origin, size) as response:
        if isinstance(response, HTTPError):  # 416: there is nothing at or after size
            total = _content_range(response.headers)[1]
            if origin and size == (origin.size if total is None else total):
                return
        elif response.status == 206 and origin and _continues(response.headers, origin, size):
            return _append(response, path, size, _content_range(response.headers)[1])
        elif response.status == 200:
            if size:
                tqdm.write(f"{path.name} has changed or cannot be continued: starting over")
            _discard_part(path)
            start = Origin(url, _validator(response.headers), response.length)
            write_text(_beside(path, ".part.json"), json.dumps(start._asdict()))
            return _append(response, path, 0, response.length)
        status = response.status
    if not size:
        raise OSError(f"{url}: the server says {status} to a plain request; pass a local copy")
    tqdm.write(f"{path}.part does not fit the file on the server: starting over")
    _discard_part(path)
    _transfer(url, path)


def _request(url: str, origin: Origin | None, size: int) -> HTTPResponse | HTTPError:
    """The response to a request for what is missing; of the HTTP errors only 416 is returned."""
    headers = {}
    if origin:
        headers["Range"] = f"bytes={size}-"
        # Without a validator the total size is all that is left to compare (`_continues`).  That
        # is weak but enough: the hash or `check` of the whole decides, which no joint of two files
        # passes, whereas without resuming a bad line would never bring the whole.
        if origin.validator:
            headers["If-Range"] = origin.validator
    try:
        return _answered(lambda: _opener().open(Request(url, headers=headers), timeout=TIMEOUT))
    except HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        raise _refusal(url, error) from None
    except InvalidURL as error:
        raise ValueError(f"{url!r} is no address ({error}): correct it") from None
    except (OSError, HTTPException) as error:
        raise _cut(error) from None


class _SameScheme(HTTPRedirectHandler):
    """Follows a redirect to http and https alone, and to no http from https."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        scheme = urlsplit(newurl).scheme.lower()
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """What opens http and https, and nothing else."""
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler, HTTPHandler, HTTPSHandler),
        *(HTTPDefaultErrorHandler, HTTPErrorProcessor, _SameScheme),
    ):
        opener.add_handler(handler())
    return opener


def _answered(ask: Callable[[], HTTPResponse]) -> HTTPResponse:
    """The answer to a request, or ConnectionError: the headers, too, may drip without end."""
    outcome: list[HTTPResponse | Exception] = []

    def run() -> None:
        try:
            outcome.append(ask())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)  # which nobody waits for if it hangs
    thread.start()
    thread.join(2 * TIMEOUT)
    if not outcome:
        raise _Slow(f"no answer within {2 * TIMEOUT:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


class _Slow(ConnectionError):
    """The server is there, but what it sends takes for ever."""


class _Later(ConnectionError):
    """The server asks to come back in `wait` seconds."""

    def __init__(self, text: str, wait: float):
        super().__init__(text)
        self.wait = wait


def _refusal(url: str, error: HTTPError) -> OSError:
    """What a status other than 2xx means; ConnectionError if it may be another one later."""
    status = error.code
    if status >= 500 or status in (408, 425, 429):
        after = error.headers.get("Retry-After", "").strip()
        return _Later(f"the server says {status}", float(after) if after.isdecimal() else 0.0)
    if 300 <= status < 400:
        target = error.headers.get("Location", "")[:100]
        return OSError(f"{url} redirects to {target!r}, which is not followed: pass a local copy")
    text = f"{url}: the server says {status}"
    if status in (404, 410):
        return FileNotFoundError(f"{text}: the file moved; pass a local copy")
    if status in (401, 403):
        return PermissionError(f"{text}: access is refused; pass a local copy")
    return OSError(f"{text}; pass a local copy")


def _cut(error: Exception) -> ConnectionError:
    reason = getattr(error, "reason", error)  # URLError wraps the error that says something
    return ConnectionError(str(reason) or type(reason).__name__)


def _continues(headers: Message, origin: Origin, size: int) -> bool:
    """Whether a 206 is the rest of the same file."""
    start, total = _content_range(headers)
    if start != size or total is None:
        return False
    if origin.validator is None:
        return total == origin.size
    # A 206 need not repeat Last-Modified: then the server has kept to If-Range.
    same = _validator(headers) in (None, origin.validator)
    return same and origin.size in (None, total)


def _validator(headers: Message) -> str | None:
    """What If-Range takes; a weak ETag never matches there."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """(start, total) of Content-Range, None for what it does not say."""
    text = headers.get("Content-Range", "")
    if not (match := re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", text.strip())):
        return None, None
    start, total = (int(text) if text and text != "*" else None for text in match.groups())
    return start, total


def _append(response: HTTPResponse, path: Path, size: int, total: int | None) -> None:
    """Add what response brings to the `size` bytes that are there.

    Without a total the end of the connection is the end of the file, cut or not: the check of the
    whole has to tell.
    """
    if total is not None:
        check_space(path, total - size)
    bar = tqdm(
        desc=path.name, total=total, initial=size, unit="B", unit_scale=True, unit_divisor=1024
    )
    since, before = time.monotonic(), size
    with bar, open(_beside(path, ".part"), "ab", opener=_no_link) as file:
        # Ends at total: the end of the connection may be long in coming.
        while chunk := _read(response, CHUNK if total is None else min(CHUNK, total - size)):
            file.write(chunk)
            size += len(chunk)
            bar.update(len(chunk))
            if (passed := time.monotonic() - since) >= TIMEOUT:
                if size - before < SLOWEST * passed:
                    raise _Slow(f"only {size - before} bytes in {passed:.0f} s")
                since, before = time.monotonic(), size
    if total is not None and size < total:
        raise ConnectionError(f"the connection was cut at {size} of {total} bytes")


def _read(response: HTTPResponse, limit: int) -> bytes:
    """Errors of the network as ConnectionError, so that those of the disk are none."""
    try:
        return response.read1(limit)  # read() would lose what it has when the connection is cut
    except (OSError, HTTPException) as error:
        raise _cut(error) from None


def _no_link(path: str, flags: int) -> int:
    """Opens a file of that very name: a link there would lead to somebody's file."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _part_size(path: Path) -> int:
    part = _beside(path, ".part")
    return part.stat().st_size if part.exists() else 0


def _discard_part(path: Path) -> None:
    for suffix in (".part", ".part.json"):
        _beside(path, suffix).unlink(missing_ok=True)
