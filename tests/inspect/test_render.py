"""What an inspection's files hold: summary by hand, JSON's schema and its page in the docs, figures, hostile text."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from qspec.calibrate.outliers import describe, picture
from qspec.inspect import Inspection, summary, write_inspection
from qspec.inspect.data import Drawn, Input, Row, Subject, TokenPeak
from qspec.inspect.figures import figures

DOCS = Path(__file__).parents[2] / "docs" / "inspect.md"
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;"\'`|\\\x00\x1b[31m]]>-->'
RATIOS = (0.0, 0.5, 1.0)
INPUTS = {"attention.input": 24, "attention.mixed": 24, "mlp.input": 24, "mlp.gated": 40}


def sample(blocks: int = 3, name: str = "tiny-llada", ratios: tuple[float, ...] = RATIOS) -> Inspection:
    """Ones, with one channel of size 50 + block at all tokens of mlp.input, and of 1000 at two tokens of mlp.gated."""
    rows, pictures = [], []
    for block in range(blocks):
        for inner, channels in INPUTS.items():
            for ratio in ratios:
                x = torch.ones(64, channels)
                masked = torch.arange(64) < round(64 * ratio)
                if inner == "mlp.input":
                    x[:, 3] = 50.0 + block
                if inner == "mlp.gated":
                    x[[10, 60], 7] = 1000.0 + block
                for positions, chosen in (("all", masked | True), ("masked", masked), ("unmasked", ~masked)):
                    if chosen.any():
                        found = describe(f"blocks[{block}].{inner}", x[chosen])
                        tokens = (TokenPeak(0, 10, name, ratio > 0, 50.0),)
                        rows.append(Row(block, inner, ratio, positions, found, tokens))
                if block == blocks - 1 and ratio == 0.5 and inner.startswith("mlp"):
                    kind = "normal" if inner == "mlp.input" else "massive"
                    drawn = picture(f"blocks[{block}].{inner}", "before", x, masked)
                    pictures.append(Drawn(kind, ratio, 0, 0, drawn))
    return Inspection(
        subject=Subject(name, "llada", True, "before", blocks, 24, 40, 2),
        input=Input(f"{name}'s own text", 4, 16, ratios, 0, "ab" * 32),
        rows=tuple(rows),
        pictures=tuple(pictures),
        thresholds={"outlier_ratio": 5.0, "massive_times_typical": 316.2},
        computed="float32 on CPU",
        environment={"python": "3.11.7", "qspec": "0.1.0"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("inspect")
    write_inspection(home, sample())
    return home


def test_summary_by_hand() -> None:
    data = sample()
    assert summary.headline(data) == (
        "Massive outliers at the input of down in 3 of 3 blocks. Normal ones at 3 of 12 inputs."
    )
    # mean squares: of mlp.input (23 + 52^2) / 24, of mlp.gated (2 * 1002^2 + 2558) / 2560; block 2's are the largest
    assert summary.details(data) == [
        "largest normal: blocks[2].mlp.input, channel 3, 52 (52 times the typical), 100 % of tokens, mask ratio 0",
        "largest massive: blocks[2].mlp.gated, channel 7, 1,002 (1,002 times the typical), 3 % of tokens, mask ratio 0",
    ]
    table = summary.table(data)
    assert len(table) == 1 + 4 * 3
    assert table[8] == (
        "gate, up", "50 %", "2", "normal", "52", "52", "4.88", "1", "100 %", "100 %", "100 %",
    )  # fmt: skip
    # of 32 masked tokens one holds 1002, of 32 unmasked ones the other
    assert table[11] == ("down", "50 %", "2", "massive", "1,002", "1,002", "35.8", "1", "3 %", "3 %", "3 %")
    assert table[10][-2:] == ("–", "3 %")
    assert table[12][-2:] == ("3 %", "–")
    plain = summary.aligned(table)
    assert plain[0].split() == ["input", "of", *summary.HEAD[1:]]
    assert len({len(line) for line in plain[1:4]}) == 1


def test_headlines_without_massive_outliers_and_without_any() -> None:
    data = sample()
    tame = tuple(row for row in data.rows if row.input != "mlp.gated")
    assert summary.headline(dataclasses.replace(data, rows=tame)) == "Normal outliers at 3 of 9 inputs."
    none = tuple(row for row in tame if row.input != "mlp.input")
    quiet = dataclasses.replace(data, rows=none, pictures=())
    assert summary.headline(quiet) == "No outliers at 6 inputs."
    assert summary.details(quiet) == []
    assert set(figures(quiet)) == {"overview", "positions", "tokens"}


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.004, "<1 %"), (0.5, "50 %"), (0.995, ">99 %"), (1.0, "100 %")]
)
def test_shares(share: float, text: str) -> None:
    assert summary.percent(share) == text


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for one in value.values() for key in keys_of(one)}
    if isinstance(value, list):
        return {key for one in value for key in keys_of(one)}
    return set()


def test_json_is_the_schema_and_the_docs_name_every_key(folder: Path) -> None:
    content = json.loads((folder / "inspect.json").read_text())
    assert TypeAdapter(Inspection).validate_json((folder / "inspect.json").read_text()) == sample()
    assert content["format"] == 1
    assert set(content) == {
        "format", "subject", "input", "rows", "pictures", "thresholds", "computed", "environment",
    }  # fmt: skip
    free = set(content["environment"])
    missing = [key for key in keys_of(content) - free if f"`{key}`" not in DOCS.read_text()]
    assert not missing


def test_figures(folder: Path) -> None:
    names = {"normal", "massive", "overview", "positions", "tokens"}
    assert {file.stem for file in (folder / "figures").glob("*.svg")} == names
    for file in (folder / "figures").glob("*.svg"):
        root = ElementTree.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    space = "{http://www.w3.org/2000/svg}"
    cells = ElementTree.parse(folder / "figures/overview.svg").getroot().findall(f"{space}rect")
    assert len(cells) == 3 * 4 * 3  # blocks, inputs, ratios
    assert sum(cell.get("class") == "f-high" for cell in cells) == 3 * 3
    assert sum(cell.get("class") == "f-base" for cell in cells) == 2 * 3 * 3
    ridge = ElementTree.parse(folder / "figures/massive.svg").getroot()
    assert len(ridge.findall(f"{space}path")) == 32  # rows of two tokens each
    assert len(ridge.findall(f"{space}rect")) == 16  # of which the first half is masked


def test_drawings_of_an_earlier_inspection_go_away_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("mine", "normal"):
        (tmp_path / "figures" / f"{name}.svg").write_text("precious")
    without = dataclasses.replace(sample(), pictures=())
    write_inspection(tmp_path, without)
    assert (tmp_path / "figures/normal.svg").read_text() == "precious"
    write_inspection(tmp_path, sample())
    assert (tmp_path / "figures/massive.svg").exists()
    write_inspection(tmp_path, without)
    assert not (tmp_path / "figures/massive.svg").exists()
    assert (tmp_path / "figures/mine.svg").read_text() == "precious"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def test_hostile_text_is_text(tmp_path: Path) -> None:
    write_inspection(tmp_path, sample(name=HOSTILE))
    tags = Tags((tmp_path / "inspect.html").read_text()).found
    assert {"script", "img"}.isdisjoint(name for name, _ in tags)
    assert not [key for _, attributes in tags for key, _ in attributes if key.startswith("on")]
    text = (tmp_path / "inspect.md").read_text()
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {12}


def test_a_deep_model_stays_small(tmp_path: Path) -> None:
    """32 blocks at five ratios: the page's limit is 3 MB."""
    write_inspection(tmp_path, sample(32, ratios=(0.0, 0.25, 0.5, 0.75, 1.0)))
    assert (tmp_path / "inspect.html").stat().st_size < 1_000_000
