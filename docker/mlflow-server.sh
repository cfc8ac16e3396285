#!/bin/sh
# The MLflow server, its arguments being this script's. What a password's file holds is taken into the environment of
# the server alone: libpq reads PGPASSWORD, so that no URI has a password in it.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
  PGPASSWORD=$(cat "$PGPASSWORD_FILE")
  export PGPASSWORD
fi
exec mlflow server "$@"
