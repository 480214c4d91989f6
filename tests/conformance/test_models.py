"""What every file on the models shelf promises: `Backbone` and `Family` in pipeline.contracts, and law 7."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline import choices
from pipeline.contracts import InputError
from pipeline.experiment import Experiment, override
from tests.conformance.backbones import (
    LENGTHS,
    RECURRENT,
    both_directions,
    built,
    close,
    every_family,
    in_steps,
    ragged,
)


@every_family
@both_directions
@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_any_width_goes_in_and_comes_out(family: str, causal: bool, width: int) -> None:
    x_BTD, lengths_B = ragged(width=width)
    outputs = built(family, causal=causal, width=width)(x_BTD, lengths_B)
    assert outputs.y_BTD.shape == x_BTD.shape
    assert outputs.lengths_B.tolist() == list(LENGTHS)
    assert outputs.state is None
    assert outputs.y_BTD.isfinite().all()


@every_family
@both_directions
def test_outputs_are_zero_in_the_padding(family: str, causal: bool) -> None:
    y_BTD = built(family, causal=causal)(*ragged()).y_BTD
    for row, steps in enumerate(LENGTHS):
        assert not y_BTD[row, steps:].any()
        assert y_BTD[row, :steps].any(-1).all()


@every_family
@both_directions
def test_padding_changes_nothing(family: str, causal: bool) -> None:
    """Neither outputs nor gradients: a ragged batch is its rows alone, even with NaN behind them."""
    backbone, (x_BTD, lengths_B) = built(family, causal=causal), ragged()
    for row, steps in enumerate(LENGTHS):
        x_BTD[row, steps:] = float("nan")
    weight_BTD = torch.randn_like(x_BTD)

    def gradients() -> list[Tensor]:
        taken = [parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None]
        backbone.zero_grad()
        return taken

    together = backbone(x_BTD.requires_grad_(), lengths_B).y_BTD
    (together * weight_BTD).sum().backward()
    of_batch, of_x = gradients(), x_BTD.grad
    assert of_x is not None
    for row, steps in enumerate(LENGTHS):
        if steps:
            alone = backbone(x_BTD[row : row + 1, :steps], lengths_B[row : row + 1]).y_BTD
            close(together[row : row + 1, :steps], alone)
            (alone * weight_BTD[row, :steps]).sum().backward()
        assert not of_x[row, steps:].any()
    for ours, theirs in zip(of_batch, gradients(), strict=True):
        close(ours, theirs)


@every_family
@both_directions
def test_the_past_moves_with_the_future_only_where_it_may(family: str, causal: bool) -> None:
    backbone, (x_BTD, lengths_B) = built(family, causal=causal), ragged((8, 6))
    later = x_BTD.clone()
    later[:, 4:] = torch.randn_like(later[:, 4:])
    before, after = backbone(x_BTD, lengths_B).y_BTD, backbone(later, lengths_B).y_BTD
    assert torch.equal(before[:, :4], after[:, :4]) == causal
    assert not torch.allclose(before[:, 4], after[:, 4])


@every_family
@both_directions
def test_steps_are_told_apart_by_their_order(family: str, causal: bool) -> None:
    backbone, (x_BTD, lengths_B) = built(family, causal=causal), ragged((6,))
    swapped = backbone(x_BTD[:, [1, 0, 2, 3, 4, 5]], lengths_B).y_BTD
    assert not torch.allclose(backbone(x_BTD, lengths_B).y_BTD[:, 5], swapped[:, 5])


@every_family
@both_directions
def test_a_batch_of_empty_rows_gives_empty_outputs_and_zero_gradients(family: str, causal: bool) -> None:
    backbone = built(family, causal=causal)
    for steps, state in [(0, None), (2, None), *([(0, {}), (2, {})] if causal else [])]:
        outputs = backbone(torch.randn(3, steps, 7, dtype=torch.float64), torch.zeros(3, dtype=torch.long), state)
        assert outputs.y_BTD.shape == (3, steps, 7)
        outputs.y_BTD.sum().backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in backbone.parameters())


@every_family
@pytest.mark.parametrize(
    "cuts",
    [
        [[1] * 5] * 9,  # ones all the way
        [[3] * 5, [6] * 5],
        [[5, 1, 9, 0, 4]],
        [[3, 0, 4, 1, 4], [1, 5, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 4, 2, 3]],
        [[0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [0, 1, 1, 0, 1], [2, 2, 0, 0, 2]],
    ],
    ids=["single", "halves", "whole", "ragged", "starting late"],
)
def test_steps_with_state_are_the_whole(family: str, cuts: list[list[int]]) -> None:
    backbone, lengths_B = built(family, causal=True, layers=3), torch.tensor(cuts).sum(0)
    x_BTD = ragged((9,) * 5)[0]
    whole, stepped = backbone(x_BTD, lengths_B), in_steps(backbone, x_BTD, cuts)
    assert stepped.lengths_B.tolist() == lengths_B.tolist()
    close(stepped.y_BTD, whole.y_BTD)
    # The state itself is right too: what comes behind each row's end goes on from there.
    behind = torch.randn(5, 2, 7, dtype=torch.float64)
    onward = torch.cat((x_BTD, torch.zeros_like(behind)), 1)
    for row, steps in enumerate(lengths_B.tolist()):
        onward[row, steps : steps + 2] = behind[row]
    continued = backbone(behind, torch.full((5,), 2), stepped.state).y_BTD
    longer = backbone(onward, lengths_B + 2).y_BTD
    for row, steps in enumerate(lengths_B.tolist()):
        close(continued[row], longer[row, steps : steps + 2])


@every_family
def test_gradients_flow_through_the_state(family: str) -> None:
    backbone, (x_BTD, _) = built(family, causal=True), ragged((6, 6))
    weight_BTD, taken = torch.randn_like(x_BTD), []
    for cuts in ([[6, 5]], [[2, 3], [4, 2]]):
        copied = x_BTD.clone().requires_grad_()
        (in_steps(backbone, copied, cuts).y_BTD * weight_BTD).sum().backward()
        assert copied.grad is not None
        taken.append(copied.grad)
    close(taken[0], taken[1])


@every_family
def test_rows_of_a_state_can_be_put_in_another_order(family: str) -> None:
    backbone, (x_BTD, lengths_B) = built(family, causal=True), ragged()
    state, order = backbone(x_BTD, lengths_B, {}).state, torch.tensor([2, 2, 0, 4])
    after = backbone(x_BTD[:, :2], torch.full((5,), 2), state).y_BTD
    reordered = {name: part[order] for name, part in state.items()}
    close(backbone(x_BTD[order, :2], torch.full((4,), 2), reordered).y_BTD, after[order])


@every_family
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_state_bytes_are_the_real_bytes(family: str, steps: int) -> None:
    backbone = built(family, causal=True, double=False, layers=3)
    state = backbone(torch.randn(4, steps, 7), torch.full((4,), steps), {}).state
    assert sum(part.numel() * part.element_size() for part in state.values()) == 4 * backbone.state_bytes(steps)


@every_family
def test_a_bidirectional_backbone_refuses_a_state(family: str) -> None:
    backbone = built(family, causal=False)
    assert backbone.state_bytes(9) == 0
    with pytest.raises(ValueError, match="carries no state"):
        backbone(*ragged(), {})


@every_family
@both_directions
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])  # a frontend may give either
def test_bf16_autocast_is_finite_and_near(family: str, causal: bool, residual: bool, given: torch.dtype) -> None:
    settings = {"residual": residual} if family in RECURRENT else {}
    backbone, lengths_B = built(family, causal=causal, double=False, width=16, **settings), torch.tensor(LENGTHS)
    x_BTD = torch.randn(len(LENGTHS), 9, 16)
    exact = backbone(x_BTD, lengths_B).y_BTD
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(x_BTD.to(given), lengths_B).y_BTD
    close(rough.float(), exact, within=0.1)
    rough.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in backbone.parameters())
    if causal:
        with torch.autocast("cpu", torch.bfloat16):
            halves = in_steps(backbone, x_BTD.to(given), [[3, 1, 4, 0, 2], [2, 0, 5, 0, 2]])
        close(halves.y_BTD.float(), exact, within=0.1)


@every_family
@both_directions
def test_a_model_that_is_bf16_altogether_runs(family: str, causal: bool) -> None:
    """DeepSpeed's bf16: weights, buffers and inputs."""
    backbone, (x_BTD, lengths_B) = built(family, causal=causal), ragged()
    exact = backbone(x_BTD, lengths_B).y_BTD
    close(backbone.bfloat16()(x_BTD.bfloat16(), lengths_B).y_BTD.double(), exact, within=0.2)


@every_family
@both_directions
def test_dropout_is_off_in_eval_and_seeded_in_training(family: str, causal: bool) -> None:
    backbone, (x_BTD, lengths_B) = built(family, causal=causal, dropout=0.5), ragged()

    def y(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return backbone(x_BTD, lengths_B).y_BTD

    assert torch.equal(y(0), y(1))
    backbone.train()
    assert torch.equal(y(0), y(0))
    assert not torch.equal(y(0), y(1))


@every_family
@both_directions
def test_a_seed_fixes_the_weights_and_a_copy_keeps_them(family: str, causal: bool) -> None:
    backbone, again = (built(family, causal=causal) for _ in range(2))
    y_BTD = backbone(*ragged()).y_BTD
    loaded = built(family, causal=causal)
    nn.init.zeros_(next(loaded.parameters()))
    loaded.load_state_dict(backbone.state_dict())
    for other in (again, copy.deepcopy(backbone), loaded):
        assert torch.equal(other(*ragged()).y_BTD, y_BTD)


@every_family
@both_directions
@pytest.mark.parametrize("layers", [1, 4])
def test_a_fresh_backbone_keeps_the_scale_of_its_inputs(family: str, causal: bool, layers: int) -> None:
    """Forward and backward: nothing explodes or dies at the start, at any depth."""
    torch.manual_seed(0)
    backbone = choices.make("models", family, {"width": 32, "layers": layers}).build(causal=causal).eval()
    x_BTD = torch.randn(4, 60, 32, requires_grad=True)
    y_BTD = backbone(x_BTD, torch.full((4,), 60)).y_BTD
    (y_BTD * torch.randn_like(y_BTD)).sum().backward()
    assert x_BTD.grad is not None
    assert 0.3 < y_BTD.std() < 3
    assert 0.1 < x_BTD.grad.std() < 10


@every_family
@both_directions
def test_a_tiny_labelling_is_learnt_by_heart(family: str, causal: bool) -> None:
    torch.manual_seed(1)
    backbone = choices.make("models", family, {"width": 24, "dropout": 0.0}).build(causal=causal)
    x_BTD, lengths_B, targets_BT = torch.randn(4, 8, 24), torch.tensor([8, 3, 6, 8]), torch.randint(5, (4, 8))
    valid_BT = torch.arange(8) < lengths_B[:, None]
    head = nn.Linear(24, 5)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        logits = head(backbone(x_BTD, lengths_B).y_BTD)[valid_BT]
        loss = nn.functional.cross_entropy(logits, targets_BT[valid_BT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(-1) == targets_BT[valid_BT]).all()
    assert loss < 0.1


@every_family
def test_wrong_settings_are_refused_by_name(family: str) -> None:
    with pytest.raises(InputError, match="did you mean 'width'"):
        choices.make("models", family, {"wdith": 3})
    for name, value in {"width": 0, "layers": 0, "dropout": 1.0}.items():
        with pytest.raises(InputError, match=name):
            choices.make("models", family, {name: value})


@every_family
def test_every_candidate_of_the_search_can_be_set(family: str) -> None:
    dataset = {
        "name": "d",
        "corpus": {"name": "x"},
        "fields": [{"name": "f", "modality": {"name": "x"}, "role": "input"}],
    }
    for path, candidates in choices.load("models", family).search.items():
        assert len(set(candidates)) == len(candidates) > 1
        for candidate in candidates:
            start = Experiment(name="e", dataset=dataset, task={"name": "x"}, model={"name": family})  # type: ignore[arg-type]
            changed = override(start, path, candidate)
            assert changed.model.make("models").build(causal=True)
            assert path.startswith("model.") or changed != start or candidate == start.optim.lr


@every_family
def test_training_twice_from_one_seed_ends_in_the_same_bits(family: str) -> None:
    ends = []
    for _ in range(2):
        backbone, (x_BTD, lengths_B) = built(family, causal=False, double=False).train(), ragged()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        for _ in range(3):
            backbone(x_BTD.float(), lengths_B).y_BTD.square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in backbone.parameters()]))
    assert torch.equal(*ends)
