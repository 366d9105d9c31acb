"""Writes tests/golden/*.json: figures of PyTorch that the C++ tests compare with.

    build/peers/venv/bin/python tests/peers/make_goldens.py [OUT_DIR]

Every number has full digits (17 for f64; f32 values are exact in f64). Each file names this script
and the versions it ran with. No figure is random: all inputs come from the closed formulas below.
"""

import json
import math
import pathlib
import platform
import sys

import torch
import torch.nn.functional as F

DTYPES = {"f64": torch.float64, "f32": torch.float32}


def header(what):
    return {
        "schema": 1,
        "what": what,
        "script": "tests/peers/make_goldens.py",
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def spread(count, low, high, phase):
    """`count` reproducible numbers in [low, high], multiples of 1/1024: exact in f32."""
    values = [0.5 + 0.5 * math.sin(phase + 12.9898 * (i + 1)) for i in range(count)]
    return [round((low + (high - low) * v) * 1024) / 1024 for v in values]


def tensor(values, shape, dtype):
    return torch.tensor(values, dtype=dtype).reshape(shape)


# --- losses ---------------------------------------------------------------------------------------


def loss_case(name, shape, prediction, target, dtype_name):
    """value: mean over everything; gradient: with respect to the prediction (logits)."""
    dtype = DTYPES[dtype_name]
    x = tensor(prediction, shape, dtype).requires_grad_()
    if name == "cross_entropy":
        value = F.cross_entropy(x, torch.tensor(target, dtype=torch.int64))
    else:
        y = tensor(target, shape, dtype)
        value = F.mse_loss(x, y) if name == "mse" else F.l1_loss(x, y)
    value.backward()
    return {
        "loss": name,
        "dtype": dtype_name,
        "shape": list(shape),
        "prediction": prediction,
        "target": target,
        "value": value.item(),
        "gradient": x.grad.flatten().tolist(),
    }


def losses():
    cases = []
    for dtype_name in DTYPES:
        prediction = spread(12, -2.0, 2.0, 0.1)
        target = spread(12, -2.0, 2.0, 1.3)
        target[5] = prediction[5]  # a tie: the gradient of |x| at 0 is 0
        cases.append(loss_case("mse", (4, 3), prediction, target, dtype_name))
        cases.append(loss_case("mae", (4, 3), prediction, target, dtype_name))
        logits = spread(35, -4.0, 4.0, 2.2)
        logits[7] = 90.0  # a row that overflows f32 without subtracting its largest entry
        cases.append(loss_case("cross_entropy", (5, 7), logits, [0, 0, 6, 3, 5], dtype_name))
    return header("losses, mean reduction; arrays are row-major") | {"cases": cases}


# --- optimisers -----------------------------------------------------------------------------------

OPTIMISERS = [
    # name, kind, options as PyTorch names them, largest global gradient norm
    ("sgd", "sgd", {"lr": 0.05}, None),
    ("sgd_momentum", "sgd", {"lr": 0.05, "momentum": 0.9}, None),
    ("sgd_nesterov", "sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}, None),
    ("sgd_weight_decay", "sgd", {"lr": 0.05, "weight_decay": 0.1}, None),
    (
        "sgd_nesterov_weight_decay",
        "sgd",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        None,
    ),
    ("rmsprop", "rmsprop", {"lr": 0.01, "alpha": 0.99, "eps": 1e-8}, None),
    (
        "rmsprop_momentum",
        "rmsprop",
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.9},
        None,
    ),
    (
        "rmsprop_centered",
        "rmsprop",
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "centered": True},
        None,
    ),
    (
        "rmsprop_weight_decay",
        "rmsprop",
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        None,
    ),
    ("adam", "adam", {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}, None),
    (
        "adam_weight_decay",
        "adam",
        {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1},
        None,
    ),
    ("adamw", "adamw", {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}, None),
    ("sgd_clipped", "sgd", {"lr": 0.05, "momentum": 0.9}, 1.5),
    ("adam_clipped", "adam", {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}, 1.5),
]
CLASSES = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SHAPES = {"w": (2, 3), "b": (3,)}


def problem():
    """loss = sum over all entries of a d^2 / 2 + c d^3 / 3, d = p - m: gradient a d + c d^2."""
    parts = {}
    for k, (name, shape) in enumerate(SHAPES.items()):
        count = math.prod(shape)
        parts[name] = {
            "shape": list(shape),
            "start": spread(count, 0.5, 2.0, 0.3 + k),
            "a": spread(count, 0.5, 3.0, 1.1 + k),
            "c": spread(count, 0.05, 0.4, 2.7 + k),
            "m": spread(count, -1.0, 0.25, 3.9 + k),
        }
    return parts


def optimiser_case(name, kind, options, clip, parts, dtype_name, steps=10):
    dtype = DTYPES[dtype_name]
    constants = {
        key: {c: tensor(part[c], part["shape"], dtype) for c in ("a", "c", "m")}
        for key, part in parts.items()
    }
    params = {
        key: torch.nn.Parameter(tensor(part["start"], part["shape"], dtype))
        for key, part in parts.items()
    }
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    optimiser = CLASSES[kind](list(params.values()), **arguments)
    history, norms = [], []
    for _ in range(steps):
        with torch.no_grad():
            for key, p in params.items():
                k = constants[key]
                d = p - k["m"]
                p.grad = k["a"] * d + k["c"] * d * d
        if clip is not None:
            norms.append(torch.nn.utils.clip_grad_norm_(list(params.values()), clip).item())
        optimiser.step()
        history.append({key: p.detach().flatten().tolist() for key, p in params.items()})
    case = {"name": name, "kind": kind, "options": options, "dtype": dtype_name, "steps": history}
    if clip is not None:
        case |= {"clip_norm": clip, "norms_before_clipping": norms}
    return case


def optimisers():
    parts = problem()
    cases = [
        optimiser_case(*entry, parts, dtype_name) for entry in OPTIMISERS for dtype_name in DTYPES
    ]
    text = (
        "parameters after each of ten optimiser steps; gradient of each entry: d = p - m, "
        "g = a d + c d^2, in the dtype of the case; both parameters are in one optimiser; clipping "
        "multiplies every gradient by min(1, clip_norm / (norm + 1e-6)), norm over both parameters; "
        "entries are of order 1 and some cross 0, so compare with 1e-6 max(1, |p|)"
    )
    return header(text) | {"problem": parts, "cases": cases}


# --- initialisers ---------------------------------------------------------------------------------


def initialisers():
    cases = []
    torch.manual_seed(7)
    for fan_in, fan_out in [(1, 32), (2, 50), (50, 2), (64, 64), (300, 7)]:
        layer = torch.nn.Linear(fan_in, fan_out, dtype=torch.float64)
        xavier_uniform = math.sqrt(6.0 / (fan_in + fan_out))
        he_uniform = math.sqrt(6.0 / fan_in)
        case = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "linear_weight_bound": 1.0 / math.sqrt(fan_in),
            "linear_bias_bound": 1.0 / math.sqrt(fan_in),
            "xavier_uniform_bound": xavier_uniform,
            "xavier_normal_std": math.sqrt(2.0 / (fan_in + fan_out)),
            "he_uniform_bound": he_uniform,
            "he_normal_std": math.sqrt(2.0 / fan_in),
        }
        # The formulas are stated above; PyTorch must agree with them before they are written down.
        big = torch.empty(fan_out, fan_in, dtype=torch.float64)
        for _ in range(200):
            layer.reset_parameters()
            assert layer.weight.abs().max() <= case["linear_weight_bound"]
            assert layer.bias.abs().max() <= case["linear_bias_bound"]
            assert torch.nn.init.xavier_uniform_(big).abs().max() <= xavier_uniform
            assert (
                torch.nn.init.kaiming_uniform_(big, nonlinearity="relu").abs().max() <= he_uniform
            )
        draws = torch.cat(
            [torch.nn.init.xavier_uniform_(big).flatten().clone() for _ in range(200)]
        )
        assert draws.abs().max() > 0.98 * xavier_uniform
        draws = torch.cat([torch.nn.init.xavier_normal_(big).flatten().clone() for _ in range(500)])
        assert abs(draws.std() / case["xavier_normal_std"] - 1) < 0.05
        draws = torch.cat(
            [
                torch.nn.init.kaiming_normal_(big, nonlinearity="relu").flatten().clone()
                for _ in range(500)
            ]
        )
        assert abs(draws.std() / case["he_normal_std"] - 1) < 0.05
        draws = []
        for _ in range(200):
            layer.reset_parameters()
            draws.append(torch.cat([layer.weight.detach().flatten(), layer.bias.detach()]))
        assert torch.cat(draws).abs().max() > 0.98 * case["linear_weight_bound"]
        cases.append(case)
    text = (
        "initialisers of a [fan_out, fan_in] weight: bounds of the uniform ones (U(-bound, bound)), "
        "standard deviations of the normal ones; linear_*: PyTorch's default for Linear"
    )
    return header(text) | {"cases": cases}


# --- elementwise ops and rows ---------------------------------------------------------------------

POINTS = [
    -100.0,
    -40.0,
    -12.5,
    -8.0,
    -5.5,
    -3.0,
    -2.0,
    -1.0,
    -0.75,
    -0.5,
    -0.125,
    -1e-3,
    -1e-9,
    0.0,
    1e-9,
    1e-3,
    0.125,
    0.5,
    0.75,
    1.0,
    2.0,
    3.0,
    5.5,
    8.0,
    12.5,
    40.0,
    100.0,
]
UNARY = {
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    # PyTorch returns x itself above its threshold of 20, a shortcut that is off here.
    "softplus": lambda x: F.softplus(x, threshold=700.0),
    "silu": lambda x: F.silu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
}
ROWS = {
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmax": lambda x: F.softmax(x, -1),
}


def elementwise():
    unary = {}
    for name, op in UNARY.items():
        x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
        y = op(x)
        y.sum().backward()
        unary[name] = {"value": y.tolist(), "derivative": x.grad.tolist()}
    matrix = spread(20, -5.0, 5.0, 0.7)
    matrix[6], matrix[13] = 800.0, -800.0  # exp overflows f64 here
    rows = {}
    for name, op in ROWS.items():
        x = tensor(matrix, (4, 5), torch.float64).requires_grad_()
        y = op(x)
        y_bar = tensor(spread(y.numel(), -1.0, 1.0, 5.1), y.shape, torch.float64)
        y.backward(y_bar)
        rows[name] = {
            "value": y.flatten().tolist(),
            "y_bar": y_bar.flatten().tolist(),
            "x_bar": x.grad.flatten().tolist(),
        }
    text = (
        "f64 values and derivatives; rows: over the last axis of a [4, 5] matrix, x_bar is the cotangent "
        "of x for the cotangent y_bar of the result; gelu is the erf form, gelu_tanh the tanh form"
    )
    return header(text) | {"x": POINTS, "unary": unary, "matrix": matrix, "rows": rows}


# --- schedules and averages -----------------------------------------------------------------------

LR = torch.optim.lr_scheduler
SCHEDULES = [
    # kind, base, options as PyTorch names them, iterations
    ("step", 0.05, {"step_size": 7, "gamma": 0.3}, 40),
    ("exponential", 0.05, {"gamma": 0.93}, 40),
    ("cosine", 0.05, {"T_max": 40, "eta_min": 0.002}, 41),
]
PLATEAUS = [
    {"factor": 0.5, "patience": 2},
    {"factor": 0.3, "patience": 0, "threshold": 0.05},
    {"factor": 0.5, "patience": 1, "cooldown": 3, "min_lr": 0.004},
    {"factor": 0.5, "patience": 3, "mode": "max", "threshold": 0.02},
]
SCHEDULE_CLASSES = {
    "step": LR.StepLR,
    "exponential": LR.ExponentialLR,
    "cosine": LR.CosineAnnealingLR,
}


def schedules():
    def optimiser(base):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)

    cases = []
    for kind, base, options, iterations in SCHEDULES:
        sgd = optimiser(base)
        schedule = SCHEDULE_CLASSES[kind](sgd, **options)
        rates = []
        for _ in range(iterations):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            schedule.step()
        cases.append({"kind": kind, "base": base, "options": options, "rates": rates})
    # A loss that falls, stalls with noise, rises and falls again; an accuracy is 2 minus it.
    watched = [1 / (1 + 0.3 * n) + 0.02 * v for n, v in enumerate(spread(30, -1.0, 1.0, 0.4))]
    watched += [0.3 + 0.1 * v for v in spread(15, -1.0, 1.0, 1.9)] + [0.09, 0.08, 0.08, 0.0801, 0.07]
    plateaus = []
    for options in PLATEAUS:
        sgd = optimiser(0.05)
        schedule = LR.ReduceLROnPlateau(sgd, **options)
        values = [2 - v for v in watched] if options.get("mode") == "max" else watched
        rates = []
        for value in values:
            schedule.step(value)
            rates.append(sgd.param_groups[0]["lr"])
        plateaus.append({"base": 0.05, "options": options, "watched": values, "rates": rates})

    averages = []
    for dtype_name, dtype in DTYPES.items():
        model = torch.nn.Linear(3, 2, bias=False, dtype=dtype)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        steps = []
        for n in range(6):
            values = spread(6, -1.0, 1.0, 0.6 + n)
            model.weight.data = tensor(values, (2, 3), dtype)
            average.update_parameters(model)
            steps.append({"value": values, "average": average.module.weight.flatten().tolist()})
        averages.append({"dtype": dtype_name, "decay": 0.9, "shape": [2, 3], "steps": steps})
    text = (
        "learning rates before each iteration (schedules), after each watched value (plateaus); "
        "averages after each update of the running average"
    )
    return header(text) | {"cases": cases, "plateaus": plateaus, "averages": averages}


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "golden"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for make in (losses, optimisers, initialisers, elementwise, schedules):
        path = out / f"{make.__name__}.json"
        path.write_text(compact(make()) + "\n")
        print(f"{path} ({path.stat().st_size} bytes)")


def compact(data):
    """One line per innermost list or object: files that can be read and compared line by line."""

    def write(value, indent):
        flat = json.dumps(value, allow_nan=False)
        nested = isinstance(value, (dict, list)) and any(
            isinstance(v, (dict, list))
            for v in (value.values() if isinstance(value, dict) else value)
        )
        if not nested and not isinstance(value, dict) or len(flat) <= 100:
            return flat
        pad = " " * (indent + 1)
        if isinstance(value, dict):
            body = ",\n".join(
                f"{pad}{json.dumps(k)}: {write(v, indent + 1)}" for k, v in value.items()
            )
            return "{\n" + body + "\n" + " " * indent + "}"
        return (
            "[\n"
            + ",\n".join(pad + write(v, indent + 1) for v in value)
            + "\n"
            + " " * indent
            + "]"
        )

    return write(data, 0)


if __name__ == "__main__":
    main()
