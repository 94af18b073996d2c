# The worker's image: every command of study-ingest, run as a user without rights.
#
#     docker build -t study-ingest .                      the worker
#     docker build -t study-viewers --target viewers .    the simulated viewers of the compose file
FROM python:3.13-slim AS dependencies
COPY deploy/requirements.lock /tmp/requirements.lock
# Without pip in it: what runs installs nothing.
RUN python -m venv --without-pip /opt/study-ingest \
    && pip --python /opt/study-ingest/bin/python install \
        --no-cache-dir --require-hashes -r /tmp/requirements.lock

FROM python:3.13-slim AS worker
RUN groupadd --gid 10001 study-ingest \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin study-ingest
COPY --from=dependencies /opt/study-ingest /opt/study-ingest
COPY LICENSE /srv/study-ingest/LICENSE
COPY schemas /srv/study-ingest/schemas
COPY migrations /srv/study-ingest/migrations
COPY worker /srv/study-ingest/worker
COPY deploy/study-ingest /opt/study-ingest/bin/study-ingest
ENV PATH=/opt/study-ingest/bin:$PATH \
    PYTHONPATH=/srv/study-ingest PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A root file system that is read-only can't keep the bytecode of a first run.
RUN python -m compileall -q /srv/study-ingest
USER 10001
# SIGTERM drains: stop_grace_period must be longer than INGEST_DRAIN_TIMEOUT.
ENTRYPOINT ["study-ingest"]
CMD ["worker"]

# Simulated viewers: the outbox library of real ones, and the demo's learners.
FROM worker AS viewers
COPY study_viewer /srv/study-ingest/study_viewer
COPY demo /srv/study-ingest/demo
USER root
RUN python -m compileall -q /srv/study-ingest && install -d -o 10001 -g 10001 /var/lib/study-viewers
USER 10001
VOLUME /var/lib/study-viewers
ENTRYPOINT ["python", "-m", "demo.viewers"]
CMD []

# Last, so that it is what a build without a target makes.
FROM worker
