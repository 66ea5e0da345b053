/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_client.h"

#include "agent_protocol.h"
#include "error.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <stdint.h>

enum {
	PROTOCOL_VERSION_OLDEST = 1,
};

static int ask_once(const char *run_dir, int timeout_ms, const struct agent_request *request,
		    int netns_fd, struct agent_reply *ret, struct error *err)
{
	scoped_free char *packet = NULL, *answer = NULL;
	size_t packet_size = 0, answer_size = 0;
	int rc;

	rc = agent_request_encode(request, &packet, &packet_size, err);
	if (rc < 0)
		return rc;
	rc = agent_call(run_dir, packet, packet_size, netns_fd, timeout_ms, &answer, &answer_size,
			err);
	if (rc == 0)
		rc = agent_reply_decode(answer, answer_size, ret, err);
	if (rc == -EINVAL || rc == -E2BIG || rc == -EMSGSIZE) {
		err->code = EPROTO;
		return -EPROTO;
	}
	return rc;
}

int agent_client_ask(const char *run_dir, int timeout_ms, const struct agent_request *request,
		     int netns_fd, struct agent_reply *ret, struct error *err)
{
	int64_t deadline_ms = monotonic_ms() + timeout_ms;
	struct agent_request attempt = *request;
	struct agent_reply reply = {0};
	int rc;

	attempt.version = AGENT_PROTOCOL_VERSION;
	for (;;) {
		int64_t left_ms = deadline_ms - monotonic_ms();

		if (left_ms <= 0)
			return error_set(err, ETIMEDOUT, "the agent in %s did not answer", run_dir);
		rc = ask_once(run_dir, (int)left_ms, &attempt, netns_fd, &reply, err);
		if (rc < 0)
			return rc;
		/* An older agent names its newest version. Each try is older, so this ends. */
		if (reply.ok || reply.code != AGENT_CODE_VERSION ||
		    reply.version < PROTOCOL_VERSION_OLDEST || reply.version >= attempt.version)
			break;
		attempt.version = reply.version;
		agent_reply_done(&reply);
	}
	*ret = reply;
	return 0;
}
