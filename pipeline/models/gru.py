"""The gated recurrent unit (Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder").

x_BTD -> y_BTD, state h of D numbers a layer. With s the logistic function and * elementwise:

    r, z = s(W x_t + b + U h_(t-1)), one W, b, U each;  n = tanh(W x_t + b + r * (U h_(t-1) + d))
    h_t = (1 - z) * n + z * h_(t-1)

The reset gate multiplies behind U, not before it: the form of the fused kernels (Appleyard et al. 2016, "Optimizing
Performance of Recurrent Neural Networks on GPUs"). Stacking, directions and state: pipeline.models._recurrent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from pipeline.choices import settings
from pipeline.models._recurrent import Recurrent, initialise


@settings
class GRU(Recurrent):
    """Settings of the family."""

    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "optim.lr": (1e-3, 2e-3, 4e-3),
        "model.layers": (1, 2, 3),
        "model.dropout": (0.0, 0.1, 0.2),
    }

    def fused(self, inputs: int, hidden: int) -> nn.RNNBase:
        return initialise(nn.GRU(inputs, hidden, batch_first=True))
