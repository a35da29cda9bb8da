"""ControlNets by diffusers' arguments: `control_image`, `controlnet_conditioning_scale`, `guess_mode`, ..."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from diffusers import ControlNetModel, ControlNetUnionModel, MultiControlNetModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import Tensor

from ..loaders.controlnet.load import check_control_base
from .control.guidance import ActiveControl, PassControl
from .control.weights import guess_mode_scales
from .images.init_image import pictures_to_start_from


# What the component `controlnet` may be given as.
ControlNets = (
    ControlNetModel
    | ControlNetUnionModel
    | MultiControlNetModel
    | MultiControlNetUnionModel
    | list[ControlNetModel]
    | tuple[ControlNetModel]
    | list[ControlNetUnionModel]
    | tuple[ControlNetUnionModel]
)
# diffusers' numbers for ControlNets, with their defaults; None where kinds of pipelines differ.
STOCK_CONTROL_NUMBERS = {
    "controlnet_conditioning_scale": None,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "guess_mode": False,
    "control_mode": None,
}


def one_component(controlnet: Any) -> Any:
    """The component `controlnet` as diffusers has it: several networks are one MultiControlNetModel."""
    if not isinstance(controlnet, (list, tuple)):
        return controlnet
    kinds = {is_union(network) for network in controlnet}
    if len(kinds) > 1:
        raise ValueError(
            "`controlnet` lists union ControlNets beside others, which diffusers cannot hold as one component. Give "
            "one kind, and make the others known with `pipe.add_controlnet`."
        )
    return (MultiControlNetUnionModel if kinds == {True} else MultiControlNetModel)(list(controlnet))


def is_union(network: Any) -> bool:
    """Whether it is one network for many tasks, compiled or not."""
    return isinstance(getattr(network, "_orig_mod", network), ControlNetUnionModel)


def component_networks(component: Any) -> list[Any]:
    """The networks in the component `controlnet`, which may be one or several."""
    if component is None:
        return []
    return list(component.nets) if hasattr(component, "nets") else [component]


def stock_networks(pipe: Any) -> list[Any]:
    """The networks that a control image is for. Raises ValueError where there is none."""
    networks = component_networks(pipe.controlnet)
    if not networks:
        raise ValueError(
            "There is a `control_image`, but the pipeline has no ControlNet. Load it with `controlnet=`, or give one "
            "to it: `pipe.register_modules(controlnet=load_controlnet(path))`."
        )
    return networks


def stock_control_image(given: Mapping[str, Any]) -> Any:
    """The control image of a call with diffusers' arguments; in txt2img `image` means it too."""
    image, other = given["control_image"], None if "strength" in given else given["image"]
    if image is not None and other is not None:
        raise ValueError("`control_image` and `image` are both given: pass one of them, in txt2img they are the same.")
    return other if image is None else image


def stock_controls(
    pipe: Any, given: Mapping[str, Any], size: tuple[int, int], count: int, init: Any = None
) -> PassControl:
    """ControlNets in a pass at `size` (width, height) over `count` images, as diffusers means its arguments.

    init: of img2img, an InitRequest. Where it draws an area alone, that is cut out of control images too.
    """
    networks = stock_networks(pipe)
    several = hasattr(pipe.controlnet, "nets")
    images = _images_by_network(stock_control_image(given), len(networks), several=several)
    tasks = _stock_tasks(given["control_mode"], networks, several=several)
    if not several and len(tasks[0]) > 1:
        return PassControl([_many_tasks(pipe, given, images[0], tasks[0], size, count, init)])
    names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    lists = {name: _by_network(name, given[name], len(networks)) for name in names}
    active = []
    for i, network in enumerate(networks):
        hints = [_stock_hint(pipe, image, size, init) for image in _images_by_task(images[i], tasks[i])]
        start, end = lists["control_guidance_start"][i], lists["control_guidance_end"][i]
        if not 0 <= start <= end <= 1:
            raise ValueError(
                f"`control_guidance_start` is {start} and `control_guidance_end` {end}: they are shares of the steps "
                "from 0 to 1, the start before the end."
            )
        pools = bool(network.config.get("global_pool_conditions", False))
        factor = float(lists["controlnet_conditioning_scale"][i])
        soft = given["guess_mode"] and not pools
        active.append(
            ActiveControl(
                model=network,
                hints=[_hint_by_image(hint, count, given["num_images_per_prompt"]) for hint in hints],
                scales=partial(guess_mode_scales, factor) if soft else partial(_same_scale, factor),
                start=start,
                end=end,
                whole_steps=True,
                conds_only=bool(given["guess_mode"]) or pools,
                tasks=tasks[i],
            )
        )
    return PassControl(active)


def _many_tasks(
    pipe: Any,
    given: Mapping[str, Any],
    image: Any,
    tasks: Sequence[int],
    size: tuple[int, int],
    count: int,
    init: Any,
) -> ActiveControl:
    """One union network at several tasks, which it weighs itself."""
    for name in ("control_guidance_start", "control_guidance_end"):
        default = STOCK_CONTROL_NUMBERS[name]
        if any(value != default for value in _by_network(name, given[name], len(tasks))):
            raise ValueError(
                f"`{name}` is {given[name]}, and `control_mode` asks one union ControlNet for {len(tasks)} tasks, "
                "which are for all steps here. Leave it out."
            )
    hints = [_stock_hint(pipe, each, size, init) for each in _images_by_task(image, tasks)]
    scales = _by_network("controlnet_conditioning_scale", given["controlnet_conditioning_scale"], len(tasks))
    return ActiveControl(
        model=component_networks(pipe.controlnet)[0],
        hints=[_hint_by_image(hint, count, given["num_images_per_prompt"]) for hint in hints],
        scales=partial(guess_mode_scales if given["guess_mode"] else _same_scale, 1.0),
        whole_steps=True,
        conds_only=bool(given["guess_mode"]),
        tasks=tasks,
        task_scales=[float(scale) for scale in scales],
    )


def _same_scale(scale: float, count: int) -> list[float]:
    return [scale] * count


def _images_by_network(image: Any, count: int, *, several: bool) -> list[Any]:
    """The control image of each network: a list of as many where there are several, as in diffusers."""
    if not several:
        return [image]
    if not isinstance(image, (list, tuple)):
        raise ValueError(f"`control_image` must be a list: one image for each of the {count} ControlNets.")
    if image and isinstance(image[0], (list, tuple)):  # by prompt, then by network
        image = [list(each) for each in zip(*image, strict=True)]
    if len(image) != count:
        raise ValueError(f"`control_image` has {len(image)} entries for {count} ControlNets: list one for each.")
    return list(image)


def _images_by_task(image: Any, tasks: Sequence[int]) -> list[Any]:
    """The control image of each task of a union network; the one of any other network."""
    if not tasks:
        return [image]
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if len(images) != len(tasks):
        raise ValueError(
            f"`control_image` has {len(images)} entries for {len(tasks)} tasks in `control_mode`: list one for each."
        )
    return images


def _by_network(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"`{name}` has {len(values)} entries for {count} ControlNets: give one number, or one each.")
    return values


def _stock_tasks(control_mode: Any, networks: Sequence[Any], *, several: bool) -> list[tuple[int, ...]]:
    """The tasks of each union network, by the argument `control_mode`; none for other networks."""
    if not any(map(is_union, networks)):
        if control_mode is not None:
            raise ValueError("`control_mode` is for union ControlNets, and the pipeline has none: leave it out.")
        return [()] * len(networks)
    tasks = []
    for asked, network in zip(
        _by_network("control_mode", control_mode, len(networks)) if several else [control_mode], networks, strict=True
    ):
        count = network.config.num_control_type
        tasks.append(tuple(asked) if isinstance(asked, (list, tuple)) else (asked,))
        if not tasks[-1] or not all(isinstance(task, int) and 0 <= task < count for task in tasks[-1]):
            raise ValueError(f"`control_mode` is {asked!r}: it is the number of a task, from 0 to {count - 1}.")
    return tasks


def _stock_hint(pipe: Any, image: Any, size: tuple[int, int], init: Any) -> Tensor:
    """(n, 3, h, w) in 0..1, as diffusers' pipelines prepare control images."""
    processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor, do_convert_rgb=True, do_normalize=False)
    cut: dict[str, Any] = {}
    if init is not None and init.images.area is not None:
        image = pictures_to_start_from(image, "control_image")
        whole = init.images.originals[0].size
        for picture in image:
            if picture.size != whole:
                raise ValueError(
                    f"`control_image` is {picture.width}x{picture.height} and `image` {whole[0]}x{whole[1]}: the area "
                    "around the mask is cut out of both, so they must have one size. Resize the control image."
                )
        cut = {"crops_coords": init.images.area, "resize_mode": "fill"}
    return processor.preprocess(image, height=size[1], width=size[0], **cut).float()


def _hint_by_image(hint: Tensor, count: int, each: int) -> Tensor:
    """(1 or count, 3, h, w): one for all, or each prompt's for its `each` images."""
    if len(hint) == 1 or len(hint) == count:
        return hint
    if len(hint) * each != count:
        raise ValueError(
            f"`control_image` has {len(hint)} images for {count // each} prompts: give one for all, or one a prompt."
        )
    return hint.repeat_interleave(each, dim=0)


def check_networks(unet: Any, networks: Sequence[Any]) -> None:
    """Refuse networks that are for another base model than the UNet."""
    for network in networks:
        check_control_base(network, unet, str(network.config.get("_name_or_path") or "controlnet"))
