"""A Python that has imported the model libraries and forks for every run: importing them anew takes seconds each time.

Nothing of this pack is imported before the fork, and what a run does ends with it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
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

# What is started instead of Python: hands arguments, environment and streams to the server, and ends as the run does.
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"."], [0, 1, 2])
    job = {"executable": sys.argv[2], "arguments": sys.argv[3:], "env": dict(os.environ), "cwd": os.getcwd()}
    server.sendall(json.dumps(job).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit((server.recv(1) or b"\\x86")[0])
"""

# The libraries read some variables when they are imported: then these stand there, and each run's own replace them.
# A run's HF_HUB_OFFLINE counts too; HF_TOKEN is read at each use.
STANDS_FOR = {"HF_ENDPOINT": "http://hub.invalid", "HF_MODULES_CACHE": "/modules.invalid", "HF_HOME": "/home.invalid"}

SERVER = """
import importlib, json, os, runpy, select, signal, socket, sys, traceback

STANDS_FOR = json.loads(sys.argv[2])

def as_if_imported_here(env):
    home = env.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    meant = {"HF_ENDPOINT": "https://huggingface.co", "HF_HOME": home, "HF_MODULES_CACHE": home + "/modules"}
    offline = env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in READ_THEM]
    for values in [*map(vars, modules), vars(sys.modules["huggingface_hub.hf_api"].api)]:
        for key, value in list(values.items()):
            if isinstance(value, str) and ".invalid" in value:
                for variable, word in STANDS_FOR.items():
                    value = value.replace(word, env.get(variable, meant[variable]))
                values[key] = value
            elif key in ("HF_HUB_OFFLINE", "_is_offline_mode"):
                values[key] = offline

def run(first, *more):
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *more[1:]]
        exec(compile(more[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        sys.argv = [first, *more]
        runpy.run_path(first, run_name="__main__")

def child(asker):
    for number, stream in enumerate(socket.recv_fds(asker, 1, 3)[1]):
        os.dup2(stream, number)
    job = json.loads(b"".join(iter(lambda: asker.recv(1 << 16), b"")))
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.executable = job["executable"]
    sys.path[:] = [*filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    code = 0
    try:
        as_if_imported_here(job["env"])
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
    asker.sendall(bytes([code & 255]))
    os._exit(0)

READ_THEM = ("diffusers", "huggingface_hub", "transformers")
for name in ["huggingface_hub.hf_api", *sys.argv[3:]]:
    importlib.import_module(name)
listening = socket.socket(fileno=int(sys.argv[1]))
running = set()
while listening in select.select([listening, sys.stdin], [], [])[0]:  # until whoever started it closes stdin, or ends
    asker, _ = listening.accept()
    running = {pid for pid in running if not os.waitpid(pid, os.WNOHANG)[0]}
    pid = os.fork()
    if not pid:
        listening.close()
        child(asker)
    running.add(pid)
    asker.close()
os.killpg(0, signal.SIGKILL)
"""


class PreparedPython:
    """`executable` is what sys.executable is to others: `subprocess.run([executable, ...])` with a file or -c."""

    def __init__(self) -> None:
        self.executable = sys.executable
        if os.name != "posix":
            return
        self.folder = Path(tempfile.mkdtemp(prefix="python-"))  # short, as a socket's name must be
        self.executable = str(self.folder / "python")
        (self.folder / "client.py").write_text(CLIENT)
        client = f'"{sys.executable}" -IS "{self.folder}/client.py" "{self.folder}/socket" "$0" "$@"'
        Path(self.executable).write_text(f"#!/bin/sh\nexec {client}\n")
        Path(self.executable).chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WEBUI_", "PYTHONPATH"))}
        env |= {"HF_HUB_DISABLE_XET": "1", **STANDS_FOR}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{self.folder}/socket")
            listening.listen()
            command = [sys.executable, "-c", SERVER, str(listening.fileno()), json.dumps(STANDS_FOR), *LIBRARIES]
            options = {"pass_fds": [listening.fileno()], "start_new_session": True, "stdin": subprocess.PIPE}
            self.server = subprocess.Popen(command, env=env, cwd=self.folder, **options)

    def close(self) -> None:
        """End the server, and what still runs."""
        if os.name == "posix":
            self.server.stdin.close()
            self.server.wait()
            shutil.rmtree(self.folder)
