"""Model: frontends | backbone | head, put together from an experiment's choices.

Every family meets every modality and every task at one tensor, x_BTD. Several input fields are aligned to one step rate
and summed before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.contracts import FieldInfo, InputError, Outputs, Ragged
from pipeline.data.plan import derive
from pipeline.experiment import Experiment, override

TOLERANCE = 0.02  # within which families meet a parameter budget


class UnmetBudgetError(InputError):
    """A family can be brought to the parameter budget by no width."""


class Model(nn.Module):
    """{field: Ragged} -> what the task's head predicts."""

    def __init__(self, frontends: Mapping[str, nn.Module], backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.frontends = nn.ModuleDict(frontends)
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Mapping[str, Ragged]) -> Tensor:
        fronts = [frontend(inputs[name]) for name, frontend in self.frontends.items()]
        x_BTD, lengths_B = fronts[0]
        for more_BTD, _ in fronts[1:]:
            x_BTD = x_BTD + more_BTD
        outputs: Outputs = self.backbone(x_BTD, lengths_B)
        predicted: Tensor = self.head(outputs)
        return predicted


def build(experiment: Experiment, fields: Mapping[str, FieldInfo]) -> Model:
    """The experiment's model with weights drawn from its seed. `fields` is what ingest learned."""
    torch.manual_seed(derive(experiment.seed, "weights"))
    family, task = experiment.model.make("models"), experiment.task.make("tasks")
    inputs, targets = experiment.dataset.of_role("input"), experiment.dataset.of_role("target")
    frontends = {spec.name: experiment.feed(spec).frontend(fields[spec.name], family.width) for spec in inputs}
    head = task.head(family.width, {spec.name: fields[spec.name] for spec in targets})
    return Model(frontends, family.build(causal=task.causal), head)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def width_for(experiment: Experiment, fields: Mapping[str, FieldInfo], parameters: int) -> int:
    """The width at which the experiment's model has `parameters` parameters, to within 2 %.

    Of the widths that fit, the roundest (divisible by the highest power of two) is taken: devices like it. Raises
    UnmetBudgetError where none fits.
    """
    counts: dict[int, int] = {}

    def count(width: int) -> int:
        if width not in counts:
            with torch.device("meta"):
                counts[width] = num_parameters(build(override(experiment, "model.width", width), fields))
        return counts[width]

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    reach = max(1, int(TOLERANCE * high))
    fitting = [
        width
        for width in range(max(1, low - reach), high + reach + 1)
        if abs(count(width) - parameters) <= TOLERANCE * parameters
    ]
    if not fitting:
        raise UnmetBudgetError(
            f"budget.parameters = {parameters}: {experiment.model.name} cannot meet it within {TOLERANCE:.0%} "
            f"(width {low} has {count(low)}, width {high} has {count(high)})"
        )
    return max(fitting, key=lambda width: (width & -width, -abs(count(width) - parameters)))


def meet_budget(experiment: Experiment, fields: Mapping[str, FieldInfo]) -> Experiment:
    """The experiment at the width that its parameter budget asks for."""
    if experiment.budget.parameters is None:
        return experiment
    return override(experiment, "model.width", width_for(experiment, fields, experiment.budget.parameters))


def weights_of(model: nn.Module) -> dict[str, Any]:
    """A copy of the weights on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}
