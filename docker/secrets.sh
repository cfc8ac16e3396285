#!/bin/sh
# Makes what compose.yaml names under `secrets`, each once: what is there stays. Nobody else on this machine passes the
# folder; the files in it are readable, since containers read them as users of their own.
set -eu
folder=$(dirname "$0")/secrets
(umask 077 && mkdir -p "$folder")
umask 022

random() { od -An -v -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
once() { # once FILE TEXT
  [ -e "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"
}

once ray_token "$(random 32)"
once postgres_password "$(random 32)"
if ! [ -e "$folder/s3_credentials" ] || ! [ -e "$folder/s3_identities.json" ]; then
  key=$(random 10) secret=$(random 32)
  rm -f "$folder/s3_credentials" "$folder/s3_identities.json"
  once s3_credentials "[default]
aws_access_key_id = $key
aws_secret_access_key = $secret
"
  once s3_identities.json "{\"identities\": [{
  \"name\": \"ablate\",
  \"credentials\": [{\"accessKey\": \"$key\", \"secretKey\": \"$secret\"}],
  \"actions\": [\"Admin\", \"Read\", \"List\", \"Tagging\", \"Write\"]
}]}
"
fi
