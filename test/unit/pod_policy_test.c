/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_policy.h"

#include "error.h"
#include "json.h"
#include "kube_pod.h"
#include "pod_annotations.h"
#include "quoted_json.h"
#include "test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define TRAFFIC	     "traffic.sidecar.istio.io/"
#define SIDECAR	     "sockmesh.io/redirection", "sidecar"
#define STATUS	     "sidecar.istio.io/status"
#define REAL_STATUS                                                                                \
	"{\"initContainers\":[\"istio-validation\"],\"containers\":[\"istio-proxy\"],"             \
	"\"volumes\":[\"workload-socket\"],\"imagePullSecrets\":null,\"revision\":\"default\"}"

static struct policy_config config_of(enum mesh mesh)
{
	static const char *const excluded[] = {"kube-system", "sockmesh", NULL};
	static const char *const own[] = {"mesh/ztunnel-", "mesh/cni", NULL};
	struct policy_config cfg = {
		.mesh = mesh_presets[mesh],
		.capture_ipv6 = true,
		.exclude_namespaces = excluded,
		.own_pods = own,
	};
	struct error err = {0};

	if (ip_prefix_parse("127.0.0.1/32", &cfg.loopback4, &err) < 0)
		abort();
	return cfg;
}

/* Pairs of name and value, ended by NULL. */
static json_t *strings(const char *const *pairs)
{
	json_t *object = json_object();

	for (; *pairs; pairs += 2)
		json_object_set_new(object, pairs[0], json_string(pairs[1]));
	return object;
}

/* Decides about a pod with these annotations; the decision is empty on failure. */
static int decide_with(const struct policy_config *cfg, const char *const *annotations,
		       struct pod_decision *ret, struct error *err)
{
	scoped_json json_t *object = strings(annotations);
	struct pod_facts pod = {.ns = "default", .name = "web-0", .annotations = object};

	memset(ret, 0, sizeof(*ret));
	memset(err, 0, sizeof(*err));
	return pod_policy_decide(cfg, &pod, ret, err);
}

#define DECIDE(cfg, ret, err, ...)                                                                 \
	decide_with(cfg, (const char *const[]){__VA_ARGS__, NULL}, ret, err)

/* The value must be refused with exactly this code and text. */
static enum test_result check_refused(const char *name, const char *value, int code,
				      const char *text)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	const char *const pairs[] = {STATUS, REAL_STATUS, name, value, NULL};
	struct pod_decision d;
	struct error err;
	int r = decide_with(&cfg, pairs, &d, &err);

	if (r == 0)
		pod_decision_done(&d);
	CHECK_EQ(r, -code);
	CHECK_EQ(err.code, code);
	CHECK_STR(err.text, text);
	return TEST_OK;
}

/* ---- is it in the mesh? -------------------------------------------------------------------- */

TEST(enrolment_follows_annotations_and_labels)
{
	static const struct {
		const char *redirection, *status, *inject, *label; /* NULL: absent */
		enum pod_mode mode;
		const char *reason;
	} rows[] = {
		{NULL, NULL, NULL, NULL, POD_SKIP, "no sidecar"},
		{NULL, "", NULL, NULL, POD_SKIP, "no sidecar"},
		{NULL, REAL_STATUS, NULL, NULL, POD_SIDECAR, "sidecar.istio.io/status"},
		{NULL, "{}", NULL, NULL, POD_SIDECAR, "sidecar.istio.io/status"},
		{NULL, "{\"initContainers\":null}", NULL, NULL, POD_SIDECAR, "status"},
		{NULL, "{\"initContainers\":[\"istio-validation\",\"istio-init\"]}", NULL, NULL,
		 POD_SKIP, "redirects itself"},
		{NULL, "{\"containers\":[\"istio-init\"]}", NULL, NULL, POD_SIDECAR, "status"},
		{NULL, "{\"initContainers\":[\"istio-init2\"]}", NULL, NULL, POD_SIDECAR, "status"},
		{NULL, REAL_STATUS, "false", NULL, POD_SKIP,
		 "annotation sidecar.istio.io/inject is false"},
		{NULL, REAL_STATUS, "F", NULL, POD_SKIP, "inject is false"},
		{NULL, REAL_STATUS, "0", NULL, POD_SKIP, "inject is false"},
		{NULL, REAL_STATUS, "true", NULL, POD_SIDECAR, "status"},
		{NULL, NULL, "true", NULL, POD_SKIP, "no sidecar"},
		/* What ParseBool does not take is not a no: the injector decided already. */
		{NULL, REAL_STATUS, "no", NULL, POD_SIDECAR, "status"},
		{NULL, REAL_STATUS, "", NULL, POD_SIDECAR, "status"},
		{NULL, REAL_STATUS, "true", "false", POD_SKIP,
		 "label sidecar.istio.io/inject is false"},
		{NULL, REAL_STATUS, "false", "true", POD_SIDECAR, "status"},
		{NULL, REAL_STATUS, "false", "", POD_SIDECAR, "status"},
		/* A refused injection is not asked about its status. */
		{NULL, "not JSON", "false", NULL, POD_SKIP, "inject is false"},
		{"sidecar", NULL, NULL, NULL, POD_SIDECAR, "sockmesh.io/redirection is sidecar"},
		{"sidecar", NULL, "false", "false", POD_SIDECAR, "redirection is sidecar"},
		{"sidecar", "{\"initContainers\":[\"istio-init\"]}", NULL, NULL, POD_SIDECAR,
		 "redirection is sidecar"},
		{"none", REAL_STATUS, "true", "true", POD_SKIP, "redirection is none"},
		{"none", "not JSON", NULL, NULL, POD_SKIP, "redirection is none"},
	};
	struct policy_config cfg = config_of(MESH_ISTIO);

	for (size_t i = 0; i < COUNT(rows); i++) {
		scoped_json json_t *annotations = json_object(), *labels = json_object();
		struct pod_facts pod = {.annotations = annotations, .labels = labels};
		struct pod_decision d;
		struct error err = {0};

		if (rows[i].redirection)
			json_object_set_new(annotations, "sockmesh.io/redirection",
					    json_string(rows[i].redirection));
		if (rows[i].status)
			json_object_set_new(annotations, STATUS, json_string(rows[i].status));
		if (rows[i].inject)
			json_object_set_new(annotations, "sidecar.istio.io/inject",
					    json_string(rows[i].inject));
		if (rows[i].label)
			json_object_set_new(labels, "sidecar.istio.io/inject",
					    json_string(rows[i].label));
		CHECK_EQ(pod_policy_decide(&cfg, &pod, &d, &err), 0);
		CHECK_HAS(d.reason, rows[i].reason);
		CHECK_EQ(d.mode, rows[i].mode);
		pod_decision_done(&d);
	}
	return TEST_OK;
}

TEST(excluded_namespaces_and_own_pods_are_never_touched)
{
	static const struct {
		const char *ns, *name;
		enum pod_mode mode;
		const char *reason;
	} rows[] = {
		{"kube-system", "a", POD_SKIP, "namespace \"kube-system\" is excluded"},
		{"sockmesh", NULL, POD_SKIP, "namespace \"sockmesh\" is excluded"},
		{"kube", "a", POD_SIDECAR, "redirection"},
		{"kube-system2", "a", POD_SIDECAR, "redirection"},
		{"mesh", "ztunnel-x1", POD_SKIP, "\"mesh/ztunnel-\""},
		{"mesh", "cni", POD_SKIP, "\"mesh/cni\""},
		{"mesh", "cn", POD_SIDECAR, "redirection"},
		{"mesh", NULL, POD_SIDECAR, "redirection"},
		{"m", "sh/cni", POD_SIDECAR, "redirection"},
		{"other", "ztunnel-x1", POD_SIDECAR, "redirection"},
		{"mesh/ztunnel-", "", POD_SIDECAR, "redirection"},
		{"", "cni", POD_SIDECAR, "redirection"},
		{NULL, "ztunnel-x1", POD_SIDECAR, "redirection"},
	};
	struct policy_config cfg = config_of(MESH_ISTIO);
	scoped_json json_t *annotations = strings((const char *const[]){SIDECAR, NULL});

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct pod_facts pod = {
			.ns = rows[i].ns, .name = rows[i].name, .annotations = annotations};
		struct pod_decision d;
		struct error err = {0};

		CHECK_EQ(pod_policy_decide(&cfg, &pod, &d, &err), 0);
		CHECK_HAS(d.reason, rows[i].reason);
		CHECK_EQ(d.mode, rows[i].mode);
		pod_decision_done(&d);
	}
	return TEST_OK;
}

TEST(an_excluded_pod_is_skipped_whatever_its_annotations)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	scoped_json json_t *annotations =
		strings((const char *const[]){"sockmesh.io/redirection", "nonsense", NULL});
	struct pod_facts pod = {.ns = "kube-system", .annotations = annotations};
	struct pod_decision d;
	struct error err = {0};

	CHECK_EQ(pod_policy_decide(&cfg, &pod, &d, &err), 0);
	CHECK_EQ(d.mode, POD_SKIP);
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(unknown_annotations_skip_with_a_reason)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_facts pod = {.ns = "default", .name = "web-0"};
	struct pod_decision d;
	struct error err = {0};

	CHECK_EQ(pod_policy_decide(&cfg, &pod, &d, &err), 0);
	CHECK_EQ(d.mode, POD_SKIP);
	CHECK_HAS(d.reason, "annotations unknown");
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(no_lists_of_exclusions_exclude_nobody)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	cfg.exclude_namespaces = NULL;
	cfg.own_pods = NULL;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
	CHECK_EQ(d.mode, POD_SIDECAR);
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(a_skipped_pod_is_not_asked_for_its_settings)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, TRAFFIC "excludeOutboundPorts", "x"), 0);
	CHECK_EQ(d.mode, POD_SKIP);
	CHECK(!d.settings.proxy_uids.ids);
	pod_decision_done(&d);
	return TEST_OK;
}

/* ---- refusals ------------------------------------------------------------------------------ */

TEST(refusals_name_annotation_value_and_position)
{
	static const struct {
		const char *name, *value;
		int code;
		const char *text;
	} rows[] = {
		{TRAFFIC "excludeOutboundPorts", "80,x1", EINVAL,
		 "annotation " TRAFFIC "excludeOutboundPorts: \"80,x1\": item 2 \"x1\" is not a "
		 "port (0-65535)"},
		{TRAFFIC "includeInboundPorts", "80,*", EINVAL,
		 "annotation " TRAFFIC "includeInboundPorts: \"80,*\": item 2 \"*\" is not a port "
		 "(0-65535)"},
		{TRAFFIC "excludeInboundPorts", "*", EINVAL,
		 "annotation " TRAFFIC "excludeInboundPorts: \"*\": item 1 \"*\" is not a port "
		 "(0-65535)"},
		{TRAFFIC "includeOutboundPorts", "65536", EINVAL,
		 "annotation " TRAFFIC "includeOutboundPorts: \"65536\": item 1 \"65536\" is not a "
		 "port (0-65535)"},
		{TRAFFIC "includeOutboundIPRanges", "10.0.0.0/8,*", EINVAL,
		 "annotation " TRAFFIC "includeOutboundIPRanges: \"10.0.0.0/8,*\": item 2 \"*\" is "
		 "not an IP prefix (ADDRESS/LENGTH)"},
		{TRAFFIC "excludeOutboundIPRanges", "*", EINVAL,
		 "annotation " TRAFFIC "excludeOutboundIPRanges: \"*\": item 1 \"*\" is not an IP "
		 "prefix (ADDRESS/LENGTH)"},
		{TRAFFIC "excludeOutboundIPRanges", "10.0.0.0", EINVAL,
		 "annotation " TRAFFIC "excludeOutboundIPRanges: \"10.0.0.0\": item 1 \"10.0.0.0\" "
		 "is not an IP prefix (ADDRESS/LENGTH)"},
		{"sidecar.istio.io/interceptionMode", "NONE", EINVAL,
		 "annotation sidecar.istio.io/interceptionMode: \"NONE\" is not REDIRECT or "
		 "TPROXY"},
		{"sidecar.istio.io/interceptionMode", "redirect", EINVAL,
		 "annotation sidecar.istio.io/interceptionMode: \"redirect\" is not REDIRECT or "
		 "TPROXY"},
		{"sidecar.istio.io/interceptionMode", "", EINVAL,
		 "annotation sidecar.istio.io/interceptionMode: \"\" is not REDIRECT or TPROXY"},
		{TRAFFIC "excludeInterfaces", "eth1,net+", EINVAL,
		 "annotation " TRAFFIC "excludeInterfaces: \"eth1,net+\": item 2 \"net+\" is not "
		 "an interface name (whole, no pattern)"},
		{"istio.io/reroute-virtual-interfaces", "net1,,net2", EINVAL,
		 "annotation istio.io/reroute-virtual-interfaces: \"net1,,net2\": item 2 \"\" is "
		 "not an interface name (whole, no pattern)"},
		{TRAFFIC "excludeInterfaces", "*", EINVAL,
		 "annotation " TRAFFIC "excludeInterfaces: \"*\": item 1 \"*\" is not an "
		 "interface name (whole, no pattern)"},
		{TRAFFIC "kubevirtInterfaces", "a/b", EINVAL,
		 "annotation " TRAFFIC "kubevirtInterfaces: \"a/b\": item 1 \"a/b\" is not an "
		 "interface name (whole, no pattern)"},
		{"sockmesh.io/redirection", "Sidecar", EINVAL,
		 "annotation sockmesh.io/redirection: \"Sidecar\" is not sidecar, ambient or none"},
		{"sockmesh.io/redirection", "", EINVAL,
		 "annotation sockmesh.io/redirection: \"\" is not sidecar, ambient or none"},
		{"sockmesh.io/dns-capture", "yes", EINVAL,
		 "annotation sockmesh.io/dns-capture: \"yes\" is not true or false"},
		{"sockmesh.io/accelerate", "fast", EINVAL,
		 "annotation sockmesh.io/accelerate: \"fast\" is not auto, full, proxy or off"},
		{"sockmesh.io/proxy-uid", "1337,0", EINVAL,
		 "annotation sockmesh.io/proxy-uid: \"1337,0\": item 2 \"0\" is not an id of a "
		 "proxy (1-4294967294, never root's 0)"},
		{"sockmesh.io/proxy-gid", "4294967295", EINVAL,
		 "annotation sockmesh.io/proxy-gid: \"4294967295\": item 1 \"4294967295\" is not "
		 "an id of a proxy (1-4294967294, never root's 0)"},
		{"sockmesh.io/proxy-uid", " ", EINVAL,
		 "annotation sockmesh.io/proxy-uid: empty, a proxy needs an id"},
		{STATUS, "[]", EINVAL,
		 "annotation sidecar.istio.io/status: \"[]\" is not a JSON object"},
		{STATUS, "{\"initContainers\":[\"a\",1]}", EINVAL,
		 "annotation sidecar.istio.io/status: initContainers: item 2 is not a string"},
	};

	for (size_t i = 0; i < COUNT(rows); i++)
		CHECK(check_refused(rows[i].name, rows[i].value, rows[i].code, rows[i].text) ==
		      TEST_OK);
	return TEST_OK;
}

TEST(a_status_that_is_no_json_is_refused_with_its_place)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, STATUS, "{\n \"initContainers\": oops}"), -EINVAL);
	CHECK_HAS(err.text, "annotation sidecar.istio.io/status");
	CHECK_HAS(err.text, "line 2, column");
	CHECK_EQ(DECIDE(&cfg, &d, &err, STATUS, "{\"initContainers\":\"istio-init\"}"), -EINVAL);
	CHECK_HAS(err.text, "annotation sidecar.istio.io/status: initContainers");
	/* Also when the pod asks in our own terms. */
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, STATUS, "oops"), -EINVAL);
	CHECK_HAS(err.text, "annotation sidecar.istio.io/status");
	return TEST_OK;
}

TEST(an_annotation_that_is_no_string_is_refused)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	scoped_json json_t *annotations = json_object();
	struct pod_facts pod = {.annotations = annotations};
	struct pod_decision d;
	struct error err = {0};

	json_object_set_new(annotations, "sockmesh.io/redirection", json_integer(1));
	CHECK_EQ(pod_policy_decide(&cfg, &pod, &d, &err), -EINVAL);
	CHECK_HAS(err.text, "annotation sockmesh.io/redirection");
	return TEST_OK;
}

/* "a,b" of a list, for comparisons; the caller frees. */
static char *joined(const struct name_list *list)
{
	char *text = calloc(1, list->n * 17 + 1);

	for (size_t i = 0; text && i < list->n; i++)
		sprintf(text + strlen(text), "%s%s", i ? "," : "", list->names[i]);
	return text;
}

TEST(interface_annotations_become_lists)
{
	static const struct {
		const char *exclude, *reroute, *kubevirt; /* NULL: absent */
		const char *excluded, *rerouted;
	} rows[] = {
		{NULL, NULL, NULL, "", ""},
		{"eth1", NULL, NULL, "eth1", ""},
		{" net1 , eth0.100,a+b ", NULL, NULL, "net1,eth0.100,a+b", ""},
		{"123456789012345", NULL, NULL, "123456789012345", ""},
		{NULL, "k6t-net0", NULL, "", "k6t-net0"},
		{NULL, NULL, "tap0,tap1", "", "tap0,tap1"},
		/* The deprecated name counts only when the new one is absent. */
		{"eth1", "net1", "net2", "eth1", "net1"},
		{"eth1", "", "net2", "eth1", ""},
		{"...", " ", NULL, "...", ""},
	};
	static const char *const names[] = {TRAFFIC "excludeInterfaces",
					    "istio.io/reroute-virtual-interfaces",
					    TRAFFIC "kubevirtInterfaces"};
	struct policy_config cfg = config_of(MESH_ISTIO);

	for (size_t i = 0; i < COUNT(rows); i++) {
		const char *const values[] = {rows[i].exclude, rows[i].reroute, rows[i].kubevirt};
		const char *pairs[COUNT(names) * 2 + 3] = {SIDECAR};
		char *excluded, *rerouted;
		struct pod_decision d;
		struct error err;
		size_t n = 2;

		for (size_t k = 0; k < COUNT(names); k++) {
			if (!values[k])
				continue;
			pairs[n++] = names[k];
			pairs[n++] = values[k];
		}
		CHECK_EQ(decide_with(&cfg, pairs, &d, &err), 0);
		excluded = joined(&d.settings.exclude_interfaces);
		rerouted = joined(&d.settings.reroute_interfaces);
		CHECK_STR(excluded, rows[i].excluded);
		CHECK_STR(rerouted, rows[i].rerouted);
		free(excluded);
		free(rerouted);
		pod_decision_done(&d);
	}
	return TEST_OK;
}

/* What the kernel takes for no name, and what iptables-restore would take for something else. */
TEST(names_that_no_engine_could_write_are_refused)
{
	static const char *const items[] = {
		".",	    "..",    "1234567890123456",
		"a b",	    "a\tb",  "a\x7f",
		"\xc3\xa4", "eth+",  "+",
		"-eth0",    "!eth0", "a\"b",
		"a\\b",	    "a'b",   "a:1",
		"a/b",	    "a\nb",
	};
	char many[POD_VALUE_INTERFACES_MAX * 3 + 3] = "a0";
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	for (size_t i = 0; i < COUNT(items); i++) {
		char value[64];

		snprintf(value, sizeof(value), "eth0,%s", items[i]);
		CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "excludeInterfaces", value),
			 -EINVAL);
		CHECK_HAS(err.text, "annotation " TRAFFIC "excludeInterfaces: ");
		CHECK_HAS(err.text, ": item 2 ");
		CHECK_HAS(err.text, " is not an interface name");
	}
	for (size_t i = 1; i < POD_VALUE_INTERFACES_MAX; i++)
		strcat(many, ",a0");
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "excludeInterfaces", many), 0);
	CHECK_EQ(d.settings.exclude_interfaces.n, POD_VALUE_INTERFACES_MAX);
	pod_decision_done(&d);
	strcpy(many + POD_VALUE_INTERFACES_MAX * 3 - 1, ",b");
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "excludeInterfaces", many), -EINVAL);
	CHECK_HAS(err.text, "65 interfaces, at most 64 are possible");
	return TEST_OK;
}

/* ---- settings ------------------------------------------------------------------------------ */

TEST(tproxy_and_invalid_packets_reach_the_settings)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, "sidecar.istio.io/interceptionMode", "TPROXY"), 0);
	CHECK(d.settings.tproxy && !d.settings.drop_invalid);
	pod_decision_done(&d);
	cfg.drop_invalid = true;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, "sidecar.istio.io/interceptionMode", "REDIRECT"),
		 0);
	CHECK(!d.settings.tproxy && d.settings.drop_invalid);
	pod_decision_done(&d);
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
	CHECK(!d.settings.tproxy);
	pod_decision_done(&d);
	return TEST_OK;
}

static enum test_result check_ports(const struct port_list *got, const uint16_t *want, size_t n)
{
	CHECK_EQ(got->n, n);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(got->ports[i], want[i]);
	return TEST_OK;
}

static struct redirect_plan *plan_of(const struct pod_decision *d)
{
	struct redirect_plan *plan = NULL;
	struct error err = {0};

	if (redirect_plan_build(&d->settings, &plan, &err) < 0)
		abort();
	return plan;
}

TEST(defaults_of_istio)
{
	static const uint16_t outbound[] = {15020}, inbound[] = {15020, 15021, 15090};
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct redirect_plan *plan;
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, STATUS, REAL_STATUS), 0);
	CHECK(d.settings.outbound_include_all && d.settings.inbound_include_all);
	CHECK(!d.settings.dns_capture && !d.settings.groups_set && d.settings.capture_ipv6);
	plan = plan_of(&d);
	pod_decision_done(&d);
	CHECK_EQ(plan->outbound_port, 15001);
	CHECK_EQ(plan->inbound_port, 15006);
	CHECK_EQ(plan->tunnel_port, 15008);
	CHECK_EQ(plan->dns_port, 0);
	CHECK_EQ(plan->proxy_uids.n, 1);
	CHECK_EQ(plan->proxy_uids.ids[0], 1337);
	CHECK_EQ(plan->proxy_gids.n, 1);
	CHECK_EQ(plan->proxy_gids.ids[0], 1337);
	CHECK_EQ(plan->loopback4.length, 128);
	CHECK(check_ports(&plan->outbound_exclude_ports, outbound, 1) == TEST_OK);
	CHECK(check_ports(&plan->inbound_exclude_ports, inbound, 3) == TEST_OK);
	CHECK_EQ(plan->outbound_include_ports.n + plan->inbound_include_ports.n, 0);
	CHECK_EQ(plan->exclude_prefixes.n + plan->include_prefixes.n, 0);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(every_traffic_annotation_is_read)
{
	static const uint16_t in_exclude[] = {7, 15020, 15021, 15090}, out_exclude[] = {25, 465};
	static const uint16_t out_include[] = {9000};
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct redirect_plan *plan;
	struct pod_decision d;
	struct error err;

	cfg.capture_ipv6 = false;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, "sidecar.istio.io/interceptionMode", "REDIRECT",
			TRAFFIC "includeOutboundIPRanges", "10.0.0.0/8, fd00::/8",
			TRAFFIC "excludeOutboundIPRanges", "10.1.2.3/16",
			TRAFFIC "includeInboundPorts", "*", TRAFFIC "excludeInboundPorts",
			"7,15020", TRAFFIC "includeOutboundPorts", "9000",
			TRAFFIC "excludeOutboundPorts", " 465 , 025", "sockmesh.io/dns-capture",
			"T", "sockmesh.io/proxy-uid", "2000,1337", "sockmesh.io/proxy-gid",
			"4294967294", "sockmesh.io/accelerate", "full"),
		 0);
	CHECK(!d.settings.outbound_include_all && d.settings.inbound_include_all);
	CHECK_EQ(d.accelerate, ACCELERATE_WISH_FULL);
	plan = plan_of(&d);
	pod_decision_done(&d);
	CHECK_EQ(plan->dns_port, 15053);
	CHECK(!plan->capture_ipv6);
	CHECK_EQ(plan->include_prefixes.n, 2);
	CHECK_EQ(plan->exclude_prefixes.n, 1);
	CHECK_EQ(plan->exclude_prefixes.prefixes[0].length, 96 + 16);
	CHECK(check_ports(&plan->inbound_exclude_ports, in_exclude, 4) == TEST_OK);
	CHECK(check_ports(&plan->outbound_exclude_ports, out_exclude, 2) == TEST_OK);
	CHECK(check_ports(&plan->outbound_include_ports, out_include, 1) == TEST_OK);
	CHECK_EQ(plan->proxy_uids.n, 2);
	CHECK_EQ(plan->proxy_uids.ids[1], 2000);
	CHECK_EQ(plan->proxy_gids.ids[0], 4294967294);
	redirect_plan_free(plan);
	return TEST_OK;
}

TEST(empty_values_differ_from_absent_ones)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "includeOutboundIPRanges", "",
			TRAFFIC "includeInboundPorts", "", TRAFFIC "excludeOutboundPorts", "",
			TRAFFIC "excludeInboundPorts", " "),
		 0);
	CHECK(!d.settings.outbound_include_all && !d.settings.inbound_include_all);
	CHECK_EQ(d.settings.include_prefixes.n, 0);
	CHECK_EQ(d.settings.inbound_include_ports.n, 0);
	CHECK_EQ(d.settings.outbound_exclude_ports.n, 0);
	CHECK_EQ(d.settings.inbound_exclude_ports.n, 3);
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(explicit_inbound_ports)
{
	static const uint16_t want[] = {443, 80};
	struct policy_config cfg = config_of(MESH_ISTIO);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "includeInboundPorts", "443,80"), 0);
	CHECK(!d.settings.inbound_include_all);
	CHECK(check_ports(&d.settings.inbound_include_ports, want, 2) == TEST_OK);
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(presets_are_those_of_the_meshes)
{
	static const struct {
		enum mesh mesh;
		uint16_t outbound, inbound, dns, tunnel;
		uint32_t id;
	} rows[] = {
		{MESH_ISTIO, 15001, 15006, 15053, 15008, 1337},
		{MESH_LINKERD, 4140, 4143, 0, 0, 2102},
		{MESH_KUMA, 15001, 15006, 15053, 0, 5678},
		{MESH_OSM, 15001, 15003, 15053, 0, 1500},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct policy_config cfg = config_of(rows[i].mesh);
		bool istio = rows[i].mesh == MESH_ISTIO;
		struct pod_decision d;
		struct error err;

		CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
		CHECK_EQ(d.settings.outbound_port, rows[i].outbound);
		CHECK_EQ(d.settings.inbound_port, rows[i].inbound);
		CHECK_EQ(d.settings.dns_port, rows[i].dns);
		CHECK_EQ(d.settings.tunnel_port, rows[i].tunnel);
		CHECK_EQ(d.settings.proxy_uids.ids[0], rows[i].id);
		CHECK_EQ(d.settings.proxy_gids.ids[0], rows[i].id);
		/* Istio's own ports mean nothing to the others. */
		CHECK_EQ(d.settings.outbound_exclude_ports.n > 0, istio);
		CHECK_EQ(d.settings.inbound_exclude_ports.n > 0, istio);
		pod_decision_done(&d);
	}
	CHECK_STR(mesh_presets[MESH_CUSTOM].name, "custom");
	return TEST_OK;
}

TEST(a_custom_mesh_is_what_the_operator_says)
{
	struct policy_config cfg = config_of(MESH_CUSTOM);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), -EINVAL);
	CHECK_STR(err.text, "mesh custom has no outbound port");
	cfg.mesh.outbound_port = 1;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), -EINVAL);
	CHECK_STR(err.text, "mesh custom has no inbound port");
	cfg.mesh.inbound_port = 2;
	cfg.mesh.proxy_uid = 3;
	cfg.mesh.proxy_gid = 4;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
	CHECK_EQ(d.settings.outbound_port, 1);
	CHECK_EQ(d.settings.inbound_port, 2);
	CHECK_EQ(d.settings.proxy_uids.ids[0], 3);
	CHECK_EQ(d.settings.proxy_gids.ids[0], 4);
	pod_decision_done(&d);
	return TEST_OK;
}

TEST(dns_capture_needs_a_mesh_with_a_dns_port)
{
	struct policy_config cfg = config_of(MESH_LINKERD);
	struct pod_decision d;
	struct error err;

	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, "sockmesh.io/dns-capture", "true"), -EINVAL);
	CHECK_STR(err.text, "annotation sockmesh.io/dns-capture: the proxy of mesh linkerd has no "
			    "DNS port to capture to");
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, "sockmesh.io/dns-capture", "false"), 0);
	CHECK(!d.settings.dns_capture);
	pod_decision_done(&d);
	return TEST_OK;
}

/* ---- owner groups -------------------------------------------------------------------------- */

TEST(owner_groups_come_from_the_configuration)
{
	static const struct {
		const char *include, *exclude;
		bool set, exempt;
		size_t n;
	} rows[] = {
		{NULL, NULL, false, true, 0}, {"*", NULL, false, true, 0},
		{"*", "", false, true, 0},    {"*", "0,7", true, true, 2},
		{NULL, "7", true, true, 1},   {"5,6,7", NULL, true, false, 3},
		{"5", "6,7", true, false, 1},
	};
	struct policy_config cfg = config_of(MESH_ISTIO);

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct pod_decision d;
		struct error err;

		cfg.owner_groups = rows[i].include;
		cfg.owner_groups_exclude = rows[i].exclude;
		CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
		CHECK_EQ(d.settings.groups_set, rows[i].set);
		CHECK_EQ(d.settings.groups_exempt, rows[i].exempt);
		CHECK_EQ(d.settings.groups.n, rows[i].n);
		pod_decision_done(&d);
	}
	return TEST_OK;
}

TEST(owner_groups_are_refused_when_wrong_or_too_many)
{
	struct policy_config cfg = config_of(MESH_ISTIO);
	char list[65 * 4] = "";
	struct pod_decision d;
	struct error err;

	cfg.owner_groups = "5,x";
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), -EINVAL);
	CHECK_HAS(err.text, "owner groups: \"5,x\": item 2 \"x\" is not a group id");
	cfg.owner_groups = "";
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), -EINVAL);
	CHECK_HAS(err.text, "empty");
	for (int i = 0; i < 64; i++)
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%d", i ? "," : "", i);
	cfg.owner_groups = "*";
	cfg.owner_groups_exclude = list;
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), 0);
	pod_decision_done(&d);
	snprintf(list + strlen(list), sizeof(list) - strlen(list), ",64");
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR), -EINVAL);
	CHECK_HAS(err.text, "owner groups to exclude: 65 groups, at most 64");
	return TEST_OK;
}

/* ---- notations ----------------------------------------------------------------------------- */

TEST(booleans_are_those_of_go)
{
	static const char *const yes[] = {"1", "t", "T", "TRUE", "true", "True"};
	static const char *const no[] = {"0", "f", "F", "FALSE", "false", "False"};
	static const char *const neither[] = {"",   "yes",     "no", "tRUE",	 " true", "true ",
					      "on", "enabled", "01", "truetrue", "2"};
	bool value;

	for (size_t i = 0; i < COUNT(yes); i++) {
		value = false;
		CHECK(pod_value_bool(yes[i], &value) && value);
		value = true;
		CHECK(pod_value_bool(no[i], &value) && !value);
	}
	for (size_t i = 0; i < COUNT(neither); i++)
		CHECK(!pod_value_bool(neither[i], &value));
	return TEST_OK;
}

TEST(port_lists)
{
	static const struct {
		const char *text;
		int n; /* -1: refused */
		const char *bad;
	} rows[] = {
		{"", 0, ""},
		{" \t\n", 0, ""},
		{"80", 1, ""},
		{" 80 ,\t443\n", 2, ""},
		{"0,65535,000080", 3, ""},
		{"80,80", 2, ""},
		{"80,", -1, "item 2 \"\""},
		{",80", -1, "item 1 \"\""},
		{"80,,443", -1, "item 2 \"\""},
		{",", -1, "item 1 \"\""},
		{"65536", -1, "item 1 \"65536\""},
		{"-1", -1, "item 1 \"-1\""},
		{"+80", -1, "item 1 \"+80\""},
		{"8 0", -1, "item 1 \"8 0\""},
		{"0x50", -1, "item 1 \"0x50\""},
		{"80;443", -1, "item 1 \"80;443\""},
		{"80-90", -1, "item 1 \"80-90\""},
		{"18446744073709551696", -1, "item 1"},
		{"1\xc3\xa9", -1, "item 1 \"1\\xc3\\xa9\""},
		{"1\x1b[0m", -1, "item 1 \"1\\x1b[0m\""},
		/* Digits up to the item buffer's size, and one more. */
		{"00000000000000000000000000000000000000000000000000000000000001", 1, ""},
		{"000000000000000000000000000000000000000000000000000000000000001", -1, "item 1"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct port_list list = {0};
		struct error err = {0};
		int r = pod_value_ports("here", rows[i].text, &list, &err);

		CHECK_EQ(r, rows[i].n < 0 ? -EINVAL : 0);
		CHECK_EQ(list.n, rows[i].n < 0 ? 0 : rows[i].n);
		CHECK_HAS(err.text, rows[i].bad);
		free(list.ports);
	}
	return TEST_OK;
}

TEST(prefix_lists)
{
	static const struct {
		const char *text;
		int n; /* -1: refused */
	} rows[] = {
		{"", 0},
		{"10.0.0.0/8", 1},
		{"10.0.0.0/8,fd00::/8, 0.0.0.0/0 ,::/0", 4},
		{"::ffff:10.0.0.0/104", 1},
		{"10.0.0.1", -1},
		{"fd00::1", -1},
		{"10.0.0.0/33", -1},
		{"fd00::/129", -1},
		{"10.0.0.0/", -1},
		{"10.0.0.0/-1", -1},
		{"10.0.0.0/8/8", -1},
		{"10.0.0/8", -1},
		{"10.0.0.0/8,", -1},
		{"fe80::1%eth0/64", -1},
		{"example.org/8", -1},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct prefix_list list = {0};
		struct error err = {0};
		int r = pod_value_prefixes("here", rows[i].text, &list, &err);

		CHECK_EQ(r, rows[i].n < 0 ? -EINVAL : 0);
		CHECK_EQ(list.n, rows[i].n < 0 ? 0 : rows[i].n);
		free(list.prefixes);
	}
	return TEST_OK;
}

TEST(long_values_are_cut_in_errors_and_stay_ascii)
{
	char text[2000], quoted[POD_VALUE_QUOTED_MAX];
	struct port_list list = {0};
	struct error err = {0};

	memset(text, '\xc3', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	CHECK_EQ(pod_value_ports("here", text, &list, &err), -EINVAL);
	CHECK(strlen(err.text) < sizeof(err.text) - 1);
	for (const char *c = err.text; *c; c++)
		CHECK(*c >= ' ' && *c <= '~');
	CHECK_HAS(err.text, "...\"");
	CHECK_HAS(err.text, "is not a port");
	for (size_t n = 80; n < 120; n++) {
		memset(text, 'x', n);
		text[n] = '\0';
		CHECK(strlen(pod_value_quote(text, quoted)) < POD_VALUE_QUOTED_MAX);
		CHECK_EQ(quoted[strlen(quoted) - 1], '"');
	}
	return TEST_OK;
}

TEST(lists_of_ten_thousand_items)
{
	enum { ITEMS = 10000, ITEM_TEXT = 32 };
	char *ports = calloc(ITEMS, ITEM_TEXT), *ranges = calloc(ITEMS, ITEM_TEXT);
	struct policy_config cfg = config_of(MESH_ISTIO);
	size_t used_p = 0, used_r = 0;
	struct pod_decision d;
	struct error err;

	CHECK(ports && ranges);
	for (int i = 0; i < ITEMS; i++) {
		const char *comma = i ? "," : "";

		used_p += (size_t)sprintf(ports + used_p, "%s%d", comma, i);
		used_r += (size_t)sprintf(ranges + used_r, "%s10.%d.%d.0/24", comma, i / 256,
					  i % 256);
	}
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "excludeOutboundPorts", ports,
			TRAFFIC "includeOutboundIPRanges", ranges),
		 0);
	CHECK_EQ(d.settings.outbound_exclude_ports.n, ITEMS);
	CHECK_EQ(d.settings.outbound_exclude_ports.ports[ITEMS - 1], ITEMS - 1);
	CHECK_EQ(d.settings.include_prefixes.n, ITEMS);
	pod_decision_done(&d);
	/* The position of the one item that is wrong. */
	memcpy(ports + used_p, ",x", 3);
	CHECK_EQ(DECIDE(&cfg, &d, &err, SIDECAR, TRAFFIC "excludeOutboundPorts", ports), -EINVAL);
	CHECK_HAS(err.text, "item 10001 \"x\"");
	free(ports);
	free(ranges);
	return TEST_OK;
}

/* ---- what the API says --------------------------------------------------------------------- */

/* One pod as the API has it, in a namespace as the API has it, and a configuration that asks. */
struct api {
	struct kube_selectors selectors;
	struct kube_pod *pod;
	struct kube_namespace *ns;
	struct policy_config cfg;
	struct pod_facts facts;
	struct pod_decision decision;
	struct error err;
};

#define AMBIENT_NS     "'istio.io/dataplane-mode':'ambient'"
#define QUOTED_STATUS  "'sidecar.istio.io/status':'{}'"
#define PROXY(members) "'containers':[{'name':'istio-proxy'" members "}]"

static void api_done(struct api *api)
{
	pod_decision_done(&api->decision);
	memset(&api->decision, 0, sizeof(api->decision));
	kube_pod_free(api->pod);
	free(api->ns);
	kube_selectors_done(&api->selectors);
}

/* metadata and spec: members; ns_labels NULL: the namespace is not known. */
static void api_open(struct api *api, const char *metadata, const char *spec, const char *ns_labels)
{
	struct kube_keep keep = {.selectors = &api->selectors};
	scoped_json json_t *pod = NULL, *ns = NULL;
	char text[2048];

	memset(api, 0, sizeof(*api));
	if (kube_enablement_read(kube_enablement_default, "selectors", &api->selectors, &api->err))
		abort();
	snprintf(text, sizeof(text),
		 "{'metadata':{'namespace':'shop','name':'web-0','uid':'1'%s%s},'spec':{%s}}",
		 *metadata ? "," : "", metadata, spec);
	pod = quoted_json(text);
	if (kube_pod_read(pod, &keep, &api->pod, &api->err)) {
		printf("# %s\n", api->err.text);
		abort();
	}
	if (ns_labels) {
		snprintf(text, sizeof(text), "{'metadata':{'name':'shop','labels':{%s}}}",
			 ns_labels);
		ns = quoted_json(text);
		if (kube_namespace_read(ns, &api->selectors, &api->ns, &api->err))
			abort();
	}
	api->cfg = config_of(MESH_ISTIO);
	api->cfg.selectors = &api->selectors;
	api->cfg.ambient_dns_capture = true;
	api->facts = (struct pod_facts){.kube_pod = api->pod, .kube_ns = api->ns};
}

static struct ip_address address(const char *text)
{
	struct ip_address a;
	struct error err = {0};

	if (ip_address_parse(text, &a, &err))
		abort();
	return a;
}

static int api_decide(struct api *api)
{
	struct pod_decision d = {0};
	int r;

	memset(&api->err, 0, sizeof(api->err));
	r = pod_policy_decide(&api->cfg, &api->facts, &d, &api->err);
	pod_decision_done(&api->decision);
	api->decision = d;
	return r;
}

static enum test_result check_api(const char *metadata, const char *spec, const char *ns_labels,
				  enum pod_mode mode, const char *reason)
{
	struct api api;

	api_open(&api, metadata, spec, ns_labels);
	CHECK_EQ(api_decide(&api), 0);
	CHECK_HAS(api.decision.reason, reason);
	CHECK_EQ(api.decision.mode, mode);
	CHECK(!api.decision.hold);
	CHECK_STR(api.decision.warning, "");
	api_done(&api);
	return TEST_OK;
}

#define LABELS(text)	  "'labels':{" text "}"
#define ANNOTATIONS(text) "'annotations':{" text "}"

TEST(a_pod_joins_ambient_as_istio_decides)
{
	static const struct {
		const char *metadata, *spec, *ns;
		enum pod_mode mode;
		const char *reason;
	} rows[] = {
		{"", "", AMBIENT_NS, POD_AMBIENT, "number 2 of --enablement-selectors"},
		{LABELS("'istio.io/dataplane-mode':'ambient'"), "", "", POD_AMBIENT, "number 1 of"},
		{LABELS("'istio.io/dataplane-mode':'none'"), "", AMBIENT_NS, POD_SKIP,
		 "none of 2 --enablement-selectors"},
		{"", "", "", POD_SKIP, "no sidecar: neither annotation"},
		/* 1: never the host's network. */
		{"", "'hostNetwork':true", AMBIENT_NS, POD_SKIP, "hostNetwork"},
		{ANNOTATIONS("'sockmesh.io/redirection':'ambient'"), "'hostNetwork':true", "",
		 POD_SKIP, "hostNetwork"},
		{ANNOTATIONS("'sockmesh.io/redirection':'sidecar'"), "'hostNetwork':true", "",
		 POD_SKIP, "hostNetwork"},
		/* 2: a sidecar counts first, whatever its annotation's value. */
		{ANNOTATIONS(QUOTED_STATUS), PROXY(""), AMBIENT_NS, POD_SIDECAR, "has a sidecar"},
		{ANNOTATIONS("'sidecar.istio.io/status':''"), PROXY(""), AMBIENT_NS, POD_SKIP,
		 "no sidecar"},
		{ANNOTATIONS(QUOTED_STATUS), "", AMBIENT_NS, POD_SKIP, "no container istio-proxy"},
		/* Not injected, and wants no sidecar: ambient all the same. */
		{LABELS("'sidecar.istio.io/inject':'false'"), "", AMBIENT_NS, POD_AMBIENT, "2 of"},
		{LABELS("'sidecar.istio.io/inject':'false'"), "", "", POD_SKIP,
		 "label sidecar.istio.io/inject is false; and not ambient"},
		/* Our own annotation counts before labels. */
		{ANNOTATIONS("'sockmesh.io/redirection':'none'"), "", AMBIENT_NS, POD_SKIP,
		 "sockmesh.io/redirection is none"},
		{ANNOTATIONS("'sockmesh.io/redirection':'sidecar'"), "", AMBIENT_NS, POD_SIDECAR,
		 "sockmesh.io/redirection is sidecar"},
		{ANNOTATIONS("'sockmesh.io/redirection':'ambient'"), "", "", POD_AMBIENT,
		 "sockmesh.io/redirection is ambient"},
		{ANNOTATIONS("'sockmesh.io/redirection':'ambient'," QUOTED_STATUS), PROXY(""), "",
		 POD_SIDECAR, "has a sidecar"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		enum test_result result = check_api(rows[i].metadata, rows[i].spec, rows[i].ns,
						    rows[i].mode, rows[i].reason);

		if (result != TEST_OK) {
			printf("# row %zu\n", i);
			return result;
		}
	}
	return TEST_OK;
}

TEST(a_sidecar_that_is_none_is_skipped_by_its_spec)
{
	static const struct {
		const char *spec;
		enum pod_mode mode;
		const char *reason;
	} rows[] = {
		{PROXY(""), POD_SIDECAR, "has a sidecar"},
		{"'initContainers':[{'name':'istio-proxy','restartPolicy':'Always'}]", POD_SIDECAR,
		 "has a sidecar"},
		{"'initContainers':[{'name':'istio-init'}]," PROXY(""), POD_SKIP, "istio-init"},
		{PROXY(",'env':[{'name':'DISABLE_ENVOY','value':'true'}]"), POD_SKIP,
		 "DISABLE_ENVOY is true"},
		{PROXY(",'env':[{'name':'DISABLE_ENVOY','value':'0'}]"), POD_SIDECAR, "sidecar"},
		{PROXY(",'args':['proxy','router']"), POD_SKIP, "a gateway"},
		{"'containers':[{'name':'app'}]", POD_SKIP, "no container istio-proxy"},
	};

	for (size_t i = 0; i < COUNT(rows); i++)
		CHECK_EQ(check_api(ANNOTATIONS(QUOTED_STATUS), rows[i].spec, "", rows[i].mode,
				   rows[i].reason),
			 TEST_OK);
	/* Inject counts, and our own annotation counts before all of it. */
	CHECK_EQ(check_api(ANNOTATIONS(QUOTED_STATUS ",'sidecar.istio.io/inject':'false'"),
			   PROXY(""), "", POD_SKIP, "inject is false"),
		 TEST_OK);
	CHECK_EQ(check_api(ANNOTATIONS("'sockmesh.io/redirection':'sidecar'"),
			   "'initContainers':[{'name':'istio-init'}]", "", POD_SIDECAR, "sidecar"),
		 TEST_OK);
	return TEST_OK;
}

TEST(another_meshs_sidecar_is_not_asked_for_istios_container)
{
	struct api api;

	api_open(&api, ANNOTATIONS(QUOTED_STATUS), "", "");
	api.cfg.mesh = mesh_presets[MESH_OSM];
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SIDECAR);
	CHECK_EQ(api.decision.settings.proxy_uids.ids[0], 1500);
	api_done(&api);
	api_open(&api, ANNOTATIONS(QUOTED_STATUS), PROXY(",'securityContext':{'runAsUser':7}"), "");
	api.cfg.mesh = mesh_presets[MESH_OSM];
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.settings.proxy_uids.ids[0], 1500);
	api_done(&api);
	return TEST_OK;
}

TEST(a_pod_that_has_ended_or_is_ztunnels_is_not_redirected)
{
	static const enum kube_phase ended[] = {KUBE_PHASE_SUCCEEDED, KUBE_PHASE_FAILED};
	struct api api;

	api_open(&api, LABELS("'app':'ztunnel'"), "", AMBIENT_NS);
	for (size_t i = 0; i < COUNT(ended); i++) {
		api.pod->phase = ended[i];
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.mode, POD_SKIP);
		CHECK_HAS(api.decision.reason, "it has ended");
		CHECK(!api.decision.foreign);
	}
	api.pod->phase = KUBE_PHASE_RUNNING;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_AMBIENT);
	api.cfg.system_namespace = "shop";
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_HAS(api.decision.reason, "ztunnel's own");
	CHECK(api.decision.foreign);
	api_done(&api);
	return TEST_OK;
}

TEST(namespaces_that_are_excluded_or_not_discovered_come_before_everything)
{
	static const char *const excluded[] = {"shop", NULL};
	struct api api;

	api_open(&api, ANNOTATIONS("'sockmesh.io/redirection':'sidecar'"), "", AMBIENT_NS);
	api.ns->discovered = false;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_HAS(api.decision.reason, "--discovery-selectors");
	CHECK(api.decision.foreign);
	api.pod->phase = KUBE_PHASE_SUCCEEDED;
	CHECK_EQ(api_decide(&api), 0);
	CHECK(api.decision.foreign);
	api.pod->phase = KUBE_PHASE_RUNNING;
	api.cfg.exclude_namespaces = excluded;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_HAS(api.decision.reason, "namespace \"shop\" is excluded");
	CHECK(api.decision.foreign);
	api_done(&api);
	return TEST_OK;
}

/* ---- while the API is silent --------------------------------------------------------------- */

static enum test_result check_silence(const char *ns_labels, json_t *annotations,
				      enum pod_mode mode, bool hold)
{
	struct api api;

	api_open(&api, "", "", ns_labels);
	api.facts = (struct pod_facts){
		.ns = "shop", .name = "web-0", .annotations = annotations, .kube_ns = api.ns};
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, mode);
	CHECK_EQ(api.decision.hold, hold);
	CHECK(*api.decision.reason);
	api_done(&api);
	return TEST_OK;
}

TEST(without_the_api_sidecars_are_decided_and_others_wait)
{
	scoped_json json_t *injected = quoted_json("{" QUOTED_STATUS "}");
	scoped_json json_t *none = quoted_json("{'sockmesh.io/redirection':'none'}");
	scoped_json json_t *ambient = quoted_json("{'sockmesh.io/redirection':'ambient'}");
	scoped_json json_t *nothing = quoted_json("{}");

	CHECK_EQ(check_silence(AMBIENT_NS, injected, POD_SIDECAR, false), TEST_OK);
	CHECK_EQ(check_silence(NULL, injected, POD_SIDECAR, false), TEST_OK);
	CHECK_EQ(check_silence(AMBIENT_NS, none, POD_SKIP, false), TEST_OK);
	CHECK_EQ(check_silence("", ambient, POD_AMBIENT, false), TEST_OK);
	CHECK_EQ(check_silence(NULL, ambient, POD_AMBIENT, false), TEST_OK);
	/* It may have a label that we do not see; only its namespace says that it most likely is.
	 */
	CHECK_EQ(check_silence(AMBIENT_NS, nothing, POD_UNDECIDED, true), TEST_OK);
	CHECK_EQ(check_silence("", nothing, POD_UNDECIDED, false), TEST_OK);
	CHECK_EQ(check_silence(NULL, nothing, POD_UNDECIDED, false), TEST_OK);
	/* The runtime has passed no annotations. */
	CHECK_EQ(check_silence(AMBIENT_NS, NULL, POD_UNDECIDED, true), TEST_OK);
	CHECK_EQ(check_silence("", NULL, POD_UNDECIDED, false), TEST_OK);
	return TEST_OK;
}

TEST(while_the_api_is_away_a_pod_of_an_ambient_namespace_is_ambient)
{
	scoped_json json_t *nothing = quoted_json("{}");
	scoped_json json_t *none = quoted_json("{'sockmesh.io/redirection':'none'}");
	const json_t *const silent[] = {nothing, NULL};
	struct api api;

	api_open(&api, "", "", AMBIENT_NS);
	for (size_t i = 0; i < COUNT(silent); i++) {
		scoped_json json_t *memory = NULL;

		api.facts = (struct pod_facts){.ns = "shop",
					       .name = "web-0",
					       .annotations = silent[i],
					       .kube_ns = api.ns,
					       .presumed = true};
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.mode, POD_AMBIENT);
		CHECK(!api.decision.hold && api.decision.settings.ambient);
		CHECK_HAS(api.decision.reason, "is away");
		memory = pod_facts_remember(&api.facts, &api.decision);
		CHECK(memory);
		/* The next agent, which knows no namespace yet. */
		api.facts =
			(struct pod_facts){.ns = "shop", .name = "web-0", .annotations = memory};
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.mode, POD_AMBIENT);
	}
	api.facts = (struct pod_facts){
		.ns = "shop", .name = "web-0", .annotations = nothing, .presumed = true};
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_UNDECIDED);
	CHECK(!api.decision.hold);
	api.facts.kube_ns = api.ns;
	api.facts.annotations = none;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	api_done(&api);
	return TEST_OK;
}

TEST(without_its_namespace_a_pod_is_undecided_but_for_what_it_says_itself)
{
	CHECK_EQ(check_api("", "", NULL, POD_UNDECIDED, "until the API server says"), TEST_OK);
	CHECK_EQ(check_api(ANNOTATIONS(QUOTED_STATUS), PROXY(""), NULL, POD_SIDECAR, "sidecar"),
		 TEST_OK);
	CHECK_EQ(check_api("", "'hostNetwork':true", NULL, POD_SKIP, "hostNetwork"), TEST_OK);
	return TEST_OK;
}

TEST(where_the_api_is_not_asked_nothing_is_undecided)
{
	struct api api;

	api_open(&api, "", "", NULL);
	api.cfg.selectors = NULL;
	api.facts.kube_pod = NULL;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_HAS(api.decision.reason, "annotations unknown");
	api_done(&api);
	return TEST_OK;
}

TEST(an_ambient_pod_may_be_not_redirected_yet)
{
	struct api api;

	api_open(&api, "", "", AMBIENT_NS);
	api.facts.not_yet = "ztunnel is not connected";
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_STR(api.decision.reason, "ztunnel is not connected");
	api_done(&api);
	/* But it must be valid. */
	api_open(&api, ANNOTATIONS("'ambient.istio.io/dns-capture':'maybe'"), "", AMBIENT_NS);
	api.facts.not_yet = "ztunnel is not connected";
	CHECK_EQ(api_decide(&api), -EINVAL);
	api_done(&api);
	return TEST_OK;
}

/* ---- settings from the spec ---------------------------------------------------------------- */

TEST(the_proxys_ids_are_its_containers_unless_an_annotation_says_otherwise)
{
	static const struct {
		const char *annotations, *spec;
		uint32_t uid, gid;
	} rows[] = {
		{QUOTED_STATUS, PROXY(""), 1337, 1337},
		{QUOTED_STATUS, PROXY(",'securityContext':{'runAsUser':0,'runAsGroup':0}"), 1337,
		 1337},
		{QUOTED_STATUS, PROXY(",'securityContext':{'runAsUser':2000,'runAsGroup':3000}"),
		 2000, 3000},
		{QUOTED_STATUS, PROXY(",'securityContext':{'runAsUser':2000}"), 2000, 1337},
		{QUOTED_STATUS ",'sockmesh.io/proxy-uid':'7'",
		 PROXY(",'securityContext':{'runAsUser':2000,'runAsGroup':3000}"), 7, 3000},
		{QUOTED_STATUS ",'sockmesh.io/proxy-gid':'8'",
		 PROXY(",'securityContext':{'runAsUser':2000,'runAsGroup':3000}"), 2000, 8},
		/* The pod's own securityContext is not the container's. */
		{QUOTED_STATUS, "'securityContext':{'runAsUser':5,'runAsGroup':6}," PROXY(""), 1337,
		 1337},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char annotations[256];
		struct api api;

		snprintf(annotations, sizeof(annotations), ANNOTATIONS("%s"), rows[i].annotations);
		api_open(&api, annotations, rows[i].spec, "");
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.settings.proxy_uids.n, 1);
		CHECK_EQ(api.decision.settings.proxy_uids.ids[0], rows[i].uid);
		CHECK_EQ(api.decision.settings.proxy_gids.ids[0], rows[i].gid);
		api_done(&api);
	}
	return TEST_OK;
}

#define ENV(name, value) PROXY(",'env':[{'name':'" name "','value':'" value "'}]")

TEST(the_environment_of_the_proxy_counts_before_defaults_and_after_annotations)
{
	static const struct {
		const char *annotations, *spec;
		bool drop_default;
		bool dns, drop;
		const char *warning;
	} rows[] = {
		{QUOTED_STATUS, PROXY(""), false, false, false, ""},
		{QUOTED_STATUS, PROXY(""), true, false, true, ""},
		{QUOTED_STATUS, ENV("ISTIO_META_DNS_CAPTURE", "true"), false, true, false, ""},
		{QUOTED_STATUS, ENV("ISTIO_META_DNS_CAPTURE", "false"), false, false, false, ""},
		{QUOTED_STATUS ",'sockmesh.io/dns-capture':'false'",
		 ENV("ISTIO_META_DNS_CAPTURE", "true"), false, false, false, ""},
		{QUOTED_STATUS ",'sockmesh.io/dns-capture':'true'",
		 ENV("ISTIO_META_DNS_CAPTURE", "false"), false, true, false, ""},
		{QUOTED_STATUS, ENV("INVALID_DROP", "true"), false, false, true, ""},
		{QUOTED_STATUS, ENV("INVALID_DROP", "false"), true, false, false, ""},
		{QUOTED_STATUS, ENV("INVALID_DROP", "no"), true, false, true,
		 "INVALID_DROP of container istio-proxy is not true or false, and ignored"},
		{QUOTED_STATUS, ENV("ISTIO_META_DNS_CAPTURE", "yes"), false, false, false,
		 "ISTIO_META_DNS_CAPTURE of container"},
		{QUOTED_STATUS, ENV("DISABLE_ENVOY", "yes"), false, false, false, "DISABLE_ENVOY"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char annotations[256];
		struct api api;

		snprintf(annotations, sizeof(annotations), ANNOTATIONS("%s"), rows[i].annotations);
		api_open(&api, annotations, rows[i].spec, "");
		api.cfg.drop_invalid = rows[i].drop_default;
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.mode, POD_SIDECAR);
		CHECK_EQ(api.decision.settings.dns_capture, rows[i].dns);
		CHECK_EQ(api.decision.settings.drop_invalid, rows[i].drop);
		CHECK_HAS(api.decision.warning, rows[i].warning);
		CHECK_EQ(!*api.decision.warning, !*rows[i].warning);
		api_done(&api);
	}
	return TEST_OK;
}

TEST(an_ambient_pod_has_its_own_annotations)
{
	static const struct {
		const char *annotations;
		bool dns, inbound;
		size_t reroute;
	} rows[] = {
		{"", true, true, 0},
		{"'ambient.istio.io/dns-capture':'false'", false, true, 0},
		{"'ambient.istio.io/dns-capture':'false','sockmesh.io/dns-capture':'1'", true, true,
		 0},
		{"'ambient.istio.io/bypass-inbound-capture':'true'", true, false, 0},
		{"'ambient.istio.io/bypass-inbound-capture':'F'", true, true, 0},
		{"'istio.io/reroute-virtual-interfaces':'net1,net2'", true, true, 2},
		/* A sidecar's business. */
		{"'traffic.sidecar.istio.io/excludeInboundPorts':'x'", true, true, 0},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char annotations[256];
		struct api api;

		snprintf(annotations, sizeof(annotations), ANNOTATIONS("%s"), rows[i].annotations);
		api_open(&api, annotations, "", AMBIENT_NS);
		CHECK_EQ(api_decide(&api), 0);
		CHECK_EQ(api.decision.mode, POD_AMBIENT);
		CHECK(api.decision.settings.ambient);
		CHECK_EQ(api.decision.settings.dns_capture, rows[i].dns);
		CHECK_EQ(api.decision.settings.inbound_include_all, rows[i].inbound);
		CHECK_EQ(api.decision.settings.reroute_interfaces.n, rows[i].reroute);
		api_done(&api);
	}
	return TEST_OK;
}

TEST(an_ambient_pod_may_belong_to_the_nodes_proxy)
{
	const struct ip_address proxy4 = address("10.245.0.2"), other = address("10.245.0.3");
	struct api api;

	api_open(&api, ANNOTATIONS("'ambient.istio.io/bypass-inbound-capture':'false'"), "",
		 AMBIENT_NS);
	api.cfg.node_proxy = true;
	api.cfg.proxy4 = proxy4;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_AMBIENT);
	CHECK(api.decision.settings.node_proxy && !api.decision.settings.ambient);
	CHECK(ip_address_equal(&api.decision.settings.proxy4, &proxy4));
	CHECK(ip_address_is_unspecified(&api.decision.settings.proxy6));
	CHECK_EQ(api.decision.settings.outbound_port, 15001);
	CHECK(!api.decision.settings.inbound_include_all && !api.decision.settings.inbound_port);
	CHECK(policy_is_node_proxy(&api.cfg, &proxy4) && !policy_is_node_proxy(&api.cfg, &other));
	api.facts.is_node_proxy = true;
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, POD_SKIP);
	CHECK_HAS(api.decision.reason, "the proxy of this node's ambient pods");
	api.cfg.node_proxy = false;
	CHECK(!policy_is_node_proxy(&api.cfg, &proxy4));
	api_done(&api);
	return TEST_OK;
}

TEST(bad_values_of_ambient_annotations_are_refused_by_name)
{
	static const struct {
		const char *annotations, *error;
	} rows[] = {
		{"'ambient.istio.io/dns-capture':'maybe'",
		 "annotation ambient.istio.io/dns-capture: \"maybe\" is not true or false"},
		{"'ambient.istio.io/bypass-inbound-capture':''",
		 "annotation ambient.istio.io/bypass-inbound-capture: \"\" is not true or false"},
		{"'istio.io/reroute-virtual-interfaces':'a/b'",
		 "annotation istio.io/reroute-virtual-interfaces: \"a/b\": item 1"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char annotations[256];
		struct api api;

		snprintf(annotations, sizeof(annotations), ANNOTATIONS("%s"), rows[i].annotations);
		api_open(&api, annotations, "", AMBIENT_NS);
		CHECK_EQ(api_decide(&api), -EINVAL);
		CHECK_HAS(api.err.text, rows[i].error);
		api_done(&api);
	}
	return TEST_OK;
}

/* ---- remembering --------------------------------------------------------------------------- */

/* Decides again from nothing but what was remembered, and must decide the same. */
static enum test_result check_memory(const char *metadata, const char *spec, const char *ns_labels,
				     enum pod_mode mode)
{
	scoped_json json_t *memory = NULL;
	struct redirect_plan *before = NULL, *after = NULL;
	struct api api;

	api_open(&api, metadata, spec, ns_labels);
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, mode);
	CHECK_EQ(redirect_plan_build(&api.decision.settings, &before, &api.err), 0);
	memory = pod_facts_remember(&api.facts, &api.decision);
	CHECK(memory);
	api.facts = (struct pod_facts){.ns = "shop",
				       .name = "web-0",
				       .annotations = memory,
				       .invalid_drop = api.decision.invalid_drop};
	CHECK_EQ(api_decide(&api), 0);
	CHECK_EQ(api.decision.mode, mode);
	CHECK_EQ(redirect_plan_build(&api.decision.settings, &after, &api.err), 0);
	CHECK(redirect_plan_equal(before, after));
	redirect_plan_free(before);
	redirect_plan_free(after);
	api_done(&api);
	return TEST_OK;
}

TEST(what_is_remembered_decides_the_same_without_the_api)
{
	CHECK_EQ(check_memory("", "", AMBIENT_NS, POD_AMBIENT), TEST_OK);
	CHECK_EQ(check_memory(ANNOTATIONS("'ambient.istio.io/dns-capture':'0'"), "", AMBIENT_NS,
			      POD_AMBIENT),
		 TEST_OK);
	CHECK_EQ(check_memory(ANNOTATIONS(QUOTED_STATUS), PROXY(""), "", POD_SIDECAR), TEST_OK);
	CHECK_EQ(check_memory(ANNOTATIONS(QUOTED_STATUS ",'sockmesh.io/proxy-gid':'5,6'"),
			      PROXY(",'securityContext':{'runAsUser':2000,'runAsGroup':3000}"), "",
			      POD_SIDECAR),
		 TEST_OK);
	CHECK_EQ(check_memory(ANNOTATIONS(QUOTED_STATUS), ENV("ISTIO_META_DNS_CAPTURE", "1"), "",
			      POD_SIDECAR),
		 TEST_OK);
	CHECK_EQ(
		check_memory(ANNOTATIONS(QUOTED_STATUS), ENV("INVALID_DROP", "1"), "", POD_SIDECAR),
		TEST_OK);
	return TEST_OK;
}

TEST(of_a_pod_that_is_skipped_or_not_known_nothing_is_added)
{
	scoped_json json_t *annotations = quoted_json("{'sockmesh.io/accelerate':'off'}");
	const struct pod_facts unknown = {.ns = "a"}, plain = {.annotations = annotations};
	const struct pod_decision skip = {.mode = POD_SKIP}, ambient = {.mode = POD_AMBIENT};
	scoped_json json_t *memory = NULL;
	struct api api;

	CHECK(!pod_facts_remember(&unknown, &skip));
	memory = pod_facts_remember(&plain, &ambient);
	CHECK(json_equal(memory, annotations));
	json_decref(memory);
	api_open(&api, ANNOTATIONS("'sockmesh.io/accelerate':'off'"), "", "");
	memory = pod_facts_remember(&api.facts, &skip);
	CHECK(json_equal(memory, annotations));
	api_done(&api);
	return TEST_OK;
}
