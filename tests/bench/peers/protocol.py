"""What every Python worker of the end-to-end benchmark shares: the case file, the command loop, the
gradient error and the peak of the resident memory. The protocol is described in README.md.
"""

import argparse
import ctypes
import json
import os
import sys
import time

import numpy as np


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", required=True, help="case file written by our worker's --dump")
    parser.add_argument("--precision", default="f32", choices=["f64", "f32", "f16", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    return parser


class Case:
    """The content of a case file, arrays in f64 (their values are f32 numbers)."""

    def __init__(self, path):
        with open(path) as file:
            content = json.load(file)
        if content.get("schema") != 1:
            sys.exit(f"{path} has schema {content.get('schema')}, need 1. Fix: dump the case again.")
        self.name, self.kind = content["name"], content["kind"]
        self.sizes, self.times = content["sizes"], content["times"]
        self.y0 = {x["name"]: np.reshape(x["values"], x["shape"]) for x in content["y0"]}
        self.theta = {x["name"]: np.reshape(x["values"], x["shape"]) for x in content["theta"]}


def gradient_error(case, gradients, reference):
    """Mean over y0, its components taken together, and the parameters of the relative 2-norm error.

    Both are {name: array}.
    """

    def joined(content, names):
        return np.concatenate([np.ravel(np.asarray(content[name], np.float64)) for name in names])

    groups = [list(case.y0)] + [[name] for name in case.theta]
    errors = []
    for names in groups:
        exact = joined(reference, names)
        errors.append(np.linalg.norm(joined(gradients, names) - exact) / np.linalg.norm(exact))
    return float(np.mean(errors))


def kibibytes(key):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1])
    return 0


def resident_growth(action):
    """Bytes by which the resident memory rose at most during `action`.

    Memory that the C library keeps for reuse is returned first, so that a step pays for what it
    touches. Growth of a pool that a package keeps for itself is not seen a second time.
    """
    ctypes.CDLL(None).malloc_trim(0)
    start = kibibytes("VmRSS:")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM
    action()
    return max(0, kibibytes("VmHWM:") - start) * 1024


class Step:
    """One training step: the value of the loss and two times."""

    def __init__(self, loss, seconds, seconds_forward=None):
        self.loss, self.seconds, self.seconds_forward = loss, seconds, seconds_forward


def serve(case, make_trainer, precision, method, versions, note=""):
    """Answers commands on standard input until `quit`.

    make_trainer(precision) gives an object with step() -> Step and gradients() -> {name: array} of
    the last step.
    """
    # Packages print to standard output; answers go to where it led at the start.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def run(count):
        steps = [trainer.step() for _ in range(count)]
        answer = {"seconds": [s.seconds for s in steps]}
        if steps[0].seconds_forward is not None:
            answer["seconds_forward"] = [s.seconds_forward for s in steps]
        return answer

    exact = {}  # loss and gradients of the f64 run, once it was asked for

    def exact_run():
        if not exact:
            reference = make_trainer("f64")
            exact["loss"] = reference.step().loss
            exact["gradients"] = reference.gradients()
        return exact

    def check(reference_path):
        steps = []
        answer = {"resident_bytes": resident_growth(lambda: steps.append(trainer.step()))}
        answer |= {"loss": steps[0].loss, "seconds": steps[0].seconds}
        if reference_path:
            with open(reference_path) as file:
                reference = json.load(file)
        else:
            reference = exact_run()
        answer["loss_f64"] = reference["loss"]
        answer["error"] = gradient_error(case, trainer.gradients(), reference["gradients"])
        return answer

    def write(path, loss, gradients):
        lists = {n: np.ravel(g).astype(float).tolist() for n, g in gradients.items()}
        with open(path, "w") as file:
            json.dump({"loss": loss, "gradients": lists}, file)
        return {"written": path}

    try:
        start = time.perf_counter()
        trainer = make_trainer(precision)
        trainer.step()
        setup = time.perf_counter() - start
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True, "method": method, "seconds_setup": setup, "note": note})
    for line in sys.stdin:
        command, *rest = line.split() or [""]
        try:
            if command == "quit":
                break
            if command == "run":
                say(run(int(rest[0]) if rest else 1))
            elif command == "check":
                say(check(rest[0] if rest else None))
            elif command == "memory":
                say({"resident_bytes": resident_growth(trainer.step)})
            elif command == "gradients":
                loss = trainer.step().loss
                say(write(rest[0], loss, trainer.gradients()))
            elif command == "exact":
                say(write(rest[0], exact_run()["loss"], exact_run()["gradients"]))
            elif command == "versions":
                say(versions)
            else:
                known = "run, check, memory, gradients, exact, versions, quit"
                say({"failed": f"no command {command!r}, need one of {known}"})
        except Exception as error:  # a peer's failure is a result, the other rows still run
            say({"failed": f"{type(error).__name__}: {error}"})
