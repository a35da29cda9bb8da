"""What belongs to one call and not to the pipeline: the attributes that diffusers keeps on `self` while it draws.

Callbacks and helpers read and write them there (`pipe._guidance_scale`, `pipe._interrupt`, `pipe.scheduler`, …). With
several calls on several threads each thread has its own; a thread that draws nothing reads those of the call that
ended last, and what it writes is for all calls that run: so `pipe._interrupt = True` from outside stops them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from functools import wraps
from typing import Any

import torch

from ..loaders.lora.kept import kept_mergers
from ..loaders.model_lock import models_in_use, tokenizers_alone


_TAKING = threading.Lock()
_taken_schedulers: dict[int, Any] = {}


class OfCall:
    """An attribute of which every running call has its own."""

    def __init__(self, default: Any = None):
        self.default = default

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
        for call in list(calls.values()):
            call[self.name] = value


class CallState:
    """Goes before diffusers' pipeline among the bases. It is no pipeline itself."""

    scheduler = OfCall()
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


@contextmanager
def own_call(pipe: Any, *, changes: bool, others: Iterable[Any] = ()) -> Iterator[None]:
    """One call of a pipeline: its models beside other calls, or alone where it changes them, and its own state.

    changes: whether it puts networks, adapters or another padding on the models. others: pipelines of this package
    that draw a part of it (`hires_model`, `ad_checkpoint`). Offloading hooks move the models about, so with them a
    call is alone too, as with networks that the last call left on; hooks are reset at the end.
    Raises RuntimeError inside a call that changes the same models.
    """
    pipes = list({id(one): one for one in (pipe, *others)}.values())
    models = [model for one in pipes for model in one.components.values() if hasattr(model, "parameters")]
    hooked = any(hasattr(model, "_hf_hook") for model in models)
    alone = changes or hooked or any(map(kept_mergers, pipes))
    with models_in_use(models, alone=alone), ExitStack() as states:
        for one in pipes:
            states.enter_context(own_state(one))
        yield
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
    upcasts = pipe.vae is not None and pipe.vae.config.get("force_upcast", False)
    if upcasts:  # the `dtype` of diffusers' models walks through all of them
        upcasts = next(pipe.vae.parameters()).dtype == torch.float16
    return upcasts or "scale" in (arguments.get("cross_attention_kwargs") or {})


@contextmanager
def own_state(pipe: Any) -> Iterator[None]:
    """One call's attributes, for the thread that makes it; afterwards the pipeline shows those of this call."""
    calls, thread = _running_calls(pipe), threading.get_ident()
    outer = calls.get(thread)
    own: dict[str, Any] = {"_interrupt": False}
    with _free_scheduler(pipe.scheduler) as scheduler:
        copied = scheduler is not pipe.scheduler
        if copied:
            own["scheduler"] = scheduler
        calls[thread] = own
        try:
            yield
        finally:
            if outer is None:
                calls.pop(thread, None)
            else:
                calls[thread] = outer
            if copied and own["scheduler"] is scheduler:
                del own["scheduler"]
            pipe.__dict__.update(own)


@contextmanager
def _free_scheduler(scheduler: Any) -> Iterator[Any]:
    """This scheduler, or a copy where another call draws with it: it counts the steps of one.

    Pipelines made of one another share theirs, so it is asked for here and not of the pipeline.
    """
    with _TAKING:
        free = id(scheduler) not in _taken_schedulers
        if free:
            _taken_schedulers[id(scheduler)] = scheduler
    if not free:
        yield deepcopy(copy(scheduler))  # `copy` first: what the other call sets on it meanwhile does no harm
        return
    try:
        yield scheduler
    finally:
        del _taken_schedulers[id(scheduler)]


def _running_calls(pipe: Any) -> dict[int, dict[str, Any]]:
    return pipe.__dict__.setdefault("_running_calls", {})
