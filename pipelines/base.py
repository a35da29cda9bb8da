"""What the drawing pipelines share beside their stories."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from PIL import Image

from ..loaders.checkpoint.load import load_single_file
from ..loaders.checkpoint.vae import load_vae
from ..loaders.lora.library import NetworkLibrary
from ..loaders.lora.plan import NetworkReport
from .bundle.saving import SavedWithCode
from .call_state import CallState, encoding_alone
from .components import component_names
from .drop_in import callback_tensors, diffusers_pipeline
from .from_text import pipeline_from_text
from .images.vae import needs_float32
from .infotext.files import save_pictures
from .lora_methods import LoraMethods
from .output import WebUIPipelineOutput
from .registry import Attachments
from .sampling.denoiser import Guidance
from .stock_control import one_component


class OfKind:
    """An attribute of diffusers' pipeline for the kind of model that is loaded: its methods keep their signatures."""

    def __init__(self, name: str, around: Callable[[Any], Any] = lambda found: found):
        self.name, self.around = name, around

    def __get__(self, pipe: Any, owner: type) -> Any:
        found = getattr(owner._stands_for[0] if pipe is None else diffusers_pipeline(pipe), self.name)  # type: ignore[attr-defined]
        found = self.around(found)
        return MethodType(found, pipe) if isinstance(found, FunctionType) and pipe is not None else found


class CallbackTensors:
    """`_callback_tensor_inputs` of diffusers' pipeline for the kind of model that is loaded."""

    def __get__(self, pipe: Any, owner: type) -> list[str]:
        return owner._stands_for[0]._callback_tensor_inputs if pipe is None else callback_tensors(pipe)  # type: ignore[attr-defined]


class WebUIMixin(CallState, LoraMethods, SavedWithCode, StableDiffusionXLLoraLoaderMixin):
    """Goes before diffusers' pipeline among the bases. It is no pipeline itself: diffusers takes a file with one only.

    diffusers' methods for adapters are SDXL's, which do on one text encoder what those for one do; its `encode_prompt`
    asks for them by their class.

    A class names in `_stands_for` diffusers' pipelines for models with one text encoder and with two, and calls
    `_register_own` at the end of its `__init__`.
    """

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->image_encoder->unet->refiner->vae->upscaler->face_detector->face_restorer"
    )
    _optional_components = [
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "text_encoder",  # SDXL's refiner has the second one alone
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "refiner",
        "upscaler",
        "face_restorer",
        "face_detector",
        "face_parser",
        "controlnet",
    ]
    _callback_tensor_inputs = CallbackTensors()
    encode_prompt = OfKind("encode_prompt", encoding_alone)
    check_inputs = OfKind("check_inputs")
    _stands_for: tuple[type, type] = (StableDiffusionPipeline, StableDiffusionXLPipeline)

    def _register_own(self, *, force_zeros_for_empty_prompt: bool, controlnet: Any, **components: Any) -> None:
        """Register the components that StableDiffusionPipeline has not, and begin with nothing attached."""
        self.register_modules(**components, controlnet=one_component(controlnet))
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.default_sample_size = getattr(getattr(self.unet, "config", None), "sample_size", None) or 128
        self.watermark = None
        self.attached = Attachments()
        self._network_reports: list[NetworkReport] = []
        self._detail_reports: list[str] = []

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is an SDXL: it has a second text encoder, or a UNet that takes sizes."""
        added = getattr(getattr(self.unet, "config", None), "addition_embed_type", None)
        return self.text_encoder_2 is not None or added == "text_time"

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as diffusers' own pipeline takes them: what it has not is left out where it is None."""
        names, own = component_names(type(self)), component_names(diffusers_pipeline(self))
        parts = {name: getattr(self, name) for name in self.config if name in names}
        return {name: part for name, part in parts.items() if part is not None or name in own}

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Any:
        """A checkpoint file alone, offline: which base it is and its configuration are told by its keys.

        Arguments are diffusers'; `prediction_type` settles an SD 2.x file whose name and metadata do not.
        """
        pipe = load_single_file(super().from_single_file, pretrained_model_link_or_path, kwargs)
        pipe.register_to_config(_name_or_path=str(pretrained_model_link_or_path))  # infotexts name and hash the file
        return pipe

    @classmethod
    def from_infotext(cls, text: str | Mapping[str, Any], library: Any, **kwargs: Any) -> Any:
        """The checkpoint, VAE, networks, embeddings, upscaler, refiner and control models that an image's text (or
        its fields) names, found in a library by name and hash, each known by the name that it has in the text.

        library: a WebUIFolder. kwargs: of `from_single_file`. Raises ValueError that lists all that is missing before
        anything is loaded.

        >>> pipe = WebUITxt2ImgPipeline.from_infotext(text, WebUIFolder("~/stable-diffusion-webui"))
        >>> image = pipe(**call_arguments(parse_infotext(text))).images[0]
        """
        return pipeline_from_text(cls, text, library, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """diffusers' own; from another pipeline of this pack also what is attached to it: networks, embeddings."""
        pipe = super().from_pipe(pipeline, **kwargs)
        pipe.attached = getattr(pipeline, "attached", pipe.attached)
        return pipe

    def load_vae(self, path: str | Path) -> None:
        """Put another VAE in place of the model's, from a file of any kind or a folder, with the model's scaling."""
        self.register_modules(vae=load_vae(path, like=self.vae).to(self.vae.device))

    # --- what prompts and arguments call by name

    @property
    def networks(self) -> NetworkLibrary:
        """The network files that are known by name."""
        return self.attached.library

    def add_embedding(self, path: str | Path, name: str | None = None) -> str:
        """Make a textual inversion known to prompts, by `name` or its own. Returns it."""
        return self.attached.add_embedding(path, name)

    def add_controlnet(self, model: Any, name: str | None = None) -> str:
        """Make a ControlNet (a model, or the path of its file or folder) known to `control_units` by `name` or its
        own. Returns it."""
        return self.attached.add_controlnet(model, name, self.unet)

    @property
    def controlnet_folder(self) -> Path | None:
        """Where ControlNets are looked for by name, with the folders in it."""
        return self.attached.controlnet_folder

    @controlnet_folder.setter
    def controlnet_folder(self, folder: str | Path | None) -> None:
        self.attached.controlnet_folder = None if folder is None else Path(folder)

    def add_checkpoint(self, model: Any, name: str | None = None) -> str:
        """Make a checkpoint known to `hires_model` and `ad_checkpoint`, by `name` or its file's: a pipeline, its
        components, or the path of a file or folder. Returns the name."""
        return self.attached.models.add("checkpoint", model, name)

    def add_vae(self, vae: Any, name: str | None = None) -> str:
        """Make a VAE known to `ad_vae`, by `name` or its file's: a model, or the path of a file or folder."""
        return self.attached.models.add("VAE", vae, name)

    @property
    def detector_folder(self) -> Path | None:
        """Where `ad_model` looks for `.onnx` files by name, with the folders in it."""
        return self.attached.detectors.folder

    @detector_folder.setter
    def detector_folder(self, folder: str | Path | None) -> None:
        self.attached.detectors.folder = None if folder is None else Path(folder).expanduser()

    @property
    def face_detector_fallback(self) -> str | None:
        """What stands in for the webui's face models that are not there: "mtcnn" or "retinaface"; None: nothing."""
        return self.attached.detectors.fallback

    @face_detector_fallback.setter
    def face_detector_fallback(self, name: str | None) -> None:
        self.attached.detectors.fallback = name

    def detail_report(self) -> str:
        """What the detailing passes of the last call found, and what became of it."""
        return "\n".join(self._detail_reports) or "No detailing pass ran."

    def save(
        self, images: Sequence[Image.Image] | WebUIPipelineOutput, folder: str | Path, pattern: str = "[number]-[seed]"
    ) -> list[Path]:
        """Write images, or a call's whole output with its texts, into `folder`; see `save_pictures`."""
        if isinstance(images, WebUIPipelineOutput):
            return images.save(folder, pattern)
        return save_pictures(images, None, folder, pattern)

    def _stock_load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        diffusers_pipeline(self).load_lora_weights(self, *args, **kwargs)

    def _begin(self, guidance: Guidance, clip_skip: int | None) -> None:
        """Set what diffusers' properties of the same names show during a call."""
        self._guidance_scale, self._guidance_rescale = guidance.guidance_scale, guidance.guidance_rescale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, guidance.cross_attention_kwargs
        if self.is_sdxl and self.vae.config.get("force_upcast"):
            needs_float32(self.vae)
        self._detail_reports = []
