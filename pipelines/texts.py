"""The texts of a pass, read once: prompts without their network tags, the networks they name, and who encodes them.

`given` is always a call's arguments by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .infotext.from_call import network_tags_text
from .loras import LoraUse, lora_uses
from .prompt.encode import PromptEncoder
from .prompt.network_tags import NetworkTag, split_batch_tags
from .prompt.prompt_2 import SecondTexts, second_texts
from .prompt.text_encoder import PromptSettings


class PassTexts(NamedTuple):
    """Prompts, one an image, and what goes with them."""

    prompts: list[str]  # without network tags
    written: list[str]  # as texts have them: with their tags, and those of `loras` behind
    loras: list[LoraUse]  # for the whole batch
    seconds: SecondTexts | None  # for SDXL's second encoder, without network tags


def pass_texts(pipe: Any, given: Mapping[str, Any], prompts: Sequence[str]) -> PassTexts:
    """The texts of a pass. prompts: one an image, with their tags. Raises NetworkError for an unknown network."""
    plain, tags = split_batch_tags(prompts)
    seconds, more_tags = _second_prompts(given, len(prompts), is_sdxl=pipe.is_sdxl)
    loras = lora_uses(pipe.networks, tags + [tag for tag in more_tags if tag not in tags], given["loras"])
    written = [text + network_tags_text(given["loras"] or ()) for text in prompts]
    return PassTexts(plain, written, loras, seconds)


def prompt_encoder(pipe: Any, given: Mapping[str, Any], loras: Sequence[LoraUse]) -> PromptEncoder | None:
    """None where there are no text encoders, and embeddings stand for the prompts. Without a sampler rows are padded
    as in diffusers."""
    has_encoder = pipe.text_encoder is not None or pipe.text_encoder_2 is not None
    if not has_encoder and given["prompt_embeds"] is not None:
        return None
    return pipe.attached.encoder(pipe, [lora.network for lora in loras], own_padding=given["sampler"] is None)


def prompt_settings(options: Mapping[str, Any], clip_skip: int | None) -> PromptSettings:
    """The options that prompts are read with; `clip_skip` counts skipped layers and wins over the option."""
    return PromptSettings(
        emphasis=options["emphasis"],
        comma_padding_backtrack=options["comma_padding_backtrack"],
        CLIP_stop_at_last_layers=options["CLIP_stop_at_last_layers"] if clip_skip is None else clip_skip + 1,
        sdxl_clip_l_skip=options["sdxl_clip_l_skip"],
        use_old_scheduling=options["use_old_scheduling"],
        enable_prompt_comments=options["enable_prompt_comments"],
    )


def _second_prompts(
    given: Mapping[str, Any], count: int, *, is_sdxl: bool
) -> tuple[SecondTexts | None, list[NetworkTag]]:
    """`prompt_2` and `negative_prompt_2`, one an image, without network tags; and the tags of the first."""

    def each_image(texts: str | Sequence[str] | None) -> str | list[str] | None:
        if texts is None or isinstance(texts, str):
            return texts
        repeats = count // len(texts) if texts and count % len(texts) == 0 else 1
        return [text for text in texts for _ in range(repeats)]

    pair = second_texts(each_image(given["prompt_2"]), each_image(given["negative_prompt_2"]), count, is_sdxl)
    if pair is None or pair[0] is None:
        return pair, []
    texts, tags = split_batch_tags(pair[0])
    return (texts, pair[1]), tags
