/* SPDX-License-Identifier: Apache-2.0 */
#include "redirect_plan.h"

#include "error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PORT_DNS = 53 };

/* What must be so in the settings for a rule to be in the plan. */
enum rule_condition {
	WHEN_IPV6_OFF = 1u << 0,
	WHEN_DNS = 1u << 1,
	WHEN_NO_DNS = 1u << 2,
	WHEN_LOOPBACK_NOT_INCLUDED = 1u << 3,
	WHEN_GROUPS = 1u << 4,
	WHEN_OUT_ALL = 1u << 5,
	WHEN_OUT_CIDRS = 1u << 6,
	WHEN_OUT_PORTS_EXCLUDED = 1u << 7,
	WHEN_OUT_PORTS_INCLUDED = 1u << 8,
	WHEN_CIDRS_EXCLUDED = 1u << 9,
	WHEN_IN_ANY = 1u << 10,
	WHEN_IN_ALL = 1u << 11,
	WHEN_IN_PORTS = 1u << 12,
	WHEN_IN_PORTS_EXCLUDED = 1u << 13,
	WHEN_TUNNEL = 1u << 14,
	WHEN_REDIRECT = 1u << 15,
	WHEN_TPROXY = 1u << 16,
	WHEN_IF_EXCLUDED = 1u << 17,
	WHEN_IF_REROUTED = 1u << 18,
};

enum rule_target { TO_NOWHERE, TO_OUTBOUND, TO_INBOUND, TO_DNS, TO_INBOUND_TPROXY };

struct rule_row {
	enum plan_rule_id id;
	uint32_t when;
	uint32_t all_of, none_of;
	enum rule_target target;
};

#define LO_APP	 (FACT_OUT_LO)
#define LO_PROXY (FACT_OUT_LO | FACT_TCP)

/*
 * Istio's chains generate the rules about proxy ids once per id, so that the second id of a pod is
 * caught by the first one's "not this id" rule. Here an id rule asks about the whole set.
 *
 * With DNS capture, queries of the app on the loopback device must reach the DNS rules, and those
 * of the proxy must reach the proxy's own exemption; the gid form of the latter never had that
 * exception in Istio, and does not here.
 */
static const struct rule_row outbound_rows[] = {
	{RULE_IPV6_OFF, WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_OUT_IF_EXCLUDED, WHEN_IF_EXCLUDED, FACT_IF_EXCLUDED, 0, TO_NOWHERE},
	{RULE_OUT_PORT_EXCLUDED, WHEN_OUT_PORTS_EXCLUDED, FACT_PORT_EXCLUDED, 0, TO_NOWHERE},
	{RULE_OUT_SRC_P6, 0, FACT_OUT_LO | FACT_SRC_P6, 0, TO_NOWHERE},

	{RULE_OUT_PROXY_UID_TO_SELF, WHEN_NO_DNS, LO_PROXY | FACT_UID_PROXY,
	 FACT_DST_LO | FACT_PORT_TUNNEL, TO_INBOUND},
	{RULE_OUT_PROXY_UID_TO_SELF, WHEN_DNS, LO_PROXY | FACT_UID_PROXY,
	 FACT_DST_LO | FACT_PORT_TUNNEL | FACT_PORT_DNS, TO_INBOUND},
	{RULE_OUT_TPROXY_SELF, WHEN_TPROXY, LO_PROXY | FACT_UID_PROXY, FACT_DST_LO,
	 TO_INBOUND_TPROXY},
	{RULE_OUT_TPROXY_SELF, WHEN_TPROXY, LO_PROXY | FACT_GID_PROXY, FACT_DST_LO,
	 TO_INBOUND_TPROXY},
	{RULE_OUT_APP_TO_SELF_UID, WHEN_NO_DNS | WHEN_LOOPBACK_NOT_INCLUDED, LO_APP, FACT_UID_PROXY,
	 TO_NOWHERE},
	{RULE_OUT_APP_TO_SELF_UID, WHEN_DNS | WHEN_LOOPBACK_NOT_INCLUDED, LO_APP | FACT_TCP,
	 FACT_UID_PROXY | FACT_PORT_DNS, TO_NOWHERE},
	{RULE_OUT_PROXY_UID, 0, FACT_UID_PROXY, 0, TO_NOWHERE},

	{RULE_OUT_PROXY_GID_TO_SELF, 0, LO_PROXY | FACT_GID_PROXY, FACT_DST_LO | FACT_PORT_TUNNEL,
	 TO_INBOUND},
	{RULE_OUT_APP_TO_SELF_GID, WHEN_NO_DNS | WHEN_LOOPBACK_NOT_INCLUDED, LO_APP, FACT_GID_PROXY,
	 TO_NOWHERE},
	{RULE_OUT_APP_TO_SELF_GID, WHEN_DNS | WHEN_LOOPBACK_NOT_INCLUDED, LO_APP | FACT_TCP,
	 FACT_GID_PROXY | FACT_PORT_DNS, TO_NOWHERE},
	{RULE_OUT_PROXY_GID, 0, FACT_GID_PROXY, 0, TO_NOWHERE},

	{RULE_OUT_GROUP_EXEMPT, WHEN_GROUPS, FACT_GROUP_EXEMPT, 0, TO_NOWHERE},
	{RULE_OUT_DNS_TCP, WHEN_DNS, FACT_TCP | FACT_PORT_DNS, 0, TO_DNS},
	{RULE_OUT_DNS_UDP, WHEN_DNS, FACT_UDP | FACT_PORT_DNS, 0, TO_DNS},
	{RULE_OUT_LOOPBACK, 0, FACT_DST_LO, 0, TO_NOWHERE},
	{RULE_OUT_CIDR_EXCLUDED, WHEN_CIDRS_EXCLUDED, FACT_CIDR_EXCLUDED, 0, TO_NOWHERE},
	{RULE_OUT_PORT_INCLUDED, WHEN_OUT_PORTS_INCLUDED, FACT_TCP | FACT_PORT_INCLUDED, 0,
	 TO_OUTBOUND},
	{RULE_OUT_ALL, WHEN_OUT_ALL, FACT_TCP, 0, TO_OUTBOUND},
	{RULE_OUT_CIDR_INCLUDED, WHEN_OUT_CIDRS, FACT_TCP | FACT_CIDR_INCLUDED, 0, TO_OUTBOUND},
};

/*
 * Without inbound capture the list is empty but for rules about interfaces: there is nothing to be
 * exempt from. TPROXY never had an exemption for the tunnel port.
 */
static const struct rule_row inbound_rows[] = {
	{RULE_IPV6_OFF, WHEN_IN_ANY | WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_IPV6_OFF, WHEN_IF_REROUTED | WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_IN_IF_REROUTED, WHEN_IF_REROUTED | WHEN_OUT_ALL, FACT_TCP | FACT_IF_REROUTED, 0,
	 TO_OUTBOUND},
	{RULE_IN_IF_REROUTED, WHEN_IF_REROUTED | WHEN_OUT_CIDRS,
	 FACT_TCP | FACT_IF_REROUTED | FACT_CIDR_INCLUDED, 0, TO_OUTBOUND},
	{RULE_IN_IF_REROUTED_REST, WHEN_IF_REROUTED, FACT_IF_REROUTED, 0, TO_NOWHERE},
	{RULE_IN_IF_EXCLUDED, WHEN_IN_ANY | WHEN_IF_EXCLUDED, FACT_IF_EXCLUDED, 0, TO_NOWHERE},
	{RULE_IN_TUNNEL, WHEN_IN_ANY | WHEN_TUNNEL | WHEN_REDIRECT, FACT_TCP | FACT_PORT_TUNNEL, 0,
	 TO_NOWHERE},
	{RULE_IN_PORT_EXCLUDED, WHEN_IN_ALL | WHEN_IN_PORTS_EXCLUDED, FACT_TCP | FACT_PORT_EXCLUDED,
	 0, TO_NOWHERE},
	{RULE_IN_ALL, WHEN_IN_ALL | WHEN_REDIRECT, FACT_TCP, 0, TO_INBOUND},
	{RULE_IN_ALL, WHEN_IN_ALL | WHEN_TPROXY, FACT_TCP, 0, TO_INBOUND_TPROXY},
	{RULE_IN_PORT_INCLUDED, WHEN_IN_PORTS | WHEN_REDIRECT, FACT_TCP | FACT_PORT_INCLUDED, 0,
	 TO_INBOUND},
	{RULE_IN_PORT_INCLUDED, WHEN_IN_PORTS | WHEN_TPROXY, FACT_TCP | FACT_PORT_INCLUDED, 0,
	 TO_INBOUND_TPROXY},
};

/*
 * Ambient, Istio's in-pod rules. What ztunnel opens is exempt from every one of them, so it comes
 * first. DNS over UDP is about the interface and DNS over TCP about the address: so it is in Istio.
 */
static const struct rule_row ambient_outbound_rows[] = {
	{RULE_IPV6_OFF, WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_OUT_PROXY_MARK, 0, FACT_MARK_PROXY, 0, TO_NOWHERE},
	{RULE_OUT_PROBE, 0, FACT_TCP | FACT_DST_PROBE, 0, TO_NOWHERE},
	{RULE_OUT_DNS_UDP, WHEN_DNS, FACT_UDP | FACT_PORT_DNS, FACT_OUT_LO, TO_DNS},
	{RULE_OUT_DNS_TCP, WHEN_DNS, FACT_TCP | FACT_PORT_DNS, FACT_DST_LO, TO_DNS},
	{RULE_OUT_REPLY_MARK, 0, FACT_TCP | FACT_MARK_REPLY, 0, TO_NOWHERE},
	{RULE_OUT_TO_SELF, 0, FACT_OUT_LO, FACT_DST_LO, TO_NOWHERE},
	{RULE_OUT_LOOPBACK, 0, FACT_DST_LO, 0, TO_NOWHERE},
	{RULE_OUT_ALL, 0, FACT_TCP, 0, TO_OUTBOUND},
};

static const struct rule_row ambient_inbound_rows[] = {
	{RULE_IPV6_OFF, WHEN_IN_ANY | WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_IPV6_OFF, WHEN_IF_REROUTED | WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_IN_IF_REROUTED, WHEN_IF_REROUTED, FACT_TCP | FACT_IF_REROUTED, 0, TO_OUTBOUND},
	{RULE_IN_IF_REROUTED_REST, WHEN_IF_REROUTED, FACT_IF_REROUTED, 0, TO_NOWHERE},
	{RULE_IN_PROBE, WHEN_IN_ALL, FACT_TCP | FACT_SRC_PROBE, 0, TO_NOWHERE},
	{RULE_IN_TUNNEL, WHEN_IN_ALL | WHEN_TUNNEL, FACT_TCP | FACT_PORT_TUNNEL, 0, TO_NOWHERE},
	{RULE_IN_ALL, WHEN_IN_ALL, FACT_TCP, FACT_DST_LO | FACT_MARK_PROXY, TO_INBOUND},
};

/*
 * Ambient by a proxy in another namespace of the node: whoever connects from the pod is captured,
 * but towards that proxy itself. Nothing inbound is.
 */
static const struct rule_row node_outbound_rows[] = {
	{RULE_IPV6_OFF, WHEN_IPV6_OFF, FACT_IPV6, 0, TO_NOWHERE},
	{RULE_OUT_TO_NODE_PROXY, 0, FACT_DST_PROXY, 0, TO_NOWHERE},
	{RULE_OUT_TO_SELF, 0, FACT_OUT_LO, FACT_DST_LO, TO_NOWHERE},
	{RULE_OUT_LOOPBACK, 0, FACT_DST_LO, 0, TO_NOWHERE},
	{RULE_OUT_DNS_UDP, WHEN_DNS, FACT_UDP | FACT_PORT_DNS, 0, TO_DNS},
	{RULE_OUT_DNS_TCP, WHEN_DNS, FACT_TCP | FACT_PORT_DNS, 0, TO_DNS},
	{RULE_OUT_ALL, 0, FACT_TCP, 0, TO_OUTBOUND},
};

#define ROWS(table) (sizeof(table) / sizeof((table)[0]))

_Static_assert(ROWS(outbound_rows) <= PLAN_RULES_MAX, "a plan holds every outbound rule");
_Static_assert(ROWS(inbound_rows) <= PLAN_RULES_MAX, "a plan holds every inbound rule");
_Static_assert(ROWS(ambient_outbound_rows) <= PLAN_RULES_MAX, "and those of ambient");
_Static_assert(ROWS(ambient_inbound_rows) <= PLAN_RULES_MAX, "and those of ambient");
_Static_assert(ROWS(node_outbound_rows) <= PLAN_RULES_MAX, "and those of ambient");

static const struct {
	const char *name, *sentence;
} rule_texts[RULE_ID_COUNT_] = {
	[RULE_NONE] = {"none", "no rule matches: passes unchanged"},
	[RULE_IPV6_OFF] = {"ipv6-off", "IPv6 is not captured here: passes unchanged"},
	[RULE_OUT_IF_EXCLUDED] = {"out-interface-excluded",
				  "it leaves by an interface of excludeInterfaces: passes "
				  "unchanged"},
	[RULE_OUT_PORT_EXCLUDED] = {"out-port-excluded",
				    "the port is in excludeOutboundPorts: passes unchanged"},
	[RULE_OUT_SRC_P6] = {"out-src-p6", "the source is 127.0.0.6 or ::6, with which the proxy "
					   "hands inbound traffic to the app: passes unchanged"},
	[RULE_OUT_PROXY_UID_TO_SELF] = {"out-proxy-uid-to-self",
					"the proxy (by uid) calls the pod's own address: goes to "
					"the proxy's inbound port"},
	[RULE_OUT_TPROXY_SELF] = {"out-tproxy-self",
				  "the proxy (by uid or gid) calls the pod's own address, in "
				  "TPROXY mode: goes to the proxy's inbound port unless that port "
				  "is excluded there"},
	[RULE_OUT_APP_TO_SELF_UID] = {"out-app-to-self-uid",
				      "the app (not a proxy uid) calls its own pod: passes "
				      "unchanged"},
	[RULE_OUT_PROXY_UID] = {"out-proxy-uid",
				"the proxy itself (by uid) connects: passes unchanged"},
	[RULE_OUT_PROXY_GID_TO_SELF] = {"out-proxy-gid-to-self",
					"the proxy (by gid) calls the pod's own address: goes to "
					"the proxy's inbound port"},
	[RULE_OUT_APP_TO_SELF_GID] = {"out-app-to-self-gid",
				      "the app (not a proxy gid) calls its own pod: passes "
				      "unchanged"},
	[RULE_OUT_PROXY_GID] = {"out-proxy-gid",
				"the proxy itself (by gid) connects: passes unchanged"},
	[RULE_OUT_GROUP_EXEMPT] = {"out-group-exempt",
				   "the opener's group is not one of those that are captured: "
				   "passes unchanged"},
	[RULE_OUT_DNS_TCP] = {"out-dns-tcp",
			      "DNS over TCP is captured: goes to the proxy's DNS port"},
	[RULE_OUT_DNS_UDP] = {"out-dns-udp",
			      "DNS over UDP is captured: goes to the proxy's DNS port"},
	[RULE_OUT_LOOPBACK] = {"out-loopback",
			       "the destination is the loopback address: passes unchanged"},
	[RULE_OUT_CIDR_EXCLUDED] = {"out-cidr-excluded", "the destination is in "
							 "excludeOutboundIPRanges: passes "
							 "unchanged"},
	[RULE_OUT_PORT_INCLUDED] = {"out-port-included", "the port is in includeOutboundPorts: "
							 "goes to the proxy's outbound port"},
	[RULE_OUT_ALL] = {"out-all",
			  "all outbound TCP is captured: goes to the proxy's outbound port"},
	[RULE_OUT_CIDR_INCLUDED] = {"out-cidr-included", "the destination is in "
							 "includeOutboundIPRanges: goes to the "
							 "proxy's outbound port"},
	[RULE_IN_IF_REROUTED] = {"in-interface-rerouted",
				 "it comes from a guest's interface: goes to the proxy's outbound "
				 "port"},
	[RULE_IN_IF_REROUTED_REST] = {"in-interface-rerouted-rest",
				      "it comes from a guest's interface and is not captured: "
				      "passes unchanged"},
	[RULE_IN_IF_EXCLUDED] = {"in-interface-excluded",
				 "it comes in by an interface of excludeInterfaces: passes "
				 "unchanged"},
	[RULE_IN_TUNNEL] = {"in-tunnel",
			    "the port is the mesh's tunnel port: reaches its listener directly"},
	[RULE_IN_PORT_EXCLUDED] = {"in-port-excluded", "the port is in excludeInboundPorts: "
						       "reaches the app directly"},
	[RULE_IN_ALL] = {"in-all", "all inbound TCP is captured: goes to the proxy's inbound port"},
	[RULE_IN_PORT_INCLUDED] = {"in-port-included", "the port is in includeInboundPorts: goes "
						       "to the proxy's inbound port"},
	[RULE_OUT_PROXY_MARK] = {"out-proxy-mark",
				 "the proxy itself (by its mark) connects: passes unchanged"},
	[RULE_OUT_PROBE] = {"out-probe",
			    "it goes to the address that stands for kubelet: passes unchanged"},
	[RULE_OUT_REPLY_MARK] = {"out-reply-mark",
				 "it answers the proxy (by its mark): passes unchanged"},
	[RULE_OUT_TO_SELF] = {"out-to-self", "the app calls its own pod: passes unchanged"},
	[RULE_IN_PROBE] = {"in-probe", "it is a probe of kubelet's: reaches the app directly"},
	[RULE_OUT_TO_NODE_PROXY] = {"out-to-node-proxy",
				    "the app calls the node's proxy itself: passes unchanged"},
};

const char *redirect_plan_needs_ebpf(const struct redirect_plan *plan)
{
	if (!plan->node_proxy)
		return NULL;
	return "a proxy in another network namespace (--ztunnel node) needs eBPF: conntrack of the "
	       "pod's namespace cannot tell it the original destination";
}

const char *plan_rule_name(enum plan_rule_id id)
{
	return (unsigned)id < RULE_ID_COUNT_ ? rule_texts[id].name : "unknown";
}

const char *plan_rule_sentence(enum plan_rule_id id)
{
	return (unsigned)id < RULE_ID_COUNT_ ? rule_texts[id].sentence : "unknown rule";
}

static void names_done(struct name_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->names[i]);
	free(list->names);
}

void redirect_settings_done(struct redirect_settings *s)
{
	names_done(&s->exclude_interfaces);
	names_done(&s->reroute_interfaces);
	free(s->proxy_uids.ids);
	free(s->proxy_gids.ids);
	free(s->groups.ids);
	free(s->outbound_exclude_ports.ports);
	free(s->outbound_include_ports.ports);
	free(s->inbound_exclude_ports.ports);
	free(s->inbound_include_ports.ports);
	free(s->exclude_prefixes.prefixes);
	free(s->include_prefixes.prefixes);
	memset(s, 0, sizeof(*s));
}

void redirect_plan_free(struct redirect_plan *plan)
{
	if (!plan)
		return;
	names_done(&plan->exclude_interfaces);
	names_done(&plan->reroute_interfaces);
	free(plan->proxy_uids.ids);
	free(plan->proxy_gids.ids);
	free(plan->groups.ids);
	free(plan->outbound_exclude_ports.ports);
	free(plan->outbound_include_ports.ports);
	free(plan->inbound_exclude_ports.ports);
	free(plan->inbound_include_ports.ports);
	free(plan->exclude_prefixes.prefixes);
	free(plan->include_prefixes.prefixes);
	free(plan);
}

/* ---- lists ---------------------------------------------------------------------------------- */

static int compare_ports(const void *a, const void *b)
{
	uint16_t x = *(const uint16_t *)a, y = *(const uint16_t *)b;

	return (x > y) - (x < y);
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int compare_prefixes(const void *a, const void *b)
{
	const struct ip_prefix *x = a, *y = b;
	int diff = memcmp(x->address.bytes, y->address.bytes, sizeof(x->address.bytes));

	return diff ? diff : (x->length > y->length) - (x->length < y->length);
}

typedef int (*compare_fn)(const void *a, const void *b);

/* A sorted copy without repeats; *ret_items stays NULL for an empty list. */
static int copy_sorted(const void *items, size_t n, size_t size, compare_fn compare,
		       void *ret_items, size_t *ret_n)
{
	char *copy;
	size_t kept = 0;

	if (n == 0)
		return 0;
	copy = calloc(n, size);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, items, n * size);
	qsort(copy, n, size, compare);
	for (size_t i = 0; i < n; i++) {
		if (kept > 0 && compare(copy + (kept - 1) * size, copy + i * size) == 0)
			continue;
		if (kept != i)
			memcpy(copy + kept * size, copy + i * size, size);
		kept++;
	}
	*(void **)ret_items = copy;
	*ret_n = kept;
	return 0;
}

static int copy_ports(const struct port_list *from, struct port_list *to)
{
	return copy_sorted(from->ports, from->n, sizeof(*from->ports), compare_ports, &to->ports,
			   &to->n);
}

static int copy_ids(const struct id_list *from, struct id_list *to)
{
	return copy_sorted(from->ids, from->n, sizeof(*from->ids), compare_ids, &to->ids, &to->n);
}

static int copy_prefixes(const struct prefix_list *from, struct prefix_list *to)
{
	return copy_sorted(from->prefixes, from->n, sizeof(*from->prefixes), compare_prefixes,
			   &to->prefixes, &to->n);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int copy_names(const struct name_list *from, struct name_list *to)
{
	if (copy_sorted(from->names, from->n, sizeof(*from->names), compare_names, &to->names,
			&to->n) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < to->n; i++) {
		to->names[i] = strdup(to->names[i]);
		if (!to->names[i]) {
			to->n = i; /* the rest is not ours to free */
			return -ENOMEM;
		}
	}
	return 0;
}

static int copy_lists(const struct redirect_settings *s, struct redirect_plan *plan)
{
	if (copy_ids(&s->proxy_uids, &plan->proxy_uids) < 0 ||
	    copy_ids(&s->proxy_gids, &plan->proxy_gids) < 0 ||
	    copy_ports(&s->outbound_exclude_ports, &plan->outbound_exclude_ports) < 0 ||
	    copy_ports(&s->outbound_include_ports, &plan->outbound_include_ports) < 0 ||
	    copy_prefixes(&s->exclude_prefixes, &plan->exclude_prefixes) < 0 ||
	    copy_names(&s->exclude_interfaces, &plan->exclude_interfaces) < 0 ||
	    copy_names(&s->reroute_interfaces, &plan->reroute_interfaces) < 0)
		return -ENOMEM;
	if (s->groups_set && copy_ids(&s->groups, &plan->groups) < 0)
		return -ENOMEM;
	/* A list that no rule asks about stays out of the plan, or equal plans would differ. */
	if (!s->outbound_include_all &&
	    copy_prefixes(&s->include_prefixes, &plan->include_prefixes) < 0)
		return -ENOMEM;
	if (s->inbound_include_all)
		return copy_ports(&s->inbound_exclude_ports, &plan->inbound_exclude_ports);
	return copy_ports(&s->inbound_include_ports, &plan->inbound_include_ports);
}

static bool has_port(const struct port_list *list, uint16_t port)
{
	return list->n && bsearch(&port, list->ports, list->n, sizeof(port), compare_ports);
}

static bool has_id(const struct id_list *list, uint32_t id)
{
	return list->n && bsearch(&id, list->ids, list->n, sizeof(id), compare_ids);
}

static bool has_name(const struct name_list *list, const char *name)
{
	return name && list->n && bsearch(&name, list->names, list->n, sizeof(name), compare_names);
}

static bool has_address(const struct prefix_list *list, const struct ip_address *a)
{
	for (size_t i = 0; i < list->n; i++)
		if (ip_prefix_contains(&list->prefixes[i], a))
			return true;
	return false;
}

/* ---- building ------------------------------------------------------------------------------- */

static bool includes_loopback(const struct redirect_plan *plan)
{
	const struct prefix_list *list = &plan->include_prefixes;

	for (size_t i = 0; i < list->n; i++)
		if (ip_address_is_loopback(&list->prefixes[i].address))
			return true;
	return false;
}

static uint32_t condition(bool holds, enum rule_condition when)
{
	return holds ? (uint32_t)when : 0;
}

static uint32_t plan_conditions(const struct redirect_settings *s, const struct redirect_plan *plan)
{
	bool in_all = s->inbound_include_all, in_ports = plan->inbound_include_ports.n > 0;

	return condition(!plan->capture_ipv6, WHEN_IPV6_OFF) |
	       condition(plan->dns_port != 0, WHEN_DNS) |
	       condition(plan->dns_port == 0, WHEN_NO_DNS) |
	       condition(!includes_loopback(plan), WHEN_LOOPBACK_NOT_INCLUDED) |
	       condition(s->groups_set, WHEN_GROUPS) |
	       condition(s->outbound_include_all, WHEN_OUT_ALL) |
	       condition(plan->include_prefixes.n > 0, WHEN_OUT_CIDRS) |
	       condition(plan->outbound_exclude_ports.n > 0, WHEN_OUT_PORTS_EXCLUDED) |
	       condition(plan->outbound_include_ports.n > 0, WHEN_OUT_PORTS_INCLUDED) |
	       condition(plan->exclude_prefixes.n > 0, WHEN_CIDRS_EXCLUDED) |
	       condition(in_all || in_ports, WHEN_IN_ANY) | condition(in_all, WHEN_IN_ALL) |
	       condition(in_ports, WHEN_IN_PORTS) |
	       condition(plan->inbound_exclude_ports.n > 0, WHEN_IN_PORTS_EXCLUDED) |
	       condition(plan->tunnel_port != 0, WHEN_TUNNEL) |
	       condition(!plan->tproxy, WHEN_REDIRECT) | condition(plan->tproxy, WHEN_TPROXY) |
	       condition(plan->exclude_interfaces.n > 0, WHEN_IF_EXCLUDED) |
	       condition(plan->reroute_interfaces.n > 0, WHEN_IF_REROUTED);
}

static uint16_t target_port(const struct redirect_plan *plan, enum rule_target target)
{
	switch (target) {
	case TO_OUTBOUND:
		return plan->outbound_port;
	case TO_INBOUND:
	case TO_INBOUND_TPROXY:
		return plan->inbound_port;
	case TO_DNS:
		return plan->dns_port;
	case TO_NOWHERE:
		break;
	}
	return 0;
}

static enum plan_verdict target_verdict(enum rule_target target)
{
	if (target == TO_NOWHERE)
		return PLAN_PASS;
	return target == TO_INBOUND_TPROXY ? PLAN_TPROXY : PLAN_REDIRECT;
}

static size_t select_rules(const struct redirect_plan *plan, const struct rule_row *rows, size_t n,
			   uint32_t conditions, struct plan_rule *ret)
{
	size_t used = 0;

	for (size_t i = 0; i < n; i++) {
		const struct rule_row *row = &rows[i];

		if ((row->when & conditions) != row->when)
			continue;
		ret[used++] = (struct plan_rule){
			.id = row->id,
			.all_of = row->all_of,
			.none_of = row->none_of,
			.verdict = target_verdict(row->target),
			.port = target_port(plan, row->target),
		};
	}
	return used;
}

static void build_rules(struct redirect_plan *plan, uint32_t conditions)
{
	if (plan->node_proxy) {
		plan->n_outbound = select_rules(plan, node_outbound_rows, ROWS(node_outbound_rows),
						conditions, plan->outbound);
		return;
	}
	if (plan->ambient) {
		plan->n_outbound =
			select_rules(plan, ambient_outbound_rows, ROWS(ambient_outbound_rows),
				     conditions, plan->outbound);
		plan->n_inbound =
			select_rules(plan, ambient_inbound_rows, ROWS(ambient_inbound_rows),
				     conditions, plan->inbound);
		return;
	}
	plan->n_outbound =
		select_rules(plan, outbound_rows, ROWS(outbound_rows), conditions, plan->outbound);
	plan->n_inbound =
		select_rules(plan, inbound_rows, ROWS(inbound_rows), conditions, plan->inbound);
}

int redirect_plan_build(const struct redirect_settings *s, struct redirect_plan **ret,
			struct error *err)
{
	struct redirect_plan *plan = calloc(1, sizeof(*plan));

	if (!plan)
		return error_set(err, ENOMEM, "allocate a redirect plan");
	plan->outbound_port = s->outbound_port;
	plan->inbound_port = s->inbound_port;
	plan->dns_port = s->dns_capture ? s->dns_port : 0;
	plan->tunnel_port = s->tunnel_port;
	plan->capture_ipv6 = s->capture_ipv6;
	plan->ambient = s->ambient;
	plan->node_proxy = s->node_proxy;
	plan->proxy4 = s->proxy4;
	plan->proxy6 = s->proxy6;
	plan->tproxy = s->tproxy;
	plan->drop_invalid = s->drop_invalid;
	plan->loopback4 = s->loopback4;
	/* Exempting the groups of an empty list is what "no group filter" means. */
	plan->groups_exempt = !s->groups_set || s->groups_exempt;
	if (copy_lists(s, plan) < 0) {
		redirect_plan_free(plan);
		return error_set(err, ENOMEM, "allocate the lists of a redirect plan");
	}
	build_rules(plan, plan_conditions(s, plan));
	*ret = plan;
	return 0;
}

/* ---- comparing ------------------------------------------------------------------------------ */

static bool rules_equal(const struct plan_rule *a, size_t n_a, const struct plan_rule *b,
			size_t n_b)
{
	if (n_a != n_b)
		return false;
	for (size_t i = 0; i < n_a; i++)
		if (a[i].id != b[i].id || a[i].all_of != b[i].all_of ||
		    a[i].none_of != b[i].none_of || a[i].verdict != b[i].verdict ||
		    a[i].port != b[i].port)
			return false;
	return true;
}

static bool ports_equal(const struct port_list *a, const struct port_list *b)
{
	return a->n == b->n &&
	       (a->n == 0 || memcmp(a->ports, b->ports, a->n * sizeof(*a->ports)) == 0);
}

static bool ids_equal(const struct id_list *a, const struct id_list *b)
{
	return a->n == b->n && (a->n == 0 || memcmp(a->ids, b->ids, a->n * sizeof(*a->ids)) == 0);
}

static bool names_equal(const struct name_list *a, const struct name_list *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (strcmp(a->names[i], b->names[i]) != 0)
			return false;
	return true;
}

static bool prefixes_equal(const struct prefix_list *a, const struct prefix_list *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (compare_prefixes(&a->prefixes[i], &b->prefixes[i]) != 0)
			return false;
	return true;
}

bool redirect_plan_equal(const struct redirect_plan *a, const struct redirect_plan *b)
{
	return rules_equal(a->outbound, a->n_outbound, b->outbound, b->n_outbound) &&
	       rules_equal(a->inbound, a->n_inbound, b->inbound, b->n_inbound) &&
	       a->outbound_port == b->outbound_port && a->inbound_port == b->inbound_port &&
	       a->dns_port == b->dns_port && a->tunnel_port == b->tunnel_port &&
	       a->capture_ipv6 == b->capture_ipv6 && a->ambient == b->ambient &&
	       a->node_proxy == b->node_proxy && ip_address_equal(&a->proxy4, &b->proxy4) &&
	       ip_address_equal(&a->proxy6, &b->proxy6) && a->tproxy == b->tproxy &&
	       a->drop_invalid == b->drop_invalid &&
	       names_equal(&a->exclude_interfaces, &b->exclude_interfaces) &&
	       names_equal(&a->reroute_interfaces, &b->reroute_interfaces) &&
	       compare_prefixes(&a->loopback4, &b->loopback4) == 0 &&
	       a->groups_exempt == b->groups_exempt && ids_equal(&a->proxy_uids, &b->proxy_uids) &&
	       ids_equal(&a->proxy_gids, &b->proxy_gids) && ids_equal(&a->groups, &b->groups) &&
	       ports_equal(&a->outbound_exclude_ports, &b->outbound_exclude_ports) &&
	       ports_equal(&a->outbound_include_ports, &b->outbound_include_ports) &&
	       ports_equal(&a->inbound_exclude_ports, &b->inbound_exclude_ports) &&
	       ports_equal(&a->inbound_include_ports, &b->inbound_include_ports) &&
	       prefixes_equal(&a->exclude_prefixes, &b->exclude_prefixes) &&
	       prefixes_equal(&a->include_prefixes, &b->include_prefixes);
}

/* ---- deciding ------------------------------------------------------------------------------- */

static const struct ip_address loopback_v4 = {{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
static const struct ip_address loopback_v6 = {{[15] = 1}};
static const struct ip_address passthrough_v4 = {{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 6}};
static const struct ip_address passthrough_v6 = {{[15] = 6}};

const struct ip_address plan_probe_source4 = {
	{[10] = 0xff, [11] = 0xff, [12] = 169, [13] = 254, [14] = 7, [15] = 127}};
const struct ip_address plan_probe_source6 = {{0xfd, 0x16, 0x92, 0x54, 0x71, 0x27, 0x13, 0x37, 0xff,
					       0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

/*
 * Who dials 0.0.0.0 reaches the address that the socket is bound to, else 127.0.0.1; who dials ::
 * reaches ::1, or 127.0.0.1 on a socket bound to a v4-mapped address (ip_route_output_key() and
 * tcp_v6_connect()). Netfilter only ever saw what came of it.
 */
static struct ip_address effective_destination(const struct plan_flow *flow)
{
	bool bound = !ip_address_is_unspecified(&flow->source);

	if (!ip_address_is_unspecified(&flow->destination))
		return flow->destination;
	if (ip_address_is_v4(&flow->destination))
		return bound && ip_address_is_v4(&flow->source) ? flow->source : loopback_v4;
	return bound && ip_address_is_v4(&flow->source) ? loopback_v4 : loopback_v6;
}

static uint32_t fact(bool holds, enum plan_fact bit)
{
	return holds ? (uint32_t)bit : 0;
}

static bool is_probe_source(const struct ip_address *a)
{
	return ip_address_equal(a, &plan_probe_source4) || ip_address_equal(a, &plan_probe_source6);
}

static bool has_mark(const struct plan_flow *flow, enum ambient_mark mark)
{
	return (flow->mark & AMBIENT_MARK_MASK) == (uint32_t)mark;
}

/* Nobody but ztunnel and the kernel's answers to it is known by a mark. */
static uint32_t ambient_facts(const struct redirect_plan *plan, const struct plan_flow *flow,
			      const struct ip_address *destination)
{
	if (!plan->ambient)
		return 0;
	return fact(has_mark(flow, AMBIENT_MARK_PROXY), FACT_MARK_PROXY) |
	       fact(has_mark(flow, AMBIENT_MARK_REPLY), FACT_MARK_REPLY) |
	       fact(!flow->knows_kubelet && is_probe_source(&flow->source), FACT_SRC_PROBE) |
	       fact(!flow->knows_kubelet && is_probe_source(destination), FACT_DST_PROBE);
}

static bool is_lo(const struct redirect_plan *plan, const struct ip_address *a)
{
	return ip_address_is_v4(a) ? ip_prefix_contains(&plan->loopback4, a)
				   : ip_address_equal(a, &loopback_v6);
}

static bool is_node_proxy(const struct redirect_plan *plan, const struct ip_address *a)
{
	return plan->node_proxy &&
	       (ip_address_equal(a, &plan->proxy4) || ip_address_equal(a, &plan->proxy6));
}

static uint32_t outbound_facts(const struct redirect_plan *plan, const struct plan_flow *flow,
			       const struct ip_address *destination)
{
	const struct ip_address *source = &flow->source;
	bool unspecified = ip_address_is_unspecified(&flow->destination);
	bool lo = unspecified || flow->destination_is_local || ip_address_is_loopback(destination);
	bool p6 = ip_address_equal(source, &passthrough_v4) ||
		  ip_address_equal(source, &passthrough_v6);
	bool dst_lo = is_lo(plan, destination);
	bool exempt = has_id(&plan->groups, flow->gid) == plan->groups_exempt;

	return fact(is_node_proxy(plan, destination), FACT_DST_PROXY) | fact(lo, FACT_OUT_LO) |
	       fact(p6, FACT_SRC_P6) | fact(dst_lo, FACT_DST_LO) |
	       fact(has_id(&plan->proxy_uids, flow->uid), FACT_UID_PROXY) |
	       fact(has_id(&plan->proxy_gids, flow->gid), FACT_GID_PROXY) |
	       fact(exempt, FACT_GROUP_EXEMPT) |
	       fact(has_port(&plan->outbound_exclude_ports, flow->port), FACT_PORT_EXCLUDED) |
	       fact(has_port(&plan->outbound_include_ports, flow->port), FACT_PORT_INCLUDED) |
	       fact(has_address(&plan->exclude_prefixes, destination), FACT_CIDR_EXCLUDED) |
	       fact(has_address(&plan->include_prefixes, destination), FACT_CIDR_INCLUDED) |
	       fact(has_name(&plan->exclude_interfaces, flow->interface), FACT_IF_EXCLUDED);
}

static uint32_t inbound_facts(const struct redirect_plan *plan, const struct plan_flow *flow)
{
	return fact(has_name(&plan->exclude_interfaces, flow->interface), FACT_IF_EXCLUDED) |
	       fact(has_name(&plan->reroute_interfaces, flow->interface), FACT_IF_REROUTED) |
	       fact(is_lo(plan, &flow->destination), FACT_DST_LO) |
	       fact(has_address(&plan->include_prefixes, &flow->destination), FACT_CIDR_INCLUDED) |
	       fact(has_port(&plan->inbound_exclude_ports, flow->port), FACT_PORT_EXCLUDED) |
	       fact(has_port(&plan->inbound_include_ports, flow->port), FACT_PORT_INCLUDED);
}

uint32_t redirect_plan_facts(const struct redirect_plan *plan, const struct plan_flow *flow)
{
	struct ip_address destination = effective_destination(flow);
	bool tunnel = plan->tunnel_port && flow->port == plan->tunnel_port;
	uint32_t facts = (flow->udp ? FACT_UDP : FACT_TCP) |
			 fact(!ip_address_is_v4(&destination), FACT_IPV6) |
			 fact(flow->port == PORT_DNS, FACT_PORT_DNS) |
			 fact(tunnel, FACT_PORT_TUNNEL) | ambient_facts(plan, flow, &destination);

	return facts | (flow->inbound ? inbound_facts(plan, flow)
				      : outbound_facts(plan, flow, &destination));
}

const struct plan_rule *redirect_plan_decide(const struct redirect_plan *plan,
					     const struct plan_flow *flow)
{
	static const struct plan_rule no_rule = {.id = RULE_NONE, .verdict = PLAN_PASS};
	const struct plan_rule *rules = flow->inbound ? plan->inbound : plan->outbound;
	size_t n = flow->inbound ? plan->n_inbound : plan->n_outbound;
	uint32_t facts = redirect_plan_facts(plan, flow);

	for (size_t i = 0; i < n; i++)
		if ((facts & rules[i].all_of) == rules[i].all_of && !(facts & rules[i].none_of))
			return &rules[i];
	return &no_rule;
}
