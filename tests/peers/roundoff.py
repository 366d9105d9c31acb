"""Rounding error against the number of steps: PyTorch packages beside examples/roundoff.cpp.

    python tests/peers/roundoff.py CHECKPOINT.safetensors RESULTS.json [--batches 5] [--largest 4096]

The flow of the checkpoint (a run of examples/cnf), batches of 16 points of 2spirals, t from 0 to 1 in N
steps, loss -mean(log N(z(1); 0, I) + l(1)); as there, errors are relative 2-norms against the same
package, method and N in f64, and the median over batches is written:
    {"versions": {..}, "rows": [{package, method, precision, metric, steps, error}, ..]}
rampde scales f16 by its own DynamicScaler. torchdiffeq's loss is multiplied in f16 by 2^16 or the
largest smaller power of two with which every gradient is finite; its `rk4` is the 3/8 rule.
RAMPDE_PATH and RAMPDE_ORIGIN as in run_torch.py.
"""

import argparse
import itertools
import json
import math
import statistics
import sys

import safetensors.torch
import torch

from cuda_autocast_on_cpu import redirected
from run_torch import DTYPES, load_rampde, rampde_origin

WIDTH = 128
STEPS = (64, 256, 1024, 4096)
METHODS = ("euler", "rk4")
PARAMETERS = ("W0", "b0", "W1", "b1", "W2", "b2")


class HyperFlow(torch.nn.Module):
    """dz/dt = f(z, t), dl/dt = -tr df/dz, with weights W, V, G, b that a network of t makes."""

    def __init__(self, weights, dtype):
        super().__init__()
        for layer in range(3):
            for name, kind in (("W", "weight"), ("b", "bias")):
                value = weights[f"model/layers/{layer}/{kind}"].to(dtype)
                setattr(self, f"{name}{layer}", torch.nn.Parameter(value))

    def forward(self, t, state):
        z, _ = state
        linear = torch.nn.functional.linear
        hidden = torch.tanh(linear(t.reshape(1, 1), self.W0, self.b0))
        hidden = torch.tanh(linear(hidden, self.W1, self.b1))
        made = linear(hidden, self.W2, self.b2)[0]
        w, v, g = (made[k * 2 * WIDTH : (k + 1) * 2 * WIDTH].reshape(WIDTH, 2) for k in range(3))
        u = v * torch.sigmoid(g)
        h = torch.tanh(z @ w.T + made[6 * WIDTH :])
        high = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
        u_dot_w = (u * w).sum(1, keepdim=True)
        trace = (1 - high**2).to(h.dtype) @ u_dot_w
        return (h @ u) * (1 / WIDTH), trace * (-1 / WIDTH)


def two_spirals(count, generator):
    half = count // 2
    uniform = lambda: torch.rand(half, 1, generator=generator, dtype=torch.float64)
    radius = uniform().sqrt() * 3 * math.pi
    x = torch.cat(
        (
            -radius.cos() * radius + uniform() * 0.5,
            radius.sin() * radius + uniform() * 0.5,
        ),
        dim=1,
    )
    points = torch.cat((x, -x)) / 3
    return (points + 0.1 * torch.randn(count, 2, generator=generator, dtype=torch.float64)).float()


def solve(odeint, weights, points, method, steps, precision, scale):
    """Trajectories and gradients; the latter divided by `scale`, with which the loss is multiplied."""
    dtype = torch.float64 if precision == "f64" else torch.float32
    low = DTYPES[precision]
    flow = HyperFlow(weights, dtype)
    z = points.detach().clone().to(dtype).requires_grad_()
    l = torch.zeros(len(points), 1, dtype=dtype, requires_grad=True)
    times = torch.linspace(0, 1, steps + 1, dtype=dtype)
    with torch.autocast("cuda", dtype=low, enabled=precision != "f64"):
        all_z, all_l = odeint(flow, (z, l), times, method=method)
    last = all_z[-1].to(dtype)
    density = (-(last**2) / 2 - math.log(2 * math.pi) / 2).sum(1, keepdim=True)
    (-(density + all_l[-1].to(dtype)).mean() * scale).backward()
    gradients = {name: getattr(flow, name).grad for name in PARAMETERS}
    parts = {"z": all_z, "l": all_l, "z0": z.grad / scale, "l0": l.grad / scale}
    parts |= {name: g / scale for name, g in gradients.items()}
    return {name: part.detach().double() for name, part in parts.items()}


def errors(solved, exact):
    relative = {
        name: ((solved[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact
    }
    result = {
        "solution": (relative["z"] + relative["l"]) / 2,
        "gradient y0": (relative["z0"] + relative["l0"]) / 2,
    }
    return result | {f"gradient {name}": relative[name] for name in PARAMETERS}


def solve_scaled(odeint, weights, points, method, steps, precision, scales_itself):
    scale = 2.0**16 if precision == "f16" and not scales_itself else 1.0
    while True:
        solved = solve(odeint, weights, points, method, steps, precision, scale)
        finite = all(part.isfinite().all() for part in solved.values())
        if finite or scales_itself or scale <= 2.0**-4:
            return solved
        scale /= 2


def median_errors(odeint, package, weights, batches, method, steps):
    """{(precision, metric): the median over batches}."""
    found = {}
    for points in batches:
        with redirected():
            exact = solve(odeint, weights, points, method, steps, "f64", 1.0)
            for precision in ("f16", "bf16"):
                solved = solve_scaled(
                    odeint, weights, points, method, steps, precision, package == "rampde"
                )
                for metric, error in errors(solved, exact).items():
                    found.setdefault((precision, metric), []).append(error)
    return {key: statistics.median(values) for key, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description="rounding error of PyTorch packages")
    parser.add_argument("checkpoint")
    parser.add_argument("results")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--largest", type=int, default=max(STEPS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weights = safetensors.torch.load_file(arguments.checkpoint)
    import torchdiffeq

    versions = {"torch": torch.__version__, "torchdiffeq": torchdiffeq.__version__}
    packages = {"torchdiffeq": torchdiffeq.odeint}
    rampde, why_not = load_rampde()
    if rampde:
        versions["rampde"] = f"{getattr(rampde, '__version__', 'unknown')} ({rampde_origin()})"
        packages["rampde"] = rampde.odeint
    else:
        print(f"roundoff: skipping rampde - {why_not}", file=sys.stderr)
    generator = torch.Generator().manual_seed(0)
    batches = [two_spirals(16, generator) for _ in range(arguments.batches)]
    rows = []
    for package, method in itertools.product(packages, METHODS):
        for steps in (n for n in STEPS if n <= arguments.largest):
            medians = median_errors(packages[package], package, weights, batches, method, steps)
            for (precision, metric), error in medians.items():
                row = {"package": package, "method": method, "precision": precision}
                rows.append(row | {"metric": metric, "steps": steps, "error": error})
                if metric in ("solution", "gradient y0"):
                    print(
                        f"  {package:<12} {method:<6} {precision:<5} N = {steps:<5} {metric:<12} {error:.2e}",
                        flush=True,
                    )
    with open(arguments.results, "w") as file:
        json.dump({"versions": versions, "batches": arguments.batches, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
