"""What an upscaling file holds, as spandrel tells it from keys and shapes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict
from torch import Tensor, nn

from .pickles import check_sizes, inner_table, network_flaw
from .weight_files import WeightFileError, open_weights, read_pickle, weight_file_kind


class UpscalerNetwork(NamedTuple):
    """A network with its weights in, float32 on the CPU, and what a caller must know of it."""

    network: nn.Module
    call: Callable[[nn.Module, Tensor], Tensor]  # (network, pixels) -> pixels, both (b, 3, h, w) in [0, 1]
    architecture: str
    scale: int
    minimum: int  # least side of the input, pixels
    multiple_of: int  # both sides of the input must be a multiple of this
    square: bool  # and the input square
    half: bool  # whether it works in float16
    bfloat16: bool


def read_upscaler_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an upscaler's file by key, without the wrappers and prefixes that training code leaves there.

    Raises WeightFileError for what is no weight file, is damaged, or would run code.
    """
    if weight_file_kind(path) == "safetensors":
        with open_weights(path) as file:
            content: object = {key: file.tensor(key) for key in file.keys()}
    else:
        content = read_pickle(path)
    content = inner_table(content)
    table = content if isinstance(content, Mapping) else {}
    tensors = {
        key: value.detach() for key, value in table.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightFileError(
            f"`{path}` holds no table of tensors, so it is no upscaler. Check what the file was made for."
        )
    flaw = network_flaw(tensors)
    if flaw:
        raise WeightFileError(f"`{path}` is no upscaler: {flaw}. It is damaged; get another copy.")
    return canonicalize_state_dict(tensors)


def upscaler_network(state: Mapping[str, Tensor], name: str) -> UpscalerNetwork:
    """The network that these tensors belong to, with them in. name: the file's, for messages.

    Raises WeightFileError when no architecture fits, or when the one that does is no upscaler of RGB pictures.
    """
    try:
        check_sizes(state, lambda: ModelLoader().load_from_state_dict(dict(state)))
        found = ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except UnsupportedModelError as error:
        raise WeightFileError(
            f"`{name}` fits no upscaler known to spandrel ({_some_keys(state)}). It is a file for something else, or "
            "of an architecture that is too new: check what it was made for, or update spandrel."
        ) from error
    except Exception as error:  # spandrel meets arbitrary tensors, and fails on them in as many ways
        raise WeightFileError(
            f"`{name}` looks like an upscaler, but its tensors do not fit together ({_some_keys(state)}): "
            f"{' '.join(str(error).split())[:400]}. It is incomplete or made for something else; fetch it again."
        ) from error
    if found.purpose not in ("SR", "Restoration"):
        raise WeightFileError(
            f"`{name}` is a {found.architecture.name} network for {found.purpose}, which does not enlarge whole "
            "pictures. Face restorers go to `load_face_restorer`."
        )
    if (found.input_channels, found.output_channels) != (3, 3):
        raise WeightFileError(
            f"`{name}` ({found.architecture.name}) takes {found.input_channels} and gives {found.output_channels} "
            "channels; pictures here have 3. Take the colour version of this model."
        )
    needs = found.size_requirements
    return UpscalerNetwork(
        network=found.model.eval(),
        call=found._call_fn,  # what the architecture does around its network; the public call switches autograd off
        architecture=found.architecture.id,
        scale=found.scale,
        minimum=needs.minimum,
        multiple_of=needs.multiple_of,
        square=needs.square,
        half=found.supports_half,
        bfloat16=found.supports_bfloat16,
    )


def _some_keys(state: Mapping[str, Tensor]) -> str:
    return f"{len(state)} tensors: " + ", ".join(f"`{key}`" for key in list(state)[:3]) + ", ..."
