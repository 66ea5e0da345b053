/* SPDX-License-Identifier: Apache-2.0 */
/* Replies decode, and any of them splits into packets within the limit. */
#include "agent_protocol.h"
#include "error.h"
#include "json.h"
#include "scoped.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_packets(const json_t *reply)
{
	struct error err = {0};
	char **packets;
	size_t n;

	if (agent_reply_packets(reply, &packets, &n, &err) < 0 || n == 0)
		abort();
	for (size_t i = 0; i < n; i++) {
		if (strlen(packets[i]) > AGENT_PACKET_MAX)
			abort();
		free(packets[i]);
	}
	free(packets);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped_json json_t *value = NULL;
	struct agent_reply reply;
	struct error err = {0};

	if (agent_reply_decode((const char *)data, size, &reply, &err) == 0)
		agent_reply_done(&reply);
	else if (err.code == 0 || err.text[0] == '\0')
		abort();
	if (json_parse((const char *)data, size, "input", &value, &err) == 0) {
		char text[40];

		check_packets(value);
		json_describe(value, text, sizeof(text));
	}
	return 0;
}
