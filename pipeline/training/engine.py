"""The engine: DeepSpeed around a model; the only file that knows it.

The loss is a sum; its gradient is divided by the global number of valid targets, so it does not depend on how samples
were cut into ranks and micro-batches. DeepSpeed averages gradients over ranks, hence the factor `world`; micro-batches
are accumulated under its `managed_gradient_accumulation: false`, where `step` is the boundary. bf16 is torch autocast
over fp32 weights. The learning rate is a pure function of the step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.contracts import InputError
from pipeline.experiment import Optim
from pipeline.protocols import Worker

COMPUTED = (  # DeepSpeed settings that would change what is computed: the experiment says these
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "managed_gradient_accumulation",
    "zero_optimization",
    "fp16",
    "bf16",
    "torch_autocast",
)


def learning_rate(optim: Optim, step: int, total: int) -> float:
    """Of optimizer step `step` (from 0) of `total`: linear warm-up, then cosine decay or constant."""
    warmup = math.ceil(optim.warmup * total)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - warmup) / max(1, total - warmup)
    return optim.lr * (optim.decay_to + (1 - optim.decay_to) * 0.5 * (1 + math.cos(math.pi * progress)))


def check_settings(given: Mapping[str, Any]) -> None:
    """Raises InputError for a DeepSpeed setting that belongs to the experiment."""
    for key in given:
        if key in COMPUTED:
            raise InputError(
                f"scale.engine: {key!r} would change what is computed; set it in the experiment (optim, batching)"
            )


class Engine:
    """One rank's model, optimizer and process group."""

    def __init__(self, model: nn.Module, optim: Optim, worker: Worker, settings: Mapping[str, Any]) -> None:
        check_settings(settings)
        self.model, self.optim, self.worker = model.to(worker.device), optim, worker
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, though the device is the worker's
        os.environ.setdefault("DS_ACCELERATOR", worker.device.type)
        import deepspeed
        import deepspeed.ops

        if worker.device.type == "cpu":
            # An empty table of compatible ops keeps DeepSpeed from compiling a shared-memory collective for a minute on
            # first use (and from waiting for ever on a killed build's lock); gloo does the work.
            vars(deepspeed.ops)["__compatible_ops__"] = {}
        decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        plain = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # bookkeeping alone: micro-batches differ in size
            "managed_gradient_accumulation": False,
            "gradient_clipping": optim.clip,
            "zero_optimization": {"stage": 0},
            "steps_per_print": None,
            **settings,
        }
        self._deepspeed, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=config)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.worker.device.type, dtype=torch.bfloat16, enabled=self.optim.precision == "bf16", cache_enabled=False
        )

    def forward(self, inputs: Any) -> Tensor:
        with self.precision():
            predicted: Tensor = self._deepspeed(inputs)
        return predicted

    def backward(self, loss_sum: Tensor, num_targets: float) -> None:
        """Adds the gradient of this micro-batch's loss sum over the step's global number of targets."""
        self._deepspeed.backward(loss_sum * (self.worker.world / max(1.0, num_targets)), scale_wrt_gas=False)

    def update(self, step: int, total: int) -> None:
        """Reduces the gradients over ranks, clips, and makes optimizer step `step` of `total`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, step, total)
        self._deepspeed.step()

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        if self.worker.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.worker.device)
        torch.distributed.all_reduce(tensor)
        return list(tensor.tolist())

    def state(self) -> dict[str, Any]:
        """Optimizer state as tensors and plain values."""
        return self.optimizer.state_dict()

    def restore(self, weights: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        self.model.load_state_dict(dict(weights))
        self.optimizer.load_state_dict(state)

    def close(self) -> None:
        self._deepspeed.destroy()
