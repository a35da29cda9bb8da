"""Fall back to the stock diffusers pipeline when a call uses only diffusers' arguments and plain prompts.

Its own code draws then, so the image is its image bit for bit, with any scheduler and any of its features.
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from .call_state import own_call, stock_changes_models
from .drawn import stock_drawn
from .infotext.from_call import drawn_infotexts
from .output import WebUIPipelineOutput
from .sampling.noise import generator_seeds


def diffusers_pipeline(pipe: Any) -> type:
    """The diffusers pipeline that `pipe` stands in for, for the kind of model that is loaded."""
    return pipe._stands_for[pipe.is_sdxl]


def asks_for_diffusers_own(pipe: Any, given: Mapping[str, Any]) -> bool:
    """Whether only diffusers' arguments are given, and prompts without syntax that fit one chunk.

    given: the call's arguments by name.
    """
    defaults = signature(type(pipe).__call__).parameters
    own = signature(diffusers_pipeline(pipe).__call__).parameters
    for name, value in given.items():
        default = defaults[name].default
        if name not in own and value is not None and (default is None or value != default):
            return False
    if given["clip_skip"] is not None and not pipe.is_sdxl:
        return False  # diffusers' own reads `text_encoder.text_model`, which transformers 5 no longer has
    texts = [given[name] for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")]
    flat = [t for text in texts if text is not None for t in ([text] if isinstance(text, str) else text)]
    if not all(isinstance(text, str) for text in flat):
        return False
    encoder = pipe.attached.encoder(pipe) if flat else None
    return encoder is None or all(encoder.is_plain(text) for text in flat)


def draw_as_diffusers(
    pipe: Any, given: Mapping[str, Any], deprecated: Mapping[str, Any]
) -> WebUIPipelineOutput | tuple:
    """diffusers' own call, with its own arguments out of `given`, and the texts of what it drew."""
    stock = diffusers_pipeline(pipe)
    known = signature(stock.__call__).parameters
    arguments = {name: stock_value(known[name], value) for name, value in given.items() if name in known}
    arguments["callback_on_step_end_tensor_inputs"] = list(given["callback_on_step_end_tensor_inputs"])
    seeds = generator_seeds(given["generator"], 1, pipe._execution_device)
    with own_call(pipe, changes=stock_changes_models(pipe, arguments)):
        output = stock.__call__(pipe, **arguments, **deprecated)
    if not given["return_dict"]:
        return output
    images = output.images
    seeds = seeds if len(seeds) == len(images) else seeds[:1] * len(images)
    texts = drawn_infotexts(stock_drawn(pipe, arguments, images, seeds))
    return WebUIPipelineOutput(images, getattr(output, "nsfw_content_detected", None), texts, seeds)


def argument_or_default(pipe: Any, name: str, value: Any) -> Any:
    """The argument `name` of a call, by default that of diffusers' pipeline: kinds of models differ in some."""
    return stock_value(signature(diffusers_pipeline(pipe).__call__).parameters[name], value)


def stock_value(parameter: Parameter, value: Any) -> Any:
    """None is the parameter's own default, where it has one."""
    return parameter.default if value is None and parameter.default is not Parameter.empty else value
