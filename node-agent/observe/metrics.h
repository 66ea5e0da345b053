/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_METRICS_H
#define SOCKMESH_METRICS_H

/*
 * What the agent knows as Prometheus' text format 0.0.4. Pure: it only words what status and probe
 * say anyhow, so that there is one source of every figure. No series is about a single pod or
 * connection, so there are about 150 whatever the node runs. docs/metrics.md lists them.
 */
#include <jansson.h>

/*
 * facts: {"status":<the reply to status>,"probe":<accelerate_probe_to_json()>,
 * "process":<metrics_facts.h>}. What a member does not have is left out. The caller frees; NULL
 * without memory.
 */
char *metrics_text(const json_t *facts);

#endif
