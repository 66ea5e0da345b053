/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_conf.h"

#include "error.h"
#include "json.h"

#include <errno.h>
#include <string.h>

enum {
	TIMEOUT_DEFAULT_MS = 10 * 1000,
	TIMEOUT_MAX_MS = 10 * 60 * 1000,
	FOUND_MAX = 64, /* bytes of a bad value that an error message shows */
};

static const char run_dir_default[] = "/run/sockmesh";
static const char annotations_capability[] = "io.kubernetes.cri.pod-annotations";

int cni_conf_load(const char *text, size_t size, struct cni_conf *ret, struct error *err)
{
	struct cni_conf conf = {
		.chained = true,
		.on_agent_down = ON_AGENT_DOWN_DENY,
		.log_level = LOG_WARN,
		.timeout_ms = TIMEOUT_DEFAULT_MS,
		.run_dir = run_dir_default,
	};
	const char *version = "0.1.0";
	scoped_json json_t *root = NULL;
	int rc;

	/* No JSON text holds one (RFC 8259), but jansson 2.14 reads past one behind a number. */
	if (memchr(text, '\0', size))
		return error_set(err, EBADMSG, "network configuration: holds a NUL byte");
	if (json_parse(text, size, "network configuration", &root, err) < 0) {
		err->code = EBADMSG;
		return -EBADMSG;
	}
	if (!json_is_object(root))
		return error_set(err, EBADMSG, "network configuration: not a JSON object");
	rc = json_get_string(root, "cniVersion", "", &version, err);
	if (rc == 0)
		rc = cni_version_parse(version, &conf.version, err);
	if (rc < 0)
		return rc;
	conf.root = json_incref(root);
	*ret = conf;
	return 0;
}

void cni_conf_done(struct cni_conf *conf)
{
	if (!conf)
		return;
	json_decref(conf->root);
	*conf = (struct cni_conf){0};
}

/* The network's name: required, and an identifier as the specification writes it. */
static int read_name(struct cni_conf *conf, struct error *err)
{
	static const char first[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
	static const char rest[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
	int rc = json_get_string(conf->root, "name", "", &conf->name, err);

	if (rc < 0)
		return rc;
	if (!conf->name || !*conf->name)
		return error_set(err, EINVAL, "name, the network's, is missing");
	if (!strchr(first, conf->name[0]) || conf->name[strspn(conf->name, rest)])
		return error_set(err, EINVAL, "name \"%.*s\" is not a network name", FOUND_MAX,
				 conf->name);
	return 0;
}

/* A member that is an object, where an explicit null counts as present and empty. */
static int read_nullable(const json_t *obj, const char *name, const char *where, bool want_array,
			 bool *ret_present, json_t **ret, struct error *err)
{
	json_t *value = json_object_get(obj, name);

	if (!value)
		return 0;
	*ret_present = true;
	return want_array ? json_get_array(obj, name, where, ret, err)
			  : json_get_object(obj, name, where, ret, err);
}

static int read_runtime_config(struct cni_conf *conf, struct error *err)
{
	static const char where[] = "runtimeConfig.";
	json_t *rc_obj = NULL;
	int rc;

	rc = json_get_object(conf->root, "runtimeConfig", "", &rc_obj, err);
	if (rc < 0 || !rc_obj)
		return rc;
	rc = json_get_string(rc_obj, "cgroupPath", where, &conf->cgroup_path, err);
	if (rc < 0)
		return rc;
	/* containerd sends null for a pod without annotations: known, and none. */
	rc = read_nullable(rc_obj, annotations_capability, where, false, &conf->annotations_known,
			   &conf->annotations, err);
	if (rc < 0 || !conf->annotations)
		return rc;
	return json_check_string_map(conf->annotations,
				     "runtimeConfig.io.kubernetes.cri.pod-annotations", err);
}

/*
 * libcni also sends the list under the name that an early text of the specification had, so a
 * runtime may have only that one. A Go slice that is empty arrives as null.
 */
static int read_attachments(struct cni_conf *conf, struct error *err)
{
	static const char *const keys[] = {"cni.dev/valid-attachments", "cni.dev/attachments"};

	for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
		int rc = read_nullable(conf->root, keys[i], "", true, &conf->has_attachments,
				       &conf->attachments, err);

		if (rc < 0 || conf->has_attachments)
			return rc;
	}
	return 0;
}

static int read_string_list(const json_t *root, const char *name, json_t **ret, struct error *err)
{
	json_t *list = NULL, *item;
	size_t i;
	int rc = json_get_array(root, name, "", &list, err);

	if (rc < 0 || !list)
		return rc;
	json_array_foreach (list, i, item) {
		char found[FOUND_MAX];

		if (!json_is_string(item))
			return error_set(err, EINVAL, "%s[%zu] is %s, not a string", name, i,
					 json_describe(item, found, sizeof(found)));
	}
	*ret = list;
	return 0;
}

static int read_own_pods(struct cni_conf *conf, struct error *err)
{
	json_t *item;
	size_t i;
	int rc = read_string_list(conf->root, "ownPods", &conf->own_pods, err);

	if (rc < 0)
		return rc;
	json_array_foreach (conf->own_pods, i, item) {
		const char *text = json_string_value(item);
		const char *slash = strchr(text, '/');

		/* An empty prefix would exempt a whole namespace: excludeNamespaces says that. */
		if (!slash || slash == text || !slash[1] || strchr(slash + 1, '/'))
			return error_set(err, EINVAL,
					 "ownPods[%zu] is \"%.*s\", not NAMESPACE/NAME-PREFIX", i,
					 FOUND_MAX, text);
	}
	return 0;
}

static int read_choices(struct cni_conf *conf, struct error *err)
{
	const char *on_agent_down = "deny", *log_level = NULL;
	int rc;

	rc = json_get_string(conf->root, "onAgentDown", "", &on_agent_down, err);
	if (rc < 0)
		return rc;
	if (strcmp(on_agent_down, "deny") == 0)
		conf->on_agent_down = ON_AGENT_DOWN_DENY;
	else if (strcmp(on_agent_down, "allow") == 0)
		conf->on_agent_down = ON_AGENT_DOWN_ALLOW;
	else
		return error_set(err, EINVAL, "onAgentDown is \"%.*s\", not deny or allow",
				 FOUND_MAX, on_agent_down);
	rc = json_get_string(conf->root, "logLevel", "", &log_level, err);
	if (rc < 0 || !log_level)
		return rc;
	rc = log_level_parse(log_level, &conf->log_level, err);
	return rc < 0 ? error_wrap(err, "logLevel") : 0;
}

static int read_agent_settings(struct cni_conf *conf, struct error *err)
{
	json_int_t timeout_ms = conf->timeout_ms;
	int rc;

	rc = json_get_integer(conf->root, "timeoutMs", "", 1, TIMEOUT_MAX_MS, &timeout_ms, err);
	if (rc == 0)
		rc = json_get_string(conf->root, "runDir", "", &conf->run_dir, err);
	if (rc < 0)
		return rc;
	if (conf->run_dir[0] != '/' || strlen(conf->run_dir) > CNI_RUN_DIR_MAX)
		return error_set(err, EINVAL,
				 "runDir is \"%.*s\", not an absolute path of at most %d bytes",
				 FOUND_MAX, conf->run_dir, CNI_RUN_DIR_MAX);
	conf->timeout_ms = (int)timeout_ms;
	return 0;
}

static int read_flags(struct cni_conf *conf, struct error *err)
{
	int rc = json_get_bool(conf->root, "chained", "", &conf->chained, err);

	return rc < 0 ? rc
		      : json_get_bool(conf->root, "ambientEnabled", "", &conf->ambient_enabled,
				      err);
}

static int read_exclude_namespaces(struct cni_conf *conf, struct error *err)
{
	return read_string_list(conf->root, "excludeNamespaces", &conf->exclude_namespaces, err);
}

static int read_prev_result(struct cni_conf *conf, struct error *err)
{
	return json_get_object(conf->root, "prevResult", "", &conf->prev_result, err);
}

int cni_conf_read(struct cni_conf *conf, struct error *err)
{
	static int (*const steps[])(struct cni_conf *, struct error *) = {
		read_name,	     read_choices,     read_agent_settings,
		read_flags,	     read_own_pods,    read_exclude_namespaces,
		read_runtime_config, read_prev_result, read_attachments,
	};
	struct cni_conf read = *conf;

	for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		int rc = steps[i](&read, err);

		if (rc < 0)
			return rc;
	}
	*conf = read;
	return 0;
}
