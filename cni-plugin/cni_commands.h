/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_COMMANDS_H
#define SOCKMESH_CNI_COMMANDS_H

/* The verbs of CNI, given a configuration and an environment that have been checked. */
#include "cni_args.h"
#include "cni_conf.h"
#include "cni_reply.h"

#include <stddef.h>

struct cni_call {
	const char *container_id, *if_name, *netns; /* NULL where the verb does not need it */
	struct cni_args args;
	struct cni_conf conf;
	const char *input; /* the configuration's text */
	size_t input_size;
};

/*
 * Each returns 0, with *ret_output the JSON for stdout (the caller frees) or NULL for none; or -1
 * with *failure filled.
 */
int cni_add(const struct cni_call *call, char **ret_output, struct cni_failure *failure);
int cni_del(const struct cni_call *call, char **ret_output, struct cni_failure *failure);
int cni_check(const struct cni_call *call, char **ret_output, struct cni_failure *failure);
int cni_gc(const struct cni_call *call, char **ret_output, struct cni_failure *failure);
int cni_status(const struct cni_call *call, char **ret_output, struct cni_failure *failure);

#endif
