"""What all pipelines with networks can be told and asked: files by name, adapters that stay, merged ones that do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..loaders.lora.kept import release_networks
from ..loaders.lora.library import NamesNetworks, NetworkLibrary
from ..loaders.lora.peft_loading import load_network_as_adapter
from ..loaders.lora.plan import NetworkReport
from .call_state import models_had, own_call


class LoraMethods(NamesNetworks):
    """What all pipelines with networks have in common. It goes before diffusers' pipeline among the bases."""

    keep_networks: bool = False  # whether merged networks stay on after a call; see `unload_networks`

    @property
    def networks(self) -> NetworkLibrary:
        """The network files that are known by name."""
        return self.__dict__.setdefault("_networks", NetworkLibrary())

    def unload_networks(self) -> None:
        """Take out the networks that `keep_networks = True` left in the weights; every bit is as in the checkpoint.

        With `keep_networks`, a call leaves its merged networks where they are, and the next one that asks for the same
        starts at once. Calls that ask for others, and those of other pipelines of this package on the same models,
        exchange them by themselves; before anybody else reads the weights (`state_dict`, `copy`, a pipeline of
        diffusers' own on the same models, `fuse_lora`), call this. `save_pretrained` does.
        """
        with own_call(self, changes=True):
            release_networks(self)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own, with the weights of the checkpoint, whatever networks are on."""
        with models_had([self], changes=False):
            release_networks(self)
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a network of any naming and of every family that PEFT holds exactly, as an adapter that stays.

        Arguments are diffusers'. Raises NetworkError for a broken file, another base model, or an inexact family; such
        a file can be merged for a call instead (`loras=`, tags).
        """
        source, stock = pretrained_model_name_or_path_or_dict, self._stock_load_lora_weights
        report = load_network_as_adapter(self, source, adapter_name, fallback=stock, **kwargs)
        self._network_reports: list[NetworkReport] = [] if report is None else [report]

    def network_report(self) -> str:
        """What became of each network of the last call or load: applied, skipped and why, unknown keys."""
        reports: list[NetworkReport] = self.__dict__.get("_network_reports", [])
        return "\n".join(map(str, reports)) or "No networks were in use."

    def _stock_load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own method, for what is no network file."""
        super().load_lora_weights(*args, **kwargs)  # type: ignore[misc]
