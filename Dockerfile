# syntax=docker/dockerfile:1
# Three stages: the wheel, the environment with the wheel in it, and an image that has nothing else.
# tests/packaging/test_image.py runs these very steps without a container engine, under one folder as the root:
# absolute paths in RUN, COPY and WORKDIR are taken from there, so every path we make starts at the root.

FROM rust:1.95-slim-trixie AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements-build.txt ./
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.txt
COPY Cargo.toml Cargo.lock pyproject.toml README.md LICENSE ./
COPY rust rust
COPY python python
# docker build --build-arg BUILD_COMMIT=$(git rev-parse --short=12 HEAD)
ARG BUILD_COMMIT=unknown
RUN /opt/build/bin/maturin build --release --locked --out /wheels

FROM python:3.13-slim-trixie AS environment
WORKDIR /src
# docker build --build-arg REQUIREMENTS=requirements-iceberg.txt: with the sink `iceberg`, which takes some 300 MB
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-iceberg.txt ./
# Without pip inside: what runs needs no installer.
RUN python3 -m venv --without-pip /opt/replicator
RUN python3 -m pip --python /opt/replicator/bin/python install --no-cache-dir --no-compile --require-hashes -r $REQUIREMENTS
COPY --from=wheel /wheels /wheels
RUN python3 -m pip --python /opt/replicator/bin/python install --no-cache-dir --no-compile --no-index --no-deps /wheels/*.whl
# Bytecode by content, not by time: the image's files are never written again.
RUN /opt/replicator/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/replicator/lib

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="replicator" \
      org.opencontainers.image.description="Copies every change of a DynamoDB table, in order and exactly once in effect" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=environment /opt/replicator /opt/replicator
RUN mkdir -p /etc/replicator /var/lib/replicator && chown 65532:65532 /var/lib/replicator
ENV PATH=/opt/replicator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The default state directory, `state`, lies here.
WORKDIR /var/lib/replicator
VOLUME /var/lib/replicator
USER 65532:65532
STOPSIGNAL SIGTERM
# The admin address. Loopback unless REPLICATOR_ADMIN__HOST says otherwise. The check knows a port that
# REPLICATOR_ADMIN__PORT sets; one that only the file sets, or no admin address, wants a check of its own.
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from os import environ; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:%s/healthz' % environ.get('REPLICATOR_ADMIN__PORT', '9464'), timeout=4)"]
ENTRYPOINT ["replicator"]
CMD ["run", "--config", "/etc/replicator/config.yaml"]
