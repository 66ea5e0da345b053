/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The measuring client: one connection at a time, every answer compared with what was sent.
 *
 *	bench_client pingpong ADDRESS PORT SIZE MILLISECONDS
 *	bench_client connect ADDRESS PORT COUNT
 *
 * pingpong: messages of SIZE bytes there and back on one connection. connect: COUNT times connect,
 * 64 bytes there and back, close. Prints one JSON object: percentiles of the time of one exchange
 * in microseconds, the rate, the number of exchanges, and how many failed. Exits with a status
 * other than 0 when nothing could be measured or an answer was wrong.
 */
#include "bench_net.h"

#include <stdio.h>

enum { SIZE_MAX_ = 65536, SAMPLES_MAX = 4000000, WARM_UP = 200, CONNECT_SIZE = 64 };

static uint32_t *samples; /* ns */
static size_t n_samples, n_errors;
static uint64_t measured_ns; /* all samples together, without warming up */

static void sample(uint64_t ns)
{
	if (n_samples < SAMPLES_MAX)
		samples[n_samples++] = ns > UINT32_MAX ? UINT32_MAX : ns;
}

/* A reset or a refusal is an error of one exchange; its reason is shown once. */
static void failed(const char *what)
{
	if (!n_errors++)
		warn("%s", what);
}

static int dial(const union bench_address *to)
{
	int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(1, "socket");
	if (connect(fd, &to->any, bench_address_size(to))) {
		close(fd);
		return -1;
	}
	bench_no_delay(fd);
	return fd;
}

/* Each message differs from the one before, so that a stale or misplaced answer shows. */
static bool exchange(int fd, size_t size)
{
	static char out[SIZE_MAX_], in[SIZE_MAX_];
	static uint32_t serial;
	size_t done = 0;
	ssize_t n;

	serial++;
	memset(out, (int)serial, size);
	memcpy(out, &serial, sizeof(serial));
	for (; done < size; done += n) {
		n = send(fd, out + done, size - done, MSG_NOSIGNAL);
		if (n < 0)
			return false;
	}
	for (done = 0; done < size; done += n) {
		n = recv(fd, in + done, size - done, 0);
		if (n <= 0) {
			errno = n ? errno : ECONNRESET;
			return false;
		}
	}
	if (memcmp(in, out, size))
		errx(1, "the answer is not what was sent");
	return true;
}

static void ping_pong(const union bench_address *to, size_t size, uint64_t duration_ns)
{
	uint64_t start, before, end;
	int i, fd = dial(to);

	if (fd < 0)
		err(1, "connect");
	for (i = 0; i < WARM_UP; i++)
		if (!exchange(fd, size))
			err(1, "exchange");
	start = before = bench_now_ns();
	while (before - start < duration_ns) {
		if (!exchange(fd, size)) {
			failed("exchange");
			break;
		}
		end = bench_now_ns();
		sample(end - before);
		before = end;
	}
	measured_ns = before - start;
	close(fd);
}

static void connects(const union bench_address *to, uint64_t count)
{
	uint64_t i, before, start = bench_now_ns();
	int fd;

	for (i = 0; i < count; i++) {
		before = bench_now_ns();
		fd = dial(to);
		if (fd < 0 || !exchange(fd, CONNECT_SIZE))
			failed(fd < 0 ? "connect" : "exchange");
		else
			sample(bench_now_ns() - before);
		if (fd >= 0)
			close(fd);
	}
	measured_ns = bench_now_ns() - start;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(double part)
{
	return samples[(size_t)(part * (double)(n_samples - 1))] / 1000.0;
}

static void report(const char *rate)
{
	if (!n_samples)
		errx(1, "nothing was measured");
	qsort(samples, n_samples, sizeof(*samples), by_value);
	printf("{\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f,\"%s\":%.1f,"
	       "\"count\":%zu,\"errors\":%zu}\n",
	       percentile_us(0.5), percentile_us(0.9), percentile_us(0.99), percentile_us(0.999),
	       rate, (double)n_samples * 1e9 / (double)measured_ns, n_samples, n_errors);
}

int main(int argc, char **argv)
{
	bool pings = argc == 6 && !strcmp(argv[1], "pingpong");
	union bench_address to;

	if (!pings && (argc != 5 || strcmp(argv[1], "connect")))
		errx(2, "usage: bench_client pingpong ADDRESS PORT SIZE MILLISECONDS\n"
			"       bench_client connect ADDRESS PORT COUNT");
	to = bench_address(argv[2], bench_port(argv[3]));
	samples = malloc(SAMPLES_MAX * sizeof(*samples));
	if (!samples)
		err(1, "malloc");
	if (pings) {
		size_t size = strtoul(argv[4], NULL, 10);

		if (size < sizeof(uint32_t) || size > SIZE_MAX_)
			errx(2, "not a size from 4 to %d: %s", SIZE_MAX_, argv[4]);
		ping_pong(&to, size, strtoull(argv[5], NULL, 10) * 1000000);
	} else {
		connects(&to, strtoull(argv[4], NULL, 10));
	}
	report(pings ? "rps" : "conns_per_s");
	return 0;
}
