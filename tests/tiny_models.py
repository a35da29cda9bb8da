"""Pipelines around the recordings' tiny models, which are read from their folders once per process."""

from copy import deepcopy
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from packaging.version import Version
from recordings import GOLDEN


NO_CARD_TO_EMPTY = pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available() and Version(torch.__version__) < Version("2.7"),
    reason="accelerate's hook empties a card's memory, which a torch 2.6 built for one cannot do without one",
)


@cache
def _components(name: str) -> dict[str, Any]:
    return DiffusionPipeline.from_pretrained(GOLDEN / name, dtype=torch.float32).components


def pipeline_with_copies(cls: type, name: str, **more: Any) -> DiffusionPipeline:
    """A pipeline with models and a scheduler of its own, as from_pretrained would read them; tokenizers are shared."""
    kinds = (torch.nn.Module, SchedulerMixin)
    parts = {key: deepcopy(part) if isinstance(part, kinds) else part for key, part in _components(name).items()}
    return _made(cls, name, parts, more)


def pipeline_around(cls: type, name: str, **more: Any) -> DiffusionPipeline:
    """A pipeline with a scheduler of its own around models that all tests share, and that none may change."""
    parts = {key: deepcopy(part) if key == "scheduler" else part for key, part in _components(name).items()}
    return _made(cls, name, parts, more)


def _made(cls: type, name: str, parts: dict[str, Any], more: dict[str, Any]) -> DiffusionPipeline:
    taken = signature(cls.__init__).parameters
    parts = {key: part for key, part in parts.items() if key in taken}
    config = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    pipe = cls(**{**parts, **config, **more})
    pipe.register_to_config(_name_or_path=str(GOLDEN / name))
    pipe.set_progress_bar_config(disable=True)
    return pipe
