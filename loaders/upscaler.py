"""Upscalers: the webui's six Real-ESRGAN labels, and every file that spandrel reads.

>>> upscaler = load_upscaler("R-ESRGAN AnimeVideo")           # ships with the package
>>> upscaler = load_upscaler("R-ESRGAN 4x+")                  # downloaded once, checked by hash
>>> upscaler = load_upscaler("~/models/ESRGAN/4x-UltraSharp.pth")
>>> upscaler = load_upscaler("some-org/some-upscaler")        # on the Hub
>>> large = upscaler(pixels)                                  # (b, 3, h, w) in [0, 1] -> `upscaler.scale` times
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from .data_files import PACKAGE_FILES, package_file
from .downloads import PublishedFile, fetch_published
from .model_lock import making_modules
from .realesrgan_backend import realesrgan_network
from .upscaler_model import UpscalerNetwork, read_upscaler_state, upscaler_network
from .utils import LOGGER, NameFromText
from .weight_files import WeightFileError


UPSCALER_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_UPSCALER_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_RANDOM_FUNCTIONS = (  # all of torch's
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "uniform_", "normal_", "random_"),
    *("bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
)
_REALESRGAN_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"


class ImageUpscaler(ModelMixin, ConfigMixin):
    """An upscaling network as a component of a pipeline: moved, offloaded, saved and reloaded with it.

    Called on pixels (b, 3, h, w) in [0, 1], gives (b, 3, h * scale, w * scale) in [0, 1], in the dtype it was given.
    Sides that the architecture cannot take are padded by reflection and cut off again.
    """

    def __init__(self, architecture: str = "", scale: int = 1, backend: str = "spandrel", source: str = ""):
        super().__init__()
        self.register_to_config(architecture=architecture, scale=scale, backend=backend, source=source)
        self.scale = scale

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], *, backend: str = "spandrel", source: str = ""
    ) -> "ImageUpscaler":
        """The upscaler that these tensors belong to; source: a name for messages and for the config."""
        if backend not in _UPSCALER_BACKENDS:
            known = ", ".join(f'"{name}"' for name in _UPSCALER_BACKENDS)
            raise ValueError(f"`backend` is {backend!r}, which is none of {known}.")
        parts = _UPSCALER_BACKENDS[backend](state, source)
        upscaler = cls(parts.architecture, parts.scale, backend, source)
        upscaler.network = parts.network
        upscaler.parts = parts._replace(network=torch.nn.Identity())
        return upscaler.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        **hub: object,
    ) -> "ImageUpscaler":
        """What `save_pretrained` wrote, in a local folder or on the Hub.

        torch_dtype: what diffusers calls `dtype` where it loads a whole pipeline.
        hub: cache_dir, token, revision, local_files_only, force_download; arguments of diffusers that only concern how
        large models are placed are accepted and not needed. Raises WeightFileError for a folder without the weights.
        """
        name, _, suffix = UPSCALER_WEIGHTS_NAME.rpartition(".")
        files = ["config.json", UPSCALER_WEIGHTS_NAME if variant is None else f"{name}.{variant}.{suffix}"]
        folder = Path(pretrained_model_name_or_path).expanduser()
        if folder.is_dir():
            found = [folder / (subfolder or "") / file for file in files]
        else:
            known = {key: hub[key] for key in _HUB_ARGUMENTS if hub.get(key) is not None}
            repo = str(pretrained_model_name_or_path)
            found = [Path(hf_hub_download(repo, file, subfolder=subfolder, **known)) for file in files]
        for path in found:
            if not path.is_file():
                raise WeightFileError(
                    f"`{path}` does not exist, so `{pretrained_model_name_or_path}` holds no upscaler saved by "
                    "`save_pretrained`. To load a bare weight file, give its path to `load_upscaler`."
                )
        config = cls._dict_from_json_file(found[0])
        if config.get("_class_name") != cls.__name__:
            raise WeightFileError(
                f"`{found[0]}` describes a {config.get('_class_name')}, not an upscaler. Load it with that class, or "
                "give `load_upscaler` an upscaler's file or folder."
            )
        state = {key.removeprefix("network."): value for key, value in read_upscaler_state(found[1]).items()}
        upscaler = cls.from_state(state, backend=config.get("backend", "spandrel"), source=config.get("source", ""))
        wanted = dtype or torch_dtype
        return upscaler if wanted is None else upscaler.to(wanted)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, 3, h, w) in [0, 1], any float dtype, to (b, 3, h * scale, w * scale) in [0, 1]."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or not pixels.numel():
            raise ValueError(
                f"An upscaler takes float pixels (b, 3, h, w) in [0, 1]; got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)}."
            )
        height, width = pixels.shape[-2:]
        padded = _pad_for_network(pixels.to(self.dtype), self.parts)
        large = self.parts.call(self.network, padded)[..., : height * self.scale, : width * self.scale]
        return large.clamp(0.0, 1.0).to(pixels.dtype)

    def to(self, *args: object, **kwargs: object) -> "ImageUpscaler":
        """As of any module, but an architecture that does not work in half precision keeps its dtype, and says so."""
        wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        if wanted and not self._works_in(wanted[0]):
            LOGGER.warning(
                "Upscaler %s (%s) does not work in %s and stays in %s.",
                self.config.source,
                self.config.architecture,
                wanted[0],
                self.dtype,
            )
            args = tuple(value for value in args if not isinstance(value, torch.dtype))
            kwargs = {key: value for key, value in kwargs.items() if not isinstance(value, torch.dtype)}
            if not args and not kwargs:
                return self
        return super().to(*args, **kwargs)

    def half(self) -> "ImageUpscaler":
        """`to(torch.float16)`."""
        return self.to(torch.float16)

    def bfloat16(self) -> "ImageUpscaler":
        """`to(torch.bfloat16)`."""
        return self.to(torch.bfloat16)

    def draw_as_constructed(self, generator: Generator) -> None:
        """Advance a CPU generator by what making this network draws from it for weights that the file then replaces.

        Nothing happens to a generator of another device, nor for a network whose making spandrel does not record.

        The webui loads its upscaler anew for each pass, right after seeding torch's global generator and right before
        drawing the noise of the VAE's encoding from it. Its hires pictures depend on that.
        """
        arguments = getattr(self.network, "hyperparameters", None)
        if arguments is None or generator.device.type != "cpu":
            return
        with making_modules(), _DrawnBy(generator), torch.device("cpu"):
            type(self.network)(**arguments)

    def _works_in(self, dtype: torch.dtype) -> bool:
        unfit = {torch.float16: not self.parts.half, torch.bfloat16: not self.parts.bfloat16}
        return not unfit.get(dtype, False)


class _DrawnBy(TorchFunctionMode):
    """Inside the block this thread's random numbers come from a generator, and torch's own stays as it is."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = {"generator": None} if getattr(func, "__name__", "") in _RANDOM_FUNCTIONS else {}
        named |= kwargs or {}
        if "generator" in named and named["generator"] is None:  # `nn.init` names it always
            named["generator"] = self.generator
        return func(*args, **named)


def load_upscaler(
    source: str | Path,
    *,
    backend: str = "spandrel",
    weight_name: str | None = None,
    folders: tuple[str | Path, ...] = (),
    dtype: torch.dtype | None = None,
    progress: bool = True,
    **hub: object,
) -> ImageUpscaler:
    """An upscaler by what it is called or where it lies.

    source: one of UPSCALER_LABELS; a weight file; a folder with one weight file (or with `weight_name`, or saved by
    `save_pretrained`); a Hub id "org/name", the same way.
    backend: "spandrel", or "realesrgan" for that package's own networks (extra `[realesrgan]`).
    folders: where to look for the labels' files before downloading them. hub: cache_dir, token, revision,
    local_files_only. Raises WeightFileError (a ValueError) for what cannot be found or is no upscaler, and for the
    name out of a picture's text (NameFromText) that is no label.
    """
    if source in UPSCALER_LABELS:
        path = _label_file(str(source), folders, bool(hub.get("local_files_only")), progress)
        label = str(source)
    else:
        if isinstance(source, NameFromText):
            raise WeightFileError(
                f"{str(source)!r} is an upscaler that a picture's text names. It is none of those known here, and "
                "names out of texts are not opened or downloaded. Load its file with `load_upscaler`, and give that."
            )
        path = _upscaler_path(source, weight_name, hub)
        label = path.name
        if path.is_dir():
            return ImageUpscaler.from_pretrained(path, dtype=dtype)
    upscaler = ImageUpscaler.from_state(read_upscaler_state(path), backend=backend, source=label)
    return upscaler if dtype is None else upscaler.to(dtype)


def _label_file(label: str, folders: tuple[str | Path, ...], local_files_only: bool, progress: bool) -> Path:
    shipped = f"weights/{Path(UPSCALER_LABELS[label].name).stem}.fp16.safetensors"
    if shipped in PACKAGE_FILES:
        with suppress(FileNotFoundError):  # a bundle that is nowhere on the Hub: then as the others
            return package_file(shipped)
    return fetch_published(
        UPSCALER_LABELS[label],
        f'Upscaler "{label}"',
        folders=folders,
        local_files_only=local_files_only,
        progress=progress,
    )


def _upscaler_path(source: str | Path, weight_name: str | None, hub: Mapping[str, object]) -> Path:
    """A weight file, or a folder that `save_pretrained` wrote."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        path = _upscaler_snapshot(str(source), weight_name, hub)
    if weight_name is not None:
        return path / weight_name
    if (path / "config.json").is_file() and (path / UPSCALER_WEIGHTS_NAME).is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _UPSCALER_SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(f"`{file.name}`" for file in files) or "none"
        raise WeightFileError(
            f"`{source}` holds {len(files)} weight files where one was expected: {listed}. "
            "Say which with `weight_name`, or give the file's own path."
        )
    return files[0]


def _upscaler_snapshot(source: str, weight_name: str | None, hub: Mapping[str, object]) -> Path:
    """A Hub repository's weight files in the cache. Raises WeightFileError, with the labels, when it is no such id."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.endswith(_UPSCALER_SUFFIXES):
        labels = ", ".join(f'"{label}"' for label in UPSCALER_LABELS)
        raise WeightFileError(
            f"{source!r} is no upscaler: there is no such file or folder, and it is none of the labels {labels}. "
            'Check the spelling; a Hub id is "org/name".'
        )
    known = {key: hub[key] for key in _HUB_ARGUMENTS if hub.get(key) is not None}
    patterns = [weight_name] if weight_name else ["config.json", *(f"*{suffix}" for suffix in _UPSCALER_SUFFIXES)]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **known))
    except (OSError, ValueError) as error:
        raise WeightFileError(
            f"Upscaler `{source}` is no file or folder here and could not be had from the Hub: {error} "
            "Check the name and the network, or download its weight file and give its path."
        ) from error


def _pad_for_network(pixels: Tensor, parts: UpscalerNetwork) -> Tensor:
    """Pixels grown right and below to what the architecture takes: mirrored, then repeated where that runs out.

    After pad_tensor, chaiNNer-org/spandrel (MIT), spandrel/__helpers/size_req.py.
    """
    height, width = pixels.shape[-2:]
    sides = [-(-max(side, parts.minimum) // parts.multiple_of) * parts.multiple_of for side in (height, width)]
    if parts.square:
        sides = [max(sides)] * 2
    down, right = sides[0] - height, sides[1] - width
    if not down and not right:
        return pixels
    mirrored = (0, min(right, width - 1), 0, min(down, height - 1))
    pixels = F.pad(pixels, mirrored, "reflect")
    return F.pad(pixels, (0, right - mirrored[1], 0, down - mirrored[3]), "replicate")


_HUB_ARGUMENTS = ("cache_dir", "token", "revision", "local_files_only", "force_download")
_UPSCALER_BACKENDS = {"spandrel": upscaler_network, "realesrgan": realesrgan_network}

# The webui's labels. Hashes and sizes are those of the release files of github.com/xinntao/Real-ESRGAN (BSD-3).
UPSCALER_LABELS = {
    "R-ESRGAN General 4xV3": PublishedFile(
        "realesr-general-x4v3.pth",
        f"{_REALESRGAN_RELEASES}/v0.2.5.0/realesr-general-x4v3.pth",
        4885111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
    ),
    "R-ESRGAN General WDN 4xV3": PublishedFile(
        "realesr-general-wdn-x4v3.pth",
        f"{_REALESRGAN_RELEASES}/v0.2.5.0/realesr-general-wdn-x4v3.pth",
        4885111,
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
    ),
    "R-ESRGAN AnimeVideo": PublishedFile(
        "realesr-animevideov3.pth",
        f"{_REALESRGAN_RELEASES}/v0.2.5.0/realesr-animevideov3.pth",
        2504012,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
    ),
    "R-ESRGAN 4x+": PublishedFile(
        "RealESRGAN_x4plus.pth",
        f"{_REALESRGAN_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        67040989,
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
    "R-ESRGAN 4x+ Anime6B": PublishedFile(
        "RealESRGAN_x4plus_anime_6B.pth",
        f"{_REALESRGAN_RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        17938799,
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    ),
    "R-ESRGAN 2x+": PublishedFile(
        "RealESRGAN_x2plus.pth",
        f"{_REALESRGAN_RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        67061725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
}
