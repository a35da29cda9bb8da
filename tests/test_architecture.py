"""Who may import whom, what is torch-free, and that every file can be inlined into one."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("pipelines", "loaders") for p in (ROOT / folder).rglob("*.py"))
ENTRIES = {
    ROOT / "pipelines" / f"{n}.py"
    for n in (
        "txt2img",
        "img2img",
        "multi_lora",
        "multi_lora_xl",
        "face_restore",
        "detailer",
        "blocks/xl",
        "blocks/sd",
    )
} | {ROOT / "pipelines" / "blocks" / "xl.py", ROOT / "pipelines" / "blocks" / "sd.py"}
FOLDERS = {"prompt", "sampling", "images", "control", "infotext", "cli", "serve", "blocks", "bundle", "loaders"}
LEAVES = (
    "loaders/utils",
    "loaders/data_files",
    "loaders/library/missing",
    "loaders/casting",
    "loaders/model_lock",
    "pipelines/options",
    "pipelines/conditioning",
    "pipelines/device_copies",
    "pipelines/sampling/labels",
    "pipelines/prompt/attention",
    "pipelines/detailer_settings",
    "pipelines/script_settings",
    "pipelines/control/units",
)  # what every folder may import
PURE = [
    p
    for p in SOURCES
    if p.name in ("__init__.py", "utils.py", "model_lock.py", "moved.py", "options.py")
    or p.name in ("detailer_settings.py", "script_settings.py")
    or (p.parent.name == "infotext" and p.name not in ("files.py", "from_call.py"))
    or (p.parent.name == "prompt" and p.name not in ("encode.py", "text_encoder.py"))
    or p.name in ("tile_grid.py", "philox.py", "labels.py", "units.py", "layout.py", "missing.py", "webui_hashes.py")
    or p.name in ("lazy_torch.py", "raw_numbers.py", "keys.py")
    or p.parent.name == "families"
]
PURE = [p for p in PURE if p.parent.name not in ("cli", "serve")]  # whose functions import what they run

# Arrows between folders, and functions of more than eight arguments, that were here before the rule and shall go.
STANDING_ARROWS: set[tuple[str, str]] = set()
STANDING_LONG: set[str] = set()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _folder(path: Path) -> str:
    """The folder of siblings a file belongs to; "" for the files right under pipelines/."""
    parts = path.relative_to(ROOT).parts
    return "loaders" if parts[0] == "loaders" else parts[1] if len(parts) > 2 else ""


def _imports(path: Path) -> list[tuple[ast.stmt, str]]:
    """Our own modules that a file imports, as paths below the root without suffix."""
    found = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.parent
                for _ in range(node.level - 1):
                    base = base.parent
                target = base / (node.module or "").replace(".", "/")
                found.append((node, target.relative_to(ROOT).as_posix()))
            elif (node.module or "").startswith("webui_diffusers"):
                found.append((node, node.module.removeprefix("webui_diffusers").lstrip(".").replace(".", "/")))
        elif isinstance(node, ast.Import):
            found += [(node, "!" + a.name) for a in node.names if a.name.startswith(("webui_diffusers", "pipelines"))]
    return found


def _top_level(path: Path) -> list[str]:
    names = []
    for node in _tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


def _arrows() -> set[tuple[str, str]]:
    """Imports from one folder into another, or into the trunk, that the rules do not allow."""
    found = set()
    for path in SOURCES:
        here = _folder(path)
        if path.name == "__init__.py" or here in ("cli", "serve", "blocks"):  # these stand above all
            continue
        for node, target in _imports(path):
            assert not target.startswith("!"), f"{_name(path)}:{node.lineno} imports a module of ours, not a name"
            top = target.split("/")
            there = "loaders" if top[0] == "loaders" else top[1] if len(top) > 2 else ""
            upward = here != "" and there != here and target not in LEAVES
            into_top = here == "" and there in ("cli", "serve", "blocks")
            if upward or into_top:
                found.add((_name(path), target))
    return found


def test_siblings_do_not_import_each_other_and_no_arrow_goes_up():
    assert _arrows() == STANDING_ARROWS


def test_functions_take_eight_arguments_at_most():
    """Stories (`__call__`, `__init__` of pipelines), commands and sampler loops excepted."""
    found = set()
    for path in SOURCES:
        if path in ENTRIES or _folder(path) in ("cli", "serve"):
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("sample_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([a for a in arguments if a.arg not in ("self", "cls")]) > 8:
                    found.add(f"{_name(path)}: {node.name}")
    assert found == STANDING_LONG


def test_names_are_imported_plainly():
    for path in SOURCES:
        for node, _ in _imports(path):
            for alias in node.names:
                assert alias.asname is None and alias.name != "*", f"{_name(path)}:{node.lineno}: {alias.name}"


def test_entry_files_import_absolutely_and_others_relatively():
    for path in SOURCES:
        for node, _ in _imports(path):
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            assert relative != (path in ENTRIES), f"{_name(path)}:{node.lineno}"


def test_no_imports_inside_functions():
    for path in SOURCES:
        if _folder(path) == "cli":  # `--help` answers without loading a model library
            continue
        tree = _tree(path)
        inner = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and n not in tree.body]
        assert not inner, f"{_name(path)}:{inner[0].lineno}: optional packages go through require()"


def test_top_level_names_are_unique():
    home: dict[str, str] = {}
    for path in SOURCES:
        if path.name in ("__init__.py", "__main__.py") or _folder(path) == "serve":  # no bundle holds the server
            continue
        for name in set(_top_level(path)):
            assert name not in home, f"`{name}` is defined in {home[name]} and in {_name(path)}"
            home[name] = _name(path)


def test_no_docstring_line_reads_like_an_import():
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                found = re.search(r"^\s*(import|from)\s+\S+(\s+import)?\s*$|^\s*from\s+\S+\s+import", node.value, re.M)
                assert not found, f"{_name(path)}:{node.lineno}: {found.group(0).strip()!r}"


def test_every_folder_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in SOURCES if p.name == "__init__.py"}
    assert {name.removeprefix("webui_diffusers.") for name in settings["packages"]} == folders
    assert {p.parent for p in SOURCES} == {p.parent for p in SOURCES if p.name == "__init__.py"}


def test_files_and_functions_fit_a_screen():
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, f"{_name(path)} has {len(lines)} lines"
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
                whole = node.name == "__call__" or node.name.startswith("sample_")
                first = node.body[0].lineno if whole else node.lineno  # a call's arguments are not code
                length = node.end_lineno - first + 1 - docstring
                assert length <= (120 if whole else 60), f"{_name(path)}: {node.name} has {length} lines"


def test_a_fresh_interpreter_finds_old_modules_and_all_public_names(prepared_python: str):
    """Of which the model libraries are imported already: that takes seconds."""
    packages = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in SOURCES}
    code = (
        "from webui_diffusers.loaders import single_file\n"
        "import webui_diffusers.pipelines.cli_jobs as jobs\n"
        "from webui_diffusers.pipelines.cli.jobs import JobFolder\n"
        "assert jobs.JobFolder is JobFolder and single_file.load_single_file\n"
        "import importlib\n"
        f"for m in {sorted(packages)}:\n"
        "    module = importlib.import_module('webui_diffusers.' + m)\n"
        "    for name in getattr(module, '__all__', ()):\n"
        "        getattr(module, name)\n"
    )
    result = subprocess.run([prepared_python, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", PURE, ids=_name)
def test_pure_modules_import_no_torch(path: Path):
    """By reading: each pure file imports only pure files of ours and no model library."""
    heavy = {"torch", "diffusers", "transformers", "safetensors", "peft", "scipy", "torchsde", "spandrel"}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            assert not heavy & {a.name.split(".")[0] for a in node.names}, f"{_name(path)}:{node.lineno}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in heavy, f"{_name(path)}:{node.lineno}"
    pure = {p.with_suffix("").relative_to(ROOT).as_posix() for p in PURE}
    for node, target in _imports(path):
        assert target in pure or (ROOT / target).is_dir(), f"{_name(path)}:{node.lineno} imports {target}"


def test_prompt_and_infotext_work_without_torch():
    code = (
        "import sys\n"
        "from webui_diffusers.pipelines.prompt import parse_attention, parse_schedule, split_and, strip_comments\n"
        "from webui_diffusers.pipelines.infotext import parse_infotext\n"
        "parse_attention('(a:1.2)'), parse_schedule('[a:b:3]', 10), parse_infotext('a')\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
