"""Where tiles lie. Pure arithmetic."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webui_diffusers.pipelines.images.tile_grid import mirrored_positions, tile_spans, webui_tile_starts


WEBUI_STARTS = [  # length, tile, overlap -> where tiles begin
    ((192, 192, 8), [0]),
    ((64, 192, 8), [-128]),
    ((184, 192, 8), [-8]),
    ((193, 192, 8), [0, 1]),
    ((376, 192, 8), [0, 184]),
    ((512, 192, 8), [0, 160, 320]),
    ((512, 192, 0), [0, 160, 320]),
    ((513, 192, 48), [0, 107, 214, 321]),
    ((97, 33, 0), [0, 32, 64]),
]
SPANS = [  # length, tile, blend -> spans
    ((10, 0, 8), [(0, 10)]),
    ((10, 10, 2), [(0, 10)]),
    ((11, 10, 2), [(0, 7), (4, 11)]),
    ((1024, 512, 8), [(0, 516), (508, 1024)]),
    ((30, 10, 0), [(0, 10), (10, 20), (20, 30)]),
    ((1, 4, 2), [(0, 1)]),
]


@pytest.mark.parametrize("asked, starts", WEBUI_STARTS)
def test_where_the_webui_puts_its_tiles(asked, starts):
    assert webui_tile_starts(*asked) == starts


@pytest.mark.parametrize("asked, spans", SPANS)
def test_where_our_tiles_lie(asked, spans):
    assert tile_spans(*asked) == spans


@example(1699, 33, 0)
@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 599))
def test_webui_tiles_cover_the_side_and_share_the_overlap(length, tile, overlap):
    overlap = min(overlap, tile - 1)
    starts = webui_tile_starts(length, tile, overlap)
    assert starts[-1] + tile == length
    assert starts[0] == min(0, length - tile)
    for before, after in zip(starts, starts[1:]):
        assert before <= after <= before + tile - overlap


@given(st.integers(1, 3000), st.integers(1, 600), st.data())
def test_our_tiles_are_equal_cover_the_side_and_share_the_blend(length, tile, data):
    blend = data.draw(st.integers(0, tile - 1))
    spans = tile_spans(length, tile, blend)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert len({stop - start for start, stop in spans}) == 1
    for (start, stop), (next_start, _) in zip(spans, spans[1:]):
        assert blend <= stop - next_start
        assert 0 < next_start - start <= tile


@given(st.integers(1, 40), st.integers(-100, 100), st.integers(0, 100))
def test_mirrored_positions_stay_inside_and_go_by_one(length, start, count):
    positions = mirrored_positions(start, start + count, length)
    assert len(positions) == count
    assert all(0 <= position < length for position in positions)
    assert all(abs(a - b) == (length > 1) for a, b in zip(positions, positions[1:]))
    for i, position in zip(range(start, start + count), positions):
        assert position == i or not 0 <= i < length


@pytest.mark.parametrize("tile, overlap", [(0, 0), (8, 8), (8, -1), (-1, 0)])
def test_webui_tiles_that_cannot_advance_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="`overlap` must be at least 0 and less than `tile`"):
        webui_tile_starts(64, tile, overlap)


@pytest.mark.parametrize("tile, blend", [(-1, 0), (8, 8), (8, -1), (0, -1)])
def test_blends_as_large_as_a_tile_are_refused(tile, blend):
    with pytest.raises(ValueError, match="`blend` less than `tile`"):
        tile_spans(64, tile, blend)


def test_the_arithmetic_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from webui_diffusers.pipelines.images.tile_grid import tile_spans; tile_spans(9, 4, 1); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
