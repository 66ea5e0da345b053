/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One pod: what is wanted (policy), what there is (registration, ztunnel), the step between
 * (enrol_action), and the doing of it. Looking at a pod twice does nothing twice.
 */
#include "accelerate.h"
#include "agent_protocol.h"
#include "agent_server.h"
#include "connection_reset.h"
#include "enrol_action.h"
#include "enrolment_private.h"
#include "error.h"
#include "json.h"
#include "kube_repair.h"
#include "monotonic.h"
#include "netns.h"
#include "pod_repair.h"
#include "pod_state.h"
#include "pod_status.h"
#include "redirect.h"
#include "registration.h"
#include "same_text.h"
#include "scoped.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define REDIRECTION "sockmesh.io/redirection"

/* What is known of a pod at this moment; borrowed. */
struct look {
	struct member *m;
	const struct kube_pod *kp; /* NULL: the API does not know it */
	const struct pod *entry;   /* NULL: not registered */
	/* the API knows it, and nobody can read what it says; or is asked about another node */
	bool unreadable;
	json_t *record; /* owned: what the entry's record says, where the API says
			   nothing */
	struct pod_facts facts;
	struct pod_decision decision;
	struct enrol_step step;
	bool is_orphan; /* not registered, but redirected by an agent whose records are lost */
};

static bool is_any_node_proxy(const struct enrolment *e, const struct agent_address *ips, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (policy_is_node_proxy(e->cfg.policy, &ips[i].address))
			return true;
	return false;
}

/* By whatever addresses are known, whoever has told them. */
static bool is_node_proxy(const struct enrolment *e, const struct kube_pod *kp,
			  const struct pod *entry, const struct agent_request *req)
{
	for (size_t i = 0; kp && i < kp->n_ips; i++)
		if (policy_is_node_proxy(e->cfg.policy, &kp->ips[i]))
			return true;
	return (req && is_any_node_proxy(e, req->ips, req->n_ips)) ||
	       (entry && is_any_node_proxy(e, entry->ips, entry->n_ips));
}

/* kp NULL: what the request says, or without one the entry. */
void enrolment_facts(const struct enrolment *e, const struct kube_pod *kp, const struct pod *entry,
		     const struct agent_request *req, struct pod_facts *ret)
{
	*ret = (struct pod_facts){0};
	if (kp)
		*ret = (struct pod_facts){.ns = kp->ns,
					  .name = kp->name,
					  .uid = kp->uid,
					  .service_account = kp->service_account,
					  .annotations = kp->annotations,
					  .labels = kp->labels,
					  .kube_pod = kp};
	else if (req)
		*ret = (struct pod_facts){.ns = req->pod_namespace,
					  .name = req->pod_name,
					  .uid = req->pod_uid,
					  .annotations = req->annotations,
					  .labels = req->labels};
	else if (entry)
		*ret = (struct pod_facts){.ns = entry->ns,
					  .name = entry->name,
					  .uid = entry->uid,
					  .service_account = entry->service_account,
					  .invalid_drop = entry->invalid_drop};
	ret->is_node_proxy = is_node_proxy(e, kp, entry, req);
	if (e->store && ret->ns)
		ret->kube_ns = kube_store_namespace(e->store, ret->ns);
}

/* ---- ztunnel --------------------------------------------------------------------------------- */

void enrolment_leave_ztunnel(struct enrolment *e, const char *uid)
{
	struct error err = {0};

	if (e->zds && zds_server_has(e->zds, uid) &&
	    zds_server_remove(e->zds, uid, NULL, NULL, &err))
		log_error(LOG_ERROR, &err, "ztunnel is not told that a pod has left", "uid", uid,
			  NULL);
}

/*
 * Does ztunnel serve it as somebody else? So it is after a time without the API server. It never
 * corrects what it was told of a pod: it has to be taken from it and given again.
 */
static bool is_misnamed(const struct enrolment *e, const char *uid, const struct kube_pod *kp)
{
	const struct zds_pod *told = e->zds ? zds_server_pod(e->zds, uid) : NULL;

	return told && kp && kp->service_account &&
	       strcmp(told->service_account, kp->service_account) != 0;
}

/* over: the pod is not to be served any more, whatever is decided about it. */
static enum enrol_ztunnel ztunnel_of(const struct enrolment *e, const struct look *look, bool over)
{
	const char *uid = look->m->uid;
	bool has = e->zds && zds_server_has(e->zds, uid);
	bool ready = e->zds && zds_server_ready(e->zds);
	bool wanted = !over && look->decision.mode == POD_AMBIENT;

	if (e->cfg.node_proxy)
		return ENROL_ZTUNNEL_UNNEEDED;
	if (!has)
		return ready ? ENROL_ZTUNNEL_UNTOLD : ENROL_ZTUNNEL_ABSENT;
	if (ready && wanted && is_misnamed(e, uid, look->kp))
		return ENROL_ZTUNNEL_UNTOLD;
	/* To leave, it has to be struck off the list even while nobody reads that. */
	if (!ready && wanted)
		return ENROL_ZTUNNEL_ABSENT;
	return zds_server_refusal(e->zds, uid) ? ENROL_ZTUNNEL_REFUSED : ENROL_ZTUNNEL_HAS_IT;
}

/* ---- what is known --------------------------------------------------------------------------- */

static bool can_open(const struct pod *entry)
{
	scoped_fd int fd = entry ? registration_open_netns(entry) : -1;

	return fd >= 0;
}

static bool was_found(const struct pod *entry)
{
	return strncmp(entry->container_id, POD_FOUND_PREFIX, strlen(POD_FOUND_PREFIX)) == 0;
}

static void forget_found(struct member *m)
{
	scoped_close(&m->found_fd);
	m->found_fd = -1;
	free(m->found_netns);
	free(m->found_cgroup);
	m->found_netns = m->found_cgroup = NULL;
}

/* The pod may have got another sandbox since; the descriptor would keep the old one alive. */
static void drop_stale_found(struct member *m, const struct pod *entry)
{
	struct stat st, there;

	if (m->found_fd < 0)
		return;
	if (fstat(m->found_fd, &st) || stat(m->found_netns, &there) || st.st_dev != there.st_dev ||
	    st.st_ino != there.st_ino || (entry && !was_found(entry) && can_open(entry)))
		forget_found(m);
}

static bool is_enrolled(const struct pod *entry)
{
	return entry && entry->mode != POD_SKIP;
}

static bool addresses_differ(const struct enrolment *e, const struct pod *entry,
			     const struct kube_pod *kp)
{
	if (!is_enrolled(entry) || !kp || !kp->n_ips)
		return false;
	if (!was_found(entry))
		return registration_readdressed(e->cfg.registration, entry, kp);
	if (entry->n_ips != kp->n_ips)
		return true;
	for (size_t i = 0; i < kp->n_ips; i++)
		if (!ip_address_equal(&entry->ips[i].address, &kp->ips[i]))
			return true;
	return false;
}

static bool is_netns_of(int netns_fd, const struct pod *entry)
{
	struct error ignored = {0};
	struct netns_id id;

	return netns_fd >= 0 && !netns_identify(netns_fd, &id, &ignored) &&
	       id.cookie == entry->cookie;
}

/* The pod's processes lead to its namespace, and what its entry says does not any more. */
static bool netns_has_moved(const struct member *m, const struct pod *entry)
{
	return m->found_fd >= 0 && is_enrolled(entry) && !can_open(entry) &&
	       (was_found(entry) || is_netns_of(m->found_fd, entry));
}

static enum enrol_validation validation_of(const struct kube_pod *kp)
{
	switch (kp->validation.state) {
	case KUBE_VALIDATION_ABSENT:
		return ENROL_VALIDATION_NONE;
	case KUBE_VALIDATION_PASSED:
		return ENROL_VALIDATION_PASSED;
	default:
		return ENROL_VALIDATION_DUE;
	}
}

/* A namespace is compared with the kernel through its first entry. */
static const char *broken_of(const struct enrolment *e, const struct pod *entry)
{
	const struct pod *first =
		pod_table_redirected(registration_pods(e->cfg.registration), entry->cookie, NULL);

	return first ? first->broken : NULL;
}

static struct enrol_view view_of(const struct enrolment *e, const struct look *look)
{
	const struct kube_pod *kp = look->kp;
	const struct pod *entry = look->entry;
	struct enrol_view v = {
		.wanted = look->decision.mode,
		.hold = look->decision.hold,
		.enrolled = entry ? entry->mode : POD_SKIP,
		.addresses_differ = addresses_differ(e, entry, kp),
		.gone = !kp && !look->unreadable && look->m->is_expected && e->store &&
			kube_store_complete(e->store, KUBE_PODS),
		.has_ips = (kp && kp->n_ips) || (entry && entry->n_ips),
		.netns_known = look->m->found_fd >= 0 || can_open(entry),
		.netns_moved = netns_has_moved(look->m, entry),
		.lingers = look->m->lingers_until_ms != 0,
		.admit_without_ztunnel = e->cfg.admit_without_ztunnel,
		.repairs = e->cfg.repair->redirect,
	};

	if (look->is_orphan) {
		v.enrolled = POD_SIDECAR; /* or ambient: it is to be replaced in any case */
		v.plan_differs = true;
	}
	if (is_enrolled(entry)) {
		v.plan_differs =
			entry->orphan || !registration_is_planned(entry, &look->decision.settings);
		v.broken = broken_of(e, entry) != NULL;
	}
	if (kp) {
		v.asked = json_object_get(kp->annotations, REDIRECTION);
		v.ours = kp->status != NULL;
		v.perhaps_orphan = !entry && v.ours && look->m->found_fd < 0 &&
				   registration_has_orphan(e->cfg.registration, -1);
		v.foreign = look->decision.foreign && !kp->status && !look->m->status &&
			    !look->m->wrote_redirection;
		v.ended = kube_pod_ended(kp);
		v.validation = validation_of(kp);
	}
	v.ztunnel = ztunnel_of(e, look, v.gone || v.ended);
	return v;
}

/* ---- what the cluster is told ---------------------------------------------------------------- */

static void tell_event(struct enrolment *e, const struct member *m, const char *reason,
		       const char *text)
{
	const struct pod_status_pod pod = {.ns = m->ns, .name = m->name, .uid = m->uid};

	if (e->status)
		pod_status_event(e->status, &pod, reason, text);
}

/*
 * What is wrong counts first. Then today's decision's, where the entry agrees: one that was taken
 * over from an earlier agent was decided about without the API, and every pod's status would change
 * twice with each restart.
 */
static const char *reason_of(const struct enrolment *e, const struct look *look)
{
	const char *broken;

	if (*look->m->trouble)
		return look->m->trouble;
	if (!is_enrolled(look->entry))
		return look->step.reason;
	broken = broken_of(e, look->entry);
	if (broken)
		return broken;
	if (look->entry->mode == look->decision.mode)
		return look->decision.reason;
	return look->entry->reason ?: "";
}

/* Without its generation, which counts what changes here. NULL: nothing to be
 * said. */
static char *status_text(const struct enrolment *e, const struct look *look)
{
	const struct pod *entry = look->entry;
	bool enrolled = is_enrolled(entry);
	char since[TIME_TEXT_MAX];
	scoped_json json_t *obj = NULL;

	if (!enrolled && !*look->m->trouble && look->step.status != ENROL_STATUS_PENDING)
		return NULL;
	obj = json_pack("{s:i, s:s, s:s, s:s, s:o, s:s?}", "v", 1, "engine",
			enrolled ? redirect_pod_engine(e->cfg.redirect, entry->cookie) : "none",
			"mode",
			!enrolled		     ? "none"
			: entry->mode == POD_AMBIENT ? "ambient"
						     : "sidecar",
			"accelerate",
			enrolled ? accelerate_pod_level(e->cfg.accelerate, entry->cookie) : "off",
			"reason", json_string_lossy(reason_of(e, look)), "since",
			enrolled ? pod_state_time(entry->since_s, since) : NULL);
	return obj ? json_to_text(obj) : NULL;
}

static unsigned generation_in(const char *status)
{
	scoped_json json_t *obj = status ? json_loads(status, 0, NULL) : NULL;
	json_int_t n = json_integer_value(json_object_get(obj, "generation"));

	return n > 0 && n < 1000000000 ? (unsigned)n : 0;
}

/* The text that goes into the annotation; NULL without memory. */
static char *with_generation(const char *text, unsigned generation)
{
	scoped_json json_t *obj = json_loads(text, 0, NULL);

	if (!obj || json_object_set_new(obj, "generation", json_integer(generation)))
		return NULL;
	return json_to_text(obj);
}

/* Is the annotation as it should be, but for its generation? */
static bool says_already(const char *annotation, const char *text)
{
	scoped_json json_t *there = annotation ? json_loads(annotation, 0, NULL) : NULL;
	scoped_json json_t *wanted = text ? json_loads(text, 0, NULL) : NULL;

	if (!annotation || !text)
		return annotation == text;
	if (!there || !wanted)
		return false;
	json_object_del(there, "generation");
	return json_equal(there, wanted);
}

static const char *redirection_text(enum enrol_status status)
{
	switch (status) {
	case ENROL_STATUS_ENABLED:
		return "enabled";
	case ENROL_STATUS_PENDING:
		return "pending";
	default:
		return NULL;
	}
}

/* Only what the API does not show yet. */
static void tell_status(struct enrolment *e, const struct look *look)
{
	struct member *m = look->m;
	const struct pod_status_pod pod = {.ns = m->ns, .name = m->name, .uid = m->uid};
	const char *redirection = redirection_text(look->step.status);
	struct pod_status_values values = {.redirection = redirection};
	scoped_free char *text = status_text(e, look), *full = NULL;
	struct error err = {0};

	if (!e->status || !look->kp || look->step.status == ENROL_STATUS_KEEP)
		return;
	values.has_redirection = redirection || look->kp->redirection || m->wrote_redirection;
	if (!m->generation)
		m->generation = generation_in(look->kp->status);
	if (says_already(look->kp->status, text) && same_text(look->kp->redirection, redirection)) {
		if (!m->status && text) /* as the agent before us has left it */
			m->status = strdup(text);
		if (same_text(m->status, text))
			return;
	}
	if (!same_text(m->status, text)) {
		m->generation++;
		free(m->status);
		m->status = text ? strdup(text) : NULL;
	}
	m->wrote_redirection = redirection != NULL;
	full = text ? with_generation(text, m->generation) : NULL;
	values.status = full;
	if (pod_status_set(e->status, &pod, &values, &err))
		log_error(LOG_WARN, &err, "a pod's status is not written", "namespace", m->ns,
			  "pod", m->name, NULL);
}

/* What is true of a pod about which nothing can be decided. */
static enum enrol_status status_as_it_is(const struct enrolment *e, const struct look *look)
{
	if (!look->entry || look->entry->mode != POD_AMBIENT)
		return ENROL_STATUS_NONE;
	return e->zds && zds_server_refusal(e->zds, look->m->uid) ? ENROL_STATUS_PENDING
								  : ENROL_STATUS_ENABLED;
}

/* ---- trouble --------------------------------------------------------------------------------- */

static void no_trouble(struct member *m)
{
	m->trouble[0] = '\0';
	m->not_before_ms = 0;
	kube_backoff_reset(&m->backoff);
}

/* Says it once, for as long as it is the same. */
static void trouble(struct enrolment *e, struct member *m, const struct error *err, bool retry)
{
	char text[sizeof(err->text) + 64];

	error_format(err, text, sizeof(text));
	if (strncmp(m->trouble, text, sizeof(m->trouble) - 1) != 0) {
		snprintf(m->trouble, sizeof(m->trouble), "%.*s", (int)sizeof(m->trouble) - 1, text);
		log_error(LOG_ERROR, err, "a pod is not in the mesh as it should be", "namespace",
			  m->ns, "pod", m->name, NULL);
		tell_event(e, m, "SockmeshRefused", text);
		e->refused++;
	}
	if (retry)
		enrolment_retry(e, m);
}

/* ---- joining --------------------------------------------------------------------------------- */

struct asked { /* lives from the question to ztunnel's answer */
	struct enrolment *e;
	char uid[];
};

static void log_joined(const struct enrolment *e, const struct member *m)
{
	const struct pod *entry = enrolment_entry(e, NULL, m->uid);

	if (is_enrolled(entry))
		log_write(LOG_INFO, "pod joined the mesh while it runs", "namespace", m->ns, "pod",
			  m->name, "mode", entry->mode == POD_AMBIENT ? "ambient" : "sidecar",
			  "engine", redirect_pod_engine(e->cfg.redirect, entry->cookie), "reason",
			  entry->reason, NULL);
}

static void addresses_of(const struct kube_pod *kp, struct agent_address ret[KUBE_POD_IPS_MAX])
{
	for (size_t i = 0; i < kp->n_ips; i++)
		ret[i] = (struct agent_address){.address = kp->ips[i],
						.prefix_length =
							ip_address_is_v4(&kp->ips[i]) ? 32 : 128};
}

static int register_found(struct enrolment *e, const struct look *look, int netns_fd,
			  const char *netns, const char *cgroup, struct error *err)
{
	struct agent_address ips[KUBE_POD_IPS_MAX];
	struct registration_found found = {.netns_fd = netns_fd,
					   .netns = netns,
					   .cgroup = cgroup,
					   .ips = ips,
					   .n_ips = look->kp->n_ips};

	addresses_of(look->kp, ips);
	return registration_add_found(e->cfg.registration, &found, &look->facts, err);
}

/* A plugin's, whose path may lead nowhere any more. */
static int redecide_added(struct enrolment *e, const struct look *look, struct error *err)
{
	const struct registration_found found = {.netns_fd = look->m->found_fd,
						 .netns = look->m->found_netns};
	bool is_other_way = is_netns_of(found.netns_fd, look->entry);

	return registration_redecide(e->cfg.registration, look->entry, is_other_way ? &found : NULL,
				     &look->facts, err);
}

/* The kernel does from here on what was decided. */
static int apply(struct enrolment *e, const struct look *look, struct error *err)
{
	const struct pod *entry = look->entry;

	if (entry && !was_found(entry))
		return redecide_added(e, look, err);
	if (look->m->found_fd >= 0 && look->kp)
		return register_found(e, look, look->m->found_fd, look->m->found_netns,
				      look->m->found_cgroup, err);
	if (entry && look->kp) {
		scoped_fd int fd = registration_open_netns(entry);

		if (fd >= 0)
			return register_found(e, look, fd, entry->netns, entry->cgroup, err);
	}
	if (entry)
		return registration_redecide(e->cfg.registration, entry, NULL, &look->facts, err);
	return error_set(err, ENOENT, "the pod's network namespace is not known any more");
}

static bool look_at(struct enrolment *e, struct member *m, struct look *ret, struct error *err);
static void look_done(struct look *look);

/* For who asks for it: what the pod had open before goes through the proxy when it is made anew. */
static void reset_connections(const struct enrolment *e, const struct member *m, struct error *err)
{
	const struct pod *entry = enrolment_entry(e, NULL, m->uid);
	scoped_fd int opened = entry ? registration_open_netns(entry) : -1;
	int netns_fd = m->found_fd >= 0 ? m->found_fd : opened;
	char text[24];
	size_t n = 0;

	if (connection_reset(netns_fd, AMBIENT_MARK_PROXY, AMBIENT_MARK_MASK, &n, err)) {
		log_error(LOG_WARN, err, "connections from before a pod joined are not cut",
			  "namespace", m->ns, "pod", m->name, NULL);
		return;
	}
	snprintf(text, sizeof(text), "%zu", n);
	log_write(LOG_INFO, "cut the connections from before a pod joined", "namespace", m->ns,
		  "pod", m->name, "connections", text, NULL);
}

/* ztunnel listens in the pod's namespace. */
static void join_running(struct enrolment *e, struct member *m)
{
	struct error err = {0};
	bool was_in = false;
	struct look look;

	if (!look_at(e, m, &look, &err)) {
		trouble(e, m, &err, false);
		look_done(&look);
		return;
	}
	was_in = look.entry && look.entry->mode == POD_AMBIENT;
	if (look.decision.mode != POD_AMBIENT) {
		m->looks_again = true; /* it was taken back meanwhile */
	} else if (!look.entry && m->found_fd < 0) {
		enrolment_leave_ztunnel(e, m->uid); /* so was its sandbox */
		m->looks_again = true;
	} else if (apply(e, &look, &err)) { /* the entry is another one from here on */
		trouble(e, m, &err, true);
		/* What the kernel redirects already would find nobody there. */
		if (!was_in)
			enrolment_leave_ztunnel(e, m->uid);
	} else {
		no_trouble(m);
		if (e->cfg.reset_existing && !was_in)
			reset_connections(e, m, &err);
		forget_found(m);
		e->joined++;
		log_joined(e, m);
		m->looks_again = true; /* to write its status */
	}
	look_done(&look);
}

static void join_created(struct enrolment *e, struct member *m)
{
	struct waiting_add *add = m->add;
	const struct kube_pod *kp = e->store ? kube_store_pod_uid(e->store, m->uid) : NULL;
	struct pod_facts facts;
	json_t *reply;

	m->add = NULL;
	enrolment_facts(e, kp, NULL, add->req, &facts);
	facts.presumed = add->presumed;
	if (!facts.uid)
		facts.uid = m->uid;
	reply = registration_handle(e->cfg.registration, add->req, add->netns_fd, &facts);
	if (json_is_true(json_object_get(reply, "ok"))) {
		e->joined++;
		e->admitted_unknown += e->store && !kp;
		no_trouble(m);
	} else {
		enrolment_leave_ztunnel(e, m->uid);
	}
	m->looks_again = true;
	enrolment_add_decided(e, add, reply);
}

/* Registered as it is, to be enrolled when ztunnel comes. */
static void admit(struct enrolment *e, struct member *m, const char *why)
{
	struct waiting_add *add = m->add;
	const struct kube_pod *kp = e->store ? kube_store_pod_uid(e->store, m->uid) : NULL;
	struct pod_facts facts;

	m->add = NULL;
	enrolment_facts(e, kp, NULL, add->req, &facts);
	facts.presumed = add->presumed;
	if (!facts.uid)
		facts.uid = m->uid;
	facts.not_yet = why;
	e->admitted_without_ztunnel++;
	enrolment_add_decided(
		e, add, registration_handle(e->cfg.registration, add->req, add->netns_fd, &facts));
}

static void not_joined(struct enrolment *e, struct member *m, enum zds_result result,
		       const char *text)
{
	struct error err = {0};

	if (result == ZDS_NO_PROXY)
		error_set(&err, EPROTO, "ztunnel is not connected");
	else
		error_set(&err, EPROTO, "ztunnel did not take the pod (%s)%s%s",
			  zds_result_name(result), text && *text ? ": " : "", text ?: "");
	if (m->add && result == ZDS_NO_PROXY && e->cfg.admit_without_ztunnel) {
		admit(e, m, "ambient, and redirected as soon as ztunnel is connected");
		return;
	}
	if (m->add) {
		struct waiting_add *add = m->add;

		m->add = NULL;
		enrolment_leave_ztunnel(e, m->uid);
		enrolment_add_decided(e, add, agent_reply_refusal(AGENT_CODE_BUSY, true, err.text));
		return;
	}
	/* When one connects every pod is looked at; until then there is only this to be told. */
	trouble(e, m, &err, result != ZDS_NO_PROXY);
	if (result != ZDS_NO_PROXY || e->status)
		m->looks_again = true;
}

static void on_asked(void *arg, enum zds_result result, const char *text)
{
	struct asked *asked = arg;
	struct enrolment *e = asked->e;
	struct member *m = enrolment_member(e, asked->uid);

	free(asked);
	if (!m || e->is_closing)
		return;
	m->asks_ztunnel = false;
	if (result != ZDS_ACKED)
		not_joined(e, m, result, text);
	else if (m->add)
		join_created(e, m);
	else
		join_running(e, m);
	if (m->looks_again)
		enrolment_due(e, m);
	m->looks_again = false;
}

void enrolment_join(struct enrolment *e, struct member *m, const struct kube_pod *kp, int netns_fd)
{
	const struct zds_pod pod = {
		.uid = m->uid,
		.name = m->name,
		.ns = m->ns,
		.service_account = kp && kp->service_account ? kp->service_account : "default"};
	size_t size = strlen(m->uid) + 1;
	struct asked *asked = malloc(sizeof(*asked) + size);
	struct error err = {0};
	int r;

	enrolment_want_ztunnel(e);
	if (!asked) {
		not_joined(e, m, ZDS_LOST, "no memory");
		return;
	}
	if (is_misnamed(e, m->uid, kp))
		enrolment_leave_ztunnel(e, m->uid);
	asked->e = e;
	memcpy(asked->uid, m->uid, size);
	if (!e->zds) {
		free(asked);
		not_joined(e, m, ZDS_NO_PROXY, NULL);
		return;
	}
	m->asks_ztunnel = true;
	r = zds_server_put(e->zds, &pod, netns_fd, on_asked, asked, &err);
	if (!r)
		return;
	free(asked);
	m->asks_ztunnel = false;
	not_joined(e, m, ZDS_LOST, err.text);
}

/* Nobody but the kernel has to be told. */
static void join_directly(struct enrolment *e, const struct look *look)
{
	bool joins = look->decision.mode == POD_AMBIENT;
	struct member *m = look->m;
	struct error err = {0};

	if (apply(e, look, &err)) { /* the entry is another one from here on */
		trouble(e, m, &err, true);
		return;
	}
	no_trouble(m);
	if (joins && e->cfg.reset_existing)
		reset_connections(e, m, &err);
	forget_found(m);
	e->joined++;
	log_joined(e, m);
	enrolment_due(e, m); /* to write its status */
}

static void enrol(struct enrolment *e, const struct look *look)
{
	struct member *m = look->m;
	scoped_fd int opened = -1;
	int netns_fd = m->found_fd;

	m->lingers_until_ms = 0;
	if (look->decision.mode == POD_SIDECAR || e->cfg.node_proxy) {
		join_directly(e, look);
		return;
	}
	if (netns_fd < 0) {
		opened = registration_open_netns(look->entry);
		netns_fd = opened;
	}
	enrolment_join(e, m, look->kp, netns_fd);
}

/* ---- leaving --------------------------------------------------------------------------------- */

static void withdraw(struct enrolment *e, const struct look *look)
{
	struct error err = {0};
	bool over = !look->kp;
	int r = 0;

	if (look->entry && was_found(look->entry) && over) {
		registration_forget_found(e->cfg.registration, look->m->uid);
		r = is_enrolled(enrolment_entry(e, look->kp, look->m->uid)) ? -EIO : 0;
	} else if (is_enrolled(look->entry) || look->is_orphan) {
		r = apply(e, look, &err);
	}
	if (r && !over) {
		trouble(e, look->m, &err, true);
		return;
	}
	if (over)
		enrolment_leave_ztunnel(e, look->m->uid);
	else
		enrolment_linger(e, look->m);
	/* Its namespace is on its way out, and takes along what could not be taken back: the sweep
	 * notices, and until then it is not to be tried in a loop. */
	if (r) {
		enrolment_retry(e, look->m);
		return;
	}
	no_trouble(look->m);
	forget_found(look->m); /* its entry has the path */
	e->left++;
	if (!over)
		log_write(LOG_INFO, "pod left the mesh while it runs", "namespace", look->m->ns,
			  "pod", look->m->name, "reason", look->decision.reason, NULL);
	enrolment_due(e, look->m);
}

static void update(struct enrolment *e, const struct look *look)
{
	struct error err = {0};

	if (apply(e, look, &err)) {
		trouble(e, look->m, &err, true);
		return;
	}
	no_trouble(look->m);
	forget_found(look->m); /* its entry has the path */
	e->changed++;
	log_write(LOG_INFO, "pod's redirection changed while it runs", "namespace", look->m->ns,
		  "pod", look->m->name, "reason", look->step.reason, NULL);
	enrolment_due(e, look->m);
}

static void wait_for(struct enrolment *e, const struct look *look)
{
	struct member *m = look->m;

	if (look->decision.mode == POD_UNDECIDED) {
		if (!is_enrolled(look->entry))
			enrolment_search_end(e, m);
		return;
	}
	if (look->kp && look->kp->n_ips && m->found_fd < 0 && !can_open(look->entry)) {
		struct error err = {0};

		/* A search has ended without it: that it bypasses its proxy is not to go unsaid. */
		if (*m->searched && !e->search_timer) {
			error_set(&err, ENOENT,
				  "no process of the pod is seen in a network namespace that has "
				  "the pod's address");
			trouble(e, m, &err, false);
		}
		enrolment_search(e, m, look->kp);
	}
	if (look->decision.mode == POD_AMBIENT)
		enrolment_want_ztunnel(e);
}

/* ---- a look ---------------------------------------------------------------------------------- */

/*
 * False: what the pod says of itself is refused, and err says why. *ret needs look_done() in any
 * case.
 */
static bool look_at(struct enrolment *e, struct member *m, struct look *ret, struct error *err)
{
	*ret = (struct look){.m = m};
	ret->kp = e->store ? kube_store_pod_uid(e->store, m->uid) : NULL;
	ret->entry = enrolment_entry(e, ret->kp, m->uid);
	drop_stale_found(m, ret->entry);
	ret->is_orphan = !ret->entry && m->found_fd >= 0 &&
			 registration_has_orphan(e->cfg.registration, m->found_fd);
	ret->unreadable =
		!ret->kp && e->store && kube_store_pod_unreadable(e->store, m->ns, m->name);
	if (ret->entry && (ret->kp || ret->unreadable))
		enrolment_is_here(e);
	ret->unreadable |= !ret->kp && e->is_elsewhere && m->is_expected;
	if (ret->unreadable) {
		ret->decision.mode = POD_UNDECIDED;
		return true;
	}
	if (!ret->kp && ret->entry && ret->entry->record)
		ret->record = json_loads(ret->entry->record, 0, NULL);
	enrolment_facts(e, ret->kp, ret->entry, NULL, &ret->facts);
	if (ret->record) {
		ret->facts.annotations = json_object_get(ret->record, "annotations");
		ret->facts.labels = json_object_get(ret->record, "labels");
	}
	return !pod_policy_decide(e->cfg.policy, &ret->facts, &ret->decision, err);
}

static void look_done(struct look *look)
{
	pod_decision_done(&look->decision);
	json_decref(look->record);
}

static void take_step(struct enrolment *e, struct look *look)
{
	switch (look->step.action) {
	case ENROL_ENROL:
		enrol(e, look);
		break;
	case ENROL_WITHDRAW:
		withdraw(e, look);
		break;
	case ENROL_UPDATE:
		update(e, look);
		break;
	case ENROL_RELEASE:
		enrolment_leave_ztunnel(e, look->m->uid);
		break;
	case ENROL_WAIT:
	case ENROL_REFUSE: /* only of those that are being created, which are in other
			      hands */
		wait_for(e, look);
		break;
	case ENROL_NOTHING:
		break;
	}
}

/*
 * Nobody announces the end of a pod that was found, nor that its sandbox is made anew: of its
 * entry is nothing left to be told, changed or taken back.
 */
static void drop_ended(struct enrolment *e, const struct member *m)
{
	const struct pod *entry = enrolment_entry(e, NULL, m->uid);

	if (entry && was_found(entry) && registration_has_ended(e->cfg.registration, entry))
		registration_forget_found(e->cfg.registration, m->uid);
}

/* What is not there, nowhere, needs no member. */
static bool is_over(const struct enrolment *e, const struct member *m)
{
	return (!e->store || !kube_store_pod_uid(e->store, m->uid)) &&
	       !enrolment_entry(e, NULL, m->uid);
}

/* By the plugin's word it is ambient, and that could not be done: no ztunnel, or a failure. */
static bool is_left_behind(struct enrolment *e, struct member *m)
{
	const struct pod *entry = enrolment_entry(e, NULL, m->uid);
	struct error ignored = {0};
	struct look look;
	bool is_ambient;

	if (!entry || is_enrolled(entry))
		return false;
	is_ambient = look_at(e, m, &look, &ignored) && look.decision.mode == POD_AMBIENT;
	look_done(&look);
	return is_ambient;
}

/*
 * Is there anything to be decided? Without the API server nothing changes but by the plugin's word,
 * which is acted upon until it is true; with it, not before it has said which pods there are.
 */
static bool can_decide(struct enrolment *e, struct member *m)
{
	if (!e->store)
		return is_left_behind(e, m);
	return kube_store_pod_uid(e->store, m->uid) || kube_store_complete(e->store, KUBE_PODS);
}

/* By its spec, which does not change: annotations that say otherwise are about its creation. */
static bool has_sidecar(const struct kube_pod *kp)
{
	return kp->proxy.present && !kp->istio_init && !kp->proxy.other_type &&
	       kp->proxy.disable_envoy != KUBE_ENV_TRUE;
}

/*
 * As in Istio, labels and annotations of the injection decide about a pod when it is created, and
 * not again: somebody who changes them, or the namespace's, on a running pod that has a sidecar
 * does not mean to cut it off from its proxy.
 */
static bool is_only_about_injection(const struct look *look)
{
	const struct kube_pod *kp = look->kp;
	enum pod_mode mode = look->decision.mode;

	if (!look->entry || look->entry->mode != POD_SIDECAR || !kp ||
	    json_object_get(kp->annotations, REDIRECTION))
		return false;
	return (mode == POD_SKIP || mode == POD_AMBIENT) && has_sidecar(kp);
}

static void warn_once(const struct look *look)
{
	if (!*look->decision.warning || look->m->has_warned)
		return;
	look->m->has_warned = true;
	log_write(LOG_WARN, "a pod says what nobody can read", "namespace", look->m->ns, "pod",
		  look->m->name, "what", look->decision.warning, NULL);
}

static bool acts(enum enrol_action action)
{
	return action == ENROL_ENROL || action == ENROL_WITHDRAW || action == ENROL_UPDATE;
}

/*
 * Its end was announced while its namespace lives, whose end nobody announces: it is looked at
 * again until then.
 */
static bool awaits_end(const struct enrol_view *view, const struct pod *entry)
{
	return (view->gone || view->ended) && entry && was_found(entry);
}

static void settle(struct member *m, bool is_looked_at_again)
{
	if (is_looked_at_again) /* each look would be the first of many that come soon */
		m->trouble[0] = '\0';
	else
		no_trouble(m);
}

static void decide_and_act(struct enrolment *e, struct look *look)
{
	const struct enrol_view view = view_of(e, look);
	bool waits = monotonic_ms() < look->m->not_before_ms;
	bool again = awaits_end(&view, look->entry);

	warn_once(look);
	if (is_only_about_injection(look) && !view.gone && !view.ended) {
		enrolment_search_end(e, look->m);
		return;
	}
	look->step = enrol_next(&view);
	if (!acts(look->step.action) && look->step.action != ENROL_WAIT)
		enrolment_search_end(e, look->m); /* nobody needs what it would find */
	if (acts(look->step.action)) {
		/* What is under way is told when it is done, by the look that follows. */
		if (!waits) {
			take_step(e, look);
			return;
		}
		if (look->decision.mode == POD_AMBIENT)
			look->step.status = ENROL_STATUS_PENDING;
		tell_status(e, look);
		return;
	}
	if (look->step.action == ENROL_NOTHING || look->step.action == ENROL_RELEASE)
		settle(look->m, again);
	tell_status(e, look);
	take_step(e, look);
	if (again)
		enrolment_retry(e, look->m);
}

/* The API's pod that the member is, by whatever uid that was known before; NULL: not known. */
static const struct kube_pod *known_as(const struct enrolment *e, const struct member *m)
{
	const struct kube_pod *kp = kube_store_pod_uid(e->store, m->uid);
	const struct pod *entry = kp ? NULL : enrolment_entry(e, NULL, m->uid);

	if (kp || !entry || !entry->ns || !entry->name)
		return kp;
	kp = kube_store_pod(e->store, entry->ns, entry->name);
	return kp && enrolment_entry(e, kp, kp->uid) == entry ? kp : NULL;
}

/*
 * Made while the API's uid was not known: by kubelet's for a static pod, by its sandbox where the
 * runtime says none. The API's is the one that counts.
 */
static bool give_way(struct enrolment *e, struct member *m)
{
	const struct kube_pod *kp = e->store ? known_as(e, m) : NULL;
	struct member *other;

	if (!kp || strcmp(kp->uid, m->uid) == 0)
		return false;
	other = enrolment_member_get(e, kp->uid, kp->ns, kp->name);
	if (!other)
		return false;
	other->is_expected = true;
	enrolment_leave_ztunnel(e, m->uid);
	enrolment_member_drop(e, m);
	enrolment_due(e, other);
	return true;
}

/*
 * The other way round, before anything is done under the API's uid: ztunnel would refuse to serve
 * one namespace under two. False: under the other one it is being handed over just now.
 */
static bool take_place(struct enrolment *e, const struct member *m)
{
	const struct kube_pod *kp = e->store ? kube_store_pod_uid(e->store, m->uid) : NULL;
	const struct pod *entry = kp ? enrolment_entry(e, kp, m->uid) : NULL;
	struct member *other;

	if (!entry || !entry->uid || strcmp(entry->uid, m->uid) == 0)
		return true;
	other = enrolment_member(e, entry->uid);
	if (other && (other->asks_ztunnel || other->add)) {
		other->looks_again = true; /* and gives way */
		return false;
	}
	enrolment_leave_ztunnel(e, entry->uid);
	if (other)
		enrolment_member_drop(e, other);
	return true;
}

void enrolment_look_at(struct enrolment *e, struct member *m)
{
	struct error err = {0};
	struct look look;

	if (m->lingers_until_ms <= monotonic_ms())
		m->lingers_until_ms = 0;
	if (m->asks_ztunnel || m->add) {
		m->looks_again = true;
		return;
	}
	drop_ended(e, m);
	if (is_over(e, m)) {
		enrolment_leave_ztunnel(e, m->uid);
		if (e->status)
			pod_status_forget(e->status, m->uid);
		if (e->repair)
			pod_repair_forget(e->repair, m->uid);
		enrolment_member_drop(e, m);
		return;
	}
	if (give_way(e, m) || !can_decide(e, m) || !take_place(e, m))
		return;
	if (look_at(e, m, &look, &err)) {
		/* Another node's, probably, whose agent decides and writes. */
		if (look.kp && !look.entry && enrolment_is_elsewhere(e)) {
			enrolment_search_end(e, m);
			look_done(&look);
			return;
		}
		decide_and_act(e, &look);
		/* What was done may have replaced the entry. */
		if (e->repair && look.kp && look.decision.mode == POD_SIDECAR)
			pod_repair_look_at(e->repair, look.kp,
					   is_enrolled(enrolment_entry(e, look.kp, m->uid)));
	} else {
		enrolment_search_end(e, m);
		trouble(e, m, &err, false);
		look.step.status = status_as_it_is(e, &look);
		tell_status(e, &look);
	}
	look_done(&look);
}

/* The log has it already. */
void enrolment_broken(struct enrolment *e, const struct pod *pod)
{
	const struct kube_pod *kp = e->store && pod->ns && pod->name
					    ? kube_store_pod(e->store, pod->ns, pod->name)
					    : NULL;
	struct member *m = kp	      ? enrolment_member(e, kp->uid)
			   : pod->uid ? enrolment_member(e, pod->uid)
				      : NULL;
	const struct pod *entry = m ? enrolment_entry(e, kp, m->uid) : NULL;

	/* By its name it may be the pod's successor. */
	if (!entry || entry->cookie != pod->cookie)
		return;
	if (pod->broken)
		tell_event(e, m, "SockmeshRefused", pod->broken);
	enrolment_due(e, m);
}

void enrolment_forgotten(struct enrolment *e, const struct pod *pod)
{
	const struct pod_table *pods = registration_pods(e->cfg.registration);
	struct member *m;

	if (!pod->uid)
		return;
	m = enrolment_member(e, pod->uid);
	if (m)
		enrolment_due(e, m);
	for (size_t i = 0; i < pod_table_count(pods); i++) {
		const struct pod *other = pod_table_at(pods, i);

		if (other != pod && other->uid && !strcmp(other->uid, pod->uid))
			return; /* another interface of it, or its next sandbox */
	}
	/* One that is being handed over is another sandbox of this pod. */
	if (!m || !m->asks_ztunnel)
		enrolment_leave_ztunnel(e, pod->uid);
}
