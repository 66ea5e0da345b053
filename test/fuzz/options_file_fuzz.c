/* SPDX-License-Identifier: Apache-2.0 */
/* A configuration file is refused with a name for what is wrong, or gives a usable configuration.
 */
#include "error.h"
#include "options.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_usable(const struct options *o)
{
	if (o->run_dir[0] != '/' || o->redirect.bpffs_dir[0] != '/' || !o->redirect.max_pods ||
	    !o->redirect.max_handovers || !o->policy.mesh.name || !o->policy.mesh.outbound_port ||
	    !o->policy.mesh.inbound_port || o->policy.loopback4.length < IP_V4_PREFIX_BITS ||
	    !o->redirect.iptables[0] || o->reconcile_ms < 1000 || o->reconcile_ms > 3600 * 1000)
		abort();
	for (size_t i = 0; o->policy.own_pods[i]; i++)
		if (!o->policy.own_pods[i][0])
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct options options = {0};
	struct error err = {0};
	int r = options_read_file_text(&options, (const char *)data, size, "fuzz", &err);

	if (!r)
		r = options_resolve(&options, &err);
	if (!r)
		check_usable(&options);
	else if (!err.code || !err.text[0])
		abort();
	options_done(&options);
	return 0;
}
