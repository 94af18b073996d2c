# The worker's image: every command of study-ingest, run as a user without rights.
FROM python:3.13-slim AS dependencies
COPY deploy/requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/study-ingest \
    && /opt/study-ingest/bin/pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home study-ingest
COPY --from=dependencies /opt/study-ingest /opt/study-ingest
COPY schemas /srv/study-ingest/schemas
COPY migrations /srv/study-ingest/migrations
COPY worker /srv/study-ingest/worker
ENV PYTHONPATH=/srv/study-ingest PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN /opt/study-ingest/bin/python -m compileall -q /srv/study-ingest
USER 10001
# SIGTERM drains: stop_grace_period must be longer than INGEST_DRAIN_TIMEOUT.
ENTRYPOINT ["/opt/study-ingest/bin/python", "-m", "worker"]
CMD ["worker"]
