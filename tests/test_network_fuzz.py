"""Damaged and hostile network files: each is a NetworkError, or acts as a network does, and costs what its size is."""

import json
import pickle
import random
import struct
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora.library import NetworkLibrary
from webui_diffusers.loaders.lora.merge import merged_networks
from webui_diffusers.loaders.lora.peft_adapters import attach_network
from webui_diffusers.loaders.lora.read import read_network


# --- a model of four layers, and a file of every family for it ---

LINEAR, CONV, NORM, OUT = (
    "lora_unet_down_blocks_0_attentions_0_proj_in",
    "lora_unet_conv_in",
    "lora_unet_down_blocks_0_attentions_0_norm",
    "unet.time_embedding.linear_1",
)


def small_pipe():
    unet = nn.Module()
    unet.conv_in = nn.Conv2d(4, 8, 3)
    block = unet.down_blocks = nn.Module()
    for name in ("0", "attentions", "0"):
        block.add_module(name, nn.Module())
        block = getattr(block, name)
    block.proj_in, block.norm = nn.Linear(8, 8), nn.GroupNorm(2, 8)
    unet.time_embedding = nn.Module()
    unet.time_embedding.linear_1 = nn.Linear(8, 8, bias=False)
    return SimpleNamespace(unet=unet.requires_grad_(False))


def family_files(draw):
    def some(*shape):
        return torch.randn(*shape, generator=draw)

    number = torch.tensor
    return {
        "lora": {LINEAR: {"lora_up.weight": some(8, 2), "lora_down.weight": some(2, 8), "alpha": number(1.0)},
                 CONV: {"lora_up.weight": some(8, 2, 1, 1), "lora_down.weight": some(2, 4, 1, 1),
                        "lora_mid.weight": some(2, 2, 3, 3)},
                 OUT: {"lora_A.weight": some(2, 8), "lora_B.weight": some(8, 2),
                       "lora_magnitude_vector": some(8).abs()}},
        "loha": {LINEAR: {f"hada_w{n}_{s}": some(*(8, 2) if s == "a" else (2, 8)) for n in "12" for s in "ab"},
                 CONV: {f"hada_{part}": some(*shape) for n in "12" for part, shape in
                        ((f"w{n}_a", (2, 8)), (f"w{n}_b", (2, 4)), (f"t{n}", (2, 2, 3, 3)))}},
        "lokr": {LINEAR: {"lokr_w1": some(2, 2), "lokr_w2_a": some(4, 1), "lokr_w2_b": some(1, 4),
                          "alpha": number(1.0)},
                 CONV: {"lokr_w1_a": some(2, 1), "lokr_w1_b": some(1, 2), "lokr_w2_a": some(1, 4),
                        "lokr_w2_b": some(1, 2), "lokr_t2": some(1, 1, 3, 3), "alpha": number(1.0)}},
        "full": {LINEAR: {"diff": some(8, 8), "diff_b": some(8), "bias": some(8, 8)},
                 CONV: {"diff": some(8, 4, 3, 3)}},
        "norm": {NORM: {"w_norm": some(8), "b_norm": some(8)}},
        "ia3": {LINEAR: {"weight": some(8), "on_input": number(1)}, CONV: {"weight": some(4), "on_input": number(1)}},
        "glora": {LINEAR: {"a1.weight": some(8, 2), "a2.weight": some(2, 8), "b1.weight": some(8, 2),
                           "b2.weight": some(2, 8), "alpha": number(1.0)}},
        "oft": {LINEAR: {"oft_blocks": some(2, 4, 4), "alpha": number(0.0), "rescale": some(8, 1)},
                CONV: {"oft_blocks": some(2, 2, 4, 4)}},
        "dora": {LINEAR: {"lora_up.weight": some(8, 2), "lora_down.weight": some(2, 8), "dora_scale": some(1, 8),
                          "scale": number(0.5)}},
    }  # fmt: skip


def flat(layers):
    return {f"{layer}.{part}": value for layer, parts in layers.items() for part, value in parts.items()}


# --- what may happen to a file ---


def another_shape(choose, tensors):
    key = choose.choice(list(tensors))
    shapes = [
        (),
        (0,),
        (1,),
        (8,),
        (8, 2),
        (2, 8),
        (8, 0),
        (3, 5),
        (2, 8, 1),
        (8, 2, 1, 1),
        (2, 4, 3, 3),
        (1, 1, 1, 1, 1),
    ]
    return {**tensors, key: torch.ones(choose.choice(shapes))}


def another_dtype(choose, tensors):
    key = choose.choice(list(tensors))
    kinds = (torch.int64, torch.bool, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.complex64,
             torch.float8_e4m3fn)  # fmt: skip
    return {**tensors, key: tensors[key].to(choose.choice(kinds))}


def another_value(choose, tensors):
    key = choose.choice(list(tensors))
    value = choose.choice((0.0, 1e-30, 1e30, 3e38, -3e38, float("nan"), float("inf"), 1e300))
    return {**tensors, key: torch.full_like(tensors[key], value, dtype=torch.float64)}


def another_name(choose, tensors):
    key = choose.choice(list(tensors))
    names = (f"{key}.default", key[: choose.randrange(len(key) + 1)], f"{LINEAR}.{choose.choice(PARTS)}",
             f"{OUT}.{choose.choice(PARTS)}", "bundle_emb.x", f"bundle_emb.{key}", "unet.lora_A.weight",
             f"base_model.model.{key}", f"diffusion_model.{key}", "lora_unet_conv_in", ".", "")  # fmt: skip
    return {choose.choice(names) if name == key else name: value for name, value in tensors.items()}


def one_less(choose, tensors):
    gone = choose.choice(list(tensors))
    return {key: value for key, value in tensors.items() if key != gone}


def one_more(choose, tensors):
    return {**tensors, f"{choose.choice((LINEAR, CONV, NORM, OUT))}.{choose.choice(PARTS)}": torch.ones(8, 2)}


def byte_changes(choose, content):
    content = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        content[choose.randrange(min(len(content), 600))] = choose.randrange(256)
    return bytes(content[: choose.choice((len(content), len(content), choose.randrange(len(content))))])


METADATA = [
    *(
        {"lora_adapter_metadata": text}
        for text in (
            *(
                "null",
                "[]",
                "{",
                '{"unet.r": 0}',
                '{"unet.r": "x"}',
                '{"unet.rank_pattern": 5}',
                '{".r": 2}',
                "[" * 9999,
            ),
            *('{"unet": null}', '{"unet.alpha_pattern": {"(a+)+": 1}, "unet.lora_alpha": 1e400}'),
        )
    ),
    {"ss_tag_frequency": '{"a": {"b": 1e999}}'},
    {"ss_network_args": "[" * 9999},
    {"ss_base_model_version": "flux"},
]
PARTS = (
    *(
        "lora_up.weight",
        "lora_down.weight",
        "lora_mid.weight",
        "alpha",
        "scale",
        "dora_scale",
        "diff",
        "diff_b",
        "bias",
    ),
    *("w_norm", "b_norm", "weight", "on_input", "hada_t1", "lokr_w1", "lokr_w2", "lokr_t2", "oft_blocks", "oft_diag"),
    *("rescale", "a1.weight", "bm.weight", "bias", "lora_B.bias", "lora_magnitude_vector"),
)
CHANGES = (another_shape, another_dtype, another_value, another_name, one_less, one_more)


def mutant(choose, files, path):
    """Write a damaged file; -> a word for what was done."""
    tensors = flat(files[choose.choice(list(files))])
    done = [choose.choice(CHANGES) for _ in range(choose.choice((1, 1, 2, 3)))]
    for change in done:
        tensors = change(choose, tensors) if tensors else tensors
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    way = choose.random()
    if way < 0.15:
        odd = ({5: torch.ones(2)}, {("a",): 1.0}, {None: {}}, {"x": [tensors]}, {"state_dict": 3}, {"alpha": "text"},
               {f"{LINEAR}.diff": torch.ones(8, 8).to_sparse()}, {f"{LINEAR}.diff": torch.ones(8, 8, device="meta")},
               {f"{LINEAR}.diff": torch.ones(1, 1).expand(8, 8)}, {f"{LINEAR}.alpha": 1e400})  # fmt: skip
        torch.save({**tensors, **choose.choice(odd)}, path)
    else:
        content = save(tensors, choose.choice([None, None, *METADATA]))
        path.write_bytes(byte_changes(choose, content) if way < 0.4 else content)
    return " ".join(change.__name__ for change in done)


def check_mutants(folder, count, seed):
    choose, files = random.Random(seed), family_files(torch.Generator().manual_seed(seed))
    pipe = small_pipe()
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    ends = {"refused": 0, "applied": 0}
    for number in range(count):
        path = folder / f"m{number % 8}.safetensors"
        what = mutant(choose, files, path)
        semantics = choose.choice(("webui", "reference", "auto"))
        try:
            network = read_network(path)
            for about in ("base", "families", "ranks", "trigger_words", "short_hash", "embeddings"):
                getattr(network, about)
            assert network.table() and repr(network)
            with merged_networks(pipe, [(network, 1, 0.7, choose.choice((None, 1)))], semantics):
                assert all(torch.isfinite(value).all() for value in pipe.unet.state_dict().values()), (number, what)
            ends["applied"] += 1
        except NetworkError as error:
            ends["refused"] += 1
            assert path.name in str(error), (number, what, str(error))
        except Exception as error:
            raise AssertionError(f"mutant {number} of seed {seed} ({what}): {type(error).__name__}") from error
        after = pipe.unet.state_dict()
        assert after.keys() == before.keys(), (number, what)
        assert all(torch.equal(after[key], before[key]) for key in before), (number, what)
    return ends


def test_every_damaged_file_is_refused_or_acts_and_leaves_no_trace(tmp_path):
    ends = check_mutants(tmp_path, 400, seed=1)
    assert min(ends.values()) > 40, ends  # neither all of them broken, nor none


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_thousands_of_damaged_files_are(tmp_path, seed):
    check_mutants(tmp_path, 2400, seed)


def test_damaged_files_as_adapters_are_refused_or_act(tmp_path):
    choose, files = random.Random(5), family_files(torch.Generator().manual_seed(5))
    for number in range(60):
        what = mutant(choose, files, tmp_path / "m.safetensors")
        try:
            attach_network(small_pipe(), read_network(tmp_path / "m.safetensors"), "x")
        except NetworkError:
            continue
        except Exception as error:
            raise AssertionError(f"mutant {number} ({what}): {type(error).__name__}") from error


# --- small files that would cost much ---


def repeated(rows, columns):
    return torch.ones(1, 1).expand(rows, columns)


SMALL_AND_DEAR = {
    "one number as many": {f"{LINEAR}.lora_up.weight": repeated(8, 10**9),
                           f"{LINEAR}.lora_down.weight": repeated(10**9, 8)},
    "an embedding of one number": {"bundle_emb.x.string_to_param.*": repeated(10**6, 10**6),
                                   f"{LINEAR}.diff": torch.ones(8, 8)},
    "many components": {f"{LINEAR}.hada_w{n}_{s}": torch.ones(*(8, 300) if s == "a" else (300, 8))
                        for n in "12" for s in "ab"},
    "many butterfly stages": {f"{LINEAR}.oft_blocks": torch.zeros(200, 4, 2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("what", list(SMALL_AND_DEAR))
def test_a_small_file_costs_little_whatever_it_claims(tmp_path, what):
    torch.save(SMALL_AND_DEAR[what], tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 100_000
    begun = time.process_time()
    for use in (lambda n: merged_networks(small_pipe(), [(n, 1, 1)]).__enter__(), lambda n: attach_network(
        small_pipe(), n, "x"), lambda n: n.embeddings):  # fmt: skip
        try:
            use(read_network(tmp_path / "a.pt"))
        except NetworkError:
            pass
    NetworkLibrary(tmp_path).find("a")
    assert time.process_time() - begun < 5  # none of these would end in an hour


def test_a_state_dict_in_itself_is_refused(tmp_path):
    endless = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "a.pt")
    with pytest.raises(NetworkError, match="a.pt"):
        read_network(tmp_path / "a.pt")


def test_a_header_of_many_levels_is_refused(tmp_path):
    header = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(NetworkError, match="a.safetensors"):
        read_network(tmp_path / "a.safetensors")


def test_a_pickle_that_names_itself_safetensors_is_read_for_what_it_is(tmp_path):
    torch.save(flat({LINEAR: {"diff": torch.ones(8, 8)}}), tmp_path / "a.safetensors")
    assert read_network(tmp_path / "a.safetensors").families == {"full": 1}
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(json.dumps))
    with pytest.raises(NetworkError, match="would run code"):
        read_network(tmp_path / "b.safetensors")
    save_file(flat({LINEAR: {"diff": torch.ones(8, 8)}}), tmp_path / "c.PT")
    assert read_network(tmp_path / "c.PT").families == {"full": 1}
