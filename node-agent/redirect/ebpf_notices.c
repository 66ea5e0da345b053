/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "event_loop.h"
#include "log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/epoll.h>

enum {
	LINES_PER_MINUTE = 6,	  /* of one event */
	RESCAN_DELAY_MS = 20,	  /* listeners come and go in groups: one scan for all of them */
	RESCAN_REFUSED_MS = 1000, /* a pod without a proxy is asked for again and again */
};

static const char *const event_lines[EVENT_COUNTERS] = {
	[EVENT_RECORD_FAILED] = "connection refused: no memory for the socket's record",
	[EVENT_HANDOVER_NODE_LIMIT] = "connection refused: --max-handovers is reached",
	[EVENT_HANDOVER_POD_LIMIT] = "connection refused: --max-handovers-per-pod is reached",
	[EVENT_HANDOVER_LOST] = "original destination lost: no memory for a hand-over entry",
	[EVENT_HANDOVER_MISS] = "the proxy accepted a local connection that was not captured",
	[EVENT_NO_LISTENER] = "inbound connection refused: the proxy does not listen",
	[EVENT_LISTENER_FAILED] =
		"the proxy's listener could not be registered: inbound is refused "
		"(a multipath TCP listener cannot be)",
	[EVENT_NO_PROXY_ADDRESS] = "connection refused: --ztunnel-address has no address of this "
				   "family, and --capture-ipv6 says that it is captured",
	[EVENT_HANDOVER_UNTAKEN] =
		"a connection reached the node proxy without its original destination: the proxy "
		"has to run below the pods' cgroup, and nobody may rewrite addresses in between",
	[EVENT_LISTENER_NOT_PROXY] = "the inbound port is listened on by a user that is not the "
				     "proxy: inbound is refused",
};

static void log_notice(struct ebpf *e, const struct notice *n)
{
	struct log_limit *limit;
	unsigned suppressed = 0;
	char cookie[24], more[16];

	if (n->event >= EVENT_COUNTERS || !event_lines[n->event])
		return;
	limit = &e->notice_limit[n->event];
	limit->per_minute = LINES_PER_MINUTE;
	if (!log_limit_allow(limit, &suppressed))
		return;
	snprintf(cookie, sizeof(cookie), "%" PRIu64, (uint64_t)n->netns);
	snprintf(more, sizeof(more), "%u", suppressed);
	log_write(LOG_WARN, event_lines[n->event], "event", ebpf_event_name(n->event),
		  "netns-cookie", cookie, "suppressed", more, NULL);
}

static int on_notice(void *arg, void *data, size_t size)
{
	struct ebpf *e = arg;
	const struct notice *n = data;

	if (size < sizeof(*n))
		return 0;
	if (n->type == NOTICE_EVENT)
		log_notice(e, n);
	if (n->type == NOTICE_LISTENER_LEFT || n->type == NOTICE_LISTENER_UNMARKED)
		ebpf_listeners_scan_in(e, n->netns, RESCAN_DELAY_MS);
	else if (n->event == EVENT_NO_LISTENER)
		ebpf_listeners_scan_in(e, n->netns, RESCAN_REFUSED_MS);
	return 0;
}

static void on_notices_readable(int fd, uint32_t events, void *arg)
{
	struct ebpf *e = arg;

	(void)fd;
	(void)events;
	ring_buffer__consume(e->notices);
}

int ebpf_notices_watch(struct ebpf *e, struct error *err)
{
	e->notices = ring_buffer__new(bpf_map__fd(e->datapath->maps.notices), on_notice, e, NULL);
	if (!e->notices)
		return error_set(err, errno, "open the ring buffer");
	return event_loop_add_fd(e->loop, ring_buffer__epoll_fd(e->notices), EPOLLIN,
				 on_notices_readable, e, &e->notice_source, err);
}
