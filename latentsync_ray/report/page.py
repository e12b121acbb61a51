"""The report of a search, or of several, as one HTML page that needs nothing from outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from latentsync_ray.report.answer import NextCommand
from latentsync_ray.report.charts.common import Chart
from latentsync_ray.report.page_table import PageTable
from latentsync_ray.report.palette import DARK, LIGHT, palettes
from latentsync_ray.report.pictures import Picture


@dataclass(frozen=True)
class Card:
    """A figure of a search, in large type."""

    title: str
    value: str
    text: str


@dataclass(frozen=True)
class Mark:
    """An entry of the charts' key."""

    text: str
    colour: str = ""
    """Of a line; empty for a symbol."""
    symbol: str = ""
    """plotly's name for it; empty for a line."""


@dataclass(frozen=True)
class SearchRow:
    """A search on a page of several."""

    letter: str
    name: str
    answer: str
    """In one sentence."""
    best: str
    """Its best value of the metric."""
    num_trials: int
    steps: str
    """How many were trained."""


@dataclass(frozen=True)
class Source:
    """Where a search comes from, to be read and run again."""

    name: str
    again: str
    """The command that runs it again from its folder."""
    command: str
    """As it was typed; empty if that is not known."""
    files: tuple[tuple[str, str], ...]
    """Name and text of `search.yaml` and of the recipe's files."""
    environment: tuple[tuple[str, str], ...]
    """What the best trial's last bits may depend on besides its settings."""


@dataclass(frozen=True)
class Page:
    """All that a page shows, in its order."""

    title: str
    state: str
    """How far the search is; empty if it has ended."""
    written: datetime
    """In UTC."""
    sentences: tuple[str, ...]
    """The answer, the most important first."""
    commands: tuple[NextCommand, ...]
    policies: tuple[str, ...]
    """As YAML."""
    searches: tuple[SearchRow, ...]
    """Where there are several."""
    cards: tuple[Card, ...]
    pictures: tuple[Picture, ...]
    metric: str
    num_drawn: int
    """Trials whose curves are drawn."""
    key: tuple[Mark, ...]
    """What colours and symbols mean."""
    key_title: str
    """The parameter that colours trials."""
    cost: Chart | None
    """None as long as no trial has reported."""
    tree: Chart | None
    curves: Chart | None
    importance: Chart | None
    importance_note: str
    parameters: tuple[Chart, ...]
    table: PageTable
    notices: tuple[str, ...]
    sources: tuple[Source, ...]

    @property
    def charts(self) -> list[Chart]:
        """All of them; none if there is nothing to draw, and then the page needs no plotly."""
        charts = (self.cost, self.tree, self.curves, self.importance, *self.parameters)
        return [chart for chart in charts if chart is not None]


def page_html(page: Page) -> str:
    """A whole HTML page, with its charts and the scripts that draw them."""
    facts = {row.label: row.facts for row in page.table.rows}
    scripts = {"palettes": palettes(), "facts": facts}
    template = _templates().get_template("page.html.jinja")
    return template.render(
        page=page, scripts=scripts, light=LIGHT, dark=DARK, plotly=_plotly() if page.charts else ""
    )


@cache
def _templates() -> Environment:
    folder = Path(__file__).parent / "templates"
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["thousands"] = "{:,}".format
    return made


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
