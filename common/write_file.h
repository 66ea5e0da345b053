/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_WRITE_FILE_H
#define SOCKMESH_WRITE_FILE_H

/*
 * Replaces a file so that a crash at any moment leaves the old content or the new one, never a
 * mixture: temporary file in the same directory, fsync, rename, fsync of the directory.
 */
#include <stddef.h>
#include <sys/types.h>

struct error;

int write_file_atomic(const char *path, const void *data, size_t size, mode_t mode,
		      struct error *err);

/*
 * The same without waiting for a disk: what a crash of the process cannot harm, one of the machine
 * may. For state that means nothing after a reboot.
 */
int write_file_volatile(const char *path, const void *data, size_t size, mode_t mode,
			struct error *err);

/*
 * Reads a whole regular file of at most max bytes; a NUL is appended and not counted. *ret_data is
 * the caller's to free. -EFBIG when larger; -ENOENT is returned with err filled as any other.
 */
int read_file(const char *path, size_t max, char **ret_data, size_t *ret_size, struct error *err);

#endif
