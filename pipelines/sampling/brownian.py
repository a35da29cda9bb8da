"""Step noise of the SDE samplers: increments of one Brownian path per image, whatever steps are taken through it.

What a step costs is its draws: a new time lies some 24 halvings deep in the tree, of which about 18 are not on the way
to the last time, and each is a normal number for every element. The rest is kept small beside them: a tree that holds
the way to the last times alone, seeds without a SeedSequence each, one generator.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .noise import seeded_draw, stacked


# torchsde.BrownianTree's own settings: times are rounded to `tol` = 1e-6, seeds are pooled over 24 words.
_TREE_DIGITS = 6
_TREE_POOL = 24

# numpy.random.SeedSequence's constants (numpy/random/bit_generator.pyx, 2.0, BSD-3-Clause).
_SEED_WORD = 0xFFFFFFFF
_SEED_A, _SEED_TIMES_A = 0x43B0D7E5, 0x931E8875
_SEED_B, _SEED_TIMES_B = 0x8B51F9DD, 0x58F38DED
_SEED_LEFT, _SEED_RIGHT = 0xCA01F9DD, 0x4973F715
# By the time a spawn key is mixed in, every word of the pool was hashed once alone and once for every other word.
_SEED_BEFORE_KEYS = _SEED_A * pow(_SEED_TIMES_A, _TREE_POOL**2, 2**32) & _SEED_WORD
_SEED_OTHER_WORDS = pow(_SEED_TIMES_A, _TREE_POOL - 1, 2**32)


class _TreeInterval:
    """An interval of the tree: its increment, and its halves while a query needs them."""

    __slots__ = ("start", "end", "depth", "key", "halves", "_w", "_whole", "_left")

    def __init__(self, start: float, end: float, key: int, depth: int, w: Tensor | None = None):
        self.start, self.end, self.key, self.depth = start, end, key, depth
        self.halves: tuple[_TreeInterval, _TreeInterval] | None = None
        self._w = w

    @property
    def w(self) -> Tensor:
        """W(end) - W(start); that of a right half is worked out when it is asked for."""
        if self._w is None:
            self._w = self._whole - self._left
            self._whole = self._left = None
        return self._w

    def split(self, middle: float, left: Tensor) -> None:
        """Give it halves, the left one with this increment."""
        right = _TreeInterval(middle, self.end, 2 * self.key + 1, self.depth + 1)
        right._whole, right._left = self.w, left
        self.halves = _TreeInterval(self.start, middle, 2 * self.key, self.depth + 1, left), right


class BrownianPath:
    """W(b) - W(a) on [t0, t1], decided by `entropy` alone and not by the queries: torchsde.BrownianTree's numbers.

    Binary tree of Brownian bridges: half of an interval gets mean W/2 and a normal number seeded by the place in the
    tree. After torchsde 0.2.6, torchsde/_brownian/brownian_interval.py (Apache-2.0), with two differences: the normal
    numbers come from `draw`, (seed) -> Tensor, where torchsde offers no choice, and queries outside are clamped
    without a warning.
    """

    def __init__(self, t0: float, t1: float, entropy: int, draw: Callable[[int], Tensor]):
        self.start, self.end = round(t0, _TREE_DIGITS), round(t1, _TREE_DIGITS)
        self._draw = draw
        sequence = np.random.SeedSequence(entropy=entropy % 2**64, pool_size=_TREE_POOL)
        self._pool = int(sequence.pool[0])
        whole = draw(int(sequence.generate_state(1)[0])) * math.sqrt(t1 - t0)
        self._root = _TreeInterval(self.start, self.end, 0, 0, whole)

    def __call__(self, a: float, b: float) -> Tensor:
        """The increment from `a` to `b`, a <= b."""
        a, b = (round(min(max(t, self.start), self.end), _TREE_DIGITS) for t in (a, b))
        if a == b:
            return torch.zeros_like(self._root.w)
        pieces: list[Tensor] = []
        self._collect(self._root, a, b, pieces)
        total = pieces[0]
        for i, piece in enumerate(pieces[1:]):
            total = total.add_(piece) if i else total + piece  # in place where the sum is our own
        return total

    def _collect(self, node: _TreeInterval, a: float, b: float, pieces: list[Tensor]) -> None:
        """Increments of the tree's intervals that make up [a, b], in order. What the query does not enter is forgotten
        but for its increment."""
        if a == node.start and b == node.end:
            node.halves = None
            pieces.append(node.w)
            return
        if node.halves is None:
            self._split(node)
        left, right = node.halves
        if a < left.end:
            self._collect(left, a, min(b, left.end), pieces)
        else:
            left.halves = None
        if b > left.end:
            self._collect(right, max(a, left.end), b, pieces)
        else:
            right.halves = None

    def _split(self, node: _TreeInterval) -> None:
        start, end = node.start, node.end
        middle = round(0.5 * (end + start), _TREE_DIGITS)
        normal = self._draw(spawned_seed(self._pool, (node.key, node.depth)))
        reciprocal = 1 / (end - start)
        deviation = math.sqrt((middle - start) * (end - middle) * reciprocal)
        mean = ((middle - start) * node.w).mul_(reciprocal)
        node.split(middle, normal.mul_(deviation).add_(mean))


def spawned_seed(pool: int, spawn_key: tuple[int, ...]) -> int:
    """SeedSequence(entropy, spawn_key=..., pool_size=24).generate_state(1)[0], in a tenth of its time.

    pool: the first word of SeedSequence(entropy, pool_size=24).pool, of an entropy of at most 24 words; the first word
    of the state depends on no other. Numbers of the key are whole and below 2**32.
    """
    factor = _SEED_BEFORE_KEYS
    for word in spawn_key:
        word ^= factor
        factor = factor * _SEED_TIMES_A & _SEED_WORD
        word = word * factor & _SEED_WORD
        pool = _SEED_LEFT * pool - _SEED_RIGHT * (word ^ word >> 16) & _SEED_WORD
        pool ^= pool >> 16
        factor = factor * _SEED_OTHER_WORDS & _SEED_WORD
    state = (pool ^ _SEED_B) * (_SEED_B * _SEED_TIMES_B & _SEED_WORD) & _SEED_WORD
    return state ^ state >> 16


class BrownianNoise:
    """Unit-variance noise between two sigmas, (n, c, h, w): (W(b) - W(a)) / sqrt|b - a|, one path per image.

    noise: what the pass draws from (its seeds, source, shape and device); neither subseeds nor ENSD count here.
    sigma_min, sigma_max: of the whole schedule, also where only its tail is run.
    After k-diffusion 0.1.1, sampling.py, BrownianTreeNoiseSampler (MIT).
    """

    def __init__(self, noise, sigma_min: float, sigma_max: float):
        draw = seeded_draw(noise.shape, noise.source, noise.device)
        self.paths = [BrownianPath(float(sigma_min), float(sigma_max), seed, draw) for seed in noise.seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        a, b = float(sigma), float(sigma_next)
        scale = (sigma_next - sigma).abs().sqrt()
        increments = stacked([path(min(a, b), max(a, b)) for path in self.paths])
        return increments / (scale if a < b else -scale)
