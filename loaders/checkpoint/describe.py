"""Checkpoints in one file: which model is inside. Only key names, shapes and a few numbers are read.

    cond_stage_model.transformer.…           SD 1.x
    cond_stage_model.model.…                 SD 2.x, noise or v prediction
    conditioner.embedders.0 and .1           SDXL; keys `v_pred` and `ztsnr` mark v prediction and zero terminal SNR
    edm_mean, edm_std                        SDXL's networks, trained as EDM (Playground v2.5)
    edm_vpred.sigma_max, .sigma_min          SDXL's networks, trained as EDM with v prediction (CosXL)
    conditioner.embedders.0.model.… alone    SDXL refiner
    model.diffusion_model.input_blocks.0.0   4 channels, or 9: inpainting

SD 2.x with noise and with v prediction have the same keys. In this order: the caller's word, the key `v_pred`, the
metadata (`modelspec.*`), a .yaml beside the file (`parameterization`), 9 channels (noise), the training step 875000
(noise: 512-base), 512, base or 768 in the file's name; else v, as in diffusers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..pickles import inner_table, unpicklable_classes
from ..weight_files import WeightFileError, open_weights, read_pickle, weight_file_kind
from .names import LDM_UNET, TEXT_PLACES, CheckpointNames, checkpoint_names, unet_names


_PREDICTIONS = {
    "eps": "epsilon",
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}


class CheckpointError(WeightFileError):
    """A file that is no checkpoint these pipelines can draw with: what it is instead, and what to do with it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds; `str()` says it in one line."""

    path: Path
    base: str  # "sd1", "sd2", "sdxl", "sdxl-refiner"
    prediction_type: str  # "epsilon", "v_prediction"
    decided_by: str  # what told the prediction type; begins with "guessed" where nothing certain did
    zero_snr: bool  # zero terminal SNR
    unet_channels: int  # 4; 9: inpainting
    parts: tuple[str, ...]  # which of unet, vae, text_encoder, text_encoder_2 are inside
    dtype: torch.dtype  # of the UNet
    cross_attention_width: int  # 768 SD1, 1024 SD2, 2048 SDXL, 1280 refiner
    unet_tensors: int
    diffusion: str = ""  # "" as all of its kind, "playground-v2.5", "cosxl"
    diffusion_numbers: tuple[tuple[float, ...], ...] = ()  # latents' mean and deviation; least and largest sigma
    alphas_cumprod: Tensor | None = field(default=None, compare=False, repr=False)  # the file's own, (1000,) float32
    title: str | None = None  # from the metadata

    def __str__(self) -> str:
        facts = [
            BASE_TITLES[self.base],
            f"{'v' if self.prediction_type == 'v_prediction' else 'noise'} prediction ({self.decided_by})",
            {"playground-v2.5": "EDM (Playground v2.5)", "cosxl": "EDM (CosXL)"}.get(self.diffusion, ""),
            "zero terminal SNR" if self.zero_snr else "",
            "inpainting UNet" if self.unet_channels == 9 else "",
            str(self.dtype).removeprefix("torch."),
            f"{self.path.stat().st_size / 1e9:.2f} GB",
            *(f"no {part}" for part in BASE_PARTS[self.base] if part not in self.parts),
        ]
        return f"{self.path.name}: {', '.join(fact for fact in facts if fact)}"


def describe_checkpoint(path: str | Path, prediction_type: str | None = None) -> CheckpointInfo:
    """Say which model a .safetensors or .ckpt file holds.

    prediction_type: the caller's word, "epsilon" or "v_prediction", over what the file seems to say.
    Raises CheckpointError (or WeightFileError) for a file that is missing, damaged, would run code, or is no
    checkpoint of Stable Diffusion 1, 2 or XL: then the message says what it is instead.
    """
    with opened_checkpoint(Path(path)) as table:
        if prediction_type is not None and prediction_type not in _PREDICTIONS:
            raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction'; got {prediction_type!r}.")
        keys = dict.fromkeys(table.keys())
        unet = unet_names(keys)
        first = unet.get(f"{LDM_UNET}input_blocks.0.0.weight")
        if first is None:
            raise CheckpointError(f"`{path}` is no Stable Diffusion checkpoint: {what_else_it_is(keys)}")
        shapes = {name: table.shape(key) for name, key in unet.items() if "attn2.to_k.weight" in name}
        if any(len(shape) < 2 for shape in (table.shape(first), *shapes.values())):
            raise CheckpointError(f"`{path}`: weights of its UNet have no shape of weights: damaged. Fetch it again.")
        width = next((shape[1] for shape in shapes.values()), 0)
        base = _base_model(Path(path), unet, keys, width)
        channels = table.shape(first)[1]
        if channels not in (4, 9):
            raise CheckpointError(f"`{path}`: the UNet reads {channels} channels: {_other_channels(channels)}")
        alphas = _own_alphas_cumprod(table)
        prediction, reason = _prediction_type(Path(path), table, base, channels, prediction_type)
        diffusion, numbers = _own_diffusion(table, base)
        return CheckpointInfo(
            path=Path(path),
            base=base,
            prediction_type="v_prediction" if diffusion == "cosxl" else prediction,
            decided_by="key `edm_vpred`" if diffusion == "cosxl" else reason,
            zero_snr="ztsnr" in keys or alphas is not None and float(alphas[-1]) < 1e-4,
            unet_channels=channels,
            parts=checkpoint_names(keys, base).parts,
            dtype=table.dtype(first),
            cross_attention_width=width,
            unet_tensors=len(unet),
            diffusion=diffusion,
            diffusion_numbers=numbers,
            alphas_cumprod=alphas,
            title=table.metadata.get("modelspec.title"),
        )


@contextmanager
def opened_parts(path: str | Path, base: str) -> Iterator[tuple["_MappedPickle", CheckpointNames]]:
    """A checkpoint's tensors, and where its parts stand among them."""
    with opened_checkpoint(Path(path)) as table:
        yield table, checkpoint_names(table.keys(), base)


@contextmanager
def lightning_checkpoints() -> Iterator[None]:
    """While this is open, torch's allow-list reader passes over what training left in a .ckpt beside the weights.

    The .ckpt files of Stable Diffusion 1 name a class of pytorch_lightning and a few numpy scalars. Each such name
    becomes an empty object that ignores its arguments: nothing of theirs is imported or run.
    """
    names = [
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning_fabric.utilities.data.AttributeDict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
    ]
    with unpicklable_classes([_ignored_class(name) for name in names]):
        yield


def _ignored_class(name: str) -> type:
    module, _, title = name.rpartition(".")

    def ignore(self: object, *values: object, **named: object) -> None:
        return None

    return type(title, (), {"__module__": module, "__init__": ignore, "__setstate__": ignore, "__setitem__": ignore})


class _MappedPickle:
    """A .ckpt as `WeightFile` shows a .safetensors: tensors stay on the disk until they are used (zip form only)."""

    def __init__(self, path: Path):
        with lightning_checkpoints():
            content = read_pickle(path, mmap=True)
        self.path = path
        self.metadata: dict[str, str] = {}
        step = content.get("global_step") if isinstance(content, Mapping) else None
        self.metadata |= {"global_step": str(step)} if isinstance(step, int) else {}
        content = inner_table(content)
        tables = content if isinstance(content, Mapping) else {}
        self._tensors = {k: v.detach() for k, v in tables.items() if isinstance(k, str) and isinstance(v, Tensor)}

    def keys(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype


@contextmanager
def opened_checkpoint(path: Path) -> Iterator[_MappedPickle]:
    """Both kinds of file behind the same four methods: keys, tensor, shape, dtype."""
    if weight_file_kind(path) == "pickle":
        yield _MappedPickle(path)
    else:
        with open_weights(path) as file:
            yield file  # type: ignore[misc]


def _any_key(keys: Mapping[str, None], starts: tuple[str, ...]) -> bool:
    return any(key.startswith(starts) for key in keys)


def _base_model(path: Path, unet: Mapping[str, str], keys: Mapping[str, None], width: int) -> str:
    """By the width of the cross attention; by the text encoder's keys where the width is an unusual one."""
    if f"{LDM_UNET}label_emb.0.0.weight" in unet:
        if _any_key(keys, ("cond_stage_model.model.", "cond_stage_model.transformer.", "embedder.")):
            raise CheckpointError(f"`{path}` is SD 2.1 unCLIP, for variations. Use StableUnCLIPImg2ImgPipeline.")
        second = _any_key(keys, ("conditioner.embedders.1.",))
        refiner = not second and _any_key(keys, ("conditioner.embedders.0.model.",))
        return {2048: "sdxl", 1280: "sdxl-refiner"}.get(width, "sdxl-refiner" if refiner else "sdxl")
    if _any_key(keys, ("cond_stage_model.roberta.",)):
        raise CheckpointError(f"`{path}` is AltDiffusion, whose text encoder is XLM-R. Use AltDiffusionPipeline.")
    return {768: "sd1", 1024: "sd2"}.get(width, "sd2" if _any_key(keys, ("cond_stage_model.model.",)) else "sd1")


def _own_alphas_cumprod(table: _MappedPickle) -> Tensor | None:
    if "alphas_cumprod" not in table.keys() or len(table.shape("alphas_cumprod")) != 1:
        return None
    alphas = table.tensor("alphas_cumprod").to(torch.float32)
    falling = len(alphas) > 1 and bool((alphas.diff() <= 0).all()) and bool((alphas >= 0).all())
    return alphas.clone() if falling and float(alphas[0]) <= 1 else None


def _own_diffusion(table: _MappedPickle, base: str) -> tuple[str, tuple[tuple[float, ...], ...]]:
    """Whether an SDXL network was trained with another diffusion than SDXL, and the numbers that the file keeps."""
    names = {"playground-v2.5": ("edm_mean", "edm_std"), "cosxl": ("edm_vpred.sigma_min", "edm_vpred.sigma_max")}
    for (diffusion, keys), wanted in zip(names.items(), (4, 1)):
        if base == "sdxl" and any(key in table.keys() for key in keys):
            found = {key: tuple(table.tensor(key).flatten().tolist()) for key in keys if key in table.keys()}
            numbers = tuple(found.get(key, ()) for key in keys)
            if any(len(row) not in (0, wanted) for row in numbers):
                raise CheckpointError(
                    f"`{table.path}`: `{keys[0]}` and `{keys[1]}` hold {[len(row) for row in numbers]} numbers, and "
                    f"{wanted} each were expected: damaged, or of another kind. Fetch it again."
                )
            return diffusion, numbers
    return "", ()


def _prediction_type(path: Path, table: _MappedPickle, base: str, channels: int, asked: str | None) -> tuple[str, str]:
    """ "epsilon" or "v_prediction", and what told it, in the order of the module's first lines."""
    if asked is not None:
        return _PREDICTIONS[asked], "as asked"
    if "v_pred" in table.keys():
        return "v_prediction", "key `v_pred`"
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        if table.metadata.get(name) in _PREDICTIONS:
            return _PREDICTIONS[table.metadata[name]], f"metadata `{name}`"
    written = _yaml_parameterization(path.with_suffix(".yaml"))
    if written is not None:
        return written, f"{path.stem}.yaml"
    if base != "sd2":
        return "epsilon", "as all of its kind"
    architecture = table.metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-"):
        return ("v_prediction" if "-768-v" in architecture else "epsilon"), "metadata `modelspec.architecture`"
    if channels == 9:
        return "epsilon", "as the inpainting model"
    if table.metadata.get("global_step") == "875000":
        return "epsilon", "trained for 875000 steps"
    name = path.stem.lower()
    if re.search(r"(?<!\d)768(?!\d)|v-?pred", name):
        return "v_prediction", "guessed from its name"
    if re.search(r"(?<!\d)512(?!\d)|base", name):
        return "epsilon", "guessed from its name"
    return "v_prediction", "guessed: most SD 2.x models are"


def _yaml_parameterization(path: Path) -> str | None:
    """What an .ldm configuration beside a checkpoint says; without the word it means noise prediction."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if "linear_start" not in text and "parameterization" not in text:
        return None
    found = re.search(r"""^\s*parameterization\s*:\s*["']?(\w+)""", text, re.MULTILINE)
    return _PREDICTIONS.get(found[1] if found else "eps")


def _other_channels(channels: int) -> str:
    kinds = {
        5: "it is a depth model. Use StableDiffusionDepth2ImgPipeline.",
        7: "it is the 4x upscaler. Use StableDiffusionUpscalePipeline.",
        8: "it is an InstructPix2Pix model. Use StableDiffusionInstructPix2PixPipeline.",
    }
    return kinds.get(channels, "a kind that is not known here. Checkpoints read 4, or 9 for inpainting.")


def what_else_it_is(keys: Mapping[str, None]) -> str:
    for test, answer in _OTHER_FILES:
        if any(test(key) for key in keys):
            return answer
    some = ", ".join(f"`{key}`" for key in list(keys)[:3]) or "nothing"
    return f"it holds {some}, and no `{LDM_UNET}input_blocks...`. Check what it was made for."


def _has(*parts: str) -> Callable[[str], bool]:
    return lambda key: any(part in key for part in parts)


def _starts(*parts: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(parts)


BASE_TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "Stable Diffusion XL refiner",
}

BASE_PARTS = {base: ("unet", "vae", *places) for base, places in TEXT_PLACES.items()}

# The first that fits any key answers.
_OTHER_FILES: list[tuple[Callable[[str], bool], str]] = [
    (
        _has(
            "lora_down", "lora_up", "lora_A.", "lora_B.", "hada_w1", "lokr_w", "oft_blocks", "oft_diag", "dora_scale"
        ),
        "it is a network (LoRA, LyCORIS). Load the checkpoint that it was made for, and add the file as a network.",
    ),
    (
        _starts("control_model.", "controlnet_", "lllite_"),
        "it is a ControlNet. Load it with ControlNetModel.from_single_file.",
    ),
    (_has("motion_modules."), "it is a motion module of AnimateDiff. Load it with MotionAdapter."),
    (
        _has("joint_blocks.", "double_blocks.", "single_blocks.", "double_layers.", "caption_projection"),
        "it is a transformer model (SD3, Flux or a later one), which these pipelines do not draw with. "
        "Use the pipeline of its name in diffusers.",
    ),
    (
        _starts("down_blocks.", "unet.", "time_embedding.", "add_embedding."),
        "it is the UNet of a diffusers folder. Load the whole folder with from_pretrained.",
    ),
    (
        _starts("text_model.", "text_encoder.", "transformer.resblocks.", "encoder.layers."),
        "it is a text encoder alone. Load a whole checkpoint, or pass this one as `text_encoder=`.",
    ),
    (
        _starts("first_stage_model.", "vae.", "encoder.down", "decoder.up", "encoder.conv_in", "decoder.conv_in"),
        "it is a VAE alone. Load it with AutoencoderKL.from_single_file and pass it as `vae=`.",
    ),
    (
        _starts("emb_params", "clip_g", "clip_l", "string_to_param"),
        "it is an embedding (textual inversion). Add it to the pipeline as one.",
    ),
    (
        _starts("body.", "model.0.", "model.1.sub", "conv_first", "params_ema", "upconv1", "layers.0.residual_group"),
        "it is an upscaler. Name it as `hires_upscaler`.",
    ),
    (
        _starts("model.diffusion_model.", "conditioner.", "cond_stage_model.", "model_ema."),
        "parts of one are there, but its UNet is not, or is incomplete. Fetch it again, or get the full version.",
    ),
]
