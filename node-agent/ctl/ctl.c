/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl.h"

#include "agent_protocol.h"
#include "error.h"

#include <errno.h>
#include <string.h>

enum ctl_exit ctl_always_ok(const json_t *answer)
{
	(void)answer;
	return CTL_OK;
}

int ctl_set_pod(const char *text, struct agent_request *req, struct error *err)
{
	const char *slash = strchr(text, '/');

	if (!slash || slash == text || !slash[1] || strchr(slash + 1, '/'))
		return error_set(err, EINVAL, "pod \"%s\" is not NAMESPACE/NAME", text);
	req->pod_namespace = strndup(text, (size_t)(slash - text));
	req->pod_name = strdup(slash + 1);
	if (!req->pod_namespace || !req->pod_name)
		return error_set(err, ENOMEM, "pod name");
	return 0;
}
