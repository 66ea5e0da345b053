/* SPDX-License-Identifier: Apache-2.0 */
/* Any line has a mount point of a type or none, and both parts are inside the line. */
#include "mountinfo.h"
#include "scoped.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped_free char *line = calloc(1, size + 1);
	char *root = NULL, *point;

	if (!line)
		return 0;
	memcpy(line, data, size);
	point = mountinfo_mount_point(line, "nsfs", &root);
	if (point && (point < line || point + strlen(point) > line + size || root < line ||
		      root + strlen(root) > line + size))
		abort();
	return 0;
}
