"""Who may use a model at the same time: calls that change it have it alone, all others share it.

Networks merged into weights, adapters and seamless padding change a model for everybody who holds it, also through
other pipelines (`from_pipe` shares models). So each use of a model is announced here:

    running                  asks                     gets in
    reads the model          reads it                 at once, unless somebody who changes it waits already
    reads it                 changes it               when the readers are done
    changes it               reads or changes it      when it is done, in the order in which they came
    a call, in its callback  the same model again     RuntimeError: it would wait for itself
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from .utils import one_for_all_copies


@dataclass(eq=False)
class ModelUse:
    """One use of models, waiting or running."""

    models: dict[int, object]  # by id; kept, so that no other object gets the id meanwhile
    alone: bool  # whether it changes them
    is_call: bool  # of a pipeline; else a block of the caller's own, inside of which pipelines may be called
    thread: threading.Thread = field(default_factory=threading.current_thread)  # the system uses its numbers again

    def excludes(self, other: "ModelUse") -> bool:
        """Whether the two cannot run at the same time."""
        return (self.alone or other.alone) and self.thread != other.thread and bool(self.models.keys() & other.models)


class ModelGate:
    """Lets uses in, first come first served. All models of a use are had at once, so nobody holds one and waits."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.running: list[ModelUse] = []
        self.waiting: list[ModelUse] = []
        self._parts: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()

    def part_lock(self, model: Any) -> threading.RLock:
        """For a moment inside of uses that share a model: a lock of its own."""
        with self.changed:
            return self._parts.setdefault(model, threading.RLock())

    def enter(self, use: ModelUse) -> None:
        """Wait until `use` may run. Raises RuntimeError where it would wait for itself."""
        with self.changed:
            mine = [other for other in self.running if other.thread == use.thread]
            self._refuse_nested(use, mine)
            self.waiting.append(use)
            while blockers := self._blockers(use, nested=bool(mine)):
                if mine and self._waits_for(blockers, use.thread):
                    raise RuntimeError(
                        "Two calls wait for each other: each holds a model that the other asks for, from inside a "
                        "callback or a `with` block. Call the second pipeline after the first has returned."
                    )
                self.changed.wait()
            self.running.append(use)
            self.waiting.remove(use)

    def leave(self, use: ModelUse) -> None:
        """Let the next ones in. Does nothing for a use that never ran."""
        with self.changed:
            for uses in (self.running, self.waiting):
                if use in uses:
                    uses.remove(use)
            self.changed.notify_all()

    def _refuse_nested(self, use: ModelUse, mine: list[ModelUse]) -> None:
        for outer in mine:
            if outer.is_call and (outer.alone or use.alone) and outer.models.keys() & use.models:
                raise RuntimeError(
                    "A pipeline is called from inside a call on the same model (in a callback), and one of the two "
                    "changes the model: with networks, adapters or `tiling`. The inner one would draw with the outer "
                    "one's changes. Call it after the outer call has returned, or load the model a second time."
                )

    def _blockers(self, use: ModelUse, *, nested: bool) -> list[ModelUse]:
        """The uses that go first. One inside another does not queue behind those who wait for the outer one."""
        place = self.waiting.index(use)
        earlier = [] if nested else self.waiting[:place]
        return [other for other in (*self.running, *earlier) if other.excludes(use)]

    def _waits_for(self, blockers: list[ModelUse], thread: threading.Thread) -> bool:
        """Whether one of the blockers waits, directly or not, for what `thread` holds."""
        seen: set[threading.Thread] = set()
        threads = [other.thread for other in blockers]
        while threads:
            current = threads.pop()
            if current == thread:
                return True
            if current in seen:
                continue
            seen.add(current)
            for other in self.waiting:
                if other.thread == current:
                    holds = any(mine.thread == current for mine in self.running)
                    threads += [one.thread for one in self._blockers(other, nested=holds)]
        return False


def model_gate() -> ModelGate:
    """The process's one gate."""
    return one_for_all_copies("model_gate", ModelGate)


@contextmanager
def models_in_use(models: Iterable[Any], *, alone: bool, is_call: bool = True) -> Iterator[None]:
    """Use models for one block of code, alone or beside others.

    models: modules; None is left out, and a compiled module is the module that it was compiled from. alone: whether
    the block changes them. is_call: False for a block of the caller's own (`merged_networks`), in which pipelines on
    the same models may be called by the same thread. Raises RuntimeError where the thread would wait for itself.
    """
    own = [getattr(model, "_orig_mod", model) for model in models if model is not None]
    use = ModelUse({id(model): model for model in own}, alone, is_call)
    gate = model_gate()
    try:
        gate.enter(use)
        yield
    finally:
        gate.leave(use)


def changed_by_running(model: Any) -> bool:
    """Whether hooks move a model's weights about, or cast them, while it runs: accelerate's or diffusers' own."""
    if hasattr(model, "_hf_hook"):
        return True
    waiting = [model]
    while waiting:  # of thousands, before each call: `modules()` takes three times as long
        state = waiting.pop().__dict__
        if "_diffusers_hook" in state and state["_diffusers_hook"].hooks:
            return True
        waiting += [module for module in state.get("_modules", {}).values() if module is not None]
    return False


@contextmanager
def tokenizers_alone(*tokenizers: Any) -> Iterator[None]:
    """Tokenizers of transformers for one thread: each call of theirs first sets in them how texts are cut and padded,
    so that of two at once one is cut as the other asked. None is left out."""
    own = {id(tokenizer): tokenizer for tokenizer in tokenizers if tokenizer is not None}
    with ExitStack() as locks:
        for number in sorted(own):  # everybody takes them in one order
            locks.enter_context(model_gate().part_lock(own[number]))
        yield


def making_modules() -> threading.RLock:
    """Held while models and adapters are made. That changes `nn.Module` itself for a moment (accelerate, PEFT), or
    what can be imported, for every thread of the process."""
    return one_for_all_copies("making_modules", threading.RLock)


def loaded_once(known: dict[Any, Any], key: Any, load: Callable[[], Any]) -> Any:
    """known[key]; where it is not there, `load()` makes it. Of several threads that ask for it, one does."""
    if key not in known:
        with making_modules():
            if key not in known:
                known[key] = load()
    return known[key]


def moved_whole(model: Any, device: Any) -> Any:
    """`model.to(device)`; a thread that asks while another one moves the model waits until all of it is there."""
    with model_gate().part_lock(model):
        return model.to(device)
