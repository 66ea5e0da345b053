/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_status.h"

#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "kube_backoff.h"
#include "kube_client.h"
#include "log.h"
#include "monotonic.h"
#include "same_text.h"
#include "scoped.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REDIRECTION "ambient.istio.io/redirection"
#define STATUS	    "sockmesh.io/status"
#define COMPONENT   "sockmesh-agent"

enum {
	PATCH_DEADLINE_MS = 10000,
	REFUSED_RETRY_MS = 60 * 1000,
	REWRITE_AFTER_MS = 5 * 1000, /* in which the watch has told of what was written */
	EVENT_RETRY_MS = 1000,	     /* when the client takes no more requests */
	RECENT_EVENTS = 128,
	MESSAGE_MAX = 1024, /* the API server takes as many bytes in an Event's message */
};

struct entry {
	struct entry *next;
	struct pod_status *owner;
	char *ns, *name, *uid;
	bool has_redirection;
	char *redirection, *status;

	bool is_due;		      /* what is wanted has not been written */
	int64_t not_before_ms;	      /* monotonic */
	struct kube_backoff backoff;  /* of failures in a row */
	struct kube_request *request; /* under way */
	int64_t written_ms;	      /* monotonic */
	bool is_changed;	      /* wanted something else since the request was sent */
};

struct event {
	struct event *next;
	char *path, *body;
};

struct recent_event {
	uint64_t hash;
	int64_t at_ms;
};

struct pod_status {
	struct event_loop *loop;
	struct kube_client *client;
	char *node;
	struct entry *entries;
	unsigned in_flight;
	struct event_source *timer;
	int64_t timer_at_ms; /* when it fires; only while there is one */

	struct event *events, **events_end;
	unsigned n_events;
	struct kube_request *event_request;
	struct recent_event recent[RECENT_EVENTS];
	unsigned n_recent;

	uint64_t written, failed, refused, sent_events, dropped_events;
	char last_error[256];
	struct log_limit failures;
};

static void pump(struct pod_status *ps);
static void wake_at(struct pod_status *ps, int64_t at_ms);

/* ---- entries -------------------------------------------------------------------------------- */

static struct entry **find_entry(struct pod_status *ps, const char *uid)
{
	struct entry **link = &ps->entries;

	while (*link && strcmp((*link)->uid, uid) != 0)
		link = &(*link)->next;
	return link;
}

static void entry_free(struct entry *e)
{
	if (!e)
		return;
	if (e->request) {
		kube_request_cancel(e->request);
		e->owner->in_flight--;
	}
	free(e->ns);
	free(e->name);
	free(e->uid);
	free(e->redirection);
	free(e->status);
	free(e);
}

static void drop_entry(struct pod_status *ps, struct entry *e)
{
	struct entry **link = find_entry(ps, e->uid);

	*link = e->next;
	entry_free(e);
}

static struct entry *entry_new(struct pod_status *ps, const struct pod_status_pod *pod)
{
	struct entry *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->owner = ps;
	e->ns = strdup(pod->ns);
	e->name = strdup(pod->name);
	e->uid = strdup(pod->uid);
	kube_backoff_init(&e->backoff, 0, 0);
	if (!e->ns || !e->name || !e->uid) {
		entry_free(e);
		return NULL;
	}
	return e;
}

int pod_status_set(struct pod_status *ps, const struct pod_status_pod *pod,
		   const struct pod_status_values *values, struct error *err)
{
	struct entry *e = *find_entry(ps, pod->uid);
	char *redirection, *status;
	bool is_new = !e;

	if (e && e->has_redirection == values->has_redirection &&
	    same_text(e->redirection, values->redirection) &&
	    same_text(e->status, values->status)) {
		/* It was written, and is not there: somebody else has been at it since. */
		if (!e->is_due && monotonic_ms() - e->written_ms > REWRITE_AFTER_MS) {
			e->is_due = true;
			pump(ps);
		}
		return 0;
	}
	if (is_new)
		e = entry_new(ps, pod);
	redirection = values->redirection ? strdup(values->redirection) : NULL;
	status = values->status ? strdup(values->status) : NULL;
	if (!e || (values->redirection && !redirection) || (values->status && !status)) {
		free(redirection);
		free(status);
		if (is_new)
			entry_free(e);
		return error_set(err, ENOMEM, "status of a pod");
	}
	if (is_new) {
		e->next = ps->entries;
		ps->entries = e;
	}
	free(e->redirection);
	free(e->status);
	/* What was once ours to write stays so, or a value that was sent would never be removed. */
	e->has_redirection |= values->has_redirection;
	e->redirection = redirection;
	e->status = status;
	e->is_due = true;
	e->is_changed = e->request;
	pump(ps);
	return 0;
}

void pod_status_forget(struct pod_status *ps, const char *uid)
{
	struct entry *e = *find_entry(ps, uid);

	if (e)
		drop_entry(ps, e);
}

/* ---- patches -------------------------------------------------------------------------------- */

static char *patch_text(const struct entry *e)
{
	scoped_json json_t *annotations = json_pack("{s:s?}", STATUS, e->status);
	scoped_json json_t *patch = NULL;

	if (!annotations ||
	    (e->has_redirection &&
	     json_object_set_new(annotations, REDIRECTION,
				 e->redirection ? json_string(e->redirection) : json_null())))
		return NULL;
	patch = json_pack("{s:{s:s, s:O}}", "metadata", "uid", e->uid, "annotations", annotations);
	return patch ? json_to_text(patch) : NULL;
}

static void note_failure(struct pod_status *ps, const struct kube_response *response,
			 const char *what, const struct entry *e)
{
	char said[160];
	struct error err = response->err;
	unsigned suppressed;

	if (!err.code)
		error_set(&err, EPROTO, "HTTP %d: %s", response->status,
			  kube_response_message(response, said, sizeof(said)));
	snprintf(ps->last_error, sizeof(ps->last_error), "%.255s", err.text);
	if (log_limit_allow(&ps->failures, &suppressed))
		log_error(LOG_WARN, &err, what, "namespace", e ? e->ns : NULL, "pod",
			  e ? e->name : NULL, NULL);
}

/*
 * No rights, or a patch that the server takes for invalid: nothing that a few seconds change. A
 * conflict (409) is: other writers were quicker, or it is another pod of that name, and then we
 * hear of ours having gone.
 */
static bool is_refused(const struct kube_response *response)
{
	return response->status == 401 || response->status == 403 || response->status == 422;
}

static void on_patched(void *arg, const struct kube_response *response)
{
	struct entry *e = arg;
	struct pod_status *ps = e->owner;
	bool done = !response->err.code && response->status / 100 == 2;

	e->request = NULL;
	ps->in_flight--;
	if (done) {
		ps->written++;
		e->written_ms = monotonic_ms();
		kube_backoff_reset(&e->backoff);
		e->not_before_ms = 0;
		e->is_due = e->is_changed;
	} else if (!response->err.code && response->status == 404) {
		drop_entry(ps, e);
		pump(ps);
		return;
	} else {
		ps->failed++;
		ps->refused += is_refused(response);
		note_failure(ps, response, "cannot write a pod's status; it is tried again", e);
		e->not_before_ms =
			monotonic_ms() +
			(is_refused(response)
				 ? REFUSED_RETRY_MS
				 : kube_backoff_next(&e->backoff, response->retry_after_ms));
	}
	e->is_changed = false;
	/* Nothing is left to remove later, so nothing is left to remember. */
	if (!e->is_due && !e->status && !e->redirection)
		drop_entry(ps, e);
	pump(ps);
}

static void put_off(struct entry *e)
{
	e->not_before_ms = monotonic_ms() + kube_backoff_next(&e->backoff, -1);
}

static void send_patch(struct pod_status *ps, struct entry *e)
{
	scoped_free char *path = NULL, *body = patch_text(e);
	struct kube_request_spec spec = {.method = "PATCH",
					 .content_type = "application/merge-patch+json",
					 .deadline_ms = PATCH_DEADLINE_MS,
					 .on_done = on_patched,
					 .arg = e};
	struct error ignored = {0};

	if (!body || asprintf(&path, "/api/v1/namespaces/%s/pods/%s/status?fieldManager=" COMPONENT,
			      e->ns, e->name) < 0) {
		path = NULL;
		put_off(e);
		return;
	}
	spec.path = path;
	spec.body = body;
	spec.body_size = strlen(body);
	if (kube_client_send(ps->client, &spec, &e->request, &ignored)) {
		e->request = NULL;
		put_off(e);
		return;
	}
	ps->in_flight++;
	e->is_changed = false;
}

/* ---- events --------------------------------------------------------------------------------- */

static void event_free(struct event *event)
{
	if (!event)
		return;
	free(event->path);
	free(event->body);
	free(event);
}

static void pop_event(struct pod_status *ps)
{
	struct event *event = ps->events;

	ps->events = event->next;
	if (!ps->events)
		ps->events_end = &ps->events;
	ps->n_events--;
	event_free(event);
}

/* One try: an Event is news, and there will be other news. */
static void on_event_sent(void *arg, const struct kube_response *response)
{
	struct pod_status *ps = arg;

	ps->event_request = NULL;
	if (response->err.code || response->status / 100 != 2) {
		ps->dropped_events++;
		note_failure(ps, response, "cannot write an Event", NULL);
	} else {
		ps->sent_events++;
	}
	pump(ps);
}

static void send_event(struct pod_status *ps)
{
	const struct event *event = ps->events;
	const struct kube_request_spec spec = {.method = "POST",
					       .path = event->path,
					       .content_type = "application/json",
					       .body = event->body,
					       .body_size = strlen(event->body),
					       .deadline_ms = PATCH_DEADLINE_MS,
					       .on_done = on_event_sent,
					       .arg = ps};
	struct error ignored = {0};

	if (kube_client_send(ps->client, &spec, &ps->event_request, &ignored)) {
		ps->event_request = NULL;
		wake_at(ps, monotonic_ms() + EVENT_RETRY_MS);
		return;
	}
	pop_event(ps);
}

static uint64_t hash_text(uint64_t hash, const char *text)
{
	for (; *text; text++) /* FNV-1a */
		hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
	return hash * 0x100000001b3u;
}

static bool was_told(struct pod_status *ps, const struct pod_status_pod *pod, const char *reason,
		     const char *message)
{
	uint64_t hash =
		hash_text(hash_text(hash_text(0xcbf29ce484222325u, pod->uid), reason), message);
	int64_t now = monotonic_ms();

	for (unsigned i = 0; i < RECENT_EVENTS; i++) {
		const struct recent_event *r = &ps->recent[i];

		if (r->hash == hash && now - r->at_ms < POD_STATUS_EVENT_MINUTES * 60 * 1000)
			return true;
	}
	ps->recent[ps->n_recent++ % RECENT_EVENTS] =
		(struct recent_event){.hash = hash, .at_ms = now};
	return false;
}

static json_t *event_json(const struct pod_status *ps, const struct pod_status_pod *pod,
			  const char *reason, const char *message)
{
	char text[MESSAGE_MAX], when[32], generate[256];
	time_t now = time(NULL);
	struct tm tm;

	snprintf(text, sizeof(text), "%s", message);
	snprintf(generate, sizeof(generate), "%.200s.", pod->name);
	if (!gmtime_r(&now, &tm) || !strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm))
		return NULL;
	return json_pack("{s:s, s:s, s:{s:s, s:s}, s:{s:s, s:s, s:s, s:s, s:s}, s:s, s:o, s:s, "
			 "s:{s:s, s:s}, s:s, s:s, s:i}",
			 "apiVersion", "v1", "kind", "Event", "metadata", "generateName", generate,
			 "namespace", pod->ns, "involvedObject", "apiVersion", "v1", "kind", "Pod",
			 "namespace", pod->ns, "name", pod->name, "uid", pod->uid, "reason", reason,
			 "message", json_string_lossy(text), "type", "Warning", "source",
			 "component", COMPONENT, "host", ps->node, "firstTimestamp", when,
			 "lastTimestamp", when, "count", 1);
}

void pod_status_event(struct pod_status *ps, const struct pod_status_pod *pod, const char *reason,
		      const char *message)
{
	struct event *event;
	json_t *body;

	if (was_told(ps, pod, reason, message))
		return;
	event = ps->n_events < POD_STATUS_EVENTS_WAIT ? calloc(1, sizeof(*event)) : NULL;
	body = event ? event_json(ps, pod, reason, message) : NULL;
	if (body)
		event->body = json_to_text(body);
	json_decref(body);
	if (!event || !event->body ||
	    asprintf(&event->path, "/api/v1/namespaces/%s/events", pod->ns) < 0) {
		if (event)
			event->path = NULL;
		event_free(event);
		ps->dropped_events++;
		return;
	}
	*ps->events_end = event;
	ps->events_end = &event->next;
	ps->n_events++;
	pump(ps);
}

/* ---- when what is sent ---------------------------------------------------------------------- */

static void on_timer(void *arg)
{
	struct pod_status *ps = arg;

	ps->timer = NULL; /* it frees itself */
	pump(ps);
}

static void wake_at(struct pod_status *ps, int64_t at_ms)
{
	int64_t now = monotonic_ms();
	struct error err = {0};

	if (ps->timer && ps->timer_at_ms <= at_ms)
		return;
	event_loop_remove(ps->timer);
	ps->timer = NULL;
	ps->timer_at_ms = at_ms;
	if (event_loop_add_timer(ps->loop, at_ms > now ? (uint64_t)(at_ms - now) : 0, 0, on_timer,
				 ps, &ps->timer, &err))
		log_error(LOG_WARN, &err, "a pod's status waits for the next change", NULL);
}

static void pump(struct pod_status *ps)
{
	int64_t now = monotonic_ms(), next = INT64_MAX;

	for (struct entry *e = ps->entries; e; e = e->next) {
		if (!e->is_due || e->request)
			continue;
		if (e->not_before_ms <= now && ps->in_flight < POD_STATUS_IN_FLIGHT)
			send_patch(ps, e);
		if (!e->request && e->not_before_ms > now && e->not_before_ms < next)
			next = e->not_before_ms;
	}
	if (ps->events && !ps->event_request)
		send_event(ps);
	if (next != INT64_MAX)
		wake_at(ps, next);
}

/* ---- life ----------------------------------------------------------------------------------- */

int pod_status_new(struct event_loop *loop, struct kube_client *client, const char *node,
		   struct pod_status **ret, struct error *err)
{
	struct pod_status *ps = calloc(1, sizeof(*ps));

	if (ps)
		ps->node = strdup(node);
	if (!ps || !ps->node) {
		free(ps);
		return error_set(err, ENOMEM, "status of pods");
	}
	ps->loop = loop;
	ps->client = client;
	ps->events_end = &ps->events;
	ps->failures.per_minute = 6;
	*ret = ps;
	return 0;
}

void pod_status_free(struct pod_status *ps)
{
	if (!ps)
		return;
	event_loop_remove(ps->timer);
	while (ps->entries)
		drop_entry(ps, ps->entries);
	kube_request_cancel(ps->event_request);
	while (ps->events)
		pop_event(ps);
	free(ps->node);
	free(ps);
}

json_t *pod_status_json(const struct pod_status *ps)
{
	unsigned waiting = 0;

	for (const struct entry *e = ps->entries; e; e = e->next)
		waiting += e->is_due;
	/* What a server said may be in any encoding, and cut anywhere. */
	return json_pack("{s:I, s:I, s:i, s:I, s:I, s:I, s:o}", "written", (json_int_t)ps->written,
			 "failed", (json_int_t)ps->failed, "waiting", (int)waiting, "refused",
			 (json_int_t)ps->refused, "events", (json_int_t)ps->sent_events,
			 "eventsDropped", (json_int_t)ps->dropped_events, "lastError",
			 *ps->last_error ? json_string_lossy(ps->last_error) : json_null());
}
