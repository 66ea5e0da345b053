/* SPDX-License-Identifier: Apache-2.0 */
#include "own_programs.h"

#include "error.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* 0 when the pin is no link, or cannot be asked. */
static uint32_t program_behind(const char *path)
{
	/* The first word of a map's or program's info is its type, so the size tells links. */
	struct bpf_link_info info = {0};
	__u32 size = sizeof(info);
	scoped_fd int fd = bpf_obj_get(path);
	char name[64], target[64];
	ssize_t n;

	if (fd < 0)
		return 0;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	n = readlink(name, target, sizeof(target) - 1);
	if (n < 0)
		return 0;
	target[n] = '\0';
	if (!strstr(target, "bpf_link") && !strstr(target, "bpf-link"))
		return 0;
	return bpf_obj_get_info_by_fd(fd, &info, &size) ? 0 : info.prog_id;
}

static int append(uint32_t **ids, size_t *n, uint32_t id, struct error *err)
{
	uint32_t *grown = reallocarray(*ids, *n + 1, sizeof(**ids));

	if (!grown)
		return error_set(err, ENOMEM, "program ids");
	*ids = grown;
	grown[(*n)++] = id;
	return 0;
}

int own_programs(const char *bpffs_dir, uint32_t **ret, size_t *ret_n, struct error *err)
{
	char *const roots[] = {(char *)bpffs_dir, NULL};
	scoped_free uint32_t *ids = NULL;
	FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	FTSENT *entry;
	size_t n = 0;
	int r = 0;

	if (!walk)
		return error_set(err, errno, "read %s", bpffs_dir);
	while (!r && (entry = fts_read(walk))) {
		uint32_t id = entry->fts_info == FTS_F ? program_behind(entry->fts_path) : 0;

		if (id)
			r = append(&ids, &n, id, err);
	}
	fts_close(walk);
	if (r)
		return r;
	*ret = take_ptr(ids);
	*ret_n = n;
	return 0;
}
