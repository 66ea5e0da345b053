#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The agent's client of the Kubernetes API against a server that does what a real one will not.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

work=$(mktemp -d "${TMPDIR:-/tmp}/sockmesh-kube.XXXXXX")
trap 'rm -rf "$work"' EXIT

authority() { # NAME: NAME.crt and NAME.key, which sign others
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 \
		-subj "/CN=$1" -keyout "$work/$1.key" -out "$work/$1.crt" 2>>"$work/openssl.log"
}

certificate() { # NAME AUTHORITY SUBJECT-ALTERNATIVE-NAMES
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=$1" \
		-addext "subjectAltName=$3" -keyout "$work/$1.key" -out "$work/$1.csr" 2>>"$work/openssl.log"
	openssl x509 -req -in "$work/$1.csr" -CA "$work/$2.crt" -CAkey "$work/$2.key" -days 3650 \
		-copy_extensions copy -out "$work/$1.crt" 2>>"$work/openssl.log"
}

authority ca
authority stranger
certificate server ca "IP:127.0.0.1,DNS:localhost"
certificate named ca "DNS:kubernetes.default.svc"
certificate alice ca "DNS:alice"
certificate bob ca "DNS:bob"

gcc -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -O2 -fPIC -shared -o "$work/clock_jump.so" "$here/clock_jump.c"

RIG=${BUILD_DIR:-build}/test/kube/watch_rig python3 -EsB "$here/kube_test.py" "$work" "$@"
