"""Philox4x32-10: the normal numbers an NVIDIA card draws, made on any machine.

Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3". A CUDA `torch.randn` with at most as many elements
as the card has threads makes one value per thread: thread `i` of call `k` under `seed` encrypts the counter
(k, 0, i, 0) with the key (low word of seed, high word of seed) and sends the first two words through Box-Muller.
"""

import numpy as np


_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_PHILOX_WORD = np.uint64(0xFFFFFFFF)
_PHILOX_SHIFT = np.uint64(32)
_PHILOX_BLOCK = 8192  # elements worked on at a time, so that they stay in the cache

# curand holds these two in single precision and works on in double: 2**-32 and 2 pi 2**-32.
_PHILOX_UNIT = np.float32(2.3283064e-10)
_PHILOX_TURN = np.float32(2.3283064e-10 * 6.2831855)


def philox_words(seed: int, offset: int, threads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two of four output words for `threads` (n,) uint64 of call number `offset`. Two arrays (n,) uint64.

    seed: 64 bits, taken modulo 2**64; offset: number of calls made before with this seed.
    """
    zeros = np.zeros_like(threads)
    words = [np.full_like(threads, offset % 2**32), zeros, threads, zeros]
    keys = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        a, b = words[0] * _PHILOX_MULTIPLIERS[0], words[2] * _PHILOX_MULTIPLIERS[1]
        words = [
            (b >> _PHILOX_SHIFT) ^ words[1] ^ np.uint64(keys[0]),
            b & _PHILOX_WORD,
            (a >> _PHILOX_SHIFT) ^ words[3] ^ np.uint64(keys[1]),
            a & _PHILOX_WORD,
        ]
        keys = [(key + step) % 2**32 for key, step in zip(keys, _PHILOX_WEYL)]
    return words[0], words[1]


class PhiloxStream:
    """One seed's stream: `randn` once is a card's first `torch.randn` after `manual_seed(seed)`, and so on.

    >>> PhiloxStream(0).randn((3,))
    array([-0.9246624 , -0.42534396, -2.6438458 ], dtype=float32)
    """

    def __init__(self, seed: int):
        self.seed = int(seed)
        self.calls = 0

    def randn(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers of `shape`, float32. A call moves the stream on by one, whatever its size."""
        threads = np.arange(np.prod(shape), dtype=np.uint64)
        normal = np.empty(len(threads), np.float32)
        for start in range(0, len(threads), _PHILOX_BLOCK):
            block = slice(start, start + _PHILOX_BLOCK)
            normal[block] = box_muller(*philox_words(self.seed, self.calls, threads[block]))
        self.calls += 1
        return normal.reshape(shape)


def box_muller(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One normal number, float64, of each pair of 32-bit words, as curand makes it."""
    radius = np.sqrt(-2.0 * np.log(first * np.float64(_PHILOX_UNIT) + np.float64(_PHILOX_UNIT / 2)))
    angle = second * np.float64(_PHILOX_TURN) + np.float64(_PHILOX_TURN / 2)
    return radius * np.sin(angle)
