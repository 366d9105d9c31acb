"""Runs the PyTorch side of a case file and writes a result file; both layouts are in README.md.

    python tests/peers/run_torch.py CASES.json RESULTS.json

For every case: the packages it names, and `reference`, a plain loop over the Butcher tableau in f64
through which autograd differentiates (the same discretisation, so that only rounding differs).
RAMPDE_PATH names a checkout of rampde when it is not installed; RAMPDE_ORIGIN says in words what it
holds when it has no git history. One thread, CPU only.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import torch

import cases as case_files
import image_ops
from cuda_autocast_on_cpu import redirected

DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# a: rows of the strictly lower triangle, b: weights (autonomous problems need no c).
TABLEAUS = {
    "euler": ([[]], [1]),
    "midpoint": ([[], [1 / 2]], [0, 1]),
    "rk4": ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "rk38": ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]),
}


class Linear(torch.nn.Module):
    """f(x) = -0.01 A^T A x for rows x, as two products: nothing depends on A alone."""

    def __init__(self, problem, dtype):
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor(problem["A"], dtype=dtype))

    def forward(self, t, x):
        return -((x @ self.A.transpose(0, 1)) @ self.A) * 1e-2


class Mlp(torch.nn.Module):
    """f(y) = W2 tanh(W1 y^3 + b1) + b2 for rows y."""

    def __init__(self, problem, dtype):
        super().__init__()
        for name in ("W1", "b1", "W2", "b2"):
            setattr(self, name, torch.nn.Parameter(torch.tensor(problem[name], dtype=dtype)))

    def forward(self, t, y):
        # pow runs in f32 under CUDA autocast; the cast says so where the CPU's autocast does not.
        cube = (y.float() if y.dtype in (torch.float16, torch.bfloat16) else y) ** 3
        hidden = torch.tanh(torch.nn.functional.linear(cube, self.W1, self.b1))
        return torch.nn.functional.linear(hidden, self.W2, self.b2)


VELOCITIES = {"linear": Linear, "mlp": Mlp}


def load_rampde():
    """The package, imported under the redirection, or the reason why there is none."""
    path = os.environ.get("RAMPDE_PATH")
    if path:
        sys.path.insert(0, path)
    try:
        with redirected():
            return importlib.import_module("rampde"), None
    except Exception as error:  # any failure of a foreign import is a reason to skip, never to stop
        # The reason is printed in the table, which names no folder of this machine.
        reason = str(error).replace(path, "RAMPDE_PATH") if path else str(error)
        hint = "check RAMPDE_PATH" if path else "set RAMPDE_PATH to a checkout, or install it"
        return None, f"rampde cannot be imported ({type(error).__name__}: {reason}; {hint})"


def rampde_origin():
    """Which code ran: the version number alone does not tell a checkout from a release."""
    path = os.environ.get("RAMPDE_PATH")
    if not path:
        return "installed by setup.sh"
    if (pathlib.Path(path) / ".git").exists():
        commit = subprocess.run(
            ["git", "-C", path, "describe", "--always", "--dirty"], capture_output=True, text=True
        )
        if commit.returncode == 0:
            return f"checkout at {commit.stdout.strip()}"
    return os.environ.get("RAMPDE_ORIGIN", "a copy of unknown origin")


def mean_abs(solution):
    # Formed in f32 from the returned trajectory. What a package returns in half precision gets its
    # cotangent rounded to half on the way back: that is part of what is compared.
    high = solution if solution.dtype == torch.float64 else solution.float()
    return high.abs().mean()


def solve_reference(case, velocity, y0, times):
    a, b = TABLEAUS[case["method"]]
    y, states = y0, [y0]
    for i in range(len(times) - 1):
        h = times[i + 1] - times[i]
        slopes = []
        for row in a:
            stage = y
            for weight, k in zip(row, slopes):
                if weight:
                    stage = stage + h * weight * k
            slopes.append(velocity(None, stage))
        y = y + h * sum(weight * k for weight, k in zip(b, slopes) if weight)
        states.append(y)
    return torch.stack(states)


def solve_torchdiffeq(case, velocity, y0, times):
    import torchdiffeq

    method = case_files.PEER_METHODS["torchdiffeq"][case["method"]]
    return torchdiffeq.odeint(velocity, y0, times, method=method)


def solve_rampde(case, velocity, y0, times, rampde):
    low = DTYPES[case["dtype"]]
    # The package's own default for the dtype: DynamicScaler for f16, none otherwise.
    with torch.autocast("cuda", dtype=low, enabled=case["dtype"] in ("f16", "bf16")):
        return rampde.odeint(velocity, y0, times, method=case["method"])


def numbers(tensor):
    """Nested lists with full digits; non-finite numbers as strings, because JSON has none."""

    def text(value):
        if isinstance(value, list):
            return [text(v) for v in value]
        return value if math.isfinite(value) else str(value)

    return text(tensor.detach().to(torch.float64).tolist())


def run(case, package, solve, dtype, time_gradient):
    velocity = VELOCITIES[case["problem"]["kind"]](case["problem"], dtype)
    y0 = torch.tensor(case["y0"], dtype=dtype, requires_grad=True)
    times = torch.tensor(case["times"], dtype=dtype, requires_grad=time_gradient)
    result = {"id": case["id"], "package": package}
    start = time.perf_counter()
    try:
        solution = solve(case, velocity, y0, times)
        loss = mean_abs(solution)
        loss.backward()
    except Exception as error:
        return result | {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    gradients = {"y0": y0.grad} | {name: p.grad for name, p in velocity.named_parameters()}
    if time_gradient:
        gradients["t"] = times.grad
    missing = [name for name, g in gradients.items() if g is None]
    if missing:
        return result | {"status": "failed", "message": f"no gradient for {', '.join(missing)}"}
    return result | {
        "status": "ok",
        "loss": numbers(loss),
        "solution": numbers(solution),
        "gradients": {name: numbers(g) for name, g in gradients.items()},
        "seconds": time.perf_counter() - start,
    }


def main():
    parser = argparse.ArgumentParser(description="run the PyTorch side of a case file")
    parser.add_argument("cases")
    parser.add_argument("results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with open(arguments.cases) as file:
        content = json.load(file)
    if content.get("schema") != case_files.SCHEMA:
        sys.exit(
            f"run_torch: {arguments.cases} has schema {content.get('schema')}, need {case_files.SCHEMA}"
        )
    rampde, why_not = load_rampde()
    skipped = {} if rampde else {"rampde": why_not}
    if why_not:
        print(f"run_torch: skipping rampde - {why_not}", file=sys.stderr)
    import torchdiffeq

    versions = {"torch": torch.__version__, "torchdiffeq": torchdiffeq.__version__}
    if rampde:
        version = getattr(rampde, "__version__", "unknown")
        versions["rampde"] = f"{version} ({rampde_origin()})"
    results = []
    for number, case in enumerate(content["cases"], 1):
        # rampde forms no time gradients for a state with a batch axis.
        results.append(run(case, "reference", solve_reference, torch.float64, True))
        if "torchdiffeq" in case["peers"]:
            results.append(run(case, "torchdiffeq", solve_torchdiffeq, DTYPES[case["dtype"]], True))
        if "rampde" in case["peers"] and rampde:
            with redirected():
                results.append(
                    run(case, "rampde", lambda *a: solve_rampde(*a, rampde), torch.float32, False)
                )
        if sys.stderr.isatty() or number % 20 == 0 or number == len(content["cases"]):
            print(
                f"\rrun_torch: {number} of {len(content['cases'])} cases", end="", file=sys.stderr
            )
    print(file=sys.stderr)
    images = [image_ops.run(case, numbers) for case in content["image_cases"]]
    with open(arguments.results, "w") as file:
        json.dump(
            {
                "schema": case_files.SCHEMA,
                "versions": versions,
                "skipped": skipped,
                "results": results,
                "image_results": images,
            },
            file,
        )


if __name__ == "__main__":
    main()
