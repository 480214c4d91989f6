"""Stored feature arrays (.npy) and what their training split teaches: mean and standard deviation of each feature.

Shared by the modalities whose step is a vector or picture of numbers; features are the last axis.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def pack(array: np.ndarray) -> bytes:
    """An .npy file (NumPy enhancement proposal 1, version 1.0), C order, little-endian: raw numbers behind a header."""
    file = io.BytesIO()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(file, plain, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def unpack(stored: bytes) -> np.ndarray:
    """The array of `pack`. Raises ValueError for anything else; never unpickles, never allocates what is not there."""
    file = io.BytesIO(stored)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject or math.prod(shape) * dtype.itemsize != len(stored) - file.tell():
        raise ValueError(f"npy header promises {dtype} {shape}, which {len(stored) - file.tell()} bytes are not")
    return np.frombuffer(stored, dtype, offset=file.tell()).reshape(shape).copy()


class Moments:
    """Running mean and variance of each feature over all steps, in float64.

    `sums_of_squares` are of deviations from the mean, merged by the pairwise update of Chan, Golub & LeVeque 1979,
    "Updating formulae and a pairwise algorithm for computing sample variances": large means cost no digits.
    """

    def __init__(self, plain: Mapping[str, Any] | None = None) -> None:
        plain = plain or {"count": 0, "means": [], "sums_of_squares": []}
        self.count = int(plain["count"])
        self.means = np.array(plain["means"], dtype=np.float64)
        self.sums_of_squares = np.array(plain["sums_of_squares"], dtype=np.float64)

    def add(self, stored: bytes) -> None:
        """Counts in one stored array (T, ..., F)."""
        array = unpack(stored)
        steps = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if len(steps):
            self._include(len(steps), steps.mean(axis=0), ((steps - steps.mean(axis=0)) ** 2).sum(axis=0))

    def merge(self, other: Moments) -> None:
        if other.count:
            self._include(other.count, other.means, other.sums_of_squares)

    def _include(self, count: int, means: np.ndarray, sums_of_squares: np.ndarray) -> None:
        if not self.count:
            self.count, self.means, self.sums_of_squares = count, means.copy(), sums_of_squares.copy()
            return
        total, gap = self.count + count, means - self.means
        self.means = self.means + gap * (count / total)
        self.sums_of_squares = self.sums_of_squares + sums_of_squares + gap**2 * (self.count * count / total)
        self.count = total

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "means": self.means.tolist(), "sums_of_squares": self.sums_of_squares.tolist()}

    def mean(self) -> tuple[float, ...]:
        return tuple(self.means.tolist())

    def std(self, floor: float) -> tuple[float, ...]:
        """Population standard deviations, at least `floor`: a feature that hardly moves is not blown up."""
        return tuple(np.maximum(np.sqrt(self.sums_of_squares / max(self.count, 1)), floor).tolist())
