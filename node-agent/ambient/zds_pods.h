/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ZDS_PODS_H
#define SOCKMESH_ZDS_PODS_H

/*
 * The pods that ztunnel should have, in the order in which they were put, so that a place in this
 * list says what a connection has been sent and what not. Pure, but for the descriptors it owns.
 */
#include "zds_codec.h"

#include <stddef.h>
#include <stdint.h>

struct error;
struct zds_ticket;

struct zds_entry {
	struct zds_entry *next, *prev;
	struct zds_entry *bucket_next;
	struct zds_pod pod;	   /* its strings are in text */
	uint64_t seq;		   /* grows along the list and is never used twice */
	int netns_fd;		   /* of a put that waits for its answer, else -1 */
	int64_t deadline_ms;	   /* of that put */
	struct zds_ticket *ticket; /* NULL: nobody cares */
	char *refusal;		   /* what ztunnel said when it last refused it; NULL: it did not */
	char text[];
};

enum { ZDS_PODS_BUCKETS = 1024 };

struct zds_pods {
	struct zds_entry *head, *tail;
	struct zds_entry *buckets[ZDS_PODS_BUCKETS];
	uint64_t last_seq;
	size_t n;
};

/* Copies the strings. Not in the list yet; free with zds_entry_free(). NULL: no memory. */
struct zds_entry *zds_entry_new(const struct zds_pod *pod);
void zds_entry_free(struct zds_entry *entry); /* and its descriptor; its ticket must be gone */

struct zds_entry *zds_pods_find(const struct zds_pods *pods, const char *uid);
void zds_pods_append(struct zds_pods *pods, struct zds_entry *entry); /* whose uid is not there */
void zds_pods_take(struct zds_pods *pods, struct zds_entry *entry);   /* out of the list */

#endif
