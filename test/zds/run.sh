#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The server for ztunnel, alone, with ztunnels of the test's own that misbehave. TAP on stdout.
# Arguments select tests by a part of their name.
set -eu
cd "$(dirname "$0")/../.."
BUILD_DIR=$(realpath "${BUILD_DIR:-build}")
export BUILD_DIR

if [ "$(id -u)" -ne 0 ]; then
	echo "1..0 # SKIP needs root: only root is let in"
	exit 0
fi
if [ ! -x "$BUILD_DIR/test/zds/zds_rig" ]; then
	echo "Bail out! $BUILD_DIR/test/zds/zds_rig is not built"
	exit 1
fi
exec python3 -EsB test/zds/zds_test.py "$@"
