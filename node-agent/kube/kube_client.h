/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_CLIENT_H
#define SOCKMESH_KUBE_CLIENT_H

/*
 * HTTPS requests to the API server in the agent's event loop. Nothing blocks: not names (resolved
 * in a thread that is left alone when its answer is no longer wanted), not connections, not a
 * server that stops in the midst of something. A body that is streamed is handed on for a few
 * milliseconds at a time; then the rest of the loop has its turn.
 *
 * HTTP/1.1 over TLS 1.2 or later, one connection for each request in flight, kept for the next.
 * (With HTTP/2 all would share one connection, and its troubles.) No redirects, no compression, no
 * proxy but the kubeconfig's, nothing from the environment. Answers must be JSON.
 *
 * Credentials are looked at before each request; one that is answered with 401 is sent again, once,
 * if reading the files anew brings another token or certificate.
 *
 * main calls curl_global_init(CURL_GLOBAL_DEFAULT) once, before it starts a thread, and ignores
 * SIGPIPE.
 */
#include "error.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct event_loop;
struct kube_client;
struct kube_config;
struct kube_request;

enum {
	KUBE_REQUESTS_MAX = 64,		/* in flight; more are refused with -EBUSY */
	KUBE_CONNECT_MS = 10000,	/* name, TCP and TLS */
	KUBE_SLICE_MS = 10,		/* how long a streamed body is handed on at a time */
	KUBE_ERROR_BODY_MAX = 16 << 10, /* of an answer to a streamed request that is no 2xx */
	KUBE_HEADERS_MAX = 64 << 10,
	KUBE_RESPONSE_MAX = 1 << 20, /* the default of max_response */
};

struct kube_response {
	int status;		/* of HTTP; 0 when there was no answer */
	int64_t retry_after_ms; /* -1: not said. Seconds only: a date would need two right clocks */
	/*
	 * With a NUL behind it; never NULL. A body that was streamed is not in here. That of
	 * another answer to a streamed request is, cut at KUBE_ERROR_BODY_MAX.
	 */
	const char *body;
	size_t body_size;
	/* code != 0: the request failed, even if status is there (cut, too large, no JSON) */
	struct error err;
};

/* A 2xx answer of JSON begins; there need not be any of its body for a while. */
typedef void (*kube_answer_fn)(void *arg);
/* A part of the body of a 2xx answer. Negative ends the request, with ECANCELED in its response. */
typedef int (*kube_data_fn)(void *arg, const char *data, size_t size);
/* Exactly once, unless cancelled. May send and cancel requests; must not free the client. */
typedef void (*kube_done_fn)(void *arg, const struct kube_response *response);

struct kube_request_spec {
	const char *method; /* NULL: GET */
	const char *path;   /* with its query, escaped: "/api/v1/pods?limit=500" */
	const char *content_type;
	const void *body; /* copied */
	size_t body_size;
	uint64_t deadline_ms;	  /* for all of it; not 0: there is no request without an end */
	uint64_t silence_ms;	  /* longest time in which nothing arrives; 0: up to the deadline */
	size_t max_response;	  /* of a body that is not streamed; more is EMSGSIZE */
	kube_answer_fn on_answer; /* NULL: nobody asks */
	kube_data_fn on_data;	  /* NULL: not streamed */
	kube_done_fn on_done;
	void *arg;
};

/* loop and config must outlive the client. */
int kube_client_new(struct event_loop *loop, struct kube_config *config, struct kube_client **ret,
		    struct error *err);
/* What is in flight ends with ECANCELED, through its on_done. Not from a callback. NULL is fine. */
void kube_client_free(struct kube_client *client);

/* Copies what spec points to. on_done is never called from in here. */
int kube_client_send(struct kube_client *client, const struct kube_request_spec *spec,
		     struct kube_request **ret, struct error *err);
/* No callback of it comes any more. Fine from any callback, its own too; NULL is fine. */
void kube_request_cancel(struct kube_request *request);

/*
 * The "message" of a Status in an answer that is no 2xx, or its beginning, for an error's text: one
 * line, printable. Returns buf.
 */
const char *kube_response_message(const struct kube_response *response, char *buf, size_t size);

/* {"config":{...},"underWay","requests","failed","unauthorized","statuses":{...},...}, or NULL. */
json_t *kube_client_status(const struct kube_client *client);

#endif
