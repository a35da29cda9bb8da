"""The examples in the docstrings of the text modules."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "prompt.attention",
        "prompt.chunks",
        "prompt.comments",
        "prompt.composition",
        "prompt.network_tags",
        "prompt.schedule",
        "prompt.styles",
        "infotext",
        "infotext_read",
        "infotext_samplers",
        "infotext_settings",
        "infotext_write",
    ],
)
def test_examples_are_true(module):
    result = doctest.testmod(import_module(f"webui_diffusers.pipelines.{module}"))
    assert result.attempted and not result.failed
