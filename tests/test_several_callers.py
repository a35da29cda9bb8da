"""Several threads on one model: every image is the one that the call draws alone, and the model is as it was."""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from recordings import GOLDEN
from safetensors.torch import load_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import merged_networks, read_network
from webui_diffusers.loaders.lora.kept import kept_mergers
from webui_diffusers.loaders.lora.merge import NetworkMerger
from webui_diffusers.loaders.model_lock import model_gate, models_in_use
from webui_diffusers.pipelines import MultiLoraPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.call_state import CallState, own_state, stock_changes_models
from webui_diffusers.pipelines.images.vae import finite_or_float32
from webui_diffusers.pipelines.prompt.encode import PromptEncoder
from webui_diffusers.pipelines.prompt.text_encoder import RowCache


FAST = {"num_inference_steps": 2, "width": 32, "height": 32, "output_type": "np"}
LORAS = {"ink": GOLDEN / "lora" / "kohya_lora.safetensors", "glow": GOLDEN / "lora" / "alpha_ne_rank.safetensors"}
JOBS: list[dict[str, Any]] = [
    {"prompt": "a (red:1.3) circle", "sampler": "Euler a", "seed": 1, "guidance_scale": 3.0},
    {"prompt": "a red circle <lora:ink:1>", "sampler": "Euler a", "seed": 1},
    {"prompt": "[red:blue:0.5] square", "sampler": "DPM++ 2M", "seed": 2, "loras": {"glow": 0.8}},
    {"prompt": "a star", "sampler": "Euler", "seed": 3, "tiling": True},
    {"prompt": "a star", "sampler": "DPM++ SDE", "seed": 3},
    {"prompt": "a circle", "loras": {"ink": 0.5}, "lora_backend": "peft", "sampler": "Euler", "seed": 4},
]
PLAIN = {
    "prompt": "a circle",
    "num_inference_steps": 3,
    "width": 32,
    "height": 32,
}  # diffusers' own road, with the pipeline's scheduler


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    for name, path in LORAS.items():
        pipe.add_lora(path, name)
    return pipe


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = {name: getattr(pipe, name).state_dict() for name in ("unet", "text_encoder", "vae")}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


def together(draw: Callable[[Any], np.ndarray], jobs: list, threads: int = 4) -> list[np.ndarray]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(draw, jobs))


def test_calls_side_by_side_draw_what_each_draws_alone(pipe):
    other = WebUITxt2ImgPipeline.from_pipe(pipe)  # another pipeline on the same model
    other.set_progress_bar_config(disable=True)
    before, jobs = weights(pipe), [*enumerate(JOBS * 2)]

    def draw(job: tuple[int, dict]) -> np.ndarray:
        return (other if job[0] % 3 == 0 else pipe)(**FAST, **job[1]).images

    alone = [draw(job) for job in jobs[: len(JOBS)]] * 2
    for number, (one, now) in enumerate(zip(alone, together(draw, jobs), strict=True)):
        assert np.array_equal(one, now), JOBS[number % len(JOBS)]
    after = weights(pipe)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not getattr(pipe.unet, "peft_config", None)


def test_the_schedulers_steps_belong_to_the_call(pipe):
    def draw(seed: int) -> np.ndarray:
        return pipe(**PLAIN, output_type="np", generator=torch.Generator().manual_seed(seed)).images

    alone = [draw(seed) for seed in range(4)]
    scheduler = pipe.scheduler
    assert all(map(np.array_equal, alone, together(draw, list(range(4)))))
    assert pipe.scheduler is scheduler


def test_calls_that_begin_together_never_share_a_scheduler(pipe, taking_turns):
    other = WebUITxt2ImgPipeline.from_pipe(pipe)
    assert other.scheduler is pipe.scheduler
    begin, end = threading.Barrier(4, timeout=30), threading.Barrier(4, timeout=30)

    def taken(pipe: Any) -> Any:
        begin.wait()
        with own_state(pipe):
            end.wait()
            return pipe.scheduler

    for _ in range(100):
        schedulers = together(taken, [pipe, other] * 2)
        assert len({*map(id, schedulers)}) == 4 and pipe.scheduler in schedulers


@pytest.mark.parametrize("prompt", ["a circle", "a [red:blue:0.5] circle"])
def test_another_scheduler_is_for_the_calls_that_begin_after(pipe, prompt):
    scheduler, other = pipe.scheduler, EulerDiscreteScheduler.from_config(pipe.scheduler.config)

    def draw(callback: Callable | None = None) -> np.ndarray:
        given = {**PLAIN, "prompt": prompt, "generator": torch.Generator().manual_seed(1), "output_type": "np"}
        drawn = pipe(**given, callback_on_step_end=callback)
        name = type(other if pipe.scheduler is other and callback is None else scheduler).__name__
        assert f"Sampler: {name}," in drawn.infotexts[0]
        return drawn.images

    def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
        together(lambda own: setattr(pipe, "scheduler", own), [other])
        return {}

    alone = draw()
    assert np.array_equal(draw(callback), alone)
    assert pipe.scheduler is other and not np.array_equal(draw(), alone)
    pipe.scheduler = scheduler
    assert np.array_equal(draw(), alone)


def test_a_call_inside_a_callback_leaves_the_outer_ones_steps_alone(pipe):
    def draw(callback: Callable | None = None) -> np.ndarray:
        seeded = torch.Generator().manual_seed(1)
        return pipe(**PLAIN, output_type="np", generator=seeded, callback_on_step_end=callback).images

    inner = []

    def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
        inner.append(draw())
        return {}

    alone = draw()
    assert np.array_equal(draw(callback), alone)
    assert inner and all(np.array_equal(one, alone) for one in inner)


def test_a_call_inside_one_that_draws_with_a_copy_has_a_copy_of_its_own(pipe):
    def schedulers(_: Any) -> list[Any]:
        with own_state(pipe):
            outer = pipe.scheduler
            with own_state(pipe):
                return [outer, pipe.scheduler]

    with own_state(pipe):
        assert len({id(pipe.scheduler), *map(id, together(schedulers, [None])[0])}) == 3


def test_what_has_no_scheduler_may_be_called_by_several_too():
    class Texts(CallState):
        """A pipeline that encodes texts and draws nothing."""

    texts = Texts()
    with own_state(texts):
        with own_state(texts):
            assert texts.scheduler is None


def test_what_a_callback_reads_and_writes_belongs_to_its_call(pipe):
    seen: dict[float, set[float]] = {}
    meet = threading.Barrier(2, timeout=30)

    def draw(scale: float) -> np.ndarray:
        def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
            meet.wait()
            seen.setdefault(scale, set()).add(running.guidance_scale)
            if scale == 5.0:
                running._interrupt = True
            return {}

        job = {"prompt": "a star", "sampler": "Euler", "seed": 1, "guidance_scale": scale}
        return pipe(**{**FAST, "num_inference_steps": 1}, **job, callback_on_step_end=callback).images

    together(draw, [3.0, 5.0], threads=2)
    assert seen == {3.0: {3.0}, 5.0: {5.0}}


def test_an_interrupt_from_outside_stops_the_call_that_runs(pipe):
    begun, go_on, steps = threading.Event(), threading.Event(), []

    def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
        steps.append(step)
        begun.set()
        assert go_on.wait(30)
        return {}

    arguments = {**FAST, **JOBS[0], "num_inference_steps": 8, "callback_on_step_end": callback}
    thread = threading.Thread(target=lambda: pipe(**arguments))
    thread.start()
    assert begun.wait(30)
    pipe._interrupt = True
    go_on.set()
    thread.join(30)
    assert steps == [0]
    assert pipe(**FAST, **JOBS[0]).images.shape == (1, 32, 32, 3) and not pipe.interrupt


def test_a_callback_that_calls_the_pipe_again_is_refused_where_it_would_draw_with_the_outer_networks(pipe):
    def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
        running(**FAST, **JOBS[0])
        return {}

    before = weights(pipe)
    with pytest.raises(RuntimeError, match="inside a call on the same model"):
        pipe(**FAST, **JOBS[1], callback_on_step_end=callback)
    after = weights(pipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert pipe(**FAST, **JOBS[0], callback_on_step_end=callback).images.shape == (1, 32, 32, 3)


def test_others_wait_while_a_block_of_merged_networks_is_open(pipe):
    network = read_network(LORAS["ink"])
    alone, inside = pipe(**FAST, **JOBS[0]).images, []
    with ThreadPoolExecutor(1) as pool, merged_networks(pipe, [(network, 1.0, 1.0)]):
        waiting = pool.submit(lambda: pipe(**FAST, **JOBS[0]).images)
        inside.append(pipe(**FAST, **JOBS[0]).images)
        assert not waiting.done()
    assert not np.array_equal(inside[0], alone) and np.array_equal(waiting.result(30), alone)


@pytest.mark.parametrize("sampler", [None, "Euler"])
def test_who_changes_the_checkpoint_of_a_second_pass_waits_for_the_call(pipe, tiny_sd, sampler):
    other = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    other.unet.conv_in.weight.data *= 1.1
    given = {"prompt": "a circle", "seed": 1, "hires_scale": 2, "hires_model": other, "sampler": sampler, **FAST}
    alone = pipe(**given).images
    tiled = {"prompt": "a star", "sampler": "Euler", "seed": 3, "tiling": True, **FAST}
    waited, results = [], []

    def callback(drawing: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if not waited and tensors["latents"].shape[-1] == 8:
            thread = threading.Thread(target=lambda: results.append(other(**tiled).images))
            thread.start()
            while thread.is_alive() and not model_gate().waiting:
                thread.join(0.01)
            waited.append((len(model_gate().waiting), thread))
        return {}

    assert np.array_equal(pipe(**given, callback_on_step_end=callback).images, alone)
    assert waited[0][0] == 1
    waited[0][1].join()
    assert np.array_equal(results[0], other(**tiled).images)


def test_networks_that_a_call_left_on_are_taken_out_by_one_call_alone(pipe, monkeypatch):
    restoring, most = [], []
    restore = NetworkMerger.restore

    def slow_restore(merger: NetworkMerger) -> None:
        if merger.active:
            restoring.append(merger)
            time.sleep(0.2)
            most.append(len(restoring))
            restore(merger)
            restoring.remove(merger)

    monkeypatch.setattr(NetworkMerger, "restore", slow_restore)
    other, plain, waiting = WebUITxt2ImgPipeline.from_pipe(pipe), {**FAST, **JOBS[0]}, []
    other.set_progress_bar_config(disable=True)
    alone = pipe(**plain).images
    pipe.keep_networks = True
    with ThreadPoolExecutor(2) as pool:

        def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
            if not waiting:
                waiting.extend(pool.submit(lambda: other(**plain).images) for _ in range(2))
                while len(model_gate().waiting) < 2:
                    time.sleep(0.01)
            return {}

        try:
            pipe(**FAST, **JOBS[1], callback_on_step_end=callback)
            assert all(np.array_equal(found.result(30), alone) for found in waiting)
        finally:
            pipe.keep_networks = False
            pipe.unload_networks()
    assert most == [1]


def test_who_takes_networks_out_waits_for_all_models_that_they_are_on(pipe, tiny_sd):
    components = {**pipe.components, "unet": UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")}
    other = WebUITxt2ImgPipeline(**components, requires_safety_checker=False)  # shares the text encoder alone
    other.set_progress_bar_config(disable=True)
    alone = other(**FAST, **JOBS[0]).images
    pipe.keep_networks = True
    try:
        pipe(**FAST, **JOBS[1])
        with ThreadPoolExecutor(1) as pool:
            with models_in_use([pipe.unet], alone=False):
                drawn = pool.submit(lambda: other(**FAST, **JOBS[0]).images)
                while not drawn.done() and not model_gate().waiting:
                    time.sleep(0.01)
                assert not drawn.done() and kept_mergers(pipe)
            assert np.array_equal(drawn.result(30), alone) and not kept_mergers(pipe)
    finally:
        pipe.keep_networks = False
        pipe.unload_networks()


def test_a_vae_that_is_in_float32_for_a_moment_is_still_a_float16_one(tiny_sdxl):
    vae = AutoencoderKL.from_pretrained(tiny_sdxl, subfolder="vae").half()
    vae.register_to_config(force_upcast=True)
    with ThreadPoolExecutor(1) as pool, model_gate().part_lock(vae):
        vae.float()
        asked = pool.submit(stock_changes_models, SimpleNamespace(vae=vae), {})
        time.sleep(0.1)
        vae.half()
    assert asked.result(30)


def test_a_model_whose_hooks_cast_its_weights_is_used_by_one_call_at_a_time(tiny_sd):
    pipe = WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    running = []

    def callback(drawing: Any, step: int, timestep: Any, tensors: dict) -> dict:
        running.append(len(model_gate().running))
        time.sleep(0.05)
        return {}

    def draw(job: dict) -> np.ndarray:
        return pipe(**{**FAST, **job}, callback_on_step_end=callback).images

    jobs = [{**JOBS[0], "num_inference_steps": 1}, {**JOBS[4], "num_inference_steps": 1}]
    assert all(map(np.array_equal, [draw(job) for job in jobs], together(draw, jobs)))
    assert {*running} == {1}


def test_what_is_saved_while_networks_are_on_are_the_models_own_weights(pipe, tmp_path):
    before, saved = {key: value.clone() for key, value in pipe.unet.state_dict().items()}, []
    with ThreadPoolExecutor(1) as pool:

        def callback(running: Any, step: int, timestep: Any, tensors: dict) -> dict:
            if not saved:
                saved.append(pool.submit(pipe.save_pretrained, tmp_path))
                while not saved[0].done() and not model_gate().waiting:
                    time.sleep(0.01)
            return {}

        pipe(**{**FAST, "num_inference_steps": 1}, **JOBS[1], callback_on_step_end=callback)
        saved[0].result(60)
    after = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_multi_lora_pipelines_wait_too(tiny_sd: Path):
    pipe = pipeline_with_copies(MultiLoraPipeline, tiny_sd.name)
    for name, path in LORAS.items():
        pipe.add_lora(path, name)
    mixes: list[Any] = [{"ink": 1.0}, None, {"glow": 0.7}, {"ink": 0.4, "glow": 0.4}]
    before = weights(pipe)

    def draw(mix: Any) -> np.ndarray:
        arguments = {"prompt": "a star", "loras": mix, **FAST}
        return pipe(**arguments, generator=torch.Generator().manual_seed(1)).images

    alone = [draw(mix) for mix in mixes]
    assert all(map(np.array_equal, alone * 2, together(draw, mixes * 2)))
    after = weights(pipe)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_texts_are_cut_as_each_caller_asks(pipe):
    """diffusers sets in the tokenizer how it cuts and pads, and then lets it cut."""
    if getattr(pipe.tokenizer, "backend_tokenizer", None) is None:
        pytest.skip("this tokenizer is told with each text how to cut it")
    reached, encoded = threading.Event(), threading.Event()

    class Pausing(type(pipe.tokenizer)):
        """The pipeline's tokenizer; between the two steps of the first caller comes the second one, if it can."""

        def set_truncation_and_padding(self, padding_strategy: str, **others: Any) -> None:
            super().set_truncation_and_padding(padding_strategy=padding_strategy, **others)
            if padding_strategy == "max_length" and not reached.is_set():
                reached.set()
                encoded.wait(0.5)

    def second() -> torch.Tensor:
        assert reached.wait(30)
        try:
            return pipe.encode_prompt("a blue square", "cpu", 1, False)[0]
        finally:
            encoded.set()

    expected = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a red circle", "a blue square")]
    usual = type(pipe.tokenizer)
    pipe.tokenizer.__class__ = Pausing
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(second)
            found = [pipe.encode_prompt("a red circle", "cpu", 1, False)[0], other.result(30)]
    finally:
        pipe.tokenizer.__class__ = usual
    assert all(map(torch.equal, found, expected))


def test_a_textual_inversion_is_in_its_callers_texts_alone(pipe):
    vectors = {"glyph": {"clip_l": torch.ones(2, pipe.text_encoder.config.hidden_size)}}
    inside, encoded = threading.Event(), threading.Event()

    def encoder() -> PromptEncoder:
        return PromptEncoder.from_pipe(pipe, embeddings=vectors)

    def second() -> torch.Tensor:
        assert inside.wait(30)
        try:
            return encoder()("a blue square, a star")["prompt_embeds"]
        finally:
            encoded.set()

    def pause(module: Any, args: tuple) -> None:
        if not inside.is_set():
            inside.set()
            encoded.wait(30)

    expected = [encoder()(text)["prompt_embeds"] for text in ("a glyph", "a blue square, a star")]
    handle = pipe.text_encoder.register_forward_pre_hook(pause)
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(second)
            found = [encoder()("a glyph")["prompt_embeds"], other.result(30)]
    finally:
        handle.remove()
    assert all(map(torch.equal, found, expected))


def test_a_row_that_another_caller_pushes_out_of_the_cache_is_encoded_anew(pipe):
    class Pushed(OrderedDict):
        """Rows of which each is gone as soon as somebody has looked whether it is there."""

        def __contains__(self, key: object) -> bool:
            return (super().__contains__(key), self.clear())[0]

    encoder = PromptEncoder.from_pipe(pipe, cache=RowCache(rows=Pushed()))
    first, again = (encoder("a red circle")["prompt_embeds"] for _ in range(2))
    assert torch.equal(first, again)


def test_images_are_decoded_in_the_dtype_that_the_vae_has_by_then(tiny_sd):
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae").half()
    widened, seen = threading.Event(), []

    def overflows(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float16:
            return x * torch.inf
        widened.set()
        time.sleep(0.2)  # the second one waits for its turn by now
        return x

    def second(x: torch.Tensor) -> torch.Tensor:
        seen.append((x.dtype, vae.dtype))
        return x

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(finite_or_float32, vae, overflows, [torch.ones(1)], "image")
        assert widened.wait(30)
        finite_or_float32(vae, second, [torch.ones(1)], "image")
        first.result(30)
    assert vae.dtype == torch.float16 and all(given == own for given, own in seen) and seen


@pytest.mark.slow
def test_three_hundred_random_calls_are_those_of_one_caller(pipe):
    chance = random.Random(0)
    jobs = [{**chance.choice(JOBS), "seed": chance.randrange(3)} for _ in range(300)]

    def draw(job: dict) -> np.ndarray:
        return pipe(**{**FAST, "num_inference_steps": 2}, **job).images

    known: dict[str, np.ndarray] = {}
    for job in jobs:
        if repr(job) not in known:
            known[repr(job)] = draw(job)
    before = weights(pipe)
    wrong = [
        job for job, now in zip(jobs, together(draw, jobs, threads=8)) if not np.array_equal(known[repr(job)], now)
    ]
    after = weights(pipe)
    assert not wrong and all(torch.equal(before[key], after[key]) for key in before)
