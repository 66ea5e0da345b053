/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_PRIVATE_H
#define SOCKMESH_ACCELERATE_PRIVATE_H

/*
 * What the files of the accelerator share; nothing outside of it includes this. accelerate.c is its
 * surface and says in which order things happen; each other file is one concern.
 */
#include "accelerate.h"
#include "accelerate_abi.h"
#include "accelerate_level.h"
#include "accelerate_probe.h"

#include "accelerate.skel.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct accelerate_address;
struct accelerate_pairs; /* accelerate_pairs.c's */
struct event_source;

enum {
	ACCELERATE_PATH_MAX = 512,
	ACCELERATE_BUCKETS = 256,
};

struct accelerate_known { /* a pod that was set */
	struct accelerate_known *next;
	uint64_t cookie;
	char *ns, *name; /* never NULL */
	enum accelerate_wish wish;
	uint32_t workload; /* its number, never 0 */
	enum accel_level level;
	char reason[ACCELERATE_REASON_MAX];
	struct addr16 *addresses; /* each once */
	size_t n_addresses;
	bool untold; /* the kernel's maps have no room for it yet */
};

struct accelerate_workload {
	char *name; /* "NAMESPACE/NAME" */
	uint32_t id;
	bool cleared;	/* by the adviser */
	json_t *advice; /* what it said, and when; NULL: nothing yet */
};

struct accelerate {
	struct accelerate_config cfg;
	struct accelerate_host host;
	struct event_loop *loop;
	int cgroup_fd;		     /* a copy of our own of the host's */
	struct accelerate_bpf *skel; /* NULL: not loaded, nothing enters the map */
	struct accelerate_probe probe;
	bool probed; /* `probe` says something */

	enum accel_level most; /* that a pod may get here */
	char reason[ACCELERATE_REASON_MAX];
	uint32_t max_sockets; /* or fewer, as the map that was taken over allows */
	bool recount;	      /* places and budgets may be held by nobody */

	struct accelerate_known *pods[ACCELERATE_BUCKETS];
	struct accelerate_address *addresses[ACCELERATE_BUCKETS];

	struct accelerate_workload *workloads; /* by number */
	size_t n_workloads, max_workloads;
	size_t n_swept; /* how many were left when those that nothing refers to were forgotten */
	uint32_t last_workload; /* the highest number that was given */
	struct event_source *save_source;

	struct accelerate_pairs *pairs; /* NULL: not loaded */
	struct event_source *retire_source;
	size_t retiring;  /* versions of earlier agents that still have sockets */
	bool heal_failed; /* and that was logged */
};

/*
 * Every key of a map, in *key; see ebpf_engine.h: the body neither deletes from this map nor writes
 * to it.
 */
#define for_each_accel_key(fd, key)                                                                \
	for (int end_ = bpf_map_get_next_key((fd), NULL, (key)); !end_;                            \
	     end_ = bpf_map_get_next_key((fd), (key), (key)))

/* ---- accelerate_workloads.c: numbers of workloads, and what is remembered of them ---- */

/* The number's name, or NULL: an earlier agent's, whose file is gone. Of 0, "-". */
const char *accelerate_workload_name(const struct accelerate *a, uint32_t id);
/* 0: not known. */
uint32_t accelerate_workload_id(const struct accelerate *a, const char *name);
/* Gives a number when there is none. 0 without memory. */
uint32_t accelerate_workload_number(struct accelerate *a, const char *name);
bool accelerate_workload_cleared(const struct accelerate *a, uint32_t id);
/* Reads the file. Once the maps are open: numbers that they use are not given to others. */
int accelerate_workloads_load(struct accelerate *a, struct error *err);
void accelerate_workloads_done(struct accelerate *a);

/* ---- accelerate_pods.c: levels of pods, and whose address is whose ---- */

struct accelerate_known *accelerate_known(const struct accelerate *a, uint64_t cookie);
/* Pods of a workload, in no order; *ret_cookies is the caller's to free. */
int accelerate_pods_of(const struct accelerate *a, uint32_t workload, uint64_t **ret_cookies,
		       size_t *ret_n, struct error *err);
void accelerate_pods_again(struct accelerate *a, uint32_t workload); /* levels, after a verdict */
void accelerate_pods_done(struct accelerate *a);

/* ---- accelerate_pins.c: what outlives the agent ---- */

/*
 * Loads the skeleton with the pinned maps and the host's, attaches, pins, and lets sockets enter.
 * After a failure accelerate_pins_retire() removes what was made.
 */
int accelerate_pins_load(struct accelerate *a, struct error *err);
/*
 * The programs are on the cgroup that the engine's are on, maps and links are pinned, and nobody
 * has stopped it: what is not so is made so.
 */
int accelerate_pins_heal(struct accelerate *a, struct error *err);
/* stopped: nothing enters, and every direction goes to TCP at its next send. */
int accelerate_pins_brake(struct accelerate *a, bool stopped, struct error *err);
/* A pinned map of our own version, also where it is not loaded; -1: none of that layout. */
int accelerate_pins_map(const struct accelerate *a, const char *name, size_t key_size,
			size_t value_size);
/*
 * Of every agent's pins below bpffs_dir but those in use by `a` (may be NULL): stop tells the
 * programs to let everything go by TCP, retire removes them where no socket is left in the map and
 * says in *ret_left how many it could not.
 */
void accelerate_pins_stop(const char *bpffs_dir, const struct accelerate *a);
int accelerate_pins_retire(const char *bpffs_dir, const struct accelerate *a, size_t *ret_left,
			   struct error *err);
/* Whether sockets are left in them or not. *ret_sockets: how many there are. */
int accelerate_pins_remove(const char *bpffs_dir, size_t *ret_sockets, struct error *err);

/* ---- accelerate_pairs.c: what is learned about pairs of workloads ---- */

/*
 * Needs the loaded skeleton. Looks at accel_pairs every few seconds and writes accel_verdicts when
 * cfg.learning; accelerate_pairs_json() works without learning as well.
 */
int accelerate_pairs_open(struct accelerate *a, struct accelerate_pairs **ret, struct error *err);
void accelerate_pairs_close(struct accelerate_pairs *pairs); /* NULL is fine */
/* What the timer does, at this time of CLOCK_MONOTONIC. */
void accelerate_pairs_look(struct accelerate_pairs *pairs, uint64_t now_ns);

#endif
