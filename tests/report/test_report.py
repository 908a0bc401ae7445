"""What the report's files hold, and that nothing hostile gets through."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qspec.catalog import PACKING, ActivationKernel, GemmKernel
from qspec.data import DataPin
from qspec.data.hub import REVISIONS
from qspec.errors import InputError
from qspec.evaluate.results import Measurements, Reference, Speed, accuracy, nelbo
from qspec.manifest import FORMAT, CalibrationRecord, KernelRecord, Manifest, ModelRecord, ModuleRecord, kernel_fields
from qspec.report import ReportData, report_data, report_json, write_report
from qspec.report.drawing import peak_of
from qspec.report.environment import environment, memory
from qspec.report.figures import pareto
from qspec.report.render import FILTERS, bytes_text, card, markdown, seconds_text
from qspec.report.text import paired, summary
from qspec.report.verdict import verdict
from tests.report.sample import HOSTILE, TEXT, VERDICT, hostile_report, layer_rows, rounded, sample_report

FOLDS = ("<details>", "</details>", *(f"<summary>{name}</summary>" for name in ("Layers", "Outliers", "Kernels")))
CONTRACT = {
    "model",
    "recipe",
    "bits_per_weight",
    "bits_per_weight_model",
    "bytes",
    "metrics",
    "layers",
    "outliers",
    "kernels",
    "execution",
    "environment",
    "timings",
}
METRIC_KEYS = {"task", "metric", "baseline", "quantized", "drop_percent", "tier", "n", "stderr"}
VOID = {"meta", "link"}


class Tags(HTMLParser):
    """Names and attributes of every element, and whether they nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(out, sample_report())
    return out


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile")
    write_report(out, hostile_report())
    return out


def test_json_holds_the_contract(folder: Path) -> None:
    content = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert set(content).issuperset(CONTRACT)
    assert {"id", "family", "standin"} <= set(content["model"])
    assert content["model"]["standin"] is True
    assert set(content["bytes"]) == {"before", "after"}
    assert all(set(metric).issuperset(METRIC_KEYS) for metric in content["metrics"])
    assert all({"role", "module", "scheme", "sqnr_db"} <= set(layer) for layer in content["layers"])
    assert content["verdict"] == VERDICT
    assert content["verdict_tier"] == "large"
    assert content["verdict_details"] == [
        "Bits per weight: 4.43 in the blocks, 5.02 in the whole model",
        "Trajectories, at worst: 41.0 % of commits moved, 18 of 48 texts and 8.3 % of tokens differ on "
        "stand-in arithmetic (for gsm8k)",
        "Undecided (saturated: the unquantized model has 99 % or more right): "
        "exact match on stand-in recall (for mmlu), stand-in brackets (for humaneval), n = 48",
        "Undecided (saturated: the unquantized model has 99 % or more right): "
        "rated choices on stand-in recall (for mmlu), n = 48",
    ]
    assert [metric["task"] for metric in content["metrics"]] == ["wikitext2", "mmlu", "mmlu", "gsm8k", "humaneval"]
    assert content["metrics"][3]["source"] == "stand-in arithmetic"


def test_what_was_written_is_read_again(folder: Path) -> None:
    assert ReportData.read(folder / "report.json") == sample_report()


def test_rendering_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path, ReportData.read(folder / "report.json"))
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_numbers_that_are_not_finite_become_null() -> None:
    layers = (dataclasses.replace(layer_rows(1)[1], sqnr_db=math.inf, weight_sqnr_db=math.nan),)
    content = report_json(dataclasses.replace(sample_report(), layers=layers))
    assert content["layers"][0]["sqnr_db"] is None
    assert content["layers"][0]["weight_sqnr_db"] is None
    json.dumps(content, allow_nan=False)


def test_html_is_small_whole_and_offline(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert len(page.encode()) < 3_000_000
    tags = Tags(page)
    assert tags.open == []
    names = [name for name, _ in tags.found]
    assert "script" not in names
    for name, attributes in tags.found:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src"):
                assert (value or "").startswith(("#", "data:,")), (name, key, value)
    without_namespace = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", without_namespace)


def test_a_report_of_a_large_model_stays_small(tmp_path: Path) -> None:
    write_report(tmp_path, sample_report(blocks=80))
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_a_model_of_thousands_of_modules_shows_the_worst(tmp_path: Path) -> None:
    data = sample_report(blocks=200)
    worst = min((layer for layer in data.layers if layer.sqnr_db is not None), key=lambda one: one.sqnr_db or 0)
    write_report(tmp_path, data)
    page = (tmp_path / "report.html").read_text()
    assert "The 1000 worst of 1402 modules" in page
    assert page.count('<tr><td class="mono nowrap">blocks[') < 2000
    assert worst.role in page


def test_html_shows_every_part(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for text in (
        VERDICT.replace(" %", "\u00a0%"),
        "4.43<small>in the blocks; 5.02 in the whole model</small>",
        "stand-in brackets (for humaneval)",
        "Its outliers were injected by qspec&#39;s authors, at sizes that they chose. "
        "No real checkpoint of LLaDA-8B or Dream-7B was ever compiled by them.",
        "<small>92.6–100.0 %</small>",  # 48 of 48
        "These are numbers of a stand-in.",
        "task gsm8k: tiny-llada&#39;s own &#34;arithmetic&#34; (length 40, steps 40, block 40)",
        "not measured: mbpp",
        "CPU reference",
        "gemm_w4_channel_a4_token",
        "# W4A4 for LLaDA-8B",
        "14 + 9 = 22; 22 - 6 = 16. #### 16",
        "1.33 GiB",
        "on 2026-11-29 20:00 UTC.",
        "a1" * 32,
    ):
        assert text in page, text
    alone = page[: page.index('id="recipes"')]
    assert alone.count('class="tier large"') == 2  # the headline's and gsm8k's
    assert page.count("<svg") == 11


def test_bits_of_online_transforms_are_named(tmp_path: Path) -> None:
    own = [layer for layer in sample_report().layers if layer.role.startswith("blocks[")]
    weights = sum(layer.in_features * layer.out_features for layer in own)
    mean = sum(layer.bits * layer.in_features * layer.out_features for layer in own) / weights
    write_report(tmp_path, dataclasses.replace(sample_report(), bits_per_weight=mean + 0.25))
    page = (tmp_path / "report.html").read_text()
    assert f"{mean:.3f} for codes, scales and kept weights, 0.250 for the online transforms" in page
    write_report(tmp_path, dataclasses.replace(sample_report(), bits_per_weight=mean))
    assert "online transforms" not in (tmp_path / "report.html").read_text()


def test_a_real_checkpoint_has_no_banner(tmp_path: Path) -> None:
    data = sample_report()
    model = dataclasses.replace(data.model, standin=False)
    metrics = tuple(dataclasses.replace(metric, source="") for metric in data.metrics)
    write_report(tmp_path, dataclasses.replace(data, model=model, metrics=metrics, compared=()))
    assert "stand-in" not in (tmp_path / "report.html").read_text().replace("standin", "")
    assert "stand-in" not in (tmp_path / "report.md").read_text()


def test_a_report_without_measurements(tmp_path: Path) -> None:
    data = dataclasses.replace(
        sample_report(),
        metrics=(),
        kl=(),
        flips=(),
        samples=(),
        outliers=None,
        not_measured=("not measured: all",),
    )
    content = write_report(tmp_path, data)
    assert content["verdict"] == "Quality was not measured."
    page = (tmp_path / "report.html").read_text()
    assert Tags(page).open == []
    assert 'id="outliers"' not in page
    assert 'id="samples"' not in page
    assert "not measured: all" in page


def test_figures_are_valid_svg(folder: Path, hostile: Path) -> None:
    for home in (folder, hostile):
        files = sorted((home / "figures").glob("*.svg"))
        assert len(files) == 11
        for file in files:
            root = ElementTree.parse(file).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert not [one for one in root.iter() if one.tag.endswith(("script", "foreignObject", "image"))]


def test_hostile_text_is_text_everywhere(hostile: Path) -> None:
    page = (hostile / "report.html").read_text()
    plain = Tags((hostile / "report.html").read_text())
    assert plain.open == []
    assert {"script", "img"}.isdisjoint(name for name, _ in plain.found)
    assert not [key for _, attributes in plain.found for key in attributes if key.startswith("on")]
    assert page.count("&lt;script&gt;") > 50
    assert "\x00" not in page
    assert "\x1b" not in page
    content = json.loads((hostile / "report.json").read_text())
    assert content["model"]["id"] == "tiny-llada" + HOSTILE


def test_hostile_text_does_not_leave_its_place_in_markdown(hostile: Path, folder: Path) -> None:
    def outside_the_recipe(home: Path) -> list[str]:
        text = (home / "report.md").read_text()
        lines = text[: text.index("<summary>Recipe</summary>")].splitlines()
        return [line for line in lines if line not in FOLDS]

    assert not [line for line in outside_the_recipe(hostile) if "<" in line or ">" in line.lstrip("> ")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in outside_the_recipe(hostile)]
    assert bars == [len(re.findall(r"(?<!\\)\|", line)) for line in outside_the_recipe(folder)]


def test_a_recipe_with_backticks_stays_in_its_block(tmp_path: Path) -> None:
    data = sample_report()
    text = "```\n# heading\n````\n"
    write_report(tmp_path, dataclasses.replace(data, recipe=dataclasses.replace(data.recipe, text=text)))
    recipe = (tmp_path / "report.md").read_text().partition("<summary>Recipe</summary>\n\n")[2]
    assert recipe.startswith("`````\n")
    assert recipe.rstrip().removesuffix("</details>").rstrip().endswith("`````")


def test_markdown_has_the_metrics(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert text.startswith("# Large loss on the stand-in tiny-llada: the worst measure is e")
    assert "No real checkpoint of LLaDA-8B or Dream-7B was ever compiled by them." in text
    cells = "| exact match | 97.9 % | 81.2 % | 17.0 % | large | −16.7 % (−29.8 to −5.1 %) | 48 |"
    assert cells in text
    assert "| NELBO | 1.4633 | 1.5133 | 3.4 % | medium | +0.0500 (+0.0400 to +0.0600) | 3 |" in text
    assert "- not measured: mbpp" in text


def test_errors_are_a_map_of_blocks_and_roles(folder: Path) -> None:
    """A cell for each quantized layer; the scale names the best and the worst of them."""
    rows = [row for row in sample_report().layers if row.sqnr_db is not None]
    drawn = (folder / "figures/errors.svg").read_text()
    assert drawn.count("<title>blocks[") == len(rows)
    for end in (min(row.sqnr_db or 0 for row in rows), max(row.sqnr_db or 0 for row in rows)):
        assert f">{end:.1f} dB</text>" in drawn


def test_heights_of_outliers_have_a_scale_and_flat_pictures_an_inset(folder: Path) -> None:
    before, after = ((folder / f"figures/ridge-massive-{stage}.svg").read_text() for stage in ("before", "after"))
    peaks = {p.stage: peak_of(p) for p in sample_report().outliers.pictures if p.site == "blocks[4].mlp.gated"}
    for drawn in (before, after):  # both share the scale of the first
        assert f">{peaks['before']:.3g}</text>" in drawn
        assert f">{peaks['before'] / 2:.3g}</text>" in drawn
    assert 'class="inset"' not in before
    assert f">own scale, to {peaks['after']:.3g}</text>" in after


def test_markdown_folds_its_details(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert text.count("<details>") == text.count("</details>") == 4
    names = [line for line in text.splitlines() if line.startswith("<summary>")]
    assert names == [f"<summary>{name}</summary>" for name in ("Layers", "Outliers", "Kernels", "Recipe")]
    assert all(f"{name}\n\n" in text for name in names)  # without the blank line a table is not one


def test_the_card_with_results() -> None:
    original = "---\nlicense: mit\n---\n\n# `r`\n\n## Loading\n\ntext\n"
    found = card(original, sample_report())
    assert found.startswith("---\nlicense: mit\n---\n\n# `r`\n\n## Results\n\n**Large loss on the stand-in tiny-llada")
    assert "| stand-in arithmetic (for gsm8k) | exact match | 97.9 % | 81.2 % | large |" in found
    assert found.endswith("## Loading\n\ntext\n")
    assert card("no section", sample_report()) == "no section"


@pytest.mark.parametrize("name", ["llada_w4a4", 'a: "b"\n---\n# c \u202e \U0001f600'])
def test_a_hub_reads_the_cards_results(name: str) -> None:
    from huggingface_hub import ModelCard

    data = sample_report()
    commit = REVISIONS["openai/gsm8k"]
    data = dataclasses.replace(
        data,
        model=dataclasses.replace(data.model, standin=False),
        recipe=dataclasses.replace(data.recipe, name=name),
        metrics=tuple(dataclasses.replace(metric, source="") for metric in data.metrics),
        data=(DataPin("tasks", "gsm8k", commit, "a" * 64),),
    )
    head = "library_name: qspec\nlicense: mit\nbase_model: a/b\nbase_model_relation: quantized\ntags:\n- quantized\n"
    original = f"---\n{head}---\n\n# `r`\n\n## Loading\n\ntext\n"
    read = ModelCard(card(original, data)).data
    assert (read.license, read.base_model, read.base_model_relation) == ("mit", "a/b", "quantized")
    assert (read.library_name, read.tags, read.model_name) == ("qspec", ["quantized"], name.replace("\U0001f600", "?"))
    found = {(one.dataset_type, one.metric_type): one for one in read.eval_results}
    assert len(found) == len(data.metrics)
    sums = next(metric for metric in data.metrics if metric.task == "gsm8k")
    own = found["openai/gsm8k", "exact_match"]
    assert (own.metric_value, own.dataset_revision, own.dataset_name) == (sums.quantized, commit, sums.title)
    assert found["wikitext2", "nelbo"].metric_value == pytest.approx(data.metrics[0].quantized, abs=1e-6)
    for less in (dataclasses.replace(data, limit=8), sample_report()):
        assert ModelCard(card(original, less)).data.eval_results is None


def test_speed_and_what_rounding_alone_does_stand_in_the_report(tmp_path: Path) -> None:
    data = sample_report()
    nearest = nelbo("wikitext2", "tiny-llada's own held-out text", [1.40, 1.52, 1.47], [5.4, 5.58, 5.52], TEXT)
    data = dataclasses.replace(
        data,
        compared=(),
        reference=Reference(4.25, 4.75, (nearest,), ()),
        speed=(Speed("gsm8k", 6.5, 25.04, 12.31, 320.4, 640.2),),
        environment={**data.environment, "gpu": "NVIDIA H200"},
        memory={"peak on the GPU": 2**30},
    )
    said = "Only rounded (RTN), 4.25 in the blocks, 4.75 in the whole model: NELBO on stand-in text (for wikitext2) 5.5"
    assert any(detail.startswith(said) for detail in verdict(data).details)
    write_report(tmp_path, data)
    text, page = (" ".join((tmp_path / f"report.{kind}").read_text().split()) for kind in ("md", "html"))
    speed = "12.3 ms a step (unquantized 25.0), 640 tokens/s (320), 6.5 texts at once"
    for shown in (page, text.replace("\\", "")):
        assert speed in shown
        assert "peed on a CPU, stand-in arithmetic (for gsm8k)" in shown  # computed there, whatever GPU there is
        assert said in shown
        assert "llada_w4a4, only rounded (RTN)" in shown
    assert "| Memory, peak on the GPU | 1 GiB |" in text
    beside = pareto(dataclasses.replace(data, compared=(rounded(),)))
    assert beside is not None
    assert "only rounded (RTN)" in beside.svg.inline()
    on_gpu = dataclasses.replace(data, execution="GPU kernels on NVIDIA H200")
    assert "Speed on NVIDIA H200, stand-in arithmetic" in markdown(on_gpu)
    assert ReportData.read(tmp_path / "report.json") == data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not the data of a report: "),
        ("[]", "not the data of a report: "),
        ("{}", "Field required"),
        ('{"format": 2}', "not the data of a report"),
        ("[" * 100_000, "not the data of a report"),
        ("\udcff".encode("utf-8", "surrogateescape"), "not the data of a report"),
    ],
)
def test_a_damaged_report_json_is_one_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        ReportData.read(path)
    assert message in caught.value.what
    assert str(path) in (caught.value.where or "")


def test_an_artifact_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        ReportData.read(tmp_path / "report.json")
    assert caught.value.hint == "measure it first: qspec eval ARTIFACT"


def test_where_no_item_differs_no_error_is_claimed(tmp_path: Path) -> None:
    """A binomial or paired error of 0.0 % would claim that 48 of 48 is certain."""
    write_report(tmp_path, sample_report())
    for name in ("report.html", "report.md"):
        assert "± 0.0 %" not in (tmp_path / name).read_text()
    same = accuracy("t", "t", "exact_match", [True] * 48, [True] * 48)
    assert (paired(same), paired(dataclasses.replace(same, interval=None))) == ("−7.4 to +7.4 %", "on one item")


# From an artifact's manifest


def test_data_from_a_manifest() -> None:
    row, gemm = ActivationKernel((64,), 4, None, True, 0.9), GemmKernel(4, None, True, 4, None, True)
    common = {
        "in_features": 64,
        "out_features": 64,
        "bias": False,
        "rule": "layers blocks[*].* use w4a4",
        "passes": ("apply rtn",),
    }
    modules = [
        ModuleRecord(
            role=f"blocks[0].attention.{part}", module=f"blocks.0.{part}_proj", scheme="w4a4", label="W4A4",
            bits=4.5, row=kernel_fields(row), gemm=kernel_fields(gemm), sqnr_db=20.0, weight_sqnr_db=22.0,
            **common,
        )
        for part in "qkv"
    ]  # fmt: skip
    kept = ModuleRecord(role="head", module="head", scheme=None, label="bf16", bits=16.0, **common)
    manifest = Manifest(
        format=FORMAT,
        packing=PACKING,
        qspec="0.1.0",
        name="r",
        recipe="qspec 1\n",
        model=ModelRecord(
            id="m",
            revision="main",
            family="llada",
            standin=True,
            replacements=("one",),
            files={"a": "1" * 64},
        ),
        calibration=CalibrationRecord(
            tokens_sha256="2" * 64,
            text='"wikitext2"',
            samples=4,
            length=8,
            mask="uniform(0.0, 1.0)",
            draws=1,
            rows=4,
            weigh="masked 1.0, unmasked 1.0",
            seed=7,
            distinct=32,
            drawn=32,
        ),
        modules=(*modules, kept),
        kernels=(
            KernelRecord(name=row.name, file="kernels/row.py", sha256="3" * 64),
            KernelRecord(name=gemm.name, file="kernels/gemm.py", sha256="4" * 64),
        ),
        bits_per_weight=4.5,
        bits_per_weight_model=6.25,
        bytes_before=100,
        bytes_after=40,
        files={"config.json": "5" * 64},
    )
    measured = Measurements(
        (accuracy("a", "a", "exact_match", [True] * 5, [True] * 5),),
        (),
        (),
        (),
        ("not measured: b: why",),
        ("one", "two"),
        7,
        {"a": 1.5},
        (DataPin("nelbo", "c4", "1588ec", "6" * 64),),
    )
    common = {
        "execution": "here",
        "environment": {"torch": "2"},
        "timings": {"quantize": 9.0},
        "memory": {"peak": 5},
    }
    data = report_data(manifest, measured, None, **common)
    assert data.model.replacements == ("one", "two")
    assert [layer.kernel for layer in data.layers] == [f"{row.name} + {gemm.name}"] * 3 + ["floating point"]
    assert [(kernel.name, kernel.layers) for kernel in data.kernels] == [(row.name, 3), (gemm.name, 3)]
    assert data.timings == {"quantize": 9.0, "a": 1.5}
    assert data.hashes["checkpoint a"] == "1" * 64
    assert data.hashes["calibration tokens"] == "2" * 64
    assert data.hashes["data c4 for nelbo at 1588ec"] == "6" * 64
    assert data.as_json()["data"] == [{"use": "nelbo", "name": "c4", "revision": "1588ec", "sha256": "6" * 64}]
    assert data.seed == 7
    assert data.not_measured == ("not measured: b: why",)
    assert report_data(manifest, None, None, **common).not_measured == (
        "nothing was measured: evaluation was left out",
    )


# For people


def test_a_notebook_shows_the_summary() -> None:
    data = sample_report()
    page = data._repr_html_()
    assert str(data) == summary(data)
    first, *others = summary(data).splitlines()
    assert page.startswith(f"<p><b>{escape(first)}</b></p>")
    assert all(escape(line) in page for line in others[: others.index("")])
    assert page.count("<tr>") == 1 + len(data.metrics)
    for metric in data.metrics:
        assert f'<td style="text-align: left">{escape(metric.label)}</td>' in page


def test_the_terminal_summary() -> None:
    lines = summary(sample_report()).splitlines()
    assert lines[0] == VERDICT
    assert lines[1] == "Bits per weight: 4.43 in the blocks, 5.02 in the whole model."
    assert lines[2].startswith("Trajectories, at worst: 41.0 % of commits moved")
    assert [line[:20] for line in lines[3:5]] == ["Undecided (saturated"] * 2
    assert lines[5] == "Measured on the stand-in tiny-llada, not on a real llada checkpoint."
    assert lines[6] == "Its outliers were injected by qspec's authors, at sizes that they chose."
    assert lines[8].split() == ["task", "measure", "unquantized", "quantized", "drop", "loss", "n"]
    assert " ".join(lines[12].split()) == "stand-in arithmetic (for gsm8k) exact match 97.9 % 81.2 % 17.0 % large 48"
    assert lines[-1].startswith("not measured: mbpp")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1536, "1.5 KiB"),
        (4_480_000_000, "4.17 GiB"),
        (16 * 2**30, "16 GiB"),
    ],
)
def test_bytes(value: int, text: str) -> None:
    assert bytes_text(value) == text


def test_seconds() -> None:
    assert (seconds_text(1.25), seconds_text(119.0), seconds_text(150.0)) == ("1.2 s", "119.0 s", "2.5 min")


def test_environment_and_memory() -> None:
    found = environment()
    assert {"python", "system", "torch", "qspec", "cpu", "gpu"} <= set(found)
    assert memory()["peak resident"] > 10_000_000


@pytest.mark.parametrize(
    ("execution", "name", "rest"),
    [
        (
            "CPU reference (integer arithmetic, without a GPU); denoising steps: eager (on a CPU)",
            "CPU reference",
            "integer arithmetic, without a GPU; denoising steps: eager (on a CPU)",
        ),
        ("Triton kernels on NVIDIA H200; steps: captured", "Triton kernels", "on NVIDIA H200; steps: captured"),
    ],
)
def test_how_it_was_computed_is_cut_in_two(execution: str, name: str, rest: str) -> None:
    assert FILTERS["path_name"](execution) == name
    assert FILTERS["path_rest"](execution) == rest
