/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_PROBE_PRIVATE_H
#define SOCKMESH_ACCELERATE_PROBE_PRIVATE_H

/* What accelerate_probe.c and its trials share. */
#include "accelerate_probe.h"

#include <netinet/in.h>
#include <stdint.h>

struct accelerate_probe_bpf;

/* Everything that trials need, in the scratch namespace; they run one after another. */
struct probe_bench {
	struct accelerate_probe_bpf *bpf; /* loaded, its program attached to both maps */
	int listener;
	struct sockaddr_in address; /* of the listener */
	int step_ms;		    /* what does not come in this time does not come */
	int patience_ms;	    /* left for steps in which nothing came */
	unsigned n_pairs;	    /* so far: each has slots of its own */
	struct accelerate_probe *probe;
};

/*
 * Makes a connection and sets `test`, or that and its neighbours, at the end. -errno: it could not
 * be tried; what was not set stays unknown. -ETIMEDOUT: once a step took too long; may be run
 * again.
 */
struct probe_trial {
	enum accelerate_test first, last;
	int (*run)(struct probe_bench *bench, struct error *err);
};

extern const struct probe_trial probe_trials[];
extern const unsigned n_probe_trials;

int probe_try_blocking(struct probe_bench *bench, struct error *err);

/* ---- a connection under trial --------------------------------------------------------------- */

enum probe_side { CONNECTED, ACCEPTED, N_SIDES };
enum probe_way { BY_TCP, THE_SHORT_WAY };
enum probe_close { CLOSE_ORDERLY, CLOSE_BY_RESET };

/* Non-blocking, and reset when it is closed, so that nothing of it keeps the namespace. */
struct probe_pair {
	struct probe_bench *bench;
	int fds[N_SIDES];
	uint32_t first_slot;
	uint16_t port; /* of the connected side */
};

#define scoped_pair __attribute__((cleanup(probe_pair_close)))

/* *ret is to be closed also after an error. open: and both ends are in the map. */
int probe_pair_connect(struct probe_pair *ret, struct probe_bench *bench, struct error *err);
int probe_pair_insert(const struct probe_pair *pair, struct error *err);
int probe_pair_open(struct probe_pair *ret, struct probe_bench *bench, struct error *err);
int probe_pair_remove(const struct probe_pair *pair, enum probe_side side, struct error *err);
void probe_pair_close(struct probe_pair *pair);

/* Which way the side's sends go from now on. */
void probe_choose(const struct probe_pair *pair, enum probe_side side, enum probe_way way);

int probe_say(const struct probe_pair *pair, enum probe_side side, enum probe_way way,
	      const char *text, struct error *err);

/* Until poll() tells one of events; -ETIMEDOUT after a step. */
int probe_await(const struct probe_pair *pair, enum probe_side side, short events,
		struct error *err);

/*
 * Reads n bytes (at most PROBE_TEXT_MAX) as a text, in as many pieces as they come; less when the
 * stream ends. -ETIMEDOUT: there is nothing more for a step, which on a busy node need not be the
 * kernel's doing.
 */
enum { PROBE_TEXT_MAX = 15, PROBE_STEP_MS = 200 /* at first */ };
int probe_hear(const struct probe_pair *pair, enum probe_side side, size_t n, char *ret,
	       struct error *err);

int probe_close(struct probe_pair *pair, enum probe_side side, enum probe_close how,
		struct error *err);
int probe_make_blocking(const struct probe_pair *pair, enum probe_side side, int timeout_ms,
			struct error *err);

/* Always 0. */
int probe_tell(struct probe_bench *bench, enum accelerate_test test, bool as_tcp, const char *fmt,
	       ...) PRINTF_LIKE(4, 5);

#endif
