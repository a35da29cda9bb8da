"""Components that may be left out, given, or taken from the model's folder, whichever way a pipeline is made."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, signature
from typing import Any, TypeVar


_Init = TypeVar("_Init", bound=Callable[..., None])


def overridable_components(names: Sequence[str]) -> Callable[[_Init], _Init]:
    """For a pipeline's `__init__`: let `from_pretrained` and `from_pipe` treat the components `names` as components.

    Both are asked of DiffusionPipeline where a pipeline comes from the Hub, and tell components from settings by
    whether the signature gives a default (`DiffusionPipeline._get_signature_keys`, diffusers 0.40 to 0.42). With
    `= None`, `from_pretrained(..., safety_checker=None)` is ignored without a word as soon as the folder has one, and
    `from_pipe` hands over the pair (library, class) in place of the component; without it, `from_pipe` refuses until
    each is named. So the signature that others see is given defaults that look like none, except to a `from_pipe`
    whose pipeline has no such component. `__init__` itself keeps its own.
    """

    def decorate(init: _Init) -> _Init:
        seen = signature(init)
        parameters = [
            p.replace(default=_ComponentDefault(p.name)) if p.name in names and p.default is not Parameter.empty else p
            for p in seen.parameters.values()
        ]
        init.__signature__ = seen.replace(parameters=parameters)  # type: ignore[attr-defined]
        return init

    return decorate


@cache
def component_names(kind: type) -> frozenset[str]:
    """The parameters of a pipeline's `__init__` that are components, and not settings."""
    parameters = signature(kind.__init__).parameters  # type: ignore[misc]
    optional: list[str] = kind._optional_components  # type: ignore[attr-defined]
    return frozenset(
        n for n, p in parameters.items() if n != "self" and (p.default is Parameter.empty or n in optional)
    )


class _ComponentDefault:
    """Stands for `None` in a signature, and is equal to "no default" where a component should be asked for."""

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        return self is other or (other is Parameter.empty and not _is_left_out(self.name))

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "None"


def _is_left_out(name: str) -> bool:
    """Whether a `from_pipe` up the stack starts from a pipeline without the component."""
    frame: Any = sys._getframe(2)
    for _ in range(4):  # __eq__, a comprehension (up to Python 3.11), _get_signature_keys, from_pipe
        if frame is None:
            return False
        if frame.f_code.co_name == "from_pipe" and "pipeline" in frame.f_locals:
            return name not in getattr(frame.f_locals["pipeline"], "config", {})
        frame = frame.f_back
    return False
