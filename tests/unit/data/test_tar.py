from __future__ import annotations

import gc
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.contracts import DataError
from pipeline.data.tar import Shard, npy_layout, open_tar, read_facts, write_index, write_tar
from tests.shards import Stored, features, npy, sample

THREE = [sample(key) for key in ("one", "two", "three")]


def write(folder: Path, samples: list[tuple[str, Stored]], name: str = "train-000000") -> Shard:
    tar, index = folder / f"{name}.tar", folder / f"{name}.arrow"
    table = write_tar(tar, samples)
    write_index(index, table, {"name": name})
    return Shard(tar, index, len(samples), tar.stat().st_size)


def payload(shard: Shard, field: str, row: int) -> bytes:
    spot = shard.spot(field, row)
    buffer = bytearray(spot[1])
    shard.read_into(memoryview(buffer), shard.key(row), field, spot)
    return bytes(buffer)


def num_open() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_members_are_sorted_and_belong_to_nobody_at_no_time(tmp_path: Path) -> None:
    write(tmp_path, THREE)
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        f"{key}.{member}" for key in ("one", "two", "three") for member in ("label.txt", "sound.npy")
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert not any(member.pax_headers for member in members)


def test_equal_samples_give_equal_bytes_in_whatever_order_their_fields_come(tmp_path: Path) -> None:
    turned = [(key, dict(reversed(fields.items()))) for key, fields in THREE]
    for name, samples in (("a", THREE), ("b", turned)):
        write(tmp_path, samples, name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    write_index(tmp_path / "a.arrow", write_tar(tmp_path / "a.tar", THREE), {})
    write_index(tmp_path / "b.arrow", write_tar(tmp_path / "b.tar", turned), {})
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


def test_the_index_points_at_bare_numbers_and_at_whole_texts(tmp_path: Path) -> None:
    shard = write(tmp_path, THREE)
    assert [shard.key(row) for row in range(3)] == ["one", "two", "three"]
    for row, key in enumerate(("one", "two", "three")):
        assert payload(shard, "sound", row) == features(key).tobytes()
        assert shard.spot("sound", row)[2] == len(features(key))
        assert payload(shard, "label", row) == THREE[row][1]["label"][1]
        assert shard.spot("label", row)[2] == -1
    assert shard.arrays == {"sound": {"dtype": "<f4", "shape": [3]}}


def test_empty_payloads_and_odd_keys_are_kept(tmp_path: Path) -> None:
    shard = write(tmp_path, [("größe 1", {"text": ("txt", b"")}), ("日本", {"text": ("txt", b"x")})])
    assert [(shard.key(row), payload(shard, "text", row)) for row in range(2)] == [("größe 1", b""), ("日本", b"x")]
    with tarfile.open(shard.path) as archive:
        assert archive.getnames() == ["größe 1.text.txt", "日本.text.txt"]


def test_a_shard_of_nothing_can_be_written(tmp_path: Path) -> None:
    table = write_tar(tmp_path / "a.tar", [])
    write_index(tmp_path / "a.arrow", table, {"samples": 0})
    assert table.num_rows == 0 and table.column_names == ["key"]
    assert read_facts(tmp_path / "a.arrow") == {"samples": 0}


@pytest.mark.parametrize(
    ("key", "fields", "reason"),
    [
        ("", {}, "is empty, taken"),
        ("a.b", {}, "dot, slash or zero"),
        ("a/b", {}, "dot, slash or zero"),
        ("a\0b", {}, "dot, slash or zero"),
        ("one", {}, "'one' is empty, taken"),
        ("x" * 95, {}, "longer than 100 bytes"),
        ("ü" * 46, {}, "longer than 100 bytes"),
        ("\udcff", {}, "surrogates not allowed"),
        ("four", {"sound": None}, r"fields \['label'\], its neighbours \['label', 'sound'\]"),
        ("four", {"more": ("txt", b"")}, "'more', 'sound'"),
        ("four", {"sound": ("npy", b"RIFF")}, "magic"),
        ("four", {"sound": ("npy", npy(np.zeros((2, 3), np.float32))[:-1])}, "which 23 bytes are not"),
        ("four", {"sound": ("npy", npy(np.zeros((2, 3), np.float64)))}, "its neighbours are"),
        ("four", {"sound": ("npy", npy(np.zeros((2, 4), np.float32)))}, "its neighbours are"),
        ("four", {"sound": ("npy", npy(np.float32(1)))}, "with a step axis"),
        ("four", {"sound": ("npy", npy(np.array([None, "a"])))}, "plain numbers"),
        ("four", {"sound": ("npy", npy(np.asfortranarray(np.zeros((2, 3), np.float32))))}, "C-ordered"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(
    tmp_path: Path, key: str, fields: dict[str, Any], reason: str
) -> None:
    with open_tar(tmp_path / "a.tar") as writer:
        for each in THREE:
            writer.add(*each)
        given = {name: stored for name, stored in {**sample("four")[1], **fields}.items() if stored is not None}
        with pytest.raises(ValueError, match=reason):
            writer.add(key, given)
        writer.add(*sample("five"))
    table = write_tar(tmp_path / "b.tar", [*THREE, sample("five")])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert writer.index().equals(table, check_metadata=True)


def test_an_npy_header_of_version_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not of version 1\.0"):
        npy_layout(npy([1.0])[:6] + b"\x02\x00" + bytes(200))


@pytest.mark.parametrize("content", [None, b"", b"ARROW1", b"no arrow file at all" * 20])
def test_where_no_whole_index_is_there_are_no_facts(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.arrow").write_bytes(content)
    assert read_facts(tmp_path / "a.arrow") is None


def test_a_cut_index_has_no_facts_and_opens_no_shard(tmp_path: Path) -> None:
    shard = write(tmp_path, THREE)
    assert read_facts(shard.index) == {"name": "train-000000"}
    whole, size = shard.index.read_bytes(), shard.path.stat().st_size
    for length in range(0, len(whole), 97):
        shard.index.write_bytes(whole[:length])
        assert read_facts(shard.index) is None
        with pytest.raises(DataError, match=r"index .*train-000000\.arrow cannot be read"):
            Shard(shard.path, shard.index, 3, size)


def test_an_index_that_cannot_be_true_opens_no_shard(tmp_path: Path) -> None:
    tar, index = tmp_path / "a.tar", tmp_path / "a.arrow"
    table = write_tar(tar, THREE)
    size = tar.stat().st_size
    for column, value in (("sound.offset", size), ("label.offset", -1), ("label.size", -1), ("sound.length", 10**6)):
        changed = [value, *table.column(column).to_pylist()[1:]]
        place = table.column_names.index(column)
        write_index(index, table.set_column(place, column, pa.array(changed, table.schema.field(column).type)), {})
        with pytest.raises(DataError, match=rf"{index} is damaged: one\.{column.partition('.')[0]} cannot lie there"):
            Shard(tar, index, 3, size)
    write_index(index, table.drop_columns(["label.crc"]), {})
    with pytest.raises(DataError, match=rf"{index} cannot be read"):
        Shard(tar, index, 3, size)


def test_a_shard_that_is_not_what_its_manifest_says_does_not_open(tmp_path: Path) -> None:
    shard = write(tmp_path, THREE)
    tar, index, size = shard.path, shard.index, shard.path.stat().st_size
    with pytest.raises(DataError, match=rf"{index} has 3 samples, its manifest says 4"):
        Shard(tar, index, 4, size)
    with pytest.raises(DataError, match=rf"{tar} has {size} bytes, its manifest says 7"):
        Shard(tar, index, 3, 7)
    tar.unlink()
    with pytest.raises(DataError, match=rf"{tar} cannot be read: .*No such file"):
        Shard(tar, index, 3, size)
    index.unlink()
    with pytest.raises(DataError, match=rf"{index} cannot be read"):
        Shard(tar, index, 3, size)


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-000000\.tar has no field 'video'"):
        write(tmp_path, THREE).spot("video", 0)


def test_a_flipped_byte_in_any_payload_is_seen(tmp_path: Path) -> None:
    shard = write(tmp_path, THREE)
    for field in ("sound", "label"):
        for row in range(3):
            offset, size, *_ = shard.spot(field, row)
            for place in {offset, offset + size // 2, offset + size - 1}:
                whole = shard.path.read_bytes()
                shard.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
                with pytest.raises(DataError, match=rf"{shard.path} is damaged.*{shard.key(row)}\.{field}"):
                    payload(shard, field, row)
                shard.path.write_bytes(whole)


@pytest.mark.parametrize("column", ["key", *(f"sound.{number}" for number in ("offset", "size", "length", "crc"))])
def test_any_wrong_number_in_an_index_is_seen(tmp_path: Path, column: str) -> None:
    tar, index = tmp_path / "a.tar", tmp_path / "a.arrow"
    table = write_tar(tar, [sample(key) for key in ("one", "two", "three")])
    turned = table.column(column).to_pylist()[::-1]
    write_index(
        index,
        table.set_column(table.column_names.index(column), column, pa.array(turned, table.schema.field(column).type)),
        {},
    )
    with pytest.raises(DataError, match=r"a\.(arrow|tar) is damaged"):
        payload(Shard(tar, index, 3, tar.stat().st_size), "sound", 0)


def test_an_index_of_another_shard_is_seen(tmp_path: Path) -> None:
    shard, other = write(tmp_path, THREE), write(tmp_path, [sample(key) for key in ("ten", "six", "seven")], "other")
    assert shard.path.stat().st_size == other.path.stat().st_size
    crossed = Shard(shard.path, other.index, 3, shard.path.stat().st_size)
    with pytest.raises(DataError, match=rf"{shard.path} is damaged, or its index {other.index} is"):
        payload(crossed, "sound", 0)


def test_a_tar_that_shrinks_while_it_is_open_raises(tmp_path: Path) -> None:
    shard = write(tmp_path, THREE)
    os.truncate(shard.path, shard.spot("sound", 2)[0] + 5)
    assert payload(shard, "sound", 1)
    with pytest.raises(DataError, match=rf"{shard.path} ends at byte \d+, inside three\.sound"):
        payload(shard, "sound", 2)


def test_a_shard_that_nobody_holds_is_closed(tmp_path: Path) -> None:
    gc.collect()
    before = num_open()
    shards = [write(tmp_path, THREE) for _ in range(5)]
    assert num_open() == before + 5
    del shards
    assert num_open() == before


def test_threads_read_one_shard_together(tmp_path: Path) -> None:
    keys = [f"key{number}" for number in range(50)]
    shard, wrong = write(tmp_path, [sample(key) for key in keys]), list[str]()

    def read() -> None:
        wrong.extend(key for row, key in enumerate(keys) if payload(shard, "sound", row) != features(key).tobytes())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
