"""`hub_upload.py --space`: a folder that is a Space, and runs alone."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


pytest.importorskip("gradio", reason="needs the extra [ui]")

import gradio
import httpx
from page_client import Visitor

from hub_upload import main


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    assert main(["--space", "--out", str(folder)]) == 0
    return folder


def test_the_head_of_the_readme_is_what_a_space_needs(space):
    head = (space / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values = dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE))
    assert values["sdk"] == "gradio" and values["sdk_version"] == gradio.__version__
    assert values["app_file"] == "app.py" and values["license"] == "apache-2.0" and values["title"]
    assert len(values["short_description"]) <= 60


def test_it_brings_the_pack_and_lists_what_that_needs(space):
    listed = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = {re.split(r"[^\w.-]", line)[0] for line in listed}
    assert {"diffusers", "torch", "fastapi", "uvicorn", "spandrel"} <= packages
    assert not {"gradio", "pytest", "webui-diffusers"} & packages
    assert (space / "webui_diffusers/pipelines/serve/page.py").is_file()
    assert (space / "webui_diffusers/loaders/weights/mtcnn.safetensors").is_file()
    assert not list(space.rglob("__pycache__")) and (space / "LICENSE").is_file()


def test_a_space_is_written_without_a_namespace_but_nothing_is_published_so(space, capsys):
    with pytest.raises(SystemExit):
        main(["--dry-run"])
    assert "--namespace" in capsys.readouterr().err


@pytest.mark.slow
def test_the_space_runs_alone_and_draws_with_the_demo_model(space, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import os, runpy, sys\nsys.path.insert(0, os.getcwd())\nimport webui_diffusers.pipelines.serve.page as page\n"
        "assert page.__file__.startswith(os.getcwd()), page.__file__\nrunpy.run_path('app.py', run_name='__main__')"
    )
    environment = {
        **os.environ,
        "WEBUI_DIFFUSERS_MODEL": str(ROOT / "demo" / "model"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    log = (tmp_path / "log").open("w+")
    running = subprocess.Popen([sys.executable, "-c", code], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while True:
            assert running.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        visitor = Visitor(url, "visitor")
        shown = visitor.drawn("a panda\nSteps: 4, Sampler: Euler a, CFG scale: 5, Seed: 7")
        assert shown["text"].startswith("a panda\nSteps: 4, Sampler: Euler a")
        assert visitor.file(shown["download"])[:4] == b"\x89PNG"
        assert visitor.http.get("/sdapi/v1/samplers").status_code == 404
    finally:
        running.terminate()
        running.wait(60)
