"""The `realesrgan` package as a second reader of Real-ESRGAN's files (extra `[realesrgan]`).

Its networks give exactly the pixels of spandrel's; it is here for those who trust the authors' own code more.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from .model_lock import making_modules
from .upscaler_model import UpscalerNetwork
from .utils import require
from .weight_files import WeightFileError


_NEWEST_PYTHON = (3, 12)  # that basicsr 1.4.2 can be built on
_MOVED_MODULE = "torchvision.transforms.functional_tensor"


@contextmanager
def functional_tensor_shim() -> Iterator[None]:
    """`torchvision.transforms.functional_tensor` for one import, where torchvision has it no more.

    basicsr 1.4.2 takes `rgb_to_grayscale` from there. Nothing happens where the module exists; what is put into
    `sys.modules` is taken out again, also after an error.
    """
    functional = require("torchvision.transforms.functional", extra="realesrgan", feature="The realesrgan backend")
    try:
        require(_MOVED_MODULE, extra="realesrgan", feature="The realesrgan backend")
        missing = False
    except ImportError:
        missing = True
    if missing:
        stand_in = ModuleType(_MOVED_MODULE)
        stand_in.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
        sys.modules[_MOVED_MODULE] = stand_in
    try:
        yield
    finally:
        if missing:
            sys.modules.pop(_MOVED_MODULE, None)


def realesrgan_network(state: Mapping[str, Tensor], name: str) -> UpscalerNetwork:
    """The network of `realesrgan.RealESRGANer` for these tensors, with them in. name: the file's, for messages.

    Raises ImportError without the package, WeightFileError for tensors that are not in Real-ESRGAN's own layout.
    """
    network, scale, unshuffle = _realesrgan_architecture(state, name)
    package = _package_module("realesrgan")
    with tempfile.TemporaryDirectory() as folder:  # it reads weights from a file only
        path = Path(folder) / "weights.pth"
        torch.save({"params": {key: value.float() for key, value in state.items()}}, path)
        try:
            runner = package.RealESRGANer(scale=scale, model_path=str(path), model=network, half=False, device="cpu")
        except RuntimeError as error:
            raise WeightFileError(
                f"`{name}` begins as Real-ESRGAN's files do, but its tensors do not fit: {error} Fetch it again, or "
                'load it with `backend="spandrel"`.'
            ) from error
    return UpscalerNetwork(
        network=runner.model.eval(),
        call=lambda module, pixels: module(pixels),
        architecture=type(network).__name__,
        scale=scale,
        minimum=unshuffle,
        multiple_of=unshuffle,
        square=False,
        half=True,
        bfloat16=True,
    )


def _package_module(name: str) -> ModuleType:
    try:
        with making_modules(), functional_tensor_shim():
            return require(name, extra="realesrgan", feature='`backend="realesrgan"`')
    except ImportError as error:
        if sys.version_info[:2] <= _NEWEST_PYTHON:
            raise
        python = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f'`backend="realesrgan"` needs `{name}`, and basicsr, which it is made of, cannot be installed on Python '
            f'{python} (on 3.12 it can). Use `backend="spandrel"`: its pixels are the same.'
        ) from error


def _realesrgan_architecture(state: Mapping[str, Tensor], name: str) -> tuple[nn.Module, int, int]:
    """An untrained network of the right sizes, its scale, and how many pixels a side it takes at a time."""
    if "conv_first.weight" in state and "body.0.rdb1.conv1.weight" in state:
        return _realesrgan_rrdb(state)
    if "body.0.weight" in state and "body.1.weight" in state:
        return _realesrgan_compact(state)
    raise WeightFileError(
        f"`{name}` is not in the layout of Real-ESRGAN's own files, the only one that the `realesrgan` package reads. "
        'Load it with `backend="spandrel"`.'
    )


def _realesrgan_rrdb(state: Mapping[str, Tensor]) -> tuple[nn.Module, int, int]:
    features, channels = state["conv_first.weight"].shape[:2]
    blocks = 1 + max(int(key.split(".")[1]) for key in state if re.match(r"body\.\d+\.", key))
    growth = state["body.0.rdb1.conv1.weight"].shape[0]
    unshuffle = isqrt(channels // 3)
    module = _package_module("basicsr.archs.rrdbnet_arch")
    scale = 4 // unshuffle
    return module.RRDBNet(3, 3, scale, features, blocks, growth), scale, unshuffle


def _realesrgan_compact(state: Mapping[str, Tensor]) -> tuple[nn.Module, int, int]:
    features = state["body.0.weight"].shape[0]
    last = max(int(key.split(".")[1]) for key in state)
    scale = isqrt(state[f"body.{last}.weight"].shape[0] // 3)
    module = _package_module("realesrgan.archs.srvgg_arch")
    network = module.SRVGGNetCompact(3, 3, features, num_conv=(last - 2) // 2, upscale=scale, act_type="prelu")
    return network, scale, 1
