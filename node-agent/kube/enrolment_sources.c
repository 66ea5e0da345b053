/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What tells enrolment that a pod has to be looked at: the API server's objects, programs that
 * start, ztunnels that come and go.
 */
#include "enrolment_private.h"
#include "error.h"
#include "event_loop.h"
#include "kube_watch.h"
#include "monotonic.h"
#include "pod_finder.h"
#include "pod_repair.h"
#include "pod_status.h"
#include "process_watch.h"
#include "registration.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	SEARCH_SLICE_MS = 10,
	SEARCH_PAUSE_MS = 5, /* between two slices, for the rest of the loop */
	ZTUNNEL_RETRY_MS = 5000,
	ZTUNNEL_PUT_MS = 6000,
};

/* ---- the API server's objects ---------------------------------------------------------------- */

static void on_pod(void *arg, const struct kube_pod *was, const struct kube_pod *now,
		   uint32_t changed)
{
	struct enrolment *e = arg;
	const struct kube_pod *pod = now ?: was;
	struct member *m = pod ? enrolment_member_get(e, pod->uid, pod->ns, pod->name) : NULL;
	bool is_update = was && now;

	if (m)
		m->is_expected = true;
	/* Containers come and go all the time, and say nothing about the redirection. */
	changed &= ~(uint32_t)KUBE_CHANGED_CONTAINERS;
	if (!m || (is_update && !changed))
		return;
	/* What is written on it, mostly by us, is no reason to try at once what has just failed. */
	if (!is_update || changed != KUBE_CHANGED_STATUS) {
		m->not_before_ms = 0;
		kube_backoff_reset(&m->backoff);
	}
	enrolment_due(e, m);
}

static void on_namespace(void *arg, const struct kube_namespace *was,
			 const struct kube_namespace *now)
{
	struct enrolment *e = arg;
	const char *name = now ? now->name : was->name;
	size_t n = 0;
	const struct kube_pod *const *pods = kube_store_pods(e->store, name, &n);

	for (size_t i = 0; i < n; i++)
		on_pod(e, NULL, pods[i], 0);
}

/* Whether it is in the mesh or not: nobody can say whether it should be, and that stays so. */
static void on_unreadable(void *arg, const char *ns, const char *name, const char *uid,
			  const struct error *why)
{
	struct enrolment *e = arg;
	const struct pod_status_pod pod = {.ns = ns, .name = name, .uid = uid};
	struct member *m = uid ? enrolment_member(e, uid) : NULL;
	char text[sizeof(why->text) + 80];

	if (m) {
		m->is_expected = true;
		enrolment_due(e, m);
	}
	if (!why || !uid)
		return;
	snprintf(text, sizeof(text), "not decided about, because it cannot be read: %s", why->text);
	pod_status_event(e->status, &pod, "SockmeshRefused", text);
}

struct watched {
	enum kube_kind kind;
	const char *name, *path;
};

static const struct watched watched[KUBE_KIND_COUNT_] = {
	[KUBE_PODS] = {KUBE_PODS, "pods", "/api/v1/pods"},
	[KUBE_NAMESPACES] = {KUBE_NAMESPACES, "namespaces", "/api/v1/namespaces"},
};

/* One for each watch: its callbacks do not say which one it is. */
static void take_object(struct enrolment *e, enum kube_kind kind, enum kube_change change,
			const json_t *object, const struct error *unreadable)
{
	struct error err = {0};
	int r;

	if (change == KUBE_DELETED)
		r = kube_store_remove(e->store, kind, object, &err);
	else
		r = kube_store_put(e->store, kind, object, unreadable, &err);
	if (r)
		log_error(LOG_WARN, &err, "an object of the API server is left out", "kind",
			  watched[kind].name, NULL);
	if (e->adds)
		enrolment_adds_told(e, kind, object);
}

/* Does the API have this pod, and not only one of its name? */
static bool is_named(const struct enrolment *e, const struct pod *pod)
{
	const struct kube_pod *kp;

	if (!pod->ns || !pod->name)
		return false;
	kp = kube_store_pod(e->store, pod->ns, pod->name);
	if (!kp)
		return kube_store_pod_unreadable(e->store, pod->ns, pod->name);
	return enrolment_entry(e, kp, kp->uid) == pod;
}

/* Redirected, and gone if the list is this node's. */
static bool is_missed(struct enrolment *e, const struct pod *pod)
{
	const struct member *m = pod->uid ? enrolment_member(e, pod->uid) : NULL;

	return m && m->is_expected && pod->mode != POD_SKIP &&
	       !registration_has_ended(e->cfg.registration, pod);
}

/*
 * With a wrong name of the node the first list is complete, and has none of our pods. Where pods
 * are gone their namespaces are too: as long as some live, and not one of our pods is known to the
 * API, it has probably been asked about another node.
 */
static void check_node(struct enrolment *e)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);
	unsigned n_missed = 0;
	char text[16];

	for (size_t i = 0; i < pod_table_count(pods); i++) {
		if (is_named(e, pod_table_at(pods, i)))
			return;
		n_missed += is_missed(e, pod_table_at(pods, i));
	}
	if (!n_missed)
		return;
	e->is_elsewhere = true;
	snprintf(text, sizeof(text), "%u", n_missed);
	log_write(LOG_ERROR,
		  "the API server has none of the pods that are redirected here, and they live: is "
		  "--node-name right? Until it names one of this node's pods they stay as they are",
		  "node", e->cfg.node, "pods", text, NULL);
}

static void believe_node(struct enrolment *e, const char *why)
{
	if (!e->is_elsewhere)
		return;
	e->is_elsewhere = false;
	log_write(LOG_INFO, why, "node", e->cfg.node, NULL);
	enrolment_due_all(e);
}

void enrolment_is_here(struct enrolment *e)
{
	believe_node(e,
		     "the API server has a pod of this node: those that it does not have are gone");
}

bool enrolment_is_elsewhere(struct enrolment *e)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);

	for (size_t i = 0; e->is_elsewhere && i < pod_table_count(pods); i++)
		if (is_missed(e, pod_table_at(pods, i)))
			return true;
	believe_node(e, "the pods that the API server does not have have ended");
	return false;
}

static void end_list(struct enrolment *e, enum kube_kind kind)
{
	bool is_first = !kube_store_complete(e->store, kind);

	kube_store_list_end(e->store, kind);
	if (is_first && kind == KUBE_PODS)
		check_node(e);
	enrolment_adds_look(e);
	enrolment_due_all(e); /* those too that are in no list any more */
}

static void note_state(struct enrolment *e, enum kube_kind kind, enum kube_watch_state state,
		       const struct error *why)
{
	enum api_state now = state == KUBE_WATCH_WAITING ? API_AWAY : API_HEARD;

	if (now == e->api[kind] && !why)
		return;
	if (why)
		log_error(LOG_WARN, why, "watching the API server is interrupted", "kind",
			  watched[kind].name, NULL);
	else
		log_write(LOG_INFO, "watching the API server", "kind", watched[kind].name, NULL);
	e->api[kind] = now;
	if (now == API_AWAY && e->adds)
		enrolment_adds_look(e);
}

static void pods_begin(void *arg)
{
	kube_store_list_begin(((struct enrolment *)arg)->store, KUBE_PODS);
}

static void pods_object(void *arg, enum kube_change change, const json_t *object,
			const struct error *unreadable)
{
	take_object(arg, KUBE_PODS, change, object, unreadable);
}

static void pods_end(void *arg)
{
	end_list(arg, KUBE_PODS);
}

static void pods_state(void *arg, enum kube_watch_state state, const struct error *why)
{
	note_state(arg, KUBE_PODS, state, why);
}

static void namespaces_begin(void *arg)
{
	kube_store_list_begin(((struct enrolment *)arg)->store, KUBE_NAMESPACES);
}

static void namespaces_object(void *arg, enum kube_change change, const json_t *object,
			      const struct error *unreadable)
{
	take_object(arg, KUBE_NAMESPACES, change, object, unreadable);
}

static void namespaces_end(void *arg)
{
	end_list(arg, KUBE_NAMESPACES);
}

static void namespaces_state(void *arg, enum kube_watch_state state, const struct error *why)
{
	note_state(arg, KUBE_NAMESPACES, state, why);
}

static const struct kube_watch_ops watch_ops[KUBE_KIND_COUNT_] = {
	[KUBE_PODS] = {pods_begin, pods_object, pods_end, pods_state},
	[KUBE_NAMESPACES] = {namespaces_begin, namespaces_object, namespaces_end, namespaces_state},
};

static int open_watch(struct enrolment *e, enum kube_kind kind, struct error *err)
{
	scoped_free char *field = NULL;
	struct kube_watch_spec spec = {.loop = e->cfg.loop,
				       .client = e->cfg.client,
				       .name = watched[kind].name,
				       .path = watched[kind].path,
				       .ops = &watch_ops[kind],
				       .arg = e};

	if (kind == KUBE_PODS && asprintf(&field, "spec.nodeName=%s", e->cfg.node) < 0) {
		field = NULL;
		return error_set(err, ENOMEM, "watch over pods");
	}
	spec.field_selector = field;
	return kube_watch_new(&spec, &e->watches[kind], err);
}

static int open_kubernetes(struct enrolment *e, struct error *err)
{
	const struct kube_store_config cfg = {
		.keep = {.selectors = e->cfg.selectors, .validation = e->cfg.repair->container},
		.node = e->cfg.node,
		.events = {
			.pod = on_pod, .ns = on_namespace, .unreadable = on_unreadable, .arg = e}};
	int r = kube_store_new(&cfg, &e->store, err);

	if (!r)
		r = pod_status_new(e->cfg.loop, e->cfg.client, e->cfg.node, &e->status, err);
	if (!r)
		r = pod_repair_new(e->cfg.client, e->status, e->cfg.repair, &e->repair, err);
	/* Namespaces first: a pod is decided by both. */
	if (!r)
		r = open_watch(e, KUBE_NAMESPACES, err);
	return r ? r : open_watch(e, KUBE_PODS, err);
}

bool enrolment_is_current(const struct enrolment *e)
{
	return e->store && e->api[KUBE_PODS] != API_AWAY && e->api[KUBE_NAMESPACES] != API_AWAY;
}

/* ---- processes ------------------------------------------------------------------------------- */

static void switch_processes(struct enrolment *e)
{
	struct error err = {0};

	if (process_watch_switch(e->processes, pod_search_wanted(e->search) > 0, &err))
		log_error(LOG_WARN, &err,
			  "new programs are not heard of: pods that start now and that no CNI "
			  "plugin announces are found by the next round only",
			  NULL);
}

/* kubelet and the runtime have another uid for a static pod; the API's, if it is this pod alone. */
static const char *uid_of_processes(const struct enrolment *e, const struct kube_pod *kp)
{
	const char *local = kp->local_uid;

	return local && kube_store_pod_uid(e->store, local) == kp ? local : kp->uid;
}

static struct member *whose_processes(struct enrolment *e, const char *uid)
{
	const struct kube_pod *kp = e->store ? kube_store_pod_uid(e->store, uid) : NULL;
	struct member *m = enrolment_member(e, kp ? kp->uid : uid);

	return m && strcmp(m->searched, uid) == 0 ? m : NULL;
}

static void on_found(const struct pod_found *found, void *arg)
{
	struct enrolment *e = arg;
	struct member *m = whose_processes(e, found->uid);
	char *netns, *cgroup;
	int fd;

	switch_processes(e); /* off after the last one */
	if (!m)
		return;
	m->searched[0] = '\0';
	fd = fcntl(found->netns_fd, F_DUPFD_CLOEXEC, 0);
	netns = strdup(found->netns);
	cgroup = found->cgroup ? strdup(found->cgroup) : NULL;
	if (fd < 0 || !netns || (found->cgroup && !cgroup)) {
		scoped_close(&fd);
		free(netns);
		free(cgroup);
		enrolment_retry(e, m);
		return;
	}
	scoped_close(&m->found_fd);
	free(m->found_netns);
	free(m->found_cgroup);
	m->found_fd = fd;
	m->found_netns = netns;
	m->found_cgroup = cgroup;
	e->found++;
	enrolment_due(e, m);
}

static void on_search(void *arg);

static void search_in(struct enrolment *e, unsigned ms)
{
	struct error err = {0};

	if (!e->search_timer &&
	    event_loop_add_timer(e->cfg.loop, ms, 0, on_search, e, &e->search_timer, &err))
		log_error(LOG_WARN, &err, "the search for pods waits for the next one", NULL);
}

static void on_search(void *arg)
{
	struct enrolment *e = arg;

	e->search_timer = NULL;
	if (pod_search_step(e->search, SEARCH_SLICE_MS, on_found, e))
		search_in(e, SEARCH_PAUSE_MS);
}

/* Those who look are told of each first program in a place; 0: some were lost.
 */
static void on_process(pid_t pid, void *arg)
{
	struct enrolment *e = arg;

	if (!pid)
		pod_search_again(e->search);
	else if (!pod_search_look_at(e->search, pid))
		return;
	search_in(e, 0);
}

void enrolment_search(struct enrolment *e, struct member *m, const struct kube_pod *kp)
{
	const char *uid = uid_of_processes(e, kp);
	struct error err = {0};

	if (*m->searched && strcmp(m->searched, uid) != 0)
		pod_search_forget(e->search, m->searched);
	m->searched[0] = '\0';
	if (pod_search_want(e->search, uid, kp->ips, kp->n_ips, &err)) {
		enrolment_retry(e, m);
		return;
	}
	snprintf(m->searched, sizeof(m->searched), "%s", uid);
	/* The watch first: what starts after it is heard of, what ran before is
	 * walked over. */
	switch_processes(e);
	search_in(e, 0);
}

void enrolment_search_end(struct enrolment *e, struct member *m)
{
	if (!*m->searched || !e->search)
		return;
	pod_search_forget(e->search, m->searched);
	m->searched[0] = '\0';
	switch_processes(e);
}

/* ---- ztunnel --------------------------------------------------------------------------------- */

static int open_netns(void *arg, const char *uid, int *ret_fd)
{
	const struct enrolment *e = arg;
	const struct pod *pod = enrolment_entry(e, NULL, uid);

	*ret_fd = pod ? registration_open_netns(pod) : -1;
	return *ret_fd < 0 ? -ENOENT : 0;
}

static void on_ztunnels(void *arg, unsigned n_ready)
{
	struct enrolment *e = arg;
	char text[16];

	snprintf(text, sizeof(text), "%u", n_ready);
	log_write(n_ready ? LOG_INFO : LOG_WARN,
		  n_ready ? "ztunnel is connected" : "no ztunnel is connected", "ready", text,
		  NULL);
	if (n_ready > e->ztunnels)
		enrolment_due_all(e);
	e->ztunnels = n_ready;
}

/* What a ztunnel is not told of in its snapshot, it stops to serve. */
static void remember_all(struct enrolment *e)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);
	struct error err = {0};

	for (size_t i = 0; i < pod_table_count(pods); i++) {
		const struct pod *pod = pod_table_at(pods, i);
		const struct zds_pod zds = {.uid = pod->uid,
					    .name = pod->name,
					    .ns = pod->ns,
					    .service_account = pod->service_account ?: "default"};

		if (pod->mode != POD_AMBIENT || !pod->uid || !pod->name || !pod->ns)
			continue;
		if (zds_server_remember(e->zds, &zds, &err))
			log_error(LOG_ERROR, &err, "ztunnel is not told of a pod", "namespace",
				  pod->ns, "pod", pod->name, NULL);
	}
}

static void on_ztunnel_retry(void *arg);

static void serve_ztunnel(struct enrolment *e)
{
	struct zds_server_config cfg = {.path = e->cfg.ztunnel_socket,
					ZDS_SERVER_DEFAULTS,
					.open_netns = open_netns,
					.on_peers = on_ztunnels,
					.arg = e};
	struct error err = {0};
	unsigned suppressed;

	if (e->zds)
		return;
	/* With the wait for the API it has to end before a plugin gives up. */
	cfg.put_timeout_ms = ZTUNNEL_PUT_MS;
	if (!zds_server_open(&cfg, e->cfg.loop, &e->zds, &err)) {
		remember_all(e);
		zds_server_start(e->zds);
		return;
	}
	if (log_limit_allow(&e->zds_failures, &suppressed))
		log_error(LOG_WARN, &err, "ztunnel cannot be served; it is tried again", NULL);
	if (!e->zds_timer && event_loop_add_timer(e->cfg.loop, ZTUNNEL_RETRY_MS, 0,
						  on_ztunnel_retry, e, &e->zds_timer, &err))
		log_error(LOG_ERROR, &err, "ztunnel is not served", NULL);
}

static void on_ztunnel_retry(void *arg)
{
	struct enrolment *e = arg;

	e->zds_timer = NULL;
	serve_ztunnel(e);
}

void enrolment_want_ztunnel(struct enrolment *e)
{
	if (!e->wants_zds && !e->cfg.node_proxy) {
		e->wants_zds = true;
		serve_ztunnel(e);
	}
}

/* Somebody has made its directory: ztunnel is, or is going to be, on this node.
 */
static bool has_directory(const char *socket)
{
	scoped_free char *dir = strdup(socket);
	char *slash = dir ? strrchr(dir, '/') : NULL;

	if (!slash || slash == dir)
		return false;
	*slash = '\0';
	return access(dir, F_OK) == 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

int enrolment_sources_open(struct enrolment *e, struct error *err)
{
	int r = pod_search_new(NULL, &e->search, err);

	if (!r)
		r = process_watch_new(e->cfg.loop, on_process, e, &e->processes, err);
	if (!r && e->cfg.client)
		r = open_kubernetes(e, err);
	if (!r && (e->cfg.ztunnel_socket_given || has_directory(e->cfg.ztunnel_socket)))
		enrolment_want_ztunnel(e);
	return r;
}

void enrolment_sources_close(struct enrolment *e)
{
	event_loop_remove(e->zds_timer);
	event_loop_remove(e->search_timer);
	for (enum kube_kind kind = 0; kind < KUBE_KIND_COUNT_; kind++)
		kube_watch_free(e->watches[kind]);
	zds_server_close(e->zds);
	e->zds = NULL;
	process_watch_free(e->processes);
	pod_search_free(e->search);
	e->search = NULL;
	pod_repair_free(e->repair);
	e->repair = NULL;
	pod_status_free(e->status);
	e->status = NULL;
	kube_store_free(e->store);
}
