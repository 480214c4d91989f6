"""ingest with a real Ray: laws 3 and 5, and what the command line says."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import webdataset

from jobs.cli import experiment_of, run
from jobs.ingest import main
from pipeline.contracts import DataError, TooManyHolesError
from pipeline.data.ingest import ingest
from pipeline.data.manifest import ShardSet
from pipeline.data.part import FATAL
from pipeline.data.tar import read_facts
from pipeline.experiment import Dataset, FieldSpec, choose
from pipeline.files import TEMPORARY
from pipeline.scale import Scale
from tests.recordings import contents, dataset_of, in_folder, record, stream_of, times

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("wavs"), takes=24)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, wavs: Path, cluster: None) -> Path:
    data_dir = tmp_path_factory.mktemp("undisturbed")
    manifest = ingest(experiment_of("recordings", settings(wavs)).dataset, in_folder(data_dir))
    assert len(manifest.shards) > 15 and manifest.splits.keys() == {"train", "test"}
    return data_dir


def settings(wavs: Path) -> list[str]:
    """Of the recipe `recordings`: small features, many shards."""
    audio = ["fields.audio.sample_rate_hz=8000", "fields.audio.mels=4"]
    return [f"corpus.path={wavs}", *audio, 'split.shares={"test": 0.2}', "shard_mb=0.006"]


def test_ingesting_twice_gives_the_same_bytes_however_many_tasks_there_are(
    tmp_path: Path, wavs: Path, undisturbed: Path
) -> None:
    dataset = experiment_of("recordings", settings(wavs)).dataset
    ingest(dataset, Scale(data_dir=str(tmp_path / "one"), parallel=1))
    assert contents(tmp_path / "one") == contents(undisturbed)
    before = times(tmp_path)
    assert ingest(dataset, in_folder(tmp_path / "one")) == ShardSet(tmp_path / "one", "recordings@1").manifest
    assert times(tmp_path) == before


def test_webdataset_and_the_stream_find_every_recording(tmp_path: Path, wavs: Path) -> None:
    manifest = ingest(dataset_of(wavs), in_folder(tmp_path))
    names = {shard.name for shard in manifest.shards if shard.split == "train"}
    dataset = webdataset.WebDataset(
        [str(tmp_path / f"words@1/{name}.tar") for name in sorted(names)], shardshuffle=False
    )
    theirs = [sample["__key__"] for sample in dataset]
    dataset.close()
    stream = stream_of(tmp_path)
    ours = [key for step in stream.steps(0, stream.plan.steps_per_epoch) for batch in step for key in batch.keys]
    assert sorted(theirs) == sorted(ours) == sorted(f"{a}--{take}" for a in ("no", "yes") for take in range(1, 24))


# Killed


def building(data_dir: Path) -> list[Path]:
    """What an ingest that has not ended has written."""
    return [path for folder in data_dir.glob(".*@*-*") for path in folder.iterdir()]


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_ingest_that_is_run_again_gives_the_same_bytes(
    tmp_path: Path, wavs: Path, undisturbed: Path, seed: int
) -> None:
    """The driver dies, its tasks live on for a while: the second ingest runs beside them."""
    shards = [0, *random.Random(seed).sample(range(1, 12), 2)][seed]
    command = [sys.executable, "-m", "jobs.ingest", "recordings", *settings(wavs), "--scale", f"data_dir={tmp_path}"]
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address}, stderr=subprocess.DEVNULL)
    if shards:
        wait_until(lambda: sum(path.suffix == ".arrow" for path in building(tmp_path)) >= shards, process)
    else:
        wait_until(lambda: any(path.name.startswith(TEMPORARY) for path in building(tmp_path)), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "recordings@1").exists()
    for index in (path for path in building(tmp_path) if path.suffix == ".arrow" and path.name[0] != "."):
        facts = read_facts(index)  # an index means that its tar is whole
        assert facts is not None and index.with_suffix(".tar").stat().st_size == facts["bytes"]
    ingest(experiment_of("recordings", settings(wavs)).dataset, in_folder(tmp_path))
    assert contents(tmp_path) == contents(undisturbed)


def texts(tmp_path: Path, **contents: str) -> Dataset:
    """Files of text, read by a modality that does what they say; one shard."""
    (tmp_path / "texts/a").mkdir(parents=True)
    for name, text in contents.items():
        (tmp_path / f"texts/a/{name}.txt").write_text(text)
    fields = (FieldSpec(name="text", modality=choose("tests.hostile"), role="input"),)
    corpus = choose("folder", path=str(tmp_path / "texts"), extensions=[".txt"], field="text")
    return Dataset(name="texts", corpus=corpus, fields=fields)


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    died = tmp_path / "died"
    dataset = texts(tmp_path, **{f"t{number}": f"text {number}" for number in range(9)}, t9=f"die once: {died}")
    ingest(dataset, in_folder(tmp_path / "killed"))
    assert died.exists()
    assert ingest(dataset, in_folder(tmp_path / "undisturbed")).quarantined == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_a_sample_that_kills_its_workers_leaves_a_hole(tmp_path: Path) -> None:
    dataset = texts(tmp_path, one="one", die="die", two="two", zero="zero")
    manifest = ingest(dataset, in_folder(tmp_path / "data"), tolerance=0.5)
    assert manifest.splits == {"train": 2}
    holes = pq.read_table(tmp_path / "data/texts@1/quarantine.parquet").to_pylist()
    reasons = {hole["source"]: hole["reason"] for hole in holes}
    assert reasons == {"a/die.txt": f"{FATAL} processes died of it", "a/zero.txt": "integer division or modulo by zero"}


def test_a_shard_that_cannot_be_written_stops_ingest_and_leaves_ray_as_it_is(tmp_path: Path) -> None:
    dataset = texts(tmp_path, one="one", zero="zero")
    with pytest.raises(TooManyHolesError):
        ingest(dataset, in_folder(tmp_path / "data"), tolerance=0)
    (tar,) = (tmp_path / "data").rglob("train-000000.tar")
    tar.unlink()
    (tar / "in the way").mkdir(parents=True)
    with pytest.raises(DataError, match=r"shard train-000000 cannot be written: .*Is a directory"):
        ingest(dataset, in_folder(tmp_path / "data"), tolerance=0.5)
    (tar / "in the way").rmdir()
    tar.rmdir()
    assert ingest(dataset, in_folder(tmp_path / "data"), tolerance=0.5).splits == {"train": 1}


# The command line


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """`jobs.ingest` in this process: its exit code, output and errors."""

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ingest", *arguments, "--scale", f"data_dir={tmp_path / 'data'}"])
        with pytest.raises(SystemExit) as stopped:
            run(main)
        written = capfd.readouterr()
        assert "Traceback" not in written.out + written.err
        return int(stopped.value.code or 0), written.out, written.err

    return invoke


def test_the_command_says_what_it_made(
    tmp_path: Path, wavs: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = command("recordings", *settings(wavs))
    assert code == 0
    assert out.startswith(f"{tmp_path}/data/recordings@1: ") and "samples: test " in out
    lines = err.strip().splitlines()
    assert all(line.startswith("ingest recordings@1: ") for line in lines), err
    assert " 48 samples (" in lines[-1] and " 0 quarantined [" in lines[-1]


def test_too_many_holes_end_with_code_3_and_how_many_and_why(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    wavs = record(tmp_path / "wavs", takes=12)
    for take in range(6):
        (wavs / f"no/{take}.wav").write_bytes(b"noise " * 300)
    code, out, err = command("recordings", *settings(wavs))
    assert code == 3 and out == ""
    assert "error: 6 of 24 samples of recordings@1 " in err and "more than the 10% tolerated; the first: no/" in err
    assert "not a sound" in err
    code, out, err = command("recordings", *settings(wavs), "--tolerance", "0.25")
    assert code == 0 and f"6 quarantined, see {tmp_path}/data/recordings@1/quarantine.parquet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recordings", "corpus.path=/nowhere"], "there is no folder '/nowhere'"),
        (["recordings", "split.shares.valid=0.95"], "leave nothing for 'train'"),
        (
            ["recordings", "corpus.path=WAVS", "split.shares.valid=0.0001"],
            "split.shares: 0.0001 for 'valid' is so little",
        ),
        (["recordings", "corpus.path=WAVS", "split.group=speaker"], "has no group 'speaker'"),
        (["recordings", "fields.audio.mel=3"], "there is no setting 'mel'; did you mean 'mels'?"),
        (["recordings", "corpus=foldr"], "corpora has no 'foldr'; did you mean 'folder'?"),
        (["recodings"], "there is no recipe 'recodings'; did you mean 'recordings'?"),
        (["recordings", "corpus.path"], "'corpus.path' is not of the form key=value"),
        (["recordings", "corpus.path=WAVS", "--tolerance", "7"], "tolerance = 7.0: must be a share"),
        (["recordings", "--scale", "data_dri=x"], "there is no setting 'data_dri'; did you mean 'data_dir'?"),
        (["recordings", "corpus.path=WAVS", 'corpus.extensions=[".ogg"]'], "holds no file that ends in .ogg"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_ends_with_code_2_and_one_sentence(
    wavs: Path, command: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    code, out, err = command(*(argument.replace("WAVS", str(wavs)) for argument in arguments))
    assert code == 2 and out == ""
    assert message in err and err.startswith("error: ") and len(err.splitlines()) == 1
