/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_backoff.h"

#include <sys/random.h>
#include <time.h>

/* splitmix64: even, and good enough to keep agents apart; nothing secret depends on it. */
static uint64_t next_random(struct kube_backoff *b)
{
	uint64_t z = (b->random += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

void kube_backoff_init(struct kube_backoff *b, uint32_t base_ms, uint32_t max_ms)
{
	struct timespec now = {0};

	*b = (struct kube_backoff){
		.base_ms = base_ms ? base_ms : KUBE_BACKOFF_BASE_MS,
		.max_ms = max_ms ? max_ms : KUBE_BACKOFF_MAX_MS,
	};
	if (getrandom(&b->random, sizeof(b->random), GRND_NONBLOCK) != sizeof(b->random)) {
		/* Early in a boot: the nanoseconds differ between nodes. */
		clock_gettime(CLOCK_MONOTONIC, &now);
		b->random = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	}
}

uint32_t kube_backoff_jitter(struct kube_backoff *b, uint32_t min, uint32_t max)
{
	if (max <= min)
		return min;
	return min + (uint32_t)(next_random(b) % ((uint64_t)max - min + 1));
}

uint32_t kube_backoff_next(struct kube_backoff *b, int64_t retry_after_ms)
{
	uint64_t ceiling = b->base_ms;
	uint32_t wait;

	for (uint32_t i = 0; i < b->failures && ceiling < b->max_ms; i++)
		ceiling *= 2;
	if (ceiling > b->max_ms)
		ceiling = b->max_ms;
	if (b->failures < UINT32_MAX)
		b->failures++;
	wait = kube_backoff_jitter(b, b->base_ms / KUBE_BACKOFF_FLOOR, (uint32_t)ceiling);
	if (retry_after_ms < 0)
		return wait;
	if (retry_after_ms > KUBE_RETRY_AFTER_MAX_MS)
		retry_after_ms = KUBE_RETRY_AFTER_MAX_MS;
	/* All who were sent away at once were told the same number. */
	return (uint32_t)retry_after_ms + (wait < 1000 ? wait : 1000);
}

void kube_backoff_reset(struct kube_backoff *b)
{
	b->failures = 0;
}
