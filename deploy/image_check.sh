#!/usr/bin/env bash
# Builds both images over local base images, runs `dvc repro` of the sample in the training image as a user that is not root,
# and asks the serving image whether it is ready. Needs root, buildah and debootstrap (apt-get install buildah debootstrap), Debian's
# package server and PyPI, about 8 GB of disk and 25 minutes on two cores. No container engine, no GPU.
#   MOUNTS='-v /etc/pip.conf:/etc/pip.conf:ro' passes what a build needs of this machine, such as its pip configuration or certificates.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in buildah debootstrap unshare; do command -v $tool >/dev/null || { echo "$tool is missing: apt-get install buildah debootstrap util-linux" >&2; exit 1; }; done
[ "$(id -u)" = 0 ] || { echo 'root is needed: building without a container engine changes roots' >&2; exit 1; }
[ -e exports/bcss/reference.json ] || { echo 'exports/bcss is missing: make model' >&2; exit 1; }
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --storage-driver vfs "$@"; }
work=$(mktemp -d); trap 'buildah rm -a >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
read -ra mounts <<< "${MOUNTS:-}"
fail() { echo "FAILED: $*" >&2; exit 1; }

if ! buildah inspect --type image localhost/bcss-base >/dev/null 2>&1; then
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/base" "${MIRROR:-http://deb.debian.org/debian}" >"$work/log" || fail "debootstrap: $(tail -3 "$work/log")"
  rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/* "$work"/base/usr/share/{doc,man,locale}
  c=$(buildah from scratch); buildah copy -q "$c" "$work/base" / >/dev/null; buildah commit -q "$c" bcss-base >/dev/null; buildah rm "$c" >/dev/null; rm -rf "$work/base"
fi

for kind in serve cuda; do
  start=$SECONDS
  buildah build -q "${mounts[@]}" --build-arg BASE=localhost/bcss-base -f "Dockerfile.$kind" -t "bcss-check-$kind" . >"$work/log" 2>&1 || fail "Dockerfile.$kind: $(tail -20 "$work/log")"
  c=$(buildah from "localhost/bcss-check-$kind"); root=$(buildah mount "$c")
  echo "bcss-$kind: built in $((SECONDS - start)) s, $(du -sm "$root" | cut -f1) MB"
  bad=$(find "$root" -xdev \( -name .git -o -name '.env' -o -name '*.pem' -path '*bcss*' -o -name 'id_rsa*' -o -name 'credentials*' -path "$root/home/*" -o -path '*/bcss_nb/data/raw/*' \) -not -path '*/site-packages/*' | head)
  [ -z "$bad" ] || fail "does not belong in an image: $bad"
  eval "$kind=$c ${kind}_root=$root"
done
! ls "$serve_root"/opt/bcss/lib/python3*/site-packages/torch >/dev/null 2>&1 || fail 'the serving image holds PyTorch'
[ "$(du -sm "$serve_root" | cut -f1)" -lt 600 ] || fail 'the serving image has 600 MB or more'

cat > "$work/serve" <<'S'
mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; mount -t tmpfs tmpfs "$1/tmp"; mount -t proc proc "$1/proc"
exec chroot --userspec=10001:10001 "$1" /usr/bin/env -i PATH=/opt/bcss/bin:/usr/bin:/bin PYTHONPATH=/opt/bcss/bcss BCSS_MODEL=/srv/model PYTHONUNBUFFERED=1 \
  python3 -m bcss_nb.cli serve --host 127.0.0.1 --port 8099
S
start=$(date +%s%N)
unshare -m bash "$work/serve" "$serve_root" >"$work/log" 2>&1 & pid=$!
until python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8099/v2/health/ready', timeout=1)" 2>/dev/null; do
  kill -0 $pid 2>/dev/null || fail "the service ended: $(tail -5 "$work/log")"
  [ $(( ($(date +%s%N) - start)/1000000 )) -lt 3000 ] || { kill $pid; fail 'the service is not ready after 3 s'; }
done
echo "bcss-serve: ready after $(( ($(date +%s%N) - start)/1000000 )) ms, read-only, uid 10001"
kill $pid; wait $pid || true

start=$SECONDS
buildah run --user 10001 "${mounts[@]}" "$cuda" -- bash -c 'test "$(id -u)" = 10001 && dvc repro' >"$work/repro" 2>&1 || fail "dvc repro: $(tail -30 "$work/repro")"
echo "bcss-train: dvc repro of the sample in $((SECONDS - start)) s as uid 10001"
python3 -c "import json, sys; print(json.load(open(sys.argv[1]))['verdict'])" "$cuda_root/home/bcss/bcss_nb/reports/compare.json"
buildah run --user 10001 "$cuda" -- bash -c 'dvc status | tail -1; jupyter lab --version; python -c "import bcss_nb, wandb, papermill; print(bcss_nb.__version__)"'
