/* SPDX-License-Identifier: Apache-2.0 */
/* Requests and exit statuses of sockmeshctl's verbs; what they print is tested in test/ctl/. */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "error.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdlib.h>

#define scoped_request scoped(agent_request_done)

TEST(explain_fills_the_request)
{
	struct ctl_options opt = {
		.pod = "a/b", .to = "[::ffff:1.2.3.4]:80", .uid = 7, .gid = -1, .udp = true};
	scoped_request struct agent_request req = {.uid = -1, .gid = -1};
	struct error err = {0};

	CHECK_EQ(ctl_explain.request(&opt, &req, &err), 0);
	CHECK_EQ(req.op, AGENT_EXPLAIN);
	CHECK_STR(req.pod_namespace, "a");
	CHECK_STR(req.pod_name, "b");
	CHECK(req.have_to && ip_address_is_v4(&req.to));
	CHECK_EQ(req.to_port, 80);
	CHECK_EQ(req.uid, 7);
	CHECK_EQ(req.gid, -1);
	CHECK(req.udp);
	return TEST_OK;
}

TEST(bad_pod_names_are_named)
{
	static const char *const bad[] = {"", "a", "/a", "a/", "/", "a/b/c"};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct ctl_options opt = {.pod = bad[i]};
		scoped_request struct agent_request req = {0};
		struct error err = {0};

		CHECK_EQ(ctl_pod.request(&opt, &req, &err), -EINVAL);
		CHECK_HAS(err.text, "is not NAMESPACE/NAME");
	}
	return TEST_OK;
}

TEST(exit_status_of_status_and_probe)
{
	json_t *healthy = json_pack("{s:s}", "engine", "ebpf");
	json_t *degraded = json_pack("{s:n}", "engine");
	json_t *usable = json_pack("{s:{s:b}}", "probe", "ebpf", 1);
	json_t *unusable = json_pack("{s:{s:b}}", "probe", "ebpf", 0);

	CHECK_EQ(ctl_status.status(healthy), CTL_OK);
	CHECK_EQ(ctl_status.status(degraded), CTL_NO);
	CHECK_EQ(ctl_status.status(unusable), CTL_NO);
	CHECK_EQ(ctl_probe.status(usable), CTL_OK);
	CHECK_EQ(ctl_probe.status(unusable), CTL_NO);
	CHECK_EQ(ctl_probe.status(healthy), CTL_NO);
	json_decref(healthy);
	json_decref(degraded);
	json_decref(usable);
	json_decref(unusable);
	return TEST_OK;
}

/* An agent of another version may leave anything out, or send another type. */
TEST(answers_without_members_are_shown_without_harm)
{
	static const struct ctl_verb *const verbs[] = {&ctl_status, &ctl_pods, &ctl_pod,
						       &ctl_explain, &ctl_probe};
	static const char *const answers[] = {
		"{}",
		"{\"pods\":[1,null,{}],\"pod\":3,\"rules\":[{}],\"probe\":[],\"counters\":\"x\"}",
		"{\"pods\":{\"redirected\":\"x\"},\"pod\":{\"ips\":3},\"rules\":{},\"lists\":[]}",
		"{\"probe\":{\"facilities\":[1,{}],\"foreign\":[{}]},\"uptimeSeconds\":-5}",
	};
	struct ctl_options opt = {.pod = "a/b", .to = "1.2.3.4:5", .uid = -1, .gid = 3};

	for (size_t v = 0; v < sizeof(verbs) / sizeof(*verbs); v++) {
		for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++) {
			scoped_free char *text = NULL;
			size_t size;
			struct ctl_out out = {open_memstream(&text, &size), true};
			json_t *answer = json_loads(answers[i], 0, NULL);

			CHECK(answer && out.file);
			verbs[v]->show(&opt, answer, &out);
			fclose(out.file);
			json_decref(answer);
			CHECK(size > 0 && text[size - 1] == '\n');
		}
	}
	return TEST_OK;
}
