/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any two texts are a release of kernel.org or none: the first line as uname -r, the rest as uname
 * -v. Of what is none no bug is known.
 */
#include "accelerate_probe.h"
#include "scoped.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum { NUMBER_MAX = 9999 };
	struct kernel_release r = {0};
	const char *newline = memchr(data, '\n', size);
	size_t first = newline ? (size_t)(newline - (const char *)data) : size;
	size_t second = newline ? size - first - 1 : 0;
	scoped_free char *release = strndup((const char *)data, first);
	scoped_free char *version = strndup(newline ? newline + 1 : "", second);

	if (!release || !version)
		return 0;
	if (accelerate_release_parse(release, version, &r)) {
		if (r.version > NUMBER_MAX || r.patchlevel > NUMBER_MAX || r.sublevel > NUMBER_MAX)
			abort();
		accelerate_release_bug(release, version);
	} else if (r.version || r.patchlevel || r.sublevel ||
		   accelerate_release_bug(release, version)) {
		abort();
	}
	return 0;
}
