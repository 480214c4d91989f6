from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contracts import DataError, InputError, TooManyHolesError
from pipeline.training import failure


@pytest.mark.parametrize("error", [InputError("lr = 'ü' \n is no number"), DataError("shard x ends")])
def test_a_failure_that_was_left_is_found_as_it_was(error: InputError | DataError, tmp_path: Path) -> None:
    failure.leave(error, tmp_path / "note")
    found = failure.found(tmp_path / "note")
    assert type(found) is type(error) and str(found) == str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_where_nothing_was_left_nothing_is_found(tmp_path: Path) -> None:
    assert failure.found(tmp_path / "note") is None


def test_any_kind_of_damaged_data_is_a_data_error() -> None:
    assert type(failure.from_plain(failure.to_plain(TooManyHolesError("9 of 10")))) is DataError


def test_what_a_restart_may_mend_is_not_lasting() -> None:
    assert not isinstance(RuntimeError("connection closed"), failure.LASTING)
    assert not isinstance(OSError("no space left"), failure.LASTING)
