/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_PREV_RESULT_H
#define SOCKMESH_CNI_PREV_RESULT_H

/*
 * The result of the plugins before us: its text, which we hand on as it came (order of keys,
 * unknown keys, spelling of numbers), and the pod's addresses in it. Pure.
 */
#include "agent_protocol.h"
#include "cni_version.h"

#include <jansson.h>
#include <stddef.h>

enum { CNI_PREV_RESULT_IPS_MAX = 64 }; /* what one request to the agent may carry */

struct cni_prev_result {
	char *text;		   /* owned: the JSON object to answer with */
	struct agent_address *ips; /* owned; those of the pod, not those of host interfaces */
	size_t n_ips;
};

/*
 * config is the whole network configuration's text (valid JSON) and prev_result its member as
 * parsed. Where the result's cniVersion is absent or another, it alone is replaced: what a plugin
 * answers must have the configuration's version. -EINVAL names what is malformed. *ret needs
 * cni_prev_result_done() after success.
 */
int cni_prev_result_read(const char *config, size_t size, const json_t *prev_result,
			 enum cni_version version, struct cni_prev_result *ret, struct error *err);
void cni_prev_result_done(struct cni_prev_result *result);

#endif
