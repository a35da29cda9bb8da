"""The images of a request with what is known of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image


@dataclass
class Drawn:
    """Images, their texts, and prompts and seeds of each that is no sheet of others. `first`: the first of these."""

    images: list[Image.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    subseeds: list[int] = field(default_factory=list)
    first: int = 0
    control_images: list[Image.Image] = field(default_factory=list)  # of the last call

    def add(self, images: Sequence[Image.Image], texts: Sequence[str] | None, call: Mapping[str, Any]) -> None:
        """Images of one call, which may make more of them than it has seeds, as loopback does."""
        self.images += images
        self.texts += texts or [""] * len(images)
        for own, name in (
            (self.prompts, "prompt"),
            (self.negatives, "negative_prompt"),
            (self.seeds, "seed"),
            (self.subseeds, "subseed"),
        ):
            given = list(call[name])
            own += given + given[-1:] * (len(images) - len(given)) if len(images) > len(given) else given

    def sheet_before(self, sheet: Image.Image) -> "Drawn":
        """The same with a sheet of the images before them, under the first one's text, as the webui has it."""
        texts = [*self.texts[:1], *self.texts]
        return replace(self, images=[sheet, *self.images], texts=texts, first=self.first + 1)


def joined(parts: Sequence[Drawn]) -> Drawn:
    """The images of several jobs, one after the other."""
    whole = Drawn()
    for part in parts:
        for name in ("images", "texts", "prompts", "negatives", "seeds", "subseeds", "control_images"):
            getattr(whole, name).extend(getattr(part, name))
    return whole
