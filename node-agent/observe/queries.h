/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_QUERIES_H
#define SOCKMESH_QUERIES_H

/*
 * What sockmeshctl asks, and the plugin's STATUS: answers that change nothing, but that the adviser
 * begins to watch when it is asked to.
 */
#include <jansson.h>
#include <stdint.h>

struct accelerate;
struct agent_request;
struct enrolment;
struct options;
struct redirect;
struct registration;
struct workload_advice;

struct queries {
	const struct options *options;
	const struct registration *registration;
	struct redirect *redirect;
	struct accelerate *accelerate;
	struct workload_advice *advice;
	const struct enrolment *enrolment;
	const char *attach_dir; /* the cgroup that programs are attached to */
	int64_t started_s;	/* CLOCK_BOOTTIME */
};

/* status, pods, pod, explain, probe, accelerate; others are refused. A new reference; NULL without
 * memory. */
json_t *queries_handle(const struct queries *queries, const struct agent_request *req);

#endif
