"""What each room promises the others: the shelves' choices, a backbone, a rank, a tracker.

Letters in tensor names as in contracts: B batch, T steps, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pipeline.contracts import Batch, FieldInfo, Hole, Outputs, Part, Ragged, RunSummary, Sample, State, Tally

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn


class Corpus(Protocol):
    """Where samples come from, by format. Reading a part again gives the same samples in the same order.

    `fields`: the names of a sample's fields. `parts` takes the Dataset's Split and a part's size in bytes of source.
    """

    @property
    def fields(self) -> frozenset[str]: ...

    def parts(self, split: Any, part_bytes: int) -> Iterator[Part]: ...

    def read(self, part: Part) -> Iterator[Sample | Hole]: ...


class Statistics(Protocol):
    """A mergeable summary of a field's stored values: what becomes mean, std or vocabulary. `to_dict` is plain JSON."""

    def add(self, stored: bytes) -> None: ...

    def merge(self, other: Any) -> None: ...

    def to_dict(self) -> dict[str, Any]: ...


class Modality(Protocol):
    """Raw bytes -> stored bytes (at ingest) -> array (in the stream).

    `encode` raises ValueError for what cannot be used; its message becomes the quarantine reason. `statistics` makes an
    empty summary or the one of a `to_dict`; `info` makes of the training split's what training must know.
    """

    suffix: ClassVar[str]
    Feed: ClassVar[type[Feed]]

    def encode(self, raw: bytes) -> bytes: ...

    def array(self, stored: bytes, info: FieldInfo) -> np.ndarray: ...

    def statistics(self, plain: Mapping[str, Any] | None = None) -> Statistics: ...

    def info(self, statistics: Any) -> FieldInfo: ...


class Feed(Protocol):
    """The training side of an input modality: settings that change no shard.

    `augment`: (T, *shape) -> (T', *shape), training samples alone. `frontend`: Ragged -> (x_BTD, lengths_B).
    """

    def augment(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...

    def frontend(self, info: FieldInfo, width: int) -> nn.Module: ...


class Backbone(Protocol):
    """x_BTD -> y_BTD. Padding behind `lengths_B` changes nothing; a causal one never looks ahead.

    A state must be asked for: a call with `state={}` begins at zeros and gives one back, a call with None gives none.
    """

    def __call__(self, x_BTD: Tensor, lengths_B: Tensor, state: State = None) -> Outputs: ...

    def state_bytes(self, num_steps: int) -> int:
        """Bytes of one row's state behind `num_steps` steps, in float32."""
        ...


class Family(Protocol):
    """A model family's settings; `build` makes its backbone. `search`: dotted experiment path -> values to try."""

    search: ClassVar[Mapping[str, tuple[Any, ...]]]
    width: int

    def build(self, *, causal: bool) -> nn.Module: ...


class Task(Protocol):
    """Targets, head, loss, decoding, score.

    `head`: Outputs -> predicted. `loss` gives the SUM over valid targets, `num_targets` how many these are. `decode`
    gives a row for each key, `score` reads such rows: it holds `metric` and the mean `loss`.
    """

    higher_is_better: ClassVar[bool]
    causal: ClassVar[bool]
    metric: ClassVar[str]

    def head(self, width: int, targets: Mapping[str, FieldInfo]) -> nn.Module: ...

    def num_targets(self, targets: Mapping[str, Ragged]) -> int: ...

    def loss(self, predicted: Tensor, batch: Batch) -> tuple[Tensor, Tally]: ...

    def decode(self, predicted: Tensor, batch: Batch) -> dict[str, list[Any]]: ...

    def score(self, rows: Any) -> dict[str, float]: ...


class Worker(Protocol):
    """One rank of a run: the seam between the training loop and whatever started it."""

    rank: int
    world: int
    device: torch.device

    def latest(self) -> Path | None: ...

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None: ...


class Tracker(Protocol):
    """Where metrics go. `identity` survives in the checkpoint, so that a resumed run continues its own record."""

    identity: str | None

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None: ...

    def rewind(self, step: int) -> None:
        """Forgets what a killed attempt logged behind `step`."""
        ...

    def finish(self, summary: RunSummary) -> None: ...
