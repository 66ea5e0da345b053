/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_reply.h"

#include "agent_protocol.h"
#include "json.h"
#include "scoped.h"
#include "test.h"

TEST(an_error_is_the_object_of_the_specification)
{
	struct cni_failure failure;
	scoped_free char *plain = NULL, *detailed = NULL;

	CHECK_EQ(cni_fail(&failure, CNI_ERROR_CONFIG, "%s is %d", "timeoutMs", 0), -1);
	plain = cni_reply_error(CNI_0_3_0, &failure);
	CHECK_STR(plain, "{\"cniVersion\":\"0.3.0\",\"code\":7,\"msg\":\"timeoutMs is 0\"}");
	cni_fail_details(&failure, "more");
	detailed = cni_reply_error(CNI_1_1_0, &failure);
	CHECK_STR(detailed, "{\"cniVersion\":\"1.1.0\",\"code\":7,\"msg\":\"timeoutMs is 0\","
			    "\"details\":\"more\"}");
	return TEST_OK;
}

TEST(a_message_is_one_line_of_valid_text_whatever_it_quotes)
{
	scoped_free char *text = NULL;
	scoped_json json_t *reply = NULL;
	struct cni_failure failure;
	struct error err;
	const char *message;
	char quoted[1024];

	memset(quoted, '\xc3', sizeof(quoted) - 1);
	memcpy(quoted, "a\n\"\\\x7f\x1b", 6);
	quoted[sizeof(quoted) - 1] = '\0';
	cni_fail(&failure, CNI_ERROR_OTHER, "%s", quoted);
	text = cni_reply_error(CNI_1_0_0, &failure);
	CHECK(text && json_parse(text, strlen(text), "reply", &reply, &err) == 0);
	message = json_string_value(json_object_get(reply, "msg"));
	CHECK(message && strncmp(message, "a?\"\\??", 6) == 0);
	return TEST_OK;
}

TEST(refusals_have_their_codes)
{
	static const struct {
		enum agent_code code;
		bool retry;
		enum cni_error_code add, check;
	} cases[] = {
		{AGENT_CODE_BAD_ANNOTATION, false, 110, 110},
		{AGENT_CODE_UNSUPPORTED, false, 111, 111},
		{AGENT_CODE_KERNEL, false, 112, 113},
		{AGENT_CODE_NOT_FOUND, false, 100, 113},
		{AGENT_CODE_BAD_REQUEST, false, 100, 100},
		{AGENT_CODE_NONE, false, 100, 100},
		{AGENT_CODE_KERNEL, true, 11, 11},
		{AGENT_CODE_BUSY, true, 11, 11},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct agent_reply reply = {.code = cases[i].code, .retry = cases[i].retry};

		CHECK_EQ(cni_reply_code(&reply, false), cases[i].add);
		CHECK_EQ(cni_reply_code(&reply, true), cases[i].check);
	}
	return TEST_OK;
}

TEST(version_and_empty_results_name_their_version)
{
	scoped_free char *version = cni_reply_version(CNI_0_4_0);
	scoped_free char *result = cni_reply_empty_result(CNI_0_3_1);

	CHECK_STR(version, "{\"cniVersion\":\"0.4.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\","
			   "\"0.4.0\",\"1.0.0\",\"1.1.0\"]}");
	CHECK_STR(result, "{\"cniVersion\":\"0.3.1\"}");
	return TEST_OK;
}
