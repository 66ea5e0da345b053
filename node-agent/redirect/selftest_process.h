/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_SELFTEST_PROCESS_H
#define SOCKMESH_SELFTEST_PROCESS_H

/*
 * The self-test's process: makes connections out of and into the scratch pod, because a socket
 * belongs to the cgroup and the namespace of the process that opens it. One at a time, both ends,
 * the proxy's listener included.
 */
#include "selftest_network.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;

enum { SELFTEST_OUTBOUND_PORT = 15001, SELFTEST_INBOUND_PORT = 15006 };

/* Outbound: from the pod to the peer. Inbound: from the peer to a port where nothing listens. */
struct selftest_connection {
	bool inbound, ipv6;
};

enum selftest_outcome {
	SELFTEST_PASSED,
	SELFTEST_NOT_SET_UP, /* no socket, no cgroup, no namespace */
	SELFTEST_NOT_CONNECTED,
	SELFTEST_NOT_ACCEPTED, /* connected to somebody else: the listener got nothing */
	SELFTEST_NO_ORIGINAL,  /* SO_ORIGINAL_DST failed */
	SELFTEST_OTHER_ORIGINAL,
	SELFTEST_NO_DATA, /* no byte came through */
};

struct selftest_report {
	enum selftest_outcome outcome;
	int code; /* errno value, 0 when nothing failed but the comparison */
};

struct selftest_process {
	pid_t pid;
	int channel;
};

/*
 * cgroup_procs_fd: open for writing, the cgroup that it joins, or -1. *ret is to be ended also
 * after an error. It dies with the calling thread.
 */
int selftest_process_start(const struct selftest_network *net, int cgroup_procs_fd,
			   struct selftest_process *ret, struct error *err);

/* Bounded by deadline_ms, of the monotonic clock; -ETIMEDOUT. */
int selftest_process_connect(struct selftest_process *process,
			     const struct selftest_connection *connection, int64_t deadline_ms,
			     struct selftest_report *ret, struct error *err);

void selftest_process_end(struct selftest_process *process); /* killed and reaped */

#endif
