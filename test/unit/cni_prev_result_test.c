/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_prev_result.h"

#include "error.h"
#include "json.h"
#include "test.h"

#include <errno.h>

static int read_config(const char *config, enum cni_version version, struct cni_prev_result *ret,
		       struct error *err)
{
	scoped_json json_t *root = NULL;

	if (json_parse(config, strlen(config), "test", &root, err) < 0)
		return 1;
	return cni_prev_result_read(config, strlen(config), json_object_get(root, "prevResult"),
				    version, ret, err);
}

TEST(the_text_is_handed_on_as_it_came)
{
	static const char *const results[] = {
		"{ \"z\":1.10,\"cniVersion\" :\"1.0.0\",\"a\":[ 1E+2,{\"cniVersion\":\"x\"}] }",
		"{\"cniVersion\":\"1.0.0\",\"s\":\"}]{[\\\"\\\\\",\"n\":9007199254740993}",
		"{\"cni\\u0056ersion\":\"1.0.0\"}",
	};
	static const char *const frames[] = {
		"{\"prevResult\":%s}",
		"{\"a\":{\"prevResult\":{}},\"b\":\"prevResult\",\"prevResult\" \n:\t%s ,\"c\":-1}",
		"{\"n\":1,\"t\":true,\"l\":[[],{}],\"prev\\u0052esult\":%s}",
	};

	for (size_t i = 0; i < 3; i++) {
		for (size_t k = 0; k < 3; k++) {
			struct cni_prev_result result;
			struct error err;
			char config[512];

			snprintf(config, sizeof(config), "%.*s%s%s",
				 (int)(strstr(frames[k], "%s") - frames[k]), frames[k], results[i],
				 strstr(frames[k], "%s") + 2);
			CHECK_EQ(read_config(config, CNI_1_0_0, &result, &err), 0);
			CHECK_STR(result.text, results[i]);
			cni_prev_result_done(&result);
		}
	}
	return TEST_OK;
}

TEST(only_the_version_is_replaced)
{
	static const struct {
		const char *before, *after;
	} cases[] = {
		{"{ \"a\":1.0 }", "{\"cniVersion\":\"1.1.0\", \"a\":1.0 }"},
		{"{}", "{\"cniVersion\":\"1.1.0\"}"},
		{"{ \"a\":0, \"cniVersion\" : \"0.4.0\" }",
		 "{ \"a\":0, \"cniVersion\" : \"1.1.0\" }"},
		{"{\"cniVersion\":null,\"a\":{}}", "{\"cniVersion\":\"1.1.0\",\"a\":{}}"},
		{"{\"cniVersion\":\"1.0.0\"}", "{\"cniVersion\":\"1.1.0\"}"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct cni_prev_result result;
		struct error err;
		char config[256];

		snprintf(config, sizeof(config), "{\"prevResult\":%s}", cases[i].before);
		CHECK_EQ(read_config(config, CNI_1_1_0, &result, &err), 0);
		CHECK_STR(result.text, cases[i].after);
		cni_prev_result_done(&result);
	}
	return TEST_OK;
}

TEST(addresses_keep_their_host_bits_and_their_prefix_length)
{
	struct cni_prev_result result;
	char text[IP_ADDRESS_TEXT_MAX];
	struct error err;

	CHECK_EQ(read_config("{\"prevResult\":{\"interfaces\":[{\"name\":\"cni0\"},"
			     "{\"name\":\"eth0\",\"sandbox\":\"/x\"}],\"ips\":["
			     "{\"address\":\"10.1.2.3/24\",\"interface\":1},"
			     "{\"address\":\"10.1.2.1/24\",\"interface\":0},"
			     "{\"address\":\"fd00::5/64\"},{\"address\":\"0.0.0.0/0\"}]}}",
			     CNI_1_0_0, &result, &err),
		 0);
	CHECK_EQ(result.n_ips, 3);
	CHECK_STR(ip_address_format(&result.ips[0].address, text), "10.1.2.3");
	CHECK_EQ(result.ips[0].prefix_length, 24);
	CHECK_STR(ip_address_format(&result.ips[1].address, text), "fd00::5");
	CHECK_EQ(result.ips[1].prefix_length, 64);
	CHECK_EQ(result.ips[2].prefix_length, 0);
	cni_prev_result_done(&result);
	return TEST_OK;
}

TEST(what_is_malformed_is_named)
{
	static const struct {
		const char *result, *part;
	} cases[] = {
		{"[]", "prevResult"},
		{"{\"ips\":1}", "prevResult.ips"},
		{"{\"ips\":[1]}", "prevResult.ips[0]"},
		{"{\"ips\":[{\"address\":\"10.0.0.1/8\"},{}]}", "prevResult.ips[1].address"},
		{"{\"ips\":[{\"address\":\"10.0.0.1\"}]}", "10.0.0.1"},
		{"{\"ips\":[{\"address\":\"10.0.0.1/\"}]}", "length"},
		{"{\"ips\":[{\"address\":\"10.0.0.1/ 8\"}]}", "length"},
		{"{\"ips\":[{\"address\":\"10.0.0.1/33\"}]}", "0 to 32"},
		{"{\"ips\":[{\"address\":\"fd00::/129\"}]}", "0 to 128"},
		{"{\"ips\":[{\"address\":\"fd00::/64\",\"interface\":0}]}", "0 interfaces"},
		{"{\"interfaces\":3}", "prevResult.interfaces"},
		{"{\"cniVersion\":\"3.0.0\"}", "3.0.0"},
		{"{\"cniVersion\":3}", "prevResult.cniVersion"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct cni_prev_result result;
		struct error err;
		char config[256];

		snprintf(config, sizeof(config), "{\"prevResult\":%s}", cases[i].result);
		CHECK_EQ(read_config(config, CNI_1_0_0, &result, &err), -EINVAL);
		CHECK_HAS(err.text, cases[i].part);
	}
	return TEST_OK;
}

TEST(a_result_of_1_0_0_cannot_pass_for_an_older_one)
{
	struct cni_prev_result result;
	struct error err;

	CHECK_EQ(read_config("{\"prevResult\":{\"cniVersion\":\"1.0.0\",\"ips\":["
			     "{\"address\":\"10.0.0.1/8\"}]}}",
			     CNI_0_4_0, &result, &err),
		 -EINVAL);
	CHECK_HAS(err.text, "ips[0]");
	return TEST_OK;
}
