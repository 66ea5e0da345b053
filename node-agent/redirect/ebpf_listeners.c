/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "monotonic.h"
#include "netlink.h"
#include "netns.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>

static int read_iterator(void *arg, struct error *err)
{
	struct ebpf *e = arg;
	scoped_fd int fd = bpf_iter_create(bpf_link__fd(e->scan_link));
	char buf[64];
	ssize_t n;

	if (fd < 0)
		return error_set(err, errno, "create the listener iterator");
	do {
		n = read(fd, buf, sizeof(buf));
	} while (n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN)));
	return n < 0 ? error_set(err, errno, "look for the proxy's listeners") : 0;
}

/*
 * Registers inbound listeners of the pod that are not registered. The iterator walks all sockets
 * of the node, some milliseconds, so a pod where nothing listens, as every new one, is not worth
 * it: what starts to listen from now on registers itself.
 */
int ebpf_listeners_scan(struct ebpf *e, uint64_t cookie, int netns_fd, struct error *err)
{
	struct listener_scan_bpf__bss *in = e->scan->bss;
	struct pod_config cfg;
	bool listening = false;
	int r;

	if (!ebpf_pods_config(e, cookie, &cfg))
		return 0;
	r = netlink_has_listener(netns_fd, cfg.inbound_port, &listening, err);
	if (r || !listening)
		return r;
	in->scan_netns = cookie;
	for (uint32_t slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct listener_key key = {.netns = cookie, .slot = slot};
		__u64 socket_cookie = 0;

		if (bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.listeners), &key,
					&socket_cookie))
			socket_cookie = 0;
		in->scan_known[slot] = socket_cookie;
	}
	return netns_run(netns_fd, read_iterator, e, err);
}

static void rescan_pod(struct ebpf *e, uint64_t cookie)
{
	struct error err = {0};
	scoped_fd int fd = -1;
	int r;

	if (!e->cfg->open_netns)
		return;
	r = e->cfg->open_netns(e->cfg->open_netns_arg, cookie, &fd, &err);
	if (!r)
		r = ebpf_listeners_scan(e, cookie, fd, &err);
	if (r)
		log_error(LOG_DEBUG, &err, "listeners not scanned", NULL);
}

static void rescan_now(void *arg)
{
	struct ebpf *e = arg;

	e->rescan_source = NULL;
	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (struct ebpf_pod *pod = e->pods[i]; pod; pod = pod->next) {
			if (!pod->rescan)
				continue;
			pod->rescan = false;
			rescan_pod(e, pod->cookie);
		}
}

void ebpf_listeners_scan_in(struct ebpf *e, uint64_t cookie, unsigned delay_ms)
{
	struct ebpf_pod *pod = ebpf_pods_find(e, cookie);
	struct error err = {0};

	if (!pod)
		return;
	pod->rescan = true;
	if (e->rescan_source && e->rescan_at_ms <= monotonic_ms() + delay_ms)
		return;
	event_loop_remove(take_ptr(e->rescan_source));
	e->rescan_at_ms = monotonic_ms() + delay_ms;
	if (event_loop_add_timer(e->loop, delay_ms, 0, rescan_now, e, &e->rescan_source, &err))
		log_error(LOG_ERROR, &err, "listeners not scanned", NULL);
}

void ebpf_listeners_forget(struct ebpf *e, uint64_t cookie)
{
	for (uint32_t slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct listener_key key = {.netns = cookie, .slot = slot};

		bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.listeners), &key);
	}
}
