from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import TEMPORARY, whole_file

ROOT = Path(__file__).parents[2]


def test_a_file_takes_its_place_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with whole_file(path) as aside:
        aside.write_bytes(b"new")
        assert not path.exists()
        assert aside.parent == path.parent and aside.name.startswith(TEMPORARY)
    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


def test_where_the_block_fails_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")

    def write_half() -> None:
        with whole_file(path) as aside:
            aside.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        pass


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as one:
        one.write_bytes(b"one")
        with whole_file(path) as other:
            other.write_bytes(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"


def test_a_killed_writer_leaves_the_old_file_and_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    program = (
        "import os, pathlib, signal\nfrom pipeline.files import whole_file\n"
        f"with whole_file(pathlib.Path({str(path)!r})) as aside:\n"
        "    aside.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
    (left,) = (other for other in tmp_path.iterdir() if other != path)
    assert left.name.startswith(TEMPORARY)
