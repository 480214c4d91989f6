"""Shards on disk: a plain WebDataset tar and an Arrow index beside it.

The tar is USTAR (POSIX.1-1988) with sorted members, mtime 0 and a fixed owner, so equal samples give equal bytes. A
member is named `key.field.suffix` (`0_jackson_7.audio.npy`): `webdataset` groups by what stands before the first dot.
The index, written after the tar, holds for each sample its key and, a field: `offset` and `size` of the payload (behind
any npy header, so that it can be read straight into a batch buffer), `length` in steps, and `crc`, a CRC-32 over name,
length and payload. Its schema metadata holds dtype and step shape of npy fields and whatever the writer wants to keep.

Reading is `pread` and never `mmap`: a file that shrank must raise, not kill the process.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.contracts import DataError
from pipeline.files import whole_file

NAME_BYTES = 100  # of a USTAR member
PAYLOAD_BYTES = 8**11  # what eleven octal digits hold
NUMBERS = {"offset": pa.int64(), "size": pa.int64(), "length": pa.int64(), "crc": pa.uint32()}  # of each field


class TarWriter:
    """Adds samples to an open tar and remembers where they lie."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.fields: set[str] = set()
        self.arrays: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, dict[str, int]] = {}

    def add(self, key: str, fields: Mapping[str, tuple[str, bytes]]) -> None:
        """One sample, {field: (suffix, payload)}.

        Raises ValueError, and has then written nothing of it, where the key is empty, taken or holds a dot or slash, a
        name is too long, or its fields or arrays are not like its neighbours'.
        """
        if not key or "." in key or "/" in key or "\0" in key or key in self._rows:
            raise ValueError(f"key {key!r} is empty, taken, or holds a dot, slash or zero")
        if self._rows and {*fields} != self.fields:
            raise ValueError(f"{key!r} has the fields {sorted(fields)}, its neighbours {sorted(self.fields)}")
        arrays = {field: npy_layout(payload) for field, (suffix, payload) in fields.items() if suffix == "npy"}
        for field, (suffix, payload) in fields.items():
            name = f"{key}.{field}.{suffix}"
            if len(name.encode()) > NAME_BYTES:
                raise ValueError(f"member name {name!r} is longer than {NAME_BYTES} bytes")
            if len(payload) >= PAYLOAD_BYTES:
                raise ValueError(f"{name} has {len(payload)} bytes, a tar member holds fewer than {PAYLOAD_BYTES}")
            if field in arrays and self.arrays.get(field, arrays[field][2]) != arrays[field][2]:
                raise ValueError(f"{name} is {arrays[field][2]}, its neighbours are {self.arrays[field]}")
        row: dict[str, int] = {}
        for field in sorted(fields):
            suffix, payload = fields[field]
            skip, length, kind = arrays.get(field, (0, -1, None))
            if kind is not None:
                self.arrays[field] = kind
            row[f"{field}.offset"] = self.archive.offset + tarfile.BLOCKSIZE + skip
            row[f"{field}.size"] = len(payload) - skip
            row[f"{field}.length"] = length
            row[f"{field}.crc"] = zlib.crc32(memoryview(payload)[skip:], _seed(key, field, length))
            member = tarfile.TarInfo(f"{key}.{field}.{suffix}")
            member.size, member.mtime, member.mode = len(payload), 0, 0o644
            self.archive.addfile(member, io.BytesIO(payload))
        self._rows[key], self.fields = row, {*fields}

    def index(self) -> pa.Table:
        columns = sorted({column for row in self._rows.values() for column in row})
        kinds = {column: NUMBERS[column.rpartition(".")[2]] for column in columns}
        schema = pa.schema({"key": pa.string(), **kinds}, metadata={"arrays": json.dumps(self.arrays, sort_keys=True)})
        return pa.Table.from_pylist([{"key": key, **row} for key, row in self._rows.items()], schema)


@contextmanager
def open_tar(path: Path) -> Iterator[TarWriter]:
    """A writer of the tar at `path`, which is there once the block has ended well."""
    with (
        whole_file(path) as aside,
        tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as archive,
    ):
        yield TarWriter(archive)


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, tuple[str, bytes]]]]) -> pa.Table:
    """Writes one shard and returns its index. Raises ValueError as TarWriter.add does."""
    with open_tar(path) as writer:
        for key, fields in samples:
            writer.add(key, fields)
    return writer.index()


def npy_layout(payload: bytes) -> tuple[int, int, dict[str, Any]]:
    """Header bytes, steps, and what all samples of a field share (NumPy enhancement proposal 1, version 1.0).

    Raises ValueError where that is not what the payload is.
    """
    stream = io.BytesIO(payload)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("npy payload is not of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject or not shape:
        raise ValueError(
            f"npy payload must be a C-ordered array of plain numbers with a step axis, not {dtype} {shape}"
        )
    if math.prod(shape) * dtype.itemsize != len(payload) - stream.tell():
        raise ValueError(f"npy header promises {dtype} {shape}, which {len(payload) - stream.tell()} bytes are not")
    return stream.tell(), shape[0], {"dtype": dtype.str, "shape": list(shape[1:])}


def _seed(key: str, field: str, length: int) -> int:
    """Where a payload's CRC starts, so that it also proves the other columns of the index."""
    return zlib.crc32(f"{key}.{field} {length}".encode())


def write_index(path: Path, index: pa.Table, facts: Mapping[str, Any]) -> None:
    """Writes the index as an Arrow file. `facts` (plain JSON) can be read back with `read_facts`."""
    metadata = {**(index.schema.metadata or {}), b"facts": json.dumps(facts).encode()}
    table = index.replace_schema_metadata(metadata)
    with whole_file(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts beside an index, or None where there is no whole index."""
    try:
        with pa.OSFile(str(path)) as source:
            metadata = pa.ipc.open_file(source).schema.metadata or {}
        facts: dict[str, Any] | None = json.loads(metadata.get(b"facts", b"null"))
    except (OSError, ValueError):  # pa.ArrowInvalid is a ValueError
        return None
    return facts


class Shard:
    """One shard, open for reading by any number of threads. Closes with its last reference.

    `arrays`: dtype and step shape of each npy field.
    """

    def __init__(self, tar: Path, index: Path, num_samples: int, num_bytes: int) -> None:
        """Raises DataError where a file cannot be opened or is not of that many samples and bytes."""
        self.path, self.index = tar, index
        try:
            with pa.OSFile(str(index)) as source:
                table = pa.ipc.open_file(source).read_all().combine_chunks()
            self.arrays: dict[str, dict[str, Any]] = json.loads(table.schema.metadata[b"arrays"])
            self._keys = table.column("key")
            names = [name.removesuffix(".offset") for name in table.column_names if name.endswith(".offset")]
            self._columns = {
                name: tuple(table.column(f"{name}.{number}").to_numpy() for number in NUMBERS) for name in names
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"index {index} cannot be read: {error}") from error
        if table.num_rows != num_samples:
            raise DataError(f"index {index} has {table.num_rows} samples, its manifest says {num_samples}")
        try:
            self._descriptor = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"shard {tar} cannot be read: {error}") from error
        if (found := os.fstat(self._descriptor).st_size) != num_bytes:
            raise DataError(f"shard {tar} has {found} bytes, its manifest says {num_bytes}")
        for name in names:
            self._check(name, num_bytes)

    def _check(self, name: str, num_bytes: int) -> None:
        offset, size, length, _ = self._columns[name]
        inside = (offset >= 0) & (size >= 0) & (offset + size <= num_bytes)
        if name in self.arrays:
            dtype, shape = self.arrays[name]["dtype"], self.arrays[name]["shape"]
            inside &= size == length * np.dtype(dtype).itemsize * math.prod(shape)
        if not inside.all():
            raise DataError(f"index {self.index} is damaged: {self.key(int(inside.argmin()))}.{name} cannot lie there")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def key(self, row: int) -> str:
        key: str = self._keys[row].as_py()
        return key

    def spot(self, field: str, row: int) -> tuple[int, int, int, int]:
        """Offset and size in bytes of a payload, its length in steps (-1 where it is no npy array), and its CRC."""
        try:
            offset, size, length, crc = self._columns[field]
        except KeyError:
            raise DataError(f"shard {self.path} has no field {field!r}") from None
        return offset.item(row), size.item(row), length.item(row), crc.item(row)

    def read_into(self, buffer: memoryview, key: str, field: str, spot: tuple[int, int, int, int]) -> None:
        """Fills `buffer` with a sample's payload. Raises DataError where it is not what was written."""
        offset, _, length, crc = spot
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise DataError(f"shard {self.path} ends at byte {offset + done}, inside {key}.{field}")
            done += count
        if zlib.crc32(buffer, _seed(key, field, length)) != crc:
            raise DataError(
                f"shard {self.path} is damaged, or its index {self.index} is: "
                f"{len(buffer)} bytes at {offset} are not {key}.{field}"
            )
