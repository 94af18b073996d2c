#!/bin/sh
# Publishes one session through RabbitMQ's HTTP API, and waits for its result. For trying things out.
#
#   STUDY_VIEWER=... STUDY_PASSWORD=... STUDY_API_URL=http://localhost:15672 \
#       ./session.sh question-1=2 question-2=unsure
#
# It needs a viewer created with `study-ingest viewer add NAME --user N --http`. A real viewer uses AMQP
# or MQTT, because the API is slow, its login sees the names of queues, and this script stores nothing if
# it is interrupted. STUDY_VHOST is the broker's virtual host in URL encoding (%2F is /).
set -eu

vhost=${STUDY_VHOST:-%2F}
session=${STUDY_SESSION:-$(cat /proc/sys/kernel/random/uuid)}
message_id=$(cat /proc/sys/kernel/random/uuid)

# curl reads the password from its standard input, so that `ps` does not show it.
api() {
    printf 'user = "%s:%s"\n' "$STUDY_VIEWER" "$STUDY_PASSWORD" |
        curl --silent --show-error --fail-with-body --config - \
            --header 'content-type: application/json' --data "$2" "$STUDY_API_URL/api/$1"
}

# In local time, with its offset as RFC 3339 writes it (+01:00).
now=$(date +%Y-%m-%dT%H:%M:%S%z | sed 's/..$/:&/')
attempts=
for answer in "$@"; do
    question=${answer%=*} choice=${answer##*=} unsure=false
    [ "$choice" = unsure ] && choice=null unsure=true
    attempts="$attempts${attempts:+,}{\"question_pub_id\":\"$question\",\
\"selected_choice\":$choice,\"is_unsure\":$unsure,\"answered_at\":\"$now\"}"
done
batch="{\"client_session_uuid\":\"$session\",\"attempts\":[$attempts]}"

published=$(api "exchanges/$vhost/study.ingest/publish" "{
    \"routing_key\": \"attempts.v1.$STUDY_VIEWER\",
    \"properties\": {
        \"user_id\": \"$STUDY_VIEWER\", \"delivery_mode\": 2, \"type\": \"study.attempt_batch.v1\",
        \"content_type\": \"application/json\", \"message_id\": \"$message_id\",
        \"timestamp\": $(date +%s), \"headers\": {\"client-session-uuid\": \"$session\"}
    },
    \"payload_encoding\": \"base64\",
    \"payload\": \"$(printf %s "$batch" | base64 | tr -d '\n')\"
}")
case $published in
*'"routed":true'*) ;;
*) echo "no queue took the batch: $published" >&2 && exit 1 ;;
esac

# Each look takes one result, so results of other sessions are taken as well.
for _ in $(seq 60); do
    result=$(api "queues/$vhost/study.results.$STUDY_VIEWER/get" \
        '{"count": 1, "ackmode": "ack_requeue_false", "encoding": "base64"}' |
        sed -n 's/.*"payload":"\([^"]*\)".*/\1/p' | base64 -d)
    case $result in
    *"$session"*) echo "$result" && exit 0 ;;
    '') sleep 0.5 ;;
    esac
done
echo "no result within 30 seconds: does a worker run?" >&2
exit 1
