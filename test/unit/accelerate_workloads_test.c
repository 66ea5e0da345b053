/* SPDX-License-Identifier: Apache-2.0 */

/* The accelerator where it is off: what it knows of pods and workloads needs no kernel. */
#include "accelerate_private.h"
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "test.h"
#include "write_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fixture {
	char dir[64], file[96];
	struct event_loop *loop;
	struct accelerate *a;
};

static int reopen(struct fixture *f)
{
	const struct accelerate_config cfg = {
		.policy = ACCELERATE_OFF, .bpffs_dir = f->dir, .state_dir = f->dir};
	struct error err = {0};

	accelerate_close(f->a);
	f->a = NULL;
	return accelerate_open(&cfg, NULL, f->loop, &f->a, &err);
}

static int set_up(struct fixture *f)
{
	struct error err = {0};

	*f = (struct fixture){.dir = "/tmp/sockmesh-unit-XXXXXX"};
	if (!mkdtemp(f->dir))
		return -errno;
	snprintf(f->file, sizeof(f->file), "%s/accelerate.json", f->dir);
	return event_loop_new(&f->loop, &err) ?: reopen(f);
}

static void tear_down(struct fixture *f)
{
	accelerate_close(f->a);
	event_loop_free(f->loop);
	unlink(f->file);
	rmdir(f->dir);
}

static int write_state(const struct fixture *f, const char *text)
{
	struct error err = {0};

	return write_file_atomic(f->file, text, strlen(text), 0600, &err);
}

static int set_pod(struct fixture *f, uint64_t cookie, const char *workload)
{
	const struct accelerate_pod pod = {
		.cookie = cookie, .ns = "shop", .name = "web-0", .workload = workload};
	struct error err = {0};

	return accelerate_pod_set(f->a, &pod, &err);
}

TEST(a_verdict_outlives_the_agent_and_can_be_taken_back)
{
	scoped_json json_t *advice = json_pack("{s:s}", "reason", "nothing unsafe seen");
	const struct accelerate_workload *web;
	struct error err = {0};
	struct fixture f;

	CHECK(!set_up(&f));
	CHECK(!accelerate_workload_clear(f.a, "shop/web", true, advice, &err));
	CHECK(!accelerate_workload_clear(f.a, "shop/db", false, NULL, &err));
	CHECK(!reopen(&f));
	CHECK_EQ(accelerate_workload_id(f.a, "shop/web"), 1);
	CHECK(accelerate_workload_cleared(f.a, 1));
	CHECK_STR(accelerate_workload_name(f.a, 1), "shop/web");
	web = &f.a->workloads[0];
	CHECK_STR(json_string_value(json_object_get(web->advice, "reason")), "nothing unsafe seen");
	/* Nothing is remembered of the other one, and no map refers to it. */
	CHECK_EQ(accelerate_workload_id(f.a, "shop/db"), 0);
	CHECK(!accelerate_workload_clear(f.a, "shop/web", false, NULL, &err));
	CHECK(!reopen(&f));
	CHECK_EQ(accelerate_workload_id(f.a, "shop/web"), 0);
	tear_down(&f);
	return TEST_OK;
}

TEST(a_file_that_makes_no_sense_costs_what_it_said)
{
	static const char *const texts[] = {
		"",
		"[]",
		"{\"v\":2,\"workloads\":[]}",
		"{\"v\":1,\"workloads\":[1]}",
		"{\"v\":1,\"workloads\":[{\"name\":\"a/b\",\"id\":0,\"cleared\":true}]}",
		"{\"v\":1,\"workloads\":[{\"name\":\"a/b\",\"id\":4294967296,\"cleared\":true}]}",
		"{\"v\":1,\"workloads\":[{\"name\":\"a/b\",\"id\":4294967294,\"cleared\":true}]}",
		"{\"v\":1,\"workloads\":[{\"id\":1,\"cleared\":true}]}",
		"{\"v\":1,\"workloads\":[{\"name\":\"a/b\",\"id\":1,\"cleared\":\"yes\"}]}",
	};
	struct fixture f;

	CHECK(!set_up(&f));
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		CHECK(!write_state(&f, texts[i]));
		CHECK(!reopen(&f));
		CHECK_EQ(accelerate_workload_id(f.a, "a/b"), 0);
		CHECK_EQ(accelerate_workload_number(f.a, "c/d"), 1);
	}
	/* Two that claim one number: the first has it. */
	CHECK(!write_state(&f, "{\"v\":1,\"workloads\":["
			       "{\"name\":\"a/b\",\"id\":7,\"cleared\":true},"
			       "{\"name\":\"c/d\",\"id\":7,\"cleared\":true}]}"));
	CHECK(!reopen(&f));
	CHECK_STR(accelerate_workload_name(f.a, 7), "a/b");
	CHECK_EQ(accelerate_workload_number(f.a, "e/f"), 8);
	tear_down(&f);
	return TEST_OK;
}

TEST(pods_share_their_workloads_number)
{
	struct error err = {0};
	uint64_t *cookies;
	struct fixture f;
	size_t n;

	CHECK(!set_up(&f));
	CHECK(!set_pod(&f, 11, "shop/web"));
	CHECK(!set_pod(&f, 12, "shop/web"));
	CHECK(!set_pod(&f, 13, "shop/db"));
	CHECK(!set_pod(&f, 13, "shop/db"));
	CHECK_EQ(accelerate_known(f.a, 11)->workload, accelerate_known(f.a, 12)->workload);
	CHECK(accelerate_known(f.a, 11)->workload != accelerate_known(f.a, 13)->workload);
	CHECK(!accelerate_pods_of(f.a, accelerate_workload_id(f.a, "shop/web"), &cookies, &n,
				  &err));
	CHECK_EQ(n, 2);
	CHECK_EQ(cookies[0] + cookies[1], 11 + 12);
	free(cookies);
	CHECK_STR(accelerate_pod_level(f.a, 11), "off");
	CHECK_STR(accelerate_pod_reason(f.a, 11), "--accelerate off");
	accelerate_pod_remove(f.a, 11);
	accelerate_pod_remove(f.a, 11);
	CHECK(!accelerate_pod_reason(f.a, 11));
	CHECK_STR(accelerate_pod_level(f.a, 11), "off");
	tear_down(&f);
	return TEST_OK;
}

/* Pods without a controller, each under a name of its own, come and go for as long as an agent
 * runs. */
TEST(what_nothing_refers_to_any_more_is_forgotten)
{
	enum { BARE_PODS = 10000 };
	struct error err = {0};
	char name[32];
	struct fixture f;

	CHECK(!set_up(&f));
	CHECK(!set_pod(&f, 11, "shop/web"));
	CHECK(!accelerate_workload_clear(f.a, "shop/db", true, NULL, &err));
	for (int i = 0; i < BARE_PODS; i++) {
		snprintf(name, sizeof(name), "shop/bare-%d", i);
		CHECK(!set_pod(&f, 12, name));
		CHECK_STR(accelerate_workload_name(f.a, accelerate_known(f.a, 12)->workload), name);
	}
	CHECK(f.a->n_workloads <= 2 * 4096);
	CHECK_EQ(accelerate_workload_id(f.a, "shop/bare-0"), 0);
	CHECK_EQ(accelerate_workload_id(f.a, "shop/web"), 1);
	CHECK_EQ(accelerate_workload_id(f.a, "shop/db"), 2);
	CHECK(accelerate_workload_cleared(f.a, 2));
	/* No number has two meanings. */
	CHECK_EQ(accelerate_workload_number(f.a, "shop/bare-0"), BARE_PODS + 3);
	CHECK(!accelerate_workload_name(f.a, 3));
	tear_down(&f);
	return TEST_OK;
}

TEST(no_number_is_a_name_and_unknown_ones_have_none)
{
	struct fixture f;

	CHECK(!set_up(&f));
	CHECK_STR(accelerate_workload_name(f.a, 0), "-");
	CHECK(!accelerate_workload_name(f.a, 1));
	CHECK(!accelerate_workload_cleared(f.a, 1));
	tear_down(&f);
	return TEST_OK;
}
