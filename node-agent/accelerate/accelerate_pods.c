/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_private.h"
#include "ebpf_policy.h"
#include "error.h"
#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- whose address is it? ------------------------------------------------------------------- */

/*
 * How many pods have an address, and the exclusive or of their cookies: that is the owner's when
 * there is one, and takes no list to keep up.
 */
struct accelerate_address {
	struct accelerate_address *next;
	struct addr16 addr;
	size_t owners;
	uint64_t cookies;
};

static bool same_address(const struct addr16 *a, const struct addr16 *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static struct accelerate_address **find_address(struct accelerate *a, const struct addr16 *addr)
{
	uint32_t hash = (addr->w[0] ^ addr->w[1] ^ addr->w[2] ^ addr->w[3]) * 2654435761u;
	struct accelerate_address **link = &a->addresses[hash >> 24];

	_Static_assert(ACCELERATE_BUCKETS == 256, "eight bits of the hash");
	while (*link && !same_address(&(*link)->addr, addr))
		link = &(*link)->next;
	return link;
}

/* In the kernel: the owner, 0 where there are several, no entry where there is none. */
static int write_address(struct accelerate *a, const struct accelerate_address *address,
			 struct error *err)
{
	struct accel_address value = {.netns = address->owners == 1 ? address->cookies : 0};
	int fd;

	if (!a->skel)
		return 0;
	fd = bpf_map__fd(a->skel->maps.accel_addresses);
	if (!address->owners)
		bpf_map_delete_elem(fd, &address->addr);
	else if (bpf_map_update_elem(fd, &address->addr, &value, BPF_ANY))
		return error_set(err, errno, "remember an address for the accelerator");
	return 0;
}

/* Here only; write_address() tells the kernel. */
static int add_address(struct accelerate *a, const struct addr16 *addr, uint64_t cookie,
		       struct error *err)
{
	struct accelerate_address **link = find_address(a, addr), *address = *link;

	if (!address) {
		address = calloc(1, sizeof(*address));
		if (!address)
			return error_set(err, ENOMEM, "remember an address for the accelerator");
		address->addr = *addr;
		*link = address;
	}
	address->owners++;
	address->cookies ^= cookie;
	return 0;
}

static void remove_address(struct accelerate *a, const struct addr16 *addr, uint64_t cookie)
{
	struct accelerate_address **link = find_address(a, addr), *address = *link;
	struct error err = {0};

	if (!address)
		return;
	address->owners--;
	address->cookies ^= cookie;
	if (write_address(a, address, &err))
		log_error(LOG_WARN, &err, "an address that pods shared stays ambiguous", NULL);
	if (address->owners)
		return;
	*link = address->next;
	free(address);
}

static bool has_address(const struct accelerate_known *known, const struct addr16 *addr)
{
	for (size_t i = 0; i < known->n_addresses; i++)
		if (same_address(&known->addresses[i], addr))
			return true;
	return false;
}

/* What no other pod can dial says nothing about whose it is. */
static bool is_dialled_by_peers(const struct ip_address *address)
{
	return !ip_address_is_loopback(address) && !ip_address_is_link_local(address) &&
	       !ip_address_is_unspecified(address);
}

static void forget_addresses(struct accelerate *a, struct accelerate_known *known)
{
	for (size_t i = 0; i < known->n_addresses; i++)
		remove_address(a, &known->addresses[i], known->cookie);
	free(known->addresses);
	known->addresses = NULL;
	known->n_addresses = 0;
}

static int set_addresses(struct accelerate *a, struct accelerate_known *known,
			 const struct accelerate_pod *pod, struct error *err)
{
	struct accelerate_known now = {.cookie = known->cookie};
	int r = 0;

	now.addresses = calloc(pod->n_addresses + 1, sizeof(*now.addresses));
	if (!now.addresses)
		return error_set(err, ENOMEM, "remember a pod's addresses");
	for (size_t i = 0; i < pod->n_addresses && !r; i++) {
		struct addr16 addr = addr16_of(&pod->addresses[i]);

		if (!is_dialled_by_peers(&pod->addresses[i]) || has_address(&now, &addr))
			continue;
		/* Added before the old ones go, so one that stays is there throughout. */
		r = add_address(a, &addr, known->cookie, err);
		if (!r)
			now.addresses[now.n_addresses++] = addr;
	}
	if (r) {
		forget_addresses(a, &now);
		return r;
	}
	forget_addresses(a, known);
	known->addresses = now.addresses;
	known->n_addresses = now.n_addresses;
	return 0;
}

/* ---- pods that are known -------------------------------------------------------------------- */

static struct accelerate_known **find_link(struct accelerate *a, uint64_t cookie)
{
	struct accelerate_known **link = &a->pods[cookie % ACCELERATE_BUCKETS];

	while (*link && (*link)->cookie != cookie)
		link = &(*link)->next;
	return link;
}

struct accelerate_known *accelerate_known(const struct accelerate *a, uint64_t cookie)
{
	return *find_link((struct accelerate *)a, cookie);
}

static void free_known(struct accelerate_known *known)
{
	if (!known)
		return;
	free(known->ns);
	free(known->name);
	free(known->addresses);
	free(known);
}

static struct accelerate_known *make_known(struct accelerate *a, uint64_t cookie)
{
	struct accelerate_known **link = find_link(a, cookie);

	if (*link)
		return *link;
	*link = calloc(1, sizeof(**link));
	if (*link)
		(*link)->cookie = cookie;
	return *link;
}

static int set_names(struct accelerate_known *known, const struct accelerate_pod *pod,
		     struct error *err)
{
	char *ns = strdup(pod->ns ?: ""), *name = strdup(pod->name ?: "");

	if (!ns || !name) {
		free(ns);
		free(name);
		return error_set(err, ENOMEM, "remember a pod");
	}
	free(known->ns);
	free(known->name);
	known->ns = ns;
	known->name = name;
	return 0;
}

/* ---- levels --------------------------------------------------------------------------------- */

/* What sockets of the pod count against; it lives until the last of them is closed. */
static int make_usage(struct accelerate *a, uint64_t netns, struct error *err)
{
	struct accel_usage none = {0};

	if (bpf_map_update_elem(bpf_map__fd(a->skel->maps.accel_usage), &netns, &none,
				BPF_NOEXIST) &&
	    errno != EEXIST)
		return error_set(err, errno, "make room for what a pod uses");
	return 0;
}

static int write_level(struct accelerate *a, const struct accelerate_known *known,
		       struct error *err)
{
	struct accel_pod value = {.level = known->level, .workload = known->workload};
	int r = make_usage(a, 0, err);

	if (!r)
		r = make_usage(a, known->cookie, err);
	if (!r && bpf_map_update_elem(bpf_map__fd(a->skel->maps.accel_pods), &known->cookie, &value,
				      BPF_ANY))
		r = error_set(err, errno, "tell the accelerator about a pod");
	return r;
}

static int tell_kernel(struct accelerate *a, const struct accelerate_known *known,
		       struct error *err)
{
	int r = 0;

	if (!a->skel)
		return 0;
	for (size_t i = 0; i < known->n_addresses && !r; i++) {
		const struct accelerate_address *address = *find_address(a, &known->addresses[i]);

		if (address)
			r = write_address(a, address, err);
	}
	return r ? r : write_level(a, known, err);
}

static bool is_full(int r)
{
	return r == -E2BIG || r == -ENOSPC;
}

static void forget_stale(struct accelerate *a);

/* What cannot be told leaves the pod on TCP, and is tried again by accelerate_pods_settle(). */
static int set_level(struct accelerate *a, struct accelerate_known *known, struct error *err)
{
	const struct accelerate_facts facts = {
		.policy = a->cfg.policy,
		.wish = known->wish,
		.not_here = a->most == ACCEL_OFF ? a->reason : NULL,
		.unknown_proxy = a->cfg.unknown_proxy,
		.cleared = accelerate_workload_cleared(a, known->workload),
		.workload = accelerate_workload_name(a, known->workload) ?: "-",
	};
	struct error why = {0};
	int r;

	known->level = accelerate_decide(&facts, known->reason);
	r = tell_kernel(a, known, &why);
	if (is_full(r)) {
		forget_stale(a);
		r = tell_kernel(a, known, &why);
	}
	known->untold = r;
	if (!r)
		return 0;
	known->level = ACCEL_OFF;
	snprintf(known->reason, sizeof(known->reason), "%s%.180s; it is tried again",
		 is_full(r) ? "a map of the accelerator is full: " : "", why.text);
	bpf_map_delete_elem(bpf_map__fd(a->skel->maps.accel_pods), &known->cookie);
	return error_set(err, -r, "%s", known->reason);
}

int accelerate_pod_set(struct accelerate *a, const struct accelerate_pod *pod, struct error *err)
{
	struct accelerate_known *known = make_known(a, pod->cookie);
	int r;

	if (!known)
		return error_set(err, ENOMEM, "remember a pod");
	r = set_names(known, pod, err);
	if (!r) {
		known->wish = pod->wish;
		known->workload = accelerate_workload_number(a, pod->workload);
		if (!known->workload)
			r = error_set(err, ENOMEM, "number a workload");
	}
	if (!r)
		r = set_addresses(a, known, pod, err);
	if (r) {
		accelerate_pod_remove(a, pod->cookie);
		return r;
	}
	return set_level(a, known, err);
}

/* Sockets that it still has in the map are counted down to the last, so its usage stays till then.
 */
static void forget_usage(struct accelerate *a, uint64_t cookie)
{
	int fd = bpf_map__fd(a->skel->maps.accel_usage);
	struct accel_usage usage;

	if (!bpf_map_lookup_elem(fd, &cookie, &usage) && !usage.sockets && !usage.claimed)
		bpf_map_delete_elem(fd, &cookie);
}

void accelerate_pod_remove(struct accelerate *a, uint64_t cookie)
{
	struct accelerate_known **link = find_link(a, cookie), *known = *link;

	if (a->skel) {
		bpf_map_delete_elem(bpf_map__fd(a->skel->maps.accel_pods), &cookie);
		forget_usage(a, cookie);
	}
	if (!known)
		return;
	forget_addresses(a, known);
	*link = known->next;
	free_known(known);
}

void accelerate_pods_again(struct accelerate *a, uint32_t workload)
{
	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
		for (struct accelerate_known *known = a->pods[i]; known; known = known->next) {
			struct error err = {0};

			if (known->workload == workload && set_level(a, known, &err))
				log_error(LOG_ERROR, &err, "a pod keeps its level of acceleration",
					  "namespace", known->ns, "pod", known->name, NULL);
		}
}

int accelerate_pods_of(const struct accelerate *a, uint32_t workload, uint64_t **ret_cookies,
		       size_t *ret_n, struct error *err)
{
	size_t n = 0, max = 0;
	uint64_t *cookies;

	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
		for (const struct accelerate_known *known = a->pods[i]; known; known = known->next)
			max += known->workload == workload;
	cookies = calloc(max + 1, sizeof(*cookies));
	if (!cookies)
		return error_set(err, ENOMEM, "list a workload's pods");
	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
		for (const struct accelerate_known *known = a->pods[i]; known; known = known->next)
			if (known->workload == workload)
				cookies[n++] = known->cookie;
	*ret_cookies = cookies;
	*ret_n = n;
	return 0;
}

const char *accelerate_pod_level(const struct accelerate *a, uint64_t cookie)
{
	const struct accelerate_known *known = accelerate_known(a, cookie);

	return accelerate_level_name(known ? known->level : ACCEL_OFF);
}

const char *accelerate_pod_reason(const struct accelerate *a, uint64_t cookie)
{
	const struct accelerate_known *known = accelerate_known(a, cookie);

	return known ? known->reason : NULL;
}

/* ---- what earlier agents left --------------------------------------------------------------- */

/*
 * Deletes the entries for which fn says so. In two steps, because a walk over a hash must not
 * change it; what does not fit the list goes the next time.
 */
typedef bool (*is_stale_fn)(struct accelerate *a, int fd, const void *key);
static size_t delete_stale(struct accelerate *a, int fd, size_t key_size, is_stale_fn is_stale)
{
	enum { LIST_MAX = 4096 };
	unsigned char key[sizeof(struct accel_end_key)];
	unsigned char *list = calloc(LIST_MAX, key_size);
	size_t n = 0;

	if (!list)
		return 0;
	for_each_accel_key(fd, key)
	{
		if (n == LIST_MAX)
			break;
		if (is_stale(a, fd, key))
			memcpy(list + n++ * key_size, key, key_size);
	}
	for (size_t i = 0; i < n; i++)
		bpf_map_delete_elem(fd, list + i * key_size);
	free(list);
	return n;
}

static bool is_stale_pod(struct accelerate *a, int fd, const void *key)
{
	uint64_t cookie;

	(void)fd;
	memcpy(&cookie, key, sizeof(cookie));
	return !accelerate_known(a, cookie);
}

static bool is_stale_address(struct accelerate *a, int fd, const void *key)
{
	struct addr16 addr;

	(void)fd;
	memcpy(&addr, key, sizeof(addr));
	return !*find_address(a, &addr);
}

static bool is_stale_usage(struct accelerate *a, int fd, const void *key)
{
	struct accel_usage usage;
	uint64_t cookie;

	memcpy(&cookie, key, sizeof(cookie));
	return cookie && !accelerate_known(a, cookie) && !bpf_map_lookup_elem(fd, key, &usage) &&
	       !usage.sockets && !usage.claimed;
}

static void forget_stale(struct accelerate *a)
{
	delete_stale(a, bpf_map__fd(a->skel->maps.accel_pods), sizeof(uint64_t), is_stale_pod);
	delete_stale(a, bpf_map__fd(a->skel->maps.accel_addresses), sizeof(struct addr16),
		     is_stale_address);
	delete_stale(a, bpf_map__fd(a->skel->maps.accel_usage), sizeof(uint64_t), is_stale_usage);
}

/* ---- counting anew -------------------------------------------------------------------------- */

static bool is_any(struct accelerate *a, int fd, const void *key)
{
	(void)a;
	(void)fd;
	(void)key;
	return true;
}

static void empty(struct accelerate *a, const struct bpf_map *map)
{
	uint32_t left = bpf_map__max_entries(map);
	size_t n;

	/* Bounded, should the kernel ever refuse to delete. */
	do {
		n = delete_stale(a, bpf_map__fd(map), bpf_map__key_size(map), is_any);
		left -= n < left ? n : left;
	} while (n && left);
}

static void zero_usage(struct accelerate *a, uint64_t netns)
{
	int fd = bpf_map__fd(a->skel->maps.accel_usage);
	struct accel_usage usage, none = {0};

	if (!bpf_map_lookup_elem(fd, &netns, &usage) && (usage.sockets || usage.claimed))
		bpf_map_update_elem(fd, &netns, &none, BPF_EXIST);
}

static bool is_usage_of_unknown(struct accelerate *a, int fd, const void *key)
{
	uint64_t cookie;

	(void)fd;
	memcpy(&cookie, key, sizeof(cookie));
	return cookie && !accelerate_known(a, cookie);
}

static bool has_sockets(const struct accelerate *a)
{
	unsigned char cookie[sizeof(uint64_t)];

	return !bpf_map_get_next_key(bpf_map__fd(a->skel->maps.accel_sockets), NULL, cookie);
}

/*
 * What sockets hold is given back when they end, by programs that see it: those that ended while
 * the programs were detached hold it for ever. With no socket in the map nobody holds anything.
 * Stopped meanwhile, so that nobody enters between the look and the zeroes.
 */
static void recount(struct accelerate *a)
{
	struct error err = {0};

	if (accelerate_pins_brake(a, true, &err)) {
		log_error(LOG_WARN, &err, "cannot count the accelerator's sockets anew", NULL);
		return;
	}
	if (!has_sockets(a)) {
		delete_stale(a, bpf_map__fd(a->skel->maps.accel_usage), sizeof(uint64_t),
			     is_usage_of_unknown);
		for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
			for (const struct accelerate_known *known = a->pods[i]; known;
			     known = known->next)
				zero_usage(a, known->cookie);
		zero_usage(a, 0);
		empty(a, a->skel->maps.accel_ends);
		empty(a, a->skel->maps.accel_carried);
		a->recount = false;
	}
	if (accelerate_pins_brake(a, false, &err))
		log_error(LOG_ERROR, &err, "the accelerator stays stopped", NULL);
}

static void tell_untold(struct accelerate *a)
{
	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++)
		for (struct accelerate_known *known = a->pods[i]; known; known = known->next) {
			struct error err = {0};

			if (known->untold && !set_level(a, known, &err))
				log_write(LOG_INFO, "the accelerator has room for the pod again",
					  "namespace", known->ns, "pod", known->name, NULL);
		}
}

void accelerate_pods_settle(struct accelerate *a)
{
	if (!a->skel)
		return;
	forget_stale(a);
	tell_untold(a);
	/* Looked at first: the brake would send sockets that are there to TCP. */
	if (a->recount && !has_sockets(a))
		recount(a);
}

void accelerate_pods_done(struct accelerate *a)
{
	for (size_t i = 0; i < ACCELERATE_BUCKETS; i++) {
		while (a->pods[i]) {
			struct accelerate_known *known = a->pods[i];

			a->pods[i] = known->next;
			free_known(known);
		}
		while (a->addresses[i]) {
			struct accelerate_address *address = a->addresses[i];

			a->addresses[i] = address->next;
			free(address);
		}
	}
}
