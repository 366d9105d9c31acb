"""torchdiffeq, eager: odeint with method rk4 (its rk4 is the 3/8 rule) and plain backpropagation.

Under f16 and bf16 the solve runs in PyTorch's CPU autocast.
"""

import torch
import torchdiffeq

import protocol
import torch_problem


def solve(velocity, y0, times):
    # The grid is given apart from the times, so that the package keeps two states of the solution
    # and not all of them: the faster way.
    solution = torchdiffeq.odeint(
        velocity,
        y0,
        times[[0, -1]],
        method="rk4",
        options={"grid_constructor": lambda f, y, t: times},
    )
    return tuple(x[-1] for x in solution) if isinstance(solution, tuple) else solution[-1]


def main():
    arguments, case = torch_problem.start(protocol.arguments(__doc__))
    protocol.serve(
        case,
        lambda precision: torch_problem.Trainer(case, precision, solve),
        arguments.precision,
        "rk38",
        {"torch": torch.__version__, "torchdiffeq": torchdiffeq.__version__},
    )


if __name__ == "__main__":
    main()
