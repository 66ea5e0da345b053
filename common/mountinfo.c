/* SPDX-License-Identifier: Apache-2.0 */
#include "mountinfo.h"

#include <string.h>

/* White space and backslashes are written as \ooo. In place. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from;) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
		    from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 |
				       (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

/* "ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS...] - FSTYPE SOURCE SUPER" */
char *mountinfo_mount_point(char *line, const char *fstype, char **ret_root)
{
	enum { ROOT, MOUNT_POINT, FIELDS };
	char *type = strstr(line, " - "), *save = NULL, *fields[FIELDS];
	size_t length = strlen(fstype);

	if (!type || strncmp(type + 3, fstype, length) != 0 || type[3 + length] != ' ')
		return NULL;
	*type = '\0';
	for (int i = -3; i < FIELDS; i++) {
		char *field = strtok_r(i == -3 ? line : NULL, " ", &save);

		if (!field)
			return NULL;
		if (i >= 0)
			fields[i] = field;
	}
	unescape(fields[ROOT]);
	unescape(fields[MOUNT_POINT]);
	if (ret_root)
		*ret_root = fields[ROOT];
	return fields[MOUNT_POINT];
}
