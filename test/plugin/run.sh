#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the plugin as a runtime does, against an agent of the test's own. TAP on stdout.
# The network namespace is private, so that bridges and addresses vanish with the test.
set -eu
cd "$(dirname "$0")/../.."
BUILD_DIR=$(realpath "${BUILD_DIR:-build}")
export BUILD_DIR PYTHONDONTWRITEBYTECODE=1

if [ "$(id -u)" -ne 0 ]; then
	echo "1..0 # SKIP needs root: the plugin is given network namespaces"
	exit 0
fi
if [ ! -x "$BUILD_DIR/bin/sockmesh-cni" ]; then
	echo "Bail out! $BUILD_DIR/bin/sockmesh-cni is not built"
	exit 1
fi
exec unshare --net --mount --propagation private python3 test/plugin/plugin_test.py "$@"
