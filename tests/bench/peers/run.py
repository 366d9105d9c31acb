"""Measures one training step (forward, loss, backward) of every case: halftape next to its peers.

    ./dev bench --peers [--quick] [--cases E1,E2] [--peers torchdiffeq,diffrax] [--threads 1,2]

Ours and a peer run in processes of their own and take turns; times are medians of what each measured
itself. Writes cpu.json, cpu.md and pictures (README.md says what is in them). Exit code: 0 measured,
1 a check failed (gradients of two programs in f64 differ, or an error is above the gate), 2 nothing
could be measured.
"""

import argparse
import json
import os
import pathlib
import platform
import select
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np

import floors
import protocol
import report

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PEERS = ("torchdiffeq", "torchdiffeq_published", "rampde", "compile", "libtorch", "diffrax")
HALVES = ("torchdiffeq", "rampde")  # peers that have f16 and bf16

# Case, dtype, peers; --cases selects by name. The peers of E5-m256 are those that need no more than a
# minute for it.
ROWS = (
    ("E1", "f32", PEERS),
    ("E1-S40", "f32", PEERS),
    ("E2", "f32", PEERS),
    ("E3", "f32", PEERS),
    ("E4", "f32", PEERS),
    ("E5-m64", "f32", PEERS),
    ("E5-m256", "f32", ("torchdiffeq", "libtorch", "diffrax")),
    ("E7", "f32", PEERS),
    ("E3", "f16", HALVES),
    ("E7", "f16", HALVES),
    ("E7", "bf16", HALVES),
)
QUICK = ("E1", "E2", "E7")
# Picture, variable, cases by its value, peers. Beyond the last value of a peer only ours runs.
SWEEPS = {
    "steps": {
        "label": "RK4 steps (2-128-128-2, batch 1024)",
        "cases": {s: f"E3-S{s}" for s in (8, 32, 128, 512)},
        "peers": ("torchdiffeq", "rampde", "libtorch", "diffrax"),
        "last": 128,
    },
    "width": {
        "label": "hidden width h (2-h-h-2, batch 1024, 16 steps)",
        "cases": {h: f"E3-S16-h{h}" for h in (16, 64, 128, 256, 512)},
        "peers": ("torchdiffeq", "libtorch", "diffrax"),
    },
    "batch": {
        "label": "batch (2-128-2, 16 steps)",
        "cases": {b: f"E2-S16-B{b}" for b in (1, 16, 128, 1024, 16384)},
        "peers": ("torchdiffeq", "libtorch", "diffrax"),
    },
}
AGREEMENT = 1e-9  # relative difference of f64 gradients of two programs
GATE_RATIO, GATE_F32 = 2.0, 1e-5  # our error <= 2 x the peer's, or <= 1e-5 in f32
WARM_UP = 3
BURST_SECONDS = 0.03  # a burst of steps lasts at least this long
SLOW_STEP = 5.0  # seconds: such a step is warmed up and measured once
LONGEST_STEP = 20.0  # seconds that a point of a sweep may need
# A peer's f64 run keeps every stage: above this estimate ours is its reference, by its method.
REFERENCE_BYTES = 6e9


class Failed(Exception):
    pass


class Worker:
    """A process that answers the commands of README.md."""

    def __init__(self, command, threads, log, timeout=900):
        count = str(threads)
        environment = os.environ | {
            name: count for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        environment["OMP_WAIT_POLICY"] = "passive"  # an idle worker must not take the other's core
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.timeout, self.log = timeout, log
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.buffer = b""
        self.ready = self.read()

    def read(self):
        end = time.monotonic() + self.timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self.close()
                raise Failed(f"no answer in {self.timeout} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                self.close()
                raise Failed(f"ended with code {self.process.returncode}")
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def ask(self, *words):
        try:
            self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
            self.process.stdin.flush()
        except OSError:
            raise Failed(f"ended with code {self.process.poll()}") from None
        return self.read()

    def seconds(self, count):
        return self.ask("run", count)["seconds"]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def burst_of(worker, seconds=None):
    """Warms up; gives the number of steps of a burst and the seconds of a step, if known before."""
    for _ in range(WARM_UP):
        if seconds is not None and seconds > SLOW_STEP:
            break
        seconds = worker.seconds(1)[0]
    return max(1, min(500, round(BURST_SECONDS / seconds))), seconds


def interleaved(ours, peer, budget, known):
    """Bursts by turns until the budget is used up: per burst and side the median of its steps."""
    workers = {"ours": ours, "peer": peer}
    bursts = {}
    for side, worker in workers.items():
        bursts[side], known[worker] = burst_of(worker, known.get(worker))
    medians = {"ours": [], "peer": []}
    end = time.monotonic() + budget
    while len(medians["ours"]) < 40 and (time.monotonic() < end or not medians["ours"]):
        for side, worker in workers.items():
            medians[side].append(float(np.median(worker.seconds(bursts[side]))))
    return {side: summary(values, bursts[side]) for side, values in medians.items()}


def summary(values, steps_per_burst=1):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "median": float(middle),
        "iqr": float(high - low),
        "min": float(min(values)),
        "bursts": len(values),
        "steps_per_burst": steps_per_burst,
    }


class Run:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.log = open(folder / "workers.log", "w")
        self.versions, self.failures, self.agreement = {}, [], []
        self.commit = commit()  # before results are written
        self.cases, self.exact = {}, {}

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def case(self, name):
        if name not in self.cases:
            path = self.folder / f"{name}.json"
            command = [self.arguments.worker, "--case", name, "--dump", str(path)]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode != 0:
                sys.exit(f"run.py: {answer.stdout}{answer.stderr}")
            self.cases[name] = (path, protocol.Case(path))
        return self.cases[name]

    def start(self, who, name, dtype, threads):
        options = ["--precision", dtype, "--threads", str(threads)]
        if who == "ours":
            command = [self.arguments.worker, "--case", name]
        else:
            path = str(self.case(name)[0])
            if who == "libtorch":
                if not self.arguments.libtorch:
                    raise Failed("was not built")
                command = [self.arguments.libtorch, "--case", path]
            else:
                command = [sys.executable, str(HERE / f"{who}_worker.py"), "--case", path]
        worker = Worker(command + options, threads, self.log)
        self.versions |= worker.ask("versions")
        return worker

    def fail(self, who, name, dtype, threads, error):
        self.say(f"  {name} {dtype} {threads} thread(s): {who} failed: {error}")
        entry = {"name": name, "dtype": dtype, "threads": threads, "peer": who, "reason": str(error)}
        # The files name no folder of this machine.
        for folder in (str(ROOT), str(self.folder), os.environ.get("RAMPDE_PATH") or str(ROOT)):
            entry["reason"] = entry["reason"].replace(folder, "...")
        self.failures.append(entry)

    def exact_path(self, name, method, ours):
        """Our f64 gradients of a case by a method."""
        if (name, method) not in self.exact:
            path = self.folder / f"exact-{name}-{method}.json"
            ours.ask("exact", path, method)
            self.exact[name, method] = path
        return self.exact[name, method]

    def check(self, who, worker, name, ours):
        """Error and memory of a peer in f32 or less, and whether it solves the same problem."""
        case = self.case(name)[1]
        method = worker.ready["method"]
        large = case.kind == "otflow" and (
            96 * case.sizes["B"] * case.sizes["S"] * case.sizes["d"] * case.sizes["m"]
            > REFERENCE_BYTES
        )
        reference = self.exact_path(name, method, ours)
        result = worker.ask("check", reference) if large else worker.ask("check")
        if not large and not any(
            a["name"] == name and a["peer"] == who for a in self.agreement
        ):
            path = self.folder / f"exact-{name}-{who}.json"
            worker.ask("exact", path)
            with open(reference) as mine, open(path) as theirs:
                content = json.load(mine), json.load(theirs)
            difference = protocol.gradient_error(
                case, content[0]["gradients"], content[1]["gradients"]
            )
            ok = difference <= AGREEMENT
            self.agreement.append(
                {"name": name, "peer": who, "method": method, "difference": difference, "ok": ok}
            )
            if not ok:
                self.say(f"  {name}: f64 gradients of ours and {who} differ by {difference:.1e}")
        return result

    def rows_of(self, name, dtype, peers, ceilings):
        case = self.case(name)[1]
        if case.kind == "mlp":  # has one layout
            peers = [p for p in peers if p != "torchdiffeq_published"]
        rows, checks = [], {}
        for threads in self.arguments.threads if dtype == "f32" else self.arguments.threads[:1]:
            try:
                ours = self.start("ours", name, dtype, threads)
                tier = ours.ask("tier")["tier"]
                known = {}
                if "ours" not in checks:
                    checks["ours"] = ours.ask("check")
                    known[ours] = checks["ours"]["seconds"]
            except Failed as error:
                self.fail("ours", name, dtype, threads, error)
                continue
            for who in peers:
                try:
                    peer = self.start(who, name, dtype, threads)
                except Failed as error:
                    self.fail(who, name, dtype, threads, error)
                    continue
                try:
                    if who not in checks:
                        checks[who] = self.check(who, peer, name, ours)
                        known[peer] = checks[who]["seconds"]
                    times = interleaved(ours, peer, self.arguments.budget, known)
                except Failed as error:
                    self.fail(who, name, dtype, threads, error)
                    continue
                finally:
                    peer.close()
                row = self.row(name, dtype, threads, tier, who, peer, times, checks)
                row["floor_seconds"] = floors.floor_seconds(case, dtype, ceilings[threads])
                rows.append(row)
                self.say(
                    f"  {name:8} {dtype:4} {threads} thread(s)  ours {row['ours_seconds'] * 1e3:10.3f} ms"
                    f"  {who:12} {row['peer_seconds'] * 1e3:10.3f} ms  ratio {row['ratio']:7.2f}"
                    f"  floor {row['floor_seconds'] * 1e3:9.3f} ms"
                    f"  errors {row['error_ours']:.1e} {row['error_peer']:.1e}"
                    f"{'' if row['accuracy_ok'] else '  GATE'}"
                )
            ours.close()
        return rows

    @staticmethod
    def row(name, dtype, threads, tier, who, peer, times, checks):
        error_ours, error_peer = checks["ours"]["error"], checks[who]["error"]
        ok = error_ours <= GATE_RATIO * error_peer or (dtype == "f32" and error_ours <= GATE_F32)
        return {
            "name": name,
            "dtype": dtype,
            "threads": threads,
            "tier": tier,
            "ours_seconds": times["ours"]["median"],
            "ours": times["ours"],
            "peer": who,
            "peer_seconds": times["peer"]["median"],
            "peer_times": times["peer"],
            "peer_method": peer.ready["method"],
            "peer_note": peer.ready.get("note", ""),
            "ratio": times["peer"]["median"] / times["ours"]["median"],
            "error_ours": error_ours,
            "error_peer": error_peer,
            "accuracy_ok": bool(ok),
            "peak_bytes": checks["ours"]["peak_bytes"],
            "resident_bytes": checks["ours"]["resident_bytes"],
            "resident_bytes_peer": checks[who]["resident_bytes"],
        }

    def sweep(self, kind, ceilings):
        """One thread, f32: medians of single programs, one after the other at each point."""
        plan = SWEEPS[kind]
        points = []
        last = {}  # program -> value and seconds of its last point
        for value, name in plan["cases"].items():
            seconds, memory = {}, {}
            peers = [p for p in plan["peers"] if p in self.arguments.peers]
            for who in ["ours"] + (peers if value <= plan.get("last", value) else []):
                if who in last and last[who][1] * value / last[who][0] > LONGEST_STEP:
                    self.fail(who, name, "f32", 1, f"left out, would need {LONGEST_STEP:.0f} s a step")
                    continue
                try:
                    worker = self.start(who, name, "f32", 1)
                except Failed as error:
                    self.fail(who, name, "f32", 1, error)
                    continue
                try:
                    first = worker.seconds(1)[0]
                    count, _ = burst_of(worker, first)
                    end = time.monotonic() + self.arguments.budget / 4
                    values = []
                    while len(values) < 20 and (time.monotonic() < end or not values):
                        values.append(float(np.median(worker.seconds(count))))
                    seconds[who] = float(np.median(values))
                    last[who] = value, seconds[who]
                    if kind == "steps":
                        memory[who] = worker.ask("memory")["resident_bytes"]
                except Failed as error:
                    self.fail(who, name, "f32", 1, error)
                finally:
                    worker.close()
            point = {
                "value": value,
                "case": name,
                "seconds": seconds,
                "floor_seconds": floors.floor_seconds(self.case(name)[1], "f32", ceilings[1]),
            }
            if memory:
                point["resident_bytes"] = memory
            points.append(point)
            self.say(f"  {kind} {value}: " + "  ".join(f"{w} {s * 1e3:.2f} ms" for w, s in seconds.items()))
        return {"label": plan["label"], "points": points}


def machine():
    facts = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(
                (part.strip() for part in line.split(":", 1)) for line in file if ":" in line
            )
        facts["processor"] = lines.get("model name", "unknown")
        wanted = ("avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_bf16")
        flags = lines.get("flags", "").split()
        facts["flags"] = [f for f in wanted if f in flags]
        with open("/proc/meminfo") as file:
            facts["memory_bytes"] = int(file.readline().split()[1]) * 1024
    except OSError:
        facts.setdefault("processor", platform.processor() or "unknown")
    return facts


def commit():
    answer = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: tuple(text.split(","))
    parser.add_argument("--quick", action="store_true", help="three minutes: E1, E2, E7, no sweeps")
    parser.add_argument("--cases", type=names, help="names as in --cases E1,E5-m64")
    parser.add_argument("--peers", type=names, default=PEERS, help="some of " + ", ".join(PEERS))
    parser.add_argument("--threads", type=lambda t: [int(x) for x in t.split(",")], default=[1, 2])
    parser.add_argument("--dtypes", type=names, default=("f32", "f16", "bf16"))
    parser.add_argument("--budget", type=float, help="seconds for each pair (3; quick 1.5)")
    parser.add_argument(
        "--sweeps", type=names, help=f"some of {', '.join(SWEEPS)}, or none (all, with --cases none)"
    )
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "results")
    parser.add_argument("--worker", required=True, help="our worker")
    parser.add_argument("--ceilings", required=True, help="the program that measures the ceilings")
    parser.add_argument("--libtorch", help="the libtorch worker")
    arguments = parser.parse_args()
    unknown = [p for p in arguments.peers if p not in PEERS]
    if unknown:
        parser.error(f"no peer {unknown[0]}, need some of {', '.join(PEERS)}")
    if arguments.sweeps is None:
        arguments.sweeps = () if arguments.quick or arguments.cases else tuple(SWEEPS)
    arguments.sweeps = [s for s in arguments.sweeps if s != "none"]
    if any(s not in SWEEPS for s in arguments.sweeps):
        parser.error(f"--sweeps: need some of {', '.join(SWEEPS)}, or none")
    arguments.budget = arguments.budget or (1.5 if arguments.quick else 3.0)
    available = len(os.sched_getaffinity(0))
    if max(arguments.threads) > available:
        print(f"run.py: {available} core(s) here, threads above that are left out", file=sys.stderr)
        arguments.threads = [t for t in arguments.threads if t <= available] or [1]
    return arguments


def selected_rows(arguments):
    cases = arguments.cases or (QUICK if arguments.quick else None)
    rows = []
    for name, dtype, peers in ROWS:
        if (cases is None or name in cases) and dtype in arguments.dtypes:
            if arguments.quick and not arguments.cases and dtype != "f32":
                continue
            rows.append((name, dtype, [p for p in peers if p in arguments.peers]))
    listed = {name for name, _, _ in ROWS}
    rows += [(c, "f32", list(arguments.peers)) for c in cases or () if c not in listed]
    return rows


def main():
    arguments = parse()
    start = time.monotonic()
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"run.py: the load is {load:.2f}, other work will disturb the times", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(arguments, pathlib.Path(folder))
        ceilings = {}
        for threads in sorted({1, *arguments.threads}):
            output = subprocess.check_output([arguments.ceilings, "--threads", str(threads)])
            ceilings[threads] = json.loads(output)
            run.say(f"  ceilings: {output.decode().strip()}")
        rows, sweeps = [], {}

        def write():  # after each case: what has been measured is kept if the run is ended
            content = {
                "schema": 1,
                "date": time.strftime("%Y-%m-%d"),
                "command": command,
                "machine": machine() | {"load_at_start": load},
                "versions": run.versions
                | {
                    "halftape": f"{run.versions['halftape']} ({run.commit})",
                    "python": platform.python_version(),
                },
                "ceilings": list(ceilings.values()),
                "floor": floors.CAPTION,
                "rows": rows,
                "sweeps": sweeps,
                "agreement_f64": run.agreement,
                "failures": run.failures,
                "seconds": round(time.monotonic() - start),
            }
            report.write(content, arguments.output)

        # Options that name files of this machine are not part of the command a reader repeats.
        own = ("--worker", "--ceilings", "--libtorch", "--output")
        words = sys.argv[1:]
        words = [
            w for i, w in enumerate(words) if w not in own and (i == 0 or words[i - 1] not in own)
        ]
        command = shlex.join(["./dev", "bench", "--peers", *words])
        for name, dtype, peers in selected_rows(arguments):
            rows += run.rows_of(name, dtype, peers, ceilings)
            if rows:
                write()
        for kind in arguments.sweeps:
            sweeps[kind] = run.sweep(kind, ceilings)
            if rows:
                write()
        if not rows:
            log = pathlib.Path(folder, "workers.log").read_text()
            print(f"run.py: nothing was measured\n{log[-2000:]}", file=sys.stderr)
            return 2
    run.say(f"  {len(rows)} rows in {time.monotonic() - start:.0f} s, see {arguments.output}")
    bad = [a for a in run.agreement if not a["ok"]] + [r for r in rows if not r["accuracy_ok"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
