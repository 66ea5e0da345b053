/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_client.h"

#include "event_loop.h"
#include "json.h"
#include "kube_config.h"
#include "kube_transfer.h"
#include "monotonic.h"
#include "scoped.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

enum { IDLE_CONNECTIONS = 8, STATUSES = 6 };

enum request_state { QUEUED, RUNNING, ENDED };

struct kube_request {
	struct kube_client *client;
	struct kube_request *next, **link;
	enum request_state state;
	bool cancelled, paused, sent_again;
	CURLcode resumed; /* what the data that libcurl had kept came to */

	char *method, *path, *content_type, *body;
	struct kube_request_spec spec; /* its texts and body are the copies above */
	struct kube_transfer transfer;
	int64_t started_ms, heard_ms;

	/* the answer */
	char *answer;
	size_t answer_size, answer_room, header_size;
	int64_t retry_after_ms;
	struct error err; /* what we found wrong with it */
};

struct kube_client {
	struct event_loop *loop;
	struct kube_config *config;
	CURLM *multi;
	struct kube_request *requests;
	unsigned in_flight;
	bool in_curl; /* no handle may be added or removed now */
	bool closing;

	int timer_fd;
	struct event_source *timer;
	int64_t curl_due_ms; /* when libcurl wants to be called, -1: never */
	int64_t slice_end_ms;
	bool slice_used;

	uint64_t sent, failed, cancelled, unauthorized_retries, pauses, source_failures;
	uint64_t bytes, statuses[STATUSES]; /* by hundreds */
};

static void drive(struct kube_client *client, curl_socket_t fd, int events);

/* ---- requests ----------------------------------------------------------------------------------
 */

static void request_free(struct kube_request *q)
{
	if (!q)
		return;
	kube_transfer_done(&q->transfer);
	free(q->method);
	free(q->path);
	free(q->content_type);
	if (q->body)
		explicit_bzero(q->body, q->spec.body_size);
	free(q->body);
	free(q->answer);
	free(q);
}

static void request_unlink(struct kube_request *q)
{
	*q->link = q->next;
	if (q->next)
		q->next->link = q->link;
	q->client->in_flight--;
}

static void request_link(struct kube_request *q)
{
	struct kube_client *client = q->client;

	q->next = client->requests;
	q->link = &client->requests;
	if (q->next)
		q->next->link = &q->next;
	client->requests = q;
	client->in_flight++;
}

static int request_status(const struct kube_request *q)
{
	long status = 0;

	if (q->transfer.easy)
		curl_easy_getinfo(q->transfer.easy, CURLINFO_RESPONSE_CODE, &status);
	return (int)status;
}

static bool is_2xx(int status)
{
	return status >= 200 && status < 300;
}

/* ---- what libcurl hands on ---------------------------------------------------------------------
 */

static bool header_is(const char *line, size_t size, const char *name, const char **ret_value)
{
	size_t n = strlen(name);

	if (size <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
		return false;
	for (n++; n < size && (line[n] == ' ' || line[n] == '\t'); n++)
		;
	*ret_value = line + n;
	return true;
}

static int64_t seconds_as_ms(const char *text, const char *end)
{
	int64_t seconds = 0;

	if (text == end || *text < '0' || *text > '9')
		return -1;
	for (; text < end && *text >= '0' && *text <= '9' && seconds < 1000000; text++)
		seconds = seconds * 10 + (*text - '0');
	return text == end || strchr(" \t\r\n", *text) ? seconds * 1000 : -1;
}

static const char *content_type(const struct kube_request *q)
{
	char *type = NULL;

	curl_easy_getinfo(q->transfer.easy, CURLINFO_CONTENT_TYPE, &type);
	return type;
}

/* A proxy's or a portal's page is no answer of an API server. */
static bool is_json(const char *type)
{
	static const char json[] = "application/json";

	return type && strncasecmp(type, json, sizeof(json) - 1) == 0 &&
	       (type[sizeof(json) - 1] == '\0' || strchr("; \t", type[sizeof(json) - 1]));
}

static void headers_end(struct kube_request *q)
{
	if (q->spec.on_answer && !q->cancelled && is_2xx(request_status(q)) &&
	    is_json(content_type(q)))
		q->spec.on_answer(q->spec.arg);
}

static size_t on_header(char *line, size_t one, size_t size, void *arg)
{
	struct kube_request *q = arg;
	const char *value;

	(void)one;
	q->heard_ms = monotonic_ms();
	if (size > 5 && memcmp(line, "HTTP/", 5) == 0)
		q->retry_after_ms = -1; /* a new answer, after one like 100 */
	q->header_size += size;
	if (q->header_size > KUBE_HEADERS_MAX) {
		error_set(&q->err, EMSGSIZE, "more than %d bytes of headers", KUBE_HEADERS_MAX);
		return 0;
	}
	if (header_is(line, size, "Retry-After", &value))
		q->retry_after_ms = seconds_as_ms(value, line + size);
	if (*line == '\r' || *line == '\n')
		headers_end(q);
	return size;
}

static int check_content_type(struct kube_request *q)
{
	const char *type = content_type(q);

	if (is_json(type))
		return 0;
	return error_set(&q->err, EPROTO, "the answer is %.100s, not JSON",
			 type ? type : "without a type");
}

static int answer_append(struct kube_request *q, const char *data, size_t size)
{
	bool is_error_body = q->spec.on_data != NULL;
	size_t max = is_error_body ? KUBE_ERROR_BODY_MAX : q->spec.max_response;
	size_t room = q->answer_room ? q->answer_room : 1024;
	char *answer;

	if (size > max - q->answer_size) {
		if (!is_error_body)
			return error_set(&q->err, EMSGSIZE, "an answer of more than %zu bytes",
					 max);
		size = max - q->answer_size;
	}
	while (room <= q->answer_size + size)
		room *= 2;
	if (room != q->answer_room) {
		answer = realloc(q->answer, room);
		if (!answer)
			return error_set(&q->err, ENOMEM, "answer of %zu bytes", room);
		q->answer = answer;
		q->answer_room = room;
	}
	memcpy(q->answer + q->answer_size, data, size);
	q->answer_size += size;
	q->answer[q->answer_size] = '\0';
	return 0;
}

static size_t on_stream(struct kube_request *q, char *data, size_t size)
{
	int r;

	/* At least one part in each slice, or a slow machine would never get on. */
	if (q->client->slice_used && monotonic_ms() >= q->client->slice_end_ms) {
		/* libcurl keeps the data, and brings it again in the next slice. */
		q->paused = true;
		q->client->pauses++;
		return CURL_WRITEFUNC_PAUSE;
	}
	q->client->slice_used = true;
	r = q->spec.on_data(q->spec.arg, data, size);
	if (r < 0 && !q->err.code)
		error_set(&q->err, ECANCELED, "stopped by its reader");
	return r < 0 ? 0 : size;
}

static size_t on_body(char *data, size_t one, size_t size, void *arg)
{
	struct kube_request *q = arg;
	bool good = is_2xx(request_status(q));

	(void)one;
	q->heard_ms = monotonic_ms();
	if (q->cancelled || (good && check_content_type(q) < 0))
		return size + 1; /* any other number than size ends the transfer */
	if (good && q->spec.on_data) {
		size_t n = on_stream(q, data, size);

		q->client->bytes += n == size ? size : 0;
		/* Its own callback may have cancelled it. */
		return q->cancelled || (n != size && n != CURL_WRITEFUNC_PAUSE) ? size + 1 : n;
	}
	q->client->bytes += size;
	return answer_append(q, data, size) < 0 ? size + 1 : size;
}

/* ---- starting, ending --------------------------------------------------------------------------
 */

static int64_t remaining_ms(const struct kube_request *q)
{
	int64_t left = q->started_ms + (int64_t)q->spec.deadline_ms - monotonic_ms();

	return left > 0 ? left : 1;
}

static int request_start(struct kube_request *q, struct error *err)
{
	struct kube_transfer_spec spec = {.method = q->method,
					  .path = q->path,
					  .content_type = q->content_type,
					  .body = q->body,
					  .body_size = q->spec.body_size};
	struct kube_credentials credentials;
	CURL *easy;

	kube_config_refresh(q->client->config, monotonic_ms());
	kube_config_credentials(q->client->config, &credentials);
	if (kube_transfer_init(&q->transfer, &spec, &credentials, err) < 0)
		return -err->code;
	easy = q->transfer.easy;
	if (curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)remaining_ms(q)) != CURLE_OK ||
	    curl_easy_setopt(easy, CURLOPT_PRIVATE, q) != CURLE_OK ||
	    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header) != CURLE_OK ||
	    curl_easy_setopt(easy, CURLOPT_HEADERDATA, q) != CURLE_OK ||
	    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body) != CURLE_OK ||
	    curl_easy_setopt(easy, CURLOPT_WRITEDATA, q) != CURLE_OK)
		return error_set(err, EINVAL, "libcurl refuses an option");
	if (curl_multi_add_handle(q->client->multi, easy) != CURLM_OK)
		return error_set(err, ENOMEM, "libcurl takes no more transfers");
	q->state = RUNNING;
	return 0;
}

static void transfer_end(struct kube_request *q)
{
	if (q->state == RUNNING)
		curl_multi_remove_handle(q->client->multi, q->transfer.easy);
	q->state = ENDED;
	q->paused = false;
}

static void request_finish(struct kube_request *q, const struct error *failure)
{
	struct kube_response response = {
		.status = request_status(q),
		.retry_after_ms = q->retry_after_ms,
		.body = q->answer ? q->answer : "",
		.body_size = q->answer_size,
	};
	struct kube_client *client = q->client;

	if (failure) {
		client->failed++;
		response.err = *failure;
		/* The query may be long, and holds nothing that helps. */
		error_wrap(&response.err, "%s %.*s", q->method, (int)strcspn(q->path, "?"),
			   q->path);
	}
	client->statuses[response.status / 100 % STATUSES]++;
	transfer_end(q);
	request_unlink(q);
	q->spec.on_done(q->spec.arg, &response);
	request_free(q);
}

/* 401, and the files bring something else: the same again, as if it had not been sent. */
static bool send_again(struct kube_request *q)
{
	struct error err = {0};

	if (request_status(q) != 401 || q->sent_again || q->client->closing ||
	    !kube_config_reread(q->client->config, monotonic_ms()))
		return false;
	q->sent_again = true;
	q->client->unauthorized_retries++;
	transfer_end(q);
	kube_transfer_done(&q->transfer);
	q->answer_size = q->header_size = 0;
	q->retry_after_ms = -1;
	q->err = (struct error){0};
	q->heard_ms = monotonic_ms();
	if (request_start(q, &err) < 0)
		request_finish(q, &err);
	return true;
}

static void request_ended(struct kube_request *q, CURLcode code)
{
	struct error err = {0};

	if (!send_again(q)) {
		if (q->err.code)
			err = q->err;
		else if (code != CURLE_OK)
			kube_transfer_failure(&q->transfer, code, &err);
		request_finish(q, err.code ? &err : NULL);
	}
}

/* ---- time --------------------------------------------------------------------------------------
 */

static int64_t silence_end(const struct kube_request *q)
{
	return q->spec.silence_ms && q->state == RUNNING ? q->heard_ms + (int64_t)q->spec.silence_ms
							 : INT64_MAX;
}

/* One timer for all that waits: libcurl's own, silence, and what was left for the next slice. */
static void arm(struct kube_client *client)
{
	int64_t due = client->curl_due_ms >= 0 ? client->curl_due_ms : INT64_MAX;
	int64_t left;
	struct itimerspec when = {0};

	for (struct kube_request *q = client->requests; q; q = q->next) {
		int64_t end = q->paused || q->state == QUEUED || q->cancelled ? 0 : silence_end(q);

		if (end < due)
			due = end;
	}
	if (due != INT64_MAX) {
		left = due - monotonic_ms();
		when.it_value.tv_sec = left > 0 ? left / 1000 : 0;
		when.it_value.tv_nsec = left > 0 ? left % 1000 * 1000000 : 1;
	}
	timerfd_settime(client->timer_fd, 0, &when, NULL);
}

static int on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
	struct kube_client *client = arg;

	(void)multi;
	client->curl_due_ms = timeout_ms < 0 ? -1 : monotonic_ms() + timeout_ms;
	if (!client->in_curl)
		arm(client);
	return 0;
}

/* ---- libcurl and the event loop ----------------------------------------------------------------
 */

static void on_socket(int fd, uint32_t events, void *arg)
{
	int flags = 0;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP))
		flags |= CURL_CSELECT_IN;
	if (events & EPOLLOUT)
		flags |= CURL_CSELECT_OUT;
	if (events & EPOLLERR)
		flags |= CURL_CSELECT_ERR;
	drive(arg, fd, flags);
}

static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	struct kube_client *client = arg;
	struct event_source *source = socket_arg;
	uint32_t events =
		(what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	struct error err;
	int r;

	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		event_loop_remove(source);
		curl_multi_assign(client->multi, fd, NULL);
		return 0;
	}
	if (source) {
		r = event_loop_set_events(source, events, &err);
	} else {
		r = event_loop_add_fd(client->loop, fd, events, on_socket, client, &source, &err);
		if (!r)
			curl_multi_assign(client->multi, fd, source);
	}
	/* Without memory for it the transfer hears nothing, and ends by one of its time limits. */
	client->source_failures += r < 0;
	return 0;
}

static void request_drop(struct kube_request *q)
{
	transfer_end(q);
	request_unlink(q);
	request_free(q);
}

/* What could not be done in the midst of libcurl. A callback may change the list: begin anew. */
static void settle(struct kube_client *client)
{
	struct kube_request *q = client->requests;

	while (q) {
		struct error err = {0};

		if (q->cancelled) {
			request_drop(q);
		} else if (q->state == QUEUED && request_start(q, &err) < 0) {
			request_finish(q, &err);
		} else {
			q = q->next;
			continue;
		}
		q = client->requests;
	}
}

static void reap(struct kube_client *client)
{
	CURLMsg *message;
	int left;

	settle(client);
	while ((message = curl_multi_info_read(client->multi, &left))) {
		struct kube_request *q = NULL;
		CURLcode code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &q);
		request_ended(q, code);
	}
	settle(client);
	arm(client);
}

static void slice_begin(struct kube_client *client)
{
	client->slice_end_ms = monotonic_ms() + KUBE_SLICE_MS;
	client->slice_used = false;
	client->in_curl = true;
}

static void drive(struct kube_client *client, curl_socket_t fd, int events)
{
	int running;

	slice_begin(client);
	curl_multi_socket_action(client->multi, fd, events, &running);
	client->in_curl = false;
	reap(client);
}

static void resume_paused(struct kube_client *client)
{
	struct kube_request *q;

	slice_begin(client);
	for (q = client->requests; q; q = q->next) {
		if (!q->paused || q->cancelled)
			continue;
		q->paused = false;
		q->resumed = curl_easy_pause(q->transfer.easy, CURLPAUSE_CONT);
	}
	client->in_curl = false;
	/* A failure in there does not end the transfer, though what was kept is lost then. */
	for (q = client->requests; q;) {
		CURLcode code = q->resumed;

		q->resumed = CURLE_OK;
		if (code == CURLE_OK || q->cancelled) {
			q = q->next;
			continue;
		}
		request_ended(q, code);
		q = client->requests; /* its callback may have changed the list */
	}
}

static void end_silent(struct kube_client *client)
{
	int64_t now = monotonic_ms();
	struct kube_request *q = client->requests;

	while (q) {
		struct error err = {0};

		if (silence_end(q) > now) {
			q = q->next;
			continue;
		}
		error_set(&err, ETIMEDOUT, "nothing heard for %" PRIu64 " ms", q->spec.silence_ms);
		request_finish(q, &err);
		q = client->requests; /* its callback may have changed the list */
	}
}

static void on_timer(int fd, uint32_t events, void *arg)
{
	struct kube_client *client = arg;
	uint64_t expirations;

	(void)events;
	if (read(fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return; /* set anew since */
	resume_paused(client);
	end_silent(client);
	if (client->curl_due_ms >= 0 && client->curl_due_ms <= monotonic_ms()) {
		client->curl_due_ms = -1;
		drive(client, CURL_SOCKET_TIMEOUT, 0);
	} else {
		reap(client);
	}
}

/* ---- interface ---------------------------------------------------------------------------------
 */

static int open_multi(struct kube_client *client, struct error *err)
{
	CURLM *multi = curl_multi_init();

	client->multi = multi;
	if (!multi ||
	    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK ||
	    curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, client) != CURLM_OK ||
	    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK ||
	    curl_multi_setopt(multi, CURLMOPT_TIMERDATA, client) != CURLM_OK ||
	    curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING) != CURLM_OK ||
	    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long)IDLE_CONNECTIONS) != CURLM_OK)
		return error_set(err, ENOMEM, "libcurl multi handle");
	return 0;
}

int kube_client_new(struct event_loop *loop, struct kube_config *config, struct kube_client **ret,
		    struct error *err)
{
	struct kube_client *client = calloc(1, sizeof(*client));

	if (!client)
		return error_set(err, ENOMEM, "Kubernetes client");
	client->loop = loop;
	client->config = config;
	client->curl_due_ms = -1;
	client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (client->timer_fd < 0) {
		error_set(err, errno, "timerfd_create");
	} else if (open_multi(client, err) == 0 &&
		   event_loop_add_fd(loop, client->timer_fd, EPOLLIN, on_timer, client,
				     &client->timer, err) == 0) {
		*ret = client;
		return 0;
	}
	kube_client_free(client);
	return -err->code;
}

void kube_client_free(struct kube_client *client)
{
	struct error err = {0};

	if (!client)
		return;
	client->closing = true;
	error_set(&err, ECANCELED, "the agent stops");
	while (client->requests) {
		if (client->requests->cancelled)
			settle(client);
		else
			request_finish(client->requests, &err);
	}
	/* Closes idle connections, whose sources it takes from the loop. */
	curl_multi_cleanup(client->multi);
	event_loop_remove(client->timer);
	scoped_close(&client->timer_fd);
	free(client);
}

static bool copy_text(const char *text, char **ret)
{
	*ret = text ? strdup(text) : NULL;
	return !text || *ret;
}

static struct kube_request *request_new(struct kube_client *client,
					const struct kube_request_spec *spec)
{
	struct kube_request *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->client = client;
	q->spec = *spec;
	q->spec.max_response = spec->max_response ? spec->max_response : KUBE_RESPONSE_MAX;
	q->retry_after_ms = -1;
	q->started_ms = q->heard_ms = monotonic_ms();
	q->body = spec->body ? malloc(spec->body_size + 1) : NULL;
	if (!copy_text(spec->method ? spec->method : "GET", &q->method) ||
	    !copy_text(spec->path, &q->path) || !copy_text(spec->content_type, &q->content_type) ||
	    (spec->body && !q->body)) {
		request_free(q);
		return NULL;
	}
	if (spec->body)
		memcpy(q->body, spec->body, spec->body_size);
	return q;
}

int kube_client_send(struct kube_client *client, const struct kube_request_spec *spec,
		     struct kube_request **ret, struct error *err)
{
	struct kube_request *q;

	if (client->closing)
		return error_set(err, ECANCELED, "the agent stops");
	if (client->in_flight >= KUBE_REQUESTS_MAX)
		return error_set(err, EBUSY, "%u requests are under way", client->in_flight);
	if (!spec->deadline_ms || *spec->path != '/')
		return error_set(err, EINVAL, "a request without a deadline or a path");
	q = request_new(client, spec);
	if (!q)
		return error_set(err, ENOMEM, "request");
	/* Started by the timer: so nothing, no failure either, is reported from in here. */
	request_link(q);
	client->sent++;
	arm(client);
	if (ret)
		*ret = q;
	return 0;
}

void kube_request_cancel(struct kube_request *q)
{
	if (!q || q->state == ENDED || q->cancelled)
		return;
	q->cancelled = true;
	q->client->cancelled++;
	if (!q->client->in_curl)
		request_drop(q);
}

const char *kube_response_message(const struct kube_response *response, char *buf, size_t size)
{
	scoped_json json_t *status = json_loadb(response->body, response->body_size, 0, NULL);
	const char *text = json_string_value(json_object_get(status, "message"));
	size_t n;

	if (!text)
		text = response->body;
	n = (size_t)snprintf(buf, size, "%s", *text ? text : "without a reason");
	for (size_t i = 0; i < n && i < size - 1; i++)
		if ((unsigned char)buf[i] < ' ' || buf[i] == 0x7f)
			buf[i] = ' ';
	/* Cut in the midst of a character, it would not be UTF-8. */
	for (n = n < size ? 0 : size - 1; n > 0 && (buf[n - 1] & 0x80); n--)
		buf[n - 1] = '\0';
	return buf;
}

json_t *kube_client_status(const struct kube_client *client)
{
	json_t *statuses = json_object();

	for (int i = 1; i < STATUSES; i++) {
		char name[8];

		snprintf(name, sizeof(name), "%dxx", i);
		json_object_set_new(statuses, name, json_integer((json_int_t)client->statuses[i]));
	}
	return json_pack("{s:o, s:i, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I}", "config",
			 kube_config_status(client->config), "underWay", (int)client->in_flight,
			 "requests", (json_int_t)client->sent, "failed", (json_int_t)client->failed,
			 "cancelled", (json_int_t)client->cancelled, "unauthorizedRetries",
			 (json_int_t)client->unauthorized_retries, "statuses", statuses, "bytes",
			 (json_int_t)client->bytes, "pauses", (json_int_t)client->pauses,
			 "sourceFailures", (json_int_t)client->source_failures);
}
