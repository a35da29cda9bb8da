"""Many machines, tried with two processes of one: a batch on Ray, and the server as Ray Serve replicas."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.infotext.read import parse_infotext


ray = pytest.importorskip("ray", reason="needs the extra [ray]")
from webui_diffusers.pipelines.serve.replicas import ReplicaOptions, ray_app  # noqa: E402


PROMPTS = ["a red circle", "a (blue:1.3) square", "[a ring:a cross:0.5]", "a green triangle AND black"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}


def test_options_of_replicas_are_read_from_texts_and_refused_by_name():
    found = ReplicaOptions.read({"model": "m.safetensors", "replicas": "2", "num_gpus": "0.5"})
    assert (found.model, found.replicas, found.num_gpus, found.max_queue) == ("m.safetensors", 2, 0.5, 32)
    with pytest.raises(ValueError, match="replica"):
        ReplicaOptions.read({"model": "m", "replica": "2"})
    with pytest.raises(ValueError, match="`replicas` is 'two': give a number"):
        ReplicaOptions.read({"model": "m", "replicas": "two"})
    for args in ({}, {"model": "m", "webui": "w"}):
        with pytest.raises(ValueError, match="one of them, not both"):
            ReplicaOptions.read(args)


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in folder.glob("*.png")}


def started(folder: Path) -> list[dict]:
    file = folder / ".jobs" / "started"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
def test_forty_jobs_of_two_actors_one_of_them_killed_are_those_of_one_process(tmp_path: Path, tiny_sd: Path):
    jobs = tmp_path / "jobs.jsonl"
    lines = [json.dumps({"prompt": PROMPTS[i % 4], "seed": i, "num_inference_steps": 3 + i % 3}) for i in range(40)]
    jobs.write_text("\n".join(lines))
    options = ["--model", str(tiny_sd), "--width", "64", "--height", "64", "--sampler", "DPM++ 2M SDE", "--json"]
    batch = [sys.executable, "-m", "webui_diffusers.pipelines.cli", "batch", str(jobs), *options, "--out"]
    out, alone = tmp_path / "two", tmp_path / "one"
    run = subprocess.Popen([*batch, str(out), "--ray", "--workers", "2"], env=QUIET, stdout=subprocess.PIPE, text=True)
    while run.poll() is None and not (
        len(started(out)) > 8 and len({entry["process"] for entry in started(out)}) == 2
    ):
        time.sleep(0.1)
    victim = started(out)[-1]["process"]
    os.kill(victim, signal.SIGKILL)
    said = run.communicate(timeout=900)[0]
    assert run.returncode == 0, said
    told = next(json.loads(line) for line in said.splitlines() if line.startswith('{"done"'))
    assert [job["line"] for job in told["done"]] == list(range(1, 41)) and told["failed"] == []
    times = Counter(entry["line"] for entry in started(out))
    again = {line for line, count in times.items() if count > 1}
    assert set(times) == set(range(1, 41)) and len(again) <= 1, "only the killed actor's job in hand is drawn again"
    assert all(entry["process"] != victim for entry in started(out)[-5:])
    subprocess.run([*batch, str(alone)], check=True, env=QUIET, stdout=subprocess.DEVNULL)
    assert len(drawn(out)) == 40 and drawn(out) == drawn(alone)
    before = len(started(out))
    subprocess.run([*batch, str(out), "--ray"], check=True, env=QUIET, stdout=subprocess.DEVNULL)
    assert len(started(out)) == before, "a batch that is done needs no cluster"


@pytest.fixture(scope="module")
def replicas(tiny_sd: Path):
    """The address of two replicas."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    os.environ |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_app({"model": str(tiny_sd), "replicas": "2", "num_cpus": "1"}), route_prefix="/")
        states = serve.status().applications["default"].deployments["webui-diffusers"].replica_states
        assert {str(getattr(state, "value", state)): count for state, count in states.items()} == {"RUNNING": 2}
        yield f"http://127.0.0.1:{port}/sdapi/v1"
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_two_replicas_answer_the_api_with_the_pictures_of_one_pipeline(replicas: str, tiny_sd: Path):
    import httpx

    request = {"steps": 3, "width": 64, "height": 64, "sampler_name": "Euler a", "prompt": PROMPTS[1]}

    def ask(seed: int) -> dict:
        return httpx.post(f"{replicas}/txt2img", json={**request, "seed": seed}, timeout=300).json()

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, [1, 2, 3, 4, 1, 2, 3, 4]))
    pipe = WebUITxt2ImgPipeline.from_pretrained(tiny_sd).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for seed, answer in zip([1, 2, 3, 4, 1, 2, 3, 4], answers):
        picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        assert parse_infotext(picture.text["parameters"])["Seed"] == str(seed)
        call = {"num_inference_steps": 3, "width": 64, "height": 64, "sampler": "Euler a", "guidance_scale": 7.0}
        expected = pipe(PROMPTS[1], seed=seed, **call).images[0]
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).max() <= 1
    refused = httpx.post(f"{replicas}/txt2img", json={"stepz": 3}, timeout=60)
    assert refused.status_code == 422 and "stepz" in refused.text
