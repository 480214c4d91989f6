"""The Transformer (Vaswani et al. 2017, "Attention Is All You Need"): x_BTD -> y_BTD, for any width D.

Layers in pre-norm order (Xiong et al. 2020), GELU feed-forward (Hendrycks and Gimpel 2016), positions by rotation of
queries and keys (Su et al. 2021, RoFormer), so that attention sees distances and no length is built in:

    u = x + drop(O softmax(rot(Q n) rot(K n)^T / sqrt(E)) V n), n = norm(x);  y = u + drop(W2 gelu(W1 norm(u)))

In tensor names besides: N heads, E numbers a head, S remembered steps, P = E/2 rotated pairs.

State, causal only: {"keys", "values": (B, layers, S, N, E), "steps": (B,)}. Slot s of a row holds its step s; slots at
or behind `steps` hold nothing. `{}` is the state behind no step at all. A call that is given a state gives back the
one behind each row's last valid step; a call without one (training) gives none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.choices import settings
from pipeline.contracts import Outputs, State
from pipeline.experiment import Positive, Share


@settings
class Transformer:
    """Settings of the family. `feedforward` is the hidden layer's multiple of the width."""

    width: Positive = 128
    layers: Positive = 2
    dropout: Share = 0.1
    heads: Positive = 4
    feedforward: Annotated[float, pydantic.Field(gt=0)] = 4.0

    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "optim.lr": (3e-4, 1e-3, 2e-3),
        "model.layers": (2, 3, 4),
        "model.dropout": (0.0, 0.1, 0.2),
        "model.heads": (2, 4, 8),
    }

    @property
    def head_width(self) -> int:
        """Even, for the rotation turns pairs; rounded up, so that every width and number of heads go together."""
        return 2 * -(-self.width // (2 * self.heads))

    def build(self, *, causal: bool) -> nn.Module:
        return AttentionStack(self, causal=causal)


class Attention(nn.Module):
    """Multi-head attention between the steps of a row, and to the steps it remembers."""

    def __init__(self, family: Transformer) -> None:
        super().__init__()
        self.heads, inner = family.heads, family.heads * family.head_width
        self.query_key_value = nn.Linear(family.width, 3 * inner)
        self.out = nn.Linear(inner, family.width)

    def forward(self, x_BTD: Tensor, sight: Sight, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """`past` holds keys and values (B, S, N, E); those of old and new steps come back, one slot a step."""
        q_BTNE, k_BTNE, v_BTNE = self.query_key_value(x_BTD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_BTNE, kept = sight.rotate(q_BTNE), [sight.rotate(k_BTNE), v_BTNE]
        if past is not None:
            kept = [sight.append(old, new) for old, new in zip(past, kept, strict=True)]
        y_BNTE = scaled_dot_product_attention(
            q_BTNE.transpose(1, 2),
            kept[0].transpose(1, 2),
            kept[1].transpose(1, 2),
            attn_mask=sight.seen_B1TS,
            is_causal=sight.seen_B1TS is None,
        )
        return self.out(y_BNTE.transpose(1, 2).flatten(2)), kept


class Sight:
    """Which step stands where and sees what: the same for all layers of one forward."""

    def __init__(self, x_BTD: Tensor, lengths_B: Tensor, past_B: Tensor | None, *, width: int, causal: bool) -> None:
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        self.valid_BT1 = (steps_T < lengths_B[:, None])[..., None]
        place_BT = steps_T[None] if past_B is None else past_B[:, None] + steps_T
        # Made here and in fp32 or better: as a buffer the angles would go to bf16 with the model, and steps would blur.
        precise = torch.promote_types(x_BTD.dtype, torch.float32)
        turn_P = 10_000.0 ** (-torch.arange(0, width, 2, device=x_BTD.device, dtype=precise) / width)
        angle_BT1P = place_BT[..., None, None] * turn_P
        self.cos_BT1P, self.sin_BT1P = angle_BT1P.cos(), angle_BT1P.sin()
        self.seen_B1TS: Tensor | None = None  # None: each step sees itself and what lies before it, padding lies behind
        if past_B is not None:
            self.past_B, self.steps_B = past_B, past_B + lengths_B
            self.slots_S = torch.arange(max(1, int(self.steps_B.max())), device=x_BTD.device)
            self.seen_B1TS = (self.slots_S <= place_BT[..., None])[:, None]
        elif not causal:
            # A row without a step looks at its first padding: over nothing a softmax is NaN, in some kernels.
            self.seen_B1TS = (self.valid_BT1 | (steps_T == 0)[:, None]).transpose(1, 2)[:, None]

    def rotate(self, x_BTNE: Tensor) -> Tensor:
        """Each pair (a, b) of a head turned by its step's angle; the first half holds all a, the second all b."""
        a_BTNP, b_BTNP = x_BTNE.chunk(2, -1)
        cos, sin = self.cos_BT1P, self.sin_BT1P
        return torch.cat((a_BTNP * cos - b_BTNP * sin, a_BTNP * sin + b_BTNP * cos), -1).to(x_BTNE.dtype)

    def append(self, old_BSNE: Tensor, new_BTNE: Tensor) -> Tensor:
        """New steps put right behind each row's old ones, although rows are of different lengths."""
        behind_BS = old_BSNE.shape[1] + self.slots_S - self.past_B[:, None]
        from_BS = torch.where(self.slots_S < self.past_B[:, None], self.slots_S, behind_BS)
        both = torch.cat((old_BSNE, new_BTNE), 1)
        index = from_BS.clamp(max=both.shape[1] - 1)[..., None, None].expand(-1, -1, *both.shape[2:])
        return both.gather(1, index)


class Layer(nn.Module):
    def __init__(self, family: Transformer) -> None:
        super().__init__()
        hidden = max(1, round(family.width * family.feedforward))
        self.attend_norm, self.attend = nn.LayerNorm(family.width), Attention(family)
        self.feed_norm = nn.LayerNorm(family.width)
        self.feed = nn.Sequential(nn.Linear(family.width, hidden), nn.GELU(), nn.Linear(hidden, family.width))
        self.dropout = nn.Dropout(family.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Branches that end in the residual sum start smaller, so that the sum does not grow with the depth
                # (Radford et al. 2019).
                ends = name in {"attend.out.weight", "feed.2.weight"}
                nn.init.xavier_uniform_(parameter, gain=(2 * family.layers) ** -0.5 if ends else 1.0)

    def forward(self, x_BTD: Tensor, sight: Sight, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        attended_BTD, kept = self.attend(self.attend_norm(x_BTD), sight, past)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.feed(self.feed_norm(x_BTD))), kept


class AttentionStack(nn.Module):
    """The backbone; `Backbone` in pipeline.protocols says what it promises."""

    def __init__(self, family: Transformer, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.heads, self.head_width = causal, family.heads, family.head_width
        self.layers = nn.ModuleList(Layer(family) for _ in range(family.layers))
        self.norm = nn.LayerNorm(family.width)

    def state_bytes(self, num_steps: int) -> int:
        """A key and a value a step, layer and head, and the count of steps; a bidirectional backbone carries none."""
        return 8 + 4 * 2 * num_steps * len(self.layers) * self.heads * self.head_width if self.causal else 0

    def forward(self, x_BTD: Tensor, lengths_B: Tensor, state: State = None) -> Outputs:
        if state is not None and not self.causal:
            raise ValueError("a bidirectional backbone carries no state: build(causal=True) makes one that does")
        steps = x_BTD.shape[1]
        if not steps:  # nothing but empty rows; not every attention kernel takes an empty axis
            x_BTD = nn.functional.pad(x_BTD, (0, 0, 0, 1))
        if state is not None and not state:
            none_BLSNE = x_BTD.new_zeros(len(x_BTD), len(self.layers), 0, self.heads, self.head_width)
            state = {"keys": none_BLSNE, "values": none_BLSNE, "steps": torch.zeros_like(lengths_B)}
        past_B = None if state is None else state["steps"]
        sight = Sight(x_BTD, lengths_B, past_B, width=self.head_width, causal=self.causal)
        y_BTD = x_BTD.masked_fill(~sight.valid_BT1, 0)  # even a NaN in the padding must not reach a weight's gradient
        kept = []
        for depth, layer in enumerate(self.layers):
            past = None if state is None else (state["keys"][:, depth], state["values"][:, depth])
            y_BTD, remembered = layer(y_BTD, sight, past)
            kept.append(remembered)
        y_BTD = self.norm(y_BTD).masked_fill(~sight.valid_BT1, 0)[:, :steps]
        if state is not None:
            keys, values = (torch.stack(parts, 1) for parts in zip(*kept, strict=True))
            state = {"keys": keys, "values": values, "steps": sight.steps_B}
        return Outputs(y_BTD=y_BTD, lengths_B=lengths_B, state=state)
