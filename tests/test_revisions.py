"""Two revisions side by side: each is found, checked out, run by the right interpreter, and gone afterwards."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from fusionbench import revisions
from fusionbench.errors import FusionbenchError
from fusionbench.revisions import Checkout, Repository, Revision, checked_out, dependencies_differ, interpreter, resolve


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings).stdout.strip()


def commit(folder: Path, message: str, **files: str) -> str:
    """A commit of files, named as ``pkg_py`` for pkg.py."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with two commits, of which the first is tagged; its path has a space."""
    folder = tmp_path / "a project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one", mine_py="SIDE = 'base'\n", pyproject_toml="one\n")
    git(folder, "tag", "v1")
    commit(folder, "two", mine_py="SIDE = 'head'\n")
    return revisions.repository(folder)


def worktrees(repo: Repository) -> int:
    return git(repo.path, "worktree", "list", "--porcelain").count("worktree ")


def test_a_repository_is_told_from_any_place_in_it(repo: Repository) -> None:
    (repo.path / "deep" / "er").mkdir(parents=True)
    assert revisions.repository(repo.path / "deep" / "er") == repo
    assert revisions.repository(repo.path / "mine.py") == repo


def test_no_repository_a_bare_one_and_no_git_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    for path, told in [
        (tmp_path, "no git repository"), (tmp_path / "bare.git", "working tree"), (tmp_path / "gone", "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(FusionbenchError, match=told) as caught:
            revisions.repository(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FusionbenchError, match="git is not installed"):
        revisions.repository(tmp_path)


def test_the_variables_of_a_hook_lead_nowhere_else(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert resolve(revisions.repository(repo.path), "main").commit == git(repo.path, "rev-parse", "main")
    assert "GIT_DIR" not in interpreter(Checkout(repo.path, resolve(repo)), repo).env


@pytest.mark.parametrize("ref", ["main", "v1", "HEAD~1", "HEAD"])
def test_branches_tags_and_ancestors_are_revisions(repo: Repository, ref: str) -> None:
    git(repo.path, "tag", "-a", "annotated", "-m", "a tag that is an object itself", ref)
    expected = git(repo.path, "rev-parse", f"{ref}^{{commit}}")
    assert resolve(repo, ref) == Revision(ref, expected)
    assert resolve(repo, "annotated").commit == expected
    assert resolve(repo, expected[:10]).commit == expected


@pytest.mark.parametrize(
    "ref",
    ["--upload-pack=touch /tmp/x", "HEAD; rm -rf .", "$(id)", "^main", "v1..main", "", "x" * 10**6, "a\0b", "HEAD:mine.py", "-",
     "\x1b[31mred\nline"],
)  # fmt: skip
def test_a_hostile_name_is_no_option_and_no_revision(repo: Repository, ref: str) -> None:
    with pytest.raises(FusionbenchError, match="no revision") as caught:
        resolve(repo, ref)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_near_miss_names_the_nearest_branch_and_a_remote_one_its_remote(repo: Repository) -> None:
    git(repo.path, "update-ref", "refs/remotes/origin/dev", "HEAD")
    with pytest.raises(FusionbenchError, match="did you mean 'main'"):
        resolve(repo, "mian")
    with pytest.raises(FusionbenchError, match="did you mean 'origin/dev'"):
        resolve(repo, "dev")
    with pytest.raises(FusionbenchError, match="git fetch"):
        resolve(repo, "q9")


def test_a_shallow_clone_says_how_to_get_what_it_lacks(repo: Repository, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", repo.path.as_uri(), "shallow")
    shallow = revisions.repository(tmp_path / "shallow")
    with pytest.raises(FusionbenchError, match=r"shallow, fetch it: git fetch --depth=1 origin v1, .*fetch-depth: 0"):
        resolve(shallow, "v1")
    with pytest.raises(FusionbenchError, match="git fetch --unshallow"):
        resolve(shallow, "HEAD~1")
    git(shallow.path, "fetch", "-q", "--depth=1", "origin", "v1")
    assert resolve(shallow, "FETCH_HEAD").commit == git(repo.path, "rev-parse", "v1")


def test_the_working_tree_is_dirty_by_an_edit_and_by_a_new_file(repo: Repository) -> None:
    head = git(repo.path, "rev-parse", "HEAD")
    assert resolve(repo) == Revision("working tree", head, dirty=False, in_place=True)
    (repo.path / "new.py").touch()
    assert resolve(repo).dirty
    (repo.path / "new.py").unlink()
    (repo.path / "mine.py").write_text("edited")
    assert resolve(repo).dirty


def test_a_repository_without_a_commit_has_no_working_tree_to_compare(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(FusionbenchError, match="no commit yet"):
        resolve(revisions.repository(tmp_path))


def test_a_checkout_holds_the_revision_and_leaves_nothing(repo: Repository, tmp_path: Path) -> None:
    (repo.path / "mine.py").write_text("edited")
    before = git(repo.path, "status", "--porcelain"), (repo.path / ".git" / "config").read_text()
    with checked_out(repo, resolve(repo, "v1"), tmp_path / "out" / "base") as base:
        assert (base.path / "mine.py").read_text() == "SIDE = 'base'\n"
        assert base.holds(base.path / "mine.py")
        assert not base.holds(repo.path / "mine.py")
        (base.path / "made by the setup").mkdir()
    assert not base.path.exists()
    assert worktrees(repo) == 1
    assert (git(repo.path, "status", "--porcelain"), (repo.path / ".git" / "config").read_text()) == before
    assert (repo.path / "mine.py").read_text() == "edited"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_checkout_is_removed_when_its_use_ends_badly(
    repo: Repository, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), checked_out(repo, resolve(repo, "v1"), tmp_path / "base"):
        raise error
    assert not (tmp_path / "base").exists()
    assert worktrees(repo) == 1


def test_ctrl_c_while_git_checks_out_leaves_nothing(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = revisions._run

    def interrupted(folder: Path, *arguments: str, seconds: float = 9) -> subprocess.CompletedProcess[str]:
        done = run(folder, *arguments, seconds=seconds)
        if arguments[:2] == ("worktree", "add"):
            git(repo.path, "worktree", "lock", "--reason", "initializing", str(tmp_path / "base"))
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(revisions, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt), checked_out(repo, resolve(repo, "v1"), tmp_path / "base"):
        pass
    assert not (tmp_path / "base").exists()
    assert worktrees(repo) == 1


def test_a_worktree_whose_disk_is_away_is_not_forgotten(repo: Repository, tmp_path: Path) -> None:
    git(repo.path, "worktree", "add", "-q", "--detach", str(tmp_path / "disk"))
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with checked_out(repo, resolve(repo, "v1"), tmp_path / "base"):
        pass
    assert worktrees(repo) == 2


def test_a_folder_that_exists_or_lies_inside_is_not_taken_and_not_removed(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for folder, told in [(tmp_path / "mine", "file exists"), (repo.path / "base", "inside the repository")]:
        with pytest.raises(FusionbenchError, match=told), checked_out(repo, resolve(repo, "v1"), folder):
            pass
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_the_working_tree_is_used_where_it_is_and_stays(repo: Repository, tmp_path: Path) -> None:
    with checked_out(repo, resolve(repo), tmp_path / "head") as head:
        assert head.path == repo.path
    assert (repo.path / "mine.py").exists()
    assert not (tmp_path / "head").exists()


def test_hooks_and_lfs_do_not_run(repo: Repository, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hook = repo.path / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    hook.chmod(0o755)
    commit(repo.path, "large files", _gitattributes="*.bin filter=lfs\n", a_bin="pointer\n")
    git(repo.path, "config", "filter.lfs.smudge", f"touch '{ran}'")
    git(repo.path, "config", "filter.lfs.required", "true")
    with checked_out(repo, resolve(repo, "HEAD"), tmp_path / "head") as head:
        assert (head.path / "a.bin").read_text() == "pointer\n"
    assert not ran.exists()
    assert "LFS" in head.notes[0]


def test_a_checkout_says_which_submodules_it_lacks(repo: Repository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "library")
    commit(tmp_path / "library", "one")
    git(repo.path, "submodule", "--quiet", "add", str(tmp_path / "library"), "vendored")
    commit(repo.path, "a submodule")
    with checked_out(repo, resolve(repo, "HEAD"), tmp_path / "head") as head:
        assert head.notes == ("the checkout of 'HEAD' is without its submodules (vendored)",)
        assert list((head.path / "vendored").iterdir()) == []
    assert worktrees(repo) == 1


def test_a_linked_worktree_is_a_repository_like_another(repo: Repository, tmp_path: Path) -> None:
    git(repo.path, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    linked = revisions.repository(tmp_path / "linked")
    assert linked.path == tmp_path / "linked"
    with checked_out(linked, resolve(linked, "v1"), tmp_path / "base") as base:
        assert (base.path / "mine.py").read_text() == "SIDE = 'base'\n"
    assert worktrees(repo) == 2


def test_several_check_out_at_once(repo: Repository, tmp_path: Path) -> None:
    seen: list[str] = []

    def work(name: str) -> None:
        for _ in range(4):
            with checked_out(repo, resolve(repo, "v1"), tmp_path / name) as base:
                seen.append((base.path / "mine.py").read_text())

    threads = [threading.Thread(target=work, args=(f"out{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["SIDE = 'base'\n"] * 16
    assert worktrees(repo) == 1


def python(start: revisions.Interpreter, code: str, folder: Path) -> str:
    command = [*start.argv, "-c", code]
    done = subprocess.run(command, env=start.env, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def sides(repo: Repository, tmp_path: Path, code: str) -> list[str]:
    """What the code prints in the base and in the working tree, each started from the other's folder."""
    with (
        checked_out(repo, resolve(repo, "v1"), tmp_path / "base") as base,
        checked_out(repo, resolve(repo), tmp_path / "head") as head,
    ):
        base_python, head_python = interpreter(base, repo), interpreter(head, repo)
        assert base_python.paths == (base.path,)
        return [python(base_python, code, head.path), python(head_python, code, base.path)]


def test_a_module_comes_from_the_checkout_and_not_from_where_it_is_installed(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo.path))
    assert sides(repo, tmp_path, "import mine; print(mine.SIDE)") == ["base", "head"]


def test_a_checkout_shadows_an_editable_install(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "editable.pth").write_text(f"{repo.path}\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "path", [str(site), str(repo.path)])
    assert sides(repo, tmp_path, "import mine; print(mine.SIDE)") == ["base", "head"]


def test_the_environment_inside_the_repository_is_no_source(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    site = repo.path / ".venv" / "lib" / "site-packages"
    site.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(repo.path / ".venv"))
    monkeypatch.setattr(sys, "path", [str(site), str(repo.path)])
    assert interpreter(Checkout(repo.path, resolve(repo)), repo).paths == (repo.path,)


def test_the_current_folder_is_not_searched_and_the_users_own_folders_are(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "library.py").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text("SIDE = 'here'")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'own'}{os.pathsep}{os.pathsep}{repo.path}")
    monkeypatch.syspath_prepend(str(repo.path))
    with checked_out(repo, resolve(repo, "v1"), tmp_path / "base") as base:
        start = interpreter(base, repo)
        assert python(start, "import mine, library; print(mine.SIDE)", tmp_path / "here") == "base"
        assert str(repo.path) not in start.env["PYTHONPATH"].split(os.pathsep)


def test_nothing_of_the_repository_is_imported_when_it_is_not_on_the_path(repo: Repository) -> None:
    assert interpreter(Checkout(repo.path, resolve(repo)), repo).paths == ()


def test_a_setup_makes_the_interpreter_of_a_checkout(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repo.path))  # would shadow what the checkout's own environment has
    with checked_out(repo, resolve(repo, "v1"), tmp_path / "base") as base:
        setup = f"'{sys.executable}' -m venv --without-pip 'my venv'"
        start = interpreter(base, repo, setup, "my venv/bin/python")
        assert start.argv[0] == str(base.path / "my venv" / "bin" / "python")
        assert python(start, "import sys, mine; print(sys.prefix, mine.SIDE)", repo.path) == f"{base.path}/my venv base"


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        (("-c", "print('first'); print('no compiler'); print(); raise SystemExit(3)"), "exit code 3.*: no compiler; its output is in"),
        (("-c", "import signal, os; os.kill(os.getpid(), signal.SIGKILL)"), "exit code -9"),
    ],
)  # fmt: skip
def test_a_failing_setup_is_told_by_its_last_line_and_its_log(
    repo: Repository, setup: Sequence[str], told: str
) -> None:
    with pytest.raises(FusionbenchError, match=told) as caught:
        interpreter(Checkout(repo.path, resolve(repo)), repo, shlex.join([sys.executable, *setup]))
    log = Path(str(caught.value).rpartition("its output is in ")[2])
    assert log.exists()
    log.unlink()


@pytest.mark.parametrize(
    ("setup", "python", "told"),
    [
        ("no-such-program", None, "cannot be started"),
        ("make 'it", None, "no closing quotation"),
        ("  ", None, "empty command line"),
        ("true", ".venv/bin/python", "does the setup make it"),
        (None, ".venv/bin/python", "name a setup that makes it"),
        ("true", "mine.py", "no interpreter 'mine.py' in the checkout of 'working tree'"),
    ],
)
def test_what_cannot_be_an_environment_is_refused(
    repo: Repository, setup: str | None, python: str | None, told: str
) -> None:
    with pytest.raises(FusionbenchError, match=told):
        interpreter(Checkout(repo.path, resolve(repo)), repo, setup, python)


def test_files_of_dependencies_that_differ_are_named(repo: Repository) -> None:
    base, head = resolve(repo, "v1"), resolve(repo, "main")
    assert dependencies_differ(repo, base, head) == []
    (repo.path / "pyproject.toml").write_text("edited")
    (repo.path / "requirements").mkdir()
    (repo.path / "requirements" / "dev.txt").touch()
    (repo.path / "requirements of a cake.txt").touch()
    here = resolve(repo)
    found = ["pyproject.toml", "requirements of a cake.txt", "requirements/dev.txt"]
    assert dependencies_differ(repo, base, here) == found
    assert dependencies_differ(repo, here, here) == []
    git(repo.path, "mv", "mine.py", "uv.lock")
    commit(repo.path, "three")
    assert dependencies_differ(repo, base, resolve(repo, "HEAD")) == [*found, "uv.lock"]
