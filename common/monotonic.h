/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_MONOTONIC_H
#define SOCKMESH_MONOTONIC_H

/* The clock for deadlines and delays: never set, never steps back. */
#include <stdint.h>
#include <time.h>

static inline int64_t monotonic_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

#endif
