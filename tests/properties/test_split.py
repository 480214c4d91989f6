from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts import InputError, Part
from pipeline.corpora.folder import KEY_CHARACTERS, Folder, sample_key, split_of
from pipeline.experiment import Split

# Any file name that Linux takes and that is not hidden.
NAMES = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
    .filter(lambda name: not name.startswith(".") and len(name.encode()) < 200)
)  # fmt: skip
EXTENSIONS = st.sampled_from([".wav", ".flac", ".WAV", ".ogg"])
PATHS = st.builds(
    lambda folders, name, extension: "/".join([*folders, name + extension]),
    st.lists(NAMES, min_size=1, max_size=3),
    NAMES,
    EXTENSIONS,
)
SHARES = st.sampled_from([{}, {"test": 0.3}, {"test": 0.2, "valid": 0.4}])


@contextmanager
def folder_of(paths: dict[str, int]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for relative, size in paths.items():
            path = Path(name, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        yield Path(name)


def shuffled_listing(seed: int) -> Any:
    """os.scandir, but in another order."""
    scandir = os.scandir

    @contextmanager
    def listing(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = list(entries)
        Random(seed).shuffle(found)
        yield found

    return patch("pipeline.corpora.folder.os.scandir", listing)


@settings(max_examples=50, deadline=None)
@given(
    files=st.dictionaries(PATHS, st.integers(0, 300), min_size=1, max_size=25),
    shares=SHARES,
    part_bytes=st.integers(1, 1000),
    seed=st.integers(0, 100),
)
def test_every_file_lands_in_exactly_one_part_whatever_the_order_of_the_listing(
    files: dict[str, int], shares: dict[str, float], part_bytes: int, seed: int
) -> None:
    # a name cannot be both a file and a folder
    files = {path: size for path, size in files.items() if not any(other.startswith(f"{path}/") for other in files)}
    with folder_of(files) as root:
        folder, split = Folder(path=str(root)), Split(shares=shares)
        try:
            parts = list(folder.parts(split, part_bytes))
        except InputError:
            return  # too few files for these shares
        with shuffled_listing(seed):
            assert list(folder.parts(split, part_bytes)) == parts
    found = [(relative, size) for part in parts for relative, size in part.source]
    assert sorted(found) == sorted(files.items())
    assert_well_cut(parts, part_bytes)


def assert_well_cut(parts: list[Part], part_bytes: int) -> None:
    for name in {part.split for part in parts}:
        members = [part for part in parts if part.split == name]
        assert [part.index for part in members] == list(range(len(members)))
        for part, following in pairwise(members):
            size = sum(size for _, size in part.source)
            assert size <= part_bytes or len(part.source) == 1
            assert size + following.source[0][1] > part_bytes


@given(
    groups=st.lists(st.fixed_dictionaries({"who": st.text(max_size=3), "take": st.text(max_size=3)}), max_size=30),
    shares=SHARES,
    rules=st.sampled_from([{}, {"held": {"who": "[a-m].*"}}, {"held": {"who": "a.*"}, "test": {"who": "[^a]a"}}]),
)
def test_a_group_never_stands_in_two_splits(
    groups: list[dict[str, str]], shares: dict[str, float], rules: dict[str, dict[str, str]]
) -> None:
    split = Split(rules=rules, group=("who",), shares=shares)
    homes: dict[str, set[str]] = {}
    for number, group in enumerate(groups):
        homes.setdefault(group["who"], set()).add(split_of(split, group, f"{number}.wav"))
    assert all(len(home) == 1 for home in homes.values())
    assert {name for home in homes.values() for name in home} <= {*rules, *shares, "train"}


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0, 0.3)), st.text())
def test_the_order_in_which_shares_are_written_does_not_matter(shares: dict[str, float], relative: str) -> None:
    backwards = dict(reversed(shares.items()))
    assert split_of(Split(shares=shares), {}, relative) == split_of(Split(shares=backwards), {}, relative)


def test_shares_are_kept_to_over_many_files() -> None:
    split = Split(shares={"test": 0.1, "valid": 0.25})
    homes = [split_of(split, {}, f"{number}.wav") for number in range(20_000)]
    assert abs(homes.count("test") / 20_000 - 0.1) < 0.01
    assert abs(homes.count("valid") / 20_000 - 0.25) < 0.01


@settings(max_examples=300)
@given(st.lists(PATHS | NAMES | st.from_regex(r"[a/_-]{1,4}\.wav", fullmatch=True), unique=True, max_size=30))
def test_keys_are_unique_and_safe_for_hostile_names(paths: list[str]) -> None:
    paths = list({*paths, *(f"{sample_key(path, '.wav')}.wav" for path in paths)})
    keys = [sample_key(path, ".wav") for path in paths]
    assert len({*keys}) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) and len(key) <= KEY_CHARACTERS for key in keys)
