"""What a pull request to diffusers' `examples/community` needs: one file a pipeline, and what its README gains."""

import re
from pathlib import Path

from webui_diffusers.pipelines.bundle.build import PIPELINES, bundle, bundle_module_name


CARDS = Path(__file__).parent / "cards"
SOURCE = "https://github.com/huggingface/diffusers/blob/main/examples/community"
README = "README_additions.md"
CUSTOM_PIPELINE = 'custom_pipeline="$repo"'


def write_community(folder: Path, namespace: str) -> list[Path]:
    """Write `<module>.py` of every pipeline that draws with any model, and README_additions.md; the paths.

    namespace: whose repositories on the Hub hold the data files that one file cannot: they are looked for there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, rows, sections = [], [], []
    for name in PIPELINES:
        module, card = bundle_module_name(name), (CARDS / f"{name}.md").read_text(encoding="utf-8")
        if CUSTOM_PIPELINE not in card:
            continue  # it comes with parts of its own, from a repository of its own
        file = folder / f"{module}.py"
        file.write_text(bundle(name, home=f"{namespace}/{name}"), encoding="utf-8", newline="\n")
        written.append(file)
        title, summary, example = _title(name), _summary(card), _example(card, module)
        author = f"[{namespace}](https://github.com/{namespace})"
        rows.append(f"| {title} | {summary} | [{title}](#{_anchor(title)}) | - | {author} |")
        source = f"Source: [{file.name}]({SOURCE}/{file.name})"
        sections.append(f"### {title}\n\n{summary}\n\n```python\n{example}```\n\n{source}")
    readme = folder / README
    table = "Rows of the table:\n\n" + "\n".join(rows)
    readme.write_text(
        f"{table}\n\nSections below it:\n\n" + "\n\n".join(sections) + "\n", encoding="utf-8", newline="\n"
    )
    return [*written, readme]


def _title(name: str) -> str:
    """A heading out of a pipeline's name on the Hub.

    >>> _title("webui-txt2img"), _title("multi-lora-xl")
    ('WebUI txt2img', 'Multi LoRA XL')
    """
    words = {"webui": "WebUI", "lora": "LoRA", "xl": "XL"}
    first, *rest = (words.get(word, word) for word in name.split("-"))
    return " ".join([first[0].upper() + first[1:], *rest])


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _summary(card: str) -> str:
    """The first paragraph below a card's heading, in one line."""
    body = re.split(r"^# .*$", card, maxsplit=1, flags=re.MULTILINE)[1].strip()
    return " ".join(body.partition("\n\n")[0].split())


def _example(card: str, module: str) -> str:
    """A card's first example, with the name by which diffusers finds a community pipeline."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    return code.replace(CUSTOM_PIPELINE, f'custom_pipeline="{module}"')
