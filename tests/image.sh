#!/bin/sh
# The image with a real Docker engine:  sh tests/image.sh build   |   sh tests/image.sh test   (make image, make image-test)
# COMPILER=true builds and tests the variant for --torch_compile, BASE=NAME takes another base, IMAGE=NAME another name.
# Where no registry can be reached, the base is built by debootstrap, as root, under the name recipe-base:slim.
set -eu
cd "$(dirname "$0")/.."
IMAGE=${IMAGE:-recipe}
BASE=${BASE:-python:3.11-slim}
COMPILER=${COMPILER:-false}
LIMIT=4900 # MB, uncompressed
VOLUME=recipe-image-test-$$
HUB=$VOLUME-hub
COMMIT=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Where the code comes from, without a name or token in the address; a folder of this machine is no source.
SOURCE=$(git config --get remote.origin.url | sed -n 's#^\(https*://\)\([^/@]*@\)*#\1#p')

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
	if [ -n "$DIGEST" ]; then set -- "$@" --label "org.opencontainers.image.base.digest=$DIGEST"; fi
	started=$(date +%s)
	$DOCKER build --progress plain --network host --tag "$IMAGE" "$@" --build-arg BASE="$BASE${DIGEST:+@$DIGEST}" \
		--build-arg COMPILER="$COMPILER" --build-arg VERSION="$VERSION" --build-arg SOURCE="$SOURCE" \
		--build-arg COMMIT="$COMMIT" --build-arg LOCK="$(sha256sum requirements.lock | cut -c -12)" .
	echo "image: $IMAGE built in $(($(date +%s) - started)) s, $(size) MB"
}

# Sets BASE and DIGEST: a tag may move, so the build names the digest that it has now. An image made here has none.
base() {
	if ! $DOCKER image inspect "$BASE" >/dev/null 2>&1 && ! timeout 300 $DOCKER pull --quiet "$BASE" >/dev/null 2>&1; then
		BASE=recipe-base:slim
		$DOCKER image inspect "$BASE" >/dev/null 2>&1 || debian
	fi
	DIGEST=$($DOCKER image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$BASE" | sed -n "s#^${BASE%:*}@##p")
}

# As slim as the official one: without manuals and translations.
debian() {
	echo "image: no registry in reach, so the base is made by debootstrap"
	root=$(mktemp -d)
	debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" >"$root.log" 2>&1 ||
		{ tail -5 "$root.log" >&2; exit 1; }
	(cd "$root" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/*)
	tar -C "$root" --one-file-system -c . | $DOCKER import --change 'CMD ["python3"]' - "$BASE" >/dev/null
	rm -rf "$root" "$root.log"
}

size() { echo $(($($DOCKER image inspect --format '{{.Size}}' "$IMAGE") / 1000000)); }

check() {
	trap clean EXIT
	mkdir -m 777 -p "$WORK" "$WORK/crowd" "$WORK/cache" "$WORK/outputs"
	what_it_is
	workers
	if [ "$COMPILER" = true ]; then compiled; else slim; fi
	phase_a
	with_a_hub
	echo "image: $IMAGE, $(size) MB: passed"
}

WORK=$(mktemp -u)
clean() {
	$DOCKER rm --force "$HUB" >/dev/null 2>&1 || true
	$DOCKER volume rm --force "$VOLUME" >/dev/null
	$DOCKER run --rm --user 0 --volume "$WORK:/work" --entrypoint sh "$IMAGE" -c 'rm -rf /work/*'
	rmdir "$WORK"
}

what_it_is() {
	version=$($DOCKER run --rm "$IMAGE" --version)
	echo "image: --version says: $version"
	case $version in "recipe $VERSION, commit $COMMIT, lock"*) ;; *) exit 1 ;; esac
	for label in version source revision base.name; do
		echo "image: label $label: $($DOCKER image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$label\"}}" "$IMAGE" | grep .)"
	done

	echo "image: as HF Jobs runs it, without ENTRYPOINT"
	$DOCKER run --rm --entrypoint recipe "$IMAGE" train --help >/dev/null

	echo "image: nothing in it becomes another user; torch finds every library that it links to, but the driver's"
	$DOCKER run --rm --user 0 --entrypoint sh "$IMAGE" -ec '
		test -z "$(find / -xdev ! -type l -perm /6000 | tee /dev/fd/2)"
		cd /opt/venv/lib/python3.11/site-packages
		! ldd torch/lib/*.so nvidia/cudnn/lib/*.so.* | grep "not found" | grep -v libcuda.so.1'
}

workers() {
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
}

slim() {
	echo "image: no build tools, tests or wheels; at most $LIMIT MB"
	$DOCKER run --rm --entrypoint sh "$IMAGE" -c '! command -v gcc uv make ruff pytest && ! ls -d /src /wheels /build 2>/dev/null'
	[ "$(size)" -le $LIMIT ]
}

compiled() {
	echo "image: the frozen backbone compiled by inductor, with the same features"
	$DOCKER run --rm --network none --user 12345:0 --entrypoint python "$IMAGE" -W ignore -c "
import torch, triton
from recipe.model.backbone import FrozenBackbone, tiny_backbone
backbone, pixels = FrozenBackbone(tiny_backbone()), torch.rand(1, 3, 64, 96)
features = backbone(pixels).feature_maps[0]
backbone.compile_layers(required=True)
torch.testing.assert_close(backbone(pixels).feature_maps[0], features)"
}

phase_a() {
	echo "image: doctor and Phase A with no network, any uid, a read-only root and one writable volume"
	started=$(date +%s)
	locked_up recipe doctor >"$WORK/said" || { cat "$WORK/said"; exit 1; }
	grep '^ready: recipe train --preset pilot' "$WORK/said"
	if locked_up recipe doctor --data /data >/dev/null 2>&1; then exit 1; fi
	locked_up recipe train --preset pilot
	locked_up python -c "
import json, pathlib
record = json.loads(pathlib.Path('/outputs/pilot/run.json').read_text())
assert record['commit'] == '$COMMIT', record['commit']
assert pathlib.Path('/outputs/pilot/report/report.md').stat().st_size"
	echo "image: doctor and Phase A took $(($(date +%s) - started)) s"
}

# /tmp is memory; /home/recipe and /outputs are the same volume, the only place on disk that can be written.
locked_up() {
	program=$1
	shift
	$DOCKER run --rm --network none --user 12345:0 --read-only --tmpfs /tmp \
		--volume "$VOLUME:/outputs" --volume "$VOLUME:/home/recipe" --entrypoint "$program" "$IMAGE" "$@"
}

with_a_hub() {
	echo "image: the README's docker line: token, cache, data and outputs, against a Hub on 127.0.0.1"
	$DOCKER run --rm --detach --name "$HUB" --network none --volume "$PWD/tests:/tests:ro" --env PYTHONPATH=/tests \
		--entrypoint python "$IMAGE" -m loopback /tmp/hub >/dev/null
	until $DOCKER logs "$HUB" | grep -q HF_TOKEN; do sleep 1; done
	$DOCKER logs "$HUB" | sed -n 's/^export //; /HF_TOKEN\|HF_HOME/!p' >"$WORK/hub.env"
	HF_TOKEN=$($DOCKER logs "$HUB" | sed -n 's/^export HF_TOKEN=//p')
	export HF_TOKEN

	as_readme python -c "
from huggingface_hub import HfApi
from data_prep.__main__ import main
from recipe.model.backbone import FrozenBackbone, tiny_backbone
main(['sample', '/tmp/yolo', '--train', '4', '--val', '2'])
main(['pack', '/tmp/yolo', '--out', '/data'])
FrozenBackbone(tiny_backbone()).save_pretrained('/tmp/backbone')
HfApi().create_repo('alice/backbone', private=True)
HfApi().upload_folder(repo_id='alice/backbone', folder_path='/tmp/backbone')"

	set -- --preset pilot --data /data --backbone alice/backbone --hub_model_id alice/detector
	as_readme recipe doctor "$@" | tail -1 | grep '^ready'
	as_readme recipe train "$@" 2>"$WORK/said" || { cat "$WORK/said" >&2; exit 1; }
	if grep 'Permission denied' "$WORK/said"; then exit 1; fi
	as_readme python -c "
from huggingface_hub import HfApi, scan_cache_dir
assert 'README.md' in HfApi().list_repo_files('alice/detector')
assert 'alice/backbone' in {repo.repo_id for repo in scan_cache_dir().repos}, 'the cache was not used'"

	echo "image: without a token the error names what brings it in"
	unset HF_TOKEN
	if as_readme recipe train "$@" --output_dir /outputs/none 2>"$WORK/said"; then exit 1; fi
	grep 'docker run -e HF_TOKEN' "$WORK/said"
}

# The line of the README, but for --gpus all, and with the Hub's address.
as_readme() {
	program=$1
	shift
	$DOCKER run --rm --network "container:$HUB" --env-file "$WORK/hub.env" --user 12345 -e HF_TOKEN \
		-v "$WORK/cache:/home/recipe/.cache/huggingface" -v "$WORK/crowd:/data" -v "$WORK/outputs:/outputs" \
		--entrypoint "$program" "$IMAGE" "$@"
}

main "$@"
