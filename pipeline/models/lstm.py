"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

x_BTD -> y_BTD, state h and c of D numbers a layer each. With s the logistic function and * elementwise:

    i, f, o = s(W x_t + b + U h_(t-1)), one W, b, U each;  g = tanh(W x_t + b + U h_(t-1))
    c_t = f * c_(t-1) + i * g;  h_t = o * tanh(c_t)

Stacking, directions and state: pipeline.models._recurrent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from pipeline.choices import settings
from pipeline.models._recurrent import Recurrent, initialise


@settings
class LSTM(Recurrent):
    """Settings of the family."""

    carried: ClassVar[tuple[str, ...]] = ("h", "c")
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "optim.lr": (1e-3, 2e-3, 4e-3),
        "model.layers": (1, 2, 3),
        "model.dropout": (0.0, 0.1, 0.2),
    }

    def fused(self, inputs: int, hidden: int) -> nn.RNNBase:
        layer = initialise(nn.LSTM(inputs, hidden, batch_first=True))
        # The forget gate begins open (Jozefowicz et al. 2015). torch adds two biases, so one of them is 1, not both.
        nn.init.ones_(layer.get_parameter("bias_ih_l0").detach()[hidden : 2 * hidden])
        return layer
