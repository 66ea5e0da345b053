/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_CONF_H
#define SOCKMESH_CNI_CONF_H

/*
 * The network configuration that a runtime writes to the plugin's stdin. Keys that we do not know
 * are tolerated, because runtimes and list authors add their own; a key of ours with the wrong
 * type or value is refused by name. Pure.
 */
#include "cni_version.h"
#include "log.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { CNI_RUN_DIR_MAX = 96 }; /* "<run-dir>/agent.sock" must fit in sun_path */

enum on_agent_down { ON_AGENT_DOWN_DENY, ON_AGENT_DOWN_ALLOW };

struct cni_conf {
	json_t *root; /* owned; everything below that is a pointer is borrowed from it */
	enum cni_version version;
	const char *name;
	json_t *prev_result; /* object, or NULL: absent */
	bool has_attachments;
	json_t *attachments; /* cni.dev/valid-attachments, array; NULL is the empty list */

	bool chained;
	bool ambient_enabled;
	enum on_agent_down on_agent_down;
	enum log_level log_level;
	int timeout_ms;
	const char *run_dir;
	json_t *exclude_namespaces; /* array of strings, or NULL */
	json_t *own_pods;	    /* array of "NAMESPACE/NAME-PREFIX", or NULL */

	bool annotations_known;	 /* the runtime honours the capability */
	json_t *annotations;	 /* object of strings; NULL: unknown, or known to be none */
	const char *cgroup_path; /* the pod's cgroup parent as the runtime names it, or NULL */
};

/*
 * Reads the JSON and its version; every other member of *ret is the default. -EBADMSG: not a JSON
 * object; -EINVAL: cniVersion is no string; -EPROTONOSUPPORT: a version that is not ours (a
 * configuration without one is 0.1.0, as in the CNI library). *ret needs cni_conf_done() after
 * success.
 */
int cni_conf_load(const char *text, size_t size, struct cni_conf *ret, struct error *err);

/* Reads the other keys; -EINVAL names the key, and *conf is as it was. */
int cni_conf_read(struct cni_conf *conf, struct error *err);

void cni_conf_done(struct cni_conf *conf);

#endif
