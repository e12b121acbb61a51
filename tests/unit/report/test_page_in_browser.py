"""The report as a browser shows it: on wide and narrow screens, in the dark, on paper, and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from reports import FOLDER, PageParts, make_recipe, make_search, make_trials, make_written, publish_ends

from latentsync_ray.report.compose import page_of, reported
from latentsync_ray.report.origin import write_origin
from latentsync_ray.report.page import page_html
from latentsync_ray.report.palette import DARK, LIGHT
from latentsync_ray.store import Store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not here")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    store, trials = Store(str(root)), make_trials()
    write_origin(store, FOLDER, make_search(), make_recipe(), "latentsync-ray tune a.yaml " + "key=value " * 30)
    publish_ends(store, trials)
    file = root / "page.html"
    file.write_text(page_html(page_of([reported(store, FOLDER, make_written(trials))])))
    return file


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def drawn(tab: Browser, chart: str) -> list[dict[str, Any]]:
    """What a chart shows now."""
    kept = "({x, y, customdata, marker}) => ({x, y, customdata, marker})"
    return list(tab.evaluate(f"document.getElementById('{chart}').data.map({kept})"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen_and_says_no_error(tab: Browser, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.querySelectorAll('.plot .main-svg').length > 0")
    colours = DARK if scheme == "dark" else LIGHT
    assert tab.evaluate("document.getElementById('tree').layout.paper_bgcolor ?? ''") in ("", colours.surface)
    trunk = tab.evaluate("document.getElementById('tree').data[0].line.color")
    assert trunk == colours.ink
    assert tab.errors == [] and tab.requests == []


def test_every_chart_draws_what_the_page_holds(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    held = PageParts(page.read_text())
    charts = [name.removesuffix("-data") for name in held.json if name != "page-data"]
    assert charts == ["cost", "tree", "curves", "parameter-0", "parameter-1"]
    for chart in charts:
        for shown, trace in zip(drawn(tab, chart), held.traces(chart), strict=True):
            assert (shown["x"], shown["y"]) == (trace["x"], trace["y"])
    tab.evaluate(
        "{const s = document.querySelector('select'); s.value = 'val/recon'; s.dispatchEvent(new Event('change'));}"
    )
    recon = held.json["curves-data"]["alternatives"]["val/recon"]
    assert [trace["y"] for trace in drawn(tab, "curves")] == recon


def test_the_table_is_sorted_filtered_and_chosen_from_by_keyboard(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    trials = "[...document.querySelectorAll('#trials tbody tr:not([hidden])')].map(row => row.dataset.label)"
    header = "[...document.querySelectorAll('#trials th')].find(header => header.textContent == 'trial')"
    tab.evaluate(f"{header}.querySelector('button').focus()")
    for direction in ("ascending", "descending"):
        tab.press("Enter", 13, "\r")
        assert tab.evaluate(f"{header}.getAttribute('aria-sort')") == direction
        assert tab.evaluate(trials) == [str(n) for n in range(8)][:: 1 if direction == "ascending" else -1]

    tab.evaluate("document.getElementById('filter').focus()")
    for letter in "diverged":
        tab.press(letter, ord(letter.upper()), letter)
    assert tab.evaluate(trials) == ["5", "2"]
    assert tab.evaluate("document.getElementById('count').textContent") == "2 of 8 trials"

    tab.evaluate("document.querySelector('tr[data-label=\"2\"] input').focus()")
    tab.press(" ", 32, " ")
    for chart in ("cost", "tree"):
        marks = drawn(tab, chart)[-1]
        assert marks["customdata"] == ["2"] and marks["marker"]["size"] == [14]
    held = PageParts(page.read_text())
    assert len(drawn(tab, "tree")) == len(held.traces("tree")) + 2  # its branch and its end, in front
    tab.evaluate("document.getElementById('clear').focus()")
    tab.press("Enter", 13, "\r")
    assert len(drawn(tab, "tree")) == len(held.traces("tree"))
    assert tab.errors == []


def test_paper_is_light_and_as_wide_as_a_sheet(tab: Browser, page: Path) -> None:
    tab.open(page, 1280, "dark", "print")
    assert tab.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert tab.evaluate("document.getElementById('tree').data[0].line.color") == LIGHT.ink
    assert tab.evaluate("document.getElementById('tree').getBoundingClientRect().width") <= 1280
    assert tab.evaluate("document.querySelector('#tree .main-svg').getBoundingClientRect().width") == 700
    assert tab.errors == []
