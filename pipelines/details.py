"""Detailing passes over finished pictures: things are found, masked, and each mask is one img2img job.

passes in order, each on the picture that the one before left
    found -> masks -> jobs, each on the picture that the one before left
        one job (redrawing.py)
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Generator

from ..loaders.utils import LOGGER
from .conditioning import Conditioning, SizeArguments
from .control.guidance import PassControl
from .detailer_settings import detailer_fields
from .images.detail.jobs import DetailJob, detail_jobs
from .images.detail.regions import detail_regions
from .images.init_image import GivenImages, InitArguments, prepare_init
from .loras import ActiveLoras, lora_uses, networks_on
from .passes import StepWatch
from .prompt.network_tags import split_batch_tags
from .redrawing import redrawn_pictures
from .request import DetailPass, DetailRequest, InitRequest, NoiseRequest, Request, StepArguments
from .sampling.denoiser import Guidance
from .sampling.discrete_schedule import NoiseTable, scheduler_alphas_cumprod


@dataclass
class ImageDetails:
    """What became of one image."""

    picture: Image.Image
    begun: list[int]  # numbers of the passes that its text names
    report: list[str]  # one line a pass


class DetailRun:
    """The detailing passes of one call, if it has any: `request.details`. `details` has one entry an image after
    `edit`."""

    def __init__(self, pipe: Any, request: Request, networks: ActiveLoras, watch: StepWatch):
        self.pipe, self.request, self.networks, self.watch = pipe, request, networks, watch
        self.asked: DetailRequest | None = request.details
        self.details: list[ImageDetails] = []
        seeds = request.noise.seeds
        self._last_seed = None if seeds is None or request.noise.source == "nv" else seeds[-1]

    def edit(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Each picture after all passes; as it came where nothing was found or the user stopped the call."""
        for k, picture in enumerate(pictures):
            state = ImageDetails(picture, [], [])
            self.details.append(state)
            for one in self.asked.passes:
                if self.pipe.interrupt or not self._pass(one, state, k):
                    break
        self.pipe._detail_reports = self.report
        return [state.picture for state in self.details]

    @property
    def fields(self) -> list[dict[str, Any]]:
        """The fields of each image's text: of the passes that were over, or had begun to change it."""
        passes = () if self.asked is None else self.asked.plan.passes
        return [detailer_fields(one for one in passes if one.number in state.begun) for state in self.details]

    @property
    def report(self) -> list[str]:
        """One line an image and pass: what was found, and what was made of it."""
        return [f"image {k}, {line}" for k, state in enumerate(self.details) for line in state.report]

    def _pass(self, one: DetailPass, state: ImageDetails, k: int) -> bool:
        """One pass over one image; whether the next may follow."""
        name = f"pass {one.settings.number} ({one.settings['ad_model']})"
        jobs = self._jobs(one, state.picture, k)
        before = state.picture
        for n, job in enumerate(jobs):
            try:
                drawn = self._job(one, job, state.picture, k)
            except (
                ValueError
            ) as error:  # as in the webui: the picture stays as this pass found it, later ones do not run
                state.picture = before
                state.begun.append(one.settings.number)
                LOGGER.warning("The detailer's %s failed, and the picture stays without it: %s", name, error)
                state.report.append(f"{name}: failed, nothing changed: {error}")
                return False
            if self.pipe.interrupt:
                state.begun += [one.settings.number] if n else []
                state.report.append(f"{name}: stopped after {n} of {len(jobs)} masks")
                return False
            state.picture = drawn
        state.begun.append(one.settings.number)
        state.report.append(
            f"{name}: "
            + (
                f"{len(jobs)} mask{'' if len(jobs) == 1 else 's'} redrawn"
                if jobs
                else "nothing found, nothing changed"
            )
        )
        LOGGER.info("detailer, image %d, %s", k, state.report[-1])
        return True

    def _jobs(self, one: DetailPass, picture: Image.Image, k: int) -> list[DetailJob]:
        asked, options = self.asked, self.request.options
        found = one.find(np.array(picture), k)
        regions = detail_regions(
            found, picture.size, one.settings, order=options["ad_bbox_sortby"], within=asked.within
        )
        return detail_jobs(regions, one.settings, asked.texts[k], asked.size, options, is_sdxl=bool(one.pipe.is_sdxl))

    def _job(self, one: DetailPass, job: DetailJob, picture: Image.Image, k: int) -> Image.Image:
        """The picture after one job; as it was where the safety checker refuses what was drawn."""
        request = self._job_request(one, job, picture, k)
        if one.pipe is self.pipe:
            drawn = redrawn_pictures(self.pipe, request, self.networks, self.watch)
        else:
            one.pipe._begin(request.first.guidance, None)
            with networks_on(one.pipe, self.asked.backend) as networks:
                watch = replace(self.watch, networks=networks)
                drawn = redrawn_pictures(one.pipe, request, networks, watch)
        return picture if drawn.flagged and drawn.flagged[0] else drawn.pictures[0]

    def _job_request(self, one: DetailPass, job: DetailJob, picture: Image.Image, k: int) -> Request:
        outer, asked, settings = self.request, self.asked, one.settings
        texts, tags = split_batch_tags([job.prompt])
        loras = lora_uses(self.pipe.networks, tags, asked.loras)
        same = one.pipe is self.pipe and [lora.use for lora in loras] == [lora.use for lora in outer.first.loras]
        encoder = outer.first.encoder
        if not same and one.pipe.text_encoder is not None:
            encoder = one.pipe.attached.encoder(one.pipe, [lora.network for lora in loras])
        first = replace(
            outer.first,
            prompts=texts,
            negatives=[job.negative],
            written=[job.prompt],
            loras=loras,
            encoder=encoder,
            sampler=one.sampler,
            schedule=one.schedule,
            table=NoiseTable(scheduler_alphas_cumprod(one.pipe.scheduler, outer.options)),
            steps=one.steps,
            width=max(job.width // outer.first.cell, 1) * outer.first.cell,
            height=max(job.height // outer.first.cell, 1) * outer.first.cell,
            asked_size=(job.height, job.width),
            guidance=self._guidance(one, k),
            refines=False,
            strength=min(max(job.strength, 0.0), 1.0),
            exact_steps=bool(outer.options["img2img_fix_steps"]),
            noise_multiplier=one.noise_multiplier,
            seconds=None,
            step_arguments=StepArguments(),
            control=PassControl(),
        )
        prompt_settings = outer.prompt_settings
        if one.clip_skip is not None:
            prompt_settings = replace(prompt_settings, CLIP_stop_at_last_layers=one.clip_skip, clip_skip=None)
        return replace(
            outer,
            first=first,
            second=None,
            enlargement=None,
            details=None,
            noise=self._job_noise(job, k),
            prompt_settings=prompt_settings,
            init=self._job_init(one, job, picture, k),
            embeds=_embeds_of_image(outer.embeds, k) if not settings["ad_prompt"] else None,
            sizes=SizeArguments(),
            units=(),
            overlays=(),
            latents=None,
            eta=None,
            faces=one.faces,
            seeds=[job.seed],
        )

    def _guidance(self, one: DetailPass, k: int) -> Guidance:
        outer = self.request.first.guidance
        rows = outer.image_embeds
        if rows is not None:
            rows = tuple([part[k : k + 1] for part in side] for side in rows)  # type: ignore[assignment]
        do_classifier_free_guidance = one.sampler is not None or one.guidance_scale > 1
        return replace(
            outer,
            guidance_scale=one.guidance_scale,
            do_classifier_free_guidance=do_classifier_free_guidance,
            repeats_last=one.sampler is not None,
            image_embeds=rows,
            extra_channels=None,
            refiner_switch_at=None,
            pag=None,  # of the drawing alone, as extensions of the webui are
            freeu=None,
        )

    def _job_noise(self, job: DetailJob, k: int) -> NoiseRequest:
        outer = self.request.noise
        if outer.seeds is None:
            own = outer.generator[k] if isinstance(outer.generator, list) else outer.generator
            return replace(outer, generator=own)
        return replace(outer, seeds=[job.seed], subseeds=[job.subseed], generator=None)

    def _job_init(self, one: DetailPass, job: DetailJob, picture: Image.Image, k: int) -> InitRequest:
        settings = one.settings
        outer = self.request.init
        asked = InitArguments(
            mask_blur=settings["ad_mask_blur"],
            inpaint_area="masked" if settings["ad_inpaint_only_masked"] else "whole",
            masked_padding=settings["ad_inpaint_only_masked_padding"],
            soft=None if outer is None else outer.arguments.soft,
        )
        if asked.inpaint_area == "masked" and picture.size != job.mask.size:  # a job before changed the picture's size
            canvas = Image.new("RGB", job.mask.size)
            canvas.paste(picture)
            picture = canvas
        images = prepare_init(GivenImages([picture]), job.mask, (job.width, job.height), asked)
        return InitRequest(asked, images, [0], True, self._encoding_generator(job, k))

    def _encoding_generator(self, job: DetailJob, k: int) -> Generator | None:
        """What draws the VAE's encoding: torch's global generator of the webui, which the seed used last has set; the
        caller's where there are no seeds; with the source "nv" torch's global one as it stands."""
        if self._last_seed is not None:
            generator = Generator("cpu").manual_seed(self._last_seed)
            self._last_seed = job.seed
            return generator
        own = self.request.noise.generator if self.request.noise.seeds is None else None
        return own[k] if isinstance(own, list) else own


def _embeds_of_image(embeds: Conditioning | None, k: int) -> Conditioning | None:
    """The given conditioning of image k alone."""
    if embeds is None:
        return None
    return replace(embeds, positive=[embeds.positive[k]], negative=[embeds.negative[k]] if embeds.negative else [])
