"""The velocities and losses of the cases in PyTorch, and the training step that the PyTorch workers
share. Formulas: ../support/cases.cpp.
"""

import math
import time

import torch

import protocol

DTYPES = {"f64": torch.float64, "f32": torch.float32}
LOW = {"f16": torch.float16, "bf16": torch.bfloat16}
linear = torch.nn.functional.linear


class Velocity(torch.nn.Module):
    """Parameters named as in the case. forward(t, y): y is a tensor if the state has one component,
    else a tuple."""

    def __init__(self, case, dtype):
        super().__init__()
        for name, value in case.theta.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value, dtype=dtype)))


class Mlp(Velocity):
    def __init__(self, case, dtype):
        super().__init__(case, dtype)
        self.layers = len(case.theta) // 2

    def forward(self, t, y):
        for i in range(self.layers):
            x = y if i == 0 else torch.tanh(y)
            y = linear(x, getattr(self, f"W{i}"), getattr(self, f"b{i}"))
        return y

    @staticmethod
    def loss(case, last):
        return last.square().mean()


class Cnf(Velocity):
    def __init__(self, case, dtype):
        super().__init__(case, dtype)
        self.width = case.sizes["h"]

    def weights(self, t):
        """W, U [width, 2], b [width] at a time."""
        width = self.width
        p = torch.tanh(linear(t.reshape(1, 1), self.W0, self.b0))
        p = torch.tanh(linear(p, self.W1, self.b1))
        p = linear(p, self.W2, self.b2)[0]
        w, v, gate = (p[2 * i * width : 2 * (i + 1) * width].view(width, 2) for i in range(3))
        return w, v * torch.sigmoid(gate), p[6 * width :]

    def forward(self, t, y):
        z, _ = y
        width = self.width
        w, u, b = self.weights(t)
        h = torch.tanh(linear(z, w, b))
        dot = (u * w).sum(1, keepdim=True)
        trace = (1 - h.square()) @ dot
        return (h @ u) / width, trace / -width

    @staticmethod
    def loss(case, last):
        z, l = last
        log_normal = -0.5 * z.square().sum(1, keepdim=True) - math.log(2 * math.pi)
        return (l - log_normal).mean()


class OtFlow(Velocity):
    a0, a1, a2 = 1.0, 2000.0, 800.0

    def squared_rows(self, q0):
        """|(K1 J)_k|^2 [batch, m], J = diag(q0) K0 without the column of time."""
        k0_x = self.K0[:, :-1]
        return linear(k0_x.t() * q0.unsqueeze(1), self.K1).square().sum(1)  # of [batch, d, m]

    def forward(self, t, y):
        x = y[0]
        d = x.shape[1]
        s = torch.cat([x, t.to(x.dtype).expand(x.shape[0], 1)], 1)
        pre0 = linear(s, self.K0, self.b0)
        size = pre0.abs()
        u0 = size + torch.log1p(torch.exp(-2 * size))
        q0 = torch.tanh(pre0)
        q1 = torch.tanh(linear(u0, self.K1, self.b1))
        z1 = self.w + (q1 * self.w) @ self.K1
        gradient = (q0 * z1) @ self.K0 + linear(s, self.A) @ self.A + self.c
        gradient_x, gradient_t = gradient[:, :d], gradient[:, d:]
        k0_x = self.K0[:, :d]
        layer0 = (1 - q0.square()) * z1 * k0_x.square().sum(1)
        layer1 = (1 - q1.square()) * self.w * self.squared_rows(q0)
        trace = (layer0 + layer1).sum(1, keepdim=True) + self.A[:, :d].square().sum()
        cost = 0.5 * gradient_x.square().sum(1, keepdim=True)
        return (
            gradient_x * (-1 / self.a0),
            trace * (-1 / self.a0),
            cost,
            (self.a0 * cost - gradient_t).abs(),
        )

    @classmethod
    def loss(cls, case, last):
        x, l, cost, residual = last
        constant = -0.5 * x.shape[1] * math.log(2 * math.pi * 0.1)
        log_normal = -5 * x.square().sum(1, keepdim=True) + constant
        return cls.a0 * cost.mean() + cls.a1 * residual.mean() - cls.a2 * (log_normal + l).mean()


KINDS = {"mlp": Mlp, "cnf": Cnf, "otflow": OtFlow}


class Trainer:
    """solve(velocity, y0, times) -> the state at the last time, in the layout of y0."""

    def __init__(self, case, precision, solve):
        self.case, self.solve = case, solve
        self.dtype = DTYPES.get(precision, torch.float32)
        self.low = LOW.get(precision)
        self.velocity = KINDS[case.kind](case, self.dtype)
        self.leaves = {
            name: torch.tensor(value, dtype=self.dtype, requires_grad=True)
            for name, value in case.y0.items()
        }
        y0 = tuple(self.leaves.values())
        self.y0 = y0 if len(y0) > 1 else y0[0]
        self.times = torch.tensor(case.times, dtype=self.dtype)
        self.leaves |= dict(self.velocity.named_parameters())

    def forward(self):
        with torch.autocast("cpu", dtype=self.low, enabled=self.low is not None):
            last = self.solve(self.velocity, self.y0, self.times)
        high = tuple(x.to(self.dtype) for x in last) if isinstance(last, tuple) else last.to(self.dtype)
        return self.velocity.loss(self.case, high)

    def step(self):
        for leaf in self.leaves.values():
            leaf.grad = None
        start = time.perf_counter()
        loss = self.forward()
        value = loss.item()
        middle = time.perf_counter()
        loss.backward()
        del loss
        end = time.perf_counter()
        return protocol.Step(value, end - start, middle - start)

    def gradients(self):
        return {name: leaf.grad.to(torch.float64).numpy() for name, leaf in self.leaves.items()}


def start(parser):
    """Parses, sets the threads, reads the case."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments, protocol.Case(arguments.case)
