/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_pods.h"

#include "scoped.h"

#include <stdlib.h>
#include <string.h>

static char *store(char **at, const char *text)
{
	size_t size = strlen(text) + 1;
	char *out = memcpy(*at, text, size);

	*at += size;
	return out;
}

struct zds_entry *zds_entry_new(const struct zds_pod *pod)
{
	size_t size = strlen(pod->uid) + strlen(pod->name) + strlen(pod->ns) +
		      strlen(pod->service_account) + 4;
	struct zds_entry *entry = calloc(1, sizeof(*entry) + size);
	char *at;

	if (!entry)
		return NULL;
	at = entry->text;
	entry->pod.uid = store(&at, pod->uid);
	entry->pod.name = store(&at, pod->name);
	entry->pod.ns = store(&at, pod->ns);
	entry->pod.service_account = store(&at, pod->service_account);
	entry->netns_fd = -1;
	return entry;
}

void zds_entry_free(struct zds_entry *entry)
{
	if (!entry)
		return;
	scoped_close(&entry->netns_fd);
	free(entry->refusal);
	free(entry);
}

/* FNV-1a */
static size_t bucket_of(const char *uid)
{
	uint32_t hash = 2166136261u;

	for (; *uid; uid++)
		hash = (hash ^ (uint8_t)*uid) * 16777619u;
	return hash % ZDS_PODS_BUCKETS;
}

struct zds_entry *zds_pods_find(const struct zds_pods *pods, const char *uid)
{
	struct zds_entry *entry = pods->buckets[bucket_of(uid)];

	while (entry && strcmp(entry->pod.uid, uid) != 0)
		entry = entry->bucket_next;
	return entry;
}

void zds_pods_append(struct zds_pods *pods, struct zds_entry *entry)
{
	struct zds_entry **bucket = &pods->buckets[bucket_of(entry->pod.uid)];

	entry->seq = ++pods->last_seq;
	entry->next = NULL;
	entry->prev = pods->tail;
	if (entry->prev)
		entry->prev->next = entry;
	else
		pods->head = entry;
	pods->tail = entry;
	entry->bucket_next = *bucket;
	*bucket = entry;
	pods->n++;
}

void zds_pods_take(struct zds_pods *pods, struct zds_entry *entry)
{
	struct zds_entry **at = &pods->buckets[bucket_of(entry->pod.uid)];

	while (*at != entry)
		at = &(*at)->bucket_next;
	*at = entry->bucket_next;
	*(entry->prev ? &entry->prev->next : &pods->head) = entry->next;
	*(entry->next ? &entry->next->prev : &pods->tail) = entry->prev;
	entry->next = entry->prev = entry->bucket_next = NULL;
	pods->n--;
}
