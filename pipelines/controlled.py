"""ControlNets of a call: whose they are, what they are shown, and how they act in each pass.

Two ways to ask, each with its own meaning: diffusers' arguments (`control_image`, `guess_mode`, ...) and the units of
the webui's extension (`control_units`). Everything is looked up, read and checked before any work.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..loaders.model_lock import model_gate
from ..loaders.utils import unknown_choice
from .control.guidance import ActiveControl, ControlGuidance, KeptImage, KeptRegion, PassControl
from .control.units import ControlUnit, read_units
from .control.weights import residual_scales, unit_rows
from .drop_in import stock_control_default
from .images.fit import flatten_picture
from .images.hints.prepare import (
    ControlImage,
    InitHint,
    control_images,
    drawn_cells,
    hint_tensor,
    lay_kept_over,
    picture_to_show,
    region_tensor,
)
from .images.init_image import given_images, given_mask
from .images.masks import prepare_mask
from .images.vae import encode_pictures
from .request import Pass, Request
from .sampling.noise import GeneratorNoise, SeededNoise
from .stock_control import (
    STOCK_CONTROL_NUMBERS,
    check_networks,
    component_networks,
    is_union,
    stock_control_image,
    stock_controls,
    stock_networks,
)


# Tasks of a union network by their number, and the modules that are for them.
UNION_TASKS = ("openpose", "depth", "softedge", "lineart", "normal", "segmentation", "tile", "inpaint")
_UNION_MODULES = {
    "openpose": 0,
    "depth": 1,
    "softedge": 2,
    "scribble": 2,
    "canny": 3,
    "lineart": 3,
    "mlsd": 3,
    "normal": 4,
    "seg": 5,
    "tile": 6,
    "inpaint": 7,
}


def pass_guidance(
    vae: Any, control: PassControl, steps: int, noise: SeededNoise | GeneratorNoise, tries: int | None = None
) -> ControlGuidance | None:
    """What the denoiser of a pass of `steps` steps asks; None without ControlNets.

    noise: the pass's own, on the device of its latents; its generator draws that of the `vae` for images that are
    kept. tries: see ControlGuidance.
    """
    if not control.active and not control.kept:
        return None
    device, generator = noise.device, noise.global_generator()
    active = [
        replace(
            one,
            hints=[hint.to(device, one.model.dtype) for hint in one.hints],
            dtype=one.model.dtype,
            region=None if one.region is None else one.region.to(device),
        )
        for one in control.active
    ]

    def encode(image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image[..., :3])).float().permute(2, 0, 1)[None]
        return encode_pictures(vae, (pixels / 255.0 * 2.0 - 1.0).to(device), generator)

    kept = [KeptImage(partial(encode, one.image), drawn_cells(one.image), one.strength) for one in control.kept]
    return ControlGuidance(active, steps, tries=tries, kept=kept)


def encoding_noise(pipe: Any, plan: Pass, generator: torch.Generator | None) -> torch.Generator | None:
    """The generator that encodes images after a pass: moved on by what inpaint_only drew from it in the pass."""
    shape = (1, pipe.vae.config.latent_channels, plan.height // 8, plan.width // 8)
    for _ in plan.control.kept if generator is not None else ():
        torch.randn(shape, generator=generator, device=generator.device)
    return generator


@contextmanager
def networks_at_device(pipe: Any, control: PassControl) -> Iterator[None]:
    """Inside the block the networks of a pass are where it is run. Those that an offloading hook moves are left to it.

    A pipeline that offloads has them out of the way again afterwards, as diffusers' own before the VAE decodes.
    """
    if not control.active:
        yield
        return
    device, moved = pipe._execution_device, []
    for model in dict.fromkeys(one.model for one in control.active):
        if not any(hasattr(part, "_hf_hook") for part in model.modules()):
            with model_gate().part_lock(model):  # another thread may be moving it: then until all of it is there
                moved += [] if model.device == device else [model.to(device)]
    try:
        yield
    finally:
        if any(hasattr(model, "_hf_hook") for model in pipe.components.values()):
            for model in moved:
                model.to("cpu")
            for hook in getattr(pipe, "_all_hooks", ()):
                if hook.model is pipe.controlnet:
                    hook.offload()


def with_controls(pipe: Any, given: Mapping[str, Any], request: Request) -> Request:
    """The request with the ControlNets that the call asks for, in each of its passes.

    Raises ValueError where both ways to ask are used, or numbers are given without a control image.
    """
    first, second = request.first, request.second
    if given["control_units"]:
        if stock_control_image(given) is not None:
            raise ValueError("`control_units` and `control_image` are both given: ask for ControlNets in one way.")
        return _with_units(pipe, given, request)
    scale = given["controlnet_conditioning_scale"]
    if stock_control_image(given) is None:
        asked = [name for name, default in STOCK_CONTROL_NUMBERS.items() if given[name] not in (None, default)]
        if asked:
            raise ValueError(f"`{asked[0]}` is given without a `control_image`: pass the image, or leave it out.")
        return request
    check_networks(pipe.unet, stock_networks(pipe))
    numbers = {
        **given,
        "controlnet_conditioning_scale": stock_control_default(pipe, given) if scale is None else scale,
    }

    def controlled(plan: Pass) -> Pass:
        control = stock_controls(pipe, numbers, (plan.width, plan.height), plan.batch_size, request.init)
        return replace(plan, control=control)

    return replace(request, first=controlled(first), second=second and controlled(second))


def _with_units(pipe: Any, given: Mapping[str, Any], request: Request) -> Request:
    first, second = request.first, request.second
    size = first.width, first.height
    controls = unit_controls(pipe, given, request.options, _init_hint(given, request), size)
    if controls is None:
        return request
    rows = [0] * first.batch_size if request.init is None else request.init.rows
    hires = second is not None
    # The extension tells passes by their heights alone, and takes both for the second where these are equal.
    same = hires and first.height == second.height
    control = controls.in_pass(size, rows, second=same, hires=hires, marked=True)
    request = replace(request, units=controls.units, first=replace(first, control=control))
    if hires:
        size, marked = (second.width, second.height), bool(request.options["hires_fix_use_firstpass_conds"])
        control = controls.in_pass(size, rows, second=True, hires=True, marked=marked)
        request = replace(request, second=replace(second, control=control))
    shown = zip(controls.units, control.images, strict=True)
    return replace(request, overlays=[image for unit, image in shown if unit.module_name == "inpaint_only"])


def shown_controls(request: Request) -> list[Image.Image] | None:
    """What the units were shown: of each the image of the second pass, where there is one, then of the first. None
    without units."""
    passes = [one.control.images for one in (request.second, request.first) if one is not None]
    return [picture_to_show(image) for of_unit in zip(*passes, strict=True) for image in of_unit] or None


def _init_hint(given: Mapping[str, Any], request: Request) -> InitHint | None:
    """What units see of an img2img job. Its images are on white, whatever the job's own background is."""
    if request.init is None:
        return None
    asked, found = request.init.arguments, request.init.images
    images = [flatten_picture(image) for image in given_images(given["image"], channels=4).pictures]
    mask = given_mask(given["mask_image"])
    if mask is None or (asked.inpaint_area == "masked" and found.area is None):
        return InitHint(images, resize_mode=asked.resize_mode)
    if images and mask.size != images[0].size:
        mask = mask.resize(images[0].size, Image.Resampling.LANCZOS)
    mask = prepare_mask(mask, invert=asked.invert_mask, blur=asked.blur, soft=asked.soft_mask)
    return InitHint(images, mask, found.area, asked.resize_mode)


# --- units of the extension


@dataclass(frozen=True)
class UnitControls:
    """The units of a call, with the images and networks they name."""

    units: Sequence[ControlUnit]
    images: Sequence[Sequence[ControlImage]]
    models: Sequence[Any]
    cell: int  # pixels by which sides are halved in the UNet without a rest
    each: bool = False  # each unit is for one image of the batch

    def in_pass(
        self, size: tuple[int, int], rows: Sequence[int], *, second: bool, hires: bool, marked: bool
    ) -> PassControl:
        """What acts in a pass at `size` (width, height).

        rows: which of several init images each image of the batch is drawn over. second: the extension takes it for
        the second pass. hires: there are two. marked: rows of the negative prompt are told apart.
        """
        active, kept, shown = [], [], []
        for number, (unit, images, model) in enumerate(zip(self.units, self.images, self.models, strict=True)):
            fitted = [image.fitted(size) for image in images]
            shown.append(fitted[0])
            if unit.module_name == "inpaint_only":
                kept.append(KeptRegion(fitted[0], min(max(unit.weight, 0.0), 1.0)))
            if hires and unit.hr_option == ("Low res only" if second else "High res only"):
                continue
            if unit.weight == 0 and unit.advanced_weighting is None:
                continue
            hint = hint_tensor(fitted)
            active.append(
                ActiveControl(
                    model=model,
                    hints=[hint if len(hint) == 1 else hint[list(rows)]],
                    scales=partial(residual_scales, unit, second_pass=second),
                    start=unit.guidance_start,
                    end=unit.guidance_end,
                    uncond=0.0 if marked and self._leaves_uncond(unit, model) else 1.0,
                    region=None
                    if unit.effective_region_mask is None
                    else region_tensor(unit.effective_region_mask, unit.place),
                    pooled=_pools(unit, model) and not model.config.get("global_pool_conditions", False),
                    rows=partial(unit_rows, number, len(self.units), marked=marked) if self.each else None,
                    tasks=_union_task(unit, model),
                )
            )
        return PassControl(active, kept, shown, hooked=any(side % self.cell for side in size))

    def _leaves_uncond(self, unit: ControlUnit, model: Any) -> bool:
        return unit.control_mode == "ControlNet is more important" or _pools(unit, model)


def unit_controls(
    pipe: Any, given: Mapping[str, Any], options: Mapping[str, Any], init: InitHint | None, size: tuple[int, int]
) -> UnitControls | None:
    """The units of `control_units`; None where none is enabled. size: (width, height) of the first pass.

    Raises ValueError for what the units name and there is not, and WeightFileError for a network of another base.
    """
    units = read_units(given["control_units"])
    if not units:
        return None
    models = [_unit_model(pipe, unit) for unit in units]
    check_networks(pipe.unet, models)
    if init is not None and init.mask is not None:  # in an inpainting job the extension takes the one for the other
        units = [replace(unit, module="inpaint") if unit.module_name == "inpaint_only" else unit for unit in units]
    ignore = bool(options["controlnet_ignore_noninpaint_mask"])
    images = [control_images(unit, init, size, ignore_mask=ignore) for unit in units]
    for unit, model in zip(units, models, strict=True):
        _union_task(unit, model)
        if unit.advanced_weighting is not None:
            residual_scales(unit, len(model.controlnet_down_blocks) + 1)
    units = [
        replace(unit, model=model.config.get("_name_or_path") or None) if unit.model is None else unit
        for unit, model in zip(units, models, strict=True)
    ]
    cell = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    return UnitControls(units, images, models, cell, bool(options["each_unit_for_each_image"]))


def _unit_model(pipe: Any, unit: ControlUnit) -> Any:
    """The network that a unit names: a component, or one made known by `add_controlnet` or a folder."""
    where = f"`control_units[{unit.place}]`"
    components = component_networks(pipe.controlnet)
    if unit.model is None:
        if unit.place < len(components):
            return components[unit.place]
        have = f"has {len(components)}" if components else "has none"
        raise ValueError(
            f"{where} names no `model`, and the pipeline's component `controlnet` {have}, so there is none at its "
            "place. Name one made known with `pipe.add_controlnet(path)`, or load the pipeline with `controlnet=`."
        )
    if unit.model == "None":
        raise ValueError(f"{where}: `model` is 'None', and a unit does nothing without a network: name one.")
    name = unit.model if isinstance(unit.model, str) else str(unit.model)  # a NameFromText stays one: it is no path
    return pipe.attached.controlnet(name, components, pipe.unet)


def _pools(unit: ControlUnit, model: Any) -> bool:
    """Whether only the means of its residuals count: networks that learned to shuffle."""
    named = "shuffle" in str(unit.model or model.config.get("_name_or_path", "")).lower()
    is_sdxl = model.config.get("addition_embed_type") is not None
    return bool(model.config.get("global_pool_conditions", False)) or (named and not is_sdxl)


def _union_task(unit: ControlUnit, model: Any) -> tuple[int, ...]:
    """Which of its tasks a union network does for a unit; none for other networks."""
    if not is_union(model):
        return ()
    where, count, asked = f"`control_units[{unit.place}]`", model.config.num_control_type, unit.union_control_type
    if isinstance(asked, int) and 0 <= asked < count:
        return (asked,)
    if asked is not None:
        if asked not in UNION_TASKS[:count]:
            raise ValueError(unknown_choice(f"{where}: `union_control_type`:", asked, UNION_TASKS[:count]))
        return (UNION_TASKS.index(asked),)
    found = [task for name, task in _UNION_MODULES.items() if unit.module_name.startswith(name) and task < count]
    if not found:
        raise ValueError(
            f"{where}: the ControlNet is one for many tasks, and the module {unit.module!r} does not say which. Add "
            f"`union_control_type`: {', '.join(map(repr, UNION_TASKS[:count]))}."
        )
    return (found[0],)


def control_edits(overlays: Sequence[np.ndarray]) -> list[Any]:
    """What is done to finished images: each overlay laid over them."""

    def laid_over(image: np.ndarray, images: list[Image.Image]) -> list[Image.Image]:
        return lay_kept_over(images, image)

    return [partial(laid_over, image) for image in overlays]
