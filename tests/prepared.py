"""A Python that has imported the model libraries and forks for every run: importing them anew takes seconds each time.

Nothing of this pack is imported before the fork, and what a run does ends with it.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path


LIBRARIES = (
    "torch",
    "accelerate",
    "diffusers.loaders.single_file",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "ftfy",
    "peft",
    "scipy.ndimage",
    "spandrel",
)

# Reads a job a line: arguments as python's own (-c CODE or a file, and more), environment, folder, files for output.
SERVER = """
import importlib, json, os, runpy, sys, traceback

def run(first, *more):
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *more[1:]]
        exec(compile(more[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        sys.argv = [first, *more]
        runpy.run_path(first, run_name="__main__")

def child(job):
    for number, name in enumerate((os.devnull, job["stdout"], job["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.path[:] = [*filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    code = 0
    try:
        run(*job["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        child(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class PreparedPython:
    """`run` is subprocess.run of a Python, in a fork. env: its environment, as it is when the libraries are imported;
    folder: where output is kept meanwhile."""

    def __init__(self, env: dict[str, str], folder: Path):
        self.folder = folder
        command = [sys.executable, "-c", SERVER, *LIBRARIES]
        env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str], env: dict[str, str], cwd: Path, timeout: float) -> subprocess.CompletedProcess:
        said = {name: self.folder / name for name in ("stdout", "stderr")}
        for path in said.values():
            path.write_text("")
        job = {"arguments": arguments, "env": env, "cwd": str(cwd), **{name: str(path) for name, path in said.items()}}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, said["stdout"].read_text(), said["stderr"].read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def same_when_imported(env: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two environments are one to the libraries, some of which read theirs when they are imported."""
    names = {name for name in {*env, *other} if name.startswith(("HF_", "WEBUI_")) and name != "HF_TOKEN"}
    return all(env.get(name) == other.get(name) for name in names) and os.name == "posix"
