"""diffrax: classical RK4 as a Butcher tableau of its own, the given grid (StepTo), jit, and reverse
mode through the solve.

The adjoint is RecursiveCheckpointAdjoint with a checkpoint for every step: on these cases it
recomputes least. --adjoint default leaves the package's own number of checkpoints.
"""

import math
import os
import time

import numpy as np

import protocol

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import diffrax
import jax
import jax.numpy as jnp


def linear(x, weight, bias):
    return x @ weight.T + bias


def mlp(t, y, theta, sizes):
    x = y["y"]
    layers = len(theta) // 2
    for i in range(layers):
        x = linear(x if i == 0 else jnp.tanh(x), theta[f"W{i}"], theta[f"b{i}"])
    return {"y": x}


def mlp_loss(last, sizes):
    return jnp.mean(last["y"] ** 2)


def cnf(t, y, theta, sizes):
    z, width = y["z"], sizes["h"]
    p = jnp.tanh(linear(jnp.reshape(t, (1, 1)), theta["W0"], theta["b0"]))
    p = jnp.tanh(linear(p, theta["W1"], theta["b1"]))
    p = linear(p, theta["W2"], theta["b2"])[0]
    w, v, gate = (p[2 * i * width : 2 * (i + 1) * width].reshape(width, 2) for i in range(3))
    u = v * jax.nn.sigmoid(gate)
    h = jnp.tanh(linear(z, w, p[6 * width :]))
    dot = jnp.sum(u * w, axis=1, keepdims=True)
    trace = (1 - h**2) @ dot
    return {"z": (h @ u) / width, "l": trace / -width}


def cnf_loss(last, sizes):
    log_normal = -0.5 * jnp.sum(last["z"] ** 2, axis=1, keepdims=True) - math.log(2 * math.pi)
    return jnp.mean(last["l"] - log_normal)


A0, A1, A2 = 1.0, 2000.0, 800.0


def otflow(t, y, theta, sizes):
    x, w, k0, k1, a = y["x"], theta["w"], theta["K0"], theta["K1"], theta["A"]
    d = x.shape[1]
    s = jnp.concatenate([x, jnp.broadcast_to(t, (x.shape[0], 1)).astype(x.dtype)], axis=1)
    pre0 = linear(s, k0, theta["b0"])
    size = jnp.abs(pre0)
    u0 = size + jnp.log1p(jnp.exp(-2 * size))
    q0 = jnp.tanh(pre0)
    q1 = jnp.tanh(linear(u0, k1, theta["b1"]))
    z1 = w + (q1 * w) @ k1
    gradient = (q0 * z1) @ k0 + (s @ a.T) @ a + theta["c"]
    gradient_x, gradient_t = gradient[:, :d], gradient[:, d:]
    k0_x = k0[:, :d]
    k1_j = (k0_x.T * q0[:, None, :]) @ k1.T  # [batch, d, m]
    layer0 = (1 - q0**2) * z1 * jnp.sum(k0_x**2, axis=1)
    layer1 = (1 - q1**2) * w * jnp.sum(k1_j**2, axis=1)
    trace = jnp.sum(layer0 + layer1, axis=1, keepdims=True) + jnp.sum(a[:, :d] ** 2)
    cost = 0.5 * jnp.sum(gradient_x**2, axis=1, keepdims=True)
    return {
        "x": gradient_x * (-1 / A0),
        "l": trace * (-1 / A0),
        "cL": cost,
        "cH": jnp.abs(A0 * cost - gradient_t),
    }


def otflow_loss(last, sizes):
    constant = -0.5 * sizes["d"] * math.log(2 * math.pi * 0.1)
    log_normal = -5 * jnp.sum(last["x"] ** 2, axis=1, keepdims=True) + constant
    return (
        A0 * jnp.mean(last["cL"]) + A1 * jnp.mean(last["cH"]) - A2 * jnp.mean(log_normal + last["l"])
    )


KINDS = {"mlp": (mlp, mlp_loss), "cnf": (cnf, cnf_loss), "otflow": (otflow, otflow_loss)}


class Rk4(diffrax.AbstractERK):
    """k_i = f(t + c_i h, y + h sum_j a_ij k_j), y_next = y + h sum_i b_i k_i; no error estimate."""

    tableau = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


class Trainer:
    def __init__(self, case, precision, adjoint):
        velocity, loss = KINDS[case.kind]
        dtype = {"f64": jnp.float64, "f32": jnp.float32}[precision]
        convert = lambda values: {n: jnp.asarray(v, dtype) for n, v in values.items()}
        self.arguments = convert(case.y0), convert(case.theta)
        times = jnp.asarray(case.times, dtype)
        steps = len(case.times) - 1
        checkpoints = steps if adjoint == "every-step" else None
        adjoint = (
            diffrax.DirectAdjoint()
            if adjoint == "direct"
            else diffrax.RecursiveCheckpointAdjoint(checkpoints=checkpoints)
        )

        def objective(y0, theta):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, args: velocity(t, y, args, case.sizes)),
                Rk4(),
                times[0],
                times[-1],
                None,
                y0,
                theta,
                saveat=diffrax.SaveAt(t1=True),
                stepsize_controller=diffrax.StepTo(ts=times),
                adjoint=adjoint,
                max_steps=steps,
            )
            return loss({n: y[-1] for n, y in solution.ys.items()}, case.sizes)

        self.value_and_gradients = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
        self.last = None

    def step(self):
        start = time.perf_counter()
        value, gradients = self.value_and_gradients(*self.arguments)
        jax.block_until_ready((value, gradients))
        end = time.perf_counter()
        self.last = gradients
        return protocol.Step(float(value), end - start)

    def gradients(self):
        return {n: np.asarray(g, np.float64) for part in self.last for n, g in part.items()}


def main():
    parser = protocol.arguments(__doc__)
    parser.add_argument("--adjoint", default="every-step", choices=["every-step", "default", "direct"])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # f32 arrays stay f32; f64 is for the reference
    case = protocol.Case(arguments.case)
    protocol.serve(
        case,
        lambda precision: Trainer(case, precision, arguments.adjoint),
        arguments.precision,
        "rk4",
        {"diffrax": diffrax.__version__, "jax": jax.__version__},
    )


if __name__ == "__main__":
    main()
