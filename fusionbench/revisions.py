"""Two revisions of a git repository side by side, each in a folder and with an interpreter of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import FusionbenchError, nearest, printable

SECONDS = 60.0  # for a question to git, which can hang on a network disk
CHECKOUT_S = 900.0
NAMES = 2000  # branches and tags among which the nearest is looked for
LONGEST = 1000  # characters of a revision's name
WORKING_TREE = "working tree"

# What says which packages an environment holds.
DEPENDENCY_FILES = (
    *("pyproject.toml", "setup.py", "setup.cfg", "constraints*.txt", "requirements*.txt", "requirements/*.txt"),
    *("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock*.toml", "environment*.yml"),
)
# No hook, no monitor and no LFS: what a checkout runs is what this repository's filters are, and nothing is fetched.
QUIET = (
    *("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "-c", "gc.auto=0"),
    *("-c", "filter.lfs.smudge=", "-c", "filter.lfs.process=", "-c", "filter.lfs.required=false"),
)


@dataclass(frozen=True)
class Repository:
    """A git repository with a working tree, by its top level."""

    path: Path


@dataclass(frozen=True)
class Revision:
    """A commit, and the name by which it was asked for; ``in_place`` is the working tree as it stands, which is
    ``dirty`` where it is not that commit."""

    name: str
    commit: str
    dirty: bool = False
    in_place: bool = False


@dataclass(frozen=True)
class Checkout:
    """Where the files of a revision are; ``notes`` say what is missing there."""

    path: Path
    revision: Revision
    notes: tuple[str, ...] = ()

    def holds(self, file: str | Path) -> bool:
        """Whether a file, as a module's ``__file__``, is this checkout's: else something else was imported."""
        return Path(file).resolve().is_relative_to(self.path.resolve())


@dataclass(frozen=True)
class Interpreter:
    """How Python is started for a checkout. ``paths`` are the folders of the checkout that it imports from, of those
    that the running interpreter imports from; with none, only an environment of its own makes it run other code."""

    argv: tuple[str, ...]
    env: dict[str, str]
    paths: tuple[Path, ...] = ()


def repository(path: str | Path) -> Repository:
    """The repository that ``path`` lies in. Raises FusionbenchError where there is none, or no git."""
    folder = Path(path).absolute()
    if not folder.exists():
        raise FusionbenchError(f"'{printable(str(path))}' does not exist; name a folder of the repository")
    folder = folder if folder.is_dir() else folder.parent
    done = _run(folder, "rev-parse", "--show-toplevel")
    top = done.stdout.removesuffix("\n")
    if done.returncode or not top:
        raise FusionbenchError(
            f"'{printable(str(folder))}' is in no git repository with a working tree ({_last_line(done.stderr)}); "
            "two revisions can be compared only inside one"
        )
    return Repository(Path(top))


def resolve(repo: Repository, ref: str | None = None) -> Revision:
    """The revision that ``ref`` names: a branch, a tag, a commit; without one, the working tree as it stands."""
    if ref is None:
        commit = _commit(repo, "HEAD")
        if commit is None:
            raise FusionbenchError(
                f"repository '{printable(str(repo.path))}' has no commit yet; commit something first"
            )
        dirty = _git(repo, "status", "--porcelain", "-z") != ""
        return Revision(WORKING_TREE, commit, dirty, in_place=True)
    commit = _commit(repo, ref)
    if commit is None:
        raise FusionbenchError(f"no revision '{printable(ref)}' in '{printable(str(repo.path))}'{_remedy(repo, ref)}")
    return Revision(ref, commit)


@contextlib.contextmanager
def checked_out(repo: Repository, revision: Revision, folder: Path) -> Iterator[Checkout]:
    """The revision's files in ``folder``, which is made, outside the repository, and removed at the end, however that
    comes; the working tree stays where it is. Submodules and files in LFS stay out: ``notes`` says so."""
    if revision.in_place:
        yield Checkout(repo.path, revision)
        return
    folder = _made(folder, repo)
    try:
        with _alone(repo):
            # A worktree: it shares the objects of the repository, so that only files are written.
            _git(repo, "worktree", "add", "--quiet", "--detach", str(folder), revision.commit, seconds=CHECKOUT_S)
        yield Checkout(folder, revision, tuple(_missing(repo, revision, folder)))
    finally:
        _remove(repo, folder)


def interpreter(
    checkout: Checkout, repo: Repository, setup: str | None = None, python: str | None = None
) -> Interpreter:
    """Python for a checkout: the running one, importing from the same places of the checkout as it does from the
    repository, or ``python`` there. ``setup`` is a command line, run first in the checkout and without a shell."""
    surroundings = environment(os.environ)
    if setup:
        _set_up(checkout, setup, surroundings)
    searched = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    program = _program(checkout, python, setup) if python else sys.executable
    inside = _moved(searched if python else sys.path, checkout, repo)
    outside = [entry for entry in searched if not _lies_in(entry, repo.path)]
    paths = [str(path) for path in inside] + outside
    surroundings.pop("PYTHONPATH", None)
    if any(os.pathsep in path for path in paths):
        raise FusionbenchError(f"'{printable(str(checkout.path))}' holds a '{os.pathsep}', which PYTHONPATH cannot")
    if paths:  # an empty one would be the current folder
        surroundings["PYTHONPATH"] = os.pathsep.join(paths)
    # -P: nor is the current folder, or a script's, searched.
    return Interpreter((program, "-P"), surroundings, tuple(inside))


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process of a checkout: without git's own, which lead to another repository inside a hook."""
    return {name: value for name, value in variables.items() if not name.startswith("GIT_")}


def dependencies_differ(repo: Repository, base: Revision, head: Revision) -> list[str]:
    """The files that say which packages are needed, and are not the same in both revisions."""
    wanted = [f":(top,glob)**/{name}" for name in DEPENDENCY_FILES]
    ends = [revision.commit for revision in (base, head) if not revision.in_place]
    if not ends:
        return []
    changed = _git(repo, "diff", "--name-only", "--no-relative", "--no-renames", "-z", *ends, "--", *wanted)
    found = set(changed.split("\0"))
    if len(ends) == 1:  # the other side is the working tree, of which diff knows only what git tracks
        found |= set(_git(repo, "ls-files", "--others", "--exclude-standard", "-z", "--", *wanted).split("\0"))
    return sorted(found - {""})


def _commit(repo: Repository, ref: str) -> str | None:
    if not ref or len(ref) > LONGEST or "\0" in ref:
        return None
    done = _run(repo.path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    found = done.stdout.strip()
    return found if re.fullmatch(r"[0-9a-f]{40,64}", found) else None  # "^main" is one for rev-parse, but no commit


def _remedy(repo: Repository, ref: str) -> str:
    """How to get a revision that is not there."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,99}", ref)
    if _git(repo, "rev-parse", "--is-shallow-repository").strip() == "true":
        fetch = f"git fetch --depth=1 origin {ref}, then name it FETCH_HEAD" if plain else "git fetch --unshallow"
        return f"; this clone is shallow, fetch it: {fetch} (in actions/checkout: fetch-depth: 0)"
    listed = _git(repo, "for-each-ref", f"--count={NAMES}", "--format=%(refname:short)").split()
    remote = next((name for name in listed if name.partition("/")[2] == ref), None)
    if remote is not None:
        return f"; did you mean '{printable(remote)}'?"
    near = printable(nearest(ref[:100], listed))
    return near if near.startswith("; did you mean") else "; fetch it (git fetch) or name a branch, a tag or a commit"


def _made(folder: Path, repo: Repository) -> Path:
    """The new folder: what is removed at the end was nobody's."""
    folder = Path(os.path.realpath(folder))
    shown = printable(str(folder))
    if folder.is_relative_to(os.path.realpath(repo.path)):
        raise FusionbenchError(f"'{shown}' lies inside the repository; check revisions out beside it")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise FusionbenchError(f"cannot make the folder '{shown}': {told}; name a new one") from None
    return folder


@contextlib.contextmanager
def _alone(repo: Repository) -> Iterator[None]:
    """Make and remove one checkout of the repository at a time: git reads the others' notes, and fails on half a one
    (about 2 of 600 failed when ten did so at once)."""
    common = repo.path / _git(repo, "rev-parse", "--git-common-dir").removesuffix("\n")
    try:
        file = os.open(common, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FusionbenchError(f"cannot open '{printable(str(common))}': {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _missing(repo: Repository, revision: Revision, folder: Path) -> Iterator[str]:
    """What a checkout does not have that a clone would."""
    name = printable(revision.name)
    entries = _git(repo, "ls-tree", "-r", "-z", "--full-tree", revision.commit).split("\0")
    submodules = [printable(entry.partition("\t")[2]) for entry in entries if entry.startswith("160000 ")]
    if submodules:
        yield f"the checkout of '{name}' is without its submodules ({', '.join(submodules[:5])})"
    with contextlib.suppress(OSError):
        if "filter=lfs" in (folder / ".gitattributes").read_text(errors="replace"):
            yield f"the checkout of '{name}' is without its files in LFS, only their pointers are there"


def _remove(repo: Repository, folder: Path) -> None:
    """Remove the checkout and git's note of it, also half of one. Others' notes stay: git worktree prune would forget
    those of disks that are not mounted right now."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # a second Ctrl-C waits
    try:
        with contextlib.suppress(FusionbenchError), _alone(repo):
            # Twice: also when it is still locked, as one is while git makes it.
            _git(repo, "worktree", "remove", "--force", "--force", str(folder), seconds=CHECKOUT_S)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up(checkout: Checkout, setup: str, surroundings: Mapping[str, str]) -> None:
    """Run the setup in the checkout; its output is kept where it fails."""
    shown, name = printable(setup), printable(checkout.revision.name)
    try:
        command = shlex.split(setup)
    except ValueError as error:
        raise FusionbenchError(f"setup '{shown}': {str(error).lower()}; quote it as for a shell") from None
    if not command:
        raise FusionbenchError("the setup is an empty command line; name a command, or leave it out")
    file, log = tempfile.mkstemp(prefix="fusionbench-setup-", suffix=".log")
    with os.fdopen(file, "wb") as output:
        try:
            code = subprocess.run(
                command, cwd=checkout.path, env=surroundings, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ).returncode
        except (OSError, ValueError) as error:
            Path(log).unlink()
            raise FusionbenchError(f"setup '{shown}' of '{name}' cannot be started: {error}") from None
    if code:
        last = _last_line(Path(log).read_text(errors="replace")) or "it said nothing"
        raise FusionbenchError(f"setup '{shown}' of '{name}' failed (exit code {code}): {last}; its output is in {log}")
    Path(log).unlink()


def _program(checkout: Checkout, python: str, setup: str | None) -> str:
    """The checkout's own interpreter; not resolved, as a venv's is a link and its place says which venv."""
    program = checkout.path / python
    if program.is_file() and os.access(program, os.X_OK):
        return str(program)
    made = "does the setup make it?" if setup else "name a setup that makes it"
    name = printable(checkout.revision.name)
    raise FusionbenchError(f"no interpreter '{printable(python)}' in the checkout of '{name}'; {made}")


def _moved(entries: Sequence[str], checkout: Checkout, repo: Repository) -> list[Path]:
    """Those of the folders that lie in the repository, at their places in the checkout, as far as they are there."""
    sources = (entry for entry in entries if _lies_in(entry, repo.path) and not _installed(entry, repo))
    places = (os.path.relpath(os.path.realpath(entry), os.path.realpath(repo.path)) for entry in sources)
    moved = (Path(os.path.normpath(checkout.path / place)) for place in places)
    return list(dict.fromkeys(path for path in moved if path.exists()))


def _lies_in(entry: str, folder: str | Path) -> bool:
    return Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(folder))


def _installed(entry: str, repo: Repository) -> bool:
    """Whether this is part of the running environment, as .venv inside the repository is: that is no source."""
    return _lies_in(sys.prefix, repo.path) and _lies_in(entry, sys.prefix)


def _git(repo: Repository, *arguments: str, seconds: float = SECONDS) -> str:
    """What git answers. Raises FusionbenchError when it fails."""
    done = _run(repo.path, *arguments, seconds=seconds)
    if done.returncode:
        told = _last_line(done.stderr) or f"exit code {done.returncode}"
        raise FusionbenchError(f"git {arguments[0]} failed in '{printable(str(repo.path))}': {told}")
    return done.stdout


def _run(folder: Path, *arguments: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    command = ["git", "--no-optional-locks", *QUIET, "-C", str(folder), *arguments]
    surroundings = environment(os.environ) | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            command,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # as Python does with paths that are not UTF-8
            timeout=seconds,
            start_new_session=True,  # Ctrl-C is told to us alone
        )
    except FileNotFoundError:
        raise FusionbenchError("git is not installed, or not in PATH; revisions are told by git") from None
    except subprocess.TimeoutExpired:
        shown = printable(str(folder))
        raise FusionbenchError(f"git {arguments[0]} did not answer in {seconds:g} s in '{shown}'") from None
    except OSError as error:
        raise FusionbenchError(f"git cannot be started: {error}") from None


def _last_line(text: str) -> str:
    return printable(next((line.strip() for line in reversed(text.splitlines()) if line.strip()), ""))
