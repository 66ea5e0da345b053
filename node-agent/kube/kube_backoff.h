/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_BACKOFF_H
#define SOCKMESH_KUBE_BACKOFF_H

/*
 * How long to wait after the nth failure in a row: exponential with full jitter, so that the agents
 * of a cluster do not come back in step when its API server does. The server's own wish
 * (Retry-After) is a lower bound. Pure but for the seed.
 */
#include <stdint.h>

struct kube_backoff {
	uint32_t base_ms, max_ms;
	uint32_t failures; /* in a row */
	uint64_t random;   /* state of the generator: any value is a seed */
};

enum {
	KUBE_BACKOFF_BASE_MS = 800,
	KUBE_BACKOFF_MAX_MS = 30000,
	/* No retry is sooner than base_ms / KUBE_BACKOFF_FLOOR, however the dice fall. */
	KUBE_BACKOFF_FLOOR = 8,
	/* A server, or what stands in its place, cannot send us to sleep for longer. */
	KUBE_RETRY_AFTER_MAX_MS = 60000,
};

/* Seeds from the kernel. 0 stands for the defaults above. */
void kube_backoff_init(struct kube_backoff *b, uint32_t base_ms, uint32_t max_ms);

/* One more failure; returns the wait. retry_after_ms: what the server asked for, -1 for nothing. */
uint32_t kube_backoff_next(struct kube_backoff *b, int64_t retry_after_ms);
void kube_backoff_reset(struct kube_backoff *b);

/* An even choice from min to max, both included: for what shall not happen everywhere at once. */
uint32_t kube_backoff_jitter(struct kube_backoff *b, uint32_t min, uint32_t max);

#endif
