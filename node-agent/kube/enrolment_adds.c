/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What CNI plugins ask. An add is answered at once where that is possible; it waits while the API
 * server may be about to say something of the pod, but not for long, and while ztunnel is asked. A
 * pod's creation never depends on the API server.
 */
#include "agent_protocol.h"
#include "agent_server.h"
#include "enrolment_private.h"
#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "netns.h"
#include "pod_status.h"
#include "registration.h"
#include "same_text.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* ---- those that wait ------------------------------------------------------------------------- */

static void add_free(struct waiting_add *add)
{
	agent_request_done(add->req);
	free(add->req);
	scoped_close(&add->netns_fd);
	free(add);
}

void enrolment_add_answer(struct enrolment *e, struct waiting_add *add, json_t *reply)
{
	e->n_adds--;
	agent_call_answer(add->call, reply);
	add_free(add);
}

/* Takes the request's contents over. NULL without memory: the request is as it
 * was. */
static struct waiting_add *add_new(struct enrolment *e, struct agent_request *req, int netns_fd,
				   struct agent_call *call)
{
	struct waiting_add *add = calloc(1, sizeof(*add));

	if (!add)
		return NULL;
	add->req = malloc(sizeof(*add->req));
	add->netns_fd = netns_fd < 0 ? -1 : fcntl(netns_fd, F_DUPFD_CLOEXEC, 0);
	if (!add->req || (netns_fd >= 0 && add->netns_fd < 0)) {
		scoped_close(&add->netns_fd);
		free(add->req);
		free(add);
		return NULL;
	}
	*add->req = *req;
	memset(req, 0, sizeof(*req));
	add->call = call;
	agent_call_later(call);
	e->n_adds++;
	return add;
}

/* ---- one add --------------------------------------------------------------------------------- */

/* The API's pod that the request is about; NULL: not known, or only an earlier
 * one of its name. */
static const struct kube_pod *pod_of(const struct enrolment *e, const struct agent_request *req)
{
	const struct kube_pod *kp;

	if (!e->store || !req->pod_namespace || !req->pod_name)
		return NULL;
	kp = kube_store_pod(e->store, req->pod_namespace, req->pod_name);
	return kp && (!req->pod_uid || kube_pod_is(kp, req->pod_uid)) ? kp : NULL;
}

static bool is_known(const struct enrolment *e, const struct agent_request *req)
{
	return pod_of(e, req) && kube_store_namespace(e->store, req->pod_namespace);
}

static json_t *busy(const char *why)
{
	return agent_reply_refusal(AGENT_CODE_BUSY, true, why);
}

/* What the pod says itself is told by the look that follows, which reads it as well. */
static bool is_its_own_words(const json_t *reply)
{
	const char *code = json_string_value(json_object_get(reply, "code"));

	return code && (!strcmp(code, agent_code_name(AGENT_CODE_BAD_ANNOTATION)) ||
			!strcmp(code, agent_code_name(AGENT_CODE_UNSUPPORTED)));
}

void enrolment_add_decided(struct enrolment *e, struct waiting_add *add, json_t *reply)
{
	const struct kube_pod *kp = pod_of(e, add->req);
	const char *why = json_string_value(json_object_get(reply, "message"));

	if (!json_is_true(json_object_get(reply, "ok"))) {
		e->refused++;
		if (kp && e->status && why && !is_its_own_words(reply)) {
			const struct pod_status_pod pod = {
				.ns = kp->ns, .name = kp->name, .uid = kp->uid};

			pod_status_event(e->status, &pod, "SockmeshRefused", why);
		}
	}
	enrolment_add_answer(e, add, reply);
}

static struct member *member_of(struct enrolment *e, const struct agent_request *req,
				const struct kube_pod *kp)
{
	const char *uid = kp ? kp->uid : req->pod_uid ?: req->container_id;

	return enrolment_member_get(e, uid, req->pod_namespace ?: "", req->pod_name ?: "");
}

/* Where ambient pods begin: ztunnel first. The answer comes with ztunnel's. */
static void ask_ztunnel(struct enrolment *e, struct waiting_add *add, const struct kube_pod *kp)
{
	struct member *m = member_of(e, add->req, kp);

	if (!m) {
		enrolment_add_answer(e, add, busy("no memory"));
		return;
	}
	if (m->add || m->asks_ztunnel) {
		/* An earlier sandbox of this pod, or a plugin that has asked twice. */
		enrolment_add_answer(e, add, busy("the pod is being handed to ztunnel already"));
		return;
	}
	m->add = add;
	add->asks_ztunnel = true;
	enrolment_join(e, m, kp, add->netns_fd);
}

/* What else comes is refused by registration, and must not reach ztunnel before. */
static bool is_pod_netns(int netns_fd)
{
	struct error ignored = {0};

	return netns_fd >= 0 && !netns_check_fd(netns_fd, &ignored) && !netns_is_host(netns_fd);
}

/* The node's proxy needs not be told; what the cluster is told follows. */
static void add_to_node_proxy(struct enrolment *e, struct waiting_add *add,
			      const struct kube_pod *kp, const struct pod_facts *facts)
{
	struct member *m = member_of(e, add->req, kp);
	json_t *reply = registration_handle(e->cfg.registration, add->req, add->netns_fd, facts);

	e->joined += json_is_true(json_object_get(reply, "ok"));
	if (m)
		enrolment_due(e, m);
	enrolment_add_decided(e, add, reply);
}

/*
 * Everything is known that will be known in time. While the API server is away a pod is created
 * nevertheless: as ambient where it says so itself, or its namespace does as far as that is known.
 * Not as one that bypasses ztunnel, then, but if need be as one that ztunnel lets wait until the
 * API has told both of them who it is: its service account, which ztunnel is corrected about, and
 * whether it is ambient after all.
 */
static void settle(struct enrolment *e, struct waiting_add *add)
{
	const struct kube_pod *kp = pod_of(e, add->req);
	struct pod_decision decision = {0};
	struct pod_facts facts;
	struct error err = {0};
	int r;

	add->presumed = e->store && !kp && (!enrolment_is_current(e) || enrolment_is_elsewhere(e));
	enrolment_facts(e, kp, NULL, add->req, &facts);
	facts.presumed = add->presumed;
	r = pod_policy_decide(e->cfg.policy, &facts, &decision, &err);
	if (!r && decision.mode == POD_UNDECIDED && decision.hold) {
		enrolment_add_decided(e, add, busy(decision.reason));
	} else if (!r && decision.mode == POD_AMBIENT && e->cfg.node_proxy) {
		add_to_node_proxy(e, add, kp, &facts);
	} else if (!r && decision.mode == POD_AMBIENT && is_pod_netns(add->netns_fd)) {
		ask_ztunnel(e, add, kp);
	} else {
		/* Refusals are its to say as well. */
		e->admitted_unknown += !r && decision.mode == POD_UNDECIDED;
		enrolment_add_decided(
			e, add,
			registration_handle(e->cfg.registration, add->req, add->netns_fd, &facts));
	}
	if (!r)
		pod_decision_done(&decision);
}

/* ---- waiting for the API --------------------------------------------------------------------- */

static void wake_for_adds(struct enrolment *e);

static void take_out(struct enrolment *e, struct waiting_add *add)
{
	struct waiting_add **link = &e->adds;

	while (*link != add)
		link = &(*link)->next;
	*link = add->next;
	add->next = NULL;
}

void enrolment_adds_look(struct enrolment *e)
{
	int64_t now = monotonic_ms();
	struct waiting_add *add, *next;

	for (add = e->adds; add; add = next) {
		next = add->next;
		if (!is_known(e, add->req) && now < add->until_ms && enrolment_is_current(e))
			continue;
		take_out(e, add);
		settle(e, add);
		next = e->adds; /* whatever that has changed */
	}
	wake_for_adds(e);
}

static bool is_about(const struct agent_request *req, enum kube_kind kind, const char *ns,
		     const char *name)
{
	if (kind == KUBE_NAMESPACES)
		return same_text(req->pod_namespace, name);
	return same_text(req->pod_namespace, ns) && same_text(req->pod_name, name);
}

/* A list has thousands of objects, and hundreds of pods may be added at the time. */
void enrolment_adds_told(struct enrolment *e, enum kube_kind kind, const json_t *object)
{
	const char *ns = NULL, *name = NULL;
	struct waiting_add *add, *next;
	struct error ignored = {0};
	bool any = false;

	if (kube_object_name(object, &ns, &name, &ignored))
		return;
	for (add = e->adds; add; add = next) {
		next = add->next;
		if (!is_about(add->req, kind, ns, name) || !is_known(e, add->req))
			continue;
		take_out(e, add);
		settle(e, add);
		next = e->adds; /* whatever that has changed */
		any = true;
	}
	if (any)
		wake_for_adds(e);
}

static void on_adds(void *arg)
{
	struct enrolment *e = arg;

	e->adds_timer = NULL;
	enrolment_adds_look(e);
}

static void wake_for_adds(struct enrolment *e)
{
	int64_t now = monotonic_ms(), first = INT64_MAX;
	struct error err = {0};

	for (const struct waiting_add *add = e->adds; add; add = add->next)
		first = add->until_ms < first ? add->until_ms : first;
	if (e->adds_timer && e->adds_at_ms == first)
		return;
	event_loop_remove(e->adds_timer);
	e->adds_timer = NULL;
	e->adds_at_ms = first;
	if (first == INT64_MAX)
		return;
	if (event_loop_add_timer(e->cfg.loop, first > now ? (uint64_t)(first - now) : 0, 0, on_adds,
				 e, &e->adds_timer, &err))
		log_error(LOG_WARN, &err, "adds wait for the API server's next word", NULL);
}

/*
 * Is there anything to wait for? Not for a pod that the API's word changes nothing about, and not
 * for an API server that does not speak to us.
 */
static bool waits_for_api(const struct enrolment *e, const struct agent_request *req)
{
	struct pod_decision decision = {0};
	struct pod_facts facts;
	struct error ignored = {0};
	bool waits;

	if (!enrolment_is_current(e) || is_known(e, req))
		return false;
	enrolment_facts(e, NULL, NULL, req, &facts);
	if (pod_policy_decide(e->cfg.policy, &facts, &decision, &ignored))
		return false;
	/* What is excluded is so for good; a sidecar's container may say more than
	 * annotations. */
	waits = decision.mode != POD_SKIP;
	pod_decision_done(&decision);
	return waits;
}

static json_t *handle_add(struct enrolment *e, struct agent_request *req, int netns_fd,
			  struct agent_call *call)
{
	struct waiting_add *add;

	if (e->n_adds >= ENROLMENT_ADDS_MAX)
		return busy("too many pods are being added at once");
	add = add_new(e, req, netns_fd, call);
	if (!add)
		return NULL;
	if (!waits_for_api(e, add->req)) {
		settle(e, add);
		return NULL;
	}
	add->until_ms = monotonic_ms() + ENROLMENT_CACHE_WAIT_MS;
	add->next = e->adds;
	e->adds = add;
	wake_for_adds(e);
	return NULL;
}

static bool is_of(const struct waiting_add *add, const struct agent_request *req)
{
	return !strcmp(add->req->container_id, req->container_id) &&
	       !strcmp(add->req->if_name, req->if_name);
}

/* Whoever asked has given up: done later, it would register what nobody deletes any more. */
static void cancel_adds(struct enrolment *e, const struct agent_request *req)
{
	for (struct waiting_add *add = e->adds, *next; add; add = next) {
		next = add->next;
		if (!is_of(add, req))
			continue;
		take_out(e, add);
		enrolment_add_answer(e, add, busy("deleted meanwhile"));
	}
	for (size_t i = 0; i < MEMBER_BUCKETS; i++)
		for (struct member *m = e->members[i]; m; m = m->next) {
			if (!m->add || !is_of(m->add, req))
				continue;
			enrolment_add_answer(e, m->add, busy("deleted meanwhile"));
			m->add = NULL;
		}
}

json_t *enrolment_request(struct enrolment *e, struct agent_request *req, int netns_fd,
			  struct agent_call *call)
{
	if (req->op == AGENT_ADD)
		return handle_add(e, req, netns_fd, call);
	if (req->op == AGENT_DEL && e->n_adds)
		cancel_adds(e, req);
	return registration_handle(e->cfg.registration, req, netns_fd, NULL);
}

void enrolment_adds_answer_all(struct enrolment *e)
{
	while (e->adds) {
		struct waiting_add *add = e->adds;

		e->adds = add->next;
		enrolment_add_answer(e, add, busy("the agent is ending"));
	}
	for (size_t i = 0; i < MEMBER_BUCKETS; i++)
		for (struct member *m = e->members[i]; m; m = m->next) {
			if (m->add)
				enrolment_add_answer(e, m->add, busy("the agent is ending"));
			m->add = NULL;
		}
}
