"""The Plan: which samples a step takes, as arithmetic.

Shards are permuted by (seed, epoch), `window` of them at a time are opened together, and the samples of a window are
permuted among each other. A global batch is a slice of that order, and a rank's share a slice of the batch: no state,
so resuming is asking for another step number, and the union of all shares of a step is the same whatever the world
size. No file is touched here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


def derive(*names: int | str) -> int:
    """A 64-bit seed for a purpose: `derive(seed, "dropout", step, rank)`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """`sizes`: samples a shard. `batch`: samples a global step; the last one of an epoch takes what is left.

    O(shards) once an epoch, then a share costs what it and the windows that it touches hold. Compared by identity:
    hashing a million sizes at each look into a cache would cost more than everything else.
    """

    sizes: tuple[int, ...]
    batch: int
    window: int = 64
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1 or self.window < 1 or min(self.sizes, default=0) < 0 or not any(self.sizes):
            raise ValueError("a plan needs a sample, no negative size, and a batch and window of at least 1")

    @cached_property
    def num_samples(self) -> int:
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def samples_before(self, step: int) -> int:
        """Samples that the steps before `step` take together."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        return epoch * self.num_samples + inside * self.batch

    def global_batch(self, step: int) -> np.ndarray:
        """(n, 2) int64: shard and row of each sample of a step."""
        return self.share(step, rank=0, world=1)

    def share(self, step: int, rank: int, world: int) -> np.ndarray:
        """A rank's slice of the global batch, (n, 2) int64; shares differ by one sample at most."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        begin = inside * self.batch
        size = min(self.batch, self.num_samples - begin)
        start, stop = begin + rank * size // world, begin + (rank + 1) * size // world
        if start == stop:
            return np.empty((0, 2), dtype=np.int64)
        starts = _window_starts(self, epoch)
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        pieces = [
            _window_order(self, epoch, window)[max(start - starts[window], 0) : stop - starts[window]]
            for window in range(first, last)
        ]
        return np.concatenate(pieces)

    def largest_share(self, world: int) -> int:
        return -(-min(self.batch, self.num_samples) // world)


def plan_of(sizes: Sequence[int], *, batch: int, window: int = 64, seed: int = 0, shuffle: bool = True) -> Plan:
    return Plan(sizes=tuple(sizes), batch=batch, window=window, seed=seed, shuffle=shuffle)


@lru_cache(maxsize=4)
def _shard_order(plan: Plan, epoch: int) -> np.ndarray:
    if not plan.shuffle:
        return np.arange(len(plan.sizes))
    return np.random.default_rng(derive(plan.seed, "shards", epoch)).permutation(len(plan.sizes))


@lru_cache(maxsize=4)
def _window_starts(plan: Plan, epoch: int) -> np.ndarray:
    """Position in the epoch at which each window starts, and the epoch's end."""
    sizes = np.asarray(plan.sizes, dtype=np.int64)[_shard_order(plan, epoch)]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return np.append(ends[: -1 : plan.window], ends[-1])


@lru_cache(maxsize=4)
def _window_order(plan: Plan, epoch: int, window: int) -> np.ndarray:
    shards = _shard_order(plan, epoch)[window * plan.window : (window + 1) * plan.window]
    sizes = np.array([plan.sizes[shard] for shard in shards], dtype=np.int64)
    rows = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    references = np.stack([np.repeat(shards, sizes), rows], axis=1)
    if plan.shuffle:
        rng = np.random.default_rng(derive(plan.seed, "samples", epoch, window))
        references = references[rng.permutation(len(references))]
    return references
