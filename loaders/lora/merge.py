"""Networks merged into the weights in place, in order, and taken out again without a trace.

>>> with merged_networks(pipe, [(network, 0.8, 0.8)]) as reports:
...     image = pipe(prompt).images[0]

Each touched weight is written once per change of the set, from its original, and the original is put back at the end:
no error adds up, a thousand switches leave every bit as it was. Where the originals are meanwhile: originals.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from ..memory import give_back_memory
from ..model_lock import models_in_use
from ..utils import LOGGER
from ..weight_files import NetworkError
from .originals import CheckpointFiles, kept_original
from .plan import MergeStep, ModuleKey, NetworkReport, network_uses, plan_networks
from .targets import PipeLayers
from .touched import TouchedModule, writable_weight


@contextmanager
def merged_networks(
    pipe: object,
    uses: Iterable[Sequence],
    semantics: str = "webui",
    *,
    strict: bool = True,
    backup_device: torch.device | str | None = None,
) -> Iterator[list[NetworkReport]]:
    """These networks in the weights of `pipe` for one block of code; then every bit as before, whatever happened.

    uses: (network, te, unet), with `dyn` and per-block strengths after them if wanted, in the order of application.
    semantics: "webui", "reference" or "auto"; strict: see plan_networks. backup_device: where copies of the originals
    are kept; by default they are read again from the checkpoint's file, or kept on the CPU where it is not known.
    Gives the reports. Blocks nest: the inner one works on, and restores, what it finds. Other threads wait with their
    calls on the same models until the block ends.
    Raises NetworkError or ValueError with the weights untouched.
    """
    with models_in_use(network_models(pipe), alone=True, is_call=False):
        merger = NetworkMerger(pipe, backup_device)
        try:
            yield merger.switch(uses, semantics, strict=strict)
        finally:
            try:
                merger.restore()
            finally:
                merger.restore()  # where an interrupt cut the first one short; else there is nothing to do


def network_models(pipe: object) -> list[object]:
    """The models of a pipeline that networks change."""
    return [getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")]


class NetworkMerger:
    """Keeps a set of networks merged into a pipeline's weights, and changes the set at little cost.

    >>> merger = NetworkMerger(pipe)
    >>> merger.switch([(a, 1.0, 1.0)])
    >>> merger.switch([(b, 1.0, 0.7)])  # each weight that differs is written once, from its original
    >>> merger.restore()

    A merger that is let go puts the originals back, too.
    """

    reports: list[NetworkReport]  # of the set that is on

    def __init__(self, pipe: object, backup_device: torch.device | str | None = None):
        self.reports = []
        self._pipe = pipe
        self._backup_device = backup_device
        self._files: CheckpointFiles | None = None
        self._touched: dict[ModuleKey, TouchedModule] = {}
        self.models: list[nn.Module] = []  # whose weights may differ from their originals

    @property
    def active(self) -> bool:
        """Whether any weight differs from its original."""
        return bool(self._touched)

    @property
    def bytes_held(self) -> int:
        """What the originals take in memory."""
        return sum(kept.bytes_held for touched in self._touched.values() for kept in touched.originals.values())

    def switch(
        self,
        uses: Iterable[Sequence],
        semantics: str = "webui",
        *,
        strict: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[NetworkReport]:
        """Make these, and no others, the networks that are on. Arguments and errors of merged_networks.

        progress: called with (modules done, modules in all). If anything fails, the set that was on stays on.
        """
        self._check_originals()
        layers = PipeLayers(self._pipe)
        self._leave_replaced(layers)
        self.models = list(layers.components.values())
        plan, reports = plan_networks(layers, network_uses(uses), semantics, strict=strict)
        before = {key: touched.steps for key, touched in self._touched.items()}
        changed = [key for key in {**before, **plan} if before.get(key) != plan.get(key)]
        for key in plan:
            writable_weight(layers.modules[key])
        if self._files is None and self._backup_device is None:
            self._files = CheckpointFiles(layers, self._pipe)
        try:
            for done, key in enumerate(changed):
                self._apply(key, layers, plan.get(key, []))
                if progress is not None:
                    progress(done + 1, len(changed))
        except BaseException:
            self._back_to(before, changed, layers)
            raise
        self.reports = reports
        if changed:
            for network in {id(step.network): step.network for steps in plan.values() for step in steps}.values():
                network.file.forget_pages()
            give_back_memory()
        return reports

    def restore(self) -> None:
        """Put every original back, bit for bit. An interrupt is held until that is done."""
        try:
            changed = bool(self._touched)
            self._put_all_back()
        except KeyboardInterrupt:
            self.restore()
            raise
        self.reports, self._files = [], None
        if changed:
            give_back_memory()

    def __reduce__(self) -> tuple:
        raise NetworkError(
            "Networks are merged into this pipeline's weights, so a copy of it would take changed weights for its "
            "own. Take them out first: `pipe.unload_networks()`."
        )

    def __del__(self) -> None:
        if getattr(self, "_touched", None):
            try:
                self._put_all_back()
            except (NetworkError, RuntimeError) as error:
                LOGGER.error("%s", error)

    def _put_all_back(self) -> None:
        """Raises NetworkError for the first original that is lost, after all the others are back."""
        lost: NetworkError | None = None
        for key, touched in list(self._touched.items()):
            try:
                touched.put_back()
                del self._touched[key]
            except NetworkError as error:
                lost = lost or error
        if lost is not None:
            raise lost

    def _check_originals(self) -> None:
        for touched in self._touched.values():
            for original in touched.originals.values():
                original.check()

    def _apply(self, key: ModuleKey, layers: PipeLayers, steps: list[MergeStep]) -> None:
        touched = self._touched.get(key)
        if not steps:
            if touched is not None:
                touched.put_back()
                del self._touched[key]
            return
        if touched is None:
            touched = self._touched[key] = self._new_touched(key, layers.modules[key], layers)
        touched.write(steps)

    def _new_touched(self, key: ModuleKey, module: nn.Module, layers: PipeLayers) -> TouchedModule:
        device = torch.device(self._backup_device or "cpu")
        return TouchedModule(module, partial(kept_original, self._files, key, device), layers.fused_projection(key))

    def _back_to(self, before: dict[ModuleKey, list[MergeStep]], changed: list[ModuleKey], layers: PipeLayers) -> None:
        """Undo a half-made switch; if even that is cut short, to the originals."""
        try:
            for key in changed:
                self._apply(key, layers, before.get(key, []))
        except BaseException:
            self.restore()
            raise

    def _leave_replaced(self, layers: PipeLayers) -> None:
        """Modules that the caller has exchanged since: restore the old ones, begin anew with the others."""
        for key, touched in list(self._touched.items()):
            if layers.modules.get(key) is not touched.module:
                touched.put_back()
                del self._touched[key]
