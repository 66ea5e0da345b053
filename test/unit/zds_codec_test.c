/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_codec.h"

#include "error.h"
#include "test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define UID "0d2f5b5e-9b7c-4a52-8f6e-3a7d2f1c9b10" /* 36 bytes, 0x24 */

static const struct zds_pod web = {
	.uid = UID, .name = "web-0", .ns = "shop", .service_account = "seller"};

static bool encodes_to(struct zds_request req, const char *bytes, size_t size)
{
	struct zds_packet packet;
	struct error err = {0};

	return !zds_request_encode(&req, &packet, &err) && packet.size == size &&
	       !memcmp(packet.data, bytes, size);
}

#define ENCODES_TO(req, bytes) encodes_to(req, bytes, sizeof(bytes) - 1)

TEST(requests_are_ztunnels_bytes)
{
	CHECK(ENCODES_TO(((struct zds_request){.kind = ZDS_ADD, .pod = web}),
			 "\x0a\x3d"
			 "\x0a\x24" UID "\x12\x15"
			 "\x0a\x05web-0"
			 "\x12\x04shop"
			 "\x1a\x06seller"));
	CHECK(ENCODES_TO(((struct zds_request){.kind = ZDS_DEL, .pod = web}),
			 "\x12\x26\x12\x24" UID));
	CHECK(ENCODES_TO(((struct zds_request){.kind = ZDS_KEEP, .pod = web}),
			 "\x2a\x26\x0a\x24" UID));
	CHECK(ENCODES_TO(((struct zds_request){.kind = ZDS_SNAPSHOT_SENT}), "\x1a\x00"));
	return TEST_OK;
}

TEST(ztunnels_bytes_are_read)
{
	char error[ZDS_ERROR_TEXT_SIZE] = "untouched";
	struct error err = {0};
	int version = -1;

	CHECK(!zds_hello_decode("\x08\x01", 2, &version, &err));
	CHECK_EQ(version, 1);
	CHECK(!zds_hello_decode("\x08\x01\x12\x03new", 7, &version, &err));
	CHECK(!zds_response_decode("\x0a\x00", 2, error, &err));
	CHECK_STR(error, "");
	CHECK(!zds_response_decode("\x0a\x04\x0a\x02no", 6, error, &err));
	CHECK_STR(error, "no");
	return TEST_OK;
}

TEST(what_ztunnel_says_is_written_for_its_imitators)
{
	struct zds_packet packet;
	struct error err = {0};
	uint8_t buf[16];
	size_t size;

	CHECK(!zds_hello_encode(ZDS_VERSION, &packet, &err));
	CHECK(packet.size == 2 && !memcmp(packet.data, "\x08\x01", 2));
	CHECK(!zds_response_encode("", buf, sizeof(buf), &size, &err));
	CHECK(size == 2 && !memcmp(buf, "\x0a\x00", 2));
	CHECK(!zds_response_encode("no", buf, sizeof(buf), &size, &err));
	CHECK(size == 6 && !memcmp(buf, "\x0a\x04\x0a\x02no", 6));
	CHECK_EQ(zds_response_encode("a longer text", buf, sizeof(buf), &size, &err), -EMSGSIZE);
	return TEST_OK;
}

TEST(what_is_no_hello_and_no_answer_is_refused)
{
	static const char *const hellos[] = {"\x08", "\x0a\x01", "\xff\xff", "\x08\x01\x0a"};
	static const char *const answers[] = {"\x08\x01", "\x12\x01z", "\x0a\x7f",
					      "\x0a\x02\x0a\x7f", "\xff"};
	char error[ZDS_ERROR_TEXT_SIZE] = "untouched";
	struct error err = {0};
	int version = -1;

	CHECK_EQ(zds_hello_decode("", 0, &version, &err), -EBADMSG);
	for (size_t i = 0; i < sizeof(hellos) / sizeof(*hellos); i++)
		CHECK_EQ(zds_hello_decode(hellos[i], strlen(hellos[i]), &version, &err), -EBADMSG);
	CHECK_EQ(zds_response_decode("", 0, error, &err), -EBADMSG);
	for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++)
		CHECK_EQ(zds_response_decode(answers[i], strlen(answers[i]), error, &err),
			 -EBADMSG);
	CHECK_EQ(version, -1);
	CHECK_STR(error, "untouched");
	return TEST_OK;
}

TEST(a_long_error_text_is_cut)
{
	size_t size, room = ZDS_RESPONSE_MAX + 16, length = ZDS_RESPONSE_MAX - 32;
	char *text = malloc(room), error[ZDS_ERROR_TEXT_SIZE];
	uint8_t *packet = malloc(room);
	struct error err = {0};

	CHECK(text && packet);
	memset(text, 'x', room);
	text[length] = '\0';
	CHECK(!zds_response_encode(text, packet, room, &size, &err));
	CHECK(!zds_response_decode(packet, size, error, &err));
	CHECK_EQ(strlen(error), ZDS_ERROR_TEXT_SIZE - 1);
	text[length] = 'x';
	text[room - 10] = '\0';
	CHECK(!zds_response_encode(text, packet, room, &size, &err));
	CHECK_EQ(zds_response_decode(packet, size, error, &err), -EBADMSG);
	free(packet);
	free(text);
	return TEST_OK;
}

static int refused(struct zds_pod pod, enum zds_request_kind kind, struct error *err)
{
	struct zds_packet packet;

	return zds_request_encode(&(struct zds_request){.kind = kind, .pod = pod}, &packet, err);
}

TEST(pods_that_ztunnel_could_not_use_are_refused_by_name)
{
	struct error err = {0};
	struct zds_pod pod = web;
	char long_text[ZDS_REQUEST_MAX];

	memset(long_text, 'x', sizeof(long_text));
	long_text[sizeof(long_text) - 1] = '\0';
	pod.uid = "";
	for (int kind = ZDS_ADD; kind <= ZDS_DEL; kind++)
		CHECK_EQ(refused(pod, kind, &err), -EINVAL);
	pod.uid = long_text;
	for (int kind = ZDS_ADD; kind <= ZDS_DEL; kind++)
		CHECK_EQ(refused(pod, kind, &err), -EINVAL);
	CHECK_HAS(err.text, "web-0");
	pod = web;
	pod.name = NULL;
	CHECK_EQ(refused(pod, ZDS_ADD, &err), -EINVAL);
	CHECK_HAS(err.text, UID);
	pod = web;
	pod.ns = "";
	CHECK_EQ(refused(pod, ZDS_ADD, &err), -EINVAL);
	CHECK_HAS(err.text, "pod web-0 (uid \"" UID "\") has no namespace");
	pod = web;
	pod.service_account = "a\xff";
	CHECK_EQ(refused(pod, ZDS_ADD, &err), -EINVAL);
	CHECK_HAS(err.text, "service account of pod web-0");
	pod.service_account = long_text;
	CHECK_EQ(refused(pod, ZDS_ADD, &err), -EMSGSIZE);
	CHECK_HAS(err.text, "pod shop/web-0");
	CHECK_HAS(err.text, "the limit is 1024");
	return TEST_OK;
}

TEST(a_packet_holds_1024_bytes_and_not_one_more)
{
	struct error err = {0};
	struct zds_packet packet;
	struct zds_request req = {.kind = ZDS_ADD, .pod = web};
	char text[ZDS_REQUEST_MAX + 1];
	size_t length = 900;

	memset(text, 'x', sizeof(text));
	req.pod.service_account = text;
	do {
		text[length] = '\0';
		CHECK(!zds_request_encode(&req, &packet, &err));
		text[length++] = 'x';
	} while (packet.size < ZDS_REQUEST_MAX);
	text[length] = '\0';
	CHECK_EQ(zds_request_encode(&req, &packet, &err), -EMSGSIZE);
	return TEST_OK;
}

TEST(requests_are_read_back)
{
	struct zds_packet packet;
	struct zds_request req = {.kind = ZDS_ADD, .pod = web}, got;
	struct error err = {0};

	CHECK(!zds_request_encode(&req, &packet, &err));
	CHECK(!zds_request_decode(packet.data, packet.size, &got, &err));
	CHECK_EQ(got.kind, ZDS_ADD);
	CHECK_STR(got.pod.uid, UID);
	CHECK_STR(got.pod.name, "web-0");
	CHECK_STR(got.pod.ns, "shop");
	CHECK_STR(got.pod.service_account, "seller");
	zds_request_done(&got);
	for (size_t size = 0; size < packet.size; size++)
		CHECK_EQ(zds_request_decode(packet.data, size, &got, &err), -EBADMSG);
	for (int kind = ZDS_KEEP; kind <= ZDS_SNAPSHOT_SENT; kind++) {
		req.kind = kind;
		CHECK(!zds_request_encode(&req, &packet, &err));
		CHECK(!zds_request_decode(packet.data, packet.size, &got, &err));
		CHECK_EQ(got.kind, kind);
		if (kind != ZDS_SNAPSHOT_SENT)
			CHECK_STR(got.pod.uid, UID);
		zds_request_done(&got);
	}
	return TEST_OK;
}

/* What ends the ztunnel that gets it, see zds_codec.h. */
TEST(an_add_without_its_workload_is_no_request)
{
	struct zds_request got;
	struct error err = {0};

	CHECK_EQ(zds_request_decode("\x0a\x03\x0a\x01u", 5, &got, &err), -EBADMSG);
	CHECK_HAS(err.text, "workload");
	CHECK_EQ(zds_request_decode("\x2a\x00", 2, &got, &err), -EBADMSG);
	CHECK_EQ(zds_request_decode("\x12\x03\x0a\x01u", 5, &got, &err), -EBADMSG);
	CHECK_EQ(zds_request_decode("\x22\x00", 2, &got, &err), -EBADMSG);
	return TEST_OK;
}
