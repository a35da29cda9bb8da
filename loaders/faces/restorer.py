"""GFPGAN, RestoreFormer and CodeFormer as one component, on spandrel's architectures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.func import functional_call

from ..model_lock import model_gate
from ..pickles import check_sizes
from ..utils import require
from .mtcnn import without_dtypes


class FaceArchitecture(NamedTuple):
    """All that is to be known of one kind of face net; a new kind is one more row of FACE_ARCHITECTURES."""

    module: str  # where spandrel has it
    class_name: str
    marks: tuple[str, ...]  # keys that only this net's files have
    run: Callable[[nn.Module, Tensor, float, dict[str, Tensor]], object]  # net, face, fidelity, noise -> face, ...
    extra: str = ""  # of the pack, that installs it


FACE_ARCHITECTURES = {
    "GFPGAN": FaceArchitecture(
        "spandrel.architectures.GFPGAN",
        "GFPGAN",
        ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"),
        lambda net, face, fidelity, noise: _with_noise(net, face, noise),
    ),
    "RestoreFormer": FaceArchitecture(
        "spandrel.architectures.RestoreFormer",
        "RestoreFormer",
        ("quantize.embedding.weight", "encoder.conv_in.weight", "quant_conv.weight", "decoder.conv_out.weight"),
        lambda net, face, fidelity, noise: net(face),
    ),
    "CodeFormer": FaceArchitecture(
        "spandrel_extra_arches.architectures.CodeFormer",
        "CodeFormer",
        ("position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight", "encoder.blocks.0.weight"),
        lambda net, face, fidelity, noise: net(face, weight=fidelity),
        extra="codeformer",
    ),
}

_FACE_NOISE = "stylegan_decoder.noises."


class FaceRestorer(ModelMixin, ConfigMixin):
    """A face restoration net. architecture: "GFPGAN", "RestoreFormer" or "CodeFormer" (which needs its extra);
    parameters: of that architecture's class in spandrel.

    Stays in float32 or bfloat16: none of the three can be trusted in float16, and a pipeline moved to it leaves this
    component as it is.
    """

    _keep_in_fp32_modules = ["net"]

    @register_to_config
    def __init__(self, architecture: str = "GFPGAN", parameters: dict[str, Any] | None = None):
        super().__init__()
        self.net = face_net_class(architecture)(**(parameters or {}))

    @torch.no_grad()
    def forward(self, face: Tensor, fidelity: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
        """(n, 3, 512, 512) RGB in [-1, 1] -> the same, restored, float32; not clamped.

        fidelity: CodeFormer's weight, 0 strongest restoration .. 1 most faithful; the others have none. generator:
        for GFPGAN's noise; without one its file's own noise is used. Global random state is never touched.
        """
        kind = FACE_ARCHITECTURES[self.config.architecture]
        restored = kind.run(self.net, face.to(self.device, self.dtype), fidelity, self._noise(generator))
        return (restored[0] if isinstance(restored, tuple | list) else restored).float()

    def to(self, *args: Any, **kwargs: Any) -> "FaceRestorer":
        """`ModelMixin.to`, but float16 is passed over."""
        args, kwargs = without_dtypes(args, kwargs, (torch.float16,))
        return super().to(*args, **kwargs) if args or kwargs else self

    def _noise(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Fresh noise for each of the generator's layers, by buffer name; none to keep the stored one."""
        if generator is None:
            return {}
        return {
            name: randn_tensor(stored.shape, generator=generator, device=stored.device, dtype=stored.dtype)
            for name, stored in self.net.named_buffers()
            if name.startswith(_FACE_NOISE)
        }


def _with_noise(net: nn.Module, face: Tensor, noise: dict[str, Tensor]) -> object:
    """GFPGAN with this noise in place of its own, which meanwhile is that of every thread: so one after the other."""
    with model_gate().part_lock(net):
        return functional_call(net, noise, (face,), {"return_rgb": False, "randomize_noise": False})


def face_net_class(architecture: str) -> type[nn.Module]:
    """spandrel's class of a face net. ValueError for an unknown name, ImportError where the extra is missing."""
    if architecture not in FACE_ARCHITECTURES:
        raise ValueError(f"`architecture` must be one of {', '.join(FACE_ARCHITECTURES)}; got {architecture!r}.")
    return _from_spandrel(architecture, FACE_ARCHITECTURES[architecture].class_name)


def face_restorer_from_weights(architecture: str, weights: Mapping[str, Tensor]) -> FaceRestorer:
    """A restorer with these weights, its parameters told from their shapes. Raises RuntimeError if they do not fit."""
    found = _from_spandrel(architecture, f"{FACE_ARCHITECTURES[architecture].class_name}Arch")()
    check_sizes(weights, lambda: found.load(dict(weights)))
    net = found.load(dict(weights)).model
    with torch.device("meta"):
        restorer = FaceRestorer(architecture, _plain_values(net.hyperparameters))
    restorer.net = net.float()
    return restorer.eval()


def _from_spandrel(architecture: str, name: str) -> Any:
    kind = FACE_ARCHITECTURES[architecture]
    return getattr(require(kind.module, extra=kind.extra, feature=f"Restoring faces with {architecture}"), name)


def _plain_values(parameters: Mapping[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}
