// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

/*
 * The adviser's eyes: counts what the applications of some pods do to TCP sockets, at the entry of
 * system calls. It runs at every system call of the node while a pod is watched, so the number of
 * the call is looked at first, then the namespace, and only then anything else. What is asked for
 * counts, not what comes of it: a call that fails here may succeed on the next node.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "advise_abi.h"

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile __u8 syscalls[ADVISE_SYSCALLS]; /* enum advise_syscall */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct advise_pod);
} advise_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct advise_exempt_key);
	__type(value, __u32);
} advise_exempt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADVISE_CALLS);
	__type(key, __u32);
	__type(value, __u64);
} advise_totals SEC(".maps");

/* Apart from each other, so that harmless callers cannot crowd out the others. */
struct advise_rows_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, ADVISE_ROWS);
	__type(key, struct advise_row_key);
	__type(value, struct advise_row);
} advise_rows SEC(".maps"), advise_harmless SEC(".maps");

/* Sockets that something was received from, by their inode number, which is not used twice. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ADVISE_SOCKETS);
	__type(key, __u64);
	__type(value, __u32);
} advise_sockets SEC(".maps");

/* User-space ABI, the same on every architecture that we run on. */
enum {
	O_NONBLOCK = 04000,
	S_IFMT = 0170000,
	S_IFSOCK = 0140000,
	SOCK_STREAM = 1,
	TCP_LISTEN = 10,
	MSG_OOB = 0x1,
	MSG_TRUNC = 0x20,
	MSG_DONTWAIT = 0x40,
	MSG_WAITALL = 0x100,
	MSG_ERRQUEUE = 0x2000,
	MSG_ZEROCOPY = 0x4000000,
	FIONREAD = 0x541B,
	SOL_SOCKET = 1,
	SO_RCVLOWAT = 18,
	SO_PEEK_OFF = 42,
	SO_ZEROCOPY = 60,
	IPPROTO_TCP = 6,
	TCP_ULP = 31,
	TCP_ZEROCOPY_RECEIVE = 35,
	TCP_INQ = 36,
	X32_SYSCALL_BIT = 0x40000000,
};

/* ---- what differs between architectures: the running kernel's BTF says which it is ---- */

struct pt_regs___x86 {
	unsigned long di, si, dx, r10, r8;
} __attribute__((preserve_access_index));

struct pt_regs___arm64 {
	__u64 regs[31];
	__u64 orig_x0;
} __attribute__((preserve_access_index));

struct thread_info___x86 {
	__u32 status;
} __attribute__((preserve_access_index));

struct task_struct___x86 {
	struct thread_info___x86 thread_info;
} __attribute__((preserve_access_index));

enum { X86_TS_COMPAT = 0x2, ARM64_TIF_32BIT = 1 << 22 };

/* The nth argument of the system call, from 1 on; n is a constant. */
static __always_inline __u64 argument(const void *regs, int n)
{
	const struct pt_regs___x86 *x86 = regs;
	const struct pt_regs___arm64 *arm64 = regs;

	if (!bpf_core_field_exists(struct pt_regs___x86, di))
		return n == 1	? BPF_CORE_READ(arm64, orig_x0)
		       : n == 2 ? BPF_CORE_READ(arm64, regs[1])
		       : n == 3 ? BPF_CORE_READ(arm64, regs[2])
		       : n == 4 ? BPF_CORE_READ(arm64, regs[3])
				: BPF_CORE_READ(arm64, regs[4]);
	return n == 1	? BPF_CORE_READ(x86, di)
	       : n == 2 ? BPF_CORE_READ(x86, si)
	       : n == 3 ? BPF_CORE_READ(x86, dx)
	       : n == 4 ? BPF_CORE_READ(x86, r10)
			: BPF_CORE_READ(x86, r8);
}

static __always_inline int is_32bit(__u64 number)
{
	const struct task_struct *task = (const struct task_struct *)bpf_get_current_task();
	const struct task_struct___x86 *x86 = (const void *)task;

	if (bpf_core_field_exists(struct thread_info___x86, status))
		return (number & X32_SYSCALL_BIT) ||
		       (BPF_CORE_READ(x86, thread_info.status) & X86_TS_COMPAT);
	return !!(BPF_CORE_READ(task, thread_info.flags) & ARM64_TIF_32BIT);
}

/* ---- who calls ---- */

/* Typed pointers are read without a helper: since Linux 5.11. */
#define HAVE_TYPED_TASK bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)

/* On the way of many calls of the whole node. */
static __always_inline __u32 netns_of_caller(void)
{
	const struct task_struct *task;

	if (HAVE_TYPED_TASK) {
		task = bpf_get_current_task_btf();
		return task->nsproxy->net_ns->ns.inum;
	}
	task = (const struct task_struct *)bpf_get_current_task();
	return BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
}

static __always_inline int is_watched(void)
{
	struct advise_exempt_key who = {.netns = netns_of_caller()};
	const struct advise_pod *pod = bpf_map_lookup_elem(&advise_pods, &who.netns);
	const struct task_struct *task;

	if (!pod)
		return 0;
	task = (const struct task_struct *)bpf_get_current_task();
	if (pod->cookie && bpf_core_field_exists(struct net, net_cookie) &&
	    pod->cookie != BPF_CORE_READ(task, nsproxy, net_ns, net_cookie))
		return 0; /* another namespace, with the number of one that has ended */
	who.uid = (__u32)bpf_get_current_uid_gid();
	return !bpf_map_lookup_elem(&advise_exempt, &who);
}

/* ---- on which socket ---- */

struct tcp_file {
	__u64 inode;
	int blocking, listening;
};

static __always_inline const struct file *file_of_caller(__u32 fd)
{
	const struct task_struct *task;
	const struct file *file = NULL;
	struct file **slots;
	__u32 n;

	if (HAVE_TYPED_TASK) {
		task = bpf_get_current_task_btf();
		n = task->files->fdt->max_fds;
		slots = task->files->fdt->fd;
	} else {
		task = (const struct task_struct *)bpf_get_current_task();
		n = BPF_CORE_READ(task, files, fdt, max_fds);
		slots = BPF_CORE_READ(task, files, fdt, fd);
	}
	if (fd < n)
		bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* 0: not a TCP socket's descriptor. */
static __noinline int tcp_file_of(__u32 fd, struct tcp_file *ret)
{
	const struct file *file = file_of_caller(fd);
	const struct socket *socket;
	const struct sock *sk;
	__u16 family;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data); /* NULL: opened with O_PATH */
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if ((family != AF_INET && family != AF_INET6) ||
	    BPF_CORE_READ(sk, sk_type) != SOCK_STREAM ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	ret->inode = BPF_CORE_READ(file, f_inode, i_ino);
	ret->blocking = !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK);
	ret->listening = BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN;
	return 1;
}

/* ---- what it does ---- */

/* The process's, not that of one of its threads. */
static __always_inline void read_name(char name[ADVISE_COMM])
{
	const struct task_struct *task, *leader;

	if (HAVE_TYPED_TASK) {
		task = bpf_get_current_task_btf();
		bpf_probe_read_kernel_str(name, ADVISE_COMM, task->group_leader->comm);
		return;
	}
	task = (const struct task_struct *)bpf_get_current_task();
	leader = BPF_CORE_READ(task, group_leader);
	bpf_core_read_str(name, ADVISE_COMM, &leader->comm);
}

static __always_inline void count_row(void *map, __u32 call)
{
	struct advise_row_key key = {.call = call};
	struct advise_row fresh = {.count = 1}, *row;

	read_name(key.comm);
	row = bpf_map_lookup_elem(map, &key);
	if (!row) {
		fresh.pid = bpf_get_current_pid_tgid() >> 32;
		if (!bpf_map_update_elem(map, &key, &fresh, BPF_NOEXIST))
			return;
		row = bpf_map_lookup_elem(map, &key); /* another CPU was first, or it is full */
	}
	if (!row)
		return;
	row->count++; /* this CPU's */
	if (!row->pid)
		row->pid = bpf_get_current_pid_tgid() >> 32;
}

static __noinline void record(__u32 call)
{
	__u64 *total = bpf_map_lookup_elem(&advise_totals, &call);

	if (total)
		++*total;
	if (call < CALL_FIRST_UNSAFE)
		count_row(&advise_harmless, call);
	else
		count_row(&advise_rows, call);
}

/* Of this thread: what goes through them is not seen, and may need no system call at all. */
static __always_inline int has_rings(void)
{
	const struct task_struct *task = (const struct task_struct *)bpf_get_current_task();

	return bpf_core_field_exists(task->io_uring) && BPF_CORE_READ(task, io_uring);
}

static __always_inline __u32 receive_call(__u32 flags, const struct tcp_file *file)
{
	if (flags & MSG_OOB)
		return CALL_RECEIVE_OOB;
	if (flags & MSG_TRUNC)
		return CALL_DISCARD;
	if (flags & MSG_WAITALL)
		return CALL_WAITALL;
	if (file->blocking && !(flags & MSG_DONTWAIT))
		return CALL_BLOCKING;
	return CALL_RECEIVE;
}

static __always_inline void on_receive(__u32 fd, __u32 flags)
{
	struct tcp_file file;
	__u32 one = 1;

	/* The error queue is not the stream, and reading it never blocks. */
	if ((flags & MSG_ERRQUEUE) || !tcp_file_of(fd, &file) || file.listening)
		return;
	if (!bpf_map_lookup_elem(&advise_sockets, &file.inode))
		bpf_map_update_elem(&advise_sockets, &file.inode, &one, BPF_ANY);
	record(receive_call(flags, &file));
	if (has_rings())
		record(CALL_IO_URING);
}

static __always_inline void on_descriptor(__u32 fd, __u32 call)
{
	struct tcp_file file;

	if (tcp_file_of(fd, &file))
		record(call);
}

static __always_inline void on_send(__u32 fd, __u32 flags)
{
	if (flags & MSG_OOB)
		on_descriptor(fd, CALL_SEND_OOB);
	if (flags & MSG_ZEROCOPY)
		on_descriptor(fd, CALL_MSG_ZEROCOPY);
}

static __always_inline void on_splice(__u32 in, __u32 out)
{
	on_descriptor(in, CALL_SPLICE_FROM);
	on_descriptor(out, CALL_SPLICE_TO);
}

/* The option's value; `otherwise` when it cannot be read just now. */
static __always_inline int option_value(const void *regs, int otherwise)
{
	int value = otherwise;

	if ((__u32)argument(regs, 5) < sizeof(value) ||
	    bpf_probe_read_user(&value, sizeof(value),
				(const void *)(unsigned long)argument(regs, 4)))
		return otherwise;
	return value;
}

static __always_inline void on_setsockopt(const void *regs)
{
	__u32 level = argument(regs, 2), name = argument(regs, 3);

	/* The default values are harmless. */
	if (level == SOL_SOCKET && name == SO_RCVLOWAT && option_value(regs, 2) > 1)
		on_descriptor(argument(regs, 1), CALL_SO_RCVLOWAT);
	else if (level == SOL_SOCKET && name == SO_ZEROCOPY && option_value(regs, 1))
		on_descriptor(argument(regs, 1), CALL_SO_ZEROCOPY);
	else if (level == SOL_SOCKET && name == SO_PEEK_OFF && option_value(regs, 0) >= 0)
		on_descriptor(argument(regs, 1), CALL_SO_PEEK_OFF);
	else if (level == IPPROTO_TCP && name == TCP_ULP)
		on_descriptor(argument(regs, 1), CALL_TCP_ULP);
	else if (level == IPPROTO_TCP && name == TCP_INQ && option_value(regs, 1))
		on_descriptor(argument(regs, 1), CALL_TCP_INQ);
}

static __always_inline void on_getsockopt(const void *regs)
{
	if ((__u32)argument(regs, 2) == IPPROTO_TCP &&
	    (__u32)argument(regs, 3) == TCP_ZEROCOPY_RECEIVE)
		on_descriptor(argument(regs, 1), CALL_ZEROCOPY_RECEIVE);
}

static __always_inline void on_call(__u8 call, const void *regs)
{
	switch (call) {
	case ADVISE_READ:
		return on_receive(argument(regs, 1), 0);
	case ADVISE_RECVFROM:
		return on_receive(argument(regs, 1), argument(regs, 4));
	case ADVISE_RECVMSG:
		return on_receive(argument(regs, 1), argument(regs, 3));
	case ADVISE_SENDTO:
		return on_send(argument(regs, 1), argument(regs, 4));
	case ADVISE_SENDMSG:
		return on_send(argument(regs, 1), argument(regs, 3));
	case ADVISE_IOCTL:
		if ((__u32)argument(regs, 2) == FIONREAD)
			on_descriptor(argument(regs, 1), CALL_FIONREAD);
		return;
	case ADVISE_SPLICE:
		return on_splice(argument(regs, 1), argument(regs, 3));
	case ADVISE_SENDFILE:
		return on_descriptor(argument(regs, 1), CALL_SENDFILE);
	case ADVISE_SETSOCKOPT:
		return on_setsockopt(regs);
	case ADVISE_GETSOCKOPT:
		return on_getsockopt(regs);
	case ADVISE_IO_URING:
		return record(CALL_IO_URING);
	case ADVISE_IO_SUBMIT:
		return record(CALL_IO_SUBMIT);
	}
}

SEC("raw_tp/sys_enter")
int advise_enter(struct bpf_raw_tracepoint_args *ctx)
{
	const void *regs = (const void *)(unsigned long)ctx->args[0];
	__u64 number = ctx->args[1];
	__u8 call;

	/* x32's numbers have a bit of their own; a call that was called off has the number -1. */
	call = number < ADVISE_SYSCALLS ? syscalls[number]
	       : (number >> 30) == 1	? ADVISE_MAYBE_32BIT
					: ADVISE_OTHER;
	if (call == ADVISE_OTHER)
		return 0;
	if (!is_watched())
		return 0;
	if (is_32bit(number)) {
		if (call & ADVISE_MAYBE_32BIT)
			record(CALL_32BIT);
		return 0;
	}
	on_call(call & ~ADVISE_MAYBE_32BIT, regs);
	return 0;
}
