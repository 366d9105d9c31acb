"""Writes what run.py measured: cpu.json, the table cpu.md and the pictures, by gnuplot."""

import json
import shutil
import subprocess
import sys

COLOURS = {
    "ours": "#1f6fb4",
    "torchdiffeq": "#d95f02",
    "torchdiffeq_published": "#e8a060",
    "rampde": "#7b5ea7",
    "compile": "#c0a000",
    "libtorch": "#2a9d5c",
    "diffrax": "#b3364f",
    "floor": "#505050",
}
NAMES = {
    "ours": "halftape",
    "torchdiffeq_published": "torchdiffeq, published layout",
    "compile": "torch.compile",
}


def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def size(number):
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def grouped(rows):
    groups = {}
    for row in rows:
        groups.setdefault((row["name"], row["dtype"], row["threads"]), []).append(row)
    return groups


def markdown(content, pictures):
    machine, rows = content["machine"], content["rows"]
    peers = [p for p in COLOURS if any(r["peer"] == p for r in rows)]
    lines = [
        "# One training step on the CPU: halftape and its peers",
        "",
        f"Written by `{content['command']}` on {content['date']}; numbers, spreads and notes are in"
        " cpu.json. Time of forward, loss and backward, in milliseconds (median of runs that take"
        " turns), and in brackets how many times longer than ours the peer took. tests/bench/peers/"
        "README.md defines the cases.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']},"
        f" {' '.join(machine.get('flags', []))}; load at the start {machine['load_at_start']:.2f}.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in content["versions"].items()) + ".",
        "",
    ]
    body = []
    for (name, dtype, threads), group in grouped(rows).items():
        by_peer = {r["peer"]: r for r in group}
        # The same program, measured beside each peer: the middle of these times.
        ours = sorted(r["ours_seconds"] for r in group)[len(group) // 2]
        floor = group[0]["floor_seconds"]
        cells = [name, dtype, str(threads), group[0]["tier"], milliseconds(ours)]
        cells += [milliseconds(floor), f"{ours / floor:.1f}"]
        for peer in peers:
            r = by_peer.get(peer)
            cells.append(f"{milliseconds(r['peer_seconds'])} ({r['ratio']:.2f})" if r else "-")
        body.append(cells)
    header = ["case", "dtype", "threads", "tier", "halftape", "floor", "/ floor"]
    lines += table(header + [NAMES.get(p, p) for p in peers], body)
    lines += ["", content["floor"]]
    for c in content["ceilings"]:
        lines.append(
            f"{c['threads']} thread(s): P = {c['fma_flops'] / 1e9:.0f} GFLOP/s, t_tanh ="
            f" {c['tanh_seconds'] * 1e9:.3f} ns, BW = {c['triad_bytes'] / 1e9:.1f} GB/s."
        )
    lines += ["", "## Accuracy and memory", ""]
    lines += [
        "Gradient error: mean over y0 and the parameters of the relative 2-norm error against f64"
        " with the same method. Gate: ours is at most twice the peer's, or 1e-5 in f32. Memory: growth"
        " of the resident memory during a step; ours in brackets as its allocator counts it.",
        "",
    ]
    body = []
    seen = set()
    for r in rows:
        key = (r["name"], r["dtype"], r["peer"])
        if key in seen:
            continue
        seen.add(key)
        body.append(
            [
                r["name"],
                r["dtype"],
                NAMES.get(r["peer"], r["peer"]),
                f"{r['error_ours']:.1e}",
                f"{r['error_peer']:.1e}",
                "passed" if r["accuracy_ok"] else "**failed**",
                f"{size(r['resident_bytes'])} ({size(r['peak_bytes'])})",
                size(r["resident_bytes_peer"]),
            ]
        )
    header = ["case", "dtype", "peer", "error, ours", "error, peer", "gate"]
    lines += table(header + ["memory, ours", "memory, peer"], body)
    if content["agreement_f64"]:
        worst = max(content["agreement_f64"], key=lambda a: a["difference"])
        bad = [a for a in content["agreement_f64"] if not a["ok"]]
        lines += [
            "",
            f"In f64, with the peer's method, the gradients of {len(content['agreement_f64'])} pairs of"
            f" programs were compared: the largest relative difference is {worst['difference']:.1e}"
            f" ({worst['name']}, {worst['peer']}); {len(bad)} above 1e-9.",
        ]
    if content["failures"]:
        lines += ["", "## What did not run", ""]
        header = ["case", "dtype", "threads", "program", "reason"]
        lines += table(
            header,
            [
                [f["name"], f["dtype"], str(f["threads"]), f["peer"], " ".join(f["reason"].split())[:200]]
                for f in content["failures"]
            ],
        )
    if pictures:
        lines += ["", "## Growth (f32, one thread)", ""]
        lines += [f"![{text}]({name}.png)" for name, text in pictures]
    return "\n".join(lines) + "\n"


def draw(folder, name, title, axes, series):
    """series: {key: [(x, y), ..]}. Log-log, one line per key; PNG and SVG."""
    script = ["set encoding utf8"]
    for key, points in series.items():
        script.append(f"${key} << EOD")
        script += [f"{x} {y!r}" for x, y in points]
        script.append("EOD")
    plots = []
    for key in series:
        style = "lines dashtype 2" if key == "floor" else "linespoints pointtype 7 pointsize 0.7"
        plots.append(
            f"${key} using 1:2 with {style} linewidth 2 linecolor rgb '{COLOURS[key]}'"
            f" title '{NAMES.get(key, key)}'"
        )
    commands = [
        "set logscale xy",
        "set border 3 linecolor rgb '#606060'",
        "set grid linecolor rgb '#d8d8d8'",
        "set tics nomirror out",
        "set rmargin 5",  # room for half of the last label
        "set key noenhanced left top",
        "set format y '%g'",
        f"set title '{title}'",
        f"set xlabel '{axes[0]}'",
        f"set ylabel '{axes[1]}'",
    ]
    for terminal in ("pngcairo", "svg"):
        ending = "png" if terminal == "pngcairo" else "svg"
        script.append(f"set terminal {terminal} size 720,480 font 'Sans,11' background 'white'")
        script += commands
        script.append(f"set output '{folder / name}.{ending}'")
        script.append("plot " + ", ".join(plots))
        script.append("unset output")
    subprocess.run(["gnuplot"], input="\n".join(script), text=True, check=True)


def draw_all(content, folder):
    pictures = []
    for kind, sweep in content["sweeps"].items():
        series, memory = {}, {}
        for point in sweep["points"]:
            for who, seconds in (point["seconds"] | {"floor": point["floor_seconds"]}).items():
                series.setdefault(who, []).append((point["value"], seconds * 1e3))
            for who, grown in point.get("resident_bytes", {}).items():
                memory.setdefault(who, []).append((point["value"], max(grown, 4096) / 1e6))
        name = f"cpu_time_{kind}"
        title = "One training step"
        draw(folder, name, title, (sweep["label"], "milliseconds"), series)
        pictures.append((name, f"Time against {kind}"))
        if memory:
            name = f"cpu_memory_{kind}"
            title = "Memory of one training step"
            draw(folder, name, title, (sweep["label"], "resident growth, MB"), memory)
            pictures.append((name, f"Memory against {kind}"))
    return pictures


def write(content, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(content, indent=1) + "\n")
    pictures = []
    if content["sweeps"]:
        if shutil.which("gnuplot"):
            pictures = draw_all(content, folder)
        else:
            print("report.py: no pictures, gnuplot is not installed", file=sys.stderr)
    (folder / "cpu.md").write_text(markdown(content, pictures))
