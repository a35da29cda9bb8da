"""Pictures enlarged by models: the webui's tiling with its quirks, and our own without seams."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.pipelines.images.upscale import enlarge_picture, webui_model_pass
from webui_diffusers.pipelines.images.upscale_tiles import upscale_image


class NearestModel:
    """Repeats pixels; remembers what it was shown."""

    device = torch.device("cpu")

    def __init__(self, scale: int):
        self.scale = scale
        self.seen: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels.clone())
        return pixels.repeat_interleave(self.scale, dim=-1).repeat_interleave(self.scale, dim=-2)


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(levels.astype(np.uint8))


def nearest(picture: Image.Image, scale: int) -> Image.Image:
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def smooth_picture(width: int, height: int) -> Image.Image:
    return noise_picture(width // 8 + 2, height // 8 + 2).resize((width, height), Image.Resampling.BICUBIC)


def drawn_picture(width: int, height: int) -> Image.Image:
    """Edges, gradients and a little noise: what such models react to."""
    picture = smooth_picture(width, height)
    draw = ImageDraw.Draw(picture)
    for i in range(0, width, 9):
        draw.line((i, 0, width - i, height), fill=(i % 256, 90, 255 - i % 256))
        draw.ellipse((i, i // 2, i + 14, i // 2 + 9), outline="black", fill=(250, i % 200, 40))
    draw.text((width // 4, height // 3), "seams?", fill="white")
    return Image.blend(picture, noise_picture(width, height), 0.06)


def test_the_model_sees_blue_before_red():
    model = NearestModel(2)
    result = webui_model_pass(Image.new("RGB", (16, 16), (255, 128, 0)), model, tile=0)
    assert model.seen[0][0, :, 0, 0].tolist() == pytest.approx([0.0, 128 / 255, 1.0])
    assert result.getpixel((5, 5)) == (255, 128, 0)


def test_a_small_picture_lies_at_the_end_of_a_black_tile():
    model = NearestModel(2)
    picture = noise_picture(40, 24)
    result = webui_model_pass(picture, model, tile=64, overlap=8)
    (seen,) = model.seen
    assert seen.shape == (1, 3, 64, 64)
    assert seen[..., :40, :].abs().max() == 0 and seen[..., :, :24].abs().max() == 0
    assert np.array_equal(np.asarray(result), np.asarray(nearest(picture, 2)))


@pytest.mark.parametrize("size", [(64, 64), (120, 64), (57, 130), (200, 121)])
@pytest.mark.parametrize("overlap", [0, 8])
def test_with_a_model_that_repeats_pixels_webui_tiles_cannot_be_seen(size, overlap):
    picture = noise_picture(*size)
    result = webui_model_pass(picture, NearestModel(2), tile=48, overlap=overlap)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(nearest(picture, 2))).max() <= 1


def test_webui_overlaps_fade_in_by_8_bit_weights():
    """Two tiles of flat colour, 0 and 200: the second's first columns have floor(255 i / n) / 255 of its colour."""

    class Counting(NearestModel):
        def __call__(self, pixels):
            self.seen.append(pixels)
            return torch.full_like(pixels, 200 / 255 * (len(self.seen) - 1))

    result = webui_model_pass(Image.new("RGB", (24, 16)), Counting(1), tile=16, overlap=8)
    assert [result.getpixel((x, 3))[0] for x in range(24)] == [
        *[0] * 8,
        *[round(200 * (255 * i // 8) / 255) for i in range(8)],
        *[200] * 8,
    ]


PASSES = [  # picture, wanted, scale of the model -> how often the model runs
    ((64, 64), (96, 96), 4, 1),
    ((64, 64), (128, 128), 2, 1),
    ((64, 64), (136, 136), 2, 2),
    ((64, 64), (1024, 1024), 2, 3),
    ((64, 64), (64, 64), 2, 0),
    ((64, 64), (48, 64), 2, 0),
    ((64, 32), (66, 33), 2, 1),
    ((64, 64), (128, 128), 1, 1),
]


@pytest.mark.parametrize("size, wanted, scale, runs", PASSES)
def test_a_model_runs_until_the_picture_is_large_enough_but_three_times_at_most(size, wanted, scale, runs):
    model = NearestModel(scale)
    result = enlarge_picture(smooth_picture(*size), *wanted, model, tile=0)
    assert len(model.seen) == runs
    assert result.size == wanted


def test_none_is_lanczos_straight_to_the_size():
    picture = smooth_picture(64, 48)
    expected = picture.resize((83, 70), Image.Resampling.LANCZOS)
    for label in (None, "None"):
        assert np.array_equal(np.asarray(enlarge_picture(picture, 83, 70, label)), np.asarray(expected))


@pytest.mark.parametrize(
    "label, method", [("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)]
)
def test_filters_go_by_way_of_multiples_of_8(label, method):
    """64 -> 83: the filter makes 83, Lanczos 80, and Lanczos 83 again. Two needless steps that pictures depend on."""
    picture = smooth_picture(64, 64)
    step = picture.resize((83, 83), method).resize((80, 80), Image.Resampling.LANCZOS)
    expected = step.resize((83, 83), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(enlarge_picture(picture, 83, 83, label)), np.asarray(expected))


def test_each_pass_spends_the_random_numbers_of_loading_the_model(golden: Path):
    """As the webui: torch.manual_seed, then making the network, then the noise of the encoding."""
    model = load_upscaler(golden / "models" / "tiny-compact-x2.safetensors")
    used = torch.Generator().manual_seed(9)
    enlarge_picture(smooth_picture(16, 16), 40, 40, model, tile=0, generator=used)
    expected = torch.Generator().manual_seed(9)
    before = torch.get_rng_state()
    model.draw_as_constructed(expected)
    model.draw_as_constructed(expected)
    assert torch.equal(used.get_state(), expected.get_state())
    assert not torch.equal(used.get_state(), torch.Generator().manual_seed(9).get_state())
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(1, 3),
)
def test_with_a_model_that_repeats_pixels_the_picture_comes_back(size, tile, margin, blend, scale):
    picture = noise_picture(*size)
    result = upscale_image(picture, NearestModel(scale), tile=tile, margin=margin, blend=max(min(blend, tile - 1), 0))
    assert np.array_equal(np.asarray(result), np.asarray(nearest(picture, scale)))


def test_borders_are_mirrored():
    model = NearestModel(1)
    upscale_image(np.arange(30, dtype=np.uint8).reshape(2, 5, 3), model, tile=0, margin=3)
    rows = (model.seen[0][0, 0] * 255).round()
    assert rows[:, 3].tolist() == [15, 0, 15, 0, 15, 0, 15, 0]  # rows 1 0 1 | 0 1 | 0 1 0
    assert rows[3].tolist() == [9, 6, 3, 0, 3, 6, 9, 12, 9, 6, 3]


def test_seams_of_the_real_model_cannot_be_seen():
    """Hard edges everywhere: 2 levels at worst with the default margin of 8 pixels, none to speak of with 16."""
    model = load_upscaler("R-ESRGAN AnimeVideo")
    picture = drawn_picture(144, 108)
    whole = np.asarray(upscale_image(picture, model, tile=0, margin=16)).astype(int)
    inner = (slice(32, -32), slice(32, -32))  # the mirrored border is wider or narrower with the margin
    for margin, worst in ((8, 2), (16, 1)):
        tiled = np.asarray(upscale_image(picture, model, tile=64, margin=margin)).astype(int)
        difference = np.abs(whole - tiled)[inner]
        assert difference.max() <= worst
        assert (difference > 1).mean() < 1e-4


def test_one_picture_comes_out_alike_as_pil_array_and_tensor(golden: Path):
    model = load_upscaler(golden / "models" / "tiny-compact-x2.safetensors")
    picture = smooth_picture(50, 37)
    levels = np.asarray(picture)
    pixels = torch.from_numpy(levels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    as_pil, as_array, as_tensor = (upscale_image(kind, model, tile=24) for kind in (picture, levels, pixels))
    assert as_pil.size == (100, 74) and as_tensor.shape == (1, 3, 74, 100)
    assert np.array_equal(np.asarray(as_pil), as_array)
    assert np.array_equal((as_tensor[0] * 255).round().byte().permute(1, 2, 0).numpy(), as_array)
    pair = torch.cat([pixels, pixels.flip(-1)])
    assert torch.allclose(upscale_image(pair, model, tile=24)[:1], as_tensor, atol=1e-6)


def test_progress_counts_tiles_and_can_stop_the_work():
    calls: list[tuple[int, int]] = []
    upscale_image(noise_picture(20, 30), NearestModel(1), tile=10, blend=2, progress=lambda *c: calls.append(c))
    assert calls == [(i, 6) for i in range(1, 7)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    model = NearestModel(1)
    with pytest.raises(KeyboardInterrupt):
        upscale_image(noise_picture(20, 30), model, tile=10, blend=2, progress=stop)
    assert len(model.seen) == 2
    with pytest.raises(KeyboardInterrupt):
        enlarge_picture(noise_picture(40, 40), 80, 80, NearestModel(2), tile=16, overlap=2, progress=stop)


def resident_megabytes() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory use from /proc")
def test_16_megapixels_stay_within_1500_megabytes():
    model = NearestModel(4)
    model.seen = type("Forgetful", (list,), {"append": lambda *_: None})()
    picture = smooth_picture(4608, 3472)
    gc.collect()
    before, peak, running = resident_megabytes(), 0.0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, resident_megabytes())

    thread = threading.Thread(target=watch)
    thread.start()
    result = upscale_image(picture, model)
    running = False
    thread.join()
    assert result.size == (18432, 13888)
    assert peak - before < 1500


def test_an_unknown_filter_is_refused_by_name():
    with pytest.raises(ValueError, match='"Bicubic" is no picture filter.*"None", "Lanczos", "Nearest"'):
        enlarge_picture(noise_picture(8, 8), 16, 16, "Bicubic")


@pytest.mark.parametrize(
    "picture, why",
    [
        (Image.new("RGBA", (8, 8)), 'must have mode "RGB"'),
        (Image.new("I;16", (8, 8)), 'must have mode "RGB"'),
        (Image.new("RGB", (0, 8)), "is empty"),
        (np.zeros((8, 8), np.uint8), r"must be uint8 \(h, w, 3\)"),
        (np.zeros((8, 8, 3), np.float32), r"must be uint8 \(h, w, 3\)"),
        (torch.zeros(3, 8, 8), r"must be float \(b, 3, h, w\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"must be float \(b, 3, h, w\)"),
    ],
)
def test_what_is_no_rgb_picture_is_refused(picture, why):
    with pytest.raises(ValueError, match=why):
        upscale_image(picture, NearestModel(2))
