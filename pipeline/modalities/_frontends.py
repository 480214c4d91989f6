"""Frontends: Ragged -> (x_BTD, lengths_B). Imported inside `Feed.frontend` alone, so that ingest needs no torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.contracts import Ragged


class Convolution(nn.Module):
    """Steps of `features` numbers -> width, by one convolution over `kernel` (odd) steps, every `stride`-th kept.

    GELU and LayerNorm follow. Lengths become ceil(length / stride). The zeros behind a sequence are what the
    convolution sees at its edge anyway, and x_BTD is zero behind each length, so padding changes nothing.
    """

    def __init__(self, features: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(features, width, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.stride = stride

    def forward(self, sequences: Ragged) -> tuple[Tensor, Tensor]:
        x_BTF = sequences.padded().flatten(2).to(self.convolution.weight.dtype)
        x_BTD = self.norm(nn.functional.gelu(self.convolution(x_BTF.transpose(1, 2)).transpose(1, 2)))
        lengths_B = (sequences.lengths_B + self.stride - 1) // self.stride
        behind_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= lengths_B[:, None]
        return x_BTD.masked_fill(behind_BT[:, :, None], 0.0), lengths_B
