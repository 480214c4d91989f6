"""The plain recurrent network (Elman 1990, "Finding Structure in Time"): x_BTD -> y_BTD, state h of D numbers a layer.

    h_t = f(W x_t + b + U h_(t-1)),  f = tanh, or relu (Le, Jaitly and Hinton 2015)

Stacking, directions and state: pipeline.models._recurrent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from pipeline.choices import settings
from pipeline.models._recurrent import Recurrent, initialise


@settings
class RNN(Recurrent):
    """Settings of the family. Its gradients explode first, hence the small learning rates of the search."""

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "optim.lr": (3e-4, 5e-4, 1e-3),
        "model.layers": (1, 2, 3),
        "model.dropout": (0.0, 0.1, 0.2),
        "model.nonlinearity": ("tanh", "relu"),
    }

    def fused(self, inputs: int, hidden: int) -> nn.RNNBase:
        return initialise(nn.RNN(inputs, hidden, nonlinearity=self.nonlinearity, batch_first=True))
