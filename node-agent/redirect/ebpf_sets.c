/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "event_loop.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { ERASE_DELAY_MS = 1000 }; /* programs that read the old plan have ended long before */

int ebpf_sets_write(struct ebpf *e, const struct ebpf_policy *p, struct error *err)
{
	struct datapath_bpf *d = e->datapath;

	for (size_t i = 0; i < p->n_ids; i++)
		if (bpf_map_update_elem(bpf_map__fd(d->maps.id_sets), &p->ids[i].key,
					&p->ids[i].bits, BPF_ANY))
			return ebpf_limit_error(err, "user and group ids (--max-pods)");
	for (size_t i = 0; i < p->n_ports; i++)
		if (bpf_map_update_elem(bpf_map__fd(d->maps.port_sets), &p->ports[i].key,
					&p->ports[i].bits, BPF_ANY))
			return ebpf_limit_error(err, "ports in lists (--max-rule-entries)");
	for (size_t i = 0; i < p->n_prefixes; i++)
		if (bpf_map_update_elem(bpf_map__fd(d->maps.prefix_sets), &p->prefixes[i].key,
					&p->prefixes[i].bits, BPF_ANY))
			return ebpf_limit_error(err, "prefixes in lists (--max-rule-entries)");
	return 0;
}

static void policy_erase(struct ebpf *e, const struct ebpf_policy *p)
{
	struct datapath_bpf *d = e->datapath;

	for (size_t i = 0; i < p->n_ids; i++)
		bpf_map_delete_elem(bpf_map__fd(d->maps.id_sets), &p->ids[i].key);
	for (size_t i = 0; i < p->n_ports; i++)
		bpf_map_delete_elem(bpf_map__fd(d->maps.port_sets), &p->ports[i].key);
	for (size_t i = 0; i < p->n_prefixes; i++)
		bpf_map_delete_elem(bpf_map__fd(d->maps.prefix_sets), &p->prefixes[i].key);
}

void ebpf_sets_doomed_free(struct doomed_policy *doomed)
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
	ebpf_sets_doomed_free(doomed);
}

/* Takes the policy's contents over. What an agent that ends leaves, the next one erases. */
void ebpf_sets_erase_later(struct ebpf *e, struct ebpf_policy *p)
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

/* ---- of pods whose plan is not known ---- */

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

/* Whether the entry is to go. */
typedef bool (*doomed_fn)(uint32_t policy, const void *arg);

/*
 * Walks a whole map and erases what is doomed. A key is stepped over before it is erased, or the
 * walk would start again.
 */
static void erase_where(int fd, size_t key_size, uint32_t (*policy_of)(const void *),
			doomed_fn is_doomed, const void *arg)
{
	char key[64], next[64];
	bool have_key = false, doomed = false;

	while (!bpf_map_get_next_key(fd, have_key ? key : NULL, next)) {
		if (doomed)
			bpf_map_delete_elem(fd, key);
		memcpy(key, next, key_size);
		have_key = true;
		doomed = is_doomed(policy_of(key), arg);
	}
	if (doomed)
		bpf_map_delete_elem(fd, key);
}

static void erase_in_all(struct ebpf *e, doomed_fn is_doomed, const void *arg)
{
	struct datapath_bpf *d = e->datapath;

	erase_where(bpf_map__fd(d->maps.id_sets), sizeof(struct id_set_key), policy_of_id,
		    is_doomed, arg);
	erase_where(bpf_map__fd(d->maps.port_sets), sizeof(struct port_set_key), policy_of_port,
		    is_doomed, arg);
	erase_where(bpf_map__fd(d->maps.prefix_sets), sizeof(struct prefix_set_key),
		    policy_of_prefix, is_doomed, arg);
}

static bool is_this(uint32_t policy, const void *arg)
{
	return policy == *(const uint32_t *)arg;
}

void ebpf_sets_erase_unknown(struct ebpf *e, uint32_t policy)
{
	erase_in_all(e, is_this, &policy);
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
	uint64_t key;

	ret->ids = calloc(e->cfg->max_pods + 1, sizeof(*ret->ids));
	if (!ret->ids)
		return error_set(err, ENOMEM, "list policies");
	for_each_map_key (bpf_map__fd(e->datapath->maps.pods), &key) {
		struct pod_config cfg;

		if (ret->n < e->cfg->max_pods && ebpf_pods_config(e, key, &cfg))
			ret->ids[ret->n++] = cfg.policy;
	}
	qsort(ret->ids, ret->n, sizeof(*ret->ids), compare_ids);
	return 0;
}

static bool is_unowned(uint32_t policy, const void *arg)
{
	const struct policies *owned = arg;

	return !bsearch(&policy, owned->ids, owned->n, sizeof(policy), compare_ids);
}

/* What an apply that was killed has written: its policy's number will be given again. */
int ebpf_sets_erase_leftovers(struct ebpf *e, struct error *err)
{
	struct policies owned = {0};
	int r = list_policies(e, &owned, err);

	if (!r) {
		erase_in_all(e, is_unowned, &owned);
		e->last_policy = owned.n ? owned.ids[owned.n - 1] : 0;
	}
	free(owned.ids);
	return r;
}
