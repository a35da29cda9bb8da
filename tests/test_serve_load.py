"""Many clients at once, full queues, clients that go away, and servers that end, gently or not."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recordings import GOLDEN


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from api_server import SMALL, Server, info_of, pixels_of  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.pipelines import WebUITxt2ImgPipeline  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


NETWORKS = ("kohya_lora", "alpha_ne_rank", "full_diff", "glora_old", "boft")
JOBS = 40
LONG = {**SMALL, "steps": 1000}


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    pipe.set_progress_bar_config(disable=True)
    for name in NETWORKS:
        pipe.add_lora(GOLDEN / "lora" / f"{name}.safetensors", name)
    return pipe


@pytest.fixture
def server(pipe: WebUITxt2ImgPipeline) -> Iterator[Server]:
    running = Server(app(pipe, max_queue=4))
    yield running
    running.stop()


def asked(number: int, names: list[str]) -> dict[str, Any]:
    """The request of a number: its own networks, strengths and seed. JOBS of them differ."""
    number %= JOBS
    one, other = names[number % len(names)], names[(number // len(names)) % len(names)]
    tags = f"<lora:{one}:{0.3 + number % 5 * 0.2:.1f}>" + (f" <lora:{other}:-0.4>" if number % 3 == 0 else "")
    return {**SMALL, "prompt": f"a red circle {tags}", "seed": number % 10}


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("clients, requests", [(4, 12), pytest.param(16, 200, marks=pytest.mark.slow)])
def test_every_client_of_many_gets_its_own_picture(server, pipe, clients, requests):
    """More clients than the queue holds, each with other networks: none wrong, none lost, nothing left behind."""
    names = [entry.name for entry in pipe.networks.entries]
    assert len(names) >= 2
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    refused, memory, drawn = [0], [], {}

    def draw_all(numbers: range) -> None:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            for number in numbers:
                answer = client.post("/sdapi/v1/txt2img", json=asked(number, names))
                while answer.status_code == 503:
                    assert int(answer.headers["Retry-After"]) > 0
                    refused[0] += 1
                    time.sleep(0.3)
                    answer = client.post("/sdapi/v1/txt2img", json=asked(number, names))
                memory.append(resident())
                drawn[number] = pixels_of(answer)[0]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(draw_all, [range(first, requests, clients) for first in range(clients)]))
    assert sorted(drawn) == list(range(requests))
    serial: dict[str, np.ndarray] = {}
    for number, one in drawn.items():
        call = asked(number, names)
        key = f"{call['prompt']} {call['seed']}"
        if key not in serial:
            own = {"width": 64, "height": 64, "num_inference_steps": 2, "sampler": "Euler", "guidance_scale": 7.0}
            picture = pipe([call["prompt"]], negative_prompt=[""], seed=[call["seed"]], **own).images[0]
            serial[key] = np.asarray(picture).astype(int)
        assert np.array_equal(one, serial[key]), f"request {number} got another picture"
    assert len({one.tobytes() for one in drawn.values()}) == len(serial) >= min(requests, JOBS) // 2
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())
    if requests > 100:
        growth = (np.mean(memory[-20:]) - np.mean(memory[requests // 4 : requests // 4 + 20])) / 2**20
        print(f"{requests} requests, {refused[0]} refusals, {growth:+.1f} MiB")
        assert growth < 32 and refused[0] > 0


def test_a_client_that_goes_away_leaves_its_place_in_the_queue(server):
    """Four wait and go away while a fifth draws: four others find room."""

    def hang_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/sdapi/v1/txt2img", json=LONG, timeout=1)

    gone = [threading.Thread(target=hang_up) for _ in range(5)]
    for thread in gone:
        thread.start()
    for thread in gone:
        thread.join()
    deadline = time.monotonic() + 30
    while server.app.state.worker.waiting or server.app.state.worker.progress.job:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    def draw(_: int) -> int:
        return httpx.post(f"{server.url}/sdapi/v1/txt2img", json=SMALL, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(draw, range(4)))
    assert codes == [200] * 4


def test_a_server_that_is_told_to_stop_ends_the_picture_in_hand(pipe):
    """The images in hand are drawn to their end; the request's next ones and what waits are not."""
    running = Server(app(pipe))
    answers: dict[str, Any] = {}

    def ask(name: str, **fields: Any) -> threading.Thread:
        def post() -> None:
            answers[name] = httpx.post(f"{running.url}/sdapi/v1/txt2img", json={**SMALL, **fields}, timeout=120)

        thread = threading.Thread(target=post)
        thread.start()
        return thread

    first = ask("drawing", steps=20, n_iter=3)
    while running.app.state.worker.progress.step == 0:
        time.sleep(0.01)
    second = ask("waiting")
    while not running.app.state.worker.waiting:
        time.sleep(0.01)
    running.app.state.worker.stop()
    assert httpx.get(f"{running.url}/sdapi/v1/progress").json()["state"]["stopping_generation"]
    late = httpx.post(f"{running.url}/sdapi/v1/txt2img", json=SMALL, timeout=60)
    first.join(60), second.join(60)
    running.stop()
    assert info_of(answers["drawing"])["all_seeds"] == [7]
    whole = pipe(
        ["a red circle"], negative_prompt=[""], seed=[7], width=64, height=64, num_inference_steps=20,
        sampler="Euler", guidance_scale=7.0,
    )  # fmt: skip
    assert np.array_equal(pixels_of(answers["drawing"])[0], np.asarray(whole.images[0]).astype(int))
    for answer in (answers["waiting"], late):
        assert answer.status_code == 503 and "going down" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0


class Command:
    """`webui-diffusers serve` as a process of its own."""

    def __init__(self, model: Path, out: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.arguments = [sys.executable, "-m", "webui_diffusers.pipelines.cli", "serve", "--model", str(model)]
        self.arguments += ["--port", str(self.port), "--out", str(out)]
        self.url = f"http://127.0.0.1:{self.port}/sdapi/v1"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, self.process.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            try:
                return httpx.get(f"{self.url}/progress", timeout=5).raise_for_status() and None
            except httpx.HTTPError:
                time.sleep(0.2)

    def draw(self, **fields: Any) -> Any:
        return httpx.post(f"{self.url}/txt2img", json={**SMALL, **fields}, timeout=120)

    def drawing(self) -> None:
        """Wait until something is drawn."""
        while httpx.get(f"{self.url}/progress?skip_current_image=true").json()["state"]["sampling_step"] == 0:
            time.sleep(0.02)


@pytest.mark.slow
def test_a_server_killed_while_drawing_starts_again_and_leaves_no_half_pictures(tiny_sd: Path, tmp_path: Path):
    command = Command(tiny_sd, tmp_path / "out")
    before = pixels_of(command.draw(save_images=True))[0]
    lost: list[Any] = []

    def ask() -> None:
        try:
            command.draw(steps=1000, save_images=True)
        except httpx.HTTPError as error:
            lost.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    command.drawing()
    command.process.kill()
    command.process.wait(30)
    asking.join(30)
    assert len(lost) == 1
    command.start()
    assert np.array_equal(pixels_of(command.draw(save_images=True))[0], before)
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 2
    for file in files:
        assert np.array_equal(np.asarray(Image.open(file)), before)

    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(command.draw(steps=60, n_iter=50)))
    asking.start()
    command.drawing()
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(60) in (0, -signal.SIGTERM)
    asking.join(30)
    assert 1 <= len(answers[0].json()["images"]) < 50
