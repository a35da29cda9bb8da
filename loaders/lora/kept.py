"""Networks that stay merged from one call of a pipeline to the next: whose they are, and how others get rid of them.

The pipeline that keeps them owns the merger. Every other call on the same models, of that pipeline or another one,
finds it here and puts the originals back first, so that no image is drawn with networks that it did not ask for.
"""

from weakref import WeakKeyDictionary, ref

from torch import nn

from ..utils import one_for_all_copies
from .merge import NetworkMerger
from .targets import pipe_models


def kept_mergers(pipe: object) -> list[NetworkMerger]:
    """The mergers whose networks are on the models of a pipeline between calls."""
    refs = [_kept().get(model) for model in pipe_models(pipe).values()]  # another thread may take one out meanwhile
    found = [kept() for kept in refs if kept is not None]
    return list({id(merger): merger for merger in found if merger is not None and merger.active}.values())


def keep_networks_on(pipe: object, merger: NetworkMerger) -> None:
    """Leave a merger's networks on the models of its pipeline, which holds it. They go when the pipeline does, at the
    latest."""
    vars(pipe)["_kept_merger"] = merger
    for model in pipe_models(pipe).values():
        _kept()[model] = ref(merger)


def kept_merger(pipe: object) -> NetworkMerger | None:
    """The pipeline's own merger, where its networks alone are on its models."""
    own = vars(pipe).get("_kept_merger")
    return own if kept_mergers(pipe) == [own] else None


def release_networks(pipe: object) -> None:
    """Put back the originals of every model of a pipeline on which networks were kept."""
    for merger in kept_mergers(pipe):
        merger.restore()
    for model in pipe_models(pipe).values():
        _kept().pop(model, None)
    vars(pipe).pop("_kept_merger", None)


def _kept() -> "WeakKeyDictionary[nn.Module, ref[NetworkMerger]]":
    return one_for_all_copies("kept_networks", WeakKeyDictionary)
