"""A card's normal numbers, made in software."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN
from safetensors.numpy import load_file
from webui_diffusers.pipelines.sampling.philox import PhiloxStream, philox_words


def test_known_answer_of_the_cipher():
    """The first test vector of Random123 for philox4x32-10: counter and key 0."""
    first, second = philox_words(seed=0, offset=0, threads=np.zeros(1, np.uint64))
    assert [hex(int(first[0])), hex(int(second[0]))] == ["0x6627e8d5", "0xe169c58d"]


@pytest.mark.goldens
def test_bits_are_those_of_the_recordings():
    tensors = load_file(GOLDEN / "sampling/rng.safetensors")
    recorded = {name: value for name, value in tensors.items() if name.startswith("randn_local.NV.")}
    assert recorded
    for name, value in recorded.items():
        assert np.array_equal(PhiloxStream(int(name.rsplit(".", 1)[1])).randn(value.shape), value), name


@pytest.mark.goldens
def test_a_call_moves_the_stream_on_by_one_whatever_its_size():
    case = next(c for c in json.loads((GOLDEN / "sampling/rng.json").read_text())["cases"] if c["source"] == "NV")
    tensors = load_file(GOLDEN / "sampling/rng.safetensors")
    stream = PhiloxStream(case["seeds"][0])
    stream.randn((3,))
    assert np.array_equal(stream.randn(tuple(case["shape"])), tensors[case["key"] + ".next1"][0])


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 42, 2**32 + 7])
def test_torch_on_a_card_draws_the_same(seed):
    """The same stream; the card rounds logarithm and cosine its own way (an H200: 84 % of the numbers differ, by up to
    5e-6 here and 2.3e-5 in draws of (4, 256, 256), at numbers near 0)."""
    import torch

    generator, stream = torch.Generator("cuda").manual_seed(seed), PhiloxStream(seed)
    for _ in range(3):
        drawn = torch.randn((4, 64, 64), generator=generator, device="cuda").cpu()
        assert torch.allclose(drawn, torch.from_numpy(stream.randn((4, 64, 64))), rtol=0, atol=1e-5)


@given(seed=st.integers(0, 2**64 - 1), count=st.integers(1, 40))
def test_an_element_does_not_depend_on_how_many_are_drawn(seed, count):
    assert np.array_equal(PhiloxStream(seed).randn((count,)), PhiloxStream(seed).randn((40,))[:count])


def test_large_draws_go_on_where_small_ones_end():
    whole, part = PhiloxStream(3).randn((20_000,)), PhiloxStream(3).randn((20,))
    assert np.array_equal(whole[:20], part)
    assert len(np.unique(whole)) > 19_900


@given(seed=st.integers(0, 2**32 - 1), high=st.integers(1, 2**32 - 1))
def test_both_words_of_a_seed_count(seed, high):
    assert not np.array_equal(PhiloxStream(seed).randn((4,)), PhiloxStream(seed + (high << 32)).randn((4,)))


def test_numbers_are_normal():
    drawn = PhiloxStream(7).randn((100_000,)).astype(np.float64)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02 and np.isfinite(drawn).all()
