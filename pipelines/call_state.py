"""What belongs to one call and not to the pipeline: the attributes that diffusers keeps on `self` while it draws.

Callbacks and helpers read and write them there (`pipe._guidance_scale`, `pipe._interrupt`, `pipe.scheduler`, …). With
several calls on several threads each thread has its own; a thread that draws nothing reads those of the call that
ended last, and what it writes is for all calls that run: so `pipe._interrupt = True` from outside stops them. Another
scheduler is for the calls that begin after.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from functools import wraps
from typing import Any, NamedTuple

import torch

from ..loaders.lora.kept import kept_mergers
from ..loaders.model_lock import changed_by_running, model_gate, models_in_use, tokenizers_alone
from ..loaders.utils import one_for_all_copies


class OfCall:
    """An attribute of which every running call has its own. kept: what others write is not for calls that run."""

    def __init__(self, default: Any = None, *, kept: bool = False):
        self.default, self.kept = default, kept

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        if pipe is None:
            return self
        own = _running_calls(pipe).get(threading.get_ident(), {})
        return own[self.name] if self.name in own else pipe.__dict__.get(self.name, self.default)

    def __set__(self, pipe: Any, value: Any) -> None:
        calls = _running_calls(pipe)
        own = calls.get(threading.get_ident())
        if own is not None:
            own[self.name] = value
            return
        pipe.__dict__[self.name] = value
        for call in () if self.kept else list(calls.values()):
            call[self.name] = value


class CallState:
    """Goes before diffusers' pipeline among the bases. It is no pipeline itself."""

    scheduler = OfCall(kept=True)
    _guidance_scale = OfCall()
    _guidance_rescale = OfCall(0.0)
    _clip_skip = OfCall()
    _cross_attention_kwargs = OfCall()
    _interrupt = OfCall(False)
    _num_timesteps = OfCall()
    _denoising_end = OfCall()
    _detail_reports = OfCall(())


def take_call_state(drew: Any, pipe: Any) -> None:
    """Show on `pipe` what another pipeline that drew for it, with its scheduler, shows after a call."""
    for name, attribute in vars(CallState).items():
        if isinstance(attribute, OfCall) and name.startswith("_") and name in vars(drew):
            setattr(pipe, name, vars(drew)[name])


class _Needs(NamedTuple):
    """What a call asks of the models as they are now."""

    models: list[Any]
    alone: bool


@contextmanager
def models_had(pipes: Iterable[Any], changes: bool | Callable[[], bool]) -> Iterator[None]:
    """The models of pipelines for one block, beside others or alone, and with them all on which networks were kept.

    changes: as in `own_call`. What they need is looked at again once they are had: only then nobody changes them, and
    the call that went before may have left its networks on.
    """
    own = [model for pipe in pipes for model in pipe.components.values() if hasattr(model, "parameters")]
    hooked = any(map(changed_by_running, own))

    def now() -> _Needs:
        kept = [merger for pipe in pipes for merger in kept_mergers(pipe)]
        alone = hooked or bool(kept) or (changes() if callable(changes) else changes)
        return _Needs([*own, *(model for merger in kept for model in merger.models)], alone)

    needs = now()
    while True:
        with models_in_use(needs.models, alone=needs.alone):
            found = now()
            if needs.alone >= found.alone and {*map(id, needs.models)} >= {*map(id, found.models)}:
                yield
                return
        needs = found


@contextmanager
def own_call(
    pipe: Any, *, changes: bool | Callable[[], bool], others: Iterable[Any] = (), scheduler: Any = None
) -> Iterator[None]:
    """One call of a pipeline: its models beside other calls, or alone where it changes them, and its own state.

    changes: whether it puts networks, adapters or another padding on the models; a function is asked while nobody
    changes them. others: pipelines of this package that draw a part of it (`hires_model`, `ad_checkpoint`). Hooks that
    offload or cast weights change the models while they run, so with them a call is alone too, as with networks that
    the last call left on; offloading hooks are reset at the end. scheduler: the pipeline's when the call began; None:
    the one that it has when its turn comes.
    Raises RuntimeError inside a call that changes the same models.
    """
    pipes = list({id(one): one for one in (pipe, *others)}.values())
    with models_had(pipes, changes), ExitStack() as states:
        for one in pipes:
            states.enter_context(own_state(one, scheduler if one is pipe else None))
        yield
        hooked = any(hasattr(model, "_hf_hook") for one in pipes for model in one.components.values())
        for one in pipes if hooked else ():
            one.maybe_free_model_hooks()


def encoding_alone(encode: Callable[..., Any]) -> Callable[..., Any]:
    """diffusers' `encode_prompt`, with the pipeline's tokenizers for this thread alone."""

    @wraps(encode)
    def encode_prompt(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        with tokenizers_alone(getattr(pipe, "tokenizer", None), getattr(pipe, "tokenizer_2", None)):
            return encode(pipe, *args, **kwargs)

    return encode_prompt


def stock_changes_models(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether diffusers' own call changes the models while it draws: the adapters' scale, or the VAE's dtype."""
    if "scale" in (arguments.get("cross_attention_kwargs") or {}):
        return True
    if pipe.vae is None or not pipe.vae.config.get("force_upcast", False):
        return False
    with model_gate().part_lock(pipe.vae):  # another call may have it in float32 just now
        return next(pipe.vae.parameters()).dtype == torch.float16  # `dtype` walks through all of them


@contextmanager
def own_state(pipe: Any, scheduler: Any = None) -> Iterator[None]:
    """One call's attributes, for the thread that makes it; afterwards the pipeline shows those of this call.

    scheduler: of which it gets one of its own; None: the pipeline's.
    """
    calls, thread = _running_calls(pipe), threading.get_ident()
    outer = calls.get(thread)
    with _free_scheduler(pipe.scheduler if scheduler is None else scheduler) as free:
        own: dict[str, Any] = {"_interrupt": False, "scheduler": free}
        try:
            calls[thread] = own
            yield
        finally:
            if outer is None:
                calls.pop(thread, None)
            else:
                calls[thread] = outer
            if own["scheduler"] is free:  # else a callback has put another one there
                del own["scheduler"]
            pipe.__dict__.update(own)


@contextmanager
def _free_scheduler(scheduler: Any) -> Iterator[Any]:
    """This scheduler, or a copy where another call draws with it: it counts the steps of one.

    Pipelines made of one another share theirs, so it is asked for here and not of the pipeline.
    """
    taken: dict[int, tuple[Any, object]] = one_for_all_copies("taken_schedulers", dict)
    mine = scheduler, object()
    try:
        if scheduler is None or taken.setdefault(id(scheduler), mine) is mine:
            yield scheduler
        else:  # `copy` first: what the other call sets on it meanwhile does no harm
            with _free_scheduler(deepcopy(copy(scheduler))) as own:
                yield own
    finally:
        if taken.get(id(scheduler)) is mine:
            del taken[id(scheduler)]


def _running_calls(pipe: Any) -> dict[int, dict[str, Any]]:
    return pipe.__dict__.setdefault("_running_calls", {})
