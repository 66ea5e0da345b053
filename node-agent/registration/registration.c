/* SPDX-License-Identifier: Apache-2.0 */
#include "registration.h"

#include "accelerate.h"
#include "error.h"
#include "json.h"
#include "kube_pod.h"
#include "log.h"
#include "netlink.h"
#include "netns.h"
#include "pod_state.h"
#include "pod_workload.h"
#include "registration_private.h"
#include "run_dir.h"
#include "same_text.h"
#include "scoped.h"
#include "write_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- the state file ------------------------------------------------------------------------- */

static int append(char **text, size_t *used, size_t *size, const char *part, struct error *err)
{
	size_t length = strlen(part);

	if (*used + length + 1 > *size) {
		size_t grown = (*used + length + 1) * 2;
		char *moved = realloc(*text, grown);

		if (!moved)
			return error_set(err, ENOMEM, "state file");
		*text = moved;
		*size = grown;
	}
	memcpy(*text + *used, part, length + 1);
	*used += length;
	return 0;
}

int registration_save(const struct registration *reg, const struct pod *except,
		      const struct pod *extra, struct error *err)
{
	char *text = NULL;
	size_t used = 0, size = 0, n = pod_table_count(reg->table), written = 0;
	int r = append(&text, &used, &size, "{\"v\":1,\"pods\":[", err);

	for (size_t i = 0; !r && i < n + 1; i++) {
		const struct pod *pod = i < n ? pod_table_at(reg->table, i) : extra;

		if (!pod || pod == except || !pod->record)
			continue;
		r = append(&text, &used, &size, written++ ? ",\n" : "\n", err);
		if (!r)
			r = append(&text, &used, &size, pod->record, err);
	}
	if (!r)
		r = append(&text, &used, &size, "\n]}\n", err);
	if (!r)
		/* Namespaces do not outlive a reboot, and every pod that comes would wait. */
		r = write_file_volatile(reg->state_path, text, used, 0600, err);
	free(text);
	return r;
}

/* ---- namespaces and plans ------------------------------------------------------------------- */

int registration_open_netns(const struct pod *pod)
{
	struct error ignored = {0};
	struct netns_id id;
	scoped_fd int fd = -1;

	if (!pod->netns || netns_open(pod->netns, &fd, &ignored))
		return -1;
	if (netns_identify(fd, &id, &ignored) || id.cookie != pod->cookie)
		return -1;
	return take_fd(&fd);
}

/* The entry of a namespace: that which is redirected, else one that was, whose engine drains. */
static const struct pod *entry_of(const struct registration *reg, uint64_t cookie)
{
	const struct pod *pod = pod_table_redirected(reg->table, cookie, NULL);

	for (size_t i = 0; !pod && i < pod_table_count(reg->table); i++)
		if (pod_table_at(reg->table, i)->cookie == cookie)
			pod = pod_table_at(reg->table, i);
	return pod;
}

int registration_reopen_netns(const struct registration *reg, uint64_t cookie, int *ret_fd,
			      struct error *err)
{
	const struct pod *pod = entry_of(reg, cookie);
	int fd = pod ? registration_open_netns(pod) : -1;

	if (fd < 0)
		return error_set(err, ENOENT, "the pod's network namespace cannot be opened by %s",
				 pod && pod->netns ? pod->netns : "any path");
	*ret_fd = fd;
	return 0;
}

int registration_visit_pod(const struct registration *reg, uint64_t cookie, redirect_visit_fn fn,
			   void *fn_arg, struct error *err)
{
	const struct pod *pod = entry_of(reg, cookie);
	struct engine_pod engine_pod;
	scoped_fd int fd = -1;
	int r = registration_reopen_netns(reg, cookie, &fd, err);

	if (r)
		return r;
	registration_engine_pod(reg, pod, fd, &engine_pod);
	return fn(&engine_pod.pod, fn_arg, err);
}

/*
 * Ids of the pod's user namespace to ours, in place. One that the pod's processes cannot have
 * (not mapped) is dropped: it can match nothing.
 */
static int map_ids(int netns_fd, struct id_list *list, bool groups, struct error *err)
{
	size_t kept = 0;

	for (size_t i = 0; i < list->n; i++) {
		int r = netns_map_ids(netns_fd, &list->ids[i], 1, groups, &list->ids[kept], err);

		if (r && r != -ENOENT)
			return r;
		kept += !r;
	}
	list->n = kept;
	return 0;
}

static int build_plans(struct pod *pod, struct redirect_settings *settings, int netns_fd,
		       struct error *err)
{
	size_t n_uids = settings->proxy_uids.n;
	int r = redirect_plan_build(settings, &pod->plan, err);

	if (!r)
		r = map_ids(netns_fd, &settings->proxy_uids, false, err);
	if (!r && n_uids && !settings->proxy_uids.n)
		return error_set(err, ENOTSUP,
				 "no user id of the proxy is mapped in the pod's user namespace");
	if (!r)
		r = map_ids(netns_fd, &settings->proxy_gids, true, err);
	if (!r)
		r = map_ids(netns_fd, &settings->groups, true, err);
	if (!r)
		r = redirect_plan_build(settings, &pod->engine_plan, err);
	if (!r && redirect_plan_equal(pod->plan, pod->engine_plan)) {
		redirect_plan_free(pod->engine_plan);
		pod->engine_plan = pod->plan;
	}
	return r;
}

int registration_set_reason(struct pod *pod, const char *text, struct error *err)
{
	/* A text that was cut may end inside a character, which JSON cannot hold. */
	scoped_json json_t *valid = json_string_lossy(text);
	char *reason = valid ? strdup(json_string_value(valid)) : NULL;

	if (!reason)
		return error_set(err, ENOMEM, "reason");
	free(pod->reason);
	pod->reason = reason;
	return 0;
}

static int set_workload(struct pod *pod, const struct pod_facts *facts, struct error *err)
{
	char name[POD_WORKLOAD_MAX];
	char *workload = strdup(pod_workload(facts, name));

	if (!workload)
		return error_set(err, ENOMEM, "workload");
	free(pod->workload);
	pod->workload = workload;
	return 0;
}

/* In the entry, and so in the state file: what the same decision follows from after a restart. */
static int remember(struct pod *pod, const struct pod_facts *facts,
		    const struct pod_decision *decision, struct error *err)
{
	json_t *annotations;

	if (!facts->kube_pod && !facts->presumed)
		return 0;
	annotations = pod_facts_remember(facts, decision);
	if (!annotations && facts->annotations)
		return error_set(err, ENOMEM, "annotations of a pod");
	json_decref(pod->annotations);
	pod->annotations = annotations;
	return 0;
}

/* What is not decided yet is as good as skipped. */
static bool is_redirecting(const struct pod_decision *decision)
{
	return decision->mode == POD_SIDECAR || decision->mode == POD_AMBIENT;
}

static bool has_proxy_address(const struct registration *reg, const struct pod *pod)
{
	for (size_t i = 0; i < pod->n_ips; i++)
		if (policy_is_node_proxy(reg->cfg.policy, &pod->ips[i].address))
			return true;
	return false;
}

int registration_decide(const struct registration *reg, struct pod *pod,
			const struct pod_facts *facts, int netns_fd, struct error *err)
{
	const struct pod_facts of_entry = {.ns = pod->ns,
					   .name = pod->name,
					   .uid = pod->uid,
					   .annotations = pod->annotations,
					   .labels = pod->labels,
					   .invalid_drop = pod->invalid_drop,
					   .is_node_proxy = has_proxy_address(reg, pod)};
	struct pod_decision decision = {0};
	int r;

	if (!facts)
		facts = &of_entry;
	r = pod_policy_decide(reg->cfg.policy, facts, &decision, err);
	if (r)
		return r;
	pod->mode = is_redirecting(&decision) ? decision.mode : POD_SKIP;
	pod->accelerate = decision.accelerate;
	pod->invalid_drop = decision.invalid_drop;
	r = registration_set_reason(pod, decision.reason, err);
	if (!r)
		r = remember(pod, facts, &decision, err);
	if (!r && is_redirecting(&decision))
		r = set_workload(pod, facts, err);
	if (!r && is_redirecting(&decision))
		r = build_plans(pod, &decision.settings, netns_fd, err);
	pod_decision_done(&decision);
	return r;
}

static void add_addresses(struct engine_pod *ret, const struct pod *pod)
{
	const size_t max = sizeof(ret->addresses) / sizeof(ret->addresses[0]);

	for (size_t i = 0; i < pod->n_ips && ret->pod.n_addresses < max; i++)
		ret->addresses[ret->pod.n_addresses++] = pod->ips[i].address;
}

void registration_engine_pod(const struct registration *reg, const struct pod *pod, int netns_fd,
			     struct engine_pod *ret)
{
	bool seen = false;

	ret->pod = (struct redirect_pod){.cookie = pod->cookie,
					 .netns_fd = netns_fd,
					 .plan = pod->engine_plan,
					 .pod_plan = pod->plan,
					 .addresses = ret->addresses};
	/* The runtime attaches the default network first: its addresses are the primary ones. */
	for (size_t i = 0; i < pod_table_count(reg->table); i++) {
		const struct pod *other = pod_table_at(reg->table, i);
		bool same = !strcmp(other->container_id, pod->container_id) &&
			    !strcmp(other->if_name, pod->if_name);

		if (same)
			add_addresses(ret, pod);
		else if (other->cookie == pod->cookie)
			add_addresses(ret, other);
		seen |= same;
	}
	if (!seen)
		add_addresses(ret, pod);
}

static int apply(struct registration *reg, const struct pod *pod, int netns_fd, struct error *err)
{
	struct engine_pod engine_pod;

	registration_engine_pod(reg, pod, netns_fd, &engine_pod);
	return redirect_apply(reg->cfg.redirect, &engine_pod.pod, err);
}

/* Which sockets are ztunnel's is known by their mark; the accelerator knows proxies by id. */
static bool can_accelerate(const struct registration *reg, const struct pod *pod)
{
	return pod->mode == POD_SIDECAR && pod->plan &&
	       !strcmp(redirect_pod_engine(reg->cfg.redirect, pod->cookie), "ebpf");
}

void registration_accelerate(struct registration *reg, const struct pod *pod)
{
	struct engine_pod engine_pod;
	struct accelerate_pod set;
	struct error err = {0};

	if (!reg->cfg.accelerate)
		return;
	if (!can_accelerate(reg, pod)) {
		accelerate_pod_remove(reg->cfg.accelerate, pod->cookie);
		return;
	}
	registration_engine_pod(reg, pod, -1, &engine_pod);
	set = (struct accelerate_pod){.cookie = pod->cookie,
				      .ns = pod->ns,
				      .name = pod->name,
				      .workload = pod->workload,
				      .wish = pod->accelerate,
				      .addresses = engine_pod.pod.addresses,
				      .n_addresses = engine_pod.pod.n_addresses};
	if (accelerate_pod_set(reg->cfg.accelerate, &set, &err))
		log_error(LOG_WARN, &err, "a pod's connections are not accelerated", "namespace",
			  pod->ns, "pod", pod->name, NULL);
}

int registration_release(struct registration *reg, const struct pod *pod, int netns_fd,
			 struct error *err)
{
	scoped_fd int opened = -1;
	struct netns_id id;
	struct error ignored = {0};

	if (pod->mode == POD_SKIP || pod_table_redirected(reg->table, pod->cookie, pod))
		return 0;
	/* A del that comes late may carry the namespace of another sandbox. */
	if (netns_fd >= 0 && (netns_identify(netns_fd, &id, &ignored) || id.cookie != pod->cookie))
		netns_fd = -1;
	if (netns_fd < 0) {
		opened = registration_open_netns(pod);
		netns_fd = opened;
	}
	if (reg->cfg.accelerate)
		accelerate_pod_remove(reg->cfg.accelerate, pod->cookie);
	return redirect_remove(reg->cfg.redirect, pod->cookie, netns_fd, err);
}

/* ---- answers -------------------------------------------------------------------------------- */

static json_t *refuse(int code, const struct error *err)
{
	char text[sizeof(err->text) + 64];
	enum agent_code answer = AGENT_CODE_KERNEL;
	bool retry = false;

	switch (-code) {
	case ENOMEM:
	case EAGAIN:
		answer = AGENT_CODE_BUSY;
		retry = true;
		break;
	case ENOSPC:
		answer = AGENT_CODE_LIMIT;
		retry = true;
		break;
	case ENOTSUP:
		return agent_reply_refusal(AGENT_CODE_UNSUPPORTED, false, err->text);
	default:
		break;
	}
	return agent_reply_refusal(answer, retry, error_format(err, text, sizeof(text)));
}

/* The pod policy's refusals are about what the user wrote: no errno in the text. */
static json_t *refuse_decision(int code, const struct error *err)
{
	if (code == -EINVAL)
		return agent_reply_refusal(AGENT_CODE_BAD_ANNOTATION, false, err->text);
	return refuse(code, err);
}

static json_t *answer_decision(const struct registration *reg, const struct pod *pod)
{
	const struct redirect *redirect = reg->cfg.redirect;
	bool redirected = pod->mode != POD_SKIP;
	json_t *extra = json_pack(
		"{s:s, s:s, s:s, s:s*}", "decision", redirected ? "redirect" : "skip", "reason",
		pod->reason ?: "", "engine",
		redirected ? redirect_pod_engine(redirect, pod->cookie) : "none", "engineReason",
		redirected ? redirect_pod_engine_reason(redirect, pod->cookie) : NULL);
	json_t *reply = extra ? agent_reply_ok(extra) : NULL;

	json_decref(extra);
	return reply;
}

static void log_pod(enum log_level level, const struct error *err, const char *msg,
		    const struct agent_request *req, const char *reason)
{
	if (err)
		log_error(level, err, msg, "namespace", req->pod_namespace, "pod", req->pod_name,
			  "container", req->container_id, "interface", req->if_name, NULL);
	else
		log_write(level, msg, "namespace", req->pod_namespace, "pod", req->pod_name,
			  "container", req->container_id, "interface", req->if_name, "reason",
			  reason, NULL);
}

static void log_added(const struct registration *reg, const struct agent_request *req,
		      const struct pod *pod)
{
	const char *why = redirect_pod_engine_reason(reg->cfg.redirect, pod->cookie);

	if (pod->mode == POD_SKIP || !why)
		log_pod(LOG_INFO, NULL, pod->mode != POD_SKIP ? "pod redirected" : "pod skipped",
			req, pod->reason);
	else
		log_write(LOG_INFO, "pod redirected by another engine than the node's", "namespace",
			  req->pod_namespace, "pod", req->pod_name, "container", req->container_id,
			  "interface", req->if_name, "reason", pod->reason, "engine",
			  redirect_pod_engine(reg->cfg.redirect, pod->cookie), "engine-reason", why,
			  NULL);
}

/* ---- add ------------------------------------------------------------------------------------ */

static bool copy_text(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return !from || *to;
}

static int pod_from_request(const struct agent_request *req, const struct netns_id *id,
			    struct pod **ret, struct error *err)
{
	struct pod *pod = pod_new(req->container_id, req->if_name);
	bool complete;

	if (!pod) {
		error_set(err, ENOMEM, "pod entry");
		return -ENOMEM;
	}
	complete = copy_text(&pod->network, req->network) &&
		   copy_text(&pod->ns, req->pod_namespace) &&
		   copy_text(&pod->name, req->pod_name) && copy_text(&pod->uid, req->pod_uid) &&
		   copy_text(&pod->netns, req->netns) && copy_text(&pod->cgroup, req->cgroup);
	pod->ips = calloc(req->n_ips + 1, sizeof(*pod->ips));
	if (!complete || !pod->ips) {
		pod_free(pod);
		error_set(err, ENOMEM, "pod entry");
		return -ENOMEM;
	}
	memcpy(pod->ips, req->ips, req->n_ips * sizeof(*req->ips));
	pod->n_ips = req->n_ips;
	pod->annotations = json_incref(req->annotations);
	pod->labels = json_incref(req->labels);
	pod->cookie = id->cookie;
	pod->netns_dev = id->dev;
	pod->netns_ino = id->ino;
	pod->since_s = time(NULL);
	*ret = pod;
	return 0;
}

static int replace_text(char **text, const char *by)
{
	char *copy = by ? strdup(by) : NULL;

	if (by && !copy)
		return -ENOMEM;
	if (by) {
		free(*text);
		*text = copy;
	}
	return 0;
}

/* What is known beyond the request goes into the entry, for the time after a restart. */
static int take_facts(struct pod *pod, const struct pod_facts *facts, struct error *err)
{
	if (replace_text(&pod->ns, facts->ns) || replace_text(&pod->name, facts->name) ||
	    replace_text(&pod->uid, facts->uid) ||
	    replace_text(&pod->service_account, facts->service_account))
		return error_set(err, ENOMEM, "pod entry");
	json_decref(pod->annotations);
	json_decref(pod->labels);
	pod->annotations = json_incref((json_t *)facts->annotations);
	pod->labels = json_incref((json_t *)facts->labels);
	return 0;
}

/* Found in its namespace only: no map has an entry for it. */
static bool is_netfilter_orphan(const struct registration *reg, const struct pod *pod)
{
	const char *engine = redirect_pod_engine(reg->cfg.redirect, pod->cookie);

	return pod->orphan && !pod->record && strcmp(engine, "ebpf") != 0 &&
	       strcmp(engine, "none") != 0;
}

/* But for orphans of that kind: whoever may make a network namespace could make one like it. */
static size_t count_limited(const struct registration *reg)
{
	struct registration_counts counts;
	size_t n = pod_table_count(reg->table), unlimited = 0;

	registration_count(reg, &counts);
	for (size_t i = 0; i < n; i++)
		unlimited += is_netfilter_orphan(reg, pod_table_at(reg->table, i));
	return counts.redirected + counts.orphaned - unlimited;
}

static int check_limits(const struct registration *reg, const struct pod *pod, struct error *err)
{
	/* A pod has one attachment, or a few; this only bounds the table. */
	const size_t attachments_per_pod = 4;
	size_t max = reg->cfg.max_pods;

	if (pod->mode != POD_SKIP && !pod_table_redirected(reg->table, pod->cookie, NULL) &&
	    count_limited(reg) >= max)
		return error_set(err, ENOSPC,
				 "%zu pods are redirected, as many as --max-pods allows", max);
	if (!pod_table_find(reg->table, pod->container_id, pod->if_name) &&
	    pod_table_count(reg->table) >= max * attachments_per_pod)
		return error_set(err, ENOSPC, "%zu attachments are known, --max-pods is %zu",
				 max * attachments_per_pod, max);
	return 0;
}

/* The kernel goes back to what it did before an add that failed half-way. */
static void undo_apply(struct registration *reg, const struct pod *pod, int netns_fd)
{
	const struct pod *holder = pod_table_redirected(reg->table, pod->cookie, NULL);
	struct error err = {0};
	int r;

	if (holder && holder->orphan)
		return; /* nobody knows its old plan; it stays redirected with the new one */
	if (holder)
		r = apply(reg, holder, netns_fd, &err);
	else
		r = redirect_remove(reg->cfg.redirect, pod->cookie, netns_fd, &err);
	if (r)
		log_error(LOG_ERROR, &err, "cannot undo a registration that failed", "container",
			  pod->container_id, "interface", pod->if_name, NULL);
}

static struct pod *orphan_of(const struct registration *reg, uint64_t cookie)
{
	for (size_t i = 0; i < pod_table_count(reg->table); i++) {
		struct pod *pod = pod_table_at(reg->table, i);

		/* One with a record is another attachment's, or the one that is being replaced. */
		if (pod->orphan && !pod->record && pod->cookie == cookie)
			return pod;
	}
	return NULL;
}

bool registration_has_orphan(const struct registration *reg, int netns_fd)
{
	struct error ignored = {0};
	struct netns_id id;

	if (netns_fd >= 0)
		return !netns_identify(netns_fd, &id, &ignored) && orphan_of(reg, id.cookie);
	for (size_t i = 0; i < pod_table_count(reg->table); i++)
		if (pod_table_at(reg->table, i)->orphan && !pod_table_at(reg->table, i)->record)
			return true;
	return false;
}

/* An orphan of this namespace is no orphan any more. */
static void drop_orphan(struct registration *reg, uint64_t cookie)
{
	struct pod *orphan;

	while ((orphan = orphan_of(reg, cookie)))
		pod_table_remove(reg->table, orphan);
}

/* The pod lives on without redirection: what was captured goes on to its end. */
static int let_go(struct registration *reg, const struct pod *old, int netns_fd, struct error *err)
{
	struct engine_pod engine_pod;

	if (old->mode == POD_SKIP || pod_table_redirected(reg->table, old->cookie, old))
		return 0;
	if (reg->cfg.accelerate)
		accelerate_pod_remove(reg->cfg.accelerate, old->cookie);
	registration_engine_pod(reg, old, netns_fd, &engine_pod);
	return redirect_release(reg->cfg.redirect, &engine_pod.pod, err);
}

/*
 * The entry that this add replaces held another namespace (the runtime used the id again), or held
 * this one and the pod is skipped now.
 */
static int release_replaced(struct registration *reg, const struct pod *old, const struct pod *pod,
			    int netns_fd, struct error *err)
{
	const struct pod *orphan = orphan_of(reg, pod->cookie);

	if (orphan && pod->mode == POD_SKIP && netns_fd >= 0) {
		int r = let_go(reg, orphan, netns_fd, err);

		if (r)
			return r;
	}
	if (!old || (old->cookie == pod->cookie && pod->mode != POD_SKIP))
		return 0;
	if (old->cookie == pod->cookie && netns_fd >= 0)
		return let_go(reg, old, netns_fd, err);
	return registration_release(reg, old, -1, err);
}

/* The kernel does what the entry says, or goes on as it did. */
static int enforce(struct registration *reg, const struct pod *old, const struct pod *pod,
		   int netns_fd, struct error *err)
{
	int r = pod->mode != POD_SKIP ? apply(reg, pod, netns_fd, err) : 0;

	if (r)
		return r;
	r = release_replaced(reg, old, pod, netns_fd, err);
	if (r && pod->mode != POD_SKIP)
		undo_apply(reg, pod, netns_fd);
	return r;
}

static int commit(struct registration *reg, struct pod *pod, int netns_fd, struct error *err)
{
	struct pod *old = pod_table_find(reg->table, pod->container_id, pod->if_name);
	int r = pod_state_encode(pod, &pod->record, err);

	if (!r)
		r = pod_table_reserve(reg->table, err);
	/*
	 * The file before the kernel: the successor of an agent that is killed in between does what
	 * is left to do. The other way round it has a namespace that is redirected and whose pod it
	 * cannot name; ztunnel, which then is not told of the pod, ends its listeners there, and
	 * every connection is refused.
	 */
	if (!r)
		r = registration_save(reg, old, pod, err);
	if (r)
		return r;
	r = enforce(reg, old, pod, netns_fd, err);
	if (r) {
		struct error ignored = {0};

		/* The next agent is not to take the pod for what it did not become. */
		registration_save(reg, NULL, NULL, &ignored);
		return r;
	}
	/* The record has them; they are not needed again before a restart. */
	json_decref(pod->annotations);
	json_decref(pod->labels);
	pod->annotations = pod->labels = NULL;
	drop_orphan(reg, pod->cookie);
	r = pod_table_put(reg->table, pod, err); /* cannot fail: there is room */
	if (pod->mode != POD_SKIP)
		registration_accelerate(reg, pod);
	return r;
}

/* False, with the answer (NULL without memory), when this is no namespace to redirect. */
static bool accept_netns(const struct agent_request *req, int netns_fd, struct netns_id *ret,
			 json_t **ret_refusal)
{
	struct error err = {0};
	int r;

	if (netns_fd < 0)
		error_set(&err, EBADF, "no network namespace descriptor came with the request");
	else if (netns_check_fd(netns_fd, &err))
		;
	else if (netns_is_host(netns_fd))
		error_set(&err, EPERM,
			  "this is the host's own network namespace, which is never redirected");
	if (err.code) {
		log_pod(LOG_WARN, &err, "namespace refused", req, NULL);
		*ret_refusal = agent_reply_refusal(AGENT_CODE_BAD_REQUEST, false, err.text);
		return false;
	}
	r = netns_identify(netns_fd, ret, &err);
	if (r)
		*ret_refusal = refuse(r, &err);
	return !r;
}

static json_t *add(struct registration *reg, const struct agent_request *req, int netns_fd,
		   const struct pod_facts *facts)
{
	struct error err = {0};
	struct netns_id id = {0};
	struct pod *pod = NULL;
	json_t *refusal = NULL;
	int r;

	if (!accept_netns(req, netns_fd, &id, &refusal))
		return refusal;
	r = pod_from_request(req, &id, &pod, &err);
	if (r)
		return refuse(r, &err);
	if (facts)
		r = take_facts(pod, facts, &err);
	if (r) {
		pod_free(pod);
		return refuse(r, &err);
	}
	r = registration_decide(reg, pod, facts, netns_fd, &err);
	if (r) {
		log_pod(LOG_WARN, &err, "pod refused", req, NULL);
		pod_free(pod);
		return refuse_decision(r, &err);
	}
	r = check_limits(reg, pod, &err);
	if (r == -ENOSPC && pod->mode == POD_SKIP) {
		/* There is nothing to undo for it later, so it need not be remembered. */
		json_t *reply = answer_decision(reg, pod);

		pod_free(pod);
		return reply;
	}
	if (!r)
		r = commit(reg, pod, netns_fd, &err);
	if (r) {
		log_pod(LOG_ERROR, &err, "pod not registered", req, NULL);
		pod_free(pod);
		return refuse(r, &err);
	}
	log_added(reg, req, pod);
	return answer_decision(reg, pod);
}

/* ---- pods of which no plugin has told, and decisions that change ----------------------------- */

static int set_decided(struct registration *reg, struct pod *pod, int netns_fd,
		       const struct pod_facts *facts, struct error *err)
{
	int r = take_facts(pod, facts, err);

	if (!r)
		r = registration_decide(reg, pod, facts, netns_fd, err);
	if (!r)
		r = check_limits(reg, pod, err);
	if (!r)
		r = commit(reg, pod, netns_fd, err);
	if (r)
		pod_free(pod);
	return r;
}

/* Borrows everything. */
static void request_of_found(const struct registration_found *found, const struct pod_facts *facts,
			     char *container_id, struct agent_request *ret)
{
	static char no_interface[] = "-";

	*ret = (struct agent_request){.container_id = container_id,
				      .if_name = no_interface,
				      .netns = (char *)found->netns,
				      .pod_namespace = (char *)facts->ns,
				      .pod_name = (char *)facts->name,
				      .pod_uid = (char *)facts->uid,
				      .ips = (struct agent_address *)found->ips,
				      .n_ips = found->n_ips,
				      .cgroup = (char *)found->cgroup};
}

int registration_add_found(struct registration *reg, const struct registration_found *found,
			   const struct pod_facts *facts, struct error *err)
{
	char container_id[sizeof(POD_FOUND_PREFIX) + 256];
	struct agent_request req;
	struct pod *pod = NULL;
	struct netns_id id;
	int r;

	if (netns_is_host(found->netns_fd))
		return error_set(err, EPERM,
				 "this is the host's own network namespace, which is never "
				 "redirected");
	r = netns_identify(found->netns_fd, &id, err);
	if (r)
		return r;
	snprintf(container_id, sizeof(container_id), POD_FOUND_PREFIX "%s", facts->uid);
	request_of_found(found, facts, container_id, &req);
	r = pod_from_request(&req, &id, &pod, err);
	return r ? r : set_decided(reg, pod, found->netns_fd, facts, err);
}

static bool has_address(const struct registration *reg, uint64_t cookie,
			const struct ip_address *address)
{
	for (size_t i = 0; i < pod_table_count(reg->table); i++) {
		const struct pod *pod = pod_table_at(reg->table, i);

		for (size_t j = 0; pod->cookie == cookie && j < pod->n_ips; j++)
			if (ip_address_equal(&pod->ips[j].address, address))
				return true;
	}
	return false;
}

static bool all_are_there(int netns_fd, const struct kube_pod *kp)
{
	scoped_free struct ip_address *there = NULL;
	struct error ignored = {0};
	size_t n = 0, found = 0;

	if (netlink_list_addresses(netns_fd, &there, &n, &ignored))
		return false;
	for (size_t i = 0; i < kp->n_ips; i++) {
		size_t j = 0;

		while (j < n && !ip_address_equal(&there[j], &kp->ips[i]))
			j++;
		found += j < n;
	}
	return found == kp->n_ips;
}

bool registration_readdressed(const struct registration *reg, const struct pod *pod,
			      const struct kube_pod *kp)
{
	scoped_fd int netns_fd = -1;
	size_t unknown = 0;

	for (size_t i = 0; i < kp->n_ips; i++)
		unknown += !has_address(reg, pod->cookie, &kp->ips[i]);
	if (!unknown)
		return false;
	/* For a while after a new sandbox was made the API has the addresses of the one before. */
	netns_fd = registration_open_netns(pod);
	return netns_fd >= 0 && all_are_there(netns_fd, kp);
}

/* Those of the API in the place of what the entry has, where that is to be. */
static void readdress(const struct registration *reg, const struct pod *old,
		      const struct kube_pod *kp, struct agent_address ips[static KUBE_POD_IPS_MAX],
		      struct agent_request *ret)
{
	for (size_t i = 0; i < pod_table_count(reg->table); i++) {
		const struct pod *pod = pod_table_at(reg->table, i);

		/* The runtime attaches the default network first: the API names its addresses. */
		if (pod == old)
			break;
		if (pod->cookie == old->cookie)
			return;
	}
	if (!kp || !registration_readdressed(reg, old, kp))
		return;
	for (size_t i = 0; i < kp->n_ips; i++)
		ips[i] = (struct agent_address){kp->ips[i],
						ip_address_is_v4(&kp->ips[i]) ? 32 : 128};
	ret->ips = ips;
	ret->n_ips = kp->n_ips;
}

static int redecide_entry(struct registration *reg, const struct pod *old,
			  const struct registration_found *found, const struct pod_facts *facts,
			  struct error *err)
{
	const struct netns_id id = {
		.cookie = old->cookie, .dev = old->netns_dev, .ino = old->netns_ino};
	struct agent_request req = {.container_id = old->container_id,
				    .if_name = old->if_name,
				    .network = old->network,
				    .netns = (char *)(found->netns ?: old->netns),
				    .pod_namespace = old->ns,
				    .pod_name = old->name,
				    .pod_uid = old->uid,
				    .ips = old->ips,
				    .n_ips = old->n_ips,
				    .cgroup = old->cgroup};
	struct agent_address ips[KUBE_POD_IPS_MAX];
	struct pod *pod = NULL;
	int r;

	readdress(reg, old, facts->kube_pod, ips, &req);
	r = pod_from_request(&req, &id, &pod, err);
	if (r)
		return r;
	if (replace_text(&pod->service_account, old->service_account)) {
		pod_free(pod);
		return error_set(err, ENOMEM, "pod entry");
	}
	return set_decided(reg, pod, found->netns_fd, facts, err);
}

int registration_redecide(struct registration *reg, const struct pod *pod,
			  const struct registration_found *found, const struct pod_facts *facts,
			  struct error *err)
{
	scoped_fd int netns_fd = found ? -1 : registration_open_netns(pod);
	const struct registration_found known = {.netns_fd = netns_fd};
	uint64_t cookie = pod->cookie;
	int r = 0;

	if (!found)
		found = &known;
	if (found->netns_fd < 0)
		return error_set(err, ENOENT, "the pod's network namespace cannot be opened by %s",
				 pod->netns ?: "any path");
	/*
	 * An entry that is replaced keeps its place in the table, but is freed: that from which
	 * facts may be borrowed is the last.
	 */
	for (size_t i = 0; !r && i < pod_table_count(reg->table); i++) {
		const struct pod *entry = pod_table_at(reg->table, i);

		if (entry != pod && entry->cookie == cookie && (!entry->orphan || entry->record))
			r = redecide_entry(reg, entry, found, facts, err);
	}
	return r || (pod->orphan && !pod->record) ? r : redecide_entry(reg, pod, found, facts, err);
}

/* ---- del, check, gc ------------------------------------------------------------------------- */

/* Kernel, then file, then table: a crash in between leaves an entry that recovery drops. */
static int forget(struct registration *reg, struct pod *pod, int netns_fd, struct error *err)
{
	bool saved = pod->record;
	int r = registration_release(reg, pod, netns_fd, err);

	if (r)
		return r;
	if (saved && registration_save(reg, pod, NULL, err))
		log_error(LOG_WARN, err, "a pod is gone but still in the state file", "container",
			  pod->container_id, "interface", pod->if_name, NULL);
	registration_drop(reg, pod);
	return 0;
}

/* After a restart without its entry, a pod can be told only by its namespace. */
static struct pod *find_orphan(const struct registration *reg, int netns_fd)
{
	struct error ignored = {0};
	struct netns_id id;
	struct pod *pod;

	if (netns_fd < 0 || netns_check_fd(netns_fd, &ignored) ||
	    netns_identify(netns_fd, &id, &ignored))
		return NULL;
	pod = pod_table_redirected(reg->table, id.cookie, NULL);
	return pod && pod->orphan ? pod : NULL;
}

static json_t *del(struct registration *reg, const struct agent_request *req, int netns_fd)
{
	struct pod *pod = pod_table_find(reg->table, req->container_id, req->if_name);
	struct error err = {0};
	int r;

	if (!pod)
		pod = find_orphan(reg, netns_fd);
	if (!pod)
		return agent_reply_ok(NULL);
	r = forget(reg, pod, netns_fd, &err);
	if (r) {
		log_pod(LOG_ERROR, &err, "pod not removed", req, NULL);
		return refuse(r, &err);
	}
	log_pod(LOG_INFO, NULL, "pod removed", req, "del");
	return agent_reply_ok(NULL);
}

static json_t *check(struct registration *reg, const struct agent_request *req, int netns_fd)
{
	const struct pod *pod = pod_table_find(reg->table, req->container_id, req->if_name);
	struct engine_pod engine_pod;
	struct error err = {0};
	struct netns_id id = {0};
	json_t *refusal = NULL;
	int r;

	if (!pod)
		return agent_reply_refusal(AGENT_CODE_NOT_FOUND, false,
					   "this attachment was never added, or was removed");
	if (!accept_netns(req, netns_fd, &id, &refusal))
		return refusal;
	if (id.cookie != pod->cookie)
		return agent_reply_refusal(AGENT_CODE_NOT_FOUND, false,
					   "this attachment was added with another network "
					   "namespace");
	if (pod->mode == POD_SKIP)
		return answer_decision(reg, pod);
	if (!pod->plan)
		return agent_reply_refusal(AGENT_CODE_NOT_READY, false, pod->reason);
	registration_engine_pod(reg, pod, netns_fd, &engine_pod);
	r = redirect_verify(reg->cfg.redirect, &engine_pod.pod, &err);
	if (r == -ENODEV) /* the difference in words; no errno belongs to it */
		return agent_reply_refusal(AGENT_CODE_KERNEL, false, err.text);
	return r ? refuse(r, &err) : answer_decision(reg, pod);
}

static bool is_valid(const struct agent_request *req, const struct pod *pod)
{
	for (size_t i = 0; i < req->n_valid; i++)
		if (!strcmp(req->valid[i].container_id, pod->container_id) &&
		    !strcmp(req->valid[i].if_name, pod->if_name))
			return true;
	return false;
}

/* A list holds the attachments of one network; with Multus a pod is on several. */
static bool same_network(const struct agent_request *req, const struct pod *pod)
{
	return same_text(req->network, pod->network);
}

/* CNI 1.1 GC: what the runtime does not list is left over from a del that never came. */
static json_t *gc(struct registration *reg, const struct agent_request *req)
{
	struct error err = {0}, first = {0};

	registration_sweep(reg);
	for (size_t i = pod_table_count(reg->table); i > 0; i--) {
		struct pod *pod = pod_table_at(reg->table, i - 1);

		/* Without a record nobody knows whose it is: it ends with its namespace. */
		if (!pod->record || !same_network(req, pod) || is_valid(req, pod))
			continue;
		log_write(LOG_INFO, "pod removed", "namespace", pod->ns, "pod", pod->name,
			  "container", pod->container_id, "interface", pod->if_name, "reason", "gc",
			  NULL);
		if (forget(reg, pod, -1, &err) && !first.code)
			first = err;
	}
	if (!first.code)
		return agent_reply_ok(NULL);
	log_error(LOG_ERROR, &first, "gc left something", NULL);
	return refuse(-first.code, &first);
}

bool registration_is_planned(const struct pod *pod, const struct redirect_settings *settings)
{
	struct redirect_plan *plan = NULL;
	struct error ignored = {0};
	bool same;

	if (!pod->plan || redirect_plan_build(settings, &plan, &ignored))
		return false;
	same = redirect_plan_equal(pod->plan, plan);
	redirect_plan_free(plan);
	return same;
}

void registration_forget_found(struct registration *reg, const char *uid)
{
	char container_id[sizeof(POD_FOUND_PREFIX) + 256];
	struct error err = {0};
	struct pod *pod;

	snprintf(container_id, sizeof(container_id), POD_FOUND_PREFIX "%s", uid);
	pod = pod_table_find(reg->table, container_id, "-");
	if (pod && forget(reg, pod, -1, &err))
		log_error(LOG_ERROR, &err, "pod not removed", "uid", uid, NULL);
}

void registration_drop(struct registration *reg, struct pod *pod)
{
	if (reg->cfg.forgotten)
		reg->cfg.forgotten(reg->cfg.hooks_arg, pod);
	pod_table_remove(reg->table, pod);
}

json_t *registration_handle(struct registration *reg, const struct agent_request *req, int netns_fd,
			    const struct pod_facts *facts)
{
	switch (req->op) {
	case AGENT_ADD:
		return add(reg, req, netns_fd, facts);
	case AGENT_DEL:
		return del(reg, req, netns_fd);
	case AGENT_CHECK:
		return check(reg, req, netns_fd);
	case AGENT_GC:
		return gc(reg, req);
	default:
		return agent_reply_refusal(AGENT_CODE_BAD_REQUEST, false, "not a registration");
	}
}

/* ---- life ----------------------------------------------------------------------------------- */

const struct pod_table *registration_pods(const struct registration *reg)
{
	return reg->table;
}

void registration_count(const struct registration *reg, struct registration_counts *ret)
{
	size_t n = pod_table_count(reg->table);

	memset(ret, 0, sizeof(*ret));
	for (size_t i = 0; i < n; i++) {
		const struct pod *pod = pod_table_at(reg->table, i);

		if (pod->mode == POD_SKIP)
			ret->skipped++;
		else if (pod->orphan)
			ret->orphaned++;
		/* The namespace counts once, at its first entry. */
		else if (pod_table_redirected(reg->table, pod->cookie, NULL) == pod)
			ret->redirected++;
	}
}

int registration_open(const struct registration_config *cfg, struct registration **ret,
		      struct error *err)
{
	struct registration *reg = calloc(1, sizeof(*reg));
	int r;

	if (!reg)
		return error_set(err, ENOMEM, "registration");
	reg->cfg = *cfg;
	if (asprintf(&reg->state_path, "%s/" RUN_DIR_STATE, cfg->run_dir) < 0) {
		reg->state_path = NULL;
		r = error_set(err, ENOMEM, "registration");
	} else {
		r = pod_table_new(&reg->table, err);
	}
	if (!r)
		r = registration_recover(reg, err);
	if (r)
		registration_close(reg);
	else
		*ret = reg;
	return r;
}

void registration_close(struct registration *reg)
{
	if (!reg)
		return;
	pod_table_free(reg->table);
	free(reg->state_path);
	free(reg);
}
