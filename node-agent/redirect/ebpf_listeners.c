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

/* Misses one of LISTENER_SLOTS listeners once in a million times. */
enum { LOOKUP_TRIES = 256 };

/* ---- ways to find them ---------------------------------------------------------------------- */

/* Any socket's, by walking all of them: Linux 5.12, where an iterator may do what ours does. */
static int open_iterator(struct ebpf *e, struct error *err)
{
	int r;

	e->scan = listener_scan_bpf__open();
	if (!e->scan)
		return error_set(err, errno, "open the listener iterator");
	r = ebpf_share_maps(e->scan->obj, e->datapath->obj, err);
	if (r)
		return r;
	r = listener_scan_bpf__load(e->scan);
	if (r)
		return error_set(err, -r, "load the listener iterator");
	e->scan_link = bpf_program__attach_iter(e->scan->progs.sockmesh_listener_scan, NULL);
	return e->scan_link ? 0 : error_set(err, errno, "attach the listener iterator");
}

/*
 * Those on the wildcard or an address that the agent knows, by lookups. One of several that share
 * an address is found by luck: LOOKUP_TRIES make sure of it.
 */
static int open_lookup(struct ebpf *e, struct error *err)
{
	int r;

	e->lookup = listener_lookup_bpf__open();
	if (!e->lookup)
		return error_set(err, errno, "open the listener lookup");
	r = ebpf_share_maps(e->lookup->obj, e->datapath->obj, err);
	if (r)
		return r;
	r = listener_lookup_bpf__load(e->lookup);
	return r ? error_set(err, -r, "load the listener lookup") : 0;
}

int ebpf_listeners_open(struct ebpf *e, struct error *err)
{
	struct error why_not = {0};

	if (!open_iterator(e, &why_not))
		return 0;
	listener_scan_bpf__destroy(take_ptr(e->scan));
	if (!open_lookup(e, err))
		return 0;
	listener_lookup_bpf__destroy(take_ptr(e->lookup));
	return error_wrap(err, "%s, and", why_not.text);
}

struct lookup {
	struct ebpf *engine;
	uint64_t cookie;
};

static int look_up(void *arg, struct error *err)
{
	static const unsigned char frame[64];
	const struct lookup *lookup = arg;
	struct listener_lookup_bpf *skel = lookup->engine->lookup;
	const struct ebpf_pod *pod = ebpf_pods_find(lookup->engine, lookup->cookie);

	skel->bss->lookup_netns = lookup->cookie;
	for (size_t i = 0; pod && i < pod->n_addresses; i++) {
		LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame,
			    .data_size_in = sizeof(frame), .repeat = LOOKUP_TRIES);

		if (ip_address_is_loopback(&pod->addresses[i]))
			continue;
		skel->bss->lookup_addr = addr16_of(&pod->addresses[i]);
		if (bpf_prog_test_run_opts(bpf_program__fd(skel->progs.sockmesh_listener_lookup),
					   &opts))
			return error_set(err, errno, "look for the proxy's listeners");
	}
	return 0;
}

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

/* ---- when ----------------------------------------------------------------------------------- */

/*
 * Registers inbound listeners of the pod that are not registered. The iterator walks all sockets
 * of the node, some milliseconds, so a pod where nothing listens, as every new one, is not worth
 * it: what starts to listen from now on registers itself.
 */
int ebpf_listeners_scan(struct ebpf *e, uint64_t cookie, int netns_fd, struct error *err)
{
	struct lookup lookup = {.engine = e, .cookie = cookie};
	struct listener_scan_bpf__bss *in;
	struct pod_config cfg;
	bool listening = false;
	int r;

	/* Without an inbound port the pod's proxy is elsewhere. */
	if (!ebpf_pods_config(e, cookie, &cfg) || !cfg.inbound_port)
		return 0;
	r = netlink_has_listener(netns_fd, cfg.inbound_port, &listening, err);
	if (r || !listening)
		return r;
	if (e->lookup)
		return netns_run(netns_fd, look_up, &lookup, err);
	in = e->scan->bss;
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
	r = e->cfg->open_netns(e->cfg->pods_arg, cookie, &fd, &err);
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
