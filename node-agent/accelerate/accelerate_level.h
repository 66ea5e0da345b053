/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_LEVEL_H
#define SOCKMESH_ACCELERATE_LEVEL_H

/*
 * How far a pod may go, and why: the node's policy, what the kernel was found to do, what the pod
 * asks for and what the adviser has said, weighed in one place. Pure.
 */
#include "accelerate.h"
#include "accelerate_abi.h"

enum { ACCELERATE_REASON_MAX = 256 };

struct accelerate_facts {
	enum accelerate_policy policy;
	enum accelerate_wish wish;
	const char *not_here; /* why nothing is accelerated on this node; NULL: it is */
	bool unknown_proxy;   /* one of which it is not known how it reads */
	bool cleared;	      /* the adviser has cleared the workload */
	const char *workload;
};

enum accel_level accelerate_decide(const struct accelerate_facts *facts,
				   char ret_reason[static ACCELERATE_REASON_MAX]);

/* Why the node's level is what it is, where it can do it. probed: what the probe says of full. */
void accelerate_explain(enum accelerate_policy policy, bool unknown_proxy, const char *probed,
			char ret_reason[static ACCELERATE_REASON_MAX]);

/* The most that any pod may get under a policy, where the node can do it at all. */
enum accel_level accelerate_most(enum accelerate_policy policy);

const char *accelerate_level_name(enum accel_level level); /* "off", "proxy", "full" */

#endif
