#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots a kernel of Debian in QEMU, without hardware support, and runs a script in it as root:
#
#   boot.sh KERNEL-VERSION SCRIPT [TIMEOUT]
#
# SCRIPT ("-": standard input) is run by bash in /sockmesh, which has test/ and build/ with the
# programs. Its output is ours, and its exit status too. After TIMEOUT seconds (300) the machine is
# stopped: status 124. 125: the kernel ended without the script having ended, or there is no kernel;
# the end of what the kernel said is then on standard error.
#
#   BUILD_DIR    where the programs are (build)
#   BOOT_APPEND  more for the kernel's command line; sockmesh.without=MODULE,... takes modules away
#   BOOT_CPUS, BOOT_MEMORY  of the machine (1, 1536M)
#   CONSOLE_LOG  keeps what the kernel says in this file
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

die() {
	echo "boot.sh: $*" >&2
	exit 125
}

[ $# -eq 2 ] || [ $# -eq 3 ] || die "usage: boot.sh KERNEL-VERSION SCRIPT|- [TIMEOUT]"
version=$1 script=$2 patience=${3:-300}
work=$(mktemp -d "${TMPDIR:-/tmp}/sockmesh-boot.XXXXXX")
machine=''
# shellcheck disable=SC2317
down() {
	trap '' INT TERM HUP
	[ -z "$machine" ] || kill "$machine" 2>/dev/null || :
	wait
	rm -rf "$work"
}
trap down EXIT
trap 'exit 130' INT TERM HUP

mkdir "$work/root"
if [ "$script" = - ]; then
	cat >"$work/root/script"
else
	cp "$script" "$work/root/script" || die "$script cannot be read"
fi
cd "$here/../.."
BUILD_DIR=${BUILD_DIR:-build}
KERNEL_CACHE=${KERNEL_CACHE:-build/cache/kernels}
OUT=${OUT:-$BUILD_DIR/test/kernels}
"$here/fetch.sh" "$version" || die "no kernel $version"
"$here/initramfs.sh" "$version" || die "no initramfs for $version"
(cd "$work/root" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0) >"$work/script.cpio"
cat "$OUT"/{system,"modules-$version",project}.cpio "$work/script.cpio" >"$work/initramfs"

# QEMU 7.2 emulates cmpxchg16b on one processor so that the flags are wrong after it: kernels from
# 6.12 on die of that in their allocator. A fifth level of page tables would only cost time.
# The machine goes when we do, however we end: the kernel sends it the signal.
setpriv --pdeathsig KILL timeout --kill-after=5 "$patience" \
	setpriv --pdeathsig KILL qemu-system-x86_64 \
	-machine pc,accel=tcg,usb=off,vmport=off -cpu max,-cx16,-la57 -smp "${BOOT_CPUS:-1}" -m "${BOOT_MEMORY:-1536M}" \
	-nodefaults -no-user-config -display none -no-reboot \
	-kernel "$KERNEL_CACHE/$version/vmlinuz" -initrd "$work/initramfs" \
	-append "console=ttyS0,115200 quiet loglevel=4 panic=-1 oops=panic mitigations=off random.trust_cpu=on ${BOOT_APPEND:-}" \
	-serial "file:${CONSOLE_LOG:-$work/console}" -chardev stdio,id=out,signal=off -serial chardev:out \
	-serial "file:$work/status" </dev/null &
machine=$!
ended=0
wait "$machine" || ended=$?
machine=''
if [ "$ended" -eq 124 ] || [ "$ended" -eq 137 ]; then
	echo "boot.sh: Linux $version: stopped after $patience s" >&2
	exit 124
fi
status=$(cat "$work/status")
if [[ ! $status =~ ^[0-9]+$ ]]; then
	tail -n 40 "${CONSOLE_LOG:-$work/console}" >&2
	die "Linux $version ended without a status (QEMU: $ended)"
fi
exit "$status"
