"""Forward passes replayed as CUDA graphs: what a sampler calls on a GPU in place of the decoder itself.

A denoising step of an 8B model is some hundreds of kernel launches. Captured once in a CUDA graph, they are one launch,
and the host's part of a pass (Python, allocation, launch) is gone. A graph replays fixed addresses, so a pass reads
its inputs from buffers that the engine owns, and writes its result to one.

The passes of one canvas (a shape [b, t], with or without padding) share these buffers: the ids, the rotary tables, the
padding mask, and the keys and values of a cache. There are passes over all tokens and passes over a window of n tokens;
where the window starts is data, so that one graph serves every block. A pass runs eagerly the first time, which
compiles its kernels, and is captured the second time. The bits are those of the decoder, which runs the same kernels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qspec.models.decoder import ALL, AttentionContext, Decoder, KeyValues, Window
from qspec.models.samplers.common import Around, Denoiser

CANVASES = 4  # whose graphs are kept: each holds the activations of its passes

Call = Callable[[], Tensor]


class Capture(Protocol):
    """Records the kernels of a call; returns its result, and what computes that again in place."""

    def __call__(self, call: Call) -> tuple[Tensor, Callable[[], None]]: ...


class CudaGraphs:
    """`Capture` by CUDA graphs, which share one pool of memory, as one replays at a time.

    The call was made once before: nothing is compiled or sized during a capture.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = call()
        return result, graph.replay


class Pass:
    """One pass of a canvas: eager, then captured, then replayed."""

    def __init__(self) -> None:
        self._calls = 0
        self._result: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, call: Call, capture: Capture) -> Tensor:
        """x [b, n, d]; the next call writes to the same place."""
        self._calls += 1
        if self._calls == 1:
            return call()
        if self._result is None or self._replay is None:
            self._result, self._replay = capture(call)
        self._replay()
        return self._result


class CanvasPasses:
    """The passes over canvases of one shape, and the buffers that they read.

    ids [b, t]; context: of all t tokens; room: for keys and values of all tokens, once a cache asks for it.
    """

    def __init__(self, model: Decoder, batch: int, length: int, context: AttentionContext) -> None:
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=model.device)
        mask = None if context.mask is None else context.mask.clone()
        self.context = AttentionContext(context.cos.clone(), context.sin.clone(), mask, ALL)
        self.room: Window | None = None
        self._passes: dict[tuple[int | None, bool], Pass] = {}
        self._windows: dict[int, Tensor] = {}  # by length: the places of the window's tokens, int64 [n]

    def use(self, context: AttentionContext) -> None:
        """Puts the padding of another canvas of this shape in place."""
        self.context.cos.copy_(context.cos)
        self.context.sin.copy_(context.sin)
        if self.context.mask is not None and context.mask is not None:
            self.context.mask.copy_(context.mask)

    def window(self, model: Decoder) -> Window:
        """All tokens, with this canvas' room for keys and values."""
        if self.room is None:
            self.room = model.window(*self.ids.shape)
        return self.room

    def run(self, model: Decoder, ids: Tensor, window: Window | None, capture: Capture) -> Tensor:
        """x [b, n, d] of the window's tokens, or of all."""
        self.ids.copy_(ids)
        count = None
        if window is not None and window.tokens != ALL:
            start, stop, _ = window.tokens.indices(self.ids.shape[1])
            count = stop - start
            if count not in self._windows:
                self._windows[count] = torch.empty(count, dtype=torch.int64, device=self.ids.device)
            torch.arange(start, stop, out=self._windows[count])
        kept = None if window is None else self.window(model).kept
        own = self._passes.setdefault((count, kept is not None), Pass())
        return own(lambda: self._compute(model, count, kept), capture)

    def _compute(self, model: Decoder, count: int | None, kept: tuple[KeyValues, ...] | None) -> Tensor:
        if count is None:
            return model.through(self.ids, self.context, kept)
        tokens = self._windows[count]
        cos, sin = (table.index_select(2, tokens) for table in (self.context.cos, self.context.sin))
        context = replace(self.context, cos=cos, sin=sin, tokens=tokens)
        return model.through(self.ids.index_select(1, tokens), context, kept)


class Passes:
    """What was captured of one model, and where its tensors lay then."""

    def __init__(self, capture: Capture, addresses: tuple[int, ...]) -> None:
        self.capture, self.addresses = capture, addresses
        self.canvases: OrderedDict[tuple[int, int, bool], CanvasPasses] = OrderedDict()


CAPTURED: WeakKeyDictionary[Decoder, Passes] = WeakKeyDictionary()


class Engine(Around[Decoder]):
    """A decoder whose passes are captured and replayed, for one run of a sampler.

    What `hidden` returns is overwritten by the next pass of the same canvas and window. Two runs at once on one model
    are not possible: they would share buffers. capture: None takes CUDA graphs, which serve the model's next run too.
    """

    def __init__(self, model: Decoder, capture: Capture | None = None) -> None:
        super().__init__(model)
        now = addresses(model)
        passes = Passes(capture, now) if capture is not None else CAPTURED.get(model)
        if passes is None or passes.addresses != now:  # graphs of weights that have moved since are of no use
            passes = CAPTURED[model] = Passes(CudaGraphs(), now)
        self._passes = passes
        self._current: tuple[tuple[int, ...], Tensor | None, CanvasPasses] | None = None

    def window(self, batch: int, length: int) -> Window:
        """All tokens of the canvas. Keys and values are kept in the engine's own room, so the window has none."""
        return Window(ALL, ())

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, window: Window | None = None) -> Tensor:
        """As `Decoder.hidden` has it."""
        canvas = self._canvas(input_ids.shape, attention_mask)
        return canvas.run(self.model, input_ids, window, self._passes.capture)

    def _canvas(self, shape: torch.Size, mask: Tensor | None) -> CanvasPasses:
        """The passes of this shape. A sampler gives one mask to all its steps; it is prepared once."""
        if self._current is not None and self._current[0] == shape and self._current[1] is mask:
            return self._current[2]
        batch, length = shape
        context, canvases = self.model.context(shape, mask), self._passes.canvases
        key = (batch, length, context.mask is not None)
        found = canvases.pop(key, None)
        if found is None:
            found = CanvasPasses(self.model, batch, length, context)
        else:
            found.use(context)
        canvases[key] = found  # the last is the latest used
        if len(canvases) > CANVASES:
            canvases.popitem(last=False)
        self._current = (shape, mask, found)
        return found


def addresses(model: Decoder) -> tuple[int, ...]:
    """Where the model's tensors lie: a graph reads them there."""
    return tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))


def engine(model: Denoiser) -> Denoiser:
    """What a sampler's steps call: on a CUDA GPU the engine of a decoder, elsewhere the model itself."""
    return Engine(model) if isinstance(model, Decoder) and model.device.type == "cuda" else model
