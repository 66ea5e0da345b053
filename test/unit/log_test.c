/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include "json.h"
#include "scoped.h"
#include "test.h"

#include <stdlib.h>
#include <time.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

static char captured[64 * 1024];
static int saved_stderr = -1;

/* stderr goes to a memory file until capture_end(), which returns what was written. */
static void capture_begin(enum log_level level, enum log_format format)
{
	scoped_fd int fd = memfd_create("stderr", MFD_CLOEXEC);

	saved_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	dup2(fd, STDERR_FILENO);
	log_setup(level, format);
}

static const char *capture_end(void)
{
	ssize_t n = pread(STDERR_FILENO, captured, sizeof(captured) - 1, 0);

	captured[n > 0 ? n : 0] = '\0';
	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	return captured;
}

TEST(names_parse_and_bad_ones_are_named)
{
	enum log_format format = LOG_TEXT;
	enum log_level level = LOG_ERROR;
	struct error err = {0};

	CHECK_EQ(log_level_parse("debug", &level, &err), 0);
	CHECK_EQ(level, LOG_DEBUG);
	CHECK_EQ(log_level_parse("error", &level, &err), 0);
	CHECK_EQ(level, LOG_ERROR);
	CHECK_EQ(log_format_parse("json", &format, &err), 0);
	CHECK_EQ(format, LOG_JSON);
	CHECK_EQ(log_level_parse("Info", &level, &err), -EINVAL);
	CHECK_HAS(err.text, "\"Info\"");
	CHECK_EQ(log_format_parse("", &format, &err), -EINVAL);
	CHECK_EQ(format, LOG_JSON);
	return TEST_OK;
}

TEST(text_lines)
{
	capture_begin(LOG_INFO, LOG_TEXT);
	log_write(LOG_INFO, "pod registered", "pod", "a/b", "reason", "it is so", "x", NULL, NULL);
	log_write(LOG_DEBUG, "not shown", NULL);
	log_write(LOG_ERROR, "bare", "empty", "", NULL);
	CHECK_STR(capture_end(), "info pod registered pod=a/b reason=\"it is so\" x=-\n"
				 "error bare empty=\"\"\n");
	return TEST_OK;
}

TEST(text_values_cannot_forge_lines)
{
	capture_begin(LOG_INFO, LOG_TEXT);
	log_write(LOG_INFO, "m", "a", "x\nerror forged", "b", "say \"hi\" \\", "c",
		  "\x1b[2J\xc2\x9b", "d", "k=v", "e", "\t\r\x7f", NULL);
	CHECK_STR(capture_end(), "info m a=\"x\\nerror forged\" b=\"say \\\"hi\\\" \\\\\""
				 " c=\"\\x1b[2J\\xc2\\x9b\" d=\"k=v\" e=\"\\t\\x0d\\x7f\"\n");
	return TEST_OK;
}

TEST(json_lines_parse_back)
{
	scoped_json json_t *line = NULL;
	struct error err = {0};
	const char *text, *stamp;
	struct tm utc = {0};
	json_error_t at;

	capture_begin(LOG_INFO, LOG_JSON);
	log_write(LOG_WARN, "m", "a", "x\n\"y\"", "bad", "\xff", "none", NULL, NULL);
	text = capture_end();
	CHECK_EQ(json_parse(text, strlen(text), "line", &line, &err), 0);
	CHECK(strchr(text, '\n') == text + strlen(text) - 1);
	CHECK_EQ(json_unpack_ex(line, &at, 0, "{s:s}", "time", &stamp), 0);
	CHECK_EQ(strlen(stamp), strlen("2024-01-01T00:00:00.000Z"));
	CHECK_EQ(stamp[strlen(stamp) - 1], 'Z');
	/* The C library's calendar is the check on ours; a second may pass in between. */
	CHECK(strptime(stamp, "%Y-%m-%dT%H:%M:%S", &utc) != NULL);
	CHECK(llabs((long long)(timegm(&utc) - time(NULL))) <= 1);
	CHECK_STR(json_string_value(json_object_get(line, "level")), "warn");
	CHECK_STR(json_string_value(json_object_get(line, "msg")), "m");
	CHECK_STR(json_string_value(json_object_get(line, "a")), "x\n\"y\"");
	CHECK_STR(json_string_value(json_object_get(line, "bad")), "\xef\xbf\xbd");
	CHECK_STR(json_string_value(json_object_get(line, "none")), "-");
	return TEST_OK;
}

TEST(errors_are_one_line_and_errno_survives)
{
	struct error err = {0};

	error_set(&err, ENOENT, "open x");
	capture_begin(LOG_INFO, LOG_TEXT);
	errno = EBADMSG;
	log_error(LOG_ERROR, &err, "cannot start", "pod", "a", NULL);
	CHECK_EQ(errno, EBADMSG);
	CHECK_STR(capture_end(),
		  "error cannot start error=\"open x: No such file or directory\" pod=a\n");
	return TEST_OK;
}

TEST(long_values_are_cut_in_both_formats)
{
	enum { LONG = 300 * 1024 };
	scoped_free char *value = malloc(LONG);
	scoped_json json_t *line = NULL;
	struct error err = {0};
	const char *text;

	CHECK(value);
	memset(value, '\x01', LONG);
	value[LONG - 1] = '\0';
	capture_begin(LOG_INFO, LOG_TEXT);
	log_write(LOG_INFO, "m", "a", value, "b", value, "c", value, "d", value, NULL);
	text = capture_end();
	CHECK_EQ(strlen(text), 16 * 1024);
	CHECK(strchr(text, '\n') == text + strlen(text) - 1);
	capture_begin(LOG_INFO, LOG_JSON);
	log_write(LOG_INFO, "m", "a", value, "b", value, NULL);
	text = capture_end();
	CHECK_EQ(json_parse(text, strlen(text), "line", &line, &err), 0);
	CHECK_EQ(json_string_length(json_object_get(line, "a")), 2048 + 3);
	return TEST_OK;
}

TEST(limits_count_what_they_hold_back)
{
	struct log_limit limit = {.per_minute = 2};
	unsigned suppressed = 99;

	CHECK(log_limit_allow(&limit, &suppressed));
	CHECK_EQ(suppressed, 0);
	CHECK(log_limit_allow(&limit, &suppressed));
	for (int i = 0; i < 5; i++)
		CHECK(!log_limit_allow(&limit, &suppressed));
	limit.window_start_s -= 60; /* a minute later */
	CHECK(log_limit_allow(&limit, &suppressed));
	CHECK_EQ(suppressed, 5);
	CHECK(log_limit_allow(&limit, &suppressed));
	CHECK_EQ(suppressed, 0);
	CHECK(!log_limit_allow(&limit, &suppressed));
	return TEST_OK;
}
