# Trains on the built-in data: docker build -t codetr . && docker run --rm -v "$PWD/runs:/codetr/runs" codetr
#
# BASE decides where it runs. The default is for CPUs; with an NVIDIA GPU and its container toolkit:
#   docker build --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 -t codetr:cuda .
#   docker run --rm --gpus all -v "$PWD/runs:/codetr/runs" codetr:cuda
# torch from the registry brings its CUDA libraries; the devel image adds the C compiler that Triton needs.
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        gcc git libc6-dev make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /codetr
# the environment first: it changes less often than the code
COPY pyproject.toml constraints.txt setup.py MANIFEST.in README.md LICENSE Makefile ./
COPY codetr/__init__.py codetr/
COPY conf conf
COPY hydra_plugins hydra_plugins
RUN make .venv/.installed
COPY . .
ENV PATH=/codetr/.venv/bin:$PATH WANDB_MODE=offline

CMD ["make", "train"]
