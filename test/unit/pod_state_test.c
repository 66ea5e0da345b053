/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_state.h"

#include "error.h"
#include "pod_table.h"
#include "test.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static void free_pods(struct pod **pods, size_t n)
{
	for (size_t i = 0; i < n; i++)
		pod_free(pods[i]);
	free(pods);
}

static int decode(const char *text, struct pod ***ret, size_t *ret_n, struct error *err)
{
	return pod_state_decode(text, strlen(text), ret, ret_n, err);
}

static struct pod *full_pod(void)
{
	struct pod *pod = pod_new("0123abc", "eth0");
	struct error err = {0};

	pod->ns = strdup("shop");
	pod->name = strdup("web-0");
	pod->uid = strdup("d3b0");
	pod->netns = strdup("/run/netns/cni-1");
	pod->cgroup = strdup("/kubepods/pod1");
	pod->reason = strdup("says \"so\"\n");
	pod->cookie = UINT64_MAX;
	pod->netns_dev = 4;
	pod->netns_ino = 4026532177;
	pod->ips = calloc(2, sizeof(*pod->ips));
	pod->n_ips = 2;
	if (ip_address_parse("10.0.0.2", &pod->ips[0].address, &err) ||
	    ip_address_parse("fd00::2", &pod->ips[1].address, &err))
		return NULL;
	pod->ips[0].prefix_length = 24;
	pod->ips[1].prefix_length = 64;
	pod->annotations = json_pack("{s:s}", "sidecar.istio.io/status", "{\"a\":1}");
	pod->mode = POD_SIDECAR;
	pod->invalid_drop = POD_INVALID_DROP_YES;
	pod->since_s = 1795383641;
	return pod;
}

TEST(an_entry_comes_back_as_it_was)
{
	struct error err = {0};
	struct pod *pod = full_pod(), **pods;
	char *record = NULL, *file = NULL;
	size_t n;

	CHECK(pod && !pod_state_encode(pod, &record, &err));
	CHECK(asprintf(&file, "{\"v\":1,\"pods\":[%s]}", record) > 0);
	CHECK(!decode(file, &pods, &n, &err));
	CHECK_EQ(n, 1);
	CHECK_STR(pods[0]->container_id, "0123abc");
	CHECK_STR(pods[0]->if_name, "eth0");
	CHECK_STR(pods[0]->ns, "shop");
	CHECK_STR(pods[0]->name, "web-0");
	CHECK_STR(pods[0]->uid, "d3b0");
	CHECK_STR(pods[0]->netns, pod->netns);
	CHECK_STR(pods[0]->cgroup, pod->cgroup);
	CHECK_STR(pods[0]->reason, pod->reason);
	CHECK(pods[0]->cookie == UINT64_MAX && pods[0]->netns_ino == pod->netns_ino &&
	      pods[0]->netns_dev == pod->netns_dev);
	CHECK_EQ(pods[0]->n_ips, 2);
	CHECK(!memcmp(pods[0]->ips, pod->ips, 2 * sizeof(*pod->ips)));
	CHECK(json_equal(pods[0]->annotations, pod->annotations));
	CHECK(!pods[0]->labels);
	CHECK_EQ(pods[0]->mode, POD_SIDECAR);
	CHECK_EQ(pods[0]->invalid_drop, POD_INVALID_DROP_YES);
	CHECK_EQ(pods[0]->since_s, 1795383641);
	CHECK_STR(pods[0]->record, record); /* written again as it was read */
	free_pods(pods, n);
	pod_free(pod);
	free(record);
	free(file);
	return TEST_OK;
}

TEST(an_entry_may_know_next_to_nothing)
{
	struct error err = {0};
	struct pod **pods;
	size_t n;

	CHECK(!decode("{\"v\":1,\"pods\":[{\"containerId\":\"c\",\"ifName\":\"e\",\"cookie\":\"5\","
		      "\"netnsDev\":\"0\",\"netnsIno\":\"0\",\"decision\":\"skip\",\"new\":1}],"
		      "\"later\":true}",
		      &pods, &n, &err));
	CHECK_EQ(n, 1);
	CHECK(!pods[0]->ns && !pods[0]->netns && !pods[0]->annotations && !pods[0]->n_ips);
	CHECK_EQ(pods[0]->mode, POD_SKIP);
	free_pods(pods, n);
	CHECK(!decode("{\"v\":1,\"pods\":[]}", &pods, &n, &err));
	CHECK_EQ(n, 0);
	free_pods(pods, n);
	return TEST_OK;
}

#define ENTRY(rest)                                                                                \
	"{\"v\":1,\"pods\":[{\"containerId\":\"c\",\"ifName\":\"e\",\"cookie\":\"5\","             \
	"\"netnsDev\":\"0\",\"netnsIno\":\"0\",\"decision\":\"skip\"},{" rest "}]}"
#define IDS   "\"containerId\":\"c\",\"ifName\":\"e\","
#define NETNS "\"cookie\":\"5\",\"netnsDev\":\"0\",\"netnsIno\":\"0\",\"decision\":\"skip\""

TEST(what_is_wrong_is_refused_and_named)
{
	static const struct {
		const char *text, *named;
		int result;
	} cases[] = {
		{"", "state", -EINVAL},
		{"[]", "not a JSON object", -EINVAL},
		{"{\"pods\":[]}", "\"v\"", -EINVAL},
		{"{\"v\":\"1\",\"pods\":[]}", "v", -EINVAL},
		{"{\"v\":1}", "pods", -EINVAL},
		{"{\"v\":1,\"pods\":{}}", "pods", -EINVAL},
		{"{\"v\":2,\"pods\":[]}", "version 2", -EPROTONOSUPPORT},
		{"{\"v\":1,\"pods\":[]} trailing", "state", -EINVAL},
		{"{\"v\":1,\"pods\":[7]}", "pods[0]", -EINVAL},
		{ENTRY("\"ifName\":\"e\"," NETNS), "pods[1].containerId", -EINVAL},
		{ENTRY("\"containerId\":\"\",\"ifName\":\"e\"," NETNS), "pods[1].", -EINVAL},
		{ENTRY(IDS "\"cookie\":5"), "pods[1].cookie", -EINVAL},
		{ENTRY(IDS "\"cookie\":\"-5\""), "pods[1].cookie", -EINVAL},
		{ENTRY(IDS "\"cookie\":\"18446744073709551616\""), "out of range", -EINVAL},
		{ENTRY(IDS "\"cookie\":\"5\",\"netnsDev\":\"0\""), "pods[1].netnsIno", -EINVAL},
		{ENTRY(IDS NETNS ",\"ips\":[\"1.2.3.4\"]"), "pods[1].ips[0]", -EINVAL},
		{ENTRY(IDS NETNS ",\"ips\":[\"1.2.3.4/33\"]"), "pods[1].ips[0]", -EINVAL},
		{ENTRY(IDS NETNS ",\"ips\":[\"1.2.3.4/8x\"]"), "pods[1].ips[0]", -EINVAL},
		{ENTRY(IDS NETNS ",\"ips\":[\"x/8\"]"), "pods[1].ips[0]", -EINVAL},
		{ENTRY(IDS NETNS ",\"ips\":[1]"), "pods[1].ips[0]", -EINVAL},
		{ENTRY(IDS NETNS ",\"annotations\":{\"a\":1}"), "annotations", -EINVAL},
		{ENTRY(IDS NETNS ",\"since\":-1"), "pods[1].since", -EINVAL},
		{ENTRY(IDS NETNS ",\"namespace\":[]"), "pods[1].namespace", -EINVAL},
		{ENTRY(IDS "\"cookie\":\"5\",\"netnsDev\":\"0\",\"netnsIno\":\"0\","
			   "\"decision\":\"maybe\""),
		 "pods[1].decision", -EINVAL},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct error err = {0};
		struct pod **pods = NULL;
		size_t n = 0;
		int r = decode(cases[i].text, &pods, &n, &err);

		if (r != cases[i].result)
			printf("# %s: %d\n", cases[i].text, r);
		CHECK_EQ(r, cases[i].result);
		CHECK_HAS(err.text, cases[i].named);
		CHECK(!pods);
	}
	return TEST_OK;
}

TEST(more_addresses_than_a_request_may_carry_are_refused)
{
	struct error err = {0};
	struct pod **pods;
	char text[4096], *p = text;
	size_t n;

	p += sprintf(p, "{\"v\":1,\"pods\":[{" IDS NETNS ",\"ips\":[");
	for (int i = 0; i < 65; i++)
		p += sprintf(p, "%s\"10.0.0.%d/8\"", i ? "," : "", i);
	sprintf(p, "]}]}");
	CHECK_EQ(decode(text, &pods, &n, &err), -EINVAL);
	CHECK_HAS(err.text, "pods[0].ips");
	return TEST_OK;
}

TEST(times_are_rfc_3339_in_utc)
{
	char buf[TIME_TEXT_MAX];

	CHECK_STR(pod_state_time(0, buf), "1970-01-01T00:00:00Z");
	CHECK_STR(pod_state_time(1795383641, buf), "2026-11-22T21:40:41Z");
	return TEST_OK;
}
