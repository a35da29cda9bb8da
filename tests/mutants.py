"""Broken and hostile weight files, made from good ones by a fixed seed; for readers that must refuse them in words.

for path in mutated_files({"a.weight": torch.ones(2, 2)}, tmp_path, count=200, seed=0):
    with contextlib.suppress(WeightFileError):
        read(path)
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor


def mutated_files(
    content: Mapping[str, Tensor], folder: Path, *, count: int, seed: int, suffixes: tuple[str, str] = (".pt", "")
) -> Iterator[Path]:
    """`count` files, one after another at the same few paths. suffixes: of pickles; of .safetensors files, where they
    are to have another one."""
    chance = random.Random(seed)
    pickled = folder / f"mutant{suffixes[0]}"
    safe = folder / f"mutant{suffixes[1] or '.safetensors'}"
    for number in range(count):
        kind = number % 4
        if kind == 0:
            safe.write_bytes(_broken_bytes(save(_whole(content)), chance))
            yield safe
        elif kind == 1:
            safe.write_bytes(_broken_header(save(_whole(content)), chance))
            yield safe
        elif kind == 2:
            torch.save(dict(content), pickled, _use_new_zipfile_serialization=chance.random() < 0.5)
            pickled.write_bytes(_broken_bytes(pickled.read_bytes(), chance))
            yield pickled
        else:
            torch.save(_broken_table(content, chance), pickled)
            yield pickled


def _whole(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in content.items()}


def _broken_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut away, doubled or put in, mostly near the beginning."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(min(len(data), chance.choice([64, 512, 1 << 30])) or 1)
        length = chance.choice([1, 1, 2, 8, 64])
        action = chance.randrange(5)
        if action == 0:
            data[place : place + 1] = bytes([chance.randrange(256)])
        elif action == 1:
            del data[place : place + length]
        elif action == 2:
            data[place:place] = data[place : place + length]
        elif action == 3:
            data[place:place] = chance.randbytes(length)
        else:
            del data[len(data) - min(len(data), chance.choice([1, 8, 100, 4000])) :]
    return bytes(data)


def _broken_header(data: bytes, chance: random.Random) -> bytes:
    """A .safetensors file with one entry of its header replaced; the tensors stay as they are."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = chance.choice(list(header))
    part = chance.choice(["dtype", "shape", "data_offsets", "key", "metadata"])
    if part == "key":
        header[chance.choice(["", "__metadata__", "a" * 70000, "\ud800", key + ".0.99999999999"])] = header.pop(key)
    elif part == "metadata":
        header["__metadata__"] = chance.choice([3, None, {"a": 1}, {"ss_tag_frequency": "[" * 5000}, {"b": [1]}])
    else:
        header[key][part] = chance.choice(_HEADER_VALUES)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_HEADER_VALUES = [
    *([0], [1], [1, 1], [2**62, 4], [-1, 2], [0, 0, 0], [1] * 70, [0, 2**63], [8, 4], [0, 8]),
    *("F16", "F8_E4M3", "BOOL", "F128", "", None, 7, 1e400, {"a": []}, [[1]], "I64"),
]


def _broken_table(content: Mapping[str, Tensor], chance: random.Random) -> object:
    """A table with a value or a key of another kind in it, or wrapped in what no program writes."""
    table: dict = dict(content)
    key = chance.choice(list(table))
    shape = chance.choice(_SHAPES)
    table[key] = chance.choice(_VALUES)(table[key], shape)
    if chance.random() < 0.4:
        table[chance.choice(_KEYS)] = table.pop(key)
    return chance.choice(_WRAPPINGS)(table)


_SHAPES = [(), (0,), (1,), (1, 1), (3, 0, 2), (2, 3, 4, 5), (1,) * 9, (70000,)]
_KEYS: list[object] = [1, None, (1, 2), b"x", 2.5, "", "body.999999999.weight", "a.b." * 500, "\ud800"]


def _self_referring(table: dict) -> dict:
    table["state_dict"] = table
    return table


def _looping(table: dict) -> dict:
    outer: dict = {"state_dict": {"state_dict": table}}
    outer["state_dict"]["state_dict"] = outer
    return outer


def _deep(table: dict) -> object:
    for _ in range(150):
        table = {"state_dict": table}
    return table


def _branching(table: dict) -> dict:
    node: list = [0]
    for _ in range(60):
        node = [node, node]
    return {**table, "string_to_param": {"*": node}, "tree": node}


_WRAPPINGS: list[Callable[[dict], object]] = [
    *(lambda table: table,) * 4,
    lambda table: {"state_dict": table},
    lambda table: {"params_ema": table, "params": 3},
    lambda table: {"string_to_param": table},
    lambda table: {"string_to_param": {"*": next(iter(table.values()))}, "step": "x", "name": 7, "sd_checkpoint": {}},
    lambda table: list(table.values()),
    lambda table: {"state_dict": None, **table},
    *(_self_referring, _looping, _deep, _branching),
]

_VALUES: list[Callable[[Tensor, tuple[int, ...]], object]] = [
    *(lambda value, shape: torch.ones(shape),) * 3,
    lambda value, shape: torch.ones(1).expand(1 << 40),
    lambda value, shape: torch.ones(1).as_strided(value.shape, [0] * value.ndim),
    lambda value, shape: torch.ones(shape, device="meta"),
    lambda value, shape: torch.empty(1 << 20, 1 << 20, device="meta"),
    lambda value, shape: torch.ones(2, 2).to_sparse(),
    lambda value, shape: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda value, shape: torch.ones(shape, dtype=torch.int64),
    lambda value, shape: torch.ones(shape, dtype=torch.bool),
    lambda value, shape: torch.ones(shape, dtype=torch.complex64),
    lambda value, shape: torch.full(shape, float("nan")),
    lambda value, shape: torch.full(shape, 1e300, dtype=torch.float64),
    lambda value, shape: torch.nn.Parameter(value.float()),
    lambda value, shape: value.T if value.ndim == 2 else value,
    *(lambda value, shape: None, lambda value, shape: "text", lambda value, shape: 10**400, lambda value, shape: {}),
    lambda value, shape: [value, [value]],
]
