/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text handed on is JSON again, equals what was parsed but for cniVersion, and has the version
 * of the configuration.
 */
#include "cni_conf.h"
#include "cni_prev_result.h"
#include "error.h"
#include "json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const char *text, json_t *parsed, enum cni_version version)
{
	scoped_json json_t *again = NULL, *want = json_copy(parsed);
	struct error err;

	if (json_parse(text, strlen(text), "answer", &again, &err) < 0)
		abort();
	json_object_set_new(want, "cniVersion", json_string(cni_version_name(version)));
	if (!json_equal(again, want))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cni_prev_result result;
	struct error err = {0};
	struct cni_conf conf;

	if (cni_conf_load((const char *)data, size, &conf, &err) < 0)
		return 0;
	if (cni_conf_read(&conf, &err) == 0 && conf.prev_result) {
		if (cni_prev_result_read((const char *)data, size, conf.prev_result, conf.version,
					 &result, &err) == 0) {
			check(result.text, conf.prev_result, conf.version);
			if (result.n_ips > CNI_PREV_RESULT_IPS_MAX)
				abort();
			cni_prev_result_done(&result);
		} else if (err.text[0] == '\0') {
			abort();
		}
	}
	cni_conf_done(&conf);
	return 0;
}
