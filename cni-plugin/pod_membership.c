/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_membership.h"

#include "cni_args.h"
#include "cni_conf.h"
#include "json.h"

#include <stdbool.h>
#include <string.h>

static bool list_has(const json_t *list, const char *text)
{
	json_t *item;
	size_t i;

	json_array_foreach (list, i, item)
		if (strcmp(json_string_value(item), text) == 0)
			return true;
	return false;
}

/* Entries are "NAMESPACE/NAME-PREFIX" (cni_conf_read checked that). */
static bool is_own_pod(const json_t *own_pods, const char *ns, const char *name)
{
	size_t ns_size = strlen(ns);
	json_t *item;
	size_t i;

	json_array_foreach (own_pods, i, item) {
		const char *entry = json_string_value(item);
		const char *prefix = strchr(entry, '/') + 1;

		if ((size_t)(prefix - 1 - entry) == ns_size && memcmp(entry, ns, ns_size) == 0 &&
		    strncmp(name, prefix, strlen(prefix)) == 0)
			return true;
	}
	return false;
}

static const char *annotation(const struct cni_conf *conf, const char *key)
{
	const char *value = json_string_value(json_object_get(conf->annotations, key));

	return value ? value : "";
}

enum pod_membership pod_membership_guess(const struct cni_conf *conf, const struct cni_args *args,
					 const char **ret_reason)
{
	const char *redirection = annotation(conf, "sockmesh.io/redirection");

	if (!args->pod_namespace || !args->pod_name) {
		*ret_reason = "CNI_ARGS names no pod: not Kubernetes";
		return POD_EXEMPT;
	}
	if (list_has(conf->exclude_namespaces, args->pod_namespace)) {
		*ret_reason = "excluded namespace";
		return POD_EXEMPT;
	}
	if (is_own_pod(conf->own_pods, args->pod_namespace, args->pod_name)) {
		*ret_reason = "one of ownPods";
		return POD_EXEMPT;
	}
	if (strcmp(redirection, "none") == 0) {
		*ret_reason = "sockmesh.io/redirection is none";
		return POD_EXEMPT;
	}
	if (*redirection) {
		/* Also a value that is misspelt: the agent, once asked, refuses it by name. */
		*ret_reason = "sockmesh.io/redirection is set";
		return POD_MAYBE_MESH;
	}
	if (*annotation(conf, "sidecar.istio.io/status")) {
		*ret_reason = "sidecar.istio.io/status is set";
		return POD_MAYBE_MESH;
	}
	if (conf->ambient_enabled) {
		*ret_reason = "ambientEnabled is true";
		return POD_MAYBE_MESH;
	}
	if (!conf->annotations_known) {
		*ret_reason = "the runtime did not pass the pod's annotations";
		return POD_MAYBE_MESH;
	}
	*ret_reason = "no annotation asks for redirection";
	return POD_OUTSIDE;
}

static bool is_known_prefix(const char *key)
{
	static const char *const prefixes[] = {
		"sidecar.istio.io/", "traffic.sidecar.istio.io/", "status.sidecar.istio.io/",
		"istio.io/",	     "ambient.istio.io/",	  "sockmesh.io/",
		"linkerd.io/",	     "config.linkerd.io/",	  "kuma.io/",
	};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
		if (strncmp(key, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	return false;
}

json_t *pod_membership_annotations(json_t *annotations)
{
	scoped_json json_t *known = json_object();
	const char *key;
	json_t *value;

	if (!known)
		return NULL;
	json_object_foreach (annotations, key, value)
		if (is_known_prefix(key) && json_object_set(known, key, value) < 0)
			return NULL;
	return json_incref(known);
}
