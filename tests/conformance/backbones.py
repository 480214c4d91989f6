"""Backbones and batches that the conformance tests of the models shelf share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import choices
from pipeline.contracts import Outputs

FAMILIES = choices.names("models")
RECURRENT = ["rnn", "lstm", "gru"]
every_family = pytest.mark.parametrize("family", FAMILIES)
both_directions = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
LENGTHS = (5, 1, 9, 0, 4)


def built(family: str, *, causal: bool, double: bool = True, **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    backbone: nn.Module = choices.make("models", family, {"width": 7, **settings}).build(causal=causal)
    for parameter in backbone.parameters():  # biases begin at zero, where a formula's mistake would not show
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return (backbone.double() if double else backbone).eval()


def ragged(lengths: tuple[int, ...] = LENGTHS, width: int = 7, seed: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), width, dtype=torch.float64), torch.tensor(lengths)


def in_steps(backbone: nn.Module, x_BTD: Tensor, cuts: list[list[int]]) -> Outputs:
    """`cuts` holds for each chunk each row's number of steps; valid y are laid behind each other again."""
    place, state, y_BTD = torch.zeros(len(x_BTD), dtype=torch.long), {}, torch.zeros_like(x_BTD)
    outputs = None
    for cut in cuts:
        chunk = torch.full((len(x_BTD), max(1, *cut), x_BTD.shape[2]), 9.0, dtype=x_BTD.dtype)
        for row, steps in enumerate(cut):
            chunk[row, :steps] = x_BTD[row, place[row] : place[row] + steps]
        outputs = backbone(chunk, torch.tensor(cut), state)
        state = outputs.state
        for row, steps in enumerate(cut):
            y_BTD[row, place[row] : place[row] + steps] = outputs.y_BTD[row, :steps]
        place += torch.tensor(cut)
    return Outputs(y_BTD=y_BTD, lengths_B=place, state=state)


def close(ours: Any, theirs: Any, within: float = 1e-10) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=0, atol=within, check_dtype=False)
