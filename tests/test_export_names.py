"""What jobs are called elsewhere: as here where that is possible, and never two alike."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionbench.export.names import encoded, node_id, plain, suite_path
from tests.exporting import run_of
from tests.synthetic import smoke


def test_a_key_is_a_name_as_it_is() -> None:
    for record in smoke():
        assert plain(record.job.key) == record.job.key
    assert node_id("suites/smoke.toml", "a/sdpa") == "suites/smoke.toml::a/sdpa"


@given(st.lists(st.text(max_size=40), unique=True, min_size=2))
def test_texts_that_differ_have_names_that_differ(texts: list[str]) -> None:
    assert len({plain(text, 30) for text in texts}) == len(texts)
    assert len({encoded(text) for text in texts}) == len(texts)
    assert all(len(plain(text, 30).encode()) <= 30 and plain(text, 30).isprintable() for text in texts)


@given(st.text())
def test_an_encoded_text_is_a_safe_file_name_and_reads_back(text: str) -> None:
    name = encoded(text, keep="-")
    assert re.fullmatch(r"[A-Za-z0-9_.~-]*", name)
    assert name not in (".", "..")
    assert unquote(name.replace("~", "%")) == text


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("run", "smoke"), "suites/smoke.toml"),
        (("run", "suites/smoke.toml", "--report"), "suites/smoke.toml"),
        (("run", "./mine/smoke.toml"), "mine/smoke.toml"),
        (("run", "/elsewhere/smoke.toml"), "smoke.toml"),
        (("run", f"{Path.cwd()}/bench/smoke.toml"), "bench/smoke.toml"),
        (("run", "smoke", "--plugin", "other.toml"), "suites/smoke.toml"),
    ],
)
def test_a_suite_is_called_as_pytest_calls_it_here(command: tuple[str, ...], path: str) -> None:
    assert suite_path(run_of([], command=("fusionbench", *command))) == path
