"""Noise of a batch, one stream per image: an image never depends on its neighbours in the batch."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..device_copies import sent
from .philox import PhiloxStream


NOISE_SOURCES = ("gpu", "cpu", "nv")
PIXELS_PER_LATENT = 8


def noise_stream(seed: int, source: str, device: torch.device) -> Callable[[tuple[int, ...]], Tensor]:
    """Normal numbers of one seed: a function (shape) -> float32 tensor on `device`, each call the next in the stream.

    source: "cpu" is torch's CPU generator; "nv" is Philox, a card's numbers made in software; "gpu" is what an NVIDIA
    card gives: its own generator where `device` is one, Philox elsewhere.
    """
    if source not in NOISE_SOURCES:
        raise ValueError(f"noise source {source!r} is unknown: use one of {', '.join(map(repr, NOISE_SOURCES))}.")
    if source == "nv" or (source == "gpu" and device.type != "cuda"):
        philox = PhiloxStream(seed)
        return lambda shape: sent(torch.from_numpy(philox.randn(tuple(shape))), device)
    home = device if source == "gpu" else torch.device("cpu")
    generator = torch.Generator(home).manual_seed(seed)
    return lambda shape: normal_numbers(shape, generator, home, device)


def seeded_draw(shape: Sequence[int], source: str, device: torch.device) -> Callable[[int], Tensor]:
    """The first draw of `noise_stream`, as a function of the seed, for many seeds: one generator serves them all."""
    if source not in NOISE_SOURCES or source == "nv" or (source == "gpu" and device.type != "cuda"):
        return lambda seed: noise_stream(seed, source, device)(shape)
    home = device if source == "gpu" else torch.device("cpu")
    generator = torch.Generator(home)
    return lambda seed: normal_numbers(shape, generator.manual_seed(seed), home, device)


def normal_numbers(
    shape: Sequence[int], generator: torch.Generator | None, home: torch.device, device: torch.device
) -> Tensor:
    """Normal numbers drawn on `home`, float32 on `device`."""
    return sent(torch.randn(shape, generator=generator, device=home, dtype=torch.float32), device)


class SeededNoise:
    """The webui's noise for one pass over one batch.

    shape: one image's latent (c, h, w). seeds: one whole number of up to 64 bits per image.
    subseeds, subseed_strength: mix the first draw with that of another seed (0 where the list is short).
    seed_resize: (w, h) in pixels; the first draw is that of a latent this large, put in the middle. None, or a side
    that is not positive, means off.
    eta_noise_seed_delta: all draws but the first come from seed + delta.

    >>> SeededNoise((4, 64, 64), [1, 2], source="nv").next().shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(
        self,
        shape: Sequence[int],
        seeds: Sequence[int],
        *,
        source: str = "gpu",
        subseeds: Sequence[int] | None = None,
        subseed_strength: float = 0.0,
        seed_resize: tuple[int, int] | None = None,
        eta_noise_seed_delta: int = 0,
        device: torch.device | str | None = None,
    ):
        self.shape = tuple(int(side) for side in shape)
        if len(self.shape) != 3:
            raise ValueError(f"`shape` is one image's latent, (channels, height, width) in cells; got {self.shape}.")
        self.seeds = [_checked_seed(seed) for seed in seeds]
        if not self.seeds:
            raise ValueError("`seeds` is empty: give one seed per image.")
        self.source = source.lower()
        self.device = torch.device(device or "cpu")
        self.subseeds = [_checked_seed(seed) for seed in subseeds or []]
        self.subseed_strength = float(subseed_strength)
        self.first_shape = _resized_shape(self.shape, seed_resize)
        self.delta = int(eta_noise_seed_delta)
        self._streams = [self._stream(seed) for seed in self.seeds]
        self._is_first = True

    def next(self) -> Tensor:
        """The next draw of every image, (n, c, h, w) float32. The first is what the pass starts from."""
        if not self._is_first:
            return stacked([stream(self.shape) for stream in self._streams])
        self._is_first = False
        noise = stacked([self._first(i) for i in range(len(self.seeds))])
        if self.delta:
            self._streams = [self._stream(_checked_seed(seed + self.delta)) for seed in self.seeds]
        return noise

    def global_generator(self) -> torch.Generator | None:
        """A new generator that stands where the webui leaves torch's global CPU generator after the first draw.

        The hires pass draws the VAE encoder's noise from there, one draw per image in order. None with source "nv",
        which leaves the global generator alone. Our own draws never touch torch's global generator.
        """
        return None if self.source == "nv" else torch.Generator("cpu").manual_seed(self.seeds[-1])

    def _stream(self, seed: int) -> Callable[[tuple[int, ...]], Tensor]:
        return noise_stream(seed, self.source, self.device)

    def _first(self, index: int) -> Tensor:
        seed, stream = self.seeds[index], self._streams[index]
        resized = self.first_shape != self.shape
        noise = self._stream(seed)(self.first_shape) if resized else stream(self.shape)
        if self.subseed_strength:
            subseed = self.subseeds[index] if index < len(self.subseeds) else 0
            noise = slerp_columns(self.subseed_strength, noise, self._stream(subseed)(self.first_shape))
        return _paste_centred(stream(self.shape), noise) if resized else noise


class GeneratorNoise:
    """diffusers' noise convention behind the same door: `generator` is one for the batch, one per image, or None.

    shape: one image's latent (c, h, w); count: images in the batch.
    """

    def __init__(
        self,
        shape: Sequence[int],
        count: int,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        device: torch.device | str | None = None,
    ):
        self.shape = tuple(int(side) for side in shape)
        self.count = count
        self.device = torch.device(device or "cpu")
        self.source = "cpu"
        self.generator = list(generator) if isinstance(generator, (list, tuple)) else generator
        if isinstance(self.generator, list) and len(self.generator) != count:
            raise ValueError(f"`generator` lists {len(self.generator)} generators for {count} images: give one each.")

    @cached_property
    def seeds(self) -> list[int]:
        """One number an image, for Brownian paths; without a generator they are drawn, once, by torch's global one."""
        if isinstance(self.generator, list):
            return [each.initial_seed() for each in self.generator]
        first = int(torch.randint(2**62, ())) if self.generator is None else self.generator.initial_seed()
        return [(first + i) % 2**64 for i in range(self.count)]

    def next(self) -> Tensor:
        """The next draw, (n, c, h, w) float32."""
        if isinstance(self.generator, list):
            return torch.cat([self._draw(1, each) for each in self.generator])
        return self._draw(self.count, self.generator)

    def global_generator(self) -> torch.Generator | None:
        """The caller's own generator, where it is a single one; None is torch's global one."""
        return self.generator if isinstance(self.generator, torch.Generator) else None

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        home = self.device if generator is None else generator.device
        return normal_numbers((count, *self.shape), generator, home, self.device)


def stacked(images: list[Tensor]) -> Tensor:
    """(n, c, h, w) of n images (c, h, w); one is not copied."""
    return images[0][None] if len(images) == 1 else torch.stack(images)


def generator_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int, device: torch.device | str = "cpu"
) -> list[int]:
    """The seed of the generator that draws each of `count` images; [] where none is known.

    It is known as long as nothing was drawn since `manual_seed`. None is torch's global generator, on the CPU.
    """
    if generator is None:
        if torch.device(device).type != "cpu":
            return []
        generator = torch.default_generator
    each = list(generator) if isinstance(generator, (list, tuple)) else [generator] * count
    fresh = [
        torch.equal(one.get_state(), torch.Generator(one.device).manual_seed(one.initial_seed()).get_state())
        for one in dict.fromkeys(each)
    ]
    return [one.initial_seed() for one in each] if all(fresh) else []


def slerp_columns(strength: float, low: Tensor, high: Tensor) -> Tensor:
    """Spherical interpolation from `low` (strength 0) to `high` (strength 1). Both (c, h, w).

    Quirks of the webui, kept because every picture with a variation seed depends on them: the angle is taken along
    the height, one per channel and column, and where the two are nearly parallel the weights of the straight line
    are the wrong way round. See test_noise.py, test_variation_noise_turns_column_by_column.
    """
    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)
    if dot.mean() > 0.9995:
        return low * strength + high * (1 - strength)
    omega = torch.acos(dot)
    from_low = torch.sin((1.0 - strength) * omega) / torch.sin(omega)
    from_high = torch.sin(strength * omega) / torch.sin(omega)
    return from_low.unsqueeze(1) * low + from_high.unsqueeze(1) * high


def _resized_shape(shape: tuple[int, ...], seed_resize: tuple[int, int] | None) -> tuple[int, ...]:
    width, height = seed_resize or (0, 0)
    if (width or 0) <= 0 or (height or 0) <= 0:
        return shape
    return (shape[0], int(height) // PIXELS_PER_LATENT, int(width) // PIXELS_PER_LATENT)


def _paste_centred(background: Tensor, patch: Tensor) -> Tensor:
    """`patch` over the middle of `background`, cut where it is larger. Both (c, h, w), any sizes."""
    into, out_of = [slice(None)], [slice(None)]
    for side in (1, 2):
        margin = (background.shape[side] - patch.shape[side]) // 2
        length = patch.shape[side] if margin >= 0 else patch.shape[side] + 2 * margin
        into.append(slice(max(margin, 0), max(margin, 0) + length))
        out_of.append(slice(max(-margin, 0), max(-margin, 0) + length))
    background[tuple(into)] = patch[tuple(out_of)]
    return background


def _checked_seed(seed: int) -> int:
    if int(seed) != seed or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed {seed!r} is not a whole number of at most 64 bits: choose one from 0 to 2**64 - 1.")
    return int(seed)
