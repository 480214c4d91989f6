"""Weights & Biases, for who wants it; a run never stops, waits long or changes because of it.

The mode is WANDB_MODE's, or that of W&B's own settings; with neither a login nor a mode it is offline. A resumed run
continues its own W&B run by `identity`; offline, each attempt leaves its own folder and
`wandb sync --append` puts them together.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.contracts import RunSummary

if TYPE_CHECKING:
    import wandb

PROJECT = "seqpit"
INIT_SECONDS = 10.0
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk for `wandb sync`


class WandbTracker:
    """Metrics over samples seen, one W&B group a contest. `identity` is the W&B run's id: as given, or W&B's own."""

    def __init__(
        self, run: str, contest: str, config: Mapping[str, Any], directory: Path, identity: str | None = None
    ) -> None:
        self.identity = identity
        self._run: wandb.Run | None = None
        self._reached = 0
        self._attempt(lambda: self._open(run, contest, dict(config), directory))

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        """Logs nothing twice: W&B takes no step below its last one, so what is trained again is passed over."""
        if step >= self._reached and (run := self._run):
            self._reached = step
            self._attempt(lambda: run.log({**metrics, "samples": samples}, step=step))

    def rewind(self, step: int) -> None:
        """Nothing to do, see `log`."""

    def finish(self, summary: RunSummary) -> None:
        if run := self._run:
            row = dataclasses.asdict(summary)
            self._attempt(lambda: run.summary.update({name: row[name] for name in row if name != "settings"}))
            self._attempt(run.finish)
        self._run = None

    def _open(self, name: str, contest: str, config: dict[str, Any], directory: Path) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode == "disabled":
            return
        if mode not in {"offline", "dryrun"} and not wandb.login(prompt=False, verify=False):
            warnings.warn(
                "W&B: no login, so this run is recorded offline: `wandb login`, or WANDB_MODE=offline", stacklevel=5
            )
            mode = "offline"
        directory.mkdir(parents=True, exist_ok=True)  # W&B writes to a temporary folder where it is missing
        quiet = wandb.Settings(
            console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, reinit="create_new"
        )
        self._run = wandb.init(
            project=PROJECT,
            id=self.identity,
            resume="allow",
            group=contest,
            name=name,
            dir=str(directory),
            config=config,
            mode=mode,  # type: ignore[arg-type]
            settings=quiet,
        )
        self.identity = self._run.id
        self._reached = self._run.starting_step
        self._run.define_metric("samples")
        self._run.define_metric("*", step_metric="samples")

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, the run goes on
            self._run = None
            warnings.warn(
                f"W&B is off for the rest of this run, {type(error).__name__}: {error}; "
                "metrics.jsonl goes on; WANDB_MODE=offline records without a network",
                stacklevel=3,
            )
