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

KERNEL_CACHE=${KERNEL_CACHE:-build/cache/kernels}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
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

# Where this machine gets its own release from, by apt's own account.
host_mirror() { # SUFFIX-OF-THE-SUITE
	local codename
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
		awk -v suite="$codename$1" '$1 == suite { print $2; exit }'
}

mirror_of() { # SUITE
	case $1 in
	*-security) echo "${DEBIAN_SECURITY_MIRROR:-$(host_mirror -security)}" ;;
	*) echo "${DEBIAN_MIRROR:-$(host_mirror '')}" ;;
	esac
}

# apt with lists, status and configuration of its own.
private_apt() { # DIR COMMAND...
	local dir=$1
	shift
	"$1" -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root \
		-o APT::Update::Post-Invoke-Success::= -o APT::Architecture=amd64 "${@:2}"
}

write_sources() { # DIR VERSION
	local suite mirror
	mkdir -p "$1"/state/lists/partial "$1"/cache/archives/partial
	: >"$1/status"
	for suite in $(suites_of "$2"); do
		mirror=$(mirror_of "$suite")
		[ -n "$mirror" ] || die "this machine has no source for $suite: set DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR"
		echo "deb [signed-by=$KEYRING] $mirror $suite main"
	done >"$1/sources.list"
}

# The package with the image that the meta package of VERSION depends on.
image_package() { # DIR
	private_apt "$1" apt-cache depends "$META" | awk '$1 == "Depends:" && /linux-image-/ { print $2; exit }'
}

fetch() { # VERSION
	local version=$1 dir=$KERNEL_CACHE/.$1.new package release
	dir=$(realpath -m "$dir")
	rm -rf "$dir"
	write_sources "$dir/apt" "$version"
	private_apt "$dir/apt" apt-get update
	package=$(image_package "$dir/apt")
	[ -n "$package" ] || die "Linux $version: $META is not in $(suites_of "$version")"
	(cd "$dir" && private_apt "$dir/apt" apt-get download "$package")
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
