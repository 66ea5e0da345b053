/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_LOCK_FILE_H
#define SOCKMESH_LOCK_FILE_H

/* An exclusive lock that ends with the last descriptor of the open file (flock(2)). */
#include "monotonic.h"

#include <errno.h>
#include <sys/file.h>
#include <time.h>

/*
 * 0, or -errno; -EWOULDBLOCK: somebody has it, and still had it after a second. The wait is for who
 * was killed a moment ago: the child that an agent has forked for a short while has the lock too,
 * and the kernel ends it some time after the agent.
 */
static inline int lock_file_soon(int fd)
{
	const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
	int64_t end_ms = monotonic_ms() + 1000;

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (monotonic_ms() >= end_ms)
			return -EWOULDBLOCK;
		nanosleep(&pause, NULL);
	}
	return 0;
}

#endif
