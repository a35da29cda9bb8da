"""Several img2img jobs in place of one: SD upscale and loopback."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Generator

from .detailer_settings import read_detailers
from .details import DetailRun
from .images.init_image import GivenImages, prepare_init
from .images.sd_upscale import cut_tiles, join_tiles, tile_seeds
from .images.tile_grid import check_tile
from .images.upscale import enlarge_by
from .loras import ActiveLoras
from .passes import StepWatch
from .redrawing import redrawn_pictures
from .request import InitRequest, NoiseRequest, Request
from .sampling.samplers import resolve_sampler
from .script_settings import Loopback, SDUpscale, SkippedDrawing, read_loopback, read_sd_upscale


class ScriptOutput(NamedTuple):
    """The pictures of a script."""

    pictures: list[Image.Image]
    embeddings: tuple[str, ...]  # textual inversions in use
    request: Request  # as the texts have it, one image a picture


def img2img_script(
    given: Mapping[str, Any], init: InitRequest, prompts: Sequence[str]
) -> SDUpscale | Loopback | SkippedDrawing | None:
    """The arguments `sd_upscale` and `loopback`, read; or that img2img is skipped for `detailers`.

    prompts: one an image. Raises ValueError where they cannot be drawn with the rest of the call.
    """
    plan = read_detailers(given["detailers"])
    if plan.skip_img2img and plan.active and not init.masked:
        if not init.pictures:
            raise ValueError("`detailers` that skip img2img begin with the given pictures, and `image` is latents.")
        return SkippedDrawing()
    scripts = [script for script in (read_sd_upscale(given["sd_upscale"]), read_loopback(given["loopback"])) if script]
    if not scripts:
        return None
    name = "sd_upscale" if isinstance(scripts[0], SDUpscale) else "loopback"
    if len(scripts) > 1:
        raise ValueError("`sd_upscale` and `loopback` are both given: a call can do one of them. Call twice.")
    if not init.pictures or len(set(prompts)) > 1 or given["prompt_embeds"] is not None:
        raise ValueError(f"`{name}` draws from pictures (not latents) with one text prompt: call it for each.")
    if isinstance(given["generator"], list) or (given["generator"] is not None and given["seed"] is None):
        raise ValueError(f"`{name}` counts its seeds up from job to job: pass `seed` in place of `generator`.")
    if given["control_units"] or given["control_image"] is not None:
        raise ValueError(
            f"`{name}` makes several jobs, and a ControlNet's image is for one: leave out one of the two."
        )
    if name == "sd_upscale" and init.masked:
        raise ValueError("`sd_upscale` draws every tile whole: leave out `mask_image`.")
    return scripts[0]


def run_script(
    pipe: Any, request: Request, networks: ActiveLoras, watch: StepWatch, details: DetailRun
) -> ScriptOutput:
    """The pictures of SD upscale (one an image of the batch), of loopback (every loop's for one image, else the last
    of each), or of detailing passes without a drawing. Where the user stops it, what is finished."""
    script, count = request.script, request.first.batch_size
    if isinstance(script, SkippedDrawing):
        pictures = details.edit([request.init.pictures[row] for row in request.init.rows])
        sampler, _ = resolve_sampler("Euler")
        first = replace(request.first, steps=1, sampler=sampler, asked_size=(128, 128))  # what the webui does instead
        return ScriptOutput(pictures, (), replace(request, first=first))
    jobs = _ScriptJobs(pipe, request, networks, watch)
    if isinstance(script, SDUpscale):
        pictures = [jobs.upscaled(u) for u in range(count) if not u or not pipe.interrupt]
    else:
        rounds = [jobs.looped() for u in range(count) if not u or not pipe.interrupt]
        pictures = rounds[0] if count == 1 else [loops[-1] for loops in rounds]
    return ScriptOutput(pictures, jobs.embeddings, _same_text(request, len(pictures)))


def _same_text(request: Request, count: int) -> Request:
    """The request of `count` images that all have the first one's text, as the webui writes them."""
    first = request.first
    return replace(
        request,
        first=replace(first, written=first.written[:1] * count, negatives=first.negatives[:1] * count),
        noise=replace(request.noise, subseeds=request.noise.subseeds[:1] * count),
        seeds=request.seeds[:1] * count,
    )


class _ScriptJobs:
    """The jobs of one call, in order: the noise of each encoding follows from the job before."""

    def __init__(self, pipe: Any, request: Request, networks: ActiveLoras, watch: StepWatch):
        self.pipe, self.request, self.networks, self.watch = pipe, request, networks, watch
        self.embeddings: tuple[str, ...] = ()
        self._generator = request.init.generator
        self._loops = 0
        self._large: Image.Image | None = None

    def upscaled(self, u: int) -> Image.Image:
        """SD upscale: the picture enlarged, each tile drawn over, joined."""
        asked, first, noise = self.request.script, self.request.first, self.request.noise
        tile = (first.asked_size[1], first.asked_size[0])
        for side in tile:
            check_tile(side, asked.overlap)
        large = self._enlarged()
        tiles = cut_tiles(large, tile, asked.overlap)
        batch = asked.batch_size
        drawn: list[Image.Image] = []
        for group, seeds in enumerate(tile_seeds(len(tiles), batch, noise.seeds[0] + u)):
            own = tiles[group * batch : (group + 1) * batch]
            if self.pipe.interrupt:  # the rest stays as it was enlarged
                drawn += own
                continue
            count = (
                batch if len(own) == 1 else len(own)
            )  # the webui draws a single last tile as often as a whole group
            images = prepare_init(GivenImages(own), None, tile, self.request.init.arguments)
            init = InitRequest(
                self.request.init.arguments, images, [min(i, len(own) - 1) for i in range(count)], False
            )
            seeds = [seeds[0]] * count if noise.subseed_strength else seeds[:count]
            drawn += self._job(init, seeds, self.request.first.strength)[: len(own)]
        return join_tiles(drawn, large.size, tile, asked.overlap)

    def _enlarged(self) -> Image.Image:
        """The picture that is cut into tiles, made once. Loading a model draws random numbers, as in the webui."""
        asked, options = self.request.script, self.request.options
        if self._large is None:
            upscaler = asked.upscaler
            if isinstance(upscaler, str):
                upscaler = self.pipe.attached.upscaler(upscaler, None)[1]
            self._large = enlarge_by(
                self.request.init.pictures[0],
                asked.scale,
                upscaler,
                tile=options["ESRGAN_tile"],
                overlap=options["ESRGAN_tile_overlap"],
                generator=torch.default_generator if self._generator is None else self._generator,
            )
        return self._large

    def looped(self) -> list[Image.Image]:
        """Loopback: each result drawn over again."""
        asked, first, outer = self.request.script, self.request.first, self.request.init
        picture, results = outer.pictures[0], []
        size = (first.asked_size[1], first.asked_size[0])
        for loop in range(asked.loops):
            arguments = outer.arguments if loop == 0 else replace(outer.arguments, masked_content="original")
            images = prepare_init(GivenImages([picture]), outer.mask, size, arguments)
            init = InitRequest(arguments, images, [0], outer.masked)
            seed = self.request.noise.seeds[0] + self._loops
            (picture,) = self._job(init, [seed], asked.strength(first.strength, loop))
            self._loops += 1
            results.append(picture)
            if self.pipe.interrupt:
                break
        return results

    def _job(self, init: InitRequest, seeds: list[int], strength: float) -> list[Image.Image]:
        outer, noise, count = self.request, self.request.noise, len(seeds)
        first = replace(
            outer.first,
            prompts=outer.first.prompts[:1] * count,
            negatives=outer.first.negatives[:1] * count,
            written=outer.first.written[:1] * count,
            strength=strength,
        )
        subseeds = [noise.subseeds[0] + i for i in range(count)]
        request = replace(
            outer,
            first=first,
            noise=replace(noise, seeds=seeds, subseeds=subseeds),
            init=replace(init, generator=self._generator),
        )
        self._generator = _generator_after(noise, seeds[-1])
        drawn = redrawn_pictures(self.pipe, request, self.networks, self.watch)
        self.embeddings = drawn.embeddings
        return drawn.pictures


def _generator_after(noise: NoiseRequest, seed: int) -> Generator | None:
    """torch's global generator as the webui leaves it after a job: at the seed used last, unless noise is "nv"."""
    return None if noise.source == "nv" else Generator("cpu").manual_seed(seed)
