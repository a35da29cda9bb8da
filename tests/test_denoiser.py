"""The guided denoiser, on numbers that a reader can work out by hand.

The UNet here multiplies its latent by the mean of its text's vectors. At sigma = 2 the latent that it sees is
x / sqrt(5), so x = sqrt(5) makes it 1, and a text of the value v gives the output v.
"""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from webui_diffusers.pipelines.conditioning import Conditioning, TimedCond, WeightedCond
from webui_diffusers.pipelines.sampling.denoiser import DenoiserModel, Guidance, GuidedDenoiser, LatentMask
from webui_diffusers.pipelines.sampling.discrete_schedule import NoiseTable, default_alphas_cumprod


ALPHAS = default_alphas_cumprod()
TABLE = NoiseTable(ALPHAS)
TWO = torch.tensor(2.0)
ROOT = sqrt(5)
ALWAYS = 2**31


class MeanUNet(nn.Module):
    """output = gain * mean of the text's vectors * the latent's first channel. `seen`: what each run was given."""

    def __init__(self, gain: float = 1.0, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.gain, self.dtype, self.seen = gain, dtype, []

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **given) -> tuple[Tensor]:
        assert sample.dtype == timestep.dtype == encoder_hidden_states.dtype == self.dtype
        assert len(sample) == len(encoder_hidden_states) and timestep.ndim == 0 and given.pop("return_dict") is False
        self.seen.append({"x": sample, "t": timestep, "texts": encoder_hidden_states, **given})
        return (self.gain * encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1) * sample[:, :1],)


def text(value: float, tokens: int = 77, until: int = ALWAYS, last: float | None = None) -> TimedCond:
    """A text of one value; `last`: the value of its last token."""
    embeds = torch.full((tokens, 2), value)
    if last is not None:
        embeds[-1] = last
    return TimedCond(until, embeds)


def conditioning(*positives: list[tuple[float, list[TimedCond]]], negative: float | list[TimedCond] = 0.1, **others):
    """Each positive is one image's [(weight, entries), ...]; all images share the negative."""
    entries = negative if isinstance(negative, list) else [text(negative)]
    pieces = [[WeightedCond(weight, schedule) for weight, schedule in image] for image in positives]
    return Conditioning(pieces, [entries] * len(positives), **others)


ONE = conditioning([(1.0, [text(0.5)])])


def denoiser(texts: Conditioning = ONE, *, unet: MeanUNet | None = None, guidance: Guidance | None = None, **others):
    model = DenoiserModel(unet or MeanUNet(), TABLE, texts, others.pop("prediction_type", "epsilon"))
    return GuidedDenoiser([model], guidance or Guidance(), total_calls=others.pop("total_calls", 10), **others)


def latent(images: int = 1, value: float = ROOT) -> Tensor:
    return torch.full((images, 1, 1, 1), value)


def call(subject: GuidedDenoiser, images: int = 1, sigma: Tensor = TWO) -> list[float]:
    return subject(latent(images), sigma).flatten().tolist()


def test_guidance_goes_from_the_negative_text_through_the_positive_one():
    """c = sqrt 5 - 2 (0.5), u = sqrt 5 - 2 (0.1), D = u + 7 (c - u)."""
    unet = MeanUNet()
    assert call(denoiser(unet=unet)) == pytest.approx([(ROOT - 0.2) + 7 * (-0.8)])
    assert unet.seen[0]["t"].item() == pytest.approx(float(TABLE.sigma_to_t(TWO)))
    assert unet.seen[0]["x"].flatten().tolist() == pytest.approx([1.0, 1.0])


def test_scale_1_still_runs_the_negative_side_and_no_side_at_all_is_the_positive_alone():
    unet = MeanUNet()
    assert call(denoiser(unet=unet, guidance=Guidance(guidance_scale=1.0))) == pytest.approx([ROOT - 1.0])
    assert len(unet.seen[0]["x"]) == 2
    alone = denoiser(unet=unet, guidance=Guidance(do_classifier_free_guidance=False))
    assert call(alone) == pytest.approx([ROOT - 1.0]) and len(unet.seen[1]["x"]) == 1


def test_the_scale_may_change_between_calls_and_is_divided_for_cfgpp():
    subject = denoiser(guidance_divisor=12.5)
    assert call(subject) == pytest.approx([(ROOT - 0.2) - 0.8 * 7 / 12.5])
    subject.change_scale(5.0)
    assert call(subject) == pytest.approx([(ROOT - 0.2) - 0.8 * 5 / 12.5])


def test_pieces_of_and_each_pull_by_their_weight():
    """c1 = -1 and c2 = -0.6 from sqrt 5; u = -0.2: D = u + 7 (-0.8) + 7 (-0.5) (-0.4)."""
    pieces = [(1.0, [text(0.5)]), (-0.5, [text(0.3)])]
    assert call(denoiser(conditioning(pieces))) == pytest.approx([(ROOT - 0.2) - 5.6 + 1.4])


def test_images_of_a_batch_may_have_different_numbers_of_pieces():
    texts = conditioning([(1.0, [text(0.5)]), (0.25, [text(0.9)])], [(2.0, [text(0.2)])])
    unet = MeanUNet()
    found = call(denoiser(texts, unet=unet), images=2)
    assert found == pytest.approx([(ROOT - 0.2) - 5.6 - 7 * 0.25 * 1.6, (ROOT - 0.2) - 7 * 2 * 0.2], abs=1e-5)
    assert unet.seen[0]["texts"][:, 0, 0].tolist() == pytest.approx([0.5, 0.9, 0.2, 0.1, 0.1])


def test_each_row_sees_the_latent_of_its_image():
    texts = conditioning([(1.0, [text(0.5)]), (1.0, [text(0.5)])], [(1.0, [text(0.5)])])
    unet = MeanUNet()
    denoiser(texts, unet=unet)(torch.tensor([ROOT, 3 * ROOT]).view(2, 1, 1, 1), TWO)
    assert unet.seen[0]["x"].flatten().tolist() == pytest.approx([1.0, 1.0, 3.0, 1.0, 3.0])


def test_ngms_leaves_out_the_negative_side_on_odd_calls_below_its_sigma():
    """Without it u is the first piece and the scale is 1: c1 + 1 (c1 - c1) - 0.5 (c2 - c1)."""
    pieces = [(1.0, [text(0.5)]), (-0.5, [text(0.3)])]
    whole, skipped = (ROOT - 0.2) - 5.6 + 1.4, (ROOT - 1.0) - 0.5 * 0.4
    subject = denoiser(conditioning(pieces), guidance=Guidance(s_min_uncond=2.5))
    assert [call(subject)[0] for _ in range(4)] == pytest.approx([whole, skipped, whole, skipped])
    above = denoiser(conditioning(pieces), guidance=Guidance(s_min_uncond=2.0))
    assert [call(above)[0] for _ in range(2)] == pytest.approx([whole, whole])
    everywhere = denoiser(conditioning(pieces), guidance=Guidance(s_min_uncond=2.5, s_min_uncond_all=True))
    assert [call(everywhere)[0] for _ in range(2)] == pytest.approx([skipped, skipped])


def test_ngms_compares_timesteps_where_the_loop_has_timesteps():
    subject = denoiser(guidance=Guidance(s_min_uncond=500.0, s_min_uncond_all=True))
    guided = [subject.eps(latent(value=1.0), torch.tensor(t))[0].item() for t in (501.0, 499.0)]
    assert guided == pytest.approx([0.1 + 7 * 0.4, 0.5])


def test_skipping_early_counts_calls_up_to_its_share():
    subject = denoiser(guidance=Guidance(skip_early_cond=0.2), total_calls=10)
    whole, skipped = (ROOT - 0.2) - 5.6, ROOT - 1.0
    assert [call(subject)[0] for _ in range(4)] == pytest.approx([skipped, skipped, skipped, whole])


def test_texts_hold_as_long_as_their_calls_say_and_start_again_behind_the_last():
    edited = conditioning([(1.0, [text(0.5, until=1), text(0.3, until=2)])], negative=0.0)
    subject = denoiser(edited, guidance=Guidance(guidance_scale=1.0))
    assert [ROOT - call(subject)[0] for _ in range(5)] == pytest.approx([1.0, 1.0, 0.6, 1.0, 1.0])
    assert subject.calls == 5


LONG = text(0.5, tokens=154)


def test_sides_of_different_length_are_run_one_after_the_other():
    unet = MeanUNet()
    assert call(denoiser(conditioning([(1.0, [LONG])]), unet=unet)) == pytest.approx([(ROOT - 0.2) - 5.6])
    assert [run["texts"].shape[:2] for run in unet.seen] == [(1, 154), (1, 77)]


def test_padding_v0_repeats_the_last_vector_or_cuts():
    unet, v0 = MeanUNet(), Guidance(pad_cond_uncond_v0=True, pad_cond_uncond=True)
    call(denoiser(conditioning([(1.0, [LONG])], negative=[text(0.1, last=0.7)]), unet=unet, guidance=v0))
    assert len(unet.seen) == 1
    assert unet.seen[0]["texts"][1, :, 0].tolist() == pytest.approx([0.1] * 76 + [0.7] * 78)
    call(denoiser(ONE_LONG_NEGATIVE, unet=unet, guidance=v0))
    assert unet.seen[1]["texts"].shape == (2, 77, 2)


ONE_LONG_NEGATIVE = conditioning([(1.0, [text(0.5)])], negative=[text(0.1, tokens=154, last=0.7)])


def test_padding_appends_the_encoding_of_nothing_once_a_chunk():
    unet, padded, empty = MeanUNet(), Guidance(pad_cond_uncond=True), torch.full((77, 2), 0.4)
    longest = conditioning([(1.0, [text(0.5, tokens=231)])], negative=[text(0.1, last=0.7)], empty=empty)
    call(denoiser(longest, unet=unet, guidance=padded))
    assert unet.seen[0]["texts"][1, :, 0].tolist() == pytest.approx([0.1] * 76 + [0.7] + [0.4] * 154)
    shorter = conditioning([(1.0, [text(0.5)])], negative=[text(0.1, tokens=154)], empty=empty)
    call(denoiser(shorter, unet=unet, guidance=padded))
    assert unet.seen[1]["texts"][0, :, 0].tolist() == pytest.approx([0.5] * 77 + [0.4] * 77)


def test_shorter_pieces_of_and_repeat_their_own_last_vector():
    unet = MeanUNet()
    pieces = [(1.0, [LONG]), (1.0, [text(0.2, last=0.9)])]
    call(denoiser(conditioning(pieces, negative=[text(0.1, tokens=154)]), unet=unet))
    assert unet.seen[0]["texts"][1, :, 0].tolist() == pytest.approx([0.2] * 76 + [0.9] * 78)


def test_rescaling_gives_the_output_the_deviation_of_the_positive_one():
    """Outputs 0.5 (1, 3) and 0.1 (1, 3) guide to 2.9 (1, 3), brought to 0.5 (1, 3) and mixed half and half."""
    subject = denoiser(guidance=Guidance(guidance_rescale=0.5))
    x = torch.tensor([ROOT, 3 * ROOT]).view(1, 1, 1, 2)
    assert subject(x, TWO).flatten().tolist() == pytest.approx([ROOT - 3.4, 3 * ROOT - 10.2], rel=1e-5)


def test_v_and_sample_predictions_are_read_as_x0():
    """v: D = x / 5 - 2 v / sqrt 5, and v is 0.1 + 7 (0.4) after guidance, which is linear."""
    assert call(denoiser(prediction_type="v_prediction")) == pytest.approx([ROOT / 5 - 2 * 2.9 / ROOT], rel=1e-5)
    assert call(denoiser(prediction_type="sample")) == pytest.approx([2.9])


def test_v_and_sample_predictions_are_read_as_eps_at_the_truncated_timestep():
    a = ALPHAS[500].item()
    x, t = latent(value=1.0), torch.tensor(500.9)
    guided, negative = denoiser(prediction_type="v_prediction").eps(x, t)
    assert guided.item() == pytest.approx(sqrt(a) * 2.9 + sqrt(1 - a), rel=1e-5)
    assert negative.item() == pytest.approx(sqrt(a) * 0.1 + sqrt(1 - a), rel=1e-5)
    assert denoiser(prediction_type="sample").eps(x, t)[0].item() == pytest.approx(
        (1 - sqrt(a) * 2.9) / sqrt(1 - a), rel=1e-5
    )
    assert [side.item() for side in denoiser().eps(x, t)] == pytest.approx([2.9, 0.1])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_consistency_model_is_read_between_skip_and_output_and_always_as_eps(prediction_type):
    """At t = 499: tau = 4990, c_skip = 0.25 / (tau**2 + 0.25), c_out = tau / sqrt(tau**2 + 0.25)."""
    unet, sigma = MeanUNet(), TABLE.sigmas[499]
    subject = denoiser(unet=unet, lcm=True, prediction_type=prediction_type)
    c_in = 1 / sqrt(sigma.item() ** 2 + 1)
    c_skip, c_out = 0.25 / (4990**2 + 0.25), 4990 / sqrt(4990**2 + 0.25)
    expected = ROOT * (c_skip + c_out * (1 - sigma.item() * 2.9 * c_in))
    assert call(subject, sigma=sigma) == pytest.approx([expected], rel=1e-5)
    call(subject, sigma=sigma * 1.001)
    assert unet.seen[0]["t"].item() == unet.seen[1]["t"].item() == 499.0


def test_what_is_kept_is_put_in_behind_guidance_over_sigmas_and_before_the_unet_over_timesteps():
    keep = torch.tensor([0.25, 0.0]).view(1, 1, 1, 2)
    mask = LatentMask(init=torch.full((1, 1, 1, 2), 8.0), keep=keep, change=1 - keep)
    unet, plain = MeanUNet(), (ROOT - 0.2) - 5.6
    found = denoiser(unet=unet, mask=mask)(torch.full((1, 1, 1, 2), ROOT), TWO)
    assert found.flatten().tolist() == pytest.approx([0.75 * plain + 0.25 * 8, plain])
    denoiser(unet=unet, mask=mask).eps(torch.ones(1, 1, 1, 2), torch.tensor(500.0))
    assert unet.seen[1]["x"][0].flatten().tolist() == pytest.approx([0.75 + 2.0, 1.0])


def refined(switch_at: float, by_steps: bool = False, **others) -> tuple[GuidedDenoiser, MeanUNet, MeanUNet]:
    base, refiner = MeanUNet(), MeanUNet(gain=10.0)
    models = [DenoiserModel(base, TABLE, ONE), DenoiserModel(refiner, TABLE, conditioning([(1.0, [text(0.7)])]))]
    guidance = Guidance(refiner_switch_at=switch_at, refiner_switch_by_sample_steps=by_steps)
    return GuidedDenoiser(models, guidance, total_calls=10, **others), base, refiner


def test_the_refiner_takes_over_at_its_noise_level_with_its_own_texts():
    subject, base, refiner = refined(0.6)
    call(subject, sigma=TABLE.sigmas[400])
    assert (len(base.seen), len(refiner.seen)) == (1, 0)
    call(subject, sigma=TABLE.sigmas[399])
    call(subject, sigma=TABLE.sigmas[900])  # no way back
    assert (len(base.seen), len(refiner.seen)) == (1, 2)
    assert refiner.seen[0]["texts"][:, 0, 0].tolist() == pytest.approx([0.7, 0.1]) and subject.calls == 3


def test_the_refiner_takes_over_by_whole_timesteps_where_the_loop_has_them():
    subject, base, refiner = refined(0.6)
    subject.eps(latent(), torch.tensor(400.0))
    subject.eps(latent(), torch.tensor(399.9))
    assert (len(base.seen), len(refiner.seen)) == (1, 1)


def test_the_refiner_may_count_calls_instead():
    subject, base, refiner = refined(0.3, by_steps=True)
    for _ in range(5):
        call(subject)
    assert (len(base.seen), len(refiner.seen)) == (3, 2)


@pytest.mark.parametrize("switch_at", [1.0, 0.9999])
def test_the_refiner_may_come_too_late(switch_at):
    subject, _, refiner = refined(switch_at)
    call(subject, sigma=TABLE.sigmas[0])
    assert not refiner.seen


def test_sdxl_is_told_its_sizes_and_pooled_texts_row_by_row():
    entry = TimedCond(ALWAYS, torch.full((77, 2), 0.5), torch.tensor([1.0, 2.0]))
    other = TimedCond(ALWAYS, torch.full((77, 2), 0.1), torch.tensor([3.0, 4.0]))
    texts = Conditioning(
        [[WeightedCond(1.0, [entry])], [WeightedCond(1.0, [entry]), WeightedCond(1.0, [entry])]], [[other], [other]]
    )
    unet, sizes = MeanUNet(), (torch.arange(6.0), torch.arange(6.0) + 10)
    GuidedDenoiser([DenoiserModel(unet, TABLE, texts, "epsilon", sizes)], Guidance(), total_calls=1)(latent(2), TWO)
    added = unet.seen[0]["added_cond_kwargs"]
    assert added["text_embeds"].tolist() == [[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 2
    assert (
        added["time_ids"].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 3 + [[10.0, 11.0, 12.0, 13.0, 14.0, 15.0]] * 2
    )


def test_a_half_precision_unet_is_given_its_own_dtype_and_answers_in_float32():
    unet = MeanUNet(dtype=torch.bfloat16)
    found = denoiser(unet=unet)(latent(), TWO)
    assert found.dtype == torch.float32 and found.item() == pytest.approx((ROOT - 0.2) - 5.6, rel=2e-2)


def test_what_stands_beside_the_latent_is_given_to_every_row():
    unet, beside = MeanUNet(), torch.arange(2.0).view(2, 1, 1, 1)
    texts = conditioning([(1.0, [text(0.5)])], [(1.0, [text(0.5)])])
    found = call(denoiser(texts, unet=unet, guidance=Guidance(extra_channels=beside)), images=2)
    assert found == pytest.approx([(ROOT - 0.2) - 5.6] * 2)
    assert unet.seen[0]["x"][:, 1].flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
