"""What every job's command line shares: recipes, overrides, the scale, and what a user's mistake looks like."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pydantic

from jobs import recipes
from pipeline.choices import explain, suggest
from pipeline.contracts import DataError, InputError, TooManyHolesError
from pipeline.data.manifest import Manifest
from pipeline.experiment import Experiment, override
from pipeline.scale import LOCAL, Scale

Command = Callable[..., None]


def run(command: click.Command) -> None:
    """Invoke the command; what went wrong becomes one sentence.

    Exit code 2: the user's input cannot be used; 3: too many samples were quarantined; 1: stored data is damaged.
    """
    try:
        command()
    except InputError as error:
        message, code = str(error), 2
    except pydantic.ValidationError as error:
        message, code = explain(error), 2
    except TooManyHolesError as error:
        message, code = str(error), 3
    except DataError as error:
        message, code = str(error), 1
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def recipe_command(command: Command) -> click.Command:
    """A command over a recipe: RECIPE, key=value overrides, and `--scale key=value` as often as wanted."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    command = click.argument("recipe")(command)
    return click.command(scale_option(command))


def scale_option(command: Command) -> Command:
    return click.option(
        "--scale", "scale", multiple=True, metavar="KEY=VALUE", help="Where and how big: workers=2, ..."
    )(command)


def experiment_of(recipe: str, overrides: Iterable[str] = ()) -> Experiment:
    """A recipe by name (`recipe_names`) or by the path of a Python file, with overrides."""
    experiment = _recipe_function(recipe)()
    for given in overrides:
        key, value = _pair(given)
        try:
            experiment = override(experiment, key, value)
        except InputError:
            if isinstance(value, str):
                raise
            experiment = override(experiment, key, given.partition("=")[2])  # digits that are meant as text
    return experiment


def scale_of(settings: Iterable[str]) -> Scale:
    """The local scale with some of its settings changed."""
    changes = dict(_pair(given) for given in settings)
    unknown = [key for key in changes if not hasattr(LOCAL, key)]
    if unknown:
        raise InputError(f"--scale: there is no setting {unknown[0]!r}{suggest(unknown[0], list(vars(LOCAL)))}")
    return replace(LOCAL, **changes)


def tell_holes(manifest: Manifest, where: Scale) -> None:
    """Says how many samples a dataset lacks and where they are named."""
    if manifest.quarantined:
        path = Path(where.data_dir, manifest.identity, "quarantine.parquet")
        click.echo(f"{manifest.quarantined} quarantined, see {path}", err=True)


def recipe_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def _recipe_function(recipe: str) -> Callable[[], Experiment]:
    path = Path(recipe)
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise InputError(f"there is no recipe file {recipe}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif recipe in recipe_names():
        module = importlib.import_module(f"jobs.recipes.{recipe}")
    else:
        raise InputError(f"there is no recipe {recipe!r}{suggest(recipe, recipe_names())}")
    function: Callable[[], Experiment] | None = getattr(module, path.stem, None)
    if function is None:
        raise InputError(f"recipe {recipe} has no function {path.stem}() that returns an Experiment")
    return function


def _pair(given: str) -> tuple[str, Any]:
    """`optim.lr=3e-4` -> ("optim.lr", 0.0003): JSON where it is JSON, else text."""
    key, equals, value = given.partition("=")
    if not equals:
        raise InputError(f"{given!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
