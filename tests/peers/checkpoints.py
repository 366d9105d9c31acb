"""Exchanges checkpoints with Python's safetensors; README.md has the rules.

    build/peers/venv/bin/python tests/peers/checkpoints.py --program build/release/tests/peer_checkpoints

Exit code: 0 passed, 1 a rule was broken, 2 the program could not run.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys

import safetensors
import safetensors.torch
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (1,), (3, 2), (0, 4), (2, 1, 3, 1, 2, 1, 1, 2)]
METADATA = {"format": "pt", "note": 'quotes ", lines \n and \u00fc\u4e2d'}
# What is refused here and not there, each for a reason: parts of our error texts.
OURS_ALONE = [
    "numbers in 'shape', need 8 at most",
    "need F64, F32, F16, BF16, F8_E5M2, F8_E4M3, I64, I32, U8 or BOOL",
    "is BOOL and holds",
    "need whole numbers from 0 to 2^63 - 1",
    "' twice",
    "does not begin with '{'",  # the format's own words
    "nested deeper than the format allows",
]
# Files that are, or nearly are, in order.
REPLACEMENTS = [
    (b'"shape":[1,1]', b'"shape":[1,1,1,1,1,1,1,1,1]'),
    (b'"shape":[1,1]', b'"shape":[]'),
    (b'"shape":[2,3]', b'"shape":[3,2]'),
    (b'"shape":[2,3]', b'"shape":[4294967296,4294967296,0]'),
    (b'"F32"', b'"I32"'),
    (b'"F32"', b'"U32"'),
    (b'"F32"', b'"F64"'),
    (b'"F32"', b'"f32"'),
    (b'"BOOL"', b'"U8"'),
    (b'"BOOL"', b'"I8"'),
    (b'"dtype"', b'"note":{"x":[1,[2]]},"dtype"'),
    (b'"dtype"', b'"note":null,"dtype"'),
    (b'"dtype"', b'"dtype":"F32","dtype"'),
    (b'"k":"v"', b'"k":"v","k":"w"'),
    (b'"k":"v"', b'"k":1'),
    (b'"k":"v"', b''),
    (b'"a":', b'"\\u00e9\\ud83d\\ude00":'),
    (b'"a":', b'"\\ud83d":'),
    (b'"a":', b'"b":'),
    (b'"a":', b'"":'),
    (b'"__metadata__":', b'"__metadata__":{"x":"y"},"__metadata__":'),
]


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def random_bits(shape, dtype, generator):
    """Any bits: NaNs, infinities, subnormals."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(
        0, 256, (count * torch.empty((), dtype=dtype).element_size(),), generator=generator
    )
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def same(a, b):
    return (
        a.keys() == b.keys()
        and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a)
        and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)
    )


def load(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def mutate(data, rng):
    """One fault: a changed, inserted or removed byte or number of the header, or a cut."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = bytearray(data[8 : 8 + length]), data[8 + length :]
    kind = rng.randrange(9)
    if kind == 0:
        header[rng.randrange(length)] = rng.choice(b' {}[]",:0123456789-.eFIBUdtshape\xff')
    elif kind == 1:
        header.insert(rng.randrange(length), rng.choice(b' {}[]",:0123456789-.eE'))
    elif kind == 2:
        del header[rng.randrange(length)]
    elif kind == 3:
        body = body[: rng.randrange(len(body) + 1)] + bytes(rng.randrange(3))
    elif kind == 4:
        digits = [i for i, c in enumerate(header) if chr(c).isdigit()]
        at = rng.choice(digits)
        header[at : at + 1] = rng.choice([b"-1", b"-0", b"1e3", b"2.0", b"18446744073709551615", b"9" * 30])
    elif kind == 5:
        at = rng.randrange(len(body))
        body = body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
    elif kind == 6:
        old, new = rng.choice(REPLACEMENTS)
        header = header.replace(old, new, 1)
    elif kind == 7:
        blanks = [i for i, c in enumerate(header) if c in b":,{}"]
        at = rng.choice(blanks)
        header[at:at] = rng.choice([b" ", b"\n", b"\t", b"\r", b"\0", b"/**/"])
    else:
        return data[: rng.randrange(len(data) + 1)]
    claimed = len(header) if rng.random() < 0.95 else rng.choice([0, 1, 2**62, 2**64 - 1])
    return struct.pack("<Q", claimed) + bytes(header) + body


def forward(weights, prefix):
    x = weights["x"]
    hidden = torch.tanh(x @ weights[prefix + "layers/0/weight"].T + weights[prefix + "layers/0/bias"])
    return hidden @ weights[prefix + "layers/1/weight"].T + weights[prefix + "layers/1/bias"]


def main():
    parser = argparse.ArgumentParser(description="exchange checkpoints with Python's safetensors")
    parser.add_argument("--program", required=True, help="called as PROGRAM FOLDER")
    parser.add_argument("--work", default=str(ROOT / "build/peers/checkpoints"))
    parser.add_argument("--damaged", type=int, default=5000, help="damaged files (default 5000)")
    arguments = parser.parse_args()

    work = pathlib.Path(arguments.work)
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{str(dtype).removeprefix('torch.')}/{list(shape)}": random_bits(shape, dtype, generator)
        for dtype in DTYPES
        for shape in SHAPES
    }
    safetensors.torch.save_file(tensors, work / "in/all.safetensors", metadata=METADATA)
    safetensors.torch.save_file({}, work / "in/empty.safetensors")
    weights = {
        "net/layers/0/weight": torch.randn(5, 3, generator=generator),
        "net/layers/0/bias": torch.randn(5, generator=generator),
        "net/layers/1/weight": torch.randn(2, 5, generator=generator),
        "net/layers/1/bias": torch.randn(2, generator=generator),
        "x": torch.randn(7, 3, generator=generator),
    }
    safetensors.torch.save_file(weights, work / "weights.safetensors")
    few = {"a": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.bool), "c": torch.ones(1, 1)}
    data = safetensors.torch.save(few, metadata={"k": "v"})
    rng = random.Random(1)
    damaged = {f"damaged{i}.safetensors": mutate(data, rng) for i in range(arguments.damaged)}
    for name, content in damaged.items():
        (work / "in" / name).write_bytes(content)
    try:
        code = subprocess.run([arguments.program, str(work)]).returncode
    except OSError as error:
        print(f"checkpoints: cannot start {arguments.program}: {error.strerror}", file=sys.stderr)
        return 2
    if code != 0:
        print(f"checkpoints: {arguments.program} ended with code {code}", file=sys.stderr)
        return 2

    faults = []

    def check(good, what):
        if not good:
            faults.append(what)

    back, metadata = load(work / "out/all.safetensors")
    check(same(back, tensors) and metadata == METADATA, "all dtypes come back with the same bits")
    check(load(work / "out/empty.safetensors")[0] == {}, "a file without tensors comes back")
    theirs = load(work / "y_theirs.safetensors")[0]["y"]
    check(torch.allclose(theirs, forward(weights, "net/"), rtol=1e-6, atol=1e-6), "their weights, our net")
    ours, metadata = load(work / "ours.safetensors")
    check(metadata == {"iteration": "3"}, "metadata of a checkpoint")
    moved = load(work / "y_ours.safetensors")[0]["y"]
    y = forward(ours | {"x": weights["x"]}, "model/")
    check(torch.allclose(moved, y, rtol=1e-6, atol=1e-6), "our checkpoint, their net")
    check(not torch.allclose(moved, theirs, rtol=1e-2), "the net has been trained")
    check(ours["optimiser/adam/layers/0/weight/step"].item() == 3, "the step count of Adam")

    refused = json.loads((work / "out/refused.json").read_text())
    counts = collections.Counter()
    for name, content in damaged.items():
        try:
            expected = safetensors.torch.load(content)
        except Exception as error:  # the package raises several kinds
            expected = error
        if isinstance(expected, dict) and name not in refused:
            counts["read by both"] += 1
            check(same(load(work / "out" / name)[0], expected), f"{name}: other tensors")
        elif isinstance(expected, dict):
            counts["refused here alone, for a reason on the list"] += 1
            check(
                any(reason in refused[name] for reason in OURS_ALONE),
                f"{name}: only refused here: {refused[name]}",
            )
        else:
            counts["refused by both"] += 1
            check(name in refused, f"{name}: only refused there: {expected}")
    for fault in faults:
        print(f"checkpoints: FAILED: {fault}")
    print(
        f"checkpoints: {len(tensors)} tensors of {len(DTYPES)} dtypes exchanged with safetensors "
        f"{safetensors.__version__}; damaged files: "
        + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
        + f"; {len(faults)} rules broken"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
