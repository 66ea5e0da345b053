/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One TCP connection: prints what the server (reporter) says of it, or why there is none.
 *
 *   dial [--again] [--reset] [--mark N] [--source ADDR:PORT] ADDR:PORT
 *
 * With --again, a connection that is refused is tried again on the same socket after a line on
 * standard input. With --reset it ends with a reset, so that its ports are free at once. Exit code
 * 0 when there was an answer, else 1.
 */
#include "speaker.h"

#include <errno.h>
#include <unistd.h>

enum { PATIENCE_S = 3 };

static struct {
	bool again, reset;
	struct speaker as;
	union endpoint to;
} dial;

static void parse(int argc, char **argv)
{
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--again"))
			dial.again = true;
		else if (!strcmp(argv[i], "--reset"))
			dial.reset = true;
		else if (i + 1 < argc && speaker_option(&dial.as, argv[i], argv[i + 1]))
			i++;
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (i != argc - 1)
		errx(2, "usage: dial [OPTION...] ADDR:PORT");
	endpoint_parse(argv[i], &dial.to);
}

int main(int argc, char **argv)
{
	const struct linger reset = {.l_onoff = 1};
	struct timeval patience = {.tv_sec = PATIENCE_S};
	char report[1024];
	size_t used = 0;
	ssize_t n;
	int fd;

	parse(argc, argv);
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = socket(dial.to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (dial.reset)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	speaker_prepare(&dial.as, fd, dial.to.any.sa_family);
	while (connect(fd, &dial.to.any, endpoint_size(&dial.to)) < 0) {
		puts(errno == EINPROGRESS ? "timeout" : strerror(errno));
		if (!dial.again || errno != ECONNREFUSED || !fgets(report, sizeof(report), stdin))
			return 1;
	}
	while ((n = read(fd, report + used, sizeof(report) - used)) > 0)
		used += (size_t)n;
	if (n < 0 || !used) {
		printf("no report: %s\n", n ? strerror(errno) : "end of file");
		return 1;
	}
	close(fd);
	return write(STDOUT_FILENO, report, used) != (ssize_t)used;
}
