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

TEST(accelerate_asks_and_waits)
{
	struct ctl_options plain = {0}, advise = {.advise = "a/b", .seconds = 9};
	scoped_request struct agent_request req = {0}, asked = {0};
	json_t *watching = json_pack("{s:{s:s, s:s, s:i}}", "advice", "state", "watching",
				     "workload", "a/b", "left", 7);
	json_t *late = json_pack("{s:{s:s, s:i}}", "advice", "state", "watching", "left", 0);
	json_t *done = json_pack("{s:{s:s, s:i, s:b}}", "advice", "state", "done", "left", 0,
				 "cleared", 1);
	json_t *proxy = json_pack("{s:{s:s}}", "accelerate", "level", "proxy");
	struct error err = {0};
	char what[64] = "";

	CHECK_EQ(ctl_accelerate.request(&plain, &req, &err), 0);
	CHECK(req.op == AGENT_ACCELERATE && !req.advise);
	CHECK_EQ(ctl_accelerate.request(&advise, &asked, &err), 0);
	CHECK_STR(asked.advise, "a/b");
	CHECK_EQ(asked.advise_seconds, 9);

	CHECK_EQ(ctl_accelerate.left_s(watching, what, sizeof(what)), 7);
	CHECK_STR(what, "watching a/b");
	CHECK_EQ(ctl_accelerate.left_s(late, what, sizeof(what)), 1);
	CHECK_EQ(ctl_accelerate.left_s(done, what, sizeof(what)), 0);
	CHECK_EQ(ctl_accelerate.left_s(proxy, what, sizeof(what)), 0);
	CHECK_EQ(ctl_accelerate.status(done), CTL_OK);
	CHECK_EQ(ctl_accelerate.status(watching), CTL_NO);
	CHECK_EQ(ctl_accelerate.status(proxy), CTL_OK);
	json_decref(watching);
	json_decref(late);
	json_decref(done);
	json_decref(proxy);
	return TEST_OK;
}

/* An agent of another version may leave anything out, or send another type. */
TEST(answers_without_members_are_shown_without_harm)
{
	static const struct ctl_verb *const verbs[] = {&ctl_status,  &ctl_pods,	 &ctl_pod,
						       &ctl_explain, &ctl_probe, &ctl_accelerate};
	static const char *const answers[] = {
		"{}",
		"{\"pods\":[1,null,{}],\"pod\":3,\"rules\":[{}],\"probe\":[],\"counters\":\"x\"}",
		"{\"pods\":{\"redirected\":\"x\"},\"pod\":{\"ips\":3},\"rules\":{},\"lists\":[]}",
		"{\"probe\":{\"facilities\":[1,{}],\"foreign\":[{}]},\"uptimeSeconds\":-5}",
		"{\"accelerate\":7,\"pairs\":[1,null,{},{\"bytes\":-3,\"why\":[]}]}",
		"{\"pairs\":{},\"accelerate\":{\"claimed\":9223372036854775807}}",
		"{\"advice\":{\"evidence\":[1,{}],\"calls\":\"x\"}}",
		"{\"advice\":3}",
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
