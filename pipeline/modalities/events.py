"""Events: a sequence of tokens out of a vocabulary, stored as UTF-8 text -> ids (T,) int64.

With no `separator` the whole value is one token, which is how a class label is stored. The vocabulary is what stands in
the training split, sorted; a token outside of it has the id -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic

from pipeline.choices import settings
from pipeline.contracts import FieldInfo

UNKNOWN = -1


class TokenCounts:
    """How often each token stands in a field."""

    def __init__(self, separator: str | None, plain: Mapping[str, Any] | None = None) -> None:
        self.separator = separator
        self.counts = Counter[str]((plain or {"counts": {}})["counts"])

    def add(self, stored: bytes) -> None:
        self.counts.update(_tokens(stored, self.separator))

    def merge(self, other: TokenCounts) -> None:
        self.counts.update(other.counts)

    def to_dict(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items()))}


@settings
class Events:
    """White space around a value and around its tokens does not count."""

    suffix: ClassVar[str] = "txt"

    separator: Annotated[str, pydantic.Field(min_length=1)] | None = None

    def encode(self, raw: bytes) -> bytes:
        """Checked and trimmed text. Raises ValueError where it is not UTF-8, or it or one of its tokens is empty."""
        tokens = _tokens(raw, self.separator)
        if "" in tokens:
            raise ValueError("the value is empty" if len(tokens) == 1 else f"token {tokens.index('') + 1} is empty")
        return (self.separator or "").join(tokens).encode()

    def tokens(self, stored: bytes) -> list[str]:
        return _tokens(stored, self.separator)

    def array(self, stored: bytes, info: FieldInfo) -> np.ndarray:
        """(T,) int64: each token's place in the vocabulary, -1 for a token that is not there."""
        ids = _ids(info.vocabulary)
        return np.array([ids.get(token, UNKNOWN) for token in self.tokens(stored)], dtype=np.int64)

    def statistics(self, plain: Mapping[str, Any] | None = None) -> TokenCounts:
        """An empty summary to add stored bytes to, or the one whose `to_dict` is given."""
        return TokenCounts(self.separator, plain)

    def info(self, statistics: TokenCounts) -> FieldInfo:
        return FieldInfo(dtype="int64", shape=(), vocabulary=tuple(sorted(statistics.counts)))


def _tokens(text: bytes, separator: str | None) -> list[str]:
    """Raises ValueError (UnicodeDecodeError) where the text is not UTF-8."""
    value = text.decode()
    pieces = [value] if separator is None else value.strip("\r\n").split(separator)
    return [piece.strip() for piece in pieces]


@lru_cache(maxsize=16)
def _ids(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {token: place for place, token in enumerate(vocabulary)}
