/* SPDX-License-Identifier: Apache-2.0 */
/* A request that decodes must encode, and decode again to the same text. */
#include "agent_protocol.h"
#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *encoded(const char *text, size_t size, size_t *ret_size)
{
	struct agent_request req;
	struct error err = {0};
	char *out = NULL;

	if (agent_request_decode(text, size, &req, &err) < 0) {
		if (err.code == 0 || err.text[0] == '\0')
			abort();
		return NULL;
	}
	/* Only the limit may refuse it: numbers of another notation can grow. */
	if (agent_request_encode(&req, &out, ret_size, &err) < 0 && err.code != E2BIG)
		abort();
	agent_request_done(&req);
	return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t once_size = 0, twice_size = 0;
	scoped_free char *once = encoded((const char *)data, size, &once_size);
	scoped_free char *twice = once ? encoded(once, once_size, &twice_size) : NULL;

	if (once && (!twice || once_size != twice_size || memcmp(once, twice, once_size) != 0))
		abort();
	return 0;
}
