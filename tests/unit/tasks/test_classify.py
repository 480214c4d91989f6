from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from pipeline.choices import make
from pipeline.contracts import Batch, DataError, FieldInfo, InputError, Outputs, Ragged, Tally
from pipeline.tasks.classify import Classify, Pool

POOLS: tuple[Pool, ...] = ("mean_max", "mean", "max", "last")
TARGETS = {"label": FieldInfo(dtype="int64", shape=(), vocabulary=("a", "b", "c"))}


def batch(*ids: int, placeholder: bool = False) -> Batch:
    labels = Ragged(values=torch.tensor(ids), lengths_B=torch.ones(len(ids), dtype=torch.int64))
    targets = {"label": labels}
    keys = () if placeholder else tuple(f"k{row}" for row in range(len(ids)))
    return Batch(inputs={}, targets=targets, num_targets=Classify().num_targets(targets), keys=keys)


def logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", POOLS)
def test_padding_changes_nothing_in_the_head(pool: Pool) -> None:
    torch.manual_seed(0)
    head = Classify(pool=pool).head(8, TARGETS).eval()
    lengths = [1, 4, 9]
    y_BTD = torch.randn(3, 9, 8)
    garbage_BTD = y_BTD.clone()
    for row, length in enumerate(lengths):
        garbage_BTD[row, length:] = float("nan")
    logits_BV = head(Outputs(y_BTD=garbage_BTD, lengths_B=torch.tensor(lengths)))
    assert logits_BV.shape == (3, 3)
    for row, length in enumerate(lengths):
        alone = head(Outputs(y_BTD=y_BTD[row : row + 1, :length], lengths_B=torch.tensor([length])))
        torch.testing.assert_close(logits_BV[row : row + 1], alone)


@pytest.mark.parametrize("pool", POOLS)
def test_garbage_behind_the_end_reaches_no_gradient(pool: Pool) -> None:
    head = Classify(pool=pool, dropout=0.0).head(4, TARGETS)
    y_BTD = torch.randn(2, 5, 4, requires_grad=True)
    head(Outputs(y_BTD=y_BTD, lengths_B=torch.tensor([2, 5]))).sum().backward()
    assert y_BTD.grad is not None
    assert y_BTD.grad.isfinite().all()
    assert not y_BTD.grad[0, 2:].any()


def test_each_pool_is_what_its_name_says() -> None:
    y_BTD = torch.tensor([[[1.0], [4.0], [1.0], [99.0]]])
    outputs = Outputs(y_BTD=y_BTD, lengths_B=torch.tensor([3]))
    seen = {}
    for pool in POOLS:
        head = Classify(pool=pool, dropout=0.0).head(1, TARGETS)
        linear = next(module for module in head.modules() if isinstance(module, nn.Linear))
        linear.register_forward_pre_hook(lambda _, given, pool=pool: seen.update({pool: given[0].tolist()}))
        head(outputs)
    assert seen == {"mean": [[2.0]], "max": [[4.0]], "last": [[1.0]], "mean_max": [[2.0, 4.0]]}


def test_the_head_takes_half_precision() -> None:
    head = Classify().head(4, TARGETS).bfloat16()
    assert head(Outputs(y_BTD=torch.randn(2, 5, 4).bfloat16(), lengths_B=torch.tensor([2, 5]))).dtype == torch.bfloat16


def test_the_loss_is_a_sum_and_its_mean_is_divided_once() -> None:
    predicted = logits(4)
    loss, tally = Classify().loss(predicted, batch(0, 2, 1, 1))
    expected = -predicted.log_softmax(dim=1)[range(4), [0, 2, 1, 1]]
    torch.testing.assert_close(loss, expected.sum())
    assert tally.mean("loss") == pytest.approx(float(expected.mean()))
    right = sum(int(row.argmax()) == label for row, label in zip(predicted, (0, 2, 1, 1), strict=True))
    assert tally.mean("accuracy") == right / 4


def test_how_a_batch_is_cut_changes_neither_loss_nor_tally() -> None:
    predicted, ids = logits(6), (0, 1, 2, -1, 0, 1)
    whole, tally = Classify().loss(predicted, batch(*ids))
    pieces = [Classify().loss(predicted[cut : cut + 2], batch(*ids[cut : cut + 2])) for cut in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.stack([loss for loss, _ in pieces]).sum())
    merged = sum((piece for _, piece in pieces), Tally())
    assert merged.counts == tally.counts == {"accuracy": 6, "loss": 5}
    assert merged.sums == pytest.approx(tally.sums)


def test_an_unknown_label_has_no_loss_and_counts_as_wrong() -> None:
    predicted = logits(2)
    known = int(predicted[0].argmax())
    mixed = batch(known, -1)
    loss, tally = Classify().loss(predicted, mixed)
    torch.testing.assert_close(loss, Classify().loss(predicted[:1], batch(known))[0])
    assert tally.mean("accuracy") == 0.5
    assert mixed.num_targets == 1
    columns = Classify().decode(predicted, mixed)
    assert columns["target"] == [known, -1]
    assert math.isnan(columns["loss"][1])
    assert Classify().score(pa.table(columns))["accuracy"] == 0.5


def test_a_placeholder_batch_weighs_nothing_but_has_a_gradient() -> None:
    predicted = logits(1).requires_grad_()
    loss, tally = Classify().loss(predicted, batch(-1, placeholder=True))
    loss.backward()
    assert predicted.grad is not None
    assert not predicted.grad.any()
    assert (tally.sums, tally.counts) == ({"loss": 0, "accuracy": 0}, {"loss": 0, "accuracy": 0})
    columns = Classify().decode(predicted, batch(-1, placeholder=True))
    assert columns == {"target": [], "prediction": [], "loss": [], "confidence": []}


def test_decoding_says_what_was_predicted_and_how_surely() -> None:
    columns = Classify().decode(torch.tensor([[0.0, math.log(2), 0.0]]), batch(2))
    assert columns["prediction"] == [1]
    assert columns["confidence"] == pytest.approx([0.5])
    assert columns["loss"] == pytest.approx([math.log(4)])


def test_scores_are_those_of_the_rows() -> None:
    losses = [0.1, 0.2, 2.0, 0.1, 3.0, float("nan")]
    columns = pa.table({"target": [0, 0, 0, 1, 2, -1], "prediction": [0, 0, 1, 1, 0, 1], "loss": losses})
    f1 = [2 * 2 / (3 + 3), 2 * 1 / (1 + 3), 0, 0]
    wanted = {"accuracy": 3 / 6, "macro_f1": sum(f1) / 4, "loss": sum(losses[:5]) / 5}
    assert Classify().score(columns) == pytest.approx(wanted)
    perfect = pa.table({"target": [0, 1], "prediction": [0, 1], "loss": [0.0, 0.5]})
    assert Classify().score(perfect) == {"accuracy": 1.0, "macro_f1": 1.0, "loss": 0.25}


def test_the_loss_of_the_rows_is_the_mean_of_the_tally() -> None:
    predicted, known = logits(5), batch(0, -1, 2, 1, 1)
    _, tally = Classify().loss(predicted, known)
    scores = Classify().score(pa.table(Classify().decode(predicted, known)))
    assert scores["loss"] == pytest.approx(tally.mean("loss"))
    assert scores["accuracy"] == tally.mean("accuracy")
    unknown = pa.table(Classify().decode(predicted[:1], batch(-1)))
    assert math.isnan(Classify().score(unknown)["loss"])


def test_there_is_no_score_of_nothing() -> None:
    empty = pa.table({name: pa.array([], pa.int64()) for name in ("target", "prediction", "loss")})
    with pytest.raises(DataError, match="no row to score"):
        Classify().score(empty)


def test_a_sample_of_two_labels_is_refused() -> None:
    labels = Ragged(values=torch.tensor([0, 1, 1]), lengths_B=torch.tensor([1, 2]))
    with pytest.raises(DataError, match="2 labels in 'label', not one"):
        Classify().num_targets({"label": labels})


def test_a_head_needs_its_target_and_two_classes() -> None:
    with pytest.raises(InputError, match=r"no target field 'word'.*choices: label"):
        Classify(target="word").head(4, TARGETS)
    with pytest.raises(InputError, match="'label' has 1 different values"):
        Classify().head(4, {"label": FieldInfo(dtype="int64", shape=(), vocabulary=("a",))})
    with pytest.raises(InputError, match="pool = 'median'"):
        make("tasks", "classify", {"pool": "median"})


def test_the_head_learns() -> None:
    torch.manual_seed(0)
    task = Classify(dropout=0.0)
    head = task.head(3, TARGETS)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    known = batch(*[row % 3 for row in range(30)])
    y_BTD = nn.functional.one_hot(known.targets["label"].values, 3).float()[:, None].repeat(1, 4, 1)
    outputs = Outputs(y_BTD=y_BTD, lengths_B=torch.full((30,), 4))
    for _ in range(30):
        loss, tally = task.loss(head(outputs), known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert tally.mean("accuracy") == 1.0
