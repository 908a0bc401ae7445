"""How a sampler's steps are run: one by one as they are called, or on a GPU as CUDA graphs.

A denoising step of an 8B model is some hundreds of kernel launches. Captured once in a CUDA graph, pass, logits,
confidence and commit are one launch, and the host's part of a step is to say which step it is. A graph replays fixed
addresses: those of a `Canvas`, which is kept with its steps for later runs, and shared by runs of about its length
(`length_of`). A step runs eagerly the first time, which compiles its kernels, and is captured the second time; the bits
are the same, for the kernels are. A block-causal model's passes are shared by more: they read keys and values of whole
buckets (`bucket_of`).

Where a graph cannot be captured, steps go on eagerly, and `execution` says why.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import ceil
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.samplers.common import Denoiser

CANVASES = 64  # of one model, with their graphs; keys, values and the memory of passes are shared
STEPS = 512  # captured of one model

K = TypeVar("K")
V = TypeVar("V")
C = TypeVar("C", bound="Buffers")
Made = TypeVar("Made", bound="Buffers", covariant=True)
Step = Callable[[], tuple[Tensor, ...]]


class Capture(Protocol):
    """Records the kernels of a step; returns its result, and what computes that again in place."""

    def __call__(self, step: Step) -> tuple[tuple[Tensor, ...], Callable[[], None]]: ...


class CudaGraphs:
    """`Capture` by CUDA graphs, which share one pool of memory, as one replays at a time.

    The step was made once before: nothing is compiled or sized during a capture.
    """

    def __init__(self) -> None:
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None

    def __call__(self, step: Step) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        if not self._graphs:  # a pool ends with the last graph that it serves
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with warnings.catch_warnings(), torch.cuda.graph(graph, pool=self._pool):
                warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # where Ctrl-C ends it at once
                result = step()
        finally:
            torch.cuda.set_stream(stream)  # torch leaves that of the capture where the capture cannot be ended
        self._graphs.add(graph)
        return result, graph.replay


class Buffers(Protocol):
    """A canvas: tensors that stay where they are, with room for keys and values if they were given any."""

    @property
    def shape(self) -> Hashable: ...

    @property
    def keeps(self) -> bool: ...

    def room(self, model: Decoder) -> int: ...

    def keep(self, model: Decoder, whole: Tensor) -> None: ...


class Shape(Hashable, Protocol[Made]):
    """What a canvas is known by; makes one."""

    def canvas(self, model: Any) -> Made: ...


class Runner(Protocol):
    """What a sampler asks for: a canvas for its rows, and that its steps are run."""

    @property
    def model(self) -> Denoiser: ...

    def length(self, tokens: int) -> int:
        """How long a canvas or a window of so many tokens is made."""
        ...

    def bucket(self, tokens: int) -> int:
        """The same, of fewer lengths."""
        ...

    def canvas(self, shape: Shape[C]) -> C: ...

    def keep(self, canvas: Buffers) -> None:
        """Gives the canvas room for keys and values."""
        ...

    def run(self, canvas: Buffers, key: Hashable, step: Step) -> tuple[Tensor, ...]:
        """The step's result, which a later step may overwrite. key: all that it depends on besides the canvas."""
        ...


class Eager:
    """Runs every step as it is called. rounded: canvases have the lengths that captured ones have."""

    def __init__(self, model: Denoiser, *, rounded: bool = False) -> None:
        self.model: Denoiser = model
        self._rounded = rounded

    def length(self, tokens: int) -> int:
        return length_of(tokens) if self._rounded else tokens

    def bucket(self, tokens: int) -> int:
        return bucket_of(tokens) if self._rounded else tokens

    def canvas(self, shape: Shape[C]) -> C:
        return shape.canvas(self.model)

    def keep(self, canvas: Buffers) -> None:
        assert isinstance(self.model, Decoder)  # others have no cache
        canvas.keep(self.model, next(self.model.embedding.parameters()).new_empty(canvas.room(self.model)))

    def run(self, canvas: Buffers, key: Hashable, step: Step) -> tuple[Tensor, ...]:
        return step()


class Memory:
    """One allocation that the canvases of a model share, as one is denoised at a time."""

    def __init__(self, of: Tensor) -> None:
        """of: the dtype and device."""
        self._whole = of.new_empty(0)

    def fits(self, values: int) -> bool:
        return values <= self._whole.numel()

    def take(self, values: int) -> Tensor:
        """The first so many values [values]; what lay there is lost where it has to grow."""
        if not self.fits(values):
            empty = self._whole = self._whole.new_empty(0)
            self._whole = empty.new_empty(values)
        return self._whole[:values]


class Replayed:
    """One step of a canvas: eager, then captured, then replayed."""

    def __init__(self) -> None:
        self.called = False
        self.result: tuple[Tensor, ...] = ()
        self.replay: Callable[[], None] | None = None


class Graphs:
    """What was captured of one model, and where its tensors lay then. why: steps are not captured, if they are not.

    runs: how many were begun."""

    def __init__(self, model: Decoder, capture: Capture) -> None:
        self.capture, self.addresses, self.why, self.runs = capture, addresses(model), "", 0
        self.memory = Memory(next(model.embedding.parameters()))
        self.canvases: OrderedDict[Hashable, Buffers] = OrderedDict()
        self.steps: OrderedDict[tuple[Hashable, Hashable], Replayed] = OrderedDict()

    def canvas(self, model: Decoder, shape: Shape[C]) -> C:
        """Of this shape; the one that was used longest ago goes for it, with its graphs."""
        found = cast(C, latest(self.canvases, shape, lambda: shape.canvas(model), CANVASES))
        for key in [key for key in self.steps if key[0] not in self.canvases]:
            del self.steps[key]
        return found

    def drop(self) -> None:
        """Gives up all graphs and canvases, and their memory."""
        self.canvases.clear()
        self.steps.clear()


CAPTURED: WeakKeyDictionary[Decoder, Graphs] = WeakKeyDictionary()


class Captured:
    """Replays the steps of a decoder. Two runs at once on one model are not possible: they would share buffers.

    Errors: UsageError where a run goes on after another one was begun.
    """

    def __init__(self, model: Decoder, graphs: Graphs) -> None:
        self.model: Decoder = model
        self.graphs = graphs
        graphs.runs += 1
        self._number = graphs.runs

    def length(self, tokens: int) -> int:
        return length_of(tokens)

    def bucket(self, tokens: int) -> int:
        return bucket_of(tokens)

    def canvas(self, shape: Shape[C]) -> C:
        return self.graphs.canvas(self.model, shape)

    def keep(self, canvas: Buffers) -> None:
        """Where the room has to grow, what was captured reads the old one, and is given up."""
        graphs = self.graphs
        if canvas.keeps:
            return
        if not graphs.memory.fits(canvas.room(self.model)):
            graphs.drop()
            graphs.canvases[canvas.shape] = canvas
        canvas.keep(self.model, graphs.memory.take(canvas.room(self.model)))

    def run(self, canvas: Buffers, key: Hashable, step: Step) -> tuple[Tensor, ...]:
        graphs = self.graphs
        if self._number != graphs.runs:
            raise UsageError("another text was begun on this model", hint="read a stream to its end first")
        if graphs.why:
            return step()
        own = latest(graphs.steps, (canvas.shape, key), Replayed, STEPS)
        if not own.called:
            own.called = True
            return step()
        if own.replay is None:
            try:
                own.result, own.replay = graphs.capture(step)
            except RuntimeError as error:  # of CUDA or torch: what a graph cannot hold, or no memory for it
                graphs.why = f"no CUDA graph could be captured: {first_line(error)}"
                graphs.drop()
                return step()
        own.replay()
        return own.result


def latest(kept: OrderedDict[K, V], key: K, make: Callable[[], V], most: int) -> V:
    """The value of the key, made if there is none; of more than `most` the one that was used longest ago goes."""
    found = kept.pop(key) if key in kept else make()
    kept[key] = found
    if len(kept) > most:
        kept.popitem(last=False)
    return found


def length_of(tokens: int) -> int:
    """The length of the canvas that holds so many tokens: the next multiple of 64, of 128 above 1024."""
    unit = 64 if tokens <= 1024 else 128
    return ceil(tokens / unit) * unit


def bucket_of(tokens: int) -> int:
    """The least of 64, 96, 128, 192, 256, 384, ... that holds so many tokens: thirteen up to 4096."""
    whole = max(64, 1 << (tokens - 1).bit_length())
    return whole * 3 // 4 if 64 < tokens <= whole * 3 // 4 else whole


def first_line(error: Exception) -> str:
    """What it says, without the advice that torch adds."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def addresses(model: Decoder) -> tuple[int, ...]:
    """Where the model's tensors lie: a graph reads them there."""
    return tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))


def runner(model: Denoiser, *, captured: bool = True) -> Runner:
    """Runs a sampler's steps: a decoder's on a CUDA GPU as graphs, unless they are not to be captured."""
    if not isinstance(model, Decoder) or model.device.type != "cuda":
        return Eager(model)
    return Captured(model, graphs_of(model)) if captured else Eager(model, rounded=True)


def graphs_of(model: Decoder) -> Graphs:
    """Of the model as it is: graphs of weights that have moved since are of no use."""
    found = CAPTURED.get(model)
    if found is None or found.addresses != addresses(model):
        found = CAPTURED[model] = Graphs(model, CudaGraphs())
    return found


def refused(model: Denoiser) -> str:
    """Why steps on this model could not be captured; empty where they were, and where none was to be."""
    found = CAPTURED.get(model) if isinstance(model, Decoder) else None
    return found.why if found is not None else ""


def execution(model: Denoiser) -> str:
    """How a sampler's steps on this model are run: "captured", or "eager" and why."""
    if not isinstance(model, Decoder) or model.device.type != "cuda":
        return f"eager (on a {model.device.type.upper()})"
    why = refused(model)
    return f"eager ({why})" if why else "captured"
