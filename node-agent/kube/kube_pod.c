/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_pod.h"

#include "error.h"
#include "json.h"
#include "pod_annotations.h"
#include "same_text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROXY		  "istio-proxy"
#define INIT		  "istio-init"
#define VALIDATION	  "istio-validation"
#define MIRROR_ANNOTATION "kubernetes.io/config.mirror"

enum {
	FIELD_MAX = 192,
	QUOTED_MAX = 80,
	STATIC_UID_LENGTH = 32, /* MD5 in hexadecimal digits, where an API uid has dashes */
};
static const json_int_t id_max = UINT32_MAX - 1; /* (uid_t)-1 means "no id" to the kernel */

/* ---- texts --------------------------------------------------------------------------------- */

/* A field's path for an error's text, cut if it must be. Returns buf. */
static const char *path(char buf[static FIELD_MAX], const char *format, ...) PRINTF_LIKE(2, 3);
static const char *path(char buf[static FIELD_MAX], const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(buf, FIELD_MAX, format, args);
	va_end(args);
	return buf;
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "allocate a pod");
}

static int invalid(const char *field, const char *text, const char *wanted, struct error *err)
{
	char quoted[POD_VALUE_QUOTED_MAX];

	return error_set(err, EINVAL, "%s: %s is not %s", field, pod_value_quote(text, quoted),
			 wanted);
}

/* What names and uids are made of, so that they can stand in paths, messages and logs. */
static bool is_name(const char *text, size_t max)
{
	static const char characters[] = "abcdefghijklmnopqrstuvwxyz0123456789-.";
	size_t n = strlen(text);

	return n > 0 && n <= max && text[0] != '.' && strspn(text, characters) == n;
}

static bool is_printable(const char *text, size_t max)
{
	size_t n = 0;

	for (; text[n]; n++)
		if (text[n] <= ' ' || text[n] >= 0x7f || n >= max)
			return false;
	return n > 0;
}

/* *ret stays NULL when there is no such member, or an empty one. */
static int copy_name(const json_t *object, const char *name, const char *where, size_t max,
		     char **ret, struct error *err)
{
	char field[FIELD_MAX];
	const char *text = "";
	int r = json_get_string(object, name, where, &text, err);

	if (r < 0 || !*text)
		return r;
	if (!is_name(text, max)) {
		path(field, "%s%s", where, name);
		return invalid(field, text, "a name", err);
	}
	*ret = strdup(text);
	return *ret ? 0 : no_memory(err);
}

static int copy_required(const json_t *object, const char *name, const char *where, size_t max,
			 char **ret, struct error *err)
{
	int r = copy_name(object, name, where, max, ret, err);

	if (r == 0 && !*ret)
		return error_set(err, EINVAL, "%s%s is missing", where, name);
	return r;
}

/* ---- metadata ------------------------------------------------------------------------------ */

static int get_metadata(const json_t *object, const char *kind, json_t **ret, struct error *err)
{
	const char *said = kind;
	json_t *metadata = NULL;
	int r;

	if (!json_is_object(object)) {
		char found[QUOTED_MAX];

		return error_set(err, EINVAL, "%s is not an object",
				 json_describe(object, found, sizeof(found)));
	}
	/* The items of a list do not say their kind. */
	r = json_get_string(object, "kind", "", &said, err);
	if (r == 0 && strcmp(said, kind) != 0)
		return invalid("kind", said, kind, err);
	if (r == 0)
		r = json_get_object(object, "metadata", "", &metadata, err);
	if (r == 0 && !metadata)
		return error_set(err, EINVAL, "metadata is missing");
	*ret = metadata;
	return r;
}

int kube_object_name(const json_t *object, const char **ret_ns, const char **ret_name,
		     struct error *err)
{
	json_t *metadata = NULL;
	const char *ns = "", *name = "";
	int r = json_is_object(object) ? json_get_object(object, "metadata", "", &metadata, err)
				       : error_set(err, EINVAL, "not an object");

	if (r == 0)
		r = json_get_string(metadata, "namespace", "metadata.", &ns, err);
	if (r == 0)
		r = json_get_string(metadata, "name", "metadata.", &name, err);
	if (r < 0)
		return r;
	if (*ns && !is_name(ns, KUBE_NAMESPACE_NAME_MAX))
		return invalid("metadata.namespace", ns, "a name", err);
	if (!is_name(name, KUBE_NAME_MAX))
		return invalid("metadata.name", name, "a name", err);
	*ret_ns = ns;
	*ret_name = name;
	return 0;
}

/* Labels that are looked at whatever the selectors say: by the policy, and for workloads' names. */
static bool is_known_label(const char *key)
{
	static const char *const known[] = {
		"sidecar.istio.io/inject",
		"istio.io/dataplane-mode",
		"service.istio.io/canonical-name",
		"app.kubernetes.io/name",
		"app",
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(key, known[i]) == 0)
			return true;
	return false;
}

static int not_a_string(const char *name, const char *key, const json_t *value, struct error *err)
{
	char quoted[POD_VALUE_QUOTED_MAX], found[QUOTED_MAX];

	return error_set(err, EINVAL, "metadata.%s: %s is %s, not a string", name,
			 pod_value_quote(key, quoted), json_describe(value, found, sizeof(found)));
}

/* *ret is borrowed, and NULL when there is no such member; else an object of strings. */
static int get_string_map(const json_t *metadata, const char *name, json_t **ret, struct error *err)
{
	const char *key;
	json_t *value;
	int r = json_get_object(metadata, name, "metadata.", ret, err);

	if (r < 0)
		return r;
	json_object_foreach (*ret, key, value)
		if (!json_is_string(value) ||
		    strlen(json_string_value(value)) != json_string_length(value))
			return not_a_string(name, key, value, err);
	return 0;
}

static int read_labels(const json_t *metadata, const struct kube_keep *keep, struct kube_pod *pod,
		       struct error *err)
{
	json_t *labels = NULL, *value;
	const char *key;
	int r = get_string_map(metadata, "labels", &labels, err);

	if (r < 0)
		return r;
	json_object_foreach (labels, key, value) {
		if (!is_known_label(key) && !kube_selectors_ask_pod(keep->selectors, key))
			continue;
		if (json_object_set_new(pod->labels, key, json_string(json_string_value(value))))
			return no_memory(err);
	}
	return 0;
}

/* As the CNI plugin: other annotations never reach the agent. */
static bool is_known_annotation(const char *key)
{
	static const char *const prefixes[] = {
		"sidecar.istio.io/", "traffic.sidecar.istio.io/", "status.sidecar.istio.io/",
		"istio.io/",	     "ambient.istio.io/",	  "sockmesh.io/",
		"linkerd.io/",	     "config.linkerd.io/",	  "kuma.io/",
	};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (strncmp(key, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	return false;
}

/*
 * A static pod has an API object, its mirror, with a uid of its own, and kubelet and the runtime go
 * on calling it by the hash of its manifest. The hash cannot be taken for another pod's uid.
 */
static int read_mirror(const char *value, struct kube_pod *pod, struct error *err)
{
	if (strlen(value) != STATIC_UID_LENGTH ||
	    strspn(value, "0123456789abcdef") != STATIC_UID_LENGTH)
		return 0;
	pod->local_uid = strdup(value);
	return pod->local_uid ? 0 : no_memory(err);
}

/* A text that had to be cut is none that the agent wrote; it only has to stay different. */
static int copy_status(const char *value, char **ret, struct error *err)
{
	*ret = strndup(value, KUBE_STATUS_TEXT_MAX);
	return *ret ? 0 : no_memory(err);
}

static int keep_annotation(const char *key, const char *value, size_t *used, struct kube_pod *pod,
			   struct error *err)
{
	if (strcmp(key, MIRROR_ANNOTATION) == 0)
		return read_mirror(value, pod, err);
	if (strcmp(key, "ambient.istio.io/redirection") == 0)
		return copy_status(value, &pod->redirection, err);
	if (strcmp(key, "sockmesh.io/status") == 0)
		return copy_status(value, &pod->status, err);
	if (!is_known_annotation(key))
		return 0;
	*used += strlen(key) + strlen(value);
	if (*used > KUBE_ANNOTATIONS_BYTES_MAX)
		return error_set(err, EINVAL,
				 "metadata.annotations: those of the mesh hold more than %d bytes",
				 KUBE_ANNOTATIONS_BYTES_MAX);
	return json_object_set_new(pod->annotations, key, json_string(value)) ? no_memory(err) : 0;
}

static int read_annotations(const json_t *metadata, struct kube_pod *pod, struct error *err)
{
	json_t *annotations = NULL, *value;
	const char *key;
	size_t used = 0;
	int r = get_string_map(metadata, "annotations", &annotations, err);

	if (r < 0)
		return r;
	json_object_foreach (annotations, key, value) {
		r = keep_annotation(key, json_string_value(value), &used, pod, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_version(const json_t *metadata, char **ret, struct error *err)
{
	const char *text = "";
	int r = json_get_string(metadata, "resourceVersion", "metadata.", &text, err);

	if (r < 0 || !*text)
		return r;
	if (!is_printable(text, KUBE_VERSION_MAX))
		return invalid("metadata.resourceVersion", text, "a version", err);
	*ret = strdup(text);
	return *ret ? 0 : no_memory(err);
}

static int read_deleting(const json_t *metadata, bool *ret, struct error *err)
{
	const char *when = "";
	int r = json_get_string(metadata, "deletionTimestamp", "metadata.", &when, err);

	if (r == 0)
		*ret = *when;
	return r;
}

static int read_metadata(const json_t *metadata, const struct kube_keep *keep, struct kube_pod *pod,
			 struct error *err)
{
	static const char where[] = "metadata.";
	int r = copy_required(metadata, "uid", where, KUBE_UID_MAX, &pod->uid, err);

	if (r == 0)
		r = read_version(metadata, &pod->resource_version, err);
	if (r == 0)
		r = read_deleting(metadata, &pod->deleting, err);
	if (r == 0)
		r = read_labels(metadata, keep, pod, err);
	if (r == 0)
		r = read_annotations(metadata, pod, err);
	return r;
}

/* ---- spec ---------------------------------------------------------------------------------- */

/* "spec.initContainers[3].", for errors about the members of one of many. */
static const char *where_of(const char *list, size_t i, char buf[static FIELD_MAX])
{
	return path(buf, "%s[%zu].", list, i);
}

static int read_id(const json_t *context, const char *name, const char *where, uint32_t *ret,
		   struct error *err)
{
	json_int_t id = 0;
	int r = json_get_integer(context, name, where, 0, id_max, &id, err);

	if (r == 0)
		*ret = (uint32_t)id;
	return r;
}

static int read_security(const json_t *container, const char *where, struct kube_proxy *proxy,
			 struct error *err)
{
	char field[FIELD_MAX];
	json_t *context = NULL;
	int r = json_get_object(container, "securityContext", where, &context, err);

	path(field, "%ssecurityContext.", where);
	if (r == 0)
		r = read_id(context, "runAsUser", field, &proxy->run_as_user, err);
	if (r == 0)
		r = read_id(context, "runAsGroup", field, &proxy->run_as_group, err);
	return r;
}

/*
 * "proxy router --domain ...": a gateway. An option in the type's place is a sidecar that leaves
 * its type out, as the proxy's own agent reads it.
 */
static int read_type(const json_t *container, const char *where, struct kube_proxy *proxy,
		     struct error *err)
{
	json_t *args = NULL;
	const char *first, *type;
	int r = json_get_array(container, "args", where, &args, err);

	if (r < 0)
		return r;
	first = json_string_value(json_array_get(args, 0));
	type = json_string_value(json_array_get(args, 1));
	proxy->other_type = first && type && strcmp(first, "proxy") == 0 && *type && *type != '-' &&
			    strcmp(type, "sidecar") != 0;
	return 0;
}

static enum kube_env env_value(const char *text)
{
	bool value;

	if (!pod_value_bool(text, &value))
		return KUBE_ENV_ILLEGIBLE;
	return value ? KUBE_ENV_TRUE : KUBE_ENV_FALSE;
}

/* One that takes its value from elsewhere has none here; the last one of a name counts. */
static int read_variable(const json_t *variable, const char *where, struct kube_proxy *proxy,
			 struct error *err)
{
	const struct {
		const char *name;
		enum kube_env *ret;
	} known[] = {
		{"DISABLE_ENVOY", &proxy->disable_envoy},
		{"ISTIO_META_DNS_CAPTURE", &proxy->dns_capture},
		{"ISTIO_DUAL_STACK", &proxy->dual_stack},
		{"INVALID_DROP", &proxy->invalid_drop},
	};
	const char *name = "", *value = "";
	int r = json_get_string(variable, "name", where, &name, err);

	for (size_t i = 0; r == 0 && i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(known[i].name, name) != 0)
			continue;
		r = json_get_string(variable, "value", where, &value, err);
		if (r == 0)
			*known[i].ret = env_value(value);
	}
	return r;
}

static int read_environment(const json_t *container, const char *where, struct kube_proxy *proxy,
			    struct error *err)
{
	char list[FIELD_MAX], item[FIELD_MAX];
	json_t *variables = NULL, *variable;
	size_t i;
	int r = json_get_array(container, "env", where, &variables, err);

	if (r < 0)
		return r;
	path(list, "%senv", where);
	json_array_foreach (variables, i, variable) {
		r = read_variable(variable, where_of(list, i, item), proxy, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_proxy(const json_t *container, const char *where, struct kube_proxy *proxy,
		      struct error *err)
{
	int r = read_security(container, where, proxy, err);

	proxy->present = true;
	if (r == 0)
		r = read_type(container, where, proxy, err);
	if (r == 0)
		r = read_environment(container, where, proxy, err);
	return r;
}

static const char *validation_name(const struct kube_keep *keep)
{
	return keep->validation ? keep->validation : VALIDATION;
}

/* One of spec.containers or spec.initContainers. */
static int read_container(const json_t *container, const char *where, const struct kube_keep *keep,
			  struct kube_pod *pod, struct error *err)
{
	bool native = strncmp(where, "spec.init", strlen("spec.init")) == 0;
	const char *name = "";
	int r;

	if (!json_is_object(container))
		return error_set(err, EINVAL, "%.*s is not an object", (int)strlen(where) - 1,
				 where);
	r = json_get_string(container, "name", where, &name, err);
	if (r < 0)
		return r;
	if (strcmp(name, INIT) == 0)
		pod->istio_init = true;
	if (native && strcmp(name, validation_name(keep)) == 0)
		pod->validation.state = KUBE_VALIDATION_WAITING;
	if (strcmp(name, PROXY) != 0)
		return 0;
	pod->proxy.native = native;
	return read_proxy(container, where, &pod->proxy, err);
}

static int read_containers(const json_t *spec, const char *name, const struct kube_keep *keep,
			   struct kube_pod *pod, struct error *err)
{
	char list[FIELD_MAX], item[FIELD_MAX];
	json_t *containers = NULL, *container;
	size_t i;
	int r = json_get_array(spec, name, "spec.", &containers, err);

	if (r < 0)
		return r;
	path(list, "spec.%s", name);
	json_array_foreach (containers, i, container) {
		r = read_container(container, where_of(list, i, item), keep, pod, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_restart(const json_t *spec, enum kube_restart *ret, struct error *err)
{
	const char *text = "";
	int r = json_get_string(spec, "restartPolicy", "spec.", &text, err);

	if (r == 0)
		*ret = strcmp(text, "Never") == 0	? KUBE_RESTART_NEVER
		       : strcmp(text, "OnFailure") == 0 ? KUBE_RESTART_ON_FAILURE
							: KUBE_RESTART_ALWAYS;
	return r;
}

static int read_spec(const json_t *spec, const struct kube_keep *keep, struct kube_pod *pod,
		     struct error *err)
{
	static const char where[] = "spec.";
	int r = copy_name(spec, "nodeName", where, KUBE_NAME_MAX, &pod->node, err);

	pod->host_users = true;
	if (r == 0)
		r = copy_name(spec, "serviceAccountName", where, KUBE_NAME_MAX,
			      &pod->service_account, err);
	if (r == 0)
		r = json_get_bool(spec, "hostNetwork", where, &pod->host_network, err);
	if (r == 0)
		r = json_get_bool(spec, "hostUsers", where, &pod->host_users, err);
	if (r == 0)
		r = read_restart(spec, &pod->restart, err);
	if (r == 0)
		r = read_containers(spec, "initContainers", keep, pod, err);
	if (r == 0)
		r = read_containers(spec, "containers", keep, pod, err);
	return r;
}

/* ---- status -------------------------------------------------------------------------------- */

static int read_phase(const json_t *status, enum kube_phase *ret, struct error *err)
{
	static const char *const names[] = {
		[KUBE_PHASE_PENDING] = "Pending",
		[KUBE_PHASE_RUNNING] = "Running",
		[KUBE_PHASE_SUCCEEDED] = "Succeeded",
		[KUBE_PHASE_FAILED] = "Failed",
	};
	const char *text = "";
	int r = json_get_string(status, "phase", "status.", &text, err);

	for (size_t i = KUBE_PHASE_PENDING; r == 0 && i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i], text) == 0)
			*ret = (enum kube_phase)i;
	return r;
}

static int add_ip(const json_t *from, const char *name, const char *where, struct kube_pod *pod,
		  struct error *err)
{
	struct ip_address ip;
	const char *text = "";
	int r = json_get_string(from, name, where, &text, err);

	if (r < 0 || !*text)
		return r;
	if (ip_address_parse(text, &ip, err) < 0)
		return error_wrap(err, "%s%s", where, name);
	for (size_t i = 0; i < pod->n_ips; i++)
		if (ip_address_equal(&pod->ips[i], &ip))
			return 0;
	if (pod->n_ips == KUBE_POD_IPS_MAX)
		return error_set(err, EINVAL, "status.podIPs: more than %d addresses",
				 KUBE_POD_IPS_MAX);
	pod->ips[pod->n_ips++] = ip;
	return 0;
}

static int read_ips(const json_t *status, struct kube_pod *pod, struct error *err)
{
	json_t *ips = NULL, *ip;
	char where[FIELD_MAX];
	size_t i;
	int r = add_ip(status, "podIP", "status.", pod, err);

	if (r == 0)
		r = json_get_array(status, "podIPs", "status.", &ips, err);
	if (r < 0)
		return r;
	json_array_foreach (ips, i, ip) {
		r = add_ip(ip, "ip", where_of("status.podIPs", i, where), pod, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The id that cgroups are named by, or NULL: none, or of a form that no runtime gives. */
static const char *container_id(const char *text)
{
	static const char characters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					 "0123456789-_.";
	const char *id = strstr(text, "://");
	size_t n;

	if (!id)
		return NULL;
	id += strlen("://");
	n = strlen(id);
	return n > 0 && n <= KUBE_CONTAINER_ID_MAX && strspn(id, characters) == n ? id : NULL;
}

static int add_container(const char *text, bool running, bool proxy, struct kube_pod *pod,
			 struct error *err)
{
	const char *id = container_id(text);
	struct kube_container *grown;

	if (!id || pod->n_containers == KUBE_CONTAINERS_MAX)
		return 0;
	grown = reallocarray(pod->containers, pod->n_containers + 1, sizeof(*grown));
	if (!grown)
		return no_memory(err);
	pod->containers = grown;
	grown += pod->n_containers;
	*grown = (struct kube_container){.id = strdup(id), .running = running, .proxy = proxy};
	if (!grown->id)
		return no_memory(err);
	pod->n_containers++;
	return 0;
}

/* state: {"terminated":{...}} or another state, or NULL. */
static int read_termination(const json_t *state, const char *where, struct kube_termination *ret,
			    bool *ret_completed, struct error *err)
{
	const char *reason = "", *message = "";
	json_t *terminated = NULL;
	json_int_t code = 0;
	int r = json_get_object(state, "terminated", where, &terminated, err);

	if (r < 0 || !terminated)
		return r;
	r = json_get_integer(terminated, "exitCode", where, INT32_MIN, INT32_MAX, &code, err);
	if (r == 0)
		r = json_get_string(terminated, "reason", where, &reason, err);
	if (r == 0)
		r = json_get_string(terminated, "message", where, &message, err);
	if (r < 0)
		return r;
	ret->message = strndup(message, KUBE_MESSAGE_MAX);
	if (!ret->message)
		return no_memory(err);
	ret->known = true;
	ret->exit_code = (int32_t)code;
	*ret_completed = code == 0 || strcmp(reason, "Completed") == 0;
	return 0;
}

static void termination_done(struct kube_termination *termination)
{
	free(termination->message);
	*termination = (struct kube_termination){0};
}

static void validation_done(struct kube_validation *validation)
{
	termination_done(&validation->current);
	termination_done(&validation->last);
}

static int read_validation(const json_t *state, const json_t *last, bool running, const char *where,
			   struct kube_validation *ret, struct error *err)
{
	struct kube_validation v = {.state = running ? KUBE_VALIDATION_RUNNING
						     : KUBE_VALIDATION_WAITING};
	bool completed = false, unused;
	int r = read_termination(state, where, &v.current, &completed, err);

	if (v.current.known)
		v.state = completed ? KUBE_VALIDATION_PASSED : KUBE_VALIDATION_FAILED;
	if (r == 0)
		r = read_termination(last, where, &v.last, &unused, err);
	if (r < 0) {
		validation_done(&v);
		return r;
	}
	/* Two of one name: the API server allows none. */
	validation_done(ret);
	*ret = v;
	return 0;
}

static int read_container_status(const json_t *container, const char *where,
				 const struct kube_keep *keep, struct kube_pod *pod,
				 struct error *err)
{
	bool init = strncmp(where, "status.init", strlen("status.init")) == 0;
	json_t *state = NULL, *last = NULL, *running = NULL;
	const char *name = "", *id = "";
	int r = json_get_string(container, "name", where, &name, err);

	if (r == 0)
		r = json_get_string(container, "containerID", where, &id, err);
	if (r == 0)
		r = json_get_object(container, "state", where, &state, err);
	if (r == 0)
		r = json_get_object(container, "lastState", where, &last, err);
	if (r == 0)
		r = json_get_object(state, "running", where, &running, err);
	if (r == 0 && init && strcmp(name, validation_name(keep)) == 0)
		r = read_validation(state, last, running, where, &pod->validation, err);
	if (r == 0)
		r = add_container(id, running, strcmp(name, PROXY) == 0, pod, err);
	return r;
}

static int read_container_statuses(const json_t *status, const char *name,
				   const struct kube_keep *keep, struct kube_pod *pod,
				   struct error *err)
{
	char list[FIELD_MAX], item[FIELD_MAX];
	json_t *containers = NULL, *container;
	size_t i;
	int r = json_get_array(status, name, "status.", &containers, err);

	if (r < 0)
		return r;
	path(list, "status.%s", name);
	json_array_foreach (containers, i, container) {
		where_of(list, i, item);
		r = read_container_status(container, item, keep, pod, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_status(const json_t *status, const struct kube_keep *keep, struct kube_pod *pod,
		       struct error *err)
{
	int r = read_phase(status, &pod->phase, err);

	if (r == 0)
		r = read_ips(status, pod, err);
	if (r == 0)
		r = read_container_statuses(status, "initContainerStatuses", keep, pod, err);
	if (r == 0)
		r = read_container_statuses(status, "containerStatuses", keep, pod, err);
	if (r == 0)
		r = read_container_statuses(status, "ephemeralContainerStatuses", keep, pod, err);
	return r;
}

/* ---- objects ------------------------------------------------------------------------------- */

static int read_pod(const json_t *object, const json_t *metadata, const struct kube_keep *keep,
		    struct kube_pod *pod, struct error *err)
{
	json_t *spec = NULL, *status = NULL;
	int r = read_metadata(metadata, keep, pod, err);

	if (r == 0)
		r = json_get_object(object, "spec", "", &spec, err);
	if (r == 0 && !spec)
		r = error_set(err, EINVAL, "spec is missing");
	if (r == 0)
		r = json_get_object(object, "status", "", &status, err);
	if (r == 0)
		r = read_spec(spec, keep, pod, err);
	if (r == 0)
		r = read_status(status, keep, pod, err);
	return r < 0 ? error_wrap(err, "pod %s/%s", pod->ns, pod->name) : 0;
}

/* NULL without memory. */
static struct kube_pod *pod_new(const char *ns, const char *name)
{
	struct kube_pod *pod = calloc(1, sizeof(*pod));

	if (!pod)
		return NULL;
	pod->ns = strdup(ns);
	pod->name = strdup(name);
	pod->labels = json_object();
	pod->annotations = json_object();
	if (pod->ns && pod->name && pod->labels && pod->annotations)
		return pod;
	kube_pod_free(pod);
	return NULL;
}

int kube_pod_read(const json_t *object, const struct kube_keep *keep, struct kube_pod **ret,
		  struct error *err)
{
	struct kube_pod *pod;
	const char *ns = "", *name = "";
	json_t *metadata = NULL;
	int r = get_metadata(object, "Pod", &metadata, err);

	if (r == 0)
		r = kube_object_name(object, &ns, &name, err);
	if (r < 0)
		return error_wrap(err, "a pod");
	if (!*ns)
		return error_set(err, EINVAL, "pod %s: metadata.namespace is missing", name);
	pod = pod_new(ns, name);
	if (!pod)
		return no_memory(err);
	r = read_pod(object, metadata, keep, pod, err);
	if (r < 0) {
		kube_pod_free(pod);
		return r;
	}
	*ret = pod;
	return 0;
}

void kube_pod_free(struct kube_pod *pod)
{
	if (!pod)
		return;
	for (size_t i = 0; i < pod->n_containers; i++)
		free(pod->containers[i].id);
	free(pod->containers);
	validation_done(&pod->validation);
	json_decref(pod->labels);
	json_decref(pod->annotations);
	free(pod->redirection);
	free(pod->status);
	free(pod->ns);
	free(pod->name);
	free(pod->uid);
	free(pod->local_uid);
	free(pod->resource_version);
	free(pod->node);
	free(pod->service_account);
	free(pod);
}

bool kube_pod_ended(const struct kube_pod *pod)
{
	return pod->phase == KUBE_PHASE_SUCCEEDED || pod->phase == KUBE_PHASE_FAILED;
}

bool kube_pod_is(const struct kube_pod *pod, const char *uid)
{
	return strcmp(pod->uid, uid) == 0 || (pod->local_uid && strcmp(pod->local_uid, uid) == 0);
}

int kube_namespace_read(const json_t *object, const struct kube_selectors *selectors,
			struct kube_namespace **ret, struct error *err)
{
	struct kube_namespace *ns;
	json_t *metadata = NULL, *labels = NULL;
	const char *outer = "", *name = "";
	bool deleting = false;
	int r = get_metadata(object, "Namespace", &metadata, err);

	if (r == 0)
		r = kube_object_name(object, &outer, &name, err);
	if (r < 0)
		return error_wrap(err, "a namespace");
	if (strlen(name) > KUBE_NAMESPACE_NAME_MAX)
		return error_set(err, EINVAL, "namespace %.64s...: metadata.name is too long",
				 name);
	r = get_string_map(metadata, "labels", &labels, err);
	if (r == 0)
		r = read_deleting(metadata, &deleting, err);
	if (r < 0)
		return error_wrap(err, "namespace %s", name);
	ns = malloc(sizeof(*ns) + strlen(name) + 1);
	if (!ns)
		return error_set(err, ENOMEM, "allocate a namespace");
	ns->selected = kube_selectors_namespace(selectors, labels);
	ns->discovered = kube_selectors_discover(selectors, labels);
	ns->deleting = deleting;
	ns->listed = false;
	memcpy(ns->name, name, strlen(name) + 1);
	*ret = ns;
	return 0;
}

/* ---- differences --------------------------------------------------------------------------- */

static bool same_proxy(const struct kube_proxy *a, const struct kube_proxy *b)
{
	return a->present == b->present && a->native == b->native &&
	       a->other_type == b->other_type && a->run_as_user == b->run_as_user &&
	       a->run_as_group == b->run_as_group && a->disable_envoy == b->disable_envoy &&
	       a->dns_capture == b->dns_capture && a->dual_stack == b->dual_stack &&
	       a->invalid_drop == b->invalid_drop;
}

static bool same_membership(const struct kube_pod *a, const struct kube_pod *b)
{
	return json_equal(a->labels, b->labels) && json_equal(a->annotations, b->annotations) &&
	       a->host_network == b->host_network && a->host_users == b->host_users &&
	       a->restart == b->restart && a->istio_init == b->istio_init &&
	       same_proxy(&a->proxy, &b->proxy) && same_text(a->node, b->node) &&
	       same_text(a->service_account, b->service_account) &&
	       same_text(a->local_uid, b->local_uid);
}

static bool same_addresses(const struct kube_pod *a, const struct kube_pod *b)
{
	if (a->n_ips != b->n_ips)
		return false;
	for (size_t i = 0; i < a->n_ips; i++)
		if (!ip_address_equal(&a->ips[i], &b->ips[i]))
			return false;
	return true;
}

static bool same_containers(const struct kube_pod *a, const struct kube_pod *b)
{
	if (a->n_containers != b->n_containers)
		return false;
	for (size_t i = 0; i < a->n_containers; i++)
		if (strcmp(a->containers[i].id, b->containers[i].id) != 0 ||
		    a->containers[i].running != b->containers[i].running ||
		    a->containers[i].proxy != b->containers[i].proxy)
			return false;
	return true;
}

static bool same_termination(const struct kube_termination *a, const struct kube_termination *b)
{
	return a->known == b->known && a->exit_code == b->exit_code &&
	       same_text(a->message, b->message);
}

static bool same_validation(const struct kube_validation *a, const struct kube_validation *b)
{
	return a->state == b->state && same_termination(&a->current, &b->current) &&
	       same_termination(&a->last, &b->last);
}

uint32_t kube_pod_diff(const struct kube_pod *was, const struct kube_pod *now)
{
	uint32_t changed = 0;

	if (!same_membership(was, now))
		changed |= KUBE_CHANGED_MEMBERSHIP;
	if (!same_addresses(was, now))
		changed |= KUBE_CHANGED_ADDRESSES;
	if (was->phase != now->phase || was->deleting != now->deleting)
		changed |= KUBE_CHANGED_PHASE;
	if (!same_containers(was, now))
		changed |= KUBE_CHANGED_CONTAINERS;
	if (!same_validation(&was->validation, &now->validation))
		changed |= KUBE_CHANGED_VALIDATION;
	if (!same_text(was->redirection, now->redirection) || !same_text(was->status, now->status))
		changed |= KUBE_CHANGED_STATUS;
	return changed;
}
