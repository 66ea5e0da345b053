/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_ADVISE_H
#define SOCKMESH_ACCELERATE_ADVISE_H

/*
 * The adviser: watches which system calls the processes of one workload's pods make on TCP sockets
 * that a sockmap serves wrongly (splice out of a socket, FIONREAD, MSG_WAITALL, SO_RCVLOWAT,
 * zerocopy, blocking receives, MSG_OOB, TCP_ULP), with a raw tracepoint that exists only while it
 * watches. It says with evidence whether level full is safe for it, as far as it was seen.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct advice_run;
struct error;
struct event_loop;

struct advice_pod {
	uint64_t cookie;
	uint64_t netns_ino; /* how the tracing program knows its processes */
	/* As the node numbers them; their calls are not the applications'. */
	const uint32_t *proxy_uids;
	size_t n_proxy_uids;
};

struct advice_request {
	const char *workload; /* "NAMESPACE/NAME" */
	const struct advice_pod *pods;
	size_t n_pods;
	bool netns_by_inode; /* how cookies are numbered, see netns_numbered_by_inode() */
	unsigned seconds;
};

/*
 * Starts to watch; `done` is called once from the loop with the verdict (advice_verdict.h), a
 * reference of its own, or NULL without memory. By then nothing is left in the kernel.
 * advice_stop() ends every run, also one that is done, and may be called from `done`.
 */
typedef void (*advice_done_fn)(json_t *verdict, void *arg);
int advice_start(const struct advice_request *request, struct event_loop *loop, advice_done_fn done,
		 void *arg, struct advice_run **ret, struct error *err);
json_t *advice_so_far(const struct advice_run *run); /* the same object, meanwhile */
void advice_stop(struct advice_run *run);	     /* NULL is fine; done is not called any more */

#endif
