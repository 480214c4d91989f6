"""ingest: corpus -> tars, indices, Manifest, by Ray Data.

Planned, so that it can be killed anywhere and run again: the corpus says its parts, each task writes the one shard of
one part (whole or not at all) and returns a row of statistics, the manifest is written last. All that happens in a
hidden folder named after the plan, which then takes the dataset's name: a reader sees all or nothing, a shard that is
there is not made again, and tasks that outlive a killed ingest can do no harm. Equal corpora give equal bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from tqdm import tqdm

from pipeline.contracts import DataError, FieldInfo, InputError, Part, TooManyHolesError
from pipeline.data.manifest import Manifest, ShardInfo, check_settings, find_manifest, write_manifest
from pipeline.data.part import write_part
from pipeline.experiment import WHERE, Dataset, FieldSpec, digest, to_dict
from pipeline.files import TEMPORARY, sync, whole_file
from pipeline.scale import Scale

MOST_TASKS = 10_000  # beyond that a task writes several shards
HOLES = pa.schema([(name, pa.string()) for name in ("split", "shard", "key", "source", "reason", "error")])
SOURCES = pa.schema([(name, pa.string()) for name in ("split", "shard", "source")])
log = logging.getLogger(__name__)


def ingest(dataset: Dataset, scale: Scale, tolerance: float = 0.1) -> Manifest:
    """Writes `dataset` under scale.data_dir and returns its manifest; does nothing where it is there already.

    Raises InputError where the name is taken by another dataset or the corpus cannot be used, TooManyHolesError where
    more than the share `tolerance` of the samples cannot be used or a split is left empty, and DataError where a shard
    cannot be written.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance = {tolerance}: must be a share between 0 and 1")
    dataset.check()
    parts = list(dataset.corpus.make("corpora").parts(dataset.split, int(dataset.shard_mb * 1e6)))
    if "train" not in {part.split for part in parts}:
        raise InputError(f"corpus {dataset.corpus.name} has no sample for the split 'train'")
    root = Path(scale.data_dir).resolve() / dataset.identity
    sources = _sources(parts)
    listing = digest(sources.to_pylist())
    there = find_manifest(root)
    if there is not None:
        return _same(there, dataset, sources, root)
    building = root.with_name(f".{dataset.identity}-{digest([dataset.fingerprint, listing])[:16]}")
    _make_folder(building)
    rows = sorted(_write_parts(dataset, parts, building, scale), key=lambda row: (row["split"], row["index"]))
    holes = [{**hole, "split": row["split"], "shard": row["name"]} for row in rows for hole in row["holes"]]
    _write_table(building / "quarantine.parquet", pa.Table.from_pylist(holes, schema=HOLES))
    _write_table(building / "sources.parquet", sources)
    _check_holes(rows, holes, tolerance, f"{dataset.identity} (see {building / 'quarantine.parquet'})")
    _check_arrays(rows)
    manifest = Manifest(
        identity=dataset.identity,
        fingerprint=dataset.fingerprint,
        dataset=to_dict(dataset),
        listing=listing,
        shards=tuple(_info(row) for row in rows if row["samples"]),
        fields={spec.name: _learn(spec, rows) for spec in dataset.fields},
        quarantined=len(holes),
    )
    _publish(manifest, building, root)
    return manifest


def ensure(dataset: Dataset, scale: Scale) -> Manifest:
    """The dataset's manifest; ingests it only where it is absent, so that a made set needs its corpus no more."""
    there = find_manifest(Path(scale.data_dir) / dataset.identity)
    if there is None:
        return ingest(dataset, scale)
    check_settings(there, dataset)
    return there


def _sources(parts: list[Part]) -> pa.Table:
    """What went into which shard: a row for each entry of each part's source."""
    entries = [
        {"split": part.split, "shard": part.shard, "source": json.dumps(entry)}
        for part in parts
        for entry in part.source
    ]
    return pa.Table.from_pylist(entries, schema=SOURCES)


def _same(there: Manifest, dataset: Dataset, sources: pa.Table, root: Path) -> Manifest:
    """The manifest that is there. Raises InputError, saying what differs, where it is one of something else."""
    check_settings(there, dataset)
    if there.listing != digest(sources.to_pylist()):
        old, new = (
            {(row["split"], row["source"]) for row in table.to_pylist()}
            for table in (pq.read_table(root / "sources.parquet"), sources)
        )
        changes = [
            f"{len(entries)} {word}, {min(entries)[1]} for example"
            for word, entries in (("came or changed", new - old), ("went or were otherwise", old - new))
            if entries
        ]
        raise InputError(
            f"the files behind dataset {there.identity} have changed since it was made "
            f"({'; '.join(changes) or 'they are divided into other shards'}); raise dataset.version"
        )
    return there


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data_dir: {path.parent} cannot be written to: {error.strerror}") from error


def _write_parts(dataset: Dataset, parts: list[Part], building: Path, scale: Scale) -> Iterator[dict[str, Any]]:
    """One row a part, in the order in which they are done."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the console's; the log file keeps all
            handler.setLevel(logging.ERROR)
    plan = [{"part": json.dumps([part.split, part.index, part.source])} for part in parts]
    plain = _with_absolute_paths(to_dict(dataset))

    def write(row: dict[str, Any]) -> dict[str, Any]:
        split, index, source = json.loads(row["part"])
        part = Part(split=split, index=index, source=source)
        try:
            return {"row": json.dumps(write_part(plain, part, building))}
        except OSError as error:
            return {"row": json.dumps({"failure": f"shard {part.shard} cannot be written: {error}"})}

    with ray.data.DataContext.current(context):
        asked = ray.data.from_items(plan, override_num_blocks=min(len(plan), MOST_TASKS))
        done = asked.map(write, num_cpus=1, concurrency=scale.parallel)
        items: Any = iter(done.iter_rows())
        with closing(items):  # left open, it would start a new Ray when this one has ended
            rows = (json.loads(item["row"]) for item in items)
            yield from _with_progress(rows, len(parts), f"ingest {dataset.identity}")


def _with_absolute_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """Tasks may run in another working directory."""
    corpus = plain["corpus"]
    paths = {name: str(Path(corpus["settings"][name]).absolute()) for name in WHERE if name in corpus["settings"]}
    return {**plain, "corpus": {**corpus, "settings": {**corpus["settings"], **paths}}}


class Lines(tqdm):  # type: ignore[misc]
    """A progress bar for a log file: each report is a line of its own."""

    disable: bool

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def report(line: str) -> None:
            file.write(f"{line.strip()}\n")
            file.flush()

        return report

    def close(self) -> None:
        if not self.disable:
            self.refresh()
        self.disable = True  # what tqdm does at its end is for terminals


def _with_progress(rows: Iterable[dict[str, Any]], total: int, title: str) -> Iterator[dict[str, Any]]:
    """The same rows. Raises DataError for one that is a failure."""
    samples = holes = 0
    began, quiet = time.monotonic(), not sys.stderr.isatty()
    graph = "" if quiet else "{bar:20} "
    shown = f"{{desc}}: {graph}{{n_fmt}}/{{total_fmt}} shards{{postfix}} [{{elapsed}} so far, {{remaining}} left]"
    with (Lines if quiet else tqdm)(total=total, desc=title, mininterval=10 if quiet else 0.5, bar_format=shown) as bar:
        for row in rows:
            if "failure" in row:
                raise DataError(row["failure"])
            samples, holes = samples + row["samples"], holes + len(row["holes"])
            speed = samples / max(1e-9, time.monotonic() - began)
            bar.set_postfix_str(f"{samples} samples ({speed:.0f}/s), {holes} quarantined", refresh=False)
            bar.update()
            yield row


def _check_holes(rows: list[dict[str, Any]], holes: list[dict[str, str]], tolerance: float, identity: str) -> None:
    total = sum(row["samples"] for row in rows) + len(holes)
    empty = sorted({row["split"] for row in rows} - {row["split"] for row in rows if row["samples"]})
    if empty:
        holes = [hole for hole in holes if hole["split"] in empty]
        fault = f"no sample of {identity} is left in the split {empty[0]!r}, {len(holes)} cannot be used"
    elif len(holes) > tolerance * total:
        fault = f"{len(holes)} of {total} samples of {identity} cannot be used, more than the {tolerance:.0%} tolerated"
    else:
        return
    raise TooManyHolesError(f"{fault}; the first: {holes[0]['source']}: {holes[0]['reason']}" if holes else fault)


def _info(row: dict[str, Any]) -> ShardInfo:
    return ShardInfo(**{name: row[name] for name in ("name", "split", "samples", "bytes", "sha256")})


def _check_arrays(rows: list[dict[str, Any]]) -> None:
    first: dict[str, tuple[str, Any]] = {}
    for row in rows:
        for field, kind in row["arrays"].items():
            shard, known = first.setdefault(field, (row["name"], kind))
            if kind != known:
                raise InputError(f"field {field} is {known} in shard {shard}, but {kind} in {row['name']}")


def _learn(spec: FieldSpec, rows: list[dict[str, Any]]) -> FieldInfo:
    """What the training split teaches about a field; other splits are looked at only to name what it lacks."""
    modality = spec.modality.make("modalities")

    def merged(training: bool) -> Any:
        total = modality.statistics()
        for row in rows:
            if (row["split"] == "train") == training:
                total.merge(modality.statistics(row["statistics"][spec.name]))
        return total

    info: FieldInfo = modality.info(merged(True))
    unseen = sorted({*modality.info(merged(False)).vocabulary} - {*info.vocabulary}) if info.vocabulary else []
    if unseen and spec.role == "target":
        shown = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        log.warning("%s: %s never stands in the training split; no model can predict it", spec.name, shown)
    return info


def _write_table(path: Path, table: pa.Table) -> None:
    with whole_file(path) as aside:
        pq.write_table(table, aside)


def _publish(manifest: Manifest, building: Path, root: Path) -> None:
    """Gives what was built the dataset's name, without what killed attempts left."""
    whole = {shard.name for shard in manifest.shards}
    for path in building.iterdir():
        if path.name.startswith(TEMPORARY) or (path.suffix in {".tar", ".arrow"} and path.stem not in whole):
            path.unlink(missing_ok=True)
    write_manifest(building, manifest)
    for path in root.parent.glob(f".{manifest.identity}-*"):
        if path != building:
            shutil.rmtree(path, ignore_errors=True)
    try:
        building.rename(root)
    except OSError as error:
        raise InputError(f"{root} cannot be taken: {error.strerror}; move away what is there") from error
    sync(root.parent)
    for path in root.glob(f"{TEMPORARY}*"):  # of tasks that outlived a killed ingest, and find their folder gone now
        path.unlink(missing_ok=True)
