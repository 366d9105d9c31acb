#!/usr/bin/env bash
# Makes the virtual environment of the end-to-end benchmark: that of ../../peers/setup.sh (torch,
# torchdiffeq, rampde; its variables hold here, too) and diffrax with jax for the CPU.
#
#   tests/bench/peers/setup.sh [VENV]        default: build/peers/venv under the repository root
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${1:-${PEERS_VENV:-$root/build/peers/venv}}
packages=(diffrax==0.7.2 equinox==0.13.8 jax==0.10.2 jaxlib==0.10.2)

"$root/tests/peers/setup.sh" "$venv"

stamp=${packages[*]}
if [ -f "$venv/bench.stamp" ] && [ "$(cat "$venv/bench.stamp")" = "$stamp" ]; then
  exit 0
fi
"$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "${packages[@]}"
"$venv/bin/python" -c 'import diffrax, jax; print("peers: diffrax", diffrax.__version__, "jax", jax.__version__)'
echo "$stamp" > "$venv/bench.stamp"
