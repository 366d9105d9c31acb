"""Redirects a package's CUDA autocast to the CPU, from outside and for a while.

rampde asks for autocast of the device "cuda" by name, which PyTorch disables on a machine without a
GPU. Inside `redirected()` the names it looks up answer for the CPU instead. Import the package inside
it, so that names it imports (`from torch.amp import autocast`) are the redirected ones too.

What differs from CUDA, and how it is met:
- The CPU's list of ops that run in f32 has no pow: the caller's velocity casts before its cube
  (run_torch.py).
- custom_fwd(cast_inputs=...) would turn autocast off inside and round the state to that dtype, so
  that sums run in half precision as well. The package documents sums in the dtype of y0:
  cast_inputs is dropped, in the package's favour.
- A 0-dim tensor on the right of a product (k * half_dt) is rounded to half on CUDA, not on the CPU:
  this favours the package by at most one rounding of h.
"""

import contextlib
import warnings

import torch


@contextlib.contextmanager
def redirected():
    real = {
        "autocast": torch.amp.autocast,
        "custom_fwd": torch.amp.custom_fwd,
        "custom_bwd": torch.amp.custom_bwd,
        "is_autocast_enabled": torch.is_autocast_enabled,
        "get_autocast_dtype": torch.get_autocast_dtype,
    }

    def autocast(device_type="cuda", dtype=None, enabled=True, cache_enabled=None):
        # f32 and f64 "autocast" is no autocast; PyTorch warns about that on the CPU.
        enabled = enabled and dtype not in (torch.float32, torch.float64)
        return real["autocast"](
            "cpu", dtype=dtype if enabled else None, enabled=enabled, cache_enabled=cache_enabled
        )

    def custom_fwd(function=None, *, device_type="cuda", cast_inputs=None):
        if function is None:
            return lambda f: custom_fwd(f)
        return real["custom_fwd"](function, device_type="cpu")

    def custom_bwd(function=None, *, device_type="cuda"):
        if function is None:
            return lambda f: custom_bwd(f)
        return real["custom_bwd"](function, device_type="cpu")

    replacements = [
        (torch, "autocast", autocast),
        (torch.amp, "autocast", autocast),
        (torch.amp, "custom_fwd", custom_fwd),
        (torch.amp, "custom_bwd", custom_bwd),
        (torch, "is_autocast_enabled", lambda *_: real["is_autocast_enabled"]("cpu")),
        (torch, "get_autocast_gpu_dtype", lambda: real["get_autocast_dtype"]("cpu")),
        (torch, "get_autocast_dtype", lambda *_: real["get_autocast_dtype"]("cpu")),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, new in replacements:
        setattr(owner, name, new)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)
