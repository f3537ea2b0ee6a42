# What runs on the workstation and on HF Jobs alike.   make image   (or: docker build -t recipe .)
#
# Wheels that lie in wheels/ (`make` puts them there) are taken; the others come through pip. Behind a mirror or a
# company's certificate:
#     docker build -t recipe --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.crt,src=CA_BUNDLE .

# Debian slim with Python 3.11, the version of the lock. An argument, for machines that reach no image registry.
ARG BASE=python:3.11-slim

# ---- The locked wheels, every one checked by its sha256. A stage of its own: nothing of it reaches the image.
FROM ${BASE} AS wheels
WORKDIR /wheels
# Only the lock and the wheels: no change of the code fetches or checks them again. The brackets let wheels/ be missing.
COPY requirements.lock wheel[s]/*.whl ./
# With all wheels at hand pip only checks them, in place and without an index, so that images build offline.
# Secrets are mounted for this one command and stay in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    if [ "$(ls | grep -c '\.whl$')" -ge "$(grep -c == requirements.lock)" ]; then export PIP_NO_INDEX=1; fi; \
    PIP_FIND_LINKS=/wheels PIP_CERT=/etc/ssl/certs/ca-certificates.crt python3 -m pip download --quiet --no-cache-dir \
    --require-hashes --no-deps --only-binary :all: --requirement requirements.lock --dest .

# ---- The locked environment. It changes with the lock alone, so that a change of the code is pushed in kilobytes.
FROM ${BASE} AS dependencies
# uv, from the same checked wheels, in an environment of its own that stays behind in this stage.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv /uv && /uv/bin/pip install --quiet --no-index --find-links /wheels uv
# Bytecode now: importing transformers uncompiled takes two to three times as long, and the image may be read-only.
ENV UV_PROJECT_ENVIRONMENT=/opt/venv UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_CACHE_DIR=/opt/uv-cache
WORKDIR /src
# The cache lies beside the environment, so that files are linked and not copied, and is gone before the layer ends.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/src/wheels \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=uv.lock,target=/src/uv.lock \
    /uv/bin/uv sync --quiet --locked --no-dev --no-install-project --python python3.11 && rm -rf /opt/uv-cache

# ---- The project, last and as plain files: what is installed is what was committed, not a link to a folder.
FROM dependencies AS project
COPY pyproject.toml README.md LICENSE ./
COPY recipe recipe
COPY data_prep data_prep
COPY jobs jobs
# Under a prefix of its own, so that the image gets it as one small layer over the environment.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/src/wheels \
    /uv/bin/uv pip install --quiet --no-deps --python /opt/venv/bin/python --prefix /project .

# ---- The image: Python, the environment, the project.
FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
# Writable for any uid, because HF Jobs may choose one; nothing else needs to be.
RUN mkdir -m 1777 /home/recipe /outputs
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
ARG COMMIT=unknown
ARG LOCK=unknown
ENV RECIPE_COMMIT=${COMMIT} RECIPE_LOCK=${LOCK}
LABEL org.opencontainers.image.title="recipe" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      recipe.lock.sha256="${LOCK}"
# docker run --gpus all recipe train ...
ENTRYPOINT ["recipe"]
CMD ["--help"]
