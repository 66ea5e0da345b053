/* SPDX-License-Identifier: Apache-2.0 */
/* A kubeconfig is read, or refused with an error that says something. */
#include "error.h"
#include "kubeconfig_parse.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_item(const struct kubeconfig_item *item)
{
	if (item->data && (item->size == 0 || item->data[item->size] != '\0'))
		abort();
	if (item->path && item->path[0] != '/')
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	struct kubeconfig k;

	if (kubeconfig_parse((const char *)data, size, "/etc/config", &k, &err) < 0) {
		if (err.code == 0 || !strstr(err.text, "/etc/config"))
			abort();
		return 0;
	}
	if (!k.server || strncmp(k.server, "https://", 8) != 0 ||
	    k.server[strlen(k.server) - 1] == '/')
		abort();
	if (k.insecure && (k.ca.data || k.ca.path))
		abort();
	check_item(&k.ca);
	check_item(&k.certificate);
	check_item(&k.key);
	check_item(&k.token);
	kubeconfig_done(&k);
	return 0;
}
