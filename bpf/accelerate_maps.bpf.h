/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_MAPS_BPF_H
#define SOCKMESH_ACCELERATE_MAPS_BPF_H

/*
 * The accelerator's maps, once. accelerate.c sets the sizes between open and load, and pins them:
 * accel_sockets above all must outlive every agent, because what its sockets have received the
 * short way and not read yet would end with it.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "accelerate_abi.h"

#define accel_map SEC(".maps") __weak

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct accel_pod);
} accel_pods accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct addr16);
	__type(value, struct accel_address);
} accel_addresses accel_map;

/* By socket cookie. Entries leave when their socket is closed, and are never deleted. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, __u64);
} accel_sockets accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct accel_end_key);
	__type(value, struct accel_ends);
} accel_ends accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct accel_stream);
} accel_streams accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct accel_acceptor_key);
	__type(value, struct accel_acceptor);
} accel_acceptors accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct accel_pair_key);
	__type(value, struct accel_pair);
} accel_pairs accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct accel_pair_key);
	__type(value, struct accel_verdict);
} accel_verdicts accel_map;

/* Pairs with several connections at once across CPUs; the agent removes them with their pair. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct accel_pair_key);
	__type(value, struct accel_trial);
} accel_trials accel_map;

/* What a new trial is: too large for a program's stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct accel_trial);
} accel_no_trial accel_map;

/* A lock in the trials' map would not let one be copied into it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct accel_lock);
} accel_trial_lock accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1025);
	__type(key, __u64);
	__type(value, struct accel_usage);
} accel_usage accel_map;

/* Claims of senders that have ended, by the cookie of whoever has yet to read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, __u64);
} accel_carried accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct accel_control);
} accel_control accel_map;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ACCEL_EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} accel_counters accel_map;

static __always_inline void accel_count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&accel_counters, &event);

	if (n)
		__sync_fetch_and_add(n, 1);
}

#endif
