"""Defines the peer problems and writes them as one case file; the layout is in README.md.

    python tests/peers/cases.py OUT.json [--seeds 10]

Numbers are f32 values written with full digits: every program starts from the same bits.
"""

import argparse
import json
import pathlib

import torch

import image_ops

SCHEMA = 1
# halftape's name of a method -> the name a package gives it. torchdiffeq's rk4 is the 3/8 rule.
PEER_METHODS = {
    "torchdiffeq": {"euler": "euler", "midpoint": "midpoint", "rk38": "rk4"},
    "rampde": {"euler": "euler", "rk4": "rk4"},
}


def linspace(end, points):
    return torch.linspace(0.0, end, points, dtype=torch.float32).tolist()


def linear_problem(seed, state=10):
    """dx/dt = -0.01 A^T A x, A ~ N(0, 1), x0 = 1, 100 points on [0, 10]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        "problem": {"kind": "linear", "A": torch.randn(state, state, generator=generator).tolist()},
        "y0": [[1.0] * state],
        "times": linspace(10.0, 100),
    }


def mlp_problem(seed, hidden=50):
    """dy/dt = W2 tanh(W1 y^3 + b1) + b2, weights ~ N(0, 0.1^2), biases 0, y0 = 1.

    1000 points on [0, 25].
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    return {
        "problem": {
            "kind": "mlp",
            "input": "cube",
            "W1": (0.1 * torch.randn(hidden, 2, generator=generator)).tolist(),
            "b1": [0.0] * hidden,
            "W2": (0.1 * torch.randn(2, hidden, generator=generator)).tolist(),
            "b2": [0.0, 0.0],
        },
        "y0": [[1.0, 1.0]],
        "times": linspace(25.0, 1000),
    }


PROBLEMS = {"linear": linear_problem, "mlp": mlp_problem}


def case(name, seed, dtype, method, peers):
    return {
        "id": f"{name}/{dtype}/{method}/{seed}",
        "group": f"{name}/{dtype}/{method}",
        "seed": seed,
        "dtype": dtype,
        "method": method,
        "scaling": "dynamic" if dtype == "f16" else "none",
        "loss": "mean_abs",
        "peers": peers,
    } | PROBLEMS[name](seed)


def all_cases(seeds=10):
    cases = []
    for name in PROBLEMS:
        for method in ("euler", "midpoint", "rk38", "rk4"):
            peers = [p for p, methods in PEER_METHODS.items() if method in methods]
            cases.append(case(name, 0, "f32", method, peers))
    for name in PROBLEMS:
        for dtype in ("f16", "bf16"):
            for method in PEER_METHODS["rampde"]:
                cases += [case(name, seed, dtype, method, ["rampde"]) for seed in range(seeds)]
    return cases


def write(path, cases):
    text, images = (",\n".join(json.dumps(c) for c in x) for x in (cases, image_ops.all_cases()))
    pathlib.Path(path).write_text(
        f'{{"schema": {SCHEMA}, "cases": [\n{text}\n], "image_cases": [\n{images}\n]}}\n'
    )


def main():
    parser = argparse.ArgumentParser(description="write the case file of the peer comparison")
    parser.add_argument("out")
    parser.add_argument(
        "--seeds", type=int, default=10, help="seeds of each f16 and bf16 group (default 10)"
    )
    arguments = parser.parse_args()
    cases = all_cases(arguments.seeds)
    write(arguments.out, cases)
    print(f"{arguments.out}: {len(cases)} cases")


if __name__ == "__main__":
    main()
