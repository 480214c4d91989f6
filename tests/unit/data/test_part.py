from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import Hole, Part, Sample
from pipeline.data import part as module
from pipeline.data.part import FATAL, attempt, write_part
from pipeline.data.tar import Shard, read_facts
from pipeline.experiment import Dataset, FieldSpec, choose, to_dict
from pipeline.files import TEMPORARY
from tests.recordings import contents, dataset_of, record, times

ROOT = Path(__file__).parents[3]


def first_part(dataset: Dataset, split: str = "train") -> Part:
    parts = dataset.corpus.make("corpora").parts(dataset.split, int(dataset.shard_mb * 1e6))
    return next(part for part in parts if part.split == split)


def hostile(root: Path, **texts: str) -> Dataset:
    """Texts in files, read by a modality that does what they say."""
    (root / "a").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / "a" / f"{name}.txt").write_text(text)
    fields = (FieldSpec(name="text", modality=choose("tests.hostile"), role="input"),)
    corpus = choose("folder", path=str(root), extensions=[".txt"], field="text")
    return Dataset(name="texts", corpus=corpus, fields=fields)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_part_becomes_a_shard_with_its_index_and_a_row(tmp_path: Path, out: Path) -> None:
    dataset = dataset_of(record(tmp_path / "wavs"), shard_mb=1)
    row = write_part(to_dict(dataset), first_part(dataset), out)
    assert sorted(contents(out)) == ["train-000000.arrow", "train-000000.tar"]
    shard = Shard(out / "train-000000.tar", out / "train-000000.arrow", row["samples"], row["bytes"])
    assert sorted(shard.key(number) for number in range(10)) == [
        f"{a}--{b}" for a in ("no", "yes") for b in range(1, 6)
    ]
    assert row["samples"] == 10 and row["holes"] == []
    assert row["arrays"] == {"audio": {"dtype": "<f4", "shape": [4]}}
    assert row["statistics"]["label"] == {"counts": {"no": 5, "yes": 5}}
    assert json.loads(json.dumps(row)) == row == read_facts(out / "train-000000.arrow")


def test_a_whole_shard_is_not_made_again(tmp_path: Path, out: Path) -> None:
    dataset = dataset_of(record(tmp_path / "wavs"))
    row, before = write_part(to_dict(dataset), first_part(dataset), out), times(out)
    assert write_part(to_dict(dataset), first_part(dataset), out) == row
    assert times(out) == before


@pytest.mark.parametrize("damage", ["no tar", "short tar", "no index", "half an index", "other facts"])
def test_half_a_shard_is_made_again(tmp_path: Path, out: Path, damage: str) -> None:
    dataset = dataset_of(record(tmp_path / "wavs"))
    write_part(to_dict(dataset), first_part(dataset), out)
    whole, tar, index = contents(out), out / "train-000000.tar", out / "train-000000.arrow"
    match damage:
        case "no tar":
            tar.unlink()
        case "short tar":
            tar.write_bytes(tar.read_bytes()[:-512])
        case "no index":
            index.unlink()
        case "half an index":
            index.write_bytes(index.read_bytes()[:-30])
        case "other facts":
            other = dataset_of(tmp_path / "wavs", version=2)
            write_part(to_dict(other), first_part(other), out)
            assert contents(out) != whole
    write_part(to_dict(dataset), first_part(dataset), out)
    assert contents(out) == whole


def test_whatever_a_decoder_raises_leaves_a_hole(tmp_path: Path, out: Path) -> None:
    texts = {name: name for name in ("zero", "memory", "surrogate", "novel")}
    dataset = hostile(tmp_path, fine="fine", **texts)
    row = write_part(to_dict(dataset), first_part(dataset), out)
    assert row["samples"] == 1
    faults = {hole["source"]: (hole["error"], hole["reason"]) for hole in row["holes"]}
    assert {source: fault for source, (fault, _) in faults.items()} == {
        "a/zero.txt": "ZeroDivisionError",
        "a/memory.txt": "MemoryError",
        "a/surrogate.txt": "UnicodeEncodeError",
        "a/novel.txt": "ValueError",
    }
    for _, reason in faults.values():
        assert len(reason) <= module.REASON
        reason.encode()


def test_a_field_that_a_sample_lacks_leaves_a_hole(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = hostile(tmp_path, one="one")

    def read(self: Any, part: Part) -> Iterator[Sample | Hole]:
        yield Sample(key="x", fields={"other": b""}, source="x")
        yield Sample(key="a.b", fields={"text": b"two"}, source="dotted")
        yield Sample(key="y", fields={"text": b"one"}, source="y")
        yield Sample(key="y", fields={"text": b"two"}, source="y again")
        yield Hole(key="h\udcff", source="h\udcff", reason="\udcff", error="OSError")

    monkeypatch.setattr("pipeline.corpora.folder.Folder.read", read)
    row = write_part(to_dict(dataset), first_part(dataset), out)
    assert [(hole["source"], hole["error"]) for hole in row["holes"]] == [
        ("x", "KeyError"),
        ("dotted", "ValueError"),
        ("y again", "ValueError"),
        ("h\\udcff", "OSError"),
    ]
    assert row["statistics"]["text"] == {"counts": {"one": 1}}


def test_a_shard_of_holes_is_written_empty(tmp_path: Path, out: Path) -> None:
    dataset = hostile(tmp_path, zero="zero")
    row = write_part(to_dict(dataset), first_part(dataset), out)
    assert row["samples"] == 0 and len(row["holes"]) == 1
    assert write_part(to_dict(dataset), first_part(dataset), out) == row


def test_a_raw_field_keeps_its_bytes_and_teaches_all_the_same(tmp_path: Path, out: Path) -> None:
    stored = dataset_of(record(tmp_path / "wavs"))
    raw = dataset_of(
        tmp_path / "wavs",
        fields=(
            FieldSpec(name="audio", modality=stored.fields[0].modality, role="input", store="raw"),
            stored.fields[1],
        ),
    )
    (out / "raw").mkdir()
    row, raw_row = (
        write_part(to_dict(dataset), first_part(dataset), folder)
        for dataset, folder in ((stored, out), (raw, out / "raw"))
    )
    assert raw_row["statistics"] == row["statistics"] and raw_row["arrays"] == row["arrays"]
    shard = Shard(out / "raw/train-000000.tar", out / "raw/train-000000.arrow", raw_row["samples"], raw_row["bytes"])
    offset, size, length, _ = shard.spot("audio", 0)
    wav = (tmp_path / "wavs" / f"{shard.key(0).replace('--', '/')}.wav").read_bytes()
    assert shard.path.read_bytes()[offset : offset + size] == wav and length == -1


# A sample that kills its process


def write_in_a_process(dataset: Dataset, out: Path) -> int:
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom pipeline.contracts import Part\n"
        "from pipeline.data.part import write_part\nplain, part, out = json.loads(sys.argv[1])\n"
        "write_part(plain, Part(split=part[0], index=part[1], source=part[2]), Path(out))\n"
    )
    part = first_part(dataset)
    given = json.dumps([to_dict(dataset), [part.split, part.index, part.source], str(out)])
    return subprocess.run([sys.executable, "-c", program, given], cwd=ROOT, check=False).returncode


def test_a_sample_that_kills_every_process_is_left_out_in_the_end(tmp_path: Path, out: Path) -> None:
    dataset = hostile(tmp_path, one="one", two="die", three="three")
    codes = [write_in_a_process(dataset, out) for _ in range(FATAL + 1)]
    assert codes == [-9] * FATAL + [0]
    row = read_facts(out / "train-000000.arrow")
    assert row is not None and row["samples"] == 2
    (hole,) = row["holes"]
    assert hole["source"] == "a/two.txt" and hole["reason"] == f"{FATAL} processes died of it"
    assert not [path for path in out.iterdir() if path.name.endswith(".attempts")]


def test_deaths_at_different_samples_convict_none(tmp_path: Path) -> None:
    path = tmp_path / f"{TEMPORARY}x.attempts"
    for died_at in ("a", "b", "a", "ü" * 100, "c\udcff", "b"):
        with attempt(path) as note:
            note("z")
            note(died_at)
            left = path.read_bytes()
        path.write_bytes(left)  # as a killed process leaves it
    with attempt(path) as note:
        assert [note(key) for key in ("z", "a", "b", "c", "ü" * 100, "c\udcff")] == [0, 2, 2, 0, 1, 1]
    assert not path.exists()
