from __future__ import annotations

from typing import Any

from pipeline.training.progress import ProgressLine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(clock: Clock, said: list[str], **given: Any) -> ProgressLine:
    return ProgressLine("run", 100, clock=clock, say=said.append, **given)


def test_it_says_step_metrics_speed_and_time_left() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said)
    clock.now += 20
    progress.note({"loss": 1.23456, "accuracy": 0.5})
    progress.advance(25, samples=4000)
    assert said == ["run | step 25/100 | loss 1.235 | accuracy 0.5 | 200 samples/s | 0:01:00 left"]


def test_it_speaks_at_most_every_so_many_seconds() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said, every_seconds=10.0)
    for step in range(1, 61):
        clock.now += 0.5
        progress.advance(step, samples=1)
    assert [text.split(" | ")[1] for text in said] == ["step 20/100", "step 40/100", "step 60/100"]


def test_it_speaks_when_it_is_told_to() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said)
    progress.advance(1, samples=8)
    progress.note({"loss": 2.0})
    assert not said
    progress.note({"best": 0.75}, speak=True)
    assert "loss 2 | best 0.75" in said[0]


def test_a_later_note_replaces_an_earlier_one() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said)
    progress.note({"loss": 2.0, "best": 0.5})
    progress.note({"loss": 1.0}, speak=True)
    assert "loss 1 | best 0.5" in said[0]


def test_speed_and_time_left_count_what_this_attempt_did() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said, start=90)
    clock.now += 10
    progress.advance(95, samples=50)
    assert "step 95/100 | 5 samples/s | 0:00:10 left" in said[0]


def test_a_quiet_one_says_nothing() -> None:
    clock, said = Clock(), list[str]()
    progress = line(clock, said, quiet=True)
    clock.now += 60
    progress.advance(50, samples=1)
    progress.note({"loss": 1.0}, speak=True)
    assert not said


def test_no_time_and_no_step_divide_nothing_by_zero() -> None:
    clock, said = Clock(), list[str]()
    line(clock, said).speak()
    assert said[0].startswith("run | step 0/100")
