"""Times on a CUDA GPU: CUDA graphs that rotate through copies of the weights, so that these come from memory.

Between two uses of a copy more bytes pass than the second-level cache holds. One figure is the median over replays of
the time of a replay by the number of calls in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qspec import numerics
from qspec.bench.data import FORMATS, Bench, Cell
from qspec.bench.peers import Calls, peers_of
from qspec.catalog import ActivationKernel, GemmKernel, kernels_for
from qspec.errors import MachineError
from qspec.kernels import launch, tuned
from qspec.kernels.ahead import compilers
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput
from qspec.models.inputs import LayerInput, Normed
from qspec.progress import Progress
from qspec.report.environment import environment

COLD = 4  # times the second-level cache's size that passes before a weight is read again
REPLAYS = 12
LASTING = 30_000  # microseconds of replays, at least: what disturbs a GPU for some milliseconds is not their median
Shape = tuple[int, int]  # output and input channels


def run_bench(
    formats: Sequence[str], shapes: Sequence[Shape], tokens: Sequence[int], peers: bool, progress: Progress
) -> Bench:
    """Times every format, shape and number of tokens, and the peers of each. Raises MachineError without a GPU."""
    need_gpu()
    cells, failed, known = [], {}, {}
    for fmt in formats:
        for channels, columns in shapes:
            packed = _copies(fmt, channels, columns)
            for count in tokens:
                progress.step(f"{fmt}  {channels}x{columns}  M {count}")
                x = _input(count, columns)
                others = {}
                for name, peer in peers_of(fmt).items() if peers else ():
                    where = (name, channels, columns, count)
                    if where not in known and name not in failed:
                        try:
                            known[where] = graph_time(peer(channels, x, cold_copies(channels * columns, floor=3)))
                        except Exception as error:  # a peer's failure is a line of the page, not ours
                            failed[name] = f"{type(error).__name__}: {error}"[:200]
                    if where in known:
                        others[name] = known[where]
                cells.append(replace(_cell(fmt, packed, x), others=others))
            del packed
    return Bench(_copy_bandwidth(), _arithmetic(), environment(), tuple(cells), failed)


def tune(
    formats: Sequence[str], shapes: Sequence[Shape], tokens: Sequence[int], workers: int, progress: Progress
) -> dict[str, Any]:
    """The fastest options of every kernel, shape and bucket of tokens, as entries of `kernels.tuned`.

    They are chosen behind the activation quantization kernel of an RMSNorm, as in a model: what a GEMM can ask for
    while that one runs, it need not wait for afterwards. The time of an entry is the GEMM's alone.

    workers: processes that compile beforehand. Raises MachineError without a GPU.
    """
    need_gpu()
    import triton
    from triton.runtime.errors import OutOfResources

    gemms = {fmt: kernels_for(FORMATS[fmt]).gemm for fmt in formats}
    buckets = sorted({tuned.bucket(count) for count in tokens})
    jobs = [
        (gemm, options)
        for gemm in gemms.values()
        for options in _distinct(o for s in shapes for count in buckets for o in tuned.candidates(gemm, *s, count))
        if options != tuned.CUBLAS
    ]
    progress.note(f"{len(jobs)} kernels to compile")
    _compile_all(jobs, workers)
    entries = {}
    library = KernelLibrary()
    for fmt, gemm in gemms.items():
        for channels, columns in shapes:
            packed = _copies(fmt, channels, columns)
            for count in buckets:
                row, given = _normed(packed[0], count)
                timed = []
                for options in tuned.candidates(gemm, channels, columns, count):
                    calls = [_whole(library, linear, row, given, options) for linear in packed]
                    with suppress(OutOfResources):  # a choice that this GPU cannot hold is no candidate
                        timed.append((graph_time(calls, replays=6, lasting=0), options))
                if not timed:
                    continue
                best, options = min(timed, key=lambda pair: pair[0])
                prepared = launch.prepare(library, row, None, given)
                alone = graph_time(_gemms(library, packed, prepared, options))
                name = tuned.key(gemm, channels, columns, count, triton.__version__)
                entries[name] = {"options": options, "microseconds": round(alone, 2)}
                progress.note(f"{name}  {alone:.1f} us, {best:.1f} with its input's quantization, of {len(timed)}")
            del packed
    return entries


def graph_time(calls: Calls, replays: int = REPLAYS, lasting: float = LASTING) -> float:
    """Microseconds of a call: the median over replays of a CUDA graph that makes each call once."""
    return replay_time(captured(calls), replays, lasting) / len(calls)


def captured(calls: Calls) -> torch.cuda.CUDAGraph:
    """A CUDA graph that makes each call once; each was made once before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    return graph


def replay_time(graph: torch.cuda.CUDAGraph, replays: int = REPLAYS, lasting: float = LASTING) -> float:
    """Microseconds of a graph: the median over so many replays, and more until they took `lasting` microseconds."""
    times: list[float] = []
    while len(times) < replays + 2 or sum(times) < lasting:  # the first two warm up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return float(statistics.median(times[2:]))


def _cell(fmt: str, packed: list[PackedLinear], x: Tensor) -> Cell:
    library = KernelLibrary()
    prepared = launch.prepare(library, packed[0].kernels.row, None, x)
    time = graph_time(_gemms(library, packed, prepared, None))
    whole = time
    if packed[0].kernels.row is not None:
        whole = graph_time([_whole(library, linear, linear.kernels.row, x) for linear in packed])
    channels, columns = packed[0].out_features, packed[0].in_features
    return Cell(fmt, channels, columns, x.shape[0], time, whole, packed[0].stored_bits() // 8, {})


def _gemms(
    library: KernelLibrary, packed: list[PackedLinear], prepared: PreparedInput, options: tuned.Options | None
) -> Calls:
    return [lambda p=p: launch.multiply(library, p, prepared, options) for p in packed]  # type: ignore[misc]


def _whole(
    library: KernelLibrary,
    packed: PackedLinear,
    row: ActivationKernel | None,
    given: LayerInput,
    options: tuned.Options | None = None,
) -> Callable[[], Tensor]:
    return lambda: launch.multiply(library, packed, launch.prepare(library, row, None, given), options)


def _normed(packed: PackedLinear, tokens: int) -> tuple[ActivationKernel, Normed]:
    """The linear's activation quantization kernel as it stands behind an RMSNorm, and what it reads."""
    row = packed.kernels.row or ActivationKernel((), 16, None, True, 1.0, "rmsnorm")
    gain = torch.ones(packed.in_features, device="cuda", dtype=torch.bfloat16)
    return replace(row, source="rmsnorm"), Normed(_input(tokens, packed.in_features), gain, 1e-5)


def _input(tokens: int, columns: int) -> Tensor:
    """X [M, K] as an activation quantization kernel leaves it."""
    x = launch.with_room((tokens, columns), torch.bfloat16, torch.device("cuda"))
    return x.normal_()


def _copies(fmt: str, channels: int, columns: int) -> list[PackedLinear]:
    """A random linear, as often as it takes to pass the cache by."""
    scheme = FORMATS[fmt]
    weight = torch.randn(channels, columns, device="cuda")
    first = PackedLinear.from_quantized(numerics.quantize_weight(weight, scheme.weights), kernels_for(scheme))
    more = range(cold_copies(first.stored_bits() // 8) - 1)
    return [first, *(replace(first, codes=first.codes.clone(), scale=first.scale.clone()) for _ in more)]


def cold_copies(weight_bytes: int, floor: int = 4) -> int:
    cache = torch.cuda.get_device_properties().L2_cache_size
    return max(floor, min(48, math.ceil(COLD * cache / weight_bytes)))


def _distinct(options: Iterable[tuned.Options]) -> list[tuned.Options]:
    found: list[tuned.Options] = []
    for one in options:
        if one not in found:
            found.append(one)
    return found


def _compile_all(jobs: list[tuple[GemmKernel, tuned.Options]], workers: int) -> None:
    """Fills Triton's cache from several processes; a job that fails here fails again where it is measured."""
    with compilers(workers) as pool:
        for future in [pool.submit(_compile_one, job) for job in jobs]:
            future.exception()


def _compile_one(job: tuple[GemmKernel, tuned.Options]) -> None:
    gemm, options = job
    scheme = next(s for s in FORMATS.values() if kernels_for(s).gemm == gemm)
    columns = 128 * 8 * 4  # no fewer blocks than any candidate's programs
    weight = torch.ones(2 * options["BLOCK_N"], columns, device="cuda")
    packed = PackedLinear.from_quantized(numerics.quantize_weight(weight, scheme.weights), kernels_for(scheme))
    library = KernelLibrary()
    x = torch.ones(options["BLOCK_M"], columns, device="cuda", dtype=torch.bfloat16)
    launch.multiply(library, packed, launch.prepare(library, packed.kernels.row, None, x), options)
    torch.cuda.synchronize()


def _copy_bandwidth() -> float:
    source = torch.zeros(2**28, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_time([lambda: target.copy_(source)] * 4) / 1e3


def _arithmetic() -> float:
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / graph_time([lambda: torch.mm(a, b, out=out)] * 2) / 1e6


def need_gpu() -> None:
    if not torch.cuda.is_available():
        raise MachineError("times need a CUDA GPU", hint="run this on a machine with one")
