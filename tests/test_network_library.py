"""Networks by name, and what a prompt's tags ask of them."""

import json
import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN
from safetensors.torch import save_file
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora.block_weights import SD_BLOCKS, SDXL_BLOCKS, block_strengths
from webui_diffusers.loaders.lora.library import NetworkLibrary, NetworkMention, lora_hashes_text, network_mentions
from webui_diffusers.pipelines.prompt.network_tags import split_network_tags


LORA = GOLDEN / "lora"
TAGS = json.loads((LORA / "tags.json").read_text()) if (LORA / "tags.json").is_file() else {"prompts": []}


# tags -> networks, in order
MENTIONS = [
    ("<lora:moxin>", [("moxin", 1, 1, None)]),
    ("<lora:moxin:0.8>", [("moxin", 0.8, 0.8, None)]),
    ("<lora:moxin:0.8:0.5:8>", [("moxin", 0.8, 0.5, 8)]),
    ("<lora:moxin:unet=0.2>", [("moxin", 1, 0.2, None)]),
    ("<lora:moxin:te=0.2>", [("moxin", 0.2, 0.2, None)]),
    ("<lora:moxin:1:0.5:8:dyn=2>", [("moxin", 1, 0.5, 2)]),
    ("<lora:moxin:foo=3:0.9>", [("moxin", 0.9, 0.9, None)]),
    ("<lora:moxin: .5 :1e-1>", [("moxin", 0.5, 0.1, None)]),
    ("<lora:a><lyco:b><lora:c>", [("a", 1, 1, None), ("c", 1, 1, None), ("b", 1, 1, None)]),
    ("<lyco:b><lora:a>", [("b", 1, 1, None), ("a", 1, 1, None)]),
    ("<lora:a:.5><lora:a:.9>", [("a", 0.9, 0.9, None), ("a", 0.9, 0.9, None)]),
    ("<hypernet:a:1>", []),
    ("<LORA:a:1>", []),
]


def mentions(prompt):
    return network_mentions(split_network_tags(prompt)[1])


@pytest.mark.parametrize(("prompt", "wanted"), MENTIONS)
def test_tags_ask_for_networks(prompt, wanted):
    assert mentions(prompt) == [NetworkMention(*mention) for mention in wanted]


@pytest.fixture(scope="module")
def library():
    if not (LORA / "lookup_dir").is_dir():
        pytest.skip("needs the recorded folder")
    return NetworkLibrary(LORA / "lookup_dir")


@pytest.mark.goldens
@pytest.mark.parametrize("row", TAGS["prompts"], ids=lambda row: row["prompt"])
def test_a_prompts_tags_find_the_files_that_they_find_in_the_webui(library, row):
    if row["errors"]:  # the webui drops all of the prompt's networks, and draws
        with pytest.raises(ValueError, match="number"):
            mentions(row["prompt"])
        return
    found, missing, hashes = [], [], []
    for name, te, unet, dyn in mentions(row["prompt"]):
        entry = library.find(name)
        if entry is None:
            missing.append(name.strip())
            continue
        file = entry.path.relative_to(LORA / "lookup_dir").as_posix()
        te, unet = ("nan" if math.isnan(value) else value for value in (te, unet))
        found.append({"file": file, "te": te, "unet": unet, "dyn": dyn})
        hashes.append((name, entry.short_hash))
    assert found == row["networks"]
    assert missing == row["not_found"]
    assert (lora_hashes_text(hashes) or None) == row["infotext_hashes"]


@pytest.mark.goldens
def test_files_have_the_names_aliases_hashes_and_labels_that_the_webui_shows(library):
    entries = {entry.path.relative_to(LORA / "lookup_dir").as_posix(): entry for entry in library.entries}
    for file, row in TAGS["entries"].items():
        entry = entries[file]
        shown = entry.name if entry.alias.lower() in library.forbidden_aliases else entry.alias
        found = (entry.name, entry.alias, shown, entry.short_hash, entry.version_label)
        assert found == tuple(row[key] for key in ("name", "alias", "shown_as", "shorthash", "detected"))
        if row["shorthash"] != "abababababab":
            assert library.find_by_hash(row["shorthash"]).short_hash == row["shorthash"]
    assert sorted(library.forbidden_aliases) == TAGS["forbidden_aliases"]


def lora(path, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    save_file({f"lora_unet_conv_in.{part}": value for part, value in parts.items()}, path, metadata)
    return path


def test_later_folders_hide_files_of_the_same_name_and_numbers_count(tmp_path):
    for file in ("x.safetensors", "b2/x.safetensors", "b10/x.safetensors"):
        lora(tmp_path / file)
    assert NetworkLibrary(tmp_path).find("x").path == tmp_path / "b10/x.safetensors"


def test_an_alias_may_hide_another_files_name_and_two_of_a_kind_name_none(tmp_path):
    lora(tmp_path / "a.safetensors")
    hiding = lora(tmp_path / "b.safetensors", {"ss_output_name": "a"})
    library = NetworkLibrary(tmp_path)
    assert library.find("a").path == tmp_path / "a.safetensors"  # alias `a` is there twice: only the name counts
    lora(tmp_path / "a.safetensors", {"ss_output_name": "c"})
    library.folder = tmp_path
    assert library.find("a").path == hiding
    assert library.find("c").path == tmp_path / "a.safetensors"


def test_a_file_that_came_later_is_found_on_the_second_look(tmp_path):
    library = NetworkLibrary(tmp_path)
    assert library.find("new") is None
    lora(tmp_path / "new.safetensors")
    assert library.network("new").name == "new"


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path):
    path = lora(tmp_path / "a.safetensors")
    library = NetworkLibrary(tmp_path)
    first = library.network("a")
    assert library.network("a") is first
    lora(path, {"ss_v2": "True"})
    assert library.network("a").base == "SD2"


def test_a_file_can_be_added_by_name_and_hides_the_folders(tmp_path):
    lora(tmp_path / "folder" / "x.safetensors")
    mine = lora(tmp_path / "mine.safetensors")
    library = NetworkLibrary(tmp_path / "folder")
    library.add(mine, name="x")
    assert library.find("x").path == mine
    assert [(network.path, *rest) for network, *rest in library.uses(mentions("<lora:x:.5>"))] == [
        (mine, 0.5, 0.5, None)
    ]


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "sub/x", "x.safetensors", "X", " x", ""])
def test_a_name_is_never_a_path(tmp_path, name):
    lora(tmp_path / "x.safetensors")
    lora(tmp_path / "lib" / "sub" / "x.safetensors")
    with pytest.raises(NetworkError, match="Known, in .*: x"):
        NetworkLibrary(tmp_path / "lib").network(name)


def test_a_broken_file_is_known_and_says_what_is_wrong_when_asked_for(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    library = NetworkLibrary(tmp_path)
    assert library.find("broken").alias == "broken"
    with pytest.raises(NetworkError, match="web page"):
        library.network("broken")


@pytest.mark.parametrize("tag", ["<lora:c:abc>", "<lora:c:>", "<lora:c:1:1:2.5>", "<lora:c:te=0.5=3>", "<lora:te=1>"])
def test_a_bad_number_raises_where_the_webui_drops_everything(tag):
    with pytest.raises(ValueError, match="number"):
        mentions(f"<lora:a>{tag}")


@pytest.mark.parametrize("name", ["a:b", "a=b", "a>b", ""])
def test_a_name_that_no_tag_can_hold_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="tag"):
        NetworkLibrary().add(lora(tmp_path / "a.safetensors"), name)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        NetworkLibrary().folder = tmp_path / "nowhere"


@given(te=st.floats(), unet=st.floats(), dyn=st.integers())
def test_any_number_that_python_writes_is_read_back(te, unet, dyn):
    (mention,) = network_mentions([("lora", ("a", repr(te), repr(unet), str(dyn)), {})])
    for value, wanted in zip(mention[1:], (te, unet, dyn)):
        assert value == wanted or math.isnan(wanted)


# --- blocks ---


def test_there_are_seventeen_blocks_of_sd_and_twelve_of_sdxl():
    assert (len(SD_BLOCKS), len(SDXL_BLOCKS)) == (17, 12)
    assert block_strengths([0.5] * 17) == dict.fromkeys(SD_BLOCKS, 0.5)
    assert block_strengths(",".join(["1"] * 12)) == dict.fromkeys(SDXL_BLOCKS, 1.0)
    assert block_strengths({"OUT11": 0, "BASE": 2}) == {"OUT11": 0.0, "BASE": 2.0}


@pytest.mark.parametrize("blocks", [[1], [], "1,2", {"IN99": 1}, {"M00": "x"}, [math.nan] * 12, "a" * 3])
def test_blocks_that_are_none_raise(blocks):
    with pytest.raises(ValueError, match=r"block|number"):
        block_strengths(blocks)


# tag -> block strengths, first step, first step without
STEPS_AND_BLOCKS = [
    ("<lora:a:1:lbw=1,0.5,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0:stop=2>", {"BASE": 1, "IN01": 0.5, "OUT11": 0}, 0, 2),
    ("<lora:a:1:start=3:lbw=" + ",".join(["1"] * 26) + ">", {"IN00": 1, "OUT11": 1}, 3, None),
    ("<lora:a:1:lbw=" + ",".join(["0.5"] * 20) + ">", {"BASE": 0.5, "IN08": 0.5, "M00": 0.5, "OUT08": 0.5}, 0, None),
    ("<lora:a:1:1,0.5" + ",0" * 15 + ">", {"BASE": 1, "IN01": 0.5, "OUT11": 0}, 0, None),
    ("<lora:a:" + ",".join(["0.5"] * 12) + ">", {"BASE": 0.5, "M00": 0.5}, 0, None),
    ("<lora:a:1:lbw=NONE:step=2-5>", {"BASE": 0, "M00": 0}, 2, 5),
    ("<lora:a:1:lbw=ALL:start=-1:stop=0>", {"IN03": 1}, 0, 0),
]


@pytest.mark.parametrize(("tag", "blocks", "start", "stop"), STEPS_AND_BLOCKS)
def test_a_tag_may_name_blocks_and_steps(tag, blocks, start, stop):
    (mention,) = mentions(tag)
    assert {label: mention.blocks[label] for label in blocks} == blocks
    assert (mention.start, mention.stop) == (start, stop)
    assert mention.use == (1, 1, None, mention.blocks)


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("<lora:a:1:lbw=1,2>", "2 block strengths"),
        ("<lora:a:1:lbw=OUTD>", "OUTD"),
        ("<lora:a:1:stop=x>", "whole number"),
    ],
)
def test_blocks_and_steps_that_are_none_say_so(tag, says):
    with pytest.raises(ValueError, match=says):
        mentions(tag)


def test_no_tag_vanishes_without_a_word(caplog):
    assert mentions("<hypernet:x:0.5><lora:a:1:foo=3><wish:come true>") == [NetworkMention("a")]
    said = [record.getMessage() for record in caplog.records]
    for word in ("<hypernet:x:0.5>: hypernetworks are not applied", "foo mean nothing", "<wish:come true>"):
        assert any(word in text for text in said), word


def test_linked_folders_and_endings_in_capitals_are_found(tmp_path):
    other, folder = tmp_path / "other", tmp_path / "folder"
    for place in (other, folder):
        place.mkdir()
    save_file({"lora_unet_conv_in.diff": torch.ones(2, 2)}, other / "Linked.SafeTensors")
    (folder / "elsewhere").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    library = NetworkLibrary(folder)
    assert [entry.name for entry in library.entries] == ["Linked"]
    assert library.network("Linked").path == folder / "elsewhere" / "Linked.SafeTensors"
    assert len(library.entries[0].short_hash) == 12


def test_a_second_look_opens_no_file_and_a_miss_looks_again_only_when_files_came(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "networks"
    for number in range(3):
        (folder / str(number)).mkdir(parents=True)
        metadata = {"ss_output_name": f"alias {number}"}
        save_file({"x": torch.full((2,), float(number))}, folder / f"{number}/net{number}.safetensors", metadata)
        os.utime(folder / str(number), (1, 1))
    os.utime(folder, (1, 1))
    first = NetworkLibrary(folder)
    digest = first.find("alias 2").short_hash
    assert first.find_by_hash(digest).name == first.find_by_hash(digest[:8]).name == "net2"
    monkeypatch.setattr("webui_diffusers.loaders.library.index.safetensors_metadata", lambda path: pytest.fail(path))
    monkeypatch.setattr(
        "webui_diffusers.loaders.library.index.tensor_data_sha256", lambda path, **_: pytest.fail(path)
    )
    second = NetworkLibrary(folder)
    assert second.find("alias 1").name == "net1" and second.find_by_hash(digest).name == "net2"
    before = second.entries
    assert second.find("gone") is None and all(a is b for a, b in zip(before, second.entries))
    monkeypatch.undo()
    save_file({"x": torch.zeros(2)}, folder / "1/gone.safetensors")
    assert second.find("gone").path == folder / "1/gone.safetensors"
