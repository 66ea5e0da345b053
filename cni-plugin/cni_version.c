/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_version.h"

#include "error.h"

#include <errno.h>
#include <string.h>

static const char *const names[CNI_VERSION_COUNT_] = {
	[CNI_0_3_0] = "0.3.0", [CNI_0_3_1] = "0.3.1", [CNI_0_4_0] = "0.4.0",
	[CNI_1_0_0] = "1.0.0", [CNI_1_1_0] = "1.1.0",
};

const char *cni_version_name(enum cni_version version)
{
	return names[version];
}

int cni_version_parse(const char *text, enum cni_version *ret, struct error *err)
{
	for (int v = 0; v < CNI_VERSION_COUNT_; v++) {
		if (strcmp(text, names[v]) == 0) {
			*ret = (enum cni_version)v;
			return 0;
		}
	}
	return error_set(err, EPROTONOSUPPORT, "cniVersion \"%.64s\" is not supported", text);
}
