"""Kernels of a pass compiled on all cores at once, before the first of them is launched.

Triton compiles a kernel when it is launched, one after another: of a model that is loaded onto a GPU for the first time
that is a dozen, a second or two each. Here a pass is made once without launching those that this process has not loaded
yet, which shows them all with their tile sizes and argument types; threads compile them, or take them from Triton's
cache (`TRITON_CACHE_DIR`, by default ~/.triton/cache); then the pass is made. What the first one computed is thrown
away. A pass that meets no such kernel is made once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, TypeVar

import torch

from qspec.files import cores

SILENT = 1.0  # seconds of compilation that are not worth a message

T = TypeVar("T")


def compiled(call: Callable[[], T]) -> T:
    """What `call` returns, after the kernels that it launches were compiled. It may be called twice: it must overwrite
    what it changes, and read none of its kernels' results on the CPU."""
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return call()  # a graph records it, that was made before
    with ThreadPoolExecutor(cores()) as pool:
        try:  # in a context of its own: an interrupted call leaves no mode behind that launches nothing
            result, met = copy_context().run(_made_without_launching, call, _Compilers(pool))
        except Exception as error:
            result, met = call(), 0  # which raises it again, if it is the call's
            _say(f"kernels were compiled one after another: {error}\n")
    return call() if met else result


class _Compilers(Executor):
    """Threads that compile kernels and load them onto this thread's GPU, with the launcher that Triton builds."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else -1

    def submit(self, compile_kernel: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(self._load, compile_kernel)

    def _load(self, compile_kernel: Callable[[], Any]) -> Any:
        kernel = compile_kernel()
        with torch.cuda.device(self._device):
            kernel.run  # noqa: B018 - it is loaded when it is asked how it is run
        return kernel


def _made_without_launching(call: Callable[[], T], compilers: Executor) -> tuple[T, int]:
    """The call's result, and how many kernels it met that were not loaded; they are now."""
    try:
        from triton import AsyncCompileMode
    except ImportError:  # a call that needs it says so
        return call(), 0

    class Met(AsyncCompileMode):  # type: ignore[misc]
        def submit(self, *given: Any) -> None:
            """None in place of a kernel is not launched."""
            super().submit(*given)

    with Met(compilers, ignore_errors=True) as mode:  # an error comes again when the kernel is launched
        result, futures = call(), list(mode.raw_futures)
        _report(futures)
    return result, len(futures)


def _report(futures: list[Future[Any]]) -> None:
    """Waits for the compilers; if that takes long, says so on standard error."""
    start = time.perf_counter()
    if not wait(futures, SILENT).not_done:
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine"
    _say(f"compiling {len(futures)} kernel{'s' * (len(futures) > 1)} for {where} ... ")
    wait(futures)
    _say(f"{time.perf_counter() - start:.0f} s\n")


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
