# tranche as an image: `docker build --target cpu -t tranche:cpu .`, or without --target for GPUs.
# docs/image.md has the layers and their sizes. Plain instructions only, so that any builder takes
# them; tests/image runs these very lines where there is none.

# ---- what both images stand on: the libraries that the binary is linked with, and a user ----
FROM debian:trixie-20251229-slim AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends libjansson4 libutf8proc3 libssl3t64 libsqlite3-0 libpq5 \
        librdkafka1 libhiredis1.1.0 libmicrohttpd12t64 libstdc++6 ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log
RUN groupadd --gid 65532 tranche \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tranche \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /var/log/lastlog /var/log/faillog

# ---- compiler and sources: nothing of these stages but the binaries goes further ----
FROM debian:trixie-20251229-slim AS sources
WORKDIR /src
COPY tools/install.sh tools/
RUN apt-get update && tools/install.sh run
COPY CMakeLists.txt LICENSE ./
COPY tools/version.cmake tools/cuda_toolkit.sh tools/
COPY kernels kernels
COPY engine engine
COPY schemas schemas
COPY worker worker

FROM sources AS build
ARG COMMIT=unknown
RUN cmake -S . -B build/image -G Ninja -DCMAKE_BUILD_TYPE=Release -DTRANCHE_COMMIT=$COMMIT \
    && cmake --build build/image --target tranche \
    && install -D build/image/tranche /out/tranche

FROM sources AS build-cuda
RUN tools/install.sh cuda && apt-get install -y --no-install-recommends ca-certificates
RUN tools/cuda_toolkit.sh
ARG COMMIT=unknown
RUN root=$(tools/cuda_toolkit.sh) \
    && cmake -S . -B build/image-cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DTRANCHE_COMMIT=$COMMIT \
        -DTRANCHE_CUDA=$root -DCMAKE_SKIP_RPATH=ON \
    && cmake --build build/image-cuda --target tranche \
    && install -D build/image-cuda/tranche /out/tranche-cuda \
    && install -D -m 644 $root/lib/libcublasLt.so.13 /out/libcublasLt.so.13 \
    && .cache/cuda/bin/pip list --format=freeze | sed -n 's/^nvidia-cublas==//p' >/out/cublas.version

# ---- the bill of materials: what dpkg knows, and what came from elsewhere ----
FROM base AS sbom
COPY tools/sbom.sh /
COPY CMakeLists.txt /
RUN sh /sbom.sh /CMakeLists.txt >/sbom.spdx.json

FROM sbom AS sbom-cuda
COPY --from=build-cuda /out/cublas.version /
RUN sh /sbom.sh /CMakeLists.txt "nvidia-cublas $(cat /cublas.version) NVIDIA" >/sbom.spdx.json

# ---- the image for CPUs ----
FROM base AS cpu
COPY --from=build /out/tranche /usr/local/bin/tranche
COPY --from=sbom /sbom.spdx.json /usr/share/doc/tranche/sbom.spdx.json
COPY LICENSE /usr/share/doc/tranche/LICENSE
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="tranche" \
      org.opencontainers.image.description="Batch jobs of LLM inference over queues" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.base.name="debian:trixie-20251229-slim"
USER 65532:65532
ENTRYPOINT ["tranche"]
CMD ["help"]

# ---- the image for GPUs: beside the binary nothing of CUDA but cuBLASLt; the driver is the node's ----
FROM base AS cuda
COPY --from=build-cuda /out/libcublasLt.so.13 /usr/local/lib/libcublasLt.so.13
RUN ldconfig
COPY --from=build-cuda /out/tranche-cuda /usr/local/bin/tranche
COPY --from=sbom-cuda /sbom.spdx.json /usr/share/doc/tranche/sbom.spdx.json
COPY LICENSE /usr/share/doc/tranche/LICENSE
# What the container runtime hands in of the driver; which GPUs is the device plugin's to say.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="tranche" \
      org.opencontainers.image.description="Batch jobs of LLM inference over queues, with CUDA" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.base.name="debian:trixie-20251229-slim"
USER 65532:65532
ENTRYPOINT ["tranche"]
CMD ["help"]
