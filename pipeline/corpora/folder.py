"""Folder: one file a sample, told apart by its path.

In: a folder tree. Out: samples of two fields, the file's bytes and its label (UTF-8). With a `pattern` the named groups
of a path say what the label is and what the split may use (speaker, take, ...):

    Folder(path="recordings", pattern=r"(?P<label>\\d)_(?P<speaker>\\w+)_(?P<take>\\d+)\\.wav")

Without one, the label is the name of the folder that the file lies in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

import pydantic

from pipeline.choices import settings, suggest
from pipeline.contracts import Hole, InputError, Part, Sample
from pipeline.experiment import Split

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".sph")
KEY_CHARACTERS = 80  # a member is named key.field.suffix, and USTAR gives a name 100 bytes
PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")
TRAIN = "train"
log = logging.getLogger(__name__)


@settings
class Folder:
    """All files under `path` with one of the `extensions`; hidden files and folders are passed over.

    `pattern`: a regular expression that the whole path below `path` must match ("/" between folders); files that do
    not match are ignored, which a warning counts. `label`: the group that becomes the target. `field` and `target`:
    names of the two fields of a sample.
    """

    path: str
    pattern: str | None = None
    label: str = "label"
    field: str = "audio"
    target: str = "label"
    extensions: Annotated[
        tuple[Annotated[str, pydantic.Field(pattern=r"^\.[a-z0-9]+$")], ...], pydantic.Field(min_length=1)
    ] = AUDIO

    def __post_init__(self) -> None:
        if self.field == self.target:
            raise ValueError(f"field and target are both {self.field!r}; their names must differ")
        if self.pattern is None:
            return
        try:
            known = list(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        if self.label not in known:
            raise ValueError(
                f"pattern {self.pattern!r} has no group (?P<{self.label}>...) to be the label"
                f" (its groups: {', '.join(known) or 'none'})"
            )

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.field, self.target})

    def parts(self, split: Split, part_bytes: int) -> Iterator[Part]:
        """Parts of about `part_bytes`, cut from each split in the order of a hash, so that each is a fair slice.

        `source` is [path below `path`, bytes] for each file. Raises InputError, before the first part, where the
        folder or the split cannot be used or a split that it names gets nothing.
        """
        self._check(split)
        files = self._labelled_files()
        divided: dict[str, list[tuple[bytes, str, int]]] = {}
        for relative, size in files.items():
            name = split_of(split, self.groups(relative) or {}, relative)
            divided.setdefault(name, []).append((_hash("order", relative), relative, size))
        self._check_filled(split, {name: len(members) for name, members in divided.items()})
        return _cut(divided, part_bytes)

    def read(self, part: Part) -> Iterator[Sample | Hole]:
        """The samples of a part. A file that cannot be read, or is empty, is a Hole."""
        for relative, _ in part.source:
            key = sample_key(relative, self.extensions[0])
            try:
                payload = Path(self.path, relative).read_bytes()
                if not payload:
                    raise ValueError("the file is empty")
            except (OSError, ValueError) as error:
                reason = f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
                yield Hole(key=key, source=relative, reason=reason, error=type(error).__name__)
                continue
            label = (self.groups(relative) or {}).get(self.label, "")
            yield Sample(key=key, fields={self.field: payload, self.target: label.encode()}, source=relative)

    def groups(self, relative: str) -> dict[str, str] | None:
        """What a path says of its sample, by group; None where it does not match. A group left out is ""."""
        if self.pattern is None:
            parent = PurePosixPath(relative).parent.name
            return {self.label: parent} if parent else None
        match = re.fullmatch(self.pattern, relative)
        return match and {name: value or "" for name, value in match.groupdict().items()}

    def _labelled_files(self) -> dict[str, int]:
        files = dict(_walk(self.path, self.extensions))
        if not files:
            raise InputError(f"folder {self.path!r} holds no file that ends in {', '.join(self.extensions)}")
        ignored = sorted(relative for relative in files if self.groups(relative) is None)
        fault = "lies in a sub-folder, its label" if self.pattern is None else f"matches {self.pattern!r}"
        if len(ignored) == len(files):
            raise InputError(f"folder {self.path!r}: none of {len(files)} files {fault}, {ignored[0]!r} for example")
        if ignored:
            given = (len(ignored), len(files), self.path, fault, ignored[0])
            log.warning("%d of %d files in %r are ignored: only a file that %s is a sample, not %r", *given)
        for relative in ignored:
            del files[relative]
        return files

    def _check(self, split: Split) -> None:
        known = sorted(re.compile(self.pattern).groupindex) if self.pattern is not None else [self.label]
        for name, rule in split.rules.items():
            for group, expression in rule.items():
                try:
                    re.compile(expression)
                except re.error as error:
                    where = f"split.rules.{name}.{group}"
                    raise InputError(f"{where} = {expression!r} is not a regular expression: {error}") from error
        for group in (*split.group, *(group for rule in split.rules.values() for group in rule)):
            if group not in known:
                raise InputError(f"split: a path of {self.path!r} has no group {group!r}{suggest(group, known)}")

    def _check_filled(self, split: Split, counts: Mapping[str, int]) -> None:
        given = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        for name in split.rules:
            if name not in counts:
                raise InputError(f"split.rules: no file matches {split.rules[name]} of {name!r} (files: {given})")
        for name, share in split.shares.items():
            if name not in counts:
                unit = f"group ({', '.join(split.group)})" if split.group else "file"
                raise InputError(
                    f"split.shares: {share} for {name!r} is so little that no {unit} fell into it (files: {given});"
                    " raise the share or name its groups by a rule"
                )
        if TRAIN not in counts:
            raise InputError(f"split: no file is left for {TRAIN!r} (files: {given})")


def split_of(split: Split, groups: Mapping[str, str], relative: str) -> str:
    """The split of one sample: a function of its own groups (and path, where no group is named), of no other sample."""
    ruled = [
        name
        for name, rule in split.rules.items()
        if all(re.fullmatch(expression, groups[group]) for group, expression in rule.items())
    ]
    if len(ruled) > 1:
        raise InputError(
            f"split.rules: {relative!r} belongs to {' and to '.join(map(repr, sorted(ruled)))}; rules may not overlap"
        )
    if ruled:
        return ruled[0]
    if split.shares:
        values = [groups[group] for group in split.group] or [relative]
        place = int.from_bytes(_hash("split", *values)[:8]) / 2**64
        for name, share in sorted(split.shares.items()):
            place -= share
            if place < 0:
                return name
    return TRAIN


def sample_key(relative: str, plain_extension: str) -> str:
    """A key of [A-Za-z0-9_-], at most 80 long, which no other path gets.

    `yes/0a_1.wav` is `yes--0a_1`. A path that this could confuse with another one (another extension, other characters,
    doubled or outer hyphens) or that is too long ends in `---` and 16 hexadecimal digits of its sha256.
    """
    extension = PurePosixPath(relative).suffix
    stem = relative.removesuffix(extension)
    flat = stem.replace("/", "--")
    plain = extension == plain_extension and all(PLAIN_NAME.fullmatch(name) for name in stem.split("/"))
    if plain and len(flat) <= KEY_CHARACTERS:
        return flat
    tail = f"---{_hash('key', relative).hex()[:16]}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", flat)[: KEY_CHARACTERS - len(tail)] + tail


def _hash(purpose: str, *values: str) -> bytes:
    return hashlib.sha256(json.dumps([purpose, *values]).encode()).digest()


def _cut(divided: Mapping[str, list[tuple[bytes, str, int]]], part_bytes: int) -> Iterator[Part]:
    for name in sorted(divided):
        index, total, source = 0, 0, list[list[str | int]]()
        for _, relative, size in sorted(divided[name]):
            if source and total + size > part_bytes:
                yield Part(split=name, index=index, source=tuple(source))
                index, total, source = index + 1, 0, []
            source.append([relative, size])
            total += size
        yield Part(split=name, index=index, source=tuple(source))


def _walk(root: str, extensions: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(path below root, bytes) of each file. Links are followed, but never into a folder that holds them.

    A name that is not UTF-8 is given with its odd bytes written as `\\xff`; no such file exists, so it becomes a Hole.
    """
    if not Path(root).is_dir():
        raise InputError(f"{root!r} is not a folder" if Path(root).exists() else f"there is no folder {root!r}")
    inside: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while inside:
        folder, above = inside.pop()
        try:
            where = Path(root, folder).stat()
            with os.scandir(Path(root, folder)) as listing:
                entries = list(listing)
        except OSError as error:
            raise InputError(f"folder {str(Path(root, folder))!r} cannot be listed: {error.strerror}") from error
        if (where.st_dev, where.st_ino) in above:
            continue
        above |= {(where.st_dev, where.st_ino)}
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inside.append((f"{folder}{entry.name}/", above))
            elif entry.name.lower().endswith(extensions) and (entry.is_file() or entry.is_symlink()):
                yield os.fsencode(folder + entry.name).decode(errors="backslashreplace"), _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link, or a file that just vanished: `read` makes a Hole of it
        return 0
