"""Experiment: WHAT a run computes. Where and how big it runs is `pipeline.scale`.

Frozen values, checked where they are made. `override(experiment, "model.width", 256)` makes another one;
`to_dict` and `from_dict` are each other's inverse; `fingerprint` covers what is computed, never where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import pydantic

from pipeline.choices import checked, explain, load, make, settings, suggest
from pipeline.contracts import InputError

Positive = Annotated[int, pydantic.Field(gt=0)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
WHERE = ("path",)  # settings of a corpus that say where it lies, not what it is


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, so that a setting is the same before and after it was stored."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given))
    except TypeError as error:
        raise ValueError(f"settings must be plain values, lists and mappings: {error}") from error
    return plain


@settings
class Choice:
    """A file on a shelf, by name, with its settings."""

    name: str
    settings: Annotated[dict[str, Any], pydantic.AfterValidator(_plain)] = pydantic.Field(default_factory=dict)

    def make(self, shelf: str) -> Any:
        return make(shelf, self.name, self.settings)


def choose(name: str, **settings: Any) -> Choice:
    return Choice(name=name, settings=settings)


@settings
class FieldSpec:
    """One stored field of a sample. `store`: `features` decodes once, at ingest; `raw` keeps the original bytes."""

    name: Name
    modality: Choice
    role: Literal["input", "target"]
    store: Literal["features", "raw"] = "features"


@settings
class Split:
    """How a corpus is divided.

    `rules`: split -> {group: regular expression that its whole value matches}; a split takes what matches all its
    rules, and no sample may match two splits. What is left is divided by a hash of the named `group`s (so that a
    speaker never stands in two splits), `shares` of it going to the named splits and the rest to "train".
    """

    rules: dict[Name, dict[str, str]] = pydantic.Field(default_factory=dict)
    group: tuple[str, ...] = ()
    shares: dict[Name, Share] = pydantic.Field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(self.shares.values()) >= 1:
            raise ValueError(f"shares {self.shares} leave nothing for 'train': their sum must be below 1")


@settings
class Dataset:
    """What ingest makes a shard set of; `name@version` is its identity."""

    name: Name
    version: Positive = 1
    corpus: Choice
    fields: Annotated[tuple[FieldSpec, ...], pydantic.Field(min_length=1)]
    split: Split = pydantic.Field(default_factory=Split)
    shard_mb: Annotated[float, pydantic.Field(gt=0)] = 64.0

    def __post_init__(self) -> None:
        seen = [spec.name for spec in self.fields]
        if len({*seen}) < len(seen):
            raise ValueError(f"field names must differ: {', '.join(seen)}")

    @property
    def identity(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def fingerprint(self) -> str:
        """Of all settings that shape the shards' bytes; where the corpus lies is not one of them."""
        plain = to_dict(self)
        corpus = plain["corpus"]["settings"]
        plain["corpus"]["settings"] = {key: value for key, value in corpus.items() if key not in WHERE}
        return digest(plain)

    def check(self) -> None:
        """Raises InputError where a choice does not exist, its settings do not fit, or the corpus lacks a field."""
        corpus = self.corpus.make("corpora")
        for spec in self.fields:
            spec.modality.make("modalities")
            if spec.name not in corpus.fields:
                hint = suggest(spec.name, sorted(corpus.fields))
                raise InputError(f"corpus {self.corpus.name} has no field {spec.name!r}{hint}")

    def of_role(self, role: str) -> list[FieldSpec]:
        return [spec for spec in self.fields if spec.role == role]


@settings
class Optim:
    """AdamW with a linear warm-up and cosine or constant learning rate.

    `warmup` and `decay_to` are shares: of all steps, and of the peak rate.
    """

    lr: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: Share = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    decay_to: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    clip: Annotated[float, pydantic.Field(ge=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"


@settings
class Batching:
    """`batch` samples a global step, cut into micro-batches of at most `micro_batch` a rank (all at once where None).

    Samples are shuffled inside a window of `window` shards, the shards among each other.
    """

    batch: Positive = 32
    micro_batch: Positive | None = None
    window: Positive = 64


@settings
class Budget:
    """What every family gets alike.

    `parameters`: the size all families are brought to (within 2 %) by their width; None keeps the given width.
    Training goes over the data `epochs` times and is scored on the validation split `rounds` times on the way;
    `patience` rounds without a better score end it. A sweep spends `trials` on each family's settings, then trains
    its winner with `seeds` seeds.
    """

    parameters: Positive | None = None
    epochs: Annotated[float, pydantic.Field(gt=0)] = 10
    rounds: Positive = 10
    patience: Positive | None = None
    trials: Positive = 4
    seeds: Positive = 3


@settings
class Experiment:
    """One run: a dataset, a task, a family, how it is fed, optimised and limited."""

    name: Name
    dataset: Dataset
    task: Choice
    model: Choice
    inputs: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    families: tuple[str, ...] = ("rnn", "lstm", "gru", "transformer")
    optim: Optim = pydantic.Field(default_factory=Optim)
    batching: Batching = pydantic.Field(default_factory=Batching)
    budget: Budget = pydantic.Field(default_factory=Budget)
    seed: Annotated[int, pydantic.Field(ge=0)] = 0

    def __post_init__(self) -> None:
        known = [spec.name for spec in self.dataset.fields]
        for name in self.inputs:
            if name not in known:
                raise ValueError(f"inputs: the dataset has no field {name!r}{suggest(name, known)}")

    @property
    def fingerprint(self) -> str:
        return digest({**to_dict(self), "dataset": self.dataset.fingerprint, "families": ()})

    def check(self) -> None:
        """Raises InputError where a choice does not exist or its settings do not fit; imports what they need."""
        self.dataset.check()
        self.task.make("tasks")
        self.model.make("models")
        for family in self.families:
            load("models", family)
        for spec in self.dataset.of_role("input"):
            self.feed(spec)

    def feed(self, spec: FieldSpec) -> Any:
        """The training side of an input field (a Feed), with the experiment's settings for it."""
        modality = spec.modality.make("modalities")
        if not hasattr(modality, "Feed"):
            raise InputError(f"field {spec.name!r}: modality {spec.modality.name} can be a target, but not an input")
        return checked(modality.Feed, self.inputs.get(spec.name, {}), where=f"inputs.{spec.name}")

    @property
    def contest(self) -> str:
        """Runs that may be compared: same data, same task, same budget."""
        terms = [self.dataset.fingerprint, to_dict(self.task), to_dict(self.budget)]
        return f"{self.name}#{digest(terms)[:6]}"


def to_dict(value: Any) -> Any:
    """Plain JSON of a settings object."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def from_dict(plain: Mapping[str, Any]) -> Experiment:
    return checked(Experiment, plain, where="experiment")


def digest(plain: Any) -> str:
    """sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def difference(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """`model.settings.width: 128, was 256`: each leaf in which two plain trees differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = sorted({*ours, *theirs})
        return [line for key in keys for line in difference(ours.get(key), theirs.get(key), f"{path}.{key}".strip("."))]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for place, pair in pairs for line in difference(*pair, f"{path}.{place}".strip("."))]
    return [] if ours == theirs else [f"{path}: {ours!r}, was {theirs!r}"]


def override(experiment: Experiment, path: str, value: Any) -> Experiment:
    """The experiment with one setting changed.

    `path` is dotted: `optim.lr`, `model` (another family), `model.width` (a setting of the family), `corpus.path`
    (short for `dataset.corpus.path`), `fields.audio.mels` (a setting of that field's modality), `inputs.audio.stride`.
    Raises InputError for a path that does not exist or a value that does not fit.
    """
    head = path.split(".")[0]
    if head in {"corpus", "fields", "split", "shard_mb", "version"}:
        path = f"dataset.{path}"
    try:
        changed: Experiment = _with(experiment, path.split("."), value, path)
        return changed
    except pydantic.ValidationError as error:
        raise InputError(explain(error, where=f"setting {path}")) from error


def _from_text(old: Any, text: str) -> Any:
    """What text stands for in the place of `old`: a choice by its name, several names by commas."""
    if isinstance(old, Choice):
        return Choice(name=text)
    if isinstance(old, tuple) and all(isinstance(item, str) for item in old):
        return tuple(name.strip() for name in text.split(","))
    return text


def _with(node: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(node, Choice):
        return replace(node, settings=_with(node.settings, steps, value, path))
    if isinstance(node, dict):
        return {**node, step: _with(node.get(step, {}), rest, value, path)}
    if isinstance(node, tuple) and all(isinstance(item, FieldSpec) for item in node):
        known = [spec.name for spec in node]
        if step not in known:
            raise InputError(f"setting {path}: the dataset has no field {step!r}{suggest(step, known)}")
        if rest and rest[0] in {"role", "store", "name", "modality"}:
            inner = rest
        else:
            inner = ["modality", *rest]
        return tuple(_with(spec, inner, value, path) if spec.name == step else spec for spec in node)
    if not hasattr(type(node), "__dataclass_fields__"):
        raise InputError(f"setting {path}: nothing lies below {type(node).__name__} for {step!r}")
    known = [field.name for field in fields(node)]
    if step not in known:
        raise InputError(f"there is no setting {path!r}{suggest(step, known)}")
    old = getattr(node, step)
    if not rest and isinstance(value, str):
        value = _from_text(old, value)
    return replace(node, **{step: _with(old, rest, value, path)})
