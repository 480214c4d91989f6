"""What the recurrent families share: a stack of fused one-layer modules. x_BTD -> y_BTD, for any width D.

Causal: each layer is one module of D hidden units. Bidirectional: each layer is one module forward and one backward,
ceil(D/2) and floor(D/2) units, concatenated (Schuster and Paliwal 1997, "Bidirectional Recurrent Neural Networks"), so
that D is kept without a projection. The backward one reads every row reversed within its own length: padding stays at
the right, where no valid step sees it.

State, causal only: {"h": (B, layers, D)}, for the LSTM "c" besides; `{}` is the state behind no step at all, zeros.
A call that is given a state gives back the state behind each row's last valid step; a call without one (training)
gives none, and so never pays for it: rows of different lengths are packed only where a state is wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pipeline.choices import settings
from pipeline.contracts import Outputs, State
from pipeline.experiment import Positive, Share


@settings
class Recurrent(ABC):
    """The settings of every recurrent family.

    `residual` puts a LayerNorm before each layer and a sum around it (Xiong et al. 2020, the pre-norm order): without
    them gradients of plain RNNs fade from layer to layer as they do from step to step, and the Transformer family has
    both, so a contest compares what mixes the steps and nothing else. Off, layers are stacked as published.
    """

    width: Positive = 128
    layers: Positive = 2
    dropout: Share = 0.1
    residual: bool = True

    carried: ClassVar[tuple[str, ...]] = ("h",)

    @abstractmethod
    def fused(self, inputs: int, hidden: int) -> nn.RNNBase:
        """One layer in one direction, batch first, initialised."""

    def build(self, *, causal: bool) -> nn.Module:
        return RecurrentStack(self, causal=causal)


def initialise(layer: nn.RNNBase) -> nn.RNNBase:
    """Each gate's recurrent matrix orthogonal (Saxe et al. 2014), its input matrix Glorot's (2010), biases zero."""
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            for gate in torch.split(parameter.detach(), layer.hidden_size):
                (nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_)(gate)
    return layer


class Layer(nn.Module):
    """One layer: forward in time, and backward besides where the future may be seen."""

    def __init__(self, family: Recurrent, *, causal: bool) -> None:
        super().__init__()
        half = family.width // 2
        self.norm = nn.LayerNorm(family.width) if family.residual else nn.Identity()
        self.ahead = family.fused(family.width, family.width if causal else family.width - half)
        self.back = None if causal or not half else family.fused(family.width, half)  # width 1 has no half to give

    def forward(self, x_BTD: Tensor, back_BT: Tensor) -> Tensor:
        """`back_BT` reverses each row within its length; it is its own inverse."""

        def reverse(row_BTD: Tensor) -> Tensor:
            return row_BTD.gather(1, back_BT[..., None].expand_as(row_BTD))

        normed_BTD = self.norm(x_BTD)
        y_BTD: Tensor = self.ahead(normed_BTD)[0]
        return y_BTD if self.back is None else torch.cat((y_BTD, reverse(self.back(reverse(normed_BTD))[0])), -1)

    def carry(self, x_BTD: Tensor, lengths_B: Tensor, start: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Forward in time from the state parts `start`, (B, D) each; y and these parts behind each row's last step."""
        normed_BTD, steps = self.norm(x_BTD), x_BTD.shape[1]
        parts = tuple(part[None].contiguous() for part in start)
        before = parts if len(parts) > 1 else parts[0]
        steps_B = lengths_B.clamp(min=1)  # rows of no step read one and are put back below
        if steps == 1 or bool((steps_B == steps).all()):
            y_BTD, behind = self.ahead(normed_BTD, before)
        else:
            # No fused kernel tells an LSTM's c at every step: only a packed run stops each row at its own end.
            packed = pack_padded_sequence(normed_BTD, steps_B.cpu(), batch_first=True, enforce_sorted=False)
            ran, behind = self.ahead(packed, before)
            y_BTD = pad_packed_sequence(ran, batch_first=True, total_length=steps)[0]
        after = behind if isinstance(behind, tuple) else (behind,)
        moved_B1 = (lengths_B > 0)[:, None]
        return y_BTD, [torch.where(moved_B1, new[0], old[0]) for new, old in zip(after, parts, strict=True)]


class RecurrentStack(nn.Module):
    """The backbone; `Backbone` in pipeline.protocols says what it promises."""

    def __init__(self, family: Recurrent, *, causal: bool) -> None:
        super().__init__()
        self.family, self.causal = family, causal
        self.layers = nn.ModuleList(Layer(family, causal=causal) for _ in range(family.layers))
        self.norm = nn.LayerNorm(family.width) if family.residual else nn.Identity()
        self.dropout = nn.Dropout(family.dropout)

    def state_bytes(self, num_steps: int) -> int:
        """The same behind any number of steps; a bidirectional backbone carries none."""
        return 4 * len(self.family.carried) * len(self.layers) * self.family.width if self.causal else 0

    def forward(self, x_BTD: Tensor, lengths_B: Tensor, state: State = None) -> Outputs:
        if state is not None and not self.causal:
            raise ValueError("a bidirectional backbone carries no state: build(causal=True) makes one that does")
        steps = x_BTD.shape[1]
        if not steps:  # nothing but empty rows; the fused kernels want at least one step
            x_BTD = nn.functional.pad(x_BTD, (0, 0, 0, 1))
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        valid_BT = steps_T < lengths_B[:, None]
        back_BT = torch.where(valid_BT, lengths_B[:, None] - 1 - steps_T, steps_T)
        y_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)  # even a NaN in the padding must not reach a gradient
        ends = []
        for depth, layer in enumerate(self.layers):
            if state is None:
                mixed_BTD = layer(y_BTD, back_BT)
            else:
                zeros_BD = torch.zeros_like(y_BTD[:, 0])
                start = [state[name][:, depth] if state else zeros_BD for name in self.family.carried]
                mixed_BTD, end = cast(Layer, layer).carry(y_BTD, lengths_B, start)
                ends.append(end)
            mixed_BTD = self.dropout(mixed_BTD)
            y_BTD = y_BTD + mixed_BTD if self.family.residual else mixed_BTD
        y_BTD = self.norm(y_BTD).masked_fill(~valid_BT[..., None], 0)[:, :steps]
        if state is not None:
            by_name = zip(*ends, strict=True)
            state = {name: torch.stack(parts, 1) for name, parts in zip(self.family.carried, by_name, strict=True)}
        return Outputs(y_BTD=y_BTD, lengths_B=lengths_B, state=state)
