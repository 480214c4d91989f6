"""Law 4: a shard set is plain WebDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline.data.ingest import ingest
from pipeline.data.manifest import Manifest
from pipeline.experiment import FieldSpec, Split
from tests.recordings import dataset_of, in_folder, stream_of
from tests.shards import pieces

pytestmark = pytest.mark.usefixtures("kill_after")


def read_as_webdataset(data_dir: Path, manifest: Manifest) -> dict[str, dict[str, bytes]]:
    urls = [str(data_dir / manifest.identity / f"{shard.name}.tar") for shard in manifest.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    samples = {
        sample["__key__"]: {name: value for name, value in sample.items() if name[0] != "_"} for sample in dataset
    }
    dataset.close()
    return samples


@pytest.mark.parametrize("store", ["features", "raw"])
def test_webdataset_reads_the_same_samples(tmp_path: Path, wavs: Path, store: Any) -> None:
    audio, label = dataset_of(wavs).fields
    spec = FieldSpec(name="audio", modality=audio.modality, role="input", store=store)
    dataset = dataset_of(wavs, fields=(spec, label), split=Split())
    manifest = ingest(dataset, in_folder(tmp_path / "data"))
    samples = read_as_webdataset(tmp_path / "data", manifest)
    ours = {
        key: (values, int(place))
        for step in stream_of(tmp_path / "data").steps(0, 3)
        for batch in step
        for key, values, place in zip(
            batch.keys, pieces(batch.inputs["audio"]), batch.targets["label"].values, strict=True
        )
    }
    assert sorted(samples) == sorted(ours) and len(ours) == 12
    info, modality = manifest.fields["audio"], audio.modality.make("modalities")
    for key, fields in samples.items():
        spoken = key.partition("--")[0]
        wav = (wavs / f"{key.replace('--', '/')}.wav").read_bytes()
        assert fields.pop("label.txt") == spoken.encode()
        assert fields == ({"audio.raw": wav} if store == "raw" else {"audio.npy": modality.encode(wav)})
        values, place = ours[key]
        plain = modality.array(modality.encode(wav))
        np.testing.assert_allclose(values, (plain - info.mean) / info.std, rtol=1e-4, atol=1e-5)
        assert manifest.fields["label"].vocabulary[place] == spoken
