"""WebUIFiles: the component of a modular pipeline that knows networks, embeddings and upscalers by name."""

from pathlib import Path
from typing import Any

from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config

from ...loaders.lora.library import NamesNetworks, NetworkLibrary
from ...loaders.lora.plan import NetworkReport
from ..registry import Attachments


class WebUIFiles(NamesNetworks, ConfigMixin):
    """What the pipelines of this pack know by name, for blocks. Several pipelines may share one.

    lora_folder, embeddings_folder: looked through for names in prompts, with the folders in them.

    >>> pipe.webui_files.add_lora("style.safetensors")
    >>> pipe(prompt="a fox <lora:style:0.8>", output="images")
    """

    config_name = "webui_files.json"
    attached: Attachments
    reports: list[NetworkReport]  # of the last call

    @register_to_config
    def __init__(self, lora_folder: str | None = None, embeddings_folder: str | None = None):
        self.attached = Attachments()
        self.reports = []
        self.attached.library.folder = lora_folder
        self.attached.embeddings_folder = None if embeddings_folder is None else Path(embeddings_folder)

    @property
    def networks(self) -> NetworkLibrary:
        """The network files that are known by name."""
        return self.attached.library

    def add_embedding(self, path: str | Path, name: str | None = None) -> str:
        """Make a textual inversion known to prompts, by `name` or its own. Returns it."""
        return self.attached.add_embedding(path, name)

    def network_report(self) -> str:
        """What became of each network of the last call: applied, skipped and why, unknown keys."""
        return "\n".join(map(str, self.reports)) or "No networks were in use."

    def __deepcopy__(self, memo: dict[int, Any]) -> "WebUIFiles":
        return self  # files are read once, however often a pipeline's description is copied
