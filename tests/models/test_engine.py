"""Captured steps against eager ones: the same tokens, whatever runs before on the same canvas.

CUDA graphs need a GPU (tests/gpu/test_engine.py). Here a capture is a step that is made again, with what it closed over
at the time, so that an input that does not come by way of the canvas is seen: the replay would not see it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec import resources, runtime
from qspec.errors import MachineError, NumericsError
from qspec.models import engine as engines
from qspec.models import sampler
from qspec.models.decoder import Decoder
from qspec.models.engine import Captured, Eager, Graphs, Step, execution, length_of
from qspec.models.sampler import DreamSettings, SamplerSettings, SampleStep, Settings, sample
from qspec.models.samplers import dream as dream_sampler
from qspec.models.samplers import llada as llada_sampler
from qspec.models.samplers.canvas import WHOLE, Canvas, CanvasShape, Pass
from tests.models.test_cached import dream, llada


class Again:
    """`Capture` by making the step again; counts captures and replays. Nothing is computed by the capture itself."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.graphs: Graphs | None = None

    def __call__(self, step: Step) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        assert self.graphs is not None
        self.captures += 1
        kept = [(t, t.clone()) for canvas in self.graphs.canvases.values() for t in tensors_of(canvas)]
        results = tuple(t.clone() for t in step())
        for tensor, before in kept:
            tensor.copy_(before)

        def replay() -> None:
            self.replays += 1
            for result, again in zip(results, step(), strict=True):
                result.copy_(again)

        return results, replay


def tensors_of(canvas: Canvas) -> Iterator[Tensor]:
    edited = getattr(canvas, "edited", None)
    for value in (*vars(canvas).values(), *vars(edited or object).values()):
        if isinstance(value, Tensor):
            yield value
    for pair in canvas._kept:
        yield from pair


class Fixture:
    """`sample` replays, as on a GPU."""

    def __init__(self) -> None:
        self.capture = Again()
        self._graphs: dict[Decoder, Graphs] = {}

    def graphs(self, model: Decoder) -> Graphs:
        if model not in self._graphs:
            self._graphs[model] = self.capture.graphs = Graphs(model, self.capture)
        return self._graphs[model]


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Fixture:
    fixture = Fixture()

    def runner(model: Decoder, *, captured: bool) -> Captured | Eager:
        return Captured(model, fixture.graphs(model)) if captured else Eager(model)

    monkeypatch.setattr(sampler, "runner", runner)
    return fixture


def prompts(seed: int, padded: bool, width: int = 5) -> tuple[Tensor, Tensor | None]:
    """Two rows of five tokens; padded: the first has three."""
    ids = torch.randint(0, 20, (2, width), generator=torch.Generator().manual_seed(seed))
    if not padded:
        return ids, None
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids, mask


LLADA: list[dict[str, Any]] = [
    {},
    {"cache": "prefix"},
    {"cache": "dual"},
    {"cfg": 1.0},
    {"cfg": 1.0, "cache": "dual"},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.7, "seed": 3, "cache": "prefix", "cfg": 0.5},
    {"remasking": "random", "seed": 3},
    {"threshold": 0.3},
    {"factor": 1.7, "cache": "dual"},
    {"logits_eos_inf": True, "confidence_eos_eot_inf": True},
    {"stop": True},
]
DREAM: list[dict[str, Any]] = [
    {},
    {"cache": "prefix"},
    {"alg": "origin", "seed": 3},
    {"alg": "topk_margin", "alg_temp": 0.5},
    {"alg": "maskgit_plus", "temperature": 0.7, "top_p": 0.9, "top_k": 5},
    {"alg": "maskgit_plus", "temperature": 0.7, "cache": "prefix", "alg_temp": 0.2, "seed": 1},
]
CASES = [
    *((llada, SamplerSettings(8, 8, 4, **options)) for options in LLADA),
    *((dream, DreamSettings(8, 6, **options)) for options in DREAM),
]
NAMES = [f"{make.__name__} {options}" for make, many in ((llada, LLADA), (dream, DREAM)) for options in many]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("make", "settings"), CASES, ids=NAMES)
def test_tokens_are_those_of_eager_steps(
    replayed: Fixture, make: Callable[[], Decoder], settings: Settings, padded: bool
) -> None:
    """With other prompts, of other lengths, on one canvas: runs replay what the first one captured. Eager steps have
    a canvas without padding behind the text."""
    model = make()
    for seed, width in ((0, 5), (1, 5), (2, 9)):
        given = prompts(seed, padded, width)
        steps: list[list[SampleStep]] = [[], []]
        found = sample(model, *given, settings, steps[0].append)
        assert torch.equal(found, sample(model, *given, settings, steps[1].append, captured=False))
        assert torch.equal(found, sample(model, *given, settings))  # nobody follows the steps
        for one, other in zip(*steps, strict=True):
            assert torch.equal(one.committed, other.committed)
            assert torch.equal(one.tokens[one.committed], other.tokens[other.committed])
            assert torch.allclose(one.confidence[one.committed], other.confidence[other.committed], atol=1e-6)
    assert replayed.capture.replays > replayed.capture.captures > 0
    assert replayed.capture.captures == (1 if settings.cache is None else 2)


def test_random_lengths_share_their_steps(replayed: Fixture) -> None:
    """Texts behind prompts of any length: after the first, nothing is captured, and no canvas is made."""
    model = llada()
    draws = torch.Generator().manual_seed(0)
    for number in range(15):
        width = int(torch.randint(1, 41, (), generator=draws))
        ids = torch.randint(0, 20, (1, width), generator=draws)
        settings = SamplerSettings((4, 8, 12)[number % 3], 2 * (1 + number % 3), 4, cache="dual")
        found = sample(model, ids, None, settings)
        assert torch.equal(found, sample(model, ids, None, settings, captured=False))
        if number == 0:
            graphs, first = replayed.graphs(model), replayed.capture.captures
            room = graphs.memory.take(1).data_ptr()
    assert first <= replayed.capture.captures <= 2
    assert len(graphs.canvases) == 1
    assert graphs.memory.take(1).data_ptr() == room


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"cache": "dual"}, {"cfg": 0.5}, {"temperature": 0.9, "remasking": "random"}, {"threshold": 0.3}]
)
def test_rows_of_a_batch_are_those_of_texts_alone(options: dict[str, Any], captured: bool) -> None:
    """Eight prompts of different lengths; a row leaves the batch at the end of its text, and others are as before."""
    model = llada()
    head = model.head
    assert head is not None
    head.weight[model.shape.eos_token] *= 3  # ends some texts early
    draws = torch.Generator().manual_seed(1)
    given = [torch.randint(2, 20, (int(n),), generator=draws).tolist() for n in range(1, 9)]
    ids, mask = sampler.left_padded(given, 0)
    stopped = sample(model, ids, mask, SamplerSettings(16, 16, 4, stop=True, **options), captured=captured)
    whole = sample(model, ids, mask, SamplerSettings(16, 16, 4, **options), captured=captured)
    ends = model.shape.ends
    texts = [[sampler.until(row, *ends) for row in rows[:, 8:].tolist()] for rows in (stopped, whole)]
    assert texts[0] == texts[1]
    assert len({len(text) for text in texts[0]}) > 1  # some ended earlier than others
    if "temperature" not in options:  # the numbers of a row are those of its place in the batch
        for row, prompt in enumerate(given):
            alone = sample(model, torch.tensor([prompt]), None, SamplerSettings(16, 16, 4, **options))
            assert torch.equal(alone[0, len(prompt) :], whole[row, 8:])


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_stand_ins_write_the_same_however_they_are_run(
    replayed: Fixture, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """In float32: captured, eager, eager with padding behind the text, two rows at once and one by one."""
    model, _ = runtime.load(resources.standin(family), "cpu")
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    settings = sampler.settings_for(model.shape, 8, 4, 4 if family == "llada" else None, cache="prefix")
    expected = sample(model, ids, None, settings, captured=False)
    assert torch.equal(sample(model, ids, None, settings), expected)
    assert torch.equal(torch.cat([sample(model, row[None], None, settings) for row in ids]), expected)
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "runner", lambda model, **_: Eager(model, rounded=True))
        assert torch.equal(sample(model, ids, None, settings), expected)
    assert replayed.capture.replays


def test_eager_texts_of_random_lengths_keep_nothing() -> None:
    model, draws = llada(), torch.Generator().manual_seed(0)
    before = len(engines.CAPTURED), len(canvases())
    for _ in range(20):
        width = int(torch.randint(1, 41, (), generator=draws))
        sample(model, torch.ones(1, width, dtype=torch.int64), None, SamplerSettings(4, 2, 4, cache="dual"))
    assert (len(engines.CAPTURED), len(canvases())) == before


def canvases() -> list[Canvas]:
    gc.collect()  # those of tests before
    return [one for one in gc.get_objects() if type(one) is Canvas]


def test_a_step_runs_once_before_it_is_captured(replayed: Fixture) -> None:
    model, counts = llada(), []

    def on_step(_: SampleStep) -> None:
        counts.append((replayed.capture.captures, replayed.capture.replays))

    sample(model, *prompts(0, False), SamplerSettings(4, 4, 4), on_step)
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_the_latest_canvases_are_kept(replayed: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CANVASES", 2)
    model = llada()
    for rows in (1, 2, 1, 3):
        sample(model, torch.ones(rows, 1, dtype=torch.int64), None, SamplerSettings(2, 2, 2))
    graphs = replayed.graphs(model)
    assert [shape.batch for shape in graphs.canvases] == [1, 3]
    assert {shape.batch for shape, _ in graphs.steps} == {1, 3}


def test_canvases_share_the_room_for_keys_and_what_read_less_of_it_goes(replayed: Fixture) -> None:
    model, kept = llada(), []
    for rows in (1, 2, 1, 2):
        sample(model, torch.ones(rows, 3, dtype=torch.int64), None, SamplerSettings(4, 4, 4, cache="dual"))
        kept.append([shape.batch for shape in replayed.graphs(model).canvases])
    assert kept == [[1], [2], [2, 1], [1, 2]]
    states = [canvas._states for canvas in replayed.graphs(model).canvases.values()]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].data_ptr() == states[1].data_ptr()


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 64), (64, 64), (65, 128), (1000, 1024), (1024, 1024), (1025, 1152), (4096, 4096)]
)
def test_lengths_of_canvases(tokens: int, length: int) -> None:
    assert length_of(tokens) == length


def test_graphs_of_weights_that_moved_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CudaGraphs", Again)
    model = llada()
    first = engines.graphs_of(model)
    assert engines.graphs_of(model) is first
    model.final_norm.weight = torch.nn.Parameter(model.final_norm.weight.detach().clone(), requires_grad=False)
    assert engines.graphs_of(model) is not first


def test_a_model_is_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its canvases nor by what was captured: a graph knows addresses alone."""
    captures = 0

    def capture(step: Step) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        nonlocal captures
        captures += 1
        return step(), lambda: None

    before = len(engines.CAPTURED)
    model = llada()
    engines.CAPTURED[model] = Graphs(model, capture)
    monkeypatch.setattr(sampler, "runner", lambda model, **_: Captured(model, engines.CAPTURED[model]))
    sample(model, *prompts(0, False), SamplerSettings(4, 4, 4, cache="dual"))
    assert captures == 1
    del model
    assert len(engines.CAPTURED) == before


@pytest.mark.parametrize(("make", "settings"), CASES, ids=NAMES)
def test_a_step_reads_no_number_on_the_host(make: Callable[[], Decoder], settings: Settings) -> None:
    """On the meta device, where there are none: so that a graph can hold the step, and the host runs ahead."""
    model = make().to("meta")
    guided = isinstance(settings, SamplerSettings) and settings.cfg > 0
    shape = CanvasShape(2, 16, padded=False, guided=guided)
    canvas = Canvas(model, shape)
    canvas.keep(model, torch.empty(canvas.room(model), dtype=torch.float64, device="meta"))
    canvas.window(3, 3)
    for part in (WHOLE,) if settings.cache is None else (Pass(kept=True), Pass(kept=True, tokens=5)):
        if isinstance(settings, SamplerSettings):
            results = llada_sampler._step(model, settings, canvas, part)
        else:
            results = dream_sampler._step(model, settings, 4, canvas, part)
        assert {t.device.type for t in results} == {"meta"}


# --- where no graph can be had ---


def test_on_a_cpu_steps_are_eager() -> None:
    model = llada()
    assert isinstance(engines.runner(model), Eager)
    assert execution(model) == "eager (on a CPU)"


def test_on_a_gpu_steps_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "device", property(lambda _: torch.device("cuda")))
    assert execution(llada()) == "captured"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nhints"), "operation not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory"),
    ],
)
def test_steps_that_cannot_be_captured_go_on_eagerly(replayed: Fixture, error: Exception, why: str) -> None:
    model, settings = llada(), SamplerSettings(8, 8, 4, cache="dual")
    graphs = replayed.graphs(model)

    def refuses(_: Step) -> Any:
        raise error

    graphs.capture = refuses
    given = prompts(0, True)
    for _ in range(2):
        assert torch.equal(sample(model, *given, settings), sample(model, *given, settings, captured=False))
    assert graphs.why.startswith(f"no CUDA graph could be captured: {why}")
    assert "hints" not in graphs.why
    assert not graphs.steps


class Failing(Decoder):
    """Raises an error in the third pass."""

    error: BaseException
    calls = 0

    def through(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return super().through(*args, **kwargs)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [
        (torch.AcceleratorError("CUDA error: device lost\nmore"), "the GPU failed: CUDA error: device lost", "nvidia"),
        (RuntimeError("Triton Error [CUDA]: unspecified launch failure"), "the GPU failed: Triton Error", "nvidia"),
        (torch.OutOfMemoryError("CUDA out of memory."), "the GPU is out of memory: CUDA out of memory.", "lower"),
    ],
)
def test_a_gpu_that_fails_is_one_error(
    replayed: Fixture, error: Exception, what: str, hint: str, captured: bool
) -> None:
    model = llada()
    model.__class__ = Failing
    assert isinstance(model, Failing)
    model.error = error
    settings = SamplerSettings(8, 8, 4)
    replayed.graphs(model).why = "as they are called"  # a failure of a replayed graph comes from it, not from the pass
    with pytest.raises(MachineError) as caught:
        sample(model, *prompts(0, False), settings, captured=captured)
    assert caught.value.what.startswith(what)
    assert "more" not in caught.value.what
    assert hint in str(caught.value.hint)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("captured", [True, False])
def test_an_interrupted_text_leaves_nothing_behind(captured: bool) -> None:
    """By Ctrl-C between two steps, or within the third, which is where it may be captured."""
    model, settings = llada(), SamplerSettings(8, 8, 4, cache="dual")
    given = prompts(0, False)
    expected = sample(llada(), *given, settings, captured=False)

    def on_step(step: SampleStep) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, *given, settings, on_step, captured=captured)
    assert torch.equal(sample(model, *given, settings, captured=captured), expected)
    model.__class__ = Failing
    assert isinstance(model, Failing)
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sample(model, *prompts(1, False), settings, captured=captured)
    assert torch.equal(sample(model, *given, settings, captured=captured), expected)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(("make", "settings"), [(llada, SamplerSettings(8, 8, 4)), (dream, DreamSettings(40, 40))])
def test_a_step_with_logits_that_are_not_finite_ends_the_run(
    make: Callable[[], Decoder], settings: Settings, captured: bool
) -> None:
    """At the end of LLaDA's block of four, of Dream's sixteen steps: not after all of them. The next run is well."""
    model = make()
    weight = model.embedding.weight
    assert isinstance(weight, Tensor)
    before = weight[model.shape.mask_token].clone()
    weight[model.shape.mask_token] = torch.nan
    steps: list[SampleStep] = []
    with pytest.raises(NumericsError, match="NaN or Inf"):
        sample(model, *prompts(0, False), settings, steps.append, captured=captured)
    assert len(steps) == (4 if isinstance(settings, SamplerSettings) else 16)
    weight[model.shape.mask_token] = before
    sample(model, *prompts(0, False), settings, captured=captured)
