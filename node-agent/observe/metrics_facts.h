/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_METRICS_FACTS_H
#define SOCKMESH_METRICS_FACTS_H

#include <jansson.h>

struct queries;

/*
 * What metrics_text() words: {"status":...,"probe":...,"process":{"residentBytes","openFds",
 * "maxFds","cpuSeconds"}}. What cannot be found out is left out. NULL without memory.
 */
json_t *metrics_facts(const struct queries *queries);

/*
 * Why the agent is not ready to serve every pod as it should; NULL: it is. Static. Nothing of it
 * stops the node from creating pods.
 */
const char *metrics_not_ready(const struct queries *queries);

#endif
