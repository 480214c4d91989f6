from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pipeline.contracts import RunSummary
from pipeline.tracking.leaderboard import rank
from pipeline.tracking.page import axis, render

Row = Callable[..., RunSummary]
VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert('x')</script>\"'&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Text, tags and attributes of a page whose elements are all closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(rows: Sequence[RunSummary], curves: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> Page:
    return Page(render(rank(rows), rows, "2026-01-02 03:04 UTC", curves))


@pytest.fixture
def rows(row: Row) -> list[RunSummary]:
    families = {"rnn": 0.6, "lstm": 0.7, "gru": 0.8, "transformer": 0.9}
    return [
        row(contest=contest, family=family, seed=seed, score=score + seed / 1000, run=f"{contest}-{family}-{seed}")
        for contest in ("speech#1", "words#2")
        for family, score in families.items()
        for seed in range(3)
    ]


def test_every_contest_family_and_score_is_there(rows: list[RunSummary]) -> None:
    shown = page(rows)
    for row in rows:
        for word in (row.contest, row.family, row.run, f"{row.score:.4f}", row.commit[:10]):
            assert word in shown.words
    assert "0.9010 ± 0.0010" in shown.words
    assert "2 contests, 24 finished runs. Generated 2026-01-02 03:04 UTC." in shown.words
    assert shown.words.count("transformer leads with 0.9010 ± 0.0010 over 3 seeds, 0.1000 ahead of gru.") == 2


def test_the_page_needs_nothing_from_outside(rows: list[RunSummary]) -> None:
    html = render(rank(rows), rows, "now", {rows[0].run: [(1.0, 0.5)]})
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    shown = Page(html)
    for _, attributes in shown.tags:
        assert not attributes.get("src")
        assert (attributes.get("href") or "#").startswith("#")
    assert not shown.all("script")
    assert not shown.all("link")


def test_tables_name_themselves_and_their_columns(rows: list[RunSummary]) -> None:
    shown = page(rows)
    assert len(shown.all("caption")) == len(shown.all("table")) == 4
    assert all(header.get("scope") in {"col", "row"} for header in shown.all("th"))
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for svg in shown.all("svg"))
    assert shown.all("html")[0]["lang"] == "en"
    named = {attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    assert {str(link["href"]).removeprefix("#") for link in shown.all("a")} <= named


def test_hostile_names_stay_text(row: Row) -> None:
    given = row(
        **dict.fromkeys(("run", "contest", "family", "split", "metric", "commit", "fingerprint"), HOSTILE),
        metrics={HOSTILE: 1.0},
        settings={HOSTILE: {HOSTILE: [HOSTILE]}, "plain": HOSTILE},
    )
    html = render(rank([given]), [given], HOSTILE, {HOSTILE: [(0.0, 0.1), (1.0, 0.2)]})
    shown = Page(html)
    assert "<script" not in html
    assert HOSTILE in shown.words
    assert {attributes.get("aria-label") for attributes in shown.all("svg")} >= {f"{HOSTILE}: seed 0: 0.5000"}
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)


def test_each_seed_is_a_dot_and_the_mean_lies_among_them(row: Row) -> None:
    shown = page([row(seed=seed, score=score) for seed, score in enumerate((0.2, 0.4, 0.9))])
    dots = [float(str(dot["cx"])) for dot in shown.all("circle")]
    (mean,) = [float(str(line["x1"])) for line in shown.all("line") if line.get("class") == "mean"]
    assert mean == pytest.approx(sum(dots) / 3, abs=0.02)
    assert all(0 < dot < 200 for dot in dots)


def test_a_lead_within_the_noise_is_called_so(row: Row) -> None:
    near = [
        row(family=family, seed=seed, score=score + seed / 10)
        for family, score in (("a", 0.5), ("b", 0.51))
        for seed in range(3)
    ]
    assert "within the spread between seeds" in page(near).words
    assert "one seed each says nothing of the noise" in page([row(family="a"), row(family="b", score=0.9)]).words


def test_a_diverged_run_is_shown_and_drawn_nowhere(row: Row) -> None:
    shown = page([row(family="a", score=math.nan), row(family="b")], {"a-0": [(1.0, math.nan)]})
    assert "nan" not in "".join(str(attributes) for _, attributes in shown.tags)
    assert len(shown.all("circle")) == 1
    assert not shown.all("polyline")
    assert "No family reached a finite score." in page([row(score=math.nan)]).words


def test_curves_are_drawn_over_samples_when_they_are_given(rows: list[RunSummary]) -> None:
    final = [row.run for row in rows if row.contest == "words#2"]
    shown = page(rows, {run: [(0.0, 0.1), (500.0, 0.5), (1000.0, 0.6)] for run in final})
    assert len(shown.all("figure")) == 1
    assert len(shown.all("polyline")) == 12
    points = [tuple(map(float, point.split(","))) for point in str(shown.all("polyline")[0]["points"]).split()]
    assert all(left[0] < right[0] and left[1] > right[1] for left, right in pairwise(points))
    assert not page(rows).all("figure")


def test_the_winners_settings_are_listed_and_what_differs_is_marked(row: Row) -> None:
    given = [
        row(seed=0, settings={"seed": 0, "optim": {"lr": 0.1}, "fields": [{"name": "audio"}], "shape": [1, 2]}),
        row(seed=1, settings={"seed": 1, "optim": {"lr": 0.2}, "fields": [{"name": "audio"}], "shape": [1, 2]}),
    ]
    shown = page(given).words
    assert "lr 0.2 (differs between seeds)" in shown
    assert "0.name audio" in shown
    assert "shape [1, 2]" in shown
    assert "seed 1 " not in shown


def test_a_run_that_was_repeated_and_the_trials_stay_visible(row: Row) -> None:
    shown = page(
        [
            row(run="first try", finished_at="2025-01-01T00:00:00Z"),
            row(run="second try"),
            row(run="a trial", phase="search"),
        ]
    ).words
    assert "first try (run again since)" in shown
    assert "second try lstm" in shown
    assert "Search trials 1" in shown
    assert "a trial" in shown


def test_no_runs_make_a_page_that_says_so() -> None:
    assert "No run that counts has finished yet." in page([]).words


@pytest.mark.parametrize(
    "values", [[0.5], [0.0], [-3.0, 4.0], [1e-7, 2e-7], [1e9, 3e9], [0.1, 0.1], [5.0, math.nan, math.inf]]
)
def test_an_axis_has_round_ticks_inside_it_for_any_values(values: list[float]) -> None:
    scale = axis(values, 10.0, 110.0, 4)
    assert scale is not None
    assert 1 <= len(scale.ticks) <= 5
    assert all(10 <= position <= 110 for position, _ in scale.marks)
    assert len({label for _, label in scale.marks}) == len(scale.marks)
    assert all(10 <= scale.at(value) <= 110 for value in values if math.isfinite(value))


def test_there_is_no_axis_without_a_finite_value() -> None:
    assert axis([math.nan], 0.0, 1.0, 3) is None
    assert axis([], 0.0, 1.0, 3) is None
