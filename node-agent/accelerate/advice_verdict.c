/* SPDX-License-Identifier: Apache-2.0 */
#include "advice_verdict.h"

#include "json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name, *means;
} calls[ADVISE_CALLS] = {
	[CALL_RECEIVE] = {"non-blocking receive", "Served as by TCP."},
	[CALL_SPLICE_TO] = {"splice() into a socket", "Served as by TCP."},
	[CALL_SENDFILE] = {"sendfile() to a socket", "Served as by TCP."},
	[CALL_SPLICE_FROM] = {"splice() out of a socket",
			      "It does not see what came the short way: the stream stalls."},
	[CALL_FIONREAD] = {"ioctl(FIONREAD)",
			   "On some kernels it counts only a part of what can be read."},
	[CALL_WAITALL] = {"receive with MSG_WAITALL",
			  "It returns with what is there, before all has come."},
	[CALL_BLOCKING] = {"blocking receive",
			   "It can fail with EAGAIN instead of waiting. A socket that is blocking "
			   "from the start stays on TCP, and gains nothing."},
	[CALL_RECEIVE_OOB] = {"receive with MSG_OOB", "There is no urgent data the short way."},
	[CALL_SEND_OOB] = {"send with MSG_OOB", "There is no urgent data the short way."},
	[CALL_DISCARD] = {"receive with MSG_TRUNC",
			  "What came the short way is written to the buffer, not discarded."},
	[CALL_MSG_ZEROCOPY] = {"send with MSG_ZEROCOPY",
			       "The completion that it waits for may never come."},
	[CALL_SO_ZEROCOPY] = {"setsockopt(SO_ZEROCOPY)",
			      "Completions of such sends may never come."},
	[CALL_SO_RCVLOWAT] = {"setsockopt(SO_RCVLOWAT)",
			      "It wakes up too early, or never for what came the short way."},
	[CALL_SO_PEEK_OFF] = {"setsockopt(SO_PEEK_OFF)",
			      "Peeking starts over at what came the short way."},
	[CALL_TCP_ULP] = {"setsockopt(TCP_ULP)",
			  "TLS in the kernel and the short way cannot share a socket."},
	[CALL_TCP_INQ] = {"setsockopt(TCP_INQ)",
			  "It counts only what came by TCP, and is missing from other receives."},
	[CALL_ZEROCOPY_RECEIVE] = {"getsockopt(TCP_ZEROCOPY_RECEIVE)",
				   "It does not see what came the short way."},
	[CALL_IO_URING] = {"io_uring", "What goes through a ring is not seen by the adviser."},
	[CALL_IO_SUBMIT] = {"io_submit()",
			    "Whether it is for sockets or for files is not seen by the adviser."},
	[CALL_32BIT] = {"32-bit system call",
			"Calls of 32-bit programs are not looked into by the adviser."},
};

const char *advice_call_name(enum advise_call call)
{
	return calls[call].name;
}

const char *advice_call_means(enum advise_call call)
{
	return calls[call].means;
}

/* ---- in words ------------------------------------------------------------------------------- */

enum { NAMED_PROGRAMS = 3 };

/* Receive calls, of whatever kind. */
static uint64_t received(const struct advice_counts *counts)
{
	return counts->calls[CALL_RECEIVE] + counts->calls[CALL_WAITALL] +
	       counts->calls[CALL_BLOCKING] + counts->calls[CALL_RECEIVE_OOB] +
	       counts->calls[CALL_DISCARD];
}

static bool in_the_way(enum advise_call call)
{
	return call >= CALL_FIRST_UNSAFE;
}

static void append(char *text, size_t size, const char *more)
{
	size_t used = strlen(text);

	if (used < size)
		snprintf(text + used, size - used, "%s", more);
}

/* The programs that made the call: "curl, nginx" or "curl, nginx, envoy and 2 more". */
static void name_programs(const struct advice_counts *counts, enum advise_call call, char *text,
			  size_t size)
{
	size_t programs = 0;
	char more[40];

	*text = '\0';
	for (size_t i = 0; i < counts->n_rows; i++) {
		if (counts->rows[i].call != call || programs++ >= NAMED_PROGRAMS)
			continue;
		append(text, size, *text ? ", " : "");
		append(text, size, counts->rows[i].comm);
	}
	snprintf(more, sizeof(more), " and %zu more", programs - NAMED_PROGRAMS);
	if (programs > NAMED_PROGRAMS)
		append(text, size, more);
	if (!programs)
		append(text, size, "other programs");
}

/* "curl, nginx: splice() out of a socket, 13 times" */
static void append_use(const struct advice_counts *counts, enum advise_call call, char *text,
		       size_t size)
{
	char names[NAMED_PROGRAMS * (ADVISE_COMM + 2) + 32], piece[192];

	name_programs(counts, call, names, sizeof(names));
	snprintf(piece, sizeof(piece), "%s: %s, %" PRIu64 " time%s", names, calls[call].name,
		 counts->calls[call], counts->calls[call] == 1 ? "" : "s");
	append(text, size, piece);
}

static void say_what_is_in_the_way(const struct advice_counts *counts, char *text, size_t size)
{
	size_t more = 0;
	char rest[40];

	*text = '\0';
	for (enum advise_call call = CALL_FIRST_UNSAFE; call < ADVISE_CALLS; call++) {
		if (!counts->calls[call])
			continue;
		if (*text && strlen(text) + 160 > size) {
			more++;
			continue;
		}
		append(text, size, *text ? "; " : "");
		append_use(counts, call, text, size);
	}
	snprintf(rest, sizeof(rest), "; and %zu more, see the evidence", more);
	if (more)
		append(text, size, rest);
}

static void say_cleared(const struct advice_counts *counts, char *text, size_t size)
{
	snprintf(text, size,
		 "%" PRIu64 " receive calls on %s%" PRIu64
		 " socket%s seen, and none that the short way serves otherwise than TCP",
		 received(counts), counts->sockets >= ADVISE_SOCKETS ? "at least " : "",
		 counts->sockets, counts->sockets == 1 ? "" : "s");
}

void advice_judge(const struct advice_counts *counts, struct advice_verdict *ret)
{
	struct advice_verdict verdict = {0};
	uint64_t seen = received(counts);

	for (enum advise_call call = CALL_FIRST_UNSAFE; call < ADVISE_CALLS; call++)
		verdict.refuted |= counts->calls[call] > 0;
	verdict.cleared = !verdict.refuted && seen >= ADVICE_ENOUGH_CALLS;
	if (verdict.refuted)
		say_what_is_in_the_way(counts, verdict.reason, sizeof(verdict.reason));
	else if (verdict.cleared)
		say_cleared(counts, verdict.reason, sizeof(verdict.reason));
	else if (seen)
		snprintf(verdict.reason, sizeof(verdict.reason),
			 "only %" PRIu64
			 " receive call%s on TCP sockets seen, %d are needed: watch longer, or "
			 "under load",
			 seen, seen == 1 ? "" : "s", ADVICE_ENOUGH_CALLS);
	else
		snprintf(verdict.reason, sizeof(verdict.reason),
			 "no receive call on a TCP socket seen: watch longer, or under load");
	*ret = verdict;
}

/* ---- as JSON -------------------------------------------------------------------------------- */

static int compare_rows(const void *a, const void *b)
{
	const struct advice_row *one = a, *other = b;

	if (in_the_way(one->call) != in_the_way(other->call))
		return in_the_way(one->call) ? -1 : 1;
	if (one->count != other->count)
		return one->count > other->count ? -1 : 1;
	if (one->call != other->call)
		return one->call < other->call ? -1 : 1;
	return strncmp(one->comm, other->comm, sizeof(one->comm));
}

static json_t *row_json(const struct advice_row *row)
{
	return json_pack("{s:s, s:I, s:o, s:I, s:b, s:b, s:s}", "call", calls[row->call].name,
			 "count", (json_int_t)row->count, "comm", json_string_lossy(row->comm),
			 "pid", (json_int_t)row->pid, "unsafe",
			 in_the_way(row->call) && row->call < CALL_FIRST_UNKNOWN, "unknown",
			 row->call >= CALL_FIRST_UNKNOWN, "means", calls[row->call].means);
}

static json_t *evidence_json(const struct advice_counts *counts)
{
	struct advice_row rows[2 * ADVISE_ROWS];
	size_t n = counts->n_rows;
	json_t *list = json_array();

	memcpy(rows, counts->rows, sizeof(rows));
	qsort(rows, n, sizeof(rows[0]), compare_rows);
	for (size_t i = 0; list && i < n && i < ADVISE_ROWS; i++)
		if (json_array_append_new(list, row_json(&rows[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	return list;
}

json_t *advice_verdict_json(const char *workload, unsigned seconds,
			    const struct advice_counts *counts)
{
	struct advice_verdict verdict;
	uint64_t all = 0;

	for (size_t i = 0; i < ADVISE_CALLS; i++)
		all += counts->calls[i];
	advice_judge(counts, &verdict);
	return json_pack("{s:s, s:i, s:b, s:b, s:o, s:I, s:I, s:o}", "workload", workload,
			 "seconds", (int)seconds, "cleared", verdict.cleared, "refuted",
			 verdict.refuted, "reason", json_string_lossy(verdict.reason), "calls",
			 (json_int_t)all, "sockets", (json_int_t)counts->sockets, "evidence",
			 evidence_json(counts));
}
