"""The nouns that every room of the house shares.

Letters in tensor names: B batch, T steps, D width, F features, V classes.
Nothing here knows Ray, DeepSpeed, a file format or a family; torch appears in annotations alone, so that ingest
imports this module without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

State = Any  # a tree (dict, tuple) of batch-first tensors


class InputError(ValueError):
    """What the user gave cannot be used. The message names it and says what would be right; jobs exit with code 2."""


class DataError(RuntimeError):
    """Stored data is not what its manifest or index says it is. The message names the file."""


class TooManyHolesError(DataError):
    """More samples were quarantined than is tolerated; jobs exit with code 3."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One WebDataset group. `key` holds no dot: readers cut a member's name at the first one."""

    key: str
    fields: Mapping[str, bytes]
    source: str


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A sample that could not be used: what stands in the quarantine file instead of in a shard."""

    key: str
    source: str
    reason: str
    error: str  # class name of the exception


@dataclass(frozen=True, kw_only=True)
class Part:
    """The unit of parallel reading: what one ingest task reads, and the owner of one shard.

    `source` is plain JSON (file names and sizes, byte ranges) and is all that `Corpus.read` needs.
    """

    split: str
    index: int
    source: Sequence[Any]

    @property
    def shard(self) -> str:
        return f"{self.split}-{self.index:06d}"


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sequences of different lengths, one after the other: `values` (sum of lengths, *shape), `lengths_B` (B,)."""

    values: Tensor
    lengths_B: Tensor

    def to(self, device: torch.device) -> Ragged:
        return Ragged(
            values=self.values.to(device, non_blocking=True), lengths_B=self.lengths_B.to(device, non_blocking=True)
        )

    def padded(self) -> Tensor:
        """(B, longest, *shape), zeros behind each sequence's end."""
        import torch

        longest = int(self.lengths_B.max())
        steps_T = torch.arange(longest, device=self.lengths_B.device)
        valid_BT = steps_T[None, :] < self.lengths_B[:, None]
        padded = self.values.new_zeros((len(self.lengths_B), longest, *self.values.shape[1:]))
        padded[valid_BT] = self.values
        return padded


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's micro-batch.

    `num_targets` is what the loss sums over here; a placeholder batch (a rank with no sample left in this step)
    has one row of one zero step, no key, and no valid target.
    """

    inputs: Mapping[str, Ragged]
    targets: Mapping[str, Ragged]
    num_targets: int
    keys: Sequence[str]

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            inputs={name: ragged.to(device) for name, ragged in self.inputs.items()},
            targets={name: ragged.to(device) for name, ragged in self.targets.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a backbone gives: `y_BTD`, `lengths_B` (its own, after any subsampling), the state behind the last step."""

    y_BTD: Tensor
    lengths_B: Tensor
    state: State = None


@dataclass(frozen=True)
class Tally:
    """Sums and counts by name. `+` is associative and commutative; a mean is divided once, at the end."""

    sums: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        names = sorted({*self.sums, *other.sums})
        return Tally(
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names},
            {name: self.counts.get(name, 0.0) + other.counts.get(name, 0.0) for name in names},
        )

    def mean(self, name: str) -> float:
        """Sum over count; NaN where nothing was counted."""
        count = self.counts.get(name, 0.0)
        return self.sums[name] / count if count else float("nan")


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What training must know of a stored field: filled at ingest from the training split, kept in every checkpoint.

    dtype and shape of one step; steps a second (0 where time has no unit); tokens by id; mean and standard deviation
    of each feature.
    """

    dtype: str
    shape: tuple[int, ...]
    rate_hz: float = 0.0
    vocabulary: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One JSON row a finished run: the truth the leaderboard stands on.

    `score` is `metric` on `split`; `phase` is "search" for a trial that chose settings (scored on the validation
    split) and "final" for a run that counts (scored on the test split). `device_seconds` is wall seconds of training
    times ranks; `samples_per_second` counts training samples over those wall seconds.
    """

    run: str
    contest: str
    family: str
    phase: str
    seed: int
    split: str
    metric: str
    score: float
    higher_is_better: bool
    metrics: Mapping[str, float]
    parameters: int
    steps: int
    samples: int
    seconds: float
    device_seconds: float
    samples_per_second: float
    fingerprint: str
    settings: Mapping[str, Any]
    commit: str
    finished_at: str
