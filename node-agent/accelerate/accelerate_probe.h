/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_PROBE_H
#define SOCKMESH_ACCELERATE_PROBE_H

/*
 * How this kernel's sockmap behaves where it differs from TCP: real sockets in a scratch network
 * namespace, with a program that redirects without any guard. Takes under 100 ms and leaves nothing
 * behind. Then how far the accelerator may go, from the results alone (pure).
 */
#include "error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum accelerate_finding {
	FINDING_UNKNOWN, /* could not be tried */
	FINDING_AS_TCP,	 /* or better: what we rely on holds */
	FINDING_DIFFERS,
};

enum accelerate_test {
	TEST_LOADS, /* our own programs are accepted by this kernel's verifier */
	TEST_ORDER, /* redirected after TCP, unread: overtakes? (a control: it is expected to) */
	TEST_ORDER_DRAINED,  /* ... after it was read: in order */
	TEST_COPIED_SEQ,     /* what goes the short way leaves the receiver's copied_seq alone */
	TEST_EOF,	     /* bytes pending at close() are read before the end of file */
	TEST_HALF_CLOSE,     /* ... at shutdown(SHUT_WR), and the other direction goes on */
	TEST_RST,	     /* ... at a reset, then ECONNRESET */
	TEST_MEMORY,	     /* redirected bytes are in the receiver's sk_rmem_alloc */
	TEST_ACCOUNTED,	     /* ... and return to zero when they are read */
	TEST_SECOND_OWNER,   /* another map's claim of the socket is refused with EBUSY */
	TEST_ENTRY_REMOVED,  /* removing an entry loses unread bytes (expected: so we never do) */
	TEST_FIONREAD_SHORT, /* FIONREAD counts what came the short way */
	TEST_FIONREAD_TCP,   /* ... and what came by TCP to a socket in the map */
	TEST_SPLICE,	     /* splice() from the socket sees what came the short way */
	TEST_ZEROCOPY,	     /* MSG_ZEROCOPY completes */
	TEST_WAITALL,	     /* MSG_WAITALL waits for all */
	TEST_BLOCKING,	     /* a blocking recv() is not woken with EAGAIN */
	TEST_COUNT_,
};

struct accelerate_result {
	enum accelerate_finding finding;
	char detail[120]; /* what was seen */
};

struct accelerate_probe {
	struct accelerate_result results[TEST_COUNT_];
	char release[128];     /* uname -r */
	const char *known_bug; /* of this release on this path; NULL: none known. Static */
	long long took_us;
	/*
	 * How far the accelerator may go. proxy: hops between proxies. full: hops to applications,
	 * too, for whoever asks for them (a pod's annotation, the adviser, --accelerate full). No
	 * kernel serves every way of reading as TCP does, so full does not promise that: what
	 * differs for an application stands in `reason`.
	 */
	bool proxy, full;
	char reason[256]; /* why not further, or what to know about full, in one line */
};

const char *accelerate_test_name(enum accelerate_test test); /* "order", "half-close", ... */
const char *accelerate_test_why(enum accelerate_test test);  /* what is tried, and why */
/* What is decided by it: "proxy" and above need it, "full" is warned of, or "nothing". */
const char *accelerate_test_decides(enum accelerate_test test);
const char *accelerate_finding_name(enum accelerate_finding finding);

/*
 * Tries everything but TEST_LOADS, which is the caller's to set when it loads the accelerator's own
 * programs; takes some three seconds at most, on a kernel that answers nothing. -errno only when
 * nothing could be tried at all (no namespaces, no program); err says why.
 */
int accelerate_probe_run(struct accelerate_probe *ret, struct error *err);

/* Pure: proxy, full and reason from the results and known_bug. */
void accelerate_probe_judge(struct accelerate_probe *probe, bool ignore_known_bugs);

/* A release of kernel.org. */
struct kernel_release {
	unsigned version, patchlevel, sublevel;
};

/*
 * Pure: which one a kernel is, from uname -r and -v. False where that cannot be known: most
 * distributions add fixes of their own to an old release and keep its number.
 */
bool accelerate_release_parse(const char *release, const char *version, struct kernel_release *ret);

/*
 * Pure: a memory-safety bug on this path that this kernel is known to have, in words; NULL: none
 * known. Only what is certain is in there. Static.
 */
const char *accelerate_release_bug(const char *release, const char *version);

/*
 * {"release","tookUs","level":"off"|"proxy"|"full","reason","knownBug":null|text,"tests":[{"name",
 * "finding":"as-tcp"|"differs"|"unknown","detail","decides","why"}]}; NULL without memory.
 */
json_t *accelerate_probe_to_json(const struct accelerate_probe *probe);

#endif
