"""Fall back to the stock diffusers pipeline when a call uses only diffusers' arguments and static prompts.

Its own code draws then, with any scheduler and any of its features; where the prompts are plain, too, the image is its
image bit for bit. Texts that it cannot read (weights, more than 75 tokens) come to it as embeddings.
"""

from collections.abc import Mapping
from functools import cache
from inspect import Parameter, signature
from types import MethodType
from typing import Any

from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from PIL import Image

from ..loaders.lora.kept import release_networks
from .call_state import encoding_alone, own_call, stock_changes_models, take_call_state
from .checks import call_size
from .drawn import stock_drawn, stock_noise
from .infotext.from_call import drawn_infotexts
from .output import WebUIPipelineOutput
from .sampling.noise import generator_seeds
from .stock_control import is_union
from .stock_texts import StockTexts, stock_embeds, stock_texts


# What diffusers calls its pipelines with a ControlNet: for one that begins with noise or an image, and with a mask.
_CONTROL_PIPELINES: dict[type, tuple[type, type | None]] = {
    StableDiffusionPipeline: (StableDiffusionControlNetPipeline, None),
    StableDiffusionXLPipeline: (StableDiffusionXLControlNetPipeline, None),
    StableDiffusionImg2ImgPipeline: (
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
    ),
    StableDiffusionXLImg2ImgPipeline: (
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetInpaintPipeline,
    ),
}
# The same for a mask around which diffusers crops (`padding_mask_crop`); masks of other calls are the webui's.
_INPAINT_PIPELINES: dict[type, type] = {
    StableDiffusionImg2ImgPipeline: StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline: StableDiffusionXLInpaintPipeline,
}
_OWN_SETTINGS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
_UNION_PIPELINES: dict[type, type] = {
    StableDiffusionXLControlNetPipeline: StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline: StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline: StableDiffusionXLControlNetUnionInpaintPipeline,
}


@cache
def call_parameters(kind: type) -> Mapping[str, Parameter]:
    """The parameters of a pipeline's call."""
    return signature(kind.__call__).parameters


def diffusers_pipeline(pipe: Any) -> type:
    """The diffusers pipeline that `pipe` stands in for, for the kind of model that is loaded."""
    return pipe._stands_for[pipe.is_sdxl]


def stock_pipeline(pipe: Any, given: Mapping[str, Any]) -> type:
    """The diffusers pipeline that a call is for: one with a ControlNet where there is a control image, one for
    inpainting where `padding_mask_crop` says that diffusers' is meant."""
    controlled = given["control_image"] is not None or ("strength" not in given and given["image"] is not None)
    masked = given.get("mask_image") is not None
    if controlled and pipe.controlnet is not None:
        return _with_control(pipe, masked=masked)
    stock = diffusers_pipeline(pipe)
    return _INPAINT_PIPELINES[stock] if masked and given.get("padding_mask_crop") is not None else stock


def callback_tensors(pipe: Any) -> list[str]:
    """What a callback may be shown: with the component `controlnet` also what diffusers' pipelines for one show."""
    stock = diffusers_pipeline(pipe) if pipe.controlnet is None else _with_control(pipe, masked=False)
    return stock._callback_tensor_inputs


def _with_control(pipe: Any, *, masked: bool) -> type:
    plain, inpaint = _CONTROL_PIPELINES[diffusers_pipeline(pipe)]
    found = inpaint if masked and inpaint is not None else plain
    union = is_union(pipe.controlnet) or isinstance(pipe.controlnet, MultiControlNetUnionModel)
    return _UNION_PIPELINES.get(found, found) if union else found


def stock_control_default(pipe: Any, given: Mapping[str, Any]) -> float:
    """The `controlnet_conditioning_scale` of diffusers' own pipeline for the call: they differ in it."""
    return call_parameters(stock_pipeline(pipe, given))["controlnet_conditioning_scale"].default


def stock_call(pipe: Any, given: Mapping[str, Any]) -> StockTexts | None:
    """Whether diffusers' own pipeline draws a call: only its arguments are given, and texts that are one encoding
    each. Says how it gets the texts; None where our passes draw.

    given: the call's arguments by name.
    """
    defaults, own = call_parameters(type(pipe)), {*call_parameters(stock_pipeline(pipe, given))}
    if "controlnet_conditioning_scale" in own:
        own.add("control_image")
    for name, value in given.items():
        if name not in own and value is not None:
            default = defaults[name].default
            if default is None or value != default:
                return None
    return stock_texts(pipe, given)


def draw_as_diffusers(
    pipe: Any, given: Mapping[str, Any], texts: StockTexts, deprecated: Mapping[str, Any]
) -> WebUIPipelineOutput | tuple:
    """diffusers' own call, with its own arguments out of `given`, and the texts of what it drew."""
    stock, written = stock_pipeline(pipe, given), given
    known = call_parameters(stock)
    other = stock is not diffusers_pipeline(pipe)
    if other:
        given = _other_arguments(pipe, given, known)
    noise = stock_noise(pipe, given)
    seeds = generator_seeds(noise.generator, 1, noise.device)
    embeddings: tuple[str, ...] = ()
    scheduler = pipe.scheduler  # others may set another one since
    with own_call(pipe, changes=lambda: stock_changes_models(pipe, given), scheduler=scheduler):
        release_networks(pipe)
        if texts.encoder is not None:
            embeds, found = stock_embeds(pipe, given, texts.encoder)
            given, embeddings = {**given, **embeds}, found.embeddings
        arguments = {name: stock_value(known[name], value) for name, value in given.items() if name in known}
        shown = given["callback_on_step_end_tensor_inputs"]
        arguments["callback_on_step_end_tensor_inputs"] = [n for n in shown if n in stock._callback_tensor_inputs]
        if arguments.get("padding_mask_crop") is not None:
            arguments |= _area_size(pipe, arguments)
        drawing = _other_pipeline(pipe, stock) if other else pipe
        output = stock.__call__(drawing, **arguments, **deprecated)
        if other:
            take_call_state(drawing, pipe)
    if not given["return_dict"]:
        return output
    images = output.images
    seeds = seeds if len(seeds) == len(images) else seeds[:1] * len(images)
    arguments |= {"scheduler": scheduler, **{name: written[name] for name in ("prompt", "negative_prompt")}}
    texts_drawn = drawn_infotexts(stock_drawn(pipe, arguments, images, noise, seeds, embeddings))
    return WebUIPipelineOutput(images, getattr(output, "nsfw_content_detected", None), texts_drawn, seeds)


def _other_pipeline(pipe: Any, kind: type) -> Any:
    """A diffusers pipeline of this kind with the components of `pipe`: its methods are for ControlNets, or masks."""
    own = {
        "requires_safety_checker": False,
        "add_watermarker": False,
        **{name: pipe.config[name] for name in _OWN_SETTINGS if name in pipe.config},
    }
    names = [name for name in signature(kind.__init__).parameters if name != "self"]
    made = kind(**{name: own[name] if name in own else getattr(pipe, name) for name in names})
    made.encode_prompt = MethodType(encoding_alone(kind.encode_prompt), made)  # type: ignore[attr-defined]
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    own_processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
    if pipe.image_processor.config != own_processor.config:  # the user's
        made.image_processor = pipe.image_processor
    return made


def _area_size(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, int]:
    """`width` and `height` that diffusers draws an area around a mask at: by default the model's own, and with a
    ControlNet the image's."""
    width, height = arguments["width"], arguments["height"]
    image = arguments["image"]
    if "control_image" in arguments and isinstance(image, Image.Image):
        width, height = (given or side // 8 * 8 for given, side in zip((width, height), image.size))
    return dict(zip(("width", "height"), call_size(pipe, width, height, None), strict=True))


def _other_arguments(pipe: Any, given: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The call's arguments as that diffusers pipeline names them. A wish to stop is handed on after a step."""
    arguments = dict(given)
    if "control_image" not in known:
        arguments["image"] = given["image"] if given["control_image"] is None else given["control_image"]
    elif "strength" not in known:  # of union networks: `control_image` is its only name
        arguments["control_image"] = given["image"] if given["control_image"] is None else given["control_image"]
    callback = given["callback_on_step_end"]

    def after_step(inner: Any, i: int, t: Any, tensors: dict) -> dict:
        returned = {} if callback is None else callback(inner, i, t, tensors)
        inner._interrupt = inner._interrupt or pipe._interrupt
        return returned or {}

    if not isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        arguments["callback_on_step_end"] = after_step
    return arguments


def argument_or_default(pipe: Any, name: str, given: Mapping[str, Any]) -> Any:
    """The argument `name` of a call, by default that of the diffusers pipeline it is for: they differ in some."""
    if given[name] is not None:
        return given[name]
    return call_parameters(stock_pipeline(pipe, given))[name].default


def stock_value(parameter: Parameter, value: Any) -> Any:
    """None is the parameter's own default, where it has one."""
    return parameter.default if value is None and parameter.default is not Parameter.empty else value
