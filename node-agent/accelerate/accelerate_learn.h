/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_LEARN_H
#define SOCKMESH_ACCELERATE_LEARN_H

/*
 * Which pairs of workloads are better left on TCP: pure functions over what the programs have
 * counted. A verdict is about connections to come: those in the map stay there.
 *
 * Being in the map costs a connection its insertion and its removal, about what two of its messages
 * gain on the short way (a far higher share of the slowest ones), and each message that goes by TCP
 * nevertheless a few per cent; up to a third where that is bulk. So a pair is left alone when,
 * since it was last judged,
 *
 *   blocking   a socket became blocking after it had entered;
 *   brief      of 16 closed connections 70 % had at most BRIEF_MESSAGES messages, and what went the
 *              short way is less than 16 messages for each that closed: a few long conversations
 *              are worth more than many short connections cost;
 *   bulk       a limit sent a direction back to TCP, most bytes went by TCP in messages of 8 KB and
 *              more, and that was over 16 MB, or 1 MB for each of 4 and more connections;
 *   spills     limits sent a tenth of the directions of 8 or more connections back to TCP, and over
 *              a quarter of messages or bytes went by TCP;
 *   not-short  of 1,000 messages 90 % went by TCP although a connection entered the map meanwhile,
 *              and no trial held them there.
 *
 * Sums are judged in short windows, so that what a pair did last week says nothing about today: a
 * window ends, with nothing against the pair, as soon as it has held enough for each rule. Long
 * conversations of short messages come under no rule, however few they are: whether several of them
 * at once are faster the short way is what the programs find out by themselves (slower,
 * bpf/accelerate_trial.h).
 *
 * A pair is left alone for 10 minutes (blocking: 2 hours). Then it is tried again, and the same
 * rules ask for a quarter of the evidence, so that the trial costs little; each trial that fails
 * doubles the time, up to 2 hours, until a whole window had nothing against the pair.
 */
#include "accelerate_abi.h"

#include <stdbool.h>
#include <stdint.h>

struct accel_learned { /* what is remembered of one pair between looks; starts as zeroes */
	struct accel_pair at_verdict; /* the sums when the window began: only what came since
					 counts */
	uint64_t until_ns;	      /* left alone until then; 0: not left alone now */
	uint32_t why; /* enum accel_why_alone of the last verdict; 0: none, or it was forgotten */
	uint32_t repeats; /* trials since that ended in a verdict again */
};

/* No verdict is longer. One that seems to be was written before the clock was set back. */
#define ACCEL_ALONE_LONGEST_NS (2 * 3600 * 1000000000ull)

/*
 * Looks at a pair's sums. True when it is to be left alone from now on: *ret then says until when
 * and why, and *learned remembers it. False: nothing new (it goes on, or is still left alone, or
 * its time is over, which shows in learned->until_ns).
 */
bool accelerate_learn(const struct accel_pair *now, uint64_t now_ns, struct accel_learned *learned,
		      struct accel_verdict *ret);

/* Takes over what an earlier agent has written; *learned is zeroes. */
void accelerate_learn_adopt(const struct accel_verdict *verdict, struct accel_learned *learned);

const char *accelerate_why_alone_name(uint32_t why); /* "brief", "bulk", "spills", ... */
const char *accelerate_leg_name(uint32_t leg);	     /* "proxy-to-proxy", "app-to-proxy", ... */

#endif
