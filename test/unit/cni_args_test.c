/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_args.h"

#include "error.h"
#include "test.h"

#include <errno.h>
#include <stdlib.h>

TEST(what_containerd_and_crio_send_is_read)
{
	struct cni_args args;
	struct error err;

	CHECK_EQ(cni_args_parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-1.x;"
				"K8S_POD_INFRA_CONTAINER_ID=0abc;K8S_POD_UID=1-2_3",
				&args, &err),
		 0);
	CHECK(args.ignore_unknown);
	CHECK_STR(args.pod_namespace, "ns");
	CHECK_STR(args.pod_name, "web-1.x");
	CHECK_STR(args.infra_container_id, "0abc");
	CHECK_STR(args.pod_uid, "1-2_3");
	cni_args_done(&args);
	CHECK(!args.pod_name);
	return TEST_OK;
}

TEST(no_pairs_and_empty_values_are_absent)
{
	static const char *const texts[] = {NULL, "", ";;", "K8S_POD_NAME=;K8S_POD_UID="};

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		struct cni_args args;
		struct error err;

		CHECK_EQ(cni_args_parse(texts[i], &args, &err), 0);
		CHECK(!args.pod_namespace && !args.pod_name && !args.pod_uid);
		cni_args_done(&args);
	}
	return TEST_OK;
}

TEST(unknown_keys_need_ignore_unknown_wherever_it_stands)
{
	struct cni_args args;
	struct error err;

	CHECK_EQ(cni_args_parse("FOO=bar", &args, &err), -EINVAL);
	CHECK_HAS(err.text, "FOO");
	CHECK_EQ(cni_args_parse("FOO=bar;IgnoreUnknown=false", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("FOO=b=;IgnoreUnknown=TRUE;K8S_POD_NAME=a", &args, &err), 0);
	CHECK_STR(args.pod_name, "a");
	cni_args_done(&args);
	CHECK_EQ(cni_args_parse("IgnoreUnknown=\x11", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("IgnoreUnknown=tru", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("IgnoreUnknown=truest", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("IgnoreUnknown=", &args, &err), -EINVAL);
	CHECK_HAS(err.text, "IgnoreUnknown");
	/* A key that only begins like one of ours is another key. */
	CHECK_EQ(cni_args_parse("K8S_POD_NAM=a", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("K8S_POD_NAMES=a", &args, &err), -EINVAL);
	return TEST_OK;
}

TEST(what_is_no_identifier_is_refused_by_name)
{
	static const char *const bad[] = {
		"K8S_POD_NAME=../x", "K8S_POD_NAME=a b",  "K8S_POD_NAME=-a", "K8S_POD_NAME=a/b",
		"K8S_POD_NAME=a\n",  "K8S_POD_NAME=\xff", "K8S_POD_NAME=.",  "K8S_POD_NAME=a=b",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct cni_args args;
		struct error err;

		CHECK_EQ(cni_args_parse(bad[i], &args, &err), -EINVAL);
		CHECK_HAS(err.text, "K8S_POD_NAME");
	}
	return TEST_OK;
}

TEST(lengths_end_where_the_header_says)
{
	char text[512] = "K8S_POD_NAME=";
	struct cni_args args;
	struct error err;
	size_t key = strlen(text);

	memset(text + key, 'a', CNI_POD_NAME_MAX);
	CHECK_EQ(cni_args_parse(text, &args, &err), 0);
	CHECK_EQ(strlen(args.pod_name), CNI_POD_NAME_MAX);
	cni_args_done(&args);
	text[key + CNI_POD_NAME_MAX] = 'a';
	CHECK_EQ(cni_args_parse(text, &args, &err), -EINVAL);
	return TEST_OK;
}

TEST(a_key_given_twice_must_agree)
{
	struct cni_args args;
	struct error err;

	CHECK_EQ(cni_args_parse("K8S_POD_NAME=a;K8S_POD_NAME=a", &args, &err), 0);
	cni_args_done(&args);
	CHECK_EQ(cni_args_parse("K8S_POD_NAME=a;K8S_POD_NAME=b", &args, &err), -EINVAL);
	CHECK_EQ(cni_args_parse("K8S_POD_NAME=a;K8S_POD_NAME=aa", &args, &err), -EINVAL);
	CHECK_HAS(err.text, "twice");
	return TEST_OK;
}

TEST(container_ids_and_interface_names_follow_the_specification)
{
	static const char *const bad_ids[] = {"", "-a", ".a", "_", "a/b", "a b", "\xc3\xa9"};
	static const char *const bad_names[] = {
		"", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-", "a\v"};
	struct error err;

	CHECK_EQ(cni_container_id_check("0a_b.c-d", &err), 0);
	CHECK_EQ(cni_if_name_check("fifteen-letters", &err), 0);
	for (size_t i = 0; i < sizeof(bad_ids) / sizeof(*bad_ids); i++)
		CHECK_EQ(cni_container_id_check(bad_ids[i], &err), -EINVAL);
	for (size_t i = 0; i < sizeof(bad_names) / sizeof(*bad_names); i++)
		CHECK_EQ(cni_if_name_check(bad_names[i], &err), -EINVAL);
	return TEST_OK;
}
