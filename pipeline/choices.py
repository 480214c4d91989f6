"""A shelf is a package, a choice is a module in it.

`names("models")` lists a shelf; `load("models", "lstm")` gives the module's class of the same name (`LSTM`,
`NextStep`: case and underscores do not count). A file on a shelf is its own registration. A dotted name is an
importable path outside the project: `load("models", "my_package.my_family")`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses

from pipeline.contracts import InputError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def settings(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose values are checked where it is made; unknown names are refused."""
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[return-value]


def names(shelf: str) -> list[str]:
    package = importlib.import_module(f"pipeline.{shelf}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def load(shelf: str, name: str) -> type[Any]:
    """The class of the choice `name`. Raises InputError, naming the choices, where there is none."""
    if "." in name:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(f"{shelf}: no module {error.name!r} can be imported for {name!r}") from error
    elif name in names(shelf):
        module = importlib.import_module(f"pipeline.{shelf}.{name}")
    else:
        raise InputError(f"{shelf} has no {name!r}{suggest(name, names(shelf))}")
    wanted = name.rpartition(".")[2].replace("_", "").lower()
    for attribute, value in vars(module).items():
        if isinstance(value, type) and attribute.lower() == wanted:
            return value
    raise InputError(f"module {module.__name__} has no class named like itself ({wanted!r}, in any case)")


def make(shelf: str, name: str, given: Mapping[str, Any]) -> Any:
    """An instance of a choice with its settings. Raises InputError naming the setting and what would be right."""
    return checked(load(shelf, name), given, where=f"{shelf[:-1] if shelf != 'corpora' else 'corpus'} {name}")


def checked(cls: type[T], given: Mapping[str, Any], where: str) -> T:
    try:
        return cls(**given)
    except pydantic.ValidationError as error:
        raise InputError(explain(error, cls, where)) from error


def explain(error: pydantic.ValidationError, cls: type[Any] | None = None, where: str = "") -> str:
    """One sentence for each thing that is wrong."""
    problems = []
    for detail in error.errors(include_url=False):
        path = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "unexpected_keyword_argument":
            known = sorted(field.name for field in dataclasses.fields(cls)) if cls and len(detail["loc"]) == 1 else []
            problems.append(f"there is no setting {path!r}{suggest(path, known)}")
        elif detail["type"] == "missing":
            problems.append(f"{path!r} must be given")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{path} = {detail['input']!r}: {message}" if path else message)
    return f"{where or error.title}: " + "; ".join(problems)


def suggest(given: str, known: list[str]) -> str:
    """`; did you mean 'lstm'? (choices: ...)`, as far as there is something to say."""
    if not known:
        return ""
    close = get_close_matches(given, known, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (choices: {', '.join(known)})"
