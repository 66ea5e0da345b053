/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"
#include "pod_workload.h"
#include "test.h"

#include <string.h>

static const char *of_name(const char *name, char buf[static POD_WORKLOAD_MAX])
{
	const struct pod_facts pod = {.ns = "shop", .name = name};

	return pod_workload(&pod, buf);
}

TEST(what_controllers_add_to_a_name_goes)
{
	static const struct {
		const char *name, *expected;
	} cases[] = {
		/* Deployment: the hash of the template, then five letters. */
		{"web-7d4b9c6f5-x2x7q", "shop/web"},
		{"coredns-5d78c9869d-4tz9l", "shop/coredns"},
		{"reviews-v2-6b9b5d4cfb-kv7zd", "shop/reviews-v2"},
		/* ReplicaSet, DaemonSet, Job. */
		{"node-exporter-x2x7q", "shop/node-exporter"},
		/* CronJob. */
		{"backup-28473120-x2x7q", "shop/backup"},
		/* StatefulSet. */
		{"kafka-0", "shop/kafka"},
		{"kafka-broker-127", "shop/kafka-broker"},
		/* Names that end alike, and are their own. */
		{"web", "shop/web"},
		{"web-server", "shop/web-server"},
		{"web-aaaaa", "shop/web-aaaaa"},
		{"web-x2x7", "shop/web-x2x7"},
		{"web-x2x7qq", "shop/web-x2x7qq"},
		{"my-app-v1", "shop/my-app-v1"},
		/* Nothing may be left of a name but something. */
		{"x2x7q", "shop/x2x7q"},
		{"-x2x7q", "shop/-x2x7q"},
		{"0", "shop/0"},
		{"-0", "shop/-0"},
		{"", "shop/-"},
		{NULL, "shop/-"},
	};
	char buf[POD_WORKLOAD_MAX];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		CHECK_STR(of_name(cases[i].name, buf), cases[i].expected);
	return TEST_OK;
}

TEST(labels_say_it_first)
{
	scoped_json json_t *labels =
		json_pack("{s:s, s:s, s:s}", "app", "a", "app.kubernetes.io/name", "b",
			  "service.istio.io/canonical-name", "c");
	const struct pod_facts pod = {
		.ns = "shop", .name = "web-7d4b9c6f5-x2x7q", .labels = labels};
	char buf[POD_WORKLOAD_MAX];

	CHECK_STR(pod_workload(&pod, buf), "shop/c");
	json_object_del(labels, "service.istio.io/canonical-name");
	CHECK_STR(pod_workload(&pod, buf), "shop/b");
	json_object_del(labels, "app.kubernetes.io/name");
	CHECK_STR(pod_workload(&pod, buf), "shop/a");
	json_object_del(labels, "app");
	CHECK_STR(pod_workload(&pod, buf), "shop/web");
	return TEST_OK;
}

TEST(what_is_no_label_value_is_not_believed)
{
	static const char *const values[] = {
		"", "a/b", "a b", "\xc3\xa4",
		"0123456789012345678901234567890123456789012345678901234567890123"};
	char buf[POD_WORKLOAD_MAX];

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		scoped_json json_t *labels = json_pack("{s:s}", "app", values[i]);
		const struct pod_facts pod = {.ns = "shop", .name = "web-0", .labels = labels};

		CHECK(labels);
		CHECK_STR(pod_workload(&pod, buf), "shop/web");
	}
	return TEST_OK;
}

TEST(a_pod_of_which_nothing_is_known_has_one_too)
{
	const struct pod_facts pod = {0};
	char buf[POD_WORKLOAD_MAX], name[1000];

	CHECK_STR(pod_workload(&pod, buf), "-/-");
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	CHECK_EQ(strlen(of_name(name, buf)), strlen("shop/") + 253);
	return TEST_OK;
}
