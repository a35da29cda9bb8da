"""ControlNets inside the denoiser: which act at an evaluation, and what they add to the UNet's skip connections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..device_copies import SentNumbers


SDXL_INPUTS = ("text_embeds", "time_ids")
HINT_CELL = 8  # pixels of a control image by side of a latent cell


class ControlInput(NamedTuple):
    """What the UNet gets at one evaluation, for all its rows."""

    x: Tensor  # (rows, c, h, w)
    t: Tensor  # no dimensions
    embeds: Tensor  # (rows, tokens, dim)
    added: dict[str, Any]  # SDXL: text_embeds, time_ids
    images: list[int]  # which image of the batch each row is for
    uncond: list[bool]  # whether it is of the negative prompt


class ControlResiduals(NamedTuple):
    """What is added to the UNet's skip connections and to its middle block."""

    down: list[Tensor]
    mid: Tensor


@dataclass(frozen=True)
class ActiveControl:
    """A control network in one pass.

    model: ControlNetModel or ControlNetUnionModel. hints: the control image (1 or b, c, h, w); of a union network one
    for each of `tasks`, with `task_scales` where the network itself weighs them. start, end: the window as shares of
    the steps. whole_steps: diffusers' window, which holds whole steps and ends before `end`; else the extension's,
    which lags one step. scales: number of residuals -> a factor for each. uncond: 1, or 0 where rows of the negative
    prompt get nothing. conds_only: the network is not run for those rows at all. region: (1, 1, h, w) where it acts.
    pooled: only the mean over height and width of each residual counts. rows: a factor for each row by whether it is
    of the negative prompt. dtype: of the network, where it was looked up before: that takes a walk over its modules.
    """

    model: Any
    hints: Sequence[Tensor]
    scales: Callable[[int], Sequence[float]]
    start: float = 0.0
    end: float = 1.0
    whole_steps: bool = False
    uncond: float = 1.0
    conds_only: bool = False
    region: Tensor | None = None
    pooled: bool = False
    rows: Callable[[Sequence[bool]], Sequence[float]] | None = None
    tasks: Sequence[int] = ()
    task_scales: Sequence[float] = ()
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class KeptImage:
    """The module inpaint_only in one pass: what is not masked is drawn towards the given image at every evaluation.

    encode: gives its latents (1, c, h, w), clean; asked at the first evaluation. mask: (1, 1, h, w), 1 where
    the image is drawn anew. strength: 0..1.
    """

    encode: Callable[[], Tensor]
    mask: Tensor
    strength: float


@dataclass(frozen=True)
class KeptRegion:
    """What the module inpaint_only keeps in a pass: a control image (h, w, 4) of its size, and how strongly."""

    image: np.ndarray
    strength: float


@dataclass(frozen=True)
class PassControl:
    """The ControlNets of one pass."""

    active: Sequence[ActiveControl] = ()
    kept: Sequence[KeptRegion] = ()
    images: Sequence[np.ndarray] = ()  # (h, w, 3 or 4) each: what every unit is shown, whether it acts or not
    hooked: bool = False  # the UNet comes to odd sizes in the webui's way, as it does under the extension


class ControlGuidance:
    """All units of one pass, and at which step it is.

    steps: how many the pass has. tries: evaluations in each try of a step, for samplers that try steps until one is
    good enough (DPM adaptive): a try then counts as a step, and its report comes after its last evaluation.
    """

    def __init__(
        self,
        controls: Sequence[ActiveControl],
        steps: int,
        *,
        tries: int | None = None,
        kept: Sequence[KeptImage] = (),
    ):
        self.controls = list(controls)
        self.steps = steps
        self.tries = tries
        self.kept = list(kept)
        self._latents: dict[int, tuple[Tensor, Tensor]] = {}  # of kept images, with their masks
        self._numbers = SentNumbers()
        self._step = 0
        self._evaluations = 0  # of the step, or of all tries

    def end_evaluation(self) -> None:
        """An evaluation of the current step is done."""
        self._evaluations += 1

    def end_step(self) -> None:
        """The step is done: the next evaluation belongs to the next one."""
        self._step += 1
        if self.tries is None:
            self._evaluations = 0

    @property
    def counter(self) -> int:
        """The last step that the webui has reported: a step's report comes after its first evaluation."""
        if self.tries is not None:
            return max(self._evaluations // self.tries - 1, 0)
        return self._step if self._evaluations else max(self._step - 1, 0)

    def active(self) -> list[ActiveControl]:
        """The units whose window is open at this evaluation."""
        share = self.counter / self.steps
        begun, done = self._step / self.steps, (self._step + 1) / self.steps
        return [
            control
            for control in self.controls
            if (
                not (begun < control.start or done > control.end)
                if control.whole_steps
                else control.start <= share <= control.end
            )
        ]

    def unet_arguments(self, **given: Any) -> dict[str, Any]:
        """What the UNet is called with besides, at an evaluation with these inputs: the fields of ControlInput."""
        added = self.residuals(ControlInput(**given))
        if added is None:
            return {}
        return {"down_block_additional_residuals": added.down, "mid_block_additional_residual": added.mid}

    def residuals(self, given: ControlInput) -> ControlResiduals | None:
        """The sum over the active units, in their order; None where none is active."""
        total: ControlResiduals | None = None
        for control in self.active():
            added = control_residuals(control, given, self._numbers)
            if added is not None:
                total = added if total is None else _sum(total, added)
        return total

    def keep(self, output: Tensor, x: Tensor, t: float, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
        """The UNet's output (rows, c, h, w) float32 with what inpaint_only does to it. x, t: as the UNet had them."""
        x = x.float()
        for i, kept in enumerate(self.kept):
            if i not in self._latents:
                self._latents[i] = kept.encode().to(output), kept.mask.to(output)
            latents, mask = self._latents[i]
            ac = alphas_cumprod[min(round(t), len(alphas_cumprod) - 1)].to(output.dtype)
            new = _towards(x, output, ac, mask, latents, prediction_type)
            output = kept.strength * new + (1 - kept.strength) * output
        return output


def control_residuals(
    control: ActiveControl, given: ControlInput, numbers: SentNumbers | None = None
) -> ControlResiduals | None:
    """What one unit adds: network times row factor times scale. None where no row gets anything.

    numbers: those of the pass, so that each is sent to the device once.
    """
    numbers = numbers or SentNumbers()
    rows = None  # all
    if control.conds_only and any(given.uncond):
        rows = [i for i, uncond in enumerate(given.uncond) if not uncond]
        if not rows:
            return None
    down, mid = _run_network(control, given, rows, numbers)
    residuals = [*down, mid]
    factors = [control.uncond if uncond else 1.0 for uncond in given.uncond]
    if control.rows is not None:
        factors = [factor * own for factor, own in zip(factors, control.rows(given.uncond), strict=True)]
    by_row = None
    if any(factor != 1.0 for factor in factors):
        by_row = numbers(factors, mid.device, mid.dtype)[:, None, None, None]
    result = []
    for residual, scale in zip(residuals, control.scales(len(residuals)), strict=True):
        if rows is not None:
            whole = residual.new_zeros((len(given.images), *residual.shape[1:]))
            residual = whole.index_copy_(0, numbers(rows, whole.device), residual)
        if by_row is not None:
            residual = residual * by_row
        if scale != 1.0:
            residual = residual * scale
        if control.region is not None:
            size = residual.shape[-2:]
            residual = residual * F.interpolate(control.region, size, mode="bilinear").to(residual)
        if control.pooled:
            residual = residual.mean(dim=(2, 3), keepdim=True)
        result.append(residual.to(given.x.dtype))
    return ControlResiduals(result[:-1], result[-1])


def _run_network(
    control: ActiveControl, given: ControlInput, rows: list[int] | None, numbers: SentNumbers
) -> tuple[Sequence[Tensor], Tensor]:
    """The network's residuals for these rows, None: for all; not scaled."""
    model, device = control.model, given.x.device
    dtype = control.dtype or model.dtype

    def taken(values: Tensor) -> Tensor:
        return (values if rows is None else values.index_select(0, numbers(rows, device))).to(dtype)

    x, added = taken(given.x), {name: taken(given.added[name]) for name in SDXL_INPUTS if name in given.added}
    images = given.images if rows is None else [given.images[row] for row in rows]
    hints = [_hint_of_rows(hint.to(device, dtype), x, images, numbers) for hint in control.hints]
    arguments: dict[str, Any] = {"controlnet_cond": hints[0]}
    if control.tasks:
        kinds = [float(task in control.tasks) for task in range(model.config.num_control_type)]
        arguments = {
            "controlnet_cond": [hint.expand(len(x), -1, -1, -1) for hint in hints],
            "control_type": numbers(kinds, device, dtype).expand(len(x), -1),
            "control_type_idx": list(control.tasks),
        }
        if control.task_scales:
            arguments["conditioning_scale"] = list(control.task_scales)
    return model(
        x,
        given.t.to(device, dtype).expand(len(x)),
        encoder_hidden_states=taken(given.embeds),
        added_cond_kwargs=added or None,
        return_dict=False,
        **arguments,
    )


def _hint_of_rows(hint: Tensor, x: Tensor, images: list[int], numbers: SentNumbers) -> Tensor:
    """The control image (1 or b, c, h, w) of each row, at the size that belongs to x."""
    size = [HINT_CELL * side for side in x.shape[-2:]]
    if list(hint.shape[-2:]) != size:  # samplers that take steps at another size
        hint = F.interpolate(hint, size, mode="nearest")
    return hint.index_select(0, numbers(images, hint.device)) if len(hint) > 1 else hint


def _sum(one: ControlResiduals, other: ControlResiduals) -> ControlResiduals:
    return ControlResiduals([a + b for a, b in zip(one.down, other.down, strict=True)], one.mid + other.mid)


def _towards(x: Tensor, output: Tensor, ac: Tensor, mask: Tensor, init: Tensor, prediction_type: str) -> Tensor:
    """The model output whose x0 is that of `output` where `mask` is 1 and `init` elsewhere."""
    signal, noise = ac.sqrt(), (1 - ac).sqrt()
    if prediction_type == "sample":
        return output * mask + init * (1 - mask)
    if prediction_type == "v_prediction":
        x0 = (signal * x - noise * output) * mask + init * (1 - mask)
        return (signal * x - x0) / noise
    x0 = (x - noise * output) / signal * mask + init * (1 - mask)
    return (x - signal * x0) / noise
