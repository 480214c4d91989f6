"""`python -m jobs.bench NAME [--json]`: measures something against its rival, in one run, interleaved.

A bench is a file tests/bench/NAME.py with a function `cases()` that yields rows: case, ours, rival, rival_name, ratio.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping

import click

from jobs.cli import run
from pipeline.choices import suggest
from pipeline.contracts import InputError


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def main(name: str, as_json: bool) -> None:
    """Runs the bench NAME and prints a row a case."""
    benches = importlib.import_module("tests.bench")
    known = sorted(module.name for module in pkgutil.iter_modules(benches.__path__))
    if name not in known:
        raise InputError(f"there is no bench {name!r}{suggest(name, known)}")
    for row in importlib.import_module(f"tests.bench.{name}").cases():
        click.echo(json.dumps(row) if as_json else _line(row))


def _line(row: Mapping[str, object]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


if __name__ == "__main__":
    run(main)
