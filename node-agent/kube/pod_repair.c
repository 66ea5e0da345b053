/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_repair.h"

#include "error.h"
#include "json.h"
#include "kube_client.h"
#include "log.h"
#include "pod_status.h"
#include "scoped.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPAIR_DEADLINE_MS = 10000 };

struct repaired { /* or being repaired */
	struct repaired *next;
	struct pod_repair *owner;
	char *ns, *name, *uid;
	enum kube_repair how;
	struct kube_request *request; /* under way; NULL: done, or to be tried again */
	bool is_done;
	bool is_gone; /* the pod; the answer is still to come */
};

struct pod_repair {
	struct kube_client *client;
	struct pod_status *events;
	struct kube_repair_config cfg;
	struct repaired *list;
	struct pod_repair_counts counts;
	struct log_limit failures;
};

static struct repaired **find(struct pod_repair *repair, const char *uid)
{
	struct repaired **link = &repair->list;

	while (*link && strcmp((*link)->uid, uid) != 0)
		link = &(*link)->next;
	return link;
}

static void repaired_free(struct repaired *r)
{
	if (!r)
		return;
	kube_request_cancel(r->request);
	free(r->ns);
	free(r->name);
	free(r->uid);
	free(r);
}

static struct repaired *repaired_new(struct pod_repair *repair, const struct kube_pod *pod)
{
	struct repaired *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->owner = repair;
	r->ns = strdup(pod->ns);
	r->name = strdup(pod->name);
	r->uid = strdup(pod->uid);
	if (!r->ns || !r->name || !r->uid) {
		repaired_free(r);
		return NULL;
	}
	r->next = repair->list;
	repair->list = r;
	return r;
}

/* ---- requests ------------------------------------------------------------------------------- */

static void note_answer(struct pod_repair *repair, struct repaired *r,
			const struct kube_response *response)
{
	const struct pod_status_pod pod = {.ns = r->ns, .name = r->name, .uid = r->uid};
	bool deletes = r->how == KUBE_REPAIR_DELETE;
	struct error err = response->err;
	unsigned suppressed;
	char said[160];

	r->is_done = !err.code && (response->status / 100 == 2 || response->status == 404);
	if (r->is_done && response->status == 404)
		return; /* somebody else has deleted it */
	if (r->is_done) {
		repair->counts.deleted += deletes;
		repair->counts.labelled += !deletes;
		pod_status_event(repair->events, &pod,
				 deletes ? "DeleteBrokenPod" : "LabelBrokenPod",
				 "the pod has started without the redirection of its connections");
		log_write(LOG_WARN,
			  deletes ? "deleted a pod that had started without redirection"
				  : "labelled a pod that had started without redirection",
			  "namespace", r->ns, "pod", r->name, NULL);
		return;
	}
	repair->counts.failed++;
	if (!err.code)
		error_set(&err, EPROTO, "HTTP %d: %s", response->status,
			  kube_response_message(response, said, sizeof(said)));
	if (log_limit_allow(&repair->failures, &suppressed))
		log_error(LOG_WARN, &err, "cannot repair a pod; it is tried again", "namespace",
			  r->ns, "pod", r->name, NULL);
}

static void drop(struct pod_repair *repair, struct repaired *r)
{
	*find(repair, r->uid) = r->next;
	repaired_free(r);
}

static void on_answer(void *arg, const struct kube_response *response)
{
	struct repaired *r = arg;

	r->request = NULL;
	note_answer(r->owner, r, response);
	if (r->is_gone)
		drop(r->owner, r);
}

/*
 * Deletes exactly this pod in exactly this state: one that has recovered meanwhile, or has been
 * replaced by another of its name, is left alone (409).
 */
static json_t *delete_body(const struct kube_pod *pod)
{
	return json_pack("{s:s, s:s, s:{s:s, s:s*}}", "apiVersion", "v1", "kind", "DeleteOptions",
			 "preconditions", "uid", pod->uid, "resourceVersion",
			 pod->resource_version);
}

static json_t *label_body(const struct kube_repair_config *cfg, const struct kube_pod *pod)
{
	const char *label = cfg->label_text ?: POD_REPAIR_LABEL, *value = strchr(label, '=') + 1;
	scoped_free char *key = strndup(label, (size_t)(value - 1 - label));

	return key ? json_pack("{s:{s:s, s:{s:s}}}", "metadata", "uid", pod->uid, "labels", key,
			       value)
		   : NULL;
}

static int send_request(struct pod_repair *repair, struct repaired *r, const struct kube_pod *pod,
			struct error *err)
{
	bool deletes = r->how == KUBE_REPAIR_DELETE;
	scoped_json json_t *body = deletes ? delete_body(pod) : label_body(&repair->cfg, pod);
	scoped_free char *text = body ? json_to_text(body) : NULL, *path = NULL;
	struct kube_request_spec spec = {.method = deletes ? "DELETE" : "PATCH",
					 .content_type = deletes ? "application/json"
								 : "application/merge-patch+json",
					 .deadline_ms = REPAIR_DEADLINE_MS,
					 .on_done = on_answer,
					 .arg = r};

	if (!text || asprintf(&path, "/api/v1/namespaces/%s/pods/%s%s", pod->ns, pod->name,
			      deletes ? "" : "/status") < 0) {
		path = NULL;
		return error_set(err, ENOMEM, "repair a pod");
	}
	spec.path = path;
	spec.body = text;
	spec.body_size = strlen(text);
	return kube_client_send(repair->client, &spec, &r->request, err);
}

void pod_repair_look_at(struct pod_repair *repair, const struct kube_pod *pod, bool redirected)
{
	const char *reason;
	enum kube_repair how = kube_repair_decide(&repair->cfg, pod, redirected, &reason);
	struct repaired *r = *find(repair, pod->uid);
	struct error err = {0};

	if ((how != KUBE_REPAIR_DELETE && how != KUBE_REPAIR_LABEL) ||
	    (r && (r->is_done || r->request)))
		return;
	if (!r)
		r = repaired_new(repair, pod);
	if (!r)
		return; /* the next round tries again */
	r->how = how;
	if (send_request(repair, r, pod, &err)) {
		r->request = NULL;
		log_error(LOG_WARN, &err, "cannot repair a pod; it is tried again", "namespace",
			  pod->ns, "pod", pod->name, NULL);
	}
}

/* The watch tells of a deletion before its answer comes, which is what is counted and reported. */
void pod_repair_forget(struct pod_repair *repair, const char *uid)
{
	struct repaired *r = *find(repair, uid);

	if (r && r->request)
		r->is_gone = true;
	else if (r)
		drop(repair, r);
}

/* ---- life ----------------------------------------------------------------------------------- */

int pod_repair_new(struct kube_client *client, struct pod_status *events,
		   const struct kube_repair_config *cfg, struct pod_repair **ret, struct error *err)
{
	struct pod_repair *repair = calloc(1, sizeof(*repair));

	if (!repair)
		return error_set(err, ENOMEM, "repair of pods");
	repair->client = client;
	repair->events = events;
	repair->cfg = *cfg;
	repair->failures.per_minute = 6;
	*ret = repair;
	return 0;
}

void pod_repair_free(struct pod_repair *repair)
{
	if (!repair)
		return;
	while (repair->list) {
		struct repaired *next = repair->list->next;

		repaired_free(repair->list);
		repair->list = next;
	}
	free(repair);
}

void pod_repair_count(const struct pod_repair *repair, struct pod_repair_counts *ret)
{
	*ret = repair->counts;
}
