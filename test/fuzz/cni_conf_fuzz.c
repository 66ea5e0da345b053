/* SPDX-License-Identifier: Apache-2.0 */
/* A configuration is read, or refused with an error that says something; limits hold. */
#include "cni_args.h"
#include "cni_conf.h"
#include "json.h"
#include "pod_membership.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct cni_conf *conf)
{
	struct cni_args args = {.pod_namespace = "default", .pod_name = "web-1"};
	scoped_json json_t *annotations = pod_membership_annotations(conf->annotations);
	const char *why = NULL;

	if (conf->timeout_ms < 1 || strlen(conf->run_dir) > CNI_RUN_DIR_MAX || !annotations)
		abort();
	pod_membership_guess(conf, &args, &why);
	if (!why)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	struct cni_conf conf;

	if (cni_conf_load((const char *)data, size, &conf, &err) == 0) {
		if (cni_conf_read(&conf, &err) < 0 && err.text[0] == '\0')
			abort();
		/* Refused or not, what is there can be used: DEL does. */
		check(&conf);
		cni_conf_done(&conf);
	} else if (err.code == 0 || err.text[0] == '\0') {
		abort();
	}
	return 0;
}
