"""The report's figures, drawn as SVG about 360 units wide, so that their text can be read on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qspec.calibrate.outliers import Picture, SiteOutliers
from qspec.evaluate.results import Flips, KlBucket, Metric, task_scores
from qspec.evaluate.statistics import wilson
from qspec.report.compare import only_rounded
from qspec.report.data import Compared, LayerRow, ReportData
from qspec.report.drawing import LABEL, ROLE, SITE_NAMES, WIDTH, Figure, Scale, block_numbers, part_of, peak_of, ridge
from qspec.report.svg import Svg

CURVES = 4  # line colours
EXACT_DB = 200.0  # what the error of a layer that lost nothing is recorded as


def figures(data: ReportData) -> dict[str, Figure]:
    """Every figure that the data allow, by name."""
    found = [bits_map(data.layers)]
    if any(layer.sqnr_db is not None for layer in data.layers):
        found.append(error_map(data.layers))
    if task_scores(data.metrics):
        found.append(accuracy(data.metrics))
    if data.compared and (plot := pareto(data)):
        found.append(plot)
    found += kl_bars(data.kl, data.labels)
    if data.flips:
        found.append(flip_curves(data.flips))
    if data.outliers is not None and data.outliers.before:
        found.append(outlier_ratios(data.outliers.before, data.outliers.after))
        found += ridges(data.outliers.pictures, {row.site: row for row in data.outliers.before})
    return {figure.name: figure for figure in found}


def bits_map(layers: Sequence[LayerRow]) -> Figure:
    """Stored bits a weight: a row for each role, a column for each block; embedding and head below."""
    grid, outer, blocks = _by_role(layers)
    cell, top = (WIDTH - LABEL) / max(1, blocks), 18.0
    height = min(22.0, max(14.0, cell))
    svg = Svg(WIDTH, top + height * (len(grid) + 1) + 12, "Stored bits per weight, by layer and role")
    block_numbers(svg, blocks)
    for row, (part, columns) in enumerate(grid.items()):
        y = top + height * row
        svg.text(LABEL - 6, y + height / 2 + 4, _short(part), "t", "end")
        for block, (bits, tip) in columns.items():
            _cell(svg, (LABEL + cell * block, y, cell, height), bits, tip)
    y, width = top + height * len(grid) + 8, (WIDTH - LABEL) / max(1, len(outer))
    for place, layer in enumerate(outer):
        x = LABEL + width * place
        label = f"{layer.role} {_bits(layer.bits)}"
        _cell(svg, (x, y, width, height), layer.bits, _bits_tip(layer), label)
    caption = "Stored bits per weight with scales and zero points. Columns are blocks; stronger colour, fewer bits."
    return Figure("bits", caption, svg)


def _cell(svg: Svg, box: tuple[float, float, float, float], bits: float, tip: str, label: str | None = None) -> None:
    """One rectangle, darker for fewer bits; with the number where it fits. box: x, y, width, height."""
    x, y, width, height = box
    depth = min(1.0, max(0.0, math.log2(16 / max(bits, 1)) / 3))
    svg.rect(x + 0.75, y + 0.75, width - 1.5, height - 1.5, "f-accent", tip, 0.08 + 0.87 * depth)
    text = label or (_bits(bits) if width >= 26 else "")
    svg.text(x + width / 2, y + height / 2 + 3.5, text, "t s inv" if depth > 0.5 else "t s", "middle")


def error_map(layers: Sequence[LayerRow]) -> Figure:
    """Signal to quantization noise of every layer's output: a row for each role, a column for each block."""
    rows: dict[str, dict[int, list[LayerRow]]] = {}
    for layer in layers:
        if layer.sqnr_db is not None and layer.sqnr_db < EXACT_DB and ROLE.fullmatch(layer.role):
            block, part = part_of(layer.role)
            rows.setdefault(part, {}).setdefault(block, []).append(layer)
    values = [layer.sqnr_db or 0.0 for row in rows.values() for own in row.values() for layer in own] or [0.0]
    low, high = min(values), max(values)
    blocks = max((block + 1 for row in rows.values() for block in row), default=0)
    cell, top = (WIDTH - LABEL) / max(1, blocks), 18.0
    height = min(22.0, max(14.0, cell))
    svg = Svg(WIDTH, top + height * len(rows) + 26, "Output error of every quantized layer in decibels")
    block_numbers(svg, blocks)
    for index, (part, row) in enumerate(rows.items()):
        y = top + height * index
        svg.text(LABEL - 6, y + height / 2 + 4, _short(part), "t", "end")
        for block, own in row.items():
            worst = min(own, key=lambda layer: layer.sqnr_db or 0.0)
            depth = (high - (worst.sqnr_db or 0.0)) / ((high - low) or 1)
            x, tip = LABEL + cell * block, f"{worst.role}: {worst.sqnr_db:.1f} dB"
            svg.rect(x + 0.75, y + 0.75, cell - 1.5, height - 1.5, "f-high", tip, 0.06 + 0.9 * depth)
            text = f"{worst.sqnr_db:.0f}" if cell >= 26 else ""
            svg.text(x + cell / 2, y + height / 2 + 3.5, text, "t s", "middle")
    y = top + height * len(rows) + 8
    for place, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        svg.rect(LABEL + 26 * place, y, 26, 8, "f-high", "", 0.06 + 0.9 * share)
    svg.text(LABEL - 6, y + 8, f"{high:.1f} dB", "t m", "end")
    svg.text(LABEL + 26 * 5 + 6, y + 8, f"{low:.1f} dB", "t m")
    caption = (
        "Signal to quantization noise of each layer's output on calibration data, of the worst where several share a "
        "cell; stronger colour, more error."
    )
    return Figure("errors", caption, svg)


def pareto(data: ReportData) -> Figure | None:
    """Bits against loss of all recipes, by the measure that most of them share; None where no two have one."""
    own = Compared(data.recipe.name, "", data.bits_per_weight, data.bits_per_weight_model, data.metrics)
    losses: dict[tuple[str, str, str], list[tuple[Compared, Metric]]] = {}
    for entry in (own, *only_rounded(data), *data.compared):
        for metric in entry.metrics:
            if metric.drop_percent is not None:
                losses.setdefault((metric.label, metric.metric, metric.title), []).append((entry, metric))
    points = max(losses.values(), key=len, default=[])
    if len(points) < 2:
        return None
    spans = [metric.losses or (metric.drop_percent or 0.0,) * 2 for _, metric in points]
    across = Scale(
        min(entry.bits_per_weight_model for entry, _ in points) - 0.25,
        max(entry.bits_per_weight_model for entry, _ in points) + 0.25, 46, WIDTH - 14,
    )  # fmt: skip
    up = Scale(min(0.0, *(low for low, _ in spans)), max(1.0, *(high for _, high in spans)), 172, 14)
    svg = Svg(WIDTH, 212, "Loss against bits per weight")
    for share in (up.low, 0.0, up.high):
        svg.line(46, up(share), WIDTH - 14, up(share), "axis" if share == 0 else "grid")
        svg.text(40, up(share) + 4, f"{share:.1f} %", "t m", "end")
    for (entry, metric), (low, high) in zip(points, spans, strict=True):
        x, bits, mine = across(entry.bits_per_weight_model), entry.bits_per_weight_model, entry is own
        svg.line(x, up(low), x, up(high), f"s-{'quant' if mine else 'base'} whisker")
        tip = f"{entry.name}: {bits:.2f} bits, {metric.drop_percent:.1f} % lost"
        svg.circle(x, up(metric.drop_percent or 0.0), 4, "f-quant" if mine else "f-base", tip)
        anchor = "end" if x > WIDTH / 2 else "start"
        svg.text(x + (-7 if anchor == "end" else 7), up(metric.drop_percent or 0.0) - 5, entry.name[:28], "t s", anchor)
        svg.text(x, 188, f"{bits:.2f}", "t m", "middle")
    svg.text(WIDTH - 14, 204, "bits per weight, whole model", "t m", "end")
    first = points[0][1]
    caption = f"Loss in {first.measure} on {first.label} with its 95 % interval; further left and lower is better."
    return Figure("pareto", caption, svg)


def accuracy(metrics: Sequence[Metric]) -> Figure:
    """Both models' accuracies with their 95 % intervals."""
    shown = [metric for metric in metrics if metric.metric != "nelbo"]
    scale = Scale(0, 100, 146, WIDTH - 16)
    svg = Svg(WIDTH, 26 + 36 * len(shown), "Accuracy of both models on each task")
    bottom = 4 + 36.0 * len(shown)
    for tick in (0, 25, 50, 75, 100):
        svg.line(scale(tick), 4, scale(tick), bottom, "axis" if tick == 0 else "grid")
        svg.text(scale(tick), bottom + 15, f"{tick} %" if tick == 0 else str(tick), "t m", "middle")
    for index, metric in enumerate(shown):
        y = 4 + 36.0 * index
        place = f"for {metric.task}, " if metric.source else ""
        svg.text(136, y + 16, metric.source or metric.task, "t", "end")
        svg.text(136, y + 28, place + metric.measure, "t m s", "end")
        for offset, css, value in ((13, "base", metric.baseline), (24, "quant", metric.quantized)):
            low, high = wilson(value, metric.n)
            svg.line(scale(100 * low), y + offset, scale(100 * high), y + offset, f"s-{css} whisker")
            svg.circle(scale(100 * value), y + offset, 4, f"f-{css}", f"{100 * value:.1f} % of {metric.n}")
    return Figure("accuracy", "Share of items answered rightly, with its 95 % interval (Wilson).", svg)


def kl_bars(buckets: Sequence[KlBucket], labels: Mapping[str, str]) -> list[Figure]:
    """One figure for each text: mean KL by mask ratio. labels: texts as people read them."""
    texts: dict[str, list[KlBucket]] = {}
    for bucket in buckets:
        texts.setdefault(bucket.text, []).append(bucket)
    out = []
    for index, (text, row) in enumerate(texts.items()):
        top = max((bucket.kl for bucket in row), default=0.0) or 1.0
        text = labels.get(text, text)
        width = (WIDTH - 20) / len(row)
        svg = Svg(WIDTH, 190, f"KL divergence by mask ratio on {text}")
        svg.line(10, 150, WIDTH - 10, 150, "axis")
        for place, bucket in enumerate(row):
            x, height = 10 + width * place, 120 * max(0.0, bucket.kl) / top
            ratio = f"mask ratio {bucket.low:g} to {bucket.high:g}"
            tip = f"{ratio}: {bucket.kl:.4g} nats over {bucket.positions} positions"
            svg.rect(x + width * 0.16, 150 - height, width * 0.68, max(height, 0.8), "f-quant", tip)
            svg.text(x + width / 2, 144 - height, f"{bucket.kl:.2g}", "t s", "middle")
            svg.text(x + width / 2, 166, f"{100 * bucket.low:.0f}–{100 * bucket.high:.0f} %", "t m", "middle")
        svg.text(WIDTH / 2, 184, "share of tokens masked", "t m", "middle")
        caption = f"Mean KL(quantized ‖ unquantized) in nats at the masked positions of {text}."
        out.append(Figure("kl" if index == 0 else f"kl-{index + 1}", caption, svg))
    return out


def flip_curves(flips: Sequence[Flips]) -> Figure:
    """Share of commits that moved to another step, along the denoising of each task."""
    across, up = Scale(0, 1, 40, WIDTH - 12), Scale(0, 1, 150, 14)
    svg = Svg(WIDTH, 176, "Commit flips along the denoising steps")
    for share in (0, 0.5, 1):
        svg.line(40, up(share), WIDTH - 12, up(share), "axis" if share == 0 else "grid")
        svg.text(34, up(share) + 4, f"{100 * share:.0f} %", "t m", "end")
    svg.text(40, 166, "first step", "t m")
    svg.text(WIDTH - 12, 166, "last step", "t m", "end")
    for index, one in enumerate(flips):
        steps = max(1, len(one.commit_flips) - 1)
        points = [(across(s / steps), up(rate)) for s, rate in enumerate(one.commit_flips) if rate is not None]
        svg.polyline(points, f"curve c{index % CURVES}")
    caption = (
        "Share of the positions committed at each step by the unquantized model that the quantized model "
        "commits at another step, up to the end of text."
    )
    return Figure("flips", caption, svg)


def outlier_ratios(before: Sequence[SiteOutliers], after: Sequence[SiteOutliers]) -> Figure:
    """Largest channel over median channel along the depth, one panel for each site, on a logarithmic scale."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage, rows in (("base", before), ("quant", after)):
        for row in rows:
            block, site = part_of(row.site)
            panels.setdefault(site, {}).setdefault(stage, []).append((block, max(row.ratio, 1.0)))
    ratios = [ratio for panel in panels.values() for line in panel.values() for _, ratio in line]
    blocks = max(block for panel in panels.values() for line in panel.values() for block, _ in line)
    top = math.ceil(math.log10(max(ratios)) + 1e-9) or 1
    width, height = WIDTH / 2, 104.0
    svg = Svg(WIDTH, height * -(-len(panels) // 2) + 6, "Outlier ratio of every input before and after")
    for index, (site, panel) in enumerate(panels.items()):
        x, y = width * (index % 2), height * (index // 2)
        across = Scale(0, max(1, blocks), x + 34, x + width - 10)
        up = Scale(0, top, y + 84, y + 24)
        svg.text(x + 34, y + 14, SITE_NAMES.get(site, site), "t")
        for power in range(top + 1):
            svg.line(x + 34, up(power), x + width - 10, up(power), "axis" if power == 0 else "grid")
            svg.text(x + 28, up(power) + 4, f"{10**power:g}", "t m", "end")
        svg.text(x + 34, y + 98, "block 0", "t m")
        svg.text(x + width - 10, y + 98, str(blocks), "t m", "end")
        for stage, line in panel.items():
            points = [(across(block), up(math.log10(ratio))) for block, ratio in sorted(line)]
            svg.polyline(points, f"curve s-{stage}")
            for px, py in points:
                svg.circle(px, py, 2.2, f"f-{stage}")
    caption = (
        "Largest channel's peak over the median channel's, for each linear's input: before, and after every "
        "transform, where it is quantized. Logarithmic scale; 1 is perfectly even."
    )
    return Figure("outliers", caption, svg)


def ridges(pictures: Sequence[Picture], before: Mapping[str, SiteOutliers]) -> list[Figure]:
    """Channel x token magnitudes as ridge lines; before and after of one site share their scale."""
    peaks: dict[str, float] = {}
    for picture in pictures:
        peaks[picture.site] = max(peaks.get(picture.site, 0.0), peak_of(picture))
    out = []
    for picture in pictures:
        kind = before[picture.site].kind if picture.site in before else "none"
        caption = f"{picture.stage.capitalize()}: |x| at {picture.site}, largest {peak_of(picture):.3g}."
        out.append(Figure(f"ridge-{kind}-{picture.stage}", caption, ridge(picture, peaks[picture.site])))
    return out


def _by_role(
    layers: Sequence[LayerRow],
) -> tuple[dict[str, dict[int, tuple[float, str]]], list[LayerRow], int]:
    """(part -> block -> (bits, tip), modules outside the blocks, number of blocks); experts share their part's cell."""
    cells: dict[str, dict[int, list[LayerRow]]] = {}
    outer = []
    for layer in layers:
        if ROLE.fullmatch(layer.role):
            block, part = part_of(layer.role)
            cells.setdefault(part, {}).setdefault(block, []).append(layer)
        else:
            outer.append(layer)
    blocks = max((block + 1 for row in cells.values() for block in row), default=0)
    grid = {part: {block: _cell_of(own) for block, own in row.items()} for part, row in cells.items()}
    return grid, outer, blocks


def mean_bits(layers: Sequence[LayerRow]) -> float:
    """Stored bits of an average weight of these modules."""
    sizes = [max(1, layer.in_features * layer.out_features) for layer in layers]
    return sum(layer.bits * size for layer, size in zip(layers, sizes, strict=True)) / sum(sizes)


def _cell_of(layers: Sequence[LayerRow]) -> tuple[float, str]:
    """(bits, tip) of the modules that share a cell."""
    bits = mean_bits(layers)
    return bits, _bits_tip(layers[0]) if len(layers) == 1 else f"{len(layers)} modules: {bits:.3f} bits"


def _bits(value: float) -> str:
    """4.125 -> 4.13, 16.0 -> 16; halves up, as a reader rounds."""
    return f"{math.floor(100 * value + 0.5) / 100:g}"


def _bits_tip(layer: LayerRow) -> str:
    return f"{layer.role}: {layer.label}, {layer.bits:.3f} bits"


def _short(part: str) -> str:
    return part.rpartition(".")[2]
