/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_TABLE_H
#define SOCKMESH_POD_TABLE_H

/*
 * The attachments that this agent knows: one entry per containerId + ifName, as CNI keys them, and
 * one per orphan (a namespace that the kernel still redirects although no entry tells whose it is).
 * A pod with several interfaces has several entries with one cookie. Memory only; pod_state.h
 * writes and reads the entries.
 */
#include "accelerate.h"
#include "agent_protocol.h"
#include "pod_policy.h"
#include "redirect_plan.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
struct pod_table;

struct pod {
	char *container_id, *if_name; /* never NULL */
	char *network;		      /* the CNI network that it was added by; NULL: not known */
	char *ns, *name, *uid;	      /* NULL: not known */
	char *service_account;	      /* the same; ztunnel wants it */
	char *netns;		      /* path; NULL: not known */
	char *cgroup;		      /* NULL: not known */
	uint64_t cookie;
	dev_t netns_dev;
	ino_t netns_ino;
	struct agent_address *ips;
	size_t n_ips;
	enum pod_invalid_drop invalid_drop;
	json_t *annotations, *labels; /* until the record is written; NULL: not known */
	enum pod_mode mode;
	char *reason;
	int64_t since_s; /* seconds since the epoch */
	bool orphan;
	bool heal_failed; /* and that was logged */
	char *broken;	  /* why it is not redirected as planned for now; NULL: it is */

	/* but for POD_SKIP and orphans */
	enum accelerate_wish accelerate;
	char *workload;			   /* "NAMESPACE/NAME" */
	struct redirect_plan *plan;	   /* ids as the pod numbers them */
	struct redirect_plan *engine_plan; /* ids as this node numbers them */

	char *record; /* the entry as JSON text for the state file; NULL for an orphan */
};

/* Zeroed, with copies of both ids; NULL without memory. pod_free(NULL) is fine. */
struct pod *pod_new(const char *container_id, const char *if_name);
void pod_free(struct pod *pod);

int pod_table_new(struct pod_table **ret, struct error *err);
void pod_table_free(struct pod_table *table); /* frees the pods too; NULL is fine */

/* Owns pod on success, and frees an entry with the same key. Room for it can be made before. */
int pod_table_reserve(struct pod_table *table, struct error *err);
int pod_table_put(struct pod_table *table, struct pod *pod, struct error *err);
void pod_table_remove(struct pod_table *table, struct pod *pod); /* and frees it */

struct pod *pod_table_find(const struct pod_table *table, const char *container_id,
			   const char *if_name);
/* The first entry of this pod, by uid; by namespace and name. */
struct pod *pod_table_find_uid(const struct pod_table *table, const char *uid);
struct pod *pod_table_find_name(const struct pod_table *table, const char *ns, const char *name);

size_t pod_table_count(const struct pod_table *table);
struct pod *pod_table_at(const struct pod_table *table, size_t i); /* in order of arrival */

/*
 * The entry other than `except` (may be NULL) through which this namespace is redirected, an
 * orphan's too; NULL when there is none.
 */
struct pod *pod_table_redirected(const struct pod_table *table, uint64_t cookie,
				 const struct pod *except);

#endif
