/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.h"

#include <string.h>

/* ---- which release of kernel.org ------------------------------------------------------------ */

/* Digits, at most four of them, and what ends them. */
static bool read_number(const char **text, unsigned *ret)
{
	unsigned number = 0;
	int digits = 0;

	for (; **text >= '0' && **text <= '9' && digits < 4; digits++)
		number = number * 10 + (unsigned)(*(*text)++ - '0');
	*ret = number;
	return digits > 0 && !(**text >= '0' && **text <= '9');
}

/* "A.B.C"; *text then is what follows it. *ret may be written also when it is none. */
static bool read_release(const char **text, struct kernel_release *ret)
{
	return read_number(text, &ret->version) && *(*text)++ == '.' &&
	       read_number(text, &ret->patchlevel) && *(*text)++ == '.' &&
	       read_number(text, &ret->sublevel);
}

/*
 * Debian's uname -r counts changes of the modules' interface ("6.1.0-37-amd64"); what it was made
 * from stands in uname -v only: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)".
 */
static const char *debian_version(const char *version)
{
	static const char mark[] = " Debian ";
	const char *at = strstr(version, mark);

	return at ? at + strlen(mark) : NULL;
}

/*
 * Distributions that add fixes of their own to an old release do so under its number, and most have
 * a suffix. These are known to add none, or to have none.
 */
static bool is_plain(const char *suffix)
{
	static const char *const plain[] = {"", "-flatcar", "-talos"};

	for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++)
		if (!strcmp(suffix, plain[i]))
			return true;
	return false;
}

bool accelerate_release_parse(const char *release, const char *version, struct kernel_release *ret)
{
	const char *debian = debian_version(version), *text = debian ? debian : release;
	struct kernel_release r;

	if (!read_release(&text, &r) || !(debian ? *text == '-' : is_plain(text)))
		return false;
	*ret = r;
	return true;
}

/* ---- what is known of it -------------------------------------------------------------------- */

/*
 * "bpf, sockmap: Fix sk_redir use-after-free in send verdict": while a send waits for the
 * receiver's lock, another thread's send on the same socket may drop the reference that the first
 * one goes by. Any process can do that to its own socket. All of sockmap since 4.20 has it; the fix
 * went to the releases below, of August 2026, after all other series had ended. What was fixed
 * earlier on this path ("Fix race between element replace and close()", CVE-2024-56664; "Don't let
 * sock_map_{close,destroy,unhash} call itself") is thereby covered.
 */
#define SK_REDIR "a use-after-free when two threads send on one socket"
#define FIXED_IN(a, b, c)                                                                          \
	{                                                                                          \
		a, b, c, SK_REDIR ", fixed in " #a "." #b "." #c                                   \
	}

static const struct known_bug {
	unsigned version, patchlevel;
	unsigned fixed; /* sublevel */
	const char *text;
} known_bugs[] = {
	FIXED_IN(5, 10, 265), FIXED_IN(5, 15, 216), FIXED_IN(6, 1, 183),
	FIXED_IN(6, 6, 152),  FIXED_IN(6, 12, 104), FIXED_IN(6, 18, 45),
};

/* The last series that had ended before the fix. */
enum { ENDED_VERSION = 6, ENDED_PATCHLEVEL = 19 };

static const char ended[] = SK_REDIR ", which this series never had the fix for";

const char *accelerate_release_bug(const char *release, const char *version)
{
	struct kernel_release r;

	if (!accelerate_release_parse(release, version, &r))
		return NULL;
	for (size_t i = 0; i < sizeof(known_bugs) / sizeof(*known_bugs); i++) {
		const struct known_bug *bug = &known_bugs[i];

		if (r.version == bug->version && r.patchlevel == bug->patchlevel)
			return r.sublevel < bug->fixed ? bug->text : NULL;
	}
	if (r.version > ENDED_VERSION ||
	    (r.version == ENDED_VERSION && r.patchlevel > ENDED_PATCHLEVEL))
		return NULL;
	return ended;
}
