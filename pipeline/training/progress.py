"""One line that says where a run stands, how fast it goes and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import click


def say(line: str) -> None:
    click.echo(line, err=True)


class ProgressLine:
    """Speaks at most every `every_seconds`, and whenever it is told to."""

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        start: int = 0,
        every_seconds: float = 10.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ) -> None:
        self.title, self.total, self.start, self.step = title, total_steps, start, start
        self.every, self.quiet, self.clock, self.say = every_seconds, quiet, clock, say
        self.began = self.spoke = clock()
        self.samples = 0
        self.metrics: dict[str, float] = {}

    def advance(self, step: int, samples: int) -> None:
        """`step` steps are done; the last one took `samples` samples over all ranks."""
        self.step, self.samples = step, self.samples + samples
        if self.clock() - self.spoke >= self.every:
            self.speak()

    def note(self, metrics: Mapping[str, float], *, speak: bool = False) -> None:
        """Shows these from now on."""
        self.metrics |= metrics
        if speak:
            self.speak()

    def speak(self) -> None:
        self.spoke = self.clock()
        if self.quiet:
            return
        seconds = max(1e-9, self.spoke - self.began)
        left = timedelta(seconds=round(seconds / max(1, self.step - self.start) * (self.total - self.step)))
        shown = [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        speed = f"{self.samples / seconds:,.0f} samples/s"
        self.say(" | ".join([self.title, f"step {self.step}/{self.total}", *shown, speed, f"{left} left"]))
