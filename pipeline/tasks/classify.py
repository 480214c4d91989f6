"""Classify: one label a sequence.

In: y_BTD of any backbone and a target field of one token a sample. Out: logits_BV over the field's vocabulary. Trained
by cross-entropy, scored by accuracy. A label that never stood in the training split (id -1) has no loss and counts as
wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pydantic
import torch
from torch import Tensor, nn

from pipeline.choices import settings, suggest
from pipeline.contracts import Batch, DataError, FieldInfo, InputError, Outputs, Ragged, Tally

UNKNOWN = -1
Pool = Literal["mean_max", "mean", "max", "last"]


@settings
class Classify:
    """`pool` makes one vector of a sequence: mean, maximum, both side by side, or the last step."""

    higher_is_better: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    metric: ClassVar[str] = "accuracy"

    target: str = "label"
    pool: Pool = "mean_max"
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1

    def head(self, width: int, targets: Mapping[str, FieldInfo]) -> nn.Module:
        """Outputs -> logits_BV. Raises InputError where the target is no field, or has fewer than two classes."""
        if self.target not in targets:
            hint = suggest(self.target, sorted(targets))
            raise InputError(f"classify: there is no target field {self.target!r}{hint}")
        classes = len(targets[self.target].vocabulary)
        if classes < 2:
            raise InputError(f"classify: {self.target!r} has {classes} different values in training, two are needed")
        return PooledLinear(width, classes, self.pool, self.dropout)

    def num_targets(self, targets: Mapping[str, Ragged]) -> int:
        """Rows whose label is known. Raises DataError where a row has more than one label."""
        labels = targets[self.target]
        if int(labels.lengths_B.max()) > 1:
            raise DataError(f"classify: a sample has {int(labels.lengths_B.max())} labels in {self.target!r}, not one")
        return int((labels.values != UNKNOWN).sum())

    def loss(self, predicted: Tensor, batch: Batch) -> tuple[Tensor, Tally]:
        """Sum of cross-entropies over rows with a known label (nats), with sums and counts of loss and accuracy."""
        target_B = self._labels(batch)
        loss = nn.functional.cross_entropy(predicted.float(), target_B, ignore_index=UNKNOWN, reduction="sum")
        right, known = (predicted.argmax(dim=1) == target_B).sum(), (target_B != UNKNOWN).sum()
        summed, correct, counted = torch.stack([loss.detach(), right, known]).tolist()
        return loss, Tally({"loss": summed, "accuracy": correct}, {"loss": counted, "accuracy": len(batch.keys)})

    def decode(self, predicted: Tensor, batch: Batch) -> dict[str, list[Any]]:
        """A value a key: ids `target` and `prediction`, `loss` (NaN for an unknown label), `confidence` in [0, 1]."""
        target_B = self._labels(batch)
        losses_B = nn.functional.cross_entropy(predicted.float(), target_B, ignore_index=UNKNOWN, reduction="none")
        confidence_B, prediction_B = predicted.float().softmax(dim=1).max(dim=1)
        columns = {
            "target": target_B,
            "prediction": prediction_B,
            "loss": losses_B.masked_fill(target_B == UNKNOWN, float("nan")),
            "confidence": confidence_B,
        }
        return {name: column[: len(batch.keys)].tolist() for name, column in columns.items()}

    def score(self, columns: pa.Table) -> dict[str, float]:
        """accuracy; macro_f1, the mean F1 of all classes that occur as target or prediction; loss, the mean
        cross-entropy of rows with a known label (nats; NaN where there is none). Raises DataError without any row.
        """
        from sklearn.metrics import f1_score

        if not columns.num_rows:
            raise DataError("classify: there is no row to score")
        target, prediction = columns.column("target").to_numpy(), columns.column("prediction").to_numpy()
        losses = columns.column("loss").to_numpy()[target != UNKNOWN]
        return {
            "accuracy": float((target == prediction).mean()),
            "macro_f1": float(f1_score(target, prediction, average="macro", zero_division=0.0)),
            "loss": float(losses.mean()) if len(losses) else float("nan"),
        }

    def _labels(self, batch: Batch) -> Tensor:
        return batch.targets[self.target].values


class PooledLinear(nn.Module):
    """Pools over the steps within each length (padding changes nothing), then dropout and a linear layer."""

    def __init__(self, width: int, classes: int, pool: Pool, dropout: float) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width if pool == "mean_max" else width, classes)

    def forward(self, outputs: Outputs) -> Tensor:
        pooled_BD = self.dropout(self._pooled(outputs))
        logits_BV: Tensor = self.linear(pooled_BD.to(self.linear.weight.dtype))
        return logits_BV

    def _pooled(self, outputs: Outputs) -> Tensor:
        y_BTD, lengths_B1 = outputs.y_BTD.float(), outputs.lengths_B.clamp(min=1)[:, None]
        if self.pool == "last":
            rows_B = torch.arange(len(y_BTD), device=y_BTD.device)
            return y_BTD[rows_B, lengths_B1[:, 0] - 1]
        behind_BT1 = (torch.arange(y_BTD.shape[1], device=y_BTD.device) >= lengths_B1)[:, :, None]
        pooled = []
        if self.pool in {"mean_max", "mean"}:
            pooled.append(y_BTD.masked_fill(behind_BT1, 0.0).sum(dim=1) / lengths_B1)
        if self.pool in {"mean_max", "max"}:
            pooled.append(y_BTD.masked_fill(behind_BT1, float("-inf")).amax(dim=1))
        return torch.cat(pooled, dim=1)
