#!/bin/bash
# ./dev demo and ./dev test in a bare Debian 12: debootstrap's minbase, a clone of this repository
# and nothing else. Needs root and debootstrap; uses the package source this machine uses.
#   fresh_machine.sh [command]    the command to run inside instead, for trying things out
set -euo pipefail
repository=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
inside=${1:-'./dev demo && ./dev test'}

for tool in debootstrap git; do
  command -v "$tool" >/dev/null || { echo "fresh: $tool is not installed." >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "fresh: chroot needs root." >&2; exit 1; }

# First Debian archive of this machine, in either of apt's two formats.
mirror=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list \
               /etc/apt/sources.list 2>/dev/null || true; } |
         awk '/^URIs:/ {for (i = 2; i <= NF; ++i) print $i}
              /^deb / {for (i = 2; i <= NF; ++i) if ($i ~ /^[a-z+]+:/) print $i}' |
         awk '!/security/ && /^https?:|^file:/ {print; exit}')
[ -n "$mirror" ] || { echo "fresh: no Debian archive found in /etc/apt." >&2; exit 1; }

root=$(mktemp -d /var/tmp/halftape-fresh-XXXXXX)
chmod 755 "$root"  # mktemp makes it private, but inside it is everyone's "/"
leave() {
  for place in dev proc; do
    if mountpoint -q "$root/$place"; then umount -l "$root/$place"; fi
  done
  # Removing a root with /dev still bound would remove the machine's devices.
  if ! mountpoint -q "$root/dev"; then rm -rf --one-file-system "$root"; fi
}
trap leave EXIT

echo "fresh: bare Debian 12 in $root"
debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -n 20 "$root.log"; rm -f "$root.log"; exit 1; }
rm -f "$root.log"
rm -f "$root/etc/apt/sources.list"
# How this machine reaches its archive: sources, proxies, keys, names.
for file in sources.list sources.list.d apt.conf.d trusted.gpg.d keyrings preferences.d; do
  [ ! -e "/etc/apt/$file" ] || cp -a "/etc/apt/$file" "$root/etc/apt/"
done
cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
git clone --quiet "$repository" "$root/halftape"
rm -rf "$root/halftape/.git"  # an unpacked archive must do
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb ${http_proxy:+http_proxy=$http_proxy} \
  ${https_proxy:+https_proxy=$https_proxy} chroot "$root" /bin/bash -c "cd /halftape && $inside"
echo "fresh: passed"
