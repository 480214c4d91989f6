from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.choices import make
from pipeline.contracts import Hole, InputError, Part, Sample
from pipeline.corpora.folder import KEY_CHARACTERS, Folder, sample_key
from pipeline.experiment import Split

FSDD = Path(__file__).parents[4] / "shared" / "corpora" / "fsdd" / "recordings"
SPOKEN = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav"


def fill(root: Path, *names: str, content: bytes = b"sound") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def spoken(root: Path, labels: int = 3, speakers: str = "abcd", takes: int = 5) -> Path:
    return fill(
        root, *(f"{label}_{who}_{take}.wav" for label in range(labels) for who in speakers for take in range(takes))
    )


def parts(root: Path, split: Split | None = None, part_bytes: int = 10**9, **settings: Any) -> list[Part]:
    return list(make("corpora", "folder", {"path": str(root), **settings}).parts(split or Split(), part_bytes))


def names_by_split(listed: list[Part]) -> dict[str, set[str]]:
    named: dict[str, set[str]] = {}
    for part in listed:
        named.setdefault(part.split, set()).update(relative for relative, _ in part.source)
    return named


def test_a_sample_holds_the_files_bytes_and_its_label(tmp_path: Path) -> None:
    fill(tmp_path, "yes/0a_1.wav", content=b"RIFF")
    folder = Folder(path=str(tmp_path))
    (part,) = folder.parts(Split(), 100)
    assert part == Part(split="train", index=0, source=(["yes/0a_1.wav", 4],))
    sample = Sample(key="yes--0a_1", fields={"audio": b"RIFF", "label": b"yes"}, source="yes/0a_1.wav")
    assert list(folder.read(part)) == [sample]


def test_fields_are_named_as_the_dataset_wants_them(tmp_path: Path) -> None:
    fill(tmp_path, "3_x_0.wav")
    folder = Folder(path=str(tmp_path), pattern=SPOKEN, label="speaker", field="sound", target="who")
    (sample,) = folder.read(next(folder.parts(Split(), 1)))
    assert isinstance(sample, Sample)
    assert sample.fields == {"sound": b"sound", "who": b"x"}


def test_reading_a_part_needs_its_source_alone_which_is_plain_json(tmp_path: Path) -> None:
    spoken(tmp_path)
    for part in parts(tmp_path, pattern=SPOKEN, part_bytes=40):
        source = json.loads(json.dumps(part.source))
        again = Part(split=part.split, index=part.index, source=source)
        folder = Folder(path=str(tmp_path), pattern=SPOKEN)
        assert list(folder.read(again)) == list(folder.read(part))


def test_parts_are_cut_by_bytes_and_numbered_within_their_split(tmp_path: Path) -> None:
    spoken(tmp_path)  # 60 files of 5 bytes
    listed = parts(tmp_path, Split(rules={"test": {"take": "0"}}), part_bytes=50, pattern=SPOKEN)
    assert [(part.split, part.index, len(part.source)) for part in listed] == [
        ("test", 0, 10),
        ("test", 1, 2),
        *(("train", index, 10) for index in range(4)),
        ("train", 4, 8),
    ]


def test_each_part_is_a_fair_slice_of_its_split(tmp_path: Path) -> None:
    spoken(tmp_path, labels=3, takes=50)
    for part in parts(tmp_path, part_bytes=1000, pattern=SPOKEN):
        assert {relative[0] for relative, _ in part.source} == {"0", "1", "2"}


def test_a_file_larger_than_a_part_has_a_part_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, *(f"a/{index}.wav" for index in range(4)), content=bytes(100))
    assert [len(part.source) for part in parts(tmp_path, part_bytes=10)] == [1, 1, 1, 1]


def test_a_split_takes_what_matches_all_its_rules_and_shares_divide_the_rest(tmp_path: Path) -> None:
    spoken(tmp_path, speakers="abcdefghij", takes=10)
    rules = {"test": {"speaker": "a", "take": "[0-4]"}, "valid": {"speaker": "b"}}
    named = names_by_split(parts(tmp_path, Split(rules=rules, shares={"held": 0.3}), pattern=SPOKEN))
    assert named["test"] == {f"{label}_a_{take}.wav" for label in range(3) for take in range(5)}
    assert named["valid"] == {f"{label}_b_{take}.wav" for label in range(3) for take in range(10)}
    assert len(named["held"]) == pytest.approx(0.3 * 255, abs=25)


def test_a_file_that_two_splits_claim_is_refused_by_name(tmp_path: Path) -> None:
    spoken(tmp_path, speakers="ab", takes=10)
    rules = {"test": {"speaker": "a", "take": "[0-4]"}, "valid": {"speaker": "[ab]"}}
    with pytest.raises(InputError, match=r"_a_[0-4].wav' belongs to 'test' and to 'valid'"):
        parts(tmp_path, Split(rules=rules), pattern=SPOKEN)


def test_no_speaker_stands_in_two_splits_where_speakers_are_the_group(tmp_path: Path) -> None:
    spoken(tmp_path, speakers="abcdefghijkl")
    named = names_by_split(parts(tmp_path, Split(group=("speaker",), shares={"test": 0.4}), pattern=SPOKEN))
    speakers = {split: {name.split("_")[1] for name in members} for split, members in named.items()}
    assert not speakers["test"] & speakers["train"]
    assert all(len(members) % 15 == 0 for members in named.values())


def test_more_files_move_no_file_to_another_split(tmp_path: Path) -> None:
    split = Split(shares={"test": 0.5})
    before = names_by_split(parts(spoken(tmp_path), split, pattern=SPOKEN))
    after = names_by_split(parts(spoken(tmp_path, labels=9), split, pattern=SPOKEN))
    assert all(before[name] <= after[name] for name in before)


def test_files_that_do_not_match_are_counted_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "1_a_2.wav", "noise.wav", "deep/1_a_2.wav", "readme.txt", ".hidden.wav", ".git/1_a_2.wav")
    with caplog.at_level(logging.WARNING):
        assert names_by_split(parts(tmp_path, pattern=SPOKEN)) == {"train": {"1_a_2.wav"}}
    assert "2 of 3 files" in caplog.text
    assert "'deep/1_a_2.wav'" in caplog.text


def test_extensions_are_found_in_any_case(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.WAV", "a/x.Flac", "a/x.wav", "a/x.jpg")
    assert names_by_split(parts(tmp_path))["train"] == {"a/x.WAV", "a/x.Flac", "a/x.wav"}
    assert names_by_split(parts(tmp_path, extensions=[".jpg"]))["train"] == {"a/x.jpg"}


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "outside", "b/1.wav")
    root = fill(tmp_path / "corpus", "a/0.wav")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "outside" / "b")
    (root / "a" / "2.wav").symlink_to(root / "a" / "0.wav")
    assert names_by_split(parts(root))["train"] == {"a/0.wav", "a/2.wav", "b/1.wav"}


def test_a_pipe_named_like_a_sound_does_not_hang_the_reader(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.wav")
    os.mkfifo(tmp_path / "a" / "1.wav")
    assert names_by_split(parts(tmp_path))["train"] == {"a/0.wav"}


def test_a_file_that_cannot_be_read_leaves_a_hole_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a/0.wav", "a/gone.wav", "a/locked.wav")
    fill(tmp_path, "a/empty.wav", content=b"")
    (tmp_path / "a" / "dangling.wav").symlink_to(tmp_path / "nowhere")
    (part,) = parts(tmp_path)
    (tmp_path / "a" / "gone.wav").unlink()
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "locked.wav":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    found = list(Folder(path=str(tmp_path)).read(part))
    holes = {hole.source: (hole.key, hole.error, hole.reason) for hole in found if isinstance(hole, Hole)}
    assert holes == {
        "a/gone.wav": ("a--gone", "FileNotFoundError", "cannot be read: No such file or directory"),
        "a/locked.wav": ("a--locked", "PermissionError", "cannot be read: Permission denied"),
        "a/empty.wav": ("a--empty", "ValueError", "the file is empty"),
        "a/dangling.wav": ("a--dangling", "FileNotFoundError", "cannot be read: No such file or directory"),
    }
    assert [sample.source for sample in found if isinstance(sample, Sample)] == ["a/0.wav"]


def test_names_that_are_not_utf_8_leave_a_hole(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.wav")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff\xfe.wav")).write_bytes(b"sound")
    (part,) = parts(tmp_path)
    (hole,) = (found for found in Folder(path=str(tmp_path)).read(part) if isinstance(found, Hole))
    assert hole.source == r"a/\xff\xfe.wav"
    json.dumps(part.source).encode()


def test_unicode_names_and_labels_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, "grüße/日本.v1.wav")
    (part,) = parts(tmp_path)
    (sample,) = Folder(path=str(tmp_path)).read(part)
    assert isinstance(sample, Sample)
    assert sample.fields["label"].decode() == "grüße"
    assert sample.key.startswith("gr__e--___v1---")


@pytest.mark.parametrize(
    ("relative", "key"),
    [
        ("0_george_1.wav", "0_george_1"),
        ("yes/0a-7c_nohash_0.wav", "yes--0a-7c_nohash_0"),
        ("a/b/c.wav", "a--b--c"),
    ],
)
def test_plain_names_stay_readable_as_keys(relative: str, key: str) -> None:
    assert sample_key(relative, ".wav") == key


def test_names_that_could_be_confused_have_different_keys() -> None:
    names = ["a/x.wav", "a/x.flac", "a/x.WAV", "a--x.wav", "a-/x.wav", "a/-x.wav", "a---x.wav", "a.x.wav", "a x.wav"]
    names += ["ä/x.wav", "a/x.y.wav", f"{'a' * 90}.wav", f"{'a' * 91}.wav", "a/x", "a\n/x.wav"]
    names += [f"{sample_key(name, '.wav')}.wav" for name in names]
    keys = [sample_key(name, ".wav") for name in {*names}]
    assert len({*keys}) == len(keys)
    assert max(map(len, keys)) <= KEY_CHARACTERS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "("}, r"pattern '\(' is not a regular expression: missing \)"),
        ({"pattern": r"(?P<word>.*)_(?P<who>.*)"}, r"no group \(\?P<label>...\).*its groups: word, who"),
        ({"field": "label"}, "field and target are both 'label'"),
        ({"extensions": ["wav"]}, "extensions.0 = 'wav'"),
        ({"patern": "x"}, "did you mean 'pattern'"),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("corpora", "folder", {"path": "x", **settings})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"rules": {"test": {"sex": "f"}}}, "no group 'sex'.*choices: label, speaker, take"),
        ({"group": ("speeker",)}, "no group 'speeker'; did you mean 'speaker'"),
        ({"rules": {"test": {"take": "["}}}, r"split.rules.test.take = '\[' is not a regular expression"),
        ({"rules": {"test": {"speaker": "z"}}}, r"no file matches .* of 'test' \(files: train 60\)"),
        ({"rules": {"test": {"speaker": ".*"}}}, r"no file is left for 'train' \(files: test 60\)"),
        ({"group": ("label",), "shares": {"test": 0.0001}}, r"0.0001 for 'test' .* no group \(label\) fell into it"),
        ({"shares": {"test": 0.0}}, "no file fell into it"),
    ],
)
def test_a_split_that_gives_a_named_split_nothing_is_refused(
    tmp_path: Path, split: dict[str, Any], message: str
) -> None:
    spoken(tmp_path)
    folder = Folder(path=str(tmp_path), pattern=SPOKEN)
    with pytest.raises(InputError, match=message):
        folder.parts(Split(**split), 100)


def test_a_sub_folder_that_cannot_be_listed_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/0.wav", "locked/0.wav")
    scandir = os.scandir

    def guarded(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("pipeline.corpora.folder.os.scandir", guarded)
    with pytest.raises(InputError, match=r"locked' cannot be listed: Permission denied"):
        parts(tmp_path)


def test_a_folder_that_holds_nothing_of_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder '.*missing'"):
        parts(tmp_path / "missing")
    with pytest.raises(InputError, match=r"file.wav' is not a folder"):
        parts(fill(tmp_path, "file.wav") / "file.wav")
    with pytest.raises(InputError, match=r"none of 1 files lies in a sub-folder.*'file.wav' for example"):
        parts(tmp_path)
    with pytest.raises(InputError, match=r"none of 1 files matches .* 'file.wav' for example"):
        parts(tmp_path, pattern=SPOKEN)
    with pytest.raises(InputError, match=r"holds no file that ends in \.wav, \.flac"):
        parts(fill(tmp_path / "text", "a/readme.txt"))


def test_the_spoken_digits_split_as_their_authors_say() -> None:
    if not FSDD.is_dir():
        pytest.skip(f"the spoken digits are not at {FSDD}")
    split = Split(rules={"test": {"take": "[0-4]"}}, group=("speaker", "take"), shares={"valid": 0.1})
    named = names_by_split(parts(FSDD, split, part_bytes=2_000_000, pattern=SPOKEN))
    assert len(named["test"]) == 300
    assert len(named["train"]) + len(named["valid"]) == 2700
    assert "0_george_1.wav" in named["test"]
