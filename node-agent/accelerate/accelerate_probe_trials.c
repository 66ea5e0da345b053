/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.skel.h"
#include "accelerate_probe_private.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif

/* What is not expected to come is awaited that long; what has to come, a step. */
enum { ABSENCE_MS = 5 };

/* ---- what is sent is read, in order --------------------------------------------------------- */

static int try_order(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	char heard[PROBE_TEXT_MAX + 1];
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, BY_TCP, "1111", err);
	if (!r)
		r = probe_await(&pair, ACCEPTED, POLLIN, err);
	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "2222", err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, 8, heard, err);
	if (r)
		return r;
	return probe_tell(bench, TEST_ORDER, !strcmp(heard, "11112222"),
			  "1111 by TCP, then 2222 the short way: read %s", heard);
}

static int try_order_drained(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	char first[PROBE_TEXT_MAX + 1], rest[PROBE_TEXT_MAX + 1];
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, BY_TCP, "1111", err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, 4, first, err);
	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "2222", err);
	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "3333", err);
	if (!r)
		r = probe_say(&pair, CONNECTED, BY_TCP, "4444", err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, 12, rest, err);
	if (r)
		return r;
	return probe_tell(
		bench, TEST_ORDER_DRAINED, !strcmp(first, "1111") && !strcmp(rest, "222233334444"),
		"1111 by TCP: read %s; 2222 3333 the short way, 4444 by TCP: read %s", first, rest);
}

/* ---- how a connection ends ------------------------------------------------------------------ */

static const char *or_nothing(const char *heard)
{
	return *heard ? heard : "nothing";
}

/* Into words, by reading once more: what a reader sees after the last byte. */
static const char *ending(const struct probe_pair *pair, enum probe_side side)
{
	char byte;
	ssize_t n = recv(pair->fds[side], &byte, 1, MSG_DONTWAIT);

	if (n > 0)
		return "a byte";
	if (n == 0)
		return "end of file";
	return errno == ECONNRESET ? "a reset" : errno == EAGAIN ? "nothing" : strerror(errno);
}

/* A way to close one end, and how the other one should hear of it. */
struct closing {
	enum accelerate_test test;
	enum probe_close how;
	short event; /* of poll() */
	const char *name, *ending;
};

static int try_closing(struct probe_bench *bench, const struct closing *closing, struct error *err)
{
	scoped_pair struct probe_pair pair;
	const char *end;
	char heard[PROBE_TEXT_MAX + 1];
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "12345", err);
	if (!r)
		r = probe_close(&pair, CONNECTED, closing->how, err);
	if (!r)
		r = probe_await(&pair, ACCEPTED, closing->event, err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, 5, heard, err);
	if (r)
		return r;
	end = ending(&pair, ACCEPTED);
	return probe_tell(
		bench, closing->test, !strcmp(heard, "12345") && !strcmp(end, closing->ending),
		"12345, then %s: read %s, then %s", closing->name, or_nothing(heard), end);
}

static int try_eof(struct probe_bench *bench, struct error *err)
{
	static const struct closing orderly = {TEST_EOF, CLOSE_ORDERLY, POLLRDHUP, "close",
					       "end of file"};

	return try_closing(bench, &orderly, err);
}

static int try_rst(struct probe_bench *bench, struct error *err)
{
	static const struct closing reset = {TEST_RST, CLOSE_BY_RESET, POLLHUP, "a reset",
					     "a reset"};

	return try_closing(bench, &reset, err);
}

static int try_half_close(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	char heard[PROBE_TEXT_MAX + 1], answer[PROBE_TEXT_MAX + 1];
	const char *end;
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "12345", err);
	if (!r && shutdown(pair.fds[CONNECTED], SHUT_WR) < 0)
		r = error_set(err, errno, "shut down a connection");
	if (!r)
		r = probe_await(&pair, ACCEPTED, POLLRDHUP, err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, 5, heard, err);
	if (r)
		return r;
	end = ending(&pair, ACCEPTED);
	r = probe_say(&pair, ACCEPTED, THE_SHORT_WAY, "678", err);
	if (!r)
		r = probe_hear(&pair, CONNECTED, 3, answer, err);
	if (r)
		return r;
	return probe_tell(bench, TEST_HALF_CLOSE,
			  !strcmp(heard, "12345") && !strcmp(end, "end of file") &&
				  !strcmp(answer, "678"),
			  "12345, then shutdown: read %s, then %s; 678 back: read %s",
			  or_nothing(heard), end, or_nothing(answer));
}

/* ---- what the kernel keeps of it ------------------------------------------------------------ */

struct seen {
	uint32_t copied_seq, rmem;
};

/* The program sees the socket that sends: a byte back by TCP shows it what the receiver has. */
static int look(const struct probe_pair *pair, enum probe_side side, struct seen *ret,
		struct error *err)
{
	const struct accelerate_probe_bpf *bpf = pair->bench->bpf;
	uint32_t sends = bpf->bss->sends;
	int r = probe_say(pair, side, BY_TCP, ".", err);

	if (r)
		return r;
	if (bpf->bss->sends == sends)
		return error_set(err, EIO, "the program did not run");
	ret->copied_seq = bpf->bss->copied_seq;
	ret->rmem = bpf->bss->rmem_alloc;
	return 0;
}

static int try_accounts(struct probe_bench *bench, struct error *err)
{
	static const char text[] = "12345678";
	const unsigned size = sizeof(text) - 1;
	scoped_pair struct probe_pair pair;
	struct seen before = {0}, unread = {0}, read = {0}, by_tcp = {0};
	char heard[PROBE_TEXT_MAX + 1];
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = look(&pair, ACCEPTED, &before, err);
	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, text, err);
	if (!r)
		r = look(&pair, ACCEPTED, &unread, err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, size, heard, err);
	if (!r)
		r = look(&pair, ACCEPTED, &read, err);
	if (!r)
		r = probe_say(&pair, CONNECTED, BY_TCP, text, err);
	if (!r)
		r = probe_hear(&pair, ACCEPTED, size, heard, err);
	if (!r)
		r = look(&pair, ACCEPTED, &by_tcp, err);
	if (r)
		return r;
	probe_tell(bench, TEST_COPIED_SEQ,
		   read.copied_seq == before.copied_seq &&
			   by_tcp.copied_seq == read.copied_seq + size,
		   "%u bytes the short way moved it by %u, %u by TCP by %u", size,
		   read.copied_seq - before.copied_seq, size, by_tcp.copied_seq - read.copied_seq);
	probe_tell(bench, TEST_MEMORY, unread.rmem >= before.rmem + size,
		   "%u bytes unread: %u before, %u then", size, before.rmem, unread.rmem);
	return probe_tell(bench, TEST_ACCOUNTED, read.rmem == before.rmem,
			  "%u before, %u once everything was read", before.rmem, read.rmem);
}

static int try_second_owner(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	int map = bpf_map__fd(bench->bpf->maps.probe_others), r;
	const uint32_t slot = 0;

	r = probe_pair_open(&pair, bench, err);
	if (r)
		return r;
	r = bpf_map_update_elem(map, &slot, &pair.fds[CONNECTED], BPF_ANY) ? errno : 0;
	return probe_tell(bench, TEST_SECOND_OWNER, r == EBUSY, "a second map's claim: %s",
			  r ? strerror(r) : "accepted");
}

static int try_entry_removed(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	char heard[PROBE_TEXT_MAX + 1] = "";
	ssize_t n;
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "12345", err);
	if (!r)
		r = probe_pair_remove(&pair, ACCEPTED, err);
	if (r)
		return r;
	n = recv(pair.fds[ACCEPTED], heard, sizeof(heard) - 1, MSG_DONTWAIT);
	return probe_tell(bench, TEST_ENTRY_REMOVED, !strcmp(heard, "12345"),
			  "12345 unread, then its entry removed: read %s",
			  n > 0 ? heard : "nothing");
}

/* ---- other ways to read --------------------------------------------------------------------- */

static int try_fionread(struct probe_bench *bench, enum probe_way way, enum accelerate_test test,
			struct error *err)
{
	scoped_pair struct probe_pair pair;
	int waiting = -1, r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_say(&pair, CONNECTED, way, "12345", err);
	if (!r)
		r = probe_await(&pair, ACCEPTED, POLLIN, err);
	if (r)
		return r;
	if (ioctl(pair.fds[ACCEPTED], FIONREAD, &waiting) < 0)
		return error_set(err, errno, "FIONREAD");
	return probe_tell(bench, test, waiting == 5, "5 bytes to read: says %d", waiting);
}

static int try_fionread_short(struct probe_bench *bench, struct error *err)
{
	return try_fionread(bench, THE_SHORT_WAY, TEST_FIONREAD_SHORT, err);
}

static int try_fionread_tcp(struct probe_bench *bench, struct error *err)
{
	return try_fionread(bench, BY_TCP, TEST_FIONREAD_TCP, err);
}

static int try_splice(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	int ends[2], code, r = probe_pair_open(&pair, bench, err);
	ssize_t n;

	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "12345", err);
	if (!r)
		r = probe_await(&pair, ACCEPTED, POLLIN, err);
	if (r)
		return r;
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return error_set(err, errno, "make a pipe");
	n = splice(pair.fds[ACCEPTED], NULL, ends[1], NULL, 5, SPLICE_F_NONBLOCK);
	code = errno;
	close(ends[0]);
	close(ends[1]);
	if (n < 0)
		return probe_tell(bench, TEST_SPLICE, false, "5 bytes readable: %s",
				  strerror(code));
	return probe_tell(bench, TEST_SPLICE, n == 5, "5 bytes readable: moved %zd", n);
}

/* How often this thread has gone to sleep by itself: not how often others took its processor. */
static long sleeps(void)
{
	struct rusage usage = {0};

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw;
}

static int try_waitall(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	char heard[8];
	bool waited;
	long before;
	ssize_t n;
	int r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_make_blocking(&pair, ACCEPTED, ABSENCE_MS, err);
	if (!r)
		r = probe_say(&pair, CONNECTED, THE_SHORT_WAY, "1234", err);
	if (r)
		return r;
	/* It returns what it has when its time is up, too: the question is whether it waited. */
	before = sleeps();
	n = recv(pair.fds[ACCEPTED], heard, sizeof(heard), MSG_WAITALL);
	waited = sleeps() != before;
	if (n < 0)
		return error_set(err, errno, "receive");
	return probe_tell(bench, TEST_WAITALL, waited,
			  "asked for 8 bytes with 4 there: returned %zd %s", n,
			  waited ? "when its time was up" : "at once");
}

/* ---- zerocopy ------------------------------------------------------------------------------- */

/* Has the kernel told the sender that its pages are free again? */
static bool completed(const struct probe_pair *pair, int timeout_ms)
{
	char control[CMSG_SPACE(sizeof(struct sock_extended_err)) + 64];
	struct msghdr msg = {.msg_control = control, .msg_controllen = sizeof(control)};
	struct pollfd fd = {.fd = pair->fds[CONNECTED]};

	return poll(&fd, 1, timeout_ms) > 0 && fd.revents & POLLERR &&
	       recvmsg(fd.fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0;
}

static int say_zerocopy(const struct probe_pair *pair, enum probe_way way, bool *ret_completed,
			struct error *err)
{
	char heard[PROBE_TEXT_MAX + 1];
	ssize_t n;
	int r;

	probe_choose(pair, CONNECTED, way);
	n = send(pair->fds[CONNECTED], "12345", 5, MSG_ZEROCOPY | MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n != 5)
		return error_set(err, n < 0 ? errno : EIO, "send 5 bytes without a copy");
	r = probe_hear(pair, ACCEPTED, 5, heard, err);
	if (!r && strcmp(heard, "12345") != 0)
		return error_set(err, EIO, "sent 12345 without a copy, read %s", or_nothing(heard));
	if (!r)
		*ret_completed = completed(pair, way == BY_TCP ? pair->bench->step_ms : ABSENCE_MS);
	return r;
}

static int try_zerocopy(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	bool by_tcp = false, short_way = false;
	const int on = 1;
	int r = probe_pair_connect(&pair, bench, err);

	if (r)
		return r;
	if (setsockopt(pair.fds[CONNECTED], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0)
		return error_set(err, errno, "SO_ZEROCOPY");
	r = say_zerocopy(&pair, BY_TCP, &by_tcp, err);
	if (!r && !by_tcp)
		return error_set(err, ETIMEDOUT, "no completion even by TCP");
	if (!r)
		r = probe_pair_insert(&pair, err);
	if (!r)
		r = say_zerocopy(&pair, THE_SHORT_WAY, &short_way, err);
	if (r)
		return r;
	return probe_tell(bench, TEST_ZEROCOPY, short_way, "%s",
			  short_way ? "completed" : "read, but never completed");
}

/* ---- all of them ---------------------------------------------------------------------------- */

const struct probe_trial probe_trials[] = {
	{TEST_ORDER, TEST_ORDER, try_order},
	{TEST_ORDER_DRAINED, TEST_ORDER_DRAINED, try_order_drained},
	{TEST_EOF, TEST_EOF, try_eof},
	{TEST_HALF_CLOSE, TEST_HALF_CLOSE, try_half_close},
	{TEST_RST, TEST_RST, try_rst},
	{TEST_COPIED_SEQ, TEST_ACCOUNTED, try_accounts},
	{TEST_SECOND_OWNER, TEST_SECOND_OWNER, try_second_owner},
	{TEST_ENTRY_REMOVED, TEST_ENTRY_REMOVED, try_entry_removed},
	{TEST_FIONREAD_SHORT, TEST_FIONREAD_SHORT, try_fionread_short},
	{TEST_FIONREAD_TCP, TEST_FIONREAD_TCP, try_fionread_tcp},
	{TEST_SPLICE, TEST_SPLICE, try_splice},
	{TEST_ZEROCOPY, TEST_ZEROCOPY, try_zerocopy},
	{TEST_WAITALL, TEST_WAITALL, try_waitall},
	{TEST_BLOCKING, TEST_BLOCKING, probe_try_blocking},
};

const unsigned n_probe_trials = sizeof(probe_trials) / sizeof(*probe_trials);
