/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ADVISE_ABI_H
#define SOCKMESH_ADVISE_ABI_H

/* Types that the adviser's BPF program shares with user space. Nothing of it is ever pinned. */
#include <linux/types.h>

enum { ADVISE_SYSCALLS = 512, ADVISE_COMM = 16, ADVISE_ROWS = 32, ADVISE_SOCKETS = 8192 };

/*
 * What a system call number means to the program; user space fills the table from its
 * <asm/unistd.h>. The numbers of 32-bit tasks mean other calls: ADVISE_MAYBE_32BIT marks those that
 * a 32-bit program's receive calls have, so that one is noticed.
 */
enum advise_syscall {
	ADVISE_OTHER,
	ADVISE_READ,	   /* read, readv, preadv2 */
	ADVISE_RECVFROM,   /* flags are the 4th argument: recvmmsg too */
	ADVISE_RECVMSG,	   /* flags are the 3rd */
	ADVISE_SENDTO,	   /* flags are the 4th: sendmmsg too */
	ADVISE_SENDMSG,	   /* flags are the 3rd */
	ADVISE_IOCTL,	   /* request is the 2nd */
	ADVISE_SPLICE,	   /* in is the 1st, out the 3rd */
	ADVISE_SENDFILE,   /* out is the 1st */
	ADVISE_SETSOCKOPT, /* level, name, value, size from the 2nd on */
	ADVISE_GETSOCKOPT,
	ADVISE_IO_URING,
	ADVISE_IO_SUBMIT,
	ADVISE_MAYBE_32BIT = 0x80,
};

/* What a process did to a TCP socket. */
enum advise_call {
	CALL_RECEIVE,	/* non-blocking, nothing special */
	CALL_SPLICE_TO, /* and sendfile(): harmless, but used */
	CALL_SENDFILE,
	CALL_SPLICE_FROM, /* from here on unsafe: CALL_FIRST_UNSAFE */
	CALL_FIONREAD,
	CALL_WAITALL,
	CALL_BLOCKING,
	CALL_RECEIVE_OOB,
	CALL_SEND_OOB,
	CALL_DISCARD, /* MSG_TRUNC */
	CALL_MSG_ZEROCOPY,
	CALL_SO_ZEROCOPY,
	CALL_SO_RCVLOWAT,
	CALL_SO_PEEK_OFF,
	CALL_TCP_ULP,
	CALL_TCP_INQ,
	CALL_ZEROCOPY_RECEIVE,
	CALL_IO_URING, /* from here on unknown: CALL_FIRST_UNKNOWN */
	CALL_IO_SUBMIT,
	CALL_32BIT,
	ADVISE_CALLS,
	CALL_FIRST_UNSAFE = CALL_SPLICE_FROM,
	CALL_FIRST_UNKNOWN = CALL_IO_URING,
};

/* advise_pods: key is the inode number of the network namespace, __u32. */
struct advise_pod {
	__u64 cookie; /* of the namespace, where the kernel has them: inode numbers return. 0: any
		       */
};

/* advise_exempt: processes that are not applications. */
struct advise_exempt_key {
	__u32 netns, uid;
};

/* advise_rows, advise_harmless: who did what. */
struct advise_row_key {
	__u32 call;		/* enum advise_call */
	char comm[ADVISE_COMM]; /* of the process, not of a thread */
};

struct advise_row { /* per CPU */
	__u64 count;
	__u32 pid; /* one of them; 0: none on this CPU */
	__u32 pad;
};

_Static_assert(sizeof(struct advise_row_key) == 20, "advise_row_key layout");
_Static_assert(sizeof(struct advise_row) == 16, "advise_row layout");

#endif
