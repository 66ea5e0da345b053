/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_policy.h"

#include "error.h"
#include "json.h"
#include "kube_pod.h"
#include "kube_selector.h"
#include "pod_annotations.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REDIRECTION    "sockmesh.io/redirection"
#define INJECT	       "sidecar.istio.io/inject"
#define STATUS	       "sidecar.istio.io/status"
#define TRAFFIC	       "traffic.sidecar.istio.io/"
#define DNS_ANNOTATION "sockmesh.io/dns-capture"
#define UID_ANNOTATION "sockmesh.io/proxy-uid"
#define GID_ANNOTATION "sockmesh.io/proxy-gid"

enum {
	OWNER_GROUPS_MAX = 64, /* Istio's own limit */
	WHERE_MAX = 96,	       /* "annotation " and the longest name that is read here */
};

const struct mesh_preset mesh_presets[MESH_COUNT_] = {
	[MESH_ISTIO] = {.name = "istio",
			.outbound_port = 15001,
			.inbound_port = 15006,
			.dns_port = 15053,
			.tunnel_port = 15008,
			.proxy_uid = 1337,
			.proxy_gid = 1337},
	[MESH_LINKERD] = {.name = "linkerd",
			  .outbound_port = 4140,
			  .inbound_port = 4143,
			  .proxy_uid = 2102,
			  .proxy_gid = 2102},
	[MESH_KUMA] = {.name = "kuma",
		       .outbound_port = 15001,
		       .inbound_port = 15006,
		       .dns_port = 15053,
		       .proxy_uid = 5678,
		       .proxy_gid = 5678},
	[MESH_OSM] = {.name = "osm",
		      .outbound_port = 15001,
		      .inbound_port = 15003,
		      .dns_port = 15053,
		      .proxy_uid = 1500,
		      .proxy_gid = 1500},
	/* The operator says everything. */
	[MESH_CUSTOM] = {.name = "custom"},
};

/* What Istio's proxy listens on for others than the app's clients. */
static const uint16_t istio_reserved_inbound[] = {15020, 15021, 15090};

static const char istio_status_port[] = "15020";

static bool is_istio(const struct policy_config *cfg)
{
	return strcmp(cfg->mesh.name, mesh_presets[MESH_ISTIO].name) == 0;
}

/* The container of Istio's sidecar, or NULL: not known, or another mesh's pod. */
static const struct kube_proxy *istio_proxy(const struct policy_config *cfg,
					    const struct pod_facts *pod)
{
	return pod->kube_pod && pod->kube_pod->proxy.present && is_istio(cfg)
		       ? &pod->kube_pod->proxy
		       : NULL;
}

/* ---- annotations --------------------------------------------------------------------------- */

/* *ret_text stays as it was when the pod has no such annotation. */
static int get_annotation(const struct pod_facts *pod, const char *name, const char **ret_text,
			  struct error *err)
{
	return json_get_string(pod->annotations, name, "annotation ", ret_text, err);
}

static const char *where_of(const char *name, char buf[static WHERE_MAX])
{
	snprintf(buf, WHERE_MAX, "annotation %s", name);
	return buf;
}

static int value_error(const char *name, const char *text, const char *wanted, struct error *err)
{
	char quoted[POD_VALUE_QUOTED_MAX];

	return error_set(err, EINVAL, "annotation %s: %s is not %s", name,
			 pod_value_quote(text, quoted), wanted);
}

/* ret_all: where "*" is noted, NULL for a list that has no wildcard. */
static int read_ports(const struct pod_facts *pod, const char *name, const char *initial,
		      bool *ret_all, struct port_list *ret, struct error *err)
{
	char where[WHERE_MAX];
	const char *text = initial;
	int r = get_annotation(pod, name, &text, err);

	if (r < 0)
		return r;
	if (ret_all && strcmp(text, "*") == 0) {
		*ret_all = true;
		return 0;
	}
	return pod_value_ports(where_of(name, where), text, ret, err);
}

static int read_prefixes(const struct pod_facts *pod, const char *name, const char *initial,
			 bool *ret_all, struct prefix_list *ret, struct error *err)
{
	char where[WHERE_MAX];
	const char *text = initial;
	int r = get_annotation(pod, name, &text, err);

	if (r < 0)
		return r;
	if (ret_all && strcmp(text, "*") == 0) {
		*ret_all = true;
		return 0;
	}
	return pod_value_prefixes(where_of(name, where), text, ret, err);
}

static int read_proxy_ids(const struct pod_facts *pod, const char *name, uint32_t initial,
			  struct id_list *ret, struct error *err)
{
	char where[WHERE_MAX];
	const char *text = NULL;
	int r = get_annotation(pod, name, &text, err);

	if (r < 0)
		return r;
	if (text)
		return pod_value_proxy_ids(where_of(name, where), text, ret, err);
	ret->ids = malloc(sizeof(*ret->ids));
	if (!ret->ids)
		return error_set(err, ENOMEM, "allocate a proxy id");
	ret->ids[0] = initial;
	ret->n = 1;
	return 0;
}

/* ---- settings ------------------------------------------------------------------------------ */

static int append_ports(struct port_list *list, const uint16_t *ports, size_t n, struct error *err)
{
	uint16_t *grown = reallocarray(list->ports, list->n + n, sizeof(*grown));

	if (!grown)
		return error_set(err, ENOMEM, "allocate a list of %zu ports", list->n + n);
	memcpy(grown + list->n, ports, n * sizeof(*ports));
	list->ports = grown;
	list->n += n;
	return 0;
}

static int read_port_lists(const struct policy_config *cfg, const struct pod_facts *pod,
			   struct redirect_settings *s, struct error *err)
{
	const char *status_port = is_istio(cfg) ? istio_status_port : "";
	int r = read_ports(pod, TRAFFIC "includeInboundPorts", "*", &s->inbound_include_all,
			   &s->inbound_include_ports, err);

	if (r == 0)
		r = read_ports(pod, TRAFFIC "excludeInboundPorts", status_port, NULL,
			       &s->inbound_exclude_ports, err);
	if (r == 0 && is_istio(cfg))
		r = append_ports(&s->inbound_exclude_ports, istio_reserved_inbound,
				 sizeof(istio_reserved_inbound) / sizeof(istio_reserved_inbound[0]),
				 err);
	if (r == 0)
		r = read_ports(pod, TRAFFIC "includeOutboundPorts", "", NULL,
			       &s->outbound_include_ports, err);
	if (r == 0)
		r = read_ports(pod, TRAFFIC "excludeOutboundPorts", status_port, NULL,
			       &s->outbound_exclude_ports, err);
	return r;
}

static int read_prefix_lists(const struct pod_facts *pod, struct redirect_settings *s,
			     struct error *err)
{
	int r = read_prefixes(pod, TRAFFIC "includeOutboundIPRanges", "*", &s->outbound_include_all,
			      &s->include_prefixes, err);

	if (r < 0)
		return r;
	return read_prefixes(pod, TRAFFIC "excludeOutboundIPRanges", "", NULL, &s->exclude_prefixes,
			     err);
}

/* As Istio's ParseInterceptFilter: the exclude list counts only while every group is included. */
static int read_groups(const struct policy_config *cfg, struct redirect_settings *s,
		       struct error *err)
{
	bool all = !cfg->owner_groups || strcmp(cfg->owner_groups, "*") == 0;
	const char *where = all ? "owner groups to exclude" : "owner groups";
	const char *text = all ? cfg->owner_groups_exclude : cfg->owner_groups;
	int r = pod_value_groups(where, text ? text : "", &s->groups, err);

	if (r < 0)
		return r;
	if (s->groups.n > OWNER_GROUPS_MAX)
		return error_set(err, EINVAL, "%s: %zu groups, at most %d are possible", where,
				 s->groups.n, OWNER_GROUPS_MAX);
	if (!all && s->groups.n == 0)
		return error_set(err, EINVAL, "%s: the list is empty, nothing would be captured",
				 where);
	s->groups_exempt = all;
	s->groups_set = !all || s->groups.n > 0;
	return 0;
}

/* *ret_value stays as it was when the pod has no such annotation. */
static int read_bool(const struct pod_facts *pod, const char *name, bool *ret_value,
		     struct error *err)
{
	const char *text = NULL;
	int r = get_annotation(pod, name, &text, err);

	if (r < 0 || !text)
		return r;
	if (!pod_value_bool(text, ret_value))
		return value_error(name, text, "true or false", err);
	return 0;
}

static int read_dns_capture(const struct policy_config *cfg, const struct pod_facts *pod,
			    struct redirect_settings *s, struct error *err)
{
	static const char name[] = DNS_ANNOTATION;
	const struct kube_proxy *proxy = istio_proxy(cfg, pod);
	int r;

	s->dns_capture = proxy && proxy->dns_capture == KUBE_ENV_TRUE;
	r = read_bool(pod, name, &s->dns_capture, err);
	if (r < 0)
		return r;
	if (s->dns_capture && cfg->mesh.dns_port == 0)
		return error_set(
			err, EINVAL,
			"annotation %s: the proxy of mesh %s has no DNS port to capture to", name,
			cfg->mesh.name);
	s->dns_port = cfg->mesh.dns_port;
	return 0;
}

static int read_interception(const struct pod_facts *pod, struct redirect_settings *s,
			     struct error *err)
{
	static const char name[] = "sidecar.istio.io/interceptionMode";
	const char *text = "REDIRECT";
	int r = get_annotation(pod, name, &text, err);

	if (r < 0)
		return r;
	s->tproxy = strcmp(text, "TPROXY") == 0;
	if (!s->tproxy && strcmp(text, "REDIRECT") != 0)
		return value_error(name, text, "REDIRECT or TPROXY", err);
	return 0;
}

/* *ret_present stays as it was when the pod has no such annotation. */
static int read_names(const struct pod_facts *pod, const char *name, bool *ret_present,
		      struct name_list *ret, struct error *err)
{
	char where[WHERE_MAX];
	const char *text = NULL;
	int r = get_annotation(pod, name, &text, err);

	if (r < 0 || !text)
		return r;
	*ret_present = true;
	return pod_value_interfaces(where_of(name, where), text, ret, err);
}

static int read_interfaces(const struct pod_facts *pod, struct redirect_settings *s,
			   struct error *err)
{
	bool present = false;
	int r = read_names(pod, TRAFFIC "excludeInterfaces", &present, &s->exclude_interfaces, err);

	present = false;
	if (r == 0)
		r = read_names(pod, "istio.io/reroute-virtual-interfaces", &present,
			       &s->reroute_interfaces, err);
	/* The deprecated name is read only when the new one is absent; empty is not absent. */
	if (r == 0 && !present)
		r = read_names(pod, TRAFFIC "kubevirtInterfaces", &present, &s->reroute_interfaces,
			       err);
	return r;
}

static int read_accelerate(const struct pod_facts *pod, enum accelerate_wish *ret,
			   struct error *err)
{
	static const char name[] = "sockmesh.io/accelerate";
	const char *text = "auto";
	int r = get_annotation(pod, name, &text, err);

	if (r < 0)
		return r;
	if (!accelerate_wish_parse(text, ret))
		return value_error(name, text, "auto, full, proxy or off", err);
	return 0;
}

/* Our annotations count first, then the container's own securityContext; root is not believed. */
static int read_identity(const struct policy_config *cfg, const struct pod_facts *pod,
			 struct redirect_settings *s, struct error *err)
{
	const struct kube_proxy *proxy = istio_proxy(cfg, pod);
	uint32_t uid = proxy && proxy->run_as_user ? proxy->run_as_user : cfg->mesh.proxy_uid;
	uint32_t gid = proxy && proxy->run_as_group ? proxy->run_as_group : cfg->mesh.proxy_gid;
	int r = read_proxy_ids(pod, UID_ANNOTATION, uid, &s->proxy_uids, err);

	if (r < 0)
		return r;
	return read_proxy_ids(pod, GID_ANNOTATION, gid, &s->proxy_gids, err);
}

static enum pod_invalid_drop said_invalid_drop(const struct policy_config *cfg,
					       const struct pod_facts *pod)
{
	const struct kube_proxy *proxy = istio_proxy(cfg, pod);

	if (!pod->kube_pod)
		return pod->invalid_drop;
	if (proxy && proxy->invalid_drop == KUBE_ENV_TRUE)
		return POD_INVALID_DROP_YES;
	if (proxy && proxy->invalid_drop == KUBE_ENV_FALSE)
		return POD_INVALID_DROP_NO;
	return POD_INVALID_DROP_UNSAID;
}

static bool drop_invalid(const struct policy_config *cfg, const struct pod_facts *pod)
{
	enum pod_invalid_drop said = said_invalid_drop(cfg, pod);

	return said == POD_INVALID_DROP_UNSAID ? cfg->drop_invalid : said == POD_INVALID_DROP_YES;
}

static int check_mesh(const struct policy_config *cfg, struct error *err)
{
	if (cfg->mesh.outbound_port == 0 || cfg->mesh.inbound_port == 0)
		return error_set(err, EINVAL, "mesh %s has no %s port", cfg->mesh.name,
				 cfg->mesh.outbound_port == 0 ? "outbound" : "inbound");
	return 0;
}

static int read_settings(const struct policy_config *cfg, const struct pod_facts *pod,
			 struct redirect_settings *s, struct error *err)
{
	int r = check_mesh(cfg, err);

	s->outbound_port = cfg->mesh.outbound_port;
	s->inbound_port = cfg->mesh.inbound_port;
	s->tunnel_port = cfg->mesh.tunnel_port;
	s->capture_ipv6 = cfg->capture_ipv6;
	s->loopback4 = cfg->loopback4;
	s->drop_invalid = drop_invalid(cfg, pod);
	if (r == 0)
		r = read_interception(pod, s, err);
	if (r == 0)
		r = read_interfaces(pod, s, err);
	if (r == 0)
		r = read_dns_capture(cfg, pod, s, err);
	if (r == 0)
		r = read_identity(cfg, pod, s, err);
	if (r == 0)
		r = read_port_lists(cfg, pod, s, err);
	if (r == 0)
		r = read_prefix_lists(pod, s, err);
	if (r == 0)
		r = read_groups(cfg, s, err);
	return r;
}

/* Nothing listens in the pod, and nothing inbound is captured. */
static void as_node_proxy(const struct policy_config *cfg, struct redirect_settings *s)
{
	s->ambient = false;
	s->node_proxy = true;
	s->proxy4 = cfg->proxy4;
	s->proxy6 = cfg->proxy6;
	s->inbound_port = s->tunnel_port = 0;
	s->inbound_include_all = false;
}

/*
 * Of an ambient pod: what Istio's agent reads when it makes the rules. Our own annotation about DNS
 * counts before Istio's.
 */
static int read_ambient_settings(const struct policy_config *cfg, const struct pod_facts *pod,
				 struct redirect_settings *s, struct error *err)
{
	const struct mesh_preset *istio = &mesh_presets[MESH_ISTIO];
	bool present = false, bypass_inbound = false;
	int r;

	*s = (struct redirect_settings){.ambient = true,
					.outbound_port = istio->outbound_port,
					.inbound_port = istio->inbound_port,
					.dns_port = istio->dns_port,
					.tunnel_port = istio->tunnel_port,
					.capture_ipv6 = cfg->capture_ipv6,
					.loopback4 = cfg->loopback4,
					.dns_capture = cfg->ambient_dns_capture,
					.outbound_include_all = true};
	r = read_bool(pod, "ambient.istio.io/dns-capture", &s->dns_capture, err);
	if (r == 0)
		r = read_bool(pod, DNS_ANNOTATION, &s->dns_capture, err);
	if (r == 0)
		r = read_bool(pod, "ambient.istio.io/bypass-inbound-capture", &bypass_inbound, err);
	if (r == 0)
		r = read_names(pod, "istio.io/reroute-virtual-interfaces", &present,
			       &s->reroute_interfaces, err);
	s->inbound_include_all = !bypass_inbound;
	if (cfg->node_proxy)
		as_node_proxy(cfg, s);
	return r;
}

/* ---- is it in the mesh? -------------------------------------------------------------------- */

static void decide_skip(struct pod_decision *d, const char *reason)
{
	d->mode = POD_SKIP;
	snprintf(d->reason, sizeof(d->reason), "%s", reason);
}

static void decide_sidecar(struct pod_decision *d, const char *reason)
{
	d->mode = POD_SIDECAR;
	snprintf(d->reason, sizeof(d->reason), "%s", reason);
}

static bool in_namespaces(const char *const *namespaces, const char *ns)
{
	for (; namespaces && *namespaces; namespaces++)
		if (strcmp(*namespaces, ns) == 0)
			return true;
	return false;
}

/* The entry "NAMESPACE/NAME-PREFIX" that the pod is one of, or NULL. */
static const char *find_own_pod(const char *const *own_pods, const char *ns, const char *name)
{
	size_t length = strlen(ns);

	for (; own_pods && *own_pods; own_pods++) {
		const char *entry = *own_pods;

		if (strncmp(entry, ns, length) != 0 || entry[length] != '/')
			continue;
		entry += length + 1;
		if (strncmp(name, entry, strlen(entry)) == 0)
			return *own_pods;
	}
	return NULL;
}

/* Pods that are never touched, whatever their annotations say; the configuration says so. */
static bool is_excluded(const struct policy_config *cfg, const struct pod_facts *pod,
			struct pod_decision *d)
{
	char quoted[POD_VALUE_QUOTED_MAX];
	const char *own;

	if (!pod->ns)
		return false;
	if (in_namespaces(cfg->exclude_namespaces, pod->ns)) {
		snprintf(d->reason, sizeof(d->reason), "namespace %s is excluded",
			 pod_value_quote(pod->ns, quoted));
		return true;
	}
	own = pod->name ? find_own_pod(cfg->own_pods, pod->ns, pod->name) : NULL;
	if (own)
		snprintf(d->reason, sizeof(d->reason), "own pods %s are never redirected",
			 pod_value_quote(own, quoted));
	return own;
}

/* The proxy's own pods: connections of theirs would come back to them. */
static bool is_ztunnel(const struct policy_config *cfg, const struct pod_facts *pod)
{
	const char *system = cfg->system_namespace ? cfg->system_namespace : "istio-system";
	const char *app = json_string_value(json_object_get(pod->labels, "app"));

	return pod->ns && strcmp(pod->ns, system) == 0 && app && strcmp(app, "ztunnel") == 0;
}

/* And the same, because of what they are. NULL: it may be redirected. */
static const char *untouchable(const struct policy_config *cfg, const struct pod_facts *pod)
{
	if (pod->kube_pod && pod->kube_pod->host_network)
		return "it has the host's network namespace (hostNetwork)";
	if (is_ztunnel(cfg, pod))
		return "ztunnel's own pods are never redirected";
	if (pod->is_node_proxy)
		return "it is the proxy of this node's ambient pods: it has an address of "
		       "--ztunnel-address";
	if (pod->kube_ns && !pod->kube_ns->discovered)
		return "its namespace is not selected by --discovery-selectors";
	return NULL;
}

/* The label counts before the annotation; what Go's ParseBool does not take is no refusal. */
static int read_inject(const struct pod_facts *pod, bool *ret_refused, const char **ret_reason,
		       struct error *err)
{
	const char *label = NULL, *annotation = NULL;
	bool inject = true;
	int r = json_get_string(pod->labels, INJECT, "label ", &label, err);

	if (r == 0)
		r = get_annotation(pod, INJECT, &annotation, err);
	if (r < 0)
		return r;
	if (label)
		pod_value_bool(label, &inject);
	else if (annotation)
		pod_value_bool(annotation, &inject);
	*ret_refused = !inject;
	*ret_reason = label ? "label " INJECT " is false" : "annotation " INJECT " is false";
	return 0;
}

struct injector_status {
	bool present;
	bool redirects_itself; /* istio-init programs iptables rules in the pod */
};

static int read_init_containers(const json_t *status, struct injector_status *ret,
				struct error *err)
{
	static const char where[] = "annotation " STATUS ": ";
	json_t *names = NULL, *name;
	size_t i;
	int r = json_get_array(status, "initContainers", where, &names, err);

	if (r < 0)
		return r;
	json_array_foreach (names, i, name) {
		if (!json_is_string(name))
			return error_set(err, EINVAL, "%sinitContainers: item %zu is not a string",
					 where, i + 1);
		if (strcmp(json_string_value(name), "istio-init") == 0)
			ret->redirects_itself = true;
	}
	return 0;
}

static int read_status(const struct pod_facts *pod, struct injector_status *ret, struct error *err)
{
	scoped_json json_t *status = NULL;
	const char *text = NULL;
	int r = get_annotation(pod, STATUS, &text, err);

	if (r < 0 || !text || !*text)
		return r;
	r = json_parse(text, strlen(text), "annotation " STATUS, &status, err);
	if (r < 0)
		return r;
	if (!json_is_object(status))
		return value_error(STATUS, text, "a JSON object", err);
	ret->present = true;
	return read_init_containers(status, ret, err);
}

/* An injected pod whose spec says that it is not to be redirected to a sidecar; NULL: it is. */
static const char *refused_by_spec(const struct policy_config *cfg, const struct pod_facts *pod)
{
	const struct kube_pod *known = is_istio(cfg) ? pod->kube_pod : NULL;

	if (!known)
		return NULL;
	if (known->istio_init)
		return "the pod redirects itself: it has a container istio-init";
	if (!known->proxy.present)
		return "the pod has no container istio-proxy";
	if (known->proxy.disable_envoy == KUBE_ENV_TRUE)
		return "its proxy does not run: DISABLE_ENVOY is true";
	if (known->proxy.other_type)
		return "its proxy is not a sidecar but a gateway, by its arguments";
	return NULL;
}

static bool has_status(const struct pod_facts *pod)
{
	const json_t *status = json_object_get(pod->annotations, STATUS);

	return status && !json_is_null(status);
}

static const char no_sidecar[] = "no sidecar: neither annotation " STATUS " nor " REDIRECTION;

/* The injector has been there. */
static int decide_injected(const struct policy_config *cfg, const struct pod_facts *pod,
			   struct pod_decision *d, struct error *err)
{
	struct injector_status status = {0};
	const char *refused = refused_by_spec(cfg, pod);
	int r = read_status(pod, &status, err);

	if (r < 0)
		return r;
	if (!status.present)
		decide_skip(d, no_sidecar);
	else if (refused)
		decide_skip(d, refused);
	else if (status.redirects_itself && !pod->kube_pod)
		decide_skip(d, "the pod redirects itself: annotation " STATUS
			       " lists istio-init among its init containers");
	else
		decide_sidecar(d, "annotation " STATUS " says that the pod has a sidecar");
	return 0;
}

/*
 * What is missing is the pod's labels, or its namespace's. A namespace that would select a pod
 * without labels is ambient, so that the pod most likely is; one that starts un-captured there
 * would bypass ztunnel for as long as the API server is silent.
 */
static void decide_later(const struct policy_config *cfg, const struct pod_facts *pod,
			 struct pod_decision *d)
{
	bool likely = pod->kube_ns && kube_selectors_select(cfg->selectors, pod->kube_ns->selected,
							    pod->labels) >= 0;

	d->mode = likely && pod->presumed ? POD_AMBIENT : POD_UNDECIDED;
	d->hold = likely && !pod->presumed;
	snprintf(d->reason, sizeof(d->reason), "%s",
		 d->hold ? "its namespace is ambient, and what the API server says of the pod is "
			   "not known yet"
		 : likely
			 ? "its namespace is ambient, and the API server, which may know otherwise "
			   "of the pod, is away"
			 : "not redirected until the API server says whether it is to be");
}

/* refused: the reason why the pod wants no sidecar, or NULL. */
static void decide_by_labels(const struct policy_config *cfg, const struct pod_facts *pod,
			     const char *refused, struct pod_decision *d)
{
	int selector;

	if (!cfg->selectors) {
		decide_skip(d, refused ? refused : no_sidecar);
		return;
	}
	if (!pod->kube_pod || !pod->kube_ns) {
		decide_later(cfg, pod, d);
		return;
	}
	selector = kube_selectors_select(cfg->selectors, pod->kube_ns->selected, pod->labels);
	if (selector >= 0) {
		d->mode = POD_AMBIENT;
		snprintf(d->reason, sizeof(d->reason),
			 "number %d of --enablement-selectors selects the pod and its namespace",
			 selector + 1);
		return;
	}
	snprintf(d->reason, sizeof(d->reason),
		 "%s; and not ambient: none of %zu "
		 "--enablement-selectors selects the pod and its namespace",
		 refused ? refused : no_sidecar, cfg->selectors->n_enablement);
}

/* Istio's own terms. A sidecar counts before labels that select the pod for ambient. */
static int decide_as_istio(const struct policy_config *cfg, const struct pod_facts *pod,
			   struct pod_decision *d, struct error *err)
{
	const char *reason;
	bool refused;
	int r = read_inject(pod, &refused, &reason, err);

	if (r < 0)
		return r;
	if (!has_status(pod))
		decide_by_labels(cfg, pod, refused ? reason : NULL, d);
	else if (refused)
		decide_skip(d, reason);
	else
		r = decide_injected(cfg, pod, d, err);
	return r;
}

static int decide_ambient(const struct policy_config *cfg, const struct pod_facts *pod,
			  struct pod_decision *d, struct error *err)
{
	if (!has_status(pod)) {
		d->mode = POD_AMBIENT;
		snprintf(d->reason, sizeof(d->reason), "annotation " REDIRECTION " is ambient");
		return 0;
	}
	/* With both, the sidecar's connections would be captured by ztunnel once more. */
	return decide_as_istio(cfg, pod, d, err);
}

static int decide_mode(const struct policy_config *cfg, const struct pod_facts *pod,
		       struct pod_decision *d, struct error *err)
{
	struct injector_status status = {0};
	const char *redirection = NULL;
	int r = get_annotation(pod, REDIRECTION, &redirection, err);

	if (r < 0)
		return r;
	if (!redirection)
		return decide_as_istio(cfg, pod, d, err);
	if (strcmp(redirection, "none") == 0) {
		decide_skip(d, "annotation " REDIRECTION " is none");
		return 0;
	}
	if (strcmp(redirection, "ambient") == 0)
		return decide_ambient(cfg, pod, d, err);
	if (strcmp(redirection, "sidecar") != 0)
		return value_error(REDIRECTION, redirection, "sidecar, ambient or none", err);
	/* It overrules what the status says, but a status that says nothing legible is refused. */
	r = read_status(pod, &status, err);
	if (r < 0)
		return r;
	decide_sidecar(d, "annotation " REDIRECTION " is sidecar");
	return 0;
}

static int decide_known(const struct policy_config *cfg, const struct pod_facts *pod,
			struct pod_decision *d, struct error *err)
{
	const char *reason = untouchable(cfg, pod);

	if (is_excluded(cfg, pod, d)) {
		d->foreign = true;
		return 0;
	}
	if (reason) {
		d->foreign = true;
		decide_skip(d, reason);
		return 0;
	}
	if (pod->kube_pod && kube_pod_ended(pod->kube_pod)) {
		decide_skip(d, "it has ended: its containers do not start again");
		return 0;
	}
	if (pod->annotations)
		return decide_mode(cfg, pod, d, err);
	if (cfg->selectors)
		decide_later(cfg, pod, d);
	else
		decide_skip(d, "annotations unknown: the container runtime did not pass them, so "
			       "nothing asks for redirection");
	return 0;
}

/* As Istio: a boolean of the proxy's environment that cannot be read is no reason to refuse. */
static void warn_of_environment(const struct policy_config *cfg, const struct pod_facts *pod,
				struct pod_decision *d)
{
	const struct kube_proxy *proxy = istio_proxy(cfg, pod);
	const char *name;

	if (!proxy)
		return;
	name = proxy->disable_envoy == KUBE_ENV_ILLEGIBLE  ? "DISABLE_ENVOY"
	       : proxy->dns_capture == KUBE_ENV_ILLEGIBLE  ? "ISTIO_META_DNS_CAPTURE"
	       : proxy->invalid_drop == KUBE_ENV_ILLEGIBLE ? "INVALID_DROP"
							   : NULL;
	if (name)
		snprintf(d->warning, sizeof(d->warning),
			 "%s of container istio-proxy is not true or false, and ignored", name);
}

/* What the API says counts, where it is known. */
static struct pod_facts known_facts(const struct pod_facts *pod)
{
	struct pod_facts facts = *pod;

	if (pod->kube_pod) {
		facts.ns = pod->kube_pod->ns;
		facts.name = pod->kube_pod->name;
		facts.annotations = pod->kube_pod->annotations;
		facts.labels = pod->kube_pod->labels;
	}
	return facts;
}

int pod_policy_decide(const struct policy_config *cfg, const struct pod_facts *pod,
		      struct pod_decision *ret, struct error *err)
{
	const struct pod_facts facts = known_facts(pod);
	struct pod_decision d = {.mode = POD_SKIP, .invalid_drop = said_invalid_drop(cfg, pod)};
	int r = decide_known(cfg, &facts, &d, err);

	if (r == 0 && d.mode == POD_SIDECAR)
		r = read_settings(cfg, &facts, &d.settings, err);
	if (r == 0 && d.mode == POD_AMBIENT)
		r = read_ambient_settings(cfg, &facts, &d.settings, err);
	if (r == 0 && d.mode == POD_SIDECAR)
		r = read_accelerate(&facts, &d.accelerate, err);
	if (r < 0) {
		pod_decision_done(&d);
		return r;
	}
	if (d.mode == POD_SIDECAR)
		warn_of_environment(cfg, &facts, &d);
	if (d.mode == POD_AMBIENT && facts.not_yet) {
		pod_decision_done(&d);
		d = (struct pod_decision){.invalid_drop = d.invalid_drop};
		decide_skip(&d, facts.not_yet);
	}
	*ret = d;
	return 0;
}

bool policy_is_node_proxy(const struct policy_config *cfg, const struct ip_address *a)
{
	return cfg->node_proxy && !ip_address_is_unspecified(a) &&
	       (ip_address_equal(a, &cfg->proxy4) || ip_address_equal(a, &cfg->proxy6));
}

void pod_decision_done(struct pod_decision *decision)
{
	redirect_settings_done(&decision->settings);
}

/* ---- what is remembered -------------------------------------------------------------------- */

static int remember_number(json_t *annotations, const char *name, const struct id_list *ids)
{
	char text[16];

	if (json_object_get(annotations, name) || ids->n != 1)
		return 0;
	snprintf(text, sizeof(text), "%u", ids->ids[0]);
	return json_object_set_new(annotations, name, json_string(text));
}

static int remember_sidecar(json_t *annotations, const struct redirect_settings *s)
{
	int r = remember_number(annotations, UID_ANNOTATION, &s->proxy_uids);

	if (r == 0)
		r = remember_number(annotations, GID_ANNOTATION, &s->proxy_gids);
	if (r == 0 && s->dns_capture)
		r = json_object_set_new(annotations, DNS_ANNOTATION, json_string("true"));
	return r;
}

static bool is_memorable(const struct pod_facts *facts, const struct pod_decision *decision)
{
	if (decision->mode == POD_SIDECAR)
		return facts->kube_pod;
	return decision->mode == POD_AMBIENT && (facts->kube_pod || facts->presumed);
}

json_t *pod_facts_remember(const struct pod_facts *pod, const struct pod_decision *decision)
{
	const struct pod_facts facts = known_facts(pod);
	scoped_json json_t *annotations =
		facts.annotations ? json_copy((json_t *)facts.annotations) : NULL;
	int r = 0;

	if (!is_memorable(&facts, decision))
		return json_incref(annotations);
	if (!facts.annotations) /* the runtime has passed none */
		annotations = json_object();
	if (decision->mode == POD_AMBIENT)
		r = json_object_set_new(annotations, REDIRECTION, json_string("ambient"));
	else
		r = remember_sidecar(annotations, &decision->settings);
	return r == 0 ? json_incref(annotations) : NULL;
}
