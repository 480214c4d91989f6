from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.contracts import InputError
from pipeline.experiment import (
    Batching,
    Budget,
    Dataset,
    Experiment,
    FieldSpec,
    Optim,
    Split,
    choose,
    difference,
    digest,
    from_dict,
    override,
    to_dict,
)

EXPERIMENT = Experiment(
    name="words",
    dataset=Dataset(
        name="words",
        corpus=choose("folder", path="recordings"),
        fields=(
            FieldSpec(name="audio", modality=choose("audio", mels=40), role="input"),
            FieldSpec(name="label", modality=choose("events"), role="target"),
        ),
        split=Split(shares={"valid": 0.15, "test": 0.15}),
    ),
    task=choose("classify"),
    model=choose("lstm", layers=2),
    inputs={"audio": {"stride": 2}},
)

# A path, a value that fits, and where the value is found in the plain experiment.
OVERRIDES: list[tuple[str, Any, tuple[Any, ...]]] = [
    ("name", "other", ("name",)),
    ("seed", 3, ("seed",)),
    ("optim.lr", 3e-4, ("optim", "lr")),
    ("optim.precision", "bf16", ("optim", "precision")),
    ("batching.batch", 7, ("batching", "batch")),
    ("batching.micro_batch", 2, ("batching", "micro_batch")),
    ("budget.epochs", 0.5, ("budget", "epochs")),
    ("model.width", 256, ("model", "settings", "width")),
    ("task.pool", "last", ("task", "settings", "pool")),
    ("inputs.audio.stride", 4, ("inputs", "audio", "stride")),
    ("inputs.audio.kernel", 3, ("inputs", "audio", "kernel")),
    ("fields.audio.mels", 80, ("dataset", "fields", 0, "modality", "settings", "mels")),
    ("fields.audio.modality.mels", 80, ("dataset", "fields", 0, "modality", "settings", "mels")),
    ("fields.audio.store", "raw", ("dataset", "fields", 0, "store")),
    ("fields.label.separator", " ", ("dataset", "fields", 1, "modality", "settings", "separator")),
    ("corpus.path", "elsewhere", ("dataset", "corpus", "settings", "path")),
    ("corpus.label", "speaker", ("dataset", "corpus", "settings", "label")),
    ("dataset.corpus.path", "elsewhere", ("dataset", "corpus", "settings", "path")),
    ("split.shares.valid", 0.3, ("dataset", "split", "shares", "valid")),
    ("split.shares", {"test": 0.5}, ("dataset", "split", "shares")),
    ("split.rules.test.take", "0", ("dataset", "split", "rules", "test", "take")),
    ("split.group", ["speaker"], ("dataset", "split", "group")),
    ("shard_mb", 8.0, ("dataset", "shard_mb")),
    ("version", 2, ("dataset", "version")),
    ("families", ["gru"], ("families",)),
]


def found(plain: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        plain = plain[step]
    return plain


@pytest.mark.parametrize(("path", "value", "place"), OVERRIDES, ids=[path for path, _, _ in OVERRIDES])
def test_an_override_changes_one_setting_and_nothing_else(path: str, value: Any, place: tuple[Any, ...]) -> None:
    before = to_dict(EXPERIMENT)
    changed = override(EXPERIMENT, path, value)
    assert found(to_dict(changed), place) == value
    parents = {".".join(map(str, place[:length])) for length in range(1, len(place) + 1)}
    changes = {line.partition(":")[0] for line in difference(to_dict(changed), before)}
    assert len(changes) == 1 or path == "split.shares"
    assert changes <= parents or path == "split.shares"
    assert to_dict(EXPERIMENT) == before


def test_a_choice_is_overridden_by_its_name() -> None:
    changed = override(EXPERIMENT, "model", "gru")
    assert changed.model == choose("gru")
    assert override(EXPERIMENT, "fields.label", "audio").dataset.fields[1].modality == choose("audio")
    assert override(EXPERIMENT, "model", {"name": "rnn", "settings": {"width": 3}}).model == choose("rnn", width=3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.lrr", 1, r"there is no setting 'optim\.lrr'; did you mean 'lr'\? \(choices: lr, weight_decay, .*\)"),
        ("optin.lr", 1, r"there is no setting 'optin\.lr'; did you mean 'optim'\?"),
        ("", 1, "there is no setting ''"),
        ("optim.lr.x", 1, "nothing lies below float for 'x'"),
        ("fields.vidoe.mels", 1, r"the dataset has no field 'vidoe'.*\(choices: audio, label\)"),
        ("inputs.vidoe.stride", 1, r"setting inputs\.vidoe\.stride: inputs: the dataset has no field 'vidoe'"),
        ("optim.lr", -1, r"setting optim\.lr: lr = -1: Input should be greater than 0"),
        ("optim.lr", "fast", r"lr = 'fast': Input should be a valid number"),
        ("optim.schedule", "linear", r"schedule = 'linear': Input should be 'cosine' or 'constant'"),
        ("batching.batch", 0, r"batch = 0: Input should be greater than 0"),
        ("split.shares.valid", 1.5, r"shares\.valid = 1\.5: Input should be less than 1"),
        ("split.shares.valid", 0.9, r"leave nothing for 'train': their sum must be below 1"),
        ("name", "a b", "name = 'a b': String should match pattern"),
        ("fields.audio.role", "inputs", "role = 'inputs': Input should be 'input' or 'target'"),
        ("seed", -1, "seed = -1: Input should be greater than or equal to 0"),
        ("shard_mb", 0, "shard_mb = 0: Input should be greater than 0"),
    ],
)
def test_an_override_that_cannot_be_names_the_value_and_the_choices(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        override(EXPERIMENT, path, value)
    assert "\n" not in str(raised.value)


def test_settings_of_choices_are_checked_when_they_are_made() -> None:
    assert EXPERIMENT.check() is None  # type: ignore[func-returns-value]
    for path, value, message in (
        ("model.witdh", 3, r"model lstm: there is no setting 'witdh'; did you mean 'width'\?"),
        ("fields.audio.mels", 0, "mels = 0"),
        ("inputs.audio.kernel", 4, r"inputs\.audio: kernel = 4 must be odd"),
        ("task", "clasify", "did you mean 'classify'"),
        ("families", "gru,lsmt", "did you mean 'lstm'"),
        ("corpus.field", "sound", "corpus folder has no field 'audio'"),
    ):
        with pytest.raises(InputError, match=message):
            override(EXPERIMENT, path, value).check()


def test_field_names_differ_and_there_is_one() -> None:
    for fields in ((), (EXPERIMENT.dataset.fields[0],) * 2):
        with pytest.raises(ValueError, match="fields"):
            replace(EXPERIMENT.dataset, fields=fields)


# Plain JSON and back

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CHOICES = st.builds(lambda name, settings: choose(name, **settings), NAMES, st.dictionaries(NAMES, PLAIN, max_size=3))
EXPERIMENTS = st.builds(
    Experiment,
    name=NAMES,
    dataset=st.builds(
        Dataset,
        name=NAMES,
        version=st.integers(1, 10**6),
        corpus=CHOICES,
        fields=st.lists(
            st.builds(
                FieldSpec,
                name=NAMES,
                modality=CHOICES,
                role=st.sampled_from(["input", "target"]),
                store=st.sampled_from(["features", "raw"]),
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda spec: spec.name,
        ).map(tuple),
        split=st.builds(
            Split,
            rules=st.dictionaries(NAMES, st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
            group=st.lists(st.text(max_size=3), max_size=2).map(tuple),
            shares=st.dictionaries(NAMES, st.floats(0, 0.3), max_size=3),
        ),
        shard_mb=st.floats(0.001, 1e6),
    ),
    task=CHOICES,
    model=CHOICES,
    families=st.lists(NAMES, max_size=3).map(tuple),
    optim=st.builds(Optim, lr=st.floats(1e-9, 10), betas=st.tuples(st.floats(0, 1), st.floats(0, 1))),
    batching=st.builds(Batching, batch=st.integers(1, 10**9), micro_batch=st.none() | st.integers(1, 99)),
    budget=st.builds(Budget, epochs=st.floats(0.1, 1e3), parameters=st.none() | st.integers(1, 10**12)),
    seed=st.integers(0, 2**62),
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(EXPERIMENTS)
def test_an_experiment_comes_back_from_json(experiment: Experiment) -> None:
    back = from_dict(json.loads(json.dumps(to_dict(experiment))))
    assert back == experiment
    assert (back.fingerprint, back.contest) == (experiment.fingerprint, experiment.contest)
    assert back.dataset.fingerprint == experiment.dataset.fingerprint


def test_a_plain_experiment_that_is_none_is_refused() -> None:
    plain = to_dict(EXPERIMENT)
    with pytest.raises(InputError, match=r"experiment: .*'model' must be given"):
        from_dict({key: value for key, value in plain.items() if key != "model"})
    with pytest.raises(InputError, match="there is no setting 'modle'; did you mean 'model'"):
        from_dict({**plain, "modle": 1})
    with pytest.raises(InputError, match=r"optim\.lr = 0: Input should be greater than 0"):
        from_dict({**plain, "optim": {"lr": 0}})


# Identity


def test_where_the_corpus_lies_is_no_part_of_what_is_computed() -> None:
    moved = override(EXPERIMENT, "corpus.path", "/elsewhere")
    assert moved != EXPERIMENT
    assert moved.dataset.fingerprint == EXPERIMENT.dataset.fingerprint
    assert (moved.fingerprint, moved.contest) == (EXPERIMENT.fingerprint, EXPERIMENT.contest)


@pytest.mark.parametrize(
    "path", [path for path, _, _ in OVERRIDES if path not in {"corpus.path", "dataset.corpus.path"}]
)
def test_the_fingerprint_covers_all_that_is_computed(path: str) -> None:
    value = next(value for each, value, _ in OVERRIDES if each == path)
    changed = override(EXPERIMENT, path, value)
    of_the_data = path.split(".")[0] in {"corpus", "fields", "split", "shard_mb", "version"}
    assert (changed.dataset.fingerprint != EXPERIMENT.dataset.fingerprint) == of_the_data
    # which families a sweep compares changes none of its runs
    assert (changed.fingerprint != EXPERIMENT.fingerprint) == (path != "families")


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("model", "gru", True),
        ("model.width", 99, True),
        ("optim.lr", 0.5, True),
        ("seed", 7, True),
        ("inputs.audio.stride", 4, True),
        ("families", ["gru"], True),
        ("task.pool", "last", False),
        ("budget.epochs", 3, False),
        ("budget.parameters", 10, False),
        ("fields.audio.mels", 80, False),
        ("split.shares.valid", 0.2, False),
        ("name", "other", False),
    ],
)
def test_a_contest_is_same_data_same_task_same_budget(path: str, value: Any, same: bool) -> None:
    assert (override(EXPERIMENT, path, value).contest == EXPERIMENT.contest) == same
    assert EXPERIMENT.contest.startswith("words#")


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, {"c": 3, "d": 4}]}) == digest({"b": [2, {"d": 4, "c": 3}], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_differences_are_said_leaf_by_leaf() -> None:
    ours, theirs = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 3]}, "e": None}
    assert difference(ours, theirs) == ["a.b: 1, was 2", "a.c.1: 2, was 3", "d: 3, was None"]
    assert difference(ours, ours) == []
    assert difference({"a": [1]}, {"a": [1, 2]}) == ["a: [1], was [1, 2]"]
