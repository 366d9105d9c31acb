"""rampde: odeint with method rk4, its replaying backward pass. RAMPDE_PATH names a checkout.

Under f16 and bf16 its autocast is redirected to the CPU (../../peers/cuda_autocast_on_cpu.py).
"""

import pathlib
import sys

import torch

import protocol
import torch_problem

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "peers"))

import cuda_autocast_on_cpu
import run_torch


class Trainer(torch_problem.Trainer):
    def __init__(self, case, precision, rampde):
        def solve(velocity, y0, times):
            with torch.autocast("cuda", dtype=self.low, enabled=self.low is not None):
                solution = rampde.odeint(velocity, y0, times, method="rk4")
            return tuple(x[-1] for x in solution) if isinstance(y0, tuple) else solution[-1]

        super().__init__(case, precision, solve)

    def forward(self):  # without the CPU autocast around it: the package sets its own
        last = self.solve(self.velocity, self.y0, self.times)
        high = tuple(x.to(self.dtype) for x in last) if isinstance(last, tuple) else last.to(self.dtype)
        return self.velocity.loss(self.case, high)


def main():
    arguments, case = torch_problem.start(protocol.arguments(__doc__))
    rampde, why_not = run_torch.load_rampde()

    def make_trainer(precision):
        if rampde is None:
            raise RuntimeError(why_not)
        return Trainer(case, precision, rampde)

    version = getattr(rampde, "__version__", "none")
    with cuda_autocast_on_cpu.redirected():
        protocol.serve(
            case,
            make_trainer,
            arguments.precision,
            "rk4",
            {"torch": torch.__version__, "rampde": f"{version} ({run_torch.rampde_origin()})"},
        )


if __name__ == "__main__":
    main()
