/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel_probe.h"

#include "cgroup.h"
#include "error.h"
#include "locked_memory.h"
#include "netfilter_probe.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

#define N_ELEMENTS(array) (sizeof(array) / sizeof((array)[0]))

/* ---- trying ------------------------------------------------------------------------------------
 */

struct attempt {
	const char *bpffs_dir;
	const char *cgroup; /* "" when there is none */
	int cgroup_error;
};

struct facility_test;

/* Returns whether it works; writes what was seen to detail. */
typedef bool (*try_fn)(const struct facility_test *test, const struct attempt *attempt,
		       char *detail, size_t size);

struct facility_test {
	const char *name, *how, *without;
	bool required;
	/* Required only where that facility, earlier in the table, was found, or was not. */
	const char *with_facility, *without_facility;
	try_fn try;
	enum bpf_prog_type prog_type;
	enum bpf_attach_type attach_type;
	enum bpf_func_id helper;
	enum bpf_map_type map_type;
};

static void describe_errno(int error, char *detail, size_t size)
{
	snprintf(detail, size, "%s", strerror(error));
}

/* r0 = value; exit: the shortest program that every hook takes. */
static int load_constant(enum bpf_prog_type type, enum bpf_attach_type attach_type, int value)
{
	const struct bpf_insn insns[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = value},
		{.code = BPF_JMP | BPF_EXIT},
	};
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = attach_type);

	return bpf_prog_load(type, "sockmesh_probe", "GPL", insns, N_ELEMENTS(insns), &opts);
}

/*
 * Loads a program and attaches it by a bpf_link to no descriptor. A kernel that knows the hook,
 * and links on it, gets as far as the descriptor: EBADF. Others say EINVAL before that.
 */
static bool try_hook(const struct facility_test *test, const struct attempt *attempt, char *detail,
		     size_t size)
{
	scoped_fd int prog = load_constant(test->prog_type, test->attach_type, 1);
	scoped_fd int link = -1;

	(void)attempt;
	if (prog < 0) {
		snprintf(detail, size, "load: %s", strerror(errno));
		return false;
	}
	link = bpf_link_create(prog, -1, test->attach_type, NULL);
	if (link < 0 && errno == EBADF)
		return true;
	snprintf(detail, size, "attach: %s", strerror(errno));
	return false;
}

/*
 * Loads a program that calls the helper without arguments. A verifier that knows the helper
 * complains about the arguments; one that does not says so, in words that changed over time.
 * 1, 0, or -errno when the verifier was never reached.
 */
static int knows_helper(enum bpf_prog_type type, enum bpf_attach_type attach_type, __u32 btf_id,
			enum bpf_func_id helper)
{
	static const char *const unknown[] = {"invalid func ", "unknown func ",
					      "cannot use helper"};
	const struct bpf_insn insns[] = {
		{.code = BPF_JMP | BPF_CALL, .imm = helper},
		{.code = BPF_JMP | BPF_EXIT},
	};
	char log[4096] = "";
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = attach_type,
		    .attach_btf_id = btf_id, .log_buf = log, .log_size = sizeof(log),
		    .log_level = 1);
	scoped_fd int prog =
		bpf_prog_load(type, "sockmesh_probe", "GPL", insns, N_ELEMENTS(insns), &opts);
	int error = errno;

	if (prog >= 0)
		return 1;
	if (!*log)
		return -error;
	for (size_t i = 0; i < N_ELEMENTS(unknown); i++)
		if (strstr(log, unknown[i]))
			return 0;
	return 1;
}

static bool try_helper(const struct facility_test *test, const struct attempt *attempt,
		       char *detail, size_t size)
{
	int knows = knows_helper(test->prog_type, test->attach_type, 0, test->helper);

	(void)attempt;
	if (knows < 0)
		describe_errno(-knows, detail, size);
	else if (!knows)
		snprintf(detail, size, "not for this kind of program");
	return knows == 1;
}

static bool try_map(const struct facility_test *test, const struct attempt *attempt, char *detail,
		    size_t size)
{
	int r = libbpf_probe_bpf_map_type(test->map_type, NULL);

	(void)attempt;
	if (r < 0)
		describe_errno(-r, detail, size);
	return r == 1;
}

/* Charged against RLIMIT_MEMLOCK before 5.11, against the memory cgroup after. */
static bool try_map_memory(const struct facility_test *test, const struct attempt *attempt,
			   char *detail, size_t size)
{
	enum { VALUE = 4096, ENTRIES = 2048 };
	struct error limit = {0};
	scoped_fd int map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "sockmesh_probe", sizeof(__u32),
					   VALUE, ENTRIES, NULL);

	(void)test;
	(void)attempt;
	if (map < 0)
		describe_errno(errno, detail, size);
	if (map < 0 && locked_memory_check(&limit))
		snprintf(detail, size, "%s", limit.text);
	return map >= 0;
}

static bool try_netns_cookie(const struct facility_test *test, const struct attempt *attempt,
			     char *detail, size_t size)
{
	scoped_fd int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	(void)test;
	(void)attempt;
	if (sock < 0 || getsockopt(sock, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) < 0) {
		describe_errno(errno, detail, size);
		return false;
	}
	return true;
}

static bool try_btf(const struct facility_test *test, const struct attempt *attempt, char *detail,
		    size_t size)
{
	static const char path[] = "/sys/kernel/btf/vmlinux";

	(void)test;
	(void)attempt;
	if (access(path, R_OK) < 0) {
		snprintf(detail, size, "%s: %s", path, strerror(errno));
		return false;
	}
	snprintf(detail, size, "%s", path);
	return true;
}

/*
 * Attaching an iterator makes something that nobody runs until it is read. Ours asks for the cookie
 * of what it finds, and marks it.
 */
static bool try_tcp_iterator(const struct facility_test *test, const struct attempt *attempt,
			     char *detail, size_t size)
{
	const struct bpf_insn insns[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};
	static const enum bpf_func_id helpers[] = {BPF_FUNC_get_socket_cookie,
						   BPF_FUNC_sk_storage_get};
	int id = libbpf_find_vmlinux_btf_id("tcp", BPF_TRACE_ITER);
	scoped_fd int prog = -1, link = -1;

	(void)test;
	(void)attempt;
	if (id < 0) {
		snprintf(detail, size, "no bpf_iter_tcp in the kernel's BTF");
		return false;
	}
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = BPF_TRACE_ITER,
		    .attach_btf_id = (__u32)id);
	prog = bpf_prog_load(BPF_PROG_TYPE_TRACING, "sockmesh_probe", "GPL", insns,
			     N_ELEMENTS(insns), &opts);
	if (prog >= 0)
		link = bpf_link_create(prog, 0, BPF_TRACE_ITER, NULL);
	if (link < 0) {
		snprintf(detail, size, "%s: %s", prog < 0 ? "load" : "attach", strerror(errno));
		return false;
	}
	for (size_t i = 0; i < N_ELEMENTS(helpers); i++)
		if (knows_helper(BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER, (__u32)id, helpers[i]) !=
		    1) {
			snprintf(detail, size, "there, but it cannot ask and mark a socket");
			return false;
		}
	return true;
}

/* What stands in for the iterator: a program that is run once, in a pod's namespace. */
static bool try_listener_lookup(const struct facility_test *test, const struct attempt *attempt,
				char *detail, size_t size)
{
	static const unsigned char frame[64];
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = sizeof(frame));
	scoped_fd int prog = load_constant(BPF_PROG_TYPE_SCHED_CLS, 0, 0);

	(void)test;
	(void)attempt;
	if (prog < 0 || bpf_prog_test_run_opts(prog, &opts)) {
		snprintf(detail, size, "%s: %s", prog < 0 ? "load" : "run", strerror(errno));
		return false;
	}
	if (knows_helper(BPF_PROG_TYPE_SCHED_CLS, 0, 0, BPF_FUNC_sk_lookup_tcp) != 1 ||
	    knows_helper(BPF_PROG_TYPE_SCHED_CLS, 0, 0, BPF_FUNC_sk_storage_get) != 1) {
		snprintf(detail, size, "it cannot look up or mark a socket");
		return false;
	}
	return true;
}

/* The nearest directory of the path that exists. */
static int stat_file_system(const char *path, struct statfs *ret)
{
	char part[PATH_MAX];

	snprintf(part, sizeof(part), "%s", path);
	while (statfs(part, ret) < 0) {
		char *slash = strrchr(part, '/');

		if (errno != ENOENT || !slash || slash == part)
			return -errno;
		*slash = '\0';
	}
	return 0;
}

/* There already, or a mount that is attached nowhere and goes with its descriptor. */
static bool try_bpffs(const struct facility_test *test, const struct attempt *attempt, char *detail,
		      size_t size)
{
	scoped_fd int context = -1, mount = -1;
	struct statfs fs;

	(void)test;
	if (stat_file_system(attempt->bpffs_dir, &fs) == 0 &&
	    (unsigned long)fs.f_type == BPF_FS_MAGIC) {
		snprintf(detail, size, "%s is on one", attempt->bpffs_dir);
		return true;
	}
	context = fsopen("bpf", FSOPEN_CLOEXEC);
	if (context >= 0 && fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
		mount = fsmount(context, FSMOUNT_CLOEXEC, 0);
	if (mount < 0) {
		snprintf(detail, size, "%s is not on one, and mounting: %s", attempt->bpffs_dir,
			 strerror(errno));
		return false;
	}
	snprintf(detail, size, "can be mounted on %s", attempt->bpffs_dir);
	return true;
}

static bool try_cgroup2(const struct facility_test *test, const struct attempt *attempt,
			char *detail, size_t size)
{
	(void)test;
	if (!*attempt->cgroup) {
		describe_errno(attempt->cgroup_error, detail, size);
		return false;
	}
	snprintf(detail, size, "%.120s", attempt->cgroup);
	return true;
}

static bool try_jit(const struct facility_test *test, const struct attempt *attempt, char *detail,
		    size_t size)
{
	scoped_file FILE *file = fopen("/proc/sys/net/core/bpf_jit_enable", "re");
	int value = 0;

	(void)test;
	(void)attempt;
	if (!file || fscanf(file, "%d", &value) != 1) {
		snprintf(detail, size, "net.core.bpf_jit_enable cannot be read");
		return false;
	}
	snprintf(detail, size, "net.core.bpf_jit_enable is %d", value);
	return value > 0;
}

/* ---- the table ---------------------------------------------------------------------------------
 */

#define BY_LINK "loaded a program and linked it to no descriptor"
#define BY_CALL "loaded a program that calls it"
#define BY_MAP	"created one"

#define HOOK(name_, prog_, attach_, required_, without_)                                           \
	{                                                                                          \
		.name = (name_), .how = BY_LINK, .without = (without_), .required = (required_),   \
		.try = try_hook, .prog_type = (prog_), .attach_type = (attach_)                    \
	}
#define HELPER(name_, helper_, prog_, attach_, required_, without_)                                \
	{                                                                                          \
		.name = (name_), .how = BY_CALL, .without = (without_), .required = (required_),   \
		.try = try_helper, .prog_type = (prog_), .attach_type = (attach_),                 \
		.helper = (helper_)                                                                \
	}
/* The programs call it where namespaces have cookies: see netns_numbered_by_inode(). */
#define NETNS_COOKIE(name_, prog_, attach_, without_)                                              \
	{                                                                                          \
		.name = (name_), .how = BY_CALL, .without = (without_),                            \
		.with_facility = "SO_NETNS_COOKIE", .try = try_helper, .prog_type = (prog_),       \
		.attach_type = (attach_), .helper = BPF_FUNC_get_netns_cookie                      \
	}
#define MAP(name_, map_, without_)                                                                 \
	{                                                                                          \
		.name = (name_), .how = BY_MAP, .without = (without_), .required = true,           \
		.try = try_map, .map_type = (map_)                                                 \
	}
#define CUSTOM(name_, try_, required_, how_, without_)                                             \
	{                                                                                          \
		.name = (name_), .how = (how_), .without = (without_), .required = (required_),    \
		.try = (try_)                                                                      \
	}

#define SOCK_ADDR BPF_PROG_TYPE_CGROUP_SOCK_ADDR
#define CONNECT4  BPF_CGROUP_INET4_CONNECT
#define SOCKOPT	  BPF_PROG_TYPE_CGROUP_SOCKOPT
#define SOCK_OPS  BPF_PROG_TYPE_SOCK_OPS
#define SK_LOOKUP BPF_PROG_TYPE_SK_LOOKUP

static const struct facility_test tests[] = {
	CUSTOM("cgroup2", try_cgroup2, true, "looked for the mount", "nothing to attach to"),
	CUSTOM("bpffs", try_bpffs, true, "mounted one without a place",
	       "redirection would end with the agent"),
	CUSTOM("BTF", try_btf, true, "opened the file",
	       "programs cannot be fitted to this kernel's structures"),
	CUSTOM("memory for maps", try_map_memory, true, "created a map of 8 MiB",
	       "maps cannot be made: raise RLIMIT_MEMLOCK or the memory limit"),
	CUSTOM("JIT", try_jit, false, "read the sysctl",
	       "programs are interpreted, which is slower"),

	HOOK("cgroup/connect4", SOCK_ADDR, CONNECT4, true,
	     "outbound IPv4 connections cannot be redirected"),
	HOOK("cgroup/connect6", SOCK_ADDR, BPF_CGROUP_INET6_CONNECT, true,
	     "outbound IPv6 connections cannot be redirected"),
	HOOK("cgroup/sendmsg4", SOCK_ADDR, BPF_CGROUP_UDP4_SENDMSG, true,
	     "DNS over IPv4 cannot be captured"),
	HOOK("cgroup/sendmsg6", SOCK_ADDR, BPF_CGROUP_UDP6_SENDMSG, true,
	     "DNS over IPv6 cannot be captured"),
	HOOK("cgroup/recvmsg4", SOCK_ADDR, BPF_CGROUP_UDP4_RECVMSG, true,
	     "captured DNS answers over IPv4 would come from a stranger"),
	HOOK("cgroup/recvmsg6", SOCK_ADDR, BPF_CGROUP_UDP6_RECVMSG, true,
	     "captured DNS answers over IPv6 would come from a stranger"),
	HOOK("cgroup/getpeername4", SOCK_ADDR, BPF_CGROUP_INET4_GETPEERNAME, true,
	     "applications would see the proxy as their IPv4 peer"),
	HOOK("cgroup/getpeername6", SOCK_ADDR, BPF_CGROUP_INET6_GETPEERNAME, true,
	     "applications would see the proxy as their IPv6 peer"),
	HOOK("cgroup/getsockopt", SOCKOPT, BPF_CGROUP_GETSOCKOPT, true,
	     "proxies cannot ask for the original destination"),
	HOOK("sockops", SOCK_OPS, BPF_CGROUP_SOCK_OPS, true,
	     "the original destination cannot be handed over to the proxy"),
	HOOK("sk_lookup", SK_LOOKUP, BPF_SK_LOOKUP, true,
	     "inbound connections cannot be redirected"),
	CUSTOM("iter/tcp", try_tcp_iterator, false, "attached an iterator, read nothing",
	       "proxies that listened before the agent are found by lookups instead"),
	{.name = "listener lookup",
	 .how = "ran a program once",
	 .without = "proxies that listened before the agent started could not be found",
	 .without_facility = "iter/tcp",
	 .try = try_listener_lookup},

	CUSTOM("SO_NETNS_COOKIE", try_netns_cookie, false, "asked for ours",
	       "network namespaces are told apart by inode number, and held while pods run"),
	NETNS_COOKIE("netns cookie in connect", SOCK_ADDR, CONNECT4,
		     "programs cannot tell which pod opens a connection"),
	NETNS_COOKIE("netns cookie in sockops", SOCK_OPS, BPF_CGROUP_SOCK_OPS,
		     "equal loopback addresses of two pods cannot be told apart"),
	NETNS_COOKIE("netns cookie in getsockopt", SOCKOPT, BPF_CGROUP_GETSOCKOPT,
		     "answered questions for the original destination cannot be counted"),
	HELPER("bpf_bind", BPF_FUNC_bind, SOCK_ADDR, CONNECT4, true,
	       "proxies would see loopback as the source of every connection"),
	HELPER("bpf_sk_assign", BPF_FUNC_sk_assign, SK_LOOKUP, BPF_SK_LOOKUP, true,
	       "inbound connections cannot be redirected"),
	HELPER("socket storage in connect", BPF_FUNC_sk_storage_get, SOCK_ADDR, CONNECT4, true,
	       "the original destination cannot be kept"),
	HELPER("socket storage in sockops", BPF_FUNC_sk_storage_get, SOCK_OPS, BPF_CGROUP_SOCK_OPS,
	       true, "the original destination cannot be handed over to the proxy"),
	HELPER("socket storage in getsockopt", BPF_FUNC_sk_storage_get, SOCKOPT,
	       BPF_CGROUP_GETSOCKOPT, true, "proxies cannot ask for the original destination"),
	HELPER("reading kernel memory", BPF_FUNC_probe_read_kernel, SOCK_ADDR, CONNECT4, true,
	       "the user that opened a socket cannot be known (kernel lockdown?)"),

	MAP("socket storage", BPF_MAP_TYPE_SK_STORAGE, "the original destination cannot be kept"),
	MAP("sockhash", BPF_MAP_TYPE_SOCKHASH, "the proxy's listeners cannot be found"),
	MAP("LPM trie", BPF_MAP_TYPE_LPM_TRIE, "lists of address ranges cannot be looked up"),
	MAP("ring buffer", BPF_MAP_TYPE_RINGBUF, "programs cannot tell the agent about events"),
};

static bool found_earlier(const struct kernel_probe *probe, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(probe->facilities[i].name, name) == 0)
			return probe->facilities[i].found;
	return false;
}

static bool is_required(const struct kernel_probe *probe, size_t i)
{
	const struct facility_test *test = &tests[i];

	if (test->with_facility)
		return found_earlier(probe, i, test->with_facility);
	if (test->without_facility)
		return !found_earlier(probe, i, test->without_facility);
	return test->required;
}

static void run_tests(const struct attempt *attempt, struct kernel_probe *probe)
{
	for (size_t i = 0; i < N_ELEMENTS(tests); i++) {
		struct probe_facility *facility = &probe->facilities[i];

		facility->name = tests[i].name;
		facility->engine = "ebpf";
		facility->how = tests[i].how;
		facility->without = tests[i].without;
		facility->required = is_required(probe, i);
		facility->found = tests[i].try(&tests[i], attempt, facility->detail,
					       sizeof(facility->detail));
	}
	probe->n_facilities = N_ELEMENTS(tests);
}

static void summarise(struct kernel_probe *probe)
{
	size_t used, missing = 0;

	snprintf(probe->summary, sizeof(probe->summary), "the eBPF engine cannot run without ");
	used = strlen(probe->summary);
	for (size_t i = 0; i < probe->n_facilities; i++) {
		const struct probe_facility *facility = &probe->facilities[i];

		if (facility->found || !facility->required)
			continue;
		snprintf(probe->summary + used, sizeof(probe->summary) - used, "%s%s",
			 missing++ ? ", " : "", facility->name);
		used = strlen(probe->summary);
	}
	probe->ebpf = missing == 0;
	if (probe->ebpf)
		snprintf(probe->summary, sizeof(probe->summary),
			 "everything that the eBPF engine needs is there");
}

/* ---- programs of others ------------------------------------------------------------------------
 */

static const struct {
	enum bpf_attach_type type;
	const char *name;
} our_hooks[] = {
	{BPF_CGROUP_INET4_CONNECT, "connect4"},
	{BPF_CGROUP_INET6_CONNECT, "connect6"},
	{BPF_CGROUP_UDP4_SENDMSG, "sendmsg4"},
	{BPF_CGROUP_UDP6_SENDMSG, "sendmsg6"},
	{BPF_CGROUP_UDP4_RECVMSG, "recvmsg4"},
	{BPF_CGROUP_UDP6_RECVMSG, "recvmsg6"},
	{BPF_CGROUP_INET4_GETPEERNAME, "getpeername4"},
	{BPF_CGROUP_INET6_GETPEERNAME, "getpeername6"},
	{BPF_CGROUP_GETSOCKOPT, "getsockopt"},
	{BPF_CGROUP_SOCK_OPS, "sock_ops"},
};

enum {
	PROGRAMS_MAX = 64,	/* the kernel's own limit on one cgroup and hook */
	EFFECTIVE_MAX = 1024,	/* of a cgroup and all its ancestors */
	FOREIGN_MAX = 256,	/* what is worth listing */
	DESCENDANTS_MAX = 4096, /* cgroups that are looked into */
	DEPTH_MAX = 8,
};

struct id_set {
	const uint32_t *ids;
	size_t n;
};

struct search {
	struct kernel_probe *probe;
	struct id_set ours;
	unsigned descendants; /* looked into so far */
};

static bool id_set_has(const struct id_set *set, uint32_t id)
{
	for (size_t i = 0; i < set->n; i++)
		if (set->ids[i] == id)
			return true;
	return false;
}

/* How many programs are attached; 0 also when the kernel does not know the hook. */
static size_t query(int cgroup_fd, enum bpf_attach_type type, uint32_t flags, uint32_t *ids,
		    uint32_t max)
{
	uint32_t n = max;

	if (bpf_prog_query(cgroup_fd, type, flags, NULL, ids, &n) < 0)
		return 0;
	return n;
}

static void program_name(uint32_t id, char *ret, size_t size)
{
	scoped_fd int fd = bpf_prog_get_fd_by_id(id);
	struct bpf_prog_info info = {0};
	__u32 length = sizeof(info);

	if (fd >= 0 && bpf_obj_get_info_by_fd(fd, &info, &length) == 0 && info.name[0])
		snprintf(ret, size, "%s", info.name);
	else
		snprintf(ret, size, "(no name)");
}

static void add_foreign(struct search *search, size_t hook, uint32_t id, const char *cgroup,
			bool before)
{
	struct kernel_probe *probe = search->probe;
	struct foreign_program *program;

	if (probe->n_foreign == FOREIGN_MAX)
		return;
	program = &probe->foreign[probe->n_foreign++];
	*program = (struct foreign_program){.id = id, .runs_before_ours = before};
	snprintf(program->attach_type, sizeof(program->attach_type), "%s", our_hooks[hook].name);
	snprintf(program->cgroup, sizeof(program->cgroup), "%s", cgroup);
	program_name(id, program->name, sizeof(program->name));
}

/*
 * Does the kernel run it before ours? The effective list is in the order of execution, and is
 * right also where programs were attached with a wish about their place (6.15). Where we are not
 * attached yet we would come last on our cgroup, and so after what is there and before ancestors.
 */
static bool runs_before(const struct search *search, const struct id_set *effective, uint32_t id,
			bool on_our_cgroup)
{
	for (size_t i = 0; i < effective->n; i++) {
		if (id_set_has(&search->ours, effective->ids[i]))
			return false;
		if (effective->ids[i] == id) {
			for (size_t j = i + 1; j < effective->n; j++)
				if (id_set_has(&search->ours, effective->ids[j]))
					return true;
			return on_our_cgroup;
		}
	}
	return on_our_cgroup;
}

/* Our cgroup itself, or an ancestor. our_fd: our cgroup, whose effective list decides. */
static void search_level(struct search *search, int our_fd, const char *cgroup, bool on_our_cgroup)
{
	scoped_fd int fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint32_t ids[PROGRAMS_MAX], effective_ids[EFFECTIVE_MAX];

	for (size_t hook = 0; fd >= 0 && hook < N_ELEMENTS(our_hooks); hook++) {
		enum bpf_attach_type type = our_hooks[hook].type;
		size_t n = query(fd, type, 0, ids, PROGRAMS_MAX);
		struct id_set effective = {effective_ids, 0};

		if (n)
			effective.n = query(our_fd, type, BPF_F_QUERY_EFFECTIVE, effective_ids,
					    EFFECTIVE_MAX);
		for (size_t i = 0; i < n; i++)
			if (!id_set_has(&search->ours, ids[i]))
				add_foreign(search, hook, ids[i], cgroup,
					    runs_before(search, &effective, ids[i], on_our_cgroup));
	}
}

/* What is attached below runs first, for the processes there. */
static void search_below(struct search *search, int parent_fd, const char *parent, unsigned depth)
{
	scoped_dir DIR *dir = NULL;
	struct dirent *entry;
	int dir_fd = openat(parent_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	dir = dir_fd < 0 ? NULL : fdopendir(dir_fd);
	if (!dir && dir_fd >= 0)
		close(dir_fd);
	if (!dir || depth == DEPTH_MAX)
		return;
	while ((entry = readdir(dir))) {
		char path[PATH_MAX];
		uint32_t ids[PROGRAMS_MAX];
		scoped_fd int fd = -1;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		if (search->descendants++ >= DESCENDANTS_MAX)
			return;
		fd = openat(parent_fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0 || snprintf(path, sizeof(path), "%s/%s", parent, entry->d_name) >=
				      (int)sizeof(path))
			continue;
		for (size_t hook = 0; hook < N_ELEMENTS(our_hooks); hook++) {
			size_t n = query(fd, our_hooks[hook].type, 0, ids, PROGRAMS_MAX);

			for (size_t i = 0; i < n; i++)
				if (!id_set_has(&search->ours, ids[i]))
					add_foreign(search, hook, ids[i], path, true);
		}
		search_below(search, fd, path, depth + 1);
	}
}

static bool is_cgroup2(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) == 0 && (unsigned long)fs.f_type == CGROUP2_SUPER_MAGIC;
}

static void find_foreign(struct search *search)
{
	const char *cgroup = search->probe->cgroup;
	scoped_fd int fd = *cgroup ? open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	char level[PATH_MAX];
	char *slash;

	if (fd < 0)
		return;
	search_level(search, fd, cgroup, true);
	snprintf(level, sizeof(level), "%s", cgroup);
	while ((slash = strrchr(level, '/')) && slash != level) {
		*slash = '\0';
		if (!is_cgroup2(level))
			break;
		search_level(search, fd, level, false);
	}
	search_below(search, fd, cgroup, 0);
}

/* ---- the whole ---------------------------------------------------------------------------------
 */

/* 0, or the errno that says why there is nothing to attach to. */
static int find_cgroup(const char *cgroup_root, struct kernel_probe *probe)
{
	char root[PATH_MAX] = "", dir[PATH_MAX] = "";
	struct error err = {0};
	int r = 0;

	if (cgroup_root)
		snprintf(root, sizeof(root), "%s", cgroup_root);
	else
		r = cgroup2_find(NULL, root, sizeof(root), &err);
	if (r == 0)
		r = cgroup_attach_dir(root, dir, sizeof(dir), &err);
	if (r == 0 && strlen(dir) >= sizeof(probe->cgroup))
		r = -ENAMETOOLONG;
	if (r == 0)
		snprintf(probe->cgroup, sizeof(probe->cgroup), "%.*s",
			 (int)sizeof(probe->cgroup) - 1, dir);
	return -r;
}

static struct kernel_probe *probe_new(void)
{
	struct kernel_probe *probe = calloc(1, sizeof(*probe));

	if (!probe)
		return NULL;
	probe->facilities = calloc(N_ELEMENTS(tests), sizeof(*probe->facilities));
	probe->foreign = calloc(FOREIGN_MAX, sizeof(*probe->foreign));
	if (probe->facilities && probe->foreign)
		return probe;
	kernel_probe_free(probe);
	return NULL;
}

void kernel_probe_free(struct kernel_probe *probe)
{
	if (!probe)
		return;
	free(probe->facilities);
	free(probe->foreign);
	free(probe);
}

int kernel_probe_run(const char *cgroup_root, const char *bpffs_dir,
		     const uint32_t *our_program_ids, size_t n_ours, struct kernel_probe **ret,
		     struct error *err)
{
	struct kernel_probe *probe = probe_new();
	struct attempt attempt = {.bpffs_dir = bpffs_dir};
	struct search search = {.probe = probe, .ours = {our_program_ids, n_ours}};
	struct utsname system;

	if (!probe)
		return error_set(err, ENOMEM, "probe the kernel");
	if (uname(&system) == 0)
		snprintf(probe->release, sizeof(probe->release), "%s", system.release);
	attempt.cgroup_error = find_cgroup(cgroup_root, probe);
	attempt.cgroup = probe->cgroup;
	run_tests(&attempt, probe);
	summarise(probe);
	find_foreign(&search);
	*ret = probe;
	return 0;
}

/* ---- JSON --------------------------------------------------------------------------------------
 */

static void add_facilities(json_t *array, const struct probe_facility *facilities, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct probe_facility *f = &facilities[i];

		json_array_append_new(array,
				      json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:s}", "name",
						f->name, "engine", f->engine, "how", f->how,
						"without", f->without, "required", (int)f->required,
						"found", (int)f->found, "detail", f->detail));
	}
}

static json_t *engine_json(const char *name, bool usable, const char *summary)
{
	return json_pack("{s:s, s:b, s:s}", "name", name, "usable", (int)usable, "summary",
			 summary);
}

/* In the order in which --mode auto takes the first that is usable. */
static json_t *engines_json(const struct kernel_probe *probe,
			    const struct netfilter_probe *netfilter)
{
	static const char unknown[] = "no network namespace could be made to try it in";

	return json_pack("[o, o, o]", engine_json("ebpf", probe->ebpf, probe->summary),
			 engine_json("nftables", netfilter && netfilter->nftables,
				     netfilter ? netfilter->nftables_summary : unknown),
			 engine_json("iptables", netfilter && netfilter->iptables,
				     netfilter ? netfilter->iptables_summary : unknown));
}

static const char *auto_engine(const struct kernel_probe *probe,
			       const struct netfilter_probe *netfilter)
{
	if (probe->ebpf)
		return "ebpf";
	if (netfilter && netfilter->nftables)
		return "nftables";
	return netfilter && netfilter->iptables ? "iptables" : "none";
}

static json_t *facilities_json(const struct kernel_probe *probe,
			       const struct netfilter_probe *netfilter)
{
	json_t *array = json_array();

	add_facilities(array, probe->facilities, probe->n_facilities);
	if (netfilter)
		add_facilities(array, netfilter->facilities, netfilter->n_facilities);
	return array;
}

static json_t *foreign_json(const struct kernel_probe *probe)
{
	json_t *array = json_array();

	for (size_t i = 0; array && i < probe->n_foreign; i++) {
		const struct foreign_program *p = &probe->foreign[i];

		/* A cgroup's name may be any bytes; what is not UTF-8 is left out. */
		json_t *cgroup = json_string(p->cgroup);

		json_array_append_new(array, json_pack("{s:s, s:s, s:o, s:I, s:b}", "attachType",
						       p->attach_type, "name", p->name, "cgroup",
						       cgroup ? cgroup : json_string(""), "id",
						       (json_int_t)p->id, "runsBeforeOurs",
						       (int)p->runs_before_ours));
	}
	return array;
}

json_t *kernel_probe_json(const struct kernel_probe *probe, const struct netfilter_probe *netfilter)
{
	return json_pack("{s:s, s:b, s:s, s:s, s:s, s:o, s:o, s:o}", "release", probe->release,
			 "ebpf", (int)probe->ebpf, "summary", probe->summary, "cgroup",
			 probe->cgroup, "auto", auto_engine(probe, netfilter), "engines",
			 engines_json(probe, netfilter), "facilities",
			 facilities_json(probe, netfilter), "foreign", foreign_json(probe));
}
