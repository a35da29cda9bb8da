"""One source file of the pack, read for inlining: what it defines, what it imports, what is left of it.

What cannot be inlined is refused with file and line, so that a bundle either means what the sources mean or is not
made: modules imported as modules, renamed imports, imports inside functions, packages that a plain install does not
bring, work done at import, and `__file__` (one file has no folder of data beside it).
"""

import ast
import builtins
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


PACK_IMPORT_NAME = "webui_diffusers"

# top-level module -> what a requirements.txt calls it; a plain install of the pack brings these and no others
BUNDLE_REQUIREMENTS = {
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "ftfy": "ftfy",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "packaging": "packaging",
    "peft": "peft",
    "PIL": "pillow",
    "regex": "regex",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "spandrel": "spandrel",
    "torch": "torch",
    "transformers": "transformers",
}

_READS_FILE = ("loaders/data_files.py", "pipelines/bundle/saving.py")  # these know that they may be in a bundle
_DUNDERS = ("__file__", "__name__", "__package__", "__path__", "__spec__")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


class BundleError(ValueError):
    """A source file that cannot be inlined, with file and line."""


class ImportedName(NamedTuple):
    """One name that an import binds. attribute is empty for `import module`."""

    module: str
    attribute: str
    bound: str
    line: int


class PackSource(NamedTuple):
    """A source file taken apart."""

    name: str  # "pipelines/prompt/attention.py"
    docstring: str
    body: str  # the text without docstring and imports
    defined: dict[str, int]  # top-level name -> line
    bases: dict[str, list[str]]  # class -> names of its bases
    ours: list[ImportedName]  # module is the name of another source
    others: list[ImportedName]  # of third parties and the standard library


def read_pack_source(root: Path, name: str) -> PackSource:
    """Read root/name. Raises BundleError for what cannot be inlined, SyntaxError for what is not Python."""
    return _taken_apart(root, name, (root / name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)  # bundles of several pipelines share most of their files
def _taken_apart(root: Path, name: str, text: str) -> PackSource:
    tree = ast.parse(text, filename=name)
    _refuse_hidden(tree, name)
    ours, others = [], []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or _is_ours(node.module or "")):
            ours += _our_names(node, name, root)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            others += _other_names(node, name)
    body = _body_text(text, tree)
    _refuse_lookalikes(text, tree, name)
    classes = {node.name: _base_names(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    return PackSource(name, ast.get_docstring(tree) or "", body, _defined_names(tree, name), classes, ours, others)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACK_IMPORT_NAME


def _our_names(node: ast.ImportFrom, name: str, root: Path) -> list[ImportedName]:
    """The names that a `from ... import` takes from another file of the pack."""
    if node.level:
        folder = Path(name).parents[node.level - 1] if node.level <= len(Path(name).parents) else Path("..")
        target = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
    else:
        target = Path(*(node.module or "").split(".")[1:])
    module = f"{target.as_posix()}.py"
    if not (root / module).is_file():
        raise BundleError(
            f"{name}:{node.lineno}: imports from `{'.' * node.level}{node.module or ''}`, which is a package or does "
            f"not "
            "exist. In one file there are no packages: import from the file that defines the name."
        )
    for alias in node.names:
        if alias.name == "*" or alias.asname is not None:
            raise BundleError(
                f"{name}:{node.lineno}: imports `{alias.name}` as `{alias.asname or '*'}`. In one file nobody "
                f"defines that "
                "name: import it as it is called."
            )
    return [ImportedName(module, alias.name, alias.name, node.lineno) for alias in node.names]


def _other_names(node: ast.Import | ast.ImportFrom, name: str) -> list[ImportedName]:
    """The names that an import of a third party or of the standard library binds."""
    if isinstance(node, ast.ImportFrom):
        found = [ImportedName(node.module or "", a.name, a.asname or a.name, node.lineno) for a in node.names]
    else:
        found = [ImportedName(a.name, "", a.asname or a.name.partition(".")[0], node.lineno) for a in node.names]
    for item in found:
        package = item.module.partition(".")[0]
        if package == PACK_IMPORT_NAME:
            raise BundleError(
                f"{name}:{node.lineno}: imports `{item.module}` as a module. In one file `{item.bound}.` means "
                f"nothing: "
                "import the names."
            )
        if package == "__future__" or item.attribute == "*":
            raise BundleError(
                f"{name}:{node.lineno}: `from {item.module} import {item.attribute}` would act on every file of the "
                f"bundle. "
                "Leave it out."
            )
        if package not in BUNDLE_REQUIREMENTS and package not in sys.stdlib_module_names:
            raise BundleError(
                f"{name}:{node.lineno}: imports `{package}`, which a plain install does not bring; diffusers would "
                f"warn "
                "whoever loads the bundle, and loading fails where it is missing. Import it through `require`."
            )
    return found


def _refuse_hidden(tree: ast.Module, name: str) -> None:
    """Refuse imports below the top level, module variables that differ in a bundle, and work at import."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body:
            raise BundleError(
                f"{name}:{node.lineno}: imports inside a function or block. diffusers takes every import in the file "
                f"for "
                "a requirement: move it to the top, or use `require`."
            )
        if isinstance(node, ast.Name) and node.id in _DUNDERS and name not in _READS_FILE:
            raise BundleError(
                f"{name}:{node.lineno}: reads `{node.id}`, which is another in one file. For data files there is "
                "`package_file`, for logging `LOGGER`."
            )
    ends = 0
    for node in tree.body:
        fine = isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))
        if not fine and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise BundleError(
                f"{name}:{node.lineno}: a statement that is no definition runs when the file is loaded, which is at "
                f"each "
                "`from_pretrained`. Put it into a function."
            )
        if node.lineno <= ends:
            raise BundleError(f"{name}:{node.lineno}: two statements share a line. Give each its own.")
        ends = node.end_lineno or node.lineno


def _refuse_lookalikes(text: str, tree: ast.Module, name: str) -> None:
    """Refuse lines of texts that read like imports: diffusers finds imports by regular expression."""
    real = {
        line
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for number, line in enumerate(text.split("\n"), 1):
        if number not in real and re.match(r"\s*(import\s+\S+\s*$|from\s+\S+\s+import)", line):
            raise BundleError(
                f"{name}:{number}: the text {line.strip()!r} reads like an import, and diffusers would take it for "
                f"one. "
                "Write examples behind `>>>`, and other text so that no line begins like this."
            )


def _defined_names(tree: ast.Module, name: str) -> dict[str, int]:
    defined: dict[str, int] = {}
    for node in tree.body:
        names = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        for found in names:
            if hasattr(builtins, found):
                raise BundleError(
                    f"{name}:{node.lineno}: defines `{found}`, which would take Python's own `{found}` from every "
                    f"other file "
                    "of the bundle. Choose another name."
                )
            defined[found] = node.lineno
    defined.pop("__all__", None)
    return defined


def _base_names(node: ast.ClassDef) -> list[str]:
    return [str(getattr(base, "id", "") or getattr(base, "attr", "")) for base in node.bases]


def _body_text(text: str, tree: ast.Module) -> str:
    """The lines that are neither docstring, nor import, nor `__all__`."""
    dropped: set[int] = set()
    for index, node in enumerate(tree.body):
        is_docstring = index == 0 and isinstance(node, ast.Expr)
        is_list = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        if is_docstring or is_list or isinstance(node, (ast.Import, ast.ImportFrom)):
            dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return "\n".join(line for number, line in enumerate(text.split("\n"), 1) if number not in dropped).strip("\n")
