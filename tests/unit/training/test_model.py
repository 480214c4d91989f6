from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.choices import names
from pipeline.contracts import FieldInfo, InputError, Ragged
from pipeline.experiment import Experiment, choose, override
from pipeline.training.model import TOLERANCE, build, meet_budget, num_parameters, weights_of, width_for
from tests.words import of_family, words

FIELDS = {
    "audio": FieldInfo(dtype="float32", shape=(40,)),
    "label": FieldInfo(dtype="int64", shape=(), vocabulary=tuple("abcdefghij")),
}


def sounds(seed: int = 0) -> dict[str, Ragged]:
    lengths_B = torch.tensor([5, 9, 1])
    values = torch.randn(15, 40, generator=torch.Generator().manual_seed(seed))
    return {"audio": Ragged(values=values, lengths_B=lengths_B)}


@pytest.mark.parametrize("parameters", [20_000, 100_000, 250_000, 1_000_000])
@pytest.mark.parametrize("family", names("models"))
def test_every_family_meets_a_parameter_budget_by_its_width(family: str, parameters: int) -> None:
    experiment = override(words({"model": choose(family)}), "budget.parameters", parameters)
    brought = meet_budget(experiment, FIELDS)
    assert abs(num_parameters(build(brought, FIELDS)) - parameters) <= TOLERANCE * parameters
    assert replace(brought, model=experiment.model) == experiment, "nothing else may change"


def test_of_the_widths_that_fit_the_roundest_is_taken() -> None:
    experiment = override(words(), "model", choose("gru", layers=2))
    width = width_for(experiment, FIELDS, 250_000)
    around = {
        near: num_parameters(build(override(experiment, "model.width", near), FIELDS))
        for near in range(width - 3, width + 4)
    }
    fitting = [near for near, count in around.items() if abs(count - 250_000) <= TOLERANCE * 250_000]
    assert width in fitting and all(near & -near <= width & -width for near in fitting)


@pytest.mark.parametrize("family", names("models"))
def test_a_budget_that_no_width_meets_is_refused_with_the_nearest_sizes(family: str) -> None:
    with pytest.raises(InputError, match=rf"budget.parameters = 100: {family} cannot .* \(width \d+ has \d+"):
        width_for(of_family(family), FIELDS, 100)


def test_without_a_parameter_budget_the_given_width_is_kept() -> None:
    assert meet_budget(words(), FIELDS) == words()


@pytest.mark.parametrize("family", names("models"))
def test_weights_are_drawn_from_the_seed_whatever_was_drawn_before(family: str) -> None:
    torch.manual_seed(1)
    first = weights_of(build(of_family(family), FIELDS))
    torch.randn(7)
    again = weights_of(build(of_family(family), FIELDS))
    other = weights_of(build(of_family(family, {"seed": 1}), FIELDS))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_copied_weights_do_not_move_with_the_model() -> None:
    model = build(words(), FIELDS)
    kept = weights_of(model)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


@pytest.mark.parametrize("family", names("models"))
def test_any_family_predicts_a_row_of_logits_a_sample(family: str) -> None:
    assert build(of_family(family), FIELDS)(sounds()).shape == (3, 10)


def test_input_fields_are_summed_before_the_backbone() -> None:
    two = two_inputs()
    model = build(two, {**FIELDS, "more": FIELDS["audio"]})
    one, other = sounds(0)["audio"], sounds(1)["audio"]
    both, swapped = model({"audio": one, "more": other}), model({"audio": other, "more": one})
    assert both.shape == (3, 10)
    assert not torch.equal(both, swapped), "each field has a frontend of its own"


def two_inputs() -> Experiment:
    experiment = words()
    more = replace(experiment.dataset.fields[0], name="more")
    dataset = replace(experiment.dataset, fields=(*experiment.dataset.fields, more))
    return replace(experiment, dataset=dataset, inputs={"audio": {"stride": 1}, "more": {"stride": 1}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strid": 2}, "no setting 'strid'; did you mean 'stride'"),
        ({"stride": 0}, "stride = 0"),
        ({"stride": "x"}, "x"),
    ],
)
def test_mistyped_settings_of_an_input_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"inputs.audio: .*{message}"):
        build(replace(words(), inputs={"audio": settings}), FIELDS)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", "lstn", "models has no 'lstn'; did you mean 'lstm'"),
        ("model.widht", 8, "no setting 'widht'; did you mean 'width'"),
        ("model.width", 0, "width = 0"),
        ("task.target", "lable", "no target field 'lable'; did you mean 'label'"),
    ],
)
def test_mistyped_settings_of_model_and_task_are_named(path: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(override(words(), path, value), FIELDS)
