/* SPDX-License-Identifier: Apache-2.0 */
#include "cgroup_pod.h"

#include <ctype.h>
#include <string.h>

enum { UID_LENGTH = POD_UID_SIZE - 1, STATIC_UID_LENGTH = 32 };

static bool is_dash_place(size_t i)
{
	return i == 8 || i == 13 || i == 18 || i == 23;
}

static bool ends_name(const char *text)
{
	return !*text || *text == '/' || *text == '\n' || strncmp(text, ".slice", 6) == 0;
}

static bool read_api_uid(const char *text, char ret[static POD_UID_SIZE])
{
	for (size_t i = 0; i < UID_LENGTH; i++) {
		char c = text[i];

		if (is_dash_place(i) ? c != '-' && c != '_' : !isxdigit((unsigned char)c))
			return false;
		ret[i] = is_dash_place(i) ? '-' : (char)tolower((unsigned char)c);
	}
	ret[UID_LENGTH] = '\0';
	return ends_name(text + UID_LENGTH);
}

/* kubelet's own for a pod of a file on the node. */
static bool read_static_uid(const char *text, char ret[static POD_UID_SIZE])
{
	for (size_t i = 0; i < STATIC_UID_LENGTH; i++) {
		if (!isxdigit((unsigned char)text[i]))
			return false;
		ret[i] = (char)tolower((unsigned char)text[i]);
	}
	ret[STATIC_UID_LENGTH] = '\0';
	return ends_name(text + STATIC_UID_LENGTH);
}

/* What stands behind "pod": all of a uid, and then the end of the name or what systemd adds. */
static bool read_uid(const char *text, char ret[static POD_UID_SIZE])
{
	return read_api_uid(text, ret) || read_static_uid(text, ret);
}

/* "pod" begins a component's name or follows a dash of systemd's slices. */
static bool begins_name(const char *text, const char *at)
{
	return at == text || at[-1] == '/' || at[-1] == '-' || at[-1] == ':';
}

bool cgroup_pod_uid(const char *text, char ret[static POD_UID_SIZE])
{
	char first[POD_UID_SIZE] = "", uid[POD_UID_SIZE];

	for (const char *at = strstr(text, "pod"); at; at = strstr(at + 1, "pod")) {
		if (!begins_name(text, at) || !read_uid(at + 3, uid))
			continue;
		if (*first && strcmp(first, uid) != 0)
			return false;
		memcpy(first, uid, sizeof(first));
	}
	if (!*first)
		return false;
	memcpy(ret, first, sizeof(first));
	return true;
}
