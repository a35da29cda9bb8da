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
        "infotext.styles",
        "infotext.to_call",
        "infotext.read",
        "infotext.sampler_names",
        "infotext.control_fields",
        "infotext.other_names",
        "infotext.families",
        "infotext.programs",
        "infotext.tidy",
        "infotext.other_programs",
        "infotext.settings",
        "infotext.write",
    ],
)
def test_examples_are_true(module):
    result = doctest.testmod(import_module(f"webui_diffusers.pipelines.{module}"))
    assert result.attempted and not result.failed
