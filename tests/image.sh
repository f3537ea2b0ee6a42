#!/bin/sh
# The image with a real Docker engine:  sh tests/image.sh build   |   sh tests/image.sh test   (make image, make image-test)
# Where no registry can be reached, the base is built by debootstrap, as root, under the name recipe-base.
set -eu
cd "$(dirname "$0")/.."
IMAGE=${IMAGE:-recipe}
OFFICIAL=python:3.11-slim
VOLUME=recipe-image-test-$$
COMMIT=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)

# A client without its buildx plugin cannot use BuildKit; the engine's own package brings one that can.
DOCKER=${DOCKER:-docker}
$DOCKER buildx version >/dev/null 2>&1 || [ ! -x /usr/bin/docker ] || DOCKER=/usr/bin/docker
export DOCKER_BUILDKIT=1

main() {
	$DOCKER info >/dev/null 2>&1 || { echo "image: no Docker engine answers; start it, or install one: .ci/engine" >&2; exit 1; }
	case ${1:-} in
	build) build ;;
	test)
		build
		check
		;;
	*) echo "usage: sh tests/image.sh build|test" >&2; exit 2 ;;
	esac
}

build() {
	base
	if [ -f /etc/pip.conf ]; then set -- --secret id=pip.conf,src=/etc/pip.conf; fi
	if [ -n "${SSL_CERT_FILE:-}" ]; then set -- "$@" --secret "id=ca.crt,src=$SSL_CERT_FILE"; fi
	started=$(date +%s)
	$DOCKER build --progress plain --network host --tag "$IMAGE" "$@" --build-arg BASE="$BASE" \
		--build-arg COMMIT="$COMMIT" --build-arg LOCK="$(sha256sum requirements.lock | cut -c -12)" .
	echo "image: $IMAGE built in $(($(date +%s) - started)) s, $(size) MB"
}

base() {
	BASE=$OFFICIAL
	if $DOCKER image inspect "$BASE" >/dev/null 2>&1 || timeout 300 $DOCKER pull --quiet "$BASE" >/dev/null 2>&1; then
		return
	fi
	BASE=recipe-base
	if $DOCKER image inspect "$BASE" >/dev/null 2>&1; then return; fi
	echo "image: no registry in reach, so the base is made by debootstrap"
	root=$(mktemp -d)
	debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" >"$root.log" 2>&1 ||
		{ tail -5 "$root.log" >&2; exit 1; }
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
	tar -C "$root" --one-file-system -c . | $DOCKER import --change 'CMD ["python3"]' - "$BASE" >/dev/null
	rm -rf "$root" "$root.log"
}

size() { echo $(($($DOCKER image inspect --format '{{.Size}}' "$IMAGE") / 1000000)); }

check() {
	trap '$DOCKER volume rm --force $VOLUME >/dev/null' EXIT

	version=$($DOCKER run --rm "$IMAGE" --version)
	echo "image: --version says: $version"
	case $version in *"commit $COMMIT, lock"*) ;; *) exit 1 ;; esac

	echo "image: as HF Jobs runs it, without ENTRYPOINT"
	$DOCKER run --rm --entrypoint recipe "$IMAGE" train --help >/dev/null

	echo "image: the batches of 8 workers with the 64 MB of /dev/shm that Docker gives (a worker without room hangs)"
	timeout 300 $DOCKER run --rm --network none --entrypoint python "$IMAGE" -W ignore -c "
import numpy
from torch.utils.data import DataLoader
from recipe.data.batches import collate, worker_init
sample = dict(size=(960, 1536), orig_size=(960, 1536), image_id=0, boxes=numpy.zeros((1, 4), numpy.float32),
              class_labels=numpy.zeros(1, numpy.int64), pixels=numpy.full((960, 1536, 3), 7, numpy.uint8),
              labelled=numpy.ones(2, bool), ignored=numpy.zeros((0, 4), numpy.float32))
loader = DataLoader([sample] * 64, batch_size=4, num_workers=8, collate_fn=collate, worker_init_fn=worker_init)
assert [int(batch['pixel_values'].min()) for batch in loader] == [7] * 16"

	echo "image: no build tools, tests or wheels"
	$DOCKER run --rm --entrypoint sh "$IMAGE" -c '! command -v gcc uv make ruff pytest && ! ls -d /src /wheels /uv 2>/dev/null'

	echo "image: Phase A with no network, any uid, a read-only root and one writable volume"
	started=$(date +%s)
	locked_up recipe train --preset pilot
	locked_up python -c "
import json, pathlib
record = json.loads(pathlib.Path('/outputs/pilot/run.json').read_text())
assert record['commit'] == '$COMMIT', record['commit']
assert pathlib.Path('/outputs/pilot/report/report.md').stat().st_size"
	echo "image: Phase A took $(($(date +%s) - started)) s"
	echo "image: $IMAGE, $(size) MB: passed"
}

# /tmp is memory; /home/recipe and /outputs are the same volume, the only place on disk that can be written.
locked_up() {
	program=$1
	shift
	$DOCKER run --rm --network none --user 12345:0 --read-only --tmpfs /tmp \
		--volume "$VOLUME:/outputs" --volume "$VOLUME:/home/recipe" --entrypoint "$program" "$IMAGE" "$@"
}

main "$@"
