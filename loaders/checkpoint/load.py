"""Loading a checkpoint in one file, without a network: diffusers' `from_single_file`, given what it would fetch.

diffusers converts the weights; we say which model the file holds (`describe_checkpoint`), hand it the configuration
and tokenizer folder that comes with the package (`model_config_folder`), and add what it does not do: .ckpt files
that training left its own notes in, text encoders spelled as in older files, SD 2.x files that do not say what they
predict, and an error where a part is missing instead of a pipeline with holes.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from ..casting import cast
from ..utils import LOGGER
from ..weight_files import WeightFileError, weight_file_kind
from .configs import MODEL_BASES, model_config_folder
from .describe import (
    BASE_PARTS,
    BASE_TITLES,
    CheckpointError,
    CheckpointInfo,
    describe_checkpoint,
    lightning_checkpoints,
    opened_parts,
)
from .names import part_tensors, text_encoder_tensors


_Pipe = TypeVar("_Pipe")
_OWN_CONFIGURATION = ("config", "original_config", "original_config_file")

# tensors of the published UNets under `model.diffusion_model.`
_LDM_UNET_TENSORS = {"sd1": 686, "sd2": 686, "sdxl": 1680, "sdxl-refiner": 1220}


def load_single_file(load: Callable[..., _Pipe], path: str | Path, kwargs: Mapping[str, Any]) -> _Pipe:
    """Load a pipeline from a checkpoint: `load` is the class' own `from_single_file`, `kwargs` its named arguments.

    >>> class Mine(StableDiffusionPipeline):
    ...     @classmethod
    ...     def from_single_file(cls, path, **kwargs):
    ...         return load_single_file(super().from_single_file, path, kwargs)

    Beyond diffusers' arguments: prediction_type, "epsilon" or "v_prediction", over what the file seems to say.
    Raises CheckpointError for a file that holds no model of this kind, or only a part of one.
    """
    local = local_checkpoint(path, kwargs)
    with lightning_checkpoints(), _explained_holes(local), _rightly_named(local) as place:
        pipe = load(str(place), **single_file_arguments(local, kwargs))
    _refuse_holes(pipe, local)
    if not any(kwargs.get(name) is not None for name in _OWN_CONFIGURATION):
        _settle_diffusion(pipe, describe_checkpoint(local), kwargs)
    if "scheduler" not in kwargs:
        _settle_prediction_type(pipe, local, kwargs)
    return pipe


def single_file_arguments(path: str | Path, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' `from_single_file` has to be called with for the checkpoint at `path`; changes nothing.

    A caller's own `config` or `original_config` is left alone. Else `config` becomes a folder on this machine.
    Raises CheckpointError where the file lacks a part that was not passed either.
    """
    arguments = dict(kwargs)
    path = Path(path)
    # `prediction_type` may not reach diffusers: it would build a scheduler with other betas for it.
    prediction_type = arguments.pop("prediction_type", None)
    if any(arguments.get(name) is not None for name in _OWN_CONFIGURATION):
        return arguments
    info = describe_checkpoint(path, prediction_type)
    LOGGER.info("%s", info)
    arguments["config"] = str(single_file_config(info))
    arguments["local_files_only"] = True
    missing = [part for part in BASE_PARTS[info.base] if part not in info.parts and arguments.get(part) is None]
    if missing:
        alone = "the UNet alone" if info.parts == ("unet",) else f"without {' and '.join(missing)}"
        raise CheckpointError(
            f"`{path}` is a checkpoint ({BASE_TITLES[info.base]}) {alone}: it was saved to be completed from another. "
            f"Load the missing part and pass it, e.g. `{missing[0]}=...` (missing: {', '.join(missing)})."
        )
    return {**arguments, **_oddly_spelled_parts(info, arguments)}


def single_file_config(info: CheckpointInfo) -> Path:
    """The configuration folder for a checkpoint, as `from_single_file(..., config=folder)` wants it.

    Raises CheckpointError where the checkpoint's UNet is not of the published size.
    """
    width = int(MODEL_BASES[info.base]["unet"]["cross_attention_dim"])
    tensors = _LDM_UNET_TENSORS[info.base]
    if info.cross_attention_width != width or info.unet_tensors < tensors:
        raise CheckpointError(
            f"`{info.path}` is built like {BASE_TITLES[info.base]}, but its UNet has {info.unet_tensors} tensors and "
            f"reads text {info.cross_attention_width} wide, where the published one has {tensors} and {width}: it is "
            "incomplete, or a smaller model made from it. Pass its own configuration folder as `config=`."
        )
    return model_config_folder(
        info.base,
        prediction_type=info.prediction_type,
        unet_channels=info.unet_channels,
        scheduler=_checkpoint_schedule(info),
    )


def read_refiner(path: str | Path, *, like: str | None = None, **kwargs: Any) -> UNet2DConditionModel:
    """The UNet of an SDXL refiner's checkpoint, for a pipeline's `refiner`. kwargs: dtype, config...

    like: the base of the pipeline's own model ("sd1", "sdxl", ...), whose checkpoints finish its pictures as well.
    Raises CheckpointError when the file holds another model.
    """
    local = local_checkpoint(path, kwargs)
    arguments, odd = dict(kwargs), {}
    if arguments.get("config") is None:
        info = describe_checkpoint(local)
        if info.base not in ("sdxl-refiner", like):
            raise CheckpointError(f"{info}. It is no refiner: load it with from_single_file as a pipeline.")
        arguments |= {"config": str(single_file_config(info)), "local_files_only": True}
        with opened_parts(local, info.base) as (table, names):
            odd = part_tensors(table, names.unet) if "unet" in names.odd else {}
    with lightning_checkpoints(), _explained_holes(local), _rightly_named(local) as place:
        unet = UNet2DConditionModel.from_single_file(odd or str(place), subfolder="unet", **arguments)
    _refuse_holes(unet, local)
    return unet


def local_checkpoint(path: str | Path, kwargs: Mapping[str, Any]) -> Path:
    """The file at `path`, or what a Hub address (https://huggingface.co/org/repo/blob/main/x.safetensors) names.

    kwargs: token, cache_dir, revision, force_download, local_files_only, as in `hf_hub_download`.
    """
    address = re.fullmatch(
        r"(?:https?://)?(?:hf\.co|huggingface\.co)/([^/]+/[^/]+)/(?:(?:blob|resolve)/([^/]+)/)?(.+?)(?:\?.*)?",
        str(path),
    )
    if Path(path).is_file() or address is None:
        return Path(path)
    wanted = ("token", "cache_dir", "force_download", "local_files_only")
    options = {name: kwargs[name] for name in wanted if kwargs.get(name) is not None}
    repo, revision, name = address.groups()
    return Path(hf_hub_download(repo, name, revision=kwargs.get("revision") or revision, **options))


def predicts_noise(unet: Any) -> bool:
    """Whether a UNet's output is the noise in its input, tried once at the last timestep, without text.

    There the input is noise almost alone (alpha_bar about 0.005): an eps model gives back its input (correlation
    near 1), a v model gives v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, which hardly correlates with it
    (Salimans and Ho, 2022, arXiv:2202.00512, appendix D).
    """
    parameter = next(unet.parameters())
    noise = torch.randn(1, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 77, unet.config.cross_attention_dim)
    with torch.no_grad():
        output = unet(noise.to(parameter), 999, encoder_hidden_states=text.to(parameter)).sample.float().cpu()
    return float(torch.corrcoef(torch.stack([noise.flatten(), output.flatten()]))[0, 1]) > 0.5


def _settle_prediction_type(pipe: Any, path: Path, kwargs: Mapping[str, Any]) -> None:
    """Give the scheduler the prediction type that was asked for; where the file did not tell it, try the UNet."""
    found = kwargs.get("prediction_type")
    if found is None and kwargs.get("config") is None:
        info = describe_checkpoint(path)
        if info.decided_by.startswith("guessed") and info.unet_channels == 4:
            found = _tried_prediction_type(pipe.unet, info)
    if found is not None and found != pipe.scheduler.config.get("prediction_type"):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=found)


def _tried_prediction_type(unet: UNet2DConditionModel, info: CheckpointInfo) -> str | None:
    try:
        found = "epsilon" if predicts_noise(unet) else "v_prediction"
    except RuntimeError as error:  # half precision on a processor that has no kernels for it
        LOGGER.warning("%s. Pass `prediction_type=` if that is wrong; trying the UNet failed (%s).", info, error)
        return None
    if found != info.prediction_type:
        LOGGER.warning("%s. Its UNet answers like one of type %s, so that is used.", info, found)
    return found


def _checkpoint_schedule(info: CheckpointInfo) -> dict[str, object]:
    """Entries of the scheduler's configuration that differ from the base model's own."""
    if info.zero_snr:
        entries: dict[str, object] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if not info.base.startswith("sdxl"):  # PNDM has no zero terminal SNR
            entries |= {"_class_name": "DDIMScheduler", "clip_sample": False}
        return entries
    if info.alphas_cumprod is None:
        return {}
    own = info.alphas_cumprod.double()
    usual = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    # Files in half precision have rounded alphas: a part in two thousand. More is another schedule.
    if own.shape == usual.shape and float((own / usual - 1).abs().max()) < 0.01:
        return {}
    ratios = own[1:] / own[:-1]
    return {"trained_betas": [float(1 - own[0]), *(1 - ratios).clamp(0, 0.999).tolist()]}


def _oddly_spelled_parts(info: CheckpointInfo, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parts whose keys diffusers does not know, loaded, as far as the caller passes none."""
    loaded: dict[str, Any] = {}
    options = {name: value for name, value in arguments.items() if not isinstance(value, torch.nn.Module)}
    with opened_parts(info.path, info.base) as (table, names):
        for part in names.odd:
            if arguments.get(part) is not None:
                continue
            if part in names.text:
                loaded[part] = _text_encoder(info.path, part, table, names.text[part], arguments)
            else:
                kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
                tensors = part_tensors(table, getattr(names, part))
                loaded[part] = kind.from_single_file(tensors, **{**options, "subfolder": part})
    return loaded


def _text_encoder(path: Path, part: str, table: Any, place: str, arguments: Mapping[str, Any]) -> PreTrainedModel:
    config = CLIPTextConfig.from_pretrained(arguments["config"], subfolder=part)
    names = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
    kind = names[(config.architectures or [CLIPTextModel.__name__])[0]]
    tensors = text_encoder_tensors(table, place, config.num_hidden_layers)
    with init_empty_weights(include_buffers=False):
        model = kind(config)
    wrapped = hasattr(model, "text_model")  # transformers before and after 5.6
    state = {f"text_model.{k}" if wrapped and k != "text_projection.weight" else k: v for k, v in tensors.items()}
    if kind is CLIPTextModel:
        state.pop("text_projection.weight", None)
    try:
        missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise CheckpointError(
            f"`{path}`: the {part} at `{place}` does not have the shapes of its kind ({str(error).splitlines()[-1]}). "
            f"Pass another as `{part}=...`."
        ) from error
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing:
        raise CheckpointError(
            f"`{path}`: {len(missing)} weights of the {part} at `{place}` are not in the file, `{missing[0]}` first: "
            f"it is incomplete. Fetch it again, or pass a whole one as `{part}=...`."
        )
    dtype = arguments.get("dtype") or arguments.get("torch_dtype")
    return cast(model.eval(), dtype if isinstance(dtype, torch.dtype) else torch.float32)


def _settle_diffusion(pipe: Any, info: CheckpointInfo, kwargs: Mapping[str, Any]) -> None:
    """The scheduler and the latents' scale of SDXL networks that were trained with another diffusion.

    Numbers of playgroundai/playground-v2.5-1024px-aesthetic and stabilityai/cosxl, as diffusers has them
    (loaders/single_file_utils.py and its guide to CosXL, Apache-2.0).
    """
    if info.diffusion == "playground-v2.5":
        scheduler: Any = EDMDPMSolverMultistepScheduler()
        if kwargs.get("vae") is None:
            mean, deviation = info.diffusion_numbers
            pipe.vae.register_to_config(
                latents_mean=list(mean) or None, latents_std=list(deviation) or None, scaling_factor=0.5
            )
    elif info.diffusion == "cosxl":
        least, largest = (numbers[0] if numbers else None for numbers in info.diffusion_numbers)
        scheduler = EDMEulerScheduler(
            sigma_min=least or 0.002,
            sigma_max=largest or 120.0,
            sigma_data=1.0,
            prediction_type="v_prediction",
            sigma_schedule="exponential",
        )
    else:
        return
    if kwargs.get("scheduler") is None:
        pipe.register_modules(scheduler=scheduler)


@contextmanager
def _rightly_named(path: Path) -> Iterator[Path]:
    """A name for the file that diffusers, which goes by endings, reads as what it is."""
    ending = ".safetensors" if weight_file_kind(path) == "safetensors" else ".ckpt"
    if (path.suffix == ".safetensors") == (ending == ".safetensors"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"{path.stem}{ending}"
        try:
            place.symlink_to(path.resolve())
        except OSError as error:
            raise CheckpointError(
                f"`{path}` is a {ending} file under another ending, and no link to it can be made here ({error}). "
                f"Rename it to `{place.name}`."
            ) from error
        yield place


@contextmanager
def _explained_holes(path: Path) -> Iterator[None]:
    """diffusers says in its own way that a weight it looked for is not there, or is none of the shape it expects."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) and "meta tensor" not in str(error):
            raise
        key = f", among them {error}" if isinstance(error, KeyError) else ""
        raise CheckpointError(
            f"`{path}`: weights of the UNet or the VAE are not in the file{key}: it is incomplete, or does not go "
            "with its configuration. Fetch it again, or pass the configuration folder of its model as `config=`."
        ) from error
    except WeightFileError:
        raise
    except (IndexError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError | ValueError) and not re.search(r"shape|size|dimension", str(error)):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"`{path}`: a weight in it does not have the shape of its kind ({first}): it is damaged, or does not go "
            "with its configuration. Fetch it again, or pass the configuration folder of its model as `config=`."
        ) from error


def _refuse_holes(loaded: object, path: Path) -> None:
    """Every weight must have come from the file or from the caller."""
    components: Mapping[str, object] = getattr(loaded, "components", {"unet": loaded})
    for name, component in components.items():
        if isinstance(component, torch.nn.Module):
            holes = [key for key, weight in component.state_dict().items() if weight.is_meta]
            if holes:
                raise CheckpointError(
                    f"`{path}`: {len(holes)} weights of the {name} are not in the file, `{holes[0]}` first: it is "
                    f"incomplete. Fetch it again, or pass a whole one as `{name}=`."
                )
