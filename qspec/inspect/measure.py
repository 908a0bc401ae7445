"""Streams masked text through a model, block by block, and describes every linear's input at every mask ratio.

Memory holds one block, the hidden states of all ratios and the inputs of one block at one ratio, whatever the model's
depth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from qspec.calibrate.outliers import (
    MASSIVE_TIMES,
    OUTLIER_RATIO,
    PICTURED_TOKENS,
    Kind,
    Stage,
    describe,
    largest_tokens,
    magnitudes_of,
    picture,
    readers,
    watching,
)
from qspec.calibrate.stream import CalibrationBatch, Stream
from qspec.calibrate.tokens import positions_below, repetition, windows
from qspec.data import DataSources, TextData
from qspec.data.sources import STANDIN_FILE
from qspec.errors import InputError, MachineError, NumericsError
from qspec.evaluate.artifact import find_baseline
from qspec.evaluate.forward import Tokenizer
from qspec.inspect.data import Drawn, Input, Inspection, Positions, Row, Subject, TokenPeak, finite
from qspec.language.spec import TEXTS, FileText, NamedText
from qspec.manifest import MANIFEST, Manifest
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.family import NO_MASK
from qspec.models.locate import checkpoint_locate
from qspec.models.samplers.common import check_seed
from qspec.precision import exact_products
from qspec.progress import Progress, Quiet
from qspec.report import environment
from qspec.runtime import default_dtype, find_device, load_artifact, load_tokenizer

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLES = 8
LENGTH = 512
BATCH_TOKENS = 4096  # in one forward pass
TOKENS_KEPT = 8  # of those that an outlier spans, for each row


@dataclass(frozen=True)
class MaskedText:
    """text: a named text, or a file (of JSON lines, their field "text"). samples: windows of it. length: at most what
    the model takes; None is 512 or that. ratios: shares of masked tokens, in [0, 1]; the same windows and the same
    draws serve all, so that what is masked at one is masked at every larger one.
    """

    text: str = "wikitext2"
    samples: int = SAMPLES
    length: int | None = None
    ratios: Sequence[float] = RATIOS
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)


@exact_products()
def inspect(
    checkpoint: str, wanted: MaskedText = MaskedText(), *, device: str = "auto", progress: Progress | None = None
) -> Inspection:
    """The outliers at every linear's input of a checkpoint, by mask ratio and by masked and unmasked position.

    checkpoint: a folder, a hub id in the local cache, the name of a bundled stand-in, or an artifact, whose inputs are
    seen as they are quantized. wanted: the text that runs through it. Errors: InputError for a checkpoint or text that
    is missing or cannot be read, MachineError where memory runs out, NumericsError for NaN or Inf.
    """
    progress, target = progress or Quiet(), find_device(device)
    folder = _located(checkpoint)
    try:
        model = open_model(folder, target)
        tokenizer = load_tokenizer(folder)
        content = _text(folder, wanted.text)
        masks = nested_masks(content, tokenizer, model.decoder, wanted)
        if masks.repetition:
            progress.note(masks.repetition)
        found = _Found(tokenizer, masks, model.stage)
        with progress.phase("inspect"):
            for index in progress.blocks(range(model.decoder.shape.layers)):
                found.block(index, model, progress)
    except (torch.OutOfMemoryError, MemoryError) as error:
        hint = "lower --samples or --length"
        raise MachineError("out of memory", where=str(target), hint=hint) from error
    return Inspection(
        subject=_subject(checkpoint, folder, model),
        input=Input(content.title, wanted.samples, masks.ids.shape[1], tuple(wanted.ratios), wanted.seed, masks.sha256),
        rows=tuple(found.rows),
        pictures=tuple(found.pictures[kind] for kind in ("normal", "massive") if kind in found.pictures),
        thresholds={"outlier_ratio": OUTLIER_RATIO, "massive_times_typical": MASSIVE_TIMES},
        computed=_computed(target),
        environment=environment(),
    )


@dataclass(frozen=True)
class Model:
    """decoder: tells family and shape, and may hold no weights. embed: ids [b, t] -> x [b, t, d]. block: one block."""

    decoder: Decoder
    device: torch.device
    embed: Callable[[Tensor], Tensor]
    block: Callable[[int], DecoderBlock]
    stage: Stage


def open_model(folder: Path, device: torch.device) -> Model:
    """A checkpoint, whose blocks are read when they are asked for, or an artifact, loaded whole and packed."""
    dtype = default_dtype(device)
    if (folder / MANIFEST).is_file():
        packed = load_artifact(folder, device, dtype)
        return Model(packed, device, lambda ids: packed.embed(ids.to(device)), lambda i: packed.blocks[i], "after")
    checkpoint = Checkpoint.open(folder)
    decoder = Decoder(checkpoint.family, checkpoint.shape, device="meta")
    name = f"{checkpoint.family.globals['embedding']}.weight"
    return Model(
        decoder,
        device,
        lambda ids: checkpoint.tensor(name)[ids].to(device, dtype),  # of 126464 rows only those that occur are widened
        lambda index: checkpoint.load_block(index, device, dtype),
        "before",
    )


@dataclass(frozen=True)
class Masks:
    """ids: int64 [samples, length], unmasked. masked: bool [ratios, samples, length], nested where ratios grow.

    repetition: what is wrong with the text, if it is too short.
    """

    ids: Tensor
    masked: Tensor
    ratios: tuple[float, ...]
    mask_token: int
    sha256: str
    repetition: str | None


def nested_masks(text: TextData, tokenizer: Tokenizer, decoder: Decoder, wanted: MaskedText) -> Masks:
    """Windows of the text, and which of their tokens are masked at each ratio: u < ratio, with one u a token."""
    samples, length, ratios = wanted.samples, wanted.length, tuple(wanted.ratios)
    most = decoder.shape.max_length
    if decoder.shape.mask_token == NO_MASK:
        hint = "inspect measures families that mask"
        raise InputError("the model has no mask token: its noise is ordinary tokens", where="--model", hint=hint)
    if length is not None and length > most:
        hint = f"give --length {most} or less"
        raise InputError(f"length {length} exceeds the model's {most} tokens", where="--length", hint=hint)
    generator = torch.Generator().manual_seed(wanted.seed)
    found = windows(text.documents, tokenizer, decoder.shape.vocab, samples, length or min(LENGTH, most), generator)
    ids = found.ids
    draw = torch.rand(ids.shape, generator=generator)
    masked = torch.stack([positions_below(torch.full((samples,), ratio), draw) for ratio in ratios])
    digest = hashlib.sha256(ids.numpy().tobytes() + draw.numpy().tobytes()).hexdigest()
    return Masks(ids, masked, ratios, decoder.shape.mask_token, digest, repetition(found.distinct, found.drawn))


@dataclass
class _Found:
    """What the blocks so far have shown, and the streams at the next one's input."""

    tokenizer: Tokenizer
    masks: Masks
    stage: Stage
    rows: list[Row] = field(default_factory=list)
    pictures: dict[Kind, Drawn] = field(default_factory=dict)
    crests: dict[Kind, float] = field(default_factory=dict)
    streams: list[Stream] = field(default_factory=list)

    def block(self, index: int, model: Model, progress: Progress) -> None:
        """One block at every ratio."""
        self.streams = self.streams or _start(model, self.masks)
        block = model.block(index)
        linears = site_linears(model.decoder, block, index)
        rows: list[Row] = []
        for place, ratio in enumerate(self.masks.ratios):
            progress.step(f"mask ratio {ratio:g}")
            seen: dict[str, list[Tensor]] = {site: [] for site in linears}
            stream = self.streams[place]

            def observe(site: str, x: Tensor, seen: dict[str, list[Tensor]] = seen, stream: Stream = stream) -> None:
                rows = x.reshape(-1, stream.batches[0].x.shape[1], x.shape[-1])
                noised = rows[:, : self.masks.ids.shape[1]]  # of a block-causal model's rows the first half
                seen[site].append(magnitudes_of(noised))

            with watching(linears, observe):
                stream.advance(block)
            for site, parts in seen.items():
                rows += self._site(index, site, ratio, torch.cat(parts), self.masks.masked[place].flatten())
        order = list(linears)
        self.rows += sorted(rows, key=lambda row: order.index(row.found.site))

    def _site(self, block: int, site: str, ratio: float, magnitudes: Tensor, masked: Tensor) -> list[Row]:
        """The rows of one input at one ratio, from |x| [samples * length, channels]; keeps its picture if it leads."""
        subsets: dict[Positions, Tensor] = {
            "all": torch.ones_like(masked),
            "masked": masked,
            "unmasked": ~masked,
        }
        rows = []
        for positions, chosen in subsets.items():
            if not bool(chosen.any()):
                continue
            part = magnitudes if bool(chosen.all()) else magnitudes[chosen.to(magnitudes.device)]
            found = describe(site, part)
            if not finite(found):
                hint = "the checkpoint is corrupt, or its activations do not fit the dtype"
                raise NumericsError(f"the input is NaN or Inf at mask ratio {ratio:g}", where=site, hint=hint)
            places = chosen.nonzero()[:, 0]
            tokens = tuple(
                self._token(int(places[row]), peak, bool(masked[places[row]]))
                for row, peak in largest_tokens(part, found, TOKENS_KEPT)
            )
            rows.append(Row(block, site.partition("].")[2], ratio, positions, found, tokens))
        self._draw(rows[0], magnitudes, masked)
        return rows

    def _token(self, place: int, magnitude: float, masked: bool) -> TokenPeak:
        sample, position = divmod(place, self.masks.ids.shape[1])
        text = self.tokenizer.decode([int(self.masks.ids[sample, position])], skip_special_tokens=False)
        return TokenPeak(sample, position, text, masked, magnitude)

    def _draw(self, row: Row, magnitudes: Tensor, masked: Tensor) -> None:
        """The largest of a kind so far is drawn: the tokens around its peak, of one sample."""
        found = row.found
        if found.kind == "none" or found.crest <= self.crests.get(found.kind, 0.0):
            return
        length = self.masks.ids.shape[1]
        peak = row.tokens[0]
        first = max(0, min(peak.position - PICTURED_TOKENS // 2, length - PICTURED_TOKENS))
        window = slice(peak.sample * length + first, (peak.sample + 1) * length)
        drawn = picture(found.site, self.stage, magnitudes[window], masked[window])
        self.crests[found.kind] = found.crest
        self.pictures[found.kind] = Drawn(found.kind, row.ratio, peak.sample, first, drawn)


def _start(model: Model, masks: Masks) -> list[Stream]:
    """One stream for each ratio, at the first block's input."""
    ids, hidden_by = torch.where(masks.masked, masks.mask_token, masks.ids), masks.masked  # [ratios, samples, length]
    if model.decoder.shape.block is not None:  # noised, then clean
        ids = torch.cat((ids, masks.ids.expand_as(ids)), dim=2)
        hidden_by = torch.cat((hidden_by, torch.zeros_like(hidden_by)), dim=2)
    hidden = model.embed(ids.flatten(0, 1)).view(*ids.shape, -1)
    rows = max(1, BATCH_TOKENS // ids.shape[2])
    streams = []
    for own, masked in zip(hidden, hidden_by.to(model.device), strict=True):
        batches = [
            CalibrationBatch(x, None, model.decoder.calibration_context(hides), hides, torch.ones_like(hides).float())
            for x, hides in zip(torch.split(own, rows), torch.split(masked, rows), strict=True)
        ]
        streams.append(Stream(batches))
    return streams


def site_linears(decoder: Decoder, block: DecoderBlock, index: int) -> dict[str, list[nn.Module]]:
    """site -> one of the linears that read it at all tokens, for block `index`, in forward order.

    Where experts alone read it, their router, which sees it as it is before a transform; no expert's own input.
    """
    entries = decoder.family.linears(decoder.shape, index)
    chosen = {site: own[0] for site, own in readers(entries).items() if own[0].expert is None}
    for entry in entries:
        if entry.only_kept and entry.site not in chosen:
            chosen[entry.site] = entry.role
    return {site: [block.part(role.local)] for site, role in chosen.items()}


def _located(checkpoint: str) -> Path:
    folder = checkpoint_locate(checkpoint)
    if folder is None:
        raise InputError(
            f"there is no checkpoint {checkpoint!r} on this machine",
            where="the local cache of the hub",
            hint="give a folder with config.json and *.safetensors, or a bundled stand-in: qspec inspect tiny-llada",
        )
    return folder


def _text(folder: Path, text: str) -> TextData:
    """A named text for the checkpoint (a stand-in answers with its own), or a file."""
    if text in TEXTS:
        manifest = folder / MANIFEST
        original = find_baseline(Manifest.read(folder).model, None) if manifest.is_file() else folder
        return DataSources(original, Path()).calibration(NamedText(text))
    if not Path(text).is_file():
        hint = f'--text takes {", ".join(TEXTS)} or a file: text, or JSON lines with a field "text"'
        raise InputError(f"there is no text {text!r}", where="--text", hint=hint)
    field_name = "text" if text.endswith((".jsonl", ".json")) else None
    return DataSources(None, Path()).calibration(FileText(text, field_name))


def _subject(checkpoint: str, folder: Path, model: Model) -> Subject:
    shape = model.decoder.shape
    return Subject(
        id=folder.resolve().name if Path(checkpoint).is_dir() else checkpoint,
        family=model.decoder.family.name,
        standin=(folder / STANDIN_FILE).is_file(),
        stage=model.stage,
        blocks=shape.layers,
        width=shape.width,
        ffn=shape.ffn,
        mask_token=shape.mask_token,
    )


def _computed(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{str(default_dtype(device)).removeprefix('torch.')} on {name}"
