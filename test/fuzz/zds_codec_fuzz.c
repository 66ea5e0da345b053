/* SPDX-License-Identifier: Apache-2.0 */
/* Every message of ZDS decodes or says why not; what decodes encodes to what decodes to the same.
 */
#include "error.h"
#include "zds_codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(const struct error *err)
{
	if (err->code == 0 || err->text[0] == '\0')
		abort();
}

static void check_equal(const char *a, const char *b)
{
	if ((a || b) && (!a || !b || strcmp(a, b) != 0))
		abort();
}

static void try_request(const uint8_t *data, size_t size)
{
	struct zds_request req, again;
	struct zds_packet packet;
	struct error err = {0};

	if (zds_request_decode(data, size, &req, &err)) {
		check_error(&err);
		return;
	}
	if (zds_request_encode(&req, &packet, &err) || packet.size > size ||
	    zds_request_decode(packet.data, packet.size, &again, &err))
		abort();
	if (again.kind != req.kind)
		abort();
	check_equal(again.pod.uid, req.pod.uid);
	check_equal(again.pod.name, req.pod.name);
	check_equal(again.pod.ns, req.pod.ns);
	check_equal(again.pod.service_account, req.pod.service_account);
	zds_request_done(&req);
	zds_request_done(&again);
}

static void try_response(const uint8_t *data, size_t size)
{
	char error[ZDS_ERROR_TEXT_SIZE], again[ZDS_ERROR_TEXT_SIZE];
	uint8_t packet[2 * ZDS_ERROR_TEXT_SIZE];
	struct error err = {0};
	size_t packet_size;

	if (zds_response_decode(data, size, error, &err)) {
		check_error(&err);
		return;
	}
	if (zds_response_encode(error, packet, sizeof(packet), &packet_size, &err) ||
	    zds_response_decode(packet, packet_size, again, &err))
		abort();
	check_equal(error, again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	int version;

	try_request(data, size);
	try_response(data, size);
	if (zds_hello_decode(data, size, &version, &err))
		check_error(&err);
	return 0;
}
