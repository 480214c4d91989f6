"""The Manifest: what a shard set holds. It is written last, so its existence means that the data is whole.

data_dir/name@version/manifest.json, train-000000.tar, train-000000.arrow, ..., and two tables: sources.parquet (which
source went into which shard) and quarantine.parquet (which samples could not be used, and why).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from pipeline.choices import settings, suggest
from pipeline.contracts import DataError, FieldInfo, InputError
from pipeline.data.tar import Shard
from pipeline.experiment import WHERE, Dataset, difference, to_dict
from pipeline.files import whole_file

FILE = "manifest.json"


@settings
class ShardInfo:
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_-]+$")]  # a manifest reaches no file elsewhere
    split: str
    samples: Annotated[int, pydantic.Field(ge=0)]
    bytes: Annotated[int, pydantic.Field(ge=0)]
    sha256: str


@settings
class Manifest:
    """`dataset` is the plain Dataset it was made from, `listing` a digest of all parts' sources.

    `quarantined` counts the rows of quarantine.parquet.
    """

    identity: str
    fingerprint: str
    dataset: dict[str, Any]
    listing: str
    shards: tuple[ShardInfo, ...]
    fields: dict[str, FieldInfo]
    quarantined: int
    parent: str | None = None

    @property
    def splits(self) -> dict[str, int]:
        """Samples a split."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            totals[shard.split] = totals.get(shard.split, 0) + shard.samples
        return totals


ADAPTER = pydantic.TypeAdapter(Manifest)


def write_manifest(root: Path, manifest: Manifest) -> None:
    with whole_file(root / FILE) as aside:
        aside.write_bytes(ADAPTER.dump_json(manifest, indent=1))


def find_manifest(root: Path) -> Manifest | None:
    """The manifest under `root`, or None where there is none. Raises DataError where it is not one."""
    try:
        return ADAPTER.validate_json((root / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{root / FILE} is not a manifest: {where}{': ' if where else ''}{first['msg']}") from error


def check_settings(manifest: Manifest, dataset: Dataset) -> None:
    """Raises InputError, saying what differs, where the shard set was made with other settings than `dataset`."""
    if manifest.fingerprint == dataset.fingerprint:
        return
    where = tuple(f"corpus.settings.{name}:" for name in WHERE)
    changes = [line for line in difference(to_dict(dataset), manifest.dataset) if not line.startswith(where)]
    raise InputError(
        f"dataset {manifest.identity} exists with other settings ({'; '.join(changes)}); raise dataset.version"
    )


class ShardSet:
    """An ingested dataset, open for reading."""

    def __init__(self, data_dir: str | Path, identity: str) -> None:
        """Raises InputError where no ingested dataset has that name."""
        self.root = Path(data_dir) / identity
        manifest = find_manifest(self.root)
        if manifest is None:
            there = sorted(path.parent.name for path in Path(data_dir).glob(f"[!.]*/{FILE}"))
            hint = suggest(identity, there) or "; nothing has been ingested there"
            raise InputError(f"no dataset {identity!r} under {data_dir}{hint}")
        self.manifest = manifest

    def split(self, name: str) -> list[ShardInfo]:
        """The shards of a split, in part order. Raises InputError where it has none."""
        shards = [shard for shard in self.manifest.shards if shard.split == name]
        if not shards:
            known = sorted(self.manifest.splits)
            raise InputError(f"dataset {self.manifest.identity} has no split {name!r}{suggest(name, known)}")
        return shards

    def open(self, shard: ShardInfo) -> Shard:
        return Shard(self.root / f"{shard.name}.tar", self.root / f"{shard.name}.arrow", shard.samples, shard.bytes)
