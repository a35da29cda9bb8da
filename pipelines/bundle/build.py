"""One self-contained file from an entry file of the pack: what diffusers' `custom_pipeline=` loads.

    bundle("webui-txt2img")         its text
    pipeline_file("webui-txt2img")  a file with it, made once, in the user's cache

diffusers copies a pipeline's file into a folder of its own and runs it there, so everything the pack needs has to be
in that one file: the sources that the entry file reaches, each as a section, what others need first; the imports of
third parties gathered at the top; none of ours left. The same sources always give the same text.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ...loaders.utils import atomic_write, cache_folder
from .sources import BundleError, ImportedName, PackSource, read_pack_source


PACK_ROOT = Path(__file__).parents[2]  # the folder with pipelines/ and loaders/, in a checkout and installed alike


class PipelineEntry(NamedTuple):
    """Where a pipeline is defined."""

    file: str  # below PACK_ROOT
    class_name: str


# name on the Hub -> where it is defined
PIPELINES = {
    "webui-txt2img": PipelineEntry("pipelines/txt2img.py", "WebUITxt2ImgPipeline"),
    "webui-img2img": PipelineEntry("pipelines/img2img.py", "WebUIImg2ImgPipeline"),
    "multi-lora": PipelineEntry("pipelines/multi_lora.py", "MultiLoraPipeline"),
    "multi-lora-xl": PipelineEntry("pipelines/multi_lora_xl.py", "MultiLoraXLPipeline"),
    "face-restore": PipelineEntry("pipelines/face_restore.py", "FaceRestorePipeline"),
    "detailer": PipelineEntry("pipelines/detailer.py", "DetailerPipeline"),
}


# The same for sets of blocks for Modular Diffusers: the class of the whole set.
BLOCKS = {
    "webui-blocks-xl": PipelineEntry("pipelines/blocks/xl.py", "WebUIXLBlocks"),
    "webui-blocks-sd": PipelineEntry("pipelines/blocks/sd.py", "WebUISDBlocks"),
}


def pipeline_file(name: str) -> Path:
    """The self-contained file of a pipeline in `PIPELINES`, for `custom_pipeline=`.

    Made once and kept in the user's cache folder (a temporary one if that cannot be written), under the sum of the
    sources it is made from; its own name is distinctive, because diffusers runs files of one name in one module.
    Raises ValueError for an unknown name.

    >>> pipe = DiffusionPipeline.from_pretrained(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ...     custom_pipeline=str(pipeline_file("webui-txt2img")),
    ...     trust_remote_code=True,
    ... )
    """
    _pipeline_entry(name)
    place = Path("pipelines", _sources_sum(), f"{bundle_module_name(name)}.py")
    kept = cache_folder() / place
    if kept.is_file():
        return kept
    text = bundle(name)
    try:
        return _written_bundle(kept, text)
    except OSError:
        return _written_bundle(Path(tempfile.gettempdir(), f"webui-diffusers-{os.getpid()}") / place, text)


def bundle(entry: str, *, home: str = "", root: Path = PACK_ROOT) -> str:
    """The text of one file that does what `entry` does, without the pack.

    entry: a name in `PIPELINES` or `BLOCKS`, or a source file below `root` such as "loaders/upscaler.py". home: the
    Hub repository that it will be published in; data files that one file cannot hold are looked for there. Raises
    BundleError naming file and line for what cannot be inlined.
    """
    known = {**PIPELINES, **BLOCKS}.get(entry)
    name, file = (Path(entry).stem, entry) if known is None else (entry, known.file)
    sources = bundle_sources(file, root)
    _refuse_clashes(sources)
    pipeline = _pipeline_class(sources)
    if entry in BLOCKS and not pipeline and BLOCKS[entry].class_name in sources[-1].defined:
        pipeline = BLOCKS[entry].class_name
    if known is not None and pipeline != known.class_name:
        raise BundleError(f"{file}: defines no `{known.class_name}`, which the table of entries says it does.")
    body = "\n\n\n".join([_import_lines(sources), *map(_section, sources)]) + "\n"
    digest = hashlib.sha256("\n".join((name, home, body)).encode()).hexdigest()[:12]
    return _head(name, pipeline, digest, home, sources, root) + body


def bundle_sources(file: str, root: Path = PACK_ROOT) -> list[PackSource]:
    """The source files that `file` reaches, each after all that it needs. Raises BundleError for a circle."""
    done: dict[str, PackSource] = {}

    def visit(name: str, above: Sequence[str]) -> None:
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            raise BundleError(f"{name}: imports itself through {circle}. Move what both need to a third file.")
        if name in done:
            return
        source = read_pack_source(root, name)
        for item in source.ours:
            visit(item.module, [*above, name])
            other = done[item.module]
            if item.attribute not in other.defined and item.attribute not in {
                i.bound for i in (*other.ours, *other.others)
            }:
                raise BundleError(
                    f"{name}:{item.line}: imports `{item.attribute}` from {item.module}, which does not define it. "
                    f"Import "
                    "it from the file that does."
                )
        done[name] = source

    visit(file, [])
    return list(done.values())


def bundle_module_name(name: str) -> str:
    """The name of a pipeline's file and module that no other pack has.

    >>> bundle_module_name("webui-txt2img")
    'webui_txt2img'
    """
    module = name.replace("-", "_")
    return module if module.startswith("webui_") else f"webui_{module}"


def _pipeline_entry(name: str) -> PipelineEntry:
    if name not in PIPELINES:
        raise ValueError(f"There is no pipeline {name!r}. There are {', '.join(PIPELINES)}.")
    return PIPELINES[name]


# --- what must not be


def _refuse_clashes(sources: Iterable[PackSource]) -> None:
    """Refuse two files that mean different things by one name."""
    home: dict[str, tuple[str, ...]] = {}  # name -> (kind or module, attribute), and where
    place: dict[str, str] = {}
    for source in sources:
        meanings = {found: ((source.name, found), line) for found, line in source.defined.items()}
        meanings |= {i.bound: (_meaning(i), i.line) for i in source.others}
        for found, (meaning, line) in meanings.items():
            if found in home and not _same_thing(home[found], meaning):
                raise BundleError(
                    f"{source.name}:{line}: `{found}` also means something else, since {place[found]}. In one file a "
                    f"name "
                    "has one meaning: rename one of the two."
                )
            home.setdefault(found, meaning)
            place.setdefault(found, f"{source.name}:{line}")


def _meaning(item: ImportedName) -> tuple[str, str]:
    renamed = item.bound != item.module.partition(".")[0]
    return (item.module if item.attribute or renamed else item.bound, item.attribute)


def _same_thing(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Equal, or one name taken from a package and from a module inside it: a package lists what its modules define."""
    (module, name), (other_module, other_name) = one, other
    inside = f"{module}.".startswith(f"{other_module}.") or f"{other_module}.".startswith(f"{module}.")
    return name == other_name and (module == other_module or (bool(name) and inside))


def _pipeline_class(sources: Iterable[PackSource]) -> str:
    """The one class that is a pipeline; "" if there is none. diffusers refuses a file with two."""
    bases = {name: found for source in sources for name, found in source.bases.items()}

    def is_pipeline(name: str) -> bool:
        return any(is_pipeline(base) if base in bases else base.endswith("Pipeline") for base in bases[name])

    found = [name for name in bases if is_pipeline(name)]
    if len(found) > 1:
        where = ", ".join(f"{s.name}:{s.defined[name]} {name}" for s in sources for name in found if name in s.defined)
        raise BundleError(f"{where}: diffusers loads a file with exactly one pipeline class. Share functions instead.")
    return found[0] if found else ""


# --- the text


def _import_lines(sources: Iterable[PackSource]) -> str:
    """All imports of third parties and the standard library, gathered: the latter first, one line a module."""
    modules: set[str] = set()
    names: dict[str, tuple[str, str]] = {}  # bound -> (module, attribute)
    for item in (item for source in sources for item in source.others):
        if item.attribute:
            known = names.get(item.bound, (item.module, ""))[0]
            names[item.bound] = (min(known, item.module, key=lambda m: (len(m), m)), item.attribute)
        else:
            plain = item.bound == item.module.partition(".")[0]
            modules.add(f"import {item.module}" if plain else f"import {item.module} as {item.bound}")
    from_modules: dict[str, list[str]] = {}
    for bound, (module, attribute) in names.items():
        from_modules.setdefault(module, []).append(attribute if attribute == bound else f"{attribute} as {bound}")
    lines = sorted(modules) + [_from_line(module, sorted(found)) for module, found in sorted(from_modules.items())]
    standard = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n".join([*standard, "", *(line for line in lines if line not in standard)])


def _from_line(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) < 120:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _section(source: PackSource) -> str:
    """A file of the pack under a heading, its docstring as comments."""
    heading = f"# ==== {source.name} ".ljust(119, "=")
    comments = [f"# {line}".rstrip() for line in source.docstring.split("\n")]
    body = re.sub(r"^BUNDLE_(NAME|DIGEST|HOME) = .*\n", "", source.body, flags=re.M)  # the head has them
    return "\n".join([heading, *comments, "\n", body])


def _head(name: str, pipeline: str, digest: str, home: str, sources: Sequence[PackSource], root: Path) -> str:
    """What the file is, its contents, and the guard."""
    title = f"{pipeline or name}: {name} {pack_version(root)}, commit {_sources_commit(root)}, content {digest}"
    lines = [
        f"# {title}",
        "# Made from the sources of webui-diffusers (Apache-2.0): edit those, not this. Each file is a section, "
        "under a",
        f"# line of equals signs; what others need comes first, {pipeline or 'the entry'} last:",
        *(f"#     {source.name}" for source in sources),
        "",
        "import sys",
        "",
        "",
        f'BUNDLE_NAME = "{name}"',
        f'BUNDLE_DIGEST = "{digest}"',
        f'BUNDLE_HOME = "{home}"',
        "",
        *(line.replace("MODULE", bundle_module_name(name)) for line in _GUARD),
        "",
        "",
    ]
    return "\n".join(lines)


def pack_version(root: Path = PACK_ROOT) -> str:
    """The pack's version: a checkout's own, else the installed one's."""
    if (root / "pyproject.toml").is_file():
        found = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.M)
        if found:
            return found[1]
    try:
        return version("webui-diffusers")
    except PackageNotFoundError:
        return "unknown"


def _sources_commit(root: Path) -> str:
    """The commit that last changed the sources, with "+" where there are changes since; "unknown" outside of git."""
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git_output(root, "log", "-1", "--format=%h", "--abbrev=12", "--", "pipelines", "loaders")
        changed = _git_output(root, "status", "--porcelain", "--", "pipelines", "loaders")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (commit or "unknown") + ("+" if changed else "")


def _git_output(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _sources_sum() -> str:
    """A sum over everything a bundle of the pack can depend on."""
    known = hashlib.sha256(pack_version().encode())
    for folder in ("pipelines", "loaders"):
        for path in sorted((PACK_ROOT / folder).rglob("*.py")):
            known.update(path.relative_to(PACK_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return known.hexdigest()[:16]


def _written_bundle(path: Path, text: str) -> Path:
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
    return path


# diffusers runs every local file called x.py in one module, diffusers_modules.local.x, on top of what a file of that
# name left there: two pipelines would be found, and functions of the first would call helpers of the second. The guard
# refuses to run on top of others, and gives what runs here a module of its own, so that the next one finds none.
_GUARD = [
    "# diffusers runs all local files of one name in one module. This file does not run on top of another pack's, and",
    "# moves to a module of its own, so that no other runs on top of it.",
    'if __name__.startswith("diffusers_modules."):',
    "    for _left in [v for v in list(globals().values()) if isinstance(v, type) and v.__module__ == __name__]:",
    "        raise ImportError(",
    '            f"`{__file__}` would run on top of `{_left.__name__}`, from another file of that name that was "',
    '            "loaded before, and each would call functions of the other. Load this pipeline by the name that "',
    '            "only it has (MODULE.py, beside pipeline.py), from the Hub, or in a new process."',
    "        )",
    '    with open(__file__, encoding="utf-8") as _file:',
    '        if f"content {BUNDLE_DIGEST}\\n" not in _file.readline():',
    "            raise ImportError(",
    '                f"{BUNDLE_NAME} {BUNDLE_DIGEST} runs here, which is not what is in `{__file__}`: the file was "',
    '                "replaced while it was loaded, or Python kept the bytecode of an older one. Load it again."',
    "            )",
    '    sys.modules["MODULE"] = sys.modules.pop(__name__)',
    '    __name__ = "MODULE"',
]
