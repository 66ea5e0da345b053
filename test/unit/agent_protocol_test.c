/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"

#include "error.h"
#include "json.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define N_OF(array)    (sizeof(array) / sizeof(*(array)))
#define REQUEST(rest)  "{\"v\":1,\"op\":" rest "}"
#define ATTACHED(rest) REQUEST("\"add\",\"containerId\":\"c1\",\"ifName\":\"eth0\"" rest)

static int decode(const char *text, struct agent_request *ret, struct error *err)
{
	return agent_request_decode(text, strlen(text), ret, err);
}

/* ---- messages ---- */

TEST(a_full_add_decodes)
{
	static const char text[] =
		ATTACHED(",\"netns\":\"/run/netns/x\","
			 "\"pod\":{\"namespace\":\"ns\",\"name\":\"p\",\"uid\":\"u-1\"},"
			 "\"ips\":[\"10.1.2.3/24\",\"fd00::7/64\",\"::ffff:1.2.3.4/120\"],"
			 "\"annotations\":{\"a\":\"b\"},\"labels\":{\"l\":\"\"},"
			 "\"cgroup\":\"/kubepods/pod1\",\"future\":{\"x\":[1]}");
	char buf[IP_ADDRESS_TEXT_MAX];
	struct error err = {0};
	struct agent_request req;

	CHECK_EQ(decode(text, &req, &err), 0);
	CHECK_EQ(req.version, 1);
	CHECK_EQ(req.op, AGENT_ADD);
	CHECK_STR(req.container_id, "c1");
	CHECK_STR(req.if_name, "eth0");
	CHECK_STR(req.netns, "/run/netns/x");
	CHECK_STR(req.pod_namespace, "ns");
	CHECK_STR(req.pod_name, "p");
	CHECK_STR(req.pod_uid, "u-1");
	CHECK_EQ(req.n_ips, 3);
	CHECK_STR(ip_address_format(&req.ips[0].address, buf), "10.1.2.3");
	CHECK_EQ(req.ips[0].prefix_length, 24);
	CHECK_STR(ip_address_format(&req.ips[1].address, buf), "fd00::7");
	CHECK_EQ(req.ips[1].prefix_length, 64);
	CHECK_STR(ip_address_format(&req.ips[2].address, buf), "1.2.3.4");
	CHECK_EQ(req.ips[2].prefix_length, 24);
	CHECK_STR(json_string_value(json_object_get(req.annotations, "a")), "b");
	CHECK(json_object_get(req.labels, "l"));
	CHECK_STR(req.cgroup, "/kubepods/pod1");
	CHECK_EQ(req.uid, -1);
	agent_request_done(&req);
	agent_request_done(&req);
	return TEST_OK;
}

TEST(null_and_empty_mean_unknown)
{
	struct error err = {0};
	struct agent_request req;

	CHECK_EQ(decode(ATTACHED(",\"annotations\":null,\"labels\":null,\"cgroup\":null,"
				 "\"pod\":null,\"ips\":null,\"netns\":\"\""),
			&req, &err),
		 0);
	CHECK(!req.annotations && !req.labels && !req.cgroup && !req.pod_name && !req.ips);
	CHECK(!req.netns && req.n_ips == 0);
	agent_request_done(&req);
	CHECK_EQ(decode(ATTACHED(",\"annotations\":{}"), &req, &err), 0);
	CHECK(req.annotations && json_object_size(req.annotations) == 0);
	agent_request_done(&req);
	return TEST_OK;
}

TEST(every_operation_has_its_name)
{
	for (unsigned op = 0; op < AGENT_OP_COUNT_; op++) {
		struct error err = {0};
		struct agent_request req;
		char text[256];

		snprintf(text, sizeof(text),
			 REQUEST("\"%s\",\"containerId\":\"c\",\"ifName\":\"e\",\"valid\":[],"
				 "\"pod\":{\"namespace\":\"n\",\"name\":\"p\"},\"to\":\"[::1]:1\""),
			 agent_op_name((enum agent_op)op));
		CHECK_EQ(decode(text, &req, &err), 0);
		CHECK_EQ(req.op, op);
		agent_request_done(&req);
	}
	CHECK_STR(agent_op_name(AGENT_OP_COUNT_), "unknown");
	CHECK_STR(agent_code_name(AGENT_CODE_BAD_ANNOTATION), "bad-annotation");
	CHECK_STR(agent_code_name(AGENT_CODE_COUNT_), "unknown");
	return TEST_OK;
}

TEST(bad_requests_name_field_and_value)
{
	static const struct {
		const char *text, *field, *value;
	} rows[] = {
		{"[]", "request is []", "object"},
		{"{}", "v", "missing"},
		{"{\"v\":\"1\"}", "v is", "\"1\""},
		{"{\"v\":0}", "v is 0", ""},
		{"{\"v\":1}", "op", "missing"},
		{REQUEST("7"), "op is", "7"},
		{REQUEST("\"fly\""), "op", "\"fly\""},
		{REQUEST("\"add\",\"ifName\":\"eth0\""), "containerId", "\"add\""},
		{REQUEST("\"del\",\"containerId\":\"c\""), "ifName", "\"del\""},
		{REQUEST("\"check\",\"containerId\":\"\",\"ifName\":\"e\""), "containerId",
		 "missing"},
		{REQUEST("\"add\",\"containerId\":\"a/b\",\"ifName\":\"e\""), "containerId", "a/b"},
		{REQUEST("\"add\",\"containerId\":\".a\",\"ifName\":\"e\""), "containerId", ".a"},
		{REQUEST("\"add\",\"containerId\":\"a\\u0000\",\"ifName\":\"e\""), "request",
		 "u0000"},
		{REQUEST("\"add\",\"containerId\":\"a\",\"ifName\":\"..\""), "ifName", "\"..\""},
		{REQUEST("\"add\",\"containerId\":\"a\",\"ifName\":\"a/b\""), "ifName", "a/b"},
		{REQUEST("\"add\",\"containerId\":\"a\",\"ifName\":\"a b\""), "ifName", "a b"},
		{REQUEST("\"add\",\"containerId\":\"a\",\"ifName\":\"a:b\""), "ifName", "a:b"},
		{REQUEST("\"add\",\"containerId\":\"a\",\"ifName\":\"0123456789abcdef\""), "ifName",
		 "longer than 15"},
		{ATTACHED(",\"netns\":1"), "netns", "1"},
		{ATTACHED(",\"pod\":[]"), "pod", "[]"},
		{ATTACHED(",\"pod\":{\"name\":1}"), "pod.name", "1"},
		{ATTACHED(",\"pod\":{\"namespace\":\"a/b\"}"), "pod.namespace", "a/b"},
		{ATTACHED(",\"ips\":\"10.0.0.1/8\""), "ips", "10.0.0.1/8"},
		{ATTACHED(",\"ips\":[\"10.0.0.1/8\",5]"), "ips[1]", "5"},
		{ATTACHED(",\"ips\":[\"10.0.0.1\"]"), "ips[0]", "10.0.0.1"},
		{ATTACHED(",\"ips\":[\"10.0.0.1/33\"]"), "ips[0]", "/33"},
		{ATTACHED(",\"ips\":[\"::ffff:1.2.3.4/64\"]"), "ips[0]", "/64"},
		{ATTACHED(",\"annotations\":[]"), "annotations", "[]"},
		{ATTACHED(",\"annotations\":{\"a\":1}"), "annotations: \"a\"", "1"},
		{ATTACHED(",\"labels\":{\"a\":null}"), "labels: \"a\"", "null"},
		{ATTACHED(",\"cgroup\":\"kubepods\""), "cgroup", "\"kubepods\""},
		{ATTACHED(",\"cgroup\":\"/a/../b\""), "cgroup", "/a/../b"},
		{ATTACHED(",\"cgroup\":\"/a/..\""), "cgroup", "/a/.."},
		{REQUEST("\"gc\""), "valid", "missing"},
		{REQUEST("\"gc\",\"valid\":[1]"), "valid[0]", "1"},
		{REQUEST("\"gc\",\"valid\":[{\"containerId\":\"a\"}]"), "valid[0].ifName",
		 "missing"},
		{REQUEST("\"gc\",\"valid\":[{\"containerId\":\"/\"}]"), "valid[0].containerId",
		 "\"/\""},
		{REQUEST("\"pod\""), "pod.namespace", "\"pod\""},
		{REQUEST("\"flows\",\"pod\":{\"namespace\":\"n\"}"), "pod.name", "\"flows\""},
		{REQUEST("\"explain\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\"}"), "to",
		 "missing"},
		{REQUEST("\"explain\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\"},\"to\":\"x\""),
		 "to:", "\"x\""},
		{REQUEST("\"explain\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\"},\"to\":\"1.1.1."
			 "1:1\","
			 "\"uid\":4294967295"),
		 "uid", "4294967295"},
		{REQUEST("\"explain\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\"},\"to\":\"1.1.1."
			 "1:1\","
			 "\"udp\":1"),
		 "udp", "1"},
		{REQUEST("\"accelerate\",\"advise\":\"web\""), "advise", "\"web\""},
		{REQUEST("\"accelerate\",\"advise\":\"a/b/c\""), "advise", "\"a/b/c\""},
		{REQUEST("\"accelerate\",\"advise\":1"), "advise", "1"},
		{REQUEST("\"accelerate\",\"advise\":\"a/b\",\"seconds\":0"), "seconds", "0"},
		{REQUEST("\"accelerate\",\"advise\":\"a/b\",\"seconds\":3601"), "seconds", "3601"},
	};

	for (size_t i = 0; i < N_OF(rows); i++) {
		struct error err = {0};
		struct agent_request req;

		if (decode(rows[i].text, &req, &err) != -EINVAL)
			printf("# %s\n", rows[i].text);
		CHECK_EQ(err.code, EINVAL);
		CHECK_HAS(err.text, rows[i].field);
		CHECK_HAS(err.text, rows[i].value);
	}
	return TEST_OK;
}

TEST(a_later_version_is_told_apart)
{
	struct error err = {0};
	struct agent_request req;

	CHECK_EQ(decode("{\"v\":7,\"op\":{\"anything\":1}}", &req, &err), -EPROTONOSUPPORT);
	CHECK_EQ(req.version, 7);
	return TEST_OK;
}

TEST(limits_hold)
{
	static char text[AGENT_PACKET_MAX + 1024];
	struct error err = {0};
	struct agent_request req;
	char id[300];

	memset(id, 'a', sizeof(id));
	for (int length = 256; length <= 257; length++) {
		snprintf(text, sizeof(text),
			 REQUEST("\"add\",\"containerId\":\"%.*s\",\"ifName\":\"e\""), length, id);
		CHECK_EQ(decode(text, &req, &err), length == 256 ? 0 : -EINVAL);
		agent_request_done(&req);
	}
	CHECK_HAS(err.text, "longer than 256");
	for (int n = 64; n <= 65; n++) {
		size_t used = (size_t)sprintf(text, "{\"v\":1,\"op\":\"status\",\"ips\":[");

		for (int i = 0; i < n; i++)
			used += (size_t)sprintf(text + used, "%s\"1.1.1.1/8\"", i ? "," : "");
		sprintf(text + used, "]}");
		CHECK_EQ(decode(text, &req, &err), n == 64 ? 0 : -EINVAL);
		agent_request_done(&req);
	}
	CHECK_HAS(err.text, "ips has 65");
	memset(text, ' ', sizeof(text));
	memcpy(text, REQUEST("\"status\""), strlen(REQUEST("\"status\"")));
	CHECK_EQ(agent_request_decode(text, AGENT_PACKET_MAX, &req, &err), 0);
	agent_request_done(&req);
	CHECK_EQ(agent_request_decode(text, AGENT_PACKET_MAX + 1, &req, &err), -EINVAL);
	return TEST_OK;
}

TEST(requests_survive_encoding)
{
	static const char *const texts[] = {
		ATTACHED(",\"netns\":\"/"
			 "x\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\",\"uid\":\"u\"},"
			 "\"ips\":[\"10.1.2.3/24\",\"fd00::7/64\"],\"annotations\":{\"a\":\"b\"},"
			 "\"labels\":{},\"cgroup\":\"/c\""),
		REQUEST("\"gc\",\"valid\":[{\"containerId\":\"a\",\"ifName\":\"e\"}]"),
		REQUEST("\"gc\",\"valid\":[]"),
		REQUEST("\"explain\",\"pod\":{\"namespace\":\"n\",\"name\":\"p\"},\"to\":\"[fd00::"
			"1]:80\","
			"\"uid\":0,\"gid\":4294967294,\"udp\":true,\"interface\":\"net1\""),
		REQUEST("\"status\""),
		REQUEST("\"accelerate\""),
		REQUEST("\"accelerate\",\"advise\":\"shop/web\",\"seconds\":30"),
	};

	for (size_t i = 0; i < N_OF(texts); i++) {
		scoped_free char *text = NULL;
		struct error err = {0};
		struct agent_request req;
		size_t size = 0;
		int r;

		CHECK_EQ(decode(texts[i], &req, &err), 0);
		r = agent_request_encode(&req, &text, &size, &err);
		agent_request_done(&req);
		CHECK_EQ(r, 0);
		CHECK_STR(text, texts[i]);
		CHECK_EQ(size, strlen(text));
	}
	return TEST_OK;
}

TEST(encoding_refuses_what_cannot_travel)
{
	struct agent_request req = {.op = AGENT_ADD, .netns = (char *)"\xff"};
	scoped_json json_t *labels = json_object();
	scoped_free char *huge = calloc(1, AGENT_PACKET_MAX);
	char *text = NULL;
	struct error err = {0};
	size_t size;

	CHECK(huge);
	CHECK_EQ(agent_request_encode(&req, &text, &size, &err), -EINVAL);
	CHECK_HAS(err.text, "netns");
	memset(huge, 'x', AGENT_PACKET_MAX - 1);
	json_object_set_new(labels, "l", json_string(huge));
	req = (struct agent_request){.op = AGENT_ADD, .labels = labels};
	CHECK_EQ(agent_request_encode(&req, &text, &size, &err), -E2BIG);
	CHECK(!text);
	return TEST_OK;
}

static int reply_decode(const json_t *reply, struct agent_reply *ret, struct error *err)
{
	scoped_free char *text = json_to_text(reply);

	return agent_reply_decode(text, strlen(text), ret, err);
}

TEST(replies_survive_encoding)
{
	scoped_json json_t *extra = json_pack("{s:s,s:s,s:s,s:b}", "decision", "redirect", "reason",
					      "annotation", "engine", "ebpf", "ok", 0);
	scoped_json json_t *ok = agent_reply_ok(extra);
	scoped_json json_t *bare = agent_reply_ok(NULL);
	struct agent_reply reply;
	struct error err = {0};

	CHECK_EQ(reply_decode(ok, &reply, &err), 0);
	CHECK_EQ(reply.version, 1);
	CHECK(reply.ok);
	CHECK_STR(reply.decision, "redirect");
	CHECK_STR(reply.reason, "annotation");
	CHECK_STR(reply.engine, "ebpf");
	CHECK(reply.body && !reply.message);
	agent_reply_done(&reply);
	CHECK_EQ(reply_decode(bare, &reply, &err), 0);
	CHECK(reply.ok && !reply.decision);
	agent_reply_done(&reply);
	CHECK_EQ(extra->refcount, 1);
	return TEST_OK;
}

TEST(refusals_survive_encoding_whatever_the_message)
{
	for (unsigned code = AGENT_CODE_VERSION; code < AGENT_CODE_COUNT_; code++) {
		scoped_json json_t *refusal =
			agent_reply_refusal((enum agent_code)code, code % 2, "cut \xc3");
		struct agent_reply reply;
		struct error err = {0};

		CHECK_EQ(reply_decode(refusal, &reply, &err), 0);
		CHECK(!reply.ok);
		CHECK_EQ(reply.code, code);
		CHECK_EQ(reply.retry, code % 2);
		CHECK_STR(reply.message, "cut \xef\xbf\xbd");
		agent_reply_done(&reply);
	}
	return TEST_OK;
}

TEST(bad_replies_are_named_and_later_codes_tolerated)
{
	static const struct {
		const char *text, *says;
	} rows[] = {
		{"7", "reply is 7"},
		{"{\"ok\":true}", "reply: v"},
		{"{\"v\":1}", "reply: ok"},
		{"{\"v\":1,\"ok\":1}", "reply: ok"},
		{"{\"v\":1,\"ok\":true,\"reason\":1}", "reply: reason is 1"},
		{"{\"v\":1,\"ok\":false}", "reply: code"},
		{"{\"v\":1,\"ok\":false,\"code\":\"busy\",\"retry\":1}", "reply: retry is 1"},
	};
	static const char later[] = "{\"v\":2,\"ok\":false,\"code\":\"new\",\"message\":\"m\"}";
	struct agent_reply reply;
	struct error err = {0};

	for (size_t i = 0; i < N_OF(rows); i++) {
		CHECK_EQ(agent_reply_decode(rows[i].text, strlen(rows[i].text), &reply, &err),
			 -EINVAL);
		CHECK_HAS(err.text, rows[i].says);
		CHECK(!reply.body);
	}
	CHECK_EQ(agent_reply_decode(later, strlen(later), &reply, &err), 0);
	CHECK_EQ(reply.version, 2);
	CHECK_EQ(reply.code, AGENT_CODE_NONE);
	CHECK_STR(reply.message, "m");
	agent_reply_done(&reply);
	return TEST_OK;
}

/* ---- sockets ---- */

struct pair {
	int a, b;
};

static void pair_close(struct pair *p)
{
	scoped_close(&p->a);
	scoped_close(&p->b);
}

static struct pair pair_open(void)
{
	int fds[2] = {-1, -1};

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return (struct pair){-1, -1};
	return (struct pair){fds[0], fds[1]};
}

static int open_fd_count(void)
{
	scoped_dir DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (dir && readdir(dir))
		n++;
	return n;
}

/* Sends with any number of descriptors, which agent_packet_send() never does. */
static int send_fds(int sock, const char *text, size_t size, const int *fds, size_t n)
{
	union {
		char buf[CMSG_SPACE(16 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = (void *)text, .iov_len = size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf};
	struct cmsghdr *header;

	msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
	header = CMSG_FIRSTHDR(&msg);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(header), fds, n * sizeof(int));
	return (int)sendmsg(sock, &msg, MSG_NOSIGNAL);
}

static char packet[AGENT_PACKET_MAX + 1];

TEST(a_packet_travels_with_and_without_a_descriptor)
{
	scoped(pair_close) struct pair p = pair_open();
	scoped_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	scoped_fd int got = -1;
	struct stat want, have;
	struct error err = {0};
	size_t size = 0;

	CHECK_EQ(agent_packet_send(p.a, "hello", 5, null, &err), 0);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &got, &err), 0);
	CHECK_EQ(size, 5);
	CHECK_STR(packet, "hello");
	CHECK(got >= 0 && fcntl(got, F_GETFD) == FD_CLOEXEC);
	CHECK(fstat(null, &want) == 0 && fstat(got, &have) == 0);
	CHECK_EQ(have.st_rdev, want.st_rdev);
	scoped_close(&got);
	CHECK_EQ(agent_packet_send(p.a, "x", 1, -1, &err), 0);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &got, &err), 0);
	CHECK_EQ(got, -1);
	CHECK_STR(packet, "x");
	return TEST_OK;
}

TEST(a_full_packet_fits_and_a_longer_one_is_refused)
{
	scoped(pair_close) struct pair p = pair_open();
	scoped_free char *text = malloc(AGENT_PACKET_MAX + 1);
	scoped_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int fd = -1, before = open_fd_count();
	struct error err = {0};
	size_t size = 0;

	CHECK(text);
	memset(text, 'x', AGENT_PACKET_MAX + 1);
	CHECK_EQ(agent_packet_send(p.a, text, AGENT_PACKET_MAX, -1, &err), 0);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err), 0);
	CHECK_EQ(size, AGENT_PACKET_MAX);
	CHECK_EQ(agent_packet_send(p.a, text, AGENT_PACKET_MAX + 1, -1, &err), -EMSGSIZE);
	CHECK_EQ(agent_packet_send(p.a, text, 0, -1, &err), -EINVAL);
	CHECK_EQ(send_fds(p.a, text, AGENT_PACKET_MAX + 1, &null, 1), AGENT_PACKET_MAX + 1);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err), -EMSGSIZE);
	CHECK_EQ(fd, -1);
	CHECK_EQ(open_fd_count(), before);
	return TEST_OK;
}

TEST(more_than_one_descriptor_is_refused_and_none_leaks)
{
	scoped(pair_close) struct pair p = pair_open();
	scoped_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int fds[16], fd = -1, before = open_fd_count();
	struct error err = {0};
	size_t size = 0;

	for (size_t i = 0; i < N_OF(fds); i++)
		fds[i] = null;
	for (size_t n = 2; n <= N_OF(fds); n++) {
		CHECK_EQ(send_fds(p.a, "x", 1, fds, n), 1);
		CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err),
			 -EINVAL);
		CHECK_HAS(err.text, "descriptor");
		CHECK_EQ(fd, -1);
		CHECK_EQ(open_fd_count(), before);
	}
	CHECK_EQ(send_fds(p.a, "", 0, fds, 1), 0);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err), -EINVAL);
	CHECK_EQ(open_fd_count(), before);
	return TEST_OK;
}

TEST(end_of_file_and_would_block_are_told_apart)
{
	scoped(pair_close) struct pair p = pair_open();
	struct error err = {0};
	size_t size = 1;
	int fd = -1;

	CHECK_EQ(fcntl(p.b, F_SETFL, O_NONBLOCK), 0);
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err), -EAGAIN);
	scoped_close(&p.a);
	p.a = -1;
	CHECK_EQ(agent_packet_receive(p.b, packet, sizeof(packet), &size, &fd, &err), 0);
	CHECK_EQ(size, 0);
	CHECK_EQ(fd, -1);
	CHECK_EQ(agent_packet_send(p.b, "x", 1, -1, &err), -EPIPE);
	return TEST_OK;
}

TEST(long_replies_are_split_and_join)
{
	scoped_json json_t *extra = json_object();
	scoped_json json_t *list = json_array();
	scoped_json json_t *reply = NULL;
	scoped_free char *want = NULL;
	scoped_free char *joined = NULL;
	struct error err = {0};
	char **packets = NULL;
	size_t n = 0, used = 0;

	/* Quotes double and characters of 2 to 4 bytes fall on every boundary. */
	for (int i = 0; i < 30000; i++)
		json_array_append_new(list,
				      json_string(i % 3 ? "\"\xc3\xa9\\" : "\xf0\x9f\x98\x80"));
	json_object_set(extra, "list", list);
	reply = agent_reply_ok(extra);
	want = json_to_text(reply);
	joined = calloc(1, strlen(want) + 1);
	CHECK_EQ(agent_reply_packets(reply, &packets, &n, &err), 0);
	CHECK(n > 3);
	for (size_t i = 0; i < n; i++) {
		scoped_json json_t *body = NULL;
		const char *part = NULL;
		bool more = false;

		CHECK(strlen(packets[i]) <= AGENT_PACKET_MAX);
		CHECK_EQ(json_parse(packets[i], strlen(packets[i]), "part", &body, &err), 0);
		CHECK_EQ(json_get_string(body, "part", "", &part, &err), 0);
		CHECK_EQ(json_get_bool(body, "more", "", &more, &err), 0);
		CHECK_EQ(more, i + 1 < n);
		CHECK(part && used + strlen(part) <= strlen(want));
		memcpy(joined + used, part, strlen(part));
		used += strlen(part);
		free(packets[i]);
	}
	free(packets);
	CHECK(strcmp(joined, want) == 0);
	return TEST_OK;
}

TEST(short_replies_are_one_plain_packet)
{
	scoped_json json_t *reply = agent_reply_ok(NULL);
	struct error err = {0};
	char **packets = NULL;
	size_t n = 0;

	CHECK_EQ(agent_reply_packets(reply, &packets, &n, &err), 0);
	CHECK_EQ(n, 1);
	CHECK_STR(packets[0], "{\"v\":1,\"ok\":true}");
	free(packets[0]);
	free(packets);
	return TEST_OK;
}

/* ---- client, against a scripted agent ---- */

enum { TIMEOUT_MS = 20000, SHORT_TIMEOUT_MS = 150 };

struct agent {
	char dir[64];
	int listener;
	pthread_t thread;
	bool running;
	bool read_first;	    /* false: answer and close without reading */
	bool hang;		    /* after the packets, until the client goes away */
	const char *const *packets; /* ends with NULL */
	int got_fd;		    /* whether the request carried a descriptor */
};

static void *agent_run(void *data)
{
	static char request[AGENT_PACKET_MAX + 1];
	struct agent *agent = data;
	scoped_fd int sock = accept4(agent->listener, NULL, NULL, SOCK_CLOEXEC);
	struct error err = {0};
	size_t size = 0;
	int fd = -1;

	if (sock < 0)
		return NULL;
	if (agent->read_first &&
	    agent_packet_receive(sock, request, sizeof(request), &size, &fd, &err) == 0) {
		agent->got_fd = fd >= 0;
		scoped_close(&fd);
	}
	for (const char *const *p = agent->packets; *p; p++)
		if (agent_packet_send(sock, *p, strlen(*p), -1, &err) < 0)
			break;
	if (agent->hang)
		poll(&(struct pollfd){.fd = sock, .events = POLLRDHUP}, 1, TIMEOUT_MS);
	return NULL;
}

static void agent_path(const struct agent *agent, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/agent.sock", agent->dir);
}

static int agent_listen(struct agent *agent, int backlog)
{
	struct sockaddr_un address;

	strcpy(agent->dir, "/tmp/sockmesh-protocol-XXXXXX");
	if (!mkdtemp(agent->dir))
		return -1;
	agent_path(agent, &address);
	agent->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (bind(agent->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(agent->listener, backlog) < 0)
		return -1;
	return 0;
}

static int agent_start(struct agent *agent)
{
	if (agent_listen(agent, 4) < 0)
		return -1;
	agent->running = pthread_create(&agent->thread, NULL, agent_run, agent) == 0;
	return agent->running ? 0 : -1;
}

static void agent_stop(struct agent *agent)
{
	struct sockaddr_un address;

	if (agent->running) {
		/* Wakes an accept() that no client came to. */
		shutdown(agent->listener, SHUT_RDWR);
		pthread_join(agent->thread, NULL);
	}
	scoped_close(&agent->listener);
	agent_path(agent, &address);
	unlink(address.sun_path);
	rmdir(agent->dir);
}

#define AGENT(...)                                                                                 \
	{                                                                                          \
		.listener = -1, .read_first = true, .packets = (const char *const[])               \
		{                                                                                  \
			__VA_ARGS__                                                                \
		}                                                                                  \
	}

static int call(const struct agent *agent, int fd, int timeout_ms, char **ret, struct error *err)
{
	size_t size = 0;

	return agent_call(agent->dir, "{}", 2, fd, timeout_ms, ret, &size, err);
}

TEST(a_call_passes_the_descriptor_and_returns_the_answer)
{
	scoped(agent_stop) struct agent agent = AGENT("{\"v\":1,\"ok\":true}", NULL);
	scoped_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int before = open_fd_count();
	scoped_free char *text = NULL;
	struct error err = {0};

	CHECK_EQ(agent_start(&agent), 0);
	CHECK_EQ(call(&agent, null, TIMEOUT_MS, &text, &err), 0);
	CHECK_STR(text, "{\"v\":1,\"ok\":true}");
	pthread_join(agent.thread, NULL);
	agent.running = false;
	CHECK(agent.got_fd);
	CHECK_EQ(open_fd_count(), before + 1); /* the listener */
	return TEST_OK;
}

TEST(a_call_joins_parts)
{
	scoped(agent_stop) struct agent agent =
		AGENT("{\"v\":1,\"more\":true,\"part\":\"{\\\"v\\\":\"}",
		      "{\"v\":1,\"more\":true,\"part\":\"\"}",
		      "{\"v\":1,\"more\":false,\"part\":\"1}\"}", NULL);
	scoped_free char *text = NULL;
	struct error err = {0};

	CHECK_EQ(agent_start(&agent), 0);
	CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), 0);
	CHECK_STR(text, "{\"v\":1}");
	return TEST_OK;
}

TEST(an_agent_that_dies_in_mid_answer_is_a_reset)
{
	scoped(agent_stop) struct agent agent =
		AGENT("{\"v\":1,\"more\":true,\"part\":\"{\"}", NULL);
	struct error err = {0};
	char *text = NULL;

	CHECK_EQ(agent_start(&agent), 0);
	CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), -ECONNRESET);
	CHECK(!text);
	return TEST_OK;
}

TEST(an_agent_that_closes_unanswered_is_a_reset)
{
	scoped(agent_stop) struct agent agent = AGENT(NULL);
	scoped(agent_stop) struct agent deaf = AGENT(NULL);
	struct error err = {0};
	char *text = NULL;

	CHECK_EQ(agent_start(&agent), 0);
	CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), -ECONNRESET);
	deaf.read_first = false;
	CHECK_EQ(agent_start(&deaf), 0);
	CHECK_EQ(call(&deaf, -1, TIMEOUT_MS, &text, &err), -ECONNRESET);
	return TEST_OK;
}

TEST(an_answer_that_breaks_the_framing_is_refused)
{
	static const char *const bad[][3] = {
		{"not JSON", NULL},
		{"{\"part\":7}", NULL},
		{"{\"part\":\"x\",\"more\":7}", NULL},
		{"{\"part\":\"x\",\"more\":true}", "{\"v\":1}", NULL},
		{"{\"part\":null}", NULL},
	};

	for (size_t i = 0; i < N_OF(bad); i++) {
		scoped(agent_stop) struct agent agent = AGENT(NULL);
		struct error err = {0};
		char *text = NULL;

		agent.packets = bad[i];
		CHECK_EQ(agent_start(&agent), 0);
		CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), -EINVAL);
		CHECK_HAS(err.text, "the agent's answer");
	}
	return TEST_OK;
}

static long elapsed_ms(const struct timespec *since)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - since->tv_sec) * 1000 + (now.tv_nsec - since->tv_nsec) / 1000000;
}

TEST(a_hanging_agent_times_out)
{
	scoped(agent_stop) struct agent silent = AGENT(NULL);
	scoped(agent_stop) struct agent stalled =
		AGENT("{\"v\":1,\"more\":true,\"part\":\"{\"}", NULL);
	struct error err = {0};
	struct timespec start;
	char *text = NULL;

	silent.hang = stalled.hang = true;
	CHECK_EQ(agent_start(&silent), 0);
	CHECK_EQ(agent_start(&stalled), 0);
	clock_gettime(CLOCK_MONOTONIC, &start);
	CHECK_EQ(call(&silent, -1, SHORT_TIMEOUT_MS, &text, &err), -ETIMEDOUT);
	CHECK(elapsed_ms(&start) >= SHORT_TIMEOUT_MS - 1);
	CHECK_EQ(call(&stalled, -1, SHORT_TIMEOUT_MS, &text, &err), -ETIMEDOUT);
	CHECK_EQ(call(&stalled, -1, 0, &text, &err), -ETIMEDOUT);
	return TEST_OK;
}

TEST(a_full_backlog_queues_until_the_deadline)
{
	scoped(agent_stop) struct agent agent = AGENT("{\"v\":1}", NULL);
	scoped_fd int first = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	struct error err = {0};
	char *text = NULL;

	CHECK_EQ(agent_listen(&agent, 0), 0);
	agent_path(&agent, &address);
	/* Backlog 0 has room for one. */
	CHECK_EQ(connect(first, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(call(&agent, -1, SHORT_TIMEOUT_MS, &text, &err), -ETIMEDOUT);
	return TEST_OK;
}

TEST(an_absent_agent_is_told_apart)
{
	struct agent agent = AGENT(NULL);
	struct error err = {0};
	char huge[200], *text = NULL;
	int listening;

	CHECK_EQ(agent_listen(&agent, 1), 0);
	scoped_close(&agent.listener);
	agent.listener = -1;
	listening = call(&agent, -1, TIMEOUT_MS, &text, &err);
	agent_stop(&agent);
	CHECK_EQ(listening, -ECONNREFUSED);
	CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), -ENOENT);
	CHECK_HAS(err.text, "agent.sock");
	memset(huge, 'x', sizeof(huge));
	huge[sizeof(huge) - 1] = '\0';
	CHECK_EQ(agent_call(huge, "{}", 2, -1, TIMEOUT_MS, &text, &(size_t){0}, &err),
		 -ENAMETOOLONG);
	return TEST_OK;
}

/* The agent closes with the request unread: whichever of the two is faster, the answer counts. */
TEST(an_early_refusal_is_read_even_when_the_request_was_not)
{
	for (int i = 0; i < 50; i++) {
		scoped(agent_stop) struct agent agent =
			AGENT("{\"v\":1,\"ok\":false,\"code\":\"busy\"}", NULL);
		scoped_free char *text = NULL;
		struct error err = {0};

		agent.read_first = false;
		CHECK_EQ(agent_start(&agent), 0);
		CHECK_EQ(call(&agent, -1, TIMEOUT_MS, &text, &err), 0);
		CHECK_HAS(text, "busy");
	}
	return TEST_OK;
}
