/* SPDX-License-Identifier: Apache-2.0 */
#include "write_file.h"

#include "error.h"
#include "scoped.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

static char directory[64];

static const char *make_directory(void)
{
	strcpy(directory, "/tmp/sockmesh-write-file-XXXXXX");
	return mkdtemp(directory);
}

static const char *path_of(const char *name)
{
	static char path[sizeof(directory) + 257];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return path;
}

static int remove_directory(void)
{
	scoped_dir DIR *dir = opendir(directory);
	struct dirent *entry;
	int n = 0;

	while (dir && (entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		unlink(path_of(entry->d_name));
		rmdir(path_of(entry->d_name));
		n++;
	}
	rmdir(directory);
	return n;
}

TEST(write_then_read_gives_the_same_and_leaves_no_temporary_file)
{
	scoped_free char *data = NULL;
	struct error err = {0};
	struct stat st;
	size_t size = 0;
	mode_t mask;

	CHECK(make_directory());
	mask = umask(077);
	CHECK_EQ(write_file_atomic(path_of("f"), "old", 3, 0600, &err), 0);
	CHECK_EQ(write_file_atomic(path_of("f"), "a\0b", 3, 0644, &err), 0);
	umask(mask);
	CHECK_EQ(read_file(path_of("f"), 3, &data, &size, &err), 0);
	CHECK_EQ(size, 3);
	CHECK(memcmp(data, "a\0b", 4) == 0);
	CHECK_EQ(stat(path_of("f"), &st), 0);
	CHECK_EQ(st.st_mode & 07777, 0644);
	CHECK_EQ(remove_directory(), 1);
	return TEST_OK;
}

static int synced;

/* Instead of the C library's. */
int fsync(int fd)
{
	synced += fd >= 0;
	return 0;
}

TEST(only_who_asks_for_it_waits_for_the_disk)
{
	struct error err = {0};
	scoped_free char *data = NULL;
	size_t size;

	CHECK(make_directory());
	synced = 0;
	CHECK_EQ(write_file_volatile(path_of("f"), "new", 3, 0600, &err), 0);
	CHECK_EQ(synced, 0);
	CHECK_EQ(read_file(path_of("f"), 16, &data, &size, &err), 0);
	CHECK_EQ(size, 3);
	CHECK_EQ(write_file_atomic(path_of("f"), "new", 3, 0600, &err), 0);
	CHECK_EQ(synced, 2); /* the file and its directory */
	CHECK_EQ(write_file_volatile(path_of("no/f"), "x", 1, 0600, &err), -ENOENT);
	CHECK_EQ(remove_directory(), 1);
	return TEST_OK;
}

TEST(a_failed_write_keeps_the_old_state_and_names_the_path)
{
	struct error err = {0};

	CHECK(make_directory());
	CHECK_EQ(mkdir(path_of("d"), 0700), 0);
	CHECK_EQ(write_file_atomic(path_of("d"), "x", 1, 0600, &err), -EISDIR);
	CHECK_HAS(err.text, path_of("d"));
	CHECK_EQ(write_file_atomic(path_of("no/f"), "x", 1, 0600, &err), -ENOENT);
	CHECK_HAS(err.text, path_of("no/f"));
	/* Only the directory "d" is left: the temporary file of the first attempt is gone. */
	CHECK_EQ(remove_directory(), 1);
	return TEST_OK;
}

TEST(names_without_a_directory_and_too_long_ones)
{
	scoped_fd int cwd = open(".", O_PATH | O_CLOEXEC);
	struct error err = {0};
	char huge[8192];
	int r;

	CHECK(cwd >= 0 && make_directory());
	CHECK_EQ(chdir(directory), 0);
	r = write_file_atomic("plain", "x", 1, 0600, &err);
	CHECK_EQ(fchdir(cwd), 0);
	CHECK_EQ(r, 0);
	CHECK_EQ(access(path_of("plain"), F_OK), 0);
	CHECK_EQ(remove_directory(), 1);
	memset(huge, 'a', sizeof(huge));
	huge[sizeof(huge) - 1] = '\0';
	CHECK_EQ(write_file_atomic(huge, "x", 1, 0600, &err), -ENAMETOOLONG);
	huge[1] = '/';
	CHECK_EQ(write_file_atomic(huge, "x", 1, 0600, &err), -ENAMETOOLONG);
	return TEST_OK;
}

TEST(read_obeys_its_limit)
{
	enum { SIZE = 20000 };
	scoped_free char *content = calloc(1, SIZE);
	scoped_free char *data = NULL;
	struct error err = {0};
	size_t size = 0;

	CHECK(content && make_directory());
	memset(content, 'x', SIZE);
	CHECK_EQ(write_file_atomic(path_of("f"), content, SIZE, 0600, &err), 0);
	CHECK_EQ(read_file(path_of("f"), SIZE - 1, &data, &size, &err), -EFBIG);
	CHECK_HAS(err.text, path_of("f"));
	CHECK(!data);
	CHECK_EQ(read_file(path_of("f"), 0, &data, &size, &err), -EFBIG);
	CHECK_EQ(read_file(path_of("f"), SIZE, &data, &size, &err), 0);
	CHECK_EQ(size, SIZE);
	CHECK_EQ(strlen(data), SIZE);
	CHECK_EQ(write_file_atomic(path_of("f"), "", 0, 0600, &err), 0);
	free(take_ptr(data));
	CHECK_EQ(read_file(path_of("f"), 0, &data, &size, &err), 0);
	CHECK_EQ(size, 0);
	CHECK_STR(data, "");
	remove_directory();
	return TEST_OK;
}

/* Files of /proc say size 0; this one is long enough to make the buffer grow. */
TEST(read_takes_files_of_proc)
{
	scoped_free char *data = NULL;
	struct error err = {0};
	size_t size = 0;

	CHECK_EQ(read_file("/proc/kallsyms", 64 * 1024 * 1024, &data, &size, &err), 0);
	CHECK(size > 4096);
	CHECK_EQ(strlen(data), size);
	return TEST_OK;
}

TEST(read_refuses_what_is_no_regular_file)
{
	scoped_free char *data = NULL;
	struct error err = {0};
	size_t size = 0;

	CHECK(make_directory());
	CHECK_EQ(read_file(path_of("none"), 10, &data, &size, &err), -ENOENT);
	CHECK_HAS(err.text, path_of("none"));
	CHECK_EQ(read_file(directory, 10, &data, &size, &err), -EINVAL);
	CHECK_EQ(mkfifo(path_of("fifo"), 0600), 0);
	CHECK_EQ(read_file(path_of("fifo"), 10, &data, &size, &err), -EINVAL);
	CHECK_HAS(err.text, "not a regular file");
	remove_directory();
	return TEST_OK;
}
