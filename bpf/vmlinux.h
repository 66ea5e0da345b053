/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_VMLINUX_H
#define SOCKMESH_VMLINUX_H

/*
 * The few kernel types that we look into, each with only the members we read. CO-RE finds their
 * real offsets in the running kernel's BTF, so nothing here depends on the build host.
 */
#include <linux/bpf.h>

/* User-space layouts (bpf_bind takes them): fixed by the ABI, nothing to relocate. */
struct in_addr {
	__be32 s_addr;
};

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sockaddr_in {
	__u16 sin_family;
	__be16 sin_port;
	struct in_addr sin_addr;
	__u8 pad[8];
};

struct sockaddr_in6 {
	__u16 sin6_family;
	__be16 sin6_port;
	__be32 sin6_flowinfo;
	struct in6_addr sin6_addr;
	__u32 sin6_scope_id;
};

struct sockaddr;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 val;
} kgid_t;

struct cred {
	kuid_t fsuid;
	kgid_t fsgid;
};

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file {
	const struct cred *f_cred;
	unsigned int f_flags;
	struct inode *f_inode;
	void *private_data;
};

struct sock;

struct socket {
	struct file *file;
	struct sock *sk;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct list_head {
	struct list_head *next;
};

struct proto {
	unsigned long *memory_pressure;
};

struct sock_common {
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	__u16 skc_num;
	__be32 skc_rcv_saddr;
	struct in6_addr skc_v6_rcv_saddr;
	struct proto *skc_prot;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	int sk_rcvlowat;
	void *sk_user_data;
	struct mem_cgroup *sk_memcg;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	__u16 sk_type;
	__u16 sk_protocol;
	__u32 sk_mark;
};

struct mem_cgroup {
	unsigned long socket_pressure; /* jiffies; cgroup v2 */
	int tcpmem_pressure;	       /* cgroup v1 */
};

struct tcp_ulp_ops;
struct request_sock;

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_ulp_ops *icsk_ulp_ops;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 copied_seq;
	__u32 write_seq;
	struct request_sock *fastopen_rsk;
	__u8 is_mptcp : 1;
};

struct sk_psock {
	struct list_head ingress_msg;
};

struct bpf_iter_meta;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	__u32 uid;
};

struct nsproxy {
	struct net *net_ns;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct thread_info {
	unsigned long flags;
};

struct io_uring_task;

struct task_struct {
	struct thread_info thread_info;
	struct task_struct *group_leader;
	__u64 start_boottime;
	char comm[16];
	struct files_struct *files;
	struct io_uring_task *io_uring;
	struct nsproxy *nsproxy;
};

#pragma clang attribute pop

enum { AF_INET = 2, AF_INET6 = 10 };

#endif
