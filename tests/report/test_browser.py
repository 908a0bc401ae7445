"""The report in a real browser: no error, no request, no sideways scrolling, both colour schemes, print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec.report import write_report
from tests.report.browser import Page, browser, find_browser
from tests.report.sample import hostile_report, sample_report

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")

# The background as it is painted, from any CSS colour
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("reports")
    reports = {"plain": sample_report(), "deep": sample_report(32), "hostile": hostile_report()}
    for name, data in reports.items():
        write_report(home / name, data)
    return {name: home / name / "report.html" for name in reports}


@pytest.mark.parametrize("name", ["plain", "deep", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_opens_offline_without_a_complaint(page: Page, files: dict[str, Path], name: str, width: int) -> None:
    page.open(files[name], width)
    assert page.complaints() == []
    assert page.requests() == [files[name].resolve().as_uri()]
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('h2').length") >= 8
    assert page.value("document.scripts.length") == 0


def test_open_details_do_not_widen_a_phone(page: Page, files: dict[str, Path]) -> None:
    page.open(files["deep"], 390)
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= 390


def test_the_table_of_recipes_scrolls_on_a_phone_by_itself(page: Page, files: dict[str, Path]) -> None:
    page.open(files["deep"], 390)
    box = "document.querySelector('#recipes .scroll')"
    assert page.value(f"{box}.scrollWidth > {box}.clientWidth")
    assert page.value(f"getComputedStyle({box}).overflowX") == "auto"
    assert page.value("document.documentElement.scrollWidth") <= 390


def test_light_and_dark(page: Page, files: dict[str, Path]) -> None:
    shades = []
    for dark in (False, True):
        page.open(files["plain"], 1000, dark=dark)
        shades.append(sum(map(int, page.value(PAPER).removeprefix("rgb(").removesuffix(")").split(","))))
    assert shades[0] > 3 * 200
    assert shades[1] < 3 * 60


def test_the_text_of_figures_can_be_read_on_a_phone(page: Page, files: dict[str, Path]) -> None:
    page.open(files["deep"], 390)
    smallest = page.value(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 9


def test_it_prints_on_white_and_within_the_page(page: Page, files: dict[str, Path], tmp_path: Path) -> None:
    page.open(files["deep"], 794, dark=True)
    page.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert page.value(PAPER) == "rgb(252, 251, 248)"
    assert page.value("document.documentElement.scrollWidth") <= 794
    page.call("Emulation.setEmulatedMedia", media="")
    page.pdf(tmp_path / "report.pdf")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8  # of 32 blocks


def test_a_complaint_would_be_seen(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('x')</script><img src='gone.png'><div style='width: 3000px'>x</div>")
    page.open(bad, 390)
    assert page.complaints()
    assert len(page.requests()) == 2
    assert page.value("document.documentElement.scrollWidth") > 390
