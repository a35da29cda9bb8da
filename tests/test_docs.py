"""The documentation says what the code does: every argument is in it, and pages that are made are as they are made."""

import inspect
import re
import runpy
from pathlib import Path

import pytest
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("pipeline", [WebUITxt2ImgPipeline, WebUIImg2ImgPipeline])
def test_the_page_of_arguments_has_every_one(pipeline: type):
    said = set(re.findall(r"`(\w+)`", (DOCS / "arguments.md").read_text()))
    takes = set(inspect.signature(pipeline.__call__).parameters) - {"self", "kwargs"}
    assert not takes - said, f"docs/arguments.md lacks {sorted(takes - said)}"


def test_the_page_of_arguments_names_none_that_is_not_there():
    takes = {
        name
        for pipe in (WebUITxt2ImgPipeline, WebUIImg2ImgPipeline)
        for name in inspect.signature(pipe.__call__).parameters
    }
    rows = [
        line.split(" | ")[0] for line in (DOCS / "arguments.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert not named - takes


def test_the_page_of_words_is_as_the_tables_of_fields_have_it():
    made = runpy.run_path(str(DOCS / "make_words.py"))["page_text"]()
    assert (DOCS / "words.md").read_text() == made, "run python docs/make_words.py"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_sites_contents():
    listed = set(re.findall(r"(\w+\.md)", (DOCS.parent / "mkdocs.yml").read_text()))
    assert {page.name for page in PAGES} == listed
