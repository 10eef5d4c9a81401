#!/bin/sh
# Tells toque of a call with curl: TOKEN=toque_intake_... sh intake.sh CALL STATUS [FROM TO]
#
#     sh intake.sh 4711 initiated 554130600300 5511977770002
#     sh intake.sh 4711 answered
#     sh intake.sh 4711 ended
#
# Exit code 0: it is durable. Without that it may be called again with the same words, as often as need be: once is enough for
# toque. --retry does so by itself where toque cannot be reached, or says 503. Values must need no escaping in JSON.
set -eu

API_URL="${API_URL:-http://127.0.0.1:8080}"
: "${TOKEN:?the token that toque intake add NAME has given}"
at=$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ) # the moment of the call, not of the last try

# The token goes to curl by its standard input: a command line is there for every user of the machine to read.
printf 'header = "Authorization: Bearer %s"\n' "$TOKEN" |
    curl --config - --silent --show-error --fail-with-body --max-time 20 --retry 8 --retry-connrefused \
        --header "Content-Type: application/json" \
        --data "{\"call\":\"$1\",\"status\":\"$2\",\"at\":\"$at\",\"from\":\"${3:-}\",\"to\":\"${4:-}\"}" \
        "$API_URL/intake/events"
