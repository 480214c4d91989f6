"""Scale: WHERE a run runs and how big; nothing here changes what is computed."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import pydantic

from pipeline.choices import settings

# Workers have working directories of their own, so a relative path is fixed where the scale is made.
Place = Annotated[str, pydantic.AfterValidator(os.path.abspath), pydantic.Field(validate_default=True)]
Positive = Annotated[int, pydantic.Field(gt=0)]


@settings
class Scale:
    """Paths must be reachable from every node under the same name.

    `workers` ranks a run, each with `cpus` cores (and one GPU where `device` is "cuda"); `parallel` runs of a sweep
    or tasks of an ingest at once (as many as there is room for where None). `checkpoint_steps` saves every so many
    steps besides the end of each round, `log_steps` writes training metrics; `max_failures` restarts of a run;
    `engine` goes to DeepSpeed's own settings.
    """

    data_dir: Place = "data"
    runs_dir: Place = "runs"
    device: Literal["cpu", "cuda"] = "cpu"
    workers: Positive = 1
    cpus: Positive = 1
    parallel: Positive | None = None
    prefetch_steps: Positive = 4
    checkpoint_steps: Positive | None = None
    log_steps: Positive = 10
    max_failures: Annotated[int, pydantic.Field(ge=-1)] = 3
    address: str | None = None
    wandb: bool = False
    engine: dict[str, Any] = pydantic.Field(default_factory=dict)


LOCAL = Scale(data_dir=os.environ.get("SEQPIT_DATA", "data"), runs_dir=os.environ.get("SEQPIT_RUNS", "runs"))
