"""Publishing and loading over HTTP, against a Hub on this machine: only HF_ENDPOINT differs from the real one.

What concerns huggingface_hub runs in processes of its own, because it reads HF_ENDPOINT once, when imported.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.bundle.build import PACK_ROOT, PIPELINES, bundle_module_name, pack_version

from hub.community import write_community
from hub.model_files import ModelFilesError, model_files
from hub_upload import UploadError, available_pipelines, build_repository


ROOT = Path(__file__).parent.parent
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
CARDS = ROOT / "hub" / "cards"
NAMES = [n for n, e in PIPELINES.items() if (PACK_ROOT / e.file).is_file() and (CARDS / f"{n}.md").is_file()]
DRAWING = [name for name in NAMES if name != "face-restore"]
ROUTES = ["local_file", "local_folder", "code_repository", "code_at_a_tag", "full_repository", "full_at_a_tag"]
ROUTES += ["from_pipe", "community", "package"]


class Session:
    """A Hub, and a user's machine: a folder for huggingface_hub's cache and token."""

    def __init__(self, hub, home: Path, python: str):
        self.hub, self.home, self.python = hub, home, python

    def environment(self, **env: str) -> dict[str, str]:
        known = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.home),
            "WEBUI_DIFFUSERS_CACHE": str(self.home / "pack"),
            "HF_TOKEN": self.hub.token,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        }
        return {name: value for name, value in {**os.environ, **known, **env}.items() if value}

    def run(self, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        """A Python of its own."""
        options = {"env": self.environment(**env), "cwd": self.home, "timeout": 300}
        done = subprocess.run([self.python, *arguments], capture_output=True, text=True, **options)
        if check:
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def upload(self, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        return self.run(str(ROOT / "hub_upload.py"), *arguments, check=check, **env)

    def sums(self, name: str, routes: list[str], **more: str) -> dict[str, str]:
        """Route -> sum of what it draws, all in one fresh process."""
        offline = {"HF_HUB_OFFLINE": more.pop("offline")} if "offline" in more else {}
        job = {
            "model": SDXL if name.endswith("-xl") else SD15,
            "folder": str(self.home / "built" / name),
            "module": bundle_module_name(name),
            "class_name": PIPELINES[name].class_name,
            "code_repo": f"your-org/{name}",
            "full_repo": f"tester/{name}",
            "tag": "v1",
            "routes": routes,
            **more,
        }
        done = self.run(str(ROOT / "tests" / "hub_routes.py"), json.dumps(job), **offline)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def session(
    small_sd: Path, small_sdxl: Path, prepared_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    with LocalHub() as hub:
        for name, folder in ((SD15, small_sd), (SDXL, small_sdxl)):
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            hub.put(name, files)
        yield Session(hub, tmp_path_factory.mktemp("home"), prepared_python)


@pytest.fixture(scope="module")
def published(session: Session, small_sd: Path, small_sdxl: Path) -> Session:
    """Every pipeline as a code repository of your-org, and as a full one of tester. `said`: what it printed."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from hub_upload import build_repository, main, publish\n"
        "names, sd, xl = json.loads(sys.argv[1])\n"
        "command = ['--namespace', 'your-org', '--only', names[0], '--revision', 'v1', '--out', 'built']\n"
        "assert main(command) == 0\n"
        "for name in names:\n"
        "    folder = Path('built', name)\n"
        "    if name != names[0]:\n"
        "        build_repository(name, folder, f'your-org/{name}')\n"
        "    once = publish(folder, f'your-org/{name}', token=None, private=False, revision='v1')\n"
        "    again = publish(folder, f'your-org/{name}', token=None, private=False, revision='v1')\n"
        "    assert once == again, (once, again)\n"
        "    if name != 'face-restore':\n"
        "        model = Path(xl if name.endswith('-xl') else sd)\n"
        "        full = build_repository(name, Path('full', name), f'tester/{name}', model=model)\n"
        "        publish(full, f'tester/{name}', token=None, private=True, revision='v1')\n"
    )
    session.said = session.run("-c", code, json.dumps([NAMES, str(small_sd), str(small_sdxl)]))
    files = write_community(session.home / "community", "your-org")
    mirrored = {f"main/{file.name}": file.read_bytes() for file in files}
    session.hub.put("diffusers/community-pipelines-mirror", mirrored, kind="datasets")
    return session


# --- publishing


def test_one_command_tries_then_publishes_and_prints_what_to_paste(published: Session):
    repo = published.hub.repo("your-org/webui-txt2img")
    assert set(repo.tags) == {"v1"} and repo.tags["v1"] == repo.branches["main"]
    assert "webui-txt2img: 64x64" in published.said.stderr + published.said.stdout
    assert 'custom_pipeline="your-org/webui-txt2img", trust_remote_code=True' in published.said.stdout
    assert "Build and try: 100%" in published.said.stderr


@pytest.mark.slow
def test_a_dry_run_builds_and_tries_every_pipeline_and_sends_nothing(session: Session, tmp_path: Path):
    before = len(session.hub.log)
    done = session.upload("--namespace", "tester", "--dry-run", "--out", str(tmp_path), HF_TOKEN="")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(available_pipelines())
    assert all(f"{name}: 64x64" in done.stdout + done.stderr for name in available_pipelines())
    assert len(session.hub.log) == before


def test_a_repository_has_what_the_hub_shows_and_what_the_code_reads(published: Session):
    files = published.hub.repo("your-org/webui-txt2img").files
    assert set(files) >= {"pipeline.py", "webui_txt2img.py", "README.md", "requirements.txt", "LICENSE"}
    assert files["pipeline.py"] == files["webui_txt2img.py"]
    assert b'BUNDLE_HOME = "your-org/webui-txt2img"' in files["pipeline.py"]
    assert b'custom_pipeline="your-org/webui-txt2img"' in files["README.md"]
    assert "diffusers>=0.40" in files["requirements.txt"].decode().splitlines()
    full = published.hub.repo("tester/webui-txt2img")
    assert full.private and not published.hub.repo("your-org/webui-txt2img").private
    index = json.loads(full.files["model_index.json"])
    assert index["_class_name"] == ["webui_txt2img", "WebUITxt2ImgPipeline"]


def test_weights_go_by_lfs_and_text_goes_into_the_commit(published: Session):
    repo = published.hub.repo("your-org/webui-txt2img")
    is_lfs = {path: lfs for path, (_, lfs) in repo.commits[repo.branches["main"]].items()}
    assert is_lfs["weights/realesr-animevideov3.fp16.safetensors"] and not is_lfs["pipeline.py"]
    assert any(line.startswith("PUT /_lfs/") for line in published.hub.log)


def test_the_same_content_again_is_no_new_commit(published: Session):
    for name in NAMES:
        assert len(published.hub.repo(f"your-org/{name}").commits) == 2  # the initial one, and ours


def test_refusals_say_what_to_do(session: Session):
    """In one process, because they end before anything is built."""
    session.hub.put("your-org/taken", {"model.safetensors": b"somebody's"})
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hub_upload import UploadError, build_repository, main, publish\n"
        "def ask(*more):\n"
        "    assert main(['--only', 'webui-txt2img', *more]) == 1\n"
        "    print('---', file=sys.stderr, flush=True)\n"
        "ask('--namespace', 'your-org')\n"
        "ask('--namespace', 'your-org', '--token', 'hf_guest')\n"
        "ask('--namespace', 'your-org', '--token', 'hf_old')\n"
        "folder = build_repository('webui-txt2img', Path('refused'), 'your-org/taken')\n"
        "for call in (\n"
        "    lambda: publish(folder, 'your-org/taken', token='hf_tester', private=False, revision=None),\n"
        "    lambda: build_repository('multi-lora', Path('no'), 'a/b', model=Path('refused')),\n"
        "):\n"
        "    try:\n"
        "        call()\n"
        "    except UploadError as error:\n"
        "        print(error, '---', file=sys.stderr)\n"
    )
    said = session.run("-c", code, HF_TOKEN="").stderr.split("---")
    assert "There is no token" in said[0] and "hf auth login" in said[0]
    assert "guest's, who may not write to `your-org`" in said[1]
    assert "does not accept the token" in said[2]
    assert "The name is taken: your-org/taken" in said[3]
    assert "no model_index.json" in said[4]
    assert list(session.hub.repo("your-org/taken").files) == ["model.safetensors"]


def test_without_a_network_it_says_so(session: Session):
    done = session.run("-c", NO_NETWORK, "--namespace", "tester", check=False)
    assert done.returncode == 1
    assert "127.0.0.1:9 cannot be reached" in done.stderr and "Traceback" not in done.stderr


# --- a Hub that fails, and folders with more in them than a model


@pytest.fixture
def cluttered(small_sd: Path, tmp_path: Path) -> Path:
    """A model's folder as people have them."""
    model = tmp_path / "my-model"
    shutil.copytree(small_sd, model)
    own = model / "text_encoder" / "model.safetensors"  # of which the Hub knows nothing yet
    save_file(load_file(own), own, metadata={"format": "pt", "title": "my model"})
    for name in (
        ".env",
        "notes.md",
        "id_rsa",
        "unet/optimizer.bin",
        "unet/.env",
        "vae/training_state.pt",
        "logs/run.txt",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("hf_abcdefghijklmnop")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("my private notes")
    (tmp_path / "elsewhere.txt").write_text("my private notes")
    (model / "unet" / "merges.md").symlink_to(tmp_path / "elsewhere.txt")
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/private"}))
    return model


@pytest.fixture
def unpublished(session: Session) -> Iterator[None]:
    """Without the repository of this name that other tests publish; it comes back afterwards."""
    key = ("models", "tester/webui-txt2img")
    kept = session.hub.repos.pop(key, None)
    yield
    session.hub.repos.pop(key, None)
    if kept is not None:
        session.hub.repos[key] = kept


def test_one_command_with_weights_survives_a_failing_hub_and_sends_nothing_but_the_model(
    session: Session, cluttered: Path, unpublished: None
):
    hub = session.hub
    for method, part, fault in (
        ("POST", "/api/repos/create", 500),
        ("POST", "/preupload/", 429),
        ("PUT", "/_lfs/", "drop"),
        ("PUT", "/_lfs/", "other content"),
        ("POST", "/commit/", "answer lost"),
        ("POST", "/tag/", 503),
    ):
        hub.break_down(method, part, fault)
    command = ["--namespace", "tester", "--only", "webui-txt2img", "--with-weights", str(cluttered), "--private"]
    done = session.run("-c", QUICK_UPLOAD, *command)
    repo = hub.repo("tester/webui-txt2img")
    assert all(times == 0 for *_, times in hub.faults), hub.faults
    assert list(repo.tags) == [f"v{pack_version()}"] and repo.private
    assert repo.tags == dict.fromkeys(repo.tags, repo.branches["main"]) and len(repo.commits) == 2
    model = {path.relative_to(cluttered).as_posix() for path in cluttered.rglob("*") if path.is_file()}
    sent = set(repo.files) & model
    assert {"unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer_config.json", "model_index.json"} <= sent
    for name in model - sent - {".git/config", "README.md"}:
        assert name in done.stdout, f"{name} was neither sent nor named"
    assert ".git/" in done.stdout and "logs/run.txt" in done.stdout
    assert not any(
        b"my private notes" in data or b"hf_abc" in data or b"/home/me" in data for data in repo.files.values()
    )
    assert "trying again" in done.stderr and session.hub.token not in done.stdout + done.stderr


def test_a_hub_that_goes_on_failing_is_left_without_a_commit_or_a_tag(session: Session):
    for repo, part, fault in (
        ("five-hundred", "/commit/", 500),
        ("refused", "/commit/", 403),
        ("dropped", ".git/info/lfs", "drop"),
        ("corrupted", "/commit/", "other content"),
    ):
        session.hub.break_down("POST", f"tester/{repo}{part}", fault, times=1000)
    said = session.run("-c", FAILING_HUB).stderr
    for repo in ("tester/five-hundred", "tester/refused", "tester/dropped", "tester/corrupted"):
        assert not session.hub.repo(repo).tags, said
        assert repo == "tester/corrupted" or len(session.hub.repo(repo).commits) == 1, repo
    assert session.hub.token not in said and "was published" not in said
    assert "does not allow this" in said and "cannot be reached" in said and "answered with an error" in said
    assert "something else than was sent as" in said and "was given no tag" in said


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda model: (model / "model_index.json").unlink(), "no model_index.json"),
        (lambda model: (model / "model_index.json").write_text("{"), "is no JSON"),
        (lambda model: link_out(model / "vae" / "diffusion_pytorch_model.safetensors"), "is a link to"),
        (lambda model: rename(model, "vae", "diffusion_pytorch_model.fp16.safetensors"), "as a variant only"),
        (lambda model: index_entry(model, "vae", ["my_code", "MyVAE"]), "does not come from this pack"),
    ],
)
def test_a_model_that_cannot_be_published_whole_is_refused(change, said: str, cluttered: Path, tmp_path: Path):
    change(cluttered)
    with pytest.raises(UploadError, match=said):
        build_repository("webui-txt2img", tmp_path / "out", "a/b", model=cluttered)


def test_weights_in_parts_go_along_as_their_list_says(cluttered: Path):
    unet = cluttered / "unet"
    weights = "diffusion_pytorch_model"
    shards = [f"{weights}-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    (unet / f"{weights}.safetensors").rename(unet / shards[0])
    (unet / shards[1]).write_bytes(b"")
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (unet / f"{weights}.safetensors.index.json").write_text(json.dumps(index))
    (unet / f"{weights}-00003-of-00003.safetensors").write_bytes(b"of another training run")
    found = model_files(cluttered)
    assert [name for name in found.files if name.startswith("unet/")] == [
        "unet/config.json",
        f"unet/{weights}.safetensors.index.json",
        f"unet/{shards[0]}",
        f"unet/{shards[1]}",
    ]
    index["weight_map"]["b"] = "../../elsewhere.txt"
    (unet / f"{weights}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFilesError, match="elsewhere"):
        model_files(cluttered)


def test_the_hubs_own_cache_may_be_linked_into(small_sd: Path, tmp_path: Path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "main", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(small_sd, snapshot)
    blobs.mkdir()
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(blobs / "5f")
    weights.symlink_to(blobs / "5f")
    assert "vae/diffusion_pytorch_model.safetensors" in model_files(snapshot).files


def link_out(path: Path) -> None:
    path.rename(path.parent.parent.parent / "outside")
    path.symlink_to(path.parent.parent.parent / "outside")


def rename(model: Path, part: str, name: str) -> None:
    (model / part / "diffusion_pytorch_model.safetensors").rename(model / part / name)


def index_entry(model: Path, part: str, entry: list) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, part: entry}))


# --- loading


@pytest.fixture(scope="module")
def loaded(published: Session) -> dict:
    """What one process saw that loaded in every way: a process costs seconds."""
    published.hub.put("other/pack", {"pipeline.py": OTHER_PACK.encode()})
    script = published.home / "many.py"
    script.write_text(MANY_IN_ONE_PROCESS, encoding="utf-8")
    return json.loads(published.run(str(script), SD15, json.dumps(ROUTES)).stdout.splitlines()[-1])


def test_every_route_draws_what_the_package_draws_all_in_one_process(loaded: dict):
    assert set(loaded["routes"]) == set(ROUTES)
    assert len(set(loaded["routes"].values())) == 1, loaded["routes"]


def test_another_pack_with_a_file_called_pipeline_runs_beside_ours(loaded: dict):
    assert loaded["other"] == ["OtherPipeline", True]
    assert set(loaded["beside"]) == set(loaded["routes"].values())


def test_an_updated_repository_is_loaded_anew_and_what_was_loaded_stays(loaded: dict):
    assert loaded["moved"] == ["WebUITxt2ImgPipeline", "WebUIMovedPipeline"]


def test_data_files_come_from_the_repository_the_code_came_from(loaded: dict):
    assert "models--your-org--webui-txt2img" in loaded["data"][0] and loaded["data"][1] == 4
    assert "pip install webui-diffusers" in loaded["data"][2]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_each_route_in_a_fresh_process(published: Session, name: str):
    expected = published.sums(name, ["package"])["package"]
    for route in ROUTES:
        assert published.sums(name, [route]) == {route: expected}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_a_snapshot_works_offline(published: Session, name: str):
    code = f"from huggingface_hub import snapshot_download; print(snapshot_download('tester/{name}'))"
    folder = published.run("-c", code).stdout.splitlines()[-1]
    sums = published.sums(name, ["snapshot"], snapshot=folder, offline="1")
    assert sums["snapshot"] == published.sums(name, ["package"])["package"]


@pytest.mark.slow
def test_all_pipelines_in_one_process(published: Session):
    """Loaded one after the other, from folders that all call their file pipeline.py, then drawn with."""
    code = (
        "import json, sys; sys.modules['webui_diffusers'] = None\n"
        "from hub_routes import load, pixels\n"
        f"names = {[n for n in DRAWING if not n.endswith('-xl')]!r}\n"
        f"pipes = [load({SD15!r}, custom_pipeline=f'built/{{name}}') for name in names]\n"
        "print(json.dumps([pixels(pipe) for pipe in pipes]))\n"
    )
    drawn = json.loads(published.run("-c", code).stdout.splitlines()[-1])
    names = [name for name in DRAWING if not name.endswith("-xl")]
    assert drawn == [published.sums(name, ["package"])["package"] for name in names]


# --- an endpoint


# What the inference toolkit does: the file is run from its folder, its class made with the folder, called with JSON.
AS_THE_TOOLKIT = """
import importlib.util, json, sys
sys.modules["webui_diffusers"] = None
folder, requests = sys.argv[1], json.loads(sys.argv[2])
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = []
for request in requests:
    try:
        answers.append(handler(request))
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""

OWN_TEXT = "a (red:1.3) circle\nSteps: 2, Sampler: Euler a, CFG scale: 6, Seed: 5, Size: 64x64, Model: other_model"


def test_an_endpoint_takes_texts_and_arguments_and_opens_nothing(published: Session, small_sd: Path):
    folder = published.home / "endpoint"
    build_repository("webui-txt2img", folder, "a/b", model=small_sd, endpoint=True)
    small = {"num_inference_steps": 2, "width": 64, "height": 64}
    requests = [
        {"inputs": OWN_TEXT},
        {"inputs": OWN_TEXT, "parameters": {"seed": 6}},
        {"inputs": "a circle", "parameters": {**small, "seed": 1, "num_images_per_prompt": 2}},
        {"inputs": "a circle", "parameters": {**small, "lora_backend": "webui"}},
        {"inputs": "a circle", "parameters": {**small, "num_inference_steps": "20"}},
        {"inputs": "a circle", "parameters": {**small, "num_images_per_prompt": 4000}},
        {"inputs": "a circle", "parameters": {**small, "hires_scale": 2, "hires_upscaler": str(folder / "LICENSE")}},
        {"inputs": ["a circle"]},
    ]
    done = published.run("-c", AS_THE_TOOLKIT, str(folder), json.dumps(requests), PYTHONPATH="", HF_HUB_OFFLINE="1")
    text, other, two, unknown, no_number, many, path, no_text = json.loads(done.stdout.splitlines()[-1])

    pipe = WebUITxt2ImgPipeline.from_pretrained(small_sd, dtype=torch.float32)
    same = {"num_inference_steps": 2, "sampler": "Euler a", "guidance_scale": 6, "width": 64, "height": 64}
    expected = pipe("a (red:1.3) circle", seed=5, **same).images[0]
    drawn = Image.open(io.BytesIO(base64.b64decode(text["images"][0]["image"])))
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    assert drawn.text["parameters"] == text["images"][0]["parameters"] and "Seed: 5" in drawn.text["parameters"]
    assert any("other_model" in note for note in text["notes"])
    assert "Seed: 6" in other["images"][0]["parameters"] and other["images"] != text["images"]
    assert len(two["images"]) == 2 and "Seed: 2," in two["images"][1]["parameters"]
    assert "'lora_backend'" in unknown and "can set" in unknown
    assert no_number == "`num_inference_steps` is '20': give a number."
    assert "4000 pictures" in many
    assert "LICENSE" in path
    assert "`inputs` is list" in no_text


def test_only_what_can_be_served_gets_a_handler(small_sd: Path, tmp_path: Path):
    with pytest.raises(UploadError, match="webui-txt2img or webui-img2img with weights, not multi-lora"):
        build_repository("multi-lora", tmp_path / "a", "a/b", model=small_sd, endpoint=True)
    with pytest.raises(UploadError, match="name a model with --with-weights"):
        build_repository("webui-txt2img", tmp_path / "a", "a/b", endpoint=True)


# --- diffusers' own community folder


def test_the_community_folder_has_a_file_and_a_section_for_every_pipeline(published: Session):
    folder = published.home / "community"
    added = (folder / "README_additions.md").read_text()
    for name in DRAWING:
        module = bundle_module_name(name)
        assert f"examples/community/{module}.py" in added and (folder / f"{module}.py").is_file()
        assert f'"{module}"' in added, f"the example of {name} does not name it"
    assert "$repo" not in added and added.count("### ") == len(DRAWING)


# --- the newcomer


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n != "webui-txt2img" else []) for n in NAMES]
)
def test_the_example_of_the_model_card_runs_as_it_stands(published: Session, name: str, tmp_path: Path, request):
    card = published.hub.repo(f"your-org/{name}").files["README.md"].decode()
    example = re.search(r"```python\n(.*?)```", card, re.S)[1]
    if name.startswith("multi-lora"):
        request.getfixturevalue("lora_on_the_hub")
    if name == "face-restore":
        request.getfixturevalue("gfpgan_in_the_cache")
    (published.home / "example.py").write_text(example)
    for old in published.home.glob("*.png"):
        old.unlink()
    published.run("example.py", PYTHONPATH="")
    assert list(published.home.glob("*.png"))


@pytest.fixture
def lora_on_the_hub(published: Session, small_sd: Path, small_sdxl: Path, tmp_path: Path) -> None:
    """Networks that fit the tiny models, where the examples look for one."""
    generator = torch.Generator().manual_seed(0)
    for repo in LORAS:
        file = (small_sdxl if "xl" in repo else small_sd) / "unet" / "diffusion_pytorch_model.safetensors"
        key, weight = next((k, w) for k, w in load_file(file).items() if k.endswith("attn1.to_q.weight"))
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        down, up = torch.randn(2, weight.shape[1], generator=generator), torch.randn(weight.shape[0], 2)
        network = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        save_file(network, tmp_path / "lora.safetensors")
        published.hub.put(repo, {"pytorch_lora_weights.safetensors": (tmp_path / "lora.safetensors").read_bytes()})


@pytest.fixture
def gfpgan_in_the_cache(published: Session) -> None:
    """GFPGAN with random weights where the downloaded one would be; the example's picture has no face."""
    code = (
        "import torch\n"
        "from spandrel.architectures.GFPGAN import GFPGAN\n"
        "from webui_diffusers.loaders.downloads import published_cache_folder\n"
        "torch.save(GFPGAN().state_dict(), published_cache_folder() / 'GFPGANv1.4.pth')\n"
    )
    published.run("-c", code)


# The command, with waits that a test can wait for.
QUICK_UPLOAD = """
import sys
from huggingface_hub.utils import _http
from hub import sending
from hub_upload import main
sending.RETRY_SECONDS = (0.1,) * 3
sleep = _http.time.sleep
_http.time.sleep = lambda seconds: sleep(min(seconds, 0.1))
sys.exit(main(sys.argv[1:]))
"""

NO_NETWORK = """
import os, sys
from huggingface_hub import constants
os.environ["HF_ENDPOINT"] = constants.ENDPOINT = "http://127.0.0.1:9"
from hub_upload import main
sys.exit(main(sys.argv[1:]))
"""

FAILING_HUB = """
import sys
from pathlib import Path
from huggingface_hub.utils import _http
from hub import sending
from hub_upload import explained, publish
sending.RETRY_SECONDS = (0.05,) * 3
sleep = _http.time.sleep
_http.time.sleep = lambda seconds: sleep(min(seconds, 0.05))
folder = Path("failing")
folder.mkdir()
(folder / "webui_x.py").write_text("x = 1")
for name in ("five-hundred", "refused", "dropped", "corrupted"):
    (folder / "weights.safetensors").write_bytes(name.encode())
    try:
        publish(folder, f"tester/{name}", token=None, private=False, revision=None)
        print(name, "was published", file=sys.stderr)
    except sending.UploadError as error:
        print(error, file=sys.stderr)
    except Exception as error:
        print(sending.without_token(explained(sending.hub_cause(error))), file=sys.stderr)
"""

LORAS = ("latent-consistency/lcm-lora-sdv1-5", "latent-consistency/lcm-lora-sdxl")
OTHER_PACK = """
from diffusers import StableDiffusionPipeline


def own_state(*_):
    raise RuntimeError("a helper of another pack")


class OtherPipeline(StableDiffusionPipeline):
    pass
"""

MANY_IN_ONE_PROCESS = """
import json, sys
from huggingface_hub import HfApi
from hub_routes import ROUTES, load, pixels

model, routes = sys.argv[1], json.loads(sys.argv[2])
job = {"model": model, "folder": "built/webui-txt2img", "module": "webui_txt2img", "tag": "v1"}
job |= {"code_repo": "your-org/webui-txt2img", "full_repo": "tester/webui-txt2img"}
job["class_name"] = "WebUITxt2ImgPipeline"
seen = {"routes": {"package": pixels(ROUTES["package"](job))}}
for name in [name for name in sys.modules if name.startswith("webui_diffusers")]:
    del sys.modules[name]
sys.modules["webui_diffusers"] = None  # from here on only what the Hub gives
seen["routes"] |= {name: pixels(ROUTES[name](job)) for name in routes if name != "package"}

other = load(model, custom_pipeline="other/pack")
ours = load(model, custom_pipeline=job["code_repo"])
text = open("built/webui-txt2img/pipeline.py", encoding="utf-8").read()
HfApi().create_repo("tester/moving")


def push(text):
    file = {"path_or_fileobj": text.encode(), "path_in_repo": "pipeline.py"}
    HfApi().upload_file(**file, repo_id="tester/moving")
    return load(model, custom_pipeline="tester/moving")


before = push(text)
after = push(text.replace("class WebUITxt2ImgPipeline(", "class WebUIMovedPipeline("))
again = load(model, custom_pipeline=job["code_repo"])
seen["moved"] = [type(before).__name__, type(after).__name__]
seen["beside"] = [pixels(ours), pixels(before), pixels(again)]
seen["other"] = [type(other).__name__, bool(pixels(other))]

bundle = sys.modules[type(ours).__module__]
seen["data"] = [str(bundle.package_file("weights/realesr-animevideov3.fp16.safetensors"))]
seen["data"].append(bundle.load_upscaler("R-ESRGAN AnimeVideo").scale)
try:
    bundle.package_file("weights/none")
except FileNotFoundError as error:
    seen["data"].append(str(error))
print(json.dumps(seen))
"""
