"""The fields of a request to /sdapi/v1, under the webui's own names and with its defaults.

An unknown field is an error that names it (422): nothing is dropped in silence. Fields that ask for nothing here are
listed as such in their model, so that clients which always send them are understood. null is a field's default, as in
the webui.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator


MAX_SIDE, MAX_PIXELS, MAX_STEPS, MAX_IMAGES, MAX_TEXT = 8192, 4096 * 4096, 1000, 64, 100_000
DEEPEST = 32  # levels of lists and objects in fields that may hold anything
_Picture = str  # base64 of a picture file, with or without "data:image/png;base64,"
_Seed = Annotated[int, Field(ge=-(2**31), le=2**63 - 1, description="below 0: at random")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        """The fields that say something."""
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if value is not None or name not in cls.model_fields}


class GenerationRequest(_Request):
    """What txt2img and img2img have in common."""

    @model_validator(mode="after")
    def check_free_fields(self) -> "GenerationRequest":
        """What may hold anything holds what can be written into an answer."""
        for name in ("override_settings", "script_args", "alwayson_scripts", "comments"):
            check_plain(getattr(self, name), name)
        return self

    prompt: str = Field("", max_length=MAX_TEXT)
    negative_prompt: str = Field("", max_length=MAX_TEXT)
    styles: list[str] | None = None
    seed: _Seed = -1
    subseed: _Seed = -1
    subseed_strength: float = Field(0, ge=0, le=1)
    seed_resize_from_h: int = Field(-1, le=MAX_SIDE)
    seed_resize_from_w: int = Field(-1, le=MAX_SIDE)
    sampler_name: str | None = None
    sampler_index: str | None = Field(None, description="the older name of sampler_name")
    scheduler: str | None = Field(None, description="label or name; null: the sampler's own")
    batch_size: int = Field(1, ge=1, le=MAX_IMAGES)
    n_iter: int = Field(1, ge=1, le=MAX_IMAGES)
    steps: int = Field(50, ge=1, le=MAX_STEPS)
    cfg_scale: float = 7.0
    width: int = Field(512, ge=8, le=MAX_SIDE)
    height: int = Field(512, ge=8, le=MAX_SIDE)
    restore_faces: bool | None = None
    tiling: bool | None = None
    eta: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = Field(None, ge=0, le=1)
    disable_extra_networks: bool = Field(False, description="true: tags in the prompt are left out")
    script_name: str | None = None
    script_args: list[Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    infotext: str | None = Field(None, max_length=MAX_TEXT, description="a parameters text; fields given win over it")
    send_images: bool = True
    save_images: bool = Field(False, description="into the folder that the server was started with, if it was")
    force_task_id: str | None = Field(None, max_length=200)
    clip_skip: int | None = Field(None, ge=1, le=12, description="SD.Next's name of CLIP_stop_at_last_layers")
    # what clients of several servers send along, and what means nothing here
    url: Any = Field(None, exclude=True, description="SillyTavern's: its own setting")
    auth: Any = Field(None, exclude=True, description="SillyTavern's: its own setting, which the header repeats")
    # what has no meaning in an answer without grids and comments
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    comments: dict[str, Any] | None = None


class Txt2ImgRequest(GenerationRequest):
    """POST /sdapi/v1/txt2img."""

    denoising_strength: float | None = Field(None, ge=0, le=1)
    enable_hr: bool = False
    hr_scale: float = Field(2.0, gt=0)
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = Field(0, ge=0, le=MAX_STEPS)
    hr_resize_x: int = Field(0, ge=0, le=MAX_SIDE)
    hr_resize_y: int = Field(0, ge=0, le=MAX_SIDE)
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str = Field("", max_length=MAX_TEXT)
    hr_negative_prompt: str = Field("", max_length=MAX_TEXT)
    hr_additional_modules: list[str] = Field(
        [], max_length=MAX_IMAGES, description="Forge's: empty, or its usual ones"
    )
    firstphase_width: int = Field(0, ge=0, le=MAX_SIDE)
    firstphase_height: int = Field(0, ge=0, le=MAX_SIDE)
    firstpass_image: _Picture | None = None


class Img2ImgRequest(GenerationRequest):
    """POST /sdapi/v1/img2img."""

    init_images: list[_Picture] | None = None
    resize_mode: int = Field(0, ge=0, le=3)
    denoising_strength: float = Field(0.75, ge=0, le=1)
    image_cfg_scale: float | None = Field(None, description="of models that edit by instruction, which are not here")
    mask: _Picture | None = None
    mask_blur: int | None = Field(None, ge=0, le=512)
    mask_blur_x: int = Field(4, ge=0, le=512)
    mask_blur_y: int = Field(4, ge=0, le=512)
    mask_round: bool = True
    inpainting_fill: int = Field(0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(0, ge=0, le=MAX_SIDE)
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    initial_noise_multiplier: float | None = None
    latent_mask: _Picture | None = None
    include_init_images: bool = False


class _ExtrasRequest(_Request):
    resize_mode: int = Field(0, ge=0, le=1)
    show_extras_results: bool = True
    gfpgan_visibility: float = Field(0, ge=0, le=1)
    codeformer_visibility: float = Field(0, ge=0, le=1)
    codeformer_weight: float = Field(0, ge=0, le=1)
    upscaling_resize: float = Field(2, gt=0, le=8)
    upscaling_resize_w: int = Field(512, ge=1, le=MAX_SIDE)
    upscaling_resize_h: int = Field(512, ge=1, le=MAX_SIDE)
    upscaling_crop: bool = Field(True, validation_alias=AliasChoices("upscaling_crop", "upscaling_resize_crop"))
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = Field(0, ge=0, le=1)
    upscale_first: bool = False


class ExtrasRequest(_ExtrasRequest):
    """POST /sdapi/v1/extra-single-image."""

    image: _Picture = ""


class NamedPicture(_Request):
    """One picture of a batch."""

    data: _Picture
    name: str = ""


class ExtrasBatchRequest(_ExtrasRequest):
    """POST /sdapi/v1/extra-batch-images."""

    imageList: list[NamedPicture] = Field(default_factory=list, max_length=MAX_IMAGES)


class PngInfoRequest(_Request):
    """POST /sdapi/v1/png-info."""

    image: _Picture


class DetectRequest(_Request):
    """POST /controlnet/detect."""

    controlnet_module: str = Field("none", max_length=200)
    controlnet_input_images: list[_Picture] = Field(
        [],
        max_length=MAX_IMAGES,
        validation_alias=AliasChoices("controlnet_input_images", "controlnet_images"),
    )
    controlnet_processor_res: int = 512
    controlnet_threshold_a: float = 64
    controlnet_threshold_b: float = 64
    controlnet_masks: list[_Picture] = Field([], max_length=MAX_IMAGES)
    low_vram: bool = False


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raises ValueError for numbers that are none, texts that are no Unicode, and what is nested too deeply."""
    if depth > DEEPEST:
        raise ValueError(f"`{where}` is nested more than {DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{where}` holds {value}, which is no number")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"`{where}` holds a text that is no Unicode") from error
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_plain(name, where, depth + 1)
            check_plain(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, where, depth + 1)
