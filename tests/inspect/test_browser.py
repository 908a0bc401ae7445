"""The page in a real browser: no error, no request, no sideways scrolling, readable text, both colour schemes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec.inspect import write_inspection
from tests.inspect.test_render import HOSTILE, sample
from tests.report.browser import Page, browser, find_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")

FIVE = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("inspections")
    for name, data in {"plain": sample(), "deep": sample(32, ratios=FIVE), "hostile": sample(name=HOSTILE)}.items():
        write_inspection(home / name, data)
    return {name: home / name / "inspect.html" for name in ("plain", "deep", "hostile")}


@pytest.mark.parametrize("name", ["plain", "deep", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_opens_offline_without_a_complaint(page: Page, files: dict[str, Path], name: str, width: int) -> None:
    page.open(files[name], width)
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.complaints() == []
    assert page.requests() == [files[name].resolve().as_uri()]
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('figure svg').length") == 5
    assert page.value("document.scripts.length") == 0


def test_light_and_dark(page: Page, files: dict[str, Path]) -> None:
    shades = []
    for dark in (False, True):
        page.open(files["plain"], 1000, dark=dark)
        paper = page.value("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))))
    assert shades[0] > 3 * 200
    assert shades[1] < 3 * 60


def test_the_text_of_figures_fits_and_can_be_read_on_a_phone(page: Page, files: dict[str, Path]) -> None:
    page.open(files["deep"], 390)
    heights = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    assert page.value(f"Math.min(...{heights})") >= 9
    outside = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 1;
        }).map(text => text.textContent);
    })"""
    assert page.value(outside) == []
