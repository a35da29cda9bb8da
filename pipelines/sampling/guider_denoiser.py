"""The denoiser under a guider of diffusers (PAG, APG, ...), which says what predictions it needs, and joins them.

It joins what the UNet gave, as in diffusers' own denoise blocks; the result is read as x0 or eps afterwards, so that
every sampler can be used. It sees each text of `a AND b` beside the negative prompt as a prompt of its own; their
shares are then put together as without a guider. A step that evaluates the model twice shows it one step twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, tensor

from .denoiser import DenoiserModel, Guidance, GuidedDenoiser
from .guidance_terms import combine_conds


# Arguments and options that only guidance without a guider reads -> their fields.
_WITHOUT_GUIDER = {
    "s_min_uncond": "s_min_uncond",
    "skip_early_cond": "skip_early_cond",
    "guidance_rescale": "guidance_rescale",
    "pag_scale": "pag",
}


def guided_denoiser(
    models: Sequence[DenoiserModel], guidance: Guidance, *, steps: int | None, **settings: Any
) -> GuidedDenoiser:
    """What a sampler or a scheduler's loop calls: under `guidance.guider` where there is one.

    steps: of the pass, None where they are not known. settings: of GuidedDenoiser.
    """
    if guidance.guider is None:
        return GuidedDenoiser(models, guidance, **settings)
    return GuiderDenoiser(models, guidance, steps=steps or settings["total_calls"], **settings)


def check_under_guider(guidance: Guidance, divisor: float) -> None:
    """Raises ValueError for settings, and a sampler's divisor of the scale, that only plain guidance has."""
    name = type(guidance.guider).__name__
    for argument, setting in _WITHOUT_GUIDER.items():
        if getattr(guidance, setting):
            raise ValueError(
                f"`{argument}` is given, and a {name} guides, which does not read it. Leave it out, or take "
                "ClassifierFreeGuidance as the guider."
            )
    if divisor != 1.0:
        raise ValueError(
            f"The sampler divides the guidance scale, and a {name} guides, whose scale it cannot divide. Take another "
            "sampler, or ClassifierFreeGuidance as the guider."
        )


class GuiderDenoiser(GuidedDenoiser):
    """D(x, sigma) as the guider has it. Raises ValueError for settings that only plain guidance reads."""

    def __init__(self, models: Sequence[DenoiserModel], guidance: Guidance, *, steps: int, **settings: Any):
        check_under_guider(guidance, settings.get("guidance_divisor", 1.0))
        self._guider, self._steps, self._step = guidance.guider, steps, 0
        super().__init__(models, replace(guidance, batch_cond_uncond=False), **settings)

    def end_step(self) -> None:
        """A step of the sampler is done; guiders go by steps."""
        super().end_step()
        self._step += 1

    def _outputs(self, x_in: Tensor, t: float, level: float) -> list[Tensor]:
        """[the guided rows], or [them, uncond's]: as the UNet gives them, one row a text."""
        batch, guider, unet = self._texts(), self._guider, self.model.unet
        self._batch = batch
        timestep = x_in.new_full((), t, dtype=self._dtype)
        if False not in batch.runs:
            batch.runs[False] = self._unet_rows(batch, False, timestep)
        x = self._unet_input(x_in)
        guider.set_state(step=self._step, num_inference_steps=self._steps, timestep=tensor(t))
        predictions, uncond = guider.prepare_inputs({"side": (0, 1)}), None
        for prediction in predictions:
            rows = batch.runs[False][prediction.side]
            guider.prepare_models(unet)
            try:
                out = unet(rows.take(x), timestep, **rows.given, return_dict=False)[0].float()
            finally:
                guider.cleanup_models(unet)
            if prediction.side:
                uncond, out = out, batch.of_images(out)
            prediction.noise_pred = out
        self.calls += 1
        self._t = t
        guided = guider(predictions)[0]
        return [guided] if uncond is None else [guided, uncond]

    def _guided(
        self, outputs: list[Tensor], x: Tensor, level: Any, read: Callable[[Tensor, Tensor, Any], Tensor]
    ) -> tuple[Tensor, Tensor]:
        batch = self._batch
        rows = read(outputs[0], batch.of_images(x), level)
        uncond = batch.first_rows(rows) if len(outputs) == 1 else read(outputs[1], x, level)
        if batch.is_plain and batch.cond.weights[0] == 1:
            return rows, uncond
        return combine_conds(uncond, rows, batch.cond.images, batch.cond.weights), uncond
