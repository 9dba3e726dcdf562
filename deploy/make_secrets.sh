#!/bin/sh
# Makes what compose.yaml needs in secrets/, once: a token for the reading room, a password for the database, and a
# self-signed certificate. Replace the certificate by one that your clients trust.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
cd secrets
[ -e token ] || openssl rand -hex 32 > token
[ -e database_password ] || openssl rand -hex 32 | tr -d '\n' > database_password
[ -e key.pem ] || openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=${1:-localhost}" \
    -addext "subjectAltName=DNS:${1:-localhost}" -keyout key.pem -out certificate.pem
# The containers read them as another user.
chmod 644 token database_password certificate.pem
