/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_table.h"

#include "error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * An array searched from one end to the other: --max-pods keeps it to some thousands of entries,
 * and the hash in front makes a miss one comparison of two integers.
 */
struct pod_slot {
	uint64_t key_hash;
	struct pod *pod;
};

struct pod_table {
	struct pod_slot *slots;
	size_t n, capacity;
};

struct pod *pod_new(const char *container_id, const char *if_name)
{
	struct pod *pod = calloc(1, sizeof(*pod));

	if (!pod)
		return NULL;
	pod->container_id = strdup(container_id);
	pod->if_name = strdup(if_name);
	if (!pod->container_id || !pod->if_name) {
		pod_free(pod);
		return NULL;
	}
	return pod;
}

void pod_free(struct pod *pod)
{
	if (!pod)
		return;
	free(pod->container_id);
	free(pod->if_name);
	free(pod->ns);
	free(pod->name);
	free(pod->uid);
	free(pod->netns);
	free(pod->cgroup);
	free(pod->network);
	free(pod->ips);
	json_decref(pod->annotations);
	json_decref(pod->labels);
	free(pod->reason);
	free(pod->broken);
	free(pod->workload);
	free(pod->service_account);
	if (pod->engine_plan != pod->plan)
		redirect_plan_free(pod->engine_plan);
	redirect_plan_free(pod->plan);
	free(pod->record);
	free(pod);
}

int pod_table_new(struct pod_table **ret, struct error *err)
{
	struct pod_table *table = calloc(1, sizeof(*table));

	if (!table)
		return error_set(err, ENOMEM, "pod table");
	*ret = table;
	return 0;
}

void pod_table_free(struct pod_table *table)
{
	if (!table)
		return;
	for (size_t i = 0; i < table->n; i++)
		pod_free(table->slots[i].pod);
	free(table->slots);
	free(table);
}

/* FNV-1a over both ids with the NUL between them, so that "a"+"bc" is not "ab"+"c". */
static uint64_t hash_key(const char *container_id, const char *if_name)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (const char *p = container_id; *p; p++)
		hash = (hash ^ (unsigned char)*p) * 0x100000001b3;
	hash *= 0x100000001b3;
	for (const char *p = if_name; *p; p++)
		hash = (hash ^ (unsigned char)*p) * 0x100000001b3;
	return hash;
}

static struct pod_slot *find_slot(const struct pod_table *table, const char *container_id,
				  const char *if_name)
{
	uint64_t hash = hash_key(container_id, if_name);

	for (size_t i = 0; i < table->n; i++) {
		const struct pod *pod = table->slots[i].pod;

		if (table->slots[i].key_hash == hash && !strcmp(pod->container_id, container_id) &&
		    !strcmp(pod->if_name, if_name))
			return &table->slots[i];
	}
	return NULL;
}

int pod_table_reserve(struct pod_table *table, struct error *err)
{
	size_t capacity = table->capacity ? table->capacity * 2 : 64;
	struct pod_slot *slots;

	if (table->n < table->capacity)
		return 0;
	slots = reallocarray(table->slots, capacity, sizeof(*slots));
	if (!slots)
		return error_set(err, ENOMEM, "pod table of %zu entries", capacity);
	table->slots = slots;
	table->capacity = capacity;
	return 0;
}

int pod_table_put(struct pod_table *table, struct pod *pod, struct error *err)
{
	struct pod_slot *old = find_slot(table, pod->container_id, pod->if_name);
	int r;

	if (old) {
		if (old->pod != pod)
			pod_free(old->pod);
		old->pod = pod;
		return 0;
	}
	r = pod_table_reserve(table, err);
	if (r)
		return r;
	table->slots[table->n++] = (struct pod_slot){
		.key_hash = hash_key(pod->container_id, pod->if_name), .pod = pod};
	return 0;
}

void pod_table_remove(struct pod_table *table, struct pod *pod)
{
	for (size_t i = 0; i < table->n; i++) {
		if (table->slots[i].pod != pod)
			continue;
		memmove(&table->slots[i], &table->slots[i + 1],
			(table->n - i - 1) * sizeof(table->slots[0]));
		table->n--;
		pod_free(pod);
		return;
	}
}

struct pod *pod_table_find(const struct pod_table *table, const char *container_id,
			   const char *if_name)
{
	struct pod_slot *slot = find_slot(table, container_id, if_name);

	return slot ? slot->pod : NULL;
}

struct pod *pod_table_find_uid(const struct pod_table *table, const char *uid)
{
	for (size_t i = 0; i < table->n; i++) {
		struct pod *pod = table->slots[i].pod;

		if (pod->uid && !strcmp(pod->uid, uid))
			return pod;
	}
	return NULL;
}

struct pod *pod_table_find_name(const struct pod_table *table, const char *ns, const char *name)
{
	for (size_t i = 0; i < table->n; i++) {
		struct pod *pod = table->slots[i].pod;

		if (pod->ns && pod->name && !strcmp(pod->ns, ns) && !strcmp(pod->name, name))
			return pod;
	}
	return NULL;
}

size_t pod_table_count(const struct pod_table *table)
{
	return table->n;
}

struct pod *pod_table_at(const struct pod_table *table, size_t i)
{
	return table->slots[i].pod;
}

struct pod *pod_table_redirected(const struct pod_table *table, uint64_t cookie,
				 const struct pod *except)
{
	for (size_t i = 0; i < table->n; i++) {
		struct pod *pod = table->slots[i].pod;

		if (pod != except && pod->cookie == cookie && pod->mode != POD_SKIP)
			return pod;
	}
	return NULL;
}
