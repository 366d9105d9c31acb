"""torch.compile, with plain backpropagation through a fixed grid. What is compiled is --what:

velocity   the velocity; torchdiffeq (rk4, the 3/8 rule) calls it
step       one classical RK4 step with its time; a Python loop calls it
solve      the whole unrolled loop
auto       solve for MLPs of up to 16 steps (the compilation of more takes minutes), else step

Where the compiler fails, the worker says why and stops.
"""

import sys

import torch

import protocol
import torch_problem
import torchdiffeq_worker


def rk4_step(velocity, y, t, h):
    """y_next = y + h/6 (k1 + 2 k2 + 2 k3 + k4), on tuples."""

    def advanced(a, k):
        return tuple(x + a * s for x, s in zip(y, k))

    def slope(time, state):
        k = velocity(time, state if len(state) > 1 else state[0])
        return k if isinstance(k, tuple) else (k,)

    half = 0.5 * h
    k1 = slope(t, y)
    k2 = slope(t + half, advanced(half, k1))
    k3 = slope(t + half, advanced(half, k2))
    k4 = slope(t + h, advanced(h, k3))
    sixth = h / 6
    return tuple(
        x + sixth * (a + 2 * (b + c) + d) for x, a, b, c, d in zip(y, k1, k2, k3, k4)
    )


def rk4_solve(step, velocity, y0, times):
    y = y0 if isinstance(y0, tuple) else (y0,)
    for i in range(len(times) - 1):
        y = step(velocity, y, times[i], times[i + 1] - times[i])
    return y if isinstance(y0, tuple) else y[0]


class Trainer(torch_problem.Trainer):
    def __init__(self, case, precision, what):
        if precision == "f64":  # the reference of the check: the same loop, not worth compiling
            solve = lambda velocity, y0, times: rk4_solve(rk4_step, velocity, y0, times)
            if what == "velocity":
                solve = torchdiffeq_worker.solve
        elif what == "velocity":
            solve = torchdiffeq_worker.solve
        elif what == "step":
            step = torch.compile(rk4_step, fullgraph=True, dynamic=False)
            solve = lambda velocity, y0, times: rk4_solve(step, velocity, y0, times)
        else:
            whole = torch.compile(
                lambda velocity, y0, times: rk4_solve(rk4_step, velocity, y0, times),
                fullgraph=True,
                dynamic=False,
            )
            solve = whole
        super().__init__(case, precision, solve)
        if what == "velocity" and precision != "f64":
            self.velocity.compile(fullgraph=True, dynamic=False)


def main():
    parser = protocol.arguments(__doc__)
    parser.add_argument("--what", default="auto", choices=["auto", "velocity", "step", "solve"])
    arguments, case = torch_problem.start(parser)
    what = arguments.what
    if what == "auto":
        what = "solve" if case.kind == "mlp" and len(case.times) <= 17 else "step"
    print(f"compile: {case.name}: compiling the {what}", file=sys.stderr)
    protocol.serve(
        case,
        lambda precision: Trainer(case, precision, what),
        arguments.precision,
        "rk38" if what == "velocity" else "rk4",
        {"torch": torch.__version__},
        note=f"the {what} is compiled",
    )


if __name__ == "__main__":
    main()
