#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds kube-apiserver from the Go module k8s.io/kubernetes, once, and prints the program's path:
# build.sh [newest | oldest]. The program stays; what was downloaded and compiled for it does not.
#
#   newest     apiserver/newest.mod: a release of Kubernetes that is supported today
#   oldest     apiserver/oldest.mod: one that the Go of Debian 12's backports can build, and that
#              lists and watches the older way
#   (neither)  newest where `go` can build it, else oldest
#
#   GO             the Go to build with (the one in PATH; for oldest, where that is missing or too
#                  old, Debian's, which is fetched for the purpose)
#   BUILD_JOBS     compilers at a time (2)
#   CLUSTER_CACHE  where programs are kept (build/cache/cluster); one can serve many work trees
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=test/lib/debian.sh
. test/lib/debian.sh

SOURCE=$PWD/test/cluster/apiserver
CACHE=$(realpath -m "${CLUSTER_CACHE:-build/cache/cluster}")
DEBIAN_GO=1.23
DEBIAN_ARCHITECTURE=$(dpkg --print-architecture)
BUILD_JOBS=${BUILD_JOBS:-2}
# Modules, objects and the linker's temporary files, at their largest.
NEEDED_MB=6000

die() {
	echo "build.sh: $*" >&2
	exit 1
}

# No toolchain is fetched behind the user's back.
export GOTOOLCHAIN=local DEBIAN_ARCHITECTURE

go_can_build() { # MODFILE
	local have need
	have=$(cd / && "$GO" env GOVERSION 2>/dev/null) || return 1
	need=$(awk '$1 == "go" { print $2; exit }' "$1")
	printf '%s\n' "$need" "${have#go}" | sort -CV
}

# Debian's Go, for as long as it is needed.
fetch_go() { # DIR
	debian_fetch "$1" bookworm-backports "golang-$DEBIAN_GO-go" "golang-$DEBIAN_GO-src"
	# The packages' own links lead to /usr, where they are not installed.
	ln -sfn "$1/usr/share/go-$DEBIAN_GO/src" "$1/usr/lib/go-$DEBIAN_GO/src"
	GO=$1/usr/lib/go-$DEBIAN_GO/bin/go
}

kubernetes_version() { # MODFILE
	awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$1"
}

check_room() {
	local free
	free=$(df --output=avail -BM "$CACHE" | tail -n1)
	[ "${free//[!0-9]/}" -ge "$NEEDED_MB" ] || die "$CACHE needs $NEEDED_MB MB, and has $free"
}

compile() { # RELEASE WORK-DIRECTORY
	local version minor package=k8s.io/component-base/version
	mkdir "$2/source"
	cp "$SOURCE/main.go" "$2/source/"
	cp "$SOURCE/$1.mod" "$2/source/go.mod"
	cp "$SOURCE/$1.sum" "$2/source/go.sum"
	version=$(kubernetes_version "$SOURCE/$1.mod")
	minor=${version#v1.}
	minor=${minor%%.*}
	# The tag lets the linker drop what only tracing of gRPC would need; releases are built so.
	(cd "$2/source" && exec env CGO_ENABLED=0 GOMAXPROCS="$BUILD_JOBS" GOFLAGS=-modcacherw \
		GOMODCACHE="$2/modules" GOCACHE="$2/objects" GOTMPDIR="$2" GOWORK=off "$GO" build \
		-p "$BUILD_JOBS" -trimpath -buildvcs=false -tags grpcnotrace \
		-ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor" \
		-o "$2/kube-apiserver" .)
}

build() { # RELEASE PROGRAM
	local work start=$SECONDS
	check_room
	echo "  GO       kube-apiserver $(kubernetes_version "$SOURCE/$1.mod"): downloads and minutes of work, once" >&2
	# Nobody else builds here now: these are of builds that were killed.
	rm -rf "$CACHE"/.build.*
	work=$(mktemp -d "$CACHE/.build.XXXXXX")
	# shellcheck disable=SC2064 # this directory, whatever the variable holds later
	trap "rm -rf '$work'" EXIT
	go_can_build "$SOURCE/$1.mod" || fetch_go "$work/go"
	go_can_build "$SOURCE/$1.mod" || die "no Go that can build $SOURCE/$1.mod: set GO"
	compile "$1" "$work"
	rm -f "$CACHE/kube-apiserver-$1-"*
	mv "$work/kube-apiserver" "$2"
	echo "  GO       took $((SECONDS - start)) s" >&2
}

main() { # [RELEASE]
	local release=${1:-} program key
	GO=${GO:-go}
	if [ -z "$release" ]; then
		release=oldest
		! go_can_build "$SOURCE/newest.mod" || release=newest
	fi
	[ -e "$SOURCE/$release.mod" ] || die "\"$release\" is neither newest nor oldest"
	mkdir -p "$CACHE"
	key=$(cat "$SOURCE/main.go" "$SOURCE/$release.mod" "$SOURCE/$release.sum" | sha256sum | cut -c1-16)
	program=$CACHE/kube-apiserver-$release-$key
	if [ ! -x "$program" ]; then
		exec 9>"$CACHE/lock"
		flock 9
		[ -x "$program" ] || build "$release" "$program"
	fi
	echo "$program"
}

main "$@"
