"""UNet, conditioning and guidance as one function of a noisy latent: what the samplers call.

One call, in the order of the code: does the refiner take over? which texts hold now? is the negative half skipped?
One UNet run (two if the texts differ in length); the outputs as x0 (loops over sigmas), as eps (loops over
timesteps) or as they are (diffusers' schedulers); guidance; the mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Conditioning, TimedCond, cond_at_call
from .discrete_schedule import NoiseTable
from .latent_mask import LatentMask, nearest_cells


@dataclass(frozen=True)
class DenoiserModel:
    """A UNet and what goes with it. The refiner is a second one."""

    unet: Any  # called as diffusers' UNet2DConditionModel; has .dtype
    table: NoiseTable | None  # None: a scheduler without betas steps, and needs none
    conditioning: Conditioning
    prediction_type: str = "epsilon"  # or "v_prediction", "sample"
    time_ids: tuple[Tensor, Tensor] | None = None  # SDXL: the size numbers (n,) of the positive and the negative side


@dataclass(frozen=True)
class Guidance:
    """How the two sides are run and combined. Names are those of the arguments and options they come from."""

    guidance_scale: float = 7.0
    guidance_rescale: float = 0.0
    two_sided: bool = True  # False: no negative side at all (the webui always has one, diffusers from scale 1 up)
    s_min_uncond: float = 0.0
    s_min_uncond_all: bool = False
    skip_early_cond: float = 0.0
    pad_cond_uncond: bool = False
    pad_cond_uncond_v0: bool = False
    enable_quantization: bool = False
    refiner_switch_at: float | None = None
    refiner_switch_by_sample_steps: bool = False
    cross_attention_kwargs: Mapping[str, Any] | None = None
    timestep_cond: Tensor | None = None  # (1, dim), for UNets distilled for a guidance scale
    image_embeds: tuple[list[Tensor], list[Tensor]] | None = None  # IP-Adapter: positive, negative, one row an image
    extra_channels: Tensor | None = None  # (b, k, h, w) beside the latent, for inpainting UNets


class SideRows(NamedTuple):
    """One half of a UNet run. Row r is for image `images[r]`, and counts `weights[r]` times the guidance scale."""

    images: list[int]
    weights: list[float]
    embeds: Tensor  # (rows, tokens, dim)
    pooled: Tensor | None  # (rows, dim)


class GuidedDenoiser:
    """D(x, sigma) for a batch of images, each with the conditioning of the moment.

    sigma and t may be on another device than x: the loops keep theirs on the CPU.

    models: the base model, then the refiner where there is one. total_calls: the denoiser calls the pass plans, for
    the options that count by them. guidance_divisor: DDIM CFG++ divides the scale. `calls` counts what was run;
    `timestep` is the last one.
    """

    def __init__(
        self,
        models: Sequence[DenoiserModel],
        guidance: Guidance,
        *,
        total_calls: int,
        lcm: bool = False,
        guidance_divisor: float = 1.0,
        mask: LatentMask | None = None,
    ):
        self.models = list(models)
        self.guidance = guidance
        self._divisor = guidance_divisor
        self.change_scale(guidance.guidance_scale)
        self.total_calls = total_calls
        self.mask = mask
        self.calls = 0
        self.timestep: Tensor | None = None
        self._dtype = models[0].unet.dtype  # looked up once: diffusers walks the whole module tree for it
        self._lcm = models[0].table.lcm if lcm else None
        self._sides: tuple[tuple[int, ...], SideRows, SideRows] | None = None

    @property
    def model(self) -> DenoiserModel:
        """The model at work: the base, or the refiner once it took over."""
        return self.models[0]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate of x0. x: (b, c, h, w) = x0 + sigma * noise, float32; sigma: no dimensions."""
        return self.sides(x, sigma)[0]

    def sides(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The guided estimate of x0, with the mask, and the negative prompt's, without."""
        self._maybe_refine(lambda: self._nearest(sigma))
        sigma = sigma.to(x.device)
        t = self._sigma_to_t(sigma)
        c_in = 1 / (sigma**2 + 1) ** 0.5
        x0, negative = self._guided(x * c_in, t, sigma, lambda out, rows: self._x0(out, x[rows], sigma, t))
        return x0 if self.mask is None else self.mask.at(x.shape[-2:]).blend(x0, sigma), negative

    def eps(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided noise, and the negative side's. x: (b, c, h, w) = sqrt(ac) x0 + sqrt(1 - ac) noise; t: 0..999."""
        self._maybe_refine(lambda: int(t))
        t = t.to(x.device)
        if self.mask is not None:  # the webui: for the model's eyes only, and with the clean latent
            x = self.mask.blend(x, t)
        return self._guided(x, t, t, lambda out, rows: self._eps(out, x[rows], t))

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """The guided output of the UNet as it is, for diffusers' schedulers. x: as their `scale_model_input` gives."""
        return self._guided(x, t, t, lambda out, rows: out)[0]

    def side_tensors(self) -> dict[str, Tensor | None]:
        """What a step's callback may look at: the texts of the last call, (rows, tokens, dim) each."""
        if self._sides is None:
            return {}
        _, positive, negative = self._sides
        return {
            "prompt_embeds": positive.embeds,
            "negative_prompt_embeds": None if negative is None else negative.embeds,
            "add_text_embeds": positive.pooled,
            "add_time_ids": None if self.model.time_ids is None else self.model.time_ids[0],
        }

    def change_scale(self, guidance_scale: float) -> None:
        """Another guidance scale from the next call on."""
        self.guidance = replace(self.guidance, guidance_scale=guidance_scale / self._divisor)

    def _sigma_to_t(self, sigma: Tensor) -> Tensor:
        if self._lcm is not None:
            return self._lcm.sigma_to_t(sigma)
        return self.model.table.sigma_to_t(sigma, quantize=self.guidance.enable_quantization)

    def _x0(self, out: Tensor, x: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
        """x0 of a model output, as k-diffusion's external.py has it. LCM reads every output as eps (webui 1.10)."""
        if self._lcm is not None:
            c_skip, c_out = self._lcm.boundary_scalings(t)
            return c_skip * x + c_out * (x - sigma * out)
        if self.model.prediction_type == "v_prediction":
            c_skip, c_out = 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5
            return out * c_out + x * c_skip
        return out if self.model.prediction_type == "sample" else x - sigma * out

    def _eps(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """eps of a model output; the table is read at the truncated timestep."""
        if self.model.prediction_type == "epsilon":
            return out
        ac = self.model.table.alphas_cumprod[int(t)].to(x.device)
        if self.model.prediction_type == "v_prediction":
            return ac.sqrt() * out + (1 - ac).sqrt() * x
        return (x - ac.sqrt() * out) / (1 - ac).sqrt()

    def _nearest(self, sigma: Tensor) -> int:
        """The place of sigma in the table, nearest by plain distance; LCM looks in its own table of 50."""
        sigmas = (self._lcm or self.model.table).sigmas
        return int((sigmas.cpu() - sigma.cpu()).abs().argmin())

    def _maybe_refine(self, timestep: Callable[[], int]) -> None:
        """Hand over to the refiner from noise level `refiner_switch_at` on, or from that share of the calls on."""
        switch_at = self.guidance.refiner_switch_at
        if len(self.models) < 2 or switch_at is None or switch_at >= 1:
            return
        if self.guidance.refiner_switch_by_sample_steps:
            done = self.calls / self.total_calls
        else:
            done = (999 - timestep()) / 1000
        if done >= switch_at:
            del self.models[0]
            self._sides, self._dtype = None, self.model.unet.dtype

    def _guided(
        self, x_in: Tensor, t: Tensor, level: Tensor, read: Callable[[Tensor, list[int]], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run both sides at timestep t; -> guided, negative. read: (output rows, their images) -> x0, eps or as is."""
        positive, negative = self._rows()
        skipped = not self.guidance.two_sided or self._skips_negative(level)
        if skipped:
            out_positive, out_negative = self._run(x_in, t, [(positive, 0)]), None
        elif positive.embeds.shape[1] != negative.embeds.shape[1]:
            out_positive, out_negative = self._run(x_in, t, [(positive, 0)]), self._run(x_in, t, [(negative, 1)])
        else:
            both = self._run(x_in, t, [(positive, 0), (negative, 1)])
            out_positive, out_negative = both[: len(positive.images)], both[len(positive.images) :]
        scale = 1.0 if skipped else self.guidance.guidance_scale
        scales = [weight * scale for weight in positive.weights]
        c = read(out_positive, positive.images)
        first = _first_row_of(positive.images)
        u = c[first] if out_negative is None else read(out_negative, negative.images)
        if self.guidance.guidance_rescale > 0 and out_negative is not None:  # of the output, as in diffusers
            raw = combine_conds(out_negative, out_positive, positive.images, scales)
            raw = rescale_guidance(raw, out_positive[first], self.guidance.guidance_rescale)
            guided = read(raw, negative.images)
        else:
            guided = combine_conds(u, c, positive.images, scales)
        self.calls += 1
        self.timestep = t
        return guided, u

    def _skips_negative(self, level: Tensor) -> bool:
        """The options skip_early_cond, then s_min_uncond (NGMS). `level` is sigma, or the *timestep* in timestep
        samplers: the webui compares what it has."""
        g = self.guidance
        if g.skip_early_cond > 0 and self.calls / self.total_calls <= g.skip_early_cond:
            return True
        return g.s_min_uncond > 0 and (g.s_min_uncond_all or self.calls % 2 == 1) and float(level) < g.s_min_uncond

    def _rows(self) -> tuple[SideRows, SideRows]:
        """The texts that hold at this call, stacked; kept as long as they are the same."""
        conditioning = self.model.conditioning
        chosen = [
            (image, piece.weight, cond_at_call(piece.schedule, self.calls))
            for image, pieces in enumerate(conditioning.positive)
            for piece in pieces
        ]
        opposed = [(i, 1.0, cond_at_call(schedule, self.calls)) for i, schedule in enumerate(conditioning.negative)]
        key = tuple(id(entry) for _, _, entry in chosen + opposed)
        if self._sides is None or self._sides[0] != key:
            positive, negative = stack_conds(chosen), stack_conds(opposed) if opposed else None
            if negative is not None and positive.embeds.shape[1] != negative.embeds.shape[1]:
                positive, negative = self._pad(positive, negative)
            self._sides = key, positive, negative
        return self._sides[1:]

    def _pad(self, positive: SideRows, negative: SideRows) -> tuple[SideRows, SideRows]:
        """Sides of different length made equal, where an option wants it."""
        length = positive.embeds.shape[1]
        if self.guidance.pad_cond_uncond_v0:
            return positive, negative._replace(embeds=_repeat_last(negative.embeds, length)[:, :length])
        empty = self.model.conditioning.empty
        if self.guidance.pad_cond_uncond and empty is not None:
            length = max(length, negative.embeds.shape[1])
            return _append_empty(positive, empty, length), _append_empty(negative, empty, length)
        return positive, negative

    def _run(self, x_in: Tensor, t: Tensor, sides: list[tuple[SideRows, int]]) -> Tensor:
        """One UNet run of these sides' rows (side 0 is the positive one), in the UNet's dtype; -> float32."""
        model, guidance, dtype = self.model, self.guidance, self._dtype
        images = [image for rows, _ in sides for image in rows.images]
        if guidance.extra_channels is not None:
            beside = nearest_cells(guidance.extra_channels.to(x_in), x_in.shape[-2:])
            x_in = torch.cat([x_in, beside], dim=1)
        added: dict[str, Any] = {}
        if model.time_ids is not None:
            added["text_embeds"] = torch.cat([rows.pooled for rows, _ in sides]).to(dtype)
            added["time_ids"] = torch.cat([model.time_ids[side].expand(len(rows.images), -1) for rows, side in sides])
            added["time_ids"] = added["time_ids"].to(x_in.device, dtype)
        if guidance.image_embeds is not None:
            pairs = zip(*guidance.image_embeds, strict=True)
            added["image_embeds"] = [torch.cat([pair[side][rows.images] for rows, side in sides]) for pair in pairs]
        cond = guidance.timestep_cond
        out = model.unet(
            x_in[images].to(dtype),
            t.to(x_in.device, dtype).expand(len(images)),  # the webui rounds it to the model's dtype too
            encoder_hidden_states=torch.cat([rows.embeds for rows, _ in sides]).to(dtype),
            timestep_cond=None if cond is None else cond.to(dtype).expand(len(images), -1),
            cross_attention_kwargs=guidance.cross_attention_kwargs,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return out.float()


def combine_conds(uncond: Tensor, conds: Tensor, images: list[int], scales: list[float]) -> Tensor:
    """u + sum_i s_i (c_i - u): guidance with any number of texts an image (AND), Liu et al. (2022), arXiv:2206.01714.

    uncond: (b, c, h, w); conds: (rows, c, h, w), row r belongs to image images[r] and counts scales[r] times.
    """
    if images == list(range(len(uncond))) and len(set(scales)) == 1:
        return uncond + (conds - uncond) * scales[0]
    guided = uncond.clone()
    for row, (image, scale) in enumerate(zip(images, scales, strict=True)):
        guided[image] += (conds[row] - uncond[image]) * scale
    return guided


def rescale_guidance(guided: Tensor, cond: Tensor, guidance_rescale: float) -> Tensor:
    """Give the guided estimate the conditional one's deviation: section 3.4 of arXiv:2305.08891."""
    axes = list(range(1, guided.ndim))
    rescaled = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * rescaled + (1 - guidance_rescale) * guided


def _first_row_of(images: list[int]) -> list[int]:
    """The first row of each image."""
    return [images.index(image) for image in range(max(images) + 1)]


def stack_conds(chosen: Sequence[tuple[int, float, TimedCond]]) -> SideRows:
    """Rows (image, weight, entry) as one half of a run; shorter texts repeat their own last token vector."""
    length = max(entry.embeds.shape[0] for _, _, entry in chosen)
    return SideRows(
        images=[image for image, _, _ in chosen],
        weights=[weight for _, weight, _ in chosen],
        embeds=torch.stack([_repeat_last(entry.embeds[None], length)[0] for _, _, entry in chosen]),
        pooled=None if chosen[0][2].pooled is None else torch.stack([entry.pooled for _, _, entry in chosen]),
    )


def _repeat_last(embeds: Tensor, length: int) -> Tensor:
    """(rows, tokens, dim), at least `length` tokens long."""
    missing = length - embeds.shape[1]
    return embeds if missing <= 0 else torch.cat([embeds, embeds[:, -1:].expand(-1, missing, -1)], dim=1)


def _append_empty(rows: SideRows, empty: Tensor, length: int) -> SideRows:
    """The rows with the encoding of "" appended once per missing chunk. empty: (77, dim)."""
    missing = (length - rows.embeds.shape[1]) // len(empty)
    tail = empty.repeat(missing, 1).expand(len(rows.images), -1, -1)
    return rows._replace(embeds=torch.cat([rows.embeds, tail.to(rows.embeds)], dim=1))
