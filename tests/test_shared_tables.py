"""Tables and files that several threads or processes look up and change at the same time."""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from recordings import GOLDEN
from torch import nn
from webui_diffusers.loaders import WebUIFolder, load_upscaler, read_network
from webui_diffusers.loaders.checkpoint.configs import model_config_folder
from webui_diffusers.loaders.faces.restorer import FaceRestorer
from webui_diffusers.loaders.library.index import FileIndex
from webui_diffusers.loaders.lora.library import NetworkLibrary
from webui_diffusers.loaders.lora.peft_mix import AdapterMixer
from webui_diffusers.loaders.model_lock import loaded_once, model_gate, models_in_use, moved_whole
from webui_diffusers.loaders.pickles import unpicklable_classes
from webui_diffusers.loaders.textual_inversion import TextualInversion
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.cli.job_folder import JobFolder, place_file
from webui_diffusers.pipelines.cli.job_names import record_paths
from webui_diffusers.pipelines.cli.jobs import make_jobs
from webui_diffusers.pipelines.guidance_request import _ip_adapter_embeds
from webui_diffusers.pipelines.infotext.files import save_pictures
from webui_diffusers.pipelines.registry import Attachments


INK, GLOW = (GOLDEN / "lora" / f"{name}.safetensors" for name in ("kohya_lora", "alpha_ne_rank"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gives; all begin together."""
    begin = threading.Barrier(len(works), timeout=30)
    with ThreadPoolExecutor(len(works)) as pool:
        return [done.result(60) for done in [pool.submit(lambda own: (begin.wait(), own())[1], one) for one in works]]


# --- by name


def test_a_network_that_is_added_while_another_thread_looks_one_up_is_known():
    pool, adding = ThreadPoolExecutor(1), []

    class Paused(NetworkLibrary):
        """Adds a network on another thread while the names are put together."""

        @property
        def forbidden_aliases(self) -> set[str]:
            if not adding:
                adding.append(pool.submit(self.add, GLOW, "glow"))
                time.sleep(0.2)
            return super().forbidden_aliases

    library = Paused()
    library.add(INK, "ink")
    assert library.find("ink") is not None
    adding[0].result(30)
    assert library.find("glow") is not None
    pool.shutdown()


def test_calls_that_read_a_network_at_the_same_time_have_the_same_one(monkeypatch):
    library, meet = NetworkLibrary(), threading.Barrier(2, timeout=30)
    entry = library.add(INK, "ink")
    library._networks.clear()

    def read(path: Path) -> Any:
        meet.wait()
        return read_network(path)

    monkeypatch.setattr(sys.modules[NetworkLibrary.__module__], "read_network", read)
    one, other = at_once(*[lambda: library.network(entry.name)] * 2)
    assert one is other is library.network(entry.name)


def test_an_embedding_that_takes_the_place_of_another_in_memory_is_not_taken_for_it():
    attached = Attachments()

    def fitting(value: float) -> float:
        made = TextualInversion("glyph", torch.full((1, 8), value), "", Path("glyph.pt"))
        found = attached._fitting_embeddings({"glyph": made}, ["clip_l"], [8])
        return float(found["glyph"]["clip_l"][0, 0])

    assert all(fitting(float(value)) == value for value in range(20))


def test_what_two_threads_ask_for_is_loaded_once():
    known: dict[str, object] = {}
    loads = []

    def load() -> object:
        loads.append(time.sleep(0.1))
        return object()

    one, other = at_once(*[lambda: loaded_once(known, "model", load)] * 2)
    assert one is other and len(loads) == 1


def test_a_load_that_fails_leaves_the_name_free():
    known: dict[str, int] = {}
    with pytest.raises(ZeroDivisionError):
        loaded_once(known, "model", lambda: 1 // 0)
    assert loaded_once(known, "model", lambda: 3) == 3


# --- models


def test_a_model_is_used_when_all_of_it_is_where_it_shall_be():
    begun = threading.Event()

    class Halfway(nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
            self.weight = nn.Parameter(fn(self.weight.data))
            begun.set()
            time.sleep(0.2)
            return super()._apply(fn, recurse)

    model, inside = Halfway(2, 2), []
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(moved_whole, model, "meta")
        assert begun.wait(30)
        inside.append(model.bias.is_meta)
        assert all(value.is_meta for value in moved_whole(model, "meta").parameters())
        moving.result(30)
    assert inside == [False]


def test_an_image_prompt_is_encoded_when_nobody_has_its_encoder_alone():
    encoder, rows = nn.Linear(1, 1), [torch.arange(2.0)[:, None]]
    pipe = SimpleNamespace(
        components={"image_encoder": encoder},
        prepare_ip_adapter_image_embeds=lambda *given: rows,
        _execution_device="cpu",
    )
    given = {"ip_adapter_image": Image.new("RGB", (8, 8)), "ip_adapter_image_embeds": None}
    with ThreadPoolExecutor(1) as pool:
        with models_in_use([encoder], alone=True):
            asked = pool.submit(_ip_adapter_embeds, pipe, given, 5.0, 1)
            while not asked.done() and not model_gate().waiting:
                time.sleep(0.01)
            assert not asked.done()
        assert [float(side[0]) for side in asked.result(30)] == [1.0, 0.0]


def test_the_numbers_that_an_upscaler_spends_are_its_generators_alone():
    upscaler = load_upscaler(GOLDEN / "models" / "tiny-compact-x2.safetensors")
    alone, generator = (torch.Generator().manual_seed(4) for _ in range(2))
    upscaler.draw_as_constructed(alone)
    begun, drawn, kind = threading.Event(), threading.Event(), type(upscaler.network)

    class Pausing(kind):
        """While it is made, another thread draws from torch's own generator."""

        def __init__(self, **parameters: Any):
            begun.set()
            assert drawn.wait(30)
            super().__init__(**parameters)

    def draw() -> None:
        assert begun.wait(30)
        torch.rand(1)
        drawn.set()

    upscaler.network.__class__ = Pausing
    with torch.random.fork_rng(devices=[]):
        expected = (torch.manual_seed(1), torch.rand(1), torch.get_rng_state())[2]
        torch.manual_seed(1)
        at_once(draw, lambda: upscaler.draw_as_constructed(generator))
        assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(generator.get_state(), alone.get_state())


def test_faces_of_two_callers_have_each_its_own_noise():
    torch.manual_seed(0)
    restorer = FaceRestorer("GFPGAN", {"narrow": 0.0625, "num_style_feat": 32, "num_mlp": 2}).eval()
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "style_conv" in name and parameter.numel() == 1:
                parameter.fill_(0.5)  # noise that shows
    inside, other = threading.Event(), threading.Event()

    def restored(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return restorer(torch.zeros(1, 3, 512, 512), generator=generator)

    def pause(module: Any, args: tuple) -> None:
        if not inside.is_set():
            inside.set()
            other.wait(0.5)

    def second() -> torch.Tensor:
        assert inside.wait(30)
        try:
            return restored(None)
        finally:
            other.set()

    expected = [restored(1), restored(None)]
    assert not torch.equal(*expected)
    handle = restorer.net.register_forward_pre_hook(pause)
    found = at_once(lambda: restored(1), second)
    handle.remove()
    assert all(map(torch.equal, found, expected))


def test_adapters_on_two_models_at_once_leave_torch_as_it_was(tiny_sd, taking_turns):
    pipes = [SimpleNamespace(unet=UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")) for _ in range(2)]
    before, network = nn.Module.register_parameter, read_network(INK)

    def mix(pipe: Any) -> Callable[[], None]:
        def work() -> None:
            mixer = AdapterMixer(pipe)
            mixer.switch([(network, 1.0, 1.0)])
            mixer.restore()

        return work

    at_once(*map(mix, pipes))
    assert nn.Module.register_parameter is before
    assert not any(value.is_meta for pipe in pipes for value in pipe.unet.parameters())


# --- files


def without_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_classes_that_one_thread_lets_into_pickles_are_let_in_until_it_is_done():
    class Harmless:
        pass

    entered, leave = threading.Event(), threading.Event()

    def second() -> bool:
        with unpicklable_classes([Harmless]):
            entered.set()
            assert leave.wait(30)
            return Harmless in torch.serialization.get_safe_globals()

    with ThreadPoolExecutor(1) as pool:
        with unpicklable_classes([Harmless]):
            found = pool.submit(second)
            entered.wait(0.2)
        leave.set()
        assert found.result(30)
    assert Harmless not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("links", [True, False])
def test_pictures_of_two_callers_never_take_one_name(links, tmp_path, monkeypatch, taking_turns):
    if not links:
        monkeypatch.setattr(os, "link", without_links)

    def save() -> list[Path]:
        pictures = [Image.new("RGB", (8, 8))] * 20
        return save_pictures(pictures, None, tmp_path / "out", "same")

    paths = [path for saved in at_once(save, save) for path in saved]
    assert len({*paths}) == 40 and {*paths} == {*(tmp_path / "out").iterdir()}


def test_a_job_never_takes_the_name_of_a_file_that_came_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", without_links)
    for name in ("mine", "theirs"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        place_file(tmp_path / "mine", tmp_path / "theirs")
    place_file(tmp_path / "mine", tmp_path / "free")
    place_file(tmp_path / "mine", tmp_path / "gone")  # another process was faster
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"theirs": "theirs", "free": "mine"}


def test_a_job_takes_away_what_its_maker_still_has_and_nothing_else(tmp_path):
    """Two runs with one name for two new versions of a job; each looks at the folder before the other has drawn."""
    old, new, newer = (
        make_jobs([(1, "fox", {"prompt": "x", "seed": seed, "num_images_per_prompt": 2})])[0] for seed in (1, 2, 3)
    )

    def drawn(level: int) -> tuple[list[Image.Image], list[str]]:
        return [Image.new("RGB", (4, 4), (level, level, level))] * 2, ["a", "b"]

    folder = JobFolder(tmp_path)
    folder.check_names([old])
    folder.keep(old, drawn(1))
    runs = [(job, JobFolder(tmp_path)) for job in (new, newer)]
    for job, run in runs:
        run.check_names([job])
    for level, (job, run) in enumerate(runs, start=2):
        run.keep(job, drawn(level))
    levels = {
        path: Image.open(tmp_path / path).getpixel((0, 0))[0]
        for job, _ in runs
        for path in record_paths(folder.record(job))
    }
    assert levels == {"fox-1.png": 2, "fox-2.png": 2, "fox-1-2.png": 3, "fox-2-2.png": 3}
    assert {path.name for path in tmp_path.glob("*.png")} == {*levels}


def test_configuration_files_that_other_processes_may_read_stay_when_one_is_missing():
    folder = model_config_folder("sd1")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    gone = [folder / "unet" / "config.json", folder / "tokenizer" / "vocab.json"]
    contents = [path.read_bytes() for path in gone]
    with ExitStack() as readers:
        streams = [readers.enter_context(path.open("rb")) for path in paths if path not in gone]
        for path in gone:
            path.unlink()
        assert model_config_folder("sd1") == folder
        assert all(os.fstat(stream.fileno()).st_nlink == 1 for stream in streams)
    assert [path.read_bytes() for path in gone] == contents
    assert {path for path in folder.rglob("*") if path.is_file()} == {*paths}


def test_what_two_processes_learn_of_files_is_kept_for_both(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.touch()
    indexes = [FileIndex("a library") for _ in paths]
    for index, path in zip(indexes, paths):
        index.keep(str(path), path.stat(), {"sha256": path.name})
        index.save()
    third = FileIndex("a library")
    assert [third.known(str(path), path.stat(), "sha256") for path in paths] == ["a", "b"]


# --- the server's


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    return WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.float32)


@pytest.mark.parametrize("listed", ["loras", "embeddings", "upscalers", "controlnets"])
def test_lists_do_not_mind_that_the_worker_lets_the_model_go(pipe, listed):
    shelves = pytest.importorskip("webui_diffusers.pipelines.serve.shelf", reason="needs the extra [serve]")

    class LettingGo(shelves.ModelShelf):
        """The model is gone once somebody has looked at it."""

        @property
        def _pipe(self) -> Any:
            found, self.__dict__["held"] = self.__dict__["held"], None
            return found

        @_pipe.setter
        def _pipe(self, found: Any) -> None:
            self.__dict__["held"] = found

    shelf = LettingGo(WebUIFolder(models_folder=GOLDEN), {}, None)
    shelf._pipe = pipe
    assert getattr(shelf, listed)() is not None


def test_a_preview_leaves_the_vae_to_the_drawing(pipe):
    shelves = pytest.importorskip("webui_diffusers.pipelines.serve.shelf", reason="needs the extra [serve]")
    shelf, progress = shelves.ModelShelf(pipe, {}, None), SimpleNamespace(latents=torch.zeros(1, 4, 8, 8))
    with model_gate().part_lock(pipe.vae):
        assert at_once(lambda: shelf.preview(progress)) == [None]
    assert shelf.preview(progress)
