/* SPDX-License-Identifier: Apache-2.0 */
/*
 * To be preloaded: a wall clock that is set a day ahead and back again ten times a second. The
 * monotonic clock goes on as it does.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

enum { JUMP_S = 86400, JUMPS_PER_S = 10 };

typedef int (*clock_gettime_fn)(clockid_t clock, struct timespec *ret);

static int true_time(clockid_t clock, struct timespec *ret)
{
	static clock_gettime_fn next;

	if (!next)
		next = (clock_gettime_fn)dlsym(RTLD_NEXT, "clock_gettime");
	return next ? next(clock, ret) : -1;
}

int clock_gettime(clockid_t clock, struct timespec *ret)
{
	struct timespec now;
	int r = true_time(clock, ret);

	if (r == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		true_time(CLOCK_MONOTONIC, &now);
		if (now.tv_nsec / (1000000000 / JUMPS_PER_S) % 2)
			ret->tv_sec += JUMP_S;
	}
	return r;
}

int gettimeofday(struct timeval *restrict ret, void *restrict zone)
{
	struct timespec now;
	int r = clock_gettime(CLOCK_REALTIME, &now);

	(void)zone;
	*ret = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
	return r;
}

time_t time(time_t *ret)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (ret)
		*ret = now.tv_sec;
	return now.tv_sec;
}
