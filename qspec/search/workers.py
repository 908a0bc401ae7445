"""Who runs the jobs: this process, other processes of this machine, or Ray's actors on any. The results are the same.

A worker that dies takes one job with it, which another one runs again; what was finished is with the caller already.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qspec.errors import InputError, MachineError
from qspec.plan.estimates import compile_memory
from qspec.search.jobs import Job, Result

if TYPE_CHECKING:
    from qspec.compiler import Inputs
    from qspec.language.spec import Spec
    from qspec.progress import Progress
    from qspec.search.engine import Engine

LOST = 3  # workers that may be lost without a single job finished in between


@dataclass(frozen=True)
class Setup:
    """What a worker needs to make its own engine; checkpoint and data must be there on its machine."""

    spec: Spec
    model: str | None
    device: str
    standin: bool

    def inputs(self, progress: Progress | None = None) -> Inputs:
        from qspec.compiler import CompileOptions, find_inputs

        options = CompileOptions(evaluate=False, standin=self.standin)
        return find_inputs(self.spec, self.model, self.device, options=options, progress=progress)

    def engine(self) -> Engine:
        from qspec.search.engine import Engine

        return Engine(self.inputs())


class Workers(Protocol):
    """Runs jobs in any order; each result with the job's place as soon as it is there."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]: ...

    def close(self) -> None: ...


def find_workers(setup: Setup, inputs: Inputs, count: int | None, ray: str | None) -> Workers:
    """`count` workers, of Ray where its address is given. inputs: what this process has gathered by `setup`."""
    if ray is not None:
        return RayWorkers(setup, count or 1, ray)
    count = count or fitting(inputs)
    return LocalWorkers(setup, count) if count > 1 else OneWorker(inputs)


def fitting(inputs: Inputs) -> int:
    """On a CPU one for each thread that torch would take, as far as half of the memory holds them; on a GPU one."""
    import torch

    if inputs.device.type != "cpu":
        return 1
    each = 2 * inputs.plan.bytes_before + compile_memory(inputs.plan)  # the model in float32, and a block's work
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(1, min(torch.get_num_threads(), half // each))


class OneWorker:
    """This process."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.engine: Engine | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        from qspec.search.engine import Engine

        for place, job in enumerate(jobs):
            self.engine = self.engine or Engine(self.inputs)
            yield place, self.engine.run(job)

    def close(self) -> None:
        self.engine = None


class LocalWorkers:
    """Processes of this machine, on its GPUs in turn where there are any."""

    def __init__(self, setup: Setup, count: int) -> None:
        self.setup = setup
        self.count = count
        self.pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        left = dict(enumerate(jobs))
        lost = 0
        while left:
            try:
                for place, result in self._some(left):
                    lost = 0
                    del left[place]
                    yield place, result
            except BrokenProcessPool:
                lost += 1
                self.close()
                if lost == LOST:
                    raise MachineError(
                        f"{LOST} workers died one after another",
                        hint="free memory or lower --workers; the same command goes on with what is finished",
                    ) from None

    def _some(self, left: Mapping[int, Job]) -> Iterator[tuple[int, Result]]:
        """Results until all are there; BrokenProcessPool where a worker was lost."""
        pool = self.pool = self.pool or self._start()
        waiting: dict[Future[Result], int] = {pool.submit(_run, job): place for place, job in left.items()}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            broken = None
            for future in done:
                place = waiting.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = future.exception()
                    continue
                yield place, future.result()
            if broken is not None:
                raise broken

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        devices: Any = context.Queue()
        visible = _visible_gpus() if self.setup.device != "cpu" else []
        for index in range(self.count):
            devices.put(visible[index % len(visible)] if visible else None)
        return ProcessPoolExecutor(self.count, context, _open, (self.setup, devices))

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None


_ENGINE: list[Engine] = []  # of a worker process


def _open(setup: Setup, devices: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process hears it, and ends the workers
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _ENGINE.append(setup.engine())


def _run(job: Job) -> Result:
    return _ENGINE[0].run(job)


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


class RayWorkers:
    """Actors of a Ray cluster; checkpoint and data must be at the same paths on every machine."""

    def __init__(self, setup: Setup, count: int, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("Ray is not installed", hint="pip install 'qspec[ray]'") from None
        self.ray: Any = ray
        try:
            ray.init(address=None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
        except Exception as error:  # Ray raises plain ones too: a node that does not start in time
            raise MachineError(f"no Ray cluster answers: {error}", where=address, hint="ray start --head") from error
        self.setup, self.count = setup, count
        self.gpus = 0 if setup.device == "cpu" or not ray.cluster_resources().get("GPU") else 1
        self.actors: list[Any] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        left = dict(reversed(list(enumerate(jobs))))
        idle = [self._actor() for _ in range(self.count - len(self.actors))] + self.actors
        self.actors = list(idle)
        running: dict[Any, tuple[Any, int]] = {}
        lost = 0
        while left or running:
            while left and idle:
                actor, (place, job) = idle.pop(), left.popitem()
                running[actor.run.remote(job)] = (actor, place)
            (done,), _ = self.ray.wait(list(running), num_returns=1)
            actor, place = running.pop(done)
            try:
                result = self.ray.get(done)
            except self.ray.exceptions.RayActorError:
                lost += 1
                if lost == LOST:
                    raise MachineError(
                        f"{LOST} workers died one after another",
                        hint="look at Ray's logs; the same command goes on with what is finished",
                    ) from None
                left[place] = jobs[place]
                self.actors.remove(actor)
                self.actors.append(self._actor())
                idle.append(self.actors[-1])
                continue
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from None
            lost = 0
            idle.append(actor)
            yield place, result

    def _actor(self) -> Any:
        return self.ray.remote(num_cpus=1, num_gpus=self.gpus)(_Remote).remote(self.setup)

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []
        self.ray.shutdown()


class _Remote:
    """An engine in a Ray actor."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.engine: Engine | None = None

    def run(self, job: Job) -> Result:
        self.engine = self.engine or self.setup.engine()
        return self.engine.run(job)
