/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_OPTIONS_H
#define SOCKMESH_OPTIONS_H

/*
 * The agent's configuration. One table (flag, environment variable, configuration-file key, type,
 * default, help) feeds the parser, --help and --dump-config. A flag beats the environment, which
 * beats the file, which beats the default. Constant once parsed.
 */
#include "accelerate.h"
#include "kube_repair.h"
#include "kube_selector.h"
#include "log.h"
#include "pod_policy.h"
#include "redirect.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct error;

enum option_id {
	OPTION_MODE,
	OPTION_IPTABLES,
	OPTION_ACCELERATE,
	OPTION_ACCELERATE_LEARNING,
	OPTION_ACCELERATE_MAX_SOCKETS,
	OPTION_ACCELERATE_MAX_SOCKETS_PER_POD,
	OPTION_ACCELERATE_MAX_BYTES,
	OPTION_ACCELERATE_MAX_MESSAGES,
	OPTION_ACCELERATE_BUDGET,
	OPTION_ACCELERATE_POD_BUDGET,
	OPTION_ACCELERATE_IGNORE_KNOWN_BUGS,
	OPTION_MESH,
	OPTION_OUTBOUND_PORT,
	OPTION_INBOUND_PORT,
	OPTION_DNS_PORT,
	OPTION_PROXY_UID,
	OPTION_PROXY_GID,
	OPTION_PROXY_IDENTITY,
	OPTION_CAPTURE_IPV6,
	OPTION_LOOPBACK_CIDR,
	OPTION_DROP_INVALID,
	OPTION_OWNER_GROUPS,
	OPTION_OWNER_GROUPS_EXCLUDE,
	OPTION_EXCLUDE_NAMESPACES,
	OPTION_OWN_PODS,
	OPTION_RUN_DIR,
	OPTION_BPFFS_DIR,
	OPTION_CGROUP_ROOT,
	OPTION_MAX_PODS,
	OPTION_MAX_HANDOVERS,
	OPTION_MAX_HANDOVERS_PER_POD,
	OPTION_MAX_RULE_ENTRIES,
	OPTION_RECONCILE_SECONDS,
	OPTION_KUBERNETES,
	OPTION_KUBECONFIG,
	OPTION_NODE_NAME,
	OPTION_ZTUNNEL,
	OPTION_ZTUNNEL_ADDRESS,
	OPTION_ZTUNNEL_SOCKET,
	OPTION_AMBIENT_DNS_CAPTURE,
	OPTION_WITHOUT_ZTUNNEL,
	OPTION_ENROL_EXISTING,
	OPTION_ENABLEMENT_SELECTORS,
	OPTION_DISCOVERY_SELECTORS,
	OPTION_REPAIR,
	OPTION_REPAIR_CONTAINER,
	OPTION_REPAIR_EXIT_CODE,
	OPTION_REPAIR_MESSAGE,
	OPTION_REPAIR_LABEL,
	OPTION_SYSTEM_NAMESPACE,
	OPTION_KUBELET_CGROUP,
	OPTION_INSTALL_CNI,
	OPTION_CNI_CONF_DIR,
	OPTION_CNI_BIN_DIR,
	OPTION_METRICS_ADDRESS,
	OPTION_LOG_FORMAT,
	OPTION_LOG_LEVEL,
	OPTION_COUNT_,
};

enum option_source { SOURCE_DEFAULT, SOURCE_FILE, SOURCE_ENVIRONMENT, SOURCE_FLAG };

enum options_action { ACTION_RUN, ACTION_HELP, ACTION_VERSION, ACTION_DUMP, ACTION_UNINSTALL };

struct options {
	enum options_action action;
	char *config_file; /* NULL: none */
	enum option_source config_source;

	/* Every value as its text, and where it came from. */
	char *text[OPTION_COUNT_];
	enum option_source source[OPTION_COUNT_];

	/* What the texts mean; strings are borrowed from text[] or from the lists below. */
	struct redirect_config redirect;
	struct policy_config policy;
	struct accelerate_config accelerate;
	const char *run_dir;
	bool cgroup_root_given;
	bool kubernetes_auto;
	const char *kubeconfig; /* NULL: not given */
	char *node_name;	/* owned */
	const char *ztunnel_socket;
	bool ztunnel_socket_given, admit_without_ztunnel, reset_existing;
	struct kube_selectors selectors;
	struct kube_repair_config repair;
	uint32_t reconcile_ms; /* how often every pod is compared with the kernel */
	enum log_level log_level;
	enum log_format log_format;
	char **exclude_namespaces, **own_pods, **ztunnel_addresses; /* NULL-terminated */
};

/*
 * Reads flags, the environment (NULL-terminated "NAME=VALUE") and the file that --config names.
 * -EINVAL names the option, where it stands, and its value: a configuration error, exit code 2.
 * *ret needs options_done() after success. The action is known even when --help or --version
 * stand beside wrong values.
 */
int options_parse(int argc, char *const *argv, char *const *environment, struct options *ret,
		  struct error *err);
void options_done(struct options *options);

/*
 * One configuration file: its values into text[] and source[] where no value of a higher source
 * stands. `what` names the file in errors. For options_parse(), unit tests and fuzzing.
 */
int options_read_file_text(struct options *options, const char *text, size_t size, const char *what,
			   struct error *err);

/* Checks text[] and fills the typed values. For options_parse(), unit tests and fuzzing. */
int options_resolve(struct options *options, struct error *err);

void options_print_help(FILE *out);
void options_print_dump(const struct options *options, FILE *out);

/* Calls fn for every option that was given and has no effect yet, with a sentence about it. */
void options_without_effect(const struct options *options,
			    void (*fn)(const char *name, const char *sentence));

#endif
