from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from pipeline.choices import names
from pipeline.contracts import Batch, InputError
from pipeline.experiment import Experiment, Optim
from pipeline.scale import Scale
from pipeline.training.engine import COMPUTED, Engine, check_settings, learning_rate
from pipeline.training.model import Model, build
from pipeline.training.streams import open_shards, open_stream
from pipeline.training.worker import SoloWorker
from tests.words import of_family, words

STEPS = 30


@pytest.fixture
def worker(tmp_path: Path) -> SoloWorker:
    return SoloWorker(tmp_path)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    optim = Optim(lr=2.0, warmup=0.1, decay_to=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert all(before > after for before, after in itertools.pairwise(rates[10:]))
    assert 0.2 < rates[-1] < 0.202


def test_no_step_has_a_rate_of_zero() -> None:
    for total in (1, 2, 7, 100):
        assert all(learning_rate(Optim(lr=1.0), step, total) > 0 for step in range(total))


def test_a_constant_schedule_warms_up_and_stays() -> None:
    optim = Optim(lr=1.0, warmup=0.5, schedule="constant")
    assert [learning_rate(optim, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0.0, 0.99])
def test_the_ends_of_warmup_are_sound(warmup: float) -> None:
    rates = [learning_rate(Optim(lr=1.0, warmup=warmup), step, 10) for step in range(10)]
    assert max(rates) == 1.0 and min(rates) > 0


@pytest.mark.parametrize("key", COMPUTED)
def test_what_belongs_to_the_experiment_is_refused_among_engine_settings(key: str) -> None:
    with pytest.raises(InputError, match=rf"scale.engine: '{key}' .* set it in the experiment"):
        check_settings({"wall_clock_breakdown": True, key: {}})


def test_other_engine_settings_reach_deepspeed(worker: SoloWorker, words_dir: Path) -> None:
    experiment = words()
    model = build(experiment, open_shards(experiment, Scale(data_dir=str(words_dir))).manifest.fields)
    engine = Engine(model, experiment.optim, worker, {"gradient_predivide_factor": 2.0})
    assert engine._deepspeed.gradient_predivide_factor() == 2.0
    engine.close()


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("family", names("models"))
def test_an_fp32_run_is_plain_torch_adamw(family: str, clip: float, worker: SoloWorker, words_dir: Path) -> None:
    experiment = of_family(family, {"optim.clip": clip, "optim.weight_decay": 0.1, "optim.warmup": 0.2})
    ours = engine_losses(experiment, worker, words_dir)
    assert ours == pytest.approx(torch_losses(experiment, worker, words_dir), rel=1e-6)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("family", names("models"))
def test_bf16_stays_close_to_fp32(family: str, worker: SoloWorker, words_dir: Path) -> None:
    whole = engine_losses(of_family(family), worker, words_dir)
    brief = engine_losses(of_family(family, {"optim.precision": "bf16"}), worker, words_dir)
    assert brief != whole, "bf16 must change something"
    assert brief == pytest.approx(whole, rel=0.05)


def test_clipping_at_zero_is_off(worker: SoloWorker, words_dir: Path) -> None:
    losses = {clip: engine_losses(words({"optim.clip": clip}), worker, words_dir) for clip in (0.0, 1e6, 0.01)}
    assert losses[0.0] == losses[1e6] != losses[0.01]


@pytest.mark.parametrize("micro_batch", [1, 5, 100])
def test_micro_batches_change_nothing_but_the_order_of_sums(
    micro_batch: int, worker: SoloWorker, words_dir: Path
) -> None:
    cut = engine_losses(words({"batching.micro_batch": micro_batch}), worker, words_dir)
    assert cut == pytest.approx(engine_losses(words(), worker, words_dir), rel=1e-5)


def steps(experiment: Experiment, worker: SoloWorker, words_dir: Path) -> tuple[Model, list[list[Batch]]]:
    scale = Scale(data_dir=str(words_dir))
    shards = open_shards(experiment, scale)
    stream = open_stream(experiment, shards, "train", worker, scale, training=True)
    return build(experiment, shards.manifest.fields), list(stream.steps(0, STEPS))


def engine_losses(experiment: Experiment, worker: SoloWorker, words_dir: Path) -> list[float]:
    model, batches = steps(experiment, worker, words_dir)
    engine, task, losses = Engine(model, experiment.optim, worker, {}), experiment.task.make("tasks"), []
    for step, parts in enumerate(batches):
        num_targets = sum(part.num_targets for part in parts)
        sums = []
        for part in parts:
            loss_sum, _ = task.loss(engine.forward(part.inputs), part)
            engine.backward(loss_sum, num_targets)
            sums.append(loss_sum.item())
        engine.update(step, STEPS)
        losses.append(sum(sums) / num_targets)
    engine.close()
    return losses


def torch_losses(experiment: Experiment, worker: SoloWorker, words_dir: Path) -> list[float]:
    model, batches = steps(experiment, worker, words_dir)
    optim, task, losses = experiment.optim, experiment.task.make("tasks"), []
    groups = [
        {"params": [one for one in model.parameters() if one.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [one for one in model.parameters() if one.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
    for step, [batch] in enumerate(batches):
        loss = task.loss(model(batch.inputs), batch)[0] / batch.num_targets
        loss.backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
