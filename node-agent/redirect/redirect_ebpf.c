/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The eBPF engine: programs attached once to the cgroup of the pods, one small inbound program per
 * pod on its namespace, and maps that say what each namespace's plan is. A pod is opted in or out
 * by one map update.
 */
#include "cgroup.h"
#include "ebpf_pins.h"
#include "ebpf_policy.h"
#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "netlink.h"
#include "netns.h"
#include "redirect_engine.h"
#include "scoped.h"

#include "datapath.skel.h"
#include "inbound.skel.h"
#include "listener_scan.skel.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>

enum {
	POD_BUCKETS = 256,
	ADDRESSES_PER_POD = 16,	  /* the map's room, on average */
	RESCAN_DELAY_MS = 20,	  /* listeners come and go in groups: one scan for all of them */
	RESCAN_REFUSED_MS = 1000, /* a pod without a proxy is asked for again and again */
	HEAL_PERIOD_MS = 10000,
	ERASE_DELAY_MS = 1000, /* programs that read the old plan have ended long before */
	NOTICE_LINES_PER_MINUTE = 6,
};

struct ebpf_pod { /* what the agent itself remembers of a pod; the kernel has the rest */
	struct ebpf_pod *next;
	uint64_t cookie;
	int namespace_id;
	struct ebpf_policy policy;
	struct ip_address *addresses; /* that are in local_addresses */
	size_t n_addresses;
	bool wants_passthrough;
	bool rescan; /* its listeners are to be looked for */
};

struct doomed_policy { /* replaced, but a program on its way may still look into its sets */
	struct doomed_policy *next;
	struct ebpf *engine;
	struct event_source *source;
	struct ebpf_policy policy;
};

struct ebpf {
	const struct redirect_config *cfg;
	struct event_loop *loop;
	struct ebpf_pins pins;
	struct datapath_bpf *datapath;
	struct listener_scan_bpf *scan;
	struct bpf_link *scan_link;
	struct ring_buffer *notices;
	struct event_source *notice_source, *monitor_source, *start_source, *rescan_source;
	struct event_source *heal_source;
	int monitor_fd;
	int cgroup_fd;
	uint64_t cgroup_ino;
	uint32_t last_policy;
	uint64_t rescan_at_ms; /* when rescan_source fires */
	bool attached;	       /* the programs on the cgroup are this agent's */
	struct doomed_policy *doomed;
	struct log_limit notice_limit[EVENT_COUNTERS];
	struct ebpf_pod *pods[POD_BUCKETS];
};

static const char *const event_names[EVENT_COUNTERS] = {
	[EVENT_RECORD_FAILED] = "record-failed",
	[EVENT_HANDOVER_NODE_LIMIT] = "handover-node-limit",
	[EVENT_HANDOVER_POD_LIMIT] = "handover-pod-limit",
	[EVENT_HANDOVER_LOST] = "handover-lost",
	[EVENT_HANDOVER_MISS] = "handover-miss",
	[EVENT_NO_LISTENER] = "no-listener",
	[EVENT_LISTENER_SLOTS_FULL] = "listener-slots-full",
	[EVENT_LISTENER_FAILED] = "listener-failed",
	[EVENT_LISTENER_NOT_PROXY] = "listener-not-proxy",
	[EVENT_SOURCE_NOT_BOUND] = "source-not-bound",
	[EVENT_DNS_OVERFLOW] = "dns-overflow",
	[EVENT_ORIGINAL_DST] = "original-dst-answered",
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
	[EVENT_LISTENER_NOT_PROXY] = "the inbound port is listened on by a user that is not the "
				     "proxy: inbound is refused",
};

static int map_fd(const struct bpf_map *map)
{
	return bpf_map__fd(map);
}

/* ---- pods the agent knows ------------------------------------------------------------------- */

static struct ebpf_pod **pod_slot(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **at = &e->pods[cookie % POD_BUCKETS];

	while (*at && (*at)->cookie != cookie)
		at = &(*at)->next;
	return at;
}

static struct ebpf_pod *pod_find(struct ebpf *e, uint64_t cookie)
{
	return *pod_slot(e, cookie);
}

static void pod_free(struct ebpf_pod *pod)
{
	if (!pod)
		return;
	ebpf_policy_done(&pod->policy);
	free(pod->addresses);
	free(pod);
}

static struct ebpf_pod *pod_get(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **slot = pod_slot(e, cookie);

	if (!*slot) {
		*slot = calloc(1, sizeof(**slot));
		if (*slot) {
			(*slot)->cookie = cookie;
			(*slot)->namespace_id = -1;
		}
	}
	return *slot;
}

static void pod_forget(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **slot = pod_slot(e, cookie), *pod = *slot;

	if (pod)
		*slot = pod->next;
	pod_free(pod);
}

static bool pod_config_read(struct ebpf *e, uint64_t cookie, struct pod_config *ret)
{
	return !bpf_map_lookup_elem(map_fd(e->datapath->maps.pods), &cookie, ret);
}

/* ---- a pod's addresses ---------------------------------------------------------------------- */

static int address_write(struct ebpf *e, uint64_t cookie, const struct ip_address *a,
			 struct error *err)
{
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};
	__u8 one = 1;

	if (bpf_map_update_elem(map_fd(e->datapath->maps.local_addresses), &key, &one, BPF_ANY))
		return error_set(err, errno, "record the pod's address");
	return 0;
}

static void address_erase(struct ebpf *e, uint64_t cookie, const struct ip_address *a)
{
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};

	bpf_map_delete_elem(map_fd(e->datapath->maps.local_addresses), &key);
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
	if (!r)
		pod->addresses[pod->n_addresses++] = *a;
	return r;
}

static void address_remove(struct ebpf *e, struct ebpf_pod *pod, const struct ip_address *a)
{
	size_t at;

	address_erase(e, pod->cookie, a);
	if (address_known(pod, a, &at))
		pod->addresses[at] = pod->addresses[--pod->n_addresses];
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
static int addresses_apply(struct ebpf *e, struct ebpf_pod *pod, const struct redirect_pod *target,
			   struct error *err)
{
	int r = addresses_sync(e, pod, target->netns_fd, err);

	for (size_t i = 0; !r && i < target->n_addresses; i++)
		r = address_add(e, pod, &target->addresses[i], err);
	return r;
}

/* ---- ::6 on lo ------------------------------------------------------------------------------ */

static int passthrough_set(struct ebpf *e, struct ebpf_pod *pod, int netns_fd, struct error *err)
{
	static const struct ip_address passthrough = {.bytes = {[15] = 6}};
	uint64_t cookie = pod->cookie;
	struct pod_config cfg;
	bool changed = false;
	int r = netlink_set_passthrough_address(netns_fd, true, &changed, err);

	if (r || !changed)
		return r;
	r = address_add(e, pod, &passthrough, err);
	if (r || !pod_config_read(e, cookie, &cfg))
		return r;
	cfg.flags |= POD_ADDED_PASSTHROUGH;
	if (bpf_map_update_elem(map_fd(e->datapath->maps.pods), &cookie, &cfg, BPF_EXIST))
		return error_set(err, errno, "remember that ::6 was added");
	return 0;
}

/* ---- listeners ------------------------------------------------------------------------------ */

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
static int listeners_scan(struct ebpf *e, uint64_t cookie, int netns_fd, struct error *err)
{
	struct listener_scan_bpf__bss *in = e->scan->bss;
	struct pod_config cfg;
	bool listening = false;
	int r;

	if (!pod_config_read(e, cookie, &cfg))
		return 0;
	r = netlink_has_listener(netns_fd, cfg.inbound_port, &listening, err);
	if (r || !listening)
		return r;
	in->scan_netns = cookie;
	for (uint32_t slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct listener_key key = {.netns = cookie, .slot = slot};
		__u64 socket_cookie = 0;

		if (bpf_map_lookup_elem(map_fd(e->datapath->maps.listeners), &key, &socket_cookie))
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
		r = listeners_scan(e, cookie, fd, &err);
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

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void rescan_in(struct ebpf *e, uint64_t cookie, uint64_t delay_ms)
{
	struct ebpf_pod *pod = pod_find(e, cookie);
	struct error err = {0};

	if (!pod)
		return;
	pod->rescan = true;
	if (e->rescan_source && e->rescan_at_ms <= now_ms() + delay_ms)
		return;
	event_loop_remove(take_ptr(e->rescan_source));
	e->rescan_at_ms = now_ms() + delay_ms;
	if (event_loop_add_timer(e->loop, delay_ms, 0, rescan_now, e, &e->rescan_source, &err))
		log_error(LOG_ERROR, &err, "listeners not scanned", NULL);
}

/* ---- notices from the programs -------------------------------------------------------------- */

static void log_notice(struct ebpf *e, const struct notice *n)
{
	struct log_limit *limit;
	unsigned suppressed = 0;
	char cookie[24], more[16];

	if (n->event >= EVENT_COUNTERS || !event_lines[n->event])
		return;
	limit = &e->notice_limit[n->event];
	limit->per_minute = NOTICE_LINES_PER_MINUTE;
	if (!log_limit_allow(limit, &suppressed))
		return;
	snprintf(cookie, sizeof(cookie), "%" PRIu64, (uint64_t)n->netns);
	snprintf(more, sizeof(more), "%u", suppressed);
	log_write(LOG_WARN, event_lines[n->event], "event", event_names[n->event], "netns-cookie",
		  cookie, "suppressed", more, NULL);
}

static int on_notice(void *arg, void *data, size_t size)
{
	struct ebpf *e = arg;
	const struct notice *n = data;

	if (size < sizeof(*n))
		return 0;
	if (n->type == NOTICE_EVENT)
		log_notice(e, n);
	if (n->type == NOTICE_LISTENER_LEFT)
		rescan_in(e, n->netns, RESCAN_DELAY_MS);
	else if (n->event == EVENT_NO_LISTENER)
		rescan_in(e, n->netns, RESCAN_REFUSED_MS);
	return 0;
}

static void on_notices_readable(int fd, uint32_t events, void *arg)
{
	struct ebpf *e = arg;

	(void)fd;
	(void)events;
	ring_buffer__consume(e->notices);
}

/* ---- address changes ------------------------------------------------------------------------ */

/* -errno when the namespace could not be looked into; then nothing has changed. */
static int resync_pod(struct ebpf *e, struct ebpf_pod *pod, struct error *err)
{
	scoped_fd int fd = -1;
	int r;

	if (!e->cfg->open_netns)
		return error_set(err, ENOTSUP, "no way to open the pod's namespace");
	r = e->cfg->open_netns(e->cfg->open_netns_arg, pod->cookie, &fd, err);
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
	r = e->cfg->open_netns(e->cfg->open_netns_arg, pod->cookie, &fd, &err);
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

/* ---- policy sets ---------------------------------------------------------------------------- */

static int limit_error(struct error *err, const char *what)
{
	int code = errno;

	/* E2BIG is the map's max_entries, which --max-rule-entries and --max-pods set. */
	if (code == E2BIG || code == ENOSPC)
		return error_set(err, ENOSPC, "the node's limit of %s is reached", what);
	return error_set(err, code, "write %s", what);
}

static int policy_write(struct ebpf *e, const struct ebpf_policy *p, struct error *err)
{
	struct datapath_bpf *d = e->datapath;

	for (size_t i = 0; i < p->n_ids; i++)
		if (bpf_map_update_elem(map_fd(d->maps.id_sets), &p->ids[i].key, &p->ids[i].bits,
					BPF_ANY))
			return limit_error(err, "user and group ids (--max-pods)");
	for (size_t i = 0; i < p->n_ports; i++)
		if (bpf_map_update_elem(map_fd(d->maps.port_sets), &p->ports[i].key,
					&p->ports[i].bits, BPF_ANY))
			return limit_error(err, "ports in lists (--max-rule-entries)");
	for (size_t i = 0; i < p->n_prefixes; i++)
		if (bpf_map_update_elem(map_fd(d->maps.prefix_sets), &p->prefixes[i].key,
					&p->prefixes[i].bits, BPF_ANY))
			return limit_error(err, "prefixes in lists (--max-rule-entries)");
	return 0;
}

static void policy_erase(struct ebpf *e, const struct ebpf_policy *p)
{
	struct datapath_bpf *d = e->datapath;

	for (size_t i = 0; i < p->n_ids; i++)
		bpf_map_delete_elem(map_fd(d->maps.id_sets), &p->ids[i].key);
	for (size_t i = 0; i < p->n_ports; i++)
		bpf_map_delete_elem(map_fd(d->maps.port_sets), &p->ports[i].key);
	for (size_t i = 0; i < p->n_prefixes; i++)
		bpf_map_delete_elem(map_fd(d->maps.prefix_sets), &p->prefixes[i].key);
}

static void doomed_free(struct doomed_policy *doomed)
{
	struct doomed_policy **at = &doomed->engine->doomed;

	while (*at != doomed)
		at = &(*at)->next;
	*at = doomed->next;
	event_loop_remove(doomed->source);
	ebpf_policy_done(&doomed->policy);
	free(doomed);
}

static void erase_doomed(void *arg)
{
	struct doomed_policy *doomed = arg;

	doomed->source = NULL;
	policy_erase(doomed->engine, &doomed->policy);
	doomed_free(doomed);
}

/* Takes the policy's contents over. What an agent that ends leaves, the next one erases. */
static void policy_erase_later(struct ebpf *e, struct ebpf_policy *p)
{
	struct doomed_policy *doomed = calloc(1, sizeof(*doomed));
	struct error ignored;

	if (!doomed) {
		policy_erase(e, p);
		ebpf_policy_done(p);
		return;
	}
	doomed->engine = e;
	doomed->policy = *p;
	memset(p, 0, sizeof(*p));
	doomed->next = e->doomed;
	e->doomed = doomed;
	if (event_loop_add_timer(e->loop, ERASE_DELAY_MS, 0, erase_doomed, doomed, &doomed->source,
				 &ignored))
		erase_doomed(doomed);
}

static bool id_of_policy(const void *key, uint64_t policy)
{
	return ((const struct id_set_key *)key)->policy == policy;
}

static bool port_of_policy(const void *key, uint64_t policy)
{
	return ((const struct port_set_key *)key)->policy == policy;
}

static bool prefix_of_policy(const void *key, uint64_t policy)
{
	return ((const struct prefix_set_key *)key)->policy_family / 2 == policy;
}

static bool address_of_pod(const void *key, uint64_t cookie)
{
	return ((const struct local_address_key *)key)->netns == cookie;
}

/* For pods whose plan is not known any more: walks the whole map. */
static void erase_matching(int fd, size_t key_size, bool (*matches)(const void *, uint64_t),
			   uint64_t what)
{
	char key[64], next[64];
	void *at = NULL;

	if (key_size > sizeof(key))
		return;
	while (!bpf_map_get_next_key(fd, at, next)) {
		/* Step over the key before deleting it, or the walk would start again. */
		bool erase = at && matches(key, what);
		char doomed[64];

		memcpy(doomed, key, key_size);
		memcpy(key, next, key_size);
		at = key;
		if (erase)
			bpf_map_delete_elem(fd, doomed);
	}
	if (at && matches(key, what))
		bpf_map_delete_elem(fd, key);
}

static void policy_erase_unknown(struct ebpf *e, uint32_t policy)
{
	struct datapath_bpf *d = e->datapath;

	erase_matching(map_fd(d->maps.id_sets), sizeof(struct id_set_key), id_of_policy, policy);
	erase_matching(map_fd(d->maps.port_sets), sizeof(struct port_set_key), port_of_policy,
		       policy);
	erase_matching(map_fd(d->maps.prefix_sets), sizeof(struct prefix_set_key), prefix_of_policy,
		       policy);
}

/* ---- the inbound program -------------------------------------------------------------------- */

static int share_maps(struct bpf_object *obj, struct bpf_object *with, struct error *err)
{
	struct bpf_map *map;

	bpf_object__for_each_map (map, obj) {
		struct bpf_map *shared;

		if (bpf_map__is_internal(map) || strchr(bpf_map__name(map), '.'))
			continue;
		shared = bpf_object__find_map_by_name(with, bpf_map__name(map));
		if (!shared || bpf_map__reuse_fd(map, bpf_map__fd(shared)))
			return error_set(err, errno ? errno : ENOENT, "share map %s",
					 bpf_map__name(map));
	}
	return 0;
}

static void destroy_inbound(struct inbound_bpf **skel)
{
	inbound_bpf__destroy(*skel);
}

static int inbound_attach(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	scoped(destroy_inbound) struct inbound_bpf *skel = inbound_bpf__open();
	char path[PIN_PATH_MAX];
	struct stat st;
	int r;

	if (!skel)
		return error_set(err, errno, "open the inbound program");
	skel->rodata->pod_netns = pod->cookie;
	r = share_maps(skel->obj, e->datapath->obj, err);
	if (r)
		return r;
	r = inbound_bpf__load(skel);
	if (r)
		return error_set(err, -r, "load the inbound program");
	if (fstat(pod->netns_fd, &st) < 0)
		return error_set(err, errno, "stat the pod's namespace");
	ebpf_pins_pod_path(&e->pins, pod->cookie, path);
	return ebpf_pins_attach(path, skel->progs.sockmesh_inbound, pod->netns_fd, st.st_ino, err);
}

/* ---- apply and remove ----------------------------------------------------------------------- */

static int per_pod_entries(struct ebpf *e, uint64_t cookie, struct error *err)
{
	int cpus = libbpf_num_possible_cpus();
	scoped_free struct counters *zero = calloc(cpus > 0 ? (size_t)cpus : 1, sizeof(*zero));
	struct gauge gauge = {0};

	if (!zero)
		return error_set(err, ENOMEM, "per-CPU counters");
	if (bpf_map_update_elem(map_fd(e->datapath->maps.gauges), &cookie, &gauge, BPF_NOEXIST) &&
	    errno != EEXIST)
		return limit_error(err, "pods (--max-pods)");
	if (bpf_map_update_elem(map_fd(e->datapath->maps.pod_counters), &cookie, zero,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return limit_error(err, "pods (--max-pods)");
	return 0;
}

static int pod_config_write(struct ebpf *e, uint64_t cookie, const struct pod_config *cfg,
			    struct error *err)
{
	if (bpf_map_update_elem(map_fd(e->datapath->maps.pods), &cookie, cfg, BPF_ANY))
		return limit_error(err, "pods (--max-pods)");
	return 0;
}

/*
 * Everything that a pod needs before it is switched on. `staged` lets listeners register while
 * nothing is captured yet.
 */
static int stage(struct ebpf *e, struct ebpf_pod *known, const struct redirect_pod *pod,
		 const struct pod_config *staged, bool exists, struct error *err)
{
	int r = per_pod_entries(e, pod->cookie, err);

	if (!r)
		r = addresses_apply(e, known, pod, err);
	if (!r && !exists)
		r = pod_config_write(e, pod->cookie, staged, err);
	if (!r && known->wants_passthrough && has_global_v6(known))
		r = passthrough_set(e, known, pod->netns_fd, err);
	return r ? r : listeners_scan(e, pod->cookie, pod->netns_fd, err);
}

/* One map update, which switches both directions. */
static int activate(struct ebpf *e, uint64_t cookie, struct pod_config *cfg, struct error *err)
{
	struct pod_config now = {0};

	/* The flag is the one part that stage() may have changed in the kernel. */
	pod_config_read(e, cookie, &now);
	cfg->flags |= POD_ACTIVE | (now.flags & POD_ADDED_PASSTHROUGH);
	return pod_config_write(e, cookie, cfg, err);
}

/*
 * A new pod gets its inbound program first, which passes everything until the switch. A pod that
 * has one, perhaps an older agent's with maps of its own, is switched on in our maps first: the
 * program that takes the old one's place must find it there.
 */
static int switch_on(struct ebpf *e, const struct redirect_pod *pod, struct pod_config *cfg,
		     bool live, struct error *err)
{
	int r = live ? activate(e, pod->cookie, cfg, err) : inbound_attach(e, pod, err);

	if (r)
		return r;
	return live ? inbound_attach(e, pod, err) : activate(e, pod->cookie, cfg, err);
}

static int watch(struct ebpf_pod *known, const struct redirect_pod *pod, struct error *err)
{
	known->wants_passthrough = pod->plan->capture_ipv6;
	return netlink_namespace_id(pod->netns_fd, &known->namespace_id, err);
}

static int ebpf_remove(void *state, uint64_t cookie, int netns_fd, struct error *err);

static int ensure_attached(struct ebpf *e, struct error *err);

static bool is_live(struct ebpf *e, uint64_t cookie)
{
	char path[PIN_PATH_MAX];

	ebpf_pins_pod_path(&e->pins, cookie, path);
	return ebpf_pins_netns_state(path) == NETNS_LIVES;
}

/* What a failed apply has made, and nothing that was there before it. */
static void undo_apply(struct ebpf *e, const struct redirect_pod *pod, bool exists, bool live)
{
	struct error ignored = {0};

	if (exists)
		return;
	if (live) /* an older agent's program goes on with its own maps */
		bpf_map_delete_elem(map_fd(e->datapath->maps.pods), &pod->cookie);
	else
		ebpf_remove(e, pod->cookie, pod->netns_fd, &ignored);
}

static int ebpf_apply(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = pod_get(e, pod->cookie);
	bool exists, live = is_live(e, pod->cookie);
	struct ebpf_policy policy = {0};
	struct pod_config cfg, old = {0};
	uint32_t id = e->last_policy + 1;
	int r;

	if (!known)
		return error_set(err, ENOMEM, "remember the pod");
	exists = pod_config_read(e, pod->cookie, &old);
	r = ensure_attached(e, err);
	if (!r)
		r = watch(known, pod, err);
	if (!r)
		r = ebpf_policy_build(pod->plan, id, &policy, err);
	if (!r)
		r = ebpf_pod_config_build(pod->plan, id, pod->addresses, pod->n_addresses, &cfg,
					  err);
	if (!r) {
		e->last_policy = id;
		cfg.netns = pod->cookie;
		r = policy_write(e, &policy, err);
	}
	if (!r)
		r = stage(e, known, pod, &cfg, exists, err);
	if (!r)
		r = switch_on(e, pod, &cfg, live, err);
	if (r) {
		if (exists) /* it may have been switched to the new plan already */
			pod_config_write(e, pod->cookie, &old, &(struct error){0});
		policy_erase_later(e, &policy);
		undo_apply(e, pod, exists, live);
		return r;
	}
	if (exists && known->policy.n_ids)
		policy_erase_later(e, &known->policy);
	else if (exists)
		policy_erase_unknown(e, old.policy);
	ebpf_policy_done(&known->policy);
	known->policy = policy;
	/* Its listeners may be others now, by port or by user. */
	if (exists && old.inbound_port != cfg.inbound_port)
		rescan_in(e, pod->cookie, RESCAN_DELAY_MS);
	return 0;
}

static void erase_listeners(struct ebpf *e, uint64_t cookie)
{
	for (uint32_t slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct listener_key key = {.netns = cookie, .slot = slot};

		bpf_map_delete_elem(map_fd(e->datapath->maps.listeners), &key);
	}
}

static int ebpf_remove(void *state, uint64_t cookie, int netns_fd, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = pod_find(e, cookie);
	struct pod_config cfg = {0};
	bool exists = pod_config_read(e, cookie, &cfg);
	char path[PIN_PATH_MAX];
	int r = 0;

	/* The switch first: from here on nothing new is captured. */
	if (exists && bpf_map_delete_elem(map_fd(e->datapath->maps.pods), &cookie) &&
	    errno != ENOENT)
		return error_set(err, errno, "opt the pod out");
	ebpf_pins_pod_path(&e->pins, cookie, path);
	if (unlink(path) < 0 && errno != ENOENT)
		return error_set(err, errno, "unpin %s", path);
	if ((cfg.flags & POD_ADDED_PASSTHROUGH) && netns_fd >= 0)
		r = netlink_set_passthrough_address(netns_fd, false, NULL, err);
	erase_listeners(e, cookie);
	if (known && known->policy.n_ids)
		policy_erase_later(e, &known->policy);
	else if (exists)
		policy_erase_unknown(e, cfg.policy);
	if (known)
		for (size_t i = 0; i < known->n_addresses; i++)
			address_erase(e, cookie, &known->addresses[i]);
	else
		erase_matching(map_fd(e->datapath->maps.local_addresses),
			       sizeof(struct local_address_key), address_of_pod, cookie);
	bpf_map_delete_elem(map_fd(e->datapath->maps.gauges), &cookie);
	bpf_map_delete_elem(map_fd(e->datapath->maps.pod_counters), &cookie);
	pod_forget(e, cookie);
	return r;
}

/* ---- verify --------------------------------------------------------------------------------- */

static int verify_sets(struct ebpf *e, const struct ebpf_policy *p, struct error *err)
{
	struct datapath_bpf *d = e->datapath;
	__u32 bits;

	for (size_t i = 0; i < p->n_ids; i++)
		if (bpf_map_lookup_elem(map_fd(d->maps.id_sets), &p->ids[i].key, &bits) ||
		    bits != p->ids[i].bits)
			return error_set(err, ENODEV, "id %u differs", p->ids[i].key.id);
	for (size_t i = 0; i < p->n_ports; i++)
		if (bpf_map_lookup_elem(map_fd(d->maps.port_sets), &p->ports[i].key, &bits) ||
		    bits != p->ports[i].bits)
			return error_set(err, ENODEV, "port %u differs", p->ports[i].key.port);
	for (size_t i = 0; i < p->n_prefixes; i++)
		if (bpf_map_lookup_elem(map_fd(d->maps.prefix_sets), &p->prefixes[i].key, &bits) ||
		    bits != p->prefixes[i].bits)
			return error_set(err, ENODEV, "prefix %zu of the lists differs", i);
	return 0;
}

static int verify_config(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	struct pod_config want, got;
	struct ebpf_policy policy;
	int r;

	if (!pod_config_read(e, pod->cookie, &got))
		return error_set(err, ENODEV, "the kernel does not have the pod");
	r = ebpf_pod_config_build(pod->plan, got.policy, pod->addresses, pod->n_addresses, &want,
				  err);
	if (r)
		return r;
	want.netns = pod->cookie;
	want.flags |= POD_ACTIVE | (got.flags & POD_ADDED_PASSTHROUGH);
	if (memcmp(&want, &got, sizeof(want)) != 0)
		return error_set(err, ENODEV, "the kernel has another plan for the pod");
	r = ebpf_policy_build(pod->plan, got.policy, &policy, err);
	if (r)
		return r;
	r = verify_sets(e, &policy, err);
	ebpf_policy_done(&policy);
	return r;
}

static int verify_links(struct ebpf *e, struct error *err)
{
	struct bpf_program *prog;

	bpf_object__for_each_program (prog, e->datapath->obj) {
		char path[PIN_PATH_MAX];
		int r;

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		r = ebpf_pins_check(path, e->cgroup_ino, NULL, err);
		if (r)
			return r;
	}
	return 0;
}

static int verify_addresses(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	scoped_free struct ip_address *now = NULL;
	size_t n = 0;
	int r = netlink_list_addresses(pod->netns_fd, &now, &n, err);

	for (size_t i = 0; !r && i < n; i++) {
		struct local_address_key key = {.netns = pod->cookie, .addr = addr16_of(&now[i])};
		char text[IP_ADDRESS_TEXT_MAX];
		__u8 value;

		if (bpf_map_lookup_elem(map_fd(e->datapath->maps.local_addresses), &key, &value))
			r = error_set(err, ENODEV, "the pod's address %s is not known",
				      ip_address_format(&now[i], text));
	}
	return r;
}

static int ebpf_verify(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	char path[PIN_PATH_MAX];
	struct stat st;
	int r = verify_config(e, pod, err);

	if (!r)
		r = verify_links(e, err);
	if (!r && fstat(pod->netns_fd, &st) < 0)
		r = error_set(err, errno, "stat the pod's namespace");
	if (!r) {
		ebpf_pins_pod_path(&e->pins, pod->cookie, path);
		r = ebpf_pins_check(path, st.st_ino, NULL, err);
	}
	return r ? r : verify_addresses(e, pod, err);
}

/* ---- restart -------------------------------------------------------------------------------- */

static int ebpf_recovered(void *state, uint64_t **ret_cookies, size_t *ret_n, struct error *err)
{
	struct ebpf *e = state;
	scoped_free uint64_t *cookies = calloc(e->cfg->max_pods, sizeof(*cookies));
	uint64_t key = 0, next;
	void *at = NULL;
	size_t n = 0;

	if (!cookies)
		return error_set(err, ENOMEM, "list the pods in the kernel");
	while (n < e->cfg->max_pods &&
	       !bpf_map_get_next_key(map_fd(e->datapath->maps.pods), at, &next)) {
		cookies[n++] = key = next;
		at = &key;
	}
	*ret_cookies = take_ptr(cookies);
	*ret_n = n;
	return 0;
}

static int ebpf_adopt(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = pod_get(e, pod->cookie);
	struct ebpf_policy policy = {0};
	struct pod_config cfg;
	int r;

	if (!known)
		return error_set(err, ENOMEM, "remember the pod");
	if (!pod_config_read(e, pod->cookie, &cfg))
		return error_set(err, ENODEV, "the kernel does not have the pod");
	r = watch(known, pod, err);
	if (!r)
		r = ebpf_policy_build(pod->plan, cfg.policy, &policy, err);
	if (r)
		return r;
	ebpf_policy_done(&known->policy);
	known->policy = policy;
	r = addresses_apply(e, known, pod, err);
	if (!r)
		r = listeners_scan(e, pod->cookie, pod->netns_fd, err);
	/* Last, this agent's program in the place of the one before. */
	return r ? r : inbound_attach(e, pod, err);
}

/* Only what the kernel says counts: a link that cannot be looked at proves nothing. */
static bool ebpf_netns_gone(void *state, uint64_t cookie)
{
	struct ebpf *e = state;
	struct pod_config cfg;
	char path[PIN_PATH_MAX];
	enum netns_state netns;

	ebpf_pins_pod_path(&e->pins, cookie, path);
	netns = ebpf_pins_netns_state(path);
	return netns == NETNS_ENDED ||
	       (netns == NETNS_UNKNOWN && !pod_config_read(e, cookie, &cfg));
}

static bool ebpf_address_is_local(void *state, uint64_t cookie, const struct ip_address *a)
{
	struct ebpf *e = state;
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};
	__u8 value;

	return !bpf_map_lookup_elem(map_fd(e->datapath->maps.local_addresses), &key, &value);
}

/* ---- counters ------------------------------------------------------------------------------- */

static bool read_counters(int fd, const void *key, struct counters *ret)
{
	int cpus = libbpf_num_possible_cpus();
	scoped_free struct counters *each = calloc(cpus > 0 ? (size_t)cpus : 1, sizeof(*each));

	if (!each || bpf_map_lookup_elem(fd, key, each))
		return false;
	memset(ret, 0, sizeof(*ret));
	for (int cpu = 0; cpu < cpus; cpu++) {
		for (size_t i = 0; i < RULE_COUNTERS; i++)
			ret->rule[i] += each[cpu].rule[i];
		for (size_t i = 0; i < EVENT_COUNTERS; i++)
			ret->event[i] += each[cpu].event[i];
	}
	return true;
}

static json_t *events_json(const struct counters *c)
{
	json_t *events = json_object();

	for (size_t i = 0; events && i < EVENT_COUNTERS; i++)
		json_object_set_new(events, event_names[i], json_integer((json_int_t)c->event[i]));
	return events;
}

static json_t *ebpf_pod_counters(void *state, uint64_t cookie)
{
	struct ebpf *e = state;
	struct counters c;
	json_t *verdicts;

	if (!read_counters(map_fd(e->datapath->maps.pod_counters), &cookie, &c))
		return NULL;
	verdicts = json_object();
	for (int i = 0; verdicts && i < RULE_ID_COUNT_; i++)
		if (c.rule[i])
			json_object_set_new(verdicts, plan_rule_name((enum plan_rule_id)i),
					    json_integer((json_int_t)c.rule[i]));
	return json_pack("{s:o, s:o}", "verdicts", verdicts, "events", events_json(&c));
}

static json_t *ebpf_node_counters(void *state)
{
	struct ebpf *e = state;
	struct gauge gauge = {0};
	struct counters c;
	__u64 node = 0;
	__u32 zero = 0;

	if (!read_counters(map_fd(e->datapath->maps.node_counters), &zero, &c))
		return NULL;
	bpf_map_lookup_elem(map_fd(e->datapath->maps.gauges), &node, &gauge);
	return json_pack("{s:o, s:I, s:{s:I, s:I, s:I, s:I}}", "events", events_json(&c),
			 "handovers", (json_int_t)gauge.handovers, "limits", "pods",
			 (json_int_t)e->cfg->max_pods, "handovers",
			 (json_int_t)e->cfg->max_handovers, "handoversPerPod",
			 (json_int_t)e->cfg->max_handovers_per_pod, "ruleEntries",
			 (json_int_t)e->cfg->max_rule_entries);
}

/* ---- open and close ------------------------------------------------------------------------- */

static int set_sizes(struct ebpf *e, struct error *err)
{
	const struct redirect_config *cfg = e->cfg;
	struct datapath_bpf *d = e->datapath;
	const struct {
		struct bpf_map *map;
		uint32_t entries;
	} sizes[] = {
		{d->maps.pods, cfg->max_pods},
		{d->maps.pod_counters, cfg->max_pods},
		{d->maps.gauges, cfg->max_pods + 1},
		{d->maps.local_addresses, cfg->max_pods * ADDRESSES_PER_POD},
		{d->maps.listeners, cfg->max_pods * LISTENER_SLOTS},
		{d->maps.id_sets, cfg->max_pods * 32},
		{d->maps.port_sets, cfg->max_rule_entries},
		{d->maps.prefix_sets, cfg->max_rule_entries},
		{d->maps.handovers, cfg->max_handovers + HANDOVER_SLACK},
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		if (bpf_map__set_max_entries(sizes[i].map, sizes[i].entries))
			return error_set(err, errno, "size map %s", bpf_map__name(sizes[i].map));
	d->rodata->max_handovers = cfg->max_handovers;
	d->rodata->max_handovers_per_pod = cfg->max_handovers_per_pod;
	return 0;
}

static int open_cgroup(struct ebpf *e, struct error *err)
{
	char path[PIN_PATH_MAX];
	struct stat st;
	int r = cgroup_attach_dir(e->cfg->cgroup_root, path, sizeof(path), err);

	if (r)
		return r;
	e->cgroup_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (e->cgroup_fd < 0 || fstat(e->cgroup_fd, &st) < 0)
		return error_set(err, errno, "open cgroup %s", path);
	e->cgroup_ino = st.st_ino; /* on cgroup2 the inode number is the cgroup's id */
	return 0;
}

static int load(struct ebpf *e, bool *ret_fresh, struct error *err)
{
	struct gauge node_gauge = {0};
	__u64 node = 0;
	int r;

	e->datapath = datapath_bpf__open();
	e->scan = listener_scan_bpf__open();
	if (!e->datapath || !e->scan)
		return error_set(err, errno, "open the BPF objects");
	r = set_sizes(e, err);
	if (!r)
		r = ebpf_pins_reuse_maps(&e->pins, e->datapath->obj, err);
	if (r)
		return r;
	r = datapath_bpf__load(e->datapath);
	if (r)
		return error_set(err, -r, "load the data path programs");
	r = ebpf_pins_keep_maps(&e->pins, e->datapath->obj, ret_fresh, err);
	if (!r)
		r = share_maps(e->scan->obj, e->datapath->obj, err);
	if (r)
		return r;
	r = listener_scan_bpf__load(e->scan);
	if (r)
		return error_set(err, -r, "load the listener iterator");
	e->scan_link = bpf_program__attach_iter(e->scan->progs.sockmesh_listener_scan, NULL);
	if (!e->scan_link)
		return error_set(err, errno, "attach the listener iterator");
	if (bpf_map_update_elem(map_fd(e->datapath->maps.gauges), &node, &node_gauge,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return error_set(err, errno, "prepare the node's gauge");
	return 0;
}

static int attach(struct ebpf *e, struct error *err)
{
	struct bpf_program *prog;

	bpf_object__for_each_program (prog, e->datapath->obj) {
		char path[PIN_PATH_MAX];
		int r;

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		r = ebpf_pins_attach(path, prog, e->cgroup_fd, e->cgroup_ino, err);
		if (r)
			return r;
	}
	e->attached = true;
	ebpf_pins_drop_old(&e->pins, e->datapath->obj);
	return 0;
}

static void count_missing(uint64_t cookie, void *arg)
{
	struct ebpf *e = ((void **)arg)[0];
	size_t *missing = ((void **)arg)[1];
	struct pod_config cfg;

	if (is_live(e, cookie) && (!pod_config_read(e, cookie, &cfg) || !(cfg.flags & POD_ACTIVE)))
		++*missing;
}

/*
 * Pods that some agent redirects and that are not in our maps. With programs that look into our
 * maps they would go past their proxies.
 */
static size_t missing_pods(struct ebpf *e)
{
	size_t missing = 0;
	void *args[] = {e, &missing};

	ebpf_pins_each_pod(&e->pins, count_missing, args);
	return missing;
}

static int attach_when_complete(struct ebpf *e, struct error *err)
{
	size_t missing = missing_pods(e);

	if (missing)
		return error_set(err, EAGAIN,
				 "an earlier agent's programs stay in place: they redirect %zu "
				 "pod(s) that this agent does not know",
				 missing);
	return attach(e, err);
}

static void attach_late(void *arg)
{
	struct ebpf *e = arg;
	struct error err = {0};

	e->start_source = NULL;
	if (attach_when_complete(e, &err))
		log_error(LOG_ERROR, &err, "programs not replaced", NULL);
}

/*
 * Programs replace their predecessors at once when every pod is in the maps that ours use. When the
 * maps are new it is not so: the old programs go on with the old maps until registration has put
 * every pod into the new ones, which it does before the event loop runs.
 */
static int start(struct ebpf *e, bool fresh, struct error *err)
{
	char path[PIN_PATH_MAX];
	struct error ignored;

	ebpf_pins_link_path(&e->pins, "sockmesh_connect4", path);
	if (ebpf_pins_check(path, 0, NULL, &ignored) == -ENODEV)
		return attach(e, err); /* there are no old ones, or they are detached */
	if (!fresh && !missing_pods(e))
		return attach(e, err);
	return event_loop_add_timer(e->loop, 1, 0, attach_late, e, &e->start_source, err);
}

/* The cgroup may have been removed and made again, as by a kubelet that starts over. */
static int reattach(struct ebpf *e, struct error *err)
{
	int r;

	scoped_close(&e->cgroup_fd);
	e->cgroup_fd = -1;
	r = open_cgroup(e, err);
	return r ? r : attach(e, err);
}

/* Before a pod is promised anything: our programs are where its processes are. */
static int ensure_attached(struct ebpf *e, struct error *err)
{
	struct error why = {0};
	int r;

	if (e->start_source)
		return 0; /* recovery: see start() */
	if (!e->attached)
		return attach_when_complete(e, err);
	if (!verify_links(e, &why))
		return 0;
	r = reattach(e, err);
	if (r)
		return error_wrap(err, "%s, attaching again", why.text);
	log_error(LOG_WARN, &why, "programs were detached by somebody else and attached again",
		  NULL);
	return 0;
}

static void heal(void *arg)
{
	struct ebpf *e = arg;
	struct error err = {0};

	if (ensure_attached(e, &err))
		log_error(LOG_ERROR, &err, "the data path is not complete", NULL);
}

/* ---- what an earlier agent left ----------------------------------------------------------------
 */

static int load_addresses(struct ebpf *e, struct error *err)
{
	int fd = map_fd(e->datapath->maps.local_addresses);
	struct local_address_key key, next;
	void *at = NULL;

	while (!bpf_map_get_next_key(fd, at, &next)) {
		struct ebpf_pod *pod = pod_get(e, next.netns);
		struct ip_address address, *grown;

		key = next;
		at = &key;
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

/* A map that was made anew, in another size, has no entries for the pods that are there. */
static int complete_pods(struct ebpf *e, struct error *err)
{
	uint64_t key = 0, next;
	void *at = NULL;
	int r = 0;

	while (!r && !bpf_map_get_next_key(map_fd(e->datapath->maps.pods), at, &next)) {
		key = next;
		at = &key;
		r = per_pod_entries(e, key, err);
	}
	return r;
}

struct policies { /* that pods in the kernel have, sorted */
	uint32_t *ids;
	size_t n;
};

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int list_policies(struct ebpf *e, struct policies *ret, struct error *err)
{
	uint64_t key = 0, next;
	void *at = NULL;

	ret->ids = calloc(e->cfg->max_pods + 1, sizeof(*ret->ids));
	if (!ret->ids)
		return error_set(err, ENOMEM, "list policies");
	while (ret->n < e->cfg->max_pods &&
	       !bpf_map_get_next_key(map_fd(e->datapath->maps.pods), at, &next)) {
		struct pod_config cfg;

		key = next;
		at = &key;
		if (pod_config_read(e, key, &cfg))
			ret->ids[ret->n++] = cfg.policy;
	}
	qsort(ret->ids, ret->n, sizeof(*ret->ids), compare_ids);
	return 0;
}

static uint32_t policy_of_id(const void *key)
{
	return ((const struct id_set_key *)key)->policy;
}

static uint32_t policy_of_port(const void *key)
{
	return ((const struct port_set_key *)key)->policy;
}

static uint32_t policy_of_prefix(const void *key)
{
	return ((const struct prefix_set_key *)key)->policy_family / 2;
}

/* What an apply that was killed has written: its policy's number will be given again. */
static void erase_unowned(int fd, size_t key_size, uint32_t (*policy_of)(const void *),
			  const struct policies *owned)
{
	char key[64], next[64];
	void *at = NULL;

	while (!bpf_map_get_next_key(fd, at, next)) {
		uint32_t policy = policy_of(next);

		if (bsearch(&policy, owned->ids, owned->n, sizeof(policy), compare_ids)) {
			memcpy(key, next, key_size);
			at = key;
		} else if (bpf_map_delete_elem(fd, next)) {
			return; /* it cannot be stepped over either */
		}
	}
}

static int erase_leftovers(struct ebpf *e, struct error *err)
{
	struct datapath_bpf *d = e->datapath;
	struct policies owned = {0};
	int r = list_policies(e, &owned, err);

	if (!r) {
		erase_unowned(map_fd(d->maps.id_sets), sizeof(struct id_set_key), policy_of_id,
			      &owned);
		erase_unowned(map_fd(d->maps.port_sets), sizeof(struct port_set_key),
			      policy_of_port, &owned);
		erase_unowned(map_fd(d->maps.prefix_sets), sizeof(struct prefix_set_key),
			      policy_of_prefix, &owned);
		e->last_policy = owned.n ? owned.ids[owned.n - 1] : 0;
	}
	free(owned.ids);
	return r;
}

static int listen_to_kernel(struct ebpf *e, struct error *err)
{
	int r;

	e->notices = ring_buffer__new(map_fd(e->datapath->maps.notices), on_notice, e, NULL);
	if (!e->notices)
		return error_set(err, errno, "open the ring buffer");
	r = event_loop_add_fd(e->loop, ring_buffer__epoll_fd(e->notices), EPOLLIN,
			      on_notices_readable, e, &e->notice_source, err);
	if (!r)
		r = netlink_monitor_open(&e->monitor_fd, err);
	if (!r)
		r = event_loop_add_fd(e->loop, e->monitor_fd, EPOLLIN, on_monitor_readable, e,
				      &e->monitor_source, err);
	if (!r)
		r = event_loop_add_timer(e->loop, HEAL_PERIOD_MS, HEAL_PERIOD_MS, heal, e,
					 &e->heal_source, err);
	return r;
}

static void ebpf_close(void *state)
{
	struct ebpf *e = state;

	if (!e)
		return;
	event_loop_remove(e->notice_source);
	event_loop_remove(e->monitor_source);
	event_loop_remove(e->start_source);
	event_loop_remove(e->rescan_source);
	event_loop_remove(e->heal_source);
	while (e->doomed)
		doomed_free(e->doomed);
	ring_buffer__free(e->notices);
	bpf_link__destroy(e->scan_link);
	listener_scan_bpf__destroy(e->scan);
	datapath_bpf__destroy(e->datapath);
	scoped_close(&e->monitor_fd);
	scoped_close(&e->cgroup_fd);
	for (size_t i = 0; i < POD_BUCKETS; i++)
		while (e->pods[i]) {
			struct ebpf_pod *pod = e->pods[i];

			e->pods[i] = pod->next;
			pod_free(pod);
		}
	free(e);
}

static int print_libbpf(enum libbpf_print_level level, const char *fmt, va_list args)
{
	char line[1024];

	/* One level down: libbpf's warnings are details of a failure that we report ourselves. */
	if (level == LIBBPF_DEBUG || !log_enabled(LOG_DEBUG))
		return 0;
	vsnprintf(line, sizeof(line), fmt, args);
	line[strcspn(line, "\n")] = '\0';
	log_write(LOG_DEBUG, "libbpf", "text", line, NULL);
	return 0;
}

static int ebpf_open(const struct redirect_config *cfg, struct event_loop *loop, void **ret_state,
		     struct error *err)
{
	struct ebpf *e = calloc(1, sizeof(*e));
	bool fresh = true;
	int r;

	if (!e)
		return error_set(err, ENOMEM, "open the engine");
	e->cfg = cfg;
	e->loop = loop;
	e->monitor_fd = e->cgroup_fd = -1;
	libbpf_set_print(print_libbpf);
	r = open_cgroup(e, err);
	if (!r)
		r = ebpf_pins_open(cfg->bpffs_dir, &e->pins, err);
	if (!r)
		r = load(e, &fresh, err);
	if (!r)
		r = complete_pods(e, err);
	if (!r)
		r = load_addresses(e, err);
	if (!r)
		r = erase_leftovers(e, err);
	if (!r)
		r = listen_to_kernel(e, err);
	if (!r)
		r = start(e, fresh, err);
	if (r) {
		ebpf_close(e);
		return r;
	}
	malloc_trim(0); /* libbpf is done with the kernel's BTF: 11 MB of 15 */
	*ret_state = e;
	return 0;
}

/* ---- uninstall ------------------------------------------------------------------------------ */

/* The kernel takes namespaces apart in the background: one that was just deleted still shows. */
static bool netns_ends_soon(const char *path)
{
	const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};

	for (int i = 0; i < 100; i++) {
		if (ebpf_pins_netns_state(path) != NETNS_LIVES)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

/*
 * ::6 goes from the pods that can be reached. Redirection ends in any case; what stays behind is
 * then said.
 */
static int remove_passthrough(const struct ebpf_pins *pins, int pods_fd,
			      const struct redirect_pod *pods, size_t n_pods, struct error *err)
{
	uint64_t key = 0, next;
	void *at = NULL;
	size_t left = 0;

	while (!bpf_map_get_next_key(pods_fd, at, &next)) {
		char path[PIN_PATH_MAX];
		struct pod_config cfg;
		size_t i = 0;

		key = next;
		at = &key;
		ebpf_pins_pod_path(pins, key, path);
		if (bpf_map_lookup_elem(pods_fd, &key, &cfg) ||
		    !(cfg.flags & POD_ADDED_PASSTHROUGH) ||
		    ebpf_pins_netns_state(path) == NETNS_ENDED)
			continue;
		while (i < n_pods && (pods[i].cookie != key || pods[i].netns_fd < 0))
			i++;
		if (i == n_pods)
			left += !netns_ends_soon(path);
		else if (netlink_set_passthrough_address(pods[i].netns_fd, false, NULL, err))
			left++;
	}
	if (left)
		return error_set(err, ENOENT,
				 "everything else is removed, but the address ::6/128 stays on lo "
				 "of %zu pod(s) whose network namespace could not be reached",
				 left);
	return 0;
}

static int ebpf_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
			  size_t n_pods, struct error *err)
{
	struct ebpf_pins pins = {0};
	struct error left = {0};
	scoped_fd int fd = -1;
	int r;

	snprintf(pins.root, sizeof(pins.root), "%s", cfg->bpffs_dir);
	if (!ebpf_pins_map(&pins, "pods", &fd))
		remove_passthrough(&pins, fd, pods, n_pods, &left);
	r = ebpf_pins_remove_all(cfg->bpffs_dir, err);
	if (!r && left.code) {
		*err = left;
		r = -left.code;
	}
	return r;
}

const struct redirect_engine_ops redirect_ebpf_ops = {
	.name = "ebpf",
	.open = ebpf_open,
	.close = ebpf_close,
	.apply = ebpf_apply,
	.remove = ebpf_remove,
	.verify = ebpf_verify,
	.recovered = ebpf_recovered,
	.adopt = ebpf_adopt,
	.netns_gone = ebpf_netns_gone,
	.address_is_local = ebpf_address_is_local,
	.pod_counters = ebpf_pod_counters,
	.node_counters = ebpf_node_counters,
	.uninstall = ebpf_uninstall,
};
