/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ADVICE_VERDICT_H
#define SOCKMESH_ADVICE_VERDICT_H

/* From what the adviser has counted to what it says. Pure. */
#include "advise_abi.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Receive calls that must have been seen before silence about the rest says anything. */
enum { ADVICE_ENOUGH_CALLS = 200 };

struct advice_row {
	enum advise_call call;
	char comm[ADVISE_COMM]; /* NUL-terminated */
	uint32_t pid;
	uint64_t count;
};

struct advice_counts {
	uint64_t calls[ADVISE_CALLS];
	uint64_t sockets; /* that were received from; up to ADVISE_SOCKETS are told apart */
	/* Who made them. Calls of further programs are in `calls` only. */
	struct advice_row rows[2 * ADVISE_ROWS];
	size_t n_rows;
};

struct advice_verdict {
	bool cleared; /* enough was seen, and nothing unsafe or unknown */
	bool refuted; /* something unsafe or unknown was seen; neither: not enough was seen */
	char reason[480];
};

/* What it is called, in evidence and in sentences: "splice() out of a socket". */
const char *advice_call_name(enum advise_call call);
const char *advice_call_means(enum advise_call call); /* why it matters, one sentence */

void advice_judge(const struct advice_counts *counts, struct advice_verdict *ret);

/*
 * {"workload","seconds","cleared":bool,"refuted":bool,"reason","calls":N,"sockets":N,"evidence":
 * [{"call","count","comm","pid","unsafe":bool,"unknown":bool,"means"}]}: at most ADVISE_ROWS rows,
 * what stands in the way first, then by count. NULL without memory.
 */
json_t *advice_verdict_json(const char *workload, unsigned seconds,
			    const struct advice_counts *counts);

#endif
