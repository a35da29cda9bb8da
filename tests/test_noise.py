"""Noise of a batch, and Brownian paths."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import GOLDEN, OLDER_KERNELS, recorded_json
from safetensors.torch import load_file
from webui_diffusers.pipelines.sampling.brownian import BrownianNoise, BrownianPath
from webui_diffusers.pipelines.sampling.noise import GeneratorNoise, SeededNoise, noise_stream, slerp_columns


CASES = recorded_json("sampling/rng.json", "cases", at_least=34)
SHAPE = (4, 6, 10)
seeds_of_a_batch = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sampling/rng.safetensors")


def recorded_noise(case: dict) -> SeededNoise:
    return SeededNoise(
        case["shape"],
        case["seeds"],
        source=case["source"].lower(),
        subseeds=case.get("subseeds"),
        subseed_strength=case.get("subseed_strength", 0.0),
        seed_resize=(case.get("resize_w", 0), case.get("resize_h", -1)),
        eta_noise_seed_delta=case.get("ensd", 0),
    )


@pytest.mark.goldens
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_draws_are_those_of_the_recordings(case, recorded):
    noise = recorded_noise(case)
    for draw in ("first", "next1", "next2"):
        drawn, expected = noise.next(), recorded[f"{case['key']}.{draw}"]
        if case.get("subseed_strength") and OLDER_KERNELS:
            torch.testing.assert_close(drawn, expected, atol=2e-6, rtol=0)
        else:
            assert torch.equal(drawn, expected), draw


@pytest.mark.goldens
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_global_generator_stands_where_the_webui_leaves_it(case, recorded):
    generator = recorded_noise(case).global_generator() or torch.Generator().manual_seed(777)
    assert torch.equal(torch.randn(4, generator=generator), recorded[case["key"] + ".global_after"])


@pytest.mark.goldens
@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_brownian_increments_are_those_of_the_recordings(source, recorded):
    setting = json.loads((GOLDEN / "sampling/rng.json").read_text())["brownian"]
    for row, seeds in enumerate(setting["seeds"]):
        noise = SeededNoise((4, 8, 8), seeds, source=source.lower())
        brownian = BrownianNoise(noise, setting["sigma_min"], setting["sigma_max"])
        for a, b in zip(setting["points"], setting["points"][1:]):
            value = recorded[f"brownian.{source}.{row}.{a}_{b}"]
            assert torch.equal(brownian(torch.tensor(a), torch.tensor(b)), value)


def test_brownian_path_is_that_of_torchsde():
    torchsde = pytest.importorskip("torchsde")
    tree = torchsde.BrownianTree(0.03, torch.zeros(SHAPE), 14.6, entropy=5)
    path = BrownianPath(0.03, 14.6, 5, lambda seed: noise_stream(seed, "cpu", torch.device("cpu"))(SHAPE))
    for a, b in [(0.03, 14.6), (2.5, 2.50001), (0.5, 9.1234567), (0.03, 0.031), (7.0, 14.6), (0.5, 9.1234567)]:
        assert torch.equal(path(a, b), tree(a, b))


def test_variation_noise_turns_column_by_column():
    """Two columns, at a right angle and at a smaller one, are each turned half way and keep their length."""
    low, high = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    low[0, 0], high[0, 1, 0], high[0, 0, 1], high[0, 1, 1] = 1.0, 1.0, 0.6, 0.8
    mixed = slerp_columns(0.5, low, high)
    assert torch.allclose(mixed[0, :, 0], torch.full((2,), 0.5**0.5))
    assert torch.allclose(mixed.norm(dim=1), torch.ones(1, 2))


def test_parallel_variation_noise_is_weighed_the_wrong_way_round():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(slerp_columns(0.25, noise, 2 * noise), 1.75 * noise)


@settings(deadline=None, max_examples=25)
@given(seeds=seeds_of_a_batch, source=st.sampled_from(["cpu", "nv", "gpu"]), delta=st.sampled_from([0, -3, 31337]))
def test_an_image_of_a_batch_is_the_image_alone(seeds, source, delta):
    seeds = [min(max(seed, 3), 2**64 - 40000) for seed in seeds]
    settings_ = {"source": source, "subseed_strength": 0.3, "eta_noise_seed_delta": delta, "seed_resize": (64, 96)}
    together = SeededNoise(SHAPE, seeds, subseeds=[8] * len(seeds), **settings_)
    alone = [SeededNoise(SHAPE, [seed], subseeds=[8], **settings_) for seed in seeds]
    brownian = BrownianNoise(together, 0.03, 14.6)(torch.tensor(3.0), torch.tensor(1.0))
    for _ in range(3):
        assert torch.equal(together.next(), torch.cat([noise.next() for noise in alone]))
    for i, noise in enumerate(alone):
        assert torch.equal(BrownianNoise(noise, 0.03, 14.6)(torch.tensor(3.0), torch.tensor(1.0))[0], brownian[i])


@settings(deadline=None, max_examples=50)
@given(times=st.lists(st.floats(0.03, 14.6), min_size=3, max_size=3, unique=True))
def test_brownian_increments_add_up(times):
    a, b, c = sorted(times)
    path = BrownianPath(0.03, 14.6, 11, lambda seed: noise_stream(seed, "nv", torch.device("cpu"))((1, 2, 2)))
    assert torch.allclose(path(a, b) + path(b, c), path(a, c), atol=1e-5)


@pytest.mark.parametrize("off", [None, (0, 0), (-1, -1), (64, 0), (0, 64), (-1, 64), (80, 48)])
def test_a_size_that_is_no_other_changes_nothing(off):
    plain, resized = SeededNoise(SHAPE, [5]), SeededNoise(SHAPE, [5], seed_resize=off)
    assert torch.equal(plain.next(), resized.next()) and torch.equal(plain.next(), resized.next())


@pytest.mark.parametrize("source", ["cpu", "nv", "gpu"])
def test_torch_s_own_generator_is_left_alone(source):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    noise = SeededNoise(SHAPE, [1, 2], source=source, subseeds=[3, 4], subseed_strength=0.5)
    noise.next(), noise.next(), noise.global_generator()
    BrownianNoise(noise, 0.1, 10.0)(torch.tensor(2.0), torch.tensor(1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_is_a_card_s_noise_on_every_device():
    assert torch.equal(SeededNoise(SHAPE, [9]).next(), SeededNoise(SHAPE, [9], source="nv").next())


@pytest.mark.gpu
def test_a_card_draws_what_philox_draws():
    drawn = SeededNoise((4, 64, 64), [9, 2**32], device="cuda").next()
    expected = SeededNoise((4, 64, 64), [9, 2**32], source="nv").next()
    assert drawn.device.type == "cuda" and torch.allclose(drawn.cpu(), expected, rtol=0, atol=1e-5)


def test_a_generator_draws_as_in_diffusers():
    one = GeneratorNoise(SHAPE, 2, torch.Generator().manual_seed(4))
    expected = torch.Generator().manual_seed(4)
    for _ in range(2):
        assert torch.equal(one.next(), torch.randn((2, *SHAPE), generator=expected))
    each = GeneratorNoise(SHAPE, 2, [torch.Generator().manual_seed(seed) for seed in (4, 5)])
    expected = [torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    assert each.seeds == [4, 5] and torch.equal(each.next(), torch.cat(expected))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source": "tpu"}, "'gpu', 'cpu', 'nv'"),
        ({"seeds": []}, "one seed per image"),
        ({"seeds": [2**64]}, "64 bits"),
        ({"seeds": [1.5]}, "whole number"),
        ({"shape": (2, 4, 8, 8)}, "one image's latent"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeededNoise(arguments.pop("shape", SHAPE), arguments.pop("seeds", [1]), **arguments)


def test_a_generator_per_image_or_none():
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        GeneratorNoise(SHAPE, 3, [torch.Generator(), torch.Generator()])
