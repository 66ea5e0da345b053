#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs each fuzzer for FUZZ_SECONDS, as many at a time as there are CPUs (or FUZZ_JOBS), and prints
# TAP: run.sh build/fuzz/NAME_fuzz ...
# The seeds in corpus/NAME are only read. What a run finds goes to build/fuzz/work/NAME, which also
# seeds the next run.
set -u

seconds=${FUZZ_SECONDS:-60}
jobs=${FUZZ_JOBS:-$(nproc)}
here=$(cd "$(dirname "$0")" && pwd)
number=0
failed=0

[ $# -gt 0 ] || { echo "usage: $0 build/fuzz/NAME_fuzz ..." >&2; exit 2; }

work_of() { # FUZZER
	echo "$(dirname "$1")/work/$(basename "$1" _fuzz)"
}

# In the background; its result is in the file `status`.
fuzz() { # FUZZER
	work=$(work_of "$1")
	seeds=$here/corpus/$(basename "$1" _fuzz)
	mkdir -p "$work/corpus" "$work/crashes"
	rm -f "$work/crashes"/* "$work/status"
	# An empty set makes libFuzzer start from nothing, which finds little in a short run.
	if ! ls "$seeds"/* >"$work/log" 2>&1; then
		echo "no seeds in test/fuzz/corpus/$(basename "$1" _fuzz)" >"$work/log"
		echo 1 >"$work/status"
		return
	fi
	"$1" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 \
		-print_final_stats=0 -verbosity=1 -close_fd_mask=1 \
		-artifact_prefix="$work/crashes/" "$work/corpus" "$seeds" >"$work/log" 2>&1
	echo $? >"$work/status"
}

tell() { # FUZZER
	work=$(work_of "$1")
	name=$(basename "$1" _fuzz)
	number=$((number + 1))
	if [ "$(cat "$work/status" 2>/dev/null)" = 0 ]; then
		runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$work/log")
		echo "ok $number - $name: ${runs:-?} runs in $seconds s"
		return
	fi
	echo "not ok $number - $name"
	tail -n 40 "$work/log" | sed 's/^/# /'
	for input in "$work/crashes"/*; do
		[ -e "$input" ] && echo "# crashing input: $input"
	done
	failed=1
}

echo "1..$#"
while [ $# -gt 0 ]; do
	batch=''
	while [ $# -gt 0 ] && [ "$(echo "$batch" | wc -w)" -lt "$jobs" ]; do
		fuzz "$1" &
		batch="$batch $1"
		shift
	done
	wait
	for fuzzer in $batch; do
		tell "$fuzzer"
	done
done
exit "$failed"
