#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Debian's cloud kernels, for boot.sh: fetch.sh VERSION... puts each into CACHE/VERSION, as vmlinuz
# and lib/modules/RELEASE, once. Nothing of the host's own set-up of apt is touched.
#
#   KERNEL_CACHE            where they are kept (build/cache/kernels)
#   DEBIAN_MIRROR           the archive (where the host's own packages come from)
#   DEBIAN_SECURITY_MIRROR  its security updates (the same)
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=test/lib/debian.sh
. test/lib/debian.sh

KERNEL_CACHE=${KERNEL_CACHE:-build/cache/kernels}
META=linux-image-cloud-amd64

die() {
	echo "fetch.sh: $*" >&2
	exit 1
}

# The suites that have a version, best first.
suites_of() { # VERSION
	case $1 in
	5.10) echo bullseye bullseye-security ;;
	6.1) echo bookworm bookworm-security ;;
	6.12) echo bookworm-backports ;;
	*) die "no suite of Debian is known to have Linux $1; there are 5.10, 6.1 and 6.12" ;;
	esac
}

# The package with the image that the meta package of VERSION depends on.
image_package() { # DIR
	debian_apt "$1" apt-cache depends "$META" | awk '$1 == "Depends:" && /linux-image-/ { print $2; exit }'
}

fetch() { # VERSION
	local version=$1 dir=$KERNEL_CACHE/.$1.new package release
	dir=$(realpath -m "$dir")
	rm -rf "$dir"
	# shellcheck disable=SC2046 # a list of names
	debian_sources "$dir/apt" $(suites_of "$version") || die "Linux $version cannot be fetched"
	package=$(image_package "$dir/apt")
	[ -n "$package" ] || die "Linux $version: $META is not in $(suites_of "$version")"
	(cd "$dir" && debian_apt "$dir/apt" apt-get download "$package")
	mkdir "$dir/image"
	dpkg-deb -x "$dir"/*.deb "$dir/image"
	release=$(basename "$dir"/image/boot/vmlinuz-*)
	release=${release#vmlinuz-}
	# From Debian 13 on, and so in backports, the modules may be under /usr/lib.
	mkdir -p "$dir/kernel/lib"
	if [ -d "$dir/image/usr/lib/modules" ]; then
		mv "$dir/image/usr/lib/modules" "$dir/kernel/lib/modules"
	else
		mv "$dir/image/lib/modules" "$dir/kernel/lib/modules"
	fi
	mv "$dir/image/boot/vmlinuz-$release" "$dir/kernel/vmlinuz"
	mv "$dir/image/boot/config-$release" "$dir/kernel/config"
	echo "$release" >"$dir/kernel/release"
	mv "$dir/kernel" "$KERNEL_CACHE/$version"
	rm -rf "$dir"
	echo "  KERNEL   $version is $release" >&2
}

for version in "$@"; do
	[ -e "$KERNEL_CACHE/$version/release" ] || fetch "$version"
done
