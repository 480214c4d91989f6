"""One part of a corpus -> one shard: what an ingest task does. Knows no Ray.

A sample that cannot be used becomes a Hole, one that kills the process as well: the writer notes which sample it is at,
and where FATAL attempts have died at the same one, the next leaves it out.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.contracts import Hole, Part, Sample
from pipeline.data.tar import TarWriter, npy_layout, open_tar, read_facts, write_index
from pipeline.experiment import Dataset, FieldSpec, digest
from pipeline.files import TEMPORARY

FATAL = 3
RECORD = 128  # bytes of a note
REASON = 500  # characters of a reason


def write_part(plain: Mapping[str, Any], part: Part, root: Path) -> dict[str, Any]:
    """Writes the shard of one part of a (plain) Dataset unless it is there.

    Returns its row: what the manifest needs to know of it. Raises OSError where it cannot be written.
    """
    dataset = Dataset(**plain)
    tar, index = root / f"{part.shard}.tar", root / f"{part.shard}.arrow"
    fingerprint = digest([dataset.fingerprint, part.split, part.index, part.source])
    row = read_facts(index)
    if row and row["fingerprint"] == fingerprint and tar.exists() and tar.stat().st_size == row["bytes"]:
        return row
    encoder, holes = Encoder(dataset), list[dict[str, str]]()
    with open_tar(tar) as writer, attempt(root / f"{TEMPORARY}{part.shard}.attempts") as note:
        for sample in dataset.corpus.make("corpora").read(part):
            hole = sample if isinstance(sample, Hole) else encoder.add(writer, sample, deaths=note(sample.key))
            if hole is not None:
                holes.append({name: _printable(value) for name, value in asdict(hole).items()})
    table = writer.index()
    with tar.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    row = {
        "fingerprint": fingerprint,
        "split": part.split,
        "index": part.index,
        "name": part.shard,
        "samples": table.num_rows,
        "bytes": tar.stat().st_size,
        "sha256": sha256,
        "holes": holes,
        "arrays": encoder.arrays,
        "statistics": {name: one.to_dict() for name, one in encoder.statistics.items()},
    }
    write_index(index, table, row)
    return row


class Encoder:
    """Samples -> stored fields. `arrays`: dtype and step shape of the fields that are arrays; `statistics` of all."""

    def __init__(self, dataset: Dataset) -> None:
        self.specs = dataset.fields
        self.modalities = {spec.name: spec.modality.make("modalities") for spec in dataset.fields}
        self.statistics = {name: modality.statistics() for name, modality in self.modalities.items()}
        self.arrays: dict[str, dict[str, Any]] = {}

    def add(self, writer: TarWriter, sample: Sample, deaths: int = 0) -> Hole | None:
        """Writes the sample, or says why it cannot be used."""
        try:
            if deaths >= FATAL:
                raise ValueError(f"{deaths} processes died of it")
            encoded = {name: modality.encode(sample.fields[name]) for name, modality in self.modalities.items()}
            arrays = {spec.name: self._kind(spec, encoded[spec.name]) for spec in self.specs if self._is_array(spec)}
            writer.add(sample.key, {spec.name: self._stored(spec, sample, encoded) for spec in self.specs})
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything on hostile bytes
            return Hole(key=sample.key, source=sample.source, reason=str(error), error=type(error).__name__)
        self.arrays |= arrays
        for name, payload in encoded.items():
            self.statistics[name].add(payload)
        return None

    def _is_array(self, spec: FieldSpec) -> bool:
        return bool(self.modalities[spec.name].suffix == "npy")

    def _kind(self, spec: FieldSpec, payload: bytes) -> dict[str, Any]:
        _, steps, kind = npy_layout(payload)
        if not steps and spec.role == "input":
            raise ValueError(f"{spec.name} has no step")
        if (known := self.arrays.get(spec.name, kind)) != kind:
            raise ValueError(f"{spec.name} is {kind}, its neighbours are {known}")
        return kind

    def _stored(self, spec: FieldSpec, sample: Sample, encoded: Mapping[str, bytes]) -> tuple[str, bytes]:
        if spec.store == "raw":
            return "raw", sample.fields[spec.name]
        return self.modalities[spec.name].suffix, encoded[spec.name]


@contextmanager
def attempt(path: Path) -> Iterator[Any]:
    """A function that notes in `path` at which sample this attempt is, and says how many died at it before.

    The file stays where the process is killed, and only there. Each attempt owns one record, behind those of the dead.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        dead = os.pread(descriptor, end, 0)
        deaths = Counter(dead[start : start + RECORD] for start in range(0, end, RECORD))

        def note(key: str) -> int:
            record = _printable(key).encode()[: RECORD - 1].ljust(RECORD - 1) + b"\n"
            os.pwrite(descriptor, record, end)
            return deaths[record]

        yield note
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """Text that can be stored: no lone surrogates, not without end."""
    return text[:REASON].encode(errors="backslashreplace").decode()
