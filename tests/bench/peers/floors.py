"""The least time a training step can take, from the work of a case and the ceilings of a machine.

    T = max(FLOP / P + transcendentals * t_tanh, bytes / BW)

P: FMA peak, t_tanh: time of 20 FMAs in registers per element, BW: triad bandwidth (ceilings.cpp).
S steps of four stages, batch B. With F = FLOP and A = transcendentals of one velocity evaluation and
sample, a step that replays its stages costs 4 S B F forward, as much for the replay, and twice that
for the reverse sweep: FLOP = 16 S B F, transcendentals = 8 S B A. Bytes: the stored states, written
and read once, 2 (S + 1) B d w, and the weights. Work that is proportional to the state alone
(the sums of the method) is left out.
"""

CAPTION = (
    "Floor T = max(FLOP / P + transcendentals t_tanh, bytes / BW), FLOP = 16 S B F, transcendentals"
    " = 8 S B A, bytes = 2 (S + 1) B d w + weights: S steps of four stages, batch B, state d, w bytes"
    " per stored number; F FLOP and A transcendentals of one evaluation and sample (MLP: F = 2 sum"
    " n_in n_out, A = hidden units; CNF: F = 13 h, A = h, and its hypernetwork once per distinct time;"
    " OT-Flow: F = 4 m^2 + 4 m (d + 1) + 2 m^2 d + 3 m d, A = 2 m). P, t_tanh (20 FMAs) and BW were"
    " measured in the same run."
)


def work(case, stored_bytes):
    """FLOP, transcendentals, bytes of one training step. `case` as in a case file."""
    steps, batch = case.sizes["S"], case.sizes["B"]
    state = sum(y.shape[1] for y in case.y0.values())
    weights = sum(p.size for p in case.theta.values())
    extra = 0
    if case.kind == "mlp":
        matrices = [p for p in case.theta.values() if p.ndim == 2]
        flop = sum(2 * w.size for w in matrices)
        transcendentals = sum(w.shape[0] for w in matrices[:-1])
    elif case.kind == "cnf":
        # Per hidden unit: W . z 4, + b 1, U tanh 4, and the trace 4 (1 - h^2, times U . W, sum).
        flop = 13 * case.sizes["h"]
        transcendentals = case.sizes["h"]
        # The hypernetwork sees 2 S + 1 distinct times: forward, and twice that backward.
        extra = 6 * weights * (2 * steps + 1)
    else:
        m, d = case.sizes["m"], case.sizes["d"]
        # Gradient: K0 s, K1 u0 and their transposes. Trace: K1 J with J [m, d] per sample, forming
        # J, and the squared norms of the rows.
        flop = 4 * m * m + 4 * m * (d + 1) + 2 * m * m * d + 3 * m * d
        transcendentals = 2 * m
    return (
        16 * steps * batch * flop + extra,
        8 * steps * batch * transcendentals,
        2 * (steps + 1) * batch * state * stored_bytes + 4 * weights,
    )


def floor_seconds(case, dtype, ceilings):
    flop, transcendentals, moved = work(case, 2 if dtype in ("f16", "bf16") else 4)
    return max(
        flop / ceilings["fma_flops"] + transcendentals * ceilings["tanh_seconds"],
        moved / ceilings["triad_bytes"],
    )
