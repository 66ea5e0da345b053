/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_watch.h"

#include "event_loop.h"
#include "json.h"
#include "kube_backoff.h"
#include "kube_stream.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

enum {
	HTTP_BAD_REQUEST = 400,
	HTTP_UNAUTHORIZED = 401,
	HTTP_FORBIDDEN = 403,
	HTTP_GONE = 410,
	PAGES_MAX =
		100000, /* of one list: 50 million objects, or a server that turns in a circle */
	WATCH_WORTH_MS = 1000,	 /* a watch that lasted so long was not a failure */
	RELIST_APART_MS = 30000, /* a 410 sooner after a list than this waits */
	VERSION_MAX = 128,
};

struct kube_watch {
	struct kube_watch_spec spec;
	char *name, *path, *field_selector, *label_selector;
	enum kube_watch_state state, next; /* next: when the request under way is answered */
	struct kube_backoff backoff;
	int timer_fd; /* of its own: waiting must not fail for want of a descriptor */
	struct event_source *timer;
	struct kube_request *request;
	struct kube_stream *stream;
	struct error failed; /* what we found wrong with the response in flight */

	bool consistent; /* the next list: the newest, from etcd, in pages; else what the cache has
			  */
	char version[VERSION_MAX]; /* last seen; empty: none */
	char *continue_token;
	unsigned pages;
	bool synced;
	bool expired;	   /* the version is of no use to the server: a list must come first */
	uint64_t progress; /* events and bookmarks of this watch */
	int64_t began_ms, listed_ms, heard_ms;

	uint64_t lists, lists_failed, watches, watches_failed, relists_expired;
	uint64_t events, bookmarks, unreadable, unknown_events;
	struct error last; /* the last failure, for the status */
};

static void list_start(struct kube_watch *w);
static void watch_start(struct kube_watch *w);
static void enter(struct kube_watch *w, enum kube_watch_state state, const struct error *why);

/* ---- requests ----------------------------------------------------------------------------------
 */

static void put_escaped(FILE *f, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		    strchr("-._~", c))
			fputc(c, f);
		else
			fprintf(f, "%%%02X", c);
	}
}

static void put_query(FILE *f, const char *name, const char *value)
{
	if (!value || !*value)
		return;
	fprintf(f, "&%s=", name);
	put_escaped(f, value);
}

static void put_list_query(const struct kube_watch *w, FILE *f)
{
	/* With a limit, servers up to 1.33 leave their cache aside, or ignore it for version 0. */
	if (w->consistent || w->continue_token)
		fprintf(f, "&limit=%d", KUBE_WATCH_PAGE);
	else
		fputs("&resourceVersion=0", f);
	put_query(f, "continue", w->continue_token);
}

/* *ret_text is the caller's. The first parameter gets its ? at the end. */
static int make_path(struct kube_watch *w, bool watching, unsigned seconds, char **ret_text,
		     struct error *err)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		return error_set(err, ENOMEM, "path of a request");
	fputs(w->path, f);
	if (watching) {
		fprintf(f, "&watch=true&allowWatchBookmarks=true&timeoutSeconds=%u", seconds);
		put_query(f, "resourceVersion", w->version);
	} else {
		put_list_query(w, f);
	}
	put_query(f, "fieldSelector", w->field_selector);
	put_query(f, "labelSelector", w->label_selector);
	if (fclose(f) != 0) {
		free(text);
		return error_set(err, ENOMEM, "path of a request");
	}
	text[strlen(w->path)] = '?';
	*ret_text = text;
	return 0;
}

static int on_data(void *arg, const char *data, size_t size)
{
	struct kube_watch *w = arg;
	struct error err;
	int r = kube_stream_feed(w->stream, data, size, &err);

	w->heard_ms = monotonic_ms();
	/* What we found wrong with an object says more than that we stopped there. */
	if (r < 0 && !w->failed.code)
		w->failed = err;
	return r;
}

static void on_answer(void *arg)
{
	struct kube_watch *w = arg;

	w->heard_ms = monotonic_ms();
	enter(w, w->next, NULL);
}

struct attempt {
	bool watching;
	unsigned seconds; /* of a watch */
	uint64_t deadline_ms, silence_ms;
	kube_stream_fn on_object;
	kube_done_fn on_done;
};

static int attempt_start(struct kube_watch *w, const struct attempt *a, struct error *err)
{
	struct kube_request_spec spec = {
		.deadline_ms = a->deadline_ms,
		.silence_ms = a->silence_ms,
		.on_answer = on_answer,
		.on_data = on_data,
		.on_done = a->on_done,
		.arg = w,
	};
	char *path = NULL;
	int r;

	kube_stream_free(w->stream);
	w->stream = NULL;
	w->failed = (struct error){0};
	w->began_ms = monotonic_ms();
	w->next = a->watching ? KUBE_WATCH_WATCHING : KUBE_WATCH_LISTING;
	if (kube_stream_new(a->watching ? KUBE_STREAM_WATCH : KUBE_STREAM_LIST,
			    w->spec.limits.object_max, a->on_object, w, &w->stream, err) < 0 ||
	    make_path(w, a->watching, a->seconds, &path, err) < 0)
		return -err->code;
	spec.path = path;
	r = w->spec.send(w->spec.client, &spec, &w->request, err);
	free(path);
	return r;
}

/* ---- states ------------------------------------------------------------------------------------
 */

static void enter(struct kube_watch *w, enum kube_watch_state state, const struct error *why)
{
	w->state = state;
	if (why)
		w->last = *why;
	w->spec.ops->state(w->spec.arg, state, why);
}

static void on_timer(int fd, uint32_t events, void *arg)
{
	struct kube_watch *w = arg;
	uint64_t expirations;

	(void)events;
	if (read(fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return;
	if (w->synced && !w->expired)
		watch_start(w);
	else
		list_start(w);
}

static void set_timer(struct kube_watch *w, uint32_t wait_ms)
{
	struct itimerspec when = {
		.it_value = {.tv_sec = wait_ms / 1000,
			     .tv_nsec = wait_ms > 0 ? (long)(wait_ms % 1000) * 1000000 : 1}};

	timerfd_settime(w->timer_fd, 0, &when, NULL);
}

static void try_again(struct kube_watch *w, uint32_t wait_ms, const struct error *why)
{
	set_timer(w, wait_ms);
	enter(w, KUBE_WATCH_WAITING, why);
}

static void fail(struct kube_watch *w, int64_t retry_after_ms, const struct error *why)
{
	try_again(w, kube_backoff_next(&w->backoff, retry_after_ms), why);
}

/* ---- what a response came to --------------------------------------------------------------------
 */

/* Fills err: an answer that is no 2xx, in words. */
static void status_error(struct kube_watch *w, const char *doing,
			 const struct kube_response *response, struct error *err)
{
	char message[300];
	int code = response->status == HTTP_UNAUTHORIZED || response->status == HTTP_FORBIDDEN
			   ? EACCES
		   : response->status == HTTP_GONE ? ESTALE
						   : EREMOTEIO;

	error_set(err, code, "%s %s: HTTP %d: %s", doing, w->name, response->status,
		  kube_response_message(response, message, sizeof(message)));
}

/* 0: a 2xx that ended where it should; *ret_head as kube_stream_finish(). */
static int response_check(struct kube_watch *w, const char *doing,
			  const struct kube_response *response, const json_t **ret_head,
			  struct error *err)
{
	if (w->failed.code) {
		*err = w->failed;
		return error_wrap(err, "%s %s", doing, w->name);
	}
	if (response->err.code) {
		*err = response->err;
		return error_wrap(err, "%s %s", doing, w->name);
	}
	if (response->status < 200 || response->status > 299) {
		status_error(w, doing, response, err);
		return -err->code;
	}
	if (kube_stream_finish(w->stream, ret_head, err) < 0)
		return error_wrap(err, "%s %s", doing, w->name);
	return 0;
}

/* What the consumer is promised of each object. */
static int check_object(const json_t *object, const char **ret_version, struct error *err)
{
	json_t *metadata = NULL;
	const char *name = NULL, *version = NULL;

	if (!json_is_object(object))
		return error_set(err, EPROTO, "an item is no object");
	if (json_get_object(object, "metadata", "", &metadata, err) < 0 ||
	    (metadata && json_get_string(metadata, "name", "metadata.", &name, err) < 0) ||
	    (metadata &&
	     json_get_string(metadata, "resourceVersion", "metadata.", &version, err) < 0))
		return -err->code;
	if (!name || !*name || !version || !*version)
		return error_set(err, EPROTO, "an object without a name or resourceVersion");
	*ret_version = version;
	return 0;
}

static int set_version(struct kube_watch *w, const char *version, struct error *err)
{
	size_t size = version ? strlen(version) : 0;

	if (size == 0 || size >= sizeof(w->version))
		return error_set(err, EPROTO, "%s resourceVersion",
				 size == 0 ? "no" : "an endless");
	memcpy(w->version, version, size + 1);
	return 0;
}

/* ---- listing -----------------------------------------------------------------------------------
 */

static int on_item(void *arg, const json_t *object, const struct error *unreadable)
{
	struct kube_watch *w = arg;
	const char *version;

	if (check_object(object, &version, &w->failed) < 0)
		return -w->failed.code;
	w->unreadable += unreadable != NULL;
	w->spec.ops->object(w->spec.arg, KUBE_SEEN, object, unreadable);
	return 0;
}

static void list_failed(struct kube_watch *w, const struct kube_response *response,
			const struct error *why)
{
	bool was_first = !w->continue_token;

	w->lists_failed++;
	/* The pages so far are of a version that is gone by now, or the cache has none. */
	if (response->status == HTTP_GONE && !(w->consistent && was_first)) {
		w->relists_expired++;
		w->consistent = true;
		if (w->backoff.failures == 0) {
			w->backoff.failures = 1; /* at once, but not twice in a row */
			w->last = *why;
			list_start(w);
			return;
		}
	}
	fail(w, response->retry_after_ms, why);
}

/* More pages? Takes what the list's metadata says. */
static int list_page_end(struct kube_watch *w, const json_t *head, bool *ret_more,
			 struct error *err)
{
	json_t *metadata = NULL;
	const char *version = NULL, *more = NULL;
	char *copy;

	if (json_get_object(head, "metadata", "", &metadata, err) < 0)
		return -err->code;
	if (!metadata)
		return error_set(err, EPROTO, "a list without metadata");
	if (json_get_string(metadata, "resourceVersion", "metadata.", &version, err) < 0 ||
	    json_get_string(metadata, "continue", "metadata.", &more, err) < 0)
		return -err->code;
	if (more && *more) {
		if (++w->pages >= PAGES_MAX)
			return error_set(err, EPROTO, "more than %d pages", PAGES_MAX);
		copy = strdup(more);
		if (!copy)
			return error_set(err, ENOMEM, "continue token");
		free(w->continue_token);
		w->continue_token = copy;
		*ret_more = true;
		return 0;
	}
	*ret_more = false;
	return set_version(w, version, err);
}

static int list_next_page(struct kube_watch *w, struct error *err);

static void list_end(struct kube_watch *w)
{
	free(w->continue_token);
	w->continue_token = NULL;
	w->synced = true;
	w->expired = false;
	w->consistent = false;
	w->lists++;
	w->listed_ms = monotonic_ms();
	w->spec.ops->relist_end(w->spec.arg);
	watch_start(w);
}

static void on_list_done(void *arg, const struct kube_response *response)
{
	struct kube_watch *w = arg;
	const json_t *head = NULL;
	struct error err = {0};
	bool more = false;

	w->request = NULL;
	if (response_check(w, "list", response, &head, &err) < 0) {
		list_failed(w, response, &err);
		return;
	}
	if (list_page_end(w, head, &more, &err) < 0)
		error_wrap(&err, "list %s", w->name);
	else if (!more)
		list_end(w);
	else
		list_next_page(w, &err);
	if (err.code)
		list_failed(w, response, &err);
}

static int list_next_page(struct kube_watch *w, struct error *err)
{
	struct attempt a = {.deadline_ms = w->spec.limits.list_ms,
			    .silence_ms = w->spec.limits.list_silence_ms,
			    .on_object = on_item,
			    .on_done = on_list_done};

	return attempt_start(w, &a, err);
}

static void list_start(struct kube_watch *w)
{
	struct error err = {0};

	free(w->continue_token);
	w->continue_token = NULL;
	w->pages = 0;
	w->spec.ops->relist_begin(w->spec.arg);
	if (list_next_page(w, &err) < 0)
		fail(w, -1, &err);
}

/* ---- watching ----------------------------------------------------------------------------------
 */

/*
 * Does this Status say that our version is of no use? 410: too old. "Too large": the server does
 * not get that far, because its etcd was restored from a backup. 400: it is no version to this
 * server.
 */
static bool is_version_refused(const json_t *status, int code)
{
	json_t *causes = json_object_get(json_object_get(status, "details"), "causes");
	const char *message = json_string_value(json_object_get(status, "message"));
	json_t *cause;
	size_t i;

	if (code == HTTP_GONE || code == HTTP_BAD_REQUEST)
		return true;
	json_array_foreach (causes, i, cause) {
		const char *reason = json_string_value(json_object_get(cause, "reason"));

		if (reason && strcmp(reason, "ResourceVersionTooLarge") == 0)
			return true;
	}
	return message && strstr(message, "Too large resource version");
}

static bool is_response_version_refused(const struct kube_response *response)
{
	scoped_json json_t *status = NULL;

	if (response->status < 400)
		return false;
	status = json_loadb(response->body, response->body_size, 0, NULL);
	return is_version_refused(status, response->status);
}

/* An event of type ERROR: a Status, whose code says what to do. */
static int on_error_event(struct kube_watch *w, const json_t *status)
{
	int code = (int)json_integer_value(json_object_get(status, "code"));
	const char *message = json_string_value(json_object_get(status, "message"));

	w->expired = is_version_refused(status, code);
	return error_set(&w->failed, w->expired ? ESTALE : EREMOTEIO, "%d: %.300s", code,
			 message ? message : "without a reason");
}

static int on_event(void *arg, const json_t *event, const struct error *unreadable)
{
	struct kube_watch *w = arg;
	const char *type = NULL, *version = NULL;
	json_t *object = NULL;
	enum kube_change change;

	if (json_get_string(event, "type", "", &type, &w->failed) < 0 ||
	    json_get_object(event, "object", "", &object, &w->failed) < 0)
		return -w->failed.code;
	if (!type || !object)
		return error_set(&w->failed, EPROTO, "an event without type or object");
	if (strcmp(type, "ERROR") == 0)
		return on_error_event(w, object);
	w->progress++;
	if (strcmp(type, "BOOKMARK") == 0) {
		json_t *metadata = json_object_get(object, "metadata");

		w->bookmarks++;
		return set_version(w,
				   json_string_value(json_object_get(metadata, "resourceVersion")),
				   &w->failed);
	}
	if (check_object(object, &version, &w->failed) < 0)
		return -w->failed.code;
	if (strcmp(type, "ADDED") == 0 || strcmp(type, "MODIFIED") == 0) {
		change = KUBE_CHANGED;
	} else if (strcmp(type, "DELETED") == 0) {
		change = KUBE_DELETED;
	} else {
		w->unknown_events++;
		return 0;
	}
	w->events++;
	w->unreadable += unreadable != NULL;
	/* First the object: what was not handed over must be asked for again. */
	w->spec.ops->object(w->spec.arg, change, object, unreadable);
	return set_version(w, version, &w->failed);
}

/* A list must come first: at once, unless the last one was just now. */
static void watch_expired(struct kube_watch *w, int64_t retry_after_ms, const struct error *why)
{
	w->relists_expired++;
	w->expired = true;
	w->consistent = true;
	if (monotonic_ms() - w->listed_ms < RELIST_APART_MS) {
		fail(w, retry_after_ms, why);
		return;
	}
	kube_backoff_reset(&w->backoff);
	w->last = *why;
	list_start(w);
}

/* A watch that brought something, or lasted: not a failure in a row with those before. */
static bool was_worth_it(const struct kube_watch *w)
{
	return w->progress > 0 || monotonic_ms() - w->began_ms >= WATCH_WORTH_MS;
}

static void on_watch_done(void *arg, const struct kube_response *response)
{
	struct kube_watch *w = arg;
	bool worked = response->status >= 200 && response->status <= 299 && was_worth_it(w);
	const json_t *none = NULL;
	struct error err = {0};

	w->request = NULL;
	if (response_check(w, "watch", response, &none, &err) < 0) {
		w->watches_failed++;
		if (w->expired || is_response_version_refused(response)) {
			watch_expired(w, response->retry_after_ms, &err);
			return;
		}
	} else if (!worked) {
		error_set(&err, ECONNRESET, "watch %s: ended as soon as it began", w->name);
	}
	/* It did until now: the first try to resume is an early one. */
	if (worked)
		kube_backoff_reset(&w->backoff);
	if (err.code)
		fail(w, response->retry_after_ms, &err);
	else
		watch_start(w); /* the server ended it, in time or because it stops */
}

static void watch_start(struct kube_watch *w)
{
	const struct kube_watch_limits *limits = &w->spec.limits;
	unsigned seconds = kube_backoff_jitter(&w->backoff, limits->watch_s, 2 * limits->watch_s);
	struct attempt a = {.watching = true,
			    .seconds = seconds,
			    .deadline_ms = (uint64_t)seconds * 1000 + KUBE_WATCH_GRACE_MS,
			    .silence_ms = limits->watch_silence_ms,
			    .on_object = on_event,
			    .on_done = on_watch_done};
	struct error err = {0};

	w->progress = 0;
	w->watches++;
	if (attempt_start(w, &a, &err) < 0)
		fail(w, -1, &err);
}

/* ---- interface ---------------------------------------------------------------------------------
 */

static void defaults(struct kube_watch_limits *l)
{
	l->list_ms = l->list_ms ? l->list_ms : KUBE_WATCH_LIST_MS;
	l->list_silence_ms = l->list_silence_ms ? l->list_silence_ms : KUBE_WATCH_LIST_SILENCE_MS;
	l->watch_silence_ms = l->watch_silence_ms ? l->watch_silence_ms : KUBE_WATCH_SILENCE_MS;
	l->watch_s = l->watch_s ? l->watch_s : KUBE_WATCH_S;
}

static int copy(const char *text, char **ret, struct error *err)
{
	*ret = text ? strdup(text) : NULL;
	return text && !*ret ? error_set(err, ENOMEM, "watch") : 0;
}

static int watch_init(struct kube_watch *w, struct error *err)
{
	const struct kube_watch_spec *spec = &w->spec;

	if (copy(spec->name, &w->name, err) < 0 || copy(spec->path, &w->path, err) < 0 ||
	    copy(spec->field_selector, &w->field_selector, err) < 0 ||
	    copy(spec->label_selector, &w->label_selector, err) < 0)
		return -err->code;
	w->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (w->timer_fd < 0)
		return error_set(err, errno, "timerfd_create");
	return event_loop_add_fd(spec->loop, w->timer_fd, EPOLLIN, on_timer, w, &w->timer, err);
}

int kube_watch_new(const struct kube_watch_spec *spec, struct kube_watch **ret, struct error *err)
{
	struct kube_watch *w = calloc(1, sizeof(*w));

	if (!w)
		return error_set(err, ENOMEM, "watch");
	w->spec = *spec;
	w->spec.send = spec->send ? spec->send : kube_client_send;
	w->spec.cancel = spec->cancel ? spec->cancel : kube_request_cancel;
	w->timer_fd = -1;
	w->state = KUBE_WATCH_WAITING;
	defaults(&w->spec.limits);
	kube_backoff_init(&w->backoff, spec->limits.backoff_base_ms, spec->limits.backoff_max_ms);
	if (watch_init(w, err) < 0) {
		kube_watch_free(w);
		return -err->code;
	}
	set_timer(w, 0);
	*ret = w;
	return 0;
}

void kube_watch_free(struct kube_watch *w)
{
	if (!w)
		return;
	w->spec.cancel(w->request);
	kube_stream_free(w->stream);
	event_loop_remove(w->timer);
	scoped_close(&w->timer_fd);
	free(w->continue_token);
	free(w->name);
	free(w->path);
	free(w->field_selector);
	free(w->label_selector);
	free(w);
}

bool kube_watch_synced(const struct kube_watch *w)
{
	return w->synced;
}

json_t *kube_watch_status(const struct kube_watch *w)
{
	static const char *const states[] = {
		[KUBE_WATCH_LISTING] = "listing",
		[KUBE_WATCH_WATCHING] = "watching",
		[KUBE_WATCH_WAITING] = "waiting",
	};
	bool is_well = w->state == KUBE_WATCH_WATCHING && was_worth_it(w);
	json_t *status =
		json_pack("{s:s, s:s, s:b, s:s, s:I, s:i}", "name", w->name, "state",
			  states[w->state], "synced", w->synced, "resourceVersion", w->version,
			  "quietMs", (json_int_t)(w->heard_ms ? monotonic_ms() - w->heard_ms : -1),
			  "failuresInARow", is_well ? 0 : (int)w->backoff.failures);
	const struct {
		const char *name;
		uint64_t value;
	} counters[] = {
		{"lists", w->lists},
		{"listsFailed", w->lists_failed},
		{"watches", w->watches},
		{"watchesFailed", w->watches_failed},
		{"expired", w->relists_expired},
		{"events", w->events},
		{"bookmarks", w->bookmarks},
		{"unreadable", w->unreadable},
		{"unknownEvents", w->unknown_events},
	};

	for (size_t i = 0; i < sizeof(counters) / sizeof(*counters); i++)
		json_object_set_new(status, counters[i].name,
				    json_integer((json_int_t)counters[i].value));
	json_object_set_new(status, "error",
			    w->last.code ? json_string_lossy(w->last.text) : json_null());
	return status;
}
