/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a command as a node does that denies something to it: with a seccomp filter, with less
 * locked memory.
 *
 *   denied [--bpf] [--netfilter-netlink] [--memlock BYTES] COMMAND...
 *
 * --bpf: bpf(2) answers EPERM, as where seccomp or lockdown forbids it. --netfilter-netlink:
 * netlink sockets of netfilter cannot be opened (EPROTONOSUPPORT), as in a kernel that has neither
 * nf_tables nor ctnetlink; iptables of the legacy kind does not need them. --memlock: that much
 * locked memory, and no capability to ask for more.
 */
#include <err.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
enum { NATIVE_ARCH = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { NATIVE_ARCH = AUDIT_ARCH_AARCH64 };
#else
#error "which architecture does seccomp report here?"
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* The low half of a system call's argument; both architectures are little-endian. */
#define LOAD_ARGUMENT(n) LOAD(args[n])
/* Goes on when equal, else skips `n` instructions. */
#define UNLESS_EQUAL_SKIP(value, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (n))
#define ANSWER(action)		    BPF_STMT(BPF_RET | BPF_K, (action))
#define FAIL_WITH(error)	    ANSWER(SECCOMP_RET_ERRNO | (error))

static void install(struct sock_filter *filter, size_t n)
{
	struct sock_fprog program = {.len = (unsigned short)n, .filter = filter};

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		err(1, "seccomp");
}

static void deny_bpf(void)
{
	struct sock_filter filter[] = {
		LOAD(arch),	  UNLESS_EQUAL_SKIP(NATIVE_ARCH, 3),
		LOAD(nr),	  UNLESS_EQUAL_SKIP(SYS_bpf, 1),
		FAIL_WITH(EPERM), ANSWER(SECCOMP_RET_ALLOW),
	};

	install(filter, sizeof(filter) / sizeof(filter[0]));
}

static void deny_netfilter_netlink(void)
{
	struct sock_filter filter[] = {
		LOAD(arch),
		UNLESS_EQUAL_SKIP(NATIVE_ARCH, 7),
		LOAD(nr),
		UNLESS_EQUAL_SKIP(SYS_socket, 5),
		LOAD_ARGUMENT(0),
		UNLESS_EQUAL_SKIP(AF_NETLINK, 3),
		LOAD_ARGUMENT(2),
		UNLESS_EQUAL_SKIP(NETLINK_NETFILTER, 1),
		FAIL_WITH(EPROTONOSUPPORT),
		ANSWER(SECCOMP_RET_ALLOW),
	};

	install(filter, sizeof(filter) / sizeof(filter[0]));
}

/* From what execve() gives a root process too: a limit that may be raised is none. */
static void limit_locked_memory(rlim_t bytes)
{
	struct rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};

	if (prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE) < 0)
		err(1, "drop CAP_SYS_RESOURCE");
	if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0)
		err(1, "RLIMIT_MEMLOCK");
}

int main(int argc, char **argv)
{
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--bpf"))
			deny_bpf();
		else if (!strcmp(argv[i], "--netfilter-netlink"))
			deny_netfilter_netlink();
		else if (!strcmp(argv[i], "--memlock") && i + 1 < argc)
			limit_locked_memory(strtoull(argv[++i], NULL, 10));
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (i >= argc)
		errx(2, "usage: denied [--bpf] [--netfilter-netlink] [--memlock BYTES] COMMAND...");
	execvp(argv[i], argv + i);
	err(127, "%s", argv[i]);
}
