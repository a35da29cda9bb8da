"""A VAE alone, from every file that the webui takes for one: `.vae.pt`, `.vae.safetensors`, `.ckpt`, a checkpoint with
a VAE inside, a folder or file of diffusers; and TAESD, the small one.

>>> pipe.vae = load_vae("vae-ft-mse-840000-ema-pruned.safetensors", like=pipe.vae)
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ..casting import cast
from .configs import MODEL_BASES, SD_VAE_CONFIG
from .describe import CheckpointError, opened_checkpoint, what_else_it_is
from .names import part_tensors, vae_names


_TAESD_ENDINGS = ("encoder", "decoder")  # taesd_encoder.pth and taesd_decoder.pth lie side by side


def load_vae(
    path: str | Path, *, like: nn.Module | None = None, base: str = "sd1", dtype: torch.dtype | None = None
) -> AutoencoderKL | AutoencoderTiny:
    """A VAE from a weight file of any kind, or a folder that `save_pretrained` wrote.

    like: the model's own VAE; the new one gets its configuration, above all its scaling factor, which files do not
    tell and which belongs to the UNet. Without it, that of `base` ("sd1", "sd2", "sdxl"). dtype: None is that
    of `like`, else float32. TAESD (`taesd_decoder.pth` beside `taesd_encoder.pth`, or as one file) gives an
    AutoencoderTiny. Raises CheckpointError for a file that is no VAE, lacks weights, or is of another size.
    """
    path = Path(path).expanduser()
    dtype = dtype or (torch.float32 if like is None else next(like.parameters()).dtype)
    if path.name == "diffusion_pytorch_model.safetensors" and (path.parent / "config.json").is_file():
        path = path.parent
    if path.is_dir():
        return _saved_vae(path, like, dtype)
    tensors, tiny = _vae_tensors(path)
    with _refused_holes(path):
        if tiny:
            vae: nn.Module = AutoencoderTiny()
            vae.load_state_dict(tensors)
        else:
            with tempfile.TemporaryDirectory() as folder:
                _configured(like, base).save_config(folder)
                vae = AutoencoderKL.from_single_file(dict(tensors), config=folder)
            _refuse_missing(path, vae)
    vae.register_to_config(_name_or_path=str(path))
    return cast(vae, dtype).eval()


def _vae_tensors(path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """The tensors of a VAE, under the converter's or diffusers' keys; and whether it is TAESD."""
    with opened_checkpoint(path) as table:
        keys = table.keys()
        if "decoder.layers.0.weight" in keys and "encoder.layers.0.weight" in keys:
            return {key: table.tensor(key) for key in keys}, True
        if {"1.weight", "3.conv.0.weight"} <= set(keys) or {"0.weight", "1.conv.0.weight"} <= set(keys):
            return _taesd_pair(path), True
        if any(key.startswith(("decoder.up_blocks.", "decoder.mid_block.")) for key in keys):  # diffusers' own
            return {key: table.tensor(key) for key in keys if key.startswith(_VAE_PARTS)}, False
        names = vae_names(keys, bare=True)
        if not any(".up.0." in name for name in names):
            raise CheckpointError(f"`{path}` is no VAE: {what_else_it_is(dict.fromkeys(keys))}")
        return part_tensors(table, names), False


def _taesd_pair(path: Path) -> dict[str, Tensor]:
    """TAESD's two files as one, under diffusers' keys; whichever of them is named.

    The decoder's layers are counted from its clamp on, which diffusers has in its code (scripts of diffusers,
    convert_tiny_autoencoder_to_diffusers.py, Apache-2.0).
    """
    named = next((part for part in _TAESD_ENDINGS if part in path.stem.lower()), "decoder")
    state = {}
    for part, earlier in (("encoder", 0), ("decoder", 1)):
        place = path if part == named else path.with_name(path.name.replace(named, part))
        if not place.is_file():
            raise CheckpointError(
                f"`{path}` is TAESD's {named}, and its {part} is not beside it. Put `{place.name}` there, or load "
                "`madebyollin/taesd` with AutoencoderTiny."
            )
        with opened_checkpoint(place) as table:
            for key in table.keys():
                number, _, rest = key.partition(".")
                if number.isdigit():
                    state[f"{part}.layers.{int(number) - earlier}.{rest}"] = table.tensor(key)
    return state


def _saved_vae(folder: Path, like: nn.Module | None, dtype: torch.dtype) -> AutoencoderKL | AutoencoderTiny:
    """What diffusers saved, with the scaling of the model that it goes to where both are VAEs of Stable Diffusion."""
    for place in (folder, folder / "vae"):
        if (place / "config.json").is_file():
            name = AutoencoderKL.load_config(place).get("_class_name")
            if name == AutoencoderTiny.__name__:
                return AutoencoderTiny.from_pretrained(place, dtype=dtype)
            if name == AutoencoderKL.__name__:
                vae = AutoencoderKL.from_pretrained(place, dtype=dtype)
                if isinstance(like, AutoencoderKL):
                    vae.register_to_config(scaling_factor=like.config.scaling_factor)
                return vae
            raise CheckpointError(f"`{place}` holds a {name}, and a VAE of Stable Diffusion was expected.")
    raise CheckpointError(
        f"`{folder}` holds no VAE: there is no config.json in it. Name the VAE's own folder or file."
    )


def _configured(like: nn.Module | None, base: str) -> AutoencoderKL:
    """A VAE without weights, for its configuration."""
    with torch.device("meta"):
        if isinstance(like, AutoencoderKL):
            return AutoencoderKL.from_config(like.config)
        return AutoencoderKL.from_config({**SD_VAE_CONFIG, **MODEL_BASES[base]["vae"]})


def _refuse_missing(path: Path, vae: nn.Module) -> None:
    holes = [key for key, weight in vae.state_dict().items() if weight.is_meta]
    if holes:
        raise CheckpointError(
            f"`{path}`: {len(holes)} weights of the VAE are not in the file, `{holes[0]}` first: it is incomplete. "
            "Fetch it again."
        )


@contextmanager
def _refused_holes(path: Path) -> Iterator[None]:
    """What diffusers raises for weights that are missing or of another shape, in our words."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"`{path}` looks like a VAE, but its weights do not fit this model's ({first}): it is incomplete, or made "
            "for another kind of model. Take one for this base model."
        ) from error


_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
