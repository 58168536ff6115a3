# The image of a training host: launch/gke.sh build, or
#   docker build --build-arg=EXTRAS=cuda13,gcs --tag=IMAGE .
FROM python:3.12-slim

# tpu or cuda13 brings the device's JAX; gcs and s3 read and write object stores.
ARG EXTRAS=tpu,gcs

WORKDIR /unclip_jax
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Dependencies first: this layer is built again only when they change.
COPY setup.py pyproject.toml ./
COPY unclip_jax/version.py unclip_jax/version.py
RUN pip install ".[${EXTRAS}]" && pip uninstall --yes unclip_jax

COPY . .
RUN pip install --no-deps --editable .

SHELL ["/bin/bash", "-c"]
CMD ["unclip", "--help"]
