#!/usr/bin/env bash
# Makes the virtual environment of the comparison with PyTorch packages (used by nothing else).
#
#   tests/peers/setup.sh [VENV]        default: build/peers/venv under the repository root
#
#   PYTHON            interpreter to use (default python3; 3.11 or newer, as in Debian 12)
#   TORCH_CPU_INDEX   package index with CPU-only torch wheels; "" goes straight to PyPI
#   RAMPDE_COMMIT     commit of rampde to install from GitHub (rampde is not on PyPI)
#   RAMPDE_PATH       a checkout of rampde to use instead (read when the comparison runs, too)
#
# Size: PyPI's torch for Linux x86-64 is the CUDA build: 3 GB to download, 5.5 GB on disk. The CPU-only
# wheel is far smaller, so its index is tried first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${1:-${PEERS_VENV:-$root/build/peers/venv}}
python=${PYTHON:-python3}
torch_cpu_index=${TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}
rampde_commit=${RAMPDE_COMMIT:-baecec7}
torch_version=2.15.0
others=(numpy==2.4.6 scipy==1.17.1 torchdiffeq==0.2.5 safetensors==0.8.0)

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "peers: $python cannot make virtual environments. Fix: apt-get install python3-venv" >&2
  exit 1
fi

# A stamp makes a second call free: same versions, nothing to do.
stamp="torch==$torch_version ${others[*]} rampde@$rampde_commit path=${RAMPDE_PATH:-}"
if [ -f "$venv/peers.stamp" ] && [ "$(cat "$venv/peers.stamp")" = "$stamp" ]; then
  echo "peers: $venv is ready"
  exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# The index is probed first: pip would retry an unreachable one for minutes.
reachable() {
  "$venv/bin/python" - "$1" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=10).close()
PY
}

installed() { "$venv/bin/python" -c 'import torch; print(torch.__version__.split("+")[0])' 2> /dev/null; }
if [ "$(installed)" != "$torch_version" ]; then
  if [ -n "$torch_cpu_index" ] && reachable "$torch_cpu_index/torch/" &&
      pip install "torch==$torch_version" --index-url "$torch_cpu_index"; then
    echo "peers: CPU-only torch $torch_version from $torch_cpu_index"
  else
    echo "peers: torch $torch_version from PyPI (a CUDA build on x86-64: 3 GB to download)"
    pip install "torch==$torch_version"
  fi
fi
pip install "${others[@]}"

rampde_stamp=yes
if [ -n "${RAMPDE_PATH:-}" ]; then
  if [ ! -f "$RAMPDE_PATH/rampde/__init__.py" ]; then
    echo "peers: RAMPDE_PATH=$RAMPDE_PATH holds no rampde/__init__.py." \
         "Fix: name the root of a rampde checkout." >&2
    exit 1
  fi
  echo "peers: rampde is taken from $RAMPDE_PATH"
elif command -v git > /dev/null && reachable https://github.com/EmoryMLIP/rampde &&
    pip install --no-deps "git+https://github.com/EmoryMLIP/rampde@$rampde_commit"; then
  echo "peers: rampde $rampde_commit from GitHub"
else
  rampde_stamp=no
  echo "peers: rampde is not installed (GitHub not reachable, or git missing);" \
       "its rows will be skipped. Fix: set RAMPDE_PATH to a checkout."
fi

"$venv/bin/python" - <<'PY'
import numpy, safetensors, torch, torchdiffeq
print("peers: torch", torch.__version__, "torchdiffeq", torchdiffeq.__version__)
PY
# Without rampde no stamp is written, so that the next call tries again.
if [ "$rampde_stamp" = yes ]; then echo "$stamp" > "$venv/peers.stamp"; fi
