"""Blocks as one file on the Hub: loaded by diffusers alone, in a process that does not know the package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from diffusers.commands import custom_blocks
from local_hub import LocalHub
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.blocks.modular_api import TESTED_DIFFUSERS
from webui_diffusers.pipelines.bundle.build import BLOCKS

from hub_upload import UploadError, available_pipelines, build_repository, lines_to_paste


ROOT = Path(__file__).parent.parent
NAMES = {"webui-blocks-xl": "WebUIXLBlocks", "webui-blocks-sd": "WebUISDBlocks"}
CALL = {"seed": 3, "sampler": "DPM++ 2M", "num_inference_steps": 2, "output_type": "pt"}
COMMAND_KNOWS_SEQUENCES = "SequentialPipelineBlocks" in custom_blocks.EXPECTED_PARENT_CLASSES  # not in diffusers 0.40
PROMPT = "a (red:1.3) [circle:star:0.5] AND b :0.4"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build_repository("webui-blocks-xl", folder / "webui-blocks-xl", "your-org/webui-blocks-xl")
    return folder


def picture_sum(image: torch.Tensor) -> str:
    return sha256(image.contiguous().numpy().tobytes()).hexdigest()


CLIENT = """
import hashlib, json, os, sys
sys.modules["webui_diffusers"] = None
import torch
from diffusers import ModularPipeline, ModularPipelineBlocks
job = json.loads(sys.argv[1])
name = job["name"]
blocks = ModularPipelineBlocks.from_pretrained(f"your-org/{name}", trust_remote_code=True)
pipe = blocks.init_pipeline(job["model"])
pipe.load_components(dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
image = pipe(prompt=job["prompt"], **job["call"], output="images")
whole = ModularPipeline.from_pretrained(f"your-org/{name}", trust_remote_code=True)
seen = {
    "class": type(blocks).__name__,
    "sum": hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest(),
    "pipeline": [type(whole).__name__, type(whole.blocks).__name__, sorted(whole.component_names)],
    "components": sorted(pipe.component_names),
}
os.makedirs("packed")
os.chdir("packed")
with open("block.py", "w", encoding="utf-8") as file:
    file.write(open(os.path.join(job["built"], name, "block.py"), encoding="utf-8").read())
if job["packs"]:
    sys.argv[1:] = ["custom_blocks"]
    from diffusers.commands.diffusers_cli import main
    main()
seen["packed"] = {file: json.load(open(file)) for file in os.listdir() if file.endswith(".json")}
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def client(
    built: Path, tiny_sd: Path, tiny_sdxl: Path, prepared_python: str, tmp_path_factory
) -> Callable[[str], dict]:
    """What a fresh process saw, by name, that has diffusers and a Hub."""

    @lru_cache
    def seen(name: str) -> dict:
        if not (built / name).is_dir():
            build_repository(name, built / name, f"your-org/{name}")
        home, model = tmp_path_factory.mktemp("home"), tiny_sdxl if name.endswith("-xl") else tiny_sd
        job = {"name": name, "model": str(model), "call": CALL, "prompt": PROMPT, "built": str(built)}
        job["packs"] = COMMAND_KNOWS_SEQUENCES
        files = {p.relative_to(built / name).as_posix(): p for p in (built / name).rglob("*") if p.is_file()}
        with LocalHub() as hub:
            hub.put(f"your-org/{name}", {path: file.read_bytes() for path, file in files.items()})
            env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "PYTHONPATH": ""}
            command = [prepared_python, "-c", CLIENT, json.dumps(job)]
            done = subprocess.run(command, env={**os.environ, **env}, cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return seen


SETS = [pytest.param(name, marks=[] if name == "webui-blocks-xl" else [pytest.mark.slow]) for name in NAMES]


@pytest.mark.parametrize("name", SETS)
def test_a_stock_client_draws_what_the_pipeline_draws(client, tiny_sd: Path, tiny_sdxl: Path, name: str):
    pipe = WebUITxt2ImgPipeline.from_pretrained(tiny_sdxl if name.endswith("-xl") else tiny_sd, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert client(name)["class"] == NAMES[name]
    assert client(name)["sum"] == picture_sum(pipe(PROMPT, guidance_scale=7.5, **CALL).images)


@pytest.mark.parametrize("name", SETS)
def test_a_modular_pipeline_comes_from_the_repository_too(client, name: str):
    kind = "StableDiffusionXLModularPipeline" if name.endswith("-xl") else "ModularPipeline"
    assert client(name)["pipeline"] == [kind, NAMES[name], client(name)["components"]]


@pytest.mark.skipif(not COMMAND_KNOWS_SEQUENCES, reason="diffusers' command packs single blocks only in this version")
@pytest.mark.parametrize("name", SETS)
def test_diffusers_own_command_packs_the_whole_from_the_file_alone(client, built: Path, name: str):
    packed = client(name)["packed"]
    for file, content in packed.items():
        assert content == json.loads((built / name / file).read_text(encoding="utf-8")), file
    assert packed["modular_config.json"]["auto_map"] == {"ModularPipelineBlocks": f"block.{NAMES[name]}"}
    assert packed["modular_config.json"]["requirements"] == {"diffusers": TESTED_DIFFUSERS}
    assert "modular_model_index.json" in packed


def test_the_repository_has_what_the_hub_shows(built: Path):
    assert {*NAMES} == {*BLOCKS} <= {*available_pipelines()}
    folder = built / "webui-blocks-xl"
    assert {"block.py", "webui_blocks_xl.py", "README.md", "requirements.txt", "LICENSE"} <= {
        p.name for p in folder.iterdir()
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("your-org/webui-blocks-xl", trust_remote_code=True)' in card and "7.5" in card
    said = lines_to_paste("webui-blocks-xl", "your-org/webui-blocks-xl", with_weights=False)
    assert 'ModularPipelineBlocks.from_pretrained("your-org/webui-blocks-xl", trust_remote_code=True)' in said


@pytest.mark.slow
def test_weights_do_not_go_along(tiny_sdxl: Path, tmp_path: Path):
    with pytest.raises(UploadError, match="cannot go with webui-blocks-xl"):
        build_repository("webui-blocks-xl", tmp_path / "out", "a/b", model=tiny_sdxl)


@pytest.mark.slow
def test_one_command_tries_and_publishes_them(tmp_path: Path):
    with LocalHub() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path), "HF_TOKEN": hub.token}
        command = [str(ROOT / "hub_upload.py"), "--namespace", "your-org", "--only", "webui-blocks-xl"]
        done = subprocess.run([sys.executable, *command], env={**os.environ, **env}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {"block.py", "modular_config.json", "modular_model_index.json"} <= {
            *hub.repo("your-org/webui-blocks-xl").files
        }
    assert "webui-blocks-xl: 64x64" in done.stdout + done.stderr
