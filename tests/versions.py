"""Which versions the tests run on, where they ask."""

from importlib.metadata import version

import pytest
from packaging.version import Version


DIFFUSERS, TORCH, SAFETENSORS = (Version(version(name)) for name in ("diffusers", "torch", "safetensors"))
HAS_BLOCKS = DIFFUSERS >= Version("0.40")  # Modular Diffusers before it was called experimental


def need_blocks() -> None:
    """Skip a whole file of tests where diffusers is too old for the blocks."""
    if not HAS_BLOCKS:
        pytest.skip(f"blocks need diffusers 0.40, not {DIFFUSERS}", allow_module_level=True)
