"""Image ops: the cases, and PyTorch's side of them. The layout is in README.md.

Values and gradients of each op are compared in f32. Inputs and the cotangent are normal draws, so a
wrong sign, index or factor shows in every entry.
"""

import torch
import torch.nn.functional as F


def convolutions():
    """(x, out channels, kernel, arguments); the same geometries serve both directions."""
    rows = [
        ((2, 3, 8, 8), 4, (3, 3), {"padding": [1, 1]}),
        ((2, 3, 9, 7), 4, (3, 3), {"stride": [2, 2], "padding": [1, 1]}),
        ((1, 4, 10, 6), 6, (5, 3), {"stride": [3, 1], "padding": [2, 0], "groups": 2}),
        ((3, 4, 7, 7), 4, (3, 3), {"padding": [1, 1], "groups": 4}),
        ((2, 2, 12, 11), 3, (3, 3), {"dilation": [2, 3], "padding": [2, 3]}),
        ((2, 8, 6, 6), 16, (1, 1), {}),
        ((2, 8, 6, 6), 4, (1, 1), {"stride": [2, 2]}),
        ((1, 1, 5, 5), 1, (5, 5), {}),
        ((2, 16, 16, 16), 16, (3, 3), {"padding": [1, 1]}),
        ((4, 6, 8, 10), 9, (2, 4), {"stride": [2, 3], "padding": [1, 2], "groups": 3}),
        ((17, 3, 8, 8), 5, (7, 7), {"stride": [2, 2], "padding": [3, 3]}),
        ((2, 4, 9, 9), 8, (3, 3), {"stride": [2, 2], "dilation": [2, 2], "padding": [2, 2]}),
    ]
    cases = []
    for x, out, kernel, arguments in rows:
        groups = arguments.get("groups", 1)
        weight = (out, x[1] // groups, *kernel)
        cases.append(("conv2d", arguments, {"x": x, "weight": weight, "bias": (out,)}))
        cases.append(("conv2d", arguments, {"x": x, "weight": weight}))
        weight = (x[1], out // groups, *kernel)
        cases.append(("conv_transpose2d", arguments, {"x": x, "weight": weight, "bias": (out,)}))
        stride = arguments.get("stride", [1, 1])
        if stride != [1, 1]:
            more = arguments | {"output_padding": [s - 1 for s in stride]}
            cases.append(("conv_transpose2d", more, {"x": x, "weight": weight}))
    return cases


def normalisations():
    cases = []
    for x in ((2, 4, 8, 8), (3, 6, 5, 7), (1, 8, 32, 32), (5, 2, 1, 3)):
        channels = {"weight": (x[1],), "bias": (x[1],)}
        cases.append(("instance_norm", {}, {"x": x}))
        cases.append(("instance_norm", {}, {"x": x} | channels))
        cases.append(("group_norm", {"groups": 2}, {"x": x} | channels))
        cases.append(("batch_norm_train", {}, {"x": x} | channels))
        cases.append(("batch_norm_eval", {}, {"x": x} | channels))
        cases.append(("layer_norm", {}, {"x": x, "weight": x[2:], "bias": x[2:]}))
        cases.append(("layer_norm", {}, {"x": x, "weight": x[3:], "bias": x[3:]}))
    return cases


def poolings():
    cases = []
    for x, kernel, arguments in (
        ((2, 3, 8, 8), [2, 2], {}),
        ((2, 3, 9, 7), [3, 3], {"stride": [2, 2], "padding": [1, 1]}),
        ((1, 4, 10, 6), [3, 2], {"stride": [1, 2], "padding": [1, 1]}),
        ((2, 2, 11, 12), [5, 3], {"stride": [3, 1]}),
    ):
        full = arguments | {"kernel": kernel}
        cases.append(("max_pool2d", full, {"x": x}))
        cases.append(("average_pool2d", full | {"count_padding": True}, {"x": x}))
        cases.append(("average_pool2d", full | {"count_padding": False}, {"x": x}))
    for x, size in (((2, 3, 9, 7), [4, 3]), ((2, 2, 5, 5), [7, 2]), ((1, 3, 6, 6), [1, 1])):
        cases.append(("adaptive_average_pool2d", {"size": size}, {"x": x}))
    cases.append(("global_average_pool", {}, {"x": (3, 4, 5, 6)}))
    return cases


def forward(case, inputs):
    """Everything the op gives, by name; `y` is what is differentiated."""
    op, a = case["op"], case["arguments"]
    x, weight, bias = inputs["x"], inputs.get("weight"), inputs.get("bias")
    conv = {k: a[k] for k in ("stride", "padding", "dilation", "groups") if k in a}
    if op == "conv2d":
        return {"y": F.conv2d(x, weight, bias, **conv)}
    if op == "conv_transpose2d":
        more = a.get("output_padding", [0, 0])
        return {"y": F.conv_transpose2d(x, weight, bias, output_padding=more, **conv)}
    if op == "instance_norm":
        return {"y": F.instance_norm(x, weight=weight, bias=bias)}
    if op == "group_norm":
        return {"y": F.group_norm(x, a["groups"], weight, bias)}
    if op == "layer_norm":
        return {"y": F.layer_norm(x, weight.shape, weight, bias)}
    if op in ("batch_norm_train", "batch_norm_eval"):
        # Running statistics that a first step has moved away from 0 and 1.
        mean, variance = torch.zeros_like(weight), torch.ones_like(weight)
        F.batch_norm(x.detach(), mean, variance, training=True)
        if op == "batch_norm_eval":
            return {"y": F.batch_norm(x, mean, variance, weight, bias)}
        y = F.batch_norm(x, None, None, weight, bias, training=True)
        return {"y": y, "running_mean": mean, "running_variance": variance}
    stride, padding = a.get("stride"), a.get("padding", [0, 0])
    if op == "max_pool2d":
        return {"y": F.max_pool2d(x, a["kernel"], stride, padding)}
    if op == "average_pool2d":
        return {
            "y": F.avg_pool2d(
                x, a["kernel"], stride, padding, count_include_pad=a["count_padding"]
            )
        }
    if op == "adaptive_average_pool2d":
        return {"y": F.adaptive_avg_pool2d(x, a["size"])}
    if op == "global_average_pool":
        return {"y": x.mean((2, 3))}
    raise ValueError(f"no such op: {op}")


def all_cases():
    generator = torch.Generator().manual_seed(4000)
    cases = []
    for op, arguments, shapes in convolutions() + normalisations() + poolings():
        inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        case = {"id": f"{op}/{len(cases)}", "op": op, "arguments": arguments}
        y = forward(case, inputs)["y"]
        # Gradients of weights sum over a channel's entries: this makes them numbers of order 1.
        cotangent = torch.randn(y.shape, generator=generator) / (y.numel() / y.shape[1]) ** 0.5
        cases.append(
            case
            | {
                "inputs": {name: x.tolist() for name, x in inputs.items()},
                "cotangent": cotangent.tolist(),
            }
        )
    return cases


def run(case, numbers):
    """The result in f32; `numbers` turns a tensor into nested lists."""
    inputs = {name: torch.tensor(x, requires_grad=True) for name, x in case["inputs"].items()}
    values = forward(case, inputs)
    values["y"].backward(torch.tensor(case["cotangent"]))
    return {
        "id": case["id"],
        "status": "ok",
        "values": {name: numbers(v) for name, v in values.items()},
        "gradients": {name: numbers(x.grad) for name, x in inputs.items()},
    }
