/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include "error.h"
#include "json.h"
#include "kube_selector.h"
#include "quoted_json.h"
#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Flags and environment as one list: "--x" begins a flag, "NAME=VALUE" is a variable. */
static int parse(const char *const *words, struct options *ret, struct error *err)
{
	char *argv[16] = {(char *)"sockmesh-agent"}, *environment[16] = {NULL};
	int argc = 1, n = 0;

	for (; *words; words++) {
		if (!strncmp(*words, "SOCKMESH_", 9))
			environment[n++] = (char *)*words;
		else
			argv[argc++] = (char *)*words;
	}
	return options_parse(argc, argv, environment, ret, err);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static const char *write_config(const char *text, char path[static 64])
{
	int fd;

	strcpy(path, "/tmp/options_test.XXXXXX");
	fd = mkstemp(path);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		return NULL;
	close(fd);
	return path;
}

TEST(defaults_are_the_documented_ones)
{
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS(NULL), &o, &err));
	CHECK_EQ(o.action, ACTION_RUN);
	CHECK_STR(o.run_dir, "/run/sockmesh");
	CHECK_STR(o.redirect.bpffs_dir, "/sys/fs/bpf/sockmesh");
	CHECK(!o.redirect.cgroup_root && !o.cgroup_root_given);
	CHECK_EQ(o.redirect.mode, REDIRECT_AUTO);
	CHECK_STR(o.redirect.iptables, "auto");
	CHECK_EQ(o.reconcile_ms, 30000);
	CHECK(!o.policy.drop_invalid);
	CHECK_EQ(o.redirect.max_pods, 1024);
	CHECK_EQ(o.redirect.max_handovers, 120000);
	CHECK_EQ(o.redirect.max_handovers_per_pod, 30000);
	CHECK_EQ(o.redirect.max_rule_entries, 131072);
	CHECK_STR(o.policy.mesh.name, "istio");
	CHECK_EQ(o.policy.mesh.outbound_port, 15001);
	CHECK(o.policy.capture_ipv6);
	CHECK_EQ(o.policy.loopback4.length, 128);
	CHECK_STR(o.policy.exclude_namespaces[0], "kube-system");
	CHECK(!o.policy.exclude_namespaces[1] && !o.policy.own_pods[0]);
	CHECK_EQ(o.log_level, LOG_INFO);
	options_done(&o);
	return TEST_OK;
}

TEST(a_flag_beats_the_environment_beats_the_file_beats_the_default)
{
	struct options o;
	struct error err = {0};
	char path[64];

	CHECK(write_config("{\"run-dir\":\"/file\",\"bpffs-dir\":\"/file\",\"max-pods\":7,"
			   "\"capture-ipv6\":false,\"own-pods\":[\"a/b\",\"c/d-\"]}",
			   path));
	CHECK(!parse(WORDS("--config", path, "--run-dir=/flag", "SOCKMESH_RUN_DIR=/environment",
			   "SOCKMESH_BPFFS_DIR=/environment", "SOCKMESH_MESH="),
		     &o, &err));
	CHECK_STR(o.run_dir, "/flag");
	CHECK_EQ(o.source[OPTION_RUN_DIR], SOURCE_FLAG);
	CHECK_STR(o.redirect.bpffs_dir, "/environment");
	CHECK_EQ(o.source[OPTION_BPFFS_DIR], SOURCE_ENVIRONMENT);
	CHECK_EQ(o.redirect.max_pods, 7);
	CHECK_EQ(o.source[OPTION_MAX_PODS], SOURCE_FILE);
	CHECK(!o.policy.capture_ipv6);
	CHECK_STR(o.policy.own_pods[0], "a/b");
	CHECK_STR(o.policy.own_pods[1], "c/d-");
	CHECK_EQ(o.source[OPTION_MESH], SOURCE_DEFAULT); /* empty is not set */
	options_done(&o);
	CHECK(!parse(WORDS("SOCKMESH_CONFIG=/nonexistent", "--config", path), &o, &err));
	options_done(&o);
	unlink(path);
	CHECK_EQ(parse(WORDS("--config", path), &o, &err), -ENOENT);
	CHECK_HAS(err.text, path);
	return TEST_OK;
}

TEST(wrong_flags_and_variables_are_named)
{
	static const struct {
		const char *words[8], *named;
	} cases[] = {
		{{"--no-such"}, "--no-such"},
		{{"--no-such=1"}, "--no-such"},
		{{"--run-di", "/x"}, "--run-di"},
		{{"stray"}, "stray"},
		{{"--run-dir"}, "--run-dir needs a value"},
		{{"--config"}, "--config needs a value"},
		{{"--uninstall=yes"}, "--uninstall takes no value"},
		{{"--mode", "fast"}, "--mode"},
		{{"--mode", "nft"}, "not one of auto|ebpf|nftables|iptables"},
		{{"--iptables", "iptables-nft"}, "not one of auto|legacy|nft"},
		{{"--drop-invalid", "true"}, "yes or no"},
		{{"--reconcile-seconds", "0"}, "from 1 to 3600"},
		{{"--reconcile-seconds", "3601"}, "from 1 to 3600"},
		{{"SOCKMESH_RECONCILE_SECONDS=1m"}, "SOCKMESH_RECONCILE_SECONDS"},
		{{"--install-cni", "yes"}, "not built yet"},
		{{"--proxy-identity", "cgroup"}, "not built yet"},
		{{"--install-cni", "maybe"}, "yes or no"},
		{{"SOCKMESH_MODE=Nftables"}, "SOCKMESH_MODE"},
		{{"SOCKMESH_MAX_PODS=0"}, "SOCKMESH_MAX_PODS"},
		{{"--max-pods", "-1"}, "--max-pods"},
		{{"--max-pods", "1e3"}, "--max-pods"},
		{{"--max-pods", "99999999999999999999"}, "--max-pods"},
		{{"--max-pods", ""}, "--max-pods"},
		{{"--max-handovers", "10", "--max-handovers-per-pod", "11"}, "per-pod"},
		{{"--run-dir", "relative"}, "absolute"},
		{{"--run-dir", ""}, "absolute"},
		{{"--run-dir", "/123456789012345678901234567890123456789012345678901234567890"
			       "123456789012345678901234567890123456789012345678901234567890"},
		 "too long"},
		{{"--loopback-cidr", "127.0.0.0/33"}, "--loopback-cidr"},
		{{"--loopback-cidr", "::1/128"}, "IPv4"},
		{{"--metrics-address", "9090"}, "HOST:PORT"},
		{{"--metrics-address", ":70000"}, "port"},
		{{"--metrics-address", "127.0.0.1:0"}, "port"},
		{{"--metrics-address", "localhost:9090"}, "--metrics-address"},
		{{"--metrics-address", "::1:9090"}, "brackets"},
		{{"--metrics-address", "[::1%eth0]:9090"}, "brackets"},
		{{"--own-pods", "web"}, "NAMESPACE/NAME-PREFIX"},
		{{"--own-pods", "a/b/c"}, "NAMESPACE/NAME-PREFIX"},
		{{"--exclude-namespaces", "a,,b"}, "empty element"},
		{{"--exclude-namespaces", "a,"}, "empty element"},
		{{"--log-level", "loud"}, "--log-level"},
		{{"--proxy-uid", "7"}, "only with --mesh custom"},
		{{"--mesh", "custom"}, "needs --outbound-port"},
		{{"--mesh", "custom", "--outbound-port", "1", "--inbound-port", "2"},
		 "needs --proxy-uid"},
		{{"--mesh", "custom", "--outbound-port=1", "--inbound-port=1", "--proxy-uid=3"},
		 "the same as --outbound-port"},
		{{"--mesh", "consul"}, "istio|linkerd"},
		{{"--enablement-selectors", "{}"}, "--enablement-selectors"},
		{{"--enablement-selectors", "[{\"podSelector\":{\"matchLabels\":[]}}]"},
		 "--enablement-selectors"},
		{{"--discovery-selectors", "[{"}, "--discovery-selectors"},
		{{"SOCKMESH_DISCOVERY_SELECTORS=[1]"}, "--discovery-selectors"},
		{{"--repair-label", "broken"}, "KEY=VALUE"},
		{{"--repair-label", "=yes"}, "KEY=VALUE"},
		{{"--repair-label", "/broken=yes"}, "KEY=VALUE"},
		{{"--repair-label", "mesh/=yes"}, "KEY=VALUE"},
		{{"--repair-label", "mesh/broken=y/s"}, "KEY=VALUE"},
		{{"--repair-label",
		  "a=1234567890123456789012345678901234567890123456789012345678901234"},
		 "KEY=VALUE"},
		{{"--repair-exit-code", "256"}, "from 0 to 255"},
		{{"--repair-container", ""}, "--repair-container"},
		{{"--system-namespace", ""}, "--system-namespace"},
		{{"--repair", "yes"}, "redirect|delete|label|off"},
		{{"--ztunnel", "host"}, "not one of inpod|node"},
		{{"--ztunnel", "node"}, "needs --ztunnel-address"},
		{{"--ztunnel-address", "10.1.2.3"}, "only with --ztunnel node"},
		{{"--ztunnel=node", "--ztunnel-address", "10.1.2"}, "10.1.2"},
		{{"--ztunnel=node", "--ztunnel-address", "10.1.2.3:15001"}, "10.1.2.3:15001"},
		{{"--ztunnel=node", "--ztunnel-address", "10.1.2.3,"}, "an empty element"},
		{{"--ztunnel=node", "--ztunnel-address", "10.1.2.3,fd00::1,10.1.2.4"},
		 "two addresses of one family"},
		{{"--ztunnel=node", "--ztunnel-address", "127.0.0.1"}, "a loopback address"},
		{{"--ztunnel=node", "--ztunnel-address", "::ffff:127.1.1.1"}, "a loopback address"},
		{{"--ztunnel=node", "--ztunnel-address", "::1"}, "a loopback address"},
		{{"--ztunnel=node", "--ztunnel-address", "0.0.0.0"}, "the unspecified address"},
		{{"--ztunnel=node", "--ztunnel-address", "::"}, "the unspecified address"},
		{{"--ztunnel=node", "--ztunnel-address", "169.254.7.127"}, "a link-local address"},
		{{"--ztunnel=node", "--ztunnel-address", "fe80::1"}, "a link-local address"},
		{{"--ztunnel=node", "--ztunnel-address", "239.1.2.3"}, "a multicast address"},
		{{"--ztunnel=node", "--ztunnel-address", "ff02::1"}, "a multicast address"},
		{{"--ztunnel=node", "--ztunnel-address", "255.255.255.255"}, "the broadcast"},
		{{"--ztunnel=node", "--ztunnel-address=10.1.2.3", "--mode=nftables"}, "needs eBPF"},
		{{"--ztunnel=node", "--ztunnel-address=10.1.2.3", "SOCKMESH_MODE=iptables"},
		 "needs eBPF"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct options o;
		struct error err = {0};
		int r = parse(cases[i].words, &o, &err);

		if (r != -EINVAL)
			printf("# case %zu, %s\n", i, cases[i].words[0]);
		CHECK_EQ(r, -EINVAL);
		CHECK_HAS(err.text, cases[i].named);
	}
	return TEST_OK;
}

TEST(wrong_files_are_refused_by_file_and_key)
{
	static const struct {
		const char *text, *named;
	} cases[] = {
		{"", ""},
		{"[]", "not a JSON object"},
		{"{\"run_dir\":\"/x\"}", "unknown key \"run_dir\""},
		{"{\"config\":\"/x\"}", "unknown key \"config\""},
		{"{\"uninstall\":true}", "unknown key \"uninstall\""},
		{"{\"run-dir\":7}", "run-dir must be a string"},
		{"{\"run-dir\":null}", "run-dir must be a string"},
		{"{\"run-dir\":\"/a\\u0000b\"}", "u0000"},
		{"{\"max-pods\":\"7\"}", "max-pods must be a whole number"},
		{"{\"max-pods\":7.5}", "max-pods must be a whole number"},
		{"{\"max-pods\":-7}", "max-pods"},
		{"{\"capture-ipv6\":\"yes\"}", "capture-ipv6 must be true or false"},
		{"{\"own-pods\":\"a/b\"}", "own-pods must be an array"},
		{"{\"own-pods\":[1]}", "own-pods[0]"},
		{"{\"own-pods\":[\"a/b\",\"\"]}", "own-pods[1]"},
		{"{\"own-pods\":[\"a/b,c/d\"]}", "own-pods[0]"},
		{"{\"mode\":\"xtables\"}", "not one of"},
		{"{\"install-cni\":true}", "not built yet"},
		{"{\"drop-invalid\":\"yes\"}", "drop-invalid must be true or false"},
		{"{\"reconcile-seconds\":0}", "reconcile-seconds"},
		{"{\"iptables\":true}", "iptables must be a string"},
		{"{\"run-dir\":\"/a\",\"run-dir\":\"/b\"}", "run-dir"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct options o;
		struct error err = {0};
		char path[64];

		CHECK(write_config(cases[i].text, path));
		CHECK_EQ(parse(WORDS("--config", path), &o, &err), -EINVAL);
		CHECK_HAS(err.text, cases[i].named);
		CHECK_HAS(err.text, path);
		unlink(path);
	}
	return TEST_OK;
}

TEST(every_engine_can_be_asked_for)
{
	static const struct {
		const char *text;
		enum redirect_mode mode;
	} modes[] = {{"auto", REDIRECT_AUTO},
		     {"ebpf", REDIRECT_EBPF},
		     {"nftables", REDIRECT_NFTABLES},
		     {"iptables", REDIRECT_IPTABLES}};
	struct options o;
	struct error err = {0};

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		CHECK(!parse(WORDS("--mode", modes[i].text, "SOCKMESH_IPTABLES=legacy"), &o, &err));
		CHECK_EQ(o.redirect.mode, modes[i].mode);
		CHECK_STR(o.redirect.iptables, "legacy");
		options_done(&o);
	}
	return TEST_OK;
}

static bool is_address(const struct ip_address *a, const char *text)
{
	char buf[IP_ADDRESS_TEXT_MAX];

	return strcmp(ip_address_format(a, buf), text) == 0;
}

TEST(the_proxy_of_the_node_has_an_address_of_each_family_or_of_one)
{
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS("--ztunnel", "inpod"), &o, &err));
	CHECK(!o.policy.node_proxy);
	CHECK(o.policy.ambient_dns_capture);
	options_done(&o);
	CHECK(!parse(WORDS("--ztunnel=node", "--ztunnel-address=fd00::1, 10.1.2.3"), &o, &err));
	CHECK(o.policy.node_proxy);
	CHECK(is_address(&o.policy.proxy4, "10.1.2.3"));
	CHECK(is_address(&o.policy.proxy6, "fd00::1"));
	/* Nobody has said that it answers DNS. */
	CHECK(!o.policy.ambient_dns_capture);
	CHECK_STR(o.text[OPTION_AMBIENT_DNS_CAPTURE], "no");
	CHECK(policy_is_node_proxy(&o.policy, &o.policy.proxy4));
	CHECK(policy_is_node_proxy(&o.policy, &o.policy.proxy6));
	options_done(&o);
	CHECK(!parse(WORDS("SOCKMESH_ZTUNNEL=node", "SOCKMESH_ZTUNNEL_ADDRESS=10.1.2.3",
			   "--ambient-dns-capture=yes", "--mode=ebpf"),
		     &o, &err));
	CHECK(is_address(&o.policy.proxy4, "10.1.2.3"));
	CHECK(ip_address_is_unspecified(&o.policy.proxy6));
	CHECK(!policy_is_node_proxy(&o.policy, &o.policy.proxy6));
	CHECK(o.policy.ambient_dns_capture);
	options_done(&o);
	return TEST_OK;
}

TEST(the_reconciler_and_invalid_packets_are_configured)
{
	struct options o;
	struct error err = {0};
	char path[64];

	CHECK(write_config("{\"reconcile-seconds\":3600,\"drop-invalid\":true}", path));
	CHECK(!parse(WORDS("--config", path), &o, &err));
	CHECK_EQ(o.reconcile_ms, 3600000);
	CHECK(o.policy.drop_invalid);
	options_done(&o);
	CHECK(!parse(WORDS("--config", path, "--drop-invalid=no", "SOCKMESH_RECONCILE_SECONDS=1"),
		     &o, &err));
	CHECK_EQ(o.reconcile_ms, 1000);
	CHECK(!o.policy.drop_invalid);
	options_done(&o);
	unlink(path);
	return TEST_OK;
}

/* Of a pod and its namespace: does one of the pairs select them? */
static bool selects(const struct options *o, const char *pod, const char *ns)
{
	scoped_json json_t *pod_labels = quoted_json(pod), *ns_labels = quoted_json(ns);
	uint64_t selected = kube_selectors_namespace(&o->selectors, ns_labels);

	return kube_selectors_select(&o->selectors, selected, pod_labels) >= 0;
}

static bool discovers(const struct options *o, const char *ns)
{
	scoped_json json_t *labels = quoted_json(ns);

	return kube_selectors_discover(&o->selectors, labels);
}

TEST(who_is_ambient_is_configured)
{
	static const char mode[] = "{'istio.io/dataplane-mode':'ambient'}";
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS(NULL), &o, &err));
	CHECK(selects(&o, mode, "{}") && selects(&o, "{}", mode) && !selects(&o, "{}", "{}"));
	CHECK(!selects(&o, "{'istio.io/dataplane-mode':'none'}", mode));
	CHECK(discovers(&o, "{}"));
	options_done(&o);
	CHECK(!parse(WORDS("--enablement-selectors",
			   "[{\"podSelector\":{\"matchLabels\":{\"mesh\":\"on\"}}}]",
			   "SOCKMESH_DISCOVERY_SELECTORS=[{\"matchLabels\":{\"a\":\"b\"}}]"),
		     &o, &err));
	CHECK(selects(&o, "{'mesh':'on'}", "{}") && !selects(&o, mode, mode));
	CHECK(discovers(&o, "{'a':'b'}") && !discovers(&o, "{'a':'c'}"));
	options_done(&o);
	return TEST_OK;
}

TEST(repair_is_configured)
{
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS(NULL), &o, &err));
	CHECK(o.repair.redirect && !o.repair.delete &&!o.repair.label);
	CHECK_STR(o.repair.container, "istio-validation");
	CHECK_EQ(o.repair.exit_code, 126);
	CHECK_STR(o.repair.label_text, "cni.istio.io/uninitialized=true");
	CHECK_STR(o.policy.system_namespace, "istio-system");
	options_done(&o);
	CHECK(!parse(WORDS("--repair=label", "--repair-container=check", "--repair-exit-code=0",
			   "--repair-label=broken=", "--repair-message=none",
			   "--system-namespace=mesh"),
		     &o, &err));
	CHECK(!o.repair.redirect && !o.repair.delete &&o.repair.label);
	CHECK_STR(o.repair.container, "check");
	CHECK_EQ(o.repair.exit_code, 0);
	CHECK_STR(o.repair.label_text, "broken=");
	CHECK_STR(o.repair.message, "none");
	CHECK_STR(o.policy.system_namespace, "mesh");
	options_done(&o);
	return TEST_OK;
}

TEST(a_custom_mesh_takes_its_ports_and_ids)
{
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS("--mesh", "custom", "--outbound-port", "4140", "--inbound-port", "4143",
			   "--proxy-uid", "2102", "SOCKMESH_DNS_PORT=53"),
		     &o, &err));
	CHECK_EQ(o.policy.mesh.outbound_port, 4140);
	CHECK_EQ(o.policy.mesh.inbound_port, 4143);
	CHECK_EQ(o.policy.mesh.dns_port, 53);
	CHECK_EQ(o.policy.mesh.proxy_uid, 2102);
	CHECK_EQ(o.policy.mesh.proxy_gid, 2102);
	options_done(&o);
	return TEST_OK;
}

TEST(help_and_version_answer_beside_anything)
{
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS("--no-such", "--help"), &o, &err));
	CHECK_EQ(o.action, ACTION_HELP);
	options_done(&o);
	CHECK(!parse(WORDS("--mode", "fast", "--version", "--uninstall"), &o, &err));
	CHECK_EQ(o.action, ACTION_VERSION);
	options_done(&o);
	CHECK(!parse(WORDS("-h"), &o, &err));
	CHECK_EQ(o.action, ACTION_HELP);
	options_done(&o);
	CHECK(!parse(WORDS("--uninstall"), &o, &err));
	CHECK_EQ(o.action, ACTION_UNINSTALL);
	options_done(&o);
	return TEST_OK;
}

static int n_without_effect;

static void count_without_effect(const char *name, const char *sentence)
{
	n_without_effect += *name && *sentence;
}

TEST(what_the_accelerator_is_told)
{
	struct accelerate_config *a;
	struct error err = {0};
	struct options o;

	CHECK(!parse(WORDS(NULL), &o, &err));
	a = &o.accelerate;
	CHECK_EQ(a->policy, ACCELERATE_AUTO);
	CHECK(a->learning && !a->ignore_known_bugs);
	CHECK_EQ(a->max_pods, 1024);
	CHECK_EQ(a->max_sockets, 32768);
	CHECK_EQ(a->max_sockets_per_pod, 4096);
	CHECK_EQ(a->max_bytes, 4194304);
	CHECK_EQ(a->max_messages, 1024);
	CHECK_EQ(a->budget, 268435456);
	CHECK_EQ(a->pod_budget, 67108864);
	CHECK_STR(a->bpffs_dir, "/sys/fs/bpf/sockmesh");
	CHECK_STR(a->state_dir, "/run/sockmesh");
	options_done(&o);
	CHECK(!parse(WORDS("--accelerate", "full-advised", "--accelerate-learning", "no",
			   "--accelerate-ignore-known-bugs", "yes", "--accelerate-budget",
			   "1099511627776", "--accelerate-pod-budget", "8589934592"),
		     &o, &err));
	CHECK_EQ(a->policy, ACCELERATE_FULL_ADVISED);
	CHECK(!a->learning && a->ignore_known_bugs);
	CHECK_EQ(a->budget, 1099511627776);
	CHECK_EQ(a->pod_budget, 8589934592);
	options_done(&o);
	return TEST_OK;
}

TEST(limits_of_the_accelerator_that_make_no_sense)
{
	static const struct {
		const char *flag, *value, *part;
	} cases[] = {
		{"--accelerate", "fast", "off|proxy|auto|full-advised|full"},
		{"--accelerate-learning", "maybe", "not yes or no"},
		{"--accelerate-max-sockets", "1", "from 2 to 1048576"},
		{"--accelerate-max-sockets-per-pod", "32769",
		 "--accelerate-max-sockets-per-pod: \"32769\": more than --accelerate-max-sockets "
		 "32768"},
		{"--accelerate-max-bytes", "4095", "from 4096 to 1073741824"},
		{"--accelerate-max-messages", "0", "from 1 to 1048576"},
		{"--accelerate-budget", "1099511627777", "from 0 to 1099511627776"},
		{"--accelerate-budget", "9999999999999999", "from 0 to 1099511627776"},
		{"--accelerate-pod-budget", "268435457", "more than --accelerate-budget"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct error err = {0};
		struct options o = {0};

		CHECK_EQ(parse(WORDS(cases[i].flag, cases[i].value), &o, &err), -EINVAL);
		CHECK_HAS(err.text, cases[i].part);
		options_done(&o);
	}
	return TEST_OK;
}

TEST(a_pods_share_that_nobody_gave_follows_the_nodes_limit)
{
	struct error err = {0};
	struct options o;

	CHECK(!parse(WORDS("--accelerate-max-sockets", "100", "--accelerate-budget", "0"), &o,
		     &err));
	CHECK_EQ(o.accelerate.max_sockets, 100);
	CHECK_EQ(o.accelerate.max_sockets_per_pod, 100);
	CHECK_EQ(o.accelerate.budget, 0);
	CHECK_EQ(o.accelerate.pod_budget, 0);
	options_done(&o);
	CHECK_EQ(parse(WORDS("--accelerate-budget", "5000", "--accelerate-pod-budget", "5001"), &o,
		       &err),
		 -EINVAL);
	CHECK_HAS(err.text, "--accelerate-pod-budget");
	CHECK_HAS(err.text, "more than --accelerate-budget 5000");
	options_done(&o);
	return TEST_OK;
}

TEST(meshes_whose_proxy_is_known_to_read_to_the_end)
{
	static const struct {
		const char *mesh;
		bool unknown;
	} cases[] = {{"istio", false}, {"kuma", false}, {"osm", false}, {"linkerd", true}};
	struct error err = {0};
	struct options o;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		CHECK(!parse(WORDS("--mesh", cases[i].mesh), &o, &err));
		CHECK_EQ(o.accelerate.unknown_proxy, cases[i].unknown);
		options_done(&o);
	}
	CHECK(!parse(WORDS("--mesh", "custom", "--outbound-port", "1", "--inbound-port", "2",
			   "--proxy-uid", "3"),
		     &o, &err));
	CHECK(o.accelerate.unknown_proxy);
	options_done(&o);
	return TEST_OK;
}

TEST(what_has_no_effect_yet_is_told_when_it_is_given)
{
	struct options o;
	struct error err = {0};

	n_without_effect = 0;
	CHECK(!parse(WORDS(NULL), &o, &err));
	options_without_effect(&o, count_without_effect);
	CHECK_EQ(n_without_effect, 0);
	options_done(&o);
	CHECK(!parse(WORDS("--accelerate", "full", "--cni-conf-dir", "/z", "--cni-bin-dir", "/x",
			   "--run-dir", "/y"),
		     &o, &err));
	options_without_effect(&o, count_without_effect);
	CHECK_EQ(n_without_effect, 2);
	options_done(&o);
	return TEST_OK;
}

TEST(help_and_dump_name_every_option)
{
	static const char *const names[] = {
		"mode",
		"iptables",
		"drop-invalid",
		"reconcile-seconds",
		"accelerate",
		"accelerate-learning",
		"accelerate-max-sockets",
		"accelerate-max-sockets-per-pod",
		"accelerate-max-bytes",
		"accelerate-max-messages",
		"accelerate-budget",
		"accelerate-pod-budget",
		"accelerate-ignore-known-bugs",
		"mesh",
		"run-dir",
		"bpffs-dir",
		"cgroup-root",
		"kubernetes",
		"kubeconfig",
		"node-name",
		"ztunnel",
		"ztunnel-address",
		"ztunnel-socket",
		"cni-conf-dir",
		"cni-bin-dir",
		"install-cni",
		"metrics-address",
		"log-format",
		"kubelet-cgroup",
		"exclude-namespaces",
		"own-pods",
		"proxy-identity",
		"capture-ipv6",
		"ambient-dns-capture",
		"without-ztunnel",
		"enrol-existing",
		"enablement-selectors",
		"discovery-selectors",
		"repair",
		"repair-container",
		"repair-exit-code",
		"repair-message",
		"repair-label",
		"system-namespace",
	};
	char *help = NULL, *dump = NULL;
	size_t help_size, dump_size;
	FILE *help_file = open_memstream(&help, &help_size);
	FILE *dump_file = open_memstream(&dump, &dump_size);
	struct options o;
	struct error err = {0};

	CHECK(!parse(WORDS("SOCKMESH_NODE_NAME=n1"), &o, &err));
	options_print_help(help_file);
	options_print_dump(&o, dump_file);
	fclose(help_file);
	fclose(dump_file);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char text[64];

		snprintf(text, sizeof(text), "\n  --%s ", names[i]);
		CHECK_HAS(help, text);
		snprintf(text, sizeof(text), "%s=", names[i]);
		CHECK_HAS(dump, text);
	}
	CHECK_HAS(dump, "node-name=n1\t# environment SOCKMESH_NODE_NAME\n");
	CHECK_HAS(dump, "run-dir=/run/sockmesh\t# default\n");
	CHECK_HAS(help, "--dump-config");
	free(help);
	free(dump);
	options_done(&o);
	return TEST_OK;
}
