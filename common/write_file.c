/* SPDX-License-Identifier: Apache-2.0 */
#include "write_file.h"

#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { READ_CHUNK = 4096 };

struct content {
	const void *data;
	size_t size;
	mode_t mode;
	bool is_durable; /* whatever becomes of the machine */
};

static int write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

/* Fills the temporary file; the descriptor is closed in every case. */
static int fill_file(int fd_to_close, const struct content *content)
{
	scoped_fd int fd = fd_to_close;
	int r;

	/* fchmod and not the mode of open(): the umask has no say. */
	if (fchmod(fd, content->mode) < 0)
		return -errno;
	r = write_all(fd, content->data, content->size);
	if (r < 0 || !content->is_durable)
		return r;
	return fsync(fd) < 0 ? -errno : 0;
}

/* Without this, a power failure after rename() may bring the old content back. */
static int sync_directory(const char *directory)
{
	scoped_fd int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int replace(const char *path, const struct content *content, struct error *err)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	char temporary[PATH_MAX], directory[PATH_MAX];
	int fd, n, r;

	n = snprintf(directory, sizeof(directory), "%.*s", slash ? (int)(name - path) : 1,
		     slash ? path : ".");
	if (n < 0 || (size_t)n >= sizeof(directory))
		return error_set(err, ENAMETOOLONG, "write %s", path);
	/* A leading dot and no known suffix: whoever reads the directory passes it by. */
	n = snprintf(temporary, sizeof(temporary), "%.*s.%s.XXXXXX", (int)(name - path), path,
		     name);
	if (n < 0 || (size_t)n >= sizeof(temporary))
		return error_set(err, ENAMETOOLONG, "write %s", path);

	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return error_set(err, errno, "create a temporary file for %s", path);
	r = fill_file(fd, content);
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temporary);
		return error_set(err, -r, "write %s", path);
	}
	r = content->is_durable ? sync_directory(directory) : 0;
	return r < 0 ? error_set(err, -r, "sync the directory of %s", path) : 0;
}

int write_file_atomic(const char *path, const void *data, size_t size, mode_t mode,
		      struct error *err)
{
	const struct content content = {data, size, mode, .is_durable = true};

	return replace(path, &content, err);
}

int write_file_volatile(const char *path, const void *data, size_t size, mode_t mode,
			struct error *err)
{
	const struct content content = {data, size, mode, .is_durable = false};

	return replace(path, &content, err);
}

/* Reads to the end: files of /proc and /sys say nothing useful in st_size. */
static int read_all(int fd, size_t max, size_t guess, char **ret_data, size_t *ret_size)
{
	size_t capacity = (guess < max ? guess : max) + 2, used = 0;
	scoped_free char *data = malloc(capacity);
	ssize_t n;

	if (!data)
		return -ENOMEM;
	for (;;) {
		/* One byte more than max tells "too large"; one is kept for the NUL. */
		n = read(fd, data + used, capacity - 1 - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		used += (size_t)n;
		if (used > max)
			return -EFBIG;
		if (used + 1 == capacity) {
			size_t larger = capacity < max / 2 ? capacity * 2 : max + 2;
			char *grown = realloc(data, larger);

			if (!grown)
				return -ENOMEM;
			data = grown;
			capacity = larger;
		}
	}
	data[used] = '\0';
	*ret_data = take_ptr(data);
	*ret_size = used;
	return 0;
}

int read_file(const char *path, size_t max, char **ret_data, size_t *ret_size, struct error *err)
{
	/* O_NONBLOCK: opening a FIFO that someone put there must not hang. */
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	size_t guess;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, errno, "read %s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "read %s: not a regular file", path);
	guess = st.st_size > READ_CHUNK ? (size_t)st.st_size : READ_CHUNK;
	r = read_all(fd, max, guess, ret_data, ret_size);
	if (r == -EFBIG)
		return error_set(err, EFBIG, "read %s: more than %zu bytes", path, max);
	return r < 0 ? error_set(err, -r, "read %s", path) : 0;
}
