"""The Stream: shards -> batches, in the Plan's order, read ahead by threads.

A step's samples are read by index with `pread` straight into one buffer a field, which (as a Ragged) is the batch: for
arrays stored as npy nothing is parsed and nothing copied again. Normalising and augmenting happen here, so a shard
never goes stale; every sample's random numbers come from (seed, epoch, key), so they do not depend on who reads it.

Damaged storage raises DataError. A whole payload that cannot be decoded leaves a hole: its batch goes without it, a
line in the log names it, and too many of them raise TooManyHolesError.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from pipeline.contracts import Batch, DataError, FieldInfo, Hole, Ragged, TooManyHolesError
from pipeline.data.manifest import ShardSet
from pipeline.data.plan import Plan, derive
from pipeline.data.tar import Shard
from pipeline.protocols import Feed, Modality

FEWEST_HOLES = 10  # that are never too many
TOLERANCE = 0.1  # share of a rank's samples
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StreamField:
    """How a stored field becomes a Ragged. `feed` is what augments it, or None; `raw`: original bytes were stored."""

    name: str
    modality: Modality
    info: FieldInfo
    feed: Feed | None = None
    raw: bool = False


class Undecodable(Exception):  # noqa: N818 - a signal within this file
    """Which samples of a batch cannot be decoded, by their place in it."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        self.errors = errors


class Stream:
    """Micro-batches of one rank.

    `count(targets)` is how many targets of a batch the loss sums over. Every rank gives the same number of
    micro-batches (`micro_steps`) for each step; where its share runs out they are placeholders (see Batch). `holes`:
    the samples that could not be decoded so far, by shard and row.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        plan: Plan,
        *,
        inputs: Sequence[StreamField],
        targets: Sequence[StreamField],
        count: Callable[[Mapping[str, Ragged]], int],
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        threads: int = 2,
        prefetch_steps: int = 4,
    ) -> None:
        self.shards, self.plan, self.inputs, self.targets, self.count = shards, plan, inputs, targets, count
        self.rank, self.world, self.threads, self.prefetch_steps = rank, world, threads, prefetch_steps
        self.infos = shards.split(split)
        share = plan.largest_share(world)
        self.micro_size = min(micro_batch or share, share)
        self.micro_steps = -(-share // self.micro_size)
        self.holes: dict[tuple[int, int], Hole] = {}
        self._read_count = self._hole_count = 0
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step of range(start, stop). An error while reading ahead is raised in its turn."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="stream") as pool:
            ahead: deque[Future[list[Batch]]] = deque()
            try:
                for step in range(start, stop):
                    ahead.append(pool.submit(self.step, step))
                    if len(ahead) > self.prefetch_steps:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def step(self, step: int) -> list[Batch]:
        share, epoch = self.plan.share(step, self.rank, self.world), self.plan.epoch(step)
        cuts = range(0, self.micro_steps * self.micro_size, self.micro_size)
        return [self._batch(share[cut : cut + self.micro_size].tolist(), epoch) for cut in cuts]

    def _batch(self, references: list[list[int]], epoch: int) -> Batch:
        rows = [(shard, row) for shard, row in references if (shard, row) not in self.holes]
        while rows:
            try:
                batch = self._whole_batch([(self._shard(shard), row) for shard, row in rows], epoch)
            except Undecodable as found:
                for place, error in found.errors.items():
                    self._note_hole(*rows[place], error)
                rows = [reference for place, reference in enumerate(rows) if place not in found.errors]
            else:
                self._tally(len(references), len(references) - len(rows))
                return batch
        self._tally(len(references), len(references))
        return self._placeholder()

    def _whole_batch(self, rows: list[tuple[Shard, int]], epoch: int) -> Batch:
        keys = [shard.key(row) for shard, row in rows]
        inputs = {spec.name: self._read(spec, rows, keys, epoch) for spec in self.inputs}
        targets = {spec.name: self._read(spec, rows, keys, epoch) for spec in self.targets}
        return Batch(inputs=inputs, targets=targets, num_targets=self.count(targets), keys=keys)

    def _read(self, spec: StreamField, rows: list[tuple[Shard, int]], keys: list[str], epoch: int) -> Ragged:
        spots = [shard.spot(spec.name, row) for shard, row in rows]
        ends = np.cumsum([size for _, size, _, _ in spots]).tolist()
        buffer = np.empty(ends[-1], dtype=np.uint8)
        payloads = [buffer.data[end - size : end] for (_, size, _, _), end in zip(spots, ends, strict=True)]
        for (shard, _), key, spot, payload in zip(rows, keys, spots, payloads, strict=True):
            shard.read_into(payload, key, spec.name, spot)
        lengths = [length for _, _, length, _ in spots]
        if lengths[0] >= 0:
            values = buffer.view(spec.info.dtype).reshape(-1, *spec.info.shape)
        else:
            arrays = _decoded(spec, payloads)
            lengths, values = [len(array) for array in arrays], np.concatenate(arrays)
        if spec.info.mean:
            mean, std = (np.asarray(each, dtype=np.float32) for each in (spec.info.mean, spec.info.std))
            values = ((values - mean) / std).astype(np.float32, copy=False)
        if spec.feed is not None:
            pieces = np.split(values, np.cumsum(lengths)[:-1])
            seeds = [derive(self.plan.seed, "augment", epoch, key) for key in keys]
            arrays = [
                spec.feed.augment(piece, np.random.default_rng(seed)) for piece, seed in zip(pieces, seeds, strict=True)
            ]
            lengths, values = [len(array) for array in arrays], np.concatenate(arrays)
        return Ragged(values=torch.from_numpy(values), lengths_B=torch.tensor(lengths))

    def _placeholder(self) -> Batch:
        one = torch.ones(1, dtype=torch.int64)

        def row(spec: StreamField, value: int) -> Ragged:
            kind = "float32" if spec.info.mean else spec.info.dtype
            return Ragged(values=torch.from_numpy(np.full((1, *spec.info.shape), value, kind)), lengths_B=one)

        inputs = {spec.name: row(spec, 0) for spec in self.inputs}
        targets = {spec.name: row(spec, -1) for spec in self.targets}
        return Batch(inputs=inputs, targets=targets, num_targets=0, keys=())

    def _shard(self, number: int) -> Shard:
        """Two windows of shards stay open: the one that is being read and the next."""
        with self._lock:
            shard = self._open.get(number)
        if shard is None:  # opened outside the lock, so that one slow file holds up nobody else
            shard = self.shards.open(self.infos[number])
            for spec in (*self.inputs, *self.targets):
                _check_kind(shard, spec)
        with self._lock:
            self._open[number] = shard
            self._open.move_to_end(number)
            while len(self._open) > 2 * self.plan.window:
                self._open.popitem(last=False)
        return shard

    def _note_hole(self, number: int, row: int, error: Exception) -> None:
        shard = self._shard(number)
        hole = Hole(key=shard.key(row), source=str(shard.path), reason=str(error), error=type(error).__name__)
        with self._lock:
            known = self.holes.setdefault((number, row), hole) is not hole
        if not known:
            log.warning("%s in %s cannot be decoded, it is left out: %s", hole.key, hole.source, hole.reason)

    def _tally(self, read: int, holes: int) -> None:
        with self._lock:
            self._read_count += read
            self._hole_count += holes
            too_many = self._hole_count > max(FEWEST_HOLES, TOLERANCE * self._read_count)
        if too_many and holes:
            last = next(reversed(self.holes.values()))
            raise TooManyHolesError(
                f"{self._hole_count} of {self._read_count} samples of {self.shards.manifest.identity} could not be "
                f"decoded, more than the {TOLERANCE:.0%} tolerated; {last.key} in {last.source}: {last.reason}"
            )


def _decoded(spec: StreamField, payloads: Sequence[memoryview]) -> list[np.ndarray]:
    arrays, errors = [], dict[int, Exception]()
    for place, payload in enumerate(payloads):
        try:
            stored = spec.modality.encode(bytes(payload)) if spec.raw else bytes(payload)
            arrays.append(spec.modality.array(stored, spec.info))
        except Exception as error:  # noqa: BLE001 - a decoder may raise anything on hostile bytes
            errors[place] = error
    if errors:
        raise Undecodable(errors)
    return arrays


def _check_kind(shard: Shard, spec: StreamField) -> None:
    kind, info = shard.arrays.get(spec.name), spec.info
    if kind is not None and (np.dtype(kind["dtype"]), (*kind["shape"],)) != (np.dtype(info.dtype), info.shape):
        raise DataError(f"shard {shard.path}: {spec.name} is {kind}, its manifest says {info.dtype} {info.shape}")
