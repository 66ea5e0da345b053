/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One TCP connection: prints what the server (reporter) says of it, or why there is none.
 *
 *   dial [--again] ADDR:PORT
 *
 * With --again, a connection that is refused is tried again on the same socket after a line on
 * standard input. Exit code 0 when there was an answer, else 1.
 */
#include "endpoint.h"

#include <errno.h>
#include <unistd.h>

enum { PATIENCE_S = 3 };

int main(int argc, char **argv)
{
	bool again = argc == 3 && !strcmp(argv[1], "--again");
	struct timeval patience = {.tv_sec = PATIENCE_S};
	char report[1024];
	size_t used = 0;
	union endpoint to;
	ssize_t n;
	int fd;

	if (argc != 2 + again)
		errx(2, "usage: dial [--again] ADDR:PORT");
	setvbuf(stdout, NULL, _IOLBF, 0);
	endpoint_parse(argv[argc - 1], &to);
	fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	while (connect(fd, &to.any, endpoint_size(&to)) < 0) {
		puts(errno == EINPROGRESS ? "timeout" : strerror(errno));
		if (!again || errno != ECONNREFUSED || !fgets(report, sizeof(report), stdin))
			return 1;
	}
	while ((n = read(fd, report + used, sizeof(report) - used)) > 0)
		used += (size_t)n;
	if (n < 0 || !used) {
		printf("no report: %s\n", n ? strerror(errno) : "end of file");
		return 1;
	}
	return write(STDOUT_FILENO, report, used) != (ssize_t)used;
}
