"""UNet, conditioning and guidance as one function of a noisy latent: what the samplers call.

One call, in the order of the code: does the refiner take over? which texts hold now? is the negative half skipped?
One UNet run (two if the texts differ in length); the outputs as x0 (loops over sigmas), as eps (loops over
timesteps) or as they are (diffusers' schedulers); guidance; the mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Conditioning, cond_at_call
from .cond_batch import CondBatch, UNetRows, joined_rows, padded_sides, stack_conds, unet_rows
from .discrete_schedule import NoiseTable
from .guidance_terms import combine_conds, pushed_away, rescale_guidance
from .latent_mask import LatentMask, nearest_cells
from .perturbed import PerturbedAttention, blind_attention, self_attentions


KEPT_BATCHES = 8  # texts that are kept stacked


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
    do_classifier_free_guidance: bool = True  # False: no uncond at all (the webui always has one, diffusers above 1)
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
    repeats_last: bool = True  # in shorter texts of a batch; False: they repeat themselves, see `stack_conds`
    batch_cond_uncond: bool = True  # False: each side in a run of its own
    extra_channels: Tensor | None = None  # (b, k, h, w) beside the latent, for inpainting UNets
    pag: PerturbedAttention | None = None  # acts on the base model
    freeu: Mapping[str, float] | None = None  # what the base model's UNet has during the pass: b1, b2, s1, s2
    guider: Any = None  # a guider of diffusers that guides instead; see guider_denoiser.py


class NoiseLevel(NamedTuple):
    """The numbers of one sigma, float32 as Python floats, so that no device is waited for."""

    sigma: float
    t: float
    c_in: float
    c_skip: float
    c_out: float


class GuidedDenoiser:
    """D(x, sigma) for a batch of images, each with the conditioning of the moment.

    sigma and t may be on another device than x: the loops keep theirs on the CPU.

    models: the base model, then the refiner where there is one. total_calls: the denoiser calls the pass plans, for
    the options that count by them. guidance_divisor: DDIM CFG++ divides the scale. `calls` counts what was run;
    `timestep` is the last one. control: ControlNets of the pass (`ControlGuidance`), which act on the base model.
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
        control: Any = None,
    ):
        self.models = list(models)
        self.guidance = guidance
        self.total_calls = total_calls
        self.mask = mask
        self.control = control
        self.calls = 0
        self._t: float | None = None
        self._divisor = guidance_divisor
        self._asked_scale = guidance.guidance_scale
        self._scale = guidance.guidance_scale / guidance_divisor
        self._runs_uncond = guidance.do_classifier_free_guidance
        self._lcm = models[0].table.lcm if lcm else None
        self._pag = guidance.pag
        self._blinded = [] if guidance.pag is None else self_attentions(models[0].unet, guidance.pag.applied_layers)
        self._perturbed: Tensor | None = None  # of the last call, cond's rows
        self._use_model()

    @property
    def model(self) -> DenoiserModel:
        """The model at work: the base, or the refiner once it took over."""
        return self.models[0]

    @property
    def timestep(self) -> Tensor | None:
        """Of the last call, without dimensions, not rounded to the UNet's dtype; None before the first."""
        return None if self._t is None else torch.tensor(self._t)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided estimate of x0. x: (b, c, h, w) = x0 + sigma * noise, float32; sigma: no dimensions."""
        level = self._level(sigma)
        outputs = self._outputs(x * level.c_in, level.t, level.sigma)
        x0, _ = self._guided(outputs, x, level, self._x0)
        return x0 if self.mask is None else self.mask.at(x.shape[-2:]).blend(x0, sigma)

    def sides(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The guided estimate of x0, with the mask, and the negative prompt's, without."""
        level = self._level(sigma)
        outputs = self._outputs(x * level.c_in, level.t, level.sigma)
        x0, uncond = self._guided(outputs, x, level, self._x0)
        return x0 if self.mask is None else self.mask.at(x.shape[-2:]).blend(x0, sigma), uncond

    def eps(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided noise, and the negative side's. x: (b, c, h, w) = sqrt(ac) x0 + sqrt(1 - ac) noise; t: 0..999."""
        if len(self.models) > 1:
            self._maybe_refine(int(t))
        if self.mask is not None:  # the webui: for the model's eyes only, and with the clean latent
            x = self.mask.blend(x, t)
        value = float(t)
        return self._guided(self._outputs(x, value, value), x, value, self._eps)

    def output(self, x: Tensor, t: float) -> Tensor:
        """The guided output of the UNet as it is, for diffusers' schedulers. x: as their `scale_model_input` gives."""
        value = float(t)
        return self._guided(self._outputs(x, value, value), x, value, lambda out, x, level: out)[0]

    def prepare(self, sigmas: Tensor) -> None:
        """Work the numbers of all sigmas (n,) of a schedule out at once; others are worked out when they come."""
        sigmas = sigmas[sigmas > 0].cpu()
        t = self._sigma_to_t(sigmas)
        if self._lcm is not None:
            c_skip, c_out = self._lcm.boundary_scalings(t)
        else:
            c_skip, c_out = 1 / (sigmas**2 + 1), -sigmas / (sigmas**2 + 1) ** 0.5
        rows = zip(*(each.tolist() for each in (sigmas, t, 1 / (sigmas**2 + 1) ** 0.5, c_skip, c_out)))
        self._levels.update((row[0], NoiseLevel(*row)) for row in rows)

    def side_tensors(self) -> dict[str, Tensor | None]:
        """What a step's callback may look at, in diffusers' rows: uncond, then cond, of the last call's texts."""
        if self._batch is None:
            return {}
        cond, uncond, time_ids = self._batch.cond, self._batch.uncond, self.model.time_ids
        sides = [cond] if uncond is None or not self._runs_uncond else [uncond, cond]
        ids = None if time_ids is None else [time_ids[0]] if len(sides) == 1 else [time_ids[1], time_ids[0]]
        return {
            "prompt_embeds": joined_rows([rows.embeds for rows in sides]),
            "negative_prompt_embeds": None if uncond is None else uncond.embeds,
            "add_text_embeds": None if cond.pooled is None else torch.cat([rows.pooled for rows in sides]),
            "negative_pooled_prompt_embeds": None if uncond is None else uncond.pooled,
            "add_time_ids": None
            if ids is None
            else torch.cat([row.expand(len(rows.images), -1) for row, rows in zip(ids, sides, strict=True)]),
        }

    def end_step(self) -> None:
        """A step of the sampler is done; ControlNets go by steps."""
        if self.control is not None:
            self.control.end_step()

    def change_scale(self, guidance_scale: float) -> None:
        """Another guidance scale from the next call on. As in diffusers, one of 1 or less then leaves uncond out."""
        if guidance_scale != self._asked_scale:
            self._asked_scale, self._scale = guidance_scale, guidance_scale / self._divisor
            self._runs_uncond = self.guidance.do_classifier_free_guidance and guidance_scale > 1

    def _use_model(self) -> None:
        """Forget what was worked out for the model before."""
        self._dtype = self.model.unet.dtype  # looked up once: diffusers walks the whole module tree for it
        self._levels: dict[float, NoiseLevel] = {}
        self._batch: CondBatch | None = None
        self._batches: dict[tuple[int, ...], CondBatch] = {}
        conditioning = self.model.conditioning
        schedules = [piece.schedule for pieces in conditioning.positive for piece in pieces]
        self._changes = any(len(schedule) > 1 for schedule in (*schedules, *conditioning.negative))

    def _level(self, sigma: Tensor) -> NoiseLevel:
        if len(self.models) > 1:
            self._maybe_refine(self._nearest(sigma))
        value = float(sigma)
        if value not in self._levels:
            self.prepare(sigma.reshape(1))
        return self._levels[value]

    def _sigma_to_t(self, sigma: Tensor) -> Tensor:
        if self._lcm is not None:
            return self._lcm.sigma_to_t(sigma)
        return self.model.table.sigma_to_t(sigma, quantize=self.guidance.enable_quantization)

    def _x0(self, out: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """x0 of a model output, as k-diffusion's external.py has it. LCM reads every output as eps (webui 1.10)."""
        if self._lcm is not None:
            return level.c_skip * x + level.c_out * (x - level.sigma * out)
        if self.model.prediction_type == "v_prediction":
            return out * level.c_out + x * level.c_skip
        return out if self.model.prediction_type == "sample" else x - level.sigma * out

    def _eps(self, out: Tensor, x: Tensor, t: float) -> Tensor:
        """eps of a model output; the table is read at the truncated timestep."""
        if self.model.prediction_type == "epsilon":
            return out
        ac = self.model.table.alphas_cumprod[int(t)]
        if self.model.prediction_type == "v_prediction":
            return ac.sqrt() * out + (1 - ac).sqrt() * x
        return (x - ac.sqrt() * out) / (1 - ac).sqrt()

    def _nearest(self, sigma: Tensor) -> int:
        """The place of sigma in the table, nearest by plain distance; LCM looks in its own table of 50."""
        sigmas = (self._lcm or self.model.table).sigmas
        return int((sigmas.cpu() - sigma.cpu()).abs().argmin())

    def _maybe_refine(self, timestep: int) -> None:
        """Hand over to the refiner from noise level `refiner_switch_at` on, or from that share of the calls on."""
        switch_at = self.guidance.refiner_switch_at
        if switch_at is None or switch_at >= 1:
            return
        if self.guidance.refiner_switch_by_sample_steps:
            done = self.calls / self.total_calls
        else:
            done = (999 - timestep) / 1000
        if done >= switch_at:
            del self.models[0]
            self.control = self._pag = None  # its networks, and the layers, are the base model's
            self._use_model()

    def _outputs(self, x_in: Tensor, t: float, level: float) -> list[Tensor]:
        """Run the UNet at timestep t: [of all rows], or [cond's, uncond's] where they cannot share a run.

        level: sigma, or the timestep in loops over timesteps.
        """
        batch = self._batch = self._texts()
        skipped = not self._runs_uncond or self._skips_uncond(level)
        timestep = x_in.new_full((), t, dtype=self._dtype)  # the webui rounds it to the model's dtype too
        if skipped not in batch.runs:
            batch.runs[skipped] = self._unet_rows(batch, skipped, timestep)
        x, outputs = self._unet_input(x_in), []
        for rows in batch.runs[skipped]:
            if self.control is None:  # no call of ours between: the frames to the UNet are few
                out = self.model.unet(rows.take(x), timestep, **rows.given, return_dict=False)[0].float()
            else:
                out = self._controlled(rows.take(x), x_in.shape[1], timestep, t, rows)
            outputs.append(out)
        self._perturbed = self._perturbed_output(x, x_in.shape[1], timestep, t)
        self.calls += 1
        self._t = t
        if self.control is not None:
            self.control.end_evaluation()
        return outputs

    def _perturbed_output(self, x: Tensor, latent_channels: int, timestep: Tensor, t: float) -> Tensor | None:
        """The UNet's output for cond's rows with blind self-attention, float32; None without PAG."""
        batch = self._batch
        if self._pag is None or self._pag.scale_at(t) == 0:
            return None
        if True not in batch.runs:
            batch.runs[True] = self._unet_rows(batch, True, timestep)
        rows = batch.runs[True][0]
        with blind_attention(self._blinded):
            if self.control is not None:
                return self._controlled(rows.take(x), latent_channels, timestep, t, rows)
            return self.model.unet(rows.take(x), timestep, **rows.given, return_dict=False)[0].float()

    def _away(self, guided: Tensor, cond: Tensor, perturbed: Tensor | None) -> Tensor:
        if perturbed is None:
            return guided
        rows = self._batch.cond
        return pushed_away(guided, cond, perturbed, rows.images, rows.weights, self._pag.scale_at(self._t))

    def _unet_input(self, x_in: Tensor) -> Tensor:
        """The latents in the UNet's dtype, with its other channels beside them."""
        channels, x = self.guidance.extra_channels, x_in.to(self._dtype)
        return x if channels is None else torch.cat([x, nearest_cells(channels.to(x), x.shape[-2:])], dim=1)

    def _controlled(self, x: Tensor, latent_channels: int, timestep: Tensor, t: float, rows: UNetRows) -> Tensor:
        """One UNet run under ControlNets, which see the latent's channels of x alone; -> float32. t: `timestep`."""
        model, seen = self.model, x[:, :latent_channels]
        residuals = self.control.unet_arguments(
            x=seen,
            t=timestep,
            embeds=rows.given["encoder_hidden_states"],
            added=rows.given["added_cond_kwargs"] or {},
            images=rows.images,
            uncond=rows.uncond,
        )
        out = model.unet(x, timestep, **rows.given, **residuals, return_dict=False)[0].float()
        if model.table is None:
            return out
        rounded = float(torch.tensor(t, dtype=self._dtype))
        return self.control.keep(out, seen, rounded, model.table.alphas_cumprod, model.prediction_type)

    def _guided(
        self, outputs: list[Tensor], x: Tensor, level: Any, read: Callable[[Tensor, Tensor, Any], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Outputs -> guided, uncond. read: (output, x of its rows, level) -> x0, eps or as is."""
        batch, guidance, count = self._batch, self.guidance, len(self._batch.cond.images)
        skipped, blinded = len(outputs) == 1 and len(outputs[0]) == count, self._perturbed
        seen = None if blinded is None else read(blinded, batch.of_images(x), level)
        if batch.is_plain and skipped:
            cond = read(outputs[0], x, level)
            return self._away(cond, cond, seen), cond
        if batch.is_plain and len(outputs) == 1 and guidance.guidance_rescale <= 0:
            cond, uncond = read(outputs[0].view(2, *x.shape), x, level).unbind()
            return self._away(uncond + (cond - uncond) * (self._scale * batch.cond.weights[0]), cond, seen), uncond
        out, out_uncond = outputs if len(outputs) == 2 else (outputs[0][:count], outputs[0][count:])
        images, scales = (
            batch.cond.images,
            [weight * (1.0 if skipped else self._scale) for weight in batch.cond.weights],
        )
        cond = read(out, batch.of_images(x), level)
        uncond = batch.first_rows(cond) if skipped else read(out_uncond, x, level)
        if guidance.guidance_rescale > 0 and not skipped:  # of the output, as in diffusers
            raw = self._away(combine_conds(out_uncond, out, images, scales), out, blinded)
            rescaled = rescale_guidance(raw, batch.first_rows(out), guidance.guidance_rescale)
            return read(rescaled, x, level), uncond
        return self._away(combine_conds(uncond, cond, images, scales), cond, seen), uncond

    def _skips_uncond(self, level: float) -> bool:
        """The options skip_early_cond, then s_min_uncond (NGMS). `level` is sigma, or the *timestep* in timestep
        samplers: the webui compares what it has."""
        g = self.guidance
        if g.skip_early_cond > 0 and self.calls / self.total_calls <= g.skip_early_cond:
            return True
        return g.s_min_uncond > 0 and (g.s_min_uncond_all or self.calls % 2 == 1) and level < g.s_min_uncond

    def _texts(self) -> CondBatch:
        """The texts that hold at this call, stacked; the last few are kept for alternating prompts."""
        if self._batch is not None and not self._changes:
            return self._batch
        conditioning = self.model.conditioning
        chosen = [
            (image, piece.weight, cond_at_call(piece.schedule, self.calls))
            for image, pieces in enumerate(conditioning.positive)
            for piece in pieces
        ]
        against = [(i, 1.0, cond_at_call(schedule, self.calls)) for i, schedule in enumerate(conditioning.negative)]
        key = tuple(id(entry.embeds) for _, _, entry in chosen + against)
        if key not in self._batches:
            last = self.guidance.repeats_last
            cond = stack_conds(chosen, repeats_last=last)
            uncond = stack_conds(against, repeats_last=last) if against else None
            if uncond is not None and cond.embeds.shape[1] != uncond.embeds.shape[1]:
                pad, pad_v0 = self.guidance.pad_cond_uncond, self.guidance.pad_cond_uncond_v0
                cond, uncond = padded_sides(cond, uncond, conditioning.empty, pad=pad, pad_v0=pad_v0)
            while len(self._batches) >= KEPT_BATCHES:
                del self._batches[next(iter(self._batches))]
            self._batches[key] = CondBatch(cond, uncond)
        return self._batches[key]

    def _unet_rows(self, batch: CondBatch, skipped: bool, place: Tensor) -> list[UNetRows]:
        """The runs of a call: cond alone, both sides in one, or one after the other if their length differs."""
        if skipped:
            runs = [[(batch.cond, 0)]]
        elif batch.cond.embeds.shape[1] != batch.uncond.embeds.shape[1] or not self.guidance.batch_cond_uncond:
            runs = [[(batch.cond, 0)], [(batch.uncond, 1)]]
        else:
            runs = [[(batch.cond, 0), (batch.uncond, 1)]]
        model, guidance, found = self.model, self.guidance, []
        for sides in runs:
            cond, count = guidance.timestep_cond, sum(len(rows.images) for rows, _ in sides)
            found.append(
                unet_rows(
                    sides,
                    len(model.conditioning.positive),
                    place,
                    time_ids=model.time_ids,
                    image_embeds=guidance.image_embeds,
                    timestep_cond=None if cond is None else cond.to(self._dtype).expand(count, -1),
                    cross_attention_kwargs=guidance.cross_attention_kwargs,
                )
            )
        return found
