/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_advise.h"

#include "advice_verdict.h"
#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "scoped.h"

#include "advise.skel.h"

#include <asm/unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct advice_run {
	char *workload;
	struct event_loop *loop;
	struct event_source *timer;
	advice_done_fn done;
	void *arg;
	unsigned seconds;
	int64_t started_ms;
	struct advise_bpf *skel; /* NULL: it is over, and `counts` is what was seen */
	struct advice_counts counts;
};

/* ---- what to look at ------------------------------------------------------------------------ */

/*
 * The receive calls of 32-bit programs, as i386 (asm/unistd_32.h) and 32-bit ARM number them; their
 * headers cannot be included beside this machine's own. Never renumbered.
 */
#ifdef __aarch64__
static const unsigned numbers_32bit[] = {
	3 /* read */, 145 /* readv */, 291 /* recv */, 292 /* recvfrom */, 297 /* recvmsg */,
};
#else
static const unsigned numbers_32bit[] = {
	3 /* read */, 102 /* socketcall */, 145 /* readv */, 371 /* recvfrom */, 372 /* recvmsg */,
};
#endif

static const struct {
	unsigned number;
	enum advise_syscall is;
} numbers[] = {
	{__NR_read, ADVISE_READ},
	{__NR_readv, ADVISE_READ},
	{__NR_preadv2, ADVISE_READ},
	{__NR_recvfrom, ADVISE_RECVFROM},
	{__NR_recvmmsg, ADVISE_RECVFROM},
	{__NR_recvmsg, ADVISE_RECVMSG},
	{__NR_sendto, ADVISE_SENDTO},
	{__NR_sendmmsg, ADVISE_SENDTO},
	{__NR_sendmsg, ADVISE_SENDMSG},
	{__NR_ioctl, ADVISE_IOCTL},
	{__NR_splice, ADVISE_SPLICE},
	{__NR_sendfile, ADVISE_SENDFILE},
	{__NR_setsockopt, ADVISE_SETSOCKOPT},
	{__NR_getsockopt, ADVISE_GETSOCKOPT},
	{__NR_io_uring_setup, ADVISE_IO_URING},
	{__NR_io_uring_enter, ADVISE_IO_URING},
	{__NR_io_submit, ADVISE_IO_SUBMIT},
};

static void set_syscalls(struct advise_bpf *skel)
{
	unsigned char *table = (unsigned char *)skel->rodata->syscalls;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (numbers[i].number < ADVISE_SYSCALLS)
			table[numbers[i].number] = (unsigned char)numbers[i].is;
	for (size_t i = 0; i < sizeof(numbers_32bit) / sizeof(numbers_32bit[0]); i++)
		table[numbers_32bit[i]] |= ADVISE_MAYBE_32BIT;
}

static int set_pod(struct advise_bpf *skel, const struct advice_pod *pod, bool netns_by_inode,
		   struct error *err)
{
	const struct advise_pod value = {.cookie = netns_by_inode ? 0 : pod->cookie};
	struct advise_exempt_key exempt = {.netns = (__u32)pod->netns_ino};
	const __u32 one = 1;

	if (bpf_map_update_elem(bpf_map__fd(skel->maps.advise_pods), &exempt.netns, &value,
				BPF_ANY))
		return error_set(err, errno, "tell the adviser of a pod");
	for (size_t i = 0; i < pod->n_proxy_uids; i++) {
		exempt.uid = pod->proxy_uids[i];
		if (bpf_map_update_elem(bpf_map__fd(skel->maps.advise_exempt), &exempt, &one,
					BPF_ANY))
			return error_set(err, errno, "tell the adviser of a proxy's uid");
	}
	return 0;
}

static int load(const struct advice_request *request, struct advise_bpf **ret, struct error *err)
{
	struct advise_bpf *skel = advise_bpf__open();
	size_t exempt = 1;
	int r;

	if (!skel)
		return error_set(err, errno, "open the adviser's program");
	for (size_t i = 0; i < request->n_pods; i++)
		exempt += request->pods[i].n_proxy_uids;
	set_syscalls(skel);
	r = bpf_map__set_max_entries(skel->maps.advise_pods, (__u32)request->n_pods);
	if (!r)
		r = bpf_map__set_max_entries(skel->maps.advise_exempt, (__u32)exempt);
	if (!r)
		r = advise_bpf__load(skel);
	if (r)
		error_set(err, -r, "load the adviser's program");
	for (size_t i = 0; !r && i < request->n_pods; i++)
		r = set_pod(skel, &request->pods[i], request->netns_by_inode, err);
	if (!r && (r = advise_bpf__attach(skel)))
		error_set(err, -r, "attach the adviser to raw_tp/sys_enter");
	if (r)
		advise_bpf__destroy(skel);
	else
		*ret = skel;
	return r;
}

/* ---- what was seen -------------------------------------------------------------------------- */

static void read_totals(const struct advise_bpf *skel, size_t cpus, struct advice_counts *ret)
{
	scoped_free __u64 *values = calloc(cpus, sizeof(*values));

	for (__u32 call = 0; values && call < ADVISE_CALLS; call++) {
		if (bpf_map_lookup_elem(bpf_map__fd(skel->maps.advise_totals), &call, values))
			continue;
		for (size_t i = 0; i < cpus; i++)
			ret->calls[call] += values[i];
	}
}

static void add_row(const struct advise_row_key *key, const struct advise_row *rows, size_t cpus,
		    struct advice_counts *ret)
{
	struct advice_row row = {.call = (enum advise_call)key->call};

	memcpy(row.comm, key->comm, sizeof(row.comm) - 1);
	for (size_t i = 0; i < cpus; i++) {
		row.count += rows[i].count;
		row.pid = row.pid ?: rows[i].pid;
	}
	ret->rows[ret->n_rows++] = row;
}

static void read_rows(int fd, size_t cpus, struct advice_counts *ret)
{
	scoped_free struct advise_row *rows = calloc(cpus, sizeof(*rows));
	struct advise_row_key key;
	int r = bpf_map_get_next_key(fd, NULL, &key);

	for (size_t i = 0; rows && !r && i < ADVISE_ROWS; i++) {
		if (key.call < ADVISE_CALLS && !bpf_map_lookup_elem(fd, &key, rows))
			add_row(&key, rows, cpus, ret);
		r = bpf_map_get_next_key(fd, &key, &key);
	}
}

static uint64_t count_keys(int fd)
{
	uint64_t key, n = 0;
	int r = bpf_map_get_next_key(fd, NULL, &key);

	/* The program only ever adds, so the walk does not start over. */
	for (; !r && n < ADVISE_SOCKETS; n++)
		r = bpf_map_get_next_key(fd, &key, &key);
	return n;
}

static void read_counts(const struct advise_bpf *skel, struct advice_counts *ret)
{
	int cpus = libbpf_num_possible_cpus();

	*ret = (struct advice_counts){0};
	if (cpus <= 0)
		return;
	read_totals(skel, (size_t)cpus, ret);
	read_rows(bpf_map__fd(skel->maps.advise_rows), (size_t)cpus, ret);
	read_rows(bpf_map__fd(skel->maps.advise_harmless), (size_t)cpus, ret);
	ret->sockets = count_keys(bpf_map__fd(skel->maps.advise_sockets));
}

/* ---- runs ----------------------------------------------------------------------------------- */

static void on_end(void *arg)
{
	struct advice_run *run = arg;

	run->timer = NULL; /* it fires once and frees itself */
	advise_bpf__detach(run->skel);
	read_counts(run->skel, &run->counts);
	advise_bpf__destroy(run->skel);
	run->skel = NULL;
	run->done(advice_so_far(run), run->arg);
}

int advice_start(const struct advice_request *request, struct event_loop *loop, advice_done_fn done,
		 void *arg, struct advice_run **ret, struct error *err)
{
	struct advice_run *run = calloc(1, sizeof(*run));
	int r;

	if (!run || !(run->workload = strdup(request->workload))) {
		free(run);
		return error_set(err, ENOMEM, "watch %s", request->workload);
	}
	run->loop = loop;
	run->done = done;
	run->arg = arg;
	run->seconds = request->seconds;
	r = load(request, &run->skel, err);
	run->started_ms = monotonic_ms();
	if (!r)
		r = event_loop_add_timer(loop, (uint64_t)request->seconds * 1000, 0, on_end, run,
					 &run->timer, err);
	if (r)
		advice_stop(run);
	else
		*ret = run;
	return r;
}

json_t *advice_so_far(const struct advice_run *run)
{
	unsigned seconds = run->seconds;
	struct advice_counts counts;

	if (!run->skel)
		return advice_verdict_json(run->workload, seconds, &run->counts);
	read_counts(run->skel, &counts);
	return advice_verdict_json(run->workload,
				   (unsigned)((monotonic_ms() - run->started_ms) / 1000), &counts);
}

void advice_stop(struct advice_run *run)
{
	if (!run)
		return;
	event_loop_remove(run->timer);
	if (run->skel)
		advise_bpf__destroy(run->skel);
	free(run->workload);
	free(run);
}
