/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_METRICS_SERVER_H
#define SOCKMESH_METRICS_SERVER_H

/*
 * --metrics-address: HTTP in the agent's event loop. GET (or HEAD) of
 *
 *	/metrics	the text of metrics.h, made at most once a second however often it is asked
 *for /healthz	200 while the loop turns /readyz		200, or 503 and why not
 *
 * Anything else is 404 or 405. No request has a body, there are at most 32 connections, and a
 * request has 10 seconds; nobody can make the agent hold much or wait.
 */
#include "ip_address.h"

#include <stdbool.h>
#include <stdint.h>

struct error;
struct event_loop;
struct metrics_server;

struct metrics_address {
	bool all; /* an empty host: every address of both families */
	struct ip_address address;
	uint16_t port;
};

/* Pure: "1.2.3.4:80", "[::1]:80" or ":80"; no names. -EINVAL says what is wrong. */
int metrics_address_parse(const char *text, struct metrics_address *ret, struct error *err);

struct metrics_server_config {
	const char *address;	  /* metrics_address_parse()'s; port 0: any that is free */
	char *(*text)(void *arg); /* malloc()ed; NULL without memory */
	const char *(*not_ready)(void *arg); /* why not; NULL: it is ready */
	void *arg;
	unsigned request_ms; /* 0: 10 seconds */
};

/* Listens, or fails; answers once the loop turns. */
int metrics_server_open(const struct metrics_server_config *cfg, struct event_loop *loop,
			struct metrics_server **ret, struct error *err);
void metrics_server_close(struct metrics_server *server); /* NULL is fine */

uint16_t metrics_server_port(const struct metrics_server *server);

#endif
