from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import pydantic
import pytest

from pipeline.choices import checked, explain, load, make, names, settings, suggest
from pipeline.contracts import InputError

Whole = Annotated[int, pydantic.Field(gt=0)]


@settings
class Inner:
    width: Whole = 1


@settings
class Outer:
    size: Whole
    inner: Inner = Inner()
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("13 brings bad luck")


def test_a_shelf_lists_its_files_but_not_what_they_share() -> None:
    here = {path.stem for path in (Path(__file__).parents[2] / "pipeline" / "models").glob("[a-z]*.py")}
    assert names("models") == sorted(here) and {"gru", "lstm", "rnn", "transformer"} <= here


@pytest.mark.parametrize("shelf", ["corpora", "modalities", "models", "tasks"])
def test_every_file_on_a_shelf_is_a_choice_with_settings(shelf: str) -> None:
    for name in names(shelf):
        choice = load(shelf, name)
        assert dataclasses.is_dataclass(choice) and choice.__name__.lower() == name.replace("_", "")
        assert choice.__doc__


def test_a_choice_may_lie_outside_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "outside_of_it"
    package.mkdir()
    (package / "next_token.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass NextToken:\n    a: int = 1\n"
    )
    (package / "other.py").write_text("class Another: pass\nother = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make("tasks", "outside_of_it.next_token", {"a": 3}).a == 3
    with pytest.raises(InputError, match=r"module outside_of_it\.other has no class named like itself \('other'"):
        load("tasks", "outside_of_it.other")
    with pytest.raises(InputError, match=r"tasks: no module 'outside_of_it\.gone' can be imported"):
        load("tasks", "outside_of_it.gone")


@pytest.mark.parametrize("name", ["lsmt", "_recurrent", "", "LSTM"])
def test_what_is_not_on_the_shelf_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(InputError, match=rf"models has no '{name}'.* \(choices: .*gru, .*lstm, .*rnn.*\)"):
        load("models", name)


def test_settings_cannot_be_changed_or_given_by_place() -> None:
    made = Outer(size=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.size = 4  # type: ignore[misc]
    with pytest.raises((TypeError, pydantic.ValidationError)):
        Outer(3)  # type: ignore[misc, call-arg]
    assert made == Outer(size=3, inner=Inner(width=1)) and hash(made) == hash(Outer(size=3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "box outer: 'size' must be given"),
        ({"size": 0}, "box outer: size = 0: Input should be greater than 0"),
        ({"size": 13}, "box outer: 13 brings bad luck"),
        ({"size": "many"}, "box outer: size = 'many': Input should be a valid integer"),
        ({"size": 1, "sise": 2}, r"there is no setting 'sise'; did you mean 'size'\? \(choices: inner, share, size\)"),
        ({"size": 1, "inner": {"width": -3}}, r"box outer: inner\.width = -3: Input should be greater than 0"),
        ({"size": 1, "inner": {"wdth": 3}}, r"box outer: there is no setting 'inner\.wdth'"),
        ({"size": 1, "share": float("nan")}, "box outer: share = nan: Input should be a finite number"),
        ({"size": 0, "share": "x"}, "size = 0: .*; share = 'x': "),
    ],
)
def test_an_error_names_the_value_and_what_would_be_right(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        checked(Outer, given, where="box outer")
    assert "\n" not in str(raised.value) and "pydantic" not in str(raised.value)


def test_an_error_of_a_choice_names_its_shelf() -> None:
    with pytest.raises(InputError, match=r"^model gru: width = -1: "):
        make("models", "gru", {"width": -1})
    with pytest.raises(InputError, match=r"^corpus folder: 'path' must be given"):
        make("corpora", "folder", {})


def test_an_error_without_a_place_is_named_after_its_class() -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        Outer(size=0)
    assert explain(raised.value) == "Outer: size = 0: Input should be greater than 0"


def test_suggestions_say_what_there_is_to_say() -> None:
    assert suggest("lsmt", ["gru", "lstm"]) == "; did you mean 'lstm'? (choices: gru, lstm)"
    assert "did you mean" not in suggest("zebra", ["gru", "lstm"])
    assert suggest("zebra", ["gru", "lstm"]).endswith("(choices: gru, lstm)")
    assert suggest("zebra", []) == ""
