"""Step noise of the SDE samplers: increments of one Brownian path per image, whatever steps are taken through it."""

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .noise import noise_stream, stacked


# torchsde.BrownianTree's own settings: times are rounded to `tol` = 1e-6, seeds are pooled over 24 words.
_TREE_DIGITS = 6
_TREE_POOL = 24
_TREE_MEMORY = 64  # halves remembered between queries; consecutive queries share all but the last few


class BrownianPath:
    """W(b) - W(a) on [t0, t1], decided by `entropy` alone and not by the queries: torchsde.BrownianTree's numbers.

    Binary tree of Brownian bridges: half of an interval gets mean W/2 and a normal number seeded by the place in the
    tree. After torchsde 0.2.6, torchsde/_brownian/brownian_interval.py (Apache-2.0), with two differences: the normal
    numbers come from `draw`, (seed) -> Tensor, where torchsde offers no choice, and queries outside are clamped
    without a warning.
    """

    def __init__(self, t0: float, t1: float, entropy: int, draw: Callable[[int], Tensor]):
        self.start, self.end = round(t0, _TREE_DIGITS), round(t1, _TREE_DIGITS)
        self.entropy = entropy % 2**64
        self._draw = draw
        self._halves: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        seed = np.random.SeedSequence(entropy=self.entropy, pool_size=_TREE_POOL).generate_state(3)[0]
        self._whole = draw(int(seed)) * math.sqrt(t1 - t0)

    def __call__(self, a: float, b: float) -> Tensor:
        """The increment from `a` to `b`, a <= b."""
        a, b = (round(min(max(t, self.start), self.end), _TREE_DIGITS) for t in (a, b))
        if a == b:
            return torch.zeros_like(self._whole)
        pieces = self._pieces((self.start, self.end), self._whole, (0, 0), a, b)
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total

    def _pieces(self, ends: tuple[float, float], w: Tensor, node: tuple[int, int], a: float, b: float) -> list[Tensor]:
        """Increments of the tree's intervals that make up [a, b], in order. w: increment over `ends`."""
        start, end = ends
        if (a, b) == ends:
            return [w]
        middle = round(0.5 * (end + start), _TREE_DIGITS)
        left = self._left_half(start, middle, end, w, node)
        key, depth = node
        pieces = []
        if a < middle:
            pieces += self._pieces((start, middle), left, (2 * key, depth + 1), a, min(b, middle))
        if b > middle:
            pieces += self._pieces((middle, end), w - left, (2 * key + 1, depth + 1), max(a, middle), b)
        return pieces

    def _left_half(self, start: float, middle: float, end: float, w: Tensor, node: tuple[int, int]) -> Tensor:
        if node not in self._halves:
            sequence = np.random.SeedSequence(entropy=self.entropy, spawn_key=node, pool_size=_TREE_POOL)
            normal = self._draw(int(sequence.generate_state(4)[0]))
            reciprocal = 1 / (end - start)
            deviation = math.sqrt((middle - start) * (end - middle) * reciprocal)
            mean = ((middle - start) * w).mul_(reciprocal)
            self._halves[node] = normal.mul_(deviation).add_(mean)
            if len(self._halves) > _TREE_MEMORY:
                self._halves.popitem(last=False)
        self._halves.move_to_end(node)
        return self._halves[node]


class BrownianNoise:
    """Unit-variance noise between two sigmas, (n, c, h, w): (W(b) - W(a)) / sqrt|b - a|, one path per image.

    noise: what the pass draws from (its seeds, source, shape and device); neither subseeds nor ENSD count here.
    sigma_min, sigma_max: of the whole schedule, also where only its tail is run.
    After k-diffusion 0.1.1, sampling.py, BrownianTreeNoiseSampler (MIT).
    """

    def __init__(self, noise, sigma_min: float, sigma_max: float):
        def draw(seed: int) -> Tensor:
            return noise_stream(seed, noise.source, noise.device)(noise.shape)

        self.paths = [BrownianPath(float(sigma_min), float(sigma_max), seed, draw) for seed in noise.seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        a, b = float(sigma), float(sigma_next)
        scale = (sigma_next - sigma).abs().sqrt()
        increments = stacked([path(min(a, b), max(a, b)) for path in self.paths])
        return increments / (scale if a < b else -scale)
