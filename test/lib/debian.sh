# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Packages of Debian that the machine does not have installed, or whose release it does not run:
# fetched and unpacked, with nothing of the host's own set-up of apt touched.
#
#   DEBIAN_MIRROR           the archive (where the host's own packages come from)
#   DEBIAN_SECURITY_MIRROR  its security updates (the same)

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# Where this machine gets its own release from, by apt's own account.
debian_host_mirror() { # SUFFIX-OF-THE-SUITE
	local codename
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
		awk -v suite="$codename$1" '$1 == suite { print $2; exit }'
}

debian_mirror_of() { # SUITE
	case $1 in
	*-security) echo "${DEBIAN_SECURITY_MIRROR:-$(debian_host_mirror -security)}" ;;
	*) echo "${DEBIAN_MIRROR:-$(debian_host_mirror '')}" ;;
	esac
}

# apt with lists, status and configuration of its own.
debian_apt() { # DIR COMMAND...
	local dir=$1
	shift
	"$1" -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root \
		-o APT::Update::Post-Invoke-Success::= -o APT::Architecture="${DEBIAN_ARCHITECTURE:-amd64}" "${@:2}"
}

# The state of an apt that knows these suites, best first.
debian_sources() { # DIR SUITE...
	local dir=$1 suite mirror
	mkdir -p "$dir"/state/lists/partial "$dir"/cache/archives/partial
	: >"$dir/status"
	shift
	for suite in "$@"; do
		mirror=$(debian_mirror_of "$suite")
		if [ -z "$mirror" ]; then
			echo "this machine has no source for $suite: set DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR" >&2
			return 1
		fi
		echo "deb [signed-by=$DEBIAN_KEYRING] $mirror $suite main"
	done >"$dir/sources.list"
	debian_apt "$dir" apt-get update
}

# Unpacks packages of one suite into DIR, without what they depend on.
debian_fetch() { # DIR SUITE PACKAGE...
	local dir=$1 suite=$2 package
	shift 2
	mkdir -p "$dir/.apt/packages"
	debian_sources "$dir/.apt" "$suite" || return 1
	(cd "$dir/.apt/packages" && debian_apt "$dir/.apt" apt-get download "$@") || return 1
	for package in "$dir/.apt/packages"/*.deb; do
		dpkg-deb -x "$package" "$dir" || return 1
	done
	rm -rf "$dir/.apt"
}
