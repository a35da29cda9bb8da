"""Modules of version 0.1 are found under their old names, with a warning."""

import sys
from importlib import import_module

import pytest
from webui_diffusers.loaders.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_module_of_today(old: str):
    with pytest.warns(DeprecationWarning, match="goes with 0.3") if not _loaded(old) else _quiet():
        found = import_module(f"webui_diffusers.{old}")
    assert found is import_module(f"webui_diffusers.{MOVED[old]}")


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        import_module("webui_diffusers.loaders.never_was")


def _loaded(old: str) -> bool:
    return f"webui_diffusers.{old}" in sys.modules


def _quiet():
    from contextlib import nullcontext

    return nullcontext()
