"""Workers of Ray, against a stand-in of its interface: results with their places, lost actors, tasks that fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from qspec.errors import InputError, MachineError
from qspec.search.jobs import Trial
from qspec.search.workers import RayWorkers, Setup
from tests.language.fakes import load, recipe

SETUP = Setup(load(recipe()).spec, None, "cpu", True)
JOBS = [Trial(((f"blocks[{i}].mlp.down", "w4"),)) for i in range(7)]


class ActorLost(Exception):  # noqa: N818 - as Ray names it
    pass


class TaskFailed(Exception):  # noqa: N818
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def fake_ray(answer: Callable[[int, Trial], Any]) -> SimpleNamespace:
    """answer(number of the actor, job) gives a result, or raises as Ray would."""
    actors: list[Any] = []

    def remote(**_resources: int) -> Callable[[type], Any]:
        def make(_setup: Setup) -> Any:
            number = len(actors)
            run = SimpleNamespace(remote=lambda job: (number, job))
            actors.append(SimpleNamespace(run=run))
            return actors[-1]

        return lambda _cls: SimpleNamespace(remote=make)

    def wait(futures: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1
        return [futures[-1]], list(futures[:-1])  # the latest first: order may not matter

    return SimpleNamespace(
        init=lambda **_options: None,
        cluster_resources=dict,
        remote=remote,
        wait=wait,
        get=lambda future: answer(*future),
        kill=lambda _actor: None,
        shutdown=lambda: None,
        exceptions=SimpleNamespace(RayActorError=ActorLost, RayTaskError=TaskFailed),
        actors=actors,
    )


def run(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, Trial], Any]) -> tuple[dict[int, Any], SimpleNamespace]:
    ray = fake_ray(answer)
    monkeypatch.setitem(sys.modules, "ray", ray)
    workers = RayWorkers(SETUP, 3, "local")
    found = dict(workers.run(JOBS))
    workers.close()
    return found, ray


def test_every_job_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    found, ray = run(monkeypatch, lambda _number, job: {"job": job.schemes})
    assert found == {place: {"job": job.schemes} for place, job in enumerate(JOBS)}
    assert len(ray.actors) == 3


def test_a_lost_actor_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, job: Trial) -> Any:
        if number == 1:
            raise ActorLost
        return {"job": job.schemes}

    found, ray = run(monkeypatch, answer)
    assert sorted(found) == list(range(7))
    assert len(ray.actors) == 4  # another took its place


def test_actors_that_all_die_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_number: int, _job: Trial) -> Any:
        raise ActorLost

    with pytest.raises(MachineError, match="3 workers died one after another"):
        run(monkeypatch, answer)


def test_what_fails_in_a_task_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_number: int, _job: Trial) -> Any:
        raise TaskFailed(InputError("no such text"))

    with pytest.raises(InputError, match="no such text"):
        run(monkeypatch, answer)


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake_ray(lambda _number, _job: {})

    def refuse(**_options: Any) -> None:
        raise RuntimeError("timed out")

    ray.init = refuse
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(MachineError, match="no Ray cluster answers: timed out"):
        RayWorkers(SETUP, 1, "10.0.0.1:6379")
