"""Writes tests/golden/images.json: torchvision's resize and colour changes, on float images.

    python tests/peers/make_image_goldens.py [OUT_DIR]      (needs torch and torchvision)

The image is the closed formula below: no figure is random.
"""

import json
import pathlib
import platform
import sys

import torch
import torchvision
import torchvision.transforms.functional as F

HEIGHT, WIDTH = 7, 9


def image():
    """u8 [3, 7, 9]: byte k is (37 k + 11 k^2) mod 256, with one grey and one black pixel."""
    values = [(37 * k + 11 * k * k) % 256 for k in range(3 * HEIGHT * WIDTH)]
    x = torch.tensor(values, dtype=torch.uint8).reshape(3, HEIGHT, WIDTH)
    x[:, 2, 3] = 77
    x[:, 4, 4] = 0
    return x


def digits(x):
    return [float(f"{v:.9g}") for v in x.flatten().tolist()]


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "golden"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    x = image()
    unit = x.to(torch.float32) / 255
    resized = []
    for top, left, height, width, to_height, to_width in [
        (0, 0, 7, 9, 4, 3),  # smaller: the triangle grows
        (1, 2, 5, 6, 9, 8),  # larger: plain bilinear
        (0, 0, 7, 9, 3, 14),  # one of each
        (2, 0, 3, 9, 3, 9),  # the crop alone
        (3, 3, 1, 1, 2, 2),
    ]:
        y = F.resized_crop(
            unit, top, left, height, width, [to_height, to_width],
            interpolation=F.InterpolationMode.BILINEAR, antialias=True,
        )
        resized.append({"crop": [top, left, height, width], "to": [to_height, to_width],
                        "result": digits(y)})
    small = unit[:, 1:6, 2:6].contiguous()
    colours = []
    for op, factors in [
        ("brightness", [0.6, 1.4]), ("contrast", [0.6, 1.4]), ("saturation", [0.0, 0.6, 1.4]),
        ("hue", [-0.1, 0.07, 0.5]),
    ]:
        for factor in factors:
            y = getattr(F, "adjust_" + op)(small, factor)
            colours.append({"op": op, "factor": factor, "result": digits(y)})
    grey = F.rgb_to_grayscale(small, num_output_channels=3)
    colours.append({"op": "grey", "factor": 0, "result": digits(grey)})
    data = {
        "schema": 1,
        "what": "resized_crop (bilinear, antialias) of the u8 image / 255; colour changes of its "
        "crop of rows 1 to 5, columns 2 to 5; arrays are row-major [3, h, w]",
        "script": "tests/peers/make_image_goldens.py",
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "python": platform.python_version(),
        "resized": resized,
        "colours": colours,
    }
    lines = json.dumps(data).replace('{"crop"', '\n{"crop"').replace('{"op"', '\n{"op"')
    path = out / "images.json"
    path.write_text(lines + "\n")
    print(f"{path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
