/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The eBPF engine: programs attached once to the cgroup of the pods, one small inbound program per
 * pod on its namespace, and maps that say what each namespace's plan is. A pod is opted in or out
 * by one map update.
 */
#include "ebpf_engine.h"

#include "accelerate.h"
#include "error.h"
#include "event_loop.h"
#include "locked_memory.h"
#include "netlink.h"
#include "netns.h"
#include "scoped.h"

#include "inbound.skel.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
	ADDRESSES_PER_POD = 16, /* the map's room, on average */
	IDS_PER_POD = 32,	/* the same */
	HEAL_PERIOD_MS = 10000,
	LISTENER_ENTRIES_MIN = 65536,
};

/* ---- the inbound program -------------------------------------------------------------------- */

int ebpf_share_maps(struct bpf_object *obj, struct bpf_object *with, struct error *err)
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
	r = ebpf_share_maps(skel->obj, e->datapath->obj, err);
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
	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.gauges), &cookie, &gauge,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return ebpf_limit_error(err, "pods (--max-pods)");
	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.pod_counters), &cookie, zero,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return ebpf_limit_error(err, "pods (--max-pods)");
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
		r = ebpf_addresses_apply(e, known, pod, err);
	if (!r && !exists)
		r = ebpf_pods_config_write(e, pod->cookie, staged, err);
	if (!r)
		r = ebpf_addresses_passthrough(e, known, pod->netns_fd, err);
	if (!r && pod->plan->ambient)
		r = ebpf_ambient_enter(e, pod, err);
	return r ? r : ebpf_listeners_scan(e, pod->cookie, pod->netns_fd, err);
}

/* One map update, which switches both directions. */
static int activate(struct ebpf *e, uint64_t cookie, struct pod_config *cfg, struct error *err)
{
	struct pod_config now = {0};

	/* These flags are what stage() may have changed in the kernel. */
	ebpf_pods_config(e, cookie, &now);
	cfg->flags |= POD_ACTIVE | (now.flags & POD_CHANGES);
	return ebpf_pods_config_write(e, cookie, cfg, err);
}

/*
 * A new pod gets its inbound program first, which passes everything until the switch. A pod that
 * has one, perhaps an older agent's with maps of its own, is switched on in our maps first: the
 * programs that take the old ones' place must find it there.
 */
static int switch_on(struct ebpf *e, const struct redirect_pod *pod, struct pod_config *cfg,
		     bool live, struct error *err)
{
	int r = live ? activate(e, pod->cookie, cfg, err) : inbound_attach(e, pod, err);

	if (!r && live)
		r = ebpf_attach_ensure(e, 0, err);
	if (r)
		return r;
	return live ? inbound_attach(e, pod, err) : activate(e, pod->cookie, cfg, err);
}

static int watch(struct ebpf *e, struct ebpf_pod *known, const struct redirect_pod *pod,
		 struct error *err)
{
	int r = ebpf_netns_hold(e, known, pod->netns_fd, err);

	if (r)
		return r;
	/* ztunnel speaks for clients under their own addresses. */
	known->wants_passthrough = redirect_plan_wants_passthrough(pod->plan);
	r = ebpf_kubelet_pod(e, known, pod->plan->ambient, err);
	if (!r && pod->plan->ambient)
		r = ebpf_kubelet_ensure(e, err);
	if (r)
		return r;
	return netlink_namespace_id(pod->netns_fd, &known->namespace_id, err);
}

/*
 * What a failed apply has made, and nothing that was there before it. Returns false when the pod
 * keeps its new plan all the same: our programs are in place already, and without a plan it would
 * go past its proxy.
 */
static bool undo_apply(struct ebpf *e, const struct redirect_pod *pod, const struct pod_config *old,
		       bool live)
{
	struct error ignored = {0};
	struct pod_config now;

	if (old) { /* it may have been switched to the new plan already */
		struct pod_config back = *old;

		if (ebpf_pods_config(e, pod->cookie, &now))
			back.flags |= now.flags & POD_CHANGES;
		ebpf_pods_config_write(e, pod->cookie, &back, &ignored);
		return true;
	}
	if (live && e->attached && ebpf_pods_config(e, pod->cookie, &now) &&
	    (now.flags & POD_ACTIVE))
		return false;
	if (live) /* an older agent's program goes on with its own maps */
		bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.pods), &pod->cookie);
	else
		ebpf_remove(e, pod->cookie, pod->netns_fd, &ignored);
	return true;
}

static bool same_ids(const struct ebpf_policy *a, const struct ebpf_policy *b)
{
	if (a->n_ids != b->n_ids)
		return false;
	for (size_t i = 0; i < a->n_ids; i++)
		if (a->ids[i].key.id != b->ids[i].key.id || a->ids[i].bits != b->ids[i].bits)
			return false;
	return true;
}

static int ebpf_apply(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = ebpf_pods_get(e, pod->cookie);
	bool exists, active, other_listeners, live = ebpf_attach_pod_is_live(e, pod->cookie);
	struct ebpf_policy policy = {0};
	struct pod_config cfg = {0}, old = {0};
	uint32_t id = e->last_policy + 1;
	int r;

	if (!known)
		return error_set(err, ENOMEM, "remember the pod");
	exists = ebpf_pods_config(e, pod->cookie, &old);
	active = old.flags & POD_ACTIVE;
	r = live ? ebpf_attach_allowed(e, pod->cookie, err)
		 : ebpf_attach_ensure(e, pod->cookie, err);
	if (!r)
		r = watch(e, known, pod, err);
	if (!r)
		r = ebpf_policy_build(pod->plan, id, &policy, err);
	if (!r)
		r = ebpf_pod_config_build(pod->plan, id, pod->addresses, pod->n_addresses, &cfg,
					  err);
	if (!r) {
		e->last_policy = id;
		cfg.netns = pod->cookie;
		if (pod->passthrough_is_ours)
			cfg.flags |= POD_ADDED_PASSTHROUGH;
		cfg.flags |= old.flags & POD_CHANGES;
		r = ebpf_sets_write(e, &policy, err);
	}
	/* What only drains steers nobody: its listeners are found anew before it does again. */
	if (!r && exists && !active)
		ebpf_listeners_forget(e, pod->cookie);
	if (!r)
		r = stage(e, known, pod, &cfg, active, err);
	if (!r)
		r = switch_on(e, pod, &cfg, live, err);
	if (r && undo_apply(e, pod, exists ? &old : NULL, live)) {
		ebpf_sets_erase_later(e, &policy);
		return r;
	}
	other_listeners = active && (old.inbound_port != cfg.inbound_port ||
				     ((old.flags ^ cfg.flags) & POD_IS_AMBIENT) ||
				     !same_ids(&known->policy, &policy));
	/* What is remembered goes also when somebody else has deleted the pod's entry. */
	if (known->policy.n_ids)
		ebpf_sets_erase_later(e, &known->policy);
	else if (exists)
		ebpf_sets_erase_unknown(e, old.policy);
	ebpf_policy_done(&known->policy);
	known->policy = policy;
	if (!r && !pod->plan->ambient)
		r = ebpf_ambient_leave(e, pod->cookie, pod->netns_fd, POD_CHANGES, err);
	if (r || !other_listeners)
		return r;
	/* By port or by user: those of before must not be steered to any more. */
	ebpf_listeners_forget(e, pod->cookie);
	return ebpf_listeners_scan(e, pod->cookie, pod->netns_fd, err);
}

int ebpf_remove(void *state, uint64_t cookie, int netns_fd, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = ebpf_pods_find(e, cookie);
	struct pod_config cfg = {0};
	bool exists = ebpf_pods_config(e, cookie, &cfg);
	char path[PIN_PATH_MAX];
	int r = 0;

	/* The switch first: from here on nothing new is captured. */
	if (cfg.flags & POD_ACTIVE) {
		cfg.flags &= ~(__u32)POD_ACTIVE;
		r = ebpf_pods_config_write(e, cookie, &cfg, err);
		if (r)
			return r;
	}
	/* Then what is in the namespace, while the entry still says whose it is. */
	if ((cfg.flags & POD_ADDED_PASSTHROUGH) && netns_fd >= 0)
		r = netlink_set_passthrough_address(netns_fd, false, NULL, err);
	if ((cfg.flags & POD_AMBIENT_CHANGES) && netns_fd >= 0 && !r)
		r = ebpf_ambient_undo(netns_fd, cfg.flags, err);
	if (exists && bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.pods), &cookie) &&
	    errno != ENOENT)
		return error_set(err, errno, "opt the pod out");
	ebpf_pins_pod_path(&e->pins, cookie, path);
	if (unlink(path) < 0 && errno != ENOENT)
		return error_set(err, errno, "unpin %s", path);
	ebpf_listeners_forget(e, cookie);
	if (known && known->policy.n_ids)
		ebpf_sets_erase_later(e, &known->policy);
	else if (exists)
		ebpf_sets_erase_unknown(e, cfg.policy);
	/* What the maps hold was read at start, so a pod with addresses there is known. */
	if (known)
		ebpf_addresses_forget(e, known);
	bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.gauges), &cookie);
	ebpf_counters_retire(e, cookie);
	bpf_map_delete_elem(bpf_map__fd(e->datapath->maps.pod_counters), &cookie);
	ebpf_pods_forget(e, cookie);
	return r;
}

/* ---- restart -------------------------------------------------------------------------------- */

struct cookies {
	struct ebpf *engine;
	uint64_t *list;
	size_t n, max;
};

static void add_cookie(struct cookies *cookies, uint64_t cookie)
{
	if (cookies->n < cookies->max)
		cookies->list[cookies->n++] = cookie;
}

/* What an earlier agent attached and our maps, when they are new, do not have. */
static void add_unknown(uint64_t cookie, void *arg)
{
	struct cookies *cookies = arg;

	if (!ebpf_attach_pod_is_known(cookies->engine, cookie))
		add_cookie(cookies, cookie);
}

static int ebpf_recovered(void *state, uint64_t **ret_cookies, size_t *ret_n, struct error *err)
{
	struct ebpf *e = state;
	struct cookies cookies = {.engine = e, .max = 2ul * e->cfg->max_pods};
	uint64_t key;

	cookies.list = calloc(cookies.max, sizeof(*cookies.list));
	if (!cookies.list)
		return error_set(err, ENOMEM, "list the pods in the kernel");
	for_each_map_key (bpf_map__fd(e->datapath->maps.pods), &key)
		add_cookie(&cookies, key);
	ebpf_pins_each_pod(&e->pins, add_unknown, &cookies);
	*ret_cookies = cookies.list;
	*ret_n = cookies.n;
	return 0;
}

static int ebpf_adopt(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	struct ebpf_pod *known = ebpf_pods_get(e, pod->cookie);
	struct ebpf_policy policy = {0};
	struct pod_config cfg;
	int r;

	if (!known)
		return error_set(err, ENOMEM, "remember the pod");
	if (!ebpf_pods_config(e, pod->cookie, &cfg))
		return error_set(err, ENODEV, "the kernel does not have the pod");
	r = watch(e, known, pod, err);
	if (!r)
		r = ebpf_policy_build(pod->plan, cfg.policy, &policy, err);
	if (r)
		return r;
	ebpf_policy_done(&known->policy);
	known->policy = policy;
	r = ebpf_addresses_apply(e, known, pod, err);
	if (!r)
		r = ebpf_listeners_scan(e, pod->cookie, pod->netns_fd, err);
	/* Last, this agent's program in the place of the one before. */
	return r ? r : inbound_attach(e, pod, err);
}

static bool ebpf_address_is_local(void *state, uint64_t cookie, const struct ip_address *a)
{
	struct ebpf *e = state;
	struct local_address_key key = {.netns = cookie, .addr = addr16_of(a)};
	__u8 value;

	return !bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.local_addresses), &key, &value);
}

static bool ebpf_accelerate_host(const void *state, struct accelerate_host *ret)
{
	const struct ebpf *e = state;

	*ret = (struct accelerate_host){.datapath = e->datapath->obj,
					.cgroup_fd = e->cgroup_fd,
					.netns_by_inode = e->netns_by_inode};
	return true;
}

/* ---- open and close ------------------------------------------------------------------------- */

/*
 * The same for any usual --max-pods, so that a change of it leaves listeners registered: they
 * cannot be copied, and a pod that is not taken over could not find them in a new map.
 */
static uint32_t listener_entries(const struct redirect_config *cfg)
{
	uint32_t needed = cfg->max_pods * LISTENER_SLOTS;

	return needed < LISTENER_ENTRIES_MIN ? LISTENER_ENTRIES_MIN : needed;
}

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
		{d->maps.listeners, listener_entries(cfg)},
		{d->maps.id_sets, cfg->max_pods * IDS_PER_POD},
		{d->maps.port_sets, cfg->max_rule_entries},
		{d->maps.prefix_sets, cfg->max_rule_entries},
		{d->maps.probe_targets, cfg->max_pods * ADDRESSES_PER_POD},
		{d->maps.handovers, cfg->max_handovers + HANDOVER_SLACK},
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		if (bpf_map__set_max_entries(sizes[i].map, sizes[i].entries))
			return error_set(err, errno, "size map %s", bpf_map__name(sizes[i].map));
	d->rodata->max_handovers = cfg->max_handovers;
	d->rodata->max_handovers_per_pod = cfg->max_handovers_per_pod;
	d->rodata->netns_by_inode = e->netns_by_inode;
	return 0;
}

static int load_error(int r, struct error *err)
{
	struct error memory = {0};

	if (r != -EPERM || !locked_memory_check(&memory))
		return error_set(err, -r, "load the data path programs");
	*err = memory;
	return -memory.code;
}

static int load(struct ebpf *e, struct ebpf_fresh_maps *ret_fresh, struct error *err)
{
	struct gauge node_gauge = {0};
	struct error why_not = {0};
	__u64 node = 0;
	int r;

	e->datapath = datapath_bpf__open();
	if (!e->datapath)
		return error_set(err, errno, "open the BPF objects");
	r = set_sizes(e, err);
	if (!r)
		r = ebpf_pins_reuse_maps(&e->pins, e->datapath->obj, err);
	if (r)
		return r;
	r = datapath_bpf__load(e->datapath);
	if (r)
		return load_error(r, err);
	r = ebpf_pins_keep_maps(&e->pins, e->datapath->obj, ret_fresh, err);
	if (!r)
		r = ebpf_listeners_open(e, err);
	if (r)
		return r;
	if (ebpf_kubelet_open(e, &why_not)) {
		kubelet_bpf__destroy(take_ptr(e->kubelet));
		ebpf_cannot_ambient(&why_not);
	}
	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.gauges), &node, &node_gauge,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return error_set(err, errno, "prepare the node's gauge");
	return 0;
}

/* A map that was made anew, in another size, has no entries for the pods that are there. */
static int complete_pods(struct ebpf *e, struct error *err)
{
	uint64_t key;

	for_each_map_key (bpf_map__fd(e->datapath->maps.pods), &key) {
		int r = per_pod_entries(e, key, err);

		if (r)
			return r;
	}
	return 0;
}

static void count_handover(int gauges, const struct handover *entry)
{
	struct gauge pod = {0};

	if (bpf_map_lookup_elem(gauges, &entry->netns, &pod))
		return;
	pod.handovers++;
	bpf_map_update_elem(gauges, &entry->netns, &pod, BPF_EXIST);
}

/*
 * The gauges say how many entries there are. When one of the two maps is new, of another size, they
 * are counted again; what the old programs hand over meanwhile can leave them wrong by that many.
 * In batches (Linux 5.6), which go by bucket: a walk from key to key starts again whenever its key
 * has gone, and on a busy node would not end.
 */
static void count_handovers(struct ebpf *e)
{
	enum { BATCH = 256 };
	int gauges = bpf_map__fd(e->datapath->maps.gauges);
	int handovers = bpf_map__fd(e->datapath->maps.handovers);
	scoped_free struct handover_key *keys = calloc(BATCH, sizeof(*keys));
	scoped_free struct handover *values = calloc(BATCH, sizeof(*values));
	struct gauge none = {0}, node = {0};
	__u32 position = 0, *from = NULL;
	bool more = keys && values;
	uint64_t cookie;

	/* By the pods' keys: an update moves an entry, so a walk over the gauges need not end. */
	for_each_map_key (bpf_map__fd(e->datapath->maps.pods), &cookie)
		bpf_map_update_elem(gauges, &cookie, &none, BPF_EXIST);
	while (more) {
		__u32 n = BATCH;

		more = !bpf_map_lookup_batch(handovers, from, &position, keys, values, &n, NULL);
		if (!more && errno != ENOENT)
			break;
		for (__u32 i = 0; i < n; i++)
			count_handover(gauges, &values[i]);
		node.handovers += n;
		from = &position;
	}
	cookie = 0;
	bpf_map_update_elem(gauges, &cookie, &node, BPF_EXIST);
}

/* Addresses of an apply or remove that was killed on the way. */
static void forget_unapplied(struct ebpf *e)
{
	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (struct ebpf_pod *pod = e->pods[i], *next; pod; pod = next) {
			struct pod_config cfg;

			next = pod->next;
			if (ebpf_pods_config(e, pod->cookie, &cfg))
				continue;
			ebpf_addresses_forget(e, pod);
			ebpf_pods_forget(e, pod->cookie);
		}
}

static int listen_to_kernel(struct ebpf *e, struct error *err)
{
	int r = ebpf_notices_watch(e, err);

	if (!r)
		r = ebpf_addresses_watch(e, err);
	if (!r)
		r = event_loop_add_timer(e->loop, HEAL_PERIOD_MS, HEAL_PERIOD_MS, ebpf_attach_heal,
					 e, &e->heal_source, err);
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
		ebpf_sets_doomed_free(e->doomed);
	ring_buffer__free(e->notices);
	bpf_link__destroy(e->scan_link);
	listener_scan_bpf__destroy(e->scan);
	listener_lookup_bpf__destroy(e->lookup);
	kubelet_bpf__destroy(e->kubelet);
	datapath_bpf__destroy(e->datapath);
	scoped_close(&e->monitor_fd);
	scoped_close(&e->cgroup_fd);
	scoped_close(&e->lock_fd);
	for (size_t i = 0; i < POD_BUCKETS; i++)
		while (e->pods[i]) {
			struct ebpf_pod *pod = e->pods[i];

			e->pods[i] = pod->next;
			ebpf_pods_free(pod);
		}
	free(e);
}

__attribute__((format(printf, 2, 0))) static int print_libbpf(enum libbpf_print_level level,
							      const char *fmt, va_list args)
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
	struct ebpf_fresh_maps fresh = {0};
	int r;

	if (!e)
		return error_set(err, ENOMEM, "open the engine");
	e->cfg = cfg;
	e->loop = loop;
	e->monitor_fd = e->cgroup_fd = e->lock_fd = -1;
	libbpf_set_print(print_libbpf);
	r = ebpf_attach_open_cgroup(e, err);
	if (!r)
		r = netns_numbered_by_inode(&e->netns_by_inode, err);
	if (!r)
		r = ebpf_pins_open(cfg->bpffs_dir, e->netns_by_inode, &e->pins, err);
	if (!r)
		r = ebpf_pins_lock(cfg->bpffs_dir, &e->lock_fd, err);
	if (!r)
		r = load(e, &fresh, err);
	if (!r)
		r = complete_pods(e, err);
	if (!r && fresh.handovers)
		count_handovers(e);
	if (!r)
		r = ebpf_addresses_load(e, err);
	if (!r)
		forget_unapplied(e);
	if (!r)
		r = ebpf_kubelet_load_targets(e, err);
	if (!r)
		r = ebpf_sets_erase_leftovers(e, err);
	if (!r)
		r = listen_to_kernel(e, err);
	if (!r)
		r = ebpf_attach_start(e, fresh.pods, err);
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

static int undo_changes(int netns_fd, __u32 flags, struct error *err)
{
	int r = 0;

	if (flags & POD_ADDED_PASSTHROUGH)
		r = netlink_set_passthrough_address(netns_fd, false, NULL, err);
	return r ? r : ebpf_ambient_undo(netns_fd, flags, err);
}

/*
 * What was changed in the namespaces of pods that can be reached is changed back. Redirection ends
 * in any case; what stays behind is then said.
 */
static int undo_all_changes(const struct ebpf_pins *pins, int pods_fd,
			    const struct redirect_pod *pods, size_t n_pods, struct error *err)
{
	uint64_t key;
	size_t left = 0;
	__u32 flags = 0;

	for_each_map_key (pods_fd, &key) {
		char path[PIN_PATH_MAX];
		struct pod_config cfg;
		size_t before = left, i = 0;

		ebpf_pins_pod_path(pins, key, path);
		if (bpf_map_lookup_elem(pods_fd, &key, &cfg) || !(cfg.flags & POD_CHANGES) ||
		    ebpf_pins_netns_state(path) == NETNS_ENDED)
			continue;
		while (i < n_pods && (pods[i].cookie != key || pods[i].netns_fd < 0))
			i++;
		if (i == n_pods)
			left += !netns_ends_soon(path);
		else if (undo_changes(pods[i].netns_fd, cfg.flags, err))
			left++;
		if (left != before)
			flags |= cfg.flags;
	}
	if (left)
		return error_set(
			err, ENOENT,
			"everything else is removed, but %s of %zu pod(s) whose network "
			"namespace could not be reached",
			flags & POD_AMBIENT_CHANGES
				? "sysctls and routes stay as ambient pods need them, in those"
				: "the address ::6/128 stays on lo",
			left);
	return 0;
}

static int ebpf_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
			  size_t n_pods, struct error *err)
{
	struct ebpf_pins pins = {0};
	struct error left = {0};
	scoped_fd int fd = -1, lock = -1;
	int r = ebpf_pins_lock(cfg->bpffs_dir, &lock, err);

	if (r)
		return r == -ENOENT ? 0 : r;
	snprintf(pins.root, sizeof(pins.root), "%s", cfg->bpffs_dir);
	r = netns_numbered_by_inode(&pins.by_inode, err);
	if (r)
		return r;
	if (!ebpf_pins_map(&pins, "pods", &fd))
		undo_all_changes(&pins, fd, pods, n_pods, &left);
	close(take_fd(&lock)); /* what is open cannot be unmounted */
	r = ebpf_pins_remove_all(cfg->bpffs_dir, err);
	if (!r && left.code) {
		*err = left;
		r = -left.code;
	}
	return r;
}

const struct redirect_engine_ops redirect_ebpf_ops = {
	.name = "ebpf",
	.is_installed = ebpf_is_installed,
	.cannot = ebpf_cannot,
	.open = ebpf_open,
	.close = ebpf_close,
	.apply = ebpf_apply,
	.remove = ebpf_remove,
	.retire = ebpf_retire,
	.presence = ebpf_presence,
	.owns_passthrough = ebpf_owns_passthrough,
	.verify = ebpf_verify,
	.recovered = ebpf_recovered,
	.adopt = ebpf_adopt,
	.netns_gone = ebpf_netns_gone,
	.address_is_local = ebpf_address_is_local,
	.pod_counters = ebpf_pod_counters,
	.node_counters = ebpf_node_counters,
	.kubelet = ebpf_kubelet_known,
	.accelerate_host = ebpf_accelerate_host,
	.uninstall = ebpf_uninstall,
};
