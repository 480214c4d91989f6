from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.choices import make
from pipeline.contracts import FieldInfo, InputError
from pipeline.modalities.events import Events


def learned(events: Events, *values: str) -> FieldInfo:
    statistics = events.statistics()
    for value in values:
        statistics.add(events.encode(value.encode()))
    return events.info(statistics)


def test_a_label_is_one_token() -> None:
    events = Events()
    info = learned(events, "yes", "no", "yes")
    assert info == FieldInfo(dtype="int64", shape=(), vocabulary=("no", "yes"))
    ids = events.array(events.encode(b"yes"), info)
    assert ids.tolist() == [1]
    assert ids.dtype == np.int64


def test_a_separator_makes_a_sequence() -> None:
    events = Events(separator=" ")
    stored = events.encode(b"b a b\n")
    assert stored == b"b a b"
    assert events.tokens(stored) == ["b", "a", "b"]
    assert events.array(stored, learned(events, "a b c")).tolist() == [1, 0, 1]


def test_tokens_out_of_the_vocabulary_are_minus_one() -> None:
    events = Events(separator=",")
    info = learned(events, "a,b")
    assert events.array(events.encode("z,b,ü".encode()), info).tolist() == [-1, 1, -1]


def test_white_space_around_values_and_tokens_does_not_count() -> None:
    assert Events().encode(b" New York\r\n") == b"New York"
    assert Events(separator=",").encode(b"a, b ,c\n") == b"a,b,c"
    assert Events(separator="\t").encode(b"a\tb\n") == b"a\tb"


@pytest.mark.parametrize("raw", ["yes", "日本", "a b", "0"])
def test_encoding_what_is_stored_changes_nothing(raw: str) -> None:
    assert Events().encode(Events().encode(raw.encode())) == raw.encode()


@pytest.mark.parametrize(
    ("separator", "raw", "reason"),
    [
        (None, b"", "the value is empty"),
        (None, b" \n", "the value is empty"),
        (None, b"\xff\xfe", "can't decode byte 0xff"),
        (" ", b"", "the value is empty"),
        (",", b"a,,b", "token 2 is empty"),
        ("\t", b"\ta", "token 1 is empty"),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_a_reason(separator: str | None, raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Events(separator=separator).encode(raw)


def test_vocabularies_merge_over_plain_json_in_any_order() -> None:
    events = Events(separator=" ")
    parts = []
    for value in ("b a", "c", "a a"):
        statistics = events.statistics()
        statistics.add(value.encode())
        parts.append(json.loads(json.dumps(statistics.to_dict())))
    for order in (parts, parts[::-1]):
        total = events.statistics()
        for plain in order:
            total.merge(events.statistics(plain))
        assert total.to_dict() == {"counts": {"a": 3, "b": 1, "c": 1}}
        assert events.info(total).vocabulary == ("a", "b", "c")


def test_statistics_of_nothing_have_no_vocabulary() -> None:
    assert Events().info(Events().statistics()).vocabulary == ()


def test_two_vocabularies_do_not_mix() -> None:
    events = Events()
    assert events.array(b"b", learned(events, "a", "b")).tolist() == [1]
    assert events.array(b"b", learned(events, "b")).tolist() == [0]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(InputError, match="separator"):
        make("modalities", "events", {"separator": ""})
