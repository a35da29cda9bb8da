"""Numbers around the net: 8-bit crops to its range and back, and what is done for colourless pictures."""

import numpy as np


def to_net_range(crop: np.ndarray) -> np.ndarray:
    """(h, w, 3) RGB in 0..255 -> (3, h, w) float32 in [-1, 1]."""
    x = (crop / 255.0).astype(np.float32)
    return np.ascontiguousarray(((x - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


def from_net_range(y: np.ndarray, rounding: str) -> np.ndarray:
    """(3, h, w) float32 in [-1, 1], clamped -> (h, w, 3) RGB in 0..255.

    rounding: "trunc" (uint8; the webui's: even an identity net makes levels 1..63 one darker), "rint" (uint8) or
    "none" (float32).
    """
    y = (np.clip(np.asarray(y, np.float32), -1, 1) + np.float32(1)) / np.float32(2)
    levels = np.ascontiguousarray(y.transpose(1, 2, 0)) * np.float32(255)
    if rounding == "none":
        return levels
    return (np.rint(levels) if rounding == "rint" else levels).astype(np.uint8)


def is_gray(picture: np.ndarray, threshold: float = 10.0) -> bool:
    """Whether an (h, w, 3) uint8 picture has no colour: the differences of its channels hardly vary.

    A constant tint counts as gray, a gain between channels does not. From the CodeFormer repository's script.
    """
    c = picture.astype(np.int16)
    spread = [np.var(c[..., i] - c[..., (i + 1) % 3], dtype=np.float64) for i in range(3)]
    return bool(np.mean(spread) <= threshold)


def gray_of(restored: np.ndarray) -> np.ndarray:
    """Luma of an (h, w, 3) RGB picture in all three channels, float64."""
    return np.repeat((restored @ np.array([0.2989, 0.5870, 0.1140]))[..., None], 3, axis=2)


def match_statistics(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """`content` with the mean and standard deviation of `style` in each channel, float64, neither rounded nor cut."""
    content, style = content.astype(np.float64), style.astype(np.float64)
    mean_c, mean_s = content.mean((0, 1)), style.mean((0, 1))
    std_c, std_s = (np.sqrt(v.var((0, 1)) + 1e-5) for v in (content, style))
    return (content - mean_c) / std_c * std_s + mean_s


def to_levels(picture: np.ndarray, rounding: str) -> np.ndarray:
    """0..255 as uint8, cut to that range, by "trunc" or "rint"."""
    picture = np.clip(picture, 0, 255)
    return (picture if rounding == "trunc" else np.rint(picture)).astype(np.uint8)


def blend_visibility(before: np.ndarray, after: np.ndarray, visibility: float, rounding: str) -> np.ndarray:
    """before + visibility * (after - before) in float32, for uint8 pictures."""
    if visibility >= 1:
        return after
    b, a = before.astype(np.float32), after.astype(np.float32)
    return to_levels(b + np.float32(visibility) * (a - b), rounding)
