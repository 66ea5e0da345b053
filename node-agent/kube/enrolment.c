/* SPDX-License-Identifier: Apache-2.0 */
#include "enrolment.h"

#include "enrol_action.h"
#include "enrolment_private.h"
#include "error.h"
#include "event_loop.h"
#include "kube_client.h"
#include "kube_watch.h"
#include "monotonic.h"
#include "pod_status.h"
#include "redirect.h"
#include "registration.h"
#include "same_text.h"
#include "scoped.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLICE_MS = 20, FIRST_LIST_AGE_S = 60 };

/* ---- members --------------------------------------------------------------------------------- */

static struct member **bucket_of(struct enrolment *e, const char *uid)
{
	uint32_t hash = 2166136261u;

	for (; *uid; uid++) /* FNV-1a */
		hash = (hash ^ (unsigned char)*uid) * 16777619u;
	return &e->members[hash % MEMBER_BUCKETS];
}

struct member *enrolment_member(struct enrolment *e, const char *uid)
{
	struct member *m = *bucket_of(e, uid);

	while (m && strcmp(m->uid, uid) != 0)
		m = m->next;
	return m;
}

static void member_free(struct member *m)
{
	scoped_close(&m->found_fd);
	free(m->found_netns);
	free(m->found_cgroup);
	free(m->uid);
	free(m->ns);
	free(m->name);
	free(m->status);
	free(m);
}

struct member *enrolment_member_get(struct enrolment *e, const char *uid, const char *ns,
				    const char *name)
{
	struct member *m = enrolment_member(e, uid), **bucket = bucket_of(e, uid);

	if (m)
		return m;
	m = calloc(1, sizeof(*m));
	if (!m)
		return NULL;
	m->found_fd = -1;
	m->uid = strdup(uid);
	m->ns = strdup(ns);
	m->name = strdup(name);
	if (!m->uid || !m->ns || !m->name) {
		member_free(m);
		return NULL;
	}
	kube_backoff_init(&m->backoff, 0, 0);
	m->next = *bucket;
	*bucket = m;
	e->n_members++;
	return m;
}

static void undue(struct enrolment *e, struct member *m)
{
	struct member **link = &e->due;

	if (!m->is_due)
		return;
	while (*link != m)
		link = &(*link)->next_due;
	*link = m->next_due;
	if (!*link)
		e->due_end = link;
	m->is_due = false;
}

void enrolment_member_drop(struct enrolment *e, struct member *m)
{
	struct member **link = bucket_of(e, m->uid);

	undue(e, m);
	enrolment_search_end(e, m);
	while (*link != m)
		link = &(*link)->next;
	*link = m->next;
	e->n_members--;
	member_free(m);
}

static bool shares_address(const struct pod *pod, const struct kube_pod *kp)
{
	for (size_t i = 0; i < pod->n_ips; i++)
		for (size_t k = 0; k < kp->n_ips; k++)
			if (ip_address_equal(&pod->ips[i].address, &kp->ips[k]))
				return true;
	return false;
}

/*
 * A plugin that was not told the uid, or was told the one that kubelet has. By the name alone it
 * may be an earlier pod's, so one that ztunnel was told of by its sandbox has to prove it.
 */
static bool is_named_otherwise(const struct pod *pod, const struct kube_pod *kp)
{
	if (!same_text(pod->ns, kp->ns) || !same_text(pod->name, kp->name))
		return false;
	return !pod->uid || kube_pod_is(kp, pod->uid) ||
	       (strcmp(pod->uid, pod->container_id) == 0 && shares_address(pod, kp));
}

const struct pod *enrolment_entry(const struct enrolment *e, const struct kube_pod *kp,
				  const char *uid)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);
	const struct pod *named = NULL;

	/* The newest: until its del comes, an earlier sandbox of the pod has an entry too. */
	for (size_t i = pod_table_count(pods); i > 0; i--) {
		const struct pod *pod = pod_table_at(pods, i - 1);

		if (pod->uid && strcmp(pod->uid, uid) == 0)
			return pod;
		if (!named && kp && is_named_otherwise(pod, kp))
			named = pod;
	}
	return named;
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void on_due(void *arg);

static void wake(struct enrolment *e)
{
	struct error err = {0};

	if (!e->due || e->due_timer)
		return;
	if (event_loop_add_timer(e->cfg.loop, 0, 0, on_due, e, &e->due_timer, &err))
		log_error(LOG_WARN, &err, "pods wait for the next change to be looked at", NULL);
}

static void on_due(void *arg)
{
	struct enrolment *e = arg;
	int64_t end_ms = monotonic_ms() + SLICE_MS;

	e->due_timer = NULL; /* it frees itself */
	while (e->due && monotonic_ms() < end_ms) {
		struct member *m = e->due;

		undue(e, m);
		enrolment_look_at(e, m);
	}
	wake(e);
}

void enrolment_due(struct enrolment *e, struct member *m)
{
	if (m->is_due)
		return;
	m->is_due = true;
	m->next_due = NULL;
	*e->due_end = m;
	e->due_end = &m->next_due;
	wake(e);
}

void enrolment_due_all(struct enrolment *e)
{
	for (size_t i = 0; i < MEMBER_BUCKETS; i++)
		for (struct member *m = e->members[i]; m; m = m->next)
			enrolment_due(e, m);
}

/* ---- another try later ----------------------------------------------------------------------- */

static void retry_at(struct enrolment *e, int64_t at_ms);

static void on_retry(void *arg)
{
	struct enrolment *e = arg;
	int64_t now = monotonic_ms(), next = INT64_MAX;

	e->retry_timer = NULL;
	for (size_t i = 0; i < MEMBER_BUCKETS; i++)
		for (struct member *m = e->members[i]; m; m = m->next) {
			int64_t at_ms;

			if (enrol_is_due(now, m->not_before_ms, m->lingers_until_ms, &at_ms))
				enrolment_due(e, m);
			if (at_ms < next)
				next = at_ms;
		}
	if (next != INT64_MAX)
		retry_at(e, next);
}

static void retry_at(struct enrolment *e, int64_t at_ms)
{
	int64_t now = monotonic_ms();
	struct error err = {0};

	if (e->retry_timer && e->retry_at_ms <= at_ms)
		return;
	event_loop_remove(e->retry_timer);
	e->retry_timer = NULL;
	e->retry_at_ms = at_ms;
	if (event_loop_add_timer(e->cfg.loop, at_ms > now ? (uint64_t)(at_ms - now) : 0, 0,
				 on_retry, e, &e->retry_timer, &err))
		log_error(LOG_WARN, &err, "a pod waits for the next round to be tried again", NULL);
}

void enrolment_retry(struct enrolment *e, struct member *m)
{
	m->not_before_ms = monotonic_ms() + kube_backoff_next(&m->backoff, -1);
	retry_at(e, m->not_before_ms);
}

void enrolment_linger(struct enrolment *e, struct member *m)
{
	m->lingers_until_ms = monotonic_ms() + REDIRECT_LINGER_MS;
	retry_at(e, m->lingers_until_ms);
}

void enrolment_reconcile(struct enrolment *e)
{
	enrolment_due_all(e);
}

/* ---- for people ------------------------------------------------------------------------------ */

static json_t *kubernetes_json(const struct enrolment *e)
{
	struct kube_store_counts counts;

	if (!e->store)
		return json_null();
	kube_store_count(e->store, &counts);
	return json_pack(
		"{s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:o, s:[o, o], s:o}", "node", e->cfg.node,
		"current", enrolment_is_current(e), "complete",
		kube_store_complete(e->store, KUBE_PODS) &&
			kube_store_complete(e->store, KUBE_NAMESPACES),
		"pods", (json_int_t)counts.pods, "namespaces", (json_int_t)counts.namespaces,
		"unreadable", (json_int_t)counts.unreadable, "leftOut", (json_int_t)counts.refused,
		"client", kube_client_status(e->cfg.client), "watches",
		kube_watch_status(e->watches[KUBE_NAMESPACES]),
		kube_watch_status(e->watches[KUBE_PODS]), "written", pod_status_json(e->status));
}

json_t *enrolment_status(const struct enrolment *e)
{
	return json_pack("{s:o, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "kubernetes",
			 kubernetes_json(e), "form", e->cfg.node_proxy ? "node" : "inpod",
			 "ztunnel", e->zds ? zds_server_status(e->zds) : json_null(), "joined",
			 (json_int_t)e->joined, "left", (json_int_t)e->left, "changed",
			 (json_int_t)e->changed, "refused", (json_int_t)e->refused, "found",
			 (json_int_t)e->found, "admittedUnknown", (json_int_t)e->admitted_unknown,
			 "admittedWithoutZtunnel", (json_int_t)e->admitted_without_ztunnel,
			 "waiting", (json_int_t)e->n_adds);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Pods that an earlier agent had enrolled, so that ztunnel is told of them when it connects, and
 * those that it could not enrol. */
static int take_over(struct enrolment *e, struct error *err)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);

	for (size_t i = 0; i < pod_table_count(pods); i++) {
		const struct pod *pod = pod_table_at(pods, i);
		struct member *m;

		if (!pod->uid || !pod->ns || !pod->name)
			continue;
		m = enrolment_member_get(e, pod->uid, pod->ns, pod->name);
		if (!m)
			return error_set(err, ENOMEM, "pods in the mesh");
		/* The first list may be a little old: of a pod that is new it proves nothing. */
		m->is_expected = time(NULL) - pod->since_s > FIRST_LIST_AGE_S;
		if (pod->mode == POD_AMBIENT)
			enrolment_want_ztunnel(e);
		else if (!e->store) /* no list comes, whose end would have it looked at */
			enrolment_due(e, m);
	}
	return 0;
}

int enrolment_open(const struct enrolment_config *cfg, struct enrolment **ret, struct error *err)
{
	struct enrolment *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return error_set(err, ENOMEM, "pods in the mesh");
	e->cfg = *cfg;
	e->due_end = &e->due;
	e->zds_failures.per_minute = 2;
	r = enrolment_sources_open(e, err);
	if (!r)
		r = take_over(e, err);
	if (r)
		enrolment_close(e);
	else
		*ret = e;
	return r;
}

void enrolment_close(struct enrolment *e)
{
	if (!e)
		return;
	e->is_closing = true;
	enrolment_adds_answer_all(e);
	enrolment_sources_close(e);
	event_loop_remove(e->due_timer);
	event_loop_remove(e->retry_timer);
	event_loop_remove(e->adds_timer);
	for (size_t i = 0; i < MEMBER_BUCKETS; i++)
		while (e->members[i])
			enrolment_member_drop(e, e->members[i]);
	free(e);
}
