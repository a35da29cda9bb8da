"""What stands around the drawing: commands, folders of files, textual inversions, batches, faces put back.

    python benchmarks/around.py

There is no rival to these, so they are CPU milliseconds, the least of the repeats, with the memory of commands.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from loop import WIDTH, encoding_pipeline
from networks import seconds
from PIL import Image
from safetensors.torch import save_file
from webui_diffusers.loaders import WebUIFolder
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.cli.job_folder import JobFolder
from webui_diffusers.pipelines.cli.jobs import make_jobs, run_jobs
from webui_diffusers.pipelines.images.faces.masks import face_window
from webui_diffusers.pipelines.images.faces.paste import FaceCanvas, paste_change


SMALL = {"height": 64, "width": 64, "output_type": "latent"}
TEXT = "a (red:1.3) fox <lora:style:0.8>\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512"
# A process of its own, small enough that the memory of the one it came from is not taken for its own.
MEASURED = """import resource, subprocess, sys
subprocess.run([sys.executable, "-c", "from webui_diffusers.pipelines.cli.main import main; main()", *sys.argv[1:]],
               stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WEBUI_DIFFUSERS_CACHE"] = f"{folder}/cache"
        for rows in (command_rows, library_rows, embedding_rows, batch_rows, face_rows):
            for line in rows(Path(folder), arguments.repeats):
                print(line, flush=True)


def command_rows(folder: Path, repeats: int) -> Iterator[str]:
    """Whole commands: CPU time and memory of a process."""
    path = folder / "style.safetensors"
    shapes = {"lora_down": (16, 320), "lora_up": (320, 16)}
    stems = [f"lora_unet_down_blocks_0_attentions_{i}_transformer_blocks_0_attn1_to_q" for i in range(2)]
    save_file({f"{stem}.{part}.weight": torch.ones(shape) for stem in stems for part, shape in shapes.items()}, path)
    for given in (["--help"], ["explain", TEXT], ["lora", str(path)]):
        command = [sys.executable, "-c", MEASURED, *given]
        taken = [
            tuple(map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
            for _ in range(repeats)
        ]
        memory = max(mebibytes for _, mebibytes in taken)
        yield f"{f'webui-diffusers {given[0]}':45} {min(taken)[0] * 1000:9.0f} ms  ({memory:.0f} MiB)"


def library_rows(folder: Path, repeats: int, count: int = 5000) -> Iterator[str]:
    """A webui's folder of many networks: looked at once more by another object, and a name that is not there."""
    place = folder / "webui" / "models" / "Lora"
    for number in range(count):
        path = place / f"{number % 50:02}" / f"network {number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, path, metadata={"ss_output_name": f"other {number}"})

    def look() -> None:
        WebUIFolder(folder / "webui").find("lora", "other 7")

    look()
    yield row(f"a folder of {count} networks, looked at again", cpu_ms(look, repeats))
    library = WebUIFolder(folder / "webui")
    library.find("lora", "other 7")
    yield row("a name in it", cpu_ms(lambda: library.find("lora", "network 4321"), repeats))
    yield row("a name that is not in it", cpu_ms(lambda: library.find("lora", "none such"), repeats))


def embedding_rows(folder: Path, repeats: int, count: int = 300) -> Iterator[str]:
    """What textual inversions cost a call that names none of them."""
    place = folder / "embeddings"
    place.mkdir()
    for number in range(count):
        save_file({"emb_params": torch.randn(4, WIDTH)}, place / f"word {number}.safetensors")
    for label, prompt in (("one text", "a fox in snow"), ("alternating texts", "a [fox|cat|hen] in snow")):
        taken = []
        for embeddings in (place, None):
            pipe = encoding_pipeline()
            pipe.attached.embeddings_folder = embeddings

            def call(pipe: WebUITxt2ImgPipeline = pipe, prompt: str = prompt) -> None:
                pipe(prompt, num_inference_steps=20, sampler="Euler", seed=1, noise_source="cpu", **SMALL)

            call()
            taken.append(cpu_ms(call, repeats))
        yield row(f"{count} textual inversions, {label}: more a call", taken[0] - taken[1])


def batch_rows(folder: Path, repeats: int) -> Iterator[str]:
    """A job of a batch beside its drawing: claimed, its picture and record written."""
    picture = Image.new("RGB", (8, 8))
    for count, times in ((500, repeats), (10_000, 1)):
        jobs = make_jobs((i, None, {"prompt": f"a fox {i}", "seed": i}) for i in range(count))
        folders = (folder / f"batch {count} {i}" for i in range(times))

        def run(jobs: list = jobs, folders: Iterator[Path] = folders) -> None:
            run_jobs(jobs, JobFolder(next(folders)), lambda job: ([picture], ["a fox"]))

        yield row(f"a batch of {count} jobs, a job", cpu_ms(run, times) / count)


def face_rows(folder: Path, repeats: int) -> Iterator[str]:
    """A restored face of 350 pixels put back into a picture of 2048x1440, as the own flow does it."""
    chance, side = np.random.default_rng(0), 512
    background = chance.integers(0, 256, (1440, 2048, 3), dtype=np.uint8)
    crop, face = (chance.uniform(0, 255, (side, side, 3)).astype(np.float32) for _ in range(2))
    classes = np.zeros((side, side), np.int64)
    classes[100:400, 120:380] = 1
    inverse = np.array([[0.67, 0.1, 800.0], [-0.1, 0.67, 500.0]])

    def paste() -> None:
        canvas = FaceCanvas(background, 1.0, True)
        canvas.hold([face_window(inverse, side, canvas.size, canvas.scale)])
        paste_change(canvas, face, crop, inverse, classes)
        canvas.levels("rint")

    yield row("a face of 350 pixels put back into 2048x1440", cpu_ms(paste, repeats))


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    return min(seconds(work) for _ in range(repeats)) * 1000


def row(label: str, milliseconds: float) -> str:
    return f"{label:45} {milliseconds:9.3f} ms"


if __name__ == "__main__":
    main()
