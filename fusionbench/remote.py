"""Places behind URLs: what is one, and the few operations on whole objects that runs need of an object store.

A place is a path here or a URL of any filesystem that fsspec knows; ``file://`` is a path. The library is imported by
the first operation, and what its filesystems raise becomes a StoreError: one line with the URL and a remedy.
"""

from __future__ import annotations

import errno
import importlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FusionbenchError, StoreError, printable

CHUNK = 8 << 20  # bytes that are fetched at once
MOST_NAMES = 100_000  # in one folder
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # what brings a filesystem, by protocol

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)\Z", re.DOTALL)
_SECRET = re.compile(r"[^@]*:.*@", re.DOTALL)  # key:secret@; a secret of S3 may hold slashes
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")

_SHOWN: dict[Path, Url] = {}  # folders and files here, and what each of them stands for


@dataclass(frozen=True)
class Url:
    """A place in an object store; its text has no credentials and no ``..``."""

    text: str

    def __str__(self) -> str:
        """As it may be shown: what follows a question mark may be a signature."""
        path, question, _ = self.text.partition("?")
        return path + "?…" * bool(question)

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def parent(self) -> Url:
        return Url(self.text.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.text.partition("?")[0].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix


Place = Path | Url


@dataclass(frozen=True)
class Entry:
    """What is in a folder; of a folder the size is 0."""

    name: str
    size: int
    is_folder: bool


# --- what a URL is -------------------------------------------------------------------------------------------------


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def place(text: str | Path) -> Place:
    """The place that a user names. Raises FusionbenchError for a URL that cannot be one, or that holds a password."""
    found = _URL.match(str(text))
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if _SECRET.match(rest):
        bare = printable(f"{scheme}://{rest.rpartition('@')[2]}")
        raise FusionbenchError(
            f"the URL of '{bare}' holds a key and a secret, which logs and results would show; leave them out and set "
            f"{_credentials(scheme)}"
        )
    if scheme in ("file", "local"):
        return Path(rest)
    rest = rest.rstrip("/")
    if not rest or "::" in rest or {".", ".."} & set(rest.split("/")):
        raise FusionbenchError(f"'{printable(str(text))}' names no folder; give PROTOCOL://BUCKET/FOLDER")
    return Url(f"{scheme}://{rest}")


def refuse_url(path: Path) -> None:
    """Raise StoreError for what was a URL before it became a path to write to, which makes one slash of two."""
    first, *rest = path.parts or ("",)
    if rest and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", first):
        url = printable(f"{first}//{'/'.join(rest)}")
        raise StoreError(f"cannot write '{url}': this is a URL, and files are written here; name a file")


def is_safe(name: str) -> bool:
    """Whether a name from an object store may become a file's name here."""
    return _SAFE.match(name) is not None


# --- what stands for a URL here --------------------------------------------------------------------------------------


def stands_for(path: Path, url: Url) -> None:
    """From now on users read the URL where they would read ``path``, or a path in it."""
    _SHOWN[path] = url


def forget(path: Path) -> None:
    """Users read ``path`` again, and not the URL that it stands for."""
    for known in [known for known in _SHOWN if path.is_relative_to(known)]:
        del _SHOWN[known]


def url_of(path: Path) -> Url | None:
    """The URL that a path here stands for, by itself or in its folder."""
    for known, url in _SHOWN.items():
        if path == known:
            return url
        if path.is_relative_to(known):
            return url / path.relative_to(known).as_posix()
    return None


def told(text: str) -> str:
    """A text for the user, with URLs for the paths that stand for them."""
    for path in sorted(_SHOWN, key=lambda path: len(str(path)), reverse=True):
        text = text.replace(str(path), str(_SHOWN[path]))
    return text


# --- objects -------------------------------------------------------------------------------------------------------


def entries(url: Url) -> list[Entry] | None:
    """What is directly in a folder, by name; None where there is no such folder. A bucket that is missing is an
    error, as far as its store tells it from a folder that is. Raises StoreError."""
    with _reached("list", url):
        fs, path = _filesystem(url)
        fs.invalidate_cache()
        try:
            found: Sequence[dict[str, Any]] = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            if error.__cause__ is not None and "bucket" in str(error).lower():  # s3fs: the store has said so
                raise
            return None
    if len(found) > MOST_NAMES:
        raise StoreError(f"'{printable(str(url))}' holds {len(found):,} objects, more than the limit of {MOST_NAMES:,}")
    inside = path.rstrip("/") + "/"
    named = [(str(each["name"]).rstrip("/"), each) for each in found]
    return sorted(
        (
            Entry(name[len(inside) :], int(each.get("size") or 0), each.get("type") == "directory")
            for name, each in named
            if name.startswith(inside)
        ),
        key=lambda entry: entry.name,
    )


def read(url: Url, limit: int) -> bytes:
    """A whole object; raises StoreError, also where it has more than ``limit`` bytes."""
    data = bytearray()
    _fetch(url, limit, data.extend)
    return bytes(data)


def read_all(urls: Sequence[Url], limit: int) -> list[bytes | None]:
    """Many small objects at once, None for each that is missing or too large; raises StoreError for other failures."""
    if not urls:
        return []
    with _reached("read", urls[0].parent):
        fs, _ = _filesystem(urls[0])
        paths = [_filesystem(url)[1] for url in urls]
        found = fs.cat_ranges(paths, 0, limit + 1, on_error="return")
        for each in found:
            if isinstance(each, Exception) and not _is_missing(each):
                raise each
    return [bytes(each) if not isinstance(each, Exception) and len(each) <= limit else None for each in found]


def download(url: Url, path: Path, limit: int) -> None:
    """Put an object into a file, whole or not at all; raises StoreError as ``read`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            _fetch(url, limit, file.write)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def upload(path: Path, url: Url) -> None:
    """Put a file's bytes into an object, over what it held; raises StoreError."""
    with _reached("write", url):
        fs, remote = _filesystem(url)
        fs.put_file(str(path), remote)


def _is_missing(error: Exception) -> bool:
    """An empty object has no first byte, and a store calls the range invalid: it is as good as missing."""
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return missing or (isinstance(error, OSError) and error.errno == errno.EINVAL)


@contextmanager
def opened(url: Url) -> Iterator[Ranges]:
    """An object to read in parts; raises StoreError, also from each read."""
    with Ranges(url) as file:
        yield file


class Ranges(io.RawIOBase):
    """An object as a file of which nothing is fetched but the ranges that are read."""

    def __init__(self, url: Url) -> None:
        self._url, self._at = url, 0
        with _reached("read", url):
            self._fs, self._path = _filesystem(url)
            self.size = int(self._fs.info(self._path)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self.size)
        if end <= self._at:
            return 0
        with _reached("read", self._url):
            data = self._fs.cat_file(self._path, start=self._at, end=end)
        if len(data) != end - self._at:
            raise StoreError(f"'{printable(str(self._url))}' changed while it was read; read it again")
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def _fetch(url: Url, limit: int, keep: Callable[[bytes], object]) -> None:
    """Give an object to ``keep`` in pieces; the size that its store tells is not believed."""
    shown, total = printable(str(url)), 0
    with _reached("read", url):
        fs, path = _filesystem(url)
        with fs.open(path, "rb", block_size=CHUNK) as file:
            while data := file.read(CHUNK):
                total += len(data)
                if total > limit:
                    raise StoreError(f"'{shown}' has more than the limit of {limit:,} bytes; is it the right object?")
                keep(data)


# --- filesystems, and what they raise ------------------------------------------------------------------------------


def _filesystem(url: Url) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it; fsspec makes one filesystem for each protocol."""
    core = importlib.import_module("fsspec.core")
    fs, path = core.url_to_fs(url.text)
    return fs, str(path)


@contextmanager
def _reached(doing: str, url: Url) -> Iterator[None]:
    try:
        yield
    except FusionbenchError:
        raise
    except Exception as error:  # a filesystem's own: botocore's and aiohttp's are neither OSErrors nor ours to name
        shown, scheme = printable(str(url)), url.text.partition(":")[0]
        said = printable(" ".join(str(error).split()), 300) or type(error).__name__
        raise StoreError(f"cannot {doing} '{shown}': {said}; {_remedy(error, scheme)}") from error


def _remedy(error: Exception, scheme: str) -> str:
    kind = type(error).__name__.lower()
    if isinstance(error, ImportError):
        extra = EXTRAS.get(scheme)
        return f"pip install fusionbench[{extra}]" if extra else "install the package that fsspec names"
    if isinstance(error, ValueError) and "protocol" in str(error).lower():
        return "fsspec knows s3://, gs:// and many more"
    if "credential" in kind or "token" in kind:
        return f"set {_credentials(scheme)}"
    if isinstance(error, FileNotFoundError):
        return "is there such a bucket, and such a folder in it?"
    if isinstance(error, PermissionError):
        return f"do these credentials allow it? They are taken from {_credentials(scheme)}"
    if isinstance(error, OSError | TimeoutError) or any(word in kind for word in ("connect", "timeout", "endpoint")):
        return "check the network, and the endpoint if you set one"
    return "check the URL"


def _credentials(scheme: str) -> str:
    return {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws",
        "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    }.get(EXTRAS.get(scheme, ""), f"what fsspec's configuration has for '{scheme}' (~/.config/fsspec)")
