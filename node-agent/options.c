/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include "error.h"
#include "ip_address.h"
#include "json.h"
#include "metrics_server.h"
#include "scoped.h"
#include "write_file.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

enum {
	CONFIG_FILE_MAX = 1024 * 1024,
	OPTION_TEXT_MAX = 64 * 1024,
	ENV_NAME_MAX = 64,
	NUMBER_DIGITS_MAX = 15,
	LABEL_NAME_MAX = 63, /* of Kubernetes, as for its values */
	LABEL_PREFIX_MAX = 254,
};

#define ENV_PREFIX "SOCKMESH_"

enum option_type {
	TYPE_TEXT,
	TYPE_DIRECTORY, /* an absolute path */
	TYPE_FILE,	/* an absolute path, or empty for none */
	TYPE_CHOICE,
	TYPE_YES_NO,
	TYPE_NUMBER,
	TYPE_LIST,     /* of names, comma-separated; an array in the file */
	TYPE_CIDR4,    /* ADDR/LEN of IPv4 */
	TYPE_ENDPOINT, /* HOST:PORT, or empty for none */
};

struct option_spec {
	const char *name;
	enum option_type type;
	const char *initial; /* the default; "" for none */
	const char *argument;
	const char *choices; /* TYPE_CHOICE: "a|b|c" */
	unsigned long long min, max;
	const char *help;
	const char *no_effect; /* why giving it changes nothing yet; NULL: it works */
	const char *refused;   /* values, "|a|b|", that are refused as not built yet */
};

/* In the order of enum option_id, which is the order of --help and --dump-config. */
static const struct option_spec specs[OPTION_COUNT_] = {
	[OPTION_MODE] = {.name = "mode",
			 .type = TYPE_CHOICE,
			 .initial = "auto",
			 .choices = "auto|ebpf|nftables|iptables",
			 .help = "redirect engine; auto takes the best that this node can run, and "
				 "for a pod that it cannot serve the next one"},
	[OPTION_IPTABLES] = {.name = "iptables",
			     .type = TYPE_CHOICE,
			     .initial = "auto",
			     .choices = "auto|legacy|nft",
			     .help = "which iptables the iptables engine runs; auto: the one that "
				     "has rules, else nft, else the plain name"},
	[OPTION_ACCELERATE] = {.name = "accelerate",
			       .type = TYPE_CHOICE,
			       .initial = "auto",
			       .choices = "off|proxy|auto|full-advised|full",
			       .help = "shorten the path between two sockets of this node: hops "
				       "between proxies (proxy), also between applications and "
				       "their proxies (full); auto: proxy where this kernel does "
				       "it right, full for pods that ask"},
	[OPTION_ACCELERATE_LEARNING] = {.name = "accelerate-learning",
					.type = TYPE_YES_NO,
					.initial = "yes",
					.help = "leave connections alone for which the short way "
						"has not paid"},
	[OPTION_ACCELERATE_MAX_SOCKETS] = {.name = "accelerate-max-sockets",
					   .type = TYPE_NUMBER,
					   .initial = "32768",
					   .argument = "N",
					   .min = 2,
					   .max = 1048576,
					   .help = "sockets that may go the short way at once; "
						   "further ones go by TCP"},
	[OPTION_ACCELERATE_MAX_SOCKETS_PER_POD] = {.name = "accelerate-max-sockets-per-pod",
						   .type = TYPE_NUMBER,
						   .initial = "4096",
						   .argument = "N",
						   .min = 2,
						   .max = 1048576,
						   .help = "the same, of one pod"},
	[OPTION_ACCELERATE_MAX_BYTES] =
		{.name = "accelerate-max-bytes",
		 .type = TYPE_NUMBER,
		 .initial = "4194304",
		 .argument = "BYTES",
		 .min = 4096,
		 .max = 1073741824,
		 .help = "sent the short way and not read yet, in one "
			 "direction of one connection; then it goes by TCP"},
	[OPTION_ACCELERATE_MAX_MESSAGES] = {.name = "accelerate-max-messages",
					    .type = TYPE_NUMBER,
					    .initial = "1024",
					    .argument = "N",
					    .min = 1,
					    .max = 1048576,
					    .help = "the same, counted in sends"},
	[OPTION_ACCELERATE_BUDGET] = {.name = "accelerate-budget",
				      .type = TYPE_NUMBER,
				      .initial = "268435456",
				      .argument = "BYTES",
				      .min = 0,
				      .max = 1099511627776,
				      .help = "kernel memory of the node for what is not read yet, "
					      "beyond a small allowance for each connection"},
	[OPTION_ACCELERATE_POD_BUDGET] = {.name = "accelerate-pod-budget",
					  .type = TYPE_NUMBER,
					  .initial = "67108864",
					  .argument = "BYTES",
					  .min = 0,
					  .max = 1099511627776,
					  .help = "the same, of one pod"},
	[OPTION_ACCELERATE_IGNORE_KNOWN_BUGS] =
		{.name = "accelerate-ignore-known-bugs",
		 .type = TYPE_YES_NO,
		 .initial = "no",
		 .help = "accelerate also on a kernel release that is known to have a "
			 "memory-safety bug there: for one that has the fix all the same"},
	[OPTION_MESH] = {.name = "mesh",
			 .type = TYPE_CHOICE,
			 .initial = "istio",
			 .choices = "istio|linkerd|kuma|osm|custom",
			 .help = "whose proxy: its ports and its user id"},
	[OPTION_OUTBOUND_PORT] = {.name = "outbound-port",
				  .type = TYPE_NUMBER,
				  .initial = "",
				  .argument = "PORT",
				  .min = 1,
				  .max = 65535,
				  .help = "with --mesh custom: the proxy's outbound listener"},
	[OPTION_INBOUND_PORT] = {.name = "inbound-port",
				 .type = TYPE_NUMBER,
				 .initial = "",
				 .argument = "PORT",
				 .min = 1,
				 .max = 65535,
				 .help = "with --mesh custom: the proxy's inbound listener"},
	[OPTION_DNS_PORT] =
		{.name = "dns-port",
		 .type = TYPE_NUMBER,
		 .initial = "",
		 .argument = "PORT",
		 .min = 0,
		 .max = 65535,
		 .help = "with --mesh custom: the proxy's DNS listener; 0: it has none"},
	[OPTION_PROXY_UID] = {.name = "proxy-uid",
			      .type = TYPE_NUMBER,
			      .initial = "",
			      .argument = "UID",
			      .min = 1,
			      .max = 4294967294,
			      .help = "with --mesh custom: the user id that the proxy runs as"},
	[OPTION_PROXY_GID] = {.name = "proxy-gid",
			      .type = TYPE_NUMBER,
			      .initial = "",
			      .argument = "GID",
			      .min = 1,
			      .max = 4294967294,
			      .help = "with --mesh custom: its group id; --proxy-uid's number when "
				      "not given"},
	[OPTION_PROXY_IDENTITY] = {.name = "proxy-identity",
				   .type = TYPE_CHOICE,
				   .initial = "uid",
				   .choices = "uid|cgroup",
				   .refused = "|cgroup|",
				   .help = "how the proxy's own connections are told from the "
					   "application's"},
	[OPTION_CAPTURE_IPV6] = {.name = "capture-ipv6",
				 .type = TYPE_YES_NO,
				 .initial = "yes",
				 .help = "redirect IPv6 connections too"},
	[OPTION_LOOPBACK_CIDR] = {.name = "loopback-cidr",
				  .type = TYPE_CIDR4,
				  .initial = "127.0.0.1/32",
				  .argument = "CIDR",
				  .help = "IPv4 destinations that count as loopback, which the "
					  "outbound rules leave alone"},
	[OPTION_DROP_INVALID] = {.name = "drop-invalid",
				 .type = TYPE_YES_NO,
				 .initial = "no",
				 .help = "drop packets that conntrack calls INVALID, in pods whose "
					 "engine uses it"},
	[OPTION_OWNER_GROUPS] = {.name = "owner-groups",
				 .type = TYPE_LIST,
				 .initial = "*",
				 .argument = "LIST",
				 .help = "capture only connections of these group ids; * is all"},
	[OPTION_OWNER_GROUPS_EXCLUDE] = {.name = "owner-groups-exclude",
					 .type = TYPE_LIST,
					 .initial = "",
					 .argument = "LIST",
					 .help = "do not capture connections of these group ids"},
	[OPTION_EXCLUDE_NAMESPACES] = {.name = "exclude-namespaces",
				       .type = TYPE_LIST,
				       .initial = "kube-system",
				       .argument = "LIST",
				       .help = "namespaces whose pods are never redirected"},
	[OPTION_OWN_PODS] =
		{.name = "own-pods",
		 .type = TYPE_LIST,
		 .initial = "",
		 .argument = "LIST",
		 .help = "NAMESPACE/NAME-PREFIX of pods that are never redirected: ours "
			 "and the node proxy's"},
	[OPTION_RUN_DIR] = {.name = "run-dir",
			    .type = TYPE_DIRECTORY,
			    .initial = "/run/sockmesh",
			    .argument = "DIR",
			    .help = "agent.sock and the state file; made with mode 0700"},
	[OPTION_BPFFS_DIR] = {.name = "bpffs-dir",
			      .type = TYPE_DIRECTORY,
			      .initial = "/sys/fs/bpf/sockmesh",
			      .argument = "DIR",
			      .help = "pinned maps and links; bpffs is mounted when it must be"},
	[OPTION_CGROUP_ROOT] =
		{.name = "cgroup-root",
		 .type = TYPE_DIRECTORY,
		 .initial = "",
		 .argument = "DIR",
		 .help = "cgroup2 directory; programs attach to its kubepods[.slice], "
			 "else to itself; the first cgroup2 mount when not given"},
	[OPTION_MAX_PODS] = {.name = "max-pods",
			     .type = TYPE_NUMBER,
			     .initial = "1024",
			     .argument = "N",
			     .min = 1,
			     .max = 65536,
			     .help = "pods redirected at once"},
	[OPTION_MAX_HANDOVERS] = {.name = "max-handovers",
				  .type = TYPE_NUMBER,
				  .initial = "120000",
				  .argument = "N",
				  .min = 1,
				  .max = 16777216,
				  .help = "connections of the node that wait for their proxy to "
					  "accept them; more are refused"},
	[OPTION_MAX_HANDOVERS_PER_POD] = {.name = "max-handovers-per-pod",
					  .type = TYPE_NUMBER,
					  .initial = "30000",
					  .argument = "N",
					  .min = 1,
					  .max = 16777216,
					  .help = "the same, of one pod"},
	[OPTION_MAX_RULE_ENTRIES] = {.name = "max-rule-entries",
				     .type = TYPE_NUMBER,
				     .initial = "131072",
				     .argument = "N",
				     .min = 1,
				     .max = 16777216,
				     .help = "ports and prefixes in all lists of all pods"},
	[OPTION_RECONCILE_SECONDS] =
		{
			.name = "reconcile-seconds",
			.type = TYPE_NUMBER,
			.initial = "30",
			.argument = "N",
			.min = 1,
			.max = 3600,
			.help = "how often every pod is compared with the kernel, and "
				"healed where they differ"},
	[OPTION_KUBERNETES] = {.name = "kubernetes",
			       .type = TYPE_CHOICE,
			       .initial = "auto",
			       .choices = "auto|off",
			       .help = "watch the API server; outside a cluster auto is off"},
	[OPTION_KUBECONFIG] = {.name = "kubeconfig",
			       .type = TYPE_FILE,
			       .initial = "",
			       .argument = "FILE",
			       .help = "how to reach the API server from outside a cluster"},
	[OPTION_NODE_NAME] = {.name = "node-name",
			      .type = TYPE_TEXT,
			      .initial = "",
			      .argument = "NAME",
			      .help = "this node's name in the API; the host name when not given"},
	[OPTION_ZTUNNEL] =
		{.name = "ztunnel",
		 .type = TYPE_CHOICE,
		 .initial = "inpod",
		 .choices = "inpod|node",
		 .help = "where the proxy of ambient pods is: its sockets in the pod, or "
			 "all of it in another network namespace of this node (eBPF "
			 "only)"},
	[OPTION_ZTUNNEL_ADDRESS] =
		{.name = "ztunnel-address",
		 .type = TYPE_LIST,
		 .initial = "",
		 .argument = "LIST",
		 .help = "with --ztunnel node: that proxy's address, one of each "
			 "family or of one"},
	[OPTION_ZTUNNEL_SOCKET] = {.name = "ztunnel-socket",
				   .type = TYPE_DIRECTORY,
				   .initial = "/var/run/ztunnel/ztunnel.sock",
				   .argument = "PATH",
				   .help = "where ztunnel connects"},
	[OPTION_AMBIENT_DNS_CAPTURE] = {.name = "ambient-dns-capture",
					.type = TYPE_YES_NO,
					.initial = "yes",
					.help = "send DNS of ambient pods to ztunnel"},
	[OPTION_WITHOUT_ZTUNNEL] = {.name = "without-ztunnel",
				    .type = TYPE_CHOICE,
				    .initial = "deny",
				    .choices = "deny|admit",
				    .help = "a new ambient pod while ztunnel is away"},
	[OPTION_ENROL_EXISTING] = {.name = "enrol-existing",
				   .type = TYPE_CHOICE,
				   .initial = "keep",
				   .choices = "keep|reset",
				   .help = "connections that a pod has when it is enrolled live"},
	[OPTION_ENABLEMENT_SELECTORS] = {.name = "enablement-selectors",
					 .type = TYPE_TEXT,
					 .initial = "",
					 .argument = "JSON",
					 .help = "which pods are ambient: a list of {podSelector, "
						 "namespaceSelector}; Istio's "
						 "labels when not given"},
	[OPTION_DISCOVERY_SELECTORS] = {.name = "discovery-selectors",
					.type = TYPE_TEXT,
					.initial = "",
					.argument = "JSON",
					.help = "which namespaces the mesh is about: a list of "
						"label selectors, as in Istio's "
						"meshConfig; all when not given"},
	[OPTION_REPAIR] = {.name = "repair",
			   .type = TYPE_CHOICE,
			   .initial = "redirect",
			   .choices = "redirect|delete|label|off",
			   .help = "a sidecar pod that has started without redirection"},
	[OPTION_REPAIR_CONTAINER] = {.name = "repair-container",
				     .type = TYPE_TEXT,
				     .initial = "istio-validation",
				     .argument = "NAME",
				     .help = "the init container that finds that out"},
	[OPTION_REPAIR_EXIT_CODE] = {.name = "repair-exit-code",
				     .type = TYPE_NUMBER,
				     .initial = "126",
				     .argument = "N",
				     .min = 0,
				     .max = 255,
				     .help = "with which it ends then; 0: any but success"},
	[OPTION_REPAIR_MESSAGE] = {.name = "repair-message",
				   .type = TYPE_TEXT,
				   .initial = "",
				   .argument = "TEXT",
				   .help = "and its termination message; any when not given"},
	[OPTION_REPAIR_LABEL] = {.name = "repair-label",
				 .type = TYPE_TEXT,
				 .initial = POD_REPAIR_LABEL,
				 .argument = "KEY=VALUE",
				 .help = "what --repair label writes on the pod"},
	[OPTION_SYSTEM_NAMESPACE] = {.name = "system-namespace",
				     .type = TYPE_TEXT,
				     .initial = "istio-system",
				     .argument = "NAME",
				     .help = "where ztunnel's own pods are, which are never "
					     "redirected"},
	[OPTION_KUBELET_CGROUP] = {.name = "kubelet-cgroup",
				   .type = TYPE_FILE,
				   .initial = "",
				   .argument = "DIR",
				   .help = "kubelet's cgroup, so that its probes reach ambient "
					   "pods; without it kubelet "
					   "is looked for"},
	[OPTION_INSTALL_CNI] = {.name = "install-cni",
				.type = TYPE_YES_NO,
				.initial = "no",
				.refused = "|yes|",
				.help = "install the plugin and its entry in the node's conflist"},
	[OPTION_CNI_CONF_DIR] = {.name = "cni-conf-dir",
				 .type = TYPE_DIRECTORY,
				 .initial = "/etc/cni/net.d",
				 .argument = "DIR",
				 .no_effect = "installing the plugin is not built yet",
				 .help = "where the node's conflist is"},
	[OPTION_CNI_BIN_DIR] = {.name = "cni-bin-dir",
				.type = TYPE_DIRECTORY,
				.initial = "/opt/cni/bin",
				.argument = "DIR",
				.no_effect = "installing the plugin is not built yet",
				.help = "where the node's plugins are"},
	[OPTION_METRICS_ADDRESS] = {.name = "metrics-address",
				    .type = TYPE_ENDPOINT,
				    .initial = "",
				    .argument = "HOST:PORT",
				    .help = "serve /metrics, /healthz and /readyz"},
	[OPTION_LOG_FORMAT] = {.name = "log-format",
			       .type = TYPE_CHOICE,
			       .initial = "text",
			       .choices = "text|json",
			       .help = "one line a message, or one JSON object"},
	[OPTION_LOG_LEVEL] = {.name = "log-level",
			      .type = TYPE_CHOICE,
			      .initial = "info",
			      .choices = "error|warn|info|debug",
			      .help = "the least important level that is logged"},
};

/* Flags that are no settings: they have no file key, and no environment variable but config's. */
static const struct {
	const char *name;
	enum options_action action;
	const char *help;
} actions[] = {
	{"help", ACTION_HELP, "print this and exit"},
	{"version", ACTION_VERSION, "print the version and exit"},
	{"dump-config", ACTION_DUMP, "print every value with its source and exit"},
	{"uninstall", ACTION_UNINSTALL,
	 "remove everything that agents with these directories left on this node, and exit"},
};
enum { N_ACTIONS = sizeof(actions) / sizeof(actions[0]) };

static const char *environment_name(const char *option, char buf[static ENV_NAME_MAX])
{
	size_t n = 0;

	for (const char *p = option; *p && n < ENV_NAME_MAX - sizeof(ENV_PREFIX) - 1; p++, n++)
		buf[sizeof(ENV_PREFIX) - 1 + n] =
			*p == '-' ? '_' : (char)toupper((unsigned char)*p);
	memcpy(buf, ENV_PREFIX, sizeof(ENV_PREFIX) - 1);
	buf[sizeof(ENV_PREFIX) - 1 + n] = '\0';
	return buf;
}

/* Where a value of this source stands, as errors and --dump-config say it. */
static const char *source_text(const struct options *options, enum option_id id, char *buf,
			       size_t size)
{
	char name[ENV_NAME_MAX];

	switch (options->source[id]) {
	case SOURCE_FLAG:
		snprintf(buf, size, "flag --%s", specs[id].name);
		break;
	case SOURCE_ENVIRONMENT:
		snprintf(buf, size, "environment %s", environment_name(specs[id].name, name));
		break;
	case SOURCE_FILE:
		snprintf(buf, size, "file %s, key %s", options->config_file ?: "-", specs[id].name);
		break;
	default:
		snprintf(buf, size, "default");
	}
	return buf;
}

static int value_error(const struct options *options, enum option_id id, const char *why,
		       struct error *err)
{
	char where[PATH_MAX + 64];

	return error_set(err, EINVAL, "%s: \"%.128s\": %s",
			 source_text(options, id, where, sizeof(where)), options->text[id], why);
}

/* Keeps the value of the higher source. Takes over text. */
static int set_value(struct options *options, enum option_id id, enum option_source source,
		     char *text, struct error *err)
{
	if (!text) {
		error_set(err, ENOMEM, "option %s", specs[id].name);
		return -ENOMEM;
	}
	if (options->text[id] && options->source[id] > source) {
		free(text);
		return 0;
	}
	free(options->text[id]);
	options->text[id] = text;
	options->source[id] = source; /* NOLINT(clang-analyzer-unix.Malloc): options owns text */
	return 0;
}

static int find_option(const char *name, size_t length)
{
	for (int id = 0; id < OPTION_COUNT_; id++)
		if (strlen(specs[id].name) == length && !strncmp(specs[id].name, name, length))
			return id;
	return -1;
}

/* ---- flags ---------------------------------------------------------------------------------- */

static int take_action(struct options *options, const char *flag, size_t length, bool *ret_taken,
		       struct error *err)
{
	for (size_t i = 0; i < N_ACTIONS; i++) {
		if (strlen(actions[i].name) != length ||
		    strncmp(actions[i].name, flag, length) != 0)
			continue;
		if (flag[length] == '=')
			return error_set(err, EINVAL, "--%s takes no value", actions[i].name);
		/* --help and --version answer whatever stands beside them. */
		if (options->action != ACTION_HELP && options->action != ACTION_VERSION)
			options->action = actions[i].action;
		*ret_taken = true;
		return 0;
	}
	*ret_taken = false;
	return 0;
}

static int take_flag(struct options *options, char *const *argv, int *i, struct error *err)
{
	const char *flag = argv[*i] + 2, *value;
	size_t length = strcspn(flag, "=");
	bool is_config = length == 6 && !strncmp(flag, "config", length);
	int id = find_option(flag, length);
	bool taken = false;
	int r = take_action(options, flag, length, &taken, err);

	if (r || taken)
		return r;
	if (id < 0 && !is_config)
		return error_set(err, EINVAL, "unknown option --%.*s", (int)length, flag);
	value = flag[length] == '=' ? flag + length + 1 : argv[*i + 1];
	if (!value)
		return error_set(err, EINVAL, "--%.*s needs a value", (int)length, flag);
	if (flag[length] != '=')
		(*i)++;
	if (!is_config)
		return set_value(options, (enum option_id)id, SOURCE_FLAG, strdup(value), err);
	free(options->config_file);
	options->config_file = strdup(value);
	options->config_source = SOURCE_FLAG;
	return options->config_file ? 0 : error_set(err, ENOMEM, "--config");
}

static int read_flags(struct options *options, int argc, char *const *argv, struct error *err)
{
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		struct error ignored;
		int r;

		if (!strcmp(argv[i], "-h")) {
			options->action = ACTION_HELP;
			continue;
		}
		if (strncmp(argv[i], "--", 2) != 0)
			r = error_set(failed ? &ignored : err, EINVAL, "unexpected argument \"%s\"",
				      argv[i]);
		else
			r = take_flag(options, argv, &i, failed ? &ignored : err);
		if (r && !failed)
			failed = r; /* the first is reported; --help may still follow */
	}
	return failed;
}

/* ---- environment ---------------------------------------------------------------------------- */

/* An empty variable counts as not set: that is how a pod template leaves one out. */
static const char *find_variable(char *const *environment, const char *name)
{
	size_t length = strlen(name);

	for (; environment && *environment; environment++)
		if (!strncmp(*environment, name, length) && (*environment)[length] == '=' &&
		    (*environment)[length + 1])
			return *environment + length + 1;
	return NULL;
}

static int read_environment(struct options *options, char *const *environment, struct error *err)
{
	char name[ENV_NAME_MAX];
	const char *value;

	for (int id = 0; id < OPTION_COUNT_; id++) {
		int r;

		value = find_variable(environment, environment_name(specs[id].name, name));
		if (!value)
			continue;
		r = set_value(options, (enum option_id)id, SOURCE_ENVIRONMENT, strdup(value), err);
		if (r)
			return r;
	}
	value = find_variable(environment, ENV_PREFIX "CONFIG");
	if (value && !options->config_file) {
		options->config_file = strdup(value);
		options->config_source = SOURCE_ENVIRONMENT;
		if (!options->config_file)
			return error_set(err, ENOMEM, "%s", ENV_PREFIX "CONFIG");
	}
	return 0;
}

/* ---- file ----------------------------------------------------------------------------------- */

/* Elements joined by commas, so none may hold one. */
static char *list_text(const json_t *array, const char *where, struct error *err)
{
	size_t used = 0, size = 1;
	char *text, shown[64];
	json_t *element;
	size_t i;

	json_array_foreach ((json_t *)array, i, element) {
		if (!json_is_string(element) || !*json_string_value(element) ||
		    strchr(json_string_value(element), ',') ||
		    strlen(json_string_value(element)) != json_string_length(element)) {
			error_set(err, EINVAL, "%s[%zu]: %s is not a name", where, i,
				  json_describe(element, shown, sizeof(shown)));
			return NULL;
		}
		size += json_string_length(element) + 1;
	}
	text = malloc(size);
	if (!text) {
		error_set(err, ENOMEM, "%s", where);
		return NULL;
	}
	json_array_foreach ((json_t *)array, i, element)
		used += (size_t)snprintf(text + used, size - used, "%s%s", i ? "," : "",
					 json_string_value(element));
	text[used] = '\0';
	return text;
}

static const char *type_in_file(enum option_type type)
{
	switch (type) {
	case TYPE_YES_NO:
		return "true or false";
	case TYPE_NUMBER:
		return "a whole number";
	case TYPE_LIST:
		return "an array of strings";
	default:
		return "a string";
	}
}

static char *file_value_text(enum option_id id, const json_t *value, const char *what,
			     struct error *err)
{
	char where[PATH_MAX + 64], shown[64], *text = NULL;

	snprintf(where, sizeof(where), "%s: %s", what, specs[id].name);
	switch (specs[id].type) {
	case TYPE_YES_NO:
		if (json_is_boolean(value))
			return strdup(json_is_true(value) ? "yes" : "no");
		break;
	case TYPE_NUMBER:
		if (!json_is_integer(value))
			break;
		if (asprintf(&text, "%lld", (long long)json_integer_value(value)) < 0)
			error_set(err, ENOMEM, "%s", where);
		return text;
	case TYPE_LIST:
		if (json_is_array(value))
			return list_text(value, where, err);
		break;
	default:
		if (json_is_string(value) &&
		    strlen(json_string_value(value)) == json_string_length(value))
			return strdup(json_string_value(value));
	}
	error_set(err, EINVAL, "%s must be %s, not %s", where, type_in_file(specs[id].type),
		  json_describe(value, shown, sizeof(shown)));
	return NULL;
}

int options_read_file_text(struct options *options, const char *text, size_t size, const char *what,
			   struct error *err)
{
	scoped_json json_t *root = NULL;
	const char *key;
	json_t *value;
	int r = json_parse(text, size, what, &root, err);

	if (r)
		return r;
	if (!json_is_object(root))
		return error_set(err, EINVAL, "%s: not a JSON object", what);
	json_object_foreach (root, key, value) {
		int id = find_option(key, strlen(key));
		char *converted;

		if (id < 0)
			return error_set(err, EINVAL, "%s: unknown key \"%.64s\"", what, key);
		err->code = ENOMEM;
		snprintf(err->text, sizeof(err->text), "%s: %s", what, key);
		converted = file_value_text((enum option_id)id, value, what, err);
		if (!converted)
			return -err->code;
		r = set_value(options, (enum option_id)id, SOURCE_FILE, converted, err);
		if (r)
			return r;
	}
	return 0;
}

static int read_config_file(struct options *options, struct error *err)
{
	scoped_free char *text = NULL;
	size_t size;
	int r;

	if (!options->config_file)
		return 0;
	r = read_file(options->config_file, CONFIG_FILE_MAX, &text, &size, err);
	if (r)
		return r;
	return options_read_file_text(options, text, size, options->config_file, err);
}

/* ---- values --------------------------------------------------------------------------------- */

static bool is_choice(const char *choices, const char *text)
{
	size_t length = strlen(text);

	for (const char *p = choices; *p;) {
		size_t n = strcspn(p, "|");

		if (n == length && !strncmp(p, text, n))
			return true;
		p += n + (p[n] == '|');
	}
	return false;
}

static int parse_number(const struct options *options, enum option_id id, unsigned long long *ret,
			struct error *err)
{
	const struct option_spec *spec = &specs[id];
	const char *text = options->text[id];
	unsigned long long value = 0;
	char why[96];

	snprintf(why, sizeof(why), "not a whole number from %llu to %llu", spec->min, spec->max);
	if (!*text || strlen(text) > NUMBER_DIGITS_MAX ||
	    strspn(text, "0123456789") != strlen(text))
		return value_error(options, id, why, err);
	for (const char *p = text; *p; p++)
		value = value * 10 + (unsigned)(*p - '0');
	if (value < spec->min || value > spec->max)
		return value_error(options, id, why, err);
	*ret = value;
	return 0;
}

static int check_path(const struct options *options, enum option_id id, struct error *err)
{
	const char *text = options->text[id];

	if (text[0] != '/')
		return value_error(options, id, "not an absolute path", err);
	if (strlen(text) >= PATH_MAX)
		return value_error(options, id, "longer than a path can be", err);
	return 0;
}

static int check_endpoint(const struct options *options, enum option_id id, struct error *err)
{
	struct metrics_address address;
	struct error inner = {0};

	if (metrics_address_parse(options->text[id], &address, &inner))
		return value_error(options, id, inner.text, err);
	if (!address.port)
		return value_error(options, id, "the port is not from 1 to 65535", err);
	return 0;
}

static int check_cidr4(const struct options *options, enum option_id id, struct error *err)
{
	struct ip_prefix prefix;
	struct error inner = {0};

	if (ip_prefix_parse(options->text[id], &prefix, &inner))
		return value_error(options, id, inner.text, err);
	if (!ip_address_is_v4(&prefix.address) || prefix.length < IP_V4_PREFIX_BITS)
		return value_error(options, id, "not an IPv4 prefix", err);
	return 0;
}

static int check_value(const struct options *options, enum option_id id, struct error *err)
{
	const struct option_spec *spec = &specs[id];
	const char *text = options->text[id];
	char part[64 + 2], why[256];
	unsigned long long number;

	if (strlen(text) > OPTION_TEXT_MAX)
		return value_error(options, id, "longer than 64 KiB", err);
	if (!*text && (!*spec->initial || spec->type == TYPE_LIST))
		return 0; /* empty: as if not given */
	snprintf(part, sizeof(part), "|%.63s|", text);
	if (spec->refused && strstr(spec->refused, part))
		return value_error(options, id, "not built yet", err);
	switch (spec->type) {
	case TYPE_CHOICE:
		snprintf(why, sizeof(why), "not one of %s", spec->choices);
		return is_choice(spec->choices, text) ? 0 : value_error(options, id, why, err);
	case TYPE_YES_NO:
		return is_choice("yes|no", text) ? 0
						 : value_error(options, id, "not yes or no", err);
	case TYPE_NUMBER:
		return parse_number(options, id, &number, err);
	case TYPE_DIRECTORY:
	case TYPE_FILE:
		return check_path(options, id, err);
	case TYPE_CIDR4:
		return check_cidr4(options, id, err);
	case TYPE_ENDPOINT:
		return check_endpoint(options, id, err);
	default:
		return 0;
	}
}

/* A number that check_value() has passed; `absent` for an empty one. */
static uint32_t number_of(const struct options *options, enum option_id id, uint32_t absent)
{
	const char *text = options->text[id];

	return *text ? (uint32_t)strtoul(text, NULL, 10) : absent;
}

static uint64_t number64_of(const struct options *options, enum option_id id)
{
	return strtoull(options->text[id], NULL, 10);
}

static bool is_set(const struct options *options, enum option_id id)
{
	return *options->text[id] != '\0';
}

/* Splits "a, b,c"; empty elements are an error. NULL-terminated; free the elements and it. */
static int split_list(const struct options *options, enum option_id id, char ***ret,
		      struct error *err)
{
	const char *text = options->text[id];
	size_t n = 1, used = 0;
	char **list;

	for (const char *p = text; *p; p++)
		n += *p == ',';
	list = calloc(n + 1, sizeof(*list));
	if (!list)
		return error_set(err, ENOMEM, "option %s", specs[id].name);
	*ret = list; /* options_done() frees it, half full too */
	while (*text) {
		size_t length = strcspn(text, ","), lead = strspn(text, " ");
		size_t trimmed = length;

		while (trimmed > lead && text[trimmed - 1] == ' ')
			trimmed--;
		if (lead >= trimmed || (text[length] == ',' && !text[length + 1]))
			return value_error(options, id, "an empty element", err);
		list[used] = strndup(text + lead, trimmed - lead);
		if (!list[used++])
			return error_set(err, ENOMEM, "option %s", specs[id].name);
		text += length + (text[length] == ',');
	}
	return 0;
}

static int resolve_lists(struct options *options, struct error *err)
{
	int r = split_list(options, OPTION_EXCLUDE_NAMESPACES, &options->exclude_namespaces, err);

	if (!r)
		r = split_list(options, OPTION_OWN_PODS, &options->own_pods, err);
	for (char **pod = options->own_pods; !r && *pod; pod++) {
		const char *slash = strchr(*pod, '/');

		if (!slash || slash == *pod || strchr(slash + 1, '/'))
			r = value_error(options, OPTION_OWN_PODS,
					"an element is not NAMESPACE/NAME-PREFIX", err);
	}
	options->policy.exclude_namespaces = (const char *const *)options->exclude_namespaces;
	options->policy.own_pods = (const char *const *)options->own_pods;
	return r;
}

static int resolve_custom_mesh(struct options *options, struct mesh_preset *mesh, struct error *err)
{
	static const enum option_id needed[] = {OPTION_OUTBOUND_PORT, OPTION_INBOUND_PORT,
						OPTION_PROXY_UID};

	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (!is_set(options, needed[i]))
			return error_set(err, EINVAL, "--mesh custom needs --%s",
					 specs[needed[i]].name);
	mesh->outbound_port = (uint16_t)number_of(options, OPTION_OUTBOUND_PORT, 0);
	mesh->inbound_port = (uint16_t)number_of(options, OPTION_INBOUND_PORT, 0);
	mesh->dns_port = (uint16_t)number_of(options, OPTION_DNS_PORT, 0);
	mesh->proxy_uid = number_of(options, OPTION_PROXY_UID, 0);
	mesh->proxy_gid = number_of(options, OPTION_PROXY_GID, mesh->proxy_uid);
	if (mesh->outbound_port == mesh->inbound_port)
		return value_error(options, OPTION_INBOUND_PORT, "the same as --outbound-port",
				   err);
	return 0;
}

/*
 * Envoy reads until there is nothing left. Linkerd's proxy takes a short read for the last, and
 * about a custom one nothing is known.
 */
static bool has_known_proxy(const char *mesh)
{
	return !strcmp(mesh, "istio") || !strcmp(mesh, "kuma") || !strcmp(mesh, "osm");
}

static int resolve_mesh(struct options *options, struct error *err)
{
	static const enum option_id custom_only[] = {OPTION_OUTBOUND_PORT, OPTION_INBOUND_PORT,
						     OPTION_DNS_PORT, OPTION_PROXY_UID,
						     OPTION_PROXY_GID};
	struct mesh_preset *mesh = &options->policy.mesh;

	for (int i = 0; i < MESH_COUNT_; i++)
		if (!strcmp(mesh_presets[i].name, options->text[OPTION_MESH]))
			*mesh = mesh_presets[i];
	options->accelerate.unknown_proxy = !has_known_proxy(options->text[OPTION_MESH]);
	if (!strcmp(options->text[OPTION_MESH], "custom"))
		return resolve_custom_mesh(options, mesh, err);
	for (size_t i = 0; i < sizeof(custom_only) / sizeof(custom_only[0]); i++)
		if (is_set(options, custom_only[i]))
			return value_error(options, custom_only[i], "only with --mesh custom", err);
	return 0;
}

static int resolve_directories(struct options *options, struct error *err)
{
	enum { SOCKET_PATH_MAX = sizeof(((struct sockaddr_un *)NULL)->sun_path) };

	options->run_dir = options->text[OPTION_RUN_DIR];
	if (strlen(options->run_dir) + sizeof("/agent.sock") > SOCKET_PATH_MAX)
		return value_error(options, OPTION_RUN_DIR,
				   "too long for a unix socket's path in it", err);
	options->redirect.bpffs_dir = options->text[OPTION_BPFFS_DIR];
	options->cgroup_root_given = is_set(options, OPTION_CGROUP_ROOT);
	options->redirect.cgroup_root =
		options->cgroup_root_given ? options->text[OPTION_CGROUP_ROOT] : NULL;
	return 0;
}

/* A choice that check_value() has passed. */
static enum redirect_mode mode_of(const char *text)
{
	if (!strcmp(text, "ebpf"))
		return REDIRECT_EBPF;
	if (!strcmp(text, "nftables"))
		return REDIRECT_NFTABLES;
	return !strcmp(text, "iptables") ? REDIRECT_IPTABLES : REDIRECT_AUTO;
}

static int resolve_redirect(struct options *options, struct error *err)
{
	struct redirect_config *redirect = &options->redirect;

	redirect->mode = mode_of(options->text[OPTION_MODE]);
	redirect->iptables = options->text[OPTION_IPTABLES];
	redirect->kubelet_cgroup = is_set(options, OPTION_KUBELET_CGROUP)
					   ? options->text[OPTION_KUBELET_CGROUP]
					   : NULL;
	redirect->max_pods = number_of(options, OPTION_MAX_PODS, 0);
	redirect->max_handovers = number_of(options, OPTION_MAX_HANDOVERS, 0);
	redirect->max_handovers_per_pod = number_of(options, OPTION_MAX_HANDOVERS_PER_POD, 0);
	redirect->max_rule_entries = number_of(options, OPTION_MAX_RULE_ENTRIES, 0);
	if (redirect->max_handovers_per_pod > redirect->max_handovers)
		return value_error(options, OPTION_MAX_HANDOVERS_PER_POD,
				   "more than --max-handovers", err);
	return 0;
}

/* A pod's share of a limit of the node. One that nobody has given follows a smaller limit. */
static int check_share(const struct options *options, enum option_id share, enum option_id limit,
		       uint64_t *value, struct error *err)
{
	uint64_t most = number64_of(options, limit);
	char reason[128];

	*value = number64_of(options, share);
	if (*value <= most)
		return 0;
	if (options->source[share] == SOURCE_DEFAULT) {
		*value = most;
		return 0;
	}
	snprintf(reason, sizeof(reason), "more than --%s %s", specs[limit].name,
		 options->text[limit]);
	return value_error(options, share, reason, err);
}

static int resolve_accelerate(struct options *options, struct error *err)
{
	struct accelerate_config *a = &options->accelerate;
	uint64_t share;
	int r;

	/* A choice that check_value() has passed. */
	accelerate_policy_parse(options->text[OPTION_ACCELERATE], &a->policy);
	a->learning = !strcmp(options->text[OPTION_ACCELERATE_LEARNING], "yes");
	a->ignore_known_bugs = !strcmp(options->text[OPTION_ACCELERATE_IGNORE_KNOWN_BUGS], "yes");
	a->max_sockets = number_of(options, OPTION_ACCELERATE_MAX_SOCKETS, 0);
	a->max_bytes = number_of(options, OPTION_ACCELERATE_MAX_BYTES, 0);
	a->max_messages = number_of(options, OPTION_ACCELERATE_MAX_MESSAGES, 0);
	a->budget = number64_of(options, OPTION_ACCELERATE_BUDGET);
	a->max_pods = options->redirect.max_pods;
	a->bpffs_dir = options->redirect.bpffs_dir;
	a->state_dir = options->run_dir;
	r = check_share(options, OPTION_ACCELERATE_MAX_SOCKETS_PER_POD,
			OPTION_ACCELERATE_MAX_SOCKETS, &share, err);
	if (r)
		return r;
	a->max_sockets_per_pod = (uint32_t)share;
	return check_share(options, OPTION_ACCELERATE_POD_BUDGET, OPTION_ACCELERATE_BUDGET,
			   &a->pod_budget, err);
}

static int resolve_node_name(struct options *options, struct error *err)
{
	char host[HOST_NAME_MAX + 1] = "";

	if (!is_set(options, OPTION_NODE_NAME) && gethostname(host, sizeof(host) - 1))
		return error_set(err, errno, "find this node's name");
	for (char *c = host; *c; c++) /* as kubelet does with the name of its host */
		*c = (char)tolower((unsigned char)*c);
	options->node_name = strdup(*host ? host : options->text[OPTION_NODE_NAME]);
	return options->node_name ? 0 : error_set(err, ENOMEM, "this node's name");
}

static int resolve_selectors(struct options *options, struct error *err)
{
	bool given = is_set(options, OPTION_ENABLEMENT_SELECTORS);
	int r = kube_enablement_read(given ? options->text[OPTION_ENABLEMENT_SELECTORS]
					   : kube_enablement_default,
				     "--enablement-selectors", &options->selectors, err);

	if (r || !is_set(options, OPTION_DISCOVERY_SELECTORS))
		return r;
	return kube_discovery_read(options->text[OPTION_DISCOVERY_SELECTORS],
				   "--discovery-selectors", &options->selectors, err);
}

/* As far as can be told without the API server, which would refuse each patch with a bad one. */
static int check_label(const struct options *options, struct error *err)
{
	static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789-_.";
	const char *text = options->text[OPTION_REPAIR_LABEL], *slash = strchr(text, '/');
	const char *name = slash ? slash + 1 : text;
	size_t prefix_size = (size_t)(name - text), name_size = strspn(name, good);
	const char *value = name + name_size + 1;

	if (slash != text && prefix_size <= LABEL_PREFIX_MAX && name_size > 0 &&
	    name_size <= LABEL_NAME_MAX && name[name_size] == '=' &&
	    strlen(value) <= LABEL_NAME_MAX && !value[strspn(value, good)])
		return 0;
	return value_error(options, OPTION_REPAIR_LABEL, "not a label, KEY=VALUE", err);
}

static int resolve_names(struct options *options, struct error *err)
{
	static const enum option_id ids[] = {OPTION_REPAIR_CONTAINER, OPTION_SYSTEM_NAMESPACE};

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
		if (!*options->text[ids[i]])
			return value_error(options, ids[i], "empty", err);
	options->policy.system_namespace = options->text[OPTION_SYSTEM_NAMESPACE];
	return check_label(options, err);
}

static int resolve_kubernetes(struct options *options, struct error *err)
{
	const char *repair = options->text[OPTION_REPAIR];
	int r = resolve_node_name(options, err);

	options->kubernetes_auto = !strcmp(options->text[OPTION_KUBERNETES], "auto");
	options->kubeconfig =
		is_set(options, OPTION_KUBECONFIG) ? options->text[OPTION_KUBECONFIG] : NULL;
	options->ztunnel_socket = options->text[OPTION_ZTUNNEL_SOCKET];
	options->ztunnel_socket_given = options->source[OPTION_ZTUNNEL_SOCKET] != SOURCE_DEFAULT;
	options->admit_without_ztunnel = !strcmp(options->text[OPTION_WITHOUT_ZTUNNEL], "admit");
	options->reset_existing = !strcmp(options->text[OPTION_ENROL_EXISTING], "reset");
	/* Which pods, as Istio's agent knows them. */
	options->repair = (struct kube_repair_config){
		.redirect = !strcmp(repair, "redirect"),
		.delete = !strcmp(repair, "delete"),
		.label = !strcmp(repair, "label"),
		.container = options->text[OPTION_REPAIR_CONTAINER],
		.exit_code = (int)number_of(options, OPTION_REPAIR_EXIT_CODE, 0),
		.message = options->text[OPTION_REPAIR_MESSAGE],
		.label_text = options->text[OPTION_REPAIR_LABEL]};
	if (!r)
		r = resolve_names(options, err);
	return r ? r : resolve_selectors(options, err);
}

/* What a pod's connections can be led to, and a proxy can be found at. */
static const char *not_a_proxy(const struct ip_address *a)
{
	bool v4 = ip_address_is_v4(a);

	if (ip_address_is_unspecified(a))
		return "the unspecified address";
	if (ip_address_is_loopback(a))
		return "a loopback address, which in a pod is the pod's own";
	if (ip_address_is_link_local(a))
		return "a link-local address, which is another one on every link";
	if (v4 ? (a->bytes[12] & 0xf0) == 0xe0 : a->bytes[0] == 0xff)
		return "a multicast address";
	if (v4 && ip_address_v4_be(a) == UINT32_MAX)
		return "the broadcast address";
	return NULL;
}

static int read_proxy_address(struct options *options, const char *text, struct error *err)
{
	struct policy_config *policy = &options->policy;
	struct ip_address address, *to;
	struct error inner = {0};
	const char *wrong;

	if (ip_address_parse(text, &address, &inner))
		return value_error(options, OPTION_ZTUNNEL_ADDRESS, inner.text, err);
	wrong = not_a_proxy(&address);
	if (wrong)
		return value_error(options, OPTION_ZTUNNEL_ADDRESS, wrong, err);
	to = ip_address_is_v4(&address) ? &policy->proxy4 : &policy->proxy6;
	if (!ip_address_is_unspecified(to))
		return value_error(options, OPTION_ZTUNNEL_ADDRESS, "two addresses of one family",
				   err);
	*to = address;
	return 0;
}

/* DNS is led to the proxy only where somebody says so: few proxies of a node answer it. */
static int resolve_node_dns(struct options *options, struct error *err)
{
	if (options->source[OPTION_AMBIENT_DNS_CAPTURE] != SOURCE_DEFAULT)
		return 0;
	return set_value(options, OPTION_AMBIENT_DNS_CAPTURE, SOURCE_DEFAULT, strdup("no"), err);
}

static int resolve_ztunnel(struct options *options, struct error *err)
{
	bool given = is_set(options, OPTION_ZTUNNEL_ADDRESS);
	int r = 0;

	options->policy.node_proxy = !strcmp(options->text[OPTION_ZTUNNEL], "node");
	if (!options->policy.node_proxy)
		return given ? value_error(options, OPTION_ZTUNNEL_ADDRESS,
					   "only with --ztunnel node", err)
			     : 0;
	if (!given)
		return value_error(options, OPTION_ZTUNNEL, "needs --ztunnel-address", err);
	if (options->redirect.mode == REDIRECT_NFTABLES ||
	    options->redirect.mode == REDIRECT_IPTABLES)
		return value_error(
			options, OPTION_ZTUNNEL,
			"needs eBPF, and --mode asks for another engine: conntrack of a "
			"pod's namespace cannot tell a proxy in another one the original "
			"destination",
			err);
	r = split_list(options, OPTION_ZTUNNEL_ADDRESS, &options->ztunnel_addresses, err);
	for (char **text = options->ztunnel_addresses; !r && text && *text; text++)
		r = read_proxy_address(options, *text, err);
	return r ? r : resolve_node_dns(options, err);
}

static int resolve_rest(struct options *options, struct error *err)
{
	struct policy_config *policy = &options->policy;
	int r = ip_prefix_parse(options->text[OPTION_LOOPBACK_CIDR], &policy->loopback4, err);

	if (!r)
		r = resolve_ztunnel(options, err);
	policy->capture_ipv6 = !strcmp(options->text[OPTION_CAPTURE_IPV6], "yes");
	policy->ambient_dns_capture = !strcmp(options->text[OPTION_AMBIENT_DNS_CAPTURE], "yes");
	policy->drop_invalid = !strcmp(options->text[OPTION_DROP_INVALID], "yes");
	options->reconcile_ms = number_of(options, OPTION_RECONCILE_SECONDS, 0) * 1000;
	policy->owner_groups =
		is_set(options, OPTION_OWNER_GROUPS) ? options->text[OPTION_OWNER_GROUPS] : NULL;
	policy->owner_groups_exclude = is_set(options, OPTION_OWNER_GROUPS_EXCLUDE)
					       ? options->text[OPTION_OWNER_GROUPS_EXCLUDE]
					       : NULL;
	if (!r)
		r = resolve_kubernetes(options, err);
	if (!r)
		r = log_level_parse(options->text[OPTION_LOG_LEVEL], &options->log_level, err);
	if (!r)
		r = log_format_parse(options->text[OPTION_LOG_FORMAT], &options->log_format, err);
	return r;
}

int options_resolve(struct options *options, struct error *err)
{
	int r = 0;

	for (int id = 0; id < OPTION_COUNT_ && !r; id++) {
		if (!options->text[id])
			r = set_value(options, (enum option_id)id, SOURCE_DEFAULT,
				      strdup(specs[id].initial), err);
		if (!r)
			r = check_value(options, (enum option_id)id, err);
	}
	if (!r)
		r = resolve_mesh(options, err);
	if (!r)
		r = resolve_lists(options, err);
	if (!r)
		r = resolve_directories(options, err);
	if (!r)
		r = resolve_redirect(options, err);
	if (!r)
		r = resolve_accelerate(options, err);
	if (!r)
		r = resolve_rest(options, err);
	return r;
}

int options_parse(int argc, char *const *argv, char *const *environment, struct options *ret,
		  struct error *err)
{
	struct options options = {0};
	int r = read_flags(&options, argc, argv, err);

	if (options.action == ACTION_HELP || options.action == ACTION_VERSION)
		r = 0;
	else if (!r)
		r = read_environment(&options, environment, err);
	if (!r && options.action != ACTION_HELP && options.action != ACTION_VERSION) {
		r = read_config_file(&options, err);
		if (!r)
			r = options_resolve(&options, err);
	}
	if (r)
		options_done(&options);
	else
		*ret = options;
	return r;
}

static void free_list(char **list)
{
	for (char **element = list; element && *element; element++)
		free(*element);
	free(list);
}

void options_done(struct options *options)
{
	for (int id = 0; id < OPTION_COUNT_; id++)
		free(options->text[id]);
	free(options->config_file);
	free_list(options->exclude_namespaces);
	free_list(options->own_pods);
	free_list(options->ztunnel_addresses);
	free(options->node_name);
	kube_selectors_done(&options->selectors);
	memset(options, 0, sizeof(*options));
}

/* ---- for people ----------------------------------------------------------------------------- */

void options_print_help(FILE *out)
{
	fprintf(out,
		"Usage: sockmesh-agent [OPTION...]\n"
		"\n"
		"Redirects the connections of this node's pods to their service-mesh proxies.\n"
		"Each option is also an environment variable (--run-dir: %sRUN_DIR) and a key of "
		"the\n"
		"JSON object in the --config file (\"run-dir\"). A flag beats the environment, "
		"which\n"
		"beats the file.\n"
		"\n",
		ENV_PREFIX);
	for (int id = 0; id < OPTION_COUNT_; id++) {
		const struct option_spec *spec = &specs[id];
		const char *argument = spec->type == TYPE_CHOICE   ? spec->choices
				       : spec->type == TYPE_YES_NO ? "yes|no"
								   : spec->argument;

		fprintf(out, "  --%s %s\n", spec->name, argument);
		fprintf(out, "      %s%s%s%s\n", spec->help, *spec->initial ? " (" : "",
			spec->initial, *spec->initial ? ")" : "");
		if (spec->no_effect)
			fprintf(out, "      no effect yet: %s\n", spec->no_effect);
	}
	fprintf(out, "  --config FILE\n      the configuration file\n");
	for (size_t i = 0; i < N_ACTIONS; i++)
		fprintf(out, "  --%s\n      %s\n", actions[i].name, actions[i].help);
	fprintf(out, "\nExit status: 0, 1 on failure, 2 on a usage or configuration error.\n");
}

void options_print_dump(const struct options *options, FILE *out)
{
	char where[PATH_MAX + 64];

	for (int id = 0; id < OPTION_COUNT_; id++)
		fprintf(out, "%s=%s\t# %s\n", specs[id].name, options->text[id],
			source_text(options, (enum option_id)id, where, sizeof(where)));
}

void options_without_effect(const struct options *options,
			    void (*fn)(const char *name, const char *sentence))
{
	for (int id = 0; id < OPTION_COUNT_; id++)
		if (specs[id].no_effect && strcmp(options->text[id], specs[id].initial) != 0)
			fn(specs[id].name, specs[id].no_effect);
}
