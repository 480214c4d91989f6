"""Each family is what its literature writes: the published formulas, once more, in NumPy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import choices
from pipeline.models.transformer import Sight
from tests.conformance.backbones import (
    RECURRENT,
    both_directions,
    built,
    close,
    ragged,
)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gates(of: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, count: int) -> tuple[list[np.ndarray], ...]:
    """Input and recurrent share of each gate."""
    from_x = of["weight_ih_l0"] @ x + of["bias_ih_l0"]
    from_h = of["weight_hh_l0"] @ h + of["bias_hh_l0"]
    return np.split(from_x, count), np.split(from_h, count)


def elman(of: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (from_x,), (from_h,) = gates(of, x, h, 1)
    return np.tanh(from_x + from_h), c


def rectified(of: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (from_x,), (from_h,) = gates(of, x, h, 1)
    return np.maximum(from_x + from_h, 0), c


def hochreiter(of: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, f, g, o = (from_x + from_h for from_x, from_h in zip(*gates(of, x, h, 4), strict=True))
    c = logistic(f) * c + logistic(i) * np.tanh(g)
    return logistic(o) * np.tanh(c), c


def cho(of: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = gates(of, x, h, 3)
    z = logistic(z_x + z_h)
    return (1 - z) * np.tanh(n_x + logistic(r_x + r_h) * n_h) + z * h, c


def published(layer: nn.Module, formula: Callable[..., Any], x_TD: np.ndarray) -> np.ndarray:
    of = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    h = c = np.zeros(layer.hidden_size)
    y = []
    for x in x_TD:
        h, c = formula(of, x, h, c)
        y.append(h)
    return np.stack(y)


@pytest.mark.parametrize(
    ("family", "formula", "settings"),
    [
        ("rnn", elman, {}),
        ("rnn", rectified, {"nonlinearity": "relu"}),
        ("lstm", hochreiter, {}),
        ("gru", cho, {}),
    ],
)
def test_recurrent_layers_are_the_published_formulas(family: str, formula: Any, settings: dict[str, Any]) -> None:
    x_BTD, lengths_B = ragged((9,))
    backbone = built(family, causal=True, residual=False, **settings)
    expected = x_BTD[0].numpy()
    for layer in backbone.layers:
        expected = published(layer.ahead, formula, expected)
    close(backbone(x_BTD, lengths_B).y_BTD[0], expected)
    close(backbone(x_BTD, lengths_B, {}).state["h"][0, -1], expected[-1])

    backbone = built(family, causal=False, layers=1, residual=False, **settings)
    ahead, back = backbone.layers[0].ahead, backbone.layers[0].back
    x_TD = x_BTD[0].numpy()
    expected = np.concatenate((published(ahead, formula, x_TD), published(back, formula, x_TD[::-1])[::-1]), -1)
    close(backbone(x_BTD, lengths_B).y_BTD[0], expected)


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_weights_begin_orthogonal_gate_by_gate(family: str) -> None:
    layer = choices.make("models", family, {"width": 12}).build(causal=True).layers[0].ahead
    for gate in layer.weight_hh_l0.split(12):
        close((gate @ gate.T).detach(), torch.eye(12), within=1e-5)
    forget = layer.bias_ih_l0[12:24].detach() + layer.bias_hh_l0[12:24].detach() if family == "lstm" else torch.ones(1)
    assert (forget == 1).all()


@pytest.mark.parametrize("family", RECURRENT)
@both_directions
def test_a_residual_stack_adds_each_layer_to_what_it_reads(family: str, causal: bool) -> None:
    """Pre-norm: x + layer(norm(x)), a last norm behind all."""
    (x_BTD, lengths_B), backbone = ragged((9,)), built(family, causal=causal)
    expected = x_BTD
    for layer in backbone.layers:
        normed = layer.norm(expected)
        mixed = layer.ahead(normed)[0]
        if not causal:
            mixed = torch.cat((mixed, layer.back(normed.flip(1))[0].flip(1)), -1)
        expected = expected + mixed
    close(backbone(x_BTD, lengths_B).y_BTD, backbone.norm(expected))


@both_directions
@pytest.mark.parametrize(("width", "heads"), [(7, 2), (8, 4), (3, 8)])
def test_attention_is_the_published_formula(causal: bool, width: int, heads: int) -> None:
    """softmax(Q K^T / sqrt(E)) V with pairs turned as complex numbers (RoFormer, section 3.2.2)."""
    x_BTD, lengths_B = ragged((6,), width=width)
    backbone = built("transformer", causal=causal, width=width, heads=heads, layers=1)
    layer, x_TD = backbone.layers[0], x_BTD[0]
    head_width = backbone.head_width
    assert head_width % 2 == 0 and width / heads <= head_width < width / heads + 2
    normed = layer.attend_norm(x_TD)
    q, k, v = layer.attend.query_key_value(normed).detach().numpy().reshape(6, 3, heads, head_width).swapaxes(0, 1)
    half = head_width // 2
    turn = np.exp(1j * np.arange(6)[:, None, None] * 10_000.0 ** (-np.arange(half) / half))
    q, k = ((part[..., :half] + 1j * part[..., half:]) * turn for part in (q, k))
    scores = np.einsum("tnp,snp->nts", q, k.conj()).real / np.sqrt(head_width)
    if causal:
        scores = np.where(np.tril(np.ones((6, 6))), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("nts,sne->tne", weights, v).reshape(6, -1)
    u_TD = x_TD + layer.attend.out(torch.from_numpy(mixed))
    close(backbone(x_BTD, lengths_B).y_BTD[0], backbone.norm(u_TD + layer.feed(layer.feed_norm(u_TD))))


def test_positions_stay_apart_in_a_long_bf16_row() -> None:
    turned = [
        Sight(torch.zeros(1, 1000, 8, dtype=dtype), torch.tensor([1000]), None, width=4, causal=True).rotate(
            torch.ones(1, 1000, 2, 4, dtype=dtype)
        )
        for dtype in (torch.float64, torch.bfloat16)
    ]
    assert turned[1].dtype == torch.bfloat16
    close(turned[1].double(), turned[0], within=0.01)
