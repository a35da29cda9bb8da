"""Jobs that several processes share, with some of them killed: none lost, none drawn twice, the same pixels."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webui_diffusers.pipelines.cli.batch import read_jobs
from webui_diffusers.pipelines.cli.jobs import Job, JobFolder, make_jobs, run_jobs
from webui_diffusers.pipelines.infotext import parse_infotext
from webui_diffusers.pipelines.infotext.files import read_infotext, save_picture


# A worker process without any model: what it draws depends on the job alone, and takes a moment.
WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from webui_diffusers.pipelines.cli.jobs import JobFolder, make_jobs, run_jobs

def draw(job):
    time.sleep(0.03)
    seed = job.call["seed"]
    return [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))], [f"seed {seed}"]

jobs = make_jobs([(i, None, {"prompt": "x", "seed": i}) for i in range(1, 41)])
done = run_jobs(jobs, JobFolder(Path(sys.argv[1])), draw)
assert len(done.results) == 40 and not done.failed
"""


def drawn(job: Job) -> tuple[list[Image.Image], list[str]]:
    return [Image.new("RGB", (4, 4), (job.call["seed"] % 256, 0, 0))], [f"seed {job.call['seed']}"]


def jobs_of(*calls: dict) -> list[Job]:
    return make_jobs([(line, None, {"prompt": "x", **call}) for line, call in enumerate(calls, start=1)])


def started(out: Path) -> Counter:
    lines = (out / ".jobs" / "started").read_text().splitlines()
    return Counter(json.loads(line)["line"] for line in lines)


def drawn_again_after_they_were_done(out: Path) -> list[int]:
    starts = [json.loads(line) for line in (out / ".jobs" / "started").read_text().splitlines()]
    done = {path.stem: path.stat().st_mtime for path in records(out)}
    return [start["line"] for start in starts if start["time"] > done[start["key"]]]


def records(out: Path) -> list[Path]:
    return list((out / ".jobs").glob("*.json")) if out.exists() else []


def pixels(out: Path) -> dict[str, bytes]:
    return {path.name: np.array(Image.open(path)).tobytes() for path in out.glob("*.png")}


# 1. One process


def test_every_job_is_drawn_once_and_never_again(tmp_path: Path):
    jobs = jobs_of({"seed": 1}, {"seed": 2}, {"seed": 2})
    for _ in range(2):
        done = run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert [record["line"] for record in done.results] == [1, 2, 3]
    assert started(tmp_path) == {1: 1, 2: 1, 3: 1}
    assert len(pixels(tmp_path)) == 3


def test_jobs_may_be_added_and_moved_between_runs(tmp_path: Path):
    run_jobs(jobs_of({"seed": 1}, {"seed": 2}), JobFolder(tmp_path), drawn)
    run_jobs(jobs_of({"seed": 3}, {"seed": 2}, {"seed": 1}), JobFolder(tmp_path), drawn)
    assert len(pixels(tmp_path)) == 3 and sum(started(tmp_path).values()) == 3


def test_a_job_without_a_seed_gets_the_same_one_each_time():
    first, second = jobs_of({}, {"seed": -1})
    assert first.call["seed"] == jobs_of({})[0].call["seed"] != second.call["seed"]


def test_several_pictures_of_a_job_are_numbered(tmp_path: Path):
    run_jobs(
        make_jobs([(1, "fox", {"prompt": "x", "seed": 1})]),
        JobFolder(tmp_path),
        lambda job: ([Image.new("RGB", (4, 4))] * 2, ["a", "b"]),
    )
    assert sorted(pixels(tmp_path)) == ["fox-1.png", "fox-2.png"]
    assert read_infotext(tmp_path / "fox-2.png") == "b"


def test_a_failed_job_stops_no_other_and_is_tried_again_by_the_next_run(tmp_path: Path):
    def fails_on_two(job: Job):
        if job.call["seed"] == 2:
            raise RuntimeError("out of memory")
        return drawn(job)

    jobs = jobs_of({"seed": 1}, {"seed": 2}, {"seed": 3})
    done = run_jobs(jobs, JobFolder(tmp_path), fails_on_two)
    assert len(done.results) == 2
    assert [(f["line"], f["error"]) for f in done.failed] == [(2, "RuntimeError: out of memory")]
    time.sleep(0.02)
    done = run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert len(done.results) == 3 and not done.failed and started(tmp_path)[2] == 2


def test_an_interrupt_leaves_complete_files_only(tmp_path: Path):
    def interrupted_on_two(job: Job):
        if job.call["seed"] == 2:
            raise KeyboardInterrupt
        return drawn(job)

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs_of({"seed": 1}, {"seed": 2}), JobFolder(tmp_path), interrupted_on_two)
    assert len(pixels(tmp_path)) == 1 and not list(tmp_path.rglob("*.part"))


def test_a_kill_between_record_and_names_redraws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs = jobs_of({"seed": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JobFolder, "_name_files", lambda self, record: (_ for _ in ()).throw(KeyboardInterrupt))
        run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert not pixels(tmp_path)
    run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert len(pixels(tmp_path)) == 1 and started(tmp_path) == {1: 1}


# 2. What counts as done, and which names are free


def several(count: int):
    """A drawing of so many pictures."""
    return lambda job: ([Image.new("RGB", (8, 8), (job.call["seed"], i, 0)) for i in range(count)], ["t"] * count)


def by_count(job: Job):
    return several(job.count)(job)


def named(line: int, name: str, count: int) -> tuple[int, str, dict]:
    return line, name, {"prompt": "a", "seed": line, "num_images_per_prompt": count}


def test_no_picture_is_written_over_another_or_over_a_file_of_the_users(tmp_path: Path):
    Image.new("RGB", (3, 3)).save(tmp_path / "y-1.png")
    calls = [("x", 2), ("x-1", 1), ("X-3", 1), ("y", 2), ("z", 3)]
    listed = [
        (n, name, {"prompt": "a", "seed": n, "num_images_per_prompt": c}) for n, (name, c) in enumerate(calls, 1)
    ]
    for _ in range(2):
        done = run_jobs(make_jobs(listed), JobFolder(tmp_path), by_count)
    files = [[file["path"] for file in record["files"]] for record in done.results]
    assert files == [
        ["x-2.png", "x-4.png"],
        ["x-1.png"],
        ["X-3.png"],
        ["y-2.png", "y-3.png"],
        ["z-1.png", "z-2.png", "z-3.png"],
    ]
    assert len(pixels(tmp_path)) == 10 and Image.open(tmp_path / "y-1.png").size == (3, 3)


def test_a_call_that_makes_more_pictures_than_it_said_takes_free_names(tmp_path: Path):
    Image.new("RGB", (3, 3)).save(tmp_path / "x-2.png")
    done = run_jobs(make_jobs([(1, "x", {"prompt": "a", "seed": 1})]), JobFolder(tmp_path), several(2))
    assert [file["path"] for file in done.results[0]["files"]] == ["x-1.png", "x-2-2.png"]
    assert Image.open(tmp_path / "x-2.png").size == (3, 3)


def test_a_picture_that_is_gone_is_drawn_again_under_its_name(tmp_path: Path):
    jobs = make_jobs(
        [(1, "x", {"prompt": "a", "seed": 1, "num_images_per_prompt": 2}), (2, "y", {"prompt": "a", "seed": 2})]
    )
    run_jobs(jobs, JobFolder(tmp_path), by_count)
    (tmp_path / "x-2.png").unlink()
    run_jobs(jobs, JobFolder(tmp_path), by_count)
    assert sorted(pixels(tmp_path)) == ["x-1.png", "x-2.png", "y.png"] and started(tmp_path) == {1: 2, 2: 1}


def test_a_picture_that_somebody_edited_stays(tmp_path: Path):
    jobs = jobs_of({"seed": 1})
    (record,) = run_jobs(jobs, JobFolder(tmp_path), drawn).results
    path = tmp_path / record["files"][0]["path"]
    Image.new("RGB", (90, 90), "red").save(path)
    run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert started(tmp_path) == {1: 1} and Image.open(path).size == (90, 90)
    path.write_bytes(path.read_bytes()[:60])  # what a power cut leaves
    run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert started(tmp_path) == {1: 2} and Image.open(path).size == (4, 4)


def test_another_format_and_another_name_are_other_pictures(tmp_path: Path):
    call = {"prompt": "a", "seed": 1}
    run_jobs(make_jobs([(1, "x", call)]), JobFolder(tmp_path), drawn)
    run_jobs(make_jobs([(1, "x", call)]), JobFolder(tmp_path, "webp"), drawn)
    run_jobs(make_jobs([(1, "y", call)]), JobFolder(tmp_path), drawn)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["x.png", "x.webp", "y.png"]
    run_jobs(make_jobs([(1, "x", call)]), JobFolder(tmp_path), drawn)
    assert sorted(pixels(tmp_path)) == ["x.png", "y.png"] and started(tmp_path) == {1: 4}


def test_a_job_that_was_changed_takes_the_place_of_what_it_made_before(tmp_path: Path):
    for seed in (1, 2, 1):
        done = run_jobs(make_jobs([(1, "x", {"prompt": "a", "seed": seed})]), JobFolder(tmp_path), drawn)
        assert np.array(Image.open(tmp_path / "x.png"))[0, 0, 0] == seed
    assert list(pixels(tmp_path)) == ["x.png"] and len(done.results) == 1


def test_a_record_that_was_cut_short_costs_its_own_job_only(tmp_path: Path):
    jobs = jobs_of({"seed": 1}, {"seed": 2}, {"seed": 3})
    run_jobs(jobs, JobFolder(tmp_path), drawn)
    for job, content in zip(jobs, ("", '{"files": [{"path": "../x", "waiting": "y", "infotext": ""}]}')):
        (tmp_path / ".jobs" / f"{job.key}.json").write_text(content)
    (tmp_path / ".jobs" / "stray.json").write_text("")
    done = run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert len(done.results) == 3 and started(tmp_path) == {1: 2, 2: 2, 3: 1} and len(pixels(tmp_path)) == 3


def test_lines_that_moved_are_reported_where_they_are(tmp_path: Path):
    run_jobs(jobs_of({"seed": 1}, {"seed": 2}), JobFolder(tmp_path), drawn)
    done = run_jobs(jobs_of({"seed": 2}, {"seed": 1}), JobFolder(tmp_path), drawn)
    assert [record["line"] for record in done.results] == [1, 2]


def test_a_failing_job_is_tried_once_a_run_whatever_the_clocks_say(tmp_path: Path):
    tried = []

    def fails(job: Job):
        tried.append(job.line)
        raise ValueError("bad")

    for run in range(3):
        os.utime(tmp_path, (run, run))
        assert (
            run_jobs(jobs_of({"seed": 1}, {"seed": 2}), JobFolder(tmp_path), fails).failed[1]["error"]
            == "ValueError: bad"
        )
        for path in (tmp_path / ".jobs").glob("*.failed"):
            os.utime(path, (9e9 * run, 9e9 * run))  # long ago, or to come
    assert tried == [1, 2] * 3


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs = jobs_of({"seed": 1}, {"seed": 2}, {"seed": 3})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="line 2 could not be saved.*No space left"):
        save = Image.Image.save

        def full(self, fp, *args, **kwargs):
            if self.getpixel((0, 0))[0] == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(self, fp, *args, **kwargs)

        patch.setattr(Image.Image, "save", full)
        run_jobs(jobs, JobFolder(tmp_path), drawn)
    assert len(pixels(tmp_path)) == 1 and not list(tmp_path.rglob("*.part"))
    assert len(run_jobs(jobs, JobFolder(tmp_path), drawn).results) == 3 and started(tmp_path) == {1: 1, 2: 2, 3: 1}


def test_the_cost_of_a_job_does_not_grow_with_their_number(tmp_path: Path):
    """Counted in calls of the system, which a busy machine does not change."""

    def opened(count: int) -> float:
        calls = 0

        def count_calls(event: str, _: object) -> None:
            nonlocal calls
            calls += counting and event in ("open", "os.listdir", "os.scandir", "os.rename", "os.remove")

        jobs, counting = jobs_of(*({"seed": seed} for seed in range(count))), True
        sys.addaudithook(count_calls)
        run_jobs(jobs, JobFolder(tmp_path / str(count)), drawn)
        counting = False
        return calls / count

    assert opened(400) < 1.2 * opened(40)


# 3. Many processes, and kill -9


def test_a_process_that_begins_while_another_finishes_a_job_takes_no_picture_for_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jobs = jobs_of(*({"seed": seed} for seed in range(5)))
    listdir = os.listdir

    def listdir_while_another_works(folder: Path) -> list[str]:
        found = listdir(folder)
        others = JobFolder(tmp_path)
        if left := [job for job in jobs if not others.is_done(job)]:
            others.keep(left[0], drawn(left[0]))
        return found

    folder = JobFolder(tmp_path)
    monkeypatch.setattr(os, "listdir", listdir_while_another_works)
    folder.check_names(jobs)
    assert len(run_jobs(jobs, folder, drawn).results) == 5 and len(pixels(tmp_path)) == 5


def test_a_picture_that_is_being_drawn_again_is_named_by_who_draws_it(tmp_path: Path):
    (job,) = jobs_of({"seed": 1})
    run_jobs([job], JobFolder(tmp_path), drawn)
    (named,) = tmp_path.glob("*.png")
    named.unlink()
    drawing, other = JobFolder(tmp_path), JobFolder(tmp_path)
    drawing.check_names([job])
    with ThreadPoolExecutor() as pool, drawing.claimed(job):
        drawing._wait(job, 0, drawn(job)[0][0], "new")
        ended = pool.submit(other.finish_names, [job])
        time.sleep(0.2)
        assert not named.exists()
        drawing.keep(job, drawn(job))
        assert named.exists()
    ended.result(10)
    assert drawing.is_done(job) and not list((tmp_path / ".jobs").glob("*.png"))


def test_processes_that_are_killed_lose_nothing_and_draw_nothing_twice(tmp_path: Path):
    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stderr=subprocess.PIPE)

    def wait_for(count: int) -> None:
        end = time.time() + 60
        while len(records(tmp_path)) < count and time.time() < end:
            time.sleep(0.01)

    first, second = start(), start()
    wait_for(6)
    first.kill()
    wait_for(14)
    second.kill()
    first.wait(), second.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    finished = {json.loads(path.read_text())["line"] for path in records(tmp_path)}
    assert 14 <= len(finished) < 40
    third, fourth = start(), start()
    assert (third.wait(60), fourth.wait(60)) == (0, 0), (third.stderr.read(), fourth.stderr.read())
    assert len(pixels(tmp_path)) == 40 and not list((tmp_path / ".jobs").glob("*.png"))
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    twice = {line for line, times in started(tmp_path).items() if times > 1}
    assert len(twice) <= 2  # only what was in work when its process was killed
    assert not drawn_again_after_they_were_done(tmp_path)
    for path in tmp_path.glob("*.png"):
        seed = int(read_infotext(path).split()[1])
        assert np.array_equal(
            np.array(Image.open(path)), np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
        )


@pytest.mark.slow
def test_forty_jobs_with_accelerate_and_a_kill_in_the_middle_are_those_of_one_process(tmp_path: Path, tiny_sd: Path):
    jobs = tmp_path / "jobs.jsonl"
    prompts = ["a red circle", "a (blue:1.3) square", "[a ring:a cross:0.5]", "a green triangle AND black"]
    lines = [json.dumps({"prompt": prompts[i % 4], "seed": i, "num_inference_steps": 3 + i % 3}) for i in range(40)]
    jobs.write_text("\n".join(lines))
    options = ["--model", str(tiny_sd), "--width", "64", "--height", "64", "--sampler", "DPM++ 2M SDE"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m"]
    batch = ["webui_diffusers.pipelines.cli", "batch", str(jobs), *options, "--out"]
    out, alone = tmp_path / "two", tmp_path / "one"
    launch = subprocess.Popen([*command, *batch, str(out)], start_new_session=True, env=quiet())
    while len(records(out)) < 12 and launch.poll() is None:
        time.sleep(0.05)
    os.killpg(launch.pid, signal.SIGKILL)
    launch.wait()
    time.sleep(0.5)
    finished = {json.loads(path.read_text())["line"] for path in records(out)}
    assert 12 <= len(finished) < 40
    again = subprocess.run([*command, *batch, str(out), "--json"], capture_output=True, text=True, env=quiet())
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout.splitlines()[-1])
    assert [job["line"] for job in told["done"]] == list(range(1, 41)) and told["failed"] == []
    twice = {line for line, times in started(out).items() if times > 1}
    assert len(started(out)) == 40 and len(twice) <= 2 and not twice & finished
    assert not drawn_again_after_they_were_done(out)
    subprocess.run([sys.executable, "-m", *batch, str(alone)], check=True, env=quiet())
    assert len(pixels(out)) == 40 and pixels(out) == pixels(alone)
    seeds = [int(parse_infotext(read_infotext(path))["Seed"]) for path in sorted(out.glob("*.png"))]
    assert seeds == list(range(40))


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# 4. Errors


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"prompt": ', "no JSON"),
        ('{"seed": 1}', "no `prompt`"),
        ('{"prompt": "x", "sampelr": "Euler"}', "Did you mean 'sampler'"),
        ('{"prompt": "x", "webui_options": {"s_chrn": 1}}', "s_churn"),
        ('{"prompt": "x", "hires_size": "12"}', "640x960"),
        (
            '{"prompt": "x", "num_inference_steps": "20"}',
            "must be a whole number from 1 on; got '20'",
        ),
        ('{"prompt": "x", "num_inference_steps": 2.5}', "`num_inference_steps`"),
        ('{"prompt": "x", "guidance_scale": NaN}', "NaN is no number"),
        ('{"prompt": "x", "guidance_scale": true}', "`guidance_scale` must be a number"),
        ('{"prompt": "x", "width": -8}', "`width`"),
        ('{"prompt": "x", "tiling": "yes"}', "`tiling` must be true or false"),
        ('{"prompt": "x", "seed": [1, "2"]}', "`seed`"),
        ('{"prompt": "x", "hires_size": [64]}', "`hires_size`"),
        ('{"prompt": "x", "loras": {"ink": "much"}}', "`loras`"),
        ('{"prompt": "x", "loras": ["ink"]}', "`loras`"),
        ('{"prompt": "x", "sampler": 5}', "`sampler` must be a text"),
        ('{"prompt": "x", "webui_options": {"s_churn": "much"}}', "`s_churn` must be a number"),
        ('{"prompt": "x", "webui_options": []}', "`webui_options`"),
        ('{"prompt": 5}', "`prompt`"),
        ('{"prompt": "x", "seed": 1, "seed": 2}', "`seed` stands there twice"),
        ('{"prompt": "x", "from": ["a.png"]}', "`from`"),
        ('{"prompt": ' + "[" * 100_000, "nested too deeply"),
        ('{"prompt": "x", "name": ".."}', "file's name"),
        ('{"prompt": "x", "from": "none.png"}', "does not exist"),
    ],
)
def test_a_wrong_line_is_told_before_anything_is_drawn(tmp_path: Path, line: str, told: str):
    path = tmp_path / "jobs.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n# a comment\n\n{line}\n')
    with pytest.raises(ValueError, match="line 4") as error:
        read_jobs(path, {}, None)
    assert told in str(error.value)


def test_values_of_json_have_the_form_that_the_call_wants(tmp_path: Path):
    path = tmp_path / "jobs.jsonl"
    given = {"prompt": "x\u2028y", "hires_size": [64, 0], "num_inference_steps": 20.0, "loras": [["ink", 1, 0.5]]}
    path.write_text(json.dumps({**given, "width": None, "sampler": None}, ensure_ascii=False), encoding="utf-8")
    (job,) = read_jobs(path, {"width": 64, "seed": 1}, None)
    assert job.call["hires_size"] == (64, 0) and job.call["loras"] == [("ink", 1, 0.5)]
    assert job.call["num_inference_steps"] == 20 and isinstance(job.call["num_inference_steps"], int)
    assert job.call["prompt"] == "x\u2028y" and "width" not in job.call and job.call["sampler"] is None


def test_a_folder_of_pictures_is_a_job_for_each(tmp_path: Path):
    for name, seed in (("b.png", 2), ("a.png", 1), ("a.webp", 3)):
        text = f"a cat\nSteps: 3, Sampler: Euler, Seed: {seed}, Size: 64x64"
        save_picture(Image.new("RGB", (8, 8)), tmp_path / name, text)
    jobs = read_jobs(tmp_path, {}, "m")
    assert [(job.name, job.call["seed"]) for job in jobs] == [("a.png", 1), ("a.webp", 3), ("b", 2)]
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "bare.png")
    with pytest.raises(ValueError, match="bare.png` holds no parameters"):
        read_jobs(tmp_path, {}, "m")


def test_lines_without_braces_are_prompts(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    jobs = read_jobs(path, {"seed": 5}, "m")
    assert [(job.call["prompt"], job.call["seed"], job.call["model"]) for job in jobs] == [
        ("a cat", 5, "m"),
        ("a dog", 5, "m"),
    ]


def test_two_jobs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="lines 1 and 2 have the same name"):
        make_jobs([(1, "Fox", {"prompt": "a"}), (2, "fox", {"prompt": "b"})])


def test_a_file_that_is_not_of_a_batch_is_not_written_over(tmp_path: Path):
    (tmp_path / "fox.png").write_bytes(b"mine")
    jobs = make_jobs([(1, "fox", {"prompt": "a", "seed": 1})])
    with pytest.raises(ValueError, match="there already"):
        JobFolder(tmp_path).check_names(jobs)
