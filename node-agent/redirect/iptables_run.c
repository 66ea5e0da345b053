/* SPDX-License-Identifier: Apache-2.0 */
#include "iptables_run.h"

#include "error.h"
#include "iptables_text.h"
#include "kubelet.h"
#include "monotonic.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
	PROGRAM_TIMEOUT_MS = 10 * 1000,
	OUTPUT_MAX = 32 * 1024 * 1024,
	COMPLAINT_MAX = 400, /* bytes of standard error that an error quotes */
};

/* What the child is given, at these numbers; all else is closed. */
enum { CHILD_NETNS_FD = 3, CHILD_USERNS_FD, CHILD_FDS };
#define CHILD_NETNS_PATH "/proc/self/fd/3"

/*
 * No other tool in a pod's namespace uses another lock than this file, and no other namespace uses
 * this one: XTABLES_LOCKFILE since iptables 1.8.6, the mount below before it. In our own namespace
 * the lock is everybody's.
 */
static char *const child_environment[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"LC_ALL=C",
	"XTABLES_LOCKFILE=" CHILD_NETNS_PATH,
	NULL,
};
static char *const child_environment_here[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"LC_ALL=C",
	NULL,
};

const char *iptables_backend_name(enum iptables_backend backend)
{
	return backend == IPTABLES_LEGACY ? "legacy" : "nft";
}

/* ---- the child ------------------------------------------------------------------------------ */

enum child_step { STEP_NONE, STEP_DESCRIPTORS, STEP_USERNS, STEP_NETNS, STEP_IDS, STEP_EXEC };

static const char *const step_names[] = {
	[STEP_DESCRIPTORS] = "prepare descriptors",
	[STEP_USERNS] = "enter the pod's user namespace",
	[STEP_NETNS] = "enter the network namespace",
	[STEP_IDS] = "become its user 0",
	[STEP_EXEC] = "execute it",
};

struct failure { /* shared with the child until it executes the program */
	enum child_step step;
	int code;
};

struct launch {
	const char *const *argv;
	int fds[CHILD_FDS]; /* -1: none */
	bool private_mounts;
	pid_t parent;
	struct failure *failure;
};

static void __attribute__((noreturn)) child_fail(const struct launch *l, enum child_step step)
{
	l->failure->code = errno;
	l->failure->step = step;
	_exit(127);
}

/*
 * Name services would be asked for every uid, through the pod's network, for up to half a minute.
 * All of this is best effort: without it the rules are the same.
 */
static void child_mounts(bool own_lock)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return;
	mount("/dev/null", "/etc/nsswitch.conf", NULL, MS_BIND, NULL);
	if (own_lock)
		mount(CHILD_NETNS_PATH, "/run/xtables.lock", NULL, MS_BIND, NULL);
}

static void child_descriptors(const struct launch *l)
{
	int high[CHILD_FDS];

	for (int i = 0; i < CHILD_FDS; i++) {
		high[i] = l->fds[i] < 0 ? -1 : fcntl(l->fds[i], F_DUPFD, 2 * CHILD_FDS);
		if (l->fds[i] >= 0 && high[i] < 0)
			child_fail(l, STEP_DESCRIPTORS);
	}
	for (int i = 0; i < CHILD_FDS; i++)
		if (high[i] >= 0 && dup2(high[i], i) < 0)
			child_fail(l, STEP_DESCRIPTORS);
	/* Before Linux 5.9 only those go that are to be closed by exec, which is all of ours. */
	syscall(SYS_close_range, CHILD_FDS, ~0U, 0);
}

static void child_namespaces(const struct launch *l)
{
	if (l->private_mounts)
		child_mounts(l->fds[CHILD_NETNS_FD] >= 0);
	if (l->fds[CHILD_USERNS_FD] >= 0 && setns(CHILD_USERNS_FD, CLONE_NEWUSER) < 0)
		child_fail(l, STEP_USERNS);
	if (l->fds[CHILD_NETNS_FD] >= 0 && setns(CHILD_NETNS_FD, CLONE_NEWNET) < 0)
		child_fail(l, STEP_NETNS);
	/* Only the node's own rules are about cgroups; their paths are the node's. */
	if (l->fds[CHILD_NETNS_FD] < 0)
		kubelet_see_cgroups_of_node();
	/* By system call: the library's would look for the other threads of the parent. */
	if (l->fds[CHILD_USERNS_FD] >= 0 &&
	    (syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0))
		child_fail(l, STEP_IDS);
}

/* Between fork and exec: nothing but system calls. */
static void __attribute__((noreturn)) child_main(const struct launch *l)
{
	struct rlimit size = {.rlim_cur = OUTPUT_MAX, .rlim_max = OUTPUT_MAX};
	struct sigaction normal = {.sa_handler = SIG_DFL};
	sigset_t none;

	setpgid(0, 0);
	child_descriptors(l);
	child_namespaces(l);
	sigemptyset(&none);
	for (int sig = 1; sig < NSIG; sig++)
		sigaction(sig, &normal, NULL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setrlimit(RLIMIT_FSIZE, &size);
	/* What an agent was doing when it was killed must not go on beside the next agent. */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (getppid() != l->parent)
		_exit(127);
	close(CHILD_USERNS_FD);
	execve(l->argv[0], (char *const *)l->argv,
	       l->fds[CHILD_NETNS_FD] >= 0 ? child_environment : child_environment_here);
	child_fail(l, STEP_EXEC);
}

/* ---- the parent ----------------------------------------------------------------------------- */

static int await(pid_t pid, int *ret_status, struct error *err)
{
	scoped_fd int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int64_t deadline = monotonic_ms() + PROGRAM_TIMEOUT_MS;
	struct pollfd wait = {.fd = pidfd, .events = POLLIN};
	bool ended = false;
	int code = pidfd < 0 ? errno : 0;

	while (!code && !ended) {
		int64_t rest = deadline - monotonic_ms();
		int n = rest > 0 ? poll(&wait, 1, (int)rest) : 0;

		ended = n > 0;
		if (n == 0)
			code = ETIMEDOUT;
		else if (n < 0 && errno != EINTR)
			code = errno;
	}
	if (code) { /* with what it has started: it may be a script */
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL);
	}
	while (waitpid(pid, ret_status, 0) < 0 && errno == EINTR)
		;
	if (code == ETIMEDOUT)
		return error_set(err, code, "it did not end in %d s", PROGRAM_TIMEOUT_MS / 1000);
	return code ? error_set(err, code, "wait for it") : 0;
}

/* One line of what the program wrote there. */
static void read_complaint(int fd, char text[static COMPLAINT_MAX])
{
	ssize_t n = pread(fd, text, COMPLAINT_MAX - 1, 0);
	size_t used = 0;

	for (ssize_t i = 0; i < n; i++) {
		char c = text[i];

		if (c == '\n' || c == '\t' || c == '\r')
			c = ' ';
		if ((c == ' ' && (used == 0 || text[used - 1] == ' ')) || (unsigned char)c < ' ' ||
		    c == 127)
			continue;
		text[used++] = c;
	}
	while (used > 0 && text[used - 1] == ' ')
		used--;
	text[used] = '\0';
}

static int judge(int status, const struct failure *failure, int stderr_fd, struct error *err)
{
	char complaint[COMPLAINT_MAX];

	if (failure->step != STEP_NONE)
		return error_set(err, failure->code, "%s", step_names[failure->step]);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	read_complaint(stderr_fd, complaint);
	if (*complaint)
		return error_set(err, EIO, "%s", complaint);
	if (WIFSIGNALED(status))
		return error_set(err, EIO, "ended by signal %d", WTERMSIG(status));
	return error_set(err, EIO, "exit status %d", WEXITSTATUS(status));
}

static int launch(struct launch *l, struct error *err)
{
	struct failure *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0, r;
	pid_t pid;

	if (shared == MAP_FAILED)
		return error_set(err, errno, "memory");
	shared->step = STEP_NONE;
	l->failure = shared;
	l->parent = getpid();
	pid = fork();
	if (pid == 0)
		child_main(l);
	if (pid < 0)
		r = error_set(err, errno, "fork");
	else
		r = await(pid, &status, err);
	if (!r)
		r = judge(status, shared, l->fds[STDERR_FILENO], err);
	munmap(shared, sizeof(*shared));
	return r;
}

static int memory_file(const char *content, int *ret_fd, struct error *err)
{
	scoped_fd int fd = memfd_create("iptables", MFD_CLOEXEC);
	size_t left = content ? strlen(content) : 0;

	if (fd < 0)
		return error_set(err, errno, "create a memory file");
	while (left > 0) {
		ssize_t n = write(fd, content, left);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, errno, "write a memory file");
		content += n;
		left -= (size_t)n;
	}
	if (lseek(fd, 0, SEEK_SET) < 0)
		return error_set(err, errno, "rewind a memory file");
	*ret_fd = take_fd(&fd);
	return 0;
}

static int read_output(int fd, char **ret, struct error *err)
{
	scoped_free char *text = NULL;
	struct stat st;
	size_t used = 0;

	if (fstat(fd, &st) < 0)
		return error_set(err, errno, "stat its output");
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return error_set(err, ENOMEM, "its output");
	while (used < (size_t)st.st_size) {
		ssize_t n = pread(fd, text + used, (size_t)st.st_size - used, (off_t)used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n ? errno : EIO, "read its output");
		used += (size_t)n;
	}
	text[used] = '\0';
	*ret = take_ptr(text);
	return 0;
}

/*
 * The user namespace that owns the network namespace, -1 when it is ours: xt_owner takes no rule
 * from another one (user_namespaces(7), net/netfilter/xt_owner.c).
 */
static int foreign_userns(int netns_fd, int *ret_fd, struct error *err)
{
	scoped_fd int fd = ioctl(netns_fd, NS_GET_USERNS);
	struct stat theirs, ours;

	*ret_fd = -1;
	if (fd < 0)
		return error_set(err, errno, "find the namespace's user namespace");
	if (fstat(fd, &theirs) < 0 || stat("/proc/self/ns/user", &ours) < 0)
		return error_set(err, errno, "stat a user namespace");
	if (theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino)
		return 0;
	/* It is to be closed by exec and nothing else closes it before Linux 5.9. */
	*ret_fd = take_fd(&fd);
	return 0;
}

/* input and ret_output may be NULL; netns_fd -1: where we are. */
static int run(const char *const argv[], int netns_fd, const char *input, char **ret_output,
	       struct error *err)
{
	scoped_fd int in = -1, out = -1, complaint = -1, userns = -1;
	struct launch l = {.argv = argv, .private_mounts = input};
	int r = memory_file(input, &in, err);

	if (!r)
		r = memory_file(NULL, &out, err);
	if (!r)
		r = memory_file(NULL, &complaint, err);
	if (!r && netns_fd >= 0 && input)
		r = foreign_userns(netns_fd, &userns, err);
	if (!r) {
		const int fds[CHILD_FDS] = {in, out, complaint, netns_fd, userns};

		memcpy(l.fds, fds, sizeof(fds));
		r = launch(&l, err);
	}
	if (!r && ret_output)
		r = read_output(out, ret_output, err);
	return r ? error_wrap(err, "%s", argv[0]) : 0;
}

int iptables_run_restore(const struct iptables_programs *programs, bool ipv6, int netns_fd,
			 const char *text, struct error *err)
{
	const char *const argv[] = {programs->restore[ipv6], "--noflush", "--wait=5", NULL};

	if (!*argv[0])
		return error_set(err, ENOENT, "no %s-restore in PATH",
				 ipv6 ? "ip6tables" : "iptables");
	return run(argv, netns_fd, text, NULL, err);
}

int iptables_run_save(const struct iptables_programs *programs, bool ipv6, int netns_fd, char **ret,
		      struct error *err)
{
	const char *const argv[] = {programs->save[ipv6], "--counters", NULL};
	int r;

	if (!*argv[0])
		return error_set(err, ENOENT, "no %s-save in PATH",
				 ipv6 ? "ip6tables" : "iptables");
	r = run(argv, netns_fd, NULL, ret, err);
	if (r || !strstr(*ret, "' is incompatible, use 'nft' tool"))
		return r;
	/* With status 0, and as if the table were empty: rules that were made by nft are in it. */
	free(*ret);
	*ret = NULL;
	return error_set(err, EIO, "%s: a table has rules that only nft can read", argv[0]);
}

/* ---- which programs ------------------------------------------------------------------------- */

static bool find_in_path(const char *name, char ret[static PATH_MAX])
{
	const char *path = getenv("PATH");

	if (!path || !*path)
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	while (*path) {
		int length = (int)strcspn(path, ":");
		char file[PATH_MAX];
		int n = snprintf(file, sizeof(file), "%.*s/%s", length, path, name);

		if (*path == '/' && n < (int)sizeof(file) && !access(file, X_OK)) {
			memcpy(ret, file, (size_t)n + 1);
			return true;
		}
		path += length + (path[length] == ':');
	}
	return false;
}

/* "iptables-restore v1.8.9 (nf_tables)"; before 1.8 there was one backend, and no word of it. */
static bool is_of_backend(const char *program, enum iptables_backend backend)
{
	const char *const argv[] = {program, "--version", NULL};
	scoped_free char *version = NULL;
	struct error ignored = {0};

	if (run(argv, -1, NULL, &version, &ignored) || !version)
		return false;
	return (strstr(version, "nf_tables") != NULL) == (backend == IPTABLES_NFT);
}

static void find_program(enum iptables_backend backend, const char *family, const char *verb,
			 char ret[static PATH_MAX])
{
	char name[64];

	snprintf(name, sizeof(name), "%s-%s-%s", family, iptables_backend_name(backend), verb);
	if (find_in_path(name, ret))
		return;
	snprintf(name, sizeof(name), "%s-%s", family, verb);
	if (!find_in_path(name, ret) || !is_of_backend(ret, backend))
		ret[0] = '\0';
}

void iptables_find_programs(enum iptables_backend backend, struct iptables_programs *ret)
{
	static const char *const families[] = {"iptables", "ip6tables"};

	for (size_t i = 0; i < 2; i++) {
		find_program(backend, families[i], "restore", ret->restore[i]);
		find_program(backend, families[i], "save", ret->save[i]);
	}
}

static bool find_ipset(char ret[static PATH_MAX], struct error *err)
{
	if (find_in_path("ipset", ret))
		return true;
	error_set(err, ENOENT, "no ipset in PATH");
	return false;
}

int iptables_run_ipset_restore(int netns_fd, const char *text, struct error *err)
{
	char program[PATH_MAX];
	const char *const argv[] = {program, "-exist", "restore", NULL};

	return find_ipset(program, err) ? run(argv, netns_fd, text, NULL, err) : -ENOENT;
}

int iptables_run_ipset_save(int netns_fd, char **ret, struct error *err)
{
	char program[PATH_MAX];
	const char *const argv[] = {program, "save", NULL};

	return find_ipset(program, err) ? run(argv, netns_fd, NULL, ret, err) : -ENOENT;
}

/* ---- is anything there ---------------------------------------------------------------------- */

struct presence {
	bool family[2];
};

static bool has_legacy_tables(const char *names)
{
	scoped_file FILE *file = fopen(names, "re");

	if (!file)
		return errno != ENOENT;
	return fgetc(file) != EOF;
}

static int look_for_legacy(void *arg, struct error *err)
{
	struct presence *p = arg;

	(void)err;
	/* Not /proc/net: that is of the first thread's namespace. */
	p->family[0] = has_legacy_tables("/proc/thread-self/net/ip_tables_names");
	p->family[1] = has_legacy_tables("/proc/thread-self/net/ip6_tables_names");
	return 0;
}

static int see_chain(const struct nlmsghdr *header, void *arg)
{
	const struct nfgenmsg *message = mnl_nlmsg_get_payload(header);
	struct presence *p = arg;
	struct nlattr *attr;

	if (message->nfgen_family != AF_INET && message->nfgen_family != AF_INET6)
		return MNL_CB_OK;
	mnl_attr_for_each(attr, header, sizeof(*message))
	{
		if (mnl_attr_get_type(attr) == NFTA_CHAIN_NAME &&
		    mnl_attr_validate(attr, MNL_TYPE_NUL_STRING) == 0 &&
		    !strncmp(mnl_attr_get_str(attr), IPTABLES_CHAIN_PREFIX,
			     strlen(IPTABLES_CHAIN_PREFIX)))
			p->family[message->nfgen_family == AF_INET6] = true;
	}
	return MNL_CB_OK;
}

static void forget_chains(void *arg)
{
	*(struct presence *)arg = (struct presence){{false, false}};
}

static int look_for_nft(void *arg, struct error *err)
{
	struct presence *p = arg;
	struct netlink_request request;
	struct nfgenmsg *message;
	struct nlmsghdr *header =
		netlink_request_start(&request, (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETCHAIN,
				      NLM_F_DUMP, sizeof(*message), &message);
	int r;

	(void)err;
	message->nfgen_family = AF_UNSPEC;
	message->version = NFNETLINK_V0;
	r = netlink_dump(NETLINK_NETFILTER, header, see_chain, forget_chains, p);
	/* EINVAL: no such subsystem, so no tables; EPROTONOSUPPORT: nothing of netfilter at all. */
	if (r == -EINVAL || r == -EPROTONOSUPPORT)
		forget_chains(p);
	else if (r)
		*p = (struct presence){{true, true}};
	return 0;
}

void iptables_may_be_there(enum iptables_backend backend, int netns_fd, bool ret[static 2])
{
	struct presence p = {{true, true}};
	struct error ignored = {0};

	if (netns_run(netns_fd, backend == IPTABLES_LEGACY ? look_for_legacy : look_for_nft, &p,
		      &ignored))
		p = (struct presence){{true, true}};
	ret[0] = p.family[0];
	ret[1] = p.family[1];
}
