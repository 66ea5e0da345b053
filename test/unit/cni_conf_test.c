/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_conf.h"

#include "cni_args.h"
#include "error.h"
#include "json.h"
#include "pod_membership.h"
#include "test.h"

#include <errno.h>

/* Loads and reads; 0 or the first failure. conf needs cni_conf_done() when 0. */
static int read_text(const char *text, struct cni_conf *conf, struct error *err)
{
	int rc = cni_conf_load(text, strlen(text), conf, err);

	if (rc < 0)
		return rc;
	rc = cni_conf_read(conf, err);
	if (rc < 0)
		cni_conf_done(conf);
	return rc;
}

TEST(absent_and_null_keys_leave_the_documented_defaults)
{
	static const char *const texts[] = {
		"{\"cniVersion\":\"1.0.0\",\"name\":\"n\"}",
		"{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"chained\":null,\"onAgentDown\":null,"
		"\"timeoutMs\":null,\"runDir\":null,\"logLevel\":null,\"runtimeConfig\":null,"
		"\"excludeNamespaces\":null,\"ownPods\":null,\"prevResult\":null}",
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		struct cni_conf conf;
		struct error err;

		CHECK_EQ(read_text(texts[i], &conf, &err), 0);
		CHECK(conf.version == CNI_1_0_0 && conf.chained && !conf.ambient_enabled);
		CHECK(conf.on_agent_down == ON_AGENT_DOWN_DENY && conf.log_level == LOG_WARN);
		CHECK_EQ(conf.timeout_ms, 10000);
		CHECK_STR(conf.run_dir, "/run/sockmesh");
		CHECK(!conf.annotations_known && !conf.annotations && !conf.cgroup_path);
		CHECK(!conf.prev_result && !conf.has_attachments);
		cni_conf_done(&conf);
	}
	return TEST_OK;
}

TEST(the_ways_to_be_no_configuration_are_told_apart)
{
	static const struct {
		const char *text;
		int rc;
	} cases[] = {
		{"", -EBADMSG},
		{"{", -EBADMSG},
		{"[]", -EBADMSG},
		{"{}", -EPROTONOSUPPORT},
		{"{\"cniVersion\":\"0.2.0\"}", -EPROTONOSUPPORT},
		{"{\"cniVersion\":\"1.1.1\"}", -EPROTONOSUPPORT},
		{"{\"cniVersion\":1}", -EINVAL},
		{"{\"cniVersion\":\"1.1.0\"}", -EINVAL}, /* no name */
	};

	struct cni_conf unused;
	struct error nul;

	CHECK_EQ(cni_conf_load("{\"a\":1\0}", sizeof("{\"a\":1\0}") - 1, &unused, &nul), -EBADMSG);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct cni_conf conf;
		struct error err = {0};

		CHECK_EQ(read_text(cases[i].text, &conf, &err), cases[i].rc);
		CHECK(err.text[0]);
	}
	return TEST_OK;
}

TEST(a_wrong_value_names_its_key_and_leaves_the_rest_alone)
{
	static const struct {
		const char *member, *part;
	} cases[] = {
		{"\"timeoutMs\":\"x\"", "timeoutMs"},
		{"\"timeoutMs\":0", "timeoutMs"},
		{"\"runDir\":\"run\"", "runDir"},
		{"\"onAgentDown\":\"no\"", "onAgentDown"},
		{"\"excludeNamespaces\":[\"a\",5]", "excludeNamespaces[1]"},
		{"\"ownPods\":[\"a/b\",\"a\"]", "ownPods[1]"},
		{"\"ownPods\":[\"a/\"]", "ownPods[0]"},
		{"\"logLevel\":\"x\"", "logLevel"},
		{"\"runtimeConfig\":{\"cgroupPath\":1}", "runtimeConfig.cgroupPath"},
		{"\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{\"k\":1}}", "\"k\""},
		{"\"cni.dev/valid-attachments\":{}", "cni.dev/valid-attachments"},
		{"\"prevResult\":\"x\"", "prevResult"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		char text[256];
		struct cni_conf conf;
		struct error err;

		snprintf(text, sizeof(text),
			 "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"chained\":false,%s}",
			 cases[i].member);
		CHECK_EQ(cni_conf_load(text, strlen(text), &conf, &err), 0);
		CHECK_EQ(cni_conf_read(&conf, &err), -EINVAL);
		CHECK_HAS(err.text, cases[i].part);
		CHECK(conf.chained && conf.timeout_ms == 10000 && !conf.name);
		cni_conf_done(&conf);
	}
	return TEST_OK;
}

TEST(annotations_that_are_null_are_known_to_be_none)
{
	struct cni_conf conf;
	struct error err;

	CHECK_EQ(read_text("{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"runtimeConfig\":"
			   "{\"io.kubernetes.cri.pod-annotations\":null}}",
			   &conf, &err),
		 0);
	CHECK(conf.annotations_known && !conf.annotations);
	cni_conf_done(&conf);
	return TEST_OK;
}

TEST(attachments_are_read_under_both_names_and_null_is_the_empty_list)
{
	struct cni_conf conf;
	struct error err;

	CHECK_EQ(read_text("{\"cniVersion\":\"1.1.0\",\"name\":\"n\",\"cni.dev/attachments\":[1],"
			   "\"cni.dev/valid-attachments\":null}",
			   &conf, &err),
		 0);
	CHECK(conf.has_attachments && !conf.attachments);
	cni_conf_done(&conf);
	CHECK_EQ(read_text("{\"cniVersion\":\"1.1.0\",\"name\":\"n\",\"cni.dev/attachments\":[1]}",
			   &conf, &err),
		 0);
	CHECK_EQ(json_array_size(conf.attachments), 1);
	cni_conf_done(&conf);
	return TEST_OK;
}

/* What the plugin makes of pod default/web-1 with these members in its configuration. */
static int guess(const char *members)
{
	struct cni_args args = {.pod_namespace = "default", .pod_name = "web-1"};
	struct cni_conf conf;
	struct error err;
	const char *why;
	char text[512];
	int result;

	snprintf(text, sizeof(text), "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",%s}", members);
	if (read_text(text, &conf, &err) < 0)
		return -1;
	result = (int)pod_membership_guess(&conf, &args, &why);
	cni_conf_done(&conf);
	return result;
}

#define ANNOTATED(members) "\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{" members "}}"

TEST(membership_is_guessed_from_annotations_and_lists)
{
	static const struct {
		const char *members;
		enum pod_membership want;
	} cases[] = {
		{ANNOTATED(""), POD_OUTSIDE},
		{ANNOTATED("\"sidecar.istio.io/status\":\"\""), POD_OUTSIDE},
		{ANNOTATED("\"sidecar.istio.io/status\":\"x\""), POD_MAYBE_MESH},
		{ANNOTATED("\"sockmesh.io/redirection\":\"sidecar\""), POD_MAYBE_MESH},
		{ANNOTATED("\"sockmesh.io/redirection\":\"None\""), POD_MAYBE_MESH},
		{ANNOTATED("\"sockmesh.io/redirection\":\"none\""), POD_EXEMPT},
		{"\"ambientEnabled\":true," ANNOTATED("\"sockmesh.io/redirection\":\"none\""),
		 POD_EXEMPT},
		{"\"ambientEnabled\":true," ANNOTATED(""), POD_MAYBE_MESH},
		{"\"x\":1", POD_MAYBE_MESH},
		{"\"excludeNamespaces\":[\"default\"]", POD_EXEMPT},
		{"\"excludeNamespaces\":[\"def\",\"default2\"]", POD_MAYBE_MESH},
		{"\"ownPods\":[\"default/web-\"]", POD_EXEMPT},
		{"\"ownPods\":[\"default/web-10\",\"def/web\",\"default2/web\"]", POD_MAYBE_MESH},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		CHECK_EQ(guess(cases[i].members), cases[i].want);
	return TEST_OK;
}

TEST(only_annotations_of_known_prefixes_are_kept)
{
	scoped_json json_t *all =
		json_pack("{s:s,s:s,s:s,s:s}", "istio.io/rev", "a", "xistio.io/rev", "b",
			  "kuma.io/mesh", "c", "istio.io", "d");
	scoped_json json_t *known = pod_membership_annotations(all);

	CHECK_EQ(json_object_size(known), 2);
	CHECK(json_object_get(known, "istio.io/rev") && json_object_get(known, "kuma.io/mesh"));
	return TEST_OK;
}
