#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The system that boot.sh boots, as archives that the kernel unpacks one after the other:
#
#   initramfs.sh KERNEL-VERSION   OUT/system.cpio         shell, network tools, init
#                                 OUT/modules-VERSION.cpio what the network needs of that kernel
#                                 OUT/project.cpio        /sockmesh: the programs and test/
#
#   BUILD_DIR     where the programs are (build)
#   KERNEL_CACHE  where fetch.sh put the kernel (build/cache/kernels)
#   OUT           where the archives go (BUILD_DIR/test/kernels)
#
# An archive that is newer than all it is made from is left as it is. Nothing is compressed: to
# decompress would cost the emulated processor more than the archive costs in memory.
set -euo pipefail
cd "$(dirname "$0")/../.."

BUILD_DIR=${BUILD_DIR:-build}
KERNEL_CACHE=${KERNEL_CACHE:-build/cache/kernels}
OUT=${OUT:-$BUILD_DIR/test/kernels}

# Packages whose programs are in it, and programs that are known by the names of alternatives.
PACKAGES=(bash dash coreutils util-linux mount findutils grep sed diffutils procps psmisc jq
	iproute2 nftables iptables kmod bpftool python3-minimal)
ALTERNATIVES=(awk iptables{,-save,-restore} ip6tables{,-save,-restore})
# What connects the pods of test/lib/pod.sh.
PLUGINS=(/usr/lib/cni/bridge /usr/lib/cni/host-local)
# Of the tests, below BUILD_DIR/test.
PROGRAMS=(contract accelerate bench/bench_proxy bench/bench_client bench/bench_server)

# Directories of modules; what they depend on comes along.
MODULES=(net/netfilter net/ipv4 net/ipv6 net/tls net/bridge crypto net/sched net/core drivers/net/veth drivers/net/dummy
	drivers/net/tun drivers/net/ifb drivers/net/macvlan drivers/net/ipvlan)

die() {
	echo "initramfs.sh: $*" >&2
	exit 1
}

archive() { # DIR FILE
	(cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$2.new"
	mv "$2.new" "$2"
}

# Copies a file to the same place under ROOT, with every symbolic link on the way to it.
copy() { # ROOT FILE
	local root=$1 file=$2 place
	while :; do
		place=$(realpath "$(dirname "$file")")/$(basename "$file")
		[ ! -e "$root$place" ] && [ ! -L "$root$place" ] || return 0
		mkdir -p "$root$(dirname "$place")"
		cp -P --preserve=mode "$place" "$root$place"
		[ -L "$place" ] || return 0
		file=$(readlink "$place")
		[[ $file = /* ]] || file=$(dirname "$place")/$file
	done
}

libraries_of() { # FILE...
	{ ldd "$@" 2>/dev/null || :; } | awk '$2 == "=>" && $3 ~ "^/" { print $3 } $1 ~ "^/" && !/:$/ { print $1 }' | sort -u
}

copy_commands() { # ROOT
	local path paths=() library plugins python
	python=$(basename "$(realpath /usr/bin/python3)")-minimal
	readarray -t paths < <(dpkg -L "${PACKAGES[@]}" "$python" | grep -E '^(/usr)?/s?bin/[^/]+$'
		dpkg -L "$python" "lib$python" | grep -E '^/usr/lib/.*\.py$')
	for path in "${ALTERNATIVES[@]}"; do
		paths+=("$(PATH=/usr/sbin:/usr/bin type -P "$path")") || die "$path is not installed"
	done
	for path in "${paths[@]}"; do
		copy "$1" "$path"
	done
	# iptables loads these by name: they are in no program's list.
	plugins=$(dirname "$(dpkg -L iptables | grep '/xtables/libxt_standard\.so$')")
	mkdir -p "$1$plugins"
	cp -P --preserve=mode "$plugins"/*.so "$1$plugins/"
	for path in "${PLUGINS[@]}"; do
		copy "$1" "$path"
	done
	for library in $(libraries_of "${paths[@]}" "${PLUGINS[@]}" "$plugins"/*.so); do
		copy "$1" "$library"
	done
	python=${python%-minimal}
	mkdir "$1/usr/lib/$python/lib-dynload" # python warns where it is missing
}

system_archive() {
	local root=$OUT/system name
	rm -rf "$root"
	mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc/modprobe.d,proc,sys,dev,run,tmp,var,root}
	for name in bin sbin lib lib64; do
		ln -s "usr/$name" "$root/$name"
	done
	ln -s ../run "$root/var/run"
	copy_commands "$root"
	cp test/kernels/init "$root/init"
	chmod 0755 "$root/init"
	printf 'root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
	printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
	archive "$root" "$OUT/system.cpio"
}

# The modules' own names in modules.dep, one a line: those in MODULES and what they need.
wanted_modules() { # MODULES.DEP
	printf '%s\n' "${MODULES[@]}" |
		awk 'NR == FNR { want["kernel/" $1] = 1; next }
		     { sub(":", "", $1) }
		     { for (dir in want) if (index($1, dir "/") == 1 || index($1, dir ".ko") == 1) { print $0; break } }' - "$1" |
		tr -s ' ' '\n' | sort -u
}

modules_archive() { # VERSION
	local kernel=$KERNEL_CACHE/$1 root=$OUT/modules-$1 release from to name
	release=$(cat "$kernel/release")
	from=$kernel/lib/modules/$release
	to=$root/usr/lib/modules/$release
	rm -rf "$root"
	mkdir -p "$to"
	# A package carries no modules.dep: it is made when the kernel is installed.
	[ -s "$from/modules.dep" ] || depmod -b "$kernel" "$release"
	wanted_modules "$from/modules.dep" | while read -r name; do
		install -D -m 0644 "$from/$name" "$to/$name"
	done
	find "$to" -name '*.ko.xz' -exec xz -d {} +
	cp "$from"/modules.{builtin,order} "$to/"
	[ ! -e "$from/modules.builtin.modinfo" ] || cp "$from/modules.builtin.modinfo" "$to/"
	ln -s usr/lib "$root/lib"
	depmod -b "$root" "$release"
	rm "$root/lib" # system.cpio has it
	cp "$kernel/config" "$to/config"
	archive "$root" "$OUT/modules-$1.cpio"
}

project_archive() {
	local root=$OUT/project library program
	rm -rf "$root"
	mkdir -p "$root"/usr/{lib,lib64} "$root"/sockmesh/build/gen
	ln -s usr/lib "$root/lib"
	ln -s usr/lib64 "$root/lib64"
	cp -r test VERSION "$root/sockmesh/"
	rm -rf "$root/sockmesh/test/fuzz/corpus"
	cp -r "$BUILD_DIR/bin" "$root/sockmesh/build/"
	(cd "$BUILD_DIR" && find "${PROGRAMS[@]/#/test/}" -maxdepth 1 -type f -perm /111) | while read -r program; do
		install -D "$BUILD_DIR/$program" "$root/sockmesh/build/$program"
	done
	for library in $(libraries_of "$BUILD_DIR"/bin/*); do
		copy "$root" "$library"
	done
	# With the bytecode alone a developer can ask each kernel's verifier: bpftool prog load.
	cp build/gen/*.linked.o "$root/sockmesh/build/gen/"
	archive "$root" "$OUT/project.cpio"
}

newer_than() { # ARCHIVE FILE...
	[ -s "$1" ] && [ -z "$(find "${@:2}" -newer "$1" -print -quit 2>/dev/null)" ]
}

[ $# -eq 1 ] || die "usage: initramfs.sh KERNEL-VERSION"
[ -e "$KERNEL_CACHE/$1/release" ] || die "no kernel $1 in $KERNEL_CACHE: fetch.sh $1"
mkdir -p "$OUT"
exec {lock}>"$OUT/lock"
flock "$lock"
newer_than "$OUT/system.cpio" test/kernels/init test/kernels/initramfs.sh /var/lib/dpkg/status ||
	system_archive
newer_than "$OUT/modules-$1.cpio" test/kernels/initramfs.sh "$KERNEL_CACHE/$1/release" ||
	modules_archive "$1"
newer_than "$OUT/project.cpio" test "$BUILD_DIR/bin" "${PROGRAMS[@]/#/$BUILD_DIR/test/}" build/gen test/kernels/initramfs.sh ||
	project_archive
