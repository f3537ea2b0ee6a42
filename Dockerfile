# What runs on the workstation and on HF Jobs alike.   make image   (or: docker build -t recipe .)
#
# With a C compiler and Triton, for --torch_compile true:
#     docker build --build-arg COMPILER=true -t recipe .
#
# Wheels that lie in wheels/ (`make` puts them there) are taken; the others come through pip. Behind a mirror or a
# company's certificate:
#     docker build -t recipe --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.crt,src=CA_BUNDLE .

# Debian slim with Python 3.11, the version of the lock. A tag may move: `make image` gives the digest that it has now
# and writes it into the image's labels. By hand: --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim

# ---- The locked wheels, every one checked by its sha256, and uv. Nothing of this stage reaches the image.
FROM ${BASE} AS wheels
WORKDIR /build/wheels
# Only the lock and the wheels: no change of the code fetches or checks them again. The brackets let wheels/ be missing.
COPY requirements.lock wheel[s]/*.whl ./
# With all wheels at hand pip only checks them, in place and without an index, so that images build offline.
# Secrets are mounted for this one command and stay in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    if [ "$(ls | grep -c '\.whl$')" -ge "$(grep -c == requirements.lock)" ]; then export PIP_NO_INDEX=1; fi; \
    PIP_FIND_LINKS=. PIP_CERT=/etc/ssl/certs/ca-certificates.crt python3 -m pip download --quiet --no-cache-dir \
    --require-hashes --no-deps --only-binary :all: --requirement requirements.lock --dest .
WORKDIR /build
RUN python3 -m pip install --quiet --no-index --find-links wheels --target uv uv
COPY pyproject.toml uv.lock ./

# ---- The locked environment. It changes with the lock alone, so that a change of the code is pushed in kilobytes.
FROM ${BASE} AS dependencies
# "true": with a C++ compiler, Triton and what they read, 1.7 GB more.
ARG COMPILER=false
# Python.h, which compiled kernels include, comes with the official Python and is a package of its own in Debian's.
RUN if [ "$COMPILER" = true ]; then \
        test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || headers=python3-dev; \
        apt-get update -qq && apt-get install -qq --no-install-recommends g++ $headers && rm -rf /var/lib/apt/lists/*; \
    fi
# The home and the outputs are writable for any uid, because HF Jobs may choose one; nothing else needs to be. (.cache too:
# Docker would make it as root, when a cache is mounted in it.) And su, passwd, mount and their like lose the right to
# become another user, which nothing here needs.
RUN mkdir -m 1777 /home/recipe /home/recipe/.cache /outputs && find / -xdev ! -type l -perm /6000 -exec chmod a-s {} +
# All in one layer: what is removed here takes no room. No GPU has been asked: readelf says which libraries
# libtorch_cuda.so needs (cublas, cudnn, cufft, cusparse, cusparselt, nccl, nvrtc, cufile, nvshmem), and all of these
# stay, with what they open by name at run time (all of cudnn, nvrtc-builtins, nvJitLink).
RUN --mount=type=bind,from=wheels,source=/build,target=/mnt,rw set -e; cd /mnt; \
    # 1,045 MB: Triton compiles for torch.compile, with a C compiler. 14 MB: uvloop, a faster loop for web servers.
    [ "$COMPILER" = true ] || triton="--no-install-package triton"; \
    # The cache lies beside the environment, so that files are linked and not copied.
    UV_PROJECT_ENVIRONMENT=/opt/venv UV_CACHE_DIR=/opt/uv-cache UV_PYTHON_DOWNLOADS=never uv/bin/uv sync --quiet \
        --locked --no-dev --no-install-project --python python3.11 --no-install-package uvloop $triton; \
    rm -rf /opt/uv-cache; cd /opt/venv/lib/python3.11/site-packages; \
    # 144 MB: the libraries' own tests.
    find . -type d -name tests -prune -exec rm -rf {} +; \
    # 149 MB: device code to link new kernels with.  120 MB: linear algebra over several GPUs.  40 MB: counters of a
    # profiler.  33 MB: Arrow over a network.  11 MB: a compiler of protocol buffers.
    rm -rf nvidia/nvshmem/lib/*.bc nvidia/nvshmem/lib/*.a nvidia/cu13/lib/libcusolverMg.so.* \
        nvidia/cu13/lib/libnvperf_*.so pyarrow/*_flight.* pyarrow/libarrow_flight.* torch/bin/protoc*; \
    # 76 MB: headers.  172 MB: matrix decompositions on the GPU (torch.linalg), which no model, loss or optimizer here
    # calls; libtorch_cuda_linalg.so is opened at the first such call alone.
    [ "$COMPILER" = true ] || rm -rf nvidia/*/include torch/include pyarrow/include \
        torch/lib/libtorch_cuda_linalg.so nvidia/cu13/lib/libcusolver.so.*; \
    # Bytecode now: importing transformers uncompiled takes two to three times as long, and the image may be read-only.
    # But not of 500 models that nobody imports (52 MB), of torch.compile (15 MB), of torch's tests (6 MB). A file or two
    # are written for a newer Python, hence `true`.
    /opt/venv/bin/python -m compileall -qq -j 0 -x 'torch/(_inductor|testing/_internal)|transformers/models/'\
'(?!__|auto/|detr/|deformable_detr/|dinov3_vit/|encoder_decoder/|yolos/)' . || true

# ---- The project, last and as plain files: what is installed is what was committed, not a link to a folder.
FROM dependencies AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY recipe recipe
COPY data_prep data_prep
COPY jobs jobs
# Under a prefix of its own, so that the image gets it as one small layer over the environment.
RUN --mount=type=bind,from=wheels,source=/build,target=/mnt ln -s /mnt/wheels wheels && UV_COMPILE_BYTECODE=1 \
    /mnt/uv/bin/uv pip install --quiet --no-cache --no-deps --python /opt/venv/bin/python --prefix /project .

# ---- The image: Python, the environment, the project.
FROM dependencies
# Caches (Hub, datasets, dashboards) and runs outlive a container, and are writable where its root is not.
VOLUME ["/home/recipe", "/outputs"]
# PATH: HF Jobs ignores ENTRYPOINT and is sent ["recipe", "train", ...]. HOME, USER: a uid without an entry in
# /etc/passwd has neither. UNBUFFERED: logs arrive at once. NVIDIA: what the container toolkit is to put in.
ENV PATH=/opt/venv/bin:$PATH HOME=/home/recipe USER=recipe LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The default --output_dir, outputs/run, is then /outputs/run.
WORKDIR /
# Not root; 1000 is the first user of a workstation, and the user of a Space. Any other: docker run --user.
USER 1000
COPY --from=project /project /opt/venv
# Where the image comes from: shown by `recipe --version`, written to run.json. Last, as every commit changes them.
ARG BASE
ARG VERSION=unknown
ARG SOURCE
ARG COMMIT=unknown
ARG LOCK=unknown
ENV RECIPE_COMMIT=${COMMIT} RECIPE_LOCK=${LOCK}
LABEL org.opencontainers.image.title="recipe" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      recipe.lock.sha256="${LOCK}"
# docker run --gpus all recipe train ...
ENTRYPOINT ["recipe"]
CMD ["--help"]
