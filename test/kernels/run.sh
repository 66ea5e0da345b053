#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The conformance matrix on real kernels: Debian's, each booted in QEMU, and the running one. On
# each of them nodes that can do less and less (inside.sh has the cases); on each of these the
# engine that an agent chooses there by itself, what its probe finds against what is known of that
# kernel (expect-VERSION.txt), and every row of the matrix. TAP on standard output.
#
#   KERNELS    which: versions that fetch.sh knows, and "running" (by SCALE: 5.10 6.12; or all; with ci
#              the netfilter engines only on the first)
#   CASES      which cases (ebpf nftables iptables-nft iptables-legacy accelerator); the last one is not
#              for the running kernel: test/accelerate/run.sh does all of it there
#   SCALE      ci or full (full)
#   PARTS      of the contract test: matrix, or all (matrix)
#   JOBS       machines at a time (one for each processor)
#   PATIENCE   seconds that one machine may take (900; with PARTS=all 1800)
#   BUILD_DIR  where the programs are (build)
#   OUT        where the machines are made (BUILD_DIR/test/kernels); report.md is the table of what
#              passed, and logs/ beside it has everything that was said
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.." || exit 1

export BUILD_DIR=${BUILD_DIR:-build} PARTS=${PARTS:-matrix}
export KERNEL_CACHE=${KERNEL_CACHE:-build/cache/kernels}
SCALE=${SCALE:-full}
case $SCALE in
ci) KERNELS=${KERNELS:-5.10 6.12} ;;
full) KERNELS=${KERNELS:-5.10 6.1 6.12 running} ;;
*)
	echo "run.sh: SCALE \"$SCALE\" is neither ci nor full" >&2
	exit 2
	;;
esac
CASES=${CASES:-ebpf nftables iptables-nft iptables-legacy accelerator}
JOBS=${JOBS:-$(nproc)}
PATIENCE=${PATIENCE:-$([ "$PARTS" = all ] && echo 1800 || echo 900)}
export OUT=${OUT:-$BUILD_DIR/test/kernels}
LOGS=$OUT/logs
REPORT=$OUT/report.md

declare -A job    # KERNEL.CASE: process id
declare -A passed # KERNEL.CASE: "PASSED of ROWS"
declare -A chosen # KERNEL.CASE: engine
declare -A release # KERNEL
declare -A source  # KERNEL: the release of kernel.org that it is made from
n=0 failed=0

result() { # STATUS CLAIM
	n=$((n + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $n - $2"
	else
		failed=$((failed + 1))
		echo "not ok $n - $2"
	fi
}

# ---- running -----------------------------------------------------------------------------------

# In the place of the subshell that calls it, which a signal to end then reaches.
run_case() { # KERNEL CASE
	if [ "$1" = running ]; then
		exec unshare --mount --propagation private timeout --kill-after=15 "$PATIENCE" \
			"$here/inside.sh" "$2"
	fi
	[ "$2" != iptables-legacy ] || export BOOT_APPEND="sockmesh.without=nf_tables"
	[ "$2" != accelerator ] || export BOOT_CPUS=2 # one for softirqs
	CONSOLE_LOG=$LOGS/$1-$2.console exec "$here/boot.sh" "$1" - "$PATIENCE" \
		<<<"SOCKMESH_TEST_PATIENCE=6 PARTS=$PARTS test/kernels/inside.sh $2"
}

# For CI the netfilter engines run on the oldest kernel, and on the running one in the contract test.
is_for() { # KERNEL CASE
	[ -n "${release[$1]:-}" ] && [ "$1 $2" != "running accelerator" ] || return 1
	[ "$SCALE" = full ] || [ "$1" = "${KERNELS%% *}" ] || [ "$2" = ebpf ] || [ "$2" = accelerator ]
}

# One job at a time for each token in the pipe.
start_jobs() {
	local kernel name i
	mkfifo "$OUT/tokens.$$"
	exec {tokens}<>"$OUT/tokens.$$"
	rm "$OUT/tokens.$$"
	for ((i = 0; i < JOBS; i++)); do
		echo >&"$tokens"
	done
	for kernel in $KERNELS; do
		for name in $CASES; do
			is_for "$kernel" "$name" || continue
			(
				read -r <&"$tokens"
				SECONDS=0
				# In the background, so that a signal to end reaches us at once.
				run_case "$kernel" "$name" >"$LOGS/$kernel-$name" 2>&1 &
				trap 'kill $!; wait; exit 130' INT TERM
				wait $!
				status=$?
				echo >&"$tokens"
				printf 'ended %d\nseconds %d\n' "$status" "$SECONDS" >>"$LOGS/$kernel-$name"
			) &
			job[$kernel.$name]=$!
		done
	done
}

stop_jobs() {
	trap '' INT TERM HUP
	local id
	for id in "${job[@]}"; do
		kill "$id" 2>/dev/null
	done
	wait
}

# ---- judging -----------------------------------------------------------------------------------

# Lines of expect-VERSION.txt: "missing FACILITY" of the probe, "differs TEST" of what its sockmap
# does otherwise than TCP, "skipped HOW" of the matrix; of the accelerator's tests "untried HOW",
# "fails TEST" and "fixed A.B.C BUG", the release from which on it does not have a bug that turns the
# accelerator off. A kernel without the file has to have everything.
expected() { # KERNEL WORD
	[ ! -e "$here/expect-$1.txt" ] || sed -n "s/^$2 //p" "$here/expect-$1.txt"
}

engine_of_case() { # CASE
	echo "${1%%-*}"
}

judge_choice() { # KERNEL CASE LOG
	local want
	want=$(engine_of_case "$2")
	chosen[$1.$2]=$(sed -n 's/^auto //p' "$3")
	[ "${chosen[$1.$2]}" = "$want" ]
	result $? "$1 $2: an agent that may choose takes $want"
	[ "${chosen[$1.$2]}" = "$want" ] || echo "#   it has: ${chosen[$1.$2]:-none}"
}

judge_probe() { # KERNEL CASE LOG
	local differences
	differences=$(diff <(expected "$1" missing | sort) \
		<(sed -En 's/^facility (missing|required) //p' "$3" | sort))
	[ -z "$differences" ] && grep -q '^facility found' "$3"
	result $? "$1 $2: the probe finds what is known of this kernel"
	[ -z "$differences" ] || {
		printf '%s\n' "$differences" |
			sed -n 's/^</#   known as missing, but found:/p; s/^>/#   missing, but not known as that:/p'
		grep '^# probe: ' "$3"
	}
}

# All of the accelerator's tests can be tried on every kernel, and its programs load.
judge_accelerator() { # KERNEL CASE LOG
	local differences
	differences=$(diff <(expected "$1" differs | sort) <(sed -n 's/^accelerator differs //p' "$3" | sort))
	[ -z "$differences" ] && grep -q '^accelerator as-tcp loads$' "$3" && ! grep -q '^accelerator unknown' "$3" &&
		grep -q '^accelerator-level full$' "$3"
	result $? "$1 $2: the accelerator finds what is known of this kernel's sockmap"
	grep -q '^accelerator ' "$3" || echo "#   it was not tried"
	[ -z "$differences" ] || printf '%s\n' "$differences" |
		sed -n 's/^</#   known to differ, but as TCP:/p; s/^>/#   differs, but not known to:/p'
	sed -n 's/^accelerator unknown/#   could not be tried:/p' "$3"
	[ -n "$(sed -n '/^accelerator as-tcp loads$/p' "$3")" ] || grep '^# accelerator: ' "$3"
}

# An operator who has not asked for more gets what the release allows, and reads why.
judge_auto() { # KERNEL LOG
	local said first bug wanted=full
	said=$(sed -n 's/^accelerator-auto //p' "$2")
	read -r first bug <<<"$(expected "$1" fixed)"
	if [ -n "$first" ] && [ "$(printf '%s\n' "${source[$1]}" "$first" | sort -V | head -n 1)" != "$first" ]; then
		wanted="off this kernel has a known bug: $bug, fixed in $first"
		[ "$said" = "$wanted" ]
	else
		[[ $said = "full --accelerate auto: "* ]]
	fi
	result $? "$1 accelerator: --accelerate auto on ${source[$1]:-?}: $wanted"
	echo "#   $said"
}

judge_streams() { # KERNEL LOG
	local line good=0 bad=0 skipped=0 unexpected
	while read -r line; do
		case $line in
		"row ok "*" # SKIP "*) skipped=$((skipped + 1)) ;;
		"row ok "*) good=$((good + 1)) ;;
		"row not ok "*) bad=$((bad + 1)) ;;
		esac
	done <"$2"
	passed[$1.accelerator]="$good of $((good + bad + skipped))"
	unexpected=$(diff <(expected "$1" fails | sort) <(sed -En 's/^row not ok [0-9]+ - //p' "$2" | sort))
	grep -qx "row 1\.\.$((good + bad + skipped))" "$2" && [ "$good" -gt 0 ] && [ -z "$unexpected" ]
	result $? "$1 accelerator: streams and hazards: $good passed, $bad failed, $skipped skipped"
	[ -z "$unexpected" ] || printf '%s\n' "$unexpected" |
		sed -n 's/^</#   known to fail, but passed:/p; s/^>/#   failed, but not known to:/p'
	sed -n '/^row not ok/,/^row \(ok\|1\.\.\)/{/^row \(ok\|1\.\.\)/d; s/^row /#   /p}' "$2" | head -n 60
	sed -n 's/^row # \(.*bytes the short way.*\)/#   \1/p' "$2"
	unexpected=$(sed -n 's/^row ok .* # SKIP //p' "$2" | grep -vxFf <(expected "$1" untried; echo) | sort | uniq -c)
	[ -z "$unexpected" ]
	result $? "$1 accelerator: nothing is skipped that this kernel can do"
	[ -z "$unexpected" ] || printf '%s\n' "$unexpected" | sed 's/^/#   /'
}

# Where bpf() is denied the probe must say that of eBPF, and of no other engine.
judge_denied_probe() { # KERNEL CASE LOG
	local engine want status=0
	for engine in ebpf nftables iptables; do
		want=usable
		case $engine.$2 in
		ebpf.* | nftables.iptables-legacy) want=unusable ;;
		esac
		grep -qx "engine $engine $want" "$3" || {
			status=1
			echo "#   $engine: wanted $want, got: $(sed -n "s/^engine $engine //p" "$3")"
		}
	done
	result $status "$1 $2: the probe says which engines can be used"
	[ $status -eq 0 ] || grep '^# probe: ' "$3"
}

judge_matrix() { # KERNEL CASE LOG
	local good bad skipped planned unexpected
	bad=$(grep -c '^row not ok' "$3")
	skipped=$(grep -cE '^row ok .* # SKIP' "$3")
	good=$(($(grep -c '^row ok' "$3") - skipped))
	planned=$(sed -n 's/^row 1\.\.//p' "$3")
	passed[$1.$2]="$good of $((good + bad + skipped))"
	[ "$bad" -eq 0 ] && [ "$good" -gt 0 ] && [ "${planned:-0}" -eq $((good + bad + skipped)) ]
	result $? "$1 $2: the matrix: $good passed, $bad failed, $skipped skipped"
	sed -n '/^row not ok/,/^row \(ok\|1\.\.\)/{/^row \(ok\|1\.\.\)/d; s/^row /#   /p}' "$3" | head -n 60
	[ "$1" != running ] || return 0
	unexpected=$(sed -n 's/^row ok .* # SKIP //p' "$3" |
		grep -vxFf <(expected "$1" skipped; echo) | sort | uniq -c)
	[ -z "$unexpected" ]
	result $? "$1 $2: nothing is skipped that this kernel can do"
	[ -z "$unexpected" ] || printf '%s\n' "$unexpected" | sed 's/^/#   /'
}

judge() { # KERNEL CASE
	local log=$LOGS/$1-$2 line
	echo "# $1 $2: $(sed -n 's/^seconds //p' "$log") s"
	while read -r line; do
		case $line in
		"ok - "*) result 0 "$1 $2: ${line#ok - }" ;;
		"not ok - "*) result 1 "$1 $2: ${line#not ok - }" ;;
		"# agent: error"*) echo "$line" ;;
		esac
	done <"$log"
	if [ "$2" = accelerator ]; then
		judge_auto "$1" "$log"
		judge_streams "$1" "$log"
		judge_end "$1" "$2" "$log"
		return
	fi
	if [ "$2" != iptables-nft ]; then
		judge_choice "$1" "$2" "$log"
		if [ "$2" != ebpf ]; then
			judge_denied_probe "$1" "$2" "$log"
		elif [ "$1" != running ]; then
			judge_probe "$1" "$2" "$log"
			judge_accelerator "$1" "$2" "$log"
		fi
	fi
	judge_matrix "$1" "$2" "$log"
	judge_end "$1" "$2" "$log"
}

judge_end() { # KERNEL CASE LOG
	grep -qE '^ended [01]$' "$3" || {
		result 1 "$1 $2: ran to its end"
		tail -n 30 "$3" | sed 's/^/#   /'
	}
}

# ---- the report --------------------------------------------------------------------------------

report() {
	local kernel name
	echo "| Kernel | $(for name in $CASES; do heading "$name"; done)"
	echo "|---|$(for name in $CASES; do printf -- '---|'; done)"
	for kernel in $KERNELS; do
		[ -n "${release[$kernel]:-}" ] || continue
		printf '| %s |' "${release[$kernel]}"
		for name in $CASES; do
			printf ' %s%s |' "${passed[$kernel.$name]:--}" "${chosen[$kernel.$name]:+, chosen by itself: ${chosen[$kernel.$name]}}"
		done
		echo
	done
}

heading() { # CASE
	case $1 in
	ebpf) printf 'eBPF | ' ;;
	nftables) printf 'nftables, bpf() denied | ' ;;
	iptables-nft) printf 'iptables (nft), bpf() denied | ' ;;
	iptables-legacy) printf 'iptables (legacy), bpf() denied, no nf_tables | ' ;;
	accelerator) printf 'the accelerator, eBPF | ' ;;
	esac
}

if [ "$(id -u)" -ne 0 ]; then
	echo "run.sh: a machine may be booted as anyone, but the running kernel's part needs root" >&2
	exit 2
fi
rm -rf "$LOGS"
mkdir -p "$LOGS"
trap stop_jobs EXIT
trap 'exit 130' INT TERM HUP
for kernel in $KERNELS; do
	release[$kernel]="running, $(uname -r | cut -d. -f1,2)"
	[ "$kernel" != running ] || continue
	if "$here/fetch.sh" "$kernel" && "$here/initramfs.sh" "$kernel"; then
		release[$kernel]=$(cat "$KERNEL_CACHE/$kernel/release")
		source[$kernel]=$(grep -aom 1 ' Debian [0-9.]*-' "$KERNEL_CACHE/$kernel/vmlinuz" | tr -d ' a-zA-Z-')
	else
		result 1 "$kernel: the kernel and its first file system can be had"
		unset "release[$kernel]"
	fi
done
start_jobs
for kernel in $KERNELS; do
	for name in $CASES; do
		[ -n "${job[$kernel.$name]:-}" ] || continue
		wait "${job[$kernel.$name]}"
		unset "job[$kernel.$name]"
		judge "$kernel" "$name"
	done
done
report >"$REPORT"
sed 's/^/# /' "$REPORT"
echo "1..$n"
[ "$failed" -eq 0 ] && [ "$n" -gt 0 ]
