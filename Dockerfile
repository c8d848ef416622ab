# The server without torch: docker build -t finetune .                 (the same as --target cpu)
#                           docker build -t finetune --target gpu .    (CUDA 13 and cuDNN inside, about 2.7 GB more)
#
#   docker run -p 8000:8000 -v "$PWD/models:/models:ro" finetune [key=value ...]
#   docker run --read-only --cap-drop ALL ...                 works too
#   docker run --gpus all ...                                 for the gpu image
#
# Behind a proxy that signs its own certificates, let pip see them while building (with BuildKit, which has no -v,
# use a BASE that holds them):
#   buildah bud -v /etc/ssl/certs/ca-certificates.crt:/ca.crt:ro --build-arg PIP_CERT=/ca.crt .
ARG BASE=debian:bookworm-slim

# pip lives here and installs into /opt/finetune, an environment without pip that the image gets as it is.
FROM ${BASE} AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/finetune
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY scripts/serving-requirements scripts/
# constrains also what pip installs to build a wheel
ENV PIP_CONSTRAINT=/build/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# A stage a set of packages, so that a change of our own code installs none of them again. numpy's tests, typing stubs
# and source maps go. Modules are compiled here, once, in a form that no file date makes stale: the image may be
# read-only.
FROM tools AS packages-cpu
ARG PIP_CERT
RUN scripts/serving-requirements cpu > requirements.txt \
    && /opt/pip/bin/pip --python /opt/finetune/bin/python install --no-compile -r requirements.txt \
    && find /opt/finetune -path '*/numpy/*' -name tests -prune -exec rm -r {} + \
    && find /opt/finetune -type f \( -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete \
    && /opt/finetune/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/finetune

FROM tools AS packages-gpu
ARG PIP_CERT
RUN scripts/serving-requirements gpu > requirements.txt \
    && /opt/pip/bin/pip --python /opt/finetune/bin/python install --no-compile -r requirements.txt \
    && find /opt/finetune -path '*/numpy/*' -name tests -prune -exec rm -r {} + \
    && find /opt/finetune -type f \( -name '*.pyi' -o -name '*.js.map' -o -name '*.css.map' \) -delete \
    && /opt/finetune/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/finetune

FROM tools AS service
ARG PIP_CERT
COPY README.md ./
COPY conf conf
COPY finetune finetune
RUN /opt/pip/bin/pip wheel --no-deps --wheel-dir wheel . \
    && /opt/pip/bin/pip --python /opt/finetune/bin/python install --no-deps --no-compile wheel/*.whl \
    && /opt/finetune/bin/python -m compileall -qq --invalidation-mode unchecked-hash /opt/finetune

FROM ${BASE} AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin finetune \
    && mkdir /models
LABEL org.opencontainers.image.title="finetune-service" \
      org.opencontainers.image.description="Serves image classifiers that finetune exported, over HTTP"
# onnxruntime reports to Microsoft unless told not to, from 1.29 on
ENV PATH=/opt/finetune/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
# finetune, as a number: Kubernetes' runAsNonRoot believes no names
USER 1000:1000
EXPOSE 8000
STOPSIGNAL SIGTERM
# asks as the server, process 1, was told to listen: host=, port= and with tls_cert= over TLS, whose certificate is not
# judged, as it names the service and not this address; http.client, as urllib would go through an http_proxy
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python3", "-I", "-c", "\
import http.client as h, ssl; \
told = dict(w.split('=', 1) for w in open('/proc/1/cmdline').read().split(chr(0)) if '=' in w); \
to = told.get('host', '127.0.0.1'), int(told.get('port', 8000)); \
tls = told.get('tls_cert', 'null') != 'null'; \
c = h.HTTPSConnection(*to, timeout=4, context=ssl._create_unverified_context()) if tls else h.HTTPConnection(*to, timeout=4); \
c.request('GET', '/readyz'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["finetune", "serve", "models=/models", "host=0.0.0.0"]

FROM runtime AS gpu
# what the NVIDIA container toolkit puts in: the driver's libraries, nothing of graphics
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/finetune /opt/finetune
COPY --from=service /opt/finetune /opt/finetune

# the last stage is what is built where no target is named
FROM runtime AS cpu
COPY --from=packages-cpu /opt/finetune /opt/finetune
COPY --from=service /opt/finetune /opt/finetune
