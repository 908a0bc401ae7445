# Triton has no types of its own. These keep the signature of a device function, so that mypy checks the calls between
# them; what a function does with tensors is Any.
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

_P = ParamSpec("_P")
_R = TypeVar("_R")

class JITFunction(Generic[_P, _R]):
    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    def __getitem__(self, grid: Any) -> Callable[..., Any]: ...

@overload
def jit(fn: Callable[_P, _R]) -> JITFunction[_P, _R]: ...
@overload
def jit(**options: Any) -> Callable[[Callable[_P, _R]], JITFunction[_P, _R]]: ...
def __getattr__(name: str) -> Any: ...
