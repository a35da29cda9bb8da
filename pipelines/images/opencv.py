"""Warp, resize, blur, erosion and LAB with OpenCV 4.x's arithmetic, in numpy.

Restored faces that people share were cut out and pasted back by OpenCV 4, whose warp knows source positions to 1/32 px
only and whose 8-bit resizing runs on integers. OpenCV 5 changed both; here they stay.
Pictures are (h, w) or (h, w, c), uint8 or float; matrices are (2, 3) float64, x to the right, y down, pixel centres at
integers. Nothing here changes its arguments.
"""

import numpy as np
from scipy.ndimage import correlate1d, maximum_filter1d, minimum_filter1d
from scipy.sparse import csr_matrix

from .tile_grid import mirrored_position


Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are not part of it."""


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a (2, 3) affine matrix, (2, 3) float64. Raises ValueError if it has none."""
    (a, b, c), (d, e, f) = np.asarray(matrix, np.float64)
    determinant = a * e - b * d
    if not np.isfinite(determinant) or determinant == 0:
        raise ValueError(f"this matrix maps the plane onto a line and has no inverse: {np.asarray(matrix).tolist()}")
    inv = np.array([[e, -b], [-d, a]]) / determinant
    return np.column_stack([inv, -inv @ (c, f)])


def warp_affine(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    *,
    border: str = "constant",
    value: float | tuple[float, ...] = 0.0,
    window: Window | None = None,
) -> np.ndarray:
    """Bilinear warp by `matrix` (source -> destination) into a picture of `size` (w, h).

    border: "constant" (`value`, a number or one per channel; each tap outside takes it by itself), "reflect" (edge
    repeated) or "reflect101". window: only this part of the destination is computed and returned. uint8 in, uint8 out
    (rounded half up); float stays float, without rounding. Source positions are multiples of 1/32 px, as in OpenCV 4.
    """
    x0, y0, x1, y1 = window or (0, 0, *size)
    ix, iy, fx, fy = _warp_positions(invert_affine(matrix), np.arange(x0, x1), np.arange(y0, y1))
    flat = image.ndim == 2
    source = image[..., None] if flat else image
    offset = 0
    if border == "constant":
        source, offset = _pad_border(source, value), 1
    dtype = np.dtype(np.int32) if image.dtype == np.uint8 else image.dtype
    columns = [_border_index(ix + d, image.shape[1], border) + offset for d in (0, 1)]
    rows = [(_border_index(iy + d, image.shape[0], border) + offset) * source.shape[1] for d in (0, 1)]
    pixels = source.reshape(-1, source.shape[2])
    total = np.zeros((*ix.shape, source.shape[2]), dtype)
    for py, wy in zip(rows, (32 - fy, fy)):
        for px, wx in zip(columns, (32 - fx, fx)):
            weight = (wx * wy).astype(dtype)
            tap = pixels.take(py + px, axis=0).astype(dtype, copy=False)
            total += np.multiply(tap, (weight if dtype == np.int32 else weight / 1024)[..., None], out=tap)
    result = ((total + 512) >> 10).astype(np.uint8) if dtype == np.int32 else total
    return result[..., 0] if flat else result


def _warp_positions(inverse: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Whole source pixels ix, iy and fractions fx, fy in 1/32 px for destination columns x and rows y."""
    whole, fraction, limit = [], [], 1 << 29  # so that the sum of two fits 32 bits; no picture is as large
    for j0, j1, j2 in inverse:
        along = np.clip(np.rint(1024 * j0 * x), -limit, limit).astype(np.int32)[None, :]
        down = np.clip(np.rint(1024 * (j1 * y + j2)) + 16, -limit, limit).astype(np.int32)[:, None]
        position = (along + down) >> 5
        whole.append(position >> 5)
        fraction.append(position & 31)
    return *whole, *fraction


def _pad_border(source: np.ndarray, value: float | tuple[float, ...]) -> np.ndarray:
    h, w, c = source.shape
    padded = np.empty((h + 2, w + 2, c), source.dtype)
    padded[...] = value
    padded[1:-1, 1:-1] = source
    return padded


def _border_index(index: np.ndarray, length: int, border: str) -> np.ndarray:
    """Where to read for positions outside 0..length-1. For "constant" -1 and `length` are the border itself."""
    if border == "constant":
        return np.clip(index, -1, length)
    if border == "reflect":
        index = index % (2 * length)
        return np.minimum(index, 2 * length - 1 - index)
    if border == "reflect101":
        return mirrored_position(index, length)
    raise ValueError(f"`border` must be 'constant', 'reflect' or 'reflect101'; got {border!r}.")


def resize_picture(
    image: np.ndarray, size: tuple[int, int], method: str, *, factor: float | None = None
) -> np.ndarray:
    """`image` at `size` (w, h). uint8: OpenCV's integer arithmetic; float: the same positions, float weights.

    method: "nearest", "cubic" (a = -0.75), "lanczos4" (8 taps, edge replicated), "linear" (all without antialiasing),
    or "area" (antialiased, for shrinking; between the two nearest pixels where a side grows). factor: dst/src where
    the reference was given a factor and no size. Same size: a copy.
    """
    if (image.shape[1], image.shape[0]) == tuple(size):
        return image.copy()
    if min(size) < 1:
        raise ValueError(f"`size` must be at least 1x1; got {size[0]}x{size[1]}.")
    scales = [1 / factor if factor else 1 / (dst / src) for dst, src in zip(size, image.shape[1::-1])]
    if method == "nearest":
        rows, columns = (
            np.minimum(np.floor(np.arange(dst) * scale).astype(np.int64), src - 1)
            for dst, src, scale in zip(size[::-1], image.shape[:2], scales[::-1])
        )
        return image[rows[:, None], columns]
    if method == "area" and min(scales) >= 1:
        return _resize_area(image, size, scales)
    if method not in _RESIZE_TAPS:
        raise ValueError(f"`method` must be 'nearest', 'cubic', 'lanczos4', 'linear' or 'area'; got {method!r}.")
    (xi, xw), (yi, yw) = (
        _RESIZE_TAPS[method](dst, src, scale) for dst, src, scale in zip(size, image.shape[1::-1], scales)
    )
    if image.dtype == np.uint8 and method != "cubic":
        return _resize_uint8(image, (xi, xw), (yi, yw), method)
    values = image.astype(np.float32) if image.dtype == np.uint8 else image  # of 8 bits too cubic runs on floats
    across = _weighted_rows(np.swapaxes(values, 0, 1), xi, xw.astype(values.dtype))
    result = _weighted_rows(np.swapaxes(across, 0, 1), yi, yw.astype(values.dtype))
    return np.rint(result).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else result


def _linear_taps(dst: int, src: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source indices (2, dst) and weights (2, dst) float32; outside the picture the edge pixel alone."""
    position = ((np.arange(dst) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    t = position - first.astype(np.float32)
    t = np.where((first < 0) | (first >= src - 1), np.float32(0), t)
    first = np.clip(first, 0, src - 1)
    return np.stack([first, np.minimum(first + 1, src - 1)]), np.stack([1 - t, t]).astype(np.float32)


def _area_taps(dst: int, src: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """As `_linear_taps`, for "area" where a side grows: OpenCV then weighs the two pixels by how far the destination
    pixel reaches into the second."""
    first = np.floor(np.arange(dst) * scale).astype(np.int64)
    t = (np.arange(1, dst + 1) - (first + 1) / scale).astype(np.float32)
    t = np.where(t <= 0, np.float32(0), t - np.floor(t))
    t = np.where(first >= src - 1, np.float32(0), t)
    first = np.minimum(first, src - 1)
    return np.stack([first, np.minimum(first + 1, src - 1)]), np.stack([1 - t, t]).astype(np.float32)


def _cubic_taps(dst: int, src: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source indices (4, dst) and weights (4, dst): Keys (1981) with a = -0.75, edge replicated."""
    position = (np.arange(dst) + 0.5) * scale - 0.5
    first = np.floor(position).astype(np.int64)
    t, a = position - first, -0.75
    far = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a
    near, next_near = (((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t))
    weights = np.stack([far, near, next_near, 1 - far - near - next_near])
    return np.clip(first + np.arange(-1, 3)[:, None], 0, src - 1), weights


def _lanczos4_taps(dst: int, src: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source indices (8, dst) and weights (8, dst): sinc(t) sinc(t/4), summing to 1."""
    position = ((np.arange(dst) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    t = (position - first.astype(np.float32)).astype(np.float64)
    offsets = np.arange(-3, 5)[:, None]
    weights = np.sinc(t - offsets) * np.sinc((t - offsets) / 4)
    weights /= weights.sum(0)
    return np.clip(first + offsets, 0, src - 1), weights


_RESIZE_TAPS = {"linear": _linear_taps, "area": _area_taps, "cubic": _cubic_taps, "lanczos4": _lanczos4_taps}


def _weighted_rows(image: np.ndarray, index: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of rows image[index[k]] * weights[k] over the taps k, row by row of the result."""
    shape = (-1, *[1] * (image.ndim - 1))
    total = image[index[0]] * weights[0].reshape(shape)
    for k in range(1, len(index)):
        total += image[index[k]] * weights[k].reshape(shape)
    return total


def _resize_uint8(image: np.ndarray, x_taps: tuple, y_taps: tuple, method: str) -> np.ndarray:
    """Both passes on integers: weights in 1/2048, columns first."""
    (xi, xw), (yi, yw) = x_taps, y_taps
    xw, yw = (np.rint(2048 * w).astype(np.int32) for w in (xw, yw))
    across = _weighted_rows(np.swapaxes(image, 0, 1).astype(np.int32), xi, xw)
    across = np.ascontiguousarray(np.swapaxes(across, 0, 1))
    if method == "lanczos4":
        total = (_weighted_rows(across, yi, yw) + (1 << 21)) >> 22
        return np.clip(total, 0, 255).astype(np.uint8)
    shape = (-1, *[1] * (image.ndim - 1))
    total = sum(((across[i] >> 4) * w.reshape(shape)) >> 16 for i, w in zip(yi, yw))
    return np.clip((total + 2) >> 2, 0, 255).astype(np.uint8)


def _resize_area(image: np.ndarray, size: tuple[int, int], scales: list[float]) -> np.ndarray:
    """Mean over the source area of each pixel, parts of pixels by their share."""
    whole = all(abs(scale - round(scale)) < 1e-12 for scale in scales)
    if whole and image.dtype == np.uint8:
        (x, y), (w, h) = (round(scale) for scale in scales), size
        blocks = image[: h * y, : w * x].reshape(h, y, w, x, *image.shape[2:]).sum((1, 3), dtype=np.int64)
        # OpenCV's 2x2 case adds a half and shifts; the others round to even
        return (
            (blocks + 2) >> 2 if x == y == 2 else np.rint(blocks.astype(np.float32) * np.float32(1 / (x * y)))
        ).astype(np.uint8)
    across = _area_sums(np.swapaxes(image.astype(np.float32), 0, 1), size[0], scales[0])
    result = _area_sums(np.swapaxes(across, 0, 1), size[1], scales[1])
    return np.rint(result).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else result.astype(image.dtype)


def _area_sums(rows: np.ndarray, count: int, scale: float) -> np.ndarray:
    """Means of `rows` over [i*scale, (i+1)*scale) for i < count, in float32, first rows first."""
    length = len(rows)
    start = np.arange(count) * scale
    end, width = start + scale, np.minimum(scale, length - start)
    last = np.minimum(np.floor(end).astype(np.int64), length - 1)
    first = np.minimum(np.ceil(start).astype(np.int64), last)
    before, after = first - start > 1e-3, end - last > 1e-3
    counts, at = last - first, np.arange(count)
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    shares = [(first - start)[before] / width[before], 1 / np.repeat(width, counts)]
    shares.append((np.minimum(end - last, np.minimum(1, width)) / width)[after])
    table = csr_matrix(
        (
            np.concatenate(shares).astype(np.float32),
            (
                np.concatenate([at[before], np.repeat(at, counts), at[after]]),
                np.concatenate([first[before] - 1, inside, last[after]]),
            ),
        ),
        shape=(count, length),
    )
    return np.asarray(table @ np.ascontiguousarray(rows).reshape(length, -1)).reshape(count, *rows.shape[1:])


def gaussian_kernel(size: int, sigma: float = 0.0) -> np.ndarray:
    """(size,) float64, sum 1. sigma 0: 0.3*((size-1)/2 - 1) + 0.8, and fixed tables for sizes up to 9."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"`size` of a Gaussian must be odd and positive; got {size}.")
    if sigma <= 0 and size <= 9:
        return np.array(_SMALL_GAUSSIANS[size // 2]) / sum(_SMALL_GAUSSIANS[size // 2])
    sigma = sigma if sigma > 0 else 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    x = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


# Of 1, 3, 5, 7 and 9 taps.
_SMALL_GAUSSIANS = ((1,), (1, 2, 1), (1, 4, 6, 4, 1), (8, 28, 56, 72, 56, 28, 8), (4, 13, 30, 51, 60, 51, 30, 13, 4))


def gaussian_blur(image: np.ndarray, size: int, sigma: float = 0.0) -> np.ndarray:
    """Gaussian of `size` taps along both sides of a float picture, reflect101 at the border.

    float32 pictures (h, w): bit for bit OpenCV's, so that flat masks come out as its 1 + 1e-7 or 1 - 1e-7, which
    decides over a level when the result is cut off. float64: the same up to 1e-15, and much faster.
    """
    kernel = gaussian_kernel(size, sigma)
    if image.dtype == np.float32 and image.ndim == 2:
        return _blur_columns32(_blur_rows32(image, kernel.astype(np.float32)), kernel.astype(np.float32))
    return correlate1d(correlate1d(image, kernel, axis=1, mode="mirror"), kernel, axis=0, mode="mirror")


def _blur_rows32(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Taps from first to last, each a fused multiply-add."""
    reach, width = len(kernel) // 2, image.shape[1]
    padded = np.pad(image, ((0, 0), (reach, reach)), mode="reflect")
    total = padded[:, :width] * kernel[0]
    for i in range(1, len(kernel)):
        total = _fused_add(padded[:, i : i + width], kernel[i], total)
    return total


def _blur_columns32(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The middle tap, then pairs of rows at equal distance from it, each a fused multiply-add."""
    reach, height = len(kernel) // 2, image.shape[0]
    padded = np.pad(image, ((reach, reach), (0, 0)), mode="reflect")
    total = image * kernel[reach]
    for i in range(1, reach + 1):
        pair = padded[reach - i : reach - i + height] + padded[reach + i : reach + i + height]
        total = _fused_add(pair, kernel[reach + i], total)
    return total


def _fused_add(a: np.ndarray, weight: np.float32, b: np.ndarray) -> np.ndarray:
    """a * weight + b, rounded to float32 once."""
    return (a.astype(np.float64) * np.float64(weight) + b).astype(np.float32)


def blur_mask(mask: np.ndarray, blur_x: float, blur_y: float) -> np.ndarray:
    """(h, w) uint8, blurred along x and then along y, each rounded to 8 bits, as OpenCV's GaussianBlur does it.

    Kernels have 2 * int(2.5 * blur + 0.5) + 1 taps in multiples of 1/256 and the border mirrors without repeating.
    Bit-equal to OpenCV 4 and 5.
    """
    for blur, axis in ((blur_x, 1), (blur_y, 0)):
        if blur > 0:
            total = correlate1d(mask.astype(np.int32), mask_blur_taps(blur), axis=axis, mode="mirror")
            mask = ((total + 128) >> 8).astype(np.uint8)
    return mask


def mask_blur_taps(blur: float) -> list[int]:
    """The Gaussian with standard deviation `blur` in 1/256, sum 256.

    Each tap is rounded with the error of the one before it carried over, from the ends inwards; the middle takes what
    is left. After getGaussianKernelFixedPoint_ED, opencv/opencv, modules/imgproc/src/smooth.dispatch.cpp.
    """
    size = 2 * int(2.5 * blur + 0.5) + 1
    kernel = gaussian_kernel(size, blur)
    taps, error = [0] * size, 0.0
    for i in range(size // 2):
        exact = float(kernel[i]) * 256 + error
        taps[i] = taps[-1 - i] = round(exact)
        error = exact - taps[i]
    taps[size // 2] = 256 - sum(taps)
    return taps


def erode_box(image: np.ndarray, size: int) -> np.ndarray:
    """Minimum over a size x size box, -size//2 .. for even sizes; what lies outside the picture is ignored.

    size 0 is OpenCV's empty kernel, which means 3x3. It happens for tiny faces.
    """
    outside = 255 if image.dtype == np.uint8 else np.inf
    across = minimum_filter1d(image, size or 3, axis=1, mode="constant", cval=outside)
    return minimum_filter1d(across, size or 3, axis=0, mode="constant", cval=outside)


def dilate_box(image: np.ndarray, size: int) -> np.ndarray:
    """Maximum over the same box; what lies outside the picture is ignored."""
    outside = 0 if image.dtype == np.uint8 else -np.inf
    across = maximum_filter1d(image, size, axis=1, mode="constant", cval=outside)
    return maximum_filter1d(across, size, axis=0, mode="constant", cval=outside)


# --- colours

# sRGB primaries to XYZ at D65, and that white.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ_WHITE = np.array([0.950456, 1.0, 1.088754])
_LAB_ONE = 1 << 14  # 1.0 in the fixed-point numbers of the way back


def rgb_to_lab(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 sRGB to (h, w, 3) uint8 LAB: lightness * 2.55, a + 128, b + 128.

    In the fixed-point numbers of opencv/opencv (Apache-2.0), modules/imgproc/src/color_lab.cpp, RGB2Lab_b: histograms
    follow single levels. Equal but for one level in one value of 30,000.
    """
    c = np.arange(256) / 255.0
    linear = np.rint(255 * 8 * np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)).astype(np.int64)
    t = np.arange(256 * 8 * 3 // 2) / (255 * 8)
    f_table = np.rint((1 << 15) * np.where(t < 0.008856, 7.787 * t + 4 / 29, np.cbrt(t))).astype(np.int64)
    to_xyz = np.rint((1 << 12) * _RGB_TO_XYZ / _XYZ_WHITE[:, None]).astype(np.int64)
    fx, fy, fz = np.moveaxis(f_table[_round_shift(linear[picture] @ to_xyz.T, 12)], -1, 0)
    lightness = (116 * 255 + 50) // 100 * fy - (16 * 255 * (1 << 15) + 50) // 100
    lab = np.stack([lightness, 500 * (fx - fy) + (128 << 15), 200 * (fy - fz) + (128 << 15)], axis=-1)
    return np.clip(_round_shift(lab, 15), 0, 255).astype(np.uint8)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_lab`; what has no place in sRGB is clipped. After Lab2RGBinteger of the same file.

    OpenCV's within one level, and equal in 99 of 100 values.
    """
    lightness, a, b = np.moveaxis(lab.astype(np.int64), -1, 0)
    level = np.arange(256)
    fy_table = np.where(level <= 20, _LAB_ONE * (16 / 116 + level * 5 / 1479), _LAB_ONE * (level / 2.55 + 16) / 116)
    fy_table = np.rint(fy_table)
    y_table = np.rint(np.where(level <= 20, level * _LAB_ONE / 2.55 / 903.3, fy_table**3 / _LAB_ONE**2))
    fy = fy_table.astype(np.int64)[lightness]
    fx = fy + ((5 * a * 53687 + (1 << 7)) >> 13) - 128 * _LAB_ONE // 500
    fz = fy - (((b * 41943 + (1 << 4)) >> 9) - 128 * _LAB_ONE // 200 + 1)
    xyz = np.stack([_lab_inverse_f(fx), y_table.astype(np.int64)[lightness], _lab_inverse_f(fz)], axis=-1)
    to_rgb = np.rint((1 << 12) * np.linalg.inv(_RGB_TO_XYZ) * _XYZ_WHITE).astype(np.int64)
    linear = np.clip(_round_shift(xyz @ to_rgb.T, 14), 0, 4095)
    c = np.arange(4096) / 4095
    gamma = np.rint(255 * np.where(c <= 0.0031308, c * 12.92, 1.055 * c ** (1 / 2.4) - 0.055)).astype(np.uint8)
    return gamma[linear]


def _lab_inverse_f(f: np.ndarray) -> np.ndarray:
    """t from f(t), both in 1/_LAB_ONE: t = f**3, and a straight line below 6/29."""
    f = f.astype(np.float64)
    line = np.trunc(f * 108 / 841) - np.trunc(_LAB_ONE * 16 / 116 * 108 / 841)
    cube = np.trunc(np.trunc(f * f / _LAB_ONE) * f / _LAB_ONE)
    return np.where(f <= _LAB_ONE * 6 // 29 + 1, line, cube).astype(np.int64)


def _round_shift(value: np.ndarray, bits: int) -> np.ndarray:
    return (value + (1 << (bits - 1))) >> bits
