/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever CNI_ARGS holds, what comes out is an identifier or an error that says something. */
#include "cni_args.h"
#include "error.h"
#include "scoped.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_identifier(const char *text, size_t max)
{
	if (text && (!*text || strlen(text) > max || strpbrk(text, "/;= \n\"\\")))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped_free char *text = strndup((const char *)data, size);
	struct error err = {0};
	struct cni_args args;

	if (!text)
		return 0;
	if (cni_args_parse(text, &args, &err) == 0) {
		check_identifier(args.pod_namespace, CNI_POD_NAME_MAX);
		check_identifier(args.pod_name, CNI_POD_NAME_MAX);
		check_identifier(args.pod_uid, CNI_POD_UID_MAX);
		check_identifier(args.infra_container_id, CNI_CONTAINER_ID_MAX);
		cni_args_done(&args);
	} else if (err.code == 0 || err.text[0] == '\0') {
		abort();
	}
	cni_container_id_check(text, &err);
	cni_if_name_check(text, &err);
	return 0;
}
