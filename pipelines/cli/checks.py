"""What can be refused before a model is loaded, all at once: names that nothing here is called by, missing files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...loaders.utils import unknown_choice
from .models import ModelSetup, model_problem, with_model_checked


def check_calls(calls: Iterable[Mapping[str, Any]], setup: ModelSetup) -> None:
    """Raises ValueError with everything that would stop the calls, each thing once. Loads no weights."""
    problems: dict[str, None] = {}
    try:
        with_model_checked(setup)
    except ValueError as error:
        problems[str(error)] = None
    checks = CallChecks(setup)
    for embedding in setup.embeddings:
        if problem := model_problem("--embedding", embedding):
            problems[problem] = None
    for call in calls:
        problems |= dict.fromkeys(checks.problems(call))
    if len(problems) == 1:
        raise ValueError(next(iter(problems)))
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"{len(problems)} things are in the way, and nothing was loaded:\n  {lines}")


class CallChecks:
    """Checks of calls against what one setup has; folders are looked through once."""

    def __init__(self, setup: ModelSetup) -> None:
        self._setup = setup
        self._library: Any = None

    def problems(self, call: Mapping[str, Any]) -> list[str]:
        """What is wrong with the names in a call, a sentence each."""
        return [*self._samplers(call), *self._choices(call), *self._files(call), *self._networks(call)]

    def _samplers(self, call: Mapping[str, Any]) -> Iterable[str]:
        from ..sampling.samplers import resolve_sampler

        first = call.get("sampler"), call.get("schedule")
        pairs = {("sampler", "schedule"): first}
        if call.get("hires_sampler") or call.get("hires_schedule"):
            second = call.get("hires_sampler") or first[0], call.get("hires_schedule") or first[1]
            pairs[("hires_sampler", "hires_schedule")] = second
        for (sampler, schedule), (name, label) in pairs.items():
            if name is None:
                if label is not None:
                    yield f"`{schedule}` is {label!r}, and no `{sampler}` is named that it could be of."
                continue
            try:
                resolve_sampler(name, label)
            except ValueError as error:
                yield str(error)

    def _choices(self, call: Mapping[str, Any]) -> Iterable[str]:
        from ..registry import LORA_BACKENDS
        from ..sampling.noise import NOISE_SOURCES

        for argument, known in (("noise_source", NOISE_SOURCES), ("lora_backend", (*LORA_BACKENDS, "peft"))):
            if call.get(argument) not in (None, *known):
                yield unknown_choice(f"`{argument}`:", call[argument], known)

    def _files(self, call: Mapping[str, Any]) -> Iterable[str]:
        from ...loaders.upscaler import UPSCALER_LABELS
        from ..images.hires import LATENT_UPSCALERS
        from ..images.upscale import PIXEL_FILTERS

        labels = (*LATENT_UPSCALERS, *PIXEL_FILTERS, *UPSCALER_LABELS, "None")
        wanted = {"--upscaler": self._setup.upscaler}
        if call.get("hires_scale") or any(call.get("hires_size") or ()):
            wanted["hires_upscaler"] = call.get("hires_upscaler")
        for argument, name in wanted.items():
            if not name or name in labels or Path(name).expanduser().exists():
                continue
            if "/" not in name:
                yield unknown_choice(f"`{argument}`: upscaler", name, labels)
            elif problem := model_problem(argument, name):
                yield problem
        face = self._setup.face_restorer
        if face and ("/" in face or "." in face) and (problem := model_problem("--face-restorer", face)):
            yield problem

    def _networks(self, call: Mapping[str, Any]) -> Iterable[str]:
        from ...loaders.lora.library import NetworkLibrary, network_mentions
        from ..prompt.network_tags import split_batch_tags

        loras = call.get("loras") or {}
        names = [str(entry if isinstance(loras, Mapping) else entry[0]) for entry in loras]
        for argument in ("prompt", "hires_prompt"):
            texts = call.get(argument) or []
            _, tags = split_batch_tags([texts] if isinstance(texts, str) else list(texts))
            names += [mention.name for mention in network_mentions(tags)]
        if self._library is None and names:
            self._library = NetworkLibrary(self._setup.lora_folder)
        folder = self._setup.lora_folder
        for name in dict.fromkeys(names):
            if Path(name).expanduser().exists() or self._library.find(name) is not None:
                continue
            if folder is None:
                yield f"LoRA {name!r} is asked for, and no folder is named to find it in: give --lora-folder."
            else:
                known = [entry.name for entry in self._library.entries]
                yield (
                    f"{unknown_choice('LoRA', name, known)} Looked for in `{folder}`."
                    if known
                    else (f"LoRA {name!r} is asked for, and `{folder}` has no network files.")
                )
