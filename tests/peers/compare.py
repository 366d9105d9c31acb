"""Compares halftape with PyTorch packages on the peer problems and writes docs/results/peers.md.

    build/peers/venv/bin/python tests/peers/compare.py --program build/release/tests/peer_cases

Rules: in f32, solution and gradients equal the package's within rtol = atol = 1e-5; in f16 and
bf16, the median over the seeds of (our gradient error / the package's) is at most 1.05, errors being
against f64 on the same discretisation.
Exit code: 0 passed, 1 a rule was broken, 2 a program could not run.
Without --program only the packages run and their errors are printed.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import numpy as np

import cases as case_files
import image_ops

TOLERANCE = 1e-5  # both relative and absolute, f32 rows
RATIO_LIMIT = 1.05  # f16 and bf16 rows
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class CannotRun(Exception):
    pass


def array(nested):
    return np.array(nested, dtype=np.float64)  # strings such as "nan" and "-inf" parse, too


def relative_error(value, reference):
    """2-norm relative error; infinite where the value is not finite."""
    difference = np.linalg.norm((value - reference).ravel())
    return difference / np.linalg.norm(reference.ravel()) if np.isfinite(difference) else np.inf


def excess(ours, peer):
    """Largest difference in units of the tolerance; at most 1 passes."""
    worst = np.max(np.abs(ours - peer) / (TOLERANCE + TOLERANCE * np.abs(peer)))
    return worst if np.isfinite(worst) else np.inf


class Results:
    def __init__(self, path):
        with open(path) as file:
            content = json.load(file)
        if content.get("schema") != case_files.SCHEMA:
            raise CannotRun(f"{path} has schema {content.get('schema')}, need {case_files.SCHEMA}")
        self.versions = content.get("versions", {})
        self.skipped = content.get("skipped", {})
        self.images = {r["id"]: r for r in content["image_results"]}
        self.by_key = {(r["id"], r["package"]): r for r in content["results"]}

    def get(self, case, package):
        return self.by_key.get(
            (case["id"], package), {"status": "failed", "message": f"no result for {case['id']}"}
        )


def gradient_errors(result, reference, names):
    """Relative error of each named gradient, `names` being what every package forms."""
    return {
        n: relative_error(array(result["gradients"][n]), array(reference["gradients"][n]))
        for n in names
    }


def gradient_names(case):
    return ["y0"] + [n for n in case["problem"] if n not in ("kind", "input")]


def mean_error(result, reference, names):
    return float(np.mean(list(gradient_errors(result, reference, names).values())))


def number(x):
    return "-" if x is None else f"{x:.2e}"


def f32_rows(cases, torch_side, our_side):
    rows = []
    for case in (c for c in cases if c["dtype"] == "f32"):
        reference = torch_side.get(case, "reference")
        names = gradient_names(case)
        for package in case["peers"]:
            row = {
                "case": case["group"].split("/")[0],
                "package": package,
                "dtype": "f32",
                "method": case["method"],
                "ours": None,
                "peer": None,
                "ratio": None,
                "note": "",
            }
            rows.append(row)
            if package in torch_side.skipped:
                row["verdict"] = "skipped"
                continue
            peer = torch_side.get(case, package)
            if peer["status"] != "ok":
                row |= {"verdict": "FAILED", "note": f"{package}: {peer['message']}"}
                continue
            row["peer"] = mean_error(peer, reference, names)
            if our_side is None:
                row["verdict"] = "not run"
                continue
            ours = our_side.get(case, "halftape")
            if ours["status"] != "ok":
                row |= {"verdict": "FAILED", "note": f"halftape: {ours['message']}"}
                continue
            row["ours"] = mean_error(ours, reference, names)
            compared = names + (["t"] if "t" in peer["gradients"] else [])
            quantities = {"solution": excess(array(ours["solution"]), array(peer["solution"]))}
            quantities |= {
                n: excess(array(ours["gradients"][n]), array(peer["gradients"][n]))
                for n in compared
            }
            worst = max(quantities, key=quantities.get)
            row["ratio"] = float(quantities[worst])
            row["note"] = f"largest in {worst}"
            row["verdict"] = "passed" if row["ratio"] <= 1.0 else "FAILED"
    return rows


def low_rows(cases, torch_side, our_side):
    groups = {}
    for case in cases:
        if case["dtype"] in ("f16", "bf16"):
            groups.setdefault(case["group"], []).append(case)
    rows = []
    for group, members in groups.items():
        names = gradient_names(members[0])
        problem, dtype, method = group.split("/")
        for package in members[0]["peers"]:
            row = {
                "case": problem,
                "package": package,
                "dtype": dtype,
                "method": method,
                "ours": None,
                "peer": None,
                "ratio": None,
                "note": "",
                "per_tensor": {},
                "peer_per_seed": [],
            }
            rows.append(row)
            if package in torch_side.skipped:
                row["verdict"] = "skipped"
                continue
            pairs, notes = [], []
            for case in members:
                reference = torch_side.get(case, "reference")
                errors = []
                for side, who in ((our_side, "halftape"), (torch_side, package)):
                    result = side.get(case, who) if side else {"status": "absent"}
                    if result["status"] == "ok":
                        errors.append(gradient_errors(result, reference, names))
                    else:
                        errors.append(dict.fromkeys(names, np.inf))
                        if side:
                            notes.append(f"{who} seed {case['seed']}: {result['message']}")
                pairs.append(errors)
            peer_errors = [float(np.mean(list(p.values()))) for _, p in pairs]
            row["peer"] = float(np.median(peer_errors))
            row["peer_per_seed"] = peer_errors
            row["peer_per_tensor"] = {n: float(np.median([p[n] for _, p in pairs])) for n in names}
            row["note"] = "; ".join(notes)
            if our_side is None:
                row["verdict"] = "not run"
                continue
            our_errors = [float(np.mean(list(o.values()))) for o, _ in pairs]
            row["ours"] = float(np.median(our_errors))
            row["ratio"] = float(np.median([ratio(o, p) for o, p in zip(our_errors, peer_errors)]))
            row["per_tensor"] = {
                n: float(np.median([ratio(o[n], p[n]) for o, p in pairs])) for n in names
            }
            # A package that fails in half of its runs is broken here, not beaten.
            yardstick = 2 * sum(np.isfinite(peer_errors)) > len(peer_errors)
            finite = all(np.isfinite(our_errors))
            row["verdict"] = (
                "passed" if finite and yardstick and row["ratio"] <= RATIO_LIMIT else "FAILED"
            )
    return rows


def image_rows(cases, torch_side, our_side):
    """One row an op: the largest difference over its cases, values and gradients."""
    rows = {}
    for case in cases:
        row = rows.setdefault(
            case["op"], {"op": case["op"], "cases": 0, "ratio": 0.0, "note": "", "verdict": "passed"}
        )
        row["cases"] += 1
        peer = torch_side.images[case["id"]]
        ours = our_side.images.get(case["id"], {"status": "failed", "message": "no result"})
        if ours["status"] != "ok":
            row |= {"verdict": "FAILED", "note": f"{case['id']}: {ours['message']}"}
            continue
        for kind in ("values", "gradients"):
            for name, value in peer[kind].items():
                worst = excess(array(ours[kind][name]), array(value))
                if worst > row["ratio"]:
                    of = name if kind == "values" else f"gradient of {name}"
                    row |= {"ratio": float(worst), "note": f"largest in {case['id']}, {of}"}
        if row["ratio"] > 1.0:
            row["verdict"] = "FAILED"
    return list(rows.values())


def ratio(ours, peer):
    """A package that lost its gradient is no yardstick (0); our own loss is never forgiven."""
    if not np.isfinite(ours):
        return np.inf
    return ours / peer if np.isfinite(peer) and peer > 0 else 0.0


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def report(f32, low, images, versions, skipped, command):
    main = [
        [
            r["case"],
            r["package"],
            r["dtype"],
            r["method"],
            number(r["ours"]),
            number(r["peer"]),
            "-" if r["ratio"] is None else f"{r['ratio']:.3f}",
            r["verdict"],
            r["note"],
        ]
        for r in f32 + low
    ]
    tensors = [
        [
            r["case"],
            r["dtype"],
            r["method"],
            ", ".join(f"{n} {v:.2f}" for n, v in r["per_tensor"].items()),
        ]
        for r in low
        if r["per_tensor"]
    ]
    failed = sum(r["verdict"] == "FAILED" for r in f32 + low + images)
    passed = sum(r["verdict"] == "passed" for r in f32 + low + images)
    text = [
        "# halftape and PyTorch packages on the same problems",
        "",
        f"{passed} rows passed, {failed} failed, {len(f32 + low + images) - passed - failed} skipped.",
        "",
        f"Command: `{command}`",
        "",
        "Versions: "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + f", Python {platform.python_version()}, {platform.machine()}, PyTorch on one CPU thread.",
        "",
        *[f"Skipped: {name}: {why}." for name, why in skipped.items()],
        *([""] if skipped else []),
        "Problems (all numbers are in the case file that both sides read, `tests/peers/README.md`):",
        "",
        "- *linear*: dx/dt = -0.01 A^T A x, A a 10 x 10 normal matrix, x0 = 1, 100 points on [0, 10].",
        "- *mlp*: dy/dt = W2 tanh(W1 y^3 + b1) + b2, 50 hidden units, weights N(0, 0.1^2), y0 = 1, "
        "1000 points on [0, 25].",
        "",
        "Loss: mean |y| over all points. Errors are of the gradients (y0 and every parameter: mean of "
        "the relative 2-norm errors of the tensors) against f64 on the same discretisation, so only rounding counts.",
        "",
        "- f32 rows: *ratio* is the largest difference between the two over solution and gradients (with "
        "torchdiffeq also those of the time points), in units of 1e-5 + 1e-5 |value|; at most 1 passes.",
        f"- f16 and bf16 rows: errors are medians over the seeds, *ratio* is the median of ours / peer; at most "
        f"{RATIO_LIMIT} passes.",
        "- rk38 is the 3/8 rule (torchdiffeq's `rk4`), rk4 the classical method. rampde runs with its own defaults "
        "(dynamic scaling in f16, none in bf16), its CUDA autocast redirected to the CPU and its cast of the "
        "inputs to f16 left out, in its favour (`tests/peers/cuda_autocast_on_cpu.py`).",
        "",
        table(
            [
                "case",
                "package",
                "dtype",
                "method",
                "error ours",
                "error peer",
                "ratio",
                "verdict",
                "note",
            ],
            main,
        ),
        "",
    ]
    text += [
        "Image ops next to PyTorch's, in f32: values and the gradients of every operand, from normal draws. "
        "*ratio* as in the f32 rows above; at most 1 passes (`tests/peers/image_ops.py` has the cases).",
        "",
        table(
            ["op", "cases", "ratio", "verdict", "note"],
            [[r["op"], r["cases"], f"{r['ratio']:.3f}", r["verdict"], r["note"]] for r in images],
        ),
        "",
    ]
    if tensors:
        text += [
            "Median ratio per gradient (no verdict, for orientation):",
            "",
            table(["case", "dtype", "method", "ours / peer"], tensors),
            "",
        ]
    return "\n".join(text)


def print_peers_only(f32, low):
    for row in f32:
        print(
            f"{row['case']}/{row['dtype']}/{row['method']} {row['package']}: gradient error {number(row['peer'])}"
        )
    for row in low:
        if row["verdict"] == "skipped":
            print(f"{row['case']}/{row['dtype']}/{row['method']} {row['package']}: skipped")
            continue
        print(
            f"{row['case']}/{row['dtype']}/{row['method']} {row['package']}: median gradient error "
            f"{number(row['peer'])}; per seed "
            + " ".join(number(e) for e in row["peer_per_seed"])
            + "; median per tensor "
            + ", ".join(f"{n} {number(v)}" for n, v in row["peer_per_tensor"].items())
            + (f"; {row['note']}" if row["note"] else "")
        )


def call(arguments):
    try:
        code = subprocess.run(arguments).returncode
    except OSError as error:
        raise CannotRun(f"cannot start {arguments[0]}: {error.strerror}") from error
    if code != 0:
        raise CannotRun(f"{shlex.join(map(str, arguments))} ended with code {code}")


def main():
    parser = argparse.ArgumentParser(description="compare halftape with PyTorch packages")
    parser.add_argument(
        "--program", help="our side: a program called as PROGRAM CASES.json RESULTS.json"
    )
    parser.add_argument(
        "--out", default=str(ROOT / "docs/results/peers.md"), help="the table (default %(default)s)"
    )
    parser.add_argument(
        "--work",
        default=str(ROOT / "build/peers"),
        help="case and result files (default %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="seeds of each f16 and bf16 row (default 10)"
    )
    parser.add_argument(
        "--reuse-torch", action="store_true", help="keep the PyTorch results of the last run"
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds: got {arguments.seeds}, need at least 1")

    work = pathlib.Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    case_file, torch_file, our_file = (
        work / "cases.json",
        work / "torch.json",
        work / "halftape.json",
    )
    cases, image_cases = case_files.all_cases(arguments.seeds), image_ops.all_cases()
    try:
        if not (arguments.reuse_torch and torch_file.exists() and case_file.exists()):
            case_files.write(case_file, cases)
            call(
                [
                    sys.executable,
                    str(pathlib.Path(__file__).with_name("run_torch.py")),
                    str(case_file),
                    str(torch_file),
                ]
            )
        elif [json.loads(case_file.read_text()).get(k) for k in ("cases", "image_cases")] != [
            json.loads(json.dumps(c)) for c in (cases, image_cases)
        ]:
            raise CannotRun(f"{case_file} holds other cases. Fix: leave out --reuse-torch.")
        torch_side = Results(torch_file)
        for case in cases:
            reference = torch_side.get(case, "reference")
            if reference["status"] != "ok":
                raise CannotRun(f"the f64 reference of {case['id']} failed: {reference['message']}")
        our_side = None
        if arguments.program:
            our_file.unlink(missing_ok=True)
            call([arguments.program, str(case_file), str(our_file)])
            our_side = Results(our_file)
    except (CannotRun, OSError, json.JSONDecodeError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2

    for name, why in torch_side.skipped.items():
        print(f"compare: {name} is skipped - {why}")
    f32, low = f32_rows(cases, torch_side, our_side), low_rows(cases, torch_side, our_side)
    if our_side is None:
        print_peers_only(f32, low)
        return 0
    program = os.path.relpath(arguments.program, ROOT)
    command = f"python tests/peers/compare.py --program {'PROGRAM' if program.startswith('..') else program}"
    images = image_rows(image_cases, torch_side, our_side)
    text = report(f32, low, images, our_side.versions | torch_side.versions, torch_side.skipped, command)
    out = pathlib.Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(text)
    part.replace(out)
    print(text)
    print(f"written to {out}")
    return 1 if any(r["verdict"] == "FAILED" for r in f32 + low + images) else 0


if __name__ == "__main__":
    sys.exit(main())
