"""The house rules that a program can check."""

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(file for room in ("pipeline", "jobs", "cluster") for file in (ROOT / room).rglob("*.py"))
FILES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
JOBS = sorted(file for file in (ROOT / "jobs").glob("*.py") if 'if __name__ == "__main__":' in file.read_text())
EMPTY_WORDS = {"manager", "helper", "helpers", "util", "utils", "base", "factory"}


def by_path(file: Path) -> str:
    return str(file.relative_to(ROOT))


def num_lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


@pytest.mark.parametrize("file", FILES, ids=by_path)
def test_a_file_has_at_most_300_lines(file: Path) -> None:
    assert num_lines(file) <= 300


@pytest.mark.parametrize("file", JOBS, ids=by_path)
def test_a_job_is_parse_one_call_print(file: Path) -> None:
    assert num_lines(file) <= 60


@pytest.mark.parametrize("file", FILES, ids=by_path)
def test_names_say_what_a_thing_does(file: Path) -> None:
    classes = [node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
    assert not {name for name in [file.stem, *classes] if words(name) & EMPTY_WORDS}


@pytest.mark.parametrize("file", [file for file in SOURCES if re.match(r"[a-z]|__", file.name)], ids=by_path)
def test_a_public_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_the_words_of_a_name_are_found() -> None:
    assert words("HTTPShardManager") == {"http", "shard", "manager"}
    assert words("read_base") == {"read", "base"}
    assert words("Database") == {"database"}


def test_the_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_git_keeps_the_source_folders_named_like_results() -> None:
    """`ray job submit` leaves out what .gitignore names: an unanchored `data/` would drop pipeline/data."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/data/", "/runs/", "/demo/"} <= {*lines}
    assert not {"data/", "runs/", "demo/", "data", "runs", "demo"} & {*lines}
