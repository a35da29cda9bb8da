"""The bundle: it is what the package is, it loads in every company, and what cannot be inlined is refused."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from recordings import GOLDEN
from tiny_models import pipeline_around
from webui_diffusers.pipelines import MultiLoraPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.bundle.build import PACK_ROOT, PIPELINES, bundle, bundle_module_name, pipeline_file
from webui_diffusers.pipelines.bundle.sources import BUNDLE_REQUIREMENTS, BundleError


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
NAMES = [name for name, entry in PIPELINES.items() if (PACK_ROOT / entry.file).is_file()]
CALL = {
    "prompt": "a (red:1.3) circle, [on a field:0.5]",
    "seed": 3,
    "sampler": "Euler a",
    "num_inference_steps": 2,
    "output_type": "np",
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory):
    """diffusers' folder of code, empty, for these tests alone."""
    folder = tmp_path_factory.mktemp("modules")
    before = dynamic_modules_utils.HF_MODULES_CACHE
    dynamic_modules_utils.HF_MODULES_CACHE = str(folder)
    yield folder
    dynamic_modules_utils.HF_MODULES_CACHE = before
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def packaged(tiny_sd: Path) -> np.ndarray:
    """What the imported class draws."""
    return _picture(pipeline_around(WebUITxt2ImgPipeline, tiny_sd.name))


def _load(model: Path, code: str | Path, **more) -> DiffusionPipeline:
    more = {"dtype": torch.float32, "trust_remote_code": True, **more}
    return DiffusionPipeline.from_pretrained(model, custom_pipeline=str(code), **more)


def _picture(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL).images[0]


def _mixed(pipe: DiffusionPipeline) -> np.ndarray:
    """What a pipeline draws that takes no sampler."""
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
    return pipe("a red circle", **call).images[0]


# --- the text


@cache
def made(name: str) -> str:
    """A pipeline's bundle."""
    return bundle(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_one_readable_file_with_its_origin_in_the_head(name: str):
    text = made(name)
    assert text == bundle(name)
    first = text.splitlines()[0]
    expected = rf"# {PIPELINES[name].class_name}: {name} [\w.]+, commit ([0-9a-f]+\+?|unknown), content [0-9a-f]{{12}}"
    assert re.fullmatch(expected, first)
    assert PIPELINES[name].file in text
    assert not re.search(r"^\s*(from|import) +(\.|webui_diffusers|pipelines|loaders)", text, re.M)
    compile(text, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_the_sources_define_is_missing_and_nothing_is_defined_twice(name: str):
    tree = ast.parse(made(name))
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(defined) == len(set(defined))
    file = ROOT / "unused.py"
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F811,F821,F822,F823",
            "--stdin-filename",
            str(file),
            "-",
        ],
        input=made(name),
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_finds_no_import_that_a_plain_install_lacks(name: str, tmp_path: Path, caplog):
    (tmp_path / "x.py").write_text(made(name), encoding="utf-8")
    assert dynamic_modules_utils.check_imports(tmp_path / "x.py") == []
    assert not caplog.records


def test_requirements_are_the_packages_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]}
    assert set(BUNDLE_REQUIREMENTS.values()) == asked - {
        "click",
        "filelock",
        "tokenizers",
        "tqdm",
    }  # the command line's


def test_the_commits_and_the_home_are_in_the_text():
    text = bundle("webui-txt2img", home="your-org/webui-txt2img")
    assert 'BUNDLE_HOME = "your-org/webui-txt2img"' in text
    assert text != made("webui-txt2img")


def test_pipeline_file_is_made_once_under_a_name_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path))
    path = pipeline_file("webui-txt2img")
    written = path.stat().st_mtime_ns
    assert path.name == "webui_txt2img.py" and path.is_relative_to(tmp_path)
    assert path.read_text(encoding="utf-8") == made("webui-txt2img")
    assert pipeline_file("webui-txt2img") == path and path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="no pipeline 'txt2img'.*webui-txt2img"):
        pipeline_file("txt2img")


def test_pipeline_file_works_where_the_cache_cannot_be_written(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "file"))
    assert pipeline_file("webui-txt2img").is_file()


# --- running it


def test_the_bundle_and_the_checkout_draw_what_the_package_draws(modules, tiny_sd: Path, packaged: np.ndarray):
    for code in (pipeline_file("webui-txt2img"), ROOT / "pipelines" / "txt2img.py"):
        assert np.array_equal(_picture(_load(tiny_sd, code)), packaged), code


def test_the_bundle_loads_through_from_pipe_with_the_components_it_is_given(modules, tiny_sd: Path, packaged):
    plain = pipeline_around(StableDiffusionPipeline, tiny_sd.name)
    code = str(pipeline_file("webui-txt2img"))
    pipe = DiffusionPipeline.from_pipe(plain, custom_pipeline=code, trust_remote_code=True)
    assert pipe.unet is plain.unet and pipe.upscaler is None
    assert np.array_equal(_picture(pipe), packaged)


def test_networks_that_another_copy_of_the_code_left_on_a_model_are_taken_out(modules, tiny_sd: Path, packaged):
    keeper = WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.float32)
    keeper.keep_networks = True
    keeper(**CALL, loras={GOLDEN / "lora" / "kohya_lora.safetensors": 1.0})
    code = str(pipeline_file("webui-txt2img"))
    pipe = DiffusionPipeline.from_pipe(keeper, custom_pipeline=code, trust_remote_code=True)
    assert type(pipe) is not type(keeper) and pipe.unet is keeper.unet
    assert np.array_equal(_picture(pipe), packaged)


def test_files_of_one_name_run_apart_and_loading_again_changes_nothing(modules, tiny_sd: Path, tmp_path):
    """Local folders all hold `pipeline.py`, which diffusers runs in one module."""
    expected = _mixed(pipeline_around(MultiLoraPipeline, tiny_sd.name))
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, version in zip(folders, ("", "# another version\n", "")):
        folder.mkdir()
        text = made("multi-lora") if folder.name != "other" else OTHER_PACK
        (folder / "pipeline.py").write_text(_with_digest(text, version), encoding="utf-8")
    first = _load(tiny_sd, folders[0])
    second = _load(tiny_sd, folders[1])
    assert type(first) is not type(second)
    assert type(first).add_lora.__globals__ is not type(second).add_lora.__globals__
    other = _load(tiny_sd, folders[2])
    assert type(other).__name__ == "OtherPipeline"
    for pipe in (first, second, _load(tiny_sd, pipeline_file("multi-lora"))):
        assert np.array_equal(_mixed(pipe), expected)
    with pytest.raises(ImportError, match="on top of `OtherPipeline`.*webui_multi_lora.py"):
        _load(tiny_sd, folders[0])
    assert _mixed(other).shape == (64, 64, 3)


def test_code_that_is_not_that_of_its_file_does_not_run(modules, tiny_sd: Path, tmp_path):
    text = made("multi-lora")
    (tmp_path / "stale.py").write_text(text.replace("content ", "content 0", 1), encoding="utf-8")
    with pytest.raises(ImportError, match="not what is in .*stale.py.*Load it again"):
        _load(tiny_sd, tmp_path / "stale.py")


def _with_digest(text: str, addition: str) -> str:
    """The bundle as another version of it: other content, other sum."""
    digest = re.search(r"content ([0-9a-f]{12})", text)
    return text if digest is None or not addition else text.replace(digest[1], "0123456789ab") + addition


OTHER_PACK = """
from diffusers import StableDiffusionPipeline


def own_state(*_):
    raise RuntimeError("a helper of another pack")


class OtherPipeline(StableDiffusionPipeline):
    pass
"""


# --- refusals


REFUSED = {
    "a module of ours": ("from . import helper\n", "pipelines/entry.py:1: .*a package or does not exist"),
    "a package's list": ("from webui_diffusers.pipelines import helper\n", "entry.py:1: .*a package"),
    "a renamed name": ("from webui_diffusers.pipelines.helper import one as two\n", "entry.py:1: .*`one` as `two`"),
    "import of a module": ("import webui_diffusers.pipelines.helper\n", "entry.py:1: .*as a module"),
    "an unknown name": (
        "from webui_diffusers.pipelines.helper import none\n",
        "entry.py:1: imports `none`.*not define",
    ),
    "a clash": (
        "from webui_diffusers.pipelines.helper import one\ndef two(): ...\n",
        "entry.py:2: `two`.*helper.py:2",
    ),
    "a clash of imports": (
        "from webui_diffusers.pipelines.helper import one\nfrom typing import Generator\n",
        "entry.py:2: `Generator` also means something else, since pipelines/helper.py:3",
    ),
    "an import inside": ("def f():\n    import json\n", "entry.py:2: imports inside"),
    "an optional package": ("import lycoris\n", "entry.py:1: imports `lycoris`.*require"),
    "a future": ("from __future__ import annotations\n", "entry.py:1: .*every file"),
    "work at import": ("open('x')\n", "entry.py:1: .*runs when the file is loaded"),
    "__file__": ("HERE = __file__\n", "entry.py:1: reads `__file__`"),
    "a builtin": ("def sum(): ...\n", "entry.py:1: defines `sum`"),
    "a lookalike": ('"""Text.\n\nfrom x import y\n"""\n', "entry.py:3: .*reads like an import"),
    "two pipelines": (
        "from diffusers import DiffusionPipeline\nclass A(DiffusionPipeline): ...\nclass B(A): ...\n",
        "entry.py:2 A, pipelines/entry.py:3 B: .*exactly one",
    ),
    "a circle": (
        "from webui_diffusers.pipelines.back import back\n",
        "entry.py -> pipelines/back.py -> pipelines/entry",
    ),
    "two on a line": ("import json; import re\n", "entry.py:1: two statements share a line"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_inlined_is_refused_with_file_and_line(what: str, tmp_path: Path):
    text, message = REFUSED[what]
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("def one(): ...\ndef two(): ...\nfrom torch import Generator\n")
    (folder / "back.py").write_text("from .entry import entry\ndef back(): ...\n")
    (folder / "entry.py").write_text(text + "def entry(): ...\n")
    with pytest.raises(BundleError, match=message):
        bundle("pipelines/entry.py", root=tmp_path)


def test_one_class_from_a_package_and_from_its_module_is_one_import(tmp_path: Path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a.py").write_text("from diffusers.models.modeling_utils import ModelMixin\nX = 1\n")
    (tmp_path / "pipelines" / "b.py").write_text("from diffusers import ModelMixin\nfrom .a import X\nY = X\n")
    text = bundle("pipelines/b.py", root=tmp_path)
    assert "from diffusers import ModelMixin\n" in text and "modeling_utils" not in text


def test_module_names_are_distinctive():
    names = [bundle_module_name(name) for name in PIPELINES]
    assert len(set(names)) == len(names) and all(name.startswith("webui_") for name in names)


@pytest.mark.slow
def test_an_installed_wheel_gives_the_same_file(tmp_path: Path):
    """From site-packages, without a checkout: only commit and place differ."""
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    if subprocess.run(wheel, capture_output=True).returncode:
        pytest.skip("needs setuptools to build a wheel")
    target = tmp_path / "site"
    wheels = [str(path) for path in tmp_path.glob("*.whl")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), *wheels], check=True
    )
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import webui_diffusers\n"
        f"webui_diffusers.__path__ = [{str(target / 'webui_diffusers')!r}]\n"
        "from webui_diffusers.pipelines.bundle.build import pipeline_file, PACK_ROOT\n"
        f"assert str(PACK_ROOT).startswith({str(target)!r}), PACK_ROOT\n"
        "print(pipeline_file('webui-txt2img'))\n"
    )
    env = {**os.environ, "WEBUI_DIFFUSERS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = Path(done.stdout.strip()).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == bundle("webui-txt2img").splitlines()[1:]
