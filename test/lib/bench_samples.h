/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_BENCH_SAMPLES_H
#define SOCKMESH_BENCH_SAMPLES_H

/* What was measured: times of single exchanges, and the processors' time of the whole machine. */
#include "bench_net.h"

#include <inttypes.h>
#include <stdio.h>

enum { SAMPLES_MAX = 2000000 };

struct bench_samples {
	uint32_t *ns;
	size_t n, errors;
	uint64_t started_ns, ended_ns; /* of the whole measurement */
	uint64_t cpu_ns;	       /* that the machine was busy meanwhile; first, the start */
};

/* Touched at once: page faults while measuring would be in the tail of what is measured. */
static inline void bench_samples_init(struct bench_samples *s)
{
	*s = (struct bench_samples){.ns = malloc(SAMPLES_MAX * sizeof(*s->ns))};
	if (!s->ns)
		err(1, "malloc");
	memset(s->ns, 0xff, SAMPLES_MAX * sizeof(*s->ns));
}

static inline void bench_sample(struct bench_samples *s, uint64_t ns)
{
	if (s->n == SAMPLES_MAX)
		errx(1, "more than %d exchanges: measure for a shorter time", SAMPLES_MAX);
	s->ns[s->n++] = ns > UINT32_MAX ? UINT32_MAX : ns;
}

static inline uint64_t bench_read_number(const char *path)
{
	FILE *file = fopen(path, "re");
	uint64_t n = 0;

	if (!file || fscanf(file, "%" SCNu64, &n) != 1)
		err(1, "%s", path);
	fclose(file);
	return n;
}

/*
 * Without cpuacct: all time since boot, less what /proc/stat calls idle, which is exact with a
 * tickless kernel but told in steps of 10 ms. Its other columns are sampled.
 */
static inline uint64_t bench_busy_by_stat_ns(void)
{
	FILE *file = fopen("/proc/stat", "re");
	uint64_t idle, io_wait, tick_ns = 1000000000 / sysconf(_SC_CLK_TCK);
	struct timespec up;

	if (!file || fscanf(file, "cpu %*u %*u %*u %" SCNu64 " %" SCNu64, &idle, &io_wait) != 2)
		err(1, "/proc/stat");
	fclose(file);
	clock_gettime(CLOCK_MONOTONIC, &up);
	return ((uint64_t)up.tv_sec * 1000000000 + up.tv_nsec) * sysconf(_SC_NPROCESSORS_ONLN) -
	       (idle + io_wait) * tick_ns;
}

/*
 * The processors' time of the whole machine. BENCH_CPUACCT names cpuacct.usage of the root cgroup:
 * the time of every task, kernel threads and interrupts in them included, in nanoseconds.
 */
static inline uint64_t bench_busy_ns(void)
{
	const char *cpuacct = getenv("BENCH_CPUACCT");

	return cpuacct && *cpuacct ? bench_read_number(cpuacct) : bench_busy_by_stat_ns();
}

static inline void bench_samples_start(struct bench_samples *s)
{
	s->n = 0;
	s->cpu_ns = bench_busy_ns();
	s->started_ns = bench_now_ns();
}

static inline void bench_samples_end(struct bench_samples *s)
{
	s->ended_ns = bench_now_ns();
	s->cpu_ns = bench_busy_ns() - s->cpu_ns;
}

static inline int bench_by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static inline double bench_quantile_us(const struct bench_samples *s, double part)
{
	return s->ns[(size_t)(part * (double)(s->n - 1))] / 1000.0;
}

/* One JSON object; `rate` names the metric that counts exchanges in a second. */
static inline void bench_samples_print(struct bench_samples *s, const char *rate)
{
	double seconds = (double)(s->ended_ns - s->started_ns) / 1e9;
	int i;

	if (!s->n)
		errx(1, "nothing was measured");
	qsort(s->ns, s->n, sizeof(*s->ns), bench_by_value);
	printf("{\"metrics\":{\"p50_us\":%.3f,\"p90_us\":%.3f,\"p99_us\":%.3f,\"p999_us\":%.3f,"
	       "\"%s\":%.1f,\"cpu_us_per_req\":%.3f},\"count\":%zu,\"errors\":%zu,\"quantiles\":[",
	       bench_quantile_us(s, 0.5), bench_quantile_us(s, 0.9), bench_quantile_us(s, 0.99),
	       bench_quantile_us(s, 0.999), rate, (double)s->n / seconds,
	       (double)s->cpu_ns / 1e3 / (double)s->n, s->n, s->errors);
	for (i = 0; i < 100; i++)
		printf("%.2f,", bench_quantile_us(s, i / 100.0));
	printf("%.2f,%.2f,%.2f]}\n", bench_quantile_us(s, 0.995), bench_quantile_us(s, 0.999),
	       bench_quantile_us(s, 0.9999));
}

#endif
