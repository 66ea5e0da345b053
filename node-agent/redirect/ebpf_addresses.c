/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "netlink.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

static int address_write(struct ebpf *e, uint64_t cookie, const struct ip_address *a,
			 struct error *err)
{
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};
	__u8 one = 1;

	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.local_addresses), &key, &one,
				BPF_ANY))
		return error_set(err, errno, "record the pod's address");
	return 0;
}

static void address_erase(struct ebpf *e, uint64_t cookie, const struct ip_address *a)
{
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};

	bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.local_addresses), &key);
}

static bool address_known(const struct ebpf_pod *pod, const struct ip_address *a, size_t *ret_at)
{
	for (size_t i = 0; i < pod->n_addresses; i++)
		if (ip_address_equal(&pod->addresses[i], a)) {
			*ret_at = i;
			return true;
		}
	return false;
}

static int address_add(struct ebpf *e, struct ebpf_pod *pod, const struct ip_address *a,
		       struct error *err)
{
	struct ip_address *grown;
	size_t at;
	int r;

	if (address_known(pod, a, &at))
		return 0;
	grown = reallocarray(pod->addresses, pod->n_addresses + 1, sizeof(*grown));
	if (!grown)
		return error_set(err, ENOMEM, "remember the pod's address");
	pod->addresses = grown;
	r = address_write(e, pod->cookie, a, err);
	if (r)
		return r;
	pod->addresses[pod->n_addresses++] = *a;
	return pod->ambient ? ebpf_kubelet_target(e, a, err) : 0;
}

static void address_remove(struct ebpf *e, struct ebpf_pod *pod, const struct ip_address *a)
{
	size_t at;

	address_erase(e, pod->cookie, a);
	if (address_known(pod, a, &at)) {
		struct ip_address gone = *a; /* it may be the one that is replaced */

		pod->addresses[at] = pod->addresses[--pod->n_addresses];
		ebpf_kubelet_no_target(e, &gone);
	}
}

static bool is_global_v6(const struct ip_address *a)
{
	static const struct ip_address passthrough = {.bytes = {[15] = 6}};

	return !ip_address_is_v4(a) && !ip_address_is_loopback(a) && !ip_address_is_link_local(a) &&
	       !ip_address_equal(a, &passthrough);
}

static bool has_global_v6(const struct ebpf_pod *pod)
{
	for (size_t i = 0; i < pod->n_addresses; i++)
		if (is_global_v6(&pod->addresses[i]))
			return true;
	return false;
}

/* From inside the namespace: what is there is recorded, what has gone is forgotten. */
static int addresses_sync(struct ebpf *e, struct ebpf_pod *pod, int netns_fd, struct error *err)
{
	scoped_free struct ip_address *now = NULL;
	size_t n = 0;
	int r = netlink_list_addresses(netns_fd, &now, &n, err);

	for (size_t i = 0; !r && i < n; i++)
		r = address_add(e, pod, &now[i], err);
	for (size_t i = pod->n_addresses; !r && i-- > 0;) {
		size_t at = 0;

		while (at < n && !ip_address_equal(&now[at], &pod->addresses[i]))
			at++;
		if (at == n)
			address_remove(e, pod, &pod->addresses[i]);
	}
	return r;
}

/*
 * An address that stands in prevResult but not (yet) on an interface, such as one still being set
 * up, counts too: the pod's own traffic to it must not be taken for somebody else's.
 */
int ebpf_addresses_apply(struct ebpf *e, struct ebpf_pod *pod, const struct redirect_pod *target,
			 struct error *err)
{
	int r = addresses_sync(e, pod, target->netns_fd, err);

	for (size_t i = 0; !r && i < target->n_addresses; i++)
		r = address_add(e, pod, &target->addresses[i], err);
	return r;
}

int ebpf_addresses_load(struct ebpf *e, struct error *err)
{
	int fd = bpf_map__fd(e->datapath->maps.local_addresses);
	struct local_address_key key;

	for_each_map_key (fd, &key) {
		struct ebpf_pod *pod = ebpf_pods_get(e, key.netns);
		struct ip_address address, *grown;

		if (!pod)
			return error_set(err, ENOMEM, "remember a pod");
		grown = reallocarray(pod->addresses, pod->n_addresses + 1, sizeof(*grown));
		if (!grown)
			return error_set(err, ENOMEM, "remember a pod's address");
		memcpy(&address, &key.addr, sizeof(address));
		pod->addresses = grown;
		pod->addresses[pod->n_addresses++] = address;
	}
	return 0;
}

void ebpf_addresses_forget(struct ebpf *e, struct ebpf_pod *pod)
{
	pod->ambient = false;
	for (size_t i = 0; i < pod->n_addresses; i++) {
		address_erase(e, pod->cookie, &pod->addresses[i]);
		ebpf_kubelet_no_target(e, &pod->addresses[i]);
	}
	pod->n_addresses = 0;
}

/* ---- ::6 on lo ---- */

static const struct ip_address passthrough = {.bytes = {[15] = 6}};

static bool knows_address(const struct ebpf_pod *pod, const struct ip_address *address)
{
	for (size_t i = 0; i < pod->n_addresses; i++)
		if (ip_address_equal(&pod->addresses[i], address))
			return true;
	return false;
}

static int mark_passthrough(struct ebpf *e, uint64_t cookie, bool ours, struct error *err)
{
	struct pod_config cfg;

	if (!ebpf_pods_config(e, cookie, &cfg))
		return 0;
	if (ours)
		cfg.flags |= POD_ADDED_PASSTHROUGH;
	else
		cfg.flags &= ~(__u32)POD_ADDED_PASSTHROUGH;
	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.pods), &cookie, &cfg, BPF_EXIST))
		return error_set(err, errno, "remember that ::6 was added");
	return 0;
}

/* Marked before it is there, so that an agent that ends in between leaves nothing unmarked. */
static int passthrough_set(struct ebpf *e, struct ebpf_pod *pod, int netns_fd, struct error *err)
{
	struct error ignored = {0};
	bool changed = false;
	int r;

	if (knows_address(pod, &passthrough))
		return 0;
	r = mark_passthrough(e, pod->cookie, true, err);
	if (!r)
		r = netlink_set_passthrough_address(netns_fd, true, &changed, err);
	if (!r && changed)
		return address_add(e, pod, &passthrough, err);
	mark_passthrough(e, pod->cookie, false, &ignored);
	return r;
}

/* Only for a pod that has a global IPv6 address: nobody else's traffic has that source. */
int ebpf_addresses_passthrough(struct ebpf *e, struct ebpf_pod *pod, int netns_fd,
			       struct error *err)
{
	if (!pod->wants_passthrough || !has_global_v6(pod))
		return 0;
	return passthrough_set(e, pod, netns_fd, err);
}

/* ---- changes ---- */

/* -errno when the namespace could not be looked into; then nothing has changed. */
static int resync_pod(struct ebpf *e, struct ebpf_pod *pod, struct error *err)
{
	scoped_fd int fd = -1;
	int r;

	if (!e->cfg->open_netns)
		return error_set(err, ENOTSUP, "no way to open the pod's namespace");
	r = e->cfg->open_netns(e->cfg->pods_arg, pod->cookie, &fd, err);
	return r ? r : addresses_sync(e, pod, fd, err);
}

/* Another interface may still have it, so the pod is looked at; the message alone is second best.
 */
static void address_gone(struct ebpf *e, struct ebpf_pod *pod, const struct ip_address *address)
{
	struct error err = {0};

	if (resync_pod(e, pod, &err))
		address_remove(e, pod, address);
}

static void first_global_v6(struct ebpf *e, struct ebpf_pod *pod)
{
	struct error err = {0};
	scoped_fd int fd = -1;
	int r;

	if (!e->cfg->open_netns)
		return;
	r = e->cfg->open_netns(e->cfg->pods_arg, pod->cookie, &fd, &err);
	if (!r)
		r = passthrough_set(e, pod, fd, &err);
	if (r)
		log_error(LOG_WARN, &err, "::6 not added to a pod that got an IPv6 address", NULL);
}

static void on_address_change(const struct netlink_change *change, void *arg)
{
	struct ebpf *e = arg;

	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (struct ebpf_pod *pod = e->pods[i]; pod; pod = pod->next) {
			struct error err = {0};

			if (pod->namespace_id != change->namespace_id)
				continue;
			if (!change->added) {
				address_gone(e, pod, &change->address);
				continue;
			}
			if (address_add(e, pod, &change->address, &err))
				log_error(LOG_ERROR, &err, "pod's new address not recorded", NULL);
			else if (pod->wants_passthrough && is_global_v6(&change->address))
				first_global_v6(e, pod);
		}
}

static void on_monitor_readable(int fd, uint32_t events, void *arg)
{
	struct ebpf *e = arg;
	struct error err = {0};

	(void)events;
	if (!netlink_monitor_read(fd, on_address_change, e, &err))
		return;
	log_error(LOG_WARN, &err, "address changes were lost: reading every pod's again", NULL);
	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (struct ebpf_pod *pod = e->pods[i]; pod; pod = pod->next)
			if (resync_pod(e, pod, &err))
				log_error(LOG_WARN, &err, "pod's addresses not read again", NULL);
}

int ebpf_addresses_watch(struct ebpf *e, struct error *err)
{
	int r = netlink_monitor_open(&e->monitor_fd, err);

	if (r)
		return r;
	return event_loop_add_fd(e->loop, e->monitor_fd, EPOLLIN, on_monitor_readable, e,
				 &e->monitor_source, err);
}
