#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs each fuzzer for FUZZ_SECONDS and prints TAP: run.sh build/fuzz/NAME_fuzz ...
# The seeds in corpus/NAME are only read. What a run finds goes to build/fuzz/work/NAME, which also
# seeds the next run.
set -u

seconds=${FUZZ_SECONDS:-60}
here=$(cd "$(dirname "$0")" && pwd)
number=0
failed=0

[ $# -gt 0 ] || { echo "usage: $0 build/fuzz/NAME_fuzz ..." >&2; exit 2; }
echo "1..$#"
for fuzzer in "$@"; do
	number=$((number + 1))
	name=$(basename "$fuzzer" _fuzz)
	work=$(dirname "$fuzzer")/work/$name
	log=$work/log
	seeds=$here/corpus/$name

	mkdir -p "$work/corpus" "$work/crashes"
	rm -f "$work/crashes"/*
	# An empty set makes libFuzzer start from nothing, which finds little in a short run.
	if ! ls "$seeds"/* >"$log" 2>&1; then
		echo "not ok $number - $name: no seeds in test/fuzz/corpus/$name"
		failed=1
		continue
	fi
	if "$fuzzer" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 \
		-print_final_stats=0 -verbosity=1 -close_fd_mask=1 \
		-artifact_prefix="$work/crashes/" "$work/corpus" "$seeds" >"$log" 2>&1; then
		runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
		echo "ok $number - $name: ${runs:-?} runs in $seconds s"
	else
		echo "not ok $number - $name"
		tail -n 40 "$log" | sed 's/^/# /'
		for input in "$work/crashes"/*; do
			[ -e "$input" ] && echo "# crashing input: $input"
		done
		failed=1
	fi
done
exit "$failed"
