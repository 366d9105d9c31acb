"""Coefficients of core/simd_math.h. Needs numpy and mpmath; prints the C++ arrays.

Minimax by reweighted least squares (Lawson) on the error in units of 2^-24 of the result. The
coefficients are rounded to f32 one after the other, the rest fitted again each time.
"""

import math

import mpmath
import numpy as np

mpmath.mp.dps = 30


def lawson(matrix, target, weight, rounds=60):
    w = np.ones(len(target))
    best = None
    for _ in range(rounds):
        s = np.sqrt(w) * weight
        c = np.linalg.lstsq(matrix * s[:, None], target * s, rcond=None)[0]
        error = np.abs(matrix @ c - target) * weight
        if best is None or error.max() < best[0]:
            best = error.max(), c
        w = w * (error / error.max() + 1e-3)
        w /= w.sum()
    return best[1]


def fit(name, function, weight, low, high, count, scale=1.0):
    """function(x) ~ sum of c[k] x^k; the array printed is for the argument x / scale."""
    x = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(3000) + 0.5) / 3000)
    f = np.array([float(function(mpmath.mpf(v))) for v in x])
    span = max(abs(low), abs(high))
    done = []
    while len(done) < count:
        rest = f - sum(c * x**k for k, c in enumerate(done))
        powers = np.stack([(x / span) ** k for k in range(len(done), count)], 1)
        done.append(float(np.float32(lawson(powers, rest, weight(x))[0] / span ** len(done))))
    error = np.abs(sum(c * x**k for k, c in enumerate(done)) - f) * weight(x)
    text = ", ".join((c * scale ** (k + 1)).hex().replace("0000000p", "p")
                     for k, c in enumerate(done))
    print(f"{name}: {error.max() * 2**24:.3f} ulp\n  {{{text}}}")


def expm1_tail(r):  # (e^r - 1 - r) / r^2
    return mpmath.fsum(r**k / mpmath.factorial(k + 2) for k in range(20))


def log1p_tail(f):  # (log(1 + f) - f + f^2 / 2) / f^3
    if abs(f) < 1e-3:
        return mpmath.fsum((-1) ** k * f**k / (k + 3) for k in range(12))
    return (mpmath.log1p(f) - f + f * f / 2) / f**3


half = float(mpmath.log(2) / 2) * 1.0001
fit("expm1_reduced", expm1_tail, lambda r: np.abs(r) + 1e-9, -half, half, 6)
# In h = r / 2, of (e^(2h) - 1) / 2: c[k] 2^(k+1)
fit("tanh", expm1_tail, lambda r: np.abs(r) + 1e-9, -half, half, 5, scale=2.0)


TANH_OFFSET = 1.25
TANH_SCALE = float(np.float32(15 * TANH_OFFSET / 9.02))


def tanh_table():
    """Rows of the AVX-512 table: 32 intervals, by exponent and three more bits of
    u = TANH_SCALE |x| + TANH_OFFSET. The offset is the one of n / 8 with the smallest error."""
    rows = np.zeros((6, 32))
    edge = TANH_OFFSET
    for i in range(32):
        width = 2.0 ** math.floor(math.log2(edge)) / 8
        begin = float(np.float32((edge - TANH_OFFSET) / TANH_SCALE))
        end = (edge + width - TANH_OFFSET) / TANH_SCALE
        t = (end - begin) / 2 * (1 - np.cos(np.pi * (np.arange(2000) + 0.5) / 2000))
        f = np.array([float(mpmath.tanh(mpmath.mpf(begin) + mpmath.mpf(v))) for v in t])
        done = [0.0, 1.0] if i == 0 else []
        while len(done) < 5:
            rest = f - sum(c * t**k for k, c in enumerate(done))
            powers = np.stack([(t / t.max()) ** k for k in range(len(done), 5)], 1)
            c = lawson(powers, rest, 1 / np.maximum(f, 1e-30), 40)[0] / t.max() ** len(done)
            done.append(float(np.float32(c)))
        # The last exponent bits and three more of `edge` are its column.
        column = int(np.float32(edge).view(np.int32)) >> 20 & 31
        rows[:, column] = [np.float32(begin), *done]
        edge += width
    print("tanh_table:")
    for row in rows:
        print("  {" + ", ".join(float(v).hex().replace("0000000p", "p") + "f" for v in row) + "},")


tanh_table()
root = float(mpmath.sqrt(2))
fit("log1p_reduced", log1p_tail, lambda f: np.abs(f**3 / np.where(f == 0, 1, np.log1p(f))),
    1 / root - 1 - 1e-6, root - 1 + 1e-6, 8)
