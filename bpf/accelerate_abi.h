/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_ABI_H
#define SOCKMESH_ACCELERATE_ABI_H

/*
 * Types that the accelerator's BPF programs share with user space. A change of a map's layout
 * raises ACCELERATE_ABI_VERSION, which names the pin directory. Ports are in host order, addresses
 * 16 bytes in network order (sockmesh_abi.h).
 */
#include "sockmesh_abi.h"

enum { ACCELERATE_ABI_VERSION = 1 };

/* How far a pod may go; user space has worked out policy, annotation and probe. */
enum accel_level {
	ACCEL_OFF,
	ACCEL_PROXY, /* hops between two proxies on this node */
	ACCEL_FULL,  /* and those between a pod's applications and its proxy */
};

/* The hops of a connection through the mesh. */
enum accel_leg {
	LEG_NODE = 1, /* a pod's proxy to another pod's */
	LEG_OUT,      /* an application to its own proxy */
	LEG_IN,	      /* a proxy to an application of its own pod */
	LEG_COUNT_,
};

/* accel_pods: key is the network namespace's number (netns_of()). */
struct accel_pod {
	__u32 level;	/* enum accel_level */
	__u32 workload; /* a number that user space gave; pods of one workload share it. Never 0 */
};

/* accel_addresses: key struct addr16. A pod's addresses, as its peers on this node dial them. */
struct accel_address {
	__u64 netns; /* 0: more than one pod has it, so nobody can be told apart by it */
};

/* What is learned about: who talks to whom, on which port, on which hop. */
struct accel_pair_key {
	__u32 workload, peer; /* peer 0: not a pod of this node */
	__u16 port;	      /* dialled by the connecting side */
	__u8 leg;	      /* enum accel_leg */
	__u8 pad[5];
};

/* accel_pairs: sums since the pair was first seen; both directions together. */
struct accel_pair {
	__u64 first_ns, last_ns;       /* CLOCK_MONOTONIC, of a connection's insertion */
	__u64 connections, closed;     /* that entered the map, of which have ended */
	__u64 messages, bytes;	       /* that went the short way */
	__u64 tcp_messages, tcp_bytes; /* that were sent by TCP although in the map */
	__u64 spills;		       /* directions that a limit sent back to TCP */
	__u64 life_ns;		       /* of the closed connections, summed */
	__u64 brief;		       /* closed connections with at most BRIEF_MESSAGES messages */
	__u64 turned_blocking;	       /* sockets that became blocking after they had entered */
	__u64 left_alone;	       /* connections that did not enter because of a verdict */
	__u64 held_messages;	/* of tcp_messages: because of a trial, or of what one has shown */
	__u64 live, live_alone; /* connections now, and those of them that a trial left alone */
	__u32 places;		/* enum accel_places, as last seen */
	__u32 pad;
};

enum { BRIEF_MESSAGES = 8 }; /* both directions */

/* Where the two ends of a pair's connections run. */
enum accel_places {
	PLACES_UNKNOWN,
	PLACES_ONE_CPU,
	PLACES_TWO_CPUS,
};

/*
 * accel_trials: is the short way the faster one between these two? accelerate_trial.h has the
 * question, accelerate_trial.bpf.h the course of a trial. Key struct accel_pair_key.
 */
enum {
	TRIAL_LEVELS = 8,    /* how many connections at once: 1, 2-3, 4-7 ... 128 and more */
	TRIAL_BUCKETS = 128, /* of times: 8 for each doubling, from 1 us on */
};

enum trial_verdict {
	TRIAL_UNKNOWN,
	TRIAL_FASTER, /* the short way is */
	TRIAL_SLOWER,
};

enum trial_phase {
	TRIAL_NONE,
	TRIAL_BY_TCP,	/* new streams are held on TCP, and measured */
	TRIAL_CHANGING, /* to the short way, as they are drained */
	TRIAL_SHORT,	/* measured */
	TRIAL_BACK,	/* they were short before: to TCP for good, and measured */
	TRIAL_JUDGING,	/* by one CPU */
};

struct trial_times {
	__u32 exchange[TRIAL_BUCKETS]; /* from a send of the connecting end to its next */
	__u32 answer[TRIAL_BUCKETS];   /* from a send of the connecting end to the other's next */
};

struct trial_figures { /* medians */
	__u32 exchange_ns, answer_ns;
	__u32 exchanges, answers; /* how many were looked at */
};

struct trial_result {
	__u64 until_ns; /* CLOCK_MONOTONIC; as if there were none afterwards */
	__u32 verdict;	/* enum trial_verdict */
	__u32 repeats;	/* of the same verdict */
	struct trial_figures tcp, shrt;
};

/* accel_trial_lock: one entry, of the phases of all trials. */
struct accel_lock {
#ifdef __bpf__
	struct bpf_spin_lock lock;
#else
	__u32 lock;
#endif
};

struct accel_trial {
	__u64 began_ns, last_ns; /* of the window; of what was last measured */
	__u32 phase, level;
	__u32 windows;	      /* of this phase that are over */
	__u32 n_tcp, n_short; /* measured exchanges of this window */
	__u32 pad;
	struct trial_figures tcp, shrt; /* of the best window by TCP, the worst of the short way */
	struct trial_figures window;	/* of the last one */
	struct trial_result results[TRIAL_LEVELS];
	struct trial_times tcp_times, short_times;
};

/* accel_verdicts: user space's answer to the above; no entry: go on. */
struct accel_verdict {
	__u64 until_ns; /* CLOCK_MONOTONIC; left alone until then */
	__u32 why;	/* enum accel_why_alone, for people */
	__u32 repeats;	/* for the next agent: see accelerate_learn.h */
};

enum accel_why_alone {
	ALONE_BRIEF = 1,
	ALONE_BULK,
	ALONE_SPILLS,
	ALONE_TURNED_BLOCKING,
	ALONE_NOT_SHORT,
	ALONE_SLOWER, /* a trial's, never in accel_verdicts */
};

/*
 * accel_acceptors: are the sockets that a listener's program accepts non-blocking? Seen, never
 * guessed: on an accepted socket, when its first answer was acknowledged.
 */
struct accel_acceptor_key {
	__u64 netns;
	__u16 port; /* of the listener; a proxy's inbound listener has it whatever port was dialled
		     */
	__u16 pad[3];
};

struct accel_acceptor {
	__u32 nonblocking, blocking; /* sockets seen */
};

/*
 * accel_ends: the two ends of a connection find each other by it. Both namespaces, the tuple, and
 * both initial sequence numbers, which only the two ends of one TCP connection share: 64 bits that
 * nobody else's connection has, be its addresses the same.
 */
struct accel_end_key {
	__u64 active_netns, passive_netns;
	struct addr16 active, passive;
	__u16 active_port, passive_port;
	__u32 active_isn, passive_isn;
	__u32 pad;
};

struct accel_end {
	__u64 cookie; /* 0: not in the map */
	__u64 sock;   /* its address in the kernel; valid while its cookie is at that address */
	__u64 stream; /* its struct accel_stream, the same */
};

struct accel_ends {
	struct accel_end active, passive;
	struct accel_pair_key pair;
	__u64 passive_messages; /* that the accepting end had sent when it ended */
};

/* Which way a direction goes. Only forward in this list, so at most once from TCP to short. */
enum accel_way {
	WAY_UNDECIDED,
	WAY_TCP_SO_FAR, /* and short as soon as everything sent so far has been read */
	WAY_SHORT,
	WAY_TCP, /* for good */
};

/* Is it because of a trial that a direction goes by TCP? */
enum accel_held {
	HELD_NOT,
	HELD_ON_TRIAL,
	HELD_FOR_GOOD,
};

/* accel_streams: socket storage of each socket in the map; of what it sends. */
struct accel_stream {
	__u64 cookie;	 /* first: what the peer reads of it to know that it is still the one */
	__u32 way;	 /* enum accel_way */
	__u32 wants_tcp; /* enum accel_event: why this socket must not receive the short way; 0: it
			    may */
	__u64 asked_ns;	 /* when an exchange that is measured began; 0: none is */
	__u64 answered_ns;		    /* the peer's asked_ns that was answered last */
	__u32 cpu;			    /* at the last look, plus 1; 0: none yet */
	__u32 held;			    /* enum accel_held */
	__u64 peer, peer_sock, peer_stream; /* known since WAY_TCP_SO_FAR at the latest */
	struct accel_end_key ends;
	struct accel_pair_key pair;
	__u64 netns, peer_netns;
	__u64 born_ns;
	__u64 sent_messages, sent_bytes; /* the short way */
	__u64 read_messages, read_bytes; /* of these, proven to have been read */
	__u64 mark_messages, mark_bytes; /* sent at the last look */
	__u64 claimed;			 /* of the budgets, beyond the allowance */
	__u64 told_messages, told_bytes; /* of these, in accel_pairs already */
	__u64 tcp_messages, tcp_bytes;
	__u64 told_tcp_messages, told_tcp_bytes;
	__u64 held_messages, told_held_messages; /* of those by TCP */
	__u32 tries;
	__u32 is_active;   /* it connected */
	__u32 is_watched;  /* accepted, from a listener that is not known yet */
	__u64 peer_memcg;  /* the receiver's, which pays for what it has not read */
	__u32 has_ended;   /* TCP is done with it; under the lock */
	__u32 is_released; /* its last descriptor is closed; under the lock */
	__u32 is_counted;  /* it is one of its pair's live ones */
	__u32 is_alone;	   /* of its live_alone, and so not in the map */
#ifdef __bpf__
	struct bpf_spin_lock lock;
#else
	__u32 lock;
#endif
	__u32 pad;
};

/* accel_usage: key 0 is the node, others are namespaces. */
struct accel_usage {
	__u64 sockets; /* in the map */
	__u64 claimed; /* bytes of kernel memory that may be outstanding beyond the allowances */
};

/* accel_control: one entry, for the agent's hand on the brake. */
struct accel_control {
	__u32 stopped; /* not 0: nothing enters, and every direction goes to TCP at its next send */
	__u32 pad;
};

/* accel_counters: one array of these, per CPU: why something did not go the short way. */
enum accel_event {
	/* a socket that may not enter, or did not */
	ACCEL_ENTERED = 1,
	ACCEL_NO_MEMORY,
	ACCEL_MAP_FULL,
	ACCEL_NODE_FULL,      /* --accelerate-max-sockets */
	ACCEL_POD_FULL,	      /* --accelerate-max-sockets-per-pod */
	ACCEL_SECOND_OWNER,   /* another sockmap has it: EBUSY */
	ACCEL_INSERT_FAILED,  /* another error */
	ACCEL_HAS_MOVED_DATA, /* deferred accept, fast open, data before the last ACK */
	ACCEL_BLOCKING,	      /* the connecting socket is */
	ACCEL_ACCEPTOR_UNKNOWN,
	ACCEL_ACCEPTOR_BLOCKING,
	ACCEL_LEFT_ALONE,   /* learned */
	ACCEL_NO_OTHER_END, /* accepted, but whoever connected is not in the map */
	ACCEL_AMBIGUOUS,    /* several pods have the address */
	/* a socket that must stay on TCP, before or after it has entered */
	ACCEL_MPTCP,
	ACCEL_ULP,
	ACCEL_ZEROCOPY,
	ACCEL_LOWAT,
	ACCEL_TURNED_BLOCKING,
	ACCEL_ENDED,	   /* reset or closed: nobody will read */
	ACCEL_ULP_REFUSED, /* TCP_ULP on a socket with bytes the short way: refused as without TLS
			    */
	/* a direction that goes by TCP for good */
	ACCEL_NEVER_DRAINED,
	ACCEL_PEER_UNKNOWN, /* no peer in the map after several sends */
	ACCEL_PEER_GONE,
	ACCEL_SPILL_LIMIT,    /* --accelerate-max-bytes or -messages outstanding */
	ACCEL_SPILL_POD,      /* the pod's budget */
	ACCEL_SPILL_NODE,     /* the node's */
	ACCEL_SPILL_PRESSURE, /* the kernel's TCP memory is under pressure */
	ACCEL_STOPPED,
	ACCEL_SLOWER,	      /* a trial has shown that TCP is faster here */
	ACCEL_BUDGET_CARRIED, /* a sender ended before its bytes were read: its claim waits for the
				 reader */
	/* a direction that goes the short way */
	ACCEL_SHORT_AT_ONCE,
	ACCEL_SHORT_LATER, /* after a start by TCP */
	ACCEL_EVENTS,
};

/* Guards that a test takes away to show that they are needed; the product has them all. */
enum accel_guard {
	GUARD_ORDER = 1 << 0,	     /* sticky, and drained before an upgrade: H1, 2 */
	GUARD_NO_DATA = 1 << 1,	     /* H2, H3 */
	GUARD_BYTES = 1 << 2,	     /* H4, 1 */
	GUARD_MESSAGES = 1 << 3,     /* H5 */
	GUARD_NETNS = 1 << 4,	     /* namespaces in the key: 8 */
	GUARD_ISN = 1 << 5,	     /* sequence numbers in the key: H7, 9 */
	GUARD_NONBLOCKING = 1 << 6,  /* 3 */
	GUARD_ZEROCOPY = 1 << 7,     /* H12 */
	GUARD_LOWAT = 1 << 8,	     /* H15 */
	GUARD_ULP = 1 << 9,	     /* H20 */
	GUARD_MPTCP = 1 << 10,	     /* H21 */
	GUARD_MISS_PASSES = 1 << 11, /* a lookup that misses goes by TCP */
	GUARD_STATE = 1 << 12,	     /* sends after shutdown, to reset peers */
	GUARD_PRESSURE = 1 << 13,
	GUARD_BUDGET = 1 << 14,
	GUARD_ALL = (1 << 15) - 1,
};

_Static_assert(sizeof(struct accel_pair_key) == 16, "accel_pair_key layout");
_Static_assert(sizeof(struct accel_end_key) == 64, "accel_end_key layout");
_Static_assert(sizeof(struct accel_acceptor_key) == 16, "accel_acceptor_key layout");

#endif
